/* Requests of clients into structs: every field, every refusal with its param. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <penstock/wire.h>

#define M "\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static pst_wire_request parse(pst_wire_kind kind, const char *body) {
  pst_wire_request q = {0};
  pst_error err = PST_ERROR_INIT;
  int rc = pst_wire_request_parse(kind, pst_str_from(body), &q, &err);
  if (rc) print_message("%s: %s\n", err.place, err.message);
  assert_int_equal(rc, 0);
  return q;
}

static void refuse(pst_wire_kind kind, const char *body, int code, const char *param) {
  pst_wire_request q = {0};
  pst_error err = PST_ERROR_INIT;
  int rc = pst_wire_request_parse(kind, pst_str_from(body), &q, &err);
  if (rc != code || strcmp(err.place, param) != 0) print_message("%s -> %d %s: %s\n", body, rc, err.place, err.message);
  assert_int_equal(rc, code);
  assert_int_equal(err.code, code);
  assert_string_equal(err.place, param);
  assert_true(err.message[0]);
  assert_null(q.arena);
}

static void equals(pst_str s, const char *text) {
  assert_int_equal(s.n, strlen(text));
  if (s.n) assert_memory_equal(s.data, text, s.n);
}

static void test_defaults(void **state) {
  (void)state;
  pst_wire_request q = parse(PST_WIRE_CHAT, "{" M "}");
  equals(q.model, "m");
  assert_int_equal(q.chat.n_messages, 1);
  assert_int_equal(q.chat.messages[0].role, PST_CHAT_USER);
  assert_true(q.chat.messages[0].has_content);
  equals(q.chat.messages[0].content, "hi");
  assert_true(q.chat.add_generation_prompt);
  assert_null(q.chat.tools);
  assert_int_equal(q.n, 1);
  assert_int_equal(q.n_logprobs, -1);
  assert_false(q.stream || q.include_usage || q.has_max_tokens || q.has_temperature || q.has_top_p || q.has_top_k ||
               q.has_min_p || q.has_seed || q.has_stop || q.has_presence_penalty || q.has_frequency_penalty ||
               q.has_repetition_penalty);
  assert_int_equal(q.tool_choice, PST_WIRE_TOOLS_NONE);
  pst_wire_request_done(&q);
  pst_wire_request_done(&q); /* twice is fine */
}

static void test_all_fields(void **state) {
  (void)state;
  pst_wire_request q = parse(
      PST_WIRE_CHAT,
      "{" M
      ",\"max_tokens\":5,\"max_completion_tokens\":7,\"temperature\":0.5,\"top_p\":0.25,\"top_k\":40,\"min_p\":0.125,\"n\":3,"
      "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"x\":1},\"stop\":[\"a\",\"bc\"],\"seed\":-2,\"logprobs\":true,"
      "\"top_logprobs\":4,\"logit_bias\":{\"12\":-100,\"7\":1.5},\"presence_penalty\":-1.5,\"frequency_penalty\":2,"
      "\"repetition_penalty\":1.25,\"user\":\"u\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"s\",\"strict\":true,"
      "\"schema\":{\"type\":\"object\"}}},\"metadata\":{\"a\":\"b\"},\"chat_template_kwargs\":{\"enable_thinking\":false},"
      "\"documents\":[{}],\"some_new_field\":{\"x\":[1]},\"service_tier\":null}");
  assert_int_equal(q.max_tokens, 7);
  assert_true(q.has_max_tokens && q.has_temperature && q.has_top_p && q.has_top_k && q.has_min_p && q.has_seed &&
              q.has_stop);
  assert_true(q.temperature == 0.5 && q.top_p == 0.25 && q.min_p == 0.125 && q.presence_penalty == -1.5 &&
              q.frequency_penalty == 2 && q.repetition_penalty == 1.25);
  assert_int_equal(q.top_k, 40);
  assert_int_equal(q.n, 3);
  assert_true(q.stream && q.include_usage);
  assert_int_equal(q.n_stop, 2);
  equals(q.stop[1], "bc");
  assert_true(q.seed == (uint64_t)-2);
  assert_int_equal(q.n_logprobs, 4);
  assert_int_equal(q.n_bias, 2);
  assert_int_equal(q.bias[0].token, 12);
  assert_true(q.bias[0].bias == -100.0f && q.bias[1].bias == 1.5f);
  equals(q.user, "u");
  assert_int_equal(q.format, PST_WIRE_FORMAT_JSON_SCHEMA);
  equals(q.schema_name, "s");
  assert_true(q.schema_strict);
  assert_int_equal(pst_json_typeof(q.schema), PST_JSON_OBJECT);
  assert_non_null(q.metadata);
  assert_int_equal(pst_json_typeof(pst_json_get(q.chat.variables, "enable_thinking")), PST_JSON_BOOL);
  assert_int_equal(pst_json_size(q.chat.documents), 1);
  pst_wire_request_done(&q);
  q = parse(
      PST_WIRE_CHAT,
      "{" M
      ",\"stop\":\"x\",\"top_k\":-1,\"logprobs\":true,\"temperature\":null,\"n\":null,\"stop_x\":1,\"max_tokens\":3.0}");
  assert_int_equal(q.n_stop, 1);
  assert_int_equal(q.top_k, 0);
  assert_int_equal(q.n_logprobs, 0);
  assert_false(q.has_temperature);
  assert_int_equal(q.max_tokens, 3);
  pst_wire_request_done(&q);
}

