/* Writes the evidence document (evidence.h). Owns its shape; explain.c, report.c and the page's script read it. Costs in it are nano-dollars per 1,000 accepted
 * answers where the name says per_1000, else per request. */
#include "optimizer/evidence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "optimizer/constants.h"

#define C PST_OPTIMIZER_CONST

/* Shown figures only: four significant digits and more than enough. */
static void put_rounded(pst_json_writer *w, double value) {
  if (!isfinite(value) || value == 0) {
    pst_json_put_double(w, value);
    return;
  }
  double unit = pow(10, floor(log10(fabs(value))) - 4);
  char text[40];
  snprintf(text, sizeof text, "%.5g", round(value / unit) * unit);
  double rounded = value;
  (void)pst_parse_double(pst_str_from(text), &rounded);
  pst_json_put_double(w, rounded);
}

static void put_interval(pst_json_writer *w, const char *key, pst_evals_interval i) {
  pst_json_key(w, key);
  pst_json_begin_array(w);
  put_rounded(w, i.estimate);
  put_rounded(w, i.low);
  put_rounded(w, i.high);
  pst_json_end_array(w);
}

static void put_choice(pst_json_writer *w, const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  pst_json_key(w, "choice");
  pst_json_begin_object(w);
  int n = pst_optimizer_has_engine(s, c) ? PST_OPTIMIZER_N_AXES : PST_OPTIMIZER_N_LOSSY;
  for (int a = pst_optimizer_is_alone(s, c) ? PST_OPTIMIZER_CLASSIFIER : 0; a < n; a++)
    pst_json_member_cstr(w, s->axes[a].name, s->axes[a].values[c->v[a]]);
  pst_json_end_object(w);
}

static void put_estimate(pst_json_writer *w, const char *key, const pst_optimizer_estimate *e) {
  pst_json_key(w, key);
  pst_json_begin_object(w);
  const struct {
    const char *name;
    double value;
  } rows[] = {{"capacity_rps", e->capacity},
              {"saturated_rps", e->saturated},
              {"load_rps", e->load},
              {"relative_error", e->error},
              {"ttft_p50_ms", e->ttft_p50_ms},
              {"ttft_p95_ms", e->ttft_p95_ms},
              {"total_p50_ms", e->total_p50_ms},
              {"total_p95_ms", e->total_p95_ms},
              {"idle_ttft_ms", e->idle_ttft_ms},
              {"idle_total_ms", e->idle_total_ms},
              {"tokens_per_second", e->tokens_per_second},
              {"prompt_tokens", e->prompt_tokens},
              {"cached_tokens", e->cached_tokens},
              {"completion_tokens", e->completion_tokens},
              {"request_nusd", e->request_nusd}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    pst_json_key(w, rows[i].name);
    put_rounded(w, rows[i].value);
  }
  pst_json_member_cstr(w, "from", e->replayed ? "replay" : "formula");
  pst_json_end_object(w);
}

/* Cost of 1,000 accepted answers, with the extremes of speed and quality together. */
static double per_1000(double request_nusd, double q) { return q > 0 ? 1000 * request_nusd / q : INFINITY; }

static void put_cost(pst_json_writer *w, const pst_optimizer_estimate *e, pst_evals_interval q) {
  pst_evals_interval cost = {per_1000(e->request_nusd, q.estimate), per_1000(e->request_nusd / (1 + e->error), q.high),
                             per_1000(e->request_nusd * (1 + e->error), q.low)};
  put_interval(w, "nusd_per_1000_accepted", cost);
}

static void put_answers(pst_json_writer *w, const char *key, const pst_optimizer_answers *a) {
  pst_json_key(w, key);
  if (!a->n) {
    pst_json_put_null(w);
    return;
  }
  pst_json_begin_object(w);
  pst_json_member_int(w, "n", a->n);
  pst_json_member_int(w, "accepted", a->k);
  put_interval(w, "quality", pst_evals_wilson(a->k, a->n, C(confidence)));
  pst_json_member_double(w, "prompt_tokens", a->prompt / a->n);
  pst_json_member_double(w, "cached_tokens", a->cached / a->n);
  pst_json_member_double(w, "completion_tokens", a->completion / a->n);
  pst_json_member_double(w, "answer_ms", a->busy_ms / a->n);
  pst_json_member_double(w, "wall_s", a->wall_us / 1e6);
  pst_json_member_int(w, "failed", a->n_failed);
  pst_json_end_object(w);
}

