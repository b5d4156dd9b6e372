/* The search (search.h): what to measure next, by value of information per second.
 *
 * The worth of measuring a class is how much better the plan we would choose is expected to become: the knowledge gradient (Frazier, Powell and Dayanik 2009) over
 * the goal's own objective, computed by quadrature over what the measurement may show. It is divided by the seconds the measurement takes. Classes are measured in
 * blocks that grow, so that bad ones cost little (successive halving). All randomness is the order of the items, drawn once by seed; all time is the log's. */
#include "optimizer/search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "optimizer/constants.h"

#define C PST_OPTIMIZER_CONST
enum { N_ENGINES = PST_OPTIMIZER_MAX_VALUES * PST_OPTIMIZER_MAX_VALUES * PST_OPTIMIZER_MAX_VALUES };

/* ---- state ---- */

static int shuffled_part(const pst_evals_info *w, pst_evals_part part, uint64_t seed, size_t most, size_t **ret_items,
                         size_t *ret_n) {
  size_t n = 0, *items = pst_calloc(PST_MAX(w->n_items, 1), sizeof *items);
  if (!items) return PST_E_NOMEM;
  for (size_t i = 0; i < w->n_items; i++)
    if (w->items[i].part == part) items[n++] = i;
  pst_random r = {seed, (uint64_t)part + 1, 0};
  for (size_t i = n; i > 1; i--) {
    size_t j = (size_t)pst_random_below(&r, i), t = items[i - 1];
    items[i - 1] = items[j];
    items[j] = t;
  }
  *ret_items = items;
  *ret_n = most ? PST_MIN(n, most) : n;
  return 0;
}

int pst_optimizer_state_init(pst_optimizer_state *s, size_t max_items, pst_error *err) {
  size_t n = s->space->n_classes;
  const pst_evals_info *w = s->space->workload;
  s->goal = w->goal;
  s->monthly = w->monthly_requests > 0 ? (double)w->monthly_requests : C(default_monthly);
  s->search = pst_calloc(n + 1, sizeof *s->search);
  s->verify = pst_calloc(n + 1, sizeof *s->verify);
  s->beliefs = pst_calloc(n + 1, sizeof *s->beliefs);
  s->estimates = pst_calloc(n + 1, sizeof *s->estimates);
  s->best_exact = pst_calloc(n + 1, sizeof *s->best_exact);
  s->pruned = pst_calloc(n + 1, 1);
  s->open_s = pst_calloc(N_ENGINES, sizeof *s->open_s);
  s->floor = s->goal.quality_floor;
  s->finest = -1;
  if (!s->search || !s->verify || !s->beliefs || !s->estimates || !s->best_exact || !s->pruned || !s->open_s ||
      shuffled_part(w, PST_EVALS_SEARCH, s->seed, max_items, &s->search_items, &s->n_search) ||
      shuffled_part(w, PST_EVALS_VERIFY, s->seed, max_items, &s->verify_items, &s->n_verify))
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %zu candidates", n);
  for (size_t i = 0; i < N_ENGINES; i++) s->open_s[i] = C(open_engine_s);
  return 0;
}

void pst_optimizer_state_done(pst_optimizer_state *s) {
  for (size_t i = 0; s->space && i <= s->space->n_classes; i++) {
    if (s->search) pst_free(s->search[i].right);
    if (s->verify) pst_free(s->verify[i].right);
  }
  pst_free(s->search);
  pst_free(s->verify);
  pst_free(s->beliefs);
  pst_free(s->estimates);
  pst_free(s->best_exact);
  pst_free(s->pruned);
  pst_free(s->open_s);
  pst_free(s->search_items);
  pst_free(s->verify_items);
  pst_free(s->steps);
}

/* ---- measuring ---- */

static int index_of(const pst_optimizer_axis *axis, int number) {
  for (int i = 0; i < axis->n; i++)
    if (axis->number[i] == number) return i;
  return axis->n - 1;
}

pst_optimizer_choice pst_optimizer_measuring(const pst_optimizer_state *s, const pst_optimizer_choice *c) {
  pst_optimizer_choice m = *c;
  m.v[PST_OPTIMIZER_SLOTS] = (uint8_t)index_of(&s->space->axes[PST_OPTIMIZER_SLOTS], 8);
  m.v[PST_OPTIMIZER_CHUNK] = (uint8_t)index_of(&s->space->axes[PST_OPTIMIZER_CHUNK], 256);
  m.v[PST_OPTIMIZER_THREADS] = 0;
  m.v[PST_OPTIMIZER_SPECULATION] = 0;
  return m;
}

static double sum_of(const pst_json *array) {
  double sum = 0;
  for (pst_json_iter it = pst_json_iterate(array); pst_json_next(&it);) sum += pst_json_double(it.value, 0);
  return sum;
}

