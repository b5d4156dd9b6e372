#include "cli/child.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { AGAIN_MS = 5000, STOP_MS = 5000, POLL_MS = 50 };

struct pst_cli_child {
  char *home;
  pthread_t thread;
  pthread_mutex_t mutex; /* guards all below */
  pthread_cond_t changed;
  bool stopping;
  pid_t pid; /* 0: none runs */
};

/* Between fork and exec only what is safe in a signal handler. */
static pid_t start_process(const char *home, pid_t parent) {
  char own[24];
  (void)snprintf(own, sizeof own, "%ld", (long)parent);
  char *const arguments[] = {"penstock", "worker", "--home", (char *)home, "--parent", own, NULL};
  pid_t pid = fork();
  if (pid) return pid;
  sigset_t none;
  (void)sigemptyset(&none);
  (void)sigprocmask(SIG_SETMASK, &none, NULL);
  (void)execv("/proc/self/exe", arguments);
  _exit(127);
}

static void wait_for(pst_cli_child *w, int ms) {
  struct timespec until;
  (void)clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += ms / 1000;
  while (!w->stopping && pthread_cond_timedwait(&w->changed, &w->mutex, &until) != ETIMEDOUT) {}
}

static void *keep_running(void *arg) {
  pst_cli_child *w = arg;
  pid_t self = getpid();
  pthread_mutex_lock(&w->mutex);
  while (!w->stopping) {
    w->pid = start_process(w->home, self);
    pid_t pid = w->pid;
    if (pid > 0) {
      int status = 0;
      pthread_mutex_unlock(&w->mutex);
      while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
      pthread_mutex_lock(&w->mutex);
      if (!w->stopping) pst_log(PST_LOG_WARN, "event=worker_ended status=%d", status);
    } else {
      pst_log(PST_LOG_WARN, "event=worker_not_started errno=%d", errno);
    }
    w->pid = 0;
    (void)pthread_cond_broadcast(&w->changed);
    wait_for(w, AGAIN_MS);
  }
  pthread_mutex_unlock(&w->mutex);
  return NULL;
}

int pst_cli_child_start(const char *home, pst_cli_child **ret_child, pst_error *err) {
  pst_cli_child *w = pst_calloc(1, sizeof *w);
  if (!w || !(w->home = pst_strdup(home))) {
    pst_free(w);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a worker");
  }
  pthread_mutex_init(&w->mutex, NULL);
  pthread_cond_init(&w->changed, NULL);
  if (pthread_create(&w->thread, NULL, keep_running, w)) {
    pst_free(w->home);
    pst_free(w);
    return pst_error_set(err, PST_E_IO, NULL, "cannot start a thread for the worker");
  }
  *ret_child = w;
  return 0;
}

void pst_cli_child_stop(pst_cli_child *w) {
  if (!w) return;
  pthread_mutex_lock(&w->mutex);
  w->stopping = true;
  (void)pthread_cond_broadcast(&w->changed);
  if (w->pid > 0) (void)kill(w->pid, SIGTERM);
  for (int ms = 0; w->pid > 0; ms += POLL_MS) {
    if (ms == STOP_MS) (void)kill(w->pid, SIGKILL);
    pthread_mutex_unlock(&w->mutex);
    (void)usleep(POLL_MS * 1000);
    pthread_mutex_lock(&w->mutex);
  }
  pthread_mutex_unlock(&w->mutex);
  pthread_join(w->thread, NULL);
  pthread_cond_destroy(&w->changed);
  pthread_mutex_destroy(&w->mutex);
  pst_free(w->home);
  pst_free(w);
}
