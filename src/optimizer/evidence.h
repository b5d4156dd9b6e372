/* What a run leaves behind beside the plan: one JSON document with everything that explain, the summary and the report show. */
#ifndef PST_OPTIMIZER_EVIDENCE_H
#define PST_OPTIMIZER_EVIDENCE_H

#include "optimizer/verify.h"

/* One field of the plan put back to the reference's value. */
typedef struct pst_optimizer_field {
  int axis;
  int class_index;               /* of the plan without it; -1: makes no plan alone; the plan's own for exact fields */
  bool with_labels;              /* constraint example_labels had to become labels with it */
  int n;                         /* items both were asked */
  pst_evals_interval difference; /* quality with less quality without, paired; from beliefs where n is 0 */
  pst_optimizer_estimate without;
} pst_optimizer_field;

typedef struct pst_optimizer_outcome {
  const pst_optimizer_state *state;
  const pst_optimizer_verification *verification;
  int chosen;                  /* class; n_classes: the reference plan, outside the space */
  pst_optimizer_choice choice; /* of the plan taken */
  pst_optimizer_estimate estimate;
  const pst_optimizer_field *fields;
  size_t n_fields;
  char plan_hash[65];
  int64_t run_id, created_ms;
  bool reference_in_force;
  const char *cache;                                 /* JSON, or NULL: nothing to say of it */
  const char *tuning;                                /* JSON, or NULL: no advice */
  double calibration_s, search_s, verify_s, total_s; /* spent, by the log */
  int threads;
} pst_optimizer_outcome;

int pst_optimizer_evidence_write(const pst_optimizer_outcome *outcome, pst_buf *out, pst_error *err);

#endif
