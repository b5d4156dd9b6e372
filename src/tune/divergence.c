/* Divergence from a reference model (divergence.h).
 *
 * Of the reference only the final states are kept: logits of all rows would be gigabytes. They are made again beside the other model's, a tile of rows at a
 * time. */
#include "tune/divergence.h"

#include <math.h>
#include <string.h>

enum { TILE = 32 };

/* ---- texts to batches ---- */

static int too_long(const pst_tune_traffic *traffic, size_t number, const char *what, size_t most, pst_error *err) {
  size_t n = traffic->texts[number].n;
  return pst_error_set(err, PST_E_LIMIT, "at-once",
                       "text %zu of %zu%s%s has %zu tokens, more than the %zu that go through the model at once; "
                       "--at-once %zu takes it",
                       number + 1, traffic->n_texts, *what ? " " : "", what, n, most, n - 1);
}

size_t pst_tune_traffic_longest(const pst_tune_traffic *traffic) {
  size_t most = 0;
  for (size_t i = 0; i < traffic->n_texts; i++) most = PST_MAX(most, traffic->texts[i].n);
  return most;
}

int pst_tune_traffic_check(const pst_tune_traffic *traffic, const char *what, size_t max_tokens, pst_error *err) {
  size_t longest = pst_tune_traffic_longest(traffic), i = 0;
  if (longest <= max_tokens + 1) return 0; /* the last token is only predicted */
  while (traffic->texts[i].n < longest) i++;
  return too_long(traffic, i, what, max_tokens, err);
}

void pst_tune_batches_free(pst_tune_batch *batches, size_t n) {
  for (size_t i = 0; i < n && batches; i++) pst_tune_batch_done(&batches[i]);
  pst_free(batches);
}

int pst_tune_traffic_batches(const pst_tune_traffic *traffic, size_t limit_tokens, size_t max_tokens,
                             size_t max_position, bool answers_only, pst_tune_batch **ret_batches, size_t *ret_n,
                             pst_error *err) {
  pst_tune_batch *batches = pst_calloc(traffic->n_texts + 1, sizeof *batches);
  size_t n = 0, n_tokens = 0;
  int code = batches ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < traffic->n_texts && !code; i++) {
    const pst_tune_traffic_text *t = &traffic->texts[i];
    if (limit_tokens && n_tokens && n_tokens + t->n - 1 > limit_tokens) break;
    if (t->n - 1 > PST_MIN(max_tokens, max_position)) {
      code = too_long(traffic, i, "", PST_MIN(max_tokens, max_position), err);
      break;
    }
    if (!n || batches[n - 1].n_tokens + t->n - 1 > max_tokens) n++;
    pst_tune_text text = {
        .tokens = traffic->tokens + t->first, .n = t->n, .n_given = answers_only ? t->n_given : 1, .weight = 1};
    code = pst_tune_batch_add(&batches[n - 1], &text);
    n_tokens += t->n - 1;
  }
  if (code == PST_E_NOMEM) pst_error_set(err, code, NULL, "no memory for %zu texts", traffic->n_texts);
  if (!code && !n) code = pst_error_set(err, PST_E_NO_DATA, NULL, "there is no text to run the model over");
  if (code) {
    pst_tune_batches_free(batches, n);
    return code;
  }
  *ret_batches = batches;
  *ret_n = n;
  return 0;
}

/* ---- the judge ---- */

void pst_tune_judge_done(pst_tune_judge *j) {
  pst_tune_batches_free(j->batches, j->n_batches);
  pst_free(j->is_answer);
  pst_free(j->states);
  for (int i = 0; i < 2; i++) pst_free(j->logits[i]);
  pst_free(j->rows);
  pst_free(j->same);
  memset(j, 0, sizeof *j);
}

/* Which rows predict answers, in the order of the batches' scores. */
static void mark_answers(pst_tune_judge *j, const pst_tune_traffic *traffic, bool answers_only) {
  size_t row = 0;
  for (size_t i = 0; i < traffic->n_texts && row < j->n_rows; i++) {
    const pst_tune_traffic_text *t = &traffic->texts[i];
    for (size_t p = answers_only ? t->n_given : 1; p < t->n; p++) j->is_answer[row++] = p >= t->n_given;
  }
}

