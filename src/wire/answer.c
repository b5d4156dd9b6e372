/* Answers to clients: whole answers, stream chunks, usage, log-probabilities, errors and model lists in the OpenAI shapes. Writes text only. */
#include <penstock/wire.h>

#include <math.h>
#include <string.h>

/* ---- finish reasons -------------------------------------------------------------------------------------------------- */

static const char *const finish_names[] = {NULL, "stop", "length", "tool_calls", "content_filter"};

const char *pst_wire_finish_name(pst_wire_finish finish) {
  return (size_t)finish < PST_ARRAY_LEN(finish_names) ? finish_names[finish] : NULL;
}

pst_wire_finish pst_wire_finish_from(pst_str name) {
  if (name.n == 0) return PST_WIRE_FINISH_NONE;
  for (int i = 1; i < (int)PST_ARRAY_LEN(finish_names); i++) {
    if (pst_str_is(name, finish_names[i])) return (pst_wire_finish)i;
  }
  return PST_WIRE_FINISH_STOP;
}

/* ---- log-probabilities ----------------------------------------------------------------------------------------------- */

/* JSON has no infinities; the API writes -9999 for what cannot happen. */
static void put_logprob(pst_json_writer *w, double logprob) {
  pst_json_put_double(w, logprob >= -9999.0 ? PST_MIN(logprob, 0.0) : -9999.0);
}

static void put_bytes(pst_json_writer *w, pst_str bytes) {
  pst_json_begin_array(w);
  for (size_t i = 0; i < bytes.n; i++) pst_json_put_int(w, (unsigned char)bytes.data[i]);
  pst_json_end_array(w);
}

static void put_token_members(pst_json_writer *w, pst_str bytes, double logprob) {
  pst_json_member_str(w, "token", bytes);
  pst_json_key(w, "logprob");
  put_logprob(w, logprob);
  pst_json_key(w, "bytes");
  put_bytes(w, bytes);
}

