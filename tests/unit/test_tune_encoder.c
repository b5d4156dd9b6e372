/* An encoder with an adapter and a head: derivatives against finite differences, vectors against the engine's, bits whatever the threads and batches. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/scale.h"
#include "support/temp.h"
#include "support/tiny_model.h"
#include "tune/net.h"

enum { N_TEXTS = 6, LENGTH = 44, MAX_TOKENS = 400, RANK = 4, N_LABELS = 5, DIMS = 64 };

typedef struct setting {
  pst_engine_model *source;
  pst_tune_model model;
  pst_tune_lora lora;
  int32_t tokens[N_TEXTS][LENGTH];
  pst_tune_text texts[N_TEXTS];
} setting;

/* Texts of 1 to 43 tokens, the last number of each being its label. pooling: as GGUF numbers it. */
static void open_setting(setting *s, int pooling, pst_tune_precision precision) {
  pst_error err = PST_ERROR_INIT;
  const char *path = test_temp_path(test_dir, "encoder.gguf");
  test_tiny tiny = {.architecture = "bert", .pooling = pooling, .seed = 11, .n_layers = 3};
  test_tiny_write(path, &tiny);
  if (pst_engine_model_open(path, 1, &s->source, &err)) fail_msg("%s", err.message);
  if (pst_tune_model_load_encoder(s->source, precision, N_LABELS, &s->model, &err)) fail_msg("%s", err.message);
  bool roles[PST_ENGINE_ROLE_COUNT];
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) roles[r] = true;
  if (pst_tune_lora_init(&s->model, RANK, 8, roles, &s->lora, &err)) fail_msg("%s", err.message);
  static const size_t lengths[N_TEXTS] = {LENGTH, 2, 18, 34, 5, 9};
  for (size_t t = 0; t < N_TEXTS; t++) {
    for (size_t i = 0; i + 1 < lengths[t]; i++) s->tokens[t][i] = (int32_t)(pst_random_u64(3, t, i) % 200);
    s->tokens[t][lengths[t] - 1] = (int32_t)(t % N_LABELS);
    s->texts[t] = (pst_tune_text){
        .tokens = s->tokens[t], .n = lengths[t], .n_given = lengths[t] - 1, .weight = t == 1 ? 0.5f : 1.0f};
  }
}

static void close_setting(setting *s) {
  pst_tune_lora_done(&s->lora);
  pst_tune_model_done(&s->model);
  pst_engine_model_unref(s->source);
}

static pst_tune_batch batch_of(const setting *s, size_t first, size_t n) {
  pst_tune_batch b = {0};
  for (size_t i = first; i < first + n; i++) assert_int_equal(pst_tune_batch_add(&b, &s->texts[i]), 0);
  return b;
}

#define OPEN(kind, type)                                                                                       \
  static pst_tune_net_##kind *open_##kind(const setting *s, pst_tune_team *team) {                             \
    pst_error err = PST_ERROR_INIT;                                                                            \
    pst_tune_net_##kind *net = NULL;                                                                           \
    if (pst_tune_net_create_##kind(&s->model, &s->lora, team, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS, &net, &err)) \
      fail_msg("%s", err.message);                                                                             \
    for (size_t i = 0; i < s->lora.n; i++) net->params[i] = (type)(0.5 * pst_random_unit(5, 0, i) - 0.25);     \
    return net;                                                                                                \
  }
OPEN(f32, float)
OPEN(f64, double)

static pst_tune_team *team_of(const setting *s, int threads) {
  pst_error err = PST_ERROR_INIT;
  pst_tune_team *team = NULL;
  if (pst_tune_team_create(threads, pst_tune_scratch_bytes(MAX_TOKENS, s->model.n_ff), &team, &err))
    fail_msg("%s", err.message);
  return team;
}

