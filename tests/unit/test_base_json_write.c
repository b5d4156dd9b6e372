/* Writing JSON: the writer's punctuation, strings, numbers, and the canonical form of RFC 8785. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <math.h>
#include <string.h>

static void write_sample(pst_json_writer *w) {
  pst_json_begin_object(w);
  pst_json_key(w, "empty");
  pst_json_begin_array(w);
  pst_json_end_array(w);
  pst_json_key(w, "none");
  pst_json_begin_object(w);
  pst_json_end_object(w);
  pst_json_key(w, "list");
  pst_json_begin_array(w);
  pst_json_put_int(w, 1);
  pst_json_put_bool(w, true);
  pst_json_put_null(w);
  pst_json_begin_object(w);
  pst_json_key_str(w, PST_STR("k"));
  pst_json_put_cstr(w, NULL);
  pst_json_end_object(w);
  pst_json_put_raw(w, PST_STR("[0]"));
  pst_json_end_array(w);
  pst_json_key(w, "s");
  pst_json_put_cstr(w, "x");
  pst_json_end_object(w);
}

static void test_punctuation(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&out, false);
  write_sample(&w);
  assert_string_equal(pst_buf_text(&out),
                      "{\"empty\":[],\"none\":{},\"list\":[1,true,null,{\"k\":null},[0]],\"s\":\"x\"}");
  assert_int_equal(w.depth, 0);
  pst_buf_clear(&out);
  w = pst_json_writer_on(&out, true);
  write_sample(&w);
  assert_string_equal(pst_buf_text(&out), "{\n"
                                          "  \"empty\": [],\n"
                                          "  \"none\": {},\n"
                                          "  \"list\": [\n"
                                          "    1,\n"
                                          "    true,\n"
                                          "    null,\n"
                                          "    {\n"
                                          "      \"k\": null\n"
                                          "    },\n"
                                          "    [0]\n"
                                          "  ],\n"
                                          "  \"s\": \"x\"\n"
                                          "}");
  pst_buf_done(&out);
}

static const char *written_str(pst_buf *out, const char *data, size_t n) {
  pst_buf_clear(out);
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_put_str(&w, (pst_str){data, n});
  return pst_buf_text(out);
}

static void test_strings(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  assert_string_equal(written_str(&out, "", 0), "\"\"");
  assert_string_equal(written_str(&out, NULL, 0), "\"\"");
  assert_string_equal(written_str(&out, "a\"\\/\b\f\n\r\t", 9), "\"a\\\"\\\\/\\b\\f\\n\\r\\t\"");
  assert_string_equal(written_str(&out, "\0\x01\x1f\x7f", 4), "\"\\u0000\\u0001\\u001f\x7f\"");
  assert_string_equal(written_str(&out, "\xC3\xA9\xF0\x9F\x98\x80", 6), "\"\xC3\xA9\xF0\x9F\x98\x80\"");
  assert_string_equal(written_str(&out,
                                  "a\xFF"
                                  "b\xE2\x82",
                                  5),
                      "\"a\xEF\xBF\xBD"
                      "b\xEF\xBF\xBD\"");
  for (int round = 0; round < 3000; round++) { /* whatever goes in, what comes out is JSON and means the same */
    char text[24];
    pst_random r = {3, (uint64_t)round, 0};
    size_t n = (size_t)pst_random_below(&r, sizeof text);
    for (size_t i = 0; i < n; i++) text[i] = (char)pst_random_below(&r, round % 2 ? 256 : 0x24);
    (void)written_str(&out, text, n);
    pst_json_doc *doc = NULL;
    pst_buf clean = PST_BUF_INIT;
    assert_int_equal(pst_json_parse(out.data, out.n, NULL, &doc, NULL), 0);
    pst_utf8_sanitize((pst_str){text, n}, &clean);
    assert_true(pst_str_equal(pst_json_str(pst_json_root(doc)), pst_buf_str(&clean)));
    pst_buf_done(&clean);
    pst_json_free(doc);
  }
  pst_buf_done(&out);
}

static void expect_double(double d, const char *want) {
  pst_buf out = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&out, false);
  pst_json_put_double(&w, d);
  assert_string_equal(pst_buf_text(&out), want);
  pst_buf_done(&out);
}

static double double_of(uint64_t bits) {
  double d;
  memcpy(&d, &bits, sizeof d);
  return d;
}

