/* Sixteen float lanes as four 128-bit registers: what vector.inc and attention.inc are written in. ARMv8.0 NEON; the integer dot product
 * is one instruction where the file that includes this is compiled for it.
 *
 * No NaN gets into a maximum or minimum (inputs are finite, masked lanes are replaced first), so FMAX and FMIN do. */
#ifndef PST_KERNELS_LANES_NEON_H
#define PST_KERNELS_LANES_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PST_INLINE static inline __attribute__((always_inline))

/* Queries and 16-lane columns of an attention tile: 24 registers of sums, 8 for the rest. */
#define PST_ATTEND_QUERIES 3
#define PST_ATTEND_COLUMNS 2
/* Rows and 16-lane columns of a tile of a float product. */
#define PST_PRODUCT_ROWS 6
#define PST_PRODUCT_COLUMNS 1
/* Of dots: rows with one token, and rows and tokens of a tile. */
#define PST_DOT_ROWS 4
#define PST_DOT_TILE 2

typedef struct v16 {
  float32x4_t a, b, c, d; /* lanes 0-3, 4-7, 8-11, 12-15 */
} v16;
typedef struct i16 {
  int32x4_t a, b, c, d;
} i16;

PST_INLINE v16 v16_of(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
  v16 v = {a, b, c, d};
  return v;
}
/* f on each quarter. */
#define PST_V16_MAP1(f, x) v16_of(f((x).a), f((x).b), f((x).c), f((x).d))
#define PST_V16_MAP2(f, x, y) v16_of(f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d))

PST_INLINE v16 v16_set1(float f) {
  float32x4_t v = vdupq_n_f32(f);
  return v16_of(v, v, v, v);
}
PST_INLINE v16 v16_zero(void) { return v16_set1(0.0f); }
PST_INLINE v16 v16_load(const float *p) {
  return v16_of(vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12));
}
PST_INLINE void v16_store(float *p, v16 v) {
  vst1q_f32(p, v.a);
  vst1q_f32(p + 4, v.b);
  vst1q_f32(p + 8, v.c);
  vst1q_f32(p + 12, v.d);
}
/* The first n lanes from memory, zeros above. */
PST_INLINE v16 v16_load_part(const float *p, size_t n) {
  float lane[16] = {0};
  if (n >= 16) return v16_load(p);
  memcpy(lane, p, n * sizeof *p);
  return v16_load(lane);
}
PST_INLINE void v16_store_part(float *p, v16 v, size_t n) {
  float lane[16];
  v16_store(n >= 16 ? p : lane, v);
  if (n < 16) memcpy(p, lane, n * sizeof *p);
}
PST_INLINE v16 v16_add(v16 x, v16 y) { return PST_V16_MAP2(vaddq_f32, x, y); }
PST_INLINE v16 v16_sub(v16 x, v16 y) { return PST_V16_MAP2(vsubq_f32, x, y); }
PST_INLINE v16 v16_mul(v16 x, v16 y) { return PST_V16_MAP2(vmulq_f32, x, y); }
PST_INLINE v16 v16_div(v16 x, v16 y) { return PST_V16_MAP2(vdivq_f32, x, y); }
PST_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
  return v16_of(vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d));
}
PST_INLINE v16 v16_max(v16 x, v16 y) { return PST_V16_MAP2(vmaxq_f32, x, y); }
PST_INLINE v16 v16_min(v16 x, v16 y) { return PST_V16_MAP2(vminq_f32, x, y); }
PST_INLINE v16 v16_abs(v16 x) { return PST_V16_MAP1(vabsq_f32, x); }
PST_INLINE v16 v16_negate(v16 x) { return PST_V16_MAP1(vnegq_f32, x); }

