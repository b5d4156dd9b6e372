/* A LoRA adapter as the forward pass reads it. */
#ifndef PST_ENGINE_ADAPTER_H
#define PST_ENGINE_ADAPTER_H

#include <stdatomic.h>

#include "engine/model.h"

/* The products of a layer that take an adapter. */
typedef enum pst_engine_adapter_slot {
  PST_ENGINE_ADAPT_NONE,
  PST_ENGINE_ADAPT_Q,
  PST_ENGINE_ADAPT_K,
  PST_ENGINE_ADAPT_V,
  PST_ENGINE_ADAPT_O,
  PST_ENGINE_ADAPT_GATE,
  PST_ENGINE_ADAPT_UP,
  PST_ENGINE_ADAPT_DOWN,
  PST_ENGINE_ADAPT_SLOTS,
} pst_engine_adapter_slot;

/* Folds of a matrix, at most. */
enum { PST_ENGINE_ADAPTER_FOLDS = 8 };

/* out += b (a x).
 *
 * Beside a float matrix both are floats, and the scale is in b. Beside a quantized one both are Q4_0 or Q8_0, whose products read the quantized input that the base reads.
 * A packed matrix has rows by 16 and columns by 32, of which a small rank would leave most empty: its matrices are folded. Row k * rank + r of the folded a has
 * the k-th part of row r's columns. Column k * width + c of row 16 j + i of the folded b is column c of row 16 (j * b_folds + k) + i, width being 32 / b_folds:
 * lane i of base group j * b_folds + k. */
typedef struct pst_engine_adapter_part {
  size_t rank, n_in;       /* rank 0: there is none */
  size_t a_folds, b_folds; /* 0: floats */
  float factor;            /* quantized: of a x */
  const float *rows;       /* floats: a, [rank][PST_KERNELS_DOT_COLS(n_in)] */
  pst_kernels_matrix a;    /* quantized: [a_folds * rank][n_in / a_folds] */
  pst_kernels_matrix
      b; /* floats: [n_out][rank]; quantized, folded: [16 * ceil(n_groups / b_folds)][32], else [n_out][rank, by 32] */
} pst_engine_adapter_part;

struct pst_engine_adapter {
  atomic_int n_refs;
  pst_engine_adapter_info info;
  char *notes[PST_ENGINE_LORA_NOTES];
  pst_engine_codes *codes;                                   /* NULL: none */
  pst_buf code_texts;                                        /* of all codes, in their order, one behind the other */
  size_t *code_ends;                                         /* [codes]: where each ends there */
  uint64_t model_key;                                        /* content_key of the model it was opened for */
  uint64_t key;                                              /* of what it computes; never 0 */
  pst_engine_adapter_part (*layers)[PST_ENGINE_ADAPT_SLOTS]; /* [n_layers] */
  int n_layers;
  uint8_t *memory;
  size_t memory_bytes;
};

static inline const pst_engine_adapter_part *pst_engine_adapter_part_of(const pst_engine_adapter *adapter, int layer,
                                                                        pst_engine_adapter_slot slot) {
  const pst_engine_adapter_part *p = &adapter->layers[layer][slot];
  return slot != PST_ENGINE_ADAPT_NONE && p->rank ? p : NULL;
}

#endif
