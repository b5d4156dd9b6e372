/* Every slot of every table against the scalar one, bit for bit: random shapes, odd tails, extremes, unaligned outputs, guard bytes.
 *
 * The tolerance is zero: reference.c fixes the order of operations and the instruction sets follow it. $PENSTOCK_SEED repeats a run. */
#include "kernels/check.h"
#include "support/scale.h"

#include <math.h>

static const pst_kernels *scalar(void) { return pst_kernels_find("scalar"); }

static char label[256];
static const char *name_of(const pst_kernels *k, const char *what, size_t a, size_t b, size_t c) {
  snprintf(label, sizeof label, "%s %s %zu %zu %zu", k->name, what, a, b, c);
  return label;
}

/* ---- vectors ---------------------------------------------------------------------------------------------------- */

static void check_inputs_same(const char *what, const check_input *want, const check_input *got) {
  size_t tokens = want->in.max_tokens;
  assert_memory_equal(want->in.q, got->in.q, tokens * want->in.n_cols);
  check_same(what, want->in.d, got->in.d, tokens * want->in.n_blocks);
  check_same(what, want->in.s, got->in.s, tokens * want->in.n_blocks);
  assert_memory_equal(want->in.half, got->in.half, tokens * want->in.n_blocks * 4);
}

static const pst_kernels_gate gates[] = {PST_KERNELS_SILU, PST_KERNELS_GELU_TANH, PST_KERNELS_SWIGLU_CLAMPED,
                                         PST_KERNELS_GELU_ERF, PST_KERNELS_SIGMOID};

static void quantizers(void **state) {
  (void)state;
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < 200; round++) {
      size_t cols = 32 * (1 + check_below(50));
      check_input want = check_input_make(2, cols, round % 7 == 0), got = check_input_make(2, cols, false);
      memcpy(got.rows, want.rows, 2 * cols * sizeof(float));
      float *weight = check_alloc(cols * sizeof(float), 4), *up = check_alloc(cols * sizeof(float), 8);
      float *out_a = check_alloc(cols * sizeof(float), 12), *out_b = check_alloc(cols * sizeof(float), 20);
      check_fill(weight, cols);
      check_fill(up, cols);
      for (size_t t = 0; t < 2; t++) {
        size_t cut = check_below(want.in.n_blocks + 1);
        (*k)->quantize(want.rows + t * cols, 0, cut, &got.in, t);
        (*k)->quantize(want.rows + t * cols, cut, want.in.n_blocks, &got.in, t);
      }
      check_inputs_same(name_of(*k, "quantize", cols, 0, 0), &want, &got);
      const float *w = check_below(3) ? weight : NULL;
      for (size_t t = 0; t < 2; t++) {
        scalar()->rmsnorm_quantize(want.rows + t * cols, w, 1e-5f, t ? out_a : NULL, &want.in, t);
        (*k)->rmsnorm_quantize(want.rows + t * cols, w, 1e-5f, t ? out_b : NULL, &got.in, t);
      }
      check_inputs_same(name_of(*k, "rmsnorm_quantize", cols, 0, 0), &want, &got);
      check_same(name_of(*k, "rmsnorm_quantize", cols, 1, 0), out_a, out_b, cols);
      pst_kernels_gate gate = gates[check_below(PST_ARRAY_LEN(gates))];
      const float *factor = check_below(3) ? up : NULL;
      for (size_t t = 0; t < 2; t++) {
        scalar()->gated_quantize(gate, want.rows + t * cols, factor, 0, want.in.n_blocks, &want.in, t);
        (*k)->gated_quantize(gate, want.rows + t * cols, factor, 0, want.in.n_blocks, &got.in, t);
      }
      check_inputs_same(name_of(*k, "gated_quantize", cols, gate, 0), &want, &got);
      check_free(weight);
      check_free(up);
      check_free(out_a);
      check_free(out_b);
      check_input_free(&want);
      check_input_free(&got);
    }
}

