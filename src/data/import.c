/* Import: rows of a file become records. Each row is read into the form in which the gateway records a request and its answer, so that what comes after does
 * not know where a record is from. The store pulls the rows inside one transaction. */
#include "data/data.h"

#include <string.h>

enum { SUBJECT_BYTES_MAX = 512 };

static const char *const TEXT_FIELDS[] = {"text", "input", "prompt", "question", "message", "query", "utterance"};
static const char *const ANSWER_FIELDS[] = {"label",    "answer",   "target", "output",  "completion",
                                            "expected", "response", "intent", "category"};
static const char *const SUBJECT_FIELDS[] = {"subject", "safety_identifier", "user"};

typedef struct importer {
  pst_data_source source;
  const pst_data_import_options *options;
  pst_data_format format;
  pst_json_doc *doc; /* of the row given last, as are: */
  pst_buf input, output, text;
  pst_str subject;
  int64_t time_ms, now_ms;
  char id[32];
  int text_column, answer_column, system_column, subject_column; /* CSV; -1: none */
  int64_t n_rows;
} importer;

#define FAIL(m, ...) pst_data_source_fail(&(m)->source, PST_E_BAD_INPUT, err, __VA_ARGS__)

static int no_memory(const importer *m, pst_error *err) {
  return pst_error_set(err, PST_E_NOMEM, m->source.path, "no memory to read a row");
}

/* ---- conversations ---- */

static bool is_role(pst_str role) {
  static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function"};
  for (size_t i = 0; i < PST_ARRAY_LEN(roles); i++)
    if (pst_str_is(role, roles[i])) return true;
  return false;
}

static int check_message(importer *m, const pst_json *message, size_t i, pst_error *err) {
  pst_str role = pst_json_str(pst_json_get(message, "role"));
  pst_json_type content = pst_json_typeof(pst_json_get(message, "content"));
  if (pst_json_typeof(message) != PST_JSON_OBJECT) return FAIL(m, "messages[%zu] is not an object", i);
  if (!is_role(role))
    return FAIL(m, "messages[%zu].role is '%.*s'; it is system, developer, user, assistant or tool", i,
                (int)PST_MIN(role.n, (size_t)40), role.data ? role.data : "");
  if (content == PST_JSON_STRING || content == PST_JSON_ARRAY) return 0;
  if (pst_json_size(pst_json_get(message, "tool_calls")) > 0) return 0;
  return FAIL(m, "messages[%zu].content is not text", i);
}

/* What was asked: n messages. */
static int write_input(importer *m, const pst_json *messages, size_t n, const pst_json *tools, pst_error *err) {
  pst_json_writer w = pst_json_writer_on(&m->input, false);
  size_t i = 0;
  pst_json_begin_object(&w);
  pst_json_key(&w, "messages");
  pst_json_begin_array(&w);
  for (pst_json_iter it = pst_json_iterate(messages); i < n && pst_json_next(&it); i++) {
    int code = check_message(m, it.value, i, err);
    if (code) return code;
    pst_json_put_value(&w, it.value);
  }
  pst_json_end_array(&w);
  if (pst_json_size(tools)) {
    pst_json_key(&w, "tools");
    pst_json_put_value(&w, tools);
  }
  pst_json_end_object(&w);
  return i ? 0 : FAIL(m, "there is no message before the answer");
}

static void write_output(importer *m, pst_str text, const pst_json *tool_calls) {
  pst_json_writer w = pst_json_writer_on(&m->output, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "choices");
  pst_json_begin_array(&w);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "index", 0);
  pst_json_member_str(&w, "text", text);
  if (pst_json_size(tool_calls)) {
    pst_json_key(&w, "tool_calls");
    pst_json_put_value(&w, tool_calls);
  }
  pst_json_member_cstr(&w, "finish", "stop");
  pst_json_end_object(&w);
  pst_json_end_array(&w);
  pst_json_end_object(&w);
}

/* An assistant's message as the answer. */
static int write_answer(importer *m, const pst_json *message, const char *what, pst_error *err) {
  const pst_json *calls = pst_json_get(message, "tool_calls");
  if (!pst_str_is(pst_json_str(pst_json_get(message, "role")), "assistant"))
    return FAIL(m, "%s is not the assistant's; the last message is the answer to learn", what);
  pst_buf_clear(&m->text);
  if (!pst_data_message_text(message, &m->text)) return FAIL(m, "%s has parts that are no text", what);
  if (pst_buf_status(&m->text)) return no_memory(m, err);
  if (m->text.n == 0 && pst_json_size(calls) == 0) return FAIL(m, "%s is empty", what);
  write_output(m, pst_buf_str(&m->text), calls);
  return 0;
}

