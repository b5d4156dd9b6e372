/* The frozen side of training: weights in one block (model.h), as float32 or in 8 bits.
 *
 * In float32 rows are dequantized once. A step reads every weight about twice for each batch of some hundred tokens, so dequantizing again and again would cost
 * little, but packing panels from plain rows costs less, and small models fit. In 8 bits each matrix is there twice, as the kernels of inference read it: as it
 * is for the forward pass, and transposed for the backward pass, which sums over a group's outputs. */
#include "tune/model.h"

#include <stdatomic.h>
#include <string.h>

#include "tune/team.h"

pst_tune_members pst_tune_group_members(pst_tune_group group) {
  static const pst_tune_members members[PST_TUNE_GROUP_COUNT] = {
      {PST_ENGINE_ROLE_Q, 3}, {PST_ENGINE_ROLE_O, 1}, {PST_ENGINE_ROLE_GATE, 2}, {PST_ENGINE_ROLE_DOWN, 1}};
  return members[group];
}

pst_tune_group pst_tune_group_of(pst_engine_role role) {
  int g = 0;
  while (pst_tune_group_members((pst_tune_group)g).first + pst_tune_group_members((pst_tune_group)g).n <= (int)role)
    g++;
  return (pst_tune_group)g;
}

size_t pst_tune_group_inputs(const pst_tune_layer *layer, pst_tune_group group) {
  return layer->linear[pst_tune_group_members(group).first].n_in;
}

size_t pst_tune_group_outputs(const pst_tune_layer *layer, pst_tune_group group) {
  pst_tune_members of = pst_tune_group_members(group);
  size_t n = 0;
  for (int r = of.first; r < of.first + of.n; r++) n += layer->linear[r].n_out;
  return n;
}

static const char *const precisions[PST_TUNE_PRECISION_COUNT] = {"float", "int8"};

const char *pst_tune_precision_name(pst_tune_precision precision) { return precisions[precision]; }

bool pst_tune_precision_from(pst_str name, pst_tune_precision *ret_precision) {
  for (int i = 0; i < PST_TUNE_PRECISION_COUNT; i++) {
    if (!pst_str_is(name, precisions[i])) continue;
    *ret_precision = (pst_tune_precision)i;
    return true;
  }
  return false;
}

/* What can be had in 8 bits. */
static bool packs_group(const pst_tune_layer *y, pst_tune_group group) {
  return pst_tune_group_inputs(y, group) % PST_KERNELS_BLOCK == 0 &&
         pst_tune_group_outputs(y, group) % PST_KERNELS_BLOCK == 0;
}

static bool packs_head(const pst_tune_model *m) {
  return m->n_embd % PST_KERNELS_BLOCK == 0 && m->n_vocab % PST_KERNELS_BLOCK == 0;
}

/* ---- as float32 ---- */

typedef struct copier {
  const pst_engine_model *source;
  pst_tune_model *m;
  bool packed; /* what can be had in 8 bits is left out */
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

static pst_engine_affine copy_affine(copier *c, pst_engine_affine a) {
  return (pst_engine_affine){copy(c, a.weight, c->m->n_embd), copy(c, a.bias, c->m->n_embd)};
}

/* Matrices that read the same input lie one behind the other (rows are multiples of 32 floats), so that they can be taken as one. */
static void copy_group(copier *c, size_t layer, pst_tune_layer *y, pst_tune_members of) {
  for (int r = of.first; r < of.first + of.n; r++) {
    pst_tune_linear *l = &y->linear[r];
    float *w = take(c, l->n_out * l->n_in);
    if (w) pst_engine_decoder_rows(c->source, (int)layer, (pst_engine_role)r, 0, l->n_out, w);
    l->w = w;
  }
}

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
                        .attn_sum_norm = copy_affine(c, from.attn_sum_norm),
                        .ffn_sum_norm = copy_affine(c, from.ffn_sum_norm),
                        .window = (size_t)from.window,
                        .turn = from.turn};
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++)
    pst_engine_decoder_shape(c->source, (pst_engine_role)r, &y->linear[r].n_out, &y->linear[r].n_in);
  if (!y->linear[PST_ENGINE_ROLE_GATE].n_out) y->linear[PST_ENGINE_ROLE_GATE].n_in = m->n_embd; /* there is no gate */
  for (int g = 0; g < PST_TUNE_GROUP_COUNT; g++)
    if (!c->packed || !packs_group(y, (pst_tune_group)g))
      copy_group(c, i, y, pst_tune_group_members((pst_tune_group)g));
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) y->linear[r].bias = copy(c, from.bias[r], y->linear[r].n_out);
}

