/* Folders with config.json, tokenizer.json and model.safetensors: read like the GGUF file made of them, and refused with a word on what is wrong. Real values are
 * tests/golden/test_minilm.c's, whose model was such a folder. */
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
#include "support/temp.h"

enum { EMBD = 32, FF = 64, VOCAB = 9, CONTEXT = 16, MAX_HEADER = 16384 };

static const char CONFIG[] =
    "{\"model_type\":\"bert\",\"hidden_size\":32,\"intermediate_size\":64,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":4,\"max_position_embeddings\":16,\"type_vocab_size\":2,\"hidden_act\":\"gelu\","
    "\"layer_norm_eps\":1e-12,\"position_embedding_type\":\"absolute\"}";
static const char TOKENIZER[] =
    "{\"added_tokens\":[{\"id\":0,\"content\":\"[PAD]\",\"special\":true},{\"id\":1,\"content\":\"[UNK]\",\"special\":true},"
    "{\"id\":2,\"content\":\"[CLS]\",\"special\":true},{\"id\":3,\"content\":\"[SEP]\",\"special\":true}],"
    "\"normalizer\":{\"type\":\"BertNormalizer\",\"clean_text\":true,\"handle_chinese_chars\":true,\"strip_accents\":null,"
    "\"lowercase\":true},\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"[CLS]\"}},"
    "{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"[SEP]\"}}]},"
    "\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"[UNK]\",\"continuing_subword_prefix\":\"##\","
    "\"max_input_chars_per_word\":100,\"vocab\":{\"[PAD]\":0,\"[UNK]\":1,\"[CLS]\":2,\"[SEP]\":3,\"hel\":4,\"##lo\":5,"
    "\"world\":6,\"!\":7,\"##a\":8}}}";

/* What is different about a folder. */
typedef struct folder {
  const char *config, *tokenizer; /* NULL: as above */
  const char *pooling;            /* NULL: no 1_Pooling/config.json */
  const char *drop;               /* a tensor that is left out */
  const char *extra;              /* one more tensor, or the same name again */
  const char *from, *to;          /* text in the header that is replaced by text of the same length */
  size_t cut;                     /* bytes missing at the end */
  bool no_weights, odd;           /* odd: weights begin at an odd byte */
  int n_files;                    /* 0: one, without an index */
  const char *index;              /* NULL: as it should be */
} folder;

static pst_error err;

static void put_file(const char *name, const void *data, size_t n) {
  char *path = pst_path_join(test_dir, name);
  assert_int_equal(pst_file_write_atomic(path, data, n, &err), 0);
  pst_free(path);
}

/* A safetensors file in the making: number `file` of the folder's, which has every n-th tensor. The values are those of one file with all. */
typedef struct weights {
  const folder *f;
  int file, n_tensors;
  char header[MAX_HEADER], index[MAX_HEADER];
  size_t header_n, data_n, index_n, n_values;
  float data[65536];
} weights;

static void add(weights *w, const char *name, size_t rows, size_t cols) {
  size_t n = PST_MAX(rows, (size_t)1) * cols;
  if (w->f->drop && !strcmp(w->f->drop, name)) return;
  assert_true(w->data_n + n <= PST_ARRAY_LEN(w->data));
  size_t first = w->n_values;
  w->n_values += n;
  if (w->f->n_files) {
    int file = w->n_tensors++ % w->f->n_files;
    if (file != w->file) return;
    w->index_n += (size_t)snprintf(w->index + w->index_n, sizeof w->index - w->index_n,
                                   "%s\"%s\":\"part-%d.safetensors\"", w->index_n ? "," : "", name, file);
  }
  char shape[48];
  snprintf(shape, sizeof shape, rows ? "%zu,%zu" : "%zu", rows ? rows : cols, cols);
  w->header_n += (size_t)snprintf(w->header + w->header_n, sizeof w->header - w->header_n,
                                  ",\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", name, shape,
                                  4 * w->data_n, 4 * (w->data_n + n));
  size_t length = strlen(name);
  float mean = length > 16 && !strcmp(name + length - 16, "LayerNorm.weight") ? 1.0f : 0.0f;
  for (size_t i = first; i < first + n; i++)
    w->data[w->data_n++] = mean + 0.3f * sinf(1.7f * (float)i + (float)(i % 13));
}

