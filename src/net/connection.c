/* One client's socket on the server: reads, feeds the HTTP parser, hands requests over, writes what answers queued, and sees to it that a client
 * that is slow, rude or gone costs little. Answers themselves are made in respond.c; limits of the whole server live in server.c.
 *
 * The socket's event is edge-triggered and registered once for read, write and early close: the kernel then reports a hang-up or reset also
 * while nothing is read or written, which level-triggered libevent events cannot do without spinning. The price is that this
 * file remembers what is readable. All work is done in pump(), which runs as a later job and never inside a callback of
 * the parser or of a handler. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/server.h"

enum { LINGER_MS = 2000, LINGER_BYTES = 4 << 20, KEEP_BUFFER_BYTES = 1 << 16, PUMP_ROUNDS = 32 };

static void pump(void *arg);

/* ---- parser callbacks ---------------------------------------------------------------------------------------------- */

static int refuse_in_parser(pst_net_connection *c, int status, const char *why) {
  c->refuse_status = status;
  c->refuse_why = why;
  return HPE_USER;
}

static int append_head(pst_net_connection *c, const char *at, size_t n, int status) {
  if (c->head.n + n > c->server->options.max_header_bytes)
    return refuse_in_parser(c, status, "the request line or headers are too long");
  pst_buf_append(&c->head, at, n);
  return c->head.failed ? refuse_in_parser(c, 503, "out of memory") : 0;
}

static int on_url(llhttp_t *p, const char *at, size_t n) {
  pst_net_connection *c = p->data;
  c->target_n += n;
  return append_head(c, at, n, 414);
}

static int on_header_field(llhttp_t *p, const char *at, size_t n) {
  pst_net_connection *c = p->data;
  if (c->head_complete) return 0; /* a trailer: nobody reads them */
  if (c->in_value || c->n_headers == 0) {
    if (c->n_headers >= (size_t)c->server->options.max_headers) return refuse_in_parser(c, 431, "too many headers");
    if (pst_array_reserve((void **)&c->places, &c->places_capacity, c->n_headers + 1, sizeof *c->places))
      return refuse_in_parser(c, 503, "out of memory");
    c->places[c->n_headers++] = (pst_net_header_place){.name = c->head.n};
    c->in_value = false;
  }
  c->places[c->n_headers - 1].name_n += n;
  return append_head(c, at, n, 431);
}

static int on_header_value(llhttp_t *p, const char *at, size_t n) {
  pst_net_connection *c = p->data;
  if (c->head_complete) return 0;
  pst_net_header_place *place = &c->places[c->n_headers - 1];
  if (!c->in_value) {
    place->value = c->head.n;
    c->in_value = true;
  }
  place->value_n += n;
  return append_head(c, at, n, 431);
}

/* An empty value has no span callback of its own. */
static int on_header_value_complete(llhttp_t *p) {
  pst_net_connection *c = p->data;
  if (!c->head_complete) c->in_value = true;
  return 0;
}

static int index_headers(pst_net_connection *c) {
  if (pst_array_reserve((void **)&c->headers, &c->headers_capacity, c->n_headers + 1, sizeof *c->headers))
    return PST_E_NOMEM;
  for (size_t i = 0; i < c->n_headers; i++) {
    const pst_net_header_place *place = &c->places[i];
    c->headers[i].name = (pst_str){c->head.data + place->name, place->name_n};
    c->headers[i].value =
        place->value_n ? pst_str_trim((pst_str){c->head.data + place->value, place->value_n}) : (pst_str){"", 0};
  }
  return 0;
}

static size_t count_headers(const pst_net_connection *c, const char *name) {
  size_t count = 0;
  for (size_t i = 0; i < c->n_headers; i++) {
    if (pst_net_header_find(&c->headers[i], 1, name).data) count++;
  }
  return count;
}

