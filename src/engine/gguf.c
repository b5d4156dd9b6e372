/* The GGUF reader: versions 2 and 3, little-endian, over a read-only mapping.
 *
 * Owns the file's structure: where each value and tensor lies, and that it lies inside the file. Does not own what the keys mean
 * (architecture, tokenizer), nor the hash of the tensor data. Everything is checked in open, in one walk over the bytes, so that
 * later accesses are plain loads. No allocation is sized by a count from the file before the bytes behind that count have been
 * seen: arrays grow with what was parsed. Look-ups go through sorted indexes rather than hash tables, so that no choice of names
 * makes them slow. */
#include "engine/gguf.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
  MAX_VALUES = 16384,
  MAX_TENSORS = 1 << 20,
  MAX_KEY_BYTES = 65535, /* the format's own limit */
  MAX_NAME_BYTES = 255,
  MAX_ARRAY_DEPTH = 4,
  DEFAULT_ALIGNMENT = 32,
  MIN_ALIGNMENT = 8,
  MAX_ALIGNMENT = 65536,
};

struct pst_engine_gguf {
  pst_map *maps;
  size_t n_maps;
  bool owns_maps;
  uint64_t settings;
  char *path;
  uint32_t version, alignment;
  pst_engine_gguf_value *values; /* file order */
  size_t n_values, values_capacity;
  pst_engine_gguf_tensor *tensors; /* file order */
  size_t n_tensors, tensors_capacity;
  const pst_engine_gguf_value **values_by_key;
  const pst_engine_gguf_tensor **tensors_by_name;
  char *memory;             /* an assembled file's metadata */
  pst_arena *arena;         /* and its tensors' names */
  uint64_t **string_tables; /* the string_at arrays, for freeing */
  size_t n_string_tables, string_tables_capacity;
};

/* Names as they may be printed: at most 64 bytes of them. */
#define SHOWN(s) (int)PST_MIN((s).n, (size_t)64), (s).data

/* ---- reading bytes ---------------------------------------------------------------------------------------------- */

typedef struct cursor {
  const uint8_t *data;
  size_t n, at; /* at <= n */
  const char *path;
  pst_error *err;
} cursor;

static uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static uint32_t load_u32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t load_u64(const uint8_t *p) { return (uint64_t)load_u32(p) | (uint64_t)load_u32(p + 4) << 32; }

static int truncated(const cursor *c, const char *what) {
  return pst_error_set(c->err, PST_E_BAD_INPUT, c->path,
                       "the file ends at byte %zu, inside %s: it is truncated or damaged", c->n, what);
}

static int read_u32(cursor *c, const char *what, uint32_t *ret) {
  if (c->n - c->at < 4) return truncated(c, what);
  *ret = load_u32(c->data + c->at);
  c->at += 4;
  return 0;
}

static int read_u64(cursor *c, const char *what, uint64_t *ret) {
  if (c->n - c->at < 8) return truncated(c, what);
  *ret = load_u64(c->data + c->at);
  c->at += 8;
  return 0;
}

static int read_str(cursor *c, const char *what, pst_str *ret) {
  uint64_t n = 0;
  int r = read_u64(c, what, &n);
  if (r < 0) return r;
  if (n > c->n - c->at)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path,
                         "%s at byte %zu claims %llu bytes, past the end of the file: it is truncated or damaged", what,
                         c->at - 8, (unsigned long long)n);
  *ret = (pst_str){(const char *)c->data + c->at, (size_t)n};
  c->at += (size_t)n;
  return 0;
}

/* Keys and names go into messages and other files: whole UTF-8, no control characters. */
static int read_name(cursor *c, const char *what, size_t max_bytes, pst_str *ret) {
  size_t start = c->at;
  pst_str s;
  int r = read_str(c, what, &s);
  if (r < 0) return r;
  if (s.n == 0 || s.n > max_bytes)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path, "%s at byte %zu is %zu bytes long, expected 1 to %zu", what,
                         start, s.n, max_bytes);
  bool plain = pst_utf8_valid(s);
  for (size_t i = 0; plain && i < s.n; i++) plain = (unsigned char)s.data[i] >= 0x20 && s.data[i] != 0x7f;
  if (!plain)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path, "%s at byte %zu is not plain UTF-8 text", what, start);
  *ret = s;
  return 0;
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static const struct {
  const char *name;
  size_t bytes; /* 0: not of fixed size */
} kinds[PST_ENGINE_GGUF_KIND_END] = {
    [PST_ENGINE_GGUF_U8] = {"uint8", 1},    [PST_ENGINE_GGUF_I8] = {"int8", 1},
    [PST_ENGINE_GGUF_U16] = {"uint16", 2},  [PST_ENGINE_GGUF_I16] = {"int16", 2},
    [PST_ENGINE_GGUF_U32] = {"uint32", 4},  [PST_ENGINE_GGUF_I32] = {"int32", 4},
    [PST_ENGINE_GGUF_F32] = {"float32", 4}, [PST_ENGINE_GGUF_BOOL] = {"bool", 1},
    [PST_ENGINE_GGUF_STR] = {"string", 0},  [PST_ENGINE_GGUF_ARRAY] = {"array", 0},
    [PST_ENGINE_GGUF_U64] = {"uint64", 8},  [PST_ENGINE_GGUF_I64] = {"int64", 8},
    [PST_ENGINE_GGUF_F64] = {"float64", 8},
};

