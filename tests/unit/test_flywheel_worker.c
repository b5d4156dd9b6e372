/* A job's files: they stay while anybody may go on from them, and go with the end of its row, however it ended. */
#include <penstock/flywheel.h>
#include <sqlite3.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/store.h"
#include "support/tiny_model.h"

static const pst_flywheel_options options = {.threads = 1};

static int64_t submit(const char *kind, const char *params) {
  int64_t id = 0;
  TEST_OK(pst_store_job_submit(test_store, pst_str_from(kind), pst_str_from(params), 1, &id, &test_error));
  return id;
}

static const char *file_of(int64_t id) {
  char name[64];
  (void)snprintf(name, sizeof name, "jobs/ftjob-%lld.checkpoint", (long long)id);
  return test_temp_path(test_dir, name);
}

static void make_file(int64_t id) {
  TEST_OK(pst_dir_make(test_temp_path(test_dir, "jobs"), &test_error));
  test_temp_write(file_of(id), "numbers", 7);
}

static bool work(void) {
  bool worked = false;
  TEST_OK(pst_flywheel_work(test_store, &options, &worked, &test_error));
  return worked;
}

static int see_state(void *user, const pst_store_job *job) {
  *(pst_store_job_state *)user = job->state;
  return 0;
}

static pst_store_job_state state_of(int64_t id) {
  pst_store_job_state state = PST_STORE_JOB_QUEUED;
  TEST_OK(pst_store_job_get(test_store, id, see_state, &state, &test_error));
  return state;
}

static void files_go_when_the_job_has_ended(void **state) {
  (void)state;
  pst_store *other = NULL;
  int64_t running = submit("other", "{}"), taken = 0;
  TEST_OK(pst_store_open(test_dir, &other, &test_error));
  TEST_OK(pst_store_job_take(other, 20, 1, &taken, &test_error));
  assert_int_equal(taken, running);
  int64_t cancelled = submit("other", "{}"), failing = submit("other", "{}");
  TEST_OK(pst_store_job_cancel(test_store, cancelled, 1, &test_error));
  make_file(running);
  make_file(cancelled);
  make_file(failing);
  test_temp_write(test_temp_path(test_dir, "jobs/ftjob-notes"), "mine", 4);
  assert_true(work());
  assert_int_equal(state_of(failing), PST_STORE_JOB_FAILED);
  assert_false(pst_file_exists(file_of(failing)) || pst_file_exists(file_of(cancelled)));
  assert_true(pst_file_exists(file_of(running)));
  pst_store_close(other); /* it is in the queue again */
  TEST_OK(pst_store_job_cancel(test_store, running, 1, &test_error));
  assert_false(work());
  assert_false(pst_file_exists(file_of(running)));
  assert_true(pst_file_exists(test_temp_path(test_dir, "jobs/ftjob-notes")));
}

static void change_database(const char *sql) {
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(test_temp_path(test_dir, "penstock.db"), &db), SQLITE_OK);
  (void)sqlite3_busy_timeout(db, 10000);
  assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
  sqlite3_close(db);
}

/* Trained, and the end cannot be written down: whoever takes the job again finds what was trained. */
static void a_checkpoint_stays_until_the_end_is_written(void **state) {
  (void)state;
  pst_buf lines = PST_BUF_INIT, params = PST_BUF_INIT;
  char hash[65];
  bool worked;
  const char *model = test_temp_path(test_dir, "tiny.gguf");
  test_tiny_write(model, &(test_tiny){.seed = 4});
  for (int i = 0; i < 12; i++)
    pst_buf_printf(&lines,
                   "{\"messages\":[{\"role\":\"user\",\"content\":\"say %d\"},"
                   "{\"role\":\"assistant\",\"content\":\"it is %d\"}]}\n",
                   i, i);
  TEST_OK(pst_store_file_put(test_store, lines.data, lines.n, hash, &test_error));
  pst_buf_printf(&params, "{\"target\":\"%s\",\"model\":\"tiny\",\"training_hash\":\"%s\",\"n_epochs\":1}", model,
                 hash);
  int64_t id = submit("fine_tune", pst_buf_text(&params));
  change_database(
      "CREATE TRIGGER broken BEFORE UPDATE ON jobs WHEN new.state = 2 BEGIN SELECT raise(ABORT, 'disk full'); END");
  assert_int_not_equal(pst_flywheel_work(test_store, &options, &worked, &test_error), 0);
  assert_int_equal(state_of(id), PST_STORE_JOB_RUNNING);
  assert_true(pst_file_exists(file_of(id)));
  change_database("DROP TRIGGER broken; UPDATE jobs SET state = 0, owner = NULL");
  assert_true(work());
  assert_int_equal(state_of(id), PST_STORE_JOB_DONE);
  assert_false(pst_file_exists(file_of(id)));
  pst_buf_done(&lines);
  pst_buf_done(&params);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, test_store_open, test_store_close)

int main(void) {
  const struct CMUnitTest tests[] = {TEST(files_go_when_the_job_has_ended),
                                     TEST(a_checkpoint_stays_until_the_end_is_written)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
