/* Every architecture against `transformers` in float32, on tiny models whose weights both sides make from tensor names, in files with the keys and
 * tensors that llama.cpp's converter writes (tools/golden_architectures.py).
 *
 * Tolerance: we keep keys and values in F16 and sum in another order; log-probabilities differ by about 1e-3 for it (of Gemma 4 the reference rounds
 * keys and values too: about 1e-4 is left). MXFP4 matrices quantize their
 * inputs to 8 bits, which moves them by hundredths. That this is tight enough is tested too: every key that is a number and every kind of tensor is changed in
 * turn, and the result must leave the tolerance. */
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

#include "support/golden_model.h"
#include "support/scale.h"
#include "support/temp.h"

/* How far the model that a golden file describes, changed or not, is from what the file says. */
static test_golden_distance measure(const pst_json *golden, const test_golden_change *change, const char *path) {
  test_golden_write(path, golden, change);
  return test_golden_measure(golden, path);
}

static void text_of(const pst_json *v, char out[96]) {
  pst_str s = pst_json_str(v);
  assert_true(s.n > 0 && s.n < 96);
  snprintf(out, 96, "%.*s", (int)s.n, s.data);
}

static bool is_noticed(const char *name, const pst_json *golden, const test_golden_change *change, const char *path) {
  test_golden_distance d = measure(golden, change, path);
  const char *changed = change->other_key ? change->other_key : change->other_tensor;
  if (!test_golden_within(golden, d)) return true;
  print_error("%s: another '%s' makes no difference (mean %.1e, worst %.1e)\n", name, changed, d.mean, d.worst);
  return false;
}

typedef struct changes {
  int noticed, missed;
} changes;

/* Numbers of keys that the arithmetic depends on and that can be others in the same file. */
static bool is_free(const char *key, const char *kind) {
  return !strcmp(kind, "f32") ||
         (!strstr(kind, "[]") && (strstr(key, "sliding_window") || strstr(key, "expert_used_count")));
}

/* Of a file with quantized matrices only those are changed: an unquantized file of the same architecture has the rest. */
static bool is_quantized(const pst_json *golden) {
  return pst_json_double(pst_json_get(golden, "mean_tolerance"), 0) > 1e-2;
}

static void change_keys(const char *name, const pst_json *golden, const char *path, changes *n) {
  const pst_json *keys = pst_json_get(golden, "keys");
  for (size_t i = 0; i < pst_json_size(keys); i++) {
    char key[96], kind[96];
    text_of(pst_json_at(pst_json_at(keys, i), 0), key);
    text_of(pst_json_at(pst_json_at(keys, i), 1), kind);
    if (!is_free(key, kind) || is_quantized(golden)) continue;
    if (is_noticed(name, golden, &(test_golden_change){.other_key = key}, path))
      n->noticed++;
    else
      n->missed++;
  }
}

/* Of the layers, the second stands for all, and the third where another kind of layer is there. */
static void change_tensors(const char *name, const pst_json *golden, const char *path, changes *n) {
  const pst_json *tensors = pst_json_get(golden, "tensors");
  for (size_t i = 0; i < pst_json_size(tensors); i++) {
    char tensor[96], type[96];
    text_of(pst_json_at(pst_json_at(tensors, i), 0), tensor);
    text_of(pst_json_at(pst_json_at(tensors, i), 1), type);
    if (is_quantized(golden) && !strcmp(type, "F32")) continue;
    if (!strncmp(tensor, "blk.", 4) && strncmp(tensor, "blk.1.", 6) != 0 && strncmp(tensor, "blk.2.", 6) != 0) continue;
    if (is_noticed(name, golden, &(test_golden_change){.other_tensor = tensor}, path))
      n->noticed++;
    else
      n->missed++;
  }
}

static void test_architectures(void **state) {
  (void)state;
  char *dir = test_temp_dir(), names[TEST_GOLDEN_MAX][32];
  const char *path = test_temp_path(dir, "model.gguf");
  int n = test_golden_names(names), n_wrong = 0;
  assert_true(n >= 16);
  for (int i = 0; i < n; i++) {
    pst_json_doc *doc = test_golden_read(names[i]);
    test_golden_distance d = measure(pst_json_root(doc), NULL, path);
    print_message("%-14s mean %.1e, worst %.1e\n", names[i], d.mean, d.worst);
    if (!test_golden_within(pst_json_root(doc), d)) {
      print_error("%s is not what transformers computes\n", names[i]);
      n_wrong++;
    }
    pst_json_free(doc);
  }
  test_temp_remove(dir);
  assert_int_equal(n_wrong, 0);
}

/* Under a sanitizer one architecture stands for all. */
static void test_changes(void **state) {
  (void)state;
  char *dir = test_temp_dir(), names[TEST_GOLDEN_MAX][32];
  const char *path = test_temp_path(dir, "model.gguf");
  int n = test_golden_names(names);
  changes found = {0, 0};
  for (int i = 0; i < test_scale(n, 1, n); i++) {
    pst_json_doc *doc = test_golden_read(names[i]);
    change_keys(names[i], pst_json_root(doc), path, &found);
    change_tensors(names[i], pst_json_root(doc), path, &found);
    pst_json_free(doc);
  }
  print_message("%d changes were noticed\n", found.noticed);
  test_temp_remove(dir);
  assert_true(found.noticed > 0);
  assert_int_equal(found.missed, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_architectures), cmocka_unit_test(test_changes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
