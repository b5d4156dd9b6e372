/* Plans: the document checked, read into structs, and written in the one form that is hashed.
 *
 * The shape is checked by the JSON Schema beside this file, and by nothing else: what reads the values may take them as they come. Here are only the rules that a
 * schema cannot say (names that must be there, fields that need each other). The canonical form is written from the structs, so that a default that was
 * left out and one that was spelled out give the same hash. */
#include <penstock/gateway.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <penstock/schema.h>

#define MAX_TOKENS 256
#define PLAN_BYTES_MAX ((size_t)16 << 20)

typedef struct owned_plan {
  pst_gateway_plan plan; /* first: what callers hold */
  _Atomic int n_refs;
  pst_arena *arena;
  pst_regex *regex;
} owned_plan;

/* ---- the shipped schema ---- */

static pthread_mutex_t schema_lock = PTHREAD_MUTEX_INITIALIZER;
static pst_schema *shipped_schema; /* never freed */

static int get_schema(const pst_schema **ret_schema, pst_error *err) {
  int code = 0;
  pthread_mutex_lock(&schema_lock);
  if (!shipped_schema) {
    pst_str text;
    if (pst_asset_find("gateway/plan_schema.json", &text))
      code = pst_schema_parse(text, "plan_schema.json", PST_SCHEMA_DRAFT_2020_12, &shipped_schema, err);
    else
      code = pst_error_set(err, PST_E_INTERNAL, "plan_schema.json", "is not part of the program");
  }
  if (!code) *ret_schema = shipped_schema;
  pthread_mutex_unlock(&schema_lock);
  return code;
}

static int check_shape(const pst_json *v, const char *source, pst_error *err) {
  const pst_schema *schema = NULL;
  int code = get_schema(&schema, err);
  return code ? code : pst_schema_validate(schema, v, source, err);
}

/* ---- reading ---- */

typedef struct reader {
  owned_plan *owned;
  const pst_json *engines;
  const char *source;
  bool *used; /* of each engine */
  pst_error *err;
} reader;

static int fail(const reader *r, const char *path, const char *message) {
  char place[256];
  (void)snprintf(place, sizeof place, "%.120s#%.120s", r->source, path);
  return pst_error_set(r->err, PST_E_BAD_INPUT, place, "%s", message);
}

static int no_memory(const reader *r) {
  return pst_error_set(r->err, PST_E_NOMEM, r->source, "no memory for the plan");
}

/* A copy in the plan; NULL when the member is absent or empty. */
static int read_text(reader *r, const pst_json *object, const char *key, const char **ret_text) {
  pst_str s = pst_json_str(pst_json_get(object, key));
  if (s.n && !(*ret_text = pst_arena_strndup(r->owned->arena, s.data, s.n))) return no_memory(r);
  return 0;
}

/* The place of a word in a table; the first when it is absent. */
static int read_word(const pst_json *object, const char *key, const char *const *words, int n) {
  pst_str s = pst_json_str(pst_json_get(object, key));
  for (int i = 1; i < n; i++)
    if (pst_str_is(s, words[i])) return i;
  return 0;
}

static const char *const kv_words[] = {"f16", "q8_0"};
static const char *const speculation_words[] = {"none", "lookup", "answers", "model"};
static const char *const op_words[] = {"local", "remote", "cascade", "classifier"};

static int read_int(const pst_json *object, const char *key, int fallback) {
  return (int)pst_json_int(pst_json_get(object, key), fallback);
}

static float read_float(const pst_json *object, const char *key, float fallback) {
  return (float)pst_json_double(pst_json_get(object, key), (double)fallback);
}

