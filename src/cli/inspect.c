/* penstock inspect: what a model file is and needs; with --verify, whether every byte of it is as it should be. */
#include <string.h>

#include "cli/commands.h"
#include "cli/model_path.h"

/* ---- the report ---- */

static double mib(const pst_json *o, const char *key) {
  return (double)pst_json_int(pst_json_get(o, key), 0) / 1048576.0;
}
static int64_t integer(const pst_json *o, const char *key) { return pst_json_int(pst_json_get(o, key), 0); }
static pst_str string(const pst_json *o, const char *key) { return pst_json_str(pst_json_get(o, key)); }

/* A file's text on a terminal: one line, no control characters. */
static void print_text(pst_str s, size_t most) {
  putchar('"');
  for (size_t i = 0; i < s.n && i < most; i++) {
    unsigned char c = (unsigned char)s.data[i];
    if (c == '\n')
      fputs("\\n", stdout);
    else
      putchar(c < 0x20 || c == 0x7f ? '?' : c);
  }
  fputs(s.n > most ? "...\"" : "\"", stdout);
}

static void print_value(const pst_json *v) {
  switch (pst_json_typeof(v)) {
  case PST_JSON_STRING: print_text(pst_json_str(v), 60); break;
  case PST_JSON_BOOL: fputs(pst_json_bool(v, false) ? "true" : "false", stdout); break;
  case PST_JSON_NUMBER:
    if (pst_json_is_real(v))
      printf("%g", pst_json_double(v, 0));
    else
      printf("%lld", (long long)pst_json_int(v, 0));
    break;
  default: fputs("-", stdout); break;
  }
}

static void print_token(const pst_json *tokenizer, const char *key) {
  const pst_json *t = pst_json_get(tokenizer, key);
  if (pst_json_typeof(t) != PST_JSON_OBJECT) return;
  printf(", %s %lld ", key, (long long)integer(t, "id"));
  print_text(string(t, "text"), 24);
}

static void print_text_side(const pst_json *r) {
  const pst_json *tokenizer = pst_json_get(r, "tokenizer"), *t = pst_json_get(r, "template");
  pst_str problem = string(tokenizer, "problem"), pre = string(tokenizer, "pre");
  if (problem.n) {
    printf("tokenizer     none that can be used: %.*s\n", (int)problem.n, problem.data);
  } else {
    printf("tokenizer     %.*s%s%.*s, %lld tokens", (int)string(tokenizer, "model").n, string(tokenizer, "model").data,
           pre.n ? "/" : "", (int)pre.n, pre.n ? pre.data : "", (long long)integer(tokenizer, "n_vocab"));
    print_token(tokenizer, "bos");
    print_token(tokenizer, "eos");
    putchar('\n');
  }
  problem = string(t, "problem");
  if (problem.n)
    printf("template      cannot be used: %.*s\n", (int)problem.n, problem.data);
  else if (pst_json_typeof(t) == PST_JSON_OBJECT)
    printf("template      %lld bytes%s\n", (long long)integer(t, "bytes"),
           pst_json_bool(pst_json_get(t, "tools"), false) ? ", knows tools" : "");
  else
    puts("template      none: a base model, or one to be used with a layout of the plan");
}

static void print_types(const pst_json *r) {
  const char *label = "types";
  for (pst_json_iter it = pst_json_iterate(pst_json_get(r, "types")); pst_json_next(&it); label = "") {
    pst_str type = string(it.value, "type");
    printf("%-13s %-7.*s %4lld tensors  %9.2f M weights  %8.1f MiB  %5.2f bits\n", label, (int)type.n, type.data,
           (long long)integer(it.value, "tensors"), (double)integer(it.value, "params") / 1e6, mib(it.value, "bytes"),
           pst_json_double(pst_json_get(it.value, "bits_per_weight"), 0));
  }
}

static void print_run(const pst_json *r) {
  const pst_json *s = pst_json_get(r, "shape"), *m = pst_json_get(r, "memory");
  pst_str problem = string(r, "problem");
  if (problem.n) {
    printf("cannot run    %.*s\n", (int)problem.n, problem.data);
    return;
  }
  printf(
      "shape         %lld layers, width %lld, feed-forward %lld, %lld heads over %lld key heads of %lld, context %lld\n",
      (long long)integer(s, "n_layers"), (long long)integer(s, "n_embd"), (long long)integer(s, "n_ff"),
      (long long)integer(s, "n_heads"), (long long)integer(s, "n_kv_heads"), (long long)integer(s, "head_dim"),
      (long long)integer(s, "n_ctx_train"));
  if (integer(s, "n_dims")) printf("encoder       embeddings of %lld elements\n", (long long)integer(s, "n_dims"));
  printf("memory        %.1f MiB for %lld tokens: weights %.1f, keys and values %.1f (as q8_0 %.1f), work space %.1f\n",
         mib(m, "total_f16_bytes"), (long long)integer(m, "n_ctx"), mib(m, "weights_bytes"), mib(m, "kv_f16_bytes"),
         mib(m, "kv_q8_0_bytes"), mib(m, "work_bytes"));
}

