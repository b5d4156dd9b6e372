/* penstock cache: whether a workload's plan gives answers again, and what that is worth. */
#include <penstock/gateway.h>
#include <penstock/store.h>

#include <string.h>

#include "cli/open.h"

#define DAYS_LOOKED_AT 30

/* The plan in force with another time; the answers are the same, so nothing has to be shown before it serves. */
static int change(pst_store *store, pst_str workload, const pst_gateway_plan *plan, int64_t ttl_s, char ret_hash[65],
                  pst_error *err) {
  pst_gateway_plan other = *plan;
  pst_buf json = PST_BUF_INIT;
  char note[64];
  other.cache_ttl_s = ttl_s;
  (void)snprintf(note, sizeof note, ttl_s ? "answers given again for %lld s" : "no answers given again",
                 (long long)ttl_s);
  int code = pst_gateway_plan_write(&other, &json, err);
  if (!code) code = pst_store_plan_put(store, pst_buf_str(&json), pst_clock_unix_ms(), ret_hash, err);
  if (!code)
    code = pst_store_plan_replace(store, workload, plan->hash, pst_str_from(ret_hash), pst_str_from(note),
                                  pst_clock_unix_ms(), err);
  pst_buf_done(&json);
  return code;
}

static void print_json(const char *hash, int64_t ttl_s, const pst_store_repeats *r) {
  printf(
      "{\"plan_hash\": \"%s\", \"ttl_s\": %lld, \"days\": %d, \"requests\": %lld, \"given_again\": %lld, \"kept\": %lld, "
      "\"asked_before\": %lld}\n",
      hash, (long long)ttl_s, DAYS_LOOKED_AT, (long long)r->n_requests, (long long)r->n_given_again,
      (long long)r->n_kept, (long long)r->n_repeated);
}

static void print_text(const char *workload, const char *hash, int64_t ttl_s, const pst_store_repeats *r) {
  if (ttl_s)
    printf("%s gives an answer again for %.4g hours (plan %.12s)\n", workload, (double)ttl_s / 3600, hash);
  else
    printf("%s makes every answer anew (plan %.12s); --hours N gives them again\n", workload, hash);
  printf("last %d days: %lld requests, %lld of them given again\n", DAYS_LOOKED_AT, (long long)r->n_requests,
         (long long)r->n_given_again);
  if (r->n_kept)
    printf("of %lld whose content was kept %lld (%.1f%%) had been asked word for word before\n", (long long)r->n_kept,
           (long long)r->n_repeated, 100 * (double)r->n_repeated / (double)r->n_kept);
  else
    puts("no content was kept, so nothing can be given again: see `penstock serve --keep` and `penstock key`");
}

static int run_cache(const pst_cli_args *a, pst_error *err) {
  pst_str workload = pst_str_from(a->words[0]);
  pst_store *store = NULL;
  pst_gateway_plan *plan = NULL;
  pst_store_repeats r = {0};
  char *json = NULL, hash[65];
  bool set = pst_cli_given(a, "hours"), off = pst_cli_flag(a, "off");
  if (set && off) return pst_error_set(err, PST_E_BAD_INPUT, "off", "--hours and --off exclude each other");
  int code = pst_cli_store_open(a, &store, err);
  if (!code) code = pst_store_plan_assigned(store, workload, PST_STORE_PLAN_IN_FORCE, &json, hash, err);
  if (!code) code = pst_gateway_plan_parse(pst_str_from(json), "the plan in force", &plan, err);
  int64_t ttl_s = plan ? plan->cache_ttl_s : 0;
  if (!code && (set || off)) {
    ttl_s = off ? 0 : PST_MAX((int64_t)(3600 * pst_cli_number(a, "hours")), 1);
    if (ttl_s != plan->cache_ttl_s) code = change(store, workload, plan, ttl_s, hash, err);
  }
  if (!code)
    code = pst_store_repeats_get(store, workload, pst_clock_unix_ms() - DAYS_LOOKED_AT * INT64_C(86400000), &r, err);
  if (!code && pst_cli_flag(a, "json"))
    print_json(hash, ttl_s, &r);
  else if (!code)
    print_text(a->words[0], hash, ttl_s, &r);
  pst_gateway_plan_unref(plan);
  pst_free(json);
  pst_store_close(store);
  return code;
}

static const pst_cli_option options[] = {
    {"hours", 0, PST_CLI_NUMBER, "N", NULL, 0.0003, 8760, false, "give an answer again for so long"},
    {"off", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "make every answer anew"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_cache = {
    "cache",
    "WORKLOAD",
    "give exactly the same question the same answer again",
    "WORKLOAD is the name of one with a plan in force. Without an option it says how things are and what repeats; with one the plan in force is replaced by the\n"
    "same with the change, at once. Only answers that were not drawn (temperature 0) are given again, and only while their records are kept: by consent, until\n"
    "their retention ends or they are erased. A request with `Cache-Control: no-cache` is answered anew. Answers given again are in the books under `cache`, at no cost.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_cache};
