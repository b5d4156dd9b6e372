/* Opening models: every required key and tensor is asked for by name, what nobody reads is refused by name, and small models answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/engine.h>
#include <penstock/kernels.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/golden_model.h"
#include "support/temp.h"
#include "support/tiny_model.h"

static void opens(const test_tiny *options, int layers) {
  const char *path = test_temp_path(test_dir, "model.gguf");
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  test_tiny_write(path, options);
  if (pst_engine_model_open(path, 1, &model, &err)) fail_msg("%s: %s", err.place, err.message);
  const pst_engine_model_info *info = pst_engine_model_get_info(model);
  assert_int_equal(info->n_layers, layers);
  assert_int_equal(info->n_vocab, 288);
  assert_int_equal(info->eos, 266);
  assert_int_equal(info->has_template, !options->template_text || *options->template_text);
  pst_engine_model_unref(model);
}

static void refuses_file(const char *path, int code, const char *named) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  assert_int_equal(pst_engine_model_open(path, 1, &model, &err), code);
  assert_null(model);
  if (!strstr(err.message, named)) fail_msg("'%s' does not name %s", err.message, named);
  assert_true(strlen(err.place) > 0);
}

static void refuses(const test_tiny *options, int code, const char *named) {
  const char *path = test_temp_path(test_dir, "model.gguf");
  test_tiny_write(path, options);
  refuses_file(path, code, named);
}

static void test_opens(void **state) {
  (void)state;
  static const char *const architectures[] = {"llama", "qwen2",   "qwen3",   "gemma2", "gemma3",
                                              "phi3",  "smollm3", "granite", "olmo2"};
  for (size_t i = 0; i < PST_ARRAY_LEN(architectures); i++) {
    opens(&(test_tiny){.architecture = architectures[i]}, 2);
    opens(&(test_tiny){.architecture = architectures[i], .type = "F16", .n_layers = 7, .template_text = ""}, 7);
  }
}

static void test_keys(void **state) {
  (void)state;
  static const char *const needed[] = {"block_count", "context_length", "embedding_length", "feed_forward_length",
                                       "attention.head_count"};
  for (size_t i = 0; i < PST_ARRAY_LEN(needed); i++) {
    char key[64];
    snprintf(key, sizeof key, "llama.%s", needed[i]);
    refuses(&(test_tiny){.drop = key}, PST_E_BAD_INPUT, key);
  }
  refuses(&(test_tiny){.architecture = "gemma3", .drop = "gemma3.attention.sliding_window"}, PST_E_BAD_INPUT,
          "gemma3.attention.sliding_window");
  refuses(&(test_tiny){.extra_key = "llama.expert_count"}, PST_E_UNSUPPORTED, "llama.expert_count");
  opens(&(test_tiny){.extra_key = "llama.vocab_size"}, 2);
  opens(&(test_tiny){.extra_key = "general.something"}, 2);
  refuses(&(test_tiny){.architecture = "mamba"}, PST_E_UNSUPPORTED, "mamba");
  refuses(&(test_tiny){.drop = "tokenizer.ggml.tokens"}, PST_E_BAD_INPUT, "tokenizer.ggml.tokens");
}

static void test_tensors(void **state) {
  (void)state;
  static const char *const needed[] = {"token_embd.weight",     "output_norm.weight",       "blk.1.attn_norm.weight",
                                       "blk.0.attn_q.weight",   "blk.0.attn_k.weight",      "blk.1.attn_v.weight",
                                       "blk.1.ffn_norm.weight", "blk.0.attn_output.weight", "blk.1.ffn_gate.weight",
                                       "blk.0.ffn_up.weight",   "blk.1.ffn_down.weight"};
  for (size_t i = 0; i < PST_ARRAY_LEN(needed); i++)
    refuses(&(test_tiny){.drop = needed[i]}, PST_E_BAD_INPUT, needed[i]);
  refuses(&(test_tiny){.architecture = "gemma3", .drop = "blk.1.attn_q_norm.weight"}, PST_E_BAD_INPUT,
          "blk.1.attn_q_norm.weight");
  refuses(&(test_tiny){.extra_tensor = "blk.0.ffn_gate_exps.weight"}, PST_E_UNSUPPORTED, "blk.0.ffn_gate_exps.weight");
}

static void test_templates(void **state) {
  (void)state;
  refuses(&(test_tiny){.template_text = "{% for m in messages %}{{ m.content }"}, PST_E_BAD_INPUT, "chat template");
}

/* ---- an engine over one ---- */

