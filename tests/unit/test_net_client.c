/* The HTTP client against scripted peers (faults) and our own server (the rest), and downloads to files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <penstock/net.h>

#include "support/raw_peer.h"

typedef struct outcome {
  pst_net_loop *loop; /* stopped when done */
  pst_net_call *call;
  pst_buf body, head;
  pst_net_call_result result;
  pst_error error;
  int n_heads, n_bodies, n_done;
  int head_rc, body_rc;
  bool cancel_in_body, pause_in_body;
  pst_net_timer *timer;
  size_t seen_when_resumed;
} outcome;

static pst_net_loop *loop;
static pst_net_client *client;

static int set_up(void **state) {
  (void)state;
  pst_net_client_options options = pst_net_client_options_default();
  assert_int_equal(pst_net_loop_create(&loop, NULL), 0);
  assert_int_equal(pst_net_client_create(loop, &options, &client, NULL), 0);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  pst_net_client_free(client);
  pst_net_loop_free(loop);
  return 0;
}

static int on_head(void *user, const pst_net_response_head *head) {
  outcome *o = user;
  o->n_heads++;
  pst_buf_printf(&o->head, "%d %lld", head->status, (long long)head->content_length);
  pst_str type = pst_net_header_find(head->headers, head->n_headers, "content-type");
  pst_buf_printf(&o->head, " %.*s", (int)type.n, type.n ? type.data : "");
  return o->head_rc;
}

static int on_body(void *user, pst_str data) {
  outcome *o = user;
  o->n_bodies++;
  pst_buf_append_str(&o->body, data);
  if (o->cancel_in_body) {
    pst_net_call_cancel(o->call);
    pst_net_timer_set(o->timer, 50); /* nobody else will end the loop */
  }
  if (o->pause_in_body && o->n_bodies == 1) {
    pst_net_call_pause(o->call, true);
    pst_net_timer_set(o->timer, 100);
  }
  return o->body_rc;
}

static void on_done(void *user, const pst_net_call_result *result) {
  outcome *o = user;
  o->n_done++;
  o->result = *result;
  if (result->error) o->error = *result->error;
  pst_net_loop_stop(loop);
}

static void on_timer(void *arg) {
  outcome *o = arg;
  if (o->pause_in_body) {
    o->seen_when_resumed = o->body.n;
    pst_net_call_pause(o->call, false);
  } else {
    pst_net_loop_stop(loop);
  }
}

static void wipe(outcome *o) {
  pst_buf_done(&o->body);
  pst_buf_done(&o->head);
  pst_net_timer_free(o->timer);
}

/* Runs one call to its end. `o` may carry wishes. */
static void run_call(outcome *o, pst_net_call_options *options) {
  options->on_head = on_head;
  options->on_body = on_body;
  options->on_done = on_done;
  options->user = o;
  assert_int_equal(pst_net_timer_create(loop, on_timer, o, &o->timer), 0);
  assert_int_equal(pst_net_client_start(client, options, &o->call, &o->error), 0);
  assert_int_equal(o->n_done, 0);
  assert_int_equal(pst_net_loop_run(loop, NULL), 0);
}

static const char *url_of(int port, const char *path) {
  static char url[128];
  snprintf(url, sizeof url, "http://127.0.0.1:%d%s", port, path);
  return url;
}

/* ---- scripts ------------------------------------------------------------------------------------------------------------- */

typedef struct script_state {
  const char *answer;
  int delay_ms; /* before the second part */
  const char *second;
  bool reset, hold; /* hold: until the client has closed */
  pst_buf request;
  atomic_int n_requests, n_client_closed;
} script_state;

static void play(int fd, void *user) {
  script_state *s = user;
  pst_buf_clear(&s->request);
  if (!raw_read_request(fd, &s->request)) return;
  atomic_fetch_add(&s->n_requests, 1);
  if (s->answer) raw_try_send(fd, s->answer, strlen(s->answer));
  if (s->delay_ms) usleep((useconds_t)s->delay_ms * 1000);
  if (s->second) raw_try_send(fd, s->second, strlen(s->second));
  if (s->hold) {
    pst_buf rest = PST_BUF_INIT;
    if (raw_read_eof(fd, &rest, 5000)) atomic_fetch_add(&s->n_client_closed, 1);
    pst_buf_done(&rest);
  }
  if (s->reset) {
    struct linger hard = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  }
}

