/* What a forward step costs: the model, its fit to measured steps, and the replay of the scheduler in virtual time over it.
 *
 * Four constants describe a step: fixed (weights read once, meetings of threads), per further token, per token and thousand positions attended, per further row of the
 * head. They are fitted with relative weights, since a plan's latency is as much made of short steps as of long ones. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

double pst_engine_step_predict(const pst_engine_step_model *m, int n_tokens, int n_logits, double n_context) {
  return m->fixed_us + m->token_us * (n_tokens - 1) + m->context_us * n_context / 1000.0 +
         m->head_us * PST_MAX(n_logits - 1, 0);
}

/* ---- fit ---- */

enum { N_TERMS = 4 };

static void terms_of(const pst_engine_step_sample *s, double x[N_TERMS]) {
  x[0] = 1;
  x[1] = s->n_tokens - 1;
  x[2] = s->n_context / 1000.0;
  x[3] = PST_MAX(s->n_logits - 1, 0);
}

/* Solves the normal equations of the active terms by Gaussian elimination; terms that no sample varies get 0. */
static void solve(const pst_engine_step_sample *samples, size_t n, const bool active[N_TERMS], double ret[N_TERMS]) {
  double a[N_TERMS][N_TERMS + 1] = {{0}};
  for (size_t k = 0; k < n; k++) {
    double x[N_TERMS], weight = 1.0 / (samples[k].us * samples[k].us);
    terms_of(&samples[k], x);
    for (int i = 0; i < N_TERMS; i++) {
      if (!active[i]) continue;
      for (int j = 0; j < N_TERMS; j++)
        if (active[j]) a[i][j] += weight * x[i] * x[j];
      a[i][N_TERMS] += weight * x[i] * samples[k].us;
    }
  }
  for (int i = 0; i < N_TERMS; i++) a[i][i] += a[i][i] * 1e-9 + 1e-15;
  for (int i = 0; i < N_TERMS; i++)
    for (int r = 0; r < N_TERMS; r++) {
      if (r == i) continue;
      double factor = a[r][i] / a[i][i];
      for (int j = i; j <= N_TERMS; j++) a[r][j] -= factor * a[i][j];
    }
  for (int i = 0; i < N_TERMS; i++) ret[i] = active[i] ? a[i][N_TERMS] / a[i][i] : 0;
}

