/* Sampling against slow, plain versions of each filter, and draws against the probabilities they must have. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"
#include "support/scale.h"

enum { VOCAB = 5000 };
static float logits[VOCAB], copy[VOCAB];
static pst_engine_candidate work[VOCAB];

static void fill(uint64_t seed, float spread) {
  for (int i = 0; i < VOCAB; i++)
    logits[i] = spread * (float)(pst_random_unit(seed, 1, (uint64_t)i) + pst_random_unit(seed, 2, (uint64_t)i) - 1);
}

static int32_t draw(const pst_engine_sampling *s, int position, const int32_t *allowed, int n_allowed) {
  static int32_t tokens[1 << 16];
  pst_engine_draw d = {s, tokens, position, position, allowed, n_allowed};
  memcpy(copy, logits, sizeof copy);
  return pst_engine_sample(&d, copy, VOCAB, work);
}

static int by_value(const void *a, const void *b) {
  int x = *(const int *)a, y = *(const int *)b;
  if (logits[x] > logits[y] || logits[x] < logits[y]) return logits[x] < logits[y] ? 1 : -1;
  return x - y;
}

/* Marks the tokens that may be drawn, by the definitions; returns the sum of their probabilities. */
static double allowed_by_definition(const pst_engine_sampling *s, double *p) {
  static int order[VOCAB];
  double total = 0, sum = 0, kept = 0;
  int n = s->top_k > 0 ? PST_MIN(s->top_k, VOCAB) : VOCAB;
  for (int i = 0; i < VOCAB; i++) order[i] = i;
  qsort(order, VOCAB, sizeof *order, by_value);
  for (int i = 0; i < VOCAB; i++) p[i] = 0;
  for (int i = 0; i < n; i++)
    total += exp((double)(logits[order[i]] / s->temperature) - (double)(logits[order[0]] / s->temperature));
  for (int i = 0; i < n; i++) {
    double x = exp((double)(logits[order[i]] / s->temperature) - (double)(logits[order[0]] / s->temperature));
    if (i > 0 && (sum >= (double)s->top_p * total || x < (double)s->min_p)) break;
    p[order[i]] = x;
    sum += x;
    kept += x;
  }
  for (int i = 0; i < VOCAB; i++) p[i] /= kept;
  return kept / total;
}