static void with_script(script_state *s, outcome *o, pst_net_call_options *options) {
  int port;
  raw_server *server = raw_server_start(play, s, &port);
  options->url = url_of(port, "/path?q=1");
  run_call(o, options);
  raw_server_stop(server);
  pst_buf_done(&s->request);
}

#define OK_HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/x\r\n"

static void test_plain(void **state) {
  (void)state;
  outcome o = {.loop = loop};
  pst_net_call_options options = pst_net_call_options_default();
  pst_net_header headers[] = {{PST_STR("X-One"), PST_STR("1")}, {PST_STR("X-Empty"), PST_STR("")}};
  script_state s = {.answer = "HTTP/1.1 100 Continue\r\n\r\n" OK_HEAD "Content-Length: 5\r\n\r\nhello"};
  int port;
  raw_server *server = raw_server_start(play, &s, &port);
  options.url = url_of(port, "/path?q=1");
  options.headers = headers;
  options.n_headers = 2;
  options.body = PST_STR("{\"a\":1}");
  run_call(&o, &options);
  raw_server_stop(server);
  assert_int_equal(o.result.code, 0);
  assert_int_equal(o.result.status, 200);
  assert_true(o.result.connected);
  assert_int_equal(o.n_heads, 1);
  assert_int_equal(o.n_done, 1);
  assert_string_equal(o.head.data, "200 5 text/x");
  assert_string_equal(o.body.data, "hello");
  assert_int_equal(o.result.n_body_bytes, 5);
  assert_true(o.result.first_byte_us >= 0 && o.result.first_byte_us <= o.result.total_us);
  assert_ptr_equal(strstr(s.request.data, "POST /path?q=1 HTTP/1.1\r\n"), s.request.data);
  assert_non_null(strstr(s.request.data, "\r\nX-One: 1\r\n"));
  assert_non_null(strstr(s.request.data, "\r\nX-Empty:\r\n"));
  assert_non_null(strstr(s.request.data, "\r\n\r\n{\"a\":1}"));
  assert_null(strstr(s.request.data, "Expect"));
  pst_buf_done(&s.request);
  wipe(&o);
}

static void test_statuses_are_answers(void **state) {
  (void)state;
  outcome o = {.loop = loop};
  pst_net_call_options options = pst_net_call_options_default();
  script_state s = {.answer = "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"};
  with_script(&s, &o, &options); /* redirects are not followed unless asked */
  assert_int_equal(o.result.code, 0);
  assert_int_equal(o.result.status, 302);
  assert_int_equal(o.n_heads, 1);
  assert_int_equal(s.n_requests, 1);
  wipe(&o);
}

static void expect_failure(script_state *s, pst_net_call_options *options, int code, const char *words) {
  outcome o = {.loop = loop};
  int rc = pst_net_loop_create(&loop, NULL);
  assert_int_equal(rc, 0);
  pst_net_client_options client_options = pst_net_client_options_default();
  assert_int_equal(pst_net_client_create(loop, &client_options, &client, NULL), 0);
  with_script(s, &o, options);
  if (o.result.code != code) print_message("%s\n", o.error.message);
  assert_int_equal(o.result.code, code);
  assert_int_equal(o.n_done, 1);
  assert_true(o.result.connected);
  assert_non_null(strstr(o.error.message, words));
  assert_null(strstr(o.error.place, "q=1"));
  wipe(&o);
  pst_net_client_free(client);
  pst_net_loop_free(loop);
}