static void elementwise(void **state) {
  (void)state;
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < 300; round++) {
      size_t n = 1 + check_below(300);
      float *x = check_alloc(n * 4, 4 * check_below(16)), *y = check_alloc(n * 4, 4 * check_below(16));
      float *a = check_alloc(n * 4, 4 * check_below(16)), *b = check_alloc(n * 4, 4 * check_below(16));
      check_fill(x, n);
      check_fill(y, n);
      scalar()->rmsnorm(x, round & 1 ? y : NULL, n, 1e-6f, a);
      (*k)->rmsnorm(x, round & 1 ? y : NULL, n, 1e-6f, b);
      check_same(name_of(*k, "rmsnorm", n, 0, 0), a, b, n);
      for (size_t g = 0; g < 2 * PST_ARRAY_LEN(gates); g++) {
        pst_kernels_gate gate = gates[g % PST_ARRAY_LEN(gates)];
        const float *factor = g < PST_ARRAY_LEN(gates) ? y : NULL;
        scalar()->gated(gate, x, factor, n, a);
        (*k)->gated(gate, x, factor, n, b);
        check_same(name_of(*k, "gated", n, gate, 0), a, b, n);
      }
      const float *weight = check_below(4) ? y : NULL, *bias = check_below(4) ? x : NULL;
      scalar()->layernorm(x, weight, bias, n, 1e-6f, a);
      memcpy(b, x, n * 4);
      (*k)->layernorm(b, weight, bias, n, 1e-6f, b); /* in place */
      check_same(name_of(*k, "layernorm", n, 0, 0), a, b, n);
      scalar()->add(x, y, n, a);
      (*k)->add(x, y, n, b);
      check_same(name_of(*k, "add", n, 0, 0), a, b, n);
      scalar()->scale(x, 0.3f, n, a);
      (*k)->scale(x, 0.3f, n, b);
      check_same(name_of(*k, "scale", n, 0, 0), a, b, n);
      scalar()->softcap(x, 30.0f, n, a);
      (*k)->softcap(x, 30.0f, n, b);
      check_same(name_of(*k, "softcap", n, 0, 0), a, b, n);
      assert_int_equal(scalar()->argmax(x, n), (*k)->argmax(x, n));
      float max = x[scalar()->argmax(x, n)];
      float sum_a = scalar()->sum_exp(x, n, max), sum_b = (*k)->sum_exp(x, n, max);
      check_same(name_of(*k, "sum_exp", n, 0, 0), &sum_a, &sum_b, 1);
      check_free(x);
      check_free(y);
      check_free(a);
      check_free(b);
    }
}

static void exponentials(void **state) {
  (void)state;
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < 200; round++) {
      size_t n = 1 + check_below(100);
      float *x = check_alloc(n * 4, 4 * check_below(16)), *a = check_alloc(n * 4, 4), *b = check_alloc(n * 4, 8);
      float shift = check_float(-5, 5);
      check_fill(x, n);
      scalar()->exp_less(x, shift, n, a);
      (*k)->exp_less(x, shift, n, b);
      check_same(name_of(*k, "exp_less", n, 0, 0), a, b, n);
      (*k)->exp_less(x, shift, n, x); /* in place */
      check_same(name_of(*k, "exp_less", n, 1, 0), a, x, n);
      check_free(x);
      check_free(a);
      check_free(b);
    }
}

/* A float matrix [n][m] read by rows or by columns, at odd strides. */
typedef struct strided {
  float *memory;
  pst_kernels_floats m;
} strided;

static strided make_strided(size_t n, size_t m) {
  bool by_columns = check_below(2);
  size_t stride = (by_columns ? n : m) + check_below(5), total = stride * (by_columns ? m : n);
  strided s = {check_alloc(total * 4, 4 * check_below(16)), {NULL, by_columns ? 1 : stride, by_columns ? stride : 1}};
  check_fill(s.memory, total);
  s.m.data = s.memory;
  return s;
}

