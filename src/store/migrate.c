/* The schema, as the list of steps that lead to it.
 *
 * user_version counts the steps taken; a step that has shipped is never edited, a change is a new step at the end. Tables are
 * STRICT, so that a sum that leaves int64 is an error and never a rounded double. Times are Unix ms, money nano-dollars. */
#include "store/db.h"

#define APPLICATION_ID 0x504e5354 /* "PNST" */

static const char *const STEPS[] = {
    /* 1 */
    "CREATE TABLE owners(id INTEGER PRIMARY KEY, pid INTEGER NOT NULL, opened_ms INTEGER NOT NULL) STRICT;"
    "CREATE TABLE api_keys(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, hint TEXT NOT NULL,"
    "  lookup TEXT UNIQUE, salt BLOB, hash BLOB, workload TEXT,"
    "  day_nusd INTEGER NOT NULL CHECK(day_nusd >= -1), month_nusd INTEGER NOT NULL CHECK(month_nusd >= -1),"
    "  total_nusd INTEGER NOT NULL CHECK(total_nusd >= -1), created_ms INTEGER NOT NULL, disabled_ms INTEGER) STRICT;"
    /* state: 0 open, 1 settled, 2 released, 3 settled in full by recovery */
    "CREATE TABLE ledger(id INTEGER PRIMARY KEY AUTOINCREMENT, key_id INTEGER NOT NULL REFERENCES api_keys(id),"
    "  owner INTEGER NOT NULL, time_ms INTEGER NOT NULL, day INTEGER NOT NULL, month INTEGER NOT NULL,"
    "  reserved_nusd INTEGER NOT NULL CHECK(reserved_nusd >= 0), actual_nusd INTEGER CHECK(actual_nusd >= 0),"
    "  state INTEGER NOT NULL DEFAULT 0 CHECK(state BETWEEN 0 AND 3)) STRICT;"
    "CREATE INDEX ledger_open ON ledger(owner, key_id, reserved_nusd) WHERE state = 0;"
    "CREATE INDEX ledger_overrun ON ledger(key_id) WHERE actual_nusd > reserved_nusd;"
    /* settled + open per key and period; period 0 all time (start 0), 1 month (months since 1970), 2 day (days since 1970) */
    "CREATE TABLE budget_counters(key_id INTEGER NOT NULL REFERENCES api_keys(id), period INTEGER NOT NULL,"
    "  start INTEGER NOT NULL, committed_nusd INTEGER NOT NULL, PRIMARY KEY(key_id, period, start)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE requests(id INTEGER PRIMARY KEY AUTOINCREMENT, completion_id TEXT NOT NULL UNIQUE,"
    "  time_ms INTEGER NOT NULL, purpose INTEGER NOT NULL CHECK(purpose BETWEEN 0 AND 4), workload TEXT, plan_hash TEXT,"
    "  key_id INTEGER REFERENCES api_keys(id), target TEXT, model TEXT, prompt_tokens INTEGER NOT NULL,"
    "  cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, ttft_us INTEGER NOT NULL,"
    "  total_us INTEGER NOT NULL, status INTEGER NOT NULL, finish TEXT, cost_nusd INTEGER NOT NULL) STRICT;"
    "CREATE INDEX requests_workload ON requests(workload, time_ms);"
    "CREATE INDEX requests_time ON requests(time_ms);"
    "CREATE TABLE request_content(request_id INTEGER PRIMARY KEY REFERENCES requests(id) ON DELETE CASCADE,"
    "  input_json TEXT, output_json TEXT) STRICT;"
    "CREATE TABLE feedback(id INTEGER PRIMARY KEY AUTOINCREMENT,"
    "  completion_id TEXT NOT NULL REFERENCES requests(completion_id) ON DELETE CASCADE, time_ms INTEGER NOT NULL,"
    "  thumbs INTEGER NOT NULL CHECK(thumbs BETWEEN -1 AND 1), score REAL, correction TEXT, outcome TEXT) STRICT;"
    "CREATE INDEX feedback_completion ON feedback(completion_id);"
    "CREATE TABLE plans(hash TEXT PRIMARY KEY, json TEXT NOT NULL, created_ms INTEGER NOT NULL) STRICT;"
    "CREATE TABLE plan_roles(workload TEXT NOT NULL, role INTEGER NOT NULL, hash TEXT NOT NULL REFERENCES plans(hash),"
    "  PRIMARY KEY(workload, role)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE plan_history(id INTEGER PRIMARY KEY AUTOINCREMENT, time_ms INTEGER NOT NULL, workload TEXT NOT NULL,"
    "  role INTEGER NOT NULL, hash TEXT REFERENCES plans(hash), event TEXT NOT NULL, note TEXT) STRICT;"
    "CREATE INDEX plan_history_workload ON plan_history(workload, role);"
    /* the plans that were in force before, as a stack: rolling back pops */
    "CREATE TABLE plan_past(id INTEGER PRIMARY KEY AUTOINCREMENT, workload TEXT NOT NULL,"
    "  hash TEXT NOT NULL REFERENCES plans(hash)) STRICT;"
    "CREATE INDEX plan_past_workload ON plan_past(workload);"
    "CREATE TABLE evidence(id INTEGER PRIMARY KEY AUTOINCREMENT, plan_hash TEXT NOT NULL REFERENCES plans(hash),"
    "  workload TEXT, time_ms INTEGER NOT NULL, json TEXT NOT NULL) STRICT;"
    "CREATE INDEX evidence_plan ON evidence(plan_hash);"
    "CREATE TABLE runs(id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, workload TEXT, params TEXT NOT NULL,"
    "  state INTEGER NOT NULL DEFAULT 0 CHECK(state BETWEEN 0 AND 3), result TEXT, created_ms INTEGER NOT NULL,"
    "  updated_ms INTEGER NOT NULL) STRICT;"
    "CREATE INDEX runs_kind ON runs(kind, workload);"
    "CREATE TABLE run_rows(seq INTEGER PRIMARY KEY AUTOINCREMENT, run_id INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,"
    "  key TEXT, json TEXT NOT NULL) STRICT;"
    "CREATE INDEX run_rows_run ON run_rows(run_id);"
    "CREATE UNIQUE INDEX run_rows_key ON run_rows(run_id, key) WHERE key IS NOT NULL;"
    "CREATE TABLE jobs(id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, params TEXT NOT NULL,"
    "  state INTEGER NOT NULL DEFAULT 0 CHECK(state BETWEEN 0 AND 4), cancel_wanted INTEGER NOT NULL DEFAULT 0,"
    "  progress REAL NOT NULL DEFAULT 0, message TEXT, result TEXT, attempts INTEGER NOT NULL DEFAULT 0,"
    "  created_ms INTEGER NOT NULL, started_ms INTEGER, ended_ms INTEGER, owner INTEGER) STRICT;"
    "CREATE INDEX jobs_state ON jobs(state, id);"
    "CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE prices(provider TEXT NOT NULL, model TEXT NOT NULL, input INTEGER NOT NULL CHECK(input >= 0),"
    "  cached_input INTEGER NOT NULL CHECK(cached_input >= -1), output INTEGER NOT NULL CHECK(output >= 0),"
    "  PRIMARY KEY(provider, model)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE answers(scope TEXT NOT NULL, key TEXT NOT NULL, answer TEXT NOT NULL, meta TEXT,"
    "  time_ms INTEGER NOT NULL, PRIMARY KEY(scope, key)) STRICT;",
    /* uploads: files that clients sent, for jobs */
    "CREATE TABLE uploads(id INTEGER PRIMARY KEY AUTOINCREMENT, key_id INTEGER REFERENCES api_keys(id),"
    "  name TEXT NOT NULL, purpose TEXT NOT NULL, hash TEXT NOT NULL, bytes INTEGER NOT NULL,"
    "  created_ms INTEGER NOT NULL) STRICT;"
    "CREATE INDEX uploads_hash ON uploads(hash);",
    /* consent of keys (keep NULL: the server's) and requests, data sets with their lineage, guarded items */
    "ALTER TABLE api_keys ADD COLUMN keep INTEGER CHECK(keep BETWEEN -1 AND 1);"
    "ALTER TABLE api_keys ADD COLUMN train INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE api_keys ADD COLUMN retention_days INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE requests ADD COLUMN keep INTEGER NOT NULL DEFAULT 0 CHECK(keep BETWEEN 0 AND 1);"
    "ALTER TABLE requests ADD COLUMN train INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE requests ADD COLUMN imported INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE requests ADD COLUMN expires_ms INTEGER;"
    "ALTER TABLE requests ADD COLUMN subject TEXT;"
    "UPDATE requests SET keep = 1 WHERE id IN (SELECT request_id FROM request_content);"
    "CREATE INDEX requests_subject ON requests(subject) WHERE subject IS NOT NULL;"
    "CREATE INDEX requests_expiry ON requests(expires_ms) WHERE expires_ms IS NOT NULL;"
    "ALTER TABLE feedback ADD COLUMN retried INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE feedback ADD COLUMN abandoned INTEGER NOT NULL DEFAULT 0;"
    /* state: 0 whole, 1 withdrawn */
    "CREATE TABLE data_sets(id INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,"
    "  workload TEXT, by_line INTEGER NOT NULL, n_lines INTEGER NOT NULL, params TEXT, report TEXT,"
    "  created_ms INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0 CHECK(state BETWEEN 0 AND 1),"
    "  replaced_by TEXT) STRICT;"
    "CREATE TABLE data_set_records(set_id INTEGER NOT NULL REFERENCES data_sets(id) ON DELETE CASCADE,"
    "  line INTEGER NOT NULL, record_id INTEGER NOT NULL REFERENCES requests(id), PRIMARY KEY(set_id, line))"
    "  STRICT, WITHOUT ROWID;"
    "CREATE INDEX data_set_records_record ON data_set_records(record_id);"
    "CREATE TABLE data_set_uses(set_id INTEGER NOT NULL REFERENCES data_sets(id), kind TEXT NOT NULL, name TEXT NOT NULL,"
    "  time_ms INTEGER NOT NULL, stale INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(set_id, kind, name)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE guards(id INTEGER PRIMARY KEY, workload TEXT NOT NULL, fingerprint TEXT NOT NULL,"
    "  UNIQUE(workload, fingerprint)) STRICT;"
    "CREATE TABLE guarded_items(guard_id INTEGER NOT NULL REFERENCES guards(id), item TEXT NOT NULL,"
    "  part INTEGER NOT NULL, words BLOB NOT NULL, PRIMARY KEY(guard_id, item)) STRICT, WITHOUT ROWID;",
    /* LoRA adapters: what file, for which base, made of which data by which run */
    ("CREATE TABLE adapters(name TEXT PRIMARY KEY, file TEXT NOT NULL, base TEXT NOT NULL, base_sha256 TEXT NOT NULL,"
     "  workload TEXT, data TEXT, run TEXT, rank INTEGER NOT NULL, bytes INTEGER NOT NULL, created_ms INTEGER NOT NULL) STRICT;"),
    /* answers that may be given again: keys that lead to the content of records, and go with it */
    "CREATE TABLE answer_cache(id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,"
    "  request_id INTEGER NOT NULL REFERENCES request_content(request_id) ON DELETE CASCADE,"
    "  workload TEXT NOT NULL, used_ms INTEGER NOT NULL) STRICT;"
    "CREATE INDEX answer_cache_request ON answer_cache(request_id);"
    "CREATE INDEX answer_cache_used ON answer_cache(workload, used_ms);",
};

