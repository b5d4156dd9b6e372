/* /v1/chat/completions and /v1/completions: from the body to gateway calls, and from their events to the answer, whole or streamed.
 *
 * A request with several prompts is several gateway calls, its parts; choice c of part p is choice p * n + c of the answer. The head of a streamed
 * answer is sent with the first text, so that a call that fails before has a status of its own; what fails later ends the stream with an error event.
 *
 * Back-pressure: when the client's queue is full, the rest of the events stays packed in the inbox until it has drained; a client that lets more than
 * PST_SERVER_MAX_WAITING gather is cut. */
#include <inttypes.h>
#include <string.h>
#include <strings.h>

#include "server/inbox.h"
#include "server/server.h"

typedef struct part {
  pst_server_call *call;
  uint32_t index;
  uint64_t id; /* of the gateway's call */
  int64_t started_us;
  bool ended;
} part;

typedef struct choice {
  pst_buf text; /* whole answers: all of it; streams: what is not yet written */
  pst_wire_token *tokens;
  size_t n_tokens, tokens_capacity;
  const pst_chat_tool_call *tool_calls;
  size_t n_tool_calls;
  size_t characters; /* streams: written before */
  pst_wire_finish finish;
  int64_t last_token_us;
  bool begun; /* streams: its first chunk is out */
} choice;

struct pst_server_completion {
  pst_server_call *call;
  pst_wire_request request;
  pst_str model; /* what the gateway is asked for */
  pst_store_consent consent;
  pst_str subject;
  part *parts;
  size_t n_parts, n_started;
  choice *choices; /* n_parts * request.n */
  size_t n_choices;
  pst_server_inbox inbox;
  bool has_inbox;

  /* Loop: */
  size_t n_ended;
  pst_buf taken, scratch;
  size_t taken_at;
  bool head_sent, done, paused;
  int64_t created;
  char id[64];
  pst_wire_usage usage;
  int64_t cost_nusd, ttft_us;
  char target[64];
  pst_gateway_cache_use cache;
};

/* ---- worker: from the body to calls ---------------------------------------------------------------------------------------- */

static void on_event(void *user, const pst_gateway_event *event) {
  part *p = user;
  pst_server_inbox_put(&p->call->completion->inbox, p->index, event);
}

static void on_inbox(void *arg);

static void fill_overrides(const pst_wire_request *q, pst_arena *arena, pst_gateway_overrides *set) {
  *set = (pst_gateway_overrides){
      .has_temperature = q->has_temperature,
      .has_top_k = q->has_top_k,
      .has_top_p = q->has_top_p,
      .has_min_p = q->has_min_p,
      .has_seed = q->has_seed,
      .has_max_tokens = q->has_max_tokens,
      .has_stop = q->has_stop,
      .has_penalties = q->has_presence_penalty || q->has_frequency_penalty || q->has_repetition_penalty,
      .temperature = (float)q->temperature,
      .top_p = PST_MAX((float)q->top_p, 1e-6f), /* 0, which the API allows: the likeliest token alone */
      .min_p = (float)q->min_p,
      .repetition_penalty = q->has_repetition_penalty ? (float)q->repetition_penalty : 1.0f,
      .frequency_penalty = (float)q->frequency_penalty,
      .presence_penalty = (float)q->presence_penalty,
      .top_k = q->top_k,
      .max_tokens = q->max_tokens,
      .seed = q->seed,
      .stop = q->stop,
      .n_stop = q->n_stop,
      .n_logprobs = q->n_logprobs,
  };
  pst_engine_bias *bias = q->n_bias ? pst_arena_calloc(arena, q->n_bias, sizeof *bias) : NULL;
  if (!bias) return;
  for (size_t i = 0; i < q->n_bias; i++) bias[i] = (pst_engine_bias){q->bias[i].token, q->bias[i].bias};
  set->bias = bias;
  set->n_bias = q->n_bias;
}

