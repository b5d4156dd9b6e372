/* Learning by preference: losses and their derivatives, answers to other prompts, and the course of DPO and KTO on a tiny model: rewards part, the same adapter however
 * often training was stopped, and from an adapter as from the base. */
#include <math.h>
#include <stdio.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/golden_model.h"
#include "support/lora.h"
#include "support/temp.h"
#include "tune/preference.h"

/* ---- losses ---- */

static void slopes_are_differences(void **state) {
  (void)state;
  const double h = 1e-4;
  for (int i = 0; i < 400; i++) {
    double x = 60 * pst_random_unit(3, 0, (uint64_t)i) - 30, beta = 0.02 + pst_random_unit(3, 1, (uint64_t)i), slope,
           other;
    double smoothing = i % 3 ? 0.4 * pst_random_unit(3, 2, (uint64_t)i) : 0,
           point = 5 * pst_random_unit(3, 4, (uint64_t)i);
    (void)pst_tune_dpo(x, beta, smoothing, &slope);
    double rise = pst_tune_dpo(x + h, beta, smoothing, &other) - pst_tune_dpo(x - h, beta, smoothing, &other);
    assert_true(fabs(rise / (2 * h) - slope) < 1e-7);
    for (int wanted = 0; wanted < 2; wanted++) {
      (void)pst_tune_kto(x, point, wanted, beta, &slope);
      rise = pst_tune_kto(x + h, point, wanted, beta, &other) - pst_tune_kto(x - h, point, wanted, beta, &other);
      assert_true(fabs(rise / (2 * h) - slope) < 1e-7);
      assert_true(wanted ? slope <= 0 : slope >= 0);
    }
  }
}

static void far_away_nothing_overflows(void **state) {
  (void)state;
  double slope;
  assert_true(fabs(pst_tune_dpo(0, 0.1, 0, &slope) - log(2)) < 1e-15 && fabs(slope + 0.05) < 1e-15);
  assert_true(pst_tune_dpo(1e6, 1, 0, &slope) < 1e-300 && fabs(slope) < 1e-300);
  assert_true(fabs(pst_tune_dpo(-1e6, 1, 0, &slope) - 1e6) < 1e-6 && fabs(slope + 1) < 1e-12);
  assert_true(fabs(pst_tune_dpo(1e6, 1, 0.25, &slope) - 0.25e6) < 1e-6 && fabs(slope - 0.25) < 1e-12);
  assert_true(fabs(pst_tune_kto(-1e6, 0, true, 1, &slope) - 1) < 1e-12 && fabs(slope) < 1e-300);
  assert_true(pst_tune_kto(-1e6, 0, false, 1, &slope) < 1e-300);
  assert_true(fabs(pst_tune_kto(2, 2, true, 0.4, &slope) - 0.5) < 1e-15 && fabs(slope + 0.1) < 1e-15);
}

static void answers_go_to_other_prompts(void **state) {
  (void)state;
  /* prompt | answer: 0 and 1 share a prompt, 1 and 2 an answer */
  static const int32_t tokens[4][5] = {{1, 2, 3, 4, 5}, {1, 2, 6, 7, 0}, {8, 9, 6, 7, 0}, {8, 1, 4, 0, 0}};
  static const size_t lengths[] = {5, 4, 4, 3}, from[] = {3, 3, 0, 2};
  pst_tune_text texts[4], *out = NULL;
  int32_t *memory = NULL;
  for (int i = 0; i < 4; i++)
    texts[i] = (pst_tune_text){.tokens = tokens[i], .n = lengths[i], .n_given = 2, .weight = 1};
  for (size_t most = 3; most < 9; most += 5) {
    assert_int_equal(pst_tune_mismatch(texts, 4, most, &memory, &out), 0);
    for (int i = 0; i < 4; i++) {
      size_t n = PST_MIN(lengths[from[i]], most);
      assert_int_equal(out[i].n, n);
      assert_int_equal(out[i].n_given, 2);
      assert_memory_equal(out[i].tokens, tokens[i], 2 * sizeof(int32_t));
      assert_memory_equal(out[i].tokens + 2, tokens[from[i]] + 2, (n - 2) * sizeof(int32_t));
    }
    pst_free(memory);
    pst_free(out);
  }
  assert_int_equal(pst_tune_mismatch(texts, 1, 9, &memory, &out), 0); /* nothing else: its own */
  assert_memory_equal(out[0].tokens, tokens[0], sizeof tokens[0]);
  pst_free(memory);
  pst_free(out);
}

