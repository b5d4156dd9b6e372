/* Records become an adapter: corrections make pairs, thumbs and scores make marks, a teacher answers where the answer was not wanted; what judges plans is left out, and too
 * little of it is said in numbers. */
#include <penstock/data.h>
#include <penstock/flywheel.h>

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/gateway.h"
#include "support/ok.h"
#include "support/raw_peer.h"
#include "support/temp.h"
#include "support/tiny_model.h"

enum { N_RECORDS = 40 };

static test_gateway shared;
static pst_error err;
static pst_evals_workload *workload;
static char model_path[512];
static char ids[N_RECORDS][80];
static int n_ids;

/* Texts that share few words. */
static void text_of(int i, const char *kind, char out[96]) {
  snprintf(out, 96, "%s%d about %c%d and %c%d then %c%d", kind, i, 'a' + i % 26, i * 7, 'b' + i % 20, i * 11,
           'c' + i % 15, i * 13);
}

static void make_workload(void) {
  pst_buf rows = PST_BUF_INIT;
  const char *path = test_temp_path(shared.home, "rows.jsonl");
  for (int i = 0; i < 60; i++) {
    char text[96];
    text_of(i, "item", text);
    pst_buf_printf(&rows, "{\"text\":\"%s\",\"answer\":\"reply number %d\"}\n", text, i);
  }
  test_temp_write(path, rows.data, rows.n);
  const char *folder = test_temp_path(shared.home, "desk");
  OK(pst_evals_import(path, folder, &(pst_evals_import_options){.name = "desk"}, NULL, &err));
  OK(pst_evals_workload_open(folder, &workload, &err));
  pst_buf_done(&rows);
}

static int note_id(void *user, const pst_store_request *r) {
  (void)user;
  snprintf(ids[n_ids++], sizeof ids[0], "%.*s", (int)r->completion_id.n, r->completion_id.data);
  return 0;
}

/* Records of `desk`: fresh ones, the first of them an item that judges. */
static void make_records(void) {
  pst_buf rows = PST_BUF_INIT;
  const pst_evals_info *info = pst_evals_workload_info(workload);
  const char *path = test_temp_path(shared.home, "records.jsonl");
  pst_data_imported done;
  size_t judging = 0;
  while (info->items[judging].part != PST_EVALS_VERIFY) judging++;
  for (int i = 0; i < N_RECORDS; i++) {
    char text[96];
    text_of(i + 1000, "record", text);
    if (i == 0) snprintf(text, sizeof text, "%.*s", (int)info->items[judging].input.n, info->items[judging].input.data);
    pst_buf_printf(&rows, "{\"text\":\"%s\",\"answer\":\"first reply %d\"}\n", text, i);
  }
  test_temp_write(path, rows.data, rows.n);
  pst_data_import_options o = {.workload = PST_STR("desk"), .consent = {.keep = PST_STORE_KEEP_CONTENT, .train = true}};
  OK(pst_data_import(shared.store, path, &o, &done, &err));
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  f.origin = PST_STORE_ANY_ORIGIN;
  OK(pst_store_request_each(shared.store, &f, note_id, NULL, &err));
  assert_int_equal(n_ids, N_RECORDS);
  pst_buf_done(&rows);
}

