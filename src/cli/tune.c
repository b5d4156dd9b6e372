/* penstock tune: a LoRA adapter trained on a workload's examples, or on what was said of its answers, kept by name with a plan that serves it. */
#include <penstock/flywheel.h>

#include <math.h>
#include <string.h>

#include "cli/open.h"
#include "cli/tune.h"

/* The line that moves, by the clock where time is the measure. */
typedef struct watch {
  pst_progress bar;
  int64_t start_us;
  bool timed;
} watch;

static void on_progress(void *user, const pst_tune_progress *p) {
  watch *w = user;
  char text[160];
  pst_progress_note(&w->bar, "%s", pst_cli_tuning_note(p, text, sizeof text));
  int64_t spent = (pst_clock_us() - w->start_us) / 1000000;
  w->bar.total = w->timed ? spent + (int64_t)p->seconds_left : p->n_steps; /* epochs may end before the time */
  pst_progress_update(&w->bar, w->timed ? spent : p->step);
}

static pst_tune_workload_options options_of(const pst_cli_args *a, pst_tune_objective objective) {
  pst_tune_workload_options o = {.model = pst_cli_text(a, "model"),
                                 .layout = pst_cli_text(a, "layout"),
                                 .prompt = pst_cli_text(a, "prompt"),
                                 .name = pst_cli_text(a, "name"),
                                 .held_out_share = pst_cli_number(a, "held-out"),
                                 .max_held_out = 128,
                                 .max_texts = (size_t)pst_cli_int(a, "max-examples"),
                                 .teacher = pst_cli_text(a, "distill"),
                                 .from = pst_cli_text(a, "from"),
                                 .codes = (size_t)pst_cli_int(a, "codes"),
                                 .training = pst_tune_options_for(objective)};
  pst_tune_options *t = &o.training;
  t->beta = pst_cli_number(a, "beta");
  t->smoothing = pst_cli_number(a, "smoothing");
  t->teacher_share = pst_cli_number(a, "distill-share");
  t->rank = (int)pst_cli_int(a, "rank");
  t->alpha = pst_cli_given(a, "alpha") ? pst_cli_number(a, "alpha") : 2.0 * t->rank;
  if (pst_cli_given(a, "rate")) t->learning_rate = pst_cli_number(a, "rate");
  t->batch_texts = (int)pst_cli_int(a, "batch");
  t->max_epochs = (int)pst_cli_int(a, "epochs");
  t->steps = pst_cli_int(a, "steps");
  t->seconds = t->steps ? 0 : 60 * pst_cli_number(a, "minutes");
  t->seed = (uint64_t)pst_cli_int(a, "seed");
  t->threads = (int)pst_cli_int(a, "threads");
  t->share_prefixes = t->share_prefixes || pst_cli_flag(a, "share-prefixes");
  t->on_progress = on_progress;
  t->cancelled = pst_cli_interrupted;
  return o;
}

static int print_json(const pst_flywheel_tune_result *result, pst_tune_objective objective) {
  const pst_tune_workload_result *r = &result->tuned;
  const pst_flywheel_taught *t = &result->taught;
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  const struct {
    const char *key;
    int64_t value;
  } counts[] = {{"steps", r->report.n_steps},          {"best_step", r->report.best_step},
                {"tokens", r->report.n_tokens},        {"scored_tokens", r->report.n_scored},
                {"examples", (int64_t)r->n_texts},     {"held_out", (int64_t)r->n_held_out},
                {"near_to_items", (int64_t)r->n_near}, {"without_input", result->n_without_input}};
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "objective", pst_tune_objective_name(objective));
  pst_json_member_cstr(&w, "adapter", r->adapter.name);
  pst_json_member_cstr(&w, "file", r->adapter.file);
  pst_json_member_cstr(&w, "plan_hash", r->plan_hash);
  pst_json_key(&w, "plan");
  pst_json_put_raw(&w, pst_str_from(r->plan_json));
  for (size_t i = 0; i < PST_ARRAY_LEN(counts); i++) {
    pst_json_member_int(&w, counts[i].key, counts[i].value);
  }
  pst_json_member_double(&w, "answer_tokens", r->answer_tokens);
  if (r->n_codes) {
    pst_json_member_int(&w, "codes", (int64_t)r->n_codes);
    pst_json_member_double(&w, "plain_answer_tokens", r->plain_answer_tokens);
  }
  pst_json_member_double(&w, "loss", r->report.loss);
  pst_json_member_double(&w, "held_out_loss_before", r->report.held_out_before);
  pst_json_member_double(&w, "held_out_loss", r->report.held_out_loss);
  if (t->n_asked) {
    pst_json_key(&w, "teacher");
    pst_json_begin_object(&w);
    pst_json_member_int(&w, "asked", t->n_asked);
    pst_json_member_int(&w, "known", t->n_kept);
    pst_json_member_int(&w, "usable", t->n_usable);
    pst_json_member_int(&w, "failed", t->n_failed);
    pst_json_member_int(&w, "nusd", t->nusd);
    pst_json_member_bool(&w, "broke", t->n_unasked > 0);
    pst_json_end_object(&w);
  }
  if (objective != PST_TUNE_SFT) {
    pst_json_member_double(&w, "reward_margin", r->report.margin);
    pst_json_member_double(&w, "reward_accuracy", r->report.accuracy);
  }
  pst_tune_report_put_evaluations(&r->report, &w);
  pst_json_member_double(&w, "seconds", r->report.seconds);
  pst_json_member_double(&w, "tokens_per_second", r->report.tokens_per_second);
  pst_json_end_object(&w);
  int code = pst_buf_status(&text);
  if (!code) puts(text.data);
  pst_buf_done(&text);
  return code;
}

