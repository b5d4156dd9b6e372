/* Counters and histograms, and their text in the Prometheus exposition format 0.0.4
 * (https://prometheus.io/docs/instrumenting/exposition_formats/). Knows no sockets and asks no gateway: numbers in, text out.
 *
 * Labels come from bounded sets only: endpoints and statuses are ours, models are those that have answered, and beyond 63 of them "other" takes the rest. */
#include "server/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Seconds. Tokens come from under a millisecond (small model, idle machine) to seconds (queue, long prompt). */
static const double latency_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                        0.5,   1,      2.5,   5,    10,    30,   60,  120};
static const double token_bounds[] = {0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02,
                                      0.03,   0.05,  0.075, 0.1,   0.2,   0.5,    1,    2.5};

void pst_server_histogram_init(pst_server_histogram *h, const double *bounds, int n_bounds) {
  memset(h, 0, sizeof *h);
  h->bounds = bounds;
  h->n_bounds = PST_MIN(n_bounds, (int)PST_SERVER_MAX_BUCKETS);
}

void pst_server_histogram_observe(pst_server_histogram *h, double value) {
  if (isnan(value)) return;
  value = PST_MAX(value, 0.0);
  int i = 0;
  while (i < h->n_bounds && value > h->bounds[i]) i++; /* a bound belongs to its own bucket: le is "less or equal" */
  h->counts[i]++;
  h->n++;
  h->sum += value;
}

/* ---- text ---------------------------------------------------------------------------------------------------------------- */

