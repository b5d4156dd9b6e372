/* The definition of every result, in plain C.
 *
 * Owns the order of operations: where this file says fmaf, a kernel fuses; where it says * and +, it rounds twice (the build has
 * -ffp-contract=off). Sums over a vector run in 16 lanes (lane = index mod 16), then a tree of halves; sums over a row of a matrix are one
 * chain of its blocks; scores of attention are one chain over the head's elements, its outputs one chain over the positions of a page.
 * Speed is no concern here. */
#include "kernels/layout.h"

#include "kernels/math.h"

#include <assert.h>

/* ---- vectors ---------------------------------------------------------------------------------------------------- */

static float lanes_sum(float lane[16]) {
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; i++) lane[i] += lane[i + w];
  return lane[0];
}

static void quantize_block(const float *x, pst_kernels_input *in, size_t token, size_t block) {
  float amax = 0.0f;
  for (int i = 0; i < PST_BLOCK; i++) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
  bool tiny = !(amax >= PST_AMAX_MIN);
  float d = tiny ? 0.0f : amax / 127.0f;
  float inverse = tiny ? 0.0f : 127.0f / amax;
  int sum[2] = {0, 0};
  int8_t *q = in->q + token * in->n_cols + block * PST_BLOCK;
  for (int i = 0; i < PST_BLOCK; i++) {
    q[i] = (int8_t)(uint8_t)pst_float_to_bits(x[i] * inverse + PST_ROUND_MAGIC);
    sum[i / 16] += q[i];
  }
  size_t at = token * in->n_blocks + block;
  in->d[at] = d;
  in->s[at] = d * (float)(sum[0] + sum[1]);
  in->half[2 * at] = (int16_t)sum[0];
  in->half[2 * at + 1] = (int16_t)sum[1];
}

static void ref_quantize(const float *x, size_t block_begin, size_t block_end, pst_kernels_input *input, size_t token) {
  for (size_t b = block_begin; b < block_end; b++) quantize_block(x + b * PST_BLOCK, input, token, b);
}

static float rms_factor(const float *x, size_t n, float eps) {
  float lane[16] = {0};
  for (size_t i = 0; i < n; i++) lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
  float mean = lanes_sum(lane) / (float)n;
  return 1.0f / sqrtf(mean + eps);
}

static void ref_rmsnorm(const float *x, const float *weight, size_t n, float eps, float *out) {
  float factor = rms_factor(x, n, eps);
  for (size_t i = 0; i < n; i++) out[i] = weight ? x[i] * factor * weight[i] : x[i] * factor;
}

static void ref_rmsnorm_quantize(const float *x, const float *weight, float eps, float *out, pst_kernels_input *input,
                                 size_t token) {
  float factor = rms_factor(x, input->n_cols, eps);
  for (size_t b = 0; b < input->n_blocks; b++) {
    float y[PST_BLOCK];
    for (size_t i = 0; i < PST_BLOCK; i++) {
      size_t at = b * PST_BLOCK + i;
      y[i] = weight ? x[at] * factor * weight[at] : x[at] * factor;
    }
    if (out) memcpy(out + b * PST_BLOCK, y, sizeof y);
    quantize_block(y, input, token, b);
  }
}

static void ref_layernorm(const float *x, const float *weight, const float *bias, size_t n, float eps, float *out) {
  float lane[16] = {0};
  for (size_t i = 0; i < n; i++) lane[i % 16] += x[i];
  float mean = lanes_sum(lane) / (float)n;
  memset(lane, 0, sizeof lane);
  for (size_t i = 0; i < n; i++) lane[i % 16] = fmaf(x[i] - mean, x[i] - mean, lane[i % 16]);
  float factor = 1.0f / sqrtf(lanes_sum(lane) / (float)n + eps);
  for (size_t i = 0; i < n; i++) out[i] = pst_layernorm_element(x[i], mean, factor, weight, bias, i);
}

