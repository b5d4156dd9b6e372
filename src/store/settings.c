/* Small named values, prices, and answers kept for reuse. */
#include "store/db.h"

#include <inttypes.h>
#include <string.h>

static const char MACHINE_PRICE[] = "machine_nusd_per_hour";

/* ---- settings ---- */

typedef struct setting_call {
  pst_str name, value;
} setting_call;

static int setting_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const setting_call *c = arg;
  if (!c->value.data) return pst_store_sql_run(conn, NULL, "DELETE FROM settings WHERE name = ?1", err, "s", c->name);
  return pst_store_sql_run(
      conn, NULL, "INSERT INTO settings(name, value) VALUES(?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value",
      err, "ss", c->name, c->value);
}

int pst_store_setting_set(pst_store *store, pst_str name, pst_str value, pst_error *err) {
  if (name.n == 0) return pst_error_set(err, PST_E_BAD_INPUT, "name", "a setting has a name");
  setting_call c = {name, value};
  return pst_store_write_now(store, false, setting_apply, &c, err);
}

int pst_store_setting_get(pst_store *store, pst_str name, char **ret_value, pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code = pst_store_sql_begin(conn, "SELECT value FROM settings WHERE name = ?1", &stmt, err, "s", name);
  if (!code) code = pst_store_sql_step(conn, stmt, err);
  if (code == 1) {
    pst_str value = pst_store_column_str(stmt, 0);
    char *copy = pst_strndup(value.data, value.n);
    code = copy ? 0 : pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
    if (copy) *ret_value = copy;
  } else if (code == 0) {
    code = pst_error_set(err, PST_E_NOT_FOUND, "name", "the setting \"%.*s\" was never set",
                         (int)PST_MIN(name.n, (size_t)80), name.data);
  }
  pst_store_sql_done(conn, stmt);
  pst_store_reader_give(store, conn);
  return code;
}

typedef struct setting_walk {
  int (*fn)(void *user, pst_str name, pst_str value);
  void *user;
} setting_walk;

static int setting_row(sqlite3_stmt *stmt, void *context) {
  const setting_walk *walk = context;
  return walk->fn(walk->user, pst_store_column_str(stmt, 0), pst_store_column_str(stmt, 1));
}

int pst_store_setting_each(pst_store *store, int (*fn)(void *user, pst_str name, pst_str value), void *user,
                           pst_error *err) {
  setting_walk walk = {fn, user};
  return pst_store_read_each(store, setting_row, &walk, err, "SELECT name, value FROM settings ORDER BY name", "");
}

/* ---- prices ---- */

int pst_store_machine_price_set(pst_store *store, int64_t nusd_per_hour, pst_error *err) {
  if (nusd_per_hour < 0) return pst_error_set(err, PST_E_BAD_INPUT, "price", "a price is not negative");
  char text[32];
  (void)snprintf(text, sizeof text, "%" PRId64, nusd_per_hour);
  return pst_store_setting_set(store, pst_str_from(MACHINE_PRICE), pst_str_from(text), err);
}

int pst_store_machine_price_get(pst_store *store, int64_t *ret_nusd_per_hour, pst_error *err) {
  char *text = NULL;
  int code = pst_store_setting_get(store, pst_str_from(MACHINE_PRICE), &text, err);
  if (code == PST_E_NOT_FOUND)
    return pst_error_set(err, code, "price", "the price of this machine per hour was never set");
  if (code) return code;
  if (pst_parse_i64(pst_str_from(text), 0, INT64_MAX, ret_nusd_per_hour))
    code = pst_error_set(err, PST_E_CORRUPT, store->path, "the setting %s is \"%.40s\", not nano-dollars",
                         MACHINE_PRICE, text);
  pst_free(text);
  return code;
}

typedef struct price_call {
  pst_str provider, model;
  pst_store_price price;
} price_call;

static int price_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const price_call *c = arg;
  return pst_store_sql_run(conn, NULL,
                           "INSERT INTO prices(provider, model, input, cached_input, output) VALUES(?1, ?2, ?3, ?4, ?5)"
                           " ON CONFLICT DO UPDATE SET input = excluded.input, cached_input = excluded.cached_input,"
                           " output = excluded.output",
                           err, "ssiii", c->provider, c->model, c->price.input, c->price.cached_input, c->price.output);
}

int pst_store_price_set(pst_store *store, pst_str provider, pst_str model, pst_store_price price, pst_error *err) {
  if (provider.n == 0 || model.n == 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "price", "a price is that of a provider's model");
  if (price.input < 0 || price.output < 0 || price.cached_input < PST_STORE_NO_LIMIT)
    return pst_error_set(err, PST_E_BAD_INPUT, "price", "a price is not negative");
  price_call c = {provider, model, price};
  return pst_store_write_now(store, false, price_apply, &c, err);
}

static int price_row(sqlite3_stmt *stmt, void *context) {
  pst_store_price *price = context;
  *price =
      (pst_store_price){sqlite3_column_int64(stmt, 0), sqlite3_column_int64(stmt, 1), sqlite3_column_int64(stmt, 2)};
  return 1;
}

int pst_store_price_get(pst_store *store, pst_str provider, pst_str model, pst_store_price *ret_price, pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  pst_store_price price;
  code = pst_store_sql_begin(conn,
                             "SELECT input, cached_input, output FROM prices WHERE provider = ?1 AND model IN (?2, '*')"
                             " ORDER BY model = '*' LIMIT 1",
                             &stmt, err, "ss", provider, model);
  code = pst_store_sql_each(conn, code, stmt, price_row, &price, err);
  pst_store_reader_give(store, conn);
  if (code == 1) {
    *ret_price = price;
    return 0;
  }
  if (code == 0)
    return pst_error_set(err, PST_E_NOT_FOUND, "price", "no price is known for %.*s of %.*s; set one before calling it",
                         (int)PST_MIN(model.n, (size_t)80), model.data, (int)PST_MIN(provider.n, (size_t)80),
                         provider.data);
  return code;
}

