/* penstock turn: one turn of the flywheel, from a workload's records to the plan in force. */
#include <penstock/flywheel.h>

#include <math.h>
#include <string.h>

#include "cli/model_list.h"
#include "cli/open.h"
#include "cli/workbench.h"

typedef struct view {
  pst_progress bar;
  bool quiet, tuning;
  int64_t start_us;
} view;

static void end_bar(view *v) {
  if (v->tuning) pst_progress_end(&v->bar);
  v->tuning = false;
}

static void on_note(void *user, const char *text) {
  view *v = user;
  end_bar(v);
  if (!v->quiet) fprintf(stderr, "%s\n", text);
}

static void on_tuning(void *user, const pst_tune_progress *p) {
  view *v = user;
  if (!v->tuning) {
    v->tuning = true;
    v->start_us = pst_clock_us();
    pst_progress_begin_timed(&v->bar, "tuning", (int64_t)p->seconds_left, v->quiet);
  }
  char text[160];
  int64_t spent = (pst_clock_us() - v->start_us) / 1000000;
  pst_progress_note(&v->bar, "%s", pst_cli_tuning_note(p, text, sizeof text));
  v->bar.total = spent + (int64_t)p->seconds_left; /* its epochs may end before its time */
  pst_progress_update(&v->bar, spent);
}

/* ---- what came, for a person ---- */

static double number(const pst_json *v, const char *path) { return pst_json_double(pst_json_path(v, path), NAN); }

static void print_quality(const char *title, const pst_json *of) {
  const pst_json *q = pst_json_path(of, "verify.quality");
  double usd = pst_json_double(pst_json_at(pst_json_path(of, "nusd_per_1000_accepted"), 0), NAN) / 1e9;
  if (!q) return;
  printf("  %-8s %.1f%% [%.1f, %.1f] of %.0f held-back items", title, 100 * pst_json_double(pst_json_at(q, 0), NAN),
         100 * pst_json_double(pst_json_at(q, 1), NAN), 100 * pst_json_double(pst_json_at(q, 2), NAN),
         number(of, "verify.n"));
  if (usd == usd) printf(", $%.6f per 1,000 accepted", usd);
  if (number(of, "estimate.prompt_tokens") > 0)
    printf(", %.0f + %.0f tokens", number(of, "estimate.prompt_tokens"), number(of, "estimate.completion_tokens"));
  putchar('\n');
}

/* The best plan of prompted models, and how the one taken stands against it. */
static void print_prompted(const pst_json *r) {
  const pst_json *p = pst_json_path(r, "prompted"), *d = pst_json_path(p, "comparison.difference");
  pst_str why = pst_json_str(pst_json_path(r, "prompted_not_asked")),
          part = pst_json_str(pst_json_path(p, "cost_part"));
  pst_str name = pst_json_str(pst_json_path(p, "name"));
  if (why.n) printf("  prompted the best plan of prompted models was not asked: %.*s\n", (int)why.n, why.data);
  if (!p) return;
  print_quality("prompted", p);
  printf("           %.*s\n           against it %+.1f points [%+.1f, %+.1f], paired on %.0f items", (int)name.n,
         name.data, 100 * pst_json_double(pst_json_at(d, 0), NAN), 100 * pst_json_double(pst_json_at(d, 1), NAN),
         100 * pst_json_double(pst_json_at(d, 2), NAN), number(p, "comparison.n"));
  if (number(p, "cost_ratio") > 0) printf(", at %.3g of its cost per accepted answer", number(p, "cost_ratio"));
  if (part.n) printf(", about %.*s", (int)part.n, part.data);
  putchar('\n');
}

static void print_ratio(double ratio) {
  printf(ratio < 2 ? ", %.3g%% of what they cost" : ", %.3g times what they cost", ratio < 2 ? 100 * ratio : ratio);
}

