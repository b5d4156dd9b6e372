/* Answers to clients: the exact JSON, read back by the other direction where it has one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <penstock/wire.h>

static void expect(pst_buf *out, const char *text) {
  assert_int_equal(pst_buf_status(out), 0);
  assert_string_equal(pst_buf_text(out), text);
  pst_buf_done(out);
}

static const pst_wire_top tops[] = {{{"\xe2\x82", 2}, -0.5}, {{"\xe2", 1}, -1.5}, {{"a", 1}, -HUGE_VAL}};
static const pst_wire_token tokens[] = {
    {{"h\xc3\xa9", 3}, -0.25, NULL, 0}, {{"\xe2\x82", 2}, -0.5, tops, 3}, {{"\xac", 1}, 1e-9, NULL, 0}};

static pst_wire_answer answer(pst_wire_kind kind, const pst_wire_choice *choices, size_t n) {
  return (pst_wire_answer){.kind = kind,
                           .id = PST_STR("id-1"),
                           .created = 1700000000,
                           .model = PST_STR("m"),
                           .choices = choices,
                           .n_choices = n};
}

static void test_chat(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  pst_wire_usage usage = {10, 5, 4};
  pst_wire_choice choice = {.index = 0, .text = PST_STR("say \"hi\"\n"), .finish = PST_WIRE_FINISH_LENGTH};
  pst_wire_answer a = answer(PST_WIRE_CHAT, &choice, 1);
  a.usage = &usage;
  pst_wire_answer_write(&a, &out);
  expect(
      &out,
      "{\"id\":\"id-1\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":"
      "{\"role\":\"assistant\",\"content\":\"say \\\"hi\\\"\\n\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"length\"}],"
      "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,\"total_tokens\":15,\"prompt_tokens_details\":{\"cached_tokens\":4}}}");
  pst_chat_tool_call call = {.id = PST_STR("c1"), .name = PST_STR("f"), .arguments = PST_STR("{}")};
  pst_wire_choice with_call = {.tool_calls = &call, .n_tool_calls = 1, .finish = PST_WIRE_FINISH_TOOL_CALLS};
  a = answer(PST_WIRE_CHAT, &with_call, 1);
  pst_wire_answer_write(&a, &out);
  expect(
      &out,
      "{\"id\":\"id-1\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":"
      "{\"role\":\"assistant\",\"content\":null,\"refusal\":null,\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\",\"function\":"
      "{\"name\":\"f\",\"arguments\":\"{}\"}}]},\"logprobs\":null,\"finish_reason\":\"tool_calls\"}]}");
}

static void test_chunks(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  pst_wire_usage usage = {1, 2, 0};
  pst_wire_choice choice = {.index = 1, .text = PST_STR("x")};
  pst_wire_answer a = answer(PST_WIRE_CHAT, &choice, 1);
#define HEAD \
  "data: {\"id\":\"id-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\"choices\":"
  pst_wire_chunk_write(&a, &out);
  expect(&out, HEAD "[{\"index\":1,\"delta\":{\"content\":\"x\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n");
  a.include_usage = true;
  a.first = true;
  choice.text = PST_STR("");
  pst_wire_chunk_write(&a, &out);
  expect(
      &out, HEAD
      "[{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n");
  a.first = false;
  choice.finish = PST_WIRE_FINISH_STOP;
  pst_wire_chunk_write(&a, &out);
  expect(&out, HEAD "[{\"index\":1,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":null}\n\n");
  a.n_choices = 0;
  a.usage = &usage;
  pst_wire_chunk_write(&a, &out);
  expect(
      &out, HEAD
      "[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\n");
  pst_wire_stream_end(&out);
  expect(&out, "data: [DONE]\n\n");
}

static void test_chat_logprobs(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  pst_wire_choice choice = {.has_logprobs = true, .tokens = tokens, .n_tokens = 3, .finish = PST_WIRE_FINISH_STOP};
  pst_wire_answer a = answer(PST_WIRE_CHAT, &choice, 1);
  pst_wire_answer_write(&a, &out);
  pst_wire_reply reply = {0};
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_wire_reply_parse(PST_WIRE_CHAT, false, pst_buf_str(&out), &reply, &err), 0);
  const pst_wire_reply_choice *c = &reply.choices[0];
  assert_int_equal(c->n_tokens, 3);
  for (size_t i = 0; i < 3; i++) {
    assert_true(
        pst_str_equal(c->tokens[i].bytes, tokens[i].bytes)); /* through "bytes", also where the text is no UTF-8 */
    assert_true(fabs(c->tokens[i].logprob - PST_MIN(tokens[i].logprob, 0)) < 1e-12);
  }
  assert_int_equal(c->tokens[1].n_top, 3);
  assert_true(pst_str_equal(c->tokens[1].top[1].bytes, tops[1].bytes));
  assert_true(c->tokens[1].top[2].logprob == -9999.0);
  pst_wire_reply_done(&reply);
  pst_buf_done(&out);
}

