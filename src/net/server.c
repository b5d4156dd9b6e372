/* The listening side of the HTTP server: the socket, the bound on connections, draining and the end. What happens on one connection is
 * connection.c's; what a request means is the handler's. */
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/server.h"

enum { BACKLOG = 1024, ACCEPTS_PER_ROUND = 64, ACCEPT_PAUSE_US = 100000 };

pst_net_server_options pst_net_server_options_default(void) {
  return (pst_net_server_options){
      .address = "127.0.0.1",
      .max_connections = 1024,
      .max_header_bytes = 64 << 10,
      .max_headers = 128,
      .max_body_bytes = 32 << 20,
      .max_total_body_bytes = 1 << 30,
      .write_high_bytes = 256 << 10,
      .write_low_bytes = 64 << 10,
      .write_max_bytes = 16 << 20,
      .idle_timeout_ms = 75000,
      .header_timeout_ms = 15000,
      .body_timeout_ms = 60000,
      .write_timeout_ms = 60000,
  };
}

/* ---- accepting ------------------------------------------------------------------------------------------------------- */

static bool describe_peer(const struct sockaddr_storage *address, socklen_t n, char *ret_text, size_t bytes) {
  if (getnameinfo((const struct sockaddr *)address, n, ret_text, (socklen_t)bytes, NULL, 0, NI_NUMERICHOST))
    snprintf(ret_text, bytes, "unknown");
  if (address->ss_family == AF_INET) {
    const struct sockaddr_in *in = (const struct sockaddr_in *)address;
    return ntohl(in->sin_addr.s_addr) >> 24 == 127;
  }
  if (address->ss_family == AF_INET6) {
    const struct in6_addr *a = &((const struct sockaddr_in6 *)address)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(a) || (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127);
  }
  return false;
}

