/* Packed weights as a file: naming, mapping, writing. Knows nothing of what is packed. */
#include "engine/packed.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

enum { HEAD_BYTES = 4096 }; /* a page, so that the block behind it is aligned in the mapping */

typedef struct packed_head {
  char magic[8];
  pst_engine_packed_id id;
  uint64_t check; /* of what stands before it */
} packed_head;

static packed_head head_of(const pst_engine_packed_id *id) {
  packed_head head = {"PENPACK", *id, 0};
  head.check = pst_hash64(&head, offsetof(packed_head, check), 0);
  return head;
}

char *pst_engine_packed_path(const char *dir, const char *model_path) {
  char *whole = realpath(model_path, NULL); /* by malloc, not ours */
  const char *path = whole ? whole : model_path;
  const char *slash = strrchr(path, '/');
  pst_buf name = PST_BUF_INIT;
  pst_buf_printf(&name, "%s/%.128s-%016llx.packed", dir, slash ? slash + 1 : path,
                 (unsigned long long)pst_hash64(path, strlen(path), 0));
  free(whole); /* NOLINT: realpath's */
  char *text = pst_buf_take(&name);
  pst_buf_done(&name);
  return text;
}

bool pst_engine_packed_map(const char *path, const pst_engine_packed_id *id, pst_map *ret_map, uint8_t **ret_block) {
  pst_map map;
  packed_head head = head_of(id);
  if (pst_map_open(path, &map, NULL)) return false;
  if (map.n != HEAD_BYTES + id->n_bytes || memcmp(map.data, &head, sizeof head) != 0) {
    pst_map_close(&map);
    return false;
  }
  *ret_map = map;
  *ret_block = (uint8_t *)(uintptr_t)map.data + HEAD_BYTES;
  return true;
}

/* The room a person can still use on the disk of `path`'s directory; what cannot be told is no limit. */
static uint64_t room_for(const char *dir) {
  struct statvfs disk;
  return statvfs(dir, &disk) ? UINT64_MAX : (uint64_t)disk.f_bavail * disk.f_frsize;
}

int pst_engine_packed_write(const char *path, const pst_engine_packed_id *id, const uint8_t *block, pst_error *err) {
  const char *slash = strrchr(path, '/');
  char *dir = pst_strndup(path, slash ? (size_t)(slash - path) : 0);
  if (!dir) return pst_error_set(err, PST_E_NOMEM, path, "no memory for a path");
  uint8_t page[HEAD_BYTES] = {0};
  packed_head head = head_of(id);
  memcpy(page, &head, sizeof head);
  int code = pst_dir_make(dir, err);
  if (!code && id->n_bytes > room_for(dir) / 2)
    code = pst_error_set(err, PST_E_NO_SPACE, path, "packed weights of %.0f MB would take most of the disk's room",
                         (double)id->n_bytes / 1e6);
  const pst_str parts[] = {{(const char *)page, sizeof page}, {(const char *)block, id->n_bytes}};
  if (!code) code = pst_file_write_parts_atomic(path, parts, PST_ARRAY_LEN(parts), err);
  pst_free(dir);
  return code;
}
