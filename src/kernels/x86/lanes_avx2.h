/* Sixteen float lanes as two 256-bit registers: what vector.inc and attention.inc are written in. AVX2 + FMA + F16C. */
#ifndef PST_KERNELS_LANES_AVX2_H
#define PST_KERNELS_LANES_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PST_INLINE static inline __attribute__((always_inline))

/* Queries and 16-lane columns of an attention tile, and of one with int8 keys: what 16 registers hold. */
#define PST_ATTEND_QUERIES 3
#define PST_ATTEND_COLUMNS 2
/* Rows and 16-lane columns of a tile of a float product. */
#define PST_PRODUCT_ROWS 6
#define PST_PRODUCT_COLUMNS 1
/* Of dots: rows with one token, and rows and tokens of a tile. */
#define PST_DOT_ROWS 4
#define PST_DOT_TILE 2

typedef struct v16 {
  __m256 l, h;
} v16;
typedef struct i16 {
  __m256i l, h;
} i16;

PST_INLINE v16 v16_of(__m256 l, __m256 h) {
  v16 v = {l, h};
  return v;
}
PST_INLINE v16 v16_set1(float f) { return v16_of(_mm256_set1_ps(f), _mm256_set1_ps(f)); }
PST_INLINE v16 v16_zero(void) { return v16_set1(0.0f); }
PST_INLINE v16 v16_load(const float *p) { return v16_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
PST_INLINE void v16_store(float *p, v16 v) {
  _mm256_storeu_ps(p, v.l);
  _mm256_storeu_ps(p + 8, v.h);
}
/* Lane i is all ones for first <= i < end, as the 8 lanes from `base` on. */
PST_INLINE __m256i v16_lanes(int base, size_t first, size_t end) {
  __m256i index = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(base));
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)first), index),
                             _mm256_cmpgt_epi32(_mm256_set1_epi32((int)end), index));
}
/* The first n lanes from memory, zeros above. */
PST_INLINE v16 v16_load_part(const float *p, size_t n) {
  return v16_of(_mm256_maskload_ps(p, v16_lanes(0, 0, n)),
                n > 8 ? _mm256_maskload_ps(p + 8, v16_lanes(8, 0, n)) : _mm256_setzero_ps());
}
PST_INLINE void v16_store_part(float *p, v16 v, size_t n) {
  _mm256_maskstore_ps(p, v16_lanes(0, 0, n), v.l);
  if (n > 8) _mm256_maskstore_ps(p + 8, v16_lanes(8, 0, n), v.h);
}
PST_INLINE v16 v16_add(v16 a, v16 b) { return v16_of(_mm256_add_ps(a.l, b.l), _mm256_add_ps(a.h, b.h)); }
PST_INLINE v16 v16_sub(v16 a, v16 b) { return v16_of(_mm256_sub_ps(a.l, b.l), _mm256_sub_ps(a.h, b.h)); }
PST_INLINE v16 v16_mul(v16 a, v16 b) { return v16_of(_mm256_mul_ps(a.l, b.l), _mm256_mul_ps(a.h, b.h)); }
PST_INLINE v16 v16_div(v16 a, v16 b) { return v16_of(_mm256_div_ps(a.l, b.l), _mm256_div_ps(a.h, b.h)); }
PST_INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
  return v16_of(_mm256_fmadd_ps(a.l, b.l, c.l), _mm256_fmadd_ps(a.h, b.h, c.h));
}
/* a > b ? a : b, and a < b ? a : b, lane by lane. */
PST_INLINE v16 v16_max(v16 a, v16 b) { return v16_of(_mm256_max_ps(a.l, b.l), _mm256_max_ps(a.h, b.h)); }
PST_INLINE v16 v16_min(v16 a, v16 b) { return v16_of(_mm256_min_ps(a.l, b.l), _mm256_min_ps(a.h, b.h)); }
PST_INLINE v16 v16_abs(v16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return v16_of(_mm256_andnot_ps(sign, a.l), _mm256_andnot_ps(sign, a.h));
}
PST_INLINE v16 v16_negate(v16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return v16_of(_mm256_xor_ps(sign, a.l), _mm256_xor_ps(sign, a.h));
}
/* x >= low ? y : 0 */
PST_INLINE v16 v16_where_ge(v16 x, v16 low, v16 y) {
  return v16_of(_mm256_and_ps(_mm256_cmp_ps(x.l, low.l, _CMP_GE_OQ), y.l),
                _mm256_and_ps(_mm256_cmp_ps(x.h, low.h, _CMP_GE_OQ), y.h));
}
/* Lanes [first, end) of v, `other` outside. */
PST_INLINE v16 v16_keep(v16 v, int base, size_t first, size_t end, v16 other) {
  return v16_of(_mm256_blendv_ps(other.l, v.l, _mm256_castsi256_ps(v16_lanes(base, first, end))),
                _mm256_blendv_ps(other.h, v.h, _mm256_castsi256_ps(v16_lanes(base + 8, first, end))));
}
/* bits(y) + (bits(t) << 23): y times two to the integer in t's low bits. */
PST_INLINE v16 v16_add_exponent(v16 y, v16 t) {
  return v16_of(
      _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y.l), _mm256_slli_epi32(_mm256_castps_si256(t.l), 23))),
      _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y.h), _mm256_slli_epi32(_mm256_castps_si256(t.h), 23))));
}
/* The tree of halves. */
PST_INLINE float v16_sum(v16 a) {
  __m256 v = _mm256_add_ps(a.l, a.h);
  __m128 w = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  w = _mm_add_ps(w, _mm_movehl_ps(w, w));
  return _mm_cvtss_f32(_mm_add_ss(w, _mm_movehdup_ps(w)));
}
PST_INLINE float v16_max_all(v16 a) {
  __m256 v = _mm256_max_ps(a.l, a.h);
  __m128 w = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  w = _mm_max_ps(w, _mm_movehl_ps(w, w));
  return _mm_cvtss_f32(_mm_max_ss(w, _mm_movehdup_ps(w)));
}
PST_INLINE int v16_any_gt(v16 a, v16 b) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.l, b.l, _CMP_GT_OQ), _mm256_cmp_ps(a.h, b.h, _CMP_GT_OQ))) !=
         0;
}
PST_INLINE int v16_any_ge(v16 a, v16 b) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.l, b.l, _CMP_GE_OQ), _mm256_cmp_ps(a.h, b.h, _CMP_GE_OQ))) !=
         0;
}
PST_INLINE v16 v16_load_half(const uint8_t *p) {
  return v16_of(_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 16))));
}
/* Eight halves, zeros above. */
PST_INLINE v16 v16_load_half8(const uint8_t *p) {
  return v16_of(_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)), _mm256_setzero_ps());
}
PST_INLINE void v16_store_half(uint8_t *p, v16 v) {
  _mm_storeu_si128((void *)p, _mm256_cvtps_ph(v.l, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((void *)(p + 16), _mm256_cvtps_ph(v.h, _MM_FROUND_TO_NEAREST_INT));
}
PST_INLINE v16 v16_load_i8(const int8_t *p) {
  return v16_of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p + 8)))));
}
PST_INLINE v16 v16_load_i8x8(const int8_t *p) {
  return v16_of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p))), _mm256_setzero_ps());
}
/* Rounds (nearest even) 16 values of magnitude below 128 into p; returns their sum. */
PST_INLINE int v16_store_i8(int8_t *p, v16 v) {
  __m256i l = _mm256_cvtps_epi32(v.l), h = _mm256_cvtps_epi32(v.h);
  __m256i s = _mm256_add_epi32(l, h);
  __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(l, h), 0xd8);
  _mm_storeu_si128((void *)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
  return _mm_cvtsi128_si32(t);
}
/* Eight neighbouring pairs turned by eight angles: see pst_kernels_rope. */
PST_INLINE v16 v16_turn_pairs(v16 v, const float *c, const float *s) {
  __m256 cl = _mm256_set_m128(_mm_unpackhi_ps(_mm_loadu_ps(c), _mm_loadu_ps(s)),
                              _mm_unpacklo_ps(_mm_loadu_ps(c), _mm_loadu_ps(s)));
  __m256 ch = _mm256_set_m128(_mm_unpackhi_ps(_mm_loadu_ps(c + 4), _mm_loadu_ps(s + 4)),
                              _mm_unpacklo_ps(_mm_loadu_ps(c + 4), _mm_loadu_ps(s + 4)));
  __m256 sl = _mm256_permute_ps(cl, 0xb1), sh = _mm256_permute_ps(ch, 0xb1);
  return v16_of(_mm256_fmaddsub_ps(_mm256_moveldup_ps(v.l), cl, _mm256_mul_ps(_mm256_movehdup_ps(v.l), sl)),
                _mm256_fmaddsub_ps(_mm256_moveldup_ps(v.h), ch, _mm256_mul_ps(_mm256_movehdup_ps(v.h), sh)));
}