typedef struct answer {
  pthread_mutex_t lock;
  pthread_cond_t ended;
  int n;
  int32_t tokens[32];
  float logprobs[32];
  int n_token_steps, n_drafted, n_accepted;
  bool done;
} answer;

static void on_event(void *user, const pst_engine_event *e) {
  answer *a = user;
  pthread_mutex_lock(&a->lock);
  if (e->token >= 0 && a->n < 32) {
    a->logprobs[a->n] = e->logprob;
    a->tokens[a->n++] = e->token;
  }
  if (e->finish != PST_ENGINE_FINISH_NONE) {
    a->n_token_steps = e->n_token_steps;
    a->n_drafted = e->n_drafted;
    a->n_accepted = e->n_accepted;
    a->done = true;
    pthread_cond_signal(&a->ended);
  }
  pthread_mutex_unlock(&a->lock);
}

static void make_prompt(int32_t prompt[150]) {
  for (int i = 0; i < 150; i++) prompt[i] = 97 + i * i % 23;
}

static void ask(pst_engine *engine, pst_engine_speculation speculation, pst_engine_corpus *corpus, answer *a) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_request q = {0};
  int32_t prompt[150];
  uint64_t id;
  make_prompt(prompt);
  *a = (answer){.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};
  q.prompt = prompt;
  q.n_prompt = 150;
  q.max_tokens = 32;
  q.sampling = pst_engine_sampling_default();
  q.sampling.temperature = 0;
  q.ignore_end = true;
  q.speculation = speculation;
  q.corpus = corpus;
  q.n_logprobs = 0;
  q.callback = on_event;
  q.user = a;
  if (pst_engine_submit(engine, &q, &id, &err)) fail_msg("%s", err.message);
  pthread_mutex_lock(&a->lock);
  while (!a->done) pthread_cond_wait(&a->ended, &a->lock);
  pthread_mutex_unlock(&a->lock);
}

/* Every token comes by a step or by a draft that was right. */
static void check_steps(const answer *a, bool speculates) {
  assert_int_equal(a->n_token_steps + a->n_accepted, 32);
  assert_true(a->n_accepted <= a->n_drafted);
  if (!speculates) assert_int_equal(a->n_drafted, 0);
}

/* The answer with some of its tokens exchanged, so that drafts from it are right in part. */
static pst_engine_corpus *make_corpus(const answer *a) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_corpus *corpus = NULL;
  int32_t tokens[64];
  const size_t lengths[] = {32, 32};
  for (int i = 0; i < 64; i++) tokens[i] = i % 11 == 10 ? 98 : a->tokens[i % 32];
  if (pst_engine_corpus_create(tokens, lengths, 2, &corpus, &err)) fail_msg("%s", err.message);
  return corpus;
}

