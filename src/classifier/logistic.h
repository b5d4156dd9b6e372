/* Multinomial logistic regression with a quadratic penalty: its objective, gradient and scores. */
#ifndef PST_CLASSIFIER_LOGISTIC_H
#define PST_CLASSIFIER_LOGISTIC_H

#include "classifier/dataset.h"

/* mean over rows of -ln p(label) + penalty / 2 |weights|^2, p = softmax of the row's scores. weights: [(n_columns + 1) x n_labels], the last row the bias,
 * penalised like the others: so the function is strictly convex and its minimum is one point, whatever labels the rows lack. */
typedef struct pst_classifier_logistic {
  const pst_classifier_matrix *x;
  const uint32_t *labels; /* [x->n_rows], each below n_labels */
  size_t n_labels;
  double penalty;
  int n_threads;
  double *residuals; /* [x->n_rows x n_labels] */
  double *losses;    /* [x->n_rows] */
} pst_classifier_logistic;
/* Fills in residuals and losses; the other fields are the caller's. PST_E_NOMEM. */
int pst_classifier_logistic_init(pst_classifier_logistic *l);
void pst_classifier_logistic_done(pst_classifier_logistic *l);

size_t pst_classifier_logistic_size(const pst_classifier_logistic *l); /* of weights */
/* The objective at `weights`, its gradient into ret_gradient (same size). The signature is the minimiser's. */
double pst_classifier_logistic_value(void *logistic, const double *weights, double *ret_gradient);

/* Scores of n values in columns: weights' bias plus their rows times the values; ret: [n_labels]. */
void pst_classifier_scores(const double *weights, size_t n_columns, size_t n_labels, const uint32_t *columns,
                           const double *values, size_t n, double *ret_scores);
/* ln of the sum of exponentials, and softmax in place of the scores when `in_place`. */
double pst_classifier_softmax(double *scores, size_t n, bool in_place);

#endif