static void test_doubles(void **state) {
  (void)state;
  /* RFC 8785, appendix B */
  static const struct {
    uint64_t bits;
    const char *want;
  } rows[] = {{0x0000000000000000, "0"},
              {0x0000000000000001, "5e-324"},
              {0x8000000000000001, "-5e-324"},
              {0x7fefffffffffffff, "1.7976931348623157e+308"},
              {0xffefffffffffffff, "-1.7976931348623157e+308"},
              {0x4340000000000000, "9007199254740992"},
              {0xc340000000000000, "-9007199254740992"},
              {0x4430000000000000, "295147905179352830000"},
              {0x44b52d02c7e14af5, "9.999999999999997e+22"},
              {0x44b52d02c7e14af6, "1e+23"},
              {0x44b52d02c7e14af7, "1.0000000000000001e+23"},
              {0x444b1ae4d6e2ef4e, "999999999999999700000"},
              {0x444b1ae4d6e2ef4f, "999999999999999900000"},
              {0x444b1ae4d6e2ef50, "1e+21"},
              {0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"},
              {0x3eb0c6f7a0b5ed8d, "0.000001"},
              {0x41b3de4355555553, "333333333.3333332"},
              {0x41b3de4355555554, "333333333.33333325"},
              {0x41b3de4355555555, "333333333.3333333"},
              {0x41b3de4355555556, "333333333.3333334"},
              {0x41b3de4355555557, "333333333.33333343"},
              {0xbecbf647612f3696, "-0.0000033333333333333333"},
              {0x43143ff3c1cb0959, "1424953923781206.2"},
              /* a power of two, where the closest 16 digits read back although rounding gives 17 */
              {0x3d30000000000000, "5.684341886080802e-14"},
              {0x3ff8000000000000, "1.5"},
              {0x4059000000000000, "100"}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) expect_double(double_of(rows[i].bits), rows[i].want);
  /* Shortest digits that a reader of whole numbers would take for another number, as ours is: ...768 it is. */
  expect_double(double_of(0x438a0ad206b42c08), "234567890123456770.0");
  expect_double(double_of(0xc38a0ad206b42c08), "-234567890123456770.0");
  expect_double(-0.0, "-0.0"); /* reads back as the same double; the canonical form below says 0 */
  expect_double(INFINITY, "null");
  expect_double(-INFINITY, "null");
  expect_double(NAN, "null");
  for (uint64_t i = 0; i < 20000; i++) { /* what is written is read back as the same bits */
    double d = double_of(pst_random_u64(1, 2, i));
    if (!isfinite(d)) continue;
    pst_buf out = PST_BUF_INIT;
    pst_json_writer w = pst_json_writer_on(&out, false);
    pst_json_put_double(&w, d);
    pst_json_doc *doc = NULL;
    assert_int_equal(pst_json_parse(out.data, out.n, NULL, &doc, NULL), 0);
    double back = pst_json_double(pst_json_root(doc), 0);
    assert_memory_equal(&back, &d, sizeof d);
    pst_json_free(doc);
    pst_buf_done(&out);
  }
}

static void test_values_are_copied(void **state) {
  (void)state;
  static const char *const same[] = {
      "[18446744073709551615,-9223372036854775808,0,1.5,-0.0,234567890123456780,234567890123456770.0,\"\\u0000\",true,false,null,{\"b\":[],\"a\":{}}]",
      "{\"z\":1,\"a\":[[[]]],\"\":\"\"}", "\"x\"", "3"};
  for (size_t i = 0; i < PST_ARRAY_LEN(same); i++) {
    pst_json_doc *doc = NULL;
    assert_int_equal(pst_json_parse(same[i], strlen(same[i]), NULL, &doc, NULL), 0);
    pst_buf out = PST_BUF_INIT;
    pst_json_writer w = pst_json_writer_on(&out, false);
    pst_json_put_value(&w, pst_json_root(doc));
    assert_string_equal(pst_buf_text(&out), same[i]);
    pst_buf_clear(&out);
    w = pst_json_writer_on(&out, true);
    pst_json_put_value(&w, pst_json_root(doc));
    pst_json_doc *again = NULL;
    assert_int_equal(pst_json_parse(out.data, out.n, NULL, &again, NULL), 0);
    assert_true(pst_json_equal(pst_json_root(doc), pst_json_root(again)));
    pst_json_free(again);
    pst_json_free(doc);
    pst_buf_done(&out);
  }
  pst_buf out = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&out, false);
  pst_json_put_value(&w, NULL);
  assert_string_equal(pst_buf_text(&out), "null");
  pst_buf_done(&out);
}

static void test_mistakes_of_the_caller_fail_the_buffer(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&out, false);
  for (int i = 0; i < 512; i++) pst_json_begin_array(&w);
  assert_int_equal(pst_buf_status(&out), 0);
  for (int i = 0; i < 512; i++) pst_json_end_array(&w);
  assert_int_equal(pst_buf_status(&out), 0);
  assert_int_equal(out.n, 1024);
  pst_json_end_array(&w);
  assert_int_not_equal(pst_buf_status(&out), 0);
  pst_buf_clear(&out);
  w = pst_json_writer_on(&out, false);
  for (int i = 0; i < 2000; i++) pst_json_begin_array(&w);
  assert_int_not_equal(pst_buf_status(&out), 0);
  assert_int_equal(w.depth, 512);
  for (int i = 0; i < 2000; i++) pst_json_end_array(&w);
  assert_int_not_equal(pst_buf_status(&out), 0);
  pst_buf_done(&out);
}

