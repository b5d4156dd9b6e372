/* Texts that an answer copies from its input: what is mended, to what, and what is left alone. */
#include <penstock/gateway.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const pst_str fields[] = {{"slots.artist", 12}, {"slots.playlist", 14}, {"items[].name", 12}};
static const pst_gateway_plan plan = {.copied = fields, .n_copied = 3};

static void check(const char *input, const char *answer, const char *wanted) {
  pst_buf text = PST_BUF_INIT;
  pst_buf_append_str(&text, pst_str_from(answer));
  assert_int_equal(pst_gateway_copied_mend(&plan, pst_str_from(input), &text), 0);
  assert_string_equal(pst_buf_text(&text), wanted);
  pst_buf_done(&text);
}

#define ARTIST(text) "{\"intent\":\"Add\",\"slots\":{\"artist\":\"" text "\"}}"

static void misspelt_texts_are_mended(void **state) {
  (void)state;
  check("add a track by Klute to winifred's list", ARTIST("Klotte"), ARTIST("Klute"));
  check("put cynthia's song on", ARTIST("cynthys"), ARTIST("cynthia's"));
  check("Play rachael price.", ARTIST("rahae price"), ARTIST("rachael price"));
  check("play \"rachael price\", loud", ARTIST("rahael price"), ARTIST("rachael price"));
  check("put the caf\xc3\xa9 tacvba album on", ARTIST("cafe tacuba"), ARTIST("caf\xc3\xa9 tacvba"));
  check("nothing but klute", ARTIST("klutes"), ARTIST("klute"));
  check("klute first", ARTIST("kluute"), ARTIST("klute"));
  check("buy 2 lampz and a chair", "{\"items\":[{\"name\":\"lamps\",\"n\":2},{\"name\":\"chair\"}]}",
        "{\"items\":[{\"name\":\"lampz\",\"n\":2},{\"name\":\"chair\"}]}");
  /* the first of two that are as near, and the nearest of all */
  check("klate or klite", ARTIST("klute"), ARTIST("klate"));
  check("klate, klite or klute2", ARTIST("klute22"), ARTIST("klute2"));
}

static void the_rest_stays(void **state) {
  (void)state;
  check("add Klute", ARTIST("Klute"), ARTIST("Klute"));
  check("add the song", ARTIST("Beethoven"), ARTIST("Beethoven"));    /* nothing is like it */
  check("add Klute", "{\"intent\":\"adt\"}", "{\"intent\":\"adt\"}"); /* no copied field */
  check("add Klute", ARTIST(""), ARTIST(""));                         /* the empty text stands everywhere */
  check("add Klute", "{ \"slots\": {\"artist\": \"Klute\"} }",
        "{ \"slots\": {\"artist\": \"Klute\"} }");                                              /* as it was */
  check("add Klute", "{\"slots\":{\"artist\":\"Klotte\"", "{\"slots\":{\"artist\":\"Klotte\""); /* cut off */
  check("add Klute", "The artist is Klotte", "The artist is Klotte");
  check("add Klute", "\"Klotte\"", "\"Klotte\"");
  check("add Klute", "", "");
  check("add Klute", "{\"slots\":{\"artist\":[\"Klotte\"]}}",
        "{\"slots\":{\"artist\":[\"Klotte\"]}}"); /* slots.artist[] */
  check(" ", ARTIST("Klute"), ARTIST("Klute"));
  check("x\ty", "{\"slots\":{\"artist\":\"a\\u0000b\"}}", "{\"slots\":{\"artist\":\"a\\u0000b\"}}");
}

/* ---- against every part of whole words, one by one ---- */

static size_t distance(pst_str a, pst_str b) {
  size_t row[64];
  for (size_t j = 0; j <= b.n; j++) row[j] = j;
  for (size_t i = 1; i <= a.n; i++) {
    size_t corner = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.n; j++) {
      size_t both = corner + (a.data[i - 1] != b.data[j - 1]);
      corner = row[j];
      row[j] = PST_MIN(both, PST_MIN(row[j], row[j - 1]) + 1);
    }
  }
  return row[b.n];
}

