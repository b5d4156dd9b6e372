/* penstock serve: one OpenAI-compatible address in front of plans and models. Opens the parts in order, says in one line how to call them, and runs until it
 * has drained. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/open.h"
#include "cli/child.h"

#include <penstock/models.h>
#include <penstock/server.h>

enum { MAX_NAMES = 32, MAX_ADAPTERS = 64 };

typedef struct service {
  pst_store *store;
  pst_gateway *gateway;
  pst_server *server;
  pst_cli_child *worker;
  pst_gateway_plan *plans[MAX_NAMES];
  char *workloads[MAX_NAMES]; /* under which each is put in force */
  int n_plans;
  pst_server_alias models[MAX_NAMES];
  char *paths[MAX_NAMES]; /* what models[i].name points to */
  char *ids[MAX_NAMES];
  int n_models;
  pst_gateway_adapter adapters[MAX_ADAPTERS]; /* of --adapter, of the first model */
  char *adapter_names[MAX_ADAPTERS];
  int n_adapters;
  pst_buf names, hello; /* of all models; the first line */
  char writer[128];     /* the first model here that generates text */
} service;

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory"); }

/* "dir/smollm2.gguf" to "smollm2". */
static char *stem_of(const char *path, const char *ending) {
  const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  size_t n = strlen(name), e = strlen(ending);
  return pst_strndup(name, n > e && !strcmp(name + n - e, ending) ? n - e : n);
}

/* ---- what is served -------------------------------------------------------------------------------------------------------- */

/* A file, the hash of a plan in the store, or a workload that has one in force. */
static int read_plan(service *s, const char *what, pst_error *err) {
  char *json = NULL;
  size_t n = 0;
  bool file = pst_file_exists(what);
  int code = file ? pst_file_read(what, 16u << 20, &json, &n, err)
                  : pst_store_plan_get(s->store, pst_str_from(what), &json, NULL, NULL);
  if (code && !file)
    code = pst_store_plan_assigned(s->store, pst_str_from(what), PST_STORE_PLAN_IN_FORCE, &json, NULL, NULL);
  if (code && !file)
    code = pst_error_set(err, PST_E_NOT_FOUND, what,
                         "no plan file, no plan of this hash in the store, and no workload with a plan in force");
  if (code) return code;
  code = pst_gateway_plan_parse(pst_str_from(json), what, &s->plans[s->n_plans], err);
  pst_free(json);
  if (code) return code;
  const char *workload = s->plans[s->n_plans]->workload;
  s->workloads[s->n_plans] = workload ? pst_strdup(workload) : stem_of(what, ".json");
  return s->workloads[s->n_plans++] ? 0 : no_memory(err);
}

static int read_names(service *s, const pst_cli_args *a, pst_error *err) {
  const char *const *texts;
  int n = pst_cli_many(a, "plan", &texts), m;
  const char *const *models;
  m = pst_cli_many(a, "model", &models);
  if (n > MAX_NAMES || m > MAX_NAMES)
    return pst_error_set(err, PST_E_LIMIT, "serve", "at most %d plans and %d models", MAX_NAMES, MAX_NAMES);
  int code = 0;
  for (int i = 0; i < n && !code; i++) code = read_plan(s, texts[i], err);
  for (int i = 0; i < m && !code; i++) {
    const char *name = models[i];
    /* As the gateway will see it: an absolute path, or the name. */
    char real[PATH_MAX];
    bool path = pst_file_exists(name) || (strchr(name, '/') && pst_dir_exists(name));
    s->paths[i] = pst_strdup(path && realpath(name, real) ? real : name);
    s->ids[i] = path ? stem_of(pst_dir_exists(name) ? s->paths[i] : name, ".gguf") : pst_strdup(name);
    s->models[i] = (pst_server_alias){s->ids[i], s->paths[i]};
    s->n_models++;
    if (!s->paths[i] || !s->ids[i]) code = no_memory(err);
  }
  return code;
}

/* "NAME=PATH", or a path whose stem is the name. */
static int read_adapter(service *s, const char *text, pst_error *err) {
  const char *equals = strchr(text, '=');
  char *name = equals ? pst_strndup(text, (size_t)(equals - text)) : stem_of(text, ".gguf");
  if (!name) return no_memory(err);
  s->adapter_names[s->n_adapters] = name;
  s->adapters[s->n_adapters] =
      (pst_gateway_adapter){.name = name, .path = equals ? equals + 1 : text, .model = s->models[0].name};
  s->n_adapters++;
  if (pst_store_adapter_name_valid(pst_str_from(name))) return 0;
  return pst_error_set(
      err, PST_E_BAD_INPUT, "adapter",
      "--adapter takes NAME=PATH, the name of letters, digits, dots, dashes and underscores; not '%.60s'", text);
}

