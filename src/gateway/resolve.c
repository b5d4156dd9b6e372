/* What a model name means: a workload with a plan in force, a model of this machine, one with an adapter ("model:adapter"), or "provider/model"; in this order.
 *
 * Plans in force are read once and kept until the store's generation says that some process has assigned another. */
#include "gateway/live.h"

#include <penstock/models.h>

#include <string.h>

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a plan"); }

/* ---- plans in force -------------------------------------------------------------------------------------------------------- */

static void forget_plans_locked(pst_gateway *g, int64_t generation) {
  while (g->plans) {
    pst_gateway_in_force *next = g->plans->next;
    pst_gateway_plan_unref(g->plans->plan);
    pst_free(g->plans);
    g->plans = next;
  }
  g->generation = generation;
}

static pst_gateway_plan *kept_plan(pst_gateway *g, pst_str workload, int64_t generation) {
  pst_gateway_plan *plan = NULL;
  pthread_mutex_lock(&g->lock);
  if (g->generation != generation) forget_plans_locked(g, generation);
  for (pst_gateway_in_force *p = g->plans; p && !plan; p = p->next)
    if (pst_str_is(workload, p->workload)) plan = pst_gateway_plan_ref(p->plan);
  pthread_mutex_unlock(&g->lock);
  return plan;
}

static int keep_plan(pst_gateway *g, pst_str workload, pst_gateway_plan *plan, int64_t generation, pst_error *err) {
  pst_gateway_in_force *p = pst_malloc(sizeof *p + workload.n + 1);
  if (!p) return no_memory(err);
  memcpy(p->workload, workload.data, workload.n);
  p->workload[workload.n] = '\0';
  p->plan = pst_gateway_plan_ref(plan);
  pthread_mutex_lock(&g->lock);
  bool current = g->generation == generation;
  if (current) {
    p->next = g->plans;
    g->plans = p;
  }
  pthread_mutex_unlock(&g->lock);
  if (!current) {
    pst_gateway_plan_unref(p->plan);
    pst_free(p);
  }
  return 0;
}

/* The plan in force of a workload; PST_E_NOT_FOUND. */
static int plan_in_force(pst_gateway *g, pst_str workload, pst_gateway_plan **ret_plan, pst_error *err) {
  int64_t generation = pst_store_plan_generation(g->store);
  char *json = NULL;
  pst_gateway_plan *plan = kept_plan(g, workload, generation);
  if (plan) {
    *ret_plan = plan;
    return 0;
  }
  int code = pst_store_plan_assigned(g->store, workload, PST_STORE_PLAN_IN_FORCE, &json, NULL, err);
  if (!code) code = pst_gateway_plan_parse(pst_str_from(json), "plan in force", &plan, err);
  if (!code && (code = keep_plan(g, workload, plan, generation, err))) pst_gateway_plan_unref(plan);
  if (!code) *ret_plan = plan;
  pst_free(json);
  return code;
}

/* ---- models ------------------------------------------------------------------------------------------------------------------ */

static bool is_known(pst_gateway *g, pst_str model) {
  pthread_mutex_lock(&g->lock);
  pst_gateway_known *k = g->known;
  while (k && !pst_str_is(model, k->model)) k = k->next;
  pthread_mutex_unlock(&g->lock);
  return k != NULL;
}

static bool is_path(pst_str model) {
  pst_str end = PST_STR(".gguf");
  return pst_str_find(model, PST_STR("/"), 0) != SIZE_MAX ||
         (model.n > end.n && !memcmp(model.data + model.n - end.n, end.data, end.n));
}

/* Is there such a model here? Users may name what is registered, not walk through the file system. */
static int local_exists(pst_gateway *g, pst_str model, bool any_path, pst_error *err) {
  pst_models_file file = {.path = NULL};
  char name[1024];
  if (is_known(g, model)) return 0;
  if (model.n >= sizeof name || memchr(model.data, 0, model.n) || (is_path(model) && !any_path)) return PST_E_NOT_FOUND;
  memcpy(name, model.data, model.n);
  name[model.n] = '\0';
  pst_gateway_engine_spec spec = pst_gateway_plain_spec(g, name);
  if (pst_gateway_engines_has(g->engines, &spec)) return 0;
  int code = pst_models_resolve(g->home, name, &file, err);
  pst_models_file_done(&file);
  return code;
}