/* to[i * to_stride + j] = from[j * stride + i] for i, j < 16. Four columns of eight rows at a time: a register takes them of rows i and i + 4, and four of
 * these are transposed half by half. */
PST_INLINE void v16_transpose(const float *from, size_t stride, float *to, size_t to_stride) {
  for (int half = 0; half < 16; half += 8)
    for (int c = 0; c < 16; c += 4) {
      __m256 r[4];
      for (size_t i = 0; i < 4; i++) {
        const float *at = from + ((size_t)half + i) * stride + c;
        r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at)), _mm_loadu_ps(at + 4 * stride), 1);
      }
      __m256d low = _mm256_castps_pd(_mm256_unpacklo_ps(r[0], r[1])),
              high = _mm256_castps_pd(_mm256_unpackhi_ps(r[0], r[1]));
      __m256d low2 = _mm256_castps_pd(_mm256_unpacklo_ps(r[2], r[3])),
              high2 = _mm256_castps_pd(_mm256_unpackhi_ps(r[2], r[3]));
      float *out = to + (size_t)c * to_stride + half;
      _mm256_storeu_ps(out, _mm256_castpd_ps(_mm256_unpacklo_pd(low, low2)));
      _mm256_storeu_ps(out + to_stride, _mm256_castpd_ps(_mm256_unpackhi_pd(low, low2)));
      _mm256_storeu_ps(out + 2 * to_stride, _mm256_castpd_ps(_mm256_unpacklo_pd(high, high2)));
      _mm256_storeu_ps(out + 3 * to_stride, _mm256_castpd_ps(_mm256_unpackhi_pd(high, high2)));
    }
}

