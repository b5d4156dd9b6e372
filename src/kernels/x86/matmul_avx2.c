/* Products with packed matrices for AVX2 + FMA + F16C.
 *
 * Owns the integer dot products of every packed type and the float types, for one token up to whole prompts; results are bit-equal to
 * reference.c. Lanes are rows: two registers hold a group's 16 rows, a step is one 4-column slice.
 *
 * Unsigned codes times signed activations go through vpmaddubsw, and several of its 16-bit results are added before they are widened:
 * |pair| <= 2 * 127 * code, so 8 steps are safe for codes up to 16, 4 up to 32, 2 up to 64 (8 * 3810 = 30480, 4 * 7874 = 31496,
 * 2 * 16002 = 32004 < 32768). Signed bytes take vpsignb and no such sum (2 * 127 * 128 = 32512).
 *
 * Few tokens work straight on the packed records; from PANEL_TOKENS on, a group's codes are unpacked once into a panel in the first-level
 * cache and scales into floats, and token tiles run over that. Accumulators are named fields, never arrays: gcc 12 keeps arrays
 * in memory. */
#include "kernels/layout.h"
#include "kernels/x86/x86.h"
#include "kernels/tile_input.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum {
  TILE = 4,          /* tokens a tile holds in registers */
  PANEL_TOKENS = 8,  /* from here on the panel pays */
  PANEL_BLOCKS = 20, /* blocks of a panel: 20 * 640 bytes leave room for activations in 32 KiB */
  RUN_TOKENS = 512,  /* tokens whose sums are kept between two panels of the same rows */
};

/* A panel stands for a type of its own: codes as bytes, scales as floats. Numbers above every GGUF type. */
enum { PANEL_DEPTH8 = 100, PANEL_DEPTH4, PANEL_DEPTH2_HALVES, PANEL_SIGNED, PANEL_DEPTH8_HALVES };

/* Panel block: 512 bytes of codes, then d[16] (first half), d[16] (second half), m[16] (first), m[16] (second) as f32. */
enum { PANEL_BLOCK_BYTES = 512 + 4 * 64 };

INLINE bool kind_halves(int kind) {
  return kind == PST_TYPE_Q6_K || kind == PST_TYPE_Q2_K || kind == PST_TYPE_Q3_K || kind == PANEL_DEPTH2_HALVES ||
         kind == PANEL_DEPTH8_HALVES;
}

INLINE bool kind_signed(int kind) {
  return kind == PST_TYPE_Q8_0 || kind == PST_TYPE_IQ4_NL || kind == PST_TYPE_IQ4_XS || kind == PANEL_SIGNED;
}

/* Steps whose 16-bit products may be summed. */
INLINE int kind_depth(int kind) {
  if (kind_signed(kind)) return 1;
  if (kind == PST_TYPE_Q6_K || kind == PANEL_DEPTH2_HALVES) return 2;
  if (kind == PST_TYPE_Q5_0 || kind == PST_TYPE_Q5_1 || kind == PST_TYPE_Q5_K || kind == PST_TYPE_MXFP4 ||
      kind == PANEL_DEPTH4)
    return 4;
  return kind_halves(kind) ? 4 : 8;
}

/* Codes of rows 8r..8r+7 at step s. */
INLINE __m256i load_codes(const int kind, const uint8_t *rec, const int s, const int r) {
  const __m256i low4 = _mm256_set1_epi8(15);
  if (kind == PST_TYPE_Q8_0 || kind >= PANEL_DEPTH8) return _mm256_loadu_si256((const void *)(rec + 64 * s + 32 * r));
  if (kind == PST_TYPE_Q2_K || kind == PST_TYPE_Q3_K) {
    __m256i v = _mm256_loadu_si256((const void *)(rec + 64 * (s / 4) + 32 * r));
    v = _mm256_and_si256(_mm256_srli_epi16(v, 2 * (s & 3)), _mm256_set1_epi8(3));
    if (kind == PST_TYPE_Q2_K) return v;
    __m256i h = _mm256_loadu_si256((const void *)(rec + 128 + 32 * r));
    h = s <= 2 ? _mm256_slli_epi16(h, 2 - s) : _mm256_srli_epi16(h, s - 2);
    return _mm256_or_si256(v, _mm256_and_si256(h, _mm256_set1_epi8(4)));
  }
  __m256i v = _mm256_loadu_si256((const void *)(rec + 64 * (s / 2) + 32 * r));
  v = _mm256_and_si256((s & 1) ? _mm256_srli_epi16(v, 4) : v, low4);
  if (kind == PST_TYPE_Q5_0 || kind == PST_TYPE_Q5_1 || kind == PST_TYPE_Q5_K) {
    __m256i h = _mm256_loadu_si256((const void *)(rec + 256 + 32 * r));
    h = s <= 4 ? _mm256_slli_epi16(h, 4 - s) : _mm256_srli_epi16(h, s - 4);
    v = _mm256_or_si256(v, _mm256_and_si256(h, _mm256_set1_epi8(16)));
  }
  if (kind == PST_TYPE_Q6_K) {
    __m256i h = _mm256_loadu_si256((const void *)(rec + 256 + 64 * (s / 4) + 32 * r));
    h = (s & 3) <= 2 ? _mm256_slli_epi16(h, 4 - 2 * (s & 3)) : _mm256_srli_epi16(h, 2);
    v = _mm256_or_si256(v, _mm256_and_si256(h, _mm256_set1_epi8(0x30)));
  }
  if (kind == PST_TYPE_IQ4_NL || kind == PST_TYPE_IQ4_XS)
    v = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)pst_kernels_iq4_values)), v);
  if (kind == PST_TYPE_MXFP4)
    v = _mm256_add_epi8(
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)pst_kernels_mxfp4_values)), v),
        _mm256_set1_epi8(12));
  return v;
}