static int read_adapters(service *s, const pst_cli_args *a, pst_error *err) {
  const char *const *texts;
  int n = pst_cli_many(a, "adapter", &texts), code = 0;
  if (n > MAX_ADAPTERS) return pst_error_set(err, PST_E_LIMIT, "serve", "at most %d adapters", MAX_ADAPTERS);
  if (n && !s->n_models)
    return pst_error_set(err, PST_E_BAD_INPUT, "adapter", "--adapter needs --model, the model that it is for");
  for (int i = 0; i < n && !code; i++) code = read_adapter(s, texts[i], err);
  return code;
}

/* Kept and put in force, unless it is already. */
static int enforce_plan(const service *s, int i, pst_error *err) {
  char hash[65], now[65];
  int64_t ms = pst_clock_unix_ms();
  pst_str workload = pst_str_from(s->workloads[i]);
  int code = pst_store_plan_put(s->store, pst_str_from(s->plans[i]->json), ms, hash, err);
  if (code) return code;
  if (!pst_store_plan_assigned(s->store, workload, PST_STORE_PLAN_IN_FORCE, NULL, now, NULL) && !strcmp(now, hash))
    return 0;
  return pst_store_plan_assign(s->store, workload, PST_STORE_PLAN_IN_FORCE, pst_str_from(hash),
                               PST_STR("penstock serve --plan"), ms, err);
}

static int prepare(service *s, bool quiet, pst_error *err) {
  int code = 0;
  for (int i = 0; i < s->n_plans && !code; i++) {
    pst_progress progress;
    pst_progress_begin(&progress, s->workloads[i], 0, false, quiet);
    code = pst_gateway_prepare(s->gateway, s->plans[i], &progress, err);
    pst_progress_end(&progress);
  }
  for (int i = 0; i < s->n_models && !code; i++) {
    pst_progress progress;
    pst_progress_begin(&progress, s->models[i].id, 0, false, quiet);
    code = pst_gateway_prepare_model(s->gateway, s->models[i].name, &progress, err);
    pst_progress_end(&progress);
  }
  for (int i = 0; i < s->n_adapters && !code; i++) code = pst_gateway_adapter_add(s->store, &s->adapters[i], NULL, err);
  for (int i = 0; i < s->n_plans && !code; i++) code = enforce_plan(s, i, err);
  return code;
}

/* ---- opening and running ----------------------------------------------------------------------------------------------------- */

static int open_gateway(service *s, const pst_cli_args *a, pst_error *err) {
  pst_engine_options engine = pst_engine_options_default();
  engine.threads = (int)pst_cli_int(a, "threads");
  engine.n_ctx = (int)pst_cli_int(a, "ctx");
  if (pst_cli_given(a, "slots")) engine.slots = (int)pst_cli_int(a, "slots");
  if (pst_cli_given(a, "chunk")) engine.chunk = (int)pst_cli_int(a, "chunk");
  if (pst_cli_given(a, "kv")) {
    bool q8 = !strcmp(pst_cli_text(a, "kv"), "q8_0");
    if (!q8 && strcmp(pst_cli_text(a, "kv"), "f16"))
      return pst_error_set(err, PST_E_BAD_INPUT, "kv", "--kv takes f16 or q8_0");
    engine.kv = q8 ? PST_ENGINE_KV_Q8_0 : PST_ENGINE_KV_F16;
  }
  pst_gateway_options options = {.home = pst_store_home(s->store),
                                 .memory_bytes = (int64_t)(pst_cli_number(a, "memory") * 1073741824.0),
                                 .max_queue = (int)pst_cli_int(a, "queue"),
                                 .engine = &engine};
  return pst_gateway_open(s->store, &options, &s->gateway, err);
}

/* Who reads the line may send a signal at once: it is printed when signals are watched. */
static void say_hello(void *user) {
  const service *s = user;
  fputs(pst_buf_text(&s->hello), stdout);
  if (fflush(stdout)) pst_log(PST_LOG_WARN, "event=stdout_failed");
}