static int set_up(void **state) {
  (void)state;
  shared = test_gateway_open(NULL);
  snprintf(model_path, sizeof model_path, "%s", test_temp_path(shared.home, "tiny.gguf"));
  test_tiny_write(model_path, &(test_tiny){.seed = 4});
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

static void say(int record, pst_store_feedback f) {
  f.completion_id = pst_str_from(ids[record]);
  f.time_ms = 1000 + record;
  OK(pst_store_feedback_put(shared.store, &f, &err));
}

static pst_flywheel_tune_options options_of(pst_tune_objective objective, const char *from) {
  pst_flywheel_tune_options o = {.tune = {.model = model_path,
                                          .held_out_share = 0.2,
                                          .max_held_out = 64,
                                          .from = from,
                                          .training = pst_tune_options_default()},
                                 .min_score = 0.5};
  o.tune.training.objective = objective;
  o.tune.training.steps = 4;
  o.tune.training.batch_texts = 4;
  o.tune.training.rank = 4;
  o.tune.training.alpha = 8;
  o.tune.training.threads = 1;
  return o;
}

static int tune(pst_tune_objective objective, const char *from, pst_flywheel_tune_result *r) {
  pst_flywheel_tune_options o = options_of(objective, from);
  return pst_flywheel_tune(shared.gateway, shared.store, workload, &o, r, &err);
}

static void nothing_was_said(void **state) {
  (void)state;
  pst_flywheel_tune_result r;
  assert_int_equal(tune(PST_TUNE_DPO, NULL, &r), PST_E_NO_DATA);
  assert_non_null(strstr(err.message, "8 at least, and 0 of 40 records"));
  assert_int_equal(tune(PST_TUNE_KTO, NULL, &r), PST_E_NO_DATA);
  assert_non_null(strstr(err.message, "in 40 records 0 are good and 0 bad"));
  for (int i = 20; i < 32; i++) say(i, (pst_store_feedback){.thumbs = 1});
  assert_int_equal(tune(PST_TUNE_KTO, NULL, &r), PST_E_NO_DATA);
  assert_non_null(strstr(err.message, "12 are good and 0 bad"));
}

typedef struct counted {
  int pairs, wanted, unwanted, held;
} counted;

static int count(void *user, const pst_data_preference *p) {
  counted *c = user;
  c->pairs += p->wanted.data && p->unwanted.data;
  c->wanted += p->wanted.data && !p->unwanted.data;
  c->unwanted += !p->wanted.data;
  c->held += p->held;
  if (p->wanted.data && p->unwanted.data) {
    assert_true(pst_str_starts(p->wanted, PST_STR("a better reply")));
    assert_true(pst_str_starts(p->unwanted, PST_STR("first reply")));
  }
  assert_int_equal(pst_json_size(p->messages), 1);
  return 0;
}

static void what_was_said_is_a_data_set(void **state) {
  (void)state;
  pst_data_curated done;
  pst_buf report = PST_BUF_INIT, text = PST_BUF_INIT;
  counted c = {0};
  for (int i = 0; i < 16; i++) {
    char better[40];
    snprintf(better, sizeof better, "a better reply %d", i);
    say(i, (pst_store_feedback){.correction = pst_str_from(better)});
  }
  for (int i = 32; i < 36; i++) say(i, (pst_store_feedback){.thumbs = -1});
  say(36, (pst_store_feedback){.has_score = true, .score = 0.2});
  say(37, (pst_store_feedback){.has_score = true, .score = 0.9});
  pst_data_curate_options o = {
      .workload = PST_STR("desk"), .held = 0.2, .kind = PST_DATA_PREFERENCES, .form = workload};
  OK(pst_data_curate(shared.store, &o, &done, &report, &err));
  assert_int_equal(done.n_by_reason[PST_DATA_CONTAMINATED], 1); /* the correction of an item that judges */
  assert_int_equal(done.n_by_reason[PST_DATA_UNJUDGED], 6);     /* 16 to 19, 38, 39 */
  assert_int_equal(done.n_pairs, 15);
  assert_int_equal(done.n_liked, 13);
  assert_int_equal(done.n_disliked, 5);
  OK(pst_data_report_text(pst_buf_str(&report), &text, &err));
  assert_non_null(strstr(pst_buf_text(&text), "15 beside what they correct, 13 liked, 5 disliked"));
  OK(pst_data_set_each_preference(shared.store, pst_str_from(done.hash), count, &c, &err));
  assert_int_equal(c.pairs, 15);
  assert_int_equal(c.wanted, 13);
  assert_int_equal(c.unwanted, 5);
  assert_int_equal(c.held, done.n_held);
  assert_true(c.held >= 4);
  assert_int_equal(pst_data_set_each_line(shared.store, pst_str_from(done.hash), NULL, NULL, &err), PST_E_BAD_INPUT);
  pst_buf_done(&report);
  pst_buf_done(&text);
}

static int name_use(void *user, pst_str hash, pst_str kind, pst_str name, bool stale) {
  (void)hash;
  if (pst_str_is(kind, "adapter") && pst_str_is(name, user) && !stale) n_ids = -1;
  return 0;
}

static void an_adapter_comes_of_it(void **state) {
  (void)state;
  pst_flywheel_tune_result r, second;
  OK(tune(PST_TUNE_DPO, NULL, &r));
  assert_true(r.tuned.n_texts >= 8 && r.tuned.n_texts + r.tuned.n_held_out == 15);
  assert_int_equal(r.tuned.report.n_steps, 4);
  assert_true(r.tuned.report.accuracy >= 0 && r.tuned.report.accuracy <= 1);
  n_ids = 0;
  OK(pst_store_data_set_uses(shared.store, (pst_str){NULL, 0}, name_use, r.tuned.adapter.name, &err));
  assert_int_equal(n_ids, -1); /* deleting a record reaches it */
  OK(tune(PST_TUNE_KTO, r.tuned.adapter.name, &second));
  assert_int_equal(second.tuned.n_texts + second.tuned.n_held_out, 2 * 15 + 13 + 5);
  assert_string_not_equal(r.tuned.adapter.file, second.tuned.adapter.file);
  assert_int_equal(second.tuned.adapter.rank, 4);
  assert_int_equal(tune(PST_TUNE_DPO, "nobody", &second), PST_E_NOT_FOUND);
  pst_free(r.tuned.plan_json);
  pst_free(second.tuned.plan_json);
}

typedef struct books {
  int64_t n_runs, n_calls;
} books;

static int read_books(void *user, const pst_store_run *run) {
  books *b = user;
  b->n_runs++;
  b->n_calls += run->n_rows;
  return 0;
}

static books books_of_teachers(void) {
  books b = {0, 0};
  OK(pst_store_run_each(shared.store, PST_STR("teacher"), PST_STR("desk"), 0, read_books, &b, &err));
  return b;
}

static int count_record(void *user, const pst_store_record_counts *c) {
  *(int64_t *)user += c->n_records;
  return 0;
}

static atomic_int n_polls;
static bool after_the_first_step(void *user) {
  (void)user;
  return atomic_fetch_add(&n_polls, 1) > 5;
}

/* Five answers were not wanted. What the teacher says in their place is booked, is no record, and is paid for once when training is interrupted. */
static void a_teacher_answers(void **state) {
  (void)state;
  char target[600];
  pst_flywheel_tune_result r, again;
  pst_flywheel_tune_options o = options_of(PST_TUNE_SFT, NULL);
  int64_t n_records = 0;
  snprintf(target, sizeof target, "model:%s", model_path);
  o.teacher = target;
  o.tune.training.cancelled = after_the_first_step;
  assert_int_equal(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &r, &err), PST_E_CANCELLED);
  assert_non_null(strstr(err.message, "after 1 of 4 steps"));
  assert_int_equal(books_of_teachers().n_calls, 5);
  o.tune.training.cancelled = NULL;
  OK(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &r, &err));
  assert_int_equal(r.taught.n_asked, 5);
  assert_int_equal(r.taught.n_kept, 5);
  assert_int_equal(r.taught.n_failed, 0);
  assert_true(r.taught.n_usable > 0);
  assert_int_equal(books_of_teachers().n_calls, 5);
  assert_int_equal(books_of_teachers().n_runs, 2);
  OK(pst_store_records_count(shared.store, count_record, &n_records, &err));
  assert_int_equal(n_records, N_RECORDS);
  o.teacher = NULL;
  OK(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &again, &err));
  assert_int_equal(r.tuned.n_texts, again.tuned.n_texts + (size_t)r.taught.n_usable);
  pst_free(again.tuned.plan_json);
  o.teacher = target; /* training was over: the texts are forgotten */
  OK(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &again, &err));
  assert_int_equal(again.taught.n_kept, 0);
  assert_string_equal(again.tuned.adapter.file, r.tuned.adapter.file);
  o.tune.training.objective = PST_TUNE_DPO;
  assert_int_equal(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &again, &err), PST_E_BAD_INPUT);
  o.tune.training.objective = PST_TUNE_SFT;
  o.teacher = "somebody/large";
  assert_int_not_equal(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &again, &err), 0);
  assert_non_null(strstr(err.message, "no provider"));
  pst_free(r.tuned.plan_json);
  pst_free(again.tuned.plan_json);
}

