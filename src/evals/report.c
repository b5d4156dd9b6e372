/* The report of an eval: as text, as JSON for programs, and as one HTML page.
 *
 * Owns how results are said, not what they are. The page (report.html) holds the JSON and draws it, so that the three can not
 * disagree. Shares are fractions in JSON, percent in text; differences are in percentage points. */
#include "evals/workload.h"

#include <math.h>
#include <string.h>

#define DISCORDANT_MAX 300 /* items listed in the JSON */

const char *pst_evals_verdict_name(pst_evals_verdict verdict) {
  static const char *const names[] = {"yes", "no", "not enough data"};
  return (size_t)verdict < PST_ARRAY_LEN(names) ? names[verdict] : "";
}

static pst_evals_interval score_of(const pst_evals_report *r, size_t target) {
  const pst_evals_run *run = r->targets[target].run;
  return pst_evals_wilson(run->n_accepted, (int64_t)run->n, r->confidence);
}

pst_evals_verdict pst_evals_report_verdict(const pst_evals_report *r) {
  if (r->n_targets > 1) return r->comparisons[0].non_inferior;
  pst_evals_interval score = score_of(r, 0);
  double goal = r->workload->info.goal.quality_floor;
  return score.low >= goal ? PST_EVALS_YES : score.high < goal ? PST_EVALS_NO : PST_EVALS_NOT_ENOUGH_DATA;
}

static bool leaves_machine(const pst_gateway_node *node) {
  bool leaves = node->op == PST_GATEWAY_OP_REMOTE;
  for (int i = 0; i < node->n_inputs; i++) leaves = leaves || leaves_machine(&node->inputs[i]);
  return leaves;
}

int64_t pst_evals_cost_per_1000(const pst_evals_report *r, size_t target) {
  const pst_evals_run *run = r->targets[target].run;
  int64_t cost = run->cost_nusd, per = 0;
  if (!run->n_accepted) return -1;
  if (!leaves_machine(&r->targets[target].plan->root)) {
    if (!r->machine_nusd_per_hour) return -1;
    if (pst_store_nusd_scale(run->wall_us, r->machine_nusd_per_hour, INT64_C(3600000000), &cost)) return -1;
  }
  return pst_store_nusd_scale(cost, 1000, run->n_accepted, &per) ? -1 : per;
}

/* ---- latencies ---- */

typedef struct latencies {
  double p50, p95, p99, first_p50, first_p95; /* ms; NAN: none */
  double per_second;                          /* answers, over the wall time */
} latencies;

static int find_latencies(const pst_evals_run *run, latencies *ret_latencies) {
  double *values = pst_calloc(run->n + 1, sizeof *values);
  if (!values) return PST_E_NOMEM;
  latencies l;
  size_t n = 0;
  for (size_t i = 0; i < run->n; i++)
    if (run->answers[i].done) values[n++] = (double)run->answers[i].total_us / 1e3;
  l.p50 = pst_evals_quantile(values, n, 0.50);
  l.p95 = pst_evals_quantile(values, n, 0.95);
  l.p99 = pst_evals_quantile(values, n, 0.99);
  l.per_second = run->wall_us > 0 ? (double)n * 1e6 / (double)run->wall_us : NAN;
  n = 0;
  for (size_t i = 0; i < run->n; i++)
    if (run->answers[i].done && run->answers[i].ttft_us >= 0) values[n++] = (double)run->answers[i].ttft_us / 1e3;
  l.first_p50 = pst_evals_quantile(values, n, 0.50);
  l.first_p95 = pst_evals_quantile(values, n, 0.95);
  pst_free(values);
  *ret_latencies = l;
  return 0;
}

/* ---- JSON ---- */

static void put_interval(pst_json_writer *w, const char *key, pst_evals_interval i) {
  pst_json_key(w, key);
  pst_json_begin_object(w);
  pst_json_member_double(w, "estimate", i.estimate);
  pst_json_member_double(w, "low", i.low);
  pst_json_member_double(w, "high", i.high);
  pst_json_end_object(w);
}

