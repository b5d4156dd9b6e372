/* Rounding with error feedback on small matrices: it lowers what rounding does to outputs, does not depend on threads, and takes Gram matrices that are
 * degenerate. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tune/feedback.h"

static const uint32_t types[] = {PST_TYPE_Q4_0,   PST_TYPE_Q4_1, PST_TYPE_Q5_0,  PST_TYPE_Q5_1,
                                 PST_TYPE_Q8_0,   PST_TYPE_Q4_K, PST_TYPE_Q5_K,  PST_TYPE_Q6_K,
                                 PST_TYPE_IQ4_NL, PST_TYPE_Q3_K, PST_TYPE_IQ4_XS};

typedef struct problem {
  size_t n_rows, n, n_tokens;
  float *w, *x, *gram, *feedback;
} problem;

/* Inputs of `rank` hidden directions and a little noise, with columns of very different size. */
static problem make(size_t n_rows, size_t n, size_t n_tokens, size_t rank, double noise, uint64_t seed) {
  problem p = {n_rows, n, n_tokens, NULL, NULL, NULL, NULL};
  float *mix = pst_malloc(rank * n * sizeof *mix);
  p.w = pst_malloc(n_rows * n * sizeof *p.w);
  p.x = pst_calloc(n_tokens * n, sizeof *p.x);
  p.gram = pst_calloc(n * n, sizeof *p.gram);
  p.feedback = pst_malloc(pst_tune_gram_floats(n) * sizeof *p.feedback);
  assert_true(mix && p.w && p.x && p.gram && p.feedback);
  for (size_t i = 0; i < n_rows * n; i++)
    p.w[i] = (float)(pst_random_unit(seed, 0, i) + pst_random_unit(seed, 1, i) - 1);
  for (size_t i = 0; i < rank * n; i++) mix[i] = (float)(2 * pst_random_unit(seed, 2, i) - 1);
  for (size_t t = 0; t < n_tokens; t++)
    for (size_t j = 0; j < n; j++) {
      double v = noise * (2 * pst_random_unit(seed, 3, t * n + j) - 1);
      for (size_t k = 0; k < rank; k++) v += (2 * pst_random_unit(seed, 4, t * rank + k) - 1) * (double)mix[k * n + j];
      p.x[t * n + j] = (float)(v * (j % 7 == 0 ? 4 : 1));
    }
  for (size_t t = 0; t < n_tokens; t++)
    for (size_t i = 0; i < n; i++)
      for (size_t j = 0; j < n; j++) p.gram[i * n + j] += p.x[t * n + i] * p.x[t * n + j];
  memcpy(p.feedback, p.gram, n * n * sizeof *p.gram);
  pst_free(mix);
  return p;
}

static void drop(problem *p) {
  pst_free(p->w);
  pst_free(p->x);
  pst_free(p->gram);
  pst_free(p->feedback);
}

static void factor(problem *p) {
  double *work = pst_malloc(pst_tune_feedback_work(p->n) * sizeof *work);
  assert_non_null(work);
  assert_int_equal(pst_tune_feedback_make(p->feedback, p->n, 0.01, work), 0);
  pst_free(work);
}

static uint8_t *rounded(const problem *p, uint32_t type, const float *feedback, int n_threads, double *ret_error) {
  pst_tune_team *team = NULL;
  uint8_t *out = pst_calloc(p->n_rows, pst_kernels_row_bytes(type, p->n));
  assert_non_null(out);
  assert_int_equal(pst_tune_team_create(n_threads, pst_tune_rounding_scratch(p->n), &team, NULL), 0);
  pst_tune_rounding r = {
      .type = type, .n_rows = p->n_rows, .n_cols = p->n, .w = p->w, .feedback = feedback, .out = out};
  assert_int_equal(pst_tune_round(team, &r), 0);
  pst_tune_team_free(team);
  if (ret_error) *ret_error = r.error;
  return out;
}

