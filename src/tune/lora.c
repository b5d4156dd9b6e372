/* The row of trained numbers: offsets and start (lora.h). */
#include "tune/lora.h"

#include <math.h>
#include <string.h>

static void place_layer(const pst_tune_model *model, pst_tune_lora *lora, const bool *roles, size_t layer) {
  pst_tune_lora_layer *y = &lora->layers[layer];
  for (int g = 0; g < PST_TUNE_GROUP_COUNT; g++) {
    pst_tune_members of = pst_tune_group_members((pst_tune_group)g);
    y->a[g] = lora->n;
    for (int r = of.first; r < of.first + of.n; r++) {
      bool trained = roles[r] && model->layers[layer].linear[r].n_out;
      y->place[r] = trained ? y->n_trained[g]++ : PST_TUNE_NO_ADAPTER;
      if (trained) lora->n += lora->rank * model->layers[layer].linear[r].n_in;
    }
    for (int r = of.first; r < of.first + of.n; r++) {
      y->b[r] = lora->n;
      if (y->place[r] >= 0) lora->n += lora->rank * model->layers[layer].linear[r].n_out;
    }
  }
}

int pst_tune_lora_init(const pst_tune_model *model, size_t rank, double alpha, const bool *roles,
                       pst_tune_lora *ret_lora, pst_error *err) {
  pst_tune_lora l = {.rank = rank, .scale = alpha / (double)rank, .n_layers = model->n_layers};
  bool any = false;
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) any |= roles[r];
  if (!any || rank < 1) return pst_error_set(err, PST_E_BAD_INPUT, NULL, "an adapter of no linear layer or of rank 0");
  l.layers = pst_calloc(l.n_layers, sizeof *l.layers);
  if (!l.layers) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an adapter's table");
  for (size_t i = 0; i < l.n_layers; i++) place_layer(model, &l, roles, i);
  l.head = l.n;
  l.n += model->n_labels * model->n_embd;
  *ret_lora = l;
  return 0;
}

void pst_tune_lora_done(pst_tune_lora *lora) {
  pst_free(lora->layers);
  memset(lora, 0, sizeof *lora);
}

size_t pst_tune_lora_a(const pst_tune_model *model, const pst_tune_lora *lora, size_t layer, pst_engine_role role) {
  const pst_tune_lora_layer *y = &lora->layers[layer];
  return y->a[pst_tune_group_of(role)] + (size_t)y->place[role] * lora->rank * model->layers[layer].linear[role].n_in;
}

void pst_tune_lora_start(const pst_tune_model *model, const pst_tune_lora *lora, uint64_t seed, float *ret_params) {
  memset(ret_params, 0, lora->n * sizeof *ret_params);
  for (size_t i = 0; i < lora->n_layers; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
      if (lora->layers[i].place[r] < 0) continue;
      size_t n_in = model->layers[i].linear[r].n_in, n = lora->rank * n_in;
      float *a = ret_params + pst_tune_lora_a(model, lora, i, (pst_engine_role)r);
      double reach = 1 / sqrt((double)n_in);
      for (size_t k = 0; k < n; k++)
        a[k] = (float)(reach * (2 * pst_random_unit(seed, i * PST_ENGINE_ROLE_COUNT + (size_t)r, k) - 1));
    }
}