static int read_engine(reader *r, pst_str name, const pst_json *v, pst_gateway_engine_spec *e) {
  e->options = pst_engine_options_default();
  e->options.kv = (pst_engine_kv)read_word(v, "kv", kv_words, 2);
  e->options.slots = read_int(v, "slots", e->options.slots);
  e->options.chunk = read_int(v, "chunk", e->options.chunk);
  e->options.threads = read_int(v, "threads", e->options.threads);
  e->options.n_ctx = read_int(v, "context", e->options.n_ctx);
  e->options.kv_tokens = read_int(v, "kv_tokens", e->options.kv_tokens);
  e->options.max_queue = read_int(v, "max_queue", e->options.max_queue);
  e->options.no_reuse = !pst_json_bool(pst_json_get(v, "reuse"), true);
  e->weights = "shipped";
  int code = read_text(r, v, "model", &e->model);
  if (!code) code = read_text(r, v, "sha256", &e->sha256);
  if (!code) code = read_text(r, v, "weights", &e->weights);
  if (!code) code = read_text(r, v, "draft", &e->draft);
  if (!code && !(e->name = pst_arena_strndup(r->owned->arena, name.data, name.n))) code = no_memory(r);
  return code;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const pst_gateway_engine_spec *)a)->name, ((const pst_gateway_engine_spec *)b)->name);
}

static int read_engines(reader *r) {
  size_t n = pst_json_size(r->engines), i = 0;
  pst_gateway_engine_spec *engines = pst_arena_calloc(r->owned->arena, n + 1, sizeof *engines);
  r->used = pst_arena_calloc(r->owned->arena, n + 1, sizeof *r->used);
  if (!engines || !r->used) return no_memory(r);
  for (pst_json_iter it = pst_json_iterate(r->engines); pst_json_next(&it);) {
    int code = read_engine(r, it.key, it.value, &engines[i++]);
    if (code) return code;
  }
  qsort(engines, n, sizeof *engines, by_name); /* the order of the canonical form */
  r->owned->plan.engines = engines;
  r->owned->plan.n_engines = (int)n;
  return 0;
}

static int read_texts(reader *r, const pst_json *v, const pst_str **ret_texts, int *ret_n) {
  size_t n = pst_json_size(v), i = 0;
  pst_str *texts = pst_arena_calloc(r->owned->arena, n + 1, sizeof *texts);
  if (!texts) return no_memory(r);
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it); i++) {
    pst_str s = pst_json_str(it.value);
    if (!(texts[i].data = pst_arena_strndup(r->owned->arena, s.data, s.n))) return no_memory(r);
    texts[i].n = s.n;
  }
  *ret_texts = texts;
  *ret_n = (int)n;
  return 0;
}

static void read_sampling(const pst_json *v, pst_engine_sampling *s) {
  *s = pst_engine_sampling_default();
  s->temperature = read_float(v, "temperature", 0);
  s->top_k = read_int(v, "top_k", s->top_k);
  s->top_p = read_float(v, "top_p", s->top_p);
  s->min_p = read_float(v, "min_p", s->min_p);
  s->repetition_penalty = read_float(v, "repetition_penalty", s->repetition_penalty);
  s->frequency_penalty = read_float(v, "frequency_penalty", s->frequency_penalty);
  s->presence_penalty = read_float(v, "presence_penalty", s->presence_penalty);
  s->penalty_window = read_int(v, "penalty_window", s->penalty_window);
  s->seed = (uint64_t)pst_json_int(pst_json_get(v, "seed"), 0);
}

static int read_engine_name(reader *r, const pst_json *v, const char *path, pst_gateway_node *n) {
  const pst_gateway_plan *plan = &r->owned->plan;
  char where[160], message[300];
  pst_str name = pst_json_str(pst_json_get(v, "engine"));
  for (int i = 0; i < plan->n_engines; i++)
    if (pst_str_is(name, plan->engines[i].name)) {
      n->engine = i;
      r->used[i] = true;
      return 0;
    }
  (void)snprintf(where, sizeof where, "%s/engine", path);
  (void)snprintf(message, sizeof message, "\"%.*s\" is none of the plan's engines", (int)PST_MIN(name.n, (size_t)100),
                 name.data);
  return fail(r, where, message);
}

