/* Answers given again: the same to the byte, only to exactly the same request, only of what may be kept, at next to no cost, and never for a measurement. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <penstock/models.h>

#include "support/gateway.h"
#include "support/ok.h"
#include "support/temp.h"

static const char *smollm2;
static char sha256[65];
static test_gateway shared; /* opened once: loading costs a second */
static pst_error err;

#define NEED_MODEL() \
  if (!smollm2) skip()

/* ---- a workload with a plan in force --------------------------------------------------------------------------------------- */

/* Asked for a short sentence the model ends by itself. `members`: of the plan, `leaf`: of its node. */
static pst_gateway_plan *parse_plan(const char *members, const char *leaf) {
  pst_buf json = PST_BUF_INIT;
  pst_gateway_plan *plan = NULL;
  pst_buf_printf(&json,
                 "{\"schema\":1,\"workload\":\"desk\",%s"
                 "\"engines\":{\"e1\":{\"model\":\"%s\",\"sha256\":\"%s\",\"slots\":4,\"context\":512}},"
                 "\"root\":{\"op\":\"local\",\"engine\":\"e1\",\"max_tokens\":32,%s"
                 "\"prompt\":{\"name\":\"p\",\"system\":\"Answer in one short sentence.\"}}}",
                 members, smollm2, sha256, leaf);
  if (pst_gateway_plan_parse(pst_buf_str(&json), "test", &plan, &err)) fail_msg("%s: %s", err.place, err.message);
  pst_buf_done(&json);
  return plan;
}

static void put_in_force(const char *members, const char *leaf) {
  char hash[65];
  pst_gateway_plan *plan = parse_plan(members, leaf);
  OK(pst_store_plan_put(shared.store, pst_str_from(plan->json), 1, hash, &err));
  OK(pst_store_plan_assign(shared.store, PST_STR("desk"), PST_STORE_PLAN_IN_FORCE, pst_str_from(hash), PST_STR("test"),
                           1, &err));
  pst_gateway_plan_unref(plan);
}

#define CACHE "\"cache\":{\"ttl_seconds\":3600},"

static int open_shared(void **state) {
  (void)state;
  smollm2 = test_model("PENSTOCK_TEST_SMOLLM2");
  shared = test_gateway_open(NULL);
  return smollm2 ? pst_models_hash(shared.home, smollm2, NULL, sha256, &err) : 0;
}

static int close_shared(void **state) {
  (void)state;
  test_gateway_close(&shared);
  return 0;
}

/* ---- asking ---------------------------------------------------------------------------------------------------------------- */

/* A user's call as most are: greedy by the plan, its texts may be kept. */
static pst_gateway_call user_call(const test_chat *chat, test_answer *a) {
  pst_gateway_call call = test_call("desk", chat, a);
  call.purpose = PST_STORE_PURPOSE_USER;
  call.set = (pst_gateway_overrides){.n_logprobs = -1};
  call.consent.keep = PST_STORE_KEEP_CONTENT;
  call.subject = PST_STR("ann");
  return call;
}

/* Asks and waits, until the record is written; the answer is the caller's to free. */
static pst_gateway_cache_use answer(const pst_gateway_call *call, test_answer *a) {
  test_answer_init(a);
  pst_gateway_call mine = *call;
  mine.user = a;
  if (pst_gateway_chat(shared.gateway, &mine, NULL, &err)) fail_msg("refused: %s: %s", err.place, err.message);
  test_answer_wait(a);
  if (a->error.code) fail_msg("failed: %s", a->error.message);
  OK(pst_store_flush(shared.store, &err));
  return a->last.cache;
}

static pst_gateway_cache_use ask(const pst_gateway_call *call) {
  test_answer a;
  pst_gateway_cache_use use = answer(call, &a);
  test_answer_done(&a);
  return use;
}

static int64_t entries(void) {
  int64_t n = -1;
  OK(pst_store_cache_count(shared.store, PST_STR("desk"), &n, &err));
  return n;
}

