/* Budgets: the guarantee under threads, processes and kill -9. */
#include <penstock/store.h>
#include <sqlite3.h>

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/temp.h"

#define NOW INT64_C(1709208000000) /* 2024-02-29 12:00 UTC */
#define DAY INT64_C(86400000)

static const pst_store_limits UNLIMITED = {PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT};

static pst_store *must_open(const char *dir) {
  pst_store *store = NULL;
  pst_error err = PST_ERROR_INIT;
  if (pst_store_open(dir, &store, &err)) fail_msg("open: %s", err.message);
  return store;
}

static int64_t must_key(pst_store *store, const char *name, pst_store_limits limits) {
  int64_t id = 0;
  pst_error err = PST_ERROR_INIT;
  if (pst_store_key_create(store, pst_str_from(name), (pst_str){NULL, 0}, limits, NOW, &id, NULL, &err))
    fail_msg("key: %s", err.message);
  return id;
}

static int64_t must_reserve(pst_store *store, int64_t key, int64_t bound, int64_t now) {
  int64_t r = -1;
  pst_error err = PST_ERROR_INIT;
  if (pst_store_budget_reserve(store, key, bound, now, &r, &err)) fail_msg("reserve: %s", err.message);
  return r;
}

static pst_store_budget must_budget(pst_store *store, int64_t key, int64_t now) {
  pst_store_budget b = {0};
  pst_error err = PST_ERROR_INIT;
  if (pst_store_flush(store, &err) || pst_store_budget_get(store, key, now, &b, &err))
    fail_msg("budget: %s", err.message);
  return b;
}

