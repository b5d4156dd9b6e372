/* Verification (verify.h). The number of items is fixed by the time left before the first answer comes, and never by what answers say: looking and stopping
 * would spoil the interval. A second look at the same part is no longer a first one, so those before are counted. */
#include "optimizer/verify.h"

#include <math.h>
#include <string.h>

#include "optimizer/constants.h"

#define C PST_OPTIMIZER_CONST
enum { LEAST_ITEMS = 100 };

void pst_optimizer_pair(const pst_optimizer_answers *a, const pst_optimizer_answers *b, double margin,
                        pst_evals_comparison *ret) {
  memset(ret, 0, sizeof *ret);
  int64_t n = PST_MIN(a->n, b->n), a_right = 0, b_right = 0;
  for (int64_t i = 0; i < n; i++) {
    bool x = a->right[i], y = b->right[i];
    a_right += x;
    b_right += y;
    ret->n11 += x && y;
    ret->n10 += x && !y;
    ret->n01 += !x && y;
    ret->n00 += !x && !y;
  }
  double confidence = C(confidence);
  ret->n = n;
  ret->margin = margin;
  ret->a = pst_evals_wilson(a_right, n, confidence);
  ret->b = pst_evals_wilson(b_right, n, confidence);
  ret->difference = pst_evals_tango(ret->n11, ret->n10, ret->n01, ret->n00, confidence);
  ret->mid_p = pst_evals_mcnemar_mid_p(ret->n10, ret->n01);
  double discordant = (double)(ret->n10 + ret->n01 + 1) / (double)(n + 2); /* as in pst_evals_compare */
  ret->detectable = pst_evals_detectable(n, discordant, 1 - confidence, 0.8);
  ret->non_inferior = ret->difference.low > -margin    ? PST_EVALS_YES
                      : ret->difference.high < -margin ? PST_EVALS_NO
                                                       : PST_EVALS_NOT_ENOUGH_DATA;
}

/* As many items as the time left allows for the reference and one finalist, at least LEAST_ITEMS, at most all. */
static int choose_n(const pst_optimizer_state *s, const int *finalists, size_t n_finalists) {
  double left = s->budget_s - (double)s->journal->elapsed_us / 1e6;
  double per_item =
      (pst_optimizer_seconds(s, s->reference, 1000) + pst_optimizer_seconds(s, finalists[0], 1000)) / 1000;
  for (size_t i = 0; i < n_finalists; i++)
    if (finalists[i] == s->reference) per_item = pst_optimizer_seconds(s, s->reference, 1000) / 1000;
  if (s->finest >= 0 && s->finest != s->reference && s->finest != finalists[0])
    per_item += pst_optimizer_seconds(s, s->finest, 1000) / 1000;
  double n = 0.95 * left / per_item;
  n = n < LEAST_ITEMS ? LEAST_ITEMS : n;
  return n < (double)s->n_verify ? (int)n : (int)s->n_verify;
}

static int count_use(pst_optimizer_state *s, int64_t *ret_uses, pst_error *err) {
  const pst_json *value = pst_optimizer_journal_find(s->journal, "use of verify");
  pst_buf answer = PST_BUF_INIT;
  int code = 0;
  if (!value) {
    if (!s->journal->replay) code = s->world->count_use(s->world->state, &answer, err);
    if (!code) code = pst_optimizer_journal_put(s->journal, "use of verify", &answer, &value, err);
  }
  pst_buf_done(&answer);
  if (!code) *ret_uses = pst_json_int(pst_json_get(value, "uses"), 0);
  return code;
}

static double per_accepted(double nusd, double q) { return q > 0 ? nusd / q : INFINITY; }

/* The objective at quality q, lower is better. */
static double objective_at(const pst_optimizer_state *s, const pst_optimizer_estimate *e, double q) {
  if (!strcmp(s->goal.objective, "latency")) return e->replayed ? e->total_p95_ms : e->idle_total_ms;
  return per_accepted(e->request_nusd, q);
}

