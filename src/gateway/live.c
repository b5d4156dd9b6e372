/* A call's birth, its events and its end. What answers it is stage.c's business.
 *
 * Events go out without any lock held, so that a callback may cancel its own call. The end is booked first and told last: settled
 * (by stage.c), recorded, delivered, and only then does the gateway stop counting the call, so that closing waits for the callback to return. */
#include "gateway/live.h"

#include <math.h>
#include <string.h>

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a request"); }

/* ---- birth -------------------------------------------------------------------------------------------------------------- */

static bool copy_str(pst_arena *arena, pst_str from, pst_str *to) {
  char *data = pst_arena_strndup(arena, from.data ? from.data : "", from.n);
  *to = (pst_str){data, from.n};
  return data != NULL;
}

static bool copy_strs(pst_arena *arena, const pst_str *from, size_t n, const pst_str **to) {
  pst_str *copy = n ? pst_arena_calloc(arena, n, sizeof *copy) : NULL;
  *to = copy;
  for (size_t i = 0; copy && i < n; i++)
    if (!copy_str(arena, from[i], &copy[i])) return false;
  return copy || n == 0;
}

static int copy_overrides(pst_gateway_live *live, const pst_gateway_overrides *set) {
  live->set = *set;
  pst_engine_bias *bias = set->n_bias ? pst_arena_calloc(live->arena, set->n_bias, sizeof *bias) : NULL;
  if (set->n_bias && !bias) return PST_E_NOMEM;
  if (bias) memcpy(bias, set->bias, set->n_bias * sizeof *bias);
  live->set.bias = bias;
  if (!set->has_stop) live->set.n_stop = 0;
  return copy_strs(live->arena, set->stop, live->set.n_stop, &live->set.stop) ? 0 : PST_E_NOMEM;
}

static int make_ids(pst_gateway_live *live, pst_error *err) {
  uint8_t secret[20];
  char hex[25];
  int code = pst_random_secret(secret, sizeof secret);
  if (code) return pst_error_set(err, code, NULL, "no random bytes for a completion id");
  pst_hex(secret, 12, hex);
  static const char *const prefixes[] = {
      [PST_GATEWAY_CHAT] = "chatcmpl", [PST_GATEWAY_TEXT] = "cmpl", [PST_GATEWAY_EMBED] = "embd"};
  (void)snprintf(live->completion_id, sizeof live->completion_id, "%s-%s", prefixes[live->kind], hex);
  bool varies = live->purpose == PST_STORE_PURPOSE_USER || live->purpose == PST_STORE_PURPOSE_SHADOW;
  if (varies) memcpy(&live->seed, secret + 12, sizeof live->seed); /* measurements repeat */
  return 0;
}

static void write_input(pst_json_writer *w, const pst_wire_prompt *input) {
  if (!input->tokens) {
    pst_json_put_str(w, input->text);
    return;
  }
  pst_json_begin_array(w);
  for (size_t i = 0; i < input->n_tokens; i++) pst_json_put_int(w, input->tokens[i]);
  pst_json_end_array(w);
}

static int keep_inputs(pst_gateway_live *live, const pst_gateway_call *call, pst_error *err) {
  pst_buf out = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&out, false);
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "model", call->model);
  pst_json_key(&w, "input");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < call->n_inputs; i++) write_input(&w, &call->inputs[i]);
  pst_json_end_array(&w);
  pst_json_end_object(&w);
  live->input_json = pst_buf_take(&out);
  pst_buf_done(&out);
  return live->input_json ? 0 : no_memory(err);
}

