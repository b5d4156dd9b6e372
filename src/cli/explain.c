/* penstock explain: a plan as a tree with estimates; with --analyze, what was measured beside them. */
#include <penstock/optimizer.h>

#include <ctype.h>
#include <string.h>

#include "cli/workbench.h"

/* A file, a hash or the beginning of one, or a workload's name (its plan in force). */
static int find_plan(pst_store *store, const char *what, pst_gateway_plan **ret_plan, pst_error *err) {
  char *json = NULL;
  size_t n = 0, digits = strspn(what, "0123456789abcdef");
  int code;
  if (pst_file_exists(what))
    code = pst_file_read(what, 16 << 20, &json, &n, err);
  else if (digits >= 8 && !what[digits])
    code = pst_store_plan_get(store, pst_str_from(what), &json, NULL, err);
  else
    code = pst_store_plan_assigned(store, pst_str_from(what), PST_STORE_PLAN_IN_FORCE, &json, NULL, err);
  if (code == PST_E_NOT_FOUND)
    return pst_error_set(
        err, PST_E_NOT_FOUND, what,
        "there is no such plan: give a file, the first 8 or more digits of a plan's hash, or a workload "
        "that has a plan in force");
  if (!code) code = pst_gateway_plan_parse(pst_str_from(json), what, ret_plan, err);
  pst_free(json);
  return code;
}

/* The workload's folder as the evidence remembers it. */
static int open_workload(const pst_cli_args *a, const char *evidence, pst_evals_workload **ret, pst_error *err) {
  if (pst_cli_text(a, "workload")) return pst_evals_workload_open(pst_cli_text(a, "workload"), ret, err);
  pst_json_doc *doc = NULL;
  char folder[4096];
  int code = pst_json_parse(evidence, strlen(evidence), "evidence", &doc, err);
  if (code) return code;
  pst_str text = pst_json_str(pst_json_get(pst_json_get(pst_json_root(doc), "workload"), "folder"));
  snprintf(folder, sizeof folder, "%.*s", (int)text.n, text.data ? text.data : "");
  pst_json_free(doc);
  code = pst_evals_workload_open(folder, ret, err);
  return code ? pst_error_prefix(err, "the plan's workload is no longer there (--workload says where)") : 0;
}

/* evidence NULL: there is none. */
static void print_json(const pst_gateway_plan *plan, const char *evidence, const char *measured) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "plan");
  pst_json_put_raw(&w, pst_str_from(plan->json));
  pst_json_key(&w, "evidence");
  if (evidence)
    pst_json_put_raw(&w, pst_str_from(evidence));
  else
    pst_json_put_null(&w);
  pst_json_key(&w, "measured");
  if (measured)
    pst_json_put_raw(&w, pst_str_from(measured));
  else
    pst_json_put_null(&w);
  pst_json_end_object(&w);
  if (!pst_buf_status(&text)) puts(text.data);
  pst_buf_done(&text);
}

/* A plan of which nothing was measured, as it is. */
static int print_plan(const pst_gateway_plan *plan, pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(plan->json, strlen(plan->json), "plan", &doc, err);
  if (code) return code;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_put_value(&w, pst_json_root(doc));
  printf(
      "plan %.12s\n%s\n\nnothing was measured of it: 'penstock eval WORKLOAD --target %.12s' asks it, 'penstock optimize WORKLOAD' makes plans with estimates\n",
      plan->hash, pst_buf_text(&text), plan->hash);
  pst_json_free(doc);
  pst_buf_done(&text);
  return 0;
}

static int run_explain(const pst_cli_args *a, pst_error *err) {
  pst_cli_workbench b = {NULL, NULL, NULL, NULL};
  pst_gateway_plan *plan = NULL;
  char *evidence = NULL;
  pst_buf measured = PST_BUF_INIT, text = PST_BUF_INIT;
  bool analyze = pst_cli_flag(a, "analyze");
  int code = pst_cli_workbench_open(a, NULL, &b, err);
  if (!code) code = find_plan(b.store, a->words[0], &plan, err);
  if (!code) code = pst_optimizer_evidence_find(b.store, plan->hash, &evidence, err);
  bool unknown = code == PST_E_NOT_FOUND && plan && !analyze;
  if (unknown) code = 0;
  if (!code && analyze) code = open_workload(a, evidence, &b.workload, err);
  pst_optimizer_analyze_options o = {.seconds = pst_cli_number(a, "seconds"), .quiet = pst_cli_flag(a, "quiet")};
  if (!code && analyze) code = pst_optimizer_analyze(b.gateway, b.workload, plan, evidence, &o, &measured, err);
  if (!code && pst_cli_flag(a, "json")) {
    print_json(plan, evidence, measured.data);
  } else if (!code && unknown) {
    code = print_plan(plan, err);
  } else if (!code) {
    code = pst_optimizer_explain(evidence, measured.data, &text, err);
    if (!code) fputs(text.data, stdout);
  }
  pst_gateway_plan_unref(plan);
  pst_free(evidence);
  pst_buf_done(&measured);
  pst_buf_done(&text);
  pst_cli_workbench_close(&b);
  return code;
}

static const pst_cli_option options[] = {
    {"analyze", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "run it on the workload's trace and print measured beside estimated"},
    {"seconds", 0, PST_CLI_NUMBER, "N", "30", 1, 3600, false, "with --analyze: how long the trace is played"},
    {"workload", 'w', PST_CLI_TEXT, "DIR", NULL, 0, 0, false, "with --analyze: the workload, if it has moved"},
    PST_CLI_HOME,
    PST_CLI_JSON,
    PST_CLI_QUIET,
};
const pst_cli_command pst_cli_explain = {
    "explain",
    "PLAN",
    "show what a plan does, what it is expected to give, and which field bought what",
    "PLAN is a file, the first digits of a plan's hash, or a workload with a plan in force.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_explain};
