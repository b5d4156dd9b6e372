/* Commands whose first word is an action: which of their options belongs to which. */
#ifndef PST_CLI_ACTIONS_H
#define PST_CLI_ACTIONS_H

#include "cli/cli.h"

/* The option's name, and the actions that read it: bit i for the i-th of the command's. Options that are in no such row belong to all. */
typedef struct pst_cli_owned {
  const char *option;
  unsigned actions;
} pst_cli_owned;

/* Which action the first word names (none: "list"), by its place in actions [n_actions]. PST_E_BAD_INPUT: it names none of them, or an option was given that the action would not
 * read; the error says what there is. */
int pst_cli_action(const pst_cli_args *a, const char *const *actions, int n_actions, const pst_cli_owned *owned,
                   size_t n_owned, int *ret_action, pst_error *err);

#endif
