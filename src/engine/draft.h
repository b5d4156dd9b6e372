/* Prompt-lookup drafts: guesses at the next tokens from what the sequence has seen already. */
#ifndef PST_ENGINE_DRAFT_H
#define PST_ENGINE_DRAFT_H

#include <stdint.h>

/* Looks for the last place before the end where the final three tokens (else two) stand, and copies up to `most` tokens that followed. Returns
 * how many. Method: prompt lookup decoding (Saxena 2023). */
int pst_engine_draft_lookup(const int32_t *tokens, int n_tokens, int most, int32_t *ret_draft);

#endif
