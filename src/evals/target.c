/* Targets: what a person names on the command line, as a plan.
 *
 * A model or a provider's model becomes the plainest plan there is (the workload's first prompt, greedy), so that "what do I get
 * without any of this?" has an answer that goes the same way as all others. */
#include "evals/workload.h"

#include <string.h>

static bool is_hash(pst_str text) {
  bool hex = text.n >= 8 && text.n <= 64;
  for (size_t i = 0; i < text.n; i++)
    hex = hex && ((text.data[i] >= '0' && text.data[i] <= '9') || (text.data[i] >= 'a' && text.data[i] <= 'f'));
  return hex;
}

static void write_prompt(const pst_evals_prompt *p, pst_json_writer *w) {
  pst_json_key(w, "prompt");
  pst_json_begin_object(w);
  pst_json_member_str(w, "name", p->name);
  pst_json_member_str(w, "system", p->system);
  pst_json_member_str(w, "instruction", p->instruction);
  pst_json_member_str(w, "input_key", p->input_key);
  pst_json_member_str(w, "answer_key", p->answer_key);
  pst_json_end_object(w);
}

void pst_evals_plan_begin(const pst_evals_info *info, pst_json_writer *w) {
  pst_json_member_int(w, "schema", 1);
  pst_json_member_cstr(w, "workload", info->name);
  if (info->input_pattern) pst_json_member_cstr(w, "input_pattern", info->input_pattern);
  if (info->n_labels) pst_json_member_strs(w, "labels", info->labels, info->n_labels);
}

/* The plan of one model; provider empty: a local one. */
static int plain_plan(const pst_evals_workload *workload, pst_str provider, pst_str model, pst_gateway_layout layout,
                      pst_gateway_plan **ret_plan, pst_error *err) {
  const pst_evals_info *info = &workload->info;
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_begin_object(&w);
  pst_evals_plan_begin(info, &w);
  if (!provider.n) {
    pst_json_key(&w, "engines");
    pst_json_begin_object(&w);
    pst_json_key(&w, "e1");
    pst_json_begin_object(&w);
    pst_json_member_str(&w, "model", model);
    pst_json_end_object(&w);
    pst_json_end_object(&w);
  }
  pst_json_key(&w, "root");
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "op", provider.n ? PST_STR("remote") : PST_STR("local"));
  if (provider.n) {
    pst_json_member_str(&w, "provider", provider);
    pst_json_member_str(&w, "model", model);
  } else {
    pst_json_member_str(&w, "engine", PST_STR("e1"));
  }
  write_prompt(&info->prompts[0], &w);
  pst_json_member_str(&w, "layout", pst_str_from(pst_gateway_layout_name(layout)));
  pst_json_member_int(&w, "max_tokens", info->max_tokens);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  int code = pst_buf_status(&text);
  code = code ? pst_error_set(err, code, NULL, "no memory for a plan")
              : pst_gateway_plan_parse(pst_buf_str(&text), "the target's plan", ret_plan, err);
  pst_buf_done(&text);
  return code;
}

/* A model without a template is given the layout that needs none. */
static int local_plan(pst_gateway *gateway, const pst_evals_workload *workload, pst_str model,
                      pst_gateway_plan **ret_plan, pst_error *err) {
  pst_gateway_plan *plan = NULL;
  pst_engine *engine = NULL;
  int code = plain_plan(workload, (pst_str){NULL, 0}, model, PST_GATEWAY_LAYOUT_PLAIN, &plan, err);
  if (!code) code = pst_gateway_engine_acquire(gateway, plan, 0, &engine, err);
  if (!code) {
    bool has_template = pst_engine_model_get_info(pst_engine_get_model(engine))->has_template;
    pst_gateway_engine_release(gateway, engine);
    if (!has_template) {
      *ret_plan = plan;
      return 0;
    }
    code = plain_plan(workload, (pst_str){NULL, 0}, model, PST_GATEWAY_LAYOUT_CHAT, ret_plan, err);
  }
  pst_gateway_plan_unref(plan);
  return code;
}

typedef struct provider_search {
  pst_str name;
  bool found;
  pst_buf names;
} provider_search;

