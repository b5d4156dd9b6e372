/* Opening and closing a store, its connections, and who is alive.
 *
 * Every opening holds a lock on a file of its own (HOME/owners/ID) for as long as it lives; the kernel drops the lock however
 * the process ends. A row in table owners whose lock can be taken belongs to a process that crashed: its open reservations are
 * settled in full and its jobs go back into the queue. Process ids would not do: they are used again.
 * SQLite runs in WAL mode with synchronous=FULL, so that a commit is on disk when it returns. */
#include "store/db.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_IDLE_READERS 8
#define QUICK_CHECK_BYTES (16 * 1024 * 1024) /* files up to this size are checked at every open: tens of ms */

/* ---- connections ---- */

static void sleep_ms(long ms) {
  struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
  (void)nanosleep(&t, NULL);
}

/* SQLite's own handler sleeps up to 100 ms a try, too long for a ledger shared by processes. */
static int wait_busy(void *arg, int n_tries) {
  (void)arg;
  if (n_tries >= PST_STORE_BUSY_WAIT_MS) return 0;
  sleep_ms(1);
  return 1;
}

static int configure(pst_store_conn *conn, bool writable, pst_error *err) {
  const char *sql = writable ? "PRAGMA foreign_keys=ON; PRAGMA synchronous=FULL; PRAGMA temp_store=MEMORY;"
                               " PRAGMA secure_delete=ON"
                             : "PRAGMA query_only=ON; PRAGMA temp_store=MEMORY";
  int rc = sqlite3_exec(conn->db, sql, NULL, NULL, NULL);
  return rc == SQLITE_OK ? 0 : pst_store_sql_error(conn, rc, "opening the database", err);
}

int pst_store_conn_open(const pst_store *store, bool writable, pst_store_conn **ret_conn, pst_error *err) {
  pst_store_conn *conn = pst_calloc(1, sizeof *conn);
  if (!conn) return pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  conn->store = store;
  int rc = sqlite3_open_v2(store->path, &conn->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
  int code = 0;
  if (!conn->db) {
    code = pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  } else if (rc != SQLITE_OK) {
    code = pst_store_sql_error(conn, rc, "opening the database", err);
  } else {
    (void)sqlite3_extended_result_codes(conn->db, 1);
    (void)sqlite3_busy_handler(conn->db, wait_busy, NULL);
    code = configure(conn, writable, err);
  }
  if (code) {
    pst_store_conn_close(conn);
    return code;
  }
  *ret_conn = conn;
  return 0;
}

void pst_store_conn_close(pst_store_conn *conn) {
  if (!conn) return;
  for (int i = 0; i < conn->n_cached; i++) (void)sqlite3_finalize(conn->cache[i].stmt);
  (void)sqlite3_close_v2(conn->db);
  pst_free(conn);
}

int pst_store_reader_take(pst_store *store, pst_store_conn **ret_conn, pst_error *err) {
  pthread_mutex_lock(&store->reader_mutex);
  pst_store_conn *conn = store->idle;
  if (conn) {
    store->idle = conn->next;
    store->n_idle--;
  }
  pthread_mutex_unlock(&store->reader_mutex);
  if (!conn) return pst_store_conn_open(store, false, ret_conn, err);
  *ret_conn = conn;
  return 0;
}

void pst_store_reader_give(pst_store *store, pst_store_conn *conn) {
  if (!conn) return;
  pthread_mutex_lock(&store->reader_mutex);
  bool keep = store->n_idle < MAX_IDLE_READERS;
  if (keep) {
    conn->next = store->idle;
    store->idle = conn;
    store->n_idle++;
  }
  pthread_mutex_unlock(&store->reader_mutex);
  if (!keep) pst_store_conn_close(conn);
}

/* ---- owners ---- */

static char *owner_path(const pst_store *store, int64_t owner) {
  char name[48];
  (void)snprintf(name, sizeof name, "owners/%016llx", (unsigned long long)owner);
  return pst_path_join(store->home, name);
}

/* Takes the lock of a new owner number. The file must still have its name once locked: another process may have taken it for a
 * dead one's in between. */
static int owner_lock(pst_store *store, pst_error *err) {
  for (int attempt = 0; attempt < 100; attempt++) {
    uint64_t random;
    int code = pst_random_secret(&random, sizeof random);
    if (code) return pst_error_set(err, code, store->home, "no random numbers from the system");
    int64_t owner = (int64_t)(random >> 1) | 1;
    char *path = owner_path(store, owner);
    if (!path) return pst_error_set(err, PST_E_NOMEM, store->home, "out of memory");
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
      int errnum = errno;
      code = errnum == EEXIST ? 0 : pst_error_set_errno(err, errnum, path, "the lock file cannot be made");
      pst_free(path);
      if (code) return code;
      continue;
    }
    struct stat st;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 && st.st_nlink > 0) {
      store->owner = owner;
      store->owner_fd = fd;
      store->owner_path = path;
      return 0;
    }
    (void)close(fd);
    pst_free(path);
  }
  return pst_error_set(err, PST_E_IO, store->home,
                       "the file system does not support locks; choose another data directory");
}

