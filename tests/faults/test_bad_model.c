/* Thousands of damaged model files: whatever is flipped, cut or overwritten before the tensor data, opening ends in an error with a place and a sentence or in a
 * model that can be used. Never a crash; under ASan and UBSan never a byte beside the file. PENSTOCK_TEST_FLIPS: how many of each;
 * PENSTOCK_TEST_SEED: which ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/engine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/gguf.h"
#include "support/scale.h"
#include "support/temp.h"
#include "support/tiny_model.h"

typedef struct source {
  char *data;
  size_t n, head; /* head: bytes before the tensor data */
} source;

typedef struct tally {
  int n_opened, n_refused;
} tally;

static int64_t setting(const char *name, int64_t fallback) {
  const char *text = getenv(name);
  return text ? strtoll(text, NULL, 10) : fallback;
}

static source read_source(const char *path) {
  source s = {0};
  pst_error err = PST_ERROR_INIT;
  pst_engine_gguf *g;
  assert_int_equal(pst_file_read(path, 1 << 24, &s.data, &s.n, &err), 0);
  assert_int_equal(pst_engine_gguf_open(path, &g, &err), 0);
  s.head = (size_t)pst_engine_gguf_tensor_at(g, 0)->offset;
  pst_engine_gguf_close(g);
  return s;
}

static void must_explain(int code, const pst_error *err, const char *path, uint64_t id) {
  bool known = code == PST_E_BAD_INPUT || code == PST_E_UNSUPPORTED || code == PST_E_LIMIT || code == PST_E_NOT_FOUND ||
               code == PST_E_NOMEM; /* a size that no machine has */
  if (!known || err->code != code || !err->message[0] || !err->place[0])
    fail_msg("file %llu: code %d, '%s' at '%s'", (unsigned long long)id, code, err->message, err->place);
  if (code != PST_E_NOMEM && !strstr(err->place, path) && !strstr(err->message, path))
    fail_msg("file %llu: '%s' at '%s' does not name the file", (unsigned long long)id, err->message, err->place);
}

static void on_event(void *user, const pst_engine_event *e) {
  pst_queue *ended = user;
  if (e->finish != PST_ENGINE_FINISH_NONE) pst_queue_push(ended, ended);
}

/* What opened is a model: it speaks. */
static void use(pst_engine_model *model) {
  static const pst_chat_message message = {
      .role = PST_CHAT_USER, .has_content = true, .content = {"Guten Tag \xF0\x9F\x98\x80 <|im_end|>", 26}};
  pst_chat chat = {.messages = &message, .n_messages = 1, .add_generation_prompt = true};
  pst_engine_options o = pst_engine_options_default();
  pst_engine_tokens tokens = {0};
  pst_engine *engine = NULL;
  pst_error err = PST_ERROR_INIT;
  pst_buf text = PST_BUF_INIT;
  uint64_t id;
  int n_vocab = pst_engine_model_get_info(model)->n_vocab;
  (void)pst_engine_render_chat(model, &chat, &tokens, &text, &err);
  (void)pst_engine_tokenize(model, PST_STR("a b c"), false, true, &tokens, &err);
  for (size_t i = 0; i < tokens.n; i++) assert_in_range(tokens.ids[i], 0, n_vocab - 1);
  o.slots = 1;
  o.threads = 1;
  o.n_ctx = PST_MIN(pst_engine_model_get_info(model)->n_ctx_train, 128);
  if (tokens.n > 0 && tokens.n < 64 && pst_engine_create(model, &o, &engine, &err) == 0) {
    pst_queue *ended = pst_queue_create();
    pst_engine_request q = {.prompt = tokens.ids,
                            .n_prompt = tokens.n,
                            .max_tokens = 2,
                            .sampling = pst_engine_sampling_default(),
                            .n_logprobs = -1,
                            .callback = on_event,
                            .user = ended};
    q.sampling.temperature = 0;
    if (pst_engine_submit(engine, &q, &id, &err) == 0) assert_non_null(pst_queue_pop(ended, 60000));
    pst_engine_free(engine);
    pst_queue_free(ended);
  }
  pst_engine_tokens_done(&tokens);
  pst_buf_done(&text);
}

