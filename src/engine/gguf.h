/* GGUF files: the reader over a read-only mapping, and the writer.
 *
 * The reader believes nothing: every offset, count, length, alignment, type and overlap is checked once, in open. What it hands
 * out afterwards lies inside the mapping and needs no further check. An open file is immutable: threads may share it. */
#ifndef PENSTOCK_ENGINE_GGUF_H
#define PENSTOCK_ENGINE_GGUF_H

#include <penstock/base.h>
#include <penstock/kernels.h>

/* Value kinds, numbered as in the file. */
typedef enum pst_engine_gguf_kind {
  PST_ENGINE_GGUF_U8 = 0,
  PST_ENGINE_GGUF_I8,
  PST_ENGINE_GGUF_U16,
  PST_ENGINE_GGUF_I16,
  PST_ENGINE_GGUF_U32,
  PST_ENGINE_GGUF_I32,
  PST_ENGINE_GGUF_F32,
  PST_ENGINE_GGUF_BOOL,
  PST_ENGINE_GGUF_STR,
  PST_ENGINE_GGUF_ARRAY,
  PST_ENGINE_GGUF_U64,
  PST_ENGINE_GGUF_I64,
  PST_ENGINE_GGUF_F64,
  PST_ENGINE_GGUF_KIND_END,
} pst_engine_gguf_kind;

typedef struct pst_engine_gguf pst_engine_gguf;

/* One metadata entry. Scalars are arrays of one to the element readers below. */
typedef struct pst_engine_gguf_value {
  pst_str key;
  pst_engine_gguf_kind kind;    /* PST_ENGINE_GGUF_ARRAY for arrays */
  pst_engine_gguf_kind element; /* of an array: its elements' kind; of a scalar: the same as kind */
  uint64_t n;                   /* elements; 1 for a scalar */
  const uint8_t *data;          /* first element; strings: its length field. Not aligned. */
  const uint64_t *string_at;    /* string arrays: offset of each element's length field from `data` */
  const uint8_t *raw;           /* the value as it stands in the file, behind the kind; raw_bytes long */
  size_t raw_bytes;
} pst_engine_gguf_value;

typedef struct pst_engine_gguf_tensor {
  pst_str name;     /* 1 to 255 bytes, valid UTF-8 without control characters */
  uint32_t type;    /* pst_kernels_type, known to pst_kernels_type_info */
  uint32_t n_dims;  /* 1 to 4 */
  uint64_t dims[4]; /* dims[0] is the row length (fastest); 1 beyond n_dims; product fits int64 */
  uint64_t n_elements;
  uint64_t
      offset; /* from the start of the file, a multiple of its alignment (at least 8); of an assembled one: a number for the bytes' source */
  const uint8_t *data; /* inside the mapping */
  size_t bytes;
} pst_engine_gguf_tensor;

/* Opens and checks a file. Errors: PST_E_IO and its kin from mapping, PST_E_BAD_INPUT (malformed: what and at which byte),
 * PST_E_UNSUPPORTED (version, byte order or tensor type, by name), PST_E_LIMIT, PST_E_NOMEM. */
int pst_engine_gguf_open(const char *path, pst_engine_gguf **ret_gguf, pst_error *err) PST_MUST_CHECK;
/* The same over memory that outlives the object and stays the caller's (tests, fuzzing). `name` stands for the path in errors;
 * `data` is aligned to 8 bytes or better. */
int pst_engine_gguf_open_memory(const uint8_t *data, size_t n, const char *name, pst_engine_gguf **ret_gguf,
                                pst_error *err) PST_MUST_CHECK;
void pst_engine_gguf_close(pst_engine_gguf *gguf); /* NULL is fine */

/* What a file is put together from whose weights lie in another format (engine/checkpoint.c). */
typedef struct pst_engine_gguf_parts {
  pst_str values; /* metadata entries one behind the other as in a GGUF file; copied */
  uint64_t n_values;
  const pst_engine_gguf_tensor
      *tensors; /* complete, of known types, data inside a mapping or the arena; copied, but for the names */
  size_t n_tensors;
  const pst_map *maps; /* at least one; copied */
  size_t n_maps;
  uint64_t settings; /* a hash of what else says what the tensors hold */
  pst_arena *arena;  /* the names' */
} pst_engine_gguf_parts;
/* On success mappings and arena are the object's, and its version is 0. Errors as pst_engine_gguf_open. */
int pst_engine_gguf_assemble(const pst_engine_gguf_parts *parts, const char *path, pst_engine_gguf **ret_gguf,
                             pst_error *err) PST_MUST_CHECK;