/* True if no process holds this owner's lock; then its file is gone as well. */
static bool owner_is_dead(const pst_store *store, int64_t owner) {
  char *path = owner_path(store, owner);
  if (!path) return false;
  bool dead = false;
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    dead = errno == ENOENT;
  } else {
    dead = flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (dead) (void)unlink(path);
    (void)close(fd);
  }
  pst_free(path);
  return dead;
}

static int owner_forget(pst_store_conn *conn, int64_t owner, int64_t now_ms, pst_error *err) {
  int64_t n = 0;
  int code = pst_store_ledger_recover(conn, owner, now_ms, &n, err);
  if (!code) code = pst_store_jobs_recover(conn, owner, err);
  if (!code) code = pst_store_sql_run(conn, NULL, "DELETE FROM owners WHERE id = ?1", err, "i", owner);
  if (!code && n > 0)
    pst_log(PST_LOG_WARN, "event=reservations_recovered n=%lld reason=\"their process ended without settling\"",
            (long long)n);
  return code;
}

int pst_store_owners_recover(pst_store_conn *conn, int64_t now_ms, pst_error *err) {
  int64_t after = 0;
  for (;;) {
    int64_t owner;
    pst_error none = PST_ERROR_INIT;
    int code =
        pst_store_sql_int(conn, &owner, "SELECT id FROM owners WHERE id > ?1 ORDER BY id LIMIT 1", &none, "i", after);
    if (code == PST_E_NOT_FOUND) return 0;
    if (code) {
      if (err) *err = none;
      return code;
    }
    after = owner;
    if (owner == conn->store->owner || !owner_is_dead(conn->store, owner)) continue;
    code = owner_forget(conn, owner, now_ms, err);
    if (code) return code;
  }
}

static int register_owner(pst_store_conn *conn, void *arg, pst_error *err) {
  const pst_store *store = arg;
  int64_t now_ms = pst_clock_unix_ms();
  int code = pst_store_sql_run(conn, NULL, "INSERT INTO owners(id, pid, opened_ms) VALUES(?1, ?2, ?3)", err, "iii",
                               store->owner, (int64_t)getpid(), now_ms);
  if (!code) pst_store_uploads_recover(conn);
  return code ? code : pst_store_owners_recover(conn, now_ms, err);
}

static int unregister_owner(pst_store_conn *conn, void *arg, pst_error *err) {
  const pst_store *store = arg;
  return owner_forget(conn, store->owner, pst_clock_unix_ms(), err);
}

/* ---- open and close ---- */

