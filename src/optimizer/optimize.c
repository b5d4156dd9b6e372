/* One optimize run: the calls in their order. Each is a file of its own; what they share is pst_optimizer_state. */
#include "optimizer/optimize.h"

#include <math.h>
#include <string.h>

#include "optimizer/advise.h"
#include "optimizer/cache.h"
#include "optimizer/constants.h"
#include "optimizer/evidence.h"
#include "optimizer/verify.h"

#define C PST_OPTIMIZER_CONST

typedef struct planning {
  const pst_optimizer_input *in;
  pst_optimizer_world *world;
  pst_optimizer_journal *journal;
  pst_optimizer_target targets[PST_OPTIMIZER_MAX_VALUES];
  pst_optimizer_classifiers classifiers;
  pst_optimizer_space space;
  pst_optimizer_speed speed;
  pst_optimizer_state state;
  pst_optimizer_verification verification;
  pst_optimizer_field fields[PST_OPTIMIZER_N_AXES];
  size_t n_fields;
  char *reference_plan, reference_hash[65];
  pst_gateway_cache reference_cache;
  double calibrated_s, searched_s, verified_s; /* marks on the run's clock */
} planning;

const char *pst_optimizer_verdict_name(pst_optimizer_verdict v) {
  return v == PST_OPTIMIZER_FOUND ? "found" : v == PST_OPTIMIZER_NONE ? "none" : "not_enough_data";
}

/* The log's answer to a question, asked of the world only when it is not there yet. */
static int ask(planning *p, const char *key, int (*fn)(planning *p, const void *arg, pst_buf *out, pst_error *err),
               const void *arg, const pst_json **ret_value, pst_error *err) {
  const pst_json *value = pst_optimizer_journal_find(p->journal, key);
  pst_buf answer = PST_BUF_INIT;
  int code = 0;
  if (!value && p->world->cancelled && p->world->cancelled(p->world->state))
    code = pst_error_set(err, PST_E_CANCELLED, NULL, "cancelled; the next run of the same command goes on from here");
  if (!value && !code && !p->journal->replay) code = fn(p, arg, &answer, err);
  if (!value && !code) code = pst_optimizer_journal_put(p->journal, key, &answer, &value, err);
  pst_buf_done(&answer);
  if (!code) *ret_value = value;
  return code;
}

static void note(planning *p, const char *text) {
  if (p->world->note) p->world->note(p->world->state, text);
}

static double elapsed_s(const planning *p) { return (double)p->journal->elapsed_us / 1e6; }

/* ---- models ---- */

static int describe(planning *p, const void *arg, pst_buf *out, pst_error *err) {
  const pst_optimizer_target *t = arg;
  return p->world->describe(p->world->state, pst_optimizer_engine_model(t), t->sha256, out, err);
}

static int describe_targets(planning *p, pst_error *err) {
  int code = 0;
  note(p, "open models");
  for (size_t i = 0; i < p->in->n_targets && i < PST_OPTIMIZER_MAX_VALUES && !code; i++) {
    pst_optimizer_target *t = &p->targets[i];
    *t = p->in->targets[i];
    if (t->provider) continue;
    pst_buf key = PST_BUF_INIT;
    pst_buf_printf(&key, "describe %s", pst_optimizer_engine_model(t));
    const pst_json *v = NULL;
    code = pst_buf_status(&key) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory")
                                : ask(p, key.data, describe, t, &v, err);
    pst_buf_done(&key);
    if (code) break;
    pst_str weights = pst_json_str(pst_json_get(v, "weights"));
    snprintf(t->weights, sizeof t->weights, "%.*s", (int)weights.n, weights.data ? weights.data : "");
    t->has_template = pst_json_bool(pst_json_get(v, "has_template"), false);
    t->n_ctx = (int)pst_json_int(pst_json_get(v, "n_ctx"), 0);
    t->label_tokens = pst_json_double(pst_json_get(v, "label_tokens"), 2);
    t->label_steps = pst_json_double(pst_json_get(v, "label_steps"), 0);
    t->n_params = pst_json_int(pst_json_get(v, "n_params"), 0);
    t->step_bytes = pst_json_int(pst_json_get(v, "step_bytes"), 0);
  }
  return code;
}

/* ---- classifiers ---- */

