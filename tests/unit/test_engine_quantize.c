/* Quantizing files: every type from every type, fallbacks, what is copied, refusals, and that nothing is left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <penstock/engine.h>

#include "engine/gguf.h"
#include "support/golden_model.h"
#include "support/scale.h"
#include "support/temp.h"
#include "support/tiny_model.h"

static const char *const types[] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0",   "Q4_1",   "Q5_0",
                                    "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q3_K"};
/* Largest error of a weight in [-0.25, 0.25] that the type (or its fallback for rows of 64) may make. */
static const double steps[] = {0, 2e-4, 1e-3, 4e-3, 0.07, 0.04, 0.035, 0.02, 0.035, 0.02, 4e-3, 0.045, 0.045, 0.045};

static int count_files(const char *dir) {
  DIR *d = opendir(dir);
  int n = 0;
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

/* Largest difference of a tensor in two files, as floats. */
static double difference(const pst_engine_gguf_tensor *a, const pst_engine_gguf_tensor *b) {
  size_t n = (size_t)a->dims[0];
  float *x = pst_malloc(n * sizeof *x), *y = pst_malloc(n * sizeof *y);
  double most = 0;
  assert_int_equal(a->n_elements, b->n_elements);
  for (uint64_t r = 0; r < a->n_elements / n; r++) {
    assert_int_equal(pst_kernels_dequantize_row(a->type, a->data + r * pst_kernels_row_bytes(a->type, n), n, x), 0);
    assert_int_equal(pst_kernels_dequantize_row(b->type, b->data + r * pst_kernels_row_bytes(b->type, n), n, y), 0);
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs((double)x[i] - (double)y[i]));
  }
  pst_free(x);
  pst_free(y);
  return most;
}

static void compare_files(const char *in_path, const char *out_path, const char *type, double step) {
  pst_engine_gguf *in, *out;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_engine_gguf_open(in_path, &in, &err), 0);
  if (pst_engine_gguf_open(out_path, &out, &err)) fail_msg("%s: %s", type, err.message);
  assert_int_equal(pst_engine_gguf_n_tensors(in), pst_engine_gguf_n_tensors(out));
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(in); i++) {
    const pst_engine_gguf_tensor *a = pst_engine_gguf_tensor_at(in, i), *b = pst_engine_gguf_tensor_at(out, i);
    double most = difference(a, b);
    assert_true(pst_str_equal(a->name, b->name));
    if (a->n_dims == 1) {
      assert_int_equal(a->type, b->type);
      assert_true(!(most > 0));
    } else if (!(most <= step)) {
      fail_msg("%s: %.*s is off by %g", type, (int)a->name.n, a->name.data, most);
    }
  }
  for (size_t i = 0; i < pst_engine_gguf_n_values(in); i++) {
    const pst_engine_gguf_value *a = pst_engine_gguf_value_at(in, i);
    char key[256];
    snprintf(key, sizeof key, "%.*s", (int)a->key.n, a->key.data);
    const pst_engine_gguf_value *b = pst_engine_gguf_find(out, key);
    if (!b || a->raw_bytes != b->raw_bytes || memcmp(a->raw, b->raw, a->raw_bytes)) fail_msg("key %s differs", key);
  }
  pst_engine_gguf_close(in);
  pst_engine_gguf_close(out);
}