const char *pst_engine_gguf_kind_name(pst_engine_gguf_kind kind) {
  return (unsigned)kind < PST_ENGINE_GGUF_KIND_END ? kinds[kind].name : "unknown";
}

static int read_kind(cursor *c, pst_str key, pst_engine_gguf_kind *ret) {
  uint32_t kind = 0;
  int r = read_u32(c, "a value's kind", &kind);
  if (r < 0) return r;
  if (kind >= PST_ENGINE_GGUF_KIND_END)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path,
                         "key '%.*s' has the value kind %u, which GGUF does not define", SHOWN(key), kind);
  *ret = (pst_engine_gguf_kind)kind;
  return 0;
}

/* Moves over n elements of a fixed-size kind; booleans must be 0 or 1. */
static int skip_fixed(cursor *c, pst_str key, pst_engine_gguf_kind kind, uint64_t n) {
  size_t bytes = kinds[kind].bytes;
  if (n > (c->n - c->at) / bytes)
    return pst_error_set(
        c->err, PST_E_BAD_INPUT, c->path,
        "key '%.*s' claims %llu values of kind %s, past the end of the file: it is truncated or damaged", SHOWN(key),
        (unsigned long long)n, kinds[kind].name);
  if (kind == PST_ENGINE_GGUF_BOOL)
    for (uint64_t i = 0; i < n; i++)
      if (c->data[c->at + i] > 1)
        return pst_error_set(c->err, PST_E_BAD_INPUT, c->path, "key '%.*s' is a bool with the value %u", SHOWN(key),
                             c->data[c->at + i]);
  c->at += (size_t)n * bytes;
  return 0;
}

static int read_array_head(cursor *c, pst_str key, pst_engine_gguf_kind *ret_element, uint64_t *ret_n) {
  int r = read_kind(c, key, ret_element);
  if (r < 0) return r;
  return read_u64(c, "an array's length", ret_n);
}

/* Moves over an array that stands inside an array. Nobody uses these; they are kept so that a copy of the file is whole. */
static int skip_nested_array(cursor *c, pst_str key, int depth) {
  pst_engine_gguf_kind element = PST_ENGINE_GGUF_U8;
  uint64_t n = 0;
  if (depth >= MAX_ARRAY_DEPTH)
    return pst_error_set(c->err, PST_E_LIMIT, c->path, "key '%.*s' nests arrays deeper than %d", SHOWN(key),
                         MAX_ARRAY_DEPTH);
  int r = read_array_head(c, key, &element, &n);
  if (r < 0) return r;
  if (kinds[element].bytes) return skip_fixed(c, key, element, n);
  for (uint64_t i = 0; i < n && r == 0; i++) {
    pst_str s;
    r = element == PST_ENGINE_GGUF_STR ? read_str(c, "an array's string", &s) : skip_nested_array(c, key, depth + 1);
  }
  return r;
}

/* Walks a string array twice: once to see that all of it is there, once to note where each string begins. */
static int read_string_array(pst_engine_gguf *g, cursor *c, pst_engine_gguf_value *v) {
  int r = 0;
  size_t start = c->at;
  pst_str s;
  for (uint64_t i = 0; i < v->n && r == 0; i++) r = read_str(c, "an array's string", &s);
  if (r < 0) return r;
  /* Each string took at least 8 bytes, so n * 8 is no more than the file's size. */
  uint64_t *at = pst_malloc((size_t)v->n * sizeof *at);
  if (!at || pst_array_reserve((void **)&g->string_tables, &g->string_tables_capacity, g->n_string_tables + 1,
                               sizeof *g->string_tables) < 0) {
    pst_free(at);
    return pst_error_set(c->err, PST_E_NOMEM, c->path, "no memory for the %llu strings of '%.*s'",
                         (unsigned long long)v->n, SHOWN(v->key));
  }
  size_t p = start;
  for (uint64_t i = 0; i < v->n; i++) {
    at[i] = p - start;
    p += 8 + (size_t)load_u64(c->data + p);
  }
  g->string_tables[g->n_string_tables++] = at;
  v->string_at = at;
  return 0;
}