static int train_classifier(planning *p, const void *arg, pst_buf *out, pst_error *err) {
  return p->world->classifier(p->world->state, arg, out, err);
}

/* The points of the curve that answer nearest to these shares of all requests; the rest goes on to a model. */
static void choose_points(const pst_json *curve, pst_optimizer_classifier *c) {
  static const double shares[PST_OPTIMIZER_N_POINTS] = {0.9, 0.75, 0.5};
  for (size_t s = 0; s < PST_ARRAY_LEN(shares); s++) {
    pst_classifier_point best = {0, 0, 0};
    for (pst_json_iter it = pst_json_iterate(curve); pst_json_next(&it);) {
      pst_classifier_point point = {pst_json_double(pst_json_at(it.value, 0), 0),
                                    pst_json_double(pst_json_at(it.value, 1), 0),
                                    pst_json_double(pst_json_at(it.value, 2), 0)};
      if (fabs(point.answered - shares[s]) < fabs(best.answered - shares[s])) best = point;
    }
    bool useful = best.threshold > 0 && best.threshold < 1000 && best.answered > 0 && best.answered < 1;
    if (useful && (!c->n_points || best.threshold > c->points[c->n_points - 1].threshold))
      c->points[c->n_points++] = best;
  }
}

/* encoder NULL: over n-grams alone. */
static int find_classifier(planning *p, const pst_optimizer_model *encoder, pst_error *err) {
  const pst_json *v = NULL;
  char key[PST_OPTIMIZER_CLASSIFIER_KEY];
  note(p, encoder ? "train a classifier on the examples and their vectors" : "train a classifier on the examples");
  pst_optimizer_classifier_key(encoder ? encoder->sha256 : NULL, encoder ? encoder->adapter : NULL, key);
  int code = ask(p, key, train_classifier, encoder, &v, err);
  pst_str artefact = code ? (pst_str){NULL, 0} : pst_json_str(pst_json_get(v, "artefact"));
  if (code || !artefact.n) return code;
  pst_optimizer_classifier *c = &p->classifiers.list[p->classifiers.n++];
  c->encoder = encoder ? encoder->name : NULL;
  c->encoder_sha256 = encoder ? encoder->sha256 : NULL;
  c->adapter = encoder ? encoder->adapter : NULL;
  (void)snprintf(c->artefact, sizeof c->artefact, "%.*s", (int)PST_MIN(artefact.n, sizeof c->artefact - 1),
                 artefact.data ? artefact.data : "");
  c->accuracy = pst_json_double(pst_json_get(v, "accuracy"), 0);
  c->item_us = pst_json_double(pst_json_get(v, "item_us"), 0);
  choose_points(pst_json_get(v, "curve"), c);
  return 0;
}

static int find_classifiers(planning *p, pst_error *err) {
  if (!p->world->classifier || p->in->workload->n_labels < 2 || !p->in->examples_index || !p->in->examples_index[0])
    return 0;
  int code = find_classifier(p, NULL, err);
  for (size_t i = 0; i < p->in->n_encoders && p->classifiers.n < PST_OPTIMIZER_MAX_CLASSIFIERS && !code; i++)
    code = find_classifier(p, &p->in->encoders[i], err);
  return code;
}

/* ---- reference ---- */

/* The first model as shipped, F16 keys and values, first prompt, nothing else. */
static void default_reference(planning *p) {
  memset(&p->state.reference_choice, 0, sizeof p->state.reference_choice);
  p->state.reference_choice = pst_optimizer_measuring(&p->state, &p->state.reference_choice);
  for (int l = 0; l < p->space.axes[PST_OPTIMIZER_LAYOUT].n; l++) {
    p->state.reference_choice.v[PST_OPTIMIZER_LAYOUT] = (uint8_t)l;
    if (pst_optimizer_class_find(&p->space, &p->state.reference_choice) >= 0) break;
  }
  p->state.reference = p->state.reference_work = pst_optimizer_class_find(&p->space, &p->state.reference_choice);
}

static int set_plan_document(const char *json, pst_gateway_plan **ret_plan, char **ret_json, char ret_hash[65],
                             pst_error *err) {
  pst_gateway_plan *plan = NULL;
  int code = pst_gateway_plan_parse(pst_str_from(json), "plan", &plan, err);
  if (code) return code;
  *ret_json = pst_strdup(plan->json);
  memcpy(ret_hash, plan->hash, 65);
  if (ret_plan)
    *ret_plan = plan;
  else
    pst_gateway_plan_unref(plan);
  return *ret_json ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a plan");
}

