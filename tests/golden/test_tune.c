/* Loss and derivatives of adapters on tiny models against PyTorch's autograd (tests/golden/tune.json by tools/golden_tune.py): in double to 1e-5 of a
 * derivative's length, in float to what float is good for. */
#include <penstock/engine.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/golden_model.h"
#include "support/temp.h"
#include "support/tiny_model.h"
#include "tune/net.h"

enum { MAX_TOKENS = 256 };

typedef struct setting {
  pst_tune_model model;
  pst_tune_lora lora;
  pst_tune_team *team;
  pst_tune_batch batch;
  uint64_t seed;
} setting;

static void must(int code, const pst_error *err) {
  if (code) fail_msg("%s: %s", err->place, err->message);
}

static void set_up(setting *s, const pst_json *golden, const char *path) {
  pst_error err = PST_ERROR_INIT;
  char name[64];
  int32_t tokens[MAX_TOKENS];
  pst_str text = pst_json_str(pst_json_get(golden, "name"));
  snprintf(name, sizeof name, "%.*s", (int)text.n, text.data);
  pst_json_doc *doc = test_golden_read(name);
  const pst_json *given = pst_json_get(pst_json_root(doc), "tokens");
  size_t n = pst_json_size(given);
  assert_true(n > 2 && n <= MAX_TOKENS);
  for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)pst_json_int(pst_json_at(given, i), -1);
  s->seed = (uint64_t)pst_json_int(pst_json_get(pst_json_root(doc), "seed"), 0);
  test_golden_write(path, pst_json_root(doc), NULL);
  pst_json_free(doc);
  pst_engine_model *model = NULL;
  must(pst_engine_model_open(path, 1, &model, &err), &err);
  must(pst_tune_model_load(model, NULL, &s->model, &err), &err);
  pst_engine_model_unref(model);
  bool roles[PST_ENGINE_ROLE_COUNT];
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) roles[r] = true;
  must(pst_tune_lora_init(&s->model, (size_t)pst_json_int(pst_json_get(golden, "rank"), 0),
                          pst_json_double(pst_json_get(golden, "alpha"), 0), roles, &s->lora, &err),
       &err);
  must(pst_tune_team_create(2, pst_tune_scratch_bytes(MAX_TOKENS, s->model.n_ff), &s->team, &err), &err);
  pst_tune_text one = {tokens, n, (size_t)pst_json_int(pst_json_get(golden, "n_given"), 0), 1.0f};
  assert_int_equal(pst_tune_batch_add(&s->batch, &one), 0);
}

static void tear_down(setting *s) {
  pst_tune_batch_done(&s->batch);
  pst_tune_team_free(s->team);
  pst_tune_lora_done(&s->lora);
  pst_tune_model_done(&s->model);
}

/* Where the numbers of "blk.0.attn_q.weight.lora_a" stand, and how many there are. */
static size_t find(const setting *s, const char *name, size_t *ret_n) {
  for (size_t i = 0; i < s->model.n_layers; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
      char full[96];
      const pst_tune_linear *l = &s->model.layers[i].linear[r];
      snprintf(full, sizeof full, "blk.%zu.%s.weight.lora_", i, pst_engine_role_name((pst_engine_role)r));
      size_t prefix = strlen(full);
      if (strncmp(full, name, prefix) != 0) continue;
      *ret_n = s->lora.rank * (name[prefix] == 'a' ? l->n_in : l->n_out);
      return name[prefix] == 'a' ? pst_tune_lora_a(&s->model, &s->lora, i, (pst_engine_role)r) : s->lora.layers[i].b[r];
    }
  fail_msg("no adapter has '%s'", name);
  return 0;
}

static void name_at(const pst_json *rows, size_t i, char name[96]) {
  pst_str text = pst_json_str(pst_json_at(pst_json_at(rows, i), 0));
  snprintf(name, 96, "%.*s", (int)text.n, text.data);
}

static double number_at(const pst_json *rows, size_t i, size_t k) {
  double x = pst_json_double(pst_json_at(pst_json_at(rows, i), k), NAN);
  assert_true(x == x);
  return x;
}

