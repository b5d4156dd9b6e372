/* Records of requests, their content where it is kept, and feedback on them.
 *
 * Owns three tables and their filters. Records are queued: a server must not wait for a disk to write its books, and the ledger, not
 * this table, is what money depends on. Content stands in a table of its own so that walks over the books do not read it. */
#include "store/db.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *const PURPOSES[PST_STORE_PURPOSE_COUNT] = {"user", "shadow", "eval", "search", "teacher"};

const char *pst_store_purpose_name(pst_store_purpose purpose) {
  return (unsigned)purpose < PST_STORE_PURPOSE_COUNT ? PURPOSES[purpose] : "unknown";
}

/* ---- put ---- */

int pst_store_request_insert(pst_store_conn *conn, const pst_store_request *r, int64_t *ret_changes, pst_error *err) {
  bool content = r->keep == PST_STORE_KEEP_CONTENT;
  int64_t n = 0;
  if (ret_changes) *ret_changes = 0;
  if (r->keep == PST_STORE_KEEP_NOTHING) return 0;
  int code = pst_store_sql_run(
      conn, &n,
      "INSERT INTO requests(completion_id, time_ms, purpose, workload, plan_hash, key_id, target, model,"
      " prompt_tokens, cached_tokens, completion_tokens, ttft_us, total_us, status, finish, cost_nusd,"
      " keep, train, imported, expires_ms, subject)"
      " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)"
      " ON CONFLICT(completion_id) DO NOTHING",
      err, "siissnssiiiiiisiiiins", r->completion_id, r->time_ms, (int64_t)r->purpose, r->workload, r->plan_hash,
      r->key_id, r->target, r->model, r->prompt_tokens, r->cached_tokens, r->completion_tokens, r->ttft_us, r->total_us,
      (int64_t)r->status, r->finish, r->cost_nusd, (int64_t)content, (int64_t)(content && r->train),
      (int64_t)r->imported, r->expires_ms, r->subject);
  if (!code && n == 0 && !ret_changes)
    return pst_error_set(err, PST_E_EXISTS, conn->store->path, "the completion id \"%.*s\" is in the books already",
                         (int)PST_MIN(r->completion_id.n, (size_t)100), r->completion_id.data);
  if (ret_changes) *ret_changes = n;
  if (code || n == 0) return code;
  int64_t id = sqlite3_last_insert_rowid(conn->db);
  content = content && (r->input_json.data || r->output_json.data);
  if (content)
    code = pst_store_sql_run(conn, NULL,
                             "INSERT INTO request_content(request_id, input_json, output_json) VALUES(?1, ?2, ?3)", err,
                             "iss", id, r->input_json, r->output_json);
  return code || !r->reuse.key.data ? code : pst_store_cache_note(conn, r, content ? id : 0, err);
}

static int put_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  return pst_store_request_insert(conn, arg, NULL, err);
}

int pst_store_request_put(pst_store *store, const pst_store_request *request, pst_error *err) {
  if (request->completion_id.n == 0 || (unsigned)request->purpose >= PST_STORE_PURPOSE_COUNT)
    return pst_error_set(err, PST_E_BAD_INPUT, store->path, "a record needs a completion id and a purpose");
  if (request->keep == PST_STORE_KEEP_NOTHING) return 0;
  const pst_str *texts[] = {&request->completion_id, &request->workload,      &request->plan_hash,
                            &request->target,        &request->model,         &request->finish,
                            &request->input_json,    &request->output_json,   &request->subject,
                            &request->reuse.key,     &request->reuse.examples};
  size_t bytes = sizeof(pst_store_request);
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) bytes += texts[i]->n;
  pst_store_request *copy = pst_malloc(bytes);
  if (!copy) return pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  char *cursor = (char *)(copy + 1);
  *copy = *request;
  copy->completion_id = pst_store_pack(&cursor, request->completion_id);
  copy->workload = pst_store_pack(&cursor, request->workload);
  copy->plan_hash = pst_store_pack(&cursor, request->plan_hash);
  copy->target = pst_store_pack(&cursor, request->target);
  copy->model = pst_store_pack(&cursor, request->model);
  copy->finish = pst_store_pack(&cursor, request->finish);
  copy->input_json = pst_store_pack(&cursor, request->input_json);
  copy->output_json = pst_store_pack(&cursor, request->output_json);
  copy->subject = pst_store_pack(&cursor, request->subject);
  copy->reuse.key = pst_store_pack(&cursor, request->reuse.key);
  copy->reuse.examples = pst_store_pack(&cursor, request->reuse.examples);
  return pst_store_write_later(store, false, put_apply, copy, err);
}

