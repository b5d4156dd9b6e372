/* pst_optimizer_run: the store's side of a run. Begins, finds or reopens the run, keeps plan and evidence, ends it. What makes two runs the same stands in the
 * run's params; a replay takes everything from there. */
#include <stdlib.h>
#include <string.h>

#include "optimizer/constants.h"
#include "optimizer/optimize.h"

#define C PST_OPTIMIZER_CONST
#define SPACE_VERSION 5 /* of the meaning of the log: grows when the search asks other questions */

typedef struct run {
  pst_gateway *gateway;
  pst_store *store;
  const pst_evals_workload *workload;
  const pst_evals_info *info;
  pst_arena *arena;
  pst_optimizer_target targets[PST_OPTIMIZER_MAX_VALUES];
  size_t n_targets;
  pst_optimizer_model encoders[PST_OPTIMIZER_MAX_CLASSIFIERS];
  size_t n_encoders;
  pst_optimizer_input in;
  char examples_index[65], answers[65];
  char *reference_plan;
  pst_buf params;
  pst_store_run_lock lock; /* on the question: who goes on with a run is alone with it */
  int64_t run_id;
  bool replay;    /* from the log alone */
  char taken[65]; /* plan of the run to replay; empty: it did not end */
  pst_error *err;
} run;

/* ---- what there is to choose from ---- */

typedef struct provider_search {
  pst_str id;
  size_t n; /* length of the provider's name; 0: none */
} provider_search;

static int match_provider(void *user, pst_str name, pst_str base_url, pst_str key_env) {
  (void)base_url;
  (void)key_env;
  provider_search *s = user;
  if (s->id.n > name.n + 1 && pst_str_starts(s->id, name) && s->id.data[name.n] == '/') s->n = PST_MAX(s->n, name.n);
  return 0;
}

static int add_remote(void *user, const char *id, const char *owner) {
  run *r = user;
  (void)owner;
  provider_search p = {pst_str_from(id), 0};
  if (pst_gateway_provider_each(r->store, match_provider, &p, NULL) || !p.n) return 0;
  if (r->n_targets == PST_OPTIMIZER_MAX_VALUES) {
    pst_log(PST_LOG_WARN, "event=model_passed_over model=%s reason=\"more than %d models and adapters\"", id,
            (int)PST_OPTIMIZER_MAX_VALUES);
    return 0;
  }
  pst_optimizer_target t = {0};
  pst_str provider = {id, p.n}, model = {id + p.n + 1, p.id.n - p.n - 1};
  if (pst_store_price_get(r->store, provider, model, &t.price, NULL))
    return 0; /* without a price nothing can be planned */
  t.name = pst_arena_strndup(r->arena, id, p.id.n);
  t.provider = pst_arena_strndup(r->arena, provider.data, provider.n);
  t.has_template = true;
  if (t.name && t.provider) r->targets[r->n_targets++] = t;
  return 0;
}

/* Whether a note on an adapter is the prompt and layout of a plan's node: a plan that says so is one. */
static bool is_way_to_ask(const char *text) {
  pst_json_doc *doc = NULL;
  pst_buf plan = PST_BUF_INIT;
  pst_gateway_plan *parsed = NULL;
  if (pst_json_parse(text, strlen(text), NULL, &doc, NULL)) return false;
  pst_json_writer w = pst_json_writer_on(&plan, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "schema", 1);
  pst_json_key(&w, "engines");
  pst_json_put_raw(&w, PST_STR("{\"e1\":{\"model\":\"m\"}}"));
  pst_json_key(&w, "root");
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "op", "local");
  pst_json_member_cstr(&w, "engine", "e1");
  for (pst_json_iter it = pst_json_iterate(pst_json_root(doc)); pst_json_next(&it);) {
    pst_json_key_str(&w, it.key);
    pst_json_put_value(&w, it.value);
  }
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  bool good = pst_json_typeof(pst_json_root(doc)) == PST_JSON_OBJECT && !pst_buf_status(&plan) &&
              !pst_gateway_plan_parse(pst_buf_str(&plan), NULL, &parsed, NULL);
  pst_gateway_plan_unref(parsed);
  pst_buf_done(&plan);
  pst_json_free(doc);
  return good;
}