/* What the integers are too large by: codes are weight + offset. */
INLINE int kind_offset(int kind) {
  switch (kind) {
  case PST_TYPE_Q4_0: return 8;
  case PST_TYPE_Q5_0: return 16;
  case PST_TYPE_Q6_K: return 32;
  case PST_TYPE_Q3_K: return 4;
  case PST_TYPE_MXFP4: return 12;
  default: return 0;
  }
}

/* ---- scales ----------------------------------------------------------------------------------------------------- */

typedef struct scales {
  __m256 dl, dh; /* rows 0-7 and 8-15 */
  __m256 el, eh; /* the same for the second half of the columns, where halves differ */
  __m256 ml, mh, nl, nh;
} scales;

INLINE __m256 half8(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }

INLINE __m256 u8x8(const uint8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)));
}

INLINE __m256 i8x8(const uint8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}

INLINE __m256 e8m0x8(const uint8_t *p) {
  __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
  __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
  return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}

INLINE __m256 negate(__m256 x) { return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f)); }

INLINE void load_scales(const int kind, const uint8_t *header, const uint8_t *rec, scales *ret) {
  const uint8_t *p;
  switch (kind) {
  case PST_TYPE_Q4_0:
  case PST_TYPE_IQ4_NL: p = rec + 256; break;
  case PST_TYPE_Q4_1: p = rec + 256; break;
  case PST_TYPE_Q5_0:
  case PST_TYPE_Q5_1: p = rec + 320; break;
  case PST_TYPE_Q8_0: p = rec + 512; break;
  case PST_TYPE_Q4_K:
  case PST_TYPE_IQ4_XS:
  case PST_TYPE_MXFP4: p = rec + 256; break;
  case PST_TYPE_Q5_K: p = rec + 320; break;
  case PST_TYPE_Q6_K: p = rec + 384; break;
  case PST_TYPE_Q2_K: p = rec + 128; break;
  case PST_TYPE_Q3_K: p = rec + 192; break;
  default: p = rec + 512; break;
  }
  ret->el = ret->eh = ret->ml = ret->mh = ret->nl = ret->nh = _mm256_setzero_ps();
  if (kind >= PANEL_DEPTH8) {
    const float *f = (const float *)(const void *)p;
    ret->dl = _mm256_load_ps(f);
    ret->dh = _mm256_load_ps(f + 8);
    ret->el = _mm256_load_ps(f + 16);
    ret->eh = _mm256_load_ps(f + 24);
    ret->ml = _mm256_load_ps(f + 32);
    ret->mh = _mm256_load_ps(f + 40);
    ret->nl = _mm256_load_ps(f + 48);
    ret->nh = _mm256_load_ps(f + 56);
    return;
  }
  if (kind == PST_TYPE_MXFP4) {
    ret->dl = e8m0x8(p);
    ret->dh = e8m0x8(p + 8);
    return;
  }
  if (kind == PST_TYPE_Q4_K || kind == PST_TYPE_Q5_K) {
    ret->dl = _mm256_mul_ps(half8(header), u8x8(p));
    ret->dh = _mm256_mul_ps(half8(header + 16), u8x8(p + 8));
    ret->ml = negate(_mm256_mul_ps(half8(header + 32), u8x8(p + 16)));
    ret->mh = negate(_mm256_mul_ps(half8(header + 48), u8x8(p + 24)));
    return;
  }
  if (kind == PST_TYPE_Q6_K || kind == PST_TYPE_Q3_K || kind == PST_TYPE_IQ4_XS) {
    ret->dl = _mm256_mul_ps(half8(header), i8x8(p));
    ret->dh = _mm256_mul_ps(half8(header + 16), i8x8(p + 8));
    if (kind == PST_TYPE_IQ4_XS) return;
    ret->el = _mm256_mul_ps(half8(header), i8x8(p + 16));
    ret->eh = _mm256_mul_ps(half8(header + 16), i8x8(p + 24));
    return;
  }
  if (kind == PST_TYPE_Q2_K) {
    /* scale in the low nibble, minimum in the high one */
    const __m128i low4 = _mm_set1_epi8(15);
    uint8_t sc[32], mn[32];
    for (int h = 0; h < 2; h++) {
      __m128i v = _mm_loadu_si128((const void *)(p + 16 * h));
      _mm_storeu_si128((void *)(sc + 16 * h), _mm_and_si128(v, low4));
      _mm_storeu_si128((void *)(mn + 16 * h), _mm_and_si128(_mm_srli_epi16(v, 4), low4));
    }
    ret->dl = _mm256_mul_ps(half8(header), u8x8(sc));
    ret->dh = _mm256_mul_ps(half8(header + 16), u8x8(sc + 8));
    ret->el = _mm256_mul_ps(half8(header), u8x8(sc + 16));
    ret->eh = _mm256_mul_ps(half8(header + 16), u8x8(sc + 24));
    ret->ml = negate(_mm256_mul_ps(half8(header + 32), u8x8(mn)));
    ret->mh = negate(_mm256_mul_ps(half8(header + 48), u8x8(mn + 8)));
    ret->nl = negate(_mm256_mul_ps(half8(header + 32), u8x8(mn + 16)));
    ret->nh = negate(_mm256_mul_ps(half8(header + 48), u8x8(mn + 24)));
    return;
  }
  ret->dl = half8(p);
  ret->dh = half8(p + 16);
  if (kind == PST_TYPE_Q4_1 || kind == PST_TYPE_Q5_1) {
    ret->ml = half8(p + 32);
    ret->mh = half8(p + 48);
  }
}

