/* penstock adapters: LoRA adapters by name, and in the forms of other programs. */
#include <stdio.h>
#include <string.h>

#include "cli/actions.h"
#include "cli/adapter_path.h"
#include "cli/adapters.h"
#include "cli/commands.h"
#include "cli/model_path.h"
#include "cli/open.h"
#include "cli/workload_name.h"

#include <penstock/gateway.h>

static const char *or_dash(const char *text) { return *text ? text : "-"; }

/* ---- list ---- */

typedef struct listing {
  bool json;
  int n;
  pst_json_writer w;
} listing;

static int put_adapter(void *user, const pst_store_adapter *r) {
  listing *l = user;
  l->n++;
  if (l->json) {
    const char *const texts[][2] = {{"name", r->name},         {"base", r->base}, {"base_sha256", r->base_sha256},
                                    {"workload", r->workload}, {"data", r->data}, {"run", r->run},
                                    {"file", r->file}};
    pst_json_begin_object(&l->w);
    for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) {
      pst_json_key(&l->w, texts[i][0]);
      pst_json_put_cstr(&l->w, *texts[i][1] ? texts[i][1] : NULL);
    }
    pst_json_member_int(&l->w, "rank", r->rank);
    pst_json_member_int(&l->w, "bytes", r->bytes);
    pst_json_member_int(&l->w, "created_ms", r->created_ms);
    pst_json_member_bool(&l->w, "stale", r->stale);
    pst_json_end_object(&l->w);
    return 0;
  }
  char time[32];
  if (l->n == 1)
    printf("%-20s %-20s %5s %10s  %-16s %-12s %-16s %-19s %s\n", "ADAPTER", "BASE", "RANK", "SIZE", "WORKLOAD", "DATA",
           "RUN", "ADDED", "FILE");
  printf("%-20s %-20s %5lld %6.1f MiB  %-16s %-12.12s %-16s %s %.12s%s\n", r->name, r->base, (long long)r->rank,
         (double)r->bytes / 1048576.0, or_dash(r->workload), or_dash(r->data), or_dash(r->run),
         pst_cli_show_time(r->created_ms, time), r->file, r->stale ? " stale: records of its data were erased" : "");
  return 0;
}

int pst_cli_adapters_print(pst_store *store, bool json, pst_buf *out, int *ret_n, pst_error *err) {
  listing l = {.json = json, .w = pst_json_writer_on(out, true)};
  if (json) pst_json_begin_array(&l.w);
  int code = pst_store_adapter_each(store, put_adapter, &l, err);
  if (json) pst_json_end_array(&l.w);
  if (!code && pst_buf_status(out)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  *ret_n = l.n;
  return code;
}

static int list(const pst_cli_args *a, pst_error *err) {
  pst_store *store = NULL;
  pst_buf out = PST_BUF_INIT;
  int n = 0, code = pst_cli_store_open(a, &store, err);
  bool json = pst_cli_flag(a, "json");
  if (!code) code = pst_cli_adapters_print(store, json, &out, &n, err);
  if (!code && json) puts(pst_buf_text(&out));
  if (!code && !json && !n) puts("no adapters yet; 'penstock adapters add NAME PATH --model MODEL' adds one");
  pst_buf_done(&out);
  pst_store_close(store);
  return code;
}

/* ---- add, remove, export ---- */

static int need_model(const pst_cli_args *a, const char **ret_model, pst_error *err) {
  *ret_model = pst_cli_text(a, "model");
  if (*ret_model) return 0;
  return pst_error_set(err, PST_E_BAD_INPUT, "adapters", "%s needs --model, the model that the adapter is for",
                       a->words[0]);
}

/* The row as the list has it. */
static void print_row(const pst_store_adapter *row) {
  pst_buf text = PST_BUF_INIT;
  listing l = {.json = true, .w = pst_json_writer_on(&text, true)};
  (void)put_adapter(&l, row);
  puts(pst_buf_text(&text));
  pst_buf_done(&text);
}

static int add(const pst_cli_args *a, pst_error *err) {
  pst_gateway_adapter adapter = {
      .name = a->words[1], .path = a->words[2], .data = pst_cli_text(a, "data"), .run = pst_cli_text(a, "run")};
  pst_store *store = NULL;
  pst_store_adapter row = {.rank = 0};
  char *workload = NULL;
  int code = need_model(a, &adapter.model, err);
  if (!code) code = pst_cli_workload_option(a, &workload, err);
  adapter.workload = workload;
  if (!code) code = pst_cli_store_open(a, &store, err);
  if (!code) code = pst_gateway_adapter_add(store, &adapter, &row, err);
  pst_free(workload);
  if (!code && pst_cli_flag(a, "json"))
    print_row(&row);
  else if (!code)
    printf("%s:%s, rank %lld, %.1f MiB, file %.12s\n", row.base, row.name, (long long)row.rank,
           (double)row.bytes / 1048576.0, row.file);
  pst_store_close(store);
  return code;
}

static int take_out(const pst_cli_args *a, pst_error *err) {
  pst_store *store = NULL;
  int code = pst_cli_store_open(a, &store, err);
  if (!code) code = pst_store_adapter_remove(store, pst_str_from(a->words[1]), err);
  if (!code) pst_cli_done(a, a->words[1], "removed", " is removed");
  pst_store_close(store);
  return code;
}

static void print_exported(const pst_cli_args *a, const pst_engine_lora *lora) {
  bool coded = lora->notes[PST_ENGINE_LORA_CODES] != NULL;
  if (!pst_cli_flag(a, "json")) {
    printf("%s: %zu matrices\n", a->words[2], lora->n_targets);
    if (coded)
      puts(
          "it answers in output codes: only Penstock expands them, by the table in the file's metadata (penstock.codes)");
    return;
  }
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "path", a->words[2]);
  pst_json_member_cstr(&w, "adapter", a->words[1]);
  pst_json_member_bool(&w, "peft", pst_cli_flag(a, "peft"));
  pst_json_member_int(&w, "n_matrices", (int64_t)lora->n_targets);
  pst_json_member_bool(&w, "codes", coded); /* only Penstock expands them */
  pst_json_end_object(&w);
  puts(pst_buf_text(&text));
  pst_buf_done(&text);
}

