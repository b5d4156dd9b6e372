/* LoRA adapters as files: what is written is read back to the bit, in both formats; what is malformed or not known is refused with a word on what is wrong. That other
 * programs take these files, and theirs are taken here, is tests/golden/test_adapters.c's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <penstock/engine.h>
#include <stdio.h>
#include <string.h>

#include "engine/gguf.h"
#include "engine/safetensors.h"
#include "support/lora.h"
#include "support/temp.h"
#include "support/tiny_model.h"

enum { EMBD = 64, FF = 96, KV = 32 };

static pst_error err;
static const pst_engine_model_info llama = {.architecture = "llama", .name = "tiny", .n_layers = 2, .head_dim = 16};

static void add(pst_engine_lora *lora, const char *name, int rank, int n_in, int n_out) {
  pst_engine_lora_target *t = NULL;
  assert_int_equal(pst_engine_lora_add(lora, pst_str_from(name), rank, n_in, n_out, &t, &err), 0);
  for (int i = 0; i < rank * n_in; i++) t->a[i] = test_tiny_element(name, 1, (uint64_t)i);
  for (int i = 0; i < rank * n_out; i++) t->b[i] = test_tiny_element(name, 2, (uint64_t)i);
}

static pst_engine_lora example(bool everywhere) {
  pst_engine_lora lora = {.alpha = 24};
  lora.architecture = pst_strdup("llama");
  add(&lora, "blk.0.attn_q.weight", 8, EMBD, EMBD);
  if (everywhere) add(&lora, "blk.1.attn_q.weight", 8, EMBD, EMBD);
  add(&lora, "blk.0.attn_k.weight", 8, EMBD, KV);
  add(&lora, "blk.1.attn_k.weight", 8, EMBD, KV);
  add(&lora, "blk.0.ffn_down.weight", 3, FF, EMBD);
  add(&lora, "blk.1.ffn_down.weight", 8, FF, EMBD);
  assert_int_equal(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_NAME, "orders \xC3\xA9", &err), 0);
  assert_int_equal(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_BASE, "00ff", &err), 0);
  assert_int_equal(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_PROMPT, "{\"layout\":\"plain\"}", &err), 0);
  return lora;
}

static void assert_same(const pst_engine_lora *x, const pst_engine_lora *y) {
  assert_string_equal(x->architecture, y->architecture);
  assert_true(x->alpha == y->alpha);
  test_lora_assert_same(x, y);
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES; k++)
    if (x->notes[k])
      assert_string_equal(x->notes[k], y->notes[k]);
    else
      assert_null(y->notes[k]);
}

static void test_gguf(void **state) {
  (void)state;
  pst_engine_lora made = example(false), read = {0};
  const char *path = test_temp_path(test_dir, "a.gguf");
  assert_int_equal(pst_engine_lora_write_gguf(&made, path, &err), 0);
  assert_int_equal(pst_engine_lora_read(path, NULL, &read, &err), 0);
  assert_same(&made, &read);
  assert_true(pst_engine_lora_scale(&read, &read.targets[0]) == 3.0);
  pst_engine_lora_done(&read);
  pst_engine_lora_done(&made);
  assert_int_equal(pst_engine_lora_write_gguf(&made, path, &err), PST_E_BAD_INPUT);
}

static char *file_text(const char *folder, const char *name) {
  char *path = pst_path_join(folder, name), *text = NULL;
  size_t n = 0;
  assert_int_equal(pst_file_read(path, 1 << 20, &text, &n, &err), 0);
  pst_free(path);
  return text;
}

static void test_peft(void **state) {
  (void)state;
  for (int everywhere = 0; everywhere < 2; everywhere++) {
    pst_engine_lora made = example(everywhere), read = {0};
    const char *path = test_temp_path(test_dir, everywhere ? "all" : "some");
    assert_int_equal(pst_engine_lora_write_peft(&made, &llama, path, &err), 0);
    assert_int_equal(pst_engine_lora_read(path, &llama, &read, &err), 0);
    assert_same(&made, &read);
    pst_engine_lora_done(&read);
    char *config = file_text(path, "adapter_config.json"), *weights = pst_path_join(path, "adapter_model.safetensors");
    assert_non_null(strstr(config, everywhere ? "\"q_proj\"" : "\"model.layers.0.self_attn.q_proj\""));
    assert_non_null(strstr(config, "\"model.layers.0.mlp.down_proj\": 3")); /* its rank */
    assert_int_equal(pst_engine_lora_read(weights, &llama, &read, &err), 0);
    assert_same(&made, &read);
    assert_int_equal(pst_engine_lora_write_peft(&made, &llama, path, &err), PST_E_EXISTS);
    pst_free(config);
    pst_free(weights);
    pst_engine_lora_done(&read);
    pst_engine_lora_done(&made);
  }
}