/* A number straight from the file, past the code under test. */
static int64_t query(const char *dir, const char *sql) {
  sqlite3 *db = NULL;
  sqlite3_stmt *stmt = NULL;
  assert_int_equal(sqlite3_open_v2(test_temp_path(dir, "penstock.db"), &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
  int64_t value = sqlite3_column_int64(stmt, 0);
  sqlite3_finalize(stmt);
  sqlite3_close(db);
  return value;
}

#define SUM_OF_ROWS "SELECT coalesce(sum(coalesce(actual_nusd, reserved_nusd)), 0) FROM ledger"
#define TOTAL_COUNTER "SELECT coalesce(sum(committed_nusd), 0) FROM budget_counters WHERE period = 0"
#define DAY_COUNTER "SELECT coalesce(sum(committed_nusd), 0) FROM budget_counters WHERE period = 2"

static void reserve_settle_release(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  int64_t key = must_key(store, "a", (pst_store_limits){PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, 100});
  int64_t r = -1;
  pst_error err = PST_ERROR_INIT;
  int64_t first = must_reserve(store, key, 60, NOW);
  assert_int_equal(pst_store_budget_reserve(store, key, 41, NOW, &r, &err), PST_E_BUDGET);
  assert_int_equal(r, -1);
  assert_non_null(strstr(err.message, "0.00000004 is left"));
  assert_string_equal(err.place, "a");
  int64_t second = must_reserve(store, key, 40, NOW);
  pst_store_budget b = must_budget(store, key, NOW);
  assert_int_equal(b.total_nusd, 100);
  assert_int_equal(b.open_nusd, 100);
  assert_int_equal(b.n_open, 2);
  assert_int_equal(pst_store_budget_settle(store, first, 10, &err), 0);
  assert_int_equal(pst_store_budget_release(store, second, &err), 0);
  b = must_budget(store, key, NOW);
  assert_int_equal(b.total_nusd, 10);
  assert_int_equal(b.open_nusd, 0);
  (void)must_reserve(store, key, 90, NOW);
  /* settling again, or what does not exist, changes nothing */
  assert_int_equal(pst_store_budget_settle(store, first, 0, &err), 0);
  assert_int_equal(pst_store_budget_settle(store, 9999, 5, &err), 0);
  assert_int_equal(must_budget(store, key, NOW).total_nusd, 100);
  /* zero always fits, even at the limit; a negative sum never */
  (void)must_reserve(store, key, 0, NOW);
  assert_int_equal(pst_store_budget_reserve(store, key, -1, NOW, &r, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_store_budget_settle(store, first, -1, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_store_budget_reserve(store, 77, 1, NOW, &r, &err), PST_E_NOT_FOUND);
  assert_int_equal(must_reserve(store, 0, INT64_MAX, NOW), 0);
  assert_int_equal(pst_store_budget_settle(store, 0, 5, &err), 0);
  pst_store_close(store);
  test_temp_remove(dir);
}

static void overrun_is_charged_and_flagged(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  pst_log_set_level(PST_LOG_OFF);
  int64_t key = must_key(store, "a", (pst_store_limits){PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, 100});
  pst_error err = PST_ERROR_INIT;
  int64_t r = must_reserve(store, key, 50, NOW), other = -1;
  assert_int_equal(pst_store_budget_settle(store, r, 120, &err), 0);
  pst_store_budget b = must_budget(store, key, NOW);
  assert_int_equal(b.total_nusd, 120);
  assert_int_equal(b.n_overruns, 1);
  assert_int_equal(pst_store_budget_reserve(store, key, 1, NOW, &other, &err), PST_E_BUDGET);
  assert_non_null(strstr(err.message, "only $0 is left"));
  pst_store_close(store);
  test_temp_remove(dir);
}

static void periods_turn_over(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  int64_t key = must_key(store, "a", (pst_store_limits){100, 150, 1000}), r = 0;
  pst_error err = PST_ERROR_INIT;
  int64_t midnight = NOW + DAY / 2; /* 2024-03-01 00:00 */
  int64_t late = must_reserve(store, key, 100, midnight - 1);
  assert_int_equal(pst_store_budget_reserve(store, key, 1, midnight - 1, &r, &err), PST_E_BUDGET);
  assert_non_null(strstr(err.message, "daily"));
  /* a new day and, as it happens, month */
  (void)must_reserve(store, key, 100, midnight);
  pst_store_budget b = must_budget(store, key, midnight);
  assert_int_equal(b.day_nusd, 100);
  assert_int_equal(b.month_nusd, 100);
  assert_int_equal(b.total_nusd, 200);
  /* the monthly limit bites on the next day */
  assert_int_equal(pst_store_budget_reserve(store, key, 51, midnight + DAY, &r, &err), PST_E_BUDGET);
  assert_non_null(strstr(err.message, "monthly"));
  /* settling after midnight moves the day of the call, not today */
  assert_int_equal(pst_store_budget_settle(store, late, 30, &err), 0);
  b = must_budget(store, key, midnight);
  assert_int_equal(b.day_nusd, 100);
  assert_int_equal(b.total_nusd, 130);
  assert_int_equal(must_budget(store, key, midnight - 1).day_nusd, 30);
  assert_int_equal(must_budget(store, key, midnight - 1).month_nusd, 30);
  /* before 1970 and far ahead nothing breaks */
  (void)must_reserve(store, key, 1, -1);
  (void)must_reserve(store, key, 1, INT64_C(4102444800000));
  pst_store_close(store);
  test_temp_remove(dir);
}

static void sums_cannot_wrap(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  int64_t key = must_key(store, "a", UNLIMITED), r = 0;
  int64_t limited = must_key(store, "b", (pst_store_limits){PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, INT64_MAX});
  pst_error err = PST_ERROR_INIT;
  (void)must_reserve(store, key, INT64_MAX, NOW);
  assert_int_equal(pst_store_budget_reserve(store, key, 1, NOW, &r, &err), PST_E_LIMIT);
  (void)must_reserve(store, limited, INT64_MAX - 1, NOW);
  assert_int_equal(pst_store_budget_reserve(store, limited, 2, NOW, &r, &err), PST_E_BUDGET);
  (void)must_reserve(store, limited, 1, NOW);
  pst_store_close(store);
  test_temp_remove(dir);
}

static void disabled_key_cannot_spend(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  int64_t key = must_key(store, "a", UNLIMITED), r = 0;
  pst_error err = PST_ERROR_INIT;
  int64_t open = must_reserve(store, key, 5, NOW);
  assert_int_equal(pst_store_key_disable(store, key, NOW, &err), 0);
  assert_int_equal(pst_store_budget_reserve(store, key, 1, NOW, &r, &err), PST_E_DENIED);
  assert_int_equal(pst_store_budget_settle(store, open, 3, &err), 0);
  assert_int_equal(must_budget(store, key, NOW).total_nusd, 3);
  pst_store_close(store);
  test_temp_remove(dir);
}

/* ---- asynchronous ---- */

typedef struct arrivals {
  pst_queue *queue;
} arrivals;

typedef struct arrival {
  int code;
  int64_t reservation;
} arrival;

static void arrived(void *user, int code, int64_t reservation, const pst_error *err) {
  (void)err;
  arrival *a = malloc(sizeof *a);
  if (!a) abort();
  *a = (arrival){code, reservation};
  if (pst_queue_push(((arrivals *)user)->queue, a)) abort();
}

static void asynchronous_form(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  int64_t key = must_key(store, "a", (pst_store_limits){PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, 50});
  pst_error err = PST_ERROR_INIT;
  arrivals box = {pst_queue_create()};
  for (int i = 0; i < 100; i++)
    assert_int_equal(pst_store_budget_reserve_async(store, key, 1, NOW, arrived, &box, &err), 0);
  assert_int_equal(pst_store_budget_reserve_async(store, 0, 1, NOW, arrived, &box, &err), 0);
  int n_granted = 0, n_refused = 0, n_free = 0;
  for (int i = 0; i < 101; i++) {
    arrival *a = pst_queue_pop(box.queue, -1);
    assert_non_null(a);
    if (a->code == PST_E_BUDGET)
      n_refused++;
    else if (a->reservation)
      n_granted++;
    else
      n_free++;
    free(a);
  }
  assert_int_equal(n_granted, 50);
  assert_int_equal(n_refused, 50);
  assert_int_equal(n_free, 1);
  pst_store_close(store);
  pst_queue_free(box.queue);
  test_temp_remove(dir);
}

/* ---- threads ---- */

typedef struct spender {
  pst_store *store;
  int64_t key, granted, settled;
  uint64_t seed;
  int n_calls;
  int bad;
} spender;

static void *spend(void *arg) {
  spender *s = arg;
  pst_random r = {s->seed, 0, 0};
  for (int i = 0; i < s->n_calls; i++) {
    int64_t bound = (int64_t)pst_random_below(&r, 20), reservation = 0;
    pst_error err = PST_ERROR_INIT;
    int code = pst_store_budget_reserve(s->store, s->key, bound, NOW, &reservation, &err);
    if (code == PST_E_BUDGET) continue;
    if (code) {
      s->bad = code;
      break;
    }
    s->granted++;
    if (pst_random_below(&r, 4) == 0) continue; /* stays open */
    int64_t actual = bound ? (int64_t)pst_random_below(&r, (uint64_t)bound + 1) : 0;
    code = pst_random_below(&r, 8) ? pst_store_budget_settle(s->store, reservation, actual, &err)
                                   : pst_store_budget_release(s->store, reservation, &err);
    if (code) s->bad = code;
  }
  return NULL;
}

static void threads_share_a_budget(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  enum { N = 8 };
  const int64_t limit = 2000;
  int64_t key = must_key(store, "a", (pst_store_limits){limit, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT});
  spender spenders[N];
  pthread_t threads[N];
  for (int i = 0; i < N; i++) {
    spenders[i] = (spender){.store = store, .key = key, .seed = (uint64_t)i + 1, .n_calls = 120};
    assert_int_equal(pthread_create(&threads[i], NULL, spend, &spenders[i]), 0);
  }
  for (int round = 0; round < 50; round++) {
    pst_store_budget b;
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_store_budget_get(store, key, NOW, &b, &err), 0);
    assert_true(b.day_nusd <= limit);
    assert_true(b.open_nusd <= b.day_nusd);
  }
  int64_t granted = 0;
  for (int i = 0; i < N; i++) {
    pthread_join(threads[i], NULL);
    assert_int_equal(spenders[i].bad, 0);
    granted += spenders[i].granted;
  }
  pst_store_budget b = must_budget(store, key, NOW);
  assert_true(b.day_nusd <= limit);
  assert_int_equal(query(dir, "SELECT count(*) FROM ledger"), granted);
  assert_int_equal(query(dir, SUM_OF_ROWS), b.day_nusd);
  assert_int_equal(query(dir, TOTAL_COUNTER), b.total_nusd);
  pst_store_stats stats = pst_store_stats_get(store);
  assert_true(stats.n_writes > stats.n_commits); /* groups formed */
  pst_store_close(store);
  /* closing settles what this process left open, at the full reserve */
  assert_int_equal(query(dir, "SELECT count(*) FROM ledger WHERE state = 0"), 0);
  assert_int_equal(query(dir, "SELECT count(*) FROM owners"), 0);
  assert_int_equal(query(dir, SUM_OF_ROWS), query(dir, TOTAL_COUNTER));
  test_temp_remove(dir);
}

/* ---- processes ---- */

static void *spend_all(void *arg) {
  spender *s = arg;
  for (;;) {
    int64_t reservation;
    pst_error err = PST_ERROR_INIT;
    int code = pst_store_budget_reserve(s->store, s->key, 7, NOW, &reservation, &err);
    if (code == PST_E_BUDGET) return NULL;
    if (code || pst_store_budget_settle(s->store, reservation, 7, &err)) {
      fprintf(stderr, "# %s: %s\n", err.place, err.message);
      s->bad = 1;
      return NULL;
    }
    s->granted++;
  }
}

static void processes_share_a_budget(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  const int64_t limit = 1000;
  int64_t key = must_key(store, "a", (pst_store_limits){PST_STORE_NO_LIMIT, limit, PST_STORE_NO_LIMIT});
  pst_store_close(store);
  enum { PROCESSES = 3, THREADS = 3 };
  pid_t children[PROCESSES];
  for (int p = 0; p < PROCESSES; p++) {
    children[p] = fork();
    assert_true(children[p] >= 0);
    if (children[p] == 0) {
      pst_store *mine = NULL;
      pst_error err = PST_ERROR_INIT;
      if (pst_store_open(dir, &mine, &err)) {
        fprintf(stderr, "# %s: %s\n", err.place, err.message);
        _exit(2);
      }
      spender spenders[THREADS];
      pthread_t threads[THREADS];
      int bad = 0;
      for (int i = 0; i < THREADS; i++) {
        spenders[i] = (spender){.store = mine, .key = key};
        if (pthread_create(&threads[i], NULL, spend_all, &spenders[i])) _exit(3);
      }
      for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        bad |= spenders[i].bad;
      }
      pst_store_close(mine);
      _exit(bad);
    }
  }
  for (int p = 0; p < PROCESSES; p++) {
    int status = 0;
    assert_int_equal(waitpid(children[p], &status, 0), children[p]);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  assert_int_equal(query(dir, SUM_OF_ROWS), limit / 7 * 7);
  assert_int_equal(query(dir, DAY_COUNTER), limit / 7 * 7);
  test_temp_remove(dir);
}

typedef struct report {
  int64_t reservation, bound;
} report;

typedef struct reporter {
  pst_store *store;
  int64_t key;
  int fd;
} reporter;

static void *reserve_for_ever(void *arg) {
  const reporter *self = arg;
  for (int64_t i = 1;; i++) {
    report r = {0, i % 9};
    pst_error err = PST_ERROR_INIT;
    if (pst_store_budget_reserve(self->store, self->key, r.bound, NOW, &r.reservation, &err)) _exit(4);
    if (write(self->fd, &r, sizeof r) != sizeof r) _exit(5); /* below PIPE_BUF: whole or not at all */
    if (i % 3 == 0 && pst_store_budget_settle(self->store, r.reservation, r.bound / 2, &err)) _exit(6);
  }
  return NULL;
}

static void child_that_gets_killed(const char *dir, int64_t key, int fd) {
  pst_store *store = NULL;
  pst_error err = PST_ERROR_INIT;
  if (pst_store_open(dir, &store, &err)) _exit(2);
  reporter self = {store, key, fd};
  pthread_t threads[4];
  for (int i = 0; i < 4; i++)
    if (pthread_create(&threads[i], NULL, reserve_for_ever, &self)) _exit(3);
  pause();
  _exit(7);
}

static void killed_process_is_settled_in_full(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *store = must_open(dir);
  int64_t key = must_key(store, "a", UNLIMITED);
  pst_store_close(store);
  pst_log_set_level(PST_LOG_OFF);
  for (int round = 0; round < 4; round++) {
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      close(fds[0]);
      child_that_gets_killed(dir, key, fds[1]);
    }
    close(fds[1]);
    report r;
    int64_t known[4096][2];
    size_t n = 0;
    while (n < 4096 && read(fds[0], &r, sizeof r) == (ssize_t)sizeof r) {
      known[n][0] = r.reservation;
      known[n][1] = r.bound;
      if (++n == (size_t)(40 + 37 * round)) kill(child, SIGKILL);
    }
    close(fds[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    store = must_open(dir);
    pst_store_budget b = must_budget(store, key, NOW);
    assert_int_equal(b.n_open, 0);
    assert_int_equal(query(dir, SUM_OF_ROWS), b.total_nusd);
    assert_int_equal(query(dir, "SELECT count(*) FROM ledger WHERE state = 3 AND actual_nusd <> reserved_nusd"), 0);
    assert_int_equal(query(dir, "SELECT count(*) FROM owners"), 1);
    for (size_t i = 0; i < n; i++) { /* what a caller was told is durable is there */
      char sql[160];
      (void)snprintf(sql, sizeof sql,
                     "SELECT count(*) FROM ledger WHERE id = %lld AND reserved_nusd = %lld AND state IN (1, 3)",
                     (long long)known[i][0], (long long)known[i][1]);
      assert_int_equal(query(dir, sql), 1);
    }
    pst_store_close(store);
  }
  test_temp_remove(dir);
}

static void living_process_is_left_alone(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  pst_store *first = must_open(dir);
  int64_t key = must_key(first, "a", UNLIMITED);
  int64_t r = must_reserve(first, key, 9, NOW);
  pst_store *second = must_open(dir);
  assert_int_equal(must_budget(second, key, NOW).n_open, 1);
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_store_budget_settle(first, r, 2, &err), 0);
  assert_int_equal(must_budget(first, key, NOW).total_nusd, 2);
  pst_store_close(second);
  pst_store_close(first);
  test_temp_remove(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reserve_settle_release),
      cmocka_unit_test(overrun_is_charged_and_flagged),
      cmocka_unit_test(periods_turn_over),
      cmocka_unit_test(sums_cannot_wrap),
      cmocka_unit_test(disabled_key_cannot_spend),
      cmocka_unit_test(asynchronous_form),
      cmocka_unit_test(threads_share_a_budget),
      cmocka_unit_test(processes_share_a_budget),
      cmocka_unit_test(killed_process_is_settled_in_full),
      cmocka_unit_test(living_process_is_left_alone),
  };
  return cmocka_run_group_tests_name("store ledger", tests, NULL, NULL);
}
