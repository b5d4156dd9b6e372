/* Every operation of training by itself, in double: what its backward pass says against central differences of its forward pass, to 1e-6.
 *
 * The loss is a product of the outputs with fixed random numbers. Differences of fourth order with a step of 1e-3 are off by about 1e-12 relative to
 * numbers of size 1. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tune/ops.h"

enum { MAX_POSITION = 96, MAX_ROW = 128 };

static pst_tune_team *team;

static void fill(double *x, size_t n, uint64_t stream) {
  for (size_t i = 0; i < n; i++) x[i] = 2 * pst_random_unit(7, stream, i) - 1;
}

static void fill_floats(float *x, size_t n, uint64_t stream) {
  for (size_t i = 0; i < n; i++) x[i] = (float)(2 * pst_random_unit(7, stream, i) - 1);
}

static double product_of(const double *x, const double *y, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

/* The loss by x[i], by four points around it, for every `every`-th i; the worst distance from d_x relative to the greatest derivative. */
static double worst_difference(double (*loss)(void *arg), void *arg, double *x, const double *d_x, size_t n,
                               size_t every) {
  const double h = 1e-3;
  double worst = 0, greatest = 0;
  for (size_t i = 0; i < n; i += every) {
    double at = x[i], f[4];
    const double steps[4] = {-2, -1, 1, 2};
    for (int k = 0; k < 4; k++) {
      x[i] = at + steps[k] * h;
      f[k] = loss(arg);
    }
    x[i] = at;
    double slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h);
    worst = PST_MAX(worst, fabs(slope - d_x[i]));
    greatest = PST_MAX(greatest, fabs(slope));
  }
  assert_true(greatest > 1e-3);
  return worst / greatest;
}

