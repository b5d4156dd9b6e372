/* Reading JSON: what is refused and where, the readers, equality. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pst_json_doc *parse(const char *text) {
  pst_json_doc *doc = NULL;
  pst_error err = PST_ERROR_INIT;
  if (pst_json_parse(text, strlen(text), NULL, &doc, &err) != 0) fail_msg("%s: %s: %s", text, err.place, err.message);
  return doc;
}

static void test_mistakes_have_their_place(void **state) {
  (void)state;
  static const struct {
    const char *text, *place;
    int code;
  } rows[] = {
      {"", "s:1:1", PST_E_BAD_INPUT},
      {"  ", "s:1:1", PST_E_BAD_INPUT},
      {"{\"a\":1,}", "s:1:7", PST_E_BAD_INPUT},
      {"[1,2", "s:1:5", PST_E_BAD_INPUT},
      {"{\n  \"a\": tru\n}", "s:2:8", PST_E_BAD_INPUT},
      {"[1]x", "s:1:4", PST_E_BAD_INPUT},
      {"[1] 2", "s:1:5", PST_E_BAD_INPUT},
      {"// c\n1", "s:1:1", PST_E_BAD_INPUT},
      {"[NaN]", "s:1:2", PST_E_BAD_INPUT},
      {"[Infinity]", "s:1:2", PST_E_BAD_INPUT},
      {"[01]", "s:1:2", PST_E_BAD_INPUT},
      {"[.5]", "s:1:2", PST_E_BAD_INPUT},
      {"{'a':1}", "s:1:2", PST_E_BAD_INPUT},
      {"\xEF\xBB\xBF[]", "s:1:1", PST_E_BAD_INPUT},
      {"[1,\n\"a\":2]", "s:2:4", PST_E_BAD_INPUT},
      {"{\"a\":1,\n \"b\":2,\n \"a\":3}", "s:3:2", PST_E_BAD_INPUT},
      {"{\"a\":1,\"\\u0061\":3}", "s:1:8", PST_E_BAD_INPUT}, /* written differently, still the same name */
      {"{\"x\":{\"\xC3\xA9\":0,\"\xC3\xA9\":1}}", "s:1:13", PST_E_BAD_INPUT}, /* columns are characters */
      {"{\"\":1,\"\":2}", "s:1:7", PST_E_BAD_INPUT},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    pst_json_doc *doc = NULL;
    pst_error err = PST_ERROR_INIT;
    int rc = pst_json_parse(rows[i].text, strlen(rows[i].text), "s", &doc, &err);
    if (rc != rows[i].code || strcmp(err.place, rows[i].place) != 0)
      fail_msg("%s: %d at %s: %s", rows[i].text, rc, err.place, err.message);
    assert_null(doc);
    assert_int_equal(pst_json_parse(rows[i].text, strlen(rows[i].text), "s", &doc, NULL), rows[i].code);
  }
}

static void test_strings_are_strict_utf8(void **state) {
  (void)state;
  static const char *const bad[] = {"\"\xFF\"",
                                    "\"\xC0\x80\"",
                                    "\"\xED\xA0\x80\"",
                                    "\"\xE2\x82\"",
                                    "\"\\ud800\"",
                                    "\"\\udc00\"",
                                    "\"\\ud800\\u0041\"",
                                    "\"\\x41\"",
                                    "\"\\u12\"",
                                    "\"a\nb\"",
                                    "\"\t\"",
                                    "\"a",
                                    "\"\\\""};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++) {
    pst_json_doc *doc = NULL;
    assert_int_equal(pst_json_parse(bad[i], strlen(bad[i]), NULL, &doc, NULL), PST_E_BAD_INPUT);
  }
  pst_json_doc *doc = parse("\"a\\u0000b\\ud83d\\ude00\\/\\n\"");
  assert_true(pst_str_equal(pst_json_str(pst_json_root(doc)), PST_STR("a\0b\xF0\x9F\x98\x80/\n")));
  pst_json_free(doc);
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_json_parse("[1]\0", 4, NULL, &doc, &err), PST_E_BAD_INPUT); /* NUL behind the value */
  assert_string_equal(err.place, "json:1:4");
  assert_int_equal(pst_json_parse(NULL, 0, NULL, &doc, NULL), PST_E_BAD_INPUT);
}

static void test_a_long_source_gives_way_to_the_position(void **state) {
  (void)state;
  char source[1000];
  memset(source, 's', sizeof source);
  source[999] = '\0';
  pst_json_doc *doc = NULL;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_json_parse("\n\n[", 3, source, &doc, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place + strlen(err.place) - 4, ":3:2");
  assert_int_equal(err.place[0], 's');
}

