/* Branches of a layer other than attention and the dense feed-forward: mixtures of experts, short convolutions, gated delta nets.
 *
 * Exactness. Experts: an expert's rows are multiplied together, so that its weights are read once a step, and a token's experts are summed in the router's order.
 * Convolutions look at inputs of this step or at kept ones: the same floats. A recurrence goes through a sequence's tokens one by one. */
#include "engine/forward_impl.h"

#include <math.h>
#include <string.h>

#include "engine/scheduler.h"

/* What positions behind a taken-back draft look at is still kept. */
_Static_assert(PST_ENGINE_CONV_KEPT >= PST_ENGINE_MAX_DRAFT + PST_ENGINE_MAX_CONV - 1,
               "a convolution keeps too few inputs");

/* ---- convolutions ---- */

/* Where the input of a convolution at a position is kept. */
static float *conv_slot(const pst_engine_forward *f, const pst_engine_layer *y, int item, int position) {
  const pst_engine_model *m = f->model;
  uint8_t *page = f->items[item].pages[position / PST_KERNELS_PAGE];
  float *rows = (float *)(void *)(page + f->keys_bytes + (size_t)y->store * pst_engine_conv_bytes(m));
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
static void conv_stages(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
    for (int t = begin; t < end; t++) {
      float *out = f->attended + (size_t)t * n;
      const float *c = f->qkv + (size_t)t * 3 * n + n;
      memset(out, 0, n * sizeof *out);
      for (int before = f->model->n_conv - 1; before >= 0; before--) add_tap(f, y, t, before, out);
      for (size_t i = 0; i < n; i++) out[i] *= c[i];
    }
  pst_engine_walk_next(w); /* kept inputs are read before they are overwritten */
  while (pst_engine_walk_claim(w, f->n_tokens, 4, &begin, &end))
    for (int t = begin; t < end; t++) {
      const pst_engine_forward_item *it = &f->items[f->item_of[t]];
      int page_end = (f->position[t] / PST_KERNELS_PAGE + 1) * PST_KERNELS_PAGE;
      if (f->position[t] + PST_ENGINE_CONV_KEPT < PST_MIN(page_end, it->first + it->n)) continue;
      const float *b = f->qkv + (size_t)t * 3 * n, *u = b + 2 * n;
      float *kept = conv_slot(f, y, f->item_of[t], f->position[t]);
      for (size_t c = 0; c < n; c++) kept[c] = b[c] * u[c];
    }
  pst_engine_walk_next(w);
}

void pst_engine_walk_conv(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  const pst_kernels_input *in = pst_engine_walk_enter(w, y->attn_norm);
  pst_engine_product bcu = {&y->conv.in, f->qkv, 3 * n, NULL, false, PST_ENGINE_ADAPT_NONE};
  pst_engine_walk_products(w, &bcu, 1, in, f->n_tokens);
  conv_stages(w, y);
  in = pst_engine_walk_quantize(w, f->attended, &f->in_normed, &w->mine->narrow);
  pst_engine_walk_back(w, (pst_engine_branch_end){.matrix = &y->conv.out}, in);
}

/* ---- experts ---- */

/* The n_experts_used greatest logits of token t, greatest first, the lowest expert of equals; softmax over them. */
static void route_token(pst_engine_forward *f, const pst_engine_experts *e, int t) {
  pst_engine_routes *r = &f->routes;
  int n = f->model->n_experts, n_used = f->model->n_experts_used;
  float *logits = r->logits + (size_t)t * (size_t)n, *weight = r->weight + (size_t)t * (size_t)n_used;
  int *expert = r->expert + (size_t)t * (size_t)n_used;
  if (e->router_norm) f->k->scale(logits, 1.0f / sqrtf((float)f->model->info.n_embd), (size_t)n, logits);
  if (e->router_bias) f->k->add(logits, e->router_bias, (size_t)n, logits);
  for (int k = 0; k < n_used; k++) {
    expert[k] = (int)f->k->argmax(logits, (size_t)n);
    weight[k] = logits[expert[k]];
    logits[expert[k]] = -INFINITY;
  }
  float total = f->k->sum_exp(weight, (size_t)n_used, weight[0]);
  for (int k = n_used - 1; k >= 0; k--) weight[k] = f->k->sum_exp(&weight[k], 1, weight[0]) / total;
  for (int k = 0; k < n_used && e->output_scale; k++) weight[k] *= e->output_scale[expert[k]];
}

/* Rows in order of experts, then tokens. */
static void group_rows(pst_engine_forward *f) {
  pst_engine_routes *r = &f->routes;
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
static void gather_stage(pst_engine_walk *w, const pst_engine_experts *y, const pst_kernels_input *in) {
  pst_engine_routes *r = &w->f->routes;
  bool floats = y->gate.shape.is_float || y->up.shape.is_float,
       codes = !y->gate.shape.is_float || !y->up.shape.is_float;
  size_t n = in->n_cols, blocks = in->n_blocks;
  int begin, end;
  while (pst_engine_walk_claim(w, r->n_rows, 4, &begin, &end))
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
  pst_engine_walk_next(w);
}

/* Products of every active expert with its rows: matrix m of all to columns from m * rows of the matrix on. */
static void expert_products(pst_engine_walk *w, const pst_engine_expert_matrix *const *matrices, int n_matrices,
                            const pst_kernels_input *in, float *out, size_t stride) {
  pst_engine_routes *r = &w->f->routes;
  int n_groups = (int)matrices[0]->shape.n_groups, total = r->n_active * n_matrices * n_groups, begin, end;
  size_t n_cols = matrices[0]->shape.n_rows;
  while (pst_engine_walk_claim(w, total, PST_MAX(total / (w->team->n_threads * 8), 2), &begin, &end))
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
  pst_engine_walk_next(w);
}

static void expert_gate_stage(pst_engine_walk *w, bool to_floats) {
  pst_engine_forward *f = w->f;
  pst_engine_routes *r = &f->routes;
  size_t ff = (size_t)f->model->n_ff_expert;
  int begin, end;
  while (pst_engine_walk_claim(w, r->n_rows, 2, &begin, &end))
    for (int i = begin; i < end; i++) {
      const float *row = r->gate_up + (size_t)i * 2 * ff;
      if (to_floats)
        f->k->gated(f->model->gate, row, row + ff, ff, r->gated + (size_t)i * ff);
      else
        f->k->gated_quantize(f->model->gate, row, row + ff, 0, r->in_gated.n_blocks, &r->in_gated, (size_t)i);
    }
  if (w->mine == &f->lanes[0]) r->in_gated.x = r->gated;
  pst_engine_walk_next(w);
}

/* The weighted outputs of token t's experts, summed in the router's order: where the first one's was. */
static float *sum_experts(const pst_engine_forward *f, size_t t) {
  const pst_engine_routes *r = &f->routes;
  size_t n = (size_t)f->model->info.n_embd, n_used = (size_t)f->model->n_experts_used;
  float *sum = r->out + (size_t)r->row_of[t * n_used] * n;
  f->k->scale(sum, r->weight[t * n_used], n, sum);
  for (size_t k = 1; k < n_used; k++) {
    float *row = r->out + (size_t)r->row_of[t * n_used + k] * n;
    f->k->scale(row, r->weight[t * n_used + k], n, row);
    f->k->add(sum, row, n, sum);
  }
  return sum;
}

/* x += what a token's experts say. */
static void combine_stage(pst_engine_walk *w) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
    for (size_t t = (size_t)begin; t < (size_t)end; t++) f->k->add(f->x + t * n, sum_experts(f, t), n, f->x + t * n);
  pst_engine_walk_next(w);
}

/* The layer's own gate, up and down over `in`, into f->branch. */
static void run_dense(pst_engine_walk *w, const pst_engine_layer *y, const pst_kernels_input *in) {
  pst_engine_forward *f = w->f;
  size_t ff = y->up.n_rows;
  pst_engine_product gate_up[] = {{&y->gate, f->gate_up, 2 * ff, NULL, false, PST_ENGINE_ADAPT_NONE},
                                  {&y->up, f->gate_up + ff, 2 * ff, NULL, false, PST_ENGINE_ADAPT_NONE}};
  pst_engine_walk_products(w, gate_up, 2, in, f->n_tokens);
  pst_engine_product down = {&y->down, f->branch, (size_t)f->model->info.n_embd, NULL, false, PST_ENGINE_ADAPT_NONE};
  pst_engine_walk_products(w, &down, 1, pst_engine_walk_gate(w, y), f->n_tokens);
}

/* x += the expert that every token goes through, as its gate says. `in`: the normed x that the others read. */
static void run_shared_expert(pst_engine_walk *w, const pst_engine_layer *y, const pst_kernels_input *in) {
  pst_engine_forward *f = w->f;
  size_t n = (size_t)f->model->info.n_embd;
  int begin, end;
  run_dense(w, y, in);
  while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
    for (size_t t = (size_t)begin; t < (size_t)end; t++) {
      float *row = f->branch + t * n, *x = f->x + t * n;
      f->k->scale(row, 1.0f / (1.0f + expf(-f->routes.shared[t])), n, row);
      f->k->add(x, row, n, x);
    }
  pst_engine_walk_next(w);
}

/* Which experts each token goes to. */
static void route_stages(pst_engine_walk *w, const pst_engine_experts *e, const pst_kernels_input *in) {
  pst_engine_forward *f = w->f;
  bool shares = e->shared_gate.n_rows != 0;
  pst_engine_product router[] = {
      {&e->router, f->routes.logits, (size_t)f->model->n_experts, NULL, false, PST_ENGINE_ADAPT_NONE},
      {&e->shared_gate, f->routes.shared, 1, NULL, false, PST_ENGINE_ADAPT_NONE}};
  pst_engine_walk_products(w, router, shares ? 2 : 1, in, f->n_tokens);
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 2, &begin, &end))
    for (int t = begin; t < end; t++) route_token(f, e, t);
  pst_engine_walk_next(w);
  if (w->mine == &f->lanes[0]) group_rows(f);
  pst_engine_walk_next(w);
}

