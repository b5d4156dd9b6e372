/* Past answers: the file is a function of the answers, records become one, and a plan that drafts from it answers as one without, in fewer steps; as does one
 * with a draft model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gateway/answers.h"
#include "support/gateway.h"
#include "support/ok.h"
#include "support/temp.h"
#include "support/tiny_model.h"

static test_gateway shared;
static char *model_dir;
static const char *model_path;
static pst_error err;

static int open_shared(void **state) {
  (void)state;
  model_dir = test_temp_dir();
  model_path = test_temp_path(model_dir, "tiny.gguf");
  test_tiny_write(model_path, &(test_tiny){.seed = 11});
  shared = test_gateway_open(NULL);
  return 0;
}

static int close_shared(void **state) {
  (void)state;
  test_gateway_close(&shared);
  test_temp_remove(model_dir);
  return 0;
}

static pst_engine_model *open_model(void) {
  pst_engine_model *model = NULL;
  OK(pst_engine_model_open(model_path, 1, &model, &err));
  return model;
}

static void the_file_does_not_depend_on_the_order_given(void **state) {
  (void)state;
  static const pst_str answers[] = {{"late", 4}, {"{\"a\": 1}\n", 9}, {"late", 4}};
  static const pst_str turned[] = {{"{\"a\": 1}\n", 9}, {"late", 4}, {"late", 4}};
  char hash[65], again[65], fewer[65];
  OK(pst_gateway_answers_build(shared.store, answers, 3, hash, &err));
  OK(pst_gateway_answers_build(shared.store, turned, 3, again, &err));
  OK(pst_gateway_answers_build(shared.store, answers, 2, fewer, &err));
  assert_string_equal(hash, again);
  assert_string_not_equal(hash, fewer); /* how often an answer was given counts */
  assert_int_equal(pst_gateway_answers_build(shared.store, answers, 0, hash, &err), PST_E_BAD_INPUT);
  pst_str large = {calloc(1, 2000001), 2000001};
  assert_int_equal(pst_gateway_answers_build(shared.store, &large, 1, hash, &err), PST_E_LIMIT);
  free((char *)(uintptr_t)large.data);
}

static void put_file(const char *text, char ret_hash[65]) {
  OK(pst_store_file_put(shared.store, text, strlen(text), ret_hash, &err));
}

static void damage_is_named(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int code;
    const char *word;
  } files[] = {{"", PST_E_CORRUPT, "shorter"},
               {"{\"n\":1}\n\"a\"\n", PST_E_CORRUPT, "header"},
               {"{\"n\":1,\"penstock_answers\":2}\n\"a\"\n", PST_E_UNSUPPORTED, "format 2"},
               {"{\"n\":2,\"penstock_answers\":1}\n\"a\"\n", PST_E_CORRUPT, "shorter"},
               {"{\"n\":1,\"penstock_answers\":1}\n\"a\"\n\"b\"\n", PST_E_CORRUPT, "longer"},
               {"{\"n\":1,\"penstock_answers\":1}\n7\n", PST_E_CORRUPT, "no text"},
               {"{\"n\":1,\"penstock_answers\":1}\n\"a\n", PST_E_CORRUPT, "JSON"},
               {"{\"n\":900,\"penstock_answers\":1}\n\"a\"\n", PST_E_CORRUPT, "header"}};
  pst_engine_model *model = open_model();
  for (size_t i = 0; i < PST_ARRAY_LEN(files); i++) {
    char hash[65];
    pst_engine_corpus *corpus = NULL;
    put_file(files[i].text, hash);
    err = (pst_error)PST_ERROR_INIT;
    int code = pst_gateway_answers_open(shared.store, pst_str_from(hash), model, true, &corpus, &err);
    if (code != files[i].code || !strstr(err.message, files[i].word))
      fail_msg("file %zu gave %d %s: %s", i, code, err.place, err.message);
    assert_null(corpus);
  }
  pst_engine_corpus *corpus = NULL;
  const char missing[] = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
  assert_int_equal(pst_gateway_answers_open(shared.store, pst_str_from(missing), model, true, &corpus, &err),
                   PST_E_NOT_FOUND);
  pst_engine_model_unref(model);
}

