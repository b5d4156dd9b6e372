/* The cost model (speed.h). Owns step-time constants per engine, prompt profiles and the replay; quality and measuring are others'.
 *
 * Two estimators of one thing. The formula sees a steady batch: fixed cost shared by the slots, prompt tokens not found in the prefix cache, answer tokens. It
 * is cheap enough for every plan and off by tens of percent. The replay runs the scheduler over every arrival and finds by bisection the highest load at which
 * the latency objective holds. Load is the trace played faster or slower: its bursts stay. */
#include "optimizer/speed.h"

#include <math.h>
#include <string.h>

#include "optimizer/constants.h"

#define C PST_OPTIMIZER_CONST
enum { PAGE = 64, MAX_ARRIVALS = 600, POISSON_ARRIVALS = 400, BISECTIONS = 7 };

/* ---- tables ---- */

static size_t model_slot(const pst_optimizer_space *s, int model, int weights, int kv, int threads) {
  const pst_optimizer_axis *x = s->axes;
  return (((size_t)model * (size_t)x[PST_OPTIMIZER_WEIGHTS].n + (size_t)weights) * (size_t)x[PST_OPTIMIZER_KV].n +
          (size_t)kv) *
             (size_t)x[PST_OPTIMIZER_THREADS].n +
         (size_t)threads;
}

static size_t profile_slot(const pst_optimizer_space *s, int model, int prompt, int layout, int examples) {
  const pst_optimizer_axis *x = s->axes;
  return (((size_t)model * (size_t)x[PST_OPTIMIZER_PROMPT].n + (size_t)prompt) * (size_t)x[PST_OPTIMIZER_LAYOUT].n +
          (size_t)layout) *
             (size_t)x[PST_OPTIMIZER_EXAMPLES].n +
         (size_t)examples;
}

static const pst_optimizer_profile *profile_of(const pst_optimizer_speed *sp, const pst_optimizer_choice *c) {
  return &sp->profiles[profile_slot(sp->space, c->v[PST_OPTIMIZER_MODEL], c->v[PST_OPTIMIZER_PROMPT],
                                    c->v[PST_OPTIMIZER_LAYOUT], c->v[PST_OPTIMIZER_EXAMPLES])];
}

pst_engine_step_model *pst_optimizer_speed_slot(pst_optimizer_speed *sp, const pst_optimizer_choice *c) {
  return &sp->models[model_slot(sp->space, c->v[PST_OPTIMIZER_MODEL], c->v[PST_OPTIMIZER_WEIGHTS],
                                c->v[PST_OPTIMIZER_KV], c->v[PST_OPTIMIZER_THREADS])];
}

static int fill_arrivals(pst_optimizer_speed *sp, uint64_t seed, pst_error *err) {
  const pst_evals_info *w = sp->space->workload;
  sp->has_trace = w->n_trace >= 16;
  sp->n_arrivals = sp->has_trace ? PST_MIN(w->n_trace, (size_t)MAX_ARRIVALS) : POISSON_ARRIVALS;
  sp->arrivals_us = pst_calloc(sp->n_arrivals, sizeof *sp->arrivals_us);
  sp->arrival_items = pst_calloc(sp->n_arrivals, sizeof *sp->arrival_items);
  if (!sp->arrivals_us || !sp->arrival_items) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the trace");
  if (sp->has_trace) {
    for (size_t i = 0; i < sp->n_arrivals; i++) {
      sp->arrivals_us[i] = w->trace[i].arrival_us - w->trace[0].arrival_us;
      sp->arrival_items[i] = w->trace[i].item;
    }
    return 0;
  }
  size_t n_search = 0, seen = 0;
  for (size_t i = 0; i < w->n_items; i++) n_search += w->items[i].part == PST_EVALS_SEARCH;
  double monthly = w->monthly_requests > 0 ? (double)w->monthly_requests : C(default_monthly);
  double mean_us = 30.0 * 24 * 3600 * 1e6 / monthly, now = 0;
  for (size_t i = 0; i < sp->n_arrivals; i++) {
    sp->arrivals_us[i] = (int64_t)now;
    now += -log(1 - pst_random_unit(seed, 0x7261, i)) * mean_us;
    size_t pick = n_search ? (size_t)(pst_random_unit(seed, 0x7262, i) * (double)n_search) : 0;
    seen = 0;
    for (size_t k = 0; k < w->n_items; k++)
      if (w->items[k].part == PST_EVALS_SEARCH && seen++ == pick) sp->arrival_items[i] = k;
  }
  return 0;
}