/* The note on how it was trained to be asked; *ret NULL: there is none. */
static int read_note(run *r, const char *hash, const char **ret, pst_error *err) {
  char *path = NULL;
  pst_engine_lora lora = {0};
  int code = pst_store_file_path(r->store, pst_str_from(hash), &path, err);
  if (!code) code = pst_engine_lora_read(path, NULL, &lora, err);
  const char *note = code ? NULL : lora.notes[PST_ENGINE_LORA_PROMPT];
  if (note && is_way_to_ask(note)) *ret = pst_arena_strndup(r->arena, note, strlen(note));
  pst_engine_lora_done(&lora);
  pst_free(path);
  return code;
}

/* The workload's own adapters, but for those that learned from what was erased since. */
typedef struct adapter_list {
  run *r;
  pst_store_adapter *rows;
  size_t n, capacity;
} adapter_list;

static int list_adapter(void *user, const pst_store_adapter *row) {
  adapter_list *l = user;
  if (strcmp(row->workload, l->r->info->name) != 0) return 0;
  if (row->stale) {
    pst_log(PST_LOG_WARN, "event=adapter_passed_over adapter=%s reason=\"records that it learned from were erased\"",
            row->name);
    return 0;
  }
  if (pst_array_reserve((void **)&l->rows, &l->capacity, l->n + 1, sizeof *l->rows)) return PST_E_NOMEM;
  l->rows[l->n++] = *row;
  return 0;
}

static int newest_first(const void *a, const void *b) {
  const pst_store_adapter *x = a, *y = b;
  if (x->created_ms != y->created_ms) return x->created_ms < y->created_ms ? 1 : -1;
  return strcmp(x->name, y->name);
}

/* An adapter of one of the models to choose from. One whose file is gone is passed over, and one for which there is no room. */
static int add_adapter(run *r, const pst_store_adapter *row) {
  pst_error why = PST_ERROR_INIT;
  for (size_t i = 0; i < r->n_targets; i++) {
    const pst_optimizer_target *base = &r->targets[i];
    bool same = base->sha256 ? !strcmp(base->sha256, row->base_sha256) : !strcmp(base->name, row->base);
    if (base->provider || base->adapter || !same) continue;
    if (r->n_targets == PST_OPTIMIZER_MAX_VALUES) {
      pst_log(PST_LOG_WARN, "event=adapter_passed_over adapter=%s reason=\"more than %d models and adapters\"",
              row->name, (int)PST_OPTIMIZER_MAX_VALUES);
      return 0;
    }
    pst_optimizer_target t = {.sha256 = base->sha256, .base = base->name, .adapter_params = row->bytes / 4};
    t.name = pst_arena_printf(r->arena, "%s:%s", base->name, row->name);
    t.adapter = pst_arena_strndup(r->arena, row->file, strlen(row->file));
    if (!t.name || !t.adapter) return PST_E_NOMEM;
    if (read_note(r, row->file, &t.trained_with, &why))
      pst_log(PST_LOG_WARN, "event=adapter_passed_over adapter=%s reason=\"%s\"", row->name, why.message);
    else
      r->targets[r->n_targets++] = t;
    return 0;
  }
  return 0;
}

/* An adapter of one of the encoders: the newest of each is what its classifier may read through. *ret_own: it was one. */
static int add_encoder(run *r, const pst_store_adapter *row, bool *ret_own) {
  for (size_t i = 0; i < r->n_encoders; i++) {
    const pst_optimizer_model *base = &r->encoders[i];
    if (!base->sha256 || strcmp(base->sha256, row->base_sha256) != 0) continue;
    *ret_own = true;
    for (size_t k = 0; k < r->n_encoders; k++)
      if (r->encoders[k].adapter && !strcmp(r->encoders[k].name, base->name)) return 0;
    if (base->adapter || r->n_encoders == PST_ARRAY_LEN(r->encoders)) return 0;
    pst_optimizer_model tuned = {base->name, base->sha256, pst_arena_strndup(r->arena, row->file, strlen(row->file))};
    if (!tuned.adapter) return PST_E_NOMEM;
    r->encoders[r->n_encoders++] = tuned;
    return 0;
  }
  return 0;
}