/* ---- integer part ----------------------------------------------------------------------------------------------- */

/* Sums of up to four tokens: l rows 0-7, h rows 8-15. */
typedef struct sums {
  __m256i l0, h0, l1, h1, l2, h2, l3, h3;
} sums;
typedef struct float_sums {
  __m256 l0, h0, l1, h1, l2, h2, l3, h3;
} float_sums;

INLINE __m256i broadcast4(const int8_t *x) {
  int v;
  memcpy(&v, x, sizeof v);
  return _mm256_set1_epi32(v);
}

/* 16-bit products of a step, signed codes by way of their magnitude. */
INLINE __m256i products(const int kind, __m256i codes, __m256i magnitude, __m256i x) {
  if (kind_signed(kind)) return _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, codes));
  return _mm256_maddubs_epi16(codes, x);
}

/* The empty asm keeps gcc from turning the chain into a tree of all products, which it then spills. */
INLINE __m256i grow(const bool first, __m256i sum, __m256i p) {
  if (first) return p;
  sum = _mm256_add_epi16(sum, p);
  __asm__("" : "+x"(sum));
  return sum;
}

INLINE void step(const int kind, const int T, const int s, const uint8_t *rec, const int8_t *x, size_t stride,
                 sums *a) {
  const bool first = s % kind_depth(kind) == 0;
  __m256i wl = load_codes(kind, rec, s, 0), wh = load_codes(kind, rec, s, 1);
  __m256i ul = wl, uh = wh;
  if (kind_signed(kind)) {
    ul = _mm256_abs_epi8(wl);
    uh = _mm256_abs_epi8(wh);
  }
#define STEP_TOKEN(t)                                          \
  if (T > t) {                                                 \
    __m256i v = broadcast4(x + t * stride + 4 * s);            \
    a->l##t = grow(first, a->l##t, products(kind, wl, ul, v)); \
    a->h##t = grow(first, a->h##t, products(kind, wh, uh, v)); \
  }
  STEP_TOKEN(0)
  STEP_TOKEN(1)
  STEP_TOKEN(2)
  STEP_TOKEN(3)
#undef STEP_TOKEN
}

/* 16-bit sums to 32 bits, added to what is there. */
INLINE void widen(const int T, const bool first, const sums *a, sums *dot) {
  const __m256i ones = _mm256_set1_epi16(1);
#define WIDEN(f)                                      \
  {                                                   \
    __m256i v = _mm256_madd_epi16(a->f, ones);        \
    dot->f = first ? v : _mm256_add_epi32(dot->f, v); \
    if (!first) __asm__("" : "+x"(dot->f));           \
  }
  WIDEN(l0)
  WIDEN(h0)
  if (T > 1) {
    WIDEN(l1)
    WIDEN(h1)
  }
  if (T > 2) {
    WIDEN(l2)
    WIDEN(h2)
  }
  if (T > 3) {
    WIDEN(l3)
    WIDEN(h3)
  }
#undef WIDEN
}

