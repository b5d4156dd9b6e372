/* One HTTP request: its copy, its way to a worker and back, its answer where it is a plain one, its line in the log and its end. What the endpoints mean
 * is route.c's and completion.c's.
 *
 * Invariant "freed once": a call lives until it has no exchange, its worker has handed it back, and all gateway calls it began have ended,
 * and no task of it is in the loop's list. */
#include "server/server.h"

#include <inttypes.h>
#include <string.h>

/* ---- errors ---------------------------------------------------------------------------------------------------------------- */

void pst_server_fail(pst_server_call *call, const pst_wire_error *error, const char *message, const char *param) {
  pst_buf_clear(&call->out);
  pst_wire_error_write(error, message, param, &call->out);
  call->status = error->status;
  call->retry_after_s = error->retry_after_s;
}

/* A field's path, not a file's: only that may go into `param`. */
static const char *field_of(const char *place) {
  return *place && strlen(place) < 128 && !strchr(place, '/') && !strchr(place, ' ') ? place : NULL;
}

/* Without a line in the log. */
static void fail_quietly(pst_server_call *call, const pst_wire_error *e, const pst_error *err) {
  const char *param = e->status < 500 ? field_of(err->place) : NULL;
  char text[1100];
  if (param)
    snprintf(text, sizeof text, "%s: %s", param, err->message);
  else
    snprintf(text, sizeof text, "%s", *err->message ? err->message : pst_error_text(err->code));
  pst_server_fail(call, e, text, param);
}

void pst_server_fail_code(pst_server_call *call, const pst_error *err) {
  pst_wire_error e = pst_wire_error_from(err->code);
  char text[1100];
  if (e.status >= 500)
    pst_log(PST_LOG_ERROR, "event=request_failed path=%s error=\"%s\"", call->endpoint->path,
            pst_error_format(err, text, sizeof text));
  fail_quietly(call, &e, err);
}

void pst_server_fail_upstream(pst_server_call *call, const pst_error *err, const char *provider, int upstream_status) {
  pst_wire_error e = pst_wire_error_from(err->code);
  if (e.status >= 500)
    pst_log(PST_LOG_ERROR, "event=request_failed path=%s error=\"%s\" provider=%s upstream_status=%d",
            call->endpoint->path, pst_error_text(err->code), provider, upstream_status);
  fail_quietly(call, &e, err);
}

void pst_server_error_body(void *user, int status, const char *message, pst_buf *body, const char **ret_content_type) {
  (void)user;
  pst_wire_error e = pst_wire_error_of_status(status);
  pst_wire_error_write(&e, message, NULL, body);
  *ret_content_type = "application/json";
}

/* ---- the end --------------------------------------------------------------------------------------------------------------- */

void pst_server_answered(pst_server_call *call, int status) {
  int64_t us = pst_clock_us() - call->received_us;
  call->x = NULL;
  const char *path = call->endpoint->path;
  pst_server_metrics_status(&call->server->metrics, path, status, us);
  /* What is asked every few seconds by machines is no news. */
  pst_log_level level = call->endpoint->work == NULL || !strcmp(path, "/metrics") ? PST_LOG_DEBUG : PST_LOG_INFO;
  if (!pst_log_enabled(level)) return;
  pst_buf more = PST_BUF_INIT;
  bool ours = call->worked; /* until then key and completion are the worker's */
  if (ours && call->completion) pst_server_completion_describe(call->completion, &more);
  if (ours && call->embedding) pst_server_embedding_describe(call->embedding, &more);
  pst_log(level, "%s%speer=%s path=%s status=%d ms=%.1f key=%" PRId64, pst_buf_text(&more), more.n ? " " : "",
          call->peer, path, status, (double)us / 1e3, ours ? call->key.id : 0);
  pst_buf_done(&more);
}

