/* What commands open before they can work: the data directory and the store in it. */
#ifndef PST_CLI_OPEN_H
#define PST_CLI_OPEN_H

#include <penstock/store.h>

#include "cli/cli.h"

/* With the command's own --home. */
int pst_cli_store_open(const pst_cli_args *a, pst_store **ret_store, pst_error *err);
/* US dollars of an option, as nano-dollars; not given: `fallback`. */
int pst_cli_money(const pst_cli_args *a, const char *option, int64_t fallback, int64_t *ret_nusd, pst_error *err);
/* "-" for PST_STORE_NO_LIMIT, else dollars. Returns text. */
const char *pst_cli_show_money(int64_t nusd, char text[32]);
/* "2025-01-31 12:00:05" UTC. Returns text. */
const char *pst_cli_show_time(int64_t unix_ms, char text[32]);

#endif
