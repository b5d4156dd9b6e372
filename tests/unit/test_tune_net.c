/* What must not change a derivative: the number of threads, which texts stand beside a text, how a step is cut into batches, and whether a shared
 * beginning is there once or in every text. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/golden_model.h"
#include "support/scale.h"
#include "support/temp.h"
#include "tune/net.h"

enum { N_TEXTS = 5, LENGTH = 50, SHARED = 21, MAX_TOKENS = 300, RANK = 8 };

typedef struct setting {
  pst_tune_model model;
  pst_tune_lora lora;
  int32_t tokens[N_TEXTS][LENGTH];
  pst_tune_text texts[N_TEXTS];
} setting;

/* Texts 0 to 2 begin alike, 3 is text 0 again and 4 a beginning of it. */
static void open_setting_in(setting *s, const char *name, pst_tune_precision precision) {
  pst_error err = PST_ERROR_INIT;
  const char *path = test_temp_path(test_dir, "model.gguf");
  test_golden_model(name, path);
  pst_engine_model *model = NULL;
  if (pst_engine_model_open(path, 1, &model, &err)) fail_msg("%s", err.message);
  bool roles[PST_ENGINE_ROLE_COUNT];
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) roles[r] = r != PST_ENGINE_ROLE_K; /* one layer goes without */
  if (pst_tune_model_load(model, precision, &s->model, &err)) fail_msg("%s", err.message);
  if (pst_tune_lora_init(&s->model, RANK, 12, roles, &s->lora, &err)) fail_msg("%s", err.message);
  pst_engine_model_unref(model);
  for (int t = 0; t < N_TEXTS; t++) {
    for (int i = 0; i < LENGTH; i++)
      s->tokens[t][i] = (int32_t)(pst_random_u64(3, i < SHARED || t > 2 ? 0 : (uint64_t)t, (uint64_t)i) % 256);
    s->texts[t] = (pst_tune_text){.tokens = s->tokens[t],
                                  .n = t == 4 ? LENGTH - 9 : LENGTH,
                                  .n_given = SHARED + 9,
                                  .weight = t == 1 ? 0.5f : 1.0f};
  }
}

static void open_setting(setting *s, const char *name) { open_setting_in(s, name, PST_TUNE_FLOAT); }

static void close_setting(setting *s) {
  pst_tune_lora_done(&s->lora);
  pst_tune_model_done(&s->model);
}

/* A net over the setting, its adapter drawn from around 0. */
#define OPEN(kind, type)                                                                                       \
  static pst_tune_net_##kind *open_##kind(setting *s, int threads, double spread) {                            \
    pst_error err = PST_ERROR_INIT;                                                                            \
    pst_tune_team *team = NULL;                                                                                \
    pst_tune_net_##kind *net = NULL;                                                                           \
    if (pst_tune_team_create(threads, pst_tune_scratch_bytes(MAX_TOKENS, s->model.n_ff), &team, &err) ||       \
        pst_tune_net_create_##kind(&s->model, &s->lora, team, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS, &net, &err)) \
      fail_msg("%s", err.message);                                                                             \
    for (size_t i = 0; i < s->lora.n; i++) net->params[i] = (type)(spread * (pst_random_unit(5, 0, i) - 0.5)); \
    return net;                                                                                                \
  }                                                                                                            \
  static void close_##kind(pst_tune_net_##kind *net) {                                                         \
    pst_tune_team *team = net->team;                                                                           \
    pst_tune_net_free_##kind(net);                                                                             \
    pst_tune_team_free(team);                                                                                  \
  }
OPEN(f32, float)
OPEN(f64, double)

/* Sums of losses and derivatives over batches, one after the other. The result is the caller's. */
#define DERIVE(kind, type)                                                                                         \
  static type *derive_##kind(setting *s, int threads, const pst_tune_batch *batches, size_t n, double *ret_loss) { \
    pst_tune_net_##kind *net = open_##kind(s, threads, 0.5);                                                       \
    double sum = 0, loss;                                                                                          \
    for (size_t i = 0; i < n; i++) {                                                                               \
      pst_tune_net_run_##kind(net, &batches[i], 0.01, &loss);                                                      \
      sum += loss;                                                                                                 \
    }                                                                                                              \
    type *grads = pst_malloc(s->lora.n * sizeof *grads);                                                           \
    assert_non_null(grads);                                                                                        \
    memcpy(grads, net->grads, s->lora.n * sizeof *grads);                                                          \
    close_##kind(net);                                                                                             \
    *ret_loss = sum;                                                                                               \
    return grads;                                                                                                  \
  }