static int find_reference(planning *p, pst_error *err) {
  pst_gateway_plan *plan = NULL;
  int code = 0;
  default_reference(p);
  if (p->in->reference_plan) {
    code = set_plan_document(p->in->reference_plan, &plan, &p->reference_plan, p->reference_hash, err);
    if (!code) p->reference_cache = plan->cache;
    if (!code) p->state.reference_pays = pst_gateway_plan_has(plan, PST_GATEWAY_OP_REMOTE);
    pst_optimizer_choice c;
    bool same_answers = false, same_work = !code && pst_optimizer_plan_match(&p->space, plan, &c, &same_answers);
    if (same_work) p->state.reference_choice = c;
    p->state.reference_work = same_work ? pst_optimizer_class_find(&p->space, &c) : -1;
    p->state.reference = same_answers && same_work ? p->state.reference_work : (int)p->space.n_classes;
    pst_gateway_plan_unref(plan);
  } else {
    pst_buf json = PST_BUF_INIT;
    code = pst_optimizer_plan_write(&p->space, &p->state.reference_choice, &json);
    if (code) pst_error_set(err, code, NULL, "no memory for a plan");
    if (!code) code = set_plan_document(json.data, NULL, &p->reference_plan, p->reference_hash, err);
    pst_buf_done(&json);
  }
  p->state.reference_plan = p->reference_plan;
  memcpy(p->state.reference_hash, p->reference_hash, sizeof p->reference_hash);
  return code;
}

/* ---- calibration ---- */

typedef struct calibration {
  pst_optimizer_choice choice;
  int budget_ms;
} calibration;

static int calibrate(planning *p, const void *arg, pst_buf *out, pst_error *err) {
  const calibration *c = arg;
  return p->world->calibrate(p->world->state, &p->space, &c->choice, c->budget_ms, out, err);
}

static int calibrate_one(planning *p, const calibration *c, pst_error *err) {
  const pst_optimizer_axis *x = p->space.axes;
  pst_buf key = PST_BUF_INIT;
  pst_buf_printf(&key, "calibrate %s %s %s threads=%s", x[PST_OPTIMIZER_MODEL].values[c->choice.v[PST_OPTIMIZER_MODEL]],
                 x[PST_OPTIMIZER_WEIGHTS].values[c->choice.v[PST_OPTIMIZER_WEIGHTS]],
                 x[PST_OPTIMIZER_KV].values[c->choice.v[PST_OPTIMIZER_KV]],
                 x[PST_OPTIMIZER_THREADS].values[c->choice.v[PST_OPTIMIZER_THREADS]]);
  const pst_json *v = NULL;
  int code = pst_buf_status(&key) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory")
                                  : ask(p, key.data, calibrate, c, &v, err);
  pst_buf_done(&key);
  if (code) return code;
  pst_optimizer_step_model_read(v, pst_optimizer_speed_slot(&p->speed, &c->choice));
  if (!c->choice.v[PST_OPTIMIZER_THREADS]) /* with fewer threads it is there already */
    pst_optimizer_opens_in(&p->state, &c->choice, pst_json_double(pst_json_get(v, "open_s"), C(open_engine_s)));
  return 0;
}

