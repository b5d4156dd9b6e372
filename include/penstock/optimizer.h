/* Penstock optimizer: plans inference as a database plans a query.
 *
 * Enumerates every combination of the plan's fields, estimates speed and cost of each from a calibration of this machine and a replay of the workload through
 * the server's own scheduler, measures quality only where a choice is lossy and only where it pays, and verifies the finalists on items that the search
 * has not seen. Every measurement is kept in the store's run, so that the same seed and log give the same search and plan.
 *
 * Threads: pst_optimizer_run and pst_optimizer_analyze block their caller; one at a time per store and workload. The rest is pure. */
#ifndef PENSTOCK_OPTIMIZER_H
#define PENSTOCK_OPTIMIZER_H

#include <penstock/base.h>
#include <penstock/evals.h>
#include <penstock/gateway.h>
#include <penstock/store.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- one run (optimizer/optimize.c) ----------------------------------------------------------------------------- */

typedef struct pst_optimizer_model {
  const char *name;   /* as a plan names it: catalogue name or path */
  const char *sha256; /* of the file; may be NULL */
  const char *
      adapter; /* encoders: file of the adapter with which it was trained to tell the workload's labels apart; NULL: as it is */
} pst_optimizer_model;

/* Whether the plan taken gives answers again: as the plan in force does, or where users' requests are seen to repeat and that pays; always; never. */
typedef enum pst_optimizer_cache_wish {
  PST_OPTIMIZER_CACHE_AUTO,
  PST_OPTIMIZER_CACHE_ON,
  PST_OPTIMIZER_CACHE_OFF,
  PST_OPTIMIZER_CACHE_WISHES
} pst_optimizer_cache_wish;
const char *pst_optimizer_cache_wish_name(pst_optimizer_cache_wish wish); /* "auto", "on", "off" */
bool pst_optimizer_cache_wish_from(pst_str name, pst_optimizer_cache_wish *ret_wish);

typedef struct pst_optimizer_options {
  const pst_optimizer_model *models; /* local candidates; the first is the reference's where no plan is in force */
  size_t n_models;
  const pst_optimizer_model
      *encoders; /* models that make vectors: a classifier may read those of the input; with sha256 */
  size_t n_encoders;
  uint64_t seed;
  double budget_s; /* wall time for all of it; 0: 360 */
  int64_t
      budget_nusd; /* most money for providers, over all sittings of the run: the search plans with it, the ledger holds it; 0: no limit */
  size_t max_items; /* most items of the parts search and verify to be used; 0: all */
  int threads;      /* most threads a plan may take; 0: pst_cpu_count() */
  int64_t
      replay_run; /* > 0: nothing is measured, everything comes from this run's log; seed, budget and models are the run's own */
  bool fresh; /* do not take up an unfinished run */
  pst_optimizer_cache_wish cache;
  int64_t
      finished_since_ms; /* > 0: a run of the same question that was begun since then and has ended is not made again: its log gives the result */
  bool quiet;            /* no progress line */
  /* Asked once, at the end, what tuning a model would be made of: pst_flywheel_outlook's answer, which goes into the log. NULL: no advice is given. */
  int (*outlook)(void *user, const char *model, pst_buf *out, pst_error *err);
  void *outlook_user;
  bool (*cancelled)(void *user); /* NULL: never */
  void *user;
} pst_optimizer_options;

typedef enum pst_optimizer_verdict {
  PST_OPTIMIZER_FOUND,          /* a plan passed its verification */
  PST_OPTIMIZER_NONE,           /* none passed: the reference plan stays */
  PST_OPTIMIZER_NOT_ENOUGH_DATA /* the held-back items cannot decide */
} pst_optimizer_verdict;
const char *pst_optimizer_verdict_name(pst_optimizer_verdict verdict); /* "found", "none", "not_enough_data" */

typedef struct pst_optimizer_result {
  pst_optimizer_verdict verdict;
  int64_t run_id;
  char plan_hash[65]; /* of the plan taken, or of the reference plan */
  char *plan_json;    /* canonical */
  char *evidence;     /* JSON: everything that explain and the report show */
  bool same_plan;     /* replay: it is the plan that the run took */
} pst_optimizer_result;

/* Searches, verifies and keeps the plan and its evidence in the store. An unfinished run of the same workload, models, seed and budget is taken up where it
 * stood. Errors: PST_E_BAD_INPUT (a goal that cannot be met, with the field), PST_E_NO_DATA (no items to search or verify on), PST_E_NOT_FOUND (replay of an
 * unknown run), PST_E_CORRUPT (a replay whose log lacks what the search asks for), PST_E_CANCELLED (what was measured is kept), and those of the parts below. */
int pst_optimizer_run(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_optimizer_options *options, pst_optimizer_result *ret_result, pst_error *err);
void pst_optimizer_result_done(pst_optimizer_result *result);

/* ---- the cost model's closed formula (optimizer/speed.c) --------------------------------------------------------- */

/* What a request costs in machine time where the batch is always full, microseconds: prompt tokens, those of them from the prefix cache, steps of the answer. It
 * knows neither bursts nor a latency objective; pst_optimizer_run replays. Pure. */
double pst_optimizer_request_us(const pst_engine_step_model *model, const pst_engine_options *options,
                                double prompt_tokens, double cached_tokens, double steps);
/* The step model of a base with an adapter of so many numbers. Pure. */
pst_engine_step_model pst_optimizer_with_adapter(const pst_engine_step_model *base, const char *weights,
                                                 int64_t n_params, int64_t step_bytes, int64_t adapter_params);
/* Nano-dollars per hour of this machine: as the workload says, else the store, else assumed. */
int64_t pst_optimizer_machine_price(pst_store *store, const pst_evals_workload *workload);

/* Requests a month: as served here where that is more than a handful, else as the workload says, else assumed. served: requests of users in the last `days`. *ret_from: which of
 * these, in words (static). */
double pst_optimizer_monthly_requests(const pst_evals_info *info, double served, double days, const char **ret_from);

/* ---- explain (optimizer/explain.c, optimizer/analyze.c) --------------------------------------------------------- */

/* The newest evidence of a plan; PST_E_NOT_FOUND. *ret_json: pst_free. */
int pst_optimizer_evidence_find(pst_store *store, const char *plan_hash, char **ret_json, pst_error *err);

/* Plays part of the workload's trace to a plan in real time at the load its evidence gives as the highest, and writes what was measured, as JSON, to *out. */
typedef struct pst_optimizer_analyze_options {
  double seconds;   /* of the trace, at most; 0: 30 */
  size_t max_items; /* 0: as many as arrive in that time */
  uint64_t seed;    /* which part of the trace */
  bool quiet;
} pst_optimizer_analyze_options;
int pst_optimizer_analyze(pst_gateway *gateway, const pst_evals_workload *workload, pst_gateway_plan *plan,
                          const char *evidence, const pst_optimizer_analyze_options *options, pst_buf *out,
                          pst_error *err);

/* The plan as a tree with estimates, and which field bought what. measured: what pst_optimizer_analyze wrote, or NULL. */
int pst_optimizer_explain(const char *evidence, const char *measured, pst_buf *out, pst_error *err);
/* The outcome for a person: verdict, table of the front, what was spent. */
int pst_optimizer_summary(const char *evidence, pst_buf *out, pst_error *err);
/* A page of its own: scatter of the front, tables, verdict, methods. */
int pst_optimizer_report(const char *evidence, pst_buf *out, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