/* Steps [first, end) of a block: exact dot products of codes and activations. */
INLINE void dot_steps(const int kind, const int T, const int first, const int end, const uint8_t *rec, const int8_t *x,
                      size_t stride, sums *dot) {
  const int depth = kind_depth(kind);
  sums a;
#define ONE(s)                                                        \
  if (first <= s && s < end) {                                        \
    step(kind, T, s, rec, x, stride, &a);                             \
    if (s % depth == depth - 1) widen(T, s < first + depth, &a, dot); \
  }
  ONE(0)
  ONE(1)
  ONE(2)
  ONE(3)
  ONE(4)
  ONE(5)
  ONE(6)
  ONE(7)
#undef ONE
}

/* ---- float part ------------------------------------------------------------------------------------------------- */

/* -offset times the sum of the activations over the whole block (half < 0) or one half of it. */
INLINE __m256i offset_term(const int offset, const int half, const int16_t *sums2) {
  int pair;
  memcpy(&pair, sums2, sizeof pair);
  const int low = half == 1 ? 0 : -offset, high = half == 0 ? 0 : -offset;
  return _mm256_madd_epi16(_mm256_set1_epi32(pair),
                           _mm256_set1_epi32((int)((uint32_t)(uint16_t)high << 16 | (uint16_t)low)));
}

/* acc = fma(d * dx, float(dot), acc) for one register of rows. */
INLINE __m256 link(__m256 d, __m256 dx, __m256i dot, __m256 acc) {
  return _mm256_fmadd_ps(_mm256_mul_ps(d, dx), _mm256_cvtepi32_ps(dot), acc);
}

/* One block of one row group for T tokens; `has_min` says whether the second term exists. */
INLINE void block(const int kind, const int T, const int offset, const bool has_min, const uint8_t *header,
                  const uint8_t *rec, const tile_input *in, size_t b, float_sums *acc) {
  scales sc;
  sums dot, dot2;
  const int8_t *x = in->q + b * PST_BLOCK;
  const bool halves = kind_halves(kind);
  dot_steps(kind, T, 0, halves ? 4 : 8, rec, x, in->q_stride, &dot);
  if (halves) dot_steps(kind, T, 4, 8, rec, x, in->q_stride, &dot2);
  load_scales(kind, header, rec, &sc);
#define LINK_TOKEN(t)                                           \
  if (T > t) {                                                  \
    const size_t at = t * in->stride + b;                       \
    const int16_t *half = in->half + 2 * at;                    \
    __m256 dx = _mm256_broadcast_ss(in->d + at);                \
    if (offset) {                                               \
      __m256i off = offset_term(offset, halves ? 0 : -1, half); \
      dot.l##t = _mm256_add_epi32(dot.l##t, off);               \
      dot.h##t = _mm256_add_epi32(dot.h##t, off);               \
    }                                                           \
    acc->l##t = link(sc.dl, dx, dot.l##t, acc->l##t);           \
    acc->h##t = link(sc.dh, dx, dot.h##t, acc->h##t);           \
    if (halves) {                                               \
      if (offset) {                                             \
        __m256i off = offset_term(offset, 1, half);             \
        dot2.l##t = _mm256_add_epi32(dot2.l##t, off);           \
        dot2.h##t = _mm256_add_epi32(dot2.h##t, off);           \
      }                                                         \
      acc->l##t = link(sc.el, dx, dot2.l##t, acc->l##t);        \
      acc->h##t = link(sc.eh, dx, dot2.h##t, acc->h##t);        \
      if (has_min) {                                            \
        __m256 s0 = _mm256_set1_ps(in->d[at] * (float)half[0]); \
        __m256 s1 = _mm256_set1_ps(in->d[at] * (float)half[1]); \
        acc->l##t = _mm256_fmadd_ps(sc.ml, s0, acc->l##t);      \
        acc->h##t = _mm256_fmadd_ps(sc.mh, s0, acc->h##t);      \
        acc->l##t = _mm256_fmadd_ps(sc.nl, s1, acc->l##t);      \
        acc->h##t = _mm256_fmadd_ps(sc.nh, s1, acc->h##t);      \
      }                                                         \
    } else if (has_min) {                                       \
      __m256 s = _mm256_broadcast_ss(in->s + at);               \
      acc->l##t = _mm256_fmadd_ps(sc.ml, s, acc->l##t);         \
      acc->h##t = _mm256_fmadd_ps(sc.mh, s, acc->h##t);         \
    }                                                           \
  }
  LINK_TOKEN(0)
  LINK_TOKEN(1)
  LINK_TOKEN(2)
  LINK_TOKEN(3)
#undef LINK_TOKEN
}

INLINE void sums_load(const int T, const float *from, size_t stride, float_sums *acc) {
#define LOAD(t)                                         \
  if (T > t) {                                          \
    acc->l##t = _mm256_loadu_ps(from + t * stride);     \
    acc->h##t = _mm256_loadu_ps(from + t * stride + 8); \
  }
  LOAD(0)
  LOAD(1)
  LOAD(2)
  LOAD(3)
#undef LOAD
}

