/* The worker's side of the queue of jobs: takes one, has it done, writes down how it ended.
 *
 * Invariant: a job ends in its row exactly once. A worker that dies leaves it running there, and the store puts it back into the queue when the worker's process is
 * gone; one that is asked to end, or that the machine fails (memory, disk), puts it back itself. Whoever takes it goes on from its checkpoint. So its files stay until
 * the row has ended, and go then, however it did. */
#include "flywheel/worker.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ATTEMPTS = 20, REPORT_US = 1000000, PAUSE_US = 60 * REPORT_US, POLL_US = 200000 };

static const struct {
  const char *kind;
  int (*work)(pst_flywheel_job *job, pst_buf *result, pst_error *err);
} kinds[] = {{"fine_tune", pst_flywheel_finetune}};

void pst_flywheel_job_report(pst_flywheel_job *job, double progress, const char *message) {
  int64_t now = pst_clock_us();
  pst_error err = PST_ERROR_INIT;
  bool cancel = false;
  if (job->options->stopped && job->options->stopped(job->options->user)) job->stopping = true;
  if (job->reported_us && now - job->reported_us < REPORT_US) return;
  job->reported_us = now;
  if (pst_store_job_report(job->store, job->id, progress, pst_str_from(message), &cancel, &err))
    pst_log(PST_LOG_WARN, "event=job_report_failed job=%" PRId64 " error=\"%s\"", job->id, err.message);
  job->cancelled |= cancel;
}

void pst_flywheel_job_event(const pst_flywheel_job *job, const char *level, const char *message, const char *data) {
  pst_error err = PST_ERROR_INIT;
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  if (!job->run) return;
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "time_ms", pst_clock_unix_ms());
  pst_json_member_cstr(&w, "level", level);
  pst_json_member_cstr(&w, "message", message);
  if (data) {
    pst_json_key(&w, "data");
    pst_json_put_raw(&w, pst_str_from(data));
  }
  pst_json_end_object(&w);
  if (pst_buf_status(&text) ||
      pst_store_run_append(job->store, job->run, (pst_str){NULL, 0}, pst_buf_str(&text), false, &err))
    pst_log(PST_LOG_WARN, "event=job_event_failed job=%" PRId64 " error=\"%s\"", job->id, err.message);
  pst_buf_done(&text);
}

/* ---- files ---- */

static bool job_of_file(const char *name, int64_t *ret_id) {
  const size_t n = sizeof PST_FLYWHEEL_JOB_FILE - 1;
  if (strncmp(name, PST_FLYWHEEL_JOB_FILE, n) != 0) return false;
  size_t digits = strspn(name + n, "0123456789");
  return name[n + digits] == '.' && pst_parse_i64((pst_str){name + n, digits}, 1, INT64_MAX, ret_id) == 0;
}

static int has_ended(void *user, const pst_store_job *job) {
  *(bool *)user = job->state >= PST_STORE_JOB_DONE;
  return 0;
}

/* Jobs end elsewhere, too: cancelled in the queue, given up after too many tries. */
static void remove_files_of_ended(pst_store *store) {
  char *path = pst_path_join(pst_store_home(store), PST_FLYWHEEL_JOBS);
  DIR *dir = path ? opendir(path) : NULL;
  for (struct dirent *e; dir && (e = readdir(dir));) {
    int64_t id;
    bool ended = false;
    if (!job_of_file(e->d_name, &id) || pst_store_job_get(store, id, has_ended, &ended, NULL) || !ended) continue;
    if (unlinkat(dirfd(dir), e->d_name, 0))
      pst_log(PST_LOG_WARN, "event=job_file_not_removed path=%s/%s error=\"%s\"", path, e->d_name, strerror(errno));
  }
  if (dir) (void)closedir(dir);
  pst_free(path);
}

/* ---- one job ---- */

typedef struct taken {
  pst_json_doc *params;
  size_t kind;      /* of kinds; their number: none of them */
  int64_t attempts; /* this one included */
} taken;

static int read_job(void *user, const pst_store_job *job) {
  taken *t = user;
  t->kind = 0;
  t->attempts = job->attempts;
  while (t->kind < PST_ARRAY_LEN(kinds) && !pst_str_is(job->kind, kinds[t->kind].kind)) t->kind++;
  return pst_json_parse(job->params.data, job->params.n, "params", &t->params, NULL);
}

