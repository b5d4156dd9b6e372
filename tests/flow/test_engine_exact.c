/* A request's log-probabilities are the same bits alone, in any batch, chunking, thread count, with or without prefix reuse and drafts, whatever adapters its
 * neighbours have.
 *
 * Runs on the real models named by PENSTOCK_TEST_SMOLLM2 and PENSTOCK_TEST_GEMMA3: 1,000 random mixes of the first and 100 of the second in make
 * test-full, fewer otherwise; and on tiny models of the architectures whose layers are of other kinds. PENSTOCK_TEST_MIXES: how many of each; PENSTOCK_TEST_SEED: their seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <penstock/engine.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"
#include "support/golden_model.h"
#include "support/random_adapter.h"
#include "support/scale.h"
#include "support/temp.h"
#include "support/tiny_model.h"

/* Of the adapters the first is none. */
enum { N_ADAPTERS = 3 };
enum { N_PROMPTS = 10, MAX_ANSWER = 8, N_TOP = 5, MAX_PROMPT = 490 };

/* One answer as it is compared: every bit of it. */
typedef struct answer {
  int n;
  int32_t tokens[MAX_ANSWER];
  float values[MAX_ANSWER][1 + 2 * N_TOP];
  bool failed;
} answer;

typedef struct waiter {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int n_ended;
} waiter;

typedef struct seat {
  waiter *w;
  answer a;
} seat;

typedef struct fixture {
  pst_engine_model *model;
  pst_engine_tokens prompts[N_PROMPTS];
  pst_engine_adapter *adapters[N_ADAPTERS];
  int n_adapters;
  answer expected[N_ADAPTERS][N_PROMPTS][2]; /* greedy, sampled */
  pst_engine_corpus *corpus;                 /* of these, some tokens exchanged */
} fixture;

static void on_event(void *user, const pst_engine_event *e) {
  seat *s = user;
  if (e->token >= 0 && s->a.n < MAX_ANSWER) {
    float *v = s->a.values[s->a.n];
    *v++ = e->logprob;
    for (size_t i = 0; i < N_TOP; i++) {
      *v++ = i < e->n_top ? e->top[i].logprob : 0;
      *v++ = i < e->n_top ? (float)e->top[i].token : -1;
    }
    s->a.tokens[s->a.n++] = e->token;
  }
  if (e->finish == PST_ENGINE_FINISH_NONE) return;
  s->a.failed = e->finish == PST_ENGINE_FINISH_ERROR;
  pthread_mutex_lock(&s->w->lock);
  s->w->n_ended++;
  pthread_cond_signal(&s->w->changed);
  pthread_mutex_unlock(&s->w->lock);
}

static void submit(pst_engine *engine, const fixture *f, int adapter, int prompt, bool sampled,
                   pst_engine_speculation speculation, seat *s) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_request q = {0};
  uint64_t id;
  q.prompt = f->prompts[prompt].ids;
  q.n_prompt = f->prompts[prompt].n;
  q.max_tokens = MAX_ANSWER;
  q.sampling = pst_engine_sampling_default();
  q.sampling.temperature = sampled ? 0.8f : 0.0f;
  q.sampling.seed = 42;
  q.ignore_end = true;
  q.speculation = speculation;
  q.corpus = f->corpus;
  q.n_logprobs = N_TOP;
  q.adapter = f->adapters[adapter];
  q.callback = on_event;
  q.user = s;
  if (pst_engine_submit(engine, &q, &id, &err)) fail_msg("%s", err.message);
}

static void wait_for(waiter *w, int n) {
  pthread_mutex_lock(&w->lock);
  while (w->n_ended < n) pthread_cond_wait(&w->changed, &w->lock);
  pthread_mutex_unlock(&w->lock);
}

