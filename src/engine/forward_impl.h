/* What the files of the forward pass share: its work space, and a thread's way through a step. Private to forward.c (attention, dense branches, steps),
 * forward_branches.c (experts, convolutions, delta nets), forward_per_layer.c (embeddings by layer) and forward_head.c. */
#ifndef PST_ENGINE_FORWARD_IMPL_H
#define PST_ENGINE_FORWARD_IMPL_H

#include "engine/forward.h"
#include "engine/pool.h"

/* Stages that a layer has at most: each has a claim counter of its own. Tokens up to which every thread does the element-wise stages for itself. */
enum { PST_ENGINE_LAYER_STAGES = 40, PST_ENGINE_ALONE_TOKENS = 2 };
/* Tokens that an adapter is multiplied with at a time (with eight the kernels work straight on packed records); blocks of each one's quantized a x. */
enum { PST_ENGINE_STRIP_TOKENS = 8, PST_ENGINE_ADAPTED_BLOCKS = PST_ENGINE_ADAPTER_MAX_RANK / PST_KERNELS_BLOCK };

typedef struct pst_engine_pick {
  float value;
  int32_t token;
} pst_engine_pick;

/* A step's tokens by expert: token t's k-th choice is row row_of[t * used + k] of the routed inputs, which stand in order of experts. */
typedef struct pst_engine_routes {
  int *expert, *row_of; /* [max_tokens][n_experts_used] */
  float *weight;        /* the same: of the expert's output */
  float *logits;        /* [max_tokens][n_experts] */
  float *shared;        /* [max_tokens] gate of the shared expert */
  int *token_of;        /* of each row */
  int *first;           /* [n_experts + 1] first row of each expert */
  int *active;          /* [n_experts] experts that have rows, ascending */
  int n_active, n_rows;
  float *x, *gate_up, *gated,
      *out; /* rows of n_embd (only for float matrices), 2 n_ff_expert, n_ff_expert (as x), n_embd */
  pst_kernels_input in, in_gated; /* of rows */
} pst_engine_routes;

/* What one thread owns. */
typedef struct pst_engine_lane {
  void *work;                                         /* PST_KERNELS_WORK_BYTES */
  float *plain;                                       /* [PST_ENGINE_ALONE_TOKENS][n_embd] */
  pst_kernels_input narrow, wide, attended, recalled; /* for PST_ENGINE_ALONE_TOKENS tokens */
  pst_kernels_input per_layer;                        /* likewise */
  pst_kernels_input adapted;                          /* a x of STRIP_TOKENS tokens, ADAPTED_BLOCKS blocks each */
  pst_kernels_input shared_attended, shared_wide;     /* the step's shared ones, as wide as this layer's matrices */
  float *token_row;                                   /* [n_layers * per_layer.width] */
  pst_engine_pick picks[PST_ENGINE_HEAD_ROWS];        /* the best of each row among what this thread saw */
  float floors[PST_ENGINE_HEAD_ROWS];                 /* a true logit of each row */
  int n_passed;                                       /* groups that a screen let pass */
} pst_engine_lane;

/* Tokens [first, first + n) of the step, all of one adapter, or of none. */
typedef struct pst_engine_adapter_run {
  const pst_engine_adapter *adapter; /* may be NULL */
  int first, n;
} pst_engine_adapter_run;

/* Where a page has the keys and values of a layer: from `at` on, for each head a page of keys and one of values, of head_bytes each. */
typedef struct pst_engine_keys_place {
  size_t at, head_bytes;
} pst_engine_keys_place;

