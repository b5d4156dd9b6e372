/* The course of training on SmolLM2-135M against PEFT and PyTorch (tests/golden/tune_curve.json by tools/golden_tune_curve.py): the same texts in the same
 * order from the same start give the same loss at every step, to 1e-3. All 200 steps in test-full; the first ones otherwise, of a schedule of 200. */
#include <penstock/tune.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "support/scale.h"

typedef struct curve {
  const pst_json *losses;
  double worst;
  int64_t n_steps, last; /* to be looked at */
} curve;

static void on_progress(void *user, const pst_tune_progress *p) {
  curve *c = user;
  double want = pst_json_double(pst_json_at(c->losses, (size_t)p->step - 1), NAN);
  assert_true(want == want);
  c->worst = PST_MAX(c->worst, fabs(p->loss - want));
  c->n_steps = p->step;
}

static bool is_enough(void *user) {
  const curve *c = user;
  return c->n_steps >= c->last;
}

static double number(const pst_json *golden, const char *key) {
  double x = pst_json_double(pst_json_get(golden, key), NAN);
  assert_true(x == x);
  return x;
}

static pst_tune_options options_of(const pst_json *golden) {
  pst_tune_options o = pst_tune_options_default();
  o.precision = PST_TUNE_FLOAT;
  o.rank = (int)number(golden, "rank");
  o.alpha = number(golden, "alpha");
  o.learning_rate = number(golden, "learning_rate");
  o.warmup_share = number(golden, "warmup_share");
  o.clip = number(golden, "clip");
  o.batch_texts = (int)number(golden, "batch_texts");
  o.seed = (uint64_t)number(golden, "seed");
  o.steps = (int64_t)pst_json_size(pst_json_get(golden, "losses"));
  o.in_order = true;
  o.on_progress = on_progress;
  o.cancelled = is_enough;
  return o;
}

static size_t read_texts(const pst_json *list, int32_t *tokens, size_t room, pst_tune_text *texts) {
  size_t n = pst_json_size(list), at = 0;
  for (size_t i = 0; i < n; i++) {
    const pst_json *ids = pst_json_at(pst_json_at(list, i), 0);
    size_t length = pst_json_size(ids);
    assert_true(at + length <= room);
    for (size_t k = 0; k < length; k++) tokens[at + k] = (int32_t)pst_json_int(pst_json_at(ids, k), -1);
    texts[i] = (pst_tune_text){.tokens = tokens + at,
                               .n = length,
                               .n_given = (size_t)pst_json_int(pst_json_at(pst_json_at(list, i), 1), 0),
                               .weight = 1};
    at += length;
  }
  return n;
}

static void test_curve(void **state) {
  (void)state;
  static int32_t tokens[8192];
  static pst_tune_text texts[512];
  const char *path = getenv("PENSTOCK_TEST_SMOLLM2");
  pst_error err = PST_ERROR_INIT;
  pst_json_doc *doc = NULL;
  pst_engine_model *model = NULL;
  if (!path) {
    print_message("skipped: SmolLM2 was not pulled (make models)\n");
    skip();
  }
  if (pst_json_parse_file("tests/golden/tune_curve.json", 1 << 20, &doc, &err)) fail_msg("%s", err.message);
  const pst_json *golden = pst_json_root(doc), *list = pst_json_get(golden, "texts");
  assert_true(pst_json_size(list) <= PST_ARRAY_LEN(texts));
  size_t n = read_texts(list, tokens, PST_ARRAY_LEN(tokens), texts);
  curve c = {.losses = pst_json_get(golden, "losses")};
  pst_tune_options o = options_of(golden);
  assert_int_equal(o.steps, 200);
  c.last = test_scale(6, 1, 200);
  o.user = &c;
  pst_engine_lora lora = {0};
  pst_tune_report report;
  if (pst_engine_model_open(path, 0, &model, &err)) fail_msg("%s", err.message);
  int code = pst_tune_train(model, texts, n, NULL, 0, &o, &lora, &report, &err);
  if (code && code != PST_E_CANCELLED) fail_msg("%s", err.message);
  print_message("%lld steps, losses at most %.1e apart\n", (long long)c.n_steps, c.worst);
  assert_int_equal(c.n_steps, c.last);
  assert_true(c.worst <= 1e-3);
  pst_engine_lora_done(&lora);
  pst_engine_model_unref(model);
  pst_json_free(doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_curve)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
