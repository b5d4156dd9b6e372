/* UTF-8 both ways, properties, normal forms. The bulk against CPython is tests/golden/test_base_golden.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <string.h>

static void test_every_code_point_goes_round(void **state) {
  (void)state;
  for (uint32_t cp = 0; cp <= 0x110010; cp++) {
    char bytes[4];
    bool scalar = cp <= 0x10FFFF && !(cp >= 0xD800 && cp <= 0xDFFF);
    size_t n = pst_utf8_put(cp, bytes), i = 0;
    assert_true(n >= 1 && n <= 4);
    assert_true(pst_utf8_next(bytes, n, &i) == (scalar ? cp : 0xFFFD));
    assert_int_equal(i, n);
    for (size_t cut = 1; cut < n; cut++) { /* each beginning is one broken piece that could be completed */
      i = 0;
      assert_true(pst_utf8_next(bytes, cut, &i) == 0xFFFD);
      assert_int_equal(i, cut);
      assert_int_equal(pst_utf8_incomplete_tail((pst_str){bytes, cut}), cut);
    }
    assert_int_equal(pst_utf8_incomplete_tail((pst_str){bytes, n}), 0);
  }
}

static void test_broken_sequences(void **state) {
  (void)state;
  /* From the Unicode standard, section 3.9 (tables 3-8 to 3-11), and the edges of table 3-7. R stands for U+FFFD. */
  static const char *const rows[][2] = {
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "RRRRRRRRA"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "RRRRRRRRA"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", "RRRRRARRB"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "RRRRA"},
      {"\xC2", "R"},
      {"\xC2\x41", "RA"},
      {"\xE0\x9F\x80", "RRR"},
      {"\xF0\x8F\x80\x80", "RRRR"},
      {"\xF0\x90\x80", "R"},
      {"\xF5\x80\x80\x80", "RRRR"},
      {"\x80", "R"},
      {"a\xF1\x80\x80"
       "b",
       "aRb"},
  };
  for (size_t r = 0; r < PST_ARRAY_LEN(rows); r++) {
    pst_buf out = PST_BUF_INIT, want = PST_BUF_INIT;
    for (const char *c = rows[r][1]; *c; c++) pst_buf_puts(&want, *c == 'R' ? "\xEF\xBF\xBD" : (char[2]){*c, 0});
    pst_utf8_sanitize(pst_str_from(rows[r][0]), &out);
    assert_string_equal(pst_buf_text(&out), pst_buf_text(&want));
    assert_int_equal(pst_utf8_count(pst_str_from(rows[r][0])), strlen(rows[r][1]));
    assert_false(pst_utf8_valid(pst_str_from(rows[r][0])));
    assert_true(pst_utf8_valid(pst_buf_str(&out)));
    pst_buf_done(&out);
    pst_buf_done(&want);
  }
  assert_true(pst_utf8_valid(PST_STR("\xEF\xBF\xBD"))); /* a written U+FFFD is not a mistake */
  assert_true(pst_utf8_valid(pst_str_from(NULL)));
  assert_true(pst_utf8_valid((pst_str){"a\0b", 3}));
  assert_int_equal(pst_utf8_count(pst_str_from(NULL)), 0);
  pst_buf out = PST_BUF_INIT;
  pst_utf8_sanitize(PST_STR("0123456789abcdef\xC3\xA9-0123456\xFF"
                            "0123456789"),
                    &out);
  assert_string_equal(pst_buf_text(&out), "0123456789abcdef\xC3\xA9-0123456\xEF\xBF\xBD"
                                          "0123456789");
  pst_buf_done(&out);
}

static void test_incomplete_tails(void **state) {
  (void)state;
  static const struct {
    const char *text;
    size_t want;
  } rows[] = {{"", 0},
              {"abc", 0},
              {"a\xC3", 1},
              {"a\xC3\xA9", 0},
              {"a\xE2\x82", 2},
              {"\xF0\x9F\x98", 3},
              {"\xF0\x9F\x98\x80", 0},
              {"\x80", 0},
              {"\x80\x80\x80\x80", 0},
              {"\xE0\x80", 0},
              {"\xED\xA0", 0},
              {"\xF4\x90", 0},
              {"\xF4\x8F", 2},
              {"\xC0", 0},
              {"\xFF", 0},
              {"\xE2\x82\xC3", 1},
              {"\xF0\x9F\x98\x80\xF0", 1},
              {"\xE2\x82\x82\x82", 0}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++)
    if (pst_utf8_incomplete_tail(pst_str_from(rows[i].text)) != rows[i].want)
      fail_msg("row %zu: %zu", i, pst_utf8_incomplete_tail(pst_str_from(rows[i].text)));
}

