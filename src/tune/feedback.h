/* Rounding with error feedback: what a column's rounding does to a layer's outputs is made up for by the columns that are rounded after it.
 *
 * A row w of weights, rounded to q, changes the outputs over the calibration texts by (w - q) H (w - q)^T, H the Gram matrix of their inputs. Columns are rounded
 * in order; after column j the others take -e_j U_jk / U_jj, where U^T U = H^-1 and U is upper triangular: the least that e_j can cost. Frantar, Ashkboos,
 * Hoefler, Alistarh 2022, arXiv:2210.17323; Hassibi and Stork 1993. */
#ifndef PST_TUNE_FEEDBACK_H
#define PST_TUNE_FEEDBACK_H

#include "tune/team.h"

#include <penstock/kernels.h>

/* Doubles of work space for pst_tune_feedback_make. */
size_t pst_tune_feedback_work(size_t n);
/* Floats of a Gram matrix's place, [n][n] and a row more for the diagonal that feedback takes. */
static inline size_t pst_tune_gram_floats(size_t n) { return n * (n + 1); }
/* In place of a Gram matrix [n][n]: right of the diagonal U_jk / U_jj, on it U_jj^-2, what a squared error of column j costs once the others have made up for
 * it. On the left stays the Gram matrix; its damped diagonal goes to the row behind, [n]. damping: share of the diagonal's mean that is added to it, above 0; more is taken (tenfold, at most six times) while the matrix has no factor. A matrix
 * of zeros counts as the identity. work: pst_tune_feedback_work(n) doubles. PST_E_BAD_INPUT: a number that is not finite, or no factor. Pure: any thread. */
int pst_tune_feedback_make(float *gram, size_t n, double damping, double *work);

/* A matrix of weights to be rounded. */
typedef struct pst_tune_rounding {
  uint32_t type; /* a quantized one that pst_kernels_quantize_row writes; n_cols is a multiple of its block */
  size_t n_rows, n_cols;
  const float *w;        /* [n_rows][n_cols] */
  const float *feedback; /* [n_cols + 1][n_cols] of pst_tune_feedback_make; NULL: columns are rounded each for itself */
  /* [n_rows + 1][n_rows] of pst_tune_feedback_make: how errors of two rows' outputs count together, G. NULL: each alike, for itself. */
  const float *outputs;
  size_t row_step; /* 0, 1: all rows; else only every so manieth, for an estimate of the error */
  uint8_t *out;    /* the rounded rows, one behind the other */
  /* Result: sum of all rows' damped (w - q) H (w - q)^T, times U_jj^-2 of outputs where they are given; without feedback of (w - q)^2. */
  double error;
} pst_tune_rounding;

/* Bytes of a thread's scratch for matrices with rows of up to n_cols. */
size_t pst_tune_rounding_scratch(size_t n_cols);
/* Rounds rows: with feedback, then in sweeps that lower the error further (feedback.c). The same bytes and error on any number of threads. PST_E_LIMIT: a
 * weight is too large for the type; PST_E_BAD_INPUT: one is not finite; PST_E_UNSUPPORTED: the type; PST_E_NOMEM. */
int pst_tune_round(pst_tune_team *team, pst_tune_rounding *rounding);
/* The same for matrices whose outputs count together, all rows of each: what falls, and is `error`, is the sum over rows r and s of G_rs (w - q)_r H (w - q)_s^T, H and G damped. One matrix is one thread's. *ret_failed: the
 * matrix that an error is of. PST_E_NOMEM may have none. */
int pst_tune_round_coupled(pst_tune_team *team, pst_tune_rounding *list, size_t n, size_t *ret_failed);

#endif
