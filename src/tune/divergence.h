/* How far a model's next-token distributions are from a reference model's, over given texts. */
#ifndef PST_TUNE_DIVERGENCE_H
#define PST_TUNE_DIVERGENCE_H

#include "tune/net.h"

#include <penstock/tune_calibrate.h>

/* Texts in batches, and the reference's final states for the rows that count. One owner. */
typedef struct pst_tune_judge {
  pst_tune_net_f32 *net; /* the caller's; its model is replaced for each run */
  const pst_tune_model *reference;
  pst_tune_batch *batches;
  size_t n_batches, n_rows; /* rows that count, of all batches */
  bool *is_answer;          /* [n_rows] */
  float *states;            /* [n_rows][n_embd]: normed, the reference's */
  float *logits[2];         /* scratch of a tile of rows */
  double *rows;             /* scratch [n_rows]: divergence of each */
  uint8_t *same;            /* scratch [n_rows]: whether the likeliest token is the same */
} pst_tune_judge;

/* Reads texts [0, n_texts) until limit_tokens are reached (0: all), runs the reference over them. answers_only: rows that predict answers count, else all.
 * PST_E_LIMIT: a text is longer than the net's max_tokens; PST_E_NO_DATA: no text; PST_E_NOMEM. */
int pst_tune_judge_create(pst_tune_net_f32 *net, const pst_tune_model *reference, const pst_tune_traffic *traffic,
                          size_t limit_tokens, bool answers_only, pst_tune_judge *ret_judge, pst_error *err);
void pst_tune_judge_done(pst_tune_judge *judge);
/* KL(reference || model), the model of the reference's shapes. The net's model is the reference again afterwards. */
pst_tune_divergence pst_tune_judge_run(pst_tune_judge *judge, const pst_tune_model *model);

/* out [n_rows][n_vocab] = logits of a float model for normed final states x [n_rows][n_embd]. */
pst_tune_product_f32 pst_tune_head_product(const pst_tune_model *model, const float *x, size_t n_rows, float *out);

/* Tokens of the longest text; 0: there is none. */
size_t pst_tune_traffic_longest(const pst_tune_traffic *traffic);
/* Whether every text goes through a net of max_tokens at once, asked before any work. what: the texts to a person ("examples to learn from"). PST_E_LIMIT names the longest. */
int pst_tune_traffic_check(const pst_tune_traffic *traffic, const char *what, size_t max_tokens, pst_error *err);
/* Texts as batches of at most max_tokens tokens, for one pass through a net; answers_only: else all positions are scored. *ret_batches [*ret_n]: the
 * caller's, for pst_tune_batches_free. Errors as for pst_tune_judge_create. */
int pst_tune_traffic_batches(const pst_tune_traffic *traffic, size_t limit_tokens, size_t max_tokens,
                             size_t max_position, bool answers_only, pst_tune_batch **ret_batches, size_t *ret_n,
                             pst_error *err);
void pst_tune_batches_free(pst_tune_batch *batches, size_t n); /* NULL is fine */

#endif
