/* Layers left out: the file is what was measured, the layers that go are those that are missed least, and what cannot be done leaves nothing behind. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <penstock/engine.h>
#include <penstock/kernels.h>
#include <penstock/tune_prune.h>

#include "support/golden_model.h"
#include "support/temp.h"
#include "support/traffic.h"

enum { N_TEXTS = 6, LENGTH = 30, GIVEN = 18 };

static pst_error err;

static int layers_of(const char *path) {
  pst_engine_model *m = NULL;
  if (pst_engine_model_open(path, 1, &m, &err)) fail_msg("%s: %s", err.place, err.message);
  int n = pst_engine_model_get_info(m)->n_layers;
  pst_engine_model_unref(m);
  return n;
}

/* A layer whose branches end in zeros adds nothing to the state. */
static void silence(const char *from, const char *to, int layer) {
  pst_engine_model *m = NULL;
  size_t rows[2], cols[2];
  char names[2][48];
  const pst_engine_role roles[2] = {PST_ENGINE_ROLE_O, PST_ENGINE_ROLE_DOWN};
  float *zeros = NULL;
  if (pst_engine_model_open(from, 1, &m, &err)) fail_msg("%s: %s", err.place, err.message);
  pst_engine_tensor given[2];
  for (int i = 0; i < 2; i++) {
    pst_engine_decoder_shape(m, roles[i], &rows[i], &cols[i]);
    (void)snprintf(names[i], sizeof names[i], "blk.%d.%s.weight", layer, pst_engine_role_name(roles[i]));
  }
  zeros = pst_calloc(PST_MAX(rows[0] * cols[0], rows[1] * cols[1]), sizeof *zeros);
  assert_non_null(zeros);
  for (int i = 0; i < 2; i++) given[i] = (pst_engine_tensor){names[i], PST_TYPE_F32, rows[i], cols[i], zeros};
  if (pst_engine_replace(from, to, given, 2, NULL, &err)) fail_msg("%s: %s", err.place, err.message);
  pst_free(zeros);
  pst_engine_model_unref(m);
}

static pst_tune_divergence diverge(const char *path, const char *other, const pst_tune_traffic *t) {
  pst_tune_calibrate_options o = pst_tune_calibrate_options_default();
  pst_tune_divergence d;
  o.threads = 1;
  if (pst_tune_diverge(path, NULL, other, t, &o, &d, &err)) fail_msg("%s: %s", err.place, err.message);
  return d;
}

static void test_the_least_missed_go(void **state) {
  (void)state;
  const char *whole = test_temp_path(test_dir, "whole.gguf"), *path = test_temp_path(test_dir, "silent.gguf");
  const char *out = test_temp_path(test_dir, "out.gguf"), *tried = test_temp_path(test_dir, "tried.gguf");
  pst_tune_traffic search = test_traffic(1, N_TEXTS, LENGTH, GIVEN), held_out = test_traffic(2, N_TEXTS, LENGTH, GIVEN);
  pst_tune_prune_options o = pst_tune_prune_options_default();
  pst_tune_prune_report r;
  test_golden_model("llama", whole);
  int n = layers_of(whole), silent = n - 2, second = -1;
  assert_true(n >= 3);
  silence(whole, path, silent);
  o.n_layers = 1;
  o.threads = 2;
  o.search_tokens = 100000;
  o.note = "marks";
  if (pst_tune_prune(path, out, &search, &held_out, &o, &r, &err)) fail_msg("%s: %s", err.place, err.message);
  assert_int_equal(r.n_layers, n);
  assert_int_equal(r.dropped[0], silent);
  assert_true(fabs(r.held_out.all) < 1e-6 && r.held_out.top1 == 1);
  assert_int_equal(layers_of(out), n - 1);
  assert_true(r.bytes < r.source_bytes);
  /* The next is the one that looking at each file would choose. */
  double least = INFINITY;
  for (int i = 0; i < n; i++) {
    const int both[2] = {silent, i};
    if (i == silent) continue;
    if (pst_engine_drop_layers(path, tried, both, 2, NULL, &err)) fail_msg("%s: %s", err.place, err.message);
    double loss = diverge(path, tried, &search).answers;
    print_message("without %d and %d: %.4f\n", silent, i, loss);
    if (loss < least) second = i;
    least = fmin(least, loss);
  }
  o.n_layers = 2;
  if (pst_tune_prune(path, out, &search, &held_out, &o, &r, &err)) fail_msg("%s: %s", err.place, err.message);
  assert_int_equal(r.dropped[0], PST_MIN(silent, second));
  assert_int_equal(r.dropped[1], PST_MAX(silent, second));
  pst_tune_divergence d = diverge(path, out, &held_out);
  assert_true(d.all > 1e-3 && fabs(d.all - r.held_out.all) < 1e-6 * d.all);
  pst_tune_traffic_done(&search);
  pst_tune_traffic_done(&held_out);
}

static void refuses(const char *path, int n_layers, int want, const char *part) {
  const char *out = test_temp_path(test_dir, "refused.gguf");
  pst_tune_traffic t = test_traffic(1, N_TEXTS, LENGTH, GIVEN);
  pst_tune_prune_options o = pst_tune_prune_options_default();
  pst_tune_prune_report r;
  o.n_layers = n_layers;
  assert_int_equal(pst_tune_prune(path, out, &t, &t, &o, &r, &err), want);
  if (!strstr(err.message, part)) fail_msg("%s", err.message);
  assert_false(pst_file_exists(out));
  pst_tune_traffic_done(&t);
}

static void test_refused(void **state) {
  (void)state;
  const char *llama = test_temp_path(test_dir, "llama.gguf"), *gemma = test_temp_path(test_dir, "gemma.gguf");
  const char *out = test_temp_path(test_dir, "out2.gguf");
  test_golden_model("llama", llama);
  test_golden_model("gemma3", gemma);
  int n = layers_of(llama);
  const int twice[2] = {1, 1}, beyond[1] = {n}, good[1] = {0};
  refuses(llama, 0, PST_E_BAD_INPUT, "at least one");
  refuses(llama, n, PST_E_BAD_INPUT, "at least one");
  refuses(gemma, 1, PST_E_UNSUPPORTED, "take turns");
  assert_int_equal(pst_engine_drop_layers(llama, out, twice, 2, NULL, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_drop_layers(llama, out, beyond, 1, NULL, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_drop_layers(llama, llama, good, 1, NULL, &err), PST_E_BAD_INPUT);
  assert_false(pst_file_exists(out));
  assert_int_equal(layers_of(llama), n);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_least_missed_go), cmocka_unit_test(test_refused)};
  return cmocka_run_group_tests(tests, test_dir_open, test_dir_close);
}
