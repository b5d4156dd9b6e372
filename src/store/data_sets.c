/* Data sets: files made of records, with the list of records that made them; and the items that no data set may hold.
 *
 * Owns the lineage: record -> line of a data set -> what was made of the set (uses, and adapters that name it as their data). When records are erased, a set made of lines is
 * written anew without theirs and gets a new hash; the old row stays as "withdrawn" and says what replaced it, its file is removed, and what was made of it that holds its
 * texts (a turn's folder, an index of examples, what interrupted training goes on from). Does not know what stands in a line. Reports kept beside a set name records by number only, never by text. */
#include "store/db.h"

#include <stdlib.h>
#include <string.h>

/* ---- put ---- */

/* A set is made in two writes, also one that takes another's place. The first notes it as withdrawn, with its lines; the second puts the file in its place and makes the set whole. Whoever is killed in between leaves
 * a row by which pst_store_data_sets_clean finds the file. Cleaning is a write, too, so that it never comes between the two halves of the second. */
typedef struct put_call {
  pst_store *store;
  const pst_store_data_set *set;
  const char *hash;
  pst_str text;
  bool by_line;
  const int64_t *record_ids;
  size_t n_records;
} put_call;

static int set_id_of(pst_store_conn *conn, pst_str hash, int64_t *ret_id, pst_error *err) {
  return pst_store_sql_int(conn, ret_id, "SELECT id FROM data_sets WHERE hash = ?1", err, "s", hash);
}

static int set_state_of(pst_store_conn *conn, int64_t id, int64_t *ret_state, pst_error *err) {
  return pst_store_sql_int(conn, ret_state, "SELECT state FROM data_sets WHERE id = ?1", err, "i", id);
}

static int record_gone(pst_error *err) {
  return pst_error_set(err, PST_E_NOT_FOUND, "data set",
                       "a record was deleted while the data set was made; make it again");
}

static int put_line(pst_store_conn *conn, int64_t set_id, size_t line, int64_t record_id, pst_error *err) {
  int64_t n = 0;
  int code = pst_store_sql_run(conn, &n,
                               "INSERT INTO data_set_records(set_id, line, record_id)"
                               " SELECT ?1, ?2, id FROM requests WHERE id = ?3 AND keep = 1",
                               err, "iii", set_id, (int64_t)line, record_id);
  return !code && n == 0 ? record_gone(err) : code;
}

/* The row and its lines; a set that is whole stays as it is. */
static int announce_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const put_call *c = arg;
  const pst_store_data_set *s = c->set;
  int64_t id = 0, state = 0;
  int code =
      pst_store_sql_run(conn, NULL,
                        "INSERT INTO data_sets(hash, kind, workload, by_line, n_lines, params, created_ms, state)"
                        " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, 1) ON CONFLICT DO NOTHING",
                        err, "sssiisi", pst_str_from(c->hash), s->kind, s->workload, (int64_t)c->by_line, s->n_lines,
                        s->params, s->created_ms);
  if (!code) code = set_id_of(conn, pst_str_from(c->hash), &id, err);
  if (!code) code = set_state_of(conn, id, &state, err);
  if (code || state == PST_STORE_DATA_WHOLE) return code;
  code = pst_store_sql_run(conn, NULL, "DELETE FROM data_set_records WHERE set_id = ?1", err, "i", id);
  for (size_t i = 0; i < c->n_records && !code; i++) code = put_line(conn, id, i, c->record_ids[i], err);
  return code;
}

static int fulfil_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const put_call *c = arg;
  char hash[65];
  int64_t id = 0, state = 0, n = 0;
  int code = set_id_of(conn, pst_str_from(c->hash), &id, err);
  if (!code) code = set_state_of(conn, id, &state, err);
  if (!code && state == PST_STORE_DATA_WITHDRAWN)
    code = pst_store_sql_int(conn, &n, "SELECT count(*) FROM data_set_records WHERE set_id = ?1", err, "i", id);
  if (!code && state == PST_STORE_DATA_WITHDRAWN && n != (int64_t)c->n_records) return record_gone(err);
  if (!code) code = pst_store_file_put(c->store, c->text.data, c->text.n, hash, err);
  if (!code && state == PST_STORE_DATA_WITHDRAWN)
    code =
        pst_store_sql_run(conn, NULL, "UPDATE data_sets SET state = 0, replaced_by = NULL, report = ?2 WHERE id = ?1",
                          err, "is", id, c->set->report);
  return code;
}

