/* A larger model of the same vocabulary as a teacher: what it thinks comes next at each token that is learned. */
#ifndef PST_TUNE_DISTILL_H
#define PST_TUNE_DISTILL_H

#include <penstock/tune.h>

/* Gives texts [n] their teacher: the likeliest tokens and their probabilities by the engine's model, read as prompts with log-probabilities. Memory is the arena's. Errors: PST_E_BAD_INPUT (the
 * vocabularies differ), PST_E_LIMIT (a text longer than the teacher's context), PST_E_CANCELLED, those of the engine. Blocks; not on the engine's thread. */
int pst_tune_distill(pst_engine *teacher, const pst_engine_model *model, pst_tune_text *texts, size_t n,
                     pst_arena *arena, bool (*cancelled)(void *user), void *user, pst_error *err);

#endif