PST_INLINE float32x4_t v4_where_ge(float32x4_t x, float32x4_t low, float32x4_t y) {
  return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x, low), vreinterpretq_u32_f32(y)));
}
/* x >= low ? y : 0 */
PST_INLINE v16 v16_where_ge(v16 x, v16 low, v16 y) {
  return v16_of(v4_where_ge(x.a, low.a, y.a), v4_where_ge(x.b, low.b, y.b), v4_where_ge(x.c, low.c, y.c),
                v4_where_ge(x.d, low.d, y.d));
}
/* Lanes [first, end) of v, `other` outside; v's first lane is number `base`. */
PST_INLINE float32x4_t v4_keep(float32x4_t v, int base, size_t first, size_t end, float32x4_t other) {
  static const int32_t numbers[4] = {0, 1, 2, 3};
  int32x4_t lane = vaddq_s32(vld1q_s32(numbers), vdupq_n_s32(base));
  uint32x4_t in = vandq_u32(vcgeq_s32(lane, vdupq_n_s32((int)first)), vcltq_s32(lane, vdupq_n_s32((int)end)));
  return vbslq_f32(in, v, other);
}
PST_INLINE v16 v16_keep(v16 v, int base, size_t first, size_t end, v16 other) {
  return v16_of(v4_keep(v.a, base, first, end, other.a), v4_keep(v.b, base + 4, first, end, other.b),
                v4_keep(v.c, base + 8, first, end, other.c), v4_keep(v.d, base + 12, first, end, other.d));
}
PST_INLINE float32x4_t v4_add_exponent(float32x4_t y, float32x4_t t) {
  return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(y), vshlq_n_u32(vreinterpretq_u32_f32(t), 23)));
}
/* bits(y) + (bits(t) << 23): y times two to the integer in t's low bits. */
PST_INLINE v16 v16_add_exponent(v16 y, v16 t) { return PST_V16_MAP2(v4_add_exponent, y, t); }
/* The tree of halves. */
PST_INLINE float v16_sum(v16 x) {
  float32x4_t v = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  float32x2_t w = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(w, 0) + vget_lane_f32(w, 1);
}
PST_INLINE float v16_max_all(v16 x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d))); }
PST_INLINE int u16_any(uint32x4_t a, uint32x4_t b, uint32x4_t c, uint32x4_t d) {
  return vmaxvq_u32(vorrq_u32(vorrq_u32(a, b), vorrq_u32(c, d))) != 0;
}
PST_INLINE int v16_any_gt(v16 x, v16 y) {
  return u16_any(vcgtq_f32(x.a, y.a), vcgtq_f32(x.b, y.b), vcgtq_f32(x.c, y.c), vcgtq_f32(x.d, y.d));
}
PST_INLINE int v16_any_ge(v16 x, v16 y) {
  return u16_any(vcgeq_f32(x.a, y.a), vcgeq_f32(x.b, y.b), vcgeq_f32(x.c, y.c), vcgeq_f32(x.d, y.d));
}
PST_INLINE float32x4_t v4_load_half(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
PST_INLINE v16 v16_load_half(const uint8_t *p) {
  return v16_of(v4_load_half(p), v4_load_half(p + 8), v4_load_half(p + 16), v4_load_half(p + 24));
}
/* Eight halves, zeros above. */
PST_INLINE v16 v16_load_half8(const uint8_t *p) {
  return v16_of(v4_load_half(p), v4_load_half(p + 8), vdupq_n_f32(0.0f), vdupq_n_f32(0.0f));
}
PST_INLINE void v4_store_half(uint8_t *p, float32x4_t v) { vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(v))); }
PST_INLINE void v16_store_half(uint8_t *p, v16 v) {
  v4_store_half(p, v.a);
  v4_store_half(p + 8, v.b);
  v4_store_half(p + 16, v.c);
  v4_store_half(p + 24, v.d);
}
/* Eight signed bytes as floats: the low (0) or high (1) four. */
PST_INLINE float32x4_t v4_of_i8(int8x8_t v, const int high) {
  int16x8_t w = vmovl_s8(v);
  return vcvtq_f32_s32(vmovl_s16(high ? vget_high_s16(w) : vget_low_s16(w)));
}
PST_INLINE v16 v16_load_i8(const int8_t *p) {
  int8x8_t l = vld1_s8(p), h = vld1_s8(p + 8);
  return v16_of(v4_of_i8(l, 0), v4_of_i8(l, 1), v4_of_i8(h, 0), v4_of_i8(h, 1));
}
PST_INLINE v16 v16_load_i8x8(const int8_t *p) {
  int8x8_t l = vld1_s8(p);
  return v16_of(v4_of_i8(l, 0), v4_of_i8(l, 1), vdupq_n_f32(0.0f), vdupq_n_f32(0.0f));
}
/* Rounds (nearest even) 16 values of magnitude below 128 into p; returns their sum. */
PST_INLINE int v16_store_i8(int8_t *p, v16 v) {
  int32x4_t a = vcvtnq_s32_f32(v.a), b = vcvtnq_s32_f32(v.b), c = vcvtnq_s32_f32(v.c), d = vcvtnq_s32_f32(v.d);
  int16x8_t l = vcombine_s16(vmovn_s32(a), vmovn_s32(b)), h = vcombine_s16(vmovn_s32(c), vmovn_s32(d));
  vst1q_s8(p, vcombine_s8(vmovn_s16(l), vmovn_s16(h)));
  return vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
}
/* Four neighbouring pairs turned by four angles. */
PST_INLINE float32x4x2_t v4_turn_pairs(float32x4_t low, float32x4_t high, const float *c, const float *s) {
  float32x4_t x0 = vuzp1q_f32(low, high), x1 = vuzp2q_f32(low, high), vc = vld1q_f32(c), vs = vld1q_f32(s);
  float32x4_t y0 = vfmaq_f32(vnegq_f32(vmulq_f32(x1, vs)), x0, vc), y1 = vfmaq_f32(vmulq_f32(x1, vc), x0, vs);
  return vzipq_f32(y0, y1);
}
/* Eight of them: see pst_kernels_rope. */
PST_INLINE v16 v16_turn_pairs(v16 v, const float *c, const float *s) {
  float32x4x2_t l = v4_turn_pairs(v.a, v.b, c, s), h = v4_turn_pairs(v.c, v.d, c + 4, s + 4);
  return v16_of(l.val[0], l.val[1], h.val[0], h.val[1]);
}

