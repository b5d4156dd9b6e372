/* A turn of the flywheel, as the calls in their order; each is a step of a run in the store, so that a turn that was killed goes on where it was.
 *
 * The gate is the optimizer's verification: a plan takes the place of the one in force only where it was found, and holds on items that neither training nor
 * search has seen. Nothing here may weaken that: items that judge never become examples (curation leaves them out, and so does this file). */
#include <inttypes.h>
#include <string.h>

#include "flywheel/turn.h"

enum { TUNE_S = 1200, PLAN_S = 360 };
#define LEAST_SHARE 0.1 /* of the tuning time, for the adapter, however long an encoder took */

/* ---- steps ---- */

typedef struct row_wanted {
  const char *key;
  pst_buf *json;
} row_wanted;

static int take_row(void *user, int64_t seq, pst_str key, pst_str json) {
  const row_wanted *want = user;
  (void)seq;
  if (!pst_str_is(key, want->key)) return 0;
  pst_buf_clear(want->json);
  pst_buf_append_str(want->json, json);
  return pst_buf_status(want->json);
}

static void note(const pst_flywheel_turn_state *t, const char *text) {
  if (t->options->note) t->options->note(t->options->user, text);
}

/* What a step left behind, or does it now. */
static int step(pst_flywheel_turn_state *t, const char *key, const char *title,
                int (*work)(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err), pst_json_doc **ret_doc,
                pst_error *err) {
  pst_buf json = PST_BUF_INIT;
  row_wanted want = {key, &json};
  int code = pst_store_run_rows(t->store, t->run_id, 0, take_row, &want, err);
  bool done = json.n > 0;
  if (!code && !done && t->options->cancelled && t->options->cancelled(t->options->user))
    code = pst_error_set(err, PST_E_CANCELLED, NULL, "cancelled; the next turn goes on from here");
  if (!code && !done) {
    note(t, title);
    code = work(t, &json, err);
    if (!code && pst_buf_status(&json)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a step");
    if (!code) code = pst_store_run_append(t->store, t->run_id, pst_str_from(key), pst_buf_str(&json), true, err);
  }
  if (!code) code = pst_json_parse(json.data, json.n, key, ret_doc, err);
  pst_buf_done(&json);
  return code;
}

/* ---- adapter ---- */

pst_tune_workload_options pst_flywheel_turn_tuning(const pst_flywheel_turn_state *t, pst_tune_options training) {
  const pst_flywheel_turn_options *o = t->options;
  pst_tune_workload_options w = {
      .model = t->model,
      .held_out_share = 0.1,
      .max_held_out = 128,
      .leave_checkpoint = true, /* until the turn has ended: what is between here and there may be killed, too */
      .training = training};
  w.training.checkpoint_seconds = PST_MIN(w.training.checkpoint_seconds, PST_FLYWHEEL_CHECKPOINT_SHARE * t->tune_s);
  w.training.seed = o->seed;
  w.training.threads = o->threads;
  w.training.on_progress = o->on_tuning;
  w.training.cancelled = o->cancelled;
  w.training.user = o->user;
  return w;
}

/* Of the money: a plan that nobody can compare with the one in force would be for nothing. */
static int64_t teacher_nusd(const pst_flywheel_turn_options *o) { return o->teacher ? o->budget_nusd / 2 : 0; }

static bool has_records(const pst_flywheel_turn_state *t) {
  return pst_json_double(pst_json_get(pst_json_root(t->data), "records"), 0) > 0;
}

/* nusd: of all sittings, where there is an account. */
static void put_taught(const pst_flywheel_turn_state *t, const pst_flywheel_taught *taught, pst_json_writer *j) {
  pst_store_budget b = {.total_nusd = taught->nusd};
  if (t->key_id && !pst_store_flush(t->store, NULL))
    (void)pst_store_budget_get(t->store, t->key_id, pst_clock_unix_ms(), &b, NULL);
  pst_json_key(j, "teacher");
  pst_json_begin_object(j);
  pst_json_member_double(j, "asked", (double)taught->n_asked);
  pst_json_member_double(j, "usable", (double)taught->n_usable);
  pst_json_member_double(j, "failed", (double)taught->n_failed);
  pst_json_member_double(j, "nusd", (double)b.total_nusd);
  pst_json_member_bool(j, "broke", taught->n_unasked > 0);
  pst_json_end_object(j);
}

static int tune(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  pst_flywheel_tune_options o = {.tune = pst_flywheel_turn_tuning(t, pst_tune_options_default()),
                                 .min_score = PST_DATA_LEAST_SCORE,
                                 .key_id = t->key_id,
                                 .keep_taught = true, /* until the turn knows that it was learned */
                                 .teacher = has_records(t) ? t->options->teacher : NULL};
  pst_flywheel_tune_result result;
  pst_tune_workload_options *w = &o.tune;
  w->data_set = t->data_set[0] ? t->data_set : NULL;
  w->codes = t->options->codes ? PST_FLYWHEEL_CODES : 0;
  w->codes_from = PST_FLYWHEEL_CODES_FROM;
  double encoder_s = pst_json_double(pst_json_path(pst_json_root(t->encoder), "seconds"), 0);
  w->training.seconds = PST_MAX(t->tune_s - encoder_s - pst_flywheel_turn_stage_s(t), LEAST_SHARE * t->tune_s);
  w->training.max_epochs = PST_FLYWHEEL_TURN_EPOCHS;
  int code = pst_flywheel_tune(t->gateway, t->store, t->workload, &o, &result, err);
  if (code) return code;
  pst_tune_workload_result r = result.tuned;
  pst_json_writer j = pst_json_writer_on(out, false);
  pst_json_begin_object(&j);
  pst_json_member_cstr(&j, "name", r.adapter.name);
  pst_json_member_cstr(&j, "file", r.adapter.file);
  pst_json_member_cstr(&j, "plan", r.plan_hash);
  pst_json_member_cstr(&j, "model", t->model);
  pst_json_member_double(&j, "examples", (double)r.n_texts);
  pst_json_member_double(&j, "held_out", (double)r.n_held_out);
  pst_json_member_double(&j, "steps", (double)r.report.n_steps);
  pst_json_member_double(&j, "tokens", (double)r.report.n_tokens);
  pst_json_member_double(&j, "seconds", r.report.seconds);
  pst_json_member_double(&j, "tokens_per_second", r.report.tokens_per_second);
  pst_json_member_double(&j, "loss_before", r.report.held_out_before);
  pst_json_member_double(&j, "loss", r.report.held_out_loss);
  pst_tune_report_put_evaluations(&r.report, &j);
  pst_json_member_double(&j, "prompt_tokens", r.prompt_tokens);
  pst_json_member_double(&j, "answer_tokens", r.answer_tokens);
  pst_flywheel_turn_put_codes((double)r.n_codes, r.plain_answer_tokens, r.answer_tokens, &j);
  pst_json_member_cstr(&j, "checkpoint", r.checkpoint);
  if (o.teacher) put_taught(t, &result.taught, &j);
  pst_json_end_object(&j);
  pst_tune_workload_result_done(&r);
  return 0;
}

/* ---- plan ---- */

static int plan(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  const pst_flywheel_turn_options *o = t->options;
  pst_optimizer_options w = {.models = o->models,
                             .n_models = o->n_models,
                             .encoders = o->encoders,
                             .n_encoders = o->n_encoders,
                             .seed = o->seed,
                             .budget_s = t->plan_s,
                             .budget_nusd = o->budget_nusd - teacher_nusd(o),
                             .max_items = o->max_items,
                             .threads = o->threads,
                             .finished_since_ms = t->created_ms,
                             .quiet = o->quiet,
                             .cancelled = o->cancelled,
                             .user = o->user};
  pst_optimizer_result r = {0};
  int code = pst_optimizer_run(t->gateway, t->store, t->workload, &w, &r, err);
  if (code) return code;
  pst_json_writer j = pst_json_writer_on(out, false);
  pst_json_begin_object(&j);
  pst_json_member_double(&j, "run", (double)r.run_id);
  pst_json_member_cstr(&j, "verdict", pst_optimizer_verdict_name(r.verdict));
  pst_json_member_cstr(&j, "hash", r.plan_hash);
  pst_json_key(&j, "plan");
  pst_json_put_raw(&j, pst_str_from(r.plan_json));
  pst_json_key(&j, "evidence");
  pst_json_put_raw(&j, pst_str_from(r.evidence));
  pst_json_end_object(&j);
  pst_optimizer_result_done(&r);
  return 0;
}

/* ---- gate ---- */

static const char *text_at(const pst_json *v, const char *key, char *out, size_t n) {
  pst_str s = pst_json_str(pst_json_get(v, key));
  (void)snprintf(out, n, "%.*s", (int)PST_MIN(s.n, n - 1), s.data ? s.data : "");
  return out;
}

/* Why a plan may not take the place of the one in force; NULL: it may. */
static const char *refusal(const pst_flywheel_turn_state *t, const pst_json *planned) {
  char verdict[32];
  const pst_json *chosen = pst_json_get(pst_json_get(planned, "evidence"), "plan");
  (void)text_at(planned, "verdict", verdict, sizeof verdict);
  if (!strcmp(verdict, "none")) return "no plan passed on held-back items";
  if (strcmp(verdict, "found") != 0) return "the held-back items cannot decide";
  if (pst_json_bool(pst_json_get(chosen, "is_reference"), false)) return "the plan in force is already the best";
  return t->options->keep_plan ? "it was asked to stay" : NULL;
}

/* Puts the plan in force in the place of the one that was compared; *ret_changed: another is there by now, and stays: a turn may lie for days between its plan and its gate,
 * and be killed in it. */
static int promote(const pst_flywheel_turn_state *t, const pst_json *planned, bool *ret_changed, pst_error *err) {
  const pst_json *reference = pst_json_get(pst_json_get(planned, "evidence"), "reference");
  char compared[65] = "", chosen[65], words[64];
  if (pst_json_bool(pst_json_get(reference, "in_force"), false))
    (void)text_at(reference, "hash", compared, sizeof compared);
  (void)text_at(planned, "hash", chosen, sizeof chosen);
  (void)snprintf(words, sizeof words, "turn %" PRId64, t->run_id);
  int code = pst_store_plan_replace(t->store, pst_str_from(pst_evals_workload_info(t->workload)->name), compared,
                                    pst_str_from(chosen), pst_str_from(words), pst_clock_unix_ms(), err);
  *ret_changed = code == PST_E_EXISTS;
  return *ret_changed ? 0 : code;
}

/* Whether the plan rests on an adapter that learned from records which were erased since it was planned with. */
static int find_stale(const pst_flywheel_turn_state *t, const pst_json *planned, bool *ret_stale, pst_error *err) {
  pst_buf plan_json = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&plan_json, false);
  pst_json_put_value(&w, pst_json_get(planned, "plan"));
  char adapter[64] = "";
  int code = pst_buf_status(&plan_json) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a plan")
                                        : pst_store_plan_find_stale(t->store, pst_buf_str(&plan_json), adapter, err);
  pst_buf_done(&plan_json);
  if (!code) *ret_stale = adapter[0] != '\0';
  return code;
}