/* Effects one at a time from the shipped file with F16 and all threads: other weights, other KV types, fewer threads. */
static int calibrate_all(planning *p, pst_error *err) {
  calibration list[PST_OPTIMIZER_MAX_VALUES * 12];
  size_t n = 0;
  const pst_optimizer_axis *x = p->space.axes;
  const int axes[] = {PST_OPTIMIZER_WEIGHTS, PST_OPTIMIZER_KV, PST_OPTIMIZER_THREADS};
  pst_optimizer_choice zero = {{0}};
  for (int m = 0; m < x[PST_OPTIMIZER_MODEL].n; m++) {
    if (p->space.targets[m].provider || p->space.targets[m].adapter) continue;
    calibration base = {pst_optimizer_measuring(&p->state, &zero), 0};
    base.choice.v[PST_OPTIMIZER_MODEL] = (uint8_t)m;
    list[n++] = base;
    for (size_t a = 0; a < PST_ARRAY_LEN(axes); a++)
      for (int v = 1; v < x[axes[a]].n && n < PST_ARRAY_LEN(list); v++) {
        if (axes[a] == PST_OPTIMIZER_WEIGHTS && !strcmp(x[axes[a]].values[v], p->space.targets[m].weights)) continue;
        list[n] = base;
        list[n++].choice.v[axes[a]] = (uint8_t)v;
      }
  }
  double all_s = fmin(C(calibration_s), C(calibration_share) * p->in->budget_s);
  int code = 0;
  for (size_t i = 0; i < n && !code; i++) {
    char text[80];
    snprintf(text, sizeof text, "calibrate engine %zu of %zu", i + 1, n);
    note(p, text);
    list[i].budget_ms = (int)(1000 * all_s / (double)n);
    code = calibrate_one(p, &list[i], err);
  }
  pst_optimizer_speed_complete(&p->speed);
  pst_optimizer_speed_adapters(&p->speed);
  return code;
}

/* ---- goal ---- */

static int check_parts(const planning *p, pst_error *err) {
  const char *missing = p->state.n_search == 0 ? "search" : p->state.n_verify == 0 ? "verify" : NULL;
  return missing ? pst_error_set(err, PST_E_NO_DATA, p->in->workload->name,
                                 "no item has the part \"%s\": nothing can be chosen and proven without items of both",
                                 missing)
                 : 0;
}

/* A goal that even the fastest plan misses with nobody else there. */
static int check_goal(const planning *p, pst_error *err) {
  double fastest = INFINITY;
  for (size_t i = 0; i < p->space.n_classes; i++) {
    if (p->state.estimates[i].capacity > 0) return 0;
    fastest = fmin(fastest, p->state.estimates[i].idle_total_ms);
  }
  return pst_error_set(
      err, PST_E_BAD_INPUT, "goal.latency_p95_ms",
      "%.6g ms cannot be kept: the fastest of %zu kinds of plan takes about %.3g ms alone on this machine; raise "
      "it, or offer a smaller model",
      p->in->workload->goal.latency_p95_ms, p->space.n_classes, fastest);
}

static int profiles(planning *p, const void *arg, pst_buf *out, pst_error *err) {
  (void)arg;
  return p->world->profiles(p->world->state, &p->space, out, err);
}

static int prepare(planning *p, pst_error *err) {
  const pst_json *value = NULL;
  int code = describe_targets(p, err);
  if (!code) code = find_classifiers(p, err);
  if (!code)
    code = pst_optimizer_space_init(&p->space, p->in->workload, p->targets, p->in->n_targets, p->in->threads,
                                    p->in->examples_index, p->in->answers, &p->classifiers, err);
  if (!code) code = pst_optimizer_speed_init(&p->speed, &p->space, p->in->seed, p->in->price_nusd_per_hour, err);
  p->state.space = &p->space;
  p->state.speed = &p->speed;
  p->state.journal = p->journal;
  p->state.world = p->world;
  p->state.seed = p->in->seed;
  p->state.budget_s = p->in->budget_s;
  p->state.money_nusd = p->in->budget_nusd > 0 ? (double)p->in->budget_nusd : INFINITY;
  if (!code) code = pst_optimizer_state_init(&p->state, p->in->max_items, err);
  if (!code) code = check_parts(p, err);
  if (!code) code = find_reference(p, err);
  note(p, "render prompts");
  if (!code) code = ask(p, "profiles", profiles, NULL, &value, err);
  if (!code) code = pst_optimizer_speed_read_profiles(&p->speed, value, err);
  if (!code) code = calibrate_all(p, err);
  p->calibrated_s = elapsed_s(p);
  if (!code) code = pst_optimizer_update(&p->state, err);
  return code ? code : check_goal(p, err);
}

/* ---- search to verdict ---- */