void pst_server_reply_plain(pst_server_call *call) {
  pst_net_header headers[5] = {
      {PST_STR("content-type"), pst_str_from(call->content_type ? call->content_type : "application/json")}};
  size_t n = 1;
  char retry[16];
  if (call->out.failed) {
    pst_wire_error e = pst_wire_error_from(PST_E_NOMEM);
    pst_buf_done(&call->out);
    pst_server_fail(call, &e, "out of memory for the answer", NULL);
  }
  if (call->retry_after_s) {
    snprintf(retry, sizeof retry, "%d", call->retry_after_s);
    headers[n++] = (pst_net_header){PST_STR("retry-after"), pst_str_from(retry)};
  }
  if (call->status == 401) headers[n++] = (pst_net_header){PST_STR("www-authenticate"), PST_STR("Bearer")};
  const char *id = call->completion  ? pst_server_completion_id(call->completion)
                   : call->embedding ? pst_server_embedding_id(call->embedding)
                                     : "";
  if (*id) headers[n++] = (pst_net_header){PST_STR("x-request-id"), pst_str_from(id)};
  const char *cache = call->completion ? pst_server_completion_cache(call->completion) : NULL;
  if (cache) headers[n++] = (pst_net_header){PST_STR("x-penstock-cache"), pst_str_from(cache)};
  pst_net_exchange *x = call->x;
  if (!x) return;
  int code = pst_net_respond(x, call->status, headers, n, pst_buf_str(&call->out));
  pst_server_answered(call, code ? 500 : call->status);
}

void pst_server_call_unref(pst_server_call *call) {
  if (call->x || !call->worked || (call->completion && !pst_server_completion_over(call->completion))) return;
  if (call->embedding && !pst_server_embedding_over(call->embedding)) return;
  pst_server *server = call->server;
  if (call->prev)
    call->prev->next = call->next;
  else
    server->calls = call->next;
  if (call->next) call->next->prev = call->prev;
  server->n_calls--;
  pst_server_completion_free(call->completion);
  pst_server_embedding_free(call->embedding);
  pst_buf_done(&call->out);
  pst_arena_free(call->arena);
  pst_free(call);
  pst_server_call_gone_from_list(server);
}

static void on_gone(void *arg) {
  pst_server_call *call = arg;
  atomic_store(&call->gone, true);
  call->server->metrics.n_cancelled++;
  pst_server_answered(call, 499);
  if (call->worked && call->completion) pst_server_completion_gone(call);
  if (call->worked && call->embedding) pst_server_embedding_gone(call);
  pst_server_call_unref(call);
}

/* ---- the way through the worker -------------------------------------------------------------------------------------------- */

static void on_worked(void *arg) {
  pst_server_call *call = arg;
  call->worked = true;
  if (call->endpoint->reply)
    call->endpoint->reply(call);
  else
    pst_server_reply_plain(call);
  pst_server_call_unref(call);
}

/* ---- arrival --------------------------------------------------------------------------------------------------------------- */

/* An answer from the loop itself, without a call. */
static void refuse(pst_server *server, pst_net_exchange *x, const pst_wire_error *error, const char *message,
                   const char *allow, const char *path) {
  const pst_net_request *request = pst_net_exchange_request(x);
  pst_net_header headers[3] = {{PST_STR("content-type"), PST_STR("application/json")}};
  size_t n = 1;
  char retry[16];
  pst_buf body = PST_BUF_INIT;
  if (error->retry_after_s) {
    snprintf(retry, sizeof retry, "%d", error->retry_after_s);
    headers[n++] = (pst_net_header){PST_STR("retry-after"), pst_str_from(retry)};
  }
  if (allow) headers[n++] = (pst_net_header){PST_STR("allow"), pst_str_from(allow)};
  pst_wire_error_write(error, message, NULL, &body);
  int64_t us = pst_clock_us() - request->received_us;
  pst_server_metrics_status(&server->metrics, path, error->status, us);
  pst_log(PST_LOG_INFO, "peer=%s path=%s status=%d ms=%.1f", request->peer, path, error->status, (double)us / 1e3);
  (void)pst_net_respond(x, error->status, headers, n, pst_buf_str(&body));
  pst_buf_done(&body);
}

