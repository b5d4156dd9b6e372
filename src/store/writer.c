/* The writer thread: the only place of a process that changes the database.
 *
 * Whatever has gathered while the last group was being synced to disk becomes the next group: one BEGIN IMMEDIATE, each write in a
 * savepoint of its own, one COMMIT, one fsync. Many threads that reserve budget at once thus share a sync, and SQLite's single
 * write lock is never fought over inside a process. Does not know what the writes mean. */
#include "store/db.h"

#include <string.h>

#define MAX_GROUP 1024

static void list_push(pst_store_list *list, pst_store_write *write) {
  write->next = NULL;
  if (list->tail)
    list->tail->next = write;
  else
    list->head = write;
  list->tail = write;
}

static pst_store_write *list_pop(pst_store_list *list) {
  pst_store_write *write = list->head;
  if (!write) return NULL;
  list->head = write->next;
  if (!list->head) list->tail = NULL;
  write->next = NULL;
  return write;
}

static int exec(pst_store_conn *conn, const char *sql, const char *what, pst_error *err) {
  int rc = sqlite3_exec(conn->db, sql, NULL, NULL, NULL);
  return rc == SQLITE_OK ? 0 : pst_store_sql_error(conn, rc, what, err);
}

static void finish(pst_store *store, pst_store_write *write, int code, const pst_error *err) {
  pthread_mutex_lock(&store->mutex);
  store->stats.n_pending--;
  if (!code) store->stats.n_writes++;
  pthread_mutex_unlock(&store->mutex);
  write->complete(store, write, code, err);
}

static void finish_all(pst_store *store, pst_store_list *list, int code, const pst_error *err) {
  pst_store_write *write;
  while ((write = list_pop(list))) finish(store, write, code, err);
}

/* Applies one write of the open transaction. A failed write takes only its own savepoint with it, unless SQLite gave up the
 * whole transaction. Returns 0, or the code when the transaction is lost. */
static int apply_one(pst_store *store, pst_store_write *write, pst_store_list *applied, pst_error *err) {
  pst_store_conn *conn = store->writer;
  int code = exec(conn, "SAVEPOINT one", "beginning a write", err);
  if (!code) {
    code = write->apply(conn, write, err);
    if (!code) code = exec(conn, "RELEASE one", "ending a write", err);
  }
  if (!code) {
    list_push(applied, write);
    return 0;
  }
  bool lost = sqlite3_get_autocommit(conn->db) != 0;
  if (!lost) {
    pst_error ignored = PST_ERROR_INIT;
    lost = exec(conn, "ROLLBACK TO one; RELEASE one", "undoing a write", &ignored) != 0;
  }
  if (!lost) {
    finish(store, write, code, err);
    return 0;
  }
  list_push(applied, write);
  return code;
}

static void run_group(pst_store *store, pst_store_list *group) {
  pst_store_conn *conn = store->writer;
  pst_error err = PST_ERROR_INIT;
  pst_store_list applied = {NULL, NULL};
  int code = exec(conn, "BEGIN IMMEDIATE", "writing to the store", &err);
  pst_store_write *write;
  while (!code && (write = list_pop(group))) code = apply_one(store, write, &applied, &err);
  if (!code && applied.head) {
    err.code = 0;
    code = exec(conn, "COMMIT", "writing to the store", &err);
  }
  if (!sqlite3_get_autocommit(conn->db)) (void)sqlite3_exec(conn->db, "ROLLBACK", NULL, NULL, NULL);
  if (!code) {
    pthread_mutex_lock(&store->mutex);
    store->stats.n_commits++;
    pthread_mutex_unlock(&store->mutex);
  }
  finish_all(store, &applied, code, &err);
  finish_all(store, group, code, &err); /* empty unless the transaction was lost */
}

/* The next group; false when the store is closing and everything is written. */
static bool take_group(pst_store *store, pst_store_list *group) {
  *group = (pst_store_list){NULL, NULL};
  pthread_mutex_lock(&store->mutex);
  while (!store->ledger.head && !store->other.head && !store->closing) pthread_cond_wait(&store->work, &store->mutex);
  int n = 0;
  pst_store_write *write;
  while (n < MAX_GROUP && (write = list_pop(&store->ledger))) list_push(group, write), n++;
  while (n < MAX_GROUP && (write = list_pop(&store->other))) list_push(group, write), n++;
  pthread_mutex_unlock(&store->mutex);
  return n > 0;
}

static void *writer_main(void *arg) {
  pst_store *store = arg;
  pst_store_list group;
  while (take_group(store, &group)) run_group(store, &group);
  return NULL;
}

int pst_store_writer_start(pst_store *store, pst_error *err) {
  int rc = pthread_create(&store->thread, NULL, writer_main, store);
  if (rc) return pst_error_set_errno(err, rc, store->path, "the store's writer thread cannot start");
  store->thread_runs = true;
  return 0;
}

