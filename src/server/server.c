/* The server as a whole: options, the listener, workers, signals, draining and the end. What a request is, is call.c's. */
#include "server/server.h"

#include <signal.h>
#include <string.h>

enum { MAX_OPEN = 512, DRAIN_MS = 30000 };

/* ---- workers --------------------------------------------------------------------------------------------------------------- */

/* Who is calling? 0, or the call has failed. */
static int check_key(pst_server_call *call) {
  const pst_server *server = call->server;
  bool needed = !call->endpoint->open && (server->options.require_key || !call->from_here);
  pst_str secret = pst_str_trim(call->authorization);
  if (pst_str_starts(secret, PST_STR("Bearer ")) || pst_str_starts(secret, PST_STR("bearer ")))
    secret = pst_str_trim((pst_str){secret.data + 7, secret.n - 7});
  bool ours = pst_str_starts(secret, PST_STR("pst-"));
  if (!needed && !ours) return 0;
  pst_error err = PST_ERROR_INIT;
  if (secret.n == 0) {
    pst_wire_error e = {401, "invalid_request_error", "missing_api_key", 0};
    pst_server_fail(
        call, &e, "an API key is needed: send 'Authorization: Bearer KEY' (penstock key create NAME makes one)", NULL);
    return PST_E_DENIED;
  }
  int code = pst_store_key_check(server->store, secret, &call->key, &err);
  if (code) {
    memset(&call->key, 0, sizeof call->key);
    pst_server_fail_code(call, &err);
  }
  return code;
}

static void *run_worker(void *arg) {
  pst_server *server = arg;
  pst_server_call *call;
  while ((call = pst_queue_pop(server->jobs, -1))) {
    if (atomic_load(&call->gone)) {
      /* nobody waits for it */
    } else if (call->again) {
      call->again(call);
    } else if (!check_key(call) && call->endpoint->work) {
      call->endpoint->work(call);
    }
    (void)pst_net_loop_post_task(server->loop, &call->task); /* the loop runs until the last call is freed */
  }
  return NULL;
}

static void stop_workers(pst_server *server) {
  if (server->jobs) pst_queue_close(server->jobs);
  for (int i = 0; i < server->n_workers; i++) pthread_join(server->workers[i], NULL);
  server->n_workers = 0;
}

static int start_workers(pst_server *server, pst_error *err) {
  while (server->n_workers < PST_SERVER_WORKERS) {
    if (pthread_create(&server->workers[server->n_workers], NULL, run_worker, server))
      return pst_error_set(err, PST_E_NOMEM, NULL, "cannot start the server's worker threads");
    server->n_workers++;
  }
  return 0;
}

/* ---- draining -------------------------------------------------------------------------------------------------------------- */

/* Invariant "books before exit": the loop stops only when the listener is gone and no gateway call of ours is open. */
static void stop_when_over(pst_server *server) {
  if (server->http_drained && server->n_calls == 0) pst_net_loop_stop(server->loop);
}

static void on_http_drained(void *arg) {
  pst_server *server = arg;
  server->http_drained = true;
  stop_when_over(server);
}

/* The answers are out: what connections are left get a moment to read them. */
static void close_listener(pst_server *server) {
  pst_net_server_drain(server->http, server->cutting ? 0 : 2000, on_http_drained, server);
}

void pst_server_call_gone_from_list(pst_server *server) {
  if (!server->draining || server->n_calls) return;
  if (!server->http_drained) close_listener(server);
  stop_when_over(server);
}

static void cut(void *arg) {
  pst_server *server = arg;
  if (server->cutting) return;
  server->cutting = server->draining = true;
  if (server->n_calls) pst_log(PST_LOG_WARN, "event=cut open_requests=%d", server->n_calls);
  close_listener(server);
}

static void drain(void *arg) {
  pst_server *server = arg;
  if (server->draining) return;
  server->draining = true;
  pst_log(PST_LOG_INFO, "event=draining open_requests=%d", server->n_calls);
  pst_net_timer_set(server->drain_timer, server->options.drain_ms);
  if (server->n_calls == 0) close_listener(server);
}

static void on_signal(void *arg) {
  pst_server *server = arg;
  if (!server->draining) {
    drain(server);
    return;
  }
  signal(SIGTERM, SIG_DFL); /* a third one kills */
  signal(SIGINT, SIG_DFL);
  cut(server);
}