/* ---- filters: SQL built from the fields that are set, so that the planner sees which index fits ---- */

static void filter_where(const pst_store_request_filter *f, pst_buf *sql) {
  pst_buf_puts(sql, " WHERE r.id > :after");
  if (f->workload.data) pst_buf_puts(sql, " AND r.workload = :workload");
  if (f->completion_id.data) pst_buf_puts(sql, " AND r.completion_id = :completion");
  if (f->purpose >= 0) pst_buf_puts(sql, " AND r.purpose = :purpose");
  if (f->key_id > 0) pst_buf_puts(sql, " AND r.key_id = :key");
  if (f->key_id == 0) pst_buf_puts(sql, " AND r.key_id IS NULL");
  if (f->since_ms) pst_buf_puts(sql, " AND r.time_ms >= :since");
  if (f->until_ms) pst_buf_puts(sql, " AND r.time_ms < :until");
  if (f->subject.data) pst_buf_puts(sql, " AND r.subject = :subject");
  if (f->origin != PST_STORE_ANY_ORIGIN)
    pst_buf_puts(sql, f->origin == PST_STORE_IMPORTED ? " AND r.imported = 1" : " AND r.imported = 0");
  if (f->answered) pst_buf_puts(sql, " AND r.status = 200 AND r.keep = 1");
  if (f->lasting)
    pst_buf_puts(sql,
                 " AND (r.expires_ms IS NULL OR r.expires_ms - :now > min(604800000, (r.expires_ms - r.time_ms) / 4))");
  else if (f->answered)
    pst_buf_puts(sql, " AND (r.expires_ms IS NULL OR r.expires_ms > :now)");
  if (f->train) pst_buf_puts(sql, " AND r.train = 1");
}

static int bind_named_int(sqlite3_stmt *stmt, const char *name, int64_t value) {
  int index = sqlite3_bind_parameter_index(stmt, name);
  return index ? sqlite3_bind_int64(stmt, index, value) : SQLITE_OK;
}

static int bind_named_str(sqlite3_stmt *stmt, const char *name, pst_str value) {
  int index = sqlite3_bind_parameter_index(stmt, name);
  return index ? sqlite3_bind_text64(stmt, index, value.data, value.n, SQLITE_STATIC, SQLITE_UTF8) : SQLITE_OK;
}

static int filter_begin(pst_store_conn *conn, const pst_store_request_filter *f, const pst_buf *sql,
                        sqlite3_stmt **ret_stmt, pst_error *err) {
  if (pst_buf_status(sql)) return pst_error_set(err, PST_E_NOMEM, conn->store->path, "out of memory");
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(conn->db, pst_buf_text(sql), -1, &stmt, NULL);
  if (rc == SQLITE_OK) rc = bind_named_int(stmt, ":after", f->after_id);
  if (rc == SQLITE_OK) rc = bind_named_str(stmt, ":workload", f->workload);
  if (rc == SQLITE_OK) rc = bind_named_str(stmt, ":completion", f->completion_id);
  if (rc == SQLITE_OK) rc = bind_named_int(stmt, ":purpose", f->purpose);
  if (rc == SQLITE_OK) rc = bind_named_int(stmt, ":key", f->key_id);
  if (rc == SQLITE_OK) rc = bind_named_int(stmt, ":since", f->since_ms);
  if (rc == SQLITE_OK) rc = bind_named_int(stmt, ":until", f->until_ms);
  if (rc == SQLITE_OK) rc = bind_named_int(stmt, ":limit", f->limit);
  if (rc == SQLITE_OK) rc = bind_named_str(stmt, ":subject", f->subject);
  if (rc == SQLITE_OK) rc = bind_named_int(stmt, ":now", pst_clock_unix_ms());
  if (rc != SQLITE_OK) {
    int code = pst_store_sql_error(conn, rc, "reading requests", err);
    (void)sqlite3_finalize(stmt);
    return code;
  }
  *ret_stmt = stmt;
  return 0;
}

typedef struct request_walk {
  int (*fn)(void *user, const pst_store_request *request);
  void *user;
} request_walk;