/* Sum over rows of (w - q) (gram + added I) (w - q)^T, by definition. */
static double output_error(const problem *p, uint32_t type, const uint8_t *rows, double added) {
  double sum = 0;
  float *q = pst_malloc(p->n * sizeof *q);
  assert_non_null(q);
  for (size_t r = 0; r < p->n_rows; r++) {
    assert_int_equal(pst_kernels_dequantize_row(type, rows + r * pst_kernels_row_bytes(type, p->n), p->n, q), 0);
    const float *w = p->w + r * p->n;
    for (size_t i = 0; i < p->n; i++)
      for (size_t j = 0; j < p->n; j++)
        sum += ((double)w[i] - (double)q[i]) * ((double)p->gram[i * p->n + j] + (i == j ? added : 0)) *
               ((double)w[j] - (double)q[j]);
  }
  pst_free(q);
  return sum;
}

static double damping_of(const problem *p) {
  double mean = 0;
  for (size_t i = 0; i < p->n; i++) mean += (double)p->gram[i * p->n + i] / (double)p->n;
  return 0.01 * mean;
}

/* The factor's promise: with one column's error given to the others as it says, the error is what its diagonal says, and no other way is cheaper. */
static void factor_gives_the_least(void **state) {
  (void)state;
  problem p = make(1, 32, 64, 6, 0.3, 11);
  factor(&p);
  double added = damping_of(&p);
  for (size_t j = 0; j < p.n; j++) {
    double d[32] = {0}, cost = 0, other = 0;
    d[j] = 1;
    for (size_t k = j + 1; k < p.n; k++) d[k] = (double)p.feedback[j * p.n + k];
    for (int moved = 0; moved < 2; moved++) {
      double *sum = moved ? &other : &cost;
      if (moved && j + 1 < p.n) d[j + 1] += 0.05;
      for (size_t a = 0; a < p.n; a++)
        for (size_t b = 0; b < p.n; b++) *sum += d[a] * d[b] * ((double)p.gram[a * p.n + b] + (a == b ? added : 0));
    }
    assert_true(fabs(cost - (double)p.feedback[j * p.n + j]) <= 1e-4 * cost);
    assert_true(j + 1 == p.n || other > cost);
    assert_memory_equal(p.feedback + j * p.n, p.gram + j * p.n,
                        j * sizeof *p.gram); /* what it was made of stays beside it */
  }
  drop(&p);
}

static void feedback_lowers_the_error(void **state) {
  (void)state;
  static const double at_most = 0.07; /* feedback alone: 0.12 */
  problem p = make(40, 256, 300, 24, 0.2, 5);
  factor(&p);
  for (size_t t = 0; t < PST_ARRAY_LEN(types); t++) {
    double told;
    uint8_t *plain = rounded(&p, types[t], NULL, 1, NULL), *fed = rounded(&p, types[t], p.feedback, 1, &told);
    double before = output_error(&p, types[t], plain, damping_of(&p)),
           after = output_error(&p, types[t], fed, damping_of(&p));
    if (after > at_most * before)
      fail_msg("%s: %g, plain rounding %g", pst_kernels_type_info(types[t])->name, after, before);
    assert_true(fabs(told - after) <= 1e-3 * after); /* the errors told are those by definition */
    pst_free(plain);
    pst_free(fed);
  }
  drop(&p);
}

/* Outputs of `rank` hidden directions that count, and a little of each. [n_rows][n_rows] */
static float *counting(size_t n_rows, size_t rank, uint64_t seed) {
  float *g = pst_calloc(n_rows * n_rows, sizeof *g);
  assert_non_null(g);
  for (size_t i = 0; i < n_rows; i++)
    for (size_t j = 0; j < n_rows; j++)
      for (size_t k = 0; k < rank; k++)
        g[i * n_rows + j] += (float)((2 * pst_random_unit(seed, 5, i * rank + k) - 1) *
                                     (2 * pst_random_unit(seed, 5, j * rank + k) - 1));
  for (size_t i = 0; i < n_rows; i++) g[i * n_rows + i] += 0.05f * (float)rank;
  return g;
}

