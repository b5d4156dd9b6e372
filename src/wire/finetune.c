/* /v1/files and /v1/fine_tuning/jobs: requests read, objects written, in the shapes of the OpenAI API. */
#include "wire/reader.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

/* ---- ids ---- */

void pst_wire_id_write(const char *prefix, int64_t id, char ret_text[40]) {
  (void)snprintf(ret_text, 40, "%s-%" PRId64, prefix, id);
}

int64_t pst_wire_id_parse(const char *prefix, pst_str text) {
  size_t n = strlen(prefix);
  int64_t id = 0;
  if (text.n < n + 2 || text.n > n + 19 || memcmp(text.data, prefix, n) != 0 || text.data[n] != '-') return 0;
  for (size_t i = n + 1; i < text.n; i++) {
    if (text.data[i] < '0' || text.data[i] > '9') return 0;
    id = id * 10 + (text.data[i] - '0');
  }
  return id;
}

/* ---- members ---- */

/* Empty: null. */
static void put_text(pst_json_writer *w, const char *key, pst_str text) {
  pst_json_member_opt(w, key, text.n ? text : (pst_str){NULL, 0});
}

static void put_id(pst_json_writer *w, const char *key, const char *prefix, int64_t id) {
  char text[40];
  pst_wire_id_write(prefix, id, text);
  put_text(w, key, pst_str_from(text));
}

/* ---- files ---- */

void pst_wire_file_write(const pst_wire_file *file, pst_json_writer *w) {
  pst_json_begin_object(w);
  put_id(w, "id", "file", file->id);
  put_text(w, "object", PST_STR("file"));
  pst_json_member_int(w, "bytes", file->bytes);
  pst_json_member_int(w, "created_at", file->created);
  put_text(w, "filename", file->name);
  put_text(w, "purpose", file->purpose);
  put_text(w, "status", PST_STR("processed"));
  pst_json_end_object(w);
}

void pst_wire_deleted_write(pst_str object, pst_str id, pst_json_writer *w) {
  pst_json_begin_object(w);
  put_text(w, "id", id);
  put_text(w, "object", object);
  pst_json_member_bool(w, "deleted", true);
  pst_json_end_object(w);
}

/* ---- jobs: the request ---- */

static const char *const methods[PST_WIRE_TUNING_METHOD_COUNT] = {"supervised", "dpo"};

const char *pst_wire_tuning_method_name(pst_wire_tuning_method method) { return methods[method]; }

bool pst_wire_tuning_method_from(pst_str name, pst_wire_tuning_method *ret_method) {
  for (int i = 0; i < PST_WIRE_TUNING_METHOD_COUNT; i++) {
    if (!pst_str_is(name, methods[i])) continue;
    *ret_method = (pst_wire_tuning_method)i;
    return true;
  }
  return false;
}

static bool is_auto(const pst_json *v) {
  return !v || (pst_json_typeof(v) == PST_JSON_STRING && pst_str_is(pst_json_str(v), "auto"));
}

/* A number of pst_wire_hyperparameters, and which methods have it. */
typedef struct hyperparameter {
  const char *name;
  bool of[PST_WIRE_TUNING_METHOD_COUNT];
  bool whole; /* an int64_t, else a double */
  size_t at;  /* its offset */
  double least, most;
  bool ours; /* the API has no such member: jobs that did not ask for it do not show it */
} hyperparameter;
#define HYPER(member) offsetof(pst_wire_hyperparameters, member)
static const hyperparameter hyperparameters[] = {
    {"n_epochs", {true, true}, true, HYPER(n_epochs), 1, 1000, false},
    {"batch_size", {true, true}, true, HYPER(batch_size), 1, 4096, false},
    {"learning_rate_multiplier", {true, true}, false, HYPER(learning_rate_multiplier), 1e-4, 1e3, false},
    {"beta", {false, true}, false, HYPER(beta), 1e-4, 100, false},
    {"codes", {true, false}, true, HYPER(codes), 0, 4096, true},
};

static void *place_of(pst_wire_hyperparameters *h, const hyperparameter *p) { return (char *)h + p->at; }

static const hyperparameter *find_hyperparameter(pst_str name, pst_wire_tuning_method method) {
  for (size_t i = 0; i < PST_ARRAY_LEN(hyperparameters); i++)
    if (hyperparameters[i].of[method] && pst_str_is(name, hyperparameters[i].name)) return &hyperparameters[i];
  return NULL;
}