int pst_store_data_set_put(pst_store *store, const pst_store_data_set *set, pst_str text, bool by_line,
                           const int64_t *record_ids, size_t n_records, char ret_hash[65], pst_error *err) {
  char hash[65];
  if (by_line && n_records != (size_t)set->n_lines)
    return pst_error_set(err, PST_E_BAD_INPUT, "data set", "%lld lines were made of %zu records",
                         (long long)set->n_lines, n_records);
  pst_sha256_hex(text.data, text.n, hash);
  put_call c = {store, set, hash, text, by_line, record_ids, n_records};
  int code = pst_store_write_now(store, false, announce_apply, &c, err);
  if (!code) code = pst_store_write_now(store, false, fulfil_apply, &c, err);
  if (!code) memcpy(ret_hash, hash, sizeof hash);
  return code;
}

/* ---- reading ---- */

#define SET_COLUMNS "hash, kind, workload, n_lines, params, report, created_ms, state, replaced_by"

typedef struct set_walk {
  int (*fn)(void *user, const pst_store_data_set *set);
  void *user;
} set_walk;

static int set_row(sqlite3_stmt *stmt, void *context) {
  const set_walk *walk = context;
  pst_store_data_set s = {.hash = pst_store_column_str(stmt, 0),
                          .kind = pst_store_column_str(stmt, 1),
                          .workload = pst_store_column_str(stmt, 2),
                          .n_lines = sqlite3_column_int64(stmt, 3),
                          .params = pst_store_column_str(stmt, 4),
                          .report = pst_store_column_str(stmt, 5),
                          .created_ms = sqlite3_column_int64(stmt, 6),
                          .state = (pst_store_data_state)sqlite3_column_int(stmt, 7),
                          .replaced_by = pst_store_column_str(stmt, 8)};
  return walk->fn(walk->user, &s);
}

int pst_store_data_set_each(pst_store *store, pst_str workload, int (*fn)(void *user, const pst_store_data_set *set),
                            void *user, pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  if (workload.data)
    code = pst_store_sql_begin(conn, "SELECT " SET_COLUMNS " FROM data_sets WHERE workload = ?1 ORDER BY id DESC",
                               &stmt, err, "s", workload);
  else
    code = pst_store_sql_begin(conn, "SELECT " SET_COLUMNS " FROM data_sets ORDER BY id DESC", &stmt, err, "");
  set_walk walk = {fn, user};
  code = pst_store_sql_each(conn, code, stmt, set_row, &walk, err);
  pst_store_reader_give(store, conn);
  return code;
}

static bool is_hash_prefix(pst_str hash) {
  if (hash.n < 8 || hash.n > 64) return false;
  for (size_t i = 0; i < hash.n; i++)
    if (!((hash.data[i] >= '0' && hash.data[i] <= '9') || (hash.data[i] >= 'a' && hash.data[i] <= 'f'))) return false;
  return true;
}

int pst_store_data_set_get(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_store_data_set *set),
                           void *user, pst_error *err) {
  if (!is_hash_prefix(hash))
    return pst_error_set(err, PST_E_BAD_INPUT, "data set", "a data set is named by 8 to 64 lower-case hex digits");
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int64_t n = 0;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code = pst_store_sql_int(conn, &n, "SELECT count(*) FROM data_sets WHERE hash GLOB ?1 || '*'", err, "s", hash);
  if (!code && n != 1)
    code = n ? pst_error_set(err, PST_E_BAD_INPUT, "data set", "\"%.*s\" is the beginning of %lld data sets",
                             (int)hash.n, hash.data, (long long)n)
             : pst_error_set(err, PST_E_NOT_FOUND, "data set", "there is no data set \"%.*s\"", (int)hash.n, hash.data);
  if (!code)
    code = pst_store_sql_begin(conn, "SELECT " SET_COLUMNS " FROM data_sets WHERE hash GLOB ?1 || '*'", &stmt, err, "s",
                               hash);
  set_walk walk = {fn, user};
  code = pst_store_sql_each(conn, code, stmt, set_row, &walk, err);
  pst_store_reader_give(store, conn);
  return code;
}

