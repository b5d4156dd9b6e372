/* Sampling: bias, penalties, constraint, temperature, top-k, top-p, min-p, and one draw.
 *
 * The draw is pst_random_unit(seed, choice, position): it does not depend on what was drawn before, so a draft verified in one step gives the
 * tokens that one-by-one decoding gives, under sampling too. Sums run in a fixed order in double. */
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>

/* Below this temperature a gap of a ten-thousandth decides, and 1 / temperature soon is no float any more: greedy. */
#define COLDEST 1e-6f

pst_engine_sampling pst_engine_sampling_default(void) {
  pst_engine_sampling s = {0};
  s.temperature = 1.0f;
  s.top_p = 1.0f;
  s.repetition_penalty = 1.0f;
  return s;
}

int pst_engine_sampling_check(const pst_engine_sampling *s, int n_vocab, pst_error *err) {
#define NEED(condition, field, accepted) \
  if (!(condition)) return pst_error_set(err, PST_E_BAD_INPUT, field, "%s must be %s", field, accepted)
  NEED(s->temperature >= 0 && s->temperature <= 100, "temperature", "between 0 and 100");
  NEED(s->top_k >= 0, "top_k", "0 (off) or more");
  NEED(s->top_p > 0 && s->top_p <= 1, "top_p", "above 0 and at most 1");
  NEED(s->min_p >= 0 && s->min_p < 1, "min_p", "at least 0 and below 1");
  NEED(s->repetition_penalty > 0 && s->repetition_penalty <= 10, "repetition_penalty", "above 0 and at most 10");
  NEED(fabsf(s->frequency_penalty) <= 2, "frequency_penalty", "between -2 and 2");
  NEED(fabsf(s->presence_penalty) <= 2, "presence_penalty", "between -2 and 2");
  NEED(s->penalty_window >= 0, "penalty_window", "0 (all) or more");
  for (size_t i = 0; i < s->n_bias; i++) {
    NEED(s->bias[i].token >= 0 && s->bias[i].token < n_vocab, "logit_bias", "over token ids of this model");
    NEED(fabsf(s->bias[i].bias) <= 100, "logit_bias", "between -100 and 100 for each token");
  }
#undef NEED
  return 0;
}

static bool has_penalties(const pst_engine_sampling *s) {
  return s->repetition_penalty != 1.0f || s->frequency_penalty != 0.0f || s->presence_penalty != 0.0f;
}

bool pst_engine_sampling_is_plain_greedy(const pst_engine_sampling *s) {
  return s->temperature == 0.0f && s->n_bias == 0 && !has_penalties(s);
}

/* Repetition penalty once per distinct token of the window; frequency and presence over the answer. A token's first occurrence in the window is found
 * by looking back, which is quadratic in the window only for windows of few distinct tokens; a mark in `work` keeps it linear. */
static void apply_penalties(const pst_engine_draw *d, float *logits, pst_engine_candidate *work) {
  const pst_engine_sampling *s = d->sampling;
  int first = s->penalty_window && d->n_tokens > s->penalty_window ? d->n_tokens - s->penalty_window : 0;
  for (int i = first; i < d->n_tokens; i++) work[d->tokens[i]] = (pst_engine_candidate){0, 0};
  for (int i = d->n_prompt; i < d->n_tokens; i++) work[d->tokens[i]] = (pst_engine_candidate){0, 0};
  for (int i = d->n_prompt; i < d->n_tokens; i++) work[d->tokens[i]].logit += 1.0f; /* times in the answer */
  for (int i = first; i < d->n_tokens; i++) {
    int32_t t = d->tokens[i];
    if (work[t].token & 1) continue;
    work[t].token |= 1;
    logits[t] = logits[t] > 0 ? logits[t] / s->repetition_penalty : logits[t] * s->repetition_penalty;
  }
  for (int i = d->n_prompt; i < d->n_tokens; i++) {
    int32_t t = d->tokens[i];
    if (work[t].token & 2) continue;
    work[t].token |= 2;
    logits[t] -= work[t].logit * s->frequency_penalty + s->presence_penalty;
  }
}

static int32_t arg_max(const float *logits, const int32_t *allowed, int n) {
  int32_t best = allowed ? allowed[0] : 0;
  for (int i = 1; i < n; i++) {
    int32_t t = allowed ? allowed[i] : i;
    if (logits[t] > logits[best]) best = t;
  }
  return best;
}

static int by_logit(const void *a, const void *b) {
  const pst_engine_candidate *x = a, *y = b;
  if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
  return (x->token > y->token) - (x->token < y->token);
}

