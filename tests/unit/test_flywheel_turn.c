/* A turn's first step: records become examples in a folder, as far as a workload's items can say them; and what deletion does to the folder and to a turn that has not ended. */
#include <penstock/data.h>
#include <penstock/flywheel.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/gateway.h"
#include "support/ok.h"
#include "support/temp.h"

static test_gateway shared;
static pst_error err;
static pst_evals_workload *workload;

static void make_workload(void) {
  pst_buf rows = PST_BUF_INIT;
  const char *path = test_temp_path(shared.home, "rows.jsonl"), *folder = test_temp_path(shared.home, "desk");
  for (int i = 0; i < 40; i++)
    pst_buf_printf(&rows, "{\"text\":\"item%d about a%d and b%d\",\"answer\":\"reply number %d\"}\n", i, i * 7, i * 11,
                   i);
  test_temp_write(path, rows.data, rows.n);
  OK(pst_evals_import(path, folder, &(pst_evals_import_options){.name = "desk"}, NULL, &err));
  OK(pst_evals_workload_open(folder, &workload, &err));
  pst_buf_done(&rows);
}

/* Two that items can say, one of them in parts and one of ann; a picture, a tool, and a first message in parts. */
static void make_records(void) {
#define ANSWER "{\"role\":\"assistant\",\"content\":\"an answer\"}"
  static const char rows[] =
      "{\"messages\":[{\"role\":\"user\",\"content\":\"quixotic zebra of ann\"}," ANSWER "],\"subject\":\"ann\"}\n"
      "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"in two \"},{\"type\":\"text\","
      "\"text\":\"parts said\"}]}," ANSWER "]}\n"
      "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"see this\"},{\"type\":\"image_url\","
      "\"image_url\":{\"url\":\"data:image/png;base64,AA\"}}]}," ANSWER "]}\n"
      "{\"messages\":[{\"role\":\"user\",\"content\":\"call it\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":"
      "[{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\","
      "\"tool_call_id\":\"c\",\"content\":\"done\"},{\"role\":\"user\",\"content\":\"what did it say\"}," ANSWER "]}\n"
      "{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"text\",\"text\":\"Be short.\"}]},{\"role\":\"user\","
      "\"content\":\"mixed company walks home\"}," ANSWER "]}\n";
  const char *path = test_temp_path(shared.home, "records.jsonl");
  pst_data_imported done;
  test_temp_write(path, rows, sizeof rows - 1);
  pst_data_import_options o = {.workload = PST_STR("desk"), .consent = {.keep = PST_STORE_KEEP_CONTENT, .train = true}};
  OK(pst_data_import(shared.store, path, &o, &done, &err));
  assert_int_equal(done.n_new, 5);
}

static int set_up(void **state) {
  (void)state;
  shared = test_gateway_open(NULL);
  make_workload();
  make_records();
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  pst_evals_workload_free(workload);
  test_gateway_close(&shared);
  return 0;
}

static bool behind_so_many_steps(void *user) { return --*(int *)user < 0; }

/* So many of the steps that are not done yet are done, and no more. */
static void begin_turn(int n_steps) {
  pst_flywheel_turn_result r;
  const pst_flywheel_turn_options o = {
      .model = "none", .seed = 1, .quiet = true, .cancelled = behind_so_many_steps, .user = &n_steps};
  assert_int_equal(pst_flywheel_turn(shared.gateway, shared.store, workload, &o, &r, &err), PST_E_CANCELLED);
}

typedef struct turns {
  int n, n_cancelled;
  int64_t last;
} turns;

static int count_turn(void *user, const pst_store_run *run) {
  turns *t = user;
  t->n++;
  t->n_cancelled += run->state == PST_STORE_RUN_CANCELLED;
  t->last = PST_MAX(t->last, run->id);
  return 0;
}

typedef struct wanted_row {
  const char *key;
  pst_json_doc *doc;
} wanted_row;