static void print_expected(const pst_json *r) {
  double then = number(r, "expected.request_nusd"), ratio = number(r, "expected.cost_ratio");
  if (!(then > 0)) return;
  printf("  expected $%.3g per 1,000 requests of %.0f + %.0f tokens", 1000 * then / 1e9,
         number(r, "expected.prompt_tokens"), number(r, "expected.answer_tokens"));
  if (ratio > 0) {
    print_ratio(ratio);
    if (number(r, "expected.prompt_tokens_now") > 0)
      printf(" with %.0f + %.0f", number(r, "expected.prompt_tokens_now"), number(r, "expected.answer_tokens_now"));
  }
  if (number(r, "expected.payback_days") > 0) printf("; paid back in %.3g days", number(r, "expected.payback_days"));
  putchar('\n');
  if (number(r, "expected.codes.n") > 0)
    printf("           %.0f output codes save %.0f%% of an answer's tokens, which had %.1f\n",
           number(r, "expected.codes.n"), 100 * number(r, "expected.codes.saved"),
           number(r, "expected.codes.plain_answer_tokens"));
}

static void print_encoder(const pst_json *r) {
  const pst_json *none = pst_json_path(r, "encoder.none"), *name = pst_json_path(r, "encoder.name");
  if (none) printf("  encoder  none: %.*s\n", (int)pst_json_str(none).n, pst_json_str(none).data);
  if (!name) return;
  printf(
      "  encoder  %.*s: %.0f examples, %.0f steps in %.1f minutes, with n-grams %.1f%% of %.0f held-out examples right\n",
      (int)pst_json_str(name).n, pst_json_str(name).data, number(r, "encoder.examples"), number(r, "encoder.steps"),
      number(r, "encoder.seconds") / 60, 100 * number(r, "encoder.accuracy"), number(r, "encoder.held_out"));
}

static void print_data(const pst_json *r) {
  printf("  data     %.0f records, %.0f kept", number(r, "data.records"), number(r, "data.kept"));
  for (pst_json_iter it = pst_json_iterate(pst_json_path(r, "data.left_out")); pst_json_next(&it);)
    printf(", %.0f %.*s", pst_json_double(it.value, 0), (int)it.key.n, it.key.data);
  if (number(r, "data.near_to_items") > 0) printf(", %.0f near to items that judge", number(r, "data.near_to_items"));
  printf("; %.0f examples added\n", number(r, "data.added"));
}

static void print_paid(const pst_json *r) {
  double teacher = pst_json_double(pst_json_path(r, "adapter.teacher.nusd"), 0),
         paid = teacher + number(r, "spent.providers_nusd"), limit = number(r, "budget_nusd");
  if (!(paid > 0)) return;
  printf("  paid     $%.4g to providers", paid / 1e9);
  if (limit > 0) printf(" of at most $%.4g", limit / 1e9);
  if (teacher > 0) printf(", the teacher $%.4g", teacher / 1e9);
  putchar('\n');
}

