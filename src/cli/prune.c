/* penstock prune: a model file without the layers that a workload misses least. */
#include <penstock/engine.h>
#include <penstock/tune_prune.h>

#include <stdio.h>

#include "cli/commands.h"
#include "cli/reshape.h"

typedef struct pruning {
  const pst_cli_args *a;
  pst_cli_reshape of;
  pst_tune_traffic search, held_out;
  pst_tune_prune_options options;
  pst_tune_prune_report report;
} pruning;

static pst_tune_prune_options options_of(const pst_cli_args *a) {
  pst_tune_prune_options o = pst_tune_prune_options_default();
  o.n_layers = (int)pst_cli_int(a, "layers");
  o.max_tokens = (size_t)pst_cli_int(a, "at-once");
  o.search_tokens = (size_t)pst_cli_int(a, "search-tokens");
  o.threads = (int)pst_cli_int(a, "threads");
  o.note = a->words[0];
  o.cancelled = pst_cli_interrupted;
  return o;
}

/* Layers are looked at over examples, the proof is on verify: no text is in both. */
static int render(pruning *p, pst_error *err) {
  int code = pst_tune_traffic_render(p->of.bench.gateway, p->of.plan, p->of.bench.workload, PST_EVALS_EXAMPLES,
                                     (size_t)pst_cli_int(p->a, "items"), &p->search, err);
  return code ? code
              : pst_tune_traffic_render(p->of.bench.gateway, p->of.plan, p->of.bench.workload, PST_EVALS_VERIFY,
                                        (size_t)pst_cli_int(p->a, "held-out-items"), &p->held_out, err);
}

static int print_json(const pruning *p, const char *out) {
  const pst_tune_prune_report *r = &p->report;
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "path", out);
  pst_json_member_int(&w, "layers", r->n_layers - p->options.n_layers);
  pst_json_member_int(&w, "source_layers", r->n_layers);
  pst_json_key(&w, "left_out");
  pst_json_begin_array(&w);
  for (int i = 0; i < p->options.n_layers; i++) pst_json_put_int(&w, r->dropped[i]);
  pst_json_end_array(&w);
  pst_json_member_int(&w, "bytes", r->bytes);
  pst_json_member_int(&w, "source_bytes", r->source_bytes);
  pst_json_member_double(&w, "divergence", r->held_out.all);
  pst_json_member_double(&w, "divergence_answers", r->held_out.answers);
  pst_json_member_double(&w, "top1", r->held_out.top1);
  pst_json_member_double(&w, "seconds", r->seconds);
  pst_json_end_object(&w);
  int code = pst_buf_status(&text);
  if (!code) puts(pst_buf_text(&text));
  pst_buf_done(&text);
  return code;
}

static void print_text(const pruning *p, const char *out) {
  const pst_tune_prune_report *r = &p->report;
  printf("%s: %d of %d layers, %.1f of %.1f MiB of weights; a token costs about %.2f of what it did\nleft out:", out,
         r->n_layers - p->options.n_layers, r->n_layers, (double)r->bytes / 1048576.0,
         (double)r->source_bytes / 1048576.0, (double)r->bytes / (double)r->source_bytes);
  for (int i = 0; i < p->options.n_layers; i++) printf(" %d", r->dropped[i]);
  printf("\nfrom the whole model, held out: %.3f nats a token (answers %.3f), the same token likeliest %.1f%%\n",
         r->held_out.all, r->held_out.answers, 100 * r->held_out.top1);
  printf("learn it again: penstock tune %s -m %s\n", p->a->words[0], out);
}

static int run_prune(const pst_cli_args *a, pst_error *err) {
  pruning p = {.a = a, .options = options_of(a)};
  const char *out = a->words[2];
  pst_cli_catch_interrupts();
  int code = pst_cli_reshape_open(a, &p.of, err);
  if (!code) code = render(&p, err);
  if (!code) {
    pst_progress progress;
    pst_progress_begin(&progress, "pruning", 0, false, pst_cli_flag(a, "quiet"));
    p.options.progress = &progress;
    code = pst_tune_prune(p.of.in, out, &p.search, &p.held_out, &p.options, &p.report, err);
    pst_progress_end(&progress);
  }
  if (!code && pst_cli_flag(a, "json"))
    code = print_json(&p, out);
  else if (!code)
    print_text(&p, out);
  pst_tune_traffic_done(&p.search);
  pst_tune_traffic_done(&p.held_out);
  pst_cli_reshape_close(&p.of);
  return code;
}

static const pst_cli_option options[] = {
    {"layers", 'l', PST_CLI_INT, "N", "6", 1, PST_TUNE_PRUNE_MOST, false, "layers to leave out"},
    PST_CLI_SERVED_PLAN,
    {"items", 0, PST_CLI_INT, "N", "64", 0, 1000000, false, "examples to look at layers with (0: all)"},
    {"search-tokens", 0, PST_CLI_INT, "N", "512", 2, 1000000, false, "tokens of those that each look reads"},
    {"held-out-items", 0, PST_CLI_INT, "N", "64", 0, 1000000, false, "items of the part verify to measure on (0: all)"},
    PST_CLI_AT_ONCE,
    PST_CLI_THREADS,
    PST_CLI_FORCE,
    PST_CLI_QUIET,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_prune = {
    "prune",
    "WORKLOAD MODEL OUT",
    "write a model file without the layers that a workload misses least",
    "MODEL is a pulled model's name or a GGUF file. One after the other the layer goes without which the model says most nearly the same of the workload's\n"
    "examples; what they did is then learned again by the others: penstock tune WORKLOAD -m OUT, or penstock turn with OUT among its models, whose gate\n"
    "asks what an accepted answer costs. The divergence before that is measured on the part verify. OUT appears only when it is whole.",
    3,
    3,
    options,
    PST_ARRAY_LEN(options),
    run_prune};
