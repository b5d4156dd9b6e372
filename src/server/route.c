/* What is served where, and the endpoints that need no gateway call: models, feedback, health, metrics. */
#include "server/server.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/* ---- models ---------------------------------------------------------------------------------------------------------------- */

typedef struct model_list {
  pst_arena *arena;
  pst_wire_model *models;
  size_t n, capacity;
  int64_t created;
  int code;
  const pst_server *server;
} model_list;

static int add_model(void *user, const char *id, const char *owner) {
  model_list *list = user;
  for (size_t i = 0; i < list->n; i++)
    if (pst_str_is(list->models[i].id, id)) return 0;
  if (pst_array_reserve((void **)&list->models, &list->capacity, list->n + 1, sizeof *list->models)) return PST_E_NOMEM;
  pst_wire_model *m = &list->models[list->n];
  m->id = pst_str_from(pst_arena_strndup(list->arena, id, strlen(id)));
  m->owner = pst_str_from(pst_arena_strndup(list->arena, owner, strlen(owner)));
  m->created = list->created;
  if (!m->id.data || !m->owner.data) return PST_E_NOMEM;
  list->n++;
  return 0;
}

/* Adapters of what is served under another name than its own; the gateway lists the rest. */
static int add_adapter(void *user, const pst_store_adapter *adapter) {
  const model_list *list = user;
  const pst_server_options *o = &list->server->options;
  int code = 0;
  for (size_t i = 0; i < o->n_aliases && !code; i++) {
    if (strcmp(o->aliases[i].name, adapter->base) != 0 || !strcmp(o->aliases[i].id, adapter->base)) continue;
    const char *id = pst_arena_printf(list->arena, "%s:%s", o->aliases[i].id, adapter->name);
    code = id ? add_model(user, id, "adapter") : PST_E_NOMEM;
  }
  return code;
}

static void models_work(pst_server_call *call) {
  pst_server *server = call->server;
  model_list list = {.arena = call->arena, .created = server->started_ms / 1000};
  pst_error err = PST_ERROR_INIT;
  pst_buf id = PST_BUF_INIT;
  int code = 0;
  for (size_t i = 0; i < server->options.n_aliases && !code; i++)
    code = add_model(&list, server->options.aliases[i].id, "penstock");
  list.server = server;
  if (!code && server->options.n_aliases) code = pst_store_adapter_each(server->store, add_adapter, &list, &err);
  if (!code && server->options.default_model) code = add_model(&list, "default", "penstock");
  if (!code) code = pst_gateway_models_each(server->gateway, add_model, &list, &err);
  if (code) {
    if (!err.code) pst_error_set(&err, code, NULL, "the models cannot be listed");
    goto done;
  }
  size_t prefix = strlen("/v1/models/");
  call->status = 200;
  if (call->path.n <= prefix) {
    pst_wire_models_write(list.models, list.n, &call->out);
    goto done;
  }
  code = pst_net_percent_decode((pst_str){call->path.data + prefix, call->path.n - prefix}, false, &id);
  if (code) {
    pst_error_set(&err, code, NULL, "the model's name is not well-formed in this path");
    goto done;
  }
  for (size_t i = 0; i < list.n; i++) {
    if (!pst_str_equal(list.models[i].id, pst_buf_str(&id))) continue;
    pst_wire_model_write(&list.models[i], &call->out);
    goto done;
  }
  code = pst_error_set(&err, PST_E_NOT_FOUND, "model",
                       "the model '%.200s' does not exist; GET /v1/models lists those that do", pst_buf_text(&id));
done:
  if (code) pst_server_fail_code(call, &err);
  pst_free(list.models);
  pst_buf_done(&id);
}

/* ---- feedback -------------------------------------------------------------------------------------------------------------- */

