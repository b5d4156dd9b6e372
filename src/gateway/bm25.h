/* Ranking of short texts by BM25 (Robertson, Zaragoza 2009; k1 = 1.2, b = 0.75; idf as Lucene's, never negative).
 *
 * Words are Unicode word segments (letters, marks, digits; an apostrophe or full stop between letters or digits joins; each ideograph and each Hiragana alone),
 * NFKC, lower case. Scores are equal on every machine: weights are rounded to multiples of 2^-20 after the one call of the C library's logarithm. */
#ifndef PST_GATEWAY_BM25_H
#define PST_GATEWAY_BM25_H

#include <penstock/base.h>

typedef struct pst_gateway_bm25 pst_gateway_bm25; /* immutable after create: any thread */

/* Inverted index over texts[0 .. n). The texts are not kept. */
int pst_gateway_bm25_create(const pst_str *texts, size_t n, pst_gateway_bm25 **ret_bm25, pst_error *err);
void pst_gateway_bm25_free(pst_gateway_bm25 *bm25); /* NULL is fine */
/* The score of every text for a query into ret_scores[n], in units of 2^-20. 0: no word in common. Only err: PST_E_NOMEM. */
int pst_gateway_bm25_score(const pst_gateway_bm25 *bm25, pst_str query, int64_t *ret_scores, pst_error *err);

/* Calls `fn` for each word of a text, in order; a word is good until fn returns. Stops at the first non-zero return, which it hands on. */
int pst_gateway_words_each(pst_str text, int (*fn)(void *user, pst_str word), void *user);

#endif