static void put_comparison(pst_json_writer *w, const char *key, const pst_evals_comparison *c) {
  pst_json_key(w, key);
  pst_json_begin_object(w);
  pst_json_member_int(w, "n", c->n);
  pst_json_member_int(w, "both", c->n11);
  pst_json_member_int(w, "only_plan", c->n10);
  pst_json_member_int(w, "only_reference", c->n01);
  pst_json_member_int(w, "neither", c->n00);
  put_interval(w, "plan", c->a);
  put_interval(w, "reference", c->b);
  put_interval(w, "difference", c->difference);
  pst_json_member_double(w, "mcnemar_mid_p", c->mid_p);
  pst_json_member_double(w, "detectable", c->detectable);
  pst_json_member_double(w, "margin", c->margin);
  pst_json_member_cstr(w, "non_inferior",
                       c->non_inferior == PST_EVALS_YES  ? "yes"
                       : c->non_inferior == PST_EVALS_NO ? "no"
                                                         : "not_enough_data");
  pst_json_end_object(w);
}

static void put_setting(pst_json_writer *w, const pst_optimizer_outcome *o) {
  const pst_optimizer_state *s = o->state;
  const pst_evals_info *info = s->space->workload;
  size_t parts[PST_EVALS_PART_COUNT] = {0};
  for (size_t i = 0; i < info->n_items; i++) parts[info->items[i].part]++;
  pst_json_key(w, "workload");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "name", info->name);
  pst_json_member_cstr(w, "description", info->description);
  char *folder = realpath(info->folder, NULL); /* explain finds it from anywhere */
  pst_json_member_cstr(w, "folder", folder ? folder : info->folder);
  free(folder);
  pst_json_member_cstr(w, "fingerprint", info->fingerprint);
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++)
    pst_json_member_int(w, pst_evals_part_name((pst_evals_part)i), (int64_t)parts[i]);
  pst_json_member_int(w, "labels", (int64_t)info->n_labels);
  pst_json_member_int(w, "arrivals", (int64_t)s->speed->n_arrivals);
  pst_json_member_bool(w, "has_trace", s->speed->has_trace);
  pst_json_member_double(w, "monthly_requests", s->monthly);
  pst_json_end_object(w);
  pst_json_key(w, "goal");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "objective", s->goal.objective);
  pst_json_member_double(w, "quality_floor", s->goal.quality_floor);
  if (s->goal.max_quality_loss > 0) pst_json_member_double(w, "max_quality_loss", s->goal.max_quality_loss);
  pst_json_member_double(w, "margin", s->goal.margin);
  pst_json_member_double(w, "latency_p95_ms", s->goal.latency_p95_ms);
  pst_json_member_int(w, "cost_ceiling_nusd", s->goal.cost_ceiling_nusd);
  pst_json_end_object(w);
  struct utsname host;
  pst_json_key(w, "machine");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "system", uname(&host) == 0 ? host.sysname : "");
  pst_json_member_cstr(w, "architecture", uname(&host) == 0 ? host.machine : "");
  pst_json_member_int(w, "threads", o->threads);
  pst_json_member_int(w, "nusd_per_hour", s->speed->price_nusd_per_hour);
  pst_json_end_object(w);
}