/* ---- what a hit is --------------------------------------------------------------------------------------------------------- */

typedef struct booked {
  int n;
  char target[32], model[256], finish[16], output[2048];
  int64_t prompt, cached, completion, cost;
} booked;

static int see(void *user, const pst_store_request *r) {
  booked *b = user;
  b->n++;
  b->prompt = r->prompt_tokens;
  b->cached = r->cached_tokens;
  b->completion = r->completion_tokens;
  b->cost = r->cost_nusd;
  snprintf(b->target, sizeof b->target, "%.*s", (int)r->target.n, r->target.data);
  snprintf(b->model, sizeof b->model, "%.*s", (int)r->model.n, r->model.data);
  snprintf(b->finish, sizeof b->finish, "%.*s", (int)r->finish.n, r->finish.data);
  snprintf(b->output, sizeof b->output, "%.*s", (int)r->output_json.n, r->output_json.data ? r->output_json.data : "");
  return 0;
}

static booked record_of(const char *completion_id) {
  booked b = {0};
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  f.completion_id = pst_str_from(completion_id);
  f.with_content = true;
  OK(pst_store_request_each(shared.store, &f, see, &b, &err));
  return b;
}

static void a_hit_is_the_answer_and_costs_the_look(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer first, second, streamed;
  test_chat chat;
  put_in_force(CACHE, "");
  OK(pst_store_machine_price_set(shared.store, 3600 * PST_STORE_NUSD_PER_USD, &err)); /* 1,000 nusd per us */
  test_chat_init(&chat, "What is the capital of France?");
  pst_gateway_call call = user_call(&chat, NULL);
  assert_int_equal(answer(&call, &first), PST_GATEWAY_CACHE_MISS);
  assert_int_equal(first.finish[0], PST_ENGINE_FINISH_STOP); /* else there is nothing to test */
  assert_non_null(strstr(test_answer_text(&first, 0), "Paris"));
  assert_int_equal(answer(&call, &second), PST_GATEWAY_CACHE_HIT);
  call.stream = true;
  call.subject = PST_STR("bob"); /* of the same key: exactly what he would have been answered */
  assert_int_equal(answer(&call, &streamed), PST_GATEWAY_CACHE_HIT);
  const test_answer *hits[] = {&second, &streamed};
  booked original = record_of(first.completion_id);
  for (size_t i = 0; i < PST_ARRAY_LEN(hits); i++) {
    const test_answer *h = hits[i];
    assert_string_equal(test_answer_text(h, 0), test_answer_text(&first, 0));
    assert_int_equal(h->finish[0], first.finish[0]);
    assert_int_equal(h->n_finished, 1);
    assert_int_equal(h->n_after_last, 0);
    assert_string_equal(h->target, "cache");
    assert_string_equal(h->model, first.model);
    assert_string_not_equal(h->completion_id, first.completion_id);
    assert_int_equal(h->last.prompt_tokens, first.last.prompt_tokens);
    assert_int_equal(h->last.cached_tokens, first.last.prompt_tokens);
    assert_int_equal(h->last.completion_tokens, first.last.completion_tokens);
    assert_true(h->last.cost_nusd > 0 && h->last.cost_nusd < first.last.cost_nusd / 10);
    assert_true(h->last.ttft_us >= 0 && h->last.ttft_us <= h->last.total_us);
    booked b = record_of(h->completion_id);
    assert_int_equal(b.n, 1);
    assert_string_equal(b.target, "cache");
    assert_string_equal(b.finish, "stop");
    assert_string_equal(b.output, original.output);
    assert_int_equal(b.cost, h->last.cost_nusd);
    assert_int_equal(b.completion, original.completion);
    assert_int_equal(b.cached, b.prompt);
  }
  assert_int_equal(entries(), 1);
  test_answer_done(&first);
  test_answer_done(&second);
  test_answer_done(&streamed);
}

