/* Opening a workload folder: workload.json, items.jsonl and trace.jsonl, read and checked as a whole.
 *
 * Owns the format (docs/workload.md) and its errors: each names file, line and field. What the items' values mean to a grader is
 * grade.c's; which items are alike is cluster.c's. Everything lives in one arena and in the parsed documents, so that an open workload is
 * immutable and may be shared by threads. Unknown members are refused everywhere: a misspelt "reference" must not become a
 * workload without one. */
#include "evals/workload.h"

#include <math.h>
#include <string.h>

#define FILE_BYTES_MAX ((size_t)2 << 30)
#define ITEMS_MAX 10000000u
#define LABELS_MAX 4096u
#define ANSWER_TOKENS_MAX 32768

const char *pst_evals_part_name(pst_evals_part part) {
  static const char *const names[] = {"examples", "search", "verify", "sealed"};
  return (size_t)part < PST_ARRAY_LEN(names) ? names[part] : "";
}

/* ---- reading members, with the place of each ---- */

/* An object being read: where it stands, for messages. */
typedef struct reader {
  const pst_json *object;
  const char *file; /* "FOLDER/items.jsonl:17" */
  const char *path; /* "goal", "" for the top */
  pst_evals_workload *w;
  pst_error *err;
} reader;

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the workload"); }

static int fail(const reader *r, const char *key, const char *format, ...) PST_PRINTF(3, 4);
static int fail(const reader *r, const char *key, const char *format, ...) {
  char message[512], place[256];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  bool has_path = r->path[0] != 0;
  snprintf(place, sizeof place, "%s%s%s%s%s", r->file, has_path || key ? ": " : "", r->path,
           has_path && key && key[0] != '[' ? "." : "", key ? key : "");
  return pst_error_set(r->err, PST_E_BAD_INPUT, place, "%s", message);
}

static const char *type_name(const pst_json *v) {
  static const char *const names[] = {"missing", "null",     "true or false", "a number",
                                      "a text",  "an array", "an object"};
  return names[pst_json_typeof(v)];
}

static int fail_type(const reader *r, const char *key, const char *wanted) {
  const pst_json *v = pst_json_get(r->object, key);
  if (!v) return fail(r, key, "is missing; %s is wanted", wanted);
  return fail(r, key, "is %s; %s is wanted", type_name(v), wanted);
}

/* Refuses members that are not in the list, which ends with NULL. */
static int check_members(const reader *r, const char *const *known) {
  if (pst_json_typeof(r->object) != PST_JSON_OBJECT)
    return fail(r, NULL, "is %s; an object is wanted", type_name(r->object));
  pst_json_iter it = pst_json_iterate(r->object);
  while (pst_json_next(&it)) {
    bool found = false;
    pst_buf list = PST_BUF_INIT;
    for (size_t i = 0; known[i]; i++) {
      found = found || pst_str_is(it.key, known[i]);
      pst_buf_printf(&list, "%s%s", i ? ", " : "", known[i]);
    }
    int code = 0;
    if (!found)
      code = fail(r, NULL, "unknown field \"%.*s\"; known are: %s", (int)PST_MIN(it.key.n, (size_t)60), it.key.data,
                  pst_buf_text(&list));
    pst_buf_done(&list);
    if (code) return code;
  }
  return 0;
}

static int read_text(const reader *r, const char *key, bool needed, pst_str *ret_text) {
  const pst_json *v = pst_json_get(r->object, key);
  if (!v && !needed) return 0;
  if (pst_json_typeof(v) != PST_JSON_STRING) return fail_type(r, key, "a text");
  pst_str text = pst_json_str(v);
  if (memchr(text.data, 0, text.n)) return fail(r, key, "holds a zero byte");
  *ret_text = text;
  return 0;
}

/* The same, terminated; empty is refused where a text is needed. */
static int read_name(const reader *r, const char *key, bool needed, const char **ret_name) {
  pst_str text = {NULL, 0};
  int code = read_text(r, key, needed, &text);
  if (code || !text.data) return code;
  if (!text.n && needed) return fail(r, key, "is empty");
  char *copy = pst_arena_strndup(r->w->arena, text.data, text.n);
  if (!copy) return no_memory(r->err);
  *ret_name = copy;
  return 0;
}

static int read_bool(const reader *r, const char *key, bool *ret_value) {
  const pst_json *v = pst_json_get(r->object, key);
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_BOOL) return fail_type(r, key, "true or false");
  *ret_value = pst_json_bool(v, false);
  return 0;
}

/* A number from min to max; `open` excludes min itself. */
static int read_number(const reader *r, const char *key, double min, double max, bool open, double *ret_value) {
  const pst_json *v = pst_json_get(r->object, key);
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_NUMBER) return fail_type(r, key, "a number");
  double d = pst_json_double(v, 0);
  if (!(d >= min && d <= max) || (open && d <= min))
    return fail(r, key, "is %g; a number %s %g and at most %g is wanted", d, open ? "above" : "of at least", min, max);
  *ret_value = d;
  return 0;
}

