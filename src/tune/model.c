/* The frozen side of training: weights as float32 in one block (model.h).
 *
 * Rows are dequantized once. A step reads every weight about twice for each batch of some hundred tokens, so dequantizing again and again would cost
 * little, but packing panels from plain rows costs less, and small models fit. */
#include "tune/model.h"

#include <string.h>

typedef struct copier {
  const pst_engine_model *source;
  pst_tune_model *m;
  float *next; /* NULL: only measured */
  size_t n_floats;
} copier;

static float *take(copier *c, size_t n) {
  float *at = c->next ? c->next + c->n_floats : NULL;
  c->n_floats += (n + 15) & ~(size_t)15;
  return at;
}

static const float *copy(copier *c, const float *row, size_t n) {
  if (!row) return NULL;
  float *at = take(c, n);
  if (at) memcpy(at, row, n * sizeof *at);
  return at;
}

/* Matrices that read the same input lie one behind the other (rows are multiples of 32 floats), so that they can be taken as one. */
static void copy_layer(copier *c, size_t i, pst_tune_layer *y) {
  const pst_tune_model *m = c->m;
  pst_engine_decoder_layer from;
  pst_engine_decoder_get_layer(c->source, (int)i, &from);
  *y = (pst_tune_layer){.attn_norm = copy(c, from.attn_norm, m->n_embd),
                        .post_attn_norm = copy(c, from.post_attn_norm, m->n_embd),
                        .ffn_norm = copy(c, from.ffn_norm, m->n_embd),
                        .post_ffn_norm = copy(c, from.post_ffn_norm, m->n_embd),
                        .q_norm = copy(c, from.q_norm, m->head_dim),
                        .k_norm = copy(c, from.k_norm, m->head_dim),
                        .window = (size_t)from.window,
                        .turn = from.turn};
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
    pst_tune_linear *l = &y->linear[r];
    pst_engine_decoder_shape(c->source, (pst_engine_role)r, &l->n_out, &l->n_in);
    float *w = take(c, l->n_out * l->n_in);
    if (w) pst_engine_decoder_rows(c->source, (int)i, (pst_engine_role)r, 0, l->n_out, w);
    l->w = w;
  }
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) y->linear[r].bias = copy(c, from.bias[r], y->linear[r].n_out);
}

static void copy_all(copier *c, const pst_engine_decoder *d, pst_progress *progress) {
  pst_tune_model *m = c->m;
  float *embedding = take(c, m->n_vocab * m->n_embd), *head = d->tied ? embedding : take(c, m->n_vocab * m->n_embd);
  if (embedding) pst_engine_decoder_embedding(c->source, 0, m->n_vocab, embedding);
  if (head && !d->tied) pst_engine_decoder_head(c->source, 0, m->n_vocab, head);
  m->embedding = embedding;
  m->head = head;
  m->output_norm = copy(c, d->output_norm, m->n_embd);
  for (int t = 0; t < m->n_turns; t++)
    m->turns[t].factors = copy(c, d->turns[t].factors, (size_t)d->turns[t].n_rot / 2);
  for (size_t i = 0; i < m->n_layers; i++) {
    copy_layer(c, i, &m->layers[i]);
    if (progress && c->next) pst_progress_update(progress, (int64_t)(c->n_floats * sizeof(float)));
  }
}

int pst_tune_model_load(const pst_engine_model *source, pst_progress *progress, pst_tune_model *ret_model,
                        pst_error *err) {
  pst_engine_decoder d;
  int code = pst_engine_decoder_get(source, &d, err);
  if (code) return code;
  const pst_engine_model_info *s = d.info;
  pst_tune_model m = {.n_layers = (size_t)s->n_layers,
                      .n_embd = (size_t)s->n_embd,
                      .n_ff = (size_t)s->n_ff,
                      .n_heads = (size_t)s->n_heads,
                      .n_kv_heads = (size_t)s->n_kv_heads,
                      .head_dim = (size_t)s->head_dim,
                      .n_vocab = (size_t)s->n_vocab,
                      .n_ctx = (size_t)s->n_ctx_train,
                      .embedding_scale = d.embedding_scale,
                      .attention_scale = d.attention_scale,
                      .norm_eps = d.norm_eps,
                      .gelu = d.gelu,
                      .n_turns = d.n_turns,
                      .turns = {d.turns[0], d.turns[1]}};
  m.layers = pst_calloc(m.n_layers, sizeof *m.layers);
  if (!m.layers) return pst_error_set(err, PST_E_NOMEM, s->path, "no memory for the layer table");
  copier c = {source, &m, NULL, 0};
  copy_all(&c, &d, NULL);
  m.bytes = c.n_floats * sizeof(float);
  if (progress) progress->total = (int64_t)m.bytes;
  m.memory = c.next = pst_malloc_aligned(m.bytes, 64);
  if (!m.memory) {
    pst_free(m.layers);
    return pst_error_set(err, PST_E_NOMEM, s->path, "no memory for %.0f MB of weights", (double)m.bytes / 1e6);
  }
  c.n_floats = 0;
  copy_all(&c, &d, progress);
  *ret_model = m;
  return 0;
}

void pst_tune_model_done(pst_tune_model *model) {
  pst_free(model->layers);
  pst_free(model->memory);
  memset(model, 0, sizeof *model);
}
