/* Products for NEON with the matrix instruction (ARMv8.6 i8mm): panels by smmla, few tokens by dotprod's kernels.
 *
 * smmla multiplies 2 rows by 2 tokens over 8 columns, twice the work of sdot. A panel holds the weights in its order: two rows' 8 columns a
 * register. Sums are lanes (row, token), (row, token + 1), (row + 1, token), (row + 1, token + 1) and are sorted only when a tile ends. */
#include "kernels/arm/arm.h"

#include "kernels/arm/tile_neon.h"

/* X(pair of tokens, pair of rows of the 8 rows of a pass, extra) */
#define TILE_SUMS(X, extra) \
  X(0, 0, extra)            \
  X(0, 1, extra) X(0, 2, extra) X(0, 3, extra) X(1, 0, extra) X(1, 1, extra) X(1, 2, extra) X(1, 3, extra)
#define FIELD(p, k, type) type a##p##k;

typedef struct dots {
  TILE_SUMS(FIELD, int32x4_t)
} dots;
typedef struct sums {
  TILE_SUMS(FIELD, float32x4_t)
} sums;

/* ---- panels ----------------------------------------------------------------------------------------------------- */

/* Steps 2j and 2j + 1, 8 columns of all rows: [pair of rows][row][8]. */
INLINE void unpack_columns(const int kind, const uint8_t *rec, const int j, uint8_t *panel) {
  int8_t *to = (int8_t *)panel + 128 * j;
  for (int r = 0; r < 4; r++) {
    int32x4_t even = vreinterpretq_s32_s8(load_codes(kind, rec, 2 * j, r));
    int32x4_t odd = vreinterpretq_s32_s8(load_codes(kind, rec, 2 * j + 1, r));
    vst1q_s8(to + 32 * r, vreinterpretq_s8_s32(vzip1q_s32(even, odd)));
    vst1q_s8(to + 32 * r + 16, vreinterpretq_s8_s32(vzip2q_s32(even, odd)));
  }
}

INLINE void unpack_block(const int kind, const uint8_t *header, const uint8_t *rec, uint8_t *panel) {
  unpack_columns(kind, rec, 0, panel);
  unpack_columns(kind, rec, 1, panel);
  unpack_columns(kind, rec, 2, panel);
  unpack_columns(kind, rec, 3, panel);
  unpack_scales(kind, header, rec, panel);
}

#define UNPACK_OF(type, header_bytes, record_bytes, panel_name)                          \
  static void unpack_##type(const uint8_t *header, const uint8_t *rec, uint8_t *panel) { \
    unpack_block(PST_TYPE_##type, header, rec, panel);                                   \
  }
PACKED_TYPES(UNPACK_OF)

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/* The second token of each pair, counted from the first in tokens: 0 where a pair has only one. */
typedef struct pairs {
  size_t next0, next1;
} pairs;

INLINE int8x16_t activations(const int8_t *x, size_t next) { return vcombine_s8(vld1_s8(x), vld1_s8(x + next)); }

/* (a, b, a, b) */
INLINE float32x4_t factor(float a, float b) {
  float32x2_t v = vset_lane_f32(b, vdup_n_f32(a), 1);
  return vcombine_f32(v, v);
}

/* Columns 8 * begin to 8 * end of a block, for P pairs of tokens. */
INLINE void dot_columns(const int P, const int begin, const int end, const int8_t *w, const int8_t *x, size_t stride,
                        const pairs *two, dots *dot) {
  dots d;
#define CLEAR(p, k, unused) d.a##p##k = vdupq_n_s32(0);
  TILE_SUMS(CLEAR, )
#undef CLEAR
  for (int j = begin; j < end; j++) {
    int8x16_t x0 = activations(x + 8 * j, two->next0 * stride), x1 = x0;
    if (P > 1) x1 = activations(x + 2 * stride + 8 * j, two->next1 * stride);
#define MULTIPLY(p, k, unused) \
  if (P > p) d.a##p##k = vmmlaq_s32(d.a##p##k, vld1q_s8(w + 128 * j + 16 * k), x##p);
    TILE_SUMS(MULTIPLY, )
#undef MULTIPLY
  }
  *dot = d;
}

/* acc += v (twice a lane) * f (twice two lanes), fused: the scales of 8 rows against a value of each token. */
typedef struct row_pairs {
  float32x4_t a0, a1, a2, a3; /* (row, row, row + 1, row + 1) */
} row_pairs;

INLINE row_pairs pairs_of(const float *rows) {
  float32x4_t l = vld1q_f32(rows), h = vld1q_f32(rows + 4);
  return (row_pairs){vzip1q_f32(l, l), vzip2q_f32(l, l), vzip1q_f32(h, h), vzip2q_f32(h, h)};
}

INLINE void link(const int P, const row_pairs *d, float32x4_t dx0, float32x4_t dx1, const dots *dot, sums *acc) {
#define LINK(p, k, unused) \
  if (P > p) acc->a##p##k = vfmaq_f32(acc->a##p##k, vmulq_f32(d->a##k, dx##p), vcvtq_f32_s32(dot->a##p##k));
  TILE_SUMS(LINK, )
#undef LINK
}

INLINE void link_minimum(const int P, const row_pairs *m, float32x4_t x0, float32x4_t x1, sums *acc) {
#define LINK(p, k, unused) \
  if (P > p) acc->a##p##k = vfmaq_f32(acc->a##p##k, m->a##k, x##p);
  TILE_SUMS(LINK, )
#undef LINK
}

/* d times the sums of half h of the block's activations. */
INLINE float32x4_t half_factor(const tile_input *in, size_t at, size_t second, size_t h) {
  return factor(in->d[at] * (float)in->half[2 * at + h], in->d[second] * (float)in->half[2 * second + h]);
}