static int read_array(pst_engine_gguf *g, cursor *c, pst_engine_gguf_value *v) {
  int r = read_array_head(c, v->key, &v->element, &v->n);
  if (r < 0) return r;
  v->data = c->data + c->at;
  if (kinds[v->element].bytes) return skip_fixed(c, v->key, v->element, v->n);
  if (v->element == PST_ENGINE_GGUF_STR) return read_string_array(g, c, v);
  for (uint64_t i = 0; i < v->n && r == 0; i++) r = skip_nested_array(c, v->key, 1);
  return r;
}

static int read_value(pst_engine_gguf *g, cursor *c, pst_engine_gguf_value *v) {
  pst_str s;
  *v = (pst_engine_gguf_value){0};
  int r = read_name(c, "a metadata key", MAX_KEY_BYTES, &v->key);
  if (r < 0) return r;
  r = read_kind(c, v->key, &v->kind);
  if (r < 0) return r;
  v->raw = v->data = c->data + c->at;
  v->element = v->kind;
  v->n = 1;
  if (v->kind == PST_ENGINE_GGUF_ARRAY)
    r = read_array(g, c, v);
  else if (v->kind == PST_ENGINE_GGUF_STR)
    r = read_str(c, "a metadata string", &s);
  else
    r = skip_fixed(c, v->key, v->kind, 1);
  v->raw_bytes = (size_t)(c->data + c->at - v->raw);
  return r;
}

static int read_values(pst_engine_gguf *g, cursor *c, uint64_t n) {
  if (n > MAX_VALUES)
    return pst_error_set(c->err, PST_E_LIMIT, c->path, "the header claims %llu metadata entries, more than %d",
                         (unsigned long long)n, MAX_VALUES);
  for (uint64_t i = 0; i < n; i++) {
    pst_engine_gguf_value v;
    int r = read_value(g, c, &v);
    if (r < 0) return r;
    if (pst_array_reserve((void **)&g->values, &g->values_capacity, g->n_values + 1, sizeof v) < 0)
      return pst_error_set(c->err, PST_E_NOMEM, c->path, "no memory for the metadata");
    g->values[g->n_values++] = v;
  }
  return 0;
}

/* ---- sorted indexes --------------------------------------------------------------------------------------------- */

static int order_values(const void *a, const void *b) {
  const pst_engine_gguf_value *const *x = a, *const *y = b;
  return pst_str_compare((*x)->key, (*y)->key);
}

static int order_tensors(const void *a, const void *b) {
  const pst_engine_gguf_tensor *const *x = a, *const *y = b;
  return pst_str_compare((*x)->name, (*y)->name);
}

