/* The forward pass: the layer table run by a team of threads.
 *
 * Each layer is a handful of stages with a meeting of all threads between them. Inside a stage work is claimed in small chunks, so that a thread that was
 * held up costs the others little. Which thread computes an element never changes its value: every element is one chain in a fixed order
 * (kernels), so claiming order, batch and chunking leave no trace in the result.
 *
 * With few tokens the small element-wise stages are done by every thread for itself into its own buffers: cheaper than meeting. */
#include "engine/forward.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "engine/pool.h"
#include "engine/scheduler.h"

enum { MAX_STAGES_PER_LAYER = 26, ALONE_TOKENS = 2, ATTEND_TOKENS = 16, SPLIT_TOKENS = 4, SPLIT_BLOCKS = 8 };
/* Screens of the head: rows at once for which they pay, groups looked through at a time, tokens without a screen after one that let more
 * than half of the groups pass. */
enum { SCREEN_ROWS = 4, SCREEN_GROUPS = 256, SCREEN_REST = 32 };

/* What positions behind a taken-back draft look at is still kept. */
_Static_assert(PST_ENGINE_CONV_KEPT >= PST_ENGINE_MAX_DRAFT + PST_ENGINE_MAX_CONV - 1,
               "a convolution keeps too few inputs");

typedef struct pick {
  float value;
  int32_t token;
} pick;

/* A step's tokens by expert: token t's k-th choice is row row_of[t * used + k] of the routed inputs, which stand in order of experts. */
typedef struct routes {
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
} routes;

/* What one thread owns. */
typedef struct lane {
  void *work;                                         /* PST_KERNELS_WORK_BYTES */
  float *plain;                                       /* [ALONE_TOKENS][n_embd] */
  pst_kernels_input narrow, wide, attended, recalled; /* for ALONE_TOKENS tokens */
  pick picks[PST_ENGINE_HEAD_ROWS];                   /* the best of each row among what this thread saw */
  float floors[PST_ENGINE_HEAD_ROWS];                 /* a true logit of each row */
  int n_passed;                                       /* groups that a screen let pass */
} lane;

