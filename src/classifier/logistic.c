/* Objective and gradient (logistic.h). Rows are scored independently, and each element of the gradient is one sum over rows in ascending order, so how the
 * work is cut among threads leaves no trace. */
#include "classifier/logistic.h"

#include <math.h>
#include <string.h>

#include "classifier/parallel.h"

int pst_classifier_logistic_init(pst_classifier_logistic *l) {
  l->residuals = pst_calloc(PST_MAX(l->x->n_rows * l->n_labels, 1), sizeof *l->residuals);
  l->losses = pst_calloc(PST_MAX(l->x->n_rows, 1), sizeof *l->losses);
  if (l->residuals && l->losses) return 0;
  pst_classifier_logistic_done(l);
  return PST_E_NOMEM;
}

void pst_classifier_logistic_done(pst_classifier_logistic *l) {
  pst_free(l->residuals);
  pst_free(l->losses);
  l->residuals = l->losses = NULL;
}

/* ret += the sum of values times rows, one after the other as a loop for each row would: a sum is loaded and stored once for all of them. */
enum { ROWS_AT_ONCE = 4 };
static void add_rows(const double *const rows[ROWS_AT_ONCE], const double values[ROWS_AT_ONCE], size_t n,
                     double *restrict ret) {
  const double *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
  for (size_t k = 0; k < n; k++)
    ret[k] = (((ret[k] + values[0] * a[k]) + values[1] * b[k]) + values[2] * c[k]) + values[3] * d[k];
}

size_t pst_classifier_logistic_size(const pst_classifier_logistic *l) { return (l->x->n_columns + 1) * l->n_labels; }

void pst_classifier_scores(const double *weights, size_t n_columns, size_t n_labels, const uint32_t *columns,
                           const double *values, size_t n, double *ret) {
  size_t i = 0;
  memcpy(ret, weights + n_columns * n_labels, n_labels * sizeof *ret);
  for (; i + ROWS_AT_ONCE <= n; i += ROWS_AT_ONCE) {
    const double *rows[ROWS_AT_ONCE];
    for (size_t j = 0; j < ROWS_AT_ONCE; j++) rows[j] = weights + columns[i + j] * n_labels;
    add_rows(rows, values + i, n_labels, ret);
  }
  for (; i < n; i++) {
    const double *row = weights + columns[i] * n_labels;
    double value = values[i];
    for (size_t k = 0; k < n_labels; k++) ret[k] += value * row[k];
  }
}

double pst_classifier_softmax(double *scores, size_t n, bool in_place) {
  double most = scores[0], sum = 0;
  for (size_t k = 1; k < n; k++) most = fmax(most, scores[k]);
  for (size_t k = 0; k < n; k++) {
    double e = exp(scores[k] - most);
    sum += e;
    if (in_place) scores[k] = e;
  }
  for (size_t k = 0; k < n && in_place; k++) scores[k] /= sum;
  return most + log(fmax(sum, 1)); /* the largest score gives 1 */
}

typedef struct evaluation {
  pst_classifier_logistic *l;
  const double *weights;
  double *gradient;
} evaluation;

static void score_rows(void *arg, size_t first, size_t end) {
  const evaluation *e = arg;
  pst_classifier_logistic *l = e->l;
  const pst_classifier_matrix *x = l->x;
  for (size_t i = first; i < end; i++) {
    double *r = l->residuals + i * l->n_labels;
    size_t at = x->row_starts[i], n = x->row_starts[i + 1] - at;
    pst_classifier_scores(e->weights, x->n_columns, l->n_labels, x->columns + at, x->by_row + at, n, r);
    double own = r[l->labels[i]];
    l->losses[i] = pst_classifier_softmax(r, l->n_labels, true) - own;
    r[l->labels[i]] -= 1;
  }
}

/* Columns of the gradient; the last is the bias. */
static void sum_columns(void *arg, size_t first, size_t end) {
  const evaluation *e = arg;
  const pst_classifier_logistic *l = e->l;
  const pst_classifier_matrix *x = l->x;
  double scale = 1 / (double)PST_MAX(x->n_rows, 1);
  for (size_t c = first; c < end; c++) {
    const double *w = e->weights + c * l->n_labels;
    double *g = e->gradient + c * l->n_labels;
    bool bias = c == x->n_columns;
    size_t from = bias ? 0 : x->column_starts[c], to = bias ? x->n_rows : x->column_starts[c + 1];
    memset(g, 0, l->n_labels * sizeof *g);
    size_t i = from;
    for (; i + ROWS_AT_ONCE <= to && !bias; i += ROWS_AT_ONCE) {
      const double *rows[ROWS_AT_ONCE];
      for (size_t j = 0; j < ROWS_AT_ONCE; j++) rows[j] = l->residuals + x->rows[i + j] * l->n_labels;
      add_rows(rows, x->by_column + i, l->n_labels, g);
    }
    for (; i < to; i++) {
      const double *r = l->residuals + (bias ? i : x->rows[i]) * l->n_labels;
      double value = bias ? 1 : x->by_column[i];
      for (size_t k = 0; k < l->n_labels; k++) g[k] += value * r[k];
    }
    for (size_t k = 0; k < l->n_labels; k++) g[k] = g[k] * scale + l->penalty * w[k];
  }
}

double pst_classifier_logistic_value(void *logistic, const double *weights, double *ret_gradient) {
  pst_classifier_logistic *l = logistic;
  evaluation e = {l, weights, ret_gradient};
  pst_classifier_parallel(l->n_threads, l->x->n_rows, score_rows, &e);
  pst_classifier_parallel(l->n_threads, l->x->n_columns + 1, sum_columns, &e);
  double loss = 0, squares = 0;
  size_t n = pst_classifier_logistic_size(l);
  for (size_t i = 0; i < l->x->n_rows; i++) loss += l->losses[i];
  for (size_t i = 0; i < n; i++) squares += weights[i] * weights[i];
  return loss / (double)PST_MAX(l->x->n_rows, 1) + l->penalty / 2 * squares;
}