static int read_prompt(reader *r, const pst_json *v, pst_gateway_node *n) {
  int code = read_text(r, v, "name", &n->prompt_name);
  if (!code) code = read_text(r, v, "system", &n->system);
  if (!code) code = read_text(r, v, "instruction", &n->instruction);
  if (!code) code = read_text(r, v, "input_key", &n->input_key);
  if (!code) code = read_text(r, v, "answer_key", &n->answer_key);
  return code;
}

static int check_constraint(reader *r, const char *path, const pst_gateway_node *n) {
  char where[160];
  (void)snprintf(where, sizeof where, "%s/constraint", path);
  if (n->constraint != PST_GATEWAY_FREE && r->owned->plan.n_labels == 0)
    return fail(r, where, "the plan has no labels; give it a list \"labels\", or the constraint \"none\"");
  if (n->constraint == PST_GATEWAY_EXAMPLE_LABELS && !n->examples_index)
    return fail(r, where, "the node shows no examples; give it \"examples\", or the constraint \"labels\"");
  return 0;
}

static int check_speculation(reader *r, const char *path, const pst_gateway_node *n) {
  bool drafts = n->speculation == PST_ENGINE_SPEC_ANSWERS;
  char where[160];
  if (n->speculation == PST_ENGINE_SPEC_MODEL && !r->owned->plan.engines[n->engine].draft) {
    (void)snprintf(where, sizeof where, "%s/speculation", path);
    return fail(r, where,
                "the node's engine has no draft model; give it a \"draft\", or the node the speculation \"lookup\"");
  }
  if (drafts == (n->answers != NULL)) return 0;
  (void)snprintf(where, sizeof where, "%s/%s", path, drafts ? "speculation" : "answers");
  return fail(r, where,
              drafts ? "the node names no file of past answers; give it \"answers\", or the speculation \"lookup\""
                     : "nothing drafts from these; give the node the speculation \"answers\"");
}

/* A node that answers: LOCAL or REMOTE. */
static int read_leaf(reader *r, const pst_json *v, const char *path, pst_gateway_node *n) {
  const char *words[PST_GATEWAY_LAYOUT_COUNT], *constraints[PST_GATEWAY_CONSTRAINT_COUNT];
  const pst_json *examples = pst_json_get(v, "examples");
  for (int i = 0; i < PST_GATEWAY_LAYOUT_COUNT; i++) words[i] = pst_gateway_layout_name((pst_gateway_layout)i);
  for (int i = 0; i < PST_GATEWAY_CONSTRAINT_COUNT; i++)
    constraints[i] = pst_gateway_constraint_name((pst_gateway_constraint)i);
  n->layout = (pst_gateway_layout)read_word(v, "layout", words, PST_GATEWAY_LAYOUT_COUNT);
  n->constraint = (pst_gateway_constraint)read_word(v, "constraint", constraints, PST_GATEWAY_CONSTRAINT_COUNT);
  n->speculation =
      (pst_engine_speculation)read_word(v, "speculation", speculation_words, (int)PST_ARRAY_LEN(speculation_words));
  n->max_tokens = read_int(v, "max_tokens", MAX_TOKENS);
  n->n_examples = read_int(examples, "k", 0);
  n->examples_fixed = pst_json_bool(pst_json_get(examples, "fixed"), false);
  read_sampling(pst_json_get(v, "sampling"), &n->sampling);
  int code = n->op == PST_GATEWAY_OP_LOCAL ? read_engine_name(r, v, path, n) : 0;
  if (!code) code = read_text(r, v, "provider", &n->provider);
  if (!code) code = read_text(r, v, "model", &n->model);
  if (!code) code = read_text(r, examples, "index", &n->examples_index);
  if (!code) code = read_text(r, v, "adapter", &n->adapter);
  if (!code) code = read_text(r, v, "answers", &n->answers);
  if (!code) code = read_prompt(r, pst_json_get(v, "prompt"), n);
  if (!code) code = check_speculation(r, path, n);
  return code ? code : check_constraint(r, path, n);
}