static int put_target(const pst_evals_report *r, size_t t, pst_json_writer *w) {
  const pst_evals_target *target = &r->targets[t];
  const pst_evals_run *run = target->run;
  latencies l;
  int code = find_latencies(run, &l);
  if (code) return code;
  int64_t prompt = 0, cached = 0, completion = 0, cost = pst_evals_cost_per_1000(r, t);
  double score = 0;
  for (size_t i = 0; i < run->n; i++) {
    prompt += run->answers[i].prompt_tokens;
    cached += run->answers[i].cached_tokens;
    completion += run->answers[i].completion_tokens;
    score += run->answers[i].grade.score;
  }
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "name", target->name);
  pst_json_member_cstr(w, "plan", target->plan->hash);
  pst_json_member_int(w, "run", run->run_id);
  pst_json_member_int(w, "n", (int64_t)run->n);
  pst_json_member_int(w, "accepted", run->n_accepted);
  pst_json_member_int(w, "failed", run->n_failed);
  pst_json_member_int(w, "reused", run->n_reused);
  pst_json_member_cstr(w, "first_failure", run->first_failure.code ? run->first_failure.message : NULL);
  put_interval(w, "share_accepted", score_of(r, t));
  pst_json_member_double(w, "mean_score", run->n ? score / (double)run->n : NAN);
  pst_json_key(w, "latency_ms");
  pst_json_begin_object(w);
  pst_json_member_double(w, "p50", l.p50);
  pst_json_member_double(w, "p95", l.p95);
  pst_json_member_double(w, "p99", l.p99);
  pst_json_member_double(w, "first_token_p50", l.first_p50);
  pst_json_member_double(w, "first_token_p95", l.first_p95);
  pst_json_end_object(w);
  pst_json_member_double(w, "answers_per_second", l.per_second);
  pst_json_member_double(w, "wall_s", (double)run->wall_us / 1e6);
  pst_json_member_int(w, "prompt_tokens", prompt);
  pst_json_member_int(w, "cached_tokens", cached);
  pst_json_member_int(w, "completion_tokens", completion);
  pst_json_member_double(w, "usd_per_1000_accepted", cost < 0 ? NAN : (double)cost / (double)PST_STORE_NUSD_PER_USD);
  pst_json_end_object(w);
  return 0;
}

static void put_comparison(const pst_evals_report *r, size_t i, pst_json_writer *w) {
  const pst_evals_comparison *c = &r->comparisons[i];
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "candidate", r->targets[i].name);
  pst_json_member_cstr(w, "reference", r->targets[r->n_targets - 1].name);
  pst_json_member_int(w, "n", c->n);
  pst_json_member_int(w, "both", c->n11);
  pst_json_member_int(w, "only_candidate", c->n10);
  pst_json_member_int(w, "only_reference", c->n01);
  pst_json_member_int(w, "neither", c->n00);
  put_interval(w, "difference", c->difference);
  put_interval(w, "difference_newcombe", pst_evals_newcombe(c->n11, c->n10, c->n01, c->n00, r->confidence));
  pst_json_member_double(w, "mcnemar_mid_p", c->mid_p);
  pst_json_member_double(w, "margin", c->margin);
  pst_json_member_double(w, "smallest_detectable_difference", c->detectable);
  pst_json_member_cstr(w, "non_inferior", pst_evals_verdict_name(c->non_inferior));
  pst_json_end_object(w);
}

static const pst_evals_answer *answer_to(const pst_evals_run *run, size_t item, size_t guess) {
  if (guess < run->n && run->answers[guess].item == item) return &run->answers[guess];
  for (size_t i = 0; i < run->n; i++)
    if (run->answers[i].item == item) return &run->answers[i];
  return NULL;
}

