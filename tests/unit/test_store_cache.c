/* Answers that are given again: found by key, gone with their record however it ends, bounded, whole after a kill. */
#include <penstock/store.h>

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/store.h"

static const pst_str NONE = {NULL, 0};

static pst_store_request record(const char *id, const char *key, const char *subject, int64_t time_ms) {
  return (pst_store_request){.completion_id = pst_str_from(id),
                             .time_ms = time_ms,
                             .purpose = PST_STORE_PURPOSE_USER,
                             .workload = PST_STR("desk"),
                             .target = PST_STR("local"),
                             .model = PST_STR("m"),
                             .prompt_tokens = 7,
                             .completion_tokens = 3,
                             .status = 200,
                             .finish = PST_STR("stop"),
                             .keep = PST_STORE_KEEP_CONTENT,
                             .subject = pst_str_from(subject),
                             .input_json = PST_STR("{}"),
                             .output_json = pst_str_from(id), /* so that an answer says whose it is */
                             .reuse = {.key = pst_str_from(key), .max_entries = 1000}};
}

static void put(pst_store_request r) {
  TEST_OK(pst_store_request_put(test_store, &r, &test_error));
  TEST_OK(pst_store_flush(test_store, &test_error));
}

static void put_simple(const char *id, const char *key, const char *subject) { put(record(id, key, subject, 1000)); }

/* What is found under a key at a time: the id of the record, or "". */
static const char *found_at(const char *key, int64_t since_ms, int64_t now_ms) {
  static char text[64];
  pst_store_cached a = {0};
  int code = pst_store_cache_get(test_store, pst_str_from(key), since_ms, now_ms, &a, &test_error);
  if (code && code != PST_E_NOT_FOUND) fail_msg("%d: %s", code, test_error.message);
  snprintf(text, sizeof text, "%s", code ? "" : a.output_json);
  if (!code) {
    assert_string_equal(a.model, "m");
    assert_int_equal(a.prompt_tokens, 7);
    assert_int_equal(a.completion_tokens, 3);
  }
  pst_store_cached_done(&a);
  return text;
}

static const char *found(const char *key) { return found_at(key, 0, 1000); }

static int64_t entries(const char *workload) {
  int64_t n = -1;
  TEST_OK(pst_store_cache_count(test_store, workload ? pst_str_from(workload) : NONE, &n, &test_error));
  return n;
}

static void a_record_is_found_by_its_key(void **state) {
  (void)state;
  put_simple("a1", "k1", "ann");
  put_simple("a2", "k2", "ann");
  assert_string_equal(found("k1"), "a1");
  assert_string_equal(found("k2"), "a2");
  assert_string_equal(found("k3"), "");
  put_simple("a3", "k1", "bob"); /* two asked at the same time: the later one stays */
  assert_string_equal(found("k1"), "a3");
  assert_int_equal(entries("desk"), 2);
  assert_int_equal(entries("other"), 0);
  assert_string_equal(found_at("k1", 1000, 1000), "a3");
  assert_string_equal(found_at("k1", 1001, 2000), ""); /* too old for this plan */
}

static void what_may_not_be_kept_is_not_found(void **state) {
  (void)state;
  static const pst_store_keep keeps[] = {PST_STORE_KEEP_NOTHING, PST_STORE_KEEP_METADATA};
  for (size_t i = 0; i < PST_ARRAY_LEN(keeps); i++) {
    pst_store_request r = record(i ? "m1" : "n1", "k1", "ann", 1000);
    r.keep = keeps[i];
    put(r);
    assert_int_equal(entries(NULL), 0);
  }
  pst_store_request no_key = record("a1", "k1", "ann", 1000), outside = record("a2", "k1", "ann", 1000);
  no_key.reuse.key = NONE;
  put(no_key);
  outside.workload = NONE;
  put(outside);
  assert_int_equal(entries(NULL), 0);
}

/* Whatever ends the content of a record ends what leads to it, and nothing else. */
static void an_entry_goes_with_its_record(void **state) {
  (void)state;
  pst_store_erasure e;
  pst_store_request old = record("b1", "k3", "bob", 1000);
  old.expires_ms = 5000;
  put_simple("a1", "k1", "ann");
  put_simple("a2", "k2", "ann");
  put(old);
  put_simple("c1", "k4", "cid");
  put_simple("d1", "k5", "dan");
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  pst_store_erasure_done(&e);
  assert_string_equal(found("k1"), "");
  assert_string_equal(found("k2"), "");
  TEST_OK(pst_store_records_erase(test_store, NONE, PST_STR("c1"), 9, &e, &test_error));
  pst_store_erasure_done(&e);
  assert_string_equal(found("k4"), "");
  assert_string_equal(found_at("k3", 0, 4999), "b1");
  assert_string_equal(found_at("k3", 0, 5000), ""); /* expired, and not pruned yet */
  assert_int_equal(entries("desk"), 2);
  TEST_OK(pst_store_records_prune(test_store, 5000, &e, &test_error));
  pst_store_erasure_done(&e);
  assert_int_equal(entries("desk"), 1);
  assert_string_equal(found("k5"), "d1");
  int64_t n = 0;
  TEST_OK(pst_store_request_forget_content(test_store, 2000, &n, &test_error));
  assert_int_equal(entries(NULL), 0);
  TEST_OK(pst_store_verify(test_store, &test_error));
}

static int see_id(void *user, const pst_store_request *r) {
  *(int64_t *)user = r->id;
  return 0;
}

static int64_t id_of(const char *completion_id) {
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  int64_t id = 0;
  f.completion_id = pst_str_from(completion_id);
  TEST_OK(pst_store_request_each(test_store, &f, see_id, &id, &test_error));
  return id;
}