static void put_record(const char *id, const char *workload, pst_store_purpose purpose, int status,
                       const char *output) {
  const pst_store_request r = {.completion_id = pst_str_from(id),
                               .time_ms = 1000,
                               .purpose = purpose,
                               .workload = pst_str_from(workload),
                               .target = PST_STR("local"),
                               .model = PST_STR("m"),
                               .status = status,
                               .finish = PST_STR("stop"),
                               .keep = PST_STORE_KEEP_CONTENT,
                               .output_json = pst_str_from(output)};
  OK(pst_store_request_put(shared.store, &r, &err));
}

static int take_id(void *user, const pst_store_request *r) {
  *(int64_t *)user = r->id;
  return 0;
}

static void records_become_a_file(void **state) {
  (void)state;
  static const pst_str expected[] = {{"one", 3}, {"two", 3}, {"two", 3}};
  char hash[65], same[65];
  size_t n = 0;
  assert_int_equal(pst_gateway_answers_collect(shared.store, PST_STR("desk"), hash, &n, &err), PST_E_NO_DATA);
  put_record("a", "desk", PST_STORE_PURPOSE_USER, 200, "{\"choices\":[{\"text\":\"two\"},{\"text\":\"one\"}]}");
  put_record("b", "desk", PST_STORE_PURPOSE_USER, 200, "{\"choices\":[{\"text\":\"two\"},{\"text\":\"\"}]}");
  put_record("c", "desk", PST_STORE_PURPOSE_USER, 500, "{\"choices\":[{\"text\":\"failed\"}]}");
  put_record("d", "other", PST_STORE_PURPOSE_USER, 200, "{\"choices\":[{\"text\":\"foreign\"}]}");
  put_record("e", "desk", PST_STORE_PURPOSE_EVAL, 200, "{\"choices\":[{\"text\":\"asked by an eval\"}]}");
  put_record("f", "desk", PST_STORE_PURPOSE_USER, 200, NULL);
  OK(pst_store_flush(shared.store, &err));
  OK(pst_gateway_answers_collect(shared.store, PST_STR("desk"), hash, &n, &err));
  OK(pst_gateway_answers_build(shared.store, expected, 3, same, &err));
  assert_int_equal(n, 3);
  assert_string_equal(hash, same);
}

static pst_gateway_plan *plan_with(const char *layout, const char *speculation) {
  pst_gateway_plan *plan = NULL;
  pst_buf json = PST_BUF_INIT;
  pst_buf_printf(&json,
                 "{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"%s\",\"slots\":2}},\"root\":{\"op\":\"local\","
                 "\"engine\":\"e1\",\"layout\":\"%s\",\"max_tokens\":40%s}}",
                 model_path, layout, speculation);
  OK(pst_gateway_plan_parse(pst_buf_str(&json), "test", &plan, &err));
  pst_buf_done(&json);
  return plan;
}

static void ask(pst_gateway_plan *plan, test_answer *a) {
  test_chat chat;
  test_answer_init(a);
  test_chat_init(&chat, "Where is my parcel?");
  pst_gateway_call call = test_call("", &chat, a);
  call.plan = plan;
  call.set = (pst_gateway_overrides){.n_logprobs = -1};
  OK(pst_gateway_chat(shared.gateway, &call, NULL, &err));
  test_answer_wait(a);
  if (a->error.code) fail_msg("failed: %s", a->error.message);
}

/* A record that gave an answer is deleted: its file goes, and a plan that names it still answers, the same. */
static void deletion_withdraws_the_file(void **state) {
  (void)state;
  char hash[65], with[160];
  test_answer before, after;
  pst_store_erasure e;
  put_record("w1", "withdrawn", PST_STORE_PURPOSE_USER, 200, "{\"choices\":[{\"text\":\"an answer of ann\"}]}");
  put_record("w2", "withdrawn", PST_STORE_PURPOSE_USER, 200, "{\"choices\":[{\"text\":\"an answer of bob\"}]}");
  OK(pst_store_flush(shared.store, &err));
  OK(pst_gateway_answers_collect(shared.store, PST_STR("withdrawn"), hash, NULL, &err));
  OK(pst_store_records_erase(shared.store, (pst_str){NULL, 0}, PST_STR("w1"), 1, &e, &err));
  assert_int_equal(e.n_sets, 1);
  assert_string_equal(e.sets[0].hash, hash);
  assert_string_equal(e.sets[0].replaced_by, "");
  pst_store_erasure_done(&e);
  pst_engine_model *model = open_model();
  pst_engine_corpus *corpus = (pst_engine_corpus *)&e;
  OK(pst_gateway_answers_open(shared.store, pst_str_from(hash), model, true, &corpus, &err));
  assert_null(corpus);
  pst_engine_model_unref(model);
  snprintf(with, sizeof with, ",\"speculation\":\"answers\",\"answers\":\"%s\"", hash);
  pst_gateway_plan *plain = plan_with("chat", ""), *drafting = plan_with("chat", with);
  OK(pst_gateway_prepare(shared.gateway, drafting, NULL, &err));
  ask(plain, &before);
  ask(drafting, &after);
  assert_string_equal(test_answer_text(&before, 0), test_answer_text(&after, 0));
  test_answer_done(&before);
  test_answer_done(&after);
  pst_gateway_plan_unref(plain);
  pst_gateway_plan_unref(drafting);
}

