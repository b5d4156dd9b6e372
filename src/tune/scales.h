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
  float *w;        /* [n_out][n_in], where the rounded model points: work space */
  uint8_t *blocks; /* rows one behind the other */
} pst_tune_scaled;

typedef struct pst_tune_lessons {
  const pst_tune_traffic *traffic, *search; /* what is learned from, each text once; what decides whether it helped */
  double rate;                              /* the highest: about by how much a step moves a scale */
  bool (*told)(void *user, int64_t n_tokens,
               double divergence);               /* after each step, of the texts just learned from; true: stop */
  void (*skipped)(void *user, int64_t n_tokens); /* learned from in an earlier run */
  void *user;
  const char *checkpoint; /* file to go on from and to save in, every minute and when stopped; NULL: none */
  const char *key;        /* SHA-256 over what the run is */
} pst_tune_lessons;

typedef struct pst_tune_learned {
  double before, after; /* divergence of answers on `search` */
  double seconds;       /* of earlier runs */
} pst_tune_learned;

/* Whose answers on `search` diverge least of what was seen on the way is what the blocks become; they stay as they are if nothing was better.
 * The same bytes on any number of threads, and however often it was stopped. Errors: as for pst_tune_judge_create and pst_tune_checkpoint_read; PST_E_CANCELLED, blocks as they were. */
int pst_tune_scales_learn(pst_tune_whole *whole, const pst_tune_model *rounded, const pst_tune_scaled *matrices,
                          size_t n, const pst_tune_lessons *lessons, pst_tune_learned *ret, pst_error *err);

#endif
