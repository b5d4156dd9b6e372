/* Loss and derivatives of adapters on tiny models against PyTorch's autograd (tests/golden/tune.json by tools/golden_tune.py): in double to 1e-5 of a
 * derivative's length, in float to what float is good for. Plain training, and objectives over pairs and marks with all that they need: references, the point. */
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
#include "tune/preference.h"
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
  must(pst_tune_model_load(model, PST_TUNE_FLOAT, &s->model, &err), &err);
  pst_engine_model_unref(model);
  bool roles[PST_ENGINE_ROLE_COUNT];
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) roles[r] = true;
  must(pst_tune_lora_init(&s->model, (size_t)pst_json_int(pst_json_get(golden, "rank"), 0),
                          pst_json_double(pst_json_get(golden, "alpha"), 0), roles, &s->lora, &err),
       &err);
  must(pst_tune_team_create(2, pst_tune_scratch_bytes(MAX_TOKENS, s->model.n_ff), &s->team, &err), &err);
  pst_tune_text one = {
      .tokens = tokens, .n = n, .n_given = (size_t)pst_json_int(pst_json_get(golden, "n_given"), 0), .weight = 1};
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

/* A net whose adapter has the golden file's numbers. */
#define OPEN(kind, type)                                                                                           \
  static pst_tune_net_##kind *open_##kind(setting *s, bool adapted, const pst_json *rows) {                        \
    pst_error err = PST_ERROR_INIT;                                                                                \
    pst_tune_net_##kind *net = NULL;                                                                               \
    must(pst_tune_net_create_##kind(&s->model, &s->lora, s->team, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS, &net, &err), \
         &err);                                                                                                    \
    for (size_t i = 0; i < pst_json_size(rows) && adapted; i++) {                                                  \
      char name[96];                                                                                               \
      size_t n = 0;                                                                                                \
      name_at(rows, i, name);                                                                                      \
      size_t at = find(s, name, &n);                                                                               \
      for (size_t j = 0; j < n; j++) net->params[at + j] = (type)0.25 * (type)test_tiny_element(name, s->seed, j); \
    }                                                                                                              \
    return net;                                                                                                    \
  }                                                                                                                \
  /* How far its derivatives are. */                                                                               \
  static double close_##kind(setting *s, const pst_json *rows, pst_tune_net_##kind *net) {                         \
    double *grads = pst_malloc(s->lora.n * sizeof *grads);                                                         \
    assert_non_null(grads);                                                                                        \
    for (size_t i = 0; i < s->lora.n; i++) grads[i] = (double)net->grads[i];                                       \
    double apart = compare(s, rows, grads);                                                                        \
    pst_tune_net_free_##kind(net);                                                                                 \
    pst_free(grads);                                                                                               \
    return apart;                                                                                                  \
  }
OPEN(f32, float)
OPEN(f64, double)

/* A loss and its derivatives in double and in float, held against PyTorch's; the nets are closed. */
typedef struct outcome {
  const char *what;
  double want, in_double, in_float; /* losses */
  double loss_bound, apart_bound;   /* in float; in double 1e-6 and 1e-5 */
} outcome;

static void expect(setting *s, const pst_json *golden, const outcome *o, pst_tune_net_f64 *exact,
                   pst_tune_net_f32 *net) {
  const pst_json *rows = pst_json_get(golden, "derivatives");
  pst_str name = pst_json_str(pst_json_get(golden, "name"));
  double apart = close_f64(s, rows, exact), apart_float = close_f32(s, rows, net);
  double off = fabs(o->in_double / o->want - 1), off_float = fabs(o->in_float / o->want - 1);
  print_message("%s%-12.*s loss %.1e (float %.1e), derivatives %.1e (float %.1e) apart\n", o->what, (int)name.n,
                name.data, off, off_float, apart, apart_float);
  assert_true(off < 1e-6);
  assert_true(apart < 1e-5);
  assert_true(off_float < o->loss_bound);
  assert_true(apart_float < o->apart_bound);
}

static void check_model(const pst_json *golden, const char *path) {
  setting s = {0};
  set_up(&s, golden, path);
  const pst_json *rows = pst_json_get(golden, "derivatives");
  assert_int_equal(pst_json_size(rows), s.model.n_layers * PST_ENGINE_ROLE_COUNT * 2);
  outcome o = {
      .what = "", .want = pst_json_double(pst_json_get(golden, "loss"), NAN), .loss_bound = 1e-5, .apart_bound = 2e-4};
  pst_tune_net_f64 *exact = open_f64(&s, true, rows);
  pst_tune_net_run_f64(exact, &s.batch, 1, &o.in_double);
  pst_tune_net_f32 *net = open_f32(&s, true, rows);
  pst_tune_net_run_f32(net, &s.batch, 1, &o.in_float);
  expect(&s, golden, &o, exact, net);
  tear_down(&s);
}

