/* A folder with config.json, tokenizer.json and its weights as safetensors, in one file or several, read as if it were a GGUF file.
 *
 * Owns the way from names and layouts of tensors to GGUF's; settings are checkpoint_families.c's, tokenizers checkpoint_tokenizer.c's, formats
 * safetensors.c's and gguf.c's, and what the keys mean is model.c's, which checks them as it checks any file's. */
#include "engine/checkpoint.h"

#include <stdlib.h>
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

/* ---- the files with the weights ---- */

enum { MAX_INDEX = 64 << 20, MAX_FILES = 4096 };

/* A tensor of the index, and the number of the file that has it. */
typedef struct placed {
  pst_str name;
  size_t file;
} placed;

/* Files and tensors so far; all but the mappings is the arena's. */
typedef struct weights {
  pst_map *maps;
  pst_str *names; /* of files */
  size_t n_files, n_maps;
  pst_engine_gguf_tensor *tensors; /* room for one more */
  size_t n_tensors;
  placed *index; /* [n_index], by name; NULL: one file alone */
  size_t n_index;
} weights;

static int no_table(const pst_engine_ckpt *d) {
  return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the tensor table");
}

static int by_name(const void *a, const void *b) {
  return pst_str_compare(((const placed *)a)->name, ((const placed *)b)->name);
}

/* The file's number; names of files are few. */
static int file_number(const pst_engine_ckpt *d, weights *w, pst_str name, size_t *ret) {
  size_t i = 0;
  while (i < w->n_files && !pst_str_equal(w->names[i], name)) i++;
  *ret = i;
  if (i < w->n_files) return 0;
  if (name.n == 0 || name.n > 255 || memchr(name.data, '/', name.n) || memchr(name.data, 0, name.n))
    return pst_error_set(d->err, PST_E_BAD_INPUT, d->path,
                         "model.safetensors.index.json: a tensor's file is no name of a file in this folder");
  if (i == MAX_FILES)
    return pst_error_set(d->err, PST_E_LIMIT, d->path, "the weights are in more than %d files", MAX_FILES);
  const char *copy = pst_arena_strndup(d->arena, name.data, name.n);
  if (!copy) return no_table(d);
  w->names[w->n_files++] = (pst_str){copy, name.n};
  return 0;
}

static int read_index(const pst_engine_ckpt *d, const pst_json *map, weights *w) {
  size_t n = pst_json_size(map);
  if (pst_json_typeof(map) != PST_JSON_OBJECT || n == 0)
    return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "model.safetensors.index.json has no weight_map");
  w->index = pst_arena_calloc(d->arena, n, sizeof *w->index);
  w->names = pst_arena_calloc(d->arena, MAX_FILES, sizeof *w->names);
  w->maps = pst_arena_calloc(d->arena, MAX_FILES, sizeof *w->maps);
  w->tensors = pst_arena_calloc(d->arena, n + 1, sizeof *w->tensors);
  if (!w->index || !w->names || !w->maps || !w->tensors) return no_table(d);
  for (pst_json_iter it = pst_json_iterate(map); pst_json_next(&it);) {
    placed *p = &w->index[w->n_index++];
    const char *copy = pst_arena_strndup(d->arena, it.key.data, it.key.n);
    if (!copy) return no_table(d);
    p->name = (pst_str){copy, it.key.n};
    int code = file_number(d, w, pst_json_str(it.value), &p->file);
    if (code) return code;
  }
  qsort(w->index, n, sizeof *w->index, by_name);
  return 0;
}

/* Adds a file's tensors to the table, each of which the index must have there. */
static int add_indexed(const pst_engine_ckpt *d, weights *w, const pst_engine_gguf_tensor *tensors, size_t n,
                       uint64_t base) {
  size_t file = w->n_maps - 1;
  for (size_t i = 0; i < n; i++) {
    const placed key = {tensors[i].name, 0}, *p = bsearch(&key, w->index, w->n_index, sizeof key, by_name);
    if (!p || p->file != file || w->n_tensors == w->n_index)
      return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tensor '%.*s' is in %s, which the index does not say",
                           (int)PST_MIN(key.name.n, (size_t)100), key.name.data, w->names[file].data);
    w->tensors[w->n_tensors] = tensors[i];
    w->tensors[w->n_tensors++].offset += base;
  }
  return 0;
}

