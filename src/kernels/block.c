/* The codes of one block of a GGUF format: written, and what they stand for.
 *
 * Owns the bits of codes, for writing; decode.c reads them, and scales are chosen and written by quantize.c. The formats' formulas are those of
 * dequantize in matrix.c: a type's grid is its zero point, and its scales through decode.c. */
#include "kernels/half.h"
#include "kernels/layout.h"

enum { K_BLOCK = 256, K_SUBS = 8 };

/* Codes of a block of 32 as nibbles: the low ones are the first half. */
static void put_nibbles(const uint8_t *codes, uint8_t *qs) {
  for (int i = 0; i < 16; i++) qs[i] = (uint8_t)((codes[i] & 15u) | (unsigned)(codes[i + 16] & 15u) << 4);
}

static void put_fives(const uint8_t *codes, uint8_t *high, uint8_t *qs) {
  uint32_t h = 0;
  for (int i = 0; i < 32; i++) h |= (uint32_t)(codes[i] >> 4) << i;
  pst_store_u32(high, h);
  put_nibbles(codes, qs);
}

/* Q4_K and Q5_K: 64 codes share 32 bytes, the first half of them the low nibbles; high (NULL: none): a fifth bit, sub-block j's at bit j. */
static void put_k(const uint8_t *codes, uint8_t *qs, uint8_t *high) {
  if (high) memset(high, 0, 32);
  for (int j = 0; j < K_SUBS; j++) {
    uint8_t *q = qs + (j / 2) * 32;
    const uint8_t *c = codes + (size_t)j * 32;
    for (int i = 0; i < 32; i++) {
      unsigned low = c[i] & 15u;
      q[i] = (uint8_t)((j & 1) ? q[i] | low << 4 : low);
      if (high) high[i] = (uint8_t)(high[i] | (unsigned)(c[i] >> 4) << j);
    }
  }
}

static void put_q6_k(const uint8_t *codes, uint8_t *block) {
  memset(block, 0, 192);
  for (int j = 0; j < K_SUBS; j++) {
    uint8_t *low = block + (j / 4) * 64 + (j & 1) * 32, *high = block + 128 + (j / 4) * 32;
    const uint8_t *c = codes + (size_t)j * 32;
    for (int i = 0; i < 32; i++) {
      low[i] = (uint8_t)(low[i] | (c[i] & 15u) << ((j & 2) ? 4 : 0));
      high[i] = (uint8_t)(high[i] | (unsigned)(c[i] >> 4) << (2 * (j & 3)));
    }
  }
}

/* Two bits in crumbs as Q2_K has them, the third at bit j of sub-block j. */
static void put_q3_k(const uint8_t *codes, uint8_t *block) {
  memset(block, 0, 96);
  for (int j = 0; j < K_SUBS; j++) {
    uint8_t *low = block + 32 + (j / 4) * 32;
    const uint8_t *c = codes + (size_t)j * 32;
    for (int i = 0; i < 32; i++) {
      low[i] = (uint8_t)(low[i] | (c[i] & 3u) << (2 * (j & 3)));
      block[i] = (uint8_t)(block[i] | (unsigned)(c[i] >> 2) << j);
    }
  }
}

void pst_kernels_block_put(uint32_t type, const uint8_t *codes, void *block) {
  uint8_t *dst = block;
  switch (type) {
  case PST_TYPE_Q4_0:
  case PST_TYPE_IQ4_NL: put_nibbles(codes, dst + 2); break;
  case PST_TYPE_Q4_1: put_nibbles(codes, dst + 4); break;
  case PST_TYPE_Q5_0: put_fives(codes, dst + 2, dst + 6); break;
  case PST_TYPE_Q5_1: put_fives(codes, dst + 4, dst + 8); break;
  case PST_TYPE_Q8_0:
    for (int i = 0; i < PST_BLOCK; i++) dst[2 + i] = (uint8_t)(int8_t)((int)codes[i] - 127);
    break;
  case PST_TYPE_Q3_K: put_q3_k(codes, dst); break;
  case PST_TYPE_Q4_K: put_k(codes, dst + 16, NULL); break;
  case PST_TYPE_Q5_K: put_k(codes, dst + 48, dst + 16); break;
  case PST_TYPE_Q6_K: put_q6_k(codes, dst); break;
  case PST_TYPE_IQ4_XS:
    for (int j = 0; j < K_SUBS; j++) put_nibbles(codes + (size_t)j * 32, dst + 8 + (size_t)j * 16);
    break;
  default: break;
  }
}

