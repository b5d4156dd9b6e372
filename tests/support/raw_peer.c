#include "support/raw_peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

enum { WAIT_MS = 10000 };

static int connect_with(int port, int receive_bytes) {
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  assert_true(fd >= 0);
  if (receive_bytes) assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes), 0);
  assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
  return fd;
}

int raw_connect(int port) { return connect_with(port, 0); }
int raw_connect_small(int port, int receive_bytes) { return connect_with(port, receive_bytes); }

bool raw_try_send(int fd, const void *data, size_t n) {
  const char *at = data;
  while (n) {
    ssize_t sent = send(fd, at, n, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    n -= (size_t)sent;
  }
  return true;
}

void raw_send_n(int fd, const void *data, size_t n) { assert_true(raw_try_send(fd, data, n)); }
void raw_send(int fd, const char *text) { raw_send_n(fd, text, strlen(text)); }

/* 1 bytes came, 0 closed or reset, -1 nothing in time. */
static int read_some(int fd, pst_buf *in, int timeout_ms) {
  char data[16384];
  struct pollfd p = {.fd = fd, .events = POLLIN};
  int ready;
  do ready = poll(&p, 1, timeout_ms);
  while (ready < 0 && errno == EINTR);
  if (ready <= 0) return -1;
  ssize_t n = recv(fd, data, sizeof data, 0);
  if (n <= 0) return 0;
  pst_buf_append(in, data, (size_t)n);
  return 1;
}

bool raw_read_until(int fd, pst_buf *in, const char *needle) {
  int64_t end = pst_clock_us() + WAIT_MS * 1000;
  while (pst_str_find(pst_buf_str(in), pst_str_from(needle), 0) == SIZE_MAX) {
    if (pst_clock_us() > end || read_some(fd, in, WAIT_MS) <= 0) return false;
  }
  return true;
}

bool raw_read_eof(int fd, pst_buf *in, int timeout_ms) {
  int rc;
  while ((rc = read_some(fd, in, timeout_ms)) > 0) {}
  return rc == 0;
}

void raw_reset(int fd) {
  struct linger hard = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(fd);
}

/* ---- answers ---------------------------------------------------------------------------------------------------------- */

static void consume(pst_buf *in, size_t n) {
  memmove(in->data, in->data + n, in->n - n);
  in->n -= n;
  in->data[in->n] = 0;
}

static const char *header_value(const raw_answer *a, const char *name) {
  size_t n = strlen(name);
  for (const char *line = strchr(a->head, '\n'); line; line = strchr(line, '\n')) {
    line++;
    if (strncasecmp(line, name, n) == 0 && line[n] == ':') return line + n + 1 + strspn(line + n + 1, " ");
  }
  return NULL;
}

bool raw_has_header(const raw_answer *answer, const char *line) {
  char needle[512];
  snprintf(needle, sizeof needle, "\r\n%s\r\n", line);
  return strstr(answer->head, needle) != NULL;
}

static bool read_n(int fd, pst_buf *in, size_t n) {
  while (in->n < n) {
    if (read_some(fd, in, WAIT_MS) <= 0) return false;
  }
  return true;
}

static bool read_chunks(int fd, pst_buf *in, pst_buf *body) {
  for (;;) {
    if (!raw_read_until(fd, in, "\r\n")) return false;
    size_t n = strtoul(in->data, NULL, 16);
    size_t head = (size_t)(strstr(in->data, "\r\n") - in->data) + 2;
    if (!read_n(fd, in, head + n + 2)) return false;
    pst_buf_append(body, in->data + head, n);
    consume(in, head + n + 2);
    if (n == 0) return true;
  }
}

raw_answer raw_read_answer(int fd, pst_buf *in, bool head_only) {
  raw_answer a = {.body = PST_BUF_INIT};
  if (!raw_read_until(fd, in, "\r\n\r\n")) return a;
  size_t head = pst_str_find(pst_buf_str(in), PST_STR("\r\n\r\n"), 0) + 4;
  assert_true(head < sizeof a.head);
  memcpy(a.head, in->data, head);
  consume(in, head);
  a.status = atoi(a.head + strlen("HTTP/1.1 "));
  if (head_only || a.status < 200) {
    a.whole = true;
    return a;
  }
  const char *length = header_value(&a, "content-length"), *coding = header_value(&a, "transfer-encoding");
  if (coding && strncmp(coding, "chunked", 7) == 0) {
    a.whole = read_chunks(fd, in, &a.body);
  } else if (length) {
    size_t n = strtoul(length, NULL, 10);
    a.whole = read_n(fd, in, n);
    pst_buf_append(&a.body, in->data, PST_MIN(n, in->n));
    if (in->n) consume(in, PST_MIN(n, in->n));
  } else {
    a.whole = a.status == 204 || a.status == 304 || raw_read_eof(fd, in, WAIT_MS);
    pst_buf_append(&a.body, in->data, in->n);
    pst_buf_clear(in);
  }
  return a;
}

/* ---- scripted server ----------------------------------------------------------------------------------------------------- */

struct raw_server {
  int fd;
  raw_script script;
  void *user;
  pthread_t thread;
};

static void *serve(void *arg) {
  raw_server *server = arg;
  for (;;) {
    int fd = accept(server->fd, NULL, NULL);
    if (fd < 0) return NULL;
    server->script(fd, server->user);
    close(fd);
  }
}

raw_server *raw_server_start(raw_script script, void *user, int *ret_port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t n = sizeof address;
  raw_server *server = calloc(1, sizeof *server);
  assert_non_null(server);
  server->script = script;
  server->user = user;
  server->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  assert_true(server->fd >= 0);
  assert_int_equal(bind(server->fd, (struct sockaddr *)&address, sizeof address), 0);
  assert_int_equal(listen(server->fd, 64), 0);
  assert_int_equal(getsockname(server->fd, (struct sockaddr *)&address, &n), 0);
  *ret_port = ntohs(address.sin_port);
  assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
  return server;
}

void raw_server_stop(raw_server *server) {
  shutdown(server->fd, SHUT_RDWR); /* wakes accept */
  pthread_join(server->thread, NULL);
  close(server->fd);
  free(server);
}

bool raw_read_request(int fd, pst_buf *in) {
  if (!raw_read_until(fd, in, "\r\n\r\n")) return false;
  size_t head = pst_str_find(pst_buf_str(in), PST_STR("\r\n\r\n"), 0) + 4;
  const char *length = strcasestr(in->data, "\r\ncontent-length:");
  size_t n = length && length < in->data + head ? strtoul(length + strlen("\r\ncontent-length:"), NULL, 10) : 0;
  return read_n(fd, in, head + n);
}
