/* penstock embed: vectors of texts, on the command line. Without --json what a person can look at: the first elements, and how alike the texts are. */
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/model_path.h"

enum { MAX_TEXTS = 4096, SHOWN_ELEMENTS = 6, MAX_SHOWN_WIDTH = 12 };

typedef struct texts {
  pst_str text[MAX_TEXTS];
  size_t lengths[MAX_TEXTS], n;
  pst_buf input; /* of standard input: the texts are views into it */
  pst_engine_tokens tokens;
  float *vectors; /* [n][n_dims] */
} texts;

static int read_lines(texts *t, pst_error *err) {
  char block[65536];
  size_t n;
  while ((n = fread(block, 1, sizeof block, stdin)) > 0) pst_buf_append(&t->input, block, n);
  if (pst_buf_status(&t->input)) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the texts");
  pst_str all = pst_buf_str(&t->input);
  for (size_t at = 0; at < all.n;) {
    size_t end = pst_str_find(all, PST_STR("\n"), at);
    if (end == SIZE_MAX) end = all.n;
    if (end > at && t->n == MAX_TEXTS)
      return pst_error_set(err, PST_E_LIMIT, "embed", "at most %d texts at a time", MAX_TEXTS);
    if (end > at) t->text[t->n++] = (pst_str){all.data + at, end - at};
    at = end + 1;
  }
  return t->n ? 0 : pst_error_set(err, PST_E_BAD_INPUT, "embed", "no text was given, and standard input has none");
}

static int tokenize(const pst_engine_model *model, texts *t, pst_error *err) {
  int code = 0;
  for (size_t i = 0; i < t->n && !code; i++) {
    size_t before = t->tokens.n;
    code = pst_engine_embed_tokenize(model, t->text[i], &t->tokens, err);
    t->lengths[i] = t->tokens.n - before;
  }
  return code;
}

/* ---- printing ---- */

static void print_json(const char *model, const texts *t, int n_dims, int dims) {
  pst_buf out = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&out, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "model", model);
  pst_json_member_int(&w, "dimensions", dims);
  pst_json_key(&w, "embeddings");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < t->n; i++) {
    pst_json_begin_object(&w);
    pst_json_member_int(&w, "index", (int64_t)i);
    pst_json_member_int(&w, "tokens", (int64_t)t->lengths[i]);
    pst_json_key(&w, "embedding");
    pst_json_begin_array(&w);
    for (int d = 0; d < dims; d++) pst_json_put_double(&w, (double)t->vectors[i * (size_t)n_dims + (size_t)d]);
    pst_json_end_array(&w);
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
  pst_json_end_object(&w);
  puts(pst_buf_text(&out));
  pst_buf_done(&out);
}

static double likeness(const texts *t, size_t a, size_t b, int n_dims, int dims) {
  double sum = 0;
  for (int d = 0; d < dims; d++)
    sum += (double)t->vectors[a * (size_t)n_dims + (size_t)d] * (double)t->vectors[b * (size_t)n_dims + (size_t)d];
  return sum;
}

static void print_table(const texts *t, int n_dims, int dims) {
  for (size_t i = 0; i < t->n; i++) {
    printf("%3zu  %4zu tokens  %d elements ", i + 1, t->lengths[i], dims);
    for (int d = 0; d < PST_MIN(dims, SHOWN_ELEMENTS); d++)
      printf(" %8.5f", (double)t->vectors[i * (size_t)n_dims + (size_t)d]);
    puts(dims > SHOWN_ELEMENTS ? " ..." : "");
  }
  if (t->n < 2) return;
  size_t n = PST_MIN(t->n, (size_t)MAX_SHOWN_WIDTH);
  printf("\ncosine");
  for (size_t k = 0; k < n; k++) printf(" %6zu", k + 1);
  putchar('\n');
  for (size_t i = 0; i < n; i++) {
    printf("%6zu", i + 1);
    for (size_t k = 0; k < n; k++) printf(" %6.3f", likeness(t, i, k, n_dims, dims));
    putchar('\n');
  }
}

