/* Penstock flywheel: work that takes long and is asked for in one process and done in another, and the turns by which a product's data makes its plan better.
 *
 * Threads: every function blocks its caller; one worker per process. */
#ifndef PENSTOCK_FLYWHEEL_H
#define PENSTOCK_FLYWHEEL_H

#include <penstock/base.h>
#include <penstock/evals.h>
#include <penstock/gateway.h>
#include <penstock/optimizer.h>
#include <penstock/store.h>
#include <penstock/tune.h>

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

/* ---- what tuning would be made of (flywheel/outlook.c) ----------------------------------------------------------- */

/* Output codes that a turn makes of the examples' answers at most, and the share of their tokens that these must save to be used. */
#define PST_FLYWHEEL_CODES 64
#define PST_FLYWHEEL_CODES_FROM 0.2

typedef struct pst_flywheel_outlook_source {
  pst_gateway *gateway;
  pst_store *store;
  const pst_evals_workload *workload;
  int threads; /* to train with; 0: pst_cpu_count() */
  bool codes;  /* answers would be in output codes, where these save enough */
} pst_flywheel_outlook_source;

/* pst_optimizer_options.outlook; user: a pst_flywheel_outlook_source. Examples and records that may be trained on, lengths as a tuned plan would serve, speed of training
 * (measured where nobody has yet), recorded traffic. That a model cannot be tuned is an answer and no error. Errors: those of the store, PST_E_NOMEM. */
int pst_flywheel_outlook(void *user, const char *model, pst_buf *out, pst_error *err);

/* ---- a turn (flywheel/turn.c) ----------------------------------------------------------------------------------- */

/* Data, adapter, preferences, plan, gate: a workload's records become examples, the examples an adapter; where users said enough of answers (corrections, thumbs, scores), that
 * learns what they prefer, and what comes is kept where it answers held-out examples no worse; adapters are candidates of the optimizer, and a plan that holds on
 * held-back items against the one in force takes its place. Each step is kept when it is done: a turn that was killed goes on with the step it was at. */
typedef struct pst_flywheel_turn_options {
  const char *
      teacher; /* a target as pst_evals_target_open takes it, that answers the records whose own answers will not do; NULL: none */
  const char *model;                 /* to tune, as it is called here; NULL: the first of `models` */
  const pst_optimizer_model *models; /* that plans may use */
  size_t n_models;
  const pst_optimizer_model *encoders; /* that classifiers of plans may use */
  size_t n_encoders;
  double tune_s, plan_s; /* time for the adapter and for the plan; 0: 1,200 and 360 */
  int64_t
      budget_nusd; /* most money for providers, over all sittings of the turn (the ledger holds it): all for plans, or half of it for the teacher; 0: no limit */
  uint64_t seed;
  size_t max_items; /* most items of the parts search and verify; 0: all */
  int threads;
  bool keep_plan;                             /* measure only: the plan in force stays */
  bool fresh;                                 /* do not go on with an unfinished turn */
  bool codes;                                 /* answers in output codes, where these save enough of their tokens */
  bool quiet;                                 /* no progress line of the optimizer */
  void (*note)(void *user, const char *text); /* a step in words; NULL: silent */
  void (*on_tuning)(void *user, const pst_tune_progress *progress); /* NULL: silent */
  bool (*cancelled)(void *user);                                    /* NULL: never */
  void *user;
} pst_flywheel_turn_options;

typedef struct pst_flywheel_turn_result {
  int64_t run_id;
  bool promoted;
  bool overtaken; /* not promoted, since what it learned from was erased, or another plan was put in force, meanwhile */
  char *report;   /* JSON: data, expected, adapter, preferences, plan, gate; pst_free */
  pst_optimizer_result plan;
} pst_flywheel_turn_result;

/* Errors: PST_E_BUSY (another turn of the workload is at work), PST_E_NO_DATA (nothing to learn from, or no items to judge by), PST_E_CANCELLED (what was done is kept), those of the steps. */
int pst_flywheel_turn(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_flywheel_turn_options *options, pst_flywheel_turn_result *ret_result, pst_error *err);
void pst_flywheel_turn_result_done(pst_flywheel_turn_result *result);

/* ---- an adapter (flywheel/tuning.c) -------------------------------------------------------------------------------- */

typedef struct pst_flywheel_tune_options {
  pst_tune_workload_options tune; /* preferences are found here */
  double min_score;               /* a feedback score below says that the answer was not wanted */
  int64_t
      budget_nusd; /* most money for a teacher's answers in this call (the ledger holds it); what it covers is learned; 0: no limit */
  int64_t key_id;      /* > 0: the account that has the money instead (pst_store_run_account) */
  bool keep_taught;    /* what the teacher said stays kept; the caller forgets it (pst_flywheel_taught_forget) */
  const char *teacher; /* SFT: a target as pst_evals_target_open takes it; NULL: none */
} pst_flywheel_tune_options;

typedef struct pst_flywheel_taught {
  int64_t n_asked, n_kept;    /* inputs; of those what was known from before */
  int64_t n_usable, n_failed; /* answers of the workload's form; calls */
  int64_t nusd;               /* what the calls cost */
  int64_t n_unasked;          /* inputs that the money did not cover */
} pst_flywheel_taught;

typedef struct pst_flywheel_tune_result {
  pst_tune_workload_result tuned;
  pst_flywheel_taught taught; /* zeros without a teacher */
  int64_t
      n_without_input; /* lines of the data set from which a plan takes no input: no text of a user, or not of the workload's pattern */
} pst_flywheel_tune_result;

/* Trains an adapter as pst_tune_workload does: SFT on the workload's examples, with a teacher also on what that answers to the inputs of records whose own answer will not do
 * (bad feedback, cut off, not of the workload's form); DPO and KTO on what was said of the answers of its records: corrections make pairs with what they correct, thumbs and
 * scores mark answers. Only records that may be trained on count; they are kept as a data set that knows the adapter. Teacher's calls are booked as a run of kind
 * "teacher" and become no records; training.cancelled is asked between them too, by several threads.
 * Errors: PST_E_NO_DATA (too little: how much there is and what is missing), PST_E_DENIED (the workload may not leave this machine), those of pst_data_curate,
 * pst_evals_target_open and pst_tune_workload. Blocks. */
int pst_flywheel_tune(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_flywheel_tune_options *options, pst_flywheel_tune_result *ret_result, pst_error *err);
/* Forgets what teachers said for a workload. */
int pst_flywheel_taught_forget(pst_store *store, const pst_evals_workload *workload, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
