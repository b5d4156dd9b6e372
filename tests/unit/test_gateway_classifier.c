/* Calls answered by a classifier: alone, with n answers, streamed, before a model in a cascade; what is booked, and what is refused. The same with an encoder's
 * vectors, by a real one. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <penstock/models.h>

#include "gateway/live.h"
#include "support/gateway.h"
#include "support/temp.h"

static const char *smollm2, *minilm;
static test_gateway shared;
static char artefact[65], encoded[65], encoder_hash[65];

/* Sentences of two moods, different enough to be learned from. */
static size_t make_records(pst_classifier_record *ret, char (*texts)[64]) {
  static const char *const words[2][6] = {{"lovely", "happy", "great", "sunny", "kind", "joyful"},
                                          {"awful", "sad", "terrible", "rainy", "cruel", "gloomy"}};
  static const char *const things[] = {"day", "song", "letter", "meal", "film", "walk"};
  size_t n = 0;
  for (size_t m = 0; m < 2; m++)
    for (size_t w = 0; w < 6; w++)
      for (size_t t = 0; t < 6; t++, n++) {
        (void)snprintf(texts[n], 64, "what a %s %s it was", words[m][w], things[t]);
        ret[n] = (pst_classifier_record){
            .text = pst_str_from(texts[n]), .label = m ? PST_STR("bad") : PST_STR("good"), .group = (uint32_t)n};
      }
  return n;
}

static int open_shared(void **state) {
  (void)state;
  pst_classifier_record records[72];
  char texts[72][64];
  pst_error err = PST_ERROR_INIT;
  smollm2 = test_model("PENSTOCK_TEST_SMOLLM2");
  shared = test_gateway_open(NULL);
  size_t n = make_records(records, texts);
  minilm = test_model("PENSTOCK_TEST_MINILM");
  if (minilm) {
    if (pst_models_hash(shared.home, minilm, NULL, encoder_hash, &err)) fail_msg("%s", err.message);
    pst_gateway_engine_spec spec = {.name = "v",
                                    .model = minilm,
                                    .sha256 = encoder_hash,
                                    .weights = "shipped",
                                    .options = pst_engine_options_default()};
    if (pst_gateway_classifier_build(shared.gateway, &spec, NULL, records, n, NULL, encoded, NULL, &err))
      fail_msg("%s", err.message);
  }
  if (pst_gateway_classifier_build(shared.gateway, NULL, NULL, records, n, NULL, artefact, NULL, &err))
    fail_msg("%s", err.message);
  assert_int_equal(pst_store_machine_price_set(shared.store, 3600 * PST_STORE_NUSD_PER_USD, &err), 0);
  return 0;
}

static int close_shared(void **state) {
  (void)state;
  test_gateway_close(&shared);
  return 0;
}

static pst_gateway_plan *parse(const char *format, ...) PST_PRINTF(1, 2);
static pst_gateway_plan *parse(const char *format, ...) {
  pst_gateway_plan *plan = NULL;
  pst_error err = PST_ERROR_INIT;
  pst_buf json = PST_BUF_INIT;
  va_list args;
  va_start(args, format);
  pst_buf_vprintf(&json, format, args);
  va_end(args);
  if (pst_gateway_plan_parse(pst_buf_str(&json), "test", &plan, &err)) fail_msg("%s: %s", err.place, err.message);
  pst_buf_done(&json);
  return plan;
}

#define ALONE                                                            \
  "{\"schema\":1,\"workload\":\"mood\",\"labels\":[\"bad\",\"good\"]%s," \
  "\"root\":{\"op\":\"classifier\",\"artefact\":\"%s\"}}"

typedef struct asking {
  int n, n_logprobs;
  bool stream;
  int64_t key_id;
} asking;

static int ask(pst_gateway_plan *plan, const char *text, asking how, test_answer *a, pst_error *err) {
  test_chat chat;
  test_answer_init(a);
  test_chat_init(&chat, text);
  pst_gateway_call call = test_call("mood", &chat, a);
  call.plan = plan;
  call.n = how.n ? how.n : 1;
  call.set.n_logprobs = how.n_logprobs;
  call.stream = how.stream;
  call.key_id = how.key_id;
  call.purpose = PST_STORE_PURPOSE_USER;
  int code = pst_gateway_chat(shared.gateway, &call, NULL, err);
  if (!code) test_answer_wait(a);
  return code;
}

