/* Many adapters at once: 64 resident, requests of all of them and of the base in one batch, each with the bits it has alone; and that what an adapter adds beside
 * quantized weights, where it is kept in four or eight bits and folded, is what it adds beside floats.
 *
 * On tiny models; in make test-full also on the model that PENSTOCK_TEST_SMOLLM2 names, with adapters of rank 16 on all linear layers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <penstock/engine.h>
#include <stdlib.h>
#include <string.h>

#include "support/random_adapter.h"
#include "support/scale.h"
#include "support/temp.h"
#include "support/tiny_model.h"

enum { N_ADAPTERS = 64, MAX_ANSWER = 6, MAX_EVENTS = 32 };

/* A request's tokens and log-probabilities. */
typedef struct answer {
  int n;
  int32_t tokens[MAX_EVENTS];
  float logprobs[MAX_EVENTS];
} answer;

typedef struct waiter {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int n_ended, n_failed;
} waiter;

typedef struct seat {
  waiter *w;
  answer a;
} seat;

static void on_event(void *user, const pst_engine_event *e) {
  seat *s = user;
  if (e->token >= 0 && s->a.n < MAX_EVENTS) {
    s->a.tokens[s->a.n] = e->token;
    s->a.logprobs[s->a.n++] = e->logprob;
  }
  if (e->finish == PST_ENGINE_FINISH_NONE) return;
  pthread_mutex_lock(&s->w->lock);
  s->w->n_ended++;
  s->w->n_failed += e->finish == PST_ENGINE_FINISH_ERROR;
  pthread_cond_signal(&s->w->changed);
  pthread_mutex_unlock(&s->w->lock);
}

static pst_engine *open_engine(pst_engine_model *model, int slots, int threads) {
  pst_error err = PST_ERROR_INIT;
  pst_engine *engine = NULL;
  pst_engine_options o = pst_engine_options_default();
  o.slots = slots;
  o.threads = threads;
  o.n_ctx = 64;
  o.kv_tokens = 64 * slots;
  o.chunk = 256;
  o.max_queue = N_ADAPTERS + 1;
  if (pst_engine_create(model, &o, &engine, &err)) fail_msg("%s", err.message);
  return engine;
}

/* A prompt of its own for each adapter: tokens that every vocabulary has. */
static size_t prompt_of(int k, int32_t *tokens) {
  size_t n = 3 + (size_t)(k % 5);
  for (size_t i = 0; i < n; i++) tokens[i] = 40 + (int32_t)((7 * (size_t)k + 13 * i) % 60);
  return n;
}

/* Requests [first, first + n) together, each with its adapter (NULL: the base). */
static void ask(pst_engine *engine, pst_engine_adapter *const *adapters, int first, int n, bool score, seat *seats) {
  waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
  for (int k = first; k < first + n; k++) {
    pst_error err = PST_ERROR_INIT;
    pst_engine_request q = {0};
    int32_t prompt[MAX_EVENTS];
    uint64_t id;
    seats[k] = (seat){&w, {0}};
    q.prompt = prompt;
    q.n_prompt = prompt_of(k, prompt);
    q.score_prompt = score;
    q.max_tokens = MAX_ANSWER;
    q.sampling = pst_engine_sampling_default();
    q.sampling.temperature = 0;
    q.ignore_end = true;
    q.n_logprobs = 0;
    q.adapter = adapters[k];
    q.callback = on_event;
    q.user = &seats[k];
    if (pst_engine_submit(engine, &q, &id, &err)) fail_msg("%s", err.message);
  }
  pthread_mutex_lock(&w.lock);
  while (w.n_ended < n) pthread_cond_wait(&w.changed, &w.lock);
  pthread_mutex_unlock(&w.lock);
  assert_int_equal(w.n_failed, 0);
}

static pst_engine_adapter *make_adapter(const pst_engine_model *model, int rank, int seed, int step) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_adapter *adapter = NULL;
  pst_engine_lora lora = {0};
  if (test_random_adapter(model, rank, seed, step, 0.2f, &lora, &err) ||
      pst_engine_adapter_create(model, &lora, &adapter, &err))
    fail_msg("%s", err.message);
  pst_engine_lora_done(&lora);
  return adapter;
}

