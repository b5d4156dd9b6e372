/* Verification (verify.h). Whom it asks how many items is fixed before the first answer comes, by the time left and by what the search believes, and never by what
 * answers say: looking and stopping would spoil the interval. Where the search sees a plan far behind, few items show that, and time that it would take to know to the
 * last digit how far is better spent. What the search got wrong costs power then, never an error of the verdict: an interval over few items is a wide one. A second
 * look at the same part is no longer a first one, so those before are counted. */
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

/* The objective as it was measured on a's items, one after the other. */
static double objective_measured(const pst_optimizer_state *s, const pst_optimizer_answers *a, double q) {
  if (!strcmp(s->goal.objective, "latency")) return a->busy_ms / a->n;
  return per_accepted(pst_optimizer_measured_nusd(s, a), q);
}

/* That of a reference whose work no class does, so that nothing is estimated. */
static double objective_of_measured(const pst_optimizer_state *s, const pst_optimizer_answers *a, double q) {
  bool holds = q >= s->goal.quality_floor && pst_optimizer_is_cheap_enough(s, pst_optimizer_measured_nusd(s, a), q);
  return holds ? objective_measured(s, a, q) : INFINITY;
}

/* Not to be worse is not enough to take a plan's place: what changes nothing (an adapter that learned nothing, say) would wander in. The reference counts at its
 * best, with whatever exact fields serve it best (`alike`: with the finalist's): those are no merit of the finalist. q: the finalist's quality. */
static bool is_cheaper(const pst_optimizer_state *s, const pst_optimizer_trial *t, const pst_optimizer_estimate *alike,
                       double q) {
  int r = s->reference_work;
  double reference = t->comparison.b.estimate;
  if (r < 0)
    return objective_measured(s, &s->verify[t->class_index], q) <
           objective_of_measured(s, &s->verify[s->reference], reference);
  double own = objective_at(s, &s->estimates[t->class_index], fmin(q, 1));
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
  int r = s->reference_work;
  *ret = s->reference_estimate;
  if (r < 0) return 0;
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
  const pst_optimizer_answers *own = &s->verify[t->class_index];
  t->quality = pst_evals_wilson(own->k, own->n, C(confidence));
  double q = t->quality.estimate;
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
  return t->ceiling_holds && t->quality.high >= s->goal.quality_floor && loss_may_hold && t->may_be_better &&
         t->comparison.non_inferior != PST_EVALS_NO;
}

/* ---- how many items ---- */

/* What the search believes of a class's quality; of a reference outside the space, what its answers say. */
static pst_evals_interval believed(const pst_optimizer_state *s, int i) {
  const pst_optimizer_answers *a = &s->search[i];
  return (size_t)i < s->space->n_classes ? pst_optimizer_belief_interval(s->beliefs[i], C(confidence))
                                         : pst_evals_wilson(a->k, a->n, C(confidence));
}

/* Items that show a's lead over b to exceed `least`, at the near ends of what is believed of both; INFINITY: as many as there are. */
static double items_for(const pst_optimizer_state *s, int a, int b, double least) {
  double high = believed(s, a).low, low = believed(s, b).high;
  double n = pst_evals_items_needed(high - low, least, high * (1 - low) + low * (1 - high), 1 - C(confidence),
                                    C(verify_power));
  return fmax(C(verify_safety) * n, LEAST_ITEMS);
}

/* The lead over the reference that makes a finalist better by the objective: a dearer plan must be right more often. INFINITY: none does. */
static double lead_wanted(const pst_optimizer_state *s, int finalist) {
  int r = s->reference_work;
  if (!strcmp(s->goal.objective, "quality")) return 0;
  double q = believed(s, s->reference).high;
  double reference = r < 0 ? objective_of_measured(s, &s->search[s->reference], q)
                           : fmin(objective_of_reference(s, &s->reference_estimate, q),
                                  objective_of_reference(s, &s->estimates[r], q));
  double own = r < 0 ? objective_measured(s, &s->search[finalist], 1) : objective_at(s, &s->estimates[finalist], 1);
  if (!strcmp(s->goal.objective, "latency")) return own < reference ? 0 : INFINITY;
  return fmax(own / reference - q, 0); /* own / (q + lead) < reference */
}