static int pragma_int(pst_store_conn *conn, const char *sql, int64_t *ret_value, pst_error *err) {
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(conn->db, sql, -1, &stmt, NULL);
  if (rc == SQLITE_OK) rc = sqlite3_step(stmt);
  int code = 0;
  if (rc == SQLITE_ROW)
    *ret_value = sqlite3_column_int64(stmt, 0);
  else
    code = pst_store_sql_error(conn, rc, "opening the database", err);
  sqlite3_finalize(stmt);
  return code;
}

static int execute(pst_store_conn *conn, const char *sql, pst_error *err) {
  int rc = sqlite3_exec(conn->db, sql, NULL, NULL, NULL);
  return rc == SQLITE_OK ? 0 : pst_store_sql_error(conn, rc, "preparing the database", err);
}

/* How many steps the file has seen; refuses files that are not ours or newer than this program. */
static int version_of(pst_store_conn *conn, int64_t *ret_version, pst_error *err) {
  int64_t application = 0, version = 0, n_objects = 0;
  int code = pragma_int(conn, "PRAGMA application_id", &application, err);
  if (!code) code = pragma_int(conn, "PRAGMA user_version", &version, err);
  if (!code) code = pragma_int(conn, "SELECT count(*) FROM sqlite_schema", &n_objects, err);
  if (code) return code;
  if (application != APPLICATION_ID && (application != 0 || version != 0 || n_objects != 0))
    return pst_error_set(
        err, PST_E_CORRUPT, conn->store->path,
        "this database belongs to another program; choose another data directory with --home or move it away");
  if (version < 0 || (version == 0 && n_objects != 0))
    return pst_error_set(err, PST_E_CORRUPT, conn->store->path, "the database has no valid version; restore a copy");
  if (version > (int64_t)PST_ARRAY_LEN(STEPS))
    return pst_error_set(err, PST_E_UNSUPPORTED, conn->store->path,
                         "written by a newer Penstock (schema %lld, this program knows %d); use that one",
                         (long long)version, (int)PST_ARRAY_LEN(STEPS));
  *ret_version = version;
  return 0;
}