struct pst_engine_forward {
  pst_engine_model *model;
  const pst_kernels *k;
  uint32_t kv_type;
  int max_tokens, max_items, max_logits, max_blocks, n_threads;
  size_t page_bytes, head_page_bytes;
  bool any_float_down;              /* some layer's down matrix reads floats: `gated` is there */
  bool any_dense, any_float_expert; /* some layer has no experts; some expert's matrix reads floats */
  /* [max_tokens] rows of n_embd, n_embd, q+k+v or 3 n_embd, q or n_embd, n_embd, 2 n_ff, n_ff */
  float *x, *normed, *qkv, *attended, *branch, *gate_up, *gated;
  float *gated_queries; /* 2 q: a head's query, then its gate; only where the model has such */
  /* Of delta nets: channels, values and twice n_delta_v; channels; and one row of ones, channels long. */
  float *mixed, *convolved, *ones;
  routes routes;
  float *kept;                        /* [max_logits][n_embd] */
  float *turns[PST_ENGINE_MAX_ROPES]; /* [max_tokens][n_rot] cosines and sines */
  float *parts;                       /* of attention: [max_blocks][SPLIT_TOKENS][n_heads][PART_FLOATS] */
  pst_kernels_input in_normed, in_attended, in_recalled, in_gated, in_kept; /* shared inputs */
  lane *lanes;
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

/* ---- work space ---- */

typedef struct layout {
  uint8_t *base;
  size_t used;
} layout;

static void *place(layout *l, size_t bytes) {
  void *p = l->base ? l->base + l->used : NULL;
  l->used += (bytes + 63) & ~(size_t)63;
  return p;
}

static void place_input(layout *l, pst_kernels_input *input, size_t n, size_t cols) {
  void *p = place(l, pst_kernels_input_bytes(n, cols));
  if (p) pst_kernels_input_init(input, n, cols, p);
}

/* Widths of a delta net's rows; 0 where the model has none. */
static size_t delta_values(const pst_engine_model *m) {
  return m->n_delta_layers ? (size_t)m->n_delta_v * (size_t)m->delta_head : 0;
}
static size_t delta_channels(const pst_engine_model *m) {
  return m->n_delta_layers ? 2 * (size_t)m->n_delta_k * (size_t)m->delta_head + delta_values(m) : 0;
}
static size_t delta_mixed(const pst_engine_model *m) {
  return m->n_delta_layers ? delta_channels(m) + delta_values(m) + 2 * (size_t)m->n_delta_v : 0;
}

static void place_routes(pst_engine_forward *f, layout *l) {
  const pst_engine_model *m = f->model;
  routes *r = &f->routes;
  size_t n = (size_t)f->max_tokens, rows = n * (size_t)m->n_experts_used, experts = (size_t)m->n_experts;
  size_t embd = (size_t)m->info.n_embd, ff = (size_t)m->n_ff_expert, fl = sizeof(float);
  if (!experts) return;
  r->expert = place(l, rows * sizeof(int));
  r->row_of = place(l, rows * sizeof(int));
  r->weight = place(l, rows * fl);
  r->logits = place(l, n * experts * fl);
  r->shared = place(l, n * fl);
  r->token_of = place(l, rows * sizeof(int));
  r->first = place(l, (experts + 1) * sizeof(int));
  r->active = place(l, experts * sizeof(int));
  r->x = place(l, f->any_float_expert ? rows * embd * fl : 0);
  r->gate_up = place(l, rows * 2 * ff * fl);
  r->gated = place(l, f->any_float_expert ? rows * ff * fl : 0);
  r->out = place(l, rows * embd * fl);
  place_input(l, &r->in, rows, embd);
  place_input(l, &r->in_gated, rows, ff);
}

static void place_all(pst_engine_forward *f, layout *l) {
  const pst_engine_model_info *s = &f->model->info;
  size_t n = (size_t)f->max_tokens, embd = (size_t)s->n_embd, ff = f->any_dense ? (size_t)f->model->n_ff_dense : 0;
  size_t q = (size_t)s->n_heads * (size_t)s->head_dim, kv = (size_t)s->n_kv_heads * (size_t)s->head_dim,
         fl = sizeof(float), wide = PST_MAX(q + 2 * kv, f->model->n_conv_layers ? 3 * embd : 0),
         values = delta_values(f->model), attended = PST_MAX(q, values);
  f->x = place(l, n * embd * fl);
  f->normed = place(l, n * embd * fl);
  f->qkv = place(l, n * wide * fl);
  f->attended = place(l, n * PST_MAX(attended, f->model->n_conv_layers ? embd : 0) * fl);
  f->gated_queries = place(l, f->model->gated_queries ? n * 2 * q * fl : 0);
  f->mixed = place(l, n * delta_mixed(f->model) * fl);
  f->convolved = place(l, n * delta_channels(f->model) * fl);
  f->ones = place(l, delta_channels(f->model) * fl);
  f->branch = place(l, n * embd * fl);
  f->gate_up = place(l, n * 2 * ff * fl);
  f->gated = place(l, f->any_float_down ? n * ff * fl : 0);
  f->kept = place(l, (size_t)f->max_logits * embd * fl);
  for (int i = 0; i < f->model->n_ropes; i++) f->turns[i] = place(l, n * (size_t)f->model->ropes[i].n_rot * fl);
  f->parts = place(l, f->n_threads == 1 ? 0
                                        : (size_t)f->max_blocks * SPLIT_TOKENS * (size_t)s->n_heads *
                                              PST_KERNELS_PART_FLOATS((size_t)s->head_dim) * fl);
  place_input(l, &f->in_normed, n, embd);
  place_input(l, &f->in_attended, n, q);
  place_input(l, &f->in_recalled, n, values);
  place_input(l, &f->in_gated, n, ff);
  place_input(l, &f->in_kept, (size_t)f->max_logits, embd);
  place_routes(f, l);
  f->claims = place(l, (size_t)f->n_claims * sizeof *f->claims);
  f->item_of = place(l, n * sizeof(int));
  f->position = place(l, n * sizeof(int));
  f->item_start = place(l, (size_t)f->max_items * sizeof(int));
  f->lanes = place(l, (size_t)f->n_threads * sizeof *f->lanes);
  for (int t = 0; t < f->n_threads; t++) {
    lane unplaced = {0}, *y = f->lanes ? &f->lanes[t] : &unplaced;
    y->work = place(l, PST_KERNELS_WORK_BYTES);
    y->plain = place(l, ALONE_TOKENS * embd * fl);
    place_input(l, &y->narrow, ALONE_TOKENS, embd);
    place_input(l, &y->wide, ALONE_TOKENS, ff);
    place_input(l, &y->attended, ALONE_TOKENS, q);
    place_input(l, &y->recalled, ALONE_TOKENS, values);
  }
}

static bool both_ways(const pst_engine_model *m) { return m->encoding.pooling != PST_ENGINE_POOL_NONE; }

/* Layers whose keys and values have a place of their own: an encoder's are of no use behind their layer. */
static size_t stored_layers(const pst_engine_model *m) { return both_ways(m) ? 1 : (size_t)m->n_attention_layers; }

static uint32_t kv_type_of(pst_engine_kv kv) { return kv == PST_ENGINE_KV_Q8_0 ? PST_TYPE_Q8_0 : PST_TYPE_F16; }

/* Of one convolution layer in one page, behind the keys and values of all layers. */
static size_t conv_bytes(const pst_engine_model *m) {
  return (PST_ENGINE_CONV_KEPT * (size_t)m->info.n_embd * sizeof(float) + 63) & ~(size_t)63;
}

size_t pst_engine_forward_page_bytes(const pst_engine_model *m, pst_engine_kv kv) {
  return pst_kernels_page_bytes(kv_type_of(kv), (size_t)m->info.head_dim) * 2 * (size_t)m->info.n_kv_heads *
             stored_layers(m) +
         conv_bytes(m) * (size_t)m->n_conv_layers;
}

/* Fills in what the layout of the work space depends on. */
static void describe(pst_engine_forward *f, const pst_engine_model *model, pst_engine_kv kv, int max_tokens,
                     int max_items, int max_logits, int n_ctx, int n_threads) {
  f->model = (pst_engine_model *)(uintptr_t)model;
  f->k = model->kernels;
  f->kv_type = kv_type_of(kv);
  f->head_page_bytes = pst_kernels_page_bytes(f->kv_type, (size_t)model->info.head_dim);
  f->page_bytes = pst_engine_forward_page_bytes(model, kv);
  f->max_tokens = max_tokens;
  f->max_items = max_items;
  f->max_logits = max_logits;
  f->max_blocks = (n_ctx + PST_KERNELS_PAGE - 1) / PST_KERNELS_PAGE;
  f->n_threads = n_threads;
  for (int i = 0; i < model->info.n_layers; i++) {
    const pst_engine_layer *y = &model->layers[i];
    const pst_engine_experts *e = &y->experts;
    f->any_float_down |= y->down.is_float;
    f->any_dense |= y->down.n_rows != 0;
    f->any_float_expert |= e->gate.shape.is_float || e->up.shape.is_float || e->down.shape.is_float;
  }
  f->n_claims = model->info.n_layers * MAX_STAGES_PER_LAYER + 4;
}

size_t pst_engine_forward_work_bytes(const pst_engine_model *model, pst_engine_kv kv, int max_tokens, int max_items,
                                     int max_logits, int n_ctx, int n_threads) {
  pst_engine_forward f = {0};
  layout l = {NULL, 0};
  describe(&f, model, kv, max_tokens, max_items, max_logits, n_ctx, n_threads);
  place_all(&f, &l);
  return l.used;
}

int pst_engine_forward_create(pst_engine_model *model, pst_engine_kv kv, int max_tokens, int max_items, int max_logits,
                              int n_ctx, int n_threads, pst_engine_forward **ret_forward, pst_error *err) {
  pst_engine_forward *f = pst_calloc(1, sizeof *f);
  if (!f) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  describe(f, pst_engine_model_ref(model), kv, max_tokens, max_items, max_logits, n_ctx, n_threads);
  layout l = {NULL, 0};
  place_all(f, &l);
  f->memory = pst_malloc_aligned(l.used, 64);
  if (!f->memory) {
    size_t bytes = l.used;
    pst_engine_forward_free(f);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %.0f MB of work space", (double)bytes / 1e6);
  }
  memset(f->memory, 0, l.used);
  l = (layout){f->memory, 0};
  place_all(f, &l);
  for (size_t i = 0; i < delta_channels(model); i++) f->ones[i] = 1.0f;
  *ret_forward = f;
  return 0;
}

void pst_engine_forward_free(pst_engine_forward *f) {
  if (!f) return;
  pst_engine_model_unref(f->model);
  pst_free(f->memory);
  pst_free(f);
}

/* ---- claiming ---- */

/* One thread's way through a step: which stage it is in. */
typedef struct walk {
  pst_engine_forward *f;
  pst_engine_team *team;
  lane *mine;
  int stage;
} walk;

static bool claim(walk *w, int total, int chunk, int *ret_begin, int *ret_end) {
  int begin = atomic_fetch_add_explicit(&w->f->claims[w->stage], chunk, memory_order_relaxed);
  if (begin >= total) return false;
  *ret_begin = begin;
  *ret_end = PST_MIN(begin + chunk, total);
  return true;
}

static void next_stage(walk *w) {
  pst_engine_team_meet(w->team);
  w->stage++;
}

/* Several products over the same input, as one stage. */
typedef struct product {
  const pst_kernels_matrix *w;
  float *out;
  size_t stride;
  const float *bias;
  bool add;
} product;

static void run_products(walk *w, const product *p, int n_products, const pst_kernels_input *input, int n_tokens) {
  int total = 0;
  for (int i = 0; i < n_products; i++) total += (int)p[i].w->n_groups;
  /* Enough chunks that threads end together; at one token a chunk is at least two groups, so that claiming stays cheap. */
  int chunk = PST_MAX(total / (w->team->n_threads * 8), n_tokens > 8 ? 1 : 2);
  int begin, end;
  while (claim(w, total, chunk, &begin, &end)) {
    int base = 0;
    for (int i = 0; i < n_products && begin < end; i++) {
      int n = (int)p[i].w->n_groups;
      if (begin < base + n) {
        int from = begin - base, to = PST_MIN(end - base, n);
        w->f->k->matmul(p[i].w, input, 0, (size_t)n_tokens, (size_t)from, (size_t)to, p[i].add, p[i].out, p[i].stride,
                        w->mine->work);
        if (p[i].bias)
          for (int t = 0; t < n_tokens; t++) {
            size_t row = (size_t)from * PST_KERNELS_GROUP,
                   rows = PST_MIN((size_t)to * PST_KERNELS_GROUP, p[i].w->n_rows) - row;
            float *out = p[i].out + (size_t)t * p[i].stride + row;
            w->f->k->add(out, p[i].bias + row, rows, out);
          }
        begin = base + to;
      }
      base += n;
    }
  }
  next_stage(w);
}

/* ---- stages ---- */

static bool alone(const pst_engine_forward *f) { return f->n_tokens <= ALONE_TOKENS; }

/* Normed and quantized x: by each thread for itself when tokens are few, else shared out. Returns the input to multiply. */
static const pst_kernels_input *norm_stage(walk *w, const float *x, const float *weight, pst_kernels_input *shared,
                                           int n_rows) {
  pst_engine_forward *f = w->f;
  size_t n = shared->n_cols;
  if (n_rows <= ALONE_TOKENS) {
    pst_kernels_input *mine = &w->mine->narrow;
    float *plain = w->mine->plain;
    mine->x = plain;
    for (int t = 0; t < n_rows; t++)
      f->k->rmsnorm_quantize(x + (size_t)t * n, weight, f->model->norm_eps, plain + (size_t)t * n, mine, (size_t)t);
    return mine;
  }
  int begin, end;
  while (claim(w, n_rows, 4, &begin, &end))
    for (int t = begin; t < end; t++)
      f->k->rmsnorm_quantize(x + (size_t)t * n, weight, f->model->norm_eps, f->normed + (size_t)t * n, shared,
                             (size_t)t);
  if (w->mine == &f->lanes[0]) shared->x = f->normed; /* one writes it, the end of the stage publishes it */
  next_stage(w);
  return shared;
}

/* Where a layer keeps kv head h; `store` is its number among the attention layers. */
static size_t head_offset(const pst_engine_forward *f, int store, int head, bool value) {
  if (both_ways(f->model)) store = 0;
  return (((size_t)store * (size_t)f->model->info.n_kv_heads + (size_t)head) * 2 + value) * f->head_page_bytes;
}

static void norm_heads(const pst_engine_forward *f, float *x, int n_heads, const float *weight, bool whole) {
  size_t n = (size_t)f->model->info.head_dim * (whole ? (size_t)n_heads : 1);
  for (int h = 0; h < (whole ? 1 : n_heads) && weight; h++)
    f->k->rmsnorm(x + (size_t)h * n, weight, n, f->model->norm_eps, x + (size_t)h * n);
}

static float temperature(const pst_engine_model *m, int position) {
  return (float)(1 + m->temperature_beta * log1p(floor(position / m->temperature_length)));
}

/* Turns queries and keys and stores keys and values; a piece of work is one token. */
static void store_stage(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_model_info *s = &f->model->info;
  const pst_engine_rope *r = y->rope < 0 ? NULL : &f->model->ropes[y->rope];
  size_t hd = (size_t)s->head_dim, q = (size_t)s->n_heads * hd, kv = (size_t)s->n_kv_heads * hd;
  int begin, end;
  while (claim(w, f->n_tokens, f->n_tokens > 16 ? 4 : 1, &begin, &end))
    for (int t = begin; t < end; t++) {
      float *query = f->qkv + (size_t)t * (q + 2 * kv), *key = query + q, *value = key + kv;
      int position = f->position[t];
      uint8_t *page = f->items[f->item_of[t]].pages[position / PST_KERNELS_PAGE];
      size_t slot = (size_t)position % PST_KERNELS_PAGE;
      const float *both = f->gated_queries + (size_t)t * 2 * q;
      for (int h = 0; h < s->n_heads && f->model->gated_queries; h++)
        memcpy(query + (size_t)h * hd, both + (size_t)h * 2 * hd, hd * sizeof *query);
      norm_heads(f, query, s->n_heads, y->q_norm, y->norm_whole);
      norm_heads(f, key, s->n_kv_heads, y->k_norm, y->norm_whole);
      if (r) {
        const float *turn = f->turns[y->rope] + (size_t)t * (size_t)r->n_rot;
        f->k->rope(query, (size_t)s->n_heads, hd, (size_t)r->n_rot, r->style, turn);
        f->k->rope(key, (size_t)s->n_kv_heads, hd, (size_t)r->n_rot, r->style, turn);
      }
      if (f->model->temperature_beta > 0) f->k->scale(query, temperature(f->model, position), q, query);
      for (int h = 0; h < s->n_kv_heads; h++) {
        f->k->store_key(f->kv_type, hd, key + (size_t)h * hd, slot, page + head_offset(f, y->store, h, false));
        f->k->store_value(f->kv_type, hd, value + (size_t)h * hd, slot, page + head_offset(f, y->store, h, true));
      }
    }
  next_stage(w);
}

/* ---- attention: pieces of one kv head of up to ATTEND_TOKENS tokens of one item ---- */

static int pieces_of(const pst_engine_forward *f, int item) {
  return (f->items[item].n + ATTEND_TOKENS - 1) / ATTEND_TOKENS * f->model->info.n_kv_heads;
}

static pst_kernels_attend piece_at(const pst_engine_forward *f, const pst_engine_layer *y, int index) {
  const pst_engine_model_info *s = &f->model->info;
  size_t hd = (size_t)s->head_dim, q = (size_t)s->n_heads * hd, kv = (size_t)s->n_kv_heads * hd;
  int per_kv = s->n_heads / s->n_kv_heads, item = 0;
  for (; index >= pieces_of(f, item); item++) index -= pieces_of(f, item);
  const pst_engine_forward_item *it = &f->items[item];
  int head = index % s->n_kv_heads, offset = index / s->n_kv_heads * ATTEND_TOKENS;
  size_t t = (size_t)f->item_start[item] + (size_t)offset;
  return (pst_kernels_attend){
      .kv_type = f->kv_type,
      .head_dim = hd,
      .n_heads = (size_t)per_kv,
      .n_tokens = (size_t)PST_MIN(ATTEND_TOKENS, it->n - offset),
      .position = (size_t)(it->first + offset),
      .window = (size_t)y->window,
      .n_keys = both_ways(f->model) ? (size_t)it->n : 0,
      .scale = f->model->attention_scale,
      .softcap = f->model->attention_softcap,
      .q = f->qkv + t * (q + 2 * kv) + (size_t)(head * per_kv) * hd,
      .q_stride = q + 2 * kv,
      .out = f->attended + t * q + (size_t)(head * per_kv) * hd,
      .out_stride = q,
      .pages = (const uint8_t *const *)it->pages,
      .k_offset = head_offset(f, y->store, head, false),
      .v_offset = head_offset(f, y->store, head, true),
      .sinks = y->sinks ? y->sinks + head * per_kv : NULL,
  };
}

/* Blocks that some token of a piece sees. */
static void blocks_of(const pst_kernels_attend *a, size_t *ret_begin, size_t *ret_end) {
  size_t first = a->window && a->position + 1 > a->window ? a->position + 1 - a->window : 0;
  *ret_begin = first / PST_KERNELS_PAGE;
  *ret_end = (a->position + a->n_tokens - 1) / PST_KERNELS_PAGE + 1;
}

/* Few pieces over long contexts leave threads idle: their blocks are shared out as well, in ranges of SPLIT_BLOCKS, and merged after. The
 * same bits either way (kernels.h, attention_part). */
static bool attend_split(walk *w, const pst_engine_layer *y, int n_pieces) {
  pst_engine_forward *f = w->f;
  if (w->team->n_threads == 1 || both_ways(f->model) || f->n_tokens > SPLIT_TOKENS ||
      n_pieces >= 4 * w->team->n_threads)
    return false;
  size_t block_floats = PST_KERNELS_PART_FLOATS((size_t)f->model->info.head_dim), b = 0, e = 0;
  pst_kernels_attend a;
  int n_ranges = 0;
  for (int i = 0; i < n_pieces; i++) {
    a = piece_at(f, y, i);
    blocks_of(&a, &b, &e);
    n_ranges += (int)((e - b + SPLIT_BLOCKS - 1) / SPLIT_BLOCKS);
  }
  if (n_ranges < n_pieces + w->team->n_threads) return false;
  int begin, end;
  while (claim(w, n_ranges, 1, &begin, &end)) {
    float *parts = f->parts;
    for (int i = 0;; i++) {
      a = piece_at(f, y, i);
      blocks_of(&a, &b, &e);
      int n = (int)((e - b + SPLIT_BLOCKS - 1) / SPLIT_BLOCKS);
      size_t block = a.n_tokens * a.n_heads * block_floats;
      if (begin < n) {
        size_t from = (size_t)begin * SPLIT_BLOCKS;
        f->k->attention_part(&a, b + from, PST_MIN(b + from + SPLIT_BLOCKS, e), parts + from * block, w->mine->work);
        break;
      }
      begin -= n;
      parts += (e - b) * block;
    }
  }
  next_stage(w);
  while (claim(w, n_pieces, 1, &begin, &end)) {
    float *parts = f->parts;
    for (int i = 0; i <= begin; i++) {
      a = piece_at(f, y, i);
      blocks_of(&a, &b, &e);
      if (i < begin) parts += (e - b) * a.n_tokens * a.n_heads * block_floats;
    }
    f->k->attention_merge(&a, b, e, parts);
  }
  next_stage(w);
  return true;
}

static void attend_stage(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  int n_pieces = 0, begin, end;
  for (int i = 0; i < f->n_items; i++) n_pieces += pieces_of(f, i);
  if (attend_split(w, y, n_pieces)) return;
  while (claim(w, n_pieces, 1, &begin, &end)) {
    /* Later pieces of a prompt see more keys and take longer: hand them out first. */
    pst_kernels_attend a = piece_at(f, y, n_pieces - 1 - begin);
    f->k->attention(&a, w->mine->work);
  }
  next_stage(w);
}

/* Rows of floats, quantized as an input. */
static const pst_kernels_input *quantize_stage(walk *w, const float *rows, pst_kernels_input *shared,
                                               pst_kernels_input *own) {
  pst_engine_forward *f = w->f;
  size_t n = shared->n_cols;
  if (alone(f)) {
    own->x = rows;
    for (int t = 0; t < f->n_tokens; t++) f->k->quantize(rows + (size_t)t * n, 0, own->n_blocks, own, (size_t)t);
    return own;
  }
  int begin, end;
  while (claim(w, f->n_tokens, 4, &begin, &end))
    for (int t = begin; t < end; t++) f->k->quantize(rows + (size_t)t * n, 0, shared->n_blocks, shared, (size_t)t);
  if (w->mine == &f->lanes[0]) shared->x = rows;
  next_stage(w);
  return shared;
}

/* What a branch of a layer reads: x through its norm, or as it is. */
static const pst_kernels_input *enter_stage(walk *w, const float *norm) {
  pst_engine_forward *f = w->f;
  if (norm) return norm_stage(w, f->x, norm, &f->in_normed, f->n_tokens);
  return quantize_stage(w, f->x, &f->in_normed, &w->mine->narrow);
}

/* A row of gate_up holds gate's and up's products; of a layer without a gate up's alone, at its start. */
static const float *up_of(const pst_engine_layer *y, const float *row, size_t ff) {
  return y->gate.n_rows ? row + ff : NULL;
}

static const pst_kernels_input *gated_stage(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t ff = (size_t)f->model->n_ff_dense;
  pst_kernels_gate kind = f->model->gate;
  if (y->down.is_float) {
    int begin, end;
    while (claim(w, f->n_tokens, 1, &begin, &end))
      for (int t = begin; t < end; t++) {
        const float *row = f->gate_up + (size_t)t * 2 * ff;
        f->k->gated(kind, row, up_of(y, row, ff), ff, f->gated + (size_t)t * ff);
      }
    if (w->mine == &f->lanes[0]) f->in_gated.x = f->gated;
    next_stage(w);
    return &f->in_gated;
  }
  if (alone(f)) {
    pst_kernels_input *own = &w->mine->wide;
    for (int t = 0; t < f->n_tokens; t++) {
      const float *row = f->gate_up + (size_t)t * 2 * ff;
      f->k->gated_quantize(kind, row, up_of(y, row, ff), 0, own->n_blocks, own, (size_t)t);
    }
    return own;
  }
  int begin, end;
  while (claim(w, f->n_tokens, 2, &begin, &end))
    for (int t = begin; t < end; t++) {
      const float *row = f->gate_up + (size_t)t * 2 * ff;
      f->k->gated_quantize(kind, row, up_of(y, row, ff), 0, f->in_gated.n_blocks, &f->in_gated, (size_t)t);
    }
  next_stage(w);
  return &f->in_gated;
}

/* The end of a branch: a product, and what comes between it and x, as far as the layer has it. */
typedef struct branch_end {
  const pst_kernels_matrix *matrix;
  const float *bias, *norm;
  pst_engine_layernorm sum_norm;
} branch_end;

/* x += matrix * input, through a bias, a norm or a factor; then x itself may be normed. */
static void back_to_x(walk *w, branch_end b, const pst_kernels_input *input) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  float factor = f->model->residual_scale, eps = f->model->norm_eps;
  if (!b.norm && !b.sum_norm.weight && factor == 1.0f) {
    product p = {b.matrix, f->x, n, b.bias, true};
    run_products(w, &p, 1, input, f->n_tokens);
    return;
  }
  product p = {b.matrix, f->branch, n, b.bias, false};
  run_products(w, &p, 1, input, f->n_tokens);
  int begin, end;
  while (claim(w, f->n_tokens, 1, &begin, &end))
    for (int t = begin; t < end; t++) {
      float *row = f->branch + (size_t)t * n, *x = f->x + (size_t)t * n;
      if (b.norm) f->k->rmsnorm(row, b.norm, n, eps, row);
      if (factor != 1.0f) f->k->scale(row, factor, n, row);
      f->k->add(x, row, n, x);
      if (b.sum_norm.weight) f->k->layernorm(x, b.sum_norm.weight, b.sum_norm.bias, n, eps, x);
    }
  next_stage(w);
}

