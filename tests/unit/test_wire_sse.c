/* Server-sent events: the standard's rules, and the same events however the bytes are cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <penstock/wire.h>

static int collect(void *user, const pst_wire_sse_event *event) {
  pst_buf *out = user;
  pst_buf_printf(out, "(%.*s|%.*s)", (int)event->event.n, event->event.n ? event->event.data : "", (int)event->data.n,
                 event->data.data);
  return 0;
}

static int stop_at_second(void *user, const pst_wire_sse_event *event) {
  (void)event;
  int *count = user;
  return ++*count == 2 ? PST_E_CANCELLED : 0;
}

/* Feeds in two pieces cut at `cut`, or byte by byte with cut == SIZE_MAX. */
static void feed_cut(pst_str bytes, size_t cut, const char *expected) {
  pst_wire_sse sse;
  pst_buf out = PST_BUF_INIT;
  pst_wire_sse_init(&sse, 1000);
  if (cut == SIZE_MAX) {
    for (size_t i = 0; i < bytes.n; i++)
      assert_int_equal(pst_wire_sse_feed(&sse, (pst_str){bytes.data + i, 1}, collect, &out), 0);
  } else {
    assert_int_equal(pst_wire_sse_feed(&sse, (pst_str){bytes.data, cut}, collect, &out), 0);
    assert_int_equal(pst_wire_sse_feed(&sse, (pst_str){bytes.data + cut, bytes.n - cut}, collect, &out), 0);
  }
  assert_string_equal(pst_buf_text(&out), expected);
  pst_buf_done(&out);
  pst_wire_sse_done(&sse);
}

static void check(pst_str bytes, const char *expected) {
  for (size_t cut = 0; cut <= bytes.n; cut++) feed_cut(bytes, cut, expected);
  feed_cut(bytes, SIZE_MAX, expected);
}

static void test_rules(void **state) {
  (void)state;
  check(PST_STR("data: a\n\ndata:b\n\n"), "(|a)(|b)");
  check(PST_STR("data: a\r\n\r\ndata: b\r\rdata: c\n\r\n"), "(|a)(|b)(|c)");
  check(PST_STR("data: one\ndata: two\ndata\n\n"), "(|one\ntwo\n)");
  check(PST_STR("event: ping\ndata: x\n\ndata: y\n\n"), "(ping|x)(|y)");
  check(PST_STR(": comment\n\n:\ndata: a\n: more\n\n"), "(|a)");
  check(PST_STR("event: lost\n\ndata: a\n\n"), "(|a)");
  check(PST_STR("\xEF\xBB\xBF"
                "data: a\n\n"),
        "(|a)");
  check(PST_STR("\xEF\xBB"
                "data: a\n\ndata: b\n\n"),
        "(|b)"); /* half a mark is part of the first field's name */
  check(PST_STR("data:  two spaces\n\n"), "(| two spaces)");
  check(PST_STR("id: 1\nretry: 5\nunknown: z\ndata: a:b\n\n"), "(|a:b)");
  check(PST_STR("data: unfinished\n"), "");
  check(PST_STR("data\n\n"), "(|)");
  check(PST_STR("data: {\"a\":1}\n\ndata: [DONE]\n\n"), "(|{\"a\":1})(|[DONE])");
}

static void test_bounds(void **state) {
  (void)state;
  pst_wire_sse sse;
  pst_buf out = PST_BUF_INIT;
  pst_wire_sse_init(&sse, 100);
  int rc = 0;
  for (int i = 0; i < 1000 && !rc; i++) rc = pst_wire_sse_feed(&sse, PST_STR("no line end "), collect, &out);
  assert_int_equal(rc, PST_E_LIMIT);
  pst_wire_sse_done(&sse);
  pst_wire_sse_init(&sse, 100);
  rc = 0;
  for (int i = 0; i < 1000 && !rc; i++) rc = pst_wire_sse_feed(&sse, PST_STR("data: 0123456789\n"), collect, &out);
  assert_int_equal(rc, PST_E_LIMIT);
  pst_wire_sse_done(&sse);
  pst_buf_done(&out);
}

static void test_callback_stops(void **state) {
  (void)state;
  pst_wire_sse sse;
  int count = 0;
  pst_wire_sse_init(&sse, 100);
  assert_int_equal(pst_wire_sse_feed(&sse, PST_STR("data: 1\n\ndata: 2\n\ndata: 3\n\n"), stop_at_second, &count),
                   PST_E_CANCELLED);
  assert_int_equal(count, 2);
  pst_wire_sse_done(&sse);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_rules), cmocka_unit_test(test_bounds),
                                     cmocka_unit_test(test_callback_stops)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