static int read_count(const reader *r, const char *key, int64_t min, int64_t max, int64_t *ret_value) {
  const pst_json *v = pst_json_get(r->object, key);
  if (!v) return 0;
  int64_t i = pst_json_int(v, min - 1);
  if (!pst_json_is_int(v) || i < min || i > max)
    return fail(r, key, "a whole number from %lld to %lld is wanted", (long long)min, (long long)max);
  *ret_value = i;
  return 0;
}

/* US dollars as nano-dollars. */
static int read_money(const reader *r, const char *key, bool open, int64_t *ret_nusd) {
  double usd = NAN;
  int code = read_number(r, key, 0, 1e9, open, &usd);
  if (!code && !isnan(usd)) *ret_nusd = llround(usd * (double)PST_STORE_NUSD_PER_USD);
  return code;
}

static reader into(const reader *r, const char *key, const char *path) {
  return (reader){pst_json_get(r->object, key), r->file, path, r->w, r->err};
}

/* A list of distinct, non-empty texts. */
static int read_texts(const reader *r, const char *key, size_t max, const pst_str **ret_texts, size_t *ret_n) {
  const pst_json *v = pst_json_get(r->object, key);
  if (pst_json_typeof(v) != PST_JSON_ARRAY) return fail_type(r, key, "an array of texts");
  size_t n = pst_json_size(v);
  if (n > max) return fail(r, key, "%zu are more than the limit of %zu", n, max);
  pst_str *texts = pst_arena_calloc(r->w->arena, n + 1, sizeof *texts);
  if (!texts) return no_memory(r->err);
  pst_json_iter it = pst_json_iterate(v);
  for (size_t k = 0; pst_json_next(&it); k++) {
    pst_str text = pst_json_str(it.value);
    if (pst_json_typeof(it.value) != PST_JSON_STRING || !text.n || memchr(text.data, 0, text.n))
      return fail(r, key, "entry %zu is not a text, or is empty", k + 1);
    for (size_t i = 0; i < k; i++)
      if (pst_str_equal(texts[i], text))
        return fail(r, key, "\"%.*s\" stands there twice", (int)PST_MIN(text.n, (size_t)60), text.data);
    texts[k] = text;
  }
  *ret_texts = texts;
  *ret_n = n;
  return 0;
}

/* ---- workload.json ---- */

static int read_input(const reader *task) {
  const pst_json *v = pst_json_get(task->object, "input");
  if (!v || pst_str_is(pst_json_str(v), "last_user_message")) return 0;
  if (pst_json_typeof(v) != PST_JSON_OBJECT)
    return fail(task, "input", "is neither \"last_user_message\" nor {\"pattern\": \"...\"}");
  static const char *const known[] = {"pattern", NULL};
  reader r = into(task, "input", "task.input");
  int code = check_members(&r, known);
  if (!code) code = read_name(&r, "pattern", true, &task->w->info.input_pattern);
  return code;
}

static int read_task(const reader *top) {
  static const char *const known[] = {"kind", "labels", "input", NULL};
  reader r = into(top, "task", "task");
  pst_evals_info *info = &top->w->info;
  int code = check_members(&r, known);
  pst_str kind = {NULL, 0};
  if (!code) code = read_text(&r, "kind", true, &kind);
  if (code) return code;
  if (!pst_str_is(kind, "choice") && !pst_str_is(kind, "extract") && !pst_str_is(kind, "text"))
    return fail(&r, "kind", "is \"%.*s\"; one of choice, extract, text is wanted", (int)PST_MIN(kind.n, (size_t)40),
                kind.data);
  if (pst_str_is(kind, "choice")) {
    code = read_texts(&r, "labels", LABELS_MAX, &info->labels, &info->n_labels);
    if (!code && info->n_labels < 2) code = fail(&r, "labels", "a choice needs at least two");
  } else if (pst_json_get(r.object, "labels")) {
    code = fail(&r, "labels", "only a task of kind choice has labels");
  }
  return code ? code : read_input(&r);
}

static int read_prompts(const reader *top) {
  static const char *const known[] = {"name", "system", "instruction", "input_key", "answer_key", NULL};
  const pst_json *list = pst_json_get(top->object, "prompts");
  if (pst_json_typeof(list) != PST_JSON_ARRAY || !pst_json_size(list))
    return fail(top, "prompts", "an array of at least one prompt is wanted");
  size_t n = pst_json_size(list);
  if (n > 256) return fail(top, "prompts", "%zu are more than the limit of 256", n);
  pst_evals_prompt *prompts = pst_arena_calloc(top->w->arena, n, sizeof *prompts);
  if (!prompts) return no_memory(top->err);
  pst_json_iter it = pst_json_iterate(list);
  for (size_t k = 0; pst_json_next(&it); k++) {
    char path[48];
    snprintf(path, sizeof path, "prompts[%zu]", k);
    reader r = {it.value, top->file, path, top->w, top->err};
    pst_evals_prompt *p = &prompts[k];
    *p = (pst_evals_prompt){PST_STR(""), PST_STR(""), PST_STR(""), PST_STR(""), PST_STR("")};
    int code = check_members(&r, known);
    if (!code) code = read_text(&r, "name", true, &p->name);
    if (!code) code = read_text(&r, "system", false, &p->system);
    if (!code) code = read_text(&r, "instruction", false, &p->instruction);
    if (!code) code = read_text(&r, "input_key", false, &p->input_key);
    if (!code) code = read_text(&r, "answer_key", false, &p->answer_key);
    if (!code && !p->name.n) code = fail(&r, "name", "is empty");
    for (size_t i = 0; i < k && !code; i++)
      if (pst_str_equal(prompts[i].name, p->name)) code = fail(&r, "name", "an earlier prompt has the same name");
    if (code) return code;
  }
  top->w->info.prompts = prompts;
  top->w->info.n_prompts = n;
  return 0;
}

