/* Conversations through a model's template: parts of content whatever the template knows of them, and what cannot be written is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/engine.h>
#include <string.h>

#include "support/temp.h"
#include "support/tiny_model.h"

static char *dir;

static int make_dir(void **state) {
  (void)state;
  dir = test_temp_dir();
  return 0;
}
static int remove_dir(void **state) {
  (void)state;
  test_temp_remove(dir);
  return 0;
}

static int render(const char *template_text, const pst_chat_message *message, pst_buf *text, pst_error *err) {
  const char *path = test_temp_path(dir, "model.gguf");
  pst_engine_model *model = NULL;
  pst_engine_tokens tokens = {0};
  const pst_chat chat = {.messages = message, .n_messages = 1, .add_generation_prompt = true};
  test_tiny_write(path, &(test_tiny){.template_text = template_text});
  assert_int_equal(pst_engine_model_open(path, 1, &model, err), 0);
  pst_buf_clear(text);
  int code = pst_engine_render_chat(model, &chat, &tokens, text, err);
  assert_true(code || tokens.n > 0);
  pst_engine_tokens_done(&tokens);
  pst_engine_model_unref(model);
  return code;
}

static const pst_chat_part two[] = {{PST_CHAT_PART_TEXT, {"one ", 4}, NULL}, {PST_CHAT_PART_TEXT, {"two", 3}, NULL}};
static const pst_chat_message in_parts = {.role = PST_CHAT_USER, .has_content = true, .parts = two, .n_parts = 2};

static void parts_reach_every_template(void **state) {
  (void)state;
  static const char *const templates[] = {
      "{% for m in messages %}{{ '[' + m.content + ']' }}{% endfor %}", /* fails on a list */
      "{% for m in messages %}[{{ m.content }}]{% endfor %}",           /* would print it */
      "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}",    /* the same, through a filter */
      "{% for m in messages %}[{{ m.content | length }}]{% endfor %}",  /* would count the list */
      /* writes parts in its own way */
      ("{% for m in messages %}[{% if m.content is string %}string {{ m.content }}{% else %}"
       "{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}]{% endfor %}"),
  };
  static const char *const expected[] = {"[one two]", "[one two]", "[one two]", "[7]", "[<one ><two>]"};
  pst_buf text = PST_BUF_INIT;
  for (size_t i = 0; i < PST_ARRAY_LEN(templates); i++) {
    pst_error err = PST_ERROR_INIT;
    if (render(templates[i], &in_parts, &text, &err)) fail_msg("%s: %s", err.place, err.message);
    assert_string_equal(pst_buf_text(&text), expected[i]);
  }
  pst_buf_done(&text);
}

static void what_cannot_be_written_is_refused(void **state) {
  (void)state;
  static const char strings[] = "{% for m in messages %}{{ '[' + m.content + ']' }}{% endfor %}";
  static const pst_chat_part picture[] = {{PST_CHAT_PART_JSON, {NULL, 0}, NULL}};
  const pst_chat_message with_picture = {.role = PST_CHAT_USER, .has_content = true, .parts = picture, .n_parts = 1};
  const pst_chat_message without = {.role = PST_CHAT_ASSISTANT};
  pst_buf text = PST_BUF_INIT;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(render(strings, &with_picture, &text, &err), PST_E_UNSUPPORTED);
  assert_string_equal(err.place, "messages[0].content[0].type");
  assert_non_null(strstr(err.message, "reads text only"));
  assert_int_equal(render(strings, &without, &text, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, "messages");
  assert_non_null(strstr(err.message, "chat template"));
  assert_non_null(strstr(err.message, "template:1"));
  pst_buf_done(&text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(parts_reach_every_template),
      cmocka_unit_test(what_cannot_be_written_is_refused),
  };
  return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
