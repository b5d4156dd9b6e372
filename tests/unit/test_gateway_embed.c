/* Calls for embeddings: one record and one reservation for all their texts, refusals before money is reserved, cancelling. With tiny random encoders. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/gateway.h"
#include "support/temp.h"
#include "support/tiny_model.h"

enum { DIMS = 64, MAX_VECTORS = 16 };

typedef struct embedded {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool ended;
  float vectors[MAX_VECTORS * DIMS];
  size_t n_vectors;
  int n_dims, n_last;
  pst_gateway_event last;
  pst_error error;
  char id[64];
} embedded;

static test_gateway t;
static char *dir, encoder[1024], generator[1024];
static int64_t key_id;
static pst_error err;

static void on_event(void *user, const pst_gateway_event *e) {
  embedded *r = user;
  pthread_mutex_lock(&r->lock);
  r->n_last += e->last;
  if (e->last) {
    r->last = *e;
    r->n_vectors = e->n_vectors;
    r->n_dims = e->n_dims;
    if (e->vectors && e->n_vectors <= MAX_VECTORS)
      memcpy(r->vectors, e->vectors, e->n_vectors * (size_t)e->n_dims * sizeof *r->vectors);
    if (e->error) r->error = *e->error;
    snprintf(r->id, sizeof r->id, "%s", e->completion_id);
    r->ended = true;
    pthread_cond_signal(&r->changed);
  }
  pthread_mutex_unlock(&r->lock);
}

static pst_gateway_call call_of(const char *model, const pst_wire_prompt *inputs, size_t n, embedded *r) {
  *r = (embedded){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
  return (pst_gateway_call){.kind = PST_GATEWAY_EMBED,
                            .purpose = PST_STORE_PURPOSE_USER,
                            .key_id = key_id,
                            .model = pst_str_from(model),
                            .inputs = inputs,
                            .n_inputs = n,
                            .n = 1,
                            .set = {.n_logprobs = -1},
                            .callback = on_event,
                            .user = r};
}

static void wait_for(embedded *r) {
  pthread_mutex_lock(&r->lock);
  while (!r->ended) pthread_cond_wait(&r->changed, &r->lock);
  pthread_mutex_unlock(&r->lock);
  assert_int_equal(r->n_last, 1);
}

static void answer(const pst_gateway_call *call, embedded *r) {
  uint64_t id = 0;
  if (pst_gateway_chat(t.gateway, call, &id, &err)) fail_msg("refused: %s", err.message);
  assert_true(id > 0);
  wait_for(r);
}

typedef struct seen {
  int n, status;
  int64_t prompt_tokens, completion_tokens, cost, key;
  char input[512], output[64];
} seen;

static int see(void *user, const pst_store_request *q) {
  seen *s = user;
  s->n++;
  s->status = q->status;
  s->prompt_tokens = q->prompt_tokens;
  s->completion_tokens = q->completion_tokens;
  s->cost = q->cost_nusd;
  s->key = q->key_id;
  snprintf(s->input, sizeof s->input, "%.*s", (int)q->input_json.n, q->input_json.data ? q->input_json.data : "");
  snprintf(s->output, sizeof s->output, "%.*s", (int)q->output_json.n, q->output_json.data ? q->output_json.data : "");
  return 0;
}

static seen record_of(const char *id) {
  seen s = {0};
  pst_store_request_filter filter = PST_STORE_REQUEST_FILTER_INIT;
  filter.completion_id = pst_str_from(id);
  filter.with_content = true;
  assert_int_equal(pst_store_flush(t.store, &err), 0);
  assert_int_equal(pst_store_request_each(t.store, &filter, see, &s, &err), 0);
  return s;
}

static pst_store_budget budget(void) {
  pst_store_budget b;
  assert_int_equal(pst_store_flush(t.store, &err), 0);
  assert_int_equal(pst_store_budget_get(t.store, key_id, pst_clock_unix_ms(), &b, &err), 0);
  return b;
}

static const int32_t some_tokens[] = {7, 8, 9};
static const pst_wire_prompt three[] = {
    {.text = {"the one", 7}}, {.tokens = some_tokens, .n_tokens = 3}, {.text = {"another on the other", 20}}};

/* What the caller lent is not looked at once the call has begun. */
static void one_call_is_one_record(void **state) {
  (void)state;
  embedded r, alone;
  int64_t before = budget().total_nusd;
  pst_wire_prompt *lent = pst_malloc(sizeof three);
  memcpy(lent, three, sizeof three);
  pst_gateway_call call = call_of(encoder, lent, 3, &r);
  uint64_t id = 0;
  call.consent.keep = PST_STORE_KEEP_CONTENT;
  assert_int_equal(pst_gateway_chat(t.gateway, &call, &id, &err), 0);
  memset(lent, 0, sizeof three);
  pst_free(lent);
  wait_for(&r);
  assert_int_equal(r.error.code, 0);
  assert_int_equal(r.n_vectors, 3);
  assert_int_equal(r.n_dims, DIMS);
  assert_true(strncmp(r.id, "embd-", 5) == 0);
  seen s = record_of(r.id);
  assert_int_equal(s.n, 1);
  assert_int_equal(s.status, 200);
  assert_int_equal(s.key, key_id);
  assert_true(s.prompt_tokens > 3);
  assert_int_equal(s.prompt_tokens, r.last.prompt_tokens);
  assert_int_equal(s.completion_tokens, 0);
  assert_non_null(strstr(s.input, "\"the one\",[7,8,9],"));
  assert_string_equal(s.output, "");
  pst_store_budget b = budget();
  assert_true(s.cost > 0);
  assert_int_equal(b.total_nusd - before, s.cost);
  assert_int_equal(b.n_open, 0);
  assert_int_equal(b.n_overruns, 0);
  for (size_t i = 0; i < 3; i++) { /* the same bits alone */
    call = call_of(encoder, &three[i], 1, &alone);
    answer(&call, &alone);
    assert_memory_equal(alone.vectors, r.vectors + i * DIMS, DIMS * sizeof(float));
  }
}

