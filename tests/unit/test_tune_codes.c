/* Which codes are made of answers: what is frequent and long, in tokens that no text has and that the model can tell apart; the same answers give the same table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/ok.h"
#include "support/temp.h"
#include "support/tiny_model.h"
#include "tune/codes.h"

static pst_error err;

enum { N = 200 };

typedef struct fixture {
  pst_engine_model *model;
  pst_engine_tokens texts[N];
  pst_tune_span spans[N];
  uint32_t seen[512];
  int32_t *free_tokens;
  size_t n_free;
} fixture;

/* Answers of a frame around a name; one in four ends in another way. */
static void open_fixture(fixture *f) {
  const char *path = test_temp_path(test_dir, "tiny");
  test_tiny_write(path, &(test_tiny){.type = "F32", .seed = 4});
  OK(pst_engine_model_open(path, 1, &f->model, &err));
  for (int i = 0; i < N; i++) {
    char text[80];
    int name = (int)(pst_random_unit(5, 0, (uint64_t)i) * 9000) + 1000;
    snprintf(text, sizeof text, "{\"kind\":\"call\",\"who\":\"%d\"%s", name, i % 4 ? "}" : ",\"how\":\"now\"}");
    OK(pst_engine_tokenize(f->model, pst_str_from(text), false, false, &f->texts[i], &err));
    f->spans[i] = (pst_tune_span){f->texts[i].ids, f->texts[i].n};
    for (size_t k = 0; k < f->texts[i].n; k++) f->seen[f->texts[i].ids[k]]++;
  }
  OK(pst_tune_codes_free_tokens(f->model, f->seen, 64, &f->free_tokens, &f->n_free, &err));
}

static void close_fixture(fixture *f) {
  for (int i = 0; i < N; i++) pst_engine_tokens_done(&f->texts[i]);
  pst_free(f->free_tokens);
  pst_engine_model_unref(f->model);
}

static size_t coded_tokens(const fixture *f, const pst_engine_codes *codes) {
  pst_engine_tokens coded = {0}, plain = {0};
  size_t n = 0;
  for (int i = 0; i < N; i++) {
    coded.n = plain.n = 0;
    OK(pst_engine_codes_encode(codes, f->spans[i].tokens, f->spans[i].n, &coded, &err));
    OK(pst_engine_codes_expand(codes, coded.ids, coded.n, &plain, &err));
    assert_int_equal(plain.n, f->spans[i].n);
    assert_memory_equal(plain.ids, f->spans[i].tokens, plain.n * sizeof *plain.ids);
    n += coded.n;
  }
  pst_engine_tokens_done(&coded);
  pst_engine_tokens_done(&plain);
  return n;
}

static void frames_become_codes(void **state) {
  (void)state;
  fixture f = {.model = NULL};
  open_fixture(&f);
  for (size_t most = 1; most <= 3; most++) {
    pst_engine_codes *codes = NULL, *again = NULL;
    const pst_engine_code *list;
    OK(pst_tune_codes_learn(f.model, f.spans, N, f.free_tokens, f.n_free, most, &codes, &err));
    OK(pst_tune_codes_learn(f.model, f.spans, N, f.free_tokens, f.n_free, most, &again, &err));
    assert_true(pst_engine_codes_key(codes) == pst_engine_codes_key(again));
    size_t n = pst_engine_codes_list(codes, &list), longest = 0;
    assert_in_range(n, 1, most);
    for (size_t i = 0; i < n; i++) {
      assert_int_equal(f.seen[list[i].token], 0);
      longest = PST_MAX(longest, list[i].n);
    }
    print_message("%zu codes, the longest for %zu tokens: %.1f tokens an answer\n", n, longest,
                  (double)coded_tokens(&f, codes) / N);
    if (most == 3) { /* the frame before the name, four digits, an end */
      assert_true(longest >= 20);
      assert_true(coded_tokens(&f, codes) <= (size_t)N * 7);
    }
    pst_engine_codes_free(codes);
    pst_engine_codes_free(again);
  }
  close_fixture(&f);
}

static void what_is_rare_has_no_code(void **state) {
  (void)state;
  fixture f = {.model = NULL};
  pst_engine_codes *codes = NULL;
  open_fixture(&f);
  OK(pst_tune_codes_learn(f.model, f.spans, 3, f.free_tokens, f.n_free, 8, &codes, &err));
  assert_null(codes);
  OK(pst_tune_codes_learn(f.model, f.spans, N, f.free_tokens, 0, 8, &codes, &err)); /* no token is free */
  assert_null(codes);
  close_fixture(&f);
}

static void codes_are_tokens_of_no_text(void **state) {
  (void)state;
  fixture f = {.model = NULL};
  open_fixture(&f);
  assert_in_range(f.n_free, 1, 64);
  for (size_t i = 0; i < f.n_free; i++) {
    pst_buf text = PST_BUF_INIT;
    assert_int_equal(f.seen[f.free_tokens[i]], 0);
    for (size_t k = 0; k < i; k++) assert_int_not_equal(f.free_tokens[i], f.free_tokens[k]);
    assert_true(pst_engine_token_is_text(f.model, f.free_tokens[i]));
    OK(pst_engine_detokenize(f.model, &f.free_tokens[i], 1, true, &text));
    assert_true(text.n >= 2);
    pst_buf_done(&text);
  }
  close_fixture(&f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(frames_become_codes, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(what_is_rare_has_no_code, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(codes_are_tokens_of_no_text, test_dir_open, test_dir_close),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
