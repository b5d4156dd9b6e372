/* Rows of floats to the block formats of GGUF files, with a search for the scales.
 *
 * Owns the choice of scales and codes, and the writing of scales; block.c writes codes, decode.c reads both. Knows nothing of tensors or files.
 *
 * For fixed codes the best scale (and minimum) is a weighted least-squares fit; for a fixed scale the best codes are the nearest ones. The
 * search starts from many roundings of the block's range, fits each, and lets the best one alternate between the two steps (Lloyd's
 * algorithm) until nothing improves. This is the idea of llama.cpp's K-quants (make_qx_quants and make_qkx2_quants, llama.cpp pull
 * request 1684, I. Kawrakow, 2023), carried on where those stop: the six- and eight-bit scales of a K-quant's sub-blocks are moved by one
 * each way and the super-scales fitted again under the codes that result. Sums have a fixed order: the same floats give the same bytes. */
#include "kernels/half.h"
#include "kernels/layout.h"

#include <math.h>

enum { MAX_STARTS = 48, LLOYD_ROUNDS = 4, SUPER_ROUNDS = 3 };

/* Below this no half-precision scale tells a block from zero; above it none reaches its values. */
#define TOO_SMALL 0x1p-30f
#define TOO_LARGE (65504.0f * 128.0f)

/* Four floats as the compiler's own vector: portable, and with one order of summation. */
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t m4 __attribute__((vector_size(16)));