/* The request as it would go to a provider: whole, and in a known format. */
static int keep_request(pst_gateway_live *live, const pst_gateway_call *call, pst_error *err) {
  pst_wire_prompt prompt = {call->text, call->tokens, call->n_tokens};
  pst_wire_request q = {.n_logprobs = -1, .n = call->n, .parallel_tool_calls = true};
  if (call->request) q = *call->request;
  q.kind = call->kind == PST_GATEWAY_CHAT ? PST_WIRE_CHAT : PST_WIRE_TEXT;
  if (call->chat) q.chat = *call->chat;
  if (call->kind == PST_GATEWAY_TEXT) {
    q.prompts = &prompt;
    q.n_prompts = 1;
  }
  pst_buf out = PST_BUF_INIT;
  int code = pst_wire_upstream_write(&q, call->model, false, &out, err);
  live->input_json = code ? NULL : pst_buf_take(&out);
  pst_buf_done(&out);
  return code || live->input_json ? code : no_memory(err);
}

static int check_call(const pst_gateway_call *call, pst_error *err) {
  if (!call->callback) return pst_error_set(err, PST_E_BAD_INPUT, NULL, "a call needs a callback");
  if (call->n < 1 || call->n > PST_GATEWAY_MAX_N)
    return pst_error_set(err, PST_E_BAD_INPUT, "n", "n must be between 1 and %d", PST_GATEWAY_MAX_N);
  if (call->kind == PST_GATEWAY_CHAT && (!call->chat || call->chat->n_messages == 0))
    return pst_error_set(err, PST_E_BAD_INPUT, "messages", "a chat needs at least one message");
  if (call->kind == PST_GATEWAY_EMBED && (!call->inputs || call->n_inputs == 0 || call->n != 1))
    return pst_error_set(err, PST_E_BAD_INPUT, "input", "embeddings need at least one text");
  if (call->set.has_max_tokens && call->set.max_tokens < (call->kind == PST_GATEWAY_CHAT ? 1 : 0))
    return pst_error_set(err, PST_E_BAD_INPUT, "max_tokens", "max_tokens must be at least 1");
  if (call->set.n_logprobs > 20) return pst_error_set(err, PST_E_BAD_INPUT, "top_logprobs", "at most 20 alternatives");
  return 0;
}

int pst_gateway_live_create(pst_gateway *g, const pst_gateway_call *call, pst_gateway_live **ret_live, pst_error *err) {
  int code = check_call(call, err);
  if (code) return code;
  pst_gateway_live *live = pst_calloc(1, sizeof *live);
  if (!live) return no_memory(err);
  live->gateway = g;
  live->n_refs = 1;
  pthread_mutex_init(&live->lock, NULL);
  live->start_us = pst_clock_us();
  live->time_ms = pst_clock_unix_ms();
  live->kind = call->kind;
  live->purpose = call->purpose;
  live->key_id = call->key_id;
  live->providers_only = call->providers_only;
  live->n = call->n;
  live->stream = call->stream;
  live->consent = call->consent;
  live->keep_content = call->purpose == PST_STORE_PURPOSE_USER && call->consent.keep == PST_STORE_KEEP_CONTENT;
  live->callback = call->callback;
  live->user = call->user;
  live->margin = live->stage_margin = NAN;
  live->ttft_us = -1;
  live->target = "local";
  live->model = "";
  for (uint32_t i = 0; i < PST_GATEWAY_MAX_N; i++) live->choices[i] = (pst_gateway_choice){.call = live, .index = i};
  live->arena = pst_arena_create();
  bool copied = live->arena && !copy_overrides(live, &call->set) &&
                copy_strs(live->arena, call->exclude_examples, call->n_exclude, &live->exclude) &&
                copy_str(live->arena, call->subject, &live->subject);
  live->n_exclude = call->n_exclude;
  live->chat = call->kind == PST_GATEWAY_CHAT ? call->chat : NULL;
  live->text = call->text;
  live->tokens = call->tokens;
  live->n_tokens = call->n_tokens;
  live->inputs = call->inputs;
  live->n_inputs = call->n_inputs;
  live->dims = call->dims;
  code = copied ? make_ids(live, err) : no_memory(err);
  if (!code && live->keep_content)
    code = call->kind == PST_GATEWAY_EMBED ? keep_inputs(live, call, err) : keep_request(live, call, err);
  if (code)
    pst_gateway_live_unref(live);
  else
    *ret_live = live;
  return code;
}

