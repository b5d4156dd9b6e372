/* Engines of encoders: what they take and refuse, many requests at once, cancelling, memory, cutting. Values are tests/golden/test_encoders.c's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <penstock/engine.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "support/temp.h"
#include "support/tiny_model.h"

enum { DIMS = 64, CONTEXT = 2048 };

static pst_error err;

static pst_engine *open_tiny(const test_tiny *tiny, const pst_engine_options *options) {
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  const char *path = test_temp_path(test_dir, "model.gguf");
  test_tiny_write(path, tiny);
  if (pst_engine_model_open(path, 1, &model, &err) || pst_engine_create(model, options, &engine, &err))
    fail_msg("%s: %s", err.place, err.message);
  pst_engine_model_unref(model);
  return engine;
}

static int refuse_open(const test_tiny *tiny, const char *word) {
  pst_engine_model *model = NULL;
  const char *path = test_temp_path(test_dir, "model.gguf");
  test_tiny_write(path, tiny);
  int code = pst_engine_model_open(path, 1, &model, &err);
  assert_true(code < 0);
  if (!strstr(err.message, word)) fail_msg("'%s' does not mention %s", err.message, word);
  return code;
}

static void test_files(void **state) {
  (void)state;
  assert_int_equal(refuse_open(&(test_tiny){.architecture = "bert", .pooling = 4}, "pooling_type"), PST_E_UNSUPPORTED);
  assert_int_equal(refuse_open(&(test_tiny){.architecture = "bert", .drop = "position_embd.weight"}, "position_embd"),
                   PST_E_BAD_INPUT);
  assert_int_equal(refuse_open(&(test_tiny){.architecture = "bert", .drop = "blk.1.ffn_up.bias"}, "ffn_up.bias"),
                   PST_E_BAD_INPUT);
  assert_int_equal(
      refuse_open(&(test_tiny){.architecture = "nomic-bert", .extra_key = "nomic-bert.expert_count"}, "expert_count"),
      PST_E_UNSUPPORTED);
  assert_int_equal(refuse_open(&(test_tiny){.architecture = "nomic-bert", .extra_tensor = "cls.weight"}, "cls.weight"),
                   PST_E_UNSUPPORTED);
  assert_int_equal(
      refuse_open(&(test_tiny){.architecture = "gemma-embedding", .drop = "output_norm.weight"}, "output_norm"),
      PST_E_BAD_INPUT);
}

static void test_info(void **state) {
  (void)state;
  pst_engine *engine = open_tiny(&(test_tiny){.architecture = "bert"}, NULL);
  const pst_engine_model_info *info = pst_engine_model_get_info(pst_engine_get_model(engine));
  int64_t kv = -1, work = 0;
  assert_int_equal(info->n_dims, DIMS);
  assert_true(pst_engine_model_encodes(info->path));
  assert_int_equal(info->min_dims, DIMS);
  assert_int_equal(info->kv_bytes_per_token_f16, 0);
  assert_int_equal(pst_engine_estimate_memory(pst_engine_get_model(engine), NULL, &kv, &work, &err), 0);
  assert_int_equal(kv, 0);
  assert_true(work > 0);
  pst_engine_free(engine);
}

static void ignore_event(void *user, const pst_engine_event *event) {
  (void)user;
  (void)event;
}

static void test_wrong_kind(void **state) {
  (void)state;
  const int32_t tokens[] = {5, 6};
  const size_t length = 2;
  float vector[DIMS];
  uint64_t id;
  pst_engine *encoder = open_tiny(&(test_tiny){.architecture = "bert"}, NULL);
  pst_engine_request request = {.prompt = tokens, .n_prompt = 2, .max_tokens = 1, .callback = ignore_event};
  pst_engine_step_model model;
  request.sampling = pst_engine_sampling_default();
  assert_int_equal(pst_engine_submit(encoder, &request, &id, &err), PST_E_UNSUPPORTED);
  assert_non_null(strstr(err.message, "encoder"));
  assert_true(pst_engine_calibrate(encoder, 100, &model, &err) < 0);
  pst_engine_free(encoder);
  pst_engine *generator = open_tiny(&(test_tiny){.architecture = "llama"}, NULL);
  assert_false(pst_engine_model_encodes(pst_engine_model_get_info(pst_engine_get_model(generator))->path));
  assert_int_equal(pst_engine_embed_wait(generator, NULL, tokens, &length, 1, vector, &err), PST_E_UNSUPPORTED);
  assert_non_null(strstr(err.message, "generates text"));
  pst_engine_free(generator);
}

static void test_refusals(void **state) {
  (void)state;
  static int32_t tokens[CONTEXT + 1];
  const size_t none = 0, one = 1, whole = CONTEXT, more = CONTEXT + 1;
  float vector[DIMS];
  uint64_t id;
  pst_engine *engine = open_tiny(&(test_tiny){.architecture = "nomic-bert", .n_layers = 1}, NULL);
  assert_int_equal(pst_engine_embed_wait(engine, NULL, tokens, &none, 0, vector, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_embed_wait(engine, NULL, tokens, &none, 1, vector, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_embed_wait(engine, NULL, tokens, &more, 1, vector, &err), PST_E_LIMIT);
  assert_int_equal(pst_engine_embed_wait(engine, NULL, tokens, &whole, 1, vector, &err), 0);
  tokens[0] = 288;
  assert_int_equal(pst_engine_embed_wait(engine, NULL, tokens, &one, 1, vector, &err), PST_E_BAD_INPUT);
  tokens[0] = -1;
  assert_int_equal(pst_engine_embed_wait(engine, NULL, tokens, &one, 1, vector, &err), PST_E_BAD_INPUT);
  pst_engine_embed_request request = {.tokens = tokens, .lengths = &one, .n_texts = 1};
  assert_int_equal(pst_engine_embed(engine, &request, &id, &err), PST_E_BAD_INPUT); /* no callback */
  pst_engine_free(engine);
}