static void the_nearest_part_is_found(void **state) {
  (void)state;
  for (uint64_t round = 0; round < 2000; round++) {
    char input[48], text[16], answer[64];
    pst_buf out = PST_BUF_INIT;
    pst_json_doc *doc = NULL;
    size_t n = 1 + pst_random_u64(1, round, 0) % 40, m = 1 + pst_random_u64(1, round, 1) % 12, best = SIZE_MAX;
    for (size_t i = 0; i < n; i++) input[i] = "abc "[pst_random_u64(2, round, i) % 4];
    for (size_t i = 0; i < m; i++) text[i] = "abc "[pst_random_u64(3, round, i) % 4];
    pst_str whole = {input, n}, said = {text, m};
    for (size_t from = 0; from < n; from++)
      for (size_t to = from + 1; to <= n; to++)
        if (input[from] != ' ' && (from == 0 || input[from - 1] == ' ') && input[to - 1] != ' ' &&
            (to == n || input[to] == ' '))
          best = PST_MIN(best, distance(said, (pst_str){input + from, to - from}));
    snprintf(answer, sizeof answer, "{\"slots\":{\"artist\":\"%.*s\"}}", (int)m, text);
    pst_buf_append_str(&out, pst_str_from(answer));
    assert_int_equal(pst_gateway_copied_mend(&plan, whole, &out), 0);
    assert_int_equal(pst_json_parse(out.data, out.n, NULL, &doc, NULL), 0);
    pst_str now = pst_json_str(pst_json_path(pst_json_root(doc), "slots.artist"));
    if (pst_str_find(whole, said, 0) != SIZE_MAX || best > m / 2) {
      assert_true(pst_str_equal(now, said));
    } else {
      assert_int_equal(distance(said, now), best);
      assert_true(pst_str_find(whole, now, 0) != SIZE_MAX);
    }
    pst_json_free(doc);
    pst_buf_done(&out);
  }
}

/* Of a long document there is time for some texts, not for all. */
static void what_is_too_long_stays(void **state) {
  (void)state;
  enum { LONG = 1 << 20, TEXTS = 100 };
  char *input = malloc(LONG);
  pst_buf out = PST_BUF_INIT, mended = PST_BUF_INIT;
  assert_non_null(input);
  memset(input, 'a', LONG);
  pst_buf_puts(&out, "{\"items\":[");
  for (int i = 0; i < TEXTS; i++) pst_buf_puts(&out, i ? ",{\"name\":\"aaaab\"}" : "{\"name\":\"aaaab\"}");
  pst_buf_puts(&out, "]}");
  for (int i = 10; i < LONG; i += 11) input[i] = ' ';
  memcpy(input + 11, "aaaa ", 5);
  pst_buf_append_str(&mended, pst_buf_str(&out));
  assert_int_equal(pst_gateway_copied_mend(&plan, (pst_str){input, 100000}, &mended), 0);
  assert_true(pst_str_find(pst_buf_str(&mended), PST_STR("\"aaaa\""), 0) != SIZE_MAX);
  assert_true(pst_str_find(pst_buf_str(&mended), PST_STR("\"aaaab\""), 0) != SIZE_MAX);
  pst_buf_done(&mended);
  pst_buf_clear(&out);
  pst_buf_append_str(&out, pst_str_from(ARTIST("bbbbbbbb")));
  assert_int_equal(pst_gateway_copied_mend(&plan, (pst_str){input, LONG}, &out), 0);
  assert_string_equal(pst_buf_text(&out), ARTIST("bbbbbbbb"));
  pst_buf_done(&out);
  free(input);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(misspelt_texts_are_mended), cmocka_unit_test(the_rest_stays),
                                     cmocka_unit_test(the_nearest_part_is_found),
                                     cmocka_unit_test(what_is_too_long_stays)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