/* x Phi(x) = max(x, 0) - |x| Phi(-|x|): math.h has the formula of the tail. */
static float gelu_erf(float x) {
  float a = fabsf(x), t = 1.0f / fmaf(a, PST_ERFC_STEP, 1.0f);
  float p = fmaf(PST_ERFC_P8, t, PST_ERFC_P7);
  p = fmaf(p, t, PST_ERFC_P6);
  p = fmaf(p, t, PST_ERFC_P5);
  p = fmaf(p, t, PST_ERFC_P4);
  p = fmaf(p, t, PST_ERFC_P3);
  p = fmaf(p, t, PST_ERFC_P2);
  p = fmaf(p, t, PST_ERFC_P1);
  p = fmaf(p, t, PST_ERFC_P0);
  float tail = (a * 0.5f) * (t * pst_exp(fmaf(a * -0.5f, a, p)));
  return (x > 0.0f ? x : 0.0f) - tail;
}

static float gated_one(pst_kernels_gate kind, float x, float up) {
  if (kind == PST_KERNELS_GELU_ERF) return gelu_erf(x) * up;
  float z = -x;
  if (kind == PST_KERNELS_GELU_TANH) {
    float cube = PST_GELU_CUBE * (x * x);
    z = PST_GELU_FACTOR * fmaf(cube, x, x);
  }
  if (kind == PST_KERNELS_SWIGLU_CLAMPED) {
    x = x < PST_SWIGLU_LIMIT ? x : PST_SWIGLU_LIMIT;
    up = up < PST_SWIGLU_LIMIT ? up : PST_SWIGLU_LIMIT;
    up = (up > -PST_SWIGLU_LIMIT ? up : -PST_SWIGLU_LIMIT) + 1.0f;
    z = PST_SWIGLU_FACTOR * x;
  }
  if (kind == PST_KERNELS_SIGMOID) x = 1.0f;
  return x / (1.0f + pst_exp(z)) * up;
}

static void ref_gated(pst_kernels_gate kind, const float *gate, const float *up, size_t n, float *out) {
  for (size_t i = 0; i < n; i++) out[i] = gated_one(kind, gate[i], up ? up[i] : 1.0f);
}

static void ref_gated_quantize(pst_kernels_gate kind, const float *gate, const float *up, size_t block_begin,
                               size_t block_end, pst_kernels_input *input, size_t token) {
  for (size_t b = block_begin; b < block_end; b++) {
    float y[PST_BLOCK];
    ref_gated(kind, gate + b * PST_BLOCK, up ? up + b * PST_BLOCK : NULL, PST_BLOCK, y);
    quantize_block(y, input, token, b);
  }
}

static void ref_add(const float *x, const float *y, size_t n, float *out) {
  for (size_t i = 0; i < n; i++) out[i] = x[i] + y[i];
}

static void ref_scale(const float *x, float factor, size_t n, float *out) {
  for (size_t i = 0; i < n; i++) out[i] = x[i] * factor;
}

/* tanh(z) = 1 - 2 / (1 + exp(2z)) */
static float softcap(float x, float cap) {
  float z = x / cap;
  return cap * (1.0f - 2.0f / (1.0f + pst_exp(z + z)));
}

static void ref_softcap(const float *x, float cap, size_t n, float *out) {
  for (size_t i = 0; i < n; i++) out[i] = softcap(x[i], cap);
}

static void ref_rope(float *x, size_t n_heads, size_t head_dim, size_t n_rot, pst_kernels_rope style,
                     const float *cos_sin) {
  size_t half = n_rot / 2;
  for (size_t h = 0; h < n_heads; h++) {
    float *head = x + h * head_dim;
    for (size_t i = 0; i < half; i++) {
      float *a = style == PST_KERNELS_ROPE_PAIRS ? head + 2 * i : head + i;
      float *b = style == PST_KERNELS_ROPE_PAIRS ? head + 2 * i + 1 : head + half + i;
      float c = cos_sin[i], s = cos_sin[half + i];
      float x0 = *a, x1 = *b;
      *a = fmaf(x0, c, -(x1 * s));
      *b = fmaf(x0, s, x1 * c);
    }
  }
}

