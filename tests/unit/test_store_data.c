/* Records as data: consent, retention, erasure down to the bytes, data sets and their lineage, guarded items. */
#include <penstock/store.h>
#include <sqlite3.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/store.h"

static const pst_str NONE = {NULL, 0};

static pst_store_request record(const char *id, const char *subject, pst_store_keep keep) {
  return (pst_store_request){.completion_id = pst_str_from(id),
                             .time_ms = 1000,
                             .purpose = PST_STORE_PURPOSE_USER,
                             .workload = PST_STR("desk"),
                             .target = PST_STR("local"),
                             .prompt_tokens = 7,
                             .status = 200,
                             .finish = PST_STR("stop"),
                             .keep = keep,
                             .train = true,
                             .subject = pst_str_from(subject),
                             .input_json =
                                 PST_STR("{\"messages\":[{\"role\":\"user\",\"content\":\"quixotic-zebra\"}]}"),
                             .output_json = PST_STR("{\"choices\":[{\"index\":0,\"text\":\"plummeting-yak\"}]}")};
}

static void put(const char *id, const char *subject, pst_store_keep keep) {
  pst_store_request r = record(id, subject, keep);
  TEST_OK(pst_store_request_put(test_store, &r, &test_error));
  TEST_OK(pst_store_flush(test_store, &test_error));
}

/* Whether bytes stand in the database file or its log. */
static bool on_disk(const char *bytes) {
  static const char *const names[] = {"penstock.db", "penstock.db-wal"};
  bool found = false;
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++) {
    char *data = NULL;
    size_t n = 0;
    if (pst_file_read(test_temp_path(test_dir, names[i]), 1 << 26, &data, &n, &test_error)) continue;
    found = found || pst_str_find((pst_str){data, n}, pst_str_from(bytes), 0) != SIZE_MAX;
    pst_free(data);
  }
  return found;
}

typedef struct seen {
  int n;
  int64_t id, prompt_tokens;
  bool content, train;
  char subject[64];
} seen;

static int see(void *user, const pst_store_request *r) {
  seen *s = user;
  s->n++;
  s->id = r->id;
  s->prompt_tokens = r->prompt_tokens;
  s->content = r->input_json.data || r->output_json.data;
  s->train = r->train;
  snprintf(s->subject, sizeof s->subject, "%.*s", (int)r->subject.n, r->subject.data ? r->subject.data : "");
  return 0;
}

static seen look(const char *id) {
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  seen s = {0};
  f.completion_id = pst_str_from(id);
  if (!id) f.completion_id.data = NULL;
  f.origin = PST_STORE_ANY_ORIGIN;
  f.with_content = true;
  TEST_OK(pst_store_request_each(test_store, &f, see, &s, &test_error));
  return s;
}

/* ---- consent ---- */

static void consent_is_only_lowered(void **state) {
  (void)state;
  for (int a = -1; a <= 1; a++)
    for (int b = -1; b <= 1; b++)
      for (int t = 0; t < 4; t++) {
        pst_store_consent x = {(pst_store_keep)a, t & 1, 0}, y = {(pst_store_keep)b, t & 2, 0};
        pst_store_consent c = pst_store_consent_lower(x, y);
        assert_int_equal(c.keep, PST_MIN(a, b));
        assert_int_equal(c.train, t == 3 && a == 1 && b == 1);
      }
  static const int days[][3] = {{0, 0, 0}, {0, 5, 5}, {5, 0, 5}, {3, 9, 3}, {9, 3, 3}};
  for (size_t i = 0; i < PST_ARRAY_LEN(days); i++) {
    pst_store_consent c = pst_store_consent_lower((pst_store_consent){.retention_days = days[i][0]},
                                                  (pst_store_consent){.retention_days = days[i][1]});
    assert_int_equal(c.retention_days, days[i][2]);
  }
  pst_store_keep keep = PST_STORE_KEEP_METADATA;
  assert_true(pst_store_keep_from(PST_STR("nothing"), &keep) && keep == PST_STORE_KEEP_NOTHING);
  assert_false(pst_store_keep_from(PST_STR("all"), &keep));
}

static void a_key_has_its_own_consent(void **state) {
  (void)state;
  pst_store_key key;
  int64_t id = 0;
  const pst_store_consent wanted = {PST_STORE_KEEP_CONTENT, true, 30};
  char secret[PST_STORE_SECRET_BYTES];
  TEST_OK(pst_store_key_create(test_store, PST_STR("app"), NONE, (pst_store_limits){-1, -1, -1}, 1, &id, secret,
                               &test_error));
  TEST_OK(pst_store_key_get(test_store, PST_STR("app"), &key, &test_error));
  assert_false(key.has_consent);
  TEST_OK(pst_store_key_set_consent(test_store, id, &wanted, &test_error));
  TEST_OK(pst_store_key_check(test_store, pst_str_from(secret), &key, &test_error));
  assert_true(key.has_consent && key.consent.keep == PST_STORE_KEEP_CONTENT && key.consent.train);
  assert_int_equal(key.consent.retention_days, 30);
  TEST_OK(pst_store_key_set_consent(test_store, id, NULL, &test_error));
  TEST_OK(pst_store_key_get(test_store, PST_STR("app"), &key, &test_error));
  assert_false(key.has_consent);
  static const pst_store_consent bad[] = {
      {PST_STORE_KEEP_METADATA, true, 0}, {PST_STORE_KEEP_CONTENT, true, -1}, {PST_STORE_KEEP_CONTENT, true, 36501}};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++)
    assert_int_equal(pst_store_key_set_consent(test_store, id, &bad[i], &test_error), PST_E_BAD_INPUT);
  assert_int_equal(pst_store_key_set_consent(test_store, 99, &wanted, &test_error), PST_E_NOT_FOUND);
}