/* Row 2j + i of a head in the file is row i * 8 + j of transformers' heads of 16. */
static void test_pairs(void **state) {
  (void)state;
  pst_engine_lora made = example(true), read = {0};
  pst_engine_model_info qwen = llama;
  const char *path = test_temp_path(test_dir, "pairs");
  assert_int_equal(pst_engine_lora_write_peft(&made, &llama, path, &err), 0);
  qwen.architecture = "qwen3"; /* whose rows stand in the file as in transformers */
  assert_int_equal(pst_engine_lora_read(path, &qwen, &read, &err), 0);
  for (int row = 0; row < EMBD; row++) {
    int head = row / 16, i = row % 16 / 8, j = row % 8;
    assert_memory_equal(read.targets[0].b + (size_t)row * 8, made.targets[0].b + (size_t)(head * 16 + 2 * j + i) * 8,
                        8 * sizeof(float));
  }
  assert_memory_equal(read.targets[0].a, made.targets[0].a, 8 * EMBD * sizeof(float));
  pst_engine_lora_done(&read);
  pst_engine_lora_done(&made);
}

/* alpha over the root of the rank, where ranks differ: factors go into b. */
static void test_rslora(void **state) {
  (void)state;
  pst_engine_lora made = example(true), read = {0};
  const char *path = test_temp_path(test_dir, "rs");
  assert_int_equal(pst_engine_lora_write_peft(&made, &llama, path, &err), 0);
  char *text = file_text(path, "adapter_config.json"), *config = pst_path_join(path, "adapter_config.json");
  pst_buf out = PST_BUF_INIT;
  pst_buf_printf(&out, "{\"use_rslora\": true,%s", text + 1);
  assert_int_equal(pst_file_write_atomic(config, out.data, out.n, &err), 0);
  assert_int_equal(pst_engine_lora_read(path, &llama, &read, &err), 0);
  for (size_t i = 0; i < read.n_targets; i++) {
    const pst_engine_lora_target *t = &read.targets[i];
    double wanted = 24 / (t->rank == 3 ? 1.7320508075688772 : 2.8284271247461903);
    assert_true(made.targets[i].b[5] != 0);
    assert_true(fabs(pst_engine_lora_scale(&read, t) * (double)t->b[5] - wanted * (double)made.targets[i].b[5]) < 1e-5);
  }
  pst_buf_done(&out);
  pst_free(text);
  pst_free(config);
  pst_engine_lora_done(&read);
  pst_engine_lora_done(&made);
}

static void refuse_peft(const char *path, const char *config, int code, const char *word) {
  pst_engine_lora read = {0};
  char *name = pst_path_join(path, "adapter_config.json");
  assert_int_equal(pst_file_write_atomic(name, config, strlen(config), &err), 0);
  err = (pst_error)PST_ERROR_INIT;
  int got = pst_engine_lora_read(path, &llama, &read, &err);
  if (got != code || !strstr(err.message, word)) fail_msg("%s: %d %s", config, got, err.message);
  assert_int_equal(read.n_targets, 0);
  pst_free(name);
}

