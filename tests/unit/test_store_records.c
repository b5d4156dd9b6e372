/* Keys, requests, feedback, plans, runs, jobs, settings, answers, files: what goes in comes out, and what must not, does not. */
#include <penstock/store.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/ok.h"
#include "support/temp.h"

static const pst_str NONE = {NULL, 0};
static const pst_store_limits UNLIMITED = {PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT};
static pst_error err;

typedef struct fixture {
  char *dir;
  pst_store *store;
} fixture;

static int set_up(void **state) {
  fixture *f = calloc(1, sizeof *f);
  if (!f) return -1;
  f->dir = test_temp_dir();
  *state = f;
  return pst_store_open(f->dir, &f->store, &err);
}

static int tear_down(void **state) {
  fixture *f = *state;
  pst_store_close(f->store);
  test_temp_remove(f->dir);
  free(f);
  return 0;
}

static pst_store *store_of(void **state) { return ((fixture *)*state)->store; }

static int count(void *user) { return ++*(int *)user, 0; }

/* ---- keys ---- */

static int count_key(void *user, const pst_store_key *key) {
  (void)key;
  return count(user);
}

static void keys(void **state) {
  pst_store *store = store_of(state);
  char secret[PST_STORE_SECRET_BYTES], other[PST_STORE_SECRET_BYTES];
  int64_t id = 0, second = 0, third = 0;
  OK(pst_store_key_create(store, PST_STR("app"), PST_STR("desk"), (pst_store_limits){5, -1, 7}, 11, &id, secret, &err));
  OK(pst_store_key_create(store, PST_STR("app2"), NONE, UNLIMITED, 12, &second, other, &err));
  OK(pst_store_key_create(store, PST_STR("cli"), NONE, UNLIMITED, 13, &third, NULL, &err));
  assert_string_not_equal(secret, other);
  pst_store_key key;
  OK(pst_store_key_check(store, pst_str_from(secret), &key, &err));
  assert_int_equal(key.id, id);
  assert_string_equal(key.name, "app");
  assert_string_equal(key.workload, "desk");
  assert_int_equal(key.limits.day_nusd, 5);
  assert_int_equal(key.limits.month_nusd, PST_STORE_NO_LIMIT);
  assert_int_equal(key.limits.total_nusd, 7);
  assert_int_equal(key.created_ms, 11);
  assert_int_equal(strncmp(key.hint, secret, 12), 0);
  /* each changed character must be noticed, also those that find the row */
  for (size_t i = 0; secret[i]; i++) {
    char wrong[PST_STORE_SECRET_BYTES];
    memcpy(wrong, secret, sizeof wrong);
    wrong[i] = wrong[i] == 'a' ? 'b' : 'a';
    assert_int_equal(pst_store_key_check(store, pst_str_from(wrong), &key, &err), PST_E_DENIED);
  }
  assert_int_equal(pst_store_key_check(store, NONE, &key, &err), PST_E_DENIED);
  assert_int_equal(pst_store_key_check(store, PST_STR("pst-"), &key, &err), PST_E_DENIED);
  assert_int_equal(pst_store_key_create(store, PST_STR("app"), NONE, UNLIMITED, 1, &third, secret, &err), PST_E_EXISTS);
  assert_int_equal(pst_store_key_create(store, PST_STR(""), NONE, UNLIMITED, 1, &third, secret, &err), PST_E_BAD_INPUT);
  assert_int_equal(
      pst_store_key_create(store, PST_STR("x"), NONE, (pst_store_limits){-2, -1, -1}, 1, &third, NULL, &err),
      PST_E_BAD_INPUT);
  OK(pst_store_key_set_limits(store, id, (pst_store_limits){1, 2, 3}, &err));
  OK(pst_store_key_set_workload(store, id, PST_STR("other"), &err));
  OK(pst_store_key_get(store, PST_STR("app"), &key, &err));
  assert_int_equal(key.limits.month_nusd, 2);
  assert_string_equal(key.workload, "other");
  assert_int_equal(pst_store_key_set_limits(store, 99, UNLIMITED, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_key_get(store, PST_STR("nobody"), &key, &err), PST_E_NOT_FOUND);
  OK(pst_store_key_disable(store, id, 20, &err));
  OK(pst_store_key_disable(store, id, 30, &err));
  assert_int_equal(pst_store_key_check(store, pst_str_from(secret), &key, &err), PST_E_DENIED);
  OK(pst_store_key_get(store, PST_STR("app"), &key, &err));
  assert_int_equal(key.disabled_ms, 20);
  OK(pst_store_key_check(store, pst_str_from(other), &key, &err));
  int n = 0;
  OK(pst_store_key_each(store, count_key, &n, &err));
  assert_int_equal(n, 3);
}

/* The secret itself must stand nowhere in the files. */
static void secret_is_not_on_disk(void **state) {
  fixture *f = *state;
  char secret[PST_STORE_SECRET_BYTES];
  int64_t id;
  OK(pst_store_key_create(f->store, PST_STR("app"), NONE, UNLIMITED, 1, &id, secret, &err));
  pst_store_close(f->store);
  f->store = NULL;
  char *data = NULL;
  size_t n = 0;
  OK(pst_file_read(test_temp_path(f->dir, "penstock.db"), 1 << 24, &data, &n, &err));
  pst_str tail = {secret + strlen(secret) - 24, 24};
  assert_true(pst_str_find((pst_str){data, n}, tail, 0) == SIZE_MAX);
  assert_true(pst_str_find((pst_str){data, n}, (pst_str){secret, 12}, 0) !=
              SIZE_MAX); /* the hint is: the search works */
  pst_free(data);
}

/* ---- requests ---- */

static pst_store_request request(const char *id, int64_t time_ms) {
  return (pst_store_request){.completion_id = pst_str_from(id),
                             .time_ms = time_ms,
                             .purpose = PST_STORE_PURPOSE_USER,
                             .workload = PST_STR("desk"),
                             .target = PST_STR("local"),
                             .model = PST_STR("m"),
                             .prompt_tokens = 10,
                             .cached_tokens = 4,
                             .completion_tokens = 3,
                             .ttft_us = 1000,
                             .total_us = 5000,
                             .status = 200,
                             .finish = PST_STR("stop"),
                             .cost_nusd = 50,
                             .keep = PST_STORE_KEEP_CONTENT};
}

typedef struct seen {
  int n;
  char ids[512];
  bool content;
} seen;

static int see(void *user, const pst_store_request *r) {
  seen *s = user;
  s->n++;
  strncat(s->ids, r->completion_id.data, r->completion_id.n);
  strcat(s->ids, " ");
  s->content = s->content || r->input_json.data || r->output_json.data;
  return 0;
}

static int see_first(void *user, const pst_store_request *r) {
  (void)see(user, r);
  return 77;
}

static int check_whole(void *user, const pst_store_request *r) {
  ++*(int *)user;
  assert_true(pst_str_is(r->completion_id, "c1"));
  assert_int_equal(r->time_ms, 100);
  assert_int_equal(r->purpose, PST_STORE_PURPOSE_SHADOW);
  assert_true(pst_str_is(r->workload, "desk"));
  assert_true(pst_str_is(r->plan_hash, "abc"));
  assert_true(pst_str_is(r->target, "local"));
  assert_true(pst_str_is(r->model, "m"));
  assert_int_equal(r->prompt_tokens, 10);
  assert_int_equal(r->cached_tokens, 4);
  assert_int_equal(r->completion_tokens, 3);
  assert_int_equal(r->ttft_us, 1000);
  assert_int_equal(r->total_us, 5000);
  assert_int_equal(r->status, 200);
  assert_true(pst_str_is(r->finish, "stop"));
  assert_int_equal(r->cost_nusd, 50);
  assert_true(pst_str_is(r->input_json, "[\"hi\"]"));
  assert_true(r->output_json.data == NULL);
  return 0;
}

static void requests(void **state) {
  pst_store *store = store_of(state);
  int64_t key = 0;
  OK(pst_store_key_create(store, PST_STR("k"), NONE, UNLIMITED, 1, &key, NULL, &err));
  pst_store_request r = request("c1", 100);
  r.purpose = PST_STORE_PURPOSE_SHADOW;
  r.plan_hash = PST_STR("abc");
  r.input_json = PST_STR("[\"hi\"]");
  OK(pst_store_request_put(store, &r, &err));
  r = request("c2", 200);
  r.key_id = key;
  r.status = 429;
  r.finish = NONE;
  OK(pst_store_request_put(store, &r, &err));
  r = request("c3", 300);
  r.workload = NONE;
  OK(pst_store_request_put(store, &r, &err));
  OK(pst_store_flush(store, &err));
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  seen s = {0, "", false};
  OK(pst_store_request_each(store, &f, see, &s, &err));
  assert_string_equal(s.ids, "c1 c2 c3 ");
  assert_false(s.content);
  f.newest_first = true;
  f.limit = 2;
  s = (seen){0, "", false};
  OK(pst_store_request_each(store, &f, see, &s, &err));
  assert_string_equal(s.ids, "c3 c2 ");
  s = (seen){0, "", false};
  assert_int_equal(pst_store_request_each(store, &f, see_first, &s, &err), 77);
  assert_int_equal(s.n, 1);
  f = (pst_store_request_filter)PST_STORE_REQUEST_FILTER_INIT;
  f.completion_id = PST_STR("c1");
  f.with_content = true;
  int n = 0;
  OK(pst_store_request_each(store, &f, check_whole, &n, &err));
  assert_int_equal(n, 1);
  static const struct {
    const char *expected;
    pst_store_request_filter filter;
  } cases[] = {
      {"c1 c2 ", {.workload = {"desk", 4}, .purpose = -1, .key_id = -1}},
      {"c1 ", {.purpose = PST_STORE_PURPOSE_SHADOW, .key_id = -1}},
      {"c1 c3 ", {.purpose = -1, .key_id = 0}},
      {"c2 ", {.purpose = -1, .key_id = 1}},
      {"c2 ", {.purpose = -1, .key_id = -1, .since_ms = 200, .until_ms = 300}},
      {"c3 ", {.purpose = -1, .key_id = -1, .after_id = 2}},
      {"", {.workload = {"d' OR 1", 7}, .purpose = -1, .key_id = -1}},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    s = (seen){0, "", false};
    OK(pst_store_request_each(store, &cases[i].filter, see, &s, &err));
    assert_string_equal(s.ids, cases[i].expected);
  }
  pst_store_usage u;
  f = (pst_store_request_filter)PST_STORE_REQUEST_FILTER_INIT;
  OK(pst_store_usage_get(store, &f, &u, &err));
  assert_int_equal(u.n_requests, 3);
  assert_int_equal(u.n_failed, 1);
  assert_int_equal(u.prompt_tokens, 30);
  assert_int_equal(u.cached_tokens, 12);
  assert_int_equal(u.completion_tokens, 9);
  assert_int_equal(u.cost_nusd, 150);
  int64_t forgotten = -1;
  OK(pst_store_request_forget_content(store, 100, &forgotten, &err));
  assert_int_equal(forgotten, 0);
  OK(pst_store_request_forget_content(store, 101, &forgotten, &err));
  assert_int_equal(forgotten, 1);
  f.with_content = true;
  s = (seen){0, "", false};
  OK(pst_store_request_each(store, &f, see, &s, &err));
  assert_int_equal(s.n, 3);
  assert_false(s.content);
}

static void bad_records_do_not_stop_good_ones(void **state) {
  pst_store *store = store_of(state);
  pst_log_set_level(PST_LOG_OFF);
  pst_store_request r = request("", 1);
  assert_int_equal(pst_store_request_put(store, &r, &err), PST_E_BAD_INPUT);
  r = request("same", 1);
  OK(pst_store_request_put(store, &r, &err));
  OK(pst_store_request_put(store, &r, &err)); /* queued; fails on its own */
  r = request("later", 2);
  r.key_id = 999; /* no such key */
  OK(pst_store_request_put(store, &r, &err));
  r = request("good", 3);
  OK(pst_store_request_put(store, &r, &err));
  r = request("\xff", 3);
  OK(pst_store_request_put(store, &r, &err));
  assert_int_equal(pst_store_flush(store, &err), PST_E_EXISTS);
  assert_int_equal(pst_store_stats_get(store).n_failed_queued, 3);
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  seen s = {0, "", false};
  OK(pst_store_request_each(store, &f, see, &s, &err));
  assert_string_equal(s.ids, "same good ");
}

/* ---- feedback ---- */

static int count_feedback(void *user, const pst_store_feedback *f) {
  (void)f;
  return count(user);
}

static int check_feedback(void *user, const pst_store_feedback *f) {
  int n = ++*(int *)user;
  assert_true(pst_str_is(f->completion_id, "c1"));
  if (n == 1) {
    assert_int_equal(f->thumbs, -1);
    assert_true(f->has_score && f->score == 0.25);
    assert_true(pst_str_is(f->correction, "better \xc3\xa9"));
    assert_true(f->outcome.data == NULL);
  } else {
    assert_int_equal(f->thumbs, 0);
    assert_false(f->has_score);
    assert_true(pst_str_is(f->outcome, "refund"));
  }
  return 0;
}

static void feedback(void **state) {
  pst_store *store = store_of(state);
  pst_store_request r = request("c1", 1);
  OK(pst_store_request_put(store, &r, &err)); /* not flushed: order of arrival must do */
  pst_store_feedback f = {.completion_id = PST_STR("c1"),
                          .time_ms = 5,
                          .thumbs = -1,
                          .has_score = true,
                          .score = 0.25,
                          .correction = PST_STR("better \xc3\xa9")};
  OK(pst_store_feedback_put(store, &f, &err));
  f = (pst_store_feedback){.completion_id = PST_STR("c1"), .time_ms = 6, .outcome = PST_STR("refund")};
  OK(pst_store_feedback_put(store, &f, &err));
  int n = 0;
  OK(pst_store_feedback_each(store, PST_STR("c1"), 0, check_feedback, &n, &err));
  assert_int_equal(n, 2);
  n = 0;
  OK(pst_store_feedback_each(store, NONE, 1, count_feedback, &n, &err));
  assert_int_equal(n, 1);
  f.completion_id = PST_STR("nobody");
  assert_int_equal(pst_store_feedback_put(store, &f, &err), PST_E_NOT_FOUND);
  assert_non_null(strstr(err.message, "nobody"));
  f = (pst_store_feedback){.completion_id = PST_STR("c1")};
  assert_int_equal(pst_store_feedback_put(store, &f, &err), PST_E_BAD_INPUT);
  f.thumbs = 2;
  assert_int_equal(pst_store_feedback_put(store, &f, &err), PST_E_BAD_INPUT);
  f.thumbs = 1;
  f.has_score = true;
  f.score = (double)NAN;
  assert_int_equal(pst_store_feedback_put(store, &f, &err), PST_E_BAD_INPUT);
}

/* ---- plans ---- */

typedef struct history {
  int n;
  char text[512];
} history;

static int see_event(void *user, const pst_store_plan_event *e) {
  history *h = user;
  h->n++;
  char line[64];
  (void)snprintf(line, sizeof line, "%.*s/%d/%.4s ", (int)e->event.n, e->event.data, (int)e->role,
                 e->plan_hash.data ? e->plan_hash.data : "-");
  strcat(h->text, line);
  return 0;
}

static int count_evidence(void *user, int64_t id, int64_t time_ms, pst_str plan_hash, pst_str json) {
  (void)id;
  (void)time_ms;
  assert_int_equal(plan_hash.n, 64);
  assert_true(pst_str_is(json, "{\"n\":300}"));
  return count(user);
}

static void plans(void **state) {
  pst_store *store = store_of(state);
  char a[65], b[65], c[65], again[65], got[65], *json = NULL;
  OK(pst_store_plan_put(store, PST_STR("{\"schema\": 1, \"x\": 1.0}"), 1, a, &err));
  OK(pst_store_plan_put(store, PST_STR("{\"x\":1,\"schema\":1}"), 2, again, &err));
  assert_string_equal(a, again); /* the canonical form decides */
  char expected[65];
  pst_sha256_hex("{\"schema\":1,\"x\":1}", 18, expected);
  assert_string_equal(a, expected);
  OK(pst_store_plan_put(store, PST_STR("{\"schema\":1,\"x\":2}"), 1, b, &err));
  OK(pst_store_plan_put(store, PST_STR("{\"schema\":1,\"x\":3}"), 1, c, &err));
  assert_int_equal(pst_store_plan_put(store, PST_STR("[1]"), 1, got, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_store_plan_put(store, PST_STR("{\"x\":"), 1, got, &err), PST_E_BAD_INPUT);
  OK(pst_store_plan_get(store, (pst_str){b, 12}, &json, got, &err));
  assert_string_equal(got, b);
  assert_string_equal(json, "{\"schema\":1,\"x\":2}");
  pst_free(json);
  assert_int_equal(pst_store_plan_get(store, PST_STR("00000000"), &json, got, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_plan_get(store, PST_STR("abc"), &json, got, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_store_plan_get(store, PST_STR("XYZXYZXYZ"), &json, got, &err), PST_E_BAD_INPUT);

  pst_str desk = PST_STR("desk");
  assert_int_equal(pst_store_plan_assigned(store, desk, PST_STORE_PLAN_IN_FORCE, &json, got, &err), PST_E_NOT_FOUND);
  int64_t generation = pst_store_plan_generation(store);
  OK(pst_store_plan_assign(store, desk, PST_STORE_PLAN_IN_FORCE, pst_str_from(a), PST_STR("first"), 10, &err));
  assert_true(pst_store_plan_generation(store) > generation);
  assert_int_equal(pst_store_plan_roll_back(store, desk, NULL, NONE, 11, got, &err), PST_E_NOT_FOUND);
  OK(pst_store_plan_assign(store, desk, PST_STORE_PLAN_SHADOW, pst_str_from(b), NONE, 12, &err));
  OK(pst_store_plan_assign(store, desk, PST_STORE_PLAN_IN_FORCE, pst_str_from(b), NONE, 13, &err));
  OK(pst_store_plan_assign(store, desk, PST_STORE_PLAN_IN_FORCE, pst_str_from(b), NONE, 14,
                           &err)); /* the same: nothing to go back to */
  OK(pst_store_plan_assign(store, desk, PST_STORE_PLAN_SHADOW, NONE, NONE, 15, &err));
  OK(pst_store_plan_assign(store, desk, PST_STORE_PLAN_IN_FORCE, pst_str_from(c), NONE, 16, &err));
  assert_int_equal(pst_store_plan_assigned(store, desk, PST_STORE_PLAN_SHADOW, NULL, got, &err), PST_E_NOT_FOUND);
  OK(pst_store_plan_before(store, desk, &json, got, &err));
  assert_string_equal(got, b);
  assert_string_equal(json, "{\"schema\":1,\"x\":2}");
  pst_free(json);
  assert_int_equal(pst_store_plan_roll_back(store, desk, a, NONE, 17, NULL, &err), PST_E_EXISTS);
  OK(pst_store_plan_roll_back(store, desk, b, NONE, 17, got, &err));
  assert_string_equal(got, b);
  OK(pst_store_plan_roll_back(store, desk, NULL, PST_STR("worse"), 18, NULL, &err));
  OK(pst_store_plan_assigned(store, desk, PST_STORE_PLAN_IN_FORCE, &json, got, &err));
  assert_string_equal(got, a);
  assert_string_equal(json, "{\"schema\":1,\"x\":1}");
  pst_free(json);
  assert_int_equal(pst_store_plan_roll_back(store, desk, NULL, NONE, 19, got, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_plan_before(store, desk, NULL, NULL, &err), PST_E_NOT_FOUND);
  char unknown[65];
  memset(unknown, 'a', 64);
  unknown[64] = '\0';
  assert_int_equal(pst_store_plan_assign(store, desk, PST_STORE_PLAN_IN_FORCE, pst_str_from(unknown), NONE, 1, &err),
                   PST_E_NOT_FOUND);
  history h = {0, ""};
  OK(pst_store_plan_history(store, desk, see_event, &h, &err));
  char text[512];
  (void)snprintf(
      text, sizeof text,
      "assign/0/%.4s assign/1/%.4s assign/0/%.4s assign/0/%.4s assign/1/- assign/0/%.4s roll back/0/%.4s roll back/0/%.4s ",
      a, b, b, b, c, b, a);
  assert_string_equal(h.text, text);
  /* In the place of what is expected, or nothing: `a` is in force. */
  assert_int_equal(pst_store_plan_replace(store, desk, b, pst_str_from(c), NONE, 20, &err), PST_E_EXISTS);
  assert_int_equal(pst_store_plan_replace(store, desk, "", pst_str_from(c), NONE, 20, &err), PST_E_EXISTS);
  OK(pst_store_plan_replace(store, desk, b, pst_str_from(a), NONE, 20, &err));
  OK(pst_store_plan_assigned(store, desk, PST_STORE_PLAN_IN_FORCE, NULL, got, &err));
  assert_string_equal(got, a);
  OK(pst_store_plan_replace(store, desk, a, pst_str_from(c), NONE, 21, &err));
  OK(pst_store_plan_assigned(store, desk, PST_STORE_PLAN_IN_FORCE, NULL, got, &err));
  assert_string_equal(got, c);
  OK(pst_store_plan_replace(store, PST_STR("other desk"), "", pst_str_from(c), NONE, 21, &err));
  h = (history){0, ""};
  OK(pst_store_plan_history(store, PST_STR("elsewhere"), see_event, &h, &err));
  assert_int_equal(h.n, 0);

  int64_t id = 0;
  OK(pst_store_evidence_put(store, pst_str_from(a), desk, PST_STR("{\"n\": 300}"), 20, &id, &err));
  OK(pst_store_evidence_put(store, pst_str_from(b), NONE, PST_STR("{\"n\": 300}"), 20, NULL, &err));
  assert_int_equal(pst_store_evidence_put(store, pst_str_from(unknown), desk, PST_STR("{}"), 20, &id, &err),
                   PST_E_NOT_FOUND);
  int n = 0;
  OK(pst_store_evidence_each(store, NONE, NONE, count_evidence, &n, &err));
  assert_int_equal(n, 2);
  n = 0;
  OK(pst_store_evidence_each(store, pst_str_from(a), desk, count_evidence, &n, &err));
  assert_int_equal(n, 1);
}

/* ---- runs ---- */

static int join_rows(void *user, int64_t seq, pst_str key, pst_str json) {
  (void)seq;
  pst_buf *b = user;
  pst_buf_printf(b, "%.*s=%.*s ", (int)key.n, key.data ? key.data : "", (int)json.n, json.data);
  return 0;
}

static int check_run(void *user, const pst_store_run *run) {
  ++*(int *)user;
  assert_true(pst_str_is(run->kind, "eval"));
  assert_true(pst_str_is(run->workload, "desk"));
  assert_true(pst_str_is(run->params, "{\"a\":1,\"seed\":5}"));
  assert_int_equal(run->state, PST_STORE_RUN_DONE);
  assert_true(pst_str_is(run->result, "{\"ok\":true}"));
  assert_int_equal(run->created_ms, 1);
  assert_int_equal(run->updated_ms, 9);
  assert_int_equal(run->n_rows, 4);
  return 0;
}

static int count_run(void *user, const pst_store_run *run) {
  (void)run;
  return count(user);
}

static void runs_are_locked(void **state) {
  pst_store *store = store_of(state);
  pst_str desk = PST_STR("desk");
  pst_store_run_lock lock = PST_STORE_RUN_LOCK_INIT, second = PST_STORE_RUN_LOCK_INIT, third = PST_STORE_RUN_LOCK_INIT;
  OK(pst_store_run_lock_take(store, "eval", desk, &lock, &err));
  assert_int_equal(pst_store_run_lock_take(store, "eval", desk, &second, &err), PST_E_BUSY);
  OK(pst_store_run_lock_take(store, "turn", desk, &third, &err));
  assert_true(pst_file_exists(lock.path));
  pst_store_run_lock_give(&lock);
  assert_false(pst_file_exists(lock.path));
  OK(pst_store_run_lock_take(store, "eval", desk, &second, &err));
  pst_store_run_lock_give(&second);
  pst_store_run_lock_give(&third);
  pst_store_run_lock_give(&third);
}

static void runs(void **state) {
  pst_store *store = store_of(state);
  int64_t run = 0, found = 0, second = 0;
  pst_str eval = PST_STR("eval"), desk = PST_STR("desk"), params = PST_STR("{\"seed\": 5, \"a\": 1}");
  assert_int_equal(pst_store_run_find(store, eval, desk, params, PST_STORE_RUN_ACTIVE, &found, &err), PST_E_NOT_FOUND);
  OK(pst_store_run_create(store, eval, desk, params, 1, &run, &err));
  OK(pst_store_run_find(store, eval, desk, PST_STR("{\"a\":1.0,\"seed\":5}"), PST_STORE_RUN_ACTIVE, &found, &err));
  assert_int_equal(found, run);
  assert_int_equal(pst_store_run_find(store, eval, NONE, params, PST_STORE_RUN_ACTIVE, &found, &err), PST_E_NOT_FOUND);
  OK(pst_store_run_append(store, run, PST_STR("i1"), PST_STR("1"), true, &err));
  OK(pst_store_run_append(store, run, PST_STR("i2"), PST_STR("2"), false, &err));
  OK(pst_store_run_append(store, run, PST_STR("i1"), PST_STR("3"), false, &err)); /* known: dropped */
  OK(pst_store_run_append(store, run, NONE, PST_STR("4"), false, &err));
  OK(pst_store_run_append(store, run, NONE, PST_STR("4"), true, &err));
  assert_int_equal(pst_store_run_append(store, run, NONE, PST_STR("{"), true, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_store_run_append(store, 99, NONE, PST_STR("1"), true, &err), PST_E_NOT_FOUND);
  pst_buf b = PST_BUF_INIT;
  OK(pst_store_run_rows(store, run, 0, join_rows, &b, &err));
  assert_string_equal(pst_buf_text(&b), "i1=1 i2=2 =4 =4 ");
  pst_buf_clear(&b);
  OK(pst_store_run_rows(store, run, 2, join_rows, &b, &err));
  assert_string_equal(pst_buf_text(&b), "=4 =4 ");
  pst_buf_done(&b);
  OK(pst_store_run_end(store, run, PST_STORE_RUN_DONE, PST_STR("{\"ok\": true}"), 9, &err));
  int n = 0;
  OK(pst_store_run_get(store, run, check_run, &n, &err));
  assert_int_equal(n, 1);
  assert_int_equal(pst_store_run_get(store, 99, check_run, &n, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_run_end(store, 99, PST_STORE_RUN_DONE, NONE, 9, &err), PST_E_NOT_FOUND);
  OK(pst_store_run_create(store, PST_STR("calibration"), NONE, PST_STR("null"), 1, &second, &err));
  n = 0;
  OK(pst_store_run_each(store, NONE, NONE, 0, count_run, &n, &err));
  assert_int_equal(n, 2);
  n = 0;
  OK(pst_store_run_each(store, PST_STR("calibration"), NONE, 5, count_run, &n, &err));
  assert_int_equal(n, 1);
}

/* A walk may read the store again from inside. */
typedef struct nested {
  pst_store *store;
  int n;
} nested;

static int read_again(void *user, int64_t seq, pst_str key, pst_str json) {
  (void)seq;
  (void)key;
  (void)json;
  nested *self = user;
  pst_buf b = PST_BUF_INIT;
  int code = pst_store_run_rows(self->store, 1, 0, join_rows, &b, &err);
  self->n += (int)b.n;
  pst_buf_done(&b);
  return code;
}

static void walks_nest(void **state) {
  pst_store *store = store_of(state);
  int64_t run = 0;
  OK(pst_store_run_create(store, PST_STR("eval"), NONE, PST_STR("{}"), 1, &run, &err));
  for (int i = 0; i < 20; i++) OK(pst_store_run_append(store, run, NONE, PST_STR("7"), false, &err));
  OK(pst_store_flush(store, &err));
  nested self = {store, 0};
  OK(pst_store_run_rows(store, run, 0, read_again, &self, &err));
  assert_int_equal(self.n, 20 * 20 * 3);
}

/* ---- jobs ---- */

typedef struct job_copy {
  pst_store_job_state state;
  bool cancel_wanted;
  double progress;
  int64_t attempts, ended_ms;
  char message[100], result[100];
} job_copy;

static int copy_job(void *user, const pst_store_job *j) {
  job_copy *c = user;
  *c = (job_copy){.state = j->state,
                  .cancel_wanted = j->cancel_wanted,
                  .progress = j->progress,
                  .attempts = j->attempts,
                  .ended_ms = j->ended_ms};
  (void)snprintf(c->message, sizeof c->message, "%.*s", (int)j->message.n, j->message.data ? j->message.data : "");
  (void)snprintf(c->result, sizeof c->result, "%.*s", (int)j->result.n, j->result.data ? j->result.data : "");
  return 0;
}

static job_copy get_job(pst_store *store, int64_t id) {
  job_copy c = {0};
  OK(pst_store_job_get(store, id, copy_job, &c, &err));
  return c;
}

static void jobs(void **state) {
  pst_store *store = store_of(state);
  int64_t a = 0, b = 0, taken = -1;
  bool cancel = true;
  OK(pst_store_job_take(store, 3, 1, &taken, &err));
  assert_int_equal(taken, 0);
  OK(pst_store_job_submit(store, PST_STR("tune"), PST_STR("{\"x\": 1}"), 1, &a, &err));
  OK(pst_store_job_submit(store, PST_STR("eval"), PST_STR("{}"), 2, &b, &err));
  OK(pst_store_job_take(store, 3, 3, &taken, &err));
  assert_int_equal(taken, a);
  OK(pst_store_job_report(store, a, 0.5, PST_STR("half"), &cancel, &err));
  assert_false(cancel);
  job_copy j = get_job(store, a);
  assert_int_equal(j.state, PST_STORE_JOB_RUNNING);
  assert_true(j.progress == 0.5);
  assert_string_equal(j.message, "half");
  OK(pst_store_job_cancel(store, a, 4, &err));
  OK(pst_store_job_report(store, a, (double)NAN, NONE, &cancel, &err));
  assert_true(cancel);
  OK(pst_store_job_end(store, a, PST_STORE_JOB_CANCELLED, NONE, NONE, 5, &err));
  assert_int_equal(pst_store_job_report(store, a, 1, NONE, NULL, &err), PST_E_NOT_FOUND);
  OK(pst_store_job_cancel(store, b, 6, &err)); /* still queued: over at once */
  assert_int_equal(get_job(store, b).state, PST_STORE_JOB_CANCELLED);
  assert_int_equal(get_job(store, b).ended_ms, 6);
  OK(pst_store_job_take(store, 3, 7, &taken, &err));
  assert_int_equal(taken, 0);
  OK(pst_store_job_submit(store, PST_STR("eval"), PST_STR("{}"), 2, &b, &err));
  OK(pst_store_job_take(store, 3, 8, &taken, &err));
  assert_int_equal(taken, b);
  for (int counts = 0; counts < 2; counts++) {
    OK(pst_store_job_release(store, b, counts, PST_STR("no memory"), &err));
    assert_int_equal(get_job(store, b).state, PST_STORE_JOB_QUEUED);
    assert_int_equal(get_job(store, b).attempts, counts);
    OK(pst_store_job_take(store, 3, 8, &taken, &err));
    assert_int_equal(taken, b);
  }
  OK(pst_store_job_end(store, b, PST_STORE_JOB_DONE, NONE, PST_STR("[1]"), 9, &err));
  j = get_job(store, b);
  assert_int_equal(j.state, PST_STORE_JOB_DONE);
  assert_true(j.progress == 1);
  assert_string_equal(j.result, "[1]");
  OK(pst_store_job_cancel(store, b, 10, &err)); /* too late, and fine */
  assert_int_equal(get_job(store, b).state, PST_STORE_JOB_DONE);
  assert_int_equal(pst_store_job_cancel(store, 99, 1, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_job_end(store, b, PST_STORE_JOB_RUNNING, NONE, NONE, 1, &err), PST_E_BAD_INPUT);
}

static void killed_workers_job_is_taken_again(void **state) {
  fixture *f = *state;
  int64_t id = 0, taken = 0;
  OK(pst_store_job_submit(f->store, PST_STR("tune"), PST_STR("{}"), 1, &id, &err));
  pst_store_close(f->store);
  f->store = NULL;
  for (int attempt = 1; attempt <= 2; attempt++) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      pst_store *mine = NULL;
      if (pst_store_open(f->dir, &mine, &err) || pst_store_job_take(mine, 2, 2, &taken, &err) || taken != id) _exit(1);
      _exit(0); /* without closing: as good as killed */
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
  }
  OK(pst_store_open(f->dir, &f->store, &err));
  assert_int_equal(get_job(f->store, id).attempts, 2);
  OK(pst_store_job_take(f->store, 2, 3, &taken, &err));
  assert_int_equal(taken, 0);
  job_copy j = get_job(f->store, id);
  assert_int_equal(j.state, PST_STORE_JOB_FAILED);
  assert_non_null(strstr(j.message, "2 tries"));
}

/* ---- settings, prices, answers, files ---- */

static int join_settings(void *user, pst_str name, pst_str value) { return join_rows(user, 0, name, value); }

static int append_price(void *user, pst_str provider, pst_str model, pst_store_price price) {
  char *list = user;
  size_t n = strlen(list);
  snprintf(list + n, 128 - n, "%.*s/%.*s=%lld,%lld,%lld ", (int)provider.n, provider.data, (int)model.n, model.data,
           (long long)price.input, (long long)price.cached_input, (long long)price.output);
  return 0;
}

static void settings_and_prices(void **state) {
  pst_store *store = store_of(state);
  char *value = NULL;
  assert_int_equal(pst_store_setting_get(store, PST_STR("a"), &value, &err), PST_E_NOT_FOUND);
  OK(pst_store_setting_set(store, PST_STR("b"), PST_STR("x"), &err));
  OK(pst_store_setting_set(store, PST_STR("a"), PST_STR("1"), &err));
  OK(pst_store_setting_set(store, PST_STR("a"), PST_STR(""), &err));
  OK(pst_store_setting_get(store, PST_STR("a"), &value, &err));
  assert_string_equal(value, "");
  pst_free(value);
  pst_buf b = PST_BUF_INIT;
  OK(pst_store_setting_each(store, join_settings, &b, &err));
  assert_string_equal(pst_buf_text(&b), "a= b=x ");
  pst_buf_done(&b);
  OK(pst_store_setting_set(store, PST_STR("a"), NONE, &err));
  assert_int_equal(pst_store_setting_get(store, PST_STR("a"), &value, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_setting_set(store, PST_STR("a"), PST_STR("\xc3"), &err), PST_E_BAD_INPUT);

  int64_t price = 0;
  assert_int_equal(pst_store_machine_price_get(store, &price, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_machine_price_set(store, -1, &err), PST_E_BAD_INPUT);
  OK(pst_store_machine_price_set(store, 85000000, &err));
  OK(pst_store_machine_price_get(store, &price, &err));
  assert_int_equal(price, 85000000);

  pst_store_price p = {0, 0, 0};
  assert_int_equal(pst_store_price_get(store, PST_STR("acme"), PST_STR("big"), &p, &err), PST_E_NOT_FOUND);
  OK(pst_store_price_set(store, PST_STR("acme"), PST_STR("*"), (pst_store_price){1, -1, 3}, &err));
  OK(pst_store_price_set(store, PST_STR("acme"), PST_STR("big"), (pst_store_price){4, 5, 6}, &err));
  OK(pst_store_price_get(store, PST_STR("acme"), PST_STR("big"), &p, &err));
  assert_int_equal(p.output, 6);
  OK(pst_store_price_get(store, PST_STR("acme"), PST_STR("small"), &p, &err));
  assert_int_equal(p.cached_input, PST_STORE_NO_LIMIT);
  assert_int_equal(p.output, 3);
  char list[128] = "";
  OK(pst_store_price_each(store, append_price, list, &err));
  assert_string_equal(list, "acme/*=1,-1,3 acme/big=4,5,6 ");
  assert_int_equal(pst_store_price_set(store, PST_STR("acme"), PST_STR("big"), (pst_store_price){-1, 5, 6}, &err),
                   PST_E_BAD_INPUT);
}

static void answers(void **state) {
  pst_store *store = store_of(state);
  char *answer = NULL, *meta = NULL;
  size_t n = 0;
  pst_str eval = PST_STR("eval"), key = PST_STR("k1");
  assert_int_equal(pst_store_answer_get(store, eval, key, &answer, &n, &meta, &err), PST_E_NOT_FOUND);
  OK(pst_store_answer_put(store, eval, key, (pst_str){"a\0b", 3}, PST_STR("{\"t\":1}"), 5, &err));
  OK(pst_store_answer_put(store, PST_STR("other"), key, PST_STR("x"), NONE, 5, &err));
  OK(pst_store_flush(store, &err));
  OK(pst_store_answer_get(store, eval, key, &answer, &n, &meta, &err));
  assert_int_equal(n, 3);
  assert_memory_equal(answer, "a\0b", 3);
  assert_string_equal(meta, "{\"t\":1}");
  pst_free(answer);
  pst_free(meta);
  OK(pst_store_answer_put(store, eval, key, PST_STR(""), NONE, 6, &err));
  OK(pst_store_flush(store, &err));
  OK(pst_store_answer_get(store, eval, key, &answer, &n, &meta, &err));
  assert_int_equal(n, 0);
  assert_null(meta);
  pst_free(answer);
  int64_t forgotten = 0;
  OK(pst_store_answer_forget(store, eval, 6, &forgotten, &err));
  assert_int_equal(forgotten, 0);
  OK(pst_store_answer_forget(store, eval, 7, &forgotten, &err));
  assert_int_equal(forgotten, 1);
  OK(pst_store_answer_get(store, PST_STR("other"), key, &answer, &n, NULL, &err));
  assert_string_equal(answer, "x");
  pst_free(answer);
}

static void files(void **state) {
  fixture *f = *state;
  char hash[65], again[65], expected[65], *path = NULL, *data = NULL;
  size_t n = 0;
  OK(pst_store_file_put(f->store, "hello", 5, hash, &err));
  OK(pst_store_file_put(f->store, "hello", 5, again, &err));
  pst_sha256_hex("hello", 5, expected);
  assert_string_equal(hash, expected);
  assert_string_equal(again, expected);
  OK(pst_store_file_path(f->store, pst_str_from(hash), &path, &err));
  OK(pst_file_read(path, 100, &data, &n, &err));
  assert_string_equal(data, "hello");
  pst_free(data);
  pst_free(path);
  const char *loose = test_temp_path(f->dir, "loose");
  test_temp_write(loose, "world", 5);
  OK(pst_store_file_adopt(f->store, loose, hash, &err));
  assert_false(pst_file_exists(loose));
  OK(pst_store_file_path(f->store, pst_str_from(hash), &path, &err));
  pst_free(path);
  assert_int_equal(pst_store_file_adopt(f->store, loose, hash, &err), PST_E_NOT_FOUND);
  memset(hash, '0', 64);
  path = NULL;
  assert_int_equal(pst_store_file_path(f->store, pst_str_from(hash), &path, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_file_path(f->store, PST_STR("../penstock.db"), &path, &err), PST_E_BAD_INPUT);
  assert_null(path);
}

/* What clients send lies by itself: deleting it takes nothing that something else keeps, nor what another upload of the same bytes has; what a killed process left goes when the
 * store is opened next. */
static void uploads(void **state) {
  fixture *f = *state;
  char hash[65], stray[400], *path = NULL;
  int64_t ids[2];
  pst_store *other = NULL;
  OK(pst_store_file_put(f->store, "hello", 5, hash, &err));
  for (int i = 0; i < 2; i++)
    OK(pst_store_upload_put(f->store, PST_STR("a"), PST_STR("fine-tune"), 0, PST_STR("hello"), 1, &ids[i], &err));
  OK(pst_store_upload_delete(f->store, ids[0], -1, &err));
  OK(pst_store_upload_path(f->store, pst_str_from(hash), &path, &err));
  assert_non_null(strstr(path, "/uploads/"));
  OK(pst_store_upload_delete(f->store, ids[1], -1, &err));
  assert_false(pst_file_exists(path));
  assert_int_equal(pst_store_upload_delete(f->store, ids[1], -1, &err), PST_E_NOT_FOUND);
  (void)snprintf(stray, sizeof stray, "%s", path);
  pst_free(path);
  OK(pst_store_file_path(f->store, pst_str_from(hash), &path, &err));
  pst_free(path);
  test_temp_write(stray, "hello", 5);
  OK(pst_store_open(pst_store_home(f->store), &other, &err));
  assert_false(pst_file_exists(stray));
  pst_store_close(other);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      T(keys),
      T(secret_is_not_on_disk),
      T(requests),
      T(bad_records_do_not_stop_good_ones),
      T(feedback),
      T(plans),
      T(runs),
      T(runs_are_locked),
      T(walks_nest),
      T(jobs),
      T(killed_workers_job_is_taken_again),
      T(settings_and_prices),
      T(answers),
      T(files),
      T(uploads),
  };
  return cmocka_run_group_tests_name("store records", tests, NULL, NULL);
}
