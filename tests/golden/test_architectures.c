/* Every architecture against `transformers` in float32, on tiny models whose weights both sides make from tensor names, in files with the keys and
 * tensors that llama.cpp's converter writes (tools/golden_architectures.py).
 *
 * Tolerance: we keep keys and values in F16 and sum in another order; log-probabilities differ by about 1e-3 for it. MXFP4 matrices quantize their
 * inputs to 8 bits, which moves them by hundredths. That this is tight enough is tested too: every key that is a number and every kind of tensor is changed in
 * turn, and the result must leave the tolerance. */
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

#include "support/golden_model.h"
#include "support/scale.h"
#include "support/temp.h"

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

typedef struct distance {
  double mean, worst;
} distance;

/* How far the model that a golden file describes, changed or not, is from what the file says. */
static distance measure(const pst_json *golden, const test_golden_change *change, const char *path) {
  int32_t tokens[MAX_TOKENS];
  const pst_json *given = pst_json_get(golden, "tokens"), *logprobs = pst_json_get(golden, "logprobs");
  size_t n = pst_json_size(given);
  scores s;
  distance d = {0, 0};
  assert_true(n <= MAX_TOKENS && pst_json_size(logprobs) == n - 1);
  for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)number(given, i);
  test_golden_write(path, golden, change);
  score(path, tokens, n, &s);
  assert_int_equal(s.n, (int)n);
  for (size_t i = 0; i + 1 < n; i++) {
    double apart = fabs(s.logprobs[i] - number(logprobs, i));
    d.mean += apart / (double)(n - 1);
    d.worst = PST_MAX(d.worst, apart);
  }
  for (size_t i = 0; i < N_BEST; i++)
    d.worst = PST_MAX(d.worst, fabs(s.best_logprobs[i] - number(pst_json_get(golden, "best_logprobs"), i)));
  return d;
}

static bool within(const pst_json *golden, distance d) {
  return d.mean <= pst_json_double(pst_json_get(golden, "mean_tolerance"), 0) &&
         d.worst <= pst_json_double(pst_json_get(golden, "worst_tolerance"), 0);
}

static void text_of(const pst_json *v, char out[96]) {
  pst_str s = pst_json_str(v);
  assert_true(s.n > 0 && s.n < 96);
  snprintf(out, 96, "%.*s", (int)s.n, s.data);
}

static bool is_noticed(const char *name, const pst_json *golden, const test_golden_change *change, const char *path) {
  distance d = measure(golden, change, path);
  const char *changed = change->other_key ? change->other_key : change->other_tensor;
  if (!within(golden, d)) return true;
  print_error("%s: another '%s' makes no difference (mean %.1e, worst %.1e)\n", name, changed, d.mean, d.worst);
  return false;
}

typedef struct changes {
  int noticed, missed;
} changes;

/* Numbers of keys that the arithmetic depends on and that can be others in the same file. */
static bool is_free(const char *key, const char *kind) {
  return !strcmp(kind, "f32") || strstr(key, "sliding_window") || strstr(key, "expert_used_count");
}

/* Of a file with quantized matrices only those are changed: an unquantized file of the same architecture has the rest. */
static bool is_quantized(const pst_json *golden) {
  return pst_json_double(pst_json_get(golden, "mean_tolerance"), 0) > 1e-2;
}

static void change_keys(const char *name, const pst_json *golden, const char *path, changes *n) {
  const pst_json *keys = pst_json_get(golden, "keys");
  for (size_t i = 0; i < pst_json_size(keys); i++) {
    char key[96], kind[96];
    text_of(pst_json_at(pst_json_at(keys, i), 0), key);
    text_of(pst_json_at(pst_json_at(keys, i), 1), kind);
    if (!is_free(key, kind) || is_quantized(golden)) continue;
    if (is_noticed(name, golden, &(test_golden_change){.other_key = key}, path))
      n->noticed++;
    else
      n->missed++;
  }
}

/* Of the layers, the second stands for all, and the third where another kind of layer is there. */
static void change_tensors(const char *name, const pst_json *golden, const char *path, changes *n) {
  const pst_json *tensors = pst_json_get(golden, "tensors");
  for (size_t i = 0; i < pst_json_size(tensors); i++) {
    char tensor[96], type[96];
    text_of(pst_json_at(pst_json_at(tensors, i), 0), tensor);
    text_of(pst_json_at(pst_json_at(tensors, i), 1), type);
    if (is_quantized(golden) && !strcmp(type, "F32")) continue;
    if (!strncmp(tensor, "blk.", 4) && strncmp(tensor, "blk.1.", 6) != 0 && strncmp(tensor, "blk.2.", 6) != 0) continue;
    if (is_noticed(name, golden, &(test_golden_change){.other_tensor = tensor}, path))
      n->noticed++;
    else
      n->missed++;
  }
}

static void test_architectures(void **state) {
  (void)state;
  char *dir = test_temp_dir(), names[TEST_GOLDEN_MAX][32];
  const char *path = test_temp_path(dir, "model.gguf");
  int n = test_golden_names(names), n_wrong = 0;
  assert_true(n >= 16);
  for (int i = 0; i < n; i++) {
    pst_json_doc *doc = test_golden_read(names[i]);
    distance d = measure(pst_json_root(doc), NULL, path);
    print_message("%-14s mean %.1e, worst %.1e\n", names[i], d.mean, d.worst);
    if (!within(pst_json_root(doc), d)) {
      print_error("%s is not what transformers computes\n", names[i]);
      n_wrong++;
    }
    pst_json_free(doc);
  }
  test_temp_remove(dir);
  assert_int_equal(n_wrong, 0);
}

/* Under a sanitizer one architecture stands for all. */
static void test_changes(void **state) {
  (void)state;
  char *dir = test_temp_dir(), names[TEST_GOLDEN_MAX][32];
  const char *path = test_temp_path(dir, "model.gguf");
  int n = test_golden_names(names);
  changes found = {0, 0};
  for (int i = 0; i < test_scale(n, 1, n); i++) {
    pst_json_doc *doc = test_golden_read(names[i]);
    change_keys(names[i], pst_json_root(doc), path, &found);
    change_tensors(names[i], pst_json_root(doc), path, &found);
    pst_json_free(doc);
  }
  print_message("%d changes were noticed\n", found.noticed);
  test_temp_remove(dir);
  assert_true(found.noticed > 0);
  assert_int_equal(found.missed, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_architectures), cmocka_unit_test(test_changes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