/* Newest first: what was trained last must not be what there is no room for. */
static int add_adapters(run *r, pst_error *err) {
  adapter_list l = {.r = r};
  int code = pst_store_adapter_each(r->store, list_adapter, &l, err);
  if (!code && l.n) qsort(l.rows, l.n, sizeof *l.rows, newest_first);
  for (size_t i = 0; i < l.n && !code; i++) {
    bool encoders = false;
    code = add_encoder(r, &l.rows[i], &encoders);
    if (!code && !encoders) code = add_adapter(r, &l.rows[i]);
  }
  pst_free(l.rows);
  return code;
}

static int collect_targets(run *r, const pst_optimizer_options *o, pst_error *err) {
  for (size_t i = 0; i < o->n_models && r->n_targets < PST_OPTIMIZER_MAX_VALUES; i++)
    r->targets[r->n_targets++] = (pst_optimizer_target){.name = o->models[i].name, .sha256 = o->models[i].sha256};
  for (size_t i = 0; i < o->n_encoders && r->n_encoders < PST_ARRAY_LEN(r->encoders); i++)
    r->encoders[r->n_encoders++] = o->encoders[i];
  int code = add_adapters(r, err);
  if (code) return err && err->code ? code : pst_error_set(err, code, NULL, "no memory for a run");
  return r->info->allow_remote ? pst_gateway_models_each(r->gateway, add_remote, r, err) : 0;
}

int64_t pst_optimizer_machine_price(pst_store *store, const pst_evals_workload *workload) {
  int64_t price = pst_evals_workload_info(workload)->machine_nusd_per_hour;
  if (price <= 0 && pst_store_machine_price_get(store, &price, NULL)) price = 0;
  return price > 0 ? price : (int64_t)C(default_price_nusd);
}

/* ---- params ---- */

static int write_params(run *r, pst_error *err) {
  pst_json_writer w = pst_json_writer_on(&r->params, false);
  char seed[24], reference[65] = "";
  snprintf(seed, sizeof seed, "%llu", (unsigned long long)r->in.seed);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "version", SPACE_VERSION);
  pst_json_member_cstr(&w, "fingerprint", r->info->fingerprint);
  pst_json_member_cstr(&w, "seed", seed);
  pst_json_member_double(&w, "budget_s", r->in.budget_s);
  if (r->in.budget_nusd > 0) pst_json_member_int(&w, "budget_nusd", r->in.budget_nusd);
  pst_json_member_int(&w, "max_items", (int64_t)r->in.max_items);
  pst_json_member_int(&w, "threads", r->in.threads);
  pst_json_member_cstr(&w, "cache", pst_optimizer_cache_wish_name(r->in.cache));
  pst_json_member_int(&w, "machine_nusd_per_hour", r->in.price_nusd_per_hour);
  if (r->reference_plan) {
    pst_gateway_plan *plan = NULL;
    int code = pst_gateway_plan_parse(pst_str_from(r->reference_plan), "plan in force", &plan, err);
    if (code) return code;
    memcpy(reference, plan->hash, sizeof reference);
    pst_gateway_plan_unref(plan);
  }
  pst_json_member_cstr(&w, "reference", reference);
  pst_json_key(&w, "models");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < r->n_targets; i++) {
    const pst_optimizer_target *t = &r->targets[i];
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "name", t->name);
    pst_json_member_cstr(&w, "sha256", t->sha256);
    pst_json_member_cstr(&w, "provider", t->provider);
    if (t->adapter) {
      pst_json_member_cstr(&w, "adapter", t->adapter);
      pst_json_member_cstr(&w, "base", t->base);
      pst_json_member_cstr(&w, "trained_with", t->trained_with);
      pst_json_member_int(&w, "adapter_params", t->adapter_params);
    }
    if (t->provider) {
      pst_json_member_int(&w, "input", t->price.input);
      pst_json_member_int(&w, "cached_input", t->price.cached_input);
      pst_json_member_int(&w, "output", t->price.output);
    }
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
  pst_json_key(&w, "encoders");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < r->n_encoders; i++) {
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "name", r->encoders[i].name);
    pst_json_member_cstr(&w, "sha256", r->encoders[i].sha256);
    if (r->encoders[i].adapter) pst_json_member_cstr(&w, "adapter", r->encoders[i].adapter);
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
  pst_json_end_object(&w);
  return pst_buf_status(&r->params) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a run") : 0;
}

