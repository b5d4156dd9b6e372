/* A stage answered by an engine of this machine: the engine is found or loaded, the prompt becomes tokens, n requests go in, events come out.
 *
 * The engine may answer before the thread that submits has submitted everything. So the submitting thread counts as one of those at work: the stage is
 * over when the count falls to zero, whoever brings it there, and until then nothing of the stage goes away. */
#include "gateway/live.h"

#include <math.h>

/* ---- the engine ---------------------------------------------------------------------------------------------------------- */

static int ready(pst_gateway_live *live, pst_error *err);

static void loaded_on_loop(void *arg) {
  pst_gateway_live *live = arg;
  pst_error error = PST_ERROR_INIT;
  pst_gateway_live_set_phase(live, PST_GATEWAY_STARTING);
  int code = pst_gateway_live_is_cancelled(live) ? pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled")
                                                 : ready(live, &error);
  if (code) pst_gateway_stage_over(live, 0, &error);
}

int pst_gateway_local_begin(pst_gateway_live *live, pst_error *err) {
  const pst_gateway_engine_spec *spec = live->leaf ? &live->plan->engines[live->leaf->engine] : &live->plain;
  live->target = "local";
  live->model = live->leaf || !live->plain_name ? spec->model : live->plain_name;
  return pst_gateway_local_load(live, spec, err);
}

int pst_gateway_local_load(pst_gateway_live *live, const pst_gateway_engine_spec *spec, pst_error *err) {
  pst_gateway_engines *engines = live->gateway->engines;
  int code = pst_gateway_engines_take(engines, spec, &live->slot, err);
  if (!code && !live->leaf && pst_gateway_slot_loads(engines, live->slot))
    code = pst_gateway_live_keep_input(live, err);
  if (code) return code;
  live->waiter.task = (pst_net_task){.fn = loaded_on_loop, .arg = live};
  pst_gateway_live_set_phase(live, PST_GATEWAY_LOADING);
  if (!pst_gateway_slot_wait(engines, live->slot, &live->waiter)) return 0; /* the loop's from here on */
  pst_gateway_live_set_phase(live, PST_GATEWAY_STARTING);
  return ready(live, err);
}

/* ---- the prompt ------------------------------------------------------------------------------------------------------------ */

static int make_prompt(pst_gateway_live *live, pst_error *err) {
  const pst_engine_model *model = live->slot->model;
  pst_engine_tokens *tokens = &live->prompt_tokens;
  int code;
  if (live->leaf) {
    if ((code = pst_gateway_stage_prompt(live, err))) return code;
    return pst_gateway_prompt_tokenize(&live->prompt, model, tokens, NULL, err);
  }
  if (live->chat)
    code = pst_engine_render_chat(model, live->chat, tokens, NULL, err);
  else if (live->tokens)
    code = pst_engine_tokens_append(tokens, live->tokens, live->n_tokens, err);
  else
    code = pst_engine_tokenize(model, live->text, false, true, tokens, err);
  live->chat = NULL; /* the caller's, as a rule */
  live->text = (pst_str){NULL, 0};
  live->tokens = NULL;
  return code;
}

/* How many new tokens each answer may have. */
static int answer_length(const pst_gateway_live *live, int room) {
  int wanted = live->leaf ? live->leaf->max_tokens : live->kind == PST_GATEWAY_CHAT ? room : 16;
  if (live->set.has_max_tokens) wanted = live->set.max_tokens;
  return PST_MIN(wanted, room);
}

static int find_bound(pst_gateway_live *live, pst_error *err) {
  int code = pst_gateway_stage_machine_price(live, err);
  if (code) return code;
  int64_t n_tokens = live->n * ((int64_t)live->prompt_tokens.n + live->max_tokens);
  code = pst_gateway_cost_local_bound(live->machine_nusd_per_hour, pst_engine_model_get_info(live->slot->model),
                                      n_tokens, &live->bound_nusd);
  return code ? pst_error_set(err, code, NULL, "the cost of the call cannot be bounded in 64 bits") : 0;
}

/* What requests of this call refer to: the adapter, choices as it spells them, past answers. Those are plain, and no draft for an adapter that answers in codes. */
static int find_extras(pst_gateway_live *live, pst_error *err) {
  const char *adapter = live->leaf ? live->leaf->adapter : live->plain_adapter;
  int code = 0;
  if (adapter)
    code = pst_gateway_slot_adapter(live->gateway->engines, live->slot, live->gateway->store, adapter, &live->adapter,
                                    err);
  const pst_engine_codes *codes = live->adapter ? pst_engine_adapter_codes(live->adapter) : NULL;
  if (!code && live->has_prompt && live->prompt.n_labels)
    code = pst_gateway_slot_choices(live->slot, live->prompt.labels, live->prompt.n_labels, live->prompt.leading_space,
                                    codes, &live->constraint, err);
  if (!code && live->leaf && live->leaf->answers && !codes)
    code = pst_gateway_slot_corpus(live->slot, live->gateway->store, live->leaf->answers,
                                   live->leaf->layout == PST_GATEWAY_LAYOUT_PLAIN, &live->corpus, err);
  return code;
}