/* Greatest distance of any number kept from ours, relative to the derivative's length times the vector's. */
static double compare(const setting *s, const pst_json *rows, const double *grads) {
  double worst = 0;
  for (size_t i = 0; i < pst_json_size(rows); i++) {
    char name[96], hashed[128];
    size_t n = 0;
    name_at(rows, i, name);
    const double *g = grads + find(s, name, &n);
    double length = number_at(rows, i, 1), ours = 0;
    for (size_t j = 0; j < n; j++) ours += g[j] * g[j];
    worst = PST_MAX(worst, fabs(sqrt(ours) / length - 1));
    for (size_t k = 2; k < 4; k++) {
      double along = 0, size = 0;
      snprintf(hashed, sizeof hashed, "%s.%s", name, k == 2 ? "first" : "second");
      for (size_t j = 0; j < n; j++) {
        double u = (double)test_tiny_element(hashed, s->seed, j);
        along += g[j] * u;
        size += u * u;
      }
      worst = PST_MAX(worst, fabs(along - number_at(rows, i, k)) / (length * sqrt(size)));
    }
  }
  return worst;
}

#define RUN(kind, type)                                                                                            \
  static double run_##kind(setting *s, const pst_json *rows, double *ret_loss, double *ret_grads) {                \
    pst_error err = PST_ERROR_INIT;                                                                                \
    pst_tune_net_##kind *net = NULL;                                                                               \
    must(pst_tune_net_create_##kind(&s->model, &s->lora, s->team, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS, &net, &err), \
         &err);                                                                                                    \
    for (size_t i = 0; i < pst_json_size(rows); i++) {                                                             \
      char name[96];                                                                                               \
      size_t n = 0;                                                                                                \
      name_at(rows, i, name);                                                                                      \
      size_t at = find(s, name, &n);                                                                               \
      for (size_t j = 0; j < n; j++) net->params[at + j] = (type)0.25 * (type)test_tiny_element(name, s->seed, j); \
    }                                                                                                              \
    pst_tune_net_run_##kind(net, &s->batch, 1, ret_loss);                                                          \
    for (size_t i = 0; i < s->lora.n; i++) ret_grads[i] = (double)net->grads[i];                                   \
    pst_tune_net_free_##kind(net);                                                                                 \
    return compare(s, rows, ret_grads);                                                                            \
  }
RUN(f32, float)
RUN(f64, double)

static void check_model(const pst_json *golden, const char *path) {
  setting s = {0};
  set_up(&s, golden, path);
  const pst_json *rows = pst_json_get(golden, "derivatives");
  assert_int_equal(pst_json_size(rows), s.model.n_layers * PST_ENGINE_ROLE_COUNT * 2);
  double loss = pst_json_double(pst_json_get(golden, "loss"), NAN), in_double, in_float;
  double *grads = pst_malloc(s.lora.n * sizeof *grads);
  assert_non_null(grads);
  double apart = run_f64(&s, rows, &in_double, grads), apart_float = run_f32(&s, rows, &in_float, grads);
  print_message("%-12.*s loss %.1e (float %.1e), derivatives %.1e (float %.1e) apart\n",
                (int)pst_json_str(pst_json_get(golden, "name")).n, pst_json_str(pst_json_get(golden, "name")).data,
                fabs(in_double / loss - 1), fabs(in_float / loss - 1), apart, apart_float);
  assert_true(fabs(in_double / loss - 1) < 1e-6);
  assert_true(apart < 1e-5);
  assert_true(fabs(in_float / loss - 1) < 1e-5);
  assert_true(apart_float < 2e-4);
  pst_free(grads);
  tear_down(&s);
}

static void test_autograd(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_json_doc *doc = NULL;
  must(pst_json_parse_file("tests/golden/tune.json", 1 << 20, &doc, &err), &err);
  const pst_json *models = pst_json_get(pst_json_root(doc), "models");
  assert_true(pst_json_size(models) >= 6);
  char *dir = test_temp_dir();
  for (size_t i = 0; i < pst_json_size(models); i++)
    check_model(pst_json_at(models, i), test_temp_path(dir, "model.gguf"));
  test_temp_remove(dir);
  pst_json_free(doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_autograd)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
