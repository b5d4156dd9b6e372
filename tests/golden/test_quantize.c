/* The quantizers: not a hair worse than llama.cpp's on the rows of tools/golden_quantize.py, right at the edges of what a type can hold, and
 * gentle to rows that were quantized before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <penstock/kernels.h>

enum { N = 65536 };
static const uint32_t types[] = {PST_TYPE_Q8_0, PST_TYPE_Q4_0,   PST_TYPE_Q4_1,  PST_TYPE_Q5_0,
                                 PST_TYPE_Q5_1, PST_TYPE_Q4_K,   PST_TYPE_Q5_K,  PST_TYPE_Q6_K,
                                 PST_TYPE_Q3_K, PST_TYPE_IQ4_NL, PST_TYPE_IQ4_XS};

/* ---- the rows (the same in golden_quantize.py) -------------------------------------------------------------------- */

static double unit(uint64_t stream, uint64_t i) {
  uint64_t z = (i + 1 + (stream << 40)) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return (double)(z >> 40) / 16777216.0;
}

static double normal(uint64_t stream, uint64_t i) {
  double sum = 0;
  for (uint64_t k = 0; k < 12; k++) sum += unit(stream + k, i);
  return sum - 6;
}

static void fill(const char *name, float *x) {
  for (uint64_t i = 0; i < N; i++) {
    double v = 0;
    if (!strcmp(name, "normal"))
      v = normal(1, i) * 0.015625;
    else if (!strcmp(name, "heavy"))
      v = normal(21, i) * 0.015625 / (0.0625 + unit(40, i));
    else if (!strcmp(name, "uniform"))
      v = unit(50, i) * 2 - 1;
    else if (!strcmp(name, "positive"))
      v = fabs(normal(61, i));
    else
      fail_msg("no rows of the name %s", name);
    x[i] = (float)v;
  }
}

/* Quantizes n values and reads them back; the root mean square of the difference. */
static double round_trip(uint32_t type, const float *x, size_t n, float *ret_back) {
  size_t bytes = pst_kernels_row_bytes(type, n);
  uint8_t *packed = pst_malloc(bytes + 64);
  assert_non_null(packed);
  memset(packed, 0xA5, bytes + 64);
  assert_int_equal(pst_kernels_quantize_row(type, x, n, NULL, packed), 0);
  for (size_t i = bytes; i < bytes + 64; i++) assert_int_equal(packed[i], 0xA5);
  assert_int_equal(pst_kernels_dequantize_row(type, packed, n, ret_back), 0);
  pst_free(packed);
  double sum = 0;
  for (size_t i = 0; i < n; i++) {
    double d = (double)ret_back[i] - (double)x[i];
    if (!isfinite(ret_back[i])) fail_msg("value %zu is not finite", i);
    sum += d * d;
  }
  return sqrt(sum / (double)n);
}

static void no_worse_than_llama_cpp(void **state) {
  (void)state;
  char *text = NULL, name[32], type[32], line[128], made[32] = "";
  size_t n;
  pst_error err = PST_ERROR_INIT;
  if (pst_file_read("tests/golden/quantize.golden", 1 << 16, &text, &n, &err)) fail_msg("%s", err.message);
  float *x = pst_malloc(N * sizeof *x), *back = pst_malloc(N * sizeof *back);
  int n_lines = 0;
  for (char *at = text; *at; at += strcspn(at, "\n") + 1) {
    double theirs;
    snprintf(line, sizeof line, "%.*s", (int)PST_MIN(strcspn(at, "\n"), sizeof line - 1), at);
    if (line[0] == '#') continue;
    assert_int_equal(sscanf(line, "%31s %31s %lf", name, type, &theirs), 3);
    if (strcmp(name, made)) fill(name, x);
    snprintf(made, sizeof made, "%s", name);
    double ours = round_trip(pst_kernels_type_find(pst_str_from(type))->type, x, N, back);
    if (!(ours <= theirs)) fail_msg("%s %s: rms error %.6e, llama.cpp's %.6e", name, type, ours, theirs);
    if (!(ours > 0.5 * theirs)) fail_msg("%s %s: rms error %.6e is too good to be true", name, type, ours);
    n_lines++;
  }
  assert_int_equal(n_lines, 4 * (int)PST_ARRAY_LEN(types));
  pst_free(x);
  pst_free(back);
  pst_free(text);
}

/* What was on a grid stays on it: a second pass changes next to nothing. */
static void a_second_pass_changes_little(void **state) {
  (void)state;
  float *x = pst_malloc(N * sizeof *x), *once = pst_malloc(N * sizeof *once), *twice = pst_malloc(N * sizeof *twice);
  fill("normal", x);
  for (size_t i = 0; i < PST_ARRAY_LEN(types); i++) {
    double first = round_trip(types[i], x, N, once), second = round_trip(types[i], once, N, twice);
    if (!(second <= 0.15 * first))
      fail_msg("%s: error %.3e, and %.3e more the second time", pst_kernels_type_info(types[i])->name, first, second);
  }
  pst_free(x);
  pst_free(once);
  pst_free(twice);
}

