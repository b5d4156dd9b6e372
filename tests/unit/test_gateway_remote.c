/* Calls answered by a provider, played by a scripted peer: answers whole and streamed, and everything that can go wrong on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/gateway.h"
#include "support/raw_peer.h"

/* What the peer does with its connections, one after the other; the last script repeats. */
typedef struct peer {
  const char *scripts[4];
  int n_scripts, n_requests;
  int hang_ms, hang_after_ms; /* before the answer, after it */
  char request[16384];
} peer;

static void play(int fd, void *user) {
  peer *p = user;
  pst_buf in = PST_BUF_INIT;
  if (raw_read_request(fd, &in)) {
    snprintf(p->request, sizeof p->request, "%s", in.data);
    const char *script = p->scripts[p->n_requests < p->n_scripts ? p->n_requests : p->n_scripts - 1];
    p->n_requests++;
    if (p->hang_ms) usleep((useconds_t)p->hang_ms * 1000);
    (void)raw_try_send(fd, script, strlen(script));
    if (p->hang_after_ms) usleep((useconds_t)p->hang_after_ms * 1000);
  }
  pst_buf_done(&in);
}

#define HEAD(status, type) "HTTP/1.1 " status "\r\nContent-Type: " type "\r\nConnection: close\r\n"
#define JSON_200(body) HEAD("200 OK", "application/json") "\r\n" body
#define SSE_200 HEAD("200 OK", "text/event-stream") "\r\n"
#define ANSWER                                                                                                    \
  "{\"id\":\"x\",\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":" \
  "\"assistant\",\"content\":\"Bonjour.\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,"         \
  "\"completion_tokens\":3,\"total_tokens\":13}}"
#define CHUNK(delta, finish)                                                                                            \
  "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":" delta \
  ",\"finish_reason\":" finish "}]}\n\n"
#define USAGE                                                                                           \
  "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[],\"usage\":{" \
  "\"prompt_tokens\":10,\"completion_tokens\":3,\"total_tokens\":13}}\n\n"
#define STREAM                                                                                                   \
  SSE_200 CHUNK("{\"role\":\"assistant\",\"content\":\"Bon\"}", "null") CHUNK("{\"content\":\"jour.\"}", "null") \
      CHUNK("{}", "\"stop\"") USAGE "data: [DONE]\n\n"

typedef struct stage {
  peer p;
  raw_server *server;
  test_gateway t;
  test_answer a;
  test_chat chat;
  int64_t key_id;
  int port;
} stage;

static const pst_gateway_options QUICK = {
    .upstream_connect_ms = 2000, .upstream_total_ms = 1500, .upstream_idle_ms = 1000, .upstream_retries = 2};

/* One provider "acme" with the peer behind it, $1 and $10 per million tokens, and a key that may spend a dollar. */
static void set_up(stage *s, const char *first, const char *second) {
  memset(s, 0, sizeof *s);
  char url[64];
  pst_error err = PST_ERROR_INIT;
  s->p.scripts[s->p.n_scripts++] = first;
  if (second) s->p.scripts[s->p.n_scripts++] = second;
  s->server = raw_server_start(play, &s->p, &s->port);
  s->t = test_gateway_open(&QUICK);
  snprintf(url, sizeof url, "http://127.0.0.1:%d/v1", s->port);
  pst_store_price price = {PST_STORE_NUSD_PER_USD, PST_STORE_NO_LIMIT, 10 * PST_STORE_NUSD_PER_USD};
  pst_store_limits limits = {PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, PST_STORE_NUSD_PER_USD};
  setenv("ACME_KEY", "sk-secret", 1);
  assert_int_equal(pst_gateway_provider_set(s->t.store, PST_STR("acme"), pst_str_from(url), PST_STR("ACME_KEY"), &err),
                   0);
  assert_int_equal(pst_store_price_set(s->t.store, PST_STR("acme"), PST_STR("big"), price, &err), 0);
  assert_int_equal(pst_store_key_create(s->t.store, PST_STR("app"), PST_STR(""), limits, 0, &s->key_id, NULL, &err), 0);
  test_answer_init(&s->a);
  test_chat_init(&s->chat, "Hello");
}

static pst_gateway_call call_of(stage *s) {
  pst_gateway_call call = test_call("acme/big", &s->chat, &s->a);
  call.purpose = PST_STORE_PURPOSE_USER;
  call.key_id = s->key_id;
  return call;
}