typedef struct price_walk {
  int (*fn)(void *user, pst_str provider, pst_str model, pst_store_price price);
  void *user;
} price_walk;

static int price_list_row(sqlite3_stmt *stmt, void *context) {
  const price_walk *walk = context;
  pst_store_price price = {sqlite3_column_int64(stmt, 2), sqlite3_column_int64(stmt, 3), sqlite3_column_int64(stmt, 4)};
  return walk->fn(walk->user, pst_store_column_str(stmt, 0), pst_store_column_str(stmt, 1), price);
}

int pst_store_price_each(pst_store *store,
                         int (*fn)(void *user, pst_str provider, pst_str model, pst_store_price price), void *user,
                         pst_error *err) {
  price_walk walk = {fn, user};
  return pst_store_read_each(store, price_list_row, &walk, err,
                             "SELECT provider, model, input, cached_input, output FROM prices ORDER BY provider, model",
                             "");
}

int pst_store_price_cost(pst_store_price price, int64_t prompt_tokens, int64_t cached_tokens, int64_t completion_tokens,
                         int64_t *ret_nusd) {
  if (cached_tokens < 0 || completion_tokens < 0 || prompt_tokens < cached_tokens) return PST_E_BAD_INPUT;
  int64_t cached_price = price.cached_input == PST_STORE_NO_LIMIT ? price.input : price.cached_input;
  int64_t fresh, cached, output, sum;
  int code = pst_store_nusd_scale(prompt_tokens - cached_tokens, price.input, 1000000, &fresh);
  if (!code) code = pst_store_nusd_scale(cached_tokens, cached_price, 1000000, &cached);
  if (!code) code = pst_store_nusd_scale(completion_tokens, price.output, 1000000, &output);
  if (!code) code = pst_store_nusd_add(fresh, cached, &sum);
  if (!code) code = pst_store_nusd_add(sum, output, &sum);
  if (!code) *ret_nusd = sum;
  return code;
}

/* ---- answers ---- */

typedef struct answer_call {
  pst_str scope, key, answer, meta;
  int64_t time_ms;
  int64_t n; /* out, of forget */
} answer_call;

static int answer_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const answer_call *c = arg;
  return pst_store_sql_run(
      conn, NULL,
      "INSERT INTO answers(scope, key, answer, meta, time_ms) VALUES(?1, ?2, ?3, ?4, ?5)"
      " ON CONFLICT DO UPDATE SET answer = excluded.answer, meta = excluded.meta, time_ms = excluded.time_ms",
      err, "ssssi", c->scope, c->key, c->answer, c->meta, c->time_ms);
}

int pst_store_answer_put(pst_store *store, pst_str scope, pst_str key, pst_str answer, pst_str meta, int64_t now_ms,
                         pst_error *err) {
  if (scope.n == 0 || key.n == 0 || !answer.data)
    return pst_error_set(err, PST_E_BAD_INPUT, "answer", "an answer needs a scope, a key and a text");
  answer_call *c = pst_malloc(sizeof *c + scope.n + key.n + answer.n + meta.n);
  if (!c) return pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  char *cursor = (char *)(c + 1);
  *c = (answer_call){.time_ms = now_ms};
  c->scope = pst_store_pack(&cursor, scope);
  c->key = pst_store_pack(&cursor, key);
  c->answer = pst_store_pack(&cursor, answer);
  c->meta = pst_store_pack(&cursor, meta);
  return pst_store_write_later(store, false, answer_apply, c, err);
}

int pst_store_answer_get(pst_store *store, pst_str scope, pst_str key, char **ret_answer, size_t *ret_n,
                         char **ret_meta, pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  char *answer = NULL, *meta = NULL;
  size_t n = 0;
  code = pst_store_sql_begin(conn, "SELECT answer, meta FROM answers WHERE scope = ?1 AND key = ?2", &stmt, err, "ss",
                             scope, key);
  if (!code) code = pst_store_sql_step(conn, stmt, err);
  if (code == 1) {
    pst_str text = pst_store_column_str(stmt, 0), extra = pst_store_column_str(stmt, 1);
    n = text.n;
    answer = pst_strndup(text.data, text.n);
    if (extra.data && ret_meta) meta = pst_strndup(extra.data, extra.n);
    code = answer && (meta || !extra.data || !ret_meta) ? 0
                                                        : pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  } else if (code == 0) {
    code = pst_error_set(err, PST_E_NOT_FOUND, NULL, "no answer is kept under this key");
  }
  pst_store_sql_done(conn, stmt);
  pst_store_reader_give(store, conn);
  if (code) {
    pst_free(answer);
    pst_free(meta);
    return code;
  }
  *ret_answer = answer;
  *ret_n = n;
  if (ret_meta) *ret_meta = meta;
  return 0;
}

static int forget_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  answer_call *c = arg;
  return pst_store_sql_run(conn, &c->n, "DELETE FROM answers WHERE scope = ?1 AND time_ms < ?2", err, "si", c->scope,
                           c->time_ms);
}

int pst_store_answer_forget(pst_store *store, pst_str scope, int64_t before_ms, int64_t *ret_n, pst_error *err) {
  answer_call c = {.scope = scope, .time_ms = before_ms};
  int code = pst_store_write_now(store, false, forget_apply, &c, err);
  if (!code && ret_n) *ret_n = c.n;
  return code;
}
