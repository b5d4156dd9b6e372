/* A stage answered by an OpenAI-compatible provider: one POST, its answer whole or as server-sent events, and what can go wrong with it.
 *
 * Trying again is safe only when the provider cannot have begun: no byte of the request reached it, or it answered 429 or 503 and said when to come back.
 * Everything after the first byte of an answer is final.
 *
 * Money: the reserve covers every attempt; refused attempts cost nothing. An answer with usage costs its usage by the price table; what a stream tells before
 * every choice has finished is no more than a count on the way. An answer without usage, or a request that broke off after it was sent, is charged the bound
 * of one attempt: the provider may have done all the work.
 *
 * All functions run on the gateway's loop, but for begin, which may run on the caller's thread and only builds the request. */
#include "gateway/live.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
  MAX_ERROR_BODY = 64 << 10,
  MAX_ANSWER_BODY = 64 << 20,
  MAX_SSE_EVENT = 8 << 20,
  DEFAULT_MAX_TOKENS = 4096, /* always sent, so that the cost is bounded */
  MAX_TOOL_CALLS = 128,
  FIRST_BACKOFF_MS = 250,
};

/* A tool call that arrives in pieces. */
typedef struct tool_pieces {
  pst_buf id, name, arguments;
} tool_pieces;

typedef struct upstream_choice {
  tool_pieces *tools;
  size_t n_tools, capacity;
  pst_engine_finish finish;
} upstream_choice;

struct pst_gateway_upstream {
  pst_gateway_live *live;
  pst_buf url, authorization, body;
  const char *provider, *model; /* the call's arena */
  bool stream;
  pst_store_price price;
  int64_t attempt_bound_nusd;
  int64_t deadline_us;
  int attempt;
  /* the attempt in flight */
  pst_net_call *call;
  pst_net_timer *timer; /* to try again */
  int status;
  int retry_after_s; /* -1: not told */
  bool sse_open, is_sse, said_done, said_anything;
  pst_wire_sse sse;
  pst_buf answer;  /* the whole answer, or an error's body */
  pst_error error; /* of a callback that refused to go on */
  int64_t sent_us;
  /* the answer */
  bool has_usage; /* the end's */
  pst_wire_usage usage;
  upstream_choice choices[PST_GATEWAY_MAX_N];
};

static int no_memory(pst_error *err) {
  return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a provider's answer");
}

static void forget_answer(pst_gateway_upstream *u) {
  if (u->sse_open) pst_wire_sse_done(&u->sse);
  u->sse_open = u->is_sse = u->said_done = false;
  u->status = 0;
  u->retry_after_s = -1;
  pst_buf_clear(&u->answer);
}

void pst_gateway_upstream_free(pst_gateway_upstream *u) {
  if (!u) return;
  forget_answer(u);
  pst_net_timer_free(u->timer);
  for (size_t i = 0; i < PST_GATEWAY_MAX_N; i++) {
    for (size_t t = 0; t < u->choices[i].n_tools; t++) {
      pst_buf_done(&u->choices[i].tools[t].id);
      pst_buf_done(&u->choices[i].tools[t].name);
      pst_buf_done(&u->choices[i].tools[t].arguments);
    }
    pst_free(u->choices[i].tools);
  }
  pst_buf_done(&u->url);
  pst_buf_done(&u->authorization);
  pst_buf_done(&u->body);
  pst_buf_done(&u->answer);
  pst_free(u);
}

/* ---- the request ---------------------------------------------------------------------------------------------------------- */

