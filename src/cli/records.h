/* Records as commands name and show them: data, requests and feedback. */
#ifndef PST_CLI_RECORDS_H
#define PST_CLI_RECORDS_H

#include <penstock/store.h>

/* The completion id of a record that a person names by it or by its number; where both fit, the id counts. *ret_id: pst_free; NULL: there is none. */
int pst_cli_record_find(pst_store *store, pst_str what, char **ret_id, pst_error *err);
/* Whether anything was ever recorded under a workload's name: requests of users, evals or searches, imported rows. */
int pst_cli_workload_recorded(pst_store *store, pst_str workload, bool *ret_recorded, pst_error *err);
/* Text of others for one line on a terminal, in place of what *out held: at most `most` bytes, whole characters, and blanks for control characters, which would act on it. */
void pst_cli_put_line(pst_str text, size_t most, pst_buf *out);
/* The same printed: at most `most` bytes, blanks behind them up to `width`. scratch: the caller's. */
void pst_cli_print_line(pst_str text, size_t width, size_t most, pst_buf *scratch);

#endif
