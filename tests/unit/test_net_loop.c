/* The event loop: posting from many threads, order, the promise to call what was taken, timers, signals; and the words of HTTP. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <penstock/net.h>

enum { THREADS = 4, POSTS = 20000 };

typedef struct poster {
  pst_net_loop *loop;
  int last; /* loop thread only */
  int n_taken;
  bool out_of_order;
  atomic_int n_called;
} poster;

typedef struct item {
  poster *from;
  int number;
} item;

static void run_item(void *arg) {
  item *i = arg;
  if (i->number <= i->from->last) i->from->out_of_order = true;
  i->from->last = i->number;
  atomic_fetch_add(&i->from->n_called, 1);
  free(i);
}

static void *post_many(void *arg) {
  poster *p = arg;
  for (int k = 1; k <= POSTS; k++) {
    item *i = malloc(sizeof *i);
    *i = (item){p, k};
    if (pst_net_loop_post(p->loop, run_item, i)) {
      free(i);
      break; /* the loop has ended */
    }
    p->n_taken++;
  }
  return NULL;
}

/* With `stop_early` the loop is stopped while the threads post: what was taken must have been called, in order. */
static void post_from_threads(bool stop_early) {
  pst_net_loop *loop;
  poster posters[THREADS];
  pthread_t threads[THREADS];
  assert_int_equal(pst_net_loop_create(&loop, NULL), 0);
  memset(posters, 0, sizeof posters);
  assert_int_equal(pst_net_loop_start(loop, NULL), 0);
  for (int t = 0; t < THREADS; t++) {
    posters[t].loop = loop;
    assert_int_equal(pthread_create(&threads[t], NULL, post_many, &posters[t]), 0);
  }
  if (stop_early) {
    usleep(3000);
    pst_net_loop_join(loop);
  }
  for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
  pst_net_loop_join(loop);
  for (int t = 0; t < THREADS; t++) {
    assert_int_equal(atomic_load(&posters[t].n_called), posters[t].n_taken);
    assert_false(posters[t].out_of_order);
    if (!stop_early) assert_int_equal(posters[t].n_taken, POSTS);
  }
  assert_int_equal(pst_net_loop_post(loop, run_item, NULL), PST_E_CANCELLED);
  pst_net_loop_free(loop);
}

static void test_post(void **state) {
  (void)state;
  post_from_threads(false);
}
static void test_post_while_stopping(void **state) {
  (void)state;
  for (int i = 0; i < 10; i++) post_from_threads(true);
}

static void set_flag(void *arg) { *(bool *)arg = true; }

static void test_never_run(void **state) {
  (void)state;
  pst_net_loop *loop;
  bool called = false;
  assert_int_equal(pst_net_loop_create(&loop, NULL), 0);
  assert_int_equal(pst_net_loop_post(loop, set_flag, &called), 0);
  assert_false(called);
  pst_net_loop_free(loop);
  assert_true(called);
  pst_net_loop_free(NULL);
}

static void test_call(void **state) {
  (void)state;
  pst_net_loop *loop;
  bool called = false;
  assert_int_equal(pst_net_loop_create(&loop, NULL), 0);
  assert_int_equal(pst_net_loop_start(loop, NULL), 0);
  assert_false(pst_net_loop_is_current(loop));
  assert_int_equal(pst_net_loop_call(loop, set_flag, &called), 0);
  assert_true(called);
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_net_loop_start(loop, &err), PST_E_INTERNAL);
  assert_int_equal(pst_net_loop_run(loop, &err), PST_E_INTERNAL);
  pst_net_loop_join(loop);
  assert_int_equal(pst_net_loop_call(loop, set_flag, &called), PST_E_CANCELLED);
  pst_net_loop_free(loop);
}

typedef struct repost {
  pst_net_loop *loop;
  pst_net_task task;
  int n;
} repost;

static void again(void *arg) {
  repost *r = arg;
  if (++r->n == 1000)
    pst_net_loop_stop(r->loop);
  else
    assert_int_equal(pst_net_loop_post_task(r->loop, &r->task), 0);
}

static void test_task_posts_itself(void **state) {
  (void)state;
  repost r = {0};
  assert_int_equal(pst_net_loop_create(&r.loop, NULL), 0);
  r.task = (pst_net_task){.fn = again, .arg = &r};
  pst_memory_fail_after(0); /* a caller's task needs no memory */
  assert_int_equal(pst_net_loop_post_task(r.loop, &r.task), 0);
  assert_int_equal(pst_net_loop_post(r.loop, again, &r), PST_E_NOMEM);
  pst_memory_fail_after(-1);
  assert_int_equal(pst_net_loop_run(r.loop, NULL), 0);
  assert_int_equal(r.n, 1000);
  pst_net_loop_free(r.loop);
}

typedef struct ticks {
  pst_net_loop *loop;
  pst_net_timer *first, *second, *never;
  char order[16];
  int n;
} ticks;

static void on_first(void *arg) {
  ticks *t = arg;
  t->order[t->n++] = '1';
  if (t->n == 1) {
    pst_net_timer_set(t->second, 20);
    pst_net_timer_set(t->never, -1);
    pst_net_timer_set(t->first, 40); /* armed anew in its own callback */
  } else {
    pst_net_timer_free(t->first); /* freed in its own callback */
    t->first = NULL;
    pst_net_loop_stop(t->loop);
  }
}
static void on_second(void *arg) {
  ticks *t = arg;
  t->order[t->n++] = '2';
}
static void on_never(void *arg) {
  ticks *t = arg;
  t->order[t->n++] = 'x';
}