static int gate(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  const pst_json *planned = pst_json_root(t->planned);
  bool changed = false, stale = false,
       withdrawn = t->data_set[0] && pst_store_data_withdrawn(t->store, pst_str_from(t->data_set));
  const char *why = withdrawn ? "records that it learned from were deleted meanwhile" : refusal(t, planned);
  int code = why ? 0 : find_stale(t, planned, &stale, err);
  if (stale) why = "records that its adapter learned from were erased since";
  if (!code && !why) code = promote(t, planned, &changed, err);
  if (changed) why = "another plan was put in force since this one was compared with the one before it";
  pst_json_writer j = pst_json_writer_on(out, false);
  pst_json_begin_object(&j);
  pst_json_member_bool(&j, "promoted", !why);
  pst_json_member_bool(&j, "overtaken", withdrawn || stale || changed);
  pst_json_member_cstr(&j, "why", why ? why : "it holds on held-back items against the plan that was in force");
  pst_json_end_object(&j);
  return code;
}

/* ---- the turn ---- */

static int on_created(void *user, const pst_store_run *run) {
  *(int64_t *)user = run->created_ms;
  return 0;
}

static void put_models(pst_json_writer *j, const char *key, const pst_optimizer_model *models, size_t n) {
  pst_json_key(j, key);
  pst_json_begin_array(j);
  for (size_t i = 0; i < n; i++) {
    pst_json_put_cstr(j, models[i].name);
    pst_json_put_cstr(j, models[i].sha256);
  }
  pst_json_end_array(j);
}