/* Where the goal does not hold, anything is better. */
static double objective_of_reference(const pst_optimizer_state *s, const pst_optimizer_estimate *e, double q) {
  bool holds = e->capacity > 0 && q >= s->goal.quality_floor && pst_optimizer_is_cheap_enough(s, e->request_nusd, q);
  return holds ? objective_at(s, e, q) : INFINITY;
}

double pst_optimizer_measured_nusd(const pst_optimizer_state *s, const pst_optimizer_answers *a) {
  return (a->wall_us / 3.6e9 * (double)s->speed->price_nusd_per_hour + (double)a->cost_nusd) / a->n;
}

/* Against a reference outside the space, of which nothing is estimated: both as they were measured on these items, one after the other in the same way. */
static bool is_cheaper_measured(const pst_optimizer_state *s, const pst_optimizer_trial *t, double q) {
  const pst_optimizer_answers *own = &s->verify[t->class_index], *other = &s->verify[s->reference];
  double nusd = pst_optimizer_measured_nusd(s, other), reference = t->comparison.b.estimate;
  if (reference < s->goal.quality_floor || !pst_optimizer_is_cheap_enough(s, nusd, reference)) return true;
  if (!strcmp(s->goal.objective, "latency")) return own->busy_ms / own->n < other->busy_ms / other->n;
  return per_accepted(pst_optimizer_measured_nusd(s, own), q) < per_accepted(nusd, reference);
}

/* Not to be worse is not enough to take a plan's place: what changes nothing (an adapter that learned nothing, say) would wander in. The reference counts at its
 * best, with whatever exact fields serve it best (`alike`: with the finalist's): those are no merit of the finalist. q: the finalist's quality. */
static bool is_cheaper(const pst_optimizer_state *s, const pst_optimizer_trial *t, const pst_optimizer_estimate *alike,
                       double q) {
  int r = s->reference;
  if ((size_t)r == s->space->n_classes) return is_cheaper_measured(s, t, q);
  double reference = t->comparison.b.estimate, own = objective_at(s, &s->estimates[t->class_index], fmin(q, 1));
  return own < objective_of_reference(s, &s->reference_estimate, reference) &&
         own < objective_of_reference(s, &s->estimates[r], reference) &&
         own < objective_of_reference(s, alike, reference);
}

/* A difference counts as far as the whole interval shows it: of many plans that are right equally often, one is always ahead by chance. */
static double shown(const pst_evals_interval *difference) {
  return difference->low > 0 ? difference->low : difference->high < 0 ? difference->high : 0;
}

/* A reference that lies too far below the best plan does not keep the goal, and what does is better whatever it costs. That must be shown too: by the whole interval,
 * and not by an estimate, or the dearer of two plans that are right equally often would take the other's place by chance. */
static void find_better(const pst_optimizer_state *s, const pst_optimizer_verification *v, pst_optimizer_trial *t,
                        const pst_optimizer_estimate *alike) {
  const pst_evals_interval *difference = &t->comparison.difference, *below = &v->reference_against_best.difference;
  bool quality = !strcmp(s->goal.objective, "quality"), limit = v->best >= 0 && !quality;
  double reference = t->comparison.b.estimate, loss = s->goal.max_quality_loss;
  t->better = quality ? shown(difference) > 0
                      : (limit && below->high < -loss) || is_cheaper(s, t, alike, reference + shown(difference));
  t->may_be_better = t->better || (limit && below->low < -loss) ||
                     (quality ? difference->high > 0 : is_cheaper(s, t, alike, reference + difference->high));
}

/* The reference with a finalist's exact fields. */
static int estimate_alike(pst_optimizer_state *s, int class_index, pst_optimizer_estimate *ret, pst_error *err) {
  int r = s->reference;
  *ret = s->reference_estimate;
  if ((size_t)r == s->space->n_classes) return 0;
  pst_optimizer_choice c = s->reference_choice;
  if (!pst_optimizer_has_engine(s->space, &c) || !pst_optimizer_has_engine(s->space, &s->best_exact[class_index]))
    return 0;
  memcpy(c.v + PST_OPTIMIZER_N_LOSSY, s->best_exact[class_index].v + PST_OPTIMIZER_N_LOSSY,
         PST_OPTIMIZER_N_AXES - PST_OPTIMIZER_N_LOSSY);
  return pst_optimizer_replay_class(s, r, &c, ret, err);
}

