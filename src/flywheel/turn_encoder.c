/* The step of a turn in which an encoder learns to tell a choice task's labels apart (turn.h). */
#include "flywheel/turn.h"

/* Of the time for tuning at most so much; its epochs end it sooner as a rule, and the adapter of the model that generates has what is left. */
#define ENCODER_SHARE 0.6

bool pst_flywheel_turn_encodes(const pst_flywheel_turn_state *t) {
  return t->options->n_encoders > 0 && pst_evals_workload_info(t->workload)->n_labels >= 2;
}

static void put_result(const pst_tune_encoder_result *r, const char *model, pst_json_writer *j) {
  pst_json_member_cstr(j, "name", r->adapter.name);
  pst_json_member_cstr(j, "file", r->adapter.file);
  pst_json_member_cstr(j, "plan", r->plan_hash);
  pst_json_member_cstr(j, "model", model);
  pst_json_member_double(j, "examples", (double)r->n_texts);
  pst_json_member_double(j, "held_out", (double)r->n_held_out);
  pst_json_member_double(j, "labels", (double)r->n_labels);
  pst_json_member_double(j, "steps", (double)r->report.n_steps);
  pst_json_member_double(j, "seconds", r->report.seconds);
  pst_json_member_double(j, "tokens_per_second", r->report.tokens_per_second);
  pst_json_member_double(j, "accuracy", r->accuracy);
  pst_json_member_double(j, "calibration_error", r->calibration_error);
  pst_tune_report_put_evaluations(&r->report, j);
  pst_json_member_cstr(j, "checkpoint", r->checkpoint);
}

int pst_flywheel_turn_encoder(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  const pst_flywheel_turn_options *o = t->options;
  pst_tune_encoder_options e = pst_tune_encoder_options_default();
  pst_tune_encoder_result r;
  pst_error why = PST_ERROR_INIT;
  e.workload = t->workload;
  e.model = o->encoders[0].name;
  e.sha256 = o->encoders[0].sha256;
  e.data_set = t->data_set[0] ? t->data_set : NULL;
  e.leave_checkpoint = true;
  e.training.seconds = ENCODER_SHARE * t->tune_s;
  e.training.checkpoint_seconds =
      PST_MIN(e.training.checkpoint_seconds, PST_FLYWHEEL_CHECKPOINT_SHARE * e.training.seconds);
  e.training.seed = o->seed;
  e.training.threads = o->threads;
  e.training.on_progress = o->on_tuning;
  e.training.cancelled = o->cancelled;
  e.training.user = o->user;
  int code = pst_tune_encoder(t->gateway, t->store, &e, &r, &why);
  bool cannot = code == PST_E_NO_DATA || code == PST_E_UNSUPPORTED || code == PST_E_LIMIT || code == PST_E_NOMEM;
  pst_json_writer j = pst_json_writer_on(out, false);
  pst_json_begin_object(&j);
  if (cannot)
    pst_json_member_cstr(&j, "none", why.message); /* the turn goes on without */
  else if (!code)
    put_result(&r, e.model, &j);
  pst_json_end_object(&j);
  if (!code) pst_tune_encoder_result_done(&r);
  if (code && !cannot && err) *err = why;
  return cannot ? 0 : code;
}