/* The model that a served name stands for; NULL: it is none. */
static const char *served_as(const pst_server *server, pst_str name) {
  if (pst_str_is(name, "default") && server->options.default_model) name = pst_str_from(server->options.default_model);
  for (size_t i = 0; i < server->options.n_aliases; i++)
    if (pst_str_is(name, server->options.aliases[i].id)) return server->options.aliases[i].name;
  return NULL;
}

/* Where "NAME:ADAPTER" has its colon; 0: nowhere. */
static size_t colon_of(pst_str name) {
  size_t n = name.n;
  while (n > 0 && name.data[n - 1] != ':') n--;
  return n > 1 && n < name.n ? n - 1 : 0;
}

pst_str pst_server_resolve(const pst_server_call *call, pst_str name) {
  const pst_server *server = call->server;
  const char *whole = served_as(server, name);
  size_t colon = colon_of(name);
  if (whole) return pst_str_from(whole);
  if (pst_str_is(name, "default") && server->options.default_model) return pst_str_from(server->options.default_model);
  const char *base = colon ? served_as(server, (pst_str){name.data, colon}) : NULL;
  const char *both =
      base ? pst_arena_printf(call->arena, "%s%.*s", base, (int)(name.n - colon), name.data + colon) : NULL;
  return both ? pst_str_from(both) : name; /* the gateway takes no path from a user but those that were prepared */
}

void pst_server_model_label(const pst_server *server, pst_str model, char *ret_label, size_t n) {
  snprintf(ret_label, n, "%.*s", (int)PST_MIN(model.n, n - 1), model.data);
  for (size_t i = 0; i < server->options.n_aliases; i++)
    if (pst_str_is(model, server->options.aliases[i].name)) snprintf(ret_label, n, "%s", server->options.aliases[i].id);
}

/* Whether Cache-Control has that directive (RFC 9111, 5.2). */
static bool has_directive(pst_str header, const char *name) {
  size_t n = strlen(name);
  for (size_t at = 0; at < header.n;) {
    size_t end = PST_MIN(pst_str_find(header, PST_STR(","), at), header.n);
    pst_str one = pst_str_trim((pst_str){header.data + at, end - at});
    if (one.n == n && !strncasecmp(one.data, name, n)) return true;
    at = end + 1;
  }
  return false;
}

static int start_part(pst_server_completion *c, part *p, pst_str model, const pst_gateway_overrides *set,
                      pst_error *err) {
  const pst_wire_request *q = &c->request;
  const pst_server_call *call = c->call;
  bool chat = q->kind == PST_WIRE_CHAT;
  pst_gateway_call g = {
      .kind = chat ? PST_GATEWAY_CHAT : PST_GATEWAY_TEXT,
      .purpose = PST_STORE_PURPOSE_USER,
      .key_id = call->key.id,
      .model = model,
      .chat = chat ? &q->chat : NULL,
      .n = q->n,
      .set = *set,
      .request = q,
      .stream = q->stream || q->n_logprobs >= 0, /* a token's log-probabilities come with its own event */
      .fresh = has_directive(call->cache_control, "no-cache"),
      .no_store = has_directive(call->cache_control, "no-store"),
      .consent = c->consent,
      .subject = c->subject,
      .callback = on_event,
      .user = p,
  };
  if (!chat) {
    g.text = q->prompts[p->index].text;
    g.tokens = q->prompts[p->index].tokens;
    g.n_tokens = q->prompts[p->index].n_tokens;
  }
  p->started_us = pst_clock_us();
  return pst_gateway_chat(call->server->gateway, &g, &p->id, err);
}