static int read_openai(importer *m, const pst_json *root, pst_error *err) {
  const pst_json *messages = pst_json_get(root, "messages");
  size_t n = pst_json_size(messages);
  if (pst_json_typeof(messages) != PST_JSON_ARRAY || n < 2)
    return FAIL(m, "\"messages\" must be a list of at least a user's and an assistant's message");
  int code = write_input(m, messages, n - 1, pst_json_get(root, "tools"), err);
  char what[48];
  (void)snprintf(what, sizeof what, "messages[%zu]", n - 1);
  return code ? code : write_answer(m, pst_json_at(messages, n - 1), what, err);
}

/* Request and response beside each other, or flat; each may be wrapped in "body", as batch files do. */
static int read_chat(importer *m, const pst_json *root, pst_error *err) {
  const pst_json *request = pst_json_get(root, "request"), *response = pst_json_get(root, "response");
  if (!request) request = root;
  if (!response) response = root;
  if (pst_json_get(request, "body")) request = pst_json_get(request, "body");
  if (pst_json_get(response, "body")) response = pst_json_get(response, "body");
  const pst_json *messages = pst_json_get(request, "messages");
  const pst_json *answer = pst_json_get(pst_json_at(pst_json_get(response, "choices"), 0), "message");
  if (pst_json_typeof(messages) != PST_JSON_ARRAY) return FAIL(m, "the request has no \"messages\"");
  if (!answer) return FAIL(m, "the response has no choices[0].message");
  int64_t created = pst_json_int(pst_json_get(response, "created"), 0);
  if (created > 0 && created < INT64_MAX / 1000) m->time_ms = created * 1000;
  for (size_t i = 1; i < PST_ARRAY_LEN(SUBJECT_FIELDS) && !m->subject.n; i++)
    m->subject = pst_json_str(pst_json_get(request, SUBJECT_FIELDS[i]));
  int code = write_input(m, messages, SIZE_MAX, pst_json_get(request, "tools"), err);
  return code ? code : write_answer(m, answer, "choices[0].message", err);
}

static const char *role_of_turn(pst_str from) {
  static const char *const names[][2] = {{"human", "user"},          {"user", "user"},         {"gpt", "assistant"},
                                         {"assistant", "assistant"}, {"chatgpt", "assistant"}, {"system", "system"}};
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++)
    if (pst_str_is(from, names[i][0])) return names[i][1];
  return NULL;
}

static void put_message(pst_json_writer *w, const char *role, pst_str content) {
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "role", role);
  pst_json_member_str(w, "content", content);
  pst_json_end_object(w);
}

static int read_sharegpt(importer *m, const pst_json *root, pst_error *err) {
  const pst_json *turns = pst_json_get(root, "conversations");
  pst_str system = pst_json_str(pst_json_get(root, "system")), answer = {NULL, 0};
  size_t n = pst_json_size(turns), i = 0;
  if (pst_json_typeof(turns) != PST_JSON_ARRAY || n < 2)
    return FAIL(m, "\"conversations\" must be a list of at least two turns");
  pst_json_writer w = pst_json_writer_on(&m->input, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "messages");
  pst_json_begin_array(&w);
  if (system.n) put_message(&w, "system", system);
  for (pst_json_iter it = pst_json_iterate(turns); pst_json_next(&it); i++) {
    pst_str from = pst_json_str(pst_json_get(it.value, "from"));
    const char *role = role_of_turn(from);
    const pst_json *value = pst_json_get(it.value, "value");
    if (!role)
      return FAIL(m, "conversations[%zu].from is '%.*s'; it is system, human or gpt", i,
                  (int)PST_MIN(from.n, (size_t)40), from.data ? from.data : "");
    if (pst_json_typeof(value) != PST_JSON_STRING) return FAIL(m, "conversations[%zu].value is not text", i);
    if (i + 1 < n)
      put_message(&w, role, pst_json_str(value));
    else if (strcmp(role, "assistant") != 0 || pst_json_str(value).n == 0)
      return FAIL(m, "the last turn is not an answer of gpt");
    answer = pst_json_str(value);
  }
  pst_json_end_array(&w);
  pst_json_end_object(&w);
  write_output(m, answer, NULL);
  return 0;
}

/* ---- texts with answers ---- */

static void write_pair(importer *m, pst_str system, pst_str text) {
  pst_json_writer w = pst_json_writer_on(&m->input, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "messages");
  pst_json_begin_array(&w);
  if (system.n) put_message(&w, "system", system);
  put_message(&w, "user", text);
  pst_json_end_array(&w);
  pst_json_end_object(&w);
}

static const pst_json *find_field(const pst_json *root, const char *named, const char *const *names, size_t n) {
  if (named) return pst_json_get(root, named);
  const pst_json *found = NULL;
  for (size_t i = 0; i < n && !found; i++) found = pst_json_get(root, names[i]);
  return found;
}