static int order_tensors_by_offset(const void *a, const void *b) {
  const pst_engine_gguf_tensor *const *x = a, *const *y = b;
  return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

static int index_values(pst_engine_gguf *g, pst_error *err) {
  g->values_by_key = pst_calloc(g->n_values, sizeof *g->values_by_key);
  if (!g->values_by_key) return pst_error_set(err, PST_E_NOMEM, g->path, "no memory for the metadata");
  for (size_t i = 0; i < g->n_values; i++) g->values_by_key[i] = &g->values[i];
  if (g->n_values) qsort(g->values_by_key, g->n_values, sizeof *g->values_by_key, order_values);
  for (size_t i = 1; i < g->n_values; i++)
    if (pst_str_equal(g->values_by_key[i - 1]->key, g->values_by_key[i]->key))
      return pst_error_set(err, PST_E_BAD_INPUT, g->path, "the metadata key '%.*s' occurs twice",
                           SHOWN(g->values_by_key[i]->key));
  return 0;
}

/* Overlaps are looked for in offset order, double names in name order; the index stays in name order. */
/* No two tensors of a file share a byte. */
static int check_overlaps(pst_engine_gguf *g, pst_error *err) {
  const pst_engine_gguf_tensor **t = g->tensors_by_name;
  if (g->n_tensors) qsort(t, g->n_tensors, sizeof *t, order_tensors_by_offset);
  for (size_t i = 1; i < g->n_tensors; i++)
    if (t[i]->offset - t[i - 1]->offset < t[i - 1]->bytes)
      return pst_error_set(err, PST_E_BAD_INPUT, g->path, "the data of tensors '%.*s' and '%.*s' overlap",
                           SHOWN(t[i - 1]->name), SHOWN(t[i]->name));
  return 0;
}

static int index_tensors(pst_engine_gguf *g, bool is_file, pst_error *err) {
  const pst_engine_gguf_tensor **t = g->tensors_by_name = pst_calloc(g->n_tensors, sizeof *t);
  if (!t) return pst_error_set(err, PST_E_NOMEM, g->path, "no memory for the tensor table");
  for (size_t i = 0; i < g->n_tensors; i++) t[i] = &g->tensors[i];
  int r = is_file ? check_overlaps(g, err) : 0; /* tied weights of other formats share theirs */
  if (r < 0) return r;
  if (g->n_tensors) qsort(t, g->n_tensors, sizeof *t, order_tensors);
  for (size_t i = 1; i < g->n_tensors; i++)
    if (pst_str_equal(t[i - 1]->name, t[i]->name))
      return pst_error_set(err, PST_E_BAD_INPUT, g->path, "the tensor '%.*s' occurs twice", SHOWN(t[i]->name));
  return 0;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static int read_dims(cursor *c, pst_engine_gguf_tensor *t) {
  int r = read_u32(c, "the tensor table", &t->n_dims);
  if (r < 0) return r;
  if (t->n_dims < 1 || t->n_dims > 4)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path, "tensor '%.*s' has %u dimensions, expected 1 to 4",
                         SHOWN(t->name), t->n_dims);
  t->n_elements = 1;
  for (uint32_t d = 0; d < 4; d++) {
    t->dims[d] = 1;
    if (d >= t->n_dims) continue;
    if ((r = read_u64(c, "the tensor table", &t->dims[d])) < 0) return r;
    if (t->dims[d] == 0)
      return pst_error_set(c->err, PST_E_BAD_INPUT, c->path, "tensor '%.*s' has a dimension of 0", SHOWN(t->name));
    if (t->dims[d] > (uint64_t)INT64_MAX / t->n_elements)
      return pst_error_set(c->err, PST_E_BAD_INPUT, c->path, "the dimensions of tensor '%.*s' overflow",
                           SHOWN(t->name));
    t->n_elements *= t->dims[d];
  }
  return 0;
}

/* Type and size; offset is still relative to the data section. */
static int read_tensor(cursor *c, uint32_t alignment, pst_engine_gguf_tensor *t) {
  *t = (pst_engine_gguf_tensor){0};
  int r = read_name(c, "a tensor's name", MAX_NAME_BYTES, &t->name);
  if (r < 0 || (r = read_dims(c, t)) < 0 || (r = read_u32(c, "the tensor table", &t->type)) < 0 ||
      (r = read_u64(c, "the tensor table", &t->offset)) < 0)
    return r;
  const pst_kernels_type_row *type = pst_kernels_type_info(t->type);
  if (!type)
    return pst_error_set(c->err, PST_E_UNSUPPORTED, c->path,
                         "tensor '%.*s' has the element type %u, which this program does not know", SHOWN(t->name),
                         t->type);
  if (t->dims[0] % type->block_elements)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path,
                         "tensor '%.*s' has rows of %llu elements, not a multiple of %s's block of %u", SHOWN(t->name),
                         (unsigned long long)t->dims[0], type->name, type->block_elements);
  uint64_t n_blocks = t->n_elements / type->block_elements;
  if (n_blocks > c->n / type->block_bytes)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path,
                         "tensor '%.*s' is larger than the whole file: it is truncated or damaged", SHOWN(t->name));
  t->bytes = (size_t)(n_blocks * type->block_bytes);
  if (t->offset % alignment)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path,
                         "the offset %llu of tensor '%.*s' is not a multiple of the alignment %u",
                         (unsigned long long)t->offset, SHOWN(t->name), alignment);
  return 0;
}

static int read_tensors(pst_engine_gguf *g, cursor *c, uint64_t n) {
  if (n > MAX_TENSORS)
    return pst_error_set(c->err, PST_E_LIMIT, c->path, "the header claims %llu tensors, more than %d",
                         (unsigned long long)n, MAX_TENSORS);
  for (uint64_t i = 0; i < n; i++) {
    pst_engine_gguf_tensor t;
    int r = read_tensor(c, g->alignment, &t);
    if (r < 0) return r;
    if (pst_array_reserve((void **)&g->tensors, &g->tensors_capacity, g->n_tensors + 1, sizeof t) < 0)
      return pst_error_set(c->err, PST_E_NOMEM, c->path, "no memory for the tensor table");
    g->tensors[g->n_tensors++] = t;
  }
  return 0;
}

/* Turns offsets into the data section (from c->at on) into offsets into the file, and checks that the file has all of the data and
 * nothing behind it but padding. */