static int add_answers(pst_optimizer_answers *a, size_t n_part, int n, const pst_json *value, pst_error *err) {
  pst_str right = pst_json_str(pst_json_get(value, "right"));
  if (pst_json_bool(pst_json_get(value, "refused"), false) && right.n < (size_t)n) n = (int)right.n;
  if (right.n != (size_t)n)
    return pst_error_set(err, PST_E_CORRUPT, "measurement log", "a measurement of %d items holds %zu answers", n,
                         right.n);
  if (!a->right) a->right = pst_calloc(PST_MAX(n_part, 1), 1);
  if (!a->right) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for answers");
  for (int i = 0; i < n; i++) {
    a->right[a->n + i] = right.data[i] == '1';
    a->k += right.data[i] == '1';
  }
  a->n += n;
  a->prompt += sum_of(pst_json_get(value, "prompt"));
  a->cached += sum_of(pst_json_get(value, "cached"));
  a->completion += sum_of(pst_json_get(value, "completion"));
  a->steps += pst_json_double(pst_json_get(value, "steps"), 0);
  for (int k = PST_ENGINE_SPEC_LOOKUP; k <= PST_ENGINE_SPEC_ANSWERS; k++) {
    const pst_json *looked = pst_json_get(value, k == PST_ENGINE_SPEC_LOOKUP ? "lookup" : "answers");
    a->looked_tokens[k] += pst_json_double(pst_json_get(looked, "tokens"), 0);
    a->looked_steps[k] += pst_json_double(pst_json_get(looked, "steps"), 0);
    a->looked_drafted[k] += pst_json_double(pst_json_get(looked, "drafted"), 0);
  }
  a->busy_ms += sum_of(pst_json_get(value, "total_ms"));
  a->wall_us += pst_json_double(pst_json_get(value, "wall_us"), 0);
  a->cost_nusd += pst_json_int(pst_json_get(value, "cost_nusd"), 0);
  a->n_failed += pst_json_int(pst_json_get(value, "failed"), 0);
  return 0;
}

static double *open_seconds(const pst_optimizer_state *s, const pst_optimizer_choice *c) {
  size_t model = (size_t)pst_optimizer_base_target(s->space, c->v[PST_OPTIMIZER_MODEL]);
  return &s->open_s[(model * PST_OPTIMIZER_MAX_VALUES + c->v[PST_OPTIMIZER_WEIGHTS]) * PST_OPTIMIZER_MAX_VALUES +
                    c->v[PST_OPTIMIZER_KV]];
}

void pst_optimizer_opens_in(pst_optimizer_state *s, const pst_optimizer_choice *c, double seconds) {
  pst_optimizer_choice like = *c;
  for (int k = 0; k < s->space->axes[PST_OPTIMIZER_KV].n; k++) {
    like.v[PST_OPTIMIZER_KV] = (uint8_t)k;
    if (!c->v[PST_OPTIMIZER_KV] || k == c->v[PST_OPTIMIZER_KV]) *open_seconds(s, &like) = seconds;
  }
}

static int plan_of(pst_optimizer_state *s, int class_index, pst_buf *name, pst_buf *plan) {
  if ((size_t)class_index == s->space->n_classes) {
    pst_buf_printf(name, "plan %.12s", s->reference_hash);
    pst_buf_puts(plan, s->reference_plan);
    return pst_buf_status(plan);
  }
  pst_optimizer_choice c = pst_optimizer_measuring(s, &s->space->classes[class_index]);
  pst_optimizer_class_name(s->space, &c, name);
  if (pst_optimizer_has_engine(s->space, &c)) *open_seconds(s, &c) = 0;
  return pst_optimizer_plan_write(s->space, &c, plan);
}

static bool pays_provider(const pst_optimizer_state *s, int class_index) {
  if ((size_t)class_index == s->space->n_classes) return s->reference_pays;
  const pst_optimizer_choice *c = &s->space->classes[class_index];
  return !pst_optimizer_is_alone(s->space, c) && pst_optimizer_is_remote(s->space, c);
}

double pst_optimizer_payment(const pst_optimizer_state *s, int class_index, int n) {
  const pst_optimizer_answers *a = &s->search[class_index];
  if (!pays_provider(s, class_index)) return 0;
  if (a->n) return n * (double)a->cost_nusd / a->n;
  if ((size_t)class_index == s->space->n_classes) return 0; /* nothing is known yet */
  return n * C(unasked_payment) * s->estimates[class_index].request_nusd;
}

bool pst_optimizer_affords(const pst_optimizer_state *s, int class_index, int n, double share) {
  if (!pays_provider(s, class_index) || n <= 0) return true;
  return !s->broke && s->spent_nusd + pst_optimizer_payment(s, class_index, n) <= share * s->money_nusd;
}