typedef struct line_walk {
  int (*fn)(void *user, int64_t line, int64_t record_id);
  int (*hash_fn)(void *user, pst_str hash);
  int (*use_fn)(void *user, pst_str hash, pst_str kind, pst_str name, bool stale);
  void *user;
} line_walk;

static int line_row(sqlite3_stmt *stmt, void *context) {
  const line_walk *walk = context;
  return walk->fn(walk->user, sqlite3_column_int64(stmt, 0), sqlite3_column_int64(stmt, 1));
}

int pst_store_data_set_records(pst_store *store, pst_str hash, int (*fn)(void *user, int64_t line, int64_t record_id),
                               void *user, pst_error *err) {
  line_walk walk = {.fn = fn, .user = user};
  return pst_store_read_each(store, line_row, &walk, err,
                             "SELECT d.line, d.record_id FROM data_set_records d JOIN data_sets s ON s.id = d.set_id"
                             " WHERE s.hash = ?1 ORDER BY d.line",
                             "s", hash);
}

static int hash_row(sqlite3_stmt *stmt, void *context) {
  const line_walk *walk = context;
  return walk->hash_fn(walk->user, pst_store_column_str(stmt, 0));
}

int pst_store_data_set_of_record(pst_store *store, int64_t record_id, int (*fn)(void *user, pst_str hash), void *user,
                                 pst_error *err) {
  line_walk walk = {.hash_fn = fn, .user = user};
  return pst_store_read_each(store, hash_row, &walk, err,
                             "SELECT s.hash FROM data_sets s JOIN data_set_records d ON d.set_id = s.id"
                             " WHERE d.record_id = ?1 ORDER BY s.id",
                             "i", record_id);
}

/* ---- what was made of a set ---- */

typedef struct use_call {
  pst_str hash, kind, name;
  int64_t now_ms;
} use_call;

/* A name that is used again stands for what was made last. */
int pst_store_data_set_use(pst_store_conn *conn, pst_str hash, pst_str kind, pst_str name, int64_t now_ms,
                           pst_error *err) {
  int64_t id = 0;
  int code = set_id_of(conn, hash, &id, err);
  if (code == PST_E_NOT_FOUND)
    return pst_error_set(err, code, "data set", "there is no data set \"%.*s\"", (int)PST_MIN(hash.n, (size_t)64),
                         hash.data);
  if (code) return code;
  return pst_store_sql_run(conn, NULL,
                           "INSERT INTO data_set_uses(set_id, kind, name, time_ms, stale)"
                           " VALUES(?1, ?2, ?3, ?4, (SELECT state FROM data_sets WHERE id = ?1))"
                           " ON CONFLICT DO UPDATE SET time_ms = excluded.time_ms, stale = excluded.stale",
                           err, "issi", id, kind, name, now_ms);
}

static int use_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const use_call *c = arg;
  return pst_store_data_set_use(conn, c->hash, c->kind, c->name, c->now_ms, err);
}

int pst_store_data_set_used(pst_store *store, pst_str hash, pst_str kind, pst_str name, int64_t now_ms,
                            pst_error *err) {
  use_call c = {hash, kind, name, now_ms};
  return pst_store_write_now(store, false, use_apply, &c, err);
}

typedef struct product_call {
  pst_store *store;
  pst_str set;
  const void *data;
  size_t n;
} product_call;

static int product_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const product_call *c = arg;
  char hash[65];
  int64_t state = 0;
  int code = pst_store_sql_int(conn, &state, "SELECT state FROM data_sets WHERE hash = ?1", err, "s", c->set);
  if (!code && state == PST_STORE_DATA_WITHDRAWN)
    return pst_error_set(err, PST_E_NOT_FOUND, "data set",
                         "%.12s was withdrawn, since records of it were deleted; nothing more is made of it",
                         c->set.data);
  return code ? code : pst_store_file_put(c->store, c->data, c->n, hash, err);
}

