/* What is believed of every class's quality, given the few that were measured: a Gaussian process over the lossy axes, on the logit scale. */
#ifndef PST_OPTIMIZER_SURROGATE_H
#define PST_OPTIMIZER_SURROGATE_H

#include "optimizer/space.h"

typedef struct pst_optimizer_seen {
  int class_index;
  int n, k; /* asked, accepted */
} pst_optimizer_seen;

typedef struct pst_optimizer_belief {
  double mean, sd; /* of the logit of the share of accepted answers */
} pst_optimizer_belief;

/* ret_beliefs: one per class of the space. Deterministic. PST_E_NOMEM. */
int pst_optimizer_surrogate_update(const pst_optimizer_space *space, const pst_optimizer_seen *seen, size_t n_seen,
                                   pst_optimizer_belief *ret_beliefs, pst_error *err);
/* The prior mean alone. */
double pst_optimizer_surrogate_prior(const pst_optimizer_space *space, const pst_optimizer_choice *choice);
double pst_optimizer_logistic(double logit);
/* The belief as a share with an interval at `confidence`. */
pst_evals_interval pst_optimizer_belief_interval(pst_optimizer_belief belief, double confidence);

#endif