static void float_products(void **state) {
  (void)state;
  void *work = pst_malloc_aligned(PST_KERNELS_WORK_BYTES, 64);
  assert_non_null(work);
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < 150; round++) {
      bool deep = round % 10 == 0, wide = round % 10 == 1, add = check_below(2);
      size_t rows = 1 + check_below(40), cols = 1 + check_below(wide ? 300 : 70), depth = check_below(deep ? 1500 : 60);
      size_t c_row = cols + check_below(7), n = rows * c_row;
      strided a = make_strided(rows, PST_MAX(depth, 1)), b = make_strided(PST_MAX(depth, 1), cols);
      float *c = check_alloc(n * 4, 4), *d = check_alloc(n * 4, 8), *e = check_alloc(n * 4, 12);
      check_fill(c, n);
      memcpy(d, c, n * 4);
      memcpy(e, c, n * 4);
      pst_kernels_product(scalar(), rows, cols, depth, a.m, b.m, c, c_row, add, work);
      pst_kernels_product(*k, rows, cols, depth, a.m, b.m, d, c_row, add, work);
      check_same(name_of(*k, "product", rows, cols, depth), c, d, n);
      /* The definition: one chain. And a product cut into tiles, its depth too, is the whole. */
      size_t i = check_below(rows), j = check_below(cols), cut = depth ? check_below(depth) : 0,
             left = check_below(cols);
      float sum = add ? e[i * c_row + j] : 0.0f;
      for (size_t p = 0; p < depth; p++)
        sum = fmaf(a.m.data[i * a.m.row + p * a.m.col], b.m.data[p * b.m.row + j * b.m.col], sum);
      check_same("product", &sum, &d[i * c_row + j], 1);
      for (int half = 0; half < 2; half++) {
        size_t from = half ? left : 0, n_cols = half ? cols - left : left;
        pst_kernels_floats b_at = {b.m.data + from * b.m.col, b.m.row, b.m.col};
        pst_kernels_product(*k, rows, n_cols, cut, a.m, b_at, e + from, c_row, add, work);
        b_at.data += cut * b.m.row;
        pst_kernels_floats a_at = {a.m.data + cut * a.m.col, a.m.row, a.m.col};
        pst_kernels_product(*k, rows, n_cols, depth - cut, a_at, b_at, e + from, c_row, true, work);
      }
      check_same(name_of(*k, "product in tiles", rows, cols, depth), c, e, n);
      check_free(a.memory);
      check_free(b.memory);
      check_free(c);
      check_free(d);
      check_free(e);
    }
  pst_free(work);
}

/* One step on random states, against the scalar table; and of that the answers against the rule in double. */
static void delta_rules(void **state) {
  (void)state;
  for (const pst_kernels **t = check_tables(); *t; t++)
    for (int round = 0; round < 100; round++) {
      size_t n_k = 1 + check_below(round % 5 ? 40 : 130), n_v = 1 + check_below(round % 5 ? 40 : 130);
      float *a = check_alloc(n_k * n_v * 4, 4 * check_below(16)), *b = check_alloc(n_k * n_v * 4, 4 * check_below(16));
      float *q = check_alloc(n_k * 4, 4), *k = check_alloc(n_k * 4, 8), *v = check_alloc(n_v * 4, 12);
      float *out_a = check_alloc(n_v * 4, 0), *out_b = check_alloc(n_v * 4, 4);
      float decay = (float)check_below(1000) / 1000.0f, beta = (float)check_below(1000) / 1000.0f;
      check_fill(a, n_k * n_v);
      check_fill(q, n_k);
      check_fill(k, n_k);
      check_fill(v, n_v);
      memcpy(b, a, n_k * n_v * 4);
      size_t j = check_below(n_v);
      double known = 0, answer = 0, size = 0;
      for (size_t i = 0; i < n_k; i++) known += (double)(a[i * n_v + j] * decay) * (double)k[i];
      for (size_t i = 0; i < n_k; i++) {
        double delta = ((double)v[j] - known) * (double)beta;
        answer += ((double)(a[i * n_v + j] * decay) + (double)k[i] * delta) * (double)q[i];
        size += (fabs((double)a[i * n_v + j]) + fabs((double)k[i] * delta)) * fabs((double)q[i]);
        size += fabs((double)k[i] * (double)q[i]) * 1e2 * fabs(known);
      }
      scalar()->delta_rule(a, n_k, n_v, q, k, v, decay, beta, out_a);
      (*t)->delta_rule(b, n_k, n_v, q, k, v, decay, beta, out_b);
      check_same(name_of(*t, "delta_rule", n_k, n_v, 0), out_a, out_b, n_v);
      check_same(name_of(*t, "delta_rule state", n_k, n_v, 0), a, b, n_k * n_v);
      if (fabs((double)out_a[j] - answer) > 1e-4 * size + 1e-30)
        fail_msg("delta_rule %zu x %zu: %g, not %g", n_k, n_v, (double)out_a[j], answer);
      float *all[] = {a, b, q, k, v, out_a, out_b};
      for (size_t i = 0; i < PST_ARRAY_LEN(all); i++) check_free(all[i]);
    }
}

