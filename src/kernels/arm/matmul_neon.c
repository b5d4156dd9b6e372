/* Products for ARMv8.0 NEON: matmul.inc by widening multiplies.
 *
 * A step's 8-bit products are added in 16 bits over kind_depth steps, then neighbours are added, then widened to 32. */
#include "kernels/arm/tile_neon.h"

typedef struct dot_acc {
  int16x8_t l, h; /* rows 0-1 and 2-3, 4 columns each */
  int32x4_t sum;
} dot_acc;

INLINE int32x4_t dot_sum(const dot_acc *a) { return a->sum; }

INLINE void dot_step(const int kind, const int s, const int begin, dot_acc *a, int8x16_t w, const int8_t *x) {
  const int depth = kind_depth(kind);
  int32_t four;
  memcpy(&four, x + 4 * s, sizeof four);
  int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
  if (s % depth == 0) {
    a->l = vmull_s8(vget_low_s8(w), vget_low_s8(v));
    a->h = vmull_high_s8(w, v);
  } else {
    a->l = vmlal_s8(a->l, vget_low_s8(w), vget_low_s8(v));
    a->h = vmlal_high_s8(a->h, w, v);
  }
  if (s % depth != depth - 1) return;
  int16x8_t pairs = vpaddq_s16(a->l, a->h);
  a->sum = s == begin + depth - 1 ? vpaddlq_s16(pairs) : vpadalq_s16(a->sum, pairs);
}

#define DOT_STEP(kind, s, begin, acc, w, x) dot_step(kind, s, begin, &(acc), w, x)
/* 32 registers: a sum takes two of 16 bits, one of 32 and one of floats. */
#define TILE_ROWS(tokens) ((tokens) == 1 ? 4 : (tokens) == 2 ? 2 : 1)
#define PST_ISA(name) pst_kernels_##name##_neon
#include "kernels/arm/matmul.inc"
