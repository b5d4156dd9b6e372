/* Jobs: long work asked for in one process and done in another.
 *
 * The queue is a table. A worker takes a job by writing its owner number into the row; when the owner's lock file says that its process
 * is gone, the job goes back into the queue (open.c decides who is gone). Knows nothing of what jobs do. */
#include "store/db.h"

#include <inttypes.h>
#include <string.h>

static int no_such_job(int64_t job_id, pst_error *err) {
  return pst_error_set(err, PST_E_NOT_FOUND, "job", "there is no job number %" PRId64, job_id);
}

typedef struct submit_call {
  pst_str kind, params;
  int64_t now_ms;
  int64_t id; /* out */
} submit_call;

static int submit_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  submit_call *c = arg;
  int code = pst_store_sql_run(conn, NULL, "INSERT INTO jobs(kind, params, created_ms) VALUES(?1, ?2, ?3)", err, "ssi",
                               c->kind, c->params, c->now_ms);
  if (!code) c->id = sqlite3_last_insert_rowid(conn->db);
  return code;
}

int pst_store_job_submit(pst_store *store, pst_str kind, pst_str params, int64_t now_ms, int64_t *ret_id,
                         pst_error *err) {
  if (kind.n == 0) return pst_error_set(err, PST_E_BAD_INPUT, "kind", "a job has a kind");
  pst_buf canonical = PST_BUF_INIT;
  submit_call c = {.kind = kind, .now_ms = now_ms};
  int code = pst_store_canonical(params, "params", &canonical, err);
  if (!code) {
    c.params = pst_buf_str(&canonical);
    code = pst_store_write_now(store, false, submit_apply, &c, err);
  }
  pst_buf_done(&canonical);
  if (!code) *ret_id = c.id;
  return code;
}

/* ---- the worker's side ---- */

int pst_store_jobs_recover(pst_store_conn *conn, int64_t owner, pst_error *err) {
  return pst_store_sql_run(conn, NULL, "UPDATE jobs SET state = ?2, owner = NULL WHERE owner = ?1 AND state = ?3", err,
                           "iii", owner, (int64_t)PST_STORE_JOB_QUEUED, (int64_t)PST_STORE_JOB_RUNNING);
}

typedef struct take_call {
  int64_t max_attempts, now_ms;
  int64_t id; /* out; 0: none */
} take_call;

static int take_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  take_call *c = arg;
  int code = pst_store_owners_recover(conn, c->now_ms, err);
  if (!code)
    code = pst_store_sql_run(
        conn, NULL,
        "UPDATE jobs SET state = ?1, ended_ms = ?2,"
        " message = 'given up after ' || attempts || ' tries; the last one ended at: ' || coalesce(message, 'its start')"
        " WHERE state = ?3 AND attempts >= ?4 AND cancel_wanted = 0",
        err, "iiii", (int64_t)PST_STORE_JOB_FAILED, c->now_ms, (int64_t)PST_STORE_JOB_QUEUED, c->max_attempts);
  if (!code)
    code = pst_store_sql_run(conn, NULL,
                             "UPDATE jobs SET state = ?1, ended_ms = ?2 WHERE state = ?3 AND cancel_wanted = 1", err,
                             "iii", (int64_t)PST_STORE_JOB_CANCELLED, c->now_ms, (int64_t)PST_STORE_JOB_QUEUED);
  if (!code)
    code = pst_store_sql_int(conn, &c->id, "SELECT coalesce(min(id), 0) FROM jobs WHERE state = ?1", err, "i",
                             (int64_t)PST_STORE_JOB_QUEUED);
  if (code || c->id == 0) return code;
  return pst_store_sql_run(
      conn, NULL,
      "UPDATE jobs SET state = ?2, owner = ?3, attempts = attempts + 1, started_ms = ?4, progress = 0 WHERE id = ?1",
      err, "iiii", c->id, (int64_t)PST_STORE_JOB_RUNNING, conn->store->owner, c->now_ms);
}