const char *pst_engine_gguf_path(const pst_engine_gguf *gguf);
uint64_t pst_engine_gguf_bytes(const pst_engine_gguf *gguf); /* of all its files */
/* A hash that changes with the content, made without reading it: inode, time of change and size of every file. */
uint64_t pst_engine_gguf_key(const pst_engine_gguf *gguf);
/* The weights are not needed again soon: their pages go back to the system's cache. */
void pst_engine_gguf_drop_pages(const pst_engine_gguf *gguf);
uint32_t pst_engine_gguf_version(const pst_engine_gguf *gguf);
uint32_t pst_engine_gguf_alignment(const pst_engine_gguf *gguf);

/* ---- metadata --------------------------------------------------------------------------------------------------- */

size_t pst_engine_gguf_n_values(const pst_engine_gguf *gguf);
const pst_engine_gguf_value *pst_engine_gguf_value_at(const pst_engine_gguf *gguf, size_t i);    /* in file order */
const pst_engine_gguf_value *pst_engine_gguf_find(const pst_engine_gguf *gguf, const char *key); /* NULL: missing */

/* Scalars. PST_E_NOT_FOUND when missing, PST_E_BAD_INPUT when of another kind or out of range; the message names the key.
 * u64 and i64 take every integer kind, f64 both float kinds and integers. *ret_value is untouched on failure. */
int pst_engine_gguf_get_u64(const pst_engine_gguf *gguf, const char *key, uint64_t *ret_value,
                            pst_error *err) PST_MUST_CHECK;
int pst_engine_gguf_get_i64(const pst_engine_gguf *gguf, const char *key, int64_t *ret_value,
                            pst_error *err) PST_MUST_CHECK;
int pst_engine_gguf_get_f64(const pst_engine_gguf *gguf, const char *key, double *ret_value,
                            pst_error *err) PST_MUST_CHECK;
int pst_engine_gguf_get_bool(const pst_engine_gguf *gguf, const char *key, bool *ret_value,
                             pst_error *err) PST_MUST_CHECK;
int pst_engine_gguf_get_str(const pst_engine_gguf *gguf, const char *key, pst_str *ret_value,
                            pst_error *err) PST_MUST_CHECK;
/* Optional keys: a missing one leaves *value as it was and is no error; one of the wrong kind is. */
int pst_engine_gguf_opt_u64(const pst_engine_gguf *gguf, const char *key, uint64_t *value,
                            pst_error *err) PST_MUST_CHECK;
int pst_engine_gguf_opt_i64(const pst_engine_gguf *gguf, const char *key, int64_t *value,
                            pst_error *err) PST_MUST_CHECK;
int pst_engine_gguf_opt_f64(const pst_engine_gguf *gguf, const char *key, double *value, pst_error *err) PST_MUST_CHECK;
int pst_engine_gguf_opt_bool(const pst_engine_gguf *gguf, const char *key, bool *value, pst_error *err) PST_MUST_CHECK;
int pst_engine_gguf_opt_str(const pst_engine_gguf *gguf, const char *key, pst_str *value,
                            pst_error *err) PST_MUST_CHECK;

/* What elements an array must have to be taken. */
typedef enum pst_engine_gguf_class {
  PST_ENGINE_GGUF_STRINGS,
  PST_ENGINE_GGUF_INTEGERS, /* any integer kind */
  PST_ENGINE_GGUF_NUMBERS,  /* any integer or float kind */
  PST_ENGINE_GGUF_BOOLS,
} pst_engine_gguf_class;
int pst_engine_gguf_get_array(const pst_engine_gguf *gguf, const char *key, pst_engine_gguf_class elements,
                              const pst_engine_gguf_value **ret_array, pst_error *err) PST_MUST_CHECK;

/* Element i < n of an array (or i = 0 of a scalar). A kind that does not fit gives "", 0, 0.0 or false: check it beforehand. */
pst_str pst_engine_gguf_value_str(const pst_engine_gguf_value *value, uint64_t i); /* a view into the mapping */
int64_t pst_engine_gguf_value_i64(const pst_engine_gguf_value *value,
                                  uint64_t i); /* U64 beyond INT64_MAX gives INT64_MAX */
