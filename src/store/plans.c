/* Plans by hash, which one is in force for which workload, how that came about, and evidence.
 *
 * A plan never changes: its name is the hash of its canonical form. What changes is who is in which role; each change appends to the
 * history. Plans that were in force form a stack per workload, so that rolling back twice goes back two plans instead of toggling. */
#include "store/db.h"

#include <inttypes.h>
#include <string.h>

#define MIN_PREFIX 8

static bool hash_valid(pst_str hash, size_t min_digits) {
  if (hash.n < min_digits || hash.n > 64) return false;
  for (size_t i = 0; i < hash.n; i++)
    if (!((hash.data[i] >= '0' && hash.data[i] <= '9') || (hash.data[i] >= 'a' && hash.data[i] <= 'f'))) return false;
  return true;
}

static int no_such_plan(pst_str hash, pst_error *err) {
  return pst_error_set(err, PST_E_NOT_FOUND, "plan", "no plan \"%.*s\" is kept here", (int)PST_MIN(hash.n, (size_t)80),
                       hash.data ? hash.data : "");
}

/* ---- put, get ---- */

typedef struct put_call {
  pst_str hash, json;
  int64_t now_ms;
} put_call;

static int put_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const put_call *c = arg;
  return pst_store_sql_run(conn, NULL,
                           "INSERT INTO plans(hash, json, created_ms) VALUES(?1, ?2, ?3) ON CONFLICT DO NOTHING", err,
                           "ssi", c->hash, c->json, c->now_ms);
}

int pst_store_plan_put(pst_store *store, pst_str json, int64_t now_ms, char ret_hash[65], pst_error *err) {
  pst_buf canonical = PST_BUF_INIT;
  char hash[65];
  int code = pst_store_canonical(json, "plan", &canonical, err);
  if (!code && pst_buf_text(&canonical)[0] != '{')
    code = pst_error_set(err, PST_E_BAD_INPUT, "plan", "a plan is a JSON object");
  if (!code) {
    pst_sha256_hex(canonical.data, canonical.n, hash);
    put_call c = {{hash, 64}, pst_buf_str(&canonical), now_ms};
    code = pst_store_write_now(store, false, put_apply, &c, err);
  }
  pst_buf_done(&canonical);
  if (!code) memcpy(ret_hash, hash, sizeof hash);
  return code;
}

static int take_plan(sqlite3_stmt *stmt, char **ret_json, char ret_hash[65], pst_error *err) {
  if (ret_json) {
    pst_str json = pst_store_column_str(stmt, 1);
    char *copy = pst_strndup(json.data, json.n);
    if (!copy) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory");
    *ret_json = copy;
  }
  if (ret_hash) pst_store_copy(ret_hash, 65, pst_store_column_str(stmt, 0));
  return 0;
}

int pst_store_plan_get(pst_store *store, pst_str hash, char **ret_json, char ret_hash[65], pst_error *err) {
  if (!hash_valid(hash, MIN_PREFIX))
    return pst_error_set(err, PST_E_BAD_INPUT, "plan", "a plan is named by %d to 64 lower-case hex digits of its hash",
                         MIN_PREFIX);
  char end[66]; /* behind every hash with this prefix */
  pst_store_copy(end, sizeof end - 1, hash);
  end[hash.n] = 'g';
  end[hash.n + 1] = '\0';
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  int64_t n = 0;
  code = pst_store_sql_int(conn, &n, "SELECT count(*) FROM plans WHERE hash >= ?1 AND hash < ?2", err, "ss", hash,
                           pst_str_from(end));
  if (!code && n == 0) code = no_such_plan(hash, err);
  if (!code && n > 1)
    code = pst_error_set(err, PST_E_BAD_INPUT, "plan", "%lld plans begin with \"%.*s\"; give more digits", (long long)n,
                         (int)hash.n, hash.data);
  if (!code)
    code = pst_store_sql_begin(conn, "SELECT hash, json FROM plans WHERE hash >= ?1 ORDER BY hash LIMIT 1", &stmt, err,
                               "s", hash);
  if (!code) code = pst_store_sql_step(conn, stmt, err);
  if (code == 1) code = take_plan(stmt, ret_json, ret_hash, err);
  pst_store_sql_done(conn, stmt);
  pst_store_reader_give(store, conn);
  return code;
}

