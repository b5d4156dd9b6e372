/* Codes and scales of packed records in 512-bit registers: as the VNNI products read them. */
#ifndef PST_KERNELS_UNPACK_AVX512_H
#define PST_KERNELS_UNPACK_AVX512_H

#include "kernels/layout.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

/* `kind` is a GGUF type that every caller knows when compiled, so that all questions below vanish. */
INLINE bool kind_halves(int kind) { return kind == PST_TYPE_Q6_K || kind == PST_TYPE_Q2_K || kind == PST_TYPE_Q3_K; }

INLINE bool kind_min(int kind) {
  return kind == PST_TYPE_Q4_1 || kind == PST_TYPE_Q5_1 || kind == PST_TYPE_Q4_K || kind == PST_TYPE_Q5_K ||
         kind == PST_TYPE_Q2_K;
}

/* load_codes gives weight + offset, unsigned. */
INLINE int kind_offset(int kind) {
  switch (kind) {
  case PST_TYPE_Q4_0: return 8;
  case PST_TYPE_Q5_0: return 16;
  case PST_TYPE_Q6_K: return 32;
  case PST_TYPE_Q3_K: return 4;
  case PST_TYPE_MXFP4: return 12;
  case PST_TYPE_Q8_0:
  case PST_TYPE_IQ4_NL:
  case PST_TYPE_IQ4_XS: return 128;
  default: return 0;
  }
}

INLINE __m512i lookup16(const int8_t table[16], __m512i index) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)), index);
}

/* (a & mask) | (b & ~mask) */
INLINE __m512i blend_bits(__m512i mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }

/* Codes of 16 rows at step s, unsigned. */
INLINE __m512i load_codes(const int kind, const uint8_t *rec, const int s) {
  const __m512i low4 = _mm512_set1_epi8(15);
  if (kind == PST_TYPE_Q8_0) return _mm512_xor_si512(_mm512_loadu_si512(rec + 64 * s), _mm512_set1_epi8(-128));
  if (kind == PST_TYPE_Q2_K || kind == PST_TYPE_Q3_K) {
    const __m512i low2 = _mm512_set1_epi8(3);
    __m512i v = _mm512_loadu_si512(rec + 64 * (s / 4));
    v = (s & 3) ? _mm512_srli_epi16(v, 2 * (s & 3)) : v;
    if (kind == PST_TYPE_Q2_K) return _mm512_and_si512(v, low2);
    __m512i h = _mm512_loadu_si512(rec + 128);
    h = s <= 2 ? _mm512_slli_epi16(h, (2 - s) & 7) : _mm512_srli_epi16(h, (s - 2) & 7); /* s is below 8 */
    return _mm512_and_si512(blend_bits(low2, v, h), _mm512_set1_epi8(7));
  }
  __m512i v = _mm512_loadu_si512(rec + 64 * (s / 2));
  if (s & 1) v = _mm512_srli_epi16(v, 4);
  if (kind == PST_TYPE_Q5_0 || kind == PST_TYPE_Q5_1 || kind == PST_TYPE_Q5_K) {
    __m512i h = _mm512_loadu_si512(rec + 256);
    h = s <= 4 ? _mm512_slli_epi16(h, (4 - s) & 7) : _mm512_srli_epi16(h, (s - 4) & 7);
    return _mm512_and_si512(blend_bits(low4, v, h), _mm512_set1_epi8(31));
  }
  if (kind == PST_TYPE_Q6_K) {
    __m512i h = _mm512_loadu_si512(rec + 256 + 64 * (s / 4));
    h = (s & 3) <= 2 ? _mm512_slli_epi16(h, 4 - 2 * (s & 3)) : _mm512_srli_epi16(h, 2);
    return _mm512_and_si512(blend_bits(low4, v, h), _mm512_set1_epi8(63));
  }
  v = _mm512_and_si512(v, low4);
  if (kind == PST_TYPE_IQ4_NL || kind == PST_TYPE_IQ4_XS)
    return _mm512_xor_si512(lookup16(pst_kernels_iq4_values, v), _mm512_set1_epi8(-128));
  if (kind == PST_TYPE_MXFP4) return _mm512_add_epi8(lookup16(pst_kernels_mxfp4_values, v), _mm512_set1_epi8(12));
  return v;
}

/* ---- scales ----------------------------------------------------------------------------------------------------- */

/* Scale and minimum of the block, or of its first (d, m) and second (e, n) half. */
typedef struct scales {
  __m512 d, e, m, n;
} scales;

INLINE __m512 half16(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }

INLINE __m512 unsigned16(__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)); }

INLINE __m512 signed16(const uint8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}

INLINE __m512 negate(__m512 x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }

INLINE __m512 e8m0_16(const uint8_t *p) {
  __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
  __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
  __m512i tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2)), tiny));
}

/* Where a record's scales begin. */
INLINE int scales_at(const int kind) {
  switch (kind) {
  case PST_TYPE_Q5_0:
  case PST_TYPE_Q5_1:
  case PST_TYPE_Q5_K: return 320;
  case PST_TYPE_Q8_0: return 512;
  case PST_TYPE_Q6_K: return 384;
  case PST_TYPE_Q2_K: return 128;
  case PST_TYPE_Q3_K: return 192;
  default: return 256;
  }
}

INLINE void load_scales(const int kind, const uint8_t *header, const uint8_t *rec, scales *ret) {
  const uint8_t *p = rec + scales_at(kind);
  ret->e = ret->m = ret->n = _mm512_setzero_ps();
  switch (kind) {
  case PST_TYPE_MXFP4: ret->d = e8m0_16(p); break;
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_K:
    ret->d = _mm512_mul_ps(half16(header), unsigned16(_mm_loadu_si128((const void *)p)));
    ret->m = negate(_mm512_mul_ps(half16(header + 32), unsigned16(_mm_loadu_si128((const void *)(p + 16)))));
    break;
  case PST_TYPE_IQ4_XS: ret->d = _mm512_mul_ps(half16(header), signed16(p)); break;
  case PST_TYPE_Q3_K:
  case PST_TYPE_Q6_K:
    ret->d = _mm512_mul_ps(half16(header), signed16(p));
    ret->e = _mm512_mul_ps(half16(header), signed16(p + 16));
    break;
  case PST_TYPE_Q2_K: {
    /* scale in the low nibble, minimum in the high one */
    const __m128i low4 = _mm_set1_epi8(15);
    __m128i a = _mm_loadu_si128((const void *)p), b = _mm_loadu_si128((const void *)(p + 16));
    ret->d = _mm512_mul_ps(half16(header), unsigned16(_mm_and_si128(a, low4)));
    ret->e = _mm512_mul_ps(half16(header), unsigned16(_mm_and_si128(b, low4)));
    ret->m = negate(_mm512_mul_ps(half16(header + 32), unsigned16(_mm_and_si128(_mm_srli_epi16(a, 4), low4))));
    ret->n = negate(_mm512_mul_ps(half16(header + 32), unsigned16(_mm_and_si128(_mm_srli_epi16(b, 4), low4))));
    break;
  }
  case PST_TYPE_Q4_1:
  case PST_TYPE_Q5_1:
    ret->d = half16(p);
    ret->m = half16(p + 32);
    break;
  default: ret->d = half16(p); break;
  }
}

#endif