/* A model that must be loaded first: the texts are kept meanwhile. */
static void a_call_waits_for_its_model(void **state) {
  (void)state;
  embedded r, known;
  const char *path = test_temp_path(dir, "second.gguf");
  pst_wire_prompt *lent = pst_malloc(sizeof three);
  char *text = pst_strdup("the one");
  test_tiny_write(path, &(test_tiny){.architecture = "bert", .n_layers = 1});
  memcpy(lent, three, sizeof three);
  lent[0].text.data = text;
  pst_gateway_call call = call_of(path, lent, 3, &r);
  call.purpose = PST_STORE_PURPOSE_EVAL; /* may name any path */
  assert_int_equal(pst_gateway_chat(t.gateway, &call, NULL, &err), 0);
  memset(text, 'x', 7);
  memset(lent, 0, sizeof three);
  pst_free(text);
  pst_free(lent);
  wait_for(&r);
  assert_int_equal(r.error.code, 0);
  call = call_of(encoder, three, 3, &known);
  answer(&call, &known);
  assert_memory_equal(r.vectors, known.vectors, 3 * DIMS * sizeof(float));
}

static void refuse(const pst_gateway_call *call, embedded *r, int code, const char *place) {
  int64_t before = budget().total_nusd;
  int got = pst_gateway_chat(t.gateway, call, NULL, &err);
  if (!got) { /* it had to be loaded first */
    wait_for(r);
    err = r->error;
    got = err.code;
  }
  assert_int_equal(got, code);
  assert_string_equal(err.place, place);
  assert_int_equal(budget().total_nusd, before);
}

static void what_cannot_be_is_refused(void **state) {
  (void)state;
  embedded r;
  const int32_t beyond[] = {288};
  static int32_t long_text[2049];
  const pst_wire_prompt bad = {.tokens = beyond, .n_tokens = 1}, too_long = {.tokens = long_text, .n_tokens = 2049};
  pst_gateway_call call = call_of(generator, three, 3, &r);
  refuse(&call, &r, PST_E_UNSUPPORTED, "model");
  call = call_of("nowhere/model", three, 3, &r);
  refuse(&call, &r, PST_E_NOT_FOUND, "model");
  call = call_of(encoder, three, 0, &r);
  refuse(&call, &r, PST_E_BAD_INPUT, "input");
  call = call_of(encoder, &bad, 1, &r);
  refuse(&call, &r, PST_E_BAD_INPUT, "input");
  call = call_of(encoder, &too_long, 1, &r);
  refuse(&call, &r, PST_E_LIMIT, "input");
  call = call_of(encoder, three, 3, &r);
  call.dims = 32;
  refuse(&call, &r, PST_E_BAD_INPUT, "dimensions");
  call.dims = DIMS + 1;
  refuse(&call, &r, PST_E_BAD_INPUT, "dimensions");
  test_chat chat;
  test_chat_init(&chat, "Hello");
  call = call_of(encoder, NULL, 0, &r);
  call.kind = PST_GATEWAY_CHAT;
  call.chat = &chat.chat;
  refuse(&call, &r, PST_E_UNSUPPORTED, "model");
  call.kind = PST_GATEWAY_TEXT;
  call.chat = NULL;
  call.text = PST_STR("Hello");
  refuse(&call, &r, PST_E_UNSUPPORTED, "model");
}

