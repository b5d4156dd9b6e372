/* Requests for embeddings into structs, and vectors into answers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <penstock/wire.h>

static pst_wire_embedding_request parse(const char *body) {
  pst_wire_embedding_request q = {0};
  pst_error err = PST_ERROR_INIT;
  if (pst_wire_embedding_parse(pst_str_from(body), &q, &err)) fail_msg("%s: %s: %s", body, err.place, err.message);
  return q;
}

static void refuse(const char *body, int code, const char *param) {
  pst_wire_embedding_request q = {0};
  pst_error err = PST_ERROR_INIT;
  int rc = pst_wire_embedding_parse(pst_str_from(body), &q, &err);
  if (rc != code || strcmp(err.place, param) != 0) print_message("%s -> %d %s: %s\n", body, rc, err.place, err.message);
  assert_int_equal(rc, code);
  assert_string_equal(err.place, param);
  assert_true(err.message[0]);
  assert_null(q.arena);
}

static void test_inputs(void **state) {
  (void)state;
  pst_wire_embedding_request q = parse("{\"model\":\"m\",\"input\":\"one\"}");
  assert_true(pst_str_is(q.model, "m"));
  assert_int_equal(q.n_inputs, 1);
  assert_true(pst_str_is(q.inputs[0].text, "one"));
  assert_null(q.inputs[0].tokens);
  assert_int_equal(q.dimensions, 0);
  assert_false(q.base64);
  pst_wire_embedding_done(&q);
  pst_wire_embedding_done(&q); /* twice is fine */

  q = parse(
      "{\"model\":\"m\",\"input\":[\"one\",\"two\"],\"encoding_format\":\"base64\",\"dimensions\":64,\"user\":\"u\"}");
  assert_int_equal(q.n_inputs, 2);
  assert_true(pst_str_is(q.inputs[1].text, "two"));
  assert_true(q.base64);
  assert_int_equal(q.dimensions, 64);
  assert_true(pst_str_is(q.user, "u"));
  pst_wire_embedding_done(&q);

  q = parse("{\"model\":\"m\",\"input\":[5,6,7]}");
  assert_int_equal(q.n_inputs, 1);
  assert_int_equal(q.inputs[0].n_tokens, 3);
  assert_int_equal(q.inputs[0].tokens[2], 7);
  pst_wire_embedding_done(&q);

  q = parse("{\"model\":\"m\",\"input\":[[5],[6,7]],\"encoding_format\":\"float\"}");
  assert_int_equal(q.n_inputs, 2);
  assert_int_equal(q.inputs[1].n_tokens, 2);
  assert_int_equal(q.inputs[1].tokens[0], 6);
  pst_wire_embedding_done(&q);
}

static void test_refusals(void **state) {
  (void)state;
  refuse("[]", PST_E_BAD_INPUT, "");
  refuse("{\"input\":\"x\"}", PST_E_BAD_INPUT, "model");
  refuse("{\"model\":\"m\"}", PST_E_BAD_INPUT, "input");
  refuse("{\"model\":\"m\",\"input\":\"\"}", PST_E_BAD_INPUT, "input");
  refuse("{\"model\":\"m\",\"input\":[]}", PST_E_BAD_INPUT, "input");
  refuse("{\"model\":\"m\",\"input\":[\"a\",\"\"]}", PST_E_BAD_INPUT, "input");
  refuse("{\"model\":\"m\",\"input\":[[]]}", PST_E_BAD_INPUT, "input");
  refuse("{\"model\":\"m\",\"input\":[\"a\",[1]]}", PST_E_BAD_INPUT, "input");
  refuse("{\"model\":\"m\",\"input\":[1,-1]}", PST_E_BAD_INPUT, "input");
  refuse("{\"model\":\"m\",\"input\":{}}", PST_E_BAD_INPUT, "input");
  refuse("{\"model\":\"m\",\"input\":\"x\",\"encoding_format\":\"hex\"}", PST_E_BAD_INPUT, "encoding_format");
  refuse("{\"model\":\"m\",\"input\":\"x\",\"dimensions\":0}", PST_E_BAD_INPUT, "dimensions");
  refuse("{\"model\":\"m\",\"input\":\"x\",\"dimensions\":\"8\"}", PST_E_BAD_INPUT, "dimensions");
  pst_buf many = PST_BUF_INIT;
  pst_buf_puts(&many, "{\"model\":\"m\",\"input\":[\"x\"");
  for (int i = 0; i < PST_WIRE_MAX_INPUTS; i++) pst_buf_puts(&many, ",\"x\"");
  pst_buf_puts(&many, "]}");
  refuse(pst_buf_text(&many), PST_E_LIMIT, "input");
  pst_buf_done(&many);
}

/* Base64 of little-endian float32, as Python's struct and base64 write it. */
static void test_answers(void **state) {
  (void)state;
  const float vectors[] = {1.0f, -0.5f, 0.1f, 0.25f};
  pst_wire_embedding_answer a = {
      .model = PST_STR("m"), .vectors = vectors, .n_vectors = 2, .n_dims = 2, .prompt_tokens = 9};
  pst_buf out = PST_BUF_INIT;
  pst_wire_embedding_write(&a, &out);
  assert_string_equal(pst_buf_text(&out),
                      "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[1,-0.5]},"
                      "{\"object\":\"embedding\",\"index\":1,\"embedding\":[0.100000001,0.25]}],\"model\":\"m\","
                      "\"usage\":{\"prompt_tokens\":9,\"total_tokens\":9}}");
  static const char *const base64[] = {"AACAPw==", "AACAPwAAAL8=", "AACAPwAAAL/NzMw9", "AACAPwAAAL/NzMw9AACAPg=="};
  a.base64 = true;
  a.n_vectors = 1;
  for (size_t n = 1; n <= PST_ARRAY_LEN(base64); n++) {
    char want[128];
    a.n_dims = n;
    pst_buf_clear(&out);
    pst_wire_embedding_write(&a, &out);
    snprintf(want, sizeof want, "\"embedding\":\"%s\"", base64[n - 1]);
    assert_non_null(strstr(pst_buf_text(&out), want));
  }
  pst_buf_done(&out);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_inputs), cmocka_unit_test(test_refusals),
                                     cmocka_unit_test(test_answers)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
