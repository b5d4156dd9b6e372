/* penstock optimize: search the plans of a workload, verify the best, keep and print it. */
#include <penstock/flywheel.h>

#include <stdlib.h>
#include <string.h>

#include "cli/model_list.h"
#include "cli/open.h"
#include "cli/plans.h"
#include "cli/workbench.h"

static int write_plan(const char *path, const char *plan, pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(plan, strlen(plan), "plan", &doc, err);
  if (!code) { /* for people: indented; the hash is of the canonical form either way */
    pst_json_writer w = pst_json_writer_on(&text, true);
    pst_json_put_value(&w, pst_json_root(doc));
    pst_buf_putc(&text, '\n');
    code = pst_buf_status(&text) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory")
                                 : pst_file_write_atomic(path, text.data, text.n, err);
  }
  pst_json_free(doc);
  pst_buf_done(&text);
  return code;
}

static int print_json(const pst_optimizer_result *r) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "run", r->run_id);
  pst_json_member_cstr(&w, "verdict", pst_optimizer_verdict_name(r->verdict));
  pst_json_member_cstr(&w, "plan_hash", r->plan_hash);
  pst_json_key(&w, "plan");
  pst_json_put_raw(&w, pst_str_from(r->plan_json));
  pst_json_key(&w, "evidence");
  pst_json_put_raw(&w, pst_str_from(r->evidence));
  pst_json_end_object(&w);
  int code = pst_buf_status(&text);
  if (!code) puts(text.data);
  pst_buf_done(&text);
  return code;
}

static int print_result(const pst_cli_args *a, const pst_optimizer_result *r, bool promoted, pst_error *err) {
  if (pst_cli_flag(a, "json")) return print_json(r);
  pst_buf text = PST_BUF_INIT;
  int code = pst_optimizer_summary(r->evidence, &text, err);
  if (!code) {
    fputs(text.data, stdout);
    printf("\nplan %s (penstock explain %.12s), run %lld\n", r->plan_hash, r->plan_hash, (long long)r->run_id);
    if (promoted) puts("it is now the plan in force");
    if (pst_cli_text(a, "output")) printf("written to %s\n", pst_cli_text(a, "output"));
    if (pst_cli_text(a, "report")) printf("report: %s\n", pst_cli_text(a, "report"));
  }
  pst_buf_done(&text);
  return code;
}

/* PST_E_DENIED: records that its adapter learned from were erased meanwhile. */
static int put_in_force(const pst_cli_workbench *b, const pst_optimizer_result *r, pst_error *err) {
  pst_str name = pst_str_from(pst_evals_workload_info(b->workload)->name);
  char now[65] = "";
  (void)pst_store_plan_assigned(b->store, name, PST_STORE_PLAN_IN_FORCE, NULL, now, NULL);
  if (!strcmp(now, r->plan_hash)) return 0;
  int code = pst_cli_plan_check(b->store, r->plan_hash, r->plan_json, err);
  return code ? code
              : pst_store_plan_assign(b->store, name, PST_STORE_PLAN_IN_FORCE, pst_str_from(r->plan_hash),
                                      PST_STR("optimize"), pst_clock_unix_ms(), err);
}

