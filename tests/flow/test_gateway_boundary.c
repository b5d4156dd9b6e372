/* Where a prompt ends and an answer begins, on the real models: the tokens of prompt and answer are those of the whole text, so that a model is asked for what it was
 * trained on; and text that spells a control token never becomes one. */
#include <penstock/gateway.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model.h"
#include "gateway/prompt.h"
#include "support/ok.h"
#include "support/temp.h"

static pst_error err;

typedef struct fixture {
  pst_engine_model *model;
  char *dir;
  pst_store *store;
} fixture;

static int open_model(void **state, const char *variable) {
  fixture *f = calloc(1, sizeof *f);
  const char *path = getenv(variable);
  if (!f) return -1;
  *state = f;
  if (!path || !*path) {
    printf("%s is not set; run `make models`\n", variable);
    return 0;
  }
  f->dir = test_temp_dir();
  OK(pst_store_open(f->dir, &f->store, &err));
  OK(pst_engine_model_open(path, 0, &f->model, &err));
  return 0;
}

static int open_smollm2(void **state) { return open_model(state, "PENSTOCK_TEST_SMOLLM2"); }
static int open_gemma3(void **state) { return open_model(state, "PENSTOCK_TEST_GEMMA3"); }

static int tear_down(void **state) {
  fixture *f = *state;
  pst_engine_model_unref(f->model);
  if (f->store) pst_store_close(f->store);
  if (f->dir) test_temp_remove(f->dir);
  free(f);
  return 0;
}

static fixture *model_or_skip(void **state) {
  fixture *f = *state;
  if (!f->model) skip();
  return f;
}

static bool can_serve(const fixture *f, pst_gateway_layout layout) {
  return layout == PST_GATEWAY_LAYOUT_PLAIN || pst_engine_model_get_info(f->model)->has_template;
}

/* ---- texts ---- */

static const char *const answers[] = {"late_delivery",
                                      "Late delivery",
                                      "card_arrival",
                                      "Refund_not_showing_up",
                                      "LATE",
                                      "x",
                                      "42",
                                      "3.14",
                                      "-7",
                                      "+1",
                                      "yes",
                                      "No.",
                                      "(none)",
                                      "[]",
                                      "{}",
                                      "{\"intent\": \"GetWeather\", \"city\": \"Ulm\"}",
                                      "{\"a\":1}",
                                      "[\"a\", \"b\"]",
                                      "\"quoted\"",
                                      "'single'",
                                      "#tag",
                                      "@name",
                                      "<b>",
                                      "$5",
                                      "%",
                                      "...",
                                      ":)",
                                      ": colon",
                                      "= 3",
                                      "\xC3\x89t\xC3\xA9",
                                      "\xE6\x9D\xB1\xE4\xBA\xAC",
                                      "\xD0\x9F\xD1\x80\xD0\xB8\xD0\xB2\xD0\xB5\xD1\x82",
                                      "\xF0\x9F\x98\x80",
                                      "\xD7\xA9\xD7\x9C",
                                      "SELECT name FROM t WHERE a = 1",
                                      "1. first",
                                      "- item",
                                      "_x_",
                                      "//",
                                      "\\n",
                                      "a b c d",
                                      "ing",
                                      "s",
                                      "'s",
                                      "n't"};
static const char *const keys[] = {NULL,
                                   "Intent",
                                   "Label",
                                   "Desk",
                                   "Answer",
                                   "JSON",
                                   "SQL",
                                   "Antwort (kurz)",
                                   "A",
                                   "Q1",
                                   "\xE7\xAD\x94\xE3\x81\x88",
                                   "Step 3",
                                   "it's",
                                   "\"key\"",
                                   "#",
                                   "_",
                                   "1"};

/* Random text of words, punctuation, digits and other scripts. */
static void random_text(pst_random *r, pst_buf *out) {
  static const char *const bits[] = {"parcel",
                                     " ",
                                     " ",
                                     " ",
                                     "late",
                                     "The",
                                     "the",
                                     ".",
                                     ",",
                                     "?",
                                     ":",
                                     "\n",
                                     "12",
                                     "don't",
                                     "-",
                                     "(",
                                     ")",
                                     "\xC3\xA9",
                                     "\xE6\x97\xA5",
                                     "\xF0\x9F\x9A\x9A",
                                     "_",
                                     "  ",
                                     "\t"};
  pst_buf_clear(out);
  for (uint64_t n = pst_random_below(r, 24); n > 0; n--)
    pst_buf_puts(out, bits[pst_random_below(r, PST_ARRAY_LEN(bits))]);
}

/* ---- the boundary ---- */

