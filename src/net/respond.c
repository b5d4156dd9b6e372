/* Answers: what a handler does with its exchange. Only fills the connection's write queue and marks it for the pump; never touches
 * the socket, so that nothing here can call back into the handler. */
#include <string.h>

#include "net/server.h"

const pst_net_request *pst_net_exchange_request(const pst_net_exchange *x) { return &x->request; }

void pst_net_exchange_on_gone(pst_net_exchange *x, pst_net_fn fn, void *arg) {
  x->on_gone = fn;
  x->gone_arg = arg;
}

void pst_net_exchange_gone(pst_net_exchange *x) {
  if (!x->ended) {
    x->ended = true; /* what the callback still tries to write is refused */
    x->connection->server->stats.n_gone++;
    if (x->on_gone) x->on_gone(x->gone_arg);
  }
  pst_free(x);
}

void pst_net_connection_error_body(pst_net_server *server, int status, const char *message, pst_buf *body,
                                   const char **ret_type) {
  if (server->options.error_writer) {
    server->options.error_writer(server->options.user, status, message, body, ret_type);
  } else {
    pst_buf_printf(body, "%s\n", message);
  }
}

/* ---- heads ------------------------------------------------------------------------------------------------------------ */

/* RFC 9110 5.1 and 5.5: a token, and a value without control characters (tab allowed). Nothing a handler passes on can split the head. */
static bool header_ok(const pst_net_header *h) {
  static const char *const ours[] = {"content-length", "transfer-encoding", "connection", "date"};
  if (h->name.n == 0) return false;
  for (size_t i = 0; i < h->name.n; i++) {
    char ch = h->name.data[i];
    bool alnum = (ch >= '0' && ch <= '9') || (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z');
    if (!alnum && (ch == 0 || !strchr("!#$%&'*+-.^_`|~", ch))) return false;
  }
  for (size_t i = 0; i < h->value.n; i++) {
    unsigned char ch = (unsigned char)h->value.data[i];
    if ((ch < 0x20 && ch != '\t') || ch == 0x7f) return false;
  }
  for (size_t i = 0; i < PST_ARRAY_LEN(ours); i++) {
    if (pst_net_header_find(h, 1, ours[i]).data) return false;
  }
  return true;
}

static const char *date_now(pst_net_server *server) {
  int64_t second = pst_clock_unix_ms() / 1000;
  if (second != server->date_second) {
    server->date_second = second;
    pst_net_http_date(second, server->date);
  }
  return server->date;
}

/* content_length < 0: none is sent. Also decides whether the connection stays open. */
void pst_net_write_head(pst_net_connection *c, int status, const pst_net_header *headers, size_t n_headers,
                        int64_t content_length, bool chunked, bool http10) {
  pst_buf *out = &c->out;
  if (c->server->draining) c->close_after = true;
  pst_buf_printf(out, "HTTP/1.1 %d %s\r\ndate: %s\r\n", status, pst_net_status_text(status), date_now(c->server));
  for (size_t i = 0; i < n_headers; i++) {
    pst_buf_append_str(out, headers[i].name);
    pst_buf_append(out, ": ", 2);
    pst_buf_append_str(out, headers[i].value);
    pst_buf_append(out, "\r\n", 2);
  }
  if (content_length >= 0) pst_buf_printf(out, "content-length: %lld\r\n", (long long)content_length);
  if (chunked) pst_buf_puts(out, "transfer-encoding: chunked\r\n");
  if (c->close_after) {
    pst_buf_puts(out, "connection: close\r\n");
  } else if (http10) {
    pst_buf_puts(out, "connection: keep-alive\r\n");
  }
  pst_buf_append(out, "\r\n", 2);
}

static bool without_body(int status) { return status < 200 || status == 204 || status == 304; }

/* Moves what is already written out of the way before the queue grows. */
static void compact(pst_net_connection *c) {
  if (c->out_at < 4096 || c->out_at < c->out.n / 2) return;
  memmove(c->out.data, c->out.data + c->out_at, c->out.n - c->out_at);
  c->out.n -= c->out_at;
  c->out_at = 0;
}

static void end(pst_net_exchange *x) {
  x->ended = true;
  x->streaming = false;
  pst_net_connection_pump_soon(x->connection);
}

static int check_headers(const pst_net_header *headers, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (!header_ok(&headers[i])) return PST_E_BAD_INPUT;
  }
  return 0;
}

