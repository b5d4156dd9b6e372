/* Codes and scales of packed records in 128-bit registers: four rows each, as every ARM product reads them.
 *
 * Codes come out as the signed weights themselves, offset taken away: NEON multiplies signed bytes by signed bytes, so no product needs a
 * correction through the sum of the activations, nor a mixed-sign instruction. */
#ifndef PST_KERNELS_UNPACK_NEON_H
#define PST_KERNELS_UNPACK_NEON_H

#include "kernels/layout.h"

#include <arm_neon.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* X(type, bytes of a header, of a record, kind of panel) */
#define PACKED_TYPES(X)        \
  X(Q4_0, 0, 288, depth8)      \
  X(Q4_1, 0, 320, depth8_min)  \
  X(Q5_0, 0, 352, depth8)      \
  X(Q5_1, 0, 384, depth4_min)  \
  X(Q8_0, 0, 544, depth1)      \
  X(IQ4_NL, 0, 288, depth1)    \
  X(MXFP4, 0, 272, depth8)     \
  X(Q2_K, 64, 160, halves_min) \
  X(Q3_K, 32, 224, halves)     \
  X(Q4_K, 64, 288, depth8_min) \
  X(Q5_K, 64, 352, depth4_min) \
  X(Q6_K, 32, 416, halves)     \
  X(IQ4_XS, 32, 272, depth1)

/* A panel stands for a type of its own: weights as bytes, scales as floats. Numbers above every GGUF type. */
enum {
  PANEL_depth8 = 100,
  PANEL_depth8_min,
  PANEL_depth4_min,
  PANEL_depth1,
  PANEL_halves,
  PANEL_halves_min,
};
#define PANEL_KINDS(X) X(depth8) X(depth8_min) X(depth4_min) X(depth1) X(halves) X(halves_min)

/* `kind` is a GGUF type or a panel that every caller knows when compiled, so that all questions below vanish. */
INLINE bool kind_halves(int kind) {
  return kind == PST_TYPE_Q6_K || kind == PST_TYPE_Q2_K || kind == PST_TYPE_Q3_K || kind == PANEL_halves ||
         kind == PANEL_halves_min;
}

INLINE bool kind_min(int kind) {
  return kind == PST_TYPE_Q4_1 || kind == PST_TYPE_Q5_1 || kind == PST_TYPE_Q4_K || kind == PST_TYPE_Q5_K ||
         kind == PST_TYPE_Q2_K || kind == PANEL_depth8_min || kind == PANEL_depth4_min || kind == PANEL_halves_min;
}

/* Steps whose products may be summed in 16 bits, and that sum still be added to a neighbour's: with weights of magnitude w it reaches
 * 2 * depth * 127 * w. 8: w <= 16; 4: w <= 32; 1: any byte. */
INLINE int kind_depth(int kind) {
  switch (kind) {
  case PST_TYPE_Q8_0:
  case PST_TYPE_IQ4_NL:
  case PST_TYPE_IQ4_XS:
  case PANEL_depth1: return 1;
  case PST_TYPE_Q4_0:
  case PST_TYPE_Q4_1:
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_0:
  case PST_TYPE_MXFP4:
  case PANEL_depth8:
  case PANEL_depth8_min: return 8;
  default: return 4;
  }
}

INLINE int kind_offset(int kind) {
  switch (kind) {
  case PST_TYPE_Q4_0: return 8;
  case PST_TYPE_Q5_0: return 16;
  case PST_TYPE_Q6_K: return 32;
  case PST_TYPE_Q3_K: return 4;
  default: return 0;
  }
}

/* ---- codes ------------------------------------------------------------------------------------------------------ */

/* v << by, v >> by for 0 <= by < 8, known when compiled: the instructions take it as a constant only. */
INLINE uint8x16_t shift_left(uint8x16_t v, const int by) {
  switch (by) {
  case 1: return vshlq_n_u8(v, 1);
  case 2: return vshlq_n_u8(v, 2);
  case 3: return vshlq_n_u8(v, 3);
  case 4: return vshlq_n_u8(v, 4);
  default: return v;
  }
}

INLINE uint8x16_t shift_right(uint8x16_t v, const int by) {
  switch (by) {
  case 1: return vshrq_n_u8(v, 1);
  case 2: return vshrq_n_u8(v, 2);
  case 3: return vshrq_n_u8(v, 3);
  case 4: return vshrq_n_u8(v, 4);
  case 5: return vshrq_n_u8(v, 5);
  case 6: return vshrq_n_u8(v, 6);
  default: return v;
  }
}

/* Bits [from, from + n) of every byte, moved to bits [to, to + n) and alone there. */
INLINE uint8x16_t take_bits(uint8x16_t v, const int from, const int n, const int to) {
  v = from < to ? shift_left(v, to - from) : shift_right(v, from - to);
  return vandq_u8(v, vdupq_n_u8((uint8_t)(((1u << n) - 1) << to)));
}

