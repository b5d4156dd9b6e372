/* Commands whose first word is an action: which of their options belongs to which. */
#ifndef PST_CLI_ACTIONS_H
#define PST_CLI_ACTIONS_H

#include "cli/cli.h"

/* The option's name, and the actions that read it: bit i for the i-th of the command's. Options that are in no such row belong to all. */
typedef struct pst_cli_owned {
  const char *option;
  unsigned actions;
} pst_cli_owned;

/* Refuses an option that the action would not read, naming those that do. actions [n_actions]: their names; `action`: the one that was asked for. PST_E_BAD_INPUT. */
int pst_cli_actions_check(const pst_cli_args *a, const char *const *actions, int n_actions, int action,
                          const pst_cli_owned *owned, size_t n_owned, pst_error *err);

#endif
