/* Products with packed matrices for AVX-512 with VNNI.
 *
 * Owns the integer dot products of every packed type and the float types, for one token up to whole prompts; results are bit-equal to
 * reference.c. Lanes are rows: one register is a step, 4 columns of a group's 16 rows. vpdpbusd multiplies unsigned codes by signed
 * activations and adds in 32 bits, so nothing can overflow; what makes a code unsigned (8, 16, 32, 128) is taken away beforehand through
 * the sum of the activations, exactly, in integers.
 *
 * Few tokens work straight on the packed records; from PANEL_TOKENS on, two groups' codes are unpacked once into a panel in the first-level
 * cache, scales as floats, and tiles of 6 tokens run over that. Accumulators are named fields, never arrays: gcc 12 keeps arrays
 * in memory. */
#include "kernels/layout.h"
#include "kernels/x86/x86.h"

#include "kernels/x86/unpack_avx512.h"
#include "kernels/tile_input.h"

enum {
  DIRECT_TILE = 8,
  TILE = 6,           /* tokens by 32 rows: 24 sums */
  PANEL_TOKENS = 9,   /* from here on the panel pays */
  PANEL_BLOCKS = 20,  /* 20 blocks of two groups: 26 to 31 KB */
  RUN_TOKENS = 512,   /* tokens whose sums are kept between two panels of the same rows */
  PANEL_CODES = 1024, /* [step][group][64] */
};

/* Where finished sums go. */
typedef struct tile_output {
  float *to;      /* first token, first row of the group */
  size_t stride;  /* floats between tokens */
  __mmask16 rows; /* rows that exist */
  bool add;
} tile_output;

INLINE void finish_token(const tile_output *o, size_t t, __m512 v) {
  float *to = o->to + t * o->stride;
  if (o->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(o->rows, to), v);
  _mm512_mask_storeu_ps(to, o->rows, v);
}

static __mmask16 rows_mask(const pst_kernels_matrix *w, size_t group) {
  size_t n = w->n_rows - group * PST_LANES;
  return (__mmask16)(n >= PST_LANES ? 0xffffu : (1u << n) - 1);
}

INLINE __m512i broadcast4(const int8_t *x) {
  int v;
  memcpy(&v, x, sizeof v);
  return _mm512_set1_epi32(v);
}

/* -offset times the sum of the activations over the whole block (half < 0) or one half of it. */
INLINE __m512i offset_term(const int offset, const int half, const int16_t *sums2) {
  int pair;
  if (!offset) return _mm512_setzero_si512();
  memcpy(&pair, sums2, sizeof pair);
  const int low = half == 1 ? 0 : -offset, high = half == 0 ? 0 : -offset;
  const __m512i factor = _mm512_set1_epi32((int)((uint32_t)(uint16_t)high << 16 | (uint16_t)low));
  return _mm512_madd_epi16(factor, _mm512_set1_epi32(pair));
}

/* acc = fma(d * dx, float(dot), acc) */
INLINE __m512 link(__m512 d, __m512 dx, __m512i dot, __m512 acc) {
  return _mm512_fmadd_ps(_mm512_mul_ps(d, dx), _mm512_cvtepi32_ps(dot), acc);
}

/* ---- few tokens: straight from the records ---------------------------------------------------------------------- */

#define TOKENS8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define STEPS8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

typedef struct direct_dots {
  __m512i i0, i1, i2, i3, i4, i5, i6, i7;
} direct_dots;
typedef struct direct_sums {
  __m512 f0, f1, f2, f3, f4, f5, f6, f7;
} direct_sums;

/* Steps [first, end): half < 0 is the whole block. */
INLINE void direct_dot(const int kind, const int T, const int half, const uint8_t *rec, const tile_input *in, size_t b,
                       direct_dots *dot) {
  const int8_t *x = in->q + b * PST_BLOCK;
#define START(t) \
  if (T > t) dot->i##t = offset_term(kind_offset(kind), half, in->half + 2 * (t * in->stride + b));
  TOKENS8(START)
#undef START
#define DOT(t) \
  if (T > t) dot->i##t = _mm512_dpbusd_epi32(dot->i##t, w, broadcast4(x + t * in->q_stride + at));
#define STEP(s)                           \
  if (half < 0 || s / 4 == half) {        \
    const size_t at = 4 * s;              \
    __m512i w = load_codes(kind, rec, s); \
    TOKENS8(DOT)                          \
  }
  STEPS8(STEP)
#undef STEP
#undef DOT
}