/* ---- convolutions ---- */

/* Where the input of a convolution at a position is kept. */
static float *conv_slot(const pst_engine_forward *f, const pst_engine_layer *y, int item, int position) {
  const pst_engine_model *m = f->model;
  size_t keys = f->head_page_bytes * 2 * (size_t)m->info.n_kv_heads * (size_t)m->n_attention_layers;
  uint8_t *page = f->items[item].pages[position / PST_KERNELS_PAGE];
  float *rows = (float *)(void *)(page + keys + (size_t)y->store * conv_bytes(m));
  return rows + (size_t)(position % PST_ENGINE_CONV_KEPT) * (size_t)m->info.n_embd;
}

/* out += tap * input, of one position before token t (0: the token itself): computed in this step, or kept, or before the beginning. */
static void add_tap(const pst_engine_forward *f, const pst_engine_layer *y, int t, int before, float *out) {
  size_t n = (size_t)f->model->info.n_embd, n_taps = (size_t)f->model->n_conv;
  const float *taps = y->conv.taps + n_taps - 1 - (size_t)before;
  int item = f->item_of[t], position = f->position[t] - before;
  if (position < 0) return;
  if (position < f->items[item].first) {
    const float *kept = conv_slot(f, y, item, position);
    for (size_t c = 0; c < n; c++) out[c] += taps[c * n_taps] * kept[c];
    return;
  }
  const float *b = f->qkv + (size_t)(t - before) * 3 * n, *u = b + 2 * n;
  for (size_t c = 0; c < n; c++) out[c] += taps[c * n_taps] * (b[c] * u[c]);
}