/* "model:adapter". PST_E_NOT_FOUND with *ret_known: the model is here, the adapter is not. */
static int find_adapter(pst_gateway *g, pst_str name, bool any_path, pst_gateway_target *ret_target, bool *ret_known,
                        pst_error *err) {
  size_t colon = name.n;
  while (colon > 0 && name.data[colon - 1] != ':') colon--;
  if (colon < 2 || colon == name.n) return PST_E_NOT_FOUND;
  pst_str base = {name.data, colon - 1}, adapter = {name.data + colon, name.n - colon};
  if (local_exists(g, base, any_path, NULL)) return PST_E_NOT_FOUND;
  pst_store_adapter row;
  pst_models_file file = {.path = NULL};
  char text[1024];
  *ret_known = true;
  (void)snprintf(text, sizeof text, "%.*s", (int)base.n, base.data);
  int code = pst_store_adapter_get(g->store, adapter, &row, err);
  if (code == PST_E_NOT_FOUND)
    return pst_error_set(err, code, "adapter", "the model %s has no adapter \"%.*s\"; `penstock adapters` lists them",
                         text, (int)PST_MIN(adapter.n, (size_t)63), adapter.data);
  if (code) return code;
  code = pst_models_resolve(g->home, text, &file, err);
  if (!code && !file.sha256[0]) code = pst_models_hash(g->home, file.path, NULL, file.sha256, err);
  if (!code && strcmp(file.sha256, row.base_sha256) != 0)
    code = pst_error_set(err, PST_E_BAD_INPUT, "model", "the adapter \"%s\" is for the model %s, not for %s", row.name,
                         row.base, text);
  pst_models_file_done(&file);
  if (code) return code;
  ret_target->model = base;
  memcpy(ret_target->adapter, row.file, sizeof row.file);
  return 0;
}

static int find_provider(pst_gateway *g, pst_str model, pst_gateway_target *ret_target, pst_error *err) {
  size_t slash = pst_str_find(model, PST_STR("/"), 0);
  if (slash == SIZE_MAX || slash == 0 || slash + 1 >= model.n) return PST_E_NOT_FOUND;
  pst_gateway_provider provider;
  pst_str name = {model.data, slash};
  int code = pst_gateway_provider_get(g->store, name, &provider, err);
  if (code) return code;
  pst_gateway_provider_done(&provider);
  ret_target->provider = name;
  ret_target->model = (pst_str){model.data + slash + 1, model.n - slash - 1};
  return 0;
}

int pst_gateway_resolve(pst_gateway *g, pst_str model, bool any_path, pst_gateway_target *ret_target, pst_error *err) {
  pst_gateway_target target = {.model = model};
  pst_error why = PST_ERROR_INIT;
  bool known = false;
  if (model.n == 0) return pst_error_set(err, PST_E_BAD_INPUT, "model", "the call names no model");
  int code = plan_in_force(g, model, &target.plan, &why);
  if (code == PST_E_NOT_FOUND) code = local_exists(g, model, any_path, &why);
  if (code == PST_E_NOT_FOUND) code = find_adapter(g, model, any_path, &target, &known, &why);
  if (code == PST_E_NOT_FOUND && !known) code = find_provider(g, model, &target, &why);
  if (code == PST_E_NOT_FOUND && !known)
    return pst_error_set(
        err, code, "model",
        "there is no workload, model or provider/model \"%.*s\"; `penstock models` lists models, `penstock pull` "
        "gets one",
        (int)PST_MIN(model.n, 120u), model.data);
  if (code) {
    if (err) *err = why;
    return code;
  }
  *ret_target = target;
  return 0;
}
