/* From a model's name on the command line to a file, and to an open model. */
#ifndef PST_CLI_MODEL_PATH_H
#define PST_CLI_MODEL_PATH_H

#include <penstock/engine.h>
#include <penstock/models.h>

#include "cli/cli.h"

/* *ret_path: pst_free. home NULL: the default data directory. */
int pst_cli_model_path(const char *home, const char *name, char **ret_path, pst_error *err);
/* With the command's own --home; a home that cannot be used only costs the packed weights. n_threads: to pack with, 0: all. */
int pst_cli_model_open(const pst_cli_args *a, const char *name, int n_threads, pst_engine_model **ret_model,
                       pst_error *err);
/* A file that a command is to write: PST_E_EXISTS where it is there and --force was not given. */
int pst_cli_model_may_write(const pst_cli_args *a, const char *out, pst_error *err);
/* Says how many matrices could not have the type; n 0: nothing. */
void pst_cli_model_say_fallback(int n, const char *type);

#endif
