/* Money: exact parsing and printing, overflow, rounding up. */
#include <penstock/store.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void overflow_is_caught(void **state) {
  (void)state;
  int64_t v = 7;
  assert_int_equal(pst_store_nusd_add(INT64_MAX, 1, &v), PST_E_LIMIT);
  assert_int_equal(pst_store_nusd_sub(INT64_MIN, 1, &v), PST_E_LIMIT);
  assert_int_equal(pst_store_nusd_mul(INT64_MAX / 2, 3, &v), PST_E_LIMIT);
  assert_int_equal(pst_store_nusd_scale(INT64_MAX, INT64_MAX, 1, &v), PST_E_LIMIT);
  assert_int_equal(pst_store_nusd_scale(-1, 1, 1, &v), PST_E_BAD_INPUT);
  assert_int_equal(pst_store_nusd_scale(1, 1, 0, &v), PST_E_BAD_INPUT);
  assert_int_equal(v, 7);
  assert_int_equal(pst_store_nusd_add(INT64_MAX, -1, &v), 0);
  assert_true(v == INT64_MAX - 1);
}

static void scale_rounds_up(void **state) {
  (void)state;
  int64_t v;
  assert_int_equal(pst_store_nusd_scale(1, 1, 1000000, &v), 0);
  assert_int_equal(v, 1);
  assert_int_equal(pst_store_nusd_scale(0, 5, 1000000, &v), 0);
  assert_int_equal(v, 0);
  assert_int_equal(pst_store_nusd_scale(2000000, 150000000, 1000000, &v), 0);
  assert_int_equal(v, 300000000);
  assert_int_equal(pst_store_nusd_scale(INT64_MAX, 1000000, 1000000, &v), 0);
  assert_true(v == INT64_MAX);
}

static void parses_exactly(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int code;
    int64_t nusd;
  } cases[] = {
      {"12", 0, 12000000000},
      {"0.15", 0, 150000000},
      {"$1.5", 0, 1500000000},
      {"-$1.5", 0, -1500000000},
      {"1e-3", 0, 1000000},
      {"1.5E+2", 0, 150000000000},
      {".5", 0, 500000000},
      {"5.", 0, 5000000000},
      {"0.000000001", 0, 1},
      {"0.0000000010", 0, 1},
      {"1.00000000000000000000000000000", 0, 1000000000},
      {"  3 ", 0, 3000000000},
      {"0", 0, 0},
      {"0e50", 0, 0},
      {"9223372036.854775807", 0, INT64_MAX},
      {"9223372036.854775808", PST_E_LIMIT, 0},
      {"1e30", PST_E_LIMIT, 0},
      {"99999999999999999999999", PST_E_LIMIT, 0},
      {"0.0000000001", PST_E_BAD_INPUT, 0},
      {"", PST_E_BAD_INPUT, 0},
      {".", PST_E_BAD_INPUT, 0},
      {"$", PST_E_BAD_INPUT, 0},
      {"1.2.3", PST_E_BAD_INPUT, 0},
      {"1e", PST_E_BAD_INPUT, 0},
      {"1e5x", PST_E_BAD_INPUT, 0},
      {"1,5", PST_E_BAD_INPUT, 0},
      {"--1", PST_E_BAD_INPUT, 0},
      {"inf", PST_E_BAD_INPUT, 0},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    int64_t v = 42;
    int code = pst_store_nusd_parse(pst_str_from(cases[i].text), &v);
    if (code != cases[i].code) fail_msg("\"%s\": code %d, expected %d", cases[i].text, code, cases[i].code);
    if (v != (code ? 42 : cases[i].nusd)) fail_msg("\"%s\": %lld", cases[i].text, (long long)v);
  }
}

static void format_is_parsed_back(void **state) {
  (void)state;
  static const struct {
    int64_t nusd;
    const char *text;
  } cases[] = {{0, "0"},
               {1, "0.000000001"},
               {-12500000000, "-12.5"},
               {1000000000, "1"},
               {1200000, "0.0012"},
               {INT64_MAX, "9223372036.854775807"},
               {100000000000, "100"}};
  char text[32];
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    pst_store_nusd_format(cases[i].nusd, text);
    assert_string_equal(text, cases[i].text);
  }
  pst_store_nusd_format(INT64_MIN, text);
  assert_string_equal(text, "-9223372036.854775808");
  pst_random r = {20240917, 1, 0};
  for (int i = 0; i < 20000; i++) {
    int64_t v = (int64_t)(pst_random_next(&r) >> 1) >> pst_random_below(&r, 63), back = 0;
    if (pst_random_below(&r, 2)) v = -v;
    pst_store_nusd_format(v, text);
    assert_int_equal(pst_store_nusd_parse(pst_str_from(text), &back), 0);
    assert_true(back == v);
  }
}

static void price_of_tokens(void **state) {
  (void)state;
  int64_t v;
  pst_store_price p = {150000000, 75000000, 600000000};
  assert_int_equal(pst_store_price_cost(p, 1000, 400, 10, &v), 0);
  assert_int_equal(v, 600 * 150 + 400 * 75 + 10 * 600);
  p.cached_input = PST_STORE_NO_LIMIT;
  assert_int_equal(pst_store_price_cost(p, 1000, 400, 10, &v), 0);
  assert_int_equal(v, 1000 * 150 + 10 * 600);
  assert_int_equal(pst_store_price_cost(p, 10, 11, 0, &v), PST_E_BAD_INPUT);
  assert_int_equal(pst_store_price_cost((pst_store_price){INT64_MAX, 0, 0}, INT64_MAX, 0, 0, &v), PST_E_LIMIT);
  assert_int_equal(v, 1000 * 150 + 10 * 600);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(overflow_is_caught),    cmocka_unit_test(scale_rounds_up), cmocka_unit_test(parses_exactly),
      cmocka_unit_test(format_is_parsed_back), cmocka_unit_test(price_of_tokens),
  };
  return cmocka_run_group_tests_name("store money", tests, NULL, NULL);
}
