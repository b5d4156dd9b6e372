/* The course of training on a tiny model: it learns, it gives the same adapter however often it was stopped or killed and on any number of threads, it
 * stops when held-out texts no longer gain, and it refuses what it cannot do. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <penstock/tune.h>

#include "support/golden_model.h"
#include "support/lora.h"
#include "support/temp.h"
#include "tune/adam.h"
#include "tune/distill.h"

enum { N_TEXTS = 24, LENGTH = 22, STEPS = 30 };

static int32_t tokens[N_TEXTS][LENGTH];
static pst_tune_text texts[N_TEXTS];
static char model_path[256];

/* Ten tokens at random, then a mark, then always the same ones. */
static void make_texts(void) {
  for (int t = 0; t < N_TEXTS; t++) {
    for (int i = 0; i < LENGTH; i++)
      tokens[t][i] = i < 10 ? (int32_t)(pst_random_u64(1, (uint64_t)t, (uint64_t)i) % 200) : 250 - 3 * (i - 10);
    texts[t] = (pst_tune_text){.tokens = tokens[t], .n = LENGTH - (size_t)t % 3, .n_given = 11, .weight = 1};
  }
}

static int set_up(void **state) {
  (void)test_dir_open(state);
  snprintf(model_path, sizeof model_path, "%s", test_temp_path(test_dir, "model.gguf"));
  test_golden_model("llama", model_path);
  make_texts();
  return 0;
}

static pst_tune_options options_of(const char *checkpoint) {
  pst_tune_options o = pst_tune_options_default();
  o.rank = 4;
  o.alpha = 8;
  o.learning_rate = 2e-2;
  o.batch_texts = 5;
  o.steps = STEPS;
  o.evaluations = 4;
  o.patience = 0;
  o.threads = 2;
  o.checkpoint = checkpoint;
  return o;
}

static int train(const pst_tune_options *o, size_t n_held_out, pst_engine_lora *lora, pst_tune_report *report,
                 pst_error *err) {
  pst_engine_model *model = NULL;
  assert_int_equal(pst_engine_model_open(model_path, 1, &model, err), 0);
  int code = pst_tune_train(model, texts, N_TEXTS - n_held_out, texts + N_TEXTS - n_held_out, n_held_out, o, lora,
                            report, err);
  pst_engine_model_unref(model);
  return code;
}

static void must_train(const pst_tune_options *o, pst_engine_lora *lora, pst_tune_report *report) {
  pst_error err = PST_ERROR_INIT;
  memset(lora, 0, sizeof *lora);
  if (train(o, 4, lora, report, &err)) fail_msg("%s: %s", err.place, err.message);
}

static void test_learns(void **state) {
  (void)state;
  pst_engine_lora lora, other;
  pst_tune_report report, again;
  pst_tune_options o = options_of(NULL);
  must_train(&o, &lora, &report);
  assert_int_equal(lora.n_targets, 3 * PST_ENGINE_ROLE_COUNT);
  assert_string_equal(lora.targets[0].name, "blk.0.attn_q.weight");
  assert_int_equal(report.n_steps, STEPS);
  print_message("loss %.2f, held out %.2f to %.2f\n", report.loss, report.held_out_before, report.held_out_loss);
  assert_true(report.loss < 0.8 * report.held_out_before);
  assert_true(report.held_out_loss < report.held_out_before);
  assert_true(report.n_scored == (int64_t)(STEPS * 5 * 10) || report.n_scored > STEPS * 5 * 8);
  o.threads = 1;
  must_train(&o, &other, &again);
  test_lora_assert_same(&lora, &other);
  pst_engine_lora_done(&other);
  o.max_tokens = 30; /* texts by ones */
  must_train(&o, &other, &again);
  test_lora_assert_same(&lora, &other);
  pst_engine_lora_done(&other);
  o.seed++;
  must_train(&o, &other, &again);
  assert_true(memcmp(lora.targets[0].b, other.targets[0].b, 16) != 0);
  pst_engine_lora_done(&other);
  pst_engine_lora_done(&lora);
}

static int asked;
static bool at_every_fourth(void *user) {
  (void)user;
  return ++asked % 4 == 0;
}