static int note_open(sqlite3_stmt *stmt, void *context) {
  *(bool *)context = sqlite3_column_int(stmt, 0) != 0;
  return 0;
}

/* A worker asks twice a second: it must not take the write lock from those who keep books for that. */
int pst_store_job_take(pst_store *store, int64_t max_attempts, int64_t now_ms, int64_t *ret_id, pst_error *err) {
  take_call c = {PST_MAX(INT64_C(1), max_attempts), now_ms, 0};
  bool any = false;
  int code = pst_store_read_each(store, note_open, &any, err, "SELECT EXISTS(SELECT 1 FROM jobs WHERE state <= ?1)",
                                 "i", (int64_t)PST_STORE_JOB_RUNNING);
  if (!code && any) code = pst_store_write_now(store, false, take_apply, &c, err);
  if (!code) *ret_id = c.id;
  return code;
}

typedef struct report_call {
  int64_t job_id, now_ms;
  double progress;
  pst_str message, result;
  pst_store_job_state state;
  bool cancel_wanted; /* out */
} report_call;

static int report_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  report_call *c = arg;
  int64_t n = 0, wanted = 0;
  int code = pst_store_sql_run(conn, &n, "UPDATE jobs SET progress = ?2, message = ?3 WHERE id = ?1 AND state = ?4",
                               err, "idsi", c->job_id, c->progress, c->message, (int64_t)PST_STORE_JOB_RUNNING);
  if (!code && n == 0) return no_such_job(c->job_id, err);
  if (!code)
    code = pst_store_sql_int(conn, &wanted, "SELECT cancel_wanted FROM jobs WHERE id = ?1", err, "i", c->job_id);
  c->cancel_wanted = wanted != 0;
  return code;
}

int pst_store_job_report(pst_store *store, int64_t job_id, double progress, pst_str message, bool *ret_cancel,
                         pst_error *err) {
  double clamped = progress > 0 ? PST_MIN(progress, 1.0) : 0.0; /* NaN becomes 0 */
  report_call c = {.job_id = job_id, .progress = clamped, .message = message};
  int code = pst_store_write_now(store, false, report_apply, &c, err);
  if (!code && ret_cancel) *ret_cancel = c.cancel_wanted;
  return code;
}

typedef struct release_call {
  int64_t job_id;
  bool counts;
  pst_str message;
} release_call;

static int release_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const release_call *c = arg;
  return pst_store_sql_run(conn, NULL,
                           "UPDATE jobs SET state = ?2, owner = NULL, attempts = attempts - ?3, message = ?4"
                           " WHERE id = ?1 AND state = ?5",
                           err, "iiisi", c->job_id, (int64_t)PST_STORE_JOB_QUEUED, (int64_t)!c->counts, c->message,
                           (int64_t)PST_STORE_JOB_RUNNING);
}

int pst_store_job_release(pst_store *store, int64_t job_id, bool counts, pst_str message, pst_error *err) {
  release_call c = {job_id, counts, message};
  return pst_store_write_now(store, false, release_apply, &c, err);
}

static int end_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const report_call *c = arg;
  int64_t n = 0;
  int code = pst_store_sql_run(conn, &n,
                               "UPDATE jobs SET state = ?2, message = ?3, result = ?4, ended_ms = ?5, owner = NULL,"
                               " progress = CASE WHEN ?2 = ?6 THEN 1.0 ELSE progress END WHERE id = ?1",
                               err, "iissii", c->job_id, (int64_t)c->state, c->message, c->result, c->now_ms,
                               (int64_t)PST_STORE_JOB_DONE);
  return !code && n == 0 ? no_such_job(c->job_id, err) : code;
}

