/* Records as data: what consent allows, bringing rows in, and getting them out again for good.
 *
 * Owns the rules of consent and the two ways in which a record ends: erased because its subject asked for it, or forgotten because its time is up. Both
 * reach the data sets made of the record (data_sets.c) in the same transaction. Deleted bytes are overwritten (secure_delete), and the
 * write-ahead log, which holds older states of pages, is emptied afterwards: a setting says so from the erasure's own commit until it is done, however many prunes that takes. */
#include "store/db.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

/* What an erasure owes behind its commit. The value is another for each erasure, so that what is done for one is not taken for the next one's. */
#define OWED_LOG "erased_bytes_in_log"
#define OWED_CHECKPOINTS "checkpoints_of_erased"

/* ---- consent ---- */

static const char *const KEEPS[] = {"nothing", "metadata", "content"};

const char *pst_store_keep_name(pst_store_keep keep) {
  int i = (int)keep - (int)PST_STORE_KEEP_NOTHING;
  return i >= 0 && (size_t)i < PST_ARRAY_LEN(KEEPS) ? KEEPS[i] : "unknown";
}

bool pst_store_keep_from(pst_str name, pst_store_keep *ret_keep) {
  for (int i = 0; i < (int)PST_ARRAY_LEN(KEEPS); i++) {
    if (!pst_str_is(name, KEEPS[i])) continue;
    *ret_keep = (pst_store_keep)(i + (int)PST_STORE_KEEP_NOTHING);
    return true;
  }
  return false;
}

pst_store_consent pst_store_consent_lower(pst_store_consent a, pst_store_consent b) {
  pst_store_consent c = {.keep = PST_MIN(a.keep, b.keep)};
  c.train = a.train && b.train && c.keep == PST_STORE_KEEP_CONTENT;
  c.retention_days = PST_MIN(a.retention_days, b.retention_days);
  if (c.retention_days == 0) c.retention_days = PST_MAX(a.retention_days, b.retention_days);
  return c;
}

/* ---- import ---- */

typedef struct import_call {
  int (*next)(void *user, pst_store_request *ret_row, pst_error *err);
  void *user;
  int64_t n_new, n_known;
} import_call;

static int import_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  import_call *c = arg;
  for (;;) {
    pst_store_request row;
    memset(&row, 0, sizeof row);
    int code = c->next(c->user, &row, err);
    if (code <= 0) return code;
    int64_t n = 0;
    row.imported = true;
    code = pst_store_request_insert(conn, &row, &n, err);
    if (code) return code;
    c->n_new += n;
    c->n_known += 1 - n;
  }
}

int pst_store_records_import(pst_store *store, int (*next)(void *user, pst_store_request *ret_row, pst_error *err),
                             void *user, int64_t *ret_n_new, int64_t *ret_n_known, pst_error *err) {
  import_call c = {.next = next, .user = user};
  int code = pst_store_write_now(store, false, import_apply, &c, err);
  if (code) return code;
  *ret_n_new = c.n_new;
  *ret_n_known = c.n_known;
  return 0;
}

/* ---- counts ---- */

typedef struct count_walk {
  int (*fn)(void *user, const pst_store_record_counts *counts);
  void *user;
} count_walk;

static int count_row(sqlite3_stmt *stmt, void *context) {
  const count_walk *walk = context;
  pst_store_record_counts c = {.workload = pst_store_column_str(stmt, 0),
                               .n_records = sqlite3_column_int64(stmt, 1),
                               .n_imported = sqlite3_column_int64(stmt, 2),
                               .n_content = sqlite3_column_int64(stmt, 3),
                               .n_train = sqlite3_column_int64(stmt, 4),
                               .n_subjects = sqlite3_column_int64(stmt, 5),
                               .n_expiring = sqlite3_column_int64(stmt, 6),
                               .oldest_ms = sqlite3_column_int64(stmt, 7),
                               .newest_ms = sqlite3_column_int64(stmt, 8),
                               .n_feedback = sqlite3_column_int64(stmt, 9),
                               .n_up = sqlite3_column_int64(stmt, 10),
                               .n_down = sqlite3_column_int64(stmt, 11),
                               .n_corrected = sqlite3_column_int64(stmt, 12)};
  return walk->fn(walk->user, &c);
}