static const pst_str turn_kind = {"turn", 4};

static int end_run(const pst_flywheel_turn_state *t, pst_store_run_state state, pst_error *err) {
  return pst_store_run_end(t->store, t->run_id, state, (pst_str){NULL, 0}, pst_clock_unix_ms(), err);
}

static int remove_checkpoint(void *user, int64_t seq, pst_str key, pst_str json) {
  pst_json_doc *doc = NULL;
  char path[4096];
  (void)user, (void)seq, (void)key;
  if (!pst_json_parse(json.data, json.n, "step", &doc, NULL) &&
      *text_at(pst_json_root(doc), "checkpoint", path, sizeof path))
    (void)remove(path);
  pst_json_free(doc);
  return 0;
}

/* Those of the run's steps; nobody goes on from them. */
static void remove_checkpoints(const pst_flywheel_turn_state *t) {
  (void)pst_store_run_rows(t->store, t->run_id, 0, remove_checkpoint, NULL, NULL);
}

/* The unfinished turn of the question. All are ended that cannot go on, or, where a fresh one was asked for, are not to. PST_E_NOT_FOUND: there is none. */
static int find_unfinished(pst_flywheel_turn_state *t, pst_str question, pst_error *err) {
  pst_str name = pst_str_from(pst_evals_workload_info(t->workload)->name);
  for (;;) {
    bool over = t->options->fresh;
    int code = pst_store_run_find(t->store, turn_kind, name, question, PST_STORE_RUN_ACTIVE, &t->run_id, err);
    if (!code && !over) {
      code = pst_flywheel_turn_outdated(t, &over, err);
      if (!code && over)
        note(t, "the examples of the unfinished turn are gone, since records were deleted: a new one begins");
    }
    if (code || !over) return code;
    remove_checkpoints(t);
    code = end_run(t, PST_STORE_RUN_CANCELLED, err);
    if (code) return code;
  }
}