/* Central differences of a sample of all numbers, the head's among them; in the second round a fifth is dropped. */
static void test_differences(void **state) {
  (void)state;
  for (int pooling = 1; pooling <= 2; pooling++) {
    setting s = {0};
    open_setting(&s, pooling, PST_TUNE_FLOAT);
    assert_int_equal(s.lora.n - s.lora.head, N_LABELS * DIMS);
    pst_tune_team *team = team_of(&s, 2);
    pst_tune_net_f64 *net = open_f64(&s, team);
    pst_tune_batch b = batch_of(&s, 0, N_TEXTS);
    double loss, up, down, worst = 0, greatest = 0;
    net->dropout = pooling == 2 ? 0.2 : 0;
    net->draw = 77;
    pst_tune_net_run_f64(net, &b, 1, &loss);
    double *grads = pst_malloc(s.lora.n * sizeof *grads);
    assert_non_null(grads);
    memcpy(grads, net->grads, s.lora.n * sizeof *grads);
    for (size_t i = 0; i < s.lora.n; i++) greatest = PST_MAX(greatest, fabs(grads[i]));
    const size_t n_sampled = (size_t)test_scale(40, 14, 40);
    for (size_t k = 0; k < n_sampled; k++) {
      size_t i = k < 10 ? s.lora.head + k * 31 : (size_t)(pst_random_u64(7, 1, k) % s.lora.n);
      double at = net->params[i], h = 1e-5;
      net->params[i] = at + h;
      pst_tune_net_run_f64(net, &b, 1e-30, &up); /* with a factor, so that the same is dropped */
      net->params[i] = at - h;
      pst_tune_net_run_f64(net, &b, 1e-30, &down);
      net->params[i] = at;
      worst = PST_MAX(worst, fabs((up - down) / (2 * h) - grads[i]) / greatest);
    }
    print_message("pooling %d: %.1e of the greatest derivative apart\n", pooling, worst);
    assert_true(greatest > 1e-3);
    assert_true(worst < 1e-6);
    pst_free(grads);
    pst_tune_batch_done(&b);
    pst_tune_net_free_f64(net);
    pst_tune_team_free(team);
    close_setting(&s);
  }
}

/* What plain runs find of one text of a single token, with `bias` behind its embedding's norm: derivatives are added to those so far. */
static double plain_loss(pst_tune_net_f64 *net, setting *s, const pst_tune_batch *b, const float *bias, double factor) {
  const float *own = s->model.embedding_norm.bias;
  double loss;
  s->model.embedding_norm.bias = bias;
  pst_tune_net_run_f64(net, b, factor, &loss);
  s->model.embedding_norm.bias = own;
  return loss;
}

/* A text of a single token is moved along the derivative by its embedding, which differences of the bias added to it find too; what is learned is the text as it stands and as
 * moved. */
static void test_adversary(void **state) {
  (void)state;
  setting s = {0};
  open_setting(&s, 1, PST_TUNE_FLOAT);
  pst_tune_team *team = team_of(&s, 2);
  pst_tune_net_f64 *net = open_f64(&s, team);
  pst_tune_batch b = batch_of(&s, 1, 1);
  float bias[DIMS];
  double loss, slope[DIMS], length = 0, squares = 0, worst = 0, greatest = 0, h = 1.0 / 1024;
  assert_int_equal(b.n_tokens, 1);
  memcpy(bias, s.model.embedding_norm.bias, sizeof bias);
  for (size_t i = 0; i < DIMS; i++) {
    float at = bias[i];
    bias[i] = at + (float)h;
    double up = plain_loss(net, &s, &b, bias, 0), step = (double)bias[i];
    bias[i] = at - (float)h;
    double down = plain_loss(net, &s, &b, bias, 0);
    slope[i] = (up - down) / (step - (double)bias[i]);
    bias[i] = at;
    squares += slope[i] * slope[i];
    length += net->kept[0].x[i] * net->kept[0].x[i];
  }
  for (size_t i = 0; i < DIMS; i++) bias[i] += (float)(0.1 * sqrt(length / squares) * slope[i]);
  memset(net->grads, 0, s.lora.n * sizeof *net->grads);
  double still = plain_loss(net, &s, &b, s.model.embedding_norm.bias, 1);
  double moved = plain_loss(net, &s, &b, bias, 1);
  double *want = pst_malloc(s.lora.n * sizeof *want);
  assert_non_null(want);
  memcpy(want, net->grads, s.lora.n * sizeof *want);
  memset(net->grads, 0, s.lora.n * sizeof *net->grads);
  net->adversary = 0.1;
  pst_tune_net_run_f64(net, &b, 1, &loss);
  double learned = net->losses[0] * (double)b.scores[0].weight;
  for (size_t i = 0; i < s.lora.n; i++) {
    greatest = PST_MAX(greatest, fabs(want[i]));
    worst = PST_MAX(worst, fabs(net->grads[i] - want[i]));
  }
  print_message("loss %.4f, moved %.4f (%.4f by differences); derivatives %.1e of the greatest apart\n", loss, learned,
                moved, worst / greatest);
  assert_true(fabs(loss - still) < 1e-12 && moved > still + 1e-3);
  assert_true(fabs(learned - moved) < 1e-4 * moved && worst < 1e-3 * greatest);
  pst_free(want);
  pst_tune_batch_done(&b);
  pst_tune_net_free_f64(net);
  pst_tune_team_free(team);
  close_setting(&s);
}