INLINE void sums_zero(float_sums *acc) {
  acc->l0 = acc->l1 = acc->l2 = acc->l3 = acc->h0 = acc->h1 = acc->h2 = acc->h3 = _mm256_setzero_ps();
}

INLINE void sums_store(const int T, const float_sums *acc, float *to, size_t stride) {
#define STORE(t)                                      \
  if (T > t) {                                        \
    _mm256_storeu_ps(to + t * stride, acc->l##t);     \
    _mm256_storeu_ps(to + t * stride + 8, acc->h##t); \
  }
  STORE(0)
  STORE(1)
  STORE(2)
  STORE(3)
#undef STORE
}

/* Where finished sums go. */
typedef struct tile_output {
  float *to;      /* first token, first row of the group */
  size_t stride;  /* floats between tokens */
  size_t n_lanes; /* rows that exist */
  bool add;
} tile_output;

INLINE void finish_token(const tile_output *o, size_t t, __m256 l, __m256 h) {
  float *to = o->to + t * o->stride;
  if (o->n_lanes == PST_LANES) {
    if (o->add) {
      l = _mm256_add_ps(_mm256_loadu_ps(to), l);
      h = _mm256_add_ps(_mm256_loadu_ps(to + 8), h);
    }
    _mm256_storeu_ps(to, l);
    _mm256_storeu_ps(to + 8, h);
    return;
  }
  float lane[PST_LANES];
  _mm256_storeu_ps(lane, l);
  _mm256_storeu_ps(lane + 8, h);
  for (size_t i = 0; i < o->n_lanes; i++) to[i] = o->add ? to[i] + lane[i] : lane[i];
}

INLINE void finish(const int T, const tile_output *o, const float_sums *acc) {
  finish_token(o, 0, acc->l0, acc->h0);
  if (T > 1) finish_token(o, 1, acc->l1, acc->h1);
  if (T > 2) finish_token(o, 2, acc->l2, acc->h2);
  if (T > 3) finish_token(o, 3, acc->l3, acc->h3);
}

/* ---- few tokens: straight from the records ---------------------------------------------------------------------- */

typedef void (*direct_fn)(const uint8_t *group, size_t n_blocks, const tile_input *in, const tile_output *out);

INLINE void direct(const int kind, const int T, const int header_bytes, const int record_bytes, const bool has_min,
                   const uint8_t *group, size_t n_blocks, const tile_input *in, const tile_output *out) {
  float_sums acc;
  sums_zero(&acc);
  const uint8_t *rec = group, *header = group;
  for (size_t b = 0; b < n_blocks; b++) {
    if (header_bytes && b % 8 == 0) {
      header = rec;
      rec += header_bytes;
    }
    _mm_prefetch((const char *)rec + 2048, _MM_HINT_T0);
    _mm_prefetch((const char *)rec + 2048 + 64, _MM_HINT_T0);
    _mm_prefetch((const char *)rec + 2048 + 128, _MM_HINT_T0);
    _mm_prefetch((const char *)rec + 2048 + 192, _MM_HINT_T0);
    _mm_prefetch((const char *)rec + 2048 + 256, _MM_HINT_T0);
    block(kind, T, kind_offset(kind), has_min, header, rec, in, b, &acc);
    rec += record_bytes;
  }
  finish(T, out, &acc);
}

#define DIRECT_T(type, T, header_bytes, record_bytes, has_min)                                 \
  static void direct_##type##_##T(const uint8_t *group, size_t n_blocks, const tile_input *in, \
                                  const tile_output *out) {                                    \
    direct(PST_TYPE_##type, T, header_bytes, record_bytes, has_min, group, n_blocks, in, out); \
  }
#define DIRECT(type, header_bytes, record_bytes, has_min) \
  DIRECT_T(type, 1, header_bytes, record_bytes, has_min)  \
  DIRECT_T(type, 2, header_bytes, record_bytes, has_min)  \
  DIRECT_T(type, 3, header_bytes, record_bytes, has_min)  \
  DIRECT_T(type, 4, header_bytes, record_bytes, has_min)
DIRECT(Q4_0, 0, 288, false)
DIRECT(Q4_1, 0, 320, true)
DIRECT(Q5_0, 0, 352, false)
DIRECT(Q5_1, 0, 384, true)
DIRECT(Q8_0, 0, 544, false)
DIRECT(IQ4_NL, 0, 288, false)
DIRECT(MXFP4, 0, 272, false)
DIRECT(Q2_K, 64, 160, true)
DIRECT(Q3_K, 32, 224, false)
DIRECT(Q4_K, 64, 288, true)
DIRECT(Q5_K, 64, 352, true)
DIRECT(Q6_K, 32, 416, false)
DIRECT(IQ4_XS, 32, 272, false)

#define DIRECT_ROW(type) \
  [PST_TYPE_##type] = {direct_##type##_1, direct_##type##_2, direct_##type##_3, direct_##type##_4}
static const direct_fn direct_table[PST_TYPE_END][TILE] = {
    DIRECT_ROW(Q4_0),  DIRECT_ROW(Q4_1),   DIRECT_ROW(Q5_0),   DIRECT_ROW(Q5_1), DIRECT_ROW(Q8_0),
    DIRECT_ROW(Q2_K),  DIRECT_ROW(Q3_K),   DIRECT_ROW(Q4_K),   DIRECT_ROW(Q5_K), DIRECT_ROW(Q6_K),
    DIRECT_ROW(MXFP4), DIRECT_ROW(IQ4_NL), DIRECT_ROW(IQ4_XS),
};

/* ---- many tokens: panels ---------------------------------------------------------------------------------------- */

INLINE void unpack_block(const int kind, const uint8_t *header, const uint8_t *rec, uint8_t *panel) {
  scales sc;
#define ONE(s)                                                               \
  _mm256_store_si256((void *)(panel + 64 * s), load_codes(kind, rec, s, 0)); \
  _mm256_store_si256((void *)(panel + 64 * s + 32), load_codes(kind, rec, s, 1));
  ONE(0)
  ONE(1)
  ONE(2)
  ONE(3)
  ONE(4)
  ONE(5)
  ONE(6)
  ONE(7)
#undef ONE
  load_scales(kind, header, rec, &sc);
  float *f = (float *)(void *)(panel + 512);
  _mm256_store_ps(f, sc.dl);
  _mm256_store_ps(f + 8, sc.dh);
  _mm256_store_ps(f + 16, sc.el);
  _mm256_store_ps(f + 24, sc.eh);
  _mm256_store_ps(f + 32, sc.ml);
  _mm256_store_ps(f + 40, sc.mh);
  _mm256_store_ps(f + 48, sc.nl);
  _mm256_store_ps(f + 56, sc.nh);
}

typedef void (*unpack_fn)(const uint8_t *header, const uint8_t *rec, uint8_t *panel);
#define UNPACK(type)                                                                     \
  static void unpack_##type(const uint8_t *header, const uint8_t *rec, uint8_t *panel) { \
    unpack_block(PST_TYPE_##type, header, rec, panel);                                   \
  }
UNPACK(Q4_0)
UNPACK(Q4_1)
UNPACK(Q5_0)
UNPACK(Q5_1)
UNPACK(Q8_0)
UNPACK(IQ4_NL)
UNPACK(MXFP4)
UNPACK(Q2_K)
UNPACK(Q3_K)
UNPACK(Q4_K)
UNPACK(Q5_K)
UNPACK(Q6_K)
UNPACK(IQ4_XS)

/* Sums of a tile between two panels of the same rows, and where they go after the last. */
typedef struct tile_sums_io {
  float *memory;    /* [token][16] */
  bool first, last; /* panel: start from zero; write the output */
  const tile_output *out;
} tile_sums_io;

typedef void (*tile_fn)(const uint8_t *panel, size_t n_blocks, const tile_input *in, const tile_sums_io *io);

/* T tokens over one panel. */
INLINE void tile(const int kind, const int T, const int offset, const bool has_min, const uint8_t *panel,
                 size_t n_blocks, const tile_input *in, const tile_sums_io *io) {
  float_sums acc;
  if (io->first)
    sums_zero(&acc);
  else
    sums_load(T, io->memory, PST_LANES, &acc);
  for (int t = 0; io->last && t < T; t++) __builtin_prefetch(io->out->to + (size_t)t * io->out->stride, 1);
  for (size_t b = 0; b < n_blocks; b++) {
    /* The next tile's activations, half of its lines in each block of a pair. */
    const int8_t *next = in->q + (TILE + (b & 1)) * in->q_stride + (b & ~(size_t)1) * PST_BLOCK;
    _mm_prefetch((const char *)next, _MM_HINT_T0);
    _mm_prefetch((const char *)next + 2 * in->q_stride, _MM_HINT_T0);
    block(kind, T, offset, has_min, NULL, panel + b * PANEL_BLOCK_BYTES, in, b, &acc);
  }
  if (io->last)
    finish(T, io->out, &acc);
  else
    sums_store(T, &acc, io->memory, PST_LANES);
}

#define TILE_T(name, kind, T, offset, has_min)                                                                         \
  static void tile_##name##_##T(const uint8_t *panel, size_t n_blocks, const tile_input *in, const tile_sums_io *io) { \
    tile(kind, T, offset, has_min, panel, n_blocks, in, io);                                                           \
  }
#define TILES(name, kind, offset, has_min) \
  TILE_T(name, kind, 1, offset, has_min)   \
  TILE_T(name, kind, 2, offset, has_min)   \
  TILE_T(name, kind, 3, offset, has_min)   \
  TILE_T(name, kind, 4, offset, has_min)
TILES(u4, PANEL_DEPTH8, 8, false)
TILES(u4m, PANEL_DEPTH8, 0, true)
TILES(u5, PANEL_DEPTH4, 16, false)
TILES(u5m, PANEL_DEPTH4, 0, true)
TILES(u6, PANEL_DEPTH2_HALVES, 32, false)
TILES(u2m, PANEL_DEPTH8_HALVES, 0, true)
TILES(u3, PANEL_DEPTH8_HALVES, 4, false)
TILES(mx, PANEL_DEPTH4, 12, false)
TILES(s8, PANEL_SIGNED, 0, false)

typedef struct panel_kind {
  unpack_fn unpack;
  tile_fn tile[TILE];
} panel_kind;
#define PANEL_ROW(type, name) \
  [PST_TYPE_##type] = {unpack_##type, {tile_##name##_1, tile_##name##_2, tile_##name##_3, tile_##name##_4}}
static const panel_kind panel_table[PST_TYPE_END] = {
    PANEL_ROW(Q4_0, u4),  PANEL_ROW(Q4_1, u4m),  PANEL_ROW(Q5_0, u5),   PANEL_ROW(Q5_1, u5m), PANEL_ROW(Q8_0, s8),
    PANEL_ROW(Q2_K, u2m), PANEL_ROW(Q3_K, u3),   PANEL_ROW(Q4_K, u4m),  PANEL_ROW(Q5_K, u5m), PANEL_ROW(Q6_K, u6),
    PANEL_ROW(MXFP4, mx), PANEL_ROW(IQ4_NL, s8), PANEL_ROW(IQ4_XS, s8),
};

/* Work space of the panel path. */
typedef struct panel_work {
  uint8_t panel[PANEL_BLOCKS * PANEL_BLOCK_BYTES];
  float acc[RUN_TOKENS][PST_LANES];
} panel_work;
_Static_assert(sizeof(panel_work) <= PST_KERNELS_WORK_BYTES, "work space");

/* One group for a run of at most RUN_TOKENS tokens. */
static void group_panels(const pst_kernels_matrix *w, const pst_kernels_input *in, const uint8_t *group, size_t t0,
                         size_t n_tokens, const tile_output *out, panel_work *work) {
  const pst_kernels_layout *l = pst_kernels_layout_of(w->type);
  const panel_kind *kind = &panel_table[w->type];
  size_t n_panels = (in->n_blocks + PANEL_BLOCKS - 1) / PANEL_BLOCKS;
  size_t per_panel = (in->n_blocks + n_panels - 1) / n_panels;
  tile_output o = *out;
  for (size_t first = 0; first < in->n_blocks; first += per_panel) {
    size_t n_blocks = PST_MIN(per_panel, in->n_blocks - first);
    for (size_t b = 0; b < n_blocks; b++)
      kind->unpack(pst_layout_header(l, group, first + b), pst_layout_record(l, group, first + b),
                   work->panel + b * PANEL_BLOCK_BYTES);
    for (size_t t = 0; t < n_tokens; t += TILE) {
      tile_input ti = input_at(in, t0 + t, first);
      tile_sums_io io = {work->acc[t], first == 0, first + n_blocks == in->n_blocks, &o};
      o.to = out->to + t * out->stride;
      kind->tile[PST_MIN((size_t)TILE, n_tokens - t) - 1](work->panel, n_blocks, &ti, &io);
    }
  }
}

/* ---- float weights ---------------------------------------------------------------------------------------------- */

INLINE __m256 load_float_weights(const int type, const uint8_t *column, const int r) {
  if (type == PST_TYPE_F32) return _mm256_loadu_ps((const float *)(const void *)column + 8 * r);
  __m128i v = _mm_loadu_si128((const void *)(column + 16 * r));
  if (type == PST_TYPE_F16) return _mm256_cvtph_ps(v);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* One group, T tokens: a chain over the columns for each element. */
INLINE void float_tile(const int type, const int T, const uint8_t *group, size_t n_cols, const float *x,
                       const tile_output *out) {
  const size_t column_bytes = type == PST_TYPE_F32 ? 64 : 32;
  float_sums acc;
  sums_zero(&acc);
  for (size_t c = 0; c < n_cols; c++) {
    __m256 wl = load_float_weights(type, group + c * column_bytes, 0),
           wh = load_float_weights(type, group + c * column_bytes, 1);
#define FLOAT_TOKEN(t)                                  \
  if (T > t) {                                          \
    __m256 v = _mm256_broadcast_ss(x + t * n_cols + c); \
    acc.l##t = _mm256_fmadd_ps(wl, v, acc.l##t);        \
    acc.h##t = _mm256_fmadd_ps(wh, v, acc.h##t);        \
  }
    FLOAT_TOKEN(0) FLOAT_TOKEN(1) FLOAT_TOKEN(2) FLOAT_TOKEN(3)
#undef FLOAT_TOKEN
  }
  finish(T, out, &acc);
}

/* Two groups, one token: four chains hide the latency of the fused multiply-add. */
INLINE void float_pair(const int type, const uint8_t *group, size_t group_bytes, size_t n_cols, const float *x,
                       const tile_output *out) {
  const size_t column_bytes = type == PST_TYPE_F32 ? 64 : 32;
  const uint8_t *second = group + group_bytes;
  __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
  for (size_t i = 0; i < n_cols; i++) {
    __m256 v = _mm256_broadcast_ss(x + i);
    a = _mm256_fmadd_ps(load_float_weights(type, group + i * column_bytes, 0), v, a);
    b = _mm256_fmadd_ps(load_float_weights(type, group + i * column_bytes, 1), v, b);
    c = _mm256_fmadd_ps(load_float_weights(type, second + i * column_bytes, 0), v, c);
    d = _mm256_fmadd_ps(load_float_weights(type, second + i * column_bytes, 1), v, d);
  }
  tile_output o = *out;
  size_t n_lanes = out->n_lanes;
  o.n_lanes = PST_LANES;
  finish_token(&o, 0, a, b);
  o.to += PST_LANES;
  o.n_lanes = n_lanes;
  finish_token(&o, 0, c, d);
}

INLINE void float_product(const int type, const pst_kernels_matrix *w, const float *x, size_t n_tokens,
                          size_t group_begin, size_t group_end, bool add, float *out, size_t out_stride) {
  for (size_t g = group_begin; g < group_end; g++) {
    const uint8_t *group = w->data + g * w->group_bytes;
    tile_output o = {out + g * PST_LANES, out_stride, PST_MIN((size_t)PST_LANES, w->n_rows - g * PST_LANES), add};
    if (n_tokens == 1 && g + 1 < group_end) {
      o.n_lanes = PST_MIN((size_t)PST_LANES, w->n_rows - (g + 1) * PST_LANES);
      float_pair(type, group, w->group_bytes, w->n_cols, x, &o);
      g++;
      continue;
    }
    for (size_t t = 0; t < n_tokens; t += TILE) {
      o.to = out + t * out_stride + g * PST_LANES;
      const float *xt = x + t * w->n_cols;
      switch (n_tokens - t) {
      case 1: float_tile(type, 1, group, w->n_cols, xt, &o); break;
      case 2: float_tile(type, 2, group, w->n_cols, xt, &o); break;
      case 3: float_tile(type, 3, group, w->n_cols, xt, &o); break;
      default: float_tile(type, 4, group, w->n_cols, xt, &o); break;
      }
    }
  }
}

/* ---- the slot --------------------------------------------------------------------------------------------------- */

void pst_kernels_matmul_avx2(const pst_kernels_matrix *w, const pst_kernels_input *input, size_t t0, size_t n_tokens,
                             size_t group_begin, size_t group_end, bool add, float *out, size_t out_stride,
                             void *work) {
  if (w->is_float) {
    const float *x = input->x + t0 * w->n_cols;
    if (w->type == PST_TYPE_F32)
      float_product(PST_TYPE_F32, w, x, n_tokens, group_begin, group_end, add, out, out_stride);
    else if (w->type == PST_TYPE_F16)
      float_product(PST_TYPE_F16, w, x, n_tokens, group_begin, group_end, add, out, out_stride);
    else
      float_product(PST_TYPE_BF16, w, x, n_tokens, group_begin, group_end, add, out, out_stride);
    return;
  }
  for (size_t g = group_begin; g < group_end; g++) {
    const uint8_t *group = w->data + g * w->group_bytes;
    tile_output o = {out + g * w->group_step, out_stride, PST_MIN((size_t)PST_LANES, w->n_rows - g * PST_LANES), add};
    if (n_tokens >= PANEL_TOKENS) {
      for (size_t t = 0; t < n_tokens; t += RUN_TOKENS) {
        o.to = out + t * out_stride + g * w->group_step;
        group_panels(w, input, group, t0 + t, PST_MIN((size_t)RUN_TOKENS, n_tokens - t), &o, work);
      }
      continue;
    }
    for (size_t t = 0; t < n_tokens; t += TILE) {
      tile_input ti = input_at(input, t0 + t, 0);
      o.to = out + t * out_stride + g * w->group_step;
      direct_table[w->type][PST_MIN((size_t)TILE, n_tokens - t) - 1](group, input->n_blocks, &ti, &o);
    }
  }
}
