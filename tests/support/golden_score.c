/* Log-probabilities of the tiny models against their golden files (golden_model.h). */
#include <math.h>
#include <penstock/engine.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/golden_model.h"

enum { MAX_TOKENS = 64, N_BEST = 5 };

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

static void give_up(const pst_error *err) {
  fprintf(stderr, "%s: %s\n", err->place, err->message);
  abort();
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
  o.slots = 1;
  o.n_ctx = o.kv_tokens = MAX_TOKENS;
  if (pst_engine_model_open(path, 1, &model, &err) || pst_engine_create(model, &o, &engine, &err)) give_up(&err);
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
  if (pst_engine_submit(engine, &q, &id, &err)) give_up(&err);
  pthread_mutex_lock(&s->lock);
  while (!s->done) pthread_cond_wait(&s->ended, &s->lock);
  pthread_mutex_unlock(&s->lock);
  pst_engine_free(engine);
  pst_engine_model_unref(model);
}

static double number(const pst_json *array, size_t i) {
  double x = pst_json_double(pst_json_at(array, i), NAN);
  if (x != x) abort();
  return x;
}

test_golden_distance test_golden_measure(const pst_json *golden, const char *path) {
  int32_t tokens[MAX_TOKENS];
  const pst_json *given = pst_json_get(golden, "tokens"), *logprobs = pst_json_get(golden, "logprobs");
  size_t n = pst_json_size(given);
  scores s;
  test_golden_distance d = {0, 0};
  if (n > MAX_TOKENS || pst_json_size(logprobs) != n - 1) abort();
  for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)number(given, i);
  score(path, tokens, n, &s);
  if (s.n != (int)n) abort();
  for (size_t i = 0; i + 1 < n; i++) {
    double apart = fabs(s.logprobs[i] - number(logprobs, i));
    d.mean += apart / (double)(n - 1);
    d.worst = PST_MAX(d.worst, apart);
  }
  for (size_t i = 0; i < N_BEST; i++)
    d.worst = PST_MAX(d.worst, fabs(s.best_logprobs[i] - number(pst_json_get(golden, "best_logprobs"), i)));
  return d;
}

bool test_golden_within(const pst_json *golden, test_golden_distance d) {
  return d.mean <= pst_json_double(pst_json_get(golden, "mean_tolerance"), 0) &&
         d.worst <= pst_json_double(pst_json_get(golden, "worst_tolerance"), 0);
}