static int read_classifier(reader *r, const pst_json *v, const char *path, pst_gateway_node *n) {
  if (r->owned->plan.n_labels == 0)
    return fail(r, path, "a classifier chooses among labels, and the plan has none; give it a list \"labels\"");
  int code = read_text(r, v, "artefact", &n->classifier);
  if (!code) code = read_text(r, v, "adapter", &n->adapter);
  if (!code && n->adapter && !pst_json_get(v, "engine"))
    return fail(r, path, "an adapter is an encoder's; name the engine that it is for");
  if (code || !pst_json_get(v, "engine") || (code = read_engine_name(r, v, path, n))) return code;
  const pst_gateway_engine_spec *e = &r->owned->plan.engines[n->engine];
  if (e->sha256 && !strcmp(e->weights, "shipped")) return 0;
  char where[160];
  (void)snprintf(where, sizeof where, "/engines/%s", e->name);
  return fail(r, where, "a classifier's encoder is one file as it ships: give it its \"sha256\", and no other weights");
}

static int read_node(reader *r, const pst_json *v, const char *path, pst_gateway_node *n) {
  n->op = (pst_gateway_op)read_word(v, "op", op_words, (int)PST_ARRAY_LEN(op_words));
  n->engine = -1;
  if (n->op == PST_GATEWAY_OP_CLASSIFIER) return read_classifier(r, v, path, n);
  if (n->op != PST_GATEWAY_OP_CASCADE) return read_leaf(r, v, path, n);
  const pst_json *inputs = pst_json_get(v, "inputs");
  n->threshold = pst_json_double(pst_json_get(v, "threshold"), 0);
  n->n_inputs = (int)pst_json_size(inputs);
  n->inputs = pst_arena_calloc(r->owned->arena, (size_t)n->n_inputs, sizeof *n->inputs);
  if (!n->inputs) return no_memory(r);
  int i = 0;
  for (pst_json_iter it = pst_json_iterate(inputs); pst_json_next(&it); i++) {
    char where[160];
    (void)snprintf(where, sizeof where, "%s/inputs/%d", path, i);
    int code = read_node(r, it.value, where, &n->inputs[i]); /* one level: the schema allows no cascade in a cascade */
    if (code) return code;
    if (n->inputs[i].op == PST_GATEWAY_OP_REMOTE && i + 1 < n->n_inputs)
      return fail(r, where, "a remote answer has no margin to go on by; it can only stand last");
  }
  return 0;
}

static int read_pattern(reader *r) {
  pst_gateway_plan *plan = &r->owned->plan;
  pst_error why = PST_ERROR_INIT;
  if (!plan->input_pattern) return 0;
  int code = pst_regex_create(pst_str_from(plan->input_pattern), 0, &r->owned->regex, &why);
  if (code == PST_E_NOMEM) return no_memory(r);
  if (code) return fail(r, "/input_pattern", why.message);
  plan->input_regex = r->owned->regex;
  return 0;
}

static int check_engines_used(reader *r) {
  const pst_gateway_plan *plan = &r->owned->plan;
  char where[160];
  for (int i = 0; i < plan->n_engines; i++) {
    if (r->used[i]) continue;
    (void)snprintf(where, sizeof where, "/engines/%s", plan->engines[i].name);
    return fail(r, where, "no node uses this engine; leave it out");
  }
  return 0;
}

pst_gateway_cache pst_gateway_cache_default(void) {
  return (pst_gateway_cache){.on = true, .ttl_s = 604800, .max_entries = 100000};
}