/* Rows by one token up to many, against the scalar table; and that against sums in double. */
static void dot_products(void **state) {
  (void)state;
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < 200; round++) {
      size_t n_rows = 1 + check_below(20), n_cols = 1 + check_below(round % 4 ? 70 : 600),
             n_tokens = 1 + check_below(11);
      size_t padded = PST_KERNELS_DOT_COLS(n_cols);
      float *rows = check_alloc(n_rows * padded * 4, 4 * check_below(16)),
            *x = check_alloc(n_tokens * n_cols * 4, 4 * check_below(16));
      float *a = check_alloc(n_tokens * n_rows * 4, 4), *b = check_alloc(n_tokens * n_rows * 4, 8);
      check_fill(rows, n_rows * padded);
      check_fill(x, n_tokens * n_cols);
      for (size_t i = 0; i < n_rows * padded; i++)
        if (i % padded >= n_cols) rows[i] = 0;
      scalar()->dots(rows, n_rows, n_cols, x, n_tokens, a);
      (*k)->dots(rows, n_rows, n_cols, x, n_tokens, b);
      check_same(name_of(*k, "dots", n_rows, n_cols, n_tokens), a, b, n_tokens * n_rows);
      size_t t = check_below(n_tokens), r = check_below(n_rows);
      double sum = 0, size = 0;
      for (size_t i = 0; i < n_cols; i++) {
        double p = (double)rows[r * padded + i] * (double)x[t * n_cols + i];
        sum += p;
        size += fabs(p);
      }
      if (fabs((double)a[t * n_rows + r] - sum) > 1e-5 * size + 1e-30)
        fail_msg("dots %zu x %zu: %g, not %g", n_rows, n_cols, (double)a[t * n_rows + r], sum);
      void *all[] = {x, rows, a, b};
      for (size_t i = 0; i < PST_ARRAY_LEN(all); i++) check_free(all[i]);
    }
}

/* The scalar exponential against libm, so that the definition itself is right. */
static void activations_are_accurate(void **state) {
  (void)state;
  float up = 1.0f;
  for (float x = -100; x < 100; x += 0.0137f) {
    float silu, gelu, gelu_erf, clamped, capped, sum = scalar()->sum_exp(&x, 1, 0.0f), wide = x * 0.5f;
    scalar()->softcap(&x, 30.0f, 1, &capped);
    assert_true(fabs((double)capped - 30 * tanh((double)x / 30)) <= 30 * 4e-7);
    scalar()->gated(PST_KERNELS_SILU, &x, &up, 1, &silu);
    scalar()->gated(PST_KERNELS_GELU_TANH, &x, &up, 1, &gelu);
    scalar()->gated(PST_KERNELS_GELU_ERF, &x, NULL, 1, &gelu_erf);
    scalar()->gated(PST_KERNELS_SWIGLU_CLAMPED, &x, &wide, 1, &clamped);
    double d = (double)x, inner = sqrt(2 / acos(-1.0)) * (d + 0.044715 * d * d * d);
    if (x >= -80 && x <= 88) assert_true(fabs((double)sum / exp(d) - 1) < 3e-7);
    if (x < -80) assert_true(!(sum > 0));
    assert_true(fabs((double)silu - d / (1 + exp(-d))) <= 1e-6 * fabs(d) + 1e-30);
    double g = fmin(d, 7), swiglu = g / (1 + exp(-1.702 * g)) * (fmax(fmin(d / 2, 7), -7) + 1);
    assert_true(fabs((double)clamped - swiglu) <= 2e-6 * fabs(d) + 1e-30);
    assert_true(fabs((double)gelu_erf - 0.5 * d * erfc(-d / sqrt(2))) <= 3e-7 * fabs(d) + 1e-30);
    assert_true(fabs((double)gelu - 0.5 * d * (1 + tanh(inner))) <= 1e-6 * fabs(d) + 1e-30);
  }
}

/* The scalar layer norm against one in double. */
static void layernorm_is_accurate(void **state) {
  (void)state;
  for (int round = 0; round < 100; round++) {
    size_t n = 1 + check_below(1000);
    float *x = check_alloc(n * 4, 4), *w = check_alloc(n * 4, 8), *b = check_alloc(n * 4, 12),
          *y = check_alloc(n * 4, 0);
    double mean = 0, variance = 0;
    for (size_t i = 0; i < n; i++) {
      x[i] = check_float(-3, 5);
      w[i] = check_float(-2, 2);
      b[i] = check_float(-2, 2);
      mean += (double)x[i] / (double)n;
    }
    for (size_t i = 0; i < n; i++) variance += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)n;
    scalar()->layernorm(x, w, b, n, 1e-3f, y);
    for (size_t i = 0; i < n; i++) {
      double want = ((double)x[i] - mean) / sqrt(variance + 1e-3) * (double)w[i] + (double)b[i];
      assert_true(fabs(want - (double)y[i]) < 1e-5 * (1 + fabs(want)));
    }
    check_free(x);
    check_free(w);
    check_free(b);
    check_free(y);
  }
}

