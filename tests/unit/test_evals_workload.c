/* Workload folders: what is refused and where, near-duplicates, graders on friendly and hostile answers. */
#include <penstock/evals.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "evals/workload.h"
#include "support/scale.h"
#include "support/temp.h"

static pst_error err;

#define HEAD "{\"schema\":1,\"name\":\"w\",\"task\":"
#define PROMPTS ",\"prompts\":[{\"name\":\"p\",\"instruction\":\"Do.\"}]"
#define GOAL ",\"goal\":{\"quality_floor\":0.5,\"margin\":0.05}}"
#define TEXT_TASK(grader) HEAD "{\"kind\":\"text\"}" PROMPTS ",\"grader\":" grader GOAL
#define CHOICE(labels) \
  HEAD "{\"kind\":\"choice\",\"labels\":" labels "}" PROMPTS ",\"grader\":{\"type\":\"choice\"}" GOAL
#define ITEM(id, text, reference, part)                                                                     \
  "{\"id\":\"" id "\",\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}],\"reference\":" reference \
  ",\"part\":\"" part "\"}\n"

static int open_with(const char *workload, const char *items, const char *trace, pst_evals_workload **ret_w) {
  char *dir = test_temp_dir();
  test_temp_write(test_temp_path(dir, "workload.json"), workload, strlen(workload));
  if (items) test_temp_write(test_temp_path(dir, "items.jsonl"), items, strlen(items));
  if (trace) test_temp_write(test_temp_path(dir, "trace.jsonl"), trace, strlen(trace));
  err = (pst_error)PST_ERROR_INIT;
  int code = pst_evals_workload_open(dir, ret_w, &err);
  test_temp_remove(dir);
  return code;
}

/* ---- copied fields ---- */

/* Told from examples alone, where a field has five texts or more; of 200 one may be astray. */
static void copied_fields_are_found(void **state) {
  (void)state;
  pst_evals_workload *w = NULL;
  pst_buf items = PST_BUF_INIT;
  for (int i = 0; i < 402; i++) {
    bool last = i >= 400; /* not examples, and astray in all */
    pst_buf_printf(
        &items,
        "{\"id\":\"i%d\",\"messages\":[{\"role\":\"user\",\"content\":\"buy the good %d a%db\"}],\"reference\":{\"do\":\"%s\",\"what\":"
        "[{\"name\":\"%s%d\",\"kind\":\"%s\"}]%s},\"part\":\"%s\",\"cluster\":\"c%d\"}\n",
        i, i, i, last ? "buy" : "Buy", last || i == 7 || i == 9 ? "x" : "", i, i % 100 == 50 ? "bad" : "good",
        i < 4 ? ",\"rare\":\"buy\"" : "", last ? "verify" : "examples", i);
  }
  assert_int_equal(open_with(TEXT_TASK("{\"type\":\"json\"}"), pst_buf_text(&items), NULL, &w), 0);
  const pst_evals_info *info = pst_evals_workload_info(w);
  assert_int_equal(info->n_copied, 1); /* "do" never, "kind" too often not, "rare" too seldom */
  assert_true(pst_str_equal(info->copied[0], PST_STR("what[].name")));
  pst_evals_workload_free(w);
  assert_int_equal(open_with(TEXT_TASK("{\"type\":\"exact\"}"), ITEM("a", "one", "\"one\"", "examples"), NULL, &w), 0);
  assert_int_equal(pst_evals_workload_info(w)->n_copied, 0);
  pst_evals_workload_free(w);
  pst_buf_done(&items);
}

/* ---- what is refused ---- */

