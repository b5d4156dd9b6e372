/* Encoders against `transformers` in float32, on tiny models whose weights both sides make from tensor names; and the same bits however texts are batched.
 *
 * Tolerance: keys and values are kept in F16 and sums run in another order; elements of a vector of length 1 differ by about 1e-4 for it, where a
 * wrong norm, window or pooling moves them by tenths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <penstock/engine.h>
#include <penstock/kernels.h>
#include <stdio.h>
#include <string.h>

#include "support/temp.h"
#include "support/tiny_model.h"

enum { DIMS = 64, MAX_TEXTS = 8, MAX_TOKENS = 512 };
static const double tolerance = 1e-3;

typedef struct texts {
  int32_t tokens[MAX_TOKENS];
  size_t lengths[MAX_TEXTS], n, n_tokens;
} texts;

static texts read_texts(const pst_json *golden) {
  const pst_json *list = pst_json_get(golden, "texts");
  texts t = {.n = pst_json_size(list)};
  assert_in_range(t.n, 2, MAX_TEXTS);
  for (size_t i = 0; i < t.n; i++) {
    const pst_json *text = pst_json_at(list, i);
    t.lengths[i] = pst_json_size(text);
    assert_true(t.n_tokens + t.lengths[i] <= MAX_TOKENS);
    for (size_t k = 0; k < t.lengths[i]; k++) t.tokens[t.n_tokens++] = (int32_t)pst_json_int(pst_json_at(text, k), -1);
  }
  return t;
}

static test_tiny tiny_of(const pst_json *golden, const pst_json *e, char name[32]) {
  pst_str text = pst_json_str(pst_json_get(e, "name"));
  snprintf(name, 32, "%.*s", (int)text.n, text.data);
  return (test_tiny){.architecture = name,
                     .pooling = (int)pst_json_int(pst_json_get(e, "pooling"), 0),
                     .dense = pst_json_bool(pst_json_get(e, "dense"), false),
                     .seed = (uint64_t)pst_json_int(pst_json_get(golden, "seed"), 0),
                     .n_layers = (int)pst_json_int(pst_json_get(golden, "layers"), 0)};
}

static pst_engine *open_engine(const char *path, int threads) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  pst_engine_options o = pst_engine_options_default();
  o.threads = threads;
  if (pst_engine_model_open(path, 1, &model, &err) || pst_engine_create(model, &o, &engine, &err))
    fail_msg("%s: %s", err.place, err.message);
  assert_int_equal(pst_engine_model_get_info(model)->n_dims, DIMS);
  pst_engine_model_unref(model);
  return engine;
}

static void embed(pst_engine *engine, const int32_t *tokens, const size_t *lengths, size_t n, float *vectors) {
  pst_error err = PST_ERROR_INIT;
  if (pst_engine_embed_wait(engine, NULL, tokens, lengths, n, vectors, &err)) fail_msg("%s", err.message);
}

static pst_json_doc *open_golden(void) {
  pst_error err = PST_ERROR_INIT;
  pst_json_doc *doc = NULL;
  if (pst_json_parse_file("tests/golden/encoders.json", 1 << 20, &doc, &err)) fail_msg("%s", err.message);
  return doc;
}

static void test_vectors(void **state) {
  (void)state;
  char *dir = test_temp_dir(), name[32];
  const char *path = test_temp_path(dir, "model.gguf");
  pst_json_doc *doc = open_golden();
  const pst_json *golden = pst_json_root(doc), *all = pst_json_get(golden, "encoders");
  texts t = read_texts(golden);
  assert_true(pst_json_size(all) >= 6);
  for (size_t i = 0; i < pst_json_size(all); i++) {
    const pst_json *e = pst_json_at(all, i), *want = pst_json_get(e, "vectors");
    test_tiny tiny = tiny_of(golden, e, name);
    float vectors[MAX_TEXTS * DIMS];
    double worst = 0;
    test_tiny_write(path, &tiny);
    pst_engine *engine = open_engine(path, 2);
    embed(engine, t.tokens, t.lengths, t.n, vectors);
    pst_engine_free(engine);
    for (size_t k = 0; k < t.n; k++)
      for (size_t d = 0; d < DIMS; d++) {
        double want_d = pst_json_double(pst_json_at(pst_json_at(want, k), d), NAN);
        double off = fabs((double)vectors[k * DIMS + d] - want_d);
        assert_true(off <= tolerance); /* not a number fails too */
        worst = PST_MAX(worst, off);
      }
    print_message("%-16s pooling %d%s: worst %.1e\n", name, tiny.pooling, tiny.dense ? ", projections" : "", worst);
  }
  pst_json_free(doc);
  test_temp_remove(dir);
}

/* Alone, in a batch, in batches that do not fit a step, with one thread and two, by every table: one result. */
static void test_exactness(void **state) {
  (void)state;
  static const char *const tables[] = {"scalar", "avx2", "avx512"};
  static const char *const types[] = {"F32", "Q8_0"};
  enum { COPIES = 12 };
  char *dir = test_temp_dir(), name[32];
  const char *path = test_temp_path(dir, "model.gguf");
  pst_json_doc *doc = open_golden();
  const pst_json *golden = pst_json_root(doc), *all = pst_json_get(golden, "encoders");
  texts t = read_texts(golden);
  static float first[MAX_TEXTS * DIMS], many[COPIES * MAX_TEXTS * DIMS], alone[DIMS];
  static int32_t tokens[COPIES * MAX_TOKENS];
  static size_t lengths[COPIES * MAX_TEXTS];
  for (int c = 0; c < COPIES; c++) {
    memcpy(tokens + (size_t)c * t.n_tokens, t.tokens, t.n_tokens * sizeof *tokens);
    memcpy(lengths + (size_t)c * t.n, t.lengths, t.n * sizeof *lengths);
  }
  for (size_t i = 0; i < 2 * pst_json_size(all); i++) {
    test_tiny tiny = tiny_of(golden, pst_json_at(all, i / 2), name);
    tiny.type = types[i % 2];
    if (strcmp(name, "gemma-embedding")) tiny.n_layers = 1; /* its sixth layer is the first without a window */
    if (tiny.pooling > 1 && i % 2) continue;
    test_tiny_write(path, &tiny);
    for (size_t k = 0; k < PST_ARRAY_LEN(tables); k++) {
      const pst_kernels *table = pst_kernels_find(tables[k]);
      if (!table) continue;
      pst_kernels_set(table);
      pst_engine *engine = open_engine(path, 1 + (int)(k % 2));
      if (k == 0) embed(engine, t.tokens, t.lengths, t.n, first);
      for (size_t text = 0, at = 0; text < t.n; at += t.lengths[text++]) {
        embed(engine, t.tokens + at, &t.lengths[text], 1, alone);
        assert_memory_equal(alone, first + text * DIMS, sizeof alone);
      }
      embed(engine, tokens, lengths, (k ? COPIES : 1) * t.n, many);
      for (size_t c = 0; c < (k ? COPIES : 1); c++)
        assert_memory_equal(many + c * t.n * DIMS, first, t.n * DIMS * sizeof(float));
      pst_engine_free(engine);
    }
    pst_kernels_set(NULL);
  }
  pst_json_free(doc);
  test_temp_remove(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_vectors), cmocka_unit_test(test_exactness)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
