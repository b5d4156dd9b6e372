/* The safetensors format, read and written: an 8-byte length, a JSON object of {dtype, shape, data_offsets} by name, the data.
 *
 * Owns the format. What the names mean is checkpoint.c's. As with GGUF nothing is believed: each tensor's size must be what its shape says and lie inside the
 * file. Entries may share bytes: tied weights. */
#include "engine/safetensors.h"

#include <string.h>

enum { MAX_HEADER = 64 << 20, MAX_TENSORS = 1 << 20, MAX_NAME = 255 };

typedef struct reading {
  const pst_map *map;
  const char *path;
  size_t data_start;
  pst_arena *arena;
  pst_error *err;
} reading;

static int bad(const reading *r, pst_str name, const char *what) {
  return pst_error_set(r->err, PST_E_BAD_INPUT, r->path, "tensor '%.*s' %s", (int)PST_MIN(name.n, (size_t)100),
                       name.data, what);
}

static const struct {
  const char *dtype;
  uint32_t type;
  size_t bytes;
} dtypes[] = {
    {"F32", PST_TYPE_F32, 4},
    {"F16", PST_TYPE_F16, 2},
    {"BF16", PST_TYPE_BF16, 2},
    {"F64", PST_ENGINE_SAFETENSORS_OTHER, 8},
    {"I64", PST_ENGINE_SAFETENSORS_OTHER, 8},
    {"U64", PST_ENGINE_SAFETENSORS_OTHER, 8},
    {"I32", PST_ENGINE_SAFETENSORS_OTHER, 4},
    {"U32", PST_ENGINE_SAFETENSORS_OTHER, 4},
    {"I16", PST_ENGINE_SAFETENSORS_OTHER, 2},
    {"U16", PST_ENGINE_SAFETENSORS_OTHER, 2},
    {"I8", PST_ENGINE_SAFETENSORS_OTHER, 1},
    {"U8", PST_ENGINE_SAFETENSORS_OTHER, 1},
    {"BOOL", PST_ENGINE_SAFETENSORS_OTHER, 1},
};

static int read_shape(const reading *r, const pst_json *shape, pst_engine_gguf_tensor *t) {
  size_t n = pst_json_size(shape);
  if (pst_json_typeof(shape) != PST_JSON_ARRAY) return bad(r, t->name, "has no shape");
  if (n > 4) return bad(r, t->name, "has more than 4 dimensions");
  t->n_dims = (uint32_t)PST_MAX(n, (size_t)1);
  t->n_elements = 1;
  for (size_t d = 0; d < 4; d++) t->dims[d] = 1;
  for (size_t d = 0; d < n; d++) {
    int64_t size = pst_json_int(pst_json_at(shape, n - 1 - d), -1);
    if (size < 1 || size > INT64_MAX / (int64_t)t->n_elements)
      return bad(r, t->name, "has a dimension that is not a positive number, or too large");
    t->dims[d] = (uint64_t)size;
    t->n_elements *= (uint64_t)size;
  }
  return 0;
}

static int read_tensor(const reading *r, pst_str name, const pst_json *entry, pst_engine_gguf_tensor *t) {
  *t = (pst_engine_gguf_tensor){0};
  t->name = name;
  const char *copy = pst_arena_strndup(r->arena, name.data, name.n);
  if (!copy) return pst_error_set(r->err, PST_E_NOMEM, r->path, "no memory for the tensor table");
  if (name.n == 0 || name.n > MAX_NAME) return bad(r, name, "has a name of no bytes, or of more than 255");
  t->name.data = copy;
  pst_str dtype = pst_json_str(pst_json_get(entry, "dtype"));
  size_t k = 0;
  while (k < PST_ARRAY_LEN(dtypes) && !pst_str_is(dtype, dtypes[k].dtype)) k++;
  if (k == PST_ARRAY_LEN(dtypes))
    return pst_error_set(r->err, PST_E_UNSUPPORTED, r->path, "tensor '%.*s' has the unknown dtype '%.*s'",
                         (int)PST_MIN(name.n, (size_t)100), name.data, (int)PST_MIN(dtype.n, (size_t)20), dtype.data);
  t->type = dtypes[k].type;
  int code = read_shape(r, pst_json_get(entry, "shape"), t);
  if (code) return code;
  const pst_json *offsets = pst_json_get(entry, "data_offsets");
  int64_t begin = pst_json_int(pst_json_at(offsets, 0), -1), end = pst_json_int(pst_json_at(offsets, 1), -1);
  uint64_t room = r->map->n - r->data_start;
  if (pst_json_size(offsets) != 2 || begin < 0 || end < begin || (uint64_t)end > room)
    return bad(r, name, "lies outside the file: it is truncated or damaged");
  t->bytes = (size_t)(end - begin);
  if (t->n_elements > room / dtypes[k].bytes || t->bytes != t->n_elements * dtypes[k].bytes)
    return bad(r, name, "does not have the bytes that its shape asks for");
  t->offset = (uint64_t)begin + r->data_start;
  t->data = r->map->data + t->offset;
  return 0;
}

