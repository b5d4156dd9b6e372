/* Past answers: the file that a plan names, and where its texts come from.
 *
 * The file is canonical JSON lines: a header, then one text a line, in ascending order of their bytes, so that the same answers give the same file. Texts and not tokens: the
 * file serves every model, and a person can read what it holds. A text's tokens may differ from those that a model once wrote it in; that costs drafts, never
 * answers. */
#include "gateway/answers.h"

#include <stdlib.h>
#include <string.h>

#define FORMAT 1
/* A token has at least a byte, and an answer three tokens more than its text: so every file fits a corpus. */
#define TEXT_BYTES_MAX ((size_t)2000000)
#define MORE_TOKENS 3
#define FILE_BYTES_MAX ((size_t)64 << 20)

_Static_assert(TEXT_BYTES_MAX <= PST_ENGINE_CORPUS_TOKENS, "every file fits a corpus");

/* ---- building ---- */

static int by_text(const void *a, const void *b) { return pst_str_compare(*(const pst_str *)a, *(const pst_str *)b); }

/* The file's text, appended. */
static int write_answers(const pst_str *answers, size_t n, pst_buf *out, pst_error *err) {
  size_t bytes = n * MORE_TOKENS;
  if (n == 0) return pst_error_set(err, PST_E_BAD_INPUT, "answers", "a file of past answers needs at least one");
  for (size_t i = 0; i < n; i++) bytes += answers[i].n;
  if (bytes > TEXT_BYTES_MAX)
    return pst_error_set(err, PST_E_LIMIT, "answers", "past answers may have %zu bytes together; leave out old ones",
                         TEXT_BYTES_MAX);
  pst_str *sorted = pst_malloc(n * sizeof *sorted);
  if (!sorted) return pst_error_set(err, PST_E_NOMEM, "answers", "no memory for %zu answers", n);
  for (size_t i = 0; i < n; i++) sorted[i] = answers[i];
  qsort(sorted, n, sizeof *sorted, by_text);
  pst_buf_printf(out, "{\"n\":%zu,\"penstock_answers\":%d}\n", n, FORMAT);
  for (size_t i = 0; i < n; i++) {
    pst_json_writer w = pst_json_writer_on(out, false);
    pst_json_put_str(&w, sorted[i]);
    pst_buf_putc(out, '\n');
  }
  pst_free(sorted);
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, "answers", "no memory for %zu answers", n) : 0;
}

int pst_gateway_answers_build(pst_store *store, const pst_str *answers, size_t n, char ret_hash[65], pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  int code = write_answers(answers, n, &text, err);
  if (!code) code = pst_store_file_put(store, text.data, text.n, ret_hash, err);
  pst_buf_done(&text);
  return code;
}

/* ---- recorded answers ---- */

typedef struct collection {
  pst_arena *arena;
  pst_str *answers;
  size_t n, capacity, bytes;
  int64_t *records; /* that gave answers */
  size_t n_records, records_capacity;
} collection;

/* Until there is room no more; 1 ends the walk. */
static int collect(void *user, const pst_store_request *r) {
  collection *c = user;
  pst_json_doc *doc = NULL;
  pst_error why = PST_ERROR_INIT;
  int code = 0;
  if (r->status != 200 || !r->output_json.n) return 0;
  if (pst_json_parse(r->output_json.data, r->output_json.n, "output", &doc, &why)) return 0; /* not written by us */
  const pst_json *choices = pst_json_get(pst_json_root(doc), "choices");
  for (pst_json_iter it = pst_json_iterate(choices); pst_json_next(&it) && !code;) {
    pst_str s = pst_json_str(pst_json_get(it.value, "text"));
    if (s.n == 0) continue;
    if (c->bytes + s.n + MORE_TOKENS > TEXT_BYTES_MAX) {
      code = 1;
      break;
    }
    char *copy = pst_arena_strndup(c->arena, s.data, s.n);
    if (!copy || pst_array_reserve((void **)&c->answers, &c->capacity, c->n + 1, sizeof *c->answers)) {
      code = PST_E_NOMEM;
      break;
    }
    c->answers[c->n++] = (pst_str){copy, s.n};
    c->bytes += s.n + MORE_TOKENS;
    if (c->n_records && c->records[c->n_records - 1] == r->id) continue;
    code = pst_array_reserve((void **)&c->records, &c->records_capacity, c->n_records + 1, sizeof *c->records);
    if (!code) c->records[c->n_records++] = r->id;
  }
  pst_json_free(doc);
  return code;
}

int pst_gateway_answers_collect(pst_store *store, pst_str workload, char ret_hash[65], size_t *ret_n, pst_error *err) {
  collection c = {.arena = pst_arena_create()};
  if (!c.arena) return pst_error_set(err, PST_E_NOMEM, "answers", "no memory for past answers");
  pst_store_request_filter filter = PST_STORE_REQUEST_FILTER_INIT;
  filter.workload = workload;
  filter.purpose = PST_STORE_PURPOSE_USER;
  filter.newest_first = true;
  filter.with_content = true;
  int code = pst_store_request_each(store, &filter, collect, &c, err);
  if (code == PST_E_NOMEM) pst_error_set(err, code, "answers", "no memory for past answers");
  if (code == 1) code = 0;
  if (!code && c.n == 0)
    code = pst_error_set(
        err, PST_E_NO_DATA, "answers",
        "no answer of \"%.*s\" is recorded with its text; let texts be kept (serve --keep content, or the key's --keep) to record them",
        (int)PST_MIN(workload.n, (size_t)80), workload.data);
  pst_buf text = PST_BUF_INIT;
  if (!code) code = write_answers(c.answers, c.n, &text, err);
  if (!code) { /* as a data set, so that the deletion of a record reaches it */
    const pst_store_data_set set = {
        .kind = PST_STR("answers"), .workload = workload, .n_lines = (int64_t)c.n, .created_ms = pst_clock_unix_ms()};
    code = pst_store_data_set_put(store, &set, pst_buf_str(&text), false, c.records, c.n_records, ret_hash, err);
  }
  pst_buf_done(&text);
  if (!code && ret_n) *ret_n = c.n;
  pst_free(c.records);
  pst_free(c.answers);
  pst_arena_free(c.arena);
  return code;
}