/* n opening brackets, of arrays or of objects, and as many closing ones. */
static char *nested(size_t n, bool objects) {
  pst_buf b = PST_BUF_INIT;
  for (size_t i = 0; i < n; i++) pst_buf_puts(&b, objects ? "{\"a\":" : "[");
  pst_buf_puts(&b, objects ? "1" : "");
  for (size_t i = 0; i < n; i++) pst_buf_putc(&b, objects ? '}' : ']');
  return pst_buf_take(&b);
}

static void test_depth(void **state) {
  (void)state;
  for (int objects = 0; objects < 2; objects++) {
    static const size_t depths[] = {1, 511, 512, 513, 100000};
    for (size_t i = 0; i < PST_ARRAY_LEN(depths); i++) {
      char *text = nested(depths[i], objects);
      pst_json_doc *doc = NULL;
      pst_error err = PST_ERROR_INIT;
      int rc = pst_json_parse(text, strlen(text), "s", &doc, &err);
      assert_int_equal(rc, depths[i] <= 512 ? 0 : PST_E_LIMIT);
      if (rc != 0) {
        assert_string_equal(err.place, objects ? "s:1:2561" : "s:1:513");
        assert_null(doc);
      }
      if (rc == 0) { /* the deepest document can also be written, compared and put into its canonical form */
        pst_buf out = PST_BUF_INIT;
        pst_json_writer w = pst_json_writer_on(&out, false);
        pst_json_put_value(&w, pst_json_root(doc));
        assert_string_equal(pst_buf_text(&out), text);
        pst_buf_clear(&out);
        assert_int_equal(pst_json_canonical(pst_json_root(doc), &out), 0);
        assert_string_equal(pst_buf_text(&out), text);
        assert_true(pst_json_equal(pst_json_root(doc), pst_json_root(doc)));
        pst_buf_done(&out);
      }
      pst_json_free(doc);
      pst_free(text);
    }
  }
  /* brackets in strings do not nest, side by side they do not add up */
  pst_buf b = PST_BUF_INIT;
  pst_buf_puts(&b, "[\"\\\"[[[\\\\\"");
  for (int i = 0; i < 2000; i++) pst_buf_puts(&b, ",[],{},\"[{\"");
  pst_buf_putc(&b, ']');
  pst_json_doc *doc = parse(pst_buf_text(&b));
  assert_int_equal(pst_json_size(pst_json_root(doc)), 6001);
  pst_json_free(doc);
  pst_buf_done(&b);
}

static void test_duplicates_among_many_keys(void **state) {
  (void)state;
  for (int n = 2; n < 3000; n = n * 3 / 2 + 1)
    for (int twin = -1; twin < n; twin += PST_MAX(1, n / 3)) { /* -1: none */
      pst_buf b = PST_BUF_INIT;
      pst_buf_putc(&b, '{');
      for (int i = 0; i < n; i++) pst_buf_printf(&b, "%s\"key%d\":%d", i ? "," : "", i, i);
      if (twin >= 0) pst_buf_printf(&b, ",\n\"key%d\":0", twin);
      pst_buf_putc(&b, '}');
      pst_json_doc *doc = NULL;
      pst_error err = PST_ERROR_INIT;
      int rc = pst_json_parse(b.data, b.n, "s", &doc, &err);
      assert_int_equal(rc, twin < 0 ? 0 : PST_E_BAD_INPUT);
      if (twin >= 0) {
        char want[40];
        (void)snprintf(want, sizeof want, "\"key%d\"", twin);
        assert_non_null(strstr(err.message, want));
        assert_string_equal(err.place, "s:2:1");
      }
      pst_json_free(doc);
      pst_buf_done(&b);
    }
  pst_json_free(parse("[{\"a\":1},{\"a\":{\"a\":[{\"a\":2}]}}]")); /* the same name in different objects is fine */
}