static void test_faults(void **state) {
  (void)state;
  pst_net_client *kept_client = client;
  pst_net_loop *kept_loop = loop;
  pst_net_call_options options = pst_net_call_options_default();
  script_state cut = {.answer = OK_HEAD "Content-Length: 100\r\n\r\nhello"};
  expect_failure(&cut, &options, PST_E_IO, "");
  script_state cut_chunk = {.answer = OK_HEAD "Transfer-Encoding: chunked\r\n\r\n5\r\nhel"};
  expect_failure(&cut_chunk, &options, PST_E_IO, "");
  script_state nothing = {.answer = NULL};
  expect_failure(&nothing, &options, PST_E_IO, "");
  script_state reset = {.answer = OK_HEAD "Content-Length: 100\r\n\r\nhello", .reset = true};
  expect_failure(&reset, &options, PST_E_IO, "");
  script_state garbage = {.answer = "\x01\x02\x03 not http at all\r\n\r\n"};
  expect_failure(&garbage, &options, PST_E_IO, "");
  options.first_byte_timeout_ms = 100;
  script_state hang = {.hold = true};
  expect_failure(&hang, &options, PST_E_TIMEOUT, "no answer within 0.1 s");
  assert_int_equal(hang.n_client_closed, 1);
  options.first_byte_timeout_ms = 0;
  options.idle_timeout_ms = 100;
  script_state stop = {.answer = OK_HEAD "Content-Length: 100\r\n\r\nhello", .hold = true};
  expect_failure(&stop, &options, PST_E_TIMEOUT, "stopped for 0.1 s");
  options.idle_timeout_ms = 0;
  options.total_timeout_ms = 100;
  script_state slow = {.answer = OK_HEAD "Content-Length: 100\r\n\r\nhello", .hold = true};
  expect_failure(&slow, &options, PST_E_TIMEOUT, "");
  options.total_timeout_ms = 0;
  options.max_body_bytes = 4;
  script_state big = {.answer = OK_HEAD "Content-Length: 5\r\n\r\nhello"};
  expect_failure(&big, &options, PST_E_LIMIT, "longer than the limit of 4 bytes");
  script_state big_chunked = {.answer = OK_HEAD "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n3\r\nlo!\r\n0\r\n\r\n"};
  expect_failure(&big_chunked, &options, PST_E_LIMIT, "longer than the limit of 4 bytes");
  pst_buf head = PST_BUF_INIT;
  pst_buf_puts(&head, OK_HEAD);
  for (int i = 0; i < 1000; i++) pst_buf_printf(&head, "X-%d: %0100d\r\n", i, i);
  pst_buf_puts(&head, "Content-Length: 0\r\n\r\n");
  script_state long_head = {.answer = head.data};
  expect_failure(&long_head, &options, PST_E_LIMIT, "headers are too long");
  pst_buf_done(&head);
  client = kept_client;
  loop = kept_loop;
}

static void test_refused_by_receiver(void **state) {
  (void)state;
  outcome o = {.loop = loop, .head_rc = PST_E_DENIED};
  pst_net_call_options options = pst_net_call_options_default();
  script_state s = {.answer = OK_HEAD "Content-Length: 5\r\n\r\nhello"};
  with_script(&s, &o, &options);
  assert_int_equal(o.result.code, PST_E_DENIED);
  assert_int_equal(o.n_bodies, 0);
  wipe(&o);
}

static void test_refused_empty(void **state) {
  (void)state;
  outcome o = {.loop = loop, .head_rc = PST_E_DENIED};
  pst_net_call_options options = pst_net_call_options_default();
  script_state s = {.answer = "HTTP/1.1 204 No Content\r\n\r\n"};
  with_script(&s, &o, &options);
  assert_int_equal(o.result.code, PST_E_DENIED);
  assert_string_equal(o.head.data, "204 -1 ");
  wipe(&o);
}

static void test_body_refused(void **state) {
  (void)state;
  outcome o = {.loop = loop, .body_rc = 1};
  pst_net_call_options options = pst_net_call_options_default();
  script_state s = {.answer = OK_HEAD "Content-Length: 5\r\n\r\nhello"};
  with_script(&s, &o, &options);
  assert_int_equal(o.result.code, PST_E_CANCELLED);
  wipe(&o);
}

static void test_head_before_body(void **state) {
  (void)state;
  outcome o = {.loop = loop, .head_rc = PST_E_DENIED}; /* the head alone must be enough to see it */
  pst_net_call_options options = pst_net_call_options_default();
  script_state s = {.answer = OK_HEAD "Content-Length: 5\r\n\r\n", .hold = true};
  with_script(&s, &o, &options);
  assert_int_equal(o.result.code, PST_E_DENIED);
  assert_int_equal(s.n_client_closed, 1);
  wipe(&o);
}