/* A provider that answers the first calls and then refuses: `n_good` more are answered. */
static void play(int fd, void *user) {
  static const char head[] = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n%s";
  static const char answer[] =
      "{\"id\":\"x\",\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
      "\"assistant\",\"content\":\"reply number 7\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,"
      "\"completion_tokens\":3,\"total_tokens\":13}}";
  atomic_int *n_good = user;
  pst_buf in = PST_BUF_INIT, out = PST_BUF_INIT;
  bool good = raw_read_request(fd, &in) && atomic_fetch_sub(n_good, 1) > 0;
  pst_buf_printf(&out, head, good ? "200 OK" : "500 Internal Server Error", good ? answer : "{}");
  (void)raw_try_send(fd, out.data, out.n);
  pst_buf_done(&in);
  pst_buf_done(&out);
}

/* The workload once more, where its items may be sent to a provider. */
static pst_evals_workload *open_for_providers(void) {
  const char *folder = test_temp_path(shared.home, "desk"), *path = test_temp_path(folder, "workload.json");
  char *text = NULL, *at;
  size_t n = 0;
  pst_evals_workload *open = NULL;
  OK(pst_file_read(path, 1 << 20, &text, &n, &err));
  at = strstr(strstr(text, "\"remote\""), "false");
  assert_non_null(at);
  memcpy(at, " true", 5);
  test_temp_write(path, text, n);
  pst_free(text);
  OK(pst_evals_workload_open(folder, &open, &err));
  return open;
}

