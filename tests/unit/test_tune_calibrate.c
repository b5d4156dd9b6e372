/* Calibration that is stopped: whatever the step, the same call goes on and gives the same file, on any number of threads; what it went on from is gone in the end, and a
 * damaged one is named. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <penstock/store.h>
#include <penstock/tune_calibrate.h>

#include "support/golden_model.h"
#include "support/ok.h"
#include "support/temp.h"
#include "support/traffic.h"
#include "tune/kept.h"

enum { N_TEXTS = 24, LENGTH = 30, GIVEN = 18, MAX_TOKENS = 64 };
enum { STEPS = N_TEXTS / (MAX_TOKENS / (LENGTH - 1)) / 2 }; /* of learning: two batches each */

static pst_error err;

typedef struct world {
  const char *model, *out;
  pst_tune_traffic traffic, search, held_out;
  pst_tune_texts texts;
  pst_tune_calibrate_options options;
  int n_polls, stop_at; /* 0: never */
} world;

static bool stops(void *user) {
  world *w = user;
  return ++w->n_polls == w->stop_at;
}

static void open_world(world *w) {
  *w = (world){.model = test_temp_path(test_dir, "model.gguf"), .out = test_temp_path(test_dir, "out.gguf")};
  test_golden_model("llama", w->model);
  w->traffic = test_traffic(1, N_TEXTS, LENGTH, GIVEN);
  w->search = test_traffic(1, N_TEXTS, LENGTH, GIVEN); /* what is learned is better there for sure */
  w->held_out = test_traffic(3, N_TEXTS / 4, LENGTH, GIVEN);
  w->texts = (pst_tune_texts){&w->traffic, &w->traffic, &w->search, &w->held_out, NULL};
  w->options = pst_tune_calibrate_options_default();
  w->options.bits = 5.6;
  w->options.rate = 0.003;
  w->options.max_tokens = MAX_TOKENS;
  w->options.threads = 1;
  w->options.cancelled = stops;
  w->options.user = w;
}

static void close_world(world *w) {
  pst_tune_traffic_done(&w->traffic);
  pst_tune_traffic_done(&w->search);
  pst_tune_traffic_done(&w->held_out);
}

/* Its content; it is gone then. */
static pst_buf take_file(const char *path) {
  char *data = NULL;
  size_t n = 0;
  pst_buf whole = PST_BUF_INIT;
  OK(pst_file_read(path, 1 << 26, &data, &n, &err));
  pst_buf_append(&whole, data, n);
  pst_free(data);
  remove(path);
  return whole;
}

static int run(world *w, int stop_at, pst_tune_calibrate_report *report) {
  w->n_polls = 0;
  w->stop_at = stop_at;
  return pst_tune_calibrate(w->model, w->out, &w->texts, &w->options, report, &err);
}

/* The file of a run that nobody stops. */
static pst_buf undisturbed(world *w, pst_tune_calibrate_report *report) {
  open_world(w);
  OK(run(w, 0, report));
  return take_file(w->out);
}

static pst_store *open_store(const char *home) {
  pst_store *store = NULL;
  OK(pst_dir_make(home, &err));
  OK(pst_store_open(home, &store, &err));
  return store;
}

static int count_checkpoints(const char *home, char *ret_last, size_t n) {
  char *path = pst_path_join(home, "tune");
  DIR *dir = opendir(path);
  int count = 0;
  for (struct dirent *e; dir && (e = readdir(dir));) {
    if (e->d_name[0] == '.') continue;
    count++;
    if (ret_last) (void)snprintf(ret_last, n, "%s/%s", path, e->d_name);
  }
  if (dir) (void)closedir(dir);
  pst_free(path);
  return count;
}