static void test_cancel_in_body(void **state) {
  (void)state;
  outcome o = {.loop = loop, .cancel_in_body = true};
  pst_net_call_options options = pst_net_call_options_default();
  script_state s = {.answer = OK_HEAD "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", .hold = true};
  with_script(&s, &o, &options);
  assert_int_equal(o.n_done, 0);
  assert_int_equal(o.n_bodies, 1);
  assert_int_equal(s.n_client_closed, 1); /* the connection is closed, so that the other side stops too */
  wipe(&o);
}

static outcome *cancel_target;
static void cancel_soon(void *arg) {
  (void)arg;
  pst_net_call_cancel(cancel_target->call);
  pst_net_timer_set(cancel_target->timer, 50);
}

static void test_cancel_while_waiting(void **state) {
  (void)state;
  outcome o = {.loop = loop};
  cancel_target = &o;
  pst_net_timer *timer;
  assert_int_equal(pst_net_timer_create(loop, cancel_soon, NULL, &timer), 0);
  pst_net_timer_set(timer, 50);
  pst_net_call_options options = pst_net_call_options_default();
  script_state s = {.hold = true};
  with_script(&s, &o, &options);
  assert_int_equal(o.n_done, 0);
  assert_int_equal(s.n_client_closed, 1);
  pst_net_timer_free(timer);
  wipe(&o);
}

static void test_pause(void **state) {
  (void)state;
  outcome o = {.loop = loop, .pause_in_body = true};
  pst_net_call_options options = pst_net_call_options_default();
  options.idle_timeout_ms = 60; /* does not run while paused */
  script_state s = {.answer = OK_HEAD "Content-Length: 10\r\n\r\nhello", .delay_ms = 30, .second = "world"};
  with_script(&s, &o, &options);
  assert_int_equal(o.result.code, 0);
  assert_int_equal(o.seen_when_resumed, 5);
  assert_string_equal(o.body.data, "helloworld");
  wipe(&o);
}

/* Answers a connection's first request, and closes it without a word when the second one is whole. */
static void answer_once(int fd, void *user) {
  script_state *s = user;
  const char *answer = OK_HEAD "Content-Length: 5\r\n\r\nhello";
  pst_buf_clear(&s->request);
  if (!raw_read_request(fd, &s->request)) return;
  atomic_fetch_add(&s->n_requests, 1);
  raw_try_send(fd, answer, strlen(answer));
  pst_buf_clear(&s->request);
  if (raw_read_request(fd, &s->request)) atomic_fetch_add(&s->n_requests, 1);
}

typedef struct pair {
  pst_net_call_options options;
  int codes[2], n_done;
  bool connected;
} pair;

static void on_one_done(void *user, const pst_net_call_result *result) {
  pair *p = user;
  p->codes[p->n_done++] = result->code;
  p->connected = result->connected;
  if (p->n_done == 2)
    pst_net_loop_stop(loop);
  else
    assert_int_equal(pst_net_client_start(client, &p->options, NULL, NULL), 0);
}

/* libcurl by itself sends again what a pooled connection gave no answer to. */
static void sent_once(pst_str body) {
  script_state s = {0};
  pair p = {.options = pst_net_call_options_default()};
  int port;
  raw_server *server = raw_server_start(answer_once, &s, &port);
  p.options.url = url_of(port, "/");
  p.options.body = body;
  p.options.on_done = on_one_done;
  p.options.user = &p;
  assert_int_equal(pst_net_client_start(client, &p.options, NULL, NULL), 0);
  assert_int_equal(pst_net_loop_run(loop, NULL), 0);
  assert_int_equal(s.n_requests, 2);
  assert_int_equal(p.codes[0], 0);
  assert_int_equal(p.codes[1], PST_E_IO);
  assert_true(p.connected);
  pst_net_client_free(client); /* closes what the server may wait for */
  client = NULL;
  raw_server_stop(server);
  pst_buf_done(&s.request);
}

