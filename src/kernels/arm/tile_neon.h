/* What the tiles of the ARM products share: where activations come from, where sums go, and the walk over panels.
 *
 * From PANEL_TOKENS on, a group's weights are unpacked once into a panel in the first-level cache, scales as floats, and token tiles run
 * over that; the order of the bytes in a panel is the instruction set's own. */
#ifndef PST_KERNELS_TILE_NEON_H
#define PST_KERNELS_TILE_NEON_H

#include "kernels/arm/unpack_neon.h"
#include "kernels/tile_input.h"

enum {
  TILE = 4,                                 /* tokens of a tile */
  PANEL_TOKENS = TILE + 1,                  /* from here on weights would be unpacked twice */
  PANEL_CODES = 512,                        /* bytes of a block's weights */
  PANEL_BLOCK_BYTES = PANEL_CODES + 4 * 64, /* then d, e, m, n of 16 rows */
  PANEL_BLOCKS = 20,                        /* 15 KB: leaves room for activations in 32 */
  RUN_TOKENS = 512,                         /* tokens whose sums are kept between two panels of the same rows; even */
};

/* Where finished sums go. */
typedef struct tile_output {
  float *to;      /* first token, first row of the group */
  size_t stride;  /* floats between tokens */
  size_t n_lanes; /* rows that exist */
  bool add;
} tile_output;

/* The first n of four rows; called once a group at most. */
static __attribute__((noinline, unused)) void finish_some(float *to, float32x4_t v, size_t n, bool add) {
  float lane[4];
  vst1q_f32(lane, v);
  for (size_t i = 0; i < n; i++) to[i] = add ? to[i] + lane[i] : lane[i];
}

/* Rows 4r..4r+3 of token t. */
INLINE void finish_rows(const tile_output *o, size_t t, size_t r, float32x4_t v) {
  float *to = o->to + t * o->stride + 4 * r;
  if (o->n_lanes >= 4 * r + 4)
    vst1q_f32(to, o->add ? vaddq_f32(vld1q_f32(to), v) : v);
  else if (o->n_lanes > 4 * r)
    finish_some(to, v, o->n_lanes - 4 * r, o->add);
}

/* Sums of a tile between two panels of the same rows, and where they go after the last. */
typedef struct tile_sums_io {
  float *memory;    /* [token][16] */
  bool first, last; /* panel: start from zero; write the output */
  const tile_output *out;
} tile_sums_io;

typedef void (*unpack_fn)(const uint8_t *header, const uint8_t *rec, uint8_t *panel);
/* n tokens over one panel, 0 < n <= TILE. */
typedef void (*tile_fn)(const uint8_t *panel, size_t n_blocks, const tile_input *in, const tile_sums_io *io, size_t n);

typedef struct panel_kind {
  unpack_fn unpack;
  tile_fn tile;
} panel_kind;

INLINE void unpack_scales(const int kind, const uint8_t *header, const uint8_t *rec, uint8_t *panel) {
  float *f = (float *)(void *)(panel + PANEL_CODES);
  for (int r = 0; r < 4; r++) {
    scales sc;
    load_scales(kind, header, rec, r, &sc);
    vst1q_f32(f + 4 * r, sc.d);
    vst1q_f32(f + 16 + 4 * r, sc.e);
    vst1q_f32(f + 32 + 4 * r, sc.m);
    vst1q_f32(f + 48 + 4 * r, sc.n);
  }
}

/* Work space of the panel path. */
typedef struct panel_work {
  uint8_t panel[PANEL_BLOCKS * PANEL_BLOCK_BYTES];
  float acc[RUN_TOKENS][PST_LANES];
} panel_work;
_Static_assert(sizeof(panel_work) <= PST_KERNELS_WORK_BYTES, "work space");

/* One group for a run of at most RUN_TOKENS tokens. */
static inline void group_panels(const panel_kind *kind, const pst_kernels_layout *l, const pst_kernels_input *in,
                                const uint8_t *group, size_t t0, size_t n_tokens, const tile_output *out,
                                panel_work *work) {
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
      kind->tile(work->panel, n_blocks, &ti, &io, PST_MIN((size_t)TILE, n_tokens - t));
    }
  }
}

/* Group g of a matrix, as its first token's output. */
static inline tile_output output_of(const pst_kernels_matrix *w, size_t g, bool add, float *out, size_t out_stride) {
  return (tile_output){out + g * w->group_step, out_stride, PST_MIN((size_t)PST_LANES, w->n_rows - g * PST_LANES), add};
}

/* The matmul slot by panels; `kind` is of the matrix's type. */
static inline void product_by_panels(const panel_kind *kind, const pst_kernels_matrix *w,
                                     const pst_kernels_input *input, size_t t0, size_t n_tokens, size_t group_begin,
                                     size_t group_end, bool add, float *out, size_t out_stride, void *work) {
  for (size_t g = group_begin; g < group_end; g++)
    for (size_t t = 0; t < n_tokens; t += RUN_TOKENS) {
      tile_output o = output_of(w, g, add, out + t * out_stride, out_stride);
      group_panels(kind, pst_kernels_layout_of(w->type), input, w->data + g * w->group_bytes, t0 + t,
                   PST_MIN((size_t)RUN_TOKENS, n_tokens - t), &o, work);
    }
}

#endif