/* Tries the name of the request, then the key's own workload. */
static int start_first(pst_server_completion *c, const pst_gateway_overrides *set, pst_error *err) {
  pst_str asked = c->request.model;
  c->model = pst_server_resolve(c->call, asked);
  int code = start_part(c, &c->parts[0], c->model, set, err);
  if (code == PST_E_NOT_FOUND && c->call->key.workload[0] && !pst_str_is(asked, c->call->key.workload)) {
    c->model = pst_str_from(c->call->key.workload);
    code = start_part(c, &c->parts[0], c->model, set, err);
  }
  if (code == PST_E_NOT_FOUND && !strcmp(err->place, "adapter"))
    return pst_error_set(err, code, "model", "'%.*s': the model has no such adapter; GET /v1/models lists those it has",
                         (int)PST_MIN(asked.n, (size_t)200), asked.data);
  if (code == PST_E_NOT_FOUND)
    return pst_error_set(err, code, "model", "the model '%.*s' does not exist; GET /v1/models lists those that do",
                         (int)PST_MIN(asked.n, (size_t)200), asked.data);
  return code;
}

static void fail_start(pst_server_call *call, int code, pst_error *err) {
  const pst_server_completion *c = call->completion;
  err->code = code;
  if (code == PST_E_LIMIT && strcmp(err->place, "n")) {
    pst_wire_error e = {400, "invalid_request_error", "context_length_exceeded", 0};
    pst_server_fail(call, &e, err->message, c->request.kind == PST_WIRE_CHAT ? "messages" : "prompt");
    return;
  }
  pst_server_fail_code(call, err);
}

static int make_completion(pst_server_call *call, pst_wire_kind kind, pst_error *err) {
  pst_server_completion *c = pst_calloc(1, sizeof *c);
  if (!c) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the request");
  call->completion = c;
  c->call = call;
  c->ttft_us = -1;
  c->created = pst_clock_unix_ms() / 1000;
  int code = pst_wire_request_parse(kind, call->body, &c->request, err);
  if (!code)
    code = pst_server_consent(call, c->request.safety_identifier, c->request.user, &c->consent, &c->subject, err);
  if (code) return code;
  c->n_parts = kind == PST_WIRE_CHAT ? 1 : c->request.n_prompts;
  c->n_choices = c->n_parts * (size_t)c->request.n;
  c->parts = pst_calloc(c->n_parts, sizeof *c->parts);
  c->choices = pst_calloc(c->n_choices, sizeof *c->choices);
  code = pst_server_inbox_init(&c->inbox, call->server->loop, on_inbox, c);
  if (!code) c->has_inbox = true;
  if (!c->parts || !c->choices || code || pst_buf_reserve(&c->taken, 1024))
    return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the request");
  for (size_t i = 0; i < c->n_parts; i++) c->parts[i] = (part){.call = call, .index = (uint32_t)i};
  return 0;
}

static void complete_work(pst_server_call *call, pst_wire_kind kind) {
  pst_error err = PST_ERROR_INIT;
  int code = make_completion(call, kind, &err);
  if (code) {
    pst_server_fail_code(call, &err);
    return;
  }
  pst_server_completion *c = call->completion;
  pst_gateway_overrides set;
  fill_overrides(&c->request, call->arena, &set);
  code = set.n_bias == c->request.n_bias ? start_first(c, &set, &err)
                                         : pst_error_set(&err, PST_E_NOMEM, NULL, "out of memory for the request");
  if (!code) c->n_started = 1;
  while (!code && c->n_started < c->n_parts && !atomic_load(&call->gone)) {
    code = start_part(c, &c->parts[c->n_started], c->model, &set, &err);
    if (!code) c->n_started++;
  }
  if (code) fail_start(call, code, &err);
}

void pst_server_chat_work(pst_server_call *call) { complete_work(call, PST_WIRE_CHAT); }
void pst_server_text_work(pst_server_call *call) { complete_work(call, PST_WIRE_TEXT); }

/* ---- loop: writing --------------------------------------------------------------------------------------------------------- */

static void cancel_parts(pst_server_completion *c) {
  for (size_t i = 0; i < c->n_started; i++)
    if (!c->parts[i].ended) pst_gateway_cancel(c->call->server->gateway, c->parts[i].id);
}

