/* penstock plans: which plan is in force for which workload, how that came about, and another in its place.
 *
 * Owns no state: who is in which role, and since when, is the store's history (store/plans.c), from which every gateway sees by itself that a plan has changed. */
#include "cli/plans.h"

#include <stdlib.h>
#include <string.h>

#include "cli/actions.h"
#include "cli/commands.h"
#include "cli/open.h"
#include "cli/workload_name.h"

#include <penstock/gateway.h>

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory"); }

static const char *role_name(pst_store_plan_role role) { return role == PST_STORE_PLAN_SHADOW ? "shadow" : "in force"; }

int pst_cli_plan_check(pst_store *store, const char *hash, const char *json, pst_error *err) {
  char adapter[64];
  int code = pst_store_plan_find_stale(store, pst_str_from(json), adapter, err);
  if (code || !*adapter) return code;
  return pst_error_set(
      err, PST_E_DENIED, "plan",
      "%.12s is not put in force: its adapter %s learned from records that were erased since; 'penstock turn' or "
      "'penstock optimize' finds a plan without it, --force of 'penstock plans' takes it all the same",
      hash, adapter);
}

/* ---- history ------------------------------------------------------------------------------------------------------------------ */

typedef struct plan_event {
  const char *workload, *what, *note; /* note NULL: none */
  pst_store_plan_role role;
  int64_t id, time_ms;
  char hash[65]; /* empty: the role was emptied */
} plan_event;

typedef struct plan_events {
  pst_arena *arena; /* texts of the rows */
  plan_event *rows; /* [n], oldest first */
  size_t n, capacity;
} plan_events;

static const char *keep_text(pst_arena *arena, pst_str text, int *code) {
  const char *kept = text.data ? pst_arena_strndup(arena, text.data, text.n) : NULL;
  if (text.data && !kept) *code = PST_E_NOMEM;
  return kept;
}

static int keep_event(void *user, const pst_store_plan_event *e) {
  plan_events *all = user;
  int code = pst_array_reserve((void **)&all->rows, &all->capacity, all->n + 1, sizeof *all->rows);
  if (code) return code;
  plan_event *row = &all->rows[all->n];
  *row = (plan_event){.role = e->role, .id = e->id, .time_ms = e->time_ms};
  row->workload = keep_text(all->arena, e->workload, &code);
  row->what = keep_text(all->arena, e->event, &code);
  row->note = keep_text(all->arena, e->note, &code);
  (void)snprintf(row->hash, sizeof row->hash, "%.*s", (int)e->plan_hash.n, e->plan_hash.data ? e->plan_hash.data : "");
  if (!code) all->n++;
  return code;
}

/* workload NULL: of all. *ret: read_done, also after a failure. */
static int read_events(pst_store *store, const char *workload, plan_events *ret, pst_error *err) {
  *ret = (plan_events){.arena = pst_arena_create()};
  if (!ret->arena) return no_memory(err);
  int code =
      pst_store_plan_history(store, workload ? pst_str_from(workload) : (pst_str){NULL, 0}, keep_event, ret, err);
  return code == PST_E_NOMEM ? no_memory(err) : code;
}

static void read_done(plan_events *all) {
  pst_free(all->rows);
  pst_arena_free(all->arena);
}

static void put_event(pst_json_writer *w, const plan_event *e) {
  pst_json_begin_object(w);
  pst_json_member_int(w, "id", e->id);
  pst_json_member_int(w, "time_ms", e->time_ms);
  pst_json_member_cstr(w, "role", role_name(e->role));
  pst_json_member_cstr(w, "event", e->what);
  pst_json_member_cstr(w, "plan", *e->hash ? e->hash : NULL);
  pst_json_member_cstr(w, "note", e->note);
  pst_json_end_object(w);
}

static int print_json(pst_buf *text, pst_error *err) {
  int code = pst_buf_status(text) ? no_memory(err) : 0;
  if (!code) puts(pst_buf_text(text));
  return code;
}

