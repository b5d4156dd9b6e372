/* The gateway itself: opening, closing, the one entry for calls, cancelling, waiting, listing, counting.
 *
 * Threads: callers' threads run pst_gateway_chat up to the engine's queue when nothing has to be waited for; everything that must wait (loading, reserving,
 * upstreams, the next stage) goes on in the gateway's loop. Lock order: gateway->lock, live->lock, an engine's own lock. */
#include "gateway/live.h"

#include <penstock/models.h>

#include <math.h>
#include <string.h>
#include <unistd.h>

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the gateway"); }

/* ---- opening, closing --------------------------------------------------------------------------------------------------- */

/* Half of the memory this process may use: the machine's, or what the control group allows. */
static int64_t default_memory(void) {
  int64_t bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), allowed;
  char *text = NULL;
  size_t n;
  if (pst_file_read("/sys/fs/cgroup/memory.max", 64, &text, &n, NULL) == 0 &&
      pst_parse_i64(pst_str_trim((pst_str){text, n}), 1, INT64_MAX, &allowed) == 0)
    bytes = PST_MIN(bytes, allowed);
  pst_free(text);
  return bytes / 2;
}

static void gateway_free(pst_gateway *g) {
  pst_gateway_engines_free(g->engines);
  if (g->loop) pst_net_loop_join(g->loop);
  pst_net_client_free(g->client);
  pst_net_loop_free(g->loop);
  while (g->plans) {
    pst_gateway_in_force *next = g->plans->next;
    pst_gateway_plan_unref(g->plans->plan);
    pst_free(g->plans);
    g->plans = next;
  }
  while (g->indexes) {
    pst_gateway_kept_index *next = g->indexes->next;
    pst_gateway_index_unref(g->indexes->index);
    pst_free(g->indexes);
    g->indexes = next;
  }
  pst_gateway_classifiers_free(g);
  while (g->known) {
    pst_gateway_known *next = g->known->next;
    pst_free(g->known);
    g->known = next;
  }
  pthread_mutex_destroy(&g->lock);
  pthread_cond_destroy(&g->idle);
  pst_free(g->home);
  pst_free(g);
}

int pst_gateway_open(pst_store *store, const pst_gateway_options *options, pst_gateway **ret_gateway, pst_error *err) {
  static const pst_gateway_options none;
  if (!options) options = &none;
  pst_gateway *g = pst_calloc(1, sizeof *g);
  if (!g) return no_memory(err);
  pthread_mutex_init(&g->lock, NULL);
  pthread_cond_init(&g->idle, NULL);
  g->store = store;
  g->home = pst_strdup(options->home ? options->home : pst_store_home(store));
  g->generation = -1;
  g->engine_options = options->engine ? *options->engine : pst_engine_options_default();
  g->upstream_connect_ms = options->upstream_connect_ms > 0 ? options->upstream_connect_ms : 5000;
  g->upstream_total_ms = options->upstream_total_ms > 0 ? options->upstream_total_ms : 600000;
  g->upstream_idle_ms = options->upstream_idle_ms > 0 ? options->upstream_idle_ms : 120000;
  g->upstream_retries = options->upstream_retries > 0 ? options->upstream_retries : 2;
  int64_t memory = options->memory_bytes > 0 ? options->memory_bytes : default_memory();
  int max_queue = options->max_queue > 0 ? options->max_queue : 512;
  pst_net_client_options client = pst_net_client_options_default();
  int code = g->home ? pst_net_loop_create(&g->loop, err) : no_memory(err);
  if (!code) code = pst_net_client_create(g->loop, &client, &g->client, err);
  if (!code) code = pst_gateway_engines_create(g->home, memory, max_queue, g->loop, &g->engines, err);
  if (!code) code = pst_net_loop_start(g->loop, err);
  if (code)
    gateway_free(g);
  else
    *ret_gateway = g;
  return code;
}

