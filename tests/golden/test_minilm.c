/* all-MiniLM-L6-v2 against what `transformers` makes of the same texts (tests/golden/minilm.json): the same tokens, and vectors that point the same way.
 *
 * Tolerance: the golden vectors are rounded to 1/10,000, which alone leaves a cosine over 0.999999; keys and values in F16 and sums in another order do no more.
 * A model whose weights were read wrongly is far below 0.999. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <penstock/engine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIMS = 384 };
static const double least_cosine = 0.9999;

static double cosine(const float *vector, const pst_json *golden) {
  double dot = 0, a = 0, b = 0;
  size_t d = 0;
  for (pst_json_iter it = pst_json_iterate(golden); pst_json_next(&it); d++) {
    double want = pst_json_double(it.value, NAN), got = (double)vector[d];
    assert_true(d < DIMS);
    dot += want * got;
    a += want * want;
    b += got * got;
  }
  assert_int_equal(d, DIMS);
  return dot / sqrt(a * b);
}

static double check(const pst_engine_model *model, pst_engine *engine, const pst_json *c) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_tokens tokens = {NULL, 0, 0};
  const pst_json *ids = pst_json_get(c, "ids");
  float vector[DIMS];
  if (pst_engine_embed_tokenize(model, pst_json_str(pst_json_get(c, "text")), &tokens, &err))
    fail_msg("%s", err.message);
  assert_int_equal(tokens.n, pst_json_size(ids));
  for (pst_json_iter it = pst_json_iterate(ids); pst_json_next(&it);)
    assert_int_equal(tokens.ids[it.index - 1], pst_json_int(it.value, -1));
  if (pst_engine_embed_wait(engine, NULL, tokens.ids, &tokens.n, 1, vector, &err)) fail_msg("%s", err.message);
  pst_engine_tokens_done(&tokens);
  double length = 0;
  for (int d = 0; d < DIMS; d++) length += (double)vector[d] * (double)vector[d];
  assert_true(fabs(length - 1) < 1e-6);
  return cosine(vector, pst_json_get(c, "vector"));
}

static void test_vectors(void **state) {
  (void)state;
  const char *path = getenv("PENSTOCK_TEST_MINILM");
  if (!path) {
    print_message("skipped: no model (PENSTOCK_TEST_MINILM)\n");
    skip();
  }
  pst_error err = PST_ERROR_INIT;
  pst_json_doc *doc = NULL;
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  if (pst_json_parse_file("tests/golden/minilm.json", 1 << 20, &doc, &err) ||
      pst_engine_model_open(path, 0, &model, &err) || pst_engine_create(model, NULL, &engine, &err))
    fail_msg("%s: %s", err.place, err.message);
  const pst_json *cases = pst_json_get(pst_json_root(doc), "cases");
  double least = 1;
  assert_true(pst_json_size(cases) >= 20);
  for (pst_json_iter it = pst_json_iterate(cases); pst_json_next(&it);) {
    double c = check(model, engine, it.value);
    assert_true(c >= least_cosine);
    least = PST_MIN(least, c);
  }
  print_message("%zu texts, least cosine %.7f\n", pst_json_size(cases), least);
  pst_engine_free(engine);
  pst_engine_model_unref(model);
  pst_json_free(doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_vectors)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
