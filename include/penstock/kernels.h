/* Penstock kernels: the arithmetic of inference, and the weight types it knows. No model knowledge.
 *
 * The numbers of the element types are those of the GGUF file format, so that a type read from a file needs no translation.
 *
 * Exactness: reference.c defines every result, order of operations included; the other instruction sets give the same bits. An output
 * element of a product is one chain over the blocks of its row, so it depends on no batch size, tile, thread or chunk. Inputs must be
 * finite. Threads belong to the caller: every function here may run on any number of threads at once as long as the outputs and the
 * `work` buffers are different. */
#ifndef PENSTOCK_KERNELS_H
#define PENSTOCK_KERNELS_H

#include <penstock/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- element types (kernels/types.c) ---------------------------------------------------------------------------- */

/* name, number in GGUF, elements in a block, bytes of a block */
#define PST_KERNELS_TYPE_TABLE(X) \
  X(F32, 0, 1, 4)                 \
  X(F16, 1, 1, 2)                 \
  X(Q4_0, 2, 32, 18)              \
  X(Q4_1, 3, 32, 20)              \
  X(Q5_0, 6, 32, 22)              \
  X(Q5_1, 7, 32, 24)              \
  X(Q8_0, 8, 32, 34)              \
  X(Q2_K, 10, 256, 84)            \
  X(Q3_K, 11, 256, 110)           \
  X(Q4_K, 12, 256, 144)           \
  X(Q5_K, 13, 256, 176)           \
  X(Q6_K, 14, 256, 210)           \
  X(Q8_K, 15, 256, 292)           \
  X(IQ4_NL, 20, 32, 18)           \
  X(IQ4_XS, 23, 256, 136)         \
  X(I8, 24, 1, 1)                 \
  X(I16, 25, 1, 2)                \
  X(I32, 26, 1, 4)                \
  X(I64, 27, 1, 8)                \
  X(F64, 28, 1, 8)                \
  X(BF16, 30, 1, 2)               \
  X(MXFP4, 39, 32, 17)

typedef enum pst_kernels_type {
#define PST_KERNELS_TYPE_ENUM(name, number, elements, bytes) PST_TYPE_##name = number,
  PST_KERNELS_TYPE_TABLE(PST_KERNELS_TYPE_ENUM)
#undef PST_KERNELS_TYPE_ENUM
      PST_TYPE_END = 40, /* above every number in the table */
} pst_kernels_type;

typedef struct pst_kernels_type_row {
  const char *name;        /* "Q4_K" */
  uint32_t type;           /* pst_kernels_type */
  uint32_t block_elements; /* a row's length is a multiple of this */
  uint32_t block_bytes;
} pst_kernels_type_row;

/* The row of a type, or NULL for a number this program does not know. */
const pst_kernels_type_row *pst_kernels_type_info(uint32_t type);
/* The row by name, letter case ignored ("q4_k"); NULL if there is none. */
const pst_kernels_type_row *pst_kernels_type_find(pst_str name);
/* Bytes of a row of n_elements; 0 when n_elements is not a multiple of the block, the product overflows, or the type is unknown. */
size_t pst_kernels_row_bytes(uint32_t type, uint64_t n_elements);

/* ---- rows as they stand in a file (kernels/quantize.c, kernels/dequantize.c) -------------------------------------- */

/* One row of n elements of `type` to float32, by the format's own formula. Returns 0, PST_E_UNSUPPORTED (no such weight type) or
 * PST_E_BAD_INPUT (n is not a multiple of the block). */
int pst_kernels_dequantize_row(uint32_t type, const void *src, size_t n, float *ret_out);
/* float32 to one row of `type` (F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS), with a search for the scales that lowers the
 * squared error. `importance`: weight of each element's squared error, positive, [n]; NULL: all alike. Errors as above, and PST_E_LIMIT
 * when a value is too large for the type's half-precision scales. Inputs must be finite. The same floats give the same bytes. Source:
 * kernels/quantize.c. */
int pst_kernels_quantize_row(uint32_t type, const float *src, size_t n, const float *importance, void *ret_dst);

/* A block's scales as they are read: element i with code c is scale[i] * (low + c) + min[i], or scale[i] * levels[c], 0 <= c <= high - low. */
#define PST_KERNELS_MAX_BLOCK 256
typedef struct pst_kernels_grid {
  float scale[PST_KERNELS_MAX_BLOCK], min[PST_KERNELS_MAX_BLOCK];
  int low, high;
  const int8_t *levels; /* ascending; NULL: whole numbers from low on */
} pst_kernels_grid;
/* For those who choose codes themselves (error feedback): the grid of a block that pst_kernels_quantize_row wrote. PST_E_UNSUPPORTED: F32, F16, BF16 and types
 * that are not written here. */