static void run(stage *s, const pst_gateway_call *call) {
  pst_error err = PST_ERROR_INIT;
  if (pst_gateway_chat(s->t.gateway, call, NULL, &err)) fail_msg("refused: %s", err.message);
  test_answer_wait(&s->a);
}

/* What the key has spent when all is settled. */
static int64_t spent(stage *s) {
  pst_error err = PST_ERROR_INIT;
  pst_store_budget b;
  assert_int_equal(pst_store_flush(s->t.store, &err), 0);
  assert_int_equal(pst_store_budget_get(s->t.store, s->key_id, pst_clock_unix_ms(), &b, &err), 0);
  assert_int_equal(b.n_open, 0);
  assert_int_equal(b.n_overruns, 0);
  return b.total_nusd;
}

static void tear_down(stage *s) {
  test_gateway_close(&s->t);
  raw_server_stop(s->server);
  test_answer_done(&s->a);
}

enum { USAGE_NUSD = 10 * 1000 + 3 * 10000 }; /* of ANSWER and STREAM */

static void a_whole_answer(void **state) {
  (void)state;
  stage s;
  set_up(&s, JSON_200(ANSWER), NULL);
  pst_gateway_call call = call_of(&s);
  call.set.has_max_tokens = false;
  run(&s, &call);
  assert_int_equal(s.a.error.code, 0);
  assert_string_equal(test_answer_text(&s.a, 0), "Bonjour.");
  assert_string_equal(s.a.target, "acme");
  assert_string_equal(s.a.model, "big");
  assert_int_equal(s.a.last.prompt_tokens, 10);
  assert_int_equal(s.a.last.completion_tokens, 3);
  assert_int_equal(s.a.last.cost_nusd, USAGE_NUSD);
  assert_int_equal(spent(&s), USAGE_NUSD);
  assert_non_null(strcasestr(s.p.request, "authorization: Bearer sk-secret"));
  assert_non_null(strstr(s.p.request, "POST /v1/chat/completions"));
  assert_non_null(strstr(s.p.request, "\"max_tokens\":4096")); /* always sent */
  assert_non_null(strstr(s.p.request, "\"content\":\"Hello\""));
  tear_down(&s);
}

static void a_stream_is_passed_through(void **state) {
  (void)state;
  stage s;
  set_up(&s, STREAM, NULL);
  pst_gateway_call call = call_of(&s);
  call.stream = true;
  run(&s, &call);
  assert_int_equal(s.a.error.code, 0);
  assert_string_equal(test_answer_text(&s.a, 0), "Bonjour.");
  assert_int_equal(s.a.n_events, 4); /* two pieces, the finish, the end */
  assert_int_equal(spent(&s), USAGE_NUSD);
  tear_down(&s);
}

/* A plan whose answers copy from the input: a stream waits for the end and comes mended; log-probabilities are of what the model said. */
static void copied_texts_are_mended(void **state) {
  (void)state;
  for (int i = 0; i < 3; i++) {
    stage s;
    pst_error err = PST_ERROR_INIT;
    pst_gateway_plan *plan;
    set_up(
        &s,
        i ? SSE_200 CHUNK("{\"content\":\"{\\\"name\\\":\"}", "null") CHUNK("{\"content\":\"\\\"Klotte\\\"}\"}", "null")
                CHUNK("{}", "\"stop\"") USAGE "data: [DONE]\n\n"
          : JSON_200(
                "{\"id\":\"x\",\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                "\"content\":\"{\\\"name\\\":\\\"Klotte\\\"}\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,"
                "\"completion_tokens\":3,\"total_tokens\":13}}"),
        NULL);
    test_chat_init(&s.chat, "a song of Klute");
    assert_int_equal(
        pst_gateway_plan_parse(
            PST_STR(
                "{\"schema\":1,\"copied\":[\"name\"],\"root\":{\"op\":\"remote\",\"provider\":\"acme\",\"model\":\"big\"}}"),
            "plan", &plan, &err),
        0);
    pst_gateway_call call = call_of(&s);
    call.plan = plan;
    call.stream = i > 0;
    if (i == 2) call.set.n_logprobs = 0;
    run(&s, &call);
    assert_int_equal(s.a.error.code, 0);
    assert_string_equal(test_answer_text(&s.a, 0), i == 2 ? "{\"name\":\"Klotte\"}" : "{\"name\":\"Klute\"}");
    assert_int_equal(s.a.n_events, i == 2 ? 4 : 2); /* the answer with its finish, the end */
    assert_int_equal(spent(&s), USAGE_NUSD);
    pst_gateway_plan_unref(plan);
    tear_down(&s);
  }
}

