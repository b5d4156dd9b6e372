/* LoRA adapters by name: which file, for which base, and where it came from. The files are files.c's. */
#include "store/db.h"

#include <string.h>

#define COLUMNS "name, file, base, base_sha256, workload, data, run, rank, bytes, created_ms"
/* A name may have stood for another adapter before: uses noted then are not this one's. */
#define OWN_USE "u.kind = 'adapter' AND u.name = a.name AND u.time_ms >= a.created_ms"
#define SELECT                                                                                  \
  "SELECT " COLUMNS ", EXISTS(SELECT 1 FROM data_set_uses u WHERE " OWN_USE " AND u.stale = 1)" \
  " OR EXISTS(SELECT 1 FROM data_sets s WHERE s.hash = a.data AND s.state = 1) FROM adapters a "

bool pst_store_adapter_name_valid(pst_str name) {
  if (name.n == 0 || name.n > 63) return false;
  for (size_t i = 0; i < name.n; i++) {
    char c = name.data[i];
    bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!word && c != '.' && c != '_' && c != '-') return false;
  }
  return true;
}

static void read_adapter(sqlite3_stmt *stmt, pst_store_adapter *ret) {
  *ret = (pst_store_adapter){0};
  const struct {
    char *to;
    size_t n;
  } texts[] = {{ret->name, sizeof ret->name},
               {ret->file, sizeof ret->file},
               {ret->base, sizeof ret->base},
               {ret->base_sha256, sizeof ret->base_sha256},
               {ret->workload, sizeof ret->workload},
               {ret->data, sizeof ret->data},
               {ret->run, sizeof ret->run}};
  for (int i = 0; i < (int)PST_ARRAY_LEN(texts); i++)
    pst_store_copy(texts[i].to, texts[i].n, pst_store_column_str(stmt, i));
  ret->rank = sqlite3_column_int64(stmt, 7);
  ret->bytes = sqlite3_column_int64(stmt, 8);
  ret->created_ms = sqlite3_column_int64(stmt, 9);
  ret->stale = sqlite3_column_int(stmt, 10) != 0;
}

/* ---- writing ---- */

static pst_str optional(const char *text) { return *text ? pst_str_from(text) : (pst_str){NULL, 0}; }

typedef struct put_call {
  const pst_store_adapter *adapter;
  pst_store_adapter_origin origin;
} put_call;

/* The data sets of the adapter that something began from made that, too. */
static int inherit(pst_store_conn *conn, const char *kind, const char *name, int64_t now_ms, const char *from,
                   pst_error *err) {
  return pst_store_sql_run(conn, NULL,
                           "INSERT INTO data_set_uses(set_id, kind, name, time_ms, stale)"
                           " SELECT u.set_id, ?4, ?1, ?2, u.stale FROM adapters a JOIN data_set_uses u ON " OWN_USE
                           " WHERE a.name = ?3"
                           " UNION SELECT s.id, ?4, ?1, ?2, s.state FROM adapters a JOIN data_sets s"
                           " ON s.hash = a.data WHERE a.name = ?3"
                           " ON CONFLICT DO UPDATE SET time_ms = excluded.time_ms, stale = max(stale, excluded.stale)",
                           err, "siss", pst_str_from(name), now_ms, pst_str_from(from), pst_str_from(kind));
}

/* Notes that its data sets made something. */
static int note_sets(pst_store_conn *conn, const char *kind, const char *name, int64_t now_ms,
                     const pst_store_adapter_origin *origin, pst_error *err) {
  const char *const sets[] = {origin->data_set, origin->taught_set};
  int code = origin->from ? inherit(conn, kind, name, now_ms, origin->from, err) : 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(sets) && !code; i++)
    if (sets[i])
      code = pst_store_data_set_use(conn, pst_str_from(sets[i]), pst_str_from(kind), pst_str_from(name), now_ms, err);
  return code;
}

