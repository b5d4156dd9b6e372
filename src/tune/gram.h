/* What goes into a model's linear layers over calibration texts, and how errors of what comes out count: a Gram matrix X^T X of each input, rows weighed, and one of each matrix's outputs.
 *
 * For errors E of a matrix, small enough, the divergence of the texts' predictions is a sum over tokens of squares (d E x)^2: x is the input, d what a number drawn at the predictions (mean 0, covariance that of their
 * distribution's Fisher information) derives by the output. It is taken for sum_rs G_rs (E_r H E_s^T): H of inputs x, weighed by |d|^2 and some of each, G of d. The two sides of a matrix for themselves, as in Martens and
 * Grosse 2015, arXiv:1503.05671; for rounding: Tseng, Sun and De Sa 2025, arXiv:2505.22988. */
#ifndef PST_TUNE_GRAM_H
#define PST_TUNE_GRAM_H

#include "tune/net.h"

typedef struct pst_tune_grams {
  size_t n_layers, n_embd;
  size_t n_tokens, n_scores; /* seen so far */
  /* [n_layers]; the lower triangle of [n][n], in a place of pst_tune_gram_floats(n). Layers that read the same input share one: n of width. Of outputs: n_out. */
  float *(*inputs)[PST_TUNE_GROUP_COUNT], *(*outputs)[PST_ENGINE_ROLE_COUNT];
  /* [n_embd][n_embd], the same memory when tied. An error e of one row costs a token half of (d e^T)^2 nats where the row is its embedding and half of w (e h^T)^2 in the head: d is derived by the
   * embedding, h what the head reads, w = p (1 - p) of the row's token. Rows are taken for alike: these are sums over all of them. */
  float *embedding, *head;
  size_t width[PST_TUNE_GROUP_COUNT];      /* of a group's input */
  double (*squares)[PST_TUNE_GROUP_COUNT]; /* [n_layers]: of d, so far */
  double doubts;                           /* sum of w so far */
  size_t bytes;
  float *logits, *rows, *lengths; /* scratch; lengths: [tokens of a batch], |d|^2 or w */
  void *memory;
} pst_tune_grams;

/* Zeros for every input and output of the net's model. PST_E_NOMEM. */
int pst_tune_grams_create(const pst_tune_net_f32 *net, pst_tune_grams *ret_grams, pst_error *err);
void pst_tune_grams_done(pst_tune_grams *grams);
/* Takes the batch through the net and back; its scores are the predictions that count. Every sum is one chain over the tokens in their order, so that the number of threads leaves no
 * trace. */
void pst_tune_grams_add(pst_tune_grams *grams, pst_tune_net_f32 *net, const pst_tune_batch *batch);
/* A row of logits [n] becomes a draw with mean 0 and covariance diag(p) - p p^T, p = softmax(logits): signs times root(p), less their part along p. `number` decides the signs.
 * Returns the sum of p (1 - p). */
double pst_tune_grams_draw(float *row, size_t n, uint64_t number);

#endif