static void refused(void **state) {
  (void)state;
  static const char good[] = TEXT_TASK("{\"type\":\"exact\"}"), one[] = ITEM("a", "one", "\"x\"", "verify");
  static const struct {
    const char *workload, *items, *trace, *place, *message;
  } cases[] = {
      {"{", one, NULL, "workload.json:1:2", ""},
      {HEAD "{\"kind\":\"text\"}" PROMPTS ",\"grader\":{\"type\":\"exact\"},\"goal\":{\"margn\":0.1}}", one, NULL,
       "workload.json: goal", "margn"},
      {HEAD "{\"kind\":\"text\"}" PROMPTS ",\"grader\":{\"type\":\"exact\"},\"goal\":{\"quality_floor\":1.2}}", one,
       NULL, "goal.quality_floor", "at most 1"},
      {HEAD "{\"kind\":\"text\"}" PROMPTS ",\"grader\":{\"type\":\"exact\"},\"goal\":{\"margin\":0}}", one, NULL,
       "goal.margin", "above 0"},
      {HEAD "{\"kind\":\"text\"}" PROMPTS ",\"grader\":{\"type\":\"exact\"},\"goal\":{\"latency_p95_ms\":0}}", one,
       NULL, "goal.latency_p95_ms", "above 0"},
      {HEAD "{\"kind\":\"text\"}" PROMPTS ",\"grader\":{\"type\":\"exact\"},\"goal\":{\"objective\":\"fun\"}}", one,
       NULL, "goal.objective", "cost, latency, quality"},
      {HEAD "{\"kind\":\"text\"}" PROMPTS ",\"grader\":{\"type\":\"exact\"},\"goal\":{\"max_quality_loss\":0}}", one,
       NULL, "goal.max_quality_loss", "above 0"},
      {TEXT_TASK("{\"type\":\"sql\",\"fields\":[\"a\"]}"), one, NULL, "grader", "fields"},
      {TEXT_TASK("{\"type\":\"exakt\"}"), one, NULL, "grader.type", "exact, normalized"},
      {TEXT_TASK("{\"type\":\"exact\",\"tolerance\":1}"), one, NULL, "grader", "tolerance"},
      {TEXT_TASK("{\"type\":\"choice\"}"), one, NULL, "grader.type", "labels"},
      {TEXT_TASK("{\"type\":\"regex\"}"), ITEM("a", "one", "\"x(\"", "verify"), NULL, "items.jsonl:1", "not valid"},
      {TEXT_TASK("{\"type\":\"numeric\"}"), ITEM("a", "one", "\"none\"", "verify"), NULL, "items.jsonl:1", "number"},
      {CHOICE("[\"x\"]"), one, NULL, "task.labels", "two"},
      {CHOICE("[\"x\",\"x\"]"), one, NULL, "task.labels", "twice"},
      {CHOICE("[\"x\",\"y\"]"), ITEM("a", "one", "\"z\"", "verify"), NULL, "items.jsonl:1: reference", "labels"},
      {good, "", NULL, "items.jsonl", "no items"},
      {good, ITEM("a", "one", "\"x\"", "verify") "{\"id\":\n", NULL, "items.jsonl:2", ""},
      {good, ITEM("a", "one", "\"x\"", "verify") "\n" ITEM("a", "two", "\"x\"", "verify"), NULL, "items.jsonl:3: id",
       "line 1"},
      {good, ITEM("a", "one", "\"x\"", "verfy"), NULL, "items.jsonl:1: part", "examples, search, verify, sealed"},
      {good, "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"one\"}],\"reference\":\"x\"}", NULL,
       "items.jsonl:1: part", "missing"},
      {good,
       "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"one\"}],\"refernce\":\"x\",\"part\":\"verify\"}",
       NULL, "items.jsonl:1", "refernce"},
      {good,
       "{\"id\":\"a\",\"messages\":[{\"role\":\"robot\",\"content\":\"one\"}],\"reference\":\"x\",\"part\":\"verify\"}",
       NULL, "items.jsonl:1: messages[0].role", "assistant"},
      {good, "{\"id\":\"a\",\"messages\":[],\"reference\":\"x\",\"part\":\"verify\"}", NULL, "items.jsonl:1: messages",
       ""},
      {good, ITEM("a", " ", "\"x\"", "verify"), NULL, "items.jsonl:1: messages", "empty"},
      {good,
       ITEM("a", "send it back to me please", "\"x\"", "verify")
           ITEM("b", "Send it back to me, please!", "\"x\"", "search"),
       NULL, "items.jsonl:2", "nearly the same"},
      {good, one, "{\"t_ms\":0,\"item\":\"b\"}", "trace.jsonl:1: item", "no item"},
      {good, one, "{\"t_ms\":5,\"item\":\"a\"}\n{\"t_ms\":4,\"item\":\"a\"}", "trace.jsonl:2: t_ms", "earlier"},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    pst_evals_workload *w = NULL;
    int code = open_with(cases[i].workload, cases[i].items, cases[i].trace, &w);
    if (code != PST_E_BAD_INPUT || w || !strstr(err.place, cases[i].place) || !strstr(err.message, cases[i].message))
      fail_msg("case %zu: %d %s: %s", i, code, err.place, err.message);
  }
  pst_evals_workload *w = NULL;
  assert_int_equal(pst_evals_workload_open("/nonexistent/folder", &w, &err), PST_E_NOT_FOUND);
  assert_int_equal(open_with(good, NULL, NULL, &w), PST_E_NOT_FOUND);
}

