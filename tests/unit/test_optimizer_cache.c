/* Whether plans give answers again: how often users repeat themselves, counted in records; and what follows from it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "optimizer/cache.h"
#include "optimizer/constants.h"
#include "support/store.h"

#define HASH "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
#define DAY INT64_C(86400000)
static const int64_t NOW = 100 * DAY;

/* ---- counting -------------------------------------------------------------------------------------------------------------- */

static int n_put;

/* A record of a user's request, n days ago, asking that text; `more`: members of its request. */
static pst_store_request record(const char *text, const char *more, int days_ago, char id[16], char json[512]) {
  snprintf(id, 16, "r%d", n_put++);
  snprintf(json, 512, "{\"model\":\"desk\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]%s}", text, more);
  return (pst_store_request){.completion_id = pst_str_from(id),
                             .time_ms = NOW - days_ago * DAY,
                             .workload = PST_STR("desk"),
                             .target = PST_STR("local"),
                             .status = 200,
                             .finish = PST_STR("stop"),
                             .keep = PST_STORE_KEEP_CONTENT,
                             .input_json = pst_str_from(json),
                             .output_json = PST_STR("{}")};
}

static void put(const char *text, const char *more, int days_ago) {
  char id[16], json[512];
  pst_store_request r = record(text, more, days_ago, id, json);
  TEST_OK(pst_store_request_put(test_store, &r, &test_error));
}

static pst_json_doc *count(void) {
  pst_buf out = PST_BUF_INIT;
  pst_json_doc *doc = NULL;
  TEST_OK(pst_store_flush(test_store, &test_error));
  TEST_OK(pst_optimizer_repeats_count(test_store, PST_STR("desk"), NOW, &out, &test_error));
  assert_int_equal(pst_json_parse(out.data, out.n, NULL, &doc, NULL), 0);
  pst_buf_done(&out);
  return doc;
}

static void expect(int64_t requests, int64_t kept, int64_t looked_at, int64_t repeats) {
  pst_json_doc *doc = count();
  const pst_json *v = pst_json_root(doc);
  assert_int_equal(pst_json_int(pst_json_get(v, "requests"), -1), requests);
  assert_int_equal(pst_json_int(pst_json_get(v, "kept"), -1), kept);
  assert_int_equal(pst_json_int(pst_json_get(v, "looked_at"), -1), looked_at);
  assert_int_equal(pst_json_int(pst_json_get(v, "repeats"), -1), repeats);
  pst_json_free(doc);
}

static void repeats_are_exact(void **state) {
  (void)state;
  expect(0, 0, 0, 0);
  put("one", "", 1);
  put("one", "", 2);
  put("one", "", 3);
  put("One", "", 3);
  put("one ", "", 3);
  expect(5, 5, 5, 2);
  put("one", ",\"user\":\"ann\"", 1); /* who asks, and how it is brought, changes no answer */
  put("one", ",\"stream\":true", 1);
  expect(7, 7, 7, 4);
  put("one", ",\"max_tokens\":5", 1);
  put("one", ",\"stop\":[\"x\"]", 1);
  put("one", ",\"temperature\":1,\"seed\":4", 1);
  put("one", ",\"temperature\":1,\"seed\":5", 1);
  expect(11, 11, 11, 4);
  put("one", ",\"temperature\":1,\"seed\":5", 1);
  expect(12, 12, 12, 5);
}

