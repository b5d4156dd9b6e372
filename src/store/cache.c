/* Answers that are given again: keys that lead to records.
 *
 * Owns one table and no text. The answer is the record's, in request_content, and an entry refers to that row with ON DELETE CASCADE: whatever ends a record's content
 * (an erasure, its expiry, forgetting) ends the entry, and no second copy of what a user wrote or was told has to be found. Entries are written with their record, in one
 * transaction. What a key is made of is the gateway's business. */
#include "store/db.h"

#include <string.h>

/* ---- writing ---- */

/* Where a workload's entries are one too many, those unused for longest go. Walking over them at every write would cost milliseconds for a large cache: keys are hashes, so
 * that their first digits say by chance when it is time, on average once for every sixty-fourth part of the bound. A small cache is exact. */
static bool is_time_to_evict(pst_str key, int64_t max_entries) {
  uint64_t every = (uint64_t)PST_MAX(max_entries, 0) / 64 + 1;
  return pst_hash64(key.data, key.n, 0) % every == 0;
}

static int evict(pst_store_conn *conn, pst_str workload, int64_t max_entries, pst_error *err) {
  return pst_store_sql_run(conn, NULL,
                           "DELETE FROM answer_cache WHERE id IN (SELECT id FROM answer_cache WHERE workload = ?1"
                           " ORDER BY used_ms DESC, id DESC LIMIT -1 OFFSET ?2)",
                           err, "si", workload, PST_MAX(max_entries, 0));
}

int pst_store_cache_note(pst_store_conn *conn, const pst_store_request *r, int64_t request_id, pst_error *err) {
  const pst_store_reuse *reuse = &r->reuse;
  if (reuse->hit)
    return pst_store_sql_run(conn, NULL, "UPDATE answer_cache SET used_ms = max(used_ms, ?2) WHERE key = ?1", err, "si",
                             reuse->key, r->time_ms);
  if (!request_id || !r->output_json.data || !r->workload.data) return 0;
  int64_t n = 0;
  int code =
      pst_store_sql_run(conn, &n,
                        "INSERT INTO answer_cache(key, request_id, workload, used_ms) SELECT ?1, ?2, ?3, ?4"
                        " WHERE NOT EXISTS (SELECT 1 FROM data_sets WHERE hash = ?5 AND state = 1)"
                        " ON CONFLICT(key) DO UPDATE SET request_id = excluded.request_id, used_ms = excluded.used_ms",
                        err, "sisis", reuse->key, request_id, r->workload, r->time_ms, reuse->examples);
  if (code || n == 0 || !is_time_to_evict(reuse->key, reuse->max_entries)) return code;
  return evict(conn, r->workload, reuse->max_entries, err);
}

int pst_store_cache_clear(pst_store_conn *conn, pst_error *err) {
  return pst_store_sql_run(conn, NULL, "DELETE FROM answer_cache", err, "");
}

/* ---- reading ---- */

void pst_store_cached_done(pst_store_cached *answer) {
  pst_free(answer->output_json);
  pst_free(answer->model);
  memset(answer, 0, sizeof *answer);
}

static int read_entry(sqlite3_stmt *stmt, pst_store_cached *a) {
  pst_str output = pst_store_column_str(stmt, 0), model = pst_store_column_str(stmt, 1);
  a->output_json = pst_strndup(output.data ? output.data : "", output.n);
  a->model = pst_strndup(model.data ? model.data : "", model.n);
  a->prompt_tokens = sqlite3_column_int64(stmt, 2);
  a->completion_tokens = sqlite3_column_int64(stmt, 3);
  return a->output_json && a->model ? 0 : PST_E_NOMEM;
}

int pst_store_cache_get(pst_store *store, pst_str key, int64_t since_ms, int64_t now_ms, pst_store_cached *ret_answer,
                        pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  pst_store_cached answer = {0};
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code = pst_store_sql_begin(
      conn,
      "SELECT c.output_json, r.model, r.prompt_tokens, r.completion_tokens FROM answer_cache a"
      " JOIN request_content c ON c.request_id = a.request_id JOIN requests r ON r.id = a.request_id"
      " WHERE a.key = ?1 AND r.time_ms >= ?2 AND coalesce(r.expires_ms > ?3, 1)",
      &stmt, err, "sii", key, since_ms, now_ms);
  int row = code ? code : pst_store_sql_step(conn, stmt, err);
  if (row == 1 && (code = read_entry(stmt, &answer)))
    pst_error_set(err, code, store->path, "out of memory");
  else if (row <= 0)
    code = row ? row : PST_E_NOT_FOUND;
  pst_store_sql_done(conn, stmt);
  pst_store_reader_give(store, conn);
  if (code)
    pst_store_cached_done(&answer);
  else
    *ret_answer = answer;
  return code;
}

int pst_store_cache_count(pst_store *store, pst_str workload, int64_t *ret_n, pst_error *err) {
  pst_store_conn *conn = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code = pst_store_sql_int(conn, ret_n, "SELECT count(*) FROM answer_cache WHERE ?1 IS NULL OR workload = ?1", err, "s",
                           workload);
  pst_store_reader_give(store, conn);
  return code;
}
