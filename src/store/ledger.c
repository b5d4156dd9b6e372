/* The ledger: what keys may spend, what is reserved, what was spent.
 *
 * Invariant BUDGET: for each key and limited period, budget_counters.committed_nusd = settled + open <= limit, as long as settlements
 * stay within their reserves. It holds because check and charge happen in one write transaction, which the database serialises
 * over all threads and processes. Counters are kept beside the ledger rows so that a check reads three numbers however long the
 * history is; both change in the same transaction, and a test sums the rows up against them.
 * A reservation belongs to the UTC day and month of its call; settling it later moves the counters of those. */
#include "store/db.h"

#include <inttypes.h>
#include <string.h>

enum ledger_state { OPEN, SETTLED, RELEASED, RECOVERED };
enum { PERIOD_TOTAL, PERIOD_MONTH, PERIOD_DAY, N_PERIODS };

static const char *const PERIOD_NAMES[N_PERIODS] = {"total", "monthly", "daily"};

typedef struct periods {
  int64_t start[N_PERIODS];
} periods;

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

/* Days and months since 1970-01-01 (UTC). Month from day number: H. Hinnant, "chrono-compatible low-level date algorithms". */
static periods periods_of(int64_t now_ms) {
  int64_t day = floor_div(now_ms, 86400000);
  int64_t z = day + 719468, era = floor_div(z, 146097), day_of_era = z - era * 146097;
  int64_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  int64_t shifted = (5 * day_of_year + 2) / 153; /* 0 is March */
  int64_t month = shifted < 10 ? shifted + 2 : shifted - 10;
  int64_t year = year_of_era + era * 400 + (month <= 1 ? 1 : 0);
  return (periods){{0, (year - 1970) * 12 + month, day}};
}

static int counter_get(pst_store_conn *conn, int64_t key_id, int period, int64_t start, int64_t *ret_nusd,
                       pst_error *err) {
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_sql_begin(
      conn, "SELECT committed_nusd FROM budget_counters WHERE key_id = ?1 AND period = ?2 AND start = ?3", &stmt, err,
      "iii", key_id, (int64_t)period, start);
  if (code) return code;
  code = pst_store_sql_step(conn, stmt, err);
  if (code >= 0) *ret_nusd = code == 1 ? sqlite3_column_int64(stmt, 0) : 0;
  pst_store_sql_done(conn, stmt);
  return PST_MIN(code, 0);
}

/* Moves the key's three counters by `delta`; PST_E_LIMIT if one would leave int64. */
static int counters_move(pst_store_conn *conn, int64_t key_id, const periods *at, int64_t delta, pst_error *err) {
  for (int p = 0; p < N_PERIODS; p++) {
    int64_t committed = 0;
    int code = counter_get(conn, key_id, p, at->start[p], &committed, err);
    if (code) return code;
    if (pst_store_nusd_add(committed, delta, &committed))
      return pst_error_set(err, PST_E_LIMIT, NULL, "the %s sum of key %" PRId64 " leaves the range of 64 bits",
                           PERIOD_NAMES[p], key_id);
    code = pst_store_sql_run(conn, NULL,
                             "INSERT INTO budget_counters(key_id, period, start, committed_nusd) VALUES(?1, ?2, ?3, ?4)"
                             " ON CONFLICT DO UPDATE SET committed_nusd = excluded.committed_nusd",
                             err, "iiii", key_id, (int64_t)p, at->start[p], committed);
    if (code) return code;
  }
  return 0;
}

typedef struct account {
  char name[64];
  int64_t limit[N_PERIODS];
  bool disabled;
} account;

static int account_get(pst_store_conn *conn, int64_t key_id, account *ret_account, pst_error *err) {
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_sql_begin(
      conn, "SELECT name, total_nusd, month_nusd, day_nusd, disabled_ms FROM api_keys WHERE id = ?1", &stmt, err, "i",
      key_id);
  if (code) return code;
  code = pst_store_sql_step(conn, stmt, err);
  if (code == 1) {
    pst_store_copy(ret_account->name, sizeof ret_account->name, pst_store_column_str(stmt, 0));
    for (int p = 0; p < N_PERIODS; p++) ret_account->limit[p] = sqlite3_column_int64(stmt, 1 + p);
    ret_account->disabled = sqlite3_column_type(stmt, 4) != SQLITE_NULL;
    code = 0;
  } else if (code == 0) {
    code = pst_error_set(err, PST_E_NOT_FOUND, NULL, "there is no API key number %" PRId64, key_id);
  }
  pst_store_sql_done(conn, stmt);
  return code;
}

/* ---- reserve ---- */

typedef struct reserve_call {
  pst_store_write base; /* used by the asynchronous form only */
  int64_t key_id, upper_bound_nusd, now_ms;
  int64_t reservation; /* out */
  pst_store_reserved_fn fn;
  void *user;
} reserve_call;

