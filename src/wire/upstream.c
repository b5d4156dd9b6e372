/* The other direction: request bodies for OpenAI-compatible providers, and their answers into structs. Providers differ in details, so reading
 * is lenient about what is missing and strict about what is there with another meaning. */
#include <math.h>
#include <string.h>

#include "wire/reader.h"

/* ---- writing requests ---------------------------------------------------------------------------------------------- */

static void put_content(pst_json_writer *w, const pst_chat_message *m) {
  pst_json_key(w, "content");
  if (!m->has_content) {
    pst_json_put_null(w);
  } else if (!m->parts) {
    pst_json_put_str(w, m->content);
  } else {
    pst_json_begin_array(w);
    for (size_t i = 0; i < m->n_parts; i++) {
      if (m->parts[i].kind == PST_CHAT_PART_JSON) {
        pst_json_put_value(w, m->parts[i].json);
        continue;
      }
      pst_json_begin_object(w);
      pst_json_member_cstr(w, "type", "text");
      pst_json_member_str(w, "text", m->parts[i].text);
      pst_json_end_object(w);
    }
    pst_json_end_array(w);
  }
}

static void put_message(pst_json_writer *w, const pst_chat_message *m) {
  pst_json_begin_object(w);
  pst_json_key(w, "role");
  if (m->role == PST_CHAT_OTHER)
    pst_json_put_str(w, m->role_name);
  else
    pst_json_put_cstr(w, pst_chat_role_name(m->role));
  put_content(w, m);
  if (m->name.n) {
    pst_json_member_str(w, "name", m->name);
  }
  if (m->tool_call_id.n) {
    pst_json_member_str(w, "tool_call_id", m->tool_call_id);
  }
  if (m->n_tool_calls) {
    pst_json_key(w, "tool_calls");
    pst_json_begin_array(w);
    for (size_t i = 0; i < m->n_tool_calls; i++) {
      const pst_chat_tool_call *call = &m->tool_calls[i];
      pst_json_begin_object(w);
      pst_json_member_str(w, "id", call->id);
      pst_json_member_cstr(w, "type", "function");
      pst_json_key(w, "function");
      pst_json_begin_object(w);
      pst_json_member_str(w, "name", call->name);
      pst_json_member_str(w, "arguments", call->arguments);
      pst_json_end_object(w);
      pst_json_end_object(w);
    }
    pst_json_end_array(w);
  }
  pst_json_end_object(w);
}

static void put_tokens(pst_json_writer *w, const pst_wire_prompt *prompt) {
  pst_json_begin_array(w);
  for (size_t i = 0; i < prompt->n_tokens; i++) pst_json_put_int(w, prompt->tokens[i]);
  pst_json_end_array(w);
}

static int put_prompts(pst_json_writer *w, const pst_wire_request *q, pst_error *err) {
  for (size_t i = 1; i < q->n_prompts; i++) {
    if (!q->prompts[i].tokens != !q->prompts[0].tokens)
      return pst_error_set(err, PST_E_UNSUPPORTED, "prompt", "prompts of text and of tokens cannot be mixed");
  }
  pst_json_key(w, "prompt");
  bool list = q->n_prompts != 1;
  if (list) pst_json_begin_array(w);
  for (size_t i = 0; i < q->n_prompts; i++) {
    if (q->prompts[i].tokens)
      put_tokens(w, &q->prompts[i]);
    else
      pst_json_put_str(w, q->prompts[i].text);
  }
  if (list) pst_json_end_array(w);
  return 0;
}

static void put_number(pst_json_writer *w, const char *key, bool has, double value) {
  if (!has) return;
  pst_json_member_double(w, key, value);
}

static void put_integer(pst_json_writer *w, const char *key, bool has, int64_t value) {
  if (!has) return;
  pst_json_member_int(w, key, value);
}