/* The same answer to the bit on every thread count and chunk, with reuse and drafts of either kind. */
static void check_answers(const char *path) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine_corpus *corpus = NULL;
  answer first, again;
  if (pst_engine_model_open(path, 1, &model, &err)) fail_msg("%s: %s", err.place, err.message);
  bool drafts = pst_engine_model_get_info(model)->state_bytes == 0;
  for (int k = 0; k < 6; k++) {
    pst_engine_options o = pst_engine_options_default();
    pst_engine *engine = NULL;
    o.threads = 1 + k % 3;
    o.chunk = k < 3 ? 16 : 200;
    o.draft_always = k % 2 == 1; /* else as the cost rule says */
    o.draft = drafts ? model : NULL;
    if (pst_engine_create(model, &o, &engine, &err)) fail_msg("%s", err.message);
    const int n_kinds = drafts ? 4 : 3;
    for (int round = 0; round < 2 * n_kinds;
         round++) { /* without drafts, from its own text, a corpus, the model itself; and again */
      const pst_engine_speculation kind = (pst_engine_speculation)(round % n_kinds);
      ask(engine, kind, corpus, &again);
      if (k == 0 && round == 0) {
        first = again;
        corpus = make_corpus(&first);
      }
      assert_int_equal(again.n, 32);
      assert_memory_equal(again.tokens, first.tokens, sizeof first.tokens);
      assert_memory_equal(again.logprobs, first.logprobs, sizeof first.logprobs);
      check_steps(&again, drafts && kind != PST_ENGINE_SPEC_NONE);
      if (drafts && kind == PST_ENGINE_SPEC_ANSWERS && o.draft_always) assert_true(again.n_accepted > 0);
      /* Both see the same numbers, whatever the order of a step: every guess is right. */
      if (kind == PST_ENGINE_SPEC_MODEL && o.draft_always) assert_int_equal(again.n_accepted, again.n_drafted);
      if (kind == PST_ENGINE_SPEC_MODEL && o.draft_always) assert_true(again.n_accepted > 0);
    }
    pst_engine_free(engine);
  }
  pst_engine_corpus_unref(corpus);
  pst_engine_model_unref(model);
}

static void test_answers(void **state) {
  (void)state;
  static const test_tiny models[] = {
      {.architecture = "llama", .seed = 3, .n_layers = 7},
      {.architecture = "gemma3", .seed = 3, .n_layers = 7},
      {.architecture = "llama", .type = "Q8_0", .seed = 4},
      {.architecture = "gemma3", .type = "Q4_0", .seed = 5, .n_layers = 6},
      {.architecture = "llama", .type = "BF16", .seed = 6},
      {.architecture = "gemma2", .type = "Q5_1", .seed = 7},
      {.architecture = "granite", .type = "Q8_0", .seed = 8},
      {.architecture = "olmo2", .type = "F16", .seed = 9},
      {.architecture = "smollm3", .type = "Q4_1", .seed = 10, .n_layers = 4},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(models); i++) {
    const char *path = test_temp_path(test_dir, "model.gguf");
    test_tiny_write(path, &models[i]);
    check_answers(path);
  }
}

/* The model of `in` with another last token. */
static void write_renamed(const char *in, const char *out) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_gguf *g = NULL;
  pst_engine_gguf_writer *w = NULL;
  const pst_engine_gguf_value *tokens = NULL;
  pst_str texts[512];
  assert_int_equal(pst_engine_gguf_open(in, &g, &err), 0);
  assert_int_equal(pst_engine_gguf_get_array(g, "tokenizer.ggml.tokens", PST_ENGINE_GGUF_STRINGS, &tokens, &err), 0);
  assert_true(tokens->n <= PST_ARRAY_LEN(texts));
  for (uint64_t i = 0; i < tokens->n; i++) texts[i] = pst_engine_gguf_value_str(tokens, i);
  texts[tokens->n - 1] = PST_STR("<|another|>");
  assert_int_equal(pst_engine_gguf_writer_create(out, 32, &w, &err), 0);
  pst_engine_gguf_writer_copy_values(w, g);
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.tokens", texts, tokens->n);
  test_gguf_copy_tensors(w, g);
  assert_int_equal(pst_engine_gguf_writer_finish(w, &err), 0);
  pst_engine_gguf_writer_free(w);
  pst_engine_gguf_close(g);
}