/* What RFC 9112 asks of a request's head beyond its grammar, and our limits. */
static int on_headers_complete(llhttp_t *p) {
  pst_net_connection *c = p->data;
  const pst_net_server_options *options = &c->server->options;
  c->head_complete = true;
  p->upgrade = 0; /* no upgrade is offered here: RFC 9110 7.8 lets a server ignore the wish */
  if (index_headers(c)) return refuse_in_parser(c, 503, "out of memory");
  if (p->http_major != 1) return refuse_in_parser(c, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
  if (p->method == HTTP_CONNECT) return refuse_in_parser(c, 501, "CONNECT is not offered");
  if (p->http_minor >= 1 && count_headers(c, "host") != 1)
    return refuse_in_parser(c, 400, "a request needs exactly one Host header");
  if (p->flags & F_TRANSFER_ENCODING) {
    pst_str coding = pst_net_header_find(c->headers, c->n_headers, "transfer-encoding");
    if (p->http_minor < 1 || count_headers(c, "transfer-encoding") != 1)
      return refuse_in_parser(c, 400, "bad Transfer-Encoding");
    if (coding.n != 7 || !pst_net_header_has_token(coding, "chunked"))
      return refuse_in_parser(c, 501, "the only transfer coding known here is chunked");
  } else if ((p->flags & F_CONTENT_LENGTH) && p->content_length > options->max_body_bytes) {
    return refuse_in_parser(c, 413, "the request body is too long");
  }
  pst_str expect = pst_net_header_find(c->headers, c->n_headers, "expect");
  if (expect.data && p->http_minor >= 1) {
    if (expect.n != 12 || !pst_net_header_has_token(expect, "100-continue"))
      return refuse_in_parser(c, 417, "unknown expectation");
    if ((p->flags & F_TRANSFER_ENCODING) || p->content_length > 0)
      pst_buf_puts(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
  }
  return 0;
}

static int on_body(llhttp_t *p, const char *at, size_t n) {
  pst_net_connection *c = p->data;
  pst_net_server *server = c->server;
  if (c->body.n + n > server->options.max_body_bytes) return refuse_in_parser(c, 413, "the request body is too long");
  if (server->total_body_bytes + n > server->options.max_total_body_bytes)
    return refuse_in_parser(c, 503, "too many request bytes are being received; try again");
  pst_buf_append(&c->body, at, n);
  if (c->body.failed) return refuse_in_parser(c, 503, "out of memory");
  c->body_counted += n;
  server->total_body_bytes += n;
  return 0;
}

static int on_message_complete(llhttp_t *p) {
  pst_net_connection *c = p->data;
  c->message_complete = true;
  if (!llhttp_should_keep_alive(p)) c->close_after = true;
  return HPE_PAUSED;
}

void pst_net_connection_parser_settings(llhttp_settings_t *settings) {
  llhttp_settings_init(settings);
  settings->on_url = on_url;
  settings->on_header_field = on_header_field;
  settings->on_header_value = on_header_value;
  settings->on_header_value_complete = on_header_value_complete;
  settings->on_headers_complete = on_headers_complete;
  settings->on_body = on_body;
  settings->on_message_complete = on_message_complete;
}

/* ---- states --------------------------------------------------------------------------------------------------------- */

static void set_state(pst_net_connection *c, pst_net_connection_state state) {
  if (c->state == state) return;
  if (c->state == PST_NET_IDLE) pst_net_server_idle(c->server, c, false);
  c->state = state;
  if (state == PST_NET_IDLE) pst_net_server_idle(c->server, c, true);
}

static void deadline_in(pst_net_connection *c, int64_t ms) { c->read_deadline_us = pst_clock_us() + ms * 1000; }

static void drop_body(pst_net_connection *c) {
  c->server->total_body_bytes -= c->body_counted;
  c->body_counted = 0;
  if (c->body.capacity > KEEP_BUFFER_BYTES) pst_buf_done(&c->body);
  pst_buf_clear(&c->body);
}

static void await_request(pst_net_connection *c) {
  llhttp_init(&c->parser, HTTP_REQUEST, &c->server->parser_settings);
  c->parser.data = c;
  if (c->head.capacity > KEEP_BUFFER_BYTES) pst_buf_done(&c->head);
  pst_buf_clear(&c->head);
  drop_body(c);
  c->target_n = c->n_headers = c->raw_head_bytes = 0;
  c->in_value = c->head_complete = c->message_complete = false;
  c->refuse_status = 0;
  c->refuse_why = NULL;
  set_state(c, PST_NET_IDLE);
  deadline_in(c, c->server->options.idle_timeout_ms);
}

static void begin_closing(pst_net_connection *c) {
  set_state(c, PST_NET_CLOSING);
  c->read_deadline_us = 0;
}

static void refuse(pst_net_connection *c, int status, const char *why) {
  const char *type = "text/plain; charset=utf-8";
  pst_buf body = PST_BUF_INIT;
  c->close_after = true;
  pst_net_connection_error_body(c->server, status, why, &body, &type);
  pst_net_header headers[2] = {{PST_STR("content-type"), pst_str_from(type)}, {PST_STR("retry-after"), PST_STR("1")}};
  pst_net_write_head(c, status, headers, status == 503 ? 2 : 1, (int64_t)body.n, false, false);
  pst_buf_append(&c->out, body.data, body.n);
  pst_buf_done(&body);
  drop_body(c);
  begin_closing(c);
}

static void refuse_malformed(pst_net_connection *c, llhttp_errno_t err) {
  c->server->stats.n_bad++;
  if (c->refuse_status) {
    refuse(c, c->refuse_status, c->refuse_why);
    return;
  }
  const char *reason = llhttp_get_error_reason(&c->parser);
  int status = err == HPE_INVALID_VERSION && c->parser.http_major > 1 ? 505 : 400;
  refuse(c, status, reason && *reason ? reason : "malformed request");
}

/* ---- requests ------------------------------------------------------------------------------------------------------- */

/* origin-form, absolute-form or "*" (RFC 9112 3.2) into path and query. */
static bool split_target(pst_str target, pst_str *ret_path, pst_str *ret_query) {
  if (target.n == 0) return false;
  if (target.data[0] != '/' && !pst_str_is(target, "*")) {
    size_t scheme = pst_str_find(target, PST_STR("://"), 0);
    if (scheme == SIZE_MAX) return false;
    size_t start = scheme + 3;
    while (start < target.n && target.data[start] != '/' && target.data[start] != '?') start++;
    target = (pst_str){target.data + start, target.n - start};
  }
  size_t end = pst_str_find(target, PST_STR("#"), 0);
  if (end != SIZE_MAX) target.n = end;
  size_t mark = pst_str_find(target, PST_STR("?"), 0);
  *ret_path = mark == SIZE_MAX ? target : (pst_str){target.data, mark};
  *ret_query = mark == SIZE_MAX ? (pst_str){"", 0} : (pst_str){target.data + mark + 1, target.n - mark - 1};
  if (ret_path->n == 0) *ret_path = PST_STR("/");
  return true;
}

static void dispatch(pst_net_connection *c) {
  pst_net_server *server = c->server;
  pst_str path, query;
  if (!split_target((pst_str){c->head.data, c->target_n}, &path, &query)) {
    server->stats.n_bad++;
    refuse(c, 400, "the request target must be a path");
    return;
  }
  pst_net_exchange *x = pst_calloc(1, sizeof *x);
  if (!x) {
    refuse(c, 503, "out of memory");
    return;
  }
  x->connection = c;
  x->request = (pst_net_request){
      .method = pst_str_from(llhttp_method_name((llhttp_method_t)c->parser.method)),
      .path = path,
      .query = query,
      .headers = c->headers,
      .n_headers = c->n_headers,
      .body = pst_buf_str(&c->body),
      .peer = c->peer,
      .loopback = c->loopback,
      .received_us = c->received_us,
  };
  x->head_only = c->parser.method == HTTP_HEAD;
  c->exchange = x;
  c->read_deadline_us = 0;
  set_state(c, PST_NET_HANDLING);
  server->stats.n_requests++;
  server->stats.n_exchanges++;
  server->options.handler(server->options.user, x);
}

/* Parses at most n bytes; returns how many were used up. May change the state to HANDLING or CLOSING. */
static size_t feed(pst_net_connection *c, const char *data, size_t n) {
  if (n == 0) return 0;
  if (c->state == PST_NET_IDLE) {
    set_state(c, PST_NET_HEAD);
    c->received_us = pst_clock_us();
    deadline_in(c, c->server->options.header_timeout_ms);
  }
  llhttp_errno_t err = llhttp_execute(&c->parser, data, n);
  if (!c->head_complete) c->raw_head_bytes += n;
  if (err == HPE_PAUSED && c->message_complete) {
    size_t used = (size_t)(llhttp_get_error_pos(&c->parser) - data);
    dispatch(c);
    return used;
  }
  if (err != HPE_OK) {
    refuse_malformed(c, err);
    return n;
  }
  if (c->raw_head_bytes > c->server->options.max_header_bytes + PST_NET_SCRATCH_BYTES) {
    c->server->stats.n_bad++; /* blanks that are stored nowhere */
    refuse(c, 431, "the request line or headers are too long");
  } else if (c->head_complete && c->state == PST_NET_HEAD) {
    set_state(c, PST_NET_BODY);
    deadline_in(c, c->server->options.body_timeout_ms);
  }
  return n;
}

/* One read or one look at what is pending. 1 something was done, 0 nothing there, -1 the client has closed or the socket is broken. */
static int read_more(pst_net_connection *c) {
  if (c->pending_at < c->pending.n) {
    c->pending_at += feed(c, c->pending.data + c->pending_at, c->pending.n - c->pending_at);
    if (c->pending_at == c->pending.n) {
      pst_buf_clear(&c->pending);
      c->pending_at = 0;
    }
    return 1;
  }
  if (!c->readable) return 0;
  char *scratch = c->server->scratch;
  ssize_t n;
  do n = recv(c->fd, scratch, PST_NET_SCRATCH_BYTES, 0);
  while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    c->readable = false;
    return 0;
  }
  if (n <= 0) {
    c->peer_closed = true;
    return -1;
  }
  size_t used = feed(c, scratch, (size_t)n);
  if (used < (size_t)n && c->state == PST_NET_HANDLING) {
    pst_buf_append(&c->pending, scratch + used, (size_t)n - used);
    if (c->pending.failed) c->close_after = true; /* what was pipelined is lost, so no further request can be read */
  }
  return 1;
}

/* ---- writing --------------------------------------------------------------------------------------------------------- */

static bool flush(pst_net_connection *c) {
  while (c->out_at < c->out.n) {
    ssize_t n = send(c->fd, c->out.data + c->out_at, c->out.n - c->out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
      if (!c->write_deadline_us) c->write_deadline_us = pst_clock_us() + c->server->options.write_timeout_ms * 1000;
      return true;
    }
    c->out_at += (size_t)n;
    c->write_deadline_us = 0;
  }
  c->out_at = 0;
  if (c->out.capacity > 4 * KEEP_BUFFER_BYTES) pst_buf_done(&c->out);
  pst_buf_clear(&c->out);
  return true;
}

/* ---- the pump --------------------------------------------------------------------------------------------------------- */

static void finish_exchange(pst_net_connection *c) {
  pst_net_exchange *x = c->exchange;
  c->exchange = NULL;
  c->server->stats.n_exchanges--;
  pst_free(x);
  if (c->close_after || c->server->draining) {
    begin_closing(c);
  } else {
    await_request(c);
  }
}

/* Reads and drops. Returns true when the socket may be closed. */
static bool linger(pst_net_connection *c) {
  while (c->readable) {
    ssize_t n = recv(c->fd, c->server->scratch, PST_NET_SCRATCH_BYTES, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      c->readable = false;
      return false;
    }
    if (n <= 0) return true;
    c->linger_bytes += (size_t)n;
    if (c->linger_bytes > LINGER_BYTES) return true;
  }
  return false;
}

static void arm(pst_net_connection *c) {
  int64_t at = c->read_deadline_us;
  if (c->write_deadline_us && (!at || c->write_deadline_us < at)) at = c->write_deadline_us;
  if (!at || (c->armed_us && c->armed_us <= at)) return; /* an early timer finds nothing due and arms anew */
  c->armed_us = at;
  pst_net_event_arm_us(c->timer, at - pst_clock_us());
}

typedef enum verdict { GO_ON, WAIT, CLOSE } verdict;

static verdict step_handling(pst_net_connection *c) {
  pst_net_exchange *x = c->exchange;
  if (x->ended) {
    finish_exchange(c);
    return GO_ON;
  }
  if (c->peer_closed) return CLOSE;
  if (x->was_full && pst_net_respond_pending(x) <= c->server->options.write_low_bytes) {
    x->was_full = false;
    if (x->on_drain) {
      x->on_drain(x->drain_arg);
      return GO_ON;
    }
  }
  return WAIT;
}

static verdict step(pst_net_connection *c) {
  if (c->reset || c->out.failed || !flush(c)) return CLOSE;
  size_t waiting = c->out.n - c->out_at;
  switch (c->state) {
  case PST_NET_HANDLING: return step_handling(c);
  case PST_NET_IDLE:
  case PST_NET_HEAD:
  case PST_NET_BODY: {
    if (waiting > c->server->options.write_high_bytes) return WAIT; /* pipelining without reading the answers */
    int rc = read_more(c);
    if (rc == 0 && c->state == PST_NET_IDLE && c->server->draining) {
      begin_closing(c);
      return GO_ON;
    }
    if (rc >= 0) return rc ? GO_ON : WAIT;
    if (waiting == 0) return CLOSE;
    begin_closing(c); /* half-closed after its last request: the answers still go out */
    return GO_ON;
  }
  case PST_NET_CLOSING:
    if (waiting) return WAIT;
    if (shutdown(c->fd, SHUT_WR)) return CLOSE;
    set_state(c, PST_NET_LINGER);
    deadline_in(c, LINGER_MS);
    return GO_ON;
  case PST_NET_LINGER: return linger(c) ? CLOSE : WAIT;
  case PST_NET_DEAD: break;
  }
  return WAIT;
}

static void pump(void *arg) {
  pst_net_connection *c = arg;
  for (int rounds = 0;; rounds++) {
    if (rounds == PUMP_ROUNDS) { /* others want to live too */
      pst_net_connection_pump_soon(c);
      break;
    }
    verdict v = step(c);
    if (v == CLOSE) {
      pst_net_connection_cut(c);
      return;
    }
    if (v == WAIT) break;
  }
  arm(c);
}

void pst_net_connection_pump_soon(pst_net_connection *c) {
  if (c->state != PST_NET_DEAD) pst_net_loop_later(c->server->loop, &c->pump);
}

static void on_io(evutil_socket_t fd, short what, void *arg) {
  pst_net_connection *c = arg;
  if (what & (EV_READ | EV_CLOSED)) c->readable = true;
  if (what & EV_CLOSED) c->peer_closed = true;
  if (c->state == PST_NET_HANDLING) {
    /* libevent reports a reset as readable and writable only. */
    struct pollfd p = {.fd = (int)fd, .events = POLLRDHUP};
    if (poll(&p, 1, 0) > 0) c->peer_closed = true;
  }
  pst_net_connection_pump_soon(c);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg) {
  (void)fd;
  (void)what;
  pst_net_connection *c = arg;
  int64_t now = pst_clock_us();
  c->armed_us = 0;
  if (c->write_deadline_us && now >= c->write_deadline_us) {
    c->server->stats.n_timeouts++;
    pst_net_connection_cut(c);
    return;
  }
  if (c->read_deadline_us && now >= c->read_deadline_us) {
    if (c->state == PST_NET_HEAD || c->state == PST_NET_BODY) {
      c->server->stats.n_timeouts++;
      refuse(c, 408, "the request did not come in time");
      pst_net_connection_pump_soon(c);
    } else if (c->state == PST_NET_IDLE) {
      begin_closing(c);
      pst_net_connection_pump_soon(c);
    } else {
      pst_net_connection_cut(c);
      return;
    }
  }
  arm(c);
}

/* ---- open, cut, free --------------------------------------------------------------------------------------------------- */

int pst_net_connection_open(pst_net_server *server, int fd, const char *peer, bool loopback) {
  pst_net_connection *c = pst_calloc(1, sizeof *c);
  if (!c) return PST_E_NOMEM;
  c->server = server;
  c->fd = -1;
  c->state = PST_NET_DEAD;
  c->loopback = loopback;
  c->pump.fn = pump;
  c->pump.arg = c;
  snprintf(c->peer, sizeof c->peer, "%s", peer);
  struct event_base *base = pst_net_loop_base(server->loop);
  c->timer = evtimer_new(base, on_deadline, c);
  c->io = event_new(base, fd, EV_READ | EV_WRITE | EV_CLOSED | EV_ET | EV_PERSIST, on_io, c);
  if (!c->timer || !c->io || event_add(c->io, NULL)) {
    if (c->io) event_free(c->io);
    if (c->timer) event_free(c->timer);
    pst_free(c);
    return PST_E_NOMEM;
  }
  c->fd = fd;
  c->next = server->connections;
  if (c->next) c->next->prev = c;
  server->connections = c;
  server->stats.n_connections++;
  await_request(c);
  deadline_in(c, server->options.header_timeout_ms); /* a new connection should say something soon */
  arm(c);
  return 0;
}

void pst_net_connection_cut(pst_net_connection *c) {
  set_state(c, PST_NET_DEAD);
  pst_net_loop_forget(&c->pump);
  if (c->exchange) {
    pst_net_exchange *x = c->exchange;
    c->exchange = NULL;
    c->server->stats.n_exchanges--;
    pst_net_exchange_gone(x);
  }
  pst_net_server *server = c->server;
  drop_body(c);
  event_free(c->io);
  event_free(c->timer);
  close(c->fd);
  pst_net_server_forget(server, c);
  pst_buf_done(&c->pending);
  pst_buf_done(&c->head);
  pst_buf_done(&c->body);
  pst_buf_done(&c->out);
  pst_free(c->places);
  pst_free(c->headers);
  pst_free(c);
}