int pst_optimizer_speed_init(pst_optimizer_speed *sp, const pst_optimizer_space *space, uint64_t seed,
                             int64_t price_nusd_per_hour, pst_error *err) {
  memset(sp, 0, sizeof *sp);
  sp->space = space;
  sp->price_nusd_per_hour = price_nusd_per_hour;
  const pst_optimizer_axis *x = space->axes;
  sp->models = pst_calloc(model_slot(space, x[PST_OPTIMIZER_MODEL].n, 0, 0, 0), sizeof *sp->models);
  sp->profiles = pst_calloc(profile_slot(space, x[PST_OPTIMIZER_MODEL].n, 0, 0, 0), sizeof *sp->profiles);
  if (!sp->models || !sp->profiles) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the cost model");
  return fill_arrivals(sp, seed, err);
}

void pst_optimizer_speed_done(pst_optimizer_speed *sp) {
  pst_free(sp->models);
  pst_free(sp->profiles);
  pst_free(sp->arrivals_us);
  pst_free(sp->arrival_items);
  memset(sp, 0, sizeof *sp);
}

int pst_optimizer_speed_read_profiles(pst_optimizer_speed *sp, const pst_json *profiles, pst_error *err) {
  for (pst_json_iter it = pst_json_iterate(profiles); pst_json_next(&it);) {
    int key[4];
    const int axes[4] = {PST_OPTIMIZER_MODEL, PST_OPTIMIZER_PROMPT, PST_OPTIMIZER_LAYOUT, PST_OPTIMIZER_EXAMPLES};
    for (size_t k = 0; k < 4; k++) {
      key[k] = (int)pst_json_int(pst_json_at(pst_json_get(it.value, "key"), k), -1);
      if (key[k] < 0 || key[k] >= sp->space->axes[axes[k]].n)
        return pst_error_set(err, PST_E_CORRUPT, "profiles",
                             "the log speaks of a prompt that this space does not have");
    }
    pst_optimizer_profile *p = &sp->profiles[profile_slot(sp->space, key[0], key[1], key[2], key[3])];
    double sum = 0;
    p->n = 0;
    for (pst_json_iter l = pst_json_iterate(pst_json_get(it.value, "lengths")); pst_json_next(&l);) {
      if (p->n == PST_OPTIMIZER_MAX_PROFILE) break;
      p->lengths[p->n] = (int)pst_json_int(l.value, 1);
      sum += p->lengths[p->n++];
    }
    p->shared = (int)pst_json_int(pst_json_get(it.value, "shared"), 0);
    p->mean = p->n ? sum / p->n : 0;
  }
  return 0;
}

void pst_optimizer_step_model_read(const pst_json *v, pst_engine_step_model *ret) {
  *ret = (pst_engine_step_model){
      pst_json_double(pst_json_get(v, "fixed_us"), 0), pst_json_double(pst_json_get(v, "token_us"), 0),
      pst_json_double(pst_json_get(v, "context_us"), 0), pst_json_double(pst_json_get(v, "head_us"), 0),
      pst_json_double(pst_json_get(v, "relative_error"), 0)};
}

/* a * b / c, where c says nothing: a. */
static double scaled(double a, double b, double c) { return c > 0 && b > 0 ? a * fmin(fmax(b / c, 0.2), 8) : a; }

static pst_engine_step_model combine(const pst_engine_step_model *a, const pst_engine_step_model *b,
                                     const pst_engine_step_model *c) {
  return (pst_engine_step_model){
      scaled(a->fixed_us, b->fixed_us, c->fixed_us), scaled(a->token_us, b->token_us, c->token_us),
      scaled(a->context_us, b->context_us, c->context_us), scaled(a->head_us, b->head_us, c->head_us),
      sqrt(a->relative_error * a->relative_error + b->relative_error * b->relative_error)};
}