/* An expert's rows are multiplied together, so that its weights are read once a step; an element is one chain all the same. */
static void run_experts(pst_engine_walk *w, const pst_engine_experts *e, const pst_kernels_input *in) {
  pst_engine_forward *f = w->f;
  const pst_engine_expert_matrix *gate_up[] = {&e->gate, &e->up}, *down[] = {&e->down};
  gather_stage(w, e, in);
  expert_products(w, gate_up, 2, &f->routes.in, f->routes.gate_up, 2 * (size_t)f->model->n_ff_expert);
  expert_gate_stage(w, e->down.shape.is_float);
  expert_products(w, down, 1, &f->routes.in_gated, f->routes.out, (size_t)f->model->info.n_embd);
}

/* Experts and the dense branch side by side: both read x, each through a norm of its own, and their normed sum is what the layer adds. */
static void run_both_branches(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_experts *e = &y->experts;
  size_t n = (size_t)f->model->info.n_embd;
  float eps = f->model->norm_eps;
  const float *last_scale = pst_engine_last_scale(y);
  int begin, end;
  route_stages(w, e, pst_engine_walk_enter(w, e->router_norm));
  run_experts(w, e, pst_engine_walk_enter(w, e->in_norm));
  run_dense(w, y, pst_engine_walk_enter(w, y->ffn_norm));
  while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
    for (size_t t = (size_t)begin; t < (size_t)end; t++) {
      float *dense = f->branch + t * n, *sum = sum_experts(f, t), *x = f->x + t * n;
      f->k->rmsnorm(dense, e->dense_norm, n, eps, dense);
      f->k->rmsnorm(sum, e->out_norm, n, eps, sum);
      f->k->add(dense, sum, n, dense);
      f->k->rmsnorm(dense, y->post_ffn_norm, n, eps, dense);
      f->k->add(x, dense, n, x);
      if (last_scale) f->k->scale(x, *last_scale, n, x);
    }
  pst_engine_walk_next(w);
}