/* The two halves of p's rows as two matrices. Returns the errors told. */
static double couple(const problem *p, uint32_t type, const float *outputs, int n_threads, uint8_t *rows) {
  pst_tune_team *team = NULL;
  assert_int_equal(pst_tune_team_create(n_threads, pst_tune_rounding_scratch(p->n), &team, NULL), 0);
  pst_tune_rounding list[2];
  size_t failed = 0;
  for (int i = 0; i < 2; i++) {
    size_t n = p->n_rows / 2, first = (size_t)i * n;
    list[i] = (pst_tune_rounding){.type = type,
                                  .n_rows = n,
                                  .n_cols = p->n,
                                  .w = p->w + first * p->n,
                                  .feedback = p->feedback,
                                  .outputs = outputs,
                                  .out = rows + first * pst_kernels_row_bytes(type, p->n)};
  }
  assert_int_equal(pst_tune_round_coupled(team, list, 2, &failed), 0);
  pst_tune_team_free(team);
  return list[0].error + list[1].error;
}

/* Sum over rows r, s of one half of outputs[r][s] (w - q)_r (gram + added I) (w - q)_s^T, by definition; both halves. */
static double coupled_error(const problem *p, uint32_t type, const uint8_t *rows, const float *outputs, double added) {
  size_t half = p->n_rows / 2;
  double sum = 0, *lack = pst_malloc(p->n_rows * p->n * sizeof *lack), *through = pst_malloc(p->n * sizeof *through);
  float *q = pst_malloc(p->n * sizeof *q);
  assert_true(lack && through && q);
  for (size_t r = 0; r < p->n_rows; r++) {
    assert_int_equal(pst_kernels_dequantize_row(type, rows + r * pst_kernels_row_bytes(type, p->n), p->n, q), 0);
    for (size_t i = 0; i < p->n; i++) lack[r * p->n + i] = (double)p->w[r * p->n + i] - (double)q[i];
  }
  for (size_t r = 0; r < p->n_rows; r++) {
    for (size_t i = 0; i < p->n; i++) {
      through[i] = added * lack[r * p->n + i];
      for (size_t j = 0; j < p->n; j++) through[i] += lack[r * p->n + j] * (double)p->gram[j * p->n + i];
    }
    for (size_t s = r / half * half; s < (r / half + 1) * half; s++)
      for (size_t i = 0; i < p->n; i++)
        sum += (double)outputs[r % half * half + s % half] * through[i] * lack[s * p->n + i];
  }
  pst_free(lack);
  pst_free(through);
  pst_free(q);
  return sum;
}

static float *factored(const float *outputs, size_t n) {
  float *g = pst_malloc(pst_tune_gram_floats(n) * sizeof *g);
  double *work = pst_malloc(pst_tune_feedback_work(n) * sizeof *work);
  assert_true(g && work);
  memcpy(g, outputs, n * n * sizeof *g);
  assert_int_equal(pst_tune_feedback_make(g, n, 1e-6, work), 0);
  pst_free(work);
  return g;
}

/* Rows that make up for each other leave less; what is told is what is left; threads leave no trace. */
static void coupling_lowers_the_error(void **state) {
  (void)state;
  problem p = make(96, 256, 300, 24, 0.2, 8);
  float *outputs = counting(48, 6, 8), *feedback = factored(outputs, 48);
  factor(&p);
  for (size_t t = 0; t < PST_ARRAY_LEN(types); t++) {
    size_t bytes = p.n_rows * pst_kernels_row_bytes(types[t], p.n);
    uint8_t *alone = rounded(&p, types[t], p.feedback, 1, NULL), *a = pst_malloc(bytes), *b = pst_malloc(bytes);
    assert_true(a && b);
    double told = couple(&p, types[t], feedback, 1, a);
    double before = coupled_error(&p, types[t], alone, outputs, damping_of(&p));
    double after = coupled_error(&p, types[t], a, outputs, damping_of(&p));
    print_message("%s %g %g\n", pst_kernels_type_info(types[t])->name, after / before, told / after);
    assert_true(after < 0.5 * before);
    assert_true(fabs(told - after) <= 1e-3 * after);
    couple(&p, types[t], feedback, 2, b);
    assert_memory_equal(a, b, bytes);
    pst_free(alone);
    pst_free(a);
    pst_free(b);
  }
  pst_free(outputs);
  pst_free(feedback);
  drop(&p);
}