static pst_engine *open_engine_for(const fixture *f, int n_ctx, int slots, int chunk, int threads, bool reuse,
                                   bool always, bool drafted) {
  pst_error err = PST_ERROR_INIT;
  pst_engine *engine = NULL;
  pst_engine_options o = pst_engine_options_default();
  o.slots = slots;
  o.chunk = chunk;
  o.threads = threads;
  o.n_ctx = n_ctx;
  o.kv_tokens = 4096;
  o.no_reuse = !reuse;
  o.draft_always = always;
  if (drafted)
    o.draft = f->model; /* the model itself: right where an answer is greedy, often wrong where it is sampled */
  if (pst_engine_create(f->model, &o, &engine, &err)) fail_msg("%s", err.message);
  return engine;
}

static pst_engine *open_engine(const fixture *f, int slots, int chunk, int threads, bool reuse, bool always,
                               bool drafted) {
  return open_engine_for(f, 512, slots, chunk, threads, reuse, always, drafted);
}

/* Prompts that share beginnings of several lengths, repeat themselves, and end anywhere. */
static void make_prompts(fixture *f) {
  pst_error err = PST_ERROR_INIT;
  pst_buf text = PST_BUF_INIT;
  for (int i = 0; i < N_PROMPTS; i++) {
    pst_buf_clear(&text);
    pst_buf_puts(&text, i % 3 == 2 ? "Colours: red, green, blue, red, green, blue, red, green,"
                                   : "You sort messages of customers by what they want. ");
    for (int k = 0; k <= i; k++)
      pst_buf_printf(&text, "Message %d: where is my parcel number %d? Answer: delivery. ", k, 100 + 7 * k);
    if (i % 2) pst_buf_puts(&text, "Message: the cup is broken. Answer:");
    assert_int_equal(pst_engine_tokenize(f->model, pst_buf_str(&text), false, true, &f->prompts[i], &err), 0);
    f->prompts[i].n = PST_MIN(f->prompts[i].n, (size_t)MAX_PROMPT);
  }
  pst_buf_done(&text);
}

static int n_prompts(void) { return test_scale(N_PROMPTS, 4, N_PROMPTS); }

static void expect_alone(fixture *f) {
  for (int k = 0; k < 2 * n_prompts(); k++)
    for (int adapter = 0; adapter < f->n_adapters; adapter++) {
      int i = k / 2, sampled = k % 2;
      pst_engine *engine = open_engine(f, 1, 512, 1, false, false, false);
      waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
      seat s = {&w, {0}};
      submit(engine, f, adapter, i, sampled, PST_ENGINE_SPEC_NONE, &s);
      wait_for(&w, 1);
      pst_engine_free(engine);
      assert_false(s.a.failed);
      assert_int_equal(s.a.n, MAX_ANSWER);
      f->expected[adapter][i][sampled] = s.a;
      if (adapter) assert_memory_not_equal(&s.a, &f->expected[0][i][sampled], sizeof s.a); /* it does something */
    }
}

/* Drafts from it are right at first and then wrong, or the other way round. */
static void make_corpus(fixture *f) {
  pst_error err = PST_ERROR_INIT;
  int32_t tokens[2 * N_PROMPTS * MAX_ANSWER];
  size_t lengths[2 * N_PROMPTS], n = 0;
  for (int i = 0; i < 2 * n_prompts(); i++) {
    const answer *a = &f->expected[0][i / 2][i % 2];
    lengths[i] = MAX_ANSWER;
    for (int k = 0; k < MAX_ANSWER; k++, n++) tokens[n] = (i + k) % 5 == 4 ? a->tokens[0] : a->tokens[k];
  }
  if (pst_engine_corpus_create(tokens, lengths, 2 * (size_t)n_prompts(), &f->corpus, &err)) fail_msg("%s", err.message);
}