/* ---- roles ---- */

typedef struct role_call {
  pst_str workload, hash, note;
  pst_store_plan_role role;
  int64_t now_ms;
  const char *expected; /* in the role, empty: nothing; of a roll-back: what comes back; NULL: anything */
  char rolled_to[65];   /* out, of a roll-back */
} role_call;

/* The hash in a role; empty if none. */
static int role_get(pst_store_conn *conn, pst_str workload, pst_store_plan_role role, char ret_hash[65],
                    pst_error *err) {
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_sql_begin(conn, "SELECT hash FROM plan_roles WHERE workload = ?1 AND role = ?2", &stmt, err,
                                 "si", workload, (int64_t)role);
  if (code) return code;
  code = pst_store_sql_step(conn, stmt, err);
  if (code >= 0) pst_store_copy(ret_hash, 65, code == 1 ? pst_store_column_str(stmt, 0) : PST_STR(""));
  pst_store_sql_done(conn, stmt);
  return PST_MIN(code, 0);
}

static int role_set(pst_store_conn *conn, const role_call *c, pst_str hash, const char *event, pst_error *err) {
  int code;
  if (hash.data)
    code = pst_store_sql_run(conn, NULL,
                             "INSERT INTO plan_roles(workload, role, hash) VALUES(?1, ?2, ?3)"
                             " ON CONFLICT DO UPDATE SET hash = excluded.hash",
                             err, "sis", c->workload, (int64_t)c->role, hash);
  else
    code = pst_store_sql_run(conn, NULL, "DELETE FROM plan_roles WHERE workload = ?1 AND role = ?2", err, "si",
                             c->workload, (int64_t)c->role);
  if (code == PST_E_NOT_FOUND) return no_such_plan(hash, err);
  if (code) return code;
  return pst_store_sql_run(
      conn, NULL, "INSERT INTO plan_history(time_ms, workload, role, hash, event, note) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
      err, "isisss", c->now_ms, c->workload, (int64_t)c->role, hash, pst_str_from(event), c->note);
}

static int assign_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const role_call *c = arg;
  char before[65];
  int code = role_get(conn, c->workload, c->role, before, err);
  if (code) return code;
  if (c->expected && strcmp(before, c->expected) != 0 && !pst_str_is(c->hash, before))
    return pst_error_set(err, PST_E_EXISTS, "plan", "another plan was put in force for \"%.*s\" meanwhile",
                         (int)c->workload.n, c->workload.data);
  if (c->role == PST_STORE_PLAN_IN_FORCE && before[0] && !pst_str_is(c->hash, before))
    code = pst_store_sql_run(conn, NULL, "INSERT INTO plan_past(workload, hash) VALUES(?1, ?2)", err, "ss", c->workload,
                             pst_str_from(before));
  return code ? code : role_set(conn, c, c->hash, "assign", err);
}

static int assign(pst_store *store, role_call *c, pst_error *err) {
  if (c->workload.n == 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "workload", "a plan is assigned to a workload by name");
  if (c->hash.data && (c->hash.n != 64 || !hash_valid(c->hash, 64))) return no_such_plan(c->hash, err);
  return pst_store_write_now(store, false, assign_apply, c, err);
}

int pst_store_plan_assign(pst_store *store, pst_str workload, pst_store_plan_role role, pst_str hash, pst_str note,
                          int64_t now_ms, pst_error *err) {
  role_call c = {.workload = workload, .hash = hash, .note = note, .role = role, .now_ms = now_ms};
  return assign(store, &c, err);
}

int pst_store_plan_replace(pst_store *store, pst_str workload, const char *expected, pst_str hash, pst_str note,
                           int64_t now_ms, pst_error *err) {
  role_call c = {.workload = workload,
                 .hash = hash,
                 .note = note,
                 .role = PST_STORE_PLAN_IN_FORCE,
                 .now_ms = now_ms,
                 .expected = expected};
  return assign(store, &c, err);
}

static int none_before(pst_str workload, pst_error *err) {
  return pst_error_set(err, PST_E_NOT_FOUND, "workload", "no plan was in force for \"%.*s\" before the present one",
                       (int)PST_MIN(workload.n, (size_t)80), workload.data ? workload.data : "");
}