static void print_report(const pst_json *r) {
  printf("turn %.0f of %.*s\n", number(r, "run"), (int)pst_json_str(pst_json_path(r, "workload")).n,
         pst_json_str(pst_json_path(r, "workload")).data);
  if (number(r, "data.records") > 0)
    print_data(r);
  else
    puts("  data     no records that may be trained on; the workload's own examples");
  if (number(r, "data.without_text") > 0)
    printf("           %.0f records left out: pictures, calls of tools, or no input of the workload's\n",
           number(r, "data.without_text"));
  print_expected(r);
  print_encoder(r);
  printf("  adapter  %.*s: %.0f examples, %.0f steps in %.1f minutes, held-out loss %.3f to %.3f\n",
         (int)pst_json_str(pst_json_path(r, "adapter.name")).n, pst_json_str(pst_json_path(r, "adapter.name")).data,
         number(r, "adapter.examples"), number(r, "adapter.steps"), number(r, "adapter.seconds") / 60,
         number(r, "adapter.loss_before"), number(r, "adapter.loss"));
  if (number(r, "adapter.score.asked") > 0)
    printf("           %.0f of %.0f held-out examples answered right by it\n", number(r, "adapter.score.right"),
           number(r, "adapter.score.asked"));
  if (pst_json_path(r, "adapter.teacher"))
    printf("  teacher  asked %.0f records whose own answers would not do: %.0f answers learned, the others were "
           "not of the workload's form or failed%s\n",
           number(r, "adapter.teacher.asked"), number(r, "adapter.teacher.usable"),
           pst_json_bool(pst_json_path(r, "adapter.teacher.broke"), false) ? "; then the money was spent" : "");
  printf("  prefer   %.*s\n", (int)pst_json_str(pst_json_path(r, "preferences.why")).n,
         pst_json_str(pst_json_path(r, "preferences.why")).data);
  print_quality("before", pst_json_path(r, "before"));
  print_quality("plan", pst_json_path(r, "plan"));
  print_prompted(r);
  double now = number(r, "before.estimate.request_nusd"), then = number(r, "plan.estimate.request_nusd");
  if (then > 0) printf("  came     $%.3g per 1,000 requests", 1000 * then / 1e9);
  if (now > 0 && then > 0) print_ratio(then / now);
  if (then > 0) putchar('\n');
  print_paid(r);
  printf("  gate     %s: %.*s\n",
         pst_json_bool(pst_json_path(r, "gate.promoted"), false) ? "promoted" : "the plan in force stays",
         (int)pst_json_str(pst_json_path(r, "gate.why")).n, pst_json_str(pst_json_path(r, "gate.why")).data);
}

static int print_result(const pst_cli_args *a, const pst_flywheel_turn_result *r, pst_error *err) {
  pst_json_doc *doc = NULL;
  if (pst_cli_flag(a, "json")) {
    puts(r->report);
    return 0;
  }
  int code = pst_json_parse(r->report, strlen(r->report), "report", &doc, err);
  if (code) return code;
  print_report(pst_json_root(doc));
  printf("plan %s (penstock explain %.12s)\n", r->plan.plan_hash, r->plan.plan_hash);
  if (pst_cli_text(a, "report")) printf("report: %s\n", pst_cli_text(a, "report"));
  pst_json_free(doc);
  return 0;
}

