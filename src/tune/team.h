/* Threads that share out pieces of work: a run ends when all pieces are done. Which thread does a piece changes nothing but the time. */
#ifndef PST_TUNE_TEAM_H
#define PST_TUNE_TEAM_H

#include <penstock/base.h>

typedef struct pst_tune_team pst_tune_team;

/* n_threads threads, the caller's among them; each has a scratch of its own of scratch_bytes, 64-byte aligned. Fewer threads where they cannot be made.
 * One owner. PST_E_NOMEM. */
int pst_tune_team_create(int n_threads, size_t scratch_bytes, pst_tune_team **ret_team, pst_error *err);
void pst_tune_team_free(pst_tune_team *team); /* NULL is fine */
int pst_tune_team_size(const pst_tune_team *team);
/* fn(arg, i, scratch) for every i < n_pieces, each once, in no order; returns when all are through. The owner's thread only. */
void pst_tune_team_run(pst_tune_team *team, size_t n_pieces, void (*fn)(void *arg, size_t piece, void *scratch),
                       void *arg);

#endif
