/* Prompts: the text of each layout to the byte, where a prompt ends, which labels may be answered, and where the input comes from. */
#include <penstock/gateway.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gateway/prompt.h"
#include "support/ok.h"
#include "support/temp.h"

static pst_error err;

typedef struct fixture {
  char *dir;
  pst_store *store;
  pst_gateway_index *index;
} fixture;

#define EXAMPLE(id, input, answer)                                                \
  {                                                                               \
    {id, sizeof id - 1}, {input, sizeof input - 1}, { answer, sizeof answer - 1 } \
  }

static const pst_gateway_example examples[] = {
    EXAMPLE("a", "my parcel is late", "late"),
    EXAMPLE("b", "  a parcel,\n broken\r\n", "damaged"),
    EXAMPLE("c", "cannot log in", "login"),
    EXAMPLE("d", "parcel late again", "late"),
};
static const pst_str labels[] = {{"login", 5}, {"damaged", 7}, {"late", 4}, {"other", 5}};

static int set_up(void **state) {
  fixture *f = calloc(1, sizeof *f);
  char hash[65];
  if (!f) return -1;
  f->dir = test_temp_dir();
  OK(pst_store_open(f->dir, &f->store, &err));
  OK(pst_gateway_examples_build(f->store, examples, PST_ARRAY_LEN(examples), NULL, hash, &err));
  OK(pst_gateway_index_open(f->store, pst_str_from(hash), &f->index, &err));
  *state = f;
  return 0;
}

static int tear_down(void **state) {
  fixture *f = *state;
  pst_gateway_index_unref(f->index);
  pst_store_close(f->store);
  test_temp_remove(f->dir);
  free(f);
  return 0;
}

static pst_gateway_plan plan_of(pst_gateway_layout layout, int n_examples) {
  pst_gateway_plan plan = {.labels = labels, .n_labels = PST_ARRAY_LEN(labels)};
  plan.root.op = PST_GATEWAY_OP_LOCAL;
  plan.root.layout = layout;
  plan.root.n_examples = n_examples;
  plan.root.examples_index = n_examples ? "x" : NULL;
  plan.root.system = "You label. ";
  plan.root.instruction = "One label:\n";
  return plan;
}

static pst_gateway_prompt build(void **state, const pst_gateway_plan *plan, const char *input) {
  fixture *f = *state;
  pst_gateway_prompt prompt;
  OK(pst_gateway_prompt_build(plan, &plan->root, plan->root.examples_index ? f->index : NULL, pst_str_from(input), NULL,
                              0, &prompt, &err));
  return prompt;
}

static void check_str(pst_str got, const char *wanted) {
  if (!pst_str_is(got, wanted)) fail_msg("got:\n%.*s|\nwanted:\n%s|", (int)got.n, got.data, wanted);
}

static void check_turn(const pst_chat *chat, size_t i, pst_chat_role role, const char *content) {
  assert_true(i < chat->n_messages);
  assert_int_equal(chat->messages[i].role, role);
  check_str(chat->messages[i].content, content);
}

static void plain_is_key_value_lines(void **state) {
  pst_gateway_plan plan = plan_of(PST_GATEWAY_LAYOUT_PLAIN, 3);
  pst_gateway_prompt p = build(state, &plan, " My parcel\n\n\xE2\x80\xA8is  late \n");
  check_str(p.text, "You label.\n\nOne label:\n\n"
                    "Input: a parcel, broken\nOutput: damaged\n\n"
                    "Input: parcel late again\nOutput: late\n\n"
                    "Input: my parcel is late\nOutput: late\n\n"
                    "Input: My parcel is  late\nOutput:");
  assert_true(p.leading_space);
  assert_int_equal(p.n_stop, 1);
  check_str(p.stop[0], "\n");
  assert_int_equal(p.chat->n_messages, 1); /* what an upstream is sent */
  check_turn(p.chat, 0, PST_CHAT_USER, p.text.data);
  pst_gateway_prompt_done(&p);
  plan.root.system = plan.root.instruction = NULL;
  plan.root.input_key = "Message: ";
  plan.root.answer_key = " Desk :";
  plan.root.n_examples = 0;
  plan.root.examples_index = NULL;
  p = build(state, &plan, "");
  check_str(p.text, "Message:\nDesk:");
  pst_gateway_prompt_done(&p);
}

