/* Calls answered by engines of this machine: by name, with everything a request can set, cancelled at any moment, booked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/gateway.h"
#include "support/temp.h"

static const char *smollm2;
static test_gateway shared; /* opened once: loading costs a second */

#define NEED_MODEL() \
  if (!smollm2) skip()

static int open_shared(void **state) {
  (void)state;
  smollm2 = test_model("PENSTOCK_TEST_SMOLLM2");
  shared = test_gateway_open(NULL);
  return 0;
}

static int close_shared(void **state) {
  (void)state;
  test_gateway_close(&shared);
  return 0;
}

static void answer_call(pst_gateway *g, const pst_gateway_call *call, test_answer *a) {
  pst_error err = PST_ERROR_INIT;
  uint64_t id = 0;
  if (pst_gateway_chat(g, call, &id, &err)) fail_msg("refused: %s", err.message);
  assert_true(id > 0);
  test_answer_wait(a);
  assert_int_equal(a->n_last, 1);
}

static void chat_by_path(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer a;
  test_chat chat;
  test_answer_init(&a);
  test_chat_init(&chat, "What is the capital of France?");
  pst_gateway_call call = test_call(smollm2, &chat, &a);
  answer_call(shared.gateway, &call, &a);
  assert_int_equal(a.error.code, 0);
  assert_true(a.text[0].n > 0 && pst_utf8_valid(pst_buf_str(&a.text[0])));
  assert_int_equal(a.n_finished, 1);
  assert_int_equal(a.n_events, 2); /* not streamed: the answer, then the end */
  assert_string_equal(a.target, "local");
  assert_true(strncmp(a.completion_id, "chatcmpl-", 9) == 0);
  assert_true(a.last.prompt_tokens > 10 && a.last.completion_tokens > 0 && a.last.ttft_us > 0);
  assert_int_equal(a.last.n_stages, 1);
  test_answer_done(&a);
}

static void streams_and_counts_tokens(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer whole, streamed;
  test_chat chat;
  test_answer_init(&whole);
  test_answer_init(&streamed);
  test_chat_init(
      &chat,
      "List three colours that a painter who lives by the sea would need for a picture of a stormy morning, and say why "
      "each of them matters, in as few words as you can.");
  pst_gateway_call call = test_call(smollm2, &chat, &whole);
  answer_call(shared.gateway, &call, &whole);
  call.user = &streamed;
  call.stream = true;
  call.set.n_logprobs = 2;
  answer_call(shared.gateway, &call, &streamed);
  assert_string_equal(test_answer_text(&streamed, 0), test_answer_text(&whole, 0));
  assert_string_equal(pst_buf_text(&streamed.token_text[0]), test_answer_text(&whole, 0));
  assert_int_equal(streamed.n_tops, 2 * streamed.n_tokens);
  assert_true(streamed.n_tokens > 3 && streamed.logprob_sum < 0);
  assert_true(streamed.last.cached_tokens > 0); /* the same prompt was there */
  test_answer_done(&whole);
  test_answer_done(&streamed);
}

static void several_answers_differ_by_seed_and_choice(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer a, b;
  test_chat chat;
  test_answer_init(&a);
  test_answer_init(&b);
  test_chat_init(&chat, "Write a sentence about the sea.");
  pst_gateway_call call = test_call(smollm2, &chat, &a);
  call.n = 3;
  call.set.temperature = 1;
  call.set.has_seed = true;
  call.set.seed = 7;
  answer_call(shared.gateway, &call, &a);
  call.user = &b;
  answer_call(shared.gateway, &call, &b);
  for (int i = 0; i < 3; i++) assert_string_equal(test_answer_text(&a, i), test_answer_text(&b, i));
  assert_string_not_equal(test_answer_text(&a, 0), test_answer_text(&a, 1));
  assert_int_equal(a.n_finished, 3);
  test_answer_done(&a);
  test_answer_done(&b);
}

