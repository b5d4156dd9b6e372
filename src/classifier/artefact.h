/* The bytes of a trained classifier: a line of JSON that says what follows, then hashes (u64, ascending), idf (f32), scales (f32) and weights (i8, a row of
 * labels for each gram), the vector's weights (f32, a row of labels for each of its elements) and the bias (f32, one for each label); little-endian, without
 * gaps. A gram's weight is its row's scale times its i8. A classifier without an encoder is written as format 1, which had none. */
#ifndef PST_CLASSIFIER_ARTEFACT_H
#define PST_CLASSIFIER_ARTEFACT_H

#include "classifier/dataset.h"

struct pst_classifier {
  pst_arena *arena; /* labels */
  pst_classifier_info info;
  pst_classifier_dictionary dictionary;
  float *scales;   /* [n_features] */
  int8_t *weights; /* [n_features x n_labels] */
  float *dense;    /* [n_dims x n_labels] */
  float *bias;     /* [n_labels] */
};

/* weights: [(n_features + n_dims + 1) x n_labels], those of grams, of the vector's elements, and the bias. PST_E_NOMEM. */
int pst_classifier_artefact_write(const pst_classifier_info *info, const pst_classifier_dictionary *dictionary,
                                  const double *weights, pst_buf *out);

#endif