static pst_str copy(pst_arena *arena, pst_str s, bool *failed) {
  char *text = pst_arena_strndup(arena, s.data ? s.data : "", s.n);
  if (!text) *failed = true;
  return (pst_str){text, text ? s.n : 0};
}

/* Of a name with or without a port. */
static bool is_loopback_name(pst_str host) {
  bool bracket = host.n && host.data[0] == '[';
  size_t end = pst_str_find(host, bracket ? PST_STR("]") : PST_STR(":"), 0);
  if (end != SIZE_MAX) host.n = end + bracket;
  return pst_str_is(host, "localhost") || pst_str_is(host, "127.0.0.1") || pst_str_is(host, "[::1]");
}

static bool is_loopback_origin(pst_str origin) {
  static const char *const schemes[] = {"http://", "https://"};
  for (size_t i = 0; i < PST_ARRAY_LEN(schemes); i++) {
    pst_str scheme = pst_str_from(schemes[i]);
    if (!pst_str_starts(origin, scheme)) continue;
    return is_loopback_name((pst_str){origin.data + scheme.n, origin.n - scheme.n});
  }
  return false;
}

static int bad_header(const char *name, pst_str value, const char *accepted, pst_error *err) {
  return pst_error_set(err, PST_E_BAD_INPUT, name, "takes %s, not '%.*s'", accepted, (int)PST_MIN(value.n, (size_t)40),
                       value.data);
}

int pst_server_consent(const pst_server_call *call, pst_str safety_identifier, pst_str user,
                       pst_store_consent *ret_consent, pst_str *ret_subject, pst_error *err) {
  pst_store_consent allowed = call->key.has_consent ? call->key.consent : call->server->options.consent;
  pst_store_consent asked = allowed;
  int64_t days = asked.retention_days;
  if (call->keep.n && !pst_store_keep_from(call->keep, &asked.keep))
    return bad_header("x-penstock-keep", call->keep, "nothing, metadata or content", err);
  if (call->train.n && !pst_str_is(call->train, "yes") && !pst_str_is(call->train, "no"))
    return bad_header("x-penstock-train", call->train, "yes or no", err);
  if (pst_str_is(call->train, "no")) asked.train = false;
  if (call->retention.n && pst_parse_i64(call->retention, 1, PST_STORE_RETENTION_MAX, &days))
    return bad_header("x-penstock-retention-days", call->retention, "1 to 36500 days", err);
  pst_str subject = call->subject.n ? call->subject : safety_identifier.n ? safety_identifier : user;
  if (subject.n > 512 || !pst_utf8_valid(subject))
    return bad_header("x-penstock-subject", subject, "at most 512 bytes of UTF-8", err);
  asked.retention_days = (int)days;
  *ret_consent = pst_store_consent_lower(allowed, asked);
  *ret_subject = subject;
  return 0;
}

/* Over the loopback interface, and not for somebody else: a proxy on this machine passes on the world's requests, and a browser on it those of any page
 * that is open, which may have led a name of its own here. */
static bool is_from_here(const pst_net_request *request) {
  static const char *const forwarded[] = {"forwarded", "x-forwarded-for", "x-real-ip"};
  for (size_t i = 0; i < PST_ARRAY_LEN(forwarded); i++)
    if (pst_net_header_find(request->headers, request->n_headers, forwarded[i]).data) return false;
  pst_str origin = pst_net_header_find(request->headers, request->n_headers, "origin");
  pst_str host = pst_net_header_find(request->headers, request->n_headers, "host");
  return request->loopback && (!origin.data || is_loopback_origin(origin)) && (!host.data || is_loopback_name(host));
}

