/* One forward step of a model over tokens of several sequences. */
#ifndef PST_ENGINE_FORWARD_H
#define PST_ENGINE_FORWARD_H

#include "engine/adapter.h"

/* Tokens [first, first + n) of one sequence. */
typedef struct pst_engine_forward_item {
  const int32_t *tokens; /* the n tokens */
  int first, n;          /* absolute position of the first */
  int n_logits;          /* hidden states of the last n_logits tokens are kept */
  /* Page of each PST_KERNELS_PAGE positions, up to the last token's; of an encoder, whose items are whole texts, space for the step alone. */
  uint8_t *const *pages;
  const pst_engine_adapter *adapter; /* NULL: the base; items with the same one should stand together */
  float *state; /* the sequence's recurrent state, model info's state_bytes; zeros before its first token */
} pst_engine_forward_item;

typedef struct pst_engine_forward pst_engine_forward;

/* Work space for steps of at most max_tokens tokens and max_logits kept states, of sequences up to n_ctx long. References the model. */
int pst_engine_forward_create(pst_engine_model *model, pst_engine_kv kv, int max_tokens, int max_items, int max_logits,
                              int n_ctx, int n_threads, pst_engine_forward **ret_forward, pst_error *err);
void pst_engine_forward_free(pst_engine_forward *f);
/* Bytes that create takes for it. */
size_t pst_engine_forward_work_bytes(const pst_engine_model *model, pst_engine_kv kv, int max_tokens, int max_items,
                                     int max_logits, int n_ctx, int n_threads);
size_t pst_engine_forward_page_bytes(const pst_engine_model *model, pst_engine_kv kv); /* of one page, all layers */

/* Runs the layers. Keys and values are stored in the items' pages; kept states stand in order of items and tokens. */
void pst_engine_forward_run(pst_engine_forward *f, const pst_engine_forward_item *items, int n_items);

/* x of the step's tokens behind the last layer, [n_tokens][n_embd], in order of items and tokens: what an encoder pools. Valid until the next
 * run. */
const float *pst_engine_forward_states(const pst_engine_forward *f);

/* Logits of kept states [first, first + n), n <= PST_ENGINE_HEAD_ROWS, into logits[n][n_vocab]. groups (NULL: all rows of the head): only the rows of these
 * groups of PST_KERNELS_GROUP are computed, the others are left as they are. */
enum { PST_ENGINE_HEAD_ROWS = 16 };
void pst_engine_forward_logits(pst_engine_forward *f, int first, int n, const int32_t *groups, int n_groups,
                               float *logits);

/* The greatest logit's token, the lowest of equals, of kept states [first, first + n), n <= PST_ENGINE_HEAD_ROWS: what argmax over
 * pst_engine_forward_logits gives, with less read where the model has a screen. scratch: [n][n_vocab], overwritten. */
void pst_engine_forward_greedy(pst_engine_forward *f, int first, int n, float *scratch, int32_t *ret_tokens);

#endif