static void copy_all(copier *c, const pst_engine_decoder *d) {
  pst_tune_model *m = c->m;
  float *embedding = take(c, m->n_vocab * m->n_embd), *head = embedding;
  if (embedding) pst_engine_decoder_embedding(c->source, 0, m->n_vocab, embedding);
  if (d->both_ways) {
    float *positions = d->n_positions ? take(c, (size_t)d->n_positions * m->n_embd) : NULL;
    if (positions) pst_engine_decoder_positions(c->source, 0, (size_t)d->n_positions, positions);
    m->positions = positions;
    m->segment = copy(c, d->segment, m->n_embd);
    m->embedding_norm = copy_affine(c, d->embedding_norm);
    head = NULL;
  } else if (!d->tied) {
    head = c->packed && packs_head(m) ? NULL : take(c, m->n_vocab * m->n_embd);
    if (head) pst_engine_decoder_head(c->source, 0, m->n_vocab, head);
  }
  m->embedding = embedding;
  m->head = head;
  m->output_norm = copy(c, d->output_norm, m->n_embd);
  for (int t = 0; t < m->n_turns; t++)
    m->turns[t].factors = copy(c, d->turns[t].factors, (size_t)d->turns[t].n_rot / 2);
  for (size_t i = 0; i < m->n_layers; i++) copy_layer(c, i, &m->layers[i]);
}

/* ---- in 8 bits ---- */

typedef struct packer {
  const pst_engine_model *source;
  pst_tune_model *m;
  pst_tune_team *team;
  uint8_t *next; /* NULL: only measured */
  size_t used;
  float *matrix; /* a group's matrices, or the head */
} packer;

/* A matrix whose element (i, j) is w[i * row + j * col], on its way into `to`. */
typedef struct packing {
  const pst_kernels_matrix *matrix;
  const float *w;
  size_t row, col;
  uint8_t *to;
  _Atomic bool failed;
} packing;

static size_t packing_scratch(size_t n_cols) { return PST_KERNELS_GROUP * n_cols * (sizeof(float) + 2); }

static void pack_piece(void *arg, size_t piece, void *scratch) {
  packing *p = arg;
  size_t n_cols = p->matrix->n_cols, row_bytes = pst_kernels_row_bytes(PST_TYPE_Q8_0, n_cols),
         first = piece * PST_KERNELS_GROUP, n = PST_MIN((size_t)PST_KERNELS_GROUP, p->matrix->n_rows - first);
  float *rows = scratch;
  uint8_t *quantized = (uint8_t *)(rows + PST_KERNELS_GROUP * n_cols);
  for (size_t j = 0; j < n_cols; j++)
    for (size_t i = 0; i < n; i++) rows[i * n_cols + j] = p->w[(first + i) * p->row + j * p->col];
  for (size_t i = 0; i < n; i++)
    if (pst_kernels_quantize_row(PST_TYPE_Q8_0, rows + i * n_cols, n_cols, NULL, quantized + i * row_bytes))
      p->failed = true;
  if (!p->failed) pst_kernels_matrix_pack(p->matrix, quantized, piece, piece + 1, p->to);
}

/* PST_E_UNSUPPORTED: a weight is beyond half-precision scales. */
static int pack(packer *p, size_t n_rows, size_t n_cols, const float *w, size_t row, size_t col,
                pst_kernels_matrix *ret) {
  int code = pst_kernels_matrix_init(PST_TYPE_Q8_0, n_rows, n_cols, ret, NULL);
  if (code) return code;
  packing x = {ret, w, row, col, p->next ? p->next + p->used : NULL, false};
  p->used += (pst_kernels_matrix_bytes(ret) + 63) & ~(size_t)63;
  if (x.to) pst_tune_team_run(p->team, ret->n_groups, pack_piece, &x);
  ret->data = x.to;
  return x.failed ? PST_E_UNSUPPORTED : 0;
}

static int pack_group(packer *p, size_t layer, pst_tune_group group) {
  pst_tune_layer *y = &p->m->layers[layer];
  pst_tune_members of = pst_tune_group_members(group);
  size_t n_in = pst_tune_group_inputs(y, group), at = 0;
  int code = 0;
  if (!packs_group(y, group)) return 0;
  for (int r = of.first; r < of.first + of.n && !code; r++) {
    pst_tune_linear *l = &y->linear[r];
    float *w = p->matrix + at * n_in;
    if (!l->n_out) continue;
    if (p->next) pst_engine_decoder_rows(p->source, (int)layer, (pst_engine_role)r, 0, l->n_out, w);
    code = pack(p, l->n_out, n_in, w, n_in, 1, &l->packed);
    at += l->n_out;
  }
  return code ? code : pack(p, n_in, at, p->matrix, 1, n_in, &y->back[group]);
}

static int pack_head(packer *p) {
  pst_tune_model *m = p->m;
  size_t n = m->n_embd;
  const float *w = m->head ? m->head : p->matrix;
  if (m->both_ways || !packs_head(m)) return 0;
  if (p->next && !m->head) pst_engine_decoder_head(p->source, 0, m->n_vocab, p->matrix);
  int code = pack(p, m->n_vocab, n, w, n, 1, &m->packed_head);
  return code ? code : pack(p, n, m->n_vocab, w, 1, n, &m->back_head);
}