/* Pairs a class with the best plan found; a plan is not below itself, however few the items are. */
static void pair_with_best(const pst_optimizer_state *s, int class_index, int best, pst_evals_comparison *ret) {
  pst_optimizer_pair(&s->verify[class_index], &s->verify[best], s->goal.max_quality_loss, ret);
  if (class_index == best) ret->difference = (pst_evals_interval){0, 0, 0};
}

static void judge(const pst_optimizer_state *s, const pst_optimizer_verification *v, pst_optimizer_trial *t,
                  const pst_optimizer_estimate *alike) {
  pst_optimizer_pair(&s->verify[t->class_index], &s->verify[s->reference], s->goal.margin, &t->comparison);
  const pst_optimizer_estimate *e = &s->estimates[t->class_index];
  double q = t->comparison.a.estimate;
  t->asked = true;
  t->same_answers = t->class_index == s->reference;
  if (t->same_answers) { /* token for token: no matter how few the items are, it is not worse */
    t->comparison.difference = (pst_evals_interval){0, 0, 0};
    t->comparison.detectable = 0;
    t->comparison.non_inferior = PST_EVALS_YES;
  }
  t->floor_holds = q >= s->goal.quality_floor;
  if (v->best >= 0) pair_with_best(s, t->class_index, v->best, &t->against_best);
  t->loss_holds = v->best < 0 || t->against_best.difference.estimate >= -s->goal.max_quality_loss;
  t->ceiling_holds = pst_optimizer_is_cheap_enough(s, e->request_nusd, q);
  if (t->same_answers)
    t->better = t->may_be_better = true;
  else
    find_better(s, v, t, alike);
  t->passed =
      t->floor_holds && t->loss_holds && t->ceiling_holds && t->better && t->comparison.non_inferior == PST_EVALS_YES;
}

/* More items might let it pass: neither its difference nor its distance to a floor is settled against it, and it is, or may be, better. */
static bool undecided(const pst_optimizer_state *s, const pst_optimizer_trial *t) {
  bool loss_may_hold = t->loss_holds || t->against_best.difference.high >= -s->goal.max_quality_loss;
  return t->ceiling_holds && t->comparison.a.high >= s->goal.quality_floor && loss_may_hold && t->may_be_better &&
         t->comparison.non_inferior != PST_EVALS_NO;
}

static const char *const no_time = "the time was spent";

/* Why a further finalist is not asked; NULL: it is. The first is always asked: a verdict rests on it. */
static const char *why_not(const pst_optimizer_state *s, int class_index, int n) {
  double spent = (double)s->journal->elapsed_us / 1e6, needed = pst_optimizer_seconds(s, class_index, n);
  double high = pst_optimizer_belief_interval(s->beliefs[class_index], C(confidence)).high;
  if (high < s->goal.quality_floor) return "by its search items it does not reach the floor";
  if (high < s->loss_floor) return "by its search items it lies too far below the best plan";
  return spent + needed > C(verify_overrun) * s->budget_s ? no_time : NULL;
}

/* The prompted class that the search makes the most of, asked or not: where something learned is far ahead, it asks few of them. -1: there is none. */
static int best_prompted(const pst_optimizer_state *s) {
  int best = -1;
  double most = 0;
  for (size_t i = 0; i < s->space->n_classes; i++) {
    if (s->estimates[i].capacity <= 0 || !pst_optimizer_is_prompted(s->space, &s->space->classes[i])) continue;
    double u = pst_optimizer_expected_utility(s, &s->estimates[i], s->beliefs[i]);
    if (best >= 0 && u <= most) continue;
    best = (int)i;
    most = u;
  }
  return best;
}