static void tool_calls_come_whole(void **state) {
  (void)state;
  stage s;
  set_up(
      &s,
      SSE_200 CHUNK("{\"tool_calls\":[{\"index\":0,\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"look\","
                    "\"arguments\":\"{\\\"q\\\":\"}}]}",
                    "null") CHUNK("{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"1}\"}}]}", "null")
          CHUNK("{\"tool_calls\":[{\"index\":1,\"id\":\"c2\",\"type\":\"function\",\"function\":{\"name\":\"go\","
                "\"arguments\":\"{}\"}}]}",
                "null") CHUNK("{}", "\"tool_calls\"") USAGE "data: [DONE]\n\n",
      NULL);
  pst_gateway_call call = call_of(&s);
  call.stream = true;
  run(&s, &call);
  assert_int_equal(s.a.error.code, 0);
  assert_string_equal(pst_buf_text(&s.a.tools), "c1 look {\"q\":1};c2 go {};");
  assert_int_equal(s.a.finish[0], PST_ENGINE_FINISH_STOP);
  tear_down(&s);
}

static void asked_to_come_back_it_does(void **state) {
  (void)state;
  stage s;
  set_up(&s, HEAD("429 Too Many Requests", "application/json") "Retry-After: 0\r\nContent-Length: 0\r\n\r\n",
         JSON_200(ANSWER));
  pst_gateway_call call = call_of(&s);
  run(&s, &call);
  assert_int_equal(s.a.error.code, 0);
  assert_int_equal(s.p.n_requests, 2);
  assert_int_equal(spent(&s), USAGE_NUSD);
  tear_down(&s);
}

static void not_for_ever_and_not_for_too_long(void **state) {
  (void)state;
  stage s;
  set_up(&s, HEAD("503 Service Unavailable", "application/json") "Retry-After: 0\r\nContent-Length: 0\r\n\r\n", NULL);
  pst_gateway_call call = call_of(&s);
  run(&s, &call);
  assert_int_equal(s.a.error.code, PST_E_BUSY);
  assert_int_equal(s.a.last.http_status, 503);
  assert_int_equal(s.p.n_requests, 3); /* one and two retries */
  assert_int_equal(spent(&s), 0);
  tear_down(&s);
  set_up(&s,
         HEAD("429 Too Many Requests",
              "application/json") "Retry-After: 3600\r\n\r\n{\"error\":{\"message\":\"slow down\"}}",
         NULL);
  call = call_of(&s);
  run(&s, &call);
  assert_int_equal(s.a.error.code, PST_E_BUSY);
  assert_non_null(strstr(s.a.error.message, "slow down"));
  assert_int_equal(s.a.last.retry_after_s, 3600);
  assert_int_equal(s.p.n_requests, 1);
  tear_down(&s);
}

static void a_server_error_is_final_and_free(void **state) {
  (void)state;
  stage s;
  set_up(&s, HEAD("500 Oops", "application/json") "\r\n{\"error\":{\"message\":\"the cat\"}}", JSON_200(ANSWER));
  pst_gateway_call call = call_of(&s);
  run(&s, &call);
  assert_int_equal(s.a.error.code, PST_E_UPSTREAM);
  assert_non_null(strstr(s.a.error.message, "the cat"));
  assert_int_equal(s.p.n_requests, 1);
  assert_int_equal(spent(&s), 0);
  tear_down(&s);
}

static void a_bad_answer_is_charged_at_the_bound(void **state) {
  (void)state;
  const char *scripts[] = {JSON_200("{\"choices\": 7}"), JSON_200("not json"), SSE_200 "data: {broken\n\n",
                           SSE_200 CHUNK("{\"content\":\"Bon\"}", "null"), /* cut */
                           JSON_200("{\"choices\":[]}")};
  for (size_t i = 0; i < PST_ARRAY_LEN(scripts); i++) {
    stage s;
    set_up(&s, scripts[i], NULL);
    pst_gateway_call call = call_of(&s);
    call.stream = i == 2 || i == 3;
    run(&s, &call);
    assert_int_equal(s.a.error.code, PST_E_UPSTREAM);
    assert_int_equal(s.a.n_last, 1);
    assert_int_equal(s.p.n_requests, 1); /* it may have been paid for: not again */
    int64_t cost = spent(&s);
    assert_true(cost > 16 * 10000 && cost < PST_STORE_NUSD_PER_USD / 100);
    assert_int_equal(cost, s.a.last.cost_nusd);
    tear_down(&s);
  }
}

