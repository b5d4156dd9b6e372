#include "support/gateway.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "support/temp.h"

test_gateway test_gateway_open_at(char *home, const pst_gateway_options *options) {
  test_gateway t = {.home = home};
  pst_error err = PST_ERROR_INIT;
  pst_gateway_options o = options ? *options : (pst_gateway_options){0};
  o.home = home;
  int code = pst_store_open(home, &t.store, &err);
  if (!code) code = pst_gateway_open(t.store, &o, &t.gateway, &err);
  if (code) fail_msg("the gateway does not open: %s", err.message);
  return t;
}

test_gateway test_gateway_open(const pst_gateway_options *options) {
  return test_gateway_open_at(test_temp_dir(), options);
}

void test_gateway_close_keep(test_gateway *t) {
  pst_gateway_close(t->gateway);
  pst_store_close(t->store);
  t->gateway = NULL;
  t->store = NULL;
}

void test_gateway_close(test_gateway *t) {
  test_gateway_close_keep(t);
  test_temp_remove(t->home);
  t->home = NULL;
}

const char *test_model(const char *variable) {
  const char *path = getenv(variable);
  if (path && pst_file_exists(path)) return path;
  printf("skipped: no model at $%s\n", variable);
  return NULL;
}

void test_answer_init(test_answer *a) {
  memset(a, 0, sizeof *a);
  pthread_mutex_init(&a->lock, NULL);
  pthread_cond_init(&a->changed, NULL);
}

void test_answer_done(test_answer *a) {
  for (int i = 0; i < 16; i++) {
    pst_buf_done(&a->text[i]);
    pst_buf_done(&a->token_text[i]);
  }
  pst_buf_done(&a->tools);
  pthread_mutex_destroy(&a->lock);
  pthread_cond_destroy(&a->changed);
}

static void note_tools(test_answer *a, const pst_gateway_event *e) {
  for (size_t i = 0; i < e->n_tool_calls; i++) {
    pst_buf_append_str(&a->tools, e->tool_calls[i].id);
    pst_buf_putc(&a->tools, ' ');
    pst_buf_append_str(&a->tools, e->tool_calls[i].name);
    pst_buf_putc(&a->tools, ' ');
    pst_buf_append_str(&a->tools, e->tool_calls[i].arguments);
    pst_buf_putc(&a->tools, ';');
  }
}

static void note_last(test_answer *a, const pst_gateway_event *e) {
  a->n_last++;
  a->last = *e;
  if (e->error) a->error = *e->error;
  snprintf(a->target, sizeof a->target, "%s", e->target);
  snprintf(a->model, sizeof a->model, "%s", e->model);
}

void test_answer_event(void *user, const pst_gateway_event *e) {
  test_answer *a = user;
  pthread_mutex_lock(&a->lock);
  uint64_t cancel_id = a->cancel_id;
  if (a->n_last) a->n_after_last++;
  a->n_events++;
  snprintf(a->completion_id, sizeof a->completion_id, "%s", e->completion_id);
  pst_buf_append_str(&a->text[e->choice], e->text);
  if (e->token) {
    a->n_tokens++;
    a->logprob_sum += (double)e->token->logprob;
    a->n_tops += (int)e->token->n_top;
    pst_buf_append_str(&a->token_text[e->choice], e->token->token_text);
  }
  if (e->finish != PST_ENGINE_FINISH_NONE) {
    a->n_finished++;
    a->finish[e->choice] = e->finish;
    note_tools(a, e);
  }
  if (e->last) note_last(a, e);
  pthread_cond_broadcast(&a->changed);
  bool cancel = a->cancel_in && e->text.n && cancel_id;
  pthread_mutex_unlock(&a->lock);
  if (cancel) pst_gateway_cancel(a->cancel_in, cancel_id);
}

void test_answer_wait(test_answer *a) {
  struct timespec end;
  clock_gettime(CLOCK_REALTIME, &end);
  end.tv_sec += 240; /* far beyond what the slowest sanitizer takes */
  int rc = 0;
  pthread_mutex_lock(&a->lock);
  while (!a->n_last && !rc) rc = pthread_cond_timedwait(&a->changed, &a->lock, &end);
  pthread_mutex_unlock(&a->lock);
  assert_int_equal(rc, 0);
}

const char *test_answer_text(const test_answer *a, int choice) { return pst_buf_text(&a->text[choice]); }

void test_chat_init(test_chat *c, const char *text) {
  memset(c, 0, sizeof *c);
  c->message = (pst_chat_message){.role = PST_CHAT_USER, .has_content = true, .content = pst_str_from(text)};
  c->chat = (pst_chat){.messages = &c->message, .n_messages = 1, .add_generation_prompt = true};
}

pst_gateway_call test_call(const char *model, const test_chat *chat, test_answer *answer) {
  pst_gateway_call call = {.kind = PST_GATEWAY_CHAT,
                           .purpose = PST_STORE_PURPOSE_EVAL,
                           .model = pst_str_from(model),
                           .chat = chat ? &chat->chat : NULL,
                           .n = 1,
                           .callback = test_answer_event,
                           .user = answer};
  call.set.has_temperature = true;
  call.set.has_max_tokens = true;
  call.set.max_tokens = 16;
  call.set.n_logprobs = -1;
  return call;
}