static int place_tensors(pst_engine_gguf *g, const cursor *c) {
  uint64_t pad = (g->alignment - c->at % g->alignment) % g->alignment;
  uint64_t data_start = (uint64_t)c->at + pad; /* at <= n <= SIZE_MAX / 2, no overflow */
  uint64_t end = g->n_tensors ? data_start : c->at;
  for (size_t i = 0; i < g->n_tensors; i++) {
    pst_engine_gguf_tensor *t = &g->tensors[i];
    if (data_start > c->n || t->offset > c->n - data_start || t->bytes > c->n - data_start - t->offset)
      return pst_error_set(
          c->err, PST_E_BAD_INPUT, c->path,
          "the data of tensor '%.*s' reaches past the end of the file (%zu bytes): it is truncated or damaged",
          SHOWN(t->name), c->n);
    t->offset += data_start;
    t->data = c->data + t->offset;
    end = PST_MAX(end, t->offset + t->bytes);
  }
  if (c->n - end >= g->alignment)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path,
                         "%llu bytes stand behind the last tensor: the file is damaged or not one file",
                         (unsigned long long)(c->n - end));
  return 0;
}

/* ---- open and close --------------------------------------------------------------------------------------------- */

static int read_version(pst_engine_gguf *g, cursor *c) {
  if (c->n < 4 || memcmp(c->data, "GGUF", 4) != 0)
    return pst_error_set(c->err, PST_E_BAD_INPUT, c->path, "not a GGUF file: it does not begin with 'GGUF'");
  c->at = 4;
  int r = read_u32(c, "the header", &g->version);
  if (r < 0) return r;
  if (g->version == 2 || g->version == 3) return 0;
  if ((g->version & 0xffff) == 0 && g->version != 0)
    return pst_error_set(c->err, PST_E_UNSUPPORTED, c->path,
                         "a big-endian GGUF file; only little-endian ones are supported");
  return pst_error_set(c->err, PST_E_UNSUPPORTED, c->path, "GGUF version %u; versions 2 and 3 are supported",
                       g->version);
}

static int read_alignment(pst_engine_gguf *g, pst_error *err) {
  uint64_t alignment = DEFAULT_ALIGNMENT;
  int r = pst_engine_gguf_opt_u64(g, "general.alignment", &alignment, err);
  if (r < 0) return r;
  if (alignment < MIN_ALIGNMENT || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)))
    return pst_error_set(err, PST_E_BAD_INPUT, g->path,
                         "general.alignment is %llu, expected a power of two from %d to %d",
                         (unsigned long long)alignment, MIN_ALIGNMENT, MAX_ALIGNMENT);
  g->alignment = (uint32_t)alignment;
  return 0;
}

static int read_file(pst_engine_gguf *g, pst_error *err) {
  cursor c = {g->maps[0].data, g->maps[0].n, 0, g->path, err};
  uint64_t n_tensors = 0, n_values = 0;
  int r = read_version(g, &c);
  if (r < 0 || (r = read_u64(&c, "the header", &n_tensors)) < 0 || (r = read_u64(&c, "the header", &n_values)) < 0 ||
      (r = read_values(g, &c, n_values)) < 0 || (r = index_values(g, err)) < 0 || (r = read_alignment(g, err)) < 0 ||
      (r = read_tensors(g, &c, n_tensors)) < 0 || (r = place_tensors(g, &c)) < 0)
    return r;
  return index_tensors(g, true, err);
}

static bool take_maps(pst_engine_gguf *g, const pst_map *maps, size_t n) {
  if (!(g->maps = pst_malloc(n * sizeof *maps))) return false;
  memcpy(g->maps, maps, n * sizeof *maps);
  g->n_maps = n;
  return true;
}

static int open_mapped(pst_map map, bool owns_maps, const char *path, pst_engine_gguf **ret_gguf, pst_error *err) {
  int r;
  pst_engine_gguf *g = pst_calloc(1, sizeof *g);
  if (!g) {
    if (owns_maps) pst_map_close(&map);
    return pst_error_set(err, PST_E_NOMEM, path, "no memory to open the file");
  }
  g->path = pst_strdup(path);
  if (!take_maps(g, &map, 1) && owns_maps) pst_map_close(&map);
  g->owns_maps = owns_maps;
  if (g->path && g->maps)
    r = read_file(g, err);
  else
    r = pst_error_set(err, PST_E_NOMEM, path, "no memory to open the file");
  if (r < 0) {
    pst_engine_gguf_close(g);
    return r;
  }
  *ret_gguf = g;
  return 0;
}

int pst_engine_gguf_open(const char *path, pst_engine_gguf **ret_gguf, pst_error *err) {
  pst_map map;
  int r = pst_map_open(path, &map, err);
  if (r < 0) return r;
  return open_mapped(map, true, path, ret_gguf, err);
}