/* Items that the first target and the last were not equally right on: what a person wants to read. */
static void put_discordant(const pst_evals_report *r, pst_json_writer *w) {
  const pst_evals_run *a = r->targets[0].run, *b = r->targets[r->n_targets - 1].run;
  size_t n = 0;
  pst_json_begin_array(w);
  for (size_t i = 0; i < a->n && n < DISCORDANT_MAX && r->n_targets > 1; i++) {
    const pst_evals_answer *x = &a->answers[i], *y = answer_to(b, x->item, i);
    if (!y || (x->done && x->grade.accepted) == (y->done && y->grade.accepted)) continue;
    const pst_evals_item *item = &r->workload->info.items[x->item];
    n++;
    pst_json_begin_object(w);
    pst_json_member_str(w, "id", item->id);
    pst_json_member_str(w, "input", (pst_str){item->input.data, PST_MIN(item->input.n, (size_t)2000)});
    pst_json_member_str(w, "expected", (pst_str){item->expected.data, PST_MIN(item->expected.n, (size_t)2000)});
    pst_json_member_cstr(w, "right", x->done && x->grade.accepted ? "candidate" : "reference");
    pst_json_member_str(w, "candidate", (pst_str){x->text.data, PST_MIN(x->text.n, (size_t)2000)});
    pst_json_member_str(w, "reference", (pst_str){y->text.data, PST_MIN(y->text.n, (size_t)2000)});
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
}

static int write_json(const pst_evals_report *r, bool pretty, pst_buf *out) {
  const pst_evals_info *info = &r->workload->info;
  pst_json_writer w = pst_json_writer_on(out, pretty);
  int code = 0;
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "workload", info->name);
  pst_json_member_cstr(&w, "fingerprint", info->fingerprint);
  pst_json_member_cstr(&w, "part", pst_evals_part_name(r->part));
  pst_json_member_int(&w, "uses_of_part", r->n_uses);
  pst_json_member_cstr(&w, "grader", pst_evals_grader_name(info->grader));
  pst_json_member_double(&w, "confidence", r->confidence);
  pst_json_member_double(&w, "quality_floor", info->goal.quality_floor);
  pst_json_member_double(&w, "margin", info->goal.margin);
  pst_json_member_cstr(&w, "question", r->n_targets > 1 ? "non_inferior" : "reaches_floor");
  pst_json_member_cstr(&w, "verdict", pst_evals_verdict_name(pst_evals_report_verdict(r)));
  pst_json_key(&w, "targets");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < r->n_targets && !code; i++) code = put_target(r, i, &w);
  pst_json_end_array(&w);
  pst_json_key(&w, "comparisons");
  pst_json_begin_array(&w);
  for (size_t i = 0; i + 1 < r->n_targets; i++) put_comparison(r, i, &w);
  pst_json_end_array(&w);
  pst_json_key(&w, "discordant");
  put_discordant(r, &w);
  pst_json_end_object(&w);
  if (pretty) pst_buf_putc(out, '\n');
  return code ? code : pst_buf_status(out);
}

/* ---- text ---- */

static void put_ms(pst_buf *out, double ms) {
  if (isnan(ms))
    pst_buf_printf(out, "%9s", "-");
  else
    pst_buf_printf(out, "%9.*f", ms < 10 ? 1 : 0, ms);
}

static int put_target_row(const pst_evals_report *r, size_t t, int width, pst_buf *out) {
  const pst_evals_run *run = r->targets[t].run;
  pst_evals_interval s = score_of(r, t);
  latencies l;
  char share[64], range[64];
  int code = find_latencies(run, &l);
  if (code) return code;
  int64_t cost = pst_evals_cost_per_1000(r, t);
  snprintf(share, sizeof share, "%lld of %zu", (long long)run->n_accepted, run->n);
  snprintf(range, sizeof range, "%.1f to %.1f%%", 100 * s.low, 100 * s.high);
  pst_buf_printf(out, "%c  %-*s %14s %6.1f%%  %15s", (char)('A' + t), width, r->targets[t].name, share,
                 100 * s.estimate, range);
  put_ms(out, l.p50);
  put_ms(out, l.p95);
  put_ms(out, l.p99);
  put_ms(out, l.first_p50);
  if (cost < 0)
    pst_buf_printf(out, "%12s\n", "-");
  else
    pst_buf_printf(out, "%12.6f\n", (double)cost / (double)PST_STORE_NUSD_PER_USD);
  return 0;
}