/* Vectors without an adapter, which the engine makes too. */
static void test_vectors(void **state) {
  (void)state;
  setting s = {0};
  pst_error err = PST_ERROR_INIT;
  open_setting(&s, 1, PST_TUNE_FLOAT);
  pst_engine *engine = NULL;
  pst_engine_options o = pst_engine_options_default();
  o.threads = 1;
  if (pst_engine_create(s.source, &o, &engine, &err)) fail_msg("%s", err.message);
  pst_tune_team *team = team_of(&s, 1);
  pst_tune_net_f32 *net = open_f32(&s, team);
  memset(net->params, 0, s.lora.head * sizeof *net->params);
  pst_tune_batch b = batch_of(&s, 0, N_TEXTS);
  double loss, worst = 0;
  pst_tune_net_run_f32(net, &b, 0, &loss);
  for (size_t t = 0; t < N_TEXTS; t++) {
    float vector[DIMS];
    size_t n = s.texts[t].n - 1;
    if (pst_engine_embed_wait(engine, NULL, s.tokens[t], &n, 1, vector, &err)) fail_msg("%s", err.message);
    for (size_t i = 0; i < DIMS; i++)
      worst = PST_MAX(worst, fabs((double)(vector[i] - net->scored_normed[t * DIMS + i] / (float)PST_TUNE_HEAD_SCALE)));
  }
  print_message("vectors: %.1e apart\n", worst);
  assert_true(worst < 1e-3);
  pst_tune_batch_done(&b);
  pst_tune_net_free_f32(net);
  pst_tune_team_free(team);
  pst_engine_free(engine);
  close_setting(&s);
}

static float *derive(const setting *s, int threads, size_t cut, double adversary, double *ret_loss, size_t *ret_right) {
  pst_tune_team *team = team_of(s, threads);
  pst_tune_net_f32 *net = open_f32(s, team);
  net->dropout = net->smoothing = 0.1;
  net->adversary = adversary;
  *ret_loss = 0;
  *ret_right = 0;
  for (size_t i = 0; i < N_TEXTS; i += cut) {
    pst_tune_batch b = batch_of(s, i, PST_MIN(cut, N_TEXTS - i));
    double loss;
    pst_tune_net_run_f32(net, &b, 0.01, &loss);
    *ret_loss += loss;
    *ret_right += net->n_right;
    pst_tune_batch_done(&b);
  }
  float *grads = pst_malloc(s->lora.n * sizeof *grads);
  assert_non_null(grads);
  memcpy(grads, net->grads, s->lora.n * sizeof *grads);
  pst_tune_net_free_f32(net);
  pst_tune_team_free(team);
  return grads;
}

static double apart(const float *a, const float *b, size_t n) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < n; i++) {
    difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    size += (double)b[i] * (double)b[i];
  }
  return sqrt(difference / size);
}

static void test_bits(void **state) {
  (void)state;
  setting s = {0}, packed = {0};
  double loss, other;
  size_t right, n;
  open_setting(&s, 1, PST_TUNE_FLOAT);
  open_setting(&packed, 1, PST_TUNE_INT8);
  float *want = derive(&s, 1, N_TEXTS, 0, &loss, &right);
  for (int way = 0; way < 3; way++) {
    float *got = derive(&s, 1 + way, way == 2 ? 1 : N_TEXTS - (size_t)way, 0, &other, &n);
    assert_memory_equal(want, got, s.lora.n * sizeof *got);
    assert_true(fabs(other - loss) <= 1e-12 * fabs(loss));
    assert_int_equal(n, right);
    pst_free(got);
  }
  /* Learned twice, batches add up in another order; threads still do not show. */
  float *moved = derive(&s, 1, N_TEXTS, 0.1, &loss, &right), *by_three = derive(&s, 3, N_TEXTS, 0.1, &other, &n);
  float *cut = derive(&s, 2, 2, 0.1, &other, &n);
  assert_memory_equal(moved, by_three, s.lora.n * sizeof *moved);
  assert_true(apart(moved, want, s.lora.n) > 0.1 && apart(cut, moved, s.lora.n) < 1e-5);
  pst_free(cut);
  pst_free(by_three);
  pst_free(moved);
  float *rounded = derive(&packed, 2, N_TEXTS, 0, &other, &n);
  print_message("in 8 bits: loss %.5f, in float %.5f; derivatives apart %.4f\n", other, loss,
                apart(rounded, want, s.lora.n));
  assert_true(fabs(other / loss - 1) < 0.02);
  assert_true(apart(rounded, want, s.lora.n) < 0.15);
  pst_free(rounded);
  pst_free(want);
  close_setting(&s);
  close_setting(&packed);
}

/* A head that starts from nothing and an adapter learn labels that a token of each text says; the engine with the adapter makes the vectors that the head was trained
 * on, in any company. */