/* ---- clusters, input, trace ---- */

static void opened(void **state) {
  (void)state;
  pst_evals_workload *w = NULL;
  static const char workload[] =
      HEAD "{\"kind\":\"text\",\"input\":{\"pattern\":\"Q: (.*)\"}}" PROMPTS ",\"grader\":{\"type\":\"exact\"}" GOAL;
  static const char items[] = ITEM("a", "Q: send it back to me please", "\"x\"", "verify")
      ITEM("b", "Q: Send it back to me, please!", "[\"y\",\"z\"]", "verify")
          ITEM("c", "Q: something else", "{\"k\": 1}", "sealed");
  if (open_with(workload, items, "{\"t_ms\":1.5,\"item\":\"c\"}\n", &w)) fail_msg("%s: %s", err.place, err.message);
  const pst_evals_info *info = pst_evals_workload_info(w);
  assert_int_equal(info->n_items, 3);
  assert_true(pst_str_is(info->items[2].input, "something else") && pst_str_is(info->items[2].expected, "{\"k\":1}"));
  assert_int_equal(info->items[0].cluster, info->items[1].cluster);
  assert_int_not_equal(info->items[0].cluster, info->items[2].cluster);
  assert_true(info->n_trace == 1 && info->trace[0].arrival_us == 1500 && info->trace[0].item == 2);
  assert_true(info->max_tokens >= 8 && info->goal.minimize_cost && !info->allow_remote);
  pst_evals_grade g;
  assert_int_equal(pst_evals_grade_answer(w, &info->items[1], PST_STR("z"), &g, &err), 0);
  assert_true(g.accepted); /* any of a list */
  pst_evals_workload_free(w);
}

/* ---- graders ---- */

static bool accepts(const pst_evals_workload *w, pst_str answer, double *ret_score) {
  pst_evals_grade g = {false, -1};
  if (pst_evals_grade_answer(w, &pst_evals_workload_info(w)->items[0], answer, &g, &err)) fail_msg("%s", err.message);
  assert_true(g.score >= 0 && g.score <= 1 && (!g.accepted || g.score == 1));
  if (ret_score) *ret_score = g.score;
  return g.accepted;
}

static pst_evals_workload *grader_for(const char *workload, const char *reference) {
  pst_evals_workload *w = NULL;
  pst_buf items = PST_BUF_INIT;
  pst_buf_printf(
      &items,
      "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"reference\":%s,\"part\":\"verify\"}\n",
      reference);
  if (open_with(workload, pst_buf_text(&items), NULL, &w)) fail_msg("%s: %s", err.place, err.message);
  pst_buf_done(&items);
  return w;
}