void pst_server_metric_head(pst_buf *out, const char *name, const char *type, const char *help) {
  pst_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_name(pst_buf *out, const char *name, const char *labels) {
  pst_buf_puts(out, name);
  if (*labels) pst_buf_printf(out, "{%s}", labels);
  pst_buf_putc(out, ' ');
}

void pst_server_metric_int(pst_buf *out, const char *name, const char *labels, int64_t value) {
  put_name(out, name, labels);
  pst_buf_printf(out, "%" PRId64 "\n", value);
}

void pst_server_metric_real(pst_buf *out, const char *name, const char *labels, double value) {
  put_name(out, name, labels);
  if (isnan(value))
    pst_buf_puts(out, "NaN\n");
  else if (isinf(value))
    pst_buf_puts(out, value > 0 ? "+Inf\n" : "-Inf\n");
  else
    pst_buf_printf(out, "%.15g\n", value);
}

void pst_server_metric_histogram(pst_buf *out, const char *name, const char *help, const pst_server_histogram *h) {
  char full[128], label[48];
  uint64_t below = 0;
  pst_server_metric_head(out, name, "histogram", help);
  snprintf(full, sizeof full, "%s_bucket", name);
  for (int i = 0; i <= h->n_bounds; i++) {
    below += h->counts[i];
    if (i < h->n_bounds)
      snprintf(label, sizeof label, "le=\"%g\"", h->bounds[i]);
    else
      snprintf(label, sizeof label, "le=\"+Inf\"");
    pst_server_metric_int(out, full, label, (int64_t)below);
  }
  snprintf(full, sizeof full, "%s_sum", name);
  pst_server_metric_real(out, full, "", h->sum);
  snprintf(full, sizeof full, "%s_count", name);
  pst_server_metric_int(out, full, "", (int64_t)h->n);
}

void pst_server_metric_label(pst_buf *labels, const char *name, pst_str value) {
  if (labels->n) pst_buf_putc(labels, ',');
  pst_buf_printf(labels, "%s=\"", name);
  for (size_t i = 0; i < value.n; i++) {
    char ch = value.data[i];
    if (ch == '\n')
      pst_buf_puts(labels, "\\n");
    else if (ch == '\\' || ch == '"')
      pst_buf_printf(labels, "\\%c", ch);
    else
      pst_buf_putc(labels, ch);
  }
  pst_buf_putc(labels, '"');
}

/* ---- counting ------------------------------------------------------------------------------------------------------------ */

void pst_server_metrics_init(pst_server_metrics *m) {
  memset(m, 0, sizeof *m);
  pst_server_histogram_init(&m->first_token, latency_bounds, (int)PST_ARRAY_LEN(latency_bounds));
  pst_server_histogram_init(&m->queue, latency_bounds, (int)PST_ARRAY_LEN(latency_bounds));
  pst_server_histogram_init(&m->duration, latency_bounds, (int)PST_ARRAY_LEN(latency_bounds));
  pst_server_histogram_init(&m->inter_token, token_bounds, (int)PST_ARRAY_LEN(token_bounds));
  pst_server_histogram_init(&m->per_token, token_bounds, (int)PST_ARRAY_LEN(token_bounds));
}

void pst_server_metrics_status(pst_server_metrics *m, const char *endpoint, int status, int64_t duration_us) {
  pst_server_histogram_observe(&m->duration, (double)duration_us / 1e6);
  for (int i = 0; i < m->n_statuses; i++) {
    pst_server_status_count *c = &m->statuses[i];
    if (c->status == status && !strcmp(c->endpoint, endpoint)) {
      c->n++;
      return;
    }
  }
  if (m->n_statuses == PST_SERVER_MAX_LABELLED) {
    m->statuses[PST_SERVER_MAX_LABELLED - 1].n++;
    return;
  }
  bool last = m->n_statuses == PST_SERVER_MAX_LABELLED - 1;
  m->statuses[m->n_statuses++] = (pst_server_status_count){last ? "other" : endpoint, last ? 0 : status, 1};
}

static pst_server_model_count *model_row(pst_server_metrics *m, const char *target, const char *model) {
  char t[sizeof m->models[0].target], n[sizeof m->models[0].model];
  snprintf(t, sizeof t, "%s", target ? target : "");
  snprintf(n, sizeof n, "%s", model ? model : "");
  for (int i = 0; i < m->n_models; i++) {
    if (!strcmp(m->models[i].target, t) && !strcmp(m->models[i].model, n)) return &m->models[i];
  }
  if (m->n_models == PST_SERVER_MAX_LABELLED) return &m->models[PST_SERVER_MAX_LABELLED - 1];
  pst_server_model_count *row = &m->models[m->n_models++];
  bool last = m->n_models == PST_SERVER_MAX_LABELLED;
  snprintf(row->target, sizeof row->target, "%s", last ? "other" : t);
  snprintf(row->model, sizeof row->model, "%s", last ? "other" : n);
  return row;
}

void pst_server_metrics_call(pst_server_metrics *m, const pst_server_call_figures *f) {
  pst_server_model_count *row = model_row(m, f->target, f->model);
  row->n_answers++;
  row->prompt_tokens += f->prompt_tokens;
  row->cached_tokens += f->cached_tokens;
  row->completion_tokens += f->completion_tokens;
  row->cost_nusd += f->cost_nusd;
  m->n_cache[f->cache]++;
  if (f->ttft_us >= 0) pst_server_histogram_observe(&m->first_token, (double)f->ttft_us / 1e6);
  if (f->cache == PST_GATEWAY_CACHE_HIT) return; /* waited for nothing, and none of its tokens was made */
  if (f->queued_us >= 0) pst_server_histogram_observe(&m->queue, (double)f->queued_us / 1e6);
  if (f->ttft_us >= 0 && f->total_us >= f->ttft_us && f->completion_tokens > 1)
    pst_server_histogram_observe(&m->per_token,
                                 (double)(f->total_us - f->ttft_us) / 1e6 / (double)(f->completion_tokens - 1));
}

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

static void write_statuses(const pst_server_metrics *m, pst_buf *out) {
  static const char name[] = "penstock_requests_total";
  pst_buf labels = PST_BUF_INIT;
  char status[16];
  pst_server_metric_head(out, name, "counter",
                         "HTTP requests by endpoint and status (499: the client was gone before the end)");
  for (int i = 0; i < m->n_statuses; i++) {
    const pst_server_status_count *c = &m->statuses[i];
    snprintf(status, sizeof status, "%d", c->status);
    pst_buf_clear(&labels);
    pst_server_metric_label(&labels, "endpoint", pst_str_from(c->endpoint));
    pst_server_metric_label(&labels, "status", pst_str_from(status));
    pst_server_metric_int(out, name, pst_buf_text(&labels), c->n);
  }
  pst_buf_done(&labels);
}

static void model_labels(const pst_server_model_count *c, const char *kind, pst_buf *labels) {
  pst_buf_clear(labels);
  pst_server_metric_label(labels, "target", pst_str_from(c->target));
  pst_server_metric_label(labels, "model", pst_str_from(c->model));
  if (kind) pst_server_metric_label(labels, "kind", pst_str_from(kind));
}

static void write_models(const pst_server_metrics *m, pst_buf *out) {
  pst_buf labels = PST_BUF_INIT;
  pst_server_metric_head(out, "penstock_answers_total", "counter",
                         "Calls of a target that have ended, by target and model");
  for (int i = 0; i < m->n_models; i++) {
    model_labels(&m->models[i], NULL, &labels);
    pst_server_metric_int(out, "penstock_answers_total", pst_buf_text(&labels), m->models[i].n_answers);
  }
  pst_server_metric_head(out, "penstock_tokens_total", "counter",
                         "Tokens by kind; cached ones are part of the prompt's");
  for (int i = 0; i < m->n_models; i++) {
    const pst_server_model_count *c = &m->models[i];
    model_labels(c, "prompt", &labels);
    pst_server_metric_int(out, "penstock_tokens_total", pst_buf_text(&labels), c->prompt_tokens);
    model_labels(c, "cached", &labels);
    pst_server_metric_int(out, "penstock_tokens_total", pst_buf_text(&labels), c->cached_tokens);
    model_labels(c, "completion", &labels);
    pst_server_metric_int(out, "penstock_tokens_total", pst_buf_text(&labels), c->completion_tokens);
  }
  pst_server_metric_head(out, "penstock_cost_usd_total", "counter", "What answers cost, US dollars");
  for (int i = 0; i < m->n_models; i++) {
    model_labels(&m->models[i], NULL, &labels);
    pst_server_metric_real(out, "penstock_cost_usd_total", pst_buf_text(&labels), (double)m->models[i].cost_nusd / 1e9);
  }
  pst_buf_done(&labels);
}

static void write_cache(const pst_server_metrics *m, pst_buf *out) {
  static const char name[] = "penstock_answer_cache_total";
  char label[32];
  pst_server_metric_head(out, name, "counter",
                         "Calls of workloads whose plan caches answers: given again, computed, not to be given again");
  for (int i = PST_GATEWAY_CACHE_OFF + 1; i < PST_GATEWAY_CACHE_COUNT; i++) {
    snprintf(label, sizeof label, "result=\"%s\"", pst_gateway_cache_name((pst_gateway_cache_use)i));
    pst_server_metric_int(out, name, label, m->n_cache[i]);
  }
}

static void write_counter(pst_buf *out, const char *name, const char *help, int64_t value) {
  pst_server_metric_head(out, name, "counter", help);
  pst_server_metric_int(out, name, "", value);
}

void pst_server_metrics_write(const pst_server_metrics *m, pst_buf *out) {
  write_statuses(m, out);
  write_models(m, out);
  write_cache(m, out);
  write_counter(out, "penstock_cancelled_total", "Requests whose client was gone before the answer's end",
                m->n_cancelled);
  write_counter(out, "penstock_too_slow_total", "Streams cut because their client read too slowly", m->n_too_slow);
  pst_server_metric_head(out, "penstock_refused_total", "counter", "Requests refused before any work");
  pst_server_metric_int(out, "penstock_refused_total", "reason=\"overload\"", m->n_refused_overload);
  pst_server_metric_int(out, "penstock_refused_total", "reason=\"draining\"", m->n_refused_draining);
  pst_server_metric_histogram(out, "penstock_time_to_first_token_seconds",
                              "From a request's first byte to its first token", &m->first_token);
  pst_server_metric_histogram(out, "penstock_inter_token_seconds",
                              "Between two tokens of one streamed choice, as they left the target", &m->inter_token);
  pst_server_metric_histogram(out, "penstock_time_per_output_token_seconds",
                              "Mean of one call after its first token, streamed or not", &m->per_token);
  pst_server_metric_histogram(out, "penstock_queue_seconds", "Waiting in the engine before the first step", &m->queue);
  pst_server_metric_histogram(out, "penstock_request_duration_seconds",
                              "From a request's first byte to the end of its answer, every endpoint", &m->duration);
}
