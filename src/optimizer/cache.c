/* The answer cache in plans (cache.h). Its worth is one number, the share of requests that repeat, and that is counted in the records of the workload itself: items of evals are chosen to
 * differ, and a trace made of them says nothing about it. */
#include "optimizer/cache.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "optimizer/constants.h"

#define C PST_OPTIMIZER_CONST

enum { MAX_LOOKED_AT = 10000 };

static const char *const WISHES[PST_OPTIMIZER_CACHE_WISHES] = {"auto", "on", "off"};

const char *pst_optimizer_cache_wish_name(pst_optimizer_cache_wish wish) {
  return (unsigned)wish < PST_OPTIMIZER_CACHE_WISHES ? WISHES[wish] : "unknown";
}

bool pst_optimizer_cache_wish_from(pst_str name, pst_optimizer_cache_wish *ret_wish) {
  for (int i = 0; i < PST_OPTIMIZER_CACHE_WISHES; i++) {
    if (!pst_str_is(name, WISHES[i])) continue;
    *ret_wish = (pst_optimizer_cache_wish)i;
    return true;
  }
  return false;
}

/* ---- counting repeats ------------------------------------------------------------------------------------------------------ */

typedef struct fingerprint {
  uint64_t a, b;
} fingerprint;

typedef struct counting {
  fingerprint *list;
  size_t n, capacity;
  int64_t n_random; /* of them the next answer may be another one */
} counting;

static bool is_about_the_asker(pst_str key) {
  static const char *const keys[] = {"model", "user", "safety_identifier", "stream", "stream_options"};
  for (size_t i = 0; i < PST_ARRAY_LEN(keys); i++)
    if (pst_str_is(key, keys[i])) return true;
  return false;
}

/* As the gateway's cache decides (gateway/cache.c); plans that are searched for are greedy by themselves. */
static bool is_random(const pst_json *input) {
  bool drawn = pst_json_double(pst_json_get(input, "temperature"), 0) > 0 && !pst_json_get(input, "seed");
  return drawn || pst_json_bool(pst_json_get(input, "logprobs"), false);
}

/* What a record asked, without who asked. */
static int add_record(void *user, const pst_store_request *r) {
  counting *c = user;
  pst_json_doc *doc = NULL;
  pst_buf text = PST_BUF_INIT;
  if (!pst_str_is(r->finish, "stop") || !r->input_json.data) return 0;
  int code = pst_json_parse(r->input_json.data, r->input_json.n, "record", &doc, NULL);
  if (code) return code == PST_E_NOMEM ? code : 0;
  const pst_json *input = pst_json_root(doc);
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "key", r->key_id);
  for (pst_json_iter it = pst_json_iterate(input); pst_json_next(&it);) {
    if (is_about_the_asker(it.key)) continue;
    pst_json_key_str(&w, it.key);
    pst_json_put_value(&w, it.value);
  }
  pst_json_end_object(&w);
  code = pst_buf_status(&text);
  if (!code && is_random(input))
    c->n_random++;
  else if (!code && !(code = pst_array_reserve((void **)&c->list, &c->capacity, c->n + 1, sizeof *c->list)))
    c->list[c->n++] = (fingerprint){pst_hash64(text.data, text.n, 1), pst_hash64(text.data, text.n, 2)};
  pst_buf_done(&text);
  pst_json_free(doc);
  return code;
}

static int by_value(const void *a, const void *b) {
  const fingerprint *x = a, *y = b;
  if (x->a != y->a) return x->a < y->a ? -1 : 1;
  return x->b < y->b ? -1 : x->b > y->b;
}

static int64_t count_again(counting *c) {
  int64_t n = 0;
  if (c->n) qsort(c->list, c->n, sizeof *c->list, by_value);
  for (size_t i = 1; i < c->n; i++) n += by_value(&c->list[i - 1], &c->list[i]) == 0;
  return n;
}

