/* Terse output codes: which pieces of a workload's answers are worth a token of their own. */
#ifndef PST_TUNE_CODES_H
#define PST_TUNE_CODES_H

#include <penstock/tune.h>

/* A piece that the answers use less often teaches its code too little. */
enum { PST_TUNE_CODE_MIN_USES = 20 };

/* Part of a text that may be coded: its answer, without what must stay as it is. */
typedef struct pst_tune_span {
  const int32_t *tokens;
  size_t n;
} pst_tune_span;

/* At most `most` tokens that may be codes, the best first, into *ret_tokens (pst_free): printable tokens of two bytes or more that the seen texts do not have. First those with a
 * character that no text has, for what a user may yet write and an answer must copy should not need them; of these the ones of low numbers, which tokenizers give to what
 * is frequent and a model knows well. Each is unlike those before it (cosine of the head's rows at most 1/2, then 0.7), for the model must tell one from the other; only where
 * such are too few, tokens with rare characters, the rarest first. seen: [n_vocab], how often each token occurs. model: one of pst_engine_decoder_get. Errors: PST_E_NOMEM. */
int pst_tune_codes_free_tokens(const pst_engine_model *model, const uint32_t *seen, size_t most, int32_t **ret_tokens,
                               size_t *ret_n, pst_error *err);

/* A table of at most `most` codes for the spans. Candidates are the pieces that merging frequent neighbours makes, as in byte-pair encoding (Sennrich, Haddow and Birch 2016,
 * arXiv:1508.07909); of these the least worth go until few enough are left, as in unigram models (Kudo 2018, arXiv:1804.10959). Tokens that are no text are in no piece. Of
 * many spans a part is read. The same spans give the same table. *ret_codes NULL: nothing occurs PST_TUNE_CODE_MIN_USES times. Errors: PST_E_NOMEM. */
int pst_tune_codes_learn(const pst_engine_model *model, const pst_tune_span *spans, size_t n,
                         const int32_t *free_tokens, size_t n_free, size_t most, pst_engine_codes **ret_codes,
                         pst_error *err);

#endif