static int take_row(void *user, int64_t seq, pst_str key, pst_str json) {
  wanted_row *row = user;
  (void)seq;
  return pst_str_is(key, row->key) ? pst_json_parse(json.data, json.n, "row", &row->doc, &err) : 0;
}

/* What a step of the newest turn left. */
static pst_json_doc *last_row(const char *key, turns *ret_turns) {
  wanted_row row = {key, NULL};
  *ret_turns = (turns){0, 0, 0};
  OK(pst_store_run_each(shared.store, PST_STR("turn"), PST_STR("desk"), 0, count_turn, ret_turns, &err));
  OK(pst_store_run_rows(shared.store, ret_turns->last, 0, take_row, &row, &err));
  assert_non_null(row.doc);
  return row.doc;
}

static pst_json_doc *last_data(turns *ret_turns) { return last_row("data", ret_turns); }

static double number(const pst_json_doc *doc, const char *key) {
  return pst_json_double(pst_json_get(pst_json_root(doc), key), -1);
}

static const char *folder_of(const pst_json_doc *doc, char out[600]) {
  pst_str s = pst_json_str(pst_json_get(pst_json_root(doc), "folder"));
  (void)snprintf(out, 600, "%.*s", (int)s.n, s.data);
  return out;
}

static bool has_text(const char *folder, const char *text) {
  char *data = NULL;
  size_t n = 0;
  OK(pst_file_read(test_temp_path(folder, "items.jsonl"), 1 << 20, &data, &n, &err));
  bool found = pst_str_find((pst_str){data, n}, pst_str_from(text), 0) != SIZE_MAX;
  pst_free(data);
  return found;
}

static void records_become_items(void **state) {
  (void)state;
  turns all;
  char folder[600];
  pst_evals_workload *own = NULL;
  begin_turn(1);
  pst_json_doc *data = last_data(&all);
  assert_int_equal(all.n, 1);
  assert_true(number(data, "records") == 5 && number(data, "kept") == 5);
  assert_true(number(data, "added") == 3 && number(data, "without_text") == 2);
  (void)folder_of(data, folder);
  OK(pst_evals_workload_open(folder, &own, &err));
  assert_int_equal(pst_evals_workload_info(own)->n_items, pst_evals_workload_info(workload)->n_items + 3);
  assert_true(has_text(folder, "quixotic zebra") && has_text(folder, "in two parts said") &&
              has_text(folder, "Be short.") && !has_text(folder, "what did it say"));
  pst_evals_workload_free(own);
  pst_json_free(data);
  begin_turn(1); /* goes on with the same */
  pst_json_free(last_data(&all));
  assert_int_equal(all.n, 1);
}

/* Behind the deletion of a record its text is nowhere, and the unfinished turn is over: the next learns from what is left. */
static void deletion_reaches_an_unfinished_turn(void **state) {
  (void)state;
  turns all;
  char before[600], after[600];
  pst_buf row = PST_BUF_INIT;
  pst_store_erasure e;
  pst_json_doc *data = last_data(&all);
  (void)folder_of(data, before);
  pst_json_free(data);
  assert_true(has_text(before, "quixotic zebra"));
  const char *checkpoint = test_temp_path(shared.home, "some.checkpoint");
  test_temp_write(checkpoint, "numbers", 7);
  pst_buf_printf(&row, "{\"checkpoint\":\"%s\"}", checkpoint);
  OK(pst_store_run_append(shared.store, all.last, PST_STR("encoder"), pst_buf_str(&row), true, &err));
  pst_buf_done(&row);
  OK(pst_store_records_erase(shared.store, PST_STR("ann"), (pst_str){NULL, 0}, 1, &e, &err));
  assert_int_equal(e.n_uses, 1);
  assert_string_equal(e.uses[0].kind, PST_STORE_PRODUCT_FOLDER);
  pst_store_erasure_done(&e);
  assert_false(pst_dir_exists(before));
  begin_turn(1);
  data = last_data(&all);
  assert_int_equal(all.n, 2);
  assert_int_equal(all.n_cancelled, 1);
  assert_false(pst_file_exists(checkpoint));
  assert_true(number(data, "added") == 2);
  (void)folder_of(data, after);
  assert_false(has_text(after, "quixotic zebra"));
  assert_true(has_text(after, "in two parts said"));
  pst_json_free(data);
}

