/* The suffix automaton of past answers against a search through the answers themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "engine/corpus.h"
#include "support/scale.h"

enum { MOST_ANSWERS = 12, MOST_LENGTH = 24, MOST_TEXT = MOST_ANSWERS * (MOST_LENGTH + 1) };

/* The answers as the corpus holds them: each behind a start token. */
typedef struct answers {
  int32_t tokens[MOST_TEXT];
  size_t lengths[MOST_ANSWERS], n;
} answers;

static answers draw_answers(pst_random *r) {
  answers a = {.n = 1 + (size_t)pst_random_below(r, MOST_ANSWERS)};
  uint64_t n_kinds = 1 + pst_random_below(r, 5); /* few tokens: many repeats */
  size_t at = 0;
  for (size_t i = 0; i < a.n; i++) {
    a.lengths[i] = (size_t)pst_random_below(r, MOST_LENGTH + 1); /* an answer may be empty */
    for (size_t k = 0; k < a.lengths[i]; k++) a.tokens[at++] = (int32_t)pst_random_below(r, n_kinds);
  }
  return a;
}

static pst_engine_corpus *make(const answers *a) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_corpus *corpus = NULL;
  if (pst_engine_corpus_create(a->tokens, a->lengths, a->n, &corpus, &err)) fail_msg("%s", err.message);
  return corpus;
}

/* How often `text` occurs in the answers, and, in counts[token], with which token behind it. */
static uint32_t occurrences(const answers *a, const int32_t *text, size_t n, uint32_t counts[8]) {
  uint32_t found = 0;
  const int32_t *tokens = a->tokens;
  memset(counts, 0, 8 * sizeof *counts);
  for (size_t i = 0; i < a->n; tokens += a->lengths[i++]) {
    int32_t whole[MOST_LENGTH + 1] = {PST_ENGINE_CORPUS_START};
    if (a->lengths[i]) memcpy(whole + 1, tokens, a->lengths[i] * sizeof *tokens);
    for (size_t at = 0; at + n <= a->lengths[i] + 1; at++) {
      if (n && memcmp(whole + at, text, n * sizeof *text) != 0) continue;
      found++;
      if (at + n <= a->lengths[i] && whole[at + n] >= 0) counts[whole[at + n]]++;
    }
  }
  return found;
}

/* Place and what follows it are those of the longest end of text[0, n) that occurs. */
static void check_place(const pst_engine_corpus *corpus, const answers *a, const int32_t *text, size_t n,
                        pst_engine_corpus_place place) {
  uint32_t counts[8], total = 0;
  size_t longest = n;
  while (longest > 0 && !(total = occurrences(a, text + n - longest, longest, counts))) longest--;
  assert_int_equal(place.length, longest);
  for (size_t length = longest; length > 0;) {
    total = occurrences(a, text + n - length, length, counts);
    pst_engine_corpus_next next = pst_engine_corpus_best(corpus, place);
    int32_t best = -1;
    for (int32_t token = 0; token < 8; token++)
      if (counts[token] && (best < 0 || counts[token] > counts[best])) best = token;
    assert_int_equal(next.length, length);
    assert_int_equal(next.total, total);
    assert_int_equal(next.token, best);
    assert_int_equal(next.count, best < 0 ? 0 : counts[best]);
    assert_true(pst_engine_corpus_shorten(corpus, &place));
    size_t shorter = length - 1; /* the next end with more places */
    while (shorter > 0 && occurrences(a, text + n - shorter, shorter, counts) == total) shorter--;
    assert_int_equal(place.length, shorter);
    length = shorter;
  }
  assert_false(pst_engine_corpus_shorten(corpus, &place));
}

