/* The held-back look: finalists in a fixed order, each paired against the reference plan on items the search has not seen; the first that passes is taken. */
#ifndef PST_OPTIMIZER_VERIFY_H
#define PST_OPTIMIZER_VERIFY_H

#include "optimizer/search.h"

enum { PST_OPTIMIZER_MAX_FINALISTS = 8 };

typedef struct pst_optimizer_trial {
  int class_index;
  bool asked;
  const char *why_not; /* asked, in words; NULL: it was */
  int n_reference; /* items that the reference is asked at least, to be paired with it; fixed before the first answer */
  bool same_answers; /* as the reference: nothing but exact fields differs, so there is nothing to compare */
  pst_evals_comparison comparison;   /* a: finalist, b: reference */
  pst_evals_interval quality;        /* on all items that it was asked, which may be more than the reference was */
  bool floor_holds;                  /* by the point estimate */
  pst_evals_comparison against_best; /* a: finalist, b: the best plan found; only where there is such a limit */
  bool loss_holds;                   /* goal.max_quality_loss, by the point estimate; true without such a limit */
  bool ceiling_holds;                /* cost per accepted answer, with the quality found here */
  bool
      better; /* by the objective than the reference, however that is served, with the quality found here; true of the reference's own answers */
  bool may_be_better; /* more items might show it */
  bool passed;
} pst_optimizer_trial;

typedef struct pst_optimizer_verification {
  pst_optimizer_trial trials[PST_OPTIMIZER_MAX_FINALISTS];
  size_t n_trials;
  int n_items; /* of finalists (0: providers could not be paid for enough); fixed before the first answer, as is the next */
  int n_best;   /* of the best plan found: as many, or what can be paid of a provider's */
  int64_t uses; /* how many plans were asked these items before this run */
  int taken;    /* trial that passed; -1: none */
  /* The best plan that the search found, asked the same items where the goal limits what may be lost against it; -1: it does not. */
  int best;
  pst_evals_comparison reference_against_best; /* a: the reference, b: that plan */
  /* The best plan of prompted models, asked the first of the same items when the plan taken is no such plan itself: what was learned is compared with
   * what prompts alone reach, and not only with the reference. -1: there is none. */
  int prompted;
  int n_prompted; /* fixed before the first answer, or by the time left after the last; 0: it is not asked */
  pst_evals_comparison against_prompted; /* a: the plan taken, b: the prompted one; n 0: it was not asked */
  const char *why_not_prompted;          /* asked, in words; NULL: it was, or no plan was taken */
  pst_optimizer_verdict verdict;
} pst_optimizer_verification;

int pst_optimizer_verify(pst_optimizer_state *state, const int *finalists, size_t n_finalists,
                         pst_optimizer_verification *ret_verification, pst_error *err);
/* Nano-dollars of a request as it was measured, one after the other: the machine's time and the provider's bill. a->n > 0. */
double pst_optimizer_measured_nusd(const pst_optimizer_state *state, const pst_optimizer_answers *a);
/* Pairs two classes' answers on their common items. */
void pst_optimizer_pair(const pst_optimizer_answers *a, const pst_optimizer_answers *b, double margin,
                        pst_evals_comparison *ret_comparison);

#endif