/* Weights of rows 4r..4r+3 at step s: 4 columns a row. */
INLINE int8x16_t load_codes(const int kind, const uint8_t *rec, const int s, const int r) {
  const uint8_t *p = rec + 16 * r;
  uint8x16_t v;
  if (kind == PST_TYPE_Q8_0 || kind >= PANEL_depth8) return vreinterpretq_s8_u8(vld1q_u8(p + 64 * s));
  if (kind == PST_TYPE_Q2_K || kind == PST_TYPE_Q3_K)
    v = take_bits(vld1q_u8(p + 64 * (s / 4)), 2 * (s & 3), 2, 0);
  else
    v = take_bits(vld1q_u8(p + 64 * (s / 2)), 4 * (s & 1), 4, 0);
  if (kind == PST_TYPE_Q3_K) v = vorrq_u8(v, take_bits(vld1q_u8(p + 128), s, 1, 2));
  if (kind == PST_TYPE_Q5_0 || kind == PST_TYPE_Q5_1 || kind == PST_TYPE_Q5_K)
    v = vorrq_u8(v, take_bits(vld1q_u8(p + 256), s, 1, 4));
  if (kind == PST_TYPE_Q6_K) v = vorrq_u8(v, take_bits(vld1q_u8(p + 256 + 64 * (s / 4)), 2 * (s & 3), 2, 4));
  if (kind == PST_TYPE_IQ4_NL || kind == PST_TYPE_IQ4_XS) return vqtbl1q_s8(vld1q_s8(pst_kernels_iq4_values), v);
  if (kind == PST_TYPE_MXFP4) return vqtbl1q_s8(vld1q_s8(pst_kernels_mxfp4_values), v);
  return vsubq_s8(vreinterpretq_s8_u8(v), vdupq_n_s8((int8_t)kind_offset(kind)));
}

/* ---- scales ----------------------------------------------------------------------------------------------------- */

/* Scale and minimum of the block, or of its first (d, m) and second (e, n) half; four rows. */
typedef struct scales {
  float32x4_t d, e, m, n;
} scales;

INLINE float32x4_t half4(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }

/* Four bytes as 32-bit lanes. */
INLINE uint32x4_t bytes4(const uint8_t *p) {
  uint32_t four;
  memcpy(&four, p, sizeof four);
  return vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
}

INLINE float32x4_t unsigned4(const uint8_t *p) { return vcvtq_f32_u32(bytes4(p)); }

INLINE float32x4_t signed4(const uint8_t *p) {
  return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(vshlq_n_u32(bytes4(p), 24)), 24));
}

/* pst_kernels_e8m0_half of four. */
INLINE float32x4_t e8m0_4(const uint8_t *p) {
  uint32x4_t e = bytes4(p);
  uint32x4_t normal = vshlq_n_u32(vsubq_u32(e, vdupq_n_u32(1)), 23);
  uint32x4_t tiny = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
  return vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), tiny, normal));
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
  default: return kind >= PANEL_depth8 ? 512 : 256;
  }
}

/* Q2_K: scale in the low nibble, minimum in the high one. */
INLINE void load_scales_q2(const uint8_t *p, float32x4_t d, float32x4_t dmin, float32x4_t *ret_d, float32x4_t *ret_m) {
  uint32x4_t v = bytes4(p);
  *ret_d = vmulq_f32(d, vcvtq_f32_u32(vandq_u32(v, vdupq_n_u32(15))));
  *ret_m = vnegq_f32(vmulq_f32(dmin, vcvtq_f32_u32(vshrq_n_u32(v, 4))));
}

/* Of rows 4r..4r+3. */
INLINE void load_scales(const int kind, const uint8_t *header, const uint8_t *rec, const int r, scales *ret) {
  const uint8_t *p = rec + scales_at(kind);
  ret->e = ret->m = ret->n = vdupq_n_f32(0.0f);
  if (kind >= PANEL_depth8) {
    const float *f = (const float *)(const void *)p + 4 * r;
    ret->d = vld1q_f32(f);
    ret->e = vld1q_f32(f + 16);
    ret->m = vld1q_f32(f + 32);
    ret->n = vld1q_f32(f + 48);
    return;
  }
  const uint8_t *half = p + 8 * r, *byte = p + 4 * r, *super = header + 8 * r;
  switch (kind) {
  case PST_TYPE_MXFP4: ret->d = e8m0_4(byte); break;
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_K:
    ret->d = vmulq_f32(half4(super), unsigned4(byte));
    ret->m = vnegq_f32(vmulq_f32(half4(super + 32), unsigned4(byte + 16)));
    break;
  case PST_TYPE_IQ4_XS: ret->d = vmulq_f32(half4(super), signed4(byte)); break;
  case PST_TYPE_Q3_K:
  case PST_TYPE_Q6_K:
    ret->d = vmulq_f32(half4(super), signed4(byte));
    ret->e = vmulq_f32(half4(super), signed4(byte + 16));
    break;
  case PST_TYPE_Q2_K:
    load_scales_q2(byte, half4(super), half4(super + 32), &ret->d, &ret->m);
    load_scales_q2(byte + 16, half4(super), half4(super + 32), &ret->e, &ret->n);
    break;
  case PST_TYPE_Q4_1:
  case PST_TYPE_Q5_1:
    ret->d = half4(half);
    ret->m = half4(half + 32);
    break;
  default: ret->d = half4(half); break;
  }
}

#endif