static void every_type(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  test_tiny_write(test_temp_path(dir, "in.gguf"), &(test_tiny){.seed = 5});
  for (size_t i = 0; i < PST_ARRAY_LEN(types); i++) {
    char name[32];
    pst_error err = PST_ERROR_INIT;
    pst_engine_model *model = NULL;
    int n_fallback = -1;
    snprintf(name, sizeof name, "%s.gguf", types[i]);
    const char *in = test_temp_path(dir, "in.gguf"), *out = test_temp_path(dir, name);
    if (pst_engine_quantize(in, out, types[i], NULL, &n_fallback, &err)) fail_msg("%s: %s", types[i], err.message);
    assert_int_equal(n_fallback, strstr(types[i], "_K") || strstr(types[i], "_XS") ? 15 : 0);
    compare_files(in, out, types[i], steps[i]);
    if (pst_engine_model_open(out, 1, &model, &err)) fail_msg("%s: %s: %s", types[i], err.place, err.message);
    static const char *const main_types[] = {"Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_NL", "IQ4_NL"};
    assert_string_equal(pst_engine_model_get_info(model)->weights, i < 8 ? types[i] : main_types[i - 8]);
    pst_engine_model_unref(model);
  }
  assert_int_equal(count_files(dir), 1 + (int)PST_ARRAY_LEN(types));
  test_temp_remove(dir);
}

/* From a type to itself: the file's tensors bit for bit; and the same file from two runs. */
static void same_type_and_same_bytes(void **state) {
  (void)state;
  char *dir = test_temp_dir(), *a, *b;
  const char *in = test_temp_path(dir, "in.gguf"), *one = test_temp_path(dir, "one"), *two = test_temp_path(dir, "two");
  size_t n_a, n_b;
  pst_error err = PST_ERROR_INIT;
  test_tiny_write(in, &(test_tiny){.seed = 6});
  assert_int_equal(pst_engine_quantize(in, one, "q4_1", NULL, NULL, &err), 0);
  assert_int_equal(pst_engine_quantize(in, two, "Q4_1", NULL, NULL, &err), 0);
  for (int round = 0; round < 2; round++) {
    assert_int_equal(pst_file_read(one, 1 << 24, &a, &n_a, &err), 0);
    assert_int_equal(pst_file_read(two, 1 << 24, &b, &n_b, &err), 0);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    pst_free(a);
    pst_free(b);
    if (round == 0) assert_int_equal(pst_engine_quantize(one, two, "Q4_1", NULL, NULL, &err), 0);
  }
  test_temp_remove(dir);
}

static void refuse(const char *in, const char *out, const char *type, int code, const char *text) {
  pst_error err = PST_ERROR_INIT;
  int n_fallback = 77;
  assert_int_equal(pst_engine_quantize(in, out, type, NULL, &n_fallback, &err), code);
  assert_int_equal(err.code, code);
  if (!strstr(err.message, text)) fail_msg("'%s' does not say '%s'", err.message, text);
  assert_true(err.place[0] != 0);
  assert_int_equal(n_fallback, 77);
}

static void spoil(const char *path, const char *tensor, float value) {
  pst_engine_gguf *g;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_engine_gguf_open(path, &g, &err), 0);
  uint64_t at = pst_engine_gguf_find_tensor(g, tensor)->offset + 40;
  pst_engine_gguf_close(g);
  FILE *f = fopen(path, "r+b");
  assert_non_null(f);
  assert_int_equal(fseek(f, (long)at, SEEK_SET), 0);
  assert_int_equal(fwrite(&value, sizeof value, 1, f), 1);
  fclose(f);
}

static void refusals_leave_nothing(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  const char *in = test_temp_path(dir, "in.gguf"), *out = test_temp_path(dir, "out.gguf");
  test_tiny_write(in, &(test_tiny){.seed = 7});
  refuse(in, out, "Q9_9", PST_E_UNSUPPORTED, "those are F32");
  refuse(in, out, "Q2_K", PST_E_UNSUPPORTED, "those are F32");
  refuse(in, in, "Q8_0", PST_E_BAD_INPUT, "another name");
  refuse(test_temp_path(dir, "none"), out, "Q8_0", PST_E_NOT_FOUND, "");
  refuse(in, test_temp_path(dir, "no/such/folder"), "Q8_0", PST_E_NOT_FOUND, "");
  spoil(in, "blk.0.ffn_up.weight", 1e38f);
  refuse(in, out, "Q8_0", PST_E_LIMIT, "blk.0.ffn_up.weight");
  refuse(in, out, "F16", PST_E_LIMIT, "too large for F16");
  spoil(in, "blk.1.ffn_up.weight", NAN);
  refuse(in, out, "BF16", PST_E_BAD_INPUT, "'blk.1.ffn_up.weight' holds a value that is not finite");
  assert_int_equal(count_files(dir), 1);
  test_temp_remove(dir);
}