/* Two of five calls are answered: no adapter comes of so few, and the two are not paid for again. Then four of five: that will do. */
static void a_teacher_fails(void **state) {
  (void)state;
  int port;
  char url[64];
  atomic_int n_good = 2;
  pst_flywheel_tune_result r;
  pst_flywheel_tune_options o = options_of(PST_TUNE_SFT, NULL);
  raw_server *server = raw_server_start(play, &n_good, &port);
  snprintf(url, sizeof url, "http://127.0.0.1:%d/v1", port);
  OK(pst_gateway_provider_set(shared.store, PST_STR("acme"), pst_str_from(url), PST_STR(""), &err));
  OK(pst_store_price_set(shared.store, PST_STR("acme"), PST_STR("*"), (pst_store_price){1, 1, 1}, &err));
  o.teacher = "acme/big";
  pst_evals_workload *open = open_for_providers();
  assert_int_equal(pst_flywheel_tune(shared.gateway, shared.store, open, &o, &r, &err), PST_E_UPSTREAM);
  if (!strstr(err.message, "3 of 5 calls")) fail_msg("%s", err.message);
  atomic_store(&n_good, 2); /* of the three that are left */
  OK(pst_flywheel_tune(shared.gateway, shared.store, open, &o, &r, &err));
  assert_int_equal(r.taught.n_kept, 2);
  assert_int_equal(r.taught.n_failed, 1);
  assert_int_equal(r.taught.n_usable, 4);
  pst_tune_workload_result_done(&r.tuned);
  raw_server_stop(server);
  pst_evals_workload_free(open);
}

/* What a teacher answers is not learned where the input is as good as a held-out example. */
static void held_out_examples_stay_new(void **state) {
  (void)state;
  const pst_evals_info *info = pst_evals_workload_info(workload);
  pst_tune_preference list[64];
  pst_tune_workload_result first, second;
  pst_tune_workload_options o = options_of(PST_TUNE_SFT, NULL).tune;
  size_t n = 0;
  o.training.steps = 1;
  OK(pst_tune_workload(shared.gateway, shared.store, workload, &o, &first, &err));
  for (size_t i = 0; i < info->n_items && n < PST_ARRAY_LEN(list); i++)
    if (info->items[i].part == PST_EVALS_EXAMPLES)
      list[n++] = (pst_tune_preference){.input = info->items[i].input, .wanted = PST_STR("said otherwise")};
  o.preferences = list;
  o.n_preferences = n;
  OK(pst_tune_workload(shared.gateway, shared.store, workload, &o, &second, &err));
  assert_true(first.n_held_out > 0);
  assert_int_equal(second.n_held_out, first.n_held_out);
  assert_true(second.n_near >= first.n_near + first.n_held_out);
  assert_int_equal(second.n_texts, first.n_texts + n - (second.n_near - first.n_near));
  pst_tune_workload_result_done(&first);
  pst_tune_workload_result_done(&second);
}