int pst_kernels_block_grid(uint32_t type, const void *block, pst_kernels_grid *ret_grid);
/* Multiplies a block's scales, minima included, as far as half precision goes. PST_E_LIMIT: beyond its range, the block is as it was. */
int pst_kernels_block_stretch(uint32_t type, float factor, void *block);
/* Replaces the codes of a block of such a type, and nothing else; codes [block_elements] within the grid's range. */
void pst_kernels_block_put(uint32_t type, const uint8_t *codes, void *block);
float pst_kernels_half_to_float(uint16_t h);
uint16_t pst_kernels_half_from_float(float f); /* round to nearest even; overflow gives infinity */

/* ---- packed matrices (kernels/matrix.c) --------------------------------------------------------------------------- */

/* Rows in a group: a group's rows are the lanes of a vector register. Work is divided among threads by groups. */
#define PST_KERNELS_GROUP 16
/* Columns that share one activation scale, and one link of a row's chain of sums. */
#define PST_KERNELS_BLOCK 32

/* A weight matrix [n_rows][n_cols] in the layout of the kernels, the same for every instruction set (matrix.c draws it). About the
 * file's bytes per weight; rows are padded with zeros to whole groups. Plain data: the caller owns the memory at `data`. */
typedef struct pst_kernels_matrix {
  uint32_t type; /* pst_kernels_type */
  bool is_float; /* F32, F16, BF16: the product reads pst_kernels_input.x and no quantized values */
  size_t n_rows, n_cols;
  size_t n_groups; /* ceil(n_rows / 16) */
  size_t
      group_bytes; /* bytes of one group, a multiple of 64 for quantized types where the format allows, at least of 16 */
  size_t
      group_step; /* quantized: from a group's first element to the next one's in what matmul writes; 16 unless its owner lays groups apart */
  const uint8_t *data; /* n_groups * group_bytes, 64-byte aligned, readable 64 bytes past its end */
} pst_kernels_matrix;

/* Tells one packed layout from another, for whoever keeps packed weights in a file. 0: no memory. Source: kernels/layout_id.c. */
uint64_t pst_kernels_layout_id(void);

/* Checks type and shape and fills everything but `data` (NULL). PST_E_UNSUPPORTED: the type has no packed form. PST_E_BAD_INPUT: a
 * dimension is zero, or n_cols no multiple of 32 (of 256 for K-quants; of 1 for float types). PST_E_LIMIT: too large. */
int pst_kernels_matrix_init(uint32_t type, size_t n_rows, size_t n_cols, pst_kernels_matrix *ret_matrix,
                            pst_error *err);
/* Bytes to allocate for `data`: the groups and 64 readable bytes behind them. */
size_t pst_kernels_matrix_bytes(const pst_kernels_matrix *m);
/* Packs groups [group_begin, group_end) into dst, the memory that will be m->data. src: the rows of these groups as they stand in the file,
 * from the first row of group_begin on. Different ranges may run on different threads. */
void pst_kernels_matrix_pack(const pst_kernels_matrix *m, const void *src, size_t group_begin, size_t group_end,
                             uint8_t *dst);
/* Row `row` as float32, bit-equal to pst_kernels_dequantize_row of the source row: embedding lookup. */
void pst_kernels_matrix_row(const pst_kernels_matrix *m, size_t row, float *ret_out);

/* ---- screens (kernels/screen.c) ----------------------------------------------------------------------------------- */

/* A coarse copy of a matrix and a bound: an element of the product with the matrix, as computed, differs from that with `codes` by at most
 * radius[row] * reach, where reach is the length of the input. Plain data: the caller owns the memory. */
typedef struct pst_kernels_screen {
  pst_kernels_matrix codes; /* [n_rows][n_cols] of the matrix, 5 bits a weight */
  const float *radius;      /* [n_groups * 16] */
} pst_kernels_screen;
/* Whether looking for the greatest elements through a screen reads less than the whole product of this matrix. */
bool pst_kernels_screen_pays(const pst_kernels_matrix *w);
/* The shape of the screen of `w`, without data. PST_E_BAD_INPUT: as pst_kernels_matrix_init. */
int pst_kernels_screen_init(const pst_kernels_matrix *w, pst_kernels_screen *ret_screen);
size_t pst_kernels_screen_radius_bytes(const pst_kernels_screen *s);
/* Makes groups [group_begin, group_end). src: their rows as in matrix_pack, of the matrix's type; codes: the memory that will be
 * s->codes.data; radius: s->radius, whole. Different ranges may run on different threads. PST_E_NOMEM. */
