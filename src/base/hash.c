/* Hashes: SHA-256 (FIPS 180-4) for names of artefacts and for keys, and hash64 for tables.
 *
 * Model files of hundreds of megabytes are hashed, so SHA-256 uses the x86 SHA instructions where the processor has them;
 * the choice is made once, at run time. hash64 is a table hash of our own: 128-bit products folded to 64 bits, in four
 * independent lanes; its values are stored and must never change. Neither it nor its seed resists an attacker who sees
 * hash values. */
#include <penstock/base.h>

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define HAVE_SHA_NI 1
#endif

/* ---- SHA-256 ---- */

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate_right(uint32_t x, unsigned bits) { return x >> bits | x << (32 - bits); }

static uint32_t load_be32(const uint8_t *p) {
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void store_be32(uint8_t *p, uint32_t x) {
  p[0] = (uint8_t)(x >> 24);
  p[1] = (uint8_t)(x >> 16);
  p[2] = (uint8_t)(x >> 8);
  p[3] = (uint8_t)x;
}

static void sha256_blocks_plain(uint32_t h[8], const uint8_t *data, size_t n_blocks) {
  for (; n_blocks > 0; n_blocks--, data += 64) {
    uint32_t w[64];
    for (size_t t = 0; t < 16; t++) w[t] = load_be32(data + 4 * t);
    for (size_t t = 16; t < 64; t++) {
      uint32_t s0 = rotate_right(w[t - 15], 7) ^ rotate_right(w[t - 15], 18) ^ w[t - 15] >> 3;
      uint32_t s1 = rotate_right(w[t - 2], 17) ^ rotate_right(w[t - 2], 19) ^ w[t - 2] >> 10;
      w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    uint32_t v[8]; /* a, b, ... h of the standard */
    memcpy(v, h, sizeof v);
    for (size_t t = 0; t < 64; t++) {
      uint32_t big1 = rotate_right(v[4], 6) ^ rotate_right(v[4], 11) ^ rotate_right(v[4], 25);
      uint32_t choose = (v[4] & v[5]) ^ (~v[4] & v[6]);
      uint32_t t1 = v[7] + big1 + choose + round_constants[t] + w[t];
      uint32_t big0 = rotate_right(v[0], 2) ^ rotate_right(v[0], 13) ^ rotate_right(v[0], 22);
      uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      memmove(v + 1, v, 7 * sizeof v[0]);
      v[4] += t1;
      v[0] = t1 + big0 + majority;
    }
    for (size_t i = 0; i < 8; i++) h[i] += v[i];
  }
}

#ifdef HAVE_SHA_NI
/* The instructions keep the state as (A B E F) and (C D G H); each sha256rnds2 does two rounds with the two low words of
 * message + constant. The message schedule runs in a ring of four registers of four words. */
__attribute__((target("sha,sse4.1,ssse3"))) static void sha256_blocks_ni(uint32_t h[8], const uint8_t *data,
                                                                         size_t n_blocks) {
  const __m128i byte_swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i dcba = _mm_loadu_si128((const __m128i *)(const void *)h);
  __m128i hgfe = _mm_loadu_si128((const __m128i *)(const void *)(h + 4));
  __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1);
  __m128i efgh = _mm_shuffle_epi32(hgfe, 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
  for (; n_blocks > 0; n_blocks--, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; i++)
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(data + 16 * i)), byte_swap);
    for (int i = 0; i < 16; i++) {
      __m128i wk = _mm_add_epi32(w[i & 3], _mm_loadu_si128((const __m128i *)(const void *)(round_constants + 4 * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(wk, 0x0e));
      if (i < 12) { /* words 4(i+4) to 4(i+4)+3, from the last sixteen */
        __m128i next = _mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]);
        next = _mm_add_epi32(next, _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4));
        w[i & 3] = _mm_sha256msg2_epu32(next, w[(i + 3) & 3]);
      }
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
  __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128((__m128i *)(void *)h, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128((__m128i *)(void *)(h + 4), _mm_alignr_epi8(dchg, feba, 8));
}

static bool cpu_has_sha_ni(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1) || !(c & bit_SSSE3)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}
#endif

static void sha256_blocks(uint32_t h[8], const uint8_t *data, size_t n_blocks) {
#ifdef HAVE_SHA_NI
  static atomic_int choice; /* 0: not asked yet, 1: plain, 2: SHA instructions */
  int chosen = atomic_load_explicit(&choice, memory_order_relaxed);
  if (chosen == 0) {
    chosen = cpu_has_sha_ni() ? 2 : 1;
    atomic_store_explicit(&choice, chosen, memory_order_relaxed);
  }
  if (chosen == 2) {
    sha256_blocks_ni(h, data, n_blocks);
    return;
  }
#endif
  sha256_blocks_plain(h, data, n_blocks);
}