static pst_gateway_index *make_index(fixture *f, pst_random *r) {
  enum { N = 12 };
  pst_gateway_example examples[N];
  pst_buf texts[N];
  char ids[N][16], hash[65];
  pst_gateway_index *index = NULL;
  for (size_t i = 0; i < N; i++) {
    texts[i] = (pst_buf)PST_BUF_INIT;
    random_text(r, &texts[i]);
    snprintf(ids[i], sizeof ids[i], "e%zu", i);
    examples[i] = (pst_gateway_example){pst_str_from(ids[i]), pst_buf_str(&texts[i]),
                                        pst_str_from(answers[pst_random_below(r, PST_ARRAY_LEN(answers))])};
  }
  OK(pst_gateway_examples_build(f->store, examples, N, NULL, hash, &err));
  OK(pst_gateway_index_open(f->store, pst_str_from(hash), &index, &err));
  for (size_t i = 0; i < N; i++) pst_buf_done(&texts[i]);
  return index;
}

/* The tokens of prompt and answer as one text: in PLAIN that text, with a template the conversation with the answer in it. */
static void tokens_of_whole(const fixture *f, const pst_gateway_prompt *p, const char *answer,
                            pst_engine_tokens *tokens) {
  if (p->text.n) {
    pst_buf whole = PST_BUF_INIT;
    pst_buf_append_str(&whole, p->text);
    pst_buf_putc(&whole, ' ');
    pst_buf_puts(&whole, answer);
    tokens->n = 0;
    OK(pst_engine_tokenize(f->model, pst_buf_str(&whole), false, true, tokens, &err));
    pst_buf_done(&whole);
    return;
  }
  pst_chat_message messages[16] = {{0}};
  pst_chat chat = *p->chat;
  assert_true(chat.n_messages < PST_ARRAY_LEN(messages));
  memcpy(messages, chat.messages, chat.n_messages * sizeof *messages);
  messages[chat.n_messages++] =
      (pst_chat_message){.role = PST_CHAT_ASSISTANT, .has_content = true, .content = pst_str_from(answer)};
  chat.messages = messages;
  chat.add_generation_prompt = false;
  OK(pst_engine_render_chat(f->model, &chat, tokens, NULL, &err));
}

static void check_boundary(const fixture *f, const pst_gateway_prompt *p, const char *answer) {
  pst_engine_tokens whole = {0}, prompt = {0}, tail = {0};
  pst_buf text = PST_BUF_INIT, spelled = PST_BUF_INIT;
  OK(pst_gateway_prompt_tokenize(p, f->model, &prompt, &text, &err));
  if (p->leading_space) pst_buf_putc(&spelled, ' ');
  pst_buf_puts(&spelled, answer);
  OK(pst_engine_tokenize(f->model, pst_buf_str(&spelled), false, false, &tail, &err)); /* as a choice list spells it */
  tokens_of_whole(f, p, answer, &whole);
  bool same = whole.n >= prompt.n + tail.n && !memcmp(whole.ids, prompt.ids, prompt.n * sizeof *prompt.ids) &&
              !memcmp(whole.ids + prompt.n, tail.ids, tail.n * sizeof *tail.ids);
  if (p->text.n) same &= whole.n == prompt.n + tail.n;
  if (!same) fail_msg("the boundary moves:\n%s|%s", pst_buf_text(&text), pst_buf_text(&spelled));
  pst_engine_tokens_done(&whole);
  pst_engine_tokens_done(&prompt);
  pst_engine_tokens_done(&tail);
  pst_buf_done(&text);
  pst_buf_done(&spelled);
}

static void prompt_and_answer_are_tokens_of_the_whole(void **state) {
  fixture *f = model_or_skip(state);
  pst_random r = {20, 1, 0};
  pst_buf input = PST_BUF_INIT, system = PST_BUF_INIT;
  pst_gateway_index *index = make_index(f, &r);
  for (int round = 0; round < 300; round++) {
    pst_gateway_plan plan = {0};
    pst_gateway_node *n = &plan.root;
    pst_gateway_prompt p;
    n->layout = (pst_gateway_layout)pst_random_below(&r, PST_GATEWAY_LAYOUT_COUNT);
    if (!can_serve(f, n->layout)) n->layout = PST_GATEWAY_LAYOUT_PLAIN;
    random_text(&r, &input);
    random_text(&r, &system);
    n->system = pst_buf_text(&system);
    n->answer_key = keys[pst_random_below(&r, PST_ARRAY_LEN(keys))];
    n->n_examples = (int)pst_random_below(&r, 5);
    n->examples_index = "x";
    n->examples_fixed = pst_random_below(&r, 2);
    OK(pst_gateway_prompt_build(&plan, n, index, pst_buf_str(&input), NULL, 0, &p, &err));
    for (size_t i = 0; i < 6; i++) check_boundary(f, &p, answers[pst_random_below(&r, PST_ARRAY_LEN(answers))]);
    pst_gateway_prompt_done(&p);
  }
  pst_gateway_index_unref(index);
  pst_buf_done(&input);
  pst_buf_done(&system);
}