/* ---- what is the same request ---------------------------------------------------------------------------------------------- */

static void anything_that_differs_misses(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat, longer, other;
  pst_chat_message turns[3];
  const pst_str stop = PST_STR(" is"), stops[] = {PST_STR(" is"), PST_STR(" was")};
  const pst_engine_bias bias = {7, 1};
  put_in_force(CACHE, "");
  test_chat_init(&chat, "What is the capital of Spain?");
  test_chat_init(&other, "What is the capital of Spain? ");
  test_chat_init(&longer, "What is the capital of Spain?");
  pst_gateway_call calls[14];
  for (size_t i = 0; i < PST_ARRAY_LEN(calls); i++) calls[i] = user_call(i == 1 ? &other : &chat, NULL);
  int n = 2;
  calls[n++].key_id = 0; /* filled below: another API key */
  calls[n].set.has_max_tokens = true, calls[n++].set.max_tokens = 31;
  calls[n].set.has_stop = true, calls[n].set.stop = &stop, calls[n++].set.n_stop = 1;
  calls[n].set.has_stop = true, calls[n].set.stop = stops, calls[n++].set.n_stop = 2;
  calls[n].set.has_temperature = calls[n].set.has_seed = true, calls[n].set.temperature = 1, calls[n++].set.seed = 1;
  calls[n].set.has_temperature = calls[n].set.has_seed = true, calls[n].set.temperature = 1, calls[n++].set.seed = 2;
  calls[n].set.has_temperature = calls[n].set.has_seed = true, calls[n].set.temperature = 2, calls[n++].set.seed = 2;
  calls[n].set.has_top_p = true, calls[n++].set.top_p = 0.5f;
  calls[n].set.has_top_k = true, calls[n++].set.top_k = 5;
  calls[n].set.bias = &bias, calls[n++].set.n_bias = 1;
  calls[n++].n = 2;
  calls[n].set.has_penalties = true, calls[n].set.repetition_penalty = 1.1f, n++;
  assert_int_equal(n, PST_ARRAY_LEN(calls));
  char secret[PST_STORE_SECRET_BYTES];
  OK(pst_store_key_create(shared.store, PST_STR("app"), PST_STR(""),
                          (pst_store_limits){PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT}, 0,
                          &calls[2].key_id, secret, &err));
  for (int i = 0; i < n; i++)
    if (ask(&calls[i]) != PST_GATEWAY_CACHE_MISS) fail_msg("call %d is answered as another one was", i);
  int n_again = 0;
  for (int i = 0; i < n; i++) n_again += ask(&calls[i]) == PST_GATEWAY_CACHE_HIT;
  assert_true(n_again >= 7); /* the rest ran into max_tokens, and are not whole */
  /* The plan asks the last message alone: what stands before it changes nothing. */
  for (int i = 0; i < 3; i++) turns[i] = chat.message;
  turns[0].content = PST_STR("Hello!");
  turns[1].role = PST_CHAT_ASSISTANT;
  longer.chat.messages = turns;
  longer.chat.n_messages = 3;
  calls[0].chat = &longer.chat;
  assert_int_equal(ask(&calls[0]), PST_GATEWAY_CACHE_HIT);
}

static void another_plan_misses_and_another_cache_does_not(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat;
  test_chat_init(&chat, "What is the capital of Italy?");
  pst_gateway_call call = user_call(&chat, NULL);
  put_in_force(CACHE, "");
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_MISS);
  put_in_force("", ""); /* off: neither looked at nor filled */
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_OFF);
  put_in_force(CACHE, "\"sampling\":{\"repetition_penalty\":1.05},");
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_MISS);
  put_in_force("\"cache\":{\"max_entries\":7},", "");
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_HIT);
}