static int run_optimize(const pst_cli_args *a, pst_error *err) {
  pst_cli_workbench b = {NULL, NULL, NULL, NULL};
  pst_cli_model_list list = {0};
  pst_optimizer_result result = {0};
  int64_t replay = pst_cli_given(a, "replay") ? pst_cli_int(a, "replay") : 0;
  pst_optimizer_cache_wish cache = PST_OPTIMIZER_CACHE_AUTO;
  if (!pst_optimizer_cache_wish_from(pst_str_from(pst_cli_text(a, "cache")), &cache))
    return pst_error_set(err, PST_E_BAD_INPUT, "--cache", "takes auto, on or off, not '%.40s'",
                         pst_cli_text(a, "cache"));
  int64_t money_nusd = 0;
  int code = pst_cli_budget(a, &money_nusd, err);
  if (!code) code = pst_cli_check_writable(pst_cli_text(a, "output"), err);
  if (!code) code = pst_cli_check_writable(pst_cli_text(a, "report"), err);
  if (!code) code = pst_cli_workbench_open(a, a->words[0], &b, err);
  if (!code && !replay) code = pst_cli_model_list_read(a, b.home, &list, err);
  pst_cli_catch_interrupts();
  pst_flywheel_outlook_source source = {b.gateway, b.store, b.workload, (int)pst_cli_int(a, "threads"), false};
  pst_optimizer_options o = {.models = list.models,
                             .n_models = list.n,
                             .encoders = list.encoders,
                             .n_encoders = list.n_encoders,
                             .seed = (uint64_t)pst_cli_int(a, "seed"),
                             .budget_s = 60 * pst_cli_number(a, "budget-minutes"),
                             .budget_nusd = money_nusd,
                             .max_items = (size_t)pst_cli_int(a, "max-items"),
                             .threads = (int)pst_cli_int(a, "threads"),
                             .replay_run = replay,
                             .fresh = pst_cli_flag(a, "fresh"),
                             .cache = cache,
                             .quiet = pst_cli_flag(a, "quiet"),
                             .outlook = pst_flywheel_outlook,
                             .outlook_user = &source,
                             .cancelled = pst_cli_interrupted};
  if (!code) code = pst_optimizer_run(b.gateway, b.store, b.workload, &o, &result, err);
  bool found = !code && result.verdict == PST_OPTIMIZER_FOUND, promote = found && !replay && pst_cli_flag(a, "promote");
  if (!code && pst_cli_text(a, "output")) code = write_plan(pst_cli_text(a, "output"), result.plan_json, err);
  if (!code && pst_cli_text(a, "report")) code = pst_cli_write_report(pst_cli_text(a, "report"), result.evidence, err);
  int refused = !code && promote ? put_in_force(&b, &result, err) : 0;
  if (!code) code = print_result(a, &result, promote && !refused, err);
  if (!code) code = refused;
  if (!code && replay && !result.same_plan)
    code = pst_error_set(err, PST_E_CORRUPT, NULL, "run %lld took another plan", (long long)replay);
  if (!code && !found) code = result.verdict == PST_OPTIMIZER_NONE ? PST_CLI_FAILED : PST_CLI_NO_DATA;
  pst_optimizer_result_done(&result);
  pst_cli_model_list_done(&list);
  pst_cli_workbench_close(&b);
  return code;
}

static const pst_cli_option options[] = {
    {"model", 'm', PST_CLI_TEXT, "NAME", NULL, 0, 0, true,
     "a model to consider, or an encoder for a classifier (default: all that were pulled)"},
    {"output", 'o', PST_CLI_TEXT, "FILE", NULL, 0, 0, false, "write the plan there"},
    {"report", 0, PST_CLI_TEXT, "FILE", NULL, 0, 0, false, "write a page with the front, the verdict and the methods"},
    {"budget-minutes", 'b', PST_CLI_NUMBER, "N", "6", 0.1, 10080, false,
     "time for calibration, search and verification"},
    PST_CLI_BUDGET("10"),
    {"seed", 0, PST_CLI_INT, "N", "1", 0, 9007199254740991.0, false, "decides the order of items"},
    {"max-items", 0, PST_CLI_INT, "N", "0", 0, 1e9, false, "most items of each part to ask (0: all)"},
    {"cache", 0, PST_CLI_TEXT, "WHEN", "auto", 0, 0, false,
     "whether the plan gives answers again: auto (as the one in force, or where requests repeat), on, off"},
    {"promote", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "put a plan that passed in force; exit 2 where records that its adapter learned from were erased meanwhile"},
    {"replay", 0, PST_CLI_INT, "RUN", NULL, 1, 9007199254740991.0, false,
     "measure nothing: search again from the log of that run, and come to the same plan"},
    {"fresh", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "do not go on with an unfinished run"},
    PST_CLI_THREADS,
    PST_CLI_HOME,
    PST_CLI_JSON,
    PST_CLI_QUIET,
};
const pst_cli_command pst_cli_optimize = {
    "optimize",
    "WORKLOAD",
    "find the plan that serves a workload best",
    "WORKLOAD is a folder. At the end it says what tuning should be worth: what a request would cost, when training is paid back, the command for it, or what\n"
    "is missing. Exit: 0 a plan passed on held-back items, 1 none did, 3 there is not enough data, or the run did\n"
    "not come to its end; the same command goes on with what was measured.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_optimize};