#define FINISHED_WITH(usage)                                                                                      \
  "{\"id\":\"x\",\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":" \
  "\"assistant\",\"content\":\"Bonjour.\"},\"finish_reason\":\"stop\"}],\"usage\":" usage "}"
#define RUNNING                                                                                         \
  "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{\"index\":0," \
  "\"delta\":{\"content\":\"Bon\"},\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":1}}\n\n"

/* Counts on the way are not the end's, and nobody answers for nothing. */
static void only_the_usage_of_the_end_counts(void **state) {
  (void)state;
  const struct {
    const char *script;
    bool stream, fails, counts;
  } cases[] = {
      {SSE_200 RUNNING, true, true, false}, /* cut */
      {SSE_200 RUNNING CHUNK("{}", "\"stop\"") "data: [DONE]\n\n", true, false, false},
      {SSE_200 RUNNING CHUNK("{}", "\"stop\"") USAGE "data: {broken\n\n", true, true, true},
      {JSON_200(FINISHED_WITH("{}")), false, false, false},
      {JSON_200(FINISHED_WITH("{\"prompt_tokens\":0,\"completion_tokens\":0}")), false, false, false},
      {JSON_200(FINISHED_WITH("{\"prompt_tokens\":10}")), false, false, false},
      {JSON_200(FINISHED_WITH("{\"prompt_tokens\":10,\"completion_tokens\":3}")), false, false, true},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    stage s;
    set_up(&s, cases[i].script, NULL);
    pst_gateway_call call = call_of(&s);
    call.stream = cases[i].stream;
    run(&s, &call);
    assert_int_equal(s.a.error.code, cases[i].fails ? PST_E_UPSTREAM : 0);
    int64_t cost = spent(&s);
    if (cases[i].counts)
      assert_int_equal(cost, USAGE_NUSD);
    else
      assert_true(cost > 16 * 10000); /* the bound */
    tear_down(&s);
  }
}

static void silence_is_a_time_out(void **state) {
  (void)state;
  stage s;
  set_up(&s, JSON_200(ANSWER), NULL);
  s.p.hang_ms = 2500;
  pst_gateway_call call = call_of(&s);
  run(&s, &call);
  assert_int_equal(s.a.error.code, PST_E_TIMEOUT);
  assert_true(spent(&s) > 0); /* it may be working for us */
  tear_down(&s);
  assert_int_equal(s.p.n_requests, 1); /* and so is not asked again */
}

/* A stream that has begun and says nothing more does not last as long as a whole answer may. */
static void a_silent_stream_is_a_time_out(void **state) {
  (void)state;
  stage s;
  set_up(&s, SSE_200 CHUNK("{\"content\":\"Bon\"}", "null"), NULL);
  s.p.hang_after_ms = 2500;
  pst_gateway_call call = call_of(&s);
  call.stream = true;
  run(&s, &call);
  assert_int_equal(s.a.error.code, PST_E_TIMEOUT);
  assert_non_null(strstr(s.a.error.message, "stopped"));
  assert_string_equal(test_answer_text(&s.a, 0), "Bon");
  assert_int_equal(s.p.n_requests, 1);
  assert_true(spent(&s) > 0);
  tear_down(&s);
}

static void nobody_there_is_tried_again_and_free(void **state) {
  (void)state;
  stage s;
  set_up(&s, JSON_200(ANSWER), NULL);
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(
      pst_gateway_provider_set(s.t.store, PST_STR("acme"), PST_STR("http://127.0.0.1:1/v1"), PST_STR("ACME_KEY"), &err),
      0);
  pst_gateway_call call = call_of(&s);
  run(&s, &call);
  assert_int_equal(s.a.error.code, PST_E_UPSTREAM);
  assert_non_null(strstr(s.a.error.message, "could not be reached"));
  assert_int_equal(spent(&s), 0);
  tear_down(&s);
}