/* A draft model must write text, know the vocabulary, and be there. */
static void test_draft_refusals(void **state) {
  (void)state;
  static const test_tiny encoder = {.architecture = "bert", .seed = 3}, target = {.seed = 3};
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  const char *path = test_temp_path(test_dir, "model.gguf");
  test_tiny_write(path, &target);
  assert_int_equal(pst_engine_model_open(path, 1, &model, &err), 0);
  for (int k = 0; k < 2; k++) {
    pst_engine_options o = pst_engine_options_default();
    const char *draft = test_temp_path(test_dir, "draft.gguf");
    if (k == 0)
      test_tiny_write(draft, &encoder);
    else
      write_renamed(path, draft);
    assert_int_equal(pst_engine_model_open(draft, 1, &o.draft, &err), 0);
    assert_int_equal(pst_engine_create(model, &o, &engine, &err), k ? PST_E_BAD_INPUT : PST_E_UNSUPPORTED);
    assert_string_equal(err.place, "draft");
    assert_non_null(strstr(err.message, k ? "vocabulary" : "encoder"));
    pst_engine_model_unref(o.draft);
  }
  pst_engine_request q = {.prompt = (const int32_t[]){97}, .n_prompt = 1, .max_tokens = 1, .callback = on_event};
  uint64_t id;
  q.sampling = pst_engine_sampling_default();
  q.speculation = PST_ENGINE_SPEC_MODEL;
  assert_int_equal(pst_engine_create(model, NULL, &engine, &err), 0);
  assert_int_equal(pst_engine_submit(engine, &q, &id, &err), PST_E_UNSUPPORTED);
  assert_non_null(strstr(err.message, "no draft model"));
  pst_engine_free(engine);
  pst_engine_model_unref(model);
}

/* The same of every architecture's tiny model. */
static void test_golden_answers(void **state) {
  (void)state;
  static const char *const types[] = {"F32", "Q8_0", "BF16", "Q5_1"};
  char names[TEST_GOLDEN_MAX][32];
  int n = test_golden_names(names);
  for (int i = 0; i < n; i++) {
    const char *path = test_temp_path(test_dir, "model.gguf");
    pst_json_doc *doc = test_golden_read(names[i]);
    test_golden_write(path, pst_json_root(doc), &(test_golden_change){.type = types[i % 4]});
    pst_json_free(doc);
    check_answers(path);
  }
}

/* The same answer to the bit by every table of kernels that this machine runs. */
static void test_golden_tables(void **state) {
  (void)state;
  static const char *const tables[] = {"scalar", "avx2", "avx512", "neon", "dotprod", "i8mm"};
  static const char *const types[] = {"Q8_0", "F16"};
  char names[TEST_GOLDEN_MAX][32];
  int n = test_golden_names(names), n_compared = 0;
  for (int i = 0; i < n; i++) {
    const char *path = test_temp_path(test_dir, "model.gguf");
    pst_json_doc *doc = test_golden_read(names[i]);
    answer first = {0}, again;
    test_golden_write(path, pst_json_root(doc), &(test_golden_change){.type = types[i % 2]});
    pst_json_free(doc);
    for (size_t k = 0; k < PST_ARRAY_LEN(tables); k++) {
      if (!pst_kernels_find(tables[k])) continue;
      pst_error err = PST_ERROR_INIT;
      pst_engine_model *model = NULL;
      pst_engine *engine = NULL;
      pst_engine_options o = pst_engine_options_default();
      o.threads = 1;
      pst_kernels_set(pst_kernels_find(tables[k]));
      if (pst_engine_model_open(path, 1, &model, &err) || pst_engine_create(model, &o, &engine, &err))
        fail_msg("%s", err.message);
      ask(engine, PST_ENGINE_SPEC_NONE, NULL, &again);
      if (first.n == 0) first = again;
      assert_int_equal(again.n, 32);
      assert_memory_equal(again.tokens, first.tokens, sizeof first.tokens);
      assert_memory_equal(again.logprobs, first.logprobs, sizeof first.logprobs);
      pst_engine_free(engine);
      pst_engine_model_unref(model);
      n_compared++;
    }
  }
  pst_kernels_set(NULL);
  assert_true(n_compared >= n);
}