typedef struct ends {
  atomic_int n_stopped, n_cancelled, n_wrong;
} ends;

static void count_end(void *user, const pst_engine_embed_event *event) {
  ends *e = user;
  bool sound = (event->vectors != NULL) == (event->finish == PST_ENGINE_FINISH_STOP) &&
               event->total_us >= event->queued_us && event->queued_us >= 0;
  if (!sound) atomic_fetch_add(&e->n_wrong, 1);
  atomic_fetch_add(event->vectors ? &e->n_stopped : &e->n_cancelled, 1);
}

/* Every request gets exactly one event, whatever happens to it; a full queue says so. */
static void test_many(void **state) {
  (void)state;
  enum { REQUESTS = 60, TEXTS = 20, TOKENS = 30 };
  int32_t tokens[TEXTS * TOKENS];
  size_t lengths[TEXTS];
  ends e = {0};
  uint64_t id = 0;
  pst_engine_options o = pst_engine_options_default();
  o.max_queue = REQUESTS;
  pst_engine *engine = open_tiny(&(test_tiny){.architecture = "bert", .type = "Q8_0"}, &o);
  for (int i = 0; i < TEXTS * TOKENS; i++) tokens[i] = i % 250;
  for (int i = 0; i < TEXTS; i++) lengths[i] = TOKENS;
  int n = 0;
  for (int i = 0; i < 4 * REQUESTS; i++) {
    pst_engine_embed_request request = {
        .tokens = tokens, .lengths = lengths, .n_texts = TEXTS, .priority = i % 3, .callback = count_end, .user = &e};
    int code = pst_engine_embed(engine, &request, &id, &err);
    assert_true(code == 0 || code == PST_E_BUSY);
    n += code == 0;
    if (i % 5 == 0 && code == 0) pst_engine_cancel(engine, id);
  }
  pst_engine_cancel(engine, id + 1000); /* unknown: ignored */
  pst_engine_stats stats;
  pst_engine_get_stats(engine, &stats);
  assert_true(stats.n_queued >= 0 && stats.n_running >= 0);
  pst_engine_free(engine); /* what is open is cancelled */
  assert_int_equal(atomic_load(&e.n_stopped) + atomic_load(&e.n_cancelled), n);
  assert_int_equal(atomic_load(&e.n_wrong), 0);
  assert_true(n >= REQUESTS);
}

typedef struct ending {
  ends *all;
  int place; /* among those that have ended, from 1 */
} ending;

static void note_end(void *user, const pst_engine_embed_event *event) {
  ending *e = user;
  e->place = 1 + atomic_fetch_add(event->vectors ? &e->all->n_stopped : &e->all->n_cancelled, 1);
}

