/* A gateway over a store in a directory of its own, and a listener that collects what a call says. */
#ifndef PST_TESTS_SUPPORT_GATEWAY_H
#define PST_TESTS_SUPPORT_GATEWAY_H

#include <penstock/gateway.h>

typedef struct test_gateway {
  char *home;
  pst_store *store;
  pst_gateway *gateway;
} test_gateway;

/* options: NULL for the defaults; home is filled in. Fails the test when it cannot. */
test_gateway test_gateway_open(const pst_gateway_options *options);
/* The same over a home that is there. */
test_gateway test_gateway_open_at(char *home, const pst_gateway_options *options);
void test_gateway_close(test_gateway *t); /* also removes the directory */
void test_gateway_close_keep(test_gateway *t);

/* The path in $PENSTOCK_TEST_SMOLLM2 or $PENSTOCK_TEST_GEMMA3, or NULL with a line on stdout saying that it is missing. */
const char *test_model(const char *variable);

/* What one call said. Filled on other threads; read after test_answer_wait. */
typedef struct test_answer {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  pst_buf text[16];       /* of each choice */
  pst_buf token_text[16]; /* bytes of the tokens that came with log-probabilities */
  double logprob_sum;
  int n_events, n_tokens, n_finished, n_last, n_after_last, n_tops;
  pst_engine_finish finish[16];
  pst_buf tools;          /* "id name arguments;" of each call */
  pst_gateway_event last; /* pointers void */
  char target[64], model[256], completion_id[64];
  pst_error error;
  pst_gateway *cancel_in; /* not NULL: the callback cancels cancel_id at the first text */
  uint64_t cancel_id;
} test_answer;
void test_answer_init(test_answer *a);
void test_answer_done(test_answer *a);
void test_answer_event(void *user, const pst_gateway_event *event); /* the callback, user: the answer */
void test_answer_wait(test_answer *a); /* for `last`, at most a minute: then the test fails */
const char *test_answer_text(const test_answer *a, int choice);

/* One user message. */
typedef struct test_chat {
  pst_chat_message message;
  pst_chat chat;
} test_chat;
void test_chat_init(test_chat *c, const char *text);
/* A chat call of one message: greedy, at most 16 tokens, one answer, purpose EVAL. */
pst_gateway_call test_call(const char *model, const test_chat *chat, test_answer *answer);

#endif