static void graders(void **state) {
  (void)state;
#define LABELS "[\"cancel\",\"cancel_order\",\"refund status\"]"
#define NUMERIC TEXT_TASK("{\"type\":\"numeric\",\"tolerance\":0.01}")
#define JSON_ALL TEXT_TASK("{\"type\":\"json\"}")
#define SQL TEXT_TASK("{\"type\":\"sql\"}")
  static const struct {
    const char *workload, *reference, *answer;
    bool right;
  } cases[] = {
      {TEXT_TASK("{\"type\":\"exact\"}"), "\"Yes\"", " Yes\n", true},
      {TEXT_TASK("{\"type\":\"exact\"}"), "\"Yes\"", "yes", false},
      {TEXT_TASK("{\"type\":\"normalized\"}"), "\"Caf\\u00e9 au lait\"", "**CAFE\xcc\x81  au\nlait.**", true},
      {TEXT_TASK("{\"type\":\"normalized\"}"), "\"-5\"", "5", false},
      {TEXT_TASK("{\"type\":\"normalized\"}"), "\"?\"", "!", false},
      {TEXT_TASK("{\"type\":\"normalized\"}"), "\"5%\"", "5", false},
      {TEXT_TASK("{\"type\":\"contains\"}"), "\"red car\"", "It is a Red  car, I think", true},
      {TEXT_TASK("{\"type\":\"contains\"}"), "\"red car\"", "a red cart", false},
      {TEXT_TASK("{\"type\":\"contains\"}"), "\"\\u2615\"", "here \xe2\x98\x95 you go", true},
      {TEXT_TASK("{\"type\":\"regex\"}"), "\"^[A-Z]{2}-\\\\d+$\"", "KC-12", true},
      {TEXT_TASK("{\"type\":\"regex\"}"), "\"^[A-Z]{2}-\\\\d+$\"", "kc-12", false},
      {TEXT_TASK("{\"type\":\"regex\",\"caseless\":true}"), "\"^[A-Z]{2}-\\\\d+$\"", "kc-12", true},
      {NUMERIC, "1234.5", "The total is $1,234.50.", true},
      {NUMERIC, "1234.5", "1,234.6", false},
      {NUMERIC, "-4", "3 - 7 = -4", true},
      {NUMERIC, "4", "from 3-4", true},
      {NUMERIC, "-4",
       "\xe2\x88\x92"
       "4",
       true},
      {NUMERIC, "4", "model gpt4", false},
      {NUMERIC, "4", "", false},
      {NUMERIC, "1000", "1e3", true},
      {CHOICE(LABELS), "\"cancel_order\"", "cancel_order", true},
      {CHOICE(LABELS), "\"cancel_order\"", "The label is **Cancel order**.", true},
      {CHOICE(LABELS), "\"cancel\"", "cancel order", false},
      {CHOICE(LABELS), "\"cancel\"", "cancel, or refund status", false},
      {CHOICE(LABELS), "\"cancel\"", "cancelled", false},
      {CHOICE("[\"C\",\"C++\"]"), "\"C++\"", "C++", true},
      {CHOICE("[\"C\",\"C++\"]"), "\"C\"", "C++", false},
      {JSON_ALL, "{\"a\":1,\"s\":{\"x\":\"y\"}}", "```json\n{\"s\":{\"x\":\"y\"},\"a\":1.0}\n```", true},
      {JSON_ALL, "{\"a\":1}", "{\"a\":1,\"b\":2}", false},
      {JSON_ALL, "{\"a\":1}", "Sure: {\"a\":1}", false},
      {JSON_ALL, "{\"a\":\"Paris\"}", "{\"a\":\"paris\"}", false},
      {TEXT_TASK("{\"type\":\"json\",\"loose_text\":true}"), "{\"a\":\"Paris\"}", "{\"a\":\" paris\"}", true},
      {TEXT_TASK("{\"type\":\"json\",\"fields\":[\"s.x\",\"q\"]}"), "{\"s\":{\"x\":1,\"y\":2}}",
       "{\"s\":{\"x\":1,\"y\":3}}", true},
      {TEXT_TASK("{\"type\":\"json\",\"fields\":[\"s.x\",\"q\"]}"), "{\"s\":{\"x\":1}}", "{\"s\":{\"x\":1},\"q\":0}",
       false},
      {TEXT_TASK("{\"type\":\"json\",\"fields\":[\"q\"]}"), "{\"s\":1}", "7", false},
      {SQL, "\"SELECT a FROM t WHERE b = 'Max Redfield'\"", "select A\nfrom T where B=\"max redfield\" ; ;", true},
      {SQL, "\"SELECT a FROM t WHERE b = 'x'\"", "```sql\nSELECT a FROM t WHERE b = 'x';\n```", true},
      {SQL, "\"SELECT a FROM t WHERE b = 'x'\"", "SELECT a FROM t WHERE b = x", false},
      {SQL, "\"SELECT a FROM t WHERE b = 'x y'\"", "SELECT a FROM t WHERE b = 'xy'", false},
      {SQL, "\"SELECT a FROM t WHERE b = 'x'\"", "The SQL is SELECT a FROM t WHERE b = 'x'", false},
      {SQL, "\"SELECT ab FROM t\"", "SELECT a b FROM t", false},
      {SQL, "\"SELECT a FROM t WHERE b = 2000 AND c > -1.5\"", "SELECT `a` FROM t WHERE c > '-1.5' AND b = \"2000\"",
       true},
      {SQL, "\"SELECT a FROM t WHERE b = '2000-01'\"", "SELECT a FROM t WHERE b = 2000-01", false},
      {SQL, "\"SELECT a FROM t WHERE b <> 1 AND c == 2\"", "SELECT a FROM t WHERE c = 2 AND b != 1", true},
      {SQL, "\"SELECT a FROM t WHERE b = 'O''Brien' AND b = 'o p'\"",
       "SELECT a FROM t WHERE b = 'O p' AND b = \"O'Brien\"", true},
      {SQL, "\"SELECT a FROM t WHERE b = 1 AND c = 2 AND d = 3 ORDER BY e\"",
       "SELECT a FROM t WHERE d = 3 AND b = 1 AND c = 2 ORDER BY e", true},
      {SQL, "\"SELECT a FROM t WHERE b = 1 AND c = 2\"", "SELECT a FROM t WHERE b = 2 AND c = 1", false},
      {SQL, "\"SELECT a FROM t WHERE b = 1 AND c = 2\"", "SELECT a FROM t WHERE b = 1 AND c = 2 AND b = 1", false},
      {SQL, "\"SELECT a FROM t WHERE b = 1 AND c = 2 OR d = 3\"", "SELECT a FROM t WHERE c = 2 AND b = 1 OR d = 3",
       false},
      {SQL, "\"SELECT a FROM t WHERE b BETWEEN 1 AND 2 AND c = 3\"",
       "SELECT a FROM t WHERE c = 3 AND b BETWEEN 1 AND 2", true},
      {SQL, "\"SELECT a FROM t WHERE b BETWEEN 1 AND 2 AND c = 3\"",
       "SELECT a FROM t WHERE b BETWEEN 2 AND 1 AND c = 3", false},
      {SQL, "\"SELECT a FROM t WHERE b IN (SELECT c FROM u WHERE d = 1 AND e = 2) AND f = 3\"",
       "SELECT a FROM t WHERE f = 3 AND b IN (SELECT c FROM u WHERE e = 2 AND d = 1)", true},
      {SQL, "\"SELECT a FROM t WHERE CASE WHEN b AND c THEN 1 ELSE 0 END = 1 AND d = 2\"",
       "SELECT a FROM t WHERE d = 2 AND CASE WHEN b AND c THEN 1 ELSE 0 END = 1", true},
      {SQL, "\"SELECT a FROM t WHERE CASE WHEN b AND c THEN 1 ELSE 0 END = 1\"",
       "SELECT a FROM t WHERE CASE WHEN c AND b THEN 1 ELSE 0 END = 1", false},
      {SQL, "\"SELECT a ( FROM t WHERE b = 1 AND c = 2\"", "SELECT a ( FROM t WHERE c = 2 AND b = 1",
       false}, /* broken: in order */
      {SQL, "\"SELECT a ( FROM t WHERE b = 'x\"", "select a (from t where b='X", true},
      {SQL, "[\"SELECT a FROM t\",\"SELECT b FROM t\"]", "select b from t;", true},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    pst_evals_workload *w = grader_for(cases[i].workload, cases[i].reference);
    if (accepts(w, pst_str_from(cases[i].answer), NULL) != cases[i].right)
      fail_msg("case %zu: \"%s\" for %s should %sbe accepted", i, cases[i].answer, cases[i].reference,
               cases[i].right ? "" : "not ");
    pst_evals_workload_free(w);
  }
  pst_evals_workload *w = grader_for(JSON_ALL, "{\"a\":1,\"b\":2}");
  double score = 0;
  assert_false(accepts(w, PST_STR("{\"a\":1,\"b\":3,\"c\":4}"), &score));
  assert_true(score > 0.33 && score < 0.34); /* one right of three seen on either side */
  pst_evals_workload_free(w);
}

