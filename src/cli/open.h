/* What commands open before they can work: the data directory and the store in it. */
#ifndef PST_CLI_OPEN_H
#define PST_CLI_OPEN_H

#include <penstock/store.h>

#include "cli/cli.h"

/* With the command's own --home. */
int pst_cli_store_open(const pst_cli_args *a, pst_store **ret_store, pst_error *err);
/* US dollars of an option, as nano-dollars; not given: `fallback`. */
int pst_cli_money(const pst_cli_args *a, const char *option, int64_t fallback, int64_t *ret_nusd, pst_error *err);
/* --budget-usd: what providers may be paid in all; 0: no limit. */
int pst_cli_budget(const pst_cli_args *a, int64_t *ret_nusd, pst_error *err);
#define PST_CLI_BUDGET(fallback)                                    \
  {                                                                 \
    "budget-usd", 0, PST_CLI_TEXT, "USD", fallback, 0, 0, false,    \
        "most that providers may be paid in all, or none: no limit" \
  }
/* --keep, --train and --retention over what holds without them. */
int pst_cli_consent(const pst_cli_args *a, pst_store_consent old, pst_store_consent *ret_consent, pst_error *err);
#define PST_CLI_CONSENT                                                                                           \
  {"keep", 0, PST_CLI_TEXT, "WHAT", NULL, 0, 0, false, "of a request: nothing, metadata or content (texts too)"}, \
      {"train", 0, PST_CLI_TEXT, "YES/NO", NULL, 0, 0, false, "whether content may become training data"}, {      \
    "retention", 0, PST_CLI_INT, "DAYS", NULL, 0, PST_STORE_RETENTION_MAX, false,                                 \
        "then texts, subject and feedback are deleted (0: never)"                                                 \
  }
/* "-" for PST_STORE_NO_LIMIT, else dollars. Returns text. */
const char *pst_cli_show_money(int64_t nusd, char text[32]);
/* "2025-01-31 12:00:05" UTC. Returns text. */
const char *pst_cli_show_time(int64_t unix_ms, char text[32]);

#endif