static int on_provider(void *user, pst_str name, pst_str base_url, pst_str key_env) {
  provider_search *s = user;
  (void)base_url;
  (void)key_env;
  s->found = s->found || pst_str_equal(name, s->name);
  pst_buf_printf(&s->names, "%s%.*s", s->names.n ? ", " : "", (int)name.n, name.data);
  return 0;
}

static int remote_plan(pst_store *store, const pst_evals_workload *workload, pst_str text, size_t slash,
                       pst_gateway_plan **ret_plan, pst_error *err) {
  provider_search s = {{text.data, slash}, false, PST_BUF_INIT};
  pst_str model = {text.data + slash + 1, text.n - slash - 1};
  int code = pst_gateway_provider_each(store, on_provider, &s, err);
  if (!code && !s.found)
    code = pst_error_set(
        err, PST_E_NOT_FOUND, text.data,
        "there is no file of that name, and no provider \"%.*s\" ('penstock settings provider NAME URL KEY_ENV' adds one)%s%.200s",
        (int)PST_MIN(slash, (size_t)60), text.data, s.names.n ? "; known are: " : "", pst_buf_text(&s.names));
  else if (!code && !workload->info.allow_remote)
    code = pst_error_set(
        err, PST_E_DENIED, text.data,
        "the workload's items may not leave this machine; set privacy.remote to true in %s/workload.json to "
        "allow it",
        workload->info.folder);
  if (!code) code = plain_plan(workload, s.name, model, PST_GATEWAY_LAYOUT_CHAT, ret_plan, err);
  pst_buf_done(&s.names);
  return code;
}

static bool leaves_machine(const pst_gateway_node *node) {
  bool leaves = node->op == PST_GATEWAY_OP_REMOTE;
  for (int i = 0; i < node->n_inputs; i++) leaves = leaves || leaves_machine(&node->inputs[i]);
  return leaves;
}

/* A plan as it was written: from a file or the store. */
static int read_plan(pst_store *store, const pst_evals_workload *workload, const char *text,
                     pst_gateway_plan **ret_plan, pst_error *err) {
  char *json = NULL;
  size_t n = 0;
  int code;
  if (!strcmp(text, "in-force")) {
    code = pst_store_plan_assigned(store, pst_str_from(workload->info.name), PST_STORE_PLAN_IN_FORCE, &json, NULL, err);
  } else if (pst_file_exists(text)) {
    code = pst_file_read(text, (size_t)16 << 20, &json, &n, err);
  } else {
    code = pst_store_plan_get(store, pst_str_from(text), &json, NULL, err);
  }
  if (!code) code = pst_gateway_plan_parse(pst_str_from(json), text, ret_plan, err);
  pst_free(json);
  if (!code && !workload->info.allow_remote && leaves_machine(&(*ret_plan)->root)) {
    pst_gateway_plan_unref(*ret_plan);
    code =
        pst_error_set(err, PST_E_DENIED, text,
                      "the plan asks a provider, and the workload's items may not leave this machine (privacy.remote)");
  }
  return code;
}

int pst_evals_target_open(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload, const char *text,
                          pst_gateway_plan **ret_plan, pst_error *err) {
  pst_str s = pst_str_from(text);
  if (pst_str_starts(s, PST_STR("model:")))
    return local_plan(gateway, workload, (pst_str){s.data + 6, s.n - 6}, ret_plan, err);
  pst_gateway_plan *plan = NULL;
  if (pst_str_is(s, "in-force") || pst_file_exists(text) || is_hash(s)) {
    int code = read_plan(store, workload, text, &plan, err);
    if (!code) *ret_plan = plan;
    return code;
  }
  size_t slash = pst_str_find(s, PST_STR("/"), 0);
  if (slash != SIZE_MAX && slash > 0 && slash + 1 < s.n) return remote_plan(store, workload, s, slash, ret_plan, err);
  int code = slash == SIZE_MAX ? local_plan(gateway, workload, s, ret_plan, err) : PST_E_NOT_FOUND;
  if (code == PST_E_NOT_FOUND)
    code = pst_error_set(err, PST_E_BAD_INPUT, text,
                         "names no target: a plan file, a plan's hash, in-force, a model that was pulled or "
                         "PROVIDER/MODEL is wanted");
  return code;
}