static void ropes(void **state) {
  (void)state;
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < 200; round++) {
      size_t head_dim = 8 * (1 + check_below(PST_KERNELS_MAX_HEAD / 8)), n_heads = 1 + check_below(5);
      size_t n_rot = check_below(3) ? head_dim : 2 * (1 + check_below(head_dim / 2)), n = head_dim * n_heads;
      pst_kernels_rope style = check_below(2) ? PST_KERNELS_ROPE_PAIRS : PST_KERNELS_ROPE_HALVES;
      float *a = check_alloc(n * 4, 4), *b = check_alloc(n * 4, 36), *turn = check_alloc(n_rot * 4, 12);
      check_fill(a, n);
      memcpy(b, a, n * 4);
      pst_kernels_rope_table((double)check_below(100000), n_rot, 10000, 1, NULL, 1, turn);
      scalar()->rope(a, n_heads, head_dim, n_rot, style, turn);
      (*k)->rope(b, n_heads, head_dim, n_rot, style, turn);
      check_same(name_of(*k, "rope", head_dim, n_rot, style), a, b, n);
      check_free(a);
      check_free(b);
      check_free(turn);
    }
}

/* ---- products --------------------------------------------------------------------------------------------------- */

static void one_product(const pst_kernels *k, uint32_t type, size_t rows, size_t cols, size_t n_tokens,
                        check_pattern pattern, void *work) {
  uint8_t *t = check_tensor(type, rows, cols, pattern);
  pst_kernels_matrix m = check_pack(type, t, rows, cols);
  check_input c = check_input_make(n_tokens + 1, cols, pattern != CHECK_RANDOM);
  size_t stride = rows + check_below(9), t0 = check_below(2), floats = n_tokens * stride;
  float *a = check_alloc(floats * 4, 4 * check_below(16)), *b = check_alloc(floats * 4, 4 * check_below(16));
  bool add = check_below(3) == 0;
  check_fill(a, floats);
  memcpy(b, a, floats * 4);
  size_t begin = check_below(m.n_groups), end = begin + 1 + check_below(m.n_groups - begin);
  if (check_below(2)) {
    begin = 0;
    end = m.n_groups;
  }
  scalar()->matmul(&m, &c.in, t0, n_tokens, begin, end, add, a, stride, work);
  k->matmul(&m, &c.in, t0, n_tokens, begin, end, add, b, stride, work);
  check_same(name_of(k, pst_kernels_type_info(type)->name, rows, cols, n_tokens), a, b, floats);
  pst_free(t);
  check_matrix_free(&m);
  check_input_free(&c);
  check_free(a);
  check_free(b);
}

static void products(void **state) {
  (void)state;
  static const size_t shapes[] = {576, 640, 1536, 2048, 32, 64, 96};
  const int n_rounds = test_scale(40, 12, 40);
  size_t n_types;
  const uint32_t *types = check_types(&n_types);
  void *work = check_alloc(PST_KERNELS_WORK_BYTES, 0);
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (size_t i = 0; i < n_types; i++)
      for (int round = 0; round < n_rounds; round++) {
        const pst_kernels_type_row *info = pst_kernels_type_info(types[i]);
        size_t cols =
            info->block_elements == 256 ? 256 * (1 + check_below(8)) : shapes[check_below(PST_ARRAY_LEN(shapes))];
        if (info->block_elements == 1) cols = 1 + check_below(200);
        bool last = round + 1 == n_rounds;
        size_t n_tokens = last ? 530 : round < n_rounds / 2 ? 1 + (size_t)round % 10 : 1 + check_below(70);
        size_t rows = last ? 40 : 1 + check_below(100);
        one_product(*k, types[i], rows, cols, n_tokens, (check_pattern)(round % CHECK_N_PATTERNS), work);
      }
  check_free(work);
}