static bool search_affords(const pst_optimizer_state *s, int class_index, int n) {
  return pst_optimizer_affords(s, class_index, n, 1 - C(verify_money));
}

int pst_optimizer_measure(pst_optimizer_state *s, int class_index, bool verify, int to, pst_error *err) {
  pst_optimizer_answers *a = &(verify ? s->verify : s->search)[class_index];
  const size_t *items = verify ? s->verify_items : s->search_items;
  size_t n_part = verify ? s->n_verify : s->n_search;
  to = PST_MIN(to, (int)n_part);
  if (a->n >= to || (s->broke && pays_provider(s, class_index))) return 0;
  pst_buf name = PST_BUF_INIT, plan = PST_BUF_INIT, key = PST_BUF_INIT, answer = PST_BUF_INIT;
  int code = plan_of(s, class_index, &name, &plan);
  pst_buf_printf(&key, "%s %s %d..%d", verify ? "verify" : "search", pst_buf_text(&name), a->n, to);
  if (!code) code = pst_buf_status(&key);
  if (code) pst_error_set(err, code, NULL, "no memory for a measurement");
  const pst_json *value = code ? NULL : pst_optimizer_journal_find(s->journal, key.data);
  if (!code && !value && s->world->cancelled && s->world->cancelled(s->world->state))
    code = pst_error_set(err, PST_E_CANCELLED, NULL, "cancelled; the next run of the same command goes on from here");
  if (!code && !value) {
    if (!s->journal->replay)
      code = s->world->measure(s->world->state, pst_buf_str(&plan), verify, items + a->n, (size_t)(to - a->n), &answer,
                               err);
    else
      pst_buf_puts(&answer, "null");
    if (!code) code = pst_optimizer_journal_put(s->journal, key.data, &answer, &value, err);
  }
  double before = (double)a->cost_nusd;
  if (!code) code = add_answers(a, n_part, to - a->n, value, err);
  if (!code && pays_provider(s, class_index)) {
    double left = pst_json_double(pst_json_get(value, "left_nusd"), NAN);
    s->spent_nusd = left == left ? s->money_nusd - left : s->spent_nusd + (double)a->cost_nusd - before;
    s->broke |= pst_json_bool(pst_json_get(value, "refused"), false);
  }
  pst_buf_done(&name);
  pst_buf_done(&plan);
  pst_buf_done(&key);
  pst_buf_done(&answer);
  return code;
}

/* ---- estimates ---- */

static pst_optimizer_lengths lengths_of(const pst_optimizer_state *s, size_t i) {
  pst_optimizer_lengths l = {0};
  const pst_optimizer_answers *a = &s->search[i];
  /* All finalists are asked the same held-back items: a difference there is one of the plans, and not of the items. */
  const pst_optimizer_answers *said = s->verify[i].n ? &s->verify[i] : a;
  if (said->n > 0) {
    double share = fmax(pst_optimizer_model_share(s->space, &s->space->classes[i]), 1.0 / said->n);
    l.completion = said->completion / said->n / share; /* of an answer of the model */
    l.steps = said->steps / said->n / share;
  }
  for (int k = PST_ENGINE_SPEC_LOOKUP; k <= PST_ENGINE_SPEC_ANSWERS; k++) {
    if (!(a->looked_steps[k] > 0)) continue;
    l.accept[k] = fmax(a->looked_tokens[k] / a->looked_steps[k] - 1, 0);
    l.drafted[k] = a->looked_drafted[k] / a->looked_steps[k];
  }
  return l;
}

void pst_optimizer_estimate_all(pst_optimizer_state *s) {
  const pst_optimizer_space *space = s->space;
  double sum = 0, n_finite = 0;
  for (size_t i = 0; i < space->n_classes; i++) {
    if (s->estimates[i].replayed) continue;
    pst_optimizer_lengths l = lengths_of(s, i);
    for (size_t x = 0; x < space->n_exact; x++) {
      pst_optimizer_choice c = space->classes[i];
      memcpy(c.v + PST_OPTIMIZER_N_LOSSY, space->exact[x].v + PST_OPTIMIZER_N_LOSSY,
             PST_OPTIMIZER_N_AXES - PST_OPTIMIZER_N_LOSSY);
      pst_optimizer_estimate e = pst_optimizer_speed_formula(s->speed, &c, &l);
      if (x == 0 || e.request_nusd < s->estimates[i].request_nusd) {
        s->estimates[i] = e;
        s->best_exact[i] = c;
      }
      if (!pst_optimizer_has_engine(space, &c)) break;
    }
    if (isfinite(s->estimates[i].request_nusd)) {
      sum += s->estimates[i].request_nusd;
      n_finite++;
    }
  }
  if (s->scale > 0) return;
  if (!strcmp(s->goal.objective, "quality"))
    s->scale = 1;
  else if (!strcmp(s->goal.objective, "latency"))
    s->scale = s->goal.latency_p95_ms > 0 ? s->goal.latency_p95_ms : 1000;
  else
    s->scale = s->monthly * (n_finite > 0 ? sum / n_finite : 1) / fmax(s->goal.quality_floor, 0.05);
}