static pst_wire_answer answer_of(const pst_server_completion *c) {
  return (pst_wire_answer){.kind = c->request.kind,
                           .id = pst_str_from(c->id),
                           .created = c->created,
                           .model = c->request.model,
                           .include_usage = c->request.include_usage};
}

static void send_head(pst_server_completion *c) {
  if (c->head_sent || !c->call->x) return;
  const char *cache = pst_server_completion_cache(c);
  pst_net_header headers[] = {{PST_STR("content-type"), PST_STR("text/event-stream; charset=utf-8")},
                              {PST_STR("cache-control"), PST_STR("no-cache")},
                              {PST_STR("x-request-id"), pst_str_from(c->id)},
                              {PST_STR("x-penstock-cache"), pst_str_from(cache)}};
  c->head_sent = true;
  (void)pst_net_respond_begin(c->call->x, 200, headers,
                              PST_ARRAY_LEN(headers) - !cache); /* a failure comes as on_gone */
}

/* Hands what scratch holds to the client's queue. */
static void send_scratch(pst_server_completion *c) {
  pst_server_call *call = c->call;
  if (!call->x || c->scratch.n == 0) return;
  if (c->scratch.failed) {
    c->done = true;
    pst_net_exchange *x = call->x;
    pst_server_answered(call, 500);
    pst_net_respond_abort(x);
    cancel_parts(c);
    return;
  }
  send_head(c);
  if (pst_net_respond_write(call->x, pst_buf_str(&c->scratch)) == 1) c->paused = true;
  pst_buf_clear(&c->scratch);
}

/* One chunk of a choice: its waiting text, the tokens of a record if there is one. */
static void write_chunk(pst_server_completion *c, size_t i, const pst_server_record *r) {
  choice *s = &c->choices[i];
  pst_wire_token token = {0};
  bool with_token = r && r->has_token && c->request.n_logprobs >= 0;
  if (with_token) token = (pst_wire_token){r->token_text, r->logprob, r->top, r->n_top};
  pst_wire_choice out = {
      .index = (uint32_t)i,
      .text = pst_buf_str(&s->text),
      .tool_calls = r ? r->tool_calls : NULL,
      .n_tool_calls = r ? r->n_tool_calls : 0,
      .finish = s->finish,
      .has_logprobs = with_token,
      .tokens = &token,
      .n_tokens = with_token ? 1 : 0,
      .text_offset = s->characters,
  };
  pst_wire_answer chunk = answer_of(c);
  chunk.choices = &out;
  chunk.n_choices = 1;
  chunk.first = !s->begun;
  s->begun = true;
  pst_wire_chunk_write(&chunk, &c->scratch);
  s->characters += pst_wire_characters(with_token ? token.bytes : out.text);
  pst_buf_clear(&s->text);
}

static void flush_choices(pst_server_completion *c) {
  if (!c->request.stream) return;
  for (size_t i = 0; i < c->n_choices; i++)
    if (c->choices[i].text.n) write_chunk(c, i, NULL);
  send_scratch(c);
}

static void end_stream(pst_server_completion *c) {
  flush_choices(c);
  if (!c->call->x) return;
  if (c->request.include_usage) {
    pst_wire_answer chunk = answer_of(c);
    chunk.usage = &c->usage;
    pst_wire_chunk_write(&chunk, &c->scratch);
  }
  pst_wire_stream_end(&c->scratch);
  send_scratch(c);
  pst_net_exchange *x = c->call->x;
  if (!x) return;
  c->done = true;
  pst_net_respond_end(x);
  pst_server_answered(c->call, 200);
}