static int end(pst_flywheel_job *job, int code, pst_buf *result, const pst_error *problem, pst_error *err) {
  static const struct {
    pst_store_job_state state;
    pst_store_run_state run;
    const char *level, *event, *message; /* NULL: what went wrong */
  } ends[] = {
      {PST_STORE_JOB_DONE, PST_STORE_RUN_DONE, "info", "The job has successfully completed", "done"},
      {PST_STORE_JOB_CANCELLED, PST_STORE_RUN_CANCELLED, "info", "The job was cancelled", "cancelled"},
      {PST_STORE_JOB_FAILED, PST_STORE_RUN_FAILED, "error", NULL, NULL},
  };
  size_t k = !code ? 0 : job->cancelled ? 1 : 2;
  char text[1100];
  const char *why = pst_error_format(problem, text, sizeof text), *message = ends[k].message ? ends[k].message : why;
  int64_t now_ms = pst_clock_unix_ms();
  pst_flywheel_job_event(job, ends[k].level, ends[k].event ? ends[k].event : why, NULL);
  if (job->run) (void)pst_store_run_end(job->store, job->run, ends[k].run, (pst_str){NULL, 0}, now_ms, NULL);
  return pst_store_job_end(job->store, job->id, ends[k].state, pst_str_from(message),
                           code ? (pst_str){NULL, 0} : pst_buf_str(result), now_ms, err);
}

/* Of the machine, and of this moment. */
static bool is_passing(int code) { return code == PST_E_NOMEM || code == PST_E_NO_SPACE || code == PST_E_IO; }

/* Before the next try; false: somebody wants its end meanwhile. */
static bool pause_job(pst_flywheel_job *job, const char *problem) {
  char text[1100];
  (void)snprintf(text, sizeof text, "tries again in a minute, since %s", problem);
  for (int64_t until = pst_clock_us() + PAUSE_US; pst_clock_us() < until && !job->stopping && !job->cancelled;) {
    pst_flywheel_job_report(job, 0, text);
    (void)usleep(POLL_US);
  }
  return !job->cancelled;
}

static int do_job(pst_flywheel_job *job, const taken *t, pst_error *err) {
  char text[1100] = "";
  pst_buf result = PST_BUF_INIT;
  pst_error problem = PST_ERROR_INIT;
  int code = PST_E_UNSUPPORTED;
  if (t->kind == PST_ARRAY_LEN(kinds))
    pst_error_set(&problem, code, "kind", "this program knows no job of this kind");
  else
    code = kinds[t->kind].work(job, &result, &problem);
  bool left = code == PST_E_CANCELLED && job->stopping && !job->cancelled, later = left;
  if (is_passing(code) && t->attempts < MAX_ATTEMPTS)
    later = pause_job(job, pst_error_format(&problem, text, sizeof text));
  if (later) {
    pst_log(left ? PST_LOG_INFO : PST_LOG_WARN, "event=job_left job=%" PRId64 " error=\"%s\"", job->id, text);
    code = pst_store_job_release(job->store, job->id, !left, pst_str_from(text), err);
  } else {
    code = end(job, code, &result, &problem, err);
    if (!code) remove_files_of_ended(job->store);
  }
  pst_buf_done(&result);
  return code;
}

int pst_flywheel_work(pst_store *store, const pst_flywheel_options *options, bool *ret_worked, pst_error *err) {
  pst_flywheel_job job = {.store = store, .options = options};
  taken t = {0};
  *ret_worked = false;
  int code = pst_store_job_take(store, MAX_ATTEMPTS, pst_clock_unix_ms(), &job.id, err);
  if (code) return code;
  remove_files_of_ended(store);
  if (!job.id) return 0;
  code = pst_store_job_get(store, job.id, read_job, &t, err);
  if (!code) {
    job.params = pst_json_root(t.params);
    job.run = pst_json_int(pst_json_get(job.params, "run"), 0);
    code = do_job(&job, &t, err);
    *ret_worked = true;
  }
  pst_json_free(t.params);
  return code;
}
