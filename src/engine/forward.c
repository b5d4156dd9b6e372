/* The forward pass: the layer table run by a team of threads.
 *
 * Each layer is a handful of stages with a meeting of all threads between them. Inside a stage work is claimed in small chunks, so that a thread that was
 * held up costs the others little. Which thread computes an element never changes its value: every element is one chain in a fixed order
 * (kernels), so claiming order, batch and chunking leave no trace in the result.
 *
 * With few tokens the small element-wise stages are done by every thread for itself into its own buffers: cheaper than meeting. */
#include "engine/forward_impl.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { ATTEND_TOKENS = 16, SPLIT_TOKENS = 4, SPLIT_BLOCKS = 8 };

static bool both_ways(const pst_engine_model *m) { return m->encoding.pooling != PST_ENGINE_POOL_NONE; }

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

static void place_routes(pst_engine_forward *f, layout *l) {
  const pst_engine_model *m = f->model;
  pst_engine_routes *r = &f->routes;
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
  size_t q = f->n_query, fl = sizeof(float), wide = PST_MAX(f->n_qkv, f->model->n_conv_layers ? 3 * embd : 0),
         per_layer = (size_t)f->model->per_layer.width, all_layers = per_layer * (size_t)s->n_layers,
         values = pst_engine_delta_values(f->model), attended = PST_MAX(q, values);
  f->x = place(l, n * embd * fl);
  f->normed = place(l, n * embd * fl);
  f->qkv = place(l, n * wide * fl);
  f->attended = place(l, n * PST_MAX(attended, f->model->n_conv_layers ? embd : 0) * fl);
  f->gated_queries = place(l, f->model->gated_queries ? n * 2 * q * fl : 0);
  f->mixed = place(l, n * pst_engine_delta_mixed(f->model) * fl);
  f->convolved = place(l, n * pst_engine_delta_channels(f->model) * fl);
  f->branch = place(l, n * embd * fl);
  f->gate_up = place(l, n * 2 * ff * fl);
  f->gated = place(l, f->any_float_down ? n * ff * fl : 0);
  f->runs = place(l, (size_t)f->max_items * sizeof *f->runs);
  f->kept = place(l, (size_t)f->max_logits * embd * fl);
  for (int i = 0; i < f->model->n_ropes; i++) f->turns[i] = place(l, n * (size_t)f->model->ropes[i].n_rot * fl);
  f->parts = place(l, f->n_threads == 1 ? 0
                                        : (size_t)f->max_blocks * SPLIT_TOKENS * (size_t)s->n_heads *
                                              PST_KERNELS_PART_FLOATS(q / (size_t)s->n_heads) * fl);
  f->per_layer = place(l, n * all_layers * fl);
  f->per_layer_gate = place(l, n * per_layer * fl);
  f->keys = place(l, (size_t)s->n_layers * sizeof *f->keys);
  place_input(l, &f->in_normed, n, embd);
  place_input(l, &f->in_attended, n, q);
  place_input(l, &f->in_recalled, n, values);
  place_input(l, &f->in_gated, n, ff);
  place_input(l, &f->in_per_layer, n, per_layer);
  place_input(l, &f->in_kept, (size_t)f->max_logits, embd);
  place_routes(f, l);
  f->claims = place(l, (size_t)f->n_claims * sizeof *f->claims);
  f->item_of = place(l, n * sizeof(int));
  f->position = place(l, n * sizeof(int));
  f->item_start = place(l, (size_t)f->max_items * sizeof(int));
  f->lanes = place(l, (size_t)f->n_threads * sizeof *f->lanes);
  for (int t = 0; t < f->n_threads; t++) {
    pst_engine_lane unplaced = {0}, *y = f->lanes ? &f->lanes[t] : &unplaced;
    y->work = place(l, PST_KERNELS_WORK_BYTES);
    y->plain = place(l, PST_ENGINE_ALONE_TOKENS * embd * fl);
    place_input(l, &y->narrow, PST_ENGINE_ALONE_TOKENS, embd);
    place_input(l, &y->wide, PST_ENGINE_ALONE_TOKENS, ff);
    place_input(l, &y->attended, PST_ENGINE_ALONE_TOKENS, q);
    place_input(l, &y->recalled, PST_ENGINE_ALONE_TOKENS, values);
    place_input(l, &y->per_layer, PST_ENGINE_ALONE_TOKENS, per_layer);
    place_input(l, &y->adapted, PST_ENGINE_STRIP_TOKENS * PST_ENGINE_ADAPTED_BLOCKS, PST_KERNELS_BLOCK);
    y->token_row = place(l, all_layers * fl);
  }
}