static size_t ref_argmax(const float *x, size_t n) {
  size_t best = 0;
  for (size_t i = 1; i < n; i++)
    if (x[i] > x[best]) best = i;
  return best;
}

static size_t ref_screen_pass(const float *x, const float *radius, float reach, float floor, size_t n, int32_t first,
                              int32_t *ret_groups) {
  size_t n_groups = 0;
  for (size_t at = 0; at < n; at += PST_LANES) {
    bool passes = false;
    for (size_t i = at; i < PST_MIN(at + PST_LANES, n); i++) passes |= fmaf(radius[i], reach, x[i]) >= floor;
    if (passes) ret_groups[n_groups++] = first + (int32_t)(at / PST_LANES);
  }
  return n_groups;
}

static void ref_delta_rule(float *state, size_t n_k, size_t n_v, const float *q, const float *k, const float *v,
                           float decay, float beta, float *out) {
  for (size_t j = 0; j < n_v; j++) {
    float known = 0.0f, answer = 0.0f;
    for (size_t i = 0; i < n_k; i++) known = fmaf(state[i * n_v + j] * decay, k[i], known);
    float delta = (v[j] - known) * beta;
    for (size_t i = 0; i < n_k; i++) {
      float *s = &state[i * n_v + j];
      *s = fmaf(k[i], delta, *s * decay);
      answer = fmaf(*s, q[i], answer);
    }
    out[j] = answer;
  }
}

static float ref_sum_exp(const float *x, size_t n, float max) {
  float lane[16] = {0};
  for (size_t i = 0; i < n; i++) lane[i % 16] += pst_exp(x[i] - max);
  return lanes_sum(lane);
}

static void ref_exp_less(const float *x, float shift, size_t n, float *out) {
  for (size_t i = 0; i < n; i++) out[i] = pst_exp(x[i] - shift);
}

static void ref_panel_pack(const float *from, size_t stride, size_t n_deep, size_t n_cols, float *panel) {
  for (size_t p = 0; p < n_deep; p++)
    for (size_t j = 0; j < n_cols; j++) panel[p * PST_KERNELS_PANEL + j] = from[j * stride + p];
}

static void ref_panel_product(size_t n_rows, size_t n_deep, const float *a, size_t a_row, size_t a_col,
                              const float *panel, float *c, size_t c_row, size_t n_cols, bool add) {
  for (size_t i = 0; i < n_rows; i++)
    for (size_t j = 0; j < n_cols; j++) {
      float sum = add ? c[i * c_row + j] : 0.0f;
      for (size_t p = 0; p < n_deep; p++) sum = fmaf(a[i * a_row + p * a_col], panel[p * PST_KERNELS_PANEL + j], sum);
      c[i * c_row + j] = sum;
    }
}

/* ---- products --------------------------------------------------------------------------------------------------- */

/* One link of an element's chain: the sums are exact integers, the products d * d and the two fused steps are the whole rounding. */
static float block_step(const pst_kernels_layout *l, const pst_kernels_row_block *w, const int8_t *q, float d, float s,
                        const int16_t *half, float acc) {
  int dot[2] = {0, 0};
  for (int i = 0; i < PST_BLOCK; i++) dot[i / 16] += w->w[i] * q[i];
  if (!l->halves) {
    acc = fmaf(w->d[0] * d, (float)(dot[0] + dot[1]), acc);
    return l->has_min ? fmaf(w->m[0], s, acc) : acc;
  }
  acc = fmaf(w->d[0] * d, (float)dot[0], acc);
  acc = fmaf(w->d[1] * d, (float)dot[1], acc);
  if (l->has_min) {
    acc = fmaf(w->m[0], d * (float)half[0], acc);
    acc = fmaf(w->m[1], d * (float)half[1], acc);
  }
  return acc;
}

