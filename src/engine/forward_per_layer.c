/* Embeddings by layer (Gemma 4 E2B and E4B): each layer is given a few numbers about the token that no layer before it has touched.
 *
 * Owns the two stages of it. The numbers of all layers are made once a step: the token's row of a table, which is read from the file where it lies and is
 * never held as a whole, added to a projection of the token's embedding. A layer gates its share by x and projects it back. */
#include <math.h>

#include "engine/forward_impl.h"

/* A token's share for every layer: (projection / sqrt(n_embd), normed by layer, + table row * sqrt(width)) / sqrt(2). */
static void combine_token(const pst_engine_walk *w, int32_t token, float *row) {
  const pst_engine_forward *f = w->f;
  const pst_engine_model *m = f->model;
  const pst_engine_gguf_tensor *table = m->per_layer.tokens;
  size_t width = (size_t)m->per_layer.width, n = width * (size_t)m->info.n_layers;
  float *looked_up = w->mine->token_row;
  /* The type was checked when the model was opened, so that this cannot fail. */
  (void)pst_kernels_dequantize_row(table->type, table->data + (size_t)token * pst_kernels_row_bytes(table->type, n), n,
                                   looked_up);
  f->k->scale(looked_up, sqrtf((float)width), n, looked_up);
  f->k->scale(row, 1.0f / sqrtf((float)m->info.n_embd), n, row);
  for (size_t at = 0; at < n; at += width) f->k->rmsnorm(row + at, m->per_layer.norm, width, m->norm_eps, row + at);
  f->k->add(row, looked_up, n, row);
  f->k->scale(row, sqrtf(0.5f), n, row);
}

void pst_engine_walk_per_layer_inputs(pst_engine_walk *w) {
  pst_engine_forward *f = w->f;
  const pst_engine_per_layer *p = &f->model->per_layer;
  size_t n = p->project.n_rows;
  const pst_kernels_input *in = pst_engine_walk_quantize(w, f->x, &f->in_normed, &w->mine->narrow);
  pst_engine_product project = {&p->project, f->per_layer, n, NULL, false, PST_ENGINE_ADAPT_NONE};
  pst_engine_walk_products(w, &project, 1, in, f->n_tokens);
  int begin, end;
  while (pst_engine_walk_claim(w, f->n_tokens, 1, &begin, &end))
    for (int t = begin; t < end; t++) {
      int item = f->item_of[t];
      combine_token(w, f->items[item].tokens[t - f->item_start[item]], f->per_layer + (size_t)t * n);
    }
  pst_engine_walk_next(w);
}

/* activation(gate) * the layer's share, as the input of the projection back. */
static const pst_kernels_input *gate_share(pst_engine_walk *w, const pst_engine_layer *y, int layer) {
  pst_engine_forward *f = w->f;
  size_t width = (size_t)f->model->per_layer.width, all = f->model->per_layer.project.n_rows;
  const float *shares = f->per_layer + (size_t)layer * width;
  pst_kernels_gate kind = f->model->gate;
  bool floats = y->per_layer_project.is_float, alone = pst_engine_walk_alone(f) && !floats;
  pst_kernels_input *in = alone ? &w->mine->per_layer : &f->in_per_layer;
  int begin = 0, end = f->n_tokens;
  while (alone || pst_engine_walk_claim(w, f->n_tokens, 2, &begin, &end)) {
    for (size_t t = (size_t)begin; t < (size_t)end; t++) {
      float *gate = f->per_layer_gate + t * width;
      if (floats)
        f->k->gated(kind, gate, shares + t * all, width, gate);
      else
        f->k->gated_quantize(kind, gate, shares + t * all, 0, in->n_blocks, in, t);
    }
    if (alone) return in;
  }
  if (w->mine == &f->lanes[0]) in->x = f->per_layer_gate;
  pst_engine_walk_next(w);
  return in;
}

void pst_engine_walk_per_layer(pst_engine_walk *w, const pst_engine_layer *y, int layer) {
  pst_engine_forward *f = w->f;
  const pst_kernels_input *in = pst_engine_walk_quantize(w, f->x, &f->in_normed, &w->mine->narrow);
  pst_engine_product gate = {&y->per_layer_gate,   f->per_layer_gate, y->per_layer_gate.n_rows, NULL, false,
                             PST_ENGINE_ADAPT_NONE};
  pst_engine_walk_products(w, &gate, 1, in, f->n_tokens);
  in = gate_share(w, y, layer);
  pst_engine_walk_back(
      w,
      (pst_engine_branch_end){.matrix = &y->per_layer_project, .norm = y->per_layer_norm, .sum_scale = y->output_scale},
      in);
}