int pst_kernels_screen_pack(const pst_kernels_screen *s, uint32_t type, const void *src, size_t group_begin,
                            size_t group_end, uint8_t *codes, float *radius);

/* ---- inputs of products ------------------------------------------------------------------------------------------- */

/* Activations of up to max_tokens tokens, quantized per token and block of 32: q = round_half_even(x * 127/amax). Filled by
 * quantize, rmsnorm_quantize and gated_quantize of the table below. */
typedef struct pst_kernels_input {
  size_t n_cols, n_blocks, max_tokens;
  int8_t *q;      /* [max_tokens][n_cols], in [-127, 127] */
  float *d;       /* [max_tokens][n_blocks] scale: x is about d * q */
  float *s;       /* [max_tokens][n_blocks] d * (sum of q over the block) */
  int16_t *half;  /* [max_tokens][n_blocks][2] sum of q over each 16 of the block */
  const float *x; /* [max_tokens][n_cols] the unquantized rows: set by the caller, read for is_float matrices only */
} pst_kernels_input;
size_t pst_kernels_input_bytes(size_t max_tokens, size_t n_cols);
/* Lays an input out in `memory` (64-byte aligned, of input_bytes). n_cols must be a multiple of 32 unless only `x` will be used. */
void pst_kernels_input_init(pst_kernels_input *input, size_t max_tokens, size_t n_cols, void *memory);

/* The length of a token's quantized row, rounded up: what a screen's radius is multiplied by. */
float pst_kernels_screen_reach(const pst_kernels_input *input, size_t token);

/* ---- attention ---------------------------------------------------------------------------------------------------- */

/* Positions in a page of keys or values: the fixed block of the softmax. Block b holds positions [64 b, 64 b + 64). */
#define PST_KERNELS_PAGE 64

/* The largest head_dim of attention. */
#define PST_KERNELS_MAX_HEAD 512

/* Bytes of one page of one KV head, keys and values alike; kv_type F16 or Q8_0; head_dim a multiple of 8 up to MAX_HEAD. Page data must be
 * 64-byte aligned; it need not be cleared. Layout: kernels/matrix.c. */
size_t pst_kernels_page_bytes(uint32_t kv_type, size_t head_dim);

/* Queries of n_tokens consecutive positions of one sequence, for the n_heads query heads that share one KV head. */
typedef struct pst_kernels_attend {
  uint32_t kv_type; /* PST_TYPE_F16 or PST_TYPE_Q8_0 */
  size_t head_dim;  /* multiple of 8, 8..MAX_HEAD */
  size_t n_heads;   /* query heads of this KV head */
  size_t n_tokens;
  size_t position; /* absolute position of the first token; token i sees positions <= position + i */
  size_t window;   /* 0: all; else token i sees only positions > position + i - window */
  size_t
      n_keys; /* 0: as above. Else attention is bidirectional: tokens see all positions below n_keys, and of these with a window only those
                      less than `window` away. The tokens' own positions are below it. */
  float scale;     /* the query is multiplied by it first */
  float softcap;   /* 0: none; else scores become softcap * tanh(score / softcap) */
  const float *q;  /* token t, head h, at q + t * q_stride + h * head_dim */
  size_t q_stride; /* floats */
  float *out;      /* the same arrangement, out_stride floats between tokens */
  size_t out_stride;
  const uint8_t *const *pages; /* [block]; entries outside every token's window are not read */
  size_t k_offset, v_offset;   /* bytes from pages[block] to this head's key page and value page */
  const float *sinks;          /* [n_heads] or NULL: a score that takes part in the softmax and has no value */
} pst_kernels_attend;

/* Floats of one (block, token, head) of a partial result: maximum, sum, 14 unused, then head_dim outputs. */
#define PST_KERNELS_PART_FLOATS(head_dim) (16 + (size_t)(head_dim))

/* Bytes of work space a thread hands to matmul and attention; 64-byte aligned. */
#define PST_KERNELS_WORK_BYTES ((size_t)512 * 1024)

/* ---- products of float matrices (kernels/product.c) --------------------------------------------------------------- */

/* Columns of a panel: the right operand [depth][32] of a product, contiguous. Rows of the left one that go over a panel together. */
#define PST_KERNELS_PANEL 32
#define PST_KERNELS_STRIP 12