static void it_answers_without_a_token(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_gateway_plan *plan = parse(ALONE, "", artefact);
  assert_int_equal(pst_gateway_prepare(shared.gateway, plan, NULL, &err), 0);
  for (int i = 0; i < 4; i++) {
    test_answer a;
    asking how = {.n = 1 + 2 * (i % 2), .n_logprobs = i == 3 ? 5 : -1, .stream = i >= 2};
    assert_int_equal(ask(plan, i % 2 ? "such a Terrible evening" : "a LOVELY morning", how, &a, &err), 0);
    assert_int_equal(a.error.code, 0);
    for (int k = 0; k < how.n; k++) {
      assert_string_equal(test_answer_text(&a, k), i % 2 ? "bad" : "good");
      assert_int_equal(a.finish[k], PST_ENGINE_FINISH_STOP);
    }
    assert_int_equal(a.n_finished, how.n);
    assert_int_equal(a.n_tokens, 0);
    assert_int_equal(a.n_last, 1);
    assert_int_equal(a.n_after_last, 0);
    assert_string_equal(a.target, "classifier");
    assert_string_equal(a.model, artefact);
    assert_int_equal(a.last.prompt_tokens + a.last.cached_tokens + a.last.completion_tokens, 0);
    assert_int_equal(a.last.n_stages, 1);
    assert_true(a.last.margin > 0);
    assert_true(a.last.cost_nusd > 0); /* a dollar a second: what it took is a little, not nothing */
    assert_true(a.last.ttft_us >= 0 && a.last.ttft_us <= a.last.total_us);
    test_answer_done(&a);
  }
  pst_gateway_plan_unref(plan);
}

static int check_booked(void *user, const pst_store_request *r) {
  int64_t *n = user;
  if (!pst_str_is(r->target, "classifier")) return 0;
  assert_true(pst_str_is(r->model, artefact));
  assert_true(pst_str_is(r->workload, "mood"));
  assert_true(r->status == 429 || (pst_str_is(r->finish, "stop") && r->status == 200 && r->cost_nusd > 0));
  assert_int_equal(r->prompt_tokens + r->completion_tokens, 0);
  ++*n;
  return 0;
}

static void it_is_booked_and_kept_within_the_budget(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  test_answer a;
  int64_t key = 0, n_booked = 0;
  pst_store_budget b;
  pst_store_limits limits = {PST_STORE_NUSD_PER_USD, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT};
  assert_int_equal(pst_store_key_create(shared.store, PST_STR("app"), PST_STR(""), limits, 0, &key, NULL, &err), 0);
  pst_gateway_plan *plan = parse(ALONE, "", artefact);
  assert_int_equal(ask(plan, "a sad tale", (asking){.n_logprobs = -1, .key_id = key}, &a, &err), 0);
  assert_int_equal(a.error.code, 0);
  assert_string_equal(test_answer_text(&a, 0), "bad");
  assert_int_equal(pst_store_flush(shared.store, &err), 0);
  assert_int_equal(pst_store_budget_get(shared.store, key, pst_clock_unix_ms(), &b, &err), 0);
  assert_int_equal(b.total_nusd, a.last.cost_nusd);
  assert_int_equal(b.open_nusd, 0);
  test_answer_done(&a);
  limits.day_nusd = 0;
  assert_int_equal(pst_store_key_set_limits(shared.store, key, limits, &err), 0);
  assert_int_equal(ask(plan, "a sad tale", (asking){.n_logprobs = -1, .key_id = key}, &a, &err), 0);
  assert_int_equal(a.error.code, PST_E_BUDGET);
  test_answer_done(&a);
  assert_int_equal(pst_store_flush(shared.store, &err), 0);
  pst_store_request_filter filter = PST_STORE_REQUEST_FILTER_INIT;
  filter.key_id = key;
  assert_int_equal(pst_store_request_each(shared.store, &filter, check_booked, &n_booked, &err), 0);
  assert_int_equal(n_booked, 2); /* the one that was refused too */
  pst_gateway_plan_unref(plan);
}

