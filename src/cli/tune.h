/* The part of `penstock tune` that is for encoders. */
#ifndef PST_CLI_TUNE_H
#define PST_CLI_TUNE_H

#include <penstock/models.h>
#include <penstock/tune.h>

#include "cli/workbench.h"

/* With the options of `penstock tune`; file: the model's. Prints what came. Errors: those of pst_tune_encoder; PST_E_BAD_INPUT: an option that is for models that generate. */
int pst_cli_tune_encoder(const pst_cli_args *a, pst_cli_workbench *b, const pst_models_file *file,
                         pst_tune_precision precision, void (*on_progress)(void *, const pst_tune_progress *),
                         void *user, pst_error *err);

#endif