static uint32_t kv_type_of(pst_engine_kv kv) { return kv == PST_ENGINE_KV_Q8_0 ? PST_TYPE_Q8_0 : PST_TYPE_F16; }

size_t pst_engine_forward_page_bytes(const pst_engine_model *m, pst_engine_kv kv) {
  return pst_engine_model_all_keys_bytes(m, kv_type_of(kv)) + pst_engine_conv_bytes(m) * (size_t)m->n_conv_layers;
}

/* Fills in what the layout of the work space depends on. */
static void describe(pst_engine_forward *f, const pst_engine_model *model, pst_engine_kv kv, int max_tokens,
                     int max_items, int max_logits, int n_ctx, int n_threads) {
  f->model = (pst_engine_model *)(uintptr_t)model;
  f->k = model->kernels;
  f->kv_type = kv_type_of(kv);
  f->keys_bytes = pst_engine_model_all_keys_bytes(model, f->kv_type);
  f->page_bytes = pst_engine_forward_page_bytes(model, kv);
  f->max_tokens = max_tokens;
  f->max_items = max_items;
  f->max_logits = max_logits;
  f->max_blocks = (n_ctx + PST_KERNELS_PAGE - 1) / PST_KERNELS_PAGE;
  f->n_threads = n_threads;
  for (int i = 0; i < model->info.n_layers; i++) {
    const pst_engine_layer *y = &model->layers[i];
    const pst_engine_experts *e = &y->experts;
    f->n_query = PST_MAX(f->n_query, pst_engine_query_floats(model, y));
    f->n_qkv = PST_MAX(f->n_qkv, pst_engine_query_floats(model, y) + 2 * y->k.n_rows);
    f->any_float_down |= y->down.is_float;
    f->any_dense |= y->down.n_rows != 0;
    f->any_float_expert |= e->gate.shape.is_float || e->up.shape.is_float || e->down.shape.is_float;
  }
  f->n_claims = model->info.n_layers * PST_ENGINE_LAYER_STAGES + 4;
}

size_t pst_engine_forward_work_bytes(const pst_engine_model *model, pst_engine_kv kv, int max_tokens, int max_items,
                                     int max_logits, int n_ctx, int n_threads) {
  pst_engine_forward f = {0};
  layout l = {NULL, 0};
  describe(&f, model, kv, max_tokens, max_items, max_logits, n_ctx, n_threads);
  place_all(&f, &l);
  return l.used;
}

static void place_keys(pst_engine_forward *f) {
  for (int i = 0; i < f->model->info.n_layers; i++)
    f->keys[i] = (pst_engine_keys_place){pst_engine_model_keys_bytes(f->model, f->kv_type, i),
                                         pst_kernels_page_bytes(f->kv_type, (size_t)f->model->layers[i].head_dim)};
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
  place_keys(f);
  *ret_forward = f;
  return 0;
}

void pst_engine_forward_free(pst_engine_forward *f) {
  if (!f) return;
  pst_engine_model_unref(f->model);
  pst_free(f->memory);
  pst_free(f);
}

/* ---- products ---- */

