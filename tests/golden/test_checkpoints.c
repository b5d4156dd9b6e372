/* Checkpoints as `transformers` saves them and `tokenizers` writes them: folders with the config.json, tensor names and tokenizer.json of
 * tests/golden/checkpoints.json (tools/golden_checkpoints.py), whose weights are made from names. */
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

#include "engine/checkpoint.h"
#include "support/golden_model.h"
#include "support/temp.h"
#include "support/tiny_model.h"

enum { HEAD = 16 };

static pst_error err;

static pst_json_doc *read_golden(void) {
  pst_json_doc *doc = NULL;
  if (pst_json_parse_file("tests/golden/checkpoints.json", 1 << 20, &doc, &err))
    fail_msg("%s: %s", err.place, err.message);
  return doc;
}

static void put_file(const char *name, const void *data, size_t n) {
  char *path = pst_path_join(test_dir, name);
  assert_int_equal(pst_file_write_atomic(path, data, n, &err), 0);
  pst_free(path);
}

static void put_value(const char *name, const pst_json *value) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_put_value(&w, value);
  put_file(name, text.data, text.n);
  pst_buf_done(&text);
}

/* ---- weights ---- */

/* Where element i of the checkpoint's tensor stands in the file's. */
static size_t place_of(pst_str form, size_t i, size_t cols) {
  if (!pst_str_is(form, "halves")) return i;
  size_t row = i / cols, in_head = row % HEAD, half = HEAD / 2;
  return (row - in_head + in_head % half * 2 + in_head / half) * cols + i % cols;
}

typedef enum dtype { DTYPE_F32, DTYPE_BF16 } dtype;

static void put_tensor(const pst_json *row, uint64_t seed, dtype type, pst_buf *header, pst_buf *data) {
  const pst_json *shape = pst_json_at(row, 1);
  pst_str theirs = pst_json_str(pst_json_at(row, 0)), form = pst_json_str(pst_json_at(row, 3));
  char ours[96], dims[48];
  snprintf(ours, sizeof ours, "%.*s", (int)pst_json_str(pst_json_at(row, 2)).n, pst_json_str(pst_json_at(row, 2)).data);
  size_t n_dims = pst_json_size(shape), begin = data->n, rows = 1, n_printed = 0;
  size_t cols = (size_t)pst_json_int(pst_json_at(shape, n_dims - 1), 0);
  float mean = test_golden_mean(ours);
  for (size_t k = 0; k < n_dims; k++) {
    int n = (int)pst_json_int(pst_json_at(shape, k), 0);
    if (k + 1 < n_dims) rows *= (size_t)n;
    n_printed += (size_t)snprintf(dims + n_printed, sizeof dims - n_printed, "%s%d", k ? "," : "", n);
  }
  for (size_t i = 0; i < rows * cols; i++) {
    float x = mean + 0.25f * test_tiny_element(ours, seed, place_of(form, i, cols));
    if (pst_str_is(form, "less_one")) x -= 1;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += type == DTYPE_BF16 ? 0x8000 : 0;
    pst_buf_append(data, (const uint8_t *)&bits + (type == DTYPE_BF16 ? 2 : 0), type == DTYPE_BF16 ? 2 : 4);
  }
  pst_buf_printf(header, "%s\"%.*s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                 header->n > 9 ? "," : "", (int)theirs.n, theirs.data, type == DTYPE_BF16 ? "BF16" : "F32", dims, begin,
                 data->n);
}

static void put_weights(const pst_json *tensors, uint64_t seed, dtype type) {
  pst_buf header = PST_BUF_INIT, data = PST_BUF_INIT;
  for (int i = 0; i < 8; i++) pst_buf_putc(&header, 0);
  pst_buf_putc(&header, '{');
  for (pst_json_iter it = pst_json_iterate(tensors); pst_json_next(&it);)
    put_tensor(it.value, seed, type, &header, &data);
  pst_buf_putc(&header, '}');
  while (header.n % 8) pst_buf_putc(&header, ' ');
  for (int i = 0; i < 8; i++) header.data[i] = (char)(uint8_t)((uint64_t)(header.n - 8) >> (8 * i));
  pst_buf_append(&header, data.data, data.n);
  put_file("model.safetensors", header.data, header.n);
  pst_buf_done(&header);
  pst_buf_done(&data);
}