static int by_value(const void *a, const void *b) {
  return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static int fit(const pst_engine_step_sample *samples, size_t n, pst_engine_step_model *ret_model, pst_error *err) {
  if (n < 8) return pst_error_set(err, PST_E_NO_DATA, NULL, "%zu measured steps are not enough to fit their cost", n);
  bool active[N_TERMS] = {true, true, true, true};
  double c[N_TERMS];
  for (;;) { /* a negative constant means that its term explains nothing: leave it out */
    solve(samples, n, active, c);
    int worst = -1;
    for (int i = 1; i < N_TERMS; i++)
      if (active[i] && c[i] < 0 && (worst < 0 || c[i] < c[worst])) worst = i;
    if (worst < 0) break;
    active[worst] = false;
  }
  pst_engine_step_model m = {PST_MAX(c[0], 1.0), c[1], c[2], c[3], 0};
  double *errors = pst_malloc(n * sizeof *errors);
  if (!errors) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  for (size_t i = 0; i < n; i++)
    errors[i] = fabs(pst_engine_step_predict(&m, samples[i].n_tokens, samples[i].n_logits, samples[i].n_context) /
                         samples[i].us -
                     1);
  qsort(errors, n, sizeof *errors, by_value);
  m.relative_error = errors[n / 2];
  pst_free(errors);
  *ret_model = m;
  return 0;
}

/* ---- calibration ---- */

typedef struct waiter {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int n_ended;
} waiter;

static void on_event(void *user, const pst_engine_event *e) {
  waiter *w = user;
  if (e->finish == PST_ENGINE_FINISH_NONE) return;
  pthread_mutex_lock(&w->lock);
  w->n_ended++;
  pthread_cond_signal(&w->changed);
  pthread_mutex_unlock(&w->lock);
}

/* n requests of one shape at once; distinct random prompts, so that nothing is shared. */
static int run_shape(pst_engine *e, int n, int n_prompt, int n_answer, uint64_t seed, pst_error *err) {
  waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
  int32_t *prompt = pst_malloc((size_t)n_prompt * sizeof *prompt);
  if (!prompt) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  int code = 0, sent = 0;
  for (; sent < n && !code; sent += !code) {
    pst_random r = {seed, (uint64_t)sent, 0};
    for (int i = 0; i < n_prompt; i++) prompt[i] = (int32_t)pst_random_below(&r, (uint64_t)e->model->info.n_vocab);
    pst_engine_request q = {0};
    q.prompt = prompt;
    q.n_prompt = (size_t)n_prompt;
    q.max_tokens = n_answer;
    q.sampling = pst_engine_sampling_default();
    q.sampling.temperature = 0;
    q.ignore_end = true;
    q.n_logprobs = -1;
    q.prefix_salt = seed; /* never found again by a real prompt */
    q.callback = on_event;
    q.user = &w;
    uint64_t id;
    code = pst_engine_submit(e, &q, &id, err);
  }
  pthread_mutex_lock(&w.lock);
  while (w.n_ended < sent) pthread_cond_wait(&w.changed, &w.lock);
  pthread_mutex_unlock(&w.lock);
  pst_free(prompt);
  return code;
}

int pst_engine_calibrate(pst_engine *e, int budget_ms, pst_engine_step_model *ret_model, pst_error *err) {
  const pst_engine_options *o = &e->options;
  int64_t start = pst_clock_us();
  int code = run_shape(e, 1, 16, 4, 1, err); /* warm */
  pthread_mutex_lock(&e->lock);
  e->n_samples = 0;
  pthread_mutex_unlock(&e->lock);
  int longest = o->n_ctx - 20;
  for (uint64_t round = 0; !code; round++) {
    const struct {
      int n, n_prompt, n_answer;
    } shapes[] = {{1, 24, 12},
                  {1, PST_MIN(o->chunk, longest), 4},
                  {PST_MIN(o->slots, 4), 40, 8},
                  {o->slots, 48, 6},
                  {1, PST_MIN(3 * o->chunk + 17, longest), 6}};
    for (size_t i = 0; i < PST_ARRAY_LEN(shapes) && !code; i++) {
      code = run_shape(e, shapes[i].n, shapes[i].n_prompt, shapes[i].n_answer, 1000 + 10 * round + i, err);
      if (round > 0 && pst_clock_us() - start > (int64_t)budget_ms * 1000) break;
    }
    if (pst_clock_us() - start > (int64_t)budget_ms * 1000) break;
  }
  if (code) return code;
  pst_engine_step_sample samples[PST_ENGINE_STEP_SAMPLES];
  pthread_mutex_lock(&e->lock);
  size_t n = PST_MIN(e->n_samples, (size_t)PST_ENGINE_STEP_SAMPLES);
  memcpy(samples, e->samples, n * sizeof *samples);
  pthread_mutex_unlock(&e->lock);
  return fit(samples, n, ret_model, err);
}

/* ---- replay ---- */

typedef struct ghost {
  pst_engine_seq seq;
  const pst_engine_replay_item *item;
  pst_engine_replay_result *result;
  double owed;    /* fractions of accepted drafts */
  double drafted; /* of drafts made */
  int n_draft;    /* in this step */
  int n_answer;
} ghost;

static int by_arrival(const void *a, const void *b) {
  const ghost *x = a, *y = b;
  if (x->item->arrival_us != y->item->arrival_us) return x->item->arrival_us < y->item->arrival_us ? -1 : 1;
  return (x->item > y->item) - (x->item < y->item);
}

static int make_ghost(ghost *g, const pst_engine_replay_item *item, size_t index, pst_engine_replay_result *result) {
  g->item = item;
  g->result = result;
  g->seq.id = index + 1;
  g->seq.n_prompt = g->seq.n_tokens = PST_MAX(item->n_prompt, 1);
  g->seq.n_max = g->seq.n_prompt + PST_MAX(item->n_completion, 1);
  g->seq.tokens = pst_malloc(((size_t)g->seq.n_max + PST_ENGINE_MAX_DRAFT + 1) * sizeof *g->seq.tokens);
  g->seq.pages = pst_calloc(((size_t)g->seq.n_max + PST_ENGINE_PAGE - 1) / PST_ENGINE_PAGE, sizeof *g->seq.pages);
  if (!g->seq.tokens || !g->seq.pages) return PST_E_NOMEM;
  /* All that counts of tokens is who shares them: one number for the group and one for the request, and each place its own. */
  uint64_t group = pst_random_u64(item->group, 0, 0), own = pst_random_u64(0, index + 1, 0);
  for (int i = 0; i < g->seq.n_max; i++)
    g->seq.tokens[i] = (int32_t)(((item->group && i < item->n_shared ? group : own) + (uint64_t)i) & INT32_MAX);
  return 0;
}

/* One finished step at virtual time `now`: first tokens, next tokens, ends. Returns how many requests ended. */
static int advance(pst_engine_sched *s, int64_t now) {
  int ended = 0;
  for (int i = 0; i < s->n_items; i++) {
    const pst_engine_step_item *it = &s->items[i];
    ghost *g = (ghost *)it->seq;
    if (it->n_logits == 0) continue;
    if (g->n_answer == 0)
      g->result->first_token_us = now - g->item->arrival_us;
    else
      g->owed += g->item->accept;
    int more = 1 + PST_MIN((int)g->owed, g->n_draft);
    g->owed -= more - 1;
    more = PST_MIN(more, g->seq.n_max - g->seq.n_tokens);
    g->n_answer += more;
    g->seq.n_tokens += more;
    if (g->seq.n_tokens < g->seq.n_max) {
      pst_engine_sched_settle(s, &g->seq);
      continue;
    }
    g->result->finish_us = now - g->item->arrival_us;
    ended++;
  }
  for (int i = s->n_items - 1; i >= 0; i--) {
    pst_engine_seq *q = s->items[i].seq;
    if (s->items[i].n_logits && q->n_tokens >= q->n_max) pst_engine_sched_remove(s, q);
  }
  return ended;
}

/* Drafts are verified, and paid for, whether they are accepted or not. */
static void draft(pst_engine_sched *s) {
  for (int i = 0; i < s->n_running; i++) {
    ghost *g = (ghost *)s->running[i];
    int room = PST_MIN(g->seq.n_max - g->seq.n_tokens - 1, PST_ENGINE_MAX_DRAFT);
    g->seq.n_draft = g->n_draft = 0;
    if (!(g->item->accept > 0) || g->seq.n_stored < g->seq.n_prompt || room <= 0) continue;
    g->drafted += g->item->drafted > 0 ? g->item->drafted : PST_ENGINE_MAX_DRAFT;
    g->seq.n_draft = g->n_draft = PST_MIN((int)g->drafted, room);
    g->drafted -= (int)g->drafted;
  }
}

static double step_cost(const pst_engine_sched *s, const pst_engine_step_model *model) {
  int n_tokens = 0, n_logits = 0;
  double context = 0;
  for (int i = 0; i < s->n_items; i++) {
    const pst_engine_step_item *it = &s->items[i];
    n_tokens += it->n;
    n_logits += it->n_logits;
    context += (double)it->n * (it->first + it->n / 2.0);
  }
  return pst_engine_step_predict(model, n_tokens, n_logits, context);
}

int pst_engine_replay(const pst_engine_options *o, const pst_engine_step_model *model,
                      const pst_engine_replay_item *items, size_t n, pst_engine_replay_result *ret_results,
                      int64_t *ret_makespan_us, pst_error *err) {
  pst_engine_sched sched = {0};
  ghost *ghosts = pst_calloc(n, sizeof *ghosts);
  int code = ghosts ? pst_engine_sched_init(&sched, o->slots, o->chunk, PST_MAX(o->kv_tokens / PST_ENGINE_PAGE, 1),
                                            !o->no_reuse)
                    : PST_E_NOMEM;
  if (n) memset(ret_results, 0, n * sizeof *ret_results);
  for (size_t i = 0; i < n && !code; i++) {
    code = make_ghost(&ghosts[i], &items[i], i, &ret_results[i]);
    if (!code && ghosts[i].seq.n_max > o->kv_tokens)
      code = pst_error_set(err, PST_E_LIMIT, NULL, "request %zu needs %d positions of %d", i + 1, ghosts[i].seq.n_max,
                           o->kv_tokens);
  }
  if (code == PST_E_NOMEM) pst_error_set(err, code, NULL, "no memory to replay %zu requests", n);
  double now = 0;
  size_t arrived = 0, ended = 0;
  if (!code) qsort(ghosts, n, sizeof *ghosts, by_arrival);
  while (!code && ended < n) {
    if (!sched.n_running && !sched.n_waiting) now = PST_MAX(now, (double)ghosts[arrived].item->arrival_us);
    while (arrived < n && (double)ghosts[arrived].item->arrival_us <= now)
      pst_engine_sched_add(&sched, &ghosts[arrived++].seq);
    draft(&sched);
    if (pst_engine_sched_plan(&sched) == 0) {
      code = pst_error_set(err, PST_E_INTERNAL, NULL, "the replay stands still after %zu of %zu requests", ended, n);
      break;
    }
    for (int i = 0; i < sched.n_items; i++) {
      ghost *g = (ghost *)sched.items[i].seq;
      if (!g->result->queued_us)
        g->result->queued_us =
            PST_MAX((int64_t)now - g->item->arrival_us, 0) + 1; /* + 1: marks it as admitted; taken off below */
    }
    now += step_cost(&sched, model);
    pst_engine_sched_commit(&sched);
    ended += (size_t)advance(&sched, (int64_t)now);
  }
  for (size_t i = 0; i < n && ghosts; i++) {
    if (!code) ret_results[i].queued_us -= 1;
    pst_free(ghosts[i].seq.tokens);
    pst_free(ghosts[i].seq.pages);
  }
  pst_free(ghosts);
  pst_engine_sched_done(&sched);
  if (!code) *ret_makespan_us = (int64_t)now;
  return code;
}