static int read_pair(importer *m, const pst_json *root, pst_error *err) {
  const pst_data_import_options *o = m->options;
  const pst_json *text = find_field(root, o->text_field, TEXT_FIELDS, PST_ARRAY_LEN(TEXT_FIELDS));
  const pst_json *answer = find_field(root, o->answer_field, ANSWER_FIELDS, PST_ARRAY_LEN(ANSWER_FIELDS));
  if (pst_json_typeof(text) != PST_JSON_STRING || pst_json_str(text).n == 0)
    return FAIL(m, "there is no text field; name it with --text");
  if (!answer || pst_json_typeof(answer) == PST_JSON_NULL)
    return FAIL(m, "there is no answer field; name it with --answer");
  pst_buf_clear(&m->text);
  if (pst_json_typeof(answer) == PST_JSON_STRING) {
    pst_buf_append_str(&m->text, pst_json_str(answer));
  } else {
    pst_json_writer w = pst_json_writer_on(&m->text, false);
    pst_json_put_value(&w, answer);
  }
  if (pst_buf_status(&m->text)) return no_memory(m, err);
  if (m->text.n == 0) return FAIL(m, "the answer is empty");
  write_pair(m, pst_json_str(pst_json_get(root, "system")), pst_json_str(text));
  write_output(m, pst_buf_str(&m->text), NULL);
  return 0;
}

static pst_str cell(const importer *m, int column) {
  return column >= 0 && (size_t)column < m->source.n_fields ? m->source.fields[column] : (pst_str){NULL, 0};
}

static int read_csv(importer *m, pst_error *err) {
  pst_str text = cell(m, m->text_column), answer = cell(m, m->answer_column);
  if (text.n == 0) return FAIL(m, "the text is empty");
  if (answer.n == 0) return FAIL(m, "the answer is empty");
  write_pair(m, cell(m, m->system_column), text);
  write_output(m, answer, NULL);
  m->subject = cell(m, m->subject_column);
  return 0;
}

static int find_column(const importer *m, const char *named, const char *const *names, size_t n) {
  for (size_t k = 0; k < (named ? 1 : n); k++)
    for (size_t i = 0; i < m->source.n_fields; i++)
      if (pst_str_is(m->source.fields[i], named ? named : names[k])) return (int)i;
  return -1;
}

static int read_csv_head(importer *m, pst_error *err) {
  static const char *const system[] = {"system"};
  int code = pst_data_source_csv(&m->source, err);
  if (code <= 0) return code;
  m->text_column = find_column(m, m->options->text_field, TEXT_FIELDS, PST_ARRAY_LEN(TEXT_FIELDS));
  m->answer_column = find_column(m, m->options->answer_field, ANSWER_FIELDS, PST_ARRAY_LEN(ANSWER_FIELDS));
  m->system_column = find_column(m, NULL, system, 1);
  m->subject_column = find_column(m, NULL, SUBJECT_FIELDS, PST_ARRAY_LEN(SUBJECT_FIELDS));
  if (m->text_column < 0)
    return FAIL(m,
                "no column is named text, input, prompt, question, message, query or utterance; name it with --text");
  if (m->answer_column < 0)
    return FAIL(m, "no column is named label, answer, target, output, completion, expected, response, intent or "
                   "category; name it with --answer");
  return 0;
}

/* ---- rows ---- */

static pst_data_format guess(const pst_json *root) {
  if (pst_json_get(root, "conversations")) return PST_DATA_SHAREGPT;
  bool messages = pst_json_get(root, "messages") != NULL;
  if (pst_json_get(root, "request") || (messages && (pst_json_get(root, "response") || pst_json_get(root, "choices"))))
    return PST_DATA_CHAT;
  return messages ? PST_DATA_OPENAI : PST_DATA_PAIRS;
}

static int parse_row(importer *m, pst_str text, pst_error *err) {
  pst_error inner = PST_ERROR_INIT;
  int code = pst_json_parse(text.data, text.n, "row", &m->doc, &inner);
  if (code == PST_E_NOMEM) return no_memory(m, err);
  const char *column = strrchr(inner.place, ':');
  if (code) return FAIL(m, "%.400s (character %s of the row)", inner.message, column ? column + 1 : "?");
  const pst_json *root = pst_json_root(m->doc);
  if (pst_json_typeof(root) != PST_JSON_OBJECT) return FAIL(m, "the row is not a JSON object");
  if (m->format == PST_DATA_AUTO) m->format = guess(root);
  for (size_t i = 0; i < PST_ARRAY_LEN(SUBJECT_FIELDS) && !m->subject.n; i++)
    m->subject = pst_json_str(pst_json_get(root, SUBJECT_FIELDS[i]));
  switch (m->format) {
  case PST_DATA_CHAT: return read_chat(m, root, err);
  case PST_DATA_SHAREGPT: return read_sharegpt(m, root, err);
  case PST_DATA_PAIRS: return read_pair(m, root, err);
  default: return read_openai(m, root, err);
  }
}

