/* API keys: made once, shown once, kept as a salted hash.
 *
 * A secret is "pst-" + 16 hex digits that find the row + "-" + 48 hex digits of 192 random bits. The digits that find the row are no
 * secret; the whole text is hashed with the row's salt and compared in constant time. One SHA-256 is enough: the secret is drawn
 * by us and has more entropy than any search could cover; a slow hash would only cost every request its time. */
#include "store/db.h"

#include <inttypes.h>
#include <string.h>

#define LOOKUP_DIGITS 16
#define SECRET_DIGITS 48
#define SECRET_CHARS (4 + LOOKUP_DIGITS + 1 + SECRET_DIGITS)

static void salted_hash(const uint8_t salt[16], pst_str secret, uint8_t ret_hash[32]) {
  pst_sha256 s;
  pst_sha256_init(&s);
  pst_sha256_update(&s, salt, 16);
  pst_sha256_update(&s, secret.data, secret.n);
  pst_sha256_done(&s, ret_hash);
}

static bool equal_in_constant_time(const uint8_t *a, const uint8_t *b, size_t n) {
  uint8_t difference = 0;
  for (size_t i = 0; i < n; i++) difference = (uint8_t)(difference | (a[i] ^ b[i]));
  return difference == 0;
}

static bool limits_valid(pst_store_limits limits) {
  return limits.day_nusd >= PST_STORE_NO_LIMIT && limits.month_nusd >= PST_STORE_NO_LIMIT &&
         limits.total_nusd >= PST_STORE_NO_LIMIT;
}

static bool name_valid(pst_str name) {
  if (name.n == 0 || name.n > 63) return false;
  for (size_t i = 0; i < name.n; i++)
    if ((unsigned char)name.data[i] < 0x20) return false;
  return true;
}

typedef struct create_call {
  pst_str name, workload, hint, lookup;
  pst_store_limits limits;
  int64_t now_ms;
  uint8_t salt[16], hash[32];
  bool has_secret;
  int64_t id; /* out */
} create_call;

static int create_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  create_call *c = arg;
  int code = pst_store_sql_run(
      conn, NULL,
      "INSERT INTO api_keys(name, hint, lookup, salt, hash, workload, day_nusd, month_nusd, total_nusd, created_ms)"
      " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
      err, "sssbbsiiii", c->name, c->hint, c->lookup, (const void *)c->salt, c->has_secret ? sizeof c->salt : (size_t)0,
      (const void *)c->hash, c->has_secret ? sizeof c->hash : (size_t)0, c->workload, c->limits.day_nusd,
      c->limits.month_nusd, c->limits.total_nusd, c->now_ms);
  if (code == PST_E_EXISTS)
    return pst_error_set(err, code, "name", "there is an API key named \"%.*s\" already; choose another name",
                         (int)c->name.n, c->name.data);
  if (!code) c->id = sqlite3_last_insert_rowid(conn->db);
  return code;
}

int pst_store_key_create(pst_store *store, pst_str name, pst_str workload, pst_store_limits limits, int64_t now_ms,
                         int64_t *ret_id, char ret_secret[PST_STORE_SECRET_BYTES], pst_error *err) {
  if (!name_valid(name))
    return pst_error_set(err, PST_E_BAD_INPUT, "name", "a key's name has 1 to 63 bytes and no control characters");
  if (workload.n > 63) return pst_error_set(err, PST_E_BAD_INPUT, "workload", "a workload's name has at most 63 bytes");
  if (!limits_valid(limits))
    return pst_error_set(err, PST_E_BAD_INPUT, "limit", "a limit is a sum of money that is not negative");
  create_call c = {
      .name = name, .workload = workload, .limits = limits, .now_ms = now_ms, .has_secret = ret_secret != NULL};
  c.hint = PST_STR("");
  uint8_t random[(LOOKUP_DIGITS + SECRET_DIGITS) / 2];
  char text[PST_STORE_SECRET_BYTES] = "pst-", lookup[LOOKUP_DIGITS + 1];
  if (c.has_secret) {
    int code = pst_random_secret(random, sizeof random);
    if (!code) code = pst_random_secret(c.salt, sizeof c.salt);
    if (code) return pst_error_set(err, code, NULL, "no random numbers from the system");
    pst_hex(random, LOOKUP_DIGITS / 2, lookup);
    memcpy(text + 4, lookup, LOOKUP_DIGITS);
    text[4 + LOOKUP_DIGITS] = '-';
    pst_hex(random + LOOKUP_DIGITS / 2, SECRET_DIGITS / 2, text + 5 + LOOKUP_DIGITS);
    c.hint = (pst_str){text, 12};
    c.lookup = (pst_str){lookup, LOOKUP_DIGITS};
    salted_hash(c.salt, (pst_str){text, SECRET_CHARS}, c.hash);
  }
  int code = pst_store_write_now(store, false, create_apply, &c, err);
  if (code) return code;
  *ret_id = c.id;
  if (ret_secret) memcpy(ret_secret, text, SECRET_CHARS + 1);
  return 0;
}