static void test_messages(void **state) {
  (void)state;
  pst_wire_request q = parse(
      PST_WIRE_CHAT,
      "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"be brief\"},{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"d\"}]},"
      "{\"role\":\"user\",\"name\":\"ann\",\"content\":[{\"type\":\"text\",\"text\":\"what\"},{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:,\"}}]},"
      "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\": 1}\"}},"
      "{\"id\":\"c2\",\"type\":\"function\",\"function\":{\"name\":\"g\",\"arguments\":\"not json\"}}]},"
      "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"42\"},{\"role\":\"assistant\",\"content\":\"ok\",\"reasoning_content\":\"hm\",\"refusal\":null},"
      "{\"role\":\"user\",\"content\":\"\",\"my_flag\":true}],"
      "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}},"
      "\"parallel_tool_calls\":false}");
  const pst_chat_message *m = q.chat.messages;
  assert_int_equal(q.chat.n_messages, 7);
  assert_int_equal(m[1].role, PST_CHAT_DEVELOPER);
  assert_int_equal(m[1].n_parts, 1);
  equals(m[1].parts[0].text, "d");
  equals(m[2].name, "ann");
  assert_int_equal(m[2].parts[1].kind, PST_CHAT_PART_JSON);
  assert_non_null(pst_json_get(m[2].parts[1].json, "image_url"));
  assert_false(m[3].has_content);
  assert_int_equal(m[3].n_tool_calls, 2);
  equals(m[3].tool_calls[0].id, "c1");
  assert_int_equal(pst_json_int(pst_json_get(m[3].tool_calls[0].arguments_json, "x"), 0), 1);
  equals(m[3].tool_calls[1].arguments, "not json");
  assert_null(m[3].tool_calls[1].arguments_json);
  equals(m[4].tool_call_id, "c1");
  assert_true(m[5].has_reasoning);
  equals(m[5].reasoning, "hm");
  assert_null(m[5].extra);
  assert_true(m[6].has_content);
  assert_int_equal(m[6].content.n, 0);
  assert_true(pst_json_bool(pst_json_get(m[6].extra, "my_flag"), false));
  assert_int_equal(q.tool_choice, PST_WIRE_TOOLS_NAMED);
  equals(q.tool_name, "f");
  assert_false(q.parallel_tool_calls);
  assert_int_equal(pst_json_size(q.chat.tools), 1);
  pst_wire_request_done(&q);
}