static void set_socket_options(int fd) {
  int on = 1, idle_s = 30, interval_s = 10, probes = 3;
  /* A client that vanished without a word is found by keep-alive probes while its answer is being computed. Best effort. */
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

/* Over the limit: one answer that fits every socket buffer, best effort, no state kept. */
static void refuse_connection(pst_net_server *server, int fd) {
  const char *type = "text/plain; charset=utf-8";
  pst_buf body = PST_BUF_INIT, answer = PST_BUF_INIT;
  char drop[4096];
  server->stats.n_refused++;
  pst_net_connection_error_body(server, 503, "too many connections; try again", &body, &type);
  pst_buf_printf(
      &answer,
      "HTTP/1.1 503 Service Unavailable\r\ncontent-type: %s\r\nretry-after: 1\r\ncontent-length: %zu\r\nconnection: close\r\n\r\n",
      type, body.n);
  pst_buf_append(&answer, body.data, body.n);
  if (pst_buf_status(&answer) == 0) (void)!send(fd, answer.data, answer.n, MSG_NOSIGNAL | MSG_DONTWAIT);
  (void)shutdown(fd, SHUT_WR);
  (void)!recv(fd, drop, sizeof drop, MSG_DONTWAIT); /* unread bytes would turn the close into a reset */
  close(fd);
  pst_buf_done(&answer);
  pst_buf_done(&body);
}

static void admit(pst_net_server *server, int fd, const struct sockaddr_storage *address, socklen_t n) {
  char peer[64];
  bool loopback = describe_peer(address, n, peer, sizeof peer);
  server->stats.n_accepted++;
  if (server->stats.n_connections >= server->options.max_connections && server->idle_first)
    pst_net_connection_cut(server->idle_first);
  if (server->stats.n_connections >= server->options.max_connections) {
    refuse_connection(server, fd);
    return;
  }
  set_socket_options(fd);
  if (pst_net_connection_open(server, fd, peer, loopback)) refuse_connection(server, fd);
}

static void on_accept(evutil_socket_t listen_fd, short what, void *arg) {
  (void)what;
  pst_net_server *server = arg;
  for (int i = 0; i < ACCEPTS_PER_ROUND; i++) {
    struct sockaddr_storage address;
    socklen_t n = sizeof address;
    int fd = accept4((int)listen_fd, (struct sockaddr *)&address, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      admit(server, fd, &address, n);
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
      /* Out of descriptors or memory: without a pause the waiting connection would spin the loop. */
      pst_log(PST_LOG_WARN, "event=accept_failed error=\"%s\"", strerror(errno));
      event_del(server->listen_event);
      pst_net_event_arm_us(server->resume_timer, ACCEPT_PAUSE_US);
    }
    return;
  }
}

static void on_resume(evutil_socket_t fd, short what, void *arg) {
  (void)fd;
  (void)what;
  pst_net_server *server = arg;
  if (server->fd >= 0) event_add(server->listen_event, NULL);
}

/* ---- listening ------------------------------------------------------------------------------------------------------- */

static int bind_error(pst_error *err, int errnum, const char *address, int port) {
  char place[128];
  snprintf(place, sizeof place, "%.100s:%d", address, port);
  if (errnum == EADDRINUSE)
    return pst_error_set(err, PST_E_BUSY, place,
                         "port %d is in use; stop the program that has it or choose another port", port);
  if (errnum == EACCES)
    return pst_error_set(err, PST_E_DENIED, place, "no permission for port %d; choose one above 1023", port);
  if (errnum == EADDRNOTAVAIL)
    return pst_error_set(err, PST_E_BAD_INPUT, place, "%s is not an address of this machine", address);
  return pst_error_set_errno(err, errnum, place, "cannot listen");
}

static int listen_on(const char *address, int port, int *ret_fd, int *ret_port, pst_error *err) {
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                  *list = NULL;
  char service[16];
  snprintf(service, sizeof service, "%d", port);
  int rc = getaddrinfo(address, service, &hints, &list);
  if (rc) return pst_error_set(err, PST_E_BAD_INPUT, address, "not an address to listen on: %s", gai_strerror(rc));
  int errnum = EADDRNOTAVAIL, fd = -1, on = 1;
  for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
    fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
      errnum = errno;
      continue;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, BACKLOG)) {
      errnum = errno;
      close(fd);
      fd = -1;
    }
  }
  freeaddrinfo(list);
  if (fd < 0) return bind_error(err, errnum, address, port);
  struct sockaddr_storage bound;
  socklen_t n = sizeof bound;
  if (getsockname(fd, (struct sockaddr *)&bound, &n)) {
    errnum = errno;
    close(fd);
    return bind_error(err, errnum, address, port);
  }
  *ret_port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                : ((struct sockaddr_in *)&bound)->sin_port);
  *ret_fd = fd;
  return 0;
}

static void on_drain_deadline(evutil_socket_t fd, short what, void *arg);
static void report_drained(void *arg);

static int check_options(const pst_net_server_options *o, pst_error *err) {
  if (!o->address || !o->handler)
    return pst_error_set(err, PST_E_INTERNAL, NULL, "a server needs an address and a handler");
  if (o->port < 0 || o->port > 65535)
    return pst_error_set(err, PST_E_BAD_INPUT, "port", "%d is not a port: 0 to 65535", o->port);
  if (o->max_connections < 1 || o->max_headers < 1 || o->max_header_bytes < 256 ||
      o->write_low_bytes > o->write_high_bytes || o->write_high_bytes > o->write_max_bytes || o->idle_timeout_ms <= 0 ||
      o->header_timeout_ms <= 0 || o->body_timeout_ms <= 0 || o->write_timeout_ms <= 0)
    return pst_error_set(err, PST_E_BAD_INPUT, NULL, "a limit of the HTTP server is out of range");
  return 0;
}