static void cancelled_while_it_hangs(void **state) {
  (void)state;
  stage s;
  set_up(&s, JSON_200(ANSWER), NULL);
  s.p.hang_ms = 500;
  pst_gateway_call call = call_of(&s);
  uint64_t id;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_gateway_chat(s.t.gateway, &call, &id, &err), 0);
  usleep(100000);
  pst_gateway_cancel(s.t.gateway, id);
  test_answer_wait(&s.a);
  assert_int_equal(s.a.error.code, PST_E_CANCELLED);
  assert_int_equal(s.a.n_events, 1);
  assert_true(spent(&s) > 0); /* it may be working for us */
  tear_down(&s);
}

/* The peer never answers the handshake, so that not a byte of the request is sent. */
static void cancelled_before_it_is_sent_is_free(void **state) {
  (void)state;
  stage s;
  set_up(&s, JSON_200(ANSWER), NULL);
  char url[64];
  pst_error err = PST_ERROR_INIT;
  snprintf(url, sizeof url, "https://127.0.0.1:%d/v1", s.port);
  assert_int_equal(pst_gateway_provider_set(s.t.store, PST_STR("acme"), pst_str_from(url), PST_STR("ACME_KEY"), &err),
                   0);
  pst_gateway_call call = call_of(&s);
  uint64_t id;
  assert_int_equal(pst_gateway_chat(s.t.gateway, &call, &id, &err), 0);
  usleep(100000);
  pst_gateway_cancel(s.t.gateway, id);
  test_answer_wait(&s.a);
  assert_int_equal(s.a.error.code, PST_E_CANCELLED);
  assert_int_equal(spent(&s), 0);
  tear_down(&s);
  assert_int_equal(s.p.n_requests, 0);
}

static void what_has_no_price_or_key_is_refused(void **state) {
  (void)state;
  stage s;
  set_up(&s, JSON_200(ANSWER), NULL);
  pst_error err = PST_ERROR_INIT;
  pst_gateway_call call = call_of(&s);
  call.model = PST_STR("acme/other");
  assert_int_equal(pst_gateway_chat(s.t.gateway, &call, NULL, &err), PST_E_NOT_FOUND);
  assert_non_null(strstr(err.message, "no price"));
  call.model = PST_STR("acme/big");
  unsetenv("ACME_KEY");
  assert_int_equal(pst_gateway_chat(s.t.gateway, &call, NULL, &err), PST_E_UPSTREAM);
  assert_non_null(strstr(err.message, "ACME_KEY"));
  assert_int_equal(s.p.n_requests, 0);
  assert_int_equal(s.a.n_events, 0);
  tear_down(&s);
}

static void an_image_cannot_be_bounded(void **state) {
  (void)state;
  stage s;
  set_up(&s, JSON_200(ANSWER), NULL);
  pst_error err = PST_ERROR_INIT;
  pst_chat_part part = {.kind = PST_CHAT_PART_JSON};
  s.chat.message.parts = &part;
  s.chat.message.n_parts = 1;
  pst_gateway_call call = call_of(&s);
  assert_int_equal(pst_gateway_chat(s.t.gateway, &call, NULL, &err), PST_E_UNSUPPORTED);
  tear_down(&s);
}

/* ---- budgets ------------------------------------------------------------------------------------------------------------- */

typedef struct spender {
  stage *s;
  test_answer answers[20];
  int n_ok, n_refused;
} spender;

static void *spend(void *user) {
  spender *sp = user;
  for (int i = 0; i < 20; i++) {
    test_answer *a = &sp->answers[i];
    test_answer_init(a);
    pst_gateway_call call = call_of(sp->s);
    call.user = a;
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_gateway_chat(sp->s->t.gateway, &call, NULL, &err), 0);
  }
  for (int i = 0; i < 20; i++) {
    test_answer_wait(&sp->answers[i]);
    sp->n_ok += sp->answers[i].error.code == 0;
    sp->n_refused += sp->answers[i].error.code == PST_E_BUDGET;
    test_answer_done(&sp->answers[i]);
  }
  return NULL;
}

