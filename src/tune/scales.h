/* Rounded matrices whose scales learn from the float model: end to end, by what both say of answers. Codes stay; each block's scales are multiplied by one number. Kim et al.
 * 2023, arXiv:2305.14152; Chen et al. 2024, arXiv:2407.11062. */
#ifndef PST_TUNE_SCALES_H
#define PST_TUNE_SCALES_H

#include "tune/whole.h"

#include <penstock/tune_calibrate.h>

/* A layer's rounded matrix. */
typedef struct pst_tune_scaled {
  size_t layer;
  int role;
  uint32_t type;
  float *w;        /* [n_out][n_in]: what the blocks say, where the rounded model points; work space afterwards */
  uint8_t *blocks; /* rows one behind the other */
} pst_tune_scaled;

typedef struct pst_tune_lessons {
  const pst_tune_traffic *traffic, *search; /* what is learned from, each text once; what decides whether it helped */
  double rate;                              /* the highest: about by how much a step moves a scale */
  bool (*told)(void *user, int64_t n_tokens,
               double divergence); /* after each step, of the texts just learned from; true: stop */
  void *user;
} pst_tune_lessons;

/* Whose answers on `search` diverge least of what was seen on the way is what the blocks become; they stay as they are if nothing was better. *ret_before, *ret_after: divergence of answers
 * on search. The same bytes on any number of threads. Errors: as for pst_tune_judge_create; PST_E_CANCELLED, blocks as they were. */
int pst_tune_scales_learn(pst_tune_whole *whole, const pst_tune_model *rounded, const pst_tune_scaled *matrices,
                          size_t n, const pst_tune_lessons *lessons, double *ret_before, double *ret_after,
                          pst_error *err);

#endif
