/* What the files of a checkpoint say, as entries of GGUF metadata. */
#include <math.h>
#include <string.h>

#include "engine/checkpoint_impl.h"

/* ---- writing metadata ---- */

void pst_engine_ckpt_add_u32(pst_buf *out, uint32_t v) {
  const uint8_t bytes[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
  pst_buf_append(out, bytes, sizeof bytes);
}

void pst_engine_ckpt_add_u64(pst_buf *out, uint64_t v) {
  pst_engine_ckpt_add_u32(out, (uint32_t)v);
  pst_engine_ckpt_add_u32(out, (uint32_t)(v >> 32));
}

void pst_engine_ckpt_add_str(pst_buf *out, pst_str s) {
  pst_engine_ckpt_add_u64(out, s.n);
  pst_buf_append(out, s.data, s.n);
}

/* A key; without a dot it belongs to the architecture. */
static void put_key(pst_engine_ckpt *d, const char *name, pst_engine_gguf_kind kind) {
  char key[128];
  bool whole = !strncmp(name, "general.", 8) || !strncmp(name, "tokenizer.", 10);
  snprintf(key, sizeof key, "%s%s%s", whole ? "" : d->architecture, whole ? "" : ".", name);
  pst_engine_ckpt_add_str(&d->values, pst_str_from(key));
  pst_engine_ckpt_add_u32(&d->values, kind);
  d->n_values++;
}

void pst_engine_ckpt_put_int(pst_engine_ckpt *d, const char *name, int64_t value) {
  put_key(d, name, PST_ENGINE_GGUF_U32);
  pst_engine_ckpt_add_u32(&d->values, (uint32_t)value);
}

void pst_engine_ckpt_put_float(pst_engine_ckpt *d, const char *name, double value) {
  float f = (float)value;
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  put_key(d, name, PST_ENGINE_GGUF_F32);
  pst_engine_ckpt_add_u32(&d->values, bits);
}

void pst_engine_ckpt_put_bool(pst_engine_ckpt *d, const char *name, bool value) {
  put_key(d, name, PST_ENGINE_GGUF_BOOL);
  pst_buf_putc(&d->values, value);
}

void pst_engine_ckpt_put_str(pst_engine_ckpt *d, const char *name, pst_str value) {
  put_key(d, name, PST_ENGINE_GGUF_STR);
  pst_engine_ckpt_add_str(&d->values, value);
}

void pst_engine_ckpt_put_array(pst_engine_ckpt *d, const char *name, pst_engine_gguf_kind element, uint64_t n) {
  put_key(d, name, PST_ENGINE_GGUF_ARRAY);
  pst_engine_ckpt_add_u32(&d->values, element);
  pst_engine_ckpt_add_u64(&d->values, n);
}

/* ---- reading JSON ---- */

int pst_engine_ckpt_fail(const pst_engine_ckpt *d, int code, const char *file, const char *what, const char *name) {
  return pst_error_set(d->err, code, d->path, "%s: '%s' %s", file, name, what);
}

int pst_engine_ckpt_copy_int(pst_engine_ckpt *d, const char *member, const char *key) {
  const pst_json *v = pst_json_get(d->config, member);
  int64_t i = pst_json_int(v, -1);
  if (!pst_json_is_int(v) || i < 0 || i > INT32_MAX)
    return pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "is missing, or not a number from 0 on", member);
  pst_engine_ckpt_put_int(d, key, i);
  return 0;
}

int pst_engine_ckpt_copy_float(pst_engine_ckpt *d, const char *member, const char *key, double fallback) {
  const pst_json *v = pst_json_get(d->config, member);
  if (v && pst_json_typeof(v) != PST_JSON_NUMBER)
    return pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "is not a number", member);
  pst_engine_ckpt_put_float(d, key, pst_json_double(v, fallback));
  return 0;
}

int pst_engine_ckpt_want_text(const pst_engine_ckpt *d, const char *file, const pst_json *object, const char *member,
                              const char *text) {
  const pst_json *v = pst_json_get(object, member);
  if (pst_engine_ckpt_absent(v)) return 0;
  if (pst_json_typeof(v) == PST_JSON_STRING && pst_str_is(pst_json_str(v), text)) return 0;
  pst_str got = pst_json_str(v);
  return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path, "%s: '%s' is '%.*s'; only '%s' is known here", file, member,
                       (int)PST_MIN(got.n, (size_t)40), got.data ? got.data : "", text);
}

int pst_engine_ckpt_read_json(const pst_engine_ckpt *d, const char *name, size_t max_bytes, pst_json_doc **ret_doc) {
  char *path = pst_path_join(d->path, name);
  if (!path) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
  int code = pst_json_parse_file(path, max_bytes, ret_doc, d->err);
  pst_free(path);
  return code;
}

int pst_engine_ckpt_want_false(const pst_engine_ckpt *d, const char *file, const pst_json *object, const char *member) {
  const pst_json *v = pst_json_get(object, member);
  if (pst_engine_ckpt_absent(v) || (pst_json_typeof(v) == PST_JSON_BOOL && !pst_json_bool(v, true))) return 0;
  return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, file, "is not false; nothing else is known here", member);
}

int pst_engine_ckpt_want_number(const pst_engine_ckpt *d, const char *file, const pst_json *object, const char *member,
                                double value) {
  const pst_json *v = pst_json_get(object, member);
  if (pst_engine_ckpt_absent(v) || pst_json_double(v, NAN) == value) return 0;
  return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path, "%s: '%s' is not %.9g; nothing else is known here", file,
                       member, value);
}

bool pst_engine_ckpt_has_file(const pst_engine_ckpt *d, const char *name) {
  char *path = pst_path_join(d->path, name);
  bool has = path && pst_file_exists(path);
  pst_free(path);
  return has;
}