static void put_space(pst_json_writer *w, const pst_optimizer_state *s) {
  const pst_optimizer_space *space = s->space;
  pst_json_key(w, "space");
  pst_json_begin_object(w);
  pst_json_member_int(w, "plans", space->n_plans);
  pst_json_member_int(w, "classes", (int64_t)space->n_classes);
  pst_json_member_int(w, "exact", (int64_t)space->n_exact);
  pst_json_member_int(w, "refused", space->n_refused);
  pst_json_member_int(w, "pruned", (int64_t)s->n_pruned);
  pst_json_key(w, "axes");
  pst_json_begin_array(w);
  for (int a = 0; a < PST_OPTIMIZER_N_AXES; a++) {
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "name", space->axes[a].name);
    pst_json_member_cstr(w, "class", a < PST_OPTIMIZER_N_LOSSY ? "lossy" : "exact");
    pst_json_key(w, "values");
    pst_json_begin_array(w);
    for (int v = 0; v < space->axes[a].n; v++) pst_json_put_cstr(w, space->axes[a].values[v]);
    pst_json_end_array(w);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
  pst_json_key(w, "models");
  pst_json_begin_array(w);
  for (int m = 0; m < space->axes[PST_OPTIMIZER_MODEL].n; m++) {
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "name", space->targets[m].name);
    pst_json_member_cstr(w, "sha256", space->targets[m].sha256);
    if (space->targets[m].adapter) pst_json_member_cstr(w, "adapter", space->targets[m].adapter);
    pst_json_member_cstr(w, "weights", space->targets[m].weights);
    pst_json_member_bool(w, "remote", space->targets[m].provider != NULL);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
  pst_json_end_object(w);
}

/* Who is on the front: no other measured class is both cheaper per accepted answer and better. */
static bool on_front(const pst_optimizer_state *s, size_t i) {
  const pst_optimizer_answers *a = &s->search[i];
  double q = (double)a->k / a->n, cost = s->estimates[i].request_nusd / fmax(q, 1e-6);
  for (size_t j = 0; j < s->space->n_classes; j++) {
    const pst_optimizer_answers *b = &s->search[j];
    if (j == i || !b->n) continue;
    double other = (double)b->k / b->n, other_cost = s->estimates[j].request_nusd / fmax(other, 1e-6);
    if (other >= q && other_cost <= cost && (other > q || other_cost < cost)) return false;
  }
  return isfinite(cost) && a->k > 0;
}