void pst_engine_walk_products(pst_engine_walk *w, const pst_engine_product *p, int n_products,
                              const pst_kernels_input *input, int n_tokens) {
  int total = 0;
  pst_engine_adapting adapting = pst_engine_walk_adapt(w, p, n_products, input);
  for (int i = 0; i < n_products; i++) total += (int)p[i].w->n_groups;
  /* Enough chunks that threads end together; at one token a chunk is at least two groups, so that claiming stays cheap. */
  int chunk = PST_MAX(total / (w->team->n_threads * 4), n_tokens > 8 ? 1 : 2);
  int begin, end;
  while (pst_engine_walk_claim(w, total, chunk, &begin, &end)) {
    int base = 0;
    for (int i = 0; i < n_products && begin < end; i++) {
      int n = (int)p[i].w->n_groups;
      if (begin < base + n) {
        int from = begin - base, to = PST_MIN(end - base, n);
        if (adapting.n_strips) pst_engine_team_await(w->team, &adapting.done[i], adapting.n_strips);
        w->f->k->matmul(p[i].w, input, 0, (size_t)n_tokens, (size_t)from, (size_t)to, p[i].add || adapting.n_strips,
                        p[i].out, p[i].stride, w->mine->work);
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
  pst_engine_walk_next(w);
}

/* ---- stages ---- */

/* Normed and quantized x: by each thread for itself when tokens are few, else shared out. Returns the input to multiply. */
static const pst_kernels_input *norm_stage(pst_engine_walk *w, const float *x, const float *weight,
                                           pst_kernels_input *shared, int n_rows) {
  pst_engine_forward *f = w->f;
  size_t n = shared->n_cols;
  if (n_rows <= PST_ENGINE_ALONE_TOKENS) {
    pst_kernels_input *mine = &w->mine->narrow;
    float *plain = w->mine->plain;
    mine->x = plain;
    for (int t = 0; t < n_rows; t++)
      f->k->rmsnorm_quantize(x + (size_t)t * n, weight, f->model->norm_eps, plain + (size_t)t * n, mine, (size_t)t);
    return mine;
  }
  int begin, end;
  while (pst_engine_walk_claim(w, n_rows, 4, &begin, &end))
    for (int t = begin; t < end; t++)
      f->k->rmsnorm_quantize(x + (size_t)t * n, weight, f->model->norm_eps, f->normed + (size_t)t * n, shared,
                             (size_t)t);
  if (w->mine == &f->lanes[0]) shared->x = f->normed; /* one writes it, the end of the stage publishes it */
  pst_engine_walk_next(w);
  return shared;
}

/* Where the keys or values of kv head h are that a layer reads. */
static size_t head_offset(const pst_engine_forward *f, const pst_engine_layer *y, int head, bool value) {
  const pst_engine_keys_place *keys = &f->keys[y->keeper];
  return keys->at + ((size_t)head * 2 + value) * keys->head_bytes;
}

static void norm_heads(const pst_engine_forward *f, float *x, int n_heads, size_t head_dim, const float *weight,
                       bool whole) {
  size_t n = head_dim * (whole ? (size_t)n_heads : 1);
  for (int h = 0; h < (whole ? 1 : n_heads); h++)
    f->k->rmsnorm(x + (size_t)h * n, weight, n, f->model->norm_eps, x + (size_t)h * n);
}

static float temperature(const pst_engine_model *m, int position) {
  return (float)(1 + m->temperature_beta * log1p(floor(position / m->temperature_length)));
}

/* Turns queries and keys and stores keys and values, where the layer keeps its own; a piece of work is one token. */
static void store_stage(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_model_info *s = &f->model->info;
  const pst_engine_rope *r = y->rope < 0 ? NULL : &f->model->ropes[y->rope];
  size_t hd = (size_t)y->head_dim, q = pst_engine_query_floats(f->model, y), kv = y->k.n_rows;
  int n_kv_heads = kv ? y->n_kv_heads : 0;
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, f->n_tokens > 16 ? 4 : 1, &begin, &end))
    for (int t = begin; t < end; t++) {
      float *query = f->qkv + (size_t)t * (q + 2 * kv), *key = query + q, *value = key + kv;
      int position = f->position[t];
      uint8_t *page = f->items[f->item_of[t]].pages[position / PST_KERNELS_PAGE];
      size_t slot = (size_t)position % PST_KERNELS_PAGE;
      const float *both = f->gated_queries + (size_t)t * 2 * q;
      for (int h = 0; h < s->n_heads && f->model->gated_queries; h++)
        memcpy(query + (size_t)h * hd, both + (size_t)h * 2 * hd, hd * sizeof *query);
      if (kv && !y->v.n_rows) memcpy(value, key, kv * sizeof *value);
      if (y->q_norm) norm_heads(f, query, s->n_heads, hd, y->q_norm, y->norm_whole);
      if (y->k_norm) norm_heads(f, key, n_kv_heads, hd, y->k_norm, y->norm_whole);
      if (y->norm_values) norm_heads(f, value, n_kv_heads, hd, NULL, false);
      if (r) {
        const float *turn = f->turns[y->rope] + (size_t)t * (size_t)r->n_rot;
        f->k->rope(query, (size_t)s->n_heads, hd, (size_t)r->n_rot, r->style, turn);
        f->k->rope(key, (size_t)n_kv_heads, hd, (size_t)r->n_rot, r->style, turn);
      }
      if (f->model->temperature_beta > 0) f->k->scale(query, temperature(f->model, position), q, query);
      for (int h = 0; h < n_kv_heads; h++) {
        f->k->store_key(f->kv_type, hd, key + (size_t)h * hd, slot, page + head_offset(f, y, h, false));
        f->k->store_value(f->kv_type, hd, value + (size_t)h * hd, slot, page + head_offset(f, y, h, true));
      }
    }
  pst_engine_walk_next(w);
}

/* ---- attention: pieces of one kv head of up to ATTEND_TOKENS tokens of one item ---- */

static int pieces_of(const pst_engine_forward *f, const pst_engine_layer *y, int item) {
  return (f->items[item].n + ATTEND_TOKENS - 1) / ATTEND_TOKENS * y->n_kv_heads;
}

static pst_kernels_attend piece_at(const pst_engine_forward *f, const pst_engine_layer *y, int index) {
  const pst_engine_model_info *s = &f->model->info;
  size_t hd = (size_t)y->head_dim, q = pst_engine_query_floats(f->model, y), kv = y->k.n_rows;
  int per_kv = s->n_heads / y->n_kv_heads, item = 0;
  for (; index >= pieces_of(f, y, item); item++) index -= pieces_of(f, y, item);
  const pst_engine_forward_item *it = &f->items[item];
  int head = index % y->n_kv_heads, offset = index / y->n_kv_heads * ATTEND_TOKENS;
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
      .k_offset = head_offset(f, y, head, false),
      .v_offset = head_offset(f, y, head, true),
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
static bool attend_split(pst_engine_walk *w, const pst_engine_layer *y, int n_pieces) {
  pst_engine_forward *f = w->f;
  if (w->team->n_threads == 1 || both_ways(f->model) || f->n_tokens > SPLIT_TOKENS ||
      n_pieces >= 4 * w->team->n_threads)
    return false;
  size_t block_floats = PST_KERNELS_PART_FLOATS((size_t)y->head_dim), b = 0, e = 0;
  pst_kernels_attend a;
  int n_ranges = 0;
  for (int i = 0; i < n_pieces; i++) {
    a = piece_at(f, y, i);
    blocks_of(&a, &b, &e);
    n_ranges += (int)((e - b + SPLIT_BLOCKS - 1) / SPLIT_BLOCKS);
  }
  if (n_ranges < n_pieces + w->team->n_threads) return false;
  int begin, end;
  while (pst_engine_walk_claim(w, n_ranges, 1, &begin, &end)) {
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
  pst_engine_walk_next(w);
  while (pst_engine_walk_claim(w, n_pieces, 1, &begin, &end)) {
    float *parts = f->parts;
    for (int i = 0; i <= begin; i++) {
      a = piece_at(f, y, i);
      blocks_of(&a, &b, &e);
      if (i < begin) parts += (e - b) * a.n_tokens * a.n_heads * block_floats;
    }
    f->k->attention_merge(&a, b, e, parts);
  }
  pst_engine_walk_next(w);
  return true;
}

static void attend_stage(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  int n_pieces = 0, begin, end;
  for (int i = 0; i < f->n_items; i++) n_pieces += pieces_of(f, y, i);
  if (attend_split(w, y, n_pieces)) return;
  while (pst_engine_walk_claim(w, n_pieces, 1, &begin, &end)) {
    /* Later pieces of a prompt see more keys and take longer: hand them out first. */
    pst_kernels_attend a = piece_at(f, y, n_pieces - 1 - begin);
    f->k->attention(&a, w->mine->work);
  }
  pst_engine_walk_next(w);
}

/* Rows of floats, quantized as an input. */
const pst_kernels_input *pst_engine_walk_quantize(pst_engine_walk *w, const float *rows, pst_kernels_input *shared,
                                                  pst_kernels_input *own) {
  pst_engine_forward *f = w->f;
  size_t n = shared->n_cols;
  if (pst_engine_walk_alone(f)) {
    own->x = rows;
    for (int t = 0; t < f->n_tokens; t++) f->k->quantize(rows + (size_t)t * n, 0, own->n_blocks, own, (size_t)t);
    return own;
  }
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 4, &begin, &end))
    for (int t = begin; t < end; t++) f->k->quantize(rows + (size_t)t * n, 0, shared->n_blocks, shared, (size_t)t);
  if (w->mine == &f->lanes[0]) shared->x = rows;
  pst_engine_walk_next(w);
  return shared;
}

/* What a branch of a layer reads: x through its norm, or as it is. */
const pst_kernels_input *pst_engine_walk_enter(pst_engine_walk *w, const float *norm) {
  pst_engine_forward *f = w->f;
  if (norm) return norm_stage(w, f->x, norm, &f->in_normed, f->n_tokens);
  return pst_engine_walk_quantize(w, f->x, &f->in_normed, &w->mine->narrow);
}

/* A row of gate_up holds gate's and up's products; of a layer without a gate up's alone, at its start. */
static const float *up_of(const pst_engine_layer *y, const float *row, size_t ff) {
  return y->gate.n_rows ? row + ff : NULL;
}

const pst_kernels_input *pst_engine_walk_gate(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t ff = y->up.n_rows;
  pst_kernels_input *shared = &w->mine->shared_wide;
  pst_kernels_gate kind = f->model->gate;
  if (y->down.is_float) {
    int begin, end;
    while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
      for (int t = begin; t < end; t++) {
        const float *row = f->gate_up + (size_t)t * 2 * ff;
        f->k->gated(kind, row, up_of(y, row, ff), ff, f->gated + (size_t)t * ff);
      }
    pst_engine_walk_next(w);
    return shared;
  }
  if (pst_engine_walk_alone(f)) {
    pst_kernels_input *own = &w->mine->wide;
    for (int t = 0; t < f->n_tokens; t++) {
      const float *row = f->gate_up + (size_t)t * 2 * ff;
      f->k->gated_quantize(kind, row, up_of(y, row, ff), 0, own->n_blocks, own, (size_t)t);
    }
    return own;
  }
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 2, &begin, &end))
    for (int t = begin; t < end; t++) {
      const float *row = f->gate_up + (size_t)t * 2 * ff;
      f->k->gated_quantize(kind, row, up_of(y, row, ff), 0, shared->n_blocks, shared, (size_t)t);
    }
  pst_engine_walk_next(w);
  return shared;
}