int pst_engine_gguf_open_memory(const uint8_t *data, size_t n, const char *name, pst_engine_gguf **ret_gguf,
                                pst_error *err) {
  return open_mapped((pst_map){.data = data, .n = n}, false, name, ret_gguf, err);
}

static int read_parts(pst_engine_gguf *g, const pst_engine_gguf_parts *parts, pst_error *err) {
  cursor c = {(const uint8_t *)g->memory, parts->values.n, 0, g->path, err};
  int r = read_values(g, &c, parts->n_values);
  if (r < 0 || (r = index_values(g, err)) < 0 || (r = read_alignment(g, err)) < 0) return r;
  if (pst_array_reserve((void **)&g->tensors, &g->tensors_capacity, parts->n_tensors, sizeof *g->tensors) < 0)
    return pst_error_set(err, PST_E_NOMEM, g->path, "no memory for the tensor table");
  for (size_t i = 0; i < parts->n_tensors; i++) g->tensors[i] = parts->tensors[i];
  g->n_tensors = parts->n_tensors;
  return index_tensors(g, false, err);
}

int pst_engine_gguf_assemble(const pst_engine_gguf_parts *parts, const char *path, pst_engine_gguf **ret_gguf,
                             pst_error *err) {
  pst_engine_gguf *g = pst_calloc(1, sizeof *g);
  if (!g) return pst_error_set(err, PST_E_NOMEM, path, "no memory to open the file");
  g->path = pst_strdup(path);
  g->memory = pst_malloc(parts->values.n + 1);
  int r = g->path && g->memory ? 0 : pst_error_set(err, PST_E_NOMEM, path, "no memory to open the file");
  if (r == 0) {
    memcpy(g->memory, parts->values.data, parts->values.n);
    r = read_parts(g, parts, err);
  }
  if (r == 0 && !take_maps(g, parts->maps, parts->n_maps))
    r = pst_error_set(err, PST_E_NOMEM, path, "no memory to open the file");
  if (r < 0) {
    pst_engine_gguf_close(g);
    return r;
  }
  g->owns_maps = true;
  g->settings = parts->settings;
  g->arena = parts->arena;
  *ret_gguf = g;
  return 0;
}

void pst_engine_gguf_close(pst_engine_gguf *g) {
  if (!g) return;
  for (size_t i = 0; i < g->n_string_tables; i++) pst_free(g->string_tables[i]);
  pst_free(g->string_tables);
  pst_free(g->values_by_key);
  pst_free(g->tensors_by_name);
  pst_free(g->values);
  pst_free(g->tensors);
  for (size_t i = 0; i < g->n_maps && g->owns_maps; i++) pst_map_close(&g->maps[i]);
  pst_free(g->maps);
  pst_arena_free(g->arena);
  pst_free(g->memory);
  pst_free(g->path);
  pst_free(g);
}

/* ---- look-ups --------------------------------------------------------------------------------------------------- */

const char *pst_engine_gguf_path(const pst_engine_gguf *g) { return g->path; }

uint64_t pst_engine_gguf_bytes(const pst_engine_gguf *g) {
  uint64_t n = 0;
  for (size_t i = 0; i < g->n_maps; i++) n += g->maps[i].n;
  return n;
}

uint64_t pst_engine_gguf_key(const pst_engine_gguf *g) {
  uint64_t key = pst_hash64(&g->settings, sizeof g->settings, g->n_maps);
  for (size_t i = 0; i < g->n_maps; i++) {
    const uint64_t identity[] = {g->maps[i].inode, g->maps[i].mtime_ns, g->maps[i].n};
    key = pst_hash64(identity, sizeof identity, key);
  }
  return key;
}

void pst_engine_gguf_drop_pages(const pst_engine_gguf *g) {
  for (size_t i = 0; i < g->n_maps && g->owns_maps; i++)
    (void)madvise((void *)(uintptr_t)g->maps[i].data, g->maps[i].n, MADV_DONTNEED);
}

uint32_t pst_engine_gguf_version(const pst_engine_gguf *g) { return g->version; }

uint32_t pst_engine_gguf_alignment(const pst_engine_gguf *g) { return g->alignment; }

size_t pst_engine_gguf_n_values(const pst_engine_gguf *g) { return g->n_values; }

const pst_engine_gguf_value *pst_engine_gguf_value_at(const pst_engine_gguf *g, size_t i) {
  return i < g->n_values ? &g->values[i] : NULL;
}

const pst_engine_gguf_value *pst_engine_gguf_find(const pst_engine_gguf *g, const char *key) {
  pst_str want = pst_str_from(key);
  size_t low = 0, high = g->n_values;
  while (low < high) {
    size_t mid = low + (high - low) / 2;
    int order = pst_str_compare(g->values_by_key[mid]->key, want);
    if (order == 0) return g->values_by_key[mid];
    if (order < 0)
      low = mid + 1;
    else
      high = mid;
  }
  return NULL;
}

