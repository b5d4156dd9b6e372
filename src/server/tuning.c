/* /v1/files and /v1/fine_tuning/jobs. Files are rows over files kept by hash, jobs are rows that a worker process takes (penstock worker), their events rows
 * of a run. Nothing is computed here.
 *
 * A caller with a key sees what came with that key; one that needs none sees everything. */
#include <inttypes.h>
#include <string.h>

#include "server/server.h"

enum { MAX_PARTS = 16, MAX_NAME = 255, LEAST_EXAMPLES = 10, LIST_LIMIT = 20, MAX_LIST = 10000 };

static const char job_kind[] = "fine_tune";

static int64_t owner_of(const pst_server_call *call) { return call->key.id ? call->key.id : -1; }

/* What stands behind the endpoint's own path, without the slash: "file-3/content". */
static pst_str below(const pst_server_call *call) {
  size_t n = strlen(call->endpoint->path) + 1;
  return call->path.n > n ? (pst_str){call->path.data + n, call->path.n - n} : PST_STR("");
}

/* "file-3/content" into an id and what is wanted of it. */
static int64_t id_below(const pst_server_call *call, const char *prefix, pst_str *ret_verb) {
  pst_str rest = below(call);
  size_t slash = pst_str_find(rest, PST_STR("/"), 0);
  *ret_verb = slash == SIZE_MAX ? PST_STR("") : (pst_str){rest.data + slash + 1, rest.n - slash - 1};
  return pst_wire_id_parse(prefix, (pst_str){rest.data, PST_MIN(slash, rest.n)});
}

static void fail_not_found(pst_server_call *call, const char *what) {
  pst_wire_error e = {404, "invalid_request_error", "not_found", 0};
  char text[320];
  pst_str id = below(call);
  (void)snprintf(text, sizeof text, "there is no %s '%.*s'", what, (int)PST_MIN(id.n, (size_t)200), id.data);
  pst_server_fail(call, &e, text, NULL);
}

static void finish(pst_server_call *call, int code, const pst_error *err, const char *what) {
  if (code == PST_E_NOT_FOUND)
    fail_not_found(call, what);
  else if (code)
    pst_server_fail_code(call, err);
  else
    call->status = 200;
}

/* ?limit= and ?after=, as the clients' pages ask. */
static int read_page(const pst_server_call *call, const char *prefix, int64_t *ret_limit, int64_t *ret_after,
                     pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  *ret_limit = LIST_LIMIT;
  *ret_after = 0;
  int code = 0;
  if (pst_net_query_get(call->query, "limit", &text) > 0) {
    int64_t limit = 0;
    if (pst_parse_i64(pst_buf_str(&text), 1, MAX_LIST, &limit))
      code = pst_error_set(err, PST_E_BAD_INPUT, "limit", "is not a number from 1 to %d", MAX_LIST);
    else
      *ret_limit = limit;
  }
  pst_buf_clear(&text);
  if (!code && pst_net_query_get(call->query, "after", &text) > 0) {
    *ret_after = pst_wire_id_parse(prefix, pst_buf_str(&text));
    if (!*ret_after) code = pst_error_set(err, PST_E_BAD_INPUT, "after", "is no id of the form %s-17", prefix);
  }
  pst_buf_done(&text);
  return code;
}

/* A list as the API writes it, from its first element to `has_more`. */
typedef struct listing {
  pst_json_writer w;
  int64_t n, limit, after, owner;
} listing;

static void begin_list(listing *l, pst_server_call *call) {
  l->w = pst_json_writer_on(&call->out, false);
  pst_json_begin_object(&l->w);
  pst_json_member_cstr(&l->w, "object", "list");
  pst_json_key(&l->w, "data");
  pst_json_begin_array(&l->w);
}

static void end_list(listing *l) {
  pst_json_end_array(&l->w);
  pst_json_member_bool(&l->w, "has_more", l->n > l->limit);
  pst_json_end_object(&l->w);
}

