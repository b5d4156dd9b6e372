/* What there is to choose from on a made-up workload: enumeration, plans as documents, classifiers and adapters as candidates, dominance, beliefs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "optimizer/constants.h"
#include "optimizer/optimize.h"
#include "support/numbers.h"

static void test_enumeration(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_space s;
  pst_optimizer_target two[2] = {{.name = "small", .has_template = true, .weights = "Q4_1"},
                                 {.name = "base", .has_template = false, .weights = "Q8_0"}};
  assert_int_equal(pst_optimizer_space_init(&s, &w, two, 2, 2, INDEX_HASH, NULL, NULL, NULL), 0);
  /* By hand. Per (model, weights, kv, prompt, layout): none and nearest1 take 2 constraints each, fixed16 2 (it shows every label), nearest2, 4, 8, 16 take 3. */
  size_t answers = 2 + 2 + 2 + 4 * 3;
  size_t small = 3 * 2 * 3 * 3 * answers, base = 2 * 2 * 3 * 1 * answers; /* base ships as Q8_0 and has no template */
  assert_int_equal(s.n_classes, small + base);
  assert_int_equal(s.n_exact, 5 * 4 * 2 * 2);
  assert_int_equal(s.n_plans, (int64_t)((small + base) * s.n_exact));
  assert_true(s.n_plans > 1000);
  for (size_t i = 0; i < s.n_classes; i++) assert_int_equal(pst_optimizer_class_find(&s, &s.classes[i]), (int)i);
  pst_optimizer_space_done(&s);
}

static void test_every_candidate_is_a_valid_plan(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_space s;
  pst_optimizer_target two[2] = {{.name = "small", .has_template = true, .weights = "Q4_1"},
                                 {.name = "far/model", .provider = "far", .has_template = true}};
  assert_int_equal(pst_optimizer_space_init(&s, &w, two, 2, 4, INDEX_HASH, ANSWERS_HASH, NULL, NULL), 0);
  for (size_t i = 0; i < s.n_classes; i += 7) {
    pst_optimizer_choice c = s.classes[i], back;
    bool same;
    memcpy(c.v + PST_OPTIMIZER_N_LOSSY, s.exact[i % s.n_exact].v + PST_OPTIMIZER_N_LOSSY,
           PST_OPTIMIZER_N_AXES - PST_OPTIMIZER_N_LOSSY);
    pst_buf json = PST_BUF_INIT;
    pst_gateway_plan *plan = NULL;
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_optimizer_plan_write(&s, &c, &json), 0);
    if (pst_gateway_plan_parse(pst_buf_str(&json), "candidate", &plan, &err))
      fail_msg("%s: %s", err.place, err.message);
    bool remote = pst_optimizer_is_remote(&s, &c);
    assert_int_equal(pst_optimizer_plan_match(&s, plan, &back, &same), !remote);
    if (!remote) assert_memory_equal(back.v, c.v, sizeof c.v);
    pst_gateway_plan_unref(plan);
    pst_buf_done(&json);
  }
  pst_optimizer_space_done(&s);
}

/* Plans name the workload's copied fields; one that names others does the same work for other answers. */
static void test_plans_name_copied_fields(void **state) {
  (void)state;
  static const pst_str fields[2] = {{"slots.city", 10}, {"days[]", 6}};
  pst_evals_info w = test_numbers();
  pst_optimizer_space s;
  pst_optimizer_target one = {.name = "small", .has_template = true, .weights = "Q4_1"};
  pst_optimizer_choice back;
  bool same;
  pst_buf json = PST_BUF_INIT;
  pst_gateway_plan *plan = NULL;
  pst_error err = PST_ERROR_INIT;
  w.copied = fields;
  w.n_copied = 2;
  assert_int_equal(pst_optimizer_space_init(&s, &w, &one, 1, 2, INDEX_HASH, NULL, NULL, NULL), 0);
  assert_int_equal(pst_optimizer_plan_write(&s, &s.classes[0], &json), 0);
  assert_int_equal(pst_gateway_plan_parse(pst_buf_str(&json), "candidate", &plan, &err), 0);
  assert_int_equal(plan->n_copied, 2);
  assert_true(pst_str_equal(plan->copied[0], fields[0]) && pst_str_equal(plan->copied[1], fields[1]));
  assert_true(pst_optimizer_plan_match(&s, plan, &back, &same) && same);
  for (w.n_copied = 0; w.n_copied < 2; w.n_copied++)
    assert_true(pst_optimizer_plan_match(&s, plan, &back, &same) && !same);
  w.copied = &fields[1];
  w.n_copied = 1;
  assert_true(pst_optimizer_plan_match(&s, plan, &back, &same) && !same);
  assert_int_equal(pst_optimizer_class_find(&s, &back), 0);
  pst_gateway_plan_unref(plan);
  pst_buf_done(&json);
  pst_optimizer_space_done(&s);
}