void pst_optimizer_speed_complete(pst_optimizer_speed *sp) {
  const pst_optimizer_axis *x = sp->space->axes;
  for (int m = 0; m < x[PST_OPTIMIZER_MODEL].n; m++) {
    pst_engine_step_model base = sp->models[model_slot(sp->space, m, 0, 0, 0)];
    for (int w = 0; w < x[PST_OPTIMIZER_WEIGHTS].n; w++)
      for (int k = 0; k < x[PST_OPTIMIZER_KV].n; k++)
        for (int t = 0; t < x[PST_OPTIMIZER_THREADS].n; t++) {
          pst_engine_step_model *slot = &sp->models[model_slot(sp->space, m, w, k, t)];
          if (slot->fixed_us > 0) continue;
          pst_engine_step_model e = sp->models[model_slot(sp->space, m, w, 0, 0)];
          if (!(e.fixed_us > 0)) e = base;
          if (k && sp->models[model_slot(sp->space, m, 0, k, 0)].fixed_us > 0)
            e = combine(&e, &sp->models[model_slot(sp->space, m, 0, k, 0)], &base);
          if (t && sp->models[model_slot(sp->space, m, 0, 0, t)].fixed_us > 0)
            e = combine(&e, &sp->models[model_slot(sp->space, m, 0, 0, t)], &base);
          *slot = e;
        }
  }
}

/* An adapter's numbers are read once a step beside the base's, and multiplied once a token; two bytes each beside quantized weights. */
pst_engine_step_model pst_optimizer_with_adapter(const pst_engine_step_model *base, const char *weights,
                                                 int64_t n_params, int64_t step_bytes, int64_t adapter_params) {
  pst_engine_step_model m = *base;
  bool is_float = !strcmp(weights, "F32") || !strcmp(weights, "F16") || !strcmp(weights, "BF16");
  double bytes = (double)adapter_params * (is_float ? 4 : 2);
  if (step_bytes > 0) m.fixed_us *= 1 + bytes / (double)step_bytes;
  if (n_params > 0) m.token_us *= 1 + (double)adapter_params / (double)n_params;
  return m;
}

static pst_engine_step_model with_adapter(const pst_engine_step_model *base, const pst_optimizer_target *t,
                                          int64_t adapter_params) {
  return pst_optimizer_with_adapter(base, t->weights, t->n_params, t->step_bytes, adapter_params);
}

void pst_optimizer_speed_adapters(pst_optimizer_speed *sp) {
  const pst_optimizer_axis *x = sp->space->axes;
  for (int m = 0; m < x[PST_OPTIMIZER_MODEL].n; m++) {
    const pst_optimizer_target *t = &sp->space->targets[m];
    int base = pst_optimizer_base_target(sp->space, m);
    if (!t->adapter || base == m) continue;
    for (int w = 0; w < x[PST_OPTIMIZER_WEIGHTS].n; w++)
      for (int k = 0; k < x[PST_OPTIMIZER_KV].n; k++)
        for (int n = 0; n < x[PST_OPTIMIZER_THREADS].n; n++)
          sp->models[model_slot(sp->space, m, w, k, n)] =
              with_adapter(&sp->models[model_slot(sp->space, base, w, k, n)], t, t->adapter_params);
  }
}

/* ---- money ---- */

static double completion_of(const pst_optimizer_speed *sp, const pst_optimizer_choice *c,
                            const pst_optimizer_lengths *l) {
  if (l->completion > 0) return l->completion;
  const pst_optimizer_axis *x = &sp->space->axes[PST_OPTIMIZER_CONSTRAINT];
  if (x->number[c->v[PST_OPTIMIZER_CONSTRAINT]] != PST_GATEWAY_FREE)
    return PST_MAX(sp->space->targets[c->v[PST_OPTIMIZER_MODEL]].label_tokens, 1);
  return PST_MAX(1, C(free_answer_share) * sp->space->workload->max_tokens);
}

static bool constrained(const pst_optimizer_speed *sp, const pst_optimizer_choice *c) {
  return sp->space->axes[PST_OPTIMIZER_CONSTRAINT].number[c->v[PST_OPTIMIZER_CONSTRAINT]] != PST_GATEWAY_FREE;
}

/* Steps of an answer: where a label leaves no choice, its tokens come without one. */
static double steps_of(const pst_optimizer_speed *sp, const pst_optimizer_choice *c, const pst_optimizer_lengths *l) {
  if (l->steps > 0) return l->steps;
  double tokens = completion_of(sp, c, l), label = sp->space->targets[c->v[PST_OPTIMIZER_MODEL]].label_steps;
  return constrained(sp, c) && label > 0 ? fmin(label, tokens) : tokens;
}

static double classifier_us(const pst_optimizer_speed *sp, const pst_optimizer_choice *c) {
  const pst_optimizer_classifier *own = pst_optimizer_classifier_of(sp->space, c);
  return own ? fmax(own->item_us, 1) : 0;
}

