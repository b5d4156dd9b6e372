/* Towards providers: what is written parses back to the same request; what they answer is read, or refused with a reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <penstock/wire.h>

static void equals(pst_str s, const char *text) {
  assert_int_equal(s.n, strlen(text));
  if (s.n) assert_memory_equal(s.data, text, s.n);
}

/* Parses, writes, parses, writes: the two texts must agree, and carry `needles`. */
static void round_trip(pst_wire_kind kind, const char *body, bool stream, const char *const *needles, size_t n) {
  pst_wire_request first = {0}, second = {0};
  pst_error err = PST_ERROR_INIT;
  pst_buf a = PST_BUF_INIT, b = PST_BUF_INIT;
  assert_int_equal(pst_wire_request_parse(kind, pst_str_from(body), &first, &err), 0);
  assert_int_equal(pst_wire_upstream_write(&first, PST_STR("other"), stream, &a, &err), 0);
  int rc = pst_wire_request_parse(kind, pst_buf_str(&a), &second, &err);
  if (rc) print_message("%s\n%s: %s\n", a.data, err.place, err.message);
  assert_int_equal(rc, 0);
  equals(second.model, "other");
  assert_int_equal(second.stream, stream);
  assert_int_equal(second.include_usage, stream);
  assert_int_equal(pst_wire_upstream_write(&second, PST_STR("other"), stream, &b, &err), 0);
  assert_string_equal(a.data, b.data);
  for (size_t i = 0; i < n; i++) {
    if (!strstr(a.data, needles[i])) print_message("%s\nlacks %s\n", a.data, needles[i]);
    assert_non_null(strstr(a.data, needles[i]));
  }
  pst_wire_request_done(&first);
  pst_wire_request_done(&second);
  pst_buf_done(&a);
  pst_buf_done(&b);
}

static void test_write(void **state) {
  (void)state;
  static const char *const chat[] = {"\"max_tokens\":7",
                                     "\"temperature\":0.5",
                                     "\"top_k\":3",
                                     "\"seed\":-2",
                                     "\"stop\":[\"a\"]",
                                     "\"n\":2",
                                     "\"logit_bias\":{\"5\":-1}",
                                     "\"logprobs\":true,\"top_logprobs\":2",
                                     "\"response_format\":{\"type\":\"json_object\"}",
                                     "\"tool_choice\":\"required\"",
                                     "\"tool_call_id\":\"c1\"",
                                     "\"content\":null",
                                     "\"image_url\"",
                                     "\"parallel_tool_calls\":false",
                                     "\"user\":\"u\"",
                                     "\"safety_identifier\":\"i\"",
                                     "\"name\":\"ann\""};
  round_trip(
      PST_WIRE_CHAT,
      "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"name\":\"ann\",\"content\":[{\"type\":\"text\",\"text\":\"t\"},"
      "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:,\"}}]},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\","
      "\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"r\"}],\"max_tokens\":7,\"temperature\":0.5,"
      "\"top_k\":3,\"seed\":-2,\"stop\":\"a\",\"n\":2,\"logit_bias\":{\"5\":-1},\"logprobs\":true,\"top_logprobs\":2,\"response_format\":{\"type\":\"json_object\"},"
      "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"tool_choice\":\"required\",\"parallel_tool_calls\":false,\"user\":\"u\",\"safety_identifier\":\"i\","
      "\"top_p\":1,\"min_p\":0,\"presence_penalty\":1,\"frequency_penalty\":1,\"repetition_penalty\":1}",
      true, chat, PST_ARRAY_LEN(chat));
  static const char *const newer[] = {"\"max_completion_tokens\":9", "\"reasoning_effort\":\"low\""};
  round_trip(PST_WIRE_CHAT,
             "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"t\"}],\"max_tokens\":7,"
             "\"max_completion_tokens\":9,\"reasoning_effort\":\"low\"}",
             false, newer, PST_ARRAY_LEN(newer));
  static const char *const schema[] = {
      "\"json_schema\":{\"name\":\"s\",\"strict\":false,\"schema\":{\"type\":\"object\"}}",
      "\"tool_choice\":{\"type\":\"function\""};
  round_trip(
      PST_WIRE_CHAT,
      "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"t\"}],\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"s\","
      "\"schema\":{\"type\":\"object\"}}},\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}}",
      false, schema, PST_ARRAY_LEN(schema));
  static const char *const text[] = {"\"prompt\":\"once\"", "\"logprobs\":0"};
  round_trip(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":\"once\",\"logprobs\":0}", false, text, PST_ARRAY_LEN(text));
  static const char *const lists[] = {"\"prompt\":[[1],[2,3]]"};
  round_trip(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[[1],[2,3]]}", true, lists, PST_ARRAY_LEN(lists));
  static const char *const minimal[] = {"{\"model\":\"other\",\"messages\":[{\"role\":\"user\",\"content\":\"t\"}]}"};
  round_trip(PST_WIRE_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"t\"}]}", false, minimal,
             1);
  pst_wire_prompt mixed[2] = {{.text = PST_STR("a")}, {.tokens = (const int32_t[]){1}, .n_tokens = 1}};
  pst_wire_request q = {.kind = PST_WIRE_TEXT, .prompts = mixed, .n_prompts = 2, .n_logprobs = -1};
  pst_buf out = PST_BUF_INIT;
  assert_int_equal(pst_wire_upstream_write(&q, PST_STR("m"), false, &out, NULL), PST_E_UNSUPPORTED);
  pst_buf_done(&out);
}