bool pst_optimizer_is_cheap_enough(const pst_optimizer_state *s, double request_nusd, double q) {
  double per_accepted = q > 0 ? request_nusd / q : INFINITY;
  return s->goal.cost_ceiling_nusd <= 0 || 1000 * per_accepted <= (double)s->goal.cost_ceiling_nusd;
}

/* near_best: whether the goal's max_quality_loss holds. */
static double utility(const pst_optimizer_state *s, const pst_optimizer_estimate *e, double q, bool near_best) {
  double per_accepted = q > 0 ? e->request_nusd / q : INFINITY;
  bool holds = near_best && q >= s->floor && e->capacity > 0 && isfinite(per_accepted) &&
               pst_optimizer_is_cheap_enough(s, e->request_nusd, q);
  if (!holds) return -C(infeasible_penalty) * s->scale * (e->capacity > 0 ? 2 - q : 4 - q);
  if (!strcmp(s->goal.objective, "quality")) return q;
  if (!strcmp(s->goal.objective, "latency")) return -(e->replayed ? e->total_p95_ms : e->idle_total_ms);
  return -s->monthly * per_accepted;
}

double pst_optimizer_utility(const pst_optimizer_state *s, const pst_optimizer_estimate *e, double q) {
  return utility(s, e, q, q >= s->loss_floor);
}

/* Nodes and weights of a standard normal on an even grid. */
enum { N_NODES = 13 };
static double node(int i) { return -3.0 + 0.5 * i; }
static double weight(int i) {
  static const double w[N_NODES] = {0.002216, 0.008764, 0.026996, 0.064759, 0.120987, 0.176036, 0.200484,
                                    0.176036, 0.120987, 0.064759, 0.026996, 0.008764, 0.002216};
  return w[i];
}

double pst_optimizer_expected_utility(const pst_optimizer_state *s, const pst_optimizer_estimate *e,
                                      pst_optimizer_belief b) {
  /* The distance to the best plan is judged by the mean: both were asked the same items, so that what is unsure of either says little of their difference. */
  bool near_best = pst_optimizer_logistic(b.mean) >= s->loss_floor;
  double sum = 0;
  for (int i = 0; i < N_NODES; i++)
    sum += weight(i) * utility(s, e, pst_optimizer_logistic(b.mean + b.sd * node(i)), near_best);
  return sum;
}

double pst_optimizer_seconds(const pst_optimizer_state *s, int class_index, int n) {
  const pst_optimizer_answers *a = &s->search[class_index];
  double per_item = 0.25, open = 0;
  if (a->n > 0)
    per_item = a->wall_us / 1e6 / a->n;
  else if ((size_t)class_index < s->space->n_classes) {
    pst_optimizer_choice c = pst_optimizer_measuring(s, &s->space->classes[class_index]);
    pst_optimizer_lengths l = lengths_of(s, (size_t)class_index);
    pst_optimizer_estimate e = pst_optimizer_speed_formula(s->speed, &c, &l);
    if (e.capacity > 0) per_item = (s->goal.latency_p95_ms > 0 ? C(load_headroom) : 1) / e.capacity;
    if (pst_optimizer_has_engine(s->space, &c)) open = *open_seconds(s, &c);
  }
  return open + n * (per_item + C(item_overhead_us) / 1e6);
}

/* ---- beliefs ---- */

static double believed(const pst_optimizer_state *s, size_t i) { return pst_optimizer_logistic(s->beliefs[i].mean); }

/* The class believed to answer best of those that keep the goal's limits of time and cost, asked or not; -1: there is none. Ties go to the first. */
static int find_finest(const pst_optimizer_state *s, bool asked) {
  int finest = -1;
  for (size_t i = 0; i < s->space->n_classes; i++) {
    const pst_optimizer_estimate *e = &s->estimates[i];
    double q = believed(s, i);
    if ((asked && !s->search[i].n) || e->capacity <= 0 || !pst_optimizer_is_cheap_enough(s, e->request_nusd, q))
      continue;
    if (finest < 0 || q > believed(s, (size_t)finest)) finest = (int)i;
  }
  return finest;
}

static void set_floor(pst_optimizer_state *s) {
  const pst_optimizer_answers *r = &s->search[s->reference];
  double reference = r->n > 0 ? (r->k + 0.5) / (r->n + 1) : 0, loss = s->goal.max_quality_loss;
  s->finest = loss > 0 ? find_finest(s, true) : -1;
  s->loss_floor = s->finest >= 0 ? fmax(believed(s, (size_t)s->finest) - loss, 0) : 0;
  s->floor = fmax(s->goal.quality_floor, reference - s->goal.margin);
}