/* The plan's page with the turn on it: the evidence, and the turn's report as a member of it. */
static int write_page(const pst_cli_args *a, const pst_flywheel_turn_result *r, pst_error *err) {
  const char *path = pst_cli_text(a, "report");
  pst_json_doc *doc = NULL;
  pst_buf text = PST_BUF_INIT;
  if (!path) return 0;
  int code = pst_json_parse(r->plan.evidence, strlen(r->plan.evidence), "evidence", &doc, err);
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_begin_object(&w);
  for (pst_json_iter it = pst_json_iterate(code ? NULL : pst_json_root(doc)); pst_json_next(&it);) {
    pst_json_key_str(&w, it.key);
    pst_json_put_value(&w, it.value);
  }
  pst_json_key(&w, "turn");
  pst_json_put_raw(&w, pst_str_from(r->report));
  pst_json_end_object(&w);
  if (!code && pst_buf_status(&text)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the page");
  if (!code) code = pst_cli_write_report(path, text.data, err);
  pst_json_free(doc);
  pst_buf_done(&text);
  return code;
}

static int run_turn(const pst_cli_args *a, pst_error *err) {
  pst_cli_workbench b = {NULL, NULL, NULL, NULL};
  pst_cli_model_list list = {0};
  pst_flywheel_turn_result result = {0};
  view v = {.quiet = pst_cli_flag(a, "quiet")};
  int64_t money_nusd = 0;
  int code = pst_cli_budget(a, &money_nusd, err);
  if (!code) code = pst_cli_check_writable(pst_cli_text(a, "report"), err);
  if (!code) code = pst_cli_workbench_open(a, a->words[0], &b, err);
  if (!code) code = pst_cli_model_list_read(a, b.home, &list, err);
  pst_cli_catch_interrupts();
  pst_flywheel_turn_options o = {.teacher = pst_cli_text(a, "teacher"),
                                 .model = pst_cli_text(a, "tune-model"),
                                 .models = list.models,
                                 .n_models = list.n,
                                 .encoders = list.encoders,
                                 .n_encoders = list.n_encoders,
                                 .tune_s = 60 * pst_cli_number(a, "tune-minutes"),
                                 .plan_s = 60 * pst_cli_number(a, "budget-minutes"),
                                 .budget_nusd = money_nusd,
                                 .seed = (uint64_t)pst_cli_int(a, "seed"),
                                 .max_items = (size_t)pst_cli_int(a, "max-items"),
                                 .threads = (int)pst_cli_int(a, "threads"),
                                 .keep_plan = pst_cli_flag(a, "no-promote"),
                                 .fresh = pst_cli_flag(a, "fresh"),
                                 .codes = pst_cli_flag(a, "codes"),
                                 .quiet = v.quiet,
                                 .note = on_note,
                                 .on_tuning = on_tuning,
                                 .cancelled = pst_cli_interrupted,
                                 .user = &v};
  if (!code) code = pst_flywheel_turn(b.gateway, b.store, b.workload, &o, &result, err);
  end_bar(&v);
  if (!code) {
    int page = write_page(a, &result, err);
    code = print_result(a, &result, err);
    if (!code) code = page;
  }
  if (!code && result.overtaken) code = PST_CLI_FAILED;
  if (!code && result.plan.verdict != PST_OPTIMIZER_FOUND)
    code = result.plan.verdict == PST_OPTIMIZER_NONE ? PST_CLI_FAILED : PST_CLI_NO_DATA;
  pst_flywheel_turn_result_done(&result);
  pst_cli_model_list_done(&list);
  pst_cli_workbench_close(&b);
  return code;
}

static const pst_cli_option options[] = {
    {"model", 'm', PST_CLI_TEXT, "NAME", NULL, 0, 0, true,
     "a model that plans may use (default: all that were pulled)"},
    {"tune-model", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false, "the model to tune (default: the first of them)"},
    {"teacher", 0, PST_CLI_TEXT, "TARGET", NULL, 0, 0, false,
     "a model, PROVIDER/MODEL or plan that answers the records whose own answers will not do; its answers are learned"},
    {"tune-minutes", 0, PST_CLI_NUMBER, "N", "20", 0.05, 10080, false, "time to train for"},
    {"budget-minutes", 'b', PST_CLI_NUMBER, "N", "6", 0.1, 10080, false, "time to search and verify a plan"},
    PST_CLI_BUDGET("10"),
    {"max-items", 0, PST_CLI_INT, "N", "0", 0, 1e9, false, "most items of each part to ask (0: all)"},
    {"report", 0, PST_CLI_TEXT, "FILE", NULL, 0, 0, false,
     "write a page: what the turn changed, what it bought, what it cost; and the plan's evidence"},
    {"no-promote", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "measure only: the plan in force stays"},
    {"fresh", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "do not go on with an unfinished turn"},
    {"codes", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "learn answers in output codes where these save a fifth of their tokens or more: cheaper, perhaps less often right"},
    {"seed", 0, PST_CLI_INT, "N", "1", 0, 9007199254740991.0, false, "decides draws and orders"},
    PST_CLI_THREADS,
    PST_CLI_HOME,
    PST_CLI_JSON,
    PST_CLI_QUIET,
};
const pst_cli_command pst_cli_turn = {
    "turn",
    "WORKLOAD",
    "records to examples to an adapter to a better plan, which must prove itself",
    "Curates the workload's records, tunes an adapter, lets it learn what users preferred where they said enough of answers (corrections, thumbs, scores), searches plans with it among the candidates, and puts the best in force if it holds on held-back items\n"
    "against the plan that is: not worse by more than the goal's margin, no further below the best plan found than its max_quality_loss, and better by its objective. Killed or interrupted, the same command goes on with the step it was at. Exit: 0 a plan passed, 1 none did, or was overtaken (records erased or another plan put in force meanwhile), 3 there is not\n"
    "enough data.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_turn};