static pst_server_call *make_call(pst_server *server, pst_net_exchange *x, const pst_server_endpoint *endpoint) {
  const pst_net_request *request = pst_net_exchange_request(x);
  pst_server_call *call = pst_calloc(1, sizeof *call);
  if (!call) return NULL;
  bool failed = false;
  call->arena = pst_arena_create();
  if (!call->arena) {
    pst_free(call);
    return NULL;
  }
  call->server = server;
  call->endpoint = endpoint;
  call->path = copy(call->arena, request->path, &failed);
  call->query = copy(call->arena, request->query, &failed);
  call->media_type =
      copy(call->arena, pst_net_header_find(request->headers, request->n_headers, "content-type"), &failed);
  call->body = copy(call->arena, request->body, &failed);
  call->authorization =
      copy(call->arena, pst_net_header_find(request->headers, request->n_headers, "authorization"), &failed);
  const struct {
    const char *name;
    pst_str *to;
  } headers[] = {{"x-penstock-keep", &call->keep},
                 {"x-penstock-train", &call->train},
                 {"x-penstock-retention-days", &call->retention},
                 {"x-penstock-subject", &call->subject},
                 {"cache-control", &call->cache_control}};
  for (size_t i = 0; i < PST_ARRAY_LEN(headers); i++)
    *headers[i].to = copy(
        call->arena, pst_str_trim(pst_net_header_find(request->headers, request->n_headers, headers[i].name)), &failed);
  call->from_here = is_from_here(request);
  call->received_us = request->received_us;
  snprintf(call->peer, sizeof call->peer, "%s", request->peer);
  call->task = (pst_net_task){.fn = on_worked, .arg = call};
  if (failed) {
    pst_arena_free(call->arena);
    pst_free(call);
    return NULL;
  }
  return call;
}

void pst_server_handle(void *user, pst_net_exchange *x) {
  pst_server *server = user;
  const pst_net_request *request = pst_net_exchange_request(x);
  const pst_server_endpoint *other = NULL;
  const pst_server_endpoint *endpoint = pst_server_route(request->method, request->path, &other);
  char text[256];
  if (!endpoint) {
    pst_wire_error e = pst_wire_error_of_status(other ? 405 : 404);
    if (other) {
      snprintf(text, sizeof text, "%.*s is not allowed at %s; use %s", (int)PST_MIN(request->method.n, (size_t)20),
               request->method.data, other->path, other->method);
    } else {
      snprintf(
          text, sizeof text,
          "nothing is served at this path; see /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /v1/feedback, "
          "/v1/files, /v1/fine_tuning/jobs, /health, /metrics");
    }
    refuse(server, x, &e, text, other ? other->method : NULL, other ? other->path : "other");
    return;
  }
  if (server->draining && !strcmp(endpoint->method, "POST")) {
    pst_wire_error e = {503, "server_error", "draining", 5};
    server->metrics.n_refused_draining++;
    refuse(server, x, &e, "the server is going down; try another one, or again in a moment", NULL, endpoint->path);
    return;
  }
  pst_server_call *call = server->n_calls < server->options.max_open ? make_call(server, x, endpoint) : NULL;
  if (!call) {
    pst_wire_error e = {503, "server_error", "overloaded", 1};
    server->metrics.n_refused_overload++;
    refuse(server, x, &e, "too many requests are being answered; try again in a moment", NULL, endpoint->path);
    return;
  }
  call->x = x;
  call->next = server->calls;
  if (call->next) call->next->prev = call;
  server->calls = call;
  server->n_calls++;
  pst_net_exchange_on_gone(x, on_gone, call);
  if (endpoint->open && !endpoint->work) {
    on_worked(call);
  } else if (pst_queue_push(server->jobs, call)) {
    pst_wire_error e = pst_wire_error_from(PST_E_NOMEM);
    pst_server_fail(call, &e, "out of memory", NULL);
    call->worked = true;
    pst_server_reply_plain(call);
    pst_server_call_unref(call);
  }
}
