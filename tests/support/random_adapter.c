/* Walks the engine's layer table, so that it fits layers of every width. */
#include "support/random_adapter.h"

#include <math.h>

#include "engine/model.h"

/* About [-1, 1), the same numbers everywhere. */
static float element(pst_random *r) { return (float)(pst_random_next_unit(r) * 2 - 1); }

static int add_target(pst_engine_lora *lora, const char *name, int rank, const pst_kernels_matrix *m, float spread,
                      pst_random *r, pst_error *err) {
  pst_engine_lora_target *t = NULL;
  int code = pst_engine_lora_add(lora, pst_str_from(name), rank, (int)m->n_cols, (int)m->n_rows, &t, err);
  float narrow = 1.5f / sqrtf((float)m->n_cols);
  for (int e = 0; !code && e < rank * t->n_in; e++) t->a[e] = narrow * element(r);
  for (int e = 0; !code && e < rank * t->n_out; e++) t->b[e] = spread * element(r);
  return code;
}

int test_random_adapter(const pst_engine_model *model, int rank, int seed, int step, float spread,
                        pst_engine_lora *ret_lora, pst_error *err) {
  const pst_engine_model_info *m = pst_engine_model_get_info(model);
  pst_engine_lora lora = {.architecture = pst_strdup(m->architecture), .alpha = (float)rank};
  pst_random r = {(uint64_t)seed, 0, 0};
  int code = lora.architecture ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  for (int i = 0; i < m->n_layers && !code; i++) {
    const pst_engine_layer *y = &model->layers[i];
    const struct {
      const char *name;
      const pst_kernels_matrix *matrix;
    } all[] = {{"attn_q", &y->q},      {"attn_k", &y->k},  {"attn_v", &y->v},     {"attn_output", &y->o},
               {"ffn_gate", &y->gate}, {"ffn_up", &y->up}, {"ffn_down", &y->down}};
    for (int j = 0; j < (model->n_experts ? 4 : 7) && !code; j += step) {
      char name[64];
      if (!all[j].matrix->n_rows) continue;
      snprintf(name, sizeof name, "blk.%d.%s.weight", i, all[j].name);
      code = add_target(&lora, name, rank, all[j].matrix, spread, &r, err);
    }
  }
  if (code)
    pst_engine_lora_done(&lora);
  else
    *ret_lora = lora;
  return code;
}
