/* Examples: the file is a function of the examples, the ranking is BM25's as written in the paper, and nothing excluded is ever shown. */
#include <penstock/gateway.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gateway/bm25.h"
#include "gateway/prompt.h"
#include "support/ok.h"
#include "support/temp.h"

static pst_error err;

typedef struct fixture {
  char *dir;
  pst_store *store;
} fixture;

static int set_up(void **state) {
  fixture *f = calloc(1, sizeof *f);
  if (!f) return -1;
  f->dir = test_temp_dir();
  *state = f;
  return pst_store_open(f->dir, &f->store, &err);
}

static int tear_down(void **state) {
  fixture *f = *state;
  pst_store_close(f->store);
  test_temp_remove(f->dir);
  free(f);
  return 0;
}

#define EXAMPLE(id, input, answer)                                                \
  {                                                                               \
    {id, sizeof id - 1}, {input, sizeof input - 1}, { answer, sizeof answer - 1 } \
  }

static const pst_gateway_example few[] = {
    EXAMPLE("b", "Where is my parcel?", "late"),      EXAMPLE("a", "where is my PARCEL", "late"),
    EXAMPLE("d", "I can't log in", "login"),          EXAMPLE("c", "The kettle is broken", "damaged"),
    EXAMPLE("e", "My parcel is late, late!", "late"), EXAMPLE("f", "Passwort vergessen, Größe falsch", "login"),
};

static pst_gateway_index *open_index(void **state, const pst_gateway_example *examples, size_t n) {
  fixture *f = *state;
  char hash[65];
  pst_gateway_index *index = NULL;
  OK(pst_gateway_examples_build(f->store, examples, n, NULL, hash, &err));
  OK(pst_gateway_index_open(f->store, pst_str_from(hash), &index, &err));
  return index;
}

/* The ids of what is found, one letter each. */
static const char *nearest(const pst_gateway_index *index, const char *input, size_t k, bool fixed,
                           const char *without) {
  static char ids[64];
  pst_gateway_example found[32];
  pst_str exclude[8];
  size_t n = 0, n_exclude = 0;
  for (; *without; without++) exclude[n_exclude++] = (pst_str){without, 1};
  OK(pst_gateway_index_nearest(index, pst_str_from(input), k, fixed, exclude, n_exclude, found, &n, &err));
  for (size_t i = 0; i < n; i++) ids[i] = found[i].id.data[0];
  ids[n] = 0;
  return ids;
}

static void the_file_does_not_depend_on_the_order_given(void **state) {
  fixture *f = *state;
  pst_gateway_example shuffled[PST_ARRAY_LEN(few)];
  char first[65], second[65];
  for (size_t i = 0; i < PST_ARRAY_LEN(few); i++) shuffled[i] = few[(i * 5 + 2) % PST_ARRAY_LEN(few)];
  OK(pst_gateway_examples_build(f->store, few, PST_ARRAY_LEN(few), NULL, first, &err));
  OK(pst_gateway_examples_build(f->store, shuffled, PST_ARRAY_LEN(few), NULL, second, &err));
  assert_string_equal(first, second);
  shuffled[0].answer = PST_STR("other");
  OK(pst_gateway_examples_build(f->store, shuffled, PST_ARRAY_LEN(few), NULL, second, &err));
  assert_string_not_equal(first, second);
}

static void the_nearest_come_first_ties_by_id(void **state) {
  pst_gateway_index *index = open_index(state, few, PST_ARRAY_LEN(few));
  assert_string_equal(nearest(index, "where is my parcel", 3, false, ""), "abe");
  assert_string_equal(nearest(index, "where is my parcel", 3, false, "a"), "bec");
  assert_string_equal(nearest(index, "LATE", 1, false, ""), "e");
  assert_string_equal(nearest(index, "I can\xE2\x80\x99t see it", 1, false, ""), "d"); /* another apostrophe */
  assert_string_equal(nearest(index,
                              "gro\xCC\x88\xC3\x9F"
                              "e",
                              1, false, ""),
                      "f");                                                         /* decomposed */
  assert_string_equal(nearest(index, "xyzzy", 4, false, ""), "abcd");               /* no word in common: by id */
  assert_string_equal(nearest(index, "", 99, false, "bd"), "acef");                 /* no more than there are */
  assert_string_equal(nearest(index, "broken \xFF\xFE kettle", 1, false, ""), "c"); /* bytes that are no text */
  assert_string_equal(nearest(index, "parcel", 0, false, ""), "");
  pst_gateway_index_unref(index);
}

