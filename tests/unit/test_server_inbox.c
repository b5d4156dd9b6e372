/* Events from another thread: all of them, in order, with few wake-ups; bounded when nobody takes them; the end comes through in any case. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/inbox.h"

typedef struct fixture {
  pst_net_loop *loop;
  pst_server_inbox inbox;
  int n_wakes;
} fixture;

static void on_wake(void *arg) { ((fixture *)arg)->n_wakes++; }
static void nothing(void *arg) { (void)arg; }
static void count_one(void *arg) { ++*(int *)arg; }

static void open_fixture(fixture *f) {
  memset(f, 0, sizeof *f);
  assert_int_equal(pst_net_loop_create(&f->loop, NULL), 0);
  assert_int_equal(pst_server_inbox_init(&f->inbox, f->loop, on_wake, f), 0);
  assert_int_equal(pst_net_loop_start(f->loop, NULL), 0);
}

/* Keeps the loop from running until the lock that `arg` is has been given back. */
static void pass_lock(void *arg) {
  pthread_mutex_lock(arg);
  pthread_mutex_unlock(arg);
}

static void settle(fixture *f) { assert_int_equal(pst_net_loop_call(f->loop, nothing, NULL), 0); }

static void close_fixture(fixture *f) {
  pst_net_loop_join(f->loop);
  pst_server_inbox_done(&f->inbox);
  pst_net_loop_free(f->loop);
}

static void everything_comes_through(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f);
  pst_engine_top top[2] = {{5, -0.5f}, {6, -1.5f}};
  pst_str texts[2] = {PST_STR("a"), PST_STR("\xff")};
  pst_engine_event token = {.token = 5, .token_text = PST_STR("tok"), .logprob = -0.25f, .top = top, .n_top = 2};
  pst_chat_tool_call call = {.id = PST_STR("id"), .name = PST_STR("name"), .arguments = PST_STR("{}")};
  pst_error err = PST_ERROR_INIT;
  pst_error_set(&err, PST_E_UPSTREAM, "place", "why");
  const pst_gateway_event events[] = {
      {.choice = 1, .text = PST_STR("h\0i"), .token = &token, .top_texts = texts, .completion_id = "chatcmpl-1"},
      {.choice = 2, .tool_calls = &call, .n_tool_calls = 1, .finish = PST_ENGINE_FINISH_STOP, .completion_id = "c"},
      {.last = true,
       .error = &err,
       .http_status = 502,
       .retry_after_s = 3,
       .target = "t",
       .model = "m",
       .prompt_tokens = 1,
       .cached_tokens = 2,
       .completion_tokens = 3,
       .ttft_us = 4,
       .total_us = 5,
       .queued_us = 6,
       .cost_nusd = INT64_MAX,
       .cache = PST_GATEWAY_CACHE_BYPASS,
       .completion_id = NULL},
  };
  pthread_mutex_t hold = PTHREAD_MUTEX_INITIALIZER;
  pst_net_task holding = {.fn = pass_lock, .arg = &hold};
  pthread_mutex_lock(&hold);
  assert_int_equal(pst_net_loop_post_task(f.loop, &holding), 0);
  for (uint32_t i = 0; i < 3; i++) pst_server_inbox_put(&f.inbox, i + 7, &events[i]);
  pthread_mutex_unlock(&hold);
  settle(&f);
  assert_int_equal(f.n_wakes, 1);
  pst_buf taken = PST_BUF_INIT;
  pst_arena *arena = pst_arena_create();
  pst_server_record r;
  size_t at = 0;
  assert_false(pst_server_inbox_take(&f.inbox, &taken));
  assert_true(pst_server_inbox_next(pst_buf_str(&taken), &at, arena, &r));
  assert_true(r.part == 7 && r.choice == 1 && r.has_token && r.n_top == 2 && !r.last);
  assert_true(pst_str_equal(r.text, PST_STR("h\0i")) && pst_str_is(r.token_text, "tok") && r.logprob == -0.25);
  assert_true(pst_str_is(r.top[1].bytes, "\xff") && r.top[1].logprob == -1.5 &&
              pst_str_is(r.completion_id, "chatcmpl-1"));
  assert_true(pst_server_inbox_next(pst_buf_str(&taken), &at, arena, &r));
  assert_true(r.part == 8 && r.finish == PST_ENGINE_FINISH_STOP && !r.has_token && r.n_tool_calls == 1);
  assert_true(pst_str_is(r.tool_calls[0].arguments, "{}") && pst_str_is(r.tool_calls[0].name, "name"));
  assert_true(pst_server_inbox_next(pst_buf_str(&taken), &at, arena, &r));
  assert_true(r.part == 9 && r.last && r.code == PST_E_UPSTREAM && r.http_status == 502 && r.retry_after_s == 3);
  assert_true(pst_str_is(r.error_message, "why") && pst_str_is(r.target, "t") && pst_str_is(r.model, "m"));
  assert_true(r.prompt_tokens == 1 && r.cached_tokens == 2 && r.completion_tokens == 3 && r.ttft_us == 4 &&
              r.total_us == 5 && r.queued_us == 6 && r.cost_nusd == INT64_MAX && r.cache == PST_GATEWAY_CACHE_BYPASS);
  assert_false(pst_server_inbox_next(pst_buf_str(&taken), &at, arena, &r));
  pst_arena_free(arena);
  pst_buf_done(&taken);
  close_fixture(&f);
}