static void price(const pst_optimizer_speed *sp, const pst_optimizer_choice *c, pst_optimizer_estimate *e) {
  const pst_optimizer_target *t = &sp->space->targets[c->v[PST_OPTIMIZER_MODEL]];
  double machine_nusd_per_s = (double)sp->price_nusd_per_hour / 3600;
  if (t->provider && !pst_optimizer_is_alone(sp->space, c))
    e->request_nusd =
        (e->prompt_tokens * (double)t->price.input + e->completion_tokens * (double)t->price.output) / 1e6 +
        machine_nusd_per_s * classifier_us(sp, c) / 1e6;
  else
    e->request_nusd = e->capacity > 0 ? machine_nusd_per_s / e->capacity : INFINITY;
}

/* ---- classifiers ---- */

/* A classifier alone: every request takes the same time, one after the other. */
static pst_optimizer_estimate alone(const pst_optimizer_speed *sp, const pst_optimizer_choice *c) {
  double us = classifier_us(sp, c), ms = us / 1000, objective = sp->space->workload->goal.latency_p95_ms;
  pst_optimizer_estimate e = {.error = C(replay_error), .saturated = 1e6 / us, .replayed = true};
  e.capacity = objective > 0 && ms > objective ? 0 : e.saturated * (objective > 0 ? C(load_headroom) : 1);
  e.load = C(operating_load) * e.capacity;
  e.ttft_p50_ms = e.ttft_p95_ms = e.total_p50_ms = e.total_p95_ms = e.idle_ttft_ms = e.idle_total_ms = ms;
  price(sp, c, &e);
  return e;
}

/* From what the model does when it is asked to what a request costs on average, when a classifier answers the others. Of a request alone the time is that of
 * the slower of two kinds, unless it is so rare that the 95th percentile does not see it. */
static void thin_out(const pst_optimizer_speed *sp, const pst_optimizer_choice *c, pst_optimizer_estimate *e) {
  double share = pst_optimizer_model_share(sp->space, c), us = classifier_us(sp, c);
  if (us == 0) return;
  e->prompt_tokens *= share;
  e->cached_tokens *= share;
  e->completion_tokens *= share;
  e->idle_ttft_ms = (share > 0.05 ? e->idle_ttft_ms : 0) + us / 1000;
  e->idle_total_ms = (share > 0.05 ? e->idle_total_ms : 0) + us / 1000;
  if (e->capacity > 0) e->capacity = 1 / (share / e->capacity + us / 1e6);
}

/* ---- the formula ---- */

static double context_of(double fresh, double cached, double prompt, double steps) {
  return (fresh * (cached + fresh / 2) + steps * prompt) / 1000;
}

double pst_optimizer_request_us(const pst_engine_step_model *m, const pst_engine_options *o, double prompt,
                                double cached, double out) {
  double fresh = prompt - cached, context = context_of(fresh, cached, prompt, out), slots = o->slots;
  double own_us = (fresh + out) * m->token_us + out * m->head_us + context * m->context_us;
  double steps = fmax(slots * fresh / o->chunk + 1, out); /* of a whole batch */
  return own_us + (steps + out) * m->fixed_us / slots;
}

pst_optimizer_estimate pst_optimizer_speed_formula(pst_optimizer_speed *sp, const pst_optimizer_choice *c,
                                                   const pst_optimizer_lengths *l) {
  pst_optimizer_estimate e = {0};
  if (pst_optimizer_is_alone(sp->space, c)) return alone(sp, c);
  const pst_optimizer_profile *p = profile_of(sp, c);
  e.error = C(analytic_error);
  e.prompt_tokens = PST_MAX(p->mean, 1);
  e.completion_tokens = completion_of(sp, c, l);
  if (pst_optimizer_is_remote(sp->space, c)) {
    e.capacity = 1e6;
    thin_out(sp, c, &e);
    price(sp, c, &e);
    return e;
  }
  const pst_engine_step_model *m = pst_optimizer_speed_slot(sp, c);
  pst_engine_options o = pst_optimizer_engine_options(sp->space, c);
  e.cached_tokens = fmin(floor(p->shared / (double)PAGE) * PAGE, e.prompt_tokens - 1);
  double fresh = e.prompt_tokens - e.cached_tokens, out = steps_of(sp, c, l); /* answers count by their steps */
  double context = context_of(fresh, e.cached_tokens, e.prompt_tokens, out);
  double own_us = (fresh + out) * m->token_us + out * m->head_us + context * m->context_us;
  double slots = o.slots, request_us = pst_optimizer_request_us(m, &o, e.prompt_tokens, e.cached_tokens, out);
  bool bounded = sp->space->workload->goal.latency_p95_ms > 0;
  e.idle_ttft_ms = (fresh * m->token_us + ceil(fresh / o.chunk) * m->fixed_us + context * m->context_us) / 1000;
  e.idle_total_ms = (own_us + (ceil(fresh / o.chunk) + out - 1) * m->fixed_us) / 1000;
  e.capacity = 1e6 / request_us * (bounded ? C(load_headroom) : 1);
  e.tokens_per_second = 1e6 / (m->fixed_us + m->token_us * slots);
  thin_out(sp, c, &e);
  if (bounded && e.idle_total_ms > sp->space->workload->goal.latency_p95_ms) e.capacity = 0;
  price(sp, c, &e);
  return e;
}