size_t pst_engine_gguf_n_tensors(const pst_engine_gguf *g) { return g->n_tensors; }

const pst_engine_gguf_tensor *pst_engine_gguf_tensor_at(const pst_engine_gguf *g, size_t i) {
  return i < g->n_tensors ? &g->tensors[i] : NULL;
}

const pst_engine_gguf_tensor *pst_engine_gguf_find_tensor(const pst_engine_gguf *g, const char *name) {
  pst_str want = pst_str_from(name);
  size_t low = 0, high = g->n_tensors;
  while (low < high) {
    size_t mid = low + (high - low) / 2;
    int order = pst_str_compare(g->tensors_by_name[mid]->name, want);
    if (order == 0) return g->tensors_by_name[mid];
    if (order < 0)
      low = mid + 1;
    else
      high = mid;
  }
  return NULL;
}

/* ---- elements --------------------------------------------------------------------------------------------------- */

static bool is_integer(pst_engine_gguf_kind kind) {
  return kind <= PST_ENGINE_GGUF_I32 || kind == PST_ENGINE_GGUF_U64 || kind == PST_ENGINE_GGUF_I64;
}

static bool is_number(pst_engine_gguf_kind kind) {
  return is_integer(kind) || kind == PST_ENGINE_GGUF_F32 || kind == PST_ENGINE_GGUF_F64;
}

pst_str pst_engine_gguf_value_str(const pst_engine_gguf_value *v, uint64_t i) {
  if (v->element != PST_ENGINE_GGUF_STR || i >= v->n) return PST_STR("");
  const uint8_t *p = v->data + (v->string_at ? v->string_at[i] : 0);
  return (pst_str){(const char *)p + 8, (size_t)load_u64(p)};
}

int64_t pst_engine_gguf_value_i64(const pst_engine_gguf_value *v, uint64_t i) {
  if (!is_integer(v->element) || i >= v->n) return 0;
  const uint8_t *p = v->data + (size_t)i * kinds[v->element].bytes;
  switch (v->element) {
  case PST_ENGINE_GGUF_U8: return p[0];
  case PST_ENGINE_GGUF_I8: return (int8_t)p[0];
  case PST_ENGINE_GGUF_U16: return load_u16(p);
  case PST_ENGINE_GGUF_I16: return (int16_t)load_u16(p);
  case PST_ENGINE_GGUF_U32: return load_u32(p);
  case PST_ENGINE_GGUF_I32: return (int32_t)load_u32(p);
  case PST_ENGINE_GGUF_I64: return (int64_t)load_u64(p);
  default: return (int64_t)PST_MIN(load_u64(p), (uint64_t)INT64_MAX);
  }
}

double pst_engine_gguf_value_f64(const pst_engine_gguf_value *v, uint64_t i) {
  if (!is_number(v->element) || i >= v->n) return 0;
  const uint8_t *p = v->data + (size_t)i * kinds[v->element].bytes;
  if (v->element == PST_ENGINE_GGUF_F32) {
    uint32_t bits = load_u32(p);
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
  }
  if (v->element == PST_ENGINE_GGUF_F64) {
    uint64_t bits = load_u64(p);
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
  }
  return v->element == PST_ENGINE_GGUF_U64 ? (double)load_u64(p) : (double)pst_engine_gguf_value_i64(v, i);
}

bool pst_engine_gguf_value_bool(const pst_engine_gguf_value *v, uint64_t i) {
  return v->element == PST_ENGINE_GGUF_BOOL && i < v->n && v->data[i] != 0;
}

/* ---- typed getters ---------------------------------------------------------------------------------------------- */

static int wrong_kind(const pst_engine_gguf *g, const pst_engine_gguf_value *v, const char *expected, pst_error *err) {
  bool array = v->kind == PST_ENGINE_GGUF_ARRAY;
  return pst_error_set(err, PST_E_BAD_INPUT, g->path, "the metadata key '%.*s' is %s%s, expected %s", SHOWN(v->key),
                       array ? "an array of " : "of kind ", kinds[v->element].name, expected);
}

static int missing(const pst_engine_gguf *g, const char *key, pst_error *err) {
  return pst_error_set(err, PST_E_NOT_FOUND, g->path, "the metadata key '%s' is missing", key);
}