/* What makes two turns the same: an unfinished one is taken up only for the same question. */
static int begin(pst_flywheel_turn_state *t, pst_error *err) {
  const pst_flywheel_turn_options *o = t->options;
  const pst_evals_info *info = pst_evals_workload_info(t->workload);
  pst_buf params = PST_BUF_INIT;
  pst_json_writer j = pst_json_writer_on(&params, false);
  pst_json_begin_object(&j);
  pst_json_member_cstr(&j, "workload", info->fingerprint);
  pst_json_member_cstr(&j, "model", t->model);
  pst_json_member_double(&j, "tune_s", t->tune_s);
  pst_json_member_double(&j, "plan_s", t->plan_s);
  pst_json_member_double(&j, "seed", (double)o->seed);
  put_models(&j, "models", o->models, o->n_models);
  put_models(&j, "encoders", o->encoders, o->n_encoders);
  pst_json_member_int(&j, "max_items", (int64_t)o->max_items);
  pst_json_member_bool(&j, "keep_plan", o->keep_plan);
  if (o->codes) pst_json_member_bool(&j, "codes", true);
  if (o->teacher) pst_json_member_cstr(&j, "teacher", o->teacher);
  pst_json_end_object(&j);
  pst_str text = pst_buf_str(&params);
  int code = pst_buf_status(&params) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a turn")
                                     : find_unfinished(t, text, err);
  if (code == PST_E_NOT_FOUND)
    code =
        pst_store_run_create(t->store, turn_kind, pst_str_from(info->name), text, pst_clock_unix_ms(), &t->run_id, err);
  if (!code) code = pst_store_run_get(t->store, t->run_id, on_created, &t->created_ms, err);
  if (!code) code = pst_store_run_account(t->store, t->run_id, teacher_nusd(o), t->created_ms, &t->key_id, err);
  pst_buf_done(&params);
  return code;
}

