/* The compute pool: one per process, shared by every engine; engines take turns by step. */
#ifndef PST_ENGINE_POOL_H
#define PST_ENGINE_POOL_H

#include <penstock/base.h>

#include <stdatomic.h>

enum { PST_ENGINE_MAX_THREADS = 64 };

/* What the threads of one run share. `index` runs from 0 to n_threads - 1; 0 is the caller's thread. */
typedef struct pst_engine_team {
  int n_threads;
  atomic_int arrived;
  atomic_uint phase;
  _Atomic(int64_t) stalled_us; /* time that threads waited for others which were not running */
} pst_engine_team;

/* Runs fn(arg, team, index) on n_threads threads at once (at most PST_ENGINE_MAX_THREADS; fewer when threads cannot be made, or when other programs hold the cores so that fewer are faster:
 * team->n_threads says how many) and returns when all are through. Any thread; callers wait for each other. */
void pst_engine_pool_run(int n_threads, void (*fn)(void *arg, pst_engine_team *team, int index), void *arg);

/* All threads of the team meet. What was written before is seen by all after. */
void pst_engine_team_meet(pst_engine_team *team);

/* Waits until threads of the team have counted *count up to `wanted`, each with memory_order_release: what they wrote before is seen. */
void pst_engine_team_await(pst_engine_team *team, const atomic_int *count, int wanted);

#endif
