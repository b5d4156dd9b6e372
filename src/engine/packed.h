/* Packed weights kept as a file, so that the next open maps them instead of packing again.
 *
 * One file per model file: a page that says of what and how it was packed, then the packed block as it lies in memory. It is never
 * rewritten in place, and a file that does not say exactly what is wanted is no file: it is packed anew and replaced. It can be deleted at
 * any time. */
#ifndef PST_ENGINE_PACKED_H
#define PST_ENGINE_PACKED_H

#include <penstock/base.h>

/* What makes one packed block equal to another. Compared as bytes: no padding. */
typedef struct pst_engine_packed_id {
  uint64_t source, source_bytes; /* the model's content: pst_engine_gguf_key, pst_engine_gguf_bytes */
  uint64_t layout;               /* how this program packs: pst_kernels_layout_id */
  uint64_t table;                /* which tensor lies where */
  uint64_t n_bytes;              /* of the block */
} pst_engine_packed_id;

/* The path of a model's packed weights in `dir`: named after the model file, told apart by its whole path. NULL: no memory. */
char *pst_engine_packed_path(const char *dir, const char *model_path);
/* Maps the block that `id` describes. False: there is none; *ret_map is untouched. *ret_block is aligned to a page and read-only, the map's. */
bool pst_engine_packed_map(const char *path, const pst_engine_packed_id *id, pst_map *ret_map, uint8_t **ret_block);
/* Writes it: whole or not at all. Makes the directory. Refuses (PST_E_NO_SPACE) to take more than half of the room that is left on the disk. */
int pst_engine_packed_write(const char *path, const pst_engine_packed_id *id, const uint8_t *block, pst_error *err);

#endif