static const char *kept(run *r, const pst_json *v) {
  pst_str s = pst_json_str(v);
  return pst_json_typeof(v) == PST_JSON_STRING ? pst_arena_strndup(r->arena, s.data, s.n) : NULL;
}

static int read_params(run *r, const pst_json *params) {
  pst_str fingerprint = pst_json_str(pst_json_get(params, "fingerprint"));
  if (pst_json_int(pst_json_get(params, "version"), 0) != SPACE_VERSION)
    return pst_error_set(r->err, PST_E_UNSUPPORTED, "replay", "run %lld was made by another version of the search",
                         (long long)r->run_id);
  if (!pst_str_is(fingerprint, r->info->fingerprint))
    return pst_error_set(r->err, PST_E_BAD_INPUT, "replay",
                         "run %lld is of another workload, or this one's files changed since", (long long)r->run_id);
  const char *seed = kept(r, pst_json_get(params, "seed")), *reference = kept(r, pst_json_get(params, "reference"));
  r->in.seed = seed ? strtoull(seed, NULL, 10) : 0;
  r->in.budget_s = pst_json_double(pst_json_get(params, "budget_s"), 0);
  r->in.budget_nusd = pst_json_int(pst_json_get(params, "budget_nusd"), 0);
  r->in.max_items = (size_t)pst_json_int(pst_json_get(params, "max_items"), 0);
  r->in.threads = (int)pst_json_int(pst_json_get(params, "threads"), 1);
  (void)pst_optimizer_cache_wish_from(pst_json_str(pst_json_get(params, "cache")), &r->in.cache);
  r->in.price_nusd_per_hour = pst_json_int(pst_json_get(params, "machine_nusd_per_hour"), 0);
  for (pst_json_iter it = pst_json_iterate(pst_json_get(params, "models")); pst_json_next(&it);) {
    if (r->n_targets == PST_OPTIMIZER_MAX_VALUES) break;
    pst_optimizer_target *t = &r->targets[r->n_targets++];
    t->name = kept(r, pst_json_get(it.value, "name"));
    t->sha256 = kept(r, pst_json_get(it.value, "sha256"));
    t->provider = kept(r, pst_json_get(it.value, "provider"));
    t->adapter = kept(r, pst_json_get(it.value, "adapter"));
    t->base = kept(r, pst_json_get(it.value, "base"));
    t->trained_with = kept(r, pst_json_get(it.value, "trained_with"));
    t->adapter_params = pst_json_int(pst_json_get(it.value, "adapter_params"), 0);
    t->price = (pst_store_price){pst_json_int(pst_json_get(it.value, "input"), 0),
                                 pst_json_int(pst_json_get(it.value, "cached_input"), PST_STORE_NO_LIMIT),
                                 pst_json_int(pst_json_get(it.value, "output"), 0)};
    t->has_template = t->provider != NULL;
  }
  for (pst_json_iter it = pst_json_iterate(pst_json_get(params, "encoders")); pst_json_next(&it);)
    if (r->n_encoders < PST_ARRAY_LEN(r->encoders))
      r->encoders[r->n_encoders++] =
          (pst_optimizer_model){kept(r, pst_json_get(it.value, "name")), kept(r, pst_json_get(it.value, "sha256")),
                                kept(r, pst_json_get(it.value, "adapter"))};
  if (!reference || !reference[0]) return 0;
  return pst_store_plan_get(r->store, pst_str_from(reference), &r->reference_plan, NULL, r->err);
}

static int on_run(void *user, const pst_store_run *stored) {
  run *r = user;
  r->in.created_ms = stored->created_ms;
  if (r->n_targets) return 0; /* known already */
  if (!pst_str_is(stored->kind, "optimize"))
    return pst_error_set(r->err, PST_E_BAD_INPUT, "replay", "run %lld is no optimize run", (long long)r->run_id);
  pst_json_doc *doc = NULL;
  if (stored->result.n && !pst_json_parse(stored->result.data, stored->result.n, "result", &doc, NULL)) {
    pst_str plan = pst_json_str(pst_json_get(pst_json_root(doc), "plan"));
    snprintf(r->taken, sizeof r->taken, "%.*s", (int)plan.n, plan.data ? plan.data : "");
    pst_json_free(doc);
    doc = NULL;
  }
  int code = pst_json_parse(stored->params.data, stored->params.n, "params", &doc, r->err);
  if (!code) code = read_params(r, pst_json_root(doc));
  pst_json_free(doc);
  return code;
}