static void put_sampling(pst_json_writer *w, const pst_wire_request *q) {
  put_integer(w, q->newer_max_tokens ? "max_completion_tokens" : "max_tokens", q->has_max_tokens, q->max_tokens);
  put_number(w, "temperature", q->has_temperature, q->temperature);
  put_number(w, "top_p", q->has_top_p, q->top_p);
  put_number(w, "min_p", q->has_min_p, q->min_p);
  put_integer(w, "top_k", q->has_top_k, q->top_k);
  put_integer(w, "seed", q->has_seed, (int64_t)q->seed);
  put_number(w, "presence_penalty", q->has_presence_penalty, q->presence_penalty);
  put_number(w, "frequency_penalty", q->has_frequency_penalty, q->frequency_penalty);
  put_number(w, "repetition_penalty", q->has_repetition_penalty, q->repetition_penalty);
  put_integer(w, "n", q->n > 1, q->n);
  if (q->n_stop) pst_json_member_strs(w, "stop", q->stop, q->n_stop);
  if (q->n_bias) {
    pst_json_key(w, "logit_bias");
    pst_json_begin_object(w);
    for (size_t i = 0; i < q->n_bias; i++) {
      char id[16];
      snprintf(id, sizeof id, "%d", (int)q->bias[i].token);
      pst_json_member_double(w, id, (double)q->bias[i].bias);
    }
    pst_json_end_object(w);
  }
  if (q->user.n) {
    pst_json_member_str(w, "user", q->user);
  }
  if (q->safety_identifier.n) {
    pst_json_member_str(w, "safety_identifier", q->safety_identifier);
  }
  if (q->reasoning_effort.n) {
    pst_json_member_str(w, "reasoning_effort", q->reasoning_effort);
  }
}

static void put_format(pst_json_writer *w, const pst_wire_request *q) {
  if (q->format == PST_WIRE_FORMAT_TEXT) return;
  pst_json_key(w, "response_format");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "type", q->format == PST_WIRE_FORMAT_JSON_OBJECT ? "json_object" : "json_schema");
  if (q->format == PST_WIRE_FORMAT_JSON_SCHEMA) {
    pst_json_key(w, "json_schema");
    pst_json_begin_object(w);
    pst_json_member_str(w, "name", q->schema_name);
    pst_json_member_bool(w, "strict", q->schema_strict);
    pst_json_key(w, "schema");
    pst_json_put_value(w, q->schema);
    pst_json_end_object(w);
  }
  pst_json_end_object(w);
}

static void put_tools(pst_json_writer *w, const pst_wire_request *q) {
  static const char *const choices[] = {"auto", "none", "required"};
  if (!q->chat.tools) return;
  pst_json_key(w, "tools");
  pst_json_put_value(w, q->chat.tools);
  pst_json_key(w, "tool_choice");
  if (q->tool_choice == PST_WIRE_TOOLS_NAMED) {
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "type", "function");
    pst_json_key(w, "function");
    pst_json_begin_object(w);
    pst_json_member_str(w, "name", q->tool_name);
    pst_json_end_object(w);
    pst_json_end_object(w);
  } else {
    pst_json_put_cstr(w, choices[q->tool_choice]);
  }
  if (!q->parallel_tool_calls) {
    pst_json_member_bool(w, "parallel_tool_calls", false);
  }
}

static void put_chat(pst_json_writer *w, const pst_wire_request *q) {
  pst_json_key(w, "messages");
  pst_json_begin_array(w);
  for (size_t i = 0; i < q->chat.n_messages; i++) put_message(w, &q->chat.messages[i]);
  pst_json_end_array(w);
  put_format(w, q);
  put_tools(w, q);
  if (q->n_logprobs >= 0) {
    pst_json_member_bool(w, "logprobs", true);
    put_integer(w, "top_logprobs", q->n_logprobs > 0, q->n_logprobs);
  }
}

int pst_wire_upstream_write(const pst_wire_request *request, pst_str model, bool stream, pst_buf *out, pst_error *err) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "model", model);
  if (request->kind == PST_WIRE_CHAT) {
    put_chat(&w, request);
  } else {
    int rc = put_prompts(&w, request, err);
    if (rc) return rc;
    put_integer(&w, "logprobs", request->n_logprobs >= 0, request->n_logprobs);
  }
  put_sampling(&w, request);
  if (stream) {
    pst_json_member_bool(&w, "stream", true);
    pst_json_key(&w, "stream_options");
    pst_json_begin_object(&w);
    pst_json_member_bool(&w, "include_usage", true);
    pst_json_end_object(&w);
  }
  pst_json_end_object(&w);
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a request") : 0;
}

/* ---- reading answers ------------------------------------------------------------------------------------------------- */