int pst_store_records_count(pst_store *store, int (*fn)(void *user, const pst_store_record_counts *counts), void *user,
                            pst_error *err) {
  count_walk walk = {fn, user};
  return pst_store_read_each(
      store, count_row, &walk, err,
      "WITH f AS (SELECT r.workload AS w, count(*) AS n, sum(b.thumbs > 0) AS up, sum(b.thumbs < 0) AS down,"
      "   count(b.correction) AS corrected FROM feedback b JOIN requests r ON r.completion_id = b.completion_id"
      "   GROUP BY r.workload)"
      " SELECT r.workload, count(*), sum(r.imported), sum(r.keep), sum(r.train), count(DISTINCT r.subject),"
      "   count(r.expires_ms), min(r.time_ms), max(r.time_ms), coalesce(f.n, 0), coalesce(f.up, 0),"
      "   coalesce(f.down, 0), coalesce(f.corrected, 0)"
      " FROM requests r LEFT JOIN f ON f.w IS r.workload WHERE r.purpose = 0 AND r.status = 200"
      " GROUP BY r.workload ORDER BY r.workload",
      "");
}

/* ---- the end of a record ---- */

typedef struct erase_call {
  pst_store *store;
  pst_str subject, completion_id, imported; /* the one that has data says which records; imported: of that workload */
  int64_t now_ms;
  bool announce; /* nothing ends yet: the sets that will take the place of others are noted */
  bool again;    /* out: one was not */
  pst_store_erasure erasure;
} erase_call;

void pst_store_erasure_done(pst_store_erasure *erasure) {
  pst_free(erasure->sets);
  pst_free(erasure->uses);
  pst_arena_free(erasure->arena);
  memset(erasure, 0, sizeof *erasure);
}

/* Temp table erased(id), empty. It lies in memory, and only the writer's connection sees it. */
static int begin_erasure(pst_store_conn *conn, erase_call *c, pst_error *err) {
  c->erasure.n_sets = c->erasure.n_uses = 0;
  int code = pst_store_sql_run(conn, NULL, "CREATE TEMP TABLE IF NOT EXISTS erased(id INTEGER PRIMARY KEY)", err, "");
  return code ? code : pst_store_sql_run(conn, NULL, "DELETE FROM erased", err, "");
}

static int owe(pst_store_conn *conn, const char *what, pst_error *err) {
  return pst_store_sql_run(conn, NULL,
                           "INSERT INTO settings(name, value) VALUES(?1, hex(randomblob(8)))"
                           " ON CONFLICT DO UPDATE SET value = excluded.value",
                           err, "s", pst_str_from(what));
}

static int end_erasure(pst_store_conn *conn, erase_call *c, pst_error *err) {
  int code = pst_store_sql_int(conn, &c->erasure.n_records, "SELECT count(*) FROM erased", err, "");
  if (code || !c->erasure.n_records) return code;
  code = pst_store_data_sets_withdraw(conn, c->store, c->announce, c->now_ms, &c->erasure, err);
  c->again = code == PST_E_BUSY;
  if (code || c->announce) return code;
  code = owe(conn, OWED_LOG, err);
  if (!code && c->erasure.n_sets) code = owe(conn, OWED_CHECKPOINTS, err);
  if (!code && c->erasure.n_sets) code = pst_store_cache_clear(conn, err); /* plans answer without them from now on */
  if (!code) /* nothing says to whose questions these are answers */
    code =
        pst_store_sql_run(conn, NULL, "DELETE FROM answers WHERE scope GLOB '" PST_STORE_SCOPE_TEACHER "*'", err, "");
  return code;
}

