/* penstock requests, penstock feedback, penstock answers: what the books hold of the answers given and of what people thought of them. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/open.h"
#include "cli/records.h"
#include "cli/workload_name.h"

#include <penstock/gateway.h>

enum { COST_BYTES = 32 };

typedef struct listing {
  bool json;
  int n;
  int64_t skip; /* feedback: rows before the last N */
  pst_buf text, scratch;
  pst_json_writer w;
} listing;

static void print_list(listing *l, int code, const char *none) {
  if (l->json) pst_json_end_array(&l->w);
  if (!code && l->json) puts(pst_buf_text(&l->text));
  if (!code && !l->json && !l->n) puts(none);
  pst_buf_done(&l->text);
  pst_buf_done(&l->scratch);
}

static void begin_list(listing *l, const pst_cli_args *a) {
  l->json = pst_cli_flag(a, "json");
  l->w = pst_json_writer_on(&l->text, true);
  if (l->json) pst_json_begin_array(&l->w);
}

/* ---- requests -------------------------------------------------------------------------------------------------------------- */

static void put_request_json(listing *l, const pst_store_request *r) {
  char cost[COST_BYTES];
  pst_json_writer *w = &l->w;
  pst_store_nusd_format(r->cost_nusd, cost);
  pst_json_begin_object(w);
  pst_json_member_opt(w, "completion_id", r->completion_id);
  pst_json_member_int(w, "time_ms", r->time_ms);
  pst_json_member_opt(w, "purpose", pst_str_from(pst_store_purpose_name(r->purpose)));
  pst_json_member_opt(w, "workload", r->workload);
  pst_json_member_opt(w, "plan", r->plan_hash);
  pst_json_member_int(w, "key", r->key_id);
  pst_json_member_opt(w, "target", r->target);
  pst_json_member_opt(w, "model", r->model);
  pst_json_member_int(w, "prompt_tokens", r->prompt_tokens);
  pst_json_member_int(w, "cached_tokens", r->cached_tokens);
  pst_json_member_int(w, "completion_tokens", r->completion_tokens);
  pst_json_member_int(w, "ttft_us", r->ttft_us);
  pst_json_member_int(w, "total_us", r->total_us);
  pst_json_member_int(w, "status", r->status);
  pst_json_member_opt(w, "finish", r->finish);
  pst_json_member_opt(w, "cost_usd", pst_str_from(cost));
  if (r->input_json.data) pst_json_member_opt(w, "input", r->input_json);
  if (r->output_json.data) pst_json_member_opt(w, "output", r->output_json);
  pst_json_end_object(w);
}

static int put_request(void *user, const pst_store_request *r) {
  listing *l = user;
  char time[32], cost[COST_BYTES];
  l->n++;
  if (l->json) {
    put_request_json(l, r);
    return 0;
  }
  if (l->n == 1)
    printf("%-19s  %-36s %-24s %6s %8s %8s %9s %12s\n", "TIME (UTC)", "ID", "WORKLOAD OR MODEL", "STATUS", "PROMPT",
           "ANSWER", "MS", "COST $");
  pst_str what = r->workload.data ? r->workload : r->model;
  pst_store_nusd_format(r->cost_nusd, cost);
  printf("%-19s  ", pst_cli_show_time(r->time_ms, time));
  pst_cli_print_line(r->completion_id, 36, SIZE_MAX, &l->scratch);
  putchar(' ');
  pst_cli_print_line(what, 24, 24, &l->scratch);
  printf(" %6d %8" PRId64 " %8" PRId64 " %9.1f %12s\n", r->status, r->prompt_tokens, r->completion_tokens,
         (double)r->total_us / 1e3, cost);
  return 0;
}

/* Of all that the filter lets through, however many are listed. */
static int print_totals(pst_store *store, const pst_store_request_filter *filter, pst_error *err) {
  pst_store_usage u;
  char cost[COST_BYTES];
  int code = pst_store_usage_get(store, filter, &u, err);
  if (code || !u.n_requests) return code;
  pst_store_nusd_format(u.cost_nusd, cost);
  printf("\nall %" PRId64 ": %" PRId64 " failed, %" PRId64 " prompt tokens (%" PRId64 " cached), %" PRId64
         " answer tokens, $%s\n",
         u.n_requests, u.n_failed, u.prompt_tokens, u.cached_tokens, u.completion_tokens, cost);
  return 0;
}

/* What a filter let nothing through of, and where there is more. */
static int say_none(const pst_cli_args *a, pst_store *store, const pst_store_request_filter *f, pst_buf *out,
                    pst_error *err) {
  const char *key = pst_cli_text(a, "key");
  pst_str w = f->workload;
  bool recorded = true;
  int n = (int)PST_MIN(w.n, (size_t)80), code = w.data ? pst_cli_workload_recorded(store, w, &recorded, err) : 0;
  if (code) return code;
  pst_buf_puts(out, "no requests");
  if (w.data) pst_buf_printf(out, " of \"%.*s\"", n, w.data);
  if (key) pst_buf_printf(out, " with the key \"%.80s\"", key);
  pst_buf_puts(out, w.data || key ? " in the books" : " in the books yet");
  if (!recorded)
    pst_buf_puts(out, "; 'penstock requests --all' lists what is");
  else if (w.data && !pst_cli_flag(a, "all"))
    pst_buf_printf(out, "; --all lists those of evals and searches, 'penstock data list %.*s' what was imported", n,
                   w.data);
  return 0;
}