static void test_a_body_is_sent_once(void **state) {
  (void)state;
  sent_once(PST_STR("{}"));
}

static void test_a_long_body_is_sent_once(void **state) {
  (void)state;
  static char body[100000]; /* libcurl sends such a one apart from its head */
  memset(body, 'b', sizeof body);
  sent_once((pst_str){body, sizeof body});
}

static void test_unreachable(void **state) {
  (void)state;
  outcome o = {.loop = loop};
  pst_net_call_options options = pst_net_call_options_default();
  script_state s = {0};
  int port;
  raw_server_stop(raw_server_start(play, &s, &port)); /* a port where nobody listens */
  options.url = url_of(port, "/");
  run_call(&o, &options);
  assert_int_equal(o.result.code, PST_E_IO);
  assert_false(o.result.connected);
  assert_int_equal(o.result.status, 0);
  wipe(&o);
}

static void test_bad_options(void **state) {
  (void)state;
  static const char *const urls[] = {"",        "nonsense://x/", "file:///etc/passwd",
                                     "http://", "http://[::1/",  "ftp://127.0.0.1/"};
  pst_net_call_options options = pst_net_call_options_default();
  options.on_done = on_done;
  pst_error err = PST_ERROR_INIT;
  for (size_t i = 0; i < PST_ARRAY_LEN(urls); i++) {
    options.url = urls[i];
    assert_int_equal(pst_net_client_start(client, &options, NULL, &err), PST_E_BAD_INPUT);
  }
  options.url = NULL;
  assert_int_equal(pst_net_client_start(client, &options, NULL, &err), PST_E_BAD_INPUT);
  options.url = "http://127.0.0.1:1/";
  options.method = "GET /evil HTTP/1.1\r\n";
  assert_int_equal(pst_net_client_start(client, &options, NULL, &err), PST_E_BAD_INPUT);
  options.method = NULL;
  pst_net_header evil = {PST_STR("x"), PST_STR("a\r\nb: c")};
  options.headers = &evil;
  options.n_headers = 1;
  assert_int_equal(pst_net_client_start(client, &options, NULL, &err), PST_E_BAD_INPUT);
}

static void test_free_with_open_calls(void **state) {
  (void)state;
  outcome o = {.loop = loop};
  script_state s = {.hold = true};
  int port;
  raw_server *server = raw_server_start(play, &s, &port);
  pst_net_call_options options = pst_net_call_options_default();
  options.url = url_of(port, "/");
  options.on_done = on_done;
  options.user = &o;
  for (int i = 0; i < 3; i++) assert_int_equal(pst_net_client_start(client, &options, NULL, NULL), 0);
  assert_int_equal(pst_net_timer_create(loop, on_timer, &o, &o.timer), 0);
  pst_net_timer_set(o.timer, 50);
  pst_net_loop_run(loop, NULL);
  pst_net_client_free(client);
  client = NULL;
  assert_int_equal(o.n_done, 0);
  raw_server_stop(server);
  pst_buf_done(&s.request);
  wipe(&o);
}

/* ---- client and server of ours on one loop --------------------------------------------------------------------------------- */

typedef struct both {
  pst_net_server *server;
  int n_left, n_failed;
} both;

static void echo(void *user, pst_net_exchange *x) {
  (void)user;
  pst_net_respond(x, 200, NULL, 0, pst_net_exchange_request(x)->body);
}

static void count_done(void *user, const pst_net_call_result *result) {
  both *b = user;
  if (result->code || result->status != 200 || result->n_body_bytes != 100000) b->n_failed++;
  if (--b->n_left == 0) pst_net_loop_stop(loop);
}