/* c * convolution(b * u) of every token; then the inputs that later positions may look at are kept: of each page the last of this step. */
static void conv_stages(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  int begin, end;
  while (claim(w, f->n_tokens, 1, &begin, &end))
    for (int t = begin; t < end; t++) {
      float *out = f->attended + (size_t)t * n;
      const float *c = f->qkv + (size_t)t * 3 * n + n;
      memset(out, 0, n * sizeof *out);
      for (int before = f->model->n_conv - 1; before >= 0; before--) add_tap(f, y, t, before, out);
      for (size_t i = 0; i < n; i++) out[i] *= c[i];
    }
  next_stage(w); /* kept inputs are read before they are overwritten */
  while (claim(w, f->n_tokens, 4, &begin, &end))
    for (int t = begin; t < end; t++) {
      const pst_engine_forward_item *it = &f->items[f->item_of[t]];
      int page_end = (f->position[t] / PST_KERNELS_PAGE + 1) * PST_KERNELS_PAGE;
      if (f->position[t] + PST_ENGINE_CONV_KEPT < PST_MIN(page_end, it->first + it->n)) continue;
      const float *b = f->qkv + (size_t)t * 3 * n, *u = b + 2 * n;
      float *kept = conv_slot(f, y, f->item_of[t], f->position[t]);
      for (size_t c = 0; c < n; c++) kept[c] = b[c] * u[c];
    }
  next_stage(w);
}