/* ---- files ----------------------------------------------------------------------------------------------------------------- */

static pst_wire_file wire_file(const pst_store_upload *u) {
  return (pst_wire_file){u->id, u->bytes, u->created_ms / 1000, u->name, u->purpose};
}

static int write_file(void *user, const pst_store_upload *upload) {
  pst_json_writer w = pst_json_writer_on(user, false);
  pst_wire_file file = wire_file(upload);
  pst_wire_file_write(&file, &w);
  return 0;
}

static int read_form(const pst_server_call *call, pst_str *ret_name, pst_str *ret_purpose, pst_str *ret_data,
                     pst_error *err) {
  pst_wire_part parts[MAX_PARTS];
  size_t n = 0;
  int code = pst_wire_multipart_parse(call->media_type, call->body, parts, MAX_PARTS, &n, err);
  bool has_file = false;
  for (size_t i = 0; i < n && !code; i++) {
    if (pst_str_is(parts[i].name, "purpose")) *ret_purpose = parts[i].data;
    if (!pst_str_is(parts[i].name, "file")) continue;
    *ret_name = parts[i].filename.n ? parts[i].filename : PST_STR("upload.jsonl");
    *ret_data = parts[i].data;
    has_file = true;
  }
  if (code) return code;
  if (!has_file) return pst_error_set(err, PST_E_BAD_INPUT, "file", "is missing in the form");
  if (ret_data->n == 0) return pst_error_set(err, PST_E_BAD_INPUT, "file", "is empty");
  if (!pst_str_is(*ret_purpose, "fine-tune"))
    return pst_error_set(err, PST_E_UNSUPPORTED, "purpose", "'%.*s' is not offered; 'fine-tune' is",
                         (int)PST_MIN(ret_purpose->n, (size_t)40), ret_purpose->data ? ret_purpose->data : "");
  if (ret_name->n > MAX_NAME || !pst_utf8_valid(*ret_name))
    return pst_error_set(err, PST_E_BAD_INPUT, "file", "has a name that is not UTF-8 or longer than %d bytes",
                         MAX_NAME);
  return 0;
}

void pst_server_files_post(pst_server_call *call) {
  pst_str name = {NULL, 0}, purpose = {NULL, 0}, data = {NULL, 0};
  pst_error err = PST_ERROR_INIT;
  int64_t id = 0;
  int code = read_form(call, &name, &purpose, &data, &err);
  if (!code)
    code = pst_store_upload_put(call->server->store, name, purpose, call->key.id, data, pst_clock_unix_ms(), &id, &err);
  if (!code) code = pst_store_upload_get(call->server->store, id, -1, write_file, &call->out, &err);
  finish(call, code, &err, "file");
}

static int list_file(void *user, const pst_store_upload *upload) {
  listing *l = user;
  pst_wire_file file = wire_file(upload);
  if (l->n++ < l->limit) pst_wire_file_write(&file, &l->w);
  return 0;
}

typedef struct path_wanted {
  pst_store *store;
  char *path;
} path_wanted;

static int find_path(void *user, const pst_store_upload *upload) {
  path_wanted *p = user;
  return pst_store_upload_path(p->store, upload->hash, &p->path, NULL);
}

static int read_content(pst_server_call *call, int64_t id, pst_error *err) {
  path_wanted p = {call->server->store, NULL};
  char *data = NULL;
  size_t n = 0;
  int code = pst_store_upload_get(p.store, id, owner_of(call), find_path, &p, err);
  if (!code) code = pst_file_read(p.path, SIZE_MAX / 2, &data, &n, err);
  if (!code) {
    pst_buf_append(&call->out, data, n);
    call->content_type = "application/octet-stream";
  }
  pst_free(data);
  pst_free(p.path);
  return code;
}