static int open_server(service *s, const pst_cli_args *a, pst_error *err) {
  pst_store_consent consent = {.keep =
                                   pst_cli_flag(a, "keep-content") ? PST_STORE_KEEP_CONTENT : PST_STORE_KEEP_METADATA};
  int code = pst_cli_consent(a, consent, &consent, err);
  if (code) return code;
  pst_server_options options = {
      .address = pst_cli_text(a, "host"),
      .port = (int)pst_cli_int(a, "port"),
      .require_key = pst_cli_flag(a, "require-key"),
      .consent = consent,
      .aliases = s->models,
      .n_aliases = (size_t)s->n_models,
      .default_model = s->n_plans    ? s->workloads[0]
                       : s->n_models ? s->models[0].id
                                     : NULL,
      .max_open = (int)pst_cli_int(a, "max-open"),
      .drain_ms = pst_cli_int(a, "drain-ms"),
      .ready = say_hello,
      .user = s,
  };
  return pst_server_open(s->store, s->gateway, &options, &s->server, err);
}

static int add_name(void *user, const char *id, const char *owner) {
  (void)owner;
  service *s = user;
  for (int i = 0; i < s->n_models; i++)
    if (!strcmp(id, s->models[i].id)) return 0;
  for (int i = 0; i < s->n_plans; i++)
    if (!strcmp(id, s->workloads[i])) return 0;
  pst_buf_printf(&s->names, "%s%s", s->names.n ? ", " : "", id);
  pst_models_file file;
  if (s->writer[0] || pst_models_resolve(pst_store_home(s->store), id, &file, NULL)) return 0;
  if (!pst_engine_model_encodes(file.path)) snprintf(s->writer, sizeof s->writer, "%s", id);
  pst_models_file_done(&file);
  return 0;
}

/* A provider whose price holds for all its models. */
static int add_provider(void *user, pst_str provider, pst_str model, pst_store_price price) {
  (void)price;
  service *s = user;
  if (pst_str_is(model, "*"))
    pst_buf_printf(&s->names, "%s%.*s/*", s->names.n ? ", " : "", (int)provider.n, provider.data);
  return 0;
}

static int write_hello(service *s, const pst_cli_args *a, pst_error *err) {
  const char *host = pst_cli_text(a, "host");
  bool colon = strchr(host, ':') != NULL, all = !strcmp(host, "0.0.0.0") || !strcmp(host, "::");
  char address[160];
  snprintf(address, sizeof address, "http://%s%.120s%s:%d/v1", colon && !all ? "[" : "", all ? "localhost" : host,
           colon && !all ? "]" : "", pst_server_port(s->server));
  for (int i = 0; i < s->n_plans; i++) pst_buf_printf(&s->names, "%s%s", i ? ", " : "", s->workloads[i]);
  for (int i = 0; i < s->n_models; i++) pst_buf_printf(&s->names, "%s%s", s->names.n ? ", " : "", s->models[i].id);
  int code = pst_gateway_models_each(s->gateway, add_name, s, err);
  if (!code) code = pst_store_price_each(s->store, add_provider, s, err);
  if (code) return code;
  if (s->names.n == 0)
    return pst_error_set(
        err, PST_E_NOT_FOUND, "serve",
        "there is nothing to serve; say --model M or --plan P, pull a model, or name a provider and its price");
  const char *first = s->n_plans ? s->workloads[0] : s->n_models ? s->models[0].id : s->writer[0] ? s->writer : NULL;
  char name[128];
  int n_name = (int)strcspn(pst_buf_text(&s->names), ",*"); /* up to a star, where the caller says which */
  bool any = pst_buf_text(&s->names)[n_name] == '*';
  snprintf(name, sizeof name, "%.*s%s", n_name, pst_buf_text(&s->names), any ? "MODEL" : "");
  bool embeds = s->n_plans == 0 && s->n_models && pst_gateway_model_embeds(s->gateway, s->models[0].name);
  pst_buf_printf(&s->hello, "serving %s at %s; try: curl %s/%s%s -d '{\"model\":\"%s\",%s}'\n", pst_buf_text(&s->names),
                 address, address, embeds ? "embeddings" : "chat/completions",
                 pst_cli_flag(a, "require-key") ? " -H \"Authorization: Bearer $KEY\"" : "", first ? first : name,
                 embeds ? "\"input\":\"Hello\"" : "\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]");
  return pst_buf_status(&s->hello) ? no_memory(err) : 0;
}

static void close_all(service *s) {
  pst_cli_child_stop(s->worker);
  /* The gateway first: after it no event can come to the server's calls. */
  pst_gateway_close(s->gateway);
  pst_server_close(s->server);
  for (int i = 0; i < s->n_plans; i++) {
    pst_gateway_plan_unref(s->plans[i]);
    pst_free(s->workloads[i]);
  }
  for (int i = 0; i < s->n_models; i++) {
    pst_free(s->paths[i]);
    pst_free(s->ids[i]);
  }
  for (int i = 0; i < s->n_adapters; i++) pst_free(s->adapter_names[i]);
  pst_store_close(s->store);
  pst_buf_done(&s->names);
  pst_buf_done(&s->hello);
}