static void add_linear(weights *w, const char *name, size_t rows, size_t cols) {
  char full[96];
  snprintf(full, sizeof full, "bert.encoder.layer.0.%s.weight", name);
  add(w, full, rows, cols);
  snprintf(full, sizeof full, "bert.encoder.layer.0.%s.bias", name);
  add(w, full, 0, rows ? rows : cols);
}

static void write_file(const folder *f, int file, pst_buf *index) {
  static weights w;
  memset(&w, 0, sizeof w);
  w.f = f;
  w.file = file;
  w.header_n = (size_t)snprintf(w.header, sizeof w.header, "{\"__metadata__\":{\"format\":\"pt\"}");
  add(&w, "bert.embeddings.word_embeddings.weight", VOCAB, EMBD);
  add(&w, "bert.embeddings.position_embeddings.weight", CONTEXT, EMBD);
  add(&w, "bert.embeddings.token_type_embeddings.weight", 2, EMBD);
  add(&w, "bert.embeddings.LayerNorm.weight", 0, EMBD);
  add(&w, "bert.embeddings.LayerNorm.bias", 0, EMBD);
  add_linear(&w, "attention.self.query", EMBD, EMBD);
  add_linear(&w, "attention.self.key", EMBD, EMBD);
  add_linear(&w, "attention.self.value", EMBD, EMBD);
  add_linear(&w, "attention.output.dense", EMBD, EMBD);
  add_linear(&w, "attention.output.LayerNorm", 0, EMBD);
  add_linear(&w, "intermediate.dense", FF, EMBD);
  add_linear(&w, "output.dense", EMBD, FF);
  add_linear(&w, "output.LayerNorm", 0, EMBD);
  add(&w, "bert.pooler.dense.weight", EMBD, EMBD); /* of no use */
  if (f->extra) add(&w, f->extra, 2, EMBD);
  w.header[w.header_n++] = '}';
  while (w.header_n % 8 != (f->odd ? 1 : 0)) w.header[w.header_n++] = ' ';
  if (f->from) {
    char *at = strstr(w.header, f->from);
    assert_true(at && strlen(f->from) == strlen(f->to));
    memcpy(at, f->to, strlen(f->to));
  }
  pst_buf out = PST_BUF_INIT;
  for (size_t i = 0; i < 8; i++) pst_buf_putc(&out, (char)(uint8_t)((uint64_t)w.header_n >> (8 * i)));
  pst_buf_append(&out, w.header, w.header_n);
  pst_buf_append(&out, w.data, 4 * w.data_n);
  char name[32];
  snprintf(name, sizeof name, "part-%d.safetensors", file);
  put_file(f->n_files ? name : "model.safetensors", out.data, out.n - f->cut);
  pst_buf_printf(index, "%s%s", file ? "," : "", w.index);
  pst_buf_done(&out);
}

static void write_weights(const folder *f) {
  pst_buf index = PST_BUF_INIT;
  pst_buf_append_str(&index, PST_STR("{\"metadata\":{\"total_size\":1},\"weight_map\":{"));
  for (int i = 0; i < PST_MAX(f->n_files, 1); i++) write_file(f, i, &index);
  pst_buf_append_str(&index, PST_STR("}}"));
  if (f->index)
    put_file("model.safetensors.index.json", f->index, strlen(f->index));
  else if (f->n_files)
    put_file("model.safetensors.index.json", index.data, index.n);
  pst_buf_done(&index);
}

static void write_folder(const folder *f) {
  test_temp_remove(test_dir);
  test_dir = test_temp_dir();
  const char *config = f->config ? f->config : CONFIG, *tokenizer = f->tokenizer ? f->tokenizer : TOKENIZER;
  put_file("config.json", config, strlen(config));
  put_file("tokenizer.json", tokenizer, strlen(tokenizer));
  if (f->pooling) {
    char *pooling = pst_path_join(test_dir, "1_Pooling");
    assert_int_equal(pst_dir_make(pooling, &err), 0);
    pst_free(pooling);
    put_file("1_Pooling/config.json", f->pooling, strlen(f->pooling));
  }
  if (!f->no_weights) write_weights(f);
}