DERIVE(f32, float)
DERIVE(f64, double)

static const char *const names[] = {"llama", "qwen2", "qwen3", "gemma3"};

static pst_tune_batch batch_of(const setting *s, size_t first, size_t n) {
  pst_tune_batch b = {0};
  for (size_t i = first; i < first + n; i++) assert_int_equal(pst_tune_batch_add(&b, &s->texts[i]), 0);
  return b;
}

/* One batch on 1, 2 and 3 threads, and the same texts in three batches and in five: the same bits. */
static void test_bits(void **state) {
  (void)state;
  for (size_t m = 0; m < PST_ARRAY_LEN(names); m++) {
    setting s;
    double loss, other;
    open_setting(&s, names[m]);
    pst_tune_batch whole = batch_of(&s, 0, N_TEXTS),
                   parts[3] = {batch_of(&s, 0, 2), batch_of(&s, 2, 1), batch_of(&s, 3, 2)}, single[N_TEXTS];
    for (size_t i = 0; i < N_TEXTS; i++) single[i] = batch_of(&s, i, 1);
    float *want = derive_f32(&s, 1, &whole, 1, &loss);
    for (int way = 0; way < 4; way++) {
      float *got = way < 2    ? derive_f32(&s, 2 + way, &whole, 1, &other)
                   : way == 2 ? derive_f32(&s, 2, parts, 3, &other)
                              : derive_f32(&s, 1, single, N_TEXTS, &other);
      assert_memory_equal(want, got, s.lora.n * sizeof *got);
      assert_true(fabs(other - loss) <= 1e-12 * fabs(loss)); /* double sums of the same losses, in another order */
      pst_free(got);
    }
    pst_free(want);
    pst_tune_batch_done(&whole);
    for (int i = 0; i < 3; i++) pst_tune_batch_done(&parts[i]);
    for (int i = 0; i < N_TEXTS; i++) pst_tune_batch_done(&single[i]);
    close_setting(&s);
  }
}

#define APART(kind, type)                                                          \
  static double apart_##kind(const type *a, const type *b, size_t n) {             \
    double difference = 0, size = 0;                                               \
    for (size_t i = 0; i < n; i++) {                                               \
      difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]); \
      size += (double)a[i] * (double)a[i];                                         \
    }                                                                              \
    assert_true(size > 0);                                                         \
    return sqrt(difference / size);                                                \
  }
APART(f32, float)
APART(f64, double)

static void test_tree(void **state) {
  (void)state;
  for (size_t m = 0; m < PST_ARRAY_LEN(names); m++) {
    setting s;
    double loss, other;
    open_setting(&s, names[m]);
    pst_tune_batch plain = batch_of(&s, 0, N_TEXTS), tree = {0};
    assert_int_equal(pst_tune_batch_add_tree(&tree, s.texts, N_TEXTS, 8), 0);
    /* the beginning; of text 0: up to the end of text 4, then the rest, for texts 0 and 3 at once; texts 1 and 2 */
    assert_int_equal(tree.n_tokens, LENGTH - 1 + 2 * (LENGTH - 1 - SHARED));
    assert_int_equal(tree.n_scores, plain.n_scores);
    float *want = derive_f32(&s, 2, &plain, 1, &loss), *got = derive_f32(&s, 2, &tree, 1, &other);
    assert_true(apart_f32(want, got, s.lora.n) < 1e-5);
    assert_true(fabs(other / loss - 1) < 1e-5);
    double *exact = derive_f64(&s, 2, &plain, 1, &loss), *shared = derive_f64(&s, 2, &tree, 1, &other);
    assert_true(apart_f64(exact, shared, s.lora.n) < 1e-12);
    pst_free(want);
    pst_free(got);
    pst_free(exact);
    pst_free(shared);
    pst_tune_batch_done(&plain);
    pst_tune_batch_done(&tree);
    close_setting(&s);
  }
}

