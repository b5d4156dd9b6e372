/* Drafts and the cost rule on synthetic traces: no draft where none is right, deep ones where all are, and a curve of step times that noise does not mislead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "engine/speculation.h"

/* ---- the own text ---- */

static void test_find(void **state) {
  (void)state;
  int next = -1;
  static const int32_t a[] = {1, 2, 3, 4, 5, 9, 1, 2, 3};
  assert_int_equal(pst_engine_draft_find(a, 9, &next), 3);
  assert_int_equal(next, 3);
  static const int32_t newest[] = {1, 2, 7, 1, 2, 8, 1, 2}; /* the last of equally long places counts */
  assert_int_equal(pst_engine_draft_find(newest, 8, &next), 2);
  assert_int_equal(next, 5);
  static const int32_t longer[] = {1, 2, 3, 7, 2, 3, 8, 1, 2, 3}; /* a longer one counts before a later one */
  assert_int_equal(pst_engine_draft_find(longer, 10, &next), 3);
  assert_int_equal(next, 3);
  static const int32_t none[] = {1, 2, 3, 4, 5};
  for (int n = 0; n <= 5; n++) assert_int_equal(pst_engine_draft_find(none, n, &next), 0);
  int32_t same[40] = {0};
  assert_int_equal(pst_engine_draft_find(same, 40, &next), PST_ENGINE_OWN_LONGEST);
  assert_int_equal(next, 39);
  assert_int_equal(pst_engine_draft_find(same, 6, &next), 5);
}

/* Against a search that knows no shortcut. */
static void test_find_random(void **state) {
  (void)state;
  for (uint64_t round = 0; round < 2000; round++) {
    pst_random r = {5, round, 0};
    int32_t text[64];
    int n = (int)pst_random_below(&r, 64), longest = 0, at = 0, next = 0;
    for (int i = 0; i < n; i++) text[i] = (int32_t)pst_random_below(&r, 1 + round % 4);
    for (int end = 1; end < n; end++) { /* ends of earlier places, later ones last */
      int same = 0;
      while (same < end && same < PST_ENGINE_OWN_LONGEST && text[end - 1 - same] == text[n - 1 - same]) same++;
      if (same && same >= longest) longest = same, at = end;
    }
    assert_int_equal(pst_engine_draft_find(text, n, &next), longest);
    if (longest) assert_int_equal(next, at);
  }
}

/* ---- drafts ---- */