static void what_chance_takes_part_in_passes_by(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat;
  test_answer a;
  put_in_force(CACHE, "");
  test_chat_init(&chat, "What is the capital of Norway?");
  pst_gateway_call random = user_call(&chat, NULL), scored = random, kept_out = random, fresh = random, usual = random;
  random.set.has_temperature = true;
  random.set.temperature = 0.7f;
  scored.set.n_logprobs = 2;
  kept_out.no_store = true;
  fresh.fresh = true;
  int64_t before = entries();
  for (int i = 0; i < 2; i++) {
    assert_int_equal(ask(&random), PST_GATEWAY_CACHE_BYPASS);
    assert_int_equal(answer(&scored, &a), PST_GATEWAY_CACHE_BYPASS);
    assert_true(a.n_tokens > 0); /* log-probabilities come as ever */
    test_answer_done(&a);
    assert_int_equal(ask(&kept_out), PST_GATEWAY_CACHE_BYPASS);
  }
  assert_int_equal(entries(), before);
  assert_int_equal(ask(&fresh), PST_GATEWAY_CACHE_BYPASS);
  assert_int_equal(entries(), before + 1);
  assert_int_equal(ask(&fresh), PST_GATEWAY_CACHE_BYPASS); /* computed again, found once */
  assert_int_equal(ask(&kept_out), PST_GATEWAY_CACHE_BYPASS);
  assert_int_equal(ask(&usual), PST_GATEWAY_CACHE_HIT);
}

/* ---- what may be kept ------------------------------------------------------------------------------------------------------ */

static void measurements_neither_fill_nor_read(void **state) {
  (void)state;
  NEED_MODEL();
  static const pst_store_purpose purposes[] = {PST_STORE_PURPOSE_EVAL, PST_STORE_PURPOSE_SEARCH,
                                               PST_STORE_PURPOSE_SHADOW, PST_STORE_PURPOSE_TEACHER};
  test_chat chat;
  test_answer a;
  put_in_force(CACHE, "");
  test_chat_init(&chat, "What is the capital of Japan?");
  pst_gateway_call user = user_call(&chat, NULL);
  for (int round = 0; round < 2; round++) {
    for (size_t i = 0; i < PST_ARRAY_LEN(purposes); i++) {
      pst_gateway_call call = user;
      call.purpose = purposes[i];
      assert_int_equal(answer(&call, &a), PST_GATEWAY_CACHE_OFF);
      assert_string_equal(a.target, "local");
      test_answer_done(&a);
    }
    assert_int_equal(ask(&user), round ? PST_GATEWAY_CACHE_HIT : PST_GATEWAY_CACHE_MISS);
  }
}

static void consent_decides(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat;
  test_answer a;
  put_in_force(CACHE, "");
  test_chat_init(&chat, "What is the capital of Egypt?");
  pst_gateway_call call = user_call(&chat, NULL), nothing = call, metadata = call;
  nothing.consent.keep = PST_STORE_KEEP_NOTHING;
  metadata.consent.keep = PST_STORE_KEEP_METADATA;
  int64_t before = entries();
  for (int i = 0; i < 2; i++) {
    assert_int_equal(ask(&nothing), PST_GATEWAY_CACHE_MISS);
    assert_int_equal(ask(&metadata), PST_GATEWAY_CACHE_MISS);
  }
  assert_int_equal(entries(), before);
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_MISS);
  assert_int_equal(entries(), before + 1);
  assert_int_equal(answer(&nothing, &a), PST_GATEWAY_CACHE_HIT); /* reading keeps nothing of the reader */
  assert_int_equal(record_of(a.completion_id).n, 0);
  test_answer_done(&a);
  assert_int_equal(answer(&metadata, &a), PST_GATEWAY_CACHE_HIT);
  booked b = record_of(a.completion_id);
  assert_string_equal(b.target, "cache");
  assert_string_equal(b.output, "");
  test_answer_done(&a);
}

