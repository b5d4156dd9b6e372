/* Speculation over answers that are known: the drafter and the cost rule of the engine, with no model asked. */
#include <string.h>

#include "engine/speculation.h"

struct pst_engine_draft_replay {
  pst_engine_corpus *corpus;
  bool costed; /* there is a curve */
  pst_engine_step_curve curve;
  pst_engine_acceptance acceptance;
};

int pst_engine_draft_replay_create(pst_engine_corpus *corpus, const pst_engine_step_model *model,
                                   pst_engine_draft_replay **ret_replay, pst_error *err) {
  pst_engine_draft_replay *r = pst_calloc(1, sizeof *r);
  if (!r) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to replay drafts");
  r->corpus = corpus ? pst_engine_corpus_ref(corpus) : NULL;
  r->costed = model != NULL;
  for (int rows = 1; rows <= PST_ENGINE_CURVE_ROWS && model; rows++)
    pst_engine_curve_note(&r->curve, rows, pst_engine_step_predict(model, rows, rows, 0));
  *ret_replay = r;
  return 0;
}

void pst_engine_draft_replay_free(pst_engine_draft_replay *r) {
  if (!r) return;
  pst_engine_corpus_unref(r->corpus);
  pst_free(r);
}

/* One step behind tokens[at]: as make_drafts and pick_tokens in engine.c. The guesses are written over the answer and taken back. Returns how many tokens it gives. */
static int step(pst_engine_draft_replay *r, pst_engine_drafter *drafter, const int32_t *answer, int32_t *tokens,
                int n_prompt, int at, int n, int *ret_drafted) {
  int right = 0;
  pst_engine_drafter_guess(drafter, &r->acceptance, tokens, n_prompt, at, PST_MIN(n - at - 1, PST_ENGINE_MAX_DRAFT));
  pst_engine_offer offer = {drafter->guesses, drafter->n_guesses, drafter->n_guesses};
  if (r->costed) pst_engine_speculation_choose(&r->curve, 1, &offer, 1);
  while (right < offer.n_chosen && drafter->guesses[right].token == answer[at + right]) right++;
  pst_engine_drafter_learn(drafter, &r->acceptance, answer + at, right + 1);
  memcpy(tokens + at, answer + at, (size_t)PST_MIN(n - at, PST_ENGINE_MAX_DRAFT) * sizeof *tokens);
  *ret_drafted = offer.n_chosen;
  return right + 1;
}

int pst_engine_draft_replay_answer(pst_engine_draft_replay *r, const int32_t *tokens, size_t n_prompt, size_t n,
                                   int64_t *ret_steps, int64_t *ret_drafted, pst_error *err) {
  int32_t *copy = pst_malloc(PST_MAX(n, 1) * sizeof *copy);
  if (!copy) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to replay an answer of %zu tokens", n - n_prompt);
  if (n) memcpy(copy, tokens, n * sizeof *copy);
  pst_engine_drafter drafter;
  pst_engine_drafter_init(&drafter, r->corpus);
  int64_t steps = n > n_prompt, drafted = 0;
  for (int at = (int)n_prompt + 1; at < (int)n; steps++) {
    int n_drafted;
    at += step(r, &drafter, tokens, copy, (int)n_prompt, at, (int)n, &n_drafted);
    drafted += n_drafted;
  }
  pst_free(copy);
  *ret_steps = steps;
  *ret_drafted = drafted;
  return 0;
}
