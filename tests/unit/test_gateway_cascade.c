/* Calls answered by plans: prompts, constraints, cascades over local engines and a provider, workloads with a plan in force; and the engines behind them. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "gateway/live.h"
#include "support/gateway.h"
#include "support/raw_peer.h"
#include "support/temp.h"

static const char *smollm2;
static test_gateway shared;

#define NEED_MODEL() \
  if (!smollm2) skip()

static int open_shared(void **state) {
  (void)state;
  smollm2 = test_model("PENSTOCK_TEST_SMOLLM2");
  shared = test_gateway_open(NULL);
  return 0;
}

static int close_shared(void **state) {
  (void)state;
  test_gateway_close(&shared);
  return 0;
}

/* ---- the decision alone ----------------------------------------------------------------------------------------------------- */

static void the_next_leaf_follows_from_the_margin(void **state) {
  (void)state;
  pst_gateway_node inner[2] = {{.op = PST_GATEWAY_OP_LOCAL}, {.op = PST_GATEWAY_OP_LOCAL}};
  pst_gateway_node outer[3] = {{.op = PST_GATEWAY_OP_CASCADE, .inputs = inner, .n_inputs = 2, .threshold = 1},
                               {.op = PST_GATEWAY_OP_LOCAL},
                               {.op = PST_GATEWAY_OP_REMOTE}};
  pst_gateway_node root = {.op = PST_GATEWAY_OP_CASCADE, .inputs = outer, .n_inputs = 3, .threshold = 2};
  assert_ptr_equal(pst_gateway_first_leaf(&root), &inner[0]);
  assert_ptr_equal(pst_gateway_next_leaf(&root, &inner[0], 0.5), &inner[1]); /* not enough for the inner one */
  assert_ptr_equal(pst_gateway_next_leaf(&root, &inner[0], 1.5), &outer[1]); /* for the inner one, not the outer */
  assert_null(pst_gateway_next_leaf(&root, &inner[0], 2));
  assert_ptr_equal(pst_gateway_next_leaf(&root, &inner[1], 0), &outer[1]);
  assert_ptr_equal(pst_gateway_next_leaf(&root, &outer[1], (double)NAN), &outer[2]); /* unknown is never enough */
  assert_null(pst_gateway_next_leaf(&root, &outer[2], (double)NAN));
}

/* ---- plans over real engines -------------------------------------------------------------------------------------------------- */

/* A choice task in two stages: a short context first, a longer prompt behind. %s: model, twice; %g: threshold. */
static const char CASCADE[] =
    "{\"schema\":1,\"workload\":\"mood\",\"labels\":[\"good\",\"bad\"],"
    "\"engines\":{\"e1\":{\"model\":\"%s\",\"slots\":4},\"e2\":{\"model\":\"%s\",\"slots\":2,\"kv\":\"q8_0\"}},"
    "\"root\":{\"op\":\"cascade\",\"signal\":\"margin\",\"threshold\":%g,\"inputs\":["
    "{\"op\":\"local\",\"engine\":\"e1\",\"layout\":\"plain\",\"constraint\":\"labels\",\"max_tokens\":4,"
    "\"prompt\":{\"name\":\"terse\",\"input_key\":\"Text\",\"answer_key\":\"Mood\"}},"
    "{\"op\":\"local\",\"engine\":\"e2\",\"layout\":\"plain\",\"constraint\":\"labels\",\"max_tokens\":4,"
    "\"prompt\":{\"name\":\"long\",\"instruction\":\"Is the mood of the text good or bad?\",\"input_key\":\"Text\","
    "\"answer_key\":\"Mood\"}}]}}";

static pst_gateway_plan *parse(const char *json) {
  pst_gateway_plan *plan = NULL;
  pst_error err = PST_ERROR_INIT;
  if (pst_gateway_plan_parse(pst_str_from(json), "test", &plan, &err)) fail_msg("%s: %s", err.place, err.message);
  return plan;
}

static pst_gateway_plan *cascade_plan(double threshold) {
  pst_buf json = PST_BUF_INIT;
  pst_buf_printf(&json, CASCADE, smollm2, smollm2, threshold);
  pst_gateway_plan *plan = parse(json.data);
  pst_buf_done(&json);
  return plan;
}

static void ask(pst_gateway *g, pst_gateway_plan *plan, const char *text, int n_logprobs, bool stream, test_answer *a) {
  test_chat chat;
  pst_error err = PST_ERROR_INIT;
  test_answer_init(a);
  test_chat_init(&chat, text);
  pst_gateway_call call = test_call("", &chat, a);
  call.plan = plan;
  call.set = (pst_gateway_overrides){.n_logprobs = n_logprobs};
  call.stream = stream;
  if (pst_gateway_chat(g, &call, NULL, &err)) fail_msg("refused: %s: %s", err.place, err.message);
  test_answer_wait(a);
  if (a->error.code) fail_msg("failed: %s", a->error.message);
}

