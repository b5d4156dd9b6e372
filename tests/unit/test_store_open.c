/* Opening: what is refused and how, full disk, several openings, upgrades. */
#include <penstock/store.h>
#include <sqlite3.h>

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/temp.h"

static void expect_refused(const char *home, int code, const char *place_end, const char *words) {
  pst_store *store = NULL;
  pst_error err = PST_ERROR_INIT;
  int got = pst_store_open(home, &store, &err);
  if (got != code) fail_msg("code %d (%s), expected %d", got, err.message, code);
  assert_null(store);
  assert_int_equal(err.code, code);
  size_t n = strlen(err.place), m = strlen(place_end);
  if (n < m || strcmp(err.place + n - m, place_end) != 0) fail_msg("place \"%s\"", err.place);
  if (!strstr(err.message, words)) fail_msg("message \"%s\" lacks \"%s\"", err.message, words);
}

static pst_store *must_open(const char *dir) {
  pst_store *store = NULL;
  pst_error err = PST_ERROR_INIT;
  if (pst_store_open(dir, &store, &err)) fail_msg("open: %s: %s", err.place, err.message);
  return store;
}

static void execute(const char *dir, const char *sql) {
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(test_temp_path(dir, "penstock.db"), &db), SQLITE_OK);
  char *message = NULL;
  if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) fail_msg("%s", message);
  sqlite3_close(db);
}

static void home_must_be_a_directory(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  const char *file = test_temp_path(dir, "home");
  test_temp_write(file, "x", 1);
  expect_refused(file, PST_E_BAD_INPUT, "/home", "not a directory");
  expect_refused(test_temp_path(dir, "absent"), PST_E_NOT_FOUND, "/absent", "data directory");
  test_temp_remove(dir);
}

static void database_that_is_a_directory(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  assert_int_equal(mkdir(test_temp_path(dir, "penstock.db"), 0700), 0);
  pst_store *store = NULL;
  pst_error err = PST_ERROR_INIT;
  assert_int_not_equal(pst_store_open(dir, &store, &err), 0);
  assert_null(store);
  test_temp_remove(dir);
}

static void garbage_is_refused_and_kept(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  char garbage[5000];
  for (size_t i = 0; i < sizeof garbage; i++) garbage[i] = (char)(i * 31 + 7);
  const char *path = test_temp_path(dir, "penstock.db");
  test_temp_write(path, garbage, sizeof garbage);
  expect_refused(dir, PST_E_CORRUPT, "penstock.db", "move the file away");
  char *after = NULL;
  size_t n = 0;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_file_read(path, 1 << 20, &after, &n, &err), 0);
  assert_int_equal(n, sizeof garbage);
  assert_memory_equal(after, garbage, n);
  pst_free(after);
  test_temp_write(path, "short", 5);
  expect_refused(dir, PST_E_CORRUPT, "penstock.db", "move the file away");
  test_temp_remove(dir);
}

/* Flips in every region of a real file: refused at opening, or the store works; never a crash, never a wrong sum of money. */
static void damaged_pages(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  pst_error err = PST_ERROR_INIT;
  pst_store_limits none = {PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT};
  int64_t key, r;
  assert_int_equal(pst_store_key_create(store, PST_STR("a"), (pst_str){NULL, 0}, none, 1, &key, NULL, &err), 0);
  for (int i = 0; i < 20; i++) assert_int_equal(pst_store_budget_reserve(store, key, i, 1, &r, &err), 0);
  pst_log_set_level(PST_LOG_OFF);
  pst_store_close(store);
  const char *path = test_temp_path(dir, "penstock.db");
  char *whole = NULL;
  size_t n = 0;
  assert_int_equal(pst_file_read(path, 1 << 24, &whole, &n, &err), 0);
  pst_random random = {7, 7, 0};
  int n_refused = 0;
  for (int i = 0; i < 120; i++) {
    size_t at = i < 100 ? (size_t)i : (size_t)pst_random_below(&random, n);
    char *copy = pst_malloc(n);
    assert_non_null(copy);
    memcpy(copy, whole, n);
    for (size_t j = at; j < n && j < at + 64; j++) copy[j] = (char)(copy[j] ^ 0x5a);
    test_temp_write(path, copy, n);
    pst_free(copy);
    store = NULL;
    err = (pst_error)PST_ERROR_INIT;
    int code = pst_store_open(dir, &store, &err);
    if (code) {
      n_refused++;
      assert_true(err.message[0] != '\0');
      assert_null(store);
    } else {
      pst_store_close(store);
    }
    (void)unlink(test_temp_path(dir, "penstock.db-wal"));
    (void)unlink(test_temp_path(dir, "penstock.db-shm"));
  }
  assert_true(n_refused > 60);
  /* truncated in the middle */
  test_temp_write(path, whole, n / 2 + 100);
  expect_refused(dir, PST_E_CORRUPT, "penstock.db", "move the file away");
  pst_free(whole);
  test_temp_remove(dir);
}