static int run_requests(const pst_cli_args *a, pst_error *err) {
  pst_store_request_filter filter = PST_STORE_REQUEST_FILTER_INIT;
  pst_store_key key;
  pst_store *store = NULL;
  pst_buf none = PST_BUF_INIT;
  char *workload = NULL;
  listing l = {.n = 0};
  filter.limit = pst_cli_int(a, "limit");
  filter.newest_first = true;
  filter.with_content = pst_cli_flag(a, "json");
  int code = pst_cli_workload_option(a, &workload, err);
  filter.workload = pst_str_from(workload);
  if (!code) code = pst_cli_store_open(a, &store, err);
  if (!code && pst_cli_given(a, "key")) {
    code = pst_store_key_get(store, pst_str_from(pst_cli_text(a, "key")), &key, err);
    if (!code) filter.key_id = key.id;
  }
  if (!code && !pst_cli_flag(a, "all")) filter.purpose = PST_STORE_PURPOSE_USER;
  begin_list(&l, a);
  if (!code) code = pst_store_request_each(store, &filter, put_request, &l, err);
  if (!code && !l.n) code = say_none(a, store, &filter, &none, err);
  print_list(&l, code, pst_buf_text(&none));
  if (!code && !l.json) code = print_totals(store, &filter, err);
  pst_buf_done(&none);
  pst_free(workload);
  pst_store_close(store);
  return code;
}

