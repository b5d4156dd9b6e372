/* Runs: evals, optimizations, calibrations, as a row with parameters and a growing list of measurements.
 *
 * A run that was cut off keeps its rows; whoever asks for the same kind, workload and parameters finds it and goes on. Rows with a key
 * are stored once, so that going on may repeat the last steps. What a row means is the caller's business. */
#include "store/db.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/* ---- create, find ---- */

typedef struct create_call {
  pst_str kind, workload, params;
  int64_t now_ms;
  int64_t id; /* out */
} create_call;

static int create_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  create_call *c = arg;
  int code = pst_store_sql_run(
      conn, NULL, "INSERT INTO runs(kind, workload, params, created_ms, updated_ms) VALUES(?1, ?2, ?3, ?4, ?4)", err,
      "sssi", c->kind, c->workload, c->params, c->now_ms);
  if (!code) c->id = sqlite3_last_insert_rowid(conn->db);
  return code;
}

int pst_store_run_create(pst_store *store, pst_str kind, pst_str workload, pst_str params, int64_t now_ms,
                         int64_t *ret_id, pst_error *err) {
  if (kind.n == 0) return pst_error_set(err, PST_E_BAD_INPUT, "kind", "a run has a kind");
  pst_buf canonical = PST_BUF_INIT;
  create_call c = {.kind = kind, .workload = workload, .now_ms = now_ms};
  int code = pst_store_canonical(params, "params", &canonical, err);
  if (!code) {
    c.params = pst_buf_str(&canonical);
    code = pst_store_write_now(store, false, create_apply, &c, err);
  }
  pst_buf_done(&canonical);
  if (!code) *ret_id = c.id;
  return code;
}

int pst_store_run_find(pst_store *store, pst_str kind, pst_str workload, pst_str params, pst_store_run_state state,
                       int64_t *ret_id, pst_error *err) {
  pst_buf canonical = PST_BUF_INIT;
  pst_store_conn *conn = NULL;
  int code = pst_store_canonical(params, "params", &canonical, err);
  if (!code) code = pst_store_reader_take(store, &conn, err);
  if (!code)
    code = pst_store_sql_int(conn, ret_id,
                             "SELECT id FROM runs WHERE kind = ?1 AND workload IS ?2 AND params = ?3 AND state = ?4"
                             " ORDER BY id DESC LIMIT 1",
                             err, "sssi", kind, workload, pst_buf_str(&canonical), (int64_t)state);
  pst_store_reader_give(store, conn);
  pst_buf_done(&canonical);
  return code;
}

/* ---- read ---- */

typedef struct run_walk {
  int (*fn)(void *user, const pst_store_run *run);
  void *user;
  int64_t n;
} run_walk;

#define RUN_SELECT                                                            \
  "SELECT id, kind, workload, params, state, result, created_ms, updated_ms," \
  " (SELECT count(*) FROM run_rows WHERE run_id = runs.id) FROM runs "

static int run_row(sqlite3_stmt *stmt, void *context) {
  run_walk *walk = context;
  pst_store_run run = {
      .id = sqlite3_column_int64(stmt, 0),
      .kind = pst_store_column_str(stmt, 1),
      .workload = pst_store_column_str(stmt, 2),
      .params = pst_store_column_str(stmt, 3),
      .state = (pst_store_run_state)sqlite3_column_int(stmt, 4),
      .result = pst_store_column_str(stmt, 5),
      .created_ms = sqlite3_column_int64(stmt, 6),
      .updated_ms = sqlite3_column_int64(stmt, 7),
      .n_rows = sqlite3_column_int64(stmt, 8),
  };
  walk->n++;
  return walk->fn(walk->user, &run);
}

static int no_such_run(int64_t run_id, pst_error *err) {
  return pst_error_set(err, PST_E_NOT_FOUND, "run", "there is no run number %" PRId64, run_id);
}

int pst_store_run_get(pst_store *store, int64_t run_id, int (*fn)(void *user, const pst_store_run *run), void *user,
                      pst_error *err) {
  run_walk walk = {fn, user, 0};
  int code = pst_store_read_each(store, run_row, &walk, err, RUN_SELECT "WHERE id = ?1", "i", run_id);
  return !code && walk.n == 0 ? no_such_run(run_id, err) : code;
}

int pst_store_run_each(pst_store *store, pst_str kind, pst_str workload, int64_t limit,
                       int (*fn)(void *user, const pst_store_run *run), void *user, pst_error *err) {
  run_walk walk = {fn, user, 0};
  return pst_store_read_each(store, run_row, &walk, err,
                             RUN_SELECT "WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR workload = ?2)"
                                        " ORDER BY id DESC LIMIT ?3",
                             "ssi", kind, workload, limit > 0 ? limit : INT64_C(-1));
}

