/* What commands that put a plan in force ask of it. */
#ifndef PST_CLI_PLANS_H
#define PST_CLI_PLANS_H

#include <penstock/store.h>

/* PST_E_DENIED, with what to do: the plan rests on an adapter that learned from records which were erased since, as at the gate of a turn. */
int pst_cli_plan_check(pst_store *store, const char *hash, const char *json, pst_error *err);

#endif