static void what_a_cache_could_not_answer_is_no_repeat(void **state) {
  (void)state;
  char id[16], json[512];
  char secret[PST_STORE_SECRET_BYTES];
  int64_t key = 0;
  TEST_OK(pst_store_key_create(test_store, PST_STR("app"), PST_STR(""), (pst_store_limits){-1, -1, -1}, 1, &key, secret,
                               &test_error));
  put("one", "", 1);
  pst_store_request r = record("one", "", 1, id, json);
  r.key_id = key; /* of another party */
  TEST_OK(pst_store_request_put(test_store, &r, &test_error));
  put("one", ",\"temperature\":1", 1); /* drawn anew each time */
  put("one", ",\"temperature\":1", 1);
  put("one", ",\"logprobs\":true", 1);
  put("one", "", 8); /* longer ago than an answer lives */
  expect(5, 5, 5, 0);
  static const struct {
    const char *workload, *finish;
    pst_store_keep keep;
    pst_store_purpose purpose;
    int status;
  } others[] = {{"other", "stop", PST_STORE_KEEP_CONTENT, PST_STORE_PURPOSE_USER, 200},
                {"desk", "stop", PST_STORE_KEEP_CONTENT, PST_STORE_PURPOSE_EVAL, 200},
                {"desk", "length", PST_STORE_KEEP_CONTENT, PST_STORE_PURPOSE_USER, 200},
                {"desk", "stop", PST_STORE_KEEP_METADATA, PST_STORE_PURPOSE_USER, 200},
                {"desk", NULL, PST_STORE_KEEP_CONTENT, PST_STORE_PURPOSE_USER, 500}};
  for (size_t i = 0; i < PST_ARRAY_LEN(others); i++) {
    r = record("one", "", 1, id, json);
    r.workload = pst_str_from(others[i].workload);
    r.finish = pst_str_from(others[i].finish);
    r.keep = others[i].keep;
    r.purpose = others[i].purpose;
    r.status = others[i].status;
    TEST_OK(pst_store_request_put(test_store, &r, &test_error));
  }
  expect(8, 6, 5, 0); /* the one cut short, the one without texts and the failure are requests, and not compared */
}

/* ---- deciding -------------------------------------------------------------------------------------------------------------- */

static const char PLAIN[] = "{\"schema\":1,\"workload\":\"w\",%s\"engines\":{\"e1\":{\"model\":\"m\"%s}},"
                            "\"root\":{\"op\":\"local\",\"engine\":\"e1\"}}";
#define OFTEN "{\"requests\":1000,\"kept\":1000,\"looked_at\":1000,\"repeats\":250}"
#define CACHED "\"cache\":{\"ttl_seconds\":60,\"max_entries\":5},"

typedef struct decided {
  int code;
  bool on;
  int64_t ttl_s;
  char verdict[32];
  double with;
} decided;

static decided decide(pst_optimizer_cache_question q, const char *repeats, const char *cache, bool hash) {
  pst_buf json = PST_BUF_INIT, advice = PST_BUF_INIT;
  pst_json_doc *doc = NULL, *said = NULL;
  pst_gateway_plan *plan = NULL;
  decided d = {0};
  pst_buf_printf(&json, PLAIN, cache, hash ? ",\"sha256\":\"" HASH "\"" : "");
  if (repeats) assert_int_equal(pst_json_parse(repeats, strlen(repeats), NULL, &doc, NULL), 0);
  q.repeats = pst_json_root(doc);
  if (!repeats) q.repeats = NULL;
  q.price_nusd_per_hour = 100000000;
  d.code = pst_optimizer_cache_decide(&q, &json, &advice, &test_error);
  if (!d.code) {
    TEST_OK(pst_gateway_plan_parse(pst_buf_str(&json), "decided", &plan, &test_error));
    d.on = plan->cache.on;
    d.ttl_s = plan->cache.ttl_s;
    if (advice.n) {
      assert_int_equal(pst_json_parse(advice.data, advice.n, NULL, &said, NULL), 0);
      pst_str verdict = pst_json_str(pst_json_path(pst_json_root(said), "verdict"));
      snprintf(d.verdict, sizeof d.verdict, "%.*s", (int)verdict.n, verdict.data);
      d.with = pst_json_double(pst_json_path(pst_json_root(said), "request_nusd_with"), 0);
    }
  }
  pst_json_free(said);
  pst_json_free(doc);
  pst_gateway_plan_unref(plan);
  pst_buf_done(&json);
  pst_buf_done(&advice);
  return d;
}