/* An adapter of which it is known how it was trained adds that one way to ask; one of which it is not, the ways of the workload; both as shipped. */
static void test_adapters_are_models_of_their_own(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_space s, without;
  char unsaid[65];
  memset(unsaid, 'e', 64);
  unsaid[64] = '\0';
  pst_optimizer_target three[3] = {
      {.name = "small", .has_template = true, .weights = "Q4_1"},
      TUNED,
      {.name = "small:unsaid", .base = "small", .adapter = unsaid, .has_template = true, .weights = "Q4_1"}};
  assert_int_equal(pst_optimizer_space_init(&without, &w, three, 1, 2, INDEX_HASH, NULL, NULL, NULL), 0);
  assert_int_equal(pst_optimizer_space_init(&s, &w, three, 3, 2, INDEX_HASH, NULL, NULL, NULL), 0);
  size_t shipped = 0;
  for (size_t i = 0; i < without.n_classes; i++)
    shipped += !without.classes[i].v[PST_OPTIMIZER_WEIGHTS] && !without.classes[i].v[PST_OPTIMIZER_KV];
  assert_int_equal(s.n_classes, without.n_classes + shipped + 2); /* free, and one of the labels */
  for (size_t i = 0; i < s.n_classes; i++) {
    pst_optimizer_choice choice = s.classes[i], back;
    bool same;
    pst_buf json = PST_BUF_INIT;
    pst_gateway_plan *plan = NULL;
    pst_error err = PST_ERROR_INIT;
    if (!s.targets[choice.v[PST_OPTIMIZER_MODEL]].adapter && i % 7) continue;
    assert_int_equal(pst_optimizer_plan_write(&s, &choice, &json), 0);
    if (pst_gateway_plan_parse(pst_buf_str(&json), "candidate", &plan, &err))
      fail_msg("%s: %s", err.place, err.message);
    assert_string_equal(plan->engines[0].model, "small");
    if (choice.v[PST_OPTIMIZER_MODEL] == 1) assert_string_equal(plan->root.prompt_name, "bare");
    assert_true(pst_optimizer_plan_match(&s, plan, &back, &same));
    assert_memory_equal(back.v, choice.v, PST_OPTIMIZER_N_LOSSY);
    assert_int_equal(pst_optimizer_plan_match(&without, plan, &back, &same), !plan->root.adapter);
    pst_gateway_plan_unref(plan);
    pst_buf_done(&json);
  }
  pst_optimizer_space_done(&s);
  pst_optimizer_space_done(&without);
}

/* One over n-grams; with n = 2 one that reads vectors too, and is right more often. */
static pst_optimizer_classifiers made_up_classifiers(int n) {
  return (pst_optimizer_classifiers){.list = {{.artefact = ARTEFACT,
                                               .accuracy = 0.8,
                                               .item_us = 50,
                                               .points = {{0.5, 0.9, 0.85}, {2, 0.75, 0.97}, {3, 0.5, 0.98}},
                                               .n_points = 3},
                                              {.artefact = ENCODED_ARTEFACT,
                                               .encoder = "vectors",
                                               .encoder_sha256 = ENCODER_HASH,
                                               .accuracy = 0.85,
                                               .item_us = 3000,
                                               .points = {{0.4, 0.9, 0.9}, {1.5, 0.75, 0.98}},
                                               .n_points = 2}},
                                     .n = n};
}

