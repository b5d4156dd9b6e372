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

/* out += b (a x), the scale being in b. */
typedef struct pst_engine_adapter_part {
  size_t rank, n_in;    /* rank 0: there is none */
  uint32_t a_type;      /* F32 or F16 */
  const uint8_t *a;     /* [rank][PST_KERNELS_DOT_COLS(n_in)] */
  pst_kernels_matrix b; /* of a float type; [n_out][rank] */
} pst_engine_adapter_part;

struct pst_engine_adapter {
  atomic_int n_refs;
  pst_engine_adapter_info info;
  char *notes[PST_ENGINE_LORA_NOTES];
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
