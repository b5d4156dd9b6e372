/* Regular expressions: flags, groups, offsets, and the bounds that keep a hostile pattern from hanging the program. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <string.h>

static pst_regex *make(const char *pattern, unsigned flags) {
  pst_regex *re = NULL;
  pst_error err = PST_ERROR_INIT;
  if (pst_regex_create(pst_str_from(pattern), flags, &re, &err) != 0) fail_msg("%s: %s", pattern, err.message);
  return re;
}

static void test_flags(void **state) {
  (void)state;
  static const struct {
    const char *pattern;
    unsigned flags;
    const char *text;
    int want;
    size_t start, end;
  } rows[] = {
      {"b+", 0, "aabbc", 1, 2, 4},
      {"B", 0, "abc", 0, 0, 0},
      {"B", PST_REGEX_CASELESS, "abc", 1, 1, 2},
      {"\xC3\x89", PST_REGEX_CASELESS, "caf\xC3\xA9", 1, 3, 5}, /* É finds é */
      {"b", PST_REGEX_ANCHORED, "ab", 0, 0, 0},
      {"a", PST_REGEX_ANCHORED, "ab", 1, 0, 1},
      {"^b$", 0, "a\nb\nc", 0, 0, 0},
      {"^b$", PST_REGEX_MULTILINE, "a\nb\nc", 1, 2, 3},
      {"a.b", 0, "a\nb", 0, 0, 0},
      {"a.b", PST_REGEX_DOTALL, "a\nb", 1, 0, 3},
      {"^.$", 0, "\xF0\x9F\x98\x80", 1, 0, 4}, /* a dot is a code point */
      {"\\w+", 0, "-\xC3\xA9t\xC3\xA9-", 1, 1, 6},
      {"\\w+", PST_REGEX_ASCII, "-\xC3\xA9t\xC3\xA9-", 1, 3, 4},
      {"\\d", 0, "\xD9\xA3", 1, 0, 2}, /* Arabic three */
      {"\\d", PST_REGEX_ASCII, "\xD9\xA3", 0, 0, 0},
      {"\\s", 0, "\xC2\xA0", 1, 0, 2},
      {"\\p{L}+", PST_REGEX_ASCII, "1\xC3\xA9", 1, 1, 3}, /* properties named in the pattern stay */
      {"x*", 0, "abc", 1, 0, 0},
      {"", 0, "", 1, 0, 0},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    for (unsigned trusted = 0; trusted <= PST_REGEX_VALID_TEXT; trusted += PST_REGEX_VALID_TEXT) {
      pst_regex *re = make(rows[i].pattern, rows[i].flags | trusted);
      pst_span span = {77, 77};
      int rc = pst_regex_find(re, pst_str_from(rows[i].text), 0, &span, 1);
      if (rc != rows[i].want || (rc == 1 && (span.start != rows[i].start || span.end != rows[i].end)))
        fail_msg("row %zu: %d, %zu to %zu", i, rc, span.start, span.end);
      pst_regex_free(re);
    }
  }
  pst_regex_free(NULL);
}

static void test_groups(void **state) {
  (void)state;
  pst_regex *re = make("(a)|(b)(c)?", 0);
  pst_span s[6];
  assert_int_equal(pst_regex_find(re, PST_STR("xb"), 0, s, 6), 1);
  assert_int_equal(s[0].start, 1);
  assert_int_equal(s[0].end, 2);
  assert_true(s[1].start == SIZE_MAX && s[1].end == SIZE_MAX);
  assert_int_equal(s[2].start, 1);
  for (size_t i = 3; i < 6; i++) /* did not take part, or there is no such group */
    assert_true(s[i].start == SIZE_MAX && s[i].end == SIZE_MAX);
  s[1].start = 5;
  assert_int_equal(pst_regex_find(re, PST_STR("a"), 0, s, 1), 1);
  assert_int_equal(s[1].start, 5); /* no more spans than asked for */
  assert_int_equal(pst_regex_find(re, PST_STR("a"), 0, NULL, 0), 1);
  assert_int_equal(pst_regex_find(re, PST_STR("xyz"), 0, NULL, 0), 0);
  pst_regex_free(re);
}

static void test_from_is_an_offset_not_a_new_text(void **state) {
  (void)state;
  pst_regex *re = make("(?<=a)b|^c", 0);
  pst_span s;
  assert_int_equal(pst_regex_find(re, PST_STR("ab"), 1, &s, 1), 1); /* sees what stands before */
  assert_int_equal(s.start, 1);
  assert_int_equal(pst_regex_find(re, PST_STR("xc"), 1, &s, 1), 0);
  assert_int_equal(pst_regex_find(re, PST_STR("ab"), 2, &s, 1), 0);
  assert_int_equal(pst_regex_find(re, PST_STR("ab"), 3, &s, 1), 0); /* beyond the end */
  assert_int_equal(pst_regex_find(re, pst_str_from(NULL), 0, &s, 1), 0);
  pst_regex_free(re);
}

