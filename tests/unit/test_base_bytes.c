/* Views, the growable buffer, number parsing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <math.h>
#include <string.h>

static int sign(int x) { return (x > 0) - (x < 0); }

static void test_views(void **state) {
  (void)state;
  pst_str nothing = pst_str_from(NULL);
  assert_int_equal(nothing.n, 0);
  assert_true(pst_str_equal(nothing, PST_STR("")));
  assert_true(pst_str_is(PST_STR("ab"), "ab"));
  assert_false(pst_str_is(PST_STR("a\0b"), "a"));
  assert_true(pst_str_starts(PST_STR("abc"), PST_STR("ab")));
  assert_true(pst_str_starts(nothing, nothing));
  assert_false(pst_str_starts(PST_STR("a"), PST_STR("ab")));
  assert_int_equal(sign(pst_str_compare(PST_STR("a"), PST_STR("ab"))), -1);
  assert_int_equal(sign(pst_str_compare(PST_STR("b"), PST_STR("ab"))), 1);
  assert_int_equal(sign(pst_str_compare(PST_STR("\xff"), PST_STR("a"))), 1); /* bytes, not chars */
  assert_int_equal(pst_str_compare(nothing, PST_STR("")), 0);
  assert_true(pst_str_is(pst_str_trim(PST_STR(" \t\r\n\v\fa b ")), "a b"));
  assert_int_equal(pst_str_trim(PST_STR("  ")).n, 0);
  assert_int_equal(pst_str_trim(nothing).n, 0);
}

static void test_find_agrees_with_a_plain_search(void **state) {
  (void)state;
  pst_random r = {1, 2, 0};
  for (int round = 0; round < 20000; round++) {
    char hay[24], needle[4];
    size_t n = (size_t)pst_random_below(&r, sizeof hay), m = (size_t)pst_random_below(&r, sizeof needle + 1);
    for (size_t i = 0; i < n; i++) hay[i] = (char)('a' + pst_random_below(&r, 2));
    for (size_t i = 0; i < m; i++) needle[i] = (char)('a' + pst_random_below(&r, 2));
    size_t from = (size_t)pst_random_below(&r, n + 2), want = SIZE_MAX;
    for (size_t i = from; i + m <= n && want == SIZE_MAX; i++)
      if (memcmp(hay + i, needle, m) == 0) want = i;
    assert_int_equal(pst_str_find((pst_str){hay, n}, (pst_str){needle, m}, from), want);
  }
  assert_int_equal(pst_str_find(pst_str_from(NULL), pst_str_from(NULL), 0), 0);
}

static void test_buffer_grows_and_stays_terminated(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  assert_string_equal(pst_buf_text(&b), "");
  char want[5000];
  size_t n = 0;
  pst_random r = {3, 0, 0};
  while (n < 4000) {
    char piece[200];
    size_t k = (size_t)pst_random_below(&r, sizeof piece);
    for (size_t i = 0; i < k; i++) piece[i] = (char)pst_random_next(&r);
    pst_buf_append(&b, piece, k);
    memcpy(want + n, piece, k);
    n += k;
    pst_buf_putc(&b, 'x');
    want[n++] = 'x';
    assert_int_equal(b.n, n);
    assert_int_equal(b.data[b.n], 0);
    assert_true(b.capacity > b.n);
  }
  assert_memory_equal(b.data, want, n);
  pst_buf_clear(&b);
  assert_int_equal(b.n, 0);
  assert_string_equal(pst_buf_text(&b), "");
  pst_buf_append(&b, NULL, 0);
  pst_buf_append_str(&b, pst_str_from(NULL));
  pst_buf_puts(&b, "one ");
  pst_buf_append_str(&b, PST_STR("two "));
  pst_buf_printf(&b, "%s %d", "three", 4);
  assert_string_equal(pst_buf_text(&b), "one two three 4");
  assert_true(pst_str_is(pst_buf_str(&b), "one two three 4"));
  assert_int_equal(pst_buf_status(&b), 0);
  char *text = pst_buf_take(&b);
  assert_string_equal(text, "one two three 4");
  assert_null(b.data);
  assert_int_equal(b.n, 0);
  pst_free(text);
  text = pst_buf_take(&b); /* of an empty buffer: an empty string */
  assert_string_equal(text, "");
  pst_free(text);
}

static void test_buffer_may_append_itself(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  pst_buf_puts(&b, "ab");
  for (int i = 0; i < 12; i++) pst_buf_append(&b, b.data, b.n);
  assert_int_equal(b.n, 2 << 12);
  for (size_t i = 0; i < b.n; i++) assert_int_equal(b.data[i], "ab"[i % 2]);
  pst_buf_done(&b);
}

static void test_printf_at_every_size(void **state) {
  (void)state;
  for (int n = 0; n < 300; n++) { /* the buffer's edge falls on each place of the text */
    pst_buf b = PST_BUF_INIT;
    pst_buf_printf(&b, "%*s", n, "");
    pst_buf_printf(&b, "<%d>", n);
    char want[16];
    (void)snprintf(want, sizeof want, "<%d>", n);
    assert_int_equal(b.n, (size_t)n + strlen(want));
    assert_string_equal(b.data + n, want);
    pst_buf_done(&b);
  }
}