static void stopped_anywhere_it_goes_on(void **state) {
  (void)state;
  world w;
  pst_tune_calibrate_report whole, report;
  pst_buf wanted = undisturbed(&w, &whole);
  int n_polls = w.n_polls, n_runs = 0;
  assert_true(whole.search_after < whole.search_before);
  const char *home = test_temp_path(test_dir, "home");
  pst_store *store = open_store(home);
  w.options.store = store;
  /* the latest first: each step of the learning, then further apart */
  for (int stop_at = n_polls; stop_at >= 1; stop_at -= stop_at > n_polls - STEPS ? 1 : n_polls / 8) {
    assert_int_equal(run(&w, stop_at, &report), PST_E_CANCELLED);
    assert_false(pst_file_exists(w.out));
    w.options.threads = 2;
    OK(run(&w, 0, &report));
    w.options.threads = 1;
    if (stop_at > n_polls - STEPS) assert_int_equal(w.n_polls, n_polls - stop_at);
    pst_buf got = take_file(w.out);
    assert_int_equal(got.n, wanted.n);
    assert_memory_equal(got.data, wanted.data, got.n);
    assert_memory_equal(&report.search_before, &whole.search_before, 2 * sizeof(double));
    assert_memory_equal(&report.plain, &whole.plain, sizeof whole.plain);
    assert_int_equal(count_checkpoints(home, NULL, 0), 0);
    pst_buf_done(&got);
    n_runs++;
  }
  print_message("%d polls, stopped at %d of them\n", n_polls, n_runs);
  pst_buf_done(&wanted);
  pst_store_close(store);
  close_world(&w);
}

/* One that is stopped at every step of the learning; another question does not take its numbers. */
static void stopped_again_and_again(void **state) {
  (void)state;
  world w;
  pst_tune_calibrate_report report;
  pst_buf wanted = undisturbed(&w, &report);
  int n_polls = w.n_polls;
  pst_store *store = open_store(test_temp_path(test_dir, "home"));
  w.options.store = store;
  for (int i = 0; i < STEPS; i++) assert_int_equal(run(&w, i ? 1 : n_polls - STEPS + 1, &report), PST_E_CANCELLED);
  w.options.rate = 0.02;
  assert_int_equal(run(&w, n_polls, &report), PST_E_CANCELLED); /* all of it from the start */
  assert_int_equal(w.n_polls, n_polls);
  w.options.rate = 0.003;
  OK(run(&w, 1, &report));
  assert_int_equal(w.n_polls, 0); /* nothing was left but to write the file */
  pst_buf got = take_file(w.out);
  assert_int_equal(got.n, wanted.n);
  assert_memory_equal(got.data, wanted.data, wanted.n);
  pst_buf_done(&got);
  pst_buf_done(&wanted);
  pst_store_close(store);
  close_world(&w);
}

static void what_is_damaged_is_named(void **state) {
  (void)state;
  world w;
  pst_tune_calibrate_report report;
  char kept[4200];
  open_world(&w);
  OK(run(&w, 0, &report));
  const char *home = test_temp_path(test_dir, "damaged");
  pst_store *store = open_store(home);
  w.options.store = store;
  assert_int_equal(run(&w, w.n_polls, &report), PST_E_CANCELLED);
  for (int left = 2; left > 0; left--) {
    assert_int_equal(count_checkpoints(home, kept, sizeof kept), left);
    pst_buf whole_file = take_file(kept);
    whole_file.data[whole_file.n / 2] ^= 1;
    OK(pst_file_write_atomic(kept, whole_file.data, whole_file.n, &err));
    assert_int_equal(run(&w, 0, &report), PST_E_CORRUPT);
    assert_string_equal(err.place, kept);
    assert_non_null(strstr(err.message, "remove it"));
    remove(kept);
    pst_buf_done(&whole_file);
  }
  OK(run(&w, 0, &report));
  pst_store_close(store);
  close_world(&w);
}

/* The file that holds what was rounded. */
static const char *rounded_file(const char *home, char *path, size_t n) {
  char *folder = pst_path_join(home, "tune");
  DIR *dir = opendir(folder);
  bool found = false;
  for (struct dirent *e; dir && !found && (e = readdir(dir));) {
    char kind[8] = "";
    (void)snprintf(path, n, "%s/%s", folder, e->d_name);
    FILE *f = fopen(path, "rb");
    found = f && fread(kind, 1, sizeof kind, f) == sizeof kind && !memcmp(kind, "pstrnd_1", sizeof kind);
    if (f) (void)fclose(f);
  }
  if (dir) (void)closedir(dir);
  pst_free(folder);
  assert_true(found);
  return path;
}