static int bad_reply(pst_error *err, const char *what) {
  return pst_error_set(err, PST_E_UPSTREAM, NULL, "the provider's answer is not in the expected format: %s", what);
}

static int no_memory(pst_error *err) {
  return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a provider's answer");
}

/* "bytes" where the provider sends them, else the text. */
static int token_bytes(pst_arena *arena, const pst_json *token, pst_str *ret_bytes) {
  const pst_json *bytes = pst_json_get(token, "bytes");
  *ret_bytes = pst_json_str(pst_json_get(token, "token"));
  if (pst_json_typeof(bytes) != PST_JSON_ARRAY) return 0;
  size_t n = pst_json_size(bytes), i = 0;
  char *data = pst_arena_alloc(arena, n + 1);
  if (!data) return PST_E_NOMEM;
  pst_json_iter it = pst_json_iterate(bytes);
  while (pst_json_next(&it)) data[i++] = (char)(unsigned char)(pst_json_int(it.value, 0) & 0xFF);
  *ret_bytes = (pst_str){data, n};
  return 0;
}

static int read_token(pst_arena *arena, const pst_json *v, pst_wire_token *token) {
  const pst_json *top = pst_json_get(v, "top_logprobs");
  token->logprob = pst_json_double(pst_json_get(v, "logprob"), -9999);
  if (token_bytes(arena, v, &token->bytes)) return PST_E_NOMEM;
  size_t n = pst_json_typeof(top) == PST_JSON_ARRAY ? pst_json_size(top) : 0, i = 0;
  if (n == 0) return 0;
  pst_wire_top *list = pst_arena_calloc(arena, n, sizeof *list);
  if (!list) return PST_E_NOMEM;
  pst_json_iter it = pst_json_iterate(top);
  while (pst_json_next(&it)) {
    if (token_bytes(arena, it.value, &list[i].bytes)) return PST_E_NOMEM;
    list[i++].logprob = pst_json_double(pst_json_get(it.value, "logprob"), -9999);
  }
  token->top = list;
  token->n_top = n;
  return 0;
}

/* Chat: {"content": [{token, logprob, bytes, top_logprobs}]}. */
static int read_chat_logprobs(pst_arena *arena, const pst_json *v, pst_wire_reply_choice *c) {
  const pst_json *content = pst_json_get(v, "content");
  size_t n = pst_json_typeof(content) == PST_JSON_ARRAY ? pst_json_size(content) : 0, i = 0;
  if (n == 0) return 0;
  pst_wire_token *list = pst_arena_calloc(arena, n, sizeof *list);
  if (!list) return PST_E_NOMEM;
  pst_json_iter it = pst_json_iterate(content);
  while (pst_json_next(&it)) {
    if (read_token(arena, it.value, &list[i++])) return PST_E_NOMEM;
  }
  c->tokens = list;
  c->n_tokens = n;
  return 0;
}

/* Completions: parallel arrays tokens, token_logprobs, top_logprobs (maps). */
static int read_text_logprobs(pst_arena *arena, const pst_json *v, pst_wire_reply_choice *c) {
  const pst_json *tokens = pst_json_get(v, "tokens");
  size_t n = pst_json_typeof(tokens) == PST_JSON_ARRAY ? pst_json_size(tokens) : 0;
  if (n == 0) return 0;
  pst_wire_token *list = pst_arena_calloc(arena, n, sizeof *list);
  if (!list) return PST_E_NOMEM;
  pst_json_iter text = pst_json_iterate(tokens), value = pst_json_iterate(pst_json_get(v, "token_logprobs")),
                top = pst_json_iterate(pst_json_get(v, "top_logprobs"));
  for (size_t i = 0; i < n && pst_json_next(&text); i++) {
    list[i].bytes = pst_json_str(text.value);
    list[i].logprob = pst_json_next(&value) ? pst_json_double(value.value, -9999) : -9999;
    size_t n_top = pst_json_next(&top) ? pst_json_size(top.value) : 0, k = 0;
    if (n_top == 0 || pst_json_typeof(top.value) != PST_JSON_OBJECT) continue;
    pst_wire_top *best = pst_arena_calloc(arena, n_top, sizeof *best);
    if (!best) return PST_E_NOMEM;
    pst_json_iter it = pst_json_iterate(top.value);
    while (pst_json_next(&it)) best[k++] = (pst_wire_top){it.key, pst_json_double(it.value, -9999)};
    list[i].top = best;
    list[i].n_top = n_top;
  }
  c->tokens = list;
  c->n_tokens = n;
  return 0;
}