/* Those of the older field "hyperparameters", and of method.supervised and the like. One that is not known is refused: training by another number than was
 * asked for would look like what was asked for. */
static int read_hyperparameters(const pst_wire_reader *r, pst_wire_tuning_request *q) {
  int rc = 0;
  for (pst_json_iter it = pst_json_iterate(r->object); !rc && pst_json_next(&it);) {
    const hyperparameter *p = find_hyperparameter(it.key, q->method);
    char name[64];
    (void)snprintf(name, sizeof name, "%.*s", (int)PST_MIN(it.key.n, sizeof name - 1), it.key.data);
    if (!p)
      rc = pst_wire_fail(r, PST_E_UNSUPPORTED, name, "is no hyperparameter of the method %s here", methods[q->method]);
    else if (is_auto(pst_wire_get(r, name)))
      continue;
    else if (p->whole)
      rc = pst_wire_read_int(r, name, (int64_t)p->least, (int64_t)p->most, NULL, place_of(&q->hyper, p));
    else
      rc = pst_wire_read_double(r, name, p->least, p->most, NULL, place_of(&q->hyper, p));
  }
  return rc;
}

static int want_object(const pst_wire_reader *r, const char *key, const pst_json **ret_value) {
  *ret_value = pst_wire_get(r, key);
  return *ret_value && pst_json_typeof(*ret_value) != PST_JSON_OBJECT
             ? pst_wire_fail_type(r, key, "an object", *ret_value)
             : 0;
}

static int read_method(const pst_wire_reader *r, pst_wire_tuning_request *q) {
  const pst_json *method = NULL, *settings = NULL, *hyper = NULL;
  pst_str type = PST_STR("supervised");
  int rc = want_object(r, "method", &method);
  if (rc || !method) return rc;
  pst_wire_reader m = pst_wire_reader_into(r, "method", -1, method);
  rc = pst_wire_read_str(&m, "type", 40, &type);
  if (!rc && !pst_wire_tuning_method_from(type, &q->method))
    return pst_wire_fail(&m, PST_E_UNSUPPORTED, "type", "'%.*s' is not offered; 'supervised' and 'dpo' are",
                         (int)type.n, type.data);
  for (int i = 0; i < PST_WIRE_TUNING_METHOD_COUNT && !rc; i++)
    if (i != (int)q->method && pst_wire_get(&m, methods[i]))
      rc = pst_wire_fail(&m, PST_E_BAD_INPUT, methods[i], "does not go with the type '%s'", methods[q->method]);
  if (!rc) rc = want_object(&m, methods[q->method], &settings);
  if (rc || !settings) return rc;
  pst_wire_reader s = pst_wire_reader_into(&m, methods[q->method], -1, settings);
  rc = want_object(&s, "hyperparameters", &hyper);
  if (rc || !hyper) return rc;
  pst_wire_reader h = pst_wire_reader_into(&s, "hyperparameters", -1, hyper);
  return read_hyperparameters(&h, q);
}

static int read_request(const pst_wire_reader *r, pst_wire_tuning_request *q) {
  const pst_json *hyper = NULL;
  int rc = pst_wire_read_str(r, "model", 1024, &q->model);
  if (!rc && !q->model.n) rc = pst_wire_fail(r, PST_E_BAD_INPUT, "model", "is missing");
  if (!rc) rc = pst_wire_read_str(r, "training_file", 64, &q->training_file);
  if (!rc && !q->training_file.n) rc = pst_wire_fail(r, PST_E_BAD_INPUT, "training_file", "is missing");
  if (!rc) rc = pst_wire_read_str(r, "validation_file", 64, &q->validation_file);
  if (!rc) rc = pst_wire_read_str(r, "suffix", 64, &q->suffix);
  if (!rc) rc = pst_wire_read_int(r, "seed", 0, INT32_MAX, &q->has_seed, &q->seed);
  if (!rc) rc = want_object(r, "hyperparameters", &hyper);
  if (!rc && hyper) {
    pst_wire_reader h = pst_wire_reader_into(r, "hyperparameters", -1, hyper);
    rc = read_hyperparameters(&h, q);
  }
  if (!rc) rc = read_method(r, q);
  if (!rc && hyper && q->method != PST_WIRE_TUNING_SUPERVISED)
    rc = pst_wire_fail(r, PST_E_BAD_INPUT, "hyperparameters", "are of the supervised method; method.%s has its own",
                       methods[q->method]);
  if (!rc && pst_json_size(pst_wire_get(r, "integrations")))
    rc = pst_wire_fail(r, PST_E_UNSUPPORTED, "integrations", "are not offered");
  return rc;
}