static int run_serve(const pst_cli_args *a, pst_error *err) {
  service s;
  memset(&s, 0, sizeof s);
  if (!getenv("PENSTOCK_LOG")) pst_log_set_level(pst_cli_flag(a, "quiet") ? PST_LOG_WARN : PST_LOG_INFO);
  int code = pst_cli_store_open(a, &s.store, err);
  if (!code) code = read_names(&s, a, err);
  if (!code) code = read_adapters(&s, a, err);
  if (!code) code = open_gateway(&s, a, err);
  if (!code) code = open_server(&s, a, err); /* the port is taken before anything slow or lasting is done */
  if (!code) code = prepare(&s, pst_cli_flag(a, "quiet"), err);
  if (!code) code = write_hello(&s, a, err);
  if (!code && !pst_cli_flag(a, "no-worker")) code = pst_cli_child_start(pst_store_home(s.store), &s.worker, err);
  if (!code) code = pst_server_run(s.server, err);
  close_all(&s);
  return code;
}

static const pst_cli_option options[] = {
    {"plan", 'p', PST_CLI_TEXT, "PLAN", NULL, 0, 0, true,
     "plan file, hash in the store, or workload; put in force for its workload"},
    {"model", 'm', PST_CLI_TEXT, "MODEL", NULL, 0, 0, true,
     "pulled model, GGUF file or checkpoint folder to load at the start"},
    {"adapter", 0, PST_CLI_TEXT, "NAME=PATH", NULL, 0, 0, true,
     "LoRA adapter of the first --model, added as by 'penstock adapters add'"},
    {"host", 0, PST_CLI_TEXT, "ADDRESS", "127.0.0.1", 0, 0, false, "address to listen on"},
    {"port", 0, PST_CLI_INT, "N", "8080", 0, 65535, false, "port (0: the system chooses)"},
    {"slots", 0, PST_CLI_INT, "N", NULL, 1, 256, false, "answers decoded together (models; a plan says its own)"},
    PST_CLI_THREADS,
    {"ctx", 'c', PST_CLI_INT, "N", "0", 0, 1 << 24, false,
     "longest prompt and answer together (0: model's, up to 8192)"},
    {"chunk", 0, PST_CLI_INT, "N", NULL, 16, 2048, false, "prompt tokens in one step"},
    {"kv", 0, PST_CLI_TEXT, "TYPE", NULL, 0, 0, false, "type of keys and values: f16 or q8_0"},
    {"memory", 0, PST_CLI_NUMBER, "GIB", "0", 0, 1 << 20, false,
     "for models and KV together (0: half of the machine's)"},
    {"queue", 0, PST_CLI_INT, "N", "0", 0, 1 << 20, false, "requests waiting per engine before 429 (0: 512)"},
    {"max-open", 0, PST_CLI_INT, "N", "0", 0, 1 << 20, false, "requests being answered before 503 (0: 512)"},
    {"drain-ms", 0, PST_CLI_INT, "MS", "30000", 1, 1 << 30, false, "time for what is in flight after SIGTERM"},
    {"require-key", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "an API key is needed on loopback too"},
    {"keep-content", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "the same as --keep content"},
    PST_CLI_CONSENT,
    {"no-worker", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "start no process for fine-tuning jobs ('penstock worker')"},
    PST_CLI_QUIET,
    PST_CLI_HOME,
};
const pst_cli_command pst_cli_serve = {
    "serve",
    "",
    "serve plans and models over the OpenAI API",
    "A request's `model` is a workload with a plan in force, a pulled model, MODEL:ADAPTER, provider/model, or \"default\": the first --plan, else the\n"
    "first --model. A name that is none of these goes to the workload of the caller's API key, if it has one.\n"
    "What is kept of a request is what its API key says, else --keep, --train and --retention. A request can lower it by x-penstock-keep (nothing, metadata, content),\n"
    "x-penstock-train (no) and x-penstock-retention-days. Whose it is, for 'penstock data delete --subject', says x-penstock-subject, else safety_identifier, else user.\n"
    "A plan with a \"cache\" gives answers again to requests that are exactly the same, out of content that is kept (--keep content, or a key's); the header\n"
    "x-penstock-cache says hit, miss or bypass. Cache-Control: no-cache has it computed anew, no-store keeps it out.\n"
    "Callers from other machines need an API key ('penstock key'), also through a proxy or a web page on this one. SIGTERM drains; a\n"
    "second one cuts what is open.",
    0,
    0,
    options,
    PST_ARRAY_LEN(options),
    run_serve};