/* The same line of the same text gives the same id, so that a file that is imported twice is there once. */
static void make_id(importer *m) {
  pst_sha256 sha;
  uint8_t digest[32];
  pst_sha256_init(&sha);
  pst_sha256_update(&sha, m->options->workload.data, m->options->workload.n);
  pst_sha256_update(&sha, &m->n_rows, sizeof m->n_rows);
  pst_sha256_update(&sha, m->input.data, m->input.n);
  pst_sha256_update(&sha, m->output.data, m->output.n);
  pst_sha256_done(&sha, digest);
  memcpy(m->id, "import-", 7);
  pst_hex(digest, 12, m->id + 7);
}

static int fill_row(importer *m, pst_store_request *row, pst_error *err) {
  const pst_data_import_options *o = m->options;
  if (m->subject.n > SUBJECT_BYTES_MAX) return FAIL(m, "the subject has more than %d bytes", SUBJECT_BYTES_MAX);
  if (pst_buf_status(&m->input) || pst_buf_status(&m->output) || pst_buf_status(&m->text)) return no_memory(m, err);
  make_id(m);
  *row = (pst_store_request){.completion_id = pst_str_from(m->id),
                             .time_ms = m->time_ms,
                             .purpose = PST_STORE_PURPOSE_USER,
                             .workload = o->workload,
                             .target = PST_STR("import"),
                             .ttft_us = -1,
                             .total_us = -1,
                             .status = 200,
                             .finish = PST_STR("stop"),
                             .keep = o->consent.keep,
                             .train = o->consent.train,
                             .subject = m->subject.n ? m->subject : o->subject,
                             .input_json = pst_buf_str(&m->input),
                             .output_json = pst_buf_str(&m->output)};
  if (o->consent.retention_days) row->expires_ms = m->now_ms + o->consent.retention_days * INT64_C(86400000);
  if (!row->subject.n) row->subject.data = NULL;
  return 1;
}

static int next_row(void *user, pst_store_request *ret_row, pst_error *err) {
  importer *m = user;
  pst_str text;
  pst_json_free(m->doc);
  m->doc = NULL;
  pst_buf_clear(&m->input);
  pst_buf_clear(&m->output);
  m->subject = (pst_str){NULL, 0};
  m->time_ms = m->now_ms;
  int code = m->source.csv ? pst_data_source_csv(&m->source, err) : pst_data_source_json(&m->source, &text, err);
  if (code <= 0) return code;
  m->n_rows++;
  code = m->source.csv ? read_csv(m, err) : parse_row(m, text, err);
  if (!code && m->options->progress) pst_progress_update(m->options->progress, m->source.n_read);
  return code ? code : fill_row(m, ret_row, err);
}

static int begin(importer *m, pst_error *err) {
  char first = 0;
  size_t n = strlen(m->source.path);
  int code = pst_data_source_peek(&m->source, &first, err);
  if (code) return code;
  if (m->format == PST_DATA_AUTO && n > 4 && !strcmp(m->source.path + n - 4, ".csv")) m->format = PST_DATA_CSV;
  m->source.csv = m->format == PST_DATA_CSV;
  m->source.array = !m->source.csv && first == '[';
  return m->source.csv ? read_csv_head(m, err) : 0;
}

int pst_data_import(pst_store *store, const char *path, const pst_data_import_options *options,
                    pst_data_imported *ret_imported, pst_error *err) {
  importer m = {.options = options, .format = options->format, .now_ms = pst_clock_unix_ms()};
  pst_data_imported done = {0};
  if (options->workload.n == 0 || options->workload.n > 63)
    return pst_error_set(err, PST_E_BAD_INPUT, "workload", "a workload's name has 1 to 63 bytes");
  if (options->consent.keep != PST_STORE_KEEP_CONTENT)
    return pst_error_set(err, PST_E_BAD_INPUT, "keep", "what is imported is content; --keep must allow it");
  int code = pst_data_source_open(path, &m.source, err);
  if (code) return code;
  if (options->progress) options->progress->total = m.source.n_bytes;
  code = begin(&m, err);
  if (!code) code = pst_store_records_import(store, next_row, &m, &done.n_new, &done.n_known, err);
  if (!code && m.n_rows == 0) code = pst_error_set(err, PST_E_NO_DATA, path, "there are no rows in it");
  done.format = m.format;
  if (!code) *ret_imported = done;
  pst_json_free(m.doc);
  pst_buf_done(&m.input);
  pst_buf_done(&m.output);
  pst_buf_done(&m.text);
  pst_data_source_close(&m.source);
  return code;
}
