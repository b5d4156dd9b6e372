/* The HTTP server over real sockets on the loopback: what a raw client sends, and what must come back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include <penstock/net.h>

#include "support/raw_peer.h"

typedef struct fixture {
  pst_net_loop *loop;
  pst_net_server *server;
  pst_net_server_options options;
  int port;
  pst_net_exchange *waiting; /* of /wait and /stream; loop thread only */
  pst_net_timer *timer;
  size_t streamed;
  int write_rc;
  atomic_int n_gone, n_drained, n_full, n_drain_calls, n_waiting;
  pst_error create_error;
  int create_rc;
} fixture;

static fixture fx;

static void reply(pst_net_exchange *x, int status, const char *text) {
  pst_net_header type = {PST_STR("content-type"), PST_STR("text/plain")};
  pst_net_respond(x, status, &type, 1, pst_str_from(text));
}

static void on_gone(void *arg) {
  (void)arg;
  fx.waiting = NULL;
  atomic_fetch_add(&fx.n_gone, 1);
}

static void pour(void *arg) {
  (void)arg;
  static char block[8192];
  memset(block, 'x', sizeof block);
  if (!fx.waiting) return;
  while (fx.streamed < (size_t)8 << 20) {
    int rc = pst_net_respond_write(fx.waiting, (pst_str){block, sizeof block});
    if (rc < 0) return;
    fx.streamed += sizeof block;
    if (rc == 1) {
      atomic_fetch_add(&fx.n_full, 1);
      return;
    }
  }
  pst_net_exchange *x = fx.waiting;
  fx.waiting = NULL;
  pst_net_respond_end(x);
}

static void on_drain(void *arg) {
  atomic_fetch_add(&fx.n_drain_calls, 1);
  pour(arg);
}

static void answer_later(void *arg) {
  (void)arg;
  pst_net_exchange *x = fx.waiting;
  fx.waiting = NULL;
  if (x) reply(x, 200, "later");
}

static void flood(pst_net_exchange *x) {
  static char block[65536];
  fx.write_rc = 0;
  for (int i = 0; i < 1000 && fx.write_rc >= 0; i++)
    fx.write_rc = pst_net_respond_write(x, (pst_str){block, sizeof block});
}

static void respond_echo(pst_net_exchange *x, const pst_net_request *q) {
  pst_buf out = PST_BUF_INIT;
  pst_buf_printf(&out, "%.*s %.*s ? %.*s\n", (int)q->method.n, q->method.data, (int)q->path.n, q->path.data,
                 (int)q->query.n, q->query.data);
  for (size_t i = 0; i < q->n_headers; i++)
    pst_buf_printf(&out, "[%.*s]=[%.*s]\n", (int)q->headers[i].name.n, q->headers[i].name.data,
                   (int)q->headers[i].value.n, q->headers[i].value.data);
  pst_buf_append_str(&out, q->body);
  pst_net_respond(x, 200, NULL, 0, pst_buf_str(&out));
  pst_buf_done(&out);
}

static void handle(void *user, pst_net_exchange *x) {
  assert_ptr_equal(user, &fx);
  assert_true(pst_net_loop_is_current(fx.loop));
  const pst_net_request *q = pst_net_exchange_request(x);
  if (pst_str_is(q->path, "/echo")) {
    respond_echo(x, q);
  } else if (pst_str_is(q->path, "/wait") || pst_str_is(q->path, "/later")) {
    pst_net_exchange_on_gone(x, on_gone, NULL);
    fx.waiting = x;
    atomic_fetch_add(&fx.n_waiting, 1);
    if (pst_str_is(q->path, "/later")) pst_net_timer_set(fx.timer, 30);
  } else if (pst_str_is(q->path, "/stream")) {
    pst_net_respond_begin(x, 200, NULL, 0);
    pst_net_respond_write(x, PST_STR("one,"));
    pst_net_respond_write(x, PST_STR(""));
    pst_net_respond_write(x, PST_STR("two"));
    pst_net_respond_end(x);
  } else if (pst_str_is(q->path, "/open")) { /* a stream that says one word and stays open */
    pst_net_exchange_on_gone(x, on_gone, NULL);
    pst_net_respond_begin(x, 200, NULL, 0);
    pst_net_respond_write(x, PST_STR("hello"));
    fx.waiting = x;
    atomic_fetch_add(&fx.n_waiting, 1);
  } else if (pst_str_is(q->path, "/pour")) {
    pst_net_exchange_on_gone(x, on_gone, NULL);
    pst_net_respond_on_drain(x, on_drain, NULL);
    pst_net_respond_begin(x, 200, NULL, 0);
    fx.waiting = x;
    fx.streamed = 0;
    pour(NULL);
  } else if (pst_str_is(q->path, "/flood")) {
    pst_net_exchange_on_gone(x, on_gone, NULL);
    pst_net_respond_begin(x, 200, NULL, 0);
    flood(x);
  } else if (pst_str_is(q->path, "/abort")) {
    pst_net_exchange_on_gone(x, on_gone, NULL);
    pst_net_respond_begin(x, 200, NULL, 0);
    pst_net_respond_write(x, PST_STR("cut"));
    pst_net_respond_abort(x);
  } else if (pst_str_is(q->path, "/inject")) {
    pst_net_header evil = {PST_STR("x-a"), PST_STR("b\r\nset-cookie: c")};
    fx.write_rc = pst_net_respond(x, 200, &evil, 1, PST_STR("never"));
  } else if (pst_str_is(q->path, "/empty")) {
    pst_net_respond(x, 204, NULL, 0, PST_STR("not sent"));
  } else {
    reply(x, 404, "no such thing");
  }
}