static void what_may_not_be_kept_is_not(void **state) {
  (void)state;
  put("none", "ann", PST_STORE_KEEP_NOTHING);
  assert_int_equal(look("none").n, 0);
  put("meta", "ann", PST_STORE_KEEP_METADATA);
  seen s = look("meta");
  assert_int_equal(s.n, 1);
  assert_false(s.content || s.train);
  assert_string_equal(s.subject, "ann");
  assert_false(on_disk("quixotic-zebra") || on_disk("plummeting-yak") || on_disk("none"));
  const pst_store_feedback text = {.completion_id = PST_STR("meta"), .correction = PST_STR("better")};
  assert_int_equal(pst_store_feedback_put(test_store, &text, &test_error), PST_E_UNSUPPORTED);
  assert_string_equal(test_error.place, "correction");
  const pst_store_feedback verb = {.completion_id = PST_STR("meta"), .retried = true};
  TEST_OK(pst_store_feedback_put(test_store, &verb, &test_error));
  put("whole", "ann", PST_STORE_KEEP_CONTENT);
  assert_true(look("whole").content && look("whole").train);
  assert_true(on_disk("quixotic-zebra")); /* so the search finds what is there */
}

/* ---- data sets ---- */

typedef struct set_seen {
  int n;
  int64_t n_lines;
  pst_store_data_state state;
  char replaced_by[65];
} set_seen;

static int see_set(void *user, const pst_store_data_set *set) {
  set_seen *s = user;
  s->n++;
  s->n_lines = set->n_lines;
  s->state = set->state;
  snprintf(s->replaced_by, sizeof s->replaced_by, "%.*s", (int)set->replaced_by.n,
           set->replaced_by.data ? set->replaced_by.data : "");
  return 0;
}

static int64_t id_of(const char *completion_id) { return look(completion_id).id; }

static void make_set(const char *text, bool by_line, const int64_t *ids, size_t n, char hash[65]) {
  const pst_store_data_set set = {.kind = PST_STR("training"),
                                  .workload = PST_STR("desk"),
                                  .n_lines = (int64_t)n,
                                  .params = PST_STR("{}"),
                                  .created_ms = 5};
  TEST_OK(pst_store_data_set_put(test_store, &set, pst_str_from(text), by_line, ids, n, hash, &test_error));
}

static char *text_of(const char *hash) {
  char *path = NULL, *text = NULL;
  size_t n = 0;
  if (pst_store_file_path(test_store, pst_str_from(hash), &path, &test_error)) return NULL;
  TEST_OK(pst_file_read(path, 1 << 20, &text, &n, &test_error));
  pst_free(path);
  return text;
}

static int see_line(void *user, int64_t line, int64_t record_id) {
  int64_t *lines = user;
  assert_true(line >= 0 && line < 8);
  lines[line] = record_id;
  return 0;
}

static int count_hash(void *user, pst_str hash) {
  (void)hash;
  ++*(int *)user;
  return 0;
}

static int count_stale(void *user, pst_str hash, pst_str kind, pst_str name, bool stale) {
  (void)hash;
  (void)name;
  assert_true(pst_str_is(kind, "adapter"));
  *(int *)user += stale;
  return 0;
}

static bool is_stale(const char *name) {
  pst_store_adapter a;
  TEST_OK(pst_store_adapter_get(test_store, pst_str_from(name), &a, &test_error));
  return a.stale;
}

static void put_adapter(const char *name, char file, int64_t now_ms, const char *set, const char *from) {
  pst_store_adapter a = {.base = "m", .rank = 4, .bytes = 9, .created_ms = now_ms};
  const pst_store_adapter_origin origin = {.data_set = set, .from = from};
  (void)snprintf(a.name, sizeof a.name, "%s", name);
  memset(a.file, file, 64);
  memset(a.base_sha256, 'b', 64);
  TEST_OK(pst_store_adapter_put(test_store, &a, &origin, &test_error));
}