static void end_whole(pst_server_completion *c) {
  pst_server_call *call = c->call;
  pst_wire_choice *list = pst_arena_calloc(call->arena, c->n_choices, sizeof *list);
  bool ok = list != NULL;
  for (size_t i = 0; i < c->n_choices && ok; i++) {
    const choice *s = &c->choices[i];
    list[i] = (pst_wire_choice){
        .index = (uint32_t)i,
        .text = pst_buf_str(&s->text),
        .tool_calls = s->tool_calls,
        .n_tool_calls = s->n_tool_calls,
        .finish = s->finish,
        .has_logprobs = c->request.n_logprobs >= 0 && s->n_tokens,
        .tokens = s->tokens,
        .n_tokens = s->n_tokens,
    };
    ok = !s->text.failed;
  }
  c->done = true;
  if (!ok) {
    pst_wire_error e = pst_wire_error_from(PST_E_NOMEM);
    pst_server_fail(call, &e, "out of memory for the answer", NULL);
    pst_server_reply_plain(call);
    return;
  }
  pst_wire_answer answer = answer_of(c);
  answer.choices = list;
  answer.n_choices = c->n_choices;
  answer.usage = &c->usage;
  pst_buf_clear(&call->out);
  pst_wire_answer_write(&answer, &call->out);
  call->status = 200;
  pst_server_reply_plain(call);
}

/* call->status and call->out hold the error. */
static void answer_error(pst_server_completion *c) {
  pst_server_call *call = c->call;
  c->done = true;
  cancel_parts(c);
  if (!call->x) return;
  if (!c->head_sent) {
    pst_server_reply_plain(call);
    return;
  }
  flush_choices(c);
  pst_net_exchange *x = call->x;
  if (!x) return;
  pst_buf_puts(&c->scratch, "data: ");
  pst_buf_append_str(&c->scratch, pst_buf_str(&call->out));
  pst_buf_puts(&c->scratch, "\n\n");
  pst_wire_stream_end(&c->scratch);
  (void)pst_net_respond_write(x, pst_buf_str(&c->scratch));
  pst_net_respond_end(x);
  pst_server_answered(call, call->status);
}

/* ---- loop: events ---------------------------------------------------------------------------------------------------------- */

static pst_wire_finish finish_of(const pst_server_record *r) {
  switch (r->finish) {
  case PST_ENGINE_FINISH_NONE: return PST_WIRE_FINISH_NONE;
  case PST_ENGINE_FINISH_STOP: return r->n_tool_calls ? PST_WIRE_FINISH_TOOL_CALLS : PST_WIRE_FINISH_STOP;
  case PST_ENGINE_FINISH_LENGTH: return PST_WIRE_FINISH_LENGTH;
  default: return PST_WIRE_FINISH_NONE; /* cancelled, failed: the last event says why */
  }
}

static pst_str keep(pst_arena *arena, pst_str s) {
  char *text = pst_arena_strndup(arena, s.data, s.n);
  return (pst_str){text, text ? s.n : 0};
}

/* Of a whole answer: the token and what it calls outlive the taken buffer. */
static void keep_parts(pst_server_completion *c, choice *s, const pst_server_record *r) {
  pst_arena *arena = c->call->arena;
  if (r->n_tool_calls) {
    for (size_t i = 0; i < r->n_tool_calls; i++) {
      r->tool_calls[i].id = keep(arena, r->tool_calls[i].id);
      r->tool_calls[i].name = keep(arena, r->tool_calls[i].name);
      r->tool_calls[i].arguments = keep(arena, r->tool_calls[i].arguments);
    }
    s->tool_calls = r->tool_calls;
    s->n_tool_calls = r->n_tool_calls;
  }
  if (!r->has_token || c->request.n_logprobs < 0) return;
  pst_wire_top *top = pst_arena_calloc(arena, r->n_top + 1, sizeof *top);
  if (!top || pst_array_reserve((void **)&s->tokens, &s->tokens_capacity, s->n_tokens + 1, sizeof *s->tokens)) {
    s->text.failed = true;
    return;
  }
  for (size_t i = 0; i < r->n_top; i++) top[i] = (pst_wire_top){keep(arena, r->top[i].bytes), r->top[i].logprob};
  s->tokens[s->n_tokens++] = (pst_wire_token){keep(arena, r->token_text), r->logprob, top, r->n_top};
}