/* What the rule is for: with the space in the prompt instead, the tokens are others. */
static void a_space_at_the_end_would_be_a_token_of_its_own(void **state) {
  fixture *f = model_or_skip(state);
  pst_engine_tokens with = {0}, without = {0}, whole = {0};
  OK(pst_engine_tokenize(f->model, PST_STR("Input: my parcel is late\nOutput: "), false, true, &with, &err));
  OK(pst_engine_tokenize(f->model, PST_STR("Input: my parcel is late\nOutput:"), false, true, &without, &err));
  OK(pst_engine_tokenize(f->model, PST_STR("Input: my parcel is late\nOutput: late_delivery"), false, true, &whole,
                         &err));
  assert_memory_equal(whole.ids, without.ids, without.n * sizeof *without.ids);
  assert_true(with.n > without.n && memcmp(whole.ids, with.ids, with.n * sizeof *with.ids) != 0);
  pst_engine_tokens_done(&with);
  pst_engine_tokens_done(&without);
  pst_engine_tokens_done(&whole);
}

/* ---- hostile text ---- */

static size_t count_control(const fixture *f, const pst_engine_tokens *tokens) {
  size_t n = 0;
  for (size_t i = 0; i < tokens->n; i++)
    n += (pst_engine_tokenizer_attributes(f->model->tokenizer, tokens->ids[i]) & PST_ENGINE_TOKEN_CONTROL) != 0;
  return n;
}

/* Control tokens of a prompt whose every text is `text`. */
static size_t control_of(fixture *f, pst_gateway_layout layout, const char *text) {
  const pst_gateway_example example = {PST_STR("a"), pst_str_from(text), pst_str_from(text)};
  pst_gateway_plan plan = {0};
  pst_gateway_index *index = NULL;
  pst_gateway_prompt p;
  pst_engine_tokens tokens = {0};
  char hash[65];
  OK(pst_gateway_examples_build(f->store, &example, 1, NULL, hash, &err));
  OK(pst_gateway_index_open(f->store, pst_str_from(hash), &index, &err));
  plan.root.layout = layout;
  plan.root.system = plan.root.instruction = plan.root.input_key = plan.root.answer_key = text;
  plan.root.examples_index = "x";
  plan.root.n_examples = 1;
  OK(pst_gateway_prompt_build(&plan, &plan.root, index, pst_str_from(text), NULL, 0, &p, &err));
  OK(pst_gateway_prompt_tokenize(&p, f->model, &tokens, NULL, &err));
  size_t n = count_control(f, &tokens);
  pst_engine_tokens_done(&tokens);
  pst_gateway_prompt_done(&p);
  pst_gateway_index_unref(index);
  return n;
}

static void text_never_forms_control_tokens(void **state) {
  fixture *f = model_or_skip(state);
  size_t n_names = 0;
  for (int layout = 0; layout < PST_GATEWAY_LAYOUT_COUNT; layout++) {
    if (!can_serve(f, (pst_gateway_layout)layout)) continue;
    size_t harmless = control_of(f, (pst_gateway_layout)layout, "text");
    int n_tried = 0;
    for (int32_t t = 0; t < pst_engine_model_get_info(f->model)->n_vocab && n_tried < 40; t++) {
      char name[200], hostile[2000];
      if (!(pst_engine_tokenizer_attributes(f->model->tokenizer, t) & PST_ENGINE_TOKEN_CONTROL)) continue;
      pst_str bytes = pst_engine_tokenizer_bytes(f->model->tokenizer, t);
      snprintf(name, sizeof name, "%.*s", (int)bytes.n, bytes.data);
      n_tried++;
      n_names++;
      /* Whole, doubled, cut so that the ends meet template text, and cut into itself. */
      snprintf(hostile, sizeof hostile, "%s x %s%s\n%s%.*s%s %.*s", name, name, name, name + 1, (int)bytes.n / 2, name,
               name, (int)bytes.n - 1, name);
      size_t n = control_of(f, (pst_gateway_layout)layout, hostile);
      if (n != harmless) fail_msg("layout %d: %zu control tokens instead of %zu by %s", layout, n, harmless, hostile);
      n = control_of(f, (pst_gateway_layout)layout, name);
      if (n != harmless) fail_msg("layout %d: %zu control tokens instead of %zu by %s", layout, n, harmless, name);
    }
  }
  assert_true(n_names >= 3);
}

int main(void) {
#define ON(test, model) \
  { #test " " #model, test, open_##model, tear_down, NULL }
  const struct CMUnitTest tests[] = {
      ON(prompt_and_answer_are_tokens_of_the_whole, smollm2),
      ON(prompt_and_answer_are_tokens_of_the_whole, gemma3),
      ON(a_space_at_the_end_would_be_a_token_of_its_own, smollm2),
      ON(a_space_at_the_end_would_be_a_token_of_its_own, gemma3),
      ON(text_never_forms_control_tokens, smollm2),
      ON(text_never_forms_control_tokens, gemma3),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
