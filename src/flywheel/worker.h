/* A job at hand: how its doer reports, and learns that it is to end. Private to flywheel. */
#ifndef PST_FLYWHEEL_WORKER_H
#define PST_FLYWHEEL_WORKER_H

#include <penstock/flywheel.h>

typedef struct pst_flywheel_job {
  pst_store *store;
  const pst_flywheel_options *options;
  int64_t id, run;          /* run: where events go; 0: nowhere */
  const pst_json *params;   /* of the job */
  int64_t reported_us;      /* when the row was written last */
  bool cancelled, stopping; /* asked for: by a person, by the end of the process */
} pst_flywheel_job;

/* Progress into the job's row, at most once a second; asks whether it is to go on. */
void pst_flywheel_job_report(pst_flywheel_job *job, double progress, const char *message);
/* An event of the job's run. data NULL, or a JSON object's text. */
void pst_flywheel_job_event(const pst_flywheel_job *job, const char *level, const char *message, const char *data);

/* Where a job keeps what it goes on from, under its number: HOME/jobs/ftjob-7.checkpoint. The worker removes what begins so when the job's row has ended. */
#define PST_FLYWHEEL_JOBS "jobs"
#define PST_FLYWHEEL_JOB_FILE "ftjob-"

/* Does a job of the kind; *result: a JSON object's text. PST_E_CANCELLED where the job says cancelled or stopping. */
int pst_flywheel_finetune(pst_flywheel_job *job, pst_buf *result, pst_error *err);

#endif