static void fixed_examples_show_as_many_answers_as_they_can(void **state) {
  pst_gateway_index *index = open_index(state, few, PST_ARRAY_LEN(few));
  pst_gateway_example found[3];
  size_t n = 0;
  OK(pst_gateway_index_nearest(index, PST_STR("parcel"), 3, true, NULL, 0, found, &n, &err));
  assert_int_equal(n, 3);
  for (size_t i = 0; i < n; i++)
    for (size_t k = 0; k < i; k++) assert_false(pst_str_equal(found[i].answer, found[k].answer));
  char excluded[2] = {found[0].id.data[0], 0};
  assert_null(strchr(nearest(index, "parcel", 5, true, excluded), excluded[0]));
  assert_int_equal(strlen(nearest(index, "parcel", 5, true, excluded)), 5);
  pst_gateway_index_unref(index);
}

typedef struct word_list {
  char words[16][64];
  size_t n;
} word_list;

static int add_word(void *user, pst_str word) {
  word_list *l = user;
  snprintf(l->words[l->n++], 64, "%.*s", (int)word.n, word.data);
  return 0;
}

static void check_words(const char *text, const char *const *wanted) {
  word_list l = {.n = 0};
  assert_int_equal(pst_gateway_words_each(pst_str_from(text), add_word, &l), 0);
  for (size_t i = 0; i < l.n; i++) {
    assert_non_null(wanted[i]);
    assert_string_equal(l.words[i], wanted[i]);
  }
  assert_null(wanted[l.n]);
}

static void words_are_unicode_word_segments(void **state) {
  (void)state;
  check_words("It's 3.50, isn't it?", (const char *const[]){"it's", "3.50", "isn't", "it", NULL});
  check_words("e-mail: A.B. 'quoted' end.", (const char *const[]){"e", "mail", "a.b", "quoted", "end", NULL});
  check_words("\xC3\x89T\xC3\x89 \xEF\xBC\xA1\xEF\xBC\xA2", (const char *const[]){"\xC3\xA9t\xC3\xA9", "ab", NULL});
  check_words("\xE6\x9D\xB1\xE4\xBA\xAC"
              "A1",
              (const char *const[]){"\xE6\x9D\xB1", "\xE4\xBA\xAC", "a1", NULL});
  check_words(" \n\t ...", (const char *const[]){NULL});
}

/* BM25 as in Robertson and Zaragoza, in doubles, line by line, without an index. */
typedef struct line {
  char text[128];
} line;

/* The words of a line, parted by single spaces, that equal `word` (NULL: all). */
static int count_words(const line *l, const char *word) {
  int n = 0;
  for (const char *at = l->text; *at; at += strcspn(at, " ") + 1)
    n += !word || (strlen(word) == strcspn(at, " ") && !memcmp(at, word, strlen(word)));
  return n;
}

static double plain_score(const line *lines, int n, int which, const line *query) {
  double total = 0, score = 0;
  for (int i = 0; i < n; i++) total += count_words(&lines[i], NULL);
  for (const char *at = query->text; *at; at += strcspn(at, " ") + 1) {
    char word[16];
    double df = 0;
    snprintf(word, sizeof word, "%.*s", (int)PST_MIN(strcspn(at, " "), 15u), at);
    for (int i = 0; i < n; i++) df += count_words(&lines[i], word) > 0;
    double tf = count_words(&lines[which], word), length = count_words(&lines[which], NULL);
    double idf = log(1 + (n - df + 0.5) / (df + 0.5));
    score += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length * n / total));
  }
  return score;
}

static void scores_are_those_of_the_formula(void **state) {
  (void)state;
  enum { N = 60 };
  static line lines[N];
  pst_str views[N];
  pst_random random = {7, 1, 0};
  int64_t scores[N];
  pst_gateway_bm25 *bm25 = NULL;
  for (int i = 0; i < N; i++) {
    size_t used = 0;
    for (uint64_t k = 1 + pst_random_below(&random, 12); k > 0; k--) {
      uint64_t a = pst_random_below(&random, 8), b = pst_random_below(&random, 5);
      used += (size_t)snprintf(lines[i].text + used, sizeof lines[i].text - used, "w%d ", (int)(a * b));
    }
    views[i] = (pst_str){lines[i].text, used};
  }
  OK(pst_gateway_bm25_create(views, N, &bm25, &err));
  for (int q = 0; q < N; q += 3) {
    OK(pst_gateway_bm25_score(bm25, views[q], scores, &err));
    for (int i = 0; i < N; i++)
      assert_true(fabs((double)scores[i] * 0x1p-20 - plain_score(lines, N, i, &lines[q])) < 1e-4);
  }
  pst_gateway_bm25_free(bm25);
}

