/* The packed layout, private to the kernels. matrix.c builds it; reference.c and the ISA files read it.
 *
 * A group is 16 rows. A group's columns are cut in blocks of 32; each block of a group is one record, records follow one another (one
 * linear stream of reads). K-quants put a header with the 16 rows' super scales before each 8 records. Inside a record "step" s stands for
 * columns 4s..4s+3 of all 16 rows: 64 bytes, byte 4*row + i. One step is one 512-bit register (or two of 256, or four of 128 bits) whose
 * 32-bit lanes are the rows: the operand of a 4-way dot product against 4 broadcast activations.
 *
 *   nibbles  256 bytes: vector v (64 bytes): low nibble = step 2v, high nibble = step 2v+1
 *   high1     64 bytes: bit s of a byte = bit 4 of the code of step s
 *   high2    128 bytes: vector h, bits 2j..2j+1 of a byte = bits 4..5 of the code of step 4h+j
 *   bytes    512 bytes: signed codes, step after step
 *   crumbs   128 bytes: vector h, bits 2j..2j+1 of a byte = bits 0..1 of the code of step 4h+j
 *   scales   16 rows of f16, u8 or i8; two such vectors where each half of 16 columns has its own
 *
 *   type     header (per 8 records)   record
 *   Q4_0     -                        nibbles, d f16
 *   Q4_1     -                        nibbles, d f16, m f16
 *   Q5_0     -                        nibbles, high1, d f16
 *   Q5_1     -                        nibbles, high1, d f16, m f16
 *   Q8_0     -                        bytes, d f16
 *   IQ4_NL   -                        nibbles (codebook index), d f16
 *   MXFP4    -                        nibbles (codebook index), e8m0 u8
 *   Q2_K     d f16, dmin f16          crumbs, half-0 (scale | min << 4) u8, half-1 the same
 *   Q3_K     d f16                    crumbs, high1, half-0 scale i8, half-1 scale i8
 *   Q4_K     d f16, dmin f16          nibbles, scale u8, min u8
 *   Q5_K     d f16, dmin f16          nibbles, high1, scale u8, min u8
 *   Q6_K     d f16                    nibbles, high2, half-0 scale i8, half-1 scale i8
 *   IQ4_XS   d f16                    nibbles (codebook index), scale i8
 *   F32 F16 BF16: no records; column after column, 16 rows each
 *
 * (Q3_K's high1 holds bit 2 of the code.) */
#ifndef PST_KERNELS_LAYOUT_H
#define PST_KERNELS_LAYOUT_H

#include <penstock/kernels.h>

#define PST_LANES PST_KERNELS_GROUP
#define PST_BLOCK PST_KERNELS_BLOCK

/* How the codes of a record are stored. */
typedef enum pst_kernels_codes {
  PST_CODES_NIBBLE,       /* 4 bits */
  PST_CODES_NIBBLE_HIGH1, /* 5 bits */
  PST_CODES_NIBBLE_HIGH2, /* 6 bits */
  PST_CODES_BYTE,         /* signed 8 bits */
  PST_CODES_LOOKUP,       /* 4-bit index into 16 signed bytes */
  PST_CODES_CRUMB,        /* 2 bits */
  PST_CODES_CRUMB_HIGH1,  /* 3 bits */
} pst_kernels_codes;

typedef struct pst_kernels_layout {
  uint16_t record_bytes, header_bytes; /* header: before each `per_header` records, 0: none */
  uint8_t per_header;
  uint8_t codes;  /* pst_kernels_codes */
  uint8_t offset; /* weight = code - offset (in integers), then times the scale */
  bool halves;    /* two scales a block, one for each 16 columns */
  bool has_min;   /* a second term: min * (sum of the block's, or half's, activations) */
} pst_kernels_layout;

/* NULL: float or unknown type. */
const pst_kernels_layout *pst_kernels_layout_of(uint32_t type);

/* The record of block b in the group's bytes, and its header (undefined where the layout has none). */
static inline const uint8_t *pst_layout_header(const pst_kernels_layout *l, const uint8_t *group, size_t block) {
  size_t super_bytes = (size_t)l->header_bytes + (size_t)l->per_header * l->record_bytes;
  return group + (block / l->per_header) * super_bytes;
}
static inline const uint8_t *pst_layout_record(const pst_kernels_layout *l, const uint8_t *group, size_t block) {
  return pst_layout_header(l, group, block) + l->header_bytes + (block % l->per_header) * l->record_bytes;
}

/* One row's block in integers and its scales in float32: weight = d[half] * w + m[half]. Without halves both entries are equal; without a
 * minimum m is zero. The products d * scale are exact. */
typedef struct pst_kernels_row_block {
  int8_t w[PST_BLOCK];
  float d[2], m[2];
} pst_kernels_row_block;

/* Row `lane` of block b of a packed group. */
void pst_kernels_unpack(uint32_t type, const uint8_t *group, size_t block, size_t lane, pst_kernels_row_block *ret);
/* Block b of a row as it stands in a file. */
void pst_kernels_decode(uint32_t type, const uint8_t *row, size_t block, pst_kernels_row_block *ret);
/* The raw codes (before the offset; signed bytes for Q8_0; codebook indices) of the same. */
void pst_kernels_decode_codes(uint32_t type, const uint8_t *row, size_t block, uint8_t ret_codes[PST_BLOCK]);
/* The scale bytes of the same, widened to bytes: sc[half], mn[half]; Q6_K, Q3_K, IQ4_XS scales are signed. Types with a header only. */
void pst_kernels_decode_scales(uint32_t type, const uint8_t *row, size_t block, uint8_t ret_sc[2], uint8_t ret_mn[2]);

/* Where the half-precision (super-)scale stands in a block as it is in a file. */
size_t pst_kernels_scale_place(uint32_t type);

extern const int8_t pst_kernels_iq4_values[16];
extern const int8_t pst_kernels_mxfp4_values[16];
/* 2^(e - 128): half of the E8M0 scale, because the table of values is doubled. Exact for every e. */
float pst_kernels_e8m0_half(uint8_t e);

/* A page of keys is transposed, so that 16 positions are the lanes of a register; a page of values is not, so that 16 elements of the
 * output are. H = head_dim, NB = ceil(H / 32).
 *   F16:  keys [H][64] f16                                   values [64][H] f16
 *   Q8_0: keys [H/4][64][4] i8, then [NB][64] f16 scales     values [64][H] i8, then [NB][64] f16 scales */
#define PST_PAGE PST_KERNELS_PAGE
static inline size_t pst_page_blocks(size_t head_dim) { return (head_dim + PST_BLOCK - 1) / PST_BLOCK; }

/* One past the last position that the token at `position` sees. */
static inline size_t pst_attend_end(const pst_kernels_attend *a, size_t position) {
  if (!a->n_keys) return position + 1;
  return a->window ? PST_MIN(a->n_keys, position + a->window) : a->n_keys;
}

/* The tables, one per ISA file; NULL where this build or CPU lacks it (asked once, by dispatch.c). */
const pst_kernels *pst_kernels_table_scalar(void);
const pst_kernels *pst_kernels_table_avx2(void);
const pst_kernels *pst_kernels_table_avx512(void);
const pst_kernels *pst_kernels_table_neon(void);
const pst_kernels *pst_kernels_table_dotprod(void);
const pst_kernels *pst_kernels_table_i8mm(void);

#endif
