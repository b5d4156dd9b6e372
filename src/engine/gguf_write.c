/* The GGUF writer: metadata kept in order and overridable until the first tensor byte, then tensors streamed.
 *
 * Owns the layout of the new file and its appearing whole or not at all: everything goes to a temporary beside the target, which is
 * synced and renamed in finish. Does not own what is written. Metadata entries are kept as the bytes they will have in the file, so
 * that copying from another file needs no knowledge of kinds; copied values stay views into the source's mapping, since a vocabulary
 * is tens of megabytes. Errors of the put and add calls are kept and come out of the next call that can return them: a caller writes
 * straight lines. */
#include "engine/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 18 };

typedef struct entry {
  char *key;
  uint32_t kind;
  const uint8_t *bytes; /* the value as in the file */
  size_t n;
  uint8_t *owned; /* NULL when bytes is a view into the source */
} entry;

typedef struct planned_tensor {
  char *name;
  size_t name_n;
  uint32_t type, n_dims;
  uint64_t dims[4];
  uint64_t offset; /* in the data section */
  uint64_t bytes;
} planned_tensor;

struct pst_engine_gguf_writer {
  char *path, *temp_path;
  int fd; /* -1 before the first byte and after finish */
  uint32_t alignment;
  entry *entries;
  size_t n_entries, entries_capacity;
  planned_tensor *tensors;
  size_t n_tensors, tensors_capacity;
  uint64_t data_end;        /* end of the last planned tensor, in the data section */
  size_t current;           /* tensor being written */
  uint64_t current_written; /* bytes of it */
  uint8_t *buffer;
  size_t buffered;
  bool begun, finished;
  pst_error error; /* the first failure; sticky */
};

static int fail(pst_engine_gguf_writer *w, int code, const char *message, const char *name) {
  if (w->error.code == 0) pst_error_set(&w->error, code, w->path, message, name);
  return w->error.code;
}

static int report(const pst_engine_gguf_writer *w, pst_error *err) {
  if (err && w->error.code) *err = w->error;
  return w->error.code;
}

int pst_engine_gguf_writer_create(const char *path, uint32_t alignment, pst_engine_gguf_writer **ret_writer,
                                  pst_error *err) {
  if (alignment < 8 || alignment > 65536 || (alignment & (alignment - 1)))
    return pst_error_set(err, PST_E_BAD_INPUT, path, "alignment %u, expected a power of two from 8 to 65536",
                         alignment);
  pst_engine_gguf_writer *w = pst_calloc(1, sizeof *w);
  if (w) {
    w->fd = -1;
    w->alignment = alignment;
    w->path = pst_strdup(path);
    w->buffer = pst_malloc(BUFFER_BYTES);
  }
  if (!w || !w->path || !w->buffer) {
    pst_engine_gguf_writer_free(w);
    return pst_error_set(err, PST_E_NOMEM, path, "no memory to write the file");
  }
  *ret_writer = w;
  return 0;
}

void pst_engine_gguf_writer_free(pst_engine_gguf_writer *w) {
  if (!w) return;
  if (w->temp_path && !w->finished) unlink(w->temp_path);
  if (w->fd >= 0) close(w->fd);
  for (size_t i = 0; i < w->n_entries; i++) {
    pst_free(w->entries[i].key);
    pst_free(w->entries[i].owned);
  }
  for (size_t i = 0; i < w->n_tensors; i++) pst_free(w->tensors[i].name);
  pst_free(w->entries);
  pst_free(w->tensors);
  pst_free(w->buffer);
  pst_free(w->temp_path);
  pst_free(w->path);
  pst_free(w);
}

/* ---- metadata --------------------------------------------------------------------------------------------------- */

/* Takes over `owned`, also on failure. */
static void put_entry(pst_engine_gguf_writer *w, pst_str key, uint32_t kind, const uint8_t *bytes, size_t n,
                      uint8_t *owned) {
  entry *e = NULL;
  if (w->begun) {
    fail(w, PST_E_INTERNAL, "metadata was put after the first tensor byte%s", "");
    goto refused;
  }
  for (size_t i = 0; i < w->n_entries; i++)
    if (pst_str_is(key, w->entries[i].key)) e = &w->entries[i];
  if (!e) {
    char *copy = pst_strndup(key.data, key.n);
    if (!copy || pst_array_reserve((void **)&w->entries, &w->entries_capacity, w->n_entries + 1, sizeof *e) < 0) {
      pst_free(copy);
      fail(w, PST_E_NOMEM, "no memory for the metadata%s", "");
      goto refused;
    }
    e = &w->entries[w->n_entries++];
    *e = (entry){.key = copy};
  }
  pst_free(e->owned);
  e->kind = kind;
  e->bytes = bytes;
  e->n = n;
  e->owned = owned;
  return;
refused:
  pst_free(owned);
}