static void test_stopped_and_resumed(void **state) {
  (void)state;
  const char *checkpoint = test_temp_path(test_dir, "stopped");
  pst_engine_lora want, got = {0};
  pst_tune_report report;
  pst_tune_options o = options_of(NULL);
  must_train(&o, &want, &report);
  o.checkpoint = checkpoint;
  o.cancelled = at_every_fourth;
  int code, n_sessions = 0;
  do {
    pst_error err = PST_ERROR_INIT;
    code = train(&o, 4, &got, &report, &err);
    assert_true(code == 0 || code == PST_E_CANCELLED);
    assert_true(pst_file_exists(checkpoint));
    o.threads = 1 + n_sessions % 2;
    n_sessions++;
  } while (code && n_sessions < 50);
  assert_in_range(n_sessions, 8, 12);
  assert_int_equal(report.n_steps, STEPS);
  test_lora_assert_same(&want, &got);
  pst_engine_lora_done(&got);
  /* The end is in the checkpoint, too: who was killed before the adapter was safe asks again, and nothing is trained. */
  pst_error err = PST_ERROR_INIT;
  pst_tune_report again;
  asked = 0;
  assert_int_equal(train(&o, 4, &got, &again, &err), 0);
  assert_int_equal(asked, 0);
  assert_int_equal(again.n_tokens, report.n_tokens);
  assert_int_equal(again.best_step, report.best_step);
  assert_true(again.tokens_per_second > 0);
  test_lora_assert_same(&want, &got);
  pst_engine_lora_done(&want);
  pst_engine_lora_done(&got);
}

/* A process that saves after every step is killed again and again, wherever it is. */
static void test_killed(void **state) {
  (void)state;
  const char *checkpoint = test_temp_path(test_dir, "killed");
  pst_engine_lora want, got = {0};
  pst_tune_report report;
  pst_tune_options o = options_of(NULL);
  must_train(&o, &want, &report);
  o.checkpoint = checkpoint;
  o.checkpoint_seconds = 0;
  for (int i = 0; i < 6; i++) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      pst_error err = PST_ERROR_INIT;
      (void)train(&o, 4, &got, &report, &err);
      _exit(0);
    }
    int status;
    (void)usleep(20000 + 17000 * (useconds_t)i);
    (void)kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
  }
  must_train(&o, &got, &report);
  test_lora_assert_same(&want, &got);
  pst_engine_lora_done(&want);
  pst_engine_lora_done(&got);
}

static void test_damaged_checkpoint(void **state) {
  (void)state;
  const char *checkpoint = test_temp_path(test_dir, "damaged");
  pst_engine_lora lora = {0};
  pst_tune_report report;
  pst_tune_options o = options_of(checkpoint);
  o.cancelled = at_every_fourth;
  pst_error err = PST_ERROR_INIT;
  asked = 0;
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_CANCELLED);
  pst_tune_options other = o;
  other.seed++;
  assert_int_equal(train(&other, 4, &lora, &report, &err), PST_E_CANCELLED); /* another question writes over it */
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_CANCELLED);
  char *data;
  size_t n;
  assert_int_equal(pst_file_read(checkpoint, 1 << 26, &data, &n, &err), 0);
  data[n / 2] ^= 1;
  test_temp_write(checkpoint, data, n);
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_CORRUPT);
  test_temp_write(checkpoint, data, n - 5);
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_CORRUPT);
  pst_free(data);
}

static void note_rate(void *user, const pst_tune_progress *p) { *(double *)user = p->learning_rate; }

/* Held-out texts that want other answers than those learned soon lose by every step: two held-out losses after the lowest the schedule is cut short and led to its end, and that
 * lowest loss is the adapter's, whether training goes on for longer or not. */
static void test_no_gain_shortens(void **state) {
  (void)state;
  pst_engine_lora lora, other;
  pst_tune_report report, longer;
  pst_tune_options o = options_of(NULL);
  for (int t = N_TEXTS - 4; t < N_TEXTS; t++)
    for (int i = 11; i < LENGTH; i++) tokens[t][i] = (7 * i + t) % 100;
  o.evaluations = 10;
  o.patience = 2;
  double rate = 0;
  o.on_progress = note_rate;
  o.user = &rate;
  must_train(&o, &lora, &report);
  assert_true(report.shortened);
  int64_t seen = report.best_step + 2 * (STEPS / 10);
  assert_int_equal(report.n_steps, seen + seen / 4);
  assert_true(rate < 0.2 * o.learning_rate);
  o.patience = 0;
  must_train(&o, &other, &longer);
  assert_false(longer.shortened);
  assert_int_equal(longer.n_steps, STEPS);
  assert_int_equal(longer.best_step, report.best_step);
  test_lora_assert_same(&lora, &other);
  pst_engine_lora_done(&lora);
  pst_engine_lora_done(&other);
  make_texts();
}