int pst_optimizer_settle_floor(pst_optimizer_state *s, pst_error *err) {
  int code = 0, seen = -1;
  for (set_floor(s); !code && s->finest >= 0 && s->finest != seen; set_floor(s)) {
    seen = s->finest; /* a class without an engine stays as it is estimated */
    if (!s->estimates[seen].replayed) code = pst_optimizer_choose_exact(s, seen, err);
  }
  return code;
}

int pst_optimizer_update(pst_optimizer_state *s, pst_error *err) {
  size_t n = s->space->n_classes, n_seen = 0;
  pst_optimizer_seen *seen = pst_calloc(PST_MAX(n, 1), sizeof *seen);
  pst_optimizer_point *points = pst_calloc(PST_MAX(n, 1), sizeof *points);
  int code = seen && points ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %zu candidates", n);
  for (size_t i = 0; i < n && !code; i++)
    if (s->search[i].n > 0) seen[n_seen++] = (pst_optimizer_seen){(int)i, s->search[i].n, s->search[i].k};
  if (!code) code = pst_optimizer_surrogate_update(s->space, seen, n_seen, s->beliefs, err);
  if (!code) {
    pst_optimizer_estimate_all(s);
    set_floor(s);
    for (size_t i = 0; i < n; i++) {
      pst_evals_interval q = pst_optimizer_belief_interval(s->beliefs[i], 0.95);
      const pst_optimizer_estimate *e = &s->estimates[i];
      points[i] =
          (pst_optimizer_point){e->request_nusd / (1 + e->error), e->request_nusd * (1 + e->error), q.low, q.high};
    }
    s->n_pruned = pst_optimizer_dominated(points, n, s->pruned);
  }
  pst_free(seen);
  pst_free(points);
  return code;
}

/* ---- what next ---- */

static int next_to(const pst_optimizer_state *s, int class_index) {
  int n = s->search[class_index].n;
  int to = n == 0 ? (int)C(first_block) : (int)(n * C(block_growth));
  if (to * 3 / 2 > (int)s->n_search) to = (int)s->n_search; /* no crumbs */
  return to;
}

/* The expected gain of the choice when class i is asked b more items. */
static double value_of(const pst_optimizer_state *s, size_t i, int more, double best, double best_other) {
  const pst_optimizer_belief *b = &s->beliefs[i];
  double q = pst_optimizer_logistic(b->mean), noise = 1 / (more * fmax(q * (1 - q), 0.02));
  double moved = b->sd * b->sd / sqrt(b->sd * b->sd + noise); /* sd of the posterior mean to come */
  double left = sqrt(fmax(b->sd * b->sd - moved * moved, 1e-9)), sum = 0;
  for (int z = 0; z < N_NODES; z++) {
    pst_optimizer_belief after = {b->mean + moved * node(z), left};
    sum += weight(z) * fmax(pst_optimizer_expected_utility(s, &s->estimates[i], after), best_other);
  }
  return sum - best;
}

typedef struct candidate {
  int class_index, to;
  double voi, seconds;
} candidate;

/* prompted: among prompted classes alone, those too that something learned dominates. */
static candidate pick(const pst_optimizer_state *s, bool prompted, double left_s) {
  size_t n = s->space->n_classes;
  double best = -INFINITY, second = -INFINITY;
  int best_index = -1;
  for (size_t i = 0; i < n; i++) {
    if (prompted && !pst_optimizer_is_prompted_class(s, i)) continue;
    double u = pst_optimizer_expected_utility(s, &s->estimates[i], s->beliefs[i]);
    if (u > best) {
      second = best;
      best = u;
      best_index = (int)i;
    } else if (u > second) {
      second = u;
    }
  }
  candidate chosen = {-1, 0, 0, 0};
  double chosen_rate = 0;
  for (size_t i = 0; i < n; i++) {
    bool out = prompted ? !pst_optimizer_is_prompted_class(s, i) : s->pruned[i];
    if (out || s->search[i].n >= (int)s->n_search) continue;
    int to = next_to(s, (int)i), more = to - s->search[i].n;
    double seconds = pst_optimizer_seconds(s, (int)i, more);
    if (more <= 0 || seconds > left_s || !search_affords(s, (int)i, more)) continue;
    double voi = value_of(s, i, more, best, (int)i == best_index ? second : best);
    if (voi / seconds > chosen_rate) {
      chosen_rate = voi / seconds;
      chosen = (candidate){(int)i, to, voi, seconds};
    }
  }
  return chosen;
}

/* The class that would be chosen now, when nobody has asked it anything yet: however sure its worth seems (a classifier's is known from its held-out folds), only
 * what was asked can become a finalist. */