static int erase_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  erase_call *c = arg;
  const struct {
    pst_str key;
    const char *sql, *place, *what;
  } ways[] = {
      {c->subject, "INSERT INTO erased SELECT id FROM requests WHERE subject = ?1", "subject", "record of"},
      {c->completion_id, "INSERT INTO erased SELECT id FROM requests WHERE completion_id = ?1", "id",
       "record with the id"},
      {c->imported, "INSERT INTO erased SELECT id FROM requests WHERE workload = ?1 AND imported = 1", "imported",
       "imported record under"},
  };
  size_t way = c->subject.data ? 0 : c->completion_id.data ? 1 : 2;
  pst_str key = ways[way].key;
  int code = begin_erasure(conn, c, err);
  if (!code) code = pst_store_sql_run(conn, NULL, ways[way].sql, err, "s", key);
  if (!code) code = end_erasure(conn, c, err);
  if (!code && c->erasure.n_records == 0)
    return pst_error_set(err, PST_E_NOT_FOUND, ways[way].place, "there is no %s \"%.*s\"", ways[way].what,
                         (int)PST_MIN(key.n, (size_t)100), key.data);
  if (code || c->announce) return code;
  return pst_store_sql_run(conn, NULL, "DELETE FROM requests WHERE id IN (SELECT id FROM erased)", err, "");
}

static int prune_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  erase_call *c = arg;
  static const char *const steps[] = {
      "DELETE FROM requests WHERE imported = 1 AND id IN (SELECT id FROM erased)",
      "DELETE FROM request_content WHERE request_id IN (SELECT id FROM erased)",
      "DELETE FROM feedback WHERE completion_id IN (SELECT completion_id FROM requests JOIN erased USING (id))",
      "UPDATE requests SET subject = NULL, keep = 0, train = 0, expires_ms = NULL WHERE id IN (SELECT id FROM erased)"};
  int code = begin_erasure(conn, c, err);
  if (!code)
    code = pst_store_sql_run(conn, NULL, "INSERT INTO erased SELECT id FROM requests WHERE expires_ms <= ?1", err, "i",
                             c->now_ms);
  if (!code) code = end_erasure(conn, c, err);
  for (size_t i = 0; i < PST_ARRAY_LEN(steps) && !code && c->erasure.n_records && !c->announce; i++)
    code = pst_store_sql_run(conn, NULL, steps[i], err, "");
  return code;
}

/* Training that was interrupted left its numbers in HOME/tune, and not of all of them is it noted what they were made of: what is there begins anew. Training that goes on
 * writes its own again; it is noted, where records made it, and found by pst_store_data_sets_clean. */
static bool remove_checkpoints(const pst_store *store) {
  bool removed = true;
  char *path = pst_path_join(store->home, "tune");
  if (path) pst_dir_sweep(path);
  DIR *dir = path ? opendir(path) : NULL;
  for (struct dirent *e; dir && (e = readdir(dir));) {
    const char *ending = strrchr(e->d_name, '.');
    if (!ending || strcmp(ending, ".checkpoint") != 0) continue;
    if (!unlinkat(dirfd(dir), e->d_name, 0) || errno == ENOENT) continue;
    removed = false;
    pst_log(PST_LOG_ERROR, "event=checkpoint_not_removed path=%s/%s error=\"%s\"", path, e->d_name, strerror(errno));
  }
  if (dir) (void)closedir(dir);
  pst_free(path);
  return removed;
}

typedef struct debt {
  const char *what;
  char *value; /* NULL: nothing is owed */
} debt;

static int pay_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const debt *d = arg;
  return pst_store_sql_run(conn, NULL, "DELETE FROM settings WHERE name = ?1 AND value = ?2", err, "ss",
                           pst_str_from(d->what), pst_str_from(d->value));
}

static int find_debt(pst_store *store, debt *d, pst_error *err) {
  int code = pst_store_setting_get(store, pst_str_from(d->what), &d->value, NULL);
  if (code == PST_E_NOT_FOUND) return 0;
  return code ? pst_error_set(err, code, store->path, "cannot read what erasures left to do") : 0;
}