void pst_server_drain(pst_server *server, bool now) {
  (void)pst_net_loop_post(server->loop, now ? cut : drain, server);
}

/* ---- open, run, close ------------------------------------------------------------------------------------------------------ */

static char *keep(pst_server *server, const char *text) {
  return text ? pst_arena_strndup(server->arena, text, strlen(text)) : NULL;
}

static int copy_options(pst_server *server, const pst_server_options *options, pst_error *err) {
  pst_server_options *o = &server->options;
  *o = *options;
  if (!o->max_open) o->max_open = MAX_OPEN;
  if (!o->drain_ms) o->drain_ms = DRAIN_MS;
  pst_server_alias *aliases = pst_arena_calloc(server->arena, o->n_aliases + 1, sizeof *aliases);
  bool ok = aliases != NULL;
  for (size_t i = 0; i < o->n_aliases && ok; i++) {
    aliases[i] = (pst_server_alias){keep(server, options->aliases[i].id), keep(server, options->aliases[i].name)};
    ok = aliases[i].id && aliases[i].name;
  }
  o->aliases = aliases;
  o->address = keep(server, options->address ? options->address : "127.0.0.1");
  o->default_model = keep(server, options->default_model);
  if (!ok || !o->address || (options->default_model && !o->default_model))
    return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the server");
  return 0;
}

int pst_server_open(pst_store *store, pst_gateway *gateway, const pst_server_options *options, pst_server **ret_server,
                    pst_error *err) {
  pst_server *server = pst_calloc(1, sizeof *server);
  if (!server) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the server");
  server->store = store;
  server->gateway = gateway;
  server->started_ms = pst_clock_unix_ms();
  pthread_mutex_init(&server->retention_lock, NULL);
  pthread_cond_init(&server->retention_wake, NULL);
  pst_server_metrics_init(&server->metrics);
  server->arena = pst_arena_create();
  server->jobs = pst_queue_create();
  int code = server->arena && server->jobs ? copy_options(server, options, err)
                                           : pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the server");
  if (!code) code = pst_net_loop_create(&server->loop, err);
  if (!code) code = pst_net_timer_create(server->loop, cut, server, &server->drain_timer);
  if (code) goto done;
  pst_net_server_options http = pst_net_server_options_default();
  http.address = server->options.address;
  http.port = options->port;
  http.handler = pst_server_handle;
  http.error_writer = pst_server_error_body;
  http.user = server;
  if (options->max_body_bytes) http.max_body_bytes = options->max_body_bytes;
  code = pst_net_server_create(server->loop, &http, &server->http, err);
done:
  if (code)
    pst_server_close(server);
  else
    *ret_server = server;
  return code;
}

int pst_server_port(const pst_server *server) { return pst_net_server_port(server->http); }

int pst_server_run(pst_server *server, pst_error *err) {
  int code = start_workers(server, err);
  if (!code) code = pst_server_retention_start(server, err);
  if (!code) code = pst_net_loop_on_signal(server->loop, SIGTERM, on_signal, server, err);
  if (!code) code = pst_net_loop_on_signal(server->loop, SIGINT, on_signal, server, err);
  /* A terminal that closes ends the server as SIGTERM does; under nohup it is ignored. */
  struct sigaction hang_up;
  bool watched = sigaction(SIGHUP, NULL, &hang_up) == 0 && hang_up.sa_handler != SIG_IGN;
  if (!code && watched) code = pst_net_loop_on_signal(server->loop, SIGHUP, on_signal, server, err);
  if (!code && server->options.ready) server->options.ready(server->options.user);
  if (!code) code = pst_net_loop_run(server->loop, err);
  pst_server_retention_stop(server);
  stop_workers(server);
  return code;
}

void pst_server_close(pst_server *server) {
  if (!server) return;
  pst_server_retention_stop(server);
  stop_workers(server);
  pst_net_server_free(server->http);
  pst_net_timer_free(server->drain_timer);
  pst_net_loop_free(server->loop);
  if (server->jobs) pst_queue_free(server->jobs);
  pst_arena_free(server->arena);
  pthread_mutex_destroy(&server->retention_lock);
  pthread_cond_destroy(&server->retention_wake);
  pst_free(server);
}
