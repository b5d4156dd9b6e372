/* penstock calibrate: a model file with its weights rounded for a workload's traffic. */
#include <penstock/engine.h>
#include <penstock/kernels.h>
#include <penstock/tune_calibrate.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/adapter_path.h"
#include "cli/commands.h"
#include "cli/reshape.h"

enum { MAX_GENERAL_BYTES = 1 << 28, MAX_COMPARED = 8 };

typedef struct calibrating {
  const pst_cli_args *a;
  pst_cli_reshape of;
  char *adapter; /* its file; NULL: none */
  pst_tune_traffic traffic, lessons, search, held_out, general;
  pst_tune_calibrate_options options;
  pst_tune_calibrate_report report;
  const char *const *compared; /* other files */
  int n_compared;
  pst_tune_divergence compared_held_out[MAX_COMPARED], compared_general[MAX_COMPARED];
} calibrating;

static void close_all(calibrating *c) {
  pst_tune_traffic_done(&c->traffic);
  pst_tune_traffic_done(&c->lessons);
  pst_tune_traffic_done(&c->search);
  pst_tune_traffic_done(&c->held_out);
  pst_tune_traffic_done(&c->general);
  pst_cli_reshape_close(&c->of);
  pst_free(c->adapter);
}

/* ---- texts ---- */

/* A text file as pieces as long as what goes through the model at once. */
static int cut_file(calibrating *c, const char *path, size_t limit_tokens, pst_tune_traffic *traffic, pst_error *err) {
  char *text = NULL;
  size_t n = 0;
  pst_engine *engine = NULL;
  int code = pst_file_read(path, MAX_GENERAL_BYTES, &text, &n, err);
  if (!code) code = pst_gateway_engine_acquire(c->of.bench.gateway, c->of.plan, c->of.plan->root.engine, &engine, err);
  if (!code)
    code = pst_tune_traffic_cut(pst_engine_get_model(engine), (pst_str){text, n}, c->options.max_tokens, limit_tokens,
                                traffic, err);
  pst_gateway_engine_release(c->of.bench.gateway, engine);
  pst_free(text);
  return code;
}

/* Calibration and lessons on examples, looks on search, the proof on verify: no text is in two of these parts. */
static int render(calibrating *c, pst_error *err) {
  const pst_cli_args *a = c->a;
  const pst_evals_workload *w = c->of.bench.workload;
  size_t limit = (size_t)pst_cli_int(a, "items"), n_lessons = (size_t)pst_cli_int(a, "learn-items");
  size_t n_search = (size_t)pst_cli_int(a, "search-items");
  const char *general = pst_cli_text(a, "general"), *on = pst_cli_text(a, "on");
  int code =
      on ? cut_file(c, on, (size_t)pst_cli_int(a, "on-tokens"), &c->traffic, err)
         : pst_tune_traffic_render(c->of.bench.gateway, c->of.plan, w, PST_EVALS_EXAMPLES, limit, &c->traffic, err);
  if (!code && n_lessons && !on)
    code = pst_tune_traffic_render(c->of.bench.gateway, c->of.plan, w, PST_EVALS_EXAMPLES, n_lessons, &c->lessons, err);
  if (!code && c->lessons.n_texts)
    code = pst_tune_traffic_render(c->of.bench.gateway, c->of.plan, w, PST_EVALS_SEARCH, n_search, &c->search, err);
  if (!code)
    code = pst_tune_traffic_render(c->of.bench.gateway, c->of.plan, w, PST_EVALS_VERIFY,
                                   (size_t)pst_cli_int(a, "held-out-items"), &c->held_out, err);
  if (!code && general) code = cut_file(c, general, (size_t)pst_cli_int(a, "general-tokens"), &c->general, err);
  return code;
}

/* What the model reads, as text with its control tokens: so that other programs can be given the same. */
static int write_traffic(calibrating *c, const char *path, pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  pst_engine *engine = NULL;
  int code = pst_gateway_engine_acquire(c->of.bench.gateway, c->of.plan, c->of.plan->root.engine, &engine, err);
  for (size_t i = 0; i < c->traffic.n_texts && !code; i++) {
    const pst_tune_traffic_text *t = &c->traffic.texts[i];
    code = pst_engine_detokenize(pst_engine_get_model(engine), c->traffic.tokens + t->first, t->n, true, &text);
    pst_buf_putc(&text, '\n');
  }
  if (!code && pst_buf_status(&text)) code = pst_error_set(err, PST_E_NOMEM, path, "no memory for the traffic's text");
  if (!code) code = pst_file_write_atomic(path, text.data, text.n, err);
  pst_gateway_engine_release(c->of.bench.gateway, engine);
  pst_buf_done(&text);
  return code;
}