static void print_metadata(const pst_json *r) {
  puts("\nmetadata");
  for (pst_json_iter it = pst_json_iterate(pst_json_get(r, "metadata")); pst_json_next(&it);) {
    pst_str key = string(it.value, "key"), kind = string(it.value, "kind");
    const pst_json *first = pst_json_get(it.value, "first");
    printf("  %-44.*s ", (int)key.n, key.data);
    if (first) {
      printf("%lld x %.*s:", (long long)integer(it.value, "n"), (int)kind.n, kind.data);
      for (pst_json_iter k = pst_json_iterate(first); pst_json_next(&k);) {
        putchar(' ');
        print_value(k.value);
      }
    } else {
      print_value(pst_json_get(it.value, "value"));
    }
    putchar('\n');
  }
}

static void print_tensors(const pst_json *r) {
  puts("\ntensors");
  for (pst_json_iter it = pst_json_iterate(pst_json_get(r, "tensors")); pst_json_next(&it);) {
    pst_str name = string(it.value, "name"), type = string(it.value, "type");
    char shape[96] = "";
    for (pst_json_iter d = pst_json_iterate(pst_json_get(it.value, "shape")); pst_json_next(&d);)
      snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%lld", *shape ? " x " : "",
               (long long)pst_json_int(d.value, 0));
    printf("  %-32.*s %-6.*s %-24s %12lld bytes\n", (int)name.n, name.data, (int)type.n, type.data, shape,
           (long long)integer(it.value, "bytes"));
  }
}

static void print_report(const pst_cli_args *a, const pst_json *r) {
  pst_str arch = string(r, "architecture"), name = string(r, "name"), path = string(r, "path");
  printf("file          %.*s\n", (int)path.n, path.data);
  char format[32] = "safetensors";
  if (integer(r, "gguf_version")) snprintf(format, sizeof format, "GGUF v%lld", (long long)integer(r, "gguf_version"));
  printf("format        %s, %.1f MiB, %lld tensors, %.2f M weights\n", format, mib(r, "file_bytes"),
         (long long)integer(r, "n_tensors"), (double)integer(r, "n_params") / 1e6);
  printf("architecture  %.*s", (int)arch.n, arch.n ? arch.data : "");
  if (name.n) {
    fputs(", named ", stdout);
    print_text(name, 60);
  }
  putchar('\n');
  print_run(r);
  print_types(r);
  print_text_side(r);
  if (pst_cli_flag(a, "metadata")) print_metadata(r);
  if (pst_cli_flag(a, "tensors")) print_tensors(r);
}

/* ---- --verify ---- */

typedef struct comparison {
  const char *sha256;
  int64_t bytes;
  const char *same, *same_size; /* names in the catalogue */
} comparison;

static int compare_entry(void *user, const pst_models_entry *e) {
  comparison *c = user;
  if (!strcmp(e->sha256, c->sha256))
    c->same = e->name;
  else if (e->bytes == c->bytes)
    c->same_size = e->name;
  return 0;
}

/* Reads the file itself, whatever is remembered of it. */
static int hash_file(const char *path, bool quiet, int64_t *ret_bytes, char ret_sha256[65], pst_error *err) {
  pst_map map;
  pst_progress progress;
  pst_sha256 s;
  uint8_t digest[32];
  int code = pst_map_open(path, &map, err);
  if (code) return code;
  pst_sha256_init(&s);
  pst_progress_begin(&progress, "hashing", (int64_t)map.n, true, quiet);
  for (size_t at = 0; at < map.n;) {
    size_t n = PST_MIN(map.n - at, (size_t)4 << 20);
    pst_sha256_update(&s, map.data + at, n);
    at += n;
    pst_progress_update(&progress, (int64_t)at);
  }
  pst_progress_end(&progress);
  pst_sha256_done(&s, digest);
  pst_hex(digest, sizeof digest, ret_sha256);
  *ret_bytes = (int64_t)map.n;
  pst_map_close(&map);
  return 0;
}

