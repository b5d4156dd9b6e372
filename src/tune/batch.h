/* Tokens that go through the model together: several texts one behind the other, each blind to the others; texts that begin alike may share their
 * beginning, which is then there once.
 *
 * A span is a run of tokens at consecutive positions. It sees the spans above it, from the root down, and itself up to the token at hand. A text without
 * company is one span without a parent. */
#ifndef PST_TUNE_BATCH_H
#define PST_TUNE_BATCH_H

#include <penstock/tune.h>

enum { PST_TUNE_TILE = 32, PST_TUNE_MAX_DEPTH = 64 };

typedef struct pst_tune_span {
  size_t first, n; /* tokens [first, first + n) of the batch */
  size_t position; /* of the first: 0, or behind the parent's last */
  int parent;      /* a span before this one; -1: none */
} pst_tune_span;

/* Up to PST_TUNE_TILE tokens of a span. */
typedef struct pst_tune_tile {
  int span;
  size_t first, n, position;
} pst_tune_tile;

/* A prediction that counts: after token `row`, `target` should come. */
typedef struct pst_tune_score {
  uint32_t row;
  int32_t target;
  float weight;  /* of its loss; 1 as a rule */
  uint32_t text; /* whose it is: number in the order added, from 0 */
  int k;         /* the teacher's likeliest tokens [k] and their probabilities; 0: no teacher */
  const int32_t *ids;
  const float *probabilities;
} pst_tune_score;

typedef struct pst_tune_batch {
  int32_t *tokens;
  uint32_t *positions; /* [n_tokens] */
  size_t n_tokens, tokens_capacity, n_texts;
  pst_tune_span *spans;
  size_t n_spans, spans_capacity;
  pst_tune_tile *tiles;
  size_t n_tiles, tiles_capacity;
  pst_tune_score *scores; /* rows ascending */
  size_t n_scores, scores_capacity;
} pst_tune_batch;

void pst_tune_batch_done(pst_tune_batch *batch);
void pst_tune_batch_clear(pst_tune_batch *batch); /* keeps the memory */
/* Sorts texts so that those that begin alike stand together. */
void pst_tune_texts_sort(pst_tune_text *texts, size_t n);
/* A text as one span; what its first n_given tokens predict is scored for the last of them only, and its last token, which predicts nothing, is left out. PST_E_NOMEM. */
int pst_tune_batch_add(pst_tune_batch *batch, const pst_tune_text *text);
/* Texts as a tree: beginnings that two or more share, in runs of at least min_shared tokens, are there once. Order within the batch is by content. PST_E_NOMEM. */
int pst_tune_batch_add_tree(pst_tune_batch *batch, const pst_tune_text *texts, size_t n, size_t min_shared);

#endif