static int pack_all(packer *p) {
  int code = pack_head(p);
  for (size_t i = 0; i < p->m->n_layers && !code; i++)
    for (int g = 0; g < PST_TUNE_GROUP_COUNT && !code; g++) code = pack_group(p, i, (pst_tune_group)g);
  return code;
}

/* Room for the greatest matrix as floats, and threads with room for a group of the kernels' rows. */
static int make_room(packer *p, pst_error *err) {
  const pst_tune_model *m = p->m;
  size_t most = m->head || m->both_ways ? 0 : m->n_vocab * m->n_embd, longest = PST_MAX(m->n_vocab, m->n_embd);
  for (int g = 0; g < PST_TUNE_GROUP_COUNT; g++) {
    size_t n_in = pst_tune_group_inputs(m->layers, (pst_tune_group)g),
           n_out = pst_tune_group_outputs(m->layers, (pst_tune_group)g);
    most = PST_MAX(most, n_in * n_out);
    longest = PST_MAX(longest, PST_MAX(n_in, n_out));
  }
  if (!(p->matrix = pst_malloc(most * sizeof *p->matrix))) return PST_E_NOMEM;
  return pst_tune_team_create(pst_cpu_count(), packing_scratch(longest), &p->team, err);
}

static int pack_model(const pst_engine_model *source, pst_tune_model *m, const char *path, pst_error *err) {
  packer p = {.source = source, .m = m};
  int code = make_room(&p, err);
  if (!code) code = pack_all(&p);
  if (!code && !(p.next = m->packed_memory = pst_malloc_aligned(PST_MAX(p.used, 64), 64))) code = PST_E_NOMEM;
  m->bytes += p.used;
  p.used = 0;
  if (!code) code = pack_all(&p);
  if (code == PST_E_NOMEM) pst_error_set(err, code, path, "no memory for the weights in 8 bits");
  if (code == PST_E_UNSUPPORTED) pst_error_set(err, code, path, "a weight is too great for 8 bits: train in float");
  pst_tune_team_free(p.team);
  pst_free(p.matrix);
  return code;
}

/* ---- the model ---- */

static int load(const pst_engine_model *source, const pst_engine_decoder *d, pst_tune_precision precision,
                size_t n_labels, pst_tune_model *ret_model, pst_error *err) {
  const pst_engine_model_info *s = d->info;
  int code = 0;
  pst_tune_model m = {.n_layers = (size_t)s->n_layers,
                      .n_embd = (size_t)s->n_embd,
                      .n_ff = (size_t)s->n_ff,
                      .n_heads = (size_t)s->n_heads,
                      .n_kv_heads = (size_t)s->n_kv_heads,
                      .head_dim = (size_t)s->head_dim,
                      .n_vocab = (size_t)s->n_vocab,
                      .n_ctx = (size_t)s->n_ctx_train,
                      .embedding_scale = d->embedding_scale,
                      .attention_scale = d->attention_scale,
                      .norm_eps = d->norm_eps,
                      .gelu = d->gelu,
                      .both_ways = d->both_ways,
                      .pools_first = d->pools_first,
                      .n_labels = n_labels,
                      .n_turns = d->n_turns,
                      .turns = {d->turns[0], d->turns[1]}};
  m.layers = pst_calloc(m.n_layers, sizeof *m.layers);
  if (!m.layers) return pst_error_set(err, PST_E_NOMEM, s->path, "no memory for the layer table");
  copier c = {source, &m, precision == PST_TUNE_INT8, NULL, 0};
  copy_all(&c, d);
  m.bytes = c.n_floats * sizeof(float);
  m.memory = c.next = pst_malloc_aligned(m.bytes, 64);
  if (!m.memory) {
    pst_free(m.layers);
    return pst_error_set(err, PST_E_NOMEM, s->path, "no memory for %.0f MB of weights", (double)m.bytes / 1e6);
  }
  c.n_floats = 0;
  copy_all(&c, d);
  if (c.packed && (code = pack_model(source, &m, s->path, err)))
    pst_tune_model_done(&m);
  else
    *ret_model = m;
  return code;
}

int pst_tune_model_load(const pst_engine_model *source, pst_tune_precision precision, pst_tune_model *ret_model,
                        pst_error *err) {
  pst_engine_decoder d;
  int code = pst_engine_decoder_get(source, &d, err);
  return code ? code : load(source, &d, precision, 0, ret_model, err);
}

int pst_tune_model_load_encoder(const pst_engine_model *source, pst_tune_precision precision, size_t n_labels,
                                pst_tune_model *ret_model, pst_error *err) {
  pst_engine_decoder d;
  int code = pst_engine_decoder_get_encoder(source, &d, err);
  return code ? code : load(source, &d, precision, n_labels, ret_model, err);
}

void pst_tune_model_done(pst_tune_model *model) {
  pst_free(model->layers);
  pst_free(model->memory);
  pst_free(model->packed_memory);
  memset(model, 0, sizeof *model);
}