/* ---- the replay ---- */

/* The arrivals that reach the model: all of them, or those that a classifier leaves, spread evenly. */
typedef struct ghosts {
  pst_engine_replay_item *items; /* [n] */
  pst_engine_replay_result *results;
  size_t *arrivals; /* of each item */
  size_t n;
  double *values; /* [n_arrivals] */
  double prompt_sum;
} ghosts;

static int ghosts_make(const pst_optimizer_speed *sp, const pst_optimizer_choice *c, const pst_optimizer_lengths *l,
                       ghosts *g, pst_error *err) {
  size_t n = sp->n_arrivals;
  const pst_optimizer_profile *p = profile_of(sp, c);
  memset(g, 0, sizeof *g);
  g->items = pst_calloc(n, sizeof *g->items);
  g->results = pst_calloc(n, sizeof *g->results);
  g->values = pst_calloc(n, sizeof *g->values);
  g->arrivals = pst_calloc(n, sizeof *g->arrivals);
  if (!g->items || !g->results || !g->values || !g->arrivals)
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a replay");
  double mean = steps_of(sp, c, l), owed = 0, share = pst_optimizer_model_share(sp->space, c), due = 1 - share;
  int speculation = sp->space->axes[PST_OPTIMIZER_SPECULATION].number[c->v[PST_OPTIMIZER_SPECULATION]];
  for (size_t i = 0; i < n; i++) {
    due += share;
    if (due < 1) continue;
    due -= 1;
    owed += mean; /* whole tokens whose mean is right, spread evenly */
    int out = PST_MAX((int)owed, 1);
    owed -= out;
    g->arrivals[g->n] = i;
    g->items[g->n++] = (pst_engine_replay_item){0,
                                                PST_MAX(l->prompt ? l->prompt[i]
                                                        : p->n    ? p->lengths[i % (size_t)p->n]
                                                                  : 1,
                                                        1),
                                                out,
                                                l->prompt ? l->shared : p->shared,
                                                1,
                                                l->accept[speculation],
                                                l->drafted[speculation]};
    g->prompt_sum += g->items[g->n - 1].n_prompt;
  }
  return 0;
}

static void ghosts_done(ghosts *g) {
  pst_free(g->items);
  pst_free(g->results);
  pst_free(g->values);
  pst_free(g->arrivals);
}

/* Over all arrivals; those that the model is not asked take what the classifier takes. */
static double quantile_ms(const pst_optimizer_speed *sp, const pst_optimizer_choice *c, ghosts *g, bool first,
                          double q) {
  double classifier_ms = classifier_us(sp, c) / 1000;
  for (size_t i = 0; i < sp->n_arrivals; i++) g->values[i] = classifier_ms;
  for (size_t i = 0; i < g->n; i++)
    g->values[i] += (double)(first ? g->results[i].first_token_us : g->results[i].finish_us) / 1000;
  return pst_evals_quantile(g->values, sp->n_arrivals, q);
}

/* load in requests per second; INFINITY: all at once. */
static int play(const pst_optimizer_speed *sp, const pst_optimizer_choice *c, ghosts *g, double load,
                int64_t *ret_makespan_us, pst_error *err) {
  size_t n = sp->n_arrivals;
  double span_s = (double)PST_MAX(sp->arrivals_us[n - 1], 1) / 1e6, natural = (double)n / span_s;
  for (size_t i = 0; i < g->n; i++)
    g->items[i].arrival_us = isinf(load) ? 0 : (int64_t)((double)sp->arrivals_us[g->arrivals[i]] * natural / load);
  pst_engine_options o = pst_optimizer_engine_options(sp->space, c);
  const pst_engine_step_model *m = pst_optimizer_speed_slot((pst_optimizer_speed *)(uintptr_t)sp, c);
  return pst_engine_replay(&o, m, g->items, g->n, g->results, ret_makespan_us, err);
}