static int read_grader(const reader *top) {
  static const char *const known[][7] = {
      [PST_EVALS_EXACT] = {"type", "field"},
      [PST_EVALS_NORMALIZED] = {"type", "field"},
      [PST_EVALS_CONTAINS] = {"type", "field"},
      [PST_EVALS_REGEX] = {"type", "field", "caseless"},
      [PST_EVALS_NUMERIC] = {"type", "field", "tolerance", "relative_tolerance"},
      [PST_EVALS_JSON] = {"type", "field", "fields", "loose_text"},
      [PST_EVALS_CHOICE] = {"type", "field"},
      [PST_EVALS_SQL] = {"type", "field"},
  };
  reader r = into(top, "grader", "grader");
  if (pst_json_typeof(r.object) != PST_JSON_OBJECT) return fail_type(top, "grader", "an object");
  pst_evals_info *info = &top->w->info;
  pst_evals_grading *g = &top->w->grading;
  pst_str type = {NULL, 0};
  int code = read_text(&r, "type", true, &type), kind = 0;
  if (code) return code;
  while (kind < PST_EVALS_GRADER_COUNT && !pst_str_is(type, pst_evals_grader_name((pst_evals_grader_kind)kind))) kind++;
  if (kind == PST_EVALS_GRADER_COUNT)
    return fail(&r, "type",
                "is \"%.*s\"; one of exact, normalized, contains, regex, numeric, json, choice, sql is wanted",
                (int)PST_MIN(type.n, (size_t)40), type.data);
  info->grader = (pst_evals_grader_kind)kind;
  if (!code) code = check_members(&r, known[kind]);
  if (!code) code = read_name(&r, "field", false, &info->grader_field);
  if (!code) code = read_number(&r, "tolerance", 0, 1e300, false, &g->tolerance);
  if (!code) code = read_number(&r, "relative_tolerance", 0, 1, false, &g->relative_tolerance);
  if (!code) code = read_bool(&r, "caseless", &g->caseless);
  if (!code) code = read_bool(&r, "loose_text", &g->loose_text);
  if (!code && pst_json_get(r.object, "fields")) code = read_texts(&r, "fields", 256, &g->fields, &g->n_fields);
  if (!code && kind == PST_EVALS_CHOICE && !info->n_labels)
    code = fail(&r, "type", "a choice grader needs a task of kind choice, with labels");
  return code;
}

static int read_goal(const reader *top) {
  static const char *const known[] = {"quality_floor",  "max_quality_loss",          "margin", "objective",
                                      "latency_p95_ms", "cost_ceiling_usd_per_1000", NULL};
  reader r = into(top, "goal", "goal");
  if (!r.object) return fail_type(top, "goal", "an object");
  pst_evals_goal *goal = &top->w->info.goal;
  *goal = (pst_evals_goal){0, 0.03, true, "cost", 0, 0, 0};
  int code = check_members(&r, known);
  if (!code) code = read_number(&r, "quality_floor", 0, 1, false, &goal->quality_floor);
  if (!code) code = read_number(&r, "max_quality_loss", 0, 1, true, &goal->max_quality_loss);
  if (!code) code = read_number(&r, "margin", 0, 0.5, true, &goal->margin);
  if (!code) code = read_number(&r, "latency_p95_ms", 0, 3.6e6, true, &goal->latency_p95_ms);
  if (!code) code = read_money(&r, "cost_ceiling_usd_per_1000", true, &goal->cost_ceiling_nusd);
  if (!code) code = read_name(&r, "objective", false, &goal->objective);
  if (code) return code;
  if (strcmp(goal->objective, "cost") && strcmp(goal->objective, "latency") && strcmp(goal->objective, "quality"))
    return fail(&r, "objective", "is \"%.40s\"; one of cost, latency, quality is wanted", goal->objective);
  goal->minimize_cost = !strcmp(goal->objective, "cost");
  return 0;
}