int pst_tune_judge_create(pst_tune_net_f32 *net, const pst_tune_model *reference, const pst_tune_traffic *traffic,
                          size_t limit_tokens, bool answers_only, pst_tune_judge *ret_judge, pst_error *err) {
  pst_tune_judge j = {.net = net, .reference = reference};
  size_t n_embd = reference->n_embd, row = 0;
  int code = pst_tune_traffic_batches(traffic, limit_tokens, net->max_tokens, net->max_position, answers_only,
                                      &j.batches, &j.n_batches, err);
  if (code) return code;
  for (size_t i = 0; i < j.n_batches; i++) j.n_rows += j.batches[i].n_scores;
  j.is_answer = pst_calloc(j.n_rows + 1, sizeof *j.is_answer);
  j.states = pst_malloc((j.n_rows + 1) * n_embd * sizeof *j.states);
  for (int i = 0; i < 2; i++) j.logits[i] = pst_malloc(TILE * reference->n_vocab * sizeof(float));
  j.rows = pst_malloc((j.n_rows + 1) * sizeof *j.rows);
  j.same = pst_calloc(j.n_rows + 1, sizeof *j.same);
  if (!j.is_answer || !j.states || !j.logits[0] || !j.logits[1] || !j.rows || !j.same) {
    pst_tune_judge_done(&j);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to compare models");
  }
  mark_answers(&j, traffic, answers_only);
  for (size_t i = 0; i < j.n_batches; i++) {
    size_t n = j.batches[i].n_scores;
    pst_tune_net_states_f32(net, &j.batches[i]);
    memcpy(j.states + row * n_embd, net->scored_normed, n * n_embd * sizeof *j.states);
    row += n;
  }
  *ret_judge = j;
  return 0;
}

typedef struct tile {
  const pst_tune_judge *judge;
  size_t first, n_vocab;
} tile;

static size_t likeliest(const float *x, size_t n) {
  size_t best = 0;
  for (size_t i = 1; i < n; i++)
    if (x[i] > x[best]) best = i;
  return best;
}

/* log(sum(exp(x - top))), in doubles. */
static double log_sum(const float *x, size_t n, double top) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - top);
  return top + log(PST_MAX(sum, 1)); /* the top's own term is 1 */
}

/* sum of p (log p - log q) for one row. */
static void compare_row(void *arg, size_t piece, void *scratch) {
  const tile *t = arg;
  const pst_tune_judge *j = t->judge;
  size_t n = t->n_vocab;
  const float *p = j->logits[0] + piece * n, *q = j->logits[1] + piece * n;
  size_t top_p = likeliest(p, n), top_q = likeliest(q, n);
  double norm_p = log_sum(p, n, (double)p[top_p]), norm_q = log_sum(q, n, (double)q[top_q]), sum = 0;
  (void)scratch;
  for (size_t i = 0; i < n; i++) {
    double log_p = (double)p[i] - norm_p;
    sum += exp(log_p) * (log_p - ((double)q[i] - norm_q));
  }
  j->rows[t->first + piece] = sum;
  j->same[t->first + piece] = top_p == top_q;
}

pst_tune_product_f32 pst_tune_head_product(const pst_tune_model *m, const float *x, size_t n_rows, float *out) {
  return (pst_tune_product_f32){.n_rows = n_rows,
                                .n_cols = m->n_vocab,
                                .n_deep = m->n_embd,
                                .a = {x, NULL, m->n_embd, 1},
                                .b = {NULL, m->head, 1, m->n_embd},
                                .c = out,
                                .c_row = m->n_vocab};
}

static void compare_rows(const pst_tune_judge *j, const pst_tune_model *model, size_t first, size_t n) {
  size_t n_embd = model->n_embd;
  for (size_t at = 0; at < n; at += TILE) {
    size_t n_rows = PST_MIN(n - at, (size_t)TILE);
    tile t = {j, first + at, model->n_vocab};
    pst_tune_product_f32 p[2] = {
        pst_tune_head_product(j->reference, j->states + (first + at) * n_embd, n_rows, j->logits[0]),
        pst_tune_head_product(model, j->net->scored_normed + at * n_embd, n_rows, j->logits[1])};
    pst_tune_products_f32(j->net->team, p, 2);
    pst_tune_team_run(j->net->team, n_rows, compare_row, &t);
  }
}

pst_tune_divergence pst_tune_judge_run(pst_tune_judge *j, const pst_tune_model *model) {
  pst_tune_divergence d = {0};
  double all = 0, answers = 0, same = 0;
  size_t row = 0;
  j->net->model = model;
  for (size_t i = 0; i < j->n_batches; i++) {
    pst_tune_net_states_f32(j->net, &j->batches[i]);
    compare_rows(j, model, row, j->batches[i].n_scores);
    row += j->batches[i].n_scores;
  }
  j->net->model = j->reference;
  for (size_t i = 0; i < j->n_rows; i++) {
    all += j->rows[i];
    same += j->same[i];
    answers += j->is_answer[i] ? j->rows[i] : 0;
    d.n_answers += j->is_answer[i];
  }
  d.n_all = j->n_rows;
  d.all = d.n_all ? all / (double)d.n_all : NAN;
  d.top1 = d.n_all ? same / (double)d.n_all : NAN;
  d.answers = d.n_answers ? answers / (double)d.n_answers : NAN;
  return d;
}