static void run_mix(const fixture *f, pst_random *r, uint64_t mix) {
  int slots = 1 + (int)pst_random_below(r, 6), chunk = 16 + (int)pst_random_below(r, 240),
      threads = 1 + (int)pst_random_below(r, 3);
  bool reuse = pst_random_below(r, 4) != 0, always = pst_random_below(r, 3) != 0; /* else the cost rule decides */
  int n = 1 + (int)pst_random_below(r, 7);
  bool drafted = pst_random_below(r, 4) == 0 && !pst_engine_model_get_info(f->model)->state_bytes;
  pst_engine *engine = open_engine(f, slots, chunk, threads, reuse, always, drafted);
  waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
  seat seats[8];
  int prompt[8], sampled[8], adapter[8];
  for (int i = 0; i < n; i++) {
    prompt[i] = (int)pst_random_below(r, (uint64_t)n_prompts());
    sampled[i] = pst_random_below(r, 3) == 0;
    adapter[i] = (int)pst_random_below(r, (uint64_t)f->n_adapters);
    seats[i] = (seat){&w, {0}};
    submit(engine, f, adapter[i], prompt[i], sampled[i] != 0,
           (pst_engine_speculation)pst_random_below(r, drafted ? 4 : 3), &seats[i]);
    if (pst_random_below(r, 4) == 0) wait_for(&w, 1 + (int)pst_random_below(r, (uint64_t)i + 1)); /* some come late */
  }
  wait_for(&w, n);
  pst_engine_free(engine);
  for (int i = 0; i < n; i++)
    if (memcmp(&seats[i].a, &f->expected[adapter[i]][prompt[i]][sampled[i]], sizeof(answer)))
      fail_msg(
          "mix %llu: slots %d, chunk %d, threads %d, reuse %d, always %d, drafted %d: request %d (prompt %d, sampled %d, adapter %d) differs from the same alone",
          (unsigned long long)mix, slots, chunk, threads, reuse, always, drafted, i, prompt[i], sampled[i], adapter[i]);
}

/* Adapter k: of rank 5 on all linear layers, or of rank 16 on some. */
static void make_adapter(fixture *f, int k) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_lora lora = {0};
  if (test_random_adapter(f->model, k == 1 ? 5 : 16, k, k, 0.2f, &lora, &err) ||
      pst_engine_adapter_create(f->model, &lora, &f->adapters[k], &err))
    fail_msg("%s", err.message);
  pst_engine_lora_done(&lora);
}

/* Layers of attention and a dense feed-forward branch, and of the mixtures attention alone, take adapters. */
static void make_adapters(fixture *f) {
  const char *name = pst_engine_model_get_info(f->model)->architecture;
  bool recurrent = !strcmp(name, "lfm2") || !strncmp(name, "qwen35", 6) || !strcmp(name, "qwen3next");
  f->n_adapters = recurrent ? 1 : N_ADAPTERS;
  for (int k = 1; k < f->n_adapters; k++) make_adapter(f, k);
}

static void run_file(const char *path, int default_mixes) {
  const char *mixes = getenv("PENSTOCK_TEST_MIXES"), *seed = getenv("PENSTOCK_TEST_SEED");
  fixture f = {0};
  pst_error err = PST_ERROR_INIT;
  if (pst_engine_model_open(path, 0, &f.model, &err)) fail_msg("%s", err.message);
  make_prompts(&f);
  make_adapters(&f);
  expect_alone(&f);
  make_corpus(&f);
  int n = mixes ? atoi(mixes) : default_mixes;
  uint64_t start = seed ? strtoull(seed, NULL, 10) : 1;
  print_message("seed %llu, %d mixes\n", (unsigned long long)start, n);
  for (int i = 0; i < n; i++) {
    pst_random r = {start, (uint64_t)i, 0};
    run_mix(&f, &r, (uint64_t)i);
  }
  for (int i = 0; i < N_PROMPTS; i++) pst_engine_tokens_done(&f.prompts[i]);
  for (int k = 0; k < N_ADAPTERS; k++) pst_engine_adapter_unref(f.adapters[k]);
  pst_engine_corpus_unref(f.corpus);
  pst_engine_model_unref(f.model);
}

static void run_model(const char *variable, int default_mixes) {
  const char *path = getenv(variable);
  if (!path || !pst_file_exists(path)) {
    print_message("SKIP reason: %s names no model file\n", variable);
    skip();
  }
  run_file(path, default_mixes);
}

