/* Private to src/store: the open store, its connections, and the two ways to write. Schema in schema_sql.c. */
#ifndef PST_STORE_DB_H
#define PST_STORE_DB_H

#include <penstock/store.h>
#include <sqlite3.h>

#define PST_STORE_N_CACHED 96
#define PST_STORE_MAX_PENDING 100000
#define PST_STORE_BUSY_WAIT_MS 10000

/* A database connection; used by one thread at a time (the writer's by the writer thread only). */
typedef struct pst_store_conn {
  sqlite3 *db;
  const pst_store *store;
  struct {
    const char *sql; /* compared by address: callers pass literals */
    sqlite3_stmt *stmt;
    bool busy; /* handed out and not yet given back: a nested walk gets an uncached statement */
  } cache[PST_STORE_N_CACHED];
  int n_cached;
  struct pst_store_conn *next; /* in the list of idle readers */
} pst_store_conn;

/* One write waiting for the writer thread. `apply` runs inside the group's transaction in a savepoint of its own; `complete` once,
 * on the writer thread, when the fate of the write is known (code 0: it is on disk). `complete` may free the write. */
typedef struct pst_store_write pst_store_write;
struct pst_store_write {
  int (*apply)(pst_store_conn *conn, pst_store_write *write, pst_error *err);
  void (*complete)(pst_store *store, pst_store_write *write, int code, const pst_error *err);
  pst_store_write *next;
};

typedef struct pst_store_list {
  pst_store_write *head, *tail;
} pst_store_list;

struct pst_store {
  char *home, *path;
  int64_t owner; /* this opening, in table owners and in the name of the lock file */
  char *owner_path;
  int owner_fd; /* holds the lock that says "alive"; -1: none */

  pthread_mutex_t reader_mutex; /* guards idle, n_idle */
  pst_store_conn *idle;
  int n_idle;

  pst_store_conn *writer; /* owned by the writer thread once it runs */
  pthread_t thread;
  bool thread_runs;
  pthread_mutex_t mutex; /* guards all below */
  pthread_cond_t work;
  pst_store_list ledger; /* taken before `other`: money waits for nobody */
  pst_store_list other;
  bool closing;
  int queued_code; /* first failure of a queued write since the last flush */
  pst_error queued_error;
  pst_store_stats stats;
};

/* ---- sql.c: statements ---- */

/* Maps an SQLite code to ours, with SQLite's own words. `what` says what was being done. */
int pst_store_sql_error(pst_store_conn *conn, int rc, const char *what, pst_error *err);
/* Prepares (or takes from the cache) and binds. types, one letter an argument: i int64_t, d double, s pst_str (absent: NULL), n int64_t
 * (0: NULL), b const void * + size_t (a blob). Text that is not UTF-8 is PST_E_BAD_INPUT. Give back with pst_store_sql_done. */
int pst_store_sql_begin(pst_store_conn *conn, const char *sql, sqlite3_stmt **ret_stmt, pst_error *err,
                        const char *types, ...);
/* 1: a row is there, 0: finished, negative: error. A constraint gives PST_E_EXISTS (unique), PST_E_NOT_FOUND (foreign key) or
 * PST_E_BAD_INPUT. */
int pst_store_sql_step(pst_store_conn *conn, sqlite3_stmt *stmt, pst_error *err);
void pst_store_sql_done(pst_store_conn *conn, sqlite3_stmt *stmt); /* NULL is fine */
/* begin, step to the end, done. ret_changes may be NULL. */
int pst_store_sql_run(pst_store_conn *conn, int64_t *ret_changes, const char *sql, pst_error *err, const char *types,
                      ...);
/* The single integer of the single row; PST_E_NOT_FOUND without a row (err is set then too). */
int pst_store_sql_int(pst_store_conn *conn, int64_t *ret_value, const char *sql, pst_error *err, const char *types,
                      ...);
/* Steps to the end, calling row for each; what row returns (not 0) stops and is returned. Gives the statement back. code: that of
 * the preparation, so that calls chain; nothing happens unless it is 0. */
int pst_store_sql_each(pst_store_conn *conn, int code, sqlite3_stmt *stmt,
                       int (*row)(sqlite3_stmt *stmt, void *context), void *context, pst_error *err);
/* The same on a reader of its own, from preparation to the end. sql: a literal. */
int pst_store_read_each(pst_store *store, int (*row)(sqlite3_stmt *stmt, void *context), void *context, pst_error *err,
                        const char *sql, const char *types, ...);
pst_str pst_store_column_str(sqlite3_stmt *stmt, int column); /* NULL: data NULL */
/* Copies at most n - 1 bytes, terminated. */
void pst_store_copy(char *out, size_t n, pst_str text);