void pst_gateway_close(pst_gateway *g) {
  if (!g) return;
  pthread_mutex_lock(&g->lock);
  g->closing = true;
  for (;;) { /* ids one by one: cancelling wants the lock */
    uint64_t id = 0;
    for (pst_gateway_live *live = g->calls; live && !id; live = live->next) {
      pthread_mutex_lock(&live->lock);
      if (!live->cancelled) id = live->id;
      pthread_mutex_unlock(&live->lock);
    }
    if (!id) break;
    pthread_mutex_unlock(&g->lock);
    pst_gateway_cancel(g, id);
    pthread_mutex_lock(&g->lock);
  }
  while (g->n_open > 0) pthread_cond_wait(&g->idle, &g->lock);
  pthread_mutex_unlock(&g->lock);
  gateway_free(g);
}

/* ---- calls ------------------------------------------------------------------------------------------------------------------ */

static const char *arena_text(pst_gateway_live *live, pst_str text) {
  return pst_arena_strndup(live->arena, text.data ? text.data : "", text.n);
}

static int use_plain(pst_gateway_live *live, const char *model, const pst_gateway_target *target, pst_str name,
                     pst_error *err) {
  if (!model) return no_memory(err);
  live->plain = pst_gateway_plain_spec(live->gateway, model);
  if (!target->adapter[0]) return 0;
  live->plain_adapter = arena_text(live, pst_str_from(target->adapter));
  live->plain_name = arena_text(live, name);
  return live->plain_adapter && live->plain_name ? 0 : no_memory(err);
}

/* A request that the workload's pattern does not match passes through unchanged: to the first model that would have been asked. */
static int pass_through(pst_gateway_live *live, pst_error *err) {
  const pst_gateway_node *leaf = pst_gateway_first_leaf(&live->plan->root);
  while (leaf && leaf->op == PST_GATEWAY_OP_CLASSIFIER)
    leaf = pst_gateway_next_leaf(&live->plan->root, leaf, -INFINITY);
  if (!leaf)
    return pst_error_set(err, PST_E_BAD_INPUT, "messages",
                         "the last user message is none that this workload is for, and its plan asks no model that "
                         "could answer it; name a model");
  pst_log(PST_LOG_INFO, "request=%s event=passed_through workload=%s", live->completion_id, live->workload);
  live->workload = NULL;
  live->leaf = NULL;
  if (leaf->op == PST_GATEWAY_OP_REMOTE) {
    live->provider = pst_str_from(leaf->provider); /* the plan lives as long as the call */
    live->provider_model = pst_str_from(leaf->model);
    return 0;
  }
  live->plain = live->plan->engines[leaf->engine];
  return 0;
}

static int use_plan(pst_gateway_live *live, pst_gateway_plan *plan, bool by_name, const pst_gateway_call *call,
                    pst_error *err) {
  pst_str input;
  live->plan = plan;
  live->workload = plan->workload;
  if (call->kind != PST_GATEWAY_CHAT)
    return pst_error_set(
        err, PST_E_UNSUPPORTED, "model",
        "a workload answers chats; name a model to continue a text or for embeddings, or send messages");
  live->leaf = pst_gateway_first_leaf(&plan->root);
  int code = pst_gateway_prompt_input(plan, call->chat, live->arena, &input, err);
  if (code == PST_E_BAD_INPUT && by_name && plan->input_pattern) return pass_through(live, err);
  if (code) return code;
  const char *copy = arena_text(live, input);
  live->input = (pst_str){copy, input.n};
  return copy ? 0 : no_memory(err);
}

static int find_target(pst_gateway_live *live, const pst_gateway_call *call, pst_error *err) {
  pst_gateway *g = live->gateway;
  if (call->plan) return use_plan(live, pst_gateway_plan_ref(call->plan), false, call, err);
  pst_gateway_target target;
  int code = pst_gateway_resolve(g, call->model, call->purpose != PST_STORE_PURPOSE_USER, &target, err);
  if (code) return code;
  if (target.plan) return use_plan(live, target.plan, true, call, err);
  const char *model = arena_text(live, target.model);
  if (!target.provider.data) return use_plain(live, model, &target, call->model, err);
  if (call->kind == PST_GATEWAY_EMBED)
    return pst_error_set(err, PST_E_UNSUPPORTED, "model",
                         "embeddings come from local encoders only; a provider's are not passed on");
  const char *provider = arena_text(live, target.provider);
  if (!provider || !model) return no_memory(err);
  live->provider = pst_str_from(provider);
  live->provider_model = pst_str_from(model);
  return 0;
}

