/* LoRA adapters against PEFT in float32, on the tiny models of tests/golden/architectures and files that PEFT and llama.cpp's converter made
 * (tools/golden_adapters.py).
 *
 * Tolerance: as in test_architectures.c, since keys and values in F16 and the order of sums are the same; the adapters move log-probabilities by units. That a
 * merged file computes what its adapter does is held more tightly: both have the same keys and values but for rounding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <penstock/engine.h>
#include <stdio.h>
#include <string.h>

#include "support/golden_model.h"
#include "support/temp.h"

enum { MAX_TOKENS = 64 };

static const char *const names[] = {"gemma3", "llama", "phi3", "qwen2", "qwen3"};

typedef struct scores {
  pthread_mutex_t lock;
  pthread_cond_t ended;
  int n;
  double logprobs[MAX_TOKENS];
  bool done;
} scores;

static void on_event(void *user, const pst_engine_event *e) {
  scores *s = user;
  pthread_mutex_lock(&s->lock);
  if (e->token >= 0 && s->n < MAX_TOKENS) s->logprobs[s->n++] = (double)e->logprob;
  s->done |= e->finish != PST_ENGINE_FINISH_NONE;
  pthread_cond_signal(&s->ended);
  pthread_mutex_unlock(&s->lock);
}

/* A golden case: its texts, the model's file and the two forms of the adapter. */
typedef struct golden {
  const char *name;
  pst_json_doc *doc;
  int32_t tokens[MAX_TOKENS];
  double logprobs[MAX_TOKENS];
  size_t n;
  char model[256], peft[256], gguf[256]; /* paths; gguf empty: the converter cannot make it */
} golden;

static void open_golden(const char *name, const char *dir, golden *g) {
  pst_error err = PST_ERROR_INIT;
  char path[256];
  *g = (golden){.name = name};
  snprintf(g->peft, sizeof g->peft, "tests/golden/adapters/%s", name);
  snprintf(g->gguf, sizeof g->gguf, "tests/golden/adapters/%s/adapter.gguf", name);
  snprintf(path, sizeof path, "tests/golden/adapters/%s/golden.json", name);
  snprintf(g->model, sizeof g->model, "%s", test_temp_path(dir, name));
  if (!pst_file_exists(g->gguf)) g->gguf[0] = '\0';
  if (pst_json_parse_file(path, 1 << 20, &g->doc, &err)) fail_msg("%s", err.message);
  const pst_json *root = pst_json_root(g->doc), *tokens = pst_json_get(root, "tokens");
  g->n = pst_json_size(tokens);
  assert_true(g->n > 8 && g->n <= MAX_TOKENS && pst_json_size(pst_json_get(root, "logprobs")) == g->n - 1);
  for (size_t i = 0; i < g->n; i++) g->tokens[i] = (int32_t)pst_json_int(pst_json_at(tokens, i), -1);
  for (size_t i = 0; i + 1 < g->n; i++)
    g->logprobs[i] = pst_json_double(pst_json_at(pst_json_get(root, "logprobs"), i), NAN);
  test_golden_model(name, g->model);
}

/* Log-probabilities of the text's tokens after the first, with an adapter or (NULL) without. */
static void score(const golden *g, const char *model_path, const char *adapter_path, double logprobs[MAX_TOKENS]) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  pst_engine_adapter *adapter = NULL;
  pst_engine_options o = pst_engine_options_default();
  pst_engine_request q = {0};
  scores s = {.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};
  uint64_t id;
  o.threads = o.slots = 1;
  o.n_ctx = o.kv_tokens = MAX_TOKENS;
  if (pst_engine_model_open(model_path, 1, &model, &err) || pst_engine_create(model, &o, &engine, &err))
    fail_msg("%s", err.message);
  if (adapter_path && pst_engine_adapter_open(model, adapter_path, &adapter, &err)) fail_msg("%s", err.message);
  q.prompt = g->tokens;
  q.n_prompt = g->n;
  q.sampling = pst_engine_sampling_default();
  q.n_logprobs = 0;
  q.score_prompt = true;
  q.adapter = adapter;
  q.callback = on_event;
  q.user = &s;
  if (pst_engine_submit(engine, &q, &id, &err)) fail_msg("%s", err.message);
  pst_engine_adapter_unref(adapter); /* the request has its own reference */
  pthread_mutex_lock(&s.lock);
  while (!s.done) pthread_cond_wait(&s.ended, &s.lock);
  pthread_mutex_unlock(&s.lock);
  assert_int_equal(s.n, (int)g->n - 1);
  memcpy(logprobs, s.logprobs, sizeof s.logprobs);
  pst_engine_free(engine);
  pst_engine_model_unref(model);
}

static double apart(const double *x, const double *y, size_t n, double *ret_mean) {
  double worst = 0;
  *ret_mean = 0;
  for (size_t i = 0; i < n; i++) {
    worst = PST_MAX(worst, fabs(x[i] - y[i]));
    *ret_mean += fabs(x[i] - y[i]) / (double)n;
  }
  return worst;
}

/* What PEFT computes with its own files, we compute with them; without the adapter something else. */
static void test_peft(void **state) {
  (void)state;
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++) {
    golden g;
    double with[MAX_TOKENS], without[MAX_TOKENS], mean;
    open_golden(names[i], test_dir, &g);
    score(&g, g.model, g.peft, with);
    score(&g, g.model, NULL, without);
    double worst = apart(with, g.logprobs, g.n - 1, &mean);
    print_message("%-8s mean %.1e, worst %.1e\n", names[i], mean, worst);
    assert_true(mean <= 2e-3 && worst <= 8e-3);
    assert_true(apart(without, g.logprobs, g.n - 1, &mean) > 0.5);
    pst_json_free(g.doc);
  }
}