static int compare_with_prompted(pst_optimizer_state *s, pst_optimizer_verification *v, pst_error *err) {
  int taken = v->trials[v->taken].class_index, best = best_prompted(s);
  if (best < 0 || pst_optimizer_is_prompted(s->space, &s->space->classes[taken])) return 0;
  double left = C(verify_overrun) * s->budget_s - (double)s->journal->elapsed_us / 1e6;
  double fit = 1000 * left / pst_optimizer_seconds(s, best, 1000);
  int asked = s->verify[best].n, n = fit < v->n_items ? PST_MAX((int)fit, asked) : v->n_items;
  if (n < LEAST_ITEMS && n < v->n_items) return 0;
  if (s->world->note) s->world->note(s->world->state, "verify: the best prompted plan, to compare with");
  int code = pst_optimizer_choose_exact(s, best, err);
  if (!code) code = pst_optimizer_measure(s, best, true, n, err);
  if (code) return code;
  v->prompted = best;
  pst_optimizer_pair(&s->verify[taken], &s->verify[best], s->goal.margin, &v->against_prompted);
  return 0;
}

/* With the lengths of the answers that it gave to the held-back items, as finalists will be. */
static int estimate_reference(pst_optimizer_state *s, pst_error *err) {
  int r = s->reference;
  if ((size_t)r == s->space->n_classes) return 0;
  int code = pst_optimizer_replay_class(s, r, &s->reference_choice, &s->reference_estimate, err);
  return code ? code : pst_optimizer_replay_class(s, r, &s->best_exact[r], &s->estimates[r], err);
}

/* What is the measure for all trials: the reference, and the best plan found where the goal limits what may be lost against it. */
static int ask_measures(pst_optimizer_state *s, pst_optimizer_verification *v, pst_error *err) {
  if (s->world->note) s->world->note(s->world->state, "verify: the reference plan on held-back items");
  int code = pst_optimizer_measure(s, s->reference, true, v->n_items, err);
  if (!code) code = estimate_reference(s, err);
  v->best = s->finest;
  if (v->best < 0 || code) return code;
  if (s->world->note) s->world->note(s->world->state, "verify: the best plan found");
  code = pst_optimizer_measure(s, v->best, true, v->n_items, err);
  if (!code) pair_with_best(s, s->reference, v->best, &v->reference_against_best);
  return code;
}

int pst_optimizer_verify(pst_optimizer_state *s, const int *finalists, size_t n_finalists,
                         pst_optimizer_verification *ret, pst_error *err) {
  pst_optimizer_verification v;
  memset(&v, 0, sizeof v);
  v.taken = v.prompted = v.best = -1;
  v.n_trials = PST_MIN(n_finalists, (size_t)PST_OPTIMIZER_MAX_FINALISTS);
  for (size_t i = 0; i < v.n_trials; i++) v.trials[i].class_index = finalists[i];
  bool inconclusive = false;
  int code = 0;
  if (v.n_trials) {
    v.n_items = choose_n(s, finalists, n_finalists);
    code = count_use(s, &v.uses, err);
    if (!code) code = ask_measures(s, &v, err);
  }
  for (size_t i = 0; i < v.n_trials && !code; i++) {
    v.trials[i].why_not = v.taken >= 0 ? "an earlier one passed"
                          : i          ? why_not(s, v.trials[i].class_index, v.n_items)
                                       : NULL;
    inconclusive |= v.trials[i].why_not == no_time;
    if (v.trials[i].why_not) continue;
    if (s->world->note) s->world->note(s->world->state, i ? "verify: the next finalist" : "verify: the first finalist");
    code = pst_optimizer_measure(s, v.trials[i].class_index, true, v.n_items, err);
    int c = v.trials[i].class_index;
    if (!code) code = pst_optimizer_replay_class(s, c, &s->best_exact[c], &s->estimates[c], err);
    pst_optimizer_estimate alike;
    if (!code) code = estimate_alike(s, c, &alike, err);
    if (code) break;
    judge(s, &v, &v.trials[i], &alike);
    inconclusive |= undecided(s, &v.trials[i]);
    if (v.trials[i].passed) v.taken = (int)i;
  }
  if (!code && v.taken >= 0) code = compare_with_prompted(s, &v, err);
  v.verdict = v.taken >= 0 ? PST_OPTIMIZER_FOUND : inconclusive ? PST_OPTIMIZER_NOT_ENOUGH_DATA : PST_OPTIMIZER_NONE;
  if (!code) *ret = v;
  return code;
}