/* The engine is there: everything that can be refused before money is reserved. */
static int ready(pst_gateway_live *live, pst_error *err) {
  int code = pst_gateway_slot_check(live->gateway->engines, live->slot, err);
  if (!code && live->classifier) return pst_gateway_classifier_ready(live, err);
  if (!code) code = pst_gateway_embed_check_model(live, pst_engine_model_get_info(live->slot->model), err);
  if (!code) code = live->kind == PST_GATEWAY_EMBED ? pst_gateway_embed_prompt(live, err) : make_prompt(live, err);
  if (!code && live->kind == PST_GATEWAY_EMBED) {
    code = find_extras(live, err);
    if (!code) code = find_bound(live, err);
    return code ? code : pst_gateway_stage_reserve(live, err);
  }
  if (code) return code;
  int n_ctx = pst_engine_get_options(live->slot->engine)->n_ctx;
  const char *place = live->kind == PST_GATEWAY_CHAT ? "messages" : "prompt";
  if (live->prompt_tokens.n == 0) return pst_error_set(err, PST_E_BAD_INPUT, place, "the prompt is empty");
  if (live->prompt_tokens.n >= (size_t)n_ctx)
    return pst_error_set(err, PST_E_LIMIT, place,
                         "the prompt has %zu tokens; with its answer it must fit the context of %d, shorten it",
                         live->prompt_tokens.n, n_ctx);
  live->max_tokens = answer_length(live, n_ctx - (int)live->prompt_tokens.n);
  if (!code) code = find_extras(live, err);
  if (!code) code = find_bound(live, err);
  return code ? code : pst_gateway_stage_reserve(live, err);
}

/* ---- the requests -------------------------------------------------------------------------------------------------------------- */

void pst_gateway_local_over(void *arg) {
  pst_gateway_live *live = arg;
  if (live->classifier) {
    pst_gateway_classifier_over(live);
    return;
  }
  pthread_mutex_lock(&live->lock);
  int64_t cost = pst_gateway_cost_local(live->machine_nusd_per_hour, live->stage_busy_us);
  pst_error error = live->error;
  pthread_mutex_unlock(&live->lock);
  if (cost > live->bound_nusd) {
    pst_log(PST_LOG_WARN, "request=%s event=bound_exceeded cost_nusd=%lld bound_nusd=%lld", live->completion_id,
            (long long)cost, (long long)live->bound_nusd);
    cost = live->bound_nusd;
  }
  pst_gateway_stage_over(live, cost, error.code ? &error : NULL);
}

static void fail_locked(pst_gateway_live *live, const pst_error *error) {
  if (live->error.code == 0) live->error = *error;
}

/* Under lock: what the last event of a request says. True: it was the last at work. */
static bool count_locked(pst_gateway_live *live, const pst_engine_event *e) {
  live->stage_busy_us += e->busy_us;
  live->stage_completion += e->n_completion;
  live->stage_queued_us = PST_MAX(live->stage_queued_us, e->queued_us);
  live->stage_prompt_tokens = e->n_prompt; /* the same for all n */
  live->stage_cached = PST_MAX(live->stage_cached, e->n_cached);
  if (live->stage_first_us < 0 || e->first_token_us < live->stage_first_us) live->stage_first_us = e->first_token_us;
  if (isnan(live->stage_margin) || e->margin < live->stage_margin) live->stage_margin = e->margin;
  live->n_drafted += e->n_drafted;
  live->n_accepted += e->n_accepted;
  live->n_token_steps += e->n_token_steps;
  pst_error error = PST_ERROR_INIT;
  if (e->finish == PST_ENGINE_FINISH_ERROR) {
    if (e->error)
      error = *e->error;
    else
      pst_error_set(&error, PST_E_INTERNAL, NULL, "the engine failed");
    fail_locked(live, &error);
  } else if (e->finish == PST_ENGINE_FINISH_CANCELLED) {
    pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
    fail_locked(live, &error);
  }
  return --live->n_working == 0;
}

/* On the engine's thread. */
static void on_event(void *user, const pst_engine_event *e) {
  pst_gateway_choice *c = user;
  pst_gateway_live *live = c->call;
  bool token = e->token >= 0 && live->set.n_logprobs >= 0;
  if (e->text.n || token) pst_gateway_live_text(live, c->index, e->text, token ? e : NULL);
  if (e->finish == PST_ENGINE_FINISH_NONE) return;
  if (e->finish == PST_ENGINE_FINISH_STOP || e->finish == PST_ENGINE_FINISH_LENGTH)
    pst_gateway_live_finish(live, c->index, e->finish, NULL, 0);
  pthread_mutex_lock(&live->lock);
  bool last = count_locked(live, e);
  pthread_mutex_unlock(&live->lock);
  if (last) pst_gateway_local_over(live);
}

