/* Dictionary and sparse matrix (dataset.h). Owns idf and which grams are worth a row of weights; a gram seen in one record only cannot generalise, and half of
 * all grams are such. */
#include "classifier/dataset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FEW_TEXTS = 100 };
#define VECTOR_LENGTH 4.0 /* of an encoder's vectors, where the block of words has 1 */

/* ---- texts ---- */

int pst_classifier_texts_init(pst_classifier_texts *t, const pst_classifier_record *records, size_t n) {
  t->n = n;
  t->starts = pst_calloc(n + 1, sizeof *t->starts);
  int code = t->starts ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < n && !code; i++) {
    code = pst_classifier_grams_of(records[i].text, &t->all);
    t->starts[i + 1] = t->all.n;
  }
  return code;
}

void pst_classifier_texts_done(pst_classifier_texts *t) {
  pst_free(t->all.grams);
  pst_free(t->starts);
  memset(t, 0, sizeof *t);
}

/* ---- dictionary ---- */

static int by_value(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

/* How many runs of equal values are at least `least` long. */
static size_t count_runs(const uint64_t *sorted, size_t n, size_t least) {
  size_t n_runs = 0;
  for (size_t i = 0; i < n;) {
    size_t end = i;
    while (end < n && sorted[end] == sorted[i]) end++;
    n_runs += end - i >= least;
    i = end;
  }
  return n_runs;
}

static int keep_runs(pst_classifier_dictionary *d, const uint64_t *sorted, size_t n, size_t least, size_t n_texts) {
  d->hashes = pst_calloc(PST_MAX(d->n, 1), sizeof *d->hashes);
  d->idf = pst_calloc(PST_MAX(d->n, 1), sizeof *d->idf);
  if (!d->hashes || !d->idf) return PST_E_NOMEM;
  size_t at = 0;
  for (size_t i = 0; i < n;) {
    size_t end = i;
    while (end < n && sorted[end] == sorted[i]) end++;
    if (end - i >= least) {
      d->hashes[at] = sorted[i];
      d->idf[at++] = (float)(1 + log((1 + (double)n_texts) / (1 + (double)(end - i))));
    }
    i = end;
  }
  return pst_classifier_dictionary_index(d);
}

int pst_classifier_dictionary_init(pst_classifier_dictionary *d, const pst_classifier_texts *t, const size_t *rows,
                                   size_t n_rows, size_t most) {
  memset(d, 0, sizeof *d);
  size_t n = 0, at = 0, least = n_rows < FEW_TEXTS ? 1 : 2;
  for (size_t i = 0; i < n_rows; i++) n += t->starts[rows[i] + 1] - t->starts[rows[i]];
  uint64_t *hashes = pst_calloc(PST_MAX(n, 1), sizeof *hashes);
  if (!hashes) return PST_E_NOMEM;
  for (size_t i = 0; i < n_rows; i++)
    for (size_t k = t->starts[rows[i]]; k < t->starts[rows[i] + 1]; k++) hashes[at++] = t->all.grams[k].hash;
  qsort(hashes, n, sizeof *hashes, by_value);
  while ((d->n = count_runs(hashes, n, least)) > most) least++;
  int code = keep_runs(d, hashes, n, least, n_rows);
  pst_free(hashes);
  if (code) pst_classifier_dictionary_done(d);
  return code;
}

int pst_classifier_dictionary_index(pst_classifier_dictionary *d) {
  d->n_slots = 16;
  while (d->n_slots < 2 * d->n) d->n_slots *= 2;
  d->slots = pst_calloc(d->n_slots, sizeof *d->slots);
  if (!d->slots) return PST_E_NOMEM;
  for (size_t i = 0; i < d->n; i++) {
    size_t at = (size_t)d->hashes[i] & (d->n_slots - 1);
    while (d->slots[at]) at = (at + 1) & (d->n_slots - 1);
    d->slots[at] = (uint32_t)i + 1;
  }
  return 0;
}

void pst_classifier_dictionary_done(pst_classifier_dictionary *d) {
  pst_free(d->hashes);
  pst_free(d->idf);
  pst_free(d->slots);
  memset(d, 0, sizeof *d);
}

size_t pst_classifier_dictionary_find(const pst_classifier_dictionary *d, uint64_t hash) {
  for (size_t at = (size_t)hash & (d->n_slots - 1); d->slots[at]; at = (at + 1) & (d->n_slots - 1))
    if (d->hashes[d->slots[at] - 1] == hash) return d->slots[at] - 1;
  return SIZE_MAX;
}

size_t pst_classifier_dictionary_weigh(const pst_classifier_dictionary *d, pst_classifier_gram *grams, size_t n) {
  size_t n_known = 0;
  for (size_t i = 0; i < n; i++) {
    size_t index = pst_classifier_dictionary_find(d, grams[i].hash);
    if (index != SIZE_MAX)
      grams[n_known++] = (pst_classifier_gram){grams[i].hash, grams[i].weight * (double)d->idf[index]};
  }
  pst_classifier_normalize(grams, n_known);
  for (size_t i = 0; i < n_known; i++) grams[i].hash = pst_classifier_dictionary_find(d, grams[i].hash);
  return n_known;
}

/* ---- vectors ---- */

int pst_classifier_vectors_init(pst_classifier_vectors *v, const pst_classifier_record *records, size_t n,
                                size_t n_dims) {
  if (!n_dims) return 0;
  v->n_dims = n_dims;
  v->values = pst_calloc(n * n_dims, sizeof *v->values);
  v->mean = pst_calloc(n_dims, sizeof *v->mean);
  if (!v->values || !v->mean) return PST_E_NOMEM;
  for (size_t i = 0; i < n; i++)
    for (size_t d = 0; d < n_dims; d++) v->mean[d] += (double)records[i].vector[d] / (double)n;
  for (size_t i = 0; i < n; i++)
    for (size_t d = 0; d < n_dims; d++)
      v->values[i * n_dims + d] = (float)(VECTOR_LENGTH * ((double)records[i].vector[d] - v->mean[d]));
  return 0;
}

void pst_classifier_vectors_done(pst_classifier_vectors *v) {
  pst_free(v->values);
  pst_free(v->mean);
  memset(v, 0, sizeof *v);
}

void pst_classifier_vectors_unscale(const pst_classifier_vectors *v, size_t n_grams, size_t n_labels, double *weights) {
  double *dense = weights + n_grams * n_labels, *bias = dense + v->n_dims * n_labels;
  for (size_t d = 0; d < v->n_dims; d++)
    for (size_t k = 0; k < n_labels; k++) {
      double *weight = &dense[d * n_labels + k];
      *weight *= VECTOR_LENGTH;
      bias[k] -= *weight * v->mean[d];
    }
}

/* ---- matrix ---- */

static int fill_rows(pst_classifier_matrix *m, const pst_classifier_dictionary *d, const pst_classifier_texts *t,
                     const pst_classifier_vectors *v, const size_t *rows) {
  pst_classifier_grams own = {NULL, 0, 0};
  int code = 0;
  for (size_t i = 0; i < m->n_rows && !code; i++) {
    size_t n = t->starts[rows[i] + 1] - t->starts[rows[i]];
    code = pst_array_reserve((void **)&own.grams, &own.capacity, PST_MAX(n, 1), sizeof *own.grams);
    if (code) break;
    if (n) memcpy(own.grams, t->all.grams + t->starts[rows[i]], n * sizeof *own.grams);
    size_t n_known = pst_classifier_dictionary_weigh(d, own.grams, n), at = m->row_starts[i];
    for (size_t k = 0; k < n_known; k++) {
      m->columns[at + k] = (uint32_t)own.grams[k].hash;
      m->by_row[at + k] = own.grams[k].weight;
    }
    at += n_known;
    for (size_t k = 0; k < v->n_dims; k++, at++) {
      m->columns[at] = (uint32_t)(d->n + k);
      m->by_row[at] = (double)v->values[rows[i] * v->n_dims + k];
    }
    m->row_starts[i + 1] = at;
  }
  m->n_values = m->row_starts[m->n_rows];
  pst_free(own.grams);
  return code;
}

/* Counting sort by column; stable, so rows ascend within a column. */
static void fill_columns(pst_classifier_matrix *m) {
  for (size_t k = 0; k < m->n_values; k++) m->column_starts[m->columns[k] + 1]++;
  for (size_t c = 0; c < m->n_columns; c++) m->column_starts[c + 1] += m->column_starts[c];
  for (size_t i = 0; i < m->n_rows; i++)
    for (size_t k = m->row_starts[i]; k < m->row_starts[i + 1]; k++) {
      size_t at = m->column_starts[m->columns[k]]++;
      m->rows[at] = (uint32_t)i;
      m->by_column[at] = m->by_row[k];
    }
  for (size_t c = m->n_columns; c > 0; c--)
    m->column_starts[c] = m->column_starts[c - 1]; /* they had moved on by one */
  m->column_starts[0] = 0;
}

int pst_classifier_matrix_init(pst_classifier_matrix *m, const pst_classifier_dictionary *d,
                               const pst_classifier_texts *t, const pst_classifier_vectors *v, const size_t *rows,
                               size_t n_rows) {
  memset(m, 0, sizeof *m);
  size_t most = 1;
  for (size_t i = 0; i < n_rows; i++) most += t->starts[rows[i] + 1] - t->starts[rows[i]] + v->n_dims;
  m->n_rows = n_rows;
  m->n_columns = d->n + v->n_dims;
  m->row_starts = pst_calloc(n_rows + 1, sizeof *m->row_starts);
  m->column_starts = pst_calloc(m->n_columns + 1, sizeof *m->column_starts);
  m->columns = pst_calloc(most, sizeof *m->columns);
  m->rows = pst_calloc(most, sizeof *m->rows);
  m->by_row = pst_calloc(most, sizeof *m->by_row);
  m->by_column = pst_calloc(most, sizeof *m->by_column);
  bool made = m->row_starts && m->column_starts && m->columns && m->rows && m->by_row && m->by_column;
  int code = made ? fill_rows(m, d, t, v, rows) : PST_E_NOMEM;
  if (!code) fill_columns(m);
  if (code) pst_classifier_matrix_done(m);
  return code;
}

void pst_classifier_matrix_done(pst_classifier_matrix *m) {
  pst_free(m->row_starts);
  pst_free(m->column_starts);
  pst_free(m->columns);
  pst_free(m->rows);
  pst_free(m->by_row);
  pst_free(m->by_column);
  memset(m, 0, sizeof *m);
}