/* 1: found and of the right shape; 0: missing. */
static int find_scalar(const pst_engine_gguf *g, const char *key, bool (*accepts)(pst_engine_gguf_kind),
                       const char *expected, const pst_engine_gguf_value **ret_value, pst_error *err) {
  const pst_engine_gguf_value *v = pst_engine_gguf_find(g, key);
  if (!v) return 0;
  if (v->kind == PST_ENGINE_GGUF_ARRAY || !accepts(v->kind)) return wrong_kind(g, v, expected, err);
  *ret_value = v;
  return 1;
}

static bool is_bool(pst_engine_gguf_kind kind) { return kind == PST_ENGINE_GGUF_BOOL; }

static bool is_str(pst_engine_gguf_kind kind) { return kind == PST_ENGINE_GGUF_STR; }

int pst_engine_gguf_opt_u64(const pst_engine_gguf *g, const char *key, uint64_t *value, pst_error *err) {
  const pst_engine_gguf_value *v = NULL;
  int r = find_scalar(g, key, is_integer, "an integer", &v, err);
  if (r <= 0) return r;
  int64_t i = pst_engine_gguf_value_i64(v, 0);
  if (i < 0)
    return pst_error_set(err, PST_E_BAD_INPUT, g->path, "the metadata key '%s' is %lld, expected 0 or more", key,
                         (long long)i);
  *value = v->kind == PST_ENGINE_GGUF_U64 ? load_u64(v->data) : (uint64_t)i;
  return 0;
}

int pst_engine_gguf_opt_i64(const pst_engine_gguf *g, const char *key, int64_t *value, pst_error *err) {
  const pst_engine_gguf_value *v = NULL;
  int r = find_scalar(g, key, is_integer, "an integer", &v, err);
  if (r <= 0) return r;
  if (v->kind == PST_ENGINE_GGUF_U64 && load_u64(v->data) > (uint64_t)INT64_MAX)
    return pst_error_set(err, PST_E_BAD_INPUT, g->path, "the metadata key '%s' is too large", key);
  *value = pst_engine_gguf_value_i64(v, 0);
  return 0;
}

int pst_engine_gguf_opt_f64(const pst_engine_gguf *g, const char *key, double *value, pst_error *err) {
  const pst_engine_gguf_value *v = NULL;
  int r = find_scalar(g, key, is_number, "a number", &v, err);
  if (r <= 0) return r;
  *value = pst_engine_gguf_value_f64(v, 0);
  return 0;
}

int pst_engine_gguf_opt_bool(const pst_engine_gguf *g, const char *key, bool *value, pst_error *err) {
  const pst_engine_gguf_value *v = NULL;
  int r = find_scalar(g, key, is_bool, "a bool", &v, err);
  if (r <= 0) return r;
  *value = pst_engine_gguf_value_bool(v, 0);
  return 0;
}

int pst_engine_gguf_opt_str(const pst_engine_gguf *g, const char *key, pst_str *value, pst_error *err) {
  const pst_engine_gguf_value *v = NULL;
  int r = find_scalar(g, key, is_str, "a string", &v, err);
  if (r <= 0) return r;
  *value = pst_engine_gguf_value_str(v, 0);
  return 0;
}

/* The required forms: the optional ones behind a check that the key is there. */
#define DEFINE_GET(suffix, c_type)                                                                                     \
  int pst_engine_gguf_get_##suffix(const pst_engine_gguf *g, const char *key, c_type *ret_value, pst_error *err) {     \
    return pst_engine_gguf_find(g, key) ? pst_engine_gguf_opt_##suffix(g, key, ret_value, err) : missing(g, key, err); \
  }
DEFINE_GET(u64, uint64_t)
DEFINE_GET(i64, int64_t)
DEFINE_GET(f64, double)
DEFINE_GET(bool, bool)
DEFINE_GET(str, pst_str)

int pst_engine_gguf_get_array(const pst_engine_gguf *g, const char *key, pst_engine_gguf_class elements,
                              const pst_engine_gguf_value **ret_array, pst_error *err) {
  static const struct {
    bool (*accepts)(pst_engine_gguf_kind);
    const char *expected;
  } classes[] = {
      [PST_ENGINE_GGUF_STRINGS] = {is_str, "an array of strings"},
      [PST_ENGINE_GGUF_INTEGERS] = {is_integer, "an array of integers"},
      [PST_ENGINE_GGUF_NUMBERS] = {is_number, "an array of numbers"},
      [PST_ENGINE_GGUF_BOOLS] = {is_bool, "an array of bools"},
  };
  const pst_engine_gguf_value *v = pst_engine_gguf_find(g, key);
  if (!v) return missing(g, key, err);
  if (v->kind != PST_ENGINE_GGUF_ARRAY || !classes[elements].accepts(v->element))
    return wrong_kind(g, v, classes[elements].expected, err);
  *ret_array = v;
  return 0;
}