/* Where outputs have nothing in common, rows are rounded as each for itself. */
static void nothing_to_couple(void **state) {
  (void)state;
  problem p = make(20, 64, 100, 8, 0.2, 12);
  float outputs[10 * 10] = {0};
  for (size_t i = 0; i < 10; i++) outputs[i * 10 + i] = (float)(i + 1);
  float *feedback = factored(outputs, 10);
  factor(&p);
  uint8_t *alone = rounded(&p, PST_TYPE_IQ4_NL, p.feedback, 1, NULL),
          *rows = pst_malloc(p.n_rows * pst_kernels_row_bytes(PST_TYPE_IQ4_NL, p.n));
  assert_non_null(rows);
  couple(&p, PST_TYPE_IQ4_NL, feedback, 1, rows);
  double before = output_error(&p, PST_TYPE_IQ4_NL, alone, damping_of(&p)),
         after = output_error(&p, PST_TYPE_IQ4_NL, rows, damping_of(&p));
  assert_true(after <= before * (1 + 1e-5) && after > 0.9 * before);
  pst_free(alone);
  pst_free(rows);
  pst_free(feedback);
  drop(&p);
}

/* Where inputs have nothing in common there is nothing to make up for. */
static void never_much_worse(void **state) {
  (void)state;
  problem p = make(16, 64, 4000, 1, 1, 9);
  for (size_t i = 0; i < p.n; i++)
    for (size_t j = 0; j < p.n; j++) p.gram[i * p.n + j] = p.feedback[i * p.n + j] = i == j ? 1.0f : 0.0f;
  factor(&p);
  for (size_t t = 0; t < 5; t++) {
    uint8_t *plain = rounded(&p, types[t], NULL, 1, NULL), *fed = rounded(&p, types[t], p.feedback, 1, NULL);
    assert_true(output_error(&p, types[t], fed, 0) <= 1.001 * output_error(&p, types[t], plain, 0));
    pst_free(plain);
    pst_free(fed);
  }
  drop(&p);
}

static void threads_leave_no_trace(void **state) {
  (void)state;
  problem p = make(150, 256, 300, 24, 0.2, 6);
  factor(&p);
  for (size_t t = 0; t < PST_ARRAY_LEN(types); t++) {
    double one, three;
    uint8_t *a = rounded(&p, types[t], p.feedback, 1, &one), *b = rounded(&p, types[t], p.feedback, 3, &three);
    assert_memory_equal(a, b, p.n_rows * pst_kernels_row_bytes(types[t], p.n));
    assert_memory_equal(&one, &three, sizeof one);
    pst_free(a);
    pst_free(b);
  }
  drop(&p);
}

/* Every so manieth row: the same bytes as in the whole, and an error of the right size. */
static void samples_of_rows(void **state) {
  (void)state;
  problem p = make(160, 64, 200, 8, 0.2, 7);
  factor(&p);
  double all, some;
  size_t bytes = pst_kernels_row_bytes(PST_TYPE_Q4_0, p.n);
  uint8_t *whole = rounded(&p, PST_TYPE_Q4_0, p.feedback, 1, &all), *out = pst_malloc(40 * bytes);
  pst_tune_team *team = NULL;
  assert_int_equal(pst_tune_team_create(1, pst_tune_rounding_scratch(p.n), &team, NULL), 0);
  pst_tune_rounding r = {.type = PST_TYPE_Q4_0,
                         .n_rows = p.n_rows,
                         .n_cols = p.n,
                         .w = p.w,
                         .feedback = p.feedback,
                         .row_step = 4,
                         .out = out};
  assert_int_equal(pst_tune_round(team, &r), 0);
  some = r.error;
  for (size_t i = 0; i < 40; i++) assert_memory_equal(out + i * bytes, whole + 4 * i * bytes, bytes);
  assert_true(fabs(some - all) < 0.2 * all);
  pst_tune_team_free(team);
  pst_free(whole);
  pst_free(out);
  drop(&p);
}