static void test_timers(void **state) {
  (void)state;
  ticks t = {0};
  assert_int_equal(pst_net_loop_create(&t.loop, NULL), 0);
  assert_int_equal(pst_net_timer_create(t.loop, on_first, &t, &t.first), 0);
  assert_int_equal(pst_net_timer_create(t.loop, on_second, &t, &t.second), 0);
  assert_int_equal(pst_net_timer_create(t.loop, on_never, &t, &t.never), 0);
  pst_net_timer_set(t.first, 0);
  pst_net_timer_set(t.never, 30);
  assert_int_equal(pst_net_loop_run(t.loop, NULL), 0);
  assert_string_equal(t.order, "121");
  pst_net_timer_free(t.second);
  pst_net_timer_free(t.never);
  pst_net_loop_free(t.loop);
}

static void stop_loop(void *arg) { pst_net_loop_stop(arg); }

static void test_signal(void **state) {
  (void)state;
  pst_net_loop *loop;
  assert_int_equal(pst_net_loop_create(&loop, NULL), 0);
  assert_int_equal(pst_net_loop_on_signal(loop, SIGUSR1, stop_loop, loop, NULL), 0);
  kill(getpid(), SIGUSR1);
  assert_int_equal(pst_net_loop_run(loop, NULL), 0);
  pst_net_loop_free(loop);
}

/* ---- words of HTTP ------------------------------------------------------------------------------------------------------ */

static void test_headers(void **state) {
  (void)state;
  pst_net_header headers[] = {{PST_STR("Content-Type"), PST_STR("a/b")},
                              {PST_STR("content-type"), PST_STR("c/d")},
                              {PST_STR("X"), PST_STR("")}};
  assert_true(pst_str_is(pst_net_header_find(headers, 3, "CONTENT-TYPE"), "a/b"));
  assert_null(pst_net_header_find(headers, 3, "content").data);
  assert_non_null(pst_net_header_find(headers, 3, "x").data);
  assert_true(pst_net_header_has_token(PST_STR("Keep-Alive, CLOSE ,x"), "close"));
  assert_false(pst_net_header_has_token(PST_STR("closed"), "close"));
  assert_false(pst_net_header_has_token(PST_STR(""), "close"));
}

static int query(const char *text, const char *name, const char *expected) {
  pst_buf out = PST_BUF_INIT;
  int rc = pst_net_query_get(pst_str_from(text), name, &out);
  assert_string_equal(pst_buf_text(&out), expected);
  pst_buf_done(&out);
  return rc;
}

static void test_query(void **state) {
  (void)state;
  assert_int_equal(query("a=1&b=x%20y+z&a=2", "a", "1"), 1);
  assert_int_equal(query("a=1&b=x%20y+z", "b", "x y z"), 1);
  assert_int_equal(query("a=1&%62=enc", "b", "enc"), 1);
  assert_int_equal(query("a&b", "a", ""), 1);
  assert_int_equal(query("&&a==", "a", "="), 1);
  assert_int_equal(query("a=1", "c", ""), 0);
  assert_int_equal(query("", "c", ""), 0);
  pst_buf out = PST_BUF_INIT;
  static const char *const bad[] = {"%", "%4", "%4g", "%g4", "abc%"};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++)
    assert_int_equal(pst_net_percent_decode(pst_str_from(bad[i]), false, &out), PST_E_BAD_INPUT);
  pst_buf_clear(&out);
  assert_int_equal(pst_net_percent_decode(PST_STR("a+%2B%2f"), false, &out), 0);
  assert_string_equal(pst_buf_text(&out), "a++/");
  pst_buf_done(&out);
}

static void test_dates(void **state) {
  (void)state;
  static const struct {
    int64_t second;
    const char *text;
  } cases[] = {{0, "Thu, 01 Jan 1970 00:00:00 GMT"},          {784111777, "Sun, 06 Nov 1994 08:49:37 GMT"},
               {951782400, "Tue, 29 Feb 2000 00:00:00 GMT"},  {951868799, "Tue, 29 Feb 2000 23:59:59 GMT"},
               {4107542400, "Mon, 01 Mar 2100 00:00:00 GMT"}, {-5, "Thu, 01 Jan 1970 00:00:00 GMT"},
               {INT64_MAX, "Fri, 31 Dec 9999 23:59:59 GMT"}};
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    char text[30];
    pst_net_http_date(cases[i].second, text);
    assert_string_equal(text, cases[i].text);
  }
  assert_string_equal(pst_net_status_text(404), "Not Found");
  assert_string_equal(pst_net_status_text(799), "Unknown");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_post),
      cmocka_unit_test(test_post_while_stopping),
      cmocka_unit_test(test_never_run),
      cmocka_unit_test(test_call),
      cmocka_unit_test(test_task_posts_itself),
      cmocka_unit_test(test_timers),
      cmocka_unit_test(test_signal),
      cmocka_unit_test(test_headers),
      cmocka_unit_test(test_query),
      cmocka_unit_test(test_dates),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