static void put_measured(pst_json_writer *w, const pst_optimizer_state *s) {
  pst_json_key(w, "measured");
  pst_json_begin_array(w);
  for (size_t i = 0; i < s->space->n_classes; i++) {
    const pst_optimizer_answers *a = &s->search[i];
    if (!a->n) continue;
    pst_evals_interval q = pst_evals_wilson(a->k, a->n, C(confidence));
    pst_json_begin_object(w);
    pst_json_member_int(w, "class", (int64_t)i);
    pst_buf name = PST_BUF_INIT;
    pst_optimizer_class_name(s->space, &s->space->classes[i], &name);
    pst_json_member_cstr(w, "name", pst_buf_text(&name));
    pst_buf_done(&name);
    put_choice(w, s->space, &s->best_exact[i]);
    pst_json_member_int(w, "n", a->n);
    pst_json_member_int(w, "accepted", a->k);
    put_interval(w, "quality", q);
    put_interval(w, "believed", pst_optimizer_belief_interval(s->beliefs[i], C(confidence)));
    put_cost(w, &s->estimates[i], q);
    pst_json_member_double(w, "total_p95_ms", s->estimates[i].replayed ? s->estimates[i].total_p95_ms : NAN);
    pst_json_member_bool(w, "replayed", s->estimates[i].replayed);
    pst_json_member_bool(w, "front", on_front(s, i));
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
  /* The rest as it is believed to be: [cost, quality] pairs for the page's background, pruned ones left out. */
  pst_json_key(w, "believed");
  pst_json_begin_array(w);
  for (size_t i = 0; i < s->space->n_classes; i++) {
    if (s->search[i].n || !isfinite(s->estimates[i].request_nusd)) continue;
    double q = pst_optimizer_logistic(s->beliefs[i].mean);
    pst_json_begin_array(w);
    put_rounded(w, 1000 * s->estimates[i].request_nusd / fmax(q, 1e-6));
    put_rounded(w, q);
    pst_json_put_int(w, s->pruned[i]);
    pst_json_end_array(w);
  }
  pst_json_end_array(w);
}

/* What the search asked of a plan's quality in the end, and which of its three sources asked most. */
static void put_floor(pst_json_writer *w, const pst_optimizer_state *s) {
  const char *from = s->loss_floor > s->floor ? "best" : s->floor > s->goal.quality_floor ? "reference" : "goal";
  pst_json_key(w, "floor");
  pst_json_begin_object(w);
  pst_json_key(w, "quality");
  put_rounded(w, fmax(s->floor, s->loss_floor));
  pst_json_member_cstr(w, "from", from);
  if (s->finest >= 0) {
    pst_buf name = PST_BUF_INIT;
    pst_optimizer_class_name(s->space, &s->space->classes[s->finest], &name);
    pst_json_member_cstr(w, "best", pst_buf_text(&name));
    pst_buf_done(&name);
    put_interval(w, "best_quality", pst_optimizer_belief_interval(s->beliefs[s->finest], C(confidence)));
  }
  pst_json_end_object(w);
}

/* A finalist's distance to the best plan found, where the goal limits it. */
static void put_loss(pst_json_writer *w, const pst_optimizer_state *s, const pst_optimizer_trial *t) {
  const pst_evals_interval *d = &t->against_best.difference;
  put_comparison(w, "against_best", &t->against_best); /* "reference": the best plan found */
  pst_json_member_bool(w, "loss_holds", t->loss_holds);
  pst_json_member_bool(w, "loss_holds_by_interval", d->low >= -s->goal.max_quality_loss);
  pst_json_member_bool(w, "loss_missed_by_interval", d->high < -s->goal.max_quality_loss);
}

/* A cost as a part of another, in words: "a fifth", "a 12th"; nothing above 0.6 of it, nor below a thousandth. */
static void put_part(pst_json_writer *w, double ratio) {
  static const char *const small[] = {"half", "a third", "a quarter", "a fifth"};
  if (!(ratio >= 0.001 && ratio < 0.6)) return;
  int n = (int)round(1 / ratio), teens = n % 100;
  const char *end = "th";
  if (teens < 11 || teens > 13) end = n % 10 == 1 ? "st" : n % 10 == 2 ? "nd" : n % 10 == 3 ? "rd" : "th";
  bool eight = n == 8 || n / 10 == 8 || n / 100 == 8; /* an eighth, an 81st, an 800th */
  char text[40];
  (void)snprintf(text, sizeof text, "%s %d%s", eight || n == 11 || n == 18 ? "an" : "a", n, end);
  pst_json_member_cstr(w, "cost_part", n < 6 ? small[n - 2] : text);
}

/* What was learned, against what prompts alone reach. */
static void put_prompted(pst_json_writer *w, const pst_optimizer_outcome *o) {
  const pst_optimizer_state *s = o->state;
  const pst_optimizer_verification *v = o->verification;
  const pst_optimizer_answers *own = &s->verify[o->chosen], *a = &s->verify[v->prompted];
  const pst_optimizer_estimate *e = &s->estimates[v->prompted];
  pst_evals_interval q = pst_evals_wilson(a->k, a->n, C(confidence));
  double ratio = per_1000(o->estimate.request_nusd, (double)own->k / own->n) / per_1000(e->request_nusd, q.estimate);
  pst_buf name = PST_BUF_INIT;
  pst_optimizer_class_name(s->space, &s->space->classes[v->prompted], &name);
  pst_json_key(w, "prompted");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "name", pst_buf_text(&name));
  pst_buf_done(&name);
  put_choice(w, s->space, &s->best_exact[v->prompted]);
  put_answers(w, "search", &s->search[v->prompted]);
  put_answers(w, "verify", a);
  put_estimate(w, "estimate", e);
  put_cost(w, e, q);
  put_comparison(w, "comparison", &v->against_prompted); /* "reference": the prompted plan */
  pst_json_key(
      w, "cost_ratio"); /* per accepted answer, the plan taken's by this one's; 0: none of this one's was accepted */
  put_rounded(w, ratio);
  put_part(w, ratio);
  pst_json_end_object(w);
}