/* ---- what users said ---- */

enum { N_JUDGED = 60 };

static int say(void *user, const pst_store_request *r) {
  const int *thumbs = user;
  const pst_store_feedback f = {.completion_id = r->completion_id, .time_ms = 9, .thumbs = *thumbs};
  return pst_store_feedback_put(shared.store, &f, &err);
}

/* A subject's answers, all liked or all not. */
static void add_judged(int thumbs, const char *subject) {
  const pst_data_import_options o = {.workload = PST_STR("desk"),
                                     .consent = {.keep = PST_STORE_KEEP_CONTENT, .train = true}};
  const char *path = test_temp_path(shared.home, "judged.jsonl");
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  pst_data_imported done;
  pst_buf rows = PST_BUF_INIT;
  for (int i = 0; i < N_JUDGED / 2; i++)
    pst_buf_printf(&rows,
                   "{\"messages\":[{\"role\":\"user\",\"content\":\"%s%d asks for c%d of d%d\"}," ANSWER
                   "],\"subject\":\"%s\"}\n",
                   subject, i, i * 7, i * 13, subject);
  test_temp_write(path, rows.data, rows.n);
  OK(pst_data_import(shared.store, path, &o, &done, &err));
  f.origin = PST_STORE_ANY_ORIGIN;
  f.subject = pst_str_from(subject);
  OK(pst_store_request_each(shared.store, &f, say, &thumbs, &err));
  pst_buf_done(&rows);
}

static bool has_objective(const pst_json_doc *said, const char *name) {
  return pst_str_is(pst_json_str(pst_json_get(pst_json_root(said), "objective")), name);
}

/* Thumbs alone make marks, when there are enough of both kinds; where their records go the turn does not go on. */
static void what_was_said_is_counted(void **state) {
  (void)state;
  turns all;
  pst_store_erasure e;
  begin_turn(2);
  pst_json_doc *said = last_row("said", &all);
  assert_true(number(said, "feedback") == 0 && has_objective(said, ""));
  pst_json_free(said);
  OK(pst_store_run_end(shared.store, all.last, PST_STORE_RUN_CANCELLED, (pst_str){NULL, 0}, 9, &err));
  add_judged(1, "carl");
  begin_turn(2);
  said = last_row("said", &all);
  assert_true(number(said, "liked") == N_JUDGED / 2 && has_objective(said, "")); /* all of one kind */
  pst_json_free(said);
  OK(pst_store_run_end(shared.store, all.last, PST_STORE_RUN_CANCELLED, (pst_str){NULL, 0}, 9, &err));
  add_judged(-1, "dora");
  begin_turn(2);
  said = last_row("said", &all);
  assert_true(number(said, "liked") == N_JUDGED / 2 && number(said, "disliked") == N_JUDGED / 2);
  assert_true(number(said, "pairs") == 0 && has_objective(said, "kto"));
  pst_json_free(said);
  int n = all.n;
  OK(pst_store_records_erase(shared.store, PST_STR("dora"), (pst_str){NULL, 0}, 10, &e, &err));
  pst_store_erasure_done(&e);
  begin_turn(2);
  said = last_row("said", &all);
  assert_int_equal(all.n, n + 1);
  assert_true(number(said, "disliked") == 0 && has_objective(said, ""));
  pst_json_free(said);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(records_become_items),
                                     cmocka_unit_test(deletion_reaches_an_unfinished_turn),
                                     cmocka_unit_test(what_was_said_is_counted)};
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