static candidate unasked_best(const pst_optimizer_state *s, double left_s) {
  candidate c = {-1, 0, 0, 0};
  double best = -INFINITY;
  int found = -1;
  for (size_t i = 0; i < s->space->n_classes; i++) {
    double u = pst_optimizer_expected_utility(s, &s->estimates[i], s->beliefs[i]);
    if (u > best && s->estimates[i].capacity > 0) {
      best = u;
      found = (int)i;
    }
  }
  if (found < 0 || s->search[found].n > 0) return c;
  int to = next_to(s, found);
  double seconds = pst_optimizer_seconds(s, found, to);
  return seconds > left_s || !search_affords(s, found, to) ? c : (candidate){found, to, 0, seconds};
}

/* The class believed to answer best, when nobody has asked it anything yet: how far others may lie below the best that was found is a limit to them only once it is
 * found. */
static candidate unasked_finest(const pst_optimizer_state *s, double left_s) {
  candidate none = {-1, 0, 0, 0};
  int found = s->goal.max_quality_loss > 0 ? find_finest(s, false) : -1;
  if (found < 0 || s->search[found].n > 0) return none;
  int to = next_to(s, found);
  double seconds = pst_optimizer_seconds(s, found, to);
  return seconds > left_s || !search_affords(s, found, to) ? none : (candidate){found, to, 0, seconds};
}

static int take_step(pst_optimizer_state *s, const candidate *c, pst_error *err) {
  int from = s->search[c->class_index].n;
  if (pst_array_reserve((void **)&s->steps, &s->steps_capacity, s->n_steps + 1, sizeof *s->steps))
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the search's steps");
  int code = pst_optimizer_measure(s, c->class_index, false, c->to, err);
  if (code) return code;
  const pst_optimizer_answers *a = &s->search[c->class_index];
  s->steps[s->n_steps++] =
      (pst_optimizer_step){c->class_index, from, a->n, a->k, c->voi, c->seconds, s->journal->elapsed_us};
  return pst_optimizer_update(s, err);
}

static int best_measured(const pst_optimizer_state *s) {
  int best = -1;
  double best_u = -INFINITY;
  for (size_t i = 0; i < s->space->n_classes; i++) {
    if (s->search[i].n == 0) continue;
    double u = pst_optimizer_expected_utility(s, &s->estimates[i], s->beliefs[i]);
    if (u > best_u) {
      best_u = u;
      best = (int)i;
    }
  }
  return best;
}

static void tell(const pst_optimizer_state *s, const char *phase) {
  int i = best_measured(s);
  if (!s->world->note) return;
  pst_buf text = PST_BUF_INIT;
  pst_buf_printf(&text, "%s", phase);
  if (i >= 0) {
    double q = (double)s->search[i].k / s->search[i].n;
    pst_buf_printf(&text, ": best so far %.0f%% right, $%.4f per 1,000", 100 * q,
                   s->estimates[i].request_nusd / fmax(q, 1e-3) / 1e6);
  }
  s->world->note(s->world->state, pst_buf_text(&text));
  pst_buf_done(&text);
}

static int search_all(pst_optimizer_state *s, double deadline_s, pst_error *err) {
  int code = 0;
  double price_per_s = (double)s->speed->price_nusd_per_hour / 3600;
  bool money = strcmp(s->goal.objective, "quality") && strcmp(s->goal.objective, "latency");
  s->why_stopped = NULL;
  while (!code && !s->why_stopped) {
    tell(s, "search");
    /* The first few are taken however late it is: a verdict on nothing would be worth nothing. */
    bool begun = s->n_steps > (size_t)C(least_steps);
    double left_s = begun ? deadline_s - pst_optimizer_elapsed_s(s) : INFINITY;
    candidate c = pick(s, false, left_s), best = {-1, 0, 0, 0};
    bool too_dear = money && c.voi * C(horizon_months) < price_per_s * c.seconds, ends = c.class_index < 0 || too_dear;
    if (ends) best = unasked_best(s, left_s);
    /* Every other step at most: the rest is the objective's. */
    if (best.class_index < 0 && (ends || s->n_steps % 2)) best = unasked_finest(s, left_s);
    if (best.class_index >= 0)
      code = take_step(s, &best, err);
    else if (c.class_index < 0)
      s->why_stopped = pst_optimizer_elapsed_s(s) + 2 > deadline_s
                           ? "the time for the search was spent"
                           : "nothing that fits the time and the money left pays";
    else if (too_dear)
      s->why_stopped = "another measurement costs more than it is expected to save";
    else
      code = take_step(s, &c, err);
  }
  return code;
}