static int history(const pst_cli_args *a, pst_store *store, const char *workload, pst_error *err) {
  plan_events all;
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  bool json = pst_cli_flag(a, "json");
  char time[32];
  int code = read_events(store, workload, &all, err);
  if (!code && !all.n)
    code = pst_error_set(err, PST_E_NOT_FOUND, "history",
                         "no plan was ever in force for \"%.80s\"; 'penstock plans' lists the workloads that have one",
                         workload);
  pst_json_begin_array(&w);
  for (size_t i = code ? 0 : all.n; i-- > 0;) {
    const plan_event *e = &all.rows[i];
    if (json) {
      put_event(&w, e);
      continue;
    }
    if (i + 1 == all.n) printf("%-19s  %-8s  %-9s  %-12s  %s\n", "TIME (UTC)", "ROLE", "EVENT", "PLAN", "BY");
    printf("%s  %-8s  %-9s  %-12.12s  %s\n", pst_cli_show_time(e->time_ms, time), role_name(e->role), e->what,
           *e->hash ? e->hash : "none", e->note ? e->note : "-");
  }
  pst_json_end_array(&w);
  if (!code && json) code = print_json(&text, err);
  pst_buf_done(&text);
  read_done(&all);
  return code;
}

/* ---- what a plan does, in a few words ------------------------------------------------------------------------------------------ */

typedef struct listing {
  pst_store *store;
  pst_store_adapter *adapters; /* [n], for their names */
  size_t n, capacity;
} listing;

static int keep_adapter(void *user, const pst_store_adapter *row) {
  listing *l = user;
  int code = pst_array_reserve((void **)&l->adapters, &l->capacity, l->n + 1, sizeof *l->adapters);
  if (!code) l->adapters[l->n++] = *row;
  return code;
}

/* "smollm2-135m:orders Q8_0": an adapter without a name by the first digits of its file's. */
static void put_engine(const listing *l, const pst_gateway_engine_spec *e, const char *adapter, pst_buf *out) {
  const char *slash = strrchr(e->model, '/');
  pst_buf_puts(out, slash && slash[1] ? slash + 1 : e->model);
  size_t i = 0;
  while (adapter && i < l->n && strcmp(l->adapters[i].file, adapter) != 0) i++;
  if (adapter && i < l->n)
    pst_buf_printf(out, ":%s", l->adapters[i].name);
  else if (adapter)
    pst_buf_printf(out, ":%.12s", adapter);
  if (e->weights && strcmp(e->weights, "shipped") != 0) pst_buf_printf(out, " %s", e->weights);
}

static void put_node(const listing *l, const pst_gateway_plan *plan, const pst_gateway_node *node, pst_buf *out) {
  switch (node->op) {
  case PST_GATEWAY_OP_LOCAL: put_engine(l, &plan->engines[node->engine], node->adapter, out); break;
  case PST_GATEWAY_OP_REMOTE: pst_buf_printf(out, "%s/%s", node->provider, node->model); break;
  case PST_GATEWAY_OP_CLASSIFIER:
    pst_buf_puts(out, node->engine < 0 ? "classifier" : "classifier on ");
    if (node->engine >= 0) put_engine(l, &plan->engines[node->engine], node->adapter, out);
    break;
  case PST_GATEWAY_OP_CASCADE:
    for (int i = 0; i < node->n_inputs; i++) {
      if (i) pst_buf_puts(out, ", then ");
      put_node(l, plan, &node->inputs[i], out);
    }
    break;
  }
  if (node->examples_index) pst_buf_printf(out, " with %d examples", node->n_examples);
}

/* Into *out, in place of what it held. A plan that only another version of this program understands is listed all the same. */
static int describe(const listing *l, const char *hash, pst_buf *out, char ret_stale[64], pst_error *err) {
  char *json = NULL;
  pst_gateway_plan *plan = NULL;
  pst_buf_clear(out);
  int code = pst_store_plan_get(l->store, pst_str_from(hash), &json, NULL, err);
  if (!code) code = pst_store_plan_find_stale(l->store, pst_str_from(json), ret_stale, err);
  if (!code && pst_gateway_plan_parse(pst_str_from(json), NULL, &plan, NULL))
    pst_buf_puts(out, "(this version cannot read it)");
  else if (!code)
    put_node(l, plan, &plan->root, out);
  pst_gateway_plan_unref(plan);
  pst_free(json);
  return code ? code : pst_buf_status(out) ? no_memory(err) : 0;
}