/* A tokenizer.json with one of the golden file's vocabularies put into its model. */
static void put_tokenizer(const pst_json *golden, const pst_json *entry) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  const pst_json *vocabulary =
      pst_json_get_str(pst_json_get(golden, "vocabularies"), pst_json_str(pst_json_get(entry, "vocabulary")));
  pst_json_begin_object(&w);
  for (pst_json_iter it = pst_json_iterate(pst_json_get(entry, "tokenizer")); pst_json_next(&it);) {
    pst_json_key_str(&w, it.key);
    if (!pst_str_is(it.key, "model")) {
      pst_json_put_value(&w, it.value);
      continue;
    }
    pst_json_begin_object(&w);
    for (pst_json_iter m = pst_json_iterate(it.value); pst_json_next(&m);) {
      pst_json_key_str(&w, m.key);
      pst_json_put_value(&w, m.value);
    }
    pst_json_key(&w, "vocab");
    pst_json_put_value(&w, pst_json_get(vocabulary, "vocab"));
    pst_json_key(&w, "merges");
    pst_json_put_value(&w, pst_json_get(vocabulary, "merges"));
    pst_json_end_object(&w);
  }
  pst_json_end_object(&w);
  put_file("tokenizer.json", text.data, text.n);
  pst_buf_done(&text);
}

/* ---- models ---- */

static void test_models_compute_what_transformers_does(void **state) {
  (void)state;
  pst_json_doc *doc = read_golden();
  const pst_json *root = pst_json_root(doc), *tiny = pst_json_get(pst_json_get(root, "tokenizers"), "tiny");
  int n = 0;
  for (pst_json_iter it = pst_json_iterate(pst_json_get(root, "models")); pst_json_next(&it); n++) {
    char name[32];
    snprintf(name, sizeof name, "%.*s", (int)it.key.n, it.key.data);
    pst_json_doc *numbers = test_golden_read(name);
    const pst_json *golden = pst_json_root(numbers);
    put_value("config.json", pst_json_get(it.value, "config"));
    put_tokenizer(root, tiny);
    put_weights(pst_json_get(it.value, "tensors"), (uint64_t)pst_json_int(pst_json_get(golden, "seed"), 0), DTYPE_F32);
    test_golden_distance d = test_golden_measure(golden, test_dir);
    if (!test_golden_within(golden, d)) fail_msg("%s: mean %.1e, worst %.1e", name, d.mean, d.worst);
    pst_json_free(numbers);
  }
  assert_int_equal(n, 14);
  pst_json_free(doc);
}

/* A folder in BF16, as most are published, and the GGUF file made of it: the same numbers. */
static void test_a_folder_becomes_a_file(void **state) {
  (void)state;
  pst_json_doc *doc = read_golden(), *numbers = test_golden_read("gemma3");
  const pst_json *root = pst_json_root(doc), *of = pst_json_get(pst_json_get(root, "models"), "gemma3");
  put_value("config.json", pst_json_get(of, "config"));
  put_tokenizer(root, pst_json_get(pst_json_get(root, "tokenizers"), "tiny"));
  put_weights(pst_json_get(of, "tensors"), (uint64_t)pst_json_int(pst_json_get(pst_json_root(numbers), "seed"), 0),
              DTYPE_BF16);
  char *file = pst_path_join(test_dir, "made.gguf");
  if (pst_engine_quantize(test_dir, file, "BF16", NULL, NULL, &err)) fail_msg("%s: %s", err.place, err.message);
  test_golden_distance folder = test_golden_measure(pst_json_root(numbers), test_dir);
  test_golden_distance made = test_golden_measure(pst_json_root(numbers), file);
  assert_true(folder.mean > 0 && folder.mean < 0.2);
  assert_true(folder.mean == made.mean && folder.worst == made.worst);
  pst_free(file);
  pst_json_free(numbers);
  pst_json_free(doc);
}

/* ---- tokenizers ---- */

static void check_ids(const char *name, const pst_engine_model *model, pst_str text, const pst_json *want) {
  pst_engine_tokens got = {0};
  assert_int_equal(pst_engine_tokenize(model, text, false, true, &got, &err), 0);
  bool same = got.n == pst_json_size(want);
  for (size_t i = 0; i < got.n && same; i++) same = got.ids[i] == pst_json_int(pst_json_at(want, i), -1);
  if (!same) {
    for (size_t i = 0; i < got.n; i++) print_error("%d ", got.ids[i]);
    print_error("\n");
    fail_msg("%s: '%.*s'", name, (int)text.n, text.data);
  }
  pst_engine_tokens_done(&got);
}