static void draws_follow_the_definition(void **state) {
  (void)state;
  static const pst_engine_sampling rows[] = {
      {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
      {.temperature = 0.7f, .top_p = 0.9f, .repetition_penalty = 1},
      {.temperature = 1.5f, .top_p = 0.99f, .repetition_penalty = 1}, /* a nucleus beyond the first head */
      {.temperature = 1, .top_p = 1, .top_k = 40, .repetition_penalty = 1},
      {.temperature = 1, .top_p = 0.8f, .top_k = 100, .repetition_penalty = 1},
      {.temperature = 1, .top_p = 1, .min_p = 0.1f, .repetition_penalty = 1},
      {.temperature = 2, .top_p = 0.95f, .min_p = 0.01f, .repetition_penalty = 1},
      {.temperature = 1, .top_p = 1e-6f, .repetition_penalty = 1},
  };
  static double p[VOCAB];
  const int n = test_scale(1000, 200, 4000);
  for (size_t r = 0; r < PST_ARRAY_LEN(rows); r++)
    for (int flat = 0; flat < 2; flat++) {
      double expected = 0, variance = 0, seen = 0;
      fill(r + 7, flat ? 2 : 20);
      allowed_by_definition(&rows[r], p);
      /* Statistic: the mean probability of what is drawn, sum p^2 by expectation. */
      for (int i = 0; i < VOCAB; i++) expected += p[i] * p[i], variance += p[i] * p[i] * p[i];
      variance -= expected * expected;
      for (int k = 0; k < n; k++) {
        int32_t t = draw(&rows[r], k, NULL, 0);
        if (!(p[t] > 0)) fail_msg("row %zu: token %d was drawn and is filtered out", r, t);
        seen += p[t] / n;
      }
      if (!(fabs(seen - expected) <= 5 * sqrt(PST_MAX(variance, 0) / n) + 1e-12))
        fail_msg("row %zu: mean probability %g, %g expected", r, seen, expected);
    }
}

static void greedy_and_nearly_greedy(void **state) {
  (void)state;
  static const float temperatures[] = {0, 1e-45f, 1e-38f, 1e-20f, 1e-7f, 1e-5f};
  fill(3, 10);
  logits[1234] = logits[77] = 30;
  for (size_t i = 0; i < PST_ARRAY_LEN(temperatures); i++) {
    pst_engine_sampling s = pst_engine_sampling_default();
    s.temperature = temperatures[i];
    s.top_p = i & 1 ? 0.9f : 1;
    for (int k = 0; k < 50; k++) {
      int32_t t = draw(&s, k, NULL, 0);
      assert_true(t == 77 || (t == 1234 && temperatures[i] > 1e-6f)); /* equal ones: the lowest id, or a fair draw */
    }
  }
}

static void only_what_is_allowed(void **state) {
  (void)state;
  static const int32_t allowed[] = {5, 900, 901, 4999};
  pst_engine_sampling s = pst_engine_sampling_default();
  int counts[VOCAB] = {0};
  fill(4, 3);
  for (int k = 0; k < 2000; k++) counts[draw(&s, k, allowed, 4)]++;
  assert_int_equal(counts[5] + counts[900] + counts[901] + counts[4999], 2000);
  for (int i = 0; i < 4; i++) assert_true(counts[allowed[i]] > 0);
  s.temperature = 0;
  int32_t best = allowed[0];
  for (int i = 1; i < 4; i++)
    if (logits[allowed[i]] > logits[best]) best = allowed[i];
  assert_int_equal(draw(&s, 0, allowed, 4), best);
}

static void a_draw_is_a_function_of_its_coordinates(void **state) {
  (void)state;
  pst_engine_sampling s = pst_engine_sampling_default();
  int same_seed = 0, same_choice = 0;
  fill(5, 4);
  for (int k = 0; k < 300; k++) {
    s.seed = 1, s.choice = 0;
    int32_t t = draw(&s, k, NULL, 0);
    assert_int_equal(t, draw(&s, k, NULL, 0));
    s.seed = 2;
    same_seed += t == draw(&s, k, NULL, 0);
    s.seed = 1, s.choice = 1;
    same_choice += t == draw(&s, k, NULL, 0);
  }
  assert_true(same_seed < 30 && same_choice < 30);
}

static void bias_and_penalties(void **state) {
  (void)state;
  static const int32_t tokens[] = {10, 10, 11, 12, 10, 13, 13};
  pst_engine_bias bias[] = {{10, -100}, {20, 100}};
  pst_engine_sampling s = pst_engine_sampling_default();
  pst_engine_draw d = {&s, tokens, 4, 7, NULL, 0}; /* answer: 10 13 13 */
  s.temperature = 0;
  s.bias = bias;
  s.n_bias = 2;
  for (int i = 0; i < VOCAB; i++) copy[i] = 2;
  copy[12] = -2;
  s.repetition_penalty = 2;
  s.frequency_penalty = 0.5f;
  s.presence_penalty = 0.25f;
  assert_int_equal(pst_engine_sample(&d, copy, VOCAB, work), 20);
  assert_true(fabsf(copy[10] - (-98.0f * 2 - 0.75f)) < 1e-4f);
  assert_true(fabsf(copy[11] - 1) < 1e-6f);
  assert_true(fabsf(copy[12] + 4) < 1e-6f);
  assert_true(fabsf(copy[13] - (1 - 1.25f)) < 1e-6f);
  assert_true(fabsf(copy[14] - 2) < 1e-6f);
  s.penalty_window = 2; /* repetition sees 13 13; frequency and presence the answer */
  for (int i = 0; i < VOCAB; i++) copy[i] = 2;
  pst_engine_sample(&d, copy, VOCAB, work);
  assert_true(fabsf(copy[11] - 2) < 1e-6f);
  assert_true(fabsf(copy[10] - (-98.0f - 0.75f)) < 1e-4f);
  assert_true(fabsf(copy[13] - (1 - 1.25f)) < 1e-6f);
}

static void top_logprobs(void **state) {
  (void)state;
  pst_engine_top top[20];
  static int order[VOCAB];
  fill(6, 8);
  logits[40] = logits[41];
  for (int i = 0; i < VOCAB; i++) order[i] = i;
  qsort(order, VOCAB, sizeof *order, by_value);
  double sum = pst_engine_log_sum_exp(logits, VOCAB), check = 0;
  for (int i = 0; i < VOCAB; i++) check += exp((double)logits[i] - sum);
  assert_true(fabs(check - 1) < 1e-12);
  for (int n = 0; n <= 20; n++) {
    pst_engine_top_logprobs(logits, VOCAB, sum, n, top);
    for (int i = 0; i < n; i++) {
      assert_int_equal(top[i].token, order[i]);
      assert_true(fabs((double)top[i].logprob - ((double)logits[order[i]] - sum)) < 1e-5);
    }
  }
}

static void fields_are_checked(void **state) {
  (void)state;
  const struct {
    const char *place;
    pst_engine_sampling s;
  } rows[] = {
      {"temperature", {.temperature = -1, .top_p = 1, .repetition_penalty = 1}},
      {"temperature", {.temperature = NAN, .top_p = 1, .repetition_penalty = 1}},
      {"top_k", {.top_k = -1, .top_p = 1, .repetition_penalty = 1}},
      {"top_p", {.top_p = 0, .repetition_penalty = 1}},
      {"top_p", {.top_p = 1.5f, .repetition_penalty = 1}},
      {"min_p", {.min_p = 1, .top_p = 1, .repetition_penalty = 1}},
      {"repetition_penalty", {.top_p = 1, .repetition_penalty = 0}},
      {"frequency_penalty", {.top_p = 1, .repetition_penalty = 1, .frequency_penalty = 3}},
      {"presence_penalty", {.top_p = 1, .repetition_penalty = 1, .presence_penalty = -3}},
      {"penalty_window", {.top_p = 1, .repetition_penalty = 1, .penalty_window = -1}},
      {"logit_bias", {.top_p = 1, .repetition_penalty = 1, .bias = &(pst_engine_bias){VOCAB, 1}, .n_bias = 1}},
      {"logit_bias", {.top_p = 1, .repetition_penalty = 1, .bias = &(pst_engine_bias){0, 101}, .n_bias = 1}},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_engine_sampling_check(&rows[i].s, VOCAB, &err), PST_E_BAD_INPUT);
    assert_string_equal(err.place, rows[i].place);
  }
  pst_engine_sampling s = pst_engine_sampling_default();
  assert_int_equal(pst_engine_sampling_check(&s, VOCAB, NULL), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(draws_follow_the_definition), cmocka_unit_test(greedy_and_nearly_greedy),
      cmocka_unit_test(only_what_is_allowed),        cmocka_unit_test(a_draw_is_a_function_of_its_coordinates),
      cmocka_unit_test(bias_and_penalties),          cmocka_unit_test(top_logprobs),
      cmocka_unit_test(fields_are_checked),
  };
  return cmocka_run_group_tests_name("engine sampler", tests, NULL, NULL);
}