int pst_optimizer_best_prompted(const pst_optimizer_state *s, bool asked) {
  int best = -1;
  double most = 0;
  for (size_t i = 0; i < s->space->n_classes; i++) {
    bool out = s->estimates[i].capacity <= 0 || !pst_optimizer_is_prompted_class(s, i);
    if (out || (asked && !s->search[i].n)) continue;
    double u = pst_optimizer_expected_utility(s, &s->estimates[i], s->beliefs[i]);
    if (best >= 0 && u <= most) continue;
    best = (int)i;
    most = u;
  }
  return best;
}

/* Whoever is ahead may be so only because nobody asked the prompted plans: among them the same search goes on, until the best is known as a finalist would be and none
 * of the others is expected to be worth more. */
static int search_prompted(pst_optimizer_state *s, double deadline_s, pst_error *err) {
  int code = 0, best, want = PST_MIN((int)C(final_items), (int)s->n_search);
  while (!code && (best = pst_optimizer_best_prompted(s, false)) >= 0) {
    double worth = pst_optimizer_expected_utility(s, &s->estimates[best], s->beliefs[best]);
    double left_s = deadline_s - pst_optimizer_elapsed_s(s);
    int asked = s->search[best].n, to = PST_MIN(next_to(s, best), want);
    candidate c = pick(s, true, left_s), sure = {best, to, 0, pst_optimizer_seconds(s, best, to - asked)};
    bool pays = c.class_index >= 0 && c.voi >= C(baseline_gain) * fabs(worth);
    if (to > asked && sure.seconds <= left_s && search_affords(s, best, to - asked) && (!asked || !pays))
      c = sure;
    else if (!pays)
      break;
    tell(s, "search: prompted plans");
    code = take_step(s, &c, err);
  }
  return code;
}

int pst_optimizer_search(pst_optimizer_state *s, double deadline_s, pst_error *err) {
  candidate first = {s->reference, PST_MIN((int)(2 * C(first_block)), (int)s->n_search), 0, 0};
  bool asks = s->reference >= 0 && search_affords(s, s->reference, first.to);
  int code = asks ? take_step(s, &first, err) : 0;
  bool learned = false;
  for (size_t i = 0; i < s->space->n_classes && !learned; i++) learned = !pst_optimizer_is_prompted_class(s, i);
  double share_s = learned ? C(baseline_share) * s->budget_s : 0;
  if (!code) code = search_all(s, deadline_s - share_s, err);
  int best = best_measured(s);
  if (code || !learned || best < 0) return code;
  return pst_optimizer_is_prompted_class(s, (size_t)best)
             ? search_all(s, deadline_s, err)
             : search_prompted(s, fmin(deadline_s, pst_optimizer_elapsed_s(s) + share_s), err);
}

/* ---- finalists ---- */

static int rank_measured(const pst_optimizer_state *s, int *ret_classes, int most) {
  int n = 0;
  double worth[16];
  for (size_t i = 0; i < s->space->n_classes; i++) {
    if (s->search[i].n == 0 || s->estimates[i].capacity <= 0) continue;
    double u = pst_optimizer_expected_utility(s, &s->estimates[i], s->beliefs[i]);
    int at = n;
    while (at > 0 && u > worth[at - 1]) at--;
    if (at == most) continue;
    if (n < most) n++;
    for (int k = n - 1; k > at; k--) {
      worth[k] = worth[k - 1];
      ret_classes[k] = ret_classes[k - 1];
    }
    worth[at] = u;
    ret_classes[at] = (int)i;
  }
  return n;
}

/* The finest class is one of them, in the last place at the worst: where the others turn out to lie too far below it, it is what is left. */
static int add_finest(const pst_optimizer_state *s, int *classes, int n, int most) {
  bool there = s->finest < 0;
  for (int i = 0; i < n; i++) there = there || classes[i] == s->finest;
  if (there) return n;
  n = PST_MIN(n + 1, most);
  classes[n - 1] = s->finest;
  return n;
}

const char *pst_optimizer_why_hopeless(const pst_optimizer_state *s, int class_index) {
  double high = pst_optimizer_belief_interval(s->beliefs[class_index], C(confidence)).high;
  if (high < s->goal.quality_floor) return "by its search items it does not reach the floor";
  return high < s->loss_floor ? "by its search items it lies too far below the best plan" : NULL;
}

int pst_optimizer_finalists(pst_optimizer_state *s, double deadline_s, int *ret_classes, size_t *ret_n,
                            pst_error *err) {
  int most = (int)C(finalists), want = PST_MIN((int)C(final_items), (int)s->n_search), n = 0, code = 0;
  for (bool again = true; again && !code;) {
    again = false;
    n = add_finest(s, ret_classes, rank_measured(s, ret_classes, most), most);
    for (int i = 0; i < n && !code && !again; i++) {
      int c = ret_classes[i];
      if (s->search[c].n >= want || (i && pst_optimizer_why_hopeless(s, c)) ||
          pst_optimizer_elapsed_s(s) + pst_optimizer_seconds(s, c, want - s->search[c].n) > deadline_s ||
          !search_affords(s, c, want - s->search[c].n))
        continue;
      tell(s, "finalists");
      code = take_step(s, &(candidate){c, want, 0, pst_optimizer_seconds(s, c, want - s->search[c].n)}, err);
      again = true;
    }
  }
  *ret_n = (size_t)n;
  return code;
}