/* The converter's file says the same, to the bit; and so does what we write of either. */
static void test_forms(void **state) {
  (void)state;
  int n_both = 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++) {
    golden g;
    pst_error err = PST_ERROR_INIT;
    pst_engine_model *model = NULL;
    pst_engine_lora peft = {0}, other = {0};
    char ours[300];
    open_golden(names[i], test_dir, &g);
    if (pst_engine_model_open(g.model, 1, &model, &err)) fail_msg("%s", err.message);
    const pst_engine_model_info *info = pst_engine_model_get_info(model);
    if (pst_engine_lora_read(g.peft, info, &peft, &err)) fail_msg("%s", err.message);
    for (int form = g.gguf[0] ? 0 : 1; form < 3; form++) {
      snprintf(ours, sizeof ours, "%s.%d", g.model, form);
      if (form == 0 && pst_engine_lora_read(g.gguf, NULL, &other, &err)) fail_msg("%s", err.message);
      if (form == 1 &&
          (pst_engine_lora_write_gguf(&peft, ours, &err) || pst_engine_lora_read(ours, NULL, &other, &err)))
        fail_msg("%s", err.message);
      if (form == 2 &&
          (pst_engine_lora_write_peft(&peft, info, ours, &err) || pst_engine_lora_read(ours, info, &other, &err)))
        fail_msg("%s", err.message);
      assert_int_equal(peft.n_targets, other.n_targets);
      for (size_t k = 0; k < peft.n_targets; k++) {
        const pst_engine_lora_target *x = &peft.targets[k], *y = other.targets;
        while (y < other.targets + other.n_targets && strcmp(y->name, x->name) != 0) y++;
        assert_true(y < other.targets + other.n_targets && y->rank == x->rank);
        assert_true(pst_engine_lora_scale(&other, y) == pst_engine_lora_scale(&peft, x));
        assert_memory_equal(x->a, y->a, (size_t)x->rank * (size_t)x->n_in * sizeof *x->a);
        assert_memory_equal(x->b, y->b, (size_t)x->rank * (size_t)x->n_out * sizeof *x->b);
      }
      n_both++;
      pst_engine_lora_done(&other);
    }
    pst_engine_lora_done(&peft);
    pst_engine_model_unref(model);
    pst_json_free(g.doc);
  }
  assert_int_equal(n_both, 3 * (int)PST_ARRAY_LEN(names) - 1);
}

static void test_merge(void **state) {
  (void)state;
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++) {
    golden g;
    pst_error err = PST_ERROR_INIT;
    double with[MAX_TOKENS], merged[MAX_TOKENS], coarse[MAX_TOKENS], mean;
    int n_fallback = -1;
    char path[300];
    open_golden(names[i], test_dir, &g);
    snprintf(path, sizeof path, "%s.merged", g.model);
    score(&g, g.model, g.peft, with);
    if (pst_engine_merge(g.model, g.peft, path, NULL, NULL, &n_fallback, &err)) fail_msg("%s", err.message);
    assert_int_equal(n_fallback, 0);
    score(&g, path, NULL, merged);
    double worst = apart(with, merged, g.n - 1, &mean);
    print_message("%-8s mean %.1e, worst %.1e\n", names[i], mean, worst);
    assert_true(mean <= 2e-5 && worst <= 1e-4);
    if (pst_engine_merge(g.model, g.peft, path, "Q8_0", NULL, &n_fallback, &err)) fail_msg("%s", err.message);
    score(&g, path, NULL, coarse);
    worst = apart(with, coarse, g.n - 1, &mean);
    assert_true(worst > 0 && mean < 0.1);
    pst_json_free(g.doc);
  }
}

/* An adapter of another model is refused, by the engine and by the merge. */
static void test_other_model(void **state) {
  (void)state;
  golden llama, qwen;
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine_adapter *adapter = NULL;
  pst_engine_lora lora = {0};
  char out[300];
  open_golden("llama", test_dir, &llama);
  open_golden("qwen3", test_dir, &qwen);
  snprintf(out, sizeof out, "%s.out", llama.model);
  if (pst_engine_model_open(llama.model, 1, &model, &err)) fail_msg("%s", err.message);
  assert_int_equal(pst_engine_adapter_open(model, qwen.gguf, &adapter, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "'qwen3'"));
  assert_int_equal(pst_engine_merge(llama.model, qwen.gguf, out, NULL, NULL, NULL, &err), PST_E_BAD_INPUT);
  assert_false(pst_file_exists(out));
  lora.architecture = pst_strdup("llama");
  assert_int_equal(pst_engine_lora_add(&lora, PST_STR("output.weight"), 2, 64, 288, NULL, &err), 0);
  assert_int_equal(pst_engine_adapter_create(model, &lora, &adapter, &err), PST_E_UNSUPPORTED);
  pst_engine_lora_done(&lora);
  lora.architecture = pst_strdup("llama");
  assert_int_equal(pst_engine_lora_add(&lora, PST_STR("blk.1.ffn_up.weight"), 2, 64, 128, NULL, &err), 0);
  assert_int_equal(pst_engine_adapter_create(model, &lora, &adapter, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "another model's"));
  pst_engine_lora_done(&lora);
  pst_engine_model_unref(model);
  pst_json_free(llama.doc);
  pst_json_free(qwen.doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_peft, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_forms, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_merge, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_other_model, test_dir_open, test_dir_close),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
