/* Penstock flywheel: work that takes long and is asked for in one process and done in another, and the turns by which a product's data makes its plan better.
 *
 * Threads: every function blocks its caller; one worker per process. */
#ifndef PENSTOCK_FLYWHEEL_H
#define PENSTOCK_FLYWHEEL_H

#include <penstock/base.h>
#include <penstock/store.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- jobs (flywheel/worker.c) ----------------------------------------------------------------------------------- */

typedef struct pst_flywheel_options {
  int threads; /* to compute with; 0: pst_cpu_count() */
  bool (*stopped)(
      void *
          user); /* asked often: the process is to end. What was begun goes on from its checkpoint another time. NULL: never */
  void *user;
} pst_flywheel_options;

/* Takes the oldest job of the store and does it; *ret_worked: there was one. A job that fails says why in its row, and is no error here. Errors: those of the
 * store. Kinds: "fine_tune" (flywheel/finetune.c). */
int pst_flywheel_work(pst_store *store, const pst_flywheel_options *options, bool *ret_worked, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