static void put_comparison_text(const pst_evals_report *r, size_t i, pst_buf *out) {
  const pst_evals_comparison *c = &r->comparisons[i];
  char a = (char)('A' + i), b = (char)('A' + r->n_targets - 1);
  pst_buf_printf(
      out,
      "\n%c - %c: %+.1f points, %.0f%% interval %+.1f to %+.1f (Tango); right: both %lld, only %c %lld, only %c %lld, "
      "neither %lld; McNemar mid-p %.3g\n",
      a, b, 100 * c->difference.estimate, 100 * r->confidence, 100 * c->difference.low, 100 * c->difference.high,
      (long long)c->n11, a, (long long)c->n10, b, (long long)c->n01, (long long)c->n00, c->mid_p);
  pst_buf_printf(out, "%c not inferior to %c at a margin of %.1f points: %s\n", a, b, 100 * c->margin,
                 pst_evals_verdict_name(c->non_inferior));
  pst_buf_printf(out, "smallest difference that %lld items show with 80%% power: %.1f points\n", (long long)c->n,
                 100 * c->detectable);
}

static int write_text(const pst_evals_report *r, pst_buf *out) {
  const pst_evals_info *info = &r->workload->info;
  int width = 6, code = 0;
  for (size_t i = 0; i < r->n_targets; i++)
    width = PST_MAX(width, (int)PST_MIN(strlen(r->targets[i].name), (size_t)48));
  pst_buf_printf(out, "%s, part %s: %zu item%s, grader %s\n\n", info->name, pst_evals_part_name(r->part),
                 r->targets[0].run->n, r->targets[0].run->n == 1 ? "" : "s", pst_evals_grader_name(info->grader));
  pst_buf_printf(out, "   %-*s %14s %7s  %15s%9s%9s%9s%9s%12s\n", width, "target", "accepted", "share", "interval",
                 "p50 ms", "p95 ms", "p99 ms", "first", "$/1000 acc.");
  for (size_t i = 0; i < r->n_targets && !code; i++) code = put_target_row(r, i, width, out);
  for (size_t i = 0; i < r->n_targets; i++) {
    const pst_evals_run *run = r->targets[i].run;
    if (run->n_failed)
      pst_buf_printf(out, "%c: %lld calls failed and count as not accepted; the first: %s\n", (char)('A' + i),
                     (long long)run->n_failed, run->first_failure.code ? run->first_failure.message : "no reason kept");
    if (run->n_reused)
      pst_buf_printf(out, "%c: %lld answers were there from before and not asked again\n", (char)('A' + i),
                     (long long)run->n_reused);
  }
  for (size_t i = 0; i + 1 < r->n_targets; i++) put_comparison_text(r, i, out);
  if (r->n_targets == 1)
    pst_buf_printf(out, "\nreaches the quality floor of %.1f%%: %s\n", 100 * info->goal.quality_floor,
                   pst_evals_verdict_name(pst_evals_report_verdict(r)));
  bool held_back = r->part == PST_EVALS_VERIFY || r->part == PST_EVALS_SEALED;
  pst_buf_printf(out, "the part %s of these items has now been asked %lld time%s%s\n", pst_evals_part_name(r->part),
                 (long long)r->n_uses, r->n_uses == 1 ? "" : "s",
                 held_back ? ": each further choice by it makes it worth less" : "");
  return code ? code : pst_buf_status(out);
}

/* ---- HTML ---- */

static int write_html(const pst_evals_report *r, pst_buf *out) {
  pst_str page;
  pst_buf json = PST_BUF_INIT;
  if (!pst_asset_find("evals/report.html", &page)) return PST_E_INTERNAL;
  size_t at = pst_str_find(page, PST_STR("@DATA@"), 0);
  if (at == SIZE_MAX) return PST_E_INTERNAL;
  int code = write_json(r, false, &json);
  pst_buf_append(out, page.data, at);
  for (size_t i = 0; i < json.n; i++) { /* no text may end the script element */
    if (json.data[i] == '<')
      pst_buf_puts(out, "\\u003c");
    else
      pst_buf_putc(out, json.data[i]);
  }
  pst_buf_append(out, page.data + at + 6, page.n - at - 6);
  pst_buf_done(&json);
  return code ? code : pst_buf_status(out);
}

int pst_evals_report_write(const pst_evals_report *r, pst_evals_format format, pst_buf *out, pst_error *err) {
  int code = format == PST_EVALS_TEXT        ? write_text(r, out)
             : format == PST_EVALS_JSON_TEXT ? write_json(r, true, out)
                                             : write_html(r, out);
  return code ? pst_error_set(err, code, NULL, "cannot write the report: %s", pst_error_text(code)) : 0;
}