static bool is_label(const char *text) { return !strcmp(text, "good") || !strcmp(text, "bad"); }

static void a_cascade_goes_on_below_its_threshold(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer sure, unsure, alone;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_store_machine_price_set(shared.store, 3600 * PST_STORE_NUSD_PER_USD, &err), 0);
  pst_gateway_plan *never = cascade_plan(0), *always = cascade_plan(1000);
  ask(shared.gateway, never, "What a wonderful day!", -1, false, &sure);
  assert_int_equal(sure.last.n_stages, 1);
  assert_true(is_label(test_answer_text(&sure, 0)));
  assert_true(sure.last.margin >= 0);
  ask(shared.gateway, always, "What a wonderful day!", -1, true, &unsure);
  assert_int_equal(unsure.last.n_stages, 2);
  assert_true(is_label(test_answer_text(&unsure, 0)));
  assert_int_equal(unsure.n_finished, 1);
  assert_true(unsure.last.prompt_tokens > 2 * sure.last.prompt_tokens); /* both stages are in the books */
  assert_true(unsure.last.cost_nusd > 0);
  /* The answer of a stage that is not the last is held until it is known to stand, log-probabilities included. */
  ask(shared.gateway, never, "What a wonderful day!", 2, true, &alone);
  assert_string_equal(test_answer_text(&alone, 0), test_answer_text(&sure, 0));
  assert_int_equal(alone.last.n_stages, 1);
  assert_true(alone.n_tokens >= 1);
  assert_int_equal(alone.n_after_last, 0);
  test_answer_done(&sure);
  test_answer_done(&unsure);
  test_answer_done(&alone);
  pst_gateway_plan_unref(never);
  pst_gateway_plan_unref(always);
}

static void rendered_is_what_is_served(void **state) {
  (void)state;
  NEED_MODEL();
  test_answer a;
  pst_engine_tokens tokens = {0};
  pst_buf text = PST_BUF_INIT;
  pst_error err = PST_ERROR_INIT;
  pst_gateway_plan *plan = cascade_plan(0);
  ask(shared.gateway, plan, "The train is late again.", -1, false, &a);
  assert_int_equal(pst_gateway_render(shared.gateway, plan, &plan->root.inputs[0], PST_STR("The train is late again."),
                                      NULL, 0, &tokens, &text, &err),
                   0);
  assert_int_equal(tokens.n, a.last.prompt_tokens);
  assert_non_null(strstr(pst_buf_text(&text), "The train is late again."));
  assert_int_equal(pst_gateway_render(shared.gateway, plan, &plan->root, PST_STR("x"), NULL, 0, &tokens, NULL, &err),
                   PST_E_BAD_INPUT);
  pst_engine_tokens_done(&tokens);
  pst_buf_done(&text);
  test_answer_done(&a);
  pst_gateway_plan_unref(plan);
}

static void play_remote(int fd, void *user) {
  int *n = user;
  pst_buf in = PST_BUF_INIT;
  static const char answer[] =
      "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
      "{\"id\":\"x\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"good\"},"
      "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":1,\"total_tokens\":21}}";
  if (raw_read_request(fd, &in)) {
    (*n)++;
    (void)raw_try_send(fd, answer, sizeof answer - 1);
  }
  pst_buf_done(&in);
}

static void a_cascade_ends_at_a_provider(void **state) {
  (void)state;
  NEED_MODEL();
  int port, n_requests = 0;
  char url[64];
  pst_error err = PST_ERROR_INIT;
  pst_store_price price = {PST_STORE_NUSD_PER_USD, PST_STORE_NO_LIMIT, PST_STORE_NUSD_PER_USD};
  raw_server *server = raw_server_start(play_remote, &n_requests, &port);
  snprintf(url, sizeof url, "http://127.0.0.1:%d/v1", port);
  assert_int_equal(pst_gateway_provider_set(shared.store, PST_STR("acme"), pst_str_from(url), PST_STR(""), &err), 0);
  assert_int_equal(pst_store_price_set(shared.store, PST_STR("acme"), PST_STR("*"), price, &err), 0);
  pst_buf json = PST_BUF_INIT;
  pst_buf_printf(
      &json,
      "{\"schema\":1,\"labels\":[\"good\",\"bad\"],\"engines\":{\"e1\":{\"model\":\"%s\",\"slots\":4}},\"root\":{\"op\":"
      "\"cascade\",\"signal\":\"margin\",\"threshold\":1000,\"inputs\":[{\"op\":\"local\",\"engine\":\"e1\",\"layout\":"
      "\"plain\",\"constraint\":\"labels\",\"prompt\":{\"name\":\"p\",\"input_key\":\"Text\",\"answer_key\":\"Mood\"},"
      "\"max_tokens\":4},{\"op\":\"remote\",\"provider\":\"acme\",\"model\":\"big\",\"prompt\":{\"name\":\"p\","
      "\"system\":\"Answer good or bad.\"},\"max_tokens\":4}]}}",
      smollm2);
  pst_gateway_plan *plan = parse(json.data);
  test_answer a;
  ask(shared.gateway, plan, "What a day!", -1, false, &a);
  assert_string_equal(test_answer_text(&a, 0), "good");
  assert_string_equal(a.target, "acme");
  assert_int_equal(a.last.n_stages, 2);
  assert_true(a.last.cost_nusd > 21000); /* the provider's and the local stage's */
  test_answer_done(&a);
  pst_gateway_plan_unref(plan);
  pst_buf_done(&json);
  raw_server_stop(server);
  assert_int_equal(n_requests, 1);
}