int pst_gateway_live_keep_input(pst_gateway_live *live, pst_error *err) {
  if (live->kind == PST_GATEWAY_EMBED) return pst_gateway_embed_keep_input(live, err);
  if (live->chat) {
    pst_chat *copy;
    int code = pst_gateway_chat_copy(live->chat, live->arena, &copy, &live->chat_doc, err);
    if (!code) live->chat = copy;
    return code;
  }
  if (live->tokens) {
    int32_t *copy = pst_arena_calloc(live->arena, live->n_tokens + 1, sizeof *copy);
    if (!copy) return no_memory(err);
    memcpy(copy, live->tokens, live->n_tokens * sizeof *copy);
    live->tokens = copy;
    return 0;
  }
  return copy_str(live->arena, live->text, &live->text) ? 0 : no_memory(err);
}

static void live_free(pst_gateway_live *live) {
  pst_gateway_stage_clean(live);
  for (int i = 0; i < PST_GATEWAY_MAX_N; i++) {
    pst_buf_done(&live->choices[i].text);
    pst_buf_done(&live->choices[i].kept_bytes);
    pst_buf_done(&live->choices[i].tool_calls);
    pst_free(live->choices[i].kept);
  }
  pst_gateway_plan_unref(live->plan);
  pst_json_free(live->chat_doc);
  pst_json_free(live->cached);
  pst_free(live->input_json);
  pst_free(live->vectors);
  pst_buf_done(&live->scratch);
  pst_arena_free(live->arena);
  pthread_mutex_destroy(&live->lock);
  pst_free(live);
}

void pst_gateway_live_unref(pst_gateway_live *live) {
  pthread_mutex_lock(&live->gateway->lock);
  bool gone = --live->n_refs == 0;
  pthread_mutex_unlock(&live->gateway->lock);
  if (gone) live_free(live);
}

bool pst_gateway_live_is_cancelled(pst_gateway_live *live) {
  pthread_mutex_lock(&live->lock);
  bool cancelled = live->cancelled;
  pthread_mutex_unlock(&live->lock);
  return cancelled;
}

void pst_gateway_live_set_phase(pst_gateway_live *live, pst_gateway_phase phase) {
  pthread_mutex_lock(&live->lock);
  live->phase = phase;
  pthread_mutex_unlock(&live->lock);
}

void pst_gateway_live_post(pst_gateway_live *live, pst_net_fn fn) {
  live->task = (pst_net_task){.fn = fn, .arg = live};
  (void)pst_net_loop_post_task(live->gateway->loop, &live->task); /* the loop outlives all calls */
}

/* ---- events ---------------------------------------------------------------------------------------------------------------- */

static void deliver(pst_gateway_live *live, pst_gateway_event *event) {
  event->completion_id = live->completion_id;
  event->cache = live->cache;
  live->callback(live->user, event);
}

/* A token with the bytes of its alternatives. */
static void deliver_token(pst_gateway_live *live, uint32_t choice, pst_str text, const pst_engine_event *token) {
  pst_str tops[20];
  size_t ends[20], n = PST_MIN(token->n_top, PST_ARRAY_LEN(tops));
  pst_buf_clear(&live->scratch);
  for (size_t i = 0; i < n; i++) {
    pst_str coded = pst_engine_adapter_code_text(live->adapter, token->top[i].token);
    if (coded.data)
      pst_buf_append_str(&live->scratch, coded);
    else
      (void)pst_engine_detokenize(live->slot->model, &token->top[i].token, 1, true, &live->scratch);
    ends[i] = live->scratch.n;
  }
  for (size_t i = 0; i < n; i++) {
    size_t start = i ? ends[i - 1] : 0;
    tops[i] = (pst_str){pst_buf_text(&live->scratch) + start, ends[i] - start};
  }
  deliver(live, &(pst_gateway_event){.choice = choice, .text = text, .token = token, .top_texts = tops, .margin = NAN});
}