/* ---- list -------------------------------------------------------------------------------------------------------------------- */

static int by_workload_and_role(const void *a, const void *b) {
  const plan_event *x = *(const plan_event *const *)a, *y = *(const plan_event *const *)b;
  int order = strcmp(x->workload, y->workload);
  return order ? order : (int)x->role - (int)y->role;
}

/* Of each role of each workload the event since which it has the plan that it has: putting the same one there again is no change. held [all->n]. Returns how many. */
static size_t find_held(const plan_events *all, const plan_event **held) {
  size_t n = 0, n_filled = 0;
  for (size_t i = 0; i < all->n; i++) {
    const plan_event *e = &all->rows[i];
    size_t k = 0;
    while (k < n && by_workload_and_role(&held[k], &e) != 0) k++;
    if (k == n)
      held[n++] = e;
    else if (strcmp(held[k]->hash, e->hash) != 0)
      held[k] = e;
  }
  for (size_t k = 0; k < n; k++)
    if (*held[k]->hash) held[n_filled++] = held[k];
  if (n_filled) qsort(held, n_filled, sizeof *held, by_workload_and_role);
  return n_filled;
}

static int put_held(const listing *l, const plan_event *e, pst_json_writer *w, pst_buf *scratch, pst_error *err) {
  char stale[64] = "";
  int code = describe(l, e->hash, scratch, stale, err);
  if (code) return code;
  pst_json_key(w, e->role == PST_STORE_PLAN_SHADOW ? "shadow" : "in_force");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "plan", e->hash);
  pst_json_member_int(w, "since_ms", e->time_ms);
  pst_json_member_cstr(w, "event", e->what);
  pst_json_member_cstr(w, "note", e->note);
  pst_json_member_str(w, "description", pst_buf_str(scratch));
  pst_json_member_cstr(w, "stale_adapter", *stale ? stale : NULL);
  pst_json_end_object(w);
  return 0;
}

static void put_no_role(pst_json_writer *w, const char *key) {
  pst_json_key(w, key);
  pst_json_put_null(w);
}

static int print_list_json(const listing *l, const plan_event *const *held, size_t n, pst_error *err) {
  pst_buf text = PST_BUF_INIT, scratch = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  int code = 0;
  pst_json_begin_array(&w);
  for (size_t i = 0; i < n && !code;) {
    const char *workload = held[i]->workload;
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "workload", workload);
    bool in_force = held[i]->role == PST_STORE_PLAN_IN_FORCE;
    if (in_force)
      code = put_held(l, held[i++], &w, &scratch, err);
    else
      put_no_role(&w, "in_force");
    bool shadow = !code && i < n && !strcmp(held[i]->workload, workload);
    if (shadow)
      code = put_held(l, held[i++], &w, &scratch, err);
    else
      put_no_role(&w, "shadow");
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
  if (!code) code = print_json(&text, err);
  pst_buf_done(&text);
  pst_buf_done(&scratch);
  return code;
}

static int print_list(const listing *l, const plan_event *const *held, size_t n, pst_error *err) {
  pst_buf scratch = PST_BUF_INIT;
  char stale[64], time[32];
  int code = 0;
  if (n)
    printf("%-20s  %-8s  %-12s  %-19s  %-31s  %s\n", "WORKLOAD", "ROLE", "PLAN", "SINCE (UTC)", "BY",
           "ANSWERS COME FROM");
  else
    puts("no plan is in force; 'penstock optimize WORKLOAD --promote' or 'penstock serve --plan PLAN' puts one there");
  for (size_t i = 0; i < n && !code; i++) {
    const plan_event *e = held[i];
    *stale = '\0';
    code = describe(l, e->hash, &scratch, stale, err);
    if (code) break;
    printf("%-20s  %-8s  %.12s  %s  %-31s  %s", e->workload, role_name(e->role), e->hash,
           pst_cli_show_time(e->time_ms, time), e->note ? e->note : e->what, pst_buf_text(&scratch));
    if (*stale) printf("; stale: records that %s learned from were erased", stale);
    putchar('\n');
  }
  pst_buf_done(&scratch);
  return code;
}