static void put_trials(pst_json_writer *w, const pst_optimizer_outcome *o) {
  const pst_optimizer_state *s = o->state;
  const pst_optimizer_verification *v = o->verification;
  pst_json_key(w, "verification");
  pst_json_begin_object(w);
  pst_json_member_int(w, "n", v->n_items);
  pst_json_member_int(w, "available", (int64_t)s->n_verify);
  pst_json_member_int(w, "asked_before", v->uses);
  pst_json_member_double(w, "confidence", C(confidence));
  put_answers(w, "reference", &s->verify[s->reference]);
  pst_json_key(w, "finalists");
  pst_json_begin_array(w);
  for (size_t i = 0; i < v->n_trials; i++) {
    const pst_optimizer_trial *t = &v->trials[i];
    pst_json_begin_object(w);
    put_choice(w, s->space, &s->best_exact[t->class_index]);
    put_answers(w, "search", &s->search[t->class_index]);
    put_answers(w, "verify", &s->verify[t->class_index]);
    put_estimate(w, "estimate", &s->estimates[t->class_index]);
    put_cost(w, &s->estimates[t->class_index],
             t->asked ? t->quality
                      : pst_evals_wilson(s->search[t->class_index].k, s->search[t->class_index].n, C(confidence)));
    pst_json_member_bool(w, "asked", t->asked);
    pst_json_member_cstr(w, "not_asked", t->why_not);
    if (t->asked) {
      put_comparison(w, "comparison", &t->comparison);
      pst_json_member_bool(w, "same_answers", t->same_answers);
      pst_json_member_bool(w, "floor_holds", t->floor_holds);
      pst_json_member_bool(w, "floor_holds_by_interval", t->quality.low >= s->goal.quality_floor);
      pst_json_member_bool(w, "floor_missed_by_interval", t->quality.high < s->goal.quality_floor);
      if (v->best >= 0) put_loss(w, s, t);
      pst_json_member_bool(w, "ceiling_holds", t->ceiling_holds);
      pst_json_member_bool(w, "better", t->better);
    }
    pst_json_member_bool(w, "passed", t->passed);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
  if (v->best >= 0) {
    pst_json_key(w, "best");
    pst_json_begin_object(w);
    put_choice(w, s->space, &s->best_exact[v->best]);
    put_answers(w, "verify", &s->verify[v->best]);
    pst_json_end_object(w);
  }
  if (v->taken >= 0 && v->why_not_prompted) pst_json_member_cstr(w, "prompted_not_asked", v->why_not_prompted);
  if (v->against_prompted.n) put_prompted(w, o);
  pst_json_end_object(w);
}

static void put_fields(pst_json_writer *w, const pst_optimizer_outcome *o) {
  const pst_optimizer_space *space = o->state->space;
  pst_json_key(w, "fields");
  pst_json_begin_array(w);
  for (size_t i = 0; i < o->n_fields; i++) {
    const pst_optimizer_field *f = &o->fields[i];
    const pst_optimizer_axis *axis = &space->axes[f->axis];
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "field", axis->name);
    pst_json_member_cstr(w, "reference", axis->values[o->state->reference_choice.v[f->axis]]);
    pst_json_member_cstr(w, "plan", axis->values[o->choice.v[f->axis]]);
    pst_json_member_cstr(w, "quality_from",
                         f->class_index < 0                 ? "impossible"
                         : f->axis >= PST_OPTIMIZER_N_LOSSY ? "exact"
                         : f->n                             ? "measured"
                                                            : "believed");
    pst_json_member_bool(w, "with_labels", f->with_labels);
    pst_json_member_int(w, "n", f->n);
    put_interval(w, "quality_gain", f->difference);
    if (f->class_index >= 0) put_estimate(w, "without", &f->without);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
}

static void put_steps(pst_json_writer *w, const pst_optimizer_state *s) {
  pst_json_key(w, "steps");
  pst_json_begin_array(w);
  for (size_t i = 0; i < s->n_steps; i++) {
    const pst_optimizer_step *t = &s->steps[i];
    pst_buf name = PST_BUF_INIT;
    if ((size_t)t->class_index == s->space->n_classes)
      pst_buf_puts(&name, "reference plan");
    else
      pst_optimizer_class_name(s->space, &s->space->classes[t->class_index], &name);
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "name", pst_buf_text(&name));
    pst_json_member_int(w, "from", t->from);
    pst_json_member_int(w, "to", t->to);
    pst_json_member_int(w, "accepted", t->k);
    pst_json_key(w, "worth");
    put_rounded(w, t->voi);
    pst_json_key(w, "expected_s");
    put_rounded(w, t->seconds);
    pst_json_member_double(w, "elapsed_s", (double)t->elapsed_us / 1e6);
    pst_json_end_object(w);
    pst_buf_done(&name);
  }
  pst_json_end_array(w);
}