static void test_refusals(void **state) {
  (void)state;
  static const struct {
    const char *body;
    int code;
    const char *param;
  } cases[] = {
      {"", PST_E_BAD_INPUT, ""},
      {"{", PST_E_BAD_INPUT, ""},
      {"[]", PST_E_BAD_INPUT, ""},
      {"{}", PST_E_BAD_INPUT, "model"},
      {"{\"model\":\"\",\"messages\":[]}", PST_E_BAD_INPUT, "model"},
      {"{\"model\":7}", PST_E_BAD_INPUT, "model"},
      {"{\"model\":\"m\",\"model\":\"m\"}", PST_E_BAD_INPUT, ""},
      {"{\"model\":\"m\"}", PST_E_BAD_INPUT, "messages"},
      {"{\"model\":\"m\",\"messages\":[]}", PST_E_BAD_INPUT, "messages"},
      {"{\"model\":\"m\",\"messages\":\"hi\"}", PST_E_BAD_INPUT, "messages"},
      {"{\"model\":\"m\",\"messages\":[1]}", PST_E_BAD_INPUT, "messages[0]"},
      {"{\"model\":\"m\",\"messages\":[{}]}", PST_E_BAD_INPUT, "messages[0].role"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"king\",\"content\":\"\"}]}", PST_E_BAD_INPUT, "messages[0].role"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\"}]}", PST_E_BAD_INPUT, "messages[0].content"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":3}]}", PST_E_BAD_INPUT, "messages[0].content"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[]}]}", PST_E_BAD_INPUT, "messages[0].content"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", PST_E_BAD_INPUT,
       "messages[0].content[0].text"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"hologram\"}]}]}", PST_E_BAD_INPUT,
       "messages[0].content[0].type"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"image_url\"}]}]}", PST_E_BAD_INPUT,
       "messages[0].content[0].type"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"tool\",\"content\":\"\"}]}", PST_E_BAD_INPUT,
       "messages[0].tool_call_id"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\",\"tool_calls\":[]}]}", PST_E_BAD_INPUT,
       "messages[0].tool_calls"},
      {"{\"model\":\"m\",\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}]}",
       PST_E_BAD_INPUT, "messages[0].tool_calls[0].function.arguments"},
      {"{" M ",\"temperature\":2.1}", PST_E_BAD_INPUT, "temperature"},
      {"{" M ",\"temperature\":\"hot\"}", PST_E_BAD_INPUT, "temperature"},
      {"{" M ",\"top_p\":-0.1}", PST_E_BAD_INPUT, "top_p"},
      {"{" M ",\"min_p\":2}", PST_E_BAD_INPUT, "min_p"},
      {"{" M ",\"top_k\":1.5}", PST_E_BAD_INPUT, "top_k"},
      {"{" M ",\"n\":0}", PST_E_BAD_INPUT, "n"},
      {"{" M ",\"n\":17}", PST_E_BAD_INPUT, "n"},
      {"{" M ",\"max_tokens\":0}", PST_E_BAD_INPUT, "max_tokens"},
      {"{" M ",\"max_tokens\":1e30}", PST_E_BAD_INPUT, "max_tokens"},
      {"{" M ",\"max_completion_tokens\":\"5\"}", PST_E_BAD_INPUT, "max_completion_tokens"},
      {"{" M ",\"stream\":1}", PST_E_BAD_INPUT, "stream"},
      {"{" M ",\"stream_options\":{\"include_usage\":true}}", PST_E_BAD_INPUT, "stream_options"},
      {"{" M ",\"stream\":true,\"stream_options\":{\"include_usage\":2}}", PST_E_BAD_INPUT,
       "stream_options.include_usage"},
      {"{" M ",\"stop\":[\"\"]}", PST_E_BAD_INPUT, "stop"},
      {"{" M ",\"stop\":[1]}", PST_E_BAD_INPUT, "stop"},
      {"{" M
       ",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\"]}",
       PST_E_LIMIT, "stop"},
      {"{" M ",\"seed\":1.5}", PST_E_BAD_INPUT, "seed"},
      {"{" M ",\"logprobs\":2}", PST_E_BAD_INPUT, "logprobs"},
      {"{" M ",\"top_logprobs\":2}", PST_E_BAD_INPUT, "top_logprobs"},
      {"{" M ",\"logprobs\":true,\"top_logprobs\":21}", PST_E_BAD_INPUT, "top_logprobs"},
      {"{" M ",\"logit_bias\":[]}", PST_E_BAD_INPUT, "logit_bias"},
      {"{" M ",\"logit_bias\":{\"x\":1}}", PST_E_BAD_INPUT, "logit_bias"},
      {"{" M ",\"logit_bias\":{\"1\":101}}", PST_E_BAD_INPUT, "logit_bias"},
      {"{" M ",\"presence_penalty\":3}", PST_E_BAD_INPUT, "presence_penalty"},
      {"{" M ",\"frequency_penalty\":-3}", PST_E_BAD_INPUT, "frequency_penalty"},
      {"{" M ",\"repetition_penalty\":0}", PST_E_BAD_INPUT, "repetition_penalty"},
      {"{" M ",\"user\":5}", PST_E_BAD_INPUT, "user"},
      {"{" M ",\"response_format\":\"json\"}", PST_E_BAD_INPUT, "response_format"},
      {"{" M ",\"response_format\":{\"type\":\"xml\"}}", PST_E_BAD_INPUT, "response_format.type"},
      {"{" M ",\"response_format\":{\"type\":\"json_schema\"}}", PST_E_BAD_INPUT, "response_format.json_schema"},
      {"{" M ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a\"}}}", PST_E_BAD_INPUT,
       "response_format.json_schema.schema"},
      {"{" M ",\"tools\":{}}", PST_E_BAD_INPUT, "tools"},
      {"{" M ",\"tools\":[{\"type\":\"web\"}]}", PST_E_UNSUPPORTED, "tools[0].type"},
      {"{" M ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a b\"}}]}", PST_E_BAD_INPUT,
       "tools[0].function.name"},
      {"{" M ",\"tool_choice\":\"auto\"}", PST_E_BAD_INPUT, "tool_choice"},
      {"{" M
       ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\"}}],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"b\"}}}",
       PST_E_BAD_INPUT, "tool_choice.function.name"},
      {"{" M ",\"functions\":[]}", PST_E_UNSUPPORTED, "functions"},
      {"{" M ",\"modalities\":[\"text\",\"audio\"]}", PST_E_UNSUPPORTED, "modalities"},
      {"{" M ",\"metadata\":{\"a\":1}}", PST_E_BAD_INPUT, "metadata"},
      {"{" M ",\"chat_template_kwargs\":[]}", PST_E_BAD_INPUT, "chat_template_kwargs"},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) refuse(PST_WIRE_CHAT, cases[i].body, cases[i].code, cases[i].param);
}