void pst_engine_walk_experts(pst_engine_walk *w, const pst_engine_layer *y) {
  if (y->experts.router_norm) {
    run_both_branches(w, y);
    return;
  }
  const pst_kernels_input *in = pst_engine_walk_enter(w, y->ffn_norm);
  route_stages(w, &y->experts, in);
  run_experts(w, &y->experts, in);
  combine_stage(w);
  if (y->experts.shared_gate.n_rows) run_shared_expert(w, y, in);
}

/* ---- delta nets ---- */

static float *delta_state(const pst_engine_forward *f, const pst_engine_layer *y, int item) {
  return f->items[item].state + (size_t)y->store * pst_engine_model_state_floats(f->model);
}

/* Where a sequence keeps the convolution's input at a position. */
static float *delta_kept(const pst_engine_forward *f, const pst_engine_layer *y, int item, int position) {
  const pst_engine_model *m = f->model;
  size_t row = (size_t)(position % (m->n_conv - 1));
  return delta_state(f, y, item) + pst_engine_delta_values(m) * (size_t)m->delta_head +
         row * pst_engine_delta_channels(m);
}

/* The channels of token t through the convolution and SiLU; queries and keys at unit length, queries by 1/sqrt(head) besides. */
static void convolve_token(const pst_engine_forward *f, const pst_engine_layer *y, int t) {
  const pst_engine_model *m = f->model;
  size_t n = pst_engine_delta_channels(m), n_conv = (size_t)m->n_conv, head = (size_t)m->delta_head;
  float *out = f->convolved + (size_t)t * n;
  int item = f->item_of[t];
  memset(out, 0, n * sizeof *out);
  for (size_t k = 0; k < n_conv; k++) {
    int before = (int)(n_conv - 1 - k), position = f->position[t] - before;
    if (position < 0) continue;
    const float *x = position < f->items[item].first ? delta_kept(f, y, item, position)
                                                     : f->mixed + (size_t)(t - before) * pst_engine_delta_mixed(m);
    for (size_t c = 0; c < n; c++) out[c] += y->delta.taps[c * n_conv + k] * x[c];
  }
  f->k->gated(PST_KERNELS_SILU, out, NULL, n, out);
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
  size_t channels = pst_engine_delta_channels(m), values = pst_engine_delta_values(m);
  float *state = delta_state(f, y, item) + h * head * head;
  size_t first = (size_t)f->item_start[item], n = (size_t)f->items[item].n;
  for (size_t t = first; t < first + n; t++) {
    const float *row = f->convolved + t * channels, *mixed = f->mixed + t * pst_engine_delta_mixed(m);
    const float *z = mixed + channels + h * head, *rates = mixed + channels + values;
    float x = rates[alpha_at] + y->delta.alpha_bias[h], soft = x > 20.0f ? x : log1pf(expf(x));
    float *out = f->attended + t * values + h * head;
    f->k->delta_rule(state, head, head, row + key * head, row + (n_k + key) * head, row + (2 * n_k + h) * head,
                     expf(y->delta.rate[h] * soft), 1.0f / (1.0f + expf(-rates[beta_at])), out);
    f->k->rmsnorm(out, y->delta.norm, head, m->norm_eps, out);
    f->k->gated(PST_KERNELS_SILU, z, out, head, out);
  }
}