/* What finalists have to beat: the reference as it stands, and with the exact fields that serve it best. Where those gain nothing it stays as it is. */
static int replay_reference(pst_optimizer_state *s, pst_error *err) {
  int r = s->reference_work;
  if (r < 0) return 0;
  int code = pst_optimizer_choose_exact(s, r, err);
  if (!code) code = pst_optimizer_replay_class(s, r, &s->reference_choice, &s->reference_estimate, err);
  if (code) return code;
  double q = pst_optimizer_logistic(s->beliefs[r].mean);
  double gain = pst_optimizer_utility(s, &s->estimates[r], q) - pst_optimizer_utility(s, &s->reference_estimate, q);
  if (!(gain > 1e-6 * s->scale)) {
    s->best_exact[r] = s->reference_choice;
    s->estimates[r] = s->reference_estimate;
  }
  return 0;
}

static int order_finalists(planning *p, int *classes, size_t n, pst_error *err) {
  pst_optimizer_state *s = &p->state;
  double worth[PST_OPTIMIZER_MAX_FINALISTS];
  int code = 0;
  note(p, "replay the trace for each finalist");
  for (size_t i = 0; i < n && !code; i++) code = pst_optimizer_choose_exact(s, classes[i], err);
  if (!code) code = replay_reference(s, err);
  if (!code) code = pst_optimizer_settle_floor(s, err);
  for (size_t i = 0; i < n && !code; i++)
    worth[i] = pst_optimizer_expected_utility(s, &s->estimates[classes[i]], s->beliefs[classes[i]]);
  for (size_t i = 1; i < n && !code; i++)
    for (size_t k = i; k > 0 && worth[k] > worth[k - 1]; k--) {
      double w = worth[k];
      int c = classes[k];
      worth[k] = worth[k - 1];
      classes[k] = classes[k - 1];
      worth[k - 1] = w;
      classes[k - 1] = c;
    }
  return code;
}

static int search_and_verify(planning *p, pst_error *err) {
  pst_optimizer_state *s = &p->state;
  int classes[PST_OPTIMIZER_MAX_FINALISTS];
  size_t n = 0;
  /* However long opening and timing the engines took: without some search there is nothing to verify. */
  double verify_from =
      fmax(p->in->budget_s * (1 - C(verify_share)), p->calibrated_s + p->in->budget_s * C(search_share));
  int code = pst_optimizer_search(s, verify_from - p->in->budget_s * C(finals_share), err);
  if (!code) code = pst_optimizer_finalists(s, verify_from, classes, &n, err);
  p->searched_s = elapsed_s(p);
  if (!code) code = order_finalists(p, classes, n, err);
  if (!code) code = pst_optimizer_verify(s, classes, n, &p->verification, err);
  p->verified_s = elapsed_s(p);
  return code;
}

/* ---- which field bought what ---- */

static int explain_lossy(planning *p, int chosen, pst_optimizer_field *f, pst_error *err) {
  pst_optimizer_state *s = &p->state;
  pst_optimizer_choice c = s->best_exact[chosen];
  c.v[f->axis] = s->reference_choice.v[f->axis];
  f->class_index = pst_optimizer_class_find(&p->space, &c);
  if (f->class_index < 0 && f->axis == PST_OPTIMIZER_EXAMPLES) { /* no labels of examples without examples */
    const pst_optimizer_axis *x = &p->space.axes[PST_OPTIMIZER_CONSTRAINT];
    for (int v = 0; v < x->n; v++)
      if (x->number[v] == PST_GATEWAY_LABELS) c.v[PST_OPTIMIZER_CONSTRAINT] = (uint8_t)v;
    f->class_index = pst_optimizer_class_find(&p->space, &c);
    f->with_labels = f->class_index >= 0;
  }
  if (f->class_index < 0) return 0;
  int want = PST_MIN((int)C(ablation_items), s->search[chosen].n), code = 0;
  double needed = pst_optimizer_seconds(s, f->class_index, want - s->search[f->class_index].n);
  bool paid = pst_optimizer_affords(s, f->class_index, want - s->search[f->class_index].n, 1);
  if (s->search[f->class_index].n < want && elapsed_s(p) + needed < p->in->budget_s && paid)
    code = pst_optimizer_measure(s, f->class_index, false, want, err);
  if (code) return code;
  const pst_optimizer_answers *with = &s->search[chosen], *without = &s->search[f->class_index];
  if (without->n > 0) {
    pst_evals_comparison pair;
    pst_optimizer_pair(with, without, s->goal.margin, &pair);
    f->n = (int)pair.n;
    f->difference = pair.difference;
  } else {
    pst_evals_interval a = pst_optimizer_belief_interval(s->beliefs[chosen], C(confidence));
    pst_evals_interval b = pst_optimizer_belief_interval(s->beliefs[f->class_index], C(confidence));
    f->difference = (pst_evals_interval){a.estimate - b.estimate, a.low - b.high, a.high - b.low};
  }
  return pst_optimizer_replay_class(s, f->class_index, &c, &f->without, err);
}