static void put_small_model(int n_vocab) {
  static const char config[] =
      "{\"model_type\":\"llama\",\"hidden_size\":32,\"intermediate_size\":32,\"num_hidden_layers\":1,"
      "\"num_attention_heads\":2,\"max_position_embeddings\":64,\"tie_word_embeddings\":true,\"vocab_size\":%d}";
  pst_buf text = PST_BUF_INIT;
  pst_buf_printf(&text, config, n_vocab);
  put_file("config.json", text.data, text.n);
  const struct {
    const char *name;
    int rows, cols;
  } tensors[] = {
      {"model.embed_tokens.weight", n_vocab, 32},         {"model.norm.weight", 0, 32},
      {"model.layers.0.input_layernorm.weight", 0, 32},   {"model.layers.0.post_attention_layernorm.weight", 0, 32},
      {"model.layers.0.self_attn.q_proj.weight", 32, 32}, {"model.layers.0.self_attn.k_proj.weight", 32, 32},
      {"model.layers.0.self_attn.v_proj.weight", 32, 32}, {"model.layers.0.self_attn.o_proj.weight", 32, 32},
      {"model.layers.0.mlp.gate_proj.weight", 32, 32},    {"model.layers.0.mlp.up_proj.weight", 32, 32},
      {"model.layers.0.mlp.down_proj.weight", 32, 32}};
  pst_buf_clear(&text);
  pst_buf_putc(&text, '[');
  for (size_t i = 0; i < PST_ARRAY_LEN(tensors); i++) {
    pst_buf_printf(&text, "%s[\"%s\",", i ? "," : "", tensors[i].name);
    if (tensors[i].rows)
      pst_buf_printf(&text, "[%d,%d]", tensors[i].rows, tensors[i].cols);
    else
      pst_buf_printf(&text, "[%d]", tensors[i].cols);
    pst_buf_printf(&text, ",\"%s\",\"same\"]", tensors[i].name);
  }
  pst_buf_putc(&text, ']');
  pst_json_doc *rows = NULL;
  assert_int_equal(pst_json_parse(text.data, text.n, "rows", &rows, &err), 0);
  put_weights(pst_json_root(rows), 1, DTYPE_F32);
  pst_json_free(rows);
  pst_buf_done(&text);
}

static void test_tokenizers_give_the_library_s_ids(void **state) {
  (void)state;
  pst_json_doc *doc = read_golden();
  const pst_json *root = pst_json_root(doc), *texts = pst_json_get(root, "texts");
  int n = 0;
  put_small_model(600);
  for (pst_json_iter it = pst_json_iterate(pst_json_get(root, "tokenizers")); pst_json_next(&it); n++) {
    char name[32];
    pst_engine_model *model = NULL;
    snprintf(name, sizeof name, "%.*s", (int)it.key.n, it.key.data);
    put_tokenizer(root, it.value);
    if (pst_engine_model_open(test_dir, 1, &model, &err)) fail_msg("%s: %s: %s", name, err.place, err.message);
    for (size_t i = 0; i < pst_json_size(texts); i++)
      check_ids(name, model, pst_json_str(pst_json_at(texts, i)), pst_json_at(pst_json_get(it.value, "ids"), i));
    pst_engine_model_unref(model);
  }
  assert_int_equal(n, 12);
  pst_json_free(doc);
}

/* ---- settings ---- */

static int opens_with(const char *file, const char *text) {
  pst_engine_model *model = NULL;
  put_file(file, text, strlen(text));
  int code = pst_engine_model_open(test_dir, 1, &model, &err);
  pst_engine_model_unref(model);
  return code;
}

static void test_ends_and_template(void **state) {
  (void)state;
  pst_json_doc *doc = read_golden();
  const pst_json *root = pst_json_root(doc);
  pst_engine_model *model = NULL;
  static const char settings[] =
      "{\"bos_token\":\"<|begin|>\",\"eos_token\":{\"content\":\"<|im_end|>\"},"
      "\"chat_template\":[{\"name\":\"tools\",\"template\":\"x\"},{\"name\":\"default\",\"template\":\"{{ 'hi' }}\"}]}";
  put_small_model(600);
  put_tokenizer(root, pst_json_get(pst_json_get(root, "tokenizers"), "qwen2"));
  put_file("tokenizer_config.json", settings, sizeof settings - 1);
  assert_int_equal(pst_engine_model_open(test_dir, 1, &model, &err), 0);
  const pst_engine_model_info *info = pst_engine_model_get_info(model);
  assert_int_equal(info->bos, 420);
  assert_int_equal(info->eos, 421);
  assert_true(info->has_template);
  pst_engine_tokens got = {0};
  pst_buf text = PST_BUF_INIT;
  pst_chat chat = {0};
  assert_int_equal(pst_engine_render_chat(model, &chat, &got, &text, &err), 0);
  assert_string_equal(pst_buf_text(&text), "hi");
  pst_engine_model_unref(model);
  put_file("chat_template.jinja", "{{ 'newer' }}", 13);
  assert_int_equal(pst_engine_model_open(test_dir, 1, &model, &err), 0);
  assert_int_equal(pst_engine_render_chat(model, &chat, &got, &text, &err), 0);
  assert_non_null(strstr(pst_buf_text(&text), "newer"));
  pst_engine_model_unref(model);
  pst_engine_tokens_done(&got);
  pst_buf_done(&text);
  pst_json_free(doc);
}

