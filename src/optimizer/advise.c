/* The artefact advisor (advise.h). Its quantities: how long prompts and answers of a tuned plan are (rendered, not guessed), what a step of the base with an
 * adapter takes (calibrated), how fast training is (measured), how many requests come (recorded). What nobody can know beforehand is how often the tuned plan will be
 * right: costs are per request here, and the gate decides. */
#include "optimizer/advise.h"

#include <math.h>
#include <string.h>

#include "optimizer/constants.h"
#include "optimizer/verify.h"

#define C PST_OPTIMIZER_CONST

int pst_optimizer_advise_model(const pst_optimizer_space *space) {
  int best = -1;
  for (int m = 0; m < space->axes[PST_OPTIMIZER_MODEL].n; m++) {
    const pst_optimizer_target *t = &space->targets[m];
    if (t->provider || t->adapter) continue;
    if (best < 0 || t->n_params < space->targets[best].n_params) best = m;
  }
  return best;
}

typedef struct advice {
  pst_optimizer_state *s;
  const pst_optimizer_target *model;
  const char *why_not; /* cannot be tuned; NULL: it can */
  double examples, records, prompt_tokens, answer_tokens, adapter_params, tokens_per_second;
  bool probed;
  double now_nusd; /* of a request to the plan that would be in force */
  double then_nusd;
  double train_s, monthly, saved_nusd, payback_days; /* saved: a month */
  const char *monthly_from;
} advice;

/* As tuned plans are asked: nothing but the message, the labels as constraint where there are any, weights as shipped. */
static int class_like_tuned(const pst_optimizer_state *s, int model) {
  const pst_optimizer_axis *x = s->space->axes;
  int best = -1, best_worth = -1;
  for (size_t i = 0; i < s->space->n_classes; i++) {
    const pst_optimizer_choice *c = &s->space->classes[i];
    bool plain = c->v[PST_OPTIMIZER_CLASSIFIER] == PST_OPTIMIZER_NO_CLASSIFIER && !c->v[PST_OPTIMIZER_WEIGHTS] &&
                 !c->v[PST_OPTIMIZER_KV] && x[PST_OPTIMIZER_EXAMPLES].number[c->v[PST_OPTIMIZER_EXAMPLES]] == 0;
    if (c->v[PST_OPTIMIZER_MODEL] != model || !plain) continue;
    int worth = x[PST_OPTIMIZER_CONSTRAINT].number[c->v[PST_OPTIMIZER_CONSTRAINT]] == PST_GATEWAY_LABELS;
    if (worth <= best_worth) continue;
    best = (int)i;
    best_worth = worth;
  }
  return best;
}

/* Whole tokens for every arrival whose mean is right. */
static int *prompt_lengths(const pst_optimizer_speed *sp, double mean) {
  int *prompt = pst_calloc(PST_MAX(sp->n_arrivals, 1), sizeof *prompt);
  double owed = 0;
  for (size_t i = 0; prompt && i < sp->n_arrivals; i++) {
    owed += mean;
    prompt[i] = PST_MAX((int)owed, 1);
    owed -= prompt[i];
  }
  return prompt;
}

static int cost_then(advice *a, int class_index, pst_error *err) {
  pst_optimizer_state *s = a->s;
  const pst_optimizer_choice *c = &s->best_exact[class_index];
  bool labels = s->space->axes[PST_OPTIMIZER_CONSTRAINT].number[c->v[PST_OPTIMIZER_CONSTRAINT]] != PST_GATEWAY_FREE;
  int *prompt = prompt_lengths(s->speed, a->prompt_tokens);
  pst_optimizer_lengths l = {
      .prompt = prompt,
      .completion = a->answer_tokens,
      .steps = labels && a->model->label_steps > 0 ? fmin(a->model->label_steps, a->answer_tokens) : a->answer_tokens};
  pst_optimizer_estimate e;
  if (!prompt) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the trace");
  int code = pst_optimizer_speed_tuned(s->speed, c, (int64_t)a->adapter_params, &l, &e, err);
  if (!code) a->then_nusd = e.request_nusd;
  pst_free(prompt);
  return code;
}

double pst_optimizer_monthly_requests(const pst_evals_info *info, double served, double days, const char **ret_from) {
  bool recorded = served >= C(traffic_requests), told = info->monthly_requests > 0;
  *ret_from = recorded ? "recorded traffic" : told ? "the workload" : "assumed";
  return recorded ? served * 30 / fmax(days, 1) : told ? (double)info->monthly_requests : C(default_monthly);
}

static const char *verdict_of(const advice *a, int chosen) {
  const pst_optimizer_space *space = a->s->space;
  if (a->why_not) return "impossible";
  if ((size_t)chosen < space->n_classes && space->targets[space->classes[chosen].v[PST_OPTIMIZER_MODEL]].adapter &&
      !pst_optimizer_is_alone(space, &space->classes[chosen]))
    return "tuned_already";
  if (a->examples + a->records < C(tuning_examples)) return "too_few_examples";
  if (!(a->then_nusd > 0) || isnan(a->now_nusd)) return "unknown"; /* nothing was estimated */
  return a->saved_nusd > 0 ? "proposed" : "no_gain";
}

