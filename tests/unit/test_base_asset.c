/* Embedded files are found by name, whole and terminated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <string.h>

static void test_every_listed_file_is_found(void **state) {
  (void)state;
  for (size_t i = 0; pst_asset_name(i) != NULL; i++) {
    pst_str data = {NULL, 0};
    assert_true(pst_asset_find(pst_asset_name(i), &data));
    assert_non_null(data.data);
    assert_int_equal(data.data[data.n], 0);
    assert_int_not_equal(strncmp(pst_asset_name(i), "src/", 4), 0);
  }
}

static void test_an_unknown_name_changes_nothing(void **state) {
  (void)state;
  pst_str data = PST_STR("before");
  assert_false(pst_asset_find("no/such/file", &data));
  assert_false(pst_asset_find("", &data));
  assert_string_equal(data.data, "before");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_listed_file_is_found),
      cmocka_unit_test(test_an_unknown_name_changes_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