void pst_server_files_get(pst_server_call *call) {
  pst_error err = PST_ERROR_INIT;
  pst_str verb;
  int64_t id = id_below(call, "file", &verb);
  int code = 0;
  if (!below(call).n) {
    listing l = {.owner = owner_of(call)};
    code = read_page(call, "file", &l.limit, &l.after, &err);
    if (!code) {
      begin_list(&l, call);
      code = pst_store_upload_each(call->server->store, l.owner, l.after, l.limit + 1, list_file, &l, &err);
      end_list(&l);
    }
  } else if (!id || (verb.n && !pst_str_is(verb, "content"))) {
    code = PST_E_NOT_FOUND;
  } else if (verb.n) {
    code = read_content(call, id, &err);
  } else {
    code = pst_store_upload_get(call->server->store, id, owner_of(call), write_file, &call->out, &err);
  }
  finish(call, code, &err, "file");
}

void pst_server_files_delete(pst_server_call *call) {
  pst_error err = PST_ERROR_INIT;
  pst_str verb;
  int64_t id = id_below(call, "file", &verb);
  int code = !id || verb.n ? PST_E_NOT_FOUND : pst_store_upload_delete(call->server->store, id, owner_of(call), &err);
  if (!code) {
    pst_json_writer w = pst_json_writer_on(&call->out, false);
    pst_wire_deleted_write(PST_STR("file"), below(call), &w);
  }
  finish(call, code, &err, "file");
}

/* ---- jobs ------------------------------------------------------------------------------------------------------------------ */

static const char *status_name(const pst_store_job *job) {
  static const char *const names[] = {"queued", "running", "succeeded", "failed", "cancelled"};
  return names[job->state];
}

static void put_job(pst_json_writer *w, const pst_store_job *job) {
  pst_json_doc *params = NULL, *result = NULL;
  (void)pst_json_parse(job->params.data, job->params.n, "params", &params, NULL);
  if (job->result.data) (void)pst_json_parse(job->result.data, job->result.n, "result", &result, NULL);
  const pst_json *p = params ? pst_json_root(params) : NULL, *r = result ? pst_json_root(result) : NULL;
  pst_wire_tuning_job out = {
      .id = job->id,
      .created = job->created_ms / 1000,
      .finished = job->ended_ms / 1000,
      .model = pst_json_str(pst_json_get(p, "model")),
      .tuned_model = pst_json_str(pst_json_get(r, "fine_tuned_model")),
      .status = pst_str_from(status_name(job)),
      .training_file = pst_json_str(pst_json_get(p, "training_file")),
      .validation_file = pst_json_str(pst_json_get(p, "validation_file")),
      .suffix = pst_json_str(pst_json_get(p, "suffix")),
      .seed = pst_json_int(pst_json_get(p, "seed"), 0),
      .hyper = {.n_epochs = pst_json_int(pst_json_get(p, "n_epochs"), 0),
                .batch_size = pst_json_int(pst_json_get(p, "batch_size"), 0),
                .learning_rate_multiplier = pst_json_double(pst_json_get(p, "learning_rate_multiplier"), 0),
                .beta = pst_json_double(pst_json_get(p, "beta"), 0),
                .codes = pst_json_int(pst_json_get(p, "codes"), 0)},
      .trained_tokens = pst_json_int(pst_json_get(r, "trained_tokens"), 0),
      .error = job->state == PST_STORE_JOB_FAILED ? job->message : PST_STR(""),
  };
  (void)pst_wire_tuning_method_from(pst_json_str(pst_json_get(p, "method")), &out.method);
  pst_wire_tuning_job_write(&out, w);
  pst_json_free(params);
  pst_json_free(result);
}

/* Whether a caller may see a job; *ret_run: its events. */
static bool may_see(const pst_store_job *job, int64_t owner, int64_t *ret_run) {
  pst_json_doc *params = NULL;
  if (!pst_str_is(job->kind, job_kind) || pst_json_parse(job->params.data, job->params.n, "params", &params, NULL))
    return false;
  int64_t key = pst_json_int(pst_json_get(pst_json_root(params), "key_id"), 0);
  if (ret_run) *ret_run = pst_json_int(pst_json_get(pst_json_root(params), "run"), 0);
  pst_json_free(params);
  return owner < 0 || key == owner;
}