int pst_store_job_end(pst_store *store, int64_t job_id, pst_store_job_state state, pst_str message, pst_str result,
                      int64_t now_ms, pst_error *err) {
  if (state < PST_STORE_JOB_DONE || state > PST_STORE_JOB_CANCELLED)
    return pst_error_set(err, PST_E_BAD_INPUT, "state", "a job ends done, failed or cancelled");
  report_call c = {.job_id = job_id, .now_ms = now_ms, .message = message, .state = state};
  pst_buf canonical = PST_BUF_INIT;
  int code = result.data ? pst_store_canonical(result, "result", &canonical, err) : 0;
  if (!code) {
    if (result.data) c.result = pst_buf_str(&canonical);
    code = pst_store_write_now(store, false, end_apply, &c, err);
  }
  pst_buf_done(&canonical);
  return code;
}

static int cancel_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const report_call *c = arg;
  int64_t n = 0;
  int code = pst_store_sql_run(conn, &n,
                               "UPDATE jobs SET cancel_wanted = CASE WHEN state <= ?3 THEN 1 ELSE cancel_wanted END,"
                               " ended_ms = CASE WHEN state = ?2 THEN ?5 ELSE ended_ms END,"
                               " state = CASE WHEN state = ?2 THEN ?4 ELSE state END WHERE id = ?1",
                               err, "iiiii", c->job_id, (int64_t)PST_STORE_JOB_QUEUED, (int64_t)PST_STORE_JOB_RUNNING,
                               (int64_t)PST_STORE_JOB_CANCELLED, c->now_ms);
  return !code && n == 0 ? no_such_job(c->job_id, err) : code;
}

int pst_store_job_cancel(pst_store *store, int64_t job_id, int64_t now_ms, pst_error *err) {
  report_call c = {.job_id = job_id, .now_ms = now_ms};
  return pst_store_write_now(store, false, cancel_apply, &c, err);
}

/* ---- read ---- */

typedef struct job_walk {
  int (*fn)(void *user, const pst_store_job *job);
  void *user;
  int64_t n;
} job_walk;

#define JOB_SELECT                                                                                                       \
  "SELECT id, kind, params, state, cancel_wanted, progress, message, result, attempts, created_ms, started_ms, ended_ms" \
  " FROM jobs "

static int job_row(sqlite3_stmt *stmt, void *context) {
  job_walk *walk = context;
  pst_store_job job = {
      .id = sqlite3_column_int64(stmt, 0),
      .kind = pst_store_column_str(stmt, 1),
      .params = pst_store_column_str(stmt, 2),
      .state = (pst_store_job_state)sqlite3_column_int(stmt, 3),
      .cancel_wanted = sqlite3_column_int(stmt, 4) != 0,
      .progress = sqlite3_column_double(stmt, 5),
      .message = pst_store_column_str(stmt, 6),
      .result = pst_store_column_str(stmt, 7),
      .attempts = sqlite3_column_int64(stmt, 8),
      .created_ms = sqlite3_column_int64(stmt, 9),
      .started_ms = sqlite3_column_int64(stmt, 10),
      .ended_ms = sqlite3_column_int64(stmt, 11),
  };
  walk->n++;
  return walk->fn(walk->user, &job);
}

int pst_store_job_get(pst_store *store, int64_t job_id, int (*fn)(void *user, const pst_store_job *job), void *user,
                      pst_error *err) {
  job_walk walk = {fn, user, 0};
  int code = pst_store_read_each(store, job_row, &walk, err, JOB_SELECT "WHERE id = ?1", "i", job_id);
  return !code && walk.n == 0 ? no_such_job(job_id, err) : code;
}

int pst_store_job_each(pst_store *store, int64_t limit, int (*fn)(void *user, const pst_store_job *job), void *user,
                       pst_error *err) {
  job_walk walk = {fn, user, 0};
  return pst_store_read_each(store, job_row, &walk, err, JOB_SELECT "ORDER BY id DESC LIMIT ?1", "i",
                             limit > 0 ? limit : INT64_C(-1));
}