static inline v4 v4_load(const float *p) {
  v4 v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline v4 v4_all(float f) { return (v4){f, f, f, f}; }
static inline v4 v4_pick(m4 mask, v4 yes, v4 no) { return (v4)(((m4)yes & mask) | ((m4)no & ~mask)); }
static inline float v4_sum(v4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

/* The nearest whole number (ties to even) within the bounds, themselves whole and below 2^22. */
static inline v4 v4_nearest(v4 v, v4 low, v4 high) {
  const v4 magic = v4_all(12582912.0f);
  v = v4_pick(v < low, low, v);
  v = v4_pick(v > high, high, v);
  return (v + magic) - magic;
}
static inline float nearest(float v, float low, float high) {
  v = v < low ? low : v;
  v = v > high ? high : v;
  return (v + 12582912.0f) - 12582912.0f;
}

/* Moments of a block: those of its values, and those under one rounding. n is a multiple of 4. */
typedef struct moments {
  float w, x, xx;  /* sums of weight, weight x, weight x^2 */
  float q, qq, qx; /* of weight q, weight q^2, weight q x */
} moments;

static moments measure_values(const float *x, const float *w, size_t n) {
  v4 s_w = v4_all(0), s_x = s_w, s_xx = s_w;
  for (size_t i = 0; i < n; i += 4) {
    v4 v = v4_load(x + i), weight = v4_load(w + i), wx = weight * v;
    s_w += weight;
    s_x += wx;
    s_xx += wx * v;
  }
  return (moments){v4_sum(s_w), v4_sum(s_x), v4_sum(s_xx), 0, 0, 0};
}

static void measure(const float *x, const float *w, size_t n, float inverse, float offset, int low, int high,
                    moments *m) {
  const v4 bottom = v4_all((float)low), top = v4_all((float)high), factor = v4_all(inverse), base = v4_all(offset);
  v4 s_q = v4_all(0), s_qq = s_q, s_qx = s_q;
  for (size_t i = 0; i < n; i += 4) {
    v4 v = v4_load(x + i), q = v4_nearest((v - base) * factor, bottom, top), wq = v4_load(w + i) * q;
    s_q += wq;
    s_qq += wq * q;
    s_qx += wq * v;
  }
  m->q = v4_sum(s_q);
  m->qq = v4_sum(s_qq);
  m->qx = v4_sum(s_qx);
}

static float largest(const float *x, size_t n) {
  float m = 0;
  for (size_t i = 0; i < n; i++) m = fabsf(x[i]) > m ? fabsf(x[i]) : m;
  return m;
}

/* 1 / scale; 0 for a scale that has no inverse, and so gives all values the code nearest to 0. */
static float inverse_of(float scale) {
  float inverse = fabsf(scale) > 0 ? 1 / scale : 0;
  return isfinite(inverse) ? inverse : 0;
}

/* Weighted squared error of x against scale * q + min, q the nearest code. */
static float error_of(const float *x, const float *w, size_t n, float scale, float min, int low, int high) {
  float inverse = inverse_of(scale);
  const v4 bottom = v4_all((float)low), top = v4_all((float)high), factor = v4_all(inverse), base = v4_all(min);
  const v4 step = v4_all(scale);
  v4 sum = v4_all(0);
  for (size_t i = 0; i < n; i += 4) {
    v4 v = v4_load(x + i), r = v - (step * v4_nearest((v - base) * factor, bottom, top) + base);
    sum += v4_load(w + i) * r * r;
  }
  return v4_sum(sum);
}

/* ---- x = scale * q ------------------------------------------------------------------------------------------------ */

/* The scale, of either sign, for codes low..high with -low >= high. */
static float fit_symmetric(const float *x, const float *w, size_t n, int low, int high) {
  float amax = largest(x, n), best_gain = -1, best = 0;
  if (amax < TOO_SMALL) return 0;
  moments m;
  for (int quarters = 4 * (high - 1); quarters <= 4 * (1 - low); quarters++) /* what the largest value is scaled to */
    for (int sign = -1; sign <= 1; sign += 2) {
      measure(x, w, n, (float)(sign * quarters) * 0.25f / amax, 0, low, high, &m);
      if (!(m.qq > 0) || m.qx * m.qx <= best_gain * m.qq) continue;
      best_gain = m.qx * m.qx / m.qq;
      best = m.qx / m.qq;
    }
  for (int round = 0; round < LLOYD_ROUNDS && fabsf(best) > TOO_SMALL * 0x1p-8f; round++) {
    measure(x, w, n, 1 / best, 0, low, high, &m);
    if (!(m.qq > 0) || m.qx * m.qx <= best_gain * m.qq) break;
    best_gain = m.qx * m.qx / m.qq;
    best = m.qx / m.qq;
  }
  return best;
}

/* ---- x = scale * q + min ------------------------------------------------------------------------------------------- */

typedef struct affine {
  float scale, min;
} affine;

/* Least squares for fixed codes; *ret_error is what is left. below_zero: min may not be positive. False: all codes are equal. */
static bool solve_affine(const moments *m, bool below_zero, affine *ret, float *ret_error) {
  float det = m->w * m->qq - m->q * m->q;
  if (!(det > 0)) return false;
  affine a = {(m->w * m->qx - m->x * m->q) / det, (m->qq * m->x - m->q * m->qx) / det};
  if (below_zero && a.min > 0) a = (affine){m->qx / m->qq, 0};
  if (!(a.scale > 0)) return false;
  *ret = a;
  *ret_error = m->xx - 2 * (a.scale * m->qx + a.min * m->x) + a.scale * a.scale * m->qq + 2 * a.scale * a.min * m->q +
               a.min * a.min * m->w;
  return true;
}

/* How many steps of the scale the block's range may take: about all there are, and fewer, for blocks that a grid was laid on before. */
static int affine_starts(int n_max, float *starts) {
  int n = 0;
  for (int k = -10; k <= 10; k++) starts[n++] = (float)n_max + (float)k * 0.1f;
  for (int k = n_max - 2; k >= n_max / 2 && n < MAX_STARTS; k--) starts[n++] = (float)k;
  return n;
}

static affine fit_affine(const float *x, const float *w, size_t n, int n_max, bool below_zero) {
  float low = x[0], high = x[0], starts[MAX_STARTS], best_error = INFINITY, error = 0;
  for (size_t i = 1; i < n; i++) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  if (below_zero && low > 0) low = 0;
  affine best = {0, low}, a;
  if (high - low < TOO_SMALL) return best;
  best.scale = (high - low) / (float)n_max;
  int n_starts = affine_starts(n_max, starts);
  moments m = measure_values(x, w, n);
  for (int k = 0; k < n_starts; k++) {
    measure(x, w, n, starts[k] / (high - low), low, 0, n_max, &m);
    if (!solve_affine(&m, below_zero, &a, &error) || error >= best_error) continue;
    best_error = error;
    best = a;
  }
  for (int round = 0; round < LLOYD_ROUNDS && best.scale > TOO_SMALL * 0x1p-8f; round++) {
    measure(x, w, n, 1 / best.scale, best.min, 0, n_max, &m);
    if (!solve_affine(&m, below_zero, &a, &error) || error >= best_error) break;
    best_error = error;
    best = a;
  }
  return best;
}

/* ---- blocks of 32 -------------------------------------------------------------------------------------------------- */

static void put_codes(const float *x, size_t n, float scale, float min, int low, int high, uint8_t *codes) {
  float inverse = inverse_of(scale);
  for (size_t i = 0; i < n; i++)
    codes[i] = (uint8_t)((int)nearest((x[i] - min) * inverse, (float)low, (float)high) - low);
}

static float as_half(float v, bool *overflow) {
  uint16_t h = pst_half_narrow(v);
  if ((h & 0x7c00u) == 0x7c00u) *overflow = true;
  return pst_half_widen(h);
}

/* A super-scale: one that is wanted stays above zero, since its sub-blocks' scales can take up the difference. */
static float as_super(float v, bool *overflow) {
  float h = as_half(v, overflow);
  return fabsf(h) > 0 || !(fabsf(v) > 0) ? h : v > 0 ? 0x1p-24f : -0x1p-24f;
}

static int quantize_symmetric(uint32_t type, const float *x, const float *w, uint8_t *dst) {
  int low = type == PST_TYPE_Q4_0 ? -8 : type == PST_TYPE_Q5_0 ? -16 : -127;
  int high = type == PST_TYPE_Q8_0 ? 127 : -low - 1;
  bool overflow = false;
  uint8_t codes[PST_BLOCK];
  float d = as_half(fit_symmetric(x, w, PST_BLOCK, low, high), &overflow);
  if (overflow) return PST_E_LIMIT;
  pst_store_u16(dst, pst_half_narrow(d));
  put_codes(x, PST_BLOCK, d, 0, low, high, codes);
  pst_kernels_block_put(type, codes, dst);
  return 0;
}

static int quantize_affine(uint32_t type, const float *x, const float *w, uint8_t *dst) {
  int n_max = type == PST_TYPE_Q4_1 ? 15 : 31;
  bool overflow = false;
  uint8_t codes[PST_BLOCK];
  affine a = fit_affine(x, w, PST_BLOCK, n_max, false);
  float d = as_half(a.scale, &overflow), sum_w = 0, sum = 0;
  /* The minimum once more, for the scale as it will be read. */
  put_codes(x, PST_BLOCK, d, a.min, 0, n_max, codes);
  for (int i = 0; i < PST_BLOCK; i++) {
    sum_w += w[i];
    sum += w[i] * (x[i] - d * (float)codes[i]);
  }
  float m = as_half(sum_w > 0 ? sum / sum_w : a.min, &overflow);
  if (overflow) return PST_E_LIMIT;
  pst_store_u16(dst, pst_half_narrow(d));
  pst_store_u16(dst + 2, pst_half_narrow(m));
  put_codes(x, PST_BLOCK, d, m, 0, n_max, codes);
  pst_kernels_block_put(type, codes, dst);
  return 0;
}

/* ---- x = scale * one of sixteen levels: IQ4_NL, and the sub-blocks of IQ4_XS ------------------------------------------ */

/* The code of the level nearest to each x * inverse. */
static void put_level_codes(const float *x, float inverse, uint8_t *codes) {
  const int8_t *levels = pst_kernels_iq4_values;
  memset(codes, 0, PST_BLOCK);
  for (int k = 0; k < 15; k++) {
    float middle = 0.5f * (float)(levels[k] + levels[k + 1]);
    for (int i = 0; i < PST_BLOCK; i++) codes[i] = (uint8_t)(codes[i] + (x[i] * inverse > middle));
  }
}

/* The moments of weight level^2, weight level x, under that rounding. */
static void measure_levels(const float *x, const float *w, float inverse, moments *m) {
  uint8_t codes[PST_BLOCK];
  put_level_codes(x, inverse, codes);
  m->qq = m->qx = 0;
  for (int i = 0; i < PST_BLOCK; i++) {
    float level = (float)pst_kernels_iq4_values[codes[i]], wl = w[i] * level;
    m->qq += wl * level;
    m->qx += wl * x[i];
  }
}

static float error_of_levels(const float *x, const float *w, float scale) {
  uint8_t codes[PST_BLOCK];
  float sum = 0;
  put_level_codes(x, inverse_of(scale), codes);
  for (int i = 0; i < PST_BLOCK; i++) {
    float r = x[i] - scale * (float)pst_kernels_iq4_values[codes[i]];
    sum += w[i] * r * r;
  }
  return sum;
}

static float fit_levels(const float *x, const float *w) {
  float amax = largest(x, PST_BLOCK), best = 0, best_gain = -1;
  moments m;
  for (int start = 0; amax >= TOO_SMALL && start < 24; start++) {
    float inverse = (float)(start & 1 ? -(94 + 3 * start) : 94 + 3 * start) / amax;
    for (int round = 0; round < LLOYD_ROUNDS; round++) {
      measure_levels(x, w, inverse, &m);
      if (!(m.qq > 0) || m.qx * m.qx <= best_gain * m.qq) break;
      best_gain = m.qx * m.qx / m.qq;
      best = m.qx / m.qq;
      inverse = inverse_of(best);
    }
  }
  return best;
}

static int quantize_levels(const float *x, const float *w, uint8_t *dst) {
  uint8_t codes[PST_BLOCK];
  bool overflow = false;
  float d = as_half(fit_levels(x, w), &overflow);
  if (overflow) return PST_E_LIMIT;
  pst_store_u16(dst, pst_half_narrow(d));
  put_level_codes(x, inverse_of(d), codes);
  pst_kernels_block_put(PST_TYPE_IQ4_NL, codes, dst);
  return 0;
}

/* ---- Q4_K, Q5_K: eight sub-blocks of 32 with a six-bit scale and minimum each ---------------------------------------- */

enum { K_BLOCK = 256, K_SUBS = 8, K_SUB = 32 };

typedef struct k_affine {
  float d, dmin; /* halves */
  uint8_t sc[K_SUBS], mn[K_SUBS];
  float error;
} k_affine;

static float k_sub_error(const float *x, const float *w, const k_affine *k, int sc, int mn, int n_max) {
  return error_of(x, w, K_SUB, k->d * (float)sc, -(k->dmin * (float)mn), 0, n_max);
}

static int clamp_int(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

/* For given super-scales: each sub-block's pair, from the wanted values and their neighbours. */
static void k_choose_scales(const float *x, const float *w, const affine *want, int n_max, k_affine *k) {
  k->error = 0;
  for (int j = 0; j < K_SUBS; j++) {
    int sc0 = k->d > 0 ? clamp_int((int)lrintf(want[j].scale / k->d), 0, 63) : 0;
    int mn0 = k->dmin > 0 ? clamp_int((int)lrintf(-want[j].min / k->dmin), 0, 63) : 0;
    float best = INFINITY;
    for (int sc = PST_MAX(sc0 - 1, 0); sc <= PST_MIN(sc0 + 1, 63); sc++)
      for (int mn = PST_MAX(mn0 - 1, 0); mn <= PST_MIN(mn0 + 1, 63); mn++) {
        float e = k_sub_error(x + j * K_SUB, w + j * K_SUB, k, sc, mn, n_max);
        if (e >= best) continue;
        best = e;
        k->sc[j] = (uint8_t)sc;
        k->mn[j] = (uint8_t)mn;
      }
    k->error += best;
  }
}

/* Least squares for d and dmin under the codes, scales and minima that are there. False: nothing to solve. */
static bool k_fit_super(const float *x, const float *w, const k_affine *k, int n_max, float *ret_d, float *ret_dmin) {
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0; /* a = sc * q, b = -mn */
  for (int j = 0; j < K_SUBS; j++) {
    float scale = k->d * (float)k->sc[j], min = -(k->dmin * (float)k->mn[j]);
    moments m = measure_values(x + j * K_SUB, w + j * K_SUB, K_SUB);
    measure(x + j * K_SUB, w + j * K_SUB, K_SUB, inverse_of(scale), min, 0, n_max, &m);
    double sc = k->sc[j], mn = k->mn[j];
    aa += sc * sc * (double)m.qq;
    ab -= sc * mn * (double)m.q;
    bb += mn * mn * (double)m.w;
    ax += sc * (double)m.qx;
    bx -= mn * (double)m.x;
  }
  double det = aa * bb - ab * ab;
  if (bb > 0 && det > 1e-12 * aa * bb) {
    *ret_d = (float)((ax * bb - bx * ab) / det);
    *ret_dmin = (float)((bx * aa - ax * ab) / det);
  } else if (aa > 0) {
    *ret_d = (float)((ax - ab * (double)k->dmin) / aa);
    *ret_dmin = k->dmin;
  } else {
    return false;
  }
  return *ret_d > 0 && *ret_dmin >= 0;
}

static void k4_put_scales(const k_affine *k, uint8_t *s) {
  for (int j = 0; j < 4; j++) {
    s[j] = (uint8_t)(k->sc[j] | (unsigned)(k->sc[j + 4] >> 4) << 6);
    s[j + 4] = (uint8_t)(k->mn[j] | (unsigned)(k->mn[j + 4] >> 4) << 6);
    s[j + 8] = (uint8_t)((k->sc[j + 4] & 15u) | (unsigned)(k->mn[j + 4] & 15u) << 4);
  }
}

static void k_affine_store(uint32_t type, const float *x, const k_affine *k, int n_max, uint8_t *dst) {
  uint8_t codes[K_BLOCK];
  pst_store_u16(dst, pst_half_narrow(k->d));
  pst_store_u16(dst + 2, pst_half_narrow(k->dmin));
  k4_put_scales(k, dst + 4);
  for (int j = 0; j < K_SUBS; j++)
    put_codes(x + j * K_SUB, K_SUB, k->d * (float)k->sc[j], -(k->dmin * (float)k->mn[j]), 0, n_max, codes + j * K_SUB);
  pst_kernels_block_put(type, codes, dst);
}

static int quantize_k_affine(uint32_t type, const float *x, const float *w, uint8_t *dst) {
  int n_max = type == PST_TYPE_Q4_K ? 15 : 31;
  affine want[K_SUBS];
  float max_scale = 0, max_min = 0;
  bool overflow = false;
  for (int j = 0; j < K_SUBS; j++) {
    want[j] = fit_affine(x + j * K_SUB, w + j * K_SUB, K_SUB, n_max, true);
    max_scale = PST_MAX(max_scale, want[j].scale);
    max_min = PST_MAX(max_min, -want[j].min);
  }
  k_affine k = {.d = as_super(max_scale / 63, &overflow), .dmin = as_super(max_min / 63, &overflow)};
  if (overflow) return PST_E_LIMIT;
  k_choose_scales(x, w, want, n_max, &k);
  for (int round = 0; round < SUPER_ROUNDS && k.error > 0; round++) {
    k_affine next = k;
    if (!k_fit_super(x, w, &k, n_max, &next.d, &next.dmin)) break;
    next.d = as_half(next.d, &overflow);
    next.dmin = as_half(next.dmin, &overflow);
    if (overflow) break;
    k_choose_scales(x, w, want, n_max, &next);
    if (next.error >= k.error) break;
    k = next;
  }
  k_affine_store(type, x, &k, n_max, dst);
  return 0;
}

/* ---- Q3_K, Q6_K, IQ4_XS: sub-blocks with a whole signed scale each ----------------------------------------------------- */

enum { MAX_SUBS = 16 };

typedef struct signed_format {
  uint32_t type;
  int n_subs, sub;     /* sub-blocks, elements of each */
  int sc_low, sc_high; /* of a sub-block's scale, sc_low the farther from 0 */
  int low, high;       /* of codes; IQ4_XS, whose codes stand for levels: not read */
} signed_format;

static const signed_format signed_formats[] = {
    {PST_TYPE_Q3_K, 16, 16, -32, 31, -4, 3},
    {PST_TYPE_Q6_K, 16, 16, -128, 127, -32, 31},
    {PST_TYPE_IQ4_XS, 8, 32, -32, 31, 0, 15},
};

typedef struct k_signed {
  float d; /* half */
  int sc[MAX_SUBS];
  float error;
} k_signed;

static float fit_sub(const signed_format *f, const float *x, const float *w) {
  return f->type == PST_TYPE_IQ4_XS ? fit_levels(x, w) : fit_symmetric(x, w, (size_t)f->sub, f->low, f->high);
}

static float sub_error(const signed_format *f, const float *x, const float *w, float scale) {
  return f->type == PST_TYPE_IQ4_XS ? error_of_levels(x, w, scale)
                                    : error_of(x, w, (size_t)f->sub, scale, 0, f->low, f->high);
}

static void measure_sub(const signed_format *f, const float *x, const float *w, float scale, moments *m) {
  if (f->type == PST_TYPE_IQ4_XS)
    measure_levels(x, w, inverse_of(scale), m);
  else
    measure(x, w, (size_t)f->sub, inverse_of(scale), 0, f->low, f->high, m);
}

/* For a given super-scale: each sub-block's scale, from the wanted value and its neighbours. */
static void signed_choose_scales(const signed_format *f, const float *x, const float *w, const float *want,
                                 k_signed *k) {
  k->error = 0;
  for (int j = 0; j < f->n_subs; j++) {
    int sc0 = fabsf(k->d) > 0 ? clamp_int((int)lrintf(want[j] / k->d), f->sc_low, f->sc_high) : 0;
    float best = INFINITY;
    for (int sc = PST_MAX(sc0 - 1, f->sc_low); sc <= PST_MIN(sc0 + 1, f->sc_high); sc++) {
      float e = sub_error(f, x + j * f->sub, w + j * f->sub, k->d * (float)sc);
      if (e >= best) continue;
      best = e;
      k->sc[j] = sc;
    }
    k->error += best;
  }
}

/* Least squares for d under the codes and scales that are there. */
static float signed_fit_super(const signed_format *f, const float *x, const float *w, const k_signed *k) {
  double aa = 0, ax = 0;
  for (int j = 0; j < f->n_subs; j++) {
    moments m;
    measure_sub(f, x + j * f->sub, w + j * f->sub, k->d * (float)k->sc[j], &m);
    aa += (double)(k->sc[j] * k->sc[j]) * (double)m.qq;
    ax += (double)k->sc[j] * (double)m.qx;
  }
  return aa > 0 ? (float)(ax / aa) : 0;
}

/* Six-bit scales, biased by 32: Q3_K keeps the low four bits of scales 0..7 and 8..15 in the nibbles of eight bytes, the high two of every fourth in one of
 * four bytes. */
static void q3_put_scales(const int *sc, uint8_t *s) {
  memset(s, 0, 12);
  for (int j = 0; j < 16; j++) {
    unsigned v = (unsigned)(sc[j] + 32);
    s[j % 8] = (uint8_t)(s[j % 8] | (v & 15u) << (j < 8 ? 0 : 4));
    s[8 + j % 4] = (uint8_t)(s[8 + j % 4] | (v >> 4) << (2 * (j / 4)));
  }
}

/* IQ4_XS: the high two bits of all eight in a half-word, the low four in nibbles. */
static void iq4_put_scales(const int *sc, uint8_t *dst) {
  unsigned high = 0;
  memset(dst + 2, 0, 4);
  for (int j = 0; j < 8; j++) {
    unsigned v = (unsigned)(sc[j] + 32);
    dst[2 + j / 2] = (uint8_t)(dst[2 + j / 2] | (v & 15u) << (4 * (j & 1)));
    high |= (v >> 4) << (2 * j);
  }
  pst_store_u16(dst, (uint16_t)high);
}

static void signed_store(const signed_format *f, const float *x, const k_signed *k, uint8_t *dst) {
  uint8_t codes[K_BLOCK];
  for (int j = 0; j < f->n_subs; j++) {
    float scale = k->d * (float)k->sc[j];
    if (f->type == PST_TYPE_IQ4_XS)
      put_level_codes(x + j * f->sub, inverse_of(scale), codes + j * f->sub);
    else
      put_codes(x + j * f->sub, (size_t)f->sub, scale, 0, f->low, f->high, codes + j * f->sub);
  }
  switch (f->type) {
  case PST_TYPE_Q3_K: q3_put_scales(k->sc, dst + 96); break;
  case PST_TYPE_IQ4_XS: iq4_put_scales(k->sc, dst + 2); break;
  default:
    for (int j = 0; j < f->n_subs; j++) dst[192 + j] = (uint8_t)(int8_t)k->sc[j];
    break;
  }
  pst_store_u16(dst + pst_kernels_scale_place(f->type), pst_half_narrow(k->d));
  pst_kernels_block_put(f->type, codes, dst);
}

static int quantize_k_signed(uint32_t type, const float *x, const float *w, uint8_t *dst) {
  const signed_format *f = signed_formats;
  float want[MAX_SUBS], top = 0;
  bool overflow = false;
  while (f->type != type) f++;
  for (int j = 0; j < f->n_subs; j++) {
    want[j] = fit_sub(f, x + j * f->sub, w + j * f->sub);
    if (fabsf(want[j]) > fabsf(top)) top = want[j];
  }
  k_signed k = {.d = as_super(top / (float)f->sc_low, &overflow)};
  if (overflow) return PST_E_LIMIT;
  signed_choose_scales(f, x, w, want, &k);
  for (int round = 0; round < SUPER_ROUNDS && k.error > 0; round++) {
    k_signed next = k;
    next.d = as_half(signed_fit_super(f, x, w, &k), &overflow);
    if (overflow) break;
    signed_choose_scales(f, x, w, want, &next);
    if (next.error >= k.error) break;
    k = next;
  }
  signed_store(f, x, &k, dst);
  return 0;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------- */

static int quantize_floats(uint32_t type, const float *src, size_t n, uint8_t *dst) {
  if (type == PST_TYPE_F32) {
    memcpy(dst, src, n * sizeof *src);
    return 0;
  }
  for (size_t i = 0; i < n; i++) {
    uint16_t v = type == PST_TYPE_F16 ? pst_half_narrow(src[i]) : pst_bfloat_narrow(src[i]);
    if ((v & 0x7fffu) >= (type == PST_TYPE_F16 ? 0x7c00u : 0x7f80u)) return PST_E_LIMIT;
    pst_store_u16(dst + 2 * i, v);
  }
  return 0;
}

static int quantize_block(uint32_t type, const float *x, const float *w, uint8_t *dst) {
  switch (type) {
  case PST_TYPE_Q4_0:
  case PST_TYPE_Q5_0:
  case PST_TYPE_Q8_0: return quantize_symmetric(type, x, w, dst);
  case PST_TYPE_Q4_1:
  case PST_TYPE_Q5_1: return quantize_affine(type, x, w, dst);
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_K: return quantize_k_affine(type, x, w, dst);
  case PST_TYPE_Q3_K:
  case PST_TYPE_Q6_K:
  case PST_TYPE_IQ4_XS: return quantize_k_signed(type, x, w, dst);
  case PST_TYPE_IQ4_NL: return quantize_levels(x, w, dst);
  default: return PST_E_UNSUPPORTED;
  }
}

int pst_kernels_quantize_row(uint32_t type, const float *src, size_t n, const float *importance, void *ret_dst) {
  const pst_kernels_type_row *info = pst_kernels_type_info(type);
  uint8_t *dst = ret_dst;
  float ones[K_BLOCK];
  if (!info) return PST_E_UNSUPPORTED;
  if (type == PST_TYPE_F32 || type == PST_TYPE_F16 || type == PST_TYPE_BF16) return quantize_floats(type, src, n, dst);
  if (n % info->block_elements) return PST_E_BAD_INPUT;
  for (size_t i = 0; i < K_BLOCK; i++) ones[i] = 1;
  for (size_t at = 0; at < n; at += info->block_elements, dst += info->block_bytes) {
    if (largest(src + at, info->block_elements) > TOO_LARGE) return PST_E_LIMIT;
    int code = quantize_block(type, src + at, importance ? importance + at : ones, dst);
    if (code) return code;
  }
  return 0;
}