/* In 8 bits: the same bits whatever stands beside and however many threads, and near what float gives. */
static void test_int8(void **state) {
  (void)state;
  for (size_t m = 0; m < PST_ARRAY_LEN(names); m++) {
    setting s, exact;
    double loss, other;
    open_setting(&exact, names[m]);
    open_setting_in(&s, names[m], PST_TUNE_INT8);
    assert_non_null(s.model.layers[0].linear[PST_ENGINE_ROLE_DOWN].packed.data);
    assert_non_null(s.model.packed_head.data);
    pst_tune_batch whole = batch_of(&s, 0, N_TEXTS), parts[2] = {batch_of(&s, 0, 2), batch_of(&s, 2, 3)};
    float *want = derive_f32(&s, 1, &whole, 1, &loss), *again = derive_f32(&s, 3, parts, 2, &other);
    assert_memory_equal(want, again, s.lora.n * sizeof *want);
    float *in_float = derive_f32(&exact, 2, &whole, 1, &other);
    print_message("%s: loss %.5f, in float %.5f; derivatives apart %.4f\n", names[m], loss, other,
                  apart_f32(in_float, want, s.lora.n));
    assert_true(fabs(loss / other - 1) < 0.01);
    assert_true(apart_f32(in_float, want, s.lora.n) < 0.15);
    pst_error err = PST_ERROR_INIT;
    pst_tune_net_f64 *net = NULL;
    assert_int_equal(pst_tune_net_create_f64(&s.model, &s.lora, NULL, 1, 1, 1, &net, &err), PST_E_UNSUPPORTED);
    pst_free(want);
    pst_free(again);
    pst_free(in_float);
    pst_tune_batch_done(&whole);
    for (int i = 0; i < 2; i++) pst_tune_batch_done(&parts[i]);
    close_setting(&s);
    close_setting(&exact);
  }
}

/* ---- what the loss derives by factors of weights' blocks ---- */

enum { BLOCK = 32 };

/* All matrices in blocks; the memory is the caller's. */
#define BLOCKS(kind, type)                                                                                       \
  static pst_tune_blocks_##kind *blocks_##kind(const pst_tune_model *m, type **ret_memory, size_t *ret_n) {      \
    pst_tune_blocks_##kind *b = pst_calloc(m->n_layers, sizeof *b);                                              \
    size_t n = 0, at = 0, most = 0;                                                                              \
    for (size_t i = 0; i < m->n_layers; i++)                                                                     \
      for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {                                                          \
        const pst_tune_linear *l = &m->layers[i].linear[r];                                                      \
        n += l->n_out * l->n_in / BLOCK;                                                                         \
        most = PST_MAX(most, l->n_out * l->n_in);                                                                \
      }                                                                                                          \
    *ret_memory = pst_calloc(n + most, sizeof **ret_memory);                                                     \
    *ret_n = n;                                                                                                  \
    assert_non_null(b);                                                                                          \
    assert_non_null(*ret_memory);                                                                                \
    for (size_t i = 0; i < m->n_layers; i++)                                                                     \
      for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {                                                          \
        const pst_tune_linear *l = &m->layers[i].linear[r];                                                      \
        assert_int_equal(l->n_in % BLOCK, 0);                                                                    \
        b[i].n[r] = BLOCK;                                                                                       \
        b[i].grads[r] = *ret_memory + at;                                                                        \
        at += l->n_out * l->n_in / BLOCK;                                                                        \
      }                                                                                                          \
    return b;                                                                                                    \
  }                                                                                                              \
  static double run_##kind(setting *s, int threads, const pst_tune_batch *batch, pst_tune_blocks_##kind *blocks, \
                           type *d_weights) {                                                                    \
    pst_tune_net_##kind *net = open_##kind(s, threads, 0.2);                                                     \
    double loss;                                                                                                 \
    net->blocks = blocks;                                                                                        \
    net->d_weights = d_weights;                                                                                  \
    pst_tune_net_run_##kind(net, batch, blocks ? 1 : 0, &loss);                                                  \
    close_##kind(net);                                                                                           \
    return loss;                                                                                                 \
  }
BLOCKS(f32, float)
BLOCKS(f64, double)