static void chat_shows_examples_as_turns(void **state) {
  pst_gateway_plan plan = plan_of(PST_GATEWAY_LAYOUT_CHAT, 2);
  pst_gateway_prompt p = build(state, &plan, " my parcel is late\n");
  assert_int_equal(p.chat->n_messages, 6);
  check_turn(p.chat, 0, PST_CHAT_SYSTEM, "You label.\n\nOne label:");
  check_turn(p.chat, 1, PST_CHAT_USER, "parcel late again");
  check_turn(p.chat, 2, PST_CHAT_ASSISTANT, "late");
  check_turn(p.chat, 3, PST_CHAT_USER, "my parcel is late"); /* the nearest stands last */
  check_turn(p.chat, 5, PST_CHAT_USER, "my parcel is late");
  assert_true(p.chat->add_generation_prompt && !p.leading_space && !p.n_stop && !p.text.n);
  pst_gateway_prompt_done(&p);
  plan = plan_of(PST_GATEWAY_LAYOUT_CHAT, 0);
  plan.root.system = NULL;
  plan.root.instruction = "";
  p = build(state, &plan, "x");
  assert_int_equal(p.chat->n_messages, 1);
  pst_gateway_prompt_done(&p);
}

static void chat_inline_is_one_turn(void **state) {
  pst_gateway_plan plan = plan_of(PST_GATEWAY_LAYOUT_CHAT_INLINE, 1);
  pst_gateway_prompt p = build(state, &plan, "log in?\nplease");
  assert_int_equal(p.chat->n_messages, 1);
  check_turn(p.chat, 0, PST_CHAT_USER,
             "You label.\n\nOne label:\n\nInput: cannot log in\nOutput: login\n\nInput: log in?\nplease\nOutput:");
  assert_false(p.leading_space);
  pst_gateway_prompt_done(&p);
  plan = plan_of(PST_GATEWAY_LAYOUT_CHAT_INLINE, 0);
  p = build(state, &plan, "log in?");
  check_turn(p.chat, 0, PST_CHAT_USER, "You label.\n\nOne label:\n\nlog in?");
  pst_gateway_prompt_done(&p);
}

static void labels_go_by_the_constraint(void **state) {
  pst_gateway_plan plan = plan_of(PST_GATEWAY_LAYOUT_CHAT, 3);
  pst_gateway_prompt p = build(state, &plan, "parcel");
  assert_int_equal(p.n_labels, 0);
  pst_gateway_prompt_done(&p);
  plan.root.constraint = PST_GATEWAY_LABELS;
  p = build(state, &plan, "parcel");
  assert_int_equal(p.n_labels, 4);
  pst_gateway_prompt_done(&p);
  plan.root.constraint = PST_GATEWAY_EXAMPLE_LABELS;
  p = build(state, &plan, "parcel");
  assert_int_equal(p.n_labels, 2); /* in the plan's order */
  check_str(p.labels[0], "damaged");
  check_str(p.labels[1], "late");
  pst_gateway_prompt_done(&p);
  plan.root.n_examples = 2;
  p = build(state, &plan, "parcel late"); /* both examples are late: all labels */
  assert_int_equal(p.n_examples, 2);
  assert_int_equal(p.n_labels, 4);
  pst_gateway_prompt_done(&p);
}

static void excluded_examples_are_not_shown(void **state) {
  fixture *f = *state;
  pst_gateway_plan plan = plan_of(PST_GATEWAY_LAYOUT_CHAT, 4);
  const pst_str exclude[] = {{"d", 1}, {"unknown", 7}, {"a", 1}};
  for (int fixed = 0; fixed < 2; fixed++) {
    pst_gateway_prompt p;
    plan.root.examples_fixed = fixed;
    OK(pst_gateway_prompt_build(&plan, &plan.root, f->index, PST_STR("parcel late again"), exclude, 3, &p, &err));
    assert_int_equal(p.n_examples, 2);
    for (size_t i = 0; i < 2; i++) assert_true(p.examples[i].id.data[0] == 'b' || p.examples[i].id.data[0] == 'c');
    pst_gateway_prompt_done(&p);
  }
}