/* Four dots of 4 signed bytes with the same 4. A sum of two 16-bit products fits: 2 * 128 * 127. */
PST_INLINE int32x4_t i4_dot4(int32x4_t acc, int8x16_t k, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, k, x);
#else
  int16x8_t l = vmull_s8(vget_low_s8(k), vget_low_s8(x)), h = vmull_high_s8(k, x);
  return vpadalq_s16(acc, vpaddq_s16(l, h));
#endif
}
/* Integer dots of 16 lanes of 4 signed bytes with 4 broadcast ones. Signed by signed: nothing to correct at the start. */
PST_INLINE i16 i16_start(int sum_x) {
  (void)sum_x;
  int32x4_t z = vdupq_n_s32(0);
  i16 v = {z, z, z, z};
  return v;
}
PST_INLINE i16 i16_dot4(i16 acc, const uint8_t *k, const int8_t *x) {
  const int8_t *key = (const int8_t *)k;
  int32_t four;
  memcpy(&four, x, sizeof four);
  int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
  acc.a = i4_dot4(acc.a, vld1q_s8(key), v);
  acc.b = i4_dot4(acc.b, vld1q_s8(key + 16), v);
  acc.c = i4_dot4(acc.c, vld1q_s8(key + 32), v);
  acc.d = i4_dot4(acc.d, vld1q_s8(key + 48), v);
  return acc;
}
PST_INLINE v16 i16_to_float(i16 x) { return PST_V16_MAP1(vcvtq_f32_s32, x); }

/* to[i * to_stride + j] = from[j * stride + i] for i, j < 16. */
PST_INLINE void v16_transpose(const float *from, size_t stride, float *to, size_t to_stride) {
  for (size_t i = 0; i < 16; i++)
    for (size_t j = 0; j < 16; j++) to[i * to_stride + j] = from[j * stride + i];
}

#endif
