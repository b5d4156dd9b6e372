/* From stage to stage: a call is answered by one leaf of its plan after the other until an answer is good enough. Each stage reserves its own upper bound
 * before it starts and settles when it is over, so that a later stage that the budget does not cover is refused, never overspent. */
#include "gateway/live.h"

#include <math.h>
#include <string.h>

static void next_on_loop(void *arg) {
  pst_gateway_live *live = arg;
  pst_error error = PST_ERROR_INIT;
  int code = pst_gateway_live_is_cancelled(live) ? pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled")
                                                 : pst_gateway_stage_begin(live, NULL, &error);
  if (code) pst_gateway_stage_over(live, 0, &error);
}

int pst_gateway_stage_begin(pst_gateway_live *live, const pst_gateway_call *call, pst_error *err) {
  const pst_gateway_node *leaf = live->leaf;
  live->final = !leaf || !pst_gateway_next_leaf(&live->plan->root, leaf, -INFINITY);
  live->stage_start_us = pst_clock_us();
  live->stage_busy_us = live->stage_completion = live->stage_queued_us = 0;
  live->stage_prompt_tokens = live->stage_cached = 0;
  live->stage_first_us = -1;
  live->stage_margin = NAN;
  live->bound_nusd = live->reservation = 0;
  live->error = (pst_error)PST_ERROR_INIT;
  if (live->cached) return pst_gateway_cache_begin(live, err);
  if (leaf && leaf->op == PST_GATEWAY_OP_CLASSIFIER) return pst_gateway_classifier_begin(live, err);
  if (leaf && leaf->op == PST_GATEWAY_OP_REMOTE)
    return pst_gateway_remote_begin(live, call, pst_str_from(leaf->provider), pst_str_from(leaf->model), err);
  if (!leaf && live->provider.data)
    return pst_gateway_remote_begin(live, call, live->provider, live->provider_model, err);
  return pst_gateway_local_begin(live, err);
}

int pst_gateway_stage_prompt(pst_gateway_live *live, pst_error *err) {
  const pst_gateway_node *leaf = live->leaf;
  int code = leaf->examples_index && leaf->n_examples > 0
                 ? pst_gateway_index_get(live->gateway, leaf->examples_index, &live->index, err)
                 : 0;
  if (!code)
    code = pst_gateway_prompt_build(live->plan, leaf, live->index, live->input, live->exclude, live->n_exclude,
                                    &live->prompt, err);
  live->has_prompt = !code;
  if (live->index) live->shown_examples = leaf->examples_index;
  return code;
}

pst_engine_sampling pst_gateway_stage_sampling(const pst_gateway_live *live) {
  const pst_gateway_overrides *set = &live->set;
  pst_engine_sampling s = live->leaf ? live->leaf->sampling : pst_engine_sampling_default();
  if (set->has_temperature) s.temperature = set->temperature;
  if (set->has_top_k) s.top_k = set->top_k;
  if (set->has_top_p) s.top_p = set->top_p;
  if (set->has_min_p) s.min_p = set->min_p;
  if (set->has_penalties) {
    s.repetition_penalty = set->repetition_penalty;
    s.frequency_penalty = set->frequency_penalty;
    s.presence_penalty = set->presence_penalty;
  }
  if (set->has_seed)
    s.seed = set->seed;
  else if (s.seed == 0)
    s.seed = live->seed;
  if (set->n_bias) {
    s.bias = set->bias;
    s.n_bias = set->n_bias;
  }
  return s;
}

int pst_gateway_stage_machine_price(pst_gateway_live *live, pst_error *err) {
  pst_error why = PST_ERROR_INIT;
  int code = pst_store_machine_price_get(live->gateway->store, &live->machine_nusd_per_hour, &why);
  if (code == PST_E_NOT_FOUND) {
    live->machine_nusd_per_hour = 0; /* a machine without a price costs nothing */
    return 0;
  }
  if (code && err) *err = why;
  return code;
}

/* ---- money --------------------------------------------------------------------------------------------------------------- */

static int start_target(pst_gateway_live *live, pst_error *err) {
  if (live->cached) return pst_gateway_cache_submit(live, err);
  if (live->classifier) return pst_gateway_classifier_submit(live, err);
  if (!live->upstream) return pst_gateway_local_submit(live, err);
  pst_gateway_live_set_phase(live, PST_GATEWAY_UPSTREAM);
  pst_gateway_live_post(live, pst_gateway_remote_start);
  return 0;
}

