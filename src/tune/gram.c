/* Gram matrices of inputs and outputs of linear layers (gram.h), gathered by an observer of the backward pass. */
#include "tune/gram.h"

#include <math.h>
#include <string.h>

#include "tune/divergence.h"
#include "tune/feedback.h"

enum { TILE = 32, PANEL = 192, MAX_PANELS = 256, BAND = 16, SEED = 7 };
/* The share of a Gram matrix of inputs that is weighed by what errors at each token cost (|d|^2, the head's w); in the rest tokens count alike. */
#define WEIGHED 0.7

static size_t place_all(const pst_tune_model *m, pst_tune_grams *g, float *at) {
  size_t used = 0;
  for (size_t i = 0; i < m->n_layers; i++)
    for (int k = 0; k < PST_TUNE_GROUP_COUNT + PST_ENGINE_ROLE_COUNT; k++) {
      int role = k - PST_TUNE_GROUP_COUNT;
      if (at && role < 0) g->inputs[i][k] = at + used;
      if (at && role >= 0) g->outputs[i][role] = at + used;
      used += (pst_tune_gram_floats(role < 0 ? g->width[k] : m->layers[i].linear[role].n_out) + 15) & ~(size_t)15;
    }
  for (int k = 0; k < (m->head == m->embedding ? 1 : 2); k++) {
    g->head = at ? at + used : NULL;
    if (!k) g->embedding = g->head;
    used += (pst_tune_gram_floats(m->n_embd) + 15) & ~(size_t)15;
  }
  return used;
}

int pst_tune_grams_create(const pst_tune_net_f32 *net, pst_tune_grams *ret_grams, pst_error *err) {
  const pst_tune_model *m = net->model;
  pst_tune_grams g = {.n_layers = m->n_layers, .n_embd = m->n_embd};
  size_t widest = 0;
  for (int k = 0; k < PST_TUNE_GROUP_COUNT; k++) {
    g.width[k] = pst_tune_group_inputs(&m->layers[0], (pst_tune_group)k);
    widest = PST_MAX(widest, g.width[k]);
  }
  g.bytes = place_all(m, &g, NULL) * sizeof(float);
  g.inputs = pst_calloc(g.n_layers, sizeof *g.inputs);
  g.outputs = pst_calloc(g.n_layers, sizeof *g.outputs);
  g.squares = pst_calloc(g.n_layers, sizeof *g.squares);
  g.logits = pst_malloc(TILE * m->n_vocab * sizeof *g.logits);
  g.rows = pst_malloc(net->max_tokens * widest * sizeof *g.rows);
  g.lengths = pst_malloc(net->max_tokens * sizeof *g.lengths);
  g.memory = pst_malloc_aligned(g.bytes, 64);
  if (!g.inputs || !g.outputs || !g.squares || !g.logits || !g.rows || !g.lengths || !g.memory) {
    pst_tune_grams_done(&g);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %.0f MB of Gram matrices", (double)g.bytes / 1e6);
  }
  memset(g.memory, 0, g.bytes);
  place_all(m, &g, g.memory);
  *ret_grams = g;
  return 0;
}

void pst_tune_grams_done(pst_tune_grams *grams) {
  pst_free(grams->inputs);
  pst_free(grams->outputs);
  pst_free(grams->squares);
  pst_free(grams->logits);
  pst_free(grams->rows);
  pst_free(grams->lengths);
  pst_free(grams->memory);
  memset(grams, 0, sizeof *grams);
}

/* ---- sums ---- */