/* What only a provider can do for a request. */
static int check_leaf(void *user, const pst_gateway_node *leaf) {
  (void)user;
  return leaf->op != PST_GATEWAY_OP_REMOTE;
}

static int check_request(const pst_gateway_live *live, const pst_wire_request *q, pst_error *err) {
  bool local = live->leaf ? pst_gateway_each_leaf(&live->plan->root, check_leaf, NULL) != 0 : !live->provider.data;
  if (!q || !local) return 0;
  if (q->format != PST_WIRE_FORMAT_TEXT)
    return pst_error_set(err, PST_E_UNSUPPORTED, "response_format",
                         "local models do not serve a response format yet; leave it out, or name a provider's model");
  if (q->kind == PST_WIRE_CHAT && q->chat.tools && q->tool_choice != PST_WIRE_TOOLS_NONE)
    return pst_error_set(err, PST_E_UNSUPPORTED, "tools",
                         "local models do not call tools yet; leave tools out, or set tool_choice to \"none\"");
  return 0;
}

static int enlist(pst_gateway *g, pst_gateway_live *live, pst_error *err) {
  pthread_mutex_lock(&g->lock);
  bool closing = g->closing;
  if (!closing) {
    live->id = ++g->last_id;
    live->n_refs++; /* the list's; given up by pst_gateway_live_end */
    g->n_open++;
    live->next = g->calls;
    if (live->next) live->next->prev = live;
    g->calls = live;
  }
  pthread_mutex_unlock(&g->lock);
  return closing ? pst_error_set(err, PST_E_CANCELLED, NULL, "the gateway is closing") : 0;
}

/* A call that was refused at once: as if it had never been. */
static void delist(pst_gateway *g, pst_gateway_live *live) {
  pst_gateway_stage_clean(live);
  pthread_mutex_lock(&g->lock);
  if (live->prev)
    live->prev->next = live->next;
  else
    g->calls = live->next;
  if (live->next) live->next->prev = live->prev;
  live->n_refs--;
  pthread_mutex_unlock(&g->lock);
}

static void uncount(pst_gateway *g) {
  pthread_mutex_lock(&g->lock);
  if (--g->n_open == 0) pthread_cond_broadcast(&g->idle);
  pthread_mutex_unlock(&g->lock);
}

int pst_gateway_chat(pst_gateway *g, const pst_gateway_call *call, uint64_t *ret_call_id, pst_error *err) {
  pst_gateway_live *live;
  int code = pst_gateway_live_create(g, call, &live, err);
  if (code) return code;
  if (!(code = find_target(live, call, err)) && !(code = check_request(live, call->request, err)) &&
      !(code = enlist(g, live, err))) {
    uint64_t id = live->id;
    if (ret_call_id) *ret_call_id = id; /* an event may come before this function returns */
    code = pst_gateway_cache_look(live, call, err);
    if (!code) code = pst_gateway_stage_begin(live, call, err);
    if (code) {
      delist(g, live);
      pst_gateway_live_unref(live);
      uncount(g);
      return code;
    }
  }
  pst_gateway_live_unref(live);
  return code;
}

static void cancel_on_loop(void *arg) {
  pst_gateway_live *live = arg;
  pthread_mutex_lock(&live->lock);
  pst_gateway_phase phase = live->phase;
  pthread_mutex_unlock(&live->lock);
  /* Both phases are left on this thread only, so the call is still in it. */
  if (phase == PST_GATEWAY_UPSTREAM) pst_gateway_remote_cancel(live);
  if (phase == PST_GATEWAY_LOADING && pst_gateway_slot_unwait(live->gateway->engines, live->slot, &live->waiter)) {
    pst_error error = PST_ERROR_INIT;
    pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
    pst_gateway_stage_over(live, 0, &error);
  }
  pst_gateway_live_unref(live);
}

void pst_gateway_cancel(pst_gateway *g, uint64_t call_id) {
  pthread_mutex_lock(&g->lock);
  pst_gateway_live *live = g->calls;
  while (live && live->id != call_id) live = live->next;
  if (live) live->n_refs += 2; /* one for the task on the loop */
  pthread_mutex_unlock(&g->lock);
  if (!live) return;
  pthread_mutex_lock(&live->lock);
  bool first = !live->cancelled, on_loop = false;
  live->cancelled = true;
  if (first && live->phase == PST_GATEWAY_ANSWERING)
    pst_gateway_local_cancel(live);
  else if (first)
    on_loop = live->phase == PST_GATEWAY_LOADING || live->phase == PST_GATEWAY_UPSTREAM;
  pthread_mutex_unlock(&live->lock);
  if (on_loop) live->cancel_task = (pst_net_task){.fn = cancel_on_loop, .arg = live};
  if (!on_loop || pst_net_loop_post_task(g->loop, &live->cancel_task)) pst_gateway_live_unref(live);
  pst_gateway_live_unref(live);
}