/* ---- the course ---- */

enum { N_PAIRS = 20, HELD = 4, LENGTH = 18, GIVEN = 9, STEPS = 24 };

static int32_t tokens[2 * N_PAIRS][LENGTH];
static pst_tune_text texts[2 * N_PAIRS];
static char model_path[256];

/* A prompt at random; wanted is a falling row behind it, unwanted a rising one. */
static void make_texts(void) {
  for (int t = 0; t < 2 * N_PAIRS; t++) {
    for (int i = 0; i < LENGTH; i++)
      tokens[t][i] = i < GIVEN ? (int32_t)(pst_random_u64(1, (uint64_t)(t / 2), (uint64_t)i) % 200)
                     : t % 2   ? 20 + 5 * (i - GIVEN)
                               : 240 - 3 * (i - GIVEN);
    texts[t] = (pst_tune_text){
        .tokens = tokens[t], .n = LENGTH - (size_t)t % 3, .n_given = GIVEN, .weight = 1, .unwanted = t % 2};
  }
}

static int set_up(void **state) {
  (void)test_dir_open(state);
  snprintf(model_path, sizeof model_path, "%s", test_temp_path(test_dir, "model.gguf"));
  test_golden_model("llama", model_path);
  make_texts();
  return 0;
}

static pst_tune_options options_of(pst_tune_objective objective) {
  pst_tune_options o = pst_tune_options_default();
  o.objective = objective;
  o.rank = 4;
  o.alpha = 8;
  o.learning_rate = 5e-3;
  o.batch_texts = 5;
  o.steps = STEPS;
  o.evaluations = 4;
  o.patience = 0;
  o.threads = 2;
  return o;
}

static int train(const pst_tune_options *o, pst_engine_lora *lora, pst_tune_report *report, pst_error *err) {
  pst_engine_model *model = NULL;
  size_t n = 2 * (N_PAIRS - HELD);
  memset(lora, 0, sizeof *lora);
  assert_int_equal(pst_engine_model_open(model_path, 1, &model, err), 0);
  int code = pst_tune_train(model, texts, n, texts + n, 2 * HELD, o, lora, report, err);
  pst_engine_model_unref(model);
  return code;
}

static void must_train(const pst_tune_options *o, pst_engine_lora *lora, pst_tune_report *report) {
  pst_error err = PST_ERROR_INIT;
  if (train(o, lora, report, &err)) fail_msg("%s: %s", err.place, err.message);
}

static int n_told;
static double first_loss, last_margin, last_accuracy;
static void on_progress(void *user, const pst_tune_progress *p) {
  (void)user;
  if (!n_told++) first_loss = p->loss;
  last_margin = p->margin;
  last_accuracy = p->accuracy;
}

static void rewards_part(void **state) {
  (void)state;
  for (int objective = PST_TUNE_DPO; objective <= PST_TUNE_KTO; objective++) {
    pst_engine_lora lora, other;
    pst_tune_report report, again;
    pst_tune_options o = options_of((pst_tune_objective)objective);
    o.on_progress = on_progress;
    n_told = 0;
    must_train(&o, &lora, &report);
    print_message("%s: %.4f to %.4f, margin %.2f, %.0f%% right\n", pst_tune_objective_name(o.objective),
                  report.held_out_before, report.held_out_loss, report.margin, 100 * report.accuracy);
    double start = objective == PST_TUNE_DPO ? log(2) : 0.5;
    assert_true(fabs(report.held_out_before - start) < 1e-6); /* the model is where it starts */
    assert_true(fabs(first_loss - start) < 1e-6);
    assert_true(report.held_out_loss < 0.9 * start);
    assert_true(report.margin > 0.3 && report.accuracy > 0.99);
    assert_int_equal(n_told, STEPS);
    assert_true(last_margin > 0.3 && last_accuracy > 0.99);
    o.threads = 1;
    o.max_tokens = 40; /* examples by ones */
    must_train(&o, &other, &again);
    test_lora_assert_same(&lora, &other);
    pst_engine_lora_done(&other);
    o.share_prefixes = true; /* other roundings, the same course */
    must_train(&o, &other, &again);
    assert_true(fabs(again.held_out_loss - report.held_out_loss) < 1e-2);
    pst_engine_lora_done(&other);
    pst_engine_lora_done(&lora);
  }
}