int pst_store_data_set_product(pst_store *store, pst_str set, pst_str kind, const void *data, size_t n,
                               char ret_hash[65], pst_error *err) {
  char hash[65];
  product_call c = {store, set, data, n};
  pst_sha256_hex(data, n, hash);
  int code = pst_store_data_set_used(store, set, kind, pst_str_from(hash), pst_clock_unix_ms(), err);
  if (!code) code = pst_store_write_now(store, false, product_apply, &c, err);
  if (!code) memcpy(ret_hash, hash, sizeof hash);
  return code;
}

static int copy_hash(sqlite3_stmt *stmt, void *context) {
  pst_store_copy(context, 65, pst_store_column_str(stmt, 0));
  return 0;
}

int pst_store_data_set_of_folder(pst_store *store, const char *folder, char ret_hash[65], pst_error *err) {
  char *home = realpath(store->home, NULL), *path = realpath(folder, NULL);
  size_t n = home ? strlen(home) : 0;
  ret_hash[0] = '\0';
  int code = 0;
  if (n && path && !strncmp(path, home, n) && path[n] == '/')
    code = pst_store_read_each(store, copy_hash, ret_hash, err,
                               "SELECT s.hash FROM data_set_uses u JOIN data_sets s ON s.id = u.set_id"
                               " WHERE u.kind = '" PST_STORE_PRODUCT_FOLDER "' AND u.name = ?1",
                               "s", pst_str_from(path + n + 1));
  free(home); /* realpath's own */
  free(path);
  return code;
}

static int use_row(sqlite3_stmt *stmt, void *context) {
  const line_walk *walk = context;
  return walk->use_fn(walk->user, pst_store_column_str(stmt, 0), pst_store_column_str(stmt, 1),
                      pst_store_column_str(stmt, 2), sqlite3_column_int(stmt, 3) != 0);
}

int pst_store_data_set_uses(pst_store *store, pst_str hash,
                            int (*fn)(void *user, pst_str hash, pst_str kind, pst_str name, bool stale), void *user,
                            pst_error *err) {
  line_walk walk = {.use_fn = fn, .user = user};
  return pst_store_read_each(store, use_row, &walk, err,
                             "SELECT s.hash, u.kind, u.name, u.stale FROM data_set_uses u JOIN data_sets s"
                             " ON s.id = u.set_id WHERE u.kind <> '" PST_STORE_PRODUCT_CHECKPOINT "'"
                             " AND (?1 IS NULL OR s.hash = ?1)"
                             " UNION SELECT s.hash, 'adapter', a.name, s.state FROM adapters a JOIN data_sets s"
                             " ON s.hash = a.data WHERE ?1 IS NULL OR s.hash = ?1 ORDER BY 1, 2, 3",
                             "s", hash);
}

/* ---- withdrawing ---- */

typedef struct affected {
  int64_t id, n_lines;
  bool by_line;
  size_t set; /* in the erasure */
} affected;

typedef struct affected_list {
  pst_store_erasure *erasure;
  affected *list;
  size_t n, capacity;
} affected_list;

static int affected_row(sqlite3_stmt *stmt, void *context) {
  affected_list *a = context;
  pst_store_erasure *e = a->erasure;
  pst_str kind = pst_store_column_str(stmt, 2);
  if (pst_array_reserve((void **)&a->list, &a->capacity, a->n + 1, sizeof *a->list) ||
      pst_array_reserve((void **)&e->sets, &e->sets_capacity, e->n_sets + 1, sizeof *e->sets))
    return PST_E_NOMEM;
  a->list[a->n++] = (affected){sqlite3_column_int64(stmt, 0), 0, sqlite3_column_int(stmt, 3) != 0, e->n_sets};
  pst_store_erased_set *s = &e->sets[e->n_sets++];
  memset(s, 0, sizeof *s);
  pst_store_copy(s->hash, sizeof s->hash, pst_store_column_str(stmt, 1));
  s->kind = pst_arena_strndup(e->arena, kind.data, kind.n);
  s->n_lines = sqlite3_column_int64(stmt, 4);
  return s->kind ? 0 : PST_E_NOMEM;
}