/* ---- workloads ------------------------------------------------------------------------------------------------------------------ */

static void assign(test_gateway *t, const char *json) {
  char hash[65];
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_store_plan_put(t->store, pst_str_from(json), 1, hash, &err), 0);
  assert_int_equal(pst_store_plan_assign(t->store, PST_STR("mood"), PST_STORE_PLAN_IN_FORCE, pst_str_from(hash),
                                         PST_STR("test"), 1, &err),
                   0);
}

static test_answer ask_workload(test_gateway *t, const char *text) {
  test_answer a;
  test_chat chat;
  pst_error err = PST_ERROR_INIT;
  test_answer_init(&a);
  test_chat_init(&chat, text);
  pst_gateway_call call = test_call("mood", &chat, &a);
  call.purpose = PST_STORE_PURPOSE_USER;
  if (pst_gateway_chat(t->gateway, &call, NULL, &err)) fail_msg("refused: %s: %s", err.place, err.message);
  test_answer_wait(&a);
  return a;
}

static void a_new_plan_is_noticed_and_what_does_not_match_passes(void **state) {
  (void)state;
  NEED_MODEL();
  pst_buf json = PST_BUF_INIT;
  pst_buf_printf(&json, CASCADE, smollm2, smollm2, 0.0);
  assign(&shared, json.data);
  test_answer a = ask_workload(&shared, "I am happy.");
  assert_true(is_label(test_answer_text(&a, 0)));
  assert_int_equal(a.last.n_stages, 1);
  test_answer_done(&a);
  pst_buf_clear(&json);
  pst_buf_printf(&json, CASCADE, smollm2, smollm2, 1000.0);
  json.data[json.n - 1] = ',';
  pst_buf_puts(&json, "\"input_pattern\":\"^Text: (.*)$\"}");
  assign(&shared, json.data);
  a = ask_workload(&shared, "Text: I am happy.");
  assert_true(is_label(test_answer_text(&a, 0)));
  assert_int_equal(a.last.n_stages, 2);
  test_answer_done(&a);
  a = ask_workload(&shared, "Something else.");
  assert_int_equal(a.error.code, 0);
  assert_false(is_label(test_answer_text(&a, 0)));
  assert_int_equal(a.last.n_stages, 1);
  test_answer_done(&a);
  pst_buf_done(&json);
}

/* ---- engines ------------------------------------------------------------------------------------------------------------------------ */

static pst_gateway_plan *engine_plan(const char *engine_members) {
  pst_buf json = PST_BUF_INIT;
  pst_buf_printf(
      &json,
      "{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"%s\",%s}},\"root\":{\"op\":\"local\",\"engine\":\"e1\","
      "\"layout\":\"plain\",\"prompt\":{\"name\":\"p\",\"input_key\":\"Q\",\"answer_key\":\"A\"},\"max_tokens\":4}}",
      smollm2, engine_members);
  pst_gateway_plan *plan = parse(json.data);
  pst_buf_done(&json);
  return plan;
}

static int n_engines(pst_gateway *g) {
  pst_gateway_stats stats;
  pst_gateway_get_stats(g, &stats);
  return stats.n_engines;
}