static void it_is_taken_where_it_pays(void **state) {
  (void)state;
  const double look = PST_OPTIMIZER_CONST(cache_us) * 100000000 / 3.6e9;
  const struct {
    const char *repeats;
    double nusd;
    bool taken, hash, on;
    const char *verdict;
  } cases[] = {
      {OFTEN, 1e5, true, true, true, "in_plan"},
      {OFTEN, 1e5, false, true, false, "proposed"},
      {OFTEN, 1e5, true, false, false, "no_hash"},
      {OFTEN, look, true, true, false, "no_gain"}, /* a classifier's answer costs no more than the look */
      {OFTEN, (double)NAN, true, true, false, "unknown"},
      {NULL, 1e5, true, true, false, ""},
      {"{\"requests\":49,\"kept\":49,\"looked_at\":49,\"repeats\":30}", 1e5, true, true, false, "too_few_requests"},
      {"{\"requests\":1000,\"kept\":0,\"looked_at\":0,\"repeats\":0}", 1e5, true, true, false, "nothing_kept"},
      {"{\"requests\":1000,\"kept\":1000,\"looked_at\":1000,\"repeats\":5}", 1e5, true, true, false, "no_gain"},
      {"{\"requests\":1000,\"kept\":20,\"looked_at\":20,\"repeats\":10}", 1e7, true, true, false, "no_gain"},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    decided d = decide((pst_optimizer_cache_question){.taken = cases[i].taken, .request_nusd = cases[i].nusd},
                       cases[i].repeats, "", cases[i].hash);
    if (d.code || d.on != cases[i].on || strcmp(d.verdict, cases[i].verdict) != 0)
      fail_msg("case %zu: %d, %s, \"%s\"", i, d.code, d.on ? "on" : "off", d.verdict);
    if (i == 0) assert_true(fabs(d.with - (0.75e5 + look)) < 1e-6);
    if (d.on) assert_int_equal(d.ttl_s, pst_gateway_cache_default().ttl_s);
  }
}

static void a_wish_and_the_plan_in_force_go_first(void **state) {
  (void)state;
  const pst_gateway_cache own = {true, 60, 5};
  pst_optimizer_cache_question q = {.taken = true, .request_nusd = 1e5, .in_force = own};
  decided d = decide(q, NULL, "", true); /* a plan after one that caches does so, too */
  assert_true(d.on && d.ttl_s == 60);
  assert_string_equal(d.verdict, "in_plan");
  q.wish = PST_OPTIMIZER_CACHE_OFF;
  d = decide(q, OFTEN, CACHED, true);
  assert_false(d.on);
  assert_string_equal(d.verdict, "");
  q.taken = false; /* what stays in force stays as it is */
  assert_true(decide(q, OFTEN, CACHED, true).on);
  q = (pst_optimizer_cache_question){.taken = true, .request_nusd = 1e5, .wish = PST_OPTIMIZER_CACHE_ON};
  assert_true(decide(q, NULL, "", true).on);
  assert_int_equal(decide(q, NULL, "", false).code, PST_E_BAD_INPUT);
  assert_non_null(strstr(test_error.message, "sha256"));
  q.taken = false;
  assert_false(decide(q, NULL, "", true).on);
}

static void wishes_have_names(void **state) {
  (void)state;
  pst_optimizer_cache_wish wish = PST_OPTIMIZER_CACHE_AUTO;
  for (int i = 0; i < PST_OPTIMIZER_CACHE_WISHES; i++) {
    const char *name = pst_optimizer_cache_wish_name((pst_optimizer_cache_wish)i);
    assert_true(pst_optimizer_cache_wish_from(pst_str_from(name), &wish) && (int)wish == i);
  }
  assert_false(pst_optimizer_cache_wish_from(PST_STR("always"), &wish));
}

#define T(name) cmocka_unit_test_setup_teardown(name, test_store_open, test_store_close)

int main(void) {
  const struct CMUnitTest tests[] = {
      T(repeats_are_exact),
      T(what_a_cache_could_not_answer_is_no_repeat),
      cmocka_unit_test(it_is_taken_where_it_pays),
      cmocka_unit_test(a_wish_and_the_plan_in_force_go_first),
      cmocka_unit_test(wishes_have_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