/* Groups may be laid apart in what is written; between them nothing is touched. */
static void products_lay_groups_apart(void **state) {
  (void)state;
  enum { ROWS = 70, COLS = 512, STEP = 3 * PST_KERNELS_GROUP, STRIDE = 5 * STEP };
  size_t n_types;
  const uint32_t *types = check_types(&n_types);
  void *work = check_alloc(PST_KERNELS_WORK_BYTES, 0);
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (size_t i = 0; i < n_types; i++)
      for (size_t n = 1; n <= 40; n += n < 8 ? 1 : 16) {
        if (pst_kernels_type_info(types[i])->block_elements == 1) continue; /* float types have them side by side */
        uint8_t *t = check_tensor(types[i], ROWS, COLS, CHECK_RANDOM);
        pst_kernels_matrix m = check_pack(types[i], t, ROWS, COLS);
        check_input c = check_input_make(n, COLS, false);
        float *near = check_alloc(ROWS * n * 4, 0), *apart = check_alloc(STRIDE * n * 4, 0),
              *want = check_alloc(STRIDE * n * 4, 0);
        for (size_t e = 0; e < STRIDE * n; e++) apart[e] = want[e] = 7;
        (*k)->matmul(&m, &c.in, 0, n, 0, m.n_groups, false, near, ROWS, work);
        for (size_t row = 0; row < ROWS; row++)
          for (size_t token = 0; token < n; token++)
            want[token * STRIDE + row / PST_KERNELS_GROUP * STEP + row % PST_KERNELS_GROUP] = near[token * ROWS + row];
        m.group_step = STEP;
        (*k)->matmul(&m, &c.in, 0, n, 0, m.n_groups, false, apart, STRIDE, work);
        check_same(pst_kernels_type_info(types[i])->name, want, apart, STRIDE * n);
        pst_free(t);
        check_matrix_free(&m);
        check_input_free(&c);
        check_free(near);
        check_free(apart);
        check_free(want);
      }
  check_free(work);
}