int pst_wire_tuning_parse(pst_str body, pst_wire_tuning_request *ret_request, pst_error *err) {
  pst_wire_tuning_request q = {0};
  pst_wire_reader r = {.err = err};
  int rc = pst_wire_parse_body(&r, body, &q.doc);
  if (!rc) rc = read_request(&r, &q);
  if (rc)
    pst_wire_tuning_done(&q);
  else
    *ret_request = q;
  return rc;
}

void pst_wire_tuning_done(pst_wire_tuning_request *request) {
  pst_json_free(request->doc);
  *request = (pst_wire_tuning_request){0};
}

/* ---- jobs: what is written ---- */

static void put_hyperparameters(pst_json_writer *w, const pst_wire_tuning_job *job) {
  pst_wire_hyperparameters h = job->hyper;
  pst_json_key(w, "hyperparameters");
  pst_json_begin_object(w);
  for (size_t i = 0; i < PST_ARRAY_LEN(hyperparameters); i++) {
    const hyperparameter *p = &hyperparameters[i];
    if (!p->of[job->method]) continue;
    int64_t whole = p->whole ? *(const int64_t *)place_of(&h, p) : 0;
    double real = p->whole ? 0 : *(const double *)place_of(&h, p);
    if (whole)
      pst_json_member_int(w, p->name, whole);
    else if (real > 0)
      pst_json_member_double(w, p->name, real);
    else if (!p->ours)
      pst_json_member_cstr(w, p->name, "auto");
  }
  pst_json_end_object(w);
}

void pst_wire_tuning_job_write(const pst_wire_tuning_job *job, pst_json_writer *w) {
  pst_json_begin_object(w);
  put_id(w, "id", "ftjob", job->id);
  put_text(w, "object", PST_STR("fine_tuning.job"));
  pst_json_member_int(w, "created_at", job->created);
  pst_json_key(w, "finished_at");
  if (job->finished)
    pst_json_put_int(w, job->finished);
  else
    pst_json_put_null(w);
  put_text(w, "model", job->model);
  put_text(w, "fine_tuned_model", job->tuned_model);
  put_text(w, "organization_id", PST_STR("penstock"));
  put_text(w, "status", job->status);
  put_text(w, "training_file", job->training_file);
  put_text(w, "validation_file", job->validation_file);
  put_text(w, "user_provided_suffix", job->suffix);
  pst_json_member_int(w, "seed", job->seed);
  if (job->method == PST_WIRE_TUNING_SUPERVISED) put_hyperparameters(w, job);
  pst_json_key(w, "method");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "type", methods[job->method]);
  pst_json_key(w, methods[job->method]);
  pst_json_begin_object(w);
  put_hyperparameters(w, job);
  pst_json_end_object(w);
  pst_json_end_object(w);
  pst_json_key(w, "result_files");
  pst_json_begin_array(w);
  pst_json_end_array(w);
  pst_json_key(w, "trained_tokens");
  if (job->trained_tokens)
    pst_json_put_int(w, job->trained_tokens);
  else
    pst_json_put_null(w);
  pst_json_key(w, "error");
  if (job->error.n) {
    pst_json_begin_object(w);
    put_text(w, "code", PST_STR("job_failed"));
    put_text(w, "message", job->error);
    put_text(w, "param", (pst_str){NULL, 0});
    pst_json_end_object(w);
  } else {
    pst_json_put_null(w);
  }
  pst_json_end_object(w);
}

void pst_wire_tuning_event_write(const pst_wire_tuning_event *event, pst_json_writer *w) {
  pst_json_begin_object(w);
  put_id(w, "id", "ftevent", event->id);
  put_text(w, "object", PST_STR("fine_tuning.job.event"));
  pst_json_member_int(w, "created_at", event->created);
  put_text(w, "level", event->level);
  put_text(w, "message", event->message);
  put_text(w, "type", event->data ? PST_STR("metrics") : PST_STR("message"));
  pst_json_key(w, "data");
  if (event->data)
    pst_json_put_value(w, event->data);
  else
    pst_json_put_null(w);
  pst_json_end_object(w);
}
