/* The measurement log (journal.h). Owns the rows' order and the run's clock; knows nothing of what the values mean. */
#include "optimizer/journal.h"

#include <string.h>

static int keep_row(pst_optimizer_journal *j, pst_str key, pst_str json, pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_array_reserve((void **)&j->rows, &j->capacity, j->n_rows + 1, sizeof *j->rows)
                 ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the measurement log")
                 : pst_json_parse(json.data, json.n, "measurement log", &doc, err);
  if (code) return code;
  j->rows[j->n_rows] = (pst_optimizer_journal_row){pst_strndup(key.data, key.n), doc};
  if (!j->rows[j->n_rows].key) {
    pst_json_free(doc);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the measurement log");
  }
  j->n_rows++;
  return 0;
}

typedef struct loading {
  pst_optimizer_journal *journal;
  pst_error *err;
} loading;

static int on_row(void *user, int64_t seq, pst_str key, pst_str json) {
  (void)seq;
  loading *l = user;
  return key.data ? keep_row(l->journal, key, json, l->err) : 0;
}

int pst_optimizer_journal_open(pst_optimizer_journal *j, pst_store *store, int64_t run_id, bool replay,
                               pst_error *err) {
  memset(j, 0, sizeof *j);
  j->store = store;
  j->run_id = run_id;
  j->replay = replay;
  j->clock_base_us = pst_clock_us();
  loading l = {j, err};
  return store ? pst_store_run_rows(store, run_id, 0, on_row, &l, err) : 0;
}

void pst_optimizer_journal_close(pst_optimizer_journal *j) {
  for (size_t i = 0; i < j->n_rows; i++) {
    pst_free(j->rows[i].key);
    pst_json_free(j->rows[i].doc);
  }
  pst_free(j->rows);
  memset(j, 0, sizeof *j);
}

static const pst_json *use_row(pst_optimizer_journal *j, size_t i) {
  const pst_json *row = pst_json_root(j->rows[i].doc);
  j->elapsed_us = PST_MAX(j->elapsed_us, pst_json_int(pst_json_get(row, "elapsed_us"), 0));
  return pst_json_get(row, "value");
}

const pst_json *pst_optimizer_journal_find(pst_optimizer_journal *j, const char *key) {
  for (size_t i = 0; i < j->n_rows; i++) {
    if (strcmp(j->rows[i].key, key) != 0) continue;
    const pst_json *value = use_row(j, i);
    j->clock_base_us = PST_MIN(j->clock_base_us, pst_clock_us() - j->elapsed_us);
    j->n_found++;
    return value;
  }
  return NULL;
}

int pst_optimizer_journal_put(pst_optimizer_journal *j, const char *key, const pst_buf *value,
                              const pst_json **ret_value, pst_error *err) {
  if (j->replay)
    return pst_error_set(
        err, PST_E_CORRUPT, NULL,
        "the log of run %lld has no measurement \"%s\": it was made by another search, or is not whole",
        (long long)j->run_id, key);
  pst_buf row = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&row, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "elapsed_us", pst_optimizer_journal_now_us(j));
  pst_json_key(&w, "value");
  pst_json_put_raw(&w, pst_buf_str(value));
  pst_json_end_object(&w);
  int code = pst_buf_status(&row) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a measurement") : 0;
  if (!code && j->store)
    code = pst_store_run_append(j->store, j->run_id, pst_str_from(key), pst_buf_str(&row), true, err);
  if (!code) code = keep_row(j, pst_str_from(key), pst_buf_str(&row), err);
  pst_buf_done(&row);
  if (!code) *ret_value = use_row(j, j->n_rows - 1);
  return code;
}

int64_t pst_optimizer_journal_now_us(const pst_optimizer_journal *j) { return pst_clock_us() - j->clock_base_us; }