/* Items that the reference is asked beside a finalist: they show that this is not worse, and that it is better, whichever way shows that first. */
static double reference_items(const pst_optimizer_state *s, int finalist) {
  int r = s->reference;
  if (finalist == r || s->finest == r) return INFINITY; /* it is asked as such */
  double better = items_for(s, finalist, r, lead_wanted(s, finalist));
  bool limit = s->finest >= 0 && strcmp(s->goal.objective, "quality") != 0;
  if (limit) better = fmin(better, items_for(s, s->finest, r, s->goal.max_quality_loss));
  return fmax(better, items_for(s, finalist, r, 0));
}

/* Whom to ask how many items, as far as those of a part go round. */
typedef struct quotas {
  struct {
    int class_index;
    double n;
  } list[4];
  size_t n;
} quotas;

static void add_quota(quotas *q, int class_index, double n) {
  size_t i = 0;
  while (i < q->n && q->list[i].class_index != class_index) i++;
  q->list[i].class_index = class_index;
  q->list[i].n = i < q->n ? fmax(q->list[i].n, n) : n;
  q->n = PST_MAX(q->n, i + 1);
}

static void set_quota(quotas *q, int class_index, double n) {
  for (size_t i = 0; i < q->n; i++)
    if (q->list[i].class_index == class_index) q->list[i].n = n;
}

/* With at most n items for each. */
static double seconds_of(const pst_optimizer_state *s, const quotas *q, int n) {
  double sum = 0;
  for (size_t i = 0; i < q->n; i++) sum += pst_optimizer_seconds(s, q->list[i].class_index, (int)fmin(q->list[i].n, n));
  return sum;
}

static double payment_of(const pst_optimizer_state *s, const quotas *q, int n) {
  double sum = 0;
  for (size_t i = 0; i < q->n; i++) sum += pst_optimizer_payment(s, q->list[i].class_index, (int)fmin(q->list[i].n, n));
  return sum;
}

static bool is_paid(const pst_optimizer_state *s, double payment) {
  return payment <= 0 || (!s->broke && s->spent_nusd + payment <= C(paid_share) * s->money_nusd);
}

/* Whether so many seconds more end within what a run may go on for. */
static bool fits(const pst_optimizer_state *s, double seconds) {
  return pst_optimizer_elapsed_s(s) + seconds <= C(verify_overrun) * s->budget_s;
}

static const char *const no_time = "the time was spent";
static const char *const no_money = "the money for providers does not cover it";

/* How many items the best prompted plan is asked, so that what was learned is compared with it. Its time is planned for where the first finalist is a learned one; behind
 * a prompted one such a plan is asked late, if at all. */
static void plan_prompted(const pst_optimizer_state *s, pst_optimizer_verification *v, quotas *q) {
  double left = s->budget_s - pst_optimizer_elapsed_s(s);
  int learned = -1, least = PST_MIN(LEAST_ITEMS, (int)s->n_verify);
  for (size_t i = v->n_trials; i-- > 0;)
    if (!pst_optimizer_is_prompted_class(s, (size_t)v->trials[i].class_index)) learned = (int)i;
  v->prompted = pst_optimizer_best_prompted(s, true);
  if (v->prompted < 0) v->prompted = pst_optimizer_best_prompted(s, false);
  if (v->prompted < 0) v->why_not_prompted = "no plan of prompted models keeps the goal's limit of time";
  if (v->prompted < 0 || learned < 0) return;
  double n = fmax(items_for(s, v->trials[learned].class_index, v->prompted, 0), C(baseline_items));
  double fit = 1000 * C(baseline_time) * left / pst_optimizer_seconds(s, v->prompted, 1000);
  v->n_prompted = (int)fmax(fmin(fmin(n, (double)s->n_verify), fit), least);
  quotas with = *q;
  add_quota(&with, v->prompted, v->n_prompted);
  if (!fits(s, seconds_of(s, &with, least)) || !is_paid(s, payment_of(s, &with, least)))
    v->n_prompted = 0;
  else if (learned == 0)
    *q = with;
}

