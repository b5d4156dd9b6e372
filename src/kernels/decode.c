/* Blocks of a row as GGUF stores them: codes, scales, and the formula that turns them into numbers.
 *
 * Owns the knowledge of every file format's bits, for reading. Writing is quantize.c's; the layout of the kernels is matrix.c's, which
 * asks here for codes and scales and never looks at a source block itself. Formats: the GGML block structs (ggml-common.h in
 * llama.cpp, MIT) as documented with the GGUF specification. */
#include "kernels/layout.h"

#include "kernels/half.h"

#include <math.h>

const int8_t pst_kernels_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t pst_kernels_mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

float pst_kernels_e8m0_half(uint8_t e) {
  /* e = 0 and 1 are the subnormals 2^-128 and 2^-127. */
  return pst_bits_to_float(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* 32 nibbles: the low ones are the first half. */
static void codes_nibbles(const uint8_t *qs, uint8_t *codes) {
  for (int i = 0; i < 16; i++) {
    codes[i] = qs[i] & 15u;
    codes[i + 16] = (uint8_t)(qs[i] >> 4);
  }
}

static void codes_five(const uint8_t *qs, const uint8_t *high, uint8_t *codes) {
  uint32_t h = pst_load_u32(high);
  codes_nibbles(qs, codes);
  for (int i = 0; i < 32; i++) codes[i] = (uint8_t)(codes[i] | ((h >> i) & 1u) << 4);
}

/* K-quants below: sub-block j of 32 in a super-block of 256. */
static void codes_q4_k(const uint8_t *qs, size_t j, uint8_t *codes) {
  unsigned shift = (j & 1) ? 4 : 0;
  const uint8_t *q = qs + (j / 2) * 32;
  for (int i = 0; i < 32; i++) codes[i] = (uint8_t)((q[i] >> shift) & 15u);
}

static void codes_q5_k(const uint8_t *qs, const uint8_t *high, size_t j, uint8_t *codes) {
  codes_q4_k(qs, j, codes);
  for (int i = 0; i < 32; i++) codes[i] = (uint8_t)(codes[i] | ((high[i] >> j) & 1u) << 4);
}

static void codes_q6_k(const uint8_t *block, size_t j, uint8_t *codes) {
  const uint8_t *low = block + (j / 4) * 64 + (j & 1) * 32;
  const uint8_t *high = block + 128 + (j / 4) * 32;
  unsigned low_shift = (j & 2) ? 4 : 0;
  unsigned high_shift = (unsigned)(j & 3) * 2;
  for (int i = 0; i < 32; i++)
    codes[i] = (uint8_t)(((low[i] >> low_shift) & 15u) | ((high[i] >> high_shift) & 3u) << 4);
}

static void codes_crumbs(const uint8_t *qs, size_t j, uint8_t *codes) {
  const uint8_t *q = qs + (j / 4) * 32;
  unsigned shift = (unsigned)(j & 3) * 2;
  for (int i = 0; i < 32; i++) codes[i] = (uint8_t)((q[i] >> shift) & 3u);
}

static void codes_q3_k(const uint8_t *block, size_t j, uint8_t *codes) {
  codes_crumbs(block + 32, j, codes);
  for (int i = 0; i < 32; i++) codes[i] = (uint8_t)(codes[i] | ((block[i] >> j) & 1u) << 2);
}

/* Start of the source block that holds 32-block b. */
static const uint8_t *source_block(uint32_t type, const uint8_t *row, size_t block) {
  const pst_kernels_type_row *info = pst_kernels_type_info(type);
  return row + (block / (info->block_elements / PST_BLOCK)) * info->block_bytes;
}

void pst_kernels_decode_codes(uint32_t type, const uint8_t *row, size_t block, uint8_t ret_codes[PST_BLOCK]) {
  const uint8_t *src = source_block(type, row, block);
  size_t j = block % 8;
  switch (type) {
  case PST_TYPE_Q4_0:
  case PST_TYPE_IQ4_NL: codes_nibbles(src + 2, ret_codes); break;
  case PST_TYPE_Q4_1: codes_nibbles(src + 4, ret_codes); break;
  case PST_TYPE_Q5_0: codes_five(src + 6, src + 2, ret_codes); break;
  case PST_TYPE_Q5_1: codes_five(src + 8, src + 4, ret_codes); break;
  case PST_TYPE_Q8_0: memcpy(ret_codes, src + 2, PST_BLOCK); break;
  case PST_TYPE_MXFP4: codes_nibbles(src + 1, ret_codes); break;
  case PST_TYPE_Q2_K: codes_crumbs(src + 16, j, ret_codes); break;
  case PST_TYPE_Q3_K: codes_q3_k(src, j, ret_codes); break;
  case PST_TYPE_Q4_K: codes_q4_k(src + 16, j, ret_codes); break;
  case PST_TYPE_Q5_K: codes_q5_k(src + 48, src + 16, j, ret_codes); break;
  case PST_TYPE_Q6_K: codes_q6_k(src, j, ret_codes); break;
  case PST_TYPE_IQ4_XS: codes_nibbles(src + 8 + j * 16, ret_codes); break;
  default: memset(ret_codes, 0, PST_BLOCK); break;
  }
}

/* Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima in 12 bytes. */
static void scales_k4(const uint8_t *s, size_t j, uint8_t *sc, uint8_t *mn) {
  if (j < 4) {
    *sc = s[j] & 63u;
    *mn = s[j + 4] & 63u;
  } else {
    *sc = (uint8_t)((s[j + 4] & 15u) | (unsigned)(s[j - 4] >> 6) << 4);
    *mn = (uint8_t)((unsigned)(s[j + 4] >> 4) | (unsigned)(s[j] >> 6) << 4);
  }
}

/* Q3_K: sixteen 6-bit scales, biased by 32, in 12 bytes. */
static uint8_t scale_q3_k(const uint8_t *s, size_t k) {
  unsigned low = k < 8 ? s[k] & 15u : s[k - 8] >> 4;
  unsigned high = (unsigned)(s[8 + k % 4] >> (2 * (k / 4))) & 3u;
  return (uint8_t)((int)(low | high << 4) - 32);
}

void pst_kernels_decode_scales(uint32_t type, const uint8_t *row, size_t block, uint8_t ret_sc[2], uint8_t ret_mn[2]) {
  const uint8_t *src = source_block(type, row, block);
  size_t j = block % 8;
  ret_sc[0] = ret_sc[1] = ret_mn[0] = ret_mn[1] = 0;
  switch (type) {
  case PST_TYPE_Q2_K:
    for (size_t h = 0; h < 2; h++) {
      ret_sc[h] = src[2 * j + h] & 15u;
      ret_mn[h] = (uint8_t)(src[2 * j + h] >> 4);
    }
    break;
  case PST_TYPE_Q3_K:
    for (size_t h = 0; h < 2; h++) ret_sc[h] = scale_q3_k(src + 96, 2 * j + h);
    break;
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_K:
    scales_k4(src + 4, j, &ret_sc[0], &ret_mn[0]);
    ret_sc[1] = ret_sc[0];
    ret_mn[1] = ret_mn[0];
    break;
  case PST_TYPE_Q6_K:
    for (size_t h = 0; h < 2; h++) ret_sc[h] = src[192 + 2 * j + h];
    break;
  case PST_TYPE_IQ4_XS: {
    unsigned low = (unsigned)(src[4 + j / 2] >> (4 * (j & 1))) & 15u;
    unsigned high = (unsigned)(pst_load_u16(src + 2) >> (2 * j)) & 3u;
    ret_sc[0] = ret_sc[1] = (uint8_t)((int)(low | high << 4) - 32);
    break;
  }
  default: break;
  }
}

/* The f16 super scales of a K-quant's source block. */
static void super_scales(uint32_t type, const uint8_t *src, float *d, float *dmin) {
  *dmin = 0;
  switch (type) {
  case PST_TYPE_Q2_K:
    *d = pst_load_half(src + 80);
    *dmin = pst_load_half(src + 82);
    break;
  case PST_TYPE_Q3_K: *d = pst_load_half(src + 108); break;
  case PST_TYPE_Q6_K: *d = pst_load_half(src + 208); break;
  case PST_TYPE_IQ4_XS: *d = pst_load_half(src); break;
  default: /* Q4_K, Q5_K */
    *d = pst_load_half(src);
    *dmin = pst_load_half(src + 2);
    break;
  }
}

static void code_values(uint32_t type, const pst_kernels_layout *l, const uint8_t *codes, int8_t *w) {
  const int8_t *table = type == PST_TYPE_MXFP4 ? pst_kernels_mxfp4_values : pst_kernels_iq4_values;
  for (int i = 0; i < PST_BLOCK; i++)
    w[i] = l->codes == PST_CODES_LOOKUP ? table[codes[i]] : (int8_t)(codes[i] - l->offset);
}

void pst_kernels_decode(uint32_t type, const uint8_t *row, size_t block, pst_kernels_row_block *ret) {
  const pst_kernels_layout *l = pst_kernels_layout_of(type);
  const uint8_t *src = source_block(type, row, block);
  uint8_t codes[PST_BLOCK];
  pst_kernels_decode_codes(type, row, block, codes);
  code_values(type, l, codes, ret->w);
  if (l->header_bytes) {
    uint8_t sc[2], mn[2];
    float d, dmin;
    pst_kernels_decode_scales(type, row, block, sc, mn);
    super_scales(type, src, &d, &dmin);
    bool is_signed = !l->has_min;
    for (int h = 0; h < 2; h++) {
      ret->d[h] = d * (float)(is_signed ? (int8_t)sc[h] : (int)sc[h]);
      ret->m[h] = l->has_min ? -(dmin * (float)mn[h]) : 0.0f;
    }
    return;
  }
  ret->d[0] = type == PST_TYPE_MXFP4 ? pst_kernels_e8m0_half(src[0]) : pst_load_half(src);
  ret->m[0] = l->has_min ? pst_load_half(src + 2) : 0.0f;
  ret->d[1] = ret->d[0];
  ret->m[1] = ret->m[0];
}

int pst_kernels_dequantize_row(uint32_t type, const void *src, size_t n, float *ret_out) {
  const pst_kernels_type_row *info = pst_kernels_type_info(type);
  const uint8_t *bytes = src;
  if (!info) return PST_E_UNSUPPORTED;
  if (type == PST_TYPE_F32) {
    memcpy(ret_out, src, n * sizeof(float));
    return 0;
  }
  if (type == PST_TYPE_F16 || type == PST_TYPE_BF16) {
    for (size_t i = 0; i < n; i++) {
      uint16_t v = pst_load_u16(bytes + 2 * i);
      ret_out[i] = type == PST_TYPE_F16 ? pst_half_widen(v) : pst_bfloat_widen(v);
    }
    return 0;
  }
  const pst_kernels_layout *l = pst_kernels_layout_of(type);
  if (!l) return PST_E_UNSUPPORTED;
  if (n % info->block_elements) return PST_E_BAD_INPUT;
  for (size_t b = 0; b < n / PST_BLOCK; b++) {
    pst_kernels_row_block rb;
    pst_kernels_decode(type, bytes, b, &rb);
    float *out = ret_out + b * PST_BLOCK;
    for (size_t i = 0; i < PST_BLOCK; i++) {
      float v = (float)rb.w[i] * rb.d[i / 16];
      out[i] = l->has_min ? v + rb.m[i / 16] : v;
    }
  }
  return 0;
}

float pst_kernels_half_to_float(uint16_t h) { return pst_half_widen(h); }

uint16_t pst_kernels_half_from_float(float f) { return pst_half_narrow(f); }