static void reserved_on_loop(void *arg) {
  pst_gateway_live *live = arg;
  pst_error error = live->error;
  int code = error.code;
  if (!code && pst_gateway_live_is_cancelled(live)) code = pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
  live->error = (pst_error)PST_ERROR_INIT;
  if (!code) code = start_target(live, &error);
  if (code) pst_gateway_stage_over(live, 0, &error);
}

/* On the store's writer thread, or inside pst_store_budget_reserve_async. */
static void on_reserved(void *user, int code, int64_t reservation, const pst_error *err) {
  pst_gateway_live *live = user;
  live->reservation = code ? 0 : reservation;
  if (code) {
    live->error = *err;
    live->error.code = code;
  }
  pst_gateway_live_post(live, reserved_on_loop);
}

int pst_gateway_stage_reserve(pst_gateway_live *live, pst_error *err) {
  if (live->key_id == 0 || (live->providers_only && !live->upstream)) return start_target(live, err);
  pst_gateway_live_set_phase(live, PST_GATEWAY_RESERVING);
  return pst_store_budget_reserve_async(live->gateway->store, live->key_id, live->bound_nusd, pst_clock_unix_ms(),
                                        on_reserved, live, err);
}

static void settle(pst_gateway_live *live, int64_t cost_nusd, bool failed) {
  int64_t sum;
  live->cost_nusd = pst_store_nusd_add(live->cost_nusd, cost_nusd, &sum) ? INT64_MAX : sum;
  if (!live->reservation) return;
  pst_error why = PST_ERROR_INIT;
  pst_store *store = live->gateway->store;
  int code = failed && cost_nusd == 0 ? pst_store_budget_release(store, live->reservation, &why)
                                      : pst_store_budget_settle(store, live->reservation, cost_nusd, &why);
  if (code) /* it stays open and counts in full: safe, and seen in the ledger */
    pst_log(PST_LOG_ERROR, "request=%s event=settle_failed reason=\"%s\"", live->completion_id, why.message);
  live->reservation = 0;
}

/* ---- over ------------------------------------------------------------------------------------------------------------------ */

void pst_gateway_stage_clean(pst_gateway_live *live) {
  pst_gateway_upstream_free(live->upstream);
  live->upstream = NULL;
  pst_engine_choices_unref(live->constraint);
  live->constraint = NULL;
  pst_engine_corpus_unref(live->corpus);
  live->corpus = NULL;
  pst_engine_adapter_unref(live->adapter);
  live->adapter = NULL;
  live->classifier = NULL; /* the gateway's */
  pst_engine_tokens_done(&live->prompt_tokens);
  live->prompt_tokens = (pst_engine_tokens){NULL, 0, 0};
  if (live->has_prompt) pst_gateway_prompt_done(&live->prompt);
  live->has_prompt = false;
  if (live->index) pst_gateway_index_unref(live->index);
  live->index = NULL;
  pst_gateway_engines_give(live->gateway->engines, live->slot);
  live->slot = NULL;
}

void pst_gateway_stage_over(pst_gateway_live *live, int64_t cost_nusd, const pst_error *error) {
  pst_error kept = error ? *error : (pst_error)PST_ERROR_INIT;
  pthread_mutex_lock(&live->lock);
  live->phase = PST_GATEWAY_STARTING;
  bool cancelled = live->cancelled;
  pthread_mutex_unlock(&live->lock);
  if (cancelled) pst_error_set(&kept, PST_E_CANCELLED, NULL, "cancelled");
  settle(live, cost_nusd, kept.code != 0);
  live->prompt_tokens_sum += live->stage_prompt_tokens;
  live->cached_sum += live->stage_cached;
  live->completion_sum += live->stage_completion;
  live->queued_us += live->stage_queued_us;
  live->margin = live->stage_margin;
  if (live->stage_first_us >= 0) live->ttft_us = live->stage_start_us - live->start_us + live->stage_first_us;
  if (kept.code) {
    pst_gateway_stage_clean(live);
    pst_gateway_live_end(live, &kept);
    return;
  }
  live->stage++;
  const pst_gateway_node *next =
      live->leaf ? pst_gateway_next_leaf(&live->plan->root, live->leaf, live->stage_margin) : NULL;
  if (!next && !live->final) pst_gateway_live_release(live);
  pst_gateway_stage_clean(live);
  if (!next) {
    pst_gateway_live_end(live, NULL);
    return;
  }
  pst_gateway_live_forget(live);
  live->leaf = next;
  pst_gateway_live_post(live, next_on_loop); /* this may be an engine's thread, which must not submit */
}