/* The request's own sampling, and the leaf's where it says nothing. */
static void put_sampling(const pst_gateway_live *live, pst_wire_request *q) {
  const pst_gateway_overrides *set = &live->set;
  pst_engine_sampling s = pst_gateway_stage_sampling(live), usual = pst_engine_sampling_default();
  bool leaf = live->leaf != NULL;
  q->has_temperature = leaf || set->has_temperature;
  q->temperature = (double)s.temperature;
  q->has_top_p = set->has_top_p || (leaf && s.top_p < usual.top_p);
  q->top_p = (double)s.top_p;
  q->has_top_k = set->has_top_k || (leaf && s.top_k != usual.top_k);
  q->top_k = s.top_k;
  q->has_min_p = set->has_min_p || (leaf && s.min_p > usual.min_p);
  q->min_p = (double)s.min_p;
  bool given = set->has_penalties || leaf;
  q->has_repetition_penalty = given && fabsf(s.repetition_penalty - 1) > 1e-6f;
  q->repetition_penalty = (double)s.repetition_penalty;
  q->has_frequency_penalty = given && fabsf(s.frequency_penalty) > 1e-6f;
  q->frequency_penalty = (double)s.frequency_penalty;
  q->has_presence_penalty = given && fabsf(s.presence_penalty) > 1e-6f;
  q->presence_penalty = (double)s.presence_penalty;
  q->has_seed = set->has_seed || (leaf && live->leaf->sampling.seed);
  q->seed = s.seed & INT64_MAX;
  q->n = live->n;
  q->n_logprobs = set->n_logprobs;
}

static int put_lists(pst_gateway_live *live, pst_wire_request *q) {
  const pst_gateway_overrides *set = &live->set;
  size_t n_layout = live->has_prompt ? live->prompt.n_stop : 0, n = n_layout + set->n_stop;
  pst_str *stop = pst_arena_calloc(live->arena, n + 1, sizeof *stop);
  pst_wire_bias *bias = pst_arena_calloc(live->arena, set->n_bias + 1, sizeof *bias);
  if (!stop || !bias) return PST_E_NOMEM;
  for (size_t i = 0; i < n; i++) stop[i] = i < n_layout ? live->prompt.stop[i] : set->stop[i - n_layout];
  for (size_t i = 0; i < set->n_bias; i++) bias[i] = (pst_wire_bias){set->bias[i].token, set->bias[i].bias};
  q->has_stop = n > 0;
  q->stop = stop;
  q->n_stop = n;
  q->bias = bias;
  q->n_bias = set->n_bias;
  return 0;
}

/* What is not text has no length in tokens that could be bounded by its bytes. */
static int check_parts(const pst_chat *chat, pst_error *err) {
  for (size_t i = 0; i < chat->n_messages; i++)
    for (size_t p = 0; p < chat->messages[i].n_parts; p++)
      if (chat->messages[i].parts[p].kind != PST_CHAT_PART_TEXT)
        return pst_error_set(err, PST_E_UNSUPPORTED, "messages",
                             "message %zu has a part that is not text: its cost at a provider cannot be bounded", i);
  return 0;
}

static int write_body(pst_gateway_live *live, const pst_gateway_call *call, pst_gateway_upstream *u,
                      size_t *ret_n_parts, pst_error *err) {
  pst_wire_prompt prompt = {live->text, live->tokens, live->n_tokens};
  pst_wire_request q = {.parallel_tool_calls = true};
  if (call && call->request) q = *call->request;
  q.kind = live->leaf || live->kind == PST_GATEWAY_CHAT ? PST_WIRE_CHAT : PST_WIRE_TEXT;
  const pst_chat *chat = live->leaf ? live->prompt.chat : live->chat;
  if (q.kind == PST_WIRE_CHAT) {
    q.chat = *chat;
    int code = check_parts(chat, err);
    if (code) return code;
  } else {
    q.prompts = &prompt;
    q.n_prompts = 1;
  }
  put_sampling(live, &q);
  if (put_lists(live, &q)) return no_memory(err);
  live->max_tokens = live->set.has_max_tokens ? live->set.max_tokens
                     : live->leaf             ? live->leaf->max_tokens
                                              : DEFAULT_MAX_TOKENS;
  q.has_max_tokens = true;
  q.max_tokens = live->max_tokens;
  *ret_n_parts = 1 + (q.kind == PST_WIRE_CHAT ? q.chat.n_messages + pst_json_size(q.chat.tools) : live->n_tokens);
  return pst_wire_upstream_write(&q, pst_str_from(u->model), u->stream, &u->body, err);
}