static float float_weight(const pst_kernels_matrix *w, const uint8_t *group, size_t at) {
  if (w->type == PST_TYPE_F32) return pst_bits_to_float(pst_load_u32(group + 4 * at));
  if (w->type == PST_TYPE_F16) return pst_load_half(group + 2 * at);
  return pst_bfloat_widen(pst_load_u16(group + 2 * at));
}

/* acc[t][lane] for one group and a run of tokens. */
static void group_product(const pst_kernels_matrix *w, const pst_kernels_input *in, size_t group, size_t t0,
                          size_t n_tokens, float (*acc)[PST_LANES]) {
  const uint8_t *bytes = w->data + group * w->group_bytes;
  memset(acc, 0, n_tokens * sizeof *acc);
  if (w->is_float) {
    for (size_t c = 0; c < w->n_cols; c++)
      for (size_t lane = 0; lane < PST_LANES; lane++) {
        float v = float_weight(w, bytes, c * PST_LANES + lane);
        for (size_t t = 0; t < n_tokens; t++) acc[t][lane] = fmaf(v, in->x[(t0 + t) * w->n_cols + c], acc[t][lane]);
      }
    return;
  }
  const pst_kernels_layout *l = pst_kernels_layout_of(w->type);
  for (size_t b = 0; b < in->n_blocks; b++)
    for (size_t lane = 0; lane < PST_LANES; lane++) {
      pst_kernels_row_block rb;
      pst_kernels_unpack(w->type, bytes, b, lane, &rb);
      for (size_t t = 0; t < n_tokens; t++) {
        size_t at = (t0 + t) * in->n_blocks + b;
        const int8_t *q = in->q + (t0 + t) * in->n_cols + b * PST_BLOCK;
        acc[t][lane] = block_step(l, &rb, q, in->d[at], in->s[at], in->half + 2 * at, acc[t][lane]);
      }
    }
}

static void ref_matmul(const pst_kernels_matrix *w, const pst_kernels_input *input, size_t t0, size_t n_tokens,
                       size_t group_begin, size_t group_end, bool add, float *out, size_t out_stride, void *work) {
  enum { RUN = 1024 };
  float(*acc)[PST_LANES] = work;
  assert(w->is_float || w->n_cols == input->n_cols);
  for (size_t g = group_begin; g < group_end; g++)
    for (size_t run = 0; run < n_tokens; run += RUN) {
      size_t n = PST_MIN((size_t)RUN, n_tokens - run);
      group_product(w, input, g, t0 + run, n, acc);
      size_t n_lanes = PST_MIN((size_t)PST_LANES, w->n_rows - g * PST_LANES);
      for (size_t t = 0; t < n; t++) {
        float *to = out + (run + t) * out_stride + g * w->group_step;
        for (size_t lane = 0; lane < n_lanes; lane++) to[lane] = add ? to[lane] + acc[t][lane] : acc[t][lane];
      }
    }
}

/* Sixteen lanes over the columns, zeros behind the last, then a tree. */
static float ref_dot(const float *row, size_t n, const float *x) {
  float lane[PST_LANES] = {0};
  for (size_t i = 0; i < PST_KERNELS_DOT_COLS(n); i++)
    lane[i % PST_LANES] = fmaf(row[i], i < n ? x[i] : 0.0f, lane[i % PST_LANES]);
  return lanes_sum(lane);
}

static void ref_dots(const float *rows, size_t n_rows, size_t n_cols, const float *x, size_t n_tokens, float *out) {
  for (size_t t = 0; t < n_tokens; t++)
    for (size_t r = 0; r < n_rows; r++)
      out[t * n_rows + r] = ref_dot(rows + r * PST_KERNELS_DOT_COLS(n_cols), n_cols, x + t * n_cols);
}

/* ---- keys and values -------------------------------------------------------------------------------------------- */

/* f16, kept finite so that a masked position can never turn a sum into NaN. */
static uint16_t store_half(float x) {
  x = x < 65504.0f ? x : 65504.0f;
  x = x > -65504.0f ? x : -65504.0f;
  return pst_half_narrow(x);
}