static void feedback_work(pst_server_call *call) {
  pst_wire_feedback f = {0};
  pst_error err = PST_ERROR_INIT;
  int code = pst_wire_feedback_parse(call->body, &f, &err);
  if (!code) {
    pst_store_feedback record = {
        .completion_id = f.completion_id,
        .time_ms = pst_clock_unix_ms(),
        .thumbs = f.has_thumbs ? f.thumbs_up ? 1 : -1 : 0,
        .has_score = f.has_score,
        .score = f.score,
        .correction = f.correction,
        .outcome = f.outcome,
        .retried = f.retried,
        .abandoned = f.abandoned,
    };
    code = pst_store_feedback_put(call->server->store, &record, &err);
    if (code == PST_E_NOT_FOUND) {
      pst_wire_error e = {404, "invalid_request_error", "completion_not_found", 0};
      pst_server_fail(call, &e, "completion_id: no answer of this server has this id", "completion_id");
    } else if (!code) {
      pst_json_writer w = pst_json_writer_on(&call->out, false);
      pst_json_begin_object(&w);
      pst_json_member_cstr(&w, "object", "feedback");
      pst_json_member_str(&w, "completion_id", f.completion_id);
      pst_json_end_object(&w);
      call->status = 200;
    }
  }
  if (code && code != PST_E_NOT_FOUND) pst_server_fail_code(call, &err);
  pst_wire_feedback_done(&f);
}

/* ---- health, metrics ------------------------------------------------------------------------------------------------------- */

static void health_reply(pst_server_call *call) {
  bool draining = call->server->draining;
  call->status = draining ? 503 : 200;
  pst_buf_puts(&call->out, draining ? "{\"status\":\"draining\"}" : "{\"status\":\"ok\"}");
  pst_server_reply_plain(call);
}

static void metrics_work(pst_server_call *call) {
  pst_gateway_get_stats(call->server->gateway, &call->gateway_stats);
  (void)pst_store_cache_count(call->server->store, (pst_str){NULL, 0}, &call->n_cached, NULL); /* 0: cannot be read */
}

static void put_gauge(pst_buf *out, const char *name, const char *help, int64_t value) {
  pst_server_metric_head(out, name, "gauge", help);
  pst_server_metric_int(out, name, "", value);
}

static void put_counter(pst_buf *out, const char *name, const char *help, int64_t value) {
  pst_server_metric_head(out, name, "counter", help);
  pst_server_metric_int(out, name, "", value);
}

static void write_engines(const pst_gateway_stats *s, pst_buf *out) {
  const pst_engine_stats *e = &s->engines;
  put_gauge(out, "penstock_engines", "Engines that are loaded", s->n_engines);
  put_gauge(out, "penstock_open_calls", "Gateway calls that have not ended", s->n_open_calls);
  put_gauge(out, "penstock_engine_running", "Sequences being decoded or read in", e->n_running);
  put_gauge(out, "penstock_engine_queued", "Sequences waiting for a slot", e->n_queued);
  static const char pages[] = "penstock_kv_pages";
  pst_server_metric_head(out, pages, "gauge", "Pages of keys and values; cached ones can be given up at any time");
  pst_server_metric_int(out, pages, "state=\"total\"", e->kv_pages);
  pst_server_metric_int(out, pages, "state=\"used\"", e->kv_pages_used);
  pst_server_metric_int(out, pages, "state=\"cached\"", e->kv_pages_cached);
  put_counter(out, "penstock_engine_requests_total", "Sequences taken by the engines", e->n_requests);
  put_counter(out, "penstock_engine_prompt_tokens_total", "Prompt tokens, cached ones included", e->n_prompt_tokens);
  put_counter(out, "penstock_engine_cached_tokens_total", "Prompt tokens found in the prefix cache",
              e->n_cached_tokens);
  put_counter(out, "penstock_engine_completion_tokens_total", "Tokens generated", e->n_completion_tokens);
  put_counter(out, "penstock_engine_steps_total", "Forward steps", e->n_steps);
  put_counter(out, "penstock_engine_drafted_tokens_total", "Tokens guessed by speculation", e->n_drafted);
  put_counter(out, "penstock_engine_accepted_tokens_total", "Guessed tokens that were right", e->n_accepted);
  pst_server_metric_head(out, "penstock_engine_busy_seconds_total", "counter", "Time spent in forward steps");
  pst_server_metric_real(out, "penstock_engine_busy_seconds_total", "", (double)e->busy_us / 1e6);
}