/* An adapter, and what began from it, is stale by its data; another that has its name later is not. */
static void adapters_become_stale(void **state) {
  (void)state;
  char hash[65], other[65];
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  put("b1", "bob", PST_STORE_KEEP_CONTENT);
  const int64_t ids[] = {id_of("a1"), id_of("b1")};
  make_set("one\ntwo\n", true, ids, 2, hash);
  make_set("two\n", true, ids + 1, 1, other);
  put_adapter("first", '1', 5, hash, NULL);
  put_adapter("second", '2', 6, other, "first");
  put_adapter("third", '3', 7, other, NULL);
  pst_store_adapter a = {.name = "unknown", .base = "m", .rank = 4, .bytes = 9, .created_ms = 8};
  memset(a.file, '4', 64);
  memset(a.base_sha256, 'b', 64);
  const pst_store_adapter_origin nowhere = {.data_set = "feedfeedfeed"};
  assert_int_equal(pst_store_adapter_put(test_store, &a, &nowhere, &test_error), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_adapter_get(test_store, pst_str_from("unknown"), &a, &test_error), PST_E_NOT_FOUND);
  assert_false(is_stale("first") || is_stale("second") || is_stale("third"));
  pst_store_erasure e;
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  assert_int_equal(e.n_uses, 2);
  pst_store_erasure_done(&e);
  assert_true(is_stale("first") && is_stale("second"));
  assert_false(is_stale("third"));
  put_adapter("late", '5', 10, hash, NULL); /* the set went while it was trained */
  assert_true(is_stale("late"));
  TEST_OK(pst_store_adapter_remove(test_store, PST_STR("first"), &test_error));
  put_adapter("first", '6', 11, other, NULL);
  assert_false(is_stale("first"));
}

static void erasure_reaches_everything(void **state) {
  (void)state;
  char hash[65], other[65], loose[65];
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  put("b1", "bob", PST_STORE_KEEP_CONTENT);
  put("a2", "ann", PST_STORE_KEEP_CONTENT);
  put("b2", "bob", PST_STORE_KEEP_CONTENT);
  const pst_store_feedback f = {.completion_id = PST_STR("a1"), .correction = PST_STR("velvet-gnu")};
  TEST_OK(pst_store_feedback_put(test_store, &f, &test_error));
  const int64_t ids[] = {id_of("a1"), id_of("b1"), id_of("a2"), id_of("b2")};
  make_set("one\ntwo\nthree\nfour\n", true, ids, 4, hash);
  make_set("two\nfour\n", true, (const int64_t[]){ids[1], ids[3]}, 2, other);
  make_set("anything\n", false, ids, 2, loose);
  TEST_OK(pst_store_data_set_used(test_store, pst_str_from(hash), PST_STR("adapter"), PST_STR("ad1"), 6, &test_error));
  TEST_OK(pst_store_data_set_used(test_store, pst_str_from(other), PST_STR("adapter"), PST_STR("ad2"), 6, &test_error));
  pst_store_adapter adapter = {.name = "ad0", .base = "m", .rank = 4, .bytes = 9, .created_ms = 1};
  memset(adapter.file, 'a', 64);
  memset(adapter.base_sha256, 'b', 64);
  memcpy(adapter.data, hash, sizeof adapter.data);
  TEST_OK(pst_store_adapter_put(test_store, &adapter, NULL, &test_error)); /* names its data: no use need be noted */
  int n = 0;
  TEST_OK(pst_store_data_set_of_record(test_store, ids[0], count_hash, &n, &test_error));
  assert_int_equal(n, 2);

  pst_store_erasure e;
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  assert_int_equal(e.n_records, 2);
  assert_int_equal(e.n_sets, 2);
  assert_string_equal(e.sets[0].hash, hash);
  assert_int_equal(e.sets[0].n_lines, 2);
  assert_string_equal(e.sets[0].replaced_by, other); /* the same lines have the same hash */
  assert_string_equal(e.sets[1].hash, loose);
  assert_string_equal(e.sets[1].replaced_by, "");
  assert_int_equal(e.n_uses, 2);
  assert_string_equal(e.uses[0].name, "ad0");
  assert_string_equal(e.uses[1].name, "ad1");
  assert_false(e.in_log);
  pst_store_erasure_done(&e);

  n = 0;
  TEST_OK(pst_store_data_set_uses(test_store, NONE, count_stale, &n, &test_error));
  assert_int_equal(n, 2);
  assert_int_equal(look("a1").n, 0);
  assert_int_equal(look("b1").n, 1);
  assert_false(on_disk("velvet-gnu"));
  assert_null(text_of(hash));
  assert_null(text_of(loose));
  char *kept = text_of(other);
  assert_non_null(kept);
  assert_string_equal(kept, "two\nfour\n");
  pst_free(kept);
  set_seen s = {0};
  TEST_OK(pst_store_data_set_get(test_store, (pst_str){hash, 12}, see_set, &s, &test_error));
  assert_true(s.state == PST_STORE_DATA_WITHDRAWN);
  assert_string_equal(s.replaced_by, other);
  int64_t lines[8] = {0};
  TEST_OK(pst_store_data_set_records(test_store, pst_str_from(other), see_line, lines, &test_error));
  assert_true(lines[0] == ids[1] && lines[1] == ids[3] && lines[2] == 0);

  TEST_OK(pst_store_records_erase(test_store, NONE, PST_STR("b2"), 9, &e, &test_error));
  assert_int_equal(e.n_sets, 1);
  char *left = text_of(e.sets[0].replaced_by);
  assert_string_equal(left, "two\n");
  pst_free(left);
  pst_store_erasure_done(&e);
  TEST_OK(pst_store_records_erase(test_store, PST_STR("bob"), NONE, 9, &e, &test_error));
  assert_string_equal(e.sets[0].replaced_by, ""); /* nothing is left */
  pst_store_erasure_done(&e);
  assert_false(on_disk("quixotic-zebra") || on_disk("plummeting-yak") || on_disk("ann") || on_disk("bob"));
  assert_int_equal(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_records_erase(test_store, NONE, NONE, 9, &e, &test_error), PST_E_BAD_INPUT);
  TEST_OK(pst_store_verify(test_store, &test_error));
}

