/* Answers given before, to exactly the same question: the cache is the records themselves, found by a key.
 *
 * The key is of the plan, the input as the plan takes it, and what the request says of its answer's end; where anything is drawn, or the request wants what a record does not hold, there
 * is none. An answer is there as long as its record: what a key's consent does not let be kept is never given again, and retention and erasure end it at once. Whoever asks the
 * same words of the same workload is given it, whose record it is: by construction it says no more than the model would. Measurements neither look here nor leave anything. */
#include "gateway/live.h"

#include <string.h>

static int is_drawn(void *user, const pst_gateway_node *leaf) {
  (void)user;
  return leaf->op != PST_GATEWAY_OP_CLASSIFIER && leaf->sampling.temperature > 0;
}

static bool may_repeat(const pst_gateway_live *live, const pst_gateway_call *call) {
  const pst_gateway_overrides *set = &live->set;
  const pst_wire_request *q = call->request;
  if (!live->plan || !live->plan->cache_ttl_s || !live->leaf || live->purpose != PST_STORE_PURPOSE_USER) return false;
  if (live->kind != PST_GATEWAY_CHAT || live->n != 1 || set->n_logprobs >= 0 || call->anew) return false;
  if (set->has_penalties || set->n_bias || set->has_min_p) return false;
  if (q && (q->format != PST_WIRE_FORMAT_TEXT || (q->chat.tools && q->tool_choice != PST_WIRE_TOOLS_NONE)))
    return false;
  if (set->has_temperature) return set->temperature == 0;
  return !pst_gateway_each_leaf(&live->plan->root, is_drawn, NULL);
}

static void hash_str(pst_sha256 *s, pst_str text) {
  uint64_t n = text.n;
  pst_sha256_update(s, &n, sizeof n);
  pst_sha256_update(s, text.data ? text.data : "", text.n);
}

static void make_key(pst_gateway_live *live) {
  const pst_gateway_overrides *set = &live->set;
  int64_t numbers[] = {set->has_max_tokens ? set->max_tokens : 0, set->has_stop, (int64_t)set->n_stop};
  uint8_t digest[32];
  pst_sha256 s;
  pst_sha256_init(&s);
  hash_str(&s, pst_str_from(live->plan->hash));
  hash_str(&s, live->input);
  pst_sha256_update(&s, numbers, sizeof numbers);
  for (size_t i = 0; i < set->n_stop; i++) hash_str(&s, set->stop[i]);
  pst_sha256_done(&s, digest);
  pst_hex(digest, sizeof digest, live->answer_key);
}

/* On the loop. */
static void give_again(void *arg) {
  pst_gateway_live *live = arg;
  pst_error error = PST_ERROR_INIT;
  if (pst_gateway_live_is_cancelled(live)) {
    pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
    pst_gateway_live_end(live, &error);
    return;
  }
  live->ttft_us = pst_clock_us() - live->start_us;
  pst_gateway_live_text(live, 0, live->given_before, NULL);
  pst_gateway_live_finish(live, 0, PST_ENGINE_FINISH_STOP, NULL, 0);
  pst_gateway_live_end(live, NULL);
}

bool pst_gateway_cache_answers(pst_gateway_live *live, const pst_gateway_call *call) {
  pst_buf output = PST_BUF_INIT;
  pst_json_doc *doc = NULL;
  if (!may_repeat(live, call)) return false;
  make_key(live);
  int64_t since = live->time_ms - 1000 * live->plan->cache_ttl_s;
  int code = pst_store_answer_find(live->gateway->store, pst_str_from(live->answer_key), since, &output, NULL);
  if (!code) code = pst_json_parse(output.data, output.n, "answer", &doc, NULL);
  const pst_json *first = code ? NULL : pst_json_at(pst_json_get(pst_json_root(doc), "choices"), 0);
  const pst_json *said = pst_json_get(first, "tool_calls") ? NULL : pst_json_get(first, "text");
  pst_str text = pst_json_str(said);
  char *copy = said ? pst_arena_strndup(live->arena, text.data, text.n) : NULL;
  if (copy) {
    live->given_before = (pst_str){copy, text.n};
    live->target = live->model = "cache";
    live->answer_key[0] = '\0'; /* a copy of a copy would never grow old */
    live->final = true;
    pst_gateway_live_set_phase(live, PST_GATEWAY_STARTING);
    pst_gateway_live_post(live, give_again);
  }
  pst_json_free(doc);
  pst_buf_done(&output);
  return copy != NULL;
}