static void test_reply(void **state) {
  (void)state;
  pst_wire_reply r = {0};
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(
      pst_wire_reply_parse(
          PST_WIRE_CHAT, false,
          PST_STR(
              "{\"id\":\"x\",\"model\":\"gpt\",\"choices\":[{\"index\":1,\"message\":{\"role\":\"assistant\",\"content\":\"hi\",\"reasoning_content\":"
              "\"hm\"},\"finish_reason\":\"stop\"},{\"message\":{\"content\":null,\"tool_calls\":[{\"id\":\"c\",\"function\":{\"name\":\"f\","
              "\"arguments\":\"{}\"}}]},\"finish_reason\":\"tool_calls\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,"
              "\"prompt_tokens_details\":{\"cached_tokens\":2}}}"),
          &r, &err),
      0);
  equals(r.id, "x");
  equals(r.model, "gpt");
  assert_int_equal(r.n_choices, 2);
  assert_int_equal(r.choices[0].index, 1);
  equals(r.choices[0].text, "hi");
  equals(r.choices[0].reasoning, "hm");
  assert_int_equal(r.choices[0].finish, PST_WIRE_FINISH_STOP);
  equals(r.choices[1].tool_calls[0].name, "f");
  assert_true(r.has_usage);
  assert_int_equal(r.usage.prompt_tokens, 3);
  assert_int_equal(r.usage.cached_tokens, 2);
  pst_wire_reply_done(&r);
  assert_int_equal(
      pst_wire_reply_parse(
          PST_WIRE_TEXT, false,
          PST_STR(
              "{\"choices\":[{\"text\":\"t\",\"finish_reason\":\"length\",\"logprobs\":{\"tokens\":[\"a\",\"b\"],\"token_logprobs\":[null,-1],"
              "\"top_logprobs\":[null,{\"b\":-1,\"c\":-2}],\"text_offset\":[0,1]}}]}"),
          &r, &err),
      0);
  equals(r.choices[0].text, "t");
  assert_int_equal(r.choices[0].n_tokens, 2);
  assert_int_equal(r.choices[0].tokens[1].n_top, 2);
  assert_true(r.choices[0].tokens[1].logprob == -1);
  assert_false(r.has_usage);
  pst_wire_reply_done(&r);
}

static void test_chunks(void **state) {
  (void)state;
  pst_wire_reply r = {0};
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(
      pst_wire_reply_parse(
          PST_WIRE_CHAT, true,
          PST_STR("{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}],\"usage\":null}"),
          &r, &err),
      0);
  equals(r.choices[0].text, "a");
  assert_int_equal(r.choices[0].finish, PST_WIRE_FINISH_NONE);
  pst_wire_reply_done(&r);
  assert_int_equal(
      pst_wire_reply_parse(
          PST_WIRE_CHAT, true,
          PST_STR("{\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":3,\"function\":{\"arguments\":\"{\"}}]}}]}"),
          &r, &err),
      0);
  assert_int_equal(r.choices[0].tool_call_index[0], 3);
  pst_wire_reply_done(&r);
  assert_int_equal(pst_wire_reply_parse(
                       PST_WIRE_CHAT, true,
                       PST_STR("{\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}"), &r, &err),
                   0);
  assert_int_equal(r.n_choices, 0);
  assert_int_equal(r.usage.completion_tokens, 2);
  pst_wire_reply_done(&r);
}

static void test_bad_replies(void **state) {
  (void)state;
  static const char *const bad[] = {"",
                                    "<html>502</html>",
                                    "[]",
                                    "{}",
                                    "{\"choices\":{}}",
                                    "{\"choices\":[]}",
                                    "{\"choices\":[1]}",
                                    "{\"choices\":[{\"index\":-1,\"message\":{}}]}",
                                    "{\"choices\":[{\"index\":0}]}",
                                    "{\"choices\":[{\"message\":\"x\"}]}",
                                    "{\"error\":{\"message\":\"no credit\"}}",
                                    "{\"error\":\"boom\"}"};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++) {
    pst_wire_reply r = {0};
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_wire_reply_parse(PST_WIRE_CHAT, false, pst_str_from(bad[i]), &r, &err), PST_E_UPSTREAM);
    assert_true(err.message[0]);
    assert_null(r.arena);
  }
}

static void test_error_statuses(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(
      pst_wire_upstream_error(429, PST_STR("{\"error\":{\"message\":\"slow down\",\"type\":\"rate\"}}"), &err),
      PST_E_BUSY);
  assert_non_null(strstr(err.message, "429: slow down"));
  assert_int_equal(
      pst_wire_upstream_error(429, PST_STR("{\"error\":{\"message\":\"m\",\"code\":\"insufficient_quota\"}}"), &err),
      PST_E_BUDGET);
  assert_int_equal(pst_wire_upstream_error(400, PST_STR("{\"error\":\"plain\"}"), &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "plain"));
  assert_int_equal(pst_wire_upstream_error(401, PST_STR("{\"error\":{\"message\":\"bad key: sk-secret\"}}"), &err),
                   PST_E_UPSTREAM);
  assert_null(strstr(err.message, "sk-"));
  assert_int_equal(pst_wire_upstream_error(404, PST_STR("{\"message\":\"gone\"}"), &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_wire_upstream_error(503, PST_STR("<html>"), &err), PST_E_BUSY);
  assert_int_equal(pst_wire_upstream_error(500, PST_STR(""), &err), PST_E_UPSTREAM);
  assert_string_equal(err.message, "the provider answered 500");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_write),       cmocka_unit_test(test_reply),          cmocka_unit_test(test_chunks),
      cmocka_unit_test(test_bad_replies), cmocka_unit_test(test_error_statuses),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
