/* Products with F32, F16 and BF16 matrices for ARM: a chain over the columns for each element, four rows a register. */
#include "kernels/arm/arm.h"

#include "kernels/arm/tile_neon.h"

/* Sums of 16 rows for one token. */
typedef struct row_sums {
  float32x4_t a, b, c, d;
} row_sums;

INLINE float32x4_t load_weights(const int type, const uint8_t *column, const int r) {
  if (type == PST_TYPE_F32) return vld1q_f32((const float *)(const void *)column + 4 * r);
  if (type == PST_TYPE_F16) return half4(column + 8 * r);
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(column + 8 * r)), 16));
}

INLINE row_sums grow(row_sums s, const row_sums *w, float x) {
  s.a = vfmaq_n_f32(s.a, w->a, x);
  s.b = vfmaq_n_f32(s.b, w->b, x);
  s.c = vfmaq_n_f32(s.c, w->c, x);
  s.d = vfmaq_n_f32(s.d, w->d, x);
  return s;
}

INLINE void finish(const tile_output *o, size_t t, const row_sums *s) {
  finish_rows(o, t, 0, s->a);
  finish_rows(o, t, 1, s->b);
  finish_rows(o, t, 2, s->c);
  finish_rows(o, t, 3, s->d);
}

/* One group, T tokens. */
INLINE void float_tile(const int type, const int T, const uint8_t *group, size_t n_cols, const float *x,
                       const tile_output *out) {
  const size_t column_bytes = type == PST_TYPE_F32 ? 64 : 32;
  const float32x4_t zero = vdupq_n_f32(0.0f);
  row_sums t0 = {zero, zero, zero, zero}, t1 = t0, t2 = t0, t3 = t0;
  for (size_t c = 0; c < n_cols; c++) {
    const uint8_t *column = group + c * column_bytes;
    const row_sums w = {load_weights(type, column, 0), load_weights(type, column, 1), load_weights(type, column, 2),
                        load_weights(type, column, 3)};
    t0 = grow(t0, &w, x[c]);
    if (T > 1) t1 = grow(t1, &w, x[n_cols + c]);
    if (T > 2) t2 = grow(t2, &w, x[2 * n_cols + c]);
    if (T > 3) t3 = grow(t3, &w, x[3 * n_cols + c]);
  }
  finish(out, 0, &t0);
  if (T > 1) finish(out, 1, &t1);
  if (T > 2) finish(out, 2, &t2);
  if (T > 3) finish(out, 3, &t3);
}

INLINE void float_product(const int type, const pst_kernels_matrix *w, const float *x, size_t n_tokens,
                          size_t group_begin, size_t group_end, bool add, float *out, size_t out_stride) {
  for (size_t g = group_begin; g < group_end; g++) {
    const uint8_t *group = w->data + g * w->group_bytes;
    tile_output o = output_of(w, g, add, out, out_stride);
    for (size_t t = 0; t < n_tokens; t += TILE) {
      const float *xt = x + t * w->n_cols;
      o.to = out + t * out_stride + g * PST_LANES;
      switch (n_tokens - t) {
      case 1: float_tile(type, 1, group, w->n_cols, xt, &o); break;
      case 2: float_tile(type, 2, group, w->n_cols, xt, &o); break;
      case 3: float_tile(type, 3, group, w->n_cols, xt, &o); break;
      default: float_tile(type, 4, group, w->n_cols, xt, &o); break;
      }
    }
  }
}

void pst_kernels_float_product_neon(const pst_kernels_matrix *w, const pst_kernels_input *input, size_t t0,
                                    size_t n_tokens, size_t group_begin, size_t group_end, bool add, float *out,
                                    size_t out_stride) {
  const float *x = input->x + t0 * w->n_cols;
  if (w->type == PST_TYPE_F32)
    float_product(PST_TYPE_F32, w, x, n_tokens, group_begin, group_end, add, out, out_stride);
  else if (w->type == PST_TYPE_F16)
    float_product(PST_TYPE_F16, w, x, n_tokens, group_begin, group_end, add, out, out_stride);
  else
    float_product(PST_TYPE_BF16, w, x, n_tokens, group_begin, group_end, add, out, out_stride);
}