static int request_row(sqlite3_stmt *stmt, void *context) {
  const request_walk *walk = context;
  pst_store_request r = {
      .id = sqlite3_column_int64(stmt, 0),
      .completion_id = pst_store_column_str(stmt, 1),
      .time_ms = sqlite3_column_int64(stmt, 2),
      .purpose = (pst_store_purpose)sqlite3_column_int(stmt, 3),
      .workload = pst_store_column_str(stmt, 4),
      .plan_hash = pst_store_column_str(stmt, 5),
      .key_id = sqlite3_column_int64(stmt, 6),
      .target = pst_store_column_str(stmt, 7),
      .model = pst_store_column_str(stmt, 8),
      .prompt_tokens = sqlite3_column_int64(stmt, 9),
      .cached_tokens = sqlite3_column_int64(stmt, 10),
      .completion_tokens = sqlite3_column_int64(stmt, 11),
      .ttft_us = sqlite3_column_int64(stmt, 12),
      .total_us = sqlite3_column_int64(stmt, 13),
      .status = sqlite3_column_int(stmt, 14),
      .finish = pst_store_column_str(stmt, 15),
      .cost_nusd = sqlite3_column_int64(stmt, 16),
      .keep = (pst_store_keep)sqlite3_column_int(stmt, 17),
      .train = sqlite3_column_int(stmt, 18) != 0,
      .imported = sqlite3_column_int(stmt, 19) != 0,
      .expires_ms = sqlite3_column_int64(stmt, 20),
      .subject = pst_store_column_str(stmt, 21),
      .input_json = pst_store_column_str(stmt, 22),
      .output_json = pst_store_column_str(stmt, 23),
  };
  return walk->fn(walk->user, &r);
}

int pst_store_request_each(pst_store *store, const pst_store_request_filter *filter,
                           int (*fn)(void *user, const pst_store_request *request), void *user, pst_error *err) {
  pst_buf sql = PST_BUF_INIT;
  pst_buf_puts(
      &sql,
      "SELECT r.id, r.completion_id, r.time_ms, r.purpose, r.workload, r.plan_hash, r.key_id, r.target, r.model,"
      " r.prompt_tokens, r.cached_tokens, r.completion_tokens, r.ttft_us, r.total_us, r.status, r.finish, r.cost_nusd,"
      " r.keep, r.train, r.imported, r.expires_ms, r.subject");
  if (filter->with_content)
    pst_buf_puts(&sql,
                 ", c.input_json, c.output_json FROM requests r LEFT JOIN request_content c ON c.request_id = r.id");
  else
    pst_buf_puts(&sql, ", NULL, NULL FROM requests r");
  filter_where(filter, &sql);
  pst_buf_puts(&sql, filter->newest_first ? " ORDER BY r.id DESC" : " ORDER BY r.id");
  if (filter->limit > 0) pst_buf_puts(&sql, " LIMIT :limit");
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (!code) {
    code = filter_begin(conn, filter, &sql, &stmt, err);
    request_walk walk = {fn, user};
    code = pst_store_sql_each(conn, code, stmt, request_row, &walk, err);
  }
  pst_store_reader_give(store, conn);
  pst_buf_done(&sql);
  return code;
}

static int usage_row(sqlite3_stmt *stmt, void *context) {
  pst_store_usage *u = context;
  *u = (pst_store_usage){sqlite3_column_int64(stmt, 0), sqlite3_column_int64(stmt, 1), sqlite3_column_int64(stmt, 2),
                         sqlite3_column_int64(stmt, 3), sqlite3_column_int64(stmt, 4), sqlite3_column_int64(stmt, 5)};
  return 0;
}

int pst_store_usage_get(pst_store *store, const pst_store_request_filter *filter, pst_store_usage *ret_usage,
                        pst_error *err) {
  pst_buf sql = PST_BUF_INIT;
  pst_buf_puts(
      &sql, "SELECT count(*), coalesce(sum(r.status >= 400), 0), coalesce(sum(r.prompt_tokens), 0),"
            " coalesce(sum(r.cached_tokens), 0), coalesce(sum(r.completion_tokens), 0), coalesce(sum(r.cost_nusd), 0)"
            " FROM requests r");
  filter_where(filter, &sql);
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  pst_store_usage usage = {0};
  int code = pst_store_reader_take(store, &conn, err);
  if (!code) {
    code = filter_begin(conn, filter, &sql, &stmt, err);
    code = pst_store_sql_each(conn, code, stmt, usage_row, &usage, err);
  }
  pst_store_reader_give(store, conn);
  pst_buf_done(&sql);
  if (!code) *ret_usage = usage;
  return code;
}

typedef struct forget_call {
  int64_t before_ms, n;
} forget_call;

static int forget_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  forget_call *c = arg;
  return pst_store_sql_run(
      conn, &c->n, "DELETE FROM request_content WHERE request_id IN (SELECT id FROM requests WHERE time_ms < ?1)", err,
      "i", c->before_ms);
}

