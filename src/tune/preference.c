/* Losses over pairs and marks, and what they mean for each scored token (preference.h).
 *
 * An answer's log-probability is the sum over its tokens, so that all of them weigh what its loss derives by that sum. */
#include "tune/preference.h"

#include <math.h>
#include <string.h>

static const char *const names[PST_TUNE_OBJECTIVE_COUNT] = {"sft", "dpo", "kto"};

const char *pst_tune_objective_name(pst_tune_objective objective) { return names[objective]; }

bool pst_tune_objective_from(pst_str name, pst_tune_objective *ret_objective) {
  for (int i = 0; i < PST_TUNE_OBJECTIVE_COUNT; i++) {
    if (!pst_str_is(name, names[i])) continue;
    *ret_objective = (pst_tune_objective)i;
    return true;
  }
  return false;
}

size_t pst_tune_unit(pst_tune_objective objective) { return objective == PST_TUNE_DPO ? 2 : 1; }

/* ---- losses ---- */

/* Either way without an exponential that overflows. */
static double logistic(double x) {
  double e = exp(-fabs(x));
  return x < 0 ? e / (1 + e) : 1 / (1 + e);
}

static double log_logistic(double x) { return (x < 0 ? x : 0) - log1p(exp(-fabs(x))); }

double pst_tune_dpo(double gap, double beta, double smoothing, double *ret_slope) {
  double x = beta * gap;
  *ret_slope = beta * (smoothing * logistic(x) - (1 - smoothing) * logistic(-x));
  return -(1 - smoothing) * log_logistic(x) - smoothing * log_logistic(-x);
}

double pst_tune_kto(double ratio, double point, bool wanted, double beta, double *ret_slope) {
  double sign = wanted ? 1 : -1, x = sign * beta * (ratio - point), worse = logistic(-x);
  *ret_slope = -sign * beta * worse * logistic(x);
  return worse;
}

/* ---- rewards ---- */

double pst_tune_rewards_margin(const pst_tune_rewards *r) {
  return r->n_wanted && r->n_unwanted ? r->wanted / (double)r->n_wanted - r->unwanted / (double)r->n_unwanted : NAN;
}

double pst_tune_rewards_accuracy(const pst_tune_rewards *r) { return r->n ? (double)r->n_right / (double)r->n : NAN; }

static void add_reward(pst_tune_rewards *r, bool wanted, double reward) {
  *(wanted ? &r->wanted : &r->unwanted) += reward;
  *(wanted ? &r->n_wanted : &r->n_unwanted) += 1;
}

/* ---- a batch ---- */

void pst_tune_log_probs(const double *losses, const pst_tune_batch *batch, double *ret_log_probs) {
  memset(ret_log_probs, 0, batch->n_texts * sizeof *ret_log_probs);
  for (size_t i = 0; i < batch->n_scores; i++) ret_log_probs[batch->scores[i].text] -= losses[i];
}

/* Log-probabilities become what the loss derives by the losses of a text's tokens. */
static void weigh_pair(pst_tune_weighing *w, size_t first) {
  double *p = w->log_probs + first, slope, weight = (double)w->texts[first].weight;
  double wanted = p[0] - w->references[first], unwanted = p[1] - w->references[first + 1];
  w->loss += weight * pst_tune_dpo(wanted - unwanted, w->beta, w->smoothing, &slope);
  add_reward(&w->rewards, true, w->beta * wanted);
  add_reward(&w->rewards, false, w->beta * unwanted);
  w->rewards.n_right += wanted > unwanted;
  w->rewards.n++;
  p[0] = -weight * slope;
  p[1] = weight * slope;
}

static void weigh_mark(pst_tune_weighing *w, size_t i) {
  const pst_tune_text *t = &w->texts[i];
  double ratio = w->log_probs[i] - w->references[i], slope;
  w->loss += (double)t->weight * pst_tune_kto(ratio, w->point, !t->unwanted, w->beta, &slope);
  add_reward(&w->rewards, !t->unwanted, w->beta * ratio);
  w->rewards.n_right += t->unwanted ? ratio < w->point : ratio > w->point;
  w->rewards.n++;
  w->log_probs[i] = -(double)t->weight * slope;
}

void pst_tune_weigh(void *user, const double *losses, pst_tune_batch *batch) {
  pst_tune_weighing *w = user;
  pst_tune_log_probs(losses, batch, w->log_probs);
  for (size_t i = 0; i < batch->n_texts; i += pst_tune_unit(w->objective)) {
    if (w->objective == PST_TUNE_DPO)
      weigh_pair(w, i);
    else
      weigh_mark(w, i);
  }
  for (size_t i = 0; i < batch->n_scores; i++) batch->scores[i].weight = (float)w->log_probs[batch->scores[i].text];
}

/* ---- answers to other prompts ---- */

static bool same_prompt(const pst_tune_text *a, const pst_tune_text *b) {
  return a->n_given == b->n_given && !memcmp(a->tokens, b->tokens, a->n_given * sizeof *a->tokens);
}

static bool same_answer(const pst_tune_text *a, const pst_tune_text *b) {
  size_t n = a->n - a->n_given;
  return n == b->n - b->n_given && !memcmp(a->tokens + a->n_given, b->tokens + b->n_given, n * sizeof *a->tokens);
}

static const pst_tune_text *other_answer(const pst_tune_text *texts, size_t n, size_t own) {
  for (size_t k = 1; k < n; k++) {
    const pst_tune_text *other = &texts[(own + n - k) % n];
    if (!same_prompt(&texts[own], other) && !same_answer(&texts[own], other)) return other;
  }
  return &texts[own];
}

int pst_tune_mismatch(const pst_tune_text *texts, size_t n, size_t max_tokens, int32_t **ret_tokens,
                      pst_tune_text **ret_texts) {
  pst_tune_text *out = pst_calloc(n + 1, sizeof *out);
  size_t n_tokens = 0, at = 0;
  for (size_t i = 0; i < n && out; i++) {
    const pst_tune_text *other = other_answer(texts, n, i);
    size_t given = texts[i].n_given,
           length = PST_MIN(given + other->n - other->n_given, PST_MAX(max_tokens, given + 1));
    out[i] = (pst_tune_text){.tokens = other->tokens + other->n_given, .n = length, .n_given = given, .weight = 1};
    n_tokens += length;
  }
  int32_t *tokens = out ? pst_malloc((n_tokens + 1) * sizeof *tokens) : NULL;
  if (!tokens) {
    pst_free(out);
    return PST_E_NOMEM;
  }
  for (size_t i = 0; i < n; i++) {
    memcpy(tokens + at, texts[i].tokens, out[i].n_given * sizeof *tokens);
    memcpy(tokens + at + out[i].n_given, out[i].tokens, (out[i].n - out[i].n_given) * sizeof *tokens);
    out[i].tokens = tokens + at;
    at += out[i].n;
  }
  *ret_tokens = tokens;
  *ret_texts = out;
  return 0;
}