static void a_paused_loop_is_left_alone(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f);
  pst_gateway_event e = {.text = PST_STR("x")};
  pst_buf taken = PST_BUF_INIT;
  pst_server_inbox_pause(&f.inbox, true);
  for (int i = 0; i < 100; i++) pst_server_inbox_put(&f.inbox, 0, &e);
  settle(&f);
  assert_int_equal(f.n_wakes, 0);
  pst_server_inbox_pause(&f.inbox, false);
  settle(&f);
  assert_int_equal(f.n_wakes, 1);
  assert_false(pst_server_inbox_take(&f.inbox, &taken));
  pst_server_record r;
  size_t at = 0, n = 0;
  while (pst_server_inbox_next(pst_buf_str(&taken), &at, NULL, &r)) n++;
  assert_int_equal(n, 100);
  pst_buf_done(&taken);
  close_fixture(&f);
}

/* A drain or a worker's return takes what waits without being woken for it. */
static void events_taken_by_others_post_no_task_twice(void **state) {
  (void)state;
  fixture f;
  memset(&f, 0, sizeof f);
  int n_others = 0;
  pst_gateway_event e = {.text = PST_STR("x")};
  pst_buf taken = PST_BUF_INIT;
  assert_int_equal(pst_net_loop_create(&f.loop, NULL), 0);
  assert_int_equal(pst_server_inbox_init(&f.inbox, f.loop, on_wake, &f), 0);
  pst_server_inbox_put(&f.inbox, 0, &e);
  assert_false(pst_server_inbox_take(&f.inbox, &taken));
  assert_true(pst_server_inbox_is_posted(&f.inbox)); /* nobody may free it yet */
  assert_int_equal(pst_net_loop_post(f.loop, count_one, &n_others), 0);
  pst_server_inbox_put(&f.inbox, 0, &e);
  assert_int_equal(pst_net_loop_start(f.loop, NULL), 0);
  settle(&f);
  assert_int_equal(n_others, 1);
  assert_int_equal(f.n_wakes, 1);
  assert_false(pst_server_inbox_is_posted(&f.inbox));
  pst_server_inbox_put(&f.inbox, 0, &e);
  settle(&f);
  assert_int_equal(f.n_wakes, 2);
  pst_buf_done(&taken);
  close_fixture(&f);
}

static void it_is_bounded_but_for_the_end(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f);
  static char text[65536];
  memset(text, 'x', sizeof text);
  pst_gateway_event e = {.text = {text, sizeof text}};
  pst_gateway_event last = {.last = true, .completion_tokens = 11, .cost_nusd = 12};
  pst_server_inbox_pause(&f.inbox, true);
  for (int i = 0; i < 1000; i++) pst_server_inbox_put(&f.inbox, 0, &e);
  settle(&f);
  assert_int_equal(f.n_wakes, 1); /* told once that it overflows */
  assert_true(pst_server_inbox_has_overflowed(&f.inbox));
  assert_true(f.inbox.waiting.n < PST_SERVER_MAX_WAITING + 2 * sizeof text);
  pst_server_inbox_put(&f.inbox, 0, &last);
  pst_buf taken = PST_BUF_INIT;
  assert_true(pst_server_inbox_take(&f.inbox, &taken));
  pst_server_record r = {0};
  size_t at = 0;
  while (pst_server_inbox_next(pst_buf_str(&taken), &at, NULL, &r)) continue;
  assert_true(r.last && r.completion_tokens == 11 && r.cost_nusd == 12);
  pst_buf_done(&taken);
  close_fixture(&f);
}

static void the_end_comes_without_memory(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f);
  static char text[100000];
  memset(text, 'x', sizeof text);
  pst_gateway_event e = {.text = {text, sizeof text}};
  pst_gateway_event last = {.last = true, .completion_tokens = 11, .cost_nusd = 12, .text = {text, sizeof text}};
  pst_buf taken = PST_BUF_INIT;
  pst_memory_fail_after(0);
  pst_server_inbox_put(&f.inbox, 0, &e);
  pst_server_inbox_put(&f.inbox, 0, &last);
  pst_memory_fail_after(-1);
  assert_true(pst_server_inbox_take(&f.inbox, &taken));
  pst_server_record r = {0};
  size_t at = 0;
  assert_true(pst_server_inbox_next(pst_buf_str(&taken), &at, NULL, &r));
  assert_true(r.last && r.completion_tokens == 11 && r.cost_nusd == 12 && r.ttft_us == -1);
  assert_false(pst_server_inbox_next(pst_buf_str(&taken), &at, NULL, &r));
  pst_buf_done(&taken);
  close_fixture(&f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(everything_comes_through),
      cmocka_unit_test(a_paused_loop_is_left_alone),
      cmocka_unit_test(events_taken_by_others_post_no_task_twice),
      cmocka_unit_test(it_is_bounded_but_for_the_end),
      cmocka_unit_test(the_end_comes_without_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
