/* A model made ready: what the file says, as a table of layers over packed matrices. Immutable after open; shared by threads.
 *
 * To add an architecture: one row in the table of architectures.c that reads its keys and names its tensors; forward.c runs whatever the layer table
 * says, an absent norm or bias being a NULL pointer. */
#ifndef PST_ENGINE_MODEL_H
#define PST_ENGINE_MODEL_H

#include <penstock/engine.h>
#include <penstock/kernels.h>

#include <stdatomic.h>

#include "engine/gguf.h"
#include "engine/template.h"
#include "engine/tokenizer.h"

enum { PST_ENGINE_MAX_ROPES = 2, PST_ENGINE_MAX_EXPERTS = 1024, PST_ENGINE_MAX_USED_EXPERTS = 32 };
/* A convolution layer keeps, in every page of a sequence, the inputs of the page's last PST_ENGINE_CONV_KEPT positions so far: enough for the positions
 * behind it and for taking back drafts. */
enum { PST_ENGINE_CONV_KEPT = 16, PST_ENGINE_MAX_CONV = 8 };

/* One way to turn heads: every layer names one. */
typedef struct pst_engine_rope {
  double base, scale;   /* angle(i) = position * scale * base^(-2i/n_rot) / factors[i] */
  double magnitude;     /* of the turned vectors: 1, or YaRN's attention factor */
  const float *factors; /* [n_rot/2] or NULL; the model's */
  pst_kernels_rope style;
  int n_rot;
  float own_factors[PST_KERNELS_MAX_HEAD / 2]; /* where factors are computed, not the file's */
} pst_engine_rope;

/* One of the matrices that every expert of a layer has: expert e's begins `stride` bytes times e behind shape.data. */
typedef struct pst_engine_expert_matrix {
  pst_kernels_matrix shape; /* of expert 0 */
  size_t stride;
  const float *bias; /* [n_experts][rows] or NULL */
} pst_engine_expert_matrix;

/* A mixture of experts in the place of gate, up and down: the router's n_experts_used greatest logits choose, softmax over them weighs. */
typedef struct pst_engine_experts {
  pst_kernels_matrix router; /* [n_experts][n_embd]; n_rows 0: the layer has no experts */
  const float *router_bias;  /* [n_experts] or NULL */
  pst_kernels_matrix
      shared_gate; /* [1][n_embd]: its sigmoid weighs the shared expert, which is the layer's own gate, up and down; n_rows 0: none */
  pst_engine_expert_matrix gate, up, down; /* [n_ff_expert][n_embd] twice, [n_embd][n_ff_expert] */
  /* Beside the dense branch (Gemma 4): router and experts each read x through a norm of their own, both branches' outputs are normed and added up before the
   * layer's post_ffn_norm. router_norm NULL: the experts take the dense branch's place, and all of these are NULL. */
  const float *router_norm, *in_norm, *out_norm, *dense_norm; /* [n_embd] */
  const float *output_scale;                                  /* [n_experts] factor of an expert's weight */
} pst_engine_experts;

/* An embedding for every layer (Gemma 4 E2B and E4B): of the token, and projected from its embedding; together gated by x behind the feed-forward, and projected
 * back. The token's stand in the file as they are: a table that is only looked up is neither packed nor read as a whole. */
typedef struct pst_engine_per_layer {
  const pst_engine_gguf_tensor *tokens; /* [n_vocab][n_layers * width]; NULL: the model has none */
  pst_kernels_matrix project;           /* [n_layers * width][n_embd] */
  const float *norm;                    /* [width], of each layer's projection */
  int width;
} pst_engine_per_layer;

/* A short convolution in the place of attention (LFM2): in gives b, c and u of n_embd each; c * (causal convolution of b * u over positions), through
 * out. */
typedef struct pst_engine_conv {
  pst_kernels_matrix in, out; /* [3 * n_embd][n_embd], [n_embd][n_embd]; n_rows 0: the layer attends */
  const float *taps;          /* [n_embd][n_conv], the oldest position's first */
} pst_engine_conv;

/* weight and bias [n_embd]; weight NULL: there is no such norm. */
typedef struct pst_engine_layernorm {
  const float *weight, *bias;
} pst_engine_layernorm;

/* A gated delta net in the place of attention (Qwen 3.5): qkv through a causal convolution, then the recurrence of every value head over the
 * positions, its output normed and gated by z. Channels are queries and keys of n_delta_k heads, then values of n_delta_v heads. Value head h reads key head h
 * mod n_delta_k; where heads are grouped (Qwen 3 Next), key head h / (n_delta_v / n_delta_k), and `beta` holds the rows of both beta and alpha, by key head. */
typedef struct pst_engine_delta {
  pst_kernels_matrix qkv, z, beta,
      alpha; /* [channels][n_embd], [values][n_embd], [n_delta_v][n_embd] twice, or [2 n_delta_v][n_embd] and none */
  pst_kernels_matrix out;         /* [n_embd][values]; n_rows 0: the layer has none */
  const float *taps;              /* [channels][n_conv], the oldest position's first */
  const float *rate, *alpha_bias; /* [n_delta_v]: the state decays by exp(rate * softplus(alpha + bias)) */
  const float *norm;              /* [delta_head], of every head's output */
} pst_engine_delta;