/* The rule the engine stands on: an element does not depend on what is computed beside it. */
static void products_do_not_depend_on_the_batch(void **state) {
  (void)state;
  size_t n_types;
  const uint32_t *types = check_types(&n_types);
  const pst_kernels *k = pst_kernels_get();
  void *work = check_alloc(PST_KERNELS_WORK_BYTES, 0);
  for (size_t i = 0; i < n_types; i++) {
    enum { ROWS = 70, COLS = 512, TOKENS = 40 };
    uint8_t *t = check_tensor(types[i], ROWS, COLS, CHECK_RANDOM);
    pst_kernels_matrix m = check_pack(types[i], t, ROWS, COLS);
    check_input c = check_input_make(TOKENS, COLS, false);
    float *all = check_alloc(ROWS * TOKENS * 4, 0), *parts = check_alloc(ROWS * TOKENS * 4, 0);
    k->matmul(&m, &c.in, 0, TOKENS, 0, m.n_groups, false, all, ROWS, work);
    for (size_t t0 = 0; t0 < TOKENS;) {
      size_t n = 1 + check_below(TOKENS - t0), cut = check_below(m.n_groups + 1);
      k->matmul(&m, &c.in, t0, n, 0, cut, false, parts + t0 * ROWS, ROWS, work);
      k->matmul(&m, &c.in, t0, n, cut, m.n_groups, false, parts + t0 * ROWS, ROWS, work);
      t0 += n;
    }
    check_same(pst_kernels_type_info(types[i])->name, all, parts, ROWS * TOKENS);
    pst_free(t);
    check_matrix_free(&m);
    check_input_free(&c);
    check_free(all);
    check_free(parts);
  }
  check_free(work);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

typedef struct attend_case {
  pst_kernels_attend a;
  uint8_t *memory;
  const uint8_t **pages;
  size_t n_pages;
  float *q, *out, *sinks;
} attend_case;

/* A sequence's pages filled by `k` up to the last token's position; what is beyond holds noise. */
static attend_case attend_make(const pst_kernels *k) {
  attend_case c;
  static const size_t usual[] = {64, 256, PST_KERNELS_MAX_HEAD};
  size_t head_dim = check_below(3) ? usual[check_below(3)] : 8 * (1 + check_below(PST_KERNELS_MAX_HEAD / 8));
  uint32_t kv = check_below(2) ? PST_TYPE_F16 : PST_TYPE_Q8_0;
  size_t n_heads = 1 + check_below(7), n_tokens = check_below(2) ? 1 : 1 + check_below(90);
  size_t position = check_below(3) ? check_below(300) : 0, length = position + n_tokens;
  bool both_ways = check_below(3) == 0; /* then keys stand behind the tokens too */
  if (both_ways) length += check_below(200);
  size_t page_bytes = (pst_kernels_page_bytes(kv, head_dim) + 63) / 64 * 64;
  c.n_pages = (length + PST_KERNELS_PAGE - 1) / PST_KERNELS_PAGE;
  c.memory = check_alloc(c.n_pages * 2 * page_bytes, 0);
  c.pages = pst_malloc(c.n_pages * sizeof *c.pages);
  for (size_t i = 0; i < c.n_pages * 2 * page_bytes; i++) c.memory[i] = (uint8_t)check_u64();
  float *row = check_alloc(head_dim * 4, 4);
  for (size_t p = 0; p < c.n_pages; p++) c.pages[p] = c.memory + p * 2 * page_bytes;
  for (size_t j = 0; j < length; j++) {
    uint8_t *page = c.memory + j / PST_KERNELS_PAGE * 2 * page_bytes;
    check_fill(row, head_dim);
    k->store_key(kv, head_dim, row, j % PST_KERNELS_PAGE, page);
    check_fill(row, head_dim);
    k->store_value(kv, head_dim, row, j % PST_KERNELS_PAGE, page + page_bytes);
  }
  check_free(row);
  size_t stride = n_heads * head_dim + check_below(10);
  c.q = check_alloc(n_tokens * stride * 4, 4);
  c.out = check_alloc(n_tokens * stride * 4, 4 * check_below(16));
  check_fill(c.q, n_tokens * stride);
  c.sinks = check_alloc(n_heads * 4, 4);
  check_fill(c.sinks, n_heads);
  c.a = (pst_kernels_attend){
      .kv_type = kv,
      .head_dim = head_dim,
      .n_heads = n_heads,
      .n_tokens = n_tokens,
      .position = position,
      .window = check_below(2) ? 0 : 1 + check_below(200),
      .scale = 1.0f / sqrtf((float)head_dim),
      .n_keys = both_ways ? length : 0,
      .softcap = check_below(4) ? 0.0f : 30.0f,
      .q = c.q,
      .q_stride = stride,
      .out = c.out,
      .out_stride = stride,
      .pages = c.pages,
      .k_offset = 0,
      .v_offset = page_bytes,
      .sinks = check_below(3) ? NULL : c.sinks,
  };
  /* Pages that no token's window reaches must not be touched. */
  for (size_t p = 0; p < c.n_pages; p++)
    if (c.a.window && position + 1 > c.a.window && (p + 1) * PST_KERNELS_PAGE <= position + 1 - c.a.window)
      c.pages[p] = NULL;
  return c;
}

static void attend_free(attend_case *c) {
  check_free(c->memory);
  pst_free(c->pages);
  check_free(c->q);
  check_free(c->out);
  check_free(c->sinks);
}

static void attentions(void **state) {
  (void)state;
  void *work = check_alloc(PST_KERNELS_WORK_BYTES, 0);
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < test_scale(150, 8, 150); round++) {
      attend_case c = attend_make(scalar());
      pst_kernels_attend a = c.a;
      size_t floats = a.n_tokens * a.out_stride, n = a.n_heads * a.head_dim, part = PST_KERNELS_PART_FLOATS(a.head_dim);
      float *want = check_alloc(floats * 4, 0);
      a.out = want;
      scalar()->attention(&a, work);
      (*k)->attention(&c.a, work);
      for (size_t t = 0; t < a.n_tokens; t++)
        check_same(name_of(*k, "attention", a.head_dim, a.n_heads, t), want + t * a.out_stride,
                   c.out + t * a.out_stride, n);
      /* In parts, by two tables: any split gives the same. */
      float *parts = check_alloc(c.n_pages * a.n_tokens * a.n_heads * part * 4, 0);
      size_t cut = check_below(c.n_pages + 1);
      memset(c.out, 0, floats * 4);
      (check_below(2) ? *k : scalar())->attention_part(&c.a, 0, cut, parts, work);
      (*k)->attention_part(&c.a, cut, c.n_pages, parts + cut * a.n_tokens * a.n_heads * part, work);
      (*k)->attention_merge(&c.a, 0, c.n_pages, parts);
      for (size_t t = 0; t < a.n_tokens; t++)
        check_same(name_of(*k, "attention_merge", a.head_dim, a.n_heads, t), want + t * a.out_stride,
                   c.out + t * a.out_stride, n);
      /* Chunks: the last token alone. */
      a.n_tokens = 1;
      a.position = c.a.position + c.a.n_tokens - 1;
      a.q = c.q + (c.a.n_tokens - 1) * a.q_stride;
      a.out = c.out;
      (*k)->attention(&a, work);
      check_same(name_of(*k, "attention alone", a.head_dim, a.n_heads, 0), want + (c.a.n_tokens - 1) * a.out_stride,
                 c.out, n);
      check_free(parts);
      check_free(want);
      attend_free(&c);
    }
  check_free(work);
}