static void text_is_left_alone(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer a, b;
  test_answer_init(&a);
  test_answer_init(&b);
  pst_str stop = PST_STR(",");
  pst_gateway_call call = test_call(smollm2, NULL, &a);
  call.kind = PST_GATEWAY_TEXT;
  call.text = PST_STR("One, two, three, four, five,");
  answer_call(shared.gateway, &call, &a);
  assert_non_null(strstr(test_answer_text(&a, 0), "six"));
  assert_true(strncmp(a.completion_id, "cmpl-", 5) == 0);
  call.user = &b;
  call.set.has_stop = true;
  call.set.stop = &stop;
  call.set.n_stop = 1;
  answer_call(shared.gateway, &call, &b);
  assert_string_equal(test_answer_text(&b, 0), " six");
  assert_int_equal(b.finish[0], PST_ENGINE_FINISH_STOP);
  test_answer_done(&a);
  test_answer_done(&b);
}

static void refusals_are_at_once_and_clear(void **state) {
  (void)state;
  test_answer a;
  test_chat chat;
  test_answer_init(&a);
  test_chat_init(&chat, "Hello");
  const struct {
    const char *model;
    int n, code;
    pst_store_purpose purpose;
  } cases[] = {{"no-such-model", 1, PST_E_NOT_FOUND, PST_STORE_PURPOSE_USER},
               {"", 1, PST_E_BAD_INPUT, PST_STORE_PURPOSE_USER},
               {"nobody/gpt", 1, PST_E_NOT_FOUND, PST_STORE_PURPOSE_USER},
               {"/etc/passwd", 1, PST_E_NOT_FOUND, PST_STORE_PURPOSE_USER},
               {smollm2 ? smollm2 : "/x.gguf", 1, PST_E_NOT_FOUND, PST_STORE_PURPOSE_USER}, /* a path, from a user */
               {"no-such-model", 17, PST_E_BAD_INPUT, PST_STORE_PURPOSE_EVAL},
               {"no-such-model", 0, PST_E_BAD_INPUT, PST_STORE_PURPOSE_EVAL}};
  /* The last two are refused before the model is looked for; the path has to come before any test prepares it. */
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    pst_error err = PST_ERROR_INIT;
    pst_gateway_call call = test_call(cases[i].model, &chat, &a);
    call.n = cases[i].n;
    call.purpose = cases[i].purpose;
    assert_int_equal(pst_gateway_chat(shared.gateway, &call, NULL, &err), cases[i].code);
    assert_true(err.message[0] != 0);
  }
  assert_int_equal(a.n_events, 0);
  test_answer_done(&a);
}

static void refuses_what_engines_cannot_do(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer a;
  test_chat chat;
  test_answer_init(&a);
  test_chat_init(&chat, "Hello");
  pst_gateway_call call = test_call(smollm2, &chat, &a);
  pst_wire_request q = {.kind = PST_WIRE_CHAT, .format = PST_WIRE_FORMAT_JSON_OBJECT};
  call.request = &q;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_gateway_chat(shared.gateway, &call, NULL, &err), PST_E_UNSUPPORTED);
  assert_string_equal(err.place, "response_format");
  test_answer_done(&a);
}

static void too_long_a_prompt_is_refused(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer a;
  test_answer_init(&a);
  int32_t *tokens = calloc(9000, sizeof *tokens);
  for (int i = 0; i < 9000; i++) tokens[i] = 100;
  pst_gateway_call call = test_call(smollm2, NULL, &a);
  call.kind = PST_GATEWAY_TEXT;
  call.tokens = tokens;
  call.n_tokens = 9000;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_gateway_chat(shared.gateway, &call, NULL, &err), PST_E_LIMIT);
  assert_non_null(strstr(err.message, "9000 tokens"));
  free(tokens);
  test_answer_done(&a);
}

static void waits_for_a_whole_answer(void **state) {
  (void)state;
  NEED_MODEL();
  pst_gateway_call call = test_call(smollm2, NULL, NULL);
  call.kind = PST_GATEWAY_TEXT;
  call.text = PST_STR("The capital of France is");
  pst_buf out = PST_BUF_INIT;
  pst_gateway_event last;
  char id[64];
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_gateway_chat_wait(shared.gateway, &call, &out, &last, id, &err), 0);
  assert_non_null(strstr(pst_buf_text(&out), "Paris"));
  assert_true(strncmp(id, "cmpl-", 5) == 0);
  assert_true(last.last && last.completion_tokens > 0);
  pst_buf_done(&out);
}