/* Element (i, j) of a matrix is data[i * row + j * col]; one of the strides is 1. */
typedef struct pst_kernels_floats {
  const float *data;
  size_t row, col;
} pst_kernels_floats;

/* ---- the table ---------------------------------------------------------------------------------------------------- */

typedef enum pst_kernels_gate {
  PST_KERNELS_SILU,
  PST_KERNELS_GELU_TANH,      /* the tanh form */
  PST_KERNELS_SIGMOID,        /* sigmoid(gate) * up */
  PST_KERNELS_SWIGLU_CLAMPED, /* g = min(gate, 7), u = clamp(up, -7, 7): g * sigmoid(1.702 g) * (u + 1) (gpt-oss) */
  PST_KERNELS_GELU_ERF        /* x Phi(x) itself */
} pst_kernels_gate;
typedef enum pst_kernels_rope {
  PST_KERNELS_ROPE_PAIRS,  /* elements 2i and 2i+1 turn together (GGUF architecture llama) */
  PST_KERNELS_ROPE_HALVES, /* elements i and i + n_rot/2 ("neox": gemma3, qwen2, ...) */
} pst_kernels_rope;

/* Elements of a row as `dots` reads it. */
#define PST_KERNELS_DOT_COLS(n_cols) (((size_t)(n_cols) + 15) & ~(size_t)15)

/* One implementation. Shapes: rows of n contiguous floats unless said otherwise; no alignment is needed; outputs may be the inputs
 * where the text says so, otherwise they must not overlap. */
typedef struct pst_kernels {
  const char *name; /* "scalar", "avx2", "avx512", "neon", "dotprod", "i8mm" */

  /* Blocks [block_begin, block_end) of row x[n_cols] into token `token` of `input`. */
  void (*quantize)(const float *x, size_t block_begin, size_t block_end, pst_kernels_input *input, size_t token);
  /* out = x / rms(x) * weight, rms over n with eps added to the mean square. weight NULL: ones. out may be x. */
  void (*rmsnorm)(const float *x, const float *weight, size_t n, float eps, float *out);
  /* The same, quantized as token `token` of `input`; n = input->n_cols. out (NULL: not wanted) gets the floats too; may be x. */
  void (*rmsnorm_quantize)(const float *x, const float *weight, float eps, float *out, pst_kernels_input *input,
                           size_t token);
  /* out = (x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over n. weight NULL: ones; bias NULL: zeros. out may be x.
   * Ba et al. 2016, arXiv:1607.06450. */
  void (*layernorm)(const float *x, const float *weight, const float *bias, size_t n, float eps, float *out);
  /* out = activation(gate) * up (or what the kind says). up NULL: ones. out may be gate or up. */
  void (*gated)(pst_kernels_gate kind, const float *gate, const float *up, size_t n, float *out);
  /* The same for blocks [block_begin, block_end) of rows of input->n_cols, quantized. */
  void (*gated_quantize)(pst_kernels_gate kind, const float *gate, const float *up, size_t block_begin,
                         size_t block_end, pst_kernels_input *input, size_t token);
  /* out = x + y; out = x * factor. out may be an input. */
  void (*add)(const float *x, const float *y, size_t n, float *out);
  void (*scale)(const float *x, float factor, size_t n, float *out);
  /* out = cap * tanh(x / cap), cap > 0. out may be x. */
  void (*softcap)(const float *x, float cap, size_t n, float *out);
  /* Turns the first n_rot elements of each of n_heads heads (head_dim apart) in place. cos_sin: [n_rot/2] cosines, then sines. */
  void (*rope)(float *x, size_t n_heads, size_t head_dim, size_t n_rot, pst_kernels_rope style, const float *cos_sin);
  /* Index of the greatest element, the lowest of equals; n > 0. */
  size_t (*argmax)(const float *x, size_t n);
  /* Numbers, from `first` on, of the groups of 16 in which some x[i] + radius[i] * reach >= floor, in ascending order; how many. */
  size_t (*screen_pass)(const float *x, const float *radius, float reach, float floor, size_t n, int32_t first,
                        int32_t *ret_groups);
  /* One step of the gated delta rule (arXiv 2412.06464, 3.1) of one head, in place on state[n_k][n_v]: state *= decay; out = v less what the state
   * answers to k, times beta; state += k (outer) out; then out[n_v] = what the state answers to q. An answer to x is one chain over n_k. */
  void (*delta_rule)(float *state, size_t n_k, size_t n_v, const float *q, const float *k, const float *v, float decay,
                     float beta, float *out);
  /* Sum of exp(x - max). */
  float (*sum_exp)(const float *x, size_t n, float max);
  /* out = exp(x - shift). out may be x. */
  void (*exp_less)(const float *x, float shift, size_t n, float *out);
  /* panel[p * 32 + j] = from[j * stride + p] for p < n_deep, j < n_cols <= 32. */
  void (*panel_pack)(const float *from, size_t stride, size_t n_deep, size_t n_cols, float *panel);
  /* c[i * c_row + j] = (add ? that : 0) + sum over p < n_deep of a[i * a_row + p * a_col] * panel[p * 32 + j], for i < n_rows and j < n_cols <= 32:
   * one chain of fused multiply-adds in ascending p. */
  void (*panel_product)(size_t n_rows, size_t n_deep, const float *a, size_t a_row, size_t a_col, const float *panel,
                        float *c, size_t c_row, size_t n_cols, bool add);

  /* out[t * out_stride + r] = sum over columns of w[r][c] * input[t0 + t][c], for rows r of groups [group_begin, group_end), t <
   * n_tokens; groups that are laid apart: out[t * out_stride + r / 16 * group_step + r % 16]. add: the product is added to what out holds. Rows of other groups are not touched. work: WORK_BYTES of this thread. */
  void (*matmul)(const pst_kernels_matrix *w, const pst_kernels_input *input, size_t t0, size_t n_tokens,
                 size_t group_begin, size_t group_end, bool add, float *out, size_t out_stride, void *work);

  /* out[t][r] = row r . x[t], rows of PST_KERNELS_DOT_COLS(n_cols) elements, zeros behind n_cols; x [n_tokens][n_cols], out [n_tokens][n_rows].
   * For matrices of few rows: elements are lanes, not rows (an adapter's first matrix beside float weights). */
  void (*dots)(const float *rows, size_t n_rows, size_t n_cols, const float *x, size_t n_tokens, float *out);

  /* Stores one key or value row x[head_dim] at position `slot` (< 64) of a page. */
  void (*store_key)(uint32_t kv_type, size_t head_dim, const float *x, size_t slot, uint8_t *page);
  void (*store_value)(uint32_t kv_type, size_t head_dim, const float *x, size_t slot, uint8_t *page);
  /* Attention of all tokens and heads of `a` over all their blocks, into a->out. */
  void (*attention)(const pst_kernels_attend *a, void *work);
  /* The partial results of blocks [block_begin, block_end) into parts[block - block_begin][token][head][PART_FLOATS]: lets several
   * threads share one long sequence. attention_merge folds the parts of all blocks [block_begin, block_end) that any token sees, in
   * ascending order, into a->out: the same bits as `attention`. */
  void (*attention_part)(const pst_kernels_attend *a, size_t block_begin, size_t block_end, float *parts, void *work);
  void (*attention_merge)(const pst_kernels_attend *a, size_t block_begin, size_t block_end, const float *parts);
} pst_kernels;