static void test_text(void **state) {
  (void)state;
  pst_wire_request q = parse(
      PST_WIRE_TEXT,
      "{\"model\":\"m\",\"prompt\":\"once\",\"max_tokens\":0,\"logprobs\":5,\"echo\":false,\"best_of\":1,\"suffix\":null}");
  assert_int_equal(q.n_prompts, 1);
  equals(q.prompts[0].text, "once");
  assert_null(q.prompts[0].tokens);
  assert_true(q.has_max_tokens);
  assert_int_equal(q.max_tokens, 0);
  assert_int_equal(q.n_logprobs, 5);
  pst_wire_request_done(&q);
  q = parse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[\"a\",\"\",\"c\"],\"n\":2,\"best_of\":2}");
  assert_int_equal(q.n_prompts, 3);
  equals(q.prompts[2].text, "c");
  assert_int_equal(q.n_logprobs, -1);
  pst_wire_request_done(&q);
  q = parse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[1,2,3]}");
  assert_int_equal(q.n_prompts, 1);
  assert_int_equal(q.prompts[0].n_tokens, 3);
  assert_int_equal(q.prompts[0].tokens[2], 3);
  pst_wire_request_done(&q);
  q = parse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[[1],[2,3]]}");
  assert_int_equal(q.n_prompts, 2);
  assert_int_equal(q.prompts[1].n_tokens, 2);
  pst_wire_request_done(&q);
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\"}", PST_E_BAD_INPUT, "prompt");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[]}", PST_E_BAD_INPUT, "prompt");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[[]]}", PST_E_BAD_INPUT, "prompt");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[\"a\",1]}", PST_E_BAD_INPUT, "prompt");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[1,\"a\"]}", PST_E_BAD_INPUT, "prompt");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[-1]}", PST_E_BAD_INPUT, "prompt");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":[true]}", PST_E_BAD_INPUT, "prompt");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":\"a\",\"logprobs\":true}", PST_E_BAD_INPUT, "logprobs");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":\"a\",\"echo\":true}", PST_E_UNSUPPORTED, "echo");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":\"a\",\"best_of\":3}", PST_E_UNSUPPORTED, "best_of");
  refuse(PST_WIRE_TEXT, "{\"model\":\"m\",\"prompt\":\"a\",\"suffix\":\"b\"}", PST_E_UNSUPPORTED, "suffix");
}