int pst_optimizer_repeats_count(pst_store *store, pst_str workload, int64_t now_ms, pst_buf *out, pst_error *err) {
  counting c = {.list = NULL};
  pst_store_usage all = {0}, kept = {0};
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  f.workload = workload;
  f.purpose = PST_STORE_PURPOSE_USER;
  f.since_ms = PST_MAX(now_ms - pst_gateway_cache_default().ttl_s * 1000, 1);
  int code = pst_store_usage_get(store, &f, &all, err);
  f.answered = true;
  if (!code) code = pst_store_usage_get(store, &f, &kept, err);
  f.with_content = f.newest_first = true;
  f.limit = MAX_LOOKED_AT;
  if (!code && (code = pst_store_request_each(store, &f, add_record, &c, err)) == PST_E_NOMEM)
    pst_error_set(err, code, NULL, "no memory to compare records");
  if (!code) {
    pst_json_writer w = pst_json_writer_on(out, false);
    pst_json_begin_object(&w);
    pst_json_member_int(&w, "requests", all.n_requests);
    pst_json_member_int(&w, "kept", kept.n_requests);
    pst_json_member_int(&w, "looked_at", (int64_t)c.n + c.n_random);
    pst_json_member_int(&w, "repeats", count_again(&c));
    pst_json_end_object(&w);
    if (pst_buf_status(out)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory to compare records");
  }
  pst_free(c.list);
  return code;
}

/* ---- deciding -------------------------------------------------------------------------------------------------------------- */

typedef struct worth {
  double requests, kept, looked_at, repeats;
  double share;     /* of all requests that a cache is expected to answer */
  double with_nusd; /* a request, looking and keeping included */
  bool gains;
} worth;

/* Requests whose content is not kept are looked up as well, but nobody knows what they ask: they are taken to repeat nothing. */
static worth worth_of(const pst_optimizer_cache_question *q) {
  worth v = {.requests = pst_json_double(pst_json_get(q->repeats, "requests"), 0),
             .kept = pst_json_double(pst_json_get(q->repeats, "kept"), 0),
             .looked_at = pst_json_double(pst_json_get(q->repeats, "looked_at"), 0),
             .repeats = pst_json_double(pst_json_get(q->repeats, "repeats"), 0)};
  if (v.looked_at > 0 && v.requests > 0) v.share = v.repeats / v.looked_at * fmin(v.kept / v.requests, 1);
  v.with_nusd = C(cache_us) / 3.6e9 * (double)q->price_nusd_per_hour + (1 - v.share) * q->request_nusd;
  v.gains = v.requests >= C(traffic_requests) && v.with_nusd < (1 - C(cache_gain)) * q->request_nusd;
  return v;
}

static const char *verdict_of(const pst_optimizer_cache_question *q, const worth *v, bool on, bool no_hash) {
  if (on) return "in_plan";
  if (no_hash) return "no_hash";
  if (v->requests < C(traffic_requests)) return "too_few_requests";
  if (v->kept == 0) return "nothing_kept";
  return v->gains ? "proposed" : isfinite(q->request_nusd) ? "no_gain" : "unknown";
}

static void write_advice(const pst_optimizer_cache_question *q, const worth *v, const char *verdict, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "verdict", verdict);
  if (q->repeats) {
    pst_json_member_double(&w, "requests", v->requests);
    pst_json_member_double(&w, "requests_wanted", C(traffic_requests));
    pst_json_member_double(&w, "days", (double)pst_gateway_cache_default().ttl_s / 86400);
    pst_json_member_double(&w, "kept", v->kept);
    pst_json_member_double(&w, "share", v->share);
    pst_json_member_double(&w, "request_nusd", q->request_nusd);
    pst_json_member_double(&w, "request_nusd_with", v->with_nusd);
  }
  pst_json_end_object(&w);
}

/* The document with that cache; PST_E_BAD_INPUT where an engine has no hash. */
static int rewrite(const pst_gateway_plan *plan, pst_gateway_cache cache, pst_buf *json, pst_error *err) {
  pst_gateway_plan changed = *plan, *parsed = NULL;
  pst_buf text = PST_BUF_INIT;
  changed.cache = cache;
  int code = pst_gateway_plan_write(&changed, &text, err);
  if (!code) code = pst_gateway_plan_parse(pst_buf_str(&text), "plan", &parsed, err);
  pst_gateway_plan_unref(parsed);
  if (!code) {
    pst_buf_clear(json);
    pst_buf_append_str(json, pst_buf_str(&text));
    if (pst_buf_status(json)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a plan");
  }
  pst_buf_done(&text);
  return code;
}

int pst_optimizer_cache_decide(const pst_optimizer_cache_question *q, pst_buf *json, pst_buf *advice, pst_error *err) {
  static const pst_gateway_cache off;
  pst_gateway_plan *plan = NULL;
  pst_error why = PST_ERROR_INIT;
  worth v = worth_of(q);
  int code = pst_gateway_plan_parse(pst_buf_str(json), "plan", &plan, err);
  if (code) return code;
  bool wanted =
      q->wish == PST_OPTIMIZER_CACHE_ON || (q->wish == PST_OPTIMIZER_CACHE_AUTO && (q->in_force.on || v.gains));
  bool on = q->taken ? wanted : plan->cache.on, no_hash = false;
  if (on != plan->cache.on) {
    pst_gateway_cache cache = !on ? off : q->in_force.on ? q->in_force : pst_gateway_cache_default();
    code = rewrite(plan, cache, json, &why);
    no_hash = code == PST_E_BAD_INPUT && q->wish == PST_OPTIMIZER_CACHE_AUTO;
    on = on && !code;
  }
  if (no_hash) code = 0;
  if (code && err) *err = why;
  bool silent = q->wish == PST_OPTIMIZER_CACHE_OFF || (!q->repeats && !on && !no_hash);
  if (!code && !silent) write_advice(q, &v, verdict_of(q, &v, on, no_hash), advice);
  if (!code && pst_buf_status(advice)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the advice");
  pst_gateway_plan_unref(plan);
  return code;
}