/* What every key that has no meaning, and every tensor that is missing, is called. */
static void test_golden_refusals(void **state) {
  (void)state;
  static const struct {
    const char *name, *drop, *extra, *named;
    int code;
  } rows[] = {
      {"qwen3moe", "blk.1.ffn_gate_exps.weight", NULL, "blk.1.ffn_gate_exps.weight", PST_E_BAD_INPUT},
      {"qwen3moe", "qwen3moe.expert_count", NULL, "qwen3moe.expert_count", PST_E_BAD_INPUT},
      {"qwen3moe", NULL, "qwen3moe.expert_group_count", "qwen3moe.expert_group_count", PST_E_UNSUPPORTED},
      {"gpt-oss", "blk.2.attn_sinks.weight", NULL, "blk.2.attn_sinks.weight", PST_E_BAD_INPUT},
      {"gpt-oss", "blk.0.ffn_down_exps.bias", NULL, "blk.0.ffn_down_exps.bias", PST_E_BAD_INPUT},
      {"gpt-oss", "gpt-oss.attention.sliding_window", NULL, "gpt-oss.attention.sliding_window", PST_E_BAD_INPUT},
      {"gpt-oss", "gpt-oss.rope.scaling.original_context_length", NULL, "original_context_length", PST_E_BAD_INPUT},
      {"gpt-oss", NULL, "gpt-oss.rope.scaling.yarn_attn_factor", "yarn_attn_factor", PST_E_UNSUPPORTED},
      {"mistral3", NULL, "mistral3.expert_count", "mistral3.expert_count", PST_E_UNSUPPORTED},
      {"lfm2", "blk.0.shortconv.conv.weight", NULL, "blk.0.shortconv.conv.weight", PST_E_BAD_INPUT},
      {"lfm2", "lfm2.shortconv.l_cache", NULL, "lfm2.shortconv.l_cache", PST_E_BAD_INPUT},
      {"qwen35", "blk.0.ssm_a", NULL, "blk.0.ssm_a", PST_E_BAD_INPUT},
      {"qwen35", "qwen35.ssm.group_count", NULL, "qwen35.ssm.group_count", PST_E_BAD_INPUT},
      {"qwen35", NULL, "qwen35.expert_count", "qwen35.expert_count", PST_E_UNSUPPORTED},
      {"qwen35moe", "blk.1.ffn_gate_inp_shexp.weight", NULL, "blk.1.ffn_gate_inp_shexp.weight", PST_E_BAD_INPUT},
      {"qwen3next", "blk.2.ssm_ba.weight", NULL, "blk.2.ssm_ba.weight", PST_E_BAD_INPUT},
      {"qwen35-mtp", "qwen35.nextn_predict_layers", NULL, "blk.4.nextn", PST_E_UNSUPPORTED},
      {"gemma4", "gemma4.attention.key_length_swa", NULL, "gemma4.attention.key_length_swa", PST_E_BAD_INPUT},
      {"gemma4", "gemma4.attention.sliding_window_pattern", NULL, "sliding_window_pattern", PST_E_BAD_INPUT},
      {"gemma4", "gemma4.attention.head_count_kv", NULL, "blk.0.attn_k.weight", PST_E_BAD_INPUT},
      {"gemma4", "rope_freqs.weight", NULL, "rope_freqs.weight", PST_E_BAD_INPUT},
      {"gemma4-ple", "gemma4.attention.shared_kv_layers", NULL, "blk.4.attn_k.weight", PST_E_BAD_INPUT},
      {"gemma4-ple", "gemma4.embedding_length_per_layer_input", NULL, "per_layer_token_embd.weight", PST_E_UNSUPPORTED},
      {"gemma4-moe", "blk.1.ffn_gate_inp.scale", NULL, "blk.1.ffn_gate_inp.scale", PST_E_BAD_INPUT},
      {"gemma4-moe", "gemma4.expert_count", NULL, "gemma4.expert_used_count", PST_E_UNSUPPORTED},
      {"lfm2", NULL, "lfm2.leading_dense_block_count", "lfm2.leading_dense_block_count", PST_E_UNSUPPORTED},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    const char *path = test_temp_path(test_dir, "model.gguf");
    pst_json_doc *doc = test_golden_read(rows[i].name);
    test_golden_write(path, pst_json_root(doc),
                      &(test_golden_change){.drop = rows[i].drop, .extra_key = rows[i].extra});
    pst_json_free(doc);
    refuses_file(path, rows[i].code, rows[i].named);
  }
}

