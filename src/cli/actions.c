/* Options of another action are refused (actions.h): what is silently passed over reads as if it had been done. */
#include "cli/actions.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* "create", "create and limit", "list, export and delete". */
static void name_actions(const char *const *actions, int n_actions, unsigned of, char *text, size_t n) {
  size_t used = 0;
  *text = '\0';
  for (int i = 0; i < n_actions; i++) {
    if (!(of >> i & 1)) continue;
    bool is_last = !(of >> i >> 1);
    used += (size_t)snprintf(text + used, n - used, "%s%s", !used ? "" : is_last ? " and " : ", ", actions[i]);
    used = PST_MIN(used, n - 1);
  }
}

static bool is_known(const pst_cli_args *a, const char *option) {
  for (int i = 0; i < a->command->n_options; i++)
    if (!strcmp(a->command->options[i].name, option)) return true;
  return false;
}

static int check_options(const pst_cli_args *a, const char *const *actions, int n_actions, int action,
                         const pst_cli_owned *owned, size_t n_owned, pst_error *err) {
  char theirs[160];
  for (size_t i = 0; i < n_owned; i++) {
    const pst_cli_owned *o = &owned[i];
    assert(is_known(a, o->option) && o->actions && !(o->actions >> n_actions));
    if (o->actions >> action & 1 || !pst_cli_given(a, o->option)) continue;
    name_actions(actions, n_actions, o->actions, theirs, sizeof theirs);
    return pst_error_set(err, PST_E_BAD_INPUT, o->option, "--%s is of '%s %s'; '%s %s' has no use for it", o->option,
                         a->command->name, theirs, a->command->name, actions[action]);
  }
  return 0;
}

int pst_cli_action(const pst_cli_args *a, const char *const *actions, int n_actions, const pst_cli_owned *owned,
                   size_t n_owned, int *ret_action, pst_error *err) {
  const char *verb = a->n_words ? a->words[0] : "list";
  char all[160];
  int i = 0;
  while (i < n_actions && strcmp(verb, actions[i]) != 0) i++;
  name_actions(actions, n_actions, (1u << n_actions) - 1, all, sizeof all);
  if (i == n_actions)
    return pst_error_set(err, PST_E_BAD_INPUT, a->command->name, "unknown action '%.40s'; there are %s", verb, all);
  *ret_action = i;
  return check_options(a, actions, n_actions, i, owned, n_owned, err);
}