static int64_t resident_bytes(void) {
  char *text = NULL;
  size_t n = 0;
  long long pages = 0;
  if (!pst_file_read("/proc/self/statm", 4096, &text, &n, NULL)) (void)sscanf(text, "%*s %lld", &pages);
  pst_free(text);
  return (int64_t)pages * sysconf(_SC_PAGESIZE);
}

static void metrics_reply(pst_server_call *call) {
  pst_server *server = call->server;
  if (call->status >= 400) { /* no key */
    pst_server_reply_plain(call);
    return;
  }
  pst_net_server_stats net;
  pst_store_stats store = pst_store_stats_get(server->store);
  pst_buf *out = &call->out;
  pst_net_server_get_stats(server->http, &net);
  pst_server_metrics_write(&server->metrics, out);
  put_gauge(out, "penstock_requests_open", "Requests being answered", server->n_calls - 1); /* without this one */
  write_engines(&call->gateway_stats, out);
  put_gauge(out, "penstock_answer_cache_entries", "Answers that may be given again", call->n_cached);
  put_gauge(out, "penstock_http_connections", "Open connections", net.n_connections);
  put_counter(out, "penstock_http_accepted_total", "Connections accepted", net.n_accepted);
  put_counter(out, "penstock_http_refused_total", "Connections over the limit", net.n_refused);
  put_counter(out, "penstock_http_malformed_total", "Requests that were not HTTP", net.n_bad);
  put_counter(out, "penstock_http_timeouts_total", "Connections that were too slow", net.n_timeouts);
  put_counter(out, "penstock_store_commits_total", "Transactions committed", store.n_commits);
  put_counter(out, "penstock_store_failed_writes_total", "Records that could not be written", store.n_failed_queued);
  put_gauge(out, "penstock_store_pending_writes", "Records waiting to be written", store.n_pending);
  put_gauge(out, "penstock_draining", "1 while the server is going down", server->draining);
  put_gauge(out, "process_resident_memory_bytes", "Resident memory", resident_bytes());
  put_gauge(out, "process_start_time_seconds", "Unix time of the server's start", server->started_ms / 1000);
  call->status = 200;
  call->content_type = "text/plain; version=0.0.4; charset=utf-8";
  pst_server_reply_plain(call);
}

/* ---- the table ------------------------------------------------------------------------------------------------------------- */

static const pst_server_endpoint endpoints[] = {
    {"/v1/chat/completions", "POST", false, false, pst_server_chat_work, pst_server_completion_reply},
    {"/v1/completions", "POST", false, false, pst_server_text_work, pst_server_completion_reply},
    {"/v1/embeddings", "POST", false, false, pst_server_embedding_work, pst_server_embedding_reply},
    {"/v1/feedback", "POST", false, false, feedback_work, NULL},
    {"/v1/files", "POST", false, false, pst_server_files_post, NULL},
    {"/v1/files", "GET", true, false, pst_server_files_get, NULL},
    {"/v1/files", "DELETE", true, false, pst_server_files_delete, NULL},
    {"/v1/fine_tuning/jobs", "POST", true, false, pst_server_jobs_post, NULL},
    {"/v1/fine_tuning/jobs", "GET", true, false, pst_server_jobs_get, NULL},
    {"/v1/models", "GET", true, false, models_work, NULL},
    {"/health", "GET", false, true, NULL, health_reply},
    {"/metrics", "GET", false, false, metrics_work, metrics_reply},
};

const pst_server_endpoint *pst_server_route(pst_str method, pst_str path,
                                            const pst_server_endpoint **ret_other_method) {
  for (size_t i = 0; i < PST_ARRAY_LEN(endpoints); i++) {
    const pst_server_endpoint *e = &endpoints[i];
    pst_str own = pst_str_from(e->path);
    bool below = e->below && path.n > own.n + 1 && pst_str_starts(path, own) && path.data[own.n] == '/';
    if (!below && !pst_str_equal(path, own)) continue;
    bool get = !strcmp(e->method, "GET") && pst_str_is(method, "HEAD");
    if (get || pst_str_is(method, e->method)) return e;
    *ret_other_method = e;
  }
  return NULL;
}