/* ---- experts ---- */

/* The n_experts_used greatest logits of token t, greatest first, the lowest expert of equals; softmax over them. */
static void route_token(pst_engine_forward *f, const float *bias, int t) {
  routes *r = &f->routes;
  int n = f->model->n_experts, n_used = f->model->n_experts_used;
  float *logits = r->logits + (size_t)t * (size_t)n, *weight = r->weight + (size_t)t * (size_t)n_used;
  int *expert = r->expert + (size_t)t * (size_t)n_used;
  if (bias) f->k->add(logits, bias, (size_t)n, logits);
  for (int k = 0; k < n_used; k++) {
    expert[k] = (int)f->k->argmax(logits, (size_t)n);
    weight[k] = logits[expert[k]];
    logits[expert[k]] = -INFINITY;
  }
  float total = f->k->sum_exp(weight, (size_t)n_used, weight[0]);
  for (int k = n_used - 1; k >= 0; k--) weight[k] = f->k->sum_exp(&weight[k], 1, weight[0]) / total;
}

/* Rows in order of experts, then tokens. */
static void group_rows(pst_engine_forward *f) {
  routes *r = &f->routes;
  int n_used = f->model->n_experts_used, n_experts = f->model->n_experts;
  r->n_rows = f->n_tokens * n_used;
  r->n_active = 0;
  memset(r->first, 0, ((size_t)n_experts + 1) * sizeof *r->first);
  for (int i = 0; i < r->n_rows; i++) r->first[r->expert[i] + 1]++;
  for (int e = 0; e < n_experts; e++) {
    if (r->first[e + 1]) r->active[r->n_active++] = e;
    r->first[e + 1] += r->first[e];
  }
  for (int i = 0; i < r->n_rows; i++) { /* first[e] walks to first[e + 1]'s old value, and is put back below */
    int row = r->first[r->expert[i]]++;
    r->row_of[i] = row;
    r->token_of[row] = i / n_used;
  }
  for (int e = n_experts; e > 0; e--) r->first[e] = r->first[e - 1];
  r->first[0] = 0;
}

/* The inputs of the rows: copies of their tokens'. */
static void gather_stage(walk *w, const pst_engine_experts *y, const pst_kernels_input *in) {
  routes *r = &w->f->routes;
  bool floats = y->gate.shape.is_float || y->up.shape.is_float,
       codes = !y->gate.shape.is_float || !y->up.shape.is_float;
  size_t n = in->n_cols, blocks = in->n_blocks;
  int begin, end;
  while (claim(w, r->n_rows, 4, &begin, &end))
    for (int i = begin; i < end; i++) {
      size_t row = (size_t)i, t = (size_t)r->token_of[i];
      if (floats) memcpy(r->x + row * n, in->x + t * n, n * sizeof *r->x);
      if (!codes) continue;
      memcpy(r->in.q + row * n, in->q + t * n, n);
      memcpy(r->in.d + row * blocks, in->d + t * blocks, blocks * sizeof *in->d);
      memcpy(r->in.s + row * blocks, in->s + t * blocks, blocks * sizeof *in->s);
      memcpy(r->in.half + row * blocks * 2, in->half + t * blocks * 2, blocks * 2 * sizeof *in->half);
    }
  if (w->mine == &w->f->lanes[0]) r->in.x = r->x;
  next_stage(w);
}

/* Products of every active expert with its rows: matrix m of all to columns from m * rows of the matrix on. */
static void expert_products(walk *w, const pst_engine_expert_matrix *const *matrices, int n_matrices,
                            const pst_kernels_input *in, float *out, size_t stride) {
  routes *r = &w->f->routes;
  int n_groups = (int)matrices[0]->shape.n_groups, total = r->n_active * n_matrices * n_groups, begin, end;
  size_t n_cols = matrices[0]->shape.n_rows;
  while (claim(w, total, PST_MAX(total / (w->team->n_threads * 8), 2), &begin, &end))
    while (begin < end) {
      int expert = r->active[begin / (n_matrices * n_groups)], m = begin / n_groups % n_matrices;
      int group = begin % n_groups, to = PST_MIN(n_groups, group + end - begin), first = r->first[expert];
      size_t n = (size_t)(r->first[expert + 1] - first), from = (size_t)group * PST_KERNELS_GROUP;
      pst_kernels_matrix matrix = matrices[m]->shape;
      matrix.data += (size_t)expert * matrices[m]->stride;
      float *rows = out + (size_t)first * stride + (size_t)m * n_cols;
      w->f->k->matmul(&matrix, in, (size_t)first, n, (size_t)group, (size_t)to, false, rows, stride, w->mine->work);
      const float *bias = matrices[m]->bias ? matrices[m]->bias + (size_t)expert * n_cols + from : NULL;
      for (size_t t = 0; t < n && bias; t++) {
        float *at = rows + t * stride + from;
        w->f->k->add(at, bias, PST_MIN((size_t)to * PST_KERNELS_GROUP, n_cols) - from, at);
      }
      begin += to - group;
    }
  next_stage(w);
}

static void expert_gate_stage(walk *w, bool to_floats) {
  pst_engine_forward *f = w->f;
  routes *r = &f->routes;
  size_t ff = (size_t)f->model->n_ff_expert;
  int begin, end;
  while (claim(w, r->n_rows, 2, &begin, &end))
    for (int i = begin; i < end; i++) {
      const float *row = r->gate_up + (size_t)i * 2 * ff;
      if (to_floats)
        f->k->gated(f->model->gate, row, row + ff, ff, r->gated + (size_t)i * ff);
      else
        f->k->gated_quantize(f->model->gate, row, row + ff, 0, r->in_gated.n_blocks, &r->in_gated, (size_t)i);
    }
  if (w->mine == &f->lanes[0]) r->in_gated.x = r->gated;
  next_stage(w);
}

/* x += the weighted outputs of a token's experts, summed in the router's order. */
static void combine_stage(walk *w) {
  pst_engine_forward *f = w->f;
  routes *r = &f->routes;
  size_t n = (size_t)f->model->info.n_embd, n_used = (size_t)f->model->n_experts_used;
  int begin, end;
  while (claim(w, f->n_tokens, 1, &begin, &end))
    for (size_t t = (size_t)begin; t < (size_t)end; t++) {
      float *sum = r->out + (size_t)r->row_of[t * n_used] * n, *x = f->x + t * n;
      f->k->scale(sum, r->weight[t * n_used], n, sum);
      for (size_t k = 1; k < n_used; k++) {
        float *row = r->out + (size_t)r->row_of[t * n_used + k] * n;
        f->k->scale(row, r->weight[t * n_used + k], n, row);
        f->k->add(sum, row, n, sum);
      }
      f->k->add(x, sum, n, x);
    }
  next_stage(w);
}