static void test_text_logprobs(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  pst_wire_choice choice = {.text = PST_STR("h\xc3\xa9\xe2\x82\xac"),
                            .has_logprobs = true,
                            .tokens = tokens,
                            .n_tokens = 3,
                            .text_offset = 10};
  pst_wire_answer a = answer(PST_WIRE_TEXT, &choice, 1);
  pst_wire_answer_write(&a, &out);
  /* The two broken tokens of `tops` read the same: the likelier one stays. */
  expect(
      &out,
      "{\"id\":\"id-1\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"text\":\"h\xc3\xa9\xe2\x82\xac\","
      "\"logprobs\":{\"text_offset\":[10,12,13],\"token_logprobs\":[-0.25,-0.5,0],\"tokens\":[\"h\xc3\xa9\",\"\xef\xbf\xbd\",\"\xef\xbf\xbd\"],"
      "\"top_logprobs\":[{},{\"\xef\xbf\xbd\":-0.5,\"a\":-9999},{}]},\"finish_reason\":null}]}");
  assert_int_equal(pst_wire_characters(choice.text), 3);
}

static void test_errors(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  static const struct {
    int code, status;
    const char *type, *name;
    bool retry;
  } table[] = {{PST_E_BAD_INPUT, 400, "invalid_request_error", NULL, false},
               {PST_E_UNSUPPORTED, 400, "invalid_request_error", "unsupported_value", false},
               {PST_E_LIMIT, 400, "invalid_request_error", "limit_exceeded", false},
               {PST_E_DENIED, 401, "invalid_request_error", "invalid_api_key", false},
               {PST_E_NOT_FOUND, 404, "invalid_request_error", "model_not_found", false},
               {PST_E_BUSY, 429, "rate_limit_error", "rate_limit_exceeded", true},
               {PST_E_BUDGET, 429, "insufficient_quota", "insufficient_quota", false},
               {PST_E_UPSTREAM, 502, "upstream_error", "upstream_error", false},
               {PST_E_NOMEM, 503, "server_error", "overloaded", true},
               {PST_E_TIMEOUT, 504, "server_error", "timeout", false},
               {PST_E_INTERNAL, 500, "server_error", "internal_error", false},
               {PST_E_CORRUPT, 500, "server_error", "internal_error", false}};
  for (size_t i = 0; i < PST_ARRAY_LEN(table); i++) {
    pst_wire_error e = pst_wire_error_from(table[i].code);
    assert_int_equal(e.status, table[i].status);
    assert_string_equal(e.type, table[i].type);
    assert_int_equal(e.retry_after_s > 0, table[i].retry);
    if (table[i].name)
      assert_string_equal(e.code, table[i].name);
    else
      assert_null(e.code);
  }
  pst_wire_error e = pst_wire_error_from(PST_E_BAD_INPUT);
  pst_wire_error_write(&e, "broken \"thing\"", "messages[0].role", &out);
  expect(
      &out,
      "{\"error\":{\"message\":\"broken \\\"thing\\\"\",\"type\":\"invalid_request_error\",\"param\":\"messages[0].role\",\"code\":null}}");
  e = pst_wire_error_of_status(413);
  assert_int_equal(e.status, 413);
  pst_wire_error_write(&e, "too long", "", &out);
  expect(
      &out,
      "{\"error\":{\"message\":\"too long\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"request_too_large\"}}");
  assert_int_equal(pst_wire_error_of_status(505).status, 505);
}

static void test_models(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  pst_wire_model models[] = {{PST_STR("a"), PST_STR("local"), 5}, {PST_STR("b/c"), PST_STR("x"), 6}};
  pst_wire_models_write(models, 2, &out);
  expect(&out,
         "{\"object\":\"list\",\"data\":[{\"id\":\"a\",\"object\":\"model\",\"created\":5,\"owned_by\":\"local\"},"
         "{\"id\":\"b/c\",\"object\":\"model\",\"created\":6,\"owned_by\":\"x\"}]}");
  pst_wire_models_write(NULL, 0, &out);
  expect(&out, "{\"object\":\"list\",\"data\":[]}");
  pst_wire_model_write(&models[0], &out);
  expect(&out, "{\"id\":\"a\",\"object\":\"model\",\"created\":5,\"owned_by\":\"local\"}");
}

static void test_finish_names(void **state) {
  (void)state;
  for (int i = PST_WIRE_FINISH_STOP; i <= PST_WIRE_FINISH_CONTENT_FILTER; i++)
    assert_int_equal(pst_wire_finish_from(pst_str_from(pst_wire_finish_name((pst_wire_finish)i))), i);
  assert_null(pst_wire_finish_name(PST_WIRE_FINISH_NONE));
  assert_int_equal(pst_wire_finish_from(PST_STR("")), PST_WIRE_FINISH_NONE);
  assert_int_equal(pst_wire_finish_from(PST_STR("eos")), PST_WIRE_FINISH_STOP);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_chat),          cmocka_unit_test(test_chunks), cmocka_unit_test(test_chat_logprobs),
      cmocka_unit_test(test_text_logprobs), cmocka_unit_test(test_errors), cmocka_unit_test(test_models),
      cmocka_unit_test(test_finish_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