/* ---- opening ---- */

static int corrupt(const char *path, size_t line, const char *what, pst_error *err) {
  char place[256];
  (void)snprintf(place, sizeof place, "%.230s:%zu", path, line);
  return pst_error_set(err, PST_E_CORRUPT, place, "the file of past answers %s; make it anew", what);
}

/* What the reading of a file gathers. */
typedef struct reader {
  const pst_engine_model *model;
  bool leading_space;
  int32_t end; /* without leading_space: behind each answer; -1: nothing */
  const char *path;
  size_t n, n_read; /* answers: by the header; so far */
  pst_engine_tokens tokens;
  size_t *lengths;
  pst_buf spelled;
} reader;

static int read_header(reader *r, const pst_json *v, size_t n_bytes, pst_error *err) {
  int64_t format = pst_json_int(pst_json_get(v, "penstock_answers"), -1), n = pst_json_int(pst_json_get(v, "n"), -1);
  if (format > FORMAT)
    return pst_error_set(err, PST_E_UNSUPPORTED, r->path,
                         "the file of past answers has format %lld; this program reads %d", (long long)format, FORMAT);
  if (format != FORMAT || n < 1 || (size_t)n > n_bytes) return corrupt(r->path, 1, "has no valid header", err);
  r->n = (size_t)n;
  r->lengths = pst_calloc(r->n, sizeof *r->lengths);
  return r->lengths ? 0 : pst_error_set(err, PST_E_NOMEM, r->path, "no memory for past answers");
}

/* As the engine will write it (pst_gateway_render_answered): after a space, up to a line end, in PLAIN; up to the template's end token elsewhere. */
static int read_answer(reader *r, pst_str text, pst_error *err) {
  size_t before = r->tokens.n;
  pst_buf_clear(&r->spelled);
  pst_buf_puts(&r->spelled, r->leading_space ? " " : "");
  pst_buf_append_str(&r->spelled, text);
  pst_buf_puts(&r->spelled, r->leading_space ? "\n" : "");
  int code = pst_buf_status(&r->spelled);
  if (!code) code = pst_engine_tokenize(r->model, pst_buf_str(&r->spelled), false, false, &r->tokens, err);
  if (!code && !r->leading_space && r->end >= 0) code = pst_engine_tokens_append(&r->tokens, &r->end, 1, err);
  if (code == PST_E_NOMEM) pst_error_set(err, code, r->path, "no memory for past answers");
  if (!code) r->lengths[r->n_read++] = r->tokens.n - before;
  return code;
}

static int read_lines(reader *r, pst_str text, pst_error *err) {
  int code = 0;
  size_t line = 0;
  for (size_t at = 0; at < text.n && !code; line++) {
    size_t end = PST_MIN(pst_str_find(text, PST_STR("\n"), at), text.n);
    pst_json_doc *doc = NULL;
    if (line > 0 && line > r->n) return corrupt(r->path, line + 1, "is longer than its header says", err);
    code = pst_json_parse(text.data + at, end - at, r->path, &doc, err);
    if (code) return code == PST_E_NOMEM ? code : corrupt(r->path, line + 1, "is not JSON", err);
    const pst_json *v = pst_json_root(doc);
    if (line == 0)
      code = read_header(r, v, text.n, err);
    else if (pst_json_typeof(v) == PST_JSON_STRING)
      code = read_answer(r, pst_json_str(v), err);
    else
      code = corrupt(r->path, line + 1, "has a line that is no text", err);
    pst_json_free(doc);
    at = end + 1;
  }
  if (!code && line != r->n + 1) code = corrupt(r->path, line, "is shorter than its header says", err);
  return code;
}

int pst_gateway_answers_open(pst_store *store, pst_str hash, const pst_engine_model *model, bool leading_space,
                             pst_engine_corpus **ret_corpus, pst_error *err) {
  char *path = NULL, *data = NULL, found[65];
  size_t n = 0;
  int code = pst_store_file_path(store, hash, &path, err);
  if (code == PST_E_NOT_FOUND && pst_store_data_withdrawn(store, hash)) {
    pst_log(PST_LOG_WARN, "event=answers_withdrawn hash=%.*s", (int)hash.n, hash.data);
    *ret_corpus = NULL;
    return 0;
  }
  if (!code) code = pst_file_read(path, FILE_BYTES_MAX, &data, &n, err);
  reader r = {.model = model,
              .leading_space = leading_space,
              .end = leading_space ? -1 : pst_engine_answer_end(model),
              .path = path,
              .spelled = PST_BUF_INIT};
  if (!code) {
    pst_sha256_hex(data, n, found);
    code = pst_str_is(hash, found) ? read_lines(&r, (pst_str){data, n}, err)
                                   : corrupt(path, 1, "does not have the content that its name says", err);
  }
  if (!code) code = pst_engine_corpus_create(r.tokens.ids, r.lengths, r.n_read, ret_corpus, err);
  pst_engine_tokens_done(&r.tokens);
  pst_buf_done(&r.spelled);
  pst_free(r.lengths);
  pst_free(data);
  pst_free(path);
  return code;
}
