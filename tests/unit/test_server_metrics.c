/* The Prometheus text: buckets, sums, labels, and what happens when there is no room for another label. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/metrics.h"

static void bounds_belong_to_their_bucket(void **state) {
  (void)state;
  static const double bounds[] = {0.1, 0.5, 1};
  pst_server_histogram h;
  pst_server_histogram_init(&h, bounds, 3);
  const double values[] = {0.05, 0.1, 0.1000001, 0.5, 1, 1.5, 1e9, -3, NAN};
  for (size_t i = 0; i < PST_ARRAY_LEN(values); i++) pst_server_histogram_observe(&h, values[i]);
  assert_int_equal(h.counts[0], 3); /* 0.05, 0.1, and -3 as 0 */
  assert_int_equal(h.counts[1], 2);
  assert_int_equal(h.counts[2], 1);
  assert_int_equal(h.counts[3], 2);
  assert_int_equal(h.n, 8);
  assert_true(fabs(h.sum - (0.05 + 0.1 + 0.1000001 + 0.5 + 1 + 1.5 + 1e9)) < 1e-3);
}

static void histogram_text(void **state) {
  (void)state;
  static const double bounds[] = {0.0005, 0.25, 10};
  pst_server_histogram h;
  pst_buf out = PST_BUF_INIT;
  pst_server_histogram_init(&h, bounds, 3);
  pst_server_histogram_observe(&h, 0.25);
  pst_server_histogram_observe(&h, 0.5);
  pst_server_histogram_observe(&h, 11);
  pst_server_metric_histogram(&out, "x_seconds", "What x takes", &h);
  assert_string_equal(pst_buf_text(&out), "# HELP x_seconds What x takes\n"
                                          "# TYPE x_seconds histogram\n"
                                          "x_seconds_bucket{le=\"0.0005\"} 0\n"
                                          "x_seconds_bucket{le=\"0.25\"} 1\n"
                                          "x_seconds_bucket{le=\"10\"} 2\n"
                                          "x_seconds_bucket{le=\"+Inf\"} 3\n"
                                          "x_seconds_sum 11.75\n"
                                          "x_seconds_count 3\n");
  pst_buf_done(&out);
}

static void labels_are_escaped(void **state) {
  (void)state;
  pst_buf out = PST_BUF_INIT;
  pst_server_metric_label(&out, "a", PST_STR("x\\y\"z\nw"));
  pst_server_metric_label(&out, "b", PST_STR(""));
  assert_string_equal(pst_buf_text(&out), "a=\"x\\\\y\\\"z\\nw\",b=\"\"");
  pst_buf_clear(&out);
  pst_server_metric_int(&out, "n", "a=\"b\"", -7);
  pst_server_metric_real(&out, "r", "", INFINITY);
  pst_server_metric_real(&out, "r", "", NAN);
  pst_server_metric_real(&out, "r", "", 0.1);
  assert_string_equal(pst_buf_text(&out), "n{a=\"b\"} -7\nr +Inf\nr NaN\nr 0.1\n");
  pst_buf_done(&out);
}

static bool has(const pst_buf *out, const char *line) { return strstr(pst_buf_text(out), line) != NULL; }

static void calls_are_summed(void **state) {
  (void)state;
  pst_server_metrics *m = malloc(sizeof *m);
  pst_buf out = PST_BUF_INIT;
  assert_non_null(m);
  pst_server_metrics_init(m);
  pst_server_call_figures f = {.target = "local",
                               .model = "small",
                               .prompt_tokens = 30,
                               .cached_tokens = 16,
                               .completion_tokens = 11,
                               .cost_nusd = 2500,
                               .ttft_us = 40000,
                               .queued_us = 100,
                               .total_us = 140000};
  pst_server_metrics_call(m, &f);
  pst_server_metrics_call(m, &f);
  pst_server_metrics_status(m, "/v1/chat/completions", 200, 140000);
  pst_server_metrics_status(m, "/v1/chat/completions", 200, 140000);
  pst_server_metrics_status(m, "/v1/chat/completions", 429, 1000);
  pst_server_metrics_write(m, &out);
  assert_true(has(&out, "\npenstock_requests_total{endpoint=\"/v1/chat/completions\",status=\"200\"} 2\n"));
  assert_true(has(&out, "\npenstock_requests_total{endpoint=\"/v1/chat/completions\",status=\"429\"} 1\n"));
  assert_true(has(&out, "\npenstock_tokens_total{target=\"local\",model=\"small\",kind=\"prompt\"} 60\n"));
  assert_true(has(&out, "\npenstock_tokens_total{target=\"local\",model=\"small\",kind=\"cached\"} 32\n"));
  assert_true(has(&out, "\npenstock_tokens_total{target=\"local\",model=\"small\",kind=\"completion\"} 22\n"));
  assert_true(has(&out, "\npenstock_cost_usd_total{target=\"local\",model=\"small\"} 5e-06\n"));
  assert_true(has(&out, "\npenstock_time_to_first_token_seconds_bucket{le=\"0.025\"} 0\n"));
  assert_true(has(&out, "\npenstock_time_to_first_token_seconds_bucket{le=\"0.05\"} 2\n"));
  assert_true(has(&out, "\npenstock_time_per_output_token_seconds_sum 0.02\n")); /* 100 ms over 10 gaps, twice */
  assert_true(has(&out, "\npenstock_request_duration_seconds_count 3\n"));
  pst_buf_done(&out);
  free(m);
}

