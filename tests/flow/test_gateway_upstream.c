/* A provider that is real: one gateway's upstream is the program's own server over another gateway. What comes back must be what the model says here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <penstock/server.h>

#include "support/gateway.h"

static const char *smollm2;
static test_gateway provider, mine;
static pst_server *server;
static pthread_t thread;

static void *serve(void *arg) {
  (void)arg;
  pst_error err = PST_ERROR_INIT;
  if (pst_server_run(server, &err)) printf("server: %s\n", err.message);
  return NULL;
}

static int open_both(void **state) {
  (void)state;
  smollm2 = test_model("PENSTOCK_TEST_SMOLLM2");
  if (!smollm2) return 0;
  pst_error err = PST_ERROR_INIT;
  provider = test_gateway_open(NULL);
  mine = test_gateway_open(NULL);
  if (pst_gateway_prepare_model(provider.gateway, smollm2, NULL, &err)) fail_msg("%s", err.message);
  pst_server_alias alias = {"small", smollm2};
  pst_server_options o = {.address = "127.0.0.1", .aliases = &alias, .n_aliases = 1};
  if (pst_server_open(provider.store, provider.gateway, &o, &server, &err)) fail_msg("%s", err.message);
  assert_int_equal(pthread_create(&thread, NULL, serve, NULL), 0);
  char url[64];
  snprintf(url, sizeof url, "http://127.0.0.1:%d/v1", pst_server_port(server));
  pst_store_price price = {PST_STORE_NUSD_PER_USD, PST_STORE_NO_LIMIT, PST_STORE_NUSD_PER_USD};
  assert_int_equal(pst_gateway_provider_set(mine.store, PST_STR("peer"), pst_str_from(url), PST_STR(""), &err), 0);
  assert_int_equal(pst_store_price_set(mine.store, PST_STR("peer"), PST_STR("*"), price, &err), 0);
  return 0;
}

static int close_both(void **state) {
  (void)state;
  if (!smollm2) return 0;
  test_gateway_close(&mine);
  pst_server_drain(server, true);
  pthread_join(thread, NULL);
  pst_server_close(server);
  test_gateway_close(&provider);
  return 0;
}

static void answer(pst_gateway *g, const char *model, bool stream, int n_logprobs, int n, test_answer *a) {
  test_chat chat;
  pst_error err = PST_ERROR_INIT;
  test_answer_init(a);
  test_chat_init(&chat, "Say something about \"bridges\" \xC3\xA9\n\ttwice.");
  pst_gateway_call call = test_call(model, &chat, a);
  call.stream = stream;
  call.n = n;
  call.set.n_logprobs = n_logprobs;
  call.set.temperature = n > 1 ? 1 : 0;
  call.set.has_seed = true;
  call.set.seed = 11;
  if (pst_gateway_chat(g, &call, NULL, &err)) fail_msg("refused: %s", err.message);
  test_answer_wait(a);
  if (a->error.code) fail_msg("failed: %s", a->error.message);
}

static void through_the_wire_it_says_the_same(void **state) {
  (void)state;
  if (!smollm2) skip();
  for (int i = 0; i < 8; i++) {
    test_answer near, far;
    bool stream = i & 1;
    int n_logprobs = i & 2 ? 3 : -1, n = i & 4 ? 2 : 1;
    answer(provider.gateway, smollm2, stream, n_logprobs, n, &near);
    answer(mine.gateway, "peer/small", stream, n_logprobs, n, &far);
    for (int c = 0; c < n; c++) {
      assert_string_equal(test_answer_text(&far, c), test_answer_text(&near, c));
      assert_string_equal(pst_buf_text(&far.token_text[c]), pst_buf_text(&near.token_text[c]));
      assert_int_equal(far.finish[c], near.finish[c]);
    }
    assert_int_equal(far.n_tokens, near.n_tokens);
    assert_true(far.logprob_sum - near.logprob_sum < 1e-3 && near.logprob_sum - far.logprob_sum < 1e-3);
    assert_int_equal(far.last.prompt_tokens, near.last.prompt_tokens);
    assert_int_equal(far.last.completion_tokens, near.last.completion_tokens);
    assert_int_equal(far.last.cost_nusd, (far.last.prompt_tokens + far.last.completion_tokens) * 1000);
    assert_string_equal(far.target, "peer");
    test_answer_done(&near);
    test_answer_done(&far);
  }
}

static void its_refusals_come_through(void **state) {
  (void)state;
  if (!smollm2) skip();
  test_answer a;
  test_chat chat;
  pst_error err = PST_ERROR_INIT;
  test_answer_init(&a);
  test_chat_init(&chat, "Hello");
  pst_gateway_call call = test_call("peer/unknown", &chat, &a);
  assert_int_equal(pst_gateway_chat(mine.gateway, &call, NULL, &err), 0);
  test_answer_wait(&a);
  assert_int_equal(a.error.code, PST_E_NOT_FOUND);
  assert_int_equal(a.last.http_status, 404);
  assert_int_equal(a.last.cost_nusd, 0);
  test_answer_done(&a);
}

/* Cancelling here stops the work there. */
static void cancelling_reaches_the_provider(void **state) {
  (void)state;
  if (!smollm2) skip();
  test_answer a;
  test_chat chat;
  pst_error err = PST_ERROR_INIT;
  test_answer_init(&a);
  test_chat_init(&chat, "Count from one to one thousand.");
  pst_gateway_call call = test_call("peer/small", &chat, &a);
  call.stream = true;
  call.set.max_tokens = 4000;
  a.cancel_in = mine.gateway;
  pthread_mutex_lock(&a.lock);
  assert_int_equal(pst_gateway_chat(mine.gateway, &call, &a.cancel_id, &err), 0);
  pthread_mutex_unlock(&a.lock);
  test_answer_wait(&a);
  assert_int_equal(a.error.code, PST_E_CANCELLED);
  pst_gateway_stats stats;
  int64_t until = pst_clock_us() + 60 * 1000000;
  do pst_gateway_get_stats(provider.gateway, &stats);
  while (stats.n_open_calls > 0 && pst_clock_us() < until);
  assert_int_equal(stats.n_open_calls, 0);
  test_answer_done(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(through_the_wire_it_says_the_same),
      cmocka_unit_test(its_refusals_come_through),
      cmocka_unit_test(cancelling_reaches_the_provider),
  };
  return cmocka_run_group_tests(tests, open_both, close_both);
}
