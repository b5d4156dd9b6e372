/* Files that clients sent: a row each, and HOME/uploads/<sha256>, which rows of the same content share. Nothing else keeps files there, so that the last row's deletion may remove
 * one; files come and go inside writes, of which there is one at a time, so that none is removed that another row is about to name. */
#include "store/db.h"

#include <dirent.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

static const char folder[] = "uploads";

typedef struct put_call {
  pst_str name, purpose, data;
  int64_t key_id, now_ms;
  int64_t id; /* out */
} put_call;

static int put_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  put_call *c = arg;
  char hash[65];
  int code = pst_store_file_put_in(conn->store, folder, c->data.data, c->data.n, hash, err);
  if (!code)
    code = pst_store_sql_run(
        conn, NULL,
        "INSERT INTO uploads(key_id, name, purpose, hash, bytes, created_ms) VALUES(?1, ?2, ?3, ?4, ?5, ?6)", err,
        "nsssii", c->key_id, c->name, c->purpose, pst_str_from(hash), (int64_t)c->data.n, c->now_ms);
  if (!code) c->id = sqlite3_last_insert_rowid(conn->db);
  return code;
}

int pst_store_upload_put(pst_store *store, pst_str name, pst_str purpose, int64_t key_id, pst_str data, int64_t now_ms,
                         int64_t *ret_id, pst_error *err) {
  put_call c = {name, purpose, data, key_id, now_ms, 0};
  int code = pst_store_write_now(store, false, put_apply, &c, err);
  if (!code) *ret_id = c.id;
  return code;
}

static int no_such_upload(int64_t id, pst_error *err) {
  return pst_error_set(err, PST_E_NOT_FOUND, "file", "there is no file number %" PRId64, id);
}

typedef struct upload_walk {
  int (*fn)(void *user, const pst_store_upload *upload);
  void *user;
  int64_t n;
} upload_walk;

#define UPLOAD_SELECT                                                                          \
  "SELECT id, coalesce(key_id, 0), name, purpose, hash, bytes, created_ms FROM uploads WHERE " \
  "(?1 < 0 OR coalesce(key_id, 0) = ?1) AND "

static int upload_row(sqlite3_stmt *stmt, void *context) {
  upload_walk *walk = context;
  pst_store_upload u = {.id = sqlite3_column_int64(stmt, 0),
                        .key_id = sqlite3_column_int64(stmt, 1),
                        .name = pst_store_column_str(stmt, 2),
                        .purpose = pst_store_column_str(stmt, 3),
                        .hash = pst_store_column_str(stmt, 4),
                        .bytes = sqlite3_column_int64(stmt, 5),
                        .created_ms = sqlite3_column_int64(stmt, 6)};
  walk->n++;
  return walk->fn(walk->user, &u);
}

int pst_store_upload_get(pst_store *store, int64_t id, int64_t key_id,
                         int (*fn)(void *user, const pst_store_upload *upload), void *user, pst_error *err) {
  upload_walk walk = {fn, user, 0};
  int code = pst_store_read_each(store, upload_row, &walk, err, UPLOAD_SELECT "id = ?2", "ii", key_id, id);
  return !code && walk.n == 0 ? no_such_upload(id, err) : code;
}

int pst_store_upload_each(pst_store *store, int64_t key_id, int64_t before_id, int64_t limit,
                          int (*fn)(void *user, const pst_store_upload *upload), void *user, pst_error *err) {
  upload_walk walk = {fn, user, 0};
  return pst_store_read_each(store, upload_row, &walk, err,
                             UPLOAD_SELECT "(?2 = 0 OR id < ?2) ORDER BY id DESC LIMIT ?3", "iii", key_id, before_id,
                             limit > 0 ? limit : INT64_C(-1));
}

int pst_store_upload_path(pst_store *store, pst_str hash, char **ret_path, pst_error *err) {
  int code = pst_store_file_path_in(store, folder, hash, ret_path, err);
  return code == PST_E_NOT_FOUND ? pst_store_file_path(store, hash, ret_path, err) : code; /* of an earlier version */
}

/* ---- deletion ---- */

/* Inside a write: removes a file that no row names. One that cannot be removed is left for the next opening. */
static void remove_unnamed(pst_store_conn *conn, pst_str hash) {
  int64_t n = 0;
  char *path = NULL;
  int code = pst_store_sql_int(conn, &n, "SELECT count(*) FROM uploads WHERE hash = ?1", NULL, "s", hash);
  if (!code && n == 0 && !pst_store_file_path_in(conn->store, folder, hash, &path, NULL)) (void)unlink(path);
  pst_free(path);
}

void pst_store_uploads_recover(pst_store_conn *conn) {
  char *path = pst_path_join(conn->store->home, folder);
  DIR *dir = path ? opendir(path) : NULL;
  for (const struct dirent *entry; dir && (entry = readdir(dir));)
    if (strlen(entry->d_name) == 64) remove_unnamed(conn, pst_str_from(entry->d_name));
  if (dir) (void)closedir(dir);
  pst_free(path);
}

typedef struct delete_call {
  int64_t id, key_id;
  char hash[65]; /* of the row */
} delete_call;

static int delete_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const delete_call *c = arg;
  int64_t n = 0;
  int code = pst_store_sql_run(conn, &n, "DELETE FROM uploads WHERE id = ?1 AND (?2 < 0 OR coalesce(key_id, 0) = ?2)",
                               err, "ii", c->id, c->key_id);
  if (!code && n == 0) return no_such_upload(c->id, err);
  if (!code) remove_unnamed(conn, pst_str_from(c->hash));
  return code;
}

static int note_hash(void *user, const pst_store_upload *upload) {
  delete_call *c = user;
  (void)snprintf(c->hash, sizeof c->hash, "%.*s", (int)PST_MIN(upload->hash.n, sizeof c->hash - 1), upload->hash.data);
  return 0;
}

int pst_store_upload_delete(pst_store *store, int64_t id, int64_t key_id, pst_error *err) {
  delete_call c = {.id = id, .key_id = key_id};
  int code = pst_store_upload_get(store, id, key_id, note_hash, &c, err);
  return code ? code : pst_store_write_now(store, false, delete_apply, &c, err);
}