/* An answer is given again as that of one model, so a plan that caches says which file each engine reads. */
static int read_cache(reader *r, const pst_json *v) {
  pst_gateway_plan *plan = &r->owned->plan;
  char where[160];
  if (!v) return 0;
  plan->cache = pst_gateway_cache_default();
  plan->cache.ttl_s = pst_json_int(pst_json_get(v, "ttl_seconds"), plan->cache.ttl_s);
  plan->cache.max_entries = pst_json_int(pst_json_get(v, "max_entries"), plan->cache.max_entries);
  if (!plan->workload)
    return fail(r, "/cache", "answers are kept by workload, and the plan names none; give it a \"workload\"");
  for (int i = 0; i < plan->n_engines; i++) {
    if (plan->engines[i].sha256) continue;
    (void)snprintf(where, sizeof where, "/engines/%s", plan->engines[i].name);
    return fail(r, where, "answers that are given again are those of one file: give the engine its \"sha256\"");
  }
  return 0;
}

static int read_plan(reader *r, const pst_json *v) {
  pst_gateway_plan *plan = &r->owned->plan;
  r->engines = pst_json_get(v, "engines");
  int code = read_text(r, v, "workload", &plan->workload);
  if (!code) code = read_text(r, v, "input_pattern", &plan->input_pattern);
  if (!code) code = read_pattern(r);
  if (!code) code = read_texts(r, pst_json_get(v, "labels"), &plan->labels, &plan->n_labels);
  if (!code) code = read_texts(r, pst_json_get(v, "copied"), &plan->copied, &plan->n_copied);
  if (!code) code = read_engines(r);
  if (!code) code = read_cache(r, pst_json_get(v, "cache"));
  if (!code) code = read_node(r, pst_json_get(v, "root"), "/root", &plan->root);
  return code ? code : check_engines_used(r);
}

static int keep_canonical(owned_plan *p, const char *source, pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  int code = pst_gateway_plan_write(&p->plan, &text, err);
  if (!code && !(p->plan.json = pst_arena_strndup(p->arena, pst_buf_text(&text), text.n)))
    code = pst_error_set(err, PST_E_NOMEM, source, "no memory for the plan");
  if (!code) pst_sha256_hex(text.data, text.n, p->plan.hash);
  if (!code && p->plan.cache.on) {
    pst_gateway_plan without = p->plan;
    without.cache.on = false;
    pst_buf_clear(&text);
    code = pst_gateway_plan_write(&without, &text, err);
  }
  if (!code) pst_sha256_hex(text.data, text.n, p->plan.answers_hash);
  pst_buf_done(&text);
  return code;
}

int pst_gateway_plan_parse(pst_str json, const char *source, pst_gateway_plan **ret_plan, pst_error *err) {
  pst_json_doc *doc = NULL;
  owned_plan *p = NULL;
  if (!source) source = "plan";
  if (json.n > PLAN_BYTES_MAX)
    return pst_error_set(err, PST_E_LIMIT, source, "a plan has at most %zu MiB", PLAN_BYTES_MAX >> 20);
  int code = pst_json_parse(json.data, json.n, source, &doc, err);
  if (!code) code = check_shape(pst_json_root(doc), source, err);
  if (code) goto done;
  p = pst_calloc(1, sizeof *p);
  if (p) p->arena = pst_arena_create();
  if (!p || !p->arena) {
    code = pst_error_set(err, PST_E_NOMEM, source, "no memory for the plan");
    goto done;
  }
  atomic_init(&p->n_refs, 1);
  reader r = {p, NULL, source, NULL, err};
  code = read_plan(&r, pst_json_root(doc));
  if (!code) code = keep_canonical(p, source, err);
  if (code) goto done;
  *ret_plan = &p->plan;
  p = NULL;
done:
  if (p) pst_gateway_plan_unref(&p->plan);
  pst_json_free(doc);
  return code;
}

pst_gateway_plan *pst_gateway_plan_ref(pst_gateway_plan *plan) {
  atomic_fetch_add(&((owned_plan *)plan)->n_refs, 1);
  return plan;
}

static bool node_has(const pst_gateway_node *node, pst_gateway_op op) {
  bool has = node->op == op;
  for (int i = 0; i < node->n_inputs && !has; i++) has = node_has(&node->inputs[i], op);
  return has;
}