static int read_reply_calls(pst_arena *arena, const pst_json *calls, pst_wire_reply_choice *c) {
  size_t n = pst_json_typeof(calls) == PST_JSON_ARRAY ? pst_json_size(calls) : 0, i = 0;
  if (n == 0) return 0;
  pst_chat_tool_call *list = pst_arena_calloc(arena, n, sizeof *list);
  int *index = pst_arena_calloc(arena, n, sizeof *index);
  if (!list || !index) return PST_E_NOMEM;
  pst_json_iter it = pst_json_iterate(calls);
  for (; pst_json_next(&it); i++) {
    const pst_json *function = pst_json_get(it.value, "function");
    int64_t at = pst_json_int(pst_json_get(it.value, "index"), (int64_t)i);
    index[i] = at >= 0 && at < PST_WIRE_MAX_TOOLS ? (int)at : (int)i;
    list[i].id = pst_json_str(pst_json_get(it.value, "id"));
    list[i].name = pst_json_str(pst_json_get(function, "name"));
    list[i].arguments = pst_json_str(pst_json_get(function, "arguments"));
  }
  c->tool_calls = list;
  c->tool_call_index = index;
  c->n_tool_calls = n;
  return 0;
}

static int read_choice(pst_wire_kind kind, bool chunk, const pst_json *v, size_t position, pst_arena *arena,
                       pst_wire_reply_choice *c, pst_error *err) {
  if (pst_json_typeof(v) != PST_JSON_OBJECT) return bad_reply(err, "a choice is not an object");
  int64_t index = pst_json_int(pst_json_get(v, "index"), (int64_t)position);
  if (index < 0 || index > 65535) return bad_reply(err, "a choice's index is out of range");
  c->index = (uint32_t)index;
  c->finish = pst_wire_finish_from(pst_json_str(pst_json_get(v, "finish_reason")));
  const pst_json *logprobs = pst_json_get(v, "logprobs");
  int rc;
  if (kind == PST_WIRE_TEXT) {
    c->text = pst_json_str(pst_json_get(v, "text"));
    rc = read_text_logprobs(arena, logprobs, c);
  } else {
    const pst_json *message = pst_json_get(v, chunk ? "delta" : "message");
    if (!chunk && pst_json_typeof(message) != PST_JSON_OBJECT) return bad_reply(err, "a choice has no message");
    c->text = pst_json_str(pst_json_get(message, "content"));
    c->reasoning = pst_json_str(pst_json_get(message, "reasoning_content"));
    if (!c->reasoning.n) c->reasoning = pst_json_str(pst_json_get(message, "reasoning"));
    rc = read_reply_calls(arena, pst_json_get(message, "tool_calls"), c);
    if (!rc) rc = read_chat_logprobs(arena, logprobs, c);
  }
  return rc ? no_memory(err) : 0;
}

static int64_t count(const pst_json *v) { return PST_MIN(PST_MAX(pst_json_int(v, 0), 0), INT64_C(1) << 40); }