static void take_choice(pst_server_completion *c, const pst_server_record *r) {
  size_t i = (size_t)r->part * (size_t)c->request.n + r->choice;
  if (i >= c->n_choices || (r->last && !r->text.n && r->finish == PST_ENGINE_FINISH_NONE)) return;
  choice *s = &c->choices[i];
  if (r->text.n || r->has_token) {
    if (s->last_token_us && c->request.stream)
      pst_server_histogram_observe(&c->call->server->metrics.inter_token,
                                   (double)(r->time_us - s->last_token_us) / 1e6);
    s->last_token_us = r->time_us;
  }
  if (!c->call->x || c->done) return;
  pst_buf_append_str(&s->text, r->text);
  if (s->finish == PST_WIRE_FINISH_NONE) s->finish = finish_of(r);
  if (!c->request.stream) {
    keep_parts(c, s, r);
    return;
  }
  /* Text alone waits for the end of this batch: tokens that came together go out together. */
  bool token = r->has_token && c->request.n_logprobs >= 0;
  if (token || s->finish != PST_WIRE_FINISH_NONE || !s->begun) write_chunk(c, i, r);
}

static void take_last(pst_server_completion *c, const pst_server_record *r) {
  pst_server_call *call = c->call;
  part *p = &c->parts[r->part];
  char target[64], model[96];
  snprintf(target, sizeof target, "%.*s", (int)r->target.n, r->target.data);
  pst_server_model_label(call->server, r->model, model, sizeof model);
  p->ended = true;
  c->n_ended++;
  c->usage.prompt_tokens += r->prompt_tokens;
  c->usage.completion_tokens += r->completion_tokens;
  c->usage.cached_tokens += r->cached_tokens;
  c->cost_nusd += r->cost_nusd;
  snprintf(c->target, sizeof c->target, "%s", target);
  int64_t before = p->started_us - call->received_us;
  pst_server_call_figures figures = {
      .target = target,
      .model = model,
      .prompt_tokens = r->prompt_tokens,
      .cached_tokens = r->cached_tokens,
      .completion_tokens = r->completion_tokens,
      .cost_nusd = r->cost_nusd,
      .cache = r->cache,
      .ttft_us = r->ttft_us < 0 ? -1 : before + r->ttft_us,
      .queued_us = r->queued_us,
      .total_us = r->total_us < 0 ? -1 : before + r->total_us,
  };
  if (c->ttft_us < 0) c->ttft_us = figures.ttft_us;
  pst_server_metrics_call(&call->server->metrics, &figures);
  if (!r->code || c->done || !call->x) return;
  pst_error err = PST_ERROR_INIT;
  pst_error_set(&err, r->code, NULL, "%.*s", (int)r->error_message.n, r->error_message.data);
  snprintf(err.place, sizeof err.place, "%.*s", (int)r->error_place.n, r->error_place.data);
  if (r->http_status)
    pst_server_fail_upstream(call, &err, target, r->http_status);
  else
    pst_server_fail_code(call, &err);
  if (r->retry_after_s && call->retry_after_s) call->retry_after_s = r->retry_after_s;
  answer_error(c);
}

static void too_slow(pst_server_completion *c) {
  pst_server_call *call = c->call;
  if (!call->x) return;
  pst_net_exchange *x = call->x;
  call->server->metrics.n_too_slow++;
  c->done = true;
  pst_server_answered(call, 499);
  pst_net_respond_abort(x);
  cancel_parts(c);
}

static void process(pst_server_completion *c) {
  pst_server_call *call = c->call;
  pst_server_record r;
  while (!c->paused || !call->x) {
    if (c->taken_at >= c->taken.n) {
      c->taken_at = 0;
      if (pst_server_inbox_take(&c->inbox, &c->taken)) too_slow(c);
      if (c->taken.n == 0) break;
    }
    while ((!c->paused || !call->x) && pst_server_inbox_next(pst_buf_str(&c->taken), &c->taken_at, call->arena, &r)) {
      if (!c->id[0]) snprintf(c->id, sizeof c->id, "%.*s", (int)r.completion_id.n, r.completion_id.data);
      c->cache = r.cache;
      take_choice(c, &r);
      if (r.last && r.part < c->n_parts) take_last(c, &r);
      if (c->scratch.n > 16384) send_scratch(c);
    }
    if (call->x && !c->done) flush_choices(c);
  }
  if (c->paused && call->x) pst_server_inbox_pause(&c->inbox, true);
  if (c->n_ended == c->n_parts && call->x && !c->done) (c->request.stream ? end_stream : end_whole)(c);
}