static void test_many_at_once(void **state) {
  (void)state;
  both b = {.n_left = 100};
  pst_net_server_options server_options = pst_net_server_options_default();
  server_options.handler = echo;
  assert_int_equal(pst_net_server_create(loop, &server_options, &b.server, NULL), 0);
  char *body = malloc(100000);
  assert_non_null(body);
  memset(body, 'b', 100000);
  pst_net_call_options options = pst_net_call_options_default();
  options.url = url_of(pst_net_server_port(b.server), "/");
  options.body = (pst_str){body, 100000};
  options.on_done = count_done;
  options.user = &b;
  for (int i = 0; i < 100; i++) assert_int_equal(pst_net_client_start(client, &options, NULL, NULL), 0);
  assert_int_equal(pst_net_loop_run(loop, NULL), 0);
  assert_int_equal(b.n_left, 0);
  assert_int_equal(b.n_failed, 0);
  pst_net_server_free(b.server);
  free(body);
}

/* ---- downloads ---------------------------------------------------------------------------------------------------------------- */

enum { FILE_BYTES = 3000000 };

typedef struct file_server {
  int n_requests;
  int cuts; /* how many answers to cut after cut_after bytes */
  size_t cut_after;
  bool no_ranges;
  int status; /* instead of the file */
  char *data;
  char ranges[512]; /* what was asked for, in order */
} file_server;