static void below_its_threshold_the_next_stage_answers(void **state) {
  (void)state;
  if (!smollm2) skip();
  static const char CASCADE[] =
      "{\"schema\":1,\"workload\":\"mood\",\"labels\":[\"good\",\"bad\"],\"input_pattern\":\"^Text: (.*)$\","
      "\"engines\":{\"e1\":{\"model\":\"%s\",\"slots\":2}},"
      "\"root\":{\"op\":\"cascade\",\"signal\":\"margin\",\"threshold\":%g,\"inputs\":["
      "{\"op\":\"classifier\",\"artefact\":\"%s\"},"
      "{\"op\":\"local\",\"engine\":\"e1\",\"layout\":\"plain\",\"constraint\":\"labels\",\"max_tokens\":4,"
      "\"prompt\":{\"name\":\"p\",\"input_key\":\"Text\",\"answer_key\":\"Mood\"}}]}}";
  pst_error err = PST_ERROR_INIT;
  test_answer sure, unsure;
  pst_gateway_plan *plan = parse(CASCADE, smollm2, 0.5, artefact), *again = parse("%s", plan->json);
  assert_string_equal(plan->hash, again->hash);
  for (int stream = 0; stream < 2; stream++) {
    asking how = {.n_logprobs = -1, .stream = stream};
    assert_int_equal(ask(plan, "Text: what a happy song", how, &sure, &err), 0);
    assert_int_equal(sure.error.code, 0);
    assert_string_equal(test_answer_text(&sure, 0), "good");
    assert_string_equal(sure.target, "classifier");
    assert_int_equal(sure.last.n_stages, 1);
    assert_int_equal(sure.last.prompt_tokens, 0);
    assert_int_equal(ask(plan, "Text: @@@", how, &unsure, &err), 0); /* nothing that it knows */
    assert_int_equal(unsure.error.code, 0);
    assert_string_equal(unsure.target, "local");
    assert_int_equal(unsure.last.n_stages, 2);
    assert_true(unsure.last.prompt_tokens > 0);
    assert_true(!strcmp(test_answer_text(&unsure, 0), "good") || !strcmp(test_answer_text(&unsure, 0), "bad"));
    assert_int_equal(unsure.n_finished, 1);
    test_answer_done(&sure);
    test_answer_done(&unsure);
  }
  pst_gateway_plan_unref(plan);
  pst_gateway_plan_unref(again);
}

static void in_force(const char *json) {
  char hash[65];
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_store_plan_put(shared.store, pst_str_from(json), 1, hash, &err), 0);
  assert_int_equal(pst_store_plan_assign(shared.store, PST_STR("mood"), PST_STORE_PLAN_IN_FORCE, pst_str_from(hash),
                                         PST_STR("test"), 1, &err),
                   0);
}

static void a_message_of_another_kind_needs_a_model(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  test_answer a;
  pst_gateway_plan *plan = parse(ALONE, ",\"input_pattern\":\"^Text: (.*)$\"", artefact);
  in_force(plan->json);
  assert_int_equal(ask(NULL, "Text: a cruel joke", (asking){.n_logprobs = -1}, &a, &err), 0);
  assert_string_equal(test_answer_text(&a, 0), "bad");
  test_answer_done(&a);
  assert_int_equal(ask(NULL, "something else", (asking){.n_logprobs = -1}, &a, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "asks no model"));
  test_answer_done(&a);
  pst_gateway_plan_unref(plan);
}