static void test_bad_peft(void **state) {
  (void)state;
  pst_engine_lora made = example(true), read = {0};
  const char *path = test_temp_path(test_dir, "bad");
  assert_int_equal(pst_engine_lora_write_peft(&made, &llama, path, &err), 0);
  static const char *const settings[] = {"\"use_dora\":true",
                                         "\"modules_to_save\":[\"lm_head\"]",
                                         "\"bias\":\"all\"",
                                         "\"alpha_pattern\":{\"q_proj\":1}",
                                         "\"init_lora_weights\":\"pissa_niter_4\"",
                                         "\"layer_replication\":[[0,1]]"};
  for (size_t i = 0; i < PST_ARRAY_LEN(settings); i++) {
    char config[160], word[40];
    snprintf(config, sizeof config, "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16,%s}", settings[i]);
    snprintf(word, sizeof word, "'%.*s'", (int)strcspn(settings[i] + 1, "\""), settings[i] + 1);
    refuse_peft(path, config, PST_E_UNSUPPORTED, word);
  }
  refuse_peft(path, "{\"peft_type\":\"IA3\"}", PST_E_UNSUPPORTED, "IA3");
  refuse_peft(path, "{\"peft_type\":\"LORA\",\"lora_alpha\":16}", PST_E_BAD_INPUT, "'r'");
  refuse_peft(path, "{\"peft_type\":\"LORA\",\"r\":8}", PST_E_BAD_INPUT, "lora_alpha");
  refuse_peft(path, "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":0}", PST_E_UNSUPPORTED, "does nothing");
  refuse_peft(path, "{", PST_E_BAD_INPUT, "");
  assert_int_equal(pst_engine_lora_read(path, NULL, &read, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_lora_read("adapter_model.bin", &llama, &read, &err), PST_E_UNSUPPORTED);
  assert_int_equal(pst_engine_lora_read(test_temp_path(test_dir, "none"), &llama, &read, &err), PST_E_NOT_FOUND);
  pst_engine_lora_done(&made);
}

static void refuse_tensors(const pst_engine_safetensors_item *items, size_t n, int code, const char *word) {
  static const char config[] = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":2}";
  pst_engine_lora read = {0};
  const char *path = test_temp_path(test_dir, "adapter_model.safetensors");
  test_temp_write(test_temp_path(test_dir, "adapter_config.json"), config, sizeof config - 1);
  assert_int_equal(pst_engine_safetensors_write(path, items, n, NULL, 0, &err), 0);
  err = (pst_error)PST_ERROR_INIT;
  int got = pst_engine_lora_read(path, &llama, &read, &err);
  if (got != code || !strstr(err.message, word)) fail_msg("%s: %d %s", word, got, err.message);
}

static void test_bad_tensors(void **state) {
  (void)state;
  static const float x[2 * EMBD] = {1}, odd[2 * EMBD] = {1.0f / 0.0f};
#define Q "base_model.model.model.layers.1.self_attn.q_proj."
  const pst_engine_safetensors_item a = {Q "lora_A.weight", {2, EMBD}, x}, b = {Q "lora_B.weight", {EMBD, 2}, x};
  refuse_tensors(&(pst_engine_safetensors_item){a.name, {2, EMBD}, x}, 1, PST_E_BAD_INPUT, "lora_B");
  refuse_tensors(&b, 1, PST_E_BAD_INPUT, "each needs its other");
  refuse_tensors(&b, 0, PST_E_BAD_INPUT, "0 tensors");
  refuse_tensors((pst_engine_safetensors_item[]){a, {b.name, {EMBD, 1}, x}}, 2, PST_E_BAD_INPUT, "fitting shapes");
  refuse_tensors((pst_engine_safetensors_item[]){a, {b.name, {EMBD, 2}, odd}}, 2, PST_E_BAD_INPUT, "not finite");
  refuse_tensors(
      (pst_engine_safetensors_item[]){{"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", {2, EMBD}, x},
                                      b},
      2, PST_E_UNSUPPORTED, "no linear layer");
  refuse_tensors((pst_engine_safetensors_item[]){{"base_model.model.lm_head.lora_A.weight", {2, EMBD}, x}}, 1,
                 PST_E_UNSUPPORTED, "lm_head");
  refuse_tensors((pst_engine_safetensors_item[]){a, b, {Q "lora_magnitude_vector", {1, EMBD}, x}}, 3, PST_E_UNSUPPORTED,
                 "magnitude");
#undef Q
}

/* One thing wrong with a GGUF adapter. */
typedef struct wrong {
  const char *type, *kind, *architecture; /* NULL: the key is left out */
  const char *extra_key;
  const char *a, *b; /* names; NULL: left out */
  uint64_t a_dims[2], b_dims[2];
  float alpha;
  int code;
  const char *word;
} wrong;

static void refuse_gguf(const wrong *x) {
  static const float zeros[256];
  const char *path = test_temp_path(test_dir, "wrong.gguf");
  pst_engine_gguf_writer *w = NULL;
  pst_engine_lora read = {0};
  assert_int_equal(pst_engine_gguf_writer_create(path, 32, &w, &err), 0);
  if (x->type) pst_engine_gguf_writer_put_str(w, "general.type", pst_str_from(x->type));
  if (x->kind) pst_engine_gguf_writer_put_str(w, "adapter.type", pst_str_from(x->kind));
  if (x->architecture) pst_engine_gguf_writer_put_str(w, "general.architecture", pst_str_from(x->architecture));
  if (x->extra_key) pst_engine_gguf_writer_put_u32(w, x->extra_key, 1);
  pst_engine_gguf_writer_put_f32(w, "adapter.lora.alpha", x->alpha);
  if (x->a) pst_engine_gguf_writer_add_tensor(w, pst_str_from(x->a), PST_TYPE_F32, 2, x->a_dims);
  if (x->b) pst_engine_gguf_writer_add_tensor(w, pst_str_from(x->b), PST_TYPE_F32, 2, x->b_dims);
  if (x->a) assert_int_equal(pst_engine_gguf_writer_write(w, zeros, x->a_dims[0] * x->a_dims[1] * 4, &err), 0);
  if (x->b) assert_int_equal(pst_engine_gguf_writer_write(w, zeros, x->b_dims[0] * x->b_dims[1] * 4, &err), 0);
  assert_int_equal(pst_engine_gguf_writer_finish(w, &err), 0);
  pst_engine_gguf_writer_free(w);
  err = (pst_error)PST_ERROR_INIT;
  int got = pst_engine_lora_read(path, NULL, &read, &err);
  if (got != x->code || !strstr(err.message, x->word)) fail_msg("%s: %d %s", x->word, got, err.message);
}

static void test_bad_gguf(void **state) {
  (void)state;
  static const char a[] = "blk.0.attn_q.weight.lora_a", b[] = "blk.0.attn_q.weight.lora_b";
  const wrong sound = {"adapter", "lora", "llama", NULL, a, b, {16, 2}, {2, 16}, 4, 0, ""};
  wrong x = sound;
#define WRONG(...)   \
  do {               \
    x = sound;       \
    __VA_ARGS__;     \
    refuse_gguf(&x); \
  } while (0)
  WRONG(x.type = "model", x.code = PST_E_BAD_INPUT, x.word = "no adapter");
  WRONG(x.type = NULL, x.code = PST_E_BAD_INPUT, x.word = "no adapter");
  WRONG(x.kind = "control_vector", x.code = PST_E_UNSUPPORTED, x.word = "control_vector");
  WRONG(x.architecture = NULL, x.code = PST_E_NOT_FOUND, x.word = "general.architecture");
  WRONG(x.extra_key = "adapter.alora.invocation_tokens", x.code = PST_E_UNSUPPORTED, x.word = "alora");
  WRONG(x.extra_key = "penstock.run", x.code = PST_E_BAD_INPUT, x.word = "penstock.run");
  WRONG(x.b = NULL, x.code = PST_E_BAD_INPUT, x.word = "lora_b");
  WRONG(x.a = NULL, x.code = PST_E_BAD_INPUT, x.word = "each needs its other");
  WRONG(x.a = NULL, x.b = NULL, x.code = PST_E_BAD_INPUT, x.word = "each needs its other");
  WRONG(x.b = "blk.0.attn_q.bias", x.code = PST_E_BAD_INPUT, x.word = "has no");
  WRONG(x.a = "output_norm.weight", x.code = PST_E_UNSUPPORTED, x.word = "output_norm.weight");
  WRONG(x.a = "token_embd.weight.lora_a", x.b = "token_embd.weight.lora_b", x.code = PST_E_UNSUPPORTED,
        x.word = "embeddings");
  WRONG(x.b_dims[0] = 3, x.code = PST_E_BAD_INPUT, x.word = "make no adapter");
  WRONG(x.alpha = 1.0f / 0.0f, x.code = PST_E_BAD_INPUT, x.word = "alpha");
#undef WRONG
}

static void test_add(void **state) {
  (void)state;
  pst_engine_lora lora = {0};
  assert_int_equal(pst_engine_lora_add(&lora, PST_STR("x"), 0, 4, 4, NULL, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_lora_add(&lora, PST_STR("x"), 1, 1 << 25, 4, NULL, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_lora_add(&lora, PST_STR("x"), 1, 4, 4, NULL, &err), 0);
  assert_int_equal(pst_engine_lora_add(&lora, PST_STR("x"), 1, 4, 4, NULL, &err), PST_E_BAD_INPUT);
  assert_true(pst_engine_lora_scale(&lora, &lora.targets[0]) == 1.0);
  pst_engine_lora_done(&lora);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_gguf, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_peft, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_pairs, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_rslora, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_bad_peft, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_bad_tensors, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_bad_gguf, test_dir_open, test_dir_close),
      cmocka_unit_test(test_add),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