typedef struct job_wanted {
  pst_server_call *call;
  int64_t run;
  bool write;
} job_wanted;

static int see_job(void *user, const pst_store_job *job) {
  job_wanted *want = user;
  if (!may_see(job, owner_of(want->call), &want->run)) return PST_E_NOT_FOUND;
  if (!want->write) return 0;
  pst_json_writer w = pst_json_writer_on(&want->call->out, false);
  put_job(&w, job);
  return 0;
}

/* The job below the path is there and the caller's; with `write` it becomes the answer. */
static int find_job(pst_server_call *call, int64_t id, bool write, int64_t *ret_run, pst_error *err) {
  job_wanted want = {call, 0, write};
  int code = id ? pst_store_job_get(call->server->store, id, see_job, &want, err) : PST_E_NOT_FOUND;
  if (!code && ret_run) *ret_run = want.run;
  return code;
}

static int list_job(void *user, const pst_store_job *job) {
  listing *l = user;
  if ((l->after && job->id >= l->after) || !may_see(job, l->owner, NULL)) return 0;
  if (l->n++ < l->limit) put_job(&l->w, job);
  return 0;
}

/* ---- events ---- */

typedef struct event_list {
  listing l;
  pst_arena *arena;
  struct event_row {
    int64_t seq;
    pst_str json;
  } * rows;
  size_t n, capacity;
} event_list;

static int keep_event(void *user, int64_t seq, pst_str key, pst_str json) {
  event_list *e = user;
  (void)key;
  if (pst_array_reserve((void **)&e->rows, &e->capacity, e->n + 1, sizeof *e->rows)) return PST_E_NOMEM;
  char *copy = pst_arena_strndup(e->arena, json.data, json.n);
  if (!copy) return PST_E_NOMEM;
  e->rows[e->n++] = (struct event_row){seq, {copy, json.n}};
  return 0;
}

static void put_event(pst_json_writer *w, const struct event_row *row) {
  pst_json_doc *doc = NULL;
  if (pst_json_parse(row->json.data, row->json.n, "event", &doc, NULL)) return;
  const pst_json *root = pst_json_root(doc);
  pst_wire_tuning_event event = {.id = row->seq,
                                 .created = pst_json_int(pst_json_get(root, "time_ms"), 0) / 1000,
                                 .level = pst_json_str(pst_json_get(root, "level")),
                                 .message = pst_json_str(pst_json_get(root, "message")),
                                 .data = pst_json_get(root, "data")};
  pst_wire_tuning_event_write(&event, w);
  pst_json_free(doc);
}

/* Newest first, as the API has them. */
static int write_events(pst_server_call *call, int64_t run, pst_error *err) {
  event_list e = {.arena = call->arena};
  int code = read_page(call, "ftevent", &e.l.limit, &e.l.after, err);
  if (!code) code = pst_store_run_rows(call->server->store, run, 0, keep_event, &e, err);
  if (!code) {
    begin_list(&e.l, call);
    for (size_t i = e.n; i-- > 0;)
      if ((!e.l.after || e.rows[i].seq < e.l.after) && e.l.n++ < e.l.limit) put_event(&e.l.w, &e.rows[i]);
    end_list(&e.l);
  }
  pst_free(e.rows);
  return code;
}

