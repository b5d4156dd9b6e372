/* Memory: the seam that makes allocations fail, doubling arrays, the arena. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <string.h>

static int stop_failing(void **state) {
  (void)state;
  pst_memory_fail_after(-1);
  return 0;
}

static void test_seam_counts(void **state) {
  (void)state;
  pst_memory_fail_after(2);
  void *a = pst_malloc(1), *b = pst_calloc(1, 1), *c = pst_malloc(1), *d = pst_malloc_aligned(8, 64),
       *e = pst_realloc(a, 9);
  char *f = pst_strdup("x");
  pst_memory_fail_after(-1);
  assert_non_null(a);
  assert_non_null(b);
  assert_null(c);
  assert_null(d);
  assert_null(e); /* and a is still ours */
  assert_null(f);
  pst_free(a);
  pst_free(b);
  pst_memory_fail_after(0);
  c = pst_malloc(1);
  pst_memory_fail_after(-1);
  assert_null(c);
  c = pst_malloc(1);
  assert_non_null(c);
  pst_free(c);
}

static _Atomic int n_succeeded;

static void *allocate_some(void *unused) {
  for (int i = 0; i < 1000; i++) {
    void *p = pst_malloc(16);
    if (p) n_succeeded++;
    pst_free(p);
  }
  return unused;
}

static void test_seam_is_exact_among_threads(void **state) {
  (void)state;
  pthread_t threads[4];
  n_succeeded = 0;
  pst_memory_fail_after(1234);
  for (size_t i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, allocate_some, NULL), 0);
  for (size_t i = 0; i < 4; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
  pst_memory_fail_after(-1);
  assert_int_equal(n_succeeded, 1234);
}

static void test_sizes_zero_and_too_large(void **state) {
  (void)state;
  void *zero[] = {pst_malloc(0), pst_calloc(0, 8), pst_calloc(8, 0), pst_realloc(NULL, 0), pst_malloc_aligned(0, 64)};
  for (size_t i = 0; i < PST_ARRAY_LEN(zero); i++) {
    assert_non_null(zero[i]);
    pst_free(zero[i]);
  }
  pst_free(NULL);
  volatile size_t huge = SIZE_MAX;
  assert_null(pst_calloc(huge / 2, 4));
  assert_null(pst_calloc(4, huge / 2));
  assert_null(pst_malloc(huge));
  assert_null(pst_malloc((size_t)1 << 40));
  assert_null(pst_malloc_aligned(huge - 100, 64));
  assert_null(pst_strndup("x", huge));
  char *kept = pst_strdup("kept");
  assert_null(pst_realloc(kept, huge));
  assert_string_equal(kept, "kept");
  pst_free(kept);
}

static void test_alignment(void **state) {
  (void)state;
  for (size_t alignment = 8; alignment <= 1 << 21; alignment *= 2) {
    void *p = pst_malloc_aligned(100, alignment);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % alignment, 0);
    memset(p, 1, 100);
    pst_free(p);
  }
  assert_null(pst_malloc_aligned(8, 0));
  assert_null(pst_malloc_aligned(8, 24));
}

static void test_strings_are_copied(void **state) {
  (void)state;
  char *a = pst_strdup("abc"), *b = pst_strndup("abcdef", 2), *c = pst_strndup(NULL, 0), *d = pst_strndup("a\0b", 3);
  assert_string_equal(a, "abc");
  assert_string_equal(b, "ab");
  assert_string_equal(c, "");
  assert_memory_equal(d, "a\0b", 4);
  pst_free(a);
  pst_free(b);
  pst_free(c);
  pst_free(d);
}