typedef struct line_filter {
  pst_str text;
  size_t at; /* where line `line` begins */
  int64_t line;
  pst_buf *out;
} line_filter;

/* Lines up to `line` are copied; then one is skipped. */
static void copy_lines(line_filter *f, int64_t line) {
  while (f->at < f->text.n) {
    size_t end = PST_MIN(pst_str_find(f->text, PST_STR("\n"), f->at), f->text.n - 1) + 1;
    if (f->line < line) pst_buf_append(f->out, f->text.data + f->at, end - f->at);
    f->at = end;
    if (f->line++ == line) return;
  }
}

static int erased_line_row(sqlite3_stmt *stmt, void *context) {
  copy_lines(context, sqlite3_column_int64(stmt, 0));
  return 0;
}

/* The set's text without the erased lines. Empty: nothing is left. */
static int text_left(pst_store_conn *conn, pst_store *store, const affected *a, const char *hash, pst_buf *out,
                     pst_error *err) {
  char *path = NULL, *data = NULL;
  size_t n = 0;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_file_path(store, pst_str_from(hash), &path, err);
  if (!code) code = pst_file_read(path, (size_t)1 << 34, &data, &n, err);
  if (code == PST_E_NOT_FOUND) { /* somebody removed it: nothing is left of it */
    pst_log(PST_LOG_WARN, "event=data_set_missing hash=%s", hash);
    pst_free(path);
    return 0;
  }
  line_filter f = {.text = {data, n}, .out = out};
  if (!code)
    code = pst_store_sql_begin(conn,
                               "SELECT d.line FROM data_set_records d JOIN erased e ON e.id = d.record_id"
                               " WHERE d.set_id = ?1 ORDER BY d.line",
                               &stmt, err, "i", a->id);
  code = pst_store_sql_each(conn, code, stmt, erased_line_row, &f, err);
  if (!code) copy_lines(&f, INT64_MAX);
  if (!code && pst_buf_status(out))
    code = pst_error_set(err, PST_E_NOMEM, path, "no memory to write the data set anew");
  pst_free(data);
  pst_free(path);
  return code;
}

/* The new set has the old one's lineage but for the erased records. */
static int replace(pst_store_conn *conn, const affected *a, const char *hash, pst_store_data_state state,
                   int64_t now_ms, pst_error *err) {
  int64_t id = 0;
  int code = pst_store_sql_run(conn, NULL, /* those of a set whose making was broken off */
                               "DELETE FROM data_set_records WHERE set_id IN"
                               " (SELECT id FROM data_sets WHERE hash = ?1 AND state = 1)",
                               err, "s", pst_str_from(hash));
  if (!code)
    code = pst_store_sql_run(
        conn, NULL,
        "INSERT INTO data_sets(hash, kind, workload, by_line, n_lines, params, created_ms, state)"
        " SELECT ?2, kind, workload, by_line, (SELECT count(*) FROM data_set_records WHERE set_id = ?1"
        "   AND record_id NOT IN (SELECT id FROM erased)), params, ?3, ?4 FROM data_sets WHERE id = ?1"
        " ON CONFLICT(hash) DO UPDATE SET state = excluded.state, replaced_by = NULL WHERE state = 1",
        err, "isii", a->id, pst_str_from(hash), now_ms, (int64_t)state);
  if (!code) code = set_id_of(conn, pst_str_from(hash), &id, err);
  if (code) return code;
  return pst_store_sql_run(conn, NULL,
                           "INSERT INTO data_set_records(set_id, line, record_id)"
                           " SELECT ?2, row_number() OVER (ORDER BY line) - 1, record_id FROM data_set_records"
                           " WHERE set_id = ?1 AND record_id NOT IN (SELECT id FROM erased) ON CONFLICT DO NOTHING",
                           err, "ii", a->id, id);
}

