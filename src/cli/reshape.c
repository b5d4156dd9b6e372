/* What calibrate and prune open (reshape.h). */
#include "cli/reshape.h"

#include <stdio.h>

#include "cli/model_path.h"

int pst_cli_reshape_open(const pst_cli_args *a, pst_cli_reshape *r, pst_error *err) {
  const char *plan = pst_cli_text(a, "plan");
  char target[512];
  (void)snprintf(target, sizeof target, "model:%s", a->words[1]);
  int code = pst_cli_model_may_write(a, a->words[2], err);
  if (!code) code = pst_cli_workbench_open(a, a->words[0], &r->bench, err);
  if (!code) code = pst_cli_model_path(r->bench.home, a->words[1], &r->in, err);
  if (!code)
    code =
        pst_evals_target_open(r->bench.gateway, r->bench.store, r->bench.workload, plan ? plan : target, &r->plan, err);
  return code;
}

void pst_cli_reshape_close(pst_cli_reshape *r) {
  pst_gateway_plan_unref(r->plan);
  pst_free(r->in);
  pst_cli_workbench_close(&r->bench);
}