static void plans_that_cannot_be_served_are_refused(void **state) {
  (void)state;
  pst_error err = PST_ERROR_INIT;
  pst_gateway_plan *plan = NULL;
  test_answer a;
  pst_str no_labels = PST_STR("{\"schema\":1,\"root\":{\"op\":\"classifier\",\"artefact\":"
                              "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}}");
  assert_int_equal(pst_gateway_plan_parse(no_labels, "p", &plan, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "labels"));
  pst_str no_artefact = PST_STR("{\"schema\":1,\"labels\":[\"a\",\"b\"],\"root\":{\"op\":\"classifier\"}}");
  assert_int_equal(pst_gateway_plan_parse(no_artefact, "p", &plan, &err), PST_E_BAD_INPUT);
  plan = parse(ALONE, "", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
  assert_int_equal(pst_gateway_prepare(shared.gateway, plan, NULL, &err), PST_E_NOT_FOUND);
  assert_int_equal(ask(plan, "x", (asking){.n_logprobs = -1}, &a, &err), PST_E_NOT_FOUND);
  test_answer_done(&a);
  pst_gateway_plan_unref(plan);
  plan = parse("{\"schema\":1,\"labels\":[\"good\",\"poor\"],\"root\":{\"op\":\"classifier\",\"artefact\":\"%s\"}}",
               artefact);
  for (int i = 0; i < 2; i++) { /* and again, when the artefact is open */
    assert_int_equal(ask(plan, "a sad tale", (asking){.n_logprobs = -1}, &a, &err), PST_E_BAD_INPUT);
    assert_non_null(strstr(err.message, "none of the plan's labels"));
    assert_int_equal(pst_gateway_prepare(shared.gateway, plan, NULL, &err), PST_E_BAD_INPUT);
    test_answer_done(&a);
  }
  pst_gateway_plan_unref(plan);
}

/* ---- with an encoder ---- */

#define ENCODED                                                        \
  "{\"schema\":1,\"workload\":\"mood\",\"labels\":[\"bad\",\"good\"]," \
  "\"engines\":{\"v\":{\"model\":\"%s\",\"sha256\":\"%s\"}},"          \
  "\"root\":{\"op\":\"classifier\",\"artefact\":\"%s\",\"engine\":\"v\"}}"

static int check_encoded(void *user, const pst_store_request *r) {
  int64_t *n = user;
  assert_true(pst_str_is(r->target, "classifier") && pst_str_is(r->model, encoded));
  assert_true(r->prompt_tokens > 0 && r->completion_tokens == 0 && r->cost_nusd > 0);
  ++*n;
  return 0;
}

/* Words that no record holds: their n-grams say nothing, their vectors all. */
static void an_encoder_knows_words_that_were_never_seen(void **state) {
  (void)state;
  static const char *const moods[2][4] = {
      {"an appalling, depressing ordeal", "I hated it", "utterly miserable weather", "a wretched night"},
      {"a delightful trip", "I loved it", "wonderful, cheerful people", "a splendid evening"}};
  if (!minilm) skip();
  pst_error err = PST_ERROR_INIT;
  int64_t key = 0, n_booked = 0, spent = 0;
  pst_store_budget b;
  pst_store_limits limits = {PST_STORE_NUSD_PER_USD, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT};
  assert_int_equal(pst_store_key_create(shared.store, PST_STR("reader"), PST_STR(""), limits, 0, &key, NULL, &err), 0);
  pst_gateway_plan *plan = parse(ENCODED, minilm, encoder_hash, encoded), *again = parse("%s", plan->json);
  assert_string_equal(plan->hash, again->hash);
  for (int i = 0; i < 8; i++) {
    test_answer a;
    asking how = {.n = 1 + 2 * (i / 4), .n_logprobs = -1, .stream = i % 4 > 1, .key_id = key};
    assert_int_equal(ask(plan, moods[i % 2][i / 2], how, &a, &err),
                     0); /* the first one waits for the encoder to load */
    assert_int_equal(a.error.code, 0);
    for (int k = 0; k < how.n; k++) assert_string_equal(test_answer_text(&a, k), i % 2 ? "good" : "bad");
    assert_int_equal(a.n_finished, how.n);
    assert_int_equal(a.n_last, 1);
    assert_int_equal(a.n_after_last, 0);
    assert_string_equal(a.target, "classifier");
    assert_true(a.last.prompt_tokens >= 5 && a.last.prompt_tokens <= 12 && a.last.completion_tokens == 0);
    assert_true(a.last.margin > 0 && a.last.cost_nusd > 0);
    assert_null(a.last.vectors);
    assert_true(a.last.ttft_us > 0 && a.last.ttft_us <= a.last.total_us);
    spent += a.last.cost_nusd;
    test_answer_done(&a);
  }
  assert_int_equal(pst_store_flush(shared.store, &err), 0);
  assert_int_equal(pst_store_budget_get(shared.store, key, pst_clock_unix_ms(), &b, &err), 0);
  assert_int_equal(b.total_nusd, spent);
  assert_int_equal(b.open_nusd, 0);
  pst_store_request_filter filter = PST_STORE_REQUEST_FILTER_INIT;
  filter.key_id = key;
  assert_int_equal(pst_store_request_each(shared.store, &filter, check_encoded, &n_booked, &err), 0);
  assert_int_equal(n_booked, 8);
  pst_gateway_plan_unref(plan);
  pst_gateway_plan_unref(again);
}

/* What is asked alone is what the artefact says of the text's vector; of what does not fit the encoder's context the beginning is read. */
static void a_long_message_is_read_from_its_beginning(void **state) {
  (void)state;
  if (!minilm) skip();
  pst_error err = PST_ERROR_INIT;
  pst_gateway_plan *plan = parse(ENCODED, minilm, encoder_hash, encoded);
  pst_buf text = PST_BUF_INIT;
  test_answer a;
  double margin = 0;
  pst_buf_puts(&text, "what a splendid day it was. ");
  for (int i = 0; i < 40000; i++) pst_buf_puts(&text, "and then ");
  for (int i = 0; i < 2; i++) {
    assert_int_equal(ask(plan, pst_buf_text(&text), (asking){.n_logprobs = -1}, &a, &err), 0);
    assert_int_equal(a.error.code, 0);
    assert_int_equal(a.last.prompt_tokens, 512);
    if (i) assert_true(a.last.margin == margin);
    margin = a.last.margin;
    test_answer_done(&a);
  }
  assert_int_equal(ask(plan, "", (asking){.n_logprobs = -1}, &a, &err), 0); /* what is wanted around a text stays */
  assert_int_equal(a.last.prompt_tokens, 2);
  test_answer_done(&a);
  pst_buf_done(&text);
  pst_gateway_plan_unref(plan);
}

static void vectors_come_before_a_model(void **state) {
  (void)state;
  static const char CASCADE[] =
      "{\"schema\":1,\"workload\":\"mood\",\"labels\":[\"good\",\"bad\"],"
      "\"engines\":{\"e1\":{\"model\":\"%s\",\"slots\":2},\"v\":{\"model\":\"%s\",\"sha256\":\"%s\"}},"
      "\"root\":{\"op\":\"cascade\",\"signal\":\"margin\",\"threshold\":%g,\"inputs\":["
      "{\"op\":\"classifier\",\"artefact\":\"%s\",\"engine\":\"v\"},"
      "{\"op\":\"local\",\"engine\":\"e1\",\"layout\":\"plain\",\"constraint\":\"labels\",\"max_tokens\":4,"
      "\"prompt\":{\"name\":\"p\",\"input_key\":\"Text\",\"answer_key\":\"Mood\"}}]}}";
  if (!minilm || !smollm2) skip();
  pst_error err = PST_ERROR_INIT;
  for (int unsure = 0; unsure < 2; unsure++) {
    test_answer a;
    pst_gateway_plan *plan = parse(CASCADE, smollm2, minilm, encoder_hash, unsure ? 999.0 : 0.01, encoded);
    assert_int_equal(pst_gateway_prepare(shared.gateway, plan, NULL, &err), 0);
    assert_int_equal(ask(plan, "a delightful song", (asking){.n_logprobs = -1, .stream = true}, &a, &err), 0);
    assert_int_equal(a.error.code, 0);
    assert_string_equal(a.target, unsure ? "local" : "classifier");
    assert_int_equal(a.last.n_stages, 1 + unsure);
    assert_int_equal(a.n_finished, 1);
    if (!unsure) assert_string_equal(test_answer_text(&a, 0), "good");
    test_answer_done(&a);
    pst_gateway_plan_unref(plan);
  }
}

static void a_wrong_encoder_is_refused(void **state) {
  (void)state;
  static const char NO_HASH[] =
      "{\"schema\":1,\"labels\":[\"bad\",\"good\"],\"engines\":{\"v\":{\"model\":\"m\"}},"
      "\"root\":{\"op\":\"classifier\",\"artefact\":"
      "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"engine\":\"v\"}}";
  pst_error err = PST_ERROR_INIT;
  pst_gateway_plan *plan = NULL;
  test_answer a;
  assert_int_equal(pst_gateway_plan_parse(pst_str_from(NO_HASH), "p", &plan, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "sha256"));
  if (!minilm || !smollm2) skip();
  const struct {
    pst_gateway_plan *plan;
    const char *word;
  } rows[] = {
      {parse(ALONE, "", encoded), "name the engine"},
      {parse(ENCODED, minilm, encoder_hash, artefact), "n-grams alone"},
      {parse(ENCODED, minilm, "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", encoded),
       "bbbbbbbbbbbb..."},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    assert_int_equal(pst_gateway_prepare(shared.gateway, rows[i].plan, NULL, &err), PST_E_BAD_INPUT);
    assert_non_null(strstr(err.message, rows[i].word));
    assert_int_equal(ask(rows[i].plan, "x", (asking){.n_logprobs = -1}, &a, &err), PST_E_BAD_INPUT);
    test_answer_done(&a);
    pst_gateway_plan_unref(rows[i].plan);
  }
  char hash[65], generator[65];
  pst_classifier_record records[72];
  char texts[72][64];
  size_t n = make_records(records, texts);
  assert_int_equal(pst_models_hash(shared.home, smollm2, NULL, generator, &err), 0);
  pst_gateway_engine_spec spec = {.name = "v",
                                  .model = smollm2,
                                  .sha256 = generator,
                                  .weights = "shipped",
                                  .options = pst_engine_options_default()};
  assert_int_equal(pst_gateway_classifier_build(shared.gateway, &spec, NULL, records, n, NULL, hash, NULL, &err),
                   PST_E_UNSUPPORTED);
  spec.sha256 = NULL;
  assert_int_equal(pst_gateway_classifier_build(shared.gateway, &spec, NULL, records, n, NULL, hash, NULL, &err),
                   PST_E_BAD_INPUT);
}

/* Cancelled before its engine is there, with it, or never: one last event, nothing left open. */
static void a_call_for_vectors_can_be_cancelled(void **state) {
  (void)state;
  if (!minilm) skip();
  pst_error err = PST_ERROR_INIT;
  pst_gateway_plan *plan = parse(ENCODED, minilm, encoder_hash, encoded);
  for (int i = 0; i < 20; i++) {
    test_answer a;
    test_chat chat;
    uint64_t id = 0;
    test_answer_init(&a);
    test_chat_init(&chat, "a sad and gloomy letter");
    pst_gateway_call call = test_call("mood", &chat, &a);
    call.plan = plan;
    assert_int_equal(pst_gateway_chat(shared.gateway, &call, &id, &err), 0);
    pst_gateway_cancel(shared.gateway, id);
    test_answer_wait(&a);
    assert_int_equal(a.n_last, 1);
    assert_true(a.error.code == PST_E_CANCELLED || (!a.error.code && !strcmp(test_answer_text(&a, 0), "bad")));
    test_answer_done(&a);
  }
  pst_gateway_plan_unref(plan);
}

static size_t n_entries(const char *path) {
  size_t n = 0;
  DIR *d = opendir(path);
  assert_non_null(d);
  for (const struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  (void)closedir(d);
  return n;
}

static void the_same_records_are_trained_on_once(void **state) {
  (void)state;
  pst_classifier_record records[72];
  char texts[72][64], hash[65], other[65];
  int64_t ms = -1;
  pst_error err = PST_ERROR_INIT;
  size_t n = make_records(records, texts);
  char *dir = pst_path_join(shared.home, "classifiers");
  size_t n_before = n_entries(dir);
  assert_int_equal(n_before, minilm ? 4 : 2); /* the note and its lock, and those of the other kind */
  assert_int_equal(pst_gateway_classifier_build(shared.gateway, NULL, NULL, records, n, NULL, hash, &ms, &err), 0);
  assert_string_equal(hash, artefact);
  assert_true(ms >= 0 && ms < 60000); /* what it took the first time */
  assert_int_equal(n_entries(dir), n_before);
  records[0].label = PST_STR("bad");
  assert_int_equal(pst_gateway_classifier_build(shared.gateway, NULL, NULL, records, n, NULL, other, NULL, &err), 0);
  assert_string_not_equal(other, artefact);
  assert_int_equal(n_entries(dir), n_before + 2);
  /* A damaged artefact is found by its hash, not trusted. */
  char *path = NULL;
  pst_classifier *c = NULL;
  assert_int_equal(pst_store_file_path(shared.store, pst_str_from(other), &path, &err), 0);
  test_temp_write(path, "junk", 4);
  assert_int_equal(pst_gateway_classifier_open(shared.store, pst_str_from(other), &c, &err), PST_E_CORRUPT);
  pst_free(path);
  pst_free(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(it_answers_without_a_token),
      cmocka_unit_test(it_is_booked_and_kept_within_the_budget),
      cmocka_unit_test(below_its_threshold_the_next_stage_answers),
      cmocka_unit_test(a_message_of_another_kind_needs_a_model),
      cmocka_unit_test(plans_that_cannot_be_served_are_refused),
      cmocka_unit_test(the_same_records_are_trained_on_once),
      cmocka_unit_test(an_encoder_knows_words_that_were_never_seen),
      cmocka_unit_test(a_long_message_is_read_from_its_beginning),
      cmocka_unit_test(vectors_come_before_a_model),
      cmocka_unit_test(a_wrong_encoder_is_refused),
      cmocka_unit_test(a_call_for_vectors_can_be_cancelled),
  };
  return cmocka_run_group_tests(tests, open_shared, close_shared);
}