struct pst_engine_forward {
  pst_engine_model *model;
  const pst_kernels *k;
  uint32_t kv_type;
  int max_tokens, max_items, max_logits, max_blocks, n_threads;
  size_t page_bytes, keys_bytes;    /* keys_bytes: all layers' keys and values of one page */
  pst_engine_keys_place *keys;      /* [n_layers] */
  size_t n_query, n_qkv;            /* most floats of a layer's queries, and of queries, keys and values */
  bool any_float_down;              /* some layer's down matrix reads floats: `gated` is there */
  bool any_dense, any_float_expert; /* some layer has no experts; some expert's matrix reads floats */
  /* [max_tokens] rows of n_embd, n_embd, q+k+v or 3 n_embd, q or n_embd, n_embd, 2 n_ff, n_ff: of the widest layer. A layer's own rows lie close. */
  float *x, *normed, *qkv, *attended, *branch, *gate_up, *gated;
  float *gated_queries;     /* 2 q: a head's query, then its gate; only where the model has such */
  float *mixed, *convolved; /* of delta nets: channels, values and twice n_delta_v; channels */
  pst_engine_routes routes;
  pst_engine_adapter_run *runs;       /* [max_items] of the step, all its tokens */
  int n_runs;                         /* 0: every token is the base's */
  float *per_layer, *per_layer_gate;  /* [max_tokens] rows of n_layers * width, of width */
  pst_kernels_input in_per_layer;     /* of width */
  float *kept;                        /* [max_logits][n_embd] */
  float *turns[PST_ENGINE_MAX_ROPES]; /* [max_tokens][n_rot] cosines and sines */
  float *parts;                       /* of attention: [max_blocks][SPLIT_TOKENS][n_heads][PART_FLOATS] */
  pst_kernels_input in_normed, in_attended, in_recalled, in_gated, in_kept; /* shared inputs */
  pst_engine_lane *lanes;
  atomic_int *claims; /* one counter per stage */
  int n_claims;
  /* The step at hand. */
  const pst_engine_forward_item *items;
  int n_items, n_tokens, n_kept;
  int *item_of, *position; /* of each token in the step */
  int *item_start;         /* first token of each item in the step */
  /* The head at hand. */
  int head_first, head_n, head_n_groups;
  const int32_t *head_groups;
  float *head_out;
  float reaches[PST_ENGINE_HEAD_ROWS];
  bool screened;
  int screen_rest; /* tokens to go without a screen */
  void *memory;
};

/* One thread's way through a step: which stage it is in. */
typedef struct pst_engine_walk {
  pst_engine_forward *f;
  pst_engine_team *team;
  pst_engine_lane *mine;
  int stage;
  int layer; /* -1: none */
} pst_engine_walk;

static inline bool pst_engine_walk_claim(pst_engine_walk *w, int total, int chunk, int *ret_begin, int *ret_end) {
  int begin = atomic_fetch_add_explicit(&w->f->claims[w->stage], chunk, memory_order_relaxed);
  if (begin >= total) return false;
  *ret_begin = begin;
  *ret_end = PST_MIN(begin + chunk, total);
  return true;
}

static inline void pst_engine_walk_next(pst_engine_walk *w) {
  pst_engine_team_meet(w->team);
  w->stage++;
}

static inline bool pst_engine_walk_alone(const pst_engine_forward *f) { return f->n_tokens <= PST_ENGINE_ALONE_TOKENS; }

/* A product over an input that several share: out (+)= w * input, then a bias. */
typedef struct pst_engine_product {
  const pst_kernels_matrix *w;
  float *out;
  size_t stride;
  const float *bias;
  bool add;
  pst_engine_adapter_slot slot; /* what an adapter calls it; NONE: it takes none */
} pst_engine_product;

/* What adapters add to products over one input (forward_adapter.c): it is written where the products' rows are then to be added, by strips of tokens that the threads
 * share out. The rows of product i may be computed when done[i] is n_strips. */
typedef struct pst_engine_adapting {
  int n_strips;     /* of each product; 0: no run has a part, and nothing was written */
  atomic_int *done; /* [n_products] */
} pst_engine_adapting;
pst_engine_adapting pst_engine_walk_adapt(pst_engine_walk *w, const pst_engine_product *p, int n_products,
                                          const pst_kernels_input *input);