static int find_address(pst_gateway_live *live, pst_gateway_upstream *u, pst_str provider, pst_error *err) {
  pst_gateway_provider p;
  int code = pst_gateway_provider_get(live->gateway->store, provider, &p, err);
  if (code) return code;
  const char *key = p.key_env[0] ? getenv(p.key_env) : "";
  if (!key || (p.key_env[0] && !*key)) {
    code = pst_error_set(err, PST_E_UPSTREAM, "provider",
                         "the environment variable %s, which holds the key of %s, is not set", p.key_env, u->provider);
  } else {
    bool chat = live->leaf || live->kind == PST_GATEWAY_CHAT;
    pst_buf_printf(&u->url, "%s/%s", p.base_url, chat ? "chat/completions" : "completions");
    if (*key) pst_buf_printf(&u->authorization, "Bearer %s", key);
    if (pst_buf_status(&u->url) || pst_buf_status(&u->authorization)) code = no_memory(err);
  }
  pst_gateway_provider_done(&p);
  return code;
}

static int find_bounds(pst_gateway_live *live, pst_gateway_upstream *u, pst_str provider, pst_str model, size_t n_parts,
                       pst_error *err) {
  int64_t n_output;
  int code = pst_store_price_get(live->gateway->store, provider, model, &u->price, err);
  if (code) return code;
  code = pst_store_nusd_mul(live->max_tokens, live->n, &n_output);
  if (!code) code = pst_gateway_cost_remote_bound(u->price, u->body.n, n_parts, n_output, &u->attempt_bound_nusd);
  if (!code) code = pst_store_nusd_mul(u->attempt_bound_nusd, 1 + live->gateway->upstream_retries, &live->bound_nusd);
  return code ? pst_error_set(err, code, NULL, "the cost of the call cannot be bounded in 64 bits") : 0;
}

int pst_gateway_remote_begin(pst_gateway_live *live, const pst_gateway_call *call, pst_str provider, pst_str model,
                             pst_error *err) {
  pst_gateway_upstream *u = pst_calloc(1, sizeof *u);
  size_t n_parts = 0;
  if (!u) return no_memory(err);
  live->upstream = u;
  u->live = live;
  u->retry_after_s = -1;
  u->provider = pst_arena_strndup(live->arena, provider.data, provider.n);
  u->model = pst_arena_strndup(live->arena, model.data, model.n);
  u->stream = live->stream;
  if (!u->provider || !u->model) return no_memory(err);
  live->target = u->provider;
  live->model = u->model;
  int code = live->leaf ? pst_gateway_stage_prompt(live, err) : 0;
  if (!code) code = find_address(live, u, provider, err);
  if (!code) code = write_body(live, call, u, &n_parts, err);
  if (!code) code = find_bounds(live, u, provider, model, n_parts, err);
  live->chat = NULL; /* the caller's */
  live->text = (pst_str){NULL, 0};
  live->tokens = NULL;
  return code ? code : pst_gateway_stage_reserve(live, err);
}

/* ---- the answer -------------------------------------------------------------------------------------------------------------- */

static int take_tool_pieces(upstream_choice *c, const pst_wire_reply_choice *piece, pst_error *err) {
  for (size_t i = 0; i < piece->n_tool_calls; i++) {
    const pst_chat_tool_call *from = &piece->tool_calls[i];
    int index = piece->tool_call_index ? piece->tool_call_index[i] : (int)i;
    if (index < 0 || index >= MAX_TOOL_CALLS)
      return pst_error_set(err, PST_E_UPSTREAM, NULL, "the provider's answer has a tool call with the index %d", index);
    size_t need = (size_t)index + 1;
    if (pst_array_reserve((void **)&c->tools, &c->capacity, need, sizeof *c->tools)) return no_memory(err);
    for (; c->n_tools < need; c->n_tools++)
      c->tools[c->n_tools] = (tool_pieces){PST_BUF_INIT, PST_BUF_INIT, PST_BUF_INIT};
    tool_pieces *to = &c->tools[index];
    if (to->id.n == 0) pst_buf_append_str(&to->id, from->id);
    pst_buf_append_str(&to->name, from->name);
    pst_buf_append_str(&to->arguments, from->arguments);
    if (pst_buf_status(&to->id) || pst_buf_status(&to->name) || pst_buf_status(&to->arguments)) return no_memory(err);
  }
  return 0;
}