bool pst_gateway_plan_has(const pst_gateway_plan *plan, pst_gateway_op op) { return node_has(&plan->root, op); }

void pst_gateway_plan_unref(pst_gateway_plan *plan) {
  owned_plan *p = (owned_plan *)plan;
  if (!p || atomic_fetch_sub(&p->n_refs, 1) > 1) return;
  pst_regex_free(p->regex);
  pst_arena_free(p->arena);
  pst_free(p);
}

/* ---- writing ---- */

static void put_optional(pst_json_writer *w, const char *key, const char *text) {
  if (text && *text) pst_json_member_cstr(w, key, text);
}

/* The shortest decimal that is this float: 0.95, not 0.949999988079071. */
static void put_float(pst_json_writer *w, const char *key, float value) {
  char text[40];
  for (int precision = 6; precision <= 9; precision++) {
    (void)snprintf(text, sizeof text, "%.*g", precision, (double)value);
    if (strtof(text, NULL) == value) break;
  }
  pst_json_member_double(w, key, strtod(text, NULL) + 0.0);
}

static void put_engine(pst_json_writer *w, const pst_gateway_engine_spec *e) {
  pst_json_key(w, e->name);
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "model", e->model);
  put_optional(w, "sha256", e->sha256);
  pst_json_member_cstr(w, "weights", e->weights ? e->weights : "shipped");
  put_optional(w, "draft", e->draft);
  pst_json_member_cstr(w, "kv", kv_words[e->options.kv]);
  pst_json_member_int(w, "slots", e->options.slots);
  pst_json_member_int(w, "chunk", e->options.chunk);
  pst_json_member_int(w, "threads", e->options.threads);
  pst_json_member_int(w, "context", e->options.n_ctx);
  pst_json_member_int(w, "kv_tokens", e->options.kv_tokens);
  pst_json_member_int(w, "max_queue", e->options.max_queue);
  pst_json_member_bool(w, "reuse", !e->options.no_reuse);
  pst_json_end_object(w);
}

static void put_sampling(pst_json_writer *w, const pst_engine_sampling *s) {
  pst_json_key(w, "sampling");
  pst_json_begin_object(w);
  put_float(w, "temperature", s->temperature);
  pst_json_member_int(w, "top_k", s->top_k);
  put_float(w, "top_p", s->top_p);
  put_float(w, "min_p", s->min_p);
  put_float(w, "repetition_penalty", s->repetition_penalty);
  put_float(w, "frequency_penalty", s->frequency_penalty);
  put_float(w, "presence_penalty", s->presence_penalty);
  pst_json_member_int(w, "penalty_window", s->penalty_window);
  pst_json_member_int(w, "seed", (int64_t)s->seed);
  pst_json_end_object(w);
}

static void put_prompt(pst_json_writer *w, const pst_gateway_node *n) {
  const char *const texts[] = {n->prompt_name, n->system, n->instruction, n->input_key, n->answer_key};
  bool any = false;
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) any |= texts[i] && *texts[i];
  if (!any) return;
  pst_json_key(w, "prompt");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "name", n->prompt_name && *n->prompt_name ? n->prompt_name : "prompt");
  put_optional(w, "system", n->system);
  put_optional(w, "instruction", n->instruction);
  put_optional(w, "input_key", n->input_key);
  put_optional(w, "answer_key", n->answer_key);
  pst_json_end_object(w);
}

static void put_leaf(pst_json_writer *w, const pst_gateway_plan *plan, const pst_gateway_node *n) {
  if (n->op == PST_GATEWAY_OP_LOCAL) {
    pst_json_member_cstr(w, "engine", plan->engines[n->engine].name);
    put_optional(w, "adapter", n->adapter);
    pst_json_member_cstr(w, "speculation", speculation_words[n->speculation]);
    put_optional(w, "answers", n->answers);
  } else {
    pst_json_member_cstr(w, "provider", n->provider);
    pst_json_member_cstr(w, "model", n->model);
  }
  put_prompt(w, n);
  pst_json_member_cstr(w, "layout", pst_gateway_layout_name(n->layout));
  if (n->examples_index) {
    pst_json_key(w, "examples");
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "index", n->examples_index);
    pst_json_member_int(w, "k", n->n_examples);
    pst_json_member_bool(w, "fixed", n->examples_fixed);
    pst_json_end_object(w);
  }
  pst_json_member_cstr(w, "constraint", pst_gateway_constraint_name(n->constraint));
  put_sampling(w, &n->sampling);
  pst_json_member_int(w, "max_tokens", n->max_tokens);
}

