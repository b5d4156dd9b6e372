/* Scales that learn from the float model (scales.h).
 *
 * What is learned is the logarithm of a factor for each block, so that scales keep their signs and a step's size means the same for all. A step goes over some texts with the
 * float model, then with the rounded one in float; the loss is the divergence from the former's likeliest next tokens, the rest being one outcome, where answers are predicted. */
#include "tune/scales.h"

#include <math.h>
#include <string.h>

#include "tune/adam.h"
#include "tune/checkpoint.h"
#include "tune/divergence.h"

enum { TOP = 32, TILE = 32, STEP_BATCHES = 2, LOOKS = 6, SAVE_SECONDS = 60 };
/* Shares of the steps in which the rate rises, and of it that is left at the end; the gradient's greatest length. */
#define WARMUP 0.05
#define FINAL 0.05
#define CLIP 1.0

typedef struct scales {
  pst_tune_whole *whole;
  const pst_tune_model *rounded;
  const pst_tune_scaled *matrices;
  size_t n_matrices;
  const pst_tune_lessons *lessons;
  pst_tune_judge judge;
  pst_tune_batch *batches;
  size_t n_batches;
  int32_t *ids;         /* [a batch's scored tokens][TOP]: the float model's likeliest */
  float *probabilities; /* of those */
  float *logits;        /* [TILE][n_vocab] */
  size_t *first;        /* [n_matrices + 1]: a matrix's blocks among all */
  pst_tune_adam adam;
  float *best; /* [adam.n]: params of the least divergence */
  pst_tune_state
      state; /* step, n_steps, held_out_before, best_loss: of answers on search, and seconds of earlier runs */
  int64_t start_us, saved_us;
  pst_tune_blocks_f32 *grads; /* [n_layers] */
  void *memory;
} scales;

static const pst_tune_linear *linear_of(const scales *s, size_t matrix) {
  return &s->rounded->layers[s->matrices[matrix].layer].linear[s->matrices[matrix].role];
}

static size_t block_of(const scales *s, size_t matrix) {
  return pst_kernels_type_info(s->matrices[matrix].type)->block_elements;
}

static void done(scales *s) {
  s->whole->net->model = &s->whole->model;
  s->whole->net->blocks = NULL;
  s->whole->net->teacher_share = 0;
  pst_tune_judge_done(&s->judge);
  pst_tune_batches_free(s->batches, s->n_batches);
  pst_free(s->ids);
  pst_free(s->probabilities);
  pst_free(s->logits);
  pst_free(s->first);
  pst_free(s->grads);
  pst_free(s->memory);
}

/* ---- the teacher ---- */

typedef struct reading {
  scales *s;
  pst_tune_score *scores; /* the batch's */
  size_t first;           /* of the tile */
} reading;

static void read_row(void *arg, size_t piece, void *scratch) {
  const reading *r = arg;
  size_t n = r->s->rounded->n_vocab, k = PST_MIN(n, (size_t)TOP), at = (r->first + piece) * TOP;
  const float *logits = r->s->logits + piece * n;
  pst_tune_score *score = &r->scores[r->first + piece];
  pst_engine_top top[TOP];
  double sum = 0;
  (void)scratch;
  pst_engine_top_logprobs(logits, (int)n, 0, (int)k, top);
  for (size_t i = 0; i < n; i++) sum += exp((double)logits[i] - (double)top[0].logprob);
  for (size_t i = 0; i < k; i++) {
    r->s->ids[at + i] = top[i].token;
    r->s->probabilities[at + i] = (float)(exp((double)top[i].logprob - (double)top[0].logprob) / sum);
  }
  score->k = (int)k;
  score->ids = r->s->ids + at;
  score->probabilities = r->s->probabilities + at;
}

/* What the float model thinks of a batch's scored tokens. */
static void read_batch(scales *s, pst_tune_batch *b) {
  pst_tune_net_f32 *net = s->whole->net;
  net->model = &s->whole->model;
  pst_tune_net_states_f32(net, b);
  for (size_t at = 0; at < b->n_scores; at += TILE) {
    size_t n = PST_MIN(b->n_scores - at, (size_t)TILE);
    pst_tune_product_f32 p =
        pst_tune_head_product(&s->whole->model, net->scored_normed + at * s->rounded->n_embd, n, s->logits);
    reading r = {s, b->scores, at};
    pst_tune_products_f32(net->team, &p, 1);
    pst_tune_team_run(net->team, n, read_row, &r);
  }
}