#define CHECK(loss, arg, x, d_x, n, every)                                   \
  do {                                                                       \
    double apart = worst_difference(loss, arg, x, d_x, n, every);            \
    if (apart > 1e-6) fail_msg("%s by %s: %.1e apart", __func__, #x, apart); \
  } while (0)

/* ---- norm ---- */

enum { ROWS = 5, WIDTH = 40 };

typedef struct normed {
  double x[ROWS * WIDTH], out[ROWS * WIDTH], along[ROWS * WIDTH], d_x[ROWS * WIDTH];
  float weight[WIDTH];
} normed;

static double norm_loss(void *arg) {
  normed *n = arg;
  pst_tune_norm_f64(team, n->x, n->weight, ROWS, WIDTH, 1e-2f, n->out);
  return product_of(n->out, n->along, ROWS * WIDTH);
}

static void test_norm(void **state) {
  (void)state;
  normed n;
  fill(n.x, ROWS * WIDTH, 1);
  fill(n.along, ROWS * WIDTH, 2);
  fill_floats(n.weight, WIDTH, 3);
  pst_tune_norm_back_f64(team, n.x, n.weight, n.along, ROWS, WIDTH, 1e-2f, n.d_x, false);
  CHECK(norm_loss, &n, n.x, n.d_x, ROWS * WIDTH, 1);
  double twice[ROWS * WIDTH];
  memcpy(twice, n.d_x, sizeof twice);
  pst_tune_norm_back_f64(team, n.x, n.weight, n.along, ROWS, WIDTH, 1e-2f, twice, true);
  for (size_t i = 0; i < ROWS * WIDTH; i++) assert_true(fabs(twice[i] - 2 * n.d_x[i]) < 1e-12);
}

/* ---- gate ---- */

typedef struct gated {
  double x[ROWS * 2 * WIDTH], out[ROWS * WIDTH], along[ROWS * WIDTH], d_x[ROWS * 2 * WIDTH];
  bool gelu;
} gated;

static double gate_loss(void *arg) {
  gated *g = arg;
  pst_tune_gate_f64(team, g->gelu, g->x, ROWS, WIDTH, g->out);
  return product_of(g->out, g->along, ROWS * WIDTH);
}

static void test_gate(void **state) {
  (void)state;
  for (int gelu = 0; gelu < 2; gelu++) {
    gated g;
    g.gelu = gelu;
    fill(g.x, ROWS * 2 * WIDTH, 4);
    for (size_t i = 0; i < ROWS * 2 * WIDTH; i++) g.x[i] *= 3;
    fill(g.along, ROWS * WIDTH, 5);
    pst_tune_gate_back_f64(team, g.gelu, g.x, g.along, ROWS, WIDTH, g.d_x);
    CHECK(gate_loss, &g, g.x, g.d_x, ROWS * 2 * WIDTH, 1);
  }
}

/* ---- batches: two texts, and a tree of three that share a beginning of 20 and two of them 8 more ---- */

enum { SHARED = 20, MORE = 8, LENGTH = 37 };

static void make_batch(pst_tune_batch *b, bool tree) {
  int32_t tokens[3][LENGTH];
  pst_tune_text texts[3];
  memset(b, 0, sizeof *b);
  for (int t = 0; t < 3; t++) {
    for (int i = 0; i < LENGTH; i++)
      tokens[t][i] = i < SHARED ? i : i < SHARED + MORE && t < 2 ? 50 + i : 100 * (t + 1) + i;
    texts[t] = (pst_tune_text){.tokens = tokens[t], .n = LENGTH - (size_t)t, .n_given = 30, .weight = 1.0f + (float)t};
  }
  if (tree) {
    assert_int_equal(pst_tune_batch_add_tree(b, texts, 3, 4), 0);
    assert_int_equal(b->n_spans, 5);
    assert_int_equal(b->n_tokens, SHARED + MORE + 8 + 7 + 14);
  } else {
    for (int t = 1; t < 3; t++) assert_int_equal(pst_tune_batch_add(b, &texts[t]), 0);
    assert_int_equal(b->n_spans, 2);
  }
}

/* ---- turning ---- */

enum { MAX_TOKENS = 80, HEADS = 4, KV_HEADS = 2, HEAD = 8, Q = HEADS * HEAD, KV = KV_HEADS * HEAD, QKV = Q + 2 * KV };

typedef struct turned {
  pst_tune_turning_f64 t;
  double x[MAX_TOKENS * Q], out[MAX_TOKENS * Q], along[MAX_TOKENS * Q], d_x[MAX_TOKENS * Q];
  float norm[HEAD], table[MAX_POSITION * HEAD];
} turned;

static double turn_loss(void *arg) {
  turned *t = arg;
  pst_tune_turn_f64(team, &t->t);
  return product_of(t->out, t->along, t->t.batch->n_tokens * Q);
}

static void test_turn(void **state) {
  (void)state;
  static turned t;
  pst_tune_batch b;
  make_batch(&b, true);
  for (int kind = 0; kind < 8; kind++) {
    size_t n_rot = kind & 4 ? HEAD - 2 : HEAD;
    for (size_t p = 0; p < MAX_POSITION; p++)
      pst_kernels_rope_table((double)p, n_rot, 100, 1, NULL, 1.3, t.table + p * n_rot);
    fill_floats(t.norm, HEAD, 6);
    fill(t.x, MAX_TOKENS * Q, 7);
    fill(t.along, MAX_TOKENS * Q, 8);
    t.t = (pst_tune_turning_f64){.batch = &b,
                                 .n_heads = HEADS,
                                 .head_dim = HEAD,
                                 .n_rot = n_rot,
                                 .row = Q,
                                 .out_row = Q,
                                 .norm = kind & 1 ? t.norm : NULL,
                                 .table = t.table,
                                 .neighbours = kind & 2,
                                 .eps = 1e-2f,
                                 .x = t.x,
                                 .out = t.out,
                                 .d_out = t.along,
                                 .d_x = t.d_x};
    pst_tune_turn_back_f64(team, &t.t);
    CHECK(turn_loss, &t, t.x, t.d_x, b.n_tokens * Q, 7);
  }
  pst_tune_batch_done(&b);
}

/* ---- attention ---- */

typedef struct attended {
  pst_tune_attention_f64 a;
  double x[MAX_TOKENS * QKV], out[MAX_TOKENS * Q], sums[MAX_TOKENS * HEADS], along[MAX_TOKENS * Q],
      dots[MAX_TOKENS * HEADS], d_x[MAX_TOKENS * QKV];
} attended;

static double attention_loss(void *arg) {
  attended *t = arg;
  pst_tune_attend_f64(team, &t->a);
  return product_of(t->out, t->along, t->a.batch->n_tokens * Q);
}

static void test_attention(void **state) {
  (void)state;
  static attended t;
  for (int kind = 0; kind < 4; kind++) {
    pst_tune_batch b;
    make_batch(&b, kind & 1);
    fill(t.x, MAX_TOKENS * QKV, 9);
    fill(t.along, MAX_TOKENS * Q, 10);
    t.a = (pst_tune_attention_f64){.batch = &b,
                                   .n_heads = HEADS,
                                   .n_kv_heads = KV_HEADS,
                                   .head_dim = HEAD,
                                   .window = kind & 2 ? 11 : 0,
                                   .row = QKV,
                                   .v_row = QKV,
                                   .out_row = Q,
                                   .scale = 0.7,
                                   .q = t.x,
                                   .k = t.x + Q,
                                   .v = t.x + Q + KV,
                                   .out = t.out,
                                   .log_sums = t.sums,
                                   .d_out = t.along,
                                   .dots = t.dots,
                                   .d_q = t.d_x,
                                   .d_k = t.d_x + Q,
                                   .d_v = t.d_x + Q + KV,
                                   .d_row = QKV};
    (void)attention_loss(&t);
    pst_tune_attend_back_f64(team, &t.a);
    CHECK(attention_loss, &t, t.x, t.d_x, b.n_tokens * QKV, 23);
    pst_tune_batch_done(&b);
  }
}

/* ---- scores ---- */

enum { VOCAB = 70, EMBD = 24 };

typedef struct scored {
  pst_tune_scoring_f64 s;
  double x[MAX_TOKENS * EMBD], logits[3 * VOCAB], losses[MAX_TOKENS], d_x[MAX_TOKENS * EMBD];
  float head[VOCAB * EMBD];
} scored;

static double score_loss(void *arg) {
  scored *t = arg;
  double sum = 0;
  t->s.d_x = NULL;
  pst_tune_score_f64(team, &t->s);
  for (size_t i = 0; i < t->s.batch->n_scores; i++) sum += 0.3 * t->losses[i] * (double)t->s.batch->scores[i].weight;
  return sum;
}

/* Without a teacher, and with one for two of three scores, whose likeliest tokens sum to less than 1; the target is among them or not. */
static void check_score(double share) {
  static scored t;
  pst_tune_batch b;
  int32_t ids[MAX_TOKENS][4];
  float likely[MAX_TOKENS][4];
  make_batch(&b, true);
  for (size_t i = 0; i < b.n_scores && share > 0; i++) {
    for (int k = 0; k < 4; k++) {
      ids[i][k] = (int32_t)((i * 5 + (size_t)k * 17 + (i % 2 ? 0 : (size_t)b.scores[i].target)) % VOCAB);
      likely[i][k] = 0.1f + 0.2f * (float)pst_random_unit(9, i, (uint64_t)k);
    }
    if (i % 3 == 0) continue;
    b.scores[i].k = 4;
    b.scores[i].ids = ids[i];
    b.scores[i].probabilities = likely[i];
  }
  for (size_t i = 0; i < b.n_scores; i++) b.scores[i].target %= VOCAB;
  assert_int_equal(b.n_scores, 7 + 6 + 5);
  fill(t.x, MAX_TOKENS * EMBD, 11);
  fill_floats(t.head, VOCAB * EMBD, 12);
  t.s = (pst_tune_scoring_f64){.batch = &b,
                               .n_embd = EMBD,
                               .n_vocab = VOCAB,
                               .tile_rows = 3,
                               .head = {NULL, t.head, EMBD, 1},
                               .x = t.x,
                               .logits = t.logits,
                               .losses = t.losses,
                               .share = share,
                               .factor = 0.3,
                               .d_x = t.d_x};
  pst_tune_score_f64(team, &t.s);
  CHECK(score_loss, &t, t.x, t.d_x, b.n_scores * EMBD, 3);
  pst_tune_batch_done(&b);
}

static void test_score(void **state) {
  (void)state;
  check_score(0);
  check_score(0.4);
  check_score(1);
}

/* ---- products ---- */

enum { M = 33, N = 45, K = 21, R = 4 };

typedef struct multiplied {
  double x[M * K], h[M * R], c[M * N], along[M * N], d_x[M * K], d_h[M * R];
  float w[N * K], bias[N];
  double b[N * R], d_b[N * R];
} multiplied;

static pst_tune_operand_f64 of(const double *x, size_t row, size_t col) {
  return (pst_tune_operand_f64){x, NULL, row, col};
}

static double product_loss(void *arg) {
  multiplied *m = arg;
  pst_tune_product_f64 p = {.n_rows = M,
                            .n_cols = N,
                            .n_deep = K,
                            .n_deep2 = R,
                            .a = of(m->x, K, 1),
                            .b = {NULL, m->w, 1, K},
                            .a2 = of(m->h, R, 1),
                            .b2 = of(m->b, 1, R),
                            .bias = m->bias,
                            .c = m->c,
                            .c_row = N};
  pst_tune_products_f64(team, &p, 1);
  return product_of(m->c, m->along, M * N);
}

/* A linear layer with an adapter: y = w x + b h + bias. */
static void test_products(void **state) {
  (void)state;
  static multiplied m;
  fill(m.x, M * K, 13);
  fill(m.h, M * R, 14);
  fill(m.b, N * R, 15);
  fill(m.along, M * N, 16);
  fill_floats(m.w, N * K, 17);
  fill_floats(m.bias, N, 18);
  pst_tune_product_f64 back[3] = {
      {.n_rows = M, .n_cols = K, .n_deep = N, .a = of(m.along, N, 1), .b = {NULL, m.w, K, 1}, .c = m.d_x, .c_row = K},
      {.n_rows = M, .n_cols = R, .n_deep = N, .a = of(m.along, N, 1), .b = of(m.b, R, 1), .c = m.d_h, .c_row = R},
      {.n_rows = N,
       .n_cols = R,
       .n_deep = M,
       .a = of(m.along, 1, N),
       .b = of(m.h, R, 1),
       .c = m.d_b,
       .c_row = R,
       .add = true}};
  pst_tune_products_f64(team, back, 3);
  CHECK(product_loss, &m, m.x, m.d_x, M * K, 1);
  CHECK(product_loss, &m, m.h, m.d_h, M * R, 1);
  CHECK(product_loss, &m, m.b, m.d_b, N * R, 1);
}

static int start(void **state) {
  (void)state;
  return pst_tune_team_create(2, pst_tune_scratch_bytes(MAX_POSITION, MAX_ROW), &team, NULL);
}

static int stop(void **state) {
  (void)state;
  pst_tune_team_free(team);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm),  cmocka_unit_test(test_gate),
                                     cmocka_unit_test(test_turn),  cmocka_unit_test(test_attention),
                                     cmocka_unit_test(test_score), cmocka_unit_test(test_products)};
  return cmocka_run_group_tests(tests, start, stop);
}