/* ---- beginning and end ---- */

static int on_created(void *user, const pst_store_run *stored) {
  *(int64_t *)user = stored->created_ms;
  return 0;
}

/* A run of these params that is to be taken up, or that has ended and is not to be made again; PST_E_NOT_FOUND. */
static int find_run(run *r, const pst_optimizer_options *o, pst_error *err) {
  pst_str kind = PST_STR("optimize"), name = pst_str_from(r->info->name), params = pst_buf_str(&r->params);
  int64_t id = 0, created_ms = 0;
  int code = o->fresh ? PST_E_NOT_FOUND
                      : pst_store_run_find(r->store, kind, name, params, PST_STORE_RUN_ACTIVE, &r->run_id, err);
  if (code != PST_E_NOT_FOUND || o->finished_since_ms <= 0) return code;
  code = pst_store_run_find(r->store, kind, name, params, PST_STORE_RUN_DONE, &id, err);
  if (!code) code = pst_store_run_get(r->store, id, on_created, &created_ms, err);
  if (code) return code;
  if (created_ms < o->finished_since_ms) return PST_E_NOT_FOUND;
  r->run_id = id;
  r->replay = true;
  return 0;
}

static int begin_new(run *r, const pst_optimizer_options *o, pst_error *err) {
  r->in.seed = o->seed;
  r->in.budget_s = o->budget_s > 0 ? o->budget_s : C(budget_s);
  r->in.budget_nusd = o->budget_nusd;
  r->in.max_items = o->max_items;
  r->in.cache = o->cache;
  r->in.threads = o->threads > 0 ? o->threads : pst_cpu_count();
  r->in.price_nusd_per_hour = pst_optimizer_machine_price(r->store, r->workload);
  int code = collect_targets(r, o, err);
  pst_str name = pst_str_from(r->info->name);
  if (!code) {
    int found = pst_store_plan_assigned(r->store, name, PST_STORE_PLAN_IN_FORCE, &r->reference_plan, NULL, err);
    code = found == PST_E_NOT_FOUND ? 0 : found;
  }
  if (!code) code = write_params(r, err);
  if (!code) code = pst_store_run_lock_take(r->store, "optimize", pst_buf_str(&r->params), &r->lock, err);
  if (code) return code;
  int found = find_run(r, o, err);
  if (found == PST_E_NOT_FOUND)
    return pst_store_run_create(r->store, PST_STR("optimize"), name, pst_buf_str(&r->params), pst_clock_unix_ms(),
                                &r->run_id, err);
  return found;
}

static int keep(run *r, const pst_optimizer_result *res, pst_error *err) {
  char hash[65];
  int64_t now = pst_clock_unix_ms();
  pst_buf result = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&result, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "verdict", pst_optimizer_verdict_name(res->verdict));
  pst_json_member_cstr(&w, "plan", res->plan_hash);
  pst_json_end_object(&w);
  int code = pst_buf_status(&result) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory") : 0;
  if (!code) code = pst_store_plan_put(r->store, pst_str_from(res->plan_json), now, hash, err);
  if (!code)
    code = pst_store_evidence_put(r->store, pst_str_from(hash), pst_str_from(r->info->name),
                                  pst_str_from(res->evidence), now, NULL, err);
  if (!code) code = pst_store_run_end(r->store, r->run_id, PST_STORE_RUN_DONE, pst_buf_str(&result), now, err);
  pst_buf_done(&result);
  return code;
}

/* Whether any plan of the run may ask one: then it has an account. */
static bool asks_providers(const run *r) {
  pst_gateway_plan *plan = NULL;
  bool asks = r->reference_plan && !pst_gateway_plan_parse(pst_str_from(r->reference_plan), NULL, &plan, NULL) &&
              pst_gateway_plan_has(plan, PST_GATEWAY_OP_REMOTE);
  for (size_t i = 0; i < r->n_targets && !asks; i++) asks = r->targets[i].provider != NULL;
  pst_gateway_plan_unref(plan);
  return asks;
}

