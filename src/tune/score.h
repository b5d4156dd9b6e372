/* A workload's own grade of an adapter that is being trained, on held-out examples: answers are made by the engine that will serve it. */
#ifndef PST_TUNE_SCORE_H
#define PST_TUNE_SCORE_H

#include <penstock/tune.h>

/* A held-out example: the tokens that would be served, and the item that grades the answer. */
typedef struct pst_tune_sampled {
  const int32_t *prompt;
  size_t n_prompt;
  const pst_evals_item *item;
} pst_tune_sampled;

/* All borrowed; `choices` and `engine` by whoever opened them. */
typedef struct pst_tune_sample {
  const pst_evals_workload *workload;
  pst_engine *engine;
  pst_engine_choices *choices; /* the workload's labels; NULL: free text */
  const char *codes;           /* in which the adapter answers, as its note says; NULL: plain */
  bool plain;                  /* the layout: an answer is one line, behind a space */
  const pst_tune_sampled *items;
  size_t n;
} pst_tune_sample;

/* pst_tune_scorer's call; user: a pst_tune_sample. Greedy, as the tuned plan is. Errors: those of pst_engine_adapter_create and of the engine, PST_E_NOMEM. */
int pst_tune_sample_score(void *user, const pst_engine_lora *adapter, size_t n, uint64_t *ret_right, pst_error *err);

#endif
