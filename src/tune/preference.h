/* Objectives that compare a model with what it was at the start: DPO over pairs of answers, KTO over answers of which each was wanted or not.
 *
 * Both are functions of an answer's log-probability and its reference, the same of the starting model. */
#ifndef PST_TUNE_PREFERENCE_H
#define PST_TUNE_PREFERENCE_H

#include "tune/batch.h"

/* -(1 - smoothing) log s(beta gap) - smoothing log s(-beta gap), s the logistic function; gap: by how much more than the reference the model prefers the wanted
 * answer, nats. *ret_slope: the derivative by the gap. Rafailov et al. 2023, arXiv:2305.18290; the smoothing is the conservative DPO of Mitchell 2023. Pure. */
double pst_tune_dpo(double gap, double beta, double smoothing, double *ret_slope);
/* 1 - s(beta (ratio - point)) of a wanted answer, 1 - s(beta (point - ratio)) of another. ratio: log-probability less reference; point: the model's divergence from
 * the reference, not derived by. *ret_slope: the derivative by the ratio. Ethayarajh et al. 2024, arXiv:2402.01306, without its weights. Pure. */
double pst_tune_kto(double ratio, double point, bool wanted, double beta, double *ret_slope);

/* Texts of an example: a pair in DPO, else one. */
size_t pst_tune_unit(pst_tune_objective objective);

/* What answers of texts were worth: a reward is beta times log-probability less reference. */
typedef struct pst_tune_rewards {
  double wanted, unwanted; /* sums */
  size_t n_wanted, n_unwanted;
  size_t n_right,
      n; /* of n examples: DPO: the wanted answer has the higher reward; KTO: a reward is on its side of the point's */
} pst_tune_rewards;
double pst_tune_rewards_margin(
    const pst_tune_rewards *rewards); /* mean of the wanted less that of others; NAN: of either there is none */
double pst_tune_rewards_accuracy(const pst_tune_rewards *rewards); /* NAN: no example */

/* What is known of a batch when its losses come in. */
typedef struct pst_tune_weighing {
  pst_tune_objective objective; /* DPO or KTO */
  double beta, smoothing, point;
  const pst_tune_text *texts; /* as added to the batch; DPO: pairs, the wanted answer first */
  const double *references;   /* of each text */
  double *log_probs;          /* scratch [n_texts] */
  double loss;                /* added to: of each example, times its (first) text's weight */
  pst_tune_rewards rewards;   /* added to */
} pst_tune_weighing;
/* Sums of the scored tokens' log-probabilities, by text: ret_log_probs [batch->n_texts]. */
void pst_tune_log_probs(const double *losses, const pst_tune_batch *batch, double *ret_log_probs);
/* For pst_tune_net_run_weighed; user: a pst_tune_weighing. */
void pst_tune_weigh(void *user, const double *losses, pst_tune_batch *batch);

/* Prompts with answers to others, by which KTO estimates its point: text i's prompt and, of the texts before it in a ring, the first other answer to another prompt;
 * at most max_tokens long. A text without such a one keeps its own answer. ret_tokens and ret_texts [n]: pst_free. PST_E_NOMEM. */
int pst_tune_mismatch(const pst_tune_text *texts, size_t n, size_t max_tokens, int32_t **ret_tokens,
                      pst_tune_text **ret_texts);

#endif