static bool is_kept(const char *scope) {
  char *answer = NULL;
  size_t n = 0;
  int code = pst_store_answer_get(test_store, pst_str_from(scope), PST_STR("k"), &answer, &n, NULL, &test_error);
  pst_free(answer);
  return code == 0;
}

/* Answers of teachers are to questions of users, and nothing says of which. */
static void erasure_forgets_what_teachers_said(void **state) {
  (void)state;
  pst_store_erasure e;
  static const char *const scopes[] = {"teacher/desk", "teacher/other", "eval"};
  pst_store_request old = record("old", "bob", PST_STORE_KEEP_CONTENT);
  old.expires_ms = 2000;
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  TEST_OK(pst_store_request_put(test_store, &old, &test_error));
  for (int round = 0; round < 2; round++) { /* deleted, expired */
    for (size_t i = 0; i < PST_ARRAY_LEN(scopes); i++)
      TEST_OK(pst_store_answer_put(test_store, pst_str_from(scopes[i]), PST_STR("k"), PST_STR("velvet-gnu"), NONE, 1,
                                   &test_error));
    TEST_OK(pst_store_flush(test_store, &test_error));
    TEST_OK(pst_store_records_prune(test_store, 1000, &e, &test_error));
    pst_store_erasure_done(&e);
    assert_true(is_kept("teacher/desk")); /* nothing has expired yet */
    if (round == 0)
      TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
    else
      TEST_OK(pst_store_records_prune(test_store, 2000, &e, &test_error));
    assert_int_equal(e.n_records, 1);
    pst_store_erasure_done(&e);
    assert_false(is_kept("teacher/desk") || is_kept("teacher/other"));
    assert_true(is_kept("eval"));
  }
}

static void sets_are_checked(void **state) {
  (void)state;
  char hash[65] = "";
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  put("m1", "ann", PST_STORE_KEEP_METADATA);
  const pst_store_data_set set = {.kind = PST_STR("training"), .n_lines = 1, .created_ms = 5};
  const int64_t gone[] = {77, id_of("m1")}; /* of the second the texts are gone: it has expired */
  for (size_t i = 0; i < PST_ARRAY_LEN(gone); i++)
    assert_int_equal(pst_store_data_set_put(test_store, &set, PST_STR("x\n"), true, &gone[i], 1, hash, &test_error),
                     PST_E_NOT_FOUND);
  assert_int_equal(pst_store_data_set_put(test_store, &set, PST_STR("x\n"), true, NULL, 0, hash, &test_error),
                   PST_E_BAD_INPUT);
  assert_string_equal(hash, "");
  pst_sha256_hex("x\n", 2, hash);
  assert_null(text_of(hash));
  set_seen s = {0};
  TEST_OK(pst_store_data_set_each(test_store, NONE, see_set, &s, &test_error));
  assert_int_equal(s.n, 0); /* what failed left nothing */
  assert_int_equal(pst_store_data_set_get(test_store, PST_STR("0f1e2d3c"), see_set, &s, &test_error), PST_E_NOT_FOUND);
  assert_int_equal(pst_store_data_set_get(test_store, PST_STR("../../x"), see_set, &s, &test_error), PST_E_BAD_INPUT);
  assert_int_equal(
      pst_store_data_set_used(test_store, PST_STR("0f1e2d3c"), PST_STR("adapter"), PST_STR("a"), 1, &test_error),
      PST_E_NOT_FOUND);
}

/* ---- retention ---- */

static void what_has_expired_is_forgotten(void **state) {
  (void)state;
  char hash[65];
  pst_store_request r = record("old", "ann", PST_STORE_KEEP_CONTENT);
  r.expires_ms = 2000;
  TEST_OK(pst_store_request_put(test_store, &r, &test_error));
  r = record("later", "ann", PST_STORE_KEEP_CONTENT);
  r.expires_ms = 4000;
  TEST_OK(pst_store_request_put(test_store, &r, &test_error));
  TEST_OK(pst_store_flush(test_store, &test_error));
  put("ever", "bob", PST_STORE_KEEP_CONTENT);
  const pst_store_feedback f = {.completion_id = PST_STR("old"), .correction = PST_STR("velvet-gnu")};
  TEST_OK(pst_store_feedback_put(test_store, &f, &test_error));
  make_set("one\ntwo\n", true, (const int64_t[]){id_of("old"), id_of("ever")}, 2, hash);

  pst_store_erasure e;
  TEST_OK(pst_store_records_prune(test_store, 1999, &e, &test_error));
  assert_int_equal(e.n_records, 0);
  pst_store_erasure_done(&e);
  TEST_OK(pst_store_records_prune(test_store, 2000, &e, &test_error));
  assert_int_equal(e.n_records, 1);
  assert_int_equal(e.n_sets, 1);
  char *text = text_of(e.sets[0].replaced_by);
  assert_string_equal(text, "two\n");
  pst_free(text);
  pst_store_erasure_done(&e);
  seen s = look("old"); /* the books stay */
  assert_int_equal(s.n, 1);
  assert_int_equal(s.prompt_tokens, 7);
  assert_false(s.content || s.train);
  assert_string_equal(s.subject, "");
  assert_true(look("later").content && look("ever").content);
  assert_false(on_disk("velvet-gnu"));
  TEST_OK(pst_store_records_prune(test_store, 2000, &e, &test_error));
  assert_int_equal(e.n_records, 0);
  pst_store_erasure_done(&e);
}

