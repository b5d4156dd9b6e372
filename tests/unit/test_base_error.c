/* Errors: codes, places and messages, and what becomes of texts that are too long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <errno.h>
#include <string.h>

static void test_set_fills_all_and_returns_the_code(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_error_set(&err, PST_E_LIMIT, "file:3", "%d is more than %s", 7, "six"), PST_E_LIMIT);
  assert_int_equal(err.code, PST_E_LIMIT);
  assert_string_equal(err.place, "file:3");
  assert_string_equal(err.message, "7 is more than six");
  assert_int_equal(pst_error_set(&err, PST_E_IO, NULL, "gone"), PST_E_IO);
  assert_string_equal(err.place, "");
  assert_int_equal(pst_error_set(NULL, PST_E_IO, "x", "%s", "y"), PST_E_IO);
}

static void test_own_fields_may_be_arguments(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_error_set(&err, PST_E_IO, "place", "inner");
  pst_error_set(&err, PST_E_UPSTREAM, err.place, "outer (%s, %s)", err.message, err.place);
  assert_string_equal(err.message, "outer (inner, place)");
  assert_string_equal(err.place, "place");
}

static void test_errno_chooses_the_code(void **state) {
  (void)state;
  static const struct {
    int errnum, code;
  } rows[] = {
      {ENOENT, PST_E_NOT_FOUND}, {ENOTDIR, PST_E_NOT_FOUND}, {ENOSPC, PST_E_NO_SPACE}, {EFBIG, PST_E_NO_SPACE},
      {EDQUOT, PST_E_NO_SPACE},  {EACCES, PST_E_DENIED},     {EROFS, PST_E_DENIED},    {ENOMEM, PST_E_NOMEM},
      {EEXIST, PST_E_EXISTS},    {EADDRINUSE, PST_E_BUSY},   {EIO, PST_E_IO},          {ETIMEDOUT, PST_E_TIMEOUT}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_error_set_errno(&err, rows[i].errnum, "p", "cannot %s", "do"), rows[i].code);
    assert_int_equal(err.code, rows[i].code);
    char want[256];
    (void)snprintf(want, sizeof want, "cannot do: %s", strerror(rows[i].errnum));
    assert_string_equal(err.message, want);
    assert_int_equal(pst_error_set_errno(NULL, rows[i].errnum, NULL, "x"), rows[i].code);
  }
}

static void test_prefix_keeps_code_and_place(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_error_set(&err, PST_E_CORRUPT, "here", "bad");
  assert_int_equal(pst_error_prefix(&err, "item %d", 4), PST_E_CORRUPT);
  assert_string_equal(err.message, "item 4: bad");
  assert_string_equal(err.place, "here");
  assert_int_not_equal(pst_error_prefix(NULL, "x"), 0);
}

static void test_long_texts_are_cut_at_whole_characters(void **state) {
  (void)state;
  char text[1600];
  for (size_t odd = 0; odd < 3; odd++) { /* a three-byte character at every phase of the cut */
    memset(text, 'a', odd);
    size_t n = odd;
    while (n + 3 < sizeof text) {
      memcpy(text + n, "\xE2\x82\xAC", 3);
      n += 3;
    }
    text[n] = '\0';
    pst_error err = PST_ERROR_INIT;
    pst_error_set(&err, PST_E_IO, text, "%s", text);
    assert_true(pst_utf8_valid(pst_str_from(err.message)));
    assert_true(pst_utf8_valid(pst_str_from(err.place)));
    assert_true(strlen(err.message) >= sizeof err.message - 4);
    assert_true(strlen(err.place) >= sizeof err.place - 4);
    pst_error_prefix(&err, "%s", text);
    assert_true(pst_utf8_valid(pst_str_from(err.message)));
    pst_error_set_errno(&err, EIO, text, "%s", text);
    assert_true(pst_utf8_valid(pst_str_from(err.message)));
    char line[64];
    assert_true(pst_utf8_valid(pst_str_from(pst_error_format(&err, line, sizeof line))));
    assert_true(strlen(line) >= sizeof line - 4);
  }
}

static void test_format(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  char line[64] = "x";
  assert_string_equal(pst_error_format(&err, line, sizeof line), pst_error_text(0));
  err.code = PST_E_BUSY;
  assert_string_equal(pst_error_format(&err, line, sizeof line), pst_error_text(PST_E_BUSY));
  pst_error_set(&err, PST_E_IO, "a:1", "broken");
  assert_string_equal(pst_error_format(&err, line, sizeof line), "a:1: broken");
  assert_string_equal(pst_error_format(&err, line, 4), "a:1");
  assert_string_equal(pst_error_format(&err, line, 1), "");
  line[0] = 'k';
  (void)pst_error_format(&err, line, 0);
  assert_int_equal(line[0], 'k');
}

static void test_every_code_has_its_own_text(void **state) {
  (void)state;
#define ROW(name, value, text) name,
  static const int codes[] = {PST_ERROR_TABLE(ROW)};
#undef ROW
  for (size_t i = 0; i < PST_ARRAY_LEN(codes); i++) {
    assert_true(codes[i] < 0);
    for (size_t j = 0; j < i; j++) {
      assert_int_not_equal(codes[i], codes[j]);
      assert_string_not_equal(pst_error_text(codes[i]), pst_error_text(codes[j]));
    }
  }
  assert_string_equal(pst_error_text(-9999), "unknown error");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_set_fills_all_and_returns_the_code),
      cmocka_unit_test(test_own_fields_may_be_arguments),
      cmocka_unit_test(test_errno_chooses_the_code),
      cmocka_unit_test(test_prefix_keeps_code_and_place),
      cmocka_unit_test(test_long_texts_are_cut_at_whole_characters),
      cmocka_unit_test(test_format),
      cmocka_unit_test(test_every_code_has_its_own_text),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