int pst_store_request_forget_content(pst_store *store, int64_t before_ms, int64_t *ret_n, pst_error *err) {
  forget_call c = {before_ms, 0};
  int code = pst_store_write_now(store, false, forget_apply, &c, err);
  if (!code && ret_n) *ret_n = c.n;
  return code;
}

/* ---- feedback ---- */

static int feedback_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const pst_store_feedback *f = arg;
  int64_t keep = PST_STORE_KEEP_METADATA;
  int code =
      pst_store_sql_int(conn, &keep, "SELECT keep FROM requests WHERE completion_id = ?1", err, "s", f->completion_id);
  if (!code && f->correction.data && keep != PST_STORE_KEEP_CONTENT)
    return pst_error_set(err, PST_E_UNSUPPORTED, "correction",
                         "the texts of this answer were not to be kept, so a correction of it cannot be kept either");
  if (!code)
    code = pst_store_sql_run(
        conn, NULL,
        "INSERT INTO feedback(completion_id, time_ms, thumbs, correction, outcome, retried, abandoned)"
        " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        err, "siissii", f->completion_id, f->time_ms, (int64_t)f->thumbs, f->correction, f->outcome,
        (int64_t)f->retried, (int64_t)f->abandoned);
  if (!code && f->has_score)
    code = pst_store_sql_run(conn, NULL, "UPDATE feedback SET score = ?2 WHERE id = ?1", err, "id",
                             (int64_t)sqlite3_last_insert_rowid(conn->db), f->score);
  if (code == PST_E_NOT_FOUND)
    return pst_error_set(err, code, "id", "no completion with the id \"%.*s\" is known",
                         (int)PST_MIN(f->completion_id.n, (size_t)100), f->completion_id.data);
  return code;
}

int pst_store_feedback_put(pst_store *store, const pst_store_feedback *feedback, pst_error *err) {
  if (feedback->completion_id.n == 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "id", "feedback needs the id of a completion");
  if (feedback->thumbs < -1 || feedback->thumbs > 1)
    return pst_error_set(err, PST_E_BAD_INPUT, "thumbs", "thumbs are 1 (up), -1 (down) or 0 (not given)");
  if (feedback->has_score && !isfinite(feedback->score))
    return pst_error_set(err, PST_E_BAD_INPUT, "score", "a score is a finite number");
  if (feedback->thumbs == 0 && !feedback->has_score && !feedback->correction.data && !feedback->outcome.data &&
      !feedback->retried && !feedback->abandoned)
    return pst_error_set(err, PST_E_BAD_INPUT, NULL,
                         "feedback needs thumbs, a score, a correction, a retry, an abandonment or an outcome");
  pst_store_feedback copy = *feedback;
  return pst_store_write_now(store, false, feedback_apply, &copy, err);
}

typedef struct feedback_walk {
  int (*fn)(void *user, const pst_store_feedback *feedback);
  void *user;
} feedback_walk;

static int feedback_row(sqlite3_stmt *stmt, void *context) {
  const feedback_walk *walk = context;
  pst_store_feedback f = {
      .id = sqlite3_column_int64(stmt, 0),
      .completion_id = pst_store_column_str(stmt, 1),
      .time_ms = sqlite3_column_int64(stmt, 2),
      .thumbs = sqlite3_column_int(stmt, 3),
      .has_score = sqlite3_column_type(stmt, 4) != SQLITE_NULL,
      .score = sqlite3_column_double(stmt, 4),
      .correction = pst_store_column_str(stmt, 5),
      .outcome = pst_store_column_str(stmt, 6),
      .retried = sqlite3_column_int(stmt, 7) != 0,
      .abandoned = sqlite3_column_int(stmt, 8) != 0,
  };
  return walk->fn(walk->user, &f);
}

int pst_store_feedback_each(pst_store *store, pst_str completion_id, int64_t after_id,
                            int (*fn)(void *user, const pst_store_feedback *feedback), void *user, pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  if (completion_id.data)
    code = pst_store_sql_begin(conn,
                               "SELECT id, completion_id, time_ms, thumbs, score, correction, outcome, retried,"
                               " abandoned FROM feedback"
                               " WHERE id > ?1 AND completion_id = ?2 ORDER BY id",
                               &stmt, err, "is", after_id, completion_id);
  else
    code = pst_store_sql_begin(conn,
                               "SELECT id, completion_id, time_ms, thumbs, score, correction, outcome, retried,"
                               " abandoned FROM feedback"
                               " WHERE id > ?1 ORDER BY id",
                               &stmt, err, "i", after_id);
  feedback_walk walk = {fn, user};
  code = pst_store_sql_each(conn, code, stmt, feedback_row, &walk, err);
  pst_store_reader_give(store, conn);
  return code;
}