static void classifiers_add_themselves_and_cascades(int n_classifiers) {
  pst_evals_info w = test_numbers();
  pst_optimizer_space s, without;
  pst_optimizer_classifiers c = made_up_classifiers(n_classifiers);
  pst_optimizer_target two[2] = {{.name = "small", .has_template = true, .weights = "Q4_1"},
                                 {.name = "far/model", .provider = "far", .has_template = true}};
  assert_int_equal(pst_optimizer_space_init(&without, &w, two, 2, 2, INDEX_HASH, NULL, NULL, NULL), 0);
  assert_int_equal(pst_optimizer_space_init(&s, &w, two, 2, 2, INDEX_HASH, NULL, &c, NULL), 0);
  size_t shipped = 0, alone = 0, remote = 0, encoded = 0, stride = n_classifiers == 1 ? 5 : 1;
  size_t n_points = (size_t)c.list[n_classifiers - 1].n_points; /* those of the better one stand before models */
  for (size_t i = 0; i < without.n_classes; i++)
    shipped += !without.classes[i].v[PST_OPTIMIZER_WEIGHTS] && !without.classes[i].v[PST_OPTIMIZER_KV];
  assert_int_equal(s.n_classes, without.n_classes + n_points * shipped + (size_t)n_classifiers);
  for (size_t i = 0; i < s.n_classes; i++) {
    pst_optimizer_choice choice = s.classes[i], back;
    bool same;
    memcpy(choice.v + PST_OPTIMIZER_N_LOSSY, s.exact[i % s.n_exact].v + PST_OPTIMIZER_N_LOSSY,
           PST_OPTIMIZER_N_AXES - PST_OPTIMIZER_N_LOSSY);
    if (choice.v[PST_OPTIMIZER_CLASSIFIER] == PST_OPTIMIZER_NO_CLASSIFIER || i % stride) continue;
    pst_buf json = PST_BUF_INIT;
    pst_gateway_plan *plan = NULL;
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_optimizer_plan_write(&s, &choice, &json), 0);
    if (pst_gateway_plan_parse(pst_buf_str(&json), "candidate", &plan, &err))
      fail_msg("%s: %s", err.place, err.message);
    alone += plan->root.op == PST_GATEWAY_OP_CLASSIFIER;
    bool far = pst_optimizer_is_remote(&s, &choice) && !pst_optimizer_is_alone(&s, &choice);
    const pst_gateway_node *first = plan->root.op == PST_GATEWAY_OP_CASCADE ? &plan->root.inputs[0] : &plan->root;
    remote += far;
    if (first->engine >= 0) {
      encoded++;
      assert_string_equal(first->classifier, ENCODED_ARTEFACT);
      assert_string_equal(plan->engines[first->engine].model, "vectors");
      assert_string_equal(plan->engines[first->engine].sha256, ENCODER_HASH);
      if (plan->n_engines == 2)
        assert_string_equal(plan->engines[0].model, "small"); /* what is calibrated is the first */
    } else {
      assert_string_equal(first->classifier, ARTEFACT);
    }
    assert_int_equal(pst_optimizer_plan_match(&s, plan, &back, &same), !far);
    if (!far) assert_memory_equal(back.v, choice.v, PST_OPTIMIZER_N_LOSSY);
    assert_false(pst_optimizer_plan_match(&without, plan, &back, &same));
    pst_gateway_plan_unref(plan);
    pst_buf_done(&json);
  }
  assert_true(remote > 0 && alone <= (size_t)n_classifiers);
  if (n_classifiers == 1) assert_int_equal(encoded, 0);
  if (n_classifiers == 2) assert_int_equal(encoded, n_points * shipped + 1);
  pst_optimizer_space_done(&s);
  pst_optimizer_space_done(&without);
}

static void test_a_classifier_adds_itself_and_cascades(void **state) {
  (void)state;
  classifiers_add_themselves_and_cascades(1);
  classifiers_add_themselves_and_cascades(2);
}