int pst_store_migrate(pst_store_conn *conn, pst_error *err) {
  int64_t version = 0;
  int code = execute(conn, "BEGIN", err); /* one view of the file, whoever else prepares it meanwhile */
  if (!code) code = version_of(conn, &version, err);
  if (!sqlite3_get_autocommit(conn->db)) (void)sqlite3_exec(conn->db, "ROLLBACK", NULL, NULL, NULL);
  if (code || version == (int64_t)PST_ARRAY_LEN(STEPS)) return code;
  code = execute(conn, "BEGIN IMMEDIATE", err);
  if (code) return code;
  code = version_of(conn, &version, err); /* again: another process may have been faster */
  char pragma[64];
  for (; !code && version < (int64_t)PST_ARRAY_LEN(STEPS); version++) code = execute(conn, STEPS[version], err);
  if (!code) {
    (void)snprintf(pragma, sizeof pragma, "PRAGMA application_id=%d", APPLICATION_ID);
    code = execute(conn, pragma, err);
  }
  if (!code) {
    (void)snprintf(pragma, sizeof pragma, "PRAGMA user_version=%d", (int)PST_ARRAY_LEN(STEPS));
    code = execute(conn, pragma, err);
  }
  if (!code) code = execute(conn, "COMMIT", err);
  if (code && !sqlite3_get_autocommit(conn->db)) (void)sqlite3_exec(conn->db, "ROLLBACK", NULL, NULL, NULL);
  return code;
}