/* Pages hold what layers keep and no more: heads of their own size and number, and nothing where a layer reads another one's. */
static void test_kept_keys(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int64_t floats; /* keys and values of one token */
  } rows[] = {
      {"qwen3", 3 * 2 * 2 * 16},
      {"lfm2", 2 * 2 * 2 * 16},
      {"gemma4", 2 * 2 * (2 * 16 + 1 * 32)},     /* two sliding layers, two full ones */
      {"gemma4-ple", 2 * 2 * (2 * 16 + 2 * 32)}, /* four layers of six */
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    const char *path = test_temp_path(test_dir, "model.gguf");
    pst_json_doc *doc = test_golden_read(rows[i].name);
    pst_error err = PST_ERROR_INIT;
    pst_engine_model *model = NULL;
    test_golden_write(path, pst_json_root(doc), NULL);
    pst_json_free(doc);
    if (pst_engine_model_open(path, 1, &model, &err)) fail_msg("%s", err.message);
    int64_t conv = !strcmp(rows[i].name, "lfm2") ? 3 * 16 * 64 * 4 / 64 : 0; /* three convolutions of 64 channels */
    assert_int_equal(pst_engine_model_get_info(model)->kv_bytes_per_token_f16, rows[i].floats * 2 + conv);
    pst_engine_model_unref(model);
  }
}

/* Checkpoints keep keys and values of layers that read another one's; they change nothing. A tensor that nothing is like is still refused. */
static void test_unread_keys(void **state) {
  (void)state;
  static const char *const names[] = {"attn_k.weight", "attn_v.weight", "attn_k_norm.weight"};
  pst_json_doc *doc = test_golden_read("gemma4-ple");
  const char *path = test_temp_path(test_dir, "model.gguf");
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++) {
    char twin_of[64], twin[64];
    snprintf(twin_of, sizeof twin_of, "blk.2.%s", names[i]);
    snprintf(twin, sizeof twin, "blk.4.%s", names[i]);
    test_golden_write(path, pst_json_root(doc), &(test_golden_change){.twin_of = twin_of, .twin = twin});
    assert_true(test_golden_within(pst_json_root(doc), test_golden_measure(pst_json_root(doc), path)));
  }
  test_golden_write(path, pst_json_root(doc),
                    &(test_golden_change){.twin_of = "blk.2.attn_q_norm.weight", .twin = "blk.4.attn_v_norm.weight"});
  refuses_file(path, PST_E_UNSUPPORTED, "blk.4.attn_v_norm.weight");
  pst_json_free(doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_opens),          cmocka_unit_test(test_keys),
      cmocka_unit_test(test_tensors),        cmocka_unit_test(test_templates),
      cmocka_unit_test(test_answers),        cmocka_unit_test(test_draft_refusals),
      cmocka_unit_test(test_golden_answers), cmocka_unit_test(test_golden_refusals),
      cmocka_unit_test(test_golden_tables),  cmocka_unit_test(test_kept_keys),
      cmocka_unit_test(test_unread_keys),
  };
  return cmocka_run_group_tests(tests, test_dir_open, test_dir_close);
}