/* What a set is without the erased lines: announced, or put in its place. ret_hash empty: nothing is left. */
static int succeed(pst_store_conn *conn, pst_store *store, const affected *a, bool announce, const char *hash,
                   int64_t now_ms, char ret_hash[65], pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  char successor[65];
  int64_t id;
  int code = text_left(conn, store, a, hash, &text, err);
  if (!code && text.n) {
    pst_sha256_hex(text.data, text.n, successor);
    if (!announce && set_id_of(conn, pst_str_from(successor), &id, NULL))
      code = pst_error_set(err, PST_E_BUSY, "data set", "data sets were made while their records were erased; again");
    if (!code && !announce) code = pst_store_file_put(store, text.data, text.n, successor, err);
    if (!code)
      code = replace(conn, a, successor, announce ? PST_STORE_DATA_WITHDRAWN : PST_STORE_DATA_WHOLE, now_ms, err);
    if (!code) memcpy(ret_hash, successor, sizeof successor);
  }
  pst_buf_done(&text);
  return code;
}

static int stale_row(sqlite3_stmt *stmt, void *context) {
  pst_store_erasure *e = context;
  pst_str kind = pst_store_column_str(stmt, 1), name = pst_store_column_str(stmt, 2);
  if (pst_array_reserve((void **)&e->uses, &e->uses_capacity, e->n_uses + 1, sizeof *e->uses)) return PST_E_NOMEM;
  pst_store_erased_use *u = &e->uses[e->n_uses];
  pst_store_copy(u->hash, sizeof u->hash, pst_store_column_str(stmt, 0));
  u->kind = pst_arena_strndup(e->arena, kind.data, kind.n);
  u->name = pst_arena_strndup(e->arena, name.data, name.n);
  e->n_uses++;
  return u->kind && u->name ? 0 : PST_E_NOMEM;
}

static int withdraw(pst_store_conn *conn, const affected *a, const char *replaced_by, pst_store_erasure *erasure,
                    pst_error *err) {
  sqlite3_stmt *stmt = NULL;
  int code =
      pst_store_sql_begin(conn,
                          "SELECT s.hash, u.kind, u.name FROM data_set_uses u JOIN data_sets s ON s.id = u.set_id"
                          " WHERE u.set_id = ?1 AND u.stale = 0 AND u.kind <> '" PST_STORE_PRODUCT_CHECKPOINT "'"
                          " UNION SELECT s.hash, 'adapter', a.name FROM adapters a JOIN data_sets s"
                          " ON s.hash = a.data WHERE s.id = ?1 ORDER BY 2, 3",
                          &stmt, err, "i", a->id);
  code = pst_store_sql_each(conn, code, stmt, stale_row, erasure, err);
  if (!code)
    code = pst_store_sql_run(conn, NULL, "UPDATE data_set_uses SET stale = 1 WHERE set_id = ?1", err, "i", a->id);
  if (!code) code = pst_store_sql_run(conn, NULL, "DELETE FROM data_set_records WHERE set_id = ?1", err, "i", a->id);
  if (!code)
    code =
        pst_store_sql_run(conn, NULL, "UPDATE data_sets SET state = 1, report = NULL, replaced_by = ?2 WHERE id = ?1",
                          err, "is", a->id, (pst_str){*replaced_by ? replaced_by : NULL, strlen(replaced_by)});
  return code;
}