static void put_chat_logprobs(pst_json_writer *w, const pst_wire_choice *choice) {
  pst_json_begin_object(w);
  pst_json_key(w, "content");
  pst_json_begin_array(w);
  for (size_t i = 0; i < choice->n_tokens; i++) {
    const pst_wire_token *token = &choice->tokens[i];
    pst_json_begin_object(w);
    put_token_members(w, token->bytes, token->logprob);
    pst_json_key(w, "top_logprobs");
    pst_json_begin_array(w);
    for (size_t k = 0; k < token->n_top; k++) {
      pst_json_begin_object(w);
      put_token_members(w, token->top[k].bytes, token->top[k].logprob);
      pst_json_end_object(w);
    }
    pst_json_end_array(w);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
  pst_json_key(w, "refusal");
  pst_json_put_null(w);
  pst_json_end_object(w);
}

/* As the writer will write it: broken bytes become U+FFFD, so that different tokens can have equal text. */
static bool same_text(pst_str a, pst_str b) {
  if (pst_str_equal(a, b)) return true;
  if (pst_utf8_valid(a) && pst_utf8_valid(b)) return false;
  pst_buf x = PST_BUF_INIT, y = PST_BUF_INIT;
  pst_utf8_sanitize(a, &x);
  pst_utf8_sanitize(b, &y);
  bool same = pst_str_equal(pst_buf_str(&x), pst_buf_str(&y));
  pst_buf_done(&x);
  pst_buf_done(&y);
  return same;
}

/* A map from text to log-probability: of tokens with equal text the likeliest stays. */
static void put_top_map(pst_json_writer *w, const pst_wire_token *token) {
  pst_json_begin_object(w);
  for (size_t k = 0; k < token->n_top; k++) {
    bool seen = false;
    for (size_t j = 0; j < k && !seen; j++) seen = same_text(token->top[j].bytes, token->top[k].bytes);
    if (seen) continue;
    pst_json_key_str(w, token->top[k].bytes);
    put_logprob(w, token->top[k].logprob);
  }
  pst_json_end_object(w);
}

size_t pst_wire_characters(pst_str text) {
  size_t count = 0;
  for (size_t i = 0; i < text.n; i++) {
    if (((unsigned char)text.data[i] & 0xC0) != 0x80) count++;
  }
  return count;
}

static void put_text_logprobs(pst_json_writer *w, const pst_wire_choice *choice) {
  size_t offset = choice->text_offset;
  bool any_top = false;
  pst_json_begin_object(w);
  pst_json_key(w, "text_offset");
  pst_json_begin_array(w);
  for (size_t i = 0; i < choice->n_tokens; i++) {
    pst_json_put_int(w, (int64_t)offset);
    offset += pst_wire_characters(choice->tokens[i].bytes);
    any_top = any_top || choice->tokens[i].n_top;
  }
  pst_json_end_array(w);
  pst_json_key(w, "token_logprobs");
  pst_json_begin_array(w);
  for (size_t i = 0; i < choice->n_tokens; i++) put_logprob(w, choice->tokens[i].logprob);
  pst_json_end_array(w);
  pst_json_key(w, "tokens");
  pst_json_begin_array(w);
  for (size_t i = 0; i < choice->n_tokens; i++) pst_json_put_str(w, choice->tokens[i].bytes);
  pst_json_end_array(w);
  pst_json_key(w, "top_logprobs");
  if (any_top) {
    pst_json_begin_array(w);
    for (size_t i = 0; i < choice->n_tokens; i++) put_top_map(w, &choice->tokens[i]);
    pst_json_end_array(w);
  } else {
    pst_json_put_null(w);
  }
  pst_json_end_object(w);
}

/* ---- choices ----------------------------------------------------------------------------------------------------------- */

static void put_tool_calls(pst_json_writer *w, const pst_wire_choice *choice, bool chunk) {
  pst_json_key(w, "tool_calls");
  pst_json_begin_array(w);
  for (size_t i = 0; i < choice->n_tool_calls; i++) {
    const pst_chat_tool_call *call = &choice->tool_calls[i];
    pst_json_begin_object(w);
    if (chunk) {
      pst_json_member_int(w, "index", (int64_t)i);
    }
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

static void put_message(pst_json_writer *w, const pst_wire_choice *choice) {
  pst_json_key(w, "message");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "role", "assistant");
  pst_json_key(w, "content");
  if (choice->text.n == 0 && choice->n_tool_calls)
    pst_json_put_null(w);
  else
    pst_json_put_str(w, choice->text);
  pst_json_key(w, "refusal");
  pst_json_put_null(w);
  if (choice->n_tool_calls) put_tool_calls(w, choice, false);
  pst_json_end_object(w);
}

static void put_delta(pst_json_writer *w, const pst_wire_choice *choice, bool first) {
  pst_json_key(w, "delta");
  pst_json_begin_object(w);
  if (first) {
    pst_json_member_cstr(w, "role", "assistant");
  }
  if (choice->text.n || first) {
    pst_json_member_str(w, "content", choice->text);
  }
  if (choice->n_tool_calls) put_tool_calls(w, choice, true);
  pst_json_end_object(w);
}

static void put_choice(pst_json_writer *w, const pst_wire_answer *a, const pst_wire_choice *choice, bool chunk) {
  pst_json_begin_object(w);
  pst_json_member_int(w, "index", choice->index);
  if (a->kind == PST_WIRE_TEXT) {
    pst_json_member_str(w, "text", choice->text);
  } else if (chunk) {
    put_delta(w, choice, a->first);
  } else {
    put_message(w, choice);
  }
  pst_json_key(w, "logprobs");
  if (!choice->has_logprobs)
    pst_json_put_null(w);
  else if (a->kind == PST_WIRE_TEXT)
    put_text_logprobs(w, choice);
  else
    put_chat_logprobs(w, choice);
  pst_json_member_cstr(w, "finish_reason", pst_wire_finish_name(choice->finish));
  pst_json_end_object(w);
}

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

static void put_usage(pst_json_writer *w, const pst_wire_usage *usage) {
  pst_json_begin_object(w);
  pst_json_member_int(w, "prompt_tokens", usage->prompt_tokens);
  pst_json_member_int(w, "completion_tokens", usage->completion_tokens);
  pst_json_member_int(w, "total_tokens", usage->prompt_tokens + usage->completion_tokens);
  pst_json_key(w, "prompt_tokens_details");
  pst_json_begin_object(w);
  pst_json_member_int(w, "cached_tokens", usage->cached_tokens);
  pst_json_end_object(w);
  pst_json_end_object(w);
}

static void write_answer(const pst_wire_answer *a, bool chunk, pst_buf *out) {
  static const char *const objects[2][2] = {{"chat.completion", "chat.completion.chunk"},
                                            {"text_completion", "text_completion"}};
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "id", a->id);
  pst_json_member_cstr(&w, "object", objects[a->kind == PST_WIRE_TEXT][chunk]);
  pst_json_member_int(&w, "created", a->created);
  pst_json_member_str(&w, "model", a->model);
  pst_json_key(&w, "choices");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < a->n_choices; i++) put_choice(&w, a, &a->choices[i], chunk);
  pst_json_end_array(&w);
  if (a->usage || (chunk && a->include_usage)) {
    pst_json_key(&w, "usage");
    if (a->usage)
      put_usage(&w, a->usage);
    else
      pst_json_put_null(&w);
  }
  pst_json_end_object(&w);
}