/* Rows with one value, few values, tiny and large ones: no scale may fail, and the error stays within a step. */
static void edges(void **state) {
  (void)state;
  float x[256], back[256];
  static const float scales[] = {0, 1e-38f, 1e-9f, 1e-6f, 1e-4f, 1, 300, 30000};
  for (size_t t = 0; t < PST_ARRAY_LEN(types); t++)
    for (size_t s = 0; s < PST_ARRAY_LEN(scales); s++)
      for (int shape = 0; shape < 8; shape++) {
        for (int i = 0; i < 256; i++) {
          float v = shape == 0   ? 1
                    : shape == 1 ? -1
                    : shape == 2 ? (float)(i & 1)
                    : shape == 3 ? (float)(i == 77)
                    : shape == 4 ? -(float)(i == 0)
                    : shape == 5 ? (float)(i % 31) / 30
                    : shape == 6 ? (float)(i % 7 - 3) / 3
                                 : (i == 200 ? -1 : (float)i / 1024);
          x[i] = v * scales[s];
        }
        double e = round_trip(types[t], x, 256, back);
        /* Half-precision scales end at 2^-25; above that a step is at most a seventh of the block's range. */
        if (!(e <= 0.1 * (double)scales[s] + 64 * 0x1p-24))
          fail_msg("%s: shape %d of size %g: rms error %g", pst_kernels_type_info(types[t])->name, shape,
                   (double)scales[s], e);
        if (scales[s] == 0 && e > 0) fail_msg("zeros do not stay zeros");
      }
}

static void what_does_not_fit_is_refused(void **state) {
  (void)state;
  float x[256] = {0};
  uint8_t out[1024];
  x[3] = 3e38f;
  for (size_t t = 0; t < PST_ARRAY_LEN(types); t++)
    assert_int_equal(pst_kernels_quantize_row(types[t], x, 256, NULL, out), PST_E_LIMIT);
  assert_int_equal(pst_kernels_quantize_row(PST_TYPE_F16, x, 256, NULL, out), PST_E_LIMIT);
  assert_int_equal(pst_kernels_quantize_row(PST_TYPE_BF16, x, 256, NULL, out), 0);
  x[3] = -70000;
  assert_int_equal(pst_kernels_quantize_row(PST_TYPE_Q4_1, x, 256, NULL, out), PST_E_LIMIT);
  assert_int_equal(pst_kernels_quantize_row(PST_TYPE_Q4_0, x, 256, NULL, out), 0);
  assert_int_equal(pst_kernels_quantize_row(PST_TYPE_Q4_0, x, 48, NULL, out), PST_E_BAD_INPUT);
  assert_int_equal(pst_kernels_quantize_row(PST_TYPE_Q6_K, x, 224, NULL, out), PST_E_BAD_INPUT);
  assert_int_equal(pst_kernels_quantize_row(PST_TYPE_IQ4_XS, x, 96, NULL, out), PST_E_BAD_INPUT);
  assert_int_equal(pst_kernels_quantize_row(PST_TYPE_Q2_K, x, 256, NULL, out), PST_E_UNSUPPORTED);
  assert_int_equal(pst_kernels_quantize_row(99, x, 256, NULL, out), PST_E_UNSUPPORTED);
}

/* Importance moves the error to where it matters less. */
static void importance_counts(void **state) {
  (void)state;
  float *x = pst_malloc(N * sizeof *x), *w = pst_malloc(N * sizeof *w), *back = pst_malloc(N * sizeof *back);
  fill("normal", x);
  for (size_t i = 0; i < N; i++) w[i] = i % 4 == 0 ? 100 : 1;
  for (size_t t = 0; t < PST_ARRAY_LEN(types); t++) {
    double with = 0, without = 0;
    uint8_t *packed = pst_malloc(pst_kernels_row_bytes(types[t], N));
    round_trip(types[t], x, N, back);
    for (size_t i = 0; i < N; i += 4) without += pow((double)back[i] - (double)x[i], 2);
    assert_int_equal(pst_kernels_quantize_row(types[t], x, N, w, packed), 0);
    assert_int_equal(pst_kernels_dequantize_row(types[t], packed, N, back), 0);
    for (size_t i = 0; i < N; i += 4) with += pow((double)back[i] - (double)x[i], 2);
    if (!(with < without)) fail_msg("%s: %g, not below %g", pst_kernels_type_info(types[t])->name, with, without);
    pst_free(packed);
  }
  pst_free(x);
  pst_free(w);
  pst_free(back);
}

static void floats(void **state) {
  (void)state;
  static const float x[] = {0, -0.0f, 1, -1, 65504, 0x1p-24f, 1.0009766f, 3.14159265f};
  float back[PST_ARRAY_LEN(x)];
  uint8_t out[4 * PST_ARRAY_LEN(x)];
  for (size_t i = 0; i < 3; i++) {
    uint32_t type = (uint32_t[]){PST_TYPE_F32, PST_TYPE_F16, PST_TYPE_BF16}[i];
    double step = (double[]){0, 0x1p-11, 0x1p-8}[i];
    assert_int_equal(pst_kernels_quantize_row(type, x, PST_ARRAY_LEN(x), NULL, out), 0);
    assert_int_equal(pst_kernels_dequantize_row(type, out, PST_ARRAY_LEN(x), back), 0);
    for (size_t k = 0; k < PST_ARRAY_LEN(x); k++)
      assert_true(fabs((double)back[k] - (double)x[k]) <= step * fabs((double)x[k]));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(no_worse_than_llama_cpp),
      cmocka_unit_test(a_second_pass_changes_little),
      cmocka_unit_test(edges),
      cmocka_unit_test(what_does_not_fit_is_refused),
      cmocka_unit_test(importance_counts),
      cmocka_unit_test(floats),
  };
  return cmocka_run_group_tests_name("quantize", tests, NULL, NULL);
}
