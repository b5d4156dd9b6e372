/* A model made ready: what the file says, as a table of layers over packed matrices. Immutable after open; shared by threads.
 *
 * To add an architecture: one row in the table of model.c that reads its keys and names its tensors; forward.c runs whatever the layer table
 * says, an absent norm or bias being a NULL pointer. */
#ifndef PST_ENGINE_MODEL_H
#define PST_ENGINE_MODEL_H

#include <penstock/engine.h>
#include <penstock/kernels.h>

#include <stdatomic.h>

#include "engine/gguf.h"
#include "engine/template.h"
#include "engine/tokenizer.h"

enum { PST_ENGINE_MAX_ROPES = 2 };

/* One way to turn heads: every layer names one. */
typedef struct pst_engine_rope {
  double base, scale;   /* angle(i) = position * scale * base^(-2i/n_rot) / factors[i] */
  const float *factors; /* [n_rot/2] or NULL; in the mapping's copy, owned by the model */
  pst_kernels_rope style;
  int n_rot;
} pst_engine_rope;

/* Shapes: x is [n_embd]; matrices are [rows][cols]; norms are float32 rows; NULL: the layer does without. */
typedef struct pst_engine_layer {
  const float *attn_norm;     /* [n_embd] before attention; NULL: x goes in as it is */
  pst_kernels_matrix q, k, v; /* [n_heads * head_dim][n_embd], [n_kv_heads * head_dim][n_embd] twice */
  const float *q_bias, *k_bias, *v_bias;
  const float *q_norm,
      *k_norm; /* before rope: [head_dim], each head by itself, or with norm_whole [n_heads * head_dim], all at once */
  bool norm_whole;
  pst_kernels_matrix o;        /* [n_embd][n_heads * head_dim] */
  const float *post_attn_norm; /* [n_embd] on the way back to x */
  const float *ffn_norm;
  pst_kernels_matrix gate, up, down; /* [n_ff][n_embd] twice, [n_embd][n_ff] */
  const float *post_ffn_norm;
  int window; /* 0: attends to everything before; else to the last `window` positions */
  int rope;   /* index into the model's ropes; -1: positions leave no mark on queries and keys */
} pst_engine_layer;

struct pst_engine_model {
  atomic_int n_refs;
  pst_engine_model_info info;
  pst_engine_gguf *gguf; /* stays open: tokenizer and metadata are views into it */
  pst_engine_tokenizer *tokenizer;
  pst_engine_template *chat_template; /* NULL: the file has none */
  const pst_kernels *kernels;
  pst_engine_layer *layers; /* info.n_layers */
  pst_engine_rope ropes[PST_ENGINE_MAX_ROPES];
  int n_ropes;
  pst_kernels_matrix embedding; /* [n_vocab][n_embd] */
  pst_kernels_matrix head;      /* the same memory as embedding when tied */
  pst_kernels_screen screen;    /* of the head; radius NULL: there is none */
  const float *output_norm;
  float embedding_scale, residual_scale, logit_scale, attention_scale, norm_eps;
  float attention_softcap, logit_softcap; /* 0: none */
  pst_kernels_gate gate;
  void *packed; /* one block behind all packed matrices and norms; NULL: it is mapped */
  size_t packed_bytes;
  pst_map packed_map;   /* data NULL: it was packed here */
  uint64_t content_key; /* root of prefix keys: file identity */
};

/* As pst_engine_model_open, but no weight is read: a model to ask about (info.packed_bytes: what packing would take), not one to run. */
int pst_engine_model_examine(const char *path, pst_engine_model **ret_model, pst_error *err);

#endif