double pst_engine_gguf_value_f64(const pst_engine_gguf_value *value, uint64_t i);
bool pst_engine_gguf_value_bool(const pst_engine_gguf_value *value, uint64_t i);
const char *pst_engine_gguf_kind_name(pst_engine_gguf_kind kind); /* "uint32"; "unknown" beyond the table */

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

size_t pst_engine_gguf_n_tensors(const pst_engine_gguf *gguf);
const pst_engine_gguf_tensor *pst_engine_gguf_tensor_at(const pst_engine_gguf *gguf, size_t i); /* in file order */
const pst_engine_gguf_tensor *pst_engine_gguf_find_tensor(const pst_engine_gguf *gguf,
                                                          const char *name); /* NULL: none */

/* ---- writer (engine/gguf_write.c) -------------------------------------------------------------------------------- */

/* Order of calls: create, put_* and copy_*, add_tensor for every tensor, then write all tensor data in that order, then finish.
 * The file appears under its name only in finish, whole; free before that removes what was written. One thread. */
typedef struct pst_engine_gguf_writer pst_engine_gguf_writer;

/* `alignment`: a power of two, 8 to 65536. The path is copied. */
int pst_engine_gguf_writer_create(const char *path, uint32_t alignment, pst_engine_gguf_writer **ret_writer,
                                  pst_error *err) PST_MUST_CHECK;
void pst_engine_gguf_writer_free(pst_engine_gguf_writer *writer); /* NULL is fine */

/* A key that is there already keeps its place and gets the new value: copy all, then override. Errors are sticky and come out of the
 * first write or finish. Keys and strings are copied. */
void pst_engine_gguf_writer_put_u32(pst_engine_gguf_writer *writer, const char *key, uint32_t value);
void pst_engine_gguf_writer_put_u64(pst_engine_gguf_writer *writer, const char *key, uint64_t value);
void pst_engine_gguf_writer_put_i32(pst_engine_gguf_writer *writer, const char *key, int32_t value);
void pst_engine_gguf_writer_put_f32(pst_engine_gguf_writer *writer, const char *key, float value);
void pst_engine_gguf_writer_put_bool(pst_engine_gguf_writer *writer, const char *key, bool value);
void pst_engine_gguf_writer_put_str(pst_engine_gguf_writer *writer, const char *key, pst_str value);
void pst_engine_gguf_writer_put_strs(pst_engine_gguf_writer *writer, const char *key, const pst_str *values, size_t n);
/* n elements of a fixed-size kind, laid out as in memory. */
void pst_engine_gguf_writer_put_array(pst_engine_gguf_writer *writer, const char *key, pst_engine_gguf_kind element,
                                      const void *values, size_t n);
/* One value, or all of a file's, byte for byte; `general.alignment` is the writer's own business and is left out. The source file
 * stays open until finish: large values are not copied. */
void pst_engine_gguf_writer_copy_value(pst_engine_gguf_writer *writer, const pst_engine_gguf_value *value);
void pst_engine_gguf_writer_copy_values(pst_engine_gguf_writer *writer, const pst_engine_gguf *source);

/* Declares a tensor; dims as in pst_engine_gguf_tensor. */
void pst_engine_gguf_writer_add_tensor(pst_engine_gguf_writer *writer, pst_str name, uint32_t type, uint32_t n_dims,
                                       const uint64_t *dims);
/* The next n bytes of tensor data, in the order declared; a call may end inside a tensor but not reach into the next. Padding is
 * added between tensors. */
int pst_engine_gguf_writer_write(pst_engine_gguf_writer *writer, const void *data, size_t n,
                                 pst_error *err) PST_MUST_CHECK;
/* Checks that every tensor is complete, syncs and renames. After it only free may follow. */
int pst_engine_gguf_writer_finish(pst_engine_gguf_writer *writer, pst_error *err) PST_MUST_CHECK;

/* Whether a file made from in_path may be written at out_path: PST_E_BAD_INPUT when that is a directory or the same file. */
int pst_engine_gguf_check_target(const char *in_path, const char *out_path, pst_error *err) PST_MUST_CHECK;

#endif
