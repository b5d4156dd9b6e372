/* The exact answer cache: a request of a workload that was answered before, asked in exactly the same way, is answered from the record of that time.
 *
 * What an answer depends on, and nothing else, is the key: the plan without its cache, the input as the plan takes it from the messages, and all that the request itself
 * sets. The engine's answers are bit-exact, so a hit is what would have been computed again; of a provider's model it is assumed at temperature 0. Where chance takes part
 * (a temperature without a seed), nothing is looked up and nothing is kept.
 *
 * Who may be given what: an entry leads to a record of the same API key only. Keys are parties that must not learn of each other (as for prefixes of prompts); behind
 * one key, one application sees all of its users' texts anyway. A user of it who is given another one's answer learns no text that his own question would not
 * have brought him; that the question was asked before shows in the time taken. An application to which that matters says so by Cache-Control, or keeps no content.
 *
 * Owns the key, the decision and the stage of a hit; the store owns the entries (store/cache.c). Only users' calls come here: evals, searches and teachers always compute. */
#include "gateway/live.h"

#include <string.h>

/* Of the key: to be raised when this program's answers to the same request change. */
enum { KEY_VERSION = 1 };

const char *pst_gateway_cache_name(pst_gateway_cache_use use) {
  static const char *const names[] = {"off", "hit", "miss", "bypass"};
  return (unsigned)use < PST_GATEWAY_CACHE_COUNT ? names[use] : "unknown";
}

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a request"); }

/* ---- what can be given again ----------------------------------------------------------------------------------------------- */

/* 1: chance takes part in what this leaf answers. A provider's seed is a wish. */
static int is_random(void *user, const pst_gateway_node *leaf) {
  const pst_gateway_overrides *set = user;
  if (leaf->op == PST_GATEWAY_OP_CLASSIFIER) return 0;
  bool greedy = (set->has_temperature ? set->temperature : leaf->sampling.temperature) <= 0;
  bool seeded = leaf->op == PST_GATEWAY_OP_LOCAL && (set->has_seed || leaf->sampling.seed != 0);
  return !greedy && !seeded;
}

static bool is_repeatable(pst_gateway_live *live) {
  return live->set.n_logprobs < 0 && live->n_exclude == 0 &&
         !pst_gateway_each_leaf(&live->plan->root, is_random, &live->set);
}

/* ---- the key --------------------------------------------------------------------------------------------------------------- */

static void write_set(pst_json_writer *w, const pst_gateway_overrides *set) {
  if (set->has_temperature) pst_json_member_double(w, "temperature", (double)set->temperature);
  if (set->has_top_k) pst_json_member_int(w, "top_k", set->top_k);
  if (set->has_top_p) pst_json_member_double(w, "top_p", (double)set->top_p);
  if (set->has_min_p) pst_json_member_double(w, "min_p", (double)set->min_p);
  if (set->has_max_tokens) pst_json_member_int(w, "max_tokens", set->max_tokens);
  if (set->has_seed) pst_json_member_int(w, "seed", (int64_t)set->seed);
  if (set->has_penalties) {
    pst_json_member_double(w, "repetition_penalty", (double)set->repetition_penalty);
    pst_json_member_double(w, "frequency_penalty", (double)set->frequency_penalty);
    pst_json_member_double(w, "presence_penalty", (double)set->presence_penalty);
  }
  pst_json_member_strs(w, "stop", set->stop, set->n_stop);
  pst_json_key(w, "bias");
  pst_json_begin_array(w);
  for (size_t i = 0; i < set->n_bias; i++) {
    pst_json_put_int(w, set->bias[i].token);
    pst_json_put_double(w, (double)set->bias[i].bias);
  }
  pst_json_end_array(w);
}

/* What only the client's request says: formats, tools. Its messages are in the input; whose request it is changes no answer. */
static int write_request(const pst_wire_request *request, pst_buf *out, pst_error *err) {
  pst_wire_request q = *request;
  q.kind = PST_WIRE_CHAT;
  q.chat.n_messages = 0;
  q.user = q.safety_identifier = (pst_str){NULL, 0};
  return pst_wire_upstream_write(&q, PST_STR(""), false, out, err);
}

static int make_key(pst_gateway_live *live, const pst_gateway_call *call, pst_error *err) {
  pst_buf text = PST_BUF_INIT, request = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  int code = call->request ? write_request(call->request, &request, err) : 0;
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "version", KEY_VERSION);
  pst_json_member_cstr(&w, "plan", live->plan->answers_hash);
  pst_json_member_int(&w, "key", live->key_id);
  pst_json_member_str(&w, "input", live->input);
  pst_json_member_int(&w, "n", live->n);
  write_set(&w, &live->set);
  if (request.n) {
    pst_json_key(&w, "request");
    pst_json_put_raw(&w, pst_buf_str(&request));
  }
  pst_json_end_object(&w);
  if (!code && pst_buf_status(&text)) code = no_memory(err);
  if (!code) pst_sha256_hex(text.data, text.n, live->cache_key);
  pst_buf_done(&text);
  pst_buf_done(&request);
  return code;
}

/* ---- looking --------------------------------------------------------------------------------------------------------------- */