/* A held-out text that wants another answer than those learned, among others: their loss falls, then rises a little, and the adapter is the end's all the same. */
static void test_the_end_is_taken(void **state) {
  (void)state;
  pst_engine_lora lora;
  pst_tune_report report;
  pst_tune_options o = options_of(NULL);
  double lowest = INFINITY;
  for (int i = 11; i < LENGTH; i++) tokens[N_TEXTS - 1][i] = (7 * i + 1) % 100;
  o.steps = 3 * STEPS;
  o.evaluations = 10;
  must_train(&o, &lora, &report);
  for (size_t i = 0; i < report.n_evaluations; i++) lowest = fmin(lowest, report.evaluations[i].loss);
  assert_true(report.held_out_loss > lowest);
  assert_int_equal(report.best_step, report.n_steps);
  pst_engine_lora_done(&lora);
  make_texts();
}

/* ---- the sample's answers ---- */

typedef struct script {
  uint64_t right[16]; /* by call */
  size_t n_calls, n_asked[16];
  useconds_t item_us;
} script;

static int scripted(void *user, const pst_engine_lora *adapter, size_t n, uint64_t *ret_right, pst_error *err) {
  script *s = user;
  (void)err;
  assert_int_equal(adapter->n_targets, 3 * PST_ENGINE_ROLE_COUNT);
  (void)usleep((useconds_t)n * s->item_us);
  s->n_asked[s->n_calls] = n;
  *ret_right = s->right[s->n_calls++];
  return 0;
}

/* Losses fall to the end here; answers say otherwise. 30 steps are looked at after 7, 14, 21, 28 and 30. */
static void test_answers_decide(void **state) {
  (void)state;
  const struct {
    uint64_t right[5];
    int64_t best_step;
  } cases[] = {
      {{0, 0xffff, 0xff, 0xff, 0xff}, 14},          /* eight fewer are no chance */
      {{0, 0xffff, 0xffff, 0xffff, 0xffff}, STEPS}, /* as many: the loss */
      {{0, 0xffff, 0x7fff, 0x7fff, 0x7fff}, STEPS}, /* one fewer: the loss */
      {{0, 0xff, 0xff00, 0xff00, 0xff00}, STEPS},   /* others, but as many: the loss */
      {{0, 0xff, 0x1f, 0x3ff, 0x3}, 28},            /* up again */
      {{0xffff, 0xff, 0xf, 0x3, 0x1}, 7},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    script s = {.n_calls = 0};
    pst_engine_lora lora;
    pst_tune_report report;
    pst_tune_options o = options_of(NULL);
    memcpy(s.right, cases[i].right, sizeof cases[i].right);
    o.scorer = (pst_tune_scorer){scripted, &s, 20};
    must_train(&o, &lora, &report);
    assert_int_equal(s.n_calls, 5);
    assert_int_equal(s.n_asked[4], 20);
    assert_int_equal(report.n_evaluations, 5);
    assert_int_equal(report.best_step, cases[i].best_step);
    assert_int_equal(report.best.step, cases[i].best_step);
    assert_true(report.evaluations[4].loss < report.evaluations[0].loss);
    for (size_t k = 0; k < 5; k++)
      if (report.evaluations[k].step == report.best.step)
        assert_true(report.held_out_loss == report.evaluations[k].loss &&
                    report.best.n_right == report.evaluations[k].n_right && report.best.n_asked == 20);
    pst_engine_lora_done(&lora);
  }
}

