/* A text that is learned is the text that is served: the prompt's tokens as the engine gets them, the answer's, and the token at which serving stops, for every layout, and where a
 * template writes answers that are past in another way. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/gateway.h"
#include "support/ok.h"
#include "support/temp.h"
#include "support/tiny_model.h"

/* ChatML whose past answers come with an empty thought that prompts do not have. */
#define THINKING                                                                                              \
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think></think>{% endif %}" \
  "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

/* One whose prompts open a thought that past answers do not have. */
#define REOPENED                                                                             \
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" \
  "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"

static test_gateway shared;
static pst_error err;

static int open_shared(void **state) {
  (void)state;
  shared = test_gateway_open(NULL);
  return 0;
}

static int close_shared(void **state) {
  (void)state;
  test_gateway_close(&shared);
  return 0;
}

static pst_gateway_plan *plan_of(const char *model, const char *layout) {
  pst_buf json = PST_BUF_INIT;
  pst_gateway_plan *plan = NULL;
  pst_buf_printf(
      &json,
      "{\"schema\":1,\"workload\":\"desk\",\"engines\":{\"e1\":{\"model\":\"%s\",\"slots\":2}},"
      "\"root\":{\"op\":\"local\",\"engine\":\"e1\",\"layout\":\"%s\",\"max_tokens\":4,"
      "\"prompt\":{\"name\":\"p\",\"system\":\"Be brief.\",\"input_key\":\"Message\",\"answer_key\":\"Answer\"}}}",
      model, layout);
  OK(pst_gateway_plan_parse(pst_buf_str(&json), "test", &plan, &err));
  pst_buf_done(&json);
  return plan;
}

static int64_t served_prompt(pst_gateway_plan *plan, const char *input) {
  test_answer a;
  test_chat chat;
  test_answer_init(&a);
  test_chat_init(&chat, input);
  pst_gateway_call call = test_call("", &chat, &a);
  call.plan = plan;
  OK(pst_gateway_chat(shared.gateway, &call, NULL, &err));
  test_answer_wait(&a);
  assert_int_equal(a.error.code, 0);
  int64_t n = a.last.prompt_tokens;
  test_answer_done(&a);
  return n;
}

/* What serving would have said token by token: `text` so far, and whether it has stopped. The layout's stop string is cut off, and its leading space. */
static bool stops(const pst_engine_model *model, bool plain, const int32_t *ids, size_t n, pst_buf *text) {
  pst_buf_clear(text);
  bool ended = n && pst_engine_token_ends(model, ids[n - 1]);
  OK(pst_engine_detokenize(model, ids, n, false, text));
  size_t line = plain ? pst_str_find(pst_buf_str(text), PST_STR("\n"), 0) : SIZE_MAX;
  if (line != SIZE_MAX) text->n = line;
  return ended || line != SIZE_MAX;
}

static void check(const char *model_path, const char *layout, const char *input, const char *answer, const char *said) {
  pst_gateway_plan *plan = plan_of(model_path, layout);
  pst_engine_tokens prompt = {0}, whole = {0}, own = {0};
  pst_engine *engine = NULL;
  pst_buf text = PST_BUF_INIT;
  size_t n_given = 0;
  bool plain = !strcmp(layout, "plain");
  pst_str in = pst_str_from(input);
  OK(pst_gateway_engine_acquire(shared.gateway, plan, 0, &engine, &err));
  const pst_engine_model *model = pst_engine_get_model(engine);
  OK(pst_gateway_render(shared.gateway, plan, &plan->root, in, NULL, 0, &prompt, NULL, &err));
  OK(pst_gateway_render_answered(shared.gateway, plan, &plan->root, in, NULL, 0, pst_str_from(answer), &whole, &n_given,
                                 &err));
  assert_int_equal(n_given, served_prompt(plan, input));
  assert_int_equal(n_given, prompt.n);
  assert_true(whole.n > n_given + 1);
  assert_memory_equal(whole.ids, prompt.ids, n_given * sizeof *prompt.ids);
  for (size_t n = 1; n <= whole.n - n_given; n++)
    assert_int_equal(stops(model, plain, whole.ids + n_given, n, &text), n == whole.n - n_given);
  pst_str served = pst_buf_str(&text);
  if (plain) served = (pst_str){served.data + 1, served.n - 1}; /* the space before it */
  assert_true(pst_str_is(served, said));
  if (!plain) { /* the answer by itself, then the end that the template writes */
    OK(pst_engine_tokenize(model, pst_str_from(said), false, false, &own, &err));
    assert_int_equal(whole.n, n_given + own.n + 1);
    assert_memory_equal(whole.ids + n_given, own.ids, own.n * sizeof *own.ids);
    assert_int_equal(whole.ids[whole.n - 1], pst_engine_answer_end(model));
  }
  pst_gateway_engine_release(shared.gateway, engine);
  pst_gateway_plan_unref(plan);
  pst_engine_tokens_done(&prompt);
  pst_engine_tokens_done(&whole);
  pst_engine_tokens_done(&own);
  pst_buf_done(&text);
}