/* x += matrix * input, through a bias, a norm or a factor; then x itself may be normed. */
void pst_engine_walk_back(pst_engine_walk *w, pst_engine_branch_end b, const pst_kernels_input *input) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  float factor = f->model->residual_scale, eps = f->model->norm_eps;
  if (!b.norm && !b.sum_norm.weight && !b.sum_scale && factor == 1.0f) {
    pst_engine_product p = {b.matrix, f->x, n, b.bias, true, b.slot};
    pst_engine_walk_products(w, &p, 1, input, f->n_tokens);
    return;
  }
  pst_engine_product p = {b.matrix, f->branch, n, b.bias, false, b.slot};
  pst_engine_walk_products(w, &p, 1, input, f->n_tokens);
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
    for (int t = begin; t < end; t++) {
      float *row = f->branch + (size_t)t * n, *x = f->x + (size_t)t * n;
      if (b.norm) f->k->rmsnorm(row, b.norm, n, eps, row);
      if (factor != 1.0f) f->k->scale(row, factor, n, row);
      f->k->add(x, row, n, x);
      if (b.sum_norm.weight) f->k->layernorm(x, b.sum_norm.weight, b.sum_norm.bias, n, eps, x);
      if (b.sum_scale) f->k->scale(x, *b.sum_scale, n, x);
    }
  pst_engine_walk_next(w);
}