static void stored_pages(void **state) {
  (void)state;
  for (const pst_kernels **k = check_tables(); *k; k++)
    for (int round = 0; round < 200; round++) {
      size_t head_dim = 8 * (1 + check_below(PST_KERNELS_MAX_HEAD / 8)), slot = check_below(64);
      uint32_t kv = round & 1 ? PST_TYPE_F16 : PST_TYPE_Q8_0;
      size_t bytes = pst_kernels_page_bytes(kv, head_dim);
      uint8_t *a = check_alloc(bytes, 0), *b = check_alloc(bytes, 0);
      float *x = check_alloc(head_dim * 4, 4);
      memset(a, 7, bytes);
      memset(b, 7, bytes);
      check_fill(x, head_dim);
      if (round % 9 == 0) x[check_below(head_dim)] = 1e9f;
      scalar()->store_key(kv, head_dim, x, slot, a);
      (*k)->store_key(kv, head_dim, x, slot, b);
      assert_memory_equal(a, b, bytes);
      scalar()->store_value(kv, head_dim, x, slot, a);
      (*k)->store_value(kv, head_dim, x, slot, b);
      assert_memory_equal(a, b, bytes);
      check_free(a);
      check_free(b);
      check_free(x);
    }
}

/* The scalar attention against softmax in double over the stored keys and values (F16: exact; no windows, no cap). */
static void scalar_attention_is_attention(void **state) {
  (void)state;
  void *work = check_alloc(PST_KERNELS_WORK_BYTES, 0);
  for (int round = 0; round < test_scale(60, 12, 60); round++) {
    attend_case c = attend_make(scalar());
    pst_kernels_attend *a = &c.a;
    if (a->kv_type != PST_TYPE_F16 || a->softcap > 0.0f) {
      attend_free(&c);
      continue;
    }
    scalar()->attention(a, work);
    size_t t = check_below(a->n_tokens), h = check_below(a->n_heads), n = a->position + t + 1;
    size_t from = a->window && n > a->window ? n - a->window : 0;
    if (a->n_keys) n = a->window ? PST_MIN(a->n_keys, a->position + t + a->window) : a->n_keys;
    const float *q = a->q + t * a->q_stride + h * a->head_dim, *out = a->out + t * a->out_stride + h * a->head_dim;
    double *p = pst_malloc(n * sizeof(double)), max = -INFINITY, sum = 0;
    for (size_t j = from; j < n; j++) {
      const uint8_t *page = a->pages[j / 64] + a->k_offset;
      p[j] = 0;
      for (size_t i = 0; i < a->head_dim; i++) {
        uint16_t key;
        memcpy(&key, page + (i * 64 + j % 64) * 2, 2);
        p[j] += (double)(q[i] * a->scale) * (double)pst_kernels_half_to_float(key);
      }
      max = fmax(max, p[j]);
    }
    if (a->sinks) max = fmax(max, (double)a->sinks[h]);
    for (size_t j = from; j < n; j++) sum += p[j] = exp(p[j] - max);
    if (a->sinks) sum += exp((double)a->sinks[h] - max);
    for (size_t i = 0; i < a->head_dim; i++) {
      double want = 0, size = 0;
      for (size_t j = from; j < n; j++) {
        uint16_t value;
        memcpy(&value, a->pages[j / 64] + a->v_offset + ((j % 64) * a->head_dim + i) * 2, 2);
        want += p[j] / sum * (double)pst_kernels_half_to_float(value);
        size += p[j] / sum * fabs((double)pst_kernels_half_to_float(value));
      }
      /* Scores may be in the thousands here, and exp turns their float rounding into relative error. */
      assert_true(fabs(want - (double)out[i]) <= 2e-2 * size + 1e-6);
    }
    pst_free(p);
    attend_free(&c);
  }
  check_free(work);
}

int main(void) {
  check_seed();
  for (const pst_kernels **k = check_tables(); *k; k++) fprintf(stderr, "table: %s\n", (*k)->name);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(quantizers),
      cmocka_unit_test(elementwise),
      cmocka_unit_test(exponentials),
      cmocka_unit_test(float_products),
      cmocka_unit_test(delta_rules),
      cmocka_unit_test(dot_products),
      cmocka_unit_test(activations_are_accurate),
      cmocka_unit_test(layernorm_is_accurate),
      cmocka_unit_test(ropes),
      cmocka_unit_test(products),
      cmocka_unit_test(products_lay_groups_apart),
      cmocka_unit_test(products_do_not_depend_on_the_batch),
      cmocka_unit_test(stored_pages),
      cmocka_unit_test(attentions),
      cmocka_unit_test(scalar_attention_is_attention),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