static int asked;
static bool at_every_seventh(void *user) {
  (void)user;
  return ++asked % 7 == 0;
}

/* References come from the checkpoint: a stopped run compares with the start, not with where it was. */
static void stopped_and_resumed(void **state) {
  (void)state;
  for (int objective = PST_TUNE_DPO; objective <= PST_TUNE_KTO; objective++) {
    const char *checkpoint = test_temp_path(test_dir, "stopped");
    pst_engine_lora want, got;
    pst_tune_report report, whole;
    pst_tune_options o = options_of((pst_tune_objective)objective);
    must_train(&o, &want, &whole);
    o.checkpoint = checkpoint;
    o.cancelled = at_every_seventh;
    int code, n_sessions = 0;
    do {
      pst_error err = PST_ERROR_INIT;
      code = train(&o, &got, &report, &err);
      assert_true(code == 0 || code == PST_E_CANCELLED);
    } while (code && ++n_sessions < 50);
    assert_in_range(n_sessions, 3, 12);
    test_lora_assert_same(&want, &got);
    assert_memory_equal(&whole.margin, &report.margin, sizeof report.margin);
    assert_int_equal(remove(checkpoint), 0); /* the caller's, once it has what came */
    pst_engine_lora_done(&want);
    pst_engine_lora_done(&got);
  }
}

static void from_an_adapter(void **state) {
  (void)state;
  pst_engine_lora first, second;
  pst_tune_report report;
  pst_error err = PST_ERROR_INIT;
  pst_tune_options o = options_of(PST_TUNE_SFT);
  must_train(&o, &first, &report);
  double learned = report.held_out_loss;
  o.start = &first;
  o.steps = 1;
  must_train(&o, &second, &report);
  assert_true(fabs(report.held_out_before - learned) < 1e-6); /* it is where the first one ended */
  pst_engine_lora_done(&second);
  o = options_of(PST_TUNE_DPO);
  o.start = &first;
  must_train(&o, &second, &report);
  assert_true(fabs(report.held_out_before - log(2)) < 1e-6);
  assert_true(report.accuracy > 0.99);
  pst_engine_lora_done(&second);
  o.rank = 8;
  assert_int_equal(train(&o, &second, &report, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "rank and scale"));
  o.rank = 4;
  o.roles = 1u << PST_ENGINE_ROLE_Q;
  assert_int_equal(train(&o, &second, &report, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "of which 3 are trained"));
  pst_engine_lora_done(&first);
}

static void what_cannot_be(void **state) {
  (void)state;
  pst_engine_lora lora;
  pst_tune_report report;
  pst_error err = PST_ERROR_INIT;
  pst_tune_options o = options_of(PST_TUNE_DPO);
  tokens[5][2] ^= 1;
  assert_int_equal(train(&o, &lora, &report, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "4 and 5 have different prompts"));
  make_texts();
  o.beta = 0;
  assert_int_equal(train(&o, &lora, &report, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, "beta");
  o.beta = 0.1;
  o.smoothing = 0.5;
  assert_int_equal(train(&o, &lora, &report, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, "smoothing");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(slopes_are_differences),
                                     cmocka_unit_test(far_away_nothing_overflows),
                                     cmocka_unit_test(answers_go_to_other_prompts),
                                     cmocka_unit_test(rewards_part),
                                     cmocka_unit_test(stopped_and_resumed),
                                     cmocka_unit_test(from_an_adapter),
                                     cmocka_unit_test(what_cannot_be)};
  return cmocka_run_group_tests(tests, set_up, test_dir_close);
}