static void serve_file(int fd, void *user) {
  file_server *f = user;
  pst_buf in = PST_BUF_INIT, head = PST_BUF_INIT;
  if (!raw_read_request(fd, &in)) {
    pst_buf_done(&in);
    return;
  }
  f->n_requests++;
  size_t from = 0;
  const char *range = strcasestr(in.data, "\r\nrange: bytes=");
  if (range) from = strtoul(range + 15, NULL, 10);
  size_t used = strlen(f->ranges);
  snprintf(f->ranges + used, sizeof f->ranges - used, "%zu ", from);
  if (f->no_ranges) from = 0;
  if (f->status) {
    pst_buf_printf(&head, "HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n", f->status);
    if (f->status == 503) f->status = 0; /* once */
    from = FILE_BYTES;
  } else if (from >= FILE_BYTES) {
    pst_buf_printf(&head,
                   "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */%d\r\nContent-Length: 3\r\n\r\nno!",
                   FILE_BYTES);
  } else if (from) {
    pst_buf_printf(&head,
                   "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %zu-%d/%d\r\nContent-Length: %zu\r\n\r\n",
                   from, FILE_BYTES - 1, FILE_BYTES, FILE_BYTES - from);
  } else {
    pst_buf_printf(&head, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", FILE_BYTES);
  }
  raw_try_send(fd, head.data, head.n);
  size_t n = from < FILE_BYTES ? FILE_BYTES - from : 0;
  if (f->cuts > 0) {
    f->cuts--;
    n = PST_MIN(n, f->cut_after);
  }
  raw_try_send(fd, f->data + from, n);
  pst_buf_done(&in);
  pst_buf_done(&head);
}

static char folder[64];

static int file_set_up(void **state) {
  file_server *f = calloc(1, sizeof *f);
  snprintf(folder, sizeof folder, "/tmp/penstock-test-XXXXXX");
  if (!f || !mkdtemp(folder)) return -1;
  f->data = malloc(FILE_BYTES);
  if (!f->data) return -1;
  pst_random random = {.seed = 3};
  for (size_t i = 0; i < FILE_BYTES; i += 8) {
    uint64_t v = pst_random_next(&random);
    memcpy(f->data + i, &v, 8);
  }
  *state = f;
  return 0;
}

static char *file_path(void) {
  static char path[128];
  snprintf(path, sizeof path, "%s/file", folder);
  return path;
}

static int file_tear_down(void **state) {
  file_server *f = *state;
  unlink(file_path());
  rmdir(folder);
  free(f->data);
  free(f);
  return 0;
}

static int download(file_server *f, pst_net_download *d, pst_error *err) {
  int port;
  int64_t n = -1;
  raw_server *server = raw_server_start(serve_file, f, &port);
  d->url = url_of(port, "/file");
  d->path = file_path();
  int rc = pst_net_download_run(d, &n, err);
  raw_server_stop(server);
  if (!rc) {
    char *data;
    size_t size;
    assert_int_equal(n, FILE_BYTES);
    assert_int_equal(pst_file_read(d->path, 1 << 30, &data, &size, NULL), 0);
    assert_int_equal(size, FILE_BYTES);
    assert_memory_equal(data, f->data, FILE_BYTES);
    pst_free(data);
  }
  return rc;
}

static void test_download(void **state) {
  file_server *f = *state;
  pst_net_download d = pst_net_download_default();
  d.expected_bytes = FILE_BYTES;
  assert_int_equal(download(f, &d, NULL), 0);
  assert_int_equal(f->n_requests, 1);
  assert_int_equal(download(f, &d, NULL), 0); /* whole already: nobody is asked */
  assert_int_equal(f->n_requests, 1);
  d.expected_bytes = -1; /* unknown: the server says that it is whole */
  assert_int_equal(download(f, &d, NULL), 0);
  assert_int_equal(f->n_requests, 2);
}

static void test_download_resumes(void **state) {
  file_server *f = *state;
  f->cuts = 2;
  f->cut_after = 1200000;
  pst_net_download d = pst_net_download_default();
  assert_int_equal(download(f, &d, NULL), 0);
  assert_string_equal(f->ranges, "0 1200000 2400000 ");
}

static void test_download_continues_file(void **state) {
  file_server *f = *state;
  assert_int_equal(pst_file_write_atomic(file_path(), f->data, 1000000, NULL), 0);
  pst_net_download d = pst_net_download_default();
  d.expected_bytes = FILE_BYTES;
  assert_int_equal(download(f, &d, NULL), 0);
  assert_string_equal(f->ranges, "1000000 ");
}

static void test_download_without_ranges(void **state) {
  file_server *f = *state;
  f->no_ranges = true;
  assert_int_equal(pst_file_write_atomic(file_path(), "other bytes", 11, NULL), 0);
  pst_net_download d = pst_net_download_default();
  assert_int_equal(download(f, &d, NULL), 0);
}

static void test_download_statuses(void **state) {
  file_server *f = *state;
  pst_error err = PST_ERROR_INIT;
  pst_net_download d = pst_net_download_default();
  f->status = 404;
  assert_int_equal(download(f, &d, &err), PST_E_NOT_FOUND);
  assert_non_null(strstr(err.message, "404"));
  assert_int_equal(f->n_requests, 1);
  f->status = 403;
  assert_int_equal(download(f, &d, &err), PST_E_DENIED);
  f->status = 503;
  assert_int_equal(download(f, &d, &err), 0);
}

static void test_download_wrong_size(void **state) {
  file_server *f = *state;
  pst_error err = PST_ERROR_INIT;
  pst_net_download d = pst_net_download_default();
  d.expected_bytes = FILE_BYTES + 1;
  assert_int_equal(download(f, &d, &err), PST_E_CORRUPT);
  d.expected_bytes = -1;
  d.max_bytes = FILE_BYTES - 1;
  assert_int_equal(download(f, &d, &err), PST_E_LIMIT);
  d.max_bytes = 0;
  d.n_attempts = 2;
  f->cuts = 100;
  f->cut_after = 10;
  assert_int_equal(download(f, &d, &err), PST_E_IO); /* bounded tries */
  f->cuts = 0;
  struct stat st;
  assert_int_equal(stat(file_path(), &st), 0);
  assert_true(st.st_size > 0); /* what came is kept */
  assert_int_equal(download(f, &d, &err), 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define FILE_CASE(name) cmocka_unit_test_setup_teardown(name, file_set_up, file_tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      CASE(test_plain),
      CASE(test_statuses_are_answers),
      CASE(test_faults),
      CASE(test_refused_by_receiver),
      CASE(test_refused_empty),
      CASE(test_body_refused),
      CASE(test_head_before_body),
      CASE(test_cancel_in_body),
      CASE(test_cancel_while_waiting),
      CASE(test_pause),
      CASE(test_a_body_is_sent_once),
      CASE(test_a_long_body_is_sent_once),
      CASE(test_unreachable),
      CASE(test_bad_options),
      CASE(test_free_with_open_calls),
      CASE(test_many_at_once),
      FILE_CASE(test_download),
      FILE_CASE(test_download_resumes),
      FILE_CASE(test_download_continues_file),
      FILE_CASE(test_download_without_ranges),
      FILE_CASE(test_download_statuses),
      FILE_CASE(test_download_wrong_size),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
