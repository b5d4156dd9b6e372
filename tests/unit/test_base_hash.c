/* SHA-256 against the standard's vectors and a second implementation; hash64's values, spread and collisions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void expect_sha256(const void *data, size_t n, const char *want) {
  char hex[65];
  pst_sha256_hex(data, n, hex);
  assert_string_equal(hex, want);
}

/* FIPS 180-4 and NIST's example values. */
static void test_sha256_vectors(void **state) {
  (void)state;
  expect_sha256("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  expect_sha256(NULL, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  expect_sha256("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  static const char two_blocks[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  expect_sha256(two_blocks, 56, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  char *million = pst_malloc(1000000);
  assert_non_null(million);
  memset(million, 'a', 1000000);
  expect_sha256(million, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  pst_free(million);
}

/* Chained over all lengths from 0 to 299; the last value is what hashlib gives for the same chain:
 *   d = b""
 *   for n in range(300): d = hashlib.sha256(d + bytes((i * 7 + n) % 256 for i in range(n))).digest() */
static void test_sha256_of_every_length(void **state) {
  (void)state;
  uint8_t digest[32];
  size_t n_digest = 0;
  for (size_t n = 0; n < 300; n++) {
    uint8_t text[300];
    for (size_t i = 0; i < n; i++) text[i] = (uint8_t)(i * 7 + n);
    pst_sha256 whole, pieces;
    uint8_t by_pieces[32];
    pst_sha256_init(&whole);
    pst_sha256_init(&pieces);
    pst_sha256_update(&whole, digest, n_digest);
    pst_sha256_update(&pieces, digest, n_digest);
    pst_sha256_update(&whole, text, n);
    for (size_t i = 0, step = 1; i < n; i += step, step = step * 3 % 67 + 1)
      pst_sha256_update(&pieces, text + i, PST_MIN(step, n - i));
    pst_sha256_done(&whole, digest);
    pst_sha256_done(&pieces, by_pieces);
    assert_memory_equal(digest, by_pieces, 32);
    n_digest = 32;
  }
  char hex[65];
  pst_hex(digest, 32, hex);
  assert_string_equal(hex, "d862fa7709f1a0ab662c69027d3957d7f0032a3b741198b773390159507aaab5");
}

static void test_hex(void **state) {
  (void)state;
  char hex[9] = "########";
  pst_hex((const uint8_t *)"\x00\x7f\xa5\xff", 4, hex);
  assert_string_equal(hex, "007fa5ff");
  pst_hex(NULL, 0, hex);
  assert_string_equal(hex, "");
}

/* Values are kept in files: these must never change. One length for each path through the function. */
static void test_hash64_values_are_stable(void **state) {
  (void)state;
  static const struct {
    size_t n;
    uint64_t want;
  } rows[] = {
      {0, 0xa105864db3ae1aaeu},   {1, 0xaf4693bd2c65276cu},   {2, 0xf95783a1e3267ecdu},  {3, 0x25f4ea39be407b26u},
      {4, 0xde5b632f2b597099u},   {7, 0x8063ed581711285eu},   {8, 0xeb163bfcf7477362u},  {9, 0x3a41ff532ebf1ed9u},
      {16, 0x1c59ea645b7e8ca2u},  {17, 0x2fa78a706a71728fu},  {32, 0x45df5e7b9c1f5111u}, {33, 0xfcb178ac23ffc87bu},
      {64, 0x800e8ac322d10f8eu},  {65, 0x3dc86f226461fc7du},  {80, 0x9d4e1b697afc24aau}, {128, 0x40ba2d0a09426240u},
      {129, 0x5448bf95ba6a8f6du}, {200, 0x46cfb030e9f78ed1u},
  };
  uint8_t data[200];
  for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 37 + 11);
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    uint64_t got = pst_hash64(data, rows[i].n, 42);
    if (got != rows[i].want) fail_msg("%zu bytes give 0x%016llx", rows[i].n, (unsigned long long)got);
  }
  assert_true(pst_hash64(NULL, 0, 42) == pst_hash64(data, 0, 42));
}

static void test_hash64_does_not_depend_on_the_address(void **state) {
  (void)state;
  uint8_t data[160], moved[180];
  for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)pst_random_u64(1, 2, i);
  for (size_t n = 0; n <= sizeof data; n++)
    for (size_t shift = 1; shift < 9; shift += 3) {
      memset(moved, 0xAA, sizeof moved);
      memcpy(moved + shift, data, n);
      assert_true(pst_hash64(data, n, 9) == pst_hash64(moved + shift, n, 9));
    }
}

/* Each input bit (seed included) changes each output bit in half of the cases, at lengths of every path. */
static void test_hash64_avalanche(void **state) {
  (void)state;
  enum { N = 2000 };
  static const size_t lengths[] = {1, 3, 4, 7, 8, 15, 16, 17, 33, 64, 65, 130};
  for (size_t l = 0; l < PST_ARRAY_LEN(lengths); l++) {
    size_t n = lengths[l];
    for (size_t bit = 0; bit<8 * n + 64; bit += n> 8 ? 29 : 5) {
      unsigned flips[64] = {0};
      for (uint64_t i = 0; i < N; i++) {
        uint8_t data[130];
        uint64_t seed = i;
        for (size_t k = 0; k < n; k++) data[k] = (uint8_t)(pst_random_u64(n, i, k / 8) >> (k % 8 * 8));
        uint64_t before = pst_hash64(data, n, seed);
        if (bit < 8 * n)
          data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        else
          seed ^= (uint64_t)1 << (bit - 8 * n);
        uint64_t changed = before ^ pst_hash64(data, n, seed);
        for (unsigned k = 0; k < 64; k++) flips[k] += (unsigned)(changed >> k & 1);
      }
      for (unsigned k = 0; k < 64; k++)
        if (fabs(flips[k] - N / 2.0) > 6 * sqrt(N / 4.0))
          fail_msg("length %zu, input bit %zu, output bit %u: %u of %d", n, bit, k, flips[k], N);
    }
  }
}

static int compare_u64(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

/* Neighbouring keys of the kinds that tables hold: no collision of 64 bits, and low bits spread as by chance. */
static void test_hash64_of_structured_keys(void **state) {
  (void)state;
  enum { N = 200000, KINDS = 6 };
  uint64_t *hashes = pst_calloc(N, sizeof *hashes);
  assert_non_null(hashes);
  for (int kind = 0; kind < KINDS; kind++) {
    unsigned buckets[1024] = {0};
    for (uint64_t i = 0; i < N; i++) {
      uint8_t data[96] = {0};
      size_t n = 8;
      switch (kind) {
      case 0: memcpy(data, &i, 8); break;                                                               /* counters */
      case 1: n = (size_t)snprintf((char *)data, sizeof data, "key%llu", (unsigned long long)i); break; /* names */
      case 2: n = 96, memcpy(data + 88, &i, 8); break; /* long, the end differs */
      case 3: n = 96, memcpy(data, &i, 8); break;      /* long, the beginning differs */
      case 4:
        data[i / 2048 % 96] = (uint8_t)(i % 256), data[i % 2048 / 256 + 1] ^= 128, n = 96, memcpy(data + 48, &i, 8);
        break;
      default: memcpy(data, &(uint64_t){i << 40}, 8); break; /* only high bits */
      }
      hashes[i] = pst_hash64(data, n, 0);
      buckets[hashes[i] & 1023]++;
    }
    double chi = 0, mean = N / 1024.0;
    for (size_t k = 0; k < 1024; k++) chi += (buckets[k] - mean) * (buckets[k] - mean) / mean;
    if (fabs(chi - 1023) > 6 * sqrt(2 * 1023.0)) fail_msg("keys of kind %d: chi-square %.0f", kind, chi);
    qsort(hashes, N, sizeof *hashes, compare_u64);
    size_t n_keys = kind == 5 ? (size_t)1 << 24 : N; /* shifted by 40 bits, 2^24 keys differ */
    for (size_t i = 1; i < PST_MIN(n_keys, (size_t)N); i++) assert_true(hashes[i] != hashes[i - 1]);
  }
  pst_free(hashes);
}

/* Runs of zeros of different lengths, and values that would zero a factor of the product, stay apart. */
static void test_hash64_of_hostile_keys(void **state) {
  (void)state;
  uint64_t hashes[1200];
  size_t n = 0;
  uint8_t zeros[300] = {0}, pair[16];
  for (size_t k = 0; k < 300; k++) hashes[n++] = pst_hash64(zeros, k, 0);
  for (uint64_t seed = 1; seed < 300; seed++) hashes[n++] = pst_hash64(zeros, 0, seed);
  static const uint64_t salts[6] = {0x6a09e667f3bcc909, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                    0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f};
  for (size_t s = 0; s < 6; s++)
    for (uint64_t other = 0; other < 100; other++) { /* the first word cancels a salt */
      memcpy(pair, &salts[s], 8);
      memcpy(pair + 8, &other, 8);
      hashes[n++] = pst_hash64(pair, 16, 0);
    }
  qsort(hashes, n, sizeof *hashes, compare_u64);
  for (size_t i = 1; i < n; i++) assert_true(hashes[i] != hashes[i - 1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sha256_vectors),
      cmocka_unit_test(test_sha256_of_every_length),
      cmocka_unit_test(test_hex),
      cmocka_unit_test(test_hash64_values_are_stable),
      cmocka_unit_test(test_hash64_does_not_depend_on_the_address),
      cmocka_unit_test(test_hash64_avalanche),
      cmocka_unit_test(test_hash64_of_structured_keys),
      cmocka_unit_test(test_hash64_of_hostile_keys),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