static void on_drain(void *arg) {
  pst_server_completion *c = arg;
  pst_server_call *call = c->call;
  c->paused = false;
  pst_server_inbox_pause(&c->inbox, false);
  process(c);
  pst_server_call_unref(call);
}

/* Events may come before the worker has handed the call back: they wait for that. */
static void on_inbox(void *arg) {
  pst_server_completion *c = arg;
  pst_server_call *call = c->call;
  if (!call->worked) return;
  if (c->paused && call->x) { /* woken by an overflow, or before it was paused: then the drain goes on with it */
    if (!pst_server_inbox_has_overflowed(&c->inbox)) return;
    too_slow(c);
  }
  process(c);
  pst_server_call_unref(call);
}

void pst_server_completion_reply(pst_server_call *call) {
  pst_server_completion *c = call->completion;
  bool failed = call->status != 0;
  if (!c || !c->has_inbox) {
    pst_server_reply_plain(call);
    return;
  }
  if (call->x) pst_net_respond_on_drain(call->x, on_drain, c);
  if (failed) answer_error(c);
  if (!call->x) cancel_parts(c);
  process(c);
}

void pst_server_completion_gone(pst_server_call *call) {
  pst_server_completion *c = call->completion;
  c->done = true;
  c->paused = false;
  if (!c->has_inbox) return;
  cancel_parts(c);
  pst_server_inbox_pause(&c->inbox, false);
  process(c); /* what was taken and not yet looked at may hold the end */
}

/* ---- the end --------------------------------------------------------------------------------------------------------------- */

bool pst_server_completion_over(pst_server_completion *c) {
  return c->n_ended == c->n_started && !(c->has_inbox && pst_server_inbox_is_posted(&c->inbox));
}

const char *pst_server_completion_id(const pst_server_completion *c) { return c->id; }

const char *pst_server_completion_cache(const pst_server_completion *c) {
  return c->cache == PST_GATEWAY_CACHE_OFF ? NULL : pst_gateway_cache_name(c->cache);
}

void pst_server_completion_free(pst_server_completion *c) {
  if (!c) return;
  for (size_t i = 0; i < c->n_choices && c->choices; i++) {
    pst_buf_done(&c->choices[i].text);
    pst_free(c->choices[i].tokens);
  }
  if (c->has_inbox) pst_server_inbox_done(&c->inbox);
  pst_wire_request_done(&c->request);
  pst_buf_done(&c->taken);
  pst_buf_done(&c->scratch);
  pst_free(c->choices);
  pst_free(c->parts);
  pst_free(c);
}

void pst_server_completion_describe(const pst_server_completion *c, pst_buf *out) {
  char cost[32];
  if (!c->request.model.n) return; /* the body was not a request */
  pst_store_nusd_format(c->cost_nusd, cost);
  pst_buf_printf(out,
                 "id=%s stream=%d n=%d prompt_tokens=%" PRId64 " cached_tokens=%" PRId64 " completion_tokens=%" PRId64,
                 c->id[0] ? c->id : "-", c->request.stream, c->request.n, c->usage.prompt_tokens,
                 c->usage.cached_tokens, c->usage.completion_tokens);
  if (c->ttft_us >= 0) pst_buf_printf(out, " ttft_ms=%.1f", (double)c->ttft_us / 1e3);
  pst_buf_printf(out, " cost_usd=%s target=%s", cost, c->target[0] ? c->target : "-");
}