/* What was answered is in the checkpoint: stopped between two looks, the same adapter is taken. */
static void test_answers_are_kept(void **state) {
  (void)state;
  const char *checkpoint = test_temp_path(test_dir, "answers");
  const uint64_t right[] = {0, 0xffff, 0xff, 0xff, 0xff};
  script whole = {.n_calls = 0}, broken = {.n_calls = 0};
  pst_engine_lora want, got = {0};
  pst_tune_report report;
  pst_tune_options o = options_of(NULL);
  memcpy(whole.right, right, sizeof right);
  memcpy(broken.right, right, sizeof right);
  o.scorer = (pst_tune_scorer){scripted, &whole, 20};
  must_train(&o, &want, &report);
  o.checkpoint = checkpoint;
  o.cancelled = at_every_fourth;
  o.scorer.user = &broken;
  int code = PST_E_CANCELLED;
  for (int i = 0; i < 50 && code; i++) {
    pst_error err = PST_ERROR_INIT;
    code = train(&o, 4, &got, &report, &err);
  }
  assert_int_equal(code, 0);
  assert_int_equal(broken.n_calls, 5);
  assert_int_equal(report.best_step, 14);
  test_lora_assert_same(&want, &got);
  pst_engine_lora_done(&want);
  pst_engine_lora_done(&got);
}

/* Where time is the measure answers take their share of it and no more, the last look among them; where a share is too little, none are asked for. */
static void test_answers_take_their_share(void **state) {
  (void)state;
  script s = {.item_us = 2000};
  pst_engine_lora lora;
  pst_tune_report report;
  pst_tune_options o = options_of(NULL);
  o.steps = 0;
  o.max_epochs = 1000000;
  o.seconds = 1;
  o.score_share = 0.2; /* of a second: a hundred answers */
  o.scorer = (pst_tune_scorer){scripted, &s, PST_TUNE_MAX_SCORED};
  must_train(&o, &lora, &report);
  pst_engine_lora_done(&lora);
  assert_true(report.score_seconds <= 0.25);
  assert_int_equal(s.n_asked[0], 4);
  assert_in_range(s.n_asked[1], 8, 25);
  assert_in_range(s.n_calls, 2, 8);
  assert_true(report.evaluations[report.n_evaluations - 1].n_asked > 0);
  s = (script){.item_us = 2000};
  o.score_share = 0.01;
  o.seconds = 0.5;
  must_train(&o, &lora, &report);
  pst_engine_lora_done(&lora);
  assert_int_equal(s.n_calls, 1);
  assert_int_equal(report.best.n_asked, 0);
  assert_true(report.n_steps > 0);
  o.needs_answers = true; /* then nothing is learned */
  must_train(&o, &lora, &report);
  pst_engine_lora_done(&lora);
  assert_int_equal(report.n_steps, 0);
  assert_int_equal(report.best_step, 0);
}

static void test_time(void **state) {
  (void)state;
  pst_engine_lora lora;
  pst_tune_report report;
  pst_tune_options o = options_of(NULL);
  o.steps = 0;
  o.max_epochs = 1000000;
  o.seconds = 1.5;
  must_train(&o, &lora, &report);
  assert_true(report.n_steps > 1);
  assert_true(report.seconds < 4);
  pst_engine_lora_done(&lora);
  o.max_epochs = 2;
  o.seconds = 1000;
  must_train(&o, &lora, &report);
  assert_int_equal(report.n_steps, 2 * (N_TEXTS - 4) / 5);
  pst_engine_lora_done(&lora);
}

static void test_refused(void **state) {
  (void)state;
  pst_engine_lora lora = {0};
  pst_tune_report report;
  pst_error err = PST_ERROR_INIT;
  pst_tune_options o = options_of(NULL);
  o.rank = 0;
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, "rank");
  o = options_of(NULL);
  assert_int_equal(train(&o, N_TEXTS, &lora, &report, &err), PST_E_NO_DATA);
  int32_t token = tokens[2][3];
  tokens[2][3] = 288;
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, "text 2");
  tokens[2][3] = token;
  texts[1].n_given = texts[1].n;
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_BAD_INPUT);
  make_texts();
  o.max_tokens = INT32_MAX; /* at once: more memory than there is */
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_NOMEM);
  assert_non_null(strstr(err.message, "GB are free"));
  o = options_of(NULL);
  texts[1].n = INT32_MAX; /* as many for one text */
  assert_int_equal(train(&o, 4, &lora, &report, &err), PST_E_NOMEM);
  assert_non_null(strstr(err.message, "GB are free"));
  make_texts();
}

/* ---- a teacher ---- */