static int roll_back_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  role_call *c = arg;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_sql_begin(conn, "SELECT hash, id FROM plan_past WHERE workload = ?1 ORDER BY id DESC LIMIT 1",
                                 &stmt, err, "s", c->workload);
  if (code) return code;
  code = pst_store_sql_step(conn, stmt, err);
  int64_t id = 0;
  if (code == 1) {
    pst_store_copy(c->rolled_to, sizeof c->rolled_to, pst_store_column_str(stmt, 0));
    id = sqlite3_column_int64(stmt, 1);
  }
  pst_store_sql_done(conn, stmt);
  if (code < 0) return code;
  if (code == 0) return none_before(c->workload, err);
  if (c->expected && strcmp(c->rolled_to, c->expected) != 0)
    return pst_error_set(err, PST_E_EXISTS, "plan", "another plan is the one before for \"%.*s\" meanwhile",
                         (int)PST_MIN(c->workload.n, (size_t)80), c->workload.data);
  code = pst_store_sql_run(conn, NULL, "DELETE FROM plan_past WHERE id = ?1", err, "i", id);
  return code ? code : role_set(conn, c, (pst_str){c->rolled_to, 64}, "roll back", err);
}

int pst_store_plan_roll_back(pst_store *store, pst_str workload, const char *expected, pst_str note, int64_t now_ms,
                             char ret_hash[65], pst_error *err) {
  role_call c = {
      .workload = workload, .note = note, .role = PST_STORE_PLAN_IN_FORCE, .now_ms = now_ms, .expected = expected};
  int code = pst_store_write_now(store, false, roll_back_apply, &c, err);
  if (!code && ret_hash) memcpy(ret_hash, c.rolled_to, sizeof c.rolled_to);
  return code;
}

typedef struct plan_taken {
  char **ret_json;
  char *ret_hash;
  pst_error *err;
} plan_taken;

static int plan_row(sqlite3_stmt *stmt, void *context) {
  const plan_taken *t = context;
  int code = take_plan(stmt, t->ret_json, t->ret_hash, t->err);
  return code ? code : 1;
}

int pst_store_plan_before(pst_store *store, pst_str workload, char **ret_json, char ret_hash[65], pst_error *err) {
  plan_taken t = {ret_json, ret_hash, err};
  int code = pst_store_read_each(store, plan_row, &t, err,
                                 "SELECT p.hash, p.json FROM plan_past b JOIN plans p ON p.hash = b.hash"
                                 " WHERE b.workload = ?1 ORDER BY b.id DESC LIMIT 1",
                                 "s", workload);
  if (code == 1) return 0;
  return code ? code : none_before(workload, err);
}

typedef struct stale_search {
  pst_str plan; /* JSON, which names an adapter by its file */
  char adapter[64];
} stale_search;

static int match_stale(void *user, const pst_store_adapter *row) {
  stale_search *s = user;
  if (row->stale && pst_str_find(s->plan, pst_str_from(row->file), 0) != SIZE_MAX)
    memcpy(s->adapter, row->name, sizeof s->adapter);
  return 0;
}

int pst_store_plan_find_stale(pst_store *store, pst_str plan_json, char ret_adapter[64], pst_error *err) {
  stale_search s = {.plan = plan_json};
  int code = pst_store_adapter_each(store, match_stale, &s, err);
  if (!code) memcpy(ret_adapter, s.adapter, sizeof s.adapter);
  return code;
}

int pst_store_plan_assigned(pst_store *store, pst_str workload, pst_store_plan_role role, char **ret_json,
                            char ret_hash[65], pst_error *err) {
  pst_store_conn *conn = NULL;
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  code = pst_store_sql_begin(conn,
                             "SELECT p.hash, p.json FROM plan_roles r JOIN plans p ON p.hash = r.hash"
                             " WHERE r.workload = ?1 AND r.role = ?2",
                             &stmt, err, "si", workload, (int64_t)role);
  if (!code) code = pst_store_sql_step(conn, stmt, err);
  if (code == 1)
    code = take_plan(stmt, ret_json, ret_hash, err);
  else if (code == 0)
    code = pst_error_set(err, PST_E_NOT_FOUND, "workload", "the workload \"%.*s\" has no plan %s",
                         (int)PST_MIN(workload.n, (size_t)80), workload.data ? workload.data : "",
                         role == PST_STORE_PLAN_SHADOW ? "as shadow" : "in force");
  pst_store_sql_done(conn, stmt);
  pst_store_reader_give(store, conn);
  return code;
}