int pst_store_data_sets_withdraw(pst_store_conn *conn, pst_store *store, bool announce, int64_t now_ms,
                                 pst_store_erasure *erasure, pst_error *err) {
  affected_list a = {.erasure = erasure};
  sqlite3_stmt *stmt = NULL;
  int code =
      pst_store_sql_begin(conn,
                          "SELECT s.id, s.hash, s.kind, s.by_line AND s.state = 0, count(*) FROM data_set_records d"
                          " JOIN erased e ON e.id = d.record_id JOIN data_sets s ON s.id = d.set_id"
                          " GROUP BY s.id ORDER BY s.id",
                          &stmt, err, "");
  code = pst_store_sql_each(conn, code, stmt, affected_row, &a, err);
  for (size_t i = 0; i < a.n && !code; i++) {
    pst_store_erased_set *s = &erasure->sets[a.list[i].set];
    if (a.list[i].by_line) code = succeed(conn, store, &a.list[i], announce, s->hash, now_ms, s->replaced_by, err);
    if (!code && !announce) code = withdraw(conn, &a.list[i], s->replaced_by, erasure, err);
  }
  pst_free(a.list);
  if (code == PST_E_NOMEM) pst_error_set(err, code, store->path, "out of memory");
  return code;
}

/* ---- cleaning ---- */

/* What is still there of withdrawn sets: their own files, checkpoints, and what was made of them and no other. Products that two sets share stay with the one that is whole, for they
 * are of it alone as well; a checkpoint is of both. */
#define WITHDRAWN_PLACES                                                                                    \
  "SELECT '', hash FROM data_sets WHERE state = 1 UNION"                                                    \
  " SELECT u.kind, u.name FROM data_set_uses u JOIN data_sets s ON s.id = u.set_id WHERE s.state = 1"       \
  " AND u.kind IN ('" PST_STORE_PRODUCT_FOLDER "', '" PST_STORE_PRODUCT_EXAMPLES "') AND NOT EXISTS"        \
  " (SELECT 1 FROM data_set_uses v JOIN data_sets t ON t.id = v.set_id"                                     \
  "  WHERE v.kind = u.kind AND v.name = u.name AND t.state = 0)"                                            \
  " UNION SELECT u.kind, u.name FROM data_set_uses u JOIN data_sets s ON s.id = u.set_id WHERE s.state = 1" \
  " AND u.kind = '" PST_STORE_PRODUCT_CHECKPOINT "'"

typedef struct cleaning {
  pst_store *store;
  bool found; /* something is there */
} cleaning;

static char *path_of_product(const pst_store *store, pst_str kind, pst_str name) {
  char text[256];
  bool by_path = pst_str_is(kind, PST_STORE_PRODUCT_FOLDER) || pst_str_is(kind, PST_STORE_PRODUCT_CHECKPOINT);
  (void)snprintf(text, sizeof text, "%s%.*s", by_path ? "" : "files/", (int)PST_MIN(name.n, (size_t)200), name.data);
  return pst_path_join(store->home, text);
}

static int look_row(sqlite3_stmt *stmt, void *context) {
  cleaning *c = context;
  char *path = path_of_product(c->store, pst_store_column_str(stmt, 0), pst_store_column_str(stmt, 1));
  if (!path) return PST_E_NOMEM;
  c->found = c->found || pst_file_exists(path) || pst_dir_exists(path);
  pst_free(path);
  return 0;
}

static int clean_row(sqlite3_stmt *stmt, void *context) {
  const cleaning *c = context;
  char *path = path_of_product(c->store, pst_store_column_str(stmt, 0), pst_store_column_str(stmt, 1));
  if (!path) return PST_E_NOMEM;
  if (!pst_dir_remove(path)) pst_log(PST_LOG_ERROR, "event=data_set_not_removed path=%s", path);
  pst_free(path);
  return 0;
}

static int clean_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_sql_begin(conn, WITHDRAWN_PLACES, &stmt, err, "");
  return pst_store_sql_each(conn, code, stmt, clean_row, arg, err);
}

/* Looks first: where nothing is left of them, as nearly always, no write lock is taken. */
int pst_store_data_sets_clean(pst_store *store, pst_error *err) {
  cleaning c = {store, false};
  int code = pst_store_read_each(store, look_row, &c, err, WITHDRAWN_PLACES, "");
  if (!code && c.found) code = pst_store_write_now(store, false, clean_apply, &c, err);
  return code == PST_E_NOMEM ? pst_error_set(err, code, store->path, "out of memory") : code;
}