/* Empties the write-ahead log, in which the pages stand as they were. False: another process reads, and a later prune empties it. Nobody can write while this waits. */
static bool empty_log(pst_store *store) {
  enum { WAIT_MS = 1000 };
  pst_store_conn *conn = NULL;
  if (pst_store_conn_open(store, true, &conn, NULL)) return false;
  (void)sqlite3_busy_timeout(conn->db, WAIT_MS);
  int rc = sqlite3_wal_checkpoint_v2(conn->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
  pst_store_conn_close(conn);
  if (rc != SQLITE_OK) pst_log(PST_LOG_WARN, "event=erased_bytes_in_log reason=\"another process reads the store\"");
  return rc == SQLITE_OK;
}

/* What this erasure, or one before it that was killed or found somebody reading, left to do. */
static int settle(pst_store *store, bool *ret_in_log, pst_error *err) {
  debt log = {OWED_LOG, NULL}, checkpoints = {OWED_CHECKPOINTS, NULL};
  int code = pst_store_data_sets_clean(store, err);
  if (!code) code = find_debt(store, &checkpoints, err);
  if (!code && checkpoints.value && remove_checkpoints(store))
    code = pst_store_write_now(store, false, pay_apply, &checkpoints, err);
  if (!code) code = find_debt(store, &log, err);
  if (!code && log.value) {
    *ret_in_log = !empty_log(store);
    if (!*ret_in_log) code = pst_store_write_now(store, false, pay_apply, &log, err);
  }
  pst_free(checkpoints.value);
  pst_free(log.value);
  return code;
}

static int erase(erase_call *c, int (*apply)(pst_store_conn *conn, void *arg, pst_error *err),
                 pst_store_erasure *ret_erasure, pst_error *err) {
  enum { MOST_TRIES = 20 }; /* others make and withdraw sets between the two writes */
  int code = 0;
  c->again = true;
  c->erasure.arena = pst_arena_create();
  if (!c->erasure.arena) return pst_error_set(err, PST_E_NOMEM, c->store->path, "out of memory");
  for (int i = 0; i < MOST_TRIES && c->again; i++) {
    c->announce = true;
    c->again = false;
    code = pst_store_write_now(c->store, false, apply, c, err);
    c->announce = false;
    if (!code) code = pst_store_write_now(c->store, false, apply, c, err);
  }
  if (!code) code = settle(c->store, &c->erasure.in_log, err);
  if (code)
    pst_store_erasure_done(&c->erasure);
  else
    *ret_erasure = c->erasure;
  return code;
}

int pst_store_records_erase(pst_store *store, pst_str subject, pst_str completion_id, int64_t now_ms,
                            pst_store_erasure *ret_erasure, pst_error *err) {
  if ((subject.n == 0) == (completion_id.n == 0))
    return pst_error_set(err, PST_E_BAD_INPUT, "delete", "say whose records: a subject, or the id of one");
  erase_call c = {.store = store, .subject = subject, .completion_id = completion_id, .now_ms = now_ms};
  if (subject.n == 0) c.subject.data = NULL;
  return erase(&c, erase_apply, ret_erasure, err);
}

int pst_store_records_unimport(pst_store *store, pst_str workload, int64_t now_ms, pst_store_erasure *ret_erasure,
                               pst_error *err) {
  erase_call c = {.store = store, .imported = workload, .now_ms = now_ms};
  return erase(&c, erase_apply, ret_erasure, err);
}

/* Looks first, so that a server that has nothing to forget takes no write lock. */
int pst_store_records_prune(pst_store *store, int64_t now_ms, pst_store_erasure *ret_erasure, pst_error *err) {
  pst_store_conn *conn = NULL;
  int64_t any = 0;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code =
      pst_store_sql_int(conn, &any, "SELECT EXISTS(SELECT 1 FROM requests WHERE expires_ms <= ?1)", err, "i", now_ms);
  pst_store_reader_give(store, conn);
  erase_call c = {.store = store, .now_ms = now_ms};
  if (!code && any) return erase(&c, prune_apply, ret_erasure, err);
  if (!code) code = settle(store, &c.erasure.in_log, err);
  if (!code) *ret_erasure = c.erasure;
  return code;
}