/* ranks[k % n_ranks] is adapter k's, which is of all matrices, of each second or each third; the last request is the base's. */
static void run_model(const char *path, const int *ranks, int n_ranks) {
  enum { N = N_ADAPTERS + 1 };
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine_adapter *adapters[N] = {NULL}, *none[N] = {NULL};
  seat alone[N], together[N], base[N];
  int64_t bytes = 0;
  if (pst_engine_model_open(path, 0, &model, &err)) fail_msg("%s", err.message);
  for (int k = 0; k < N_ADAPTERS; k++) {
    adapters[k] = make_adapter(model, ranks[k % n_ranks], k + 1, 1 + k / 3 % 3);
    bytes += pst_engine_adapter_get_info(adapters[k])->bytes;
  }
  print_message("%d adapters take %.1f MB\n", N_ADAPTERS, (double)bytes / 1e6);
  pst_engine *engine = open_engine(model, 1, 1);
  for (int k = 0; k < N; k++) {
    ask(engine, none, k, 1, false, base);
    ask(engine, adapters, k, 1, false, alone);
    assert_int_equal(alone[k].a.n, MAX_ANSWER);
    if (adapters[k]) assert_memory_not_equal(&alone[k].a, &base[k].a, sizeof base[k].a); /* it does something */
  }
  pst_engine_free(engine);
  for (int threads = 1; threads <= 3; threads++) {
    engine = open_engine(model, N, threads);
    ask(engine, adapters, 0, N, false, together);
    for (int k = 0; k < N; k++)
      if (memcmp(&together[k].a, &alone[k].a, sizeof alone[k].a)) fail_msg("request %d, %d threads", k, threads);
    assert_memory_equal(&together[N - 1].a, &base[N - 1].a, sizeof base[N - 1].a);
    pst_engine_free(engine);
  }
  for (int k = 0; k < N_ADAPTERS; k++) pst_engine_adapter_unref(adapters[k]);
  pst_engine_model_unref(model);
}

static void test_many(void **state) {
  (void)state;
  const int ranks[] = {1, 2, 4, 5, 8, 9, 16, 17, 24, 32, 33, 48};
  const char *const types[] = {"Q4_1", "Q8_0", "F32"};
  for (size_t i = 0; i < PST_ARRAY_LEN(types); i++) {
    char *path = pst_strdup(test_temp_path(test_dir, types[i]));
    test_tiny_write(path, &(test_tiny){.type = types[i], .seed = 5});
    run_model(path, ranks, (int)PST_ARRAY_LEN(ranks));
    pst_free(path);
  }
}

static void test_many_real(void **state) {
  (void)state;
  const char *path = getenv("PENSTOCK_TEST_SMOLLM2");
  const int rank = 16;
  if (!test_scale(0, 0, 1)) skip();
  if (!path) {
    print_message("PENSTOCK_TEST_SMOLLM2 is not set\n");
    skip();
  }
  run_model(path, &rank, 1);
}

/* Log-probabilities of prompts' tokens under adapters of a rank, and under the base. */
static int score(const char *path, int rank, double *with, double *without) {
  enum { N = 8 };
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine_adapter *adapters[N], *none[N] = {NULL};
  seat seats[2][N];
  int n = 0;
  if (pst_engine_model_open(path, 0, &model, &err)) fail_msg("%s", err.message);
  for (int k = 0; k < N; k++) adapters[k] = make_adapter(model, rank, 100 * rank + k, 1);
  pst_engine *engine = open_engine(model, N, 2);
  ask(engine, adapters, 0, N, true, seats[0]);
  ask(engine, none, 0, N, true, seats[1]);
  for (int k = 0; k < N; k++) {
    int32_t prompt[MAX_EVENTS];
    for (int i = 0; i + 1 < (int)prompt_of(k, prompt); i++, n++) { /* the answers may be others */
      with[n] = (double)seats[0][k].a.logprobs[i];
      without[n] = (double)seats[1][k].a.logprobs[i];
    }
  }
  pst_engine_free(engine);
  for (int k = 0; k < N; k++) pst_engine_adapter_unref(adapters[k]);
  pst_engine_model_unref(model);
  return n;
}

static double apart(const double *x, const double *y, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += fabs(x[i] - y[i]) / n;
  return sum;
}

/* Beside quantized weights an adapter gives what it gives beside the same weights as floats, but for its own rounding to eight bits or four. Adapters move the
 * log-probabilities by units, so that a row or column in another's place shows. */
static void test_values(void **state) {
  (void)state;
  const int ranks[] = {1, 2, 3, 4, 6, 8, 11, 16, 20, 32, 40, 64, 100, 256};
  const struct {
    const char *type;
    double bound;
  } types[] = {{"Q8_0", 0.05}, {"Q4_1", 0.3}};
  for (size_t i = 0; i < PST_ARRAY_LEN(types); i++) {
    pst_error err = PST_ERROR_INIT;
    char *codes = pst_strdup(test_temp_path(test_dir, "codes")),
         *floats = pst_strdup(test_temp_path(test_dir, "floats"));
    test_tiny_write(codes, &(test_tiny){.type = types[i].type, .seed = 6});
    if (pst_engine_quantize(codes, floats, "F32", NULL, NULL, &err)) fail_msg("%s", err.message);
    for (size_t r = 0; r < PST_ARRAY_LEN(ranks); r++) {
      double with[2][MAX_EVENTS * 8], without[2][MAX_EVENTS * 8];
      score(floats, ranks[r], with[0], without[0]);
      int n = score(codes, ranks[r], with[1], without[1]);
      double moved = apart(with[0], without[0], n), off = apart(with[0], with[1], n),
             base = apart(without[0], without[1], n);
      print_message("%s, rank %3d: moved by %.2f; off by %.4f, the base by %.4f\n", types[i].type, ranks[r], moved, off,
                    base);
      assert_true(moved > 0.15);
      assert_true(off < types[i].bound * moved + 3 * base);
    }
    pst_free(codes);
    pst_free(floats);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_values, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_many, test_dir_open, test_dir_close),
      cmocka_unit_test(test_many_real),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