/* x += the expert that every token goes through, as its gate says. `in`: the normed x that the others read. */
static void run_shared_expert(walk *w, const pst_engine_layer *y, const pst_kernels_input *in) {
  pst_engine_forward *f = w->f;
  size_t ff = (size_t)f->model->n_ff_dense, n = (size_t)f->model->info.n_embd;
  product gate_up[] = {{&y->gate, f->gate_up, 2 * ff, NULL, false}, {&y->up, f->gate_up + ff, 2 * ff, NULL, false}};
  run_products(w, gate_up, 2, in, f->n_tokens);
  product down = {&y->down, f->branch, n, NULL, false};
  run_products(w, &down, 1, gated_stage(w, y), f->n_tokens);
  int begin, end;
  while (claim(w, f->n_tokens, 1, &begin, &end))
    for (size_t t = (size_t)begin; t < (size_t)end; t++) {
      float *row = f->branch + t * n, *x = f->x + t * n;
      f->k->scale(row, 1.0f / (1.0f + expf(-f->routes.shared[t])), n, row);
      f->k->add(x, row, n, x);
    }
  next_stage(w);
}

/* The experts' branch. An expert's rows are multiplied together, so that its weights are read once a step; an element is one chain all the same. */
static void run_experts(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_experts *e = &y->experts;
  const pst_engine_expert_matrix *gate_up[] = {&e->gate, &e->up}, *down[] = {&e->down};
  const pst_kernels_input *in = enter_stage(w, y->ffn_norm);
  bool shares = e->shared_gate.n_rows != 0;
  product router[] = {{&e->router, f->routes.logits, (size_t)f->model->n_experts, NULL, false},
                      {&e->shared_gate, f->routes.shared, 1, NULL, false}};
  run_products(w, router, shares ? 2 : 1, in, f->n_tokens);
  int begin, end;
  while (claim(w, f->n_tokens, 2, &begin, &end))
    for (int t = begin; t < end; t++) route_token(f, e->router_bias, t);
  next_stage(w);
  if (w->mine == &f->lanes[0]) group_rows(f);
  next_stage(w);
  gather_stage(w, e, in);
  expert_products(w, gate_up, 2, &f->routes.in, f->routes.gate_up, 2 * (size_t)f->model->n_ff_expert);
  expert_gate_stage(w, e->down.shape.is_float);
  expert_products(w, down, 1, &f->routes.in_gated, f->routes.out, (size_t)f->model->info.n_embd);
  combine_stage(w);
  if (shares) run_shared_expert(w, y, in);
}

/* ---- delta nets ---- */

static float *delta_state(const pst_engine_forward *f, const pst_engine_layer *y, int item) {
  return f->items[item].state + (size_t)y->store * pst_engine_model_state_floats(f->model);
}

/* Where a sequence keeps the convolution's input at a position. */
static float *delta_kept(const pst_engine_forward *f, const pst_engine_layer *y, int item, int position) {
  const pst_engine_model *m = f->model;
  size_t row = (size_t)(position % (m->n_conv - 1));
  return delta_state(f, y, item) + delta_values(m) * (size_t)m->delta_head + row * delta_channels(m);
}

/* The channels of token t through the convolution and SiLU; queries and keys at unit length, queries by 1/sqrt(head) besides. */
static void convolve_token(const pst_engine_forward *f, const pst_engine_layer *y, int t) {
  const pst_engine_model *m = f->model;
  size_t n = delta_channels(m), n_conv = (size_t)m->n_conv, head = (size_t)m->delta_head;
  float *out = f->convolved + (size_t)t * n;
  int item = f->item_of[t];
  memset(out, 0, n * sizeof *out);
  for (size_t k = 0; k < n_conv; k++) {
    int before = (int)(n_conv - 1 - k), position = f->position[t] - before;
    if (position < 0) continue;
    const float *x = position < f->items[item].first ? delta_kept(f, y, item, position)
                                                     : f->mixed + (size_t)(t - before) * delta_mixed(m);
    for (size_t c = 0; c < n; c++) out[c] += y->delta.taps[c * n_conv + k] * x[c];
  }
  f->k->gated(PST_KERNELS_SILU, out, f->ones, n, out);
  const float unit = 1.0f / sqrtf((float)head);
  for (size_t h = 0; h < 2 * (size_t)m->n_delta_k; h++) {
    f->k->rmsnorm(out + h * head, NULL, head, 1e-6f / (float)head, out + h * head);
    f->k->scale(out + h * head, h < (size_t)m->n_delta_k ? unit * unit : unit, head, out + h * head);
  }
}

/* The recurrence of value head h over an item's tokens, in order. */
static void recall_head(const pst_engine_forward *f, const pst_engine_layer *y, int item, size_t h) {
  const pst_engine_model *m = f->model;
  size_t head = (size_t)m->delta_head, n_k = (size_t)m->n_delta_k, n_v = (size_t)m->n_delta_v, group = n_v / n_k;
  size_t key = m->delta_grouped ? h / group : h % n_k;
  size_t beta_at = m->delta_grouped ? key * 2 * group + h % group : h;
  size_t alpha_at = beta_at + (m->delta_grouped ? group : n_v);
  size_t channels = delta_channels(m), values = delta_values(m);
  float *state = delta_state(f, y, item) + h * head * head;
  size_t first = (size_t)f->item_start[item], n = (size_t)f->items[item].n;
  for (size_t t = first; t < first + n; t++) {
    const float *row = f->convolved + t * channels, *mixed = f->mixed + t * delta_mixed(m);
    const float *z = mixed + channels + h * head, *rates = mixed + channels + values;
    float x = rates[alpha_at] + y->delta.alpha_bias[h], soft = x > 20.0f ? x : log1pf(expf(x));
    float *out = f->attended + t * values + h * head;
    f->k->delta_rule(state, head, head, row + key * head, row + (n_k + key) * head, row + (2 * n_k + h) * head,
                     expf(y->delta.rate[h] * soft), 1.0f / (1.0f + expf(-rates[beta_at])), out);
    f->k->rmsnorm(out, y->delta.norm, head, m->norm_eps, out);
    f->k->gated(PST_KERNELS_SILU, z, out, head, out);
  }
}

static void recall_stages(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_model *m = f->model;
  size_t channels = delta_channels(m);
  int begin, end;
  while (claim(w, f->n_tokens, 1, &begin, &end))
    for (int t = begin; t < end; t++) convolve_token(f, y, t);
  next_stage(w); /* kept inputs are read before they are overwritten */
  while (claim(w, f->n_items * m->n_delta_v, 1, &begin, &end)) {
    int item = begin / m->n_delta_v, h = begin % m->n_delta_v;
    const pst_engine_forward_item *it = &f->items[item];
    recall_head(f, y, item, (size_t)h);
    for (int i = PST_MAX(it->n - m->n_conv + 1, 0); i < it->n && h == 0; i++) {
      size_t t = (size_t)f->item_start[item] + (size_t)i;
      memcpy(delta_kept(f, y, item, it->first + i), f->mixed + t * delta_mixed(m), channels * sizeof(float));
    }
  }
  next_stage(w);
}

