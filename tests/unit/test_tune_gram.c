/* What calibration sees of a model: draws have the covariance they are said to have, both kinds of Gram matrices say what an error of a matrix costs, and threads leave no trace. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/golden_model.h"
#include "support/temp.h"
#include "support/traffic.h"
#include "tune/divergence.h"
#include "tune/feedback.h"
#include "tune/gram.h"
#include "tune/whole.h"

enum { N_TEXTS = 24, LENGTH = 40, GIVEN = 16, MAX_TOKENS = 100 };

static pst_error err;

static void draws_have_their_covariance(void **state) {
  (void)state;
  enum { N = 5, DRAWS = 40000 };
  const float logits[N] = {1.5f, -0.5f, 0.3f, 0.2f, -3.0f};
  double p[N], sum = 0, mean[N] = {0}, square[N][N] = {{0}};
  for (int i = 0; i < N; i++) sum += exp((double)logits[i]);
  for (int i = 0; i < N; i++) p[i] = exp((double)logits[i]) / sum;
  for (uint64_t d = 0; d < DRAWS; d++) {
    float v[N];
    memcpy(v, logits, sizeof v);
    pst_tune_grams_draw(v, N, d);
    for (int i = 0; i < N; i++) {
      mean[i] += (double)v[i] / DRAWS;
      for (int j = 0; j < N; j++) square[i][j] += (double)v[i] * (double)v[j] / DRAWS;
    }
  }
  for (int i = 0; i < N; i++) {
    assert_true(fabs(mean[i]) < 0.02);
    for (int j = 0; j < N; j++) assert_true(fabs(square[i][j] - ((i == j ? p[i] : 0) - p[i] * p[j])) < 0.01);
  }
}

static void open_whole(const char *name, int n_threads, pst_tune_whole *whole) {
  const char *path = test_temp_path(test_dir, "model.gguf");
  test_golden_model(name, path);
  *whole = (pst_tune_whole){0};
  if (pst_tune_whole_open(path, NULL, n_threads, MAX_TOKENS, whole, &err)) fail_msg("%s: %s", err.place, err.message);
}

static pst_tune_grams gather(pst_tune_whole *whole, const pst_tune_traffic *traffic) {
  pst_tune_grams g;
  pst_tune_batch *batches = NULL;
  size_t n = 0;
  if (pst_tune_grams_create(whole->net, &g, &err) ||
      pst_tune_traffic_batches(traffic, 0, MAX_TOKENS, MAX_TOKENS, true, &batches, &n, &err))
    fail_msg("%s", err.message);
  for (size_t i = 0; i < n; i++) pst_tune_grams_add(&g, whole->net, &batches[i]);
  assert_int_equal(g.n_tokens, N_TEXTS * (LENGTH - 1)); /* the last token of a text predicts nothing */
  assert_int_equal(g.n_scores, N_TEXTS * (LENGTH - GIVEN));
  pst_tune_batches_free(batches, n);
  return g;
}

static void threads_leave_no_trace(void **state) {
  (void)state;
  pst_tune_traffic traffic = test_traffic(1, N_TEXTS, LENGTH, GIVEN);
  pst_tune_whole one, three;
  open_whole("llama", 1, &one);
  open_whole("llama", 3, &three);
  pst_tune_grams a = gather(&one, &traffic), b = gather(&three, &traffic);
  assert_memory_equal(a.memory, b.memory, a.bytes);
  pst_tune_grams_done(&a);
  pst_tune_grams_done(&b);
  pst_tune_whole_done(&one);
  pst_tune_whole_done(&three);
  pst_tune_traffic_done(&traffic);
}

static double at(const float *lower, size_t n, size_t i, size_t j) {
  return (double)(i >= j ? lower[i * n + j] : lower[j * n + i]);
}

/* Half of sum_rs G_rs (E_r H E_s^T), a token that counts: what an error is said to cost. */
static double said(const float *h, size_t n_in, const float *g, size_t n_out, const float *e, size_t n_tokens,
                   size_t n_scores) {
  double sum = 0, *through = pst_malloc(n_in * sizeof *through);
  assert_non_null(through);
  for (size_t r = 0; r < n_out; r++) {
    for (size_t j = 0; j < n_in; j++) {
      through[j] = 0;
      for (size_t i = 0; i < n_in; i++) through[j] += (double)e[r * n_in + i] * at(h, n_in, i, j);
    }
    for (size_t s = 0; s < n_out; s++)
      for (size_t j = 0; j < n_in; j++) sum += at(g, n_out, r, s) * through[j] * (double)e[s * n_in + j];
  }
  pst_free(through);
  return sum / 2 / (double)n_tokens / (double)n_scores;
}

