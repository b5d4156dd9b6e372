/* A float model, merged and at work (whole.h). */
#include "tune/whole.h"

#include <string.h>

#include "tune/feedback.h"

/* The weights of a tensor by its name in the file; NULL: none of the layers'. */
static float *weights_of(const pst_tune_model *m, const char *name, size_t *ret_rows, size_t *ret_cols) {
  for (size_t i = 0; i < m->n_layers; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
      char full[48];
      const pst_tune_linear *l = &m->layers[i].linear[r];
      (void)snprintf(full, sizeof full, "blk.%zu.%s.weight", i, pst_engine_role_name((pst_engine_role)r));
      if (strcmp(full, name) != 0 || !l->n_out) continue;
      *ret_rows = l->n_out;
      *ret_cols = l->n_in;
      return (float *)m->memory + (l->w - (const float *)m->memory);
    }
  return NULL;
}

static int merge(pst_tune_model *m, const pst_engine_lora *lora, const char *path, pst_error *err) {
  for (size_t k = 0; k < lora->n_targets; k++) {
    const pst_engine_lora_target *t = &lora->targets[k];
    size_t n_rows = 0, n_cols = 0, rank = (size_t)t->rank;
    float scale = (float)pst_engine_lora_scale(lora, t), *w = weights_of(m, t->name, &n_rows, &n_cols);
    if (!w || n_rows != (size_t)t->n_out || n_cols != (size_t)t->n_in)
      return pst_error_set(err, PST_E_BAD_INPUT, path, "the adapter's '%s' fits no matrix of the model's layers",
                           t->name);
    for (size_t r = 0; r < n_rows; r++)
      for (size_t j = 0; j < rank; j++) {
        float f = scale * t->b[r * rank + j];
        for (size_t i = 0; i < n_cols; i++) w[r * n_cols + i] += f * t->a[j * n_cols + i];
      }
  }
  return 0;
}

int pst_tune_load_float(const char *path, const char *adapter, int n_threads, pst_tune_model *ret_model,
                        pst_error *err) {
  pst_engine_model *source = NULL;
  pst_engine_lora lora = {0};
  int code = pst_engine_model_open(path, n_threads, &source, err);
  if (code) return code;
  const pst_engine_model_info *info = pst_engine_model_get_info(source);
  if (adapter) code = pst_engine_lora_read(adapter, info, &lora, err);
  if (!code && adapter) code = pst_engine_lora_check_merge(&lora, info, adapter, err);
  if (!code && !(code = pst_tune_model_load(source, PST_TUNE_FLOAT, ret_model, err)) && adapter &&
      (code = merge(ret_model, &lora, adapter, err)))
    pst_tune_model_done(ret_model);
  pst_engine_lora_done(&lora);
  pst_engine_model_unref(source);
  return code;
}

int pst_tune_whole_open(const char *path, const char *adapter, int n_threads, size_t max_tokens, pst_tune_whole *whole,
                        pst_error *err) {
  pst_tune_model *m = &whole->model;
  int code = pst_tune_load_float(path, adapter, n_threads, m, err);
  if (code) return code;
  size_t scratch = PST_MAX(pst_tune_scratch_bytes(max_tokens, m->n_ff),
                           pst_tune_rounding_scratch(PST_MAX(m->n_ff, PST_MAX(m->n_embd, m->n_heads * m->head_dim))));
  whole->none = (pst_tune_lora){.rank = 1, .scale = 1, .n_layers = m->n_layers};
  whole->none.layers = pst_calloc(m->n_layers, sizeof *whole->none.layers);
  if (!whole->none.layers) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a layer table");
  for (size_t i = 0; i < m->n_layers; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) whole->none.layers[i].place[r] = PST_TUNE_NO_ADAPTER;
  code = pst_tune_team_create(n_threads ? n_threads : pst_cpu_count(), scratch, &whole->team, err);
  return code ? code
              : pst_tune_net_create_f32(m, &whole->none, whole->team, max_tokens, max_tokens, max_tokens, &whole->net,
                                        err);
}

void pst_tune_whole_done(pst_tune_whole *whole) {
  pst_tune_net_free_f32(whole->net);
  pst_tune_team_free(whole->team);
  pst_free(whole->none.layers);
  if (whole->model.memory) pst_tune_model_done(&whole->model);
}