/* Long statements of nothing but clauses, conditions, parentheses and quotes, closed and not: each is graded, and in no time that grows with their square. */
static void hostile_sql(void **state) {
  (void)state;
  static const char *const parts[] = {"where ",      "where a and ", "(where b and ", "(",           ") and ",
                                      "case where ", "end ",         "'\"`",          "between and "};
  static const char *const deep[] = {"select (", "where (x and a in ("}; /* closed again */
  pst_buf text = PST_BUF_INIT;
  for (size_t i = 0; i < PST_ARRAY_LEN(parts) + PST_ARRAY_LEN(deep); i++) {
    pst_buf_clear(&text);
    bool nests = i >= PST_ARRAY_LEN(parts);
    const char *part = nests ? deep[i - PST_ARRAY_LEN(parts)] : parts[i];
    for (int k = 0; k < 50000; k++) pst_buf_puts(&text, part);
    for (int k = 0; nests && k < 50000 * (i == PST_ARRAY_LEN(parts) ? 1 : 2); k++) pst_buf_puts(&text, ")");
    pst_evals_workload *w = grader_for(SQL, "\"SELECT a\"");
    assert_false(accepts(w, pst_buf_str(&text), NULL));
    pst_evals_workload_free(w);
  }
  pst_buf_done(&text);
}