/* Shapes: x is [n_embd]; matrices are [rows][cols]; norms are float32 rows; NULL: the layer does without. */
typedef struct pst_engine_layer {
  const float *attn_norm; /* [n_embd] before attention; NULL: x goes in as it is */
  int n_kv_heads, head_dim, n_ff;
  pst_kernels_matrix q, k,
      v; /* [n_heads * head_dim][n_embd], [n_kv_heads * head_dim][n_embd] twice; v without rows: keys are values, before their
                                 norm and turn; k too: the layer reads what layer `keeper` keeps */
  const float *q_bias, *k_bias, *v_bias;
  const float *q_norm,
      *k_norm; /* before rope: [head_dim], each head by itself, or with norm_whole [n_heads * head_dim], all at once */
  bool norm_whole;
  bool norm_values;            /* every head of a value, without a weight */
  pst_kernels_matrix o;        /* [n_embd][n_heads * head_dim] */
  const float *o_bias;         /* [n_embd] */
  const float *sinks;          /* [n_heads] scores that take part in the softmax without a value */
  const float *post_attn_norm; /* [n_embd] on the way back to x */
  const float *ffn_norm;
  pst_kernels_matrix gate, up,
      down; /* [n_ff][n_embd] twice, [n_embd][n_ff]; gate without rows: up alone is activated */
  const float *up_bias, *down_bias;
  pst_engine_layernorm attn_sum_norm, ffn_sum_norm; /* over x when the branch has been added to it */
  pst_engine_experts experts;
  pst_engine_conv conv;
  pst_engine_delta delta;
  const float *post_ffn_norm;
  pst_kernels_matrix per_layer_gate,
      per_layer_project;       /* [width][n_embd], [n_embd][width]; no rows: there is no embedding by layer */
  const float *per_layer_norm; /* [n_embd] on the way back to x */
  const float *output_scale;   /* [1] factor of x at the layer's end, or NULL */
  int keeper;                  /* the layer itself, or the earlier one whose keys and values it reads */
  int store; /* number of the layer among those that keep what it keeps: inputs of a convolution, or a recurrent state */
  int window; /* 0: attends to everything before; else to the last `window` positions */
  int rope;   /* index into the model's ropes; -1: positions leave no mark on queries and keys */
} pst_engine_layer;

/* How the states of an encoder's last layer become one vector. Numbered as in the file. */
typedef enum pst_engine_pooling {
  PST_ENGINE_POOL_NONE, /* the model is no encoder: it generates */
  PST_ENGINE_POOL_MEAN, /* of all tokens */
  PST_ENGINE_POOL_FIRST,
  PST_ENGINE_POOL_LAST,
} pst_engine_pooling;

/* What only encoders have: attention both ways, tables added to the embedding, and the way from states to a vector. */
typedef struct pst_engine_encoding {
  pst_engine_pooling pooling;
  pst_kernels_matrix positions; /* [n_ctx_train][n_embd], added to the embedding; no rows: there are none */
  const float *segment;         /* [n_embd], added too: token type 0; or NULL */
  pst_engine_layernorm embedding_norm;
  pst_kernels_matrix dense[2]; /* n_dense projections of the pooled vector, one after the other */
  int n_dense;
} pst_engine_encoding;

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
  const float *output_norm;     /* NULL: an encoder without one */
  float embedding_scale, residual_scale, logit_scale, attention_scale, norm_eps;
  float attention_softcap, logit_softcap; /* 0: none */
  /* Queries at position p are multiplied by 1 + beta * ln(1 + floor(p / length)); beta 0: they are not. */
  double temperature_beta, temperature_length;
  pst_kernels_gate gate;
  int n_experts, n_experts_used, n_ff_expert; /* 0: no layer has experts */
  int n_ff_dense;                             /* most rows of a layer's gate and up: n_ff, or a shared expert's */
  int n_conv;                                 /* positions that a convolution sees; 0: no layer has one */
  int n_delta_k, n_delta_v, delta_head;       /* key and value heads of delta nets, and their size */
  bool delta_grouped;
  int n_conv_layers, n_delta_layers;
  bool gated_queries; /* a head's query is followed by the gate of its output: attn_q is [n_heads][2][head_dim] */
  pst_engine_encoding encoding;
  pst_engine_per_layer per_layer;
  void *packed; /* one block behind all packed matrices and norms; NULL: it is mapped */
  size_t packed_bytes;
  pst_map packed_map;   /* data NULL: it was packed here */
  uint64_t content_key; /* root of prefix keys: file identity */
};

/* Bytes that the keys and values of the layers before `layer` take in a page, each head's page behind the other: where this layer's begin. Layers that
 * read an earlier one's keep none; an encoder's are of no use behind their layer and all lie at 0. kv_type: F16 or Q8_0. */
size_t pst_engine_model_keys_bytes(const pst_engine_model *m, uint32_t kv_type, int layer);
/* Of all layers. */
size_t pst_engine_model_all_keys_bytes(const pst_engine_model *m, uint32_t kv_type);

/* Floats of one delta net's state of one sequence: [n_delta_v][delta_head keys][delta_head values], then the convolution's inputs at the last n_conv - 1
 * positions, position p's in row p mod (n_conv - 1). 0: the model has no delta net. */
size_t pst_engine_model_state_floats(const pst_engine_model *m);

/* As pst_engine_model_open, but no weight is read: a model to ask about (info.packed_bytes: what packing would take), not one to run. */
int pst_engine_model_examine(const char *path, pst_engine_model **ret_model, pst_error *err);

#endif
