/* Retention: a thread that forgets what has expired, at the start and every hour; nothing reads what has expired meanwhile. A look costs one
 * indexed query; only when something has expired is anything written. */
#include "server/server.h"

#include <time.h>

enum { PERIOD_S = 3600 };

static void prune(pst_server *server) {
  pst_store_erasure erasure;
  pst_error err = PST_ERROR_INIT;
  char text[1100];
  if (pst_store_records_prune(server->store, pst_clock_unix_ms(), &erasure, &err)) {
    pst_log(PST_LOG_WARN, "event=prune_failed error=\"%s\"", pst_error_format(&err, text, sizeof text));
    return;
  }
  if (erasure.n_records)
    pst_log(PST_LOG_INFO, "event=pruned records=%lld data_sets=%zu", (long long)erasure.n_records, erasure.n_sets);
  pst_store_erasure_done(&erasure);
}

static void *run(void *arg) {
  pst_server *server = arg;
  pthread_mutex_lock(&server->retention_lock);
  while (!server->retention_ends) {
    pthread_mutex_unlock(&server->retention_lock);
    prune(server);
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PERIOD_S;
    pthread_mutex_lock(&server->retention_lock);
    if (!server->retention_ends) (void)pthread_cond_timedwait(&server->retention_wake, &server->retention_lock, &until);
  }
  pthread_mutex_unlock(&server->retention_lock);
  return NULL;
}

int pst_server_retention_start(pst_server *server, pst_error *err) {
  if (pthread_create(&server->retention, NULL, run, server))
    return pst_error_set(err, PST_E_NOMEM, NULL, "cannot start the thread that forgets expired records");
  server->retention_runs = true;
  return 0;
}

void pst_server_retention_stop(pst_server *server) {
  if (!server->retention_runs) return;
  pthread_mutex_lock(&server->retention_lock);
  server->retention_ends = true;
  pthread_cond_signal(&server->retention_wake);
  pthread_mutex_unlock(&server->retention_lock);
  pthread_join(server->retention, NULL);
  server->retention_runs = false;
}