/* ---- waiting ------------------------------------------------------------------------------------------------------------------ */

typedef struct waiting {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool ended;
  pst_buf *out;
  pst_engine_finish finish;
  pst_gateway_event last;
  pst_error error;
  char id[64];
} waiting;

static void on_wait_event(void *user, const pst_gateway_event *e) {
  waiting *w = user;
  if (w->out) pst_buf_append_str(w->out, e->text);
  if (e->finish != PST_ENGINE_FINISH_NONE) w->finish = e->finish;
  if (!e->last) return;
  pthread_mutex_lock(&w->lock);
  w->last = *e;
  w->last.finish = w->finish;
  if (e->error) w->error = *e->error;
  (void)snprintf(w->id, sizeof w->id, "%s", e->completion_id);
  w->ended = true;
  pthread_cond_signal(&w->changed);
  pthread_mutex_unlock(&w->lock);
}

int pst_gateway_chat_wait(pst_gateway *g, const pst_gateway_call *call, pst_buf *out, pst_gateway_event *ret_last,
                          char ret_id[64], pst_error *err) {
  if (call->n != 1) return pst_error_set(err, PST_E_BAD_INPUT, "n", "one answer can be waited for, not %d", call->n);
  waiting w = {.out = out};
  pst_gateway_call mine = *call;
  mine.callback = on_wait_event;
  mine.user = &w;
  pthread_mutex_init(&w.lock, NULL);
  pthread_cond_init(&w.changed, NULL);
  int code = pst_gateway_chat(g, &mine, NULL, err);
  if (!code) {
    pthread_mutex_lock(&w.lock);
    while (!w.ended) pthread_cond_wait(&w.changed, &w.lock);
    pthread_mutex_unlock(&w.lock);
    code = w.error.code;
    if (code && err) *err = w.error;
    if (!code && out && pst_buf_status(out)) code = no_memory(err);
    w.last.text = (pst_str){NULL, 0};
    w.last.token = NULL;
    w.last.top_texts = NULL;
    w.last.tool_calls = NULL;
    w.last.n_tool_calls = 0;
    w.last.completion_id = w.last.target = w.last.model = NULL;
    w.last.error = NULL;
    w.last.vectors = NULL;
    if (ret_last) *ret_last = w.last;
    if (ret_id) memcpy(ret_id, w.id, sizeof w.id);
  }
  pthread_mutex_destroy(&w.lock);
  pthread_cond_destroy(&w.changed);
  return code;
}

/* ---- engines and indexes -------------------------------------------------------------------------------------------------------- */

/* What a walk over models or leaves carries. */
typedef struct listing {
  pst_gateway *gateway;
  const pst_gateway_plan *plan; /* of leaves */
  int (*fn)(void *user, const char *id, const char *owner);
  void *user;
  pst_buf names; /* workloads seen, each with a zero byte */
  pst_error *err;
  pst_gateway_slot **slots; /* of the plan's engines */
} listing;

pst_gateway_engine_spec pst_gateway_plain_spec(const pst_gateway *g, const char *model) {
  return (pst_gateway_engine_spec){.name = "plain", .model = model, .weights = "shipped", .options = g->engine_options};
}

/* With the lock held. */
static pst_gateway_kept_index *find_index(const pst_gateway *g, const char *hash) {
  pst_gateway_kept_index *k = g->indexes;
  while (k && strcmp(k->hash, hash) != 0) k = k->next;
  return k;
}

