/* Checkpoints: a head, four rows of floats, one of doubles, and the SHA-256 of all. Written beside the file and renamed over it, so that a run that is killed at any point
 * leaves the last whole one. Numbers are the machine's own: a checkpoint is for the machine that wrote it. */
#include "tune/checkpoint.h"

#include <string.h>

typedef struct head {
  char magic[8];
  uint64_t n, n_references;
  char key[65];
  pst_tune_state state;
} head;

static const char magic[8] = "pstckpt2";

static void digest(const head *h, const pst_tune_numbers *m, uint8_t out[32]) {
  const float *const rows[] = {m->params, m->mean, m->square, m->best};
  pst_sha256 s;
  pst_sha256_init(&s);
  pst_sha256_update(&s, h, sizeof *h);
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) pst_sha256_update(&s, rows[i], m->n * sizeof(float));
  if (m->n_references) pst_sha256_update(&s, m->references, m->n_references * sizeof(double));
  pst_sha256_done(&s, out);
}

int pst_tune_checkpoint_write(const char *path, const char key[65], const pst_tune_state *state,
                              const pst_tune_numbers *numbers, pst_error *err) {
  head h;
  uint8_t sum[32];
  memset(&h, 0, sizeof h); /* padding too */
  memcpy(h.magic, magic, sizeof magic);
  memcpy(h.key, key, sizeof h.key);
  h.n = numbers->n;
  h.n_references = numbers->n_references;
  h.state = *state;
  digest(&h, numbers, sum);
  size_t bytes = numbers->n * sizeof(float);
  const pst_str parts[] = {
      {(const char *)&h, sizeof h},         {(const char *)numbers->params, bytes},
      {(const char *)numbers->mean, bytes}, {(const char *)numbers->square, bytes},
      {(const char *)numbers->best, bytes}, {(const char *)numbers->references, numbers->n_references * sizeof(double)},
      {(const char *)sum, sizeof sum}};
  return pst_file_write_parts_atomic(path, parts, PST_ARRAY_LEN(parts), err);
}

static int damaged(const char *path, const char *what, pst_error *err) {
  return pst_error_set(err, PST_E_CORRUPT, path, "%s: remove it to begin anew", what);
}

/* Another question's, or another version's: nothing to go on from. */
static int other(const char *path, const char *whose) {
  pst_log(PST_LOG_INFO, "event=checkpoint_passed_over path=%s reason=\"%s\"", path, whose);
  return PST_E_NOT_FOUND;
}

/* PST_E_NOT_FOUND: it is not this run's. */
static int take(const pst_map *map, const char *path, const char key[65], pst_tune_state *ret_state,
                pst_tune_numbers *m, pst_error *err) {
  head h;
  uint8_t sum[32];
  float *const rows[] = {m->params, m->mean, m->square, m->best};
  size_t bytes = m->n * sizeof(float), references = m->n_references * sizeof(double), at = sizeof h;
  if (map->n < sizeof h || memcmp(map->data, magic, sizeof magic - 1) != 0)
    return damaged(path, "this is no checkpoint of training", err);
  memcpy(&h, map->data, sizeof h);
  if (h.magic[sizeof magic - 1] != magic[sizeof magic - 1]) return other(path, "it is of another version");
  if (memcmp(h.key, key, sizeof h.key) != 0 || h.n != m->n || h.n_references != m->n_references)
    return other(path, "it is of other texts, another model or other options");
  if (map->n != sizeof h + PST_ARRAY_LEN(rows) * bytes + references + sizeof sum)
    return damaged(path, "the checkpoint is cut off", err);
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++, at += bytes) memcpy(rows[i], map->data + at, bytes);
  if (references) memcpy(m->references, map->data + at, references);
  at += references;
  digest(&h, m, sum);
  if (memcmp(sum, map->data + at, sizeof sum) != 0) return damaged(path, "the checkpoint fails its check", err);
  *ret_state = h.state;
  return 0;
}

int pst_tune_checkpoint_read(const char *path, const char key[65], bool *ret_found, pst_tune_state *ret_state,
                             pst_tune_numbers *numbers, pst_error *err) {
  pst_map map;
  if (!pst_file_exists(path)) {
    *ret_found = false;
    return 0;
  }
  int code = pst_map_open(path, &map, err);
  if (code) return code;
  code = take(&map, path, key, ret_state, numbers, err);
  pst_map_close(&map);
  if (!code || code == PST_E_NOT_FOUND) *ret_found = !code;
  return code == PST_E_NOT_FOUND ? 0 : code;
}