static void hold_up(void *user, const pst_engine_embed_event *event) {
  (void)event;
  while (sem_wait(user)) {}
}

/* A small request that comes behind large ones does not wait for them, one of a better priority still less; and the large ones end. */
static void test_fairness(void **state) {
  (void)state;
  enum { LARGE = 3, TEXTS = 300, TOKENS = 30, REQUESTS = LARGE + 2 };
  static int32_t tokens[TEXTS * TOKENS];
  static size_t lengths[TEXTS];
  ends all = {0};
  ending e[REQUESTS];
  uint64_t id;
  sem_t go;
  pst_engine *engine = open_tiny(&(test_tiny){.architecture = "bert"}, NULL);
  for (int i = 0; i < TEXTS; i++) lengths[i] = TOKENS;
  assert_int_equal(sem_init(&go, 0, 0), 0);
  pst_engine_embed_request first = {
      .tokens = tokens, .lengths = lengths, .n_texts = 1, .priority = -2, .callback = hold_up, .user = &go};
  assert_int_equal(pst_engine_embed(engine, &first, &id, &err), 0); /* its end keeps the thread until all have come */
  for (int i = 0; i < REQUESTS; i++) {
    e[i] = (ending){&all, 0};
    pst_engine_embed_request request = {.tokens = tokens,
                                        .lengths = lengths,
                                        .n_texts = i < LARGE ? TEXTS : 1,
                                        .priority = i == REQUESTS - 1 ? -1 : 0,
                                        .callback = note_end,
                                        .user = &e[i]};
    assert_int_equal(pst_engine_embed(engine, &request, &id, &err), 0);
  }
  sem_post(&go);
  while (atomic_load(&all.n_stopped) < REQUESTS) sched_yield();
  pst_engine_free(engine);
  sem_destroy(&go);
  assert_int_equal(atomic_load(&all.n_cancelled), 0);
  assert_true(e[REQUESTS - 1].place <= 2 && e[REQUESTS - 2].place <= 2);
}

static void test_counts(void **state) {
  (void)state;
  const int32_t tokens[] = {1, 2, 3, 4, 5, 6};
  const size_t lengths[] = {1, 2, 3};
  float vectors[3 * DIMS];
  pst_engine *engine = open_tiny(&(test_tiny){.architecture = "bert"}, NULL);
  assert_int_equal(pst_engine_embed_wait(engine, NULL, tokens, lengths, 3, vectors, &err), 0);
  pst_engine_stats stats;
  do pst_engine_get_stats(engine, &stats); /* counted just after the callback's step */
  while (stats.n_requests == 0);
  assert_int_equal(stats.n_requests, 1);
  assert_int_equal(stats.n_prompt_tokens, 6);
  assert_int_equal(stats.n_steps, 1);
  assert_int_equal(stats.n_queued, 0);
  for (int i = 0; i < 3; i++) {
    double length = 0;
    for (int d = 0; d < DIMS; d++) length += (double)vectors[i * DIMS + d] * (double)vectors[i * DIMS + d];
    assert_true(fabs(length - 1) < 1e-6);
  }
  pst_engine_free(engine);
}

static void test_cut(void **state) {
  (void)state;
  float v[4] = {3, 4, 12, 0}, zero[2] = {0, 0};
  assert_int_equal(pst_engine_embedding_cut(v, 4, 2), 0);
  assert_true(fabsf(v[0] - 0.6f) < 1e-6f && fabsf(v[1] - 0.8f) < 1e-6f);
  assert_true(fabsf(v[2] - 12) < 1e-6f); /* left alone */
  assert_int_equal(pst_engine_embedding_cut(zero, 2, 2), 0);
  assert_true(zero[0] == 0 && zero[1] == 0);
  assert_int_equal(pst_engine_embedding_cut(v, 4, 0), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_embedding_cut(v, 4, 5), PST_E_BAD_INPUT);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_files),      cmocka_unit_test(test_info),
                                     cmocka_unit_test(test_wrong_kind), cmocka_unit_test(test_refusals),
                                     cmocka_unit_test(test_many),       cmocka_unit_test(test_fairness),
                                     cmocka_unit_test(test_counts),     cmocka_unit_test(test_cut)};
  return cmocka_run_group_tests(tests, test_dir_open, test_dir_close);
}