static void other_programs_database(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  execute(dir, "CREATE TABLE theirs(x); INSERT INTO theirs VALUES(1)");
  expect_refused(dir, PST_E_CORRUPT, "penstock.db", "another program");
  execute(dir, "SELECT x FROM theirs");
  test_temp_remove(dir);
}

static void newer_version(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store_close(must_open(dir));
  execute(dir, "PRAGMA user_version=9999");
  expect_refused(dir, PST_E_UNSUPPORTED, "penstock.db", "newer Penstock (schema 9999");
  test_temp_remove(dir);
}

static void file_is_private_and_opens_again(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_error err = PST_ERROR_INIT;
  pst_store *store = must_open(dir);
  assert_string_equal(pst_store_home(store), dir);
  struct stat st;
  assert_int_equal(stat(test_temp_path(dir, "penstock.db"), &st), 0);
  assert_int_equal(st.st_mode & 0777, 0600);
  assert_int_equal(stat(test_temp_path(dir, "penstock.db-wal"), &st), 0);
  assert_int_equal(st.st_mode & 0777, 0600);
  assert_int_equal(pst_store_setting_set(store, PST_STR("a"), PST_STR("1"), &err), 0);
  pst_store *second = must_open(dir);
  char *value = NULL;
  assert_int_equal(pst_store_setting_get(second, PST_STR("a"), &value, &err), 0);
  assert_string_equal(value, "1");
  pst_free(value);
  assert_int_equal(pst_store_setting_set(second, PST_STR("a"), PST_STR("2"), &err), 0);
  assert_int_equal(pst_store_setting_get(store, PST_STR("a"), &value, &err), 0);
  assert_string_equal(value, "2");
  pst_free(value);
  assert_int_equal(pst_store_verify(store, &err), 0);
  pst_store_close(second);
  pst_store_close(store);
  pst_store_close(NULL);
  pst_store_close(must_open(dir));
  test_temp_remove(dir);
}

static void processes_open_a_new_home_at_once(void **state) {
  (void)state;
  for (int round = 0; round < 5; round++) {
    char *dir = test_temp_dir();
    pid_t children[6];
    for (size_t i = 0; i < PST_ARRAY_LEN(children); i++) {
      children[i] = fork();
      if (children[i] == 0) {
        pst_store *store = NULL;
        pst_error err = PST_ERROR_INIT;
        char name[16];
        (void)snprintf(name, sizeof name, "n%zu", i);
        int code = pst_store_open(dir, &store, &err);
        if (!code) code = pst_store_setting_set(store, pst_str_from(name), PST_STR("x"), &err);
        if (code) fprintf(stderr, "# %s: %s\n", err.place, err.message);
        pst_store_close(store);
        _exit(code ? 1 : 0);
      }
    }
    int n_bad = 0;
    for (size_t i = 0; i < PST_ARRAY_LEN(children); i++) {
      int status = 0;
      assert_int_equal(waitpid(children[i], &status, 0), children[i]);
      n_bad += status != 0;
    }
    assert_int_equal(n_bad, 0);
    pst_store *store = must_open(dir);
    for (size_t i = 0; i < PST_ARRAY_LEN(children); i++) {
      char name[16], *value = NULL;
      pst_error err = PST_ERROR_INIT;
      (void)snprintf(name, sizeof name, "n%zu", i);
      assert_int_equal(pst_store_setting_get(store, pst_str_from(name), &value, &err), 0);
      pst_free(value);
    }
    pst_store_close(store);
    test_temp_remove(dir);
  }
}

/* ---- full disk, in a child because the limit cannot be lifted by everyone ---- */

static int set_file_limit(rlim_t bytes) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit)) return -1;
  limit.rlim_cur = bytes;
  return setrlimit(RLIMIT_FSIZE, &limit);
}

