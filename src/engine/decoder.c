/* A plain decoder's or encoder's layer table and its weights as float32, for those who compute over a model by other means than the engine (training).
 *
 * Owns the choice of what counts as plain: norms, attention, a feed-forward branch and nothing beside. Knows nothing of what is done with the numbers. */
#include "engine/model.h"

#include <string.h>

static const char *const role_names[PST_ENGINE_ROLE_COUNT] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                              "ffn_gate", "ffn_up", "ffn_down"};

const char *pst_engine_role_name(pst_engine_role role) { return role_names[role]; }

static const pst_kernels_matrix *matrix_of(const pst_engine_layer *y, pst_engine_role role) {
  switch (role) {
  case PST_ENGINE_ROLE_Q: return &y->q;
  case PST_ENGINE_ROLE_K: return &y->k;
  case PST_ENGINE_ROLE_V: return &y->v;
  case PST_ENGINE_ROLE_O: return &y->o;
  case PST_ENGINE_ROLE_GATE: return &y->gate;
  case PST_ENGINE_ROLE_UP: return &y->up;
  default: return &y->down;
  }
}

static pst_engine_turn turn_of(const pst_engine_rope *r) {
  return (pst_engine_turn){.base = r->base,
                           .scale = r->scale,
                           .magnitude = r->magnitude,
                           .factors = r->factors,
                           .n_rot = r->n_rot,
                           .neighbours = r->style == PST_KERNELS_ROPE_PAIRS};
}

int pst_engine_decoder_get(const pst_engine_model *model, pst_engine_decoder *ret_decoder, pst_error *err) {
  static const char *const known[] = {"llama", "qwen2", "qwen3", "gemma3"};
  size_t i = 0;
  while (i < PST_ARRAY_LEN(known) && strcmp(known[i], model->info.architecture) != 0) i++;
  if (i == PST_ARRAY_LEN(known))
    return pst_error_set(err, PST_E_UNSUPPORTED, model->info.path,
                         "models of architecture %s are not trained here; llama, qwen2, qwen3 and gemma3 are",
                         model->info.architecture);
  *ret_decoder = (pst_engine_decoder){.info = &model->info,
                                      .output_norm = model->output_norm,
                                      .embedding_scale = model->embedding_scale,
                                      .attention_scale = model->attention_scale,
                                      .norm_eps = model->norm_eps,
                                      .gelu = model->gate == PST_KERNELS_GELU_TANH,
                                      .tied = model->head.data == model->embedding.data,
                                      .n_turns = model->n_ropes};
  for (int r = 0; r < model->n_ropes; r++) ret_decoder->turns[r] = turn_of(&model->ropes[r]);
  return 0;
}

static pst_engine_affine affine_of(pst_engine_layernorm n) { return (pst_engine_affine){n.weight, n.bias}; }

int pst_engine_decoder_get_encoder(const pst_engine_model *model, pst_engine_decoder *ret_decoder, pst_error *err) {
  const pst_engine_encoding *e = &model->encoding;
  bool known = !strcmp(model->info.architecture, "bert");
  if (!known || e->n_dense || (e->pooling != PST_ENGINE_POOL_MEAN && e->pooling != PST_ENGINE_POOL_FIRST))
    return pst_error_set(err, PST_E_UNSUPPORTED, model->info.path,
                         known ? "encoders that project their vectors, or pool by the last token, are not trained here"
                               : "encoders of architecture %s are not trained here; those of bert are",
                         model->info.architecture);
  *ret_decoder = (pst_engine_decoder){.info = &model->info,
                                      .embedding_scale = model->embedding_scale,
                                      .attention_scale = model->attention_scale,
                                      .norm_eps = model->norm_eps,
                                      .both_ways = true,
                                      .pools_first = e->pooling == PST_ENGINE_POOL_FIRST,
                                      .n_positions = (int)e->positions.n_rows,
                                      .segment = e->segment,
                                      .embedding_norm = affine_of(e->embedding_norm)};
  return 0;
}

void pst_engine_decoder_get_layer(const pst_engine_model *model, int layer, pst_engine_decoder_layer *ret_layer) {
  const pst_engine_layer *y = &model->layers[layer];
  *ret_layer = (pst_engine_decoder_layer){.attn_norm = y->attn_norm,
                                          .post_attn_norm = y->post_attn_norm,
                                          .ffn_norm = y->ffn_norm,
                                          .post_ffn_norm = y->post_ffn_norm,
                                          .q_norm = y->q_norm,
                                          .k_norm = y->k_norm,
                                          .attn_sum_norm = affine_of(y->attn_sum_norm),
                                          .ffn_sum_norm = affine_of(y->ffn_sum_norm),
                                          .window = y->window,
                                          .turn = y->rope};
  ret_layer->bias[PST_ENGINE_ROLE_Q] = y->q_bias;
  ret_layer->bias[PST_ENGINE_ROLE_K] = y->k_bias;
  ret_layer->bias[PST_ENGINE_ROLE_V] = y->v_bias;
  ret_layer->bias[PST_ENGINE_ROLE_O] = y->o_bias;
  ret_layer->bias[PST_ENGINE_ROLE_UP] = y->up_bias;
  ret_layer->bias[PST_ENGINE_ROLE_DOWN] = y->down_bias;
}

void pst_engine_decoder_shape(const pst_engine_model *model, pst_engine_role role, size_t *ret_rows, size_t *ret_cols) {
  const pst_kernels_matrix *m = matrix_of(&model->layers[0], role);
  *ret_rows = m->n_rows;
  *ret_cols = m->n_cols;
}

static void rows_of(const pst_kernels_matrix *m, size_t first, size_t n, float *out) {
  for (size_t i = 0; i < n; i++) pst_kernels_matrix_row(m, first + i, out + i * m->n_cols);
}

void pst_engine_decoder_rows(const pst_engine_model *model, int layer, pst_engine_role role, size_t first, size_t n,
                             float *ret_out) {
  rows_of(matrix_of(&model->layers[layer], role), first, n, ret_out);
}

void pst_engine_decoder_embedding(const pst_engine_model *model, size_t first, size_t n, float *ret_out) {
  rows_of(&model->embedding, first, n, ret_out);
}

void pst_engine_decoder_head(const pst_engine_model *model, size_t first, size_t n, float *ret_out) {
  rows_of(&model->head, first, n, ret_out);
}

void pst_engine_decoder_positions(const pst_engine_model *model, size_t first, size_t n, float *ret_out) {
  rows_of(&model->encoding.positions, first, n, ret_out);
}