static int join_ids(void *user, const pst_store_request *r) {
  size_t n = strlen(user);
  (void)snprintf((char *)user + n, 100 - n, "%.*s ", (int)r->completion_id.n, r->completion_id.data);
  return 0;
}

/* What has expired is not read, though nobody pruned; what is to outlive its making asks for more: a quarter of the retention, or a week. */
static void what_has_expired_is_not_read(void **state) {
  (void)state;
  enum { HOUR = 3600000 };
  const struct {
    const char *id;
    int64_t age, left; /* hours; left 0: for ever */
  } rows[] = {{"gone", 25, -1},       {"going", 20, 4}, {"day", 17, 7}, {"quarter", 9 * 24 * 7, 6 * 24},
              {"week", 9000, 8 * 24}, {"ever", 9, 0}};
  int64_t now = pst_clock_unix_ms();
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    pst_store_request r = record(rows[i].id, "ann", PST_STORE_KEEP_CONTENT);
    r.time_ms = now - rows[i].age * HOUR;
    r.expires_ms = rows[i].left ? now + rows[i].left * HOUR : 0;
    TEST_OK(pst_store_request_put(test_store, &r, &test_error));
  }
  TEST_OK(pst_store_flush(test_store, &test_error));
  char read[100] = "", lasting[100] = "";
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  f.answered = true;
  TEST_OK(pst_store_request_each(test_store, &f, join_ids, read, &test_error));
  f.lasting = true;
  TEST_OK(pst_store_request_each(test_store, &f, join_ids, lasting, &test_error));
  assert_string_equal(read, "going day quarter week ever ");
  assert_string_equal(lasting, "day week ever ");
}

static int erase_meanwhile(void *user, const pst_store_request *r) {
  pst_store_erasure *e = user;
  (void)r;
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, e, &test_error));
  return 0;
}

/* While somebody reads, the log keeps what was erased; a later prune empties it, though nothing has expired then, and once. */
static void the_log_is_emptied_when_the_reader_is_done(void **state) {
  (void)state;
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  pst_store_erasure e;
  char *owed = NULL;
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  f.origin = PST_STORE_ANY_ORIGIN;
  TEST_OK(pst_store_request_each(test_store, &f, erase_meanwhile, &e, &test_error));
  assert_true(e.in_log && e.n_records == 1);
  pst_store_erasure_done(&e);
  assert_true(on_disk("quixotic-zebra"));
  TEST_OK(pst_store_records_prune(test_store, 1, &e, &test_error));
  assert_false(e.in_log || e.n_records);
  pst_store_erasure_done(&e);
  assert_false(on_disk("quixotic-zebra"));
  assert_int_equal(pst_store_setting_get(test_store, PST_STR("erased_bytes_in_log"), &owed, &test_error),
                   PST_E_NOT_FOUND);
}

/* A crash between the commit of an erasure and the removal of the file leaves the file; the next prune removes it. */
static void a_file_that_a_crash_left_is_removed(void **state) {
  (void)state;
  char hash[65];
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  make_set("one\n", true, (const int64_t[]){id_of("a1")}, 1, hash);
  pst_store_erasure e;
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  pst_store_erasure_done(&e);
  TEST_OK(pst_store_file_put(test_store, "one\n", 4, hash, &test_error));
  TEST_OK(pst_store_records_prune(test_store, 1, &e, &test_error));
  pst_store_erasure_done(&e);
  assert_null(text_of(hash));
}

/* A set whose making ended between its row and its file is no set, and whatever was written of it goes. */
static void a_set_that_was_half_made_leaves_nothing(void **state) {
  (void)state;
  char hash[65], wanted[65];
  const char *files = test_temp_path(test_dir, "files");
  const pst_store_data_set set = {.kind = PST_STR("training"), .n_lines = 1, .created_ms = 5};
  pst_store_erasure e;
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  put("b1", "bob", PST_STORE_KEEP_CONTENT);
  const int64_t ids[] = {id_of("a1"), id_of("b1")};
  test_temp_write(files, "", 0); /* no file can be kept */
  assert_int_not_equal(pst_store_data_set_put(test_store, &set, PST_STR("one\n"), true, ids, 1, hash, &test_error), 0);
  assert_int_equal(remove(files), 0);
  pst_sha256_hex("one\n", 4, wanted);
  set_seen s = {0};
  TEST_OK(pst_store_data_set_get(test_store, pst_str_from(wanted), see_set, &s, &test_error));
  assert_true(s.state == PST_STORE_DATA_WITHDRAWN);
  TEST_OK(pst_store_file_put(test_store, "one\n", 4, hash, &test_error)); /* as if killed behind it */
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  assert_int_equal(e.n_sets, 1);
  assert_string_equal(e.sets[0].replaced_by, "");
  pst_store_erasure_done(&e);
  assert_null(text_of(wanted));
  /* made of another record it is a set like any other */
  TEST_OK(pst_store_data_set_put(test_store, &set, PST_STR("one\n"), true, ids + 1, 1, hash, &test_error));
  assert_string_equal(hash, wanted);
  TEST_OK(pst_store_data_set_get(test_store, pst_str_from(hash), see_set, &s, &test_error));
  assert_true(s.state == PST_STORE_DATA_WHOLE);
  TEST_OK(pst_store_records_prune(test_store, 1, &e, &test_error));
  pst_store_erasure_done(&e);
  char *text = text_of(hash);
  assert_string_equal(text, "one\n");
  pst_free(text);
}

