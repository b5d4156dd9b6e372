/* What optimize and explain open: home, store, gateway, workload; and interrupts that end a long run cleanly; and the page that optimize and turn write. */
#ifndef PST_CLI_WORKBENCH_H
#define PST_CLI_WORKBENCH_H

#include <penstock/evals.h>
#include <penstock/gateway.h>
#include <penstock/models.h>
#include <penstock/store.h>
#include <penstock/tune.h>

#include "cli/cli.h"

typedef struct pst_cli_workbench {
  char *home;
  pst_store *store;
  pst_gateway *gateway;
  pst_evals_workload *workload;
} pst_cli_workbench;

/* folder NULL: no workload yet. Uses the command's --home. */
int pst_cli_workbench_open(const pst_cli_args *a, const char *folder, pst_cli_workbench *ret_bench, pst_error *err);
void pst_cli_workbench_close(pst_cli_workbench *bench);
/* The first SIGINT or SIGTERM asks for an end, the second ends the program. */
void pst_cli_catch_interrupts(void);
bool pst_cli_interrupted(void *user);
/* "step 3 of 100, loss 1.234, held out 1.345 and 40% right, 190 tokens/s" */
const char *pst_cli_tuning_note(const pst_tune_progress *p, char *text, size_t n);
/* Writes a search's page. */
int pst_cli_write_report(const char *path, const char *evidence, pst_error *err);

#endif