/* Log-probabilities are of the tokens that the model said, so where they are wanted the answer stays what these spell. */
static bool is_mended(const pst_gateway_live *live) {
  return live->leaf && live->plan->n_copied && live->set.n_logprobs < 0;
}

static bool goes_out_at_once(const pst_gateway_live *live) {
  return live->final && (live->stream || live->set.n_logprobs >= 0) && !is_mended(live);
}

static void keep_token(pst_gateway_choice *c, pst_str text, const pst_engine_event *token) {
  if (pst_array_reserve((void **)&c->kept, &c->kept_capacity, c->n_kept + 1, sizeof *c->kept)) {
    c->kept_bytes.failed = true;
    return;
  }
  pst_gateway_kept_token *k = &c->kept[c->n_kept++];
  *k = (pst_gateway_kept_token){.token = token->token, .logprob = token->logprob};
  k->text = c->kept_bytes.n;
  k->text_n = text.n;
  pst_buf_append_str(&c->kept_bytes, text);
  k->token_text = c->kept_bytes.n;
  k->token_text_n = token->token_text.n;
  pst_buf_append_str(&c->kept_bytes, token->token_text);
  k->n_top = (int)PST_MIN(token->n_top, PST_ARRAY_LEN(k->top));
  if (k->n_top) memcpy(k->top, token->top, (size_t)k->n_top * sizeof k->top[0]);
}

void pst_gateway_live_text(pst_gateway_live *live, uint32_t choice, pst_str text, const pst_engine_event *token) {
  pst_gateway_choice *c = &live->choices[choice];
  if (c->strip_space && text.n) {
    c->strip_space = false;
    if (text.data[0] == ' ') text = (pst_str){text.data + 1, text.n - 1};
  }
  bool now = goes_out_at_once(live);
  if (!now || live->keep_content) pst_buf_append_str(&c->text, text);
  if (!now && token) keep_token(c, text, token);
  if (!now) return;
  c->n_delivered += text.n;
  if (token)
    deliver_token(live, choice, text, token);
  else if (text.n)
    deliver(live, &(pst_gateway_event){.choice = choice, .text = text, .margin = NAN});
}

void pst_gateway_live_upstream_token(pst_gateway_live *live, uint32_t choice, pst_str text,
                                     const pst_engine_event *token, const pst_str *top_texts) {
  pst_gateway_choice *c = &live->choices[choice];
  if (!goes_out_at_once(live)) {
    pst_gateway_live_text(live, choice, text, NULL);
    return;
  }
  if (live->keep_content) pst_buf_append_str(&c->text, text);
  c->n_delivered += text.n;
  deliver(live,
          &(pst_gateway_event){.choice = choice, .text = text, .token = token, .top_texts = top_texts, .margin = NAN});
}

static void deliver_finish(pst_gateway_live *live, uint32_t choice, const pst_chat_tool_call *tool_calls, size_t n) {
  pst_gateway_choice *c = &live->choices[choice];
  pst_str rest = pst_buf_str(&c->text);
  size_t skip = PST_MIN(c->n_delivered, rest.n);
  rest = (pst_str){rest.data + skip, rest.n - skip};
  c->n_delivered += rest.n;
  deliver(live, &(pst_gateway_event){.choice = choice,
                                     .text = rest,
                                     .finish = c->finish,
                                     .tool_calls = tool_calls,
                                     .n_tool_calls = n,
                                     .margin = NAN});
}