static void test_against_search(void **state) {
  (void)state;
  const int n_rounds = test_scale(300, 30, 5000);
  for (int round = 0; round < n_rounds; round++) {
    pst_random r = {20, (uint64_t)round, 0};
    answers a = draw_answers(&r);
    pst_engine_corpus *corpus = make(&a);
    int32_t text[41] = {PST_ENGINE_CORPUS_START};
    pst_engine_corpus_place place = pst_engine_corpus_begin(corpus);
    for (size_t n = 1; n <= 40; n++) {
      check_place(corpus, &a, text, n, place);
      text[n] = (int32_t)pst_random_below(&r, 7); /* tokens of no answer, too */
      pst_engine_corpus_walk(corpus, &place, text[n]);
    }
    pst_engine_corpus_unref(corpus);
  }
}

/* Half the places of an answer's beginning, and all of them. */
static void test_beginnings(void **state) {
  (void)state;
  answers a = {.tokens = {5, 6, 5, 6, 5, 7, 5, 5}, .lengths = {2, 2, 2, 2}, .n = 4};
  pst_engine_corpus *corpus = make(&a);
  pst_engine_corpus_place place = pst_engine_corpus_begin(corpus);
  pst_engine_corpus_next next = pst_engine_corpus_best(corpus, place);
  assert_int_equal(next.token, 5);
  assert_int_equal(next.count, 4);
  pst_engine_corpus_walk(corpus, &place, 5);
  next = pst_engine_corpus_best(corpus, place);
  assert_int_equal(next.token, 6);
  assert_int_equal(next.count, 2);
  assert_int_equal(next.total, 4);
  pst_engine_corpus_walk(corpus, &place, 6);
  assert_int_equal(pst_engine_corpus_best(corpus, place).token, -1);
  pst_engine_corpus_unref(corpus);
}

/* Nothing to draft from: no answers, or only empty ones. */
static void test_empty(void **state) {
  (void)state;
  answers none = {.n = 0}, empty = {.lengths = {0, 0}, .n = 2};
  for (int i = 0; i < 2; i++) {
    pst_engine_corpus *corpus = make(i ? &empty : &none);
    pst_engine_corpus_place place = pst_engine_corpus_begin(corpus);
    assert_int_equal(pst_engine_corpus_best(corpus, place).token, -1);
    pst_engine_corpus_walk(corpus, &place, 3);
    assert_int_equal(place.length, 0);
    assert_int_equal(pst_engine_corpus_best(corpus, place).token, -1);
    pst_engine_corpus_unref(corpus);
  }
}

static void test_bounds(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_engine_corpus *corpus = NULL;
  const int32_t bad[] = {4, -1, 2};
  size_t length = 3;
  assert_int_equal(pst_engine_corpus_create(bad, &length, 1, &corpus, &err), PST_E_BAD_INPUT);
  length = PST_ENGINE_CORPUS_TOKENS;
  assert_int_equal(pst_engine_corpus_create(bad, &length, 1, &corpus, &err),
                   PST_E_LIMIT); /* refused before it is read */
  assert_null(corpus);
}

/* No text needs more than 2 states and 3 edges a token: those that come closest (abbb...b, and abbb...bc). */
static void test_memory(void **state) {
  (void)state;
  enum { N = 2000 };
  static int32_t tokens[N];
  for (int ending = 0; ending < 3; ending++) {
    size_t length = N;
    pst_error err = PST_ERROR_INIT;
    pst_engine_corpus *corpus = NULL;
    for (int i = 0; i < N; i++) tokens[i] = ending == 2 ? i % 7 * i % 3 : i > 0;
    if (ending == 1) tokens[N - 1] = 2;
    if (pst_engine_corpus_create(tokens, &length, 1, &corpus, &err)) fail_msg("%s", err.message);
    assert_true(pst_engine_corpus_bytes(corpus) <= 56 * (N + 1) + 200);
    pst_engine_corpus_unref(corpus);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_against_search), cmocka_unit_test(test_beginnings), cmocka_unit_test(test_empty),
      cmocka_unit_test(test_bounds),         cmocka_unit_test(test_memory),
  };
  return cmocka_run_group_tests_name("engine corpus", tests, NULL, NULL);
}
