/* The store as commands open it, and money and time as they read and show them. */
#include "cli/open.h"

#include <string.h>
#include <time.h>

int pst_cli_store_open(const pst_cli_args *a, pst_store **ret_store, pst_error *err) {
  char *home = NULL;
  int code = pst_home_open(pst_cli_text(a, "home"), &home, err);
  if (!code) code = pst_store_open(home, ret_store, err);
  pst_free(home);
  return code;
}

int pst_cli_money(const pst_cli_args *a, const char *option, int64_t fallback, int64_t *ret_nusd, pst_error *err) {
  const char *text = pst_cli_text(a, option);
  int64_t nusd = fallback;
  if (text && strcmp(text, "none") && (pst_store_nusd_parse(pst_str_from(text), &nusd) || nusd < 0))
    return pst_error_set(err, PST_E_BAD_INPUT, option,
                         "--%s takes US dollars like 12 or 0.15, at most nine decimals, or none; not '%.40s'", option,
                         text);
  if (text && !strcmp(text, "none")) nusd = PST_STORE_NO_LIMIT;
  *ret_nusd = nusd;
  return 0;
}

int pst_cli_budget(const pst_cli_args *a, int64_t *ret_nusd, pst_error *err) {
  int code = pst_cli_money(a, "budget-usd", PST_STORE_NO_LIMIT, ret_nusd, err);
  if (!code && *ret_nusd == 0)
    code = pst_error_set(err, PST_E_BAD_INPUT, "budget-usd",
                         "--budget-usd must be above 0; where no provider is to be asked, the workload's privacy says "
                         "\"remote\": false");
  if (!code) *ret_nusd = PST_MAX(*ret_nusd, 0); /* none */
  return code;
}

int pst_cli_consent(const pst_cli_args *a, pst_store_consent old, pst_store_consent *ret_consent, pst_error *err) {
  pst_store_consent c = old;
  const char *keep = pst_cli_text(a, "keep"), *train = pst_cli_text(a, "train");
  if (keep && !pst_store_keep_from(pst_str_from(keep), &c.keep))
    return pst_error_set(err, PST_E_BAD_INPUT, "keep", "--keep takes nothing, metadata or content; not '%.40s'", keep);
  if (train && strcmp(train, "yes") && strcmp(train, "no"))
    return pst_error_set(err, PST_E_BAD_INPUT, "train", "--train takes yes or no; not '%.40s'", train);
  if (train) c.train = !strcmp(train, "yes");
  if (c.keep != PST_STORE_KEEP_CONTENT) {
    if (train && c.train)
      return pst_error_set(err, PST_E_BAD_INPUT, "train",
                           "what is not kept cannot be trained on; say --keep content as well");
    c.train = false;
  }
  if (pst_cli_given(a, "retention")) c.retention_days = (int)pst_cli_int(a, "retention");
  *ret_consent = c;
  return 0;
}

const char *pst_cli_show_money(int64_t nusd, char text[32]) {
  if (nusd == PST_STORE_NO_LIMIT)
    snprintf(text, 32, "-");
  else
    pst_store_nusd_format(nusd, text);
  return text;
}

const char *pst_cli_show_time(int64_t unix_ms, char text[32]) {
  time_t seconds = (time_t)(unix_ms / 1000);
  struct tm utc;
  if (!gmtime_r(&seconds, &utc) || !strftime(text, 32, "%Y-%m-%d %H:%M:%S", &utc)) snprintf(text, 32, "?");
  return text;
}