/* ---- open.c: connections ---- */

int pst_store_conn_open(const pst_store *store, bool writable, pst_store_conn **ret_conn, pst_error *err);
void pst_store_conn_close(pst_store_conn *conn);
int pst_store_reader_take(pst_store *store, pst_store_conn **ret_conn, pst_error *err);
void pst_store_reader_give(pst_store *store, pst_store_conn *conn); /* NULL is fine */

/* ---- writer.c ---- */

int pst_store_writer_start(pst_store *store, pst_error *err);
void pst_store_writer_stop(pst_store *store);
/* Hands over; fails only with PST_E_LIMIT (queue full) or PST_E_CANCELLED (closing), and then `complete` is not called. */
int pst_store_write_push(pst_store *store, pst_store_write *write, bool ledger, pst_error *err);
/* Runs fn(conn, arg) in the writer's next group and waits for the commit. fn writes its results into arg; copy them out only on 0. */
int pst_store_write_now(pst_store *store, bool ledger, int (*fn)(pst_store_conn *conn, void *arg, pst_error *err),
                        void *arg, pst_error *err);
/* Queues fn(conn, arg); arg is one block, freed by pst_free afterwards whatever happens, also when this fails. */
int pst_store_write_later(pst_store *store, bool ledger, int (*fn)(pst_store_conn *conn, void *arg, pst_error *err),
                          void *arg, pst_error *err);
/* As many bytes as `text` needs, copied to *cursor, which moves on; for packing strings behind a struct. */
pst_str pst_store_pack(char **cursor, pst_str text);

/* ---- requests.c ---- */

/* One record with its content, as far as its consent goes. ret_changes NULL: a completion id that is there already is PST_E_EXISTS; else how many rows
 * came in, 0 or 1. */
int pst_store_request_insert(pst_store_conn *conn, const pst_store_request *request, int64_t *ret_changes,
                             pst_error *err);

/* ---- cache.c: both inside a write ---- */

/* A record with its content is in: makes it findable as its `reuse` says, or notes that it was a hit. */
int pst_store_cache_note(pst_store_conn *conn, const pst_store_request *request, int64_t request_id, pst_error *err);
int pst_store_cache_clear(pst_store_conn *conn, pst_error *err);

/* ---- data_sets.c ---- */

/* Inside a write: replaces every data set that holds records of temp table erased(id) and drops their lineage. Files of withdrawn sets are removed by
 * pst_store_data_sets_clean after the commit. Before it, in a write of its own, comes the same with `announce`, which only notes the sets that will take their places as if withdrawn:
 * whoever is killed behind it leaves nothing that is not found. PST_E_BUSY: one was not announced. */
int pst_store_data_sets_withdraw(pst_store_conn *conn, pst_store *store, bool announce, int64_t now_ms,
                                 pst_store_erasure *erasure, pst_error *err);
/* Inside a write: notes that something was made of a set, as pst_store_data_set_used does. */
int pst_store_data_set_use(pst_store_conn *conn, pst_str hash, pst_str kind, pst_str name, int64_t now_ms,
                           pst_error *err);
/* Removes the files of withdrawn sets that are still there, also those that a crash left. */
int pst_store_data_sets_clean(pst_store *store, pst_error *err);

/* ---- files.c: as pst_store_file_put and pst_store_file_path, in another folder of the home ---- */

int pst_store_file_put_in(const pst_store *store, const char *folder, const void *data, size_t n, char ret_hash[65],
                          pst_error *err);
int pst_store_file_path_in(const pst_store *store, const char *folder, pst_str hash, char **ret_path, pst_error *err);

/* ---- ledger.c, jobs.c, uploads.c: what recovery needs ---- */

/* Settles the owner's open reservations at their full reserve. *ret_n may be NULL. */
int pst_store_ledger_recover(pst_store_conn *conn, int64_t owner, int64_t now_ms, int64_t *ret_n, pst_error *err);
/* Puts the owner's running jobs back into the queue. */
int pst_store_jobs_recover(pst_store_conn *conn, int64_t owner, pst_error *err);
/* Removes files that were sent by clients and that no row names: of a process that ended between the two. Inside a write. */
void pst_store_uploads_recover(pst_store_conn *conn);
/* The owners' two, for every owner whose process is gone (open.c). Inside a write. */
int pst_store_owners_recover(pst_store_conn *conn, int64_t now_ms, pst_error *err);

/* Brings the schema up to date (migrate.c). */
int pst_store_migrate(pst_store_conn *conn, pst_error *err);

/* Parses `json` (one value) and appends its canonical form to *out. what: for the error. */
int pst_store_canonical(pst_str json, const char *what, pst_buf *out, pst_error *err);

#endif