static int read_reply(pst_wire_kind kind, bool chunk, const pst_json *root, pst_wire_reply *reply, pst_error *err) {
  if (pst_json_typeof(root) != PST_JSON_OBJECT) return bad_reply(err, "not an object");
  const pst_json *error = pst_json_get(root, "error");
  if (error && pst_json_typeof(error) != PST_JSON_NULL) {
    pst_str message = pst_json_str(pst_json_get(error, "message"));
    if (!message.n) message = pst_json_str(error);
    return pst_error_set(err, PST_E_UPSTREAM, NULL, "the provider answered with an error: %.*s",
                         (int)PST_MIN(message.n, 500u), message.n ? message.data : "");
  }
  reply->id = pst_json_str(pst_json_get(root, "id"));
  reply->model = pst_json_str(pst_json_get(root, "model"));
  const pst_json *usage = pst_json_get(root, "usage");
  const pst_json *completion = pst_json_get(usage, "completion_tokens");
  reply->usage.prompt_tokens = count(pst_json_get(usage, "prompt_tokens"));
  reply->has_usage = reply->usage.prompt_tokens > 0 && pst_json_int(completion, -1) >= 0; /* no prompt is empty */
  if (reply->has_usage) {
    reply->usage.completion_tokens = count(completion);
    reply->usage.cached_tokens = count(pst_json_get(pst_json_get(usage, "prompt_tokens_details"), "cached_tokens"));
  }
  const pst_json *choices = pst_json_get(root, "choices");
  if (pst_json_typeof(choices) != PST_JSON_ARRAY) {
    if (chunk) return 0; /* keep-alives and usage of some providers */
    return bad_reply(err, "there is no array of choices");
  }
  size_t n = pst_json_size(choices), i = 0;
  if (n == 0 && !chunk) return bad_reply(err, "there are no choices");
  pst_wire_reply_choice *list = pst_arena_calloc(reply->arena, n + 1, sizeof *list);
  if (!list) return no_memory(err);
  reply->choices = list;
  reply->n_choices = n;
  pst_json_iter it = pst_json_iterate(choices);
  for (; pst_json_next(&it); i++) {
    int rc = read_choice(kind, chunk, it.value, i, reply->arena, &list[i], err);
    if (rc) return rc;
  }
  return 0;
}

int pst_wire_reply_parse(pst_wire_kind kind, bool chunk, pst_str body, pst_wire_reply *ret_reply, pst_error *err) {
  pst_error bad = PST_ERROR_INIT;
  pst_wire_reply reply = {.arena = pst_arena_create()};
  if (!reply.arena) return no_memory(err);
  int rc = pst_json_parse(body.data ? body.data : "", body.n, "answer", &reply.doc, &bad);
  if (rc) {
    rc = rc == PST_E_NOMEM ? no_memory(err)
                           : pst_error_set(err, PST_E_UPSTREAM, NULL,
                                           "the provider's answer is not JSON (%.60s): %.300s", bad.place, bad.message);
  } else {
    rc = read_reply(kind, chunk, pst_json_root(reply.doc), &reply, err);
  }
  if (rc) {
    pst_wire_reply_done(&reply);
  } else {
    *ret_reply = reply;
  }
  return rc;
}

void pst_wire_reply_done(pst_wire_reply *reply) {
  pst_json_free(reply->doc);
  pst_arena_free(reply->arena);
  *reply = (pst_wire_reply){0};
}

/* ---- errors of providers ------------------------------------------------------------------------------------------------- */

static int code_of_status(int status, pst_str type, pst_str code) {
  bool quota = pst_str_is(type, "insufficient_quota") || pst_str_is(code, "insufficient_quota");
  switch (status) {
  case 400:
  case 413:
  case 422: return PST_E_BAD_INPUT;
  case 404: return PST_E_NOT_FOUND;
  case 402: return PST_E_BUDGET;
  case 429: return quota ? PST_E_BUDGET : PST_E_BUSY;
  case 408:
  case 504: return PST_E_TIMEOUT;
  case 503: return PST_E_BUSY;
  default: return PST_E_UPSTREAM;
  }
}

int pst_wire_upstream_error(int status, pst_str body, pst_error *err) {
  pst_json_doc *doc = NULL;
  pst_str message = {NULL, 0}, type = {NULL, 0}, code = {NULL, 0};
  if (pst_json_parse(body.data ? body.data : "", body.n, NULL, &doc, NULL) == 0) {
    const pst_json *error = pst_json_get(pst_json_root(doc), "error");
    message = pst_json_str(error ? pst_json_get(error, "message") : pst_json_get(pst_json_root(doc), "message"));
    if (!message.n) message = pst_json_str(error);
    type = pst_json_str(pst_json_get(error, "type"));
    code = pst_json_str(pst_json_get(error, "code"));
  }
  if (status == 401 || status == 403) message = PST_STR("it does not accept this server's key for this");
  int rc = pst_error_set(err, code_of_status(status, type, code), NULL, "the provider answered %d%s%.*s", status,
                         message.n ? ": " : "", (int)PST_MIN(message.n, 500u), message.n ? message.data : "");
  pst_json_free(doc);
  return rc;
}
