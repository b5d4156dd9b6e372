/* Packed matrices, inputs and pages: shapes, sizes, packing, and reading one row back.
 *
 * Owns the layout that layout.h draws. It does no products. One layout serves every instruction set: a step's 64 bytes are at once an
 * AVX-512 register, two of AVX2, four of NEON, so packed weights can be kept in a file and a test can pack once
 * and compare all tables. Lanes are rows, hence no kernel ever adds across a register. */
#include "kernels/layout.h"

#include "kernels/half.h"

/* header bytes, records per header, record bytes */
static const pst_kernels_layout layouts[PST_TYPE_END] = {
    [PST_TYPE_Q4_0] = {288, 0, 1, PST_CODES_NIBBLE, 8, false, false},
    [PST_TYPE_Q4_1] = {320, 0, 1, PST_CODES_NIBBLE, 0, false, true},
    [PST_TYPE_Q5_0] = {352, 0, 1, PST_CODES_NIBBLE_HIGH1, 16, false, false},
    [PST_TYPE_Q5_1] = {384, 0, 1, PST_CODES_NIBBLE_HIGH1, 0, false, true},
    [PST_TYPE_Q8_0] = {544, 0, 1, PST_CODES_BYTE, 0, false, false},
    [PST_TYPE_IQ4_NL] = {288, 0, 1, PST_CODES_LOOKUP, 0, false, false},
    [PST_TYPE_MXFP4] = {272, 0, 1, PST_CODES_LOOKUP, 0, false, false},
    [PST_TYPE_Q2_K] = {160, 64, 8, PST_CODES_CRUMB, 0, true, true},
    [PST_TYPE_Q3_K] = {224, 32, 8, PST_CODES_CRUMB_HIGH1, 4, true, false},
    [PST_TYPE_Q4_K] = {288, 64, 8, PST_CODES_NIBBLE, 0, false, true},
    [PST_TYPE_Q5_K] = {352, 64, 8, PST_CODES_NIBBLE_HIGH1, 0, false, true},
    [PST_TYPE_Q6_K] = {416, 32, 8, PST_CODES_NIBBLE_HIGH2, 32, true, false},
    [PST_TYPE_IQ4_XS] = {272, 32, 8, PST_CODES_LOOKUP, 0, false, false},
};

const pst_kernels_layout *pst_kernels_layout_of(uint32_t type) {
  if (type >= PST_TYPE_END || !layouts[type].record_bytes) return NULL;
  return &layouts[type];
}

static bool is_float_type(uint32_t type) {
  return type == PST_TYPE_F32 || type == PST_TYPE_F16 || type == PST_TYPE_BF16;
}

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

int pst_kernels_matrix_init(uint32_t type, size_t n_rows, size_t n_cols, pst_kernels_matrix *ret_matrix,
                            pst_error *err) {
  const pst_kernels_type_row *info = pst_kernels_type_info(type);
  const pst_kernels_layout *l = pst_kernels_layout_of(type);
  bool is_float = is_float_type(type);
  if (!info) return pst_error_set(err, PST_E_UNSUPPORTED, NULL, "weight type number %u is not known", type);
  if (!l && !is_float)
    return pst_error_set(err, PST_E_UNSUPPORTED, NULL, "weight type %s has no packed form", info->name);
  size_t multiple = is_float ? 1 : PST_MAX((size_t)info->block_elements, (size_t)PST_BLOCK);
  if (n_rows == 0 || n_cols == 0 || n_cols % multiple)
    return pst_error_set(err, PST_E_BAD_INPUT, NULL,
                         "a %s matrix of %zu rows and %zu columns: columns must be a positive multiple of %zu",
                         info->name, n_rows, n_cols, multiple);
  if (n_rows > (size_t)1 << 31 || n_cols > (size_t)1 << 24)
    return pst_error_set(err, PST_E_LIMIT, NULL, "a %s matrix of %zu rows and %zu columns is too large", info->name,
                         n_rows, n_cols);
  size_t group_bytes;
  if (is_float) {
    group_bytes = n_cols * info->block_bytes * PST_LANES;
  } else {
    size_t n_blocks = n_cols / PST_BLOCK;
    group_bytes = n_blocks * l->record_bytes + n_blocks / l->per_header * l->header_bytes;
  }
  *ret_matrix = (pst_kernels_matrix){
      .type = type,
      .is_float = is_float,
      .n_rows = n_rows,
      .n_cols = n_cols,
      .n_groups = (n_rows + PST_LANES - 1) / PST_LANES,
      .group_bytes = round_up(group_bytes, 64),
      .group_step = PST_LANES,
      .data = NULL,
  };
  return 0;
}

size_t pst_kernels_matrix_bytes(const pst_kernels_matrix *m) { return m->n_groups * m->group_bytes + 64; }

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* The codes of one row's block as eight words, one a step (little-endian memory, as GGUF's own). */
typedef struct code_words {
  uint32_t step[8];
} code_words;