static bool is_shown(const pst_gateway_plan *plan, const char *text) {
  pst_engine_tokens tokens = {0};
  pst_buf shown = PST_BUF_INIT;
  OK(pst_gateway_render(shared.gateway, plan, &plan->root, PST_STR("Where is my parcel?"), NULL, 0, &tokens, &shown,
                        &err));
  bool found = pst_str_find(pst_buf_str(&shown), pst_str_from(text), 0) != SIZE_MAX;
  pst_engine_tokens_done(&tokens);
  pst_buf_done(&shown);
  return found;
}

/* An index of examples that came of a record: an open gateway shows them no more when the record is deleted, and a gateway that is opened then neither. */
static void deletion_takes_the_examples(void **state) {
  (void)state;
  static const pst_gateway_example examples[] = {{PST_STR("a"), PST_STR("a parcel of ann"), PST_STR("velvet gnu")},
                                                 {PST_STR("b"), PST_STR("other things"), PST_STR("none")}};
  char set[65], index[65], with[160];
  int64_t id = 0;
  pst_store_erasure e;
  test_answer after;
  put_record("e1", "examples", PST_STORE_PURPOSE_USER, 200, "{\"choices\":[{\"text\":\"velvet gnu\"}]}");
  OK(pst_store_flush(shared.store, &err));
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  f.completion_id = PST_STR("e1");
  OK(pst_store_request_each(shared.store, &f, take_id, &id, &err));
  const pst_store_data_set row = {.kind = PST_STR("training"), .n_lines = 1, .created_ms = 5};
  OK(pst_store_data_set_put(shared.store, &row, PST_STR("a line\n"), true, &id, 1, set, &err));
  OK(pst_gateway_examples_build(shared.store, examples, PST_ARRAY_LEN(examples), set, index, &err));
  snprintf(with, sizeof with, ",\"examples\":{\"index\":\"%s\",\"k\":1}", index);
  pst_gateway_plan *plan = plan_with("chat", with);
  OK(pst_gateway_prepare(shared.gateway, plan, NULL, &err));
  assert_true(is_shown(plan, "velvet gnu"));
  OK(pst_store_records_erase(shared.store, (pst_str){NULL, 0}, PST_STR("e1"), 1, &e, &err));
  assert_int_equal(e.n_uses, 1);
  pst_store_erasure_done(&e);
  assert_false(is_shown(plan, "velvet gnu"));
  assert_false(is_shown(plan, "none"));
  OK(pst_gateway_prepare(shared.gateway, plan, NULL, &err));
  ask(plan, &after);
  test_answer_done(&after);
  assert_int_equal(pst_gateway_examples_build(shared.store, examples, PST_ARRAY_LEN(examples), set, index, &err),
                   PST_E_NOT_FOUND);
  assert_false(is_shown(plan, "velvet gnu"));
  pst_gateway_plan_unref(plan);
}