/* Whatever a model writes is graded: long, not UTF-8, deep. And what is expected is always accepted. */
static void hostile(void **state) {
  (void)state;
  static const struct {
    const char *workload, *reference;
  } kinds[] = {
      {TEXT_TASK("{\"type\":\"exact\"}"), "\"k\""},
      {TEXT_TASK("{\"type\":\"normalized\"}"), "\"k\""},
      {TEXT_TASK("{\"type\":\"contains\"}"), "\"k\""},
      {TEXT_TASK("{\"type\":\"regex\"}"), "\"^(a+)+$\""},
      {NUMERIC, "7"},
      {JSON_ALL, "{\"k\":1}"},
      {CHOICE(LABELS), "\"cancel\""},
      {SQL, "\"SELECT a FROM t WHERE b = 1 AND c = 2\""},
  };
  size_t n = (size_t)test_scale(2048, 128, 2048) << 10;
  char *large = malloc(n);
  assert_non_null(large);
  for (size_t i = 0; i < PST_ARRAY_LEN(kinds); i++) {
    pst_evals_workload *w = grader_for(kinds[i].workload, kinds[i].reference);
    static const char fills[] = {'[', '{', '9', ' ', '"', '\xff', '\xe2', ',', '-', 'b'};
    for (size_t k = 0; k < sizeof fills; k++) {
      memset(large, fills[k], n);
      assert_false(accepts(w, (pst_str){large, n}, NULL));
    }
    assert_false(accepts(w, (pst_str){NULL, 0}, NULL));
    assert_false(accepts(w, (pst_str){"\0\0", 2}, NULL));
    pst_random r = {11, i, 0};
    for (int k = 0; k < 300; k++) {
      size_t bytes = (size_t)pst_random_below(&r, 60);
      for (size_t b = 0; b < bytes; b++) large[b] = (char)pst_random_below(&r, 256);
      (void)accepts(w, (pst_str){large, bytes}, NULL);
    }
    pst_evals_workload_free(w);
  }
  free(large);
}

