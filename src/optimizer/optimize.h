/* The run itself, with the world left open: what pst_optimizer_run and the tests share. */
#ifndef PST_OPTIMIZER_OPTIMIZE_H
#define PST_OPTIMIZER_OPTIMIZE_H

#include "optimizer/journal.h"
#include "optimizer/search.h"
#include "optimizer/world.h"

typedef struct pst_optimizer_input {
  const pst_evals_info *workload;
  const pst_optimizer_target *targets; /* local ones as yet undescribed: name and hash only */
  size_t n_targets;
  const pst_optimizer_model
      *encoders; /* each is a classifier's to try; those beyond PST_OPTIMIZER_MAX_CLASSIFIERS - 1 are not looked at */
  size_t n_encoders;
  const char *examples_index; /* hash, or NULL */
  const char *answers;        /* hash of the file of past answers, or NULL */
  const char *reference_plan; /* document of the plan in force, or NULL */
  uint64_t seed;
  double budget_s;
  int64_t budget_nusd; /* for providers; 0: no limit */
  size_t max_items;
  int threads;
  int64_t price_nusd_per_hour;
  int64_t created_ms;
  pst_optimizer_cache_wish cache;
} pst_optimizer_input;

/* The calls of a run in their order: enumerate, estimate, measure where it pays, order the finalists, verify, choose, explain. Nothing but the world and the
 * journal is touched. ret_plan: canonical; ret_evidence: JSON (both pst_free). */
int pst_optimizer_plan_search(const pst_optimizer_input *input, pst_optimizer_world *world,
                              pst_optimizer_journal *journal, pst_optimizer_verdict *ret_verdict, char **ret_plan,
                              char **ret_evidence, char ret_hash[65], pst_error *err);

/* The real world (optimizer/live.c). */
typedef struct pst_optimizer_live {
  pst_gateway *gateway;
  pst_store *store;
  const pst_evals_workload *workload;
  const pst_evals_info *info;
  pst_optimizer_journal *journal;
  int threads;
  int64_t key_id;              /* account that pays providers; 0: none */
  const char *answers;         /* hash; empty: none */
  pst_engine_step_model steps; /* of the engine calibrated last; fixed_us 0: none yet */
  pst_progress progress;
  int (*outlook)(void *user, const char *model, pst_buf *out, pst_error *err); /* NULL: nobody is asked */
  void *outlook_user;
  bool (*cancelled)(void *user);
  void *user;
} pst_optimizer_live;
pst_optimizer_world pst_optimizer_live_world(pst_optimizer_live *live);
/* Keeps the workload's examples as an index; *ret_hash empty when there are none. */
int pst_optimizer_live_examples(pst_optimizer_live *live, char ret_hash[65], pst_error *err);
/* Keeps the workload's recorded answers as a file to draft from, or finds in the log which one the run began with; *ret_hash empty when none are recorded. */
int pst_optimizer_live_answers(pst_optimizer_live *live, char ret_hash[65], pst_error *err);

#endif
