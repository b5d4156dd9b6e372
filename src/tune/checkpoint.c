/* Checkpoints: where training stands, four rows of floats and one of doubles, in a kept file (kept.h). */
#include "tune/checkpoint.h"

#include <string.h>

#include "tune/kept.h"

typedef struct head {
  uint64_t n, n_references;
  pst_tune_state state;
} head;

static const char kind[8] = "pstckpt4";

enum { ROWS = 4 };

int pst_tune_checkpoint_write(const char *path, const char key[65], const pst_tune_state *state,
                              const pst_tune_numbers *m, pst_error *err) {
  head h;
  memset(&h, 0, sizeof h); /* padding too */
  h.n = m->n;
  h.n_references = m->n_references;
  h.state = *state;
  size_t bytes = m->n * sizeof(float);
  const pst_str parts[] = {
      {(const char *)&h, sizeof h},   {(const char *)m->params, bytes},
      {(const char *)m->mean, bytes}, {(const char *)m->square, bytes},
      {(const char *)m->best, bytes}, {(const char *)m->references, m->n_references * sizeof(double)}};
  return pst_tune_kept_write(path, kind, key, parts, PST_ARRAY_LEN(parts), err);
}

int pst_tune_checkpoint_read(const char *path, const char key[65], bool *ret_found, pst_tune_state *ret_state,
                             pst_tune_numbers *m, pst_error *err) {
  float *const rows[ROWS] = {m->params, m->mean, m->square, m->best};
  size_t bytes = m->n * sizeof(float), references = m->n_references * sizeof(double), at = sizeof(head);
  pst_tune_kept kept;
  head h = {0};
  int code = pst_tune_kept_open(path, kind, key, ret_found, &kept, err);
  if (!*ret_found) return code;
  memcpy(&h, kept.data, PST_MIN(kept.n, sizeof h));
  *ret_found = kept.n == sizeof h + ROWS * bytes + references && h.n == m->n && h.n_references == m->n_references;
  if (*ret_found) {
    for (size_t i = 0; i < ROWS; i++, at += bytes) memcpy(rows[i], kept.data + at, bytes);
    if (references) memcpy(m->references, kept.data + at, references);
    *ret_state = h.state;
  }
  pst_tune_kept_close(&kept);
  return 0;
}
