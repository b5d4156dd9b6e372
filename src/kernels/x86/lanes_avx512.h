/* Sixteen float lanes as one 512-bit register: what vector.inc and attention.inc are written in. AVX-512 F, BW, DQ, VL and VNNI. */
#ifndef PST_KERNELS_LANES_AVX512_H
#define PST_KERNELS_LANES_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PST_INLINE static inline __attribute__((always_inline))

/* Queries and 16-lane columns of an attention tile: 24 sums in 32 registers. */
#define PST_ATTEND_QUERIES 6
#define PST_ATTEND_COLUMNS 4
/* Rows and 16-lane columns of a tile of a float product. */
#define PST_PRODUCT_ROWS 12
#define PST_PRODUCT_COLUMNS 2
/* Of dots: rows with one token, and rows and tokens of a tile. */
#define PST_DOT_ROWS 8
#define PST_DOT_TILE 4

typedef __m512 v16;
typedef __m512i i16;

PST_INLINE v16 v16_set1(float f) { return _mm512_set1_ps(f); }
PST_INLINE v16 v16_zero(void) { return _mm512_setzero_ps(); }
PST_INLINE v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
PST_INLINE void v16_store(float *p, v16 v) { _mm512_storeu_ps(p, v); }
/* Lanes first <= i < end of the 16 that begin at `base`. */
PST_INLINE __mmask16 v16_lanes(int base, size_t first, size_t end) {
  long f = (long)first - base, e = (long)end - base;
  f = f < 0 ? 0 : f > 16 ? 16 : f;
  e = e < f ? f : e > 16 ? 16 : e;
  return (__mmask16)((1u << e) - (1u << f));
}
/* The first n lanes from memory, zeros above. */
PST_INLINE v16 v16_load_part(const float *p, size_t n) { return _mm512_maskz_loadu_ps(v16_lanes(0, 0, n), p); }
PST_INLINE void v16_store_part(float *p, v16 v, size_t n) { _mm512_mask_storeu_ps(p, v16_lanes(0, 0, n), v); }
PST_INLINE v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
PST_INLINE v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
PST_INLINE v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
PST_INLINE v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
PST_INLINE v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
/* a > b ? a : b, and a < b ? a : b, lane by lane. */
PST_INLINE v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
PST_INLINE v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
PST_INLINE v16 v16_abs(v16 a) { return _mm512_abs_ps(a); }
PST_INLINE v16 v16_negate(v16 a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
/* x >= low ? y : 0 */
PST_INLINE v16 v16_where_ge(v16 x, v16 low, v16 y) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_GE_OQ), y);
}
/* Lanes [first, end) of v, `other` outside. */
PST_INLINE v16 v16_keep(v16 v, int base, size_t first, size_t end, v16 other) {
  return _mm512_mask_mov_ps(other, v16_lanes(base, first, end), v);
}
/* bits(y) + (bits(t) << 23): y times two to the integer in t's low bits. */
PST_INLINE v16 v16_add_exponent(v16 y, v16 t) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
/* The tree of halves. */
PST_INLINE float v16_sum(v16 a) {
  __m256 v = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 w = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  w = _mm_add_ps(w, _mm_movehl_ps(w, w));
  return _mm_cvtss_f32(_mm_add_ss(w, _mm_movehdup_ps(w)));
}
PST_INLINE float v16_max_all(v16 a) {
  __m256 v = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 w = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  w = _mm_max_ps(w, _mm_movehl_ps(w, w));
  return _mm_cvtss_f32(_mm_max_ss(w, _mm_movehdup_ps(w)));
}
PST_INLINE int v16_any_gt(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
PST_INLINE int v16_any_ge(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) != 0; }
PST_INLINE v16 v16_load_half(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
/* Eight halves, zeros above. */
PST_INLINE v16 v16_load_half8(const uint8_t *p) {
  return _mm512_cvtph_ps(_mm256_zextsi128_si256(_mm_loadu_si128((const void *)p)));
}
PST_INLINE void v16_store_half(uint8_t *p, v16 v) {
  _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
PST_INLINE v16 v16_load_i8(const int8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
PST_INLINE v16 v16_load_i8x8(const int8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
/* Rounds (nearest even) 16 values of magnitude below 128 into p; returns their sum. */
PST_INLINE int v16_store_i8(int8_t *p, v16 v) {
  __m512i q = _mm512_cvtps_epi32(v);
  _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(q));
  return _mm512_reduce_add_epi32(q);
}
/* Eight neighbouring pairs turned by eight angles: see pst_kernels_rope. */
PST_INLINE v16 v16_turn_pairs(v16 v, const float *c, const float *s) {
  const __m512i twice = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  __m512 cs = _mm512_permutex2var_ps(_mm512_castps256_ps512(_mm256_loadu_ps(c)), twice,
                                     _mm512_castps256_ps512(_mm256_loadu_ps(s)));
  return _mm512_fmaddsub_ps(_mm512_moveldup_ps(v), cs,
                            _mm512_mul_ps(_mm512_movehdup_ps(v), _mm512_permute_ps(cs, 0xb1)));
}

/* to[i * to_stride + j] = from[j * stride + i] for i, j < 16. Four columns at a time: a register takes them of rows i, i + 4, i + 8 and i + 12, and four of
 * these are transposed quarter by quarter. */
PST_INLINE void v16_transpose(const float *from, size_t stride, float *to, size_t to_stride) {
  for (int c = 0; c < 16; c += 4) {
    __m512 r[4];
    for (size_t i = 0; i < 4; i++) {
      const float *at = from + i * stride + c;
      __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(at));
      v = _mm512_insertf32x4(v, _mm_loadu_ps(at + 4 * stride), 1);
      v = _mm512_insertf32x4(v, _mm_loadu_ps(at + 8 * stride), 2);
      r[i] = _mm512_insertf32x4(v, _mm_loadu_ps(at + 12 * stride), 3);
    }
    __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1])),
            high = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
    __m512d low2 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3])),
            high2 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
    float *out = to + (size_t)c * to_stride;
    _mm512_storeu_ps(out, _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2)));
    _mm512_storeu_ps(out + to_stride, _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2)));
    _mm512_storeu_ps(out + 2 * to_stride, _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2)));
    _mm512_storeu_ps(out + 3 * to_stride, _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2)));
  }
}

/* Integer dots of 16 lanes of 4 signed bytes with 4 broadcast ones. The key bytes count as unsigned after adding 128; the start takes 128
 * times the sum of the activations away. */
PST_INLINE i16 i16_start(int sum_x) { return _mm512_set1_epi32(-128 * sum_x); }
PST_INLINE i16 i16_dot4(i16 acc, const uint8_t *k, const int8_t *x) {
  int four;
  memcpy(&four, x, 4);
  __m512i u = _mm512_xor_si512(_mm512_loadu_si512(k), _mm512_set1_epi8(-128));
  return _mm512_dpbusd_epi32(acc, u, _mm512_set1_epi32(four));
}
PST_INLINE v16 i16_to_float(i16 a) { return _mm512_cvtepi32_ps(a); }

#endif
