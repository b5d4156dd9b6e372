/* A decoder's (or an encoder's) frozen weights, in float32 or in 8 bits, and its layer table: what forward and backward run over. Immutable once loaded; shared by threads. */
#ifndef PST_TUNE_MODEL_H
#define PST_TUNE_MODEL_H

#include <penstock/engine.h>
#include <penstock/kernels.h>
#include <penstock/tune.h>

/* y = w x + bias. n_out 0: the layer has none. */
typedef struct pst_tune_linear {
  size_t n_out, n_in;
  const float *w;            /* [n_out][n_in]; NULL: in 8 bits */
  pst_kernels_matrix packed; /* the same in 8 bits; data NULL: in float32 */
  const float *bias;         /* [n_out] or NULL */
} pst_tune_linear;

/* Linear layers that read the same input. */
typedef enum pst_tune_group {
  PST_TUNE_GROUP_QKV,
  PST_TUNE_GROUP_O,
  PST_TUNE_GROUP_GATE_UP,
  PST_TUNE_GROUP_DOWN,
  PST_TUNE_GROUP_COUNT
} pst_tune_group;

/* Roles [first, first + n) are the group's. */
typedef struct pst_tune_members {
  int first, n;
} pst_tune_members;
pst_tune_members pst_tune_group_members(pst_tune_group group);
pst_tune_group pst_tune_group_of(pst_engine_role role);

/* Norms as in pst_engine_decoder_layer, but the model's own. */
typedef struct pst_tune_layer {
  pst_tune_linear linear[PST_ENGINE_ROLE_COUNT];
  pst_kernels_matrix back[PST_TUNE_GROUP_COUNT]; /* in 8 bits: [n_in][the members' outputs one behind the other] */
  const float *attn_norm, *post_attn_norm, *ffn_norm, *post_ffn_norm, *q_norm, *k_norm;
  pst_engine_affine attn_sum_norm, ffn_sum_norm;
  size_t window; /* 0: everything before */
  int turn;      /* -1: none */
} pst_tune_layer;
/* Width of a group's input; of its members' outputs side by side. */
size_t pst_tune_group_inputs(const pst_tune_layer *layer, pst_tune_group group);
size_t pst_tune_group_outputs(const pst_tune_layer *layer, pst_tune_group group);

typedef struct pst_tune_model {
  size_t n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab, n_ctx;
  pst_tune_layer *layers;
  const float *embedding, *head; /* [n_vocab][n_embd]; the same memory when tied */
  pst_kernels_matrix packed_head,
      back_head; /* in 8 bits: [n_vocab][n_embd], [n_embd][n_vocab]; data NULL: in float32 */
  const float *output_norm;
  float embedding_scale, attention_scale, norm_eps;
  bool gelu;
  /* Encoders: as in pst_engine_decoder. Their texts are told apart by a trained head. */
  bool both_ways, pools_first;
  const float *positions, *segment; /* [n_ctx][n_embd], [n_embd]; NULL: none */
  pst_engine_affine embedding_norm;
  size_t n_labels; /* rows of the trained head */
  int n_turns;
  pst_engine_turn turns[2]; /* factors are the model's own */
  size_t bytes;             /* of both memories */
  void *memory, *packed_memory;
} pst_tune_model;

/* Copies a decoder's weights; the engine's model may go afterwards. In 8 bits what has rows or columns that are no multiple of 32 stays float32. Errors:
 * PST_E_UNSUPPORTED (architecture, by name; in 8 bits, a weight beyond half precision), PST_E_NOMEM. */
int pst_tune_model_load(const pst_engine_model *source, pst_tune_precision precision, pst_tune_model *ret_model,
                        pst_error *err);
/* The same of an encoder whose head tells n_labels labels apart. */
int pst_tune_model_load_encoder(const pst_engine_model *source, pst_tune_precision precision, size_t n_labels,
                                pst_tune_model *ret_model, pst_error *err);
void pst_tune_model_done(pst_tune_model *model);

#endif
