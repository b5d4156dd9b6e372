/* A folder with config.json, tokenizer.json and model.safetensors, read as if it were a GGUF file.
 *
 * Owns the way from names and layouts of tensors to GGUF's; settings are checkpoint_families.c's, tokenizers checkpoint_tokenizer.c's, formats
 * safetensors.c's and gguf.c's, and what the keys mean is model.c's, which checks them as it checks any file's. */
#include "engine/checkpoint.h"

#include <string.h>

#include "engine/checkpoint_impl.h"
#include "engine/safetensors.h"

/* ---- tensors ---- */

/* Whether `name` is what the pattern says; *ret_layer: the number where the pattern has its *. */
static bool matches(const char *pattern, pst_str name, int *ret_layer) {
  size_t at = 0;
  for (; *pattern; pattern++) {
    if (*pattern != '*') {
      if (at == name.n || name.data[at++] != *pattern) return false;
      continue;
    }
    size_t start = at;
    for (*ret_layer = 0; at < name.n && at - start < 5 && name.data[at] >= '0' && name.data[at] <= '9'; at++)
      *ret_layer = *ret_layer * 10 + (name.data[at] - '0');
    if (at == start) return false;
  }
  return at == name.n;
}

static pst_str our_name(const pst_engine_ckpt *d, const char *ours, int layer) {
  const char *star = strchr(ours, '*');
  const char *text = star ? pst_arena_printf(d->arena, "%.*s%d%s", (int)(star - ours), ours, layer, star + 1) : ours;
  return pst_str_from(text);
}

static const char *find_rule(const pst_engine_ckpt_family *f, pst_str name, int *ret_layer, bool *ret_known) {
  *ret_known = true;
  for (size_t r = 0; r < PST_ENGINE_CKPT_MAX_RULES && f->rules[r]; r++)
    for (const pst_engine_ckpt_rule *rule = f->rules[r]; rule->theirs; rule++)
      if (matches(rule->theirs, name, ret_layer)) return rule->ours;
  *ret_known = false;
  return NULL;
}

static bool starts_with_any(pst_str name, const char *const *prefixes, size_t *ret_n) {
  for (; *prefixes; prefixes++) {
    *ret_n = strlen(*prefixes);
    if (pst_str_starts(name, pst_str_from(*prefixes))) return true;
  }
  *ret_n = 0;
  return false;
}

/* Rows as floats, one added to each element where the checkpoint has norms less one: GGUF keeps one-dimensional tensors in full. */
static int widen(const pst_engine_ckpt *d, bool add_one, pst_engine_gguf_tensor *t) {
  float *x = pst_arena_alloc(d->arena, t->n_elements * sizeof *x);
  if (!x) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the weights");
  int code = pst_kernels_dequantize_row(t->type, t->data, t->n_elements, x);
  if (code) return pst_error_set(d->err, code, d->path, "a norm or bias of an unknown type");
  for (uint64_t i = 0; add_one && i < t->n_elements; i++) x[i] += 1;
  t->type = PST_TYPE_F32;
  t->data = (const uint8_t *)x;
  t->bytes = t->n_elements * sizeof *x;
  return 0;
}

/* The rows of every head from the order of halves (i, i + n/2) into that of pairs (2i, 2i + 1). A one-dimensional tensor's elements are its rows. */
static int pair_rows(const pst_engine_ckpt *d, size_t n_heads, pst_engine_gguf_tensor *t) {
  uint64_t rows = t->n_dims > 1 ? t->dims[1] : t->dims[0];
  size_t half = (size_t)d->head_dim / 2, bytes = t->bytes / rows;
  if (rows != n_heads * 2 * half)
    return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tensor '%.*s' has %llu rows for %zu heads of %zu",
                         (int)t->name.n, t->name.data, (unsigned long long)rows, n_heads, 2 * half);
  uint8_t *out = pst_arena_alloc(d->arena, t->bytes);
  if (!out) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the weights");
  for (size_t h = 0; h < n_heads; h++)
    for (size_t i = 0; i < 2 * half; i++)
      memcpy(out + (h * 2 * half + i) * bytes, t->data + (h * 2 * half + i % 2 * half + i / 2) * bytes, bytes);
  t->data = out;
  return 0;
}

/* What GGUF has under `ours` in another form than the checkpoint. */
static int reform(const pst_engine_ckpt *d, const pst_engine_ckpt_family *f, const char *ours,
                  pst_engine_gguf_tensor *t) {
  size_t n = strlen(ours);
  bool is_norm = n > 11 && !strcmp(ours + n - 11, "norm.weight");
  int code = t->n_dims == 1 ? widen(d, f->norms_off && is_norm, t) : 0;
  if (code || !f->pairs) return code;
  if (pst_str_starts(pst_str_from(ours), PST_STR("blk.*.attn_q."))) return pair_rows(d, (size_t)d->n_heads, t);
  if (pst_str_starts(pst_str_from(ours), PST_STR("blk.*.attn_k."))) return pair_rows(d, (size_t)d->n_kv_heads, t);
  return 0;
}