static int export(const pst_cli_args *a, pst_error *err) {
  const char *model_name = NULL, *out = a->words[2];
  pst_engine_model *model = NULL;
  pst_engine_lora lora = {0};
  char *path = NULL;
  int code = need_model(a, &model_name, err);
  if (!code) code = pst_cli_adapter_path(a, a->words[1], &path, err);
  if (!code) code = pst_cli_model_open(a, model_name, 0, &model, err);
  const pst_engine_model_info *info = code ? NULL : pst_engine_model_get_info(model);
  if (!code) code = pst_engine_lora_read(path, info, &lora, err);
  if (!code && !pst_cli_flag(a, "peft") && (pst_file_exists(out) || pst_dir_exists(out)))
    code = pst_error_set(err, PST_E_EXISTS, out, "is there already; give the new file another name");
  if (!code)
    code = pst_cli_flag(a, "peft") ? pst_engine_lora_write_peft(&lora, info, out, err)
                                   : pst_engine_lora_write_gguf(&lora, out, err);
  if (!code) print_exported(a, &lora);
  pst_engine_lora_done(&lora);
  pst_engine_model_unref(model);
  pst_free(path);
  return code;
}

/* ---- the command ---- */

enum { LIST, ADD, REMOVE, EXPORT, N_ACTIONS };
static const char *const action_names[N_ACTIONS] = {"list", "add", "remove", "export"};
static const pst_cli_owned owned[] = {{"model", 1 << ADD | 1 << EXPORT},
                                      {"workload", 1 << ADD},
                                      {"data", 1 << ADD},
                                      {"run", 1 << ADD},
                                      {"peft", 1 << EXPORT}};

static int run_adapters(const pst_cli_args *a, pst_error *err) {
  static const struct {
    const char *words;
    int n_words;
    int (*run)(const pst_cli_args *a, pst_error *err);
  } actions[N_ACTIONS] = {[LIST] = {"list", 1, list},
                          [ADD] = {"add NAME PATH", 3, add},
                          [REMOVE] = {"remove NAME", 2, take_out},
                          [EXPORT] = {"export ADAPTER OUT", 3, export}};
  int i, code = pst_cli_action(a, action_names, N_ACTIONS, owned, PST_ARRAY_LEN(owned), &i, err);
  if (code) return code;
  if (PST_MAX(a->n_words, 1) != actions[i].n_words)
    return pst_error_set(err, PST_E_BAD_INPUT, "adapters", "it is: penstock adapters %s", actions[i].words);
  return actions[i].run(a, err);
}

static const pst_cli_option options[] = {
    {"model", 'm', PST_CLI_TEXT, "MODEL", NULL, 0, 0, false, "add, export: the model that the adapter is for"},
    {"workload", 'w', PST_CLI_TEXT, "WORKLOAD", NULL, 0, 0, false, "add: workload that it was made for"},
    {"data", 0, PST_CLI_TEXT, "SHA256", NULL, 0, 0, false, "add: content hash of what it was made from"},
    {"run", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false, "add: run that made it"},
    {"peft", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "export: a folder for PEFT instead of a GGUF adapter"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_adapters = {
    "adapters",
    "list|add|remove|export [...]",
    "LoRA adapters of the models here",
    "list                  adapters, their base, and the data and run that made them (the default)\n"
    "add NAME PATH         keeps a copy of a GGUF adapter or of a folder of PEFT; served as MODEL:NAME\n"
    "remove NAME           forgets the name; plans that have its file still find it\n"
    "export ADAPTER OUT    writes an adapter, by name or path, as a GGUF file or (--peft) a folder for PEFT",
    0,
    3,
    options,
    PST_ARRAY_LEN(options),
    run_adapters};