/* A context long enough that its attention is shared out among threads by ranges of blocks. */
static void run_long(const char *variable) {
  const char *path = getenv(variable);
  if (!path || !pst_file_exists(path)) {
    print_message("SKIP reason: %s names no model file\n", variable);
    skip();
  }
  enum { N_CTX = 1536, PROMPT = 1300 };
  fixture f = {0};
  pst_error err = PST_ERROR_INIT;
  pst_buf text = PST_BUF_INIT;
  answer first = {0};
  if (pst_engine_model_open(path, 0, &f.model, &err)) fail_msg("%s", err.message);
  for (int k = 0; k < 400; k++) pst_buf_printf(&text, "Parcel %d goes to street %d. ", k * 31 % 997, k * 17 % 101);
  assert_int_equal(pst_engine_tokenize(f.model, pst_buf_str(&text), false, true, &f.prompts[0], &err), 0);
  assert_true(f.prompts[0].n >= PROMPT);
  f.prompts[0].n = PROMPT;
  /* Under a sanitizer only what several threads share. */
  const int n_first = test_scale(1, 2, 1);
  for (int threads = n_first; threads <= test_scale(4, 2, 4); threads++) {
    pst_engine *engine = open_engine_for(&f, N_CTX, 2, 512, threads, true, true, threads % 2 == 0);
    waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    seat seats[2] = {{&w, {0}}, {&w, {0}}};
    submit(engine, &f, 0, 0, false, PST_ENGINE_SPEC_NONE,
           &seats[0]); /* alone, then again over its shared pages, with drafts */
    wait_for(&w, 1);
    submit(engine, &f, 0, 0, false, threads % 2 ? PST_ENGINE_SPEC_LOOKUP : PST_ENGINE_SPEC_MODEL, &seats[1]);
    wait_for(&w, 2);
    pst_engine_free(engine);
    if (threads == n_first) first = seats[0].a;
    assert_memory_equal(&seats[0].a, &first, sizeof first);
    assert_memory_equal(&seats[1].a, &first, sizeof first);
  }
  pst_buf_done(&text);
  pst_engine_tokens_done(&f.prompts[0]);
  pst_engine_model_unref(f.model);
}

static void test_llama_long(void **state) {
  (void)state;
  run_long("PENSTOCK_TEST_SMOLLM2");
}

static void test_gemma3_long(void **state) {
  (void)state;
  run_long("PENSTOCK_TEST_GEMMA3");
}

static void test_llama_mixes(void **state) {
  (void)state;
  run_model("PENSTOCK_TEST_SMOLLM2", test_scale(60, 4, 1000));
}

static void test_gemma3_mixes(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* a tiny one is among test_tiny_mixes' */
  run_model("PENSTOCK_TEST_GEMMA3", test_scale(10, 2, 100));
}

/* Experts, sinks, positions that scale queries, convolutions, recurrent states, layers of several widths that read each other's keys, embeddings by
 * layer; in floats and quantized. */
static void test_tiny_mixes(void **state) {
  (void)state;
  static const struct {
    const char *name, *type;
  } models[] = {{"qwen3moe", "Q8_0"},  {"gpt-oss", NULL},      {"gpt-oss-mxfp4", "F16"}, {"mistral3", "Q4_0"},
                {"lfm2", "Q8_0"},      {"lfm2", NULL},         {"qwen35", "Q8_0"},       {"qwen35", NULL},
                {"qwen3next", "Q8_0"}, {"gemma3", NULL},       {"gemma2", "Q8_0"},       {"olmo2", "Q5_1"},
                {"gemma4-ple", NULL},  {"gemma4-ple", "Q8_0"}, {"gemma4-moe", "Q8_0"},   {"gemma4-moe", NULL}};
  char *dir = test_temp_dir();
  for (size_t i = 0; i < PST_ARRAY_LEN(models); i++) {
    const char *path = test_temp_path(dir, "model.gguf");
    pst_json_doc *doc = test_golden_read(models[i].name);
    test_golden_write(path, pst_json_root(doc), &(test_golden_change){.type = models[i].type});
    pst_json_free(doc);
    run_file(path, test_scale(15, 2, 200));
  }
  test_temp_remove(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tiny_mixes),  cmocka_unit_test(test_llama_long),   cmocka_unit_test(test_gemma3_long),
      cmocka_unit_test(test_llama_mixes), cmocka_unit_test(test_gemma3_mixes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