static int read_settings(const reader *top) {
  static const char *const known[] = {"machine_usd_per_hour", "monthly_requests", "max_tokens", NULL};
  static const char *const known_privacy[] = {"remote", NULL};
  pst_evals_info *info = &top->w->info;
  int code = 0;
  if (pst_json_get(top->object, "settings")) {
    reader r = into(top, "settings", "settings");
    int64_t max_tokens = 0;
    code = check_members(&r, known);
    if (!code) code = read_money(&r, "machine_usd_per_hour", false, &info->machine_nusd_per_hour);
    if (!code) code = read_count(&r, "monthly_requests", 1, INT64_C(1000000000000), &info->monthly_requests);
    if (!code) code = read_count(&r, "max_tokens", 1, ANSWER_TOKENS_MAX, &max_tokens);
    info->max_tokens = (int)max_tokens;
  }
  if (!code && pst_json_get(top->object, "privacy")) {
    reader r = into(top, "privacy", "privacy");
    code = check_members(&r, known_privacy);
    if (!code) code = read_bool(&r, "remote", &info->allow_remote);
  }
  return code;
}

static int read_workload(const reader *top) {
  static const char *const known[] = {"schema", "name", "description", "task",    "prompts",
                                      "grader", "goal", "settings",    "privacy", NULL};
  pst_evals_info *info = &top->w->info;
  info->description = "";
  int code = check_members(top, known);
  if (code) return code;
  if (pst_json_int(pst_json_get(top->object, "schema"), -1) != 1)
    return fail(top, "schema", "1 is wanted: the version of the format");
  code = read_name(top, "name", true, &info->name);
  if (!code && strchr(info->name, '/')) code = fail(top, "name", "holds a '/', which parts a provider from its model");
  if (!code) code = read_name(top, "description", false, &info->description);
  if (!code && !pst_json_get(top->object, "task")) code = fail_type(top, "task", "an object");
  if (!code) code = read_task(top);
  if (!code) code = read_prompts(top);
  if (!code) code = read_grader(top);
  if (!code) code = read_goal(top);
  if (!code) code = read_settings(top);
  return code;
}

/* ---- items.jsonl ---- */

typedef struct items {
  pst_evals_item *list;
  uint32_t *lines;
  pst_str *clusters; /* as named in the file; empty: not */
  const pst_json **values;
  size_t n, capacity, lines_capacity, clusters_capacity, values_capacity;
  uint32_t *slots; /* item index + 1 by hash of the id */
  size_t n_slots;
} items;

static void items_done(items *it) {
  pst_free(it->list);
  pst_free(it->lines);
  pst_free(it->clusters);
  pst_free(it->values);
  pst_free(it->slots);
}

/* The slot of an id: free, or its item's. */
static uint32_t *slot_of(const items *all, pst_str id) {
  size_t at = pst_hash64(id.data, id.n, 0) & (all->n_slots - 1);
  while (all->slots[at] && !pst_str_equal(all->list[all->slots[at] - 1].id, id)) at = (at + 1) & (all->n_slots - 1);
  return &all->slots[at];
}

static int items_reserve(items *all) {
  size_t need = all->n + 1;
  int code = pst_array_reserve((void **)&all->list, &all->capacity, need, sizeof *all->list);
  if (!code) code = pst_array_reserve((void **)&all->lines, &all->lines_capacity, need, sizeof *all->lines);
  if (!code) code = pst_array_reserve((void **)&all->clusters, &all->clusters_capacity, need, sizeof *all->clusters);
  if (!code) code = pst_array_reserve((void **)&all->values, &all->values_capacity, need, sizeof *all->values);
  if (code || need * 2 <= all->n_slots) return code;
  size_t n_slots = PST_MAX(all->n_slots * 2, (size_t)1024);
  uint32_t *slots = pst_calloc(n_slots, sizeof *slots);
  if (!slots) return PST_E_NOMEM;
  pst_free(all->slots);
  all->slots = slots;
  all->n_slots = n_slots;
  for (size_t i = 0; i < all->n; i++) *slot_of(all, all->list[i].id) = (uint32_t)i + 1;
  return 0;
}

static int read_messages(const reader *line, pst_evals_item *item) {
  static const char *const known[] = {"role", "content", "name", NULL};
  const pst_json *list = pst_json_get(line->object, "messages");
  if (pst_json_typeof(list) != PST_JSON_ARRAY || !pst_json_size(list))
    return fail_type(line, "messages", "an array of at least one message");
  size_t n = pst_json_size(list);
  pst_chat_message *messages = pst_arena_calloc(line->w->arena, n, sizeof *messages);
  if (!messages) return no_memory(line->err);
  pst_json_iter it = pst_json_iterate(list);
  for (size_t k = 0; pst_json_next(&it); k++) {
    char path[48];
    snprintf(path, sizeof path, "messages[%zu]", k);
    reader r = {it.value, line->file, path, line->w, line->err};
    pst_chat_message *m = &messages[k];
    pst_str role = {NULL, 0};
    int code = check_members(&r, known);
    if (!code) code = read_text(&r, "role", true, &role);
    if (!code) code = read_text(&r, "content", true, &m->content);
    if (!code) code = read_text(&r, "name", false, &m->name);
    if (code) return code;
    m->role = pst_chat_role_from(role);
    m->has_content = true;
    if (m->role != PST_CHAT_SYSTEM && m->role != PST_CHAT_DEVELOPER && m->role != PST_CHAT_USER &&
        m->role != PST_CHAT_ASSISTANT)
      return fail(&r, "role", "is \"%.*s\"; one of system, developer, user, assistant is wanted",
                  (int)PST_MIN(role.n, (size_t)40), role.data);
    if (m->role == PST_CHAT_USER) item->input = m->content;
  }
  item->chat = (pst_chat){.messages = messages, .n_messages = n, .add_generation_prompt = true};
  if (!item->input.data) return fail(line, "messages", "no message is of the user");
  return 0;
}