static void create_on_loop(void *arg) {
  (void)arg;
  fx.create_rc = pst_net_server_create(fx.loop, &fx.options, &fx.server, &fx.create_error);
}

static void free_on_loop(void *arg) {
  (void)arg;
  pst_net_server_free(fx.server);
  fx.server = NULL;
}

static int set_up(void **state) {
  (void)state;
  memset(&fx, 0, sizeof fx);
  fx.options = pst_net_server_options_default();
  fx.options.handler = handle;
  fx.options.user = &fx;
  assert_int_equal(pst_net_loop_create(&fx.loop, NULL), 0);
  assert_int_equal(pst_net_timer_create(fx.loop, answer_later, NULL, &fx.timer), 0);
  return 0;
}

/* Options may be changed between set_up and this. */
static void go(void) {
  assert_int_equal(pst_net_loop_start(fx.loop, NULL), 0);
  assert_int_equal(pst_net_loop_call(fx.loop, create_on_loop, NULL), 0);
  assert_int_equal(fx.create_rc, 0);
  fx.port = pst_net_server_port(fx.server);
  assert_true(fx.port > 0);
}

static int tear_down(void **state) {
  (void)state;
  pst_net_loop_join(fx.loop);
  pst_net_server_free(fx.server);
  pst_net_timer_free(fx.timer);
  pst_net_loop_free(fx.loop);
  return 0;
}

static void wait_for(atomic_int *counter, int value) {
  for (int i = 0; i < 5000 && atomic_load(counter) < value; i++) usleep(2000);
  assert_true(atomic_load(counter) >= value);
}

static pst_net_server_stats stats_copy;
static void copy_stats(void *arg) {
  (void)arg;
  pst_net_server_get_stats(fx.server, &stats_copy);
}
static pst_net_server_stats stats(void) {
  assert_int_equal(pst_net_loop_call(fx.loop, copy_stats, NULL), 0);
  return stats_copy;
}

/* Sends `text` on a connection of its own; the answer must have `status`. */
static raw_answer one(const char *text, int status) {
  pst_buf in = PST_BUF_INIT;
  int fd = raw_connect(fx.port);
  raw_send(fd, text);
  raw_answer a = raw_read_answer(fd, &in, false);
  assert_int_equal(a.status, status);
  assert_true(a.whole);
  close(fd);
  pst_buf_done(&in);
  return a;
}

static void refused(const char *text, int status) {
  pst_buf in = PST_BUF_INIT;
  int fd = raw_connect(fx.port);
  raw_send(fd, text);
  raw_answer a = raw_read_answer(fd, &in, false);
  assert_int_equal(a.status, status);
  assert_true(raw_has_header(&a, "connection: close"));
  assert_true(raw_read_eof(fd, &in, 10000));
  assert_int_equal(in.n, 0);
  close(fd);
  pst_buf_done(&a.body);
  pst_buf_done(&in);
}