int pst_gateway_local_priority(const pst_gateway_live *live) {
  return live->purpose == PST_STORE_PURPOSE_USER ? 0 : live->purpose == PST_STORE_PURPOSE_SHADOW ? 2 : 1;
}

/* A node that drafts from past answers whose file was withdrawn, or whose adapter answers in codes, drafts from the text itself: drafts change the time only. */
static pst_engine_speculation speculation_of(const pst_gateway_live *live) {
  if (!live->leaf) return PST_ENGINE_SPEC_NONE;
  bool without = live->leaf->speculation == PST_ENGINE_SPEC_ANSWERS && !live->corpus;
  return without ? PST_ENGINE_SPEC_LOOKUP : live->leaf->speculation;
}

static pst_engine_request request_of(const pst_gateway_live *live, const pst_str *stop, size_t n_stop) {
  return (pst_engine_request){
      .prompt = live->prompt_tokens.ids,
      .n_prompt = live->prompt_tokens.n,
      .max_tokens = live->max_tokens,
      .sampling = pst_gateway_stage_sampling(live),
      .stop = stop,
      .n_stop = n_stop,
      .adapter = live->adapter,
      .choices = live->constraint,
      .speculation = speculation_of(live),
      .corpus = live->corpus,
      .n_logprobs = live->set.n_logprobs,
      .prefix_salt = live->purpose == PST_STORE_PURPOSE_USER ? (uint64_t)live->key_id : 0,
      .priority = pst_gateway_local_priority(live),
      .callback = on_event,
  };
}

/* The layout's stop strings and the request's. */
static int list_stops(const pst_gateway_live *live, pst_str **ret_stop, size_t *ret_n) {
  size_t n_layout = live->has_prompt ? live->prompt.n_stop : 0, n = n_layout + live->set.n_stop;
  pst_str *stop = pst_arena_calloc(live->arena, n + 1, sizeof *stop);
  if (!stop) return PST_E_NOMEM;
  for (size_t i = 0; i < n; i++) stop[i] = i < n_layout ? live->prompt.stop[i] : live->set.stop[i - n_layout];
  *ret_stop = stop;
  *ret_n = n;
  return 0;
}

/* Submits request i and notes its id; takes it back when the call was cancelled meanwhile. */
static int submit_one(pst_gateway_live *live, pst_engine_request *request, int i, pst_error *err) {
  pst_engine *engine = live->slot->engine;
  uint64_t id;
  request->sampling.choice = (uint32_t)i;
  request->user = &live->choices[i];
  int code = pst_engine_submit(engine, request, &id, err);
  if (code) return code;
  pthread_mutex_lock(&live->lock);
  live->request_ids[live->n_requests++] = id;
  bool cancelled = live->cancelled;
  pthread_mutex_unlock(&live->lock);
  if (cancelled) pst_engine_cancel(engine, id);
  return 0;
}

int pst_gateway_local_submit(pst_gateway_live *live, pst_error *err) {
  pst_str *stop;
  size_t n_stop;
  if (live->kind == PST_GATEWAY_EMBED) return pst_gateway_embed_submit(live, live->n_inputs, err);
  int code = 0, n = live->n, n_submitted = 0;
  pst_error error = PST_ERROR_INIT;
  if (list_stops(live, &stop, &n_stop)) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a request");
  pst_engine_request request = request_of(live, stop, n_stop);
  for (int i = 0; i < n; i++)
    live->choices[i].strip_space = live->has_prompt && live->prompt.leading_space && !live->constraint;
  pthread_mutex_lock(&live->lock);
  live->phase = PST_GATEWAY_ANSWERING;
  live->n_requests = 0;
  live->n_working = n + 1;
  pthread_mutex_unlock(&live->lock);
  for (; n_submitted < n && !code; n_submitted += !code) code = submit_one(live, &request, n_submitted, &error);
  if (code == PST_E_BUSY) live->retry_after_s = 1;
  if (code && n_submitted == 0) {
    pst_gateway_live_set_phase(live, PST_GATEWAY_STARTING);
    if (err) *err = error;
    return code;
  }
  pthread_mutex_lock(&live->lock);
  if (code) {
    fail_locked(live, &error);
    for (int i = 0; i < live->n_requests; i++) pst_engine_cancel(live->slot->engine, live->request_ids[i]);
  }
  live->n_working -= n - n_submitted + 1;
  bool last = live->n_working == 0;
  pthread_mutex_unlock(&live->lock);
  if (last)
    pst_gateway_live_post(live, pst_gateway_local_over); /* the caller's callback may not run inside pst_gateway_chat */
  return 0;
}

void pst_gateway_local_cancel(pst_gateway_live *live) {
  for (int i = 0; i < live->n_requests; i++) pst_engine_cancel(live->slot->engine, live->request_ids[i]);
}
