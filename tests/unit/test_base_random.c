/* Clocks and random numbers. The statistics are of fixed draws, so they pass always or never. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <math.h>
#include <string.h>

/* Random123's known answers for philox2x64-10: key, counter words, first word of the result. */
static void test_philox_known_answers(void **state) {
  (void)state;
  assert_true(pst_random_u64(0, 0, 0) == 0xca00a0459843d731u);
  assert_true(pst_random_u64(UINT64_MAX, UINT64_MAX, UINT64_MAX) == 0x65b021d60cd8310fu);
  assert_true(pst_random_u64(0xa4093822299f31d0u, 0x13198a2e03707344u, 0x243f6a8885a308d3u) == 0x0a5e742c2997341cu);
}

static void test_generator_walks_the_counter(void **state) {
  (void)state;
  pst_random r = {7, 8, 9};
  for (uint64_t i = 0; i < 100; i++) {
    assert_true(pst_random_next(&r) == pst_random_u64(7, 8, 9 + i));
    assert_int_equal(r.counter, 10 + i);
  }
  r.counter = 5;
  assert_true(pst_random_next_unit(&r) == pst_random_unit(7, 8, 5));
}

/* 256 classes of each byte, over neighbours in each coordinate: chi-square with 255 degrees stays within six deviations. */
static void test_bytes_are_uniform_along_each_coordinate(void **state) {
  (void)state;
  enum { N = 1 << 16 };
  for (int coordinate = 0; coordinate < 3; coordinate++)
    for (unsigned shift = 0; shift < 64; shift += 8) {
      unsigned count[256] = {0};
      for (uint64_t i = 0; i < N; i++) {
        uint64_t at[3] = {1, 2, 3};
        at[coordinate] += i;
        count[pst_random_u64(at[0], at[1], at[2]) >> shift & 255]++;
      }
      double chi = 0, mean = N / 256.0;
      for (int k = 0; k < 256; k++) chi += (count[k] - mean) * (count[k] - mean) / mean;
      assert_true(fabs(chi - 255) < 6 * sqrt(2 * 255.0));
    }
}

/* One bit changed in any coordinate changes each output bit in half of the cases. */
static void test_every_input_bit_reaches_every_output_bit(void **state) {
  (void)state;
  enum { N = 4096 };
  for (int coordinate = 0; coordinate < 3; coordinate++)
    for (unsigned bit = 0; bit < 64; bit += 7) {
      unsigned flips[64] = {0};
      for (uint64_t i = 0; i < N; i++) {
        uint64_t at[3] = {i, i * 3 + 1, i * 7 + 5};
        uint64_t before = pst_random_u64(at[0], at[1], at[2]);
        at[coordinate] ^= (uint64_t)1 << bit;
        uint64_t changed = before ^ pst_random_u64(at[0], at[1], at[2]);
        for (unsigned k = 0; k < 64; k++) flips[k] += (unsigned)(changed >> k & 1);
      }
      for (unsigned k = 0; k < 64; k++) assert_true(fabs(flips[k] - N / 2.0) < 6 * sqrt(N / 4.0));
    }
}

static void test_units(void **state) {
  (void)state;
  enum { N = 100000 };
  double sum = 0, squares = 0, lag = 0, before = 0.5;
  for (uint64_t i = 0; i < N; i++) {
    double u = pst_random_unit(11, 12, i);
    assert_true(u >= 0 && u < 1);
    assert_true(u * 0x1p53 == floor(u * 0x1p53));
    sum += u;
    squares += u * u;
    lag += (u - 0.5) * (before - 0.5);
    before = u;
  }
  assert_true(fabs(sum / N - 0.5) < 6 * sqrt(1.0 / 12 / N));
  assert_true(fabs(squares / N - 1.0 / 3) < 6 * sqrt(4.0 / 45 / N));
  assert_true(fabs(lag / N) < 6.0 / 12 / sqrt(N));
}

static void test_below_is_in_range_and_fair(void **state) {
  (void)state;
  pst_random r = {5, 6, 0};
  static const uint64_t bounds[] = {1, 2, 3, 10, 1000, (uint64_t)1 << 33, ((uint64_t)1 << 63) + 1, UINT64_MAX};
  for (size_t b = 0; b < PST_ARRAY_LEN(bounds); b++)
    for (int i = 0; i < 2000; i++) assert_true(pst_random_below(&r, bounds[b]) < bounds[b]);
  /* 2^63 + 2^62: without rejection the lower third would come up twice as often */
  uint64_t n = ((uint64_t)3 << 62);
  unsigned count[3] = {0};
  for (int i = 0; i < 30000; i++) count[pst_random_below(&r, n) >> 62]++;
  for (int k = 0; k < 3; k++) assert_true(fabs(count[k] - 10000.0) < 6 * sqrt(30000.0 * 2 / 9));
}

static void test_secrets_differ(void **state) {
  (void)state;
  uint8_t a[64] = {0}, b[64] = {0}, zero[64] = {0};
  assert_int_equal(pst_random_secret(a, sizeof a), 0);
  assert_int_equal(pst_random_secret(b, sizeof b), 0);
  assert_memory_not_equal(a, b, sizeof a);
  assert_memory_not_equal(a, zero, sizeof a);
  assert_int_equal(pst_random_secret(a, 0), 0);
  static uint8_t large[100000]; /* more than one system call gives */
  assert_int_equal(pst_random_secret(large, sizeof large), 0);
  assert_memory_not_equal(large + sizeof large - 64, zero, 64);
}

static void test_clocks(void **state) {
  (void)state;
  int64_t before = pst_clock_ns();
  for (int i = 0; i < 1000; i++) {
    int64_t now = pst_clock_ns();
    assert_true(now >= before);
    before = now;
  }
  int64_t us = pst_clock_us();
  assert_true(us >= before / 1000 && us <= pst_clock_ns() / 1000);
  assert_true(pst_clock_unix_ms() > INT64_C(1700000000000)); /* November 2023 */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_philox_known_answers),
      cmocka_unit_test(test_generator_walks_the_counter),
      cmocka_unit_test(test_bytes_are_uniform_along_each_coordinate),
      cmocka_unit_test(test_every_input_bit_reaches_every_output_bit),
      cmocka_unit_test(test_units),
      cmocka_unit_test(test_below_is_in_range_and_fair),
      cmocka_unit_test(test_secrets_differ),
      cmocka_unit_test(test_clocks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
