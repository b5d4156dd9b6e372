/* What a turn is expected to bring, said before anything is trained, and what it brought. */
#include <math.h>
#include <string.h>

#include <penstock/engine.h>

#include "flywheel/model.h"
#include "flywheel/turn.h"

/* Time for timing the engine: the less of both. */
#define CALIBRATE_MS 1000.0
#define CALIBRATE_SHARE 0.05 /* of the time for a plan */

static double number_at(const pst_json *v, const char *path) { return pst_json_double(pst_json_path(v, path), NAN); }

/* The engine that would serve the adapter, timed. */
static int calibrate(const pst_flywheel_turn_state *t, pst_flywheel_model *m, pst_engine_options *ret_options,
                     pst_engine_step_model *ret_steps, pst_error *err) {
  pst_engine *engine = NULL;
  pst_engine_options o = pst_engine_options_default();
  o.threads = t->options->threads;
  int code = pst_flywheel_model_open(t->store, pst_str_from(t->model), t->options->threads, m, err);
  if (!code) code = pst_engine_create(m->model, &o, &engine, err);
  double ms = fmin(CALIBRATE_MS, 1000 * CALIBRATE_SHARE * t->plan_s);
  if (!code) code = pst_engine_calibrate(engine, (int)ms, ret_steps, err);
  if (!code) *ret_options = *pst_engine_get_options(engine);
  pst_engine_free(engine);
  return code;
}

/* A plan of the model to be tuned, or of an adapter of it. */
static bool is_of_model(const pst_flywheel_turn_state *t, const pst_json *evidence) {
  pst_str name = pst_json_str(pst_json_path(evidence, "plan.choice.model"));
  size_t n = strlen(t->model);
  return name.n >= n && !memcmp(name.data, t->model, n) && (name.n == n || name.data[n] == ':');
}

/* Members for the plan in force, as its evidence has it. Returns how much more than by the formula its requests cost (bursts, a latency objective), where the formula can
 * be had for it: 1 where not. */
static double put_now(const pst_flywheel_turn_state *t, const pst_json *e, const pst_engine_step_model *m,
                      const pst_engine_options *o, double nusd_per_us, pst_json_writer *w) {
  double prompt = number_at(e, "plan.estimate.prompt_tokens"), cached = number_at(e, "plan.estimate.cached_tokens");
  double made = number_at(e, "plan.estimate.completion_tokens"), now = number_at(e, "plan.estimate.request_nusd");
  pst_json_member_double(w, "prompt_tokens_now", prompt);
  pst_json_member_double(w, "answer_tokens_now", made);
  pst_json_member_double(w, "request_nusd_now", now);
  double formula = nusd_per_us * pst_optimizer_request_us(m, o, prompt, cached, made);
  return is_of_model(t, e) && formula > 0 && now > 0 ? now / formula : 1;
}

/* What training costs, and when that is paid back. */
static void put_payback(const pst_flywheel_turn_state *t, const pst_json *look, double nusd_per_us, double saved_nusd,
                        pst_json_writer *w) {
  const pst_evals_info *info = pst_evals_workload_info(t->workload);
  double tokens = number_at(look, "examples") * (number_at(look, "prompt_tokens") + number_at(look, "answer_tokens"));
  double speed = number_at(look, "tokens_per_second");
  double stage_s = pst_flywheel_turn_stage_s(t);
  double train_s = fmin(PST_FLYWHEEL_TURN_EPOCHS * tokens / speed, t->tune_s - stage_s) + stage_s;
  double cost = (train_s + t->plan_s) * 1e6 * nusd_per_us;
  const char *from;
  double monthly =
      pst_optimizer_monthly_requests(info, number_at(look, "served.requests"), number_at(look, "served.days"), &from);
  pst_json_member_double(w, "tokens_per_second", speed);
  pst_json_member_double(w, "train_s", train_s);
  pst_json_member_double(w, "train_nusd", cost);
  pst_json_member_double(w, "monthly_requests", monthly);
  if (saved_nusd > 0 && monthly > 0) pst_json_member_double(w, "payback_days", 30 * cost / (saved_nusd * monthly));
}

void pst_flywheel_turn_put_codes(double n, double plain_tokens, double tokens, pst_json_writer *w) {
  if (!(n > 0)) return;
  pst_json_key(w, "codes");
  pst_json_begin_object(w);
  pst_json_member_double(w, "n", n);
  pst_json_member_double(w, "plain_answer_tokens", plain_tokens);
  pst_json_member_double(w, "saved", 1 - tokens / plain_tokens);
  pst_json_end_object(w);
}