static void run_delta(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_model *m = f->model;
  const pst_engine_delta *d = &y->delta;
  size_t channels = delta_channels(m), values = delta_values(m), n_v = (size_t)m->n_delta_v, all = delta_mixed(m);
  const pst_kernels_input *in = enter_stage(w, y->attn_norm);
  product mixed[] = {{&d->qkv, f->mixed, all, NULL, false},
                     {&d->z, f->mixed + channels, all, NULL, false},
                     {&d->beta, f->mixed + channels + values, all, NULL, false},
                     {&d->alpha, f->mixed + channels + values + n_v, all, NULL, false}};
  run_products(w, mixed, m->delta_grouped ? 3 : 4, in, f->n_tokens);
  recall_stages(w, y);
  in = quantize_stage(w, f->attended, &f->in_recalled, &w->mine->recalled);
  back_to_x(w, (branch_end){.matrix = &d->out}, in);
}

/* ---- a layer ---- */

/* Every head's output times the sigmoid of its gate. */
static void gate_heads_stage(walk *w) {
  pst_engine_forward *f = w->f;
  size_t hd = (size_t)f->model->info.head_dim, n_heads = (size_t)f->model->info.n_heads;
  int begin, end;
  while (claim(w, f->n_tokens, 1, &begin, &end))
    for (size_t t = (size_t)begin; t < (size_t)end; t++)
      for (size_t h = 0; h < n_heads; h++) {
        float *out = f->attended + (t * n_heads + h) * hd;
        f->k->gated(PST_KERNELS_SIGMOID, f->gated_queries + (t * n_heads + h) * 2 * hd + hd, out, hd, out);
      }
  next_stage(w);
}

static void run_attention(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_model_info *s = &f->model->info;
  size_t q = (size_t)s->n_heads * (size_t)s->head_dim, kv = (size_t)s->n_kv_heads * (size_t)s->head_dim;
  const pst_kernels_input *in = enter_stage(w, y->attn_norm);
  bool gated = f->model->gated_queries;
  product qkv[] = {{&y->q, gated ? f->gated_queries : f->qkv, gated ? 2 * q : q + 2 * kv, y->q_bias, false},
                   {&y->k, f->qkv + q, q + 2 * kv, y->k_bias, false},
                   {&y->v, f->qkv + q + kv, q + 2 * kv, y->v_bias, false}};
  run_products(w, qkv, 3, in, f->n_tokens);
  store_stage(w, y);
  attend_stage(w, y);
  if (gated) gate_heads_stage(w);
  in = quantize_stage(w, f->attended, &f->in_attended, &w->mine->attended);
  back_to_x(w, (branch_end){&y->o, y->o_bias, y->post_attn_norm, y->attn_sum_norm}, in);
}

static void run_conv(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  const pst_kernels_input *in = enter_stage(w, y->attn_norm);
  product bcu = {&y->conv.in, f->qkv, 3 * n, NULL, false};
  run_products(w, &bcu, 1, in, f->n_tokens);
  conv_stages(w, y);
  in = quantize_stage(w, f->attended, &f->in_normed, &w->mine->narrow);
  back_to_x(w, (branch_end){.matrix = &y->conv.out}, in);
}

static void run_feed_forward(walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t ff = (size_t)f->model->n_ff_dense;
  const pst_kernels_input *in = enter_stage(w, y->ffn_norm);
  bool gated = y->gate.n_rows != 0;
  product up[] = {{&y->up, gated ? f->gate_up + ff : f->gate_up, 2 * ff, y->up_bias, false},
                  {&y->gate, f->gate_up, 2 * ff, NULL, false}};
  run_products(w, up, gated ? 2 : 1, in, f->n_tokens);
  in = gated_stage(w, y);
  back_to_x(w, (branch_end){&y->down, y->down_bias, y->post_ffn_norm, y->ffn_sum_norm}, in);
}

static void run_layer(walk *w, int layer) {
  const pst_engine_layer *y = &w->f->model->layers[layer];
  w->stage = layer * MAX_STAGES_PER_LAYER;
  if (y->conv.in.n_rows)
    run_conv(w, y);
  else if (y->delta.out.n_rows)
    run_delta(w, y);
  else
    run_attention(w, y);
  if (y->experts.router.n_rows)
    run_experts(w, y);
  else
    run_feed_forward(w, y);
  assert(w->stage <= (layer + 1) * MAX_STAGES_PER_LAYER); /* each stage has a claim counter of its own */
}

/* ---- a step ---- */

/* What an encoder adds to a token's embedding. */
static void embed_more(const walk *w, int position, float *x) {
  const pst_engine_model *m = w->f->model;
  const pst_engine_encoding *e = &m->encoding;
  size_t n = (size_t)m->info.n_embd;
  if (e->segment) w->f->k->add(x, e->segment, n, x);
  if (e->positions.n_rows) {
    pst_kernels_matrix_row(&e->positions, (size_t)position, w->mine->plain);
    w->f->k->add(x, w->mine->plain, n, x);
  }
  if (e->embedding_norm.weight)
    w->f->k->layernorm(x, e->embedding_norm.weight, e->embedding_norm.bias, n, m->norm_eps, x);
}

static void embed(walk *w) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  int begin, end;
  while (claim(w, f->n_tokens, 4, &begin, &end))
    for (int t = begin; t < end; t++) {
      float *x = f->x + (size_t)t * n;
      int item = f->item_of[t];
      pst_kernels_matrix_row(&f->model->embedding, (size_t)f->items[item].tokens[t - f->item_start[item]], x);
      if (f->model->embedding_scale != 1.0f) f->k->scale(x, f->model->embedding_scale, n, x);
      if (both_ways(f->model)) embed_more(w, f->position[t], x);
      for (int r = 0; r < f->model->n_ropes; r++) {
        const pst_engine_rope *rope = &f->model->ropes[r];
        pst_kernels_rope_table((double)f->position[t], (size_t)rope->n_rot, rope->base, rope->scale, rope->factors,
                               rope->magnitude, f->turns[r] + (size_t)t * (size_t)rope->n_rot);
      }
    }
  next_stage(w);
}

static void keep(walk *w) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  if (w->mine != &f->lanes[0]) return;
  int at = 0;
  for (int i = 0; i < f->n_items; i++)
    for (int k = f->items[i].n - f->items[i].n_logits; k < f->items[i].n; k++, at++)
      f->k->rmsnorm_quantize(f->x + (size_t)(f->item_start[i] + k) * n, f->model->output_norm, f->model->norm_eps,
                             f->kept + (size_t)at * n, &f->in_kept, (size_t)at);
  f->in_kept.x = f->kept;
  f->n_kept = at;
}

static void step_thread(void *arg, pst_engine_team *team, int index) {
  pst_engine_forward *f = arg;
  walk w = {f, team, &f->lanes[index], f->model->info.n_layers * MAX_STAGES_PER_LAYER};
  embed(&w);
  for (int i = 0; i < f->model->info.n_layers; i++) run_layer(&w, i);
  keep(&w);
}

void pst_engine_forward_run(pst_engine_forward *f, const pst_engine_forward_item *items, int n_items) {
  f->items = items;
  f->n_items = n_items;
  f->n_tokens = 0;
  for (int i = 0; i < n_items; i++) {
    f->item_start[i] = f->n_tokens;
    for (int k = 0; k < items[i].n; k++, f->n_tokens++) {
      f->item_of[f->n_tokens] = i;
      f->position[f->n_tokens] = items[i].first + k;
    }
  }
  for (int i = 0; i < f->n_claims; i++) atomic_store_explicit(&f->claims[i], 0, memory_order_relaxed);
  pst_engine_pool_run(f->n_threads, step_thread, f);
}

const float *pst_engine_forward_states(const pst_engine_forward *f) { return f->x; }

/* ---- the head ---- */