static void read_out(const pst_optimizer_speed *sp, const pst_optimizer_choice *c, const pst_optimizer_lengths *l,
                     ghosts *g, pst_optimizer_estimate *e) {
  double n = (double)sp->n_arrivals, decode_us = 0, decoded = 0;
  double per_step = completion_of(sp, c, l) / fmax(steps_of(sp, c, l), 1);
  e->ttft_p50_ms = quantile_ms(sp, c, g, true, 0.5);
  e->ttft_p95_ms = quantile_ms(sp, c, g, true, 0.95);
  e->total_p50_ms = quantile_ms(sp, c, g, false, 0.5);
  e->total_p95_ms = quantile_ms(sp, c, g, false, 0.95);
  for (size_t i = 0; i < g->n; i++) {
    if (g->items[i].n_completion < 2) continue;
    decode_us += (double)(g->results[i].finish_us - g->results[i].first_token_us);
    decoded += (g->items[i].n_completion - 1) * per_step;
  }
  double share = (double)g->n / n;
  e->prompt_tokens = g->prompt_sum / n;
  e->completion_tokens = share * completion_of(sp, c, l);
  int shared = l->prompt ? l->shared : profile_of(sp, c)->shared, whole_pages = shared - shared % PAGE;
  e->cached_tokens = fmax(fmin(share * whole_pages, e->prompt_tokens - share), 0);
  e->tokens_per_second =
      decode_us > 0 ? decoded / decode_us * 1e6 : 0; /* 0: answers come whole with their first token */
  const pst_engine_step_model *m = pst_optimizer_speed_slot((pst_optimizer_speed *)(uintptr_t)sp, c);
  e->error = sqrt(m->relative_error * m->relative_error + C(replay_error) * C(replay_error));
  e->replayed = true;
}

int pst_optimizer_speed_replay(pst_optimizer_speed *sp, const pst_optimizer_choice *c, const pst_optimizer_lengths *l,
                               pst_optimizer_estimate *ret, pst_error *err) {
  pst_optimizer_estimate e = pst_optimizer_speed_formula(sp, c, l);
  if (!pst_optimizer_has_engine(sp->space, c)) {
    *ret = e;
    return 0;
  }
  ghosts g;
  int64_t makespan = 1;
  double objective = sp->space->workload->goal.latency_p95_ms;
  int code = ghosts_make(sp, c, l, &g, err);
  if (!code) code = play(sp, c, &g, INFINITY, &makespan, err);
  double busy_s = (double)PST_MAX(makespan, 1) / 1e6 + (double)sp->n_arrivals * classifier_us(sp, c) / 1e6;
  double most = (double)sp->n_arrivals / busy_s, best = code ? 0 : most;
  if (!code && objective > 0) {
    double low = most / 64, high = most; /* geometric bisection between loads that hold and loads that do not */
    code = play(sp, c, &g, low, &makespan, err);
    best = !code && quantile_ms(sp, c, &g, false, 0.95) <= objective ? low : 0;
    for (int i = 0; i < BISECTIONS && !code && best > 0; i++) {
      double middle = sqrt(low * high);
      code = play(sp, c, &g, middle, &makespan, err);
      if (!code && quantile_ms(sp, c, &g, false, 0.95) <= objective)
        best = low = middle;
      else
        high = middle;
    }
  }
  double load = C(operating_load) * (best > 0 ? best : most / 64);
  if (!code) code = play(sp, c, &g, load, &makespan, err);
  if (!code) {
    e.capacity = best;
    e.saturated = most;
    e.load = load;
    read_out(sp, c, l, &g, &e);
    price(sp, c, &e);
    *ret = e;
  }
  ghosts_done(&g);
  return code;
}

int pst_optimizer_speed_tuned(pst_optimizer_speed *sp, const pst_optimizer_choice *c, int64_t adapter_params,
                              const pst_optimizer_lengths *l, pst_optimizer_estimate *ret, pst_error *err) {
  pst_engine_step_model *slot = pst_optimizer_speed_slot(sp, c), base = *slot;
  *slot = with_adapter(&base, &sp->space->targets[c->v[PST_OPTIMIZER_MODEL]], adapter_params);
  int code = pst_optimizer_speed_replay(sp, c, l, ret, err);
  *slot = base;
  return code;
}