static void recall_stages(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_model *m = f->model;
  size_t channels = pst_engine_delta_channels(m);
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
    for (int t = begin; t < end; t++) convolve_token(f, y, t);
  pst_engine_walk_next(w); /* kept inputs are read before they are overwritten */
  while (pst_engine_walk_claim(w, f->n_items * m->n_delta_v, 1, &begin, &end)) {
    int item = begin / m->n_delta_v, h = begin % m->n_delta_v;
    const pst_engine_forward_item *it = &f->items[item];
    recall_head(f, y, item, (size_t)h);
    for (int i = PST_MAX(it->n - m->n_conv + 1, 0); i < it->n && h == 0; i++) {
      size_t t = (size_t)f->item_start[item] + (size_t)i;
      memcpy(delta_kept(f, y, item, it->first + i), f->mixed + t * pst_engine_delta_mixed(m), channels * sizeof(float));
    }
  }
  pst_engine_walk_next(w);
}

void pst_engine_walk_delta(pst_engine_walk *w, const pst_engine_layer *y) {
  pst_engine_forward *f = w->f;
  const pst_engine_model *m = f->model;
  const pst_engine_delta *d = &y->delta;
  size_t channels = pst_engine_delta_channels(m), values = pst_engine_delta_values(m), n_v = (size_t)m->n_delta_v,
         all = pst_engine_delta_mixed(m);
  const pst_kernels_input *in = pst_engine_walk_enter(w, y->attn_norm);
  pst_engine_product mixed[] = {
      {&d->qkv, f->mixed, all, NULL, false, PST_ENGINE_ADAPT_NONE},
      {&d->z, f->mixed + channels, all, NULL, false, PST_ENGINE_ADAPT_NONE},
      {&d->beta, f->mixed + channels + values, all, NULL, false, PST_ENGINE_ADAPT_NONE},
      {&d->alpha, f->mixed + channels + values + n_v, all, NULL, false, PST_ENGINE_ADAPT_NONE}};
  pst_engine_walk_products(w, mixed, m->delta_grouped ? 3 : 4, in, f->n_tokens);
  recall_stages(w, y);
  in = pst_engine_walk_quantize(w, f->attended, &f->in_recalled, &w->mine->recalled);
  pst_engine_walk_back(w, (pst_engine_branch_end){.matrix = &d->out}, in);
}
