/* What goes into a model's linear layers over calibration texts: the Gram matrix X^T X of each input. Layers that read the same input share one. */
#ifndef PST_TUNE_GRAM_H
#define PST_TUNE_GRAM_H

#include "tune/net.h"

typedef struct pst_tune_grams {
  size_t n_layers, n_embd;
  size_t n_tokens;                        /* seen so far */
  float *(*layers)[PST_TUNE_GROUP_COUNT]; /* [n_layers]: [n][n], n of width, in a place of pst_tune_gram_floats(n) */
  float *head;                            /* [n_embd][n_embd] */
  size_t width[PST_TUNE_GROUP_COUNT];     /* of a group's input */
  size_t bytes;
  void *memory;
} pst_tune_grams;

/* Zeros for every input of the model's. PST_E_NOMEM. */
int pst_tune_grams_create(const pst_tune_model *model, pst_tune_grams *ret_grams, pst_error *err);
void pst_tune_grams_done(pst_tune_grams *grams);
/* Adds all tokens of the batch that pst_tune_net_states_f32 just went through; the net's scratch is written. Every sum is one chain over the tokens in their order,
 * so that the number of threads leaves no trace. */
void pst_tune_grams_add(pst_tune_grams *grams, pst_tune_net_f32 *net, const pst_tune_batch *batch);

#endif