/* In both layouts: with the leading space and line end of one, the end token of the other. */
static void answers_are_drafted_from_a_file(void **state) {
  (void)state;
  static const char *const layouts[] = {"plain", "chat"};
  for (int i = 0; i < 2; i++) {
    test_answer without, with;
    char hash[65], speculation[128];
    pst_gateway_plan *plain = plan_with(layouts[i], "");
    ask(plain, &without);
    pst_str answer = pst_str_from(test_answer_text(&without, 0));
    OK(pst_gateway_answers_build(shared.store, &answer, 1, hash, &err));
    (void)snprintf(speculation, sizeof speculation, ",\"speculation\":\"answers\",\"answers\":\"%s\"", hash);
    pst_gateway_plan *drafting = plan_with(layouts[i], speculation);
    OK(pst_gateway_prepare(shared.gateway, drafting, NULL, &err));
    for (int round = 0; round < 10; round++) {
      ask(drafting, &with);
      assert_string_equal(test_answer_text(&with, 0), test_answer_text(&without, 0));
      assert_int_equal(with.last.n_token_steps + with.last.n_accepted, with.last.completion_tokens);
      test_answer_done(&with);
    }
    test_answer_done(&without);
    pst_gateway_plan_unref(plain);
    pst_gateway_plan_unref(drafting);
  }
}

static void a_draft_model_changes_no_answer(void **state) {
  (void)state;
  test_answer without, with;
  char json[1024];
  pst_engine *engine = NULL;
  pst_gateway_plan *plain = plan_with("chat", ""), *drafting = NULL;
  (void)snprintf(json, sizeof json,
                 "{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"%s\",\"draft\":\"%s\",\"slots\":2}},\"root\":{\"op\":"
                 "\"local\",\"engine\":\"e1\",\"layout\":\"chat\",\"max_tokens\":40,\"speculation\":\"model\"}}",
                 model_path, model_path);
  OK(pst_gateway_plan_parse(pst_str_from(json), "test", &drafting, &err));
  assert_non_null(strstr(drafting->json, "\"draft\":"));
  OK(pst_gateway_prepare(shared.gateway, drafting, NULL, &err));
  ask(plain, &without);
  for (int round = 0; round < 10; round++) {
    ask(drafting, &with);
    assert_string_equal(test_answer_text(&with, 0), test_answer_text(&without, 0));
    assert_int_equal(with.last.n_token_steps + with.last.n_accepted, with.last.completion_tokens);
    test_answer_done(&with);
  }
  /* How often it is asked is a matter of times; that it is there is not. */
  OK(pst_gateway_engine_acquire(shared.gateway, drafting, 0, &engine, &err));
  assert_non_null(pst_engine_get_options(engine)->draft);
  pst_gateway_engine_release(shared.gateway, engine);
  test_answer_done(&without);
  pst_gateway_plan_unref(plain);
  pst_gateway_plan_unref(drafting);
}

static void a_file_that_is_not_there_is_an_error(void **state) {
  (void)state;
  pst_gateway_plan *plan = plan_with("chat", ",\"speculation\":\"answers\",\"answers\":"
                                             "\"0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0\"");
  assert_int_equal(pst_gateway_prepare(shared.gateway, plan, NULL, &err), PST_E_NOT_FOUND);
  pst_gateway_plan_unref(plan);
}

static void memory_may_run_out_anywhere(void **state) {
  (void)state;
  static const pst_str answers[] = {{"the red cup", 11}, {"the blue cup", 12}, {"", 0}};
  char hash[65];
  pst_engine_model *model = open_model();
  OK(pst_gateway_answers_build(shared.store, answers, 3, hash, &err));
  int code = PST_E_NOMEM;
  for (int64_t i = 0; code == PST_E_NOMEM && i < 10000; i++) {
    pst_engine_corpus *corpus = NULL;
    pst_memory_fail_after(i);
    code = pst_gateway_answers_open(shared.store, pst_str_from(hash), model, true, &corpus, &err);
    pst_memory_fail_after(-1);
    if (code && code != PST_E_NOMEM) fail_msg("%lld: %d %s: %s", (long long)i, code, err.place, err.message);
    pst_engine_corpus_unref(corpus);
  }
  assert_int_equal(code, 0);
  pst_engine_model_unref(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_file_does_not_depend_on_the_order_given),
      cmocka_unit_test(damage_is_named),
      cmocka_unit_test(records_become_a_file),
      cmocka_unit_test(answers_are_drafted_from_a_file),
      cmocka_unit_test(deletion_withdraws_the_file),
      cmocka_unit_test(deletion_takes_the_examples),
      cmocka_unit_test(a_draft_model_changes_no_answer),
      cmocka_unit_test(a_file_that_is_not_there_is_an_error),
      cmocka_unit_test(memory_may_run_out_anywhere),
  };
  return cmocka_run_group_tests_name("gateway answers", tests, open_shared, close_shared);
}