/* The file is made here and not by SQLite so that it is private from the start; the WAL copies its mode. */
static int create_file(const pst_store *store, int64_t *ret_bytes, pst_error *err) {
  struct stat st;
  if (stat(store->home, &st)) return pst_error_set_errno(err, errno, store->home, "the data directory cannot be used");
  if (!S_ISDIR(st.st_mode))
    return pst_error_set(err, PST_E_BAD_INPUT, store->home,
                         "is not a directory; choose another data directory with --home");
  int fd = open(store->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return pst_error_set_errno(err, errno, store->path, "the database cannot be opened");
  int code = 0;
  if (fstat(fd, &st))
    code = pst_error_set_errno(err, errno, store->path, "the database cannot be opened");
  else if (!S_ISREG(st.st_mode))
    code = pst_error_set(err, PST_E_BAD_INPUT, store->path, "is not a regular file; move it away");
  (void)close(fd);
  if (!code) *ret_bytes = (int64_t)st.st_size;
  return code;
}

/* Switching to WAL needs the file to itself for a moment, and SQLite does not call the busy handler for that. */
static int enter_wal(pst_store_conn *conn, pst_error *err) {
  for (int waited_ms = 0;; waited_ms += 5) {
    sqlite3_stmt *stmt = NULL;
    bool wal = false;
    int rc = sqlite3_prepare_v2(conn->db, "PRAGMA journal_mode=WAL", -1, &stmt, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW) {
      const char *mode = (const char *)sqlite3_column_text(stmt, 0);
      wal = mode && strcmp(mode, "wal") == 0;
    }
    int code = 0;
    if (rc != SQLITE_ROW && ((rc & 0xff) != SQLITE_BUSY || waited_ms >= PST_STORE_BUSY_WAIT_MS))
      code = pst_store_sql_error(conn, rc, "opening the database", err);
    else if (rc == SQLITE_ROW && !wal)
      code = pst_error_set(err, PST_E_UNSUPPORTED, conn->store->path,
                           "the file system has no shared memory for a write-ahead log; choose another data directory");
    (void)sqlite3_finalize(stmt);
    if (code || wal) return code;
    sleep_ms(5);
  }
}

static int check_pages(pst_store_conn *conn, const char *pragma, pst_error *err) {
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(conn->db, pragma, -1, &stmt, NULL);
  if (rc == SQLITE_OK) rc = sqlite3_step(stmt);
  int code = 0;
  if (rc == SQLITE_ROW) {
    const char *verdict = (const char *)sqlite3_column_text(stmt, 0);
    if (!verdict || strcmp(verdict, "ok") != 0)
      code = pst_error_set(err, PST_E_CORRUPT, conn->store->path,
                           "the database is damaged (%.200s); move the file away to start afresh, or restore a copy",
                           verdict ? verdict : "no verdict");
  } else {
    code = pst_store_sql_error(conn, rc, "checking the database", err);
  }
  (void)sqlite3_finalize(stmt);
  return code;
}

static void free_store(pst_store *store) {
  while (store->idle) {
    pst_store_conn *next = store->idle->next;
    pst_store_conn_close(store->idle);
    store->idle = next;
  }
  pst_store_conn_close(store->writer);
  if (store->owner_fd >= 0) {
    (void)unlink(store->owner_path);
    (void)close(store->owner_fd);
  }
  pthread_mutex_destroy(&store->mutex);
  pthread_mutex_destroy(&store->reader_mutex);
  pthread_cond_destroy(&store->work);
  pst_free(store->owner_path);
  pst_free(store->path);
  pst_free(store->home);
  pst_free(store);
}

static int open_database(pst_store *store, pst_error *err) {
  int64_t n_bytes = 0;
  int code = create_file(store, &n_bytes, err);
  if (code) return code;
  code = pst_store_conn_open(store, true, &store->writer, err);
  if (!code) code = enter_wal(store->writer, err);
  if (!code && n_bytes > 0 && n_bytes <= QUICK_CHECK_BYTES)
    code = check_pages(store->writer, "PRAGMA quick_check(1)", err);
  if (!code) code = pst_store_migrate(store->writer, err);
  return code;
}

static int open_owner(pst_store *store, pst_error *err) {
  char *dir = pst_path_join(store->home, "owners");
  if (!dir) return pst_error_set(err, PST_E_NOMEM, store->home, "out of memory");
  int code = pst_dir_make(dir, err);
  pst_free(dir);
  if (!code) code = owner_lock(store, err);
  if (!code) code = pst_store_writer_start(store, err);
  if (!code) code = pst_store_write_now(store, true, register_owner, store, err);
  return code;
}

int pst_store_open(const char *home, pst_store **ret_store, pst_error *err) {
  pst_store *store = pst_calloc(1, sizeof *store);
  if (!store) return pst_error_set(err, PST_E_NOMEM, home, "out of memory");
  store->owner_fd = -1;
  pthread_mutex_init(&store->mutex, NULL);
  pthread_mutex_init(&store->reader_mutex, NULL);
  pthread_cond_init(&store->work, NULL);
  store->home = pst_strdup(home);
  store->path = pst_path_join(home, "penstock.db");
  int code = 0;
  if (!store->home || !store->path) code = pst_error_set(err, PST_E_NOMEM, home, "out of memory");
  if (!code) code = open_database(store, err);
  if (!code) code = open_owner(store, err);
  if (code) {
    pst_store_writer_stop(store);
    free_store(store);
    return code;
  }
  *ret_store = store;
  return 0;
}

void pst_store_close(pst_store *store) {
  if (!store) return;
  pst_error err = PST_ERROR_INIT;
  if (pst_store_write_now(store, false, unregister_owner, store, &err)) {
    char text[1100];
    pst_log(PST_LOG_ERROR, "event=store_close error=\"%s\"", pst_error_format(&err, text, sizeof text));
  }
  pst_store_writer_stop(store);
  free_store(store);
}

static int write_nothing(pst_store_conn *conn, void *arg, pst_error *err) {
  (void)conn;
  (void)arg;
  (void)err;
  return 0;
}

int pst_store_flush(pst_store *store, pst_error *err) {
  int code = pst_store_write_now(store, false, write_nothing, NULL, err);
  pthread_mutex_lock(&store->mutex);
  if (store->queued_code) { /* may be what failed the flush's own group as well: told once */
    code = store->queued_code;
    if (err) *err = store->queued_error;
  }
  store->queued_code = 0;
  pthread_mutex_unlock(&store->mutex);
  return code;
}

int pst_store_verify(pst_store *store, pst_error *err) {
  pst_store_conn *conn = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code = check_pages(conn, "PRAGMA integrity_check(1)", err);
  pst_store_reader_give(store, conn);
  return code;
}

const char *pst_store_home(const pst_store *store) { return store->home; }

pst_store_stats pst_store_stats_get(pst_store *store) {
  pthread_mutex_lock(&store->mutex);
  pst_store_stats stats = store->stats;
  pthread_mutex_unlock(&store->mutex);
  return stats;
}

int pst_store_canonical(pst_str json, const char *what, pst_buf *out, pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(json.data ? json.data : "", json.n, what, &doc, err);
  if (code) return code;
  code = pst_json_canonical(pst_json_root(doc), out);
  pst_json_free(doc);
  if (code) return pst_error_set(err, code, what, "%s", pst_error_text(code));
  return 0;
}