/* ---- the command ---- */

static int check_dims(const pst_engine_model_info *info, int64_t asked, int *ret_dims, pst_error *err) {
  if (asked == 0) asked = info->n_dims;
  if (asked > info->n_dims || asked < info->min_dims)
    return pst_error_set(err, PST_E_BAD_INPUT, "dims",
                         info->min_dims == info->n_dims
                             ? "this model's vectors have %d elements and cannot be cut"
                             : "this model's vectors have %d elements and can be cut to no fewer than %d",
                         info->n_dims, info->min_dims);
  *ret_dims = (int)asked;
  return 0;
}

static int compute(const pst_cli_args *a, pst_engine_model *model, texts *t, int dims, pst_error *err) {
  pst_engine_options o = pst_engine_options_default();
  pst_engine *engine = NULL;
  size_t n_dims = (size_t)pst_engine_model_get_info(model)->n_dims;
  o.threads = (int)pst_cli_int(a, "threads");
  t->vectors = pst_calloc(t->n * n_dims, sizeof *t->vectors);
  if (!t->vectors) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the vectors");
  int code = tokenize(model, t, err);
  if (!code) code = pst_engine_create(model, &o, &engine, err);
  if (!code) code = pst_engine_embed_wait(engine, NULL, t->tokens.ids, t->lengths, t->n, t->vectors, err);
  for (size_t i = 0; i < t->n && !code; i++)
    code = pst_engine_embedding_cut(t->vectors + i * n_dims, (int)n_dims, dims);
  pst_engine_free(engine);
  return code;
}

static int run_embed(const pst_cli_args *a, pst_error *err) {
  pst_engine_model *model = NULL;
  int dims = 0, n_dims = 0;
  texts *t = pst_calloc(1, sizeof *t);
  if (!t) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  if (a->n_words - 1 > MAX_TEXTS) {
    pst_free(t);
    return pst_error_set(err, PST_E_LIMIT, "embed", "at most %d texts at a time", MAX_TEXTS);
  }
  for (int i = 1; i < a->n_words; i++) t->text[t->n++] = pst_str_from(a->words[i]);
  int code = t->n ? 0 : read_lines(t, err);
  if (!code) code = pst_cli_model_open(a, a->words[0], (int)pst_cli_int(a, "threads"), &model, err);
  if (!code && !(n_dims = pst_engine_model_get_info(model)->n_dims))
    code = pst_error_set(err, PST_E_UNSUPPORTED, a->words[0], "generates text (%s) and makes no embeddings",
                         pst_engine_model_get_info(model)->architecture);
  if (!code) code = check_dims(pst_engine_model_get_info(model), pst_cli_int(a, "dims"), &dims, err);
  if (!code) code = compute(a, model, t, dims, err);
  if (!code && pst_cli_flag(a, "json")) print_json(a->words[0], t, n_dims, dims);
  if (!code && !pst_cli_flag(a, "json")) print_table(t, n_dims, dims);
  pst_engine_model_unref(model);
  pst_engine_tokens_done(&t->tokens);
  pst_buf_done(&t->input);
  pst_free(t->vectors);
  pst_free(t);
  return code;
}

static const pst_cli_option options[] = {
    {"dims", 'd', PST_CLI_INT, "N", "0", 0, 1 << 20, false,
     "cut vectors to N elements, of models that were trained for it (0: whole)"},
    PST_CLI_THREADS,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_embed = {
    "embed",
    "MODEL [TEXT...]",
    "make vectors of texts",
    "MODEL is an encoder: a pulled model's name, a GGUF file, or a folder with config.json, tokenizer.json and model.safetensors.\n"
    "Without TEXT each line of standard input is one. Vectors have length 1.",
    1,
    -1,
    options,
    PST_ARRAY_LEN(options),
    run_embed};
