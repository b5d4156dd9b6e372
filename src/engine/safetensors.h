/* The safetensors format: named tensors behind a JSON header. */
#ifndef PST_ENGINE_SAFETENSORS_H
#define PST_ENGINE_SAFETENSORS_H

#include "engine/gguf.h"

/* Type of a tensor whose elements are no floats: positions and the like. */
#define PST_ENGINE_SAFETENSORS_OTHER UINT32_MAX

/* The tensors of a mapped file, under its own names, dims turned round (dims[0] the fastest), data inside the mapping, offsets from the file's start. Names and
 * the array are the arena's. Every offset and length has been checked. Errors: PST_E_BAD_INPUT (malformed, with the tensor), PST_E_LIMIT, PST_E_NOMEM.
 * Source: the description in the safetensors project. */
int pst_engine_safetensors_read(const pst_map *map, const char *path, pst_arena *arena,
                                pst_engine_gguf_tensor **ret_tensors, size_t *ret_n, pst_error *err) PST_MUST_CHECK;

/* The JSON header alone: an object; *ret_doc is the caller's. *ret_data_start: where the data begins. Errors as above. */
int pst_engine_safetensors_header(const pst_map *map, const char *path, pst_json_doc **ret_doc, size_t *ret_data_start,
                                  pst_error *err) PST_MUST_CHECK;

/* A matrix of float32 to be written. */
typedef struct pst_engine_safetensors_item {
  const char *name;
  uint64_t shape[2]; /* rows, columns */
  const float *data;
} pst_engine_safetensors_item;
/* A text of the header's __metadata__. */
typedef struct pst_engine_safetensors_note {
  const char *key, *text;
} pst_engine_safetensors_note;
/* Writes a file, whole or not at all; replaces one at `path`. Errors: PST_E_LIMIT (header), PST_E_NOMEM, and as writing files. */
int pst_engine_safetensors_write(const char *path, const pst_engine_safetensors_item *items, size_t n_items,
                                 const pst_engine_safetensors_note *notes, size_t n_notes,
                                 pst_error *err) PST_MUST_CHECK;

#endif
