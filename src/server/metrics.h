/* What the server counts, and its text for Prometheus. Owned by the loop's thread; no locks. */
#ifndef PST_SERVER_METRICS_H
#define PST_SERVER_METRICS_H

#include <penstock/gateway.h>

enum { PST_SERVER_MAX_BUCKETS = 24, PST_SERVER_MAX_LABELLED = 64 };

/* counts[i]: observations in (bounds[i-1], bounds[i]]; counts[n_bounds]: those above the last bound. */
typedef struct pst_server_histogram {
  const double *bounds; /* ascending, n_bounds of them */
  int n_bounds;
  uint64_t counts[PST_SERVER_MAX_BUCKETS + 1];
  uint64_t n;
  double sum;
} pst_server_histogram;
void pst_server_histogram_init(pst_server_histogram *h, const double *bounds, int n_bounds);
void pst_server_histogram_observe(pst_server_histogram *h,
                                  double value); /* not a number: ignored; below 0: counts as 0 */

/* ---- text format, version 0.0.4 ---- */

/* "# HELP" and "# TYPE". */
void pst_server_metric_head(pst_buf *out, const char *name, const char *type, const char *help);
/* One sample. labels: "" or text as `a="b"`, already escaped. */
void pst_server_metric_int(pst_buf *out, const char *name, const char *labels, int64_t value);
void pst_server_metric_real(pst_buf *out, const char *name, const char *labels, double value);
/* With its head; cumulative buckets, +Inf, _sum and _count. */
void pst_server_metric_histogram(pst_buf *out, const char *name, const char *help, const pst_server_histogram *h);
/* Appends name="value" with \ " and line breaks escaped; a comma before it unless the buffer is empty. */
void pst_server_metric_label(pst_buf *labels, const char *name, pst_str value);

/* ---- what is counted ---- */

typedef struct pst_server_status_count { /* requests by endpoint and status */
  const char *endpoint;                  /* static text */
  int status;
  int64_t n;
} pst_server_status_count;

typedef struct pst_server_model_count { /* by target and model; the last row takes what has no room: "other" */
  char target[48], model[80];
  int64_t n_answers, prompt_tokens, cached_tokens, completion_tokens, cost_nusd;
} pst_server_model_count;

typedef struct pst_server_metrics {
  pst_server_status_count statuses[PST_SERVER_MAX_LABELLED];
  int n_statuses;
  pst_server_model_count models[PST_SERVER_MAX_LABELLED];
  int n_models;
  int64_t n_cache[PST_GATEWAY_CACHE_COUNT]; /* answers by what the answer cache had to do with them */
  int64_t n_cancelled, n_too_slow, n_refused_overload, n_refused_draining;
  pst_server_histogram first_token, inter_token, per_token, queue, duration; /* seconds */
} pst_server_metrics;

/* What one finished call of the gateway adds. Times in microseconds; -1: not measured. */
typedef struct pst_server_call_figures {
  const char *target, *model;
  int64_t prompt_tokens, cached_tokens, completion_tokens, cost_nusd;
  pst_gateway_cache_use cache;
  int64_t ttft_us, queued_us, total_us;
} pst_server_call_figures;

void pst_server_metrics_init(pst_server_metrics *m);
void pst_server_metrics_status(pst_server_metrics *m, const char *endpoint, int status, int64_t duration_us);
void pst_server_metrics_call(pst_server_metrics *m, const pst_server_call_figures *figures);
void pst_server_metrics_write(const pst_server_metrics *m, pst_buf *out);

#endif