/* ---- a layer ---- */

/* Every head's output times the sigmoid of its gate. */
static void gate_heads_stage(pst_engine_walk *w) {
  pst_engine_forward *f = w->f;
  size_t hd = (size_t)f->model->info.head_dim, n_heads = (size_t)f->model->info.n_heads;
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
    for (size_t t = (size_t)begin; t < (size_t)end; t++)
      for (size_t h = 0; h < n_heads; h++) {
        float *out = f->attended + (t * n_heads + h) * hd;
        f->k->gated(PST_KERNELS_SIGMOID, f->gated_queries + (t * n_heads + h) * 2 * hd + hd, out, hd, out);
      }
  pst_engine_walk_next(w);
}

static void run_attention(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t q = pst_engine_query_floats(f->model, y), kv = y->k.n_rows;
  const pst_kernels_input *in = pst_engine_walk_enter(w, y->attn_norm);
  bool gated = f->model->gated_queries;
  pst_engine_product qkv[] = {
      {&y->q, gated ? f->gated_queries : f->qkv, gated ? 2 * q : q + 2 * kv, y->q_bias, false, PST_ENGINE_ADAPT_Q},
      {&y->k, f->qkv + q, q + 2 * kv, y->k_bias, false, PST_ENGINE_ADAPT_K},
      {&y->v, f->qkv + q + kv, q + 2 * kv, y->v_bias, false, PST_ENGINE_ADAPT_V}};
  pst_engine_walk_products(w, qkv, y->v.n_rows ? 3 : kv ? 2 : 1, in, f->n_tokens);
  store_stage(w, y);
  attend_stage(w, y);
  if (gated) gate_heads_stage(w);
  in = pst_engine_walk_quantize(w, f->attended, &w->mine->shared_attended, &w->mine->attended);
  pst_engine_walk_back(
      w, (pst_engine_branch_end){&y->o, y->o_bias, y->post_attn_norm, y->attn_sum_norm, PST_ENGINE_ADAPT_O, NULL}, in);
}

