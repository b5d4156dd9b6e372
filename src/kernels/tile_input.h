/* Where a tile of a product reads its activations, for the kernels of every instruction set. */
#ifndef PST_KERNELS_TILE_INPUT_H
#define PST_KERNELS_TILE_INPUT_H

#include "kernels/layout.h"

typedef struct tile_input {
  const int8_t *q; /* first token's row at the first block */
  const float *d, *s;
  const int16_t *half;
  size_t q_stride, stride; /* between tokens: bytes of q, blocks of the rest */
} tile_input;

static inline tile_input input_at(const pst_kernels_input *in, size_t token, size_t block_index) {
  size_t at = token * in->n_blocks + block_index;
  return (tile_input){
      .q = in->q + token * in->n_cols + block_index * PST_BLOCK,
      .d = in->d + at,
      .s = in->s + at,
      .half = in->half + 2 * at,
      .q_stride = in->n_cols,
      .stride = in->n_blocks,
  };
}

#endif
