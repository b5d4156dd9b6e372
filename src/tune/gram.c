/* Gram matrices of the inputs of linear layers (gram.h).
 *
 * The forward pass keeps what goes into norms, products and activations (net_types.inc); inputs of linear layers are made from those once more, which
 * costs little beside the products, and leaves the forward pass without hooks. */
#include "tune/gram.h"

#include "tune/feedback.h"

#include <string.h>

static size_t place_all(const pst_tune_model *m, pst_tune_grams *g, float *at) {
  size_t used = 0;
  for (size_t i = 0; i <= m->n_layers; i++)
    for (int k = 0; k < (i < m->n_layers ? PST_TUNE_GROUP_COUNT : 1); k++) {
      size_t n = i < m->n_layers ? g->width[k] : m->n_embd;
      if (at && i < m->n_layers) g->layers[i][k] = at + used;
      if (at && i == m->n_layers) g->head = at + used;
      used += (pst_tune_gram_floats(n) + 15) & ~(size_t)15;
    }
  return used;
}

int pst_tune_grams_create(const pst_tune_model *model, pst_tune_grams *ret_grams, pst_error *err) {
  pst_tune_grams g = {.n_layers = model->n_layers, .n_embd = model->n_embd};
  for (int k = 0; k < PST_TUNE_GROUP_COUNT; k++)
    g.width[k] = model->layers[0].linear[pst_tune_group_members((pst_tune_group)k).first].n_in;
  g.bytes = place_all(model, &g, NULL) * sizeof(float);
  g.layers = pst_calloc(g.n_layers, sizeof *g.layers);
  g.memory = g.layers ? pst_malloc_aligned(g.bytes, 64) : NULL;
  if (!g.memory) {
    pst_free(g.layers);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %.0f MB of Gram matrices", (double)g.bytes / 1e6);
  }
  memset(g.memory, 0, g.bytes);
  place_all(model, &g, g.memory);
  *ret_grams = g;
  return 0;
}

void pst_tune_grams_done(pst_tune_grams *grams) {
  pst_free(grams->layers);
  pst_free(grams->memory);
  memset(grams, 0, sizeof *grams);
}

/* gram += x^T x, x [n_rows][n]. */
static void add(pst_tune_team *team, const float *x, size_t n_rows, size_t n, float *gram) {
  pst_tune_product_f32 p = {.n_rows = n,
                            .n_cols = n,
                            .n_deep = n_rows,
                            .a = {x, NULL, 1, n},
                            .b = {x, NULL, n, 1},
                            .c = gram,
                            .c_row = n,
                            .add = true};
  pst_tune_products_f32(team, &p, 1);
}

void pst_tune_grams_add(pst_tune_grams *grams, pst_tune_net_f32 *net, const pst_tune_batch *batch) {
  const pst_tune_model *m = net->model;
  size_t n = batch->n_tokens, n_embd = m->n_embd;
  for (size_t i = 0; i < m->n_layers; i++) {
    const pst_tune_layer *y = &m->layers[i];
    const pst_tune_kept_f32 *k = &net->kept[i];
    float *const *to = grams->layers[i];
    pst_tune_norm_f32(net->team, k->x, y->attn_norm, n, n_embd, m->norm_eps, net->normed);
    add(net->team, net->normed, n, n_embd, to[PST_TUNE_GROUP_QKV]);
    add(net->team, k->attended, n, grams->width[PST_TUNE_GROUP_O], to[PST_TUNE_GROUP_O]);
    pst_tune_norm_f32(net->team, k->middle, y->ffn_norm, n, n_embd, m->norm_eps, net->normed);
    add(net->team, net->normed, n, n_embd, to[PST_TUNE_GROUP_GATE_UP]);
    pst_tune_gate_f32(net->team, m->gelu, k->gate_up, n, m->n_ff, net->active);
    add(net->team, net->active, n, m->n_ff, to[PST_TUNE_GROUP_DOWN]);
  }
  pst_tune_norm_f32(net->team, net->last, m->output_norm, n, n_embd, m->norm_eps, net->normed);
  add(net->team, net->normed, n, n_embd, grams->head);
  grams->n_tokens += n;
}
