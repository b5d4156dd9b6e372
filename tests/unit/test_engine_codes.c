/* Output codes: what is coded expands to what it was, in the fewest tokens; tables that mean nothing are refused; and an engine whose adapter answers in codes gives the text that
 * they stand for, token by token, whatever else a request asks for. */
#include <penstock/engine.h>

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/ok.h"
#include "support/random_adapter.h"
#include "support/temp.h"
#include "support/tiny_model.h"

static pst_error err;

/* ---- the table ---- */

enum { LETTERS = 5, FIRST_CODE = 100, MOST_CODES = 12, MOST_TOKENS = 60 };

static size_t below(uint64_t stream, uint64_t i, size_t n) {
  return (size_t)(pst_random_unit(17, stream, i) * (double)n);
}

/* Random pieces of 2 to 5 letters, all different. */
static pst_engine_codes *random_table(uint64_t seed) {
  static int32_t pieces[MOST_CODES][5];
  pst_engine_code codes[MOST_CODES];
  pst_engine_codes *table = NULL;
  size_t n = 0;
  for (uint64_t i = 0; i < MOST_CODES; i++) {
    size_t length = 2 + below(seed, 100 * i, 4);
    bool known = false;
    for (size_t k = 0; k < length; k++) pieces[n][k] = (int32_t)below(seed, 100 * i + 1 + k, LETTERS);
    for (size_t k = 0; k < n; k++) known |= codes[k].n == length && !memcmp(pieces[k], pieces[n], 4 * length);
    codes[n] = (pst_engine_code){FIRST_CODE + 7 * ((int32_t)i * 5 % MOST_CODES), pieces[n], length};
    n += !known;
  }
  OK(pst_engine_codes_create(codes, n, &table, &err));
  return table;
}

/* The fewest tokens, by trying all ways. */
static size_t fewest(const pst_engine_codes *table, const int32_t *ids, size_t n) {
  size_t best[MOST_TOKENS + 1] = {0};
  const pst_engine_code *codes;
  size_t n_codes = pst_engine_codes_list(table, &codes);
  for (size_t i = n; i-- > 0;) {
    best[i] = best[i + 1] + 1;
    for (size_t c = 0; c < n_codes; c++)
      if (codes[c].n <= n - i && !memcmp(codes[c].piece, ids + i, codes[c].n * sizeof *ids))
        best[i] = PST_MIN(best[i], best[i + codes[c].n] + 1);
  }
  return best[0];
}

static void what_is_coded_expands_again(void **state) {
  (void)state;
  pst_engine_tokens coded = {0}, plain = {0};
  for (uint64_t seed = 1; seed <= 200; seed++) {
    pst_engine_codes *table = random_table(seed), *again = NULL;
    pst_buf text = PST_BUF_INIT, same = PST_BUF_INIT;
    int32_t ids[MOST_TOKENS];
    size_t n = below(seed, 5000, MOST_TOKENS + 1);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)below(seed, 6000 + i, LETTERS + 1);
    coded.n = plain.n = 0;
    OK(pst_engine_codes_encode(table, ids, n, &coded, &err));
    OK(pst_engine_codes_expand(table, coded.ids, coded.n, &plain, &err));
    assert_int_equal(plain.n, n);
    if (n) assert_memory_equal(plain.ids, ids, n * sizeof *ids);
    assert_int_equal(coded.n, fewest(table, ids, n));
    pst_engine_codes_write(table, &text);
    OK(pst_engine_codes_parse(pst_buf_str(&text), &again, &err));
    pst_engine_codes_write(again, &same);
    assert_string_equal(text.data, same.data);
    assert_true(pst_engine_codes_key(again) == pst_engine_codes_key(table));
    pst_engine_codes_free(again);
    pst_engine_codes_free(table);
    pst_buf_done(&text);
    pst_buf_done(&same);
  }
  pst_engine_tokens_done(&coded);
  pst_engine_tokens_done(&plain);
}

static void a_code_is_no_text_of_its_own(void **state) {
  (void)state;
  const int32_t ids[] = {1, 2, 9};
  pst_engine_tokens out = {0};
  pst_engine_codes *table = NULL;
  OK(pst_engine_codes_parse(PST_STR("[[9,1,2]]"), &table, &err));
  assert_int_equal(pst_engine_codes_encode(table, ids, 3, &out, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "token 9 at position 2"));
  assert_int_equal(out.n, 0);
  OK(pst_engine_codes_encode(table, ids, 2, &out, &err));
  assert_int_equal(out.n, 1);
  assert_int_equal(out.ids[0], 9);
  pst_engine_tokens_done(&out);
  pst_engine_codes_free(table);
}