static void the_least_recently_used_engine_makes_room_and_none_in_use(void **state) {
  (void)state;
  NEED_MODEL();
  struct stat st;
  assert_int_equal(stat(smollm2, &st), 0);
  /* 8,192 positions of this model take 180 MiB; 6 slots of 1,024 fewer: two such engines beside the weights, not three. */
  pst_gateway_options o = {.memory_bytes = st.st_size * 3 / 2 + (400 << 20)};
  test_gateway t = test_gateway_open(&o);
  pst_error err = PST_ERROR_INIT;
  pst_gateway_plan *plans[3] = {engine_plan("\"slots\":2"), engine_plan("\"slots\":3"), engine_plan("\"slots\":4")};
  pst_engine *first, *second, *third;
  assert_int_equal(pst_gateway_engine_acquire(t.gateway, plans[0], 0, &first, &err), 0);
  assert_int_equal(pst_gateway_engine_acquire(t.gateway, plans[1], 0, &second, &err), 0);
  assert_ptr_equal(pst_engine_get_model(first), pst_engine_get_model(second)); /* weights are shared */
  int n_before = n_engines(t.gateway);
  int code = pst_gateway_engine_acquire(t.gateway, plans[2], 0, &third, &err);
  assert_int_equal(n_before, 2);
  assert_int_equal(code, PST_E_BUSY);
  pst_gateway_engine_release(t.gateway, first);
  assert_int_equal(pst_gateway_engine_acquire(t.gateway, plans[2], 0, &third, &err), 0);
  assert_int_equal(n_engines(t.gateway), 2);
  test_answer a; /* the first is loaded again once there is room */
  pst_gateway_engine_release(t.gateway, second);
  ask(t.gateway, plans[0], "x", -1, false, &a);
  assert_int_equal(n_engines(t.gateway), 2);
  pst_gateway_engine_release(t.gateway, third);
  test_answer_done(&a);
  for (int i = 0; i < 3; i++) pst_gateway_plan_unref(plans[i]);
  test_gateway_close(&t);
}

static int count_files(const char *dir, const char *end) {
  int n = 0;
  DIR *d = opendir(dir);
  if (!d) return 0;
  for (struct dirent *e = readdir(d); e; e = readdir(d)) {
    size_t length = strlen(e->d_name), tail = strlen(end);
    n += length > tail && !strcmp(e->d_name + length - tail, end);
  }
  closedir(d);
  return n;
}

static void weights_are_requantized_once(void **state) {
  (void)state;
  NEED_MODEL();
  test_gateway t = test_gateway_open(NULL);
  char *home = t.home;
  pst_error err = PST_ERROR_INIT;
  pst_gateway_plan *plan = engine_plan("\"weights\":\"Q8_0\",\"slots\":2");
  if (pst_gateway_prepare(t.gateway, plan, NULL, &err)) fail_msg("%s: %s", err.place, err.message);
  const char *dir = test_temp_path(home, "quantized");
  assert_int_equal(count_files(dir, "-Q8_0.gguf"), 1);
  assert_int_equal(count_files(dir, ".tmp"), 0);
  pst_engine *engine;
  assert_int_equal(pst_gateway_engine_acquire(t.gateway, plan, 0, &engine, &err), 0);
  const pst_engine_model_info *info = pst_engine_model_get_info(pst_engine_get_model(engine));
  assert_string_equal(info->weights, "Q8_0");
  struct stat before, after;
  assert_int_equal(stat(info->path, &before), 0);
  char path[512];
  snprintf(path, sizeof path, "%s", info->path);
  pst_gateway_engine_release(t.gateway, engine);
  test_gateway_close_keep(&t);
  t = test_gateway_open_at(home, NULL);
  test_answer a;
  ask(t.gateway, plan, "What is two and two?", -1, false, &a);
  assert_true(a.last.completion_tokens > 0);
  assert_int_equal(stat(path, &after), 0);
  assert_true(before.st_ino == after.st_ino && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
  test_answer_done(&a);
  pst_gateway_plan_unref(plan);
  test_gateway_close(&t);
}

static void a_plan_for_another_file_is_refused(void **state) {
  (void)state;
  NEED_MODEL();
  pst_error err = PST_ERROR_INIT;
  pst_buf member = PST_BUF_INIT;
  pst_buf_puts(&member, "\"sha256\":\"");
  for (int i = 0; i < 64; i++) pst_buf_putc(&member, 'a');
  pst_buf_putc(&member, '"');
  pst_gateway_plan *plan = engine_plan(member.data);
  assert_int_equal(pst_gateway_prepare(shared.gateway, plan, NULL, &err), PST_E_CORRUPT);
  assert_non_null(strstr(err.message, "aaaaaaaaaaaa"));
  pst_gateway_plan_unref(plan);
  pst_buf_done(&member);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_next_leaf_follows_from_the_margin),
      cmocka_unit_test(a_cascade_goes_on_below_its_threshold),
      cmocka_unit_test(rendered_is_what_is_served),
      cmocka_unit_test(a_cascade_ends_at_a_provider),
      cmocka_unit_test(a_new_plan_is_noticed_and_what_does_not_match_passes),
      cmocka_unit_test(the_least_recently_used_engine_makes_room_and_none_in_use),
      cmocka_unit_test(weights_are_requantized_once),
      cmocka_unit_test(a_plan_for_another_file_is_refused),
  };
  return cmocka_run_group_tests(tests, open_shared, close_shared);
}