static void put_spent(pst_json_writer *w, const pst_optimizer_outcome *o) {
  const pst_optimizer_state *s = o->state;
  int64_t asked = 0, cost = 0;
  for (size_t i = 0; i <= s->space->n_classes; i++) {
    asked += s->search[i].n + s->verify[i].n;
    cost += s->search[i].cost_nusd + s->verify[i].cost_nusd;
  }
  double machine = o->total_s / 3600 * (double)s->speed->price_nusd_per_hour;
  pst_json_key(w, "spent");
  pst_json_begin_object(w);
  pst_json_member_double(w, "budget_s", s->budget_s);
  pst_json_member_double(w, "calibration_s", o->calibration_s);
  pst_json_member_double(w, "search_s", o->search_s);
  pst_json_member_double(w, "verify_s", o->verify_s);
  pst_json_member_double(w, "total_s", o->total_s);
  pst_json_member_int(w, "answers", asked);
  pst_json_member_int(w, "calls_nusd", cost);
  pst_json_member_int(w, "providers_nusd", (int64_t)s->spent_nusd);
  pst_json_key(w, "providers_limit_nusd"); /* null: none */
  if (isfinite(s->money_nusd))
    pst_json_put_int(w, (int64_t)s->money_nusd);
  else
    pst_json_put_null(w);
  pst_json_member_bool(w, "provider_refused", s->broke); /* a call that the limit did not cover */
  pst_json_member_int(w, "machine_nusd", (int64_t)machine);
  pst_json_member_double(w, "nusd_per_1000_of_a_month", 1000 * machine / s->monthly);
  pst_json_member_cstr(w, "search_ended", s->why_stopped);
  pst_json_end_object(w);
}

static void put_constants(pst_json_writer *w, const pst_optimizer_state *s) {
  pst_json_key(w, "constants");
  pst_json_begin_array(w);
  for (int i = 0; i < PST_OPTIMIZER_N_CONSTANTS; i++) {
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "name", pst_optimizer_constants[i].name);
    pst_json_member_double(w, "value", pst_optimizer_constants[i].value);
    pst_json_member_cstr(w, "unit", pst_optimizer_constants[i].unit);
    pst_json_member_cstr(w, "source", pst_optimizer_constants[i].source);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
  pst_json_key(w, "calibrations");
  pst_json_begin_array(w);
  for (size_t i = 0; i < s->journal->n_rows; i++) {
    const pst_optimizer_journal_row *row = &s->journal->rows[i];
    if (strncmp(row->key, "calibrate ", 10) != 0) continue;
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "engine", row->key + 10);
    pst_json_key(w, "step");
    pst_json_put_value(w, pst_json_get(pst_json_root(row->doc), "value"));
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
}

/* As the world described it; where there was nothing to train on, why. */
static const pst_json *description_of(const pst_optimizer_state *s, const pst_optimizer_classifier *c) {
  char key[PST_OPTIMIZER_CLASSIFIER_KEY];
  return pst_optimizer_journal_find(
      s->journal, pst_optimizer_classifier_key(c ? c->encoder_sha256 : NULL, c ? c->adapter : NULL, key));
}

/* All that were trained, and the one that the plan has, or else the one over n-grams. */
static void put_classifiers(pst_json_writer *w, const pst_optimizer_outcome *o) {
  const pst_optimizer_state *s = o->state;
  const pst_optimizer_classifiers *all = &s->space->classifiers;
  bool outside = (size_t)o->chosen == s->space->n_classes;
  const pst_json *own = description_of(s, outside ? NULL : pst_optimizer_classifier_of(s->space, &o->choice));
  if (!own) return;
  pst_json_key(w, "classifier");
  pst_json_put_value(w, own);
  pst_json_key(w, "classifiers");
  pst_json_begin_array(w);
  for (int i = 0; i < all->n; i++) pst_json_put_value(w, description_of(s, &all->list[i]));
  pst_json_end_array(w);
}