static int put_expected(const pst_flywheel_turn_state *t, const pst_json *look, const pst_json *evidence,
                        pst_json_writer *w, pst_error *err) {
  pst_flywheel_model model = {0};
  pst_engine_options o;
  pst_engine_step_model base, tuned;
  double prompt = number_at(look, "prompt_tokens"), answer = number_at(look, "answer_tokens"), more = 1, now = NAN;
  double nusd_per_us = (double)pst_optimizer_machine_price(t->store, t->workload) / 3.6e9;
  int code = calibrate(t, &model, &o, &base, err);
  if (!code) {
    const pst_engine_model_info *info = pst_engine_model_get_info(model.model);
    tuned = pst_optimizer_with_adapter(&base, info->weights, info->n_params, info->step_bytes,
                                       pst_json_int(pst_json_get(look, "adapter_params"), 0));
    if (evidence) {
      more = put_now(t, evidence, &base, &o, nusd_per_us, w);
      now = number_at(evidence, "plan.estimate.request_nusd");
    }
    double then = more * nusd_per_us * pst_optimizer_request_us(&tuned, &o, prompt, 0, answer);
    pst_json_member_double(w, "prompt_tokens", prompt);
    pst_json_member_double(w, "answer_tokens", answer);
    pst_flywheel_turn_put_codes(number_at(look, "codes"), number_at(look, "plain_answer_tokens"), answer, w);
    pst_json_member_double(w, "request_nusd", then);
    if (now > 0) pst_json_member_double(w, "cost_ratio", then / now);
    put_payback(t, look, nusd_per_us, now - then, w);
  }
  pst_flywheel_model_close(&model);
  return code;
}

int pst_flywheel_turn_expect(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  pst_flywheel_outlook_source source = {t->gateway, t->store, t->workload, t->options->threads, t->options->codes};
  const char *name = pst_evals_workload_info(t->workload)->name;
  char hash[65], *evidence = NULL;
  pst_buf text = PST_BUF_INIT;
  pst_json_doc *look = NULL, *doc = NULL;
  int code = pst_flywheel_outlook(&source, t->model, &text, err);
  if (!code) code = pst_json_parse(text.data, text.n, "outlook", &look, err);
  bool known = !pst_store_plan_assigned(t->store, pst_str_from(name), PST_STORE_PLAN_IN_FORCE, NULL, hash, NULL) &&
               !pst_optimizer_evidence_find(t->store, hash, &evidence, NULL) &&
               !pst_json_parse(evidence, strlen(evidence), "evidence", &doc, NULL);
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  /* Without it training has something to say against it, and does so in a moment. */
  if (!code && pst_json_path(pst_json_root(look), "prompt_tokens"))
    code = put_expected(t, pst_json_root(look), known ? pst_json_root(doc) : NULL, &w, err);
  pst_json_end_object(&w);
  pst_json_free(look);
  pst_json_free(doc);
  pst_free(evidence);
  pst_buf_done(&text);
  return code;
}

static void put_doc(pst_json_writer *w, const char *key, const pst_json_doc *doc) {
  pst_json_key(w, key);
  pst_json_put_value(w, pst_json_root(doc));
}

/* How the plan stands against the best one without anything that was learned; nothing where no plan was taken. */
static void put_against_prompted(pst_json_writer *w, const pst_json *verification) {
  static const char *const members[] = {"prompted", "prompted_not_asked"};
  for (size_t i = 0; i < PST_ARRAY_LEN(members); i++) {
    const pst_json *v = pst_json_get(verification, members[i]);
    if (!v) continue;
    pst_json_key(w, members[i]);
    pst_json_put_value(w, v);
  }
}

void pst_flywheel_turn_report(const pst_flywheel_turn_state *t, pst_buf *out) {
  const pst_json *planned = pst_json_root(t->planned), *e = pst_json_get(planned, "evidence");
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "workload", pst_evals_workload_info(t->workload)->name);
  pst_json_member_double(&w, "run", (double)t->run_id);
  put_doc(&w, "data", t->data);
  put_doc(&w, "expected", t->expected);
  if (t->encoder) put_doc(&w, "encoder", t->encoder);
  put_doc(&w, "adapter", t->adapter);
  put_doc(&w, "preferences", t->preferred);
  pst_json_key(&w, "plan");
  pst_json_begin_object(&w);
  static const char *const members[] = {"run", "verdict", "hash"};
  for (size_t i = 0; i < PST_ARRAY_LEN(members); i++) {
    pst_json_key(&w, members[i]);
    pst_json_put_value(&w, pst_json_get(planned, members[i]));
  }
  pst_json_key(&w, "choice");
  pst_json_put_value(&w, pst_json_get(pst_json_get(e, "plan"), "choice"));
  pst_json_key(&w, "verify");
  pst_json_put_value(&w, pst_json_get(pst_json_get(e, "plan"), "verify"));
  pst_json_key(&w, "estimate");
  pst_json_put_value(&w, pst_json_get(pst_json_get(e, "plan"), "estimate"));
  pst_json_key(&w, "nusd_per_1000_accepted");
  pst_json_put_value(&w, pst_json_get(pst_json_get(e, "plan"), "nusd_per_1000_accepted"));
  pst_json_end_object(&w);
  pst_json_key(&w, "before");
  pst_json_put_value(&w, pst_json_get(e, "reference"));
  put_against_prompted(&w, pst_json_get(e, "verification"));
  pst_json_member_int(&w, "budget_nusd", t->options->budget_nusd); /* for providers; 0: no limit */
  pst_json_key(&w, "spent");
  pst_json_put_value(&w, pst_json_get(e, "spent"));
  put_doc(&w, "gate", t->gated);
  pst_json_end_object(&w);
}