static int read_header(const pst_map *map, const char *path, size_t *ret_n, pst_error *err) {
  uint64_t n = 0;
  for (size_t i = 0; i < 8 && map->n >= 8; i++) n |= (uint64_t)map->data[i] << (8 * i);
  if (map->n < 8 || n < 2 || n > map->n - 8)
    return pst_error_set(err, PST_E_BAD_INPUT, path, "not a safetensors file, or a truncated one");
  if (n > MAX_HEADER)
    return pst_error_set(err, PST_E_LIMIT, path, "the header has %llu bytes, more than %d", (unsigned long long)n,
                         MAX_HEADER);
  *ret_n = (size_t)n;
  return 0;
}

int pst_engine_safetensors_header(const pst_map *map, const char *path, pst_json_doc **ret_doc, size_t *ret_data_start,
                                  pst_error *err) {
  size_t header = 0;
  pst_json_doc *doc = NULL;
  int code = read_header(map, path, &header, err);
  if (!code) code = pst_json_parse((const char *)map->data + 8, header, path, &doc, err);
  if (code) return code;
  if (pst_json_typeof(pst_json_root(doc)) != PST_JSON_OBJECT) {
    pst_json_free(doc);
    return pst_error_set(err, PST_E_BAD_INPUT, path, "the header is no JSON object");
  }
  *ret_doc = doc;
  *ret_data_start = 8 + header;
  return 0;
}

int pst_engine_safetensors_read(const pst_map *map, const char *path, pst_arena *arena,
                                pst_engine_gguf_tensor **ret_tensors, size_t *ret_n, pst_error *err) {
  size_t n = 0;
  pst_json_doc *doc = NULL;
  reading r = {map, path, 0, arena, err};
  int code = pst_engine_safetensors_header(map, path, &doc, &r.data_start, err);
  if (code) return code;
  const pst_json *root = pst_json_root(doc);
  size_t most = pst_json_size(root);
  pst_engine_gguf_tensor *tensors = NULL;
  if (most > MAX_TENSORS)
    code = pst_error_set(err, PST_E_LIMIT, path, "the header names %zu tensors, more than %d", most, MAX_TENSORS);
  else if (!(tensors = pst_arena_calloc(arena, most + 1, sizeof *tensors)))
    code = pst_error_set(err, PST_E_NOMEM, path, "no memory for the tensor table");
  for (pst_json_iter it = pst_json_iterate(root); !code && pst_json_next(&it);)
    if (!pst_str_is(it.key, "__metadata__")) code = read_tensor(&r, it.key, it.value, &tensors[n++]);
  pst_json_free(doc);
  if (code) return code;
  *ret_tensors = tensors;
  *ret_n = n;
  return 0;
}

/* ---- writing ---- */

static void put_header(pst_json_writer *j, const pst_engine_safetensors_item *items, size_t n_items,
                       const pst_engine_safetensors_note *notes, size_t n_notes) {
  uint64_t at = 0;
  pst_json_begin_object(j);
  if (n_notes) {
    pst_json_key(j, "__metadata__");
    pst_json_begin_object(j);
    for (size_t i = 0; i < n_notes; i++) {
      pst_json_member_cstr(j, notes[i].key, notes[i].text);
    }
    pst_json_end_object(j);
  }
  for (size_t i = 0; i < n_items; i++) {
    uint64_t end = at + items[i].shape[0] * items[i].shape[1] * sizeof(float);
    pst_json_key(j, items[i].name);
    pst_json_begin_object(j);
    pst_json_member_cstr(j, "dtype", "F32");
    pst_json_key(j, "shape");
    pst_json_begin_array(j);
    for (size_t d = 0; d < 2; d++) pst_json_put_int(j, (int64_t)items[i].shape[d]);
    pst_json_end_array(j);
    pst_json_key(j, "data_offsets");
    pst_json_begin_array(j);
    pst_json_put_int(j, (int64_t)at);
    pst_json_put_int(j, (int64_t)end);
    pst_json_end_array(j);
    pst_json_end_object(j);
    at = end;
  }
  pst_json_end_object(j);
}

/* Floats are written as they lie in memory. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian");

int pst_engine_safetensors_write(const char *path, const pst_engine_safetensors_item *items, size_t n_items,
                                 const pst_engine_safetensors_note *notes, size_t n_notes, pst_error *err) {
  pst_buf header = PST_BUF_INIT;
  pst_json_writer j = pst_json_writer_on(&header, false);
  pst_str *parts = pst_calloc(n_items + 2, sizeof *parts);
  char length[8];
  int code = 0;
  put_header(&j, items, n_items, notes, n_notes);
  while (header.n % 8 && !pst_buf_status(&header)) pst_buf_putc(&header, ' '); /* the data begins on a multiple of 8 */
  if (!parts || pst_buf_status(&header))
    code = pst_error_set(err, PST_E_NOMEM, path, "no memory to write the file");
  else if (header.n > MAX_HEADER || n_items > MAX_TENSORS)
    code = pst_error_set(err, PST_E_LIMIT, path, "too many tensors for one file: %zu", n_items);
  if (!code) {
    for (size_t i = 0; i < sizeof length; i++) length[i] = (char)(header.n >> (8 * i));
    parts[0] = (pst_str){length, sizeof length};
    parts[1] = pst_buf_str(&header);
    for (size_t i = 0; i < n_items; i++)
      parts[i + 2] =
          (pst_str){(const char *)items[i].data, (size_t)(items[i].shape[0] * items[i].shape[1] * sizeof(float))};
    code = pst_file_write_parts_atomic(path, parts, n_items + 2, err);
  }
  pst_free(parts);
  pst_buf_done(&header);
  return code;
}