int64_t pst_store_plan_generation(pst_store *store) {
  pst_store_conn *conn = NULL;
  pst_error ignored = PST_ERROR_INIT;
  if (pst_store_reader_take(store, &conn, &ignored)) return 0;
  int64_t generation = 0;
  (void)pst_store_sql_int(conn, &generation, "SELECT coalesce(max(id), 0) FROM plan_history", &ignored, "");
  pst_store_reader_give(store, conn);
  return generation;
}

typedef struct history_walk {
  int (*fn)(void *user, const pst_store_plan_event *event);
  void *user;
} history_walk;

static int history_row(sqlite3_stmt *stmt, void *context) {
  const history_walk *walk = context;
  pst_store_plan_event event = {
      .id = sqlite3_column_int64(stmt, 0),
      .time_ms = sqlite3_column_int64(stmt, 1),
      .workload = pst_store_column_str(stmt, 2),
      .role = (pst_store_plan_role)sqlite3_column_int(stmt, 3),
      .plan_hash = pst_store_column_str(stmt, 4),
      .event = pst_store_column_str(stmt, 5),
      .note = pst_store_column_str(stmt, 6),
  };
  return walk->fn(walk->user, &event);
}

int pst_store_plan_history(pst_store *store, pst_str workload, int (*fn)(void *user, const pst_store_plan_event *event),
                           void *user, pst_error *err) {
  history_walk walk = {fn, user};
  return pst_store_read_each(store, history_row, &walk, err,
                             "SELECT id, time_ms, workload, role, hash, event, note FROM plan_history"
                             " WHERE ?1 IS NULL OR workload = ?1 ORDER BY id",
                             "s", workload);
}

/* ---- evidence ---- */

typedef struct evidence_call {
  pst_str plan_hash, workload, json;
  int64_t now_ms;
  int64_t id; /* out */
} evidence_call;

static int evidence_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  evidence_call *c = arg;
  int code =
      pst_store_sql_run(conn, NULL, "INSERT INTO evidence(plan_hash, workload, time_ms, json) VALUES(?1, ?2, ?3, ?4)",
                        err, "ssis", c->plan_hash, c->workload, c->now_ms, c->json);
  if (code == PST_E_NOT_FOUND) return no_such_plan(c->plan_hash, err);
  if (!code) c->id = sqlite3_last_insert_rowid(conn->db);
  return code;
}

int pst_store_evidence_put(pst_store *store, pst_str plan_hash, pst_str workload, pst_str json, int64_t now_ms,
                           int64_t *ret_id, pst_error *err) {
  pst_buf canonical = PST_BUF_INIT;
  evidence_call c = {.plan_hash = plan_hash, .workload = workload, .now_ms = now_ms};
  int code = plan_hash.data ? pst_store_canonical(json, "evidence", &canonical, err) : no_such_plan(plan_hash, err);
  if (!code) {
    c.json = pst_buf_str(&canonical);
    code = pst_store_write_now(store, false, evidence_apply, &c, err);
  }
  pst_buf_done(&canonical);
  if (!code && ret_id) *ret_id = c.id;
  return code;
}

typedef struct evidence_walk {
  int (*fn)(void *user, int64_t id, int64_t time_ms, pst_str plan_hash, pst_str json);
  void *user;
} evidence_walk;

static int evidence_row(sqlite3_stmt *stmt, void *context) {
  const evidence_walk *walk = context;
  return walk->fn(walk->user, sqlite3_column_int64(stmt, 0), sqlite3_column_int64(stmt, 1),
                  pst_store_column_str(stmt, 2), pst_store_column_str(stmt, 3));
}

int pst_store_evidence_each(pst_store *store, pst_str plan_hash, pst_str workload,
                            int (*fn)(void *user, int64_t id, int64_t time_ms, pst_str plan_hash, pst_str json),
                            void *user, pst_error *err) {
  evidence_walk walk = {fn, user};
  return pst_store_read_each(store, evidence_row, &walk, err,
                             "SELECT id, time_ms, plan_hash, json FROM evidence"
                             " WHERE (?1 IS NULL OR plan_hash = ?1) AND (?2 IS NULL OR workload = ?2) ORDER BY id",
                             "ss", plan_hash, workload);
}
