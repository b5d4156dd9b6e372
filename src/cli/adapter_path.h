/* From an adapter's name on the command line to an open adapter. */
#ifndef PST_CLI_ADAPTER_PATH_H
#define PST_CLI_ADAPTER_PATH_H

#include <penstock/engine.h>

#include "cli/cli.h"

#define PST_CLI_ADAPTER                                                                    \
  {                                                                                        \
    "adapter", 0, PST_CLI_TEXT, "ADAPTER", NULL, 0, 0, false,                              \
        "LoRA adapter: a name of 'penstock adapters', a GGUF adapter, or a folder of PEFT" \
  }

/* A name that was added, or what lies at a path. *ret_path: pst_free. */
int pst_cli_adapter_path(const pst_cli_args *a, const char *what, char **ret_path, pst_error *err);
/* The adapter of --adapter; NULL when it is not given. */
int pst_cli_adapter_open(const pst_cli_args *a, const pst_engine_model *model, pst_engine_adapter **ret_adapter,
                         pst_error *err);

#endif
