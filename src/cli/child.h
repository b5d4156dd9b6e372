/* The worker that a server keeps beside it: a process of this program that takes jobs from the store, and that may be killed at any point. */
#ifndef PST_CLI_CHILD_H
#define PST_CLI_CHILD_H

#include <penstock/base.h>

typedef struct pst_cli_child pst_cli_child;

/* Starts `penstock worker` over the same data directory, and again whenever it ends. PST_E_IO where no process or thread can be had. */
int pst_cli_child_start(const char *home, pst_cli_child **ret_child, pst_error *err);
/* Asks it to stop (what it was at goes on from its checkpoint another time), waits a moment, kills it. NULL is fine. */
void pst_cli_child_stop(pst_cli_child *child);

#endif