/* A classifier alone has no other fields: what it bought is the whole difference to the reference. */
static int explain_alone(planning *p, int chosen, pst_error *err) {
  pst_optimizer_state *s = &p->state;
  if (s->reference == chosen) return 0;
  pst_optimizer_field *f = &p->fields[p->n_fields++];
  f->axis = PST_OPTIMIZER_CLASSIFIER;
  f->class_index = s->reference;
  pst_evals_comparison pair;
  pst_optimizer_pair(&s->search[chosen], &s->search[s->reference], s->goal.margin, &pair);
  f->n = (int)pair.n;
  f->difference = pair.difference;
  return pst_optimizer_replay_class(s, s->reference, &s->reference_choice, &f->without, err);
}

static int explain_fields(planning *p, int chosen, pst_error *err) {
  pst_optimizer_state *s = &p->state;
  const pst_optimizer_choice *plan = &s->best_exact[chosen];
  int code = 0;
  note(p, "what each field bought");
  if ((size_t)s->reference >= p->space.n_classes) return 0; /* it has fields of its own kind */
  if (pst_optimizer_is_alone(&p->space, plan) || pst_optimizer_is_alone(&p->space, &s->reference_choice))
    return explain_alone(p, chosen, err);
  for (int a = 0; a < PST_OPTIMIZER_N_AXES && !code; a++) {
    if (plan->v[a] == s->reference_choice.v[a]) continue;
    pst_optimizer_field *f = &p->fields[p->n_fields++];
    f->axis = a;
    f->class_index = chosen;
    if (a < PST_OPTIMIZER_N_LOSSY) {
      code = explain_lossy(p, chosen, f, err);
      continue;
    }
    pst_optimizer_choice c = *plan;
    c.v[a] = s->reference_choice.v[a];
    code = pst_optimizer_replay_class(s, chosen, &c, &f->without, err);
  }
  return code;
}

/* ---- what tuning should be worth ---- */

static int look_ahead(planning *p, const void *arg, pst_buf *out, pst_error *err) {
  const pst_optimizer_target *t = arg;
  return p->world->outlook(p->world->state, t->name, out, err);
}

/* Nothing where nobody was asked, which a replay learns from its log; nothing either where the answer cannot be had: a plan has been found and proven, and advice is not worth
 * it. */
static int advise(planning *p, int chosen, const pst_optimizer_estimate *estimate, pst_buf *out, pst_error *err) {
  int model = pst_optimizer_advise_model(&p->space);
  const pst_json *v = NULL;
  bool asked =
      p->journal->replay ? pst_optimizer_journal_find(p->journal, "outlook") != NULL : p->world->outlook != NULL;
  if (model < 0 || !asked) return 0;
  note(p, "what tuning should be worth");
  pst_error why = PST_ERROR_INIT;
  int code = ask(p, "outlook", look_ahead, &p->space.targets[model], &v, &why);
  if (!code) code = pst_optimizer_advise(&p->state, model, v, chosen, estimate, out, &why);
  if (code == PST_E_CANCELLED) return pst_error_set(err, code, NULL, "%s", why.message);
  if (!code) return 0;
  pst_log(PST_LOG_WARN, "event=no_advice run=%lld reason=\"%s\"", (long long)p->journal->run_id, why.message);
  pst_buf_clear(out);
  return 0;
}

/* ---- answers given again ---- */

static int look_at_repeats(planning *p, const void *arg, pst_buf *out, pst_error *err) {
  (void)arg;
  return p->world->repeats(p->world->state, out, err);
}