/* What a classifier leaves to the model costs in proportion, by formula and by replay, and the classifier's own time is counted. */
static void test_a_cascade_costs_what_is_left(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  w.goal.latency_p95_ms = 0;
  pst_optimizer_space s;
  pst_optimizer_speed speed;
  pst_optimizer_classifiers c = made_up_classifiers(1);
  pst_optimizer_target one = {.name = "small", .has_template = true, .weights = "Q4_1", .label_tokens = 3};
  assert_int_equal(pst_optimizer_space_init(&s, &w, &one, 1, 1, INDEX_HASH, NULL, &c, NULL), 0);
  assert_int_equal(pst_optimizer_speed_init(&speed, &s, 1, 3600 * (int64_t)1000000, NULL), 0);
  for (int p = 0; p < s.axes[PST_OPTIMIZER_PROMPT].n; p++)
    for (size_t i = 0; i < s.n_classes; i++)
      *pst_optimizer_speed_slot(&speed, &s.classes[i]) = (pst_engine_step_model){5000, 1000, 0, 400, 0.05};
  pst_optimizer_choice model = {{0}}, half = model, alone = model;
  half.v[PST_OPTIMIZER_CLASSIFIER] = 1 + 1 + 2; /* none, alone, and the third point */
  alone.v[PST_OPTIMIZER_CLASSIFIER] = 1;
  pst_optimizer_lengths l = {.completion = 3, .steps = 3};
  int prompt[400];
  for (size_t i = 0; i < PST_ARRAY_LEN(prompt); i++) prompt[i] = 100;
  assert_true(speed.n_arrivals <= PST_ARRAY_LEN(prompt));
  for (int replayed = 0; replayed < 2; replayed++) {
    pst_optimizer_estimate a, b, own;
    l.prompt = replayed ? prompt : NULL;
    if (replayed) {
      assert_int_equal(pst_optimizer_speed_replay(&speed, &model, &l, &a, NULL), 0);
      assert_int_equal(pst_optimizer_speed_replay(&speed, &half, &l, &b, NULL), 0);
      assert_int_equal(pst_optimizer_speed_replay(&speed, &alone, &l, &own, NULL), 0);
      assert_true(b.total_p95_ms > 1 && b.total_p50_ms < a.total_p50_ms);
    } else {
      a = pst_optimizer_speed_formula(&speed, &model, &l);
      b = pst_optimizer_speed_formula(&speed, &half, &l);
      own = pst_optimizer_speed_formula(&speed, &alone, &l);
    }
    assert_true(fabs(b.request_nusd / (0.5 * a.request_nusd) - 1) < 0.05);
    assert_true(fabs(b.prompt_tokens / (0.5 * a.prompt_tokens) - 1) < 0.02);
    assert_true(fabs(b.completion_tokens / (0.5 * a.completion_tokens) - 1) < 0.02);
    assert_true(fabs(own.request_nusd - 50) < 1); /* 50 us at 1,000,000 nano-dollars a second */
    assert_true(own.prompt_tokens == 0 && own.completion_tokens == 0 && own.total_p95_ms < 0.1);
  }
  pst_optimizer_speed_done(&speed);
  pst_optimizer_space_done(&s);
}

static void test_examples_order_shows_every_label_first(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  size_t order[N_ITEMS], n = pst_optimizer_examples_order(&w, order);
  assert_int_equal(n, N_EXAMPLES);
  for (size_t i = 0; i < N_LABELS; i++)
    for (size_t k = 0; k < i; k++) assert_false(pst_str_equal(w.items[order[i]].expected, w.items[order[k]].expected));
}

static void test_dominance(void **state) {
  (void)state;
  const pst_optimizer_point points[] = {
      {1.0, 1.2, 0.60, 0.70}, /* cheap and good */
      {1.1, 1.5, 0.30, 0.50}, /* its cost may be as low: stays */
      {1.3, 1.5, 0.30, 0.50}, /* surely dearer, surely worse */
      {1.3, 1.5, 0.55, 0.65}, /* dearer, perhaps better */
      {9.0, 9.9, 0.80, 0.90}, /* dear and best */
      {INFINITY, INFINITY, 0.0, 0.10},
  };
  uint8_t marks[PST_ARRAY_LEN(points)];
  assert_int_equal(pst_optimizer_dominated(points, PST_ARRAY_LEN(points), marks), 2);
  const uint8_t expected[] = {0, 0, 1, 0, 0, 1};
  assert_memory_equal(marks, expected, sizeof expected);
  assert_int_equal(pst_optimizer_dominated(points, 0, marks), 0);
}

