/* What the files of a turn share. Private to flywheel: turn.c (the steps in their order, adapter, plan, gate), turn_data.c (records to examples),
 * turn_preferences.c (what users said of answers), turn_encoder.c (an encoder for a choice task), turn_report.c (what is expected, what came). */
#ifndef PST_FLYWHEEL_TURN_H
#define PST_FLYWHEEL_TURN_H

#include <penstock/data.h>
#include <penstock/flywheel.h>

/* Training that is killed does what it did since its last checkpoint again: at most this share of its time. */
#define PST_FLYWHEEL_CHECKPOINT_SHARE 0.05
enum { PST_FLYWHEEL_TURN_EPOCHS = 8 }; /* most times that an example is seen */
#define PST_FLYWHEEL_TURN_DATA "data"  /* key of that step */
#define PST_FLYWHEEL_TURN_SAID "said"  /* and of that which counts preferences */

typedef struct pst_flywheel_turn_state {
  pst_gateway *gateway;
  pst_store *store;
  const pst_flywheel_turn_options *options;
  const char *model;                  /* to tune */
  double tune_s, plan_s;              /* time for the adapter, for the plan */
  const pst_evals_workload *workload; /* the caller's, or `own` */
  pst_evals_workload *own;            /* with the records' examples; NULL: there are none */
  int64_t run_id, created_ms;
  int64_t key_id;    /* account that pays the teacher; 0: none */
  char data_set[65]; /* empty: none */
  pst_json_doc *data, *said, *expected, *encoder, *adapter, *preferred, *planned,
      *gated; /* encoder NULL: there is nothing for one */
} pst_flywheel_turn_state;

/* Step "data": curates the workload's records into a data set and writes a folder HOME/turns/<fingerprint of the workload>-<hash of the set> with its lines as further
 * examples, as a product of the set: with its records it goes. Without records that may
 * be trained on it says so and does nothing. */
int pst_flywheel_turn_data(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err);
/* Whether what that step of an unfinished run left is gone, as it is when records were deleted that its examples came of: such a run is not gone on with. */
int pst_flywheel_turn_outdated(const pst_flywheel_turn_state *t, bool *ret_outdated, pst_error *err);
/* Opens the folder that the step left, if it left one, in the workload's place. */
int pst_flywheel_turn_open(pst_flywheel_turn_state *t, pst_error *err);
/* Whether the task is one of labels and there is an encoder to tell them apart; step "encoder": its adapter and the classifier beside it, or {"none": why}. */
bool pst_flywheel_turn_encodes(const pst_flywheel_turn_state *t);
int pst_flywheel_turn_encoder(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err);
/* Step "said": how much users said of answers; where it is enough, a data set of it and what it is learned by. */
int pst_flywheel_turn_count_preferences(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err);
/* Of the time for the adapter, what learning preferences takes; 0: there are too few. */
double pst_flywheel_turn_stage_s(const pst_flywheel_turn_state *t);
/* Step "preferred": an adapter that learns them, from the one of the examples; kept where it is the better one. Says why, or why nothing was done. */
int pst_flywheel_turn_prefer(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err);
/* How a turn tunes: the held-out examples, where it stops, who is told. Time and data are the caller's. */
pst_tune_workload_options pst_flywheel_turn_tuning(const pst_flywheel_turn_state *t, pst_tune_options training);

/* Step "expected": what a request to the tuned plan should cost by the machine's cost model, and when training is paid back. */
int pst_flywheel_turn_expect(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err);
/* Member "codes" of an open object: {"n", "plain_answer_tokens", "saved"}, the share of an answer's tokens; none where n is 0 or not a number. */
void pst_flywheel_turn_put_codes(double n, double plain_tokens, double tokens, pst_json_writer *w);
void pst_flywheel_turn_report(const pst_flywheel_turn_state *t, pst_buf *out);

#endif
