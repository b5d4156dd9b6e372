/* penstock eval: targets asked the same items, compared in pairs, and a report.
 *
 * An eval is a run in the store of kind "comparison", whose rows name the run of each target; so a second start of the same command finds what the
 * first had done, whole runs and single answers. */
#include <penstock/evals.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cli/open.h"

enum { TARGETS_MAX = 8 };

typedef struct eval {
  const pst_cli_args *args;
  char *home;
  pst_store *store;
  pst_gateway *gateway;
  pst_evals_workload *workload;
  pst_evals_part part;
  size_t *items, n_items;
  int n_targets;
  const char *names[TARGETS_MAX];
  pst_gateway_plan *plans[TARGETS_MAX];
  pst_evals_run runs[TARGETS_MAX];
  pst_evals_comparison comparisons[TARGETS_MAX];
  int64_t comparison_run;            /* in the store */
  int64_t key_id;                    /* account that pays providers; 0: none */
  int64_t earlier_runs[TARGETS_MAX]; /* of that run: 0: none yet */
} eval;

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
  (void)number;
  interrupted = 1;
}

static bool is_cancelled(void *user) {
  (void)user;
  return interrupted != 0;
}

/* ---- what is asked ---- */

static int find_part(eval *e, pst_error *err) {
  const char *name = pst_cli_text(e->args, "part");
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++) {
    if (strcmp(name, pst_evals_part_name((pst_evals_part)i)) != 0) continue;
    e->part = (pst_evals_part)i;
    return 0;
  }
  return pst_error_set(err, PST_E_BAD_INPUT, "part", "--part takes examples, search, verify or sealed, not '%s'", name);
}

typedef struct drawn {
  uint64_t key;
  size_t item;
} drawn;

static int compare_drawn(const void *a, const void *b) {
  const drawn *x = a, *y = b;
  if (x->key != y->key) return x->key < y->key ? -1 : 1;
  return (x->item > y->item) - (x->item < y->item);
}

static int compare_sizes(const void *a, const void *b) {
  size_t x = *(const size_t *)a, y = *(const size_t *)b;
  return (x > y) - (x < y);
}

/* The part's items; of more than the limit those that a hash of their ids draws, in the file's order. */
static int choose_items(eval *e, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(e->workload);
  drawn *list = pst_calloc(info->n_items + 1, sizeof *list);
  e->items = pst_calloc(info->n_items + 1, sizeof *e->items);
  if (!list || !e->items) {
    pst_free(list);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the items");
  }
  size_t n = 0, limit = (size_t)pst_cli_int(e->args, "limit");
  for (size_t i = 0; i < info->n_items; i++) {
    const pst_evals_item *item = &info->items[i];
    if (item->part == e->part) list[n++] = (drawn){pst_hash64(item->id.data, item->id.n, 0), i};
  }
  qsort(list, n, sizeof *list, compare_drawn);
  e->n_items = limit && limit < n ? limit : n;
  for (size_t i = 0; i < e->n_items; i++) e->items[i] = list[i].item;
  qsort(e->items, e->n_items, sizeof *e->items, compare_sizes);
  pst_free(list);
  if (!n)
    return pst_error_set(err, PST_E_BAD_INPUT, info->folder, "no item is of the part %s", pst_evals_part_name(e->part));
  return 0;
}

static int open_targets(eval *e, pst_error *err) {
  const char *const *texts = NULL;
  e->n_targets = pst_cli_many(e->args, "target", &texts);
  if (!e->n_targets)
    return pst_error_set(
        err, PST_E_BAD_INPUT, "target",
        "name what to ask: --target PLAN.json, a plan's hash, in-force, a model's name or PROVIDER/MODEL");
  if (e->n_targets > TARGETS_MAX)
    return pst_error_set(err, PST_E_BAD_INPUT, "target", "at most %d targets", TARGETS_MAX);
  for (int i = 0; i < e->n_targets; i++) {
    e->names[i] = texts[i];
    int code = pst_evals_target_open(e->gateway, e->store, e->workload, texts[i], &e->plans[i], err);
    if (code) return code;
    for (int k = 0; k < i; k++)
      if (!strcmp(e->plans[k]->hash, e->plans[i]->hash))
        return pst_error_set(err, PST_E_BAD_INPUT, texts[i], "is the same plan as %s", texts[k]);
  }
  return 0;
}

static int open_all(eval *e, pst_error *err) {
  int code = find_part(e, err);
  if (!code) code = pst_evals_workload_open(e->args->words[0], &e->workload, err);
  if (!code) code = choose_items(e, err);
  if (!code) code = pst_home_open(pst_cli_text(e->args, "home"), &e->home, err);
  if (!code) code = pst_store_open(e->home, &e->store, err);
  pst_gateway_options options = {.home = e->home};
  if (!code) code = pst_gateway_open(e->store, &options, &e->gateway, err);
  if (!code) code = open_targets(e, err);
  return code;
}