/* The text goes with the last of the tokens that wrote it. */
static void give_tokens(pst_gateway_live *live, const pst_wire_reply_choice *c) {
  pst_str tops[20];
  pst_engine_top ids[20];
  for (size_t i = 0; i < c->n_tokens; i++) {
    const pst_wire_token *t = &c->tokens[i];
    size_t n = PST_MIN(t->n_top, PST_ARRAY_LEN(tops));
    for (size_t k = 0; k < n; k++) {
      tops[k] = t->top[k].bytes;
      ids[k] = (pst_engine_top){-1, (float)t->top[k].logprob};
    }
    pst_str text = i + 1 == c->n_tokens ? c->text : (pst_str){"", 0};
    pst_engine_event token = {
        .token = -1, .text = text, .token_text = t->bytes, .logprob = (float)t->logprob, .top = ids, .n_top = n};
    pst_gateway_live_upstream_token(live, c->index, text, &token, tops);
  }
}

static int take_choice(pst_gateway_upstream *u, const pst_wire_reply_choice *c, pst_error *err) {
  pst_gateway_live *live = u->live;
  if (c->index >= (uint32_t)live->n)
    return pst_error_set(err, PST_E_UPSTREAM, NULL, "the provider's answer has a choice %u of %d", c->index, live->n);
  upstream_choice *mine = &u->choices[c->index];
  int code = take_tool_pieces(mine, c, err);
  if (code) return code;
  if ((c->text.n || c->n_tool_calls || c->n_tokens) && !u->said_anything) {
    u->said_anything = true;
    live->stage_first_us = pst_clock_us() - live->stage_start_us;
  }
  if (c->n_tokens && live->set.n_logprobs >= 0)
    give_tokens(live, c);
  else if (c->text.n)
    pst_gateway_live_text(live, c->index, c->text, NULL);
  if (c->finish == PST_WIRE_FINISH_NONE || mine->finish != PST_ENGINE_FINISH_NONE) return 0;
  mine->finish = c->finish == PST_WIRE_FINISH_LENGTH ? PST_ENGINE_FINISH_LENGTH : PST_ENGINE_FINISH_STOP;
  pst_chat_tool_call *calls = pst_arena_calloc(live->arena, mine->n_tools + 1, sizeof *calls);
  if (!calls) return no_memory(err);
  for (size_t i = 0; i < mine->n_tools; i++)
    calls[i] = (pst_chat_tool_call){pst_buf_str(&mine->tools[i].id), pst_buf_str(&mine->tools[i].name),
                                    pst_buf_str(&mine->tools[i].arguments), NULL};
  pst_gateway_live_finish(live, c->index, mine->finish, calls, mine->n_tools);
  return 0;
}

static bool has_finished(const pst_gateway_upstream *u) {
  for (int i = 0; i < u->live->n; i++)
    if (u->choices[i].finish == PST_ENGINE_FINISH_NONE) return false;
  return true;
}

static int take_reply(pst_gateway_upstream *u, bool chunk, pst_str text, pst_error *err) {
  pst_wire_reply reply = {0};
  bool chat = u->live->leaf || u->live->kind == PST_GATEWAY_CHAT;
  int code = pst_wire_reply_parse(chat ? PST_WIRE_CHAT : PST_WIRE_TEXT, chunk, text, &reply, err);
  if (code) return code;
  for (size_t i = 0; i < reply.n_choices && !code; i++) code = take_choice(u, &reply.choices[i], err);
  if (reply.has_usage && (!chunk || has_finished(u))) {
    u->has_usage = true;
    u->usage = reply.usage;
  }
  pst_wire_reply_done(&reply);
  return code;
}