static void keep_tool_calls(const pst_chat_tool_call *calls, size_t n, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_array(&w);
  for (size_t i = 0; i < n; i++) {
    pst_json_begin_object(&w);
    pst_json_member_str(&w, "id", calls[i].id);
    pst_json_member_cstr(&w, "type", "function");
    pst_json_key(&w, "function");
    pst_json_begin_object(&w);
    pst_json_member_str(&w, "name", calls[i].name);
    pst_json_member_str(&w, "arguments", calls[i].arguments);
    pst_json_end_object(&w);
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
}

void pst_gateway_live_finish(pst_gateway_live *live, uint32_t choice, pst_engine_finish finish,
                             const pst_chat_tool_call *tool_calls, size_t n_tool_calls) {
  pst_gateway_choice *c = &live->choices[choice];
  c->finish = finish;
  if (is_mended(live) && pst_gateway_copied_mend(live->plan, live->input, &c->text)) c->text.failed = true;
  if (live->keep_content && n_tool_calls) keep_tool_calls(tool_calls, n_tool_calls, &c->tool_calls);
  if (live->final) deliver_finish(live, choice, tool_calls, n_tool_calls);
}

void pst_gateway_live_release(pst_gateway_live *live) {
  for (int i = 0; i < live->n; i++) {
    pst_gateway_choice *c = &live->choices[i];
    const char *bytes = pst_buf_text(&c->kept_bytes);
    for (size_t t = 0; t < c->n_kept && !c->kept_bytes.failed; t++) {
      const pst_gateway_kept_token *k = &c->kept[t];
      pst_engine_event token = {.token = k->token,
                                .text = {bytes + k->text, k->text_n},
                                .token_text = {bytes + k->token_text, k->token_text_n},
                                .logprob = k->logprob,
                                .top = k->top,
                                .n_top = (size_t)k->n_top};
      c->n_delivered += k->text_n;
      deliver_token(live, (uint32_t)i, token.text, &token);
    }
    deliver_finish(live, (uint32_t)i, NULL, 0);
  }
}

void pst_gateway_live_forget(pst_gateway_live *live) {
  for (int i = 0; i < live->n; i++) {
    pst_gateway_choice *c = &live->choices[i];
    pst_buf_clear(&c->text);
    pst_buf_clear(&c->kept_bytes);
    pst_buf_clear(&c->tool_calls);
    c->n_kept = c->n_delivered = 0;
    c->finish = PST_ENGINE_FINISH_NONE;
    c->strip_space = false;
  }
}

/* ---- the end -------------------------------------------------------------------------------------------------------------------- */

static const char *finish_name(pst_engine_finish finish) {
  return finish == PST_ENGINE_FINISH_LENGTH ? "length" : "stop";
}

static void write_output(const pst_gateway_live *live, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "choices");
  pst_json_begin_array(&w);
  for (int i = 0; i < live->n; i++) {
    pst_json_begin_object(&w);
    pst_json_member_int(&w, "index", i);
    pst_json_member_str(&w, "text", pst_buf_str(&live->choices[i].text));
    if (live->choices[i].tool_calls.n && !pst_buf_status(&live->choices[i].tool_calls)) {
      pst_json_key(&w, "tool_calls");
      pst_json_put_raw(&w, pst_buf_str(&live->choices[i].tool_calls));
    }
    pst_json_member_cstr(&w, "finish", finish_name(live->choices[i].finish));
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
  pst_json_end_object(&w);
}

static int status_of(const pst_error *error) {
  if (!error) return 200;
  if (error->code == PST_E_CANCELLED) return 499; /* the client went away; nginx's number, there is no official one */
  return pst_wire_error_from(error->code).status;
}

static void record(pst_gateway_live *live, const pst_error *error, int64_t total_us) {
  if (live->purpose != PST_STORE_PURPOSE_USER) return; /* evals and searches keep their own books */
  if (live->consent.keep == PST_STORE_KEEP_NOTHING) return;
  pst_buf output = PST_BUF_INIT;
  if (live->keep_content && !error && live->kind != PST_GATEWAY_EMBED) write_output(live, &output);
  pst_store_request r = {.completion_id = pst_str_from(live->completion_id),
                         .time_ms = live->time_ms,
                         .purpose = live->purpose,
                         .workload = pst_str_from(live->workload),
                         .plan_hash = pst_str_from(live->plan ? live->plan->hash : NULL),
                         .key_id = live->key_id,
                         .target = pst_str_from(live->target),
                         .model = pst_str_from(live->model),
                         .prompt_tokens = live->prompt_tokens_sum,
                         .cached_tokens = live->cached_sum,
                         .completion_tokens = live->completion_sum,
                         .ttft_us = live->ttft_us,
                         .total_us = total_us,
                         .status = status_of(error),
                         .cost_nusd = live->cost_nusd,
                         .keep = live->consent.keep,
                         .train = live->consent.train,
                         .subject = live->subject.n ? live->subject : (pst_str){NULL, 0},
                         .input_json = pst_str_from(live->input_json)};
  if (live->consent.retention_days > 0) r.expires_ms = live->time_ms + live->consent.retention_days * INT64_C(86400000);
  if (!error) r.finish = pst_str_from(finish_name(live->choices[0].finish));
  if (output.n && !pst_buf_status(&output)) r.output_json = pst_buf_str(&output);
  if (!error) r.reuse = pst_gateway_cache_reuse(live);
  pst_error why = PST_ERROR_INIT;
  if (pst_store_request_put(live->gateway->store, &r, &why))
    pst_log(PST_LOG_WARN, "request=%s event=record_lost reason=\"%s\"", live->completion_id, why.message);
  pst_buf_done(&output);
}

void pst_gateway_live_end(pst_gateway_live *live, const pst_error *error) {
  pst_gateway *g = live->gateway;
  int64_t total_us = pst_clock_us() - live->start_us;
  pst_error kept = error ? *error : (pst_error)PST_ERROR_INIT;
  for (int i = 0; i < live->n && !error; i++)
    if (pst_buf_status(&live->choices[i].text) || live->choices[i].kept_bytes.failed) {
      no_memory(&kept);
      error = &kept;
    }
  record(live, error ? &kept : NULL, total_us);
  pthread_mutex_lock(&g->lock);
  if (live->prev)
    live->prev->next = live->next;
  else
    g->calls = live->next;
  if (live->next) live->next->prev = live->prev;
  pthread_mutex_unlock(&g->lock);
  pst_gateway_live_set_phase(live, PST_GATEWAY_ENDED);
  deliver(live, &(pst_gateway_event){.last = true,
                                     .error = error ? &kept : NULL,
                                     .http_status = live->http_status,
                                     .retry_after_s = live->retry_after_s,
                                     .target = live->target,
                                     .model = live->model,
                                     .prompt_tokens = live->prompt_tokens_sum,
                                     .cached_tokens = live->cached_sum,
                                     .completion_tokens = live->completion_sum,
                                     .ttft_us = live->ttft_us,
                                     .total_us = total_us,
                                     .queued_us = live->queued_us,
                                     .cost_nusd = live->cost_nusd,
                                     .margin = live->margin,
                                     .vectors = error ? NULL : live->vectors,
                                     .n_vectors = error ? 0 : live->n_inputs,
                                     .n_dims = live->n_dims,
                                     .n_stages = live->stage,
                                     .n_drafted = live->n_drafted,
                                     .n_token_steps = live->n_token_steps,
                                     .n_accepted = live->n_accepted});
  /* The call's own reference first: once nothing is open the gateway may be closed. */
  pthread_mutex_lock(&g->lock);
  bool gone = --live->n_refs == 0;
  pthread_mutex_unlock(&g->lock);
  if (gone) live_free(live);
  pthread_mutex_lock(&g->lock);
  if (--g->n_open == 0) pthread_cond_broadcast(&g->idle);
  pthread_mutex_unlock(&g->lock);
}
