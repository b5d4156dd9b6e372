/* penstock worker: does the long work that was asked for over HTTP, one job after the other. `penstock serve` keeps one running. */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/open.h"

#include <penstock/flywheel.h>

enum { POLL_US = 500000, NICE = 10 };

static volatile sig_atomic_t ending;

static void on_signal(int number) {
  (void)number;
  ending = 1;
}

static bool is_ending(void *user) {
  (void)user;
  return ending;
}

/* Ends with the server that started it, also when that is killed. */
static void follow(pid_t parent) {
  (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) ending = 1; /* it was gone before */
}

static int run_worker(const pst_cli_args *a, pst_error *err) {
  struct sigaction action = {.sa_handler = on_signal};
  (void)sigaction(SIGTERM, &action, NULL);
  (void)sigaction(SIGINT, &action, NULL);
  if (pst_cli_given(a, "parent")) follow((pid_t)pst_cli_int(a, "parent"));
  (void)setpriority(PRIO_PROCESS, 0, NICE); /* answers come first */
  pst_store *store = NULL;
  int code = pst_cli_store_open(a, &store, err);
  pst_flywheel_options options = {.threads = (int)pst_cli_int(a, "threads"), .stopped = is_ending};
  while (!code && !ending) {
    bool worked = false;
    code = pst_flywheel_work(store, &options, &worked, err);
    if (!code && !worked && pst_cli_flag(a, "once")) break;
    if (!code && !worked) (void)usleep(POLL_US);
  }
  pst_store_close(store);
  return code;
}

static const pst_cli_option options[] = {
    {"once", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "end when no job is left"},
    {"parent", 0, PST_CLI_INT, "PID", NULL, 1, 1 << 30, false,
     "end with this process, which must be the one that started it"},
    PST_CLI_THREADS,
    PST_CLI_HOME,
};
const pst_cli_command pst_cli_worker = {
    "worker",
    "",
    "do the jobs that were asked for over HTTP",
    "Takes fine-tuning jobs of /v1/fine_tuning/jobs from the data directory. 'penstock serve' keeps a worker running; one more may run beside it. It may be killed\n"
    "at any point: what it was at goes on from its checkpoint.",
    0,
    0,
    options,
    PST_ARRAY_LEN(options),
    run_worker};