static void embed(const char *path, const char *text, float vector[EMBD], pst_engine_tokens *tokens) {
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  tokens->n = 0;
  if (pst_engine_model_open(path, 1, &model, &err) || pst_engine_create(model, NULL, &engine, &err) ||
      pst_engine_embed_tokenize(model, pst_str_from(text), tokens, &err) ||
      pst_engine_embed_wait(engine, NULL, tokens->ids, &tokens->n, 1, vector, &err))
    fail_msg("%s: %s", err.place, err.message);
  pst_engine_free(engine);
  pst_engine_model_unref(model);
}

static void test_folder_and_file_agree(void **state) {
  (void)state;
  static const int32_t want[] = {2, 4, 5, 6, 7, 1, 3}; /* [CLS] hel ##lo world ! [UNK] [SEP] */
  static const char text[] = "H\xC3\xA9llo, WORLD! zzz";
  static const int32_t all[] = {2, 4, 5, 1, 6, 7, 1, 3};
  float folder_vector[EMBD], file_vector[EMBD], cls_vector[EMBD];
  pst_engine_tokens tokens = {NULL, 0, 0};
  write_folder(&(folder){0});
  embed(test_dir, "hello world! zzz", folder_vector, &tokens);
  assert_int_equal(tokens.n, PST_ARRAY_LEN(want));
  assert_memory_equal(tokens.ids, want, sizeof want);
  write_folder(&(folder){.odd = true});
  embed(test_dir, "hello world! zzz", file_vector, &tokens);
  assert_memory_equal(folder_vector, file_vector, sizeof folder_vector);
  write_folder(&(folder){.n_files = 3});
  embed(test_dir, "hello world! zzz", file_vector, &tokens);
  assert_memory_equal(folder_vector, file_vector, sizeof folder_vector);
  const char *file = test_temp_path(test_dir, "made.gguf");
  assert_int_equal(pst_engine_quantize(test_dir, file, "F32", NULL, NULL, &err), 0);
  embed(file, "hello world! zzz", file_vector, &tokens);
  assert_memory_equal(folder_vector, file_vector, sizeof folder_vector);
  embed(file, text, file_vector, &tokens); /* accents and case are gone, the comma is unknown */
  assert_int_equal(tokens.n, PST_ARRAY_LEN(all));
  assert_memory_equal(tokens.ids, all, sizeof all);
  write_folder(&(folder){.pooling = "{\"pooling_mode_cls_token\":true,\"pooling_mode_mean_tokens\":false}"});
  embed(test_dir, "hello world! zzz", cls_vector, &tokens);
  assert_memory_not_equal(folder_vector, cls_vector, sizeof folder_vector);
  write_folder(&(folder){.pooling = "{\"pooling_mode\":\"cls\"}"});
  embed(test_dir, "hello world! zzz", file_vector, &tokens);
  assert_memory_equal(cls_vector, file_vector, sizeof cls_vector);
  pst_engine_tokens_done(&tokens);
}

static void test_inspected(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  write_folder(&(folder){0});
  assert_int_equal(pst_engine_inspect(test_dir, 0, &out, &err), 0);
  assert_non_null(strstr(pst_buf_text(&out), "\"runs\": true"));
  assert_non_null(strstr(pst_buf_text(&out), "\"n_dims\": 32"));
  assert_int_equal(pst_engine_check_weights(test_dir, NULL, &err), 0);
  pst_buf_done(&out);
}

static void refuse(const folder *f, int code, const char *word) {
  pst_engine_model *model = NULL;
  write_folder(f);
  int got = pst_engine_model_open(test_dir, 1, &model, &err);
  if (got != code || !strstr(err.message, word)) fail_msg("%d '%s', expected %d with %s", got, err.message, code, word);
}

