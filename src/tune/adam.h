/* The optimizer: AdamW over one row of numbers, with the gradient's length held down, and the course of the learning rate. */
#ifndef PST_TUNE_ADAM_H
#define PST_TUNE_ADAM_H

#include "tune/team.h"

typedef struct pst_tune_adam {
  double beta1, beta2, epsilon, weight_decay;
  size_t n;
  float *params, *grads, *mean, *square; /* [n]; moments of the gradient */
} pst_tune_adam;

/* Step number `step`, from 1: params move, grads become zeros. The gradient is scaled down to length `clip` (0: never). Returns its length before. */
double pst_tune_adam_step(pst_tune_team *team, const pst_tune_adam *adam, int64_t step, double learning_rate,
                          double clip);

/* The share of the highest learning rate at step `step` (from 0) of n: rises over warmup_share of the steps, then half a cosine down to final_share. */
double pst_tune_schedule(int64_t step, int64_t n_steps, double warmup_share, double final_share);

#endif
