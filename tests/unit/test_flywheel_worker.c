/* A job's files: they stay while anybody may go on from them, and go with the end of its row, however it ended. What passes does not end it. */
#include <penstock/flywheel.h>
#include <sqlite3.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static pst_str say_number(pst_buf *out, int i, const char *answer) {
  pst_buf_printf(out,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"say %d\"},"
                 "{\"role\":\"assistant\",\"content\":\"%s %d\"}]}\n",
                 i, answer, i);
  return pst_buf_str(out);
}

/* A job that learns [n] lines of a tiny model, one epoch. run: 0: none. */
static int64_t submit_lines(pst_str lines, int64_t run) {
  pst_buf params = PST_BUF_INIT;
  char hash[65];
  const char *model = test_temp_path(test_dir, "tiny.gguf");
  test_tiny_write(model, &(test_tiny){.seed = 4});
  TEST_OK(pst_store_file_put(test_store, lines.data, lines.n, hash, &test_error));
  pst_buf_printf(&params, "{\"target\":\"%s\",\"model\":\"tiny\",\"training_hash\":\"%s\",\"n_epochs\":1,\"run\":%lld}",
                 model, hash, (long long)run);
  int64_t id = submit("fine_tune", pst_buf_text(&params));
  pst_buf_done(&params);
  return id;
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
  pst_buf lines = PST_BUF_INIT;
  bool worked;
  for (int i = 0; i < 12; i++) (void)say_number(&lines, i, "it is");
  int64_t id = submit_lines(pst_buf_str(&lines), 0);
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
}

typedef struct row {
  pst_store_job_state state;
  int64_t attempts;
  char message[300];
} row;

static int see_row(void *user, const pst_store_job *job) {
  row *r = user;
  *r = (row){.state = job->state, .attempts = job->attempts};
  (void)snprintf(r->message, sizeof r->message, "%.*s", (int)job->message.n, job->message.n ? job->message.data : "");
  return 0;
}

static row row_of(int64_t id) {
  row r = {0};
  TEST_OK(pst_store_job_get(test_store, id, see_row, &r, &test_error));
  return r;
}

static bool at_once(void *user) {
  (void)user;
  return true;
}

static bool when_it_waits(void *user) { return strstr(row_of(*(int64_t *)user).message, "tries again") != NULL; }

static char *upload_of(pst_str lines) {
  char hash[65], *path = NULL;
  pst_sha256_hex(lines.data, lines.n, hash);
  TEST_OK(pst_store_upload_path(test_store, pst_str_from(hash), &path, &test_error));
  return path;
}

/* A worker that is asked to end gives its job back as if it had not taken it; what the machine fails is tried again, and counts; neither ends the job. */
static void what_passes_ends_no_job(void **state) {
  (void)state;
  pst_buf lines = PST_BUF_INIT;
  bool worked;
  for (int i = 0; i < 12; i++) (void)say_number(&lines, i, "it is");
  int64_t id = submit_lines(pst_buf_str(&lines), 0);
  const pst_flywheel_options ending = {.threads = 1, .stopped = at_once},
                             waiting = {.threads = 1, .stopped = when_it_waits, .user = &id};
  TEST_OK(pst_flywheel_work(test_store, &ending, &worked, &test_error));
  assert_int_equal(row_of(id).state, PST_STORE_JOB_QUEUED);
  assert_int_equal(row_of(id).attempts, 0);
  char *file = upload_of(pst_buf_str(&lines));
  assert_int_equal(unlink(file), 0);
  assert_int_equal(symlink("/proc/self/mem", file), 0); /* whose first page cannot be read */
  TEST_OK(pst_flywheel_work(test_store, &waiting, &worked, &test_error));
  assert_int_equal(row_of(id).state, PST_STORE_JOB_QUEUED);
  assert_int_equal(row_of(id).attempts, 1);
  assert_non_null(strstr(row_of(id).message, "cannot read"));
  assert_int_equal(unlink(file), 0);
  test_temp_write(file, lines.data, lines.n);
  pst_free(file);
  assert_true(work());
  assert_int_equal(row_of(id).state, PST_STORE_JOB_DONE);
  pst_buf_done(&lines);
}

static int find_start(void *user, int64_t seq, pst_str key, pst_str json) {
  size_t at = pst_str_find(json, PST_STR("job started: "), 0);
  (void)seq, (void)key;
  if (at != SIZE_MAX) (void)snprintf(user, 200, "%.*s", (int)PST_MIN(json.n - at, (size_t)199), json.data + at);
  return 0;
}

/* What is said of a prompt is on one side, also where enough are held out before the file ends. */
static void a_held_out_prompt_is_not_learned(void **state) {
  (void)state;
  enum { PROMPTS = 800 };
  pst_buf lines = PST_BUF_INIT;
  int64_t run = 0;
  char start[200] = "";
  long learned = 0, held_out = 0, more = 0;
  for (int i = 0; i < 2 * PROMPTS; i++) (void)say_number(&lines, i % PROMPTS, i < PROMPTS ? "it is" : "is it");
  TEST_OK(
      pst_store_run_create(test_store, PST_STR("fine_tune"), (pst_str){NULL, 0}, PST_STR("{}"), 1, &run, &test_error));
  int64_t id = submit_lines(pst_buf_str(&lines), run);
  assert_true(work());
  assert_int_equal(state_of(id), PST_STORE_JOB_DONE);
  TEST_OK(pst_store_run_rows(test_store, run, 0, find_start, start, &test_error));
  assert_int_equal(sscanf(start, "job started: %ld examples, %ld held out, %ld more", &learned, &held_out, &more), 3);
  assert_int_equal(held_out, 64);
  assert_int_equal(more, 64); /* each once more, with another answer */
  assert_int_equal(learned + held_out + more, 2 * PROMPTS);
  pst_buf_done(&lines);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, test_store_open, test_store_close)

int main(void) {
  const struct CMUnitTest tests[] = {TEST(files_go_when_the_job_has_ended),
                                     TEST(a_checkpoint_stays_until_the_end_is_written), TEST(what_passes_ends_no_job),
                                     TEST(a_held_out_prompt_is_not_learned)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