static void run_feed_forward(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t ff = y->up.n_rows;
  const pst_kernels_input *in = pst_engine_walk_enter(w, y->ffn_norm);
  bool gated = y->gate.n_rows != 0;
  pst_engine_product up[] = {
      {&y->up, gated ? f->gate_up + ff : f->gate_up, 2 * ff, y->up_bias, false, PST_ENGINE_ADAPT_UP},
      {&y->gate, f->gate_up, 2 * ff, NULL, false, PST_ENGINE_ADAPT_GATE}};
  pst_engine_walk_products(w, up, gated ? 2 : 1, in, f->n_tokens);
  in = pst_engine_walk_gate(w, y);
  pst_engine_walk_back(w,
                       (pst_engine_branch_end){&y->down, y->down_bias, y->post_ffn_norm, y->ffn_sum_norm,
                                               PST_ENGINE_ADAPT_DOWN, pst_engine_last_scale(y)},
                       in);
}

/* Layers may differ in width: their inputs lie in memory for the widest. */
static void fit_inputs(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  pst_engine_lane *mine = w->mine;
  size_t q = pst_engine_query_floats(f->model, y);
  mine->shared_attended = f->in_attended;
  mine->shared_attended.x = f->attended;
  mine->shared_wide = f->in_gated;
  mine->shared_wide.x = f->gated;
  pst_engine_input_narrow(&mine->shared_attended, q);
  pst_engine_input_narrow(&mine->attended, q);
  pst_engine_input_narrow(&mine->shared_wide, y->up.n_rows);
  pst_engine_input_narrow(&mine->wide, y->up.n_rows);
}