static int find_input(const reader *line, const pst_regex *pattern, pst_evals_item *item) {
  if (pattern) {
    pst_span spans[2];
    int found = pst_regex_find(pattern, item->input, 0, spans, 2);
    if (found < 0) return fail(line, "messages", "the input pattern of the task: %s", pst_error_text(found));
    if (!found || spans[1].start == SIZE_MAX)
      return fail(line, "messages",
                  "the last user message does not match the task's input pattern, or not its group 1");
    item->input = (pst_str){item->input.data + spans[1].start, spans[1].end - spans[1].start};
  }
  if (!pst_str_trim(item->input).n) return fail(line, "messages", "the input is empty");
  return 0;
}

/* The text of a value that is expected: a string itself, else JSON. */
static int text_of(const reader *line, const pst_json *value, pst_str *ret_text) {
  if (pst_json_typeof(value) == PST_JSON_STRING) {
    *ret_text = pst_json_str(value);
    return 0;
  }
  pst_buf text = PST_BUF_INIT;
  pst_json_writer writer = pst_json_writer_on(&text, false);
  pst_json_put_value(&writer, value);
  char *copy = pst_buf_status(&text) ? NULL : pst_arena_strndup(line->w->arena, pst_buf_text(&text), text.n);
  *ret_text = (pst_str){copy, text.n};
  pst_buf_done(&text);
  return copy ? 0 : no_memory(line->err);
}

/* A path into the reference may be dotted: "fields.amount". */
static const pst_json *graded_value(const pst_json *reference, const char *field) {
  if (!field) return reference;
  const pst_json *whole = pst_json_get(reference, field);
  pst_str rest = pst_str_from(field);
  for (size_t dot; !whole && rest.n; rest = (pst_str){rest.data + dot + 1, rest.n - dot - 1}) {
    dot = pst_str_find(rest, PST_STR("."), 0);
    reference = pst_json_get_str(reference, (pst_str){rest.data, PST_MIN(dot, rest.n)});
    if (dot == SIZE_MAX) return reference;
  }
  return whole;
}

static int read_reference(const reader *line, pst_evals_item *item, const pst_json **ret_value) {
  const pst_evals_info *info = &line->w->info;
  item->reference = pst_json_get(line->object, "reference");
  if (!item->reference) return fail(line, "reference", "is missing: what the right answer is");
  const pst_json *value = graded_value(item->reference, info->grader_field);
  if (!value) return fail(line, "reference", "has no \"%s\", which the grader compares", info->grader_field);
  const pst_json *first = value;
  bool lists = info->grader != PST_EVALS_JSON && info->grader != PST_EVALS_CHOICE;
  if (lists && pst_json_typeof(value) == PST_JSON_ARRAY) {
    first = pst_json_at(value, 0);
    if (!first) return fail(line, "reference", "is an empty list of answers");
  }
  *ret_value = value;
  int code = text_of(line, first, &item->expected);
  if (code || !info->n_labels || info->grader == PST_EVALS_JSON) return code;
  for (size_t i = 0; i < info->n_labels; i++)
    if (pst_str_equal(info->labels[i], item->expected)) return 0;
  return fail(line, "reference", "\"%.*s\" is none of the task's labels", (int)PST_MIN(item->expected.n, (size_t)60),
              item->expected.data);
}

static int read_part(const reader *line, pst_evals_part *ret_part) {
  pst_str name = {NULL, 0};
  if (!pst_json_get(line->object, "part"))
    return fail(line, "part", "is missing; one of examples, search, verify, sealed is wanted");
  int code = read_text(line, "part", true, &name);
  if (code) return code;
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++) {
    if (!pst_str_is(name, pst_evals_part_name((pst_evals_part)i))) continue;
    *ret_part = (pst_evals_part)i;
    return 0;
  }
  return fail(line, "part", "is \"%.*s\"; one of examples, search, verify, sealed is wanted",
              (int)PST_MIN(name.n, (size_t)40), name.data);
}