/* Files to compare are opened before the work: a mistyped path is told at once. */
static int check_compared(const calibrating *c, pst_error *err) {
  int code = 0;
  for (int i = 0; i < c->n_compared && !code; i++) code = pst_tune_diverge_check(c->of.in, c->compared[i], err);
  return code;
}

/* Other files over the same texts. One that cannot be compared any more has no tokens; the others are, and the first error is returned. */
static int compare(calibrating *c, pst_error *err) {
  int first = 0;
  for (int i = 0; i < c->n_compared; i++) {
    const char *path = c->compared[i];
    pst_error *to = first ? NULL : err;
    int code =
        pst_tune_diverge(c->of.in, c->options.adapter, path, &c->held_out, &c->options, &c->compared_held_out[i], to);
    if (!code && c->general.n_texts)
      code =
          pst_tune_diverge(c->of.in, c->options.adapter, path, &c->general, &c->options, &c->compared_general[i], to);
    if (!first) first = code;
  }
  return first;
}

/* ---- what is said ---- */

static void put_divergence(pst_json_writer *w, const char *key, const pst_tune_divergence *d) {
  pst_json_key(w, key);
  if (!d->n_all) {
    pst_json_put_null(w);
    return;
  }
  pst_json_begin_object(w);
  pst_json_member_double(w, "all", d->all);
  pst_json_member_double(w, "answers", d->answers);
  pst_json_member_double(w, "top1", d->top1);
  pst_json_member_int(w, "n_all", (int64_t)d->n_all);
  pst_json_member_int(w, "n_answers", (int64_t)d->n_answers);
  pst_json_end_object(w);
}

static int print_json(const calibrating *c, const char *out) {
  const pst_tune_calibrate_report *r = &c->report;
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "path", out);
  pst_json_member_int(&w, "bytes", r->bytes);
  pst_json_member_int(&w, "source_bytes", r->source_bytes);
  pst_json_member_int(&w, "elements", r->elements);
  pst_json_member_double(&w, "bits", r->bits);
  pst_json_member_int(&w, "calibration_tokens", (int64_t)r->n_calibration_tokens);
  put_divergence(&w, "held_out", &r->held_out);
  put_divergence(&w, "held_out_uncalibrated", &r->plain);
  put_divergence(&w, "general", &r->general);
  put_divergence(&w, "general_uncalibrated", &r->plain_general);
  pst_json_key(&w, "compared");
  pst_json_begin_array(&w);
  for (int i = 0; i < c->n_compared; i++) {
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "path", c->compared[i]);
    put_divergence(&w, "held_out", &c->compared_held_out[i]);
    put_divergence(&w, "general", &c->compared_general[i]);
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
  pst_json_member_double(&w, "search_before_learning", r->search_before);
  pst_json_member_double(&w, "search_after_learning", r->search_after);
  pst_json_member_double(&w, "predicted", r->predicted);
  pst_json_key(&w, "matrices");
  pst_json_begin_object(&w);
  for (int t = 0; t < PST_TUNE_CALIBRATE_TYPES; t++) {
    if (!r->n_matrices[t]) continue;
    pst_json_key(&w, pst_kernels_type_info(pst_tune_calibrate_types[t])->name);
    pst_json_put_int(&w, r->n_matrices[t]);
  }
  pst_json_end_object(&w);
  pst_json_member_double(&w, "seconds", r->seconds);
  pst_json_end_object(&w);
  int code = pst_buf_status(&text);
  if (!code) puts(pst_buf_text(&text));
  pst_buf_done(&text);
  return code;
}