/* ---- cancelling ---------------------------------------------------------------------------------------------------------- */

static void cancelled_by_its_own_callback(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer a;
  test_chat chat;
  test_answer_init(&a);
  test_chat_init(&chat, "Tell me a long story about a fox.");
  pst_gateway_call call = test_call(smollm2, &chat, &a);
  call.stream = true;
  call.set.max_tokens = 2000;
  a.cancel_in = shared.gateway;
  pst_error err = PST_ERROR_INIT;
  pthread_mutex_lock(&a.lock); /* no event before the id is known */
  assert_int_equal(pst_gateway_chat(shared.gateway, &call, &a.cancel_id, &err), 0);
  pthread_mutex_unlock(&a.lock);
  test_answer_wait(&a);
  assert_int_equal(a.error.code, PST_E_CANCELLED);
  assert_true(a.last.completion_tokens > 0 && a.last.completion_tokens < 20);
  test_answer_done(&a);
}

/* Whatever state a call is in, cancelling gives exactly one last event and leaves nothing open. */
static void cancelled_at_any_moment(void **state) {
  (void)state;
  NEED_MODEL();
  test_gateway t = test_gateway_open(NULL); /* the first calls meet an engine that still loads */
  enum { N = 40 };
  static test_answer answers[N];
  test_chat chat;
  test_chat_init(&chat, "Tell me a story.");
  int n_cancelled = 0;
  for (int i = 0; i < N; i++) {
    test_answer_init(&answers[i]);
    pst_gateway_call call = test_call(smollm2, &chat, &answers[i]);
    call.stream = i % 2;
    call.n = 1 + i % 3;
    call.set.max_tokens = 8;
    uint64_t id = 0;
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_gateway_chat(t.gateway, &call, &id, &err), 0);
    int64_t until = pst_clock_us() + (int64_t)pst_random_u64(1, 2, (uint64_t)i) % 30000;
    if (i >= 10)
      while (pst_clock_us() < until) {}
    if (i % 5 != 4) pst_gateway_cancel(t.gateway, id);
    if (i % 5 != 4 && i % 7 == 0) pst_gateway_cancel(t.gateway, id);
    pst_gateway_cancel(t.gateway, 1u << 30); /* unknown: nothing happens */
  }
  for (int i = 0; i < N; i++) test_answer_wait(&answers[i]);
  pst_gateway_stats stats;
  pst_gateway_get_stats(t.gateway, &stats);
  test_gateway_close(&t); /* would hang if a call were still open */
  for (int i = 0; i < N; i++) {
    assert_int_equal(answers[i].n_last, 1);
    assert_int_equal(answers[i].n_after_last, 0);
    bool cancelled = answers[i].error.code == PST_E_CANCELLED;
    assert_true(cancelled || answers[i].error.code == 0);
    if (i % 5 == 4) assert_false(cancelled);
    n_cancelled += cancelled;
    test_answer_done(&answers[i]);
  }
  assert_true(n_cancelled >= 8);
}

static void closing_ends_open_calls(void **state) {
  (void)state;
  NEED_MODEL();
  test_gateway t = test_gateway_open(NULL);
  test_answer a[4];
  test_chat chat;
  test_chat_init(&chat, "Count to one thousand.");
  for (int i = 0; i < 4; i++) {
    test_answer_init(&a[i]);
    pst_gateway_call call = test_call(smollm2, &chat, &a[i]);
    call.set.max_tokens = 4000;
    call.stream = true;
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_gateway_chat(t.gateway, &call, NULL, &err), 0);
  }
  test_gateway_close(&t);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(a[i].n_last, 1);
    assert_int_equal(a[i].error.code, PST_E_CANCELLED);
    test_answer_done(&a[i]);
  }
}

/* ---- books -------------------------------------------------------------------------------------------------------------------- */

typedef struct seen_request {
  int n;
  int64_t cost, prompt_tokens;
  int status;
  char model[256], input[4096], output[4096], finish[16];
} seen_request;