/* What writers that were killed left in the places where a turn writes. */
static void sweep(const pst_flywheel_turn_state *t) {
  static const char *const places[] = {"", "files", "tune", "turns", "quantized", "packed"};
  for (size_t i = 0; i < PST_ARRAY_LEN(places); i++) {
    char *dir = pst_path_join(pst_store_home(t->store), places[i]);
    if (dir) pst_dir_sweep(dir);
    pst_free(dir);
  }
}

/* Before anything is done: a name that nothing has, or a workload that may not leave this machine. */
static int check_teacher(const pst_flywheel_turn_state *t, pst_error *err) {
  pst_gateway_plan *plan = NULL;
  const char *name = t->options->teacher;
  int code = name ? pst_evals_target_open(t->gateway, t->store, t->workload, name, &plan, err) : 0;
  pst_gateway_plan_unref(plan);
  return code;
}

static int go(pst_flywheel_turn_state *t, pst_error *err) {
  sweep(t);
  int code = check_teacher(t, err);
  if (!code) code = begin(t, err);
  if (!code)
    code = step(t, PST_FLYWHEEL_TURN_DATA, "data: records become examples", pst_flywheel_turn_data, &t->data, err);
  if (!code) code = pst_flywheel_turn_open(t, err);
  if (!code)
    code = step(t, PST_FLYWHEEL_TURN_SAID, "preferences: what was said of answers", pst_flywheel_turn_count_preferences,
                &t->said, err);
  if (!code) code = step(t, "expected", "what tuning should be worth", pst_flywheel_turn_expect, &t->expected, err);
  if (!code && pst_flywheel_turn_encodes(t))
    code = step(t, "encoder", "tune: an encoder for the labels", pst_flywheel_turn_encoder, &t->encoder, err);
  if (!code) code = step(t, "adapter", "tune: an adapter for the examples", tune, &t->adapter, err);
  if (!code)
    code = step(t, "preferred",
                pst_flywheel_turn_stage_s(t) > 0 ? "prefer: the adapter learns what users preferred"
                                                 : "prefer: nothing that it could learn",
                pst_flywheel_turn_prefer, &t->preferred, err);
  if (!code)
    code = step(t, "plan", "plan: search and verify, the adapter among the candidates", plan, &t->planned, err);
  if (!code) code = step(t, "gate", "gate", gate, &t->gated, err);
  return code;
}