static void a_spent_budget_refuses(void **state) {
  (void)state;
  embedded r;
  int64_t poor = 0;
  assert_int_equal(pst_store_key_create(t.store, PST_STR("poor"), PST_STR(""), (pst_store_limits){1, -1, -1},
                                        pst_clock_unix_ms(), &poor, NULL, &err),
                   0);
  pst_gateway_call call = call_of(encoder, three, 3, &r);
  call.key_id = poor;
  int code = pst_gateway_chat(t.gateway, &call, NULL, &err);
  if (!code) {
    wait_for(&r);
    code = r.error.code;
  }
  assert_int_equal(code, PST_E_BUDGET);
}

/* Cancelled at any moment, a call ends once and leaves nothing reserved. */
static void cancelled_calls_end(void **state) {
  (void)state;
  enum { CALLS = 30, TEXTS = 200, TOKENS = 40 };
  static int32_t tokens[TOKENS];
  static pst_wire_prompt inputs[TEXTS];
  static embedded r[CALLS];
  int n_cancelled = 0;
  for (int i = 0; i < TOKENS; i++) tokens[i] = i;
  for (int i = 0; i < TEXTS; i++) inputs[i] = (pst_wire_prompt){.tokens = tokens, .n_tokens = TOKENS};
  for (int i = 0; i < CALLS; i++) {
    uint64_t id = 0;
    pst_gateway_call call = call_of(encoder, inputs, TEXTS, &r[i]);
    assert_int_equal(pst_gateway_chat(t.gateway, &call, &id, &err), 0);
    if (i % 2) pst_gateway_cancel(t.gateway, id);
  }
  for (int i = 0; i < CALLS; i++) {
    wait_for(&r[i]);
    bool cancelled = r[i].error.code == PST_E_CANCELLED;
    assert_true(cancelled || r[i].error.code == 0);
    assert_true(cancelled == (r[i].n_vectors == 0));
    assert_true(i % 2 || !cancelled);
    n_cancelled += cancelled;
  }
  print_message("%d of %d calls cancelled\n", n_cancelled, CALLS / 2);
  pst_store_budget b = budget();
  assert_int_equal(b.n_open, 0);
  assert_int_equal(b.n_overruns, 0);
}

static int open_all(void **state) {
  (void)state;
  dir = test_temp_dir();
  snprintf(encoder, sizeof encoder, "%s", test_temp_path(dir, "encoder.gguf"));
  snprintf(generator, sizeof generator, "%s", test_temp_path(dir, "generator.gguf"));
  test_tiny_write(encoder, &(test_tiny){.architecture = "bert", .n_layers = 1});
  test_tiny_write(generator, &(test_tiny){.architecture = "llama"});
  t = test_gateway_open(NULL);
  if (pst_gateway_prepare_model(t.gateway, generator, NULL, &err)) fail_msg("%s", err.message);
  if (pst_store_machine_price_set(t.store, 1000 * PST_STORE_NUSD_PER_USD, &err)) fail_msg("%s", err.message);
  if (pst_store_key_create(t.store, PST_STR("rich"), PST_STR(""), (pst_store_limits){-1, -1, -1}, pst_clock_unix_ms(),
                           &key_id, NULL, &err))
    fail_msg("%s", err.message);
  if (pst_gateway_prepare_model(t.gateway, encoder, NULL, &err)) fail_msg("%s", err.message);
  return 0;
}

static int close_all(void **state) {
  (void)state;
  test_gateway_close(&t);
  test_temp_remove(dir);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_call_is_one_record),    cmocka_unit_test(a_call_waits_for_its_model),
      cmocka_unit_test(what_cannot_be_is_refused), cmocka_unit_test(a_spent_budget_refuses),
      cmocka_unit_test(cancelled_calls_end),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