static int list(const pst_cli_args *a, pst_store *store, const char *workload, pst_error *err) {
  (void)workload;
  listing l = {.store = store};
  plan_events all;
  const plan_event **held = NULL;
  size_t n = 0;
  int code = read_events(store, NULL, &all, err);
  if (!code) code = pst_store_adapter_each(store, keep_adapter, &l, err);
  if (!code && !(held = pst_calloc(all.n + 1, sizeof *held))) code = no_memory(err);
  if (!code) n = find_held(&all, held);
  if (!code) code = pst_cli_flag(a, "json") ? print_list_json(&l, held, n, err) : print_list(&l, held, n, err);
  pst_free(held);
  pst_free(l.adapters);
  read_done(&all);
  return code;
}

/* ---- promote, rollback --------------------------------------------------------------------------------------------------------- */

/* before: what was in force, empty: nothing. */
static int print_change(const pst_cli_args *a, const char *workload, const char *hash, const char *before,
                        pst_error *err) {
  bool changed = strcmp(hash, before) != 0;
  if (!pst_cli_flag(a, "json")) {
    printf("%s: plan %.12s ", workload, hash);
    if (!changed)
      puts("was in force already");
    else if (*before)
      printf("is in force, in the place of %.12s", before);
    else
      printf("is in force, the first one");
    if (changed) puts("; a 'penstock serve' that runs answers by it from the next request on");
    return 0;
  }
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "workload", workload);
  pst_json_member_cstr(&w, "plan", hash);
  pst_json_member_cstr(&w, "before", *before ? before : NULL);
  pst_json_member_bool(&w, "changed", changed);
  pst_json_end_object(&w);
  int code = print_json(&text, err);
  pst_buf_done(&text);
  return code;
}

/* Empty: none. */
static int find_in_force(pst_store *store, const char *workload, char ret_hash[65], pst_error *err) {
  int code = pst_store_plan_assigned(store, pst_str_from(workload), PST_STORE_PLAN_IN_FORCE, NULL, ret_hash, err);
  if (code == PST_E_NOT_FOUND) *ret_hash = '\0';
  return code == PST_E_NOT_FOUND ? 0 : code;
}

/* A stored plan, if it may take the place of the plan `before`. A plan that names no workload may be for any. */
static int find_plan(const pst_cli_args *a, pst_store *store, const char *workload, const char *before,
                     char ret_hash[65], pst_error *err) {
  const char *digits = a->words[2];
  char *json = NULL, hash[65], place[32];
  pst_gateway_plan *plan = NULL;
  int code = pst_store_plan_get(store, pst_str_from(digits), &json, hash, err);
  if (code == PST_E_NOT_FOUND)
    code =
        pst_error_set(err, code, "plan",
                      "no plan %.64s is kept here; 'penstock plans history WORKLOAD' shows those that were in force, "
                      "'penstock serve --plan FILE' keeps one",
                      digits);
  if (!code) (void)snprintf(place, sizeof place, "plan %.12s", hash);
  if (!code) code = pst_gateway_plan_parse(pst_str_from(json), place, &plan, err);
  bool check = !code && !pst_cli_flag(a, "force") && strcmp(hash, before) != 0;
  if (check && plan->workload && strcmp(plan->workload, workload) != 0)
    code = pst_error_set(err, PST_E_DENIED, "plan",
                         "%.12s is of the workload \"%.80s\", not of \"%.80s\"; --force takes it all the same", hash,
                         plan->workload, workload);
  if (check && !code) code = pst_cli_plan_check(store, hash, json, err);
  pst_gateway_plan_unref(plan);
  pst_free(json);
  if (!code) memcpy(ret_hash, hash, sizeof hash);
  return code;
}

/* For the history: who did it. */
static pst_str note_of(const pst_cli_args *a, const char *verb, char note[40]) {
  (void)snprintf(note, 40, "penstock plans %s%s", verb, pst_cli_flag(a, "force") ? " --force" : "");
  return pst_str_from(note);
}