/* From now on that is what the hash stands for; NULL: withdrawn. Where memory is short it is opened again. */
static void keep_index(pst_gateway *g, const char *hash, pst_gateway_index *index) {
  pst_gateway_kept_index *fresh = pst_calloc(1, sizeof *fresh);
  pthread_mutex_lock(&g->lock);
  pst_gateway_kept_index *k = find_index(g, hash);
  if (!k && fresh) {
    k = fresh;
    fresh = NULL;
    (void)snprintf(k->hash, sizeof k->hash, "%s", hash);
    k->next = g->indexes;
    g->indexes = k;
  }
  if (k) {
    pst_gateway_index_unref(k->index);
    k->index = index ? pst_gateway_index_ref(index) : NULL;
  }
  pthread_mutex_unlock(&g->lock);
  pst_free(fresh);
}

int pst_gateway_index_get(pst_gateway *g, const char *hash, pst_gateway_index **ret_index, pst_error *err) {
  pst_gateway_index *found = NULL;
  char *path = NULL;
  pthread_mutex_lock(&g->lock);
  const pst_gateway_kept_index *k = find_index(g, hash);
  bool withdrawn = k && !k->index;
  if (k && k->index) found = pst_gateway_index_ref(k->index);
  pthread_mutex_unlock(&g->lock);
  int code = pst_store_file_path(g->store, pst_str_from(hash), &path, err);
  pst_free(path);
  if (code == PST_E_NOT_FOUND && (withdrawn || pst_store_data_withdrawn(g->store, pst_str_from(hash)))) {
    pst_gateway_index_unref(found);
    if (!withdrawn) {
      pst_log(PST_LOG_WARN, "event=examples_withdrawn hash=%s", hash);
      keep_index(g, hash, NULL);
    }
    *ret_index = NULL;
    return 0;
  }
  if (!code && !found) {
    code = pst_gateway_index_open(g->store, pst_str_from(hash), &found, err);
    if (!code) keep_index(g, hash, found);
  }
  if (!found) return code;
  *ret_index = found;
  return 0;
}

static int open_index(void *user, const pst_gateway_node *leaf) {
  listing *l = user;
  pst_gateway_index *index = NULL;
  const pst_classifier *classifier;
  if (leaf->op == PST_GATEWAY_OP_CLASSIFIER)
    return pst_gateway_classifier_get(l->gateway, l->plan, leaf, &classifier, l->err);
  if (!leaf->examples_index || leaf->n_examples <= 0) return 0;
  int code = pst_gateway_index_get(l->gateway, leaf->examples_index, &index, l->err);
  if (!code) pst_gateway_index_unref(index);
  return code;
}

static int open_adapter(void *user, const pst_gateway_node *leaf) {
  listing *l = user;
  pst_engine_adapter *adapter;
  if (!leaf->adapter) return 0;
  int code = pst_gateway_slot_adapter(l->gateway->engines, l->slots[leaf->engine], l->gateway->store, leaf->adapter,
                                      &adapter, l->err);
  if (!code) pst_engine_adapter_unref(adapter);
  return code;
}

static int open_answers(void *user, const pst_gateway_node *leaf) {
  listing *l = user;
  pst_engine_corpus *corpus;
  if (!leaf->answers) return 0;
  int code = pst_gateway_slot_corpus(l->slots[leaf->engine], l->gateway->store, leaf->answers,
                                     leaf->layout == PST_GATEWAY_LAYOUT_PLAIN, &corpus, l->err);
  if (!code) pst_engine_corpus_unref(corpus);
  return code;
}

/* All uses are kept until the last engine is there: engines of one plan that do not fit together are an error, not a pair that takes turns in memory. */
int pst_gateway_prepare(pst_gateway *g, const pst_gateway_plan *plan, pst_progress *progress, pst_error *err) {
  pst_gateway_slot **slots = pst_calloc((size_t)plan->n_engines, sizeof(pst_gateway_slot *));
  if (!slots) return no_memory(err);
  listing l = {.gateway = g, .plan = plan, .err = err, .slots = slots};
  int n = 0, code = pst_gateway_each_leaf(&plan->root, open_index, &l);
  for (; n < plan->n_engines && !code; n += !code)
    code = pst_gateway_engines_take_now(g->engines, &plan->engines[n], progress, &slots[n], err);
  if (!code) code = pst_gateway_each_leaf(&plan->root, open_answers, &l);
  if (!code) code = pst_gateway_each_leaf(&plan->root, open_adapter, &l);
  for (int i = 0; i < n; i++) pst_gateway_engines_give(g->engines, slots[i]);
  pst_free(slots);
  return code;
}