/* ---- rows ---- */

typedef struct append_call {
  int64_t run_id;
  pst_str key, json;
} append_call;

static int append_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const append_call *c = arg;
  int code = pst_store_sql_run(conn, NULL,
                               "INSERT INTO run_rows(run_id, key, json) VALUES(?1, ?2, ?3)"
                               " ON CONFLICT(run_id, key) WHERE key IS NOT NULL DO NOTHING",
                               err, "iss", c->run_id, c->key, c->json);
  return code == PST_E_NOT_FOUND ? no_such_run(c->run_id, err) : code;
}

int pst_store_run_append(pst_store *store, int64_t run_id, pst_str key, pst_str json, bool durable, pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(json.data ? json.data : "", json.n, "row", &doc, err);
  if (code) return code;
  pst_json_free(doc);
  if (durable) {
    append_call c = {run_id, key, json};
    return pst_store_write_now(store, false, append_apply, &c, err);
  }
  append_call *c = pst_malloc(sizeof *c + key.n + json.n);
  if (!c) return pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  char *cursor = (char *)(c + 1);
  c->run_id = run_id;
  c->key = pst_store_pack(&cursor, key);
  c->json = pst_store_pack(&cursor, json);
  return pst_store_write_later(store, false, append_apply, c, err);
}

typedef struct rows_walk {
  int (*fn)(void *user, int64_t seq, pst_str key, pst_str json);
  void *user;
} rows_walk;

static int rows_row(sqlite3_stmt *stmt, void *context) {
  const rows_walk *walk = context;
  return walk->fn(walk->user, sqlite3_column_int64(stmt, 0), pst_store_column_str(stmt, 1),
                  pst_store_column_str(stmt, 2));
}

int pst_store_run_rows(pst_store *store, int64_t run_id, int64_t after_seq,
                       int (*fn)(void *user, int64_t seq, pst_str key, pst_str json), void *user, pst_error *err) {
  rows_walk walk = {fn, user};
  return pst_store_read_each(store, rows_row, &walk, err,
                             "SELECT seq, key, json FROM run_rows WHERE run_id = ?1 AND seq > ?2 ORDER BY seq", "ii",
                             run_id, after_seq);
}

/* ---- end ---- */

typedef struct end_call {
  int64_t run_id, now_ms;
  pst_store_run_state state;
  pst_str result;
} end_call;

static int end_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const end_call *c = arg;
  int64_t n = 0;
  int code = pst_store_sql_run(conn, &n, "UPDATE runs SET state = ?2, result = ?3, updated_ms = ?4 WHERE id = ?1", err,
                               "iisi", c->run_id, (int64_t)c->state, c->result, c->now_ms);
  return !code && n == 0 ? no_such_run(c->run_id, err) : code;
}

int pst_store_run_end(pst_store *store, int64_t run_id, pst_store_run_state state, pst_str result, int64_t now_ms,
                      pst_error *err) {
  end_call c = {run_id, now_ms, state, result};
  pst_buf canonical = PST_BUF_INIT;
  int code = result.data ? pst_store_canonical(result, "result", &canonical, err) : 0;
  if (!code) {
    if (result.data) c.result = pst_buf_str(&canonical);
    code = pst_store_write_now(store, false, end_apply, &c, err);
  }
  pst_buf_done(&canonical);
  return code;
}

/* ---- one at a time ---- */

int pst_store_run_lock_take(pst_store *store, const char *kind, pst_str question, pst_store_run_lock *ret_lock,
                            pst_error *err) {
  pst_store_run_lock lock = PST_STORE_RUN_LOCK_INIT;
  char hash[65];
  pst_sha256_hex(question.data, question.n, hash);
  int n = snprintf(lock.path, sizeof lock.path, "%s/%s-%.16s.lock", store->home, kind, hash);
  if (n < 0 || (size_t)n >= sizeof lock.path)
    return pst_error_set(err, PST_E_LIMIT, "home", "the path of the data directory is too long");
  int code = pst_file_try_lock(lock.path, &lock.fd, err);
  if (code == PST_E_BUSY)
    return pst_error_set(err, code, kind, "another process is at the same work; wait for its end");
  if (!code) *ret_lock = lock;
  return code;
}

void pst_store_run_lock_give(pst_store_run_lock *lock) {
  if (lock->fd < 0) return;
  (void)unlink(lock->path);
  (void)close(lock->fd);
  lock->fd = -1;
}