/* CONFIG or TOKENIZER with one thing changed. */
static const char *changed(const char *text, const char *from, const char *to) {
  static char out[4096];
  const char *at = strstr(text, from);
  assert_non_null(at);
  snprintf(out, sizeof out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
  return out;
}

static void test_settings(void **state) {
  (void)state;
  refuse(&(folder){.config = "{"}, PST_E_BAD_INPUT, "");
  refuse(&(folder){.config = changed(CONFIG, "\"bert\"", "\"roberta\"")}, PST_E_UNSUPPORTED, "roberta");
  refuse(&(folder){.config = changed(CONFIG, "\"hidden_size\"", "\"size\"")}, PST_E_BAD_INPUT, "hidden_size");
  refuse(&(folder){.config = changed(CONFIG, "\"gelu\"", "\"relu\"")}, PST_E_UNSUPPORTED, "hidden_act");
  refuse(&(folder){.config = changed(CONFIG, "absolute", "relative_key")}, PST_E_UNSUPPORTED,
         "position_embedding_type");
  refuse(&(folder){.config = changed(CONFIG, "1e-12", "\"x\"")}, PST_E_BAD_INPUT, "layer_norm_eps");
  refuse(&(folder){.config = changed(CONFIG, "\"hidden_act\"", "\"is_decoder\":true,\"hidden_act\"")},
         PST_E_UNSUPPORTED, "is_decoder");
  refuse(&(folder){.config = changed(CONFIG, "\"hidden_size\":32", "\"hidden_size\":64")}, PST_E_BAD_INPUT, "shape");
  refuse(&(folder){.pooling = "{\"pooling_mode_max_tokens\":true}"}, PST_E_UNSUPPORTED, "pooling_mode");
  refuse(&(folder){.pooling = "{\"pooling_mode_cls_token\":true,\"pooling_mode_mean_tokens\":true}"}, PST_E_UNSUPPORTED,
         "pooling_mode");
}

static void test_tokenizers(void **state) {
  (void)state;
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "\"WordPiece\"", "\"BPE\"")}, PST_E_UNSUPPORTED, "BPE");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "\"##\"", "\"@@\"")}, PST_E_UNSUPPORTED,
         "continuing_subword_prefix");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "BertNormalizer", "Lowercase")}, PST_E_UNSUPPORTED, "type");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "BertPreTokenizer", "Whitespace")}, PST_E_UNSUPPORTED, "type");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "\"clean_text\":true", "\"clean_text\":false")}, PST_E_UNSUPPORTED,
         "clean_text");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "TemplateProcessing", "ByteLevel")}, PST_E_UNSUPPORTED,
         "post_processor");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "\"##a\":8", "\"##a\":9")}, PST_E_BAD_INPUT, "id 8");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "\"##a\":8", "\"##a\":-8")}, PST_E_BAD_INPUT, "-8");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "\"##a\":8", "\"##a\":99999999999")}, PST_E_BAD_INPUT, "id");
  refuse(&(folder){.tokenizer = changed(TOKENIZER, "{\"id\":\"[SEP]\"}", "{\"id\":\"[END]\"}")}, PST_E_BAD_INPUT,
         "[END]");
}