static int read_item(const reader *line, items *all, uint32_t number, const pst_regex *pattern) {
  static const char *const known[] = {"id", "messages", "reference", "part", "cluster", NULL};
  if (all->n >= ITEMS_MAX) return fail(line, NULL, "more than %u items", ITEMS_MAX);
  if (items_reserve(all)) return no_memory(line->err);
  pst_evals_item item = {0};
  pst_str cluster = {NULL, 0};
  const pst_json *value = NULL;
  int code = check_members(line, known);
  if (!code) code = read_text(line, "id", true, &item.id);
  if (!code && (!item.id.n || item.id.n > 256)) code = fail(line, "id", "1 to 256 bytes are wanted");
  if (code) return code;
  uint32_t *slot = slot_of(all, item.id);
  if (*slot)
    return fail(line, "id", "\"%.*s\" is the id of line %u too", (int)PST_MIN(item.id.n, (size_t)80), item.id.data,
                all->lines[*slot - 1]);
  code = read_messages(line, &item);
  if (!code) code = find_input(line, pattern, &item);
  if (!code) code = read_reference(line, &item, &value);
  if (!code) code = read_part(line, &item.part);
  if (!code) code = read_text(line, "cluster", false, &cluster);
  if (code) return code;
  all->list[all->n] = item;
  all->lines[all->n] = number;
  all->clusters[all->n] = cluster;
  all->values[all->n] = value;
  *slot = (uint32_t)++all->n;
  return 0;
}

/* ---- lines ---- */

/* Parses one line; the place of an error becomes "FILE:LINE". */
static int parse_line(pst_evals_workload *w, pst_str text, const char *place, const pst_json **ret_root,
                      pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_array_reserve((void **)&w->docs, &w->docs_capacity, w->n_docs + 1, sizeof(pst_json_doc *));
  if (code) return no_memory(err);
  code = pst_json_parse(text.data, text.n, "", &doc, err);
  if (code) {
    if (err) {
      const char *column = strrchr(err->place, ':');
      char whole[256];
      snprintf(whole, sizeof whole, "%s%s", place, column ? column : "");
      memcpy(err->place, whole, sizeof whole);
    }
    return code;
  }
  w->docs[w->n_docs++] = doc;
  *ret_root = pst_json_root(doc);
  return 0;
}

typedef int (*line_fn)(const reader *line, uint32_t number, void *user);

/* Calls fn with each line that is not blank. */
static int each_line(pst_evals_workload *w, const char *path, pst_str text, line_fn fn, void *user, pst_error *err) {
  uint32_t number = 0;
  int code = 0;
  if (pst_str_starts(text, PST_STR("\xef\xbb\xbf"))) text = (pst_str){text.data + 3, text.n - 3};
  while (text.n && !code) {
    size_t end = PST_MIN(pst_str_find(text, PST_STR("\n"), 0), text.n);
    pst_str line = pst_str_trim((pst_str){text.data, end});
    size_t used = PST_MIN(end + 1, text.n);
    text = (pst_str){text.data + used, text.n - used};
    number++;
    if (!line.n) continue;
    char place[224];
    snprintf(place, sizeof place, "%s:%u", path, number);
    const pst_json *root = NULL;
    code = parse_line(w, line, place, &root, err);
    if (code) break;
    reader r = {root, place, "", w, err};
    code = fn(&r, number, user);
  }
  return code;
}

typedef struct item_lines {
  items *all;
  pst_regex *pattern;
} item_lines;

static int on_item_line(const reader *line, uint32_t number, void *user) {
  item_lines *l = user;
  return read_item(line, l->all, number, l->pattern);
}

static int read_items(pst_evals_workload *w, const char *path, pst_str text, items *all, pst_error *err) {
  item_lines l = {all, NULL};
  int code = 0;
  if (w->info.input_pattern) code = pst_regex_create(pst_str_from(w->info.input_pattern), 0, &l.pattern, err);
  if (code) return pst_error_prefix(err, "task.input.pattern of workload.json");
  code = each_line(w, path, text, on_item_line, &l, err);
  pst_regex_free(l.pattern);
  if (!code && !all->n) code = pst_error_set(err, PST_E_BAD_INPUT, path, "there are no items");
  return code;
}

/* ---- trace.jsonl ---- */

typedef struct trace_lines {
  const items *all;
  pst_evals_arrival *list;
  size_t n, capacity;
} trace_lines;

static int on_trace_line(const reader *line, uint32_t number, void *user) {
  static const char *const known[] = {"t_ms", "item", NULL};
  trace_lines *t = user;
  double t_ms = -1;
  pst_str id = {NULL, 0};
  (void)number;
  int code = check_members(line, known);
  if (!code && !pst_json_get(line->object, "t_ms")) code = fail_type(line, "t_ms", "a number");
  if (!code) code = read_number(line, "t_ms", 0, 1e13, false, &t_ms);
  if (!code) code = read_text(line, "item", true, &id);
  if (code) return code;
  uint32_t item = *slot_of(t->all, id);
  if (!item) return fail(line, "item", "no item has the id \"%.*s\"", (int)PST_MIN(id.n, (size_t)80), id.data);
  int64_t at = llround(t_ms * 1000);
  if (t->n && at < t->list[t->n - 1].arrival_us) return fail(line, "t_ms", "is earlier than that of the line before");
  if (pst_array_reserve((void **)&t->list, &t->capacity, t->n + 1, sizeof *t->list)) return no_memory(line->err);
  t->list[t->n++] = (pst_evals_arrival){at, item - 1};
  return 0;
}