static void tables_that_mean_nothing_are_refused(void **state) {
  (void)state;
  static const char *const texts[] = {"{}",
                                      "[1]",
                                      "[[]]",
                                      "[[5]]",
                                      "[[5,1]]",
                                      "[[5,1,2],[5,2,1]]",
                                      "[[5,1,2],[6,1,2]]",
                                      "[[5,6,1],[6,1,2]]",
                                      "[[-5,1,2]]",
                                      "[[5,1.5,2]]",
                                      "[[5,1,-2]]",
                                      "[[5,1,\"2\"]]",
                                      "[[5,1,5]]",
                                      "[[99999999999,1,2]]",
                                      "[[5,1,2]",
                                      "[\"5,1,2\"]"};
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) {
    pst_engine_codes *table = NULL;
    int code = pst_engine_codes_parse(pst_str_from(texts[i]), &table, &err);
    if (code != PST_E_BAD_INPUT) fail_msg("%s: %d", texts[i], code);
    assert_null(table);
  }
}

/* ---- an engine ---- */

enum { MOST_EVENTS = 64, MOST_ANSWER = 24 };

typedef struct answer {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool ended;
  int n, n_completion;
  int32_t tokens[MOST_EVENTS];
  float logprobs[MOST_EVENTS];
  pst_buf text, token_texts;
  pst_engine_finish finish;
} answer;

static void on_event(void *user, const pst_engine_event *e) {
  answer *a = user;
  pst_buf_append_str(&a->text, e->text);
  if (e->token >= 0 && a->n < MOST_EVENTS) {
    pst_buf_append_str(&a->token_texts, e->token_text);
    a->tokens[a->n] = e->token;
    a->logprobs[a->n++] = e->logprob;
  }
  if (e->finish == PST_ENGINE_FINISH_NONE) return;
  pthread_mutex_lock(&a->lock);
  a->n_completion = e->n_completion;
  a->finish = e->finish;
  a->ended = true;
  pthread_cond_signal(&a->changed);
  pthread_mutex_unlock(&a->lock);
}

/* All but letters and the space are banned, so that answers are readable. */
static pst_engine_bias bias[512];
static size_t n_bias;

static void ban(const pst_engine_model *model) {
  n_bias = 0;
  for (int32_t t = 0; t < pst_engine_model_get_info(model)->n_vocab; t++) {
    pst_buf text = PST_BUF_INIT;
    OK(pst_engine_detokenize(model, &t, 1, true, &text));
    bool good = text.n == 1 && ((text.data[0] >= 'a' && text.data[0] <= 'p') || text.data[0] == ' ');
    if (!good) bias[n_bias++] = (pst_engine_bias){t, -100};
    pst_buf_done(&text);
  }
}

/* Answers to one prompt, greedy, with log-probabilities. */
static void ask(pst_engine *engine, pst_engine_request q, answer *a) {
  static const int32_t prompt[] = {40, 47, 61, 52, 40, 47, 61};
  uint64_t id;
  *a = (answer){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .text = PST_BUF_INIT};
  q.prompt = prompt;
  q.n_prompt = PST_ARRAY_LEN(prompt);
  q.max_tokens = MOST_ANSWER;
  q.sampling = pst_engine_sampling_default();
  q.sampling.temperature = 0;
  q.sampling.bias = q.choices ? NULL : bias;
  q.sampling.n_bias = q.choices ? 0 : n_bias;
  q.n_logprobs = 0;
  q.ignore_end = true;
  q.callback = on_event;
  q.user = a;
  OK(pst_engine_submit(engine, &q, &id, &err));
  pthread_mutex_lock(&a->lock);
  while (!a->ended) pthread_cond_wait(&a->changed, &a->lock);
  pthread_mutex_unlock(&a->lock);
}

static void answer_done(answer *a) {
  pst_buf_done(&a->text);
  pst_buf_done(&a->token_texts);
}