/* Where examples that prompts show are withdrawn, the same plan answers otherwise: what it said before is no longer its answer, nor what is under way. */
static void withdrawn_data_empties_the_cache(void **state) {
  (void)state;
  pst_store_erasure e;
  char hash[65];
  put_simple("a1", "k1", "ann");
  put_simple("b1", "k2", "bob");
  int64_t id = id_of("a1");
  const pst_store_data_set set = {.kind = PST_STR("training"), .n_lines = 1, .created_ms = 5};
  TEST_OK(pst_store_data_set_put(test_store, &set, PST_STR("x\n"), true, &id, 1, hash, &test_error));
  pst_store_request shown = record("b2", "k3", "bob", 1000);
  shown.reuse.examples = pst_str_from(hash);
  put(shown);
  assert_string_equal(found("k3"), "b2");
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  assert_int_equal(e.n_sets, 1);
  pst_store_erasure_done(&e);
  assert_int_equal(entries(NULL), 0);
  shown.completion_id = PST_STR("b3"); /* answered meanwhile, with the examples that are gone */
  put(shown);
  assert_int_equal(entries(NULL), 0);
  put_simple("b4", "k3", "bob"); /* without */
  assert_string_equal(found("k3"), "b4");
}

static void those_unused_for_longest_go_first(void **state) {
  (void)state;
  char id[16], key[16];
  for (int i = 0; i < 5; i++) {
    snprintf(id, sizeof id, "a%d", i);
    snprintf(key, sizeof key, "k%d", i);
    pst_store_request r = record(id, key, "ann", 1000 + i);
    r.reuse.max_entries = 3;
    if (i == 3) { /* k0 is asked for again before the bound is met */
      pst_store_request hit = record("h0", "k0", "bob", 2000);
      hit.reuse.hit = true;
      put(hit);
    }
    put(r);
    if (i == 1) { /* another workload has room of its own */
      pst_store_request other = record("o1", "ko", "ann", 1);
      other.workload = PST_STR("other");
      put(other);
    }
  }
  assert_int_equal(entries("desk"), 3);
  assert_string_equal(found("k0"), "a0"); /* the hit moved it up and did not take its place */
  assert_string_equal(found("k1"), "");
  assert_string_equal(found("k2"), "");
  assert_string_equal(found("k4"), "a4");
  assert_string_equal(found_at("ko", 0, 1000), "o1");
}

/* A large cache is bounded to within a part of its size that is known. */
static void a_large_cache_is_bounded(void **state) {
  (void)state;
  enum { BOUND = 640, N = 4 * BOUND };
  char id[16], key[65];
  int64_t most = 0;
  for (int i = 0; i < N; i++) {
    snprintf(id, sizeof id, "a%d", i);
    pst_sha256_hex(id, strlen(id), key);
    pst_store_request r = record(id, key, "ann", 1000 + i);
    r.reuse.max_entries = BOUND;
    TEST_OK(pst_store_request_put(test_store, &r, &test_error));
    if (i % 16 == 0) {
      TEST_OK(pst_store_flush(test_store, &test_error));
      most = PST_MAX(most, entries("desk"));
    }
  }
  assert_true(most >= BOUND && most <= BOUND + BOUND / 8);
}

/* A process that is killed while it writes: what is found afterwards is a whole record. */
static void a_kill_leaves_no_entry_without_its_answer(void **state) {
  (void)state;
  enum { ROUNDS = 4 };
  int n_found = 0, n_missing = 0;
  char id[16], key[16];
  for (int round = 0; round < ROUNDS; round++) {
    pst_store_close(test_store);
    test_store = NULL;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
      if (pst_store_open(test_dir, &test_store, &test_error)) _exit(1);
      for (int i = 0;; i++) {
        snprintf(id, sizeof id, "r%d-%d", round, i);
        snprintf(key, sizeof key, "k%d-%d", round, i);
        pst_store_request r = record(id, key, "ann", 1000);
        r.reuse.max_entries = 1000000;
        if (pst_store_request_put(test_store, &r, &test_error)) usleep(100);
      }
    }
    usleep(30000);
    kill(pid, SIGKILL);
    int status = 0;
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status));
    TEST_OK(pst_store_open(test_dir, &test_store, &test_error));
    int64_t n = entries(NULL), n_records = 0;
    pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
    pst_store_usage usage;
    TEST_OK(pst_store_usage_get(test_store, &f, &usage, &test_error));
    n_records = usage.n_requests;
    assert_int_equal(n, n_records); /* each has its record, each record its entry */
    for (int i = 0; i < 50; i++) {
      snprintf(id, sizeof id, "r%d-%d", round, i);
      snprintf(key, sizeof key, "k%d-%d", round, i);
      const char *said = found(key);
      if (*said) assert_string_equal(said, id);
      n_found += *said != 0;
      n_missing += *said == 0;
    }
    TEST_OK(pst_store_verify(test_store, &test_error));
  }
  if (n_found == 0) fail_msg("every child was killed before it had written (%d keys missing)", n_missing);
}

#define T(name) cmocka_unit_test_setup_teardown(name, test_store_open, test_store_close)

int main(void) {
  const struct CMUnitTest tests[] = {
      T(a_record_is_found_by_its_key),
      T(what_may_not_be_kept_is_not_found),
      T(an_entry_goes_with_its_record),
      T(withdrawn_data_empties_the_cache),
      T(those_unused_for_longest_go_first),
      T(a_large_cache_is_bounded),
      T(a_kill_leaves_no_entry_without_its_answer),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