static const pst_cli_option request_options[] = {
    {"limit", 'n', PST_CLI_INT, "N", "20", 1, 1000000, false, "the newest N"},
    {"workload", 'w', PST_CLI_TEXT, "WORKLOAD", NULL, 0, 0, false, "only those of a workload"},
    {"key", 'k', PST_CLI_TEXT, "NAME", NULL, 0, 0, false, "only those of an API key"},
    {"all", 'a', PST_CLI_FLAG, NULL, NULL, 0, 0, false, "those of evals and searches too"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_requests = {"requests",
                                          "",
                                          "what was asked and what it cost, in all and one by one",
                                          NULL,
                                          0,
                                          0,
                                          request_options,
                                          PST_ARRAY_LEN(request_options),
                                          run_requests};

/* ---- feedback -------------------------------------------------------------------------------------------------------------- */

static int count_feedback(void *user, const pst_store_feedback *f) {
  (void)f;
  ++*(int64_t *)user;
  return 0;
}

static int put_feedback(void *user, const pst_store_feedback *f) {
  listing *l = user;
  char time[32];
  const char *thumbs = f->thumbs > 0 ? "up" : f->thumbs < 0 ? "down" : NULL;
  if (l->skip-- > 0) return 0;
  l->n++;
  if (!l->json) {
    if (l->n == 1) printf("%-19s  %-36s %-6s %8s  %s\n", "TIME (UTC)", "ID", "THUMBS", "SCORE", "OUTCOME, CORRECTION");
    printf("%-19s  ", pst_cli_show_time(f->time_ms, time));
    pst_cli_print_line(f->completion_id, 36, SIZE_MAX, &l->scratch);
    printf(" %-6s ", thumbs ? thumbs : "-");
    if (f->has_score)
      printf("%8.3g", f->score);
    else
      printf("%8s", "-");
    printf("  %s%s", f->retried ? "retried; " : "", f->abandoned ? "abandoned; " : "");
    pst_cli_print_line(f->outcome, 0, SIZE_MAX, &l->scratch);
    if (f->outcome.n && f->correction.n) fputs("; ", stdout);
    pst_cli_print_line(f->correction, 0, SIZE_MAX, &l->scratch);
    putchar('\n');
    return 0;
  }
  pst_json_writer *w = &l->w;
  pst_json_begin_object(w);
  pst_json_member_opt(w, "completion_id", f->completion_id);
  pst_json_member_int(w, "time_ms", f->time_ms);
  pst_json_member_opt(w, "thumbs", pst_str_from(thumbs));
  pst_json_member_double(w, "score", f->has_score ? f->score : (double)NAN);
  pst_json_member_opt(w, "correction", f->correction);
  pst_json_member_opt(w, "outcome", f->outcome);
  pst_json_member_bool(w, "retry", f->retried);
  pst_json_member_bool(w, "abandon", f->abandoned);
  pst_json_end_object(w);
  return 0;
}

/* What the options say of one answer, whose id the caller adds. *ret_any false: they say nothing. */
static int read_feedback(const pst_cli_args *a, pst_store_feedback *f, bool *ret_any, pst_error *err) {
  const char *thumbs = pst_cli_text(a, "thumbs"), *correction = pst_cli_text(a, "correction"),
             *outcome = pst_cli_text(a, "outcome");
  *f = (pst_store_feedback){.time_ms = pst_clock_unix_ms(),
                            .has_score = pst_cli_given(a, "score"),
                            .retried = pst_cli_flag(a, "retry"),
                            .abandoned = pst_cli_flag(a, "abandon")};
  if (thumbs && strcmp(thumbs, "up") && strcmp(thumbs, "down"))
    return pst_error_set(err, PST_E_BAD_INPUT, "thumbs", "--thumbs takes up or down; not '%.40s'", thumbs);
  if (thumbs) f->thumbs = !strcmp(thumbs, "up") ? 1 : -1;
  if (f->has_score) f->score = pst_cli_number(a, "score");
  if (correction) f->correction = pst_str_from(correction);
  if (outcome) f->outcome = pst_str_from(outcome);
  *ret_any = thumbs || f->has_score || correction || outcome || f->retried || f->abandoned;
  if (*ret_any && pst_cli_given(a, "limit"))
    return pst_error_set(err, PST_E_BAD_INPUT, "limit", "--limit is of the list; leave it out where feedback is added");
  if (*ret_any && !a->n_words)
    return pst_error_set(err, PST_E_BAD_INPUT, "feedback", "say which answer: penstock feedback COMPLETION_ID ...");
  return 0;
}

/* The last ones of an answer, or (NULL) of all. */
static int list_feedback(const pst_cli_args *a, pst_store *store, const char *id, pst_error *err) {
  listing l = {.n = 0};
  int64_t total = 0;
  int code = pst_store_feedback_each(store, pst_str_from(id), 0, count_feedback, &total, err);
  l.skip = total - pst_cli_int(a, "limit");
  begin_list(&l, a);
  if (!code) code = pst_store_feedback_each(store, pst_str_from(id), 0, put_feedback, &l, err);
  print_list(&l, code, id ? "no feedback of that id" : "no feedback yet; applications send it to POST /v1/feedback");
  return code;
}

static int run_feedback(const pst_cli_args *a, pst_error *err) {
  pst_store *store = NULL;
  pst_store_feedback given;
  char *id = NULL;
  bool any = false;
  int code = read_feedback(a, &given, &any, err);
  if (!code) code = pst_cli_store_open(a, &store, err);
  if (!code && a->n_words) code = pst_cli_record_find(store, pst_str_from(a->words[0]), &id, err);
  if (!code && a->n_words && !id)
    code = pst_error_set(
        err, PST_E_NOT_FOUND, "feedback",
        "no answer has the id or number \"%.80s\"; 'penstock data list' and 'penstock requests' have them",
        a->words[0]);
  given.completion_id = pst_str_from(id);
  if (!code && any) code = pst_store_feedback_put(store, &given, err);
  if (!code && any) pst_cli_done(a, a->words[0], "noted", NULL);
  if (!code && !any) code = list_feedback(a, store, id, err);
  pst_free(id);
  pst_store_close(store);
  return code;
}

static const pst_cli_option feedback_options[] = {
    {"limit", 'n', PST_CLI_INT, "N", "20", 1, 1000000, false, "the newest N"},
    {"thumbs", 0, PST_CLI_TEXT, "UP/DOWN", NULL, 0, 0, false, "add: it was liked, or not"},
    {"score", 0, PST_CLI_NUMBER, "X", NULL, -1e300, 1e300, false, "add: a score, on the application's scale"},
    {"correction", 0, PST_CLI_TEXT, "TEXT", NULL, 0, 0, false, "add: the answer it should have been"},
    {"outcome", 0, PST_CLI_TEXT, "TEXT", NULL, 0, 0, false, "add: what happened later in the product"},
    {"retry", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "add: the user asked again"},
    {"abandon", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "add: the user went away"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_feedback = {
    "feedback",
    "[COMPLETION_ID]",
    "what people thought of answers",
    "Lists what was said, of all answers or of one, which may be named by its record's number, too; with an option that\n"
    "adds, says something of that one. Applications say the same to POST /v1/feedback.",
    0,
    1,
    feedback_options,
    PST_ARRAY_LEN(feedback_options),
    run_feedback};

/* ---- answers --------------------------------------------------------------------------------------------------------------- */

static int run_answers(const pst_cli_args *a, pst_error *err) {
  pst_store *store = NULL;
  char hash[65], *workload = NULL;
  size_t n = 0;
  int code = pst_cli_workload_name(a->words[0], &workload, err);
  if (!code) code = pst_cli_store_open(a, &store, err);
  if (!code) code = pst_gateway_answers_collect(store, pst_str_from(workload), hash, &n, err);
  if (!code && pst_cli_flag(a, "json"))
    printf("{\"answers\": \"%s\", \"n\": %zu}\n", hash, n);
  else if (!code)
    printf("%zu answers kept; a plan drafts from them by \"speculation\": \"answers\", \"answers\": \"%s\"\n", n, hash);
  pst_free(workload);
  pst_store_close(store);
  return code;
}

static const pst_cli_option answers_options[] = {
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_answers = {"answers",
                                         "WORKLOAD",
                                         "keep a workload's recorded answers as a file to draft from",
                                         NULL,
                                         1,
                                         1,
                                         answers_options,
                                         PST_ARRAY_LEN(answers_options),
                                         run_answers};