/* A kept file of the same question and whole, but of another size, is another program's: the run begins anew. */
static void what_has_another_size_is_passed_over(void **state) {
  (void)state;
  world w;
  pst_tune_calibrate_report report;
  pst_buf wanted = undisturbed(&w, &report);
  int n_polls = w.n_polls;
  char kept[4200], key[65];
  const char *home = test_temp_path(test_dir, "sizes");
  pst_store *store = open_store(home);
  w.options.store = store;
  for (int cut = 0; cut < 3; cut++) {
    assert_int_equal(run(&w, n_polls - STEPS + 1, &report), PST_E_CANCELLED);
    pst_buf file = take_file(rounded_file(home, kept, sizeof kept));
    size_t body = 8 + 72, n = file.n - body - 32; /* behind its head, without its sum (kept.c) */
    const size_t sizes[] = {sizeof report, n - 1, sizeof report / 2};
    const pst_str part = {file.data + body, sizes[cut]};
    memcpy(key, file.data + 8, sizeof key);
    OK(pst_tune_kept_write(kept, "pstrnd_1", key, &part, 1, &err));
    OK(run(&w, 0, &report));
    assert_true(w.n_polls > STEPS); /* it rounded again */
    pst_buf got = take_file(w.out);
    assert_int_equal(got.n, wanted.n);
    assert_memory_equal(got.data, wanted.data, got.n);
    assert_int_equal(count_checkpoints(home, NULL, 0), 0);
    pst_buf_done(&got);
    pst_buf_done(&file);
  }
  pst_buf_done(&wanted);
  pst_store_close(store);
  close_world(&w);
}

/* Whichever of the five sets has it, it is told before the work, with its number and what would take it; so is a set that is empty. */
static void texts_that_do_not_fit_are_told_at_once(void **state) {
  (void)state;
  world w;
  pst_tune_calibrate_report report;
  open_world(&w);
  const pst_tune_traffic **const sets[] = {&w.texts.traffic, &w.texts.lessons, &w.texts.search, &w.texts.held_out,
                                           &w.texts.general};
  const char *const names[] = {"calibrate on", "learn from", "search", "held out", "general"};
  for (size_t i = 0; i < PST_ARRAY_LEN(sets); i++) {
    const pst_tune_texts whole = w.texts;
    pst_tune_traffic bad = test_traffic(9, 2, LENGTH, GIVEN), none = {0};
    int32_t tokens[MAX_TOKENS + 4] = {0};
    OK(pst_tune_traffic_add(&bad, tokens, MAX_TOKENS + 2, GIVEN));
    OK(pst_tune_traffic_add(&bad, tokens, MAX_TOKENS + 4, GIVEN));
    *sets[i] = &bad;
    assert_int_equal(run(&w, 0, &report), PST_E_LIMIT);
    assert_int_equal(w.n_polls, 0);
    assert_non_null(strstr(err.message, "text 4 of 4 "));
    assert_non_null(strstr(err.message, names[i]));
    assert_non_null(strstr(err.message, "68 tokens, more than the 64"));
    assert_non_null(strstr(err.message, "--at-once 67 takes it"));
    *sets[i] = &none;
    assert_int_equal(run(&w, 0, &report), PST_E_NO_DATA);
    assert_int_equal(w.n_polls, 0);
    assert_non_null(strstr(err.message, names[i]));
    w.texts = whole;
    pst_tune_traffic_done(&bad);
  }
  assert_false(pst_file_exists(w.out));
  close_world(&w);
}

/* More than any machine has: told with what is free, and nothing is begun. */
static void too_much_memory_is_refused(void **state) {
  (void)state;
  world w;
  pst_tune_calibrate_report report;
  open_world(&w);
  w.options.max_tokens = (size_t)1 << 30;
  assert_int_equal(run(&w, 0, &report), PST_E_NOMEM);
  assert_int_equal(w.n_polls, 0);
  assert_non_null(strstr(err.message, "GB are free"));
  assert_non_null(strstr(err.message, "--at-once"));
  close_world(&w);
}

static void files_to_compare_are_looked_at(void **state) {
  (void)state;
  world w;
  open_world(&w);
  const char *other = test_temp_path(test_dir, "other.gguf"), *junk = test_temp_path(test_dir, "junk.gguf");
  test_golden_model("gemma3", other);
  OK(pst_file_write_atomic(junk, "junk", 4, &err));
  OK(pst_tune_diverge_check(w.model, w.model, &err));
  assert_int_equal(pst_tune_diverge_check(w.model, test_temp_path(test_dir, "none.gguf"), &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_tune_diverge_check(w.model, junk, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_tune_diverge_check(w.model, other, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "other shapes"));
  assert_string_equal(err.place, other);
  close_world(&w);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(stopped_anywhere_it_goes_on, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(stopped_again_and_again, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(what_is_damaged_is_named, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(what_has_another_size_is_passed_over, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(texts_that_do_not_fit_are_told_at_once, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(too_much_memory_is_refused, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(files_to_compare_are_looked_at, test_dir_open, test_dir_close),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