static int promote(const pst_cli_args *a, pst_store *store, const char *workload, pst_error *err) {
  char hash[65] = "", before[65] = "", note[40];
  int code = find_in_force(store, workload, before, err);
  if (!code) code = find_plan(a, store, workload, before, hash, err);
  if (!code && strcmp(hash, before) != 0)
    code = pst_store_plan_replace(store, pst_str_from(workload), before, pst_str_from(hash),
                                  note_of(a, "promote", note), pst_clock_unix_ms(), err);
  return code ? code : print_change(a, workload, hash, before, err);
}

static int roll_back(const pst_cli_args *a, pst_store *store, const char *workload, pst_error *err) {
  char *json = NULL, hash[65] = "", before[65] = "", note[40];
  pst_str name = pst_str_from(workload);
  int code = pst_store_plan_before(store, name, &json, hash, err);
  if (code == PST_E_NOT_FOUND)
    code = pst_error_set(err, code, "rollback",
                         "no plan was in force for \"%.80s\" before the present one; 'penstock plans' lists what is, "
                         "'penstock plans promote WORKLOAD HASH' puts any stored plan there",
                         workload);
  if (!code && !pst_cli_flag(a, "force")) code = pst_cli_plan_check(store, hash, json, err);
  if (!code) code = find_in_force(store, workload, before, err);
  if (!code)
    code = pst_store_plan_roll_back(store, name, hash, note_of(a, "rollback", note), pst_clock_unix_ms(), NULL, err);
  pst_free(json);
  return code ? code : print_change(a, workload, hash, before, err);
}

/* ---- the command --------------------------------------------------------------------------------------------------------------- */

static int run_plans(const pst_cli_args *a, pst_error *err) {
  static const char *const actions[] = {"list", "history", "promote", "rollback"};
  static const struct {
    const char *words;
    int n_words;
    int (*run)(const pst_cli_args *a, pst_store *store, const char *workload, pst_error *err);
  } verbs[PST_ARRAY_LEN(actions)] = {{"list", 1, list},
                                     {"history WORKLOAD", 2, history},
                                     {"promote WORKLOAD HASH", 3, promote},
                                     {"rollback WORKLOAD", 2, roll_back}};
  static const pst_cli_owned owned[] = {{"force", 1u << 2 | 1u << 3}};
  const int n = (int)PST_ARRAY_LEN(actions);
  int i, code = pst_cli_action(a, actions, n, owned, PST_ARRAY_LEN(owned), &i, err);
  if (code) return code;
  if (PST_MAX(a->n_words, 1) != verbs[i].n_words)
    return pst_error_set(err, PST_E_BAD_INPUT, "plans", "it is: penstock plans %s", verbs[i].words);
  pst_store *store = NULL;
  char *workload = NULL;
  if (a->n_words > 1) code = pst_cli_workload_name(a->words[1], &workload, err);
  if (!code) code = pst_cli_store_open(a, &store, err);
  if (!code) code = verbs[i].run(a, store, workload, err);
  pst_store_close(store);
  pst_free(workload);
  return code;
}

static const pst_cli_option options[] = {
    {"force", 'f', PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "promote, rollback: also a plan of another workload, or one whose adapter learned from records that were erased"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_plans = {
    "plans",
    "list|history|promote|rollback [WORKLOAD [HASH]]",
    "the plans in force: see them, put another in force, go back",
    "list                   what answers each workload, since when, and who put it there (the default)\n"
    "history WORKLOAD       which plan took which role, newest first\n"
    "promote WORKLOAD HASH  puts a stored plan in force, by 8 or more digits of its hash\n"
    "rollback WORKLOAD      puts back the plan that was in force before; again: the one before that\n"
    "WORKLOAD is a name, or a workload's folder. A 'penstock serve' that runs answers by the new plan from the next request on; one that is started with\n"
    "--plan puts that in force again.\n"
    "Example: penstock plans rollback my-desk && penstock plans history my-desk",
    0,
    3,
    options,
    PST_ARRAY_LEN(options),
    run_plans};