static void expect_canonical(const char *text, const char *want) {
  pst_json_doc *doc = NULL;
  pst_buf out = PST_BUF_INIT;
  assert_int_equal(pst_json_parse(text, strlen(text), NULL, &doc, NULL), 0);
  assert_int_equal(pst_json_canonical(pst_json_root(doc), &out), 0);
  assert_string_equal(pst_buf_text(&out), want);
  pst_json_free(doc);
  pst_buf_done(&out);
}

static void test_canonical(void **state) {
  (void)state;
  /* RFC 8785, section 3.2.2 */
  expect_canonical("{\"numbers\": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],\n"
                   "\"string\": \"\\u20ac$\\u000F\\u000aA'\\u0042\\u0022\\u005c\\\\\\\"\\/\",\n"
                   "\"literals\": [null, true, false]}",
                   "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],"
                   "\"string\":\"\xE2\x82\xAC$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}");
  /* section 3.2.3: by UTF-16 code units, so the emoji stands before U+FB33 */
  expect_canonical(
      "{\"\\u20ac\":\"Euro Sign\",\"\\r\":\"Carriage Return\",\"\\ufb33\":\"Hebrew Letter Dalet With Dagesh\",\"1\":\"One\","
      "\"\\ud83d\\ude00\":\"Emoji: Grinning Face\",\"\\u0080\":\"Control\",\"\\u00f6\":\"Latin Small Letter O With Diaeresis\"}",
      "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\xC2\x80\":\"Control\",\"\xC3\xB6\":\"Latin Small Letter O With Diaeresis\","
      "\"\xE2\x82\xAC\":\"Euro Sign\",\"\xF0\x9F\x98\x80\":\"Emoji: Grinning Face\",\"\xEF\xAC\xB3\":\"Hebrew Letter Dalet With Dagesh\"}");
  expect_canonical("{\"aa\":1,\"a\":2,\"\":3,\"a\\u0000\":4}", "{\"\":3,\"a\":2,\"a\\u0000\":4,\"aa\":1}");
  expect_canonical(
      "{\"\\ud7ff\":1,\"\\ud800\\udc00\":2,\"\\ue000\":3,\"\\udbff\\udfff\":4,\"\\uffff\":5}",
      "{\"\xED\x9F\xBF\":1,\"\xF0\x90\x80\x80\":2,\"\xF4\x8F\xBF\xBF\":4,\"\xEE\x80\x80\":3,\"\xEF\xBF\xBF\":5}");
  expect_canonical(" [ -0.0, -0, 1.0, 100, 1e2, 9007199254740993, 18446744073709551615 ] ",
                   "[0,0,1,100,100,9007199254740992,18446744073709552000]");
  expect_canonical("[ ]", "[]");
  expect_canonical("{ }", "{}");
  pst_buf out = PST_BUF_INIT;
  assert_int_equal(pst_json_canonical(NULL, &out), 0);
  assert_string_equal(pst_buf_text(&out), "null");
  pst_buf_done(&out);
}

static void test_members_and_paths(void **state) {
  (void)state;
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_doc *doc = NULL;
  pst_json_begin_object(&w);
  pst_json_key(&w, "a");
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "s", PST_STR("x"));
  pst_json_member_cstr(&w, "c", NULL);
  pst_json_member_opt(&w, "o", (pst_str){NULL, 0});
  pst_json_member_opt(&w, "e", PST_STR(""));
  pst_json_member_int(&w, "i", -7);
  pst_json_member_double(&w, "d", 0.5);
  pst_json_member_bool(&w, "b", true);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  assert_string_equal(pst_buf_text(&text),
                      "{\"a\":{\"s\":\"x\",\"c\":null,\"o\":null,\"e\":\"\",\"i\":-7,\"d\":0.5,\"b\":true}}");
  assert_int_equal(pst_json_parse(text.data, text.n, "text", &doc, NULL), 0);
  const pst_json *root = pst_json_root(doc);
  assert_int_equal(pst_json_int(pst_json_path(root, "a.i"), 0), -7);
  assert_ptr_equal(pst_json_path(root, ""), root);
  assert_null(pst_json_path(root, "a.none.i"));
  assert_null(pst_json_path(NULL, "a"));
  pst_json_free(doc);
  pst_buf_done(&text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_punctuation),
      cmocka_unit_test(test_strings),
      cmocka_unit_test(test_doubles),
      cmocka_unit_test(test_values_are_copied),
      cmocka_unit_test(test_mistakes_of_the_caller_fail_the_buffer),
      cmocka_unit_test(test_canonical),
      cmocka_unit_test(test_members_and_paths),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