#define RUN_ACCOUNT "run "

bool pst_store_run_refused(const pst_error *error) {
  return error->code == PST_E_BUDGET && !strncmp(error->place, RUN_ACCOUNT, sizeof RUN_ACCOUNT - 1);
}

int pst_store_run_account(pst_store *store, int64_t run_id, int64_t total_nusd, int64_t now_ms, int64_t *ret_id,
                          pst_error *err) {
  char name[40];
  pst_store_key key;
  const pst_store_limits limits = {PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, total_nusd};
  *ret_id = 0;
  if (total_nusd == 0) return 0;
  (void)snprintf(name, sizeof name, RUN_ACCOUNT "%" PRId64, run_id);
  int code = pst_store_key_create(store, pst_str_from(name), (pst_str){NULL, 0}, limits, now_ms, ret_id, NULL, err);
  if (code != PST_E_EXISTS) return code;
  code = pst_store_key_get(store, pst_str_from(name), &key, err);
  if (!code && *key.hint)
    return pst_error_set(err, PST_E_EXISTS, name,
                         "there is an API key of this name; start the command again with --fresh");
  *ret_id = key.id;
  return code ? code : pst_store_key_set_limits(store, key.id, limits, err);
}

#define KEY_COLUMNS \
  "id, name, hint, workload, day_nusd, month_nusd, total_nusd, created_ms, disabled_ms, keep, train, retention_days"
enum { COLUMN_SALT = 12, COLUMN_HASH = 13 }; /* where they are read, behind KEY_COLUMNS */

static void read_key(sqlite3_stmt *stmt, pst_store_key *key) {
  memset(key, 0, sizeof *key);
  key->id = sqlite3_column_int64(stmt, 0);
  pst_store_copy(key->name, sizeof key->name, pst_store_column_str(stmt, 1));
  pst_store_copy(key->hint, sizeof key->hint, pst_store_column_str(stmt, 2));
  pst_store_copy(key->workload, sizeof key->workload, pst_store_column_str(stmt, 3));
  key->limits =
      (pst_store_limits){sqlite3_column_int64(stmt, 4), sqlite3_column_int64(stmt, 5), sqlite3_column_int64(stmt, 6)};
  key->created_ms = sqlite3_column_int64(stmt, 7);
  key->disabled_ms = sqlite3_column_int64(stmt, 8);
  key->has_consent = sqlite3_column_type(stmt, 9) != SQLITE_NULL;
  if (key->has_consent)
    key->consent = (pst_store_consent){(pst_store_keep)sqlite3_column_int(stmt, 9), sqlite3_column_int(stmt, 10) != 0,
                                       sqlite3_column_int(stmt, 11)};
}

/* True if the row's hash is that of the secret; the row is at `stmt`, salt and hash in its columns. */
static bool secret_fits(sqlite3_stmt *stmt, pst_str secret) {
  const uint8_t *salt = sqlite3_column_blob(stmt, COLUMN_SALT), *hash = sqlite3_column_blob(stmt, COLUMN_HASH);
  if (sqlite3_column_bytes(stmt, COLUMN_SALT) != 16 || sqlite3_column_bytes(stmt, COLUMN_HASH) != 32) return false;
  uint8_t computed[32];
  salted_hash(salt, secret, computed);
  return equal_in_constant_time(computed, hash, 32);
}

int pst_store_key_check(pst_store *store, pst_str secret, pst_store_key *ret_key, pst_error *err) {
  static const char DENIED[] = "this API key is unknown or disabled";
  if (secret.n != SECRET_CHARS || !pst_str_starts(secret, PST_STR("pst-")) || !pst_utf8_valid(secret))
    return pst_error_set(err, PST_E_DENIED, NULL, "%s", DENIED);
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  pst_str lookup = {secret.data + 4, LOOKUP_DIGITS};
  code = pst_store_sql_begin(conn, "SELECT " KEY_COLUMNS ", salt, hash FROM api_keys WHERE lookup = ?1", &stmt, err,
                             "s", lookup);
  if (!code) code = pst_store_sql_step(conn, stmt, err);
  pst_store_key key;
  if (code == 1) {
    read_key(stmt, &key);
    code = secret_fits(stmt, secret) && key.disabled_ms == 0 ? 1 : 0;
  }
  pst_store_sql_done(conn, stmt);
  pst_store_reader_give(store, conn);
  if (code < 0) return code;
  if (code == 0) return pst_error_set(err, PST_E_DENIED, NULL, "%s", DENIED);
  *ret_key = key;
  return 0;
}

int pst_store_key_get(pst_store *store, pst_str name, pst_store_key *ret_key, pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code = pst_store_sql_begin(conn, "SELECT " KEY_COLUMNS " FROM api_keys WHERE name = ?1", &stmt, err, "s", name);
  if (!code) code = pst_store_sql_step(conn, stmt, err);
  if (code == 1) read_key(stmt, ret_key);
  pst_store_sql_done(conn, stmt);
  pst_store_reader_give(store, conn);
  if (code == 0)
    return pst_error_set(err, PST_E_NOT_FOUND, "name", "there is no API key named \"%.*s\"", (int)name.n, name.data);
  return PST_MIN(code, 0);
}