/* Several products over the same input, with what adapters add to them. */
void pst_engine_walk_products(pst_engine_walk *w, const pst_engine_product *p, int n_products,
                              const pst_kernels_input *input, int n_tokens);

/* The end of a branch: a product, and what comes between it and x, as far as the layer has it. */
typedef struct pst_engine_branch_end {
  const pst_kernels_matrix *matrix;
  const float *bias, *norm;
  pst_engine_layernorm sum_norm;
  pst_engine_adapter_slot slot;
  const float *sum_scale; /* [1] factor of x when the branch has been added to it */
} pst_engine_branch_end;

/* x += matrix * input, through a bias, a norm or a factor; then x itself may be normed. */
void pst_engine_walk_back(pst_engine_walk *w, pst_engine_branch_end b, const pst_kernels_input *input);
/* What a branch of a layer reads: x through its norm, or as it is. */
const pst_kernels_input *pst_engine_walk_enter(pst_engine_walk *w, const float *norm);
/* Rows of floats, quantized as an input: by each thread into `own` when tokens are few, else shared out into `shared`. */
const pst_kernels_input *pst_engine_walk_quantize(pst_engine_walk *w, const float *rows, pst_kernels_input *shared,
                                                  pst_kernels_input *own);
/* activation(gate) * up of the step's gate_up rows, as the input of the layer's down. */
const pst_kernels_input *pst_engine_walk_gate(pst_engine_walk *w, const pst_engine_layer *y);

/* Branches in the place of attention or of the dense feed-forward branch, norm to residual. */
void pst_engine_walk_conv(pst_engine_walk *w, const pst_engine_layer *y);
void pst_engine_walk_delta(pst_engine_walk *w, const pst_engine_layer *y);
void pst_engine_walk_experts(pst_engine_walk *w, const pst_engine_layer *y);

/* Embeddings by layer (forward_per_layer.c): what all layers are given, once the step's embeddings stand in x; and a layer's branch, with whose end the
 * layer ends. */
void pst_engine_walk_per_layer_inputs(pst_engine_walk *w);
void pst_engine_walk_per_layer(pst_engine_walk *w, const pst_engine_layer *y, int layer);

/* Floats of a token's queries; those of its keys, as of its values, are k.n_rows, 0 where the layer keeps none. */
static inline size_t pst_engine_query_floats(const pst_engine_model *m, const pst_engine_layer *y) {
  return (size_t)m->info.n_heads * (size_t)y->head_dim;
}
/* The factor at the layer's end, for the branch that is its last. */
static inline const float *pst_engine_last_scale(const pst_engine_layer *y) {
  return y->per_layer_gate.n_rows ? NULL : y->output_scale;
}
/* Makes an input that was laid out for as many columns or more one of n_cols. */
static inline void pst_engine_input_narrow(pst_kernels_input *input, size_t n_cols) {
  input->n_cols = n_cols;
  input->n_blocks = n_cols / PST_KERNELS_BLOCK;
}

/* Widths of a delta net's rows; 0 where the model has none. */
static inline size_t pst_engine_delta_values(const pst_engine_model *m) {
  return m->n_delta_layers ? (size_t)m->n_delta_v * (size_t)m->delta_head : 0;
}
static inline size_t pst_engine_delta_channels(const pst_engine_model *m) {
  return m->n_delta_layers ? 2 * (size_t)m->n_delta_k * (size_t)m->delta_head + pst_engine_delta_values(m) : 0;
}
static inline size_t pst_engine_delta_mixed(const pst_engine_model *m) {
  return m->n_delta_layers ? pst_engine_delta_channels(m) + pst_engine_delta_values(m) + 2 * (size_t)m->n_delta_v : 0;
}

/* Of one convolution layer in one page, behind the keys and values of all layers. */
static inline size_t pst_engine_conv_bytes(const pst_engine_model *m) {
  return (PST_ENGINE_CONV_KEPT * (size_t)m->info.n_embd * sizeof(float) + 63) & ~(size_t)63;
}

#endif
