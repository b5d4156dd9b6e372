/* Near-duplicates: what the index finds against what comparing all pairs finds. */
#include <penstock/data.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SETS = 1500, MOST = 220 };

static uint64_t sets[SETS][MOST];
static size_t sizes[SETS];

/* Half of the sets are others with some tokens changed, so that all similarities occur; words are drawn so that some are frequent (rank by a square). */
static void draw_sets(uint64_t seed, size_t least, size_t most) {
  pst_random dice = {seed, 0, 0};
  for (size_t i = 0; i < SETS; i++) {
    if (i && pst_random_below(&dice, 2)) {
      size_t from = (size_t)pst_random_below(&dice, i), changes = (size_t)pst_random_below(&dice, sizes[from] / 3 + 1);
      sizes[i] = sizes[from];
      memcpy(sets[i], sets[from], sizeof sets[i]);
      for (size_t k = 0; k < changes; k++)
        sets[i][pst_random_below(&dice, sizes[i])] = 100000 + pst_random_below(&dice, 100000);
    } else {
      sizes[i] = least + (size_t)pst_random_below(&dice, most - least + 1);
      for (size_t k = 0; k < sizes[i]; k++) {
        double u = pst_random_next_unit(&dice);
        sets[i][k] = 5000 - (uint64_t)(u * u * 4000);
      }
    }
    sizes[i] = pst_data_tokens_sort(sets[i], sizes[i]);
  }
}

static int64_t first_near(size_t i, double threshold) {
  for (size_t k = 0; k < i; k++)
    if (pst_data_jaccard(sets[i], sizes[i], sets[k], sizes[k]) >= threshold - 1e-12) return (int64_t)k;
  return -1;
}

/* *ret_wrong: what was found is not near, or not the first although it is. Returns found of wanted. */
static void compare(double threshold, size_t *ret_wanted, size_t *ret_found, size_t *ret_wrong) {
  pst_data_similar *index = pst_data_similar_create(threshold);
  *ret_wanted = *ret_found = *ret_wrong = 0;
  for (size_t i = 0; i < SETS; i++) {
    int64_t found = -1, wanted = first_near(i, threshold);
    assert_int_equal(pst_data_similar_find(index, 0, sets[i], sizes[i], NULL, NULL, &found), 0);
    assert_int_equal(pst_data_similar_add(index, 0, sets[i], sizes[i]), 0);
    *ret_wanted += wanted >= 0;
    *ret_found += wanted >= 0 && found >= 0;
    if (found >= 0 && pst_data_jaccard(sets[i], sizes[i], sets[found], sizes[found]) < threshold - 1e-9) ++*ret_wrong;
    if (found >= 0 && found < wanted) ++*ret_wrong;
  }
  pst_data_similar_free(index);
}

static void small_sets_are_found_exactly(void **state) {
  (void)state;
  static const double thresholds[] = {0.5, 0.6, 0.8, 0.9, 1};
  for (size_t t = 0; t < PST_ARRAY_LEN(thresholds); t++) {
    size_t wanted, found, wrong;
    draw_sets(t + 1, 0, PST_DATA_SHORT);
    compare(thresholds[t], &wanted, &found, &wrong);
    assert_true(wanted > 100);
    assert_int_equal(found, wanted);
    assert_int_equal(wrong, 0);
  }
}

static void large_sets_are_found(void **state) {
  (void)state;
  static const double thresholds[] = {0.6, 0.8, 0.9};
  for (size_t t = 0; t < PST_ARRAY_LEN(thresholds); t++) {
    size_t wanted, found, wrong;
    draw_sets(t + 10, 10, MOST); /* on both sides of the border */
    compare(thresholds[t], &wanted, &found, &wrong);
    print_message("threshold %.1f: %zu of %zu\n", thresholds[t], found, wanted);
    assert_true(wanted > 100);
    assert_true(found * 1000 >= wanted * 995);
    assert_int_equal(wrong, 0);
  }
}

static bool only_even(void *user, int64_t number) {
  ++*(int *)user;
  return number % 2 == 0;
}

static void a_caller_may_refuse(void **state) {
  (void)state;
  const uint64_t set[] = {1, 5, 9};
  pst_data_similar *index = pst_data_similar_create(0.8);
  int64_t found = -1;
  int asked = 0;
  for (int i = 0; i < 4; i++) assert_int_equal(pst_data_similar_add(index, 0, set, 3), 0);
  assert_int_equal(pst_data_similar_find(index, 0, set, 3, only_even, &asked, &found), 0);
  assert_int_equal(found, 0);
  assert_true(asked >= 1);
  assert_int_equal(pst_data_similar_find(index, 1, set, 3, only_even, &asked, &found), 0); /* another group's */
  assert_int_equal(found, -1);
  assert_int_equal(pst_data_similar_find(index, 0, set, 0, NULL, NULL, &found), 0);
  assert_int_equal(found, -1); /* nothing is like nothing, but nothing */
  assert_int_equal(pst_data_similar_add(index, 0, set, 0), 0);
  assert_int_equal(pst_data_similar_find(index, 0, set, 0, NULL, NULL, &found), 0);
  assert_int_equal(found, 4);
  pst_data_similar_free(index);
}

static void memory_may_run_out(void **state) {
  (void)state;
  draw_sets(77, 0, 40);
  for (int64_t n = 0; n < 60; n++) {
    pst_memory_fail_after(n);
    pst_data_similar *index = pst_data_similar_create(0.8);
    int code = index ? 0 : PST_E_NOMEM;
    for (size_t i = 0; i < SETS && !code; i++) code = pst_data_similar_add(index, 0, sets[i], sizes[i]);
    pst_memory_fail_after(-1);
    assert_true(code == 0 || code == PST_E_NOMEM);
    pst_data_similar_free(index);
    if (!code) return;
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(small_sets_are_found_exactly),
                                     cmocka_unit_test(large_sets_are_found), cmocka_unit_test(a_caller_may_refuse),
                                     cmocka_unit_test(memory_may_run_out)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