/* The same numbers with and without codes. */
static pst_engine_adapter *make_adapter(const pst_engine_model *model, const char *codes) {
  pst_engine_adapter *adapter = NULL;
  pst_engine_lora lora = {0};
  OK(test_random_adapter(model, 4, 3, 1, 0.2f, &lora, &err));
  OK(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_CODES, codes, &err));
  OK(pst_engine_adapter_create(model, &lora, &adapter, &err));
  pst_engine_lora_done(&lora);
  return adapter;
}

typedef struct fixture {
  pst_engine_model *model;
  pst_engine *engine;
  pst_engine_adapter *plain, *coded; /* the same numbers */
  answer uncoded;                    /* the plain one's */
  int32_t code; /* one that the plain one says, which stands for "q", "z", e acute as two bytes, "q" */
} fixture;

#define PIECE "qz\xC3\xA9q"

static void open_fixture(fixture *f) {
  const char *path = test_temp_path(test_dir, "tiny");
  pst_engine_options o = pst_engine_options_default();
  pst_engine_tokens t = {0};
  pst_buf table = PST_BUF_INIT;
  test_tiny_write(path, &(test_tiny){.type = "Q8_0", .seed = 4});
  OK(pst_engine_model_open(path, 1, &f->model, &err));
  o.threads = 1;
  o.n_ctx = 64;
  OK(pst_engine_create(f->model, &o, &f->engine, &err));
  ban(f->model);
  f->plain = make_adapter(f->model, NULL);
  ask(f->engine, (pst_engine_request){.adapter = f->plain}, &f->uncoded);
  assert_int_equal(f->uncoded.n, MOST_ANSWER);
  f->code = f->uncoded.tokens[1];
  OK(pst_engine_tokenize(f->model, PST_STR(PIECE), false, false, &t, &err));
  assert_int_equal(t.n, 5);
  pst_buf_printf(&table, "[[%d,%d,%d,%d,%d,%d]]", f->code, t.ids[0], t.ids[1], t.ids[2], t.ids[3], t.ids[4]);
  f->coded = make_adapter(f->model, table.data);
  assert_int_equal(pst_engine_adapter_get_info(f->coded)->n_codes, 1);
  pst_engine_tokens_done(&t);
  pst_buf_done(&table);
}

static void close_fixture(fixture *f) {
  answer_done(&f->uncoded);
  pst_engine_free(f->engine);
  pst_engine_adapter_unref(f->coded);
  pst_engine_adapter_unref(f->plain);
  pst_engine_model_unref(f->model);
}

static void answers_are_expanded(void **state) {
  (void)state;
  fixture f = {0};
  answer coded, drafted, stopped;
  pst_buf wanted = PST_BUF_INIT;
  open_fixture(&f);
  for (int i = 0; i < f.uncoded.n; i++)
    if (f.uncoded.tokens[i] == f.code)
      pst_buf_puts(&wanted, PIECE);
    else
      OK(pst_engine_detokenize(f.model, &f.uncoded.tokens[i], 1, true, &wanted));
  ask(f.engine, (pst_engine_request){.adapter = f.coded}, &coded);
  assert_int_equal(coded.n_completion, MOST_ANSWER); /* as they are made */
  assert_memory_equal(coded.tokens, f.uncoded.tokens, sizeof coded.tokens);
  assert_memory_equal(coded.logprobs, f.uncoded.logprobs, sizeof coded.logprobs);
  assert_string_equal(coded.token_texts.data, wanted.data);
  assert_string_equal(coded.text.data, wanted.data);
  ask(f.engine, (pst_engine_request){.adapter = f.coded, .speculation = PST_ENGINE_SPEC_LOOKUP}, &drafted);
  assert_memory_equal(drafted.tokens, coded.tokens, sizeof coded.tokens);
  assert_string_equal(drafted.text.data, wanted.data);
  const pst_str stop[] = {{"\xC3\xA9q", 3}};
  ask(f.engine, (pst_engine_request){.adapter = f.coded, .stop = stop, .n_stop = 1}, &stopped);
  assert_int_equal(stopped.finish, PST_ENGINE_FINISH_STOP);
  int first = 0;
  while (f.uncoded.tokens[first] != f.code) first++;
  assert_int_equal(stopped.n_completion, first + 1);
  assert_int_equal(stopped.text.n, first + 2);
  assert_memory_equal(stopped.text.data, wanted.data, stopped.text.n);
  answer_done(&coded);
  answer_done(&drafted);
  answer_done(&stopped);
  pst_buf_done(&wanted);
  close_fixture(&f);
}