int pst_gateway_prepare_model(pst_gateway *g, const char *model, pst_progress *progress, pst_error *err) {
  pst_gateway_engine_spec spec = pst_gateway_plain_spec(g, model);
  pst_gateway_slot *slot;
  size_t n = strlen(model) + 1;
  pst_gateway_known *known = pst_malloc(sizeof *known + n);
  if (!known) return no_memory(err);
  int code = pst_gateway_engines_take_now(g->engines, &spec, progress, &slot, err);
  if (code) {
    pst_free(known);
    return code;
  }
  pst_gateway_engines_give(g->engines, slot);
  memcpy(known->model, model, n);
  pthread_mutex_lock(&g->lock);
  known->next = g->known;
  g->known = known;
  pthread_mutex_unlock(&g->lock);
  return 0;
}

bool pst_gateway_model_embeds(pst_gateway *g, const char *model) {
  pst_gateway_engine_spec spec = pst_gateway_plain_spec(g, model);
  pst_gateway_slot *slot;
  if (!pst_gateway_engines_has(g->engines, &spec) || pst_gateway_engines_take_now(g->engines, &spec, NULL, &slot, NULL))
    return false;
  bool embeds = pst_engine_model_get_info(slot->model)->n_dims > 0;
  pst_gateway_engines_give(g->engines, slot);
  return embeds;
}

int pst_gateway_engine_acquire(pst_gateway *g, const pst_gateway_plan *plan, int engine_index, pst_engine **ret_engine,
                               pst_error *err) {
  pst_gateway_slot *slot;
  if (engine_index < 0 || engine_index >= plan->n_engines)
    return pst_error_set(err, PST_E_BAD_INPUT, "engines", "the plan has no engine %d", engine_index);
  int code = pst_gateway_engines_take_now(g->engines, &plan->engines[engine_index], NULL, &slot, err);
  if (!code) *ret_engine = slot->engine;
  return code;
}

void pst_gateway_engine_release(pst_gateway *g, pst_engine *engine) {
  if (engine) pst_gateway_engines_give(g->engines, pst_gateway_engines_find(g->engines, engine));
}

int pst_gateway_answers_corpus(pst_gateway *g, const pst_engine *engine, const char *hash, pst_gateway_layout layout,
                               pst_engine_corpus **ret_corpus, pst_error *err) {
  pst_gateway_slot *slot = pst_gateway_engines_find(g->engines, engine);
  return pst_gateway_slot_corpus(slot, g->store, hash, layout == PST_GATEWAY_LAYOUT_PLAIN, ret_corpus, err);
}

int pst_gateway_adapter_acquire(pst_gateway *g, const pst_engine *engine, const char *hash,
                                pst_engine_adapter **ret_adapter, pst_error *err) {
  pst_gateway_slot *slot = pst_gateway_engines_find(g->engines, engine);
  return pst_gateway_slot_adapter(g->engines, slot, g->store, hash, ret_adapter, err);
}

/* What a node is asked for an input, for the model that is asked. */
typedef struct asked {
  pst_gateway_slot *slot;
  pst_gateway_prompt prompt;
} asked;

static void asked_done(pst_gateway *g, asked *a) {
  pst_gateway_prompt_done(&a->prompt);
  if (a->slot) pst_gateway_engines_give(g->engines, a->slot);
}

static int ask(pst_gateway *g, const pst_gateway_plan *plan, const pst_gateway_node *node, pst_str input,
               const pst_str *exclude, size_t n_exclude, asked *a, pst_error *err) {
  pst_gateway_index *index = NULL;
  if (node->op != PST_GATEWAY_OP_LOCAL)
    return pst_error_set(err, PST_E_BAD_INPUT, "op", "only what a local engine is given can be rendered to tokens");
  int code = pst_gateway_engines_take_now(g->engines, &plan->engines[node->engine], NULL, &a->slot, err);
  if (code) return code;
  if (node->examples_index && node->n_examples > 0) code = pst_gateway_index_get(g, node->examples_index, &index, err);
  if (!code) code = pst_gateway_prompt_build(plan, node, index, input, exclude, n_exclude, &a->prompt, err);
  if (index) pst_gateway_index_unref(index);
  return code;
}