/* The best table this CPU runs, chosen once; $PENSTOCK_CPU=scalar|avx2|avx512 (x86) or scalar|neon|dotprod|i8mm (ARM) asks for less. Never
 * NULL. */
const pst_kernels *pst_kernels_get(void);
/* The table by name, or NULL if this build or CPU does not have it. */
const pst_kernels *pst_kernels_find(const char *name);
/* For tests: makes pst_kernels_get return `k` from now on; NULL: back to the choice by CPU and environment. */
void pst_kernels_set(const pst_kernels *k);

/* c = (add ? c : 0) + a b, a [n_rows][n_deep], b [n_deep][n_cols], rows of c c_row floats apart. Every element is one chain of fused multiply-adds in
 * ascending depth, so that a product cut into tiles, its depth included (with add), has the bits of the whole. c overlaps neither operand. work:
 * PST_KERNELS_WORK_BYTES of this thread, 64-byte aligned. */
void pst_kernels_product(const pst_kernels *k, size_t n_rows, size_t n_cols, size_t n_deep, pst_kernels_floats a,
                         pst_kernels_floats b, float *c, size_t c_row, bool add, void *work);

/* Cosines and sines for one position: angle(i) = position * scale * base^(-2i/n_rot) / factors[i] (NULL: ones), i < n_rot/2.
 * out: [n_rot/2] cosines, then sines, each times `magnitude`. */
void pst_kernels_rope_table(double position, size_t n_rot, double base, double scale, const float *factors,
                            double magnitude, float *ret_out);
/* log(sum(exp(x))), n > 0. */
float pst_kernels_log_sum_exp(const float *x, size_t n);
#ifdef __cplusplus
}
#endif
#endif