size_t pst_kernels_scale_place(uint32_t type) { return type == PST_TYPE_Q6_K ? 208 : type == PST_TYPE_Q3_K ? 108 : 0; }

int pst_kernels_block_stretch(uint32_t type, float factor, void *block) {
  uint8_t *at = (uint8_t *)block + pst_kernels_scale_place(type);
  bool two = type == PST_TYPE_Q4_1 || type == PST_TYPE_Q5_1 || type == PST_TYPE_Q4_K || type == PST_TYPE_Q5_K;
  uint16_t h[2] = {0, 0};
  for (int i = 0; i < (two ? 2 : 1); i++) {
    h[i] = pst_half_narrow(pst_half_widen(pst_load_u16(at + (size_t)i * 2)) * factor);
    if ((h[i] & 0x7c00u) == 0x7c00u) return PST_E_LIMIT;
  }
  for (int i = 0; i < (two ? 2 : 1); i++) pst_store_u16(at + (size_t)i * 2, h[i]);
  return 0;
}

static void fill(pst_kernels_grid *g, size_t at, size_t n, float scale, float min) {
  for (size_t i = at; i < at + n; i++) {
    g->scale[i] = scale;
    g->min[i] = min;
  }
}

static void grid_k(uint32_t type, const uint8_t *block, pst_kernels_grid *g) {
  bool has_min = type == PST_TYPE_Q4_K || type == PST_TYPE_Q5_K;
  float d = pst_half_widen(pst_load_u16(block + pst_kernels_scale_place(type)));
  float dmin = has_min ? pst_half_widen(pst_load_u16(block + 2)) : 0;
  for (size_t j = 0; j < K_SUBS; j++) {
    uint8_t sc[2], mn[2];
    pst_kernels_decode_scales(type, block, j, sc, mn);
    for (size_t h = 0; h < 2; h++) {
      float scale = has_min ? (float)sc[h] : (float)(int8_t)sc[h];
      fill(g, j * 32 + h * 16, 16, d * scale, -(dmin * (float)mn[h]));
    }
  }
}

int pst_kernels_block_grid(uint32_t type, const void *block, pst_kernels_grid *ret_grid) {
  const uint8_t *src = block;
  ret_grid->levels = NULL;
  switch (type) {
  case PST_TYPE_IQ4_NL:
    ret_grid->low = 0;
    ret_grid->high = 15;
    ret_grid->levels = pst_kernels_iq4_values;
    fill(ret_grid, 0, PST_BLOCK, pst_half_widen(pst_load_u16(src)), 0);
    return 0;
  case PST_TYPE_IQ4_XS:
    ret_grid->low = 0;
    ret_grid->high = 15;
    ret_grid->levels = pst_kernels_iq4_values;
    grid_k(type, src, ret_grid);
    return 0;
  case PST_TYPE_Q4_0:
  case PST_TYPE_Q5_0:
  case PST_TYPE_Q8_0:
    ret_grid->low = type == PST_TYPE_Q4_0 ? -8 : type == PST_TYPE_Q5_0 ? -16 : -127;
    ret_grid->high = type == PST_TYPE_Q8_0 ? 127 : -ret_grid->low - 1;
    fill(ret_grid, 0, PST_BLOCK, pst_half_widen(pst_load_u16(src)), 0);
    return 0;
  case PST_TYPE_Q4_1:
  case PST_TYPE_Q5_1:
    ret_grid->low = 0;
    ret_grid->high = type == PST_TYPE_Q4_1 ? 15 : 31;
    fill(ret_grid, 0, PST_BLOCK, pst_half_widen(pst_load_u16(src)), pst_half_widen(pst_load_u16(src + 2)));
    return 0;
  case PST_TYPE_Q3_K:
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_K:
  case PST_TYPE_Q6_K:
    ret_grid->low = type == PST_TYPE_Q3_K ? -4 : type == PST_TYPE_Q6_K ? -32 : 0;
    ret_grid->high = type == PST_TYPE_Q3_K ? 3 : type == PST_TYPE_Q4_K ? 15 : 31;
    grid_k(type, src, ret_grid);
    return 0;
  default: return PST_E_UNSUPPORTED;
  }
}