static int open_file(const pst_engine_ckpt *d, weights *w, const char *name, uint64_t base) {
  pst_engine_gguf_tensor *tensors = NULL;
  size_t n = 0;
  char *path = pst_path_join(d->path, name);
  if (!path) return no_table(d);
  int code = pst_map_open(path, &w->maps[w->n_maps], d->err);
  if (!code) code = pst_engine_safetensors_read(&w->maps[w->n_maps++], path, d->arena, &tensors, &n, d->err);
  pst_free(path);
  if (code) return code;
  if (w->index) return add_indexed(d, w, tensors, n, base);
  w->tensors = tensors;
  w->n_tensors = n;
  return 0;
}

static int open_indexed(const pst_engine_ckpt *d, weights *w) {
  pst_json_doc *doc = NULL;
  uint64_t base = 0;
  int code = pst_engine_ckpt_read_json(d, "model.safetensors.index.json", MAX_INDEX, &doc);
  if (!code) code = read_index(d, pst_json_get(pst_json_root(doc), "weight_map"), w);
  pst_json_free(doc);
  for (size_t i = 0; i < w->n_files && !code; i++) {
    code = open_file(d, w, w->names[i].data, base);
    base += w->maps[i].n;
  }
  if (!code && w->n_tensors < w->n_index)
    code = pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "the index names %zu tensors, the files have %zu of them",
                         w->n_index, w->n_tensors);
  return code;
}

/* One model.safetensors, or as many files as an index names. */
static int open_weights(const pst_engine_ckpt *d, weights *w) {
  if (!pst_engine_ckpt_has_file(d, "model.safetensors") && pst_engine_ckpt_has_file(d, "model.safetensors.index.json"))
    return open_indexed(d, w);
  w->maps = pst_arena_calloc(d->arena, 1, sizeof *w->maps);
  return w->maps ? open_file(d, w, "model.safetensors", 0) : no_table(d);
}

/* ---- opening ---- */

static int read_folder(pst_engine_ckpt *d, const pst_json *config, weights *w, pst_engine_gguf **ret_gguf) {
  const pst_engine_ckpt_family *f = NULL;
  const pst_json *text = pst_json_get(config, "text_config");
  d->config = pst_engine_ckpt_absent(text) ? config : text;
  int code = pst_engine_ckpt_family_find(d, &f);
  if (!code) {
    d->architecture = f->architecture;
    pst_engine_ckpt_put_str(d, "general.architecture", pst_str_from(f->architecture));
    code = f->keys(d);
  }
  if (!code && pst_buf_status(&d->values)) code = pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the keys");
  if (!code) code = open_weights(d, w);
  if (!code) code = take_tensors(d, f, w->tensors, &w->n_tensors);
  if (code) return code;
  uint64_t settings = pst_hash64(d->values.data, d->values.n, 0);
  if (d->rope_factors) settings = pst_hash64(d->rope_factors, (size_t)d->n_rope_factors * sizeof(float), settings);
  const pst_engine_gguf_parts parts = {.values = pst_buf_str(&d->values),
                                       .n_values = d->n_values,
                                       .tensors = w->tensors,
                                       .n_tensors = w->n_tensors,
                                       .maps = w->maps,
                                       .n_maps = w->n_maps,
                                       .settings = settings,
                                       .arena = d->arena};
  return pst_engine_gguf_assemble(&parts, d->path, ret_gguf, d->err);
}

static int open_folder(pst_engine_ckpt *d, pst_engine_gguf **ret_gguf) {
  weights w = {.maps = NULL};
  pst_json_doc *config = NULL;
  int code = pst_engine_ckpt_read_json(d, "config.json", PST_ENGINE_CKPT_MAX_CONFIG, &config);
  if (!code) code = read_folder(d, pst_json_root(config), &w, ret_gguf);
  for (size_t i = 0; i < w.n_maps && code; i++) pst_map_close(&w.maps[i]);
  if (!code) d->arena = NULL; /* the file's now, as the mappings are */
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