/* Without their last bits, so that what they are multiplied by below leaves nothing to round. */
static void shorten(const pst_tune_model *m) {
  for (size_t i = 0; i < m->n_layers; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++)
      for (size_t k = 0; k < m->layers[i].linear[r].n_out * m->layers[i].linear[r].n_in; k++) {
        uint32_t bits;
        float *w = (float *)(uintptr_t)&m->layers[i].linear[r].w[k];
        memcpy(&bits, w, sizeof bits);
        bits &= 0xfffff000u;
        memcpy(w, &bits, sizeof bits);
      }
}

/* (loss at factor 1 + h less loss at 1 - h) / 2h, of one block of a matrix. */
static double by_difference(setting *s, const pst_tune_batch *batch, float *w) {
  const float h = 1.0f / 1024;
  float saved[BLOCK];
  double loss[2];
  memcpy(saved, w, sizeof saved);
  for (int side = 0; side < 2; side++) {
    for (int i = 0; i < BLOCK; i++) w[i] = saved[i] * (side ? 1 - h : 1 + h);
    loss[side] = run_f64(s, 2, batch, NULL, NULL);
  }
  memcpy(w, saved, sizeof saved);
  return (loss[0] - loss[1]) / (2 * (double)h);
}

static void test_blocks(void **state) {
  (void)state;
  int n_tried = test_scale(3, 1, 3); /* of each matrix */
  for (size_t m = 0; m < PST_ARRAY_LEN(names); m++) {
    setting s;
    double *memory, worst = 0, size = 0;
    float *one, *three;
    size_t n;
    open_setting(&s, names[m]);
    shorten(&s.model);
    pst_tune_batch batch = batch_of(&s, 0, 2);
    pst_tune_blocks_f64 *blocks = blocks_f64(&s.model, &memory, &n);
    (void)run_f64(&s, 2, &batch, blocks, memory + n);
    for (size_t i = 0; i < n; i++) size = PST_MAX(size, fabs(memory[i]));
    assert_true(size > 0);
    for (size_t i = 0; i < s.model.n_layers; i++)
      for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
        const pst_tune_linear *l = &s.model.layers[i].linear[r];
        for (int t = 0; t < n_tried; t++) {
          size_t k = pst_random_u64(9, i * 16 + (uint64_t)r, (uint64_t)t) % (l->n_out * l->n_in / BLOCK);
          double want = by_difference(&s, &batch, (float *)(uintptr_t)&l->w[k * BLOCK]);
          worst = PST_MAX(worst, fabs(blocks[i].grads[r][k] - want) / size);
        }
      }
    print_message("%s: derivatives by %zu blocks, worst %.1e of the largest\n", names[m], n, worst);
    assert_true(worst < 1e-6);
    pst_free(blocks);
    pst_tune_blocks_f32 *narrow = blocks_f32(&s.model, &one, &n), *again = blocks_f32(&s.model, &three, &n);
    (void)run_f32(&s, 1, &batch, narrow, one + n);
    (void)run_f32(&s, 3, &batch, again, three + n);
    assert_memory_equal(one, three, n * sizeof *one);
    for (size_t i = 0; i < n; i++) assert_true(fabs((double)one[i] - memory[i]) < 1e-4 * size);
    pst_free(narrow);
    pst_free(again);
    pst_free(one);
    pst_free(three);
    pst_free(memory);
    pst_tune_batch_done(&batch);
    close_setting(&s);
  }
}

static void test_unknown_architecture(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_tune_model model;
  const char *path = test_temp_path(test_dir, "other.gguf");
  test_golden_model("gemma2", path);
  pst_engine_model *source = NULL;
  assert_int_equal(pst_engine_model_open(path, 1, &source, &err), 0);
  assert_int_equal(pst_tune_model_load(source, PST_TUNE_FLOAT, &model, &err), PST_E_UNSUPPORTED);
  assert_non_null(strstr(err.message, "gemma2"));
  pst_engine_model_unref(source);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_bits), cmocka_unit_test(test_tree),
                                     cmocka_unit_test(test_int8), cmocka_unit_test(test_blocks),
                                     cmocka_unit_test(test_unknown_architecture)};
  return cmocka_run_group_tests(tests, test_dir_open, test_dir_close);
}
