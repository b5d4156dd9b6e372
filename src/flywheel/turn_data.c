/* From a workload's records to a folder with more examples. What is near to an item that judges plans never becomes an example: curation knows the items that any
 * workload has guarded, and here what would share a cluster with this workload's own is left out as well, since such a folder is refused. */
#include <string.h>

#include "flywheel/tuning.h"
#include "flywheel/turn.h"

typedef struct line {
  pst_str id, messages, input, answer; /* messages: JSON text, without the answer */
} line;

typedef struct gathering {
  const pst_flywheel_turn_state *t;
  pst_arena *arena;
  line *lines;
  size_t n, capacity;
  size_t n_near;      /* left out for an item they are near to */
  size_t n_textless;  /* left out: a workload's items cannot say them */
  pst_regex *pattern; /* the workload's for inputs; NULL: none */
  pst_buf scratch;
} gathering;

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the examples"); }

static pst_str keep(gathering *g, pst_str s) {
  const char *copy = pst_arena_strndup(g->arena, s.data ? s.data : "", s.n);
  return (pst_str){copy, copy ? s.n : 0};
}

static bool is_plain(pst_str text) { return !text.n || !memchr(text.data, 0, text.n); }

/* A message as an item has it: a role of a conversation, and text. False: there is more to it, a call of a tool or a picture. */
static bool put_message(pst_json_writer *w, const pst_json *m, pst_buf *text) {
  static const char *const roles[] = {"system", "developer", "user", "assistant"};
  pst_str role = pst_json_str(pst_json_get(m, "role")), name = pst_json_str(pst_json_get(m, "name"));
  bool known = false;
  for (size_t i = 0; i < PST_ARRAY_LEN(roles); i++) known = known || pst_str_is(role, roles[i]);
  pst_buf_clear(text);
  if (!known || pst_json_size(pst_json_get(m, "tool_calls")) || !pst_data_message_text(m, text)) return false;
  if (pst_buf_status(text) || !is_plain(pst_buf_str(text)) || !is_plain(name)) return false;
  pst_json_begin_object(w);
  pst_json_member_str(w, "role", role);
  pst_json_member_str(w, "content", (pst_str){pst_buf_text(text), text->n});
  if (name.n) pst_json_member_str(w, "name", name);
  pst_json_end_object(w);
  return true;
}

/* The conversation without its answer, appended; false: an item cannot say it. */
static bool put_conversation(const pst_json *messages, pst_buf *out, pst_buf *text) {
  size_t n = pst_json_size(messages);
  bool whole = true;
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_array(&w);
  for (size_t i = 0; i + 1 < n && whole; i++) whole = put_message(&w, pst_json_at(messages, i), text);
  pst_json_end_array(&w);
  return whole;
}

static const char id_prefix[] = "record-";

/* The same for the same conversation and answer: where nobody preferred one of several answers, a conversation stands there with each. */
static void name_line(pst_str conversation, pst_str answer, char ret_id[sizeof id_prefix + 16]) {
  uint8_t sum[32];
  pst_sha256 s;
  pst_sha256_init(&s);
  pst_sha256_update(&s, conversation.data, conversation.n);
  pst_sha256_update(&s, answer.data, answer.n);
  pst_sha256_done(&s, sum);
  memcpy(ret_id, id_prefix, sizeof id_prefix - 1);
  pst_hex(sum, 8, ret_id + sizeof id_prefix - 1);
}

static int gather(void *user, const pst_data_line *source) {
  gathering *g = user;
  const pst_json *last = pst_json_at(source->messages, pst_json_size(source->messages) - 1);
  pst_str input, answer = pst_json_str(pst_json_get(last, "content"));
  if (pst_array_reserve((void **)&g->lines, &g->capacity, g->n + 1, sizeof *g->lines)) return PST_E_NOMEM;
  pst_buf text = PST_BUF_INIT;
  char id[sizeof id_prefix + 16];
  bool usable = answer.n && is_plain(answer) && put_conversation(source->messages, &text, &g->scratch) &&
                pst_flywheel_input(g->pattern, source->messages, &g->scratch, &input);
  int code = pst_buf_status(&text) || pst_buf_status(&g->scratch) ? PST_E_NOMEM : 0;
  g->n_textless += !usable;
  if (!code && usable) {
    name_line(pst_buf_str(&text), answer, id);
    line l = {keep(g, pst_str_from(id)), keep(g, pst_buf_str(&text)), keep(g, input), keep(g, answer)};
    if (l.id.data && l.messages.data && l.input.data && l.answer.data)
      g->lines[g->n++] = l;
    else
      code = PST_E_NOMEM;
  }
  pst_buf_done(&text);
  return code;
}

