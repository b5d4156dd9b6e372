/* What users said of answers, in a turn: whether there is enough of it, and a short stage that learns it behind the examples.
 *
 * Corrections are examples too (turn_data.c), so what this stage adds is the difference: rather this answer than that one. It begins at the adapter of the examples and is worth having only
 * where answers do not suffer: what is kept is whichever answers the held-out examples better (pst_tune_train). Where little was said nothing is done, in no time. */
#include <math.h>
#include <string.h>

#include "flywheel/tuning.h"
#include "flywheel/turn.h"

/* Few differences are learned by heart: pairs for DPO; for KTO answers that were judged, and of each kind. */
enum { LEAST_PAIRS = 24, LEAST_JUDGED = 48, LEAST_OF_A_KIND = 8 };
enum { EPOCHS = 4, BATCH = 8, LOOKS = 4 };
#define STAGE_SHARE 0.15 /* of the time for the adapter */
#define HELD_SHARE 0.2   /* of the preferences */
#define SCORE_SHARE 0.25 /* of the stage, for answers: they decide */

static double number_at(const pst_json *v, const char *path) { return pst_json_double(pst_json_path(v, path), NAN); }

/* ---- is there enough? ---- */

typedef struct feedback {
  pst_str workload;
  int64_t n;
} feedback;

static int take_counts(void *user, const pst_store_record_counts *counts) {
  feedback *f = user;
  if (pst_str_equal(counts->workload, f->workload)) f->n = counts->n_feedback;
  return 0;
}

/* Pairs say more than marks. */
static bool choose_objective(const pst_data_curated *c, pst_tune_objective *ret_objective) {
  int64_t liked = c->n_pairs + c->n_liked, disliked = c->n_pairs + c->n_disliked;
  bool pairs = c->n_pairs >= LEAST_PAIRS,
       marks = liked + disliked >= LEAST_JUDGED && PST_MIN(liked, disliked) >= LEAST_OF_A_KIND;
  *ret_objective = pairs ? PST_TUNE_DPO : PST_TUNE_KTO;
  return c->hash[0] && (pairs || marks);
}

int pst_flywheel_turn_count_preferences(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(t->workload);
  const pst_data_curate_options o = {.workload = pst_str_from(info->name),
                                     .kind = PST_DATA_PREFERENCES,
                                     .held = HELD_SHARE,
                                     .seed = t->options->seed,
                                     .form = t->workload};
  pst_data_curated c = {.n_records = 0};
  feedback f = {o.workload, 0};
  pst_tune_objective objective;
  pst_buf report = PST_BUF_INIT;
  int code = pst_store_records_count(t->store, take_counts, &f, err);
  if (!code && f.n >= LEAST_PAIRS) code = pst_data_curate(t->store, &o, &c, &report, err);
  if (code == PST_E_NO_DATA) code = 0;
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "feedback", f.n);
  pst_json_member_int(&w, "pairs", c.n_pairs);
  pst_json_member_int(&w, "liked", c.n_liked);
  pst_json_member_int(&w, "disliked", c.n_disliked);
  if (!code && choose_objective(&c, &objective)) {
    pst_json_member_cstr(&w, "objective", pst_tune_objective_name(objective));
    pst_json_member_cstr(&w, "data_set", c.hash);
  }
  pst_json_end_object(&w);
  pst_buf_done(&report);
  return code;
}

/* ---- the stage ---- */

static bool stage_objective(const pst_flywheel_turn_state *t, pst_tune_objective *ret_objective) {
  return pst_tune_objective_from(pst_json_str(pst_json_get(pst_json_root(t->said), "objective")), ret_objective);
}

double pst_flywheel_turn_stage_s(const pst_flywheel_turn_state *t) {
  pst_tune_objective objective;
  return stage_objective(t, &objective) ? STAGE_SHARE * t->tune_s : 0;
}

static void say_too_few(const pst_json *said, pst_buf *why) {
  double pairs = number_at(said, "pairs");
  pst_buf_printf(why,
                 "not enough preferences: %.0f of %d corrections needed, %.0f of %d judged answers (%d of each kind)",
                 pairs, (int)LEAST_PAIRS, 2 * pairs + number_at(said, "liked") + number_at(said, "disliked"),
                 (int)LEAST_JUDGED, (int)LEAST_OF_A_KIND);
}