static void put_node(pst_json_writer *w, const pst_gateway_plan *plan, const pst_gateway_node *n) {
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "op", op_words[n->op]);
  if (n->op == PST_GATEWAY_OP_CASCADE) {
    pst_json_member_cstr(w, "signal", "margin");
    pst_json_member_double(w, "threshold", n->threshold);
    pst_json_key(w, "inputs");
    pst_json_begin_array(w);
    for (int i = 0; i < n->n_inputs; i++) put_node(w, plan, &n->inputs[i]);
    pst_json_end_array(w);
  } else if (n->op == PST_GATEWAY_OP_CLASSIFIER) {
    pst_json_member_cstr(w, "artefact", n->classifier);
    if (n->engine >= 0 && n->engine < plan->n_engines) pst_json_member_cstr(w, "engine", plan->engines[n->engine].name);
    put_optional(w, "adapter", n->adapter);
  } else {
    put_leaf(w, plan, n);
  }
  pst_json_end_object(w);
}

static void put_cache(pst_json_writer *w, const pst_gateway_cache *cache) {
  if (!cache->on) return;
  pst_json_key(w, "cache");
  pst_json_begin_object(w);
  pst_json_member_int(w, "ttl_seconds", cache->ttl_s);
  pst_json_member_int(w, "max_entries", cache->max_entries);
  pst_json_end_object(w);
}

static void put_plan(pst_json_writer *w, const pst_gateway_plan *plan) {
  pst_json_begin_object(w);
  pst_json_member_int(w, "schema", 1);
  put_optional(w, "workload", plan->workload);
  put_optional(w, "input_pattern", plan->input_pattern);
  if (plan->n_labels) pst_json_member_strs(w, "labels", plan->labels, (size_t)plan->n_labels);
  if (plan->n_copied) pst_json_member_strs(w, "copied", plan->copied, (size_t)plan->n_copied);
  put_cache(w, &plan->cache);
  pst_json_key(w, "engines");
  pst_json_begin_object(w);
  for (int i = 0; i < plan->n_engines; i++) put_engine(w, &plan->engines[i]);
  pst_json_end_object(w);
  pst_json_key(w, "root");
  put_node(w, plan, &plan->root);
  pst_json_end_object(w);
}

int pst_gateway_plan_write(const pst_gateway_plan *plan, pst_buf *out, pst_error *err) {
  pst_buf text = PST_BUF_INIT, canonical = PST_BUF_INIT;
  pst_json_doc *doc = NULL;
  pst_json_writer w = pst_json_writer_on(&text, false);
  put_plan(&w, plan);
  int code = pst_buf_status(&text);
  if (code)
    pst_error_set(err, code, "plan", "no memory for the plan");
  else
    code = pst_json_parse(text.data, text.n, "plan", &doc, err);
  if (!code) code = check_shape(pst_json_root(doc), "plan", err);
  if (!code && pst_json_canonical(pst_json_root(doc), &canonical))
    code = pst_error_set(err, PST_E_NOMEM, "plan", "no memory for the plan");
  if (!code) pst_buf_append_str(out, pst_buf_str(&canonical));
  if (!code && pst_buf_status(out)) code = pst_error_set(err, PST_E_NOMEM, "plan", "no memory for the plan");
  pst_json_free(doc);
  pst_buf_done(&text);
  pst_buf_done(&canonical);
  return code;
}