/* ---- taking up an earlier start of the same command ---- */

static void write_params(const eval *e, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "n", (int64_t)e->n_items);
  pst_json_member_cstr(&w, "part", pst_evals_part_name(e->part));
  pst_json_key(&w, "plans");
  pst_json_begin_array(&w);
  for (int i = 0; i < e->n_targets; i++) pst_json_put_cstr(&w, e->plans[i]->hash);
  pst_json_end_array(&w);
  pst_json_member_bool(&w, "warm", pst_cli_flag(e->args, "warm"));
  pst_json_member_cstr(&w, "workload", pst_evals_workload_info(e->workload)->fingerprint);
  pst_json_end_object(&w);
}

static int on_earlier(void *user, int64_t seq, pst_str key, pst_str json) {
  eval *e = user;
  (void)seq;
  for (int i = 0; i < e->n_targets; i++)
    if (pst_str_is(key, e->plans[i]->hash)) (void)pst_parse_i64(json, 1, INT64_MAX, &e->earlier_runs[i]);
  return 0;
}

static int find_comparison(eval *e, pst_error *err) {
  pst_str kind = PST_STR("comparison"), name = pst_str_from(pst_evals_workload_info(e->workload)->name);
  pst_buf params = PST_BUF_INIT;
  write_params(e, &params);
  int code = pst_buf_status(&params);
  if (!code && !pst_cli_flag(e->args, "fresh"))
    code =
        pst_store_run_find(e->store, kind, name, pst_buf_str(&params), PST_STORE_RUN_ACTIVE, &e->comparison_run, NULL);
  else if (!code)
    code = PST_E_NOT_FOUND;
  if (code == PST_E_NOT_FOUND)
    code =
        pst_store_run_create(e->store, kind, name, pst_buf_str(&params), pst_clock_unix_ms(), &e->comparison_run, err);
  else if (!code)
    code = pst_store_run_rows(e->store, e->comparison_run, 0, on_earlier, e, err);
  else
    pst_error_set(err, code, NULL, "cannot look for an earlier eval: %s", pst_error_text(code));
  pst_buf_done(&params);
  return code;
}

/* ---- running ---- */

static int run_target(eval *e, int i, pst_error *err) {
  pst_progress progress;
  char what[96], row[32];
  snprintf(what, sizeof what, "%c %.80s", 'A' + i, e->names[i]);
  pst_evals_run_options o = {.purpose = PST_STORE_PURPOSE_EVAL,
                             .items = e->items,
                             .n_items = e->n_items,
                             .concurrency = (int)pst_cli_int(e->args, "concurrency"),
                             .key_id = e->key_id,
                             .exclude_self = true,
                             .resume = !pst_cli_flag(e->args, "fresh"),
                             .run_id = e->earlier_runs[i],
                             .warm = pst_cli_flag(e->args, "warm"),
                             .progress = &progress,
                             .cancelled = is_cancelled};
  pst_progress_begin(&progress, what, (int64_t)e->n_items, false, pst_cli_flag(e->args, "quiet"));
  int code = pst_store_plan_put(e->store, pst_str_from(e->plans[i]->json), pst_clock_unix_ms(), (char[65]){0}, err);
  if (!code) code = pst_evals_run_plan(e->gateway, e->store, e->workload, e->plans[i], &o, &e->runs[i], err);
  pst_progress_end(&progress);
  if (code && err && pst_store_run_refused(err))
    pst_error_prefix(err, "what was answered is kept, and the same command with a larger --budget-usd goes on: ");
  snprintf(row, sizeof row, "%lld", (long long)e->runs[i].run_id);
  if (!code && !e->earlier_runs[i])
    code = pst_store_run_append(e->store, e->comparison_run, pst_str_from(e->plans[i]->hash), pst_str_from(row), true,
                                err);
  return code;
}

static int64_t machine_price(const eval *e) {
  int64_t price = pst_evals_workload_info(e->workload)->machine_nusd_per_hour;
  if (!price && pst_store_machine_price_get(e->store, &price, NULL)) price = 0;
  return price;
}

static int write_page(const eval *e, const pst_evals_report *report, pst_error *err) {
  const char *path = pst_cli_text(e->args, "report");
  pst_buf page = PST_BUF_INIT;
  if (!path) return 0;
  int code = pst_evals_report_write(report, PST_EVALS_HTML, &page, err);
  if (!code) code = pst_file_write_atomic(path, page.data, page.n, err);
  pst_buf_done(&page);
  return code;
}