/* The same over a buffer, whose memory goes to the entry. */
static void put_buffer(pst_engine_gguf_writer *w, const char *key, uint32_t kind, pst_buf *b) {
  size_t n = b->n;
  bool failed = pst_buf_status(b) < 0;
  uint8_t *bytes = failed ? NULL : (uint8_t *)pst_buf_take(b);
  if (failed || !bytes)
    fail(w, PST_E_NOMEM, "no memory for the metadata%s", "");
  else
    put_entry(w, pst_str_from(key), kind, bytes, n, bytes);
  pst_buf_done(b);
}

static void append_u32(pst_buf *b, uint32_t v) {
  uint8_t p[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
  pst_buf_append(b, p, sizeof p);
}

static void append_u64(pst_buf *b, uint64_t v) {
  append_u32(b, (uint32_t)v);
  append_u32(b, (uint32_t)(v >> 32));
}

static void append_str(pst_buf *b, pst_str s) {
  append_u64(b, s.n);
  pst_buf_append_str(b, s);
}

void pst_engine_gguf_writer_put_u32(pst_engine_gguf_writer *w, const char *key, uint32_t value) {
  pst_buf b = PST_BUF_INIT;
  append_u32(&b, value);
  put_buffer(w, key, PST_ENGINE_GGUF_U32, &b);
}

void pst_engine_gguf_writer_put_u64(pst_engine_gguf_writer *w, const char *key, uint64_t value) {
  pst_buf b = PST_BUF_INIT;
  append_u64(&b, value);
  put_buffer(w, key, PST_ENGINE_GGUF_U64, &b);
}

void pst_engine_gguf_writer_put_i32(pst_engine_gguf_writer *w, const char *key, int32_t value) {
  pst_buf b = PST_BUF_INIT;
  append_u32(&b, (uint32_t)value);
  put_buffer(w, key, PST_ENGINE_GGUF_I32, &b);
}

void pst_engine_gguf_writer_put_f32(pst_engine_gguf_writer *w, const char *key, float value) {
  pst_buf b = PST_BUF_INIT;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  append_u32(&b, bits);
  put_buffer(w, key, PST_ENGINE_GGUF_F32, &b);
}

void pst_engine_gguf_writer_put_bool(pst_engine_gguf_writer *w, const char *key, bool value) {
  pst_buf b = PST_BUF_INIT;
  pst_buf_putc(&b, value ? 1 : 0);
  put_buffer(w, key, PST_ENGINE_GGUF_BOOL, &b);
}

void pst_engine_gguf_writer_put_str(pst_engine_gguf_writer *w, const char *key, pst_str value) {
  pst_buf b = PST_BUF_INIT;
  append_str(&b, value);
  put_buffer(w, key, PST_ENGINE_GGUF_STR, &b);
}

void pst_engine_gguf_writer_put_strs(pst_engine_gguf_writer *w, const char *key, const pst_str *values, size_t n) {
  pst_buf b = PST_BUF_INIT;
  append_u32(&b, PST_ENGINE_GGUF_STR);
  append_u64(&b, n);
  for (size_t i = 0; i < n; i++) append_str(&b, values[i]);
  put_buffer(w, key, PST_ENGINE_GGUF_ARRAY, &b);
}

/* The format is little-endian, and so is every machine this program is built for. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arrays are written as they lie in memory");

void pst_engine_gguf_writer_put_array(pst_engine_gguf_writer *w, const char *key, pst_engine_gguf_kind element,
                                      const void *values, size_t n) {
  static const uint8_t element_bytes[PST_ENGINE_GGUF_KIND_END] = {
      [PST_ENGINE_GGUF_U8] = 1,  [PST_ENGINE_GGUF_I8] = 1,  [PST_ENGINE_GGUF_U16] = 2, [PST_ENGINE_GGUF_I16] = 2,
      [PST_ENGINE_GGUF_U32] = 4, [PST_ENGINE_GGUF_I32] = 4, [PST_ENGINE_GGUF_F32] = 4, [PST_ENGINE_GGUF_BOOL] = 1,
      [PST_ENGINE_GGUF_U64] = 8, [PST_ENGINE_GGUF_I64] = 8, [PST_ENGINE_GGUF_F64] = 8,
  };
  if ((unsigned)element >= PST_ENGINE_GGUF_KIND_END || element_bytes[element] == 0 || n > SIZE_MAX / 8) {
    fail(w, PST_E_INTERNAL, "the array '%s' has elements of no fixed size", key);
    return;
  }
  pst_buf b = PST_BUF_INIT;
  append_u32(&b, element);
  append_u64(&b, n);
  pst_buf_append(&b, values, n * element_bytes[element]);
  put_buffer(w, key, PST_ENGINE_GGUF_ARRAY, &b);
}

void pst_engine_gguf_writer_copy_value(pst_engine_gguf_writer *w, const pst_engine_gguf_value *value) {
  if (pst_str_is(value->key, "general.alignment")) return;
  put_entry(w, value->key, value->kind, value->raw, value->raw_bytes, NULL);
}

void pst_engine_gguf_writer_copy_values(pst_engine_gguf_writer *w, const pst_engine_gguf *source) {
  for (size_t i = 0; i < pst_engine_gguf_n_values(source); i++)
    pst_engine_gguf_writer_copy_value(w, pst_engine_gguf_value_at(source, i));
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

void pst_engine_gguf_writer_add_tensor(pst_engine_gguf_writer *w, pst_str name, uint32_t type, uint32_t n_dims,
                                       const uint64_t *dims) {
  if (w->error.code) return;
  if (w->begun) {
    fail(w, PST_E_INTERNAL, "a tensor was added after the first tensor byte%s", "");
    return;
  }
  planned_tensor t = {.name_n = name.n, .type = type, .n_dims = n_dims, .dims = {1, 1, 1, 1}};
  uint64_t n_rows = 1;
  bool fits = n_dims >= 1 && n_dims <= 4 && name.n >= 1 && name.n <= 255;
  for (uint32_t d = 0; fits && d < n_dims; d++) {
    t.dims[d] = dims[d];
    fits = dims[d] > 0 && (d == 0 || !__builtin_mul_overflow(n_rows, dims[d], &n_rows));
  }
  size_t row_bytes = fits ? pst_kernels_row_bytes(type, t.dims[0]) : 0;
  uint64_t padded = (w->data_end + w->alignment - 1) & ~(uint64_t)(w->alignment - 1);
  t.offset = padded;
  if (!row_bytes || __builtin_mul_overflow(n_rows, (uint64_t)row_bytes, &t.bytes) ||
      t.bytes > (uint64_t)INT64_MAX - padded - 65536) {
    char shown[256];
    snprintf(shown, sizeof shown, "%.*s", (int)PST_MIN(name.n, (size_t)200), name.data);
    fail(w, PST_E_BAD_INPUT, "the tensor '%s' has a shape that its type cannot hold", shown);
    return;
  }
  t.name = pst_strndup(name.data, name.n);
  if (!t.name || pst_array_reserve((void **)&w->tensors, &w->tensors_capacity, w->n_tensors + 1, sizeof t) < 0) {
    pst_free(t.name);
    fail(w, PST_E_NOMEM, "no memory for the tensor table%s", "");
    return;
  }
  w->data_end = padded + t.bytes;
  w->tensors[w->n_tensors++] = t;
}

/* ---- output ----------------------------------------------------------------------------------------------------- */

static int write_out(pst_engine_gguf_writer *w, const uint8_t *p, size_t n) {
  while (n > 0) {
    ssize_t k = write(w->fd, p, PST_MIN(n, (size_t)1 << 30));
    if (k < 0) {
      if (errno == EINTR) continue;
      return pst_error_set_errno(&w->error, errno, w->path, "cannot write");
    }
    p += k;
    n -= (size_t)k;
  }
  return 0;
}

static int flush(pst_engine_gguf_writer *w) {
  int r = write_out(w, w->buffer, w->buffered);
  w->buffered = 0;
  return r;
}

static int emit(pst_engine_gguf_writer *w, const void *data, size_t n) {
  if (w->buffered + n > BUFFER_BYTES) {
    int r = flush(w);
    if (r < 0) return r;
  }
  if (n > BUFFER_BYTES) return write_out(w, data, n);
  if (n) memcpy(w->buffer + w->buffered, data, n);
  w->buffered += n;
  return 0;
}

static int emit_padding(pst_engine_gguf_writer *w, uint64_t position) {
  static const uint8_t zeros[256];
  size_t pad = (size_t)(-position & (w->alignment - 1));
  int r = 0;
  while (pad > 0 && r == 0) {
    size_t n = PST_MIN(pad, sizeof zeros);
    r = emit(w, zeros, n);
    pad -= n;
  }
  return r;
}

static int begin(pst_engine_gguf_writer *w) {
  if (w->begun) return 0;
  pst_engine_gguf_writer_put_u32(w, "general.alignment", w->alignment);
  w->begun = true;
  if (w->error.code) return w->error.code;
  int r = pst_file_open_temporary(w->path, &w->temp_path, &w->fd, &w->error);
  if (r < 0) return r;
  pst_buf b = PST_BUF_INIT;
  uint64_t position = 0;
  pst_buf_puts(&b, "GGUF");
  append_u32(&b, 3);
  append_u64(&b, w->n_tensors);
  append_u64(&b, w->n_entries);
  for (size_t i = 0; r == 0 && i < w->n_entries; i++) {
    const entry *e = &w->entries[i];
    append_str(&b, pst_str_from(e->key));
    append_u32(&b, e->kind);
    if (pst_buf_status(&b) < 0) break; /* told below */
    if ((r = emit(w, b.data, b.n)) < 0 || (r = emit(w, e->bytes, e->n)) < 0) break;
    position += b.n + e->n;
    pst_buf_clear(&b);
  }
  for (size_t i = 0; r == 0 && i < w->n_tensors; i++) {
    const planned_tensor *t = &w->tensors[i];
    append_str(&b, (pst_str){t->name, t->name_n});
    append_u32(&b, t->n_dims);
    for (uint32_t d = 0; d < t->n_dims; d++) append_u64(&b, t->dims[d]);
    append_u32(&b, t->type);
    append_u64(&b, t->offset);
  }
  if (r == 0 && pst_buf_status(&b) < 0) r = fail(w, PST_E_NOMEM, "no memory for the tensor table%s", "");
  if (r == 0) r = emit(w, b.data, b.n);
  if (r == 0) r = emit_padding(w, position + b.n);
  pst_buf_done(&b);
  return r;
}

int pst_engine_gguf_writer_write(pst_engine_gguf_writer *w, const void *data, size_t n, pst_error *err) {
  if (w->error.code == 0) begin(w);
  if (w->error.code) return report(w, err);
  if (w->current >= w->n_tensors || n > w->tensors[w->current].bytes - w->current_written) {
    fail(w, PST_E_INTERNAL, "more bytes than the tensor '%s' has",
         w->current < w->n_tensors ? w->tensors[w->current].name : "(none)");
    return report(w, err);
  }
  if (emit(w, data, n) < 0) return report(w, err);
  w->current_written += n;
  if (w->current_written == w->tensors[w->current].bytes) {
    const planned_tensor *t = &w->tensors[w->current++];
    w->current_written = 0;
    emit_padding(w, t->offset + t->bytes);
  }
  return report(w, err);
}

int pst_engine_gguf_writer_finish(pst_engine_gguf_writer *w, pst_error *err) {
  if (w->error.code == 0) begin(w);
  if (w->error.code == 0 && w->current < w->n_tensors)
    fail(w, PST_E_INTERNAL, "the tensor '%s' is incomplete", w->tensors[w->current].name);
  if (w->error.code || flush(w) < 0) return report(w, err);
  if (fsync(w->fd) < 0) pst_error_set_errno(&w->error, errno, w->path, "cannot sync");
  if (w->error.code == 0 && rename(w->temp_path, w->path) < 0)
    pst_error_set_errno(&w->error, errno, w->path, "cannot rename into place");
  if (w->error.code) return report(w, err);
  close(w->fd);
  w->fd = -1;
  w->finished = true;
  pst_file_sync_parent(w->path);
  return 0;
}

int pst_engine_gguf_check_target(const char *in_path, const char *out_path, pst_error *err) {
  struct stat a, b;
  if (stat(out_path, &b)) return 0; /* nothing there; the writer tells the rest */
  if (S_ISDIR(b.st_mode))
    return pst_error_set(err, PST_E_BAD_INPUT, out_path, "is a directory; give the new file a name in it");
  if (stat(in_path, &a) || a.st_dev != b.st_dev || a.st_ino != b.st_ino) return 0;
  return pst_error_set(err, PST_E_BAD_INPUT, out_path, "is the file to be read; give the new one another name");
}