static void full_disk_leaves_nothing(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  const char *in = test_temp_path(dir, "in.gguf"), *out = test_temp_path(dir, "out.gguf");
  struct rlimit old, low;
  test_tiny_write(in, &(test_tiny){.seed = 8});
  signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
  low = old;
  low.rlim_cur = 20000;
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
  pst_error err = PST_ERROR_INIT;
  int code = pst_engine_quantize(in, out, "Q8_0", NULL, NULL, &err);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
  assert_int_equal(code, PST_E_NO_SPACE);
  assert_int_equal(count_files(dir), 1);
  test_temp_remove(dir);
}

static void without_memory(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  const char *in = test_temp_path(dir, "in.gguf"), *out = test_temp_path(dir, "out.gguf");
  test_tiny_write(in, &(test_tiny){.seed = 9, .n_layers = 1});
  int code = -1, n = 0;
  for (; code; n++) {
    pst_error err = PST_ERROR_INIT;
    pst_memory_fail_after(n);
    code = pst_engine_quantize(in, out, "Q4_K", NULL, NULL, &err);
    pst_memory_fail_after(-1);
    if (code && code != PST_E_NOMEM) fail_msg("allocation %d: code %d: %s", n, code, err.message);
    assert_int_equal(count_files(dir), code ? 1 : 2);
  }
  assert_true(n > 20);
  test_temp_remove(dir);
}

/* ---- a real model ---- */

typedef struct score {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  double sum;
  int n;
  bool ended;
} score;

static void on_event(void *user, const pst_engine_event *e) {
  score *s = user;
  pthread_mutex_lock(&s->lock);
  if (e->token >= 0) {
    s->sum -= (double)e->logprob;
    s->n++;
  }
  if (e->finish != PST_ENGINE_FINISH_NONE) {
    s->ended = true;
    pthread_cond_signal(&s->changed);
  }
  pthread_mutex_unlock(&s->lock);
}

/* Mean negative log-probability of a text's tokens. */
static double surprise(const char *path) {
  static const char text[] =
      "A penstock is a gate that controls the flow of water into a turbine. When the gate opens, water falls through a "
      "long pipe and turns the wheel, which drives a generator. Engineers choose the width of the pipe so that little "
      "energy is lost to friction. In winter the river carries less water, and the gate is opened only in the "
      "evening, when people cook, read and watch television, and the price of electricity is high.";
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  pst_engine_tokens tokens = {0};
  score s = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, false};
  pst_engine_options o = pst_engine_options_default();
  uint64_t id;
  if (pst_engine_model_open(path, 0, &model, &err)) fail_msg("%s: %s", err.place, err.message);
  o.slots = 1;
  assert_int_equal(pst_engine_create(model, &o, &engine, &err), 0);
  assert_int_equal(pst_engine_tokenize(model, pst_str_from(text), false, true, &tokens, &err), 0);
  pst_engine_request q = {.prompt = tokens.ids,
                          .n_prompt = tokens.n,
                          .sampling = pst_engine_sampling_default(),
                          .n_logprobs = 0,
                          .score_prompt = true,
                          .callback = on_event,
                          .user = &s};
  if (pst_engine_submit(engine, &q, &id, &err)) fail_msg("%s", err.message);
  pthread_mutex_lock(&s.lock);
  while (!s.ended) pthread_cond_wait(&s.changed, &s.lock);
  pthread_mutex_unlock(&s.lock);
  pst_engine_free(engine);
  pst_engine_model_unref(model);
  assert_int_equal(s.n, (int)tokens.n - 1);
  pst_engine_tokens_done(&tokens);
  return s.sum / s.n;
}

