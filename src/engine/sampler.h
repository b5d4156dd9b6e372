/* From logits to a token. Pure functions over caller-owned work space; any thread. */
#ifndef PST_ENGINE_SAMPLER_H
#define PST_ENGINE_SAMPLER_H

#include <penstock/engine.h>

typedef struct pst_engine_candidate {
  float logit;
  int32_t token;
} pst_engine_candidate;

/* What a draw depends on beside the logits. */
typedef struct pst_engine_draw {
  const pst_engine_sampling *sampling;
  const int32_t *tokens; /* prompt and answer so far */
  int n_prompt, n_tokens;
  const int32_t *allowed; /* NULL: every token; else the only tokens allowed, ascending, n_allowed > 0 */
  int n_allowed;
} pst_engine_draw;

/* Chooses the token at position n_tokens. `logits` (n_vocab) are changed by bias and penalties. `work` has n_vocab entries. Greedy: the highest logit, lowest
 * id on ties. Otherwise a function of (seed, choice, position) and the logits alone. */
int32_t pst_engine_sample(const pst_engine_draw *draw, float *logits, int n_vocab, pst_engine_candidate *work);

/* True when the draw reads nothing but the highest of the untouched logits. */
bool pst_engine_sampling_is_plain_greedy(const pst_engine_sampling *s);

/* log(sum(exp(logits))) in double, ascending order of index. */
double pst_engine_log_sum_exp(const float *logits, int n_vocab);

/* 0 or PST_E_BAD_INPUT naming the field that is out of range. */
int pst_engine_sampling_check(const pst_engine_sampling *s, int n_vocab, pst_error *err);

#endif