static int on_sse(void *user, const pst_wire_sse_event *event) {
  pst_gateway_upstream *u = user;
  if (u->said_done || event->data.n == 0) return 0;
  if (pst_str_is(event->data, "[DONE]")) {
    u->said_done = true;
    return 0;
  }
  return take_reply(u, true, event->data, &u->error);
}

static int on_head(void *user, const pst_net_response_head *head) {
  pst_gateway_upstream *u = user;
  int64_t seconds;
  u->status = head->status;
  pst_str retry = pst_net_header_find(head->headers, head->n_headers, "retry-after");
  if (retry.data && pst_parse_i64(retry, 0, 86400, &seconds) == 0) u->retry_after_s = (int)seconds;
  pst_str type = pst_net_header_find(head->headers, head->n_headers, "content-type");
  u->is_sse = head->status == 200 && pst_str_starts(type, PST_STR("text/event-stream"));
  if (u->is_sse) pst_wire_sse_init(&u->sse, MAX_SSE_EVENT);
  u->sse_open = u->is_sse;
  return 0;
}

static int on_body(void *user, pst_str data) {
  pst_gateway_upstream *u = user;
  if (u->is_sse) {
    int code = pst_wire_sse_feed(&u->sse, data, on_sse, u);
    if (code && !u->error.code)
      pst_error_set(&u->error, PST_E_UPSTREAM, NULL, "the provider's stream has an event too long to be read");
    return code;
  }
  size_t room = u->status == 200 ? MAX_ANSWER_BODY : MAX_ERROR_BODY;
  room -= PST_MIN(room, u->answer.n);
  pst_buf_append(&u->answer, data.data, PST_MIN(room, data.n));
  return pst_buf_status(&u->answer);
}

/* ---- the end ------------------------------------------------------------------------------------------------------------------- */

/* `sent`: the provider may have worked for us. */
static void over(pst_gateway_upstream *u, bool sent, const pst_error *error) {
  pst_gateway_live *live = u->live;
  int64_t cost = sent ? u->attempt_bound_nusd : 0;
  if (u->has_usage) {
    live->stage_prompt_tokens = (int)PST_MIN(u->usage.prompt_tokens, INT32_MAX);
    live->stage_cached = (int)PST_MIN(u->usage.cached_tokens, INT32_MAX);
    live->stage_completion = u->usage.completion_tokens;
    if (pst_store_price_cost(u->price, u->usage.prompt_tokens, u->usage.cached_tokens, u->usage.completion_tokens,
                             &cost))
      cost = u->attempt_bound_nusd;
  } else if (sent) {
    pst_log(PST_LOG_WARN, "request=%s event=no_usage provider=%s charged_nusd=%lld", live->completion_id, u->provider,
            (long long)cost);
  }
  live->http_status = error ? u->status : 0;
  if (error && u->retry_after_s > 0) live->retry_after_s = u->retry_after_s;
  pst_gateway_stage_over(live, cost, error);
}

static int64_t time_left_ms(const pst_gateway_upstream *u) { return (u->deadline_us - pst_clock_us()) / 1000; }

static void start_attempt(void *arg);

/* Tries again after a pause; false: no attempt or no time is left. */
static bool try_again(pst_gateway_upstream *u, int64_t pause_ms, const char *why) {
  pst_gateway *g = u->live->gateway;
  if (u->attempt > g->upstream_retries || pause_ms >= time_left_ms(u)) return false;
  if (!u->timer && pst_net_timer_create(g->loop, start_attempt, u, &u->timer)) return false;
  pst_log(PST_LOG_INFO, "request=%s event=upstream_retry provider=%s attempt=%d pause_ms=%lld reason=\"%s\"",
          u->live->completion_id, u->provider, u->attempt, (long long)pause_ms, why);
  forget_answer(u);
  u->error = (pst_error)PST_ERROR_INIT;
  pst_net_timer_set(u->timer, pause_ms);
  return true;
}