static int put_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const put_call *c = arg;
  const pst_store_adapter *a = c->adapter;
  int64_t changed = 0;
  int code = pst_store_sql_run(conn, &changed,
                               "INSERT INTO adapters(" COLUMNS ") VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
                               " ON CONFLICT DO UPDATE SET workload = coalesce(excluded.workload, workload),"
                               " data = coalesce(excluded.data, data), run = coalesce(excluded.run, run)"
                               " WHERE file = excluded.file AND base_sha256 = excluded.base_sha256",
                               err, "sssssssiii", pst_str_from(a->name), pst_str_from(a->file), pst_str_from(a->base),
                               pst_str_from(a->base_sha256), optional(a->workload), optional(a->data), optional(a->run),
                               a->rank, a->bytes, a->created_ms);
  if (!code && changed == 0)
    code = pst_error_set(err, PST_E_EXISTS, "name", "the adapter \"%s\" is there already and is another; choose a name",
                         a->name);
  return code ? code : note_sets(conn, "adapter", a->name, a->created_ms, &c->origin, err);
}

int pst_store_adapter_put(pst_store *store, const pst_store_adapter *adapter, const pst_store_adapter_origin *origin,
                          pst_error *err) {
  put_call c = {.adapter = adapter};
  if (origin) c.origin = *origin;
  if (!pst_store_adapter_name_valid(pst_str_from(adapter->name)))
    return pst_error_set(err, PST_E_BAD_INPUT, "name",
                         "an adapter's name has 1 to 63 letters, digits, dots, dashes and underscores");
  return pst_store_write_now(store, false, put_apply, &c, err);
}

typedef struct note_call {
  const char *name;
  pst_store_adapter_origin origin;
  int64_t now_ms;
} note_call;

static int note_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const note_call *c = arg;
  return note_sets(conn, PST_STORE_PRODUCT_CHECKPOINT, c->name, c->now_ms, &c->origin, err);
}

int pst_store_checkpoint_note(pst_store *store, const char *path, const pst_store_adapter_origin *origin,
                              pst_error *err) {
  size_t n = strlen(store->home);
  if (!origin->data_set && !origin->from && !origin->taught_set) return 0;
  if (strncmp(path, store->home, n) != 0)
    return pst_error_set(err, PST_E_BAD_INPUT, path, "a checkpoint made of records lies in the data directory");
  note_call c = {path + n + strspn(path + n, "/"), *origin, pst_clock_unix_ms()};
  return pst_store_write_now(store, false, note_apply, &c, err);
}

typedef struct remove_call {
  pst_str name;
} remove_call;

static int remove_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const remove_call *c = arg;
  int64_t changed = 0;
  int code = pst_store_sql_run(conn, &changed, "DELETE FROM adapters WHERE name = ?1", err, "s", c->name);
  if (!code && changed == 0)
    code = pst_error_set(err, PST_E_NOT_FOUND, "name", "there is no adapter \"%.*s\"",
                         (int)PST_MIN(c->name.n, (size_t)63), c->name.data);
  return code;
}

int pst_store_adapter_remove(pst_store *store, pst_str name, pst_error *err) {
  remove_call c = {name};
  return pst_store_write_now(store, false, remove_apply, &c, err);
}

/* ---- reading ---- */

static int take_row(sqlite3_stmt *stmt, void *context) {
  read_adapter(stmt, context);
  return 1;
}

int pst_store_adapter_get(pst_store *store, pst_str name, pst_store_adapter *ret_adapter, pst_error *err) {
  pst_store_adapter adapter;
  int code = pst_store_read_each(store, take_row, &adapter, err, SELECT "WHERE name = ?1", "s", name);
  if (code == 1) {
    *ret_adapter = adapter;
    return 0;
  }
  if (code == 0)
    return pst_error_set(err, PST_E_NOT_FOUND, "name", "there is no adapter \"%.*s\"; `penstock adapters` lists them",
                         (int)PST_MIN(name.n, (size_t)63), name.data);
  return code;
}

typedef struct walk {
  int (*fn)(void *user, const pst_store_adapter *adapter);
  void *user;
} walk;

static int walk_row(sqlite3_stmt *stmt, void *context) {
  const walk *w = context;
  pst_store_adapter adapter;
  read_adapter(stmt, &adapter);
  return w->fn(w->user, &adapter);
}

int pst_store_adapter_each(pst_store *store, int (*fn)(void *user, const pst_store_adapter *adapter), void *user,
                           pst_error *err) {
  walk w = {fn, user};
  return pst_store_read_each(store, walk_row, &w, err, SELECT "ORDER BY name", "");
}