/* Drops what shares a cluster with an item that judges. */
static int drop_near(gathering *g, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(g->t->workload);
  size_t n = info->n_items + g->n, kept = 0;
  pst_str *texts = pst_arena_calloc(g->arena, n + 1, sizeof *texts);
  uint32_t *cluster = pst_arena_calloc(g->arena, n + 1, sizeof *cluster);
  uint8_t *judged = pst_arena_calloc(g->arena, n + 1, 1); /* by cluster: an item of another part is in it */
  if (!texts || !cluster || !judged) return no_memory(err);
  for (size_t i = 0; i < info->n_items; i++) texts[i] = info->items[i].input;
  for (size_t i = 0; i < g->n; i++) texts[info->n_items + i] = g->lines[i].input;
  int code = pst_evals_cluster(texts, NULL, n, PST_EVALS_NEAR_DUPLICATE, cluster, err);
  if (code) return code;
  for (size_t i = 0; i < info->n_items; i++)
    if (info->items[i].part != PST_EVALS_EXAMPLES) judged[cluster[i]] = 1;
  for (size_t i = 0; i < g->n; i++) {
    if (judged[cluster[info->n_items + i]])
      g->n_near++;
    else
      g->lines[kept++] = g->lines[i];
  }
  g->n = kept;
  return 0;
}

/* ---- the folder ---- */

/* The answer as the workload's references have it: under the field that is graded, as JSON where that is graded, else as text. */
static void put_reference(pst_json_writer *w, const pst_evals_info *info, pst_str answer) {
  pst_json_doc *doc = NULL;
  bool json = info->grader == PST_EVALS_JSON && !pst_json_parse(answer.data, answer.n, "answer", &doc, NULL);
  if (info->grader_field) {
    pst_json_begin_object(w);
    pst_json_key(w, info->grader_field);
  }
  if (json)
    pst_json_put_value(w, pst_json_root(doc));
  else
    pst_json_put_str(w, answer);
  if (info->grader_field) pst_json_end_object(w);
  pst_json_free(doc);
}

static void put_item(pst_buf *out, const pst_evals_info *info, const line *l) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "id", l->id);
  pst_json_key(&w, "messages");
  pst_json_put_raw(&w, l->messages);
  pst_json_key(&w, "reference");
  put_reference(&w, info, l->answer);
  pst_json_member_cstr(&w, "part", pst_evals_part_name(PST_EVALS_EXAMPLES));
  pst_json_end_object(&w);
  pst_buf_putc(out, '\n');
}

/* Copies one file of the folder; one that is not there is none. more: what comes behind it. */
static int copy_file(const char *from, const char *to, const char *name, const pst_buf *more, pst_error *err) {
  char *source = pst_path_join(from, name), *target = pst_path_join(to, name), *data = NULL;
  size_t n = 0;
  pst_buf text = PST_BUF_INIT;
  int code = source && target ? 0 : no_memory(err);
  if (!code && pst_file_exists(source)) {
    code = pst_file_read(source, SIZE_MAX / 2, &data, &n, err);
    pst_buf_append(&text, data, n);
    if (n && data[n - 1] != '\n') pst_buf_putc(&text, '\n');
    if (more) pst_buf_append(&text, more->data, more->n);
    if (!code && pst_buf_status(&text)) code = no_memory(err);
    if (!code) code = pst_file_write_atomic(target, text.data, text.n, err);
  }
  pst_buf_done(&text);
  pst_free(data);
  pst_free(source);
  pst_free(target);
  return code;
}

static int write_folder(const gathering *g, const char *folder, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(g->t->workload);
  pst_buf items = PST_BUF_INIT;
  for (size_t i = 0; i < g->n; i++) put_item(&items, info, &g->lines[i]);
  int code = pst_dir_make(folder, err);
  pst_dir_sweep(folder);
  if (!code) code = copy_file(info->folder, folder, "workload.json", NULL, err);
  if (!code) code = copy_file(info->folder, folder, "trace.jsonl", NULL, err);
  if (!code) code = copy_file(info->folder, folder, "items.jsonl", &items, err); /* last: with it the folder is whole */
  pst_buf_done(&items);
  return code;
}

/* ---- the step ---- */

static int make_folder(gathering *g, const char *set, char **ret_folder, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(g->t->workload);
  char name[64];
  (void)snprintf(name, sizeof name, "turns/%.16s-%.16s", info->fingerprint, set);
  char *folder = pst_path_join(pst_store_home(g->t->store), name);
  int code = folder ? 0 : no_memory(err);
  if (!code && info->input_pattern) code = pst_regex_create(pst_str_from(info->input_pattern), 0, &g->pattern, err);
  if (!code) code = pst_data_set_each_line(g->t->store, pst_str_from(set), gather, g, err);
  if (code == PST_E_NOMEM) code = no_memory(err);
  if (!code) code = drop_near(g, err);
  if (!code && g->n) /* before there is a folder, so that whatever happens a deletion finds it */
    code = pst_store_data_set_used(g->t->store, pst_str_from(set), PST_STR(PST_STORE_PRODUCT_FOLDER),
                                   pst_str_from(name), pst_clock_unix_ms(), err);
  if (!code && g->n) code = write_folder(g, folder, err);
  if (code)
    pst_free(folder);
  else
    *ret_folder = folder;
  return code;
}