static void change_database(const char *sql) {
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(test_temp_path(test_dir, "penstock.db"), &db), SQLITE_OK);
  (void)sqlite3_busy_timeout(db, 10000); /* a write that failed has said so before it has let go */
  assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
  sqlite3_close(db);
}

/* An erasure that ends behind the file of the set that takes another's place: the file is found, by what cleans and by the next erasure. */
static void an_erasure_that_was_half_done_leaves_nothing(void **state) {
  (void)state;
  char hash[65], successor[65];
  pst_store_erasure e;
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  put("b1", "bob", PST_STORE_KEEP_CONTENT);
  make_set("one\ntwo\n", true, (const int64_t[]){id_of("a1"), id_of("b1")}, 2, hash);
  pst_sha256_hex("two\n", 4, successor);
  for (int i = 0; i < 2; i++) {
    change_database("CREATE TRIGGER broken BEFORE DELETE ON requests BEGIN SELECT raise(ABORT, 'disk full'); END");
    assert_int_not_equal(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error), 0);
    change_database("DROP TRIGGER broken");
    char *text = text_of(successor), *old = text_of(hash);
    assert_string_equal(text, "two\n"); /* so that there is something to find */
    assert_string_equal(old, "one\ntwo\n");
    assert_int_equal(look("a1").n, 1);
    pst_free(text);
    pst_free(old);
    if (i == 0)
      TEST_OK(pst_store_records_prune(test_store, 1, &e, &test_error));
    else
      TEST_OK(pst_store_records_erase(test_store, PST_STR("bob"), NONE, 9, &e, &test_error));
    pst_store_erasure_done(&e);
    assert_null(text_of(successor));
  }
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  pst_store_erasure_done(&e);
  TEST_OK(pst_store_verify(test_store, &test_error));
}

/* As if a set with the person's lines were made between the two writes of an erasure: what takes its place is announced, and it is erased. */
static void an_erasure_announces_again(void **state) {
  (void)state;
  char hash[65];
  pst_store_erasure e;
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  put("b1", "bob", PST_STORE_KEEP_CONTENT);
  make_set("one\ntwo\n", true, (const int64_t[]){id_of("a1"), id_of("b1")}, 2, hash);
  change_database("CREATE TRIGGER lost AFTER INSERT ON data_set_records WHEN NOT EXISTS (SELECT 1 FROM settings)"
                  " BEGIN UPDATE data_sets SET hash = 'lost' WHERE id = new.set_id;"
                  " INSERT INTO settings VALUES('lost', 'once'); END");
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  assert_int_equal(e.n_sets, 1);
  char *text = text_of(e.sets[0].replaced_by);
  assert_string_equal(text, "two\n");
  pst_free(text);
  pst_store_erasure_done(&e);
  set_seen s = {0};
  TEST_OK(pst_store_data_set_each(test_store, NONE, see_set, &s, &test_error));
  assert_int_equal(s.n, 3); /* the old one, the one that was lost, the new one */
}

static void make_folder(const char *name, const char *set) {
  TEST_OK(pst_store_data_set_used(test_store, pst_str_from(set), PST_STR(PST_STORE_PRODUCT_FOLDER), pst_str_from(name),
                                  6, &test_error));
  TEST_OK(pst_dir_make(test_temp_path(test_dir, name), &test_error));
  char file[96];
  snprintf(file, sizeof file, "%s/items.jsonl", name);
  test_temp_write(test_temp_path(test_dir, file), "quixotic-zebra", 14);
}