static pst_str choice_text(const pst_gateway_live *live, int i) {
  const pst_json *choices = pst_json_get(pst_json_root(live->cached), "choices");
  return pst_json_str(pst_json_get(pst_json_at(choices, (size_t)i), "text"));
}

/* The answer under the key, if there is one. A store that cannot be read costs the call its cache, not its answer. */
static int find_answer(pst_gateway_live *live, pst_error *err) {
  pst_store_cached found = {0};
  pst_error why = PST_ERROR_INIT;
  int64_t since_ms = live->time_ms - live->plan->cache.ttl_s * 1000;
  int code =
      pst_store_cache_get(live->gateway->store, pst_str_from(live->cache_key), since_ms, live->time_ms, &found, &why);
  if (!code) code = pst_json_parse(found.output_json, strlen(found.output_json), "cache", &live->cached, &why);
  if (!code) {
    live->cached_prompt = found.prompt_tokens;
    live->cached_completion = found.completion_tokens;
    live->model = pst_arena_strndup(live->arena, found.model, strlen(found.model));
  } else if (code != PST_E_NOT_FOUND) {
    pst_log(PST_LOG_WARN, "request=%s event=cache_not_read reason=\"%s\"", live->completion_id, why.message);
  }
  pst_store_cached_done(&found);
  return live->model ? 0 : no_memory(err);
}

/* A plan that caches where nothing may be kept is a mistake that nobody would see. */
static void warn_once(pst_gateway_live *live) {
  if (live->keep_content || atomic_exchange(&live->gateway->warned_of_cache, true)) return;
  pst_log(PST_LOG_WARN,
          "event=cache_without_content workload=%s reason=\"the plan gives answers again, and this request's consent "
          "keeps no content to give: serve --keep content, or a key's own\"",
          live->workload);
}

int pst_gateway_cache_look(pst_gateway_live *live, const pst_gateway_call *call, pst_error *err) {
  bool on = live->purpose == PST_STORE_PURPOSE_USER && live->leaf && live->plan->cache.on;
  if (!on) return 0;
  warn_once(live);
  live->cache = PST_GATEWAY_CACHE_BYPASS;
  if (call->no_store || !is_repeatable(live)) return 0;
  int code = make_key(live, call, err);
  if (code || call->fresh) return code;
  if (!(code = find_answer(live, err))) live->cache = live->cached ? PST_GATEWAY_CACHE_HIT : PST_GATEWAY_CACHE_MISS;
  return code;
}

/* ---- the stage of a hit ---------------------------------------------------------------------------------------------------- */

/* What it costs is known before it is reserved: the time that this machine has spent on the call so far. Where that has no price there is nothing to reserve, and no
 * commit to wait for. */
int pst_gateway_cache_begin(pst_gateway_live *live, pst_error *err) {
  live->leaf = NULL;
  live->final = true;
  live->target = "cache";
  int code = pst_gateway_stage_machine_price(live, err);
  if (code) return code;
  live->stage_busy_us = pst_clock_us() - live->start_us;
  live->bound_nusd = pst_gateway_cost_local(live->machine_nusd_per_hour, live->stage_busy_us);
  return live->bound_nusd ? pst_gateway_stage_reserve(live, err) : pst_gateway_cache_submit(live, err);
}

static void over(void *arg) {
  pst_gateway_live *live = arg;
  pst_error error = PST_ERROR_INIT;
  if (pst_gateway_live_is_cancelled(live)) pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
  for (int i = 0; i < live->n && !error.code; i++) {
    pst_gateway_live_text(live, (uint32_t)i, choice_text(live, i), NULL);
    pst_gateway_live_finish(live, (uint32_t)i, PST_ENGINE_FINISH_STOP, NULL, 0);
  }
  live->stage_prompt_tokens = (int)live->cached_prompt;
  live->stage_cached = (int)live->cached_prompt; /* not one of them was computed */
  live->stage_completion = live->cached_completion;
  live->stage_first_us = pst_clock_us() - live->stage_start_us;
  pst_gateway_stage_over(live, live->bound_nusd, error.code ? &error : NULL);
}

int pst_gateway_cache_submit(pst_gateway_live *live, pst_error *err) {
  (void)err;
  pst_gateway_live_set_phase(live, PST_GATEWAY_STARTING); /* a cancel from here on is seen on the loop */
  pst_gateway_live_post(live, over); /* the caller's callback may not run inside pst_gateway_chat */
  return 0;
}

/* ---- keeping --------------------------------------------------------------------------------------------------------------- */

/* Whole answers only; none that calls a tool, which would be called twice; and bytes that a record holds as they are, which JSON does of UTF-8 alone. */
static bool is_whole(const pst_gateway_choice *c) {
  return c->finish == PST_ENGINE_FINISH_STOP && !c->tool_calls.n && pst_utf8_valid(pst_buf_str(&c->text));
}

pst_store_reuse pst_gateway_cache_reuse(const pst_gateway_live *live) {
  pst_store_reuse reuse = {.hit = live->cached != NULL};
  for (int i = 0; i < live->n; i++)
    if (!is_whole(&live->choices[i])) return reuse;
  if (!live->cache_key[0]) return reuse;
  reuse.key = pst_str_from(live->cache_key);
  reuse.examples = pst_str_from(live->shown_examples);
  reuse.max_entries = live->plan->cache.max_entries;
  return reuse;
}