/* ---- exact fields ---- */

static int trace_lengths(pst_optimizer_state *s, int class_index, int **ret_prompt, int *ret_shared, pst_error *err) {
  const pst_optimizer_choice *c = &s->space->classes[class_index];
  pst_buf key = PST_BUF_INIT, answer = PST_BUF_INIT;
  pst_buf_puts(&key, "trace ");
  pst_optimizer_class_name(s->space, c, &key);
  int *prompt = pst_calloc(PST_MAX(s->speed->n_arrivals, 1), sizeof *prompt), code = 0;
  if (!prompt || pst_buf_status(&key)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the trace");
  const pst_json *value = code ? NULL : pst_optimizer_journal_find(s->journal, key.data);
  if (!code && !value) {
    if (!s->journal->replay)
      code =
          s->world->lengths(s->world->state, s->space, c, s->speed->arrival_items, s->speed->n_arrivals, &answer, err);
    if (!code) code = pst_optimizer_journal_put(s->journal, key.data, &answer, &value, err);
  }
  size_t n = 0;
  for (pst_json_iter it = pst_json_iterate(pst_json_get(value, "lengths")); !code && pst_json_next(&it);)
    if (n < s->speed->n_arrivals) prompt[n++] = (int)pst_json_int(it.value, 1);
  if (!code && n != s->speed->n_arrivals)
    code = pst_error_set(err, PST_E_CORRUPT, "measurement log", "%zu prompt lengths for %zu arrivals", n,
                         s->speed->n_arrivals);
  pst_buf_done(&key);
  pst_buf_done(&answer);
  if (code) {
    pst_free(prompt);
    return code;
  }
  *ret_prompt = prompt;
  *ret_shared = (int)pst_json_int(pst_json_get(value, "shared"), 0);
  return 0;
}

int pst_optimizer_replay_class(pst_optimizer_state *s, int class_index, const pst_optimizer_choice *choice,
                               pst_optimizer_estimate *ret, pst_error *err) {
  pst_optimizer_lengths l = lengths_of(s, (size_t)class_index);
  int *prompt = NULL, code = 0;
  if (pst_optimizer_has_engine(s->space, choice)) code = trace_lengths(s, class_index, &prompt, &l.shared, err);
  l.prompt = prompt;
  if (!code) code = pst_optimizer_speed_replay(s->speed, choice, &l, ret, err);
  pst_free(prompt);
  return code;
}

int pst_optimizer_choose_exact(pst_optimizer_state *s, int class_index, pst_error *err) {
  const pst_optimizer_space *space = s->space;
  pst_optimizer_choice best = pst_optimizer_measuring(s, &space->classes[class_index]);
  if (!pst_optimizer_has_engine(space, &best)) return 0;
  pst_optimizer_lengths l = lengths_of(s, (size_t)class_index);
  int *prompt = NULL, code = trace_lengths(s, class_index, &prompt, &l.shared, err);
  l.prompt = prompt;
  pst_optimizer_estimate estimate;
  if (!code) code = pst_optimizer_speed_replay(s->speed, &best, &l, &estimate, err);
  /* Coordinate descent: the exact fields hardly interact, and a replay takes tens of milliseconds. */
  for (bool better = true; better && !code;) {
    better = false;
    for (int a = PST_OPTIMIZER_N_LOSSY; a < PST_OPTIMIZER_N_AXES && !code; a++)
      for (int v = 0; v < space->axes[a].n && !code; v++) {
        pst_optimizer_choice c = best;
        c.v[a] = (uint8_t)v;
        if (c.v[a] == best.v[a]) continue;
        int speculation = space->axes[PST_OPTIMIZER_SPECULATION].number[c.v[PST_OPTIMIZER_SPECULATION]];
        if (speculation != PST_ENGINE_SPEC_NONE && l.accept[speculation] <= 0) continue;
        pst_optimizer_estimate e;
        code = pst_optimizer_speed_replay(s->speed, &c, &l, &e, err);
        double q = pst_optimizer_logistic(s->beliefs[class_index].mean);
        double gain = pst_optimizer_utility(s, &e, q) - pst_optimizer_utility(s, &estimate, q);
        if (code || !(gain > 1e-6 * s->scale)) continue;
        best = c;
        estimate = e;
        better = true;
      }
  }
  if (!code) {
    s->best_exact[class_index] = best;
    s->estimates[class_index] = estimate;
  }
  pst_free(prompt);
  return code;
}