static int see(void *user, const pst_store_request *r) {
  seen_request *s = user;
  s->n++;
  s->cost = r->cost_nusd;
  s->prompt_tokens = r->prompt_tokens;
  s->status = r->status;
  snprintf(s->model, sizeof s->model, "%.*s", (int)r->model.n, r->model.data);
  snprintf(s->input, sizeof s->input, "%.*s", (int)r->input_json.n, r->input_json.data ? r->input_json.data : "");
  snprintf(s->output, sizeof s->output, "%.*s", (int)r->output_json.n, r->output_json.data ? r->output_json.data : "");
  snprintf(s->finish, sizeof s->finish, "%.*s", (int)r->finish.n, r->finish.data ? r->finish.data : "");
  return 0;
}

static seen_request find_record(pst_store *store, const char *completion_id) {
  seen_request s = {0};
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_store_flush(store, &err), 0);
  pst_store_request_filter filter = PST_STORE_REQUEST_FILTER_INIT;
  filter.completion_id = pst_str_from(completion_id);
  filter.with_content = true;
  assert_int_equal(pst_store_request_each(store, &filter, see, &s, &err), 0);
  return s;
}

static void only_users_are_recorded(void **state) {
  (void)state;
  NEED_MODEL();
  test_gateway t = test_gateway_open(NULL);
  pst_error err = PST_ERROR_INIT;
  test_answer user, eval;
  test_chat chat;
  test_answer_init(&user);
  test_answer_init(&eval);
  test_chat_init(&chat, "Say hello.");
  assert_int_equal(pst_store_machine_price_set(t.store, PST_STORE_NUSD_PER_USD, &err), 0);
  assert_int_equal(pst_gateway_prepare_model(t.gateway, smollm2, NULL, &err), 0);
  pst_gateway_call call = test_call(smollm2, &chat, &user);
  call.purpose = PST_STORE_PURPOSE_USER;
  call.consent.keep = PST_STORE_KEEP_CONTENT;
  call.stream = true;
  answer_call(t.gateway, &call, &user);
  call.user = &eval;
  call.purpose = PST_STORE_PURPOSE_EVAL;
  answer_call(t.gateway, &call, &eval);
  seen_request s = find_record(t.store, user.completion_id);
  assert_int_equal(s.n, 1);
  assert_int_equal(s.status, 200);
  assert_int_equal(s.prompt_tokens, user.last.prompt_tokens);
  assert_true(s.cost > 0);
  assert_int_equal(s.cost, user.last.cost_nusd);
  assert_string_equal(s.model, smollm2);
  assert_non_null(strstr(s.input, "Say hello."));
  assert_non_null(strstr(s.output, "\"text\":"));
  assert_int_equal(find_record(t.store, eval.completion_id).n, 0);
  test_answer_done(&user);
  test_answer_done(&eval);
  test_gateway_close(&t);
}

/* The sum of what calls cost is the price of the time the engine worked. */
static void local_cost_is_the_share_of_busy_time(void **state) {
  (void)state;
  NEED_MODEL();
  test_gateway t = test_gateway_open(NULL);
  pst_error err = PST_ERROR_INIT;
  enum { N = 12 };
  static test_answer answers[N];
  test_chat chat;
  test_chat_init(&chat, "Name an animal.");
  assert_int_equal(pst_store_machine_price_set(t.store, 3600 * PST_STORE_NUSD_PER_USD, &err),
                   0); /* 1,000 nusd per us */
  assert_int_equal(pst_gateway_prepare_model(t.gateway, smollm2, NULL, &err), 0);
  int64_t sum = 0;
  for (int i = 0; i < N; i++) {
    test_answer_init(&answers[i]);
    pst_gateway_call call = test_call(smollm2, &chat, &answers[i]);
    assert_int_equal(pst_gateway_chat(t.gateway, &call, NULL, &err), 0);
  }
  for (int i = 0; i < N; i++) {
    test_answer_wait(&answers[i]);
    sum += answers[i].last.cost_nusd;
    test_answer_done(&answers[i]);
  }
  pst_gateway_stats stats;
  int64_t busy;
  int n_tries = 0;
  do { /* the engine shows its counters after its callbacks have returned */
    pst_gateway_get_stats(t.gateway, &stats);
    busy = stats.engines.busy_us * 1000;
    if (n_tries++) usleep(10000);
  } while (sum > busy + N * 1000 && n_tries < 500);
  assert_true(sum >= busy && sum <= busy + N * 1000); /* each is rounded up to a microsecond */
  test_gateway_close(&t);
}