void pst_server_jobs_get(pst_server_call *call) {
  pst_error err = PST_ERROR_INIT;
  pst_str verb;
  int64_t id = id_below(call, "ftjob", &verb), run = 0;
  int code = 0;
  if (!below(call).n) {
    listing l = {.owner = owner_of(call)};
    code = read_page(call, "ftjob", &l.limit, &l.after, &err);
    if (!code) {
      begin_list(&l, call);
      code = pst_store_job_each(call->server->store, 0, list_job, &l, &err);
      end_list(&l);
    }
  } else if (!verb.n) {
    code = find_job(call, id, true, NULL, &err);
  } else if (pst_str_is(verb, "events")) {
    code = find_job(call, id, false, &run, &err);
    if (!code) code = write_events(call, run, &err);
  } else if (pst_str_is(verb, "checkpoints")) { /* only the best one is kept, and it is the job's model */
    code = find_job(call, id, false, NULL, &err);
    listing l = {.limit = LIST_LIMIT};
    if (!code) begin_list(&l, call);
    if (!code) end_list(&l);
  } else {
    code = PST_E_NOT_FOUND;
  }
  finish(call, code, &err, "fine-tuning job");
}

/* ---- a new job ---- */

static int accept_line(void *user, const pst_wire_tuning_line *line, pst_error *err) {
  (void)user, (void)line, (void)err;
  return 0;
}

/* The error names the file and the line. */
static int check_lines(pst_str text, pst_wire_tuning_method method, const char *field, const char *name,
                       pst_error *err) {
  pst_error why = PST_ERROR_INIT;
  int64_t n = 0;
  int code = pst_wire_tuning_lines_each(text, method, accept_line, NULL, &n, &why);
  if (code) return pst_error_set(err, code, field, "%s, %s", name, why.message);
  if (n < LEAST_EXAMPLES)
    return pst_error_set(err, PST_E_BAD_INPUT, field, "%s has %" PRId64 " examples; at least %d are needed", name, n,
                         LEAST_EXAMPLES);
  return 0;
}

typedef struct file_wanted {
  pst_store *store;
  char hash[65], name[MAX_NAME + 1];
} file_wanted;

static int note_file(void *user, const pst_store_upload *upload) {
  file_wanted *f = user;
  (void)snprintf(f->hash, sizeof f->hash, "%.*s", (int)upload->hash.n, upload->hash.data);
  (void)snprintf(f->name, sizeof f->name, "%.*s", (int)PST_MIN(upload->name.n, (size_t)MAX_NAME), upload->name.data);
  return 0;
}

static int check_file(const pst_server_call *call, pst_str id, pst_wire_tuning_method method, const char *field,
                      file_wanted *f, pst_error *err) {
  char *path = NULL, *data = NULL;
  size_t n = 0;
  int code = pst_store_upload_get(f->store, pst_wire_id_parse("file", id), owner_of(call), note_file, f, err);
  if (code == PST_E_NOT_FOUND)
    return pst_error_set(err, PST_E_BAD_INPUT, field, "there is no file '%.*s'", (int)id.n, id.data);
  if (!code) code = pst_store_upload_path(f->store, pst_str_from(f->hash), &path, err);
  if (!code) code = pst_file_read(path, SIZE_MAX / 2, &data, &n, err);
  if (!code) code = check_lines((pst_str){data, n}, method, field, f->name, err);
  pst_free(path);
  pst_free(data);
  return code;
}

static int want_model(void *user, const char *id, const char *owner) {
  pst_str *name = user;
  (void)owner;
  return pst_str_is(*name, id) ? 1 : 0;
}

static int check_model(const pst_server_call *call, pst_str model, pst_error *err) {
  pst_str name = pst_server_resolve(call, model);
  int found = pst_gateway_models_each(call->server->gateway, want_model, &name, err);
  if (found < 0) return found;
  if (found > 0 || !pst_str_equal(name, model)) return 0;
  return pst_error_set(err, PST_E_BAD_INPUT, "model", "'%.*s' is no model here; GET /v1/models lists those that are",
                       (int)PST_MIN(model.n, (size_t)200), model.data);
}

