/* Broken UTF-8, number text and normal forms against CPython's answers (make_base.py). The inputs are drawn by pst_random, so the
 * hashes also hold the generator to its published function. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/internal.h"
#include "golden/base_golden.h"

static void assert_digest(pst_sha256 *hash, const char *want, int batch) {
  uint8_t digest[32];
  char hex[65];
  pst_sha256_done(hash, digest);
  pst_hex(digest, sizeof digest, hex);
  if (strcmp(hex, want) != 0) fail_msg("batch %d: %s instead of CPython's %s", batch, hex, want);
}

static void test_broken_utf8_is_replaced_as_python_does(void **state) {
  (void)state;
  static const uint8_t edges[] = {0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
                                  0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
  for (int batch = 0; batch < GOLDEN_N_BATCHES; batch++) {
    pst_sha256 hash;
    pst_sha256_init(&hash);
    pst_buf out = PST_BUF_INIT;
    for (uint64_t index = 0; index < GOLDEN_N_STRINGS; index++) {
      pst_random draws = {(uint64_t)batch, index, 0};
      char text[16];
      size_t n = pst_random_next(&draws) % 16;
      for (size_t i = 0; i < n; i++) {
        uint64_t x = pst_random_next(&draws);
        text[i] = (char)(x & 3 ? edges[(x >> 8) % sizeof edges] : (uint8_t)(x >> 8 & 255));
      }
      pst_buf_clear(&out);
      pst_utf8_sanitize((pst_str){text, n}, &out);
      pst_sha256_update(&hash, pst_buf_text(&out), out.n + 1);
      assert_int_equal(pst_utf8_valid((pst_str){text, n}), out.n == n && memcmp(pst_buf_text(&out), text, n) == 0);
      assert_int_equal(pst_utf8_count((pst_str){text, n}), pst_utf8_count(pst_buf_str(&out)));
    }
    pst_buf_done(&out);
    assert_digest(&hash, golden_utf8[batch], batch);
  }
}

static double draw_number(uint64_t batch, uint64_t index) {
  uint64_t bits = pst_random_u64(batch + 2000, index, 0);
  switch (index % 4) {
  case 1: bits = (bits & 0xFFF0000000000000u) + (bits % 5 - 2); break;
  case 2: return (double)((bits >> 20) % 1000000000) / pow(10.0, (double)(bits % 23));
  case 3: return (double)(bits >> (bits % 64));
  default: break;
  }
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static void test_numbers_are_written_as_ecmascript_does(void **state) {
  (void)state;
  for (int batch = 0; batch < GOLDEN_N_BATCHES; batch++) {
    pst_sha256 hash;
    pst_sha256_init(&hash);
    for (uint64_t index = 0; index < GOLDEN_N_NUMBERS; index++) {
      double value = draw_number((uint64_t)batch, index), again = 0;
      if (!isfinite(value)) continue;
      char text[40];
      size_t n = pst_double_text(value, text);
      pst_sha256_update(&hash, text, n);
      pst_sha256_update(&hash, "\n", 1);
      assert_int_equal(pst_parse_double((pst_str){text, n}, &again), 0);
      assert_true(again == value);
    }
    assert_digest(&hash, golden_numbers[batch], batch);
  }
}

static void draw_marked_text(uint64_t batch, uint64_t index, pst_buf *out) {
  static const uint32_t blocks[][2] = {{0x41, 0x250},    {0x300, 0x370},   {0x391, 0x3A2},   {0x400, 0x500},
                                       {0x900, 0x980},   {0x1100, 0x1200}, {0x2100, 0x2150}, {0x3041, 0x3097},
                                       {0xAC00, 0xD7A4}, {0xF900, 0xFA6E}, {0xFF01, 0xFFBF}, {0x1D15E, 0x1D165}};
  pst_random draws = {batch + 1000, index, 0};
  pst_buf_clear(out);
  for (uint64_t left = pst_random_next(&draws) % 64; left > 0; left--) {
    uint64_t x = pst_random_next(&draws);
    const uint32_t *block = blocks[(x & 255) % PST_ARRAY_LEN(blocks)];
    char bytes[4];
    size_t n = pst_utf8_put(block[0] + (uint32_t)((x >> 8) % (block[1] - block[0])), bytes);
    pst_buf_append(out, bytes, n);
  }
}

static void test_normal_forms_are_pythons(void **state) {
  (void)state;
  static const struct {
    const char *form, *const *want;
  } forms[] = {{"NFC", golden_nfc}, {"NFD", golden_nfd}, {"NFKC", golden_nfkc}, {"NFKD", golden_nfkd}};
  pst_buf text = PST_BUF_INIT, out = PST_BUF_INIT;
  for (size_t f = 0; f < PST_ARRAY_LEN(forms); f++)
    for (int batch = 0; batch < GOLDEN_N_BATCHES; batch++) {
      pst_sha256 hash;
      pst_sha256_init(&hash);
      for (uint64_t index = 0; index < GOLDEN_N_TEXTS; index++) {
        draw_marked_text((uint64_t)batch, index, &text);
        pst_buf_clear(&out);
        assert_int_equal(pst_unicode_normalize(pst_buf_str(&text), forms[f].form, &out), 0);
        pst_sha256_update(&hash, pst_buf_text(&out), out.n + 1);
      }
      assert_digest(&hash, forms[f].want[batch], batch);
    }
  pst_buf_done(&text);
  pst_buf_done(&out);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_broken_utf8_is_replaced_as_python_does),
      cmocka_unit_test(test_numbers_are_written_as_ecmascript_does),
      cmocka_unit_test(test_normal_forms_are_pythons),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
