/* Opens and closes what long commands work on, in one order. */
#include "cli/workbench.h"

#include <penstock/optimizer.h>

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
  (void)number;
  interrupted = 1;
}

void pst_cli_catch_interrupts(void) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
  (void)sigemptyset(&action.sa_mask);
  (void)sigaction(SIGINT, &action, NULL);
  (void)sigaction(SIGTERM, &action, NULL);
}

bool pst_cli_interrupted(void *user) {
  (void)user;
  return interrupted != 0;
}

int pst_cli_workbench_open(const pst_cli_args *a, const char *folder, pst_cli_workbench *ret, pst_error *err) {
  pst_cli_workbench b = {NULL, NULL, NULL, NULL};
  int code = folder ? pst_evals_workload_open(folder, &b.workload, err) : 0;
  if (!code) code = pst_home_open(pst_cli_text(a, "home"), &b.home, err);
  if (!code) code = pst_store_open(b.home, &b.store, err);
  pst_gateway_options options;
  memset(&options, 0, sizeof options);
  options.home = b.home;
  if (!code) code = pst_gateway_open(b.store, &options, &b.gateway, err);
  if (code)
    pst_cli_workbench_close(&b);
  else
    *ret = b;
  return code;
}

void pst_cli_workbench_close(pst_cli_workbench *b) {
  if (b->gateway) pst_gateway_close(b->gateway);
  pst_store_close(b->store);
  pst_evals_workload_free(b->workload);
  pst_free(b->home);
  memset(b, 0, sizeof *b);
}

const char *pst_cli_tuning_note(const pst_tune_progress *p, char *text, size_t n) {
  char held_out[80] = "";
  int used = 0;
  if (p->held_out_loss == p->held_out_loss)
    used = snprintf(held_out, sizeof held_out, ", held out %.3f", p->held_out_loss);
  if (p->score == p->score)
    (void)snprintf(held_out + used, sizeof held_out - (size_t)used, " and %.0f%% right", 100 * p->score);
  (void)snprintf(text, n, "step %lld of %lld, loss %.3f%s, %.0f tokens/s", (long long)p->step, (long long)p->n_steps,
                 p->loss, held_out, p->tokens_per_second);
  return text;
}

int pst_cli_write_report(const char *path, const char *evidence, pst_error *err) {
  pst_buf page = PST_BUF_INIT;
  int code = pst_optimizer_report(evidence, &page, err);
  if (!code) code = pst_file_write_atomic(path, page.data, page.n, err);
  pst_buf_done(&page);
  return code;
}