static int decide_cache(planning *p, int chosen, const pst_optimizer_estimate *estimate, pst_buf *json, pst_buf *advice,
                        pst_error *err) {
  const pst_optimizer_state *s = &p->state;
  const pst_optimizer_answers *asked = &s->verify[chosen];
  bool inside = (size_t)chosen < p->space.n_classes;
  pst_optimizer_cache_question q = {.wish = p->in->cache,
                                    .in_force = p->reference_cache,
                                    .taken = p->verification.taken >= 0,
                                    .request_nusd = inside     ? estimate->request_nusd
                                                    : asked->n ? pst_optimizer_measured_nusd(s, asked)
                                                               : (double)NAN,
                                    .price_nusd_per_hour = p->in->price_nusd_per_hour};
  bool known =
      p->journal->replay ? pst_optimizer_journal_find(p->journal, "repeats") != NULL : p->world->repeats != NULL;
  int code = known && q.wish != PST_OPTIMIZER_CACHE_OFF ? ask(p, "repeats", look_at_repeats, NULL, &q.repeats, err) : 0;
  return code ? code : pst_optimizer_cache_decide(&q, json, advice, err);
}

static int write_outcome(planning *p, pst_optimizer_verdict *ret_verdict, char **ret_plan, char **ret_evidence,
                         char ret_hash[65], pst_error *err) {
  pst_optimizer_state *s = &p->state;
  const pst_optimizer_verification *v = &p->verification;
  int chosen = v->taken >= 0 ? v->trials[v->taken].class_index : s->reference, code = 0;
  pst_buf json = PST_BUF_INIT, evidence = PST_BUF_INIT, tuning = PST_BUF_INIT, cache = PST_BUF_INIT;
  char *plan = NULL;
  pst_optimizer_outcome o = {.state = s,
                             .verification = v,
                             .chosen = chosen,
                             .created_ms = p->in->created_ms,
                             .run_id = p->journal->run_id,
                             .reference_in_force = p->in->reference_plan != NULL,
                             .threads = p->in->threads};
  bool stays = v->taken < 0 || (chosen == s->reference &&
                                !memcmp(s->best_exact[chosen].v, s->reference_choice.v, sizeof s->reference_choice.v));
  if (!stays) {
    o.choice = s->best_exact[chosen];
    o.estimate = s->estimates[chosen];
    code = explain_fields(p, chosen, err);
    if (!code && pst_optimizer_plan_write(&p->space, &o.choice, &json))
      code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a plan");
  } else {
    o.choice = s->reference_choice;
    o.estimate = s->reference_estimate;
    pst_buf_puts(&json, p->reference_plan);
  }
  if (!code) code = decide_cache(p, chosen, &o.estimate, &json, &cache, err);
  o.cache = cache.n ? cache.data : NULL;
  if (!code) code = set_plan_document(pst_buf_text(&json), NULL, &plan, o.plan_hash, err);
  o.fields = p->fields;
  o.n_fields = p->n_fields;
  o.calibration_s = p->calibrated_s;
  o.search_s = p->searched_s - p->calibrated_s;
  o.verify_s = p->verified_s - p->searched_s;
  if (!code) code = advise(p, chosen, &o.estimate, &tuning, err);
  o.tuning = tuning.n ? tuning.data : NULL;
  o.total_s = elapsed_s(p);
  if (!code) code = pst_optimizer_evidence_write(&o, &evidence, err);
  if (!code) {
    *ret_verdict = v->verdict;
    *ret_plan = plan;
    *ret_evidence = pst_buf_take(&evidence);
    memcpy(ret_hash, o.plan_hash, 65);
    plan = NULL;
  }
  pst_free(plan);
  pst_buf_done(&json);
  pst_buf_done(&evidence);
  pst_buf_done(&tuning);
  pst_buf_done(&cache);
  return code;
}

int pst_optimizer_plan_search(const pst_optimizer_input *input, pst_optimizer_world *world,
                              pst_optimizer_journal *journal, pst_optimizer_verdict *ret_verdict, char **ret_plan,
                              char **ret_evidence, char ret_hash[65], pst_error *err) {
  planning *p = pst_calloc(1, sizeof *p);
  if (!p) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a search");
  p->in = input;
  p->world = world;
  p->journal = journal;
  int code = prepare(p, err);
  if (!code) code = search_and_verify(p, err);
  if (!code) code = write_outcome(p, ret_verdict, ret_plan, ret_evidence, ret_hash, err);
  pst_optimizer_state_done(&p->state);
  pst_optimizer_speed_done(&p->speed);
  pst_optimizer_space_done(&p->space);
  pst_free(p->reference_plan);
  pst_free(p);
  return code;
}