typedef struct key_walk {
  int (*fn)(void *user, const pst_store_key *key);
  void *user;
} key_walk;

static int key_row(sqlite3_stmt *stmt, void *context) {
  const key_walk *walk = context;
  pst_store_key key;
  read_key(stmt, &key);
  return walk->fn(walk->user, &key);
}

int pst_store_key_each(pst_store *store, int (*fn)(void *user, const pst_store_key *key), void *user, pst_error *err) {
  key_walk walk = {fn, user};
  return pst_store_read_each(store, key_row, &walk, err, "SELECT " KEY_COLUMNS " FROM api_keys ORDER BY id", "");
}

/* ---- changes ---- */

typedef struct change_call {
  int64_t key_id, now_ms;
  pst_store_limits limits;
  pst_str workload;
  const pst_store_consent *consent; /* NULL: none */
} change_call;

static int changed_one(int code, int64_t n, int64_t key_id, pst_error *err) {
  if (!code && n == 0) return pst_error_set(err, PST_E_NOT_FOUND, NULL, "there is no API key number %" PRId64, key_id);
  return code;
}

static int limits_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const change_call *c = arg;
  int64_t n = 0;
  int code =
      pst_store_sql_run(conn, &n, "UPDATE api_keys SET day_nusd = ?2, month_nusd = ?3, total_nusd = ?4 WHERE id = ?1",
                        err, "iiii", c->key_id, c->limits.day_nusd, c->limits.month_nusd, c->limits.total_nusd);
  return changed_one(code, n, c->key_id, err);
}

static int workload_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const change_call *c = arg;
  int64_t n = 0;
  int code =
      pst_store_sql_run(conn, &n, "UPDATE api_keys SET workload = ?2 WHERE id = ?1", err, "is", c->key_id, c->workload);
  return changed_one(code, n, c->key_id, err);
}

static int consent_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const change_call *c = arg;
  int64_t n = 0;
  int code;
  if (c->consent)
    code = pst_store_sql_run(conn, &n, "UPDATE api_keys SET keep = ?2, train = ?3, retention_days = ?4 WHERE id = ?1",
                             err, "iiii", c->key_id, (int64_t)c->consent->keep, (int64_t)c->consent->train,
                             (int64_t)c->consent->retention_days);
  else
    code = pst_store_sql_run(conn, &n, "UPDATE api_keys SET keep = NULL, train = 0, retention_days = 0 WHERE id = ?1",
                             err, "i", c->key_id);
  return changed_one(code, n, c->key_id, err);
}

static int disable_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const change_call *c = arg;
  int64_t n = 0;
  int code = pst_store_sql_run(conn, &n, "UPDATE api_keys SET disabled_ms = coalesce(disabled_ms, ?2) WHERE id = ?1",
                               err, "ii", c->key_id, c->now_ms);
  return changed_one(code, n, c->key_id, err);
}

int pst_store_key_set_limits(pst_store *store, int64_t key_id, pst_store_limits limits, pst_error *err) {
  if (!limits_valid(limits))
    return pst_error_set(err, PST_E_BAD_INPUT, "limit", "a limit is a sum of money that is not negative");
  change_call c = {.key_id = key_id, .limits = limits};
  return pst_store_write_now(store, false, limits_apply, &c, err);
}

int pst_store_key_set_workload(pst_store *store, int64_t key_id, pst_str workload, pst_error *err) {
  if (workload.n > 63) return pst_error_set(err, PST_E_BAD_INPUT, "workload", "a workload's name has at most 63 bytes");
  change_call c = {.key_id = key_id, .workload = workload};
  return pst_store_write_now(store, false, workload_apply, &c, err);
}

int pst_store_key_set_consent(pst_store *store, int64_t key_id, const pst_store_consent *consent, pst_error *err) {
  if (consent && consent->train && consent->keep != PST_STORE_KEEP_CONTENT)
    return pst_error_set(err, PST_E_BAD_INPUT, "train", "what is not kept cannot be trained on; keep content as well");
  if (consent && (consent->keep < PST_STORE_KEEP_NOTHING || consent->keep > PST_STORE_KEEP_CONTENT))
    return pst_error_set(err, PST_E_BAD_INPUT, "keep", "keep is nothing, metadata or content");
  if (consent && (consent->retention_days < 0 || consent->retention_days > PST_STORE_RETENTION_MAX))
    return pst_error_set(err, PST_E_BAD_INPUT, "retention", "retention is 0 (for ever) to %d days",
                         PST_STORE_RETENTION_MAX);
  change_call c = {.key_id = key_id, .consent = consent};
  return pst_store_write_now(store, false, consent_apply, &c, err);
}

int pst_store_key_disable(pst_store *store, int64_t key_id, int64_t now_ms, pst_error *err) {
  change_call c = {.key_id = key_id, .now_ms = PST_MAX(INT64_C(1), now_ms)};
  return pst_store_write_now(store, false, disable_apply, &c, err);
}