static void run_layer(pst_engine_walk *w, int layer) {
  const pst_engine_layer *y = &w->f->model->layers[layer];
  w->layer = layer;
  w->stage = layer * PST_ENGINE_LAYER_STAGES;
  fit_inputs(w, y);
  if (y->conv.in.n_rows)
    pst_engine_walk_conv(w, y);
  else if (y->delta.out.n_rows)
    pst_engine_walk_delta(w, y);
  else
    run_attention(w, y);
  if (y->experts.router.n_rows)
    pst_engine_walk_experts(w, y);
  else
    run_feed_forward(w, y);
  if (y->per_layer_gate.n_rows) pst_engine_walk_per_layer(w, y, layer);
  assert(w->stage <= (layer + 1) * PST_ENGINE_LAYER_STAGES); /* each stage has a claim counter of its own */
}

/* ---- a step ---- */

/* What an encoder adds to a token's embedding. */
static void embed_more(const pst_engine_walk *w, int position, float *x) {
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

static void embed(pst_engine_walk *w) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 4, &begin, &end))
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
  pst_engine_walk_next(w);
}

static void keep(pst_engine_walk *w) {
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
  pst_engine_walk w = {f, team, &f->lanes[index], f->model->info.n_layers * PST_ENGINE_LAYER_STAGES, -1};
  embed(&w);
  if (f->model->per_layer.tokens) pst_engine_walk_per_layer_inputs(&w);
  for (int i = 0; i < f->model->info.n_layers; i++) run_layer(&w, i);
  keep(&w);
}

/* Neighbours with the same adapter, or with none, are one run. */
static void add_to_runs(pst_engine_forward *f, const pst_engine_forward_item *item, int first) {
  pst_engine_adapter_run *last = f->n_runs ? &f->runs[f->n_runs - 1] : NULL;
  if (last && last->adapter == item->adapter)
    last->n += item->n;
  else
    f->runs[f->n_runs++] = (pst_engine_adapter_run){item->adapter, first, item->n};
}

void pst_engine_forward_run(pst_engine_forward *f, const pst_engine_forward_item *items, int n_items) {
  f->items = items;
  f->n_items = n_items;
  f->n_tokens = 0;
  f->n_runs = 0;
  for (int i = 0; i < n_items; i++) {
    f->item_start[i] = f->n_tokens;
    add_to_runs(f, &items[i], f->n_tokens);
    for (int k = 0; k < items[i].n; k++, f->n_tokens++) {
      f->item_of[f->n_tokens] = i;
      f->position[f->n_tokens] = items[i].first + k;
    }
  }
  if (f->n_runs == 1 && !f->runs[0].adapter) f->n_runs = 0;
  for (int i = 0; i < f->n_claims; i++) atomic_store_explicit(&f->claims[i], 0, memory_order_relaxed);
  pst_engine_pool_run(f->n_threads, step_thread, f);
}

const float *pst_engine_forward_states(const pst_engine_forward *f) { return f->x; }