static code_words code_words_of(const uint8_t codes[PST_BLOCK]) {
  code_words w;
  memcpy(w.step, codes, sizeof w.step);
  return w;
}

static void put_nibbles(uint8_t *dst, size_t lane, const code_words *c) {
  for (size_t v = 0; v < 4; v++)
    pst_store_u32(dst + v * 64 + lane * 4, (c->step[2 * v] & 0x0f0f0f0fu) | (c->step[2 * v + 1] & 0x0f0f0f0fu) << 4);
}

/* Bit `bit` of every code. */
static void put_high1(uint8_t *dst, size_t lane, const code_words *c, unsigned bit) {
  uint32_t word = 0;
  for (size_t s = 0; s < 8; s++) word |= ((c->step[s] >> bit) & 0x01010101u) << s;
  pst_store_u32(dst + lane * 4, word);
}

/* Bits `bit` and `bit`+1 of every code. */
static void put_pairs(uint8_t *dst, size_t lane, const code_words *c, unsigned bit) {
  for (size_t h = 0; h < 2; h++) {
    uint32_t word = 0;
    for (size_t j = 0; j < 4; j++) word |= ((c->step[4 * h + j] >> bit) & 0x03030303u) << (2 * j);
    pst_store_u32(dst + h * 64 + lane * 4, word);
  }
}

/* Writes the codes of one row and returns where the record's scales begin. */
static uint8_t *put_codes(pst_kernels_codes kind, uint8_t *rec, size_t lane, const code_words *c) {
  switch (kind) {
  case PST_CODES_NIBBLE:
  case PST_CODES_LOOKUP: put_nibbles(rec, lane, c); return rec + 256;
  case PST_CODES_NIBBLE_HIGH1:
    put_nibbles(rec, lane, c);
    put_high1(rec + 256, lane, c, 4);
    return rec + 320;
  case PST_CODES_NIBBLE_HIGH2:
    put_nibbles(rec, lane, c);
    put_pairs(rec + 256, lane, c, 4);
    return rec + 384;
  case PST_CODES_CRUMB: put_pairs(rec, lane, c, 0); return rec + 128;
  case PST_CODES_CRUMB_HIGH1:
    put_pairs(rec, lane, c, 0);
    put_high1(rec + 128, lane, c, 2);
    return rec + 192;
  case PST_CODES_BYTE: break;
  }
  for (size_t s = 0; s < 8; s++) pst_store_u32(rec + s * 64 + lane * 4, c->step[s]);
  return rec + 512;
}

/* The f16 fields of a source block, as they go into a record or header: offsets of d and of the minimum (-1: none). */
static void source_halves(uint32_t type, int *d_at, int *m_at) {
  *m_at = -1;
  switch (type) {
  case PST_TYPE_Q2_K:
    *d_at = 80;
    *m_at = 82;
    break;
  case PST_TYPE_Q3_K: *d_at = 108; break;
  case PST_TYPE_Q6_K: *d_at = 208; break;
  case PST_TYPE_Q4_1:
  case PST_TYPE_Q5_1:
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_K:
    *d_at = 0;
    *m_at = 2;
    break;
  default: *d_at = 0; break;
  }
}

static void put_halves(uint32_t type, const uint8_t *src, uint8_t *dst, size_t lane) {
  int d_at, m_at;
  source_halves(type, &d_at, &m_at);
  memcpy(dst + lane * 2, src + d_at, 2);
  if (m_at >= 0) memcpy(dst + 32 + lane * 2, src + m_at, 2);
}

static void put_scale_bytes(uint32_t type, const uint8_t *row, size_t block, uint8_t *dst, size_t lane) {
  uint8_t sc[2], mn[2];
  pst_kernels_decode_scales(type, row, block, sc, mn);
  switch (type) {
  case PST_TYPE_Q2_K:
    dst[lane] = (uint8_t)(sc[0] | mn[0] << 4);
    dst[16 + lane] = (uint8_t)(sc[1] | mn[1] << 4);
    break;
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_K:
    dst[lane] = sc[0];
    dst[16 + lane] = mn[0];
    break;
  case PST_TYPE_IQ4_XS: dst[lane] = sc[0]; break;
  default: /* Q3_K, Q6_K */
    dst[lane] = sc[0];
    dst[16 + lane] = sc[1];
    break;
  }
}