void pst_sha256_init(pst_sha256 *s) {
  static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  memcpy(s->h, start, sizeof s->h);
  s->n_bytes = 0;
  memset(s->block, 0, sizeof s->block);
}

void pst_sha256_update(pst_sha256 *s, const void *data, size_t n) {
  const uint8_t *at = data;
  size_t held = s->n_bytes % 64;
  s->n_bytes += n;
  if (held) {
    size_t take = PST_MIN(n, 64 - held);
    if (take) memcpy(s->block + held, at, take);
    if (held + take < 64) return;
    sha256_blocks(s->h, s->block, 1);
    at += take;
    n -= take;
  }
  if (n >= 64) {
    sha256_blocks(s->h, at, n / 64);
    at += n / 64 * 64;
    n %= 64;
  }
  if (n) memcpy(s->block, at, n);
}

void pst_sha256_done(pst_sha256 *s, uint8_t ret_digest[32]) {
  size_t held = s->n_bytes % 64;
  uint64_t n_bits = s->n_bytes * 8;
  s->block[held++] = 0x80;
  if (held > 56) {
    memset(s->block + held, 0, 64 - held);
    sha256_blocks(s->h, s->block, 1);
    held = 0;
  }
  memset(s->block + held, 0, 56 - held);
  store_be32(s->block + 56, (uint32_t)(n_bits >> 32));
  store_be32(s->block + 60, (uint32_t)n_bits);
  sha256_blocks(s->h, s->block, 1);
  for (size_t i = 0; i < 8; i++) store_be32(ret_digest + 4 * i, s->h[i]);
}

void pst_hex(const uint8_t *data, size_t n, char *ret_hex) {
  static const char digits[] = "0123456789abcdef";
  for (size_t i = 0; i < n; i++) {
    ret_hex[2 * i] = digits[data[i] >> 4];
    ret_hex[2 * i + 1] = digits[data[i] & 15];
  }
  ret_hex[2 * n] = '\0';
}

void pst_sha256_hex(const void *data, size_t n, char ret_hex[65]) {
  pst_sha256 s;
  uint8_t digest[32];
  pst_sha256_init(&s);
  pst_sha256_update(&s, data, n);
  pst_sha256_done(&s, digest);
  pst_hex(digest, sizeof digest, ret_hex);
}

/* ---- hash64 ---- */

__extension__ typedef unsigned __int128 uint128;

/* Odd constants with balanced bits: fractional parts of square roots of small primes, lowest bit set. */
static const uint64_t salt[6] = {0x6a09e667f3bcc909, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                 0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f};

static uint64_t load_le64(const uint8_t *p) {
  uint64_t x;
  memcpy(&x, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  x = __builtin_bswap64(x);
#endif
  return x;
}

static uint64_t load_le32(const uint8_t *p) {
  return (uint64_t)p[3] << 24 | (uint64_t)p[2] << 16 | (uint64_t)p[1] << 8 | p[0];
}

/* Both halves of the product, and the factors again: a factor of 0 must not lose the other one. */
static uint64_t fold(uint64_t a, uint64_t b) {
  uint128 product = (uint128)a * b;
  return a ^ b ^ (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t pst_hash64(const void *data, size_t n, uint64_t seed) {
  const uint8_t *p = data;
  uint64_t state = fold(seed ^ salt[0], salt[1]);
  uint64_t a = 0, b = 0;
  size_t left = n;
  if (n > 64) {
    uint64_t lane[4] = {state, state ^ salt[2], state ^ salt[3], state ^ salt[4]};
    for (; left > 64; left -= 64, p += 64)
      for (size_t i = 0; i < 4; i++)
        lane[i] = fold(load_le64(p + 16 * i) ^ salt[i + 1], load_le64(p + 16 * i + 8) ^ lane[i]);
    state = fold(lane[0] ^ salt[1], lane[1]) ^ fold(lane[2] ^ salt[2], lane[3]);
  }
  for (; left > 16; left -= 16, p += 16) state = fold(load_le64(p) ^ salt[2], load_le64(p + 8) ^ state);
  if (left >= 8) { /* 8 to 16: two words that may overlap */
    a = load_le64(p);
    b = load_le64(p + left - 8);
  } else if (left >= 4) {
    a = load_le32(p);
    b = load_le32(p + left - 4);
  } else if (left > 0) {
    a = (uint64_t)p[0] << 16 | (uint64_t)p[left / 2] << 8 | p[left - 1];
  }
  state = fold(a ^ salt[3], b ^ state);
  return fold(state ^ salt[4], (uint64_t)n ^ salt[5]);
}