static void what_was_not_measured_is_not_counted(void **state) {
  (void)state;
  pst_server_metrics *m = malloc(sizeof *m);
  assert_non_null(m);
  pst_server_metrics_init(m);
  pst_server_metrics_call(m, &(pst_server_call_figures){.ttft_us = -1, .queued_us = -1, .total_us = -1});
  pst_server_metrics_call(
      m, &(pst_server_call_figures){.ttft_us = 10, .queued_us = 0, .total_us = 50, .completion_tokens = 1});
  assert_int_equal(m->first_token.n, 1);
  assert_int_equal(m->queue.n, 1);
  assert_int_equal(m->per_token.n, 0); /* one token has no gap */
  free(m);
}

/* An answer given again waited in no queue and made no token: it must not make the engine look fast. */
static void hits_are_counted_apart(void **state) {
  (void)state;
  pst_server_metrics *m = malloc(sizeof *m);
  pst_buf out = PST_BUF_INIT;
  assert_non_null(m);
  pst_server_metrics_init(m);
  pst_server_call_figures f = {
      .target = "cache", .model = "small", .completion_tokens = 11, .ttft_us = 40, .total_us = 60};
  static const pst_gateway_cache_use uses[] = {PST_GATEWAY_CACHE_HIT, PST_GATEWAY_CACHE_HIT, PST_GATEWAY_CACHE_MISS,
                                               PST_GATEWAY_CACHE_OFF};
  for (size_t i = 0; i < PST_ARRAY_LEN(uses); i++) {
    f.cache = uses[i];
    pst_server_metrics_call(m, &f);
  }
  pst_server_metrics_write(m, &out);
  assert_true(has(&out, "\npenstock_answer_cache_total{result=\"hit\"} 2\n"));
  assert_true(has(&out, "\npenstock_answer_cache_total{result=\"miss\"} 1\n"));
  assert_true(has(&out, "\npenstock_answer_cache_total{result=\"bypass\"} 0\n"));
  assert_int_equal(m->first_token.n, 4);
  assert_int_equal(m->per_token.n, 2);
  assert_int_equal(m->queue.n, 2);
  pst_buf_done(&out);
  free(m);
}

static void labels_are_bounded(void **state) {
  (void)state;
  pst_server_metrics *m = malloc(sizeof *m);
  assert_non_null(m);
  pst_server_metrics_init(m);
  char name[32];
  for (int i = 0; i < 200; i++) {
    snprintf(name, sizeof name, "m%d", i);
    pst_server_metrics_call(m, &(pst_server_call_figures){.target = "p", .model = name, .prompt_tokens = 1});
    pst_server_metrics_status(m, "/v1/models", 200 + i, 1);
  }
  int64_t answers = 0, requests = 0;
  assert_int_equal(m->n_models, PST_SERVER_MAX_LABELLED);
  for (int i = 0; i < m->n_models; i++) answers += m->models[i].n_answers;
  for (int i = 0; i < m->n_statuses; i++) requests += m->statuses[i].n;
  assert_int_equal(answers, 200);
  assert_int_equal(requests, 200);
  assert_string_equal(m->models[PST_SERVER_MAX_LABELLED - 1].model, "other");
  assert_string_equal(m->statuses[PST_SERVER_MAX_LABELLED - 1].endpoint, "other");
  free(m);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(bounds_belong_to_their_bucket),
      cmocka_unit_test(histogram_text),
      cmocka_unit_test(labels_are_escaped),
      cmocka_unit_test(calls_are_summed),
      cmocka_unit_test(what_was_not_measured_is_not_counted),
      cmocka_unit_test(hits_are_counted_apart),
      cmocka_unit_test(labels_are_bounded),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