static void test_buffer_errors_are_sticky(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  pst_buf_puts(&b, "kept");
  assert_int_equal(pst_buf_reserve(&b, SIZE_MAX - 2), PST_E_NOMEM);
  assert_true(b.failed);
  pst_buf_puts(&b, "lost");
  pst_buf_putc(&b, 'l');
  pst_buf_printf(&b, "lost");
  assert_string_equal(pst_buf_text(&b), "kept");
  assert_int_equal(pst_buf_status(&b), PST_E_NOMEM);
  pst_buf_clear(&b);
  assert_int_equal(pst_buf_status(&b), 0);
  b.failed = true;
  assert_null(pst_buf_take(&b));
  assert_null(b.data); /* given back, not leaked */
}

static void test_integers(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int code;
    int64_t value;
  } rows[] = {{"0", 0, 0},
              {"-0", 0, 0},
              {"+7", 0, 7},
              {"007", 0, 7},
              {"9223372036854775807", 0, INT64_MAX},
              {"-9223372036854775808", 0, INT64_MIN},
              {"9223372036854775808", PST_E_LIMIT, 0},
              {"-9223372036854775809", PST_E_LIMIT, 0},
              {"99999999999999999999999999", PST_E_LIMIT, 0},
              {"18446744073709551616", PST_E_LIMIT, 0},
              {"99999999999999999999999999x", PST_E_BAD_INPUT, 0},
              {"", PST_E_BAD_INPUT, 0},
              {"-", PST_E_BAD_INPUT, 0},
              {"+-1", PST_E_BAD_INPUT, 0},
              {" 1", PST_E_BAD_INPUT, 0},
              {"1 ", PST_E_BAD_INPUT, 0},
              {"1.0", PST_E_BAD_INPUT, 0},
              {"0x10", PST_E_BAD_INPUT, 0},
              {"1e3", PST_E_BAD_INPUT, 0}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    int64_t value = 77;
    assert_int_equal(pst_parse_i64(pst_str_from(rows[i].text), INT64_MIN, INT64_MAX, &value), rows[i].code);
    assert_true(value == (rows[i].code ? 77 : rows[i].value)); /* untouched on failure */
  }
  int64_t value = 0;
  assert_int_equal(pst_parse_i64(PST_STR("11"), 0, 10, &value), PST_E_LIMIT);
  assert_int_equal(pst_parse_i64(PST_STR("-1"), 0, 10, &value), PST_E_LIMIT);
  assert_int_equal(pst_parse_i64(PST_STR("10"), 0, 10, &value), 0);
  assert_int_equal(pst_parse_i64((pst_str){"1\0", 2}, 0, 10, &value), PST_E_BAD_INPUT);
}

static void test_doubles(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int code;
    double value;
  } rows[] = {{"0", 0, 0},
              {"1.5", 0, 1.5},
              {"-2.5e-3", 0, -0.0025},
              {"+1E+2", 0, 100},
              {".5", 0, 0.5},
              {"5.", 0, 5},
              {"1e-400", 0, 0},
              {"4.9e-324", 0, 4.9e-324},
              {"1.7976931348623157e308", 0, 1.7976931348623157e308},
              {"1e309", PST_E_LIMIT, 0},
              {"-1e309", PST_E_LIMIT, 0},
              {"nan", PST_E_BAD_INPUT, 0},
              {"inf", PST_E_BAD_INPUT, 0},
              {"0x1p3", PST_E_BAD_INPUT, 0},
              {"", PST_E_BAD_INPUT, 0},
              {".", PST_E_BAD_INPUT, 0},
              {"-", PST_E_BAD_INPUT, 0},
              {"1e", PST_E_BAD_INPUT, 0},
              {"1e+", PST_E_BAD_INPUT, 0},
              {"1,5", PST_E_BAD_INPUT, 0},
              {" 1", PST_E_BAD_INPUT, 0},
              {"1 ", PST_E_BAD_INPUT, 0},
              {"1.5.2", PST_E_BAD_INPUT, 0},
              {"--1", PST_E_BAD_INPUT, 0}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    double value = 77;
    assert_int_equal(pst_parse_double(pst_str_from(rows[i].text), &value), rows[i].code);
    assert_true(value == (rows[i].code ? 77 : rows[i].value));
  }
  double value = 77;
  assert_int_equal(pst_parse_double((pst_str){"1\0", 2}, &value), PST_E_BAD_INPUT);
  char digits[4000];
  memset(digits, '1', sizeof digits);
  assert_int_equal(pst_parse_double((pst_str){digits, sizeof digits}, &value), PST_E_LIMIT);
  assert_true(value == 77);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_views),
      cmocka_unit_test(test_find_agrees_with_a_plain_search),
      cmocka_unit_test(test_buffer_grows_and_stays_terminated),
      cmocka_unit_test(test_buffer_may_append_itself),
      cmocka_unit_test(test_printf_at_every_size),
      cmocka_unit_test(test_buffer_errors_are_sticky),
      cmocka_unit_test(test_integers),
      cmocka_unit_test(test_doubles),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