static void test_properties(void **state) {
  (void)state;
  assert_int_equal(pst_unicode_lower('A'), 'a');
  assert_int_equal(pst_unicode_upper(0xE9), 0xC9);
  assert_int_equal(pst_unicode_lower(0x10400), 0x10428);
  assert_int_equal(pst_unicode_lower(0x110000), 0x110000);
  assert_int_equal(pst_unicode_upper(0xFFFFFFFF), 0xFFFFFFFF);
  static const struct {
    uint32_t cp;
    bool letter, number, space;
  } rows[] = {{'a', true, false, false},       {'_', false, false, false},        {'7', false, true, false},
              {' ', false, false, true},       {0x4E2D, true, false, false},      {0x0663, false, true, false},
              {0x2167, false, true, false},    {0xBD, false, true, false},        {0xA0, false, false, true},
              {0x85, false, false, true},      {0x2003, false, false, true},      {0x3000, false, false, true},
              {0x200B, false, false, false},   {0x180E, false, false, false},     {0x1C, false, false, false},
              {0xFEFF, false, false, false},   {0x1F600, false, false, false},    {0x378, false, false, false},
              {0x110000, false, false, false}, {0xFFFFFFFF, false, false, false}, {0xD800, false, false, false},
              {0x2C6F, true, false, false},    {0x0B, false, false, true}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++)
    if (pst_unicode_is_letter(rows[i].cp) != rows[i].letter || pst_unicode_is_number(rows[i].cp) != rows[i].number ||
        pst_unicode_is_space(rows[i].cp) != rows[i].space)
      fail_msg("U+%04X", (unsigned)rows[i].cp);
}

static void expect_form(const char *form, const char *text, const char *want) {
  pst_buf out = PST_BUF_INIT;
  assert_int_equal(pst_unicode_normalize(pst_str_from(text), form, &out), 0);
  assert_string_equal(pst_buf_text(&out), want);
  pst_buf_done(&out);
}

static void test_normal_forms(void **state) {
  (void)state;
  expect_form("NFC", "e\xCC\x81", "\xC3\xA9");
  expect_form("NFD", "\xC3\xA9", "e\xCC\x81");
  expect_form("NFKC", "\xEF\xAC\x81\xE2\x91\xA0", "fi1");
  expect_form("NFKD", "\xC2\xBD",
              "1\xE2\x81\x84"
              "2");
  expect_form("NFC", "\xE2\x84\xAB", "\xC3\x85");                             /* the angstrom sign is a singleton */
  expect_form("NFD", "a\xCC\x87\xCC\xA3", "a\xCC\xA3\xCC\x87");               /* marks in the order of their classes */
  expect_form("NFC", "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xED\x95\x9C"); /* jamo to a syllable */
  expect_form("NFC", "\xEA\xB0\x80\xE1\x86\xA7", "\xEA\xB0\x80\xE1\x86\xA7"); /* U+11A7 is no trailing consonant */
  expect_form("NFC",
              "\xE1\x86\xA7\xE1\x86\xA7"
              "e\xCC\x81",
              "\xE1\x86\xA7\xE1\x86\xA7\xC3\xA9");
  expect_form("NFC",
              "a\xFF"
              "e\xCC\x81",
              "a\xEF\xBF\xBD\xC3\xA9"); /* broken bytes are replaced first */
  expect_form("NFKC", "", "");
  pst_buf out = PST_BUF_INIT;
  assert_int_equal(pst_unicode_normalize(PST_STR("a"), "NFX", &out), PST_E_BAD_INPUT);
  assert_int_equal(pst_unicode_normalize(PST_STR("a"), "", &out), PST_E_BAD_INPUT);
  pst_buf_puts(&out, "before ");
  assert_int_equal(pst_unicode_normalize((pst_str){"a\0b", 3}, "NFC", &out), 0); /* appends; NUL is a character */
  assert_memory_equal(out.data, "before a\0b", 11);
  pst_buf_done(&out);
}

/* A long run of marks in descending order: quadratic ordering would take minutes, and the order must be stable. */
static void test_long_runs_of_marks(void **state) {
  (void)state;
  enum { N = 200000 };
  pst_buf text = PST_BUF_INIT, want = PST_BUF_INIT, out = PST_BUF_INIT;
  pst_buf_putc(&text, 'a');
  for (int i = 0; i < N; i++) /* above (230), above (230), below (220) */
    pst_buf_puts(&text, i % 3 == 0 ? "\xCC\x90" : i % 3 == 1 ? "\xCC\x8D" : "\xCC\xA0");
  pst_buf_putc(&want, 'a');
  for (int i = 0; i < N; i++)
    if (i % 3 == 2) pst_buf_puts(&want, "\xCC\xA0");
  for (int i = 0; i < N; i++)
    if (i % 3 != 2) pst_buf_puts(&want, i % 3 == 0 ? "\xCC\x90" : "\xCC\x8D");
  assert_int_equal(pst_unicode_normalize(pst_buf_str(&text), "NFD", &out), 0);
  assert_true(pst_str_equal(pst_buf_str(&out), pst_buf_str(&want)));
  pst_buf_clear(&out);
  assert_int_equal(pst_unicode_normalize(pst_buf_str(&text), "NFC", &out), 0);
  assert_true(pst_str_equal(pst_buf_str(&out), pst_buf_str(&want)));
  pst_buf_done(&text);
  pst_buf_done(&want);
  pst_buf_done(&out);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_code_point_goes_round),
      cmocka_unit_test(test_broken_sequences),
      cmocka_unit_test(test_incomplete_tails),
      cmocka_unit_test(test_properties),
      cmocka_unit_test(test_normal_forms),
      cmocka_unit_test(test_long_runs_of_marks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
