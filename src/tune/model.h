/* A decoder's frozen weights in float32, and its layer table: what forward and backward run over. Immutable once loaded; shared by threads. */
#ifndef PST_TUNE_MODEL_H
#define PST_TUNE_MODEL_H

#include <penstock/engine.h>

/* y = w x + bias. n_out 0: the layer has none. */
typedef struct pst_tune_linear {
  size_t n_out, n_in;
  const float *w;    /* [n_out][n_in] */
  const float *bias; /* [n_out] or NULL */
} pst_tune_linear;

/* Norms as in pst_engine_decoder_layer, but the model's own. */
typedef struct pst_tune_layer {
  pst_tune_linear linear[PST_ENGINE_ROLE_COUNT];
  const float *attn_norm, *post_attn_norm, *ffn_norm, *post_ffn_norm, *q_norm, *k_norm;
  size_t window; /* 0: everything before */
  int turn;      /* -1: none */
} pst_tune_layer;

typedef struct pst_tune_model {
  size_t n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab, n_ctx;
  pst_tune_layer *layers;
  const float *embedding, *head; /* [n_vocab][n_embd]; the same memory when tied */
  const float *output_norm;
  float embedding_scale, attention_scale, norm_eps;
  bool gelu;
  int n_turns;
  pst_engine_turn turns[2]; /* factors are the model's own */
  size_t bytes;             /* of memory */
  void *memory;
} pst_tune_model;

/* Copies a model's weights as float32; the engine's model may go afterwards. Errors: PST_E_UNSUPPORTED (architecture, by name), PST_E_NOMEM. progress
 * (NULL: silent) counts bytes and is begun and ended by the caller. */
int pst_tune_model_load(const pst_engine_model *source, pst_progress *progress, pst_tune_model *ret_model,
                        pst_error *err);
void pst_tune_model_done(pst_tune_model *model);

#endif