static void erasure_reaches_what_was_made_of_a_set(void **state) {
  (void)state;
  char ann[65], bob[65], own[65], shared[65], found[65];
  pst_store_erasure e;
  const pst_str kind = PST_STR(PST_STORE_PRODUCT_EXAMPLES);
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  put("b1", "bob", PST_STORE_KEEP_CONTENT);
  make_set("one\n", true, (const int64_t[]){id_of("a1")}, 1, ann);
  make_set("two\n", true, (const int64_t[]){id_of("b1")}, 1, bob);
  make_folder("turns/f-ann", ann);
  make_folder("turns/f-bob", bob);
  TEST_OK(pst_store_data_set_product(test_store, pst_str_from(ann), kind, "index", 5, own, &test_error));
  TEST_OK(pst_store_data_set_product(test_store, pst_str_from(ann), kind, "both", 4, shared, &test_error));
  TEST_OK(pst_store_data_set_product(test_store, pst_str_from(bob), kind, "both", 4, shared, &test_error));
  TEST_OK(
      pst_store_data_set_of_folder(test_store, test_temp_path(test_dir, "turns/../turns/f-ann/"), found, &test_error));
  assert_string_equal(found, ann);
  TEST_OK(pst_store_data_set_of_folder(test_store, test_temp_path(test_dir, "turns"), found, &test_error));
  assert_string_equal(found, "");
  assert_false(pst_store_data_withdrawn(test_store, pst_str_from(own)));

  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  assert_int_equal(e.n_uses, 3);
  pst_store_erasure_done(&e);
  assert_false(pst_dir_exists(test_temp_path(test_dir, "turns/f-ann")));
  assert_true(pst_dir_exists(test_temp_path(test_dir, "turns/f-bob")));
  assert_null(text_of(own));
  char *text = text_of(shared);
  assert_string_equal(text, "both");
  pst_free(text);
  assert_true(pst_store_data_withdrawn(test_store, pst_str_from(own)));
  assert_true(pst_store_data_withdrawn(test_store, pst_str_from(ann)));
  assert_false(pst_store_data_withdrawn(test_store, pst_str_from(bob)));
  assert_int_equal(pst_store_data_set_product(test_store, pst_str_from(ann), kind, "more", 4, found, &test_error),
                   PST_E_NOT_FOUND);
  TEST_OK(pst_store_records_erase(test_store, PST_STR("bob"), NONE, 9, &e, &test_error));
  pst_store_erasure_done(&e);
  assert_null(text_of(shared));
  assert_false(pst_dir_exists(test_temp_path(test_dir, "turns/f-bob")));
}

static void make_checkpoint(const char *name) { test_temp_write(test_temp_path(test_dir, name), "numbers", 7); }

static bool is_there(const char *name) { return pst_file_exists(test_temp_path(test_dir, name)); }

/* Training that goes on while its records are erased writes its checkpoint again, and may be killed then. */
static void checkpoints_go_with_their_records(void **state) {
  (void)state;
  char ann[65], bob[65];
  char *owed = NULL;
  pst_store_erasure e;
  put("a1", "ann", PST_STORE_KEEP_CONTENT);
  put("b1", "bob", PST_STORE_KEEP_CONTENT);
  make_set("one\n", true, (const int64_t[]){id_of("a1")}, 1, ann);
  make_set("two\n", true, (const int64_t[]){id_of("b1")}, 1, bob);
  put_adapter("first", '1', 5, ann, NULL);
  TEST_OK(pst_dir_make(test_temp_path(test_dir, "tune"), &test_error));
  TEST_OK(pst_dir_make(test_temp_path(test_dir, "jobs"), &test_error));
  static const char of_set[] = "tune/1.checkpoint", of_adapter[] = "jobs/ftjob-1.checkpoint",
                    of_both[] = "jobs/ftjob-2.checkpoint", of_bob[] = "jobs/ftjob-3.checkpoint",
                    unknown[] = "tune/2.checkpoint";
  static const char *const all[] = {of_set, of_adapter, of_both, of_bob, unknown};
  const struct {
    const char *name;
    pst_store_adapter_origin origin;
  } notes[] = {{of_set, {.data_set = ann}},
               {of_adapter, {.from = "first"}},
               {of_both, {.data_set = bob, .from = "first"}},
               {of_bob, {.taught_set = bob}}};
  for (size_t i = 0; i < PST_ARRAY_LEN(notes); i++)
    TEST_OK(
        pst_store_checkpoint_note(test_store, test_temp_path(test_dir, notes[i].name), &notes[i].origin, &test_error));
  assert_int_equal(pst_store_checkpoint_note(test_store, "/tmp/x", &notes[0].origin, &test_error), PST_E_BAD_INPUT);
  for (size_t i = 0; i < PST_ARRAY_LEN(all); i++) make_checkpoint(all[i]);
  TEST_OK(pst_store_records_erase(test_store, PST_STR("ann"), NONE, 9, &e, &test_error));
  assert_int_equal(e.n_uses, 1); /* the adapter alone: nobody makes a checkpoint again */
  pst_store_erasure_done(&e);
  for (int i = 0; i < 2; i++) {
    assert_false(is_there(of_set) || is_there(of_adapter) || is_there(of_both));
    assert_true(is_there(of_bob));
    assert_int_equal(is_there(unknown), i); /* it went with the erasure, and may be anybody's since */
    for (size_t k = 0; k < PST_ARRAY_LEN(all); k++) make_checkpoint(all[k]);
    TEST_OK(pst_store_records_prune(test_store, 1, &e, &test_error));
    pst_store_erasure_done(&e);
  }
  /* as an erasure leaves it that is killed behind its commit */
  TEST_OK(pst_store_setting_set(test_store, PST_STR("checkpoints_of_erased"), PST_STR("1"), &test_error));
  TEST_OK(pst_store_records_prune(test_store, 1, &e, &test_error));
  pst_store_erasure_done(&e);
  assert_false(is_there(unknown));
  assert_int_equal(pst_store_setting_get(test_store, PST_STR("checkpoints_of_erased"), &owed, &test_error),
                   PST_E_NOT_FOUND);
}