static void test_learns(void **state) {
  (void)state;
  enum { N = 60, N_HELD_OUT = 20, MOST = 12 };
  setting s = {0};
  pst_error err = PST_ERROR_INIT;
  open_setting(&s, 1, PST_TUNE_FLOAT);
  int32_t tokens[N + N_HELD_OUT][MOST];
  pst_tune_text texts[N + N_HELD_OUT];
  for (size_t t = 0; t < N + N_HELD_OUT; t++) {
    size_t n = 4 + t % 8;
    int32_t label = (int32_t)(t % N_LABELS);
    for (size_t i = 0; i + 1 < n; i++) tokens[t][i] = (int32_t)(20 + pst_random_u64(4, t, i) % 180);
    tokens[t][1 + t % 2] = label;
    tokens[t][n - 1] = label;
    texts[t] = (pst_tune_text){.tokens = tokens[t], .n = n, .n_given = n - 1, .weight = 1};
  }
  pst_tune_options o = pst_tune_options_default();
  o.steps = 60;
  o.max_epochs = 100;
  o.patience = 0;
  o.learning_rate = 1e-2;
  o.precision = PST_TUNE_FLOAT;
  float head[N_LABELS * DIMS] = {0};
  pst_engine_lora lora = {0};
  pst_tune_report r;
  if (pst_tune_train_encoder(s.source, texts, N, texts + N, N_HELD_OUT, N_LABELS, &o, head, &lora, &r, &err))
    fail_msg("%s: %s", err.place, err.message);
  print_message("held-out loss %.3f to %.3f, %d of %d right\n", r.held_out_before, r.held_out_loss, r.best.n_right,
                r.best.n_asked);
  assert_int_equal(r.best.n_asked, N_HELD_OUT);
  assert_true(r.best.n_right >= N_HELD_OUT - 2);
  pst_engine *engine = NULL;
  pst_engine_adapter *adapter = NULL;
  pst_engine_options eo = pst_engine_options_default();
  eo.threads = 2;
  if (pst_engine_create(s.source, &eo, &engine, &err) || pst_engine_adapter_create(s.source, &lora, &adapter, &err))
    fail_msg("%s: %s", err.place, err.message);
  int32_t all[N_HELD_OUT * MOST];
  size_t lengths[N_HELD_OUT], at = 0, right = 0;
  float vectors[N_HELD_OUT * DIMS], alone[DIMS], plain[DIMS];
  for (size_t t = 0; t < N_HELD_OUT; t++) {
    lengths[t] = texts[N + t].n - 1;
    memcpy(all + at, tokens[N + t], lengths[t] * sizeof *all);
    at += lengths[t];
  }
  assert_int_equal(pst_engine_embed_wait(engine, adapter, all, lengths, N_HELD_OUT, vectors, &err), 0);
  assert_int_equal(pst_engine_embed_wait(engine, adapter, all, lengths, 1, alone, &err), 0);
  assert_int_equal(pst_engine_embed_wait(engine, NULL, all, lengths, 1, plain, &err), 0);
  assert_memory_equal(vectors, alone, sizeof alone);
  assert_memory_not_equal(plain, alone, sizeof alone);
  for (size_t t = 0; t < N_HELD_OUT; t++) {
    size_t best = 0;
    double most = -INFINITY;
    for (size_t k = 0; k < N_LABELS; k++) {
      double sum = 0;
      for (size_t i = 0; i < DIMS; i++) sum += (double)(vectors[t * DIMS + i] * head[k * DIMS + i]);
      if (sum > most) best = k;
      most = PST_MAX(most, sum);
    }
    right += best == (size_t)texts[N + t].tokens[lengths[t]];
  }
  assert_int_equal(right, r.best.n_right);
  pst_engine_free(engine);
  pst_engine_adapter_unref(adapter);
  pst_engine_lora_done(&lora);
  close_setting(&s);
}

static void test_refused(void **state) {
  (void)state;
  static const struct {
    const char *architecture;
    int pooling;
    const char *word;
  } bad[] = {{"nomic-bert", 1, "nomic-bert"}, {"bert", 3, "last token"}};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++) {
    pst_error err = PST_ERROR_INIT;
    pst_tune_model model;
    pst_engine_model *source = NULL;
    const char *path = test_temp_path(test_dir, "refused.gguf");
    test_tiny tiny = {.architecture = bad[i].architecture, .pooling = bad[i].pooling, .seed = 11, .n_layers = 2};
    test_tiny_write(path, &tiny);
    if (pst_engine_model_open(path, 1, &source, &err)) fail_msg("%s", err.message);
    assert_int_equal(pst_tune_model_load_encoder(source, PST_TUNE_FLOAT, 2, &model, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, bad[i].word));
    pst_engine_model_unref(source);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_differences), cmocka_unit_test(test_adversary),
                                     cmocka_unit_test(test_vectors),     cmocka_unit_test(test_bits),
                                     cmocka_unit_test(test_learns),      cmocka_unit_test(test_refused)};
  return cmocka_run_group_tests(tests, test_dir_open, test_dir_close);
}