/* The logarithm of what an error of one matrix, drawn at random, costs for what it is said to. */
static double measure(pst_tune_whole *whole, pst_tune_judge *judge, const pst_tune_grams *g, size_t layer, int role) {
  const pst_tune_linear *l = &whole->model.layers[layer].linear[role];
  size_t size = l->n_out * l->n_in;
  double squares = 0;
  float *w = (float *)(uintptr_t)l->w, *e = pst_malloc(2 * size * sizeof *e), *kept = e + size;
  assert_non_null(e);
  for (size_t k = 0; k < size; k++) squares += (double)w[k] * (double)w[k];
  for (size_t k = 0; k < size; k++)
    e[k] = (float)(0.05 * sqrt(squares / (double)size) *
                   (pst_random_unit(4, layer * 16 + (uint64_t)role, k) + pst_random_unit(5, (uint64_t)role, k) - 1));
  memcpy(kept, w, size * sizeof *w);
  for (size_t k = 0; k < size; k++) w[k] += e[k]; /* the judge holds the reference's states, and reads its head alone */
  double cost = pst_tune_judge_run(judge, &whole->model).answers;
  memcpy(w, kept, size * sizeof *w);
  cost /= said(g->inputs[layer][pst_tune_group_of((pst_engine_role)role)], l->n_in, g->outputs[layer][role], l->n_out,
               e, g->n_tokens, g->n_scores);
  pst_free(e);
  return log(cost);
}

/* The same of the embedding and the head, errors of which are drawn number by number: of what they are looked up for and of what they say. */
static double measure_embedding(const pst_tune_whole *whole, pst_tune_judge *judge, const pst_tune_grams *g) {
  const pst_tune_model *m = &whole->model;
  size_t size = m->n_vocab * m->n_embd;
  double squares = 0, said_cost = 0;
  float *w = pst_malloc(2 * size * sizeof *w);
  assert_non_null(w);
  for (size_t k = 0; k < size; k++) squares += (double)m->embedding[k] * (double)m->embedding[k];
  double most = 0.05 * sqrt(squares / (double)size); /* the sum of two numbers even in [0, 1] has variance 1/6 */
  for (size_t k = 0; k < size; k++) {
    w[k] = m->embedding[k] + (float)(most * (pst_random_unit(6, 0, k) + pst_random_unit(6, 1, k) - 1));
    w[size + k] = m->head[k] + (float)(most * (pst_random_unit(6, 2, k) + pst_random_unit(6, 3, k) - 1));
  }
  bool tied = m->head == m->embedding;
  pst_tune_model other = *m;
  other.embedding = w;
  other.head = tied ? w : w + size;
  for (size_t i = 0; i < m->n_embd; i++) {
    said_cost += (double)g->embedding[i * m->n_embd + i];
    if (!tied) said_cost += (double)g->head[i * m->n_embd + i];
  }
  said_cost *= most * most / 6 / 2 / (double)g->n_scores;
  double cost = pst_tune_judge_run(judge, &other).answers;
  pst_free(w);
  return cost / said_cost;
}

static void they_say_what_errors_cost(void **state) {
  (void)state;
  static const char *const names[] = {"llama", "llama-rope3", "qwen3", "gemma3"};
  for (size_t m = 0; m < PST_ARRAY_LEN(names); m++) {
    pst_tune_traffic traffic = test_traffic(2, N_TEXTS, LENGTH, GIVEN);
    pst_tune_whole whole;
    pst_tune_judge judge;
    open_whole(names[m], 2, &whole);
    pst_tune_grams g = gather(&whole, &traffic);
    if (pst_tune_judge_create(whole.net, &whole.model, &traffic, 0, true, &judge, &err)) fail_msg("%s", err.message);
    double mean = 0, spread = 0, n = (double)(whole.model.n_layers * PST_ENGINE_ROLE_COUNT);
    for (size_t i = 0; i < whole.model.n_layers; i++)
      for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
        double found = measure(&whole, &judge, &g, i, r);
        mean += found / n;
        spread += found * found / n;
      }
    print_message("%s: an error costs %.2f times what is said, spread of the logarithm %.2f\n", names[m], exp(mean),
                  sqrt(spread));
    assert_true(fabs(mean) < 0.5 && spread < 0.4);
    double embedding = measure_embedding(&whole, &judge, &g);
    print_message("%s: one of the embedding and the head %.2f times (%s)\n", names[m], embedding,
                  whole.model.head == whole.model.embedding ? "tied" : "two matrices");
    assert_true(fabs(log(embedding)) < 0.5);
    pst_tune_judge_done(&judge);
    pst_tune_grams_done(&g);
    pst_tune_whole_done(&whole);
    pst_tune_traffic_done(&traffic);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(draws_have_their_covariance),
                                     cmocka_unit_test(threads_leave_no_trace),
                                     cmocka_unit_test(they_say_what_errors_cost)};
  return cmocka_run_group_tests(tests, test_dir_open, test_dir_close);
}
