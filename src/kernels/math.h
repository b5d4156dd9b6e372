/* The exponential and what is made of it, operation by operation: the ISA files do the same steps on registers. */
#ifndef PST_KERNELS_MATH_H
#define PST_KERNELS_MATH_H

#include "kernels/half.h"

#include <math.h>

#define PST_EXP_LOW (-80.0f) /* below: 0. Keeps products with any f16 value out of the range where they would vanish. */
#define PST_EXP_HIGH 88.0f   /* above: as at 88 */
#define PST_EXP_LOG2E 1.44269504f
#define PST_EXP_LN2_HIGH 0.693359375f
#define PST_EXP_LN2_LOW (-2.12194440e-4f)
/* Cephes expf: exp(r) = 1 + r + r^2 P(r), |r| <= ln2/2. */
#define PST_EXP_P0 1.9875691500e-4f
#define PST_EXP_P1 1.3981999507e-3f
#define PST_EXP_P2 8.3334519073e-3f
#define PST_EXP_P3 4.1665795894e-2f
#define PST_EXP_P4 1.6666665459e-1f
#define PST_EXP_P5 5.0000001201e-1f
/* Adding it rounds a float of magnitude below 2^22 to the nearest integer, ties to even, and leaves that integer in the low bits. */
#define PST_ROUND_MAGIC 12582912.0f
/* gelu(x) = x * sigmoid(1.5957691216 (x + 0.044715 x^3)), the tanh form */
#define PST_GELU_CUBE 0.044715f
#define PST_GELU_FACTOR (-1.5957691216f)
/* The clamped gate of gpt-oss (arXiv 2508.10925): its limit, and minus the factor inside the sigmoid */
#define PST_SWIGLU_LIMIT 7.0f
#define PST_SWIGLU_FACTOR (-1.702f)
/* Phi(-a) = t/2 exp(P(t) - a^2/2), t = 1 / (1 + PST_ERFC_STEP a), for a >= 0: the form of W. H. Press et al., Numerical Recipes, 6.2.2, with
 * coefficients fitted anew (least squares at Chebyshev nodes, degree 8): x Phi(x) is off by at most 2.4e-7 |x|. */
#define PST_ERFC_STEP 0.353553391f
#define PST_ERFC_P0 (-1.2651491165f)
#define PST_ERFC_P1 0.9922031164f
#define PST_ERFC_P2 0.4449952543f
#define PST_ERFC_P3 (-0.2591435909f)
#define PST_ERFC_P4 0.9073744416f
#define PST_ERFC_P5 (-1.8621822596f)
#define PST_ERFC_P6 1.5455602407f
#define PST_ERFC_P7 (-0.5892866254f)
#define PST_ERFC_P8 0.0856283754f
/* Activation blocks below it count as zero: their scale's inverse would overflow. */
#define PST_AMAX_MIN 1e-30f

static inline float pst_exp(float x) {
  if (!(x >= PST_EXP_LOW)) return 0.0f;
  x = x < PST_EXP_HIGH ? x : PST_EXP_HIGH;
  float t = x * PST_EXP_LOG2E + PST_ROUND_MAGIC;
  float n = t - PST_ROUND_MAGIC;
  float r = fmaf(n, -PST_EXP_LN2_HIGH, x);
  r = fmaf(n, -PST_EXP_LN2_LOW, r);
  float p = fmaf(PST_EXP_P0, r, PST_EXP_P1);
  p = fmaf(p, r, PST_EXP_P2);
  p = fmaf(p, r, PST_EXP_P3);
  p = fmaf(p, r, PST_EXP_P4);
  p = fmaf(p, r, PST_EXP_P5);
  float y = fmaf(p, r * r, r) + 1.0f;
  return pst_bits_to_float(pst_float_to_bits(y) + (pst_float_to_bits(t) << 23));
}

/* What weighted values are multiplied by at the end: 1 over the softmax's denominator, which a sink joins as the last score. */
static inline float pst_attend_factor(const float *sink, float max, float sum) {
  if (!sink) return 1.0f / sum;
  float both = max > *sink ? max : *sink, keep = pst_exp(max - both);
  return keep / fmaf(sum, keep, pst_exp(*sink - both));
}

/* One element of a layer norm. */
static inline float pst_layernorm_element(float x, float mean, float factor, const float *weight, const float *bias,
                                          size_t i) {
  float y = (x - mean) * factor;
  if (weight) y = y * weight[i];
  return bias ? y + bias[i] : y;
}

#endif