/* The k best of n into the front, unordered: quickselect with a middle pivot. */
static void select_best(pst_engine_candidate *c, int n, int k) {
  int lo = 0, hi = n - 1;
  while (lo < hi) {
    pst_engine_candidate pivot = c[lo + (hi - lo) / 2];
    int i = lo, j = hi;
    while (i <= j) {
      while (by_logit(&c[i], &pivot) < 0) i++;
      while (by_logit(&c[j], &pivot) > 0) j--;
      if (i <= j) {
        pst_engine_candidate t = c[i];
        c[i++] = c[j];
        c[j--] = t;
      }
    }
    if (k - 1 <= j)
      hi = j;
    else if (k - 1 >= i)
      lo = i;
    else
      return;
  }
}

/* How many of the sorted head c[0..n) of n_all candidates stay: the fewest whose probability reaches top_p, and of those what is at least min_p
 * of the best. `total`: sum of exp(logit - best) over all of them. -1: the head is too short to tell. */
static int cut_tail(const pst_engine_sampling *s, const pst_engine_candidate *c, int n, int n_all, double total) {
  double best = c[0].logit, sum = 0;
  int keep = n_all;
  if (s->top_p < 1.0f)
    for (int i = 0; i < n && keep == n_all; i++) {
      sum += exp((double)c[i].logit - best);
      if (sum >= (double)s->top_p * total) keep = i + 1;
    }
  if (s->min_p > 0)
    for (int i = 1; i < PST_MIN(n, keep); i++)
      if (exp((double)c[i].logit - best) < (double)s->min_p) keep = i;
  return keep <= n ? keep : -1;
}

/* Sorts as much of the front as the filters keep, and returns how much that is. A vocabulary has a quarter of a million entries and a nucleus
 * seldom a hundred: the head grows until it is long enough. */
static int keep_head(const pst_engine_sampling *s, pst_engine_candidate *c, int n_all) {
  double best = c[0].logit, total = 0;
  for (int i = 1; i < n_all; i++) best = PST_MAX(best, (double)c[i].logit);
  for (int i = 0; i < n_all; i++) total += exp((double)c[i].logit - best);
  for (int n = 256;; n = n > n_all / 8 ? n_all : n * 8) {
    n = PST_MIN(n, n_all);
    if (n < n_all) select_best(c, n_all, n);
    qsort(c, (size_t)n, sizeof *c, by_logit);
    int keep = cut_tail(s, c, n, n_all, total);
    if (keep > 0 || n == n_all) return keep > 0 ? keep : n_all;
  }
}

int32_t pst_engine_sample(const pst_engine_draw *d, float *logits, int n_vocab, pst_engine_candidate *work) {
  const pst_engine_sampling *s = d->sampling;
  for (size_t i = 0; i < s->n_bias; i++) logits[s->bias[i].token] += s->bias[i].bias;
  if (has_penalties(s)) apply_penalties(d, logits, work);
  int n = d->allowed ? d->n_allowed : n_vocab;
  if (s->temperature < COLDEST) return arg_max(logits, d->allowed, n);

  float scale = 1.0f / s->temperature;
  for (int i = 0; i < n; i++) {
    int32_t t = d->allowed ? d->allowed[i] : i;
    work[i] = (pst_engine_candidate){logits[t] * scale, t};
  }
  bool cut = s->top_p < 1.0f || s->min_p > 0;
  if (s->top_k > 0 && s->top_k < n) {
    select_best(work, n, s->top_k);
    n = s->top_k;
    qsort(work, (size_t)n, sizeof *work, by_logit); /* also fixes the order of the sums below */
  }
  if (cut) n = keep_head(s, work, n);
  double best = work[0].logit, total = 0, sum = 0;
  for (int i = 1; i < n; i++) best = PST_MAX(best, (double)work[i].logit);
  for (int i = 0; i < n; i++) total += exp((double)work[i].logit - best);
  double u = pst_random_unit(s->seed, s->choice, (uint64_t)d->n_tokens) * total;
  for (int i = 0; i < n; i++) {
    sum += exp((double)work[i].logit - best);
    if (u < sum) return work[i].token;
  }
  return work[n - 1].token;
}

double pst_engine_log_sum_exp(const float *logits, int n_vocab) {
  float best = logits[0];
  for (int i = 1; i < n_vocab; i++) best = PST_MAX(best, logits[i]);
  double sum = 0;
  for (int i = 0; i < n_vocab; i++) sum += exp((double)logits[i] - (double)best);
  return (double)best + log(PST_MAX(sum, 1.0)); /* the best alone adds 1 */
}

void pst_engine_top_logprobs(const float *logits, int n_vocab, double log_sum, int n, pst_engine_top *ret_top) {
  int have = 0;
  for (int i = 0; i < n_vocab && n > 0; i++) {
    float x = logits[i];
    if (have == n && !(x > ret_top[n - 1].logprob)) continue;
    int at = have < n ? have++ : n - 1;
    for (; at > 0 && x > ret_top[at - 1].logprob; at--) ret_top[at] = ret_top[at - 1];
    ret_top[at] = (pst_engine_top){i, x};
  }
  for (int i = 0; i < have; i++) ret_top[i].logprob = (float)((double)ret_top[i].logprob - log_sum);
}