/* A teacher that thinks as the model does: its thoughts change the loss, and so the adapter. */
static void a_teacher_thinks(void **state) {
  (void)state;
  pst_flywheel_tune_result r, plain;
  pst_flywheel_tune_options o = options_of(PST_TUNE_SFT, NULL);
  OK(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &plain, &err));
  o.tune.teacher = model_path;
  OK(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &r, &err));
  assert_string_not_equal(r.tuned.adapter.file, plain.tuned.adapter.file);
  assert_string_not_equal(r.tuned.adapter.name, plain.tuned.adapter.name);
  assert_true(r.tuned.report.loss < plain.tuned.report.loss); /* half of it is the divergence from itself */
  pst_free(r.tuned.plan_json);
  pst_free(plain.tuned.plan_json);
}

static const char line_of_a_job[] =
    "{\"messages\":[{\"role\":\"user\",\"content\":\"say it\"},{\"role\":\"assistant\",\"content\":\"it is said\"}]}\n";

static bool always(void *user) {
  (void)user;
  return true;
}

static void write_again(const char *name) {
  const char *path = test_temp_path(shared.home, name);
  test_temp_write(path, "numbers", 7);
}

/* What training that is stopped leaves, of an adapter's job too, goes with the records, also when it is written again behind the erasure. */
static void checkpoints_go_with_the_records(void **state) {
  (void)state;
  pst_flywheel_tune_result r, second;
  pst_flywheel_tune_options o = options_of(PST_TUNE_DPO, NULL);
  pst_store_erasure e;
  pst_buf params = PST_BUF_INIT;
  char hash[65], name[300] = "";
  int64_t id = 0;
  bool worked;
  OK(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &r, &err));
  o.tune.training.seed = 77;
  o.tune.training.cancelled = after_the_first_step;
  atomic_store(&n_polls, 4);
  assert_int_equal(pst_flywheel_tune(shared.gateway, shared.store, workload, &o, &second, &err), PST_E_CANCELLED);
  DIR *dir = opendir(test_temp_path(shared.home, "tune"));
  for (struct dirent *f; (f = readdir(dir));)
    if (f->d_name[0] != '.') (void)snprintf(name, sizeof name, "tune/%s", f->d_name);
  (void)closedir(dir);
  if (!name[0]) fail_msg("%s", err.message);
  OK(pst_store_file_put(shared.store, line_of_a_job, sizeof line_of_a_job - 1, hash, &err));
  pst_buf_printf(&params, "{\"target\":\"%s:%s\",\"model\":\"m\",\"training_hash\":\"%s\"}", model_path,
                 r.tuned.adapter.name, hash);
  OK(pst_store_job_submit(shared.store, PST_STR("fine_tune"), pst_buf_str(&params), 1, &id, &err));
  assert_int_equal(id, 1);
  const pst_flywheel_options stopped = {.threads = 1, .stopped = always};
  OK(pst_flywheel_work(shared.store, &stopped, &worked, &err));
  OK(pst_store_records_erase(shared.store, (pst_str){NULL, 0}, pst_str_from(ids[1]), 1, &e, &err));
  pst_store_erasure_done(&e);
  write_again(name);
  write_again("jobs/ftjob-1.checkpoint");
  OK(pst_store_records_prune(shared.store, 1, &e, &err));
  pst_store_erasure_done(&e);
  assert_false(pst_file_exists(test_temp_path(shared.home, name)));
  assert_false(pst_file_exists(test_temp_path(shared.home, "jobs/ftjob-1.checkpoint")));
  pst_tune_workload_result_done(&r.tuned);
  pst_buf_done(&params);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nothing_was_said),       cmocka_unit_test(what_was_said_is_a_data_set),
      cmocka_unit_test(an_adapter_comes_of_it), cmocka_unit_test(a_teacher_answers),
      cmocka_unit_test(a_teacher_fails),        cmocka_unit_test(held_out_examples_stay_new),
      cmocka_unit_test(a_teacher_thinks),       cmocka_unit_test(checkpoints_go_with_the_records)};
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