/* ---- the whole ---- */

/* All of a near-duplicate cluster must lie in one part, else the held-back parts are not held back. */
static int check_parts(const pst_evals_workload *w, const char *path, pst_error *err) {
  const pst_evals_info *info = &w->info;
  uint32_t *first = pst_calloc(info->n_items + 1, sizeof *first);
  if (!first) return no_memory(err);
  int code = 0;
  for (size_t i = 0; i < info->n_items && !code; i++) {
    const pst_evals_item *item = &info->items[i];
    uint32_t *at = &first[item->cluster];
    if (!*at) *at = (uint32_t)i + 1;
    const pst_evals_item *other = &info->items[*at - 1];
    if (other->part == item->part) continue;
    char place[256];
    snprintf(place, sizeof place, "%.200s:%u", path, w->lines[i]);
    code = pst_error_set(
        err, PST_E_BAD_INPUT, place,
        "\"%.*s\" (%s) is nearly the same text as \"%.*s\" of line %u (%s): put both in one part, or tell them "
        "apart with \"cluster\": \"NAME\" on each",
        (int)PST_MIN(item->id.n, (size_t)60), item->id.data, pst_evals_part_name(item->part),
        (int)PST_MIN(other->id.n, (size_t)60), other->id.data, w->lines[*at - 1], pst_evals_part_name(other->part));
  }
  pst_free(first);
  return code;
}

static int find_clusters(pst_evals_workload *w, const items *all, pst_error *err) {
  pst_str *texts = pst_calloc(all->n + 1, sizeof *texts);
  uint32_t *clusters = pst_calloc(all->n + 1, sizeof *clusters);
  int code = texts && clusters ? 0 : no_memory(err);
  for (size_t i = 0; i < all->n && !code; i++) texts[i] = all->list[i].input;
  if (!code) code = pst_evals_cluster(texts, all->clusters, all->n, PST_EVALS_NEAR_DUPLICATE, clusters, err);
  for (size_t i = 0; i < all->n && !code; i++) all->list[i].cluster = clusters[i];
  pst_free(texts);
  pst_free(clusters);
  (void)w;
  return code;
}

/* The longest answer in tokens, from above: half a token for an ASCII byte, one for any other, and some to end with. */
static int longest_answer(const items *all) {
  size_t most = 0;
  for (size_t i = 0; i < all->n; i++) {
    size_t halves = 0;
    for (size_t k = 0; k < all->list[i].expected.n; k++)
      halves += (unsigned char)all->list[i].expected.data[k] < 128 ? 1 : 2;
    most = PST_MAX(most, halves / 2 + 8);
  }
  return (int)PST_MIN(most, (size_t)ANSWER_TOKENS_MAX);
}

/* Arrays that grew move into the arena. */
static int keep_items(pst_evals_workload *w, const items *all, const trace_lines *trace, pst_error *err) {
  pst_evals_item *list = pst_arena_calloc(w->arena, all->n + 1, sizeof *list);
  uint32_t *lines = pst_arena_calloc(w->arena, all->n + 1, sizeof *lines);
  const pst_json **values = pst_arena_calloc(w->arena, all->n + 1, sizeof *values);
  pst_evals_arrival *arrivals = pst_arena_calloc(w->arena, trace->n + 1, sizeof *arrivals);
  if (!list || !lines || !values || !arrivals) return no_memory(err);
  memcpy(list, all->list, all->n * sizeof *list);
  memcpy(lines, all->lines, all->n * sizeof *lines);
  memcpy(values, all->values, all->n * sizeof *values);
  if (trace->n) memcpy(arrivals, trace->list, trace->n * sizeof *arrivals);
  w->info.items = list;
  w->info.n_items = all->n;
  w->info.trace = arrivals;
  w->info.n_trace = trace->n;
  w->lines = lines;
  w->values = values;
  if (!w->info.max_tokens) w->info.max_tokens = longest_answer(all);
  return 0;
}

/* A file of the folder; absent is fine where it is optional (data NULL). Into the fingerprint with its length before it. */
static int read_file(const char *folder, const char *name, bool optional, char **ret_path, char **ret_text,
                     size_t *ret_n, pst_sha256 *fingerprint, pst_error *err) {
  char *path = pst_path_join(folder, name);
  if (!path) return no_memory(err);
  *ret_path = path;
  uint64_t length = UINT64_MAX;
  int code = 0;
  if (!optional || pst_file_exists(path)) {
    code = pst_file_read(path, FILE_BYTES_MAX, ret_text, ret_n, err);
    if (!code) length = *ret_n;
  }
  uint8_t bytes[8];
  for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(length >> (8 * i));
  pst_sha256_update(fingerprint, bytes, sizeof bytes);
  if (*ret_text) pst_sha256_update(fingerprint, *ret_text, *ret_n);
  return code;
}