/* `recorded`: the SHA-256 that the data directory has for the file; "": none. */
static int verify(const char *path, const char *recorded, bool quiet, char ret_sha256[65], const char **ret_known,
                  pst_error *err) {
  comparison c = {.sha256 = ret_sha256};
  pst_progress progress;
  int code = hash_file(path, quiet, &c.bytes, ret_sha256, err);
  if (!code && *recorded && strcmp(recorded, ret_sha256))
    return pst_error_set(
        err, PST_E_CORRUPT, path,
        "the content has SHA-256 %.12s..., and %.12s... was recorded when it was pulled: it is damaged; remove it "
        "and pull it again",
        ret_sha256, recorded);
  if (!code) code = pst_models_catalogue_each(compare_entry, &c, err);
  if (!code && !c.same && c.same_size)
    return pst_error_set(
        err, PST_E_CORRUPT, path,
        "has the size of %s but not its content (SHA-256 %.12s...): a damaged copy, if it is meant to be that model",
        c.same_size, ret_sha256);
  if (code) return code;
  pst_progress_begin(&progress, "reading weights", 0, true, quiet);
  code = pst_engine_check_weights(path, &progress, err);
  pst_progress_end(&progress);
  *ret_known = c.same;
  return code;
}

/* ---- the command ---- */

/* The file, and what the data directory has recorded of it. */
static int find_file(const pst_cli_args *a, char **ret_path, char recorded[65], pst_error *err) {
  char *home = NULL;
  pst_models_file file = {0};
  const char *what = a->words[0];
  recorded[0] = 0;
  if (pst_file_exists(what) || strchr(what, '/')) {
    *ret_path = pst_strdup(what);
    return *ret_path ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  }
  int code = pst_home_open(pst_cli_text(a, "home"), &home, err);
  if (!code) code = pst_models_resolve(home, what, &file, err);
  if (!code) {
    snprintf(recorded, 65, "%s", file.sha256);
    *ret_path = file.path;
    file.path = NULL;
  }
  pst_models_file_done(&file);
  pst_free(home);
  return code;
}

static void add_verdict(pst_buf *text, const char *sha256, const char *known) {
  while (text->n && text->data[text->n - 1] != '}') text->n--;
  text->n--;
  while (text->n && (text->data[text->n - 1] == '\n' || text->data[text->n - 1] == ' ')) text->n--;
  pst_buf_printf(text, ",\n  \"verified\": true,\n  \"sha256\": \"%s\",\n  \"catalogue\": ", sha256);
  pst_buf_printf(text, known ? "\"%s\"\n}" : "null\n}", known);
}

static int run_inspect(const pst_cli_args *a, pst_error *err) {
  char *path = NULL, recorded[65], sha256[65] = "";
  const char *known = NULL;
  bool json = pst_cli_flag(a, "json");
  pst_buf text = PST_BUF_INIT;
  pst_json_doc *doc = NULL;
  int code = find_file(a, &path, recorded, err);
  if (!code) code = pst_engine_inspect(path, (int)pst_cli_int(a, "context"), &text, err);
  if (!code && pst_cli_flag(a, "verify")) code = verify(path, recorded, pst_cli_flag(a, "quiet"), sha256, &known, err);
  if (!code && *sha256 && json) add_verdict(&text, sha256, known);
  if (!code && pst_buf_status(&text)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  if (!code && json) {
    puts(pst_buf_text(&text));
  } else if (!code) {
    code = pst_json_parse(text.data, text.n, "report", &doc, err);
    if (!code) print_report(a, pst_json_root(doc));
    if (!code && *sha256)
      printf("verified      SHA-256 %s, %s%s; every weight is finite\n", sha256,
             known ? "as the catalogue has for " : "nothing recorded to compare with", known ? known : "");
  }
  pst_json_free(doc);
  pst_buf_done(&text);
  pst_free(path);
  return code;
}

static const pst_cli_option options[] = {
    {"context", 'c', PST_CLI_INT, "N", "0", 0, 1 << 30, false,
     "tokens to tell the memory for (0: the model's, at most 8192)"},
    {"verify", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "read the whole file: its SHA-256, and whether every weight is finite"},
    {"metadata", 'm', PST_CLI_FLAG, NULL, NULL, 0, 0, false, "list the metadata"},
    {"tensors", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "list the tensors"},
    PST_CLI_QUIET,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_inspect = {
    "inspect",
    "FILE",
    "show what a model file is and what it needs",
    "FILE is a GGUF file, a folder with config.json, tokenizer.json and model.safetensors, or a pulled model's name.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_inspect};