INLINE void direct_block(const int kind, const int T, const uint8_t *header, const uint8_t *rec, const tile_input *in,
                         size_t b, direct_sums *acc) {
  scales sc;
  direct_dots dot;
  load_scales(kind, header, rec, &sc);
  direct_dot(kind, T, kind_halves(kind) ? 0 : -1, rec, in, b, &dot);
#define LINK(t) \
  if (T > t) acc->f##t = link(sc.d, _mm512_set1_ps(in->d[t * in->stride + b]), dot.i##t, acc->f##t);
  TOKENS8(LINK)
#undef LINK
  if (kind_halves(kind)) {
    direct_dot(kind, T, 1, rec, in, b, &dot);
#define LINK(t) \
  if (T > t) acc->f##t = link(sc.e, _mm512_set1_ps(in->d[t * in->stride + b]), dot.i##t, acc->f##t);
    TOKENS8(LINK)
#undef LINK
  }
  if (!kind_min(kind)) return;
#define MINIMUM(t)                                                                                   \
  if (T > t) {                                                                                       \
    const size_t at = t * in->stride + b;                                                            \
    if (kind_halves(kind)) {                                                                         \
      float d = in->d[at];                                                                           \
      acc->f##t = _mm512_fmadd_ps(sc.m, _mm512_set1_ps(d * (float)in->half[2 * at]), acc->f##t);     \
      acc->f##t = _mm512_fmadd_ps(sc.n, _mm512_set1_ps(d * (float)in->half[2 * at + 1]), acc->f##t); \
    } else {                                                                                         \
      acc->f##t = _mm512_fmadd_ps(sc.m, _mm512_set1_ps(in->s[at]), acc->f##t);                       \
    }                                                                                                \
  }
  TOKENS8(MINIMUM)
#undef MINIMUM
}

INLINE void prefetch_ahead(const uint8_t *p, const int bytes) {
  for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char *)p + 2048 + i, _MM_HINT_T0);
}

typedef void (*direct_fn)(const uint8_t *group, size_t n_blocks, const tile_input *in, const tile_output *out);

