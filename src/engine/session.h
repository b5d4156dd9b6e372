/* One request inside the engine. Owned by the engine's thread from submit to its last event. */
#ifndef PST_ENGINE_SESSION_H
#define PST_ENGINE_SESSION_H

#include "engine/adapter.h"
#include "engine/choices.h"
#include "engine/draft.h"
#include "engine/model.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"

enum { PST_ENGINE_MAX_TOP = 20 };

typedef struct pst_engine_session {
  pst_engine_seq seq; /* first: the scheduler's pointers are ours */
  uint64_t id;
  pst_engine_sampling sampling;
  pst_engine_bias *bias;
  pst_str *stop; /* views into stop_bytes */
  char *stop_bytes;
  size_t n_stop;
  pst_engine_adapter *adapter;
  pst_engine_choices *choices;
  int choice_node;
  char *heal; /* bytes backed up and not yet written again; n_heal of them */
  size_t n_heal;
  bool ignore_end, strip_space;
  pst_engine_speculation speculation;
  pst_engine_corpus *corpus;
  pst_engine_drafter drafter;
  pst_engine_acceptance *acceptance; /* the engine's, of its corpus */
  int n_draft_stored;                /* leading tokens whose keys and values of the draft model are in pages */
  int n_logprobs;
  pst_engine_callback callback;
  void *user;
  uint8_t **page_memory; /* the page table as the kernels read it */
  int state;             /* number of its recurrent state; -1: none yet */
  pst_engine_text_stream stream;
  pst_buf text;       /* decoded, not yet sent: may begin a stop string */
  int n_prompt_given; /* tokens of the prompt as submitted (healing takes some away) */
  int n_healed;
  int n_completion, n_drafted, n_accepted, n_steps, n_token_steps, max_tokens;
  int64_t submit_us, admit_us, first_us;
  double busy_us; /* its share of the steps' time */
  double margin;
  struct pst_engine_session *next; /* inbox, or the list of live ones */
} pst_engine_session;

/* Copies a request. Errors as pst_engine_submit. n_ctx: longest sequence. */
int pst_engine_session_create(const pst_engine_model *model, const pst_engine_request *request, int n_ctx,
                              pst_engine_session **ret_session, pst_error *err);
void pst_engine_session_free(pst_engine_session *s);

/* Tokens the next one must be chosen from, ascending, into `ret` (n_vocab entries); -1: all. */
int pst_engine_session_allowed(const pst_engine_session *s, const pst_engine_model *model, int32_t *ret);
/* A token was chosen (or forced): takes it into the answer, sends what is certain. Returns the finish. `logits_row` NULL: no log-probabilities. */
pst_engine_finish pst_engine_session_accept(pst_engine_session *s, const pst_engine_model *model, int32_t token,
                                            const float *raw_logits);
/* A prompt token's own log-probability (scoring). */
void pst_engine_session_score(pst_engine_session *s, const pst_engine_model *model, int32_t token,
                              const float *raw_logits);
/* Sends the rest of the text and the last event. */
void pst_engine_session_end(pst_engine_session *s, pst_engine_finish finish, const pst_error *error);

#endif