static int check_fits(pst_store_conn *conn, const reserve_call *call, const account *a, const periods *at,
                      pst_error *err) {
  for (int p = 0; p < N_PERIODS; p++) {
    if (a->limit[p] == PST_STORE_NO_LIMIT) continue;
    int64_t committed = 0, wanted;
    int code = counter_get(conn, call->key_id, p, at->start[p], &committed, err);
    if (code) return code;
    if (!pst_store_nusd_add(committed, call->upper_bound_nusd, &wanted) && wanted <= a->limit[p]) continue;
    char need[32], left[32], limit[32];
    pst_store_nusd_format(call->upper_bound_nusd, need);
    pst_store_nusd_format(PST_MAX(INT64_C(0), a->limit[p] - committed), left);
    pst_store_nusd_format(a->limit[p], limit);
    return pst_error_set(
        err, PST_E_BUDGET, a->name,
        "this call may cost $%s, and of the %s limit of $%s only $%s is left; ask for fewer tokens or raise the limit",
        need, PERIOD_NAMES[p], limit, left);
  }
  return 0;
}

static int reserve_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  reserve_call *call = arg;
  account a;
  int code = account_get(conn, call->key_id, &a, err);
  if (code) return code;
  if (a.disabled) return pst_error_set(err, PST_E_DENIED, a.name, "this API key is disabled");
  periods at = periods_of(call->now_ms);
  code = check_fits(conn, call, &a, &at, err);
  if (!code) code = counters_move(conn, call->key_id, &at, call->upper_bound_nusd, err);
  if (!code)
    code = pst_store_sql_run(
        conn, NULL,
        "INSERT INTO ledger(key_id, owner, time_ms, day, month, reserved_nusd) VALUES(?1, ?2, ?3, ?4, ?5, ?6)", err,
        "iiiiii", call->key_id, conn->store->owner, call->now_ms, at.start[PERIOD_DAY], at.start[PERIOD_MONTH],
        call->upper_bound_nusd);
  if (!code) call->reservation = sqlite3_last_insert_rowid(conn->db);
  return code;
}

static int reserve_check(const pst_store *store, int64_t key_id, int64_t upper_bound_nusd, pst_error *err) {
  if (upper_bound_nusd < 0 || key_id < 0)
    return pst_error_set(err, PST_E_BAD_INPUT, store->path,
                         "a reservation needs a key and a bound that are not negative");
  return 0;
}

int pst_store_budget_reserve(pst_store *store, int64_t key_id, int64_t upper_bound_nusd, int64_t now_ms,
                             int64_t *ret_reservation, pst_error *err) {
  int code = reserve_check(store, key_id, upper_bound_nusd, err);
  if (code) return code;
  reserve_call call = {.key_id = key_id, .upper_bound_nusd = upper_bound_nusd, .now_ms = now_ms};
  if (key_id != 0) code = pst_store_write_now(store, true, reserve_apply, &call, err);
  if (!code) *ret_reservation = call.reservation;
  return code;
}

static int reserve_async_apply(pst_store_conn *conn, pst_store_write *write, pst_error *err) {
  return reserve_apply(conn, (reserve_call *)write, err);
}

static void reserve_async_complete(pst_store *store, pst_store_write *write, int code, const pst_error *err) {
  (void)store;
  reserve_call *call = (reserve_call *)write;
  pst_error none = PST_ERROR_INIT;
  call->fn(call->user, code, code ? 0 : call->reservation, code ? err : &none);
  pst_free(call);
}

int pst_store_budget_reserve_async(pst_store *store, int64_t key_id, int64_t upper_bound_nusd, int64_t now_ms,
                                   pst_store_reserved_fn fn, void *user, pst_error *err) {
  int code = reserve_check(store, key_id, upper_bound_nusd, err);
  if (code) return code;
  if (key_id == 0) {
    pst_error none = PST_ERROR_INIT;
    fn(user, 0, 0, &none);
    return 0;
  }
  reserve_call *call = pst_calloc(1, sizeof *call);
  if (!call) return pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  *call = (reserve_call){.base = {reserve_async_apply, reserve_async_complete, NULL},
                         .key_id = key_id,
                         .upper_bound_nusd = upper_bound_nusd,
                         .now_ms = now_ms,
                         .fn = fn,
                         .user = user};
  code = pst_store_write_push(store, &call->base, true, err);
  if (code) pst_free(call);
  return code;
}

/* ---- settle ---- */

typedef struct settle_call {
  int64_t reservation, actual_nusd;
  enum ledger_state state;
} settle_call;

typedef struct ledger_row {
  int64_t key_id, reserved_nusd, state;
  periods at;
} ledger_row;

/* 1: found, 0: no such row. */
static int row_get(pst_store_conn *conn, int64_t id, ledger_row *ret_row, pst_error *err) {
  sqlite3_stmt *stmt = NULL;
  int code = pst_store_sql_begin(conn, "SELECT key_id, reserved_nusd, state, month, day FROM ledger WHERE id = ?1",
                                 &stmt, err, "i", id);
  if (code) return code;
  code = pst_store_sql_step(conn, stmt, err);
  if (code == 1)
    *ret_row = (ledger_row){sqlite3_column_int64(stmt, 0),
                            sqlite3_column_int64(stmt, 1),
                            sqlite3_column_int64(stmt, 2),
                            {{0, sqlite3_column_int64(stmt, 3), sqlite3_column_int64(stmt, 4)}}};
  pst_store_sql_done(conn, stmt);
  return code;
}

