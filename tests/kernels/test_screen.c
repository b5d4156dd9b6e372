/* Screens: the bound holds for every row and input, also for the input that is worst for it, and the search for survivors misses none. */
#include "kernels/check.h"

#include <math.h>

#include "kernels/layout.h"

typedef struct screened {
  uint8_t *tensor;
  pst_kernels_matrix m;
  pst_kernels_screen s;
  uint8_t *codes;
  float *radius;
} screened;

static screened screened_make(uint32_t type, size_t rows, size_t cols, check_pattern pattern) {
  screened x;
  x.tensor = check_tensor(type, rows, cols, pattern);
  x.m = check_pack(type, x.tensor, rows, cols);
  assert_int_equal(pst_kernels_screen_init(&x.m, &x.s), 0);
  x.codes = check_alloc(pst_kernels_matrix_bytes(&x.s.codes), 0);
  x.radius = check_alloc(pst_kernels_screen_radius_bytes(&x.s), 0);
  size_t cut = check_below(x.s.codes.n_groups + 1);
  const uint8_t *rest = x.tensor + cut * PST_KERNELS_GROUP * pst_kernels_row_bytes(type, cols);
  assert_int_equal(pst_kernels_screen_pack(&x.s, type, rest, cut, x.s.codes.n_groups, x.codes, x.radius), 0);
  assert_int_equal(pst_kernels_screen_pack(&x.s, type, x.tensor, 0, cut, x.codes, x.radius), 0);
  x.s.codes.data = x.codes;
  x.s.radius = x.radius;
  return x;
}

static void screened_free(screened *x) {
  pst_free(x->tensor);
  check_matrix_free(&x->m);
  check_free(x->codes);
  check_free(x->radius);
}

/* The input that lies along what the copy of a row misses. */
static void worst_input(const screened *x, size_t row, float *ret) {
  size_t n = x->m.n_cols;
  float *coarse = pst_malloc(n * sizeof *coarse);
  pst_kernels_matrix_row(&x->m, row, ret);
  pst_kernels_matrix_row(&x->s.codes, row, coarse);
  for (size_t i = 0; i < n; i++) ret[i] -= coarse[i];
  pst_free(coarse);
}

static void the_bound_holds(void **state) {
  (void)state;
  static const uint32_t types[] = {PST_TYPE_Q8_0, PST_TYPE_Q6_K, PST_TYPE_IQ4_NL};
  void *work = check_alloc(PST_KERNELS_WORK_BYTES, 0);
  const pst_kernels *k = pst_kernels_get();
  double closest = 0;
  for (int round = 0; round < 120; round++) {
    uint32_t type = types[round % 3];
    size_t rows = 1 + check_below(90),
           cols = type == PST_TYPE_Q6_K ? 256 * (1 + check_below(3)) : 32 * (1 + check_below(30));
    screened x = screened_make(type, rows, cols, (check_pattern)(round % CHECK_N_PATTERNS));
    check_input c = check_input_make(2, cols, false);
    worst_input(&x, check_below(rows), c.rows);
    k->quantize(c.rows, 0, c.in.n_blocks, &c.in, 0);
    float *full = check_alloc(2 * rows * sizeof(float), 0), *coarse = check_alloc(2 * rows * sizeof(float), 0);
    k->matmul(&x.m, &c.in, 0, 2, 0, x.m.n_groups, false, full, rows, work);
    k->matmul(&x.s.codes, &c.in, 0, 2, 0, x.s.codes.n_groups, false, coarse, rows, work);
    for (size_t t = 0; t < 2; t++) {
      double reach = (double)pst_kernels_screen_reach(&c.in, t);
      for (size_t r = 0; r < rows; r++) {
        double difference = fabs((double)full[t * rows + r] - (double)coarse[t * rows + r]),
               bound = (double)x.radius[r] * reach;
        assert_true(difference <= bound);
        if (bound > 0 && type == PST_TYPE_Q8_0) closest = fmax(closest, difference / bound);
      }
    }
    check_free(full);
    check_free(coarse);
    check_input_free(&c);
    screened_free(&x);
  }
  assert_true(closest > 0.95); /* no wider than it has to be */
  check_free(work);
}

static void passing_groups(void **state) {
  (void)state;
  const pst_kernels *scalar = pst_kernels_find("scalar");
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < 300; round++) {
      size_t n = 1 + check_below(400), most = n / 16 + 1;
      float *x = check_alloc(n * 4, 4 * check_below(16)), *radius = check_alloc(n * 4, 4 * check_below(16));
      int32_t *want = check_alloc(most * 4, 0), *got = check_alloc(most * 4, 0);
      check_fill(x, n);
      for (size_t i = 0; i < n; i++) radius[i] = check_float(0, 0.1f);
      float floor = x[check_below(n)];
      size_t n_want = scalar->screen_pass(x, radius, 2.0f, floor, n, 7, want);
      assert_int_equal((*k)->screen_pass(x, radius, 2.0f, floor, n, 7, got), n_want);
      assert_memory_equal(want, got, n_want * sizeof *want);
      assert_true(n_want >= 1);
      check_free(x);
      check_free(radius);
      check_free(want);
      check_free(got);
    }
}

static void only_where_it_pays(void **state) {
  (void)state;
  size_t n_types;
  const uint32_t *types = check_types(&n_types);
  for (size_t i = 0; i < n_types; i++) {
    pst_kernels_matrix m;
    assert_int_equal(pst_kernels_matrix_init(types[i], 64, 256, &m, NULL), 0);
    assert_int_equal(pst_kernels_screen_pays(&m), types[i] == PST_TYPE_Q8_0);
  }
}

int main(void) {
  check_seed();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_bound_holds),
      cmocka_unit_test(passing_groups),
      cmocka_unit_test(only_where_it_pays),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