static void test_guesses(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_engine_corpus *corpus = NULL;
  static const int32_t past[] = {10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
  const size_t length = 10;
  if (pst_engine_corpus_create(past, &length, 1, &corpus, &err)) fail_msg("%s", err.message);
  pst_engine_acceptance a = {{0}, {0}};
  pst_engine_drafter d;
  int32_t tokens[20 + PST_ENGINE_MAX_DRAFT] = {1, 2, 3, 4, 10};
  for (int i = 0; i < 200; i++) { /* its past answer comes again and again */
    pst_engine_drafter_init(&d, corpus);
    pst_engine_drafter_guess(&d, &a, tokens, 4, 5, PST_ENGINE_MAX_DRAFT);
    pst_engine_drafter_learn(&d, &a, past + 1, 9);
  }
  assert_int_equal(d.n_guesses, PST_ENGINE_MAX_DRAFT);
  for (int i = 0; i < d.n_guesses; i++) {
    assert_int_equal(d.guesses[i].token, past[i + 1]);
    assert_int_equal(tokens[5 + i], past[i + 1]);
    assert_true(d.guesses[i].chance > 0.9f);
  }
  static const int32_t other[] = {50, 51, 52};
  for (int i = 0; i < 2000; i++) { /* the workload changes: it never comes any more */
    pst_engine_drafter_guess(&d, &a, tokens, 4, 5, PST_ENGINE_MAX_DRAFT);
    pst_engine_drafter_learn(&d, &a, other, 3);
  }
  assert_true(d.n_guesses >= 1);            /* still looked at, */
  assert_true(d.guesses[0].chance < 0.05f); /* but not believed */
  pst_engine_drafter_guess(&d, &a, tokens, 4, 5, 0);
  assert_int_equal(d.n_guesses, 0);
  pst_engine_corpus_unref(corpus);
}

/* ---- the curve ---- */

/* Time of a step by rows: flat to 8, then dear. */
static double true_us(int rows) { return 3000 * (rows <= 8 ? 1 + 0.07 * (rows - 1) : 2.2 + 0.1 * (rows - 9)); }

static void test_curve(void **state) {
  (void)state;
  pst_engine_step_curve c = {0};
  assert_true(pst_engine_curve_time(&c, 5) == 1.0); /* nothing is known */
  pst_random r = {7, 0, 0};
  for (int i = 0; i < 4000; i++) {
    int rows = 1 + (int)pst_random_below(&r, 10);
    double us = true_us(rows) * (1 + 0.1 * pst_random_unit(7, 1, (uint64_t)i));
    if (pst_random_below(&r, 20) == 0) us *= 20; /* another process had the core */
    if (i > 2000) us *= 3;                       /* and now it has it always */
    pst_engine_curve_note(&c, rows, us);
  }
  for (int rows = 2; rows <= 10; rows++) {
    double ratio = pst_engine_curve_time(&c, rows) / pst_engine_curve_time(&c, 1), right = true_us(rows) / true_us(1);
    assert_true(ratio > 0.85 * right && ratio < 1.15 * right);
  }
  assert_true(pst_engine_curve_time(&c, 40) > pst_engine_curve_time(&c, 10));
}

/* A number of rows that was measured in a bad moment is tried again. */
static void test_curve_forgets(void **state) {
  (void)state;
  pst_engine_step_curve c = {0};
  for (int i = 0; i < 50; i++) pst_engine_curve_note(&c, 1, 3000);
  pst_engine_curve_note(&c, 4, 60000);
  assert_true(pst_engine_curve_time(&c, 4) > 10 * pst_engine_curve_time(&c, 1));
  for (int i = 0; i < 4000; i++) pst_engine_curve_note(&c, 1, 3000);
  assert_true(pst_engine_curve_time(&c, 4) < 1.5 * pst_engine_curve_time(&c, 1));
}

/* ---- a draft model ---- */

static pst_engine_step_curve known_curve(void);

/* Deep where it is cheap and right, not at all where it is neither, and less for many sequences than for one. */
static void test_depth(void **state) {
  (void)state;
  pst_engine_step_curve nothing = {0}, c = known_curve();
  enum { MOST = PST_ENGINE_MAX_DRAFT };
  assert_int_equal(pst_engine_speculation_depth(&nothing, 1, 1, 1, 1, MOST), 0);
  assert_true(pst_engine_speculation_depth(&c, 1, 1, 0.95, 300, MOST) >= 5);
  assert_int_equal(pst_engine_speculation_depth(&c, 1, 1, 0.95, 300, 2), 2);
  assert_true(pst_engine_speculation_depth(&c, 1, 1, 0.6, 600, MOST) <
              pst_engine_speculation_depth(&c, 1, 1, 0.95, 300, MOST));
  assert_int_equal(pst_engine_speculation_depth(&c, 1, 1, 0.95, 3000, MOST), 0); /* a round costs what a step costs */
  assert_int_equal(pst_engine_speculation_depth(&c, 1, 1, 0.05, 300, MOST), 0);
  assert_true(pst_engine_speculation_depth(&c, 4, 4, 0.9, 300, MOST) <= 1); /* the ninth row is dear */
  assert_int_equal(pst_engine_speculation_depth(&c, PST_ENGINE_CURVE_ROWS, 1, 1, 1, MOST), 0);
}

/* ---- the choice ---- */

static pst_engine_step_curve known_curve(void) {
  pst_engine_step_curve c = {0};
  for (int rows = 1; rows <= PST_ENGINE_CURVE_ROWS; rows++) pst_engine_curve_note(&c, rows, true_us(rows));
  return c;
}

static void fill(pst_engine_guess guesses[PST_ENGINE_MAX_DRAFT], float chance) {
  for (int i = 0; i < PST_ENGINE_MAX_DRAFT; i++) guesses[i].chance = chance;
}

static void test_choice_alone(void **state) {
  (void)state;
  pst_engine_step_curve c = known_curve();
  pst_engine_guess guesses[PST_ENGINE_MAX_DRAFT] = {{0}};
  pst_engine_offer offer = {guesses, PST_ENGINE_MAX_DRAFT, -1};
  fill(guesses, 0.01f);
  pst_engine_speculation_choose(&c, 1, &offer, 1);
  assert_int_equal(offer.n_chosen, 0); /* nothing is ever right */
  fill(guesses, 1);
  pst_engine_speculation_choose(&c, 1, &offer, 1);
  assert_int_equal(offer.n_chosen, 7); /* everything is: eight rows, where the curve jumps */
  fill(guesses, 0.5f);
  pst_engine_speculation_choose(&c, 1, &offer, 1);
  assert_in_range(offer.n_chosen, 2, 4);
  guesses[0].chance = 0.01f; /* what stands behind a bad guess is worth nothing */
  guesses[1].chance = 1;
  pst_engine_speculation_choose(&c, 1, &offer, 1);
  assert_int_equal(offer.n_chosen, 0);
  fill(guesses, 1);
  pst_engine_speculation_choose(&c, PST_ENGINE_CURVE_ROWS, &offer, 1);
  assert_int_equal(offer.n_chosen, 0); /* a step that is full of prompt */
}

/* The choice among several is the best of all combinations. */
static void test_choice_together(void **state) {
  (void)state;
  enum { N = 3, DEEP = 4 };
  pst_engine_step_curve c = known_curve();
  for (uint64_t round = 0; round < 500; round++) {
    pst_random r = {9, round, 0};
    pst_engine_guess guesses[N][PST_ENGINE_MAX_DRAFT] = {{{0}}};
    pst_engine_offer offers[N];
    double reached[N][DEEP + 1];
    for (int i = 0; i < N; i++) {
      reached[i][0] = 0;
      double whole = 1;
      for (int k = 0; k < DEEP; k++) {
        guesses[i][k].chance = (float)(0.05 + 0.95 * pst_random_unit(9, round, (uint64_t)i * DEEP + (uint64_t)k));
        whole *= (double)guesses[i][k].chance;
        reached[i][k + 1] = reached[i][k] + whole;
      }
      offers[i] = (pst_engine_offer){guesses[i], DEEP, -1};
    }
    int rows = N + (int)pst_random_below(&r, 5);
    pst_engine_speculation_choose(&c, rows, offers, N);
    double best = rows / pst_engine_curve_time(&c, rows) * 1.02, chosen = 0;
    for (int at = 0; at < (DEEP + 1) * (DEEP + 1) * (DEEP + 1); at++) {
      int k[N] = {at % (DEEP + 1), at / (DEEP + 1) % (DEEP + 1), at / (DEEP + 1) / (DEEP + 1)};
      double tokens = rows + reached[0][k[0]] + reached[1][k[1]] + reached[2][k[2]];
      double rate = tokens / pst_engine_curve_time(&c, rows + k[0] + k[1] + k[2]);
      if (k[0] == offers[0].n_chosen && k[1] == offers[1].n_chosen && k[2] == offers[2].n_chosen) chosen = rate;
      if (k[0] + k[1] + k[2] && rate > best) best = rate;
    }
    bool none = offers[0].n_chosen + offers[1].n_chosen + offers[2].n_chosen == 0;
    assert_true(chosen * (none ? 1.02 : 1) >= best * (1 - 1e-9));
  }
}

/* ---- all of it, over answers ---- */

/* Of 600 random tokens no guess is right; of the same answer again and again nearly all are. The replay pays for little of the first and takes all of the second. */
static void test_replay(void **state) {
  (void)state;
  enum { PROMPT = 40, N = 640 };
  pst_error err = PST_ERROR_INIT;
  pst_engine_step_model model = {3000, 210, 0, 0, 0};
  pst_engine_draft_replay *replay = NULL;
  int32_t tokens[N];
  int64_t steps, drafted;
  for (int repeats = 0; repeats < 2; repeats++) {
    for (int i = 0; i < N; i++)
      tokens[i] = repeats ? i % 31 : (int32_t)(pst_random_u64(4, 4, (uint64_t)i) % 60); /* 60: many false matches */
    if (pst_engine_draft_replay_create(NULL, &model, &replay, &err)) fail_msg("%s", err.message);
    if (pst_engine_draft_replay_answer(replay, tokens, PROMPT, N, &steps, &drafted, &err)) fail_msg("%s", err.message);
    double us = (double)steps * model.fixed_us + (double)drafted * model.token_us,
           without = (N - PROMPT) * model.fixed_us;
    if (repeats)
      assert_true(us < 0.25 * without);
    else
      assert_true(us < 1.01 * without);
    if (pst_engine_draft_replay_answer(replay, tokens, PROMPT, PROMPT, &steps, &drafted, &err))
      fail_msg("%s", err.message);
    assert_int_equal(steps + drafted, 0); /* an empty answer */
    pst_engine_draft_replay_free(replay);
  }
}

/* Without a cost model every guess is verified: the same as counted by hand. */
static void test_replay_uncosted(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_engine_draft_replay *replay = NULL;
  pst_engine_corpus *corpus = NULL;
  static const int32_t past[] = {10, 11, 12, 13}, tokens[] = {1, 10, 11, 12, 13};
  const size_t length = 4;
  int64_t steps, drafted;
  if (pst_engine_corpus_create(past, &length, 1, &corpus, &err)) fail_msg("%s", err.message);
  if (pst_engine_draft_replay_create(corpus, NULL, &replay, &err)) fail_msg("%s", err.message);
  pst_engine_corpus_unref(corpus); /* the replay has one of its own */
  if (pst_engine_draft_replay_answer(replay, tokens, 1, 5, &steps, &drafted, &err)) fail_msg("%s", err.message);
  assert_int_equal(steps, 2); /* 10 with the prompt; 11, 12 drafted and 13 behind them */
  assert_int_equal(drafted, 2);
  pst_engine_draft_replay_free(replay);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_find),          cmocka_unit_test(test_find_random),
      cmocka_unit_test(test_guesses),       cmocka_unit_test(test_curve),
      cmocka_unit_test(test_curve_forgets), cmocka_unit_test(test_depth),
      cmocka_unit_test(test_choice_alone),  cmocka_unit_test(test_choice_together),
      cmocka_unit_test(test_replay),        cmocka_unit_test(test_replay_uncosted),
  };
  return cmocka_run_group_tests_name("engine speculation", tests, NULL, NULL);
}