/* Takes a tensor over under our name; *ret_kept: it is of use. */
static int take_tensor(const pst_engine_ckpt *d, const pst_engine_ckpt_family *f, pst_engine_gguf_tensor *t,
                       bool *ret_kept) {
  pst_str name = t->name;
  size_t n_prefix = 0;
  int layer = 0;
  bool known = false;
  *ret_kept = false;
  if (starts_with_any(name, f->others, &n_prefix)) return 0;
  (void)starts_with_any(name, f->prefixes, &n_prefix);
  name = (pst_str){name.data + n_prefix, name.n - n_prefix};
  const char *ours = find_rule(f, name, &layer, &known);
  if (!known)
    return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                         "tensor '%.*s' has no place in model_type %s as this program knows it",
                         (int)PST_MIN(name.n, (size_t)100), name.data, f->model_type);
  if (!ours) return 0;
  if (t->type == PST_ENGINE_SAFETENSORS_OTHER)
    return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path, "tensor '%.*s' is not F32, F16 or BF16",
                         (int)PST_MIN(name.n, (size_t)100), name.data);
  if (!strcmp(ours, "output.weight") && pst_json_bool(pst_json_get(d->config, "tie_word_embeddings"), false)) return 0;
  t->name = our_name(d, ours, layer);
  if (!t->name.data) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the tensor table");
  *ret_kept = true;
  return reform(d, f, ours, t);
}

/* Names and forms in place; *n: before and after. The table has room for one more. */
static int take_tensors(const pst_engine_ckpt *d, const pst_engine_ckpt_family *f, pst_engine_gguf_tensor *tensors,
                        size_t *n) {
  size_t kept = 0;
  for (size_t i = 0; i < *n; i++) {
    pst_engine_gguf_tensor t = tensors[i];
    bool keep = false;
    int code = take_tensor(d, f, &t, &keep);
    if (code) return code;
    if (keep) tensors[kept++] = t;
  }
  if (d->rope_factors) {
    size_t n_factors = (size_t)d->n_rope_factors;
    tensors[kept++] = (pst_engine_gguf_tensor){.name = PST_STR("rope_freqs.weight"),
                                               .type = PST_TYPE_F32,
                                               .n_dims = 1,
                                               .dims = {n_factors, 1, 1, 1},
                                               .n_elements = n_factors,
                                               .data = (const uint8_t *)d->rope_factors,
                                               .bytes = n_factors * sizeof(float)};
  }
  *n = kept;
  return 0;
}

/* ---- opening ---- */

static int open_weights(const pst_engine_ckpt *d, pst_map *ret_map, char **ret_path) {
  char *path = pst_path_join(d->path, "model.safetensors"),
       *index = pst_path_join(d->path, "model.safetensors.index.json");
  int code = 0;
  if (!path || !index)
    code = pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
  else if (!pst_file_exists(path) && pst_file_exists(index))
    code = pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                         "the weights are in several files; only one model.safetensors can be read");
  else
    code = pst_map_open(path, ret_map, d->err);
  pst_free(index);
  if (code)
    pst_free(path);
  else
    *ret_path = path;
  return code;
}

static int open_folder(pst_engine_ckpt *d, pst_engine_gguf **ret_gguf) {
  pst_engine_gguf_parts parts = {.arena = d->arena};
  const pst_engine_ckpt_family *f = NULL;
  pst_engine_gguf_tensor *tensors = NULL;
  char *weights = NULL;
  pst_json_doc *config = NULL;
  int code = pst_engine_ckpt_read_json(d, "config.json", PST_ENGINE_CKPT_MAX_CONFIG, &config);
  if (code) return code;
  const pst_json *text = pst_json_get(pst_json_root(config), "text_config");
  d->config = pst_engine_ckpt_absent(text) ? pst_json_root(config) : text;
  code = pst_engine_ckpt_family_find(d, &f);
  if (!code) {
    d->architecture = f->architecture;
    pst_engine_ckpt_put_str(d, "general.architecture", pst_str_from(f->architecture));
    code = f->keys(d);
  }
  if (!code && pst_buf_status(&d->values)) code = pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the keys");
  if (!code) code = open_weights(d, &parts.map, &weights);
  if (code) goto done;
  code = pst_engine_safetensors_read(&parts.map, weights, d->arena, &tensors, &parts.n_tensors, d->err);
  if (!code) code = take_tensors(d, f, tensors, &parts.n_tensors);
  parts.tensors = tensors;
  parts.values = pst_buf_str(&d->values);
  parts.n_values = d->n_values;
  if (!code) code = pst_engine_gguf_assemble(&parts, d->path, ret_gguf, d->err);
  if (code)
    pst_map_close(&parts.map);
  else
    d->arena = NULL; /* the file's now */
done:
  pst_free(weights);
  pst_json_free(config);
  return code;
}

int pst_engine_checkpoint_open(const char *path, pst_engine_gguf **ret_gguf, pst_error *err) {
  if (!pst_dir_exists(path)) return pst_engine_gguf_open(path, ret_gguf, err);
  pst_engine_ckpt d = {.path = path, .arena = pst_arena_create(), .values = PST_BUF_INIT, .err = err};
  int code = d.arena ? open_folder(&d, ret_gguf) : pst_error_set(err, PST_E_NOMEM, path, "no memory");
  pst_buf_done(&d.values);
  pst_arena_free(d.arena);
  return code;
}
