/* Screens: a coarse 5-bit copy of a large matrix with a bound on what it leaves out, so that the greatest elements of a product are found
 * without reading the whole matrix.
 *
 * For every input, |computed product - computed product with the copy| <= radius[row] * reach, the rounding of both chains included:
 * the exact difference is at most |w - c| * |x| (Cauchy-Schwarz, x the quantized input), and a chain of k fused steps over terms t rounds
 * by at most (k + 2) * 2^-24 * sum |t|, where sum |t| <= |w| * |x| because each term is an exact dot product of a piece of the row with a
 * piece of x. That last step does not hold for types with a minimum, whose two terms may cancel; they get no screen.
 *
 * Why 5 bits: |w - c| is 5% of |w|, and about thirty of a vocabulary's 262,144 rows stay in question; with 4 bits and 10% it is hundreds, for
 * flat distributions most of them (docs/notes/engine-speed.md). */
#include "kernels/layout.h"

#include "kernels/half.h"

#include <math.h>

enum { SCREEN_TYPE = PST_TYPE_Q5_0, CODED_BYTES = 22, CODE_ZERO = 16, CODE_TOP = 31 };

bool pst_kernels_screen_pays(const pst_kernels_matrix *w) {
  const pst_kernels_layout *l = pst_kernels_layout_of(w->type);
  const pst_kernels_layout *coarse = pst_kernels_layout_of(SCREEN_TYPE);
  /* Survivors are read from both; below this the second reading eats what the first saves. */
  return l && !l->has_min && l->record_bytes * 10 >= coarse->record_bytes * 14;
}

int pst_kernels_screen_init(const pst_kernels_matrix *w, pst_kernels_screen *ret_screen) {
  *ret_screen = (pst_kernels_screen){.radius = NULL};
  return pst_kernels_matrix_init(SCREEN_TYPE, w->n_rows, w->n_cols, &ret_screen->codes, NULL);
}

size_t pst_kernels_screen_radius_bytes(const pst_kernels_screen *s) {
  return s->codes.n_groups * PST_LANES * sizeof(float);
}

static unsigned code_of(float x, float inverse) {
  float code = x * inverse + ((float)CODE_ZERO + 0.5f);
  return code <= 0 ? 0 : code >= (float)CODE_TOP ? CODE_TOP : (unsigned)code;
}

/* 32 floats to one Q5_0 block: the value of greatest magnitude becomes code 0, as in the format's usual quantizer. */
static void code_block(const float *x, uint8_t *block) {
  float extreme = 0;
  for (int i = 0; i < PST_BLOCK; i++)
    if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
  float step = extreme / -(float)CODE_ZERO, most = 65504.0f; /* of a half */
  uint16_t half = pst_half_narrow(step > most ? most : step < -most ? -most : step);
  float d = pst_half_widen(half), inverse = d != 0 ? 1.0f / d : 0.0f;
  uint32_t high = 0;
  for (int i = 0; i < PST_BLOCK / 2; i++) {
    unsigned low = code_of(x[i], inverse), up = code_of(x[i + 16], inverse);
    block[6 + i] = (uint8_t)((low & 15) | (up & 15) << 4);
    high |= (low >> 4) << i | (up >> 4) << (i + 16);
  }
  memcpy(block, &half, 2);
  pst_store_u32(block + 2, high);
}

/* The squared length of x, n floats, or of what is left of it without y. */
static double square_sum(const float *x, const float *y, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) {
    double v = y ? (double)x[i] - (double)y[i] : (double)x[i];
    sum += v * v;
  }
  return sum;
}

/* One row's copy and radius. x: the row; y: room for n floats. */
static int screen_row(const float *x, size_t n, uint8_t *coded, float *y, float *ret_radius) {
  for (size_t b = 0; b < n / PST_BLOCK; b++) code_block(x + b * PST_BLOCK, coded + b * CODED_BYTES);
  int code = pst_kernels_dequantize_row(SCREEN_TYPE, coded, n, y);
  /* Two chains of at most two steps a block, their scales, and the few operations of the comparison. */
  size_t n_steps = 2 * (n / PST_BLOCK) + 16;
  double rounding = (double)n_steps * 0x1p-24;
  double missed = sqrt(square_sum(x, y, n)), norm = sqrt(square_sum(x, NULL, n));
  *ret_radius = (float)((missed * (1 + rounding) + 2 * rounding * norm) * (1 + 0x1p-20));
  return code;
}

int pst_kernels_screen_pack(const pst_kernels_screen *s, uint32_t type, const void *src, size_t group_begin,
                            size_t group_end, uint8_t *codes, float *radius) {
  size_t n = s->codes.n_cols, row_bytes = pst_kernels_row_bytes(type, n);
  size_t coded_bytes = pst_kernels_row_bytes(SCREEN_TYPE, n);
  float *rows = pst_malloc(2 * n * sizeof *rows);
  uint8_t *coded = pst_malloc(PST_LANES * coded_bytes);
  int code = rows && coded ? 0 : PST_E_NOMEM;
  for (size_t g = group_begin; g < group_end && !code; g++) {
    for (size_t lane = 0; lane < PST_LANES && !code; lane++) {
      size_t r = g * PST_LANES + lane;
      radius[r] = 0;
      if (r >= s->codes.n_rows) continue;
      const uint8_t *row = (const uint8_t *)src + (r - group_begin * PST_LANES) * row_bytes;
      code = pst_kernels_dequantize_row(type, row, n, rows);
      if (!code) code = screen_row(rows, n, coded + lane * coded_bytes, rows + n, &radius[r]);
    }
    if (!code) pst_kernels_matrix_pack(&s->codes, coded, g, g + 1, codes);
  }
  pst_free(rows);
  pst_free(coded);
  return code;
}

float pst_kernels_screen_reach(const pst_kernels_input *input, size_t token) {
  double sum = 0;
  for (size_t b = 0; b < input->n_blocks; b++) {
    const int8_t *q = input->q + token * input->n_cols + b * PST_BLOCK;
    double d = (double)input->d[token * input->n_blocks + b];
    int squares = 0;
    for (int i = 0; i < PST_BLOCK; i++) squares += q[i] * q[i];
    sum += d * d * squares;
  }
  return (float)(sqrt(sum) * (1 + 0x1p-20));
}