static void bad_indexes_are_refused(void **state) {
  fixture *f = *state;
  pst_gateway_index *index = NULL;
  char hash[65];
  const pst_gateway_example twins[] = {EXAMPLE("a", "x", "y"), EXAMPLE("b", "x", "y"), EXAMPLE("a", "z", "y")};
  const pst_gateway_example nameless[] = {EXAMPLE("", "x", "y")};
  assert_int_equal(pst_gateway_examples_build(f->store, twins, 3, NULL, hash, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "\"a\""));
  assert_int_equal(pst_gateway_examples_build(f->store, nameless, 1, NULL, hash, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_gateway_examples_build(f->store, twins, 0, NULL, hash, &err), PST_E_BAD_INPUT);
  const char absent[] = "0123456789012345678901234567890123456789012345678901234567890123";
  assert_int_equal(pst_gateway_index_open(f->store, pst_str_from(absent), &index, &err), PST_E_NOT_FOUND);
  static const char *const wrong[] = {
      "",
      "{\"n\":1,\"penstock_examples\":1}\n",
      "{\"penstock_examples\":1,\"n\":1}\n{}\n",
      "no json",
      "{\"n\":1,\"penstock_examples\":1}\n{\"id\":\"a\",\"input\":\"b\"}\n",
      "{\"n\":0,\"penstock_examples\":1}\n",
      "{\"n\":1,\"penstock_examples\":2}\n",
      "{\"n\":1,\"penstock_examples\":1}\n{\"id\":\"a\",\"input\":\"b\",\"answer\":\"\"}\n{}\n"};
  for (size_t i = 0; i < PST_ARRAY_LEN(wrong); i++) {
    OK(pst_store_file_put(f->store, wrong[i], strlen(wrong[i]), hash, &err));
    int code = pst_gateway_index_open(f->store, pst_str_from(hash), &index, &err);
    if (code != PST_E_CORRUPT && code != PST_E_UNSUPPORTED) fail_msg("%zu: %d %s", i, code, err.message);
  }
  OK(pst_gateway_examples_build(f->store, few, PST_ARRAY_LEN(few), NULL, hash, &err));
  char *path = NULL;
  OK(pst_store_file_path(f->store, pst_str_from(hash), &path, &err));
  test_temp_write(path, "{}", 2); /* changed behind the store's back */
  assert_int_equal(pst_gateway_index_open(f->store, pst_str_from(hash), &index, &err), PST_E_CORRUPT);
  assert_null(index);
  pst_free(path);
}

static void memory_may_run_out_anywhere(void **state) {
  fixture *f = *state;
  char hash[65];
  int code = PST_E_NOMEM;
  OK(pst_gateway_examples_build(f->store, few, PST_ARRAY_LEN(few), NULL, hash, &err));
  for (int64_t i = 0; code && i < 5000; i++) {
    pst_gateway_index *index = NULL;
    pst_gateway_example found[4];
    size_t n = 0;
    pst_memory_fail_after(i);
    code = pst_gateway_index_open(f->store, pst_str_from(hash), &index, &err);
    if (!code)
      code = pst_gateway_index_nearest(index, PST_STR("gr\xC3\xB6\xC3\x9F"), 4, false, NULL, 0, found, &n, &err);
    pst_memory_fail_after(-1);
    pst_gateway_index_unref(index);
  }
  assert_int_equal(code, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(the_file_does_not_depend_on_the_order_given, set_up, tear_down),
      cmocka_unit_test_setup_teardown(the_nearest_come_first_ties_by_id, set_up, tear_down),
      cmocka_unit_test_setup_teardown(fixed_examples_show_as_many_answers_as_they_can, set_up, tear_down),
      cmocka_unit_test(words_are_unicode_word_segments),
      cmocka_unit_test(scores_are_those_of_the_formula),
      cmocka_unit_test_setup_teardown(bad_indexes_are_refused, set_up, tear_down),
      cmocka_unit_test_setup_teardown(memory_may_run_out_anywhere, set_up, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