static void only_whole_answers_are_given_again(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat;
  test_answer a;
  put_in_force(CACHE, "");
  test_chat_init(&chat, "Tell a long story.");
  pst_gateway_call call = user_call(&chat, NULL);
  call.set.has_max_tokens = true;
  call.set.max_tokens = 2;
  for (int i = 0; i < 2; i++) {
    assert_int_equal(answer(&call, &a), PST_GATEWAY_CACHE_MISS);
    assert_int_equal(a.finish[0], PST_ENGINE_FINISH_LENGTH);
    test_answer_done(&a);
  }
  call.set.max_tokens = 400; /* cancelled at its first text */
  call.stream = true;
  for (int i = 0; i < 2; i++) {
    test_answer_init(&a);
    a.cancel_in = shared.gateway;
    call.user = &a;
    pthread_mutex_lock(&a.lock); /* no event before the id is known */
    OK(pst_gateway_chat(shared.gateway, &call, &a.cancel_id, &err));
    pthread_mutex_unlock(&a.lock);
    test_answer_wait(&a);
    assert_int_equal(a.error.code, PST_E_CANCELLED);
    assert_int_equal(a.last.cache, PST_GATEWAY_CACHE_MISS);
    test_answer_done(&a);
    OK(pst_store_flush(shared.store, &err));
  }
}

static void the_subject_takes_its_answers_along(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat;
  pst_store_erasure e;
  put_in_force(CACHE, "");
  test_chat_init(&chat, "What is the capital of Chile?");
  pst_gateway_call call = user_call(&chat, NULL), other = call;
  call.subject = PST_STR("carla");
  other.subject = PST_STR("dora");
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_MISS);
  assert_int_equal(ask(&other), PST_GATEWAY_CACHE_HIT);
  OK(pst_store_records_erase(shared.store, PST_STR("dora"), (pst_str){NULL, 0}, 9, &e, &err));
  pst_store_erasure_done(&e);
  assert_int_equal(ask(&other), PST_GATEWAY_CACHE_HIT); /* carla's answer is still hers to keep */
  OK(pst_store_records_erase(shared.store, PST_STR("carla"), (pst_str){NULL, 0}, 9, &e, &err));
  pst_store_erasure_done(&e);
  assert_int_equal(ask(&other), PST_GATEWAY_CACHE_MISS);
  assert_int_equal(ask(&other), PST_GATEWAY_CACHE_HIT);
}

static void retention_ends_it(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat;
  pst_store_erasure e;
  put_in_force(CACHE, "");
  test_chat_init(&chat, "What is the capital of Peru?");
  pst_gateway_call call = user_call(&chat, NULL);
  call.consent.retention_days = 1;
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_MISS);
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_HIT);
  int64_t tomorrow = pst_clock_unix_ms() + INT64_C(90000000);
  OK(pst_store_records_prune(shared.store, tomorrow, &e, &err));
  pst_store_erasure_done(&e);
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_MISS);
}

/* ---- more than one at a time, and afterwards ------------------------------------------------------------------------------- */

static void the_same_asked_at_once_is_answered_twice(void **state) {
  (void)state;
  NEED_MODEL();
  enum { N = 6 };
  static test_answer answers[N];
  test_chat chat;
  put_in_force(CACHE, "");
  test_chat_init(&chat, "What is the capital of Kenya?");
  pst_gateway_call call = user_call(&chat, NULL);
  for (int i = 0; i < N; i++) {
    test_answer_init(&answers[i]);
    call.user = &answers[i];
    call.stream = i % 2;
    OK(pst_gateway_chat(shared.gateway, &call, NULL, &err));
  }
  for (int i = 0; i < N; i++) test_answer_wait(&answers[i]);
  OK(pst_store_flush(shared.store, &err));
  for (int i = 0; i < N; i++) {
    assert_int_equal(answers[i].error.code, 0);
    assert_string_equal(test_answer_text(&answers[i], 0), test_answer_text(&answers[0], 0));
  }
  assert_int_equal(ask(&call), PST_GATEWAY_CACHE_HIT);
  for (int i = 0; i < N; i++) test_answer_done(&answers[i]);
}