static void failed_on_the_way(pst_gateway_upstream *u, const pst_net_call_result *r) {
  pst_error error = PST_ERROR_INIT;
  if (!r->connected && try_again(u, (int64_t)FIRST_BACKOFF_MS << (u->attempt - 1), r->error->message)) return;
  if (u->error.code)
    error = u->error;
  else
    pst_error_set(&error, r->code == PST_E_TIMEOUT || r->code == PST_E_NOMEM ? r->code : PST_E_UPSTREAM, u->provider,
                  "the provider could not be %s: %s", r->connected ? "heard to the end" : "reached", r->error->message);
  over(u, r->connected && (u->status == 0 || u->status == 200), &error);
}

static void refused(pst_gateway_upstream *u) {
  pst_error error = PST_ERROR_INIT;
  bool later = (u->status == 429 || u->status == 503) && u->retry_after_s >= 0;
  if (later && try_again(u, (int64_t)u->retry_after_s * 1000, "asked to come back later")) return;
  pst_wire_upstream_error(u->status, pst_buf_str(&u->answer), &error);
  over(u, false, &error);
}

static void answered(pst_gateway_upstream *u) {
  pst_error error = PST_ERROR_INIT;
  int code = 0;
  if (!u->is_sse) code = take_reply(u, false, pst_buf_str(&u->answer), &error);
  if (!code && !has_finished(u))
    code = pst_error_set(&error, PST_E_UPSTREAM, u->provider,
                         u->is_sse ? "the provider's stream broke off before the answer ended"
                                   : "the provider gave fewer answers than asked for");
  over(u, true, code ? &error : NULL);
}

static void on_done(void *user, const pst_net_call_result *r) {
  pst_gateway_upstream *u = user;
  u->call = NULL;
  if (r->code)
    failed_on_the_way(u, r);
  else if (r->status == 200)
    answered(u);
  else
    refused(u);
}

static void start_attempt(void *arg) {
  pst_gateway_upstream *u = arg;
  pst_gateway *g = u->live->gateway;
  pst_error error = PST_ERROR_INIT;
  pst_net_header headers[3] = {
      {PST_STR("content-type"), PST_STR("application/json")},
      {PST_STR("accept"), u->stream ? PST_STR("text/event-stream") : PST_STR("application/json")},
      {PST_STR("authorization"), pst_buf_str(&u->authorization)}};
  pst_net_call_options o = pst_net_call_options_default();
  u->attempt++;
  o.url = u->url.data;
  o.headers = headers;
  o.n_headers = u->authorization.n ? 3 : 2;
  o.body = pst_buf_str(&u->body);
  o.connect_timeout_ms = g->upstream_connect_ms;
  o.total_timeout_ms = PST_MAX(time_left_ms(u), 1);
  if (u->stream)
    o.first_byte_timeout_ms = o.idle_timeout_ms =
        g->upstream_idle_ms; /* a whole answer is silent while it is written */
  o.on_head = on_head;
  o.on_body = on_body;
  o.on_done = on_done;
  o.user = u;
  if (pst_net_client_start(g->client, &o, &u->call, &error)) over(u, false, &error);
}

void pst_gateway_remote_start(void *arg) {
  pst_gateway_live *live = arg;
  pst_gateway_upstream *u = live->upstream;
  u->deadline_us = pst_clock_us() + (int64_t)live->gateway->upstream_total_ms * 1000;
  if (pst_gateway_live_is_cancelled(live)) {
    pst_error error = PST_ERROR_INIT;
    pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
    over(u, false, &error);
    return;
  }
  start_attempt(u);
}

void pst_gateway_remote_cancel(pst_gateway_live *live) {
  pst_gateway_upstream *u = live->upstream;
  pst_error error = PST_ERROR_INIT;
  if (u->deadline_us == 0) return; /* its start is posted, and will see the flag */
  bool sent = u->call && pst_net_call_is_begun(u->call);
  if (u->call) pst_net_call_cancel(u->call);
  u->call = NULL;
  pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
  over(u, sent, &error);
}