static void print_divergence(const char *what, const pst_tune_divergence *before, const pst_tune_divergence *after) {
  if (!after->n_all) return;
  printf("  %-10s %9.5f %9.5f  %7.2f%% %7.2f%%", what, before->all, after->all, 100 * before->top1, 100 * after->top1);
  if (after->n_answers && after->n_answers < after->n_all)
    printf("  answers %9.5f %9.5f", before->answers, after->answers);
  puts("");
}

static void print_text(const calibrating *c, const char *out) {
  const pst_tune_calibrate_report *r = &c->report;
  printf("%s: %.1f MiB of weights, %.3f bits each, from %.1f MiB\n", out, (double)r->bytes / 1048576.0, r->bits,
         (double)r->source_bytes / 1048576.0);
  printf("matrices:");
  for (int t = 0; t < PST_TUNE_CALIBRATE_TYPES; t++)
    if (r->n_matrices[t]) printf(" %d %s", r->n_matrices[t], pst_kernels_type_info(pst_tune_calibrate_types[t])->name);
  if (isfinite(r->search_before))
    printf("\nanswers of the part search, before and after scales learned: %.5f %.5f nats a token", r->search_before,
           r->search_after);
  printf(
      "\ndivergence from the float model, nats a token; same token likeliest (the same types uncalibrated, calibrated)\n");
  print_divergence("held out", &r->plain, &r->held_out);
  print_divergence("general", &r->plain_general, &r->general);
  for (int i = 0; i < c->n_compared; i++) {
    if (!c->compared_held_out[i].n_all) {
      printf("%s: could not be compared\n", c->compared[i]);
      continue;
    }
    printf("%s (held out, general): %.5f", c->compared[i], c->compared_held_out[i].all);
    if (c->compared_general[i].n_all) printf(" %.5f", c->compared_general[i].all);
    puts("");
  }
}

/* ---- the command ---- */

/* Options that would do nothing beside others, or without them. */
static int check_options(const pst_cli_args *a, pst_error *err) {
  static const char *const of_examples[] = {"items", "learn-items", "search-items", "rate"};
  static const char *const of_files[][2] = {{"general-tokens", "general"}, {"on-tokens", "on"}};
  for (size_t i = 0; i < PST_ARRAY_LEN(of_examples) && pst_cli_given(a, "on"); i++)
    if (pst_cli_given(a, of_examples[i]))
      return pst_error_set(
          err, PST_E_BAD_INPUT, of_examples[i],
          "is of examples to calibrate on or to learn from, and with --on there are none: leave one of them out");
  for (size_t i = 0; i < PST_ARRAY_LEN(of_files); i++)
    if (pst_cli_given(a, of_files[i][0]) && !pst_cli_given(a, of_files[i][1]))
      return pst_error_set(err, PST_E_BAD_INPUT, of_files[i][0], "is of a text: name its file with --%s",
                           of_files[i][1]);
  return 0;
}

static int read_options(calibrating *c, pst_error *err) {
  const pst_cli_args *a = c->a;
  c->options = pst_tune_calibrate_options_default();
  c->options.bits = pst_cli_number(a, "bits");
  c->options.damping = pst_cli_number(a, "damping");
  c->options.feedback = !pst_cli_flag(a, "no-feedback");
  c->options.max_tokens = (size_t)pst_cli_int(a, "at-once");
  c->options.rate = pst_cli_number(a, "rate");
  c->options.threads = (int)pst_cli_int(a, "threads");
  c->options.cancelled = pst_cli_interrupted;
  c->n_compared = pst_cli_many(a, "compare", &c->compared);
  if (c->n_compared > MAX_COMPARED)
    return pst_error_set(err, PST_E_BAD_INPUT, "compare", "at most %d files are compared", MAX_COMPARED);
  const char *adapter = pst_cli_text(a, "adapter");
  int code = check_options(a, err);
  if (!code && adapter) code = pst_cli_adapter_path(a, adapter, &c->adapter, err);
  c->options.adapter = c->adapter;
  return code;
}

/* The file is there: what came of the work is told, whatever becomes of the comparison. */
static int finish(calibrating *c, const char *out, pst_error *err) {
  int compared = compare(c, err), code = 0;
  if (pst_cli_flag(c->a, "json"))
    code = print_json(c, out);
  else
    print_text(c, out);
  return compared ? compared : code;
}

