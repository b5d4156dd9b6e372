/* Products for NEON with the dot product instruction (ARMv8.2 dotprod): matmul.inc by sdot. */
#include "kernels/arm/tile_neon.h"

typedef int32x4_t dot_acc;

INLINE int32x4_t dot_sum(const dot_acc *a) { return *a; }

/* The activations of four steps are one register; the instruction picks its lane. */
#define DOT_STEP(kind, s, begin, acc, w, x) \
  acc = vdotq_laneq_s32((s) == (begin) ? vdupq_n_s32(0) : (acc), w, vld1q_s8((x) + 16 * ((s) / 4)), (s) % 4)
/* 32 registers: a sum takes one of 32 bits and one of floats. */
#define TILE_ROWS(tokens) ((tokens) <= 2 ? 4 : 2)
#define PST_ISA(name) pst_kernels_##name##_dotprod
#include "kernels/arm/matmul.inc"
