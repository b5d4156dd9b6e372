/* Past answers of a workload as a file kept by content hash, and as the corpus that drafts come from. */
#ifndef PST_GATEWAY_ANSWERS_H
#define PST_GATEWAY_ANSWERS_H

#include <penstock/gateway.h>

/* The file's answers in a model's tokens. leading_space: they begin and end as in the layout PLAIN, with a space and with a line end; else with the model's end token.
 * *ret_corpus NULL: the file was withdrawn, since
 * records that gave answers were deleted; plans go on without it. Errors: PST_E_NOT_FOUND, PST_E_CORRUPT (with the line), PST_E_UNSUPPORTED (a newer format), PST_E_IO, PST_E_NOMEM. One reference for the caller. */
int pst_gateway_answers_open(pst_store *store, pst_str hash, const pst_engine_model *model, bool leading_space,
                             pst_engine_corpus **ret_corpus, pst_error *err);

#endif