static void pack_row(const pst_kernels_matrix *m, const pst_kernels_layout *l, const uint8_t *row, size_t lane,
                     uint8_t *group) {
  const pst_kernels_type_row *info = pst_kernels_type_info(m->type);
  size_t blocks_per_source = info->block_elements / PST_BLOCK;
  for (size_t b = 0; b < m->n_cols / PST_BLOCK; b++) {
    const uint8_t *src = row + b / blocks_per_source * info->block_bytes;
    uint8_t *rec = group + (pst_layout_record(l, group, b) - group);
    uint8_t codes[PST_BLOCK];
    pst_kernels_decode_codes(m->type, row, b, codes);
    code_words words = code_words_of(codes);
    uint8_t *scales = put_codes((pst_kernels_codes)l->codes, rec, lane, &words);
    if (l->header_bytes) {
      put_scale_bytes(m->type, row, b, scales, lane);
      if (b % l->per_header == 0) put_halves(m->type, src, group + (pst_layout_header(l, group, b) - group), lane);
    } else if (m->type == PST_TYPE_MXFP4) {
      scales[lane] = src[0];
    } else {
      put_halves(m->type, src, scales, lane);
    }
  }
}

/* Column by column, so that what is written lies together. */
static void pack_float_rows(const pst_kernels_matrix *m, const uint8_t *rows, size_t n_lanes, uint8_t *group) {
  size_t n = m->n_cols;
  if (m->type == PST_TYPE_F32) {
    for (size_t c = 0; c < n; c++)
      for (size_t lane = 0; lane < n_lanes; lane++)
        memcpy(group + (c * PST_LANES + lane) * 4, rows + (lane * n + c) * 4, 4);
    return;
  }
  for (size_t c = 0; c < n; c++)
    for (size_t lane = 0; lane < n_lanes; lane++)
      memcpy(group + (c * PST_LANES + lane) * 2, rows + (lane * n + c) * 2, 2);
}

void pst_kernels_matrix_pack(const pst_kernels_matrix *m, const void *src, size_t group_begin, size_t group_end,
                             uint8_t *dst) {
  const pst_kernels_layout *l = pst_kernels_layout_of(m->type);
  size_t row_bytes = pst_kernels_row_bytes(m->type, m->n_cols);
  for (size_t g = group_begin; g < group_end; g++) {
    uint8_t *group = dst + g * m->group_bytes;
    size_t n_lanes = PST_MIN((size_t)PST_LANES, m->n_rows - g * PST_LANES);
    /* Missing rows of the last group are zeros: scale 0, code 0. So is the padding of every group, which makes packing deterministic. */
    if (n_lanes < PST_LANES)
      memset(group, 0, m->group_bytes);
    else
      memset(group + m->group_bytes - 64, 0, 64);
    const uint8_t *rows = (const uint8_t *)src + (g - group_begin) * PST_LANES * row_bytes;
    if (m->is_float) pack_float_rows(m, rows, n_lanes, group);
    for (size_t lane = 0; lane < n_lanes && !m->is_float; lane++) pack_row(m, l, rows + lane * row_bytes, lane, group);
  }
  if (group_end == m->n_groups) memset(dst + m->n_groups * m->group_bytes, 0, 64);
}

/* ---- reading back ----------------------------------------------------------------------------------------------- */

/* Codes of one row of a record; returns where its scales begin. */
static const uint8_t *get_codes(pst_kernels_codes kind, const uint8_t *rec, size_t lane, uint8_t codes[PST_BLOCK]) {
  const uint8_t *high = rec + (kind >= PST_CODES_CRUMB ? 128 : 256);
  for (size_t i = 0; i < PST_BLOCK; i++) {
    size_t s = i / 4, at = lane * 4 + i % 4;
    unsigned nibble = (unsigned)(rec[s / 2 % 4 * 64 + at] >> (4 * (s & 1))) & 15u;
    unsigned crumb = (unsigned)(rec[s / 4 * 64 + at] >> (2 * (s & 3))) & 3u;
    switch (kind) {
    case PST_CODES_NIBBLE:
    case PST_CODES_LOOKUP: codes[i] = (uint8_t)nibble; break;
    case PST_CODES_NIBBLE_HIGH1: codes[i] = (uint8_t)(nibble | ((high[at] >> s) & 1u) << 4); break;
    case PST_CODES_NIBBLE_HIGH2:
      codes[i] = (uint8_t)(nibble | (((unsigned)high[s / 4 * 64 + at] >> (2 * (s & 3))) & 3u) << 4);
      break;
    case PST_CODES_CRUMB: codes[i] = (uint8_t)crumb; break;
    case PST_CODES_CRUMB_HIGH1: codes[i] = (uint8_t)(crumb | ((high[at] >> s) & 1u) << 2); break;
    case PST_CODES_BYTE: codes[i] = rec[s * 64 + at]; break;
    }
  }
  static const uint16_t code_bytes[] = {256, 320, 384, 512, 256, 128, 192};
  return rec + code_bytes[kind];
}