/* ---- import ---- */

typedef struct rows {
  int n, fail_at;
} rows;

static int next_row(void *user, pst_store_request *ret_row, pst_error *e) {
  rows *r = user;
  static char id[32];
  if (r->n == r->fail_at) return pst_error_set(e, PST_E_BAD_INPUT, "rows", "row %d is bad", r->n);
  if (r->n == 100) return 0;
  snprintf(id, sizeof id, "row-%d", r->n++);
  *ret_row = record(id, "ann", PST_STORE_KEEP_CONTENT);
  return 1;
}

static void an_import_is_whole_or_nothing(void **state) {
  (void)state;
  int64_t n_new = 0, n_known = 0;
  rows bad = {0, 57}, good = {0, -1}, again = {0, -1};
  assert_int_equal(pst_store_records_import(test_store, next_row, &bad, &n_new, &n_known, &test_error),
                   PST_E_BAD_INPUT);
  assert_string_equal(test_error.message, "row 57 is bad");
  assert_int_equal(look(NULL).n, 0);
  TEST_OK(pst_store_records_import(test_store, next_row, &good, &n_new, &n_known, &test_error));
  assert_true(n_new == 100 && n_known == 0 && look(NULL).n == 100);
  TEST_OK(pst_store_records_import(test_store, next_row, &again, &n_new, &n_known, &test_error));
  assert_true(n_new == 0 && n_known == 100 && look(NULL).n == 100);
  pst_store_request_filter served = PST_STORE_REQUEST_FILTER_INIT;
  pst_store_usage usage;
  TEST_OK(pst_store_usage_get(test_store, &served, &usage, &test_error));
  assert_int_equal(usage.n_requests, 0); /* an import is no request in the books */

  /* Taken back: what was served under the same name stays, and a set made of both loses its lines. */
  char hash[65];
  put("s1", "ann", PST_STORE_KEEP_CONTENT);
  const int64_t ids[] = {id_of("row-1"), id_of("s1")};
  make_set("one\ntwo\n", true, ids, 2, hash);
  pst_store_erasure e;
  TEST_OK(pst_store_records_unimport(test_store, PST_STR("desk"), 9, &e, &test_error));
  assert_true(e.n_records == 100 && e.n_sets == 1 && look(NULL).n == 1 && look("s1").n == 1);
  char *left = text_of(e.sets[0].replaced_by);
  assert_string_equal(left, "two\n");
  pst_free(left);
  pst_store_erasure_done(&e);
  assert_int_equal(pst_store_records_unimport(test_store, PST_STR("desk"), 9, &e, &test_error), PST_E_NOT_FOUND);
}

/* ---- guards ---- */

static int see_guard(void *user, const pst_store_guarded *g) {
  uint64_t *sum = user;
  for (size_t i = 0; i < g->n_words; i++) *sum += g->words[i];
  *sum += g->part == 3;
  return 0;
}

static void guards_are_kept_once(void **state) {
  (void)state;
  const uint64_t words[] = {10, 20, 30};
  const pst_store_guarded items[] = {{PST_STR("desk"), PST_STR("i1"), 1, words, 2},
                                     {PST_STR("desk"), PST_STR("i2"), 3, words + 2, 1},
                                     {PST_STR("desk"), PST_STR("i3"), 1, NULL, 0}};
  assert_false(pst_store_guard_known(test_store, PST_STR("desk"), PST_STR("f")));
  for (int i = 0; i < 2; i++)
    TEST_OK(pst_store_guard_put(test_store, PST_STR("desk"), PST_STR("f"), items, 3, &test_error));
  assert_true(pst_store_guard_known(test_store, PST_STR("desk"), PST_STR("f")));
  uint64_t sum = 0;
  TEST_OK(pst_store_guard_each(test_store, see_guard, &sum, &test_error));
  assert_int_equal(sum, 61);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, test_store_open, test_store_close)

int main(void) {
  const struct CMUnitTest tests[] = {TEST(consent_is_only_lowered),
                                     TEST(a_key_has_its_own_consent),
                                     TEST(what_may_not_be_kept_is_not),
                                     TEST(adapters_become_stale),
                                     TEST(erasure_reaches_everything),
                                     TEST(sets_are_checked),
                                     TEST(what_has_expired_is_forgotten),
                                     TEST(what_has_expired_is_not_read),
                                     TEST(the_log_is_emptied_when_the_reader_is_done),
                                     TEST(a_file_that_a_crash_left_is_removed),
                                     TEST(a_set_that_was_half_made_leaves_nothing),
                                     TEST(an_erasure_that_was_half_done_leaves_nothing),
                                     TEST(an_erasure_announces_again),
                                     TEST(erasure_forgets_what_teachers_said),
                                     TEST(erasure_reaches_what_was_made_of_a_set),
                                     TEST(checkpoints_go_with_their_records),
                                     TEST(an_import_is_whole_or_nothing),
                                     TEST(guards_are_kept_once)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