/* What the classifier of a cascade is expected to do. */
static void put_point(pst_json_writer *w, const pst_optimizer_space *space, const pst_optimizer_choice *c) {
  const pst_classifier_point *p = pst_optimizer_point_of(space, c);
  if (!p) return;
  pst_json_key(w, "classifier_first");
  pst_json_begin_object(w);
  pst_json_member_double(w, "threshold", p->threshold);
  pst_json_member_double(w, "answered", p->answered);
  pst_json_member_double(w, "accuracy", p->accuracy);
  pst_json_end_object(w);
}

static void put_plan(pst_json_writer *w, const pst_optimizer_outcome *o) {
  const pst_optimizer_state *s = o->state;
  bool outside = (size_t)o->chosen == s->space->n_classes;
  pst_json_key(w, "plan");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "hash", o->plan_hash);
  pst_json_member_bool(w, "is_reference", !strcmp(o->plan_hash, s->reference_hash));
  pst_json_member_bool(w, "same_answers", o->chosen == s->reference);
  if (!outside) put_choice(w, s->space, &o->choice);
  if (!outside) put_point(w, s->space, &o->choice);
  size_t n_copied = s->space->workload->n_copied;
  if (!outside && n_copied) pst_json_member_int(w, "copied_fields", (int64_t)n_copied);
  if (!outside) put_estimate(w, "estimate", &o->estimate);
  const pst_optimizer_answers *best = s->verify[o->chosen].n ? &s->verify[o->chosen] : &s->search[o->chosen];
  put_answers(w, "search", &s->search[o->chosen]);
  put_answers(w, "verify", &s->verify[o->chosen]);
  if (!outside && best->n) put_cost(w, &o->estimate, pst_evals_wilson(best->k, best->n, C(confidence)));
  pst_json_end_object(w);
  bool estimated = s->reference_work >= 0;
  pst_json_key(w, "reference");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "hash", s->reference_hash);
  pst_json_member_bool(w, "in_force", o->reference_in_force);
  pst_json_member_bool(w, "in_space", (size_t)s->reference < s->space->n_classes);
  if (estimated) put_choice(w, s->space, &s->reference_choice);
  if (estimated) put_estimate(w, "estimate", &s->reference_estimate);
  const pst_optimizer_answers *r = s->verify[s->reference].n ? &s->verify[s->reference] : &s->search[s->reference];
  put_answers(w, "search", &s->search[s->reference]);
  put_answers(w, "verify", &s->verify[s->reference]);
  if (estimated && r->n) put_cost(w, &s->reference_estimate, pst_evals_wilson(r->k, r->n, C(confidence)));
  pst_json_end_object(w);
}

int pst_optimizer_evidence_write(const pst_optimizer_outcome *o, pst_buf *out, pst_error *err) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "schema", 1);
  pst_json_member_int(&w, "run", o->run_id);
  pst_json_key(&w, "seed");
  char seed[24];
  snprintf(seed, sizeof seed, "%llu", (unsigned long long)o->state->seed);
  pst_json_put_cstr(&w, seed); /* 64 bits do not fit a JSON number */
  pst_json_member_int(&w, "created_ms", o->created_ms);
  pst_json_member_cstr(&w, "verdict", pst_optimizer_verdict_name(o->verification->verdict));
  put_setting(&w, o);
  put_space(&w, o->state);
  put_classifiers(&w, o);
  put_plan(&w, o);
  put_floor(&w, o->state);
  put_trials(&w, o);
  put_fields(&w, o);
  if (o->cache) {
    pst_json_key(&w, "cache");
    pst_json_put_raw(&w, pst_str_from(o->cache));
  }
  if (o->tuning) {
    pst_json_key(&w, "tuning");
    pst_json_put_raw(&w, pst_str_from(o->tuning));
  }
  put_measured(&w, o->state);
  put_steps(&w, o->state);
  put_spent(&w, o);
  put_constants(&w, o->state);
  pst_json_end_object(&w);
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the evidence") : 0;
}
