/* A head, what was chosen, all rows, and the SHA-256 of these (rounded.h). Numbers are the machine's own: the file is for the machine that wrote it. */
#include "tune/rounded.h"

#include <string.h>

typedef struct head {
  char magic[8];
  char key[72];
  uint64_t n;
  pst_tune_calibrate_report report;
} head;

static const char magic[8] = "pstrnd_1";

enum { SUM = 32 };

int pst_tune_rounded_write(const char *path, const char key[65], const pst_tune_calibrate_report *report,
                           const int32_t *chosen, const pst_str *rows, size_t n, pst_error *err) {
  uint8_t sum[SUM];
  pst_sha256 s;
  head h;
  pst_str *parts = pst_calloc(n + 3, sizeof *parts);
  if (!parts) return pst_error_set(err, PST_E_NOMEM, path, "no memory to keep the rounded model");
  memset(&h, 0, sizeof h); /* padding too */
  memcpy(h.magic, magic, sizeof magic);
  memcpy(h.key, key, 65);
  h.n = n;
  h.report = *report;
  parts[0] = (pst_str){(const char *)&h, sizeof h};
  parts[1] = (pst_str){(const char *)chosen, n * sizeof *chosen};
  memcpy(parts + 2, rows, n * sizeof *rows);
  pst_sha256_init(&s);
  for (size_t i = 0; i < n + 2; i++) pst_sha256_update(&s, parts[i].data, parts[i].n);
  pst_sha256_done(&s, sum);
  parts[n + 2] = (pst_str){(const char *)sum, sizeof sum};
  int code = pst_file_write_parts_atomic(path, parts, n + 3, err);
  pst_free(parts);
  return code;
}

static int damaged(const char *path, pst_error *err) {
  return pst_error_set(err, PST_E_CORRUPT, path,
                       "the rounded model kept here fails its check: remove it to begin anew");
}

static int take(const pst_map *map, const char *path, const char key[65], size_t n, bool *ret_found,
                pst_tune_rounded *ret, pst_error *err) {
  head h;
  uint8_t sum[SUM];
  pst_sha256 s;
  size_t chosen = n * sizeof *ret->chosen;
  if (map->n < sizeof h) return damaged(path, err);
  memcpy(&h, map->data, sizeof h);
  if (memcmp(h.magic, magic, sizeof magic) != 0 || memcmp(h.key, key, 65) != 0 || h.n != n) return 0;
  if (map->n < sizeof h + chosen + SUM) return damaged(path, err);
  pst_sha256_init(&s);
  pst_sha256_update(&s, map->data, map->n - SUM);
  pst_sha256_done(&s, sum);
  if (memcmp(sum, map->data + map->n - SUM, SUM) != 0) return damaged(path, err);
  const uint8_t *rows = map->data + sizeof h + chosen;
  ret->report = h.report;
  ret->n = n;
  ret->chosen = (const int32_t *)(const void *)(map->data + sizeof h);
  ret->rows = (pst_str){(const char *)rows, map->n - SUM - sizeof h - chosen};
  *ret_found = true;
  return 0;
}

int pst_tune_rounded_open(const char *path, const char key[65], size_t n, bool *ret_found, pst_tune_rounded *ret,
                          pst_error *err) {
  memset(ret, 0, sizeof *ret);
  *ret_found = false;
  if (!pst_file_exists(path)) return 0;
  int code = pst_map_open(path, &ret->map, err);
  if (code) return code;
  code = take(&ret->map, path, key, n, ret_found, ret, err);
  if (!*ret_found) pst_tune_rounded_close(ret);
  return code;
}

void pst_tune_rounded_close(pst_tune_rounded *r) {
  if (r->map.data) pst_map_close(&r->map);
  memset(r, 0, sizeof *r);
}