static void a_budget_pays_for_the_look(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat;
  test_answer a, b;
  char secret[PST_STORE_SECRET_BYTES];
  pst_store_budget budget;
  int64_t id = 0;
  put_in_force(CACHE, "");
  OK(pst_store_machine_price_set(shared.store, 3600 * PST_STORE_NUSD_PER_USD, &err));
  OK(pst_store_key_create(shared.store, PST_STR("paying"), PST_STR(""),
                          (pst_store_limits){PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT}, 0, &id,
                          secret, &err));
  test_chat_init(&chat, "What is the capital of Germany?");
  pst_gateway_call call = user_call(&chat, NULL);
  call.key_id = id;
  assert_int_equal(answer(&call, &a), PST_GATEWAY_CACHE_MISS);
  OK(pst_store_budget_get(shared.store, id, pst_clock_unix_ms(), &budget, &err));
  int64_t spent = budget.total_nusd;
  assert_int_equal(spent, a.last.cost_nusd);
  assert_int_equal(answer(&call, &b), PST_GATEWAY_CACHE_HIT);
  OK(pst_store_budget_get(shared.store, id, pst_clock_unix_ms(), &budget, &err));
  assert_int_equal(budget.total_nusd, spent + b.last.cost_nusd);
  assert_true(budget.n_open == 0 && budget.n_overruns == 0 && b.last.cost_nusd > 0);
  /* What is spent is spent: the look, too, must be within the limit. */
  OK(pst_store_key_set_limits(shared.store, id, (pst_store_limits){spent, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT},
                              &err));
  test_answer refused;
  test_answer_init(&refused);
  call.user = &refused;
  OK(pst_gateway_chat(shared.gateway, &call, NULL, &err));
  test_answer_wait(&refused);
  assert_int_equal(refused.error.code, PST_E_BUDGET);
  assert_string_equal(test_answer_text(&refused, 0), "");
  test_answer_done(&refused);
  test_answer_done(&a);
  test_answer_done(&b);
}

/* Last: it closes and opens the shared gateway. */
static void a_restart_forgets_nothing(void **state) {
  (void)state;
  NEED_MODEL();
  test_chat chat;
  test_answer first, again;
  pst_gateway_stats stats;
  put_in_force(CACHE, "");
  test_chat_init(&chat, "What is the capital of Iceland?");
  pst_gateway_call call = user_call(&chat, NULL);
  assert_int_equal(answer(&call, &first), PST_GATEWAY_CACHE_MISS);
  test_gateway_close_keep(&shared);
  shared = test_gateway_open_at(shared.home, NULL);
  assert_int_equal(answer(&call, &again), PST_GATEWAY_CACHE_HIT);
  assert_string_equal(test_answer_text(&again, 0), test_answer_text(&first, 0));
  pst_gateway_get_stats(shared.gateway, &stats);
  assert_int_equal(stats.n_engines, 0); /* the model was not even loaded */
  test_answer_done(&first);
  test_answer_done(&again);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_hit_is_the_answer_and_costs_the_look),
      cmocka_unit_test(anything_that_differs_misses),
      cmocka_unit_test(another_plan_misses_and_another_cache_does_not),
      cmocka_unit_test(what_chance_takes_part_in_passes_by),
      cmocka_unit_test(measurements_neither_fill_nor_read),
      cmocka_unit_test(consent_decides),
      cmocka_unit_test(only_whole_answers_are_given_again),
      cmocka_unit_test(the_subject_takes_its_answers_along),
      cmocka_unit_test(retention_ends_it),
      cmocka_unit_test(the_same_asked_at_once_is_answered_twice),
      cmocka_unit_test(a_budget_pays_for_the_look),
      cmocka_unit_test(a_restart_forgets_nothing),
  };
  return cmocka_run_group_tests(tests, open_shared, close_shared);
}