/* n <= 32 elements to int8 with one f16 scale; returns the scale's bits. The rounded scale is what the codes are made for. */
static uint16_t store_codes(const float *x, size_t n, int8_t *q) {
  float amax = 0.0f;
  for (size_t i = 0; i < n; i++) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
  uint16_t d = store_half(amax / 127.0f);
  float inverse = d ? 1.0f / pst_half_widen(d) : 0.0f;
  for (size_t i = 0; i < n; i++) {
    float v = x[i] * inverse;
    v = v < 127.0f ? v : 127.0f;
    v = v > -127.0f ? v : -127.0f;
    q[i] = (int8_t)(uint8_t)pst_float_to_bits(v + PST_ROUND_MAGIC);
  }
  return d;
}

static void ref_store_key(uint32_t kv_type, size_t head_dim, const float *x, size_t slot, uint8_t *page) {
  if (kv_type == PST_TYPE_F16) {
    for (size_t i = 0; i < head_dim; i++) pst_store_u16(page + (i * PST_PAGE + slot) * 2, store_half(x[i]));
    return;
  }
  uint8_t *scales = page + PST_PAGE * head_dim;
  for (size_t b = 0; b < pst_page_blocks(head_dim); b++) {
    int8_t q[PST_BLOCK];
    size_t n = PST_MIN((size_t)PST_BLOCK, head_dim - b * PST_BLOCK);
    pst_store_u16(scales + (b * PST_PAGE + slot) * 2, store_codes(x + b * PST_BLOCK, n, q));
    for (size_t i = 0; i < n; i += 4) memcpy(page + ((b * PST_BLOCK + i) / 4 * PST_PAGE + slot) * 4, q + i, 4);
  }
}