static int submit(pst_server_call *call, const pst_wire_tuning_request *q, const file_wanted *training,
                  const file_wanted *validation, int64_t *ret_id, pst_error *err) {
  pst_store *store = call->server->store;
  int64_t now = pst_clock_unix_ms(), run = 0;
  pst_buf params = PST_BUF_INIT, event = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&params, false);
  int code = pst_store_run_create(store, pst_str_from(job_kind), (pst_str){NULL, 0}, PST_STR("{}"), now, &run, err);
  pst_json_begin_object(&w);
  const char *usual = call->server->options.default_model;
  pst_json_member_str(&w, "model", usual && pst_str_is(q->model, "default") ? pst_str_from(usual) : q->model);
  pst_json_member_str(&w, "target", pst_server_resolve(call, q->model)); /* as the gateway knows it */
  pst_json_member_str(&w, "training_file", q->training_file);
  pst_json_member_str(&w, "training_hash", pst_str_from(training->hash));
  pst_json_member_str(&w, "validation_file", q->validation_file.data ? q->validation_file : PST_STR(""));
  pst_json_member_str(&w, "validation_hash", pst_str_from(validation->hash));
  pst_json_member_str(&w, "suffix", q->suffix.data ? q->suffix : PST_STR(""));
  pst_json_member_int(&w, "seed", q->has_seed ? q->seed : 1);
  pst_json_member_cstr(&w, "method", pst_wire_tuning_method_name(q->method));
  pst_json_member_int(&w, "n_epochs", q->hyper.n_epochs);
  pst_json_member_int(&w, "batch_size", q->hyper.batch_size);
  pst_json_member_double(&w, "learning_rate_multiplier", q->hyper.learning_rate_multiplier);
  pst_json_member_double(&w, "beta", q->hyper.beta);
  pst_json_member_int(&w, "codes", q->hyper.codes);
  pst_json_member_int(&w, "key_id", call->key.id);
  pst_json_member_int(&w, "run", run);
  pst_json_end_object(&w);
  pst_buf_printf(&event, "{\"time_ms\":%" PRId64 ",\"level\":\"info\",\"message\":\"Created fine-tuning job\"}", now);
  if (!code && (pst_buf_status(&params) || pst_buf_status(&event)))
    code = pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the job");
  if (!code) code = pst_store_run_append(store, run, (pst_str){NULL, 0}, pst_buf_str(&event), true, err);
  if (!code) code = pst_store_job_submit(store, pst_str_from(job_kind), pst_buf_str(&params), now, ret_id, err);
  pst_buf_done(&params);
  pst_buf_done(&event);
  return code;
}

static void create_job(pst_server_call *call) {
  pst_wire_tuning_request q = {0};
  pst_error err = PST_ERROR_INIT;
  file_wanted training = {.store = call->server->store}, validation = training;
  int64_t id = 0;
  int code = pst_wire_tuning_parse(call->body, &q, &err);
  if (!code) code = check_model(call, q.model, &err);
  if (!code) code = check_file(call, q.training_file, q.method, "training_file", &training, &err);
  if (!code && q.validation_file.n)
    code = check_file(call, q.validation_file, q.method, "validation_file", &validation, &err);
  if (!code) code = submit(call, &q, &training, &validation, &id, &err);
  if (!code) code = find_job(call, id, true, NULL, &err);
  pst_wire_tuning_done(&q);
  finish(call, code, &err, "fine-tuning job");
}

void pst_server_jobs_post(pst_server_call *call) {
  pst_error err = PST_ERROR_INIT;
  pst_str verb;
  int64_t id = id_below(call, "ftjob", &verb);
  if (!below(call).n) {
    create_job(call);
    return;
  }
  int code = pst_str_is(verb, "cancel") ? find_job(call, id, false, NULL, &err) : PST_E_NOT_FOUND;
  if (!code) code = pst_store_job_cancel(call->server->store, id, pst_clock_unix_ms(), &err);
  if (!code) code = find_job(call, id, true, NULL, &err);
  finish(call, code, &err, "fine-tuning job");
}