void pst_store_writer_stop(pst_store *store) {
  if (!store->thread_runs) return;
  pthread_mutex_lock(&store->mutex);
  store->closing = true;
  pthread_cond_signal(&store->work);
  pthread_mutex_unlock(&store->mutex);
  pthread_join(store->thread, NULL);
  store->thread_runs = false;
}

int pst_store_write_push(pst_store *store, pst_store_write *write, bool ledger, pst_error *err) {
  int code = 0;
  pthread_mutex_lock(&store->mutex);
  if (store->closing)
    code = PST_E_CANCELLED;
  else if (store->stats.n_pending >= PST_STORE_MAX_PENDING)
    code = PST_E_LIMIT;
  if (!code) {
    store->stats.n_pending++;
    list_push(ledger ? &store->ledger : &store->other, write);
    pthread_cond_signal(&store->work);
  }
  pthread_mutex_unlock(&store->mutex);
  if (code == PST_E_CANCELLED) return pst_error_set(err, code, store->path, "the store is closing");
  if (code)
    return pst_error_set(err, code, store->path, "%d writes wait for the disk already; it is too slow for this load",
                         PST_STORE_MAX_PENDING);
  return 0;
}

/* ---- a write that its caller waits for; lives on the caller's stack ---- */

typedef struct waited_write {
  pst_store_write base;
  int (*fn)(pst_store_conn *conn, void *arg, pst_error *err);
  void *arg;
  pst_error *err; /* the caller's; may be NULL */
  pthread_cond_t cond;
  int code;
  bool done;
} waited_write;

static int waited_apply(pst_store_conn *conn, pst_store_write *write, pst_error *err) {
  waited_write *w = (waited_write *)write;
  return w->fn(conn, w->arg, err);
}

static void waited_complete(pst_store *store, pst_store_write *write, int code, const pst_error *err) {
  waited_write *w = (waited_write *)write;
  pthread_mutex_lock(&store->mutex);
  w->code = code;
  if (code && w->err) *w->err = *err;
  w->done = true;
  pthread_cond_signal(&w->cond);
  pthread_mutex_unlock(&store->mutex);
}

int pst_store_write_now(pst_store *store, bool ledger, int (*fn)(pst_store_conn *conn, void *arg, pst_error *err),
                        void *arg, pst_error *err) {
  waited_write w = {.base = {waited_apply, waited_complete, NULL}, .fn = fn, .arg = arg, .err = err};
  if (pthread_cond_init(&w.cond, NULL)) return pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  int code = pst_store_write_push(store, &w.base, ledger, err);
  if (!code) {
    pthread_mutex_lock(&store->mutex);
    while (!w.done) pthread_cond_wait(&w.cond, &store->mutex);
    pthread_mutex_unlock(&store->mutex);
    code = w.code;
  }
  pthread_cond_destroy(&w.cond);
  return code;
}

/* ---- a write that nobody waits for ---- */

typedef struct queued_write {
  pst_store_write base;
  int (*fn)(pst_store_conn *conn, void *arg, pst_error *err);
  void *arg;
} queued_write;

static int queued_apply(pst_store_conn *conn, pst_store_write *write, pst_error *err) {
  queued_write *q = (queued_write *)write;
  return q->fn(conn, q->arg, err);
}

static void queued_complete(pst_store *store, pst_store_write *write, int code, const pst_error *err) {
  queued_write *q = (queued_write *)write;
  if (code) {
    pthread_mutex_lock(&store->mutex);
    store->stats.n_failed_queued++;
    bool first = store->queued_code == 0;
    if (first) {
      store->queued_code = code;
      store->queued_error = *err;
    }
    pthread_mutex_unlock(&store->mutex);
    if (first) {
      char text[1100];
      pst_log(PST_LOG_ERROR, "event=store_write_lost error=\"%s\"", pst_error_format(err, text, sizeof text));
    }
  }
  pst_free(q->arg);
  pst_free(q);
}

int pst_store_write_later(pst_store *store, bool ledger, int (*fn)(pst_store_conn *conn, void *arg, pst_error *err),
                          void *arg, pst_error *err) {
  queued_write *q = pst_malloc(sizeof *q);
  int code;
  if (!q)
    code = pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  else {
    *q = (queued_write){.base = {queued_apply, queued_complete, NULL}, .fn = fn, .arg = arg};
    code = pst_store_write_push(store, &q->base, ledger, err);
  }
  if (code) {
    pst_free(q);
    pst_free(arg);
  }
  return code;
}

pst_str pst_store_pack(char **cursor, pst_str text) {
  if (!text.data) return text;
  pst_str packed = {*cursor, text.n};
  if (text.n) memcpy(*cursor, text.data, text.n);
  *cursor += text.n;
  return packed;
}