/* As many items for the finalists as the time left allows beside the measures, at least LEAST_ITEMS, at most all; where providers cannot be paid for as many, nobody is asked. */
static void plan_items(const pst_optimizer_state *s, pst_optimizer_verification *v) {
  quotas q = {.n = 0};
  int first = v->trials[0].class_index, all = (int)s->n_verify;
  add_quota(&q, first, INFINITY);
  add_quota(&q, s->reference, reference_items(s, first));
  if (s->finest >= 0) add_quota(&q, s->finest, INFINITY);
  plan_prompted(s, v, &q);
  double left = 0.95 * (s->budget_s - pst_optimizer_elapsed_s(s));
  int least = PST_MIN(LEAST_ITEMS, all), low = least, high = all; /* low fits, or is asked all the same */
  while (low < high) {
    int middle = low + (high - low + 1) / 2;
    if (seconds_of(s, &q, middle) <= left)
      low = middle;
    else
      high = middle - 1;
  }
  if (pst_optimizer_payment(s, first, 1) > 0)
    while (low >= least && !is_paid(s, payment_of(s, &q, low))) low--;
  v->n_items = v->n_best = low;
  while (v->n_best >= least && s->finest >= 0 && s->finest != first && !is_paid(s, payment_of(s, &q, low)))
    set_quota(&q, s->finest, --v->n_best);
  if (v->n_best < least || !is_paid(s, payment_of(s, &q, low))) v->n_items = v->n_best = 0; /* the money stays */
  for (size_t i = 0; i < v->n_trials; i++)
    v->trials[i].n_reference = (int)fmin(reference_items(s, v->trials[i].class_index), v->n_items);
  v->n_prompted = PST_MIN(v->n_prompted, v->n_items);
}

/* Seconds that asking a class up to n held-back items still takes. */
static double seconds_left(const pst_optimizer_state *s, int class_index, int n) {
  int more = n - s->verify[class_index].n;
  return more > 0 ? pst_optimizer_seconds(s, class_index, more) : 0;
}

static double payment_left(const pst_optimizer_state *s, int class_index, int n) {
  return pst_optimizer_payment(s, class_index, PST_MAX(n - s->verify[class_index].n, 0));
}

/* Why a further finalist is not asked; NULL: it is. The first is always asked: a verdict rests on it. */
static const char *why_not(const pst_optimizer_state *s, const pst_optimizer_verification *v,
                           const pst_optimizer_trial *t) {
  double needed = seconds_left(s, t->class_index, v->n_items) + seconds_left(s, s->reference, t->n_reference);
  if (v->n_prompted && !pst_optimizer_is_prompted_class(s, (size_t)t->class_index))
    needed += seconds_left(s, v->prompted, v->n_prompted);
  const char *hopeless = pst_optimizer_why_hopeless(s, t->class_index);
  if (hopeless) return hopeless;
  if (!is_paid(s, payment_left(s, t->class_index, v->n_items) + payment_left(s, s->reference, t->n_reference)))
    return no_money;
  return fits(s, needed) ? NULL : no_time;
}

/* ---- asking ---- */

static void note(const pst_optimizer_state *s, const char *text) {
  if (s->world->note) s->world->note(s->world->state, text);
}

/* With the lengths of its answers to these items, as finalists are estimated. */
static int compare_with_prompted(pst_optimizer_state *s, pst_optimizer_verification *v, pst_error *err) {
  int taken = v->trials[v->taken].class_index, best = v->prompted;
  if (pst_optimizer_is_prompted_class(s, (size_t)taken))
    v->why_not_prompted = "the plan taken is a prompted one itself";
  if (v->why_not_prompted) return 0;
  int least = PST_MIN(LEAST_ITEMS, v->n_items);
  /* What was planned for may have taken less time than it was expected to: that is no matter of what was answered. */
  bool paid = is_paid(s, payment_left(s, best, v->n_prompted ? v->n_prompted : least));
  if (!v->n_prompted && fits(s, seconds_left(s, best, least))) v->n_prompted = least;
  if (!v->n_prompted || !paid) {
    v->why_not_prompted = paid ? "the time left was too short for it" : no_money;
    return 0;
  }
  note(s, "verify: the best prompted plan, to compare with");
  int code = pst_optimizer_choose_exact(s, best, err);
  if (!code) code = pst_optimizer_measure(s, best, true, v->n_prompted, err);
  if (!code && !s->verify[best].n) v->why_not_prompted = no_money;
  if (v->why_not_prompted) return code;
  if (!code) code = pst_optimizer_replay_class(s, best, &s->best_exact[best], &s->estimates[best], err);
  if (!code) pst_optimizer_pair(&s->verify[taken], &s->verify[best], s->goal.margin, &v->against_prompted);
  return code;
}