static void say_why(const pst_tune_workload_result *r, bool taken, pst_buf *why) {
  const pst_tune_report *p = &r->report;
  const pst_tune_evaluation *first = &p->evaluations[0], *then = taken ? &p->best : first;
  for (size_t i = p->n_evaluations; !taken && i-- > 1 && then == first;)
    if (p->evaluations[i].n_asked) then = &p->evaluations[i];
  pst_buf_puts(why, taken ? "taken: " : "the adapter of the examples stays: ");
  if (then != first)
    pst_buf_printf(why, "%d of %d held-out examples are answered right by what prefers, %d without", then->n_right,
                   then->n_asked, first->n_right);
  else
    pst_buf_puts(why, "there was no time, or there were no examples, to compare them by answers");
}

static void put_stage(const pst_tune_workload_result *r, const char *from, pst_json_writer *w) {
  const pst_tune_report *p = &r->report;
  pst_json_member_cstr(w, "from", from);
  pst_json_member_double(w, "examples", (double)r->n_texts);
  pst_json_member_double(w, "held_out", (double)r->n_held_out);
  pst_json_member_double(w, "steps", (double)p->n_steps);
  pst_json_member_double(w, "seconds", p->seconds);
  pst_json_member_double(w, "loss_before", p->held_out_before);
  pst_json_member_double(w, "loss", p->held_out_loss);
  pst_json_member_double(w, "accuracy", p->accuracy);
  pst_tune_report_put_evaluations(p, w);
  if (r->adapter.name[0]) {
    pst_json_member_cstr(w, "name", r->adapter.name);
    pst_json_member_cstr(w, "file", r->adapter.file);
    pst_json_member_cstr(w, "plan", r->plan_hash);
  }
  pst_json_member_cstr(w, "checkpoint", r->checkpoint);
}

/* What the adapter of the examples was trained with, in what concerns its held-out examples: they are the same. */
static pst_tune_workload_options options_of(const pst_flywheel_turn_state *t, pst_tune_objective objective,
                                            const char *from) {
  pst_tune_workload_options w = pst_flywheel_turn_tuning(t, pst_tune_options_for(objective));
  w.from = from;
  w.codes = 0; /* those of the adapter */
  w.only_better = true;
  w.training.seconds = pst_flywheel_turn_stage_s(t);
  w.training.max_epochs = EPOCHS;
  w.training.batch_texts = BATCH;
  w.training.evaluations = LOOKS;
  w.training.score_share = SCORE_SHARE;
  return w;
}

/* PST_E_NO_DATA is an answer: what there is lies near to held-out examples. PST_E_NOMEM is one, too: what memory does not allow is no reason to give up the adapter that there is. */
static int run_stage(pst_flywheel_turn_state *t, pst_tune_objective objective, pst_buf *why, pst_json_writer *w,
                     pst_error *err) {
  char from[64], set[65];
  pst_tune_workload_result r;
  pst_str name = pst_json_str(pst_json_get(pst_json_root(t->adapter), "name")),
          hash = pst_json_str(pst_json_get(pst_json_root(t->said), "data_set"));
  (void)snprintf(from, sizeof from, "%.*s", (int)name.n, name.data);
  (void)snprintf(set, sizeof set, "%.*s", (int)hash.n, hash.data);
  pst_tune_workload_options o = options_of(t, objective, from);
  int code = pst_flywheel_prefer(t->gateway, t->store, t->workload, set, &o, &r, NULL, err);
  if (code == PST_E_NO_DATA || code == PST_E_NOMEM) {
    pst_buf_printf(why, "%s: %s", code == PST_E_NO_DATA ? "not enough preferences" : "not learned", err->message);
    return 0;
  }
  if (code) return code;
  bool taken = r.adapter.name[0] != '\0';
  put_stage(&r, from, w);
  pst_json_member_bool(w, "taken", taken);
  say_why(&r, taken, why);
  pst_tune_workload_result_done(&r);
  return 0;
}

int pst_flywheel_turn_prefer(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  static const char *const copied[] = {"feedback", "pairs", "liked", "disliked", "objective"};
  const pst_json *said = pst_json_root(t->said);
  pst_tune_objective objective;
  pst_buf why = PST_BUF_INIT;
  int code = 0;
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  for (size_t i = 0; i < PST_ARRAY_LEN(copied); i++) {
    const pst_json *v = pst_json_get(said, copied[i]);
    if (!v) continue;
    pst_json_key(&w, copied[i]);
    pst_json_put_value(&w, v);
  }
  if (stage_objective(t, &objective))
    code = run_stage(t, objective, &why, &w, err);
  else
    say_too_few(said, &why);
  pst_json_member_str(&w, "why", (pst_str){pst_buf_text(&why), why.n});
  pst_json_end_object(&w);
  if (!code && pst_buf_status(&why)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a step");
  pst_buf_done(&why);
  return code;
}