static void without_the_adapter_nothing_changes(void **state) {
  (void)state;
  fixture f = {0};
  answer before, coded, after;
  open_fixture(&f);
  ask(f.engine, (pst_engine_request){.adapter = NULL}, &before);
  ask(f.engine, (pst_engine_request){.adapter = f.coded}, &coded);
  ask(f.engine, (pst_engine_request){.adapter = NULL}, &after);
  assert_memory_equal(after.tokens, before.tokens, sizeof before.tokens);
  assert_memory_equal(after.logprobs, before.logprobs, sizeof before.logprobs);
  assert_string_equal(after.text.data, before.text.data);
  assert_null(strchr(before.text.data, 'q'));
  answer_done(&before);
  answer_done(&coded);
  answer_done(&after);
  close_fixture(&f);
}

static void choices_are_spelled_in_codes(void **state) {
  (void)state;
  static const char *const texts[] = {"the " PIECE, "a " PIECE " a", "o"};
  fixture f = {0};
  pst_str list[PST_ARRAY_LEN(texts)];
  pst_engine_choices *choices = NULL, *plain = NULL;
  pst_engine_request q = {.n_logprobs = -1, .callback = on_event};
  uint64_t id;
  open_fixture(&f);
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) list[i] = pst_str_from(texts[i]);
  const pst_engine_codes *codes = pst_engine_adapter_codes(f.coded);
  OK(pst_engine_choices_create(f.model, list, 1, false, codes, &choices, &err));
  OK(pst_engine_choices_create(f.model, list, 1, false, NULL, &plain, &err));
  answer coded, uncoded;
  ask(f.engine, (pst_engine_request){.adapter = f.coded, .choices = choices}, &coded);
  ask(f.engine, (pst_engine_request){.adapter = f.plain, .choices = plain}, &uncoded);
  assert_string_equal(coded.text.data, texts[0]);
  assert_string_equal(uncoded.text.data, texts[0]);
  assert_int_equal(coded.n_completion, uncoded.n_completion - 4);
  q.prompt = &f.code;
  q.n_prompt = 1;
  q.choices = plain;
  q.adapter = f.coded;
  assert_int_equal(pst_engine_submit(f.engine, &q, &id, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "adapter's codes"));
  q.choices = choices;
  q.adapter = NULL;
  assert_int_equal(pst_engine_submit(f.engine, &q, &id, &err), PST_E_BAD_INPUT);
  pst_buf letter = PST_BUF_INIT; /* a text that needs the code as what it was */
  OK(pst_engine_detokenize(f.model, &f.code, 1, true, &letter));
  list[2] = pst_buf_str(&letter);
  pst_engine_choices *none = NULL;
  assert_int_equal(pst_engine_choices_create(f.model, list, 3, false, codes, &none, &err), PST_E_BAD_INPUT);
  assert_null(none);
  pst_buf_done(&letter);
  pst_engine_choices_unref(choices);
  pst_engine_choices_unref(plain);
  answer_done(&coded);
  answer_done(&uncoded);
  close_fixture(&f);
}

static void codes_are_the_vocabularys(void **state) {
  (void)state;
  static const char *const texts[] = {"[[288,1,2]]", "[[1,2,288]]",    "[[265,1,2]]",
                                      "[[1,2,266]]", "[[1,2,300000]]", "[[1]]"};
  fixture f = {0};
  open_fixture(&f);
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) {
    pst_engine_adapter *adapter = NULL;
    pst_engine_lora lora = {0};
    OK(test_random_adapter(f.model, 4, 3, 1, 0.2f, &lora, &err));
    OK(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_CODES, texts[i], &err));
    if (pst_engine_adapter_create(f.model, &lora, &adapter, &err) != PST_E_BAD_INPUT) fail_msg("%s", texts[i]);
    pst_engine_lora_done(&lora);
  }
  close_fixture(&f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_coded_expands_again),
      cmocka_unit_test(a_code_is_no_text_of_its_own),
      cmocka_unit_test(tables_that_mean_nothing_are_refused),
      cmocka_unit_test_setup_teardown(answers_are_expanded, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(without_the_adapter_nothing_changes, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(choices_are_spelled_in_codes, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(codes_are_the_vocabularys, test_dir_open, test_dir_close),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