static void finish_logits(const pst_engine_forward *f, int first_row, int n_rows, size_t from, size_t to) {
  float factor = f->model->logit_scale, cap = f->model->logit_softcap;
  if (factor == 1.0f && cap == 0.0f) return;
  for (int r = first_row; r < first_row + n_rows; r++) {
    float *row = f->head_out + (size_t)r * (size_t)f->model->info.n_vocab;
    if (factor != 1.0f) f->k->scale(row + from, factor, to - from, row + from);
    for (size_t i = from; i < to && cap != 0.0f; i++) row[i] = cap * tanhf(row[i] / cap);
  }
}

/* Logits of states [head_first + row, + n_rows) for groups [from, to), into their rows of head_out. */
static void head_groups(walk *w, int row, int n_rows, size_t from, size_t to) {
  pst_engine_forward *f = w->f;
  size_t vocab = (size_t)f->model->info.n_vocab;
  f->k->matmul(&f->model->head, &f->in_kept, (size_t)f->head_first + (size_t)row, (size_t)n_rows, from, to, false,
               f->head_out + (size_t)row * vocab, vocab, w->mine->work);
  finish_logits(f, row, n_rows, from * PST_KERNELS_GROUP, PST_MIN(to * PST_KERNELS_GROUP, vocab));
}

static void head_thread(void *arg, pst_engine_team *team, int index) {
  pst_engine_forward *f = arg;
  walk w = {f, team, &f->lanes[index], 0};
  int total = f->head_groups ? f->head_n_groups : (int)f->model->head.n_groups;
  int chunk = f->head_groups ? 1 : PST_MAX(total / (team->n_threads * 16), 1), begin, end;
  while (claim(&w, total, chunk, &begin, &end)) {
    size_t from = f->head_groups ? (size_t)f->head_groups[begin] : (size_t)begin,
           to = f->head_groups ? from + 1 : (size_t)end;
    head_groups(&w, 0, f->head_n, from, to);
  }
}

void pst_engine_forward_logits(pst_engine_forward *f, int first, int n, const int32_t *groups, int n_groups,
                               float *logits) {
  f->head_first = first;
  f->head_n = n;
  f->head_groups = groups;
  f->head_n_groups = n_groups;
  f->head_out = logits;
  atomic_store_explicit(&f->claims[0], 0, memory_order_relaxed);
  pst_engine_pool_run(f->n_threads, head_thread, f);
}

/* ---- the greatest logit only ---- */

static bool beats(pick a, pick b) { return a.value > b.value || (a.value == b.value && a.token < b.token); }

/* Rows [from, to) of the head whose logits stand in row r of head_out. */
static void pick_among(walk *w, int r, size_t from, size_t to) {
  const float *x = w->f->head_out + (size_t)r * (size_t)w->f->model->info.n_vocab;
  size_t best = from + w->f->k->argmax(x + from, to - from);
  pick found = {x[best], (int32_t)best};
  if (w->mine->picks[r].token < 0 || beats(found, w->mine->picks[r])) w->mine->picks[r] = found;
}

/* The true logits of one group, in place of the coarse ones. */
static void rescore(walk *w, int r, size_t group) {
  head_groups(w, r, 1, group, group + 1);
  pick_among(w, r, group * PST_KERNELS_GROUP,
             PST_MIN((group + 1) * PST_KERNELS_GROUP, (size_t)w->f->model->info.n_vocab));
}

/* The coarse product everywhere; the true logits of each thread's best; then those of every group that could hold a greater one than these
 * (kernels/screen.c says why that is exact). */
static void pick_screened(walk *w) {
  pst_engine_forward *f = w->f;
  const pst_kernels_screen *s = &f->model->screen;
  size_t vocab = (size_t)f->model->info.n_vocab;
  pick *picks = w->mine->picks;
  int total = (int)s->codes.n_groups, chunk = PST_MAX(total / (w->team->n_threads * 16), 1), begin, end;
  while (claim(w, total, chunk, &begin, &end)) {
    f->k->matmul(&s->codes, &f->in_kept, (size_t)f->head_first, (size_t)f->head_n, (size_t)begin, (size_t)end, false,
                 f->head_out, vocab, w->mine->work);
    for (int r = 0; r < f->head_n; r++)
      pick_among(w, r, (size_t)begin * PST_KERNELS_GROUP, PST_MIN((size_t)end * PST_KERNELS_GROUP, vocab));
  }
  next_stage(w);
  for (int r = 0; r < f->head_n; r++) {
    if (picks[r].token < 0) continue; /* this thread came too late for any chunk */
    size_t group = (size_t)picks[r].token / PST_KERNELS_GROUP;
    picks[r].token = -1;
    rescore(w, r, group);
    w->mine->floors[r] = picks[r].value;
  }
  next_stage(w);
  int32_t passed[SCREEN_GROUPS];
  while (claim(w, total, SCREEN_GROUPS, &begin, &end)) {
    size_t from = (size_t)begin * PST_KERNELS_GROUP, to = PST_MIN((size_t)end * PST_KERNELS_GROUP, vocab);
    for (int r = 0; r < f->head_n; r++) {
      float floor = -INFINITY;
      for (int t = 0; t < w->team->n_threads; t++) floor = PST_MAX(floor, f->lanes[t].floors[r]);
      size_t n = f->k->screen_pass(f->head_out + (size_t)r * vocab + from, s->radius + from, f->reaches[r], floor,
                                   to - from, begin, passed);
      for (size_t i = 0; i < n; i++) rescore(w, r, (size_t)passed[i]);
      w->mine->n_passed += (int)n;
    }
  }
}

static void greedy_thread(void *arg, pst_engine_team *team, int index) {
  pst_engine_forward *f = arg;
  walk w = {f, team, &f->lanes[index], 0};
  if (f->screened) {
    pick_screened(&w);
    return;
  }
  size_t vocab = (size_t)f->model->info.n_vocab;
  int total = (int)f->model->head.n_groups, chunk = PST_MAX(total / (team->n_threads * 16), 1), begin, end;
  while (claim(&w, total, chunk, &begin, &end)) {
    head_groups(&w, 0, f->head_n, (size_t)begin, (size_t)end);
    for (int r = 0; r < f->head_n; r++)
      pick_among(&w, r, (size_t)begin * PST_KERNELS_GROUP, PST_MIN((size_t)end * PST_KERNELS_GROUP, vocab));
  }
}

void pst_engine_forward_greedy(pst_engine_forward *f, int first, int n, float *scratch, int32_t *ret_tokens) {
  f->head_first = first;
  f->head_n = n;
  f->head_out = scratch;
  f->screened = f->model->screen.radius && n <= SCREEN_ROWS && f->screen_rest == 0;
  if (f->screen_rest > 0) f->screen_rest--;
  for (int r = 0; r < n && f->screened; r++)
    f->reaches[r] = pst_kernels_screen_reach(&f->in_kept, (size_t)first + (size_t)r);
  for (int stage = 0; stage < 3; stage++) atomic_store_explicit(&f->claims[stage], 0, memory_order_relaxed);
  for (int t = 0; t < f->n_threads; t++) {
    f->lanes[t].n_passed = 0;
    for (int r = 0; r < n; r++) {
      f->lanes[t].picks[r].token = -1;
      f->lanes[t].floors[r] = -INFINITY;
    }
  }
  pst_engine_pool_run(f->n_threads, greedy_thread, f);
  int n_passed = 0;
  for (int t = 0; t < f->n_threads; t++) n_passed += f->lanes[t].n_passed;
  if (f->screened && n_passed > n * (int)f->model->head.n_groups / 2) f->screen_rest = SCREEN_REST;
  for (int r = 0; r < n; r++) {
    pick best = f->lanes[0].picks[r];
    for (int t = 1; t < f->n_threads; t++) {
      pick other = f->lanes[t].picks[r];
      if (other.token >= 0 && (best.token < 0 || beats(other, best))) best = other;
    }
    ret_tokens[r] = best.token;
  }
}