/* So that a part is known again in a folder with other examples, or another text around it. */
static int hash_parts(pst_evals_workload *w, pst_error *err) {
  pst_sha256 sha[PST_EVALS_PART_COUNT];
  pst_buf reference = PST_BUF_INIT;
  uint8_t digest[32];
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++) pst_sha256_init(&sha[i]);
  for (size_t i = 0; i < w->info.n_items && !pst_buf_status(&reference); i++) {
    const pst_evals_item *item = &w->info.items[i];
    pst_buf_clear(&reference);
    pst_json_writer out = pst_json_writer_on(&reference, false);
    pst_json_put_value(&out, item->reference);
    const pst_str texts[] = {item->id, item->input, pst_buf_str(&reference)}; /* none holds a zero byte */
    for (size_t k = 0; k < PST_ARRAY_LEN(texts); k++) {
      pst_sha256_update(&sha[item->part], texts[k].data, texts[k].n);
      pst_sha256_update(&sha[item->part], "", 1);
    }
  }
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++) {
    pst_sha256_done(&sha[i], digest);
    pst_hex(digest, sizeof digest, w->part_hash[i]);
  }
  int code = pst_buf_status(&reference) ? no_memory(err) : 0;
  pst_buf_done(&reference);
  return code;
}

typedef struct folder_files {
  char *paths[3], *texts[3];
  size_t sizes[3];
} folder_files;

static int read_folder(pst_evals_workload *w, const char *folder, folder_files *f, pst_error *err) {
  static const char *const names[] = {"workload.json", "items.jsonl", "trace.jsonl"};
  if (!pst_dir_exists(folder))
    return pst_error_set(err, pst_file_exists(folder) ? PST_E_BAD_INPUT : PST_E_NOT_FOUND, folder,
                         "a workload is a folder with workload.json and items.jsonl; this is %s",
                         pst_file_exists(folder) ? "a file" : "not there");
  pst_sha256 sha;
  pst_sha256_init(&sha);
  for (int i = 0; i < 3; i++) {
    int code = read_file(folder, names[i], i == 2, &f->paths[i], &f->texts[i], &f->sizes[i], &sha, err);
    if (code) return code;
  }
  uint8_t digest[32];
  pst_sha256_done(&sha, digest);
  pst_hex(digest, sizeof digest, w->info.fingerprint);
  pst_sha256_hex(f->texts[1], f->sizes[1], w->items_hash);
  w->info.folder = pst_arena_strndup(w->arena, folder, strlen(folder));
  return w->info.folder ? 0 : no_memory(err);
}

static int parse_folder(pst_evals_workload *w, const folder_files *f, pst_error *err) {
  items all = {0};
  trace_lines trace = {&all, NULL, 0, 0};
  pst_json_doc *doc = NULL;
  int code = pst_array_reserve((void **)&w->docs, &w->docs_capacity, 1, sizeof(pst_json_doc *));
  if (code) return no_memory(err);
  code = pst_json_parse(f->texts[0], f->sizes[0], f->paths[0], &doc, err);
  if (code) return code;
  w->docs[w->n_docs++] = doc;
  reader top = {pst_json_root(doc), f->paths[0], "", w, err};
  code = read_workload(&top);
  if (!code) code = read_items(w, f->paths[1], (pst_str){f->texts[1], f->sizes[1]}, &all, err);
  if (!code && f->texts[2])
    code = each_line(w, f->paths[2], (pst_str){f->texts[2], f->sizes[2]}, on_trace_line, &trace, err);
  if (!code) code = find_clusters(w, &all, err);
  if (!code) code = keep_items(w, &all, &trace, err);
  if (!code) code = hash_parts(w, err);
  if (!code) code = check_parts(w, f->paths[1], err);
  if (!code) code = pst_evals_grading_prepare(w, err);
  if (!code) code = pst_evals_find_copied(w, err);
  items_done(&all);
  pst_free(trace.list);
  return code;
}

int pst_evals_workload_open(const char *folder, pst_evals_workload **ret_workload, pst_error *err) {
  folder_files f = {{NULL}, {NULL}, {0}};
  pst_evals_workload *w = pst_calloc(1, sizeof *w);
  if (!w || !(w->arena = pst_arena_create())) {
    pst_free(w);
    return no_memory(err);
  }
  int code = read_folder(w, folder, &f, err);
  if (!code) code = parse_folder(w, &f, err);
  for (int i = 0; i < 3; i++) {
    pst_free(f.paths[i]);
    pst_free(f.texts[i]);
  }
  if (code)
    pst_evals_workload_free(w);
  else
    *ret_workload = w;
  return code;
}

void pst_evals_workload_free(pst_evals_workload *w) {
  if (!w) return;
  for (size_t i = 0; w->patterns && i < w->info.n_items; i++) pst_regex_free(w->patterns[i]);
  for (size_t i = 0; i < w->n_docs; i++) pst_json_free(w->docs[i]);
  pst_free(w->docs);
  pst_arena_free(w->arena);
  pst_free(w);
}

const pst_evals_info *pst_evals_workload_info(const pst_evals_workload *w) { return &w->info; }