/* ---- uses of a part ---- */

static int64_t uses_of(pst_store *store, const char *items) {
  pst_evals_workload *w = NULL;
  int64_t n = -1;
  assert_int_equal(open_with(TEXT_TASK("{\"type\":\"exact\"}"), items, NULL, &w), 0);
  assert_int_equal(pst_evals_uses(store, w, PST_EVALS_VERIFY, &n, &err), 0);
  pst_evals_workload_free(w);
  return n;
}

static void add_run(pst_store *store, const char *format, const char *hash) {
  char params[256];
  int64_t id = 0;
  (void)snprintf(params, sizeof params, format, hash);
  assert_int_equal(pst_store_run_create(store, PST_STR("eval"), PST_STR("w"), pst_str_from(params), 1, &id, &err), 0);
  assert_int_equal(pst_store_run_append(store, id, PST_STR("a"), PST_STR("{}"), true, &err), 0);
}

/* A folder with more examples asks the same items to judge by: they wear out over all of them. */
static void a_part_is_known_again(void **state) {
  (void)state;
#define JUDGING ITEM("a", "one", "\"x\"", "verify") ITEM("b", "two words", "\"y\"", "search")
  char *dir = test_temp_dir();
  pst_store *store = NULL;
  pst_evals_workload *w = NULL;
  assert_int_equal(pst_store_open(dir, &store, &err), 0);
  assert_int_equal(open_with(TEXT_TASK("{\"type\":\"exact\"}"), JUDGING, NULL, &w), 0);
  assert_int_equal(uses_of(store, JUDGING), 0);
  add_run(store, "{\"parts\":{\"verify\":\"%s\"}}", w->part_hash[PST_EVALS_VERIFY]);
  add_run(store, "{\"parts\":{\"search\":\"%s\"}}", w->part_hash[PST_EVALS_SEARCH]);
  assert_int_equal(uses_of(store, JUDGING), 1);
  assert_int_equal(uses_of(store, JUDGING ITEM("c", "three", "\"z\"", "examples")), 1);
  assert_int_equal(uses_of(store, ITEM("a", "one", "\"z\"", "verify")), 0);
  assert_int_equal(uses_of(store, ITEM("a", "another", "\"x\"", "verify")), 0);
  assert_int_equal(uses_of(store, ITEM("a", "one", "\"x\"", "sealed") ITEM("b", "two", "\"y\"", "verify")), 0);
  add_run(store, "{\"data\":\"%s\",\"parts\":[\"verify\"]}", w->items_hash); /* as runs once were written */
  assert_int_equal(uses_of(store, JUDGING), 2);
  assert_int_equal(uses_of(store, JUDGING ITEM("c", "three", "\"z\"", "examples")), 1);
  pst_evals_workload_free(w);
  pst_store_close(store);
  test_temp_remove(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(copied_fields_are_found),
      cmocka_unit_test(refused),
      cmocka_unit_test(opened),
      cmocka_unit_test(graders),
      cmocka_unit_test(hostile),
      cmocka_unit_test(hostile_sql),
      cmocka_unit_test(a_part_is_known_again),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