/* Many calls at once against a limit: at no moment do settled and reserved money pass it, and at the end it is exactly what was used. */
static void a_budget_is_never_overspent(void **state) {
  (void)state;
  stage s;
  set_up(&s, JSON_200(ANSWER), NULL);
  pst_error err = PST_ERROR_INIT;
  pst_store_limits limits = {PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, 40 * USAGE_NUSD};
  assert_int_equal(pst_store_key_set_limits(s.t.store, s.key_id, limits, &err), 0);
  enum { N = 4 };
  spender *spenders = calloc(N, sizeof *spenders);
  pthread_t threads[N];
  for (int i = 0; i < N; i++) {
    spenders[i].s = &s;
    assert_int_equal(pthread_create(&threads[i], NULL, spend, &spenders[i]), 0);
  }
  pst_store_budget b;
  for (int i = 0; i < 200; i++) {
    assert_int_equal(pst_store_budget_get(s.t.store, s.key_id, pst_clock_unix_ms(), &b, &err), 0);
    assert_true(b.total_nusd <= limits.total_nusd);
    usleep(1000);
  }
  int n_ok = 0, n_refused = 0;
  for (int i = 0; i < N; i++) {
    pthread_join(threads[i], NULL);
    n_ok += spenders[i].n_ok;
    n_refused += spenders[i].n_refused;
  }
  free(spenders);
  assert_int_equal(n_ok + n_refused, N * 20);
  assert_true(n_ok > 0 && n_refused > 0);
  assert_int_equal(spent(&s), (int64_t)n_ok * USAGE_NUSD);
  tear_down(&s);
}

static int note_provider(void *user, pst_str name, pst_str base_url, pst_str key_env) {
  pst_buf_printf(user, "%.*s %.*s %.*s;", (int)name.n, name.data, (int)base_url.n, base_url.data, (int)key_env.n,
                 key_env.n ? key_env.data : "");
  return 0;
}

static void providers_are_checked_settings(void **state) {
  (void)state;
  test_gateway t = test_gateway_open(NULL);
  pst_error err = PST_ERROR_INIT;
  pst_buf list = PST_BUF_INIT;
  const struct {
    const char *name, *url, *env;
  } bad[] = {{"", "http://x/v1", ""},      {"A", "http://x/v1", ""},     {"a/b", "http://x/v1", ""},
             {"a", "ftp://x/v1", ""},      {"a", "http://", ""},         {"a", "http:///v1", ""},
             {"a", "http://x/v1?q=1", ""}, {"a", "http://x/v1", "sk-1"}, {"a", "http://x /v1", ""}};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++)
    assert_int_equal(pst_gateway_provider_set(t.store, pst_str_from(bad[i].name), pst_str_from(bad[i].url),
                                              pst_str_from(bad[i].env), &err),
                     PST_E_BAD_INPUT);
  assert_int_equal(
      pst_gateway_provider_set(t.store, PST_STR("b"), PST_STR("https://b.example/v1/"), PST_STR("B_KEY"), &err), 0);
  assert_int_equal(pst_gateway_provider_set(t.store, PST_STR("a"), PST_STR("http://a.example/v1"), PST_STR(""), &err),
                   0);
  assert_int_equal(pst_gateway_provider_each(t.store, note_provider, &list, &err), 0);
  assert_string_equal(pst_buf_text(&list), "a http://a.example/v1 ;b https://b.example/v1 B_KEY;");
  pst_buf_done(&list);
  test_gateway_close(&t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_whole_answer),
      cmocka_unit_test(a_stream_is_passed_through),
      cmocka_unit_test(copied_texts_are_mended),
      cmocka_unit_test(tool_calls_come_whole),
      cmocka_unit_test(asked_to_come_back_it_does),
      cmocka_unit_test(not_for_ever_and_not_for_too_long),
      cmocka_unit_test(a_server_error_is_final_and_free),
      cmocka_unit_test(a_bad_answer_is_charged_at_the_bound),
      cmocka_unit_test(only_the_usage_of_the_end_counts),
      cmocka_unit_test(silence_is_a_time_out),
      cmocka_unit_test(nobody_there_is_tried_again_and_free),
      cmocka_unit_test(a_silent_stream_is_a_time_out),
      cmocka_unit_test(cancelled_while_it_hangs),
      cmocka_unit_test(cancelled_before_it_is_sent_is_free),
      cmocka_unit_test(what_has_no_price_or_key_is_refused),
      cmocka_unit_test(an_image_cannot_be_bounded),
      cmocka_unit_test(a_budget_is_never_overspent),
      cmocka_unit_test(providers_are_checked_settings),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