/* Against every pair, on random points. */
static void test_dominance_against_the_definition(void **state) {
  (void)state;
  enum { N = 300 };
  static pst_optimizer_point points[N];
  static uint8_t marks[N];
  pst_random r = {11, 0, 0};
  for (int i = 0; i < N; i++) {
    double c = pst_random_next_unit(&r), q = pst_random_next_unit(&r);
    points[i] = (pst_optimizer_point){c, c + 0.1 * pst_random_next_unit(&r), q, q + 0.1 * pst_random_next_unit(&r)};
  }
  size_t n = pst_optimizer_dominated(points, N, marks), expected = 0;
  for (int i = 0; i < N; i++) {
    bool out = false;
    for (int k = 0; k < N; k++)
      out |= points[k].cost_high < points[i].cost_low && points[k].quality_low > points[i].quality_high;
    assert_int_equal(marks[i], out);
    expected += out;
  }
  assert_int_equal(n, expected);
}

static void test_beliefs_follow_measurements(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_space s;
  pst_optimizer_target one = {.name = "small", .has_template = true, .weights = "Q4_1"};
  assert_int_equal(pst_optimizer_space_init(&s, &w, &one, 1, 1, INDEX_HASH, NULL, NULL, NULL), 0);
  pst_optimizer_belief *before = calloc(s.n_classes, sizeof *before), *after = calloc(s.n_classes, sizeof *after);
  assert_int_equal(pst_optimizer_surrogate_update(&s, NULL, 0, before, NULL), 0);
  int seen = 0, twin = 0, far = 0;
  for (size_t i = 0; i < s.n_classes; i++) { /* the twin differs in the type of keys and values alone */
    const uint8_t *v = s.classes[i].v;
    if (v[PST_OPTIMIZER_EXAMPLES] == 4 && v[PST_OPTIMIZER_CONSTRAINT] == 1 && !v[PST_OPTIMIZER_PROMPT] &&
        !v[PST_OPTIMIZER_LAYOUT] && !v[PST_OPTIMIZER_WEIGHTS])
      *(v[PST_OPTIMIZER_KV] ? &twin : &seen) = (int)i;
    if (!v[PST_OPTIMIZER_EXAMPLES] && v[PST_OPTIMIZER_LAYOUT] == 2 && v[PST_OPTIMIZER_PROMPT] == 2) far = (int)i;
  }
  pst_optimizer_seen measured = {seen, 200, 180};
  assert_int_equal(pst_optimizer_surrogate_update(&s, &measured, 1, after, NULL), 0);
  assert_true(fabs(pst_optimizer_logistic(after[seen].mean) - 0.9) < 0.02);
  assert_true(after[seen].sd < 0.3 * before[seen].sd);
  assert_true(pst_optimizer_logistic(after[twin].mean) > 0.87 && after[twin].sd > after[seen].sd);
  assert_true(after[twin].sd < after[far].sd && after[far].sd < before[far].sd + 1e-12);
  free(before);
  free(after);
  pst_optimizer_space_done(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_enumeration),
      cmocka_unit_test(test_every_candidate_is_a_valid_plan),
      cmocka_unit_test(test_plans_name_copied_fields),
      cmocka_unit_test(test_adapters_are_models_of_their_own),
      cmocka_unit_test(test_a_classifier_adds_itself_and_cascades),
      cmocka_unit_test(test_a_cascade_costs_what_is_left),
      cmocka_unit_test(test_examples_order_shows_every_label_first),
      cmocka_unit_test(test_dominance),
      cmocka_unit_test(test_dominance_against_the_definition),
      cmocka_unit_test(test_beliefs_follow_measurements),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