static void test_readers(void **state) {
  (void)state;
  pst_json_doc *doc = parse(
      "{\"n\":null,\"t\":true,\"i\":-5,\"d\":2.5,\"w\":3.0,\"s\":\"x\",\"a\":[1,[2],\"3\"],\"o\":{},\"k\\u0000k\":1}");
  const pst_json *root = pst_json_root(doc);
  static const struct {
    const char *key;
    pst_json_type type;
  } types[] = {{"n", PST_JSON_NULL},   {"t", PST_JSON_BOOL},  {"i", PST_JSON_NUMBER}, {"d", PST_JSON_NUMBER},
               {"s", PST_JSON_STRING}, {"a", PST_JSON_ARRAY}, {"o", PST_JSON_OBJECT}, {"x", PST_JSON_NONE}};
  for (size_t i = 0; i < PST_ARRAY_LEN(types); i++)
    assert_int_equal(pst_json_typeof(pst_json_get(root, types[i].key)), types[i].type);
  assert_int_equal(pst_json_int(pst_json_get(root, "i"), 0), -5);
  assert_true(pst_json_double(pst_json_get(root, "i"), 0) == -5.0);
  assert_true(pst_json_double(pst_json_get(root, "d"), 0) == 2.5);
  assert_int_equal(pst_json_int(pst_json_get(root, "d"), 9), 9);
  assert_int_equal(pst_json_int(pst_json_get(root, "w"), 9), 3);
  assert_int_equal(pst_json_int(pst_json_get(root, "s"), 9), 9);
  assert_true(pst_json_bool(pst_json_get(root, "t"), false));
  assert_true(pst_json_bool(pst_json_get(root, "s"), true));
  assert_true(pst_str_is(pst_json_str(pst_json_get(root, "s")), "x"));
  assert_int_equal(pst_json_str(pst_json_get(root, "i")).n, 0);
  assert_int_equal(pst_json_size(root), 9);
  assert_int_equal(pst_json_size(pst_json_get(root, "a")), 3);
  assert_int_equal(pst_json_size(pst_json_get(root, "s")), 0);
  assert_int_equal(pst_json_int(pst_json_at(pst_json_at(pst_json_get(root, "a"), 1), 0), 0), 2);
  assert_null(pst_json_at(pst_json_get(root, "a"), 3));
  assert_null(pst_json_at(root, 0));
  assert_null(pst_json_get(pst_json_get(root, "a"), "n"));
  assert_non_null(pst_json_get_str(root, (pst_str){"k\0k", 3}));
  assert_null(pst_json_get(root, "k"));
  /* all of it on "no such member" */
  assert_int_equal(pst_json_typeof(NULL), PST_JSON_NONE);
  assert_null(pst_json_get(NULL, "a"));
  assert_null(pst_json_get_str(root, pst_str_from(NULL)));
  assert_null(pst_json_at(NULL, 0));
  assert_int_equal(pst_json_size(NULL), 0);
  assert_int_equal(pst_json_str(NULL).n, 0);
  assert_int_equal(pst_json_int(NULL, 4), 4);
  assert_true(pst_json_double(NULL, 4) == 4);
  assert_true(pst_json_bool(NULL, true));
  assert_false(pst_json_is_int(NULL));
  assert_null(pst_json_root(NULL));
  pst_json_free(doc);
  pst_json_free(NULL);
}

static void test_integers(void **state) {
  (void)state;
  static const struct {
    const char *text;
    bool is;
    int64_t value;
  } rows[] = {{"0", true, 0},
              {"-0", true, 0},
              {"9223372036854775807", true, INT64_MAX},
              {"-9223372036854775808", true, INT64_MIN},
              {"9223372036854775808", false, 0},
              {"18446744073709551615", false, 0},
              {"18446744073709551616", false, 0},
              {"-9223372036854775809", false, 0},
              {"1e3", true, 1000},
              {"1.5", false, 0},
              {"9007199254740992.0", true, INT64_C(1) << 53},
              {"-9007199254740992.0", true, -(INT64_C(1) << 53)},
              {"9007199254740994.0", false, 0},
              {"1e300", false, 0},
              {"-0.0", true, 0},
              {"\"1\"", false, 0},
              {"true", false, 0},
              {"null", false, 0}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    pst_json_doc *doc = parse(rows[i].text);
    if (pst_json_is_int(pst_json_root(doc)) != rows[i].is ||
        pst_json_int(pst_json_root(doc), 77) != (rows[i].is ? rows[i].value : 77))
      fail_msg("%s", rows[i].text);
    pst_json_free(doc);
  }
}

static void test_iteration(void **state) {
  (void)state;
  pst_json_doc *doc = parse("{\"one\":1,\"two\":[10,[20,21],{\"x\":30},40],\"three\":3}");
  static const char *const keys[] = {"one", "two", "three"};
  size_t n = 0;
  pst_json_iter it;
  for (it = pst_json_iterate(pst_json_root(doc)); pst_json_next(&it); n++) {
    assert_true(it.object);
    assert_true(pst_str_is(it.key, keys[n]));
    assert_int_equal(it.index, n + 1);
    assert_ptr_equal(it.value, pst_json_get(pst_json_root(doc), keys[n]));
  }
  assert_int_equal(n, 3);
  assert_false(pst_json_next(&it)); /* at the end it stays */
  n = 0;
  for (it = pst_json_iterate(pst_json_get(pst_json_root(doc), "two")); pst_json_next(&it); n++) {
    assert_int_equal(it.key.n, 0);
    assert_ptr_equal(it.value, pst_json_at(pst_json_get(pst_json_root(doc), "two"), n));
  }
  assert_int_equal(n, 4);
  pst_json_free(doc);
  static const char *const empty[] = {"[]", "{}", "1", "\"abc\"", "null"};
  for (size_t i = 0; i < PST_ARRAY_LEN(empty); i++) {
    doc = parse(empty[i]);
    it = pst_json_iterate(pst_json_root(doc));
    assert_false(pst_json_next(&it));
    pst_json_free(doc);
  }
  it = pst_json_iterate(NULL);
  assert_false(pst_json_next(&it));
}

