/* Statements: prepare once, bind by a letter string, step, map SQLite's codes to ours.
 *
 * Owns the per-connection statement cache. Knows no table. The cache goes by the address of the SQL literal, so that finding a
 * statement costs a few pointer compares; SQL built at run time must not come through here (requests.c prepares its own). */
#include "store/db.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

/* Whether the file (with what SQLite put behind it) cannot grow by another page or two. */
static bool cannot_grow(const char *path) {
  char wal[4096];
  struct stat st;
  struct rlimit limit;
  struct statvfs fs;
  const uint64_t margin = 65536;
  if (statvfs(path, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < margin) return true;
  if (getrlimit(RLIMIT_FSIZE, &limit) || limit.rlim_cur == RLIM_INFINITY) return false;
  if (stat(path, &st) == 0 && (uint64_t)st.st_size + margin > limit.rlim_cur) return true;
  (void)snprintf(wal, sizeof wal, "%s-wal", path);
  return stat(wal, &st) == 0 && (uint64_t)st.st_size + margin > limit.rlim_cur;
}

/* SQLite reports only ENOSPC as a full disk, and keeps errno only until its own clean-up: so look at the disk. */
static int code_of_io(const pst_store_conn *conn) {
  switch (sqlite3_system_errno(conn->db)) {
  case ENOSPC:
  case EDQUOT:
  case EFBIG: return PST_E_NO_SPACE;
  case EACCES:
  case EPERM:
  case EROFS: return PST_E_DENIED;
  default: return cannot_grow(conn->store->path) ? PST_E_NO_SPACE : PST_E_IO;
  }
}

static int code_of(const pst_store_conn *conn, int rc) {
  switch (rc) {
  case SQLITE_CONSTRAINT_UNIQUE:
  case SQLITE_CONSTRAINT_PRIMARYKEY:
  case SQLITE_CONSTRAINT_ROWID: return PST_E_EXISTS;
  case SQLITE_CONSTRAINT_FOREIGNKEY: return PST_E_NOT_FOUND;
  default: break;
  }
  switch (rc & 0xff) {
  case SQLITE_OK:
  case SQLITE_ROW:
  case SQLITE_DONE: return 0;
  case SQLITE_BUSY:
  case SQLITE_LOCKED: return PST_E_BUSY;
  case SQLITE_FULL: return PST_E_NO_SPACE;
  case SQLITE_IOERR:
  case SQLITE_CANTOPEN: return code_of_io(conn);
  case SQLITE_CORRUPT:
  case SQLITE_NOTADB: return PST_E_CORRUPT;
  case SQLITE_NOMEM: return PST_E_NOMEM;
  case SQLITE_READONLY:
  case SQLITE_PERM:
  case SQLITE_AUTH: return PST_E_DENIED;
  case SQLITE_TOOBIG: return PST_E_LIMIT;
  case SQLITE_CONSTRAINT: return PST_E_BAD_INPUT;
  default: return PST_E_INTERNAL;
  }
}

int pst_store_sql_error(pst_store_conn *conn, int rc, const char *what, pst_error *err) {
  int code = code_of(conn, rc);
  const char *remedy = "";
  if (code == PST_E_NO_SPACE) remedy = "; make room on the disk and try again";
  if (code == PST_E_BUSY) remedy = "; another process holds the write lock";
  if (code == PST_E_CORRUPT) remedy = "; move the file away to start afresh, or restore a copy";
  return pst_error_set(err, code, conn->store->path, "%s: %s%s", what, sqlite3_errmsg(conn->db), remedy);
}

/* A statement of the cache that is not handed out; evicts in turn when the cache is full. */
static int cached(pst_store_conn *conn, const char *sql, sqlite3_stmt **ret_stmt, pst_error *err) {
  for (int i = 0; i < conn->n_cached; i++) {
    if (conn->cache[i].sql != sql || conn->cache[i].busy) continue;
    conn->cache[i].busy = true;
    *ret_stmt = conn->cache[i].stmt;
    return 0;
  }
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v3(conn->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &stmt, NULL);
  if (rc != SQLITE_OK) return pst_store_sql_error(conn, rc, "reading the database", err);
  if (conn->n_cached < PST_STORE_N_CACHED) {
    conn->cache[conn->n_cached].sql = sql;
    conn->cache[conn->n_cached].stmt = stmt;
    conn->cache[conn->n_cached].busy = true;
    conn->n_cached++;
  }
  *ret_stmt = stmt;
  return 0;
}

static int bind_all(pst_store_conn *conn, sqlite3_stmt *stmt, const char *types, va_list args, pst_error *err) {
  for (int i = 1; types[i - 1]; i++) {
    int rc = SQLITE_OK;
    switch (types[i - 1]) {
    case 'i': rc = sqlite3_bind_int64(stmt, i, va_arg(args, int64_t)); break;
    case 'd': rc = sqlite3_bind_double(stmt, i, va_arg(args, double)); break;
    case 'n': {
      int64_t v = va_arg(args, int64_t);
      rc = v == 0 ? sqlite3_bind_null(stmt, i) : sqlite3_bind_int64(stmt, i, v);
      break;
    }
    case 's': {
      pst_str text = va_arg(args, pst_str);
      if (!pst_utf8_valid(text))
        return pst_error_set(err, PST_E_BAD_INPUT, conn->store->path, "text to be stored is not valid UTF-8");
      rc = text.data ? sqlite3_bind_text64(stmt, i, text.data, text.n, SQLITE_STATIC, SQLITE_UTF8)
                     : sqlite3_bind_null(stmt, i);
      break;
    }
    case 'b': {
      const void *data = va_arg(args, const void *);
      size_t n = va_arg(args, size_t);
      rc = sqlite3_bind_blob64(stmt, i, data, n, SQLITE_STATIC);
      break;
    }
    default: return pst_error_set(err, PST_E_INTERNAL, conn->store->path, "unknown bind type '%c'", types[i - 1]);
    }
    if (rc != SQLITE_OK) return pst_store_sql_error(conn, rc, "binding a value", err);
  }
  return 0;
}

static int begin(pst_store_conn *conn, const char *sql, sqlite3_stmt **ret_stmt, pst_error *err, const char *types,
                 va_list args) {
  sqlite3_stmt *stmt = NULL;
  int code = cached(conn, sql, &stmt, err);
  if (code) return code;
  code = bind_all(conn, stmt, types, args, err);
  if (code) {
    pst_store_sql_done(conn, stmt);
    return code;
  }
  *ret_stmt = stmt;
  return 0;
}

int pst_store_sql_begin(pst_store_conn *conn, const char *sql, sqlite3_stmt **ret_stmt, pst_error *err,
                        const char *types, ...) {
  va_list args;
  va_start(args, types);
  int code = begin(conn, sql, ret_stmt, err, types, args);
  va_end(args);
  return code;
}

int pst_store_sql_step(pst_store_conn *conn, sqlite3_stmt *stmt, pst_error *err) {
  int rc = sqlite3_step(stmt);
  if (rc == SQLITE_ROW) return 1;
  if (rc == SQLITE_DONE) return 0;
  return pst_store_sql_error(conn, rc, "using the database", err);
}

void pst_store_sql_done(pst_store_conn *conn, sqlite3_stmt *stmt) {
  if (!stmt) return;
  for (int i = 0; i < conn->n_cached; i++) {
    if (conn->cache[i].stmt != stmt) continue;
    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
    conn->cache[i].busy = false;
    return;
  }
  sqlite3_finalize(stmt);
}

int pst_store_sql_run(pst_store_conn *conn, int64_t *ret_changes, const char *sql, pst_error *err, const char *types,
                      ...) {
  sqlite3_stmt *stmt = NULL;
  va_list args;
  va_start(args, types);
  int code = begin(conn, sql, &stmt, err, types, args);
  va_end(args);
  if (code) return code;
  while ((code = pst_store_sql_step(conn, stmt, err)) > 0) {}
  if (code == 0 && ret_changes) *ret_changes = sqlite3_changes64(conn->db);
  pst_store_sql_done(conn, stmt);
  return code;
}

int pst_store_sql_int(pst_store_conn *conn, int64_t *ret_value, const char *sql, pst_error *err, const char *types,
                      ...) {
  sqlite3_stmt *stmt = NULL;
  va_list args;
  va_start(args, types);
  int code = begin(conn, sql, &stmt, err, types, args);
  va_end(args);
  if (code) return code;
  code = pst_store_sql_step(conn, stmt, err);
  if (code == 1) {
    *ret_value = sqlite3_column_int64(stmt, 0);
    code = 0;
  } else if (code == 0) {
    code = pst_error_set(err, PST_E_NOT_FOUND, NULL, "no such entry in the store");
  }
  pst_store_sql_done(conn, stmt);
  return code;
}

int pst_store_sql_each(pst_store_conn *conn, int code, sqlite3_stmt *stmt,
                       int (*row)(sqlite3_stmt *stmt, void *context), void *context, pst_error *err) {
  if (code) return code;
  while ((code = pst_store_sql_step(conn, stmt, err)) == 1) {
    code = row(stmt, context);
    if (code) break;
  }
  pst_store_sql_done(conn, stmt);
  return code;
}

int pst_store_read_each(pst_store *store, int (*row)(sqlite3_stmt *stmt, void *context), void *context, pst_error *err,
                        const char *sql, const char *types, ...) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  va_list args;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  va_start(args, types);
  code = begin(conn, sql, &stmt, err, types, args);
  va_end(args);
  code = pst_store_sql_each(conn, code, stmt, row, context, err);
  pst_store_reader_give(store, conn);
  return code;
}

pst_str pst_store_column_str(sqlite3_stmt *stmt, int column) {
  pst_str s = {NULL, 0};
  if (sqlite3_column_type(stmt, column) == SQLITE_NULL) return s;
  s.data = (const char *)sqlite3_column_text(stmt, column);
  if (!s.data) return s;
  s.n = (size_t)sqlite3_column_bytes(stmt, column);
  return s;
}

void pst_store_copy(char *out, size_t n, pst_str text) {
  size_t length = PST_MIN(text.n, n - 1);
  if (length) memcpy(out, text.data, length);
  out[length] = '\0';
}