static void try_file(const char *path, const char *data, size_t n, uint64_t id, tally *t) {
  pst_error err = PST_ERROR_INIT, why = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_buf report = PST_BUF_INIT;
  test_temp_write(path, data, n);
  int code = pst_engine_inspect(path, 0, &report, &why);
  if (code) {
    must_explain(code, &why, path, id);
  } else {
    pst_json_doc *doc = NULL;
    if (pst_json_parse(report.data, report.n, NULL, &doc, &err))
      fail_msg("file %llu: the report is no JSON: %s", (unsigned long long)id, err.message);
    pst_json_free(doc);
  }
  int opened = pst_engine_model_open(path, 1, &model, &err);
  if (opened) {
    must_explain(opened, &err, path, id);
    t->n_refused++;
  } else {
    if (code) fail_msg("file %llu opens, but inspect says %s", (unsigned long long)id, why.message);
    use(model);
    t->n_opened++;
  }
  pst_engine_model_unref(model);
  pst_buf_done(&report);
}

/* One to eight changes: a flipped bit, a random byte, an extreme one, or eight bytes of a number that counts and sizes may become. */
static void damage(char *data, size_t head, pst_random *r) {
  static const uint64_t numbers[] = {0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, INT64_MAX, UINT64_MAX};
  uint64_t n = 1 + (pst_random_below(r, 3) ? 0 : pst_random_below(r, 8));
  while (n--) {
    size_t at = (size_t)pst_random_below(r, head);
    uint64_t v = numbers[pst_random_below(r, PST_ARRAY_LEN(numbers))];
    switch (pst_random_below(r, 4)) {
    case 0: data[at] = (char)(data[at] ^ (1 << pst_random_below(r, 8))); break;
    case 1: data[at] = (char)pst_random_below(r, 256); break;
    case 2: data[at] = (char)(pst_random_below(r, 2) ? 0xFF : 0); break;
    default: memcpy(data + at, &v, PST_MIN(sizeof v, head - at)); break;
    }
  }
}

static void damaged_heads(const char *architecture) {
  char *dir = test_temp_dir();
  char *path = pst_path_join(dir, "model.gguf");
  int64_t n = setting("PENSTOCK_TEST_FLIPS", test_scale(1500, 500, 20000));
  uint64_t seed = (uint64_t)setting("PENSTOCK_TEST_SEED", 20240611);
  tally t = {0, 0};
  test_tiny_write(path, &(test_tiny){.architecture = architecture, .seed = 3, .n_layers = 1});
  source s = read_source(path);
  char *copy = pst_malloc(s.n);
  for (int64_t i = 0; i < n; i++) {
    pst_random r = {seed, (uint64_t)i, 0};
    memcpy(copy, s.data, s.n);
    damage(copy, s.head, &r);
    size_t end = pst_random_below(&r, 16) ? s.n : (size_t)pst_random_below(&r, s.n);
    try_file(path, copy, end, (uint64_t)i, &t);
  }
  print_message("# %s: of %lld damaged files %d were refused and %d opened\n", architecture, (long long)n, t.n_refused,
                t.n_opened);
  assert_true(t.n_refused > t.n_opened / 20);
  assert_true(t.n_opened > 0);
  pst_free(copy);
  pst_free(s.data);
  pst_free(path);
  test_temp_remove(dir);
}

static void llama_heads(void **state) {
  (void)state;
  damaged_heads("llama");
}

static void gemma3_heads(void **state) {
  (void)state;
  damaged_heads("gemma3");
}

/* Trailing bytes and every cut near the seams. */
static void other_lengths(void **state) {
  (void)state;
  char *dir = test_temp_dir(), *path = pst_path_join(dir, "model.gguf");
  tally t = {0, 0};
  test_tiny_write(path, &(test_tiny){.seed = 4, .n_layers = 1});
  source s = read_source(path);
  for (size_t n = 0; n < 64; n++) try_file(path, s.data, n, n, &t);
  for (size_t n = s.head - 40; n < s.head + 40; n++) try_file(path, s.data, n, n, &t);
  for (size_t n = s.n - 80; n < s.n; n++) try_file(path, s.data, n, n, &t);
  assert_true(t.n_opened <= 31); /* the padding behind the last tensor may be missing */
  pst_free(s.data);
  pst_free(path);
  test_temp_remove(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(llama_heads), cmocka_unit_test(gemma3_heads),
                                     cmocka_unit_test(other_lengths)};
  return cmocka_run_group_tests_name("bad model", tests, NULL, NULL);
}