static void check_all(const char *model_path, const char *layout) {
  bool plain = !strcmp(layout, "plain");
  check(model_path, layout, "Where is my parcel?", "delivery", "delivery");
  check(model_path, layout, "  two\nlines ", "{\"a\": [1, 2]}", "{\"a\": [1, 2]}");
  check(model_path, layout, "naïve", " 東京 ", "東京");
  check(model_path, layout, "x", "<|im_end|>", "<|im_end|>"); /* text of an answer is never a control token */
  check(model_path, layout, "x", "one\n two", plain ? "one two" : "one\n two");
}

static void every_layout(void **state) {
  (void)state;
  static const char *const layouts[] = {"chat", "chat_inline", "plain"};
  const char *path = test_temp_path(shared.home, "tiny.gguf");
  test_tiny_write(path, &(test_tiny){.seed = 5});
  for (size_t i = 0; i < PST_ARRAY_LEN(layouts); i++) check_all(path, layouts[i]);
}

static void past_answers_in_another_way(void **state) {
  (void)state;
  const char *path = test_temp_path(shared.home, "thinking.gguf");
  test_tiny_write(path, &(test_tiny){.seed = 6, .template_text = THINKING});
  check_all(path, "chat");
  path = test_temp_path(shared.home, "reopened.gguf");
  test_tiny_write(path, &(test_tiny){.seed = 6, .template_text = REOPENED});
  check_all(path, "chat");
}

static void without_a_template(void **state) {
  (void)state;
  const char *path = test_temp_path(shared.home, "bare.gguf");
  pst_engine_model *model = NULL;
  test_tiny_write(path, &(test_tiny){.seed = 7, .template_text = ""});
  check_all(path, "plain");
  OK(pst_engine_model_open(path, 1, &model, &err));
  assert_int_equal(pst_engine_answer_end(model), pst_engine_model_get_info(model)->eos);
  pst_engine_model_unref(model);
}

static void a_real_tokenizer(void **state) {
  (void)state;
  const char *smollm2 = test_model("PENSTOCK_TEST_SMOLLM2");
  if (!smollm2) skip();
  check_all(smollm2, "plain");
  check_all(smollm2, "chat");
}

/* ---- likelihoods ---- */

static double sum_of_answer;
static size_t counted_from;

static void add_up(void *user, size_t text, size_t position, const pst_engine_event *e) {
  (void)user;
  (void)text;
  if (position >= counted_from) sum_of_answer += (double)e->logprob;
}

static double mean_of(pst_engine *engine, const int32_t *ids, size_t n, size_t from) {
  const pst_engine_score_text text = {ids, n};
  const pst_engine_score_job job = {.texts = &text, .n_texts = 1, .told = add_up};
  sum_of_answer = 0;
  counted_from = from;
  OK(pst_engine_score_wait(engine, &job, &err));
  return sum_of_answer / (double)(n - from);
}

