/* What calibrate and prune open: a workload, the plan whose prompts are served, and the file of the model that another is made of. */
#ifndef PST_CLI_RESHAPE_H
#define PST_CLI_RESHAPE_H

#include "cli/workbench.h"

typedef struct pst_cli_reshape {
  pst_cli_workbench bench;
  pst_gateway_plan *plan;
  char *in; /* the model's file */
} pst_cli_reshape;

/* Of a command with the words WORKLOAD MODEL OUT and the options --plan, --force and --home. *r starts as {0} and is closed whatever comes. PST_E_EXISTS: OUT is there. */
int pst_cli_reshape_open(const pst_cli_args *a, pst_cli_reshape *r, pst_error *err);
void pst_cli_reshape_close(pst_cli_reshape *r);

#define PST_CLI_SERVED_PLAN                                                                                   \
  {                                                                                                           \
    "plan", 0, PST_CLI_TEXT, "PLAN", NULL, 0, 0, false,                                                       \
        "whose prompts are served: a plan's file or hash, or in-force (default: the workload's first prompt)" \
  }
#define PST_CLI_AT_ONCE                                               \
  {                                                                   \
    "at-once", 0, PST_CLI_INT, "N", "512", 2, 65536, false,           \
        "tokens that go through the model at once; no text is longer" \
  }

#endif