static void test_bad_patterns_are_named(void **state) {
  (void)state;
  static const char *const bad[] = {"(", "[a", "a{2,1}", "*", "\\", "(?<n", "\\C", "\\p{Nonsense}", "a\xFF", "(?R"};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++) {
    pst_regex *re = NULL;
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_regex_create(pst_str_from(bad[i]), 0, &re, &err), PST_E_BAD_INPUT);
    assert_null(re);
    assert_true(strlen(err.message) > 20);
  }
  static char huge[300000];
  memset(huge, 'a', sizeof huge);
  pst_regex *re = NULL;
  assert_int_equal(pst_regex_create((pst_str){huge, sizeof huge}, 0, &re, NULL), PST_E_LIMIT);
  assert_int_not_equal(pst_regex_create(PST_STR("((((a{900}){900}){900}){900})"), 0, &re, NULL),
                       0); /* a tiny text, a huge program */
  assert_null(re);
}

static void test_broken_text_is_refused(void **state) {
  (void)state;
  pst_regex *re = make("b", 0);
  assert_int_equal(pst_regex_find(re, PST_STR("\xFF b"), 0, NULL, 0), PST_E_BAD_INPUT);
  assert_int_equal(pst_regex_find(re, PST_STR("b\xE2\x82"), 0, NULL, 0), PST_E_BAD_INPUT);
  assert_int_equal(pst_regex_find(re, PST_STR("\xC3\xA9 b"), 1, NULL, 0), PST_E_BAD_INPUT); /* inside a character */
  assert_int_equal(pst_regex_find(re, (pst_str){"a\0b", 3}, 0, NULL, 0), 1);                /* NUL is a character */
  pst_regex_free(re);
}

static void test_backtracking_is_bounded(void **state) {
  (void)state;
  static char text[5000];
  memset(text, 'a', sizeof text - 1);
  text[sizeof text - 1] = '!';
  static const char *const patterns[] = {"^(a+)+$", "^(a|aa)+$", "(x+x+)+y|(a*)*b", "^(a|a)*$", "(.*)*(.*)*(.*)*c"};
  for (size_t i = 0; i < PST_ARRAY_LEN(patterns); i++) {
    pst_regex *re = make(patterns[i], 0);
    int rc = pst_regex_find(re, (pst_str){text, sizeof text}, 0, NULL, 0);
    if (rc != PST_E_LIMIT && rc != 0) fail_msg("%s: %d", patterns[i], rc);
    pst_regex_free(re);
  }
  pst_regex *re = make("^(a+)+$", 0); /* this one surely hits the bound */
  assert_int_equal(pst_regex_find(re, (pst_str){text, sizeof text}, 0, NULL, 0), PST_E_LIMIT);
  assert_int_equal(pst_regex_find(re, PST_STR("aaa"), 0, NULL, 0), 1); /* and is usable after */
  pst_regex_free(re);
}

/* More stack than compiled code has: the interpreter must answer, and rightly. */
static void test_deep_matches_fall_back(void **state) {
  (void)state;
  enum { N = 100000 };
  char *text = pst_malloc(N);
  assert_non_null(text);
  memset(text, 'a', N);
  pst_regex *re = make("^(?:a|b(c))*+$|^(a|b)*d$", 0);
  pst_span s;
  assert_int_equal(pst_regex_find(re, (pst_str){text, N}, 0, &s, 1), 1);
  assert_int_equal(s.end, N);
  pst_regex_free(re);
  re = make("^(?:(a)|b)*$", 0); /* each repetition keeps a way back */
  int rc = pst_regex_find(re, (pst_str){text, N}, 0, &s, 1);
  assert_true(rc == 1 || rc == PST_E_LIMIT);
  if (rc == 1) assert_int_equal(s.end, N);
  pst_regex_free(re);
  pst_free(text);
}

static void *search(void *data) {
  const pst_regex *re = data;
  size_t n_wrong = 0;
  for (int i = 0; i < 2000; i++) {
    char text[64];
    pst_span s[2];
    int n = snprintf(text, sizeof text, "%*s<%d>", i % 20, "", i);
    n_wrong += pst_regex_find(re, (pst_str){text, (size_t)n}, 0, s, 2) != 1 || s[1].start != (size_t)(i % 20) + 1;
  }
  return (void *)n_wrong;
}

static void test_threads_share_one(void **state) {
  (void)state;
  pst_regex *re = make("<(\\d+)>", 0);
  pthread_t threads[4];
  for (size_t i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, search, re), 0);
  for (size_t i = 0; i < 4; i++) {
    void *n_wrong = re;
    assert_int_equal(pthread_join(threads[i], &n_wrong), 0);
    assert_null(n_wrong);
  }
  pst_regex_free(re);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_flags),
      cmocka_unit_test(test_groups),
      cmocka_unit_test(test_from_is_an_offset_not_a_new_text),
      cmocka_unit_test(test_bad_patterns_are_named),
      cmocka_unit_test(test_broken_text_is_refused),
      cmocka_unit_test(test_backtracking_is_bounded),
      cmocka_unit_test(test_deep_matches_fall_back),
      cmocka_unit_test(test_threads_share_one),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
