/* A workload as a person names it on the command line, where its items are not needed. */
#ifndef PST_CLI_WORKLOAD_NAME_H
#define PST_CLI_WORKLOAD_NAME_H

#include "cli/cli.h"

/* A name, which need not be known to anybody, or a folder with a workload.json, then the `name` in that; where both fit, the folder counts. *ret_name: pst_free.
 * PST_E_NOT_FOUND: a path that is no such folder. PST_E_BAD_INPUT: empty, or the file says no name. */
int pst_cli_workload_name(const char *what, char **ret_name, pst_error *err);

/* The same of the option --workload; NULL where it isn't given, or is empty. */
int pst_cli_workload_option(const pst_cli_args *a, char **ret_name, pst_error *err);

#endif
