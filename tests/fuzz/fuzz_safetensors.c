/* Any bytes as a safetensors file: refused with a reason, or every tensor lies where the reader says. */
#include <stdlib.h>
#include <string.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define CHECK(condition)       \
  do {                         \
    if (!(condition)) abort(); \
  } while (0)

static volatile uint64_t sink;

static void visit(const pst_map *map, const pst_engine_gguf_tensor *t) {
  uint64_t elements = 1;
  CHECK(t->n_dims >= 1 && t->n_dims <= 4 && t->name.n >= 1 && t->name.n <= 255);
  for (size_t d = 0; d < 4; d++) {
    CHECK(t->dims[d] >= 1 && (d < t->n_dims || t->dims[d] == 1));
    elements *= t->dims[d];
  }
  CHECK(elements == t->n_elements);
  CHECK(t->offset <= map->n && t->bytes <= map->n - t->offset);
  CHECK(t->data == map->data + t->offset);
  if (t->type != PST_ENGINE_SAFETENSORS_OTHER)
    CHECK(pst_kernels_row_bytes(t->type, t->dims[0]) * (t->n_elements / t->dims[0]) == t->bytes);
  for (size_t i = 0; i < t->name.n; i++) sink += (unsigned char)t->name.data[i];
  for (size_t i = 0; i < t->bytes; i++) sink += t->data[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  pst_error err = PST_ERROR_INIT;
  uint8_t *copy = pst_malloc(n); /* exactly as long */
  pst_arena *arena = pst_arena_create();
  pst_engine_gguf_tensor *tensors = NULL;
  size_t n_tensors = 0;
  CHECK(copy && arena);
  if (n) memcpy(copy, data, n);
  pst_map map = {.data = copy, .n = n};
  if (pst_engine_safetensors_read(&map, "fuzz", arena, &tensors, &n_tensors, &err) < 0)
    CHECK(err.code < 0 && err.message[0] && !tensors);
  for (size_t i = 0; i < n_tensors; i++) visit(&map, &tensors[i]);
  pst_arena_free(arena);
  pst_free(copy);
  return 0;
}