static int make_from(float *gram, size_t n) {
  double *work = pst_malloc(pst_tune_feedback_work(n) * sizeof *work);
  assert_non_null(work);
  int code = pst_tune_feedback_make(gram, n, 0.01, work);
  pst_free(work);
  return code;
}

static void degenerate_matrices(void **state) {
  (void)state;
  float zeros[6] = {0}, one[2] = {3}, alike[6] = {2, 2, 2, 2}, nan[6] = {1, NAN, NAN, 1}, infinite[2] = {INFINITY},
        negative[6] = {-1, 0, 0, 1}, impossible[6] = {1, 1e6f, 1e6f, 1};
  assert_int_equal(make_from(zeros, 2), 0);
  assert_true(zeros[0] > 0.999f && zeros[3] > 0.999f && !(fabsf(zeros[1]) > 0));
  assert_int_equal(make_from(one, 1), 0);
  assert_true(fabsf(one[0] - 3.03f) < 1e-4f);
  assert_int_equal(make_from(alike, 2), 0); /* of rank 1: the damping keeps it regular */
  assert_true(isfinite(alike[1]) && alike[1] < 0.0f + 1.0f);
  assert_int_equal(make_from(nan, 2), PST_E_BAD_INPUT);
  assert_int_equal(make_from(infinite, 1), PST_E_BAD_INPUT);
  assert_int_equal(make_from(negative, 2), PST_E_BAD_INPUT);
  assert_int_equal(make_from(impossible, 2), PST_E_BAD_INPUT); /* no sum of squares */
  problem p = make(8, 64, 3, 2, 0, 8);                         /* fewer tokens than columns */
  factor(&p);
  uint8_t *plain = rounded(&p, PST_TYPE_Q4_0, NULL, 1, NULL), *fed = rounded(&p, PST_TYPE_Q4_0, p.feedback, 1, NULL);
  assert_true(output_error(&p, PST_TYPE_Q4_0, fed, damping_of(&p)) <
              output_error(&p, PST_TYPE_Q4_0, plain, damping_of(&p)));
  pst_free(plain);
  pst_free(fed);
  drop(&p);
}

static void bad_weights_are_refused(void **state) {
  (void)state;
  problem p = make(3, 32, 40, 4, 0.2, 10);
  uint8_t out[3 * 34];
  pst_tune_team *team = NULL;
  factor(&p);
  assert_int_equal(pst_tune_team_create(1, pst_tune_rounding_scratch(p.n), &team, NULL), 0);
  pst_tune_rounding r = {
      .type = PST_TYPE_Q4_K, .n_rows = 3, .n_cols = 32, .w = p.w, .feedback = p.feedback, .out = out};
  assert_int_equal(pst_tune_round(team, &r), PST_E_UNSUPPORTED); /* 256 do not divide 32 */
  r.type = PST_TYPE_F16;
  assert_int_equal(pst_tune_round(team, &r), PST_E_UNSUPPORTED);
  r.type = PST_TYPE_Q4_0;
  p.w[40] = NAN;
  assert_int_equal(pst_tune_round(team, &r), PST_E_BAD_INPUT);
  p.w[40] = 1e30f;
  assert_int_equal(pst_tune_round(team, &r), PST_E_LIMIT);
  pst_tune_team_free(team);
  drop(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(factor_gives_the_least),    cmocka_unit_test(feedback_lowers_the_error),
      cmocka_unit_test(coupling_lowers_the_error), cmocka_unit_test(nothing_to_couple),
      cmocka_unit_test(never_much_worse),          cmocka_unit_test(threads_leave_no_trace),
      cmocka_unit_test(samples_of_rows),           cmocka_unit_test(degenerate_matrices),
      cmocka_unit_test(bad_weights_are_refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
