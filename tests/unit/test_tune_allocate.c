/* Which offers matrices take within a budget: never over it, the best for few matrices, and a refusal where even the smallest do not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tune/allocate.h"

static int64_t bytes_of(const pst_tune_choice *c, size_t n) {
  int64_t sum = 0;
  for (size_t i = 0; i < n; i++) sum += c[i].offers[c[i].chosen].bytes;
  return sum;
}

static void takes_what_saves_most(void **state) {
  (void)state;
  pst_tune_choice c[2] = {{{{1, 10, 5}, {2, 20, 1}, {3, 40, 0.5}}, 3, 0},
                          {{{1, 10, 9}, {2, 20, 8.5}, {3, 40, 0}}, 3, 0}};
  assert_int_equal(pst_tune_allocate(c, 2, 30),
                   0); /* 0.4 a byte for the first, 0.05 for the second's next and 0.3, too large, for its last */
  assert_int_equal(c[0].chosen, 1);
  assert_int_equal(c[1].chosen, 0);
  assert_int_equal(pst_tune_allocate(c, 2, 60), 0);
  assert_int_equal(c[0].chosen, 1);
  assert_int_equal(c[1].chosen, 2);
  assert_int_equal(pst_tune_allocate(c, 2, 80), 0);
  assert_int_equal(c[0].chosen, 2);
}

static void equal_bytes_by_loss(void **state) {
  (void)state;
  pst_tune_choice c = {{{1, 10, 5}, {2, 10, 4}, {3, 9, 8}}, 3, 0};
  assert_int_equal(pst_tune_cheapest(&c), 2);
  c.n = 2;
  assert_int_equal(pst_tune_cheapest(&c), 1);
}

static void more_bytes_for_nothing_are_not_taken(void **state) {
  (void)state;
  pst_tune_choice c = {{{1, 10, 5}, {2, 20, 5}, {3, 30, 6}}, 3, 0};
  assert_int_equal(pst_tune_allocate(&c, 1, 100), 0);
  assert_int_equal(c.chosen, 0);
}

static void never_over_budget(void **state) {
  (void)state;
  pst_tune_choice c[20];
  for (int64_t budget = 150; budget < 1200; budget += 37) {
    for (size_t i = 0; i < 20; i++) {
      c[i].n = 4;
      for (int t = 0; t < 4; t++)
        c[i].offers[t] =
            (pst_tune_offer){(uint32_t)t, 8 + t * (int64_t)(3 + i % 5), pst_random_unit(1, i, 0) / (t + 1)};
    }
    int64_t least = 20 * 8;
    int code = pst_tune_allocate(c, 20, budget);
    assert_int_equal(code, budget < least ? PST_E_LIMIT : 0);
    assert_true(code || bytes_of(c, 20) <= budget);
    for (size_t i = 0; i < 20 && !code; i++) /* nothing more would have fitted */
      if (c[i].chosen < 3)
        assert_true(bytes_of(c, 20) + c[i].offers[c[i].chosen + 1].bytes - c[i].offers[c[i].chosen].bytes > budget);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(takes_what_saves_most), cmocka_unit_test(equal_bytes_by_loss),
                                     cmocka_unit_test(more_bytes_for_nothing_are_not_taken),
                                     cmocka_unit_test(never_over_budget)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