int pst_net_server_create(pst_net_loop *loop, const pst_net_server_options *options, pst_net_server **ret_server,
                          pst_error *err) {
  int rc = check_options(options, err);
  if (rc) return rc;
  pst_net_server *server = pst_calloc(1, sizeof *server);
  if (!server) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the HTTP server");
  server->loop = loop;
  server->options = *options;
  server->fd = -1;
  server->drained.fn = report_drained;
  server->drained.arg = server;
  pst_net_connection_parser_settings(&server->parser_settings);
  server->address = pst_strdup(options->address);
  server->scratch = pst_malloc(PST_NET_SCRATCH_BYTES);
  if (!server->address || !server->scratch) {
    rc = pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the HTTP server");
    goto done;
  }
  server->options.address = server->address;
  rc = listen_on(server->address, options->port, &server->fd, &server->port, err);
  if (rc) goto done;
  struct event_base *base = pst_net_loop_base(loop);
  server->listen_event = event_new(base, server->fd, EV_READ | EV_PERSIST, on_accept, server);
  server->resume_timer = evtimer_new(base, on_resume, server);
  server->drain_timer = evtimer_new(base, on_drain_deadline, server);
  if (!server->listen_event || !server->resume_timer || !server->drain_timer || event_add(server->listen_event, NULL)) {
    rc = pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the HTTP server");
    goto done;
  }
  *ret_server = server;
  return 0;
done:
  pst_net_server_free(server);
  return rc;
}

int pst_net_server_port(const pst_net_server *server) { return server->port; }

void pst_net_server_get_stats(const pst_net_server *server, pst_net_server_stats *ret_stats) {
  *ret_stats = server->stats;
}

/* ---- connections come and go ------------------------------------------------------------------------------------------- */

void pst_net_server_idle(pst_net_server *server, pst_net_connection *c, bool idle) {
  if (idle) {
    c->idle_prev = server->idle_last;
    c->idle_next = NULL;
    if (server->idle_last)
      server->idle_last->idle_next = c;
    else
      server->idle_first = c;
    server->idle_last = c;
  } else {
    if (c->idle_prev)
      c->idle_prev->idle_next = c->idle_next;
    else
      server->idle_first = c->idle_next;
    if (c->idle_next)
      c->idle_next->idle_prev = c->idle_prev;
    else
      server->idle_last = c->idle_prev;
    c->idle_prev = c->idle_next = NULL;
  }
}

void pst_net_server_forget(pst_net_server *server, pst_net_connection *c) {
  if (c->prev)
    c->prev->next = c->next;
  else
    server->connections = c->next;
  if (c->next) c->next->prev = c->prev;
  server->stats.n_connections--;
  if (server->draining && !server->freeing && !server->connections) pst_net_loop_later(server->loop, &server->drained);
}

/* ---- the end ------------------------------------------------------------------------------------------------------------ */

static void stop_listening(pst_net_server *server) {
  if (server->listen_event) event_free(server->listen_event);
  server->listen_event = NULL;
  if (server->resume_timer) event_del(server->resume_timer);
  if (server->fd >= 0) close(server->fd);
  server->fd = -1;
}

static void report_drained(void *arg) {
  pst_net_server *server = arg;
  event_del(server->drain_timer);
  pst_net_fn done = server->drain_done;
  server->drain_done = NULL;
  if (done) done(server->drain_arg); /* may free the server */
}

static void on_drain_deadline(evutil_socket_t fd, short what, void *arg) {
  (void)fd;
  (void)what;
  pst_net_server *server = arg;
  while (server->connections) pst_net_connection_cut(server->connections);
}

void pst_net_server_drain(pst_net_server *server, int64_t deadline_ms, pst_net_fn done, void *arg) {
  if (server->draining) return;
  server->draining = true;
  server->drain_done = done;
  server->drain_arg = arg;
  stop_listening(server);
  for (pst_net_connection *c = server->connections; c; c = c->next) pst_net_connection_pump_soon(c);
  pst_net_event_arm_us(server->drain_timer, PST_MAX(deadline_ms, 0) * 1000);
  if (!server->connections) pst_net_loop_later(server->loop, &server->drained);
}

void pst_net_server_free(pst_net_server *server) {
  if (!server) return;
  server->freeing = true;
  stop_listening(server);
  while (server->connections) pst_net_connection_cut(server->connections);
  pst_net_loop_forget(&server->drained);
  if (server->resume_timer) event_free(server->resume_timer);
  if (server->drain_timer) event_free(server->drain_timer);
  pst_free(server->scratch);
  pst_free(server->address);
  pst_free(server);
}
