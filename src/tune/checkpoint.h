/* What training needs to go on where it was, as a file that is whole or not there. */
#ifndef PST_TUNE_CHECKPOINT_H
#define PST_TUNE_CHECKPOINT_H

#include <penstock/tune.h>

/* Where training stands, beside the numbers. */
typedef struct pst_tune_state {
  int64_t step, n_steps; /* done, planned */
  int64_t best_step;     /* -1: no held-out loss yet */
  int64_t n_tokens, n_scored;
  double best_loss, lowest_loss, held_out_before,
      held_out_loss;        /* held out: of the best adapter, of any, of the start, the last */
  double loss_sum, seconds; /* of the last tenth of the steps; of all sessions */
  int64_t n_loss;
  double margin, accuracy; /* of rewards: of the best adapter, else of the last step; NAN: none */
  int64_t n_worse;         /* evaluations since the best */
  /* Answers to the held-out sample. */
  int64_t n_sample;                 /* of it, asked each time; 0: none are */
  double score_seconds, score_cost; /* all of them, the last */
  uint64_t best_right;              /* of the best adapter, one bit an item */
  double look_seconds;              /* the last look at the held-out part, without answers */
  int64_t n_looks; /* at the held-out part, planned: fewer than asked for where they would take most of the time */
  bool best_asked, shortened;     /* shortened: fewer steps are planned since held-out losses rose */
  pst_tune_evaluation best, last; /* step -1: none yet */
  pst_tune_evaluation evaluations[PST_TUNE_MAX_EVALUATIONS];
  int64_t n_evaluations;
} pst_tune_state;

typedef struct pst_tune_numbers {
  size_t n;
  float *params, *mean, *square, *best; /* [n]; best: the params of the lowest held-out loss */
  size_t n_references;
  double *references; /* [n_references]: log-probabilities by the starting model; none in SFT */
} pst_tune_numbers;

/* key: SHA-256 over what the run is (model, texts, options that count). */
int pst_tune_checkpoint_write(const char *path, const char key[65], const pst_tune_state *state,
                              const pst_tune_numbers *numbers, pst_error *err);
/* *ret_found false: there is no file, or one of another run or version, which the next write replaces; the numbers are as they were. PST_E_CORRUPT: damaged; the numbers are
 * void. */
int pst_tune_checkpoint_read(const char *path, const char key[65], bool *ret_found, pst_tune_state *ret_state,
                             pst_tune_numbers *numbers, pst_error *err);

#endif