static void likelihoods_are_of_the_answer(void **state) {
  (void)state;
  const char *path = test_temp_path(shared.home, "likely.gguf");
  test_tiny_write(path, &(test_tiny){.seed = 9});
  enum { N = 40 };
  static char texts[N][2][40];
  pst_chat_message messages[N][2];
  pst_chat chats[N];
  pst_gateway_likelihood items[N];
  for (int i = 0; i < N; i++) {
    snprintf(texts[i][0], sizeof texts[0][0], "question %d?", i * 37);
    snprintf(texts[i][1], sizeof texts[0][0], "%.*s", 1 + i % 38, "the answer to that is a very long one");
    for (int k = 0; k < 2; k++)
      messages[i][k] = (pst_chat_message){
          .role = k ? PST_CHAT_ASSISTANT : PST_CHAT_USER, .has_content = true, .content = pst_str_from(texts[i][k])};
    chats[i] = (pst_chat){.messages = messages[i], .n_messages = 2};
    items[i] = (pst_gateway_likelihood){.chat = &chats[i]};
  }
  OK(pst_gateway_likelihoods(shared.gateway, path, items, N, &err));
  pst_gateway_plan *plan = plan_of(path, "chat");
  pst_engine *engine = NULL;
  OK(pst_gateway_engine_acquire(shared.gateway, plan, 0, &engine, &err));
  const pst_engine_model *model = pst_engine_get_model(engine);
  int32_t first = pst_engine_model_get_info(model)->bos;
  for (int i = 0; i < N; i++) {
    pst_engine_tokens whole = {0};
    int32_t alone[64];
    size_t n_given;
    OK(pst_engine_render_answered(model, &chats[i], &whole, &n_given, &err));
    size_t n = whole.n - n_given;
    alone[0] = first >= 0 ? first : pst_engine_model_get_info(model)->eos;
    memcpy(alone + 1, whole.ids + n_given, n * sizeof *alone);
    double asked = mean_of(engine, whole.ids, whole.n, n_given), by_itself = mean_of(engine, alone, n + 1, 1);
    if (fabs(items[i].asked - asked) > 1e-6 || fabs(items[i].alone - by_itself) > 1e-6)
      fail_msg("%d: %g and %g, not %g and %g", i, items[i].asked, items[i].alone, asked, by_itself);
    assert_true(asked < 0 && by_itself < 0);
    pst_engine_tokens_done(&whole);
  }
  pst_gateway_engine_release(shared.gateway, engine);
  pst_gateway_plan_unref(plan);
  assert_int_equal(pst_gateway_likelihoods(shared.gateway, "nobody-made-it", items, 1, &err), PST_E_NOT_FOUND);
}

static void what_cannot_be(void **state) {
  (void)state;
  const char *path = test_temp_path(shared.home, "refused.gguf");
  static const pst_chat_message question = {.role = PST_CHAT_USER, .has_content = true, .content = {"Is it?", 6}};
  pst_chat_message call[2] = {question, {.role = PST_CHAT_ASSISTANT}};
  pst_chat_tool_call tool = {.name = PST_STR("look"), .arguments = PST_STR("{}")};
  pst_chat chat = {.messages = call, .n_messages = 1};
  pst_engine_model *model = NULL;
  pst_engine_tokens tokens = {0};
  size_t n;
  test_tiny_write(path, &(test_tiny){.seed = 8, .template_text = REOPENED});
  OK(pst_engine_model_open(path, 1, &model, &err));
  assert_int_equal(pst_engine_render_answered(model, &chat, &tokens, &n, &err), PST_E_BAD_INPUT);
  call[1].tool_calls = &tool;
  call[1].n_tool_calls = 1;
  chat.n_messages = 2;
  assert_int_equal(pst_engine_render_answered(model, &chat, &tokens, &n, &err), PST_E_UNSUPPORTED);
  assert_non_null(strstr(err.message, "in another way"));
  pst_engine_tokens_done(&tokens);
  pst_engine_model_unref(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_layout),
                                     cmocka_unit_test(past_answers_in_another_way),
                                     cmocka_unit_test(without_a_template),
                                     cmocka_unit_test(a_real_tokenizer),
                                     cmocka_unit_test(likelihoods_are_of_the_answer),
                                     cmocka_unit_test(what_cannot_be)};
  return cmocka_run_group_tests(tests, open_shared, close_shared);
}