static void real_model_keeps_its_sense(void **state) {
  (void)state;
  static const struct {
    const char *type;
    double most; /* more surprise per token, in nats */
  } rows[] = {{"Q8_0", 0.02}, {"Q4_K", 0.15}, {"Q6_K", 0.02}, {"Q5_1", 0.1}, {"Q4_0", 0.4}};
  const char *path = getenv("PENSTOCK_TEST_SMOLLM2");
  if (!path) {
    print_message("the model smollm2-135m is not here (PENSTOCK_TEST_SMOLLM2)\n");
    skip();
  }
  char *dir = test_temp_dir();
  double before = surprise(path);
  for (int i = 0; i < test_scale(2, 1, (int)PST_ARRAY_LEN(rows)); i++) {
    const char *out = test_temp_path(dir, "out.gguf");
    pst_error err = PST_ERROR_INIT;
    if (pst_engine_quantize(path, out, rows[i].type, NULL, NULL, &err)) fail_msg("%s", err.message);
    double after = surprise(out);
    print_message("# %s: %.4f nats per token, %.4f as shipped\n", rows[i].type, after, before);
    if (!(after - before < rows[i].most)) fail_msg("%s: %.4f nats, %.4f before", rows[i].type, after, before);
  }
  test_temp_remove(dir);
}

/* A quantized file of every architecture opens, and what is no matrix, or chooses experts, is as it was. */
static void every_architecture(void **state) {
  (void)state;
  static const char *const kept[] = {".bias", "conv.conv.weight", "conv1d.weight", "ffn_gate_inp.weight",
                                     "norm.weight"};
  char *dir = test_temp_dir(), names[TEST_GOLDEN_MAX][32];
  int n = test_golden_names(names);
  for (int i = 0; i < n; i++) {
    const char *in = test_temp_path(dir, "in.gguf"), *out = test_temp_path(dir, "out.gguf");
    pst_json_doc *doc = test_golden_read(names[i]);
    pst_error err = PST_ERROR_INIT;
    pst_engine_model *model = NULL;
    pst_engine_gguf *file = NULL;
    int n_fallback = 0, n_converted = 0;
    test_golden_write(in, pst_json_root(doc), NULL);
    pst_json_free(doc);
    if (pst_engine_quantize(in, out, i % 2 ? "Q8_0" : "Q4_K", NULL, &n_fallback, &err) ||
        pst_engine_model_open(out, 1, &model, &err) || pst_engine_gguf_open(out, &file, &err))
      fail_msg("%s: %s", names[i], err.message);
    for (size_t k = 0; k < pst_engine_gguf_n_tensors(file); k++) {
      const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(file, k);
      char name[96];
      bool is_kept = t->n_elements == t->dims[0];
      snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.data);
      for (size_t j = 0; j < PST_ARRAY_LEN(kept); j++) is_kept |= strstr(name, kept[j]) != NULL;
      if (is_kept)
        assert_int_equal(t->type, PST_TYPE_F32);
      else
        assert_int_not_equal(t->type, PST_TYPE_F32);
      n_converted += !is_kept;
    }
    assert_true(n_converted > 5);
    pst_engine_gguf_close(file);
    pst_engine_model_unref(model);
  }
  test_temp_remove(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_type),
      cmocka_unit_test(every_architecture),
      cmocka_unit_test(same_type_and_same_bytes),
      cmocka_unit_test(refusals_leave_nothing),
      cmocka_unit_test(full_disk_leaves_nothing),
      cmocka_unit_test(without_memory),
      cmocka_unit_test(real_model_keeps_its_sense),
  };
  return cmocka_run_group_tests_name("engine quantize", tests, NULL, NULL);
}