/* Whatever the texts end with, a prompt's own text does not end with white space. */
static void no_prompt_ends_with_white_space(void **state) {
  static const char *const ends[] = {"", " ", "\n", "\t\n ", "\xC2\xA0", "\xE3\x80\x80", ":", ": "};
  char text[32], key[32];
  for (int layout = 0; layout < PST_GATEWAY_LAYOUT_COUNT; layout++)
    for (int n = 0; n < 3; n++)
      for (size_t i = 0; i < PST_ARRAY_LEN(ends); i++)
        for (size_t k = 0; k < PST_ARRAY_LEN(ends); k++) {
          pst_gateway_plan plan = plan_of((pst_gateway_layout)layout, n);
          snprintf(text, sizeof text, "text%s", ends[i]);
          snprintf(key, sizeof key, "Key%s", ends[k]);
          plan.root.system = plan.root.instruction = text;
          plan.root.answer_key = k ? key : NULL;
          pst_gateway_prompt p = build(state, &plan, text);
          for (size_t m = 0; m < p.chat->n_messages; m++) {
            pst_str s = p.chat->messages[m].content;
            assert_int_equal(pst_str_trim(s).n, s.n);
            assert_false(s.n >= 2 && !memcmp(s.data + s.n - 2, "\xC2\xA0", 2));
          }
          if (layout == PST_GATEWAY_LAYOUT_PLAIN) assert_int_equal(p.text.data[p.text.n - 1], ':');
          pst_gateway_prompt_done(&p);
        }
}

static void the_input_is_the_last_user_message(void **state) {
  (void)state;
  pst_arena *arena = pst_arena_create();
  pst_gateway_plan plan = {0};
  pst_chat_part parts[] = {{PST_CHAT_PART_TEXT, {"Order 7: ", 9}, NULL}, {PST_CHAT_PART_TEXT, {"where?", 6}, NULL}};
  pst_chat_message messages[] = {{.role = PST_CHAT_USER, .has_content = true, .content = {"first", 5}},
                                 {.role = PST_CHAT_USER, .has_content = true, .parts = parts, .n_parts = 2},
                                 {.role = PST_CHAT_ASSISTANT, .has_content = true, .content = {"no", 2}}};
  pst_chat chat = {.messages = messages, .n_messages = 3};
  pst_str input;
  OK(pst_gateway_prompt_input(&plan, &chat, arena, &input, &err));
  check_str(input, "Order 7: where?");
  plan.input_pattern = "Order [0-9]+: (.*)";
  OK(pst_gateway_prompt_input(&plan, &chat, arena, &input, &err));
  check_str(input, "where?");
  plan.input_pattern = "Ticket (.*)";
  assert_int_equal(pst_gateway_prompt_input(&plan, &chat, arena, &input, &err), PST_E_BAD_INPUT);
  plan.input_pattern = "Order"; /* without a group there is no input */
  assert_int_equal(pst_gateway_prompt_input(&plan, &chat, arena, &input, &err), PST_E_BAD_INPUT);
  parts[1].kind = PST_CHAT_PART_JSON;
  assert_int_equal(pst_gateway_prompt_input(&plan, &chat, arena, &input, &err), PST_E_UNSUPPORTED);
  chat.messages = messages + 2;
  chat.n_messages = 1;
  assert_int_equal(pst_gateway_prompt_input(&plan, &chat, arena, &input, &err), PST_E_BAD_INPUT);
  pst_arena_free(arena);
}

static void memory_may_run_out_anywhere(void **state) {
  fixture *f = *state;
  for (int layout = 0; layout < PST_GATEWAY_LAYOUT_COUNT; layout++) {
    pst_gateway_plan plan = plan_of((pst_gateway_layout)layout, 3);
    int code = PST_E_NOMEM;
    plan.root.constraint = PST_GATEWAY_EXAMPLE_LABELS;
    for (int64_t i = 0; code && i < 500; i++) {
      pst_gateway_prompt p = {0};
      pst_memory_fail_after(i);
      code = pst_gateway_prompt_build(&plan, &plan.root, f->index, PST_STR("parcel"), NULL, 0, &p, &err);
      pst_memory_fail_after(-1);
      assert_true(code == 0 || code == PST_E_NOMEM);
      pst_gateway_prompt_done(&p);
    }
    assert_int_equal(code, 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(plain_is_key_value_lines),
      cmocka_unit_test(chat_shows_examples_as_turns),
      cmocka_unit_test(chat_inline_is_one_turn),
      cmocka_unit_test(labels_go_by_the_constraint),
      cmocka_unit_test(excluded_examples_are_not_shown),
      cmocka_unit_test(no_prompt_ends_with_white_space),
      cmocka_unit_test(the_input_is_the_last_user_message),
      cmocka_unit_test(memory_may_run_out_anywhere),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