static void test_tensors(void **state) {
  (void)state;
  refuse(&(folder){.no_weights = true}, PST_E_NOT_FOUND, "");
  refuse(&(folder){.drop = "bert.encoder.layer.0.output.dense.bias"}, PST_E_BAD_INPUT, "ffn_down.bias");
  refuse(&(folder){.extra = "bert.encoder.layer.0.adapter.weight"}, PST_E_UNSUPPORTED, "adapter");
  refuse(&(folder){.extra = "bert.encoder.layer.1.output.dense.weight"}, PST_E_UNSUPPORTED, "blk.1");
  refuse(&(folder){.extra = "bert.encoder.layer.00.output.dense.bias"}, PST_E_BAD_INPUT, "ffn_down.bias"); /* twice */
  refuse(&(folder){.from = "\"F32\"", .to = "\"F33\""}, PST_E_UNSUPPORTED, "F33");
  refuse(&(folder){.from = "\"F32\"", .to = "\"I32\""}, PST_E_UNSUPPORTED, "F32, F16 or BF16");
  refuse(&(folder){.from = "\"F32\"", .to = "\"F16\""}, PST_E_BAD_INPUT, "bytes that its shape");
  refuse(&(folder){.from = "[9,32]", .to = "[0,32]"}, PST_E_BAD_INPUT, "dimension");
  refuse(&(folder){.from = "[9,32]", .to = "[9,-2]"}, PST_E_BAD_INPUT, "dimension");
  refuse(&(folder){.from = "[0,1152]", .to = "[2,1150]"}, PST_E_BAD_INPUT, "bytes that its shape");
  refuse(&(folder){.from = "[0,1152]", .to = "[-1,115]"}, PST_E_BAD_INPUT, "outside the file");
  refuse(&(folder){.cut = 4}, PST_E_BAD_INPUT, "outside the file");
  put_file("model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10);
  pst_engine_model *model = NULL;
  assert_int_equal(pst_engine_model_open(test_dir, 1, &model, &err), PST_E_BAD_INPUT);
  put_file("model.safetensors", "\x02", 1);
  assert_int_equal(pst_engine_model_open(test_dir, 1, &model, &err), PST_E_BAD_INPUT);
  put_file("model.safetensors", "\x02\0\0\0\0\0\0\0[]", 10);
  assert_int_equal(pst_engine_model_open(test_dir, 1, &model, &err), PST_E_BAD_INPUT);
}

/* The index of a folder with two files, with one thing changed. */
static const char *changed_index(const char *from, const char *to) {
  static char out[MAX_HEADER];
  size_t n = 0;
  char *text = NULL;
  write_folder(&(folder){.n_files = 2});
  char *path = pst_path_join(test_dir, "model.safetensors.index.json");
  assert_int_equal(pst_file_read(path, MAX_HEADER, &text, &n, &err), 0);
  const char *at = strstr(text, from);
  assert_non_null(at);
  snprintf(out, sizeof out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
  pst_free(text);
  pst_free(path);
  return out;
}

static void refuse_index(const char *index, int code, const char *word) {
  refuse(&(folder){.n_files = 2, .index = index}, code, word);
}

static void test_several_files(void **state) {
  (void)state;
  refuse_index("{}", PST_E_BAD_INPUT, "weight_map");
  refuse_index("{\"weight_map\":{}}", PST_E_BAD_INPUT, "weight_map");
  refuse_index("{\"weight_map\":[1]}", PST_E_BAD_INPUT, "weight_map");
  refuse_index("{\"weight_map\":{\"a\":1}}", PST_E_BAD_INPUT, "no name of a file");
  refuse_index("{\"weight_map\":{\"a\":\"../a\"}}", PST_E_BAD_INPUT, "no name of a file");
  refuse_index("{\"weight_map\":{\"a\":\"a\\u0000\"}}", PST_E_BAD_INPUT, "no name of a file");
  refuse_index("{\"weight_map\":{\"a\":\"absent.safetensors\"}}", PST_E_NOT_FOUND, "");
  refuse_index(changed_index("part-1.safetensors", "part-0.safetensors"), PST_E_BAD_INPUT,
               "which the index does not say");
  refuse_index(changed_index("bert.embeddings.word_embeddings.weight", "bert.other"), PST_E_BAD_INPUT,
               "which the index does not say");
  refuse_index(changed_index("\"bert.embeddings.word_embeddings.weight\"",
                             "\"bert.other\":\"part-0.safetensors\",\"bert.embeddings.word_embeddings.weight\""),
               PST_E_BAD_INPUT, "the index names");
  refuse(&(folder){.n_files = 2, .cut = 4}, PST_E_BAD_INPUT, "outside the file");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_folder_and_file_agree),
                                     cmocka_unit_test(test_inspected),
                                     cmocka_unit_test(test_settings),
                                     cmocka_unit_test(test_tokenizers),
                                     cmocka_unit_test(test_tensors),
                                     cmocka_unit_test(test_several_files)};
  return cmocka_run_group_tests(tests, test_dir_open, test_dir_close);
}