static void ref_store_value(uint32_t kv_type, size_t head_dim, const float *x, size_t slot, uint8_t *page) {
  if (kv_type == PST_TYPE_F16) {
    for (size_t i = 0; i < head_dim; i++) pst_store_u16(page + (slot * head_dim + i) * 2, store_half(x[i]));
    return;
  }
  size_t n_blocks = pst_page_blocks(head_dim);
  uint8_t *scales = page + PST_PAGE * head_dim;
  for (size_t b = 0; b < n_blocks; b++) {
    size_t n = PST_MIN((size_t)PST_BLOCK, head_dim - b * PST_BLOCK);
    pst_store_u16(scales + (b * PST_PAGE + slot) * 2,
                  store_codes(x + b * PST_BLOCK, n, (int8_t *)page + slot * head_dim + b * PST_BLOCK));
  }
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* One query, ready: scaled, and for int8 keys quantized per 32 elements like any activation. */
typedef struct ref_query {
  float x[PST_KERNELS_MAX_HEAD];
  int8_t q[PST_KERNELS_MAX_HEAD];
  float d[PST_KERNELS_MAX_HEAD / PST_BLOCK];
} ref_query;

static void query_prepare(const pst_kernels_attend *a, const float *q, ref_query *ret) {
  for (size_t i = 0; i < a->head_dim; i++) ret->x[i] = q[i] * a->scale;
  if (a->kv_type == PST_TYPE_F16) return;
  for (size_t b = 0; b < pst_page_blocks(a->head_dim); b++) {
    float padded[PST_BLOCK] = {0};
    int16_t half[2];
    float s;
    memcpy(padded, ret->x + b * PST_BLOCK, PST_MIN((size_t)PST_BLOCK, a->head_dim - b * PST_BLOCK) * sizeof(float));
    pst_kernels_input in = {
        .n_cols = PST_BLOCK, .n_blocks = 1, .q = ret->q + b * PST_BLOCK, .d = &ret->d[b], .s = &s, .half = half};
    quantize_block(padded, &in, 0, 0);
  }
}

static float key_score(const pst_kernels_attend *a, const ref_query *q, const uint8_t *page, size_t j) {
  float score = 0.0f;
  if (a->kv_type == PST_TYPE_F16) {
    for (size_t i = 0; i < a->head_dim; i++) score = fmaf(q->x[i], pst_load_half(page + (i * PST_PAGE + j) * 2), score);
  } else {
    const uint8_t *scales = page + PST_PAGE * a->head_dim;
    for (size_t b = 0; b < pst_page_blocks(a->head_dim); b++) {
      int dot = 0;
      for (size_t i = b * PST_BLOCK; i < PST_MIN((b + 1) * PST_BLOCK, a->head_dim); i++)
        dot += q->q[i] * (int8_t)page[(i / 4 * PST_PAGE + j) * 4 + i % 4];
      score = fmaf(pst_load_half(scales + (b * PST_PAGE + j) * 2) * q->d[b], (float)dot, score);
    }
  }
  return a->softcap > 0.0f ? softcap(score, a->softcap) : score;
}

/* Positions [*ret_lo, *ret_hi) of block `block` that the token at `position` sees; false if none. */
static bool visible(const pst_kernels_attend *a, size_t position, size_t block, size_t *ret_lo, size_t *ret_hi) {
  size_t first = a->window && position + 1 > a->window ? position + 1 - a->window : 0;
  size_t end = pst_attend_end(a, position), base = block * PST_PAGE;
  if (base >= end || base + PST_PAGE <= first) return false;
  *ret_lo = first > base ? first - base : 0;
  *ret_hi = PST_MIN((size_t)PST_PAGE, end - base);
  return true;
}

/* One block for one query: part[0] = max, part[1] = sum, part[16..] = weighted values. */
static void block_part(const pst_kernels_attend *a, const ref_query *q, size_t block, size_t lo, size_t hi,
                       float *part) {
  const uint8_t *keys = a->pages[block] + a->k_offset;
  const uint8_t *values = a->pages[block] + a->v_offset;
  const uint8_t *scales = values + PST_PAGE * a->head_dim;
  float p[PST_PAGE] = {0}, lane[16];
  float max = -INFINITY;
  for (size_t j = lo; j < hi; j++) {
    p[j] = key_score(a, q, keys, j);
    max = p[j] > max ? p[j] : max;
  }
  for (size_t j = lo; j < hi; j++) p[j] = pst_exp(p[j] - max);
  for (size_t i = 0; i < 16; i++) lane[i] = p[i] + p[i + 16] + p[i + 32] + p[i + 48];
  part[0] = max;
  part[1] = lanes_sum(lane);
  float *out = part + 16;
  for (size_t i = 0; i < a->head_dim; i++) {
    float acc = 0.0f;
    for (size_t j = lo; j < hi; j++) {
      if (a->kv_type == PST_TYPE_F16) {
        acc = fmaf(p[j], pst_load_half(values + (j * a->head_dim + i) * 2), acc);
      } else {
        float d = pst_load_half(scales + (i / PST_BLOCK * PST_PAGE + j) * 2);
        acc = fmaf(p[j] * d, (float)(int8_t)values[j * a->head_dim + i], acc);
      }
    }
    out[i] = acc;
  }
}

/* Folds a block's part into a running state of the same shape. The state's first block is copied. */
static void part_merge(size_t head_dim, bool first, const float *part, float *state) {
  if (first) {
    memcpy(state, part, PST_KERNELS_PART_FLOATS(head_dim) * sizeof(float));
    return;
  }
  float max = state[0] > part[0] ? state[0] : part[0];
  float keep = pst_exp(state[0] - max), take = pst_exp(part[0] - max);
  state[0] = max;
  state[1] = fmaf(state[1], keep, part[1] * take);
  for (size_t i = 16; i < 16 + head_dim; i++) state[i] = fmaf(state[i], keep, part[i] * take);
}

static void state_finish(const pst_kernels_attend *a, size_t head, const float *state, float *out) {
  float factor = pst_attend_factor(a->sinks ? &a->sinks[head] : NULL, state[0], state[1]);
  for (size_t i = 0; i < a->head_dim; i++) out[i] = state[16 + i] * factor;
}

static void ref_attention(const pst_kernels_attend *a, void *work) {
  ref_query *q = work;
  float part[PST_KERNELS_PART_FLOATS(PST_KERNELS_MAX_HEAD)], state[PST_KERNELS_PART_FLOATS(PST_KERNELS_MAX_HEAD)];
  for (size_t t = 0; t < a->n_tokens; t++)
    for (size_t h = 0; h < a->n_heads; h++) {
      bool first = true;
      query_prepare(a, a->q + t * a->q_stride + h * a->head_dim, q);
      for (size_t b = 0; b * PST_PAGE < pst_attend_end(a, a->position + t); b++) {
        size_t lo, hi;
        if (!visible(a, a->position + t, b, &lo, &hi)) continue;
        block_part(a, q, b, lo, hi, part);
        part_merge(a->head_dim, first, part, state);
        first = false;
      }
      state_finish(a, h, state, a->out + t * a->out_stride + h * a->head_dim);
    }
}

static void ref_attention_part(const pst_kernels_attend *a, size_t block_begin, size_t block_end, float *parts,
                               void *work) {
  ref_query *q = work;
  size_t part_floats = PST_KERNELS_PART_FLOATS(a->head_dim);
  for (size_t t = 0; t < a->n_tokens; t++)
    for (size_t h = 0; h < a->n_heads; h++) {
      query_prepare(a, a->q + t * a->q_stride + h * a->head_dim, q);
      for (size_t b = block_begin; b < block_end; b++) {
        size_t lo, hi;
        float *part = parts + (((b - block_begin) * a->n_tokens + t) * a->n_heads + h) * part_floats;
        if (visible(a, a->position + t, b, &lo, &hi)) block_part(a, q, b, lo, hi, part);
      }
    }
}

static void ref_attention_merge(const pst_kernels_attend *a, size_t block_begin, size_t block_end, const float *parts) {
  float state[PST_KERNELS_PART_FLOATS(PST_KERNELS_MAX_HEAD)];
  size_t part_floats = PST_KERNELS_PART_FLOATS(a->head_dim);
  for (size_t t = 0; t < a->n_tokens; t++)
    for (size_t h = 0; h < a->n_heads; h++) {
      bool first = true;
      for (size_t b = block_begin; b < block_end; b++) {
        size_t lo, hi;
        if (!visible(a, a->position + t, b, &lo, &hi)) continue;
        part_merge(a->head_dim, first, parts + (((b - block_begin) * a->n_tokens + t) * a->n_heads + h) * part_floats,
                   state);
        first = false;
      }
      state_finish(a, h, state, a->out + t * a->out_stride + h * a->head_dim);
    }
}

const pst_kernels *pst_kernels_table_scalar(void) {
  static const pst_kernels table = {
      .name = "scalar",
      .quantize = ref_quantize,
      .rmsnorm = ref_rmsnorm,
      .rmsnorm_quantize = ref_rmsnorm_quantize,
      .layernorm = ref_layernorm,
      .gated = ref_gated,
      .gated_quantize = ref_gated_quantize,
      .add = ref_add,
      .scale = ref_scale,
      .softcap = ref_softcap,
      .rope = ref_rope,
      .argmax = ref_argmax,
      .screen_pass = ref_screen_pass,
      .delta_rule = ref_delta_rule,
      .dots = ref_dots,
      .sum_exp = ref_sum_exp,
      .exp_less = ref_exp_less,
      .panel_pack = ref_panel_pack,
      .panel_product = ref_panel_product,
      .matmul = ref_matmul,
      .store_key = ref_store_key,
      .store_value = ref_store_value,
      .attention = ref_attention,
      .attention_part = ref_attention_part,
      .attention_merge = ref_attention_merge,
  };
  return &table;
}