static void put_folder(pst_json_writer *w, const advice *a) {
  pst_buf text = PST_BUF_INIT;
  pst_buf_printf(&text, "penstock turn %s --tune-model %s", a->s->space->workload->folder, a->model->name);
  pst_json_member_cstr(w, "command", pst_buf_text(&text));
  pst_buf_done(&text);
}

static void write_advice(const advice *a, int chosen, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  const char *verdict = verdict_of(a, chosen);
  double price_s = (double)a->s->speed->price_nusd_per_hour / 3600;
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "verdict", verdict);
  pst_json_member_cstr(&w, "model", a->model->name);
  if (a->why_not) pst_json_member_cstr(&w, "why_not", a->why_not);
  pst_json_member_double(&w, "examples", a->examples);
  pst_json_member_double(&w, "records", a->records);
  pst_json_member_double(&w, "examples_wanted", C(tuning_examples));
  if (a->then_nusd > 0) {
    pst_json_member_double(&w, "prompt_tokens", a->prompt_tokens);
    pst_json_member_double(&w, "answer_tokens", a->answer_tokens);
    pst_json_member_double(&w, "request_nusd", a->then_nusd);
    pst_json_member_double(&w, "request_nusd_now", a->now_nusd);
    pst_json_member_double(&w, "cost_ratio", a->then_nusd / a->now_nusd);
    pst_json_member_double(&w, "tokens_per_second", a->tokens_per_second);
    pst_json_member_bool(&w, "probed", a->probed);
    pst_json_member_double(&w, "train_s", a->train_s);
    pst_json_member_double(&w, "train_nusd", (a->train_s + a->s->budget_s) * price_s);
    pst_json_member_double(&w, "monthly_requests", a->monthly);
    pst_json_member_cstr(&w, "monthly_from", a->monthly_from);
    pst_json_member_double(&w, "saved_nusd_a_month", a->saved_nusd);
    pst_json_member_double(&w, "payback_days", a->saved_nusd > 0 ? a->payback_days : NAN);
  }
  if (!strcmp(verdict, "proposed") || !strcmp(verdict, "tuned_already") || !strcmp(verdict, "unknown"))
    put_folder(&w, a);
  pst_json_end_object(&w);
}

int pst_optimizer_advise(pst_optimizer_state *s, int model, const pst_json *outlook, int chosen,
                         const pst_optimizer_estimate *estimate, pst_buf *out, pst_error *err) {
  pst_str why = pst_json_str(pst_json_get(outlook, "why_not"));
  char reason[300];
  advice a = {.s = s, .model = &s->space->targets[model]};
  (void)snprintf(reason, sizeof reason, "%.*s", (int)why.n, why.data ? why.data : "");
  a.why_not = why.n ? reason : NULL;
  a.examples = pst_json_double(pst_json_get(outlook, "examples"), 0);
  a.records = pst_json_double(pst_json_get(outlook, "records"), 0);
  a.prompt_tokens = pst_json_double(pst_json_get(outlook, "prompt_tokens"), 0);
  a.answer_tokens = pst_json_double(pst_json_get(outlook, "answer_tokens"), 0);
  a.adapter_params = pst_json_double(pst_json_get(outlook, "adapter_params"), 0);
  a.tokens_per_second = pst_json_double(pst_json_get(outlook, "tokens_per_second"), 0);
  a.probed = pst_json_bool(pst_json_get(outlook, "probed"), false);
  const pst_json *served = pst_json_get(outlook, "served");
  a.monthly = pst_optimizer_monthly_requests(s->space->workload, pst_json_double(pst_json_get(served, "requests"), 0),
                                             pst_json_double(pst_json_get(served, "days"), 0), &a.monthly_from);
  int like = class_like_tuned(s, model), code = 0;
  if (like >= 0 && a.prompt_tokens > 0 && a.tokens_per_second > 0) code = cost_then(&a, like, err);
  if (code) return code;
  bool inside = (size_t)chosen < s->space->n_classes;
  const pst_optimizer_answers *asked = &s->verify[chosen];
  a.now_nusd = inside ? estimate->request_nusd : asked->n ? pst_optimizer_measured_nusd(s, asked) : NAN;
  double tokens = (a.examples + a.records) * (a.prompt_tokens + a.answer_tokens) * C(tuning_epochs);
  a.train_s = a.tokens_per_second > 0 ? fmin(tokens / a.tokens_per_second, C(tuning_s)) : NAN;
  a.saved_nusd = a.then_nusd > 0 ? a.monthly * (a.now_nusd - a.then_nusd) : 0;
  a.payback_days = 30 * (a.train_s + s->budget_s) / 3600 * (double)s->speed->price_nusd_per_hour / a.saved_nusd;
  write_advice(&a, chosen, out);
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the advice") : 0;
}
