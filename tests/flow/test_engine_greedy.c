/* The token that a screened head gives is the one that argmax over the full head gives, on real models and text: 100,000 tokens of each in
 * make test-full. PENSTOCK_TEST_TOKENS: how many instead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "engine/forward.h"
#include "support/scale.h"
#include "support/vocab.h"

enum { WINDOW = 256, ROWS_AT_ONCE = 5 };

typedef struct fixture {
  pst_engine_model *model;
  pst_engine_forward *forward;
  uint8_t *pages[WINDOW / PST_KERNELS_PAGE];
  float *logits;
  int32_t *full; /* [WINDOW] */
} fixture;

static void fixture_make(fixture *f, const char *path) {
  pst_error err = PST_ERROR_INIT;
  memset(f, 0, sizeof *f);
  if (pst_engine_model_open(path, 0, &f->model, &err)) fail_msg("%s: %s", err.place, err.message);
  assert_int_equal(
      pst_engine_forward_create(f->model, PST_ENGINE_KV_F16, WINDOW, 1, WINDOW, WINDOW, 2, &f->forward, &err), 0);
  size_t bytes = pst_engine_forward_page_bytes(f->model, PST_ENGINE_KV_F16);
  for (size_t i = 0; i < PST_ARRAY_LEN(f->pages); i++) assert_non_null(f->pages[i] = pst_malloc_aligned(bytes, 64));
  f->logits = pst_malloc_aligned(PST_ENGINE_HEAD_ROWS * (size_t)f->model->info.n_vocab * sizeof(float), 64);
  f->full = pst_malloc(WINDOW * sizeof *f->full);
  assert_non_null(f->logits);
  assert_non_null(f->full);
}

static void fixture_done(fixture *f) {
  for (size_t i = 0; i < PST_ARRAY_LEN(f->pages); i++) pst_free(f->pages[i]);
  pst_free(f->logits);
  pst_free(f->full);
  pst_engine_forward_free(f->forward);
  pst_engine_model_unref(f->model);
}

/* One window's tokens, all their states kept. */
static void compare_window(fixture *f, const int32_t *tokens, int n) {
  size_t vocab = (size_t)f->model->info.n_vocab;
  pst_engine_forward_item item = {.tokens = tokens, .n = n, .n_logits = n, .pages = f->pages};
  pst_engine_forward_run(f->forward, &item, 1);
  for (int at = 0; at < n; at += PST_ENGINE_HEAD_ROWS) {
    int rows = PST_MIN(PST_ENGINE_HEAD_ROWS, n - at);
    pst_engine_forward_logits(f->forward, at, rows, NULL, 0, f->logits);
    for (int r = 0; r < rows; r++)
      f->full[at + r] = (int32_t)f->model->kernels->argmax(f->logits + (size_t)r * vocab, vocab);
  }
  for (int at = 0, k = 0; at < n; k++) {
    int32_t got[ROWS_AT_ONCE];
    int rows = PST_MIN(1 + k % ROWS_AT_ONCE, n - at); /* the last kind does without a screen */
    pst_engine_forward_greedy(f->forward, at, rows, f->logits, got);
    for (int r = 0; r < rows; r++) assert_int_equal(got[r], f->full[at + r]);
    at += rows;
  }
}

static void greedy_is_argmax(const char *variable) {
  const char *path = getenv(variable);
  size_t n_text;
  char *text = test_vocab_file("../intents/banking77.jsonl", &n_text);
  if (!path || !*path || !text) {
    print_message("# %s or the shared data is not there\n", variable);
    pst_free(text);
    skip();
  }
  const char *wish = getenv("PENSTOCK_TEST_TOKENS");
  int left = wish && *wish ? atoi(wish) : test_scale(768, 128, 100000);
  fixture f;
  pst_error err = PST_ERROR_INIT;
  pst_engine_tokens ids = {0};
  fixture_make(&f, path);
  assert_non_null(f.model->screen.radius);
  assert_int_equal(pst_engine_tokenize(f.model, (pst_str){text, n_text}, false, true, &ids, &err), 0);
  for (size_t at = 0; at < ids.n && left > 0; at += WINDOW) {
    int n = (int)PST_MIN((size_t)WINDOW, ids.n - at);
    compare_window(&f, ids.ids + at, n);
    left -= n;
  }
  assert_true(left <= 0);
  pst_engine_tokens_done(&ids);
  fixture_done(&f);
  pst_free(text);
}

static void smollm2(void **state) {
  (void)state;
  greedy_is_argmax("PENSTOCK_TEST_SMOLLM2");
}

static void gemma3(void **state) {
  (void)state;
  greedy_is_argmax("PENSTOCK_TEST_GEMMA3");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(smollm2), cmocka_unit_test(gemma3)};
  return cmocka_run_group_tests_name("engine greedy", tests, NULL, NULL);
}