INLINE void direct(const int kind, const int T, const int header_bytes, const int record_bytes, const uint8_t *group,
                   size_t n_blocks, const tile_input *in, const tile_output *out) {
  direct_sums acc;
  const uint8_t *rec = group, *header = group;
  acc.f0 = acc.f1 = acc.f2 = acc.f3 = acc.f4 = acc.f5 = acc.f6 = acc.f7 = _mm512_setzero_ps();
  for (size_t b = 0; b < n_blocks; b++) {
    if (header_bytes && b % 8 == 0) {
      header = rec;
      rec += header_bytes;
    }
    prefetch_ahead(rec, record_bytes);
    direct_block(kind, T, header, rec, in, b, &acc);
    rec += record_bytes;
  }
#define FINISH(t) \
  if (T > t) finish_token(out, t, acc.f##t);
  TOKENS8(FINISH)
#undef FINISH
}

#define DIRECT_T(type, T, header_bytes, record_bytes)                                          \
  static void direct_##type##_##T(const uint8_t *group, size_t n_blocks, const tile_input *in, \
                                  const tile_output *out) {                                    \
    direct(PST_TYPE_##type, T, header_bytes, record_bytes, group, n_blocks, in, out);          \
  }
#define DIRECT(type, header_bytes, record_bytes) \
  DIRECT_T(type, 1, header_bytes, record_bytes)  \
  DIRECT_T(type, 2, header_bytes, record_bytes)  \
  DIRECT_T(type, 3, header_bytes, record_bytes)  \
  DIRECT_T(type, 4, header_bytes, record_bytes)  \
  DIRECT_T(type, 5, header_bytes, record_bytes)  \
  DIRECT_T(type, 6, header_bytes, record_bytes)  \
  DIRECT_T(type, 7, header_bytes, record_bytes)  \
  DIRECT_T(type, 8, header_bytes, record_bytes)
DIRECT(Q4_0, 0, 288)
DIRECT(Q4_1, 0, 320)
DIRECT(Q5_0, 0, 352)
DIRECT(Q5_1, 0, 384)
DIRECT(Q8_0, 0, 544)
DIRECT(IQ4_NL, 0, 288)
DIRECT(MXFP4, 0, 272)
DIRECT(Q2_K, 64, 160)
DIRECT(Q3_K, 32, 224)
DIRECT(Q4_K, 64, 288)
DIRECT(Q5_K, 64, 352)
DIRECT(Q6_K, 32, 416)
DIRECT(IQ4_XS, 32, 272)

#define DIRECT_ROW(type)                                                                           \
  [PST_TYPE_##type] = {direct_##type##_1, direct_##type##_2, direct_##type##_3, direct_##type##_4, \
                       direct_##type##_5, direct_##type##_6, direct_##type##_7, direct_##type##_8}
static const direct_fn direct_table[PST_TYPE_END][DIRECT_TILE] = {
    DIRECT_ROW(Q4_0),  DIRECT_ROW(Q4_1),   DIRECT_ROW(Q5_0),   DIRECT_ROW(Q5_1), DIRECT_ROW(Q8_0),
    DIRECT_ROW(Q2_K),  DIRECT_ROW(Q3_K),   DIRECT_ROW(Q4_K),   DIRECT_ROW(Q5_K), DIRECT_ROW(Q6_K),
    DIRECT_ROW(MXFP4), DIRECT_ROW(IQ4_NL), DIRECT_ROW(IQ4_XS),
};

/* ---- many tokens: panels ---------------------------------------------------------------------------------------- */

/* After the codes of a panel block: d[2][16], then m[2][16] or, where halves differ, e[2][16], m[2][16], n[2][16]. */
INLINE int panel_block_bytes(const bool halves) { return PANEL_CODES + (halves ? 8 : 4) * 64; }

typedef void (*unpack_fn)(const uint8_t *header, const uint8_t *rec, size_t side, uint8_t *panel);

INLINE void unpack_block(const int kind, const uint8_t *header, const uint8_t *rec, size_t side, uint8_t *panel) {
  scales sc;
  load_scales(kind, header, rec, &sc);
#define STEP(s) _mm512_store_si512(panel + 128 * s + 64 * side, load_codes(kind, rec, s));
  STEPS8(STEP)
#undef STEP
  float *f = (float *)(void *)(panel + PANEL_CODES) + 16 * side;
  _mm512_store_ps(f, sc.d);
  _mm512_store_ps(f + 32, kind_halves(kind) ? sc.e : sc.m);
  if (!kind_halves(kind)) return;
  _mm512_store_ps(f + 64, sc.m);
  _mm512_store_ps(f + 96, sc.n);
}

#define UNPACK(type)                                                                                  \
  static void unpack_##type(const uint8_t *header, const uint8_t *rec, size_t side, uint8_t *panel) { \
    unpack_block(PST_TYPE_##type, header, rec, side, panel);                                          \
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

/* Dots and sums of six tokens by two groups, a and b. */
typedef struct tile_dots {
  __m512i a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5;
} tile_dots;
typedef struct tile_sums {
  __m512 a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5;
} tile_sums;
#define TOKENS6(X) X(0) X(1) X(2) X(3) X(4) X(5)

INLINE void tile_dot(const int T, const int offset, const int half, const uint8_t *codes, const tile_input *in,
                     size_t b, tile_dots *dot) {
  const int8_t *x = in->q + b * PST_BLOCK;
#define START(t) \
  if (T > t) dot->a##t = dot->b##t = offset_term(offset, half, in->half + 2 * (t * in->stride + b));
  TOKENS6(START)
#undef START
#define DOT(t)                                         \
  if (T > t) {                                         \
    __m512i v = broadcast4(x + t * in->q_stride + at); \
    dot->a##t = _mm512_dpbusd_epi32(dot->a##t, wa, v); \
    dot->b##t = _mm512_dpbusd_epi32(dot->b##t, wb, v); \
  }
#define STEP(s)                                           \
  if (half < 0 || s / 4 == half) {                        \
    const size_t at = 4 * s;                              \
    __m512i wa = _mm512_load_si512(codes + 128 * s);      \
    __m512i wb = _mm512_load_si512(codes + 128 * s + 64); \
    TOKENS6(DOT)                                          \
  }
  STEPS8(STEP)
#undef STEP
#undef DOT
}

INLINE void tile_link(const int T, const float *d, const tile_input *in, size_t b, const tile_dots *dot,
                      tile_sums *acc) {
  __m512 da = _mm512_load_ps(d), db = _mm512_load_ps(d + 16);
#define LINK(t)                                            \
  if (T > t) {                                             \
    __m512 dx = _mm512_set1_ps(in->d[t * in->stride + b]); \
    acc->a##t = link(da, dx, dot->a##t, acc->a##t);        \
    acc->b##t = link(db, dx, dot->b##t, acc->b##t);        \
  }
  TOKENS6(LINK)
#undef LINK
}

/* half < 0: the block's sum; else the half's. */
INLINE void tile_minimum(const int T, const int half, const float *m, const tile_input *in, size_t b, tile_sums *acc) {
  __m512 ma = _mm512_load_ps(m), mb = _mm512_load_ps(m + 16);
#define MINIMUM(t)                                                                                              \
  if (T > t) {                                                                                                  \
    const size_t at = t * in->stride + b;                                                                       \
    __m512 s = _mm512_set1_ps(half < 0 ? in->s[at] : in->d[at] * (float)in->half[2 * at + (size_t)(half > 0)]); \
    acc->a##t = _mm512_fmadd_ps(ma, s, acc->a##t);                                                              \
    acc->b##t = _mm512_fmadd_ps(mb, s, acc->b##t);                                                              \
  }
  TOKENS6(MINIMUM)
#undef MINIMUM
}

/* Sums of a tile between two panels of the same rows, and where they go after the last. */
typedef struct tile_sums_io {
  float *memory;             /* [token][32] */
  bool first, last;          /* panel: start from zero; write the output */
  const tile_output *out[2]; /* by side; NULL: there is no such group */
} tile_sums_io;

typedef void (*tile_fn)(const uint8_t *panel, size_t n_blocks, const tile_input *in, const tile_sums_io *io);

INLINE void tile_begin(const int T, const tile_sums_io *io, tile_sums *acc) {
#define BEGIN(t)                                                                                \
  if (T > t) {                                                                                  \
    acc->a##t = io->first ? _mm512_setzero_ps() : _mm512_load_ps(io->memory + 32 * t);          \
    acc->b##t = io->first ? acc->a##t : _mm512_load_ps(io->memory + 32 * t + 16);               \
    if (io->last) __builtin_prefetch(io->out[0]->to + t * io->out[0]->stride, 1);               \
    if (io->last && io->out[1]) __builtin_prefetch(io->out[1]->to + t * io->out[1]->stride, 1); \
  }
  TOKENS6(BEGIN)
#undef BEGIN
}

INLINE void tile_end(const int T, const tile_sums_io *io, const tile_sums *acc) {
  if (io->last) {
#define END(t)                                              \
  if (T > t) {                                              \
    finish_token(io->out[0], t, acc->a##t);                 \
    if (io->out[1]) finish_token(io->out[1], t, acc->b##t); \
  }
    TOKENS6(END)
#undef END
    return;
  }
#define END(t)                                            \
  if (T > t) {                                            \
    _mm512_store_ps(io->memory + 32 * t, acc->a##t);      \
    _mm512_store_ps(io->memory + 32 * t + 16, acc->b##t); \
  }
  TOKENS6(END)
#undef END
}

/* T tokens over one panel. */
INLINE void tile(const int T, const int offset, const bool halves, const bool has_min, const uint8_t *panel,
                 size_t n_blocks, const tile_input *in, const tile_sums_io *io) {
  tile_sums acc;
  tile_dots dot;
  tile_begin(T, io, &acc);
  for (size_t b = 0; b < n_blocks; b++) {
    const float *f = (const float *)(const void *)(panel + PANEL_CODES);
    /* The next tile's activations, half of its lines in each block of a pair. */
    const int8_t *next = in->q + (TILE + (b & 1)) * in->q_stride + (b & ~(size_t)1) * PST_BLOCK;
    _mm_prefetch((const char *)next, _MM_HINT_T0);
    _mm_prefetch((const char *)next + 2 * in->q_stride, _MM_HINT_T0);
    _mm_prefetch((const char *)next + 4 * in->q_stride, _MM_HINT_T0);
    tile_dot(T, offset, halves ? 0 : -1, panel, in, b, &dot);
    tile_link(T, f, in, b, &dot, &acc);
    if (halves) {
      tile_dot(T, offset, 1, panel, in, b, &dot);
      tile_link(T, f + 32, in, b, &dot, &acc);
    }
    if (has_min) tile_minimum(T, halves ? 0 : -1, f + (halves ? 64 : 32), in, b, &acc);
    if (has_min && halves) tile_minimum(T, 1, f + 96, in, b, &acc);
    panel += panel_block_bytes(halves);
  }
  tile_end(T, io, &acc);
}

#define TILE_T(name, T, offset, halves, has_min)                                                                       \
  static void tile_##name##_##T(const uint8_t *panel, size_t n_blocks, const tile_input *in, const tile_sums_io *io) { \
    tile(T, offset, halves, has_min, panel, n_blocks, in, io);                                                         \
  }
#define TILES(name, offset, halves, has_min) \
  TILE_T(name, 1, offset, halves, has_min)   \
  TILE_T(name, 2, offset, halves, has_min)   \
  TILE_T(name, 3, offset, halves, has_min)   \
  TILE_T(name, 4, offset, halves, has_min)   \
  TILE_T(name, 5, offset, halves, has_min)   \
  TILE_T(name, 6, offset, halves, has_min)
TILES(u8, 8, false, false)
TILES(um, 0, false, true)
TILES(u16, 16, false, false)
TILES(u128, 128, false, false)
TILES(u12, 12, false, false)
TILES(h32, 32, true, false)
TILES(h4, 4, true, false)
TILES(hm, 0, true, true)

typedef struct panel_kind {
  unpack_fn unpack;
  tile_fn tile[TILE];
} panel_kind;
#define PANEL_ROW(type, name) \
  [PST_TYPE_##                \
      type] = {unpack_##type, \
               {tile_##name##_1, tile_##name##_2, tile_##name##_3, tile_##name##_4, tile_##name##_5, tile_##name##_6}}
static const panel_kind panel_table[PST_TYPE_END] = {
    PANEL_ROW(Q4_0, u8),   PANEL_ROW(Q4_1, um),     PANEL_ROW(Q5_0, u16),    PANEL_ROW(Q5_1, um), PANEL_ROW(Q8_0, u128),
    PANEL_ROW(Q2_K, hm),   PANEL_ROW(Q3_K, h4),     PANEL_ROW(Q4_K, um),     PANEL_ROW(Q5_K, um), PANEL_ROW(Q6_K, h32),
    PANEL_ROW(MXFP4, u12), PANEL_ROW(IQ4_NL, u128), PANEL_ROW(IQ4_XS, u128),
};

/* Work space of the panel path. */
typedef struct panel_work {
  uint8_t panel[PANEL_BLOCKS * (PANEL_CODES + 512)];
  float acc[RUN_TOKENS][2 * PST_LANES];
} panel_work;
_Static_assert(sizeof(panel_work) <= PST_KERNELS_WORK_BYTES, "work space");

/* Groups g and, if there is one before group_end, g + 1, for a run of at most RUN_TOKENS tokens. */
static void pair_panels(const pst_kernels_matrix *w, const pst_kernels_input *in, size_t g, size_t n_sides, size_t t0,
                        size_t n_tokens, bool add, float *out, size_t out_stride, panel_work *work) {
  const pst_kernels_layout *l = pst_kernels_layout_of(w->type);
  const panel_kind *kind = &panel_table[w->type];
  const size_t block_bytes = (size_t)panel_block_bytes(l->halves);
  size_t n_panels = (in->n_blocks + PANEL_BLOCKS - 1) / PANEL_BLOCKS;
  size_t per_panel = (in->n_blocks + n_panels - 1) / n_panels;
  tile_output o[2];
  for (size_t side = 0; side < n_sides; side++) o[side] = (tile_output){NULL, out_stride, rows_mask(w, g + side), add};
  for (size_t first = 0; first < in->n_blocks; first += per_panel) {
    size_t n_blocks = PST_MIN(per_panel, in->n_blocks - first);
    for (size_t side = 0; side < 2; side++) {
      /* Without a second group its side repeats the first; the sums are not used. */
      const uint8_t *group = w->data + (g + (side < n_sides ? side : 0)) * w->group_bytes;
      for (size_t b = 0; b < n_blocks; b++)
        kind->unpack(pst_layout_header(l, group, first + b), pst_layout_record(l, group, first + b), side,
                     work->panel + b * block_bytes);
    }
    for (size_t t = 0; t < n_tokens; t += TILE) {
      tile_input ti = input_at(in, t0 + t, first);
      tile_sums_io io = {
          work->acc[t], first == 0, first + n_blocks == in->n_blocks, {&o[0], n_sides > 1 ? &o[1] : NULL}};
      for (size_t side = 0; side < n_sides; side++) o[side].to = out + t * out_stride + (g + side) * w->group_step;
      kind->tile[PST_MIN((size_t)TILE, n_tokens - t) - 1](work->panel, n_blocks, &ti, &io);
    }
  }
}

/* ---- float weights ---------------------------------------------------------------------------------------------- */

INLINE __m512 load_float_weights(const int type, const uint8_t *group, size_t column) {
  if (type == PST_TYPE_F32) return _mm512_loadu_ps(group + column * 64);
  __m256i v = _mm256_loadu_si256((const void *)(group + column * 32));
  if (type == PST_TYPE_F16) return _mm512_cvtph_ps(v);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* R groups by T tokens (R * T <= 16): a chain over the columns for each element. */
INLINE void float_tile(const int type, const int R, const int T, const uint8_t *group, size_t group_bytes,
                       size_t n_cols, const float *x, const tile_output *out, __mmask16 last_rows) {
#define FLOAT_SUMS(X) \
  X(0, 0)             \
  X(0, 1)             \
  X(0, 2) X(0, 3) X(1, 0) X(1, 1) X(1, 2) X(1, 3) X(2, 0) X(2, 1) X(2, 2) X(2, 3) X(3, 0) X(3, 1) X(3, 2) X(3, 3)
#define DECLARE(r, t) __m512 f##r##t = _mm512_setzero_ps();
  FLOAT_SUMS(DECLARE)
#undef DECLARE
  for (size_t c = 0; c < n_cols; c++) {
    __m512 w0 = load_float_weights(type, group, c), w1 = w0, w2 = w0, w3 = w0;
    if (R > 1) w1 = load_float_weights(type, group + group_bytes, c);
    if (R > 2) w2 = load_float_weights(type, group + 2 * group_bytes, c);
    if (R > 3) w3 = load_float_weights(type, group + 3 * group_bytes, c);
#define GROW(r, t) \
  if (R > r && T > t) f##r##t = _mm512_fmadd_ps(w##r, _mm512_set1_ps(x[t * n_cols + c]), f##r##t);
    FLOAT_SUMS(GROW)
#undef GROW
  }
#define FINISH(r, t)                                                                                              \
  if (R > r && T > t) {                                                                                           \
    tile_output o = {out->to + r * PST_LANES, out->stride, r == R - 1 ? last_rows : (__mmask16)0xffff, out->add}; \
    finish_token(&o, t, f##r##t);                                                                                 \
  }
  FLOAT_SUMS(FINISH)
#undef FINISH
}

INLINE void float_product(const int type, const pst_kernels_matrix *w, const float *x, size_t n_tokens,
                          size_t group_begin, size_t group_end, bool add, float *out, size_t out_stride) {
  for (size_t g = group_begin; g < group_end;) {
    const uint8_t *group = w->data + g * w->group_bytes;
    size_t n = group_end - g >= 4 ? 4 : 1;
    __mmask16 last = rows_mask(w, g + n - 1);
    for (size_t t = 0; t < n_tokens;) {
      tile_output o = {out + t * out_stride + g * PST_LANES, out_stride, 0, add};
      const float *xt = x + t * w->n_cols;
      size_t step = n_tokens - t >= 4 ? 4 : 1;
      if (n == 4 && step == 4)
        float_tile(type, 4, 4, group, w->group_bytes, w->n_cols, xt, &o, last);
      else if (n == 4)
        float_tile(type, 4, 1, group, w->group_bytes, w->n_cols, xt, &o, last);
      else if (step == 4)
        float_tile(type, 1, 4, group, w->group_bytes, w->n_cols, xt, &o, last);
      else
        float_tile(type, 1, 1, group, w->group_bytes, w->n_cols, xt, &o, last);
      t += step;
    }
    g += n;
  }
}

/* ---- the slot --------------------------------------------------------------------------------------------------- */

void pst_kernels_matmul_avx512(const pst_kernels_matrix *w, const pst_kernels_input *input, size_t t0, size_t n_tokens,
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
  if (n_tokens >= PANEL_TOKENS) {
    for (size_t g = group_begin; g < group_end; g += 2)
      for (size_t t = 0; t < n_tokens; t += RUN_TOKENS)
        pair_panels(w, input, g, PST_MIN((size_t)2, group_end - g), t0 + t, PST_MIN((size_t)RUN_TOKENS, n_tokens - t),
                    add, out + t * out_stride, out_stride, work);
    return;
  }
  for (size_t g = group_begin; g < group_end; g++) {
    const uint8_t *group = w->data + g * w->group_bytes;
    for (size_t t = 0; t < n_tokens; t += DIRECT_TILE) {
      tile_input ti = input_at(input, t0 + t, 0);
      tile_output o = {out + t * out_stride + g * w->group_step, out_stride, rows_mask(w, g), add};
      direct_table[w->type][PST_MIN((size_t)DIRECT_TILE, n_tokens - t) - 1](group, input->n_blocks, &ti, &o);
    }
  }
}
