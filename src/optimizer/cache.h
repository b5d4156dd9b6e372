/* Whether a plan is to give answers again, and what that is worth: decided by how often the workload's own users ask exactly what was asked before. It changes no answer, so that
 * nothing has to be measured for it, and every plan alike, so that the search does not depend on it. */
#ifndef PST_OPTIMIZER_CACHE_H
#define PST_OPTIMIZER_CACHE_H

#include <penstock/optimizer.h>

/* Looks through the workload's newest records of as many days as a cached answer lives, and appends {"requests", "kept", "looked_at", "repeats"}: requests of users in that time, those whose
 * content is kept, how many of these were compared, and how many of them asked what an earlier one had asked: of the same API key, with the same settings, without chance.
 * Items of evals are no requests of users. */
int pst_optimizer_repeats_count(pst_store *store, pst_str workload, int64_t now_ms, pst_buf *out, pst_error *err);

typedef struct pst_optimizer_cache_question {
  pst_optimizer_cache_wish wish;
  pst_gateway_cache in_force; /* of the plan in force */
  bool taken;                 /* a plan was found; false: the plan in force stays as it is */
  const pst_json *repeats;    /* as counted; NULL: nobody knows */
  double request_nusd;        /* expected of a request that is computed; NAN: not known */
  int64_t price_nusd_per_hour;
} pst_optimizer_cache_question;
/* Gives the plan its cache, or takes it away. json: the plan's document, rewritten where that changes it. advice: the evidence's member "cache" is appended, or nothing where there is nothing to
 * say. PST_E_BAD_INPUT: a cache is wished for, and an engine has no hash. */
int pst_optimizer_cache_decide(const pst_optimizer_cache_question *question, pst_buf *json, pst_buf *advice,
                               pst_error *err);

#endif
