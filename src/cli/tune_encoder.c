/* penstock tune with an encoder: what tells a choice task's labels apart, without a generator (tune.c has the options). */
#include "cli/tune.h"

#include <string.h>

/* What means nothing to an encoder is refused when it is asked for. */
static int check_given(const pst_cli_args *a, pst_error *err) {
  static const char *const foreign[] = {"beta",    "smoothing",      "min-score",   "teacher", "budget-usd",
                                        "distill", "distill-share",  "from",        "codes",   "prompt",
                                        "layout",  "share-prefixes", "max-examples"};
  for (size_t i = 0; i < PST_ARRAY_LEN(foreign); i++)
    if (pst_cli_given(a, foreign[i]))
      return pst_error_set(err, PST_E_BAD_INPUT, foreign[i], "an encoder is tuned without it; leave the option out");
  return strcmp(pst_cli_text(a, "objective"), "sft") == 0
             ? 0
             : pst_error_set(err, PST_E_BAD_INPUT, "objective", "an encoder learns from examples alone: sft");
}

static void read_options(const pst_cli_args *a, pst_tune_encoder_options *o) {
  pst_tune_options *t = &o->training;
  o->name = pst_cli_text(a, "name");
  if (pst_cli_given(a, "held-out")) o->held_out_share = pst_cli_number(a, "held-out");
  if (pst_cli_given(a, "rank")) t->rank = (int)pst_cli_int(a, "rank");
  t->alpha = pst_cli_given(a, "alpha") ? pst_cli_number(a, "alpha") : 2.0 * t->rank;
  if (pst_cli_given(a, "rate")) t->learning_rate = pst_cli_number(a, "rate");
  if (pst_cli_given(a, "batch")) t->batch_texts = (int)pst_cli_int(a, "batch");
  if (pst_cli_given(a, "epochs")) t->max_epochs = (int)pst_cli_int(a, "epochs");
  t->steps = pst_cli_int(a, "steps");
  t->seconds = t->steps ? 0 : 60 * pst_cli_number(a, "minutes");
  t->seed = (uint64_t)pst_cli_int(a, "seed");
  t->threads = (int)pst_cli_int(a, "threads");
  t->cancelled = pst_cli_interrupted;
}

static int print_json(const pst_tune_encoder_result *r) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "objective", "labels");
  pst_json_member_cstr(&w, "adapter", r->adapter.name);
  pst_json_member_cstr(&w, "file", r->adapter.file);
  pst_json_member_cstr(&w, "classifier", r->classifier);
  pst_json_member_cstr(&w, "plan_hash", r->plan_hash);
  pst_json_key(&w, "plan");
  pst_json_put_raw(&w, pst_str_from(r->plan_json));
  pst_json_member_int(&w, "steps", r->report.n_steps);
  pst_json_member_int(&w, "best_step", r->report.best_step);
  pst_json_member_int(&w, "tokens", r->report.n_tokens);
  pst_json_member_int(&w, "examples", (int64_t)r->n_texts);
  pst_json_member_int(&w, "held_out", (int64_t)r->n_held_out);
  pst_json_member_int(&w, "near_to_items", (int64_t)r->n_near);
  pst_json_member_int(&w, "labels", (int64_t)r->n_labels);
  pst_json_member_double(&w, "accuracy", r->accuracy);
  pst_json_member_double(&w, "log_loss", r->log_loss);
  pst_json_member_double(&w, "calibration_error", r->calibration_error);
  pst_tune_report_put_evaluations(&r->report, &w);
  pst_json_member_double(&w, "seconds", r->report.seconds);
  pst_json_member_double(&w, "tokens_per_second", r->report.tokens_per_second);
  pst_json_end_object(&w);
  int code = pst_buf_status(&text);
  if (!code) puts(text.data);
  pst_buf_done(&text);
  return code;
}

static void print_result(const pst_tune_encoder_result *r, const char *model, const char *folder) {
  const pst_tune_report *p = &r->report;
  printf("%lld steps over %zu examples in %.1f minutes, %.0f tokens/s\n", (long long)p->n_steps, r->n_texts,
         p->seconds / 60, p->tokens_per_second);
  printf(
      "of %zu held-out examples the encoder tells %d apart, of %zu labels; beside n-grams %.1f%% are right, calibration "
      "error %.1f%%\n",
      r->n_held_out, p->best.n_right, r->n_labels, 100 * r->accuracy, 100 * r->calibration_error);
  if (r->n_near) printf("%zu examples are near to items that judge models, and were left out\n", r->n_near);
  printf("adapter %s of %s, %.1f MB\n", r->adapter.name, model, (double)r->adapter.bytes / 1e6);
  printf("plan %s\nmeasure it: penstock eval %s --target %.12s\n", r->plan_hash, folder, r->plan_hash);
}

int pst_cli_tune_encoder(const pst_cli_args *a, pst_cli_workbench *b, const pst_models_file *file,
                         pst_tune_precision precision, void (*on_progress)(void *, const pst_tune_progress *),
                         void *user, pst_error *err) {
  pst_tune_encoder_options o = pst_tune_encoder_options_default();
  pst_tune_encoder_result r;
  char sha256[65];
  int code = check_given(a, err);
  if (code) return code;
  read_options(a, &o);
  o.workload = b->workload;
  o.model = pst_cli_text(a, "model");
  o.training.precision = precision;
  o.training.on_progress = on_progress;
  o.training.user = user;
  memcpy(sha256, file->sha256, sizeof sha256);
  if (!sha256[0]) code = pst_models_hash(b->home, file->path, NULL, sha256, err);
  o.sha256 = sha256;
  if (!code) code = pst_tune_encoder(b->gateway, b->store, &o, &r, err);
  if (code) return code;
  if (pst_cli_text(a, "output"))
    code = pst_file_write_atomic(pst_cli_text(a, "output"), r.plan_json, strlen(r.plan_json), err);
  if (!code && pst_cli_flag(a, "json"))
    code = print_json(&r);
  else if (!code)
    print_result(&r, o.model, a->words[0]);
  pst_tune_encoder_result_done(&r);
  return code;
}