static void test_out_of_memory(void **state) {
  (void)state;
  static const char body[] =
      "{" M
      ",\"stop\":[\"a\"],\"logit_bias\":{\"1\":1},\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"user\":\"u\"}";
  for (int64_t i = 0; i < 200; i++) {
    pst_wire_request q = {0};
    pst_memory_fail_after(i);
    int rc = pst_wire_request_parse(PST_WIRE_CHAT, PST_STR(body), &q, NULL);
    pst_memory_fail_after(-1);
    if (rc == 0) {
      pst_wire_request_done(&q);
      assert_true(i > 0);
      return;
    }
    assert_int_equal(rc, PST_E_NOMEM);
  }
  fail();
}

static void test_feedback(void **state) {
  (void)state;
  pst_wire_feedback f = {0};
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(
      pst_wire_feedback_parse(
          PST_STR(
              "{\"completion_id\":\"c\",\"thumbs\":\"down\",\"score\":-0.5,\"correction\":\"x\",\"outcome\":\"sold\"}"),
          &f, &err),
      0);
  equals(f.completion_id, "c");
  assert_true(f.has_thumbs && !f.thumbs_up && f.has_score && f.score == -0.5);
  equals(f.correction, "x");
  equals(f.outcome, "sold");
  pst_wire_feedback_done(&f);
  assert_int_equal(pst_wire_feedback_parse(PST_STR("{\"completion_id\":\"c\",\"correction\":\"\"}"), &f, &err), 0);
  assert_non_null(f.correction.data);
  assert_null(f.outcome.data);
  pst_wire_feedback_done(&f);
  assert_int_equal(
      pst_wire_feedback_parse(PST_STR("{\"completion_id\":\"c\",\"retry\":true,\"abandon\":false}"), &f, &err), 0);
  assert_true(f.retried && !f.abandoned);
  pst_wire_feedback_done(&f);
  static const struct {
    const char *body, *param;
  } bad[] = {{"{\"thumbs\":\"up\"}", "completion_id"},
             {"{\"completion_id\":\"c\"}", ""},
             {"{\"completion_id\":\"c\",\"thumbs\":\"sideways\"}", "thumbs"},
             {"{\"completion_id\":\"c\",\"thumbs\":true}", "thumbs"},
             {"{\"completion_id\":\"c\",\"score\":\"5\"}", "score"},
             {"{\"completion_id\":\"c\",\"outcome\":{}}", "outcome"},
             {"{\"completion_id\":\"c\",\"retry\":1}", "retry"},
             {"{\"completion_id\":\"c\",\"abandon\":false}", ""},
             {"nope", ""}};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++) {
    assert_int_equal(pst_wire_feedback_parse(pst_str_from(bad[i].body), &f, &err), PST_E_BAD_INPUT);
    assert_string_equal(err.place, bad[i].param);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_defaults),      cmocka_unit_test(test_all_fields), cmocka_unit_test(test_messages),
      cmocka_unit_test(test_refusals),      cmocka_unit_test(test_text),       cmocka_unit_test(test_feedback),
      cmocka_unit_test(test_out_of_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