#define REQUIRE(condition)                                      \
  do {                                                          \
    if (!(condition)) {                                         \
      fprintf(stderr, "# line %d: %s\n", __LINE__, #condition); \
      _exit(1);                                                 \
    }                                                           \
  } while (0)

static int count_rows(void *user, int64_t seq, pst_str key, pst_str json) {
  (void)seq;
  (void)key;
  (void)json;
  ++*(int *)user;
  return 0;
}

static void full_disk_child(const char *dir) {
  pst_store *store = NULL;
  pst_error err = PST_ERROR_INIT;
  pst_log_set_level(PST_LOG_OFF);
  (void)signal(SIGXFSZ, SIG_IGN);
  REQUIRE(pst_store_open(dir, &store, &err) == 0);
  int64_t run = 0;
  REQUIRE(pst_store_run_create(store, PST_STR("eval"), (pst_str){NULL, 0}, PST_STR("{}"), 1, &run, &err) == 0);
  static char row[20003];
  memset(row, 'a', sizeof row);
  row[0] = row[sizeof row - 1] = '"';
  pst_str json = {row, sizeof row};
  REQUIRE(set_file_limit(400000) == 0);
  int n_stored = 0, code = 0;
  while (n_stored < 1000 && (code = pst_store_run_append(store, run, (pst_str){NULL, 0}, json, true, &err)) == 0)
    n_stored++;
  REQUIRE(n_stored < 1000);
  if (code != PST_E_NO_SPACE) fprintf(stderr, "# %d %s\n", code, err.message);
  REQUIRE(code == PST_E_NO_SPACE);
  REQUIRE(strstr(err.message, "room on the disk") != NULL);
  REQUIRE(strstr(err.place, "penstock.db") != NULL);
  /* a queued write fails later, and the flush says so, once */
  REQUIRE(pst_store_run_append(store, run, (pst_str){NULL, 0}, json, false, &err) == 0);
  REQUIRE(pst_store_flush(store, &err) == PST_E_NO_SPACE);
  REQUIRE(pst_store_stats_get(store).n_failed_queued == 1);
  REQUIRE(pst_store_flush(store, &err) == 0);
  /* with room again everything works, and nothing that was confirmed is lost */
  REQUIRE(set_file_limit(RLIM_INFINITY) == 0);
  REQUIRE(pst_store_run_append(store, run, (pst_str){NULL, 0}, json, true, &err) == 0);
  int n = 0;
  REQUIRE(pst_store_run_rows(store, run, 0, count_rows, &n, &err) == 0);
  REQUIRE(n == n_stored + 1);
  REQUIRE(pst_store_verify(store, &err) == 0);
  pst_store_close(store);
  _exit(0);
}

static void full_disk_new_home_child(const char *dir) {
  pst_store *store = NULL;
  pst_error err = PST_ERROR_INIT;
  (void)signal(SIGXFSZ, SIG_IGN);
  REQUIRE(set_file_limit(8192) == 0);
  REQUIRE(pst_store_open(dir, &store, &err) == PST_E_NO_SPACE);
  REQUIRE(set_file_limit(RLIM_INFINITY) == 0);
  REQUIRE(pst_store_open(dir, &store, &err) == 0);
  pst_store_close(store);
  _exit(0);
}

static void run_child(void (*fn)(const char *dir)) {
  char *dir = test_temp_dir();
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) fn(dir);
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  test_temp_remove(dir);
}

static void full_disk(void **state) {
  (void)state;
  run_child(full_disk_child);
}

static void full_disk_at_first_opening(void **state) {
  (void)state;
  run_child(full_disk_new_home_child);
}

static void out_of_memory_at_opening(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store_close(must_open(dir));
  pst_log_set_level(PST_LOG_OFF);
  int n_failed = 0;
  for (int64_t n = 0; n < 200; n++) {
    pst_store *store = NULL;
    pst_error err = PST_ERROR_INIT;
    pst_memory_fail_after(n);
    int code = pst_store_open(dir, &store, &err);
    pst_memory_fail_after(-1);
    if (code == 0) {
      pst_store_close(store);
      break;
    }
    assert_null(store);
    n_failed++;
  }
  assert_true(n_failed > 3 && n_failed < 200);
  test_temp_remove(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(home_must_be_a_directory),
      cmocka_unit_test(database_that_is_a_directory),
      cmocka_unit_test(garbage_is_refused_and_kept),
      cmocka_unit_test(damaged_pages),
      cmocka_unit_test(other_programs_database),
      cmocka_unit_test(newer_version),
      cmocka_unit_test(file_is_private_and_opens_again),
      cmocka_unit_test(processes_open_a_new_home_at_once),
      cmocka_unit_test(full_disk),
      cmocka_unit_test(full_disk_at_first_opening),
      cmocka_unit_test(out_of_memory_at_opening),
  };
  return cmocka_run_group_tests_name("store open", tests, NULL, NULL);
}