/* The lower triangle of gram += x^T x; x [n_rows], x_row floats apart, n wide. */
static void add(pst_tune_team *team, const float *x, size_t x_row, size_t n_rows, size_t n, float *gram) {
  pst_tune_product_f32 list[MAX_PANELS];
  size_t panel = PST_MAX((size_t)PANEL, (n + MAX_PANELS - 1) / MAX_PANELS), n_list = 0;
  for (size_t at = 0; at < n; at += panel) {
    size_t end = PST_MIN(at + panel, n);
    list[n_list++] = (pst_tune_product_f32){.n_rows = end - at,
                                            .n_cols = end,
                                            .n_deep = n_rows,
                                            .a = {x + at, NULL, 1, x_row},
                                            .b = {x, NULL, x_row, 1},
                                            .c = gram + at * n,
                                            .c_row = n,
                                            .add = true};
  }
  pst_tune_products_f32(team, list, n_list);
}

/* A group's tokens at hand: inputs x [n][n_in], derivatives d [n], d_row apart, n_out wide. */
typedef struct tokens {
  pst_tune_grams *grams;
  pst_tune_net_f32 *net;
  size_t n, n_in, n_out, d_row;
  const float *x, *d;
  double alike, each; /* a token weighs `alike` + `each` times its number in grams->lengths */
} tokens;

static void measure_band(void *arg, size_t piece, void *scratch) {
  const tokens *w = arg;
  (void)scratch;
  for (size_t t = piece * BAND; t < PST_MIN((piece + 1) * BAND, w->n); t++) {
    float lane[8] = {0};
    for (size_t i = 0; i < w->n_out; i++) lane[i % 8] += w->d[t * w->d_row + i] * w->d[t * w->d_row + i];
    for (size_t l = 1; l < 8; l++) lane[0] += lane[l];
    w->grams->lengths[t] = lane[0];
  }
}

static void weigh_band(void *arg, size_t piece, void *scratch) {
  const tokens *w = arg;
  (void)scratch;
  for (size_t t = piece * BAND; t < PST_MIN((piece + 1) * BAND, w->n); t++) {
    float root = (float)sqrt(w->alike + w->each * (double)w->grams->lengths[t]);
    for (size_t i = 0; i < w->n_in; i++) w->grams->rows[t * w->n_in + i] = w->x[t * w->n_in + i] * root;
  }
}

static void saw(void *user, size_t layer, pst_tune_group group, const float *x, const float *d_y, size_t d_y_row) {
  tokens *w = user;
  pst_tune_grams *g = w->grams;
  const pst_tune_layer *y = &w->net->model->layers[layer];
  pst_tune_team *team = w->net->team;
  pst_tune_members of = pst_tune_group_members(group);
  size_t n_bands = (w->n + BAND - 1) / BAND, at = 0;
  double *squares = &g->squares[layer][group];
  w->x = x;
  w->d = d_y;
  w->d_row = d_y_row;
  w->n_in = g->width[group];
  w->n_out = pst_tune_group_outputs(y, group);
  pst_tune_team_run(team, n_bands, measure_band, w);
  for (size_t t = 0; t < w->n; t++) *squares += (double)g->lengths[t];
  double mean = *squares / (double)(g->n_tokens + w->n);
  w->alike = mean > 0 ? 1 - WEIGHED : 1;
  w->each = mean > 0 ? WEIGHED / mean : 0;
  pst_tune_team_run(team, n_bands, weigh_band, w);
  add(team, g->rows, w->n_in, w->n, w->n_in, g->inputs[layer][group]);
  for (int r = of.first; r < of.first + of.n; r++) {
    add(team, d_y + at, d_y_row, w->n, y->linear[r].n_out, g->outputs[layer][r]);
    at += y->linear[r].n_out;
  }
}

/* ---- draws ---- */

double pst_tune_grams_draw(float *row, size_t n, uint64_t number) {
  float top = row[0];
  double sum = 0, along = 0, squares = 0;
  uint64_t signs = 0;
  for (size_t i = 1; i < n; i++) top = PST_MAX(top, row[i]);
  for (size_t i = 0; i < n; i++) {
    row[i] = expf(row[i] - top);
    sum += (double)row[i];
  }
  for (size_t i = 0; i < n; i++) {
    if (i % 64 == 0) signs = pst_random_u64(SEED, number, i / 64);
    float root = sqrtf((float)((double)row[i] / sum));
    row[i] = signs >> (i % 64) & 1 ? root : -root;
    along += (double)row[i];
    squares += (double)(root * root) * (double)(root * root);
  }
  for (size_t i = 0; i < n; i++) row[i] -= row[i] * row[i] * (float)along;
  return 1 - squares;
}