static void print_taught(const pst_flywheel_taught *t) {
  if (!t->n_asked) return;
  if (t->n_unasked) puts("the teacher's money was spent before it had answered all (--budget-usd)");
  printf(
      "the teacher was asked %lld inputs (%lld of them before) for $%.4f: %lld answers could be learned, %lld calls failed\n",
      (long long)t->n_asked, (long long)t->n_kept, (double)t->nusd / 1e9, (long long)t->n_usable,
      (long long)t->n_failed);
}

static void print_result(const pst_flywheel_tune_result *result, const char *model, const char *folder) {
  const pst_tune_workload_result *r = &result->tuned;
  print_taught(&result->taught);
  if (result->n_without_input)
    printf("%lld records were left out: the workload takes no input from them\n", (long long)result->n_without_input);
  const pst_tune_report *p = &r->report;
  printf("%lld steps over %zu examples of %.0f + %.0f tokens in %.1f minutes, %.0f tokens/s%s\n", (long long)p->n_steps,
         r->n_texts, r->prompt_tokens, r->answer_tokens, p->seconds / 60, p->tokens_per_second,
         p->shortened ? "; held-out examples gained no more" : "");
  if (r->n_codes)
    printf("%zu output codes: answers of %.1f tokens, %.1f without them\n", r->n_codes, r->answer_tokens,
           r->plain_answer_tokens);
  if (r->n_held_out)
    printf("loss of %zu held-out examples: %.3f before, %.3f after %lld steps\n", r->n_held_out, p->held_out_before,
           p->held_out_loss, (long long)p->best_step);
  if (p->accuracy == p->accuracy)
    printf("rewards of %s: %.0f%% right, margin %.2f\n", r->n_held_out ? "held-out examples" : "the last step",
           100 * p->accuracy, p->margin);
  if (p->best.n_asked) {
    printf("of %d held-out examples %d are answered right by it", p->best.n_asked, p->best.n_right);
    if (p->evaluations[0].step == 0) printf(", %d where it began", p->evaluations[0].n_right);
    printf("; asking took %.0f s\n", p->score_seconds);
  }
  if (r->n_near)
    printf("%zu examples are near to items that judge models or were held out, and were left out\n", r->n_near);
  if (r->n_left_out)
    printf("%zu examples were too long, or have a token that is a code, and were left out\n", r->n_left_out);
  printf("adapter %s (%s:%s in calls), %.1f MB\n", r->adapter.name, model, r->adapter.name,
         (double)r->adapter.bytes / 1e6);
  printf("plan %s\nmeasure it: penstock eval %s --target %.12s\n", r->plan_hash, folder, r->plan_hash);
}

static int end(pst_cli_workbench *b, pst_models_file *file, int code, pst_error *err) {
  if (code == PST_E_NO_DATA) {
    char line[1024];
    fprintf(stderr, "penstock: %s\n", pst_error_format(err, line, sizeof line));
    code = PST_CLI_NO_DATA;
  }
  pst_models_file_done(file);
  pst_cli_workbench_close(b);
  return code;
}

