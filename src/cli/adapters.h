/* The list of adapters, as the commands that show it print it. */
#ifndef PST_CLI_ADAPTERS_H
#define PST_CLI_ADAPTERS_H

#include <penstock/store.h>

/* A table to stdout, or with `json` an array appended to *out. *ret_n: how many. */
int pst_cli_adapters_print(pst_store *store, bool json, pst_buf *out, int *ret_n, pst_error *err);

#endif
