/* The measurement log of one run: every answer of the world under a key, in order, in the store. What is in the log is never asked again, which makes three
 * things one: a run, a run taken up after a kill, and a replay. Decisions may look only at what the log holds, the time spent included. */
#ifndef PST_OPTIMIZER_JOURNAL_H
#define PST_OPTIMIZER_JOURNAL_H

#include <penstock/store.h>

typedef struct pst_optimizer_journal_row {
  char *key;
  pst_json_doc *doc; /* {"elapsed_us": N, "value": ...} */
} pst_optimizer_journal_row;

typedef struct pst_optimizer_journal {
  pst_store *store; /* NULL: in memory only (tests) */
  int64_t run_id;
  bool replay; /* nothing may be added */
  pst_optimizer_journal_row *rows;
  size_t n_rows, capacity;
  size_t n_found;        /* answers that came from the log */
  int64_t elapsed_us;    /* of the run, at the end of the newest row that was used: what decisions go by */
  int64_t clock_base_us; /* clock minus elapsed */
} pst_optimizer_journal;

/* Loads the rows of run_id (store NULL: starts empty). */
int pst_optimizer_journal_open(pst_optimizer_journal *j, pst_store *store, int64_t run_id, bool replay, pst_error *err);
void pst_optimizer_journal_close(pst_optimizer_journal *j);
/* The value under a key, or NULL. Moves elapsed_us on to that row's. */
const pst_json *pst_optimizer_journal_find(pst_optimizer_journal *j, const char *key);
/* Adds a value (JSON text), durably, and gives it back parsed. PST_E_CORRUPT in a replay. */
int pst_optimizer_journal_put(pst_optimizer_journal *j, const char *key, const pst_buf *value,
                              const pst_json **ret_value, pst_error *err);
/* Time of the run by the clock, for progress only. */
int64_t pst_optimizer_journal_now_us(const pst_optimizer_journal *j);

#endif