bool pst_store_data_withdrawn(pst_store *store, pst_str hash) {
  pst_store_conn *conn = NULL;
  int64_t withdrawn = 0;
  if (pst_store_reader_take(store, &conn, NULL)) return false;
  int code = pst_store_sql_int(conn, &withdrawn,
                               "SELECT EXISTS(SELECT 1 FROM data_sets WHERE hash = ?1 AND state = 1 UNION ALL"
                               " SELECT 1 FROM data_set_uses u JOIN data_sets s ON s.id = u.set_id"
                               " WHERE u.name = ?1 AND s.state = 1)",
                               NULL, "s", hash);
  pst_store_reader_give(store, conn);
  return !code && withdrawn;
}

/* ---- guarded items ---- */

typedef struct guard_call {
  pst_str workload, fingerprint;
  const pst_store_guarded *items;
  size_t n;
} guard_call;

static int guard_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const guard_call *c = arg;
  int64_t n = 0;
  int code =
      pst_store_sql_run(conn, &n, "INSERT INTO guards(workload, fingerprint) VALUES(?1, ?2) ON CONFLICT DO NOTHING",
                        err, "ss", c->workload, c->fingerprint);
  if (code || n == 0) return code;
  int64_t id = sqlite3_last_insert_rowid(conn->db);
  for (size_t i = 0; i < c->n && !code; i++)
    code = pst_store_sql_run(conn, NULL,
                             "INSERT INTO guarded_items(guard_id, item, part, words) VALUES(?1, ?2, ?3, ?4)"
                             " ON CONFLICT DO NOTHING",
                             err, "isib", id, c->items[i].item, (int64_t)c->items[i].part,
                             c->items[i].n_words ? (const void *)c->items[i].words : (const void *)"",
                             c->items[i].n_words * sizeof(uint64_t));
  return code;
}

int pst_store_guard_put(pst_store *store, pst_str workload, pst_str fingerprint, const pst_store_guarded *items,
                        size_t n, pst_error *err) {
  guard_call c = {workload, fingerprint, items, n};
  return pst_store_write_now(store, false, guard_apply, &c, err);
}

bool pst_store_guard_known(pst_store *store, pst_str workload, pst_str fingerprint) {
  pst_store_conn *conn = NULL;
  int64_t known = 0;
  if (pst_store_reader_take(store, &conn, NULL)) return false;
  int code =
      pst_store_sql_int(conn, &known, "SELECT EXISTS(SELECT 1 FROM guards WHERE workload = ?1 AND fingerprint = ?2)",
                        NULL, "ss", workload, fingerprint);
  pst_store_reader_give(store, conn);
  return !code && known;
}

typedef struct guard_walk {
  int (*fn)(void *user, const pst_store_guarded *item);
  void *user;
  uint64_t *words; /* a blob need not be aligned */
  size_t capacity;
} guard_walk;

static int guard_row(sqlite3_stmt *stmt, void *context) {
  guard_walk *walk = context;
  size_t n = (size_t)sqlite3_column_bytes(stmt, 3) / sizeof(uint64_t);
  if (pst_array_reserve((void **)&walk->words, &walk->capacity, n + 1, sizeof *walk->words)) return PST_E_NOMEM;
  if (n) memcpy(walk->words, sqlite3_column_blob(stmt, 3), n * sizeof *walk->words);
  pst_store_guarded g = {.workload = pst_store_column_str(stmt, 0),
                         .item = pst_store_column_str(stmt, 1),
                         .part = sqlite3_column_int(stmt, 2),
                         .words = walk->words,
                         .n_words = n};
  return walk->fn(walk->user, &g);
}

int pst_store_guard_each(pst_store *store, int (*fn)(void *user, const pst_store_guarded *item), void *user,
                         pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code = pst_store_sql_begin(conn,
                             "SELECT g.workload, i.item, i.part, i.words FROM guarded_items i JOIN guards g"
                             " ON g.id = i.guard_id ORDER BY g.id, i.item",
                             &stmt, err, "");
  guard_walk walk = {.fn = fn, .user = user};
  code = pst_store_sql_each(conn, code, stmt, guard_row, &walk, err);
  pst_free(walk.words);
  pst_store_reader_give(store, conn);
  return code;
}