void pst_wire_answer_write(const pst_wire_answer *answer, pst_buf *out) { write_answer(answer, false, out); }

void pst_wire_chunk_write(const pst_wire_answer *chunk, pst_buf *out) {
  pst_buf_append(out, "data: ", 6);
  write_answer(chunk, true, out); /* JSON text has no line breaks: one data line */
  pst_buf_append(out, "\n\n", 2);
}

void pst_wire_stream_end(pst_buf *out) { pst_buf_puts(out, "data: [DONE]\n\n"); }

/* ---- errors ---------------------------------------------------------------------------------------------------------------- */

pst_wire_error pst_wire_error_from(int code) {
  switch (code) {
  case PST_E_BAD_INPUT: return (pst_wire_error){400, "invalid_request_error", NULL, 0};
  case PST_E_UNSUPPORTED: return (pst_wire_error){400, "invalid_request_error", "unsupported_value", 0};
  case PST_E_LIMIT: return (pst_wire_error){400, "invalid_request_error", "limit_exceeded", 0};
  case PST_E_EXISTS: return (pst_wire_error){400, "invalid_request_error", "exists", 0};
  case PST_E_DENIED: return (pst_wire_error){401, "invalid_request_error", "invalid_api_key", 0};
  case PST_E_NOT_FOUND: return (pst_wire_error){404, "invalid_request_error", "model_not_found", 0};
  case PST_E_CANCELLED: return (pst_wire_error){499, "cancelled", "cancelled", 0};
  case PST_E_BUSY: return (pst_wire_error){429, "rate_limit_error", "rate_limit_exceeded", 1};
  case PST_E_BUDGET: return (pst_wire_error){429, "insufficient_quota", "insufficient_quota", 0};
  case PST_E_UPSTREAM: return (pst_wire_error){502, "upstream_error", "upstream_error", 0};
  case PST_E_NOMEM:
  case PST_E_NO_SPACE: return (pst_wire_error){503, "server_error", "overloaded", 1};
  case PST_E_TIMEOUT: return (pst_wire_error){504, "server_error", "timeout", 0};
  default: return (pst_wire_error){500, "server_error", "internal_error", 0};
  }
}

pst_wire_error pst_wire_error_of_status(int status) {
  switch (status) {
  case 401: return pst_wire_error_from(PST_E_DENIED);
  case 404: return (pst_wire_error){404, "invalid_request_error", "unknown_url", 0};
  case 405: return (pst_wire_error){405, "invalid_request_error", "method_not_allowed", 0};
  case 408: return (pst_wire_error){408, "invalid_request_error", "request_timeout", 0};
  case 413: return (pst_wire_error){413, "invalid_request_error", "request_too_large", 0};
  case 429: return pst_wire_error_from(PST_E_BUSY);
  case 503: return pst_wire_error_from(PST_E_NOMEM);
  default: break;
  }
  if (status >= 500) return (pst_wire_error){status, "server_error", NULL, 0};
  return (pst_wire_error){status, "invalid_request_error", NULL, 0};
}

void pst_wire_error_write(const pst_wire_error *error, const char *message, const char *param, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "error");
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "message", message);
  pst_json_member_cstr(&w, "type", error->type);
  pst_json_member_cstr(&w, "param", param && *param ? param : NULL);
  pst_json_member_cstr(&w, "code", error->code);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
}

/* ---- models ------------------------------------------------------------------------------------------------------------------ */

static void put_model(pst_json_writer *w, const pst_wire_model *model) {
  pst_json_begin_object(w);
  pst_json_member_str(w, "id", model->id);
  pst_json_member_cstr(w, "object", "model");
  pst_json_member_int(w, "created", model->created);
  pst_json_member_str(w, "owned_by", model->owner);
  pst_json_end_object(w);
}

void pst_wire_model_write(const pst_wire_model *model, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  put_model(&w, model);
}

void pst_wire_models_write(const pst_wire_model *models, size_t n, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "object", "list");
  pst_json_key(&w, "data");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < n; i++) put_model(&w, &models[i]);
  pst_json_end_array(&w);
  pst_json_end_object(&w);
}