/* ---- room ---- */

static size_t add_matrices(scales *s) {
  size_t most = 0, n = 0;
  for (size_t i = 0; i < s->n_matrices; i++) {
    const pst_tune_linear *l = linear_of(s, i);
    s->first[i] = n;
    n += l->n_out * l->n_in / block_of(s, i);
    most = PST_MAX(most, l->n_out * l->n_in);
  }
  s->first[s->n_matrices] = n;
  return most;
}

static int make_room(scales *s, pst_error *err) {
  pst_tune_net_f32 *net = s->whole->net;
  size_t n_rows = net->max_scores, most = 0;
  s->ids = pst_malloc(n_rows * TOP * sizeof *s->ids);
  s->probabilities = pst_malloc(n_rows * TOP * sizeof *s->probabilities);
  s->logits = pst_malloc(TILE * s->rounded->n_vocab * sizeof *s->logits);
  s->first = pst_malloc((s->n_matrices + 1) * sizeof *s->first);
  s->grads = pst_calloc(s->rounded->n_layers, sizeof *s->grads);
  if (s->first) most = add_matrices(s);
  size_t n = s->first ? s->first[s->n_matrices] : 0;
  float *memory = s->memory = pst_calloc(5 * n + most + 1, sizeof(float));
  if (!s->ids || !s->probabilities || !s->logits || !s->first || !s->grads || !memory)
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to learn %zu scales", n);
  s->adam = (pst_tune_adam){.beta1 = 0.9,
                            .beta2 = 0.99,
                            .epsilon = 1e-10,
                            .n = n,
                            .params = memory,
                            .grads = memory + n,
                            .mean = memory + 2 * n,
                            .square = memory + 3 * n};
  s->best = memory + 4 * n;
  net->d_weights = memory + 5 * n;
  for (size_t i = 0; i < s->n_matrices; i++) {
    pst_tune_blocks_f32 *b = &s->grads[s->matrices[i].layer];
    b->n[s->matrices[i].role] = block_of(s, i);
    b->grads[s->matrices[i].role] = s->adam.grads + s->first[i];
  }
  return 0;
}

/* ---- steps ---- */

/* Weights in memory are what the blocks say times what the params do: a matrix to a piece. */
static void follow(void *arg, size_t matrix, void *scratch) {
  scales *s = arg;
  const pst_tune_scaled *x = &s->matrices[matrix];
  const pst_tune_linear *l = linear_of(s, matrix);
  size_t n = block_of(s, matrix), bytes = pst_kernels_row_bytes(x->type, l->n_in);
  const float *param = s->adam.params + s->first[matrix];
  (void)scratch;
  for (size_t r = 0; r < l->n_out; r++) {
    float *w = x->w + r * l->n_in;
    (void)pst_kernels_dequantize_row(x->type, x->blocks + r * bytes, l->n_in, w);
    for (size_t at = 0; at < l->n_in; at += n) {
      float factor = expf(*param++);
      for (size_t i = 0; i < n; i++) w[at + i] *= factor;
    }
  }
}

static double look(scales *s) { return pst_tune_judge_run(&s->judge, s->rounded).answers; }

/* One step over batches [first, first + n). Returns their divergence, a token. */
static double step(scales *s, size_t first, size_t n, int64_t number, int64_t n_steps) {
  pst_tune_net_f32 *net = s->whole->net;
  double loss, sum = 0;
  size_t n_scores = 0;
  for (size_t i = first; i < first + n; i++) n_scores += s->batches[i].n_scores;
  for (size_t i = first; i < first + n; i++) {
    read_batch(s, &s->batches[i]);
    net->model = s->rounded;
    pst_tune_net_run_f32(net, &s->batches[i], 1 / (double)n_scores, &loss);
    sum += loss;
  }
  double rate = s->lessons->rate * pst_tune_schedule(number, n_steps, WARMUP, FINAL);
  pst_tune_adam_step(net->team, &s->adam, number + 1, rate, CLIP);
  pst_tune_team_run(net->team, s->n_matrices, follow, s);
  return sum / (double)n_scores;
}

/* ---- from an earlier run, for a later one ---- */

static pst_tune_numbers numbers_of(const scales *s) {
  return (pst_tune_numbers){
      .n = s->adam.n, .params = s->adam.params, .mean = s->adam.mean, .square = s->adam.square, .best = s->best};
}

