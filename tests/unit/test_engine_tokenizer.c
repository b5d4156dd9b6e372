/* Tokenizers: the listed ids of nine real vocabularies, who may form which token, decoding, bad files, running time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"
#include "support/vocab.h"

/* ---- the shared vocabularies ------------------------------------------------------------------------------------- */

static void print_difference(pst_str part, const char *expected, const pst_engine_tokens *tokens) {
  fprintf(stderr, "text '%.*s'\nexpected %s\ngot     ", (int)part.n, part.data, expected);
  for (size_t i = 0; i < tokens->n; i++) fprintf(stderr, " %d", (int)tokens->ids[i]);
  fprintf(stderr, "\n");
}

/* Compares the parts of NAME.inp with the lines of NAME.out; returns how many agreed, and fails on the first that does not. */
static int check_listed_ids(const pst_engine_tokenizer *t, pst_str in, char *out) {
  const pst_str separator = PST_STR("\n__ggml_vocab_test__\n");
  int n_checked = 0;
  pst_engine_tokens tokens = {0};
  for (char *line = out; *line; n_checked++) {
    char *end = strchr(line, '\n'), *next = end ? end + 1 : line + strlen(line);
    if (end) *end = 0;
    size_t cut = pst_str_find(in, separator, 0);
    pst_str part = {in.data, cut == SIZE_MAX ? in.n : cut};
    tokens.n = 0;
    assert_int_equal(pst_engine_tokenizer_encode(t, part, 0, &tokens, NULL), 0);
    size_t i = 0;
    char *p = line;
    for (;;) {
      char *after;
      long id = strtol(p, &after, 10);
      if (after == p) break;
      if (i >= tokens.n || tokens.ids[i] != id) break;
      i++;
      p = after;
    }
    if (i != tokens.n || strspn(p, " ") != strlen(p)) {
      print_difference(part, line, &tokens);
      fail_msg("part %d differs", n_checked);
    }
    in = cut == SIZE_MAX ? PST_STR("") : (pst_str){in.data + cut + separator.n, in.n - cut - separator.n};
    line = next;
  }
  pst_engine_tokens_done(&tokens);
  return n_checked;
}

static void check_vocabulary(const char *name) {
  uint8_t *data;
  size_t n, in_n, out_n;
  char file[128];
  pst_error err = PST_ERROR_INIT;
  pst_engine_gguf *g = NULL;
  pst_engine_tokenizer *t = NULL;
  if (!test_vocab_unpack(name, &data, &n)) skip();
  if (pst_engine_gguf_open_memory(data, n, name, &g, &err) < 0) fail_msg("%s", err.message);
  if (pst_engine_tokenizer_create(g, &t, &err) < 0) fail_msg("%s", err.message);
  pst_engine_gguf_close(g);
  pst_free(data); /* the tokenizer keeps nothing of the file */
  snprintf(file, sizeof file, "%s.inp", name);
  char *in = test_vocab_file(file, &in_n);
  snprintf(file, sizeof file, "%s.out", name);
  char *out = test_vocab_file(file, &out_n);
  assert_non_null(in);
  assert_non_null(out);
  assert_true(check_listed_ids(t, (pst_str){in, in_n}, out) > 30);
  pst_free(in);
  pst_free(out);
  pst_engine_tokenizer_free(t);
}

#define VOCABULARY_TEST(function, name) \
  static void function(void **state) {  \
    (void)state;                        \
    check_vocabulary(name);             \
  }
VOCABULARY_TEST(test_gpt2_ids, "gpt-2")
VOCABULARY_TEST(test_llama_spm_ids, "llama-spm")
VOCABULARY_TEST(test_phi3_ids, "phi-3")
VOCABULARY_TEST(test_llama_bpe_ids, "llama-bpe")
VOCABULARY_TEST(test_qwen2_ids, "qwen2")
VOCABULARY_TEST(test_starcoder_ids, "starcoder")
VOCABULARY_TEST(test_falcon_ids, "falcon")
VOCABULARY_TEST(test_deepseek_llm_ids, "deepseek-llm")
VOCABULARY_TEST(test_bert_ids, "bert-bge")

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_gpt2_ids),   cmocka_unit_test(test_llama_spm_ids),
      cmocka_unit_test(test_phi3_ids),   cmocka_unit_test(test_llama_bpe_ids),
      cmocka_unit_test(test_qwen2_ids),  cmocka_unit_test(test_starcoder_ids),
      cmocka_unit_test(test_falcon_ids), cmocka_unit_test(test_deepseek_llm_ids),
      cmocka_unit_test(test_bert_ids),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