static int write_result(pst_flywheel_turn_state *t, pst_flywheel_turn_result *ret, pst_error *err) {
  const pst_json *planned = pst_json_root(t->planned);
  pst_buf report = PST_BUF_INIT, plan_json = PST_BUF_INIT, evidence = PST_BUF_INIT;
  pst_json_writer j = pst_json_writer_on(&plan_json, false), e = pst_json_writer_on(&evidence, false);
  char verdict[32];
  remove_checkpoints(t);
  if (t->options->teacher) (void)pst_flywheel_taught_forget(t->store, t->workload, NULL);
  pst_json_put_value(&j, pst_json_get(planned, "plan"));
  pst_json_put_value(&e, pst_json_get(planned, "evidence"));
  pst_flywheel_turn_report(t, &report);
  int code =
      pst_buf_status(&report) || pst_buf_status(&plan_json) || pst_buf_status(&evidence)
          ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the turn's report")
          : pst_store_run_end(t->store, t->run_id, PST_STORE_RUN_DONE, pst_buf_str(&report), pst_clock_unix_ms(), err);
  pst_flywheel_turn_result r = {.run_id = t->run_id,
                                .promoted = pst_json_bool(pst_json_get(pst_json_root(t->gated), "promoted"), false),
                                .overtaken = pst_json_bool(pst_json_get(pst_json_root(t->gated), "overtaken"), false)};
  (void)text_at(planned, "verdict", verdict, sizeof verdict);
  (void)text_at(planned, "hash", r.plan.plan_hash, sizeof r.plan.plan_hash);
  r.plan.verdict = !strcmp(verdict, "found")  ? PST_OPTIMIZER_FOUND
                   : !strcmp(verdict, "none") ? PST_OPTIMIZER_NONE
                                              : PST_OPTIMIZER_NOT_ENOUGH_DATA;
  r.plan.run_id = pst_json_int(pst_json_get(planned, "run"), 0);
  r.report = pst_buf_take(&report);
  r.plan.plan_json = pst_buf_take(&plan_json);
  r.plan.evidence = pst_buf_take(&evidence);
  if (code)
    pst_flywheel_turn_result_done(&r);
  else
    *ret = r;
  return code;
}

/* Errors that the same turn would meet again, whatever happened to its data since; after others, of the machine's (memory that was short for a moment), it goes on where it
 * was. */
static bool is_final(int code) { return code == PST_E_NO_DATA || code == PST_E_BAD_INPUT || code == PST_E_UNSUPPORTED; }

static void give_up(const pst_flywheel_turn_state *t) {
  if (!t->run_id) return;
  remove_checkpoints(t);
  (void)end_run(t, PST_STORE_RUN_FAILED, NULL);
}

int pst_flywheel_turn(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_flywheel_turn_options *options, pst_flywheel_turn_result *ret_result, pst_error *err) {
  pst_flywheel_turn_state t = {.gateway = gateway, .store = store, .workload = workload, .options = options};
  t.tune_s = options->tune_s > 0 ? options->tune_s : TUNE_S;
  t.plan_s = options->plan_s > 0 ? options->plan_s : PLAN_S;
  t.model = options->model ? options->model : options->n_models ? options->models[0].name : NULL;
  if (!t.model) return pst_error_set(err, PST_E_NOT_FOUND, "model", "there is no model to tune; pull one");
  pst_store_run_lock lock = PST_STORE_RUN_LOCK_INIT;
  int code = pst_store_run_lock_take(store, "turn", pst_str_from(pst_evals_workload_info(workload)->name), &lock, err);
  if (code == PST_E_BUSY)
    return pst_error_set(err, code, "turn", "another turn of this workload is at work; wait for its end");
  if (!code) {
    code = go(&t, err);
    if (is_final(code)) give_up(&t);
  }
  if (!code) code = write_result(&t, ret_result, err);
  pst_store_run_lock_give(&lock);
  pst_json_free(t.data);
  pst_json_free(t.said);
  pst_json_free(t.preferred);
  pst_json_free(t.expected);
  pst_json_free(t.encoder);
  pst_json_free(t.adapter);
  pst_json_free(t.planned);
  pst_json_free(t.gated);
  pst_evals_workload_free(t.own);
  return code;
}

void pst_flywheel_turn_result_done(pst_flywheel_turn_result *result) {
  pst_free(result->report);
  pst_free(result->plan.plan_json);
  pst_free(result->plan.evidence);
  *result = (pst_flywheel_turn_result){0};
}