/* ---- pairs and marks ---- */

enum { MAX_TEXTS = 4 };

typedef struct preferences {
  setting s;
  pst_tune_weighing w;
  int32_t tokens[MAX_TEXTS][MAX_TOKENS];
  pst_tune_text texts[MAX_TEXTS];
  size_t n;
  double references[MAX_TEXTS], log_probs[MAX_TEXTS], point;
} preferences;

static void read_preferences(preferences *p, const pst_json *golden) {
  const pst_json *texts = pst_json_get(golden, "texts");
  bool kto = pst_str_is(pst_json_str(pst_json_get(golden, "objective")), "kto");
  p->n = pst_json_size(texts);
  assert_in_range(p->n, 1, MAX_TEXTS);
  for (size_t i = 0; i < p->n; i++) {
    const pst_json *text = pst_json_at(texts, i);
    size_t n = pst_json_size(text);
    for (size_t k = 0; k < n; k++) p->tokens[i][k] = (int32_t)pst_json_int(pst_json_at(text, k), -1);
    bool unwanted = kto && i >= p->n / 2;
    p->texts[i] = (pst_tune_text){.tokens = p->tokens[i],
                                  .n = n,
                                  .n_given = (size_t)pst_json_int(pst_json_get(golden, "n_given"), 0),
                                  .weight = unwanted ? (float)pst_json_double(pst_json_get(golden, "weight"), 1) : 1,
                                  .unwanted = unwanted};
  }
  p->w = (pst_tune_weighing){.objective = kto ? PST_TUNE_KTO : PST_TUNE_DPO,
                             .beta = pst_json_double(pst_json_get(golden, "beta"), NAN),
                             .smoothing = pst_json_double(pst_json_get(golden, "smoothing"), 0),
                             .texts = p->texts,
                             .references = p->references,
                             .log_probs = p->log_probs};
}

/* One behind the other, or with their prompts there once. */
static void batch_of(pst_tune_batch *b, const pst_tune_text *texts, size_t n, bool tree) {
  pst_tune_batch_clear(b);
  if (tree) assert_int_equal(pst_tune_batch_add_tree(b, texts, n, 4), 0);
  for (size_t i = 0; i < n && !tree; i++) assert_int_equal(pst_tune_batch_add(b, &texts[i]), 0);
}

static void log_probs_of(preferences *p, pst_tune_net_f64 *net, const pst_tune_text *texts, double *ret) {
  double ignored;
  batch_of(&p->s.batch, texts, p->n, false);
  pst_tune_net_run_f64(net, &p->s.batch, 0, &ignored);
  pst_tune_log_probs(net->losses, &p->s.batch, ret);
}

/* The answers' log-probabilities without the adapter; in KTO also those of answers to other prompts, and by how much the adapter raises them. */
static void find_references(preferences *p, const pst_json *golden, const pst_json *rows) {
  int32_t *tokens = NULL;
  pst_tune_text *contrasts = NULL;
  double before[MAX_TEXTS], after[MAX_TEXTS], sum = 0;
  pst_tune_net_f64 *base = open_f64(&p->s, false, rows), *net = open_f64(&p->s, true, rows);
  log_probs_of(p, base, p->texts, p->references);
  for (size_t i = 0; i < p->n; i++) {
    double want = pst_json_double(pst_json_at(pst_json_get(golden, "references"), i), NAN);
    assert_true(fabs(p->references[i] / want - 1) < 1e-6);
  }
  assert_int_equal(pst_tune_mismatch(p->texts, p->n, MAX_TOKENS, &tokens, &contrasts), 0);
  log_probs_of(p, base, contrasts, before);
  log_probs_of(p, net, contrasts, after);
  for (size_t i = 0; i < p->n; i++) sum += after[i] - before[i];
  p->w.point = p->w.objective == PST_TUNE_KTO ? PST_MAX(sum / (double)p->n, 0) : 0;
  assert_true(fabs(p->w.point - pst_json_double(pst_json_get(golden, "point"), 0)) < 1e-5);
  pst_free(tokens);
  pst_free(contrasts);
  pst_tune_net_free_f64(base);
  pst_tune_net_free_f64(net);
}

