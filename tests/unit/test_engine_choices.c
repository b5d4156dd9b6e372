/* Choice lists: an answer's tokens are those that the whole text has behind its prompt, in vocabularies of every kind. */
#include <penstock/engine.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/choices.h"
#include "engine/model.h"
#include "support/ok.h"
#include "support/temp.h"
#include "support/vocab.h"

static pst_error err;

static const char *const labels[] = {"late_delivery", "late", "Refund", "x", "42", "{\"a\": 1}", "\xC3\x89t\xC3\xA9"};

/* A model that is only its tokenizer. */
static pst_engine_tokenizer *open_vocabulary(const char *name, char *dir) {
  uint8_t *data = NULL;
  size_t n = 0;
  pst_engine_gguf *gguf = NULL;
  pst_engine_tokenizer *tokenizer = NULL;
  if (!test_vocab_unpack(name, &data, &n)) return NULL;
  const char *path = test_temp_path(dir, "v.gguf");
  test_temp_write(path, data, n);
  pst_free(data);
  OK(pst_engine_gguf_open(path, &gguf, &err));
  OK(pst_engine_tokenizer_create(gguf, &tokenizer, &err));
  pst_engine_gguf_close(gguf);
  return tokenizer;
}

static void check_label(const pst_engine_model *m, const pst_engine_choices *c, int index) {
  pst_engine_tokens prompt = {0}, whole = {0};
  char text[200];
  int node = 0;
  snprintf(text, sizeof text, "Input: where is it?\nOutput: %s", labels[index]);
  OK(pst_engine_tokenize(m, PST_STR("Input: where is it?\nOutput:"), false, true, &prompt, &err));
  OK(pst_engine_tokenize(m, pst_str_from(text), false, true, &whole, &err));
  assert_memory_equal(whole.ids, prompt.ids, prompt.n * sizeof *prompt.ids);
  for (size_t i = prompt.n; i < whole.n; i++) {
    node = pst_engine_choices_step(c, node, whole.ids[i]);
    if (node < 0) fail_msg("%s: token %zu behind the prompt is not allowed", text, i - prompt.n);
  }
  assert_int_equal(c->nodes[node].choice, index);
  pst_engine_tokens_done(&prompt);
  pst_engine_tokens_done(&whole);
}

static void answers_are_spelled_as_in_the_whole_text(void **state) {
  (void)state;
  static const char *const names[] = {"llama-spm", "phi-3", "gpt-2", "llama-bpe", "qwen2", "falcon"};
  int n_tried = 0;
  for (size_t v = 0; v < PST_ARRAY_LEN(names); v++) {
    char *dir = test_temp_dir();
    pst_engine_model model = {0};
    pst_engine_choices *choices = NULL;
    pst_str texts[PST_ARRAY_LEN(labels)];
    model.tokenizer = open_vocabulary(names[v], dir);
    test_temp_remove(dir);
    if (!model.tokenizer) continue;
    n_tried++;
    model.info.n_vocab = pst_engine_tokenizer_get_info(model.tokenizer)->n_vocab;
    for (size_t i = 0; i < PST_ARRAY_LEN(labels); i++) texts[i] = pst_str_from(labels[i]);
    OK(pst_engine_choices_create(&model, texts, PST_ARRAY_LEN(labels), true, NULL, &choices, &err));
    for (size_t i = 0; i < PST_ARRAY_LEN(labels); i++) check_label(&model, choices, (int)i);
    pst_engine_choices_unref(choices);
    pst_engine_tokenizer_free(model.tokenizer);
  }
  if (!n_tried) skip();
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(answers_are_spelled_as_in_the_whole_text)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