/* What an adapter to start from has already, and what is said of another that is not asked. */
static int check_start(const pst_cli_args *a, pst_error *err) {
  static const char *const its_own[] = {"rank", "alpha", "codes"};
  for (size_t i = 0; i < PST_ARRAY_LEN(its_own) && pst_cli_given(a, "from"); i++)
    if (pst_cli_given(a, its_own[i]))
      return pst_error_set(err, PST_E_BAD_INPUT, its_own[i], "is that of the adapter to go on from; leave it out");
  if (pst_cli_given(a, "distill-share") && !pst_cli_given(a, "distill"))
    return pst_error_set(err, PST_E_BAD_INPUT, "distill-share", "is of a model to learn from; name it with --distill");
  if (pst_cli_given(a, "steps") && pst_cli_given(a, "epochs"))
    return pst_error_set(err, PST_E_BAD_INPUT, "epochs", "bounds what --minutes allow; with --steps leave it out");
  if (pst_cli_given(a, "budget-usd") && !pst_cli_given(a, "teacher"))
    return pst_error_set(err, PST_E_BAD_INPUT, "budget-usd", "is for a teacher's answers; name it with --teacher");
  return 0;
}

static int run_tune(const pst_cli_args *a, pst_error *err) {
  pst_cli_workbench b = {NULL, NULL, NULL, NULL};
  pst_flywheel_tune_result r;
  pst_tune_objective objective;
  pst_tune_precision precision;
  if (!pst_tune_precision_from(pst_str_from(pst_cli_text(a, "precision")), &precision))
    return pst_error_set(err, PST_E_BAD_INPUT, "precision", "\"%.40s\" is neither int8 nor float",
                         pst_cli_text(a, "precision"));
  if (!pst_tune_objective_from(pst_str_from(pst_cli_text(a, "objective")), &objective))
    return pst_error_set(err, PST_E_BAD_INPUT, "objective", "\"%.40s\" is none of sft, dpo and kto",
                         pst_cli_text(a, "objective"));
  bool encodes = false;
  pst_models_file file = {.path = NULL};
  pst_flywheel_tune_options o = {.tune = options_of(a, objective),
                                 .min_score = pst_cli_number(a, "min-score"),
                                 .teacher = pst_cli_text(a, "teacher")};
  o.tune.training.precision = precision;
  watch w = {.start_us = pst_clock_us(), .timed = o.tune.training.steps == 0};
  int code = check_start(a, err);
  if (!code) code = pst_cli_budget(a, &o.budget_nusd, err);
  if (!code) code = pst_cli_check_writable(pst_cli_text(a, "output"), err);
  if (!code) code = pst_cli_workbench_open(a, a->words[0], &b, err);
  if (code) return code;
  if (!pst_models_resolve(b.home, o.tune.model, &file, NULL)) encodes = pst_engine_model_encodes(file.path);
  pst_cli_catch_interrupts();
  bool quiet = pst_cli_flag(a, "quiet");
  if (w.timed)
    pst_progress_begin_timed(&w.bar, "tuning", (int64_t)o.tune.training.seconds, quiet);
  else
    pst_progress_begin(&w.bar, "tuning", o.tune.training.steps, false, quiet);
  o.tune.training.user = &w;
  if (encodes) {
    code = pst_cli_tune_encoder(a, &b, &file, precision, on_progress, &w, err);
    pst_progress_end(&w.bar);
    return end(&b, &file, code, err);
  }
  code = pst_flywheel_tune(b.gateway, b.store, b.workload, &o, &r, err);
  pst_progress_end(&w.bar);
  if (!code && pst_cli_text(a, "output"))
    code = pst_file_write_atomic(pst_cli_text(a, "output"), r.tuned.plan_json, strlen(r.tuned.plan_json), err);
  if (!code && pst_cli_flag(a, "json"))
    code = print_json(&r, objective);
  else if (!code)
    print_result(&r, o.tune.model, a->words[0]);
  if (!code) pst_tune_workload_result_done(&r.tuned);
  return end(&b, &file, code, err);
}