static void test_equality(void **state) {
  (void)state;
  static const struct {
    const char *a, *b;
    bool equal;
  } rows[] = {{"1", "1.0", true},
              {"0", "-0.0", true},
              {"1", "true", false},
              {"[]", "{}", false},
              {"null", "null", true},
              {"\"a\"", "\"\\u0061\"", true},
              {"\"a\"", "\"a\\u0000\"", false},
              {"[1,2]", "[2,1]", false},
              {"[1,2]", "[1,2,3]", false},
              {"{\"a\":1,\"b\":[2]}", "{\"b\":[2],\"a\":1}", true},
              {"{\"a\":1,\"b\":2}", "{\"a\":1,\"c\":2}", false},
              {"{\"a\":1}", "{\"a\":1,\"b\":2}", false},
              {"{\"a\":null}", "{\"b\":null}", false},
              {"9007199254740993", "9007199254740992.0", false}, /* equal only after rounding */
              {"9007199254740992", "9007199254740992.0", true},
              {"18446744073709551615", "18446744073709551616", false},
              {"18446744073709551615", "-1", false},
              {"9223372036854775807", "9223372036854775808", false},
              {"-9223372036854775808", "-9223372036854775808.0", true},
              {"-1", "-1.5", false},
              {"1e300", "1e300", true},
              {"1", "-1", false}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    pst_json_doc *a = parse(rows[i].a), *b = parse(rows[i].b);
    if (pst_json_equal(pst_json_root(a), pst_json_root(b)) != rows[i].equal ||
        pst_json_equal(pst_json_root(b), pst_json_root(a)) != rows[i].equal)
      fail_msg("%s and %s", rows[i].a, rows[i].b);
    pst_json_free(a);
    pst_json_free(b);
  }
  assert_true(pst_json_equal(NULL, NULL));
}

static void test_files(void **state) {
  (void)state;
  char path[] = "/tmp/penstock-json-XXXXXX";
  int fd = mkstemp(path);
  assert_true(fd >= 0);
  assert_int_equal(close(fd), 0);
  pst_json_doc *doc = NULL;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_file_write_atomic(path, "{\"a\":\n[1}", 9, NULL), 0);
  assert_int_equal(pst_json_parse_file(path, 100, &doc, &err), PST_E_BAD_INPUT);
  char want[64];
  (void)snprintf(want, sizeof want, "%s:2:3", path);
  assert_string_equal(err.place, want);
  assert_int_equal(pst_json_parse_file(path, 8, &doc, &err), PST_E_LIMIT);
  assert_int_equal(pst_file_write_atomic(path, "{\"a\":1}", 7, NULL), 0);
  assert_int_equal(pst_json_parse_file(path, 7, &doc, &err), 0);
  assert_int_equal(pst_json_int(pst_json_get(pst_json_root(doc), "a"), 0), 1);
  pst_json_free(doc);
  assert_int_equal(unlink(path), 0);
  assert_int_equal(pst_json_parse_file(path, 7, &doc, &err), PST_E_NOT_FOUND);
}

static void test_the_text_is_copied(void **state) {
  (void)state;
  char text[] = "{\"key\":\"value\"}";
  pst_json_doc *doc = NULL;
  assert_int_equal(pst_json_parse(text, strlen(text), NULL, &doc, NULL), 0);
  assert_string_equal(text, "{\"key\":\"value\"}"); /* and not written to */
  memset(text, 'x', sizeof text);
  assert_true(pst_str_is(pst_json_str(pst_json_get(pst_json_root(doc), "key")), "value"));
  pst_json_free(doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_mistakes_have_their_place),
      cmocka_unit_test(test_strings_are_strict_utf8),
      cmocka_unit_test(test_a_long_source_gives_way_to_the_position),
      cmocka_unit_test(test_depth),
      cmocka_unit_test(test_duplicates_among_many_keys),
      cmocka_unit_test(test_readers),
      cmocka_unit_test(test_integers),
      cmocka_unit_test(test_iteration),
      cmocka_unit_test(test_equality),
      cmocka_unit_test(test_files),
      cmocka_unit_test(test_the_text_is_copied),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