static int save(scales *s, pst_error *err) {
  if (!s->lessons->checkpoint) return 0;
  pst_tune_state state = s->state;
  pst_tune_numbers numbers = numbers_of(s);
  s->saved_us = pst_clock_us();
  state.seconds += (double)(s->saved_us - s->start_us) / 1e6;
  return pst_tune_checkpoint_write(s->lessons->checkpoint, s->lessons->key, &state, &numbers, err);
}

static size_t tokens_of(const scales *s, int64_t from, int64_t to) {
  size_t n = 0;
  for (size_t b = (size_t)from * STEP_BATCHES; b < PST_MIN((size_t)to * STEP_BATCHES, s->n_batches); b++)
    n += s->batches[b].n_tokens;
  return n;
}

/* Where an earlier run stood, else the start. */
static int take_up(scales *s, pst_error *err) {
  pst_tune_numbers numbers = numbers_of(s);
  bool found = false;
  int code = 0;
  if (s->lessons->checkpoint)
    code = pst_tune_checkpoint_read(s->lessons->checkpoint, s->lessons->key, &found, &s->state, &numbers, err);
  if (code) return code;
  s->start_us = s->saved_us = pst_clock_us();
  s->state.n_steps = (int64_t)((s->n_batches + STEP_BATCHES - 1) / STEP_BATCHES);
  if (!found) {
    s->state.held_out_before = s->state.best_loss = look(s);
    return 0;
  }
  pst_tune_team_run(s->whole->net->team, s->n_matrices, follow, s);
  s->lessons->skipped(s->lessons->user, (int64_t)tokens_of(s, 0, s->state.step));
  return 0;
}

static int learn(scales *s, pst_error *err) {
  pst_tune_state *at = &s->state;
  s->whole->net->blocks = s->grads;
  s->whole->net->teacher_share = 1;
  while (at->step < at->n_steps) {
    size_t first = (size_t)at->step * STEP_BATCHES, n = PST_MIN((size_t)STEP_BATCHES, s->n_batches - first);
    double loss = step(s, first, n, at->step, at->n_steps);
    at->step++;
    if (at->step * LOOKS / at->n_steps != (at->step - 1) * LOOKS / at->n_steps) {
      double now = look(s);
      if (now < at->best_loss) {
        at->best_loss = now;
        memcpy(s->best, s->adam.params, s->adam.n * sizeof *s->best);
      }
    }
    bool stop = s->lessons->told(s->lessons->user, (int64_t)tokens_of(s, at->step - 1, at->step), loss);
    bool due = pst_clock_us() - s->saved_us >= SAVE_SECONDS * INT64_C(1000000);
    int code = stop || due ? save(s, err) : 0;
    if (code) return code;
    if (stop) return pst_error_set(err, PST_E_CANCELLED, NULL, "cancelled");
  }
  return 0;
}

/* The best factors into the blocks. One that would leave half precision stays as it is. */
static void put_blocks(scales *s) {
  for (size_t i = 0; i < s->n_matrices; i++) {
    const pst_kernels_type_row *info = pst_kernels_type_info(s->matrices[i].type);
    uint8_t *block = s->matrices[i].blocks;
    for (size_t k = s->first[i]; k < s->first[i + 1]; k++, block += info->block_bytes)
      (void)pst_kernels_block_stretch(s->matrices[i].type, expf(s->best[k]), block);
  }
}

int pst_tune_scales_learn(pst_tune_whole *whole, const pst_tune_model *rounded, const pst_tune_scaled *matrices,
                          size_t n, const pst_tune_lessons *lessons, pst_tune_learned *ret, pst_error *err) {
  scales s = {.whole = whole, .rounded = rounded, .matrices = matrices, .n_matrices = n, .lessons = lessons};
  int code = pst_tune_judge_create(whole->net, &whole->model, lessons->search, 0, true, &s.judge, err);
  if (!code)
    code = pst_tune_traffic_batches(lessons->traffic, 0, whole->net->max_tokens, whole->net->max_position, true,
                                    &s.batches, &s.n_batches, err);
  if (!code) code = make_room(&s, err);
  if (!code) code = take_up(&s, err);
  if (!code) code = learn(&s, err);
  if (!code) {
    put_blocks(&s);
    *ret = (pst_tune_learned){s.state.held_out_before, s.state.best_loss, s.state.seconds};
  }
  done(&s);
  return code;
}