/* A teacher with the model's own weights: at the start there is nothing to learn from it, and what it thinks adds up. */
static void test_teacher(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL, *other = NULL;
  pst_engine *engine = NULL;
  pst_engine_options e = pst_engine_options_default();
  pst_arena *arena = pst_arena_create();
  pst_tune_text taught[N_TEXTS];
  pst_engine_lora lora = {0};
  pst_tune_report report;
  memcpy(taught, texts, sizeof taught);
  e.threads = 1;
  e.max_queue = 2; /* fewer than are asked at once */
  assert_int_equal(pst_engine_model_open(model_path, 1, &model, &err), 0);
  assert_int_equal(pst_engine_create(model, &e, &engine, &err), 0);
  if (pst_tune_distill(engine, model, taught, N_TEXTS, arena, NULL, NULL, &err)) fail_msg("%s", err.message);
  for (int t = 0; t < N_TEXTS; t++) {
    const pst_tune_teacher *teacher = taught[t].teacher;
    for (size_t row = 0; row < taught[t].n - taught[t].n_given; row++) {
      double sum = 0;
      for (int k = 0; k < teacher->k; k++) sum += (double)teacher->probabilities[row * (size_t)teacher->k + (size_t)k];
      assert_true(sum > 0.05 && sum < 1.0001);
    }
  }
  pst_tune_options o = options_of(NULL);
  o.teacher_share = 1;
  o.steps = 1;
  assert_int_equal(pst_tune_train(model, taught, N_TEXTS, NULL, 0, &o, &lora, &report, &err), 0);
  print_message("divergence from itself: %.1e nats\n", report.loss);
  assert_true(fabs(report.loss) < 2e-3); /* the engine's keys are float16 */
  pst_engine_lora_done(&lora);
  int32_t *likely = pst_arena_calloc(arena, 64, sizeof *likely);
  pst_tune_teacher wrong = {2, likely, taught[0].teacher->probabilities};
  assert_non_null(likely);
  taught[0].teacher = &wrong;
  likely[3] = 288; /* one beyond the last */
  assert_int_equal(pst_tune_train(model, taught, N_TEXTS, NULL, 0, &o, &lora, &report, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, "text 0");
  char *data = NULL;
  size_t n = 0;
  const char *path = test_temp_path(test_dir, "other.gguf");
  assert_int_equal(pst_file_read(model_path, 1 << 26, &data, &n, &err), 0);
  size_t at = pst_str_find((pst_str){data, n}, PST_STR("<|im_start|>"), 0);
  assert_true(at < n);
  data[at + 2] = 'I'; /* a token of another spelling */
  test_temp_write(path, data, n);
  pst_free(data);
  assert_int_equal(pst_engine_model_open(path, 1, &other, &err), 0);
  assert_int_equal(pst_tune_distill(engine, other, taught, N_TEXTS, arena, NULL, NULL, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "is another one for the teacher"));
  pst_engine_model_unref(other);
  pst_engine_free(engine);
  pst_engine_model_unref(model);
  pst_arena_free(arena);
}

static void test_schedule(void **state) {
  (void)state;
  assert_true(fabs(pst_tune_schedule(0, 100, 0.04, 0) - 0.2) < 1e-12);
  assert_true(fabs(pst_tune_schedule(4, 100, 0.04, 0) - 1) < 1e-12);
  assert_true(fabs(pst_tune_schedule(52, 100, 0.04, 0.1) - 0.55) < 1e-12);
  assert_true(pst_tune_schedule(99, 100, 0, 0.1) < 0.101);
  assert_true(fabs(pst_tune_schedule(0, 1, 0, 0) - 1) < 1e-12);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_learns),
                                     cmocka_unit_test(test_stopped_and_resumed),
                                     cmocka_unit_test(test_killed),
                                     cmocka_unit_test(test_damaged_checkpoint),
                                     cmocka_unit_test(test_no_gain_shortens),
                                     cmocka_unit_test(test_the_end_is_taken),
                                     cmocka_unit_test(test_time),
                                     cmocka_unit_test(test_answers_decide),
                                     cmocka_unit_test(test_answers_are_kept),
                                     cmocka_unit_test(test_answers_take_their_share),
                                     cmocka_unit_test(test_refused),
                                     cmocka_unit_test(test_schedule),
                                     cmocka_unit_test(test_teacher)};
  return cmocka_run_group_tests(tests, set_up, test_dir_close);
}