static void expect_body(raw_answer *a, const char *text) {
  assert_string_equal(pst_buf_text(&a->body), text);
  pst_buf_done(&a->body);
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"

/* ---- tests -------------------------------------------------------------------------------------------------------------- */

static void test_get(void **state) {
  (void)state;
  go();
  raw_answer a = one("GET /echo?a=b%20c HTTP/1.1\r\nHost: x\r\nX-One:   spaced  \r\nX-Empty:\r\n\r\n", 200);
  assert_non_null(strstr(a.head, "\r\ndate: "));
  expect_body(&a, "GET /echo ? a=b%20c\n[Host]=[x]\n[X-One]=[spaced]\n[X-Empty]=[]\n");
  a = one("GET http://host:1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 200);
  expect_body(&a, "GET /echo ? \n[Host]=[x]\n");
  a = one(GET("/nothing"), 404);
  expect_body(&a, "no such thing");
}

static void test_keep_alive_and_head(void **state) {
  (void)state;
  go();
  pst_buf in = PST_BUF_INIT;
  int fd = raw_connect(fx.port);
  for (int i = 0; i < 3; i++) {
    raw_send(fd, "HEAD /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
    raw_answer a = raw_read_answer(fd, &in, true);
    assert_int_equal(a.status, 404);
    assert_true(raw_has_header(&a, "content-length: 13"));
    raw_send(fd, GET("/nothing"));
    a = raw_read_answer(fd, &in, false);
    expect_body(&a, "no such thing");
    raw_send(fd, "HEAD /stream HTTP/1.1\r\nHost: a\r\n\r\n");
    a = raw_read_answer(fd, &in, true);
    assert_int_equal(a.status, 200);
    raw_send(fd, GET("/empty"));
    a = raw_read_answer(fd, &in, true);
    assert_int_equal(a.status, 204);
    assert_null(strstr(a.head, "content-length"));
  }
  assert_int_equal(in.n, 0);
  assert_int_equal(stats().n_accepted, 1);
  raw_send(fd, "GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  raw_answer a = raw_read_answer(fd, &in, false);
  assert_true(raw_has_header(&a, "connection: close"));
  pst_buf_done(&a.body);
  assert_true(raw_read_eof(fd, &in, 10000));
  close(fd);
  pst_buf_done(&in);
}

static void test_http10(void **state) {
  (void)state;
  go();
  pst_buf in = PST_BUF_INIT;
  int fd = raw_connect(fx.port);
  raw_send(fd, "GET /nothing HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  raw_answer a = raw_read_answer(fd, &in, false);
  assert_true(raw_has_header(&a, "connection: keep-alive"));
  pst_buf_done(&a.body);
  raw_send(fd, "GET /stream HTTP/1.0\r\n\r\n");
  a = raw_read_answer(fd, &in, false);
  assert_true(raw_has_header(&a, "connection: close"));
  assert_null(strstr(a.head, "chunked"));
  assert_true(a.whole);
  expect_body(&a, "one,two");
  close(fd);
  pst_buf_done(&in);
}

static void test_bodies(void **state) {
  (void)state;
  go();
  raw_answer a = one("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 200);
  expect_body(&a, "POST /echo ? \n[Host]=[x]\n[Content-Length]=[5]\nhello");
  a = one(
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n1\r\nd\r\n0\r\nX-Trailer: t\r\n\r\n",
      200);
  expect_body(&a, "POST /echo ? \n[Host]=[x]\n[Transfer-Encoding]=[chunked]\nabcd");
  pst_buf in = PST_BUF_INIT;
  int fd = raw_connect(fx.port);
  raw_send(fd, "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  a = raw_read_answer(fd, &in, false);
  assert_int_equal(a.status, 100);
  raw_send(fd, "ok");
  a = raw_read_answer(fd, &in, false);
  expect_body(&a, "POST /echo ? \n[Host]=[x]\n[Expect]=[100-continue]\n[Content-Length]=[2]\nok");
  close(fd);
  pst_buf_done(&in);
}

/* Three kinds of message end, cut at every place, then all at once. */
static void test_pipelining(void **state) {
  (void)state;
  go();
  static const char all[] =
      GET("/later") "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
                    "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
                    "HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n" GET("/stream");
  for (size_t cut = 0; cut < sizeof all - 1; cut += cut < 60 ? 7 : 13) {
    pst_buf in = PST_BUF_INIT;
    int fd = raw_connect(fx.port);
    if (cut) {
      raw_send_n(fd, all, cut);
      usleep(500);
    }
    raw_send(fd, all + cut);
    raw_answer a = raw_read_answer(fd, &in, false);
    expect_body(&a, "later");
    a = raw_read_answer(fd, &in, false);
    expect_body(&a, "POST /echo ? \n[Host]=[x]\n[Content-Length]=[3]\nabc");
    a = raw_read_answer(fd, &in, false);
    expect_body(&a, "POST /echo ? \n[Host]=[x]\n[Transfer-Encoding]=[chunked]\nde");
    a = raw_read_answer(fd, &in, true);
    assert_int_equal(a.status, 404);
    a = raw_read_answer(fd, &in, false);
    assert_true(a.whole);
    expect_body(&a, "one,two");
    assert_int_equal(in.n, 0);
    close(fd);
    pst_buf_done(&in);
  }
}

static void test_many_pipelined(void **state) {
  (void)state;
  go();
  pst_buf in = PST_BUF_INIT, out = PST_BUF_INIT;
  int fd = raw_connect(fx.port);
  for (int i = 0; i < 2000; i++) pst_buf_printf(&out, "GET /echo?%d HTTP/1.1\r\nHost: x\r\n\r\n", i);
  raw_send_n(fd, out.data, out.n);
  for (int i = 0; i < 2000; i++) {
    char want[64];
    snprintf(want, sizeof want, "GET /echo ? %d\n[Host]=[x]\n", i);
    raw_answer a = raw_read_answer(fd, &in, false);
    expect_body(&a, want);
  }
  close(fd);
  pst_buf_done(&in);
  pst_buf_done(&out);
}

static void test_half_closed_after_pipeline(void **state) {
  (void)state;
  go();
  pst_buf in = PST_BUF_INIT;
  int fd = raw_connect(fx.port);
  raw_send(fd, GET("/nothing") GET("/stream"));
  shutdown(fd, SHUT_WR);
  raw_answer a = raw_read_answer(fd, &in, false);
  expect_body(&a, "no such thing");
  a = raw_read_answer(fd, &in, false);
  expect_body(&a, "one,two");
  assert_true(raw_read_eof(fd, &in, 10000));
  close(fd);
  pst_buf_done(&in);
}

static void test_malformed(void **state) {
  (void)state;
  go();
  static const char *const bad[] = {
      "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
      "nonsense\r\n\r\n",
      "GET\r\n\r\n",
      "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
      "GET / HTTP/1.1\r\n\r\n", /* no Host */
      "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
      "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      "GET / HTTP/1.1\nHost: a\n\n",
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++) refused(bad[i], 400);
  refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501);
  refused("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501);
  refused("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505);
  refused("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: magic\r\n\r\n", 417);
  assert_true(stats().n_bad >= (int64_t)PST_ARRAY_LEN(bad) + 4);
  /* The wish for an upgrade is not granted, and is no mistake. */
  raw_answer a =
      one("GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", 404);
  pst_buf_done(&a.body);
}

static void test_random_bytes(void **state) {
  (void)state;
  go();
  pst_random random = {.seed = 7};
  static const char alphabet[] = "GET POST/ HTTP/1.1\r\n\r\n:;0123 chunkedContent-LengthTransfer-Encoding\x80\xff";
  for (int i = 0; i < 300; i++) {
    char data[512];
    size_t n = 1 + (size_t)pst_random_below(&random, sizeof data - 1);
    for (size_t k = 0; k < n; k++)
      data[k] = i % 2 ? (char)pst_random_next(&random) : alphabet[pst_random_below(&random, sizeof alphabet - 1)];
    int fd = raw_connect(fx.port);
    raw_try_send(fd, data, n);
    shutdown(fd, SHUT_WR);
    pst_buf in = PST_BUF_INIT;
    assert_true(raw_read_eof(fd, &in, 10000));
    pst_buf_done(&in);
    close(fd);
  }
  raw_answer a = one(GET("/nothing"), 404);
  pst_buf_done(&a.body);
}

static void test_limits(void **state) {
  (void)state;
  fx.options.max_header_bytes = 4096;
  fx.options.max_headers = 10;
  fx.options.max_body_bytes = 1000;
  go();
  pst_buf out = PST_BUF_INIT;
  pst_buf_puts(&out, "GET /");
  for (int i = 0; i < 5000; i++) pst_buf_putc(&out, 'a');
  pst_buf_puts(&out, " HTTP/1.1\r\nHost: a\r\n\r\n");
  refused(out.data, 414);
  pst_buf_clear(&out);
  pst_buf_puts(&out, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
  for (int i = 0; i < 5000; i++) pst_buf_putc(&out, 'a');
  pst_buf_puts(&out, "\r\n\r\n");
  refused(out.data, 431);
  pst_buf_clear(&out);
  pst_buf_puts(&out, "GET / HTTP/1.1\r\nHost: a\r\n");
  for (int i = 0; i < 10; i++) pst_buf_printf(&out, "X%d: 1\r\n", i);
  pst_buf_puts(&out, "\r\n");
  refused(out.data, 431);
  pst_buf_clear(&out);
  pst_buf_puts(&out, "GET / HTTP/1.1\r\nHost: a\r\nX:"); /* blanks are stored nowhere, and counted all the same */
  for (int i = 0; i < 200000; i++) pst_buf_putc(&out, ' ');
  int fd = raw_connect(fx.port);
  raw_try_send(fd, out.data, out.n);
  pst_buf in = PST_BUF_INIT;
  raw_answer a = raw_read_answer(fd, &in, false);
  assert_int_equal(a.status, 431);
  pst_buf_done(&a.body);
  pst_buf_done(&in);
  close(fd);
  refused("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413);
  refused("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n", 413);
  pst_buf_clear(&out);
  pst_buf_puts(&out, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 11; i++) {
    pst_buf_puts(&out, "64\r\n");
    for (int k = 0; k < 100; k++) pst_buf_putc(&out, 'b');
    pst_buf_puts(&out, "\r\n");
  }
  refused(out.data, 413);
  pst_buf_done(&out);
}

static void test_total_body_limit(void **state) {
  (void)state;
  fx.options.max_total_body_bytes = 1500;
  go();
  char kilo[1001];
  memset(kilo, 'k', 1000);
  kilo[1000] = 0;
  int first = raw_connect(fx.port);
  raw_send(first, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n");
  raw_send(first, kilo);
  while (stats().n_connections < 1) usleep(1000);
  usleep(20000);
  int second = raw_connect(fx.port);
  raw_send(second, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n");
  raw_send(second, kilo);
  pst_buf in = PST_BUF_INIT;
  raw_answer a = raw_read_answer(second, &in, false);
  assert_int_equal(a.status, 503);
  assert_true(raw_has_header(&a, "retry-after: 1"));
  pst_buf_done(&a.body);
  pst_buf_clear(&in);
  raw_send(first, "!"); /* the first is not harmed */
  a = raw_read_answer(first, &in, false);
  assert_int_equal(a.status, 200);
  pst_buf_done(&a.body);
  close(first);
  close(second);
  pst_buf_done(&in);
  a = one("POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
          404); /* and its bytes are given back */
  pst_buf_done(&a.body);
}

static void test_slow_headers(void **state) {
  (void)state;
  fx.options.header_timeout_ms = 150;
  go();
  int fd = raw_connect(fx.port);
  pst_buf in = PST_BUF_INIT;
  raw_send(fd, "GET / HTTP/1.1\r\n");
  for (int i = 0; i < 40 && raw_try_send(fd, "X", 1); i++) usleep(10000); /* a byte now and then does not help */
  raw_answer a = raw_read_answer(fd, &in, false);
  assert_int_equal(a.status, 408);
  pst_buf_done(&a.body);
  assert_true(raw_read_eof(fd, &in, 10000));
  close(fd);
  fd = raw_connect(fx.port); /* one that says nothing is just closed */
  assert_true(raw_read_eof(fd, &in, 10000));
  assert_int_equal(in.n, 0);
  close(fd);
  pst_buf_done(&in);
  assert_int_equal(stats().n_timeouts, 1);
}

static void test_slow_body_and_idle(void **state) {
  (void)state;
  fx.options.body_timeout_ms = 100;
  fx.options.idle_timeout_ms = 100;
  go();
  int fd = raw_connect(fx.port);
  pst_buf in = PST_BUF_INIT;
  raw_send(fd, GET("/nothing") "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc");
  raw_answer a = raw_read_answer(fd, &in, false);
  expect_body(&a, "no such thing");
  a = raw_read_answer(fd, &in, false);
  assert_int_equal(a.status, 408);
  pst_buf_done(&a.body);
  close(fd);
  fd = raw_connect(fx.port);
  raw_send(fd, GET("/nothing"));
  a = raw_read_answer(fd, &in, false);
  expect_body(&a, "no such thing");
  assert_true(raw_read_eof(fd, &in, 10000));
  assert_int_equal(in.n, 0);
  close(fd);
  pst_buf_done(&in);
}

static void test_gone(void **state) {
  (void)state;
  go();
  static const char *const paths[] = {GET("/wait"), GET("/open"), GET("/wait") GET("/wait")};
  int gone = 0;
  for (size_t p = 0; p < PST_ARRAY_LEN(paths); p++) {
    for (int how = 0; how < 3; how++) {
      int fd = raw_connect(fx.port);
      raw_send(fd, paths[p]);
      wait_for(&fx.n_waiting, ++gone);
      if (how == 0) close(fd);
      if (how == 1) shutdown(fd, SHUT_WR);
      if (how == 2) raw_reset(fd);
      wait_for(&fx.n_gone, gone);
      if (how == 1) {
        pst_buf in = PST_BUF_INIT;
        assert_true(raw_read_eof(fd, &in, 10000));
        pst_buf_done(&in);
        close(fd);
      }
    }
  }
  usleep(20000);
  assert_int_equal(atomic_load(&fx.n_gone), gone); /* once each */
  assert_int_equal(stats().n_gone, gone);
  assert_int_equal(stats().n_connections, 0);
  assert_int_equal(stats().n_exchanges, 0);
}

static void test_back_pressure(void **state) {
  (void)state;
  go();
  pst_buf in = PST_BUF_INIT;
  int fd = raw_connect_small(fx.port, 4096);
  raw_send(fd, GET("/pour"));
  wait_for(&fx.n_full, 1);
  usleep(50000);
  int full = atomic_load(&fx.n_full);
  assert_true(full < 100); /* the writer waits as long as nobody reads */
  raw_answer a = raw_read_answer(fd, &in, false);
  assert_true(a.whole);
  assert_int_equal(a.body.n, (size_t)8 << 20);
  assert_true(atomic_load(&fx.n_drain_calls) >= 1);
  assert_int_equal(atomic_load(&fx.n_gone), 0);
  pst_buf_done(&a.body);
  pst_buf_done(&in);
  close(fd);
}

static void test_write_bounds(void **state) {
  (void)state;
  fx.options.write_timeout_ms = 150;
  fx.options.write_max_bytes = 1 << 20;
  go();
  int fd = raw_connect_small(fx.port, 4096);
  raw_send(fd, GET("/flood"));
  wait_for(&fx.n_gone, 1);
  assert_int_equal(fx.write_rc, PST_E_LIMIT);
  close(fd);
  fd = raw_connect_small(fx.port, 4096); /* a stalled reader */
  raw_send(fd, GET("/pour"));
  wait_for(&fx.n_gone, 2);
  assert_int_equal(stats().n_timeouts, 1);
  close(fd);
}

static void test_abort_and_injection(void **state) {
  (void)state;
  go();
  pst_buf in = PST_BUF_INIT;
  int fd = raw_connect(fx.port);
  raw_send(fd, GET("/abort"));
  raw_answer a = raw_read_answer(fd, &in, false);
  assert_false(a.whole);
  pst_buf_done(&a.body);
  pst_buf_done(&in);
  close(fd);
  assert_int_equal(atomic_load(&fx.n_gone), 0);
  a = one(GET("/inject"), 500);
  assert_null(strstr(a.head, "set-cookie"));
  assert_int_equal(fx.write_rc, PST_E_BAD_INPUT);
  pst_buf_done(&a.body);
}

static void test_connection_limit(void **state) {
  (void)state;
  fx.options.max_connections = 3;
  go();
  int busy[3];
  for (int i = 0; i < 3; i++) {
    busy[i] = raw_connect(fx.port);
    raw_send(busy[i], i < 2 ? GET("/wait") : GET("/nothing"));
  }
  wait_for(&fx.n_waiting, 2);
  pst_buf in = PST_BUF_INIT;
  raw_answer a = raw_read_answer(busy[2], &in, false);
  pst_buf_done(&a.body);
  int fd = raw_connect(fx.port); /* the idle one makes room */
  raw_send(fd, GET("/wait"));
  wait_for(&fx.n_waiting, 3);
  assert_true(raw_read_eof(busy[2], &in, 10000));
  pst_buf_clear(&in);
  int late = raw_connect(fx.port);
  raw_send(late, GET("/nothing"));
  a = raw_read_answer(late, &in, false);
  assert_int_equal(a.status, 503);
  assert_true(raw_has_header(&a, "retry-after: 1"));
  pst_buf_done(&a.body);
  pst_buf_done(&in);
  assert_int_equal(stats().n_refused, 1);
  for (int i = 0; i < 3; i++) close(busy[i]);
  close(fd);
  close(late);
}

static void on_drained(void *arg) {
  (void)arg;
  atomic_fetch_add(&fx.n_drained, 1);
}
static void begin_drain(void *arg) { pst_net_server_drain(fx.server, *(int64_t *)arg, on_drained, NULL); }

static void test_drain(void **state) {
  (void)state;
  go();
  pst_buf in = PST_BUF_INIT;
  int idle = raw_connect(fx.port), busy = raw_connect(fx.port);
  raw_send(idle, GET("/nothing"));
  raw_answer a = raw_read_answer(idle, &in, false);
  pst_buf_done(&a.body);
  raw_send(busy, GET("/wait"));
  wait_for(&fx.n_waiting, 1);
  int64_t deadline = 10000;
  assert_int_equal(pst_net_loop_call(fx.loop, begin_drain, &deadline), 0);
  assert_true(raw_read_eof(idle, &in, 10000));
  assert_int_equal(atomic_load(&fx.n_drained), 0);
  assert_int_equal(pst_net_loop_call(fx.loop, answer_later, NULL), 0);
  a = raw_read_answer(busy, &in, false);
  assert_true(raw_has_header(&a, "connection: close"));
  expect_body(&a, "later");
  close(busy);
  close(idle);
  wait_for(&fx.n_drained, 1);
  assert_int_equal(atomic_load(&fx.n_gone), 0);
  pst_buf_done(&in);
}

static void test_drain_deadline(void **state) {
  (void)state;
  go();
  int busy = raw_connect(fx.port);
  raw_send(busy, GET("/open"));
  wait_for(&fx.n_waiting, 1);
  int64_t deadline = 50;
  assert_int_equal(pst_net_loop_call(fx.loop, begin_drain, &deadline), 0);
  wait_for(&fx.n_drained, 1);
  assert_int_equal(atomic_load(&fx.n_gone), 1);
  close(busy);
}

static void test_free_tells(void **state) {
  (void)state;
  go();
  int busy = raw_connect(fx.port);
  raw_send(busy, GET("/wait"));
  wait_for(&fx.n_waiting, 1);
  assert_int_equal(pst_net_loop_call(fx.loop, free_on_loop, NULL), 0);
  assert_int_equal(atomic_load(&fx.n_gone), 1);
  close(busy);
}

static void test_listen_errors(void **state) {
  (void)state;
  go();
  pst_net_server_options options = fx.options;
  pst_net_server *server = NULL;
  pst_error err = PST_ERROR_INIT;
  pst_net_loop *loop;
  assert_int_equal(pst_net_loop_create(&loop, NULL), 0);
  options.port = fx.port;
  assert_int_equal(pst_net_server_create(loop, &options, &server, &err), PST_E_BUSY);
  assert_non_null(strstr(err.message, "in use"));
  options.port = 0;
  options.address = "203.0.113.7";
  assert_int_equal(pst_net_server_create(loop, &options, &server, &err), PST_E_BAD_INPUT);
  options.address = "not an address";
  assert_int_equal(pst_net_server_create(loop, &options, &server, &err), PST_E_BAD_INPUT);
  options.address = "127.0.0.1";
  options.port = 65536;
  assert_int_equal(pst_net_server_create(loop, &options, &server, &err), PST_E_BAD_INPUT);
  assert_null(server);
  pst_net_loop_free(loop);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      CASE(test_get),
      CASE(test_keep_alive_and_head),
      CASE(test_http10),
      CASE(test_bodies),
      CASE(test_pipelining),
      CASE(test_many_pipelined),
      CASE(test_malformed),
      CASE(test_random_bytes),
      CASE(test_limits),
      CASE(test_total_body_limit),
      CASE(test_slow_headers),
      CASE(test_slow_body_and_idle),
      CASE(test_gone),
      CASE(test_back_pressure),
      CASE(test_write_bounds),
      CASE(test_abort_and_injection),
      CASE(test_connection_limit),
      CASE(test_drain),
      CASE(test_drain_deadline),
      CASE(test_free_tells),
      CASE(test_listen_errors),
      CASE(test_half_closed_after_pipeline),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