static int finish(eval *e, pst_evals_verdict *ret_verdict, pst_error *err) {
  pst_evals_target targets[TARGETS_MAX];
  const pst_evals_info *info = pst_evals_workload_info(e->workload);
  pst_buf shown = PST_BUF_INIT, json = PST_BUF_INIT;
  int code = 0, last = e->n_targets - 1;
  double confidence = pst_cli_number(e->args, "confidence");
  for (int i = 0; i < e->n_targets; i++) targets[i] = (pst_evals_target){e->names[i], e->plans[i], &e->runs[i]};
  for (int i = 0; i < last && !code; i++)
    code = pst_evals_compare(&e->runs[i], &e->runs[last], info->goal.margin, confidence, &e->comparisons[i], err);
  pst_evals_report report = {e->workload,    e->part,    targets, (size_t)e->n_targets,
                             e->comparisons, confidence, 0,       machine_price(e)};
  if (!code) code = pst_evals_uses(e->store, e->workload, e->part, &report.n_uses, err);
  bool as_json = pst_cli_flag(e->args, "json");
  if (!code) code = pst_evals_report_write(&report, PST_EVALS_JSON_TEXT, &json, err);
  if (!code && !as_json) code = pst_evals_report_write(&report, PST_EVALS_TEXT, &shown, err);
  if (!code) code = write_page(e, &report, err);
  if (!code)
    code = pst_store_run_end(e->store, e->comparison_run, PST_STORE_RUN_DONE, pst_buf_str(&json), pst_clock_unix_ms(),
                             err);
  if (!code) fputs(pst_buf_text(as_json ? &json : &shown), stdout);
  if (!code && !as_json && pst_cli_text(e->args, "report")) printf("report: %s\n", pst_cli_text(e->args, "report"));
  if (!code) *ret_verdict = pst_evals_report_verdict(&report);
  pst_buf_done(&shown);
  pst_buf_done(&json);
  return code;
}

static void close_all(eval *e) {
  for (int i = 0; i < e->n_targets && i < TARGETS_MAX; i++) {
    pst_evals_run_done(&e->runs[i]);
    pst_gateway_plan_unref(e->plans[i]);
  }
  pst_gateway_close(e->gateway);
  pst_store_close(e->store);
  pst_evals_workload_free(e->workload);
  pst_free(e->items);
  pst_free(e->home);
}

static int run_eval(const pst_cli_args *a, pst_error *err) {
  static const int exit_codes[] = {PST_CLI_OK, PST_CLI_FAILED, PST_CLI_NO_DATA};
  eval e = {.args = a};
  int64_t money_nusd = 0;
  pst_evals_verdict verdict = PST_EVALS_NO;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND}, old_int, old_term;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &old_int);
  sigaction(SIGTERM, &action, &old_term);
  int code = pst_cli_check_writable(pst_cli_text(a, "report"), err);
  if (!code) code = open_all(&e, err);
  if (!code) code = pst_cli_budget(a, &money_nusd, err);
  if (!code) code = find_comparison(&e, err);
  if (!code) code = pst_store_run_account(e.store, e.comparison_run, money_nusd, pst_clock_unix_ms(), &e.key_id, err);
  for (int i = 0; i < e.n_targets && !code; i++) code = run_target(&e, i, err);
  if (!code) code = finish(&e, &verdict, err);
  close_all(&e);
  sigaction(SIGINT, &old_int, NULL);
  sigaction(SIGTERM, &old_term, NULL);
  return code ? code : exit_codes[verdict];
}

static const pst_cli_option options[] = {
    {"target", 'T', PST_CLI_TEXT, "TARGET", NULL, 0, 0, true,
     "plan file, plan hash, in-force, a pulled model's name or PROVIDER/MODEL"},
    {"part", 0, PST_CLI_TEXT, "PART", "verify", 0, 0, false, "items asked: examples, search, verify or sealed"},
    {"limit", 'n', PST_CLI_INT, "N", "0", 0, 1e7, false,
     "at most so many of them, drawn by a hash of their ids (0: all)"},
    {"concurrency", 'c', PST_CLI_INT, "N", "0", 0, 256, false,
     "calls in flight (0: the plan's slots; 8 for providers)"},
    PST_CLI_BUDGET("none"),
    {"confidence", 0, PST_CLI_NUMBER, "SHARE", "0.95", 0.5, 0.9999, false, "of the intervals"},
    {"warm", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "keep prefix caches; without it each run begins with empty ones"},
    {"fresh", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "do not take up an unfinished eval"},
    {"report", 0, PST_CLI_TEXT, "FILE", NULL, 0, 0, false, "write the report as one page, too"},
    PST_CLI_HOME,
    PST_CLI_QUIET,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_eval = {
    "eval",
    "WORKLOAD",
    "ask targets a workload's items, and compare them",
    "The last target is the reference that the others are compared with, item by item. Exit: 0 the first is not inferior to it at the\n"
    "goal's margin (with one target: it reaches the quality floor), 1 it is inferior, 3 the items are too few to tell, or the eval did\n"
    "not come to its end; the same command takes it up.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_eval};