static int run_calibrate(const pst_cli_args *a, pst_error *err) {
  calibrating c = {.a = a};
  const char *out = a->words[2], *traffic_out = pst_cli_text(a, "traffic-out");
  pst_cli_catch_interrupts();
  int code = read_options(&c, err);
  if (!code) code = pst_cli_reshape_open(a, &c.of, err);
  if (!code) code = check_compared(&c, err);
  if (!code) code = render(&c, err);
  c.options.store = c.of.bench.store;
  if (!code && traffic_out) code = write_traffic(&c, traffic_out, err);
  if (!code) {
    const pst_tune_texts texts = {&c.traffic, c.lessons.n_texts ? &c.lessons : NULL, &c.search, &c.held_out,
                                  c.general.n_texts ? &c.general : NULL};
    pst_progress progress;
    pst_progress_begin(&progress, "calibrating", 0, false, pst_cli_flag(a, "quiet"));
    c.options.progress = &progress;
    code = pst_tune_calibrate(c.of.in, out, &texts, &c.options, &c.report, err);
    pst_progress_end(&progress);
    c.options.progress = NULL;
  }
  if (!code) code = finish(&c, out, err);
  close_all(&c);
  return code;
}

static const pst_cli_option options[] = {
    {"bits", 'b', PST_CLI_NUMBER, "B", "4.6", 1, 32, false, "bits a weight, all tensors of the file counted"},
    {"adapter", 0, PST_CLI_TEXT, "ADAPTER", NULL, 0, 0, false,
     "a LoRA adapter, by name or path, that is merged first, in float"},
    PST_CLI_SERVED_PLAN,
    {"items", 0, PST_CLI_INT, "N", "512", 0, 1000000, false, "examples to calibrate on (0: all)"},
    {"learn-items", 0, PST_CLI_INT, "N", "1024", 0, 1000000, false,
     "examples of whose answers the scales learn from the float model, end to end (0: none)"},
    {"rate", 0, PST_CLI_NUMBER, "R", "0.0001", 1e-6, 1, false,
     "by how much of itself a step of that changes a scale, at most"},
    {"search-items", 0, PST_CLI_INT, "N", "64", 1, 1000000, false,
     "items of the part search by which it is told whether scales learned anything"},
    {"held-out-items", 0, PST_CLI_INT, "N", "64", 0, 1000000, false, "items of the part verify to measure on (0: all)"},
    {"general", 0, PST_CLI_TEXT, "FILE", NULL, 0, 0, false,
     "a text on which the loss outside the workload is measured"},
    {"general-tokens", 0, PST_CLI_INT, "N", "8192", 2, 100000000, false, "tokens of it"},
    {"on", 0, PST_CLI_TEXT, "FILE", NULL, 0, 0, false,
     "calibrate on a text instead of the workload's examples, and learn from none"},
    {"on-tokens", 0, PST_CLI_INT, "N", "16384", 2, 100000000, false, "tokens of it"},
    {"traffic-out", 0, PST_CLI_TEXT, "FILE", NULL, 0, 0, false,
     "write what is calibrated on as text, control tokens included, for other programs"},
    {"compare", 0, PST_CLI_TEXT, "FILE", NULL, 0, 0, true, "another GGUF file of the model to measure beside"},
    {"damping", 0, PST_CLI_NUMBER, "D", "0.01", 1e-6, 1, false,
     "share of their mean added to the diagonals of the inputs' Gram matrices"},
    {"no-feedback", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "round each weight for itself"},
    PST_CLI_AT_ONCE,
    PST_CLI_THREADS,
    PST_CLI_FORCE,
    PST_CLI_QUIET,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_calibrate = {
    "calibrate",
    "WORKLOAD MODEL OUT",
    "write a model file with its weights rounded for a workload's traffic",
    "MODEL is a pulled model's name or a GGUF file. The workload's examples go through the model as they are served, with their right answers; each matrix\n"
    "is rounded so that the answers' probabilities change least, and gets the type that is worth its bytes; then the scales learn to answer more examples\n"
    "as the float model does. The file's divergence from that is measured on the part verify. OUT appears only when it is whole, and runs wherever GGUF files do.\n"
    "Interrupted after the rounding, the same command goes on from there, and within the learning.",
    3,
    3,
    options,
    PST_ARRAY_LEN(options),
    run_calibrate};