static void test_array_grows_and_keeps(void **state) {
  (void)state;
  uint32_t *items = NULL;
  size_t capacity = 0, n_grown = 0;
  for (uint32_t i = 0; i < 10000; i++) {
    size_t before = capacity;
    assert_int_equal(pst_array_reserve((void **)&items, &capacity, i + 1, sizeof *items), 0);
    n_grown += capacity != before;
    items[i] = i * 3;
  }
  assert_true(n_grown < 20); /* doubling, not creeping */
  for (uint32_t i = 0; i < 10000; i++) assert_int_equal(items[i], i * 3);
  uint32_t *before = items;
  size_t capacity_before = capacity;
  assert_int_equal(pst_array_reserve((void **)&items, &capacity, SIZE_MAX / 2, sizeof *items), PST_E_NOMEM);
  assert_int_equal(pst_array_reserve((void **)&items, &capacity, SIZE_MAX, 1), PST_E_NOMEM);
  pst_memory_fail_after(0);
  assert_int_equal(pst_array_reserve((void **)&items, &capacity, capacity + 1, sizeof *items), PST_E_NOMEM);
  pst_memory_fail_after(-1);
  assert_ptr_equal(items, before);
  assert_int_equal(capacity, capacity_before);
  pst_free(items);
}

typedef struct piece {
  unsigned char *at;
  size_t n;
} piece;

/* Pieces of all sizes: aligned, apart from each other, and unchanged until the end. */
static void fill_and_check(pst_arena *arena, uint64_t seed) {
  enum { N = 400 };
  piece pieces[N];
  pst_random r = {seed, 0, 0};
  size_t sum = 0;
  for (size_t i = 0; i < N; i++) {
    size_t n = (size_t)pst_random_below(&r, i % 50 == 49 ? 200000 : 300);
    pieces[i] = (piece){pst_arena_alloc(arena, n), n};
    assert_non_null(pieces[i].at);
    assert_int_equal((uintptr_t)pieces[i].at % 16, 0);
    memset(pieces[i].at, (int)(i & 255), n);
    sum += n;
  }
  for (size_t i = 0; i < N; i++)
    for (size_t k = 0; k < pieces[i].n; k++) assert_int_equal(pieces[i].at[k], i & 255);
  assert_int_equal(pst_arena_used(arena), sum);
}

static void test_arena(void **state) {
  (void)state;
  pst_arena *arena = pst_arena_create();
  assert_non_null(arena);
  for (uint64_t round = 0; round < 5; round++) {
    fill_and_check(arena, round);
    pst_arena_reset(arena);
    assert_int_equal(pst_arena_used(arena), 0);
  }
  int *zeroed = pst_arena_calloc(arena, 100, sizeof *zeroed);
  for (size_t i = 0; i < 100; i++) assert_int_equal(zeroed[i], 0);
  assert_string_equal(pst_arena_printf(arena, "%s-%05d", "x", 42), "x-00042");
  assert_string_equal(pst_arena_strndup(arena, "abcdef", 3), "abc");
  assert_string_equal(pst_arena_strndup(arena, NULL, 0), "");
  assert_non_null(pst_arena_alloc(arena, 0));
  assert_null(pst_arena_alloc(arena, SIZE_MAX));
  assert_null(pst_arena_alloc(arena, SIZE_MAX - 20));
  assert_null(pst_arena_calloc(arena, SIZE_MAX / 2, 3));
  assert_null(pst_arena_strndup(arena, "x", SIZE_MAX));
  pst_arena_free(arena);
  pst_arena_free(NULL);
}

/* After a reset the same small work must not allocate again: that is what a request arena is for. */
static void test_arena_reset_keeps_the_first_block(void **state) {
  (void)state;
  pst_arena *arena = pst_arena_create();
  assert_non_null(arena);
  assert_non_null(pst_arena_alloc(arena, 100000));
  pst_arena_reset(arena);
  pst_memory_fail_after(0);
  void *p = pst_arena_alloc(arena, 8000);
  void *too_large = pst_arena_alloc(arena, 100000);
  pst_memory_fail_after(-1);
  assert_non_null(p);
  assert_null(too_large);
  assert_non_null(pst_arena_alloc(arena, 100000)); /* usable after a failure */
  pst_arena_free(arena);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(test_seam_counts, stop_failing),
      cmocka_unit_test_teardown(test_seam_is_exact_among_threads, stop_failing),
      cmocka_unit_test(test_sizes_zero_and_too_large),
      cmocka_unit_test(test_alignment),
      cmocka_unit_test(test_strings_are_copied),
      cmocka_unit_test_teardown(test_array_grows_and_keeps, stop_failing),
      cmocka_unit_test(test_arena),
      cmocka_unit_test_teardown(test_arena_reset_keeps_the_first_block, stop_failing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