/* A setting that would change what is computed, and is not translated, is refused by its name. */
static void test_settings_are_refused_by_name(void **state) {
  (void)state;
  static const char base[] =
      "\"model_type\":\"%s\",\"hidden_size\":32,\"intermediate_size\":32,\"num_hidden_layers\":1,"
      "\"num_attention_heads\":2,\"max_position_embeddings\":64,\"vocab_size\":600,\"sliding_window\":4";
  static const struct {
    const char *type, *setting, *named;
  } cases[] = {
      {"qwen2", "\"use_sliding_window\":true", "use_sliding_window"},
      {"qwen2", "\"hidden_act\":\"gelu\"", "hidden_act"},
      {"mistral", "\"x\":1", "sliding_window"},
      {"llama", "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}", "dynamic"},
      {"llama", "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2}", "rope_scaling"},
      {"llama", "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}", "original_max_position_embeddings"},
      {"llama", "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"mscale\":1}", "mscale"},
      {"llama", "\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
      {"llama", "\"head_dim\":15", "head_dim"},
      {"llama", "\"num_key_value_heads\":7", "num_key_value_heads"},
      {"llama", "\"num_attention_heads\":\"x\"", "num_attention_heads"},
      {"llama", "\"vocab_size\":0", "vocab_size"},
      {"qwen3", "\"layer_types\":[\"sliding_attention\"]", "layer_types"},
      {"smollm3", "\"no_rope_layers\":[0]", "no_rope_layers"},
      {"gemma2", "\"query_pre_attn_scalar\":7", "query_pre_attn_scalar"},
      {"gemma3_text", "\"sliding_window_pattern\":2", "sliding_window_pattern"},
      {"gemma3_text", "\"final_logit_softcapping\":30", "final_logit_softcapping"},
      {"gemma3_text", "\"use_bidirectional_attention\":true", "use_bidirectional_attention"},
      {"gemma4_text", "\"layer_types\":[\"chunked_attention\"]", "layer_types"},
      {"gemma4_text", "\"layer_types\":[\"full_attention\"],\"num_key_value_heads\":1", "one kind"},
      {"gemma4_text", "\"layer_types\":[\"full_attention\"]", "num_key_value_heads"},
      {"gemma4_text", "\"use_bidirectional_attention\":\"all\"", "use_bidirectional_attention"},
      {"gemma4_text", "\"attention_bias\":true", "attention_bias"},
      {"t5", "\"x\":1", "t5"},
  };
  pst_json_doc *doc = read_golden();
  const pst_json *root = pst_json_root(doc);
  put_small_model(600);
  put_tokenizer(root, pst_json_get(pst_json_get(root, "tokenizers"), "gpt-2"));
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    pst_buf text = PST_BUF_INIT;
    pst_buf_printf(&text, "{%s,", cases[i].setting); /* of a key that stands twice the first counts */
    pst_buf_printf(&text, base, cases[i].type);
    pst_buf_putc(&text, '}');
    assert_true(opens_with("config.json", pst_buf_text(&text)) < 0);
    if (!strstr(err.message, cases[i].named)) fail_msg("%s: %s", cases[i].setting, err.message);
    pst_buf_done(&text);
  }
  pst_json_free(doc);
}

static void test_tokenizers_are_refused_by_name(void **state) {
  (void)state;
  static const struct {
    const char *text, *named;
  } cases[] = {
      {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{\"a\":0}}}", "Unigram"},
      {"{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", "vocabulary"},
      {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}", "pre_tokenizer"},
      {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"end_of_word_suffix\":\"</w>\"}}", "end_of_word_suffix"},
      {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"byte_fallback\":true}}", "spaces"},
      {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999}}}", "id"},
      {"{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}",
       "merge 0"},
      {"{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}",
       "pre_tokenizer"},
      {"{\"added_tokens\":[{\"id\":1,\"content\":\"x\",\"rstrip\":true}],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}",
       "added_tokens"},
      {"[]", "BPE"},
  };
  pst_json_doc *doc = read_golden();
  put_small_model(600);
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    assert_true(opens_with("tokenizer.json", cases[i].text) < 0);
    if (!strstr(err.message, cases[i].named)) fail_msg("%s: %s", cases[i].text, err.message);
  }
  pst_json_free(doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_models_compute_what_transformers_does, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_a_folder_becomes_a_file, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_tokenizers_give_the_library_s_ids, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_ends_and_template, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_settings_are_refused_by_name, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_tokenizers_are_refused_by_name, test_dir_open, test_dir_close),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
