/* Guesses of a draft model: a smaller model over the same vocabulary reads what the sequences hold and says what comes next, a few tokens deep.
 *
 * Its keys and values lie in pages of its own that go by the numbers of the engine's pages, so that whoever shares a prefix shares what the draft model has computed of it,
 * too. What its guesses are worth and what a round of it takes is measured; how deep it is asked, zero included, is the cost rule's (speculation.h). Owned by
 * the engine's thread. */
#ifndef PST_ENGINE_DRAFT_MODEL_H
#define PST_ENGINE_DRAFT_MODEL_H

#include "engine/forward.h"
#include "engine/session.h"
#include "engine/speculation.h"

typedef struct pst_engine_draft_model pst_engine_draft_model;

/* For an engine over `target` with these options, complete, and n_pages. References the model. Errors: PST_E_UNSUPPORTED (an encoder, a recurrent model),
 * PST_E_BAD_INPUT (another vocabulary), PST_E_NOMEM. */
int pst_engine_draft_model_create(const pst_engine_model *target, const pst_engine_options *options, int n_pages,
                                  pst_engine_draft_model **ret_draft, pst_error *err);
void pst_engine_draft_model_free(pst_engine_draft_model *d); /* NULL is fine */
/* Bytes that create takes for keys and values, and for the rest. */
void pst_engine_draft_model_bytes(const pst_engine_options *options, int64_t *ret_kv_bytes, int64_t *ret_work_bytes);

/* For those of n running sessions that want it and whose own guesses promise less: its guesses in place of theirs (session's drafter, and behind its tokens). rows: of
 * the step without drafts. room[i]: most guesses of session i. Returns the microseconds that it took. */
int64_t pst_engine_draft_model_guess(pst_engine_draft_model *d, pst_engine_sched *sched,
                                     const pst_engine_step_curve *curve, int rows, pst_engine_session *const *sessions,
                                     const int *room, int n);
/* The step was settled: what was computed behind a session's known tokens is void. */
void pst_engine_draft_model_settle(pst_engine_draft_model *d, const pst_engine_sched *sched, pst_engine_session *s);

#endif