/* One block of 8 rows, the second 8 if `row` is 8. */
INLINE void block(const int kind, const int P, const uint8_t *panel, size_t row, const tile_input *in, size_t b,
                  const pairs *two, sums *acc) {
  const int8_t *w = (const int8_t *)panel + 8 * row, *x = in->q + b * PST_BLOCK;
  const float *f = (const float *)(const void *)(panel + PANEL_CODES) + row;
  const size_t at0 = b, at1 = P > 1 ? b + 2 * in->stride : b;
  const size_t second0 = at0 + two->next0 * in->stride, second1 = at1 + (P > 1 ? two->next1 : two->next0) * in->stride;
  const float32x4_t dx0 = factor(in->d[at0], in->d[second0]), dx1 = factor(in->d[at1], in->d[second1]);
  row_pairs scale = pairs_of(f), minimum = pairs_of(f + 32);
  dots dot;
  dot_columns(P, 0, kind_halves(kind) ? 2 : 4, w, x, in->q_stride, two, &dot);
  link(P, &scale, dx0, dx1, &dot, acc);
  if (kind_halves(kind)) {
    scale = pairs_of(f + 16);
    dot_columns(P, 2, 4, w, x, in->q_stride, two, &dot);
    link(P, &scale, dx0, dx1, &dot, acc);
  }
  if (!kind_min(kind)) return;
  if (!kind_halves(kind)) {
    link_minimum(P, &minimum, factor(in->s[at0], in->s[second0]), factor(in->s[at1], in->s[second1]), acc);
    return;
  }
  link_minimum(P, &minimum, half_factor(in, at0, second0, 0), half_factor(in, at1, second1, 0), acc);
  minimum = pairs_of(f + 48);
  link_minimum(P, &minimum, half_factor(in, at0, second0, 1), half_factor(in, at1, second1, 1), acc);
}

/* Between lanes of a tile and rows of tokens: `r` is a register of four rows, t and t + 1 the tokens. */
INLINE void rows_put(const tile_sums_io *io, size_t n, size_t t, size_t r, float32x4_t low, float32x4_t high) {
  float32x4_t even = vuzp1q_f32(low, high), odd = vuzp2q_f32(low, high);
  if (!io->last) {
    vst1q_f32(io->memory + t * PST_LANES + 4 * r, even);
    vst1q_f32(io->memory + (t + 1) * PST_LANES + 4 * r, odd);
    return;
  }
  finish_rows(io->out, t, r, even);
  if (t + 1 < n) finish_rows(io->out, t + 1, r, odd);
}

INLINE void rows_get(const tile_sums_io *io, size_t t, size_t r, float32x4_t *ret_low, float32x4_t *ret_high) {
  float32x4_t even = vdupq_n_f32(0.0f), odd = even;
  if (!io->first) {
    even = vld1q_f32(io->memory + t * PST_LANES + 4 * r);
    odd = vld1q_f32(io->memory + (t + 1) * PST_LANES + 4 * r);
  }
  *ret_low = vzip1q_f32(even, odd);
  *ret_high = vzip2q_f32(even, odd);
}

INLINE void tile(const int kind, const int P, const uint8_t *panel, size_t n_blocks, const tile_input *in,
                 const tile_sums_io *io, size_t n) {
  const pairs two = {n > 1 ? 1 : 0, n > 3 ? 1 : 0};
  for (size_t row = 0; row < PST_LANES; row += 8) {
    const size_t r = row / 4;
    sums acc;
    rows_get(io, 0, r, &acc.a00, &acc.a01);
    rows_get(io, 0, r + 1, &acc.a02, &acc.a03);
    if (P > 1) {
      rows_get(io, 2, r, &acc.a10, &acc.a11);
      rows_get(io, 2, r + 1, &acc.a12, &acc.a13);
    }
    for (size_t b = 0; b < n_blocks; b++) block(kind, P, panel + b * PANEL_BLOCK_BYTES, row, in, b, &two, &acc);
    rows_put(io, n, 0, r, acc.a00, acc.a01);
    rows_put(io, n, 0, r + 1, acc.a02, acc.a03);
    if (P > 1) {
      rows_put(io, n, 2, r, acc.a10, acc.a11);
      rows_put(io, n, 2, r + 1, acc.a12, acc.a13);
    }
  }
}

#define TILE_OF(kind)                                                                                          \
  static void tile_##kind(const uint8_t *panel, size_t n_blocks, const tile_input *in, const tile_sums_io *io, \
                          size_t n) {                                                                          \
    if (n <= 2)                                                                                                \
      tile(PANEL_##kind, 1, panel, n_blocks, in, io, n);                                                       \
    else                                                                                                       \
      tile(PANEL_##kind, 2, panel, n_blocks, in, io, n);                                                       \
  }
PANEL_KINDS(TILE_OF)

#define PANEL_ROW(type, header_bytes, record_bytes, panel) [PST_TYPE_##type] = {unpack_##type, tile_##panel},
static const panel_kind panel_table[PST_TYPE_END] = {PACKED_TYPES(PANEL_ROW)};

/* ---- the slot --------------------------------------------------------------------------------------------------- */

void pst_kernels_matmul_i8mm(const pst_kernels_matrix *w, const pst_kernels_input *input, size_t t0, size_t n_tokens,
                             size_t group_begin, size_t group_end, bool add, float *out, size_t out_stride,
                             void *work) {
  if (w->is_float || n_tokens < PANEL_TOKENS) {
    pst_kernels_matmul_dotprod(w, input, t0, n_tokens, group_begin, group_end, add, out, out_stride, work);
    return;
  }
  product_by_panels(&panel_table[w->type], w, input, t0, n_tokens, group_begin, group_end, add, out, out_stride, work);
}