/* Integer dots of 16 lanes of 4 signed bytes with 4 broadcast ones. start: from the activations' sum, if this ISA needs a correction. */
PST_INLINE i16 i16_start(int sum_x) {
  (void)sum_x;
  i16 z = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  return z;
}
PST_INLINE i16 i16_dot4(i16 acc, const uint8_t *k, const int8_t *x) {
  const __m256i ones = _mm256_set1_epi16(1);
  int four;
  memcpy(&four, x, 4);
  __m256i v = _mm256_set1_epi32(four);
  __m256i l = _mm256_loadu_si256((const void *)k), h = _mm256_loadu_si256((const void *)(k + 32));
  l = _mm256_maddubs_epi16(_mm256_abs_epi8(l), _mm256_sign_epi8(v, l));
  h = _mm256_maddubs_epi16(_mm256_abs_epi8(h), _mm256_sign_epi8(v, h));
  acc.l = _mm256_add_epi32(acc.l, _mm256_madd_epi16(l, ones));
  acc.h = _mm256_add_epi32(acc.h, _mm256_madd_epi16(h, ones));
  return acc;
}
PST_INLINE v16 i16_to_float(i16 a) { return v16_of(_mm256_cvtepi32_ps(a.l), _mm256_cvtepi32_ps(a.h)); }

#endif
