/* Packing, and the scalar product against double arithmetic: is the definition itself right? */
#include "kernels/check.h"

#include <math.h>

static void packed_rows_equal_source_rows(void **state) {
  (void)state;
  size_t n_types;
  const uint32_t *types = check_types(&n_types);
  for (size_t i = 0; i < n_types; i++)
    for (int round = 0; round < 6; round++) {
      size_t rows = 1 + check_below(40), cols = 256 * (1 + check_below(4));
      uint8_t *t = check_tensor(types[i], rows, cols, (check_pattern)(round % CHECK_N_PATTERNS));
      pst_kernels_matrix m = check_pack(types[i], t, rows, cols);
      float *want = pst_malloc(cols * sizeof(float)), *got = pst_malloc(cols * sizeof(float));
      for (size_t r = 0; r < rows; r++) {
        assert_int_equal(
            pst_kernels_dequantize_row(types[i], t + r * pst_kernels_row_bytes(types[i], cols), cols, want), 0);
        pst_kernels_matrix_row(&m, r, got);
        check_same(pst_kernels_type_info(types[i])->name, want, got, cols);
      }
      pst_free(want);
      pst_free(got);
      pst_free(t);
      check_matrix_free(&m);
    }
}

/* The product as the sum over q * d times the dequantized weights, in double. */
static void scalar_product_is_the_product(void **state) {
  (void)state;
  size_t n_types;
  const uint32_t *types = check_types(&n_types);
  void *work = pst_malloc_aligned(PST_KERNELS_WORK_BYTES, 64);
  for (size_t i = 0; i < n_types; i++)
    for (int round = 0; round < 4; round++) {
      size_t rows = 1 + check_below(40), cols = 256 * (1 + check_below(3)), n_tokens = 1 + check_below(5);
      uint8_t *t = check_tensor(types[i], rows, cols, (check_pattern)(round % CHECK_N_PATTERNS));
      pst_kernels_matrix m = check_pack(types[i], t, rows, cols);
      check_input c = check_input_make(n_tokens, cols, round & 1);
      float *out = pst_malloc(rows * n_tokens * sizeof(float)), *row = pst_malloc(cols * sizeof(float));
      pst_kernels_find("scalar")->matmul(&m, &c.in, 0, n_tokens, 0, m.n_groups, false, out, rows, work);
      for (size_t r = 0; r < rows; r++) {
        pst_kernels_matrix_row(&m, r, row);
        for (size_t k = 0; k < n_tokens; k++) {
          double sum = 0, size = 0;
          for (size_t j = 0; j < cols; j++) {
            double x = m.is_float ? (double)c.rows[k * cols + j]
                                  : (double)c.in.d[k * c.in.n_blocks + j / 32] * (double)c.in.q[k * cols + j];
            sum += x * (double)row[j];
            size += fabs(x * (double)row[j]);
          }
          if (!(fabs(sum - (double)out[k * rows + r]) <= 1e-5 * size + 1e-30))
            fail_msg("%s row %zu token %zu: %g, want %g", pst_kernels_type_info(types[i])->name, r, k,
                     (double)out[k * rows + r], sum);
        }
      }
      pst_free(out);
      pst_free(row);
      pst_free(t);
      check_matrix_free(&m);
      check_input_free(&c);
    }
  pst_free(work);
}

static void shapes_that_do_not_fit_are_refused(void **state) {
  (void)state;
  pst_kernels_matrix m;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_kernels_matrix_init(PST_TYPE_Q4_0, 16, 48, &m, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "multiple of 32"));
  assert_int_equal(pst_kernels_matrix_init(PST_TYPE_Q4_K, 16, 576, &m, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "multiple of 256"));
  assert_int_equal(pst_kernels_matrix_init(PST_TYPE_Q4_0, 0, 32, &m, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_kernels_matrix_init(PST_TYPE_I32, 16, 32, &m, &err), PST_E_UNSUPPORTED);
  assert_int_equal(pst_kernels_matrix_init(999, 16, 32, &m, &err), PST_E_UNSUPPORTED);
  assert_int_equal(pst_kernels_matrix_init(PST_TYPE_F16, 16, 7, &m, &err), 0);
  assert_int_equal(pst_kernels_matrix_init(PST_TYPE_F16, SIZE_MAX / 2, 7, &m, &err), PST_E_LIMIT);
}

static void halves_convert_both_ways(void **state) {
  (void)state;
  for (uint32_t h = 0; h < 65536; h++) {
    float f = pst_kernels_half_to_float((uint16_t)h);
    if (isnan(f))
      assert_true((h & 0x7c00) == 0x7c00 && (h & 0x3ff));
    else
      assert_int_equal(pst_kernels_half_from_float(f), h);
  }
  for (uint32_t h = 0; h < 0x7bff; h++) {
    /* Halfway between neighbours goes to the even one; a little off it goes to the nearer. */
    double mid =
        ((double)pst_kernels_half_to_float((uint16_t)h) + (double)pst_kernels_half_to_float((uint16_t)(h + 1))) / 2;
    float m = (float)mid;
    assert_int_equal(pst_kernels_half_from_float(m), h + (h & 1));
    assert_int_equal(pst_kernels_half_from_float(nextafterf(m, 1e9f)), h + 1);
    assert_int_equal(pst_kernels_half_from_float(nextafterf(m, 0)), h);
  }
  assert_int_equal(pst_kernels_half_from_float(65519.0f), 0x7bff);
  assert_int_equal(pst_kernels_half_from_float(65520.0f), 0x7c00);
}

int main(void) {
  check_seed();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(packed_rows_equal_source_rows),
      cmocka_unit_test(scalar_product_is_the_product),
      cmocka_unit_test(shapes_that_do_not_fit_are_refused),
      cmocka_unit_test(halves_convert_both_ways),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