/* ---- engines -------------------------------------------------------------------------------------------------------------------- */

static int list_id(void *user, const char *id, const char *owner) {
  pst_buf_printf(user, "%s by %s;", id, owner);
  return 0;
}

static void lists_what_a_client_may_name(void **state) {
  (void)state;
  test_gateway t = test_gateway_open(NULL);
  pst_error err = PST_ERROR_INIT;
  pst_buf list = PST_BUF_INIT;
  pst_store_price price = {1, PST_STORE_NO_LIMIT, 2};
  assert_int_equal(
      pst_gateway_provider_set(t.store, PST_STR("acme"), PST_STR("http://127.0.0.1:1/v1/"), PST_STR(""), &err), 0);
  assert_int_equal(pst_store_price_set(t.store, PST_STR("acme"), PST_STR("big"), price, &err), 0);
  assert_int_equal(pst_store_price_set(t.store, PST_STR("acme"), PST_STR("*"), price, &err), 0);
  assert_int_equal(pst_gateway_models_each(t.gateway, list_id, &list, &err), 0);
  assert_string_equal(pst_buf_text(&list), "acme/big by acme;");
  pst_buf_done(&list);
  test_gateway_close(&t);
}

/* It is refused at once or by an event, as the loading thread is fast or slow. */
static void a_file_that_is_no_model_leaves_nothing(void **state) {
  (void)state;
  test_gateway t = test_gateway_open(NULL);
  const char *path = test_temp_path(t.home, "broken.gguf");
  test_temp_write(path, "GGUF\3\0\0\0 and then nothing", 24);
  test_chat chat;
  test_chat_init(&chat, "Hello");
  for (int round = 0; round < 2; round++) { /* a failure is not kept: the second call tries again */
    test_answer a;
    test_answer_init(&a);
    pst_gateway_call call = test_call(path, &chat, &a);
    pst_error err = PST_ERROR_INIT;
    if (pst_gateway_chat(t.gateway, &call, NULL, &err) == 0) {
      test_answer_wait(&a);
      err = a.error;
    }
    assert_true(err.code == PST_E_LIMIT || err.code == PST_E_BAD_INPUT);
    test_answer_done(&a);
  }
  pst_gateway_stats stats;
  pst_gateway_get_stats(t.gateway, &stats);
  assert_int_equal(stats.n_engines, 0);
  test_gateway_close(&t);
}

static void memory_that_does_not_suffice_is_said(void **state) {
  (void)state;
  NEED_MODEL();
  pst_gateway_options o = {.memory_bytes = 1 << 20};
  test_gateway t = test_gateway_open(&o);
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_gateway_prepare_model(t.gateway, smollm2, NULL, &err), PST_E_LIMIT);
  assert_non_null(strstr(err.message, "limit is 1 MiB"));
  test_gateway_close(&t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(refusals_are_at_once_and_clear),
      cmocka_unit_test(chat_by_path),
      cmocka_unit_test(streams_and_counts_tokens),
      cmocka_unit_test(several_answers_differ_by_seed_and_choice),
      cmocka_unit_test(text_is_left_alone),
      cmocka_unit_test(refuses_what_engines_cannot_do),
      cmocka_unit_test(too_long_a_prompt_is_refused),
      cmocka_unit_test(waits_for_a_whole_answer),
      cmocka_unit_test(cancelled_by_its_own_callback),
      cmocka_unit_test(cancelled_at_any_moment),
      cmocka_unit_test(closing_ends_open_calls),
      cmocka_unit_test(only_users_are_recorded),
      cmocka_unit_test(local_cost_is_the_share_of_busy_time),
      cmocka_unit_test(lists_what_a_client_may_name),
      cmocka_unit_test(a_file_that_is_no_model_leaves_nothing),
      cmocka_unit_test(memory_that_does_not_suffice_is_said),
  };
  return cmocka_run_group_tests(tests, open_shared, close_shared);
}
