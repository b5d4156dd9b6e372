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

#endif
