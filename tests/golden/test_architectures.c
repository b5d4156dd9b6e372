/* Every architecture against `transformers` in float32, on tiny models whose weights both sides make from tensor names.
 *
 * Tolerance: we keep keys and values in F16 and sum in another order; log-probabilities differ by about 1e-3 for it, where a wrong norm, rope or window
 * moves them by tenths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <penstock/engine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/temp.h"
#include "support/tiny_model.h"

enum { MAX_TOKENS = 64, N_BEST = 5 };
static const double mean_tolerance = 2e-3, worst_tolerance = 8e-3;

typedef struct scores {
  pthread_mutex_t lock;
  pthread_cond_t ended;
  int n, n_best;
  double logprobs[MAX_TOKENS], best_logprobs[N_BEST];
  int32_t best[N_BEST];
  bool done;
} scores;

static void on_event(void *user, const pst_engine_event *e) {
  scores *s = user;
  pthread_mutex_lock(&s->lock);
  if (e->token >= 0 && s->n < MAX_TOKENS) {
    s->logprobs[s->n++] = (double)e->logprob;
    for (s->n_best = 0; s->n_best < (int)PST_MIN(e->n_top, (size_t)N_BEST); s->n_best++) {
      s->best[s->n_best] = e->top[s->n_best].token;
      s->best_logprobs[s->n_best] = (double)e->top[s->n_best].logprob;
    }
  }
  s->done |= e->finish != PST_ENGINE_FINISH_NONE;
  pthread_cond_signal(&s->ended);
  pthread_mutex_unlock(&s->lock);
}

static void score(const char *path, const int32_t *tokens, size_t n, scores *s) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  pst_engine_options o = pst_engine_options_default();
  pst_engine_request q = {0};
  uint64_t id;
  o.chunk = 16;
  o.threads = 1;
  if (pst_engine_model_open(path, 1, &model, &err) || pst_engine_create(model, &o, &engine, &err))
    fail_msg("%s: %s", err.place, err.message);
  *s = (scores){.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};
  q.prompt = tokens;
  q.n_prompt = n;
  q.max_tokens = 1;
  q.sampling = pst_engine_sampling_default();
  q.sampling.temperature = 0;
  q.ignore_end = true;
  q.n_logprobs = N_BEST;
  q.score_prompt = true;
  q.callback = on_event;
  q.user = s;
  if (pst_engine_submit(engine, &q, &id, &err)) fail_msg("%s", err.message);
  pthread_mutex_lock(&s->lock);
  while (!s->done) pthread_cond_wait(&s->ended, &s->lock);
  pthread_mutex_unlock(&s->lock);
  pst_engine_free(engine);
  pst_engine_model_unref(model);
}

static double number(const pst_json *array, size_t i) {
  double x = pst_json_double(pst_json_at(array, i), NAN);
  assert_true(x == x);
  return x;
}

static void check(const pst_json *golden, const pst_json *a, const char *path) {
  char name[32];
  pst_str text = pst_json_str(pst_json_get(a, "name"));
  int32_t tokens[MAX_TOKENS];
  const pst_json *given = pst_json_get(golden, "tokens"), *logprobs = pst_json_get(a, "logprobs");
  size_t n = pst_json_size(given);
  scores s;
  double sum = 0, worst = 0;
  snprintf(name, sizeof name, "%.*s", (int)text.n, text.data);
  assert_true(n <= MAX_TOKENS && pst_json_size(logprobs) == n - 1);
  for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)number(given, i);
  test_tiny_write(path, &(test_tiny){.architecture = name,
                                     .seed = (uint64_t)pst_json_int(pst_json_get(golden, "seed"), 0),
                                     .n_layers = (int)pst_json_int(pst_json_get(golden, "layers"), 0)});
  score(path, tokens, n, &s);
  assert_int_equal(s.n, (int)n);
  for (size_t i = 0; i + 1 < n; i++) {
    double d = fabs(s.logprobs[i] - number(logprobs, i));
    sum += d;
    worst = PST_MAX(worst, d);
  }
  for (size_t i = 0; i < N_BEST; i++)
    worst = PST_MAX(worst, fabs(s.best_logprobs[i] - number(pst_json_get(a, "best_logprobs"), i)));
  print_message("%-8s mean %.1e, worst %.1e\n", name, sum / (double)(n - 1), worst);
  if (sum / (double)(n - 1) > mean_tolerance || worst > worst_tolerance)
    fail_msg("%s is not what transformers computes", name);
}

static void test_architectures(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_error err = PST_ERROR_INIT;
  pst_json_doc *doc = NULL;
  if (pst_json_parse_file("tests/golden/architectures.json", 1 << 20, &doc, &err)) fail_msg("%s", err.message);
  const pst_json *golden = pst_json_root(doc), *all = pst_json_get(golden, "architectures");
  assert_true(pst_json_size(all) >= 9);
  for (size_t i = 0; i < pst_json_size(all); i++) check(golden, pst_json_at(all, i), test_temp_path(dir, "model.gguf"));
  pst_json_free(doc);
  test_temp_remove(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_architectures)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