int pst_flywheel_turn_data(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(t->workload);
  pst_data_curate_options o = {
      .workload = pst_str_from(info->name), .held = 0, .seed = t->options->seed, .form = t->workload};
  pst_data_curated curated = {.n_records = 0};
  pst_buf report = PST_BUF_INIT;
  gathering g = {.t = t, .arena = pst_arena_create()};
  char *folder = NULL;
  int code = g.arena ? pst_data_curate(t->store, &o, &curated, &report, err) : no_memory(err);
  bool none = code == PST_E_NO_DATA;
  if (!code && curated.hash[0]) code = make_folder(&g, curated.hash, &folder, err);
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_double(&w, "records", (double)curated.n_records);
  pst_json_member_double(&w, "kept", (double)curated.n_by_reason[PST_DATA_KEPT]);
  pst_json_member_double(&w, "near_to_items", (double)g.n_near);
  pst_json_member_double(&w, "without_text", (double)g.n_textless);
  pst_json_member_double(&w, "added", (double)g.n);
  if (folder && g.n) {
    pst_json_member_cstr(&w, "data_set", curated.hash);
    pst_json_member_cstr(&w, "folder", folder);
  }
  pst_json_key(&w, "left_out");
  pst_json_begin_object(&w);
  for (int i = PST_DATA_KEPT + 1; i < PST_DATA_REASON_COUNT; i++)
    if (curated.n_by_reason[i])
      pst_json_member_double(&w, pst_data_reason_name((pst_data_reason)i), (double)curated.n_by_reason[i]);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  pst_free(folder);
  pst_free(g.lines);
  pst_regex_free(g.pattern);
  pst_arena_free(g.arena);
  pst_buf_done(&g.scratch);
  pst_buf_done(&report);
  return none ? 0 : code;
}

typedef struct recorded {
  char data_set[65], said_set[65], folder[4096]; /* of the steps "data" and "said"; empty: none */
} recorded;

static void copy_member(const pst_json *row, const char *key, char *out, size_t n) {
  pst_str s = pst_json_str(pst_json_get(row, key));
  (void)snprintf(out, n, "%.*s", (int)s.n, s.data ? s.data : "");
}

static int take_recorded(void *user, int64_t seq, pst_str key, pst_str json) {
  recorded *r = user;
  pst_json_doc *doc = NULL;
  bool data = pst_str_is(key, PST_FLYWHEEL_TURN_DATA), said = pst_str_is(key, PST_FLYWHEEL_TURN_SAID);
  (void)seq;
  if ((!data && !said) || pst_json_parse(json.data, json.n, "row", &doc, NULL)) return 0;
  copy_member(pst_json_root(doc), "data_set", data ? r->data_set : r->said_set, sizeof r->data_set);
  if (data) copy_member(pst_json_root(doc), "folder", r->folder, sizeof r->folder);
  pst_json_free(doc);
  return 0;
}

static bool is_withdrawn(pst_store *store, const char *hash) {
  return hash[0] && pst_store_data_withdrawn(store, pst_str_from(hash));
}

int pst_flywheel_turn_outdated(const pst_flywheel_turn_state *t, bool *ret_outdated, pst_error *err) {
  recorded r = {"", "", ""};
  int code = pst_store_run_rows(t->store, t->run_id, 0, take_recorded, &r, err);
  if (!code)
    *ret_outdated = is_withdrawn(t->store, r.data_set) || is_withdrawn(t->store, r.said_set) ||
                    (r.folder[0] && !pst_dir_exists(r.folder));
  return code;
}

int pst_flywheel_turn_open(pst_flywheel_turn_state *t, pst_error *err) {
  const pst_json *data = pst_json_root(t->data);
  pst_str folder = pst_json_str(pst_json_get(data, "folder")), set = pst_json_str(pst_json_get(data, "data_set"));
  if (!folder.n) return 0;
  char *path = pst_strndup(folder.data, folder.n);
  int code = path ? pst_evals_workload_open(path, &t->own, err) : no_memory(err);
  pst_free(path);
  if (code) return code;
  t->workload = t->own;
  (void)snprintf(t->data_set, sizeof t->data_set, "%.*s", (int)PST_MIN(set.n, (size_t)64), set.data);
  return 0;
}