static void check_preferences(const pst_json *golden, const char *path) {
  preferences p = {.n = 0};
  set_up(&p.s, golden, path);
  read_preferences(&p, golden);
  const pst_json *rows = pst_json_get(golden, "derivatives");
  double want = pst_json_double(pst_json_get(golden, "loss"), NAN);
  size_t n = p.n / pst_tune_unit(p.w.objective);
  find_references(&p, golden, rows);
  for (int tree = 0; tree < 2; tree++) {
    pst_tune_weighing w = p.w, v = p.w;
    batch_of(&p.s.batch, p.texts, p.n, tree);
    pst_tune_net_f64 *exact = open_f64(&p.s, true, rows);
    pst_tune_net_run_weighed_f64(exact, &p.s.batch, 1 / (double)n, pst_tune_weigh, &w);
    pst_tune_net_f32 *net = open_f32(&p.s, true, rows);
    pst_tune_net_run_weighed_f32(net, &p.s.batch, 1 / (double)n, pst_tune_weigh, &v);
    char what[32];
    (void)snprintf(what, sizeof what, "%s at %.2f ", pst_tune_objective_name(p.w.objective), w.point);
    expect(&p.s, golden, &(outcome){what, want, w.loss / (double)n, v.loss / (double)n, 1e-4, 5e-4}, exact, net);
    assert_int_equal(w.rewards.n, n);
    assert_int_equal(w.rewards.n_wanted + w.rewards.n_unwanted, p.n);
  }
  tear_down(&p.s);
}

/* ---- a teacher ---- */

static void check_distilled(const pst_json *golden, const char *path) {
  setting s = {0};
  int32_t tokens[MAX_TOKENS], ids[MAX_TOKENS];
  float probabilities[MAX_TOKENS];
  set_up(&s, golden, path);
  const pst_json *rows = pst_json_get(golden, "derivatives"), *likely = pst_json_get(golden, "ids");
  outcome o = {.what = "distilled ",
               .want = pst_json_double(pst_json_get(golden, "loss"), NAN),
               .loss_bound = 1e-4,
               .apart_bound = 2e-4};
  pst_tune_teacher teacher = {(int)pst_json_int(pst_json_get(golden, "k"), 0), ids, probabilities};
  pst_tune_text text = {.tokens = tokens,
                        .n = (size_t)pst_json_int(pst_json_get(golden, "n"), 0),
                        .n_given = (size_t)pst_json_int(pst_json_get(golden, "n_given"), 0),
                        .weight = 1,
                        .teacher = &teacher};
  memcpy(tokens, s.batch.tokens, text.n * sizeof *tokens);
  size_t n = pst_json_size(likely);
  assert_int_equal(n, (text.n - text.n_given) * (size_t)teacher.k);
  assert_true(n <= MAX_TOKENS);
  for (size_t i = 0; i < n; i++) {
    ids[i] = (int32_t)pst_json_int(pst_json_at(likely, i), -1);
    probabilities[i] = (float)pst_json_double(pst_json_at(pst_json_get(golden, "probabilities"), i), NAN);
  }
  batch_of(&s.batch, &text, 1, false);
  pst_tune_net_f64 *exact = open_f64(&s, true, rows);
  exact->teacher_share = pst_json_double(pst_json_get(golden, "share"), NAN);
  pst_tune_net_run_f64(exact, &s.batch, 1, &o.in_double);
  pst_tune_net_f32 *net = open_f32(&s, true, rows);
  net->teacher_share = exact->teacher_share;
  pst_tune_net_run_f32(net, &s.batch, 1, &o.in_float);
  expect(&s, golden, &o, exact, net);
  tear_down(&s);
}

static void check_all(const char *what, size_t least, void (*check)(const pst_json *golden, const char *path)) {
  pst_error err = PST_ERROR_INIT;
  pst_json_doc *doc = NULL;
  must(pst_json_parse_file("tests/golden/tune.json", 1 << 20, &doc, &err), &err);
  const pst_json *all = pst_json_get(pst_json_root(doc), what);
  assert_true(pst_json_size(all) >= least);
  char *dir = test_temp_dir();
  for (size_t i = 0; i < pst_json_size(all); i++) check(pst_json_at(all, i), test_temp_path(dir, "model.gguf"));
  test_temp_remove(dir);
  pst_json_free(doc);
}

static void test_autograd(void **state) {
  (void)state;
  check_all("models", 6, check_model);
}

static void test_preferences(void **state) {
  (void)state;
  check_all("preferences", 4, check_preferences);
}

static void test_distilled(void **state) {
  (void)state;
  check_all("distilled", 2, check_distilled);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_autograd), cmocka_unit_test(test_preferences),
                                     cmocka_unit_test(test_distilled)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