static const pst_cli_option options[] = {
    {"model", 'm', PST_CLI_TEXT, "NAME", "smollm2-135m", 0, 0, false, "the model to tune"},
    {"objective", 0, PST_CLI_TEXT, "NAME", "sft", 0, 0, false,
     "sft: learn the examples; dpo: corrections rather than what they correct; kto: answers by thumbs, scores and corrections"},
    {"beta", 0, PST_CLI_NUMBER, "X", "0.1", 1e-4, 100, false, "dpo, kto: how much the model is held to where it began"},
    {"smoothing", 0, PST_CLI_NUMBER, "X", "0", 0, 0.49, false, "dpo: share of pairs that may be the wrong way round"},
    {"min-score", 0, PST_CLI_NUMBER, "X", "0.5", -1e300, 1e300, false,
     "a feedback score below is bad: dpo, kto: not to be preferred; --teacher: one of those that it is asked"},
    {"teacher", 0, PST_CLI_TEXT, "TARGET", NULL, 0, 0, false,
     "sft: a model, PROVIDER/MODEL or plan that answers the records whose own answers will not do"},
    PST_CLI_BUDGET("none"),
    {"distill", 0, PST_CLI_TEXT, "MODEL", NULL, 0, 0, false,
     "sft: a larger model with the same tokens; what it thinks comes next is learned beside the answers"},
    {"distill-share", 0, PST_CLI_NUMBER, "X", "0.5", 0, 1, false, "how much of the loss is the divergence from it"},
    {"from", 0, PST_CLI_TEXT, "ADAPTER", NULL, 0, 0, false,
     "go on from an adapter of the model; give the layout and the prompt that it was trained with"},
    {"codes", 0, PST_CLI_INT, "N", "0", 0, PST_ENGINE_MAX_CODES, false,
     "most output codes: frequent pieces of answers that are learned and served as one token each (0: none; with --from, those of the adapter)"},
    {"minutes", 0, PST_CLI_NUMBER, "N", "20", 0.05, 10080, false, "time to train for"},
    {"steps", 0, PST_CLI_INT, "N", "0", 0, 1e9, false,
     "so many optimizer steps instead, whatever they take (0: by time)"},
    {"epochs", 0, PST_CLI_INT, "N", "8", 1, 1e6, false, "times that each example is seen at most (encoders: 4)"},
    {"rank", 'r', PST_CLI_INT, "N", "16", 1, 256, false, "rank of the adapter (encoders: 32)"},
    {"alpha", 0, PST_CLI_NUMBER, "N", NULL, 1e-3, 1e6, false,
     "the adapter's scale is alpha / rank (default: twice the rank)"},
    {"rate", 0, PST_CLI_NUMBER, "N", NULL, 1e-7, 1, false, "highest learning rate (default: 0.001; dpo, kto: 0.0001)"},
    {"batch", 0, PST_CLI_INT, "N", "16", 1, 65536, false, "examples in an optimizer step (encoders: 32)"},
    {"precision", 0, PST_CLI_TEXT, "NAME", "int8", 0, 0, false,
     "of products with the frozen weights: int8, as they are served, or float, which takes about twice as long"},
    {"prompt", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false,
     "train with this prompt of the workload (default: nothing but the message)"},
    {"layout", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false,
     "chat, chat_inline or plain (default: plain for answers of one line)"},
    {"held-out", 0, PST_CLI_NUMBER, "SHARE", "0.1", 0, 0.5, false, "of the examples, to watch and to stop by"},
    {"max-examples", 0, PST_CLI_INT, "N", "0", 0, 1e9, false, "most examples to learn from (0: all)"},
    {"share-prefixes", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "compute what prompts have in common once"},
    {"seed", 0, PST_CLI_INT, "N", "1", 0, 9007199254740991.0, false, "decides start and order"},
    {"name", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false, "of the adapter (default: made of the workload's name)"},
    {"output", 'o', PST_CLI_TEXT, "FILE", NULL, 0, 0, false, "write the plan there"},
    PST_CLI_THREADS,
    PST_CLI_HOME,
    PST_CLI_JSON,
    PST_CLI_QUIET,
};
const pst_cli_command pst_cli_tune = {
    "tune",
    "WORKLOAD",
    "train an adapter on a workload's examples or feedback",
    "WORKLOAD is a folder; only its items of the part \"examples\" are read. Each is rendered as it will be served; near-duplicates of items that\n"
    "judge models are left out. A sample of the held-out ones is answered now and then, in at most a twentieth of the time: the adapter kept is the one\n"
    "with clearly more right answers, else the last one whose held-out loss is not far above the lowest. With --objective dpo or kto the workload's records are read\n"
    "instead, for what was said of their answers, and the adapter learns to prefer: best with --from an adapter that knows the task.\n"
    "Interrupted, the same command goes on where it was. Exit: 3 there are too few examples.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_tune};