typedef struct drawing {
  const pst_tune_score *scores;
  float *doubts; /* [tokens of the batch] */
  float *logits;
  size_t n_vocab;
  uint64_t first;
} drawing;

static void draw_row(void *arg, size_t piece, void *scratch) {
  const drawing *d = arg;
  (void)scratch;
  d->doubts[d->scores[piece].row] =
      (float)pst_tune_grams_draw(d->logits + piece * d->n_vocab, d->n_vocab, d->first + piece);
}

/* Into d_scored: what the draws derive by what the head reads. */
static void draw_batch(pst_tune_grams *g, pst_tune_net_f32 *net, const pst_tune_batch *batch) {
  const pst_tune_model *m = net->model;
  memset(g->lengths, 0, batch->n_tokens * sizeof *g->lengths);
  for (size_t at = 0; at < batch->n_scores; at += TILE) {
    size_t n = PST_MIN(batch->n_scores - at, (size_t)TILE);
    pst_tune_product_f32 p = pst_tune_head_product(m, net->scored_normed + at * m->n_embd, n, g->logits);
    drawing d = {batch->scores + at, g->lengths, g->logits, m->n_vocab, g->n_scores + at};
    pst_tune_products_f32(net->team, &p, 1);
    pst_tune_team_run(net->team, n, draw_row, &d);
    p = (pst_tune_product_f32){.n_rows = n,
                               .n_cols = m->n_embd,
                               .n_deep = m->n_vocab,
                               .a = {g->logits, NULL, m->n_vocab, 1},
                               .b = {NULL, m->head, m->n_embd, 1},
                               .c = net->d_scored + at * m->n_embd,
                               .c_row = m->n_embd};
    pst_tune_products_f32(net->team, &p, 1);
  }
}

/* What the head reads, behind the draws. */
static void add_head(tokens *w) {
  pst_tune_grams *g = w->grams;
  pst_tune_net_f32 *net = w->net;
  const pst_tune_model *m = net->model;
  for (size_t t = 0; t < w->n; t++) g->doubts += (double)g->lengths[t];
  w->alike = (1 - WEIGHED) * g->doubts / (double)(g->n_tokens + w->n);
  w->each = WEIGHED;
  w->x = net->normed;
  w->n_in = m->n_embd;
  pst_tune_norm_f32(net->team, net->last, m->output_norm, w->n, m->n_embd, m->norm_eps, net->normed);
  pst_tune_team_run(net->team, (w->n + BAND - 1) / BAND, weigh_band, w);
  add(net->team, g->rows, m->n_embd, w->n, m->n_embd, g->head);
}

void pst_tune_grams_add(pst_tune_grams *grams, pst_tune_net_f32 *net, const pst_tune_batch *batch) {
  const pst_tune_model *m = net->model;
  tokens w = {.grams = grams, .net = net, .n = batch->n_tokens};
  const pst_tune_observer_f32 observer = {saw, &w};
  pst_tune_net_states_f32(net, batch);
  draw_batch(grams, net, batch);
  add_head(&w);
  net->observer = &observer;
  pst_tune_net_back_f32(net, batch);
  net->observer = NULL;
  for (size_t i = 0; i < w.n * m->n_embd; i++) net->d_x[i] *= m->embedding_scale;
  add(net->team, net->d_x, m->n_embd, w.n, m->n_embd, grams->embedding);
  grams->n_tokens += w.n;
  grams->n_scores += batch->n_scores;
}