static int run_it(run *r, const pst_optimizer_options *o, pst_optimizer_result *res, pst_error *err) {
  pst_optimizer_journal journal = {0};
  pst_optimizer_live live = {.gateway = r->gateway,
                             .store = r->store,
                             .workload = r->workload,
                             .info = r->info,
                             .journal = &journal,
                             .threads = r->in.threads,
                             .outlook = o->outlook,
                             .outlook_user = o->outlook_user,
                             .cancelled = o->cancelled,
                             .user = o->user};
  int code = pst_store_run_get(r->store, r->run_id, on_run, r, err);
  if (!code && !r->replay && asks_providers(r))
    code = pst_store_run_account(r->store, r->run_id, r->in.budget_nusd, pst_clock_unix_ms(), &live.key_id, err);
  if (!code) code = pst_optimizer_journal_open(&journal, r->store, r->run_id, r->replay, err);
  if (!code) code = pst_optimizer_live_examples(&live, r->examples_index, err);
  if (!code) code = pst_optimizer_live_answers(&live, r->answers, err);
  live.answers = r->answers;
  r->in.workload = r->info;
  r->in.targets = r->targets;
  r->in.n_targets = r->n_targets;
  r->in.encoders = r->encoders;
  r->in.n_encoders = r->n_encoders;
  r->in.examples_index = r->examples_index;
  r->in.answers = r->answers;
  r->in.reference_plan = r->reference_plan;
  pst_progress_begin_timed(&live.progress, "optimize", (int64_t)r->in.budget_s, o->quiet || r->replay);
  pst_optimizer_world world = pst_optimizer_live_world(&live);
  if (!code)
    code = pst_optimizer_plan_search(&r->in, &world, &journal, &res->verdict, &res->plan_json, &res->evidence,
                                     res->plan_hash, err);
  pst_progress_end(&live.progress);
  if (!code && !r->replay) code = keep(r, res, err);
  pst_optimizer_journal_close(&journal);
  res->run_id = r->run_id;
  res->same_plan = !code && !strcmp(r->taken, res->plan_hash);
  return code;
}

int pst_optimizer_run(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_optimizer_options *o, pst_optimizer_result *ret, pst_error *err) {
  run r = {.gateway = gateway,
           .store = store,
           .workload = workload,
           .info = pst_evals_workload_info(workload),
           .arena = pst_arena_create(),
           .lock = PST_STORE_RUN_LOCK_INIT,
           .run_id = o->replay_run,
           .replay = o->replay_run > 0,
           .err = err};
  pst_optimizer_result res = {0};
  int code = r.arena ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a run");
  if (!code && o->replay_run <= 0) code = begin_new(&r, o, err);
  if (!code) code = run_it(&r, o, &res, err);
  pst_store_run_lock_give(&r.lock);
  pst_free(r.reference_plan);
  pst_buf_done(&r.params);
  pst_arena_free(r.arena);
  if (code)
    pst_optimizer_result_done(&res);
  else
    *ret = res;
  return code;
}

void pst_optimizer_result_done(pst_optimizer_result *result) {
  pst_free(result->plan_json);
  pst_free(result->evidence);
  memset(result, 0, sizeof *result);
}

typedef struct newest {
  char *json;
} newest;

static int keep_newest(void *user, int64_t id, int64_t time_ms, pst_str plan_hash, pst_str json) {
  (void)id, (void)time_ms, (void)plan_hash;
  newest *n = user;
  pst_free(n->json);
  n->json = pst_strndup(json.data, json.n);
  return n->json ? 0 : PST_E_NOMEM;
}

int pst_optimizer_evidence_find(pst_store *store, const char *plan_hash, char **ret_json, pst_error *err) {
  newest n = {NULL};
  int code = pst_store_evidence_each(store, pst_str_from(plan_hash), (pst_str){NULL, 0}, keep_newest, &n, err);
  if (!code && !n.json)
    code = pst_error_set(err, PST_E_NOT_FOUND, plan_hash,
                         "nothing was measured of this plan: penstock optimize makes "
                         "plans with evidence");
  if (code)
    pst_free(n.json);
  else
    *ret_json = n.json;
  return code;
}
