/* Which tables exist and which one is chosen. $PENSTOCK_TEST_ISA: the table that this CPU is known to run at most, so that a test under an
 * emulator does not pass for want of anything to compare. */
#include "kernels/check.h"

static const char *const x86[] = {"scalar", "avx2", "avx512"}, *const arm[] = {"scalar", "neon", "dotprod", "i8mm"};

/* The tables of one machine in order, each found only if those before it are; returns the last. */
static const char *last_of(const char *const *names, size_t n) {
  const char *last = NULL;
  size_t n_found = 0;
  for (size_t i = 0; i < n; i++) {
    const pst_kernels *k = pst_kernels_find(names[i]);
    if (!k) continue;
    assert_string_equal(k->name, names[i]);
    assert_int_equal(n_found, i);
    n_found++;
    last = names[i];
  }
  return last;
}

static void the_widest_is_chosen(void **state) {
  (void)state;
  const char *of_x86 = last_of(x86, PST_ARRAY_LEN(x86)), *of_arm = last_of(arm, PST_ARRAY_LEN(arm));
  const char *widest = strcmp(of_arm, "scalar") != 0 ? of_arm : of_x86, *known = getenv("PENSTOCK_TEST_ISA");
  assert_true(strcmp(of_arm, "scalar") == 0 || strcmp(of_x86, "scalar") == 0);
  assert_string_equal(pst_kernels_get()->name, widest);
  if (known) assert_string_equal(widest, known);
}

static void a_table_can_be_forced(void **state) {
  (void)state;
  const pst_kernels *scalar = pst_kernels_find("scalar"), *usual = pst_kernels_get();
  pst_kernels_set(scalar);
  assert_ptr_equal(pst_kernels_get(), scalar);
  pst_kernels_set(NULL);
  assert_ptr_equal(pst_kernels_get(), usual);
  assert_null(pst_kernels_find("mmx"));
}

int main(void) {
  unsetenv("PENSTOCK_CPU");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_widest_is_chosen),
      cmocka_unit_test(a_table_can_be_forced),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