int pst_gateway_render(pst_gateway *g, const pst_gateway_plan *plan, const pst_gateway_node *node, pst_str input,
                       const pst_str *exclude, size_t n_exclude, pst_engine_tokens *tokens, pst_buf *ret_text,
                       pst_error *err) {
  asked a = {.slot = NULL};
  int code = ask(g, plan, node, input, exclude, n_exclude, &a, err);
  if (!code) code = pst_gateway_prompt_tokenize(&a.prompt, a.slot->model, tokens, ret_text, err);
  asked_done(g, &a);
  return code;
}

int pst_gateway_render_answered(pst_gateway *g, const pst_gateway_plan *plan, const pst_gateway_node *node,
                                pst_str input, const pst_str *exclude, size_t n_exclude, pst_str answer,
                                pst_engine_tokens *tokens, size_t *ret_n_given, pst_error *err) {
  asked a = {.slot = NULL};
  int code = ask(g, plan, node, input, exclude, n_exclude, &a, err);
  if (!code) code = pst_gateway_prompt_answered(&a.prompt, a.slot->model, answer, tokens, ret_n_given, err);
  asked_done(g, &a);
  return code;
}

/* ---- lists and counts --------------------------------------------------------------------------------------------------------------- */

static int note_workload(void *user, const pst_store_plan_event *event) {
  listing *l = user;
  for (size_t at = 0; at < l->names.n; at += strlen(l->names.data + at) + 1)
    if (pst_str_is(event->workload, l->names.data + at)) return 0;
  pst_buf_append_str(&l->names, event->workload);
  pst_buf_putc(&l->names, '\0');
  return pst_buf_status(&l->names);
}

static int list_model(void *user, const pst_models_file *file, bool intact) {
  listing *l = user;
  return intact ? l->fn(l->user, file->name, "local") : 0;
}

static int list_adapter(void *user, const pst_store_adapter *adapter) {
  listing *l = user;
  char id[sizeof adapter->base + sizeof adapter->name + 1];
  (void)snprintf(id, sizeof id, "%s:%s", adapter->base, adapter->name);
  return strchr(adapter->base, '/') ? 0 : l->fn(l->user, id, "adapter"); /* a path is no name for users */
}

static int list_price(void *user, pst_str provider, pst_str model, pst_store_price price) {
  listing *l = user;
  (void)price;
  pst_buf id = PST_BUF_INIT;
  pst_buf_append_str(&id, provider);
  size_t owner = id.n;
  pst_buf_putc(&id, '/');
  pst_buf_append_str(&id, model);
  pst_buf_putc(&id, '\0');
  pst_buf_append(&id, id.data, owner);
  int code = pst_buf_status(&id);
  if (!code && !pst_str_is(model, "*")) code = l->fn(l->user, id.data, id.data + strlen(id.data) + 1);
  pst_buf_done(&id);
  return code;
}

int pst_gateway_models_each(pst_gateway *g, int (*fn)(void *user, const char *id, const char *owner), void *user,
                            pst_error *err) {
  listing l = {.gateway = g, .fn = fn, .user = user, .names = PST_BUF_INIT, .err = err};
  int code = pst_store_plan_history(g->store, (pst_str){NULL, 0}, note_workload, &l, err);
  for (size_t at = 0; !code && at < l.names.n; at += strlen(l.names.data + at) + 1) {
    const char *name = l.names.data + at;
    if (pst_store_plan_assigned(g->store, pst_str_from(name), PST_STORE_PLAN_IN_FORCE, NULL, NULL, NULL) == 0)
      code = fn(user, name, "workload");
  }
  pst_buf_done(&l.names);
  if (!code) code = pst_models_each(g->home, list_model, &l, err);
  if (!code) code = pst_store_adapter_each(g->store, list_adapter, &l, err);
  if (!code) code = pst_store_price_each(g->store, list_price, &l, err);
  return code;
}

void pst_gateway_get_stats(pst_gateway *g, pst_gateway_stats *ret_stats) {
  pst_gateway_stats s = {0};
  pst_gateway_engines_stats(g->engines, &s.n_engines, &s.engines);
  pthread_mutex_lock(&g->lock);
  s.n_open_calls = g->n_open;
  pthread_mutex_unlock(&g->lock);
  *ret_stats = s;
}