static int settle_apply(pst_store_conn *conn, void *arg, pst_error *err) {
  const settle_call *call = arg;
  ledger_row row = {0};
  int found = row_get(conn, call->reservation, &row, err);
  if (found < 0) return found;
  if (!found || row.state != OPEN) {
    pst_log(PST_LOG_WARN, "event=settle_ignored reservation=%" PRId64 " reason=\"it is not open\"", call->reservation);
    return 0;
  }
  if (call->actual_nusd > row.reserved_nusd)
    pst_log(PST_LOG_WARN, "event=budget_overrun reservation=%" PRId64 " reserved_nusd=%" PRId64 " actual_nusd=%" PRId64,
            call->reservation, row.reserved_nusd, call->actual_nusd);
  int code = counters_move(conn, row.key_id, &row.at, call->actual_nusd - row.reserved_nusd, err);
  if (code) return code;
  return pst_store_sql_run(conn, NULL, "UPDATE ledger SET state = ?2, actual_nusd = ?3 WHERE id = ?1", err, "iii",
                           call->reservation, (int64_t)call->state, call->actual_nusd);
}

static int settle_later(pst_store *store, int64_t reservation, int64_t actual_nusd, enum ledger_state state,
                        pst_error *err) {
  if (actual_nusd < 0)
    return pst_error_set(err, PST_E_BAD_INPUT, store->path, "a call cannot have cost a negative sum");
  if (reservation == 0) return 0;
  settle_call *call = pst_malloc(sizeof *call);
  if (!call) return pst_error_set(err, PST_E_NOMEM, store->path, "out of memory");
  *call = (settle_call){reservation, actual_nusd, state};
  return pst_store_write_later(store, true, settle_apply, call, err);
}

int pst_store_budget_settle(pst_store *store, int64_t reservation, int64_t actual_nusd, pst_error *err) {
  return settle_later(store, reservation, actual_nusd, SETTLED, err);
}

int pst_store_budget_release(pst_store *store, int64_t reservation, pst_error *err) {
  return settle_later(store, reservation, 0, RELEASED, err);
}

/* The counters hold the full reserve already: only the rows change. */
int pst_store_ledger_recover(pst_store_conn *conn, int64_t owner, int64_t now_ms, int64_t *ret_n, pst_error *err) {
  (void)now_ms;
  return pst_store_sql_run(conn, ret_n,
                           "UPDATE ledger SET state = ?2, actual_nusd = reserved_nusd WHERE owner = ?1 AND state = 0",
                           err, "ii", owner, (int64_t)RECOVERED);
}

/* ---- report ---- */

static int budget_read(pst_store_conn *conn, int64_t key_id, int64_t now_ms, pst_store_budget *b, pst_error *err) {
  account a;
  int code = account_get(conn, key_id, &a, err);
  if (code) return code;
  b->limits = (pst_store_limits){a.limit[PERIOD_DAY], a.limit[PERIOD_MONTH], a.limit[PERIOD_TOTAL]};
  periods at = periods_of(now_ms);
  code = counter_get(conn, key_id, PERIOD_TOTAL, at.start[PERIOD_TOTAL], &b->total_nusd, err);
  if (!code) code = counter_get(conn, key_id, PERIOD_MONTH, at.start[PERIOD_MONTH], &b->month_nusd, err);
  if (!code) code = counter_get(conn, key_id, PERIOD_DAY, at.start[PERIOD_DAY], &b->day_nusd, err);
  if (!code)
    code = pst_store_sql_int(conn, &b->open_nusd,
                             "SELECT coalesce(sum(reserved_nusd), 0) FROM ledger WHERE state = 0 AND key_id = ?1", err,
                             "i", key_id);
  if (!code)
    code = pst_store_sql_int(conn, &b->n_open, "SELECT count(*) FROM ledger WHERE state = 0 AND key_id = ?1", err, "i",
                             key_id);
  if (!code)
    code = pst_store_sql_int(conn, &b->n_overruns,
                             "SELECT count(*) FROM ledger WHERE actual_nusd > reserved_nusd AND key_id = ?1", err, "i",
                             key_id);
  return code;
}

int pst_store_budget_get(pst_store *store, int64_t key_id, int64_t now_ms, pst_store_budget *ret_budget,
                         pst_error *err) {
  pst_store_conn *conn = NULL;
  int code = pst_store_reader_take(store, &conn, err);
  if (code) return code;
  pst_store_budget budget = {0};
  code = pst_store_sql_run(conn, NULL, "BEGIN", err, "");
  if (!code) {
    code = budget_read(conn, key_id, now_ms, &budget, err);
    pst_error ignored = PST_ERROR_INIT;
    (void)pst_store_sql_run(conn, NULL, "COMMIT", &ignored, "");
  }
  pst_store_reader_give(store, conn);
  if (!code) *ret_budget = budget;
  return code;
}
