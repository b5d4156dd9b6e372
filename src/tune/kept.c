/* A head, the parts, and the SHA-256 of both (kept.h). Written beside the file and renamed over it, so that a run that is killed at any point leaves the last whole one. */
#include "tune/kept.h"

#include <string.h>

typedef struct head {
  char kind[8];
  char key[72];
} head;

enum { SUM = 32 };

int pst_tune_kept_write(const char *path, const char kind[8], const char key[65], const pst_str *parts, size_t n,
                        pst_error *err) {
  uint8_t sum[SUM];
  pst_sha256 s;
  head h;
  pst_str *all = pst_calloc(n + 2, sizeof *all);
  if (!all) return pst_error_set(err, PST_E_NOMEM, path, "no memory to keep a checkpoint");
  memset(&h, 0, sizeof h); /* padding too */
  memcpy(h.kind, kind, sizeof h.kind);
  memcpy(h.key, key, 65);
  all[0] = (pst_str){(const char *)&h, sizeof h};
  memcpy(all + 1, parts, n * sizeof *parts);
  pst_sha256_init(&s);
  for (size_t i = 0; i <= n; i++)
    if (all[i].n) pst_sha256_update(&s, all[i].data, all[i].n);
  pst_sha256_done(&s, sum);
  all[n + 1] = (pst_str){(const char *)sum, sizeof sum};
  int code = pst_file_write_parts_atomic(path, all, n + 2, err);
  pst_free(all);
  return code;
}

static int damaged(const char *path, const char *what, pst_error *err) {
  return pst_error_set(err, PST_E_CORRUPT, path, "%s: remove it to begin anew", what);
}

/* Another question's, or another version's: nothing to go on from. */
static int passed_over(const char *path, const char *whose) {
  pst_log(PST_LOG_INFO, "event=checkpoint_passed_over path=%s reason=\"%s\"", path, whose);
  return 0;
}

static int take(pst_tune_kept *kept, const char *path, const char kind[8], const char key[65], bool *ret_found,
                pst_error *err) {
  const pst_map *map = &kept->map;
  head h;
  uint8_t sum[SUM];
  pst_sha256 s;
  if (map->n < sizeof h + SUM || memcmp(map->data, kind, sizeof h.kind - 1) != 0)
    return damaged(path, "this is no checkpoint of training", err);
  memcpy(&h, map->data, sizeof h);
  if (h.kind[sizeof h.kind - 1] != kind[sizeof h.kind - 1]) return passed_over(path, "it is of another version");
  if (memcmp(h.key, key, 65) != 0) return passed_over(path, "it is of other texts, another model or other options");
  pst_sha256_init(&s);
  pst_sha256_update(&s, map->data, map->n - SUM);
  pst_sha256_done(&s, sum);
  if (memcmp(sum, map->data + map->n - SUM, SUM) != 0) return damaged(path, "the checkpoint fails its check", err);
  kept->data = map->data + sizeof h;
  kept->n = map->n - sizeof h - SUM;
  *ret_found = true;
  return 0;
}

int pst_tune_kept_open(const char *path, const char kind[8], const char key[65], bool *ret_found, pst_tune_kept *ret,
                       pst_error *err) {
  memset(ret, 0, sizeof *ret);
  *ret_found = false;
  if (!pst_file_exists(path)) return 0;
  int code = pst_map_open(path, &ret->map, err);
  if (code) return code;
  code = take(ret, path, kind, key, ret_found, err);
  if (!*ret_found) pst_tune_kept_close(ret);
  return code;
}

void pst_tune_kept_close(pst_tune_kept *kept) {
  if (kept->map.data) pst_map_close(&kept->map);
  memset(kept, 0, sizeof *kept);
}