/* As many items as a finalist is to be paired with it on; estimated with the lengths of its answers to them, as finalists will be. */
static int ask_reference(pst_optimizer_state *s, int n, pst_error *err) {
  int r = s->reference_work;
  if (s->verify[s->reference].n >= n) return 0;
  note(s, "verify: the reference plan on held-back items");
  int code = pst_optimizer_measure(s, s->reference, true, n, err);
  if (code || r < 0) return code;
  code = pst_optimizer_replay_class(s, r, &s->reference_choice, &s->reference_estimate, err);
  return code ? code : pst_optimizer_replay_class(s, r, &s->best_exact[r], &s->estimates[r], err);
}

/* The best plan found, where the goal limits what may be lost against it. */
static int ask_best(pst_optimizer_state *s, pst_optimizer_verification *v, pst_error *err) {
  v->best = s->finest;
  if (v->best < 0) return 0;
  note(s, "verify: the best plan found");
  return pst_optimizer_measure(s, v->best, true, v->n_best, err);
}

/* Whether one of those that a verdict rests on was asked too few items for want of money: floors count by estimates. */
static bool is_unpaid(const pst_optimizer_state *s, const pst_optimizer_verification *v, int class_index) {
  int least = PST_MIN(LEAST_ITEMS, (int)s->n_verify);
  return s->verify[class_index].n < least || s->verify[s->reference].n < least ||
         (v->best >= 0 && s->verify[v->best].n < least);
}

static int try_finalist(pst_optimizer_state *s, pst_optimizer_verification *v, pst_optimizer_trial *t, pst_error *err) {
  int c = t->class_index, code = ask_reference(s, t->n_reference, err);
  pst_optimizer_estimate alike;
  if (!code && v->best >= 0) pair_with_best(s, s->reference, v->best, &v->reference_against_best);
  if (!code) note(s, t == v->trials ? "verify: the first finalist" : "verify: the next finalist");
  if (!code) code = pst_optimizer_measure(s, c, true, v->n_items, err);
  if (!code && is_unpaid(s, v, c)) t->why_not = no_money;
  if (t->why_not) return code;
  if (!code) code = pst_optimizer_replay_class(s, c, &s->best_exact[c], &s->estimates[c], err);
  if (!code) code = estimate_alike(s, c, &alike, err);
  if (!code) judge(s, v, t, &alike);
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
    plan_items(s, &v);
    code = count_use(s, &v.uses, err);
    if (!code) code = ask_reference(s, v.trials[0].n_reference, err);
    if (!code) code = ask_best(s, &v, err);
  }
  for (size_t i = 0; i < v.n_trials && !code; i++) {
    pst_optimizer_trial *t = &v.trials[i];
    t->why_not = v.taken >= 0 ? "an earlier one passed" : i ? why_not(s, &v, t) : NULL;
    if (!t->why_not) code = try_finalist(s, &v, t, err);
    if (code) break;
    inconclusive |= t->why_not ? t->why_not == no_time || t->why_not == no_money : undecided(s, t);
    if (t->passed) v.taken = (int)i;
  }
  if (!code && v.taken >= 0) code = compare_with_prompted(s, &v, err);
  v.verdict = v.taken >= 0 ? PST_OPTIMIZER_FOUND : inconclusive ? PST_OPTIMIZER_NOT_ENOUGH_DATA : PST_OPTIMIZER_NONE;
  if (!code) *ret = v;
  return code;
}