static void unpack_scales(uint32_t type, const uint8_t *header, const uint8_t *scales, size_t lane,
                          pst_kernels_row_block *ret) {
  const pst_kernels_layout *l = pst_kernels_layout_of(type);
  if (!l->header_bytes) {
    ret->d[0] = type == PST_TYPE_MXFP4 ? pst_kernels_e8m0_half(scales[lane]) : pst_load_half(scales + 2 * lane);
    ret->m[0] = l->has_min ? pst_load_half(scales + 32 + 2 * lane) : 0.0f;
    ret->d[1] = ret->d[0];
    ret->m[1] = ret->m[0];
    return;
  }
  float d = pst_load_half(header + 2 * lane);
  float dmin = l->has_min ? pst_load_half(header + 32 + 2 * lane) : 0.0f;
  for (size_t h = 0; h < 2; h++) {
    uint8_t byte = scales[(l->halves ? 16 * h : 0) + lane];
    ret->m[h] = 0.0f;
    if (type == PST_TYPE_Q2_K) {
      ret->d[h] = d * (float)(byte & 15);
      ret->m[h] = -(dmin * (float)(byte >> 4));
    } else if (l->has_min) {
      ret->d[h] = d * (float)byte;
      ret->m[h] = -(dmin * (float)scales[16 + lane]);
    } else {
      ret->d[h] = d * (float)(int8_t)byte;
    }
  }
}

void pst_kernels_unpack(uint32_t type, const uint8_t *group, size_t block, size_t lane, pst_kernels_row_block *ret) {
  const pst_kernels_layout *l = pst_kernels_layout_of(type);
  const int8_t *table = type == PST_TYPE_MXFP4 ? pst_kernels_mxfp4_values : pst_kernels_iq4_values;
  uint8_t codes[PST_BLOCK];
  const uint8_t *scales = get_codes((pst_kernels_codes)l->codes, pst_layout_record(l, group, block), lane, codes);
  for (int i = 0; i < PST_BLOCK; i++)
    ret->w[i] = l->codes == PST_CODES_LOOKUP ? table[codes[i]] : (int8_t)(codes[i] - l->offset);
  unpack_scales(type, pst_layout_header(l, group, block), scales, lane, ret);
}

void pst_kernels_matrix_row(const pst_kernels_matrix *m, size_t row, float *ret_out) {
  const uint8_t *group = m->data + row / PST_LANES * m->group_bytes;
  size_t lane = row % PST_LANES;
  if (m->is_float) {
    for (size_t c = 0; c < m->n_cols; c++) {
      size_t at = c * PST_LANES + lane;
      if (m->type == PST_TYPE_F32)
        ret_out[c] = pst_bits_to_float(pst_load_u32(group + 4 * at));
      else if (m->type == PST_TYPE_F16)
        ret_out[c] = pst_load_half(group + 2 * at);
      else
        ret_out[c] = pst_bfloat_widen(pst_load_u16(group + 2 * at));
    }
    return;
  }
  bool has_min = pst_kernels_layout_of(m->type)->has_min;
  for (size_t b = 0; b < m->n_cols / PST_BLOCK; b++) {
    pst_kernels_row_block rb;
    pst_kernels_unpack(m->type, group, b, lane, &rb);
    float *out = ret_out + b * PST_BLOCK;
    for (size_t i = 0; i < PST_BLOCK; i++) {
      float v = (float)rb.w[i] * rb.d[i / 16];
      out[i] = has_min ? v + rb.m[i / 16] : v;
    }
  }
}

/* ---- inputs and pages ------------------------------------------------------------------------------------------- */

size_t pst_kernels_input_bytes(size_t max_tokens, size_t n_cols) {
  size_t n_blocks = n_cols / PST_BLOCK;
  return round_up(max_tokens * n_cols, 64) + 2 * round_up(max_tokens * n_blocks * sizeof(float), 64) +
         round_up(max_tokens * n_blocks * 2 * sizeof(int16_t), 64) + 64;
}

void pst_kernels_input_init(pst_kernels_input *input, size_t max_tokens, size_t n_cols, void *memory) {
  size_t n_blocks = n_cols / PST_BLOCK;
  uint8_t *at = memory;
  *input = (pst_kernels_input){.n_cols = n_cols, .n_blocks = n_blocks, .max_tokens = max_tokens, .x = NULL};
  input->q = (int8_t *)at;
  at += round_up(max_tokens * n_cols, 64);
  input->d = (float *)(void *)at;
  at += round_up(max_tokens * n_blocks * sizeof(float), 64);
  input->s = (float *)(void *)at;
  at += round_up(max_tokens * n_blocks * sizeof(float), 64);
  input->half = (int16_t *)(void *)at;
}

size_t pst_kernels_page_bytes(uint32_t kv_type, size_t head_dim) {
  if (kv_type == PST_TYPE_F16) return PST_PAGE * head_dim * 2;
  return PST_PAGE * head_dim + PST_PAGE * pst_page_blocks(head_dim) * 2;
}