static int fail_plain(pst_net_exchange *x, int code) {
  pst_net_connection *c = x->connection;
  pst_net_write_head(c, 500, NULL, 0, 0, false, c->parser.http_minor < 1);
  end(x);
  return code;
}

int pst_net_respond(pst_net_exchange *x, int status, const pst_net_header *headers, size_t n_headers, pst_str body) {
  if (x->ended || x->begun) return PST_E_CANCELLED;
  pst_net_connection *c = x->connection;
  x->begun = true;
  int rc = status < 200 || status > 599 ? PST_E_BAD_INPUT : check_headers(headers, n_headers);
  if (rc) return fail_plain(x, rc);
  compact(c);
  bool bare = without_body(status);
  pst_net_write_head(c, status, headers, n_headers, bare ? -1 : (int64_t)body.n, false, c->parser.http_minor < 1);
  if (!bare && !x->head_only) pst_buf_append_str(&c->out, body);
  end(x);
  if (c->out.failed) {
    c->reset = true;
    return PST_E_NOMEM;
  }
  return 0;
}

int pst_net_respond_begin(pst_net_exchange *x, int status, const pst_net_header *headers, size_t n_headers) {
  if (x->ended || x->begun) return PST_E_CANCELLED;
  pst_net_connection *c = x->connection;
  x->begun = true;
  int rc = status < 200 || status > 599 ? PST_E_BAD_INPUT : check_headers(headers, n_headers);
  if (rc) return fail_plain(x, rc);
  compact(c);
  bool http10 = c->parser.http_minor < 1;
  bool bare = without_body(status);
  x->head_only = x->head_only || bare;
  x->chunked = !http10 && !bare;
  if (http10 && !x->head_only) c->close_after = true; /* the end of the connection is the end of the body */
  pst_net_write_head(c, status, headers, n_headers, -1, x->chunked, http10);
  x->streaming = true;
  pst_net_connection_pump_soon(c);
  return c->out.failed ? PST_E_NOMEM : 0; /* the pump finds `failed` and cuts */
}

int pst_net_respond_write(pst_net_exchange *x, pst_str data) {
  if (x->ended || !x->streaming) return PST_E_CANCELLED;
  pst_net_connection *c = x->connection;
  const pst_net_server_options *options = &c->server->options;
  if (data.n == 0 || x->head_only) return 0; /* an empty chunk would be the end */
  compact(c);
  if (c->out.n - c->out_at + data.n > options->write_max_bytes) {
    c->reset = true;
    pst_net_connection_pump_soon(c);
    return PST_E_LIMIT;
  }
  if (x->chunked) pst_buf_printf(&c->out, "%zx\r\n", data.n);
  pst_buf_append_str(&c->out, data);
  if (x->chunked) pst_buf_append(&c->out, "\r\n", 2);
  pst_net_connection_pump_soon(c);
  if (c->out.failed) return PST_E_NOMEM;
  if (c->out.n - c->out_at <= options->write_high_bytes) return 0;
  x->was_full = true;
  return 1;
}

size_t pst_net_respond_pending(const pst_net_exchange *x) { return x->connection->out.n - x->connection->out_at; }

void pst_net_respond_on_drain(pst_net_exchange *x, pst_net_fn fn, void *arg) {
  x->on_drain = fn;
  x->drain_arg = arg;
}

void pst_net_respond_end(pst_net_exchange *x) {
  if (x->ended || !x->streaming) return;
  if (x->chunked && !x->head_only) pst_buf_append(&x->connection->out, "0\r\n\r\n", 5);
  end(x);
}

void pst_net_respond_abort(pst_net_exchange *x) {
  if (x->ended) return;
  x->connection->reset = true;
  end(x);
}
