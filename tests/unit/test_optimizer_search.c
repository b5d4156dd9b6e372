/* The planner on a made-up world whose truth is known: search, verification, log, replay, resume. Time there is what the
 * world says, so a whole search takes a moment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "optimizer/constants.h"
#include "optimizer/optimize.h"
#include "optimizer/verify.h"
#include "support/numbers.h"
#include "support/scale.h"

typedef struct fake {
  pst_optimizer_journal *journal;
  double ceiling;        /* of quality */
  double verify_penalty; /* how much worse held-back items are, for everything but the reference */
  int calls, cancel_after;
  bool forbidden;      /* a replay asks nothing */
  bool only_reference; /* is ever right */
  bool slow_reference; /* the first prompt is long */
  bool
      long_answers; /* which drafts from past answers give in a third of the steps, those from the text in two thirds */
  double classifier;     /* accuracy of the one that can be trained; 0: none can */
  double encoded;        /* the same of one that reads vectors too; 0: there is no encoder */
  double adapter;        /* share right of the adapter that is there; 0: none is */
  bool idle_adapter;     /* one is there that changes nothing: it answers as its base does, word for word */
  const char *reference; /* document of the plan in force, or NULL */
  const char *outlook;   /* what tuning would be made of, or NULL */
  int times; /* as slow as other worlds, with as much more of a budget: the processor's own time, which counts too, is little beside that; 0: once */
  bool few_plans;  /* no examples to show, so that a search takes a moment */
  int rambling_ms; /* what a model takes for an answer that neither examples nor an adapter show it, none of them right; 0: as long as others and as right */
  int prompted_ms; /* what any answer of a model without an adapter takes; 0: as long as others */
  const char *repeats; /* how often users repeat themselves, or NULL */
  bool hashed;         /* what the models' files are is known */
  double
      mended; /* how much more often plans are right that mend texts, which the clock of the day has a fifth slower; 0: alike in both */
  pst_optimizer_cache_wish cache;
  double provider;    /* share right of the provider's model that is there, at ITEM_NUSD an answer; 0: none is */
  int64_t money_nusd; /* what providers may be paid; 0: no limit */
  int64_t bound_nusd; /* what must be there before a provider is asked one item; 0: what it costs */
  int64_t paid_nusd;  /* so far */
  double open_s;      /* that opening an engine takes */
  int n_refused;
} fake;
#define ITEM_NUSD INT64_C(1000000)

/* ---- the world ---- */

static int called(fake *f, int64_t us, pst_error *err) {
  assert_false(f->forbidden);
  f->journal->clock_base_us -= us;
  if (f->cancel_after && ++f->calls > f->cancel_after) return pst_error_set(err, PST_E_CANCELLED, NULL, "killed");
  return 0;
}

static int describe(void *state, const char *model, const char *sha256, pst_buf *out, pst_error *err) {
  (void)sha256;
  pst_buf_printf(
      out,
      "{\"weights\":\"Q4_1\",\"has_template\":%s,\"n_ctx\":8192,\"label_tokens\":2.5,\"n_params\":1000,\"step_bytes\":500}",
      strcmp(model, "base") ? "true" : "false");
  return called(state, 1000, err);
}

static int profiles(void *state, const pst_optimizer_space *s, pst_buf *out, pst_error *err) {
  const fake *f = state;
  const pst_optimizer_axis *x = s->axes;
  bool first = true;
  pst_buf_putc(out, '[');
  for (int m = 0; m < x[PST_OPTIMIZER_MODEL].n; m++)
    for (int p = 0; p < x[PST_OPTIMIZER_PROMPT].n; p++)
      for (int l = 0; l < x[PST_OPTIMIZER_LAYOUT].n; l++)
        for (int e = 0; e < x[PST_OPTIMIZER_EXAMPLES].n; e++) {
          int n = 60 + (f->slow_reference ? 20 * (2 - p) : 20 * p) + 30 * x[PST_OPTIMIZER_EXAMPLES].number[e];
          pst_buf_printf(out, "%s{\"key\":[%d,%d,%d,%d],\"lengths\":[%d,%d],\"shared\":%d}", first ? "" : ",", m, p, l,
                         e, n, n + 10, 40);
          first = false;
        }
  pst_buf_putc(out, ']');
  return called(state, 100000, err);
}

static int calibrate(void *state, const pst_optimizer_space *s, const pst_optimizer_choice *c, int budget_ms,
                     pst_buf *out, pst_error *err) {
  (void)s;
  const fake *f = state;
  double slower = c->v[PST_OPTIMIZER_MODEL] ? 2 : 1;
  if (c->v[PST_OPTIMIZER_THREADS]) slower *= 1.8;
  pst_buf_printf(out,
                 "{\"fixed_us\":%g,\"token_us\":%g,\"context_us\":100,\"head_us\":400,\"relative_error\":0.05,"
                 "\"open_s\":%g}",
                 5000 * slower, 1000 * slower, f->open_s);
  return called(state, budget_ms * 1000, err);
}

/* The truth of this world: retrieved examples help, up to 8; labels help; the second model is a little better. */
static double model_truth(const fake *f, const pst_gateway_plan *p) {
  const pst_gateway_node *n = p->root.op == PST_GATEWAY_OP_CASCADE ? &p->root.inputs[1] : &p->root;
  if (f->rambling_ms && !n->adapter && !n->n_examples) return 0;
  if (n->adapter && !f->idle_adapter) return f->adapter;
  double q = 0.1 + (n->n_examples ? n->examples_fixed ? 0.1 : 0.35 + 0.05 * log2(n->n_examples) : 0);
  if (n->constraint != PST_GATEWAY_FREE) q += 0.15;
  if (!strcmp(p->engines[0].model, "large")) q += 0.05;
  if (n->layout == PST_GATEWAY_LAYOUT_CHAT) q -= 0.05;
  if (f->only_reference)
    return !n->n_examples && n->constraint == PST_GATEWAY_FREE && n->layout == PST_GATEWAY_LAYOUT_CHAT &&
                   !strcmp(n->prompt_name, "a") && !strcmp(p->engines[0].model, "small") &&
                   (!p->engines[0].weights || !strcmp(p->engines[0].weights, "shipped")) &&
                   p->engines[0].options.kv == PST_ENGINE_KV_F16
               ? 0.6
               : 0.01;
  return q > f->ceiling ? f->ceiling : q;
}

/* The classifier is sure of two thirds of its answers and nearly always right then. */
static const pst_classifier_point curve[] = {
    {5, 0.3, 0.99}, {3, 0.5, 0.98}, {2, 0.75, 0.97}, {0.5, 0.9, 0.85}, {0, 1, 0.8}};

static double truth(const fake *f, const pst_gateway_plan *p) {
  if (p->root.op == PST_GATEWAY_OP_CLASSIFIER) return p->root.engine >= 0 ? f->encoded : f->classifier;
  if (pst_gateway_plan_has(p, PST_GATEWAY_OP_REMOTE)) return f->provider;
  double model = model_truth(f, p);
  for (size_t i = 0; i < PST_ARRAY_LEN(curve) && p->root.op == PST_GATEWAY_OP_CASCADE; i++)
    if (curve[i].threshold == p->root.threshold)
      return curve[i].answered * curve[i].accuracy + (1 - curve[i].answered) * model;
  assert_true(p->root.op == PST_GATEWAY_OP_LOCAL);
  return model;
}

static int train_classifier(void *state, const pst_optimizer_model *encoder, pst_buf *out, pst_error *err) {
  const fake *f = state;
  pst_buf_printf(out, "{\"artefact\":\"%s\",\"records\":%d,\"seconds\":1.5,\"accuracy\":%g,\"item_us\":%d,",
                 encoder ? ENCODED_ARTEFACT : ARTEFACT, N_EXAMPLES, encoder ? f->encoded : f->classifier,
                 encoder ? 3000 : 50);
  if (encoder) pst_buf_printf(out, "\"encoder\":\"%s\",", encoder->name);
  pst_buf_puts(out, "\"curve\":[");
  for (size_t i = 0; i < PST_ARRAY_LEN(curve); i++)
    pst_buf_printf(out, "%s[%g,%g,%g]", i ? "," : "", curve[i].threshold, curve[i].answered, curve[i].accuracy);
  pst_buf_puts(out, "]}");
  return called(state, 1500000, err);
}

/* The same for two plans that differ by an adapter alone. */
static uint64_t who_answers(const pst_gateway_plan *p) {
  const pst_gateway_node *n = &p->root;
  char text[300];
  snprintf(text, sizeof text, "%s %s %d %s %d %d %d %d", p->engines[0].model,
           p->engines[0].weights ? p->engines[0].weights : "", (int)p->engines[0].options.kv, n->prompt_name,
           (int)n->layout, n->n_examples, n->examples_fixed, (int)n->constraint);
  return pst_hash64(text, strlen(text), 0);
}

static size_t item_us(const fake *f, const pst_gateway_node *n) {
  int ms = n->op != PST_GATEWAY_OP_LOCAL || n->adapter ? 0 : n->n_examples ? f->prompted_ms : f->rambling_ms;
  return (ms ? (size_t)ms * 1000 : 60000) * (size_t)PST_MAX(f->times, 1);
}

/* Asks as far as money goes, as the ledger has it; how many. */
static size_t pay(fake *f, size_t n) {
  int64_t bound = f->bound_nusd ? f->bound_nusd : ITEM_NUSD;
  for (size_t i = 0; i < n; i++) {
    if (f->money_nusd && f->paid_nusd + bound > f->money_nusd) return i;
    f->paid_nusd += ITEM_NUSD;
  }
  return n;
}

static int measure(void *state, pst_str plan_json, bool verify, const size_t *asked, size_t n, pst_buf *out,
                   pst_error *err) {
  fake *f = state;
  pst_gateway_plan *plan = NULL;
  int code = pst_gateway_plan_parse(plan_json, "test", &plan, err);
  if (code) return code;
  bool paid = pst_gateway_plan_has(plan, PST_GATEWAY_OP_REMOTE);
  size_t wanted = n;
  if (paid) n = pay(f, n);
  f->n_refused += n < wanted;
  double q = truth(f, plan) -
             (verify && (plan->root.n_examples || plan->root.op != PST_GATEWAY_OP_LOCAL) ? f->verify_penalty : 0);
  if (f->idle_adapter && plan->root.adapter && !verify) q += 0.3; /* by luck, on the items of the search */
  size_t wall_us = item_us(f, &plan->root) * n;
  if (plan->n_copied && f->mended > 0) {
    q += f->mended;
    wall_us += wall_us / 5;
  }
  uint64_t who = f->idle_adapter || f->mended > 0 ? who_answers(plan) : pst_hash64(plan->hash, 64, 0);
  pst_buf_puts(out, "{\"right\":\"");
  for (size_t i = 0; i < n; i++) pst_buf_putc(out, pst_random_unit(who, 1, asked[i]) < q ? '1' : '0');
  pst_buf_printf(out,
                 "\",\"prompt\":[%zu],\"cached\":[0],\"completion\":[%zu],\"total_ms\":[%zu],\"steps\":0,\"drafted\":0,"
                 "\"accepted\":0,\"failed\":0,\"wall_us\":%zu,\"cost_nusd\":%lld,\"run\":0",
                 100 * n, (f->long_answers ? 60 : 3) * n, 100 * n, wall_us,
                 paid ? (long long)(ITEM_NUSD * (int64_t)n) : 0);
  if (f->long_answers)
    pst_buf_printf(out,
                   ",\"lookup\":{\"tokens\":%zu,\"steps\":%zu,\"drafted\":%zu},\"answers\":{\"tokens\":%zu,"
                   "\"steps\":%zu,\"drafted\":%zu}",
                   60 * n, 40 * n, 40 * n, 60 * n, 20 * n, 50 * n);
  if (paid && f->money_nusd)
    pst_buf_printf(out, ",\"refused\":%s,\"left_nusd\":%lld", n < wanted ? "true" : "false",
                   (long long)(f->money_nusd - f->paid_nusd));
  pst_buf_putc(out, '}');
  pst_gateway_plan_unref(plan);
  const size_t from = verify ? N_EXAMPLES + N_SEARCH : N_EXAMPLES, to = verify ? N_ITEMS : N_EXAMPLES + N_SEARCH;
  for (size_t i = 0; i < n; i++) assert_true(asked[i] >= from && asked[i] < to);
  return called(f, (int64_t)wall_us, err);
}

static int lengths(void *state, const pst_optimizer_space *s, const pst_optimizer_choice *c, const size_t *asked,
                   size_t n, pst_buf *out, pst_error *err) {
  (void)asked;
  pst_buf_puts(out, "{\"lengths\":[");
  for (size_t i = 0; i < n; i++)
    pst_buf_printf(out, "%s%d", i ? "," : "",
                   60 + 30 * s->axes[PST_OPTIMIZER_EXAMPLES].number[c->v[PST_OPTIMIZER_EXAMPLES]]);
  pst_buf_puts(out, "],\"shared\":40}");
  return called(state, 1000, err);
}

static int count_use(void *state, pst_buf *out, pst_error *err) {
  pst_buf_puts(out, "{\"uses\":1}");
  return called(state, 0, err);
}

static int outlook(void *state, const char *model, pst_buf *out, pst_error *err) {
  const fake *f = state;
  assert_string_equal(model, "small"); /* all have as many parameters here: the first */
  pst_buf_puts(out, f->outlook);
  return called(state, 2000000, err);
}

static int repeats(void *state, pst_buf *out, pst_error *err) {
  const fake *f = state;
  pst_buf_puts(out, f->repeats);
  return called(state, 0, err);
}

static pst_optimizer_world world_of(fake *f) {
  return (pst_optimizer_world){f,
                               describe,
                               profiles,
                               calibrate,
                               measure,
                               lengths,
                               count_use,
                               NULL,
                               NULL,
                               f->classifier > 0 ? train_classifier : NULL,
                               f->outlook ? outlook : NULL,
                               f->repeats ? repeats : NULL};
}

/* ---- a run ---- */

typedef struct outcome {
  int code;
  pst_optimizer_verdict verdict;
  char *plan, *evidence, hash[65];
} outcome;

static void outcome_done(outcome *o) {
  pst_free(o->plan);
  pst_free(o->evidence);
}

static const pst_optimizer_target hashed[] = {{.name = "small", .sha256 = INDEX_HASH},
                                              {.name = "large", .sha256 = ENCODER_HASH}};
static const pst_optimizer_target targets[] = {{.name = "small"}, {.name = "large"}, {.name = "base"}};
static const pst_optimizer_target adapted[] = {{.name = "small"}, {.name = "large"}, TUNED};
static const pst_optimizer_target idle[] = {
    {.name = "small"}, {.name = "small:idle", .base = "small", .adapter = ADAPTER, .adapter_params = 50}};

static const pst_optimizer_target priced[] = {
    {.name = "small"},
    {.name = "far/big", .provider = "far", .has_template = true, .price = {10000000000, -1, 10000000000}}};

static const pst_optimizer_model encoder = {"vectors", ENCODER_HASH, NULL};

static outcome search(fake *f, pst_optimizer_journal *j, uint64_t seed, const pst_evals_info *w) {
  outcome o = {0};
  pst_optimizer_world world = world_of(f);
  pst_optimizer_input in = {.workload = w,
                            .encoders = &encoder,
                            .n_encoders = f->encoded > 0,
                            .targets = f->provider > 0   ? priced
                                       : f->idle_adapter ? idle
                                       : f->adapter > 0  ? adapted
                                       : f->hashed       ? hashed
                                                         : targets,
                            .n_targets = f->provider > 0   ? PST_ARRAY_LEN(priced)
                                         : f->idle_adapter ? PST_ARRAY_LEN(idle)
                                         : f->adapter > 0  ? PST_ARRAY_LEN(adapted)
                                         : f->hashed       ? PST_ARRAY_LEN(hashed)
                                                           : PST_ARRAY_LEN(targets),
                            .reference_plan = f->reference,
                            .examples_index = f->few_plans ? NULL : INDEX_HASH,
                            .answers = f->long_answers ? ANSWERS_HASH : NULL,
                            .seed = seed,
                            .budget_s = 180 * PST_MAX(f->times, 1),
                            .budget_nusd = f->money_nusd,
                            .threads = 2,
                            .price_nusd_per_hour = 100000000,
                            .created_ms = 1,
                            .cache = f->cache};
  pst_error err = PST_ERROR_INIT;
  f->journal = j;
  o.code = pst_optimizer_plan_search(&in, &world, j, &o.verdict, &o.plan, &o.evidence, o.hash, &err);
  if (o.code && o.code != PST_E_CANCELLED) print_message("%s: %s\n", err.place, err.message);
  return o;
}

/* The same from the start, in a journal that is opened for it. */
static outcome search_anew(fake *f, pst_optimizer_journal *ret_journal, const pst_evals_info *w) {
  assert_int_equal(pst_optimizer_journal_open(ret_journal, NULL, 7, false, NULL), 0);
  return search(f, ret_journal, 3, w);
}

static void end(outcome *o, pst_optimizer_journal *j) {
  pst_optimizer_journal_close(j);
  outcome_done(o);
}

static int64_t count(const pst_json_doc *doc, const char *path) {
  return pst_json_int(pst_json_path(pst_json_root(doc), path), -1);
}

static pst_json_doc *evidence_of(const outcome *o) {
  pst_json_doc *doc = NULL;
  assert_int_equal(o->code, 0);
  assert_int_equal(pst_json_parse(o->evidence, strlen(o->evidence), "evidence", &doc, NULL), 0);
  return doc;
}

static void copy_rows(const pst_optimizer_journal *from, pst_optimizer_journal *to) {
  for (size_t i = 0; i < from->n_rows; i++) {
    pst_buf row = PST_BUF_INIT;
    pst_json_writer w = pst_json_writer_on(&row, false);
    pst_json_put_value(&w, pst_json_root(from->rows[i].doc));
    assert_int_equal(pst_array_reserve((void **)&to->rows, &to->capacity, to->n_rows + 1, sizeof *to->rows), 0);
    assert_int_equal(pst_json_parse(row.data, row.n, NULL, &to->rows[to->n_rows].doc, NULL), 0);
    to->rows[to->n_rows++].key = pst_strdup(from->rows[i].key);
    pst_buf_done(&row);
  }
}

/* ---- tests ---- */

static void test_finds_and_replays(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j, again;
  fake f = {.ceiling = 0.9};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, 0);
  assert_int_equal(a.verdict, PST_OPTIMIZER_FOUND);
  assert_null(strstr(a.evidence, "\"prompted\":"));
  assert_non_null(strstr(a.evidence, "\"prompted_not_asked\":\"the plan taken is a prompted one itself\""));
  pst_gateway_plan *plan = NULL;
  assert_int_equal(pst_gateway_plan_parse(pst_str_from(a.plan), "plan", &plan, NULL), 0);
  assert_string_equal(plan->hash, a.hash);
  assert_true(truth(&f, plan) >= 0.6);
  assert_true(plan->root.n_examples >= 1 && !plan->root.examples_fixed);
  pst_gateway_plan_unref(plan);
  /* The same seed and log: the same search, plan and evidence, with nobody asked. */
  assert_int_equal(pst_optimizer_journal_open(&again, NULL, 7, false, NULL), 0);
  copy_rows(&j, &again);
  again.replay = true;
  fake nobody = {.forbidden = true};
  outcome b = search(&nobody, &again, 3, &w);
  assert_int_equal(b.code, 0);
  assert_string_equal(a.plan, b.plan);
  assert_string_equal(a.evidence, b.evidence);
  assert_true(again.n_found >= again.n_rows);
  pst_optimizer_journal_close(&j);
  pst_optimizer_journal_close(&again);
  outcome_done(&a);
  outcome_done(&b);
}

/* What recorded answers say of drafts decides between their sources. */
static void test_drafts_from_past_answers_are_chosen(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.9, .long_answers = true};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, 0);
  pst_gateway_plan *plan = NULL;
  assert_int_equal(pst_gateway_plan_parse(pst_str_from(a.plan), "plan", &plan, NULL), 0);
  assert_int_equal(plan->root.speculation, PST_ENGINE_SPEC_ANSWERS);
  assert_string_equal(plan->root.answers, ANSWERS_HASH);
  pst_gateway_plan_unref(plan);
  end(&a, &j);
}

/* encoded: right answers of the classifier that reads vectors too; 0: there is no encoder. loss: goal.max_quality_loss. reference: the plan in force, or NULL. */
static outcome search_within(double accuracy, double encoded, double floor, double loss, const char *reference,
                             pst_optimizer_journal *j, pst_gateway_plan **ret) {
  pst_evals_info w = test_numbers();
  w.goal.quality_floor = floor;
  w.goal.max_quality_loss = loss;
  fake f = {.ceiling = 0.9, .classifier = accuracy, .encoded = encoded, .reference = reference, .prompted_ms = 500};
  assert_int_equal(pst_optimizer_journal_open(j, NULL, 7, false, NULL), 0);
  outcome a = search(&f, j, 3, &w);
  assert_int_equal(a.code, 0);
  assert_int_equal(a.verdict, PST_OPTIMIZER_FOUND);
  assert_int_equal(pst_gateway_plan_parse(pst_str_from(a.plan), "plan", ret, NULL), 0);
  /* The same log, nobody asked: the same plan and evidence. */
  pst_optimizer_journal again;
  assert_int_equal(pst_optimizer_journal_open(&again, NULL, 7, false, NULL), 0);
  copy_rows(j, &again);
  again.replay = true;
  fake nobody = {.forbidden = true, .classifier = accuracy, .encoded = encoded, .reference = reference};
  outcome b = search(&nobody, &again, 3, &w);
  assert_int_equal(b.code, 0);
  assert_string_equal(a.evidence, b.evidence);
  pst_optimizer_journal_close(&again);
  outcome_done(&b);
  return a;
}

static outcome search_with_classifiers(double accuracy, double encoded, double floor, pst_optimizer_journal *j,
                                       pst_gateway_plan **ret) {
  return search_within(accuracy, encoded, floor, 0, NULL, j, ret);
}

/* What was learned is compared with what prompts alone reach, on held-back items; the difference is the paired one of their right answers. */
static void check_prompted(const char *evidence) {
  pst_json_doc *doc = NULL;
  assert_int_equal(pst_json_parse(evidence, strlen(evidence), "evidence", &doc, NULL), 0);
  const pst_json *v = pst_json_get(pst_json_root(doc), "verification"), *p = pst_json_get(v, "prompted");
  assert_non_null(p);
  assert_true(pst_str_equal(pst_json_str(pst_json_get(pst_json_get(p, "choice"), "classifier")), pst_str_from("none")));
  /* The search asked for it, far ahead though the classifier was: not just the reference, which was asked anyway. */
  assert_true(pst_str_starts(pst_json_str(pst_json_path(p, "choice.examples")), PST_STR("nearest")));
  assert_true(pst_json_int(pst_json_path(p, "search.n"), 0) >= 16);
  const pst_json *c = pst_json_get(p, "comparison");
  int64_t n = pst_json_int(pst_json_get(c, "n"), 0), only = pst_json_int(pst_json_get(c, "only_plan"), -1);
  int64_t other = pst_json_int(pst_json_get(c, "only_reference"), -1);
  assert_true(n >= 100 && n <= pst_json_int(pst_json_get(v, "n"), 0));
  double difference = pst_json_double(pst_json_at(pst_json_get(c, "difference"), 0), -2);
  assert_true(fabs(difference - (double)(only - other) / (double)n) < 1e-4);
  assert_int_equal(pst_json_int(pst_json_get(pst_json_get(p, "verify"), "n"), 0), n);
  pst_json_free(doc);
}

/* The evidence says what may be lost, whom it is counted from, and how the plan taken stands: the paired difference to that plan on the same held-back items. */
static void check_loss(const char *evidence, double loss) {
  pst_json_doc *doc = NULL;
  assert_int_equal(pst_json_parse(evidence, strlen(evidence), "evidence", &doc, NULL), 0);
  const pst_json *root = pst_json_root(doc), *v = pst_json_get(root, "verification");
  assert_int_equal(pst_json_get(v, "best") != NULL, loss > 0);
  for (pst_json_iter it = pst_json_iterate(pst_json_get(v, "finalists")); pst_json_next(&it);) {
    if (!pst_json_bool(pst_json_get(it.value, "asked"), false)) continue;
    const pst_json *c = pst_json_get(it.value, "against_best");
    assert_int_equal(c != NULL, loss > 0);
    if (!c) continue;
    double n = pst_json_double(pst_json_get(c, "n"), 0), only = pst_json_double(pst_json_get(c, "only_plan"), -1);
    double difference = (only - pst_json_double(pst_json_get(c, "only_reference"), -1)) / n;
    assert_true(n >= 100 &&
                fabs(pst_json_double(pst_json_at(pst_json_get(c, "difference"), 0), -2) - difference) < 1e-4);
    assert_int_equal(pst_json_bool(pst_json_get(it.value, "loss_holds"), false), difference >= -loss);
    if (difference < -loss) assert_false(pst_json_bool(pst_json_get(it.value, "passed"), true));
  }
  pst_buf text = PST_BUF_INIT;
  assert_int_equal(pst_optimizer_summary(evidence, &text, NULL), 0);
  assert_int_equal(strstr(pst_buf_text(&text), "below the best plan found holds") != NULL, loss > 0);
  assert_int_equal(strstr(pst_buf_text(&text), "by the best plan found") != NULL,
                   loss > 0 && pst_str_is(pst_json_str(pst_json_path(root, "floor.from")), "best"));
  pst_buf_done(&text);
  pst_json_free(doc);
}

static void test_a_good_classifier_is_all_that_is_needed(void **state) {
  (void)state;
  pst_optimizer_journal j;
  pst_gateway_plan *plan = NULL;
  outcome a = search_with_classifiers(0.93, 0, 0.6, &j, &plan);
  assert_int_equal(plan->root.op, PST_GATEWAY_OP_CLASSIFIER);
  assert_string_equal(plan->root.classifier, ARTEFACT);
  assert_int_equal(plan->n_engines, 0);
  pst_buf text = PST_BUF_INIT;
  assert_int_equal(pst_optimizer_summary(a.evidence, &text, NULL), 0);
  assert_non_null(strstr(pst_buf_text(&text), "no model call needed here"));
  assert_non_null(strstr(pst_buf_text(&text), "1. classifier alone (nothing is generated)"));
  assert_non_null(strstr(pst_buf_text(&text), "The best plan of prompted models, on the same items: "));
  check_prompted(a.evidence);
  pst_buf_clear(&text);
  assert_int_equal(pst_optimizer_explain(a.evidence, NULL, &text, NULL), 0);
  assert_non_null(strstr(pst_buf_text(&text), "no model call is needed here"));
  assert_non_null(strstr(pst_buf_text(&text), "trained on 60 examples"));
  assert_null(strstr(pst_buf_text(&text), "nan"));
  pst_buf_done(&text);
  pst_gateway_plan_unref(plan);
  end(&a, &j);
}

/* Vectors cost sixty times as much: they are read where n-grams alone do not reach the floor, and not where they do. */
static void test_an_encoder_is_asked_where_it_is_needed(void **state) {
  (void)state;
  for (int needed = 0; needed < 2; needed++) {
    pst_optimizer_journal j;
    pst_gateway_plan *plan = NULL;
    outcome a = search_with_classifiers(needed ? 0.70 : 0.93, 0.94, 0.85, &j, &plan);
    assert_int_equal(plan->root.op, PST_GATEWAY_OP_CLASSIFIER);
    assert_string_equal(plan->root.classifier, needed ? ENCODED_ARTEFACT : ARTEFACT);
    assert_int_equal(plan->n_engines, needed);
    if (needed) assert_string_equal(plan->engines[plan->root.engine].sha256, ENCODER_HASH);
    pst_buf text = PST_BUF_INIT;
    assert_int_equal(pst_optimizer_explain(a.evidence, NULL, &text, NULL), 0);
    assert_non_null(strstr(pst_buf_text(&text), needed ? "and the message's vector by vectors: nothing is generated"
                                                       : "no model call is needed here"));
    assert_non_null(strstr(pst_buf_text(&text), needed ? "94.0% right on held-out" : "93.0% right on held-out"));
    pst_buf_done(&text);
    pst_gateway_plan_unref(plan);
    end(&a, &j);
  }
}

/* Of two plans above the floor the cheap one is taken as far as it may lie below the other, and in force it keeps its place as far as that: no further. */
static void test_what_may_be_lost_against_the_best(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  static const struct {
    double accuracy, encoded, loss;
    bool best_taken;
  } cases[] = {{0.80, 0.95, 0, false}, {0.80, 0.95, 0.02, true}, {0.90, 0.91, 0.04, false}};
  char *cheap = NULL;
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++)
    for (int in_force = 0; in_force < 2; in_force++) {
      pst_optimizer_journal j;
      pst_gateway_plan *plan = NULL;
      outcome a =
          search_within(cases[i].accuracy, cases[i].encoded, 0.5, cases[i].loss, in_force ? cheap : NULL, &j, &plan);
      assert_int_equal(plan->root.op, PST_GATEWAY_OP_CLASSIFIER);
      assert_string_equal(plan->root.classifier, cases[i].best_taken ? ENCODED_ARTEFACT : ARTEFACT);
      if (!cheap) cheap = pst_strdup(a.plan);
      check_loss(a.evidence, cases[i].loss);
      pst_gateway_plan_unref(plan);
      end(&a, &j);
    }
  pst_free(cheap);
}

/* Neither the classifier (0.80) nor any model (0.75) reaches the floor; together they do, where the classifier answers what it is sure of. */
static void test_a_sure_classifier_comes_before_a_model(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  pst_optimizer_journal j;
  pst_gateway_plan *plan = NULL;
  outcome a = search_with_classifiers(0.80, 0, 0.87, &j, &plan);
  assert_int_equal(plan->root.op, PST_GATEWAY_OP_CASCADE);
  assert_int_equal(plan->root.n_inputs, 2);
  assert_int_equal(plan->root.inputs[0].op, PST_GATEWAY_OP_CLASSIFIER);
  assert_int_equal(plan->root.inputs[1].op, PST_GATEWAY_OP_LOCAL);
  assert_true(plan->root.threshold == 2); /* at 0.5 too much is wrong; at 3 more is asked of the model than must be */
  pst_buf text = PST_BUF_INIT;
  assert_int_equal(pst_optimizer_explain(a.evidence, NULL, &text, NULL), 0);
  assert_non_null(strstr(pst_buf_text(&text), "classifier first, where its margin is at least 2"));
  assert_non_null(strstr(pst_buf_text(&text), "none -> first75%"));
  pst_buf_clear(&text);
  assert_int_equal(pst_optimizer_summary(a.evidence, &text, NULL), 0);
  assert_null(strstr(pst_buf_text(&text), "no model call"));
  pst_buf_done(&text);
  pst_gateway_plan_unref(plan);
  end(&a, &j);
}

static void test_a_bad_classifier_is_left_out(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  pst_optimizer_journal j;
  pst_gateway_plan *plan = NULL;
  outcome a = search_with_classifiers(0.05, 0, 0.6, &j, &plan);
  assert_int_not_equal(plan->root.op, PST_GATEWAY_OP_CLASSIFIER);
  pst_gateway_plan_unref(plan);
  end(&a, &j);
}

/* One that answers best is found, taken and named; its speed is the base's with the adapter's bytes and products on top. */
static void test_a_good_adapter_is_taken(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.65, .adapter = 0.93};
  outcome o = search_anew(&f, &j, &w);
  assert_int_equal(o.code, 0);
  assert_int_equal(o.verdict, PST_OPTIMIZER_FOUND);
  assert_non_null(strstr(o.plan, "\"adapter\":\"" ADAPTER "\""));
  assert_non_null(strstr(o.plan, "\"answer_key\":\"Label\""));
  assert_non_null(strstr(o.evidence, "\"small:tuned\""));
  pst_buf text = PST_BUF_INIT;
  assert_int_equal(pst_optimizer_summary(o.evidence, &text, NULL), 0);
  assert_non_null(strstr(text.data, "small:tuned"));
  pst_buf_done(&text);
  end(&o, &j);

  fake bad = {.ceiling = 0.9, .adapter = 0.1};
  o = search_anew(&bad, &j, &w);
  assert_int_equal(o.code, 0);
  assert_null(strstr(o.plan, ADAPTER));
  end(&o, &j);
}

/* Engines take longer to open than there is time for: an adapter needs none of its own, beside a base that was asked. */
static void test_an_adapter_opens_no_engine(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j;
  int n = 0, n_tuned = 0;
  fake f = {.ceiling = 0.65, .adapter = 0.93, .open_s = 1000};
  outcome o = search_anew(&f, &j, &w);
  pst_json_doc *doc = evidence_of(&o);
  assert_non_null(strstr(o.plan, "\"adapter\":\"" ADAPTER "\""));
  for (pst_json_iter it = pst_json_iterate(pst_json_path(pst_json_root(doc), "steps")); pst_json_next(&it); n++) {
    pst_str name = pst_json_str(pst_json_get(it.value, "name"));
    bool tuned = pst_str_find(name, PST_STR("small:tuned"), 0) == 0;
    if (tuned) assert_true(pst_json_double(pst_json_get(it.value, "expected_s"), 1000) < 1000);
    if (n > (int)PST_OPTIMIZER_CONST(least_steps)) assert_int_equal(pst_str_find(name, PST_STR("small"), 0), 0);
    n_tuned += tuned;
  }
  assert_true(n_tuned > 0);
  pst_json_free(doc);
  end(&o, &j);
}

/* ---- how many items ---- */

/* A reference that rambles and is never right takes three times as long as what was tuned: few items show that it is far behind, so that all are left for the plan, and time
 * for the best prompted plan, which the search looked for although what was tuned was ahead of it from the first. */
static void test_a_reference_far_behind_is_asked_few_items(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.65, .adapter = 0.93, .rambling_ms = 200, .times = 20};
  outcome o = search_anew(&f, &j, &w);
  pst_json_doc *doc = evidence_of(&o);
  assert_int_equal(o.verdict, PST_OPTIMIZER_FOUND);
  assert_non_null(strstr(o.plan, ADAPTER));
  assert_in_range(count(doc, "verification.reference.n"), 100, 200);
  assert_int_equal(count(doc, "verification.n"), N_VERIFY);
  assert_int_equal(count(doc, "plan.verify.n"), N_VERIFY);
  const pst_json *p = pst_json_path(pst_json_root(doc), "verification.prompted"), *choice = pst_json_get(p, "choice");
  assert_non_null(p);
  assert_true(pst_str_starts(pst_json_str(pst_json_get(choice, "examples")), PST_STR("nearest")));
  assert_in_range(count(doc, "verification.prompted.search.n"), 64, N_SEARCH);
  assert_in_range(count(doc, "verification.prompted.verify.n"), 200, N_VERIFY);
  assert_int_equal(count(doc, "verification.prompted.comparison.n"), count(doc, "verification.prompted.verify.n"));
  assert_true(j.elapsed_us <= 20 * 180 * 1000000LL);
  /* What it costs is said as a part of the prompted plan's cost, per accepted answer. */
  double own = pst_json_double(pst_json_at(pst_json_path(pst_json_root(doc), "plan.nusd_per_1000_accepted"), 0), NAN);
  double other = pst_json_double(pst_json_at(pst_json_get(p, "nusd_per_1000_accepted"), 0), NAN);
  double ratio = pst_json_double(pst_json_get(p, "cost_ratio"), NAN);
  assert_true(fabs(ratio - own / other) < 1e-3 * ratio);
  static const char *const parts[] = {"half", "a third", "a quarter", "a fifth", "a 6th", "a 7th", "an 8th"};
  int n = (int)round(1 / ratio);
  assert_in_range(n, 2, 8);
  assert_true(pst_str_is(pst_json_str(pst_json_get(p, "cost_part")), parts[n - 2]));
  pst_buf text = PST_BUF_INIT;
  assert_int_equal(pst_optimizer_summary(o.evidence, &text, NULL), 0);
  assert_non_null(strstr(pst_buf_text(&text), "the reference was asked the first 1"));
  assert_non_null(strstr(pst_buf_text(&text), parts[n - 2]));
  assert_null(strstr(pst_buf_text(&text), "nan"));
  pst_buf_done(&text);
  pst_json_free(doc);
  end(&o, &j);
}

/* What held-back items are answered says nothing about how many are asked. */
static void test_numbers_of_items_are_fixed_beforehand(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  pst_evals_info w = test_numbers();
  char asked[2][2][300] = {{{0}}};
  for (size_t run = 0; run < 2; run++) {
    pst_optimizer_journal j;
    fake f = {.ceiling = 0.65, .classifier = 0.9, .rambling_ms = 600, .verify_penalty = run ? 0.85 : 0, .times = 20};
    outcome o = search_anew(&f, &j, &w);
    assert_int_equal(o.code, 0);
    assert_int_equal(o.verdict == PST_OPTIMIZER_FOUND, run == 0);
    size_t n = 0;
    for (size_t i = 0; i < j.n_rows && n < 2; i++)
      if (!strncmp(j.rows[i].key, "verify ", 7))
        (void)snprintf(asked[run][n++], sizeof asked[run][0], "%s", j.rows[i].key);
    assert_int_equal(n, 2);
    end(&o, &j);
  }
  for (size_t i = 0; i < 2; i++) assert_string_equal(asked[0][i], asked[1][i]);
}

/* One for whom there is no time is named with the reason. */
static void test_a_prompted_plan_too_slow_to_ask_is_named(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.65, .classifier = 0.9, .rambling_ms = 200, .prompted_ms = 4000, .times = 20};
  outcome o = search_anew(&f, &j, &w);
  pst_json_doc *doc = evidence_of(&o);
  assert_int_equal(o.verdict, PST_OPTIMIZER_FOUND);
  assert_null(pst_json_path(pst_json_root(doc), "verification.prompted"));
  pst_buf text = PST_BUF_INIT;
  assert_int_equal(pst_optimizer_summary(o.evidence, &text, NULL), 0);
  assert_non_null(strstr(pst_buf_text(&text), "was not asked beside it: the time left was too short for it"));
  pst_buf_done(&text);
  pst_json_free(doc);
  end(&o, &j);
}

/* One that changes nothing is never worse than the plan in force, and never better: whatever search items make believe, it does not take the plan's place. */
static void test_an_idle_adapter_is_not_taken(void **state) {
  (void)state;
  static const char *const objectives[] = {"cost", "quality", "latency"};
  pst_evals_info w = test_numbers();
  w.goal.quality_floor = 0.1; /* which no luck makes the plan in force miss */
  for (size_t o = 0; o < PST_ARRAY_LEN(objectives); o++) {
    pst_optimizer_journal first, second;
    assert_int_equal(pst_optimizer_journal_open(&first, NULL, 7, false, NULL), 0);
    assert_int_equal(pst_optimizer_journal_open(&second, NULL, 7, false, NULL), 0);
    w.goal.objective = objectives[o];
    fake f = {.ceiling = 0.9, .few_plans = true};
    outcome a = search(&f, &first, 2, &w);
    assert_int_equal(a.code, 0);
    f.reference = a.plan;
    f.idle_adapter = true;
    f.times = 20;
    outcome b = search(&f, &second, 12, &w);
    assert_int_equal(b.code, 0);
    assert_non_null(strstr(b.evidence, "\"model\":\"small:idle\"")); /* it was asked */
    if (strstr(b.plan, ADAPTER)) fail_msg("%s: %s in the place of %s", objectives[o], b.plan, a.plan);
    pst_json_doc *doc = evidence_of(&b); /* so near to each other, the plan in force is asked all items */
    assert_int_equal(count(doc, "verification.reference.n"), N_VERIFY);
    pst_json_free(doc);
    pst_optimizer_journal_close(&first);
    pst_optimizer_journal_close(&second);
    outcome_done(&a);
    outcome_done(&b);
  }
}

/* A plan in force from before the workload knew which texts are copied does the same work as its like that mends them, whatever the clock says: what is right more often for that
 * takes its place. */
static void test_a_plan_that_mends_takes_the_place_of_its_like(void **state) {
  (void)state;
  static const pst_str fields[1] = {{"city", 4}};
  pst_evals_info w = test_numbers();
  pst_optimizer_journal first, second;
  assert_int_equal(pst_optimizer_journal_open(&first, NULL, 7, false, NULL), 0);
  assert_int_equal(pst_optimizer_journal_open(&second, NULL, 7, false, NULL), 0);
  fake f = {.ceiling = 0.6, .few_plans = true, .mended = 0.08, .times = 20};
  w.goal.quality_floor = 0.1;
  outcome a = search(&f, &first, 2, &w);
  assert_int_equal(a.code, 0);
  assert_null(strstr(a.plan, "copied"));
  w.copied = fields;
  w.n_copied = 1;
  f.reference = a.plan;
  outcome b = search(&f, &second, 12, &w);
  assert_int_equal(b.code, 0);
  pst_json_doc *doc = evidence_of(&b);
  const pst_json *reference = pst_json_get(pst_json_root(doc), "reference");
  assert_int_equal(b.verdict, PST_OPTIMIZER_FOUND);
  assert_non_null(strstr(b.plan, "copied"));
  assert_false(pst_json_bool(pst_json_get(reference, "in_space"), true));
  assert_non_null(pst_json_get(reference, "estimate"));
  pst_json_free(doc);
  pst_optimizer_journal_close(&first);
  pst_optimizer_journal_close(&second);
  outcome_done(&a);
  outcome_done(&b);
}

static void test_an_adapter_costs_its_bytes(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_space s;
  pst_optimizer_speed speed;
  pst_optimizer_target two[2] = {{.name = "small", .has_template = true, .weights = "Q4_1"}, TUNED};
  snprintf(two[1].weights, sizeof two[1].weights, "Q4_1");
  two[1].n_params = 1000;
  two[1].step_bytes = 500;
  assert_int_equal(pst_optimizer_space_init(&s, &w, two, 2, 1, INDEX_HASH, NULL, NULL, NULL), 0);
  assert_int_equal(pst_optimizer_speed_init(&speed, &s, 1, 1000, NULL), 0);
  pst_optimizer_choice base = {{0}}, tuned = base;
  tuned.v[PST_OPTIMIZER_MODEL] = 1;
  *pst_optimizer_speed_slot(&speed, &base) = (pst_engine_step_model){5000, 1000, 100, 400, 0.05};
  pst_optimizer_speed_complete(&speed);
  pst_optimizer_speed_adapters(&speed);
  const pst_engine_step_model *m = pst_optimizer_speed_slot(&speed, &tuned);
  assert_true(fabs(m->fixed_us - 5000 * 1.2) < 1e-6 && fabs(m->token_us - 1000 * 1.05) < 1e-6);
  assert_true(m->context_us == 100 && m->head_us == 400);
  pst_optimizer_speed_done(&speed);
  pst_optimizer_space_done(&s);
}

/* ---- advice ---- */

#define OUTLOOK(examples)                                                                                        \
  "{\"examples\":" examples ",\"records\":150,\"prompt_tokens\":20.5,\"answer_tokens\":4,\"adapter_params\":50," \
  "\"tokens_per_second\":200,\"probed\":true,\"served\":{\"requests\":6000,\"days\":3}}"

static pst_json_doc *advised(fake *f, pst_buf *ret_text) {
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j, again;
  pst_json_doc *doc = NULL;
  f->few_plans = true;
  w.goal.quality_floor = 0.2;
  assert_int_equal(pst_optimizer_journal_open(&j, NULL, 7, false, NULL), 0);
  outcome a = search(f, &j, 3, &w);
  assert_int_equal(a.code, 0);
  assert_int_equal(pst_json_parse(a.evidence, strlen(a.evidence), NULL, &doc, NULL), 0);
  assert_int_equal(pst_optimizer_summary(a.evidence, ret_text, NULL), 0);
  assert_null(strstr(pst_buf_text(ret_text), "nan"));
  /* A replay gives the same advice without asking. */
  assert_int_equal(pst_optimizer_journal_open(&again, NULL, 7, false, NULL), 0);
  copy_rows(&j, &again);
  again.replay = true;
  fake nobody = {
      .forbidden = true, .adapter = f->adapter, .ceiling = f->ceiling, .few_plans = true, .hashed = f->hashed};
  outcome b = search(&nobody, &again, 3, &w);
  assert_int_equal(b.code, 0);
  assert_string_equal(a.evidence, b.evidence);
  pst_optimizer_journal_close(&again);
  end(&a, &j);
  outcome_done(&b);
  return doc;
}

static double advice(const pst_json_doc *doc, const char *key) {
  return pst_json_double(pst_json_get(pst_json_get(pst_json_root(doc), "tuning"), key), NAN);
}

static void test_tuning_is_proposed(void **state) {
  (void)state;
  pst_buf text = PST_BUF_INIT;
  fake f = {.ceiling = 0.9, .outlook = OUTLOOK("60")};
  pst_json_doc *doc = advised(&f, &text);
  const pst_json *tuning = pst_json_get(pst_json_root(doc), "tuning");
  assert_true(pst_str_is(pst_json_str(pst_json_get(tuning, "verdict")), "proposed"));
  assert_non_null(strstr(text.data, "penstock turn . --tune-model small"));
  /* Prompts here have 60 tokens and more; 20 and an adapter of a twentieth of the model are cheaper. The rest by hand: */
  double now = advice(doc, "request_nusd_now"), then = advice(doc, "request_nusd");
  assert_true(then > 0 && then < now && fabs(advice(doc, "cost_ratio") - then / now) < 1e-9);
  assert_true(fabs(now - pst_json_double(pst_json_path(pst_json_root(doc), "plan.estimate.request_nusd"), 0)) <
              1e-3 * now);
  assert_true(fabs(advice(doc, "train_s") - 210 * 24.5 * 8 / 200) < 1e-6);
  assert_true(fabs(advice(doc, "train_nusd") - (210 * 24.5 * 8 / 200 + 180) / 3600 * 1e8) < 1);
  assert_true(fabs(advice(doc, "monthly_requests") - 60000) < 1e-6); /* 6,000 in 3 days */
  assert_true(fabs(advice(doc, "payback_days") - 30 * advice(doc, "train_nusd") / (60000 * (now - then))) < 1e-6);
  pst_buf_done(&text);
  pst_json_free(doc);
}

static void test_tuning_is_not_proposed(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  const struct {
    fake f;
    const char *verdict, *text;
  } cases[] = {
      {{.ceiling = 0.9, .outlook = OUTLOOK("40")}, "too_few_examples", "too few, 200 are wanted"},
      {{.ceiling = 0.9, .outlook = "{\"examples\":900,\"records\":0,\"why_not\":\"odd is not tuned here\"}"},
       "impossible",
       "it cannot be: odd is not tuned here"},
      {{.ceiling = 0.65, .adapter = 0.93, .outlook = OUTLOOK("400")}, "tuned_already", "the plan is tuned"},
      {{.ceiling = 0.9,
        .outlook = "{\"examples\":900,\"records\":0,\"prompt_tokens\":4000,\"answer_tokens\":40,"
                   "\"adapter_params\":50,\"tokens_per_second\":200}"},
       "no_gain",
       "no gain is expected"},
      {{.ceiling = 0.9, .outlook = "{\"examples\":0,\"records\":900}"},
       "unknown",
       "cannot be estimated from these; a turn measures it\n  penstock turn . --tune-model small"},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    pst_buf text = PST_BUF_INIT;
    fake f = cases[i].f;
    pst_json_doc *doc = advised(&f, &text);
    pst_str verdict = pst_json_str(pst_json_path(pst_json_root(doc), "tuning.verdict"));
    if (!pst_str_is(verdict, cases[i].verdict)) fail_msg("%s: %.*s", cases[i].verdict, (int)verdict.n, verdict.data);
    assert_non_null(strstr(text.data, cases[i].text));
    pst_buf_done(&text);
    pst_json_free(doc);
  }
}

/* Whose users repeat themselves gets a plan that gives answers again: the same search, the same plan but for that, and the saving said. */
static void test_the_cache_is_taken_where_requests_repeat(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  pst_buf text = PST_BUF_INIT, without = PST_BUF_INIT;
  fake f = {
      .ceiling = 0.9, .hashed = true, .repeats = "{\"requests\":500,\"kept\":400,\"looked_at\":400,\"repeats\":200}"};
  fake silent = {.ceiling = 0.9, .hashed = true};
  pst_json_doc *doc = advised(&f, &text), *other = advised(&silent, &without);
  const pst_json *e = pst_json_root(doc);
  assert_true(pst_str_is(pst_json_str(pst_json_path(e, "cache.verdict")), "in_plan"));
  assert_true(fabs(pst_json_double(pst_json_path(e, "cache.share"), 0) - 0.4) < 1e-9);
  double now = pst_json_double(pst_json_path(e, "cache.request_nusd"), 0);
  double then = pst_json_double(pst_json_path(e, "cache.request_nusd_with"), 0);
  double look = PST_OPTIMIZER_CONST(cache_us) * 100000000 / 3.6e9;
  assert_true(now > 0 && fabs(then - (0.6 * now + look)) < 1e-6 * now);
  assert_non_null(strstr(text.data, "Answer cache: in the plan"));
  assert_non_null(strstr(text.data, "40.0% of all asked again"));
  assert_null(pst_json_path(pst_json_root(other), "cache"));
  assert_null(strstr(without.data, "Answer cache"));
  /* Evals are no traffic: the plan was measured without, and as the other one. */
  assert_true(pst_json_equal(pst_json_path(e, "plan.choice"), pst_json_path(pst_json_root(other), "plan.choice")));
  assert_false(pst_json_equal(pst_json_path(e, "plan.hash"), pst_json_path(pst_json_root(other), "plan.hash")));
  pst_buf_done(&text);
  pst_buf_done(&without);
  pst_json_free(doc);
  pst_json_free(other);
}

static void test_replay_without_the_measurement_fails(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j, cut;
  fake f = {.ceiling = 0.9}, nobody = {.forbidden = true};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, 0);
  assert_int_equal(pst_optimizer_journal_open(&cut, NULL, 7, false, NULL), 0);
  copy_rows(&j, &cut);
  cut.replay = true;
  cut.n_rows -= 3; /* the rest leaks nothing: freed below */
  for (size_t i = cut.n_rows; i < cut.n_rows + 3; i++) {
    pst_free(cut.rows[i].key);
    pst_json_free(cut.rows[i].doc);
  }
  outcome b = search(&nobody, &cut, 3, &w);
  assert_int_equal(b.code, PST_E_CORRUPT);
  pst_optimizer_journal_close(&j);
  pst_optimizer_journal_close(&cut);
  outcome_done(&a);
}

static void test_resumes_after_a_kill(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.9, .cancel_after = 25};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, PST_E_CANCELLED);
  size_t kept = j.n_rows;
  assert_int_equal(kept, 25);
  int64_t spent = j.elapsed_us;
  f = (fake){.ceiling = 0.9};
  j.elapsed_us = 0;
  j.clock_base_us = pst_clock_us();
  outcome b = search(&f, &j, 3, &w);
  assert_int_equal(b.code, 0);
  assert_int_equal(b.verdict, PST_OPTIMIZER_FOUND);
  assert_true(j.n_found >= kept); /* nothing was asked twice */
  assert_true(j.elapsed_us > spent);
  end(&b, &j);
}

static void test_says_so_when_none_passes(void **state) {
  (void)state;
  if (test_is_sanitized()) skip(); /* another outcome of code that others run */
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.45};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, 0);
  assert_int_equal(a.verdict, PST_OPTIMIZER_NONE);
  pst_gateway_plan *plan = NULL; /* the reference stays: first model, no examples */
  assert_int_equal(pst_gateway_plan_parse(pst_str_from(a.plan), "plan", &plan, NULL), 0);
  assert_string_equal(plan->engines[0].model, "small");
  assert_int_equal(plan->root.n_examples, 0);
  pst_gateway_plan_unref(plan);
  end(&a, &j);
}

/* Chosen on search items, but no good on others: the held-back look must catch it. */
static void test_held_back_items_decide(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.9, .verify_penalty = 0.4};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, 0);
  assert_int_equal(a.verdict, PST_OPTIMIZER_NONE);
  end(&a, &j);
}

/* Nothing beats the reference: it is its own best plan, and few items do not make that doubtful, since its answers are the same answers. */
static void test_reference_is_already_best(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  w.goal.quality_floor = 0.2;
  w.n_items = N_EXAMPLES + N_SEARCH + 40; /* 40 held back: too few to show anything of another plan at 3 points */
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.9, .only_reference = true};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, 0);
  assert_int_equal(a.verdict, PST_OPTIMIZER_FOUND);
  assert_non_null(strstr(a.evidence, "\"same_answers\":true"));
  pst_buf text = PST_BUF_INIT;
  assert_int_equal(pst_optimizer_summary(a.evidence, &text, NULL), 0);
  bool same_plan = strstr(a.evidence, "\"is_reference\":true") != NULL; /* else other exact fields serve it better */
  assert_non_null(strstr(text.data, same_plan ? "the reference plan is already the best"
                                              : "the reference plan's answers are the best"));
  assert_non_null(strstr(text.data, "the reference's own answers"));
  pst_buf_done(&text);
  end(&a, &j);
}

/* A plan that is right about as often as the reference, on few items: neither yes nor no. */
static void test_too_few_items_are_not_enough_data(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  w.goal.quality_floor = 0;
  w.n_items = N_EXAMPLES + N_SEARCH + 40;
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.1, .slow_reference = true};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, 0);
  assert_int_equal(a.verdict, PST_OPTIMIZER_NOT_ENOUGH_DATA);
  end(&a, &j);
}

static void test_impossible_goal_is_named(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  w.goal.latency_p95_ms = 5;
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.9};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, PST_E_BAD_INPUT);
  pst_optimizer_journal_close(&j);
}

static void test_no_items_to_verify_on(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  w.n_items = N_EXAMPLES + N_SEARCH;
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.9};
  outcome a = search_anew(&f, &j, &w);
  assert_int_equal(a.code, PST_E_NO_DATA);
  pst_optimizer_journal_close(&j);
}

static void test_texts_and_page(void **state) {
  (void)state;
  pst_evals_info w = test_numbers();
  w.description = "ends </script> early?";
  pst_optimizer_journal j;
  fake f = {.ceiling = 0.9};
  outcome a = search_anew(&f, &j, &w);
  pst_buf text = PST_BUF_INIT, tree = PST_BUF_INIT, page = PST_BUF_INIT;
  assert_int_equal(pst_optimizer_summary(a.evidence, &text, NULL), 0);
  assert_non_null(strstr(text.data, "Pareto front"));
  assert_int_equal(
      pst_optimizer_explain(a.evidence, "{\"quality\": [0.5, 0.4, 0.6], \"prompt_tokens\": 100}", &tree, NULL), 0);
  assert_non_null(strstr(tree.data, "Which field bought what"));
  assert_non_null(strstr(tree.data, "measured"));
  assert_int_equal(pst_optimizer_report(a.evidence, &page, NULL), 0);
  assert_null(strstr(page.data, "@EVIDENCE@"));
  assert_null(strstr(page.data, "ends </script>"));
  assert_non_null(strstr(page.data, "ends \\u003c/script> early?"));
  assert_null(strstr(page.data, "src=\"http"));
  pst_buf_done(&text);
  pst_buf_done(&tree);
  pst_buf_done(&page);
  end(&a, &j);
}

/* ---- money for providers ---- */

typedef struct bought {
  outcome o;
  int64_t paid_nusd;
  int n_refused;
  bool is_remote;
} bought;

/* A provider's model is far better, and the goal is quality. The log's replay comes to the same. */
static bought buy(int64_t money_nusd, int64_t bound_nusd, const char *reference) {
  pst_evals_info w = test_numbers();
  pst_optimizer_journal j, again;
  pst_json_doc *doc = NULL;
  w.goal.objective = "quality";
  fake f = {.ceiling = 0.6,
            .provider = 0.95,
            .money_nusd = money_nusd,
            .bound_nusd = bound_nusd,
            .reference = reference,
            .times = 20,
            .few_plans = true};
  assert_int_equal(pst_optimizer_journal_open(&j, NULL, 7, false, NULL), 0);
  bought b = {.o = search(&f, &j, 3, &w)};
  assert_int_equal(b.o.code, 0);
  b.paid_nusd = f.paid_nusd;
  b.n_refused = f.n_refused;
  assert_true(!money_nusd || b.paid_nusd <= money_nusd);
  b.is_remote = strstr(b.o.plan, "\"op\":\"remote\"") != NULL;
  assert_int_equal(pst_json_parse(b.o.evidence, strlen(b.o.evidence), "evidence", &doc, NULL), 0);
  const pst_json *spent = pst_json_get(pst_json_root(doc), "spent");
  assert_int_equal(pst_json_int(pst_json_get(spent, "providers_nusd"), -1), b.paid_nusd);
  assert_int_equal(pst_json_int(pst_json_get(spent, "providers_limit_nusd"), 0), money_nusd);
  assert_true(pst_json_bool(pst_json_get(spent, "provider_refused"), false) == (b.n_refused > 0));
  pst_json_free(doc);
  assert_int_equal(pst_optimizer_journal_open(&again, NULL, 7, false, NULL), 0);
  copy_rows(&j, &again);
  again.replay = true;
  fake nobody = {.forbidden = true,
                 .provider = 0.95,
                 .money_nusd = money_nusd,
                 .reference = reference,
                 .times = 20,
                 .few_plans = true};
  outcome same = search(&nobody, &again, 3, &w);
  assert_int_equal(same.code, 0);
  assert_string_equal(b.o.evidence, same.evidence);
  outcome_done(&same);
  pst_optimizer_journal_close(&j);
  pst_optimizer_journal_close(&again);
  return b;
}

static void test_money_for_providers(void **state) {
  (void)state;
  static const char far_reference[] =
      "{\"schema\":1,\"root\":{\"op\":\"remote\",\"provider\":\"far\",\"model\":\"big\",\"prompt\":{\"name\":\"x\"}}}";
  bought b = buy(0, 0, NULL);
  int64_t all = b.paid_nusd;
  assert_true(b.o.verdict == PST_OPTIMIZER_FOUND && b.is_remote && all > 300 * ITEM_NUSD);
  outcome_done(&b.o);
  b = buy(4 * all, 0, NULL); /* enough: nothing is different, but for what the clock decides */
  assert_true(b.is_remote && b.paid_nusd > all / 2 && !b.n_refused);
  outcome_done(&b.o);
  b = buy(all / 3, 0, NULL); /* fewer items, in search and on held-back ones, and the verdict still holds */
  assert_true(b.o.verdict == PST_OPTIMIZER_FOUND && b.is_remote && !b.n_refused && b.paid_nusd > all / 6);
  outcome_done(&b.o);
  b = buy(all / 3, all / 12,
          NULL); /* calls reserve far more than they cost: what was answered until one was refused counts */
  assert_true(b.o.verdict == PST_OPTIMIZER_FOUND && b.is_remote && b.n_refused == 1 && b.paid_nusd > all / 6);
  outcome_done(&b.o);
  b = buy(20 * ITEM_NUSD, 0, NULL); /* not even a first block beside what is kept for a proof: a local plan */
  assert_true(b.paid_nusd == 0 && !b.is_remote && !b.n_refused);
  outcome_done(&b.o);
  b = buy(all / 3, all / 3, NULL); /* one call alone might cost it all */
  assert_true(b.n_refused == 1 && !b.is_remote && b.paid_nusd == ITEM_NUSD);
  outcome_done(&b.o);
  /* The plan in force is a provider's, and too few of its answers can be paid to compare anything with it: nobody is asked for nothing. */
  b = buy(140 * ITEM_NUSD, 0, far_reference);
  assert_true(b.o.verdict == PST_OPTIMIZER_NOT_ENOUGH_DATA && b.paid_nusd < 100 * ITEM_NUSD);
  assert_non_null(strstr(b.o.evidence, "the money for providers does not cover it"));
  outcome_done(&b.o);
  b = buy(2 * ITEM_NUSD, 3 * ITEM_NUSD, far_reference); /* nor one item of it */
  assert_true(b.o.verdict == PST_OPTIMIZER_NOT_ENOUGH_DATA && b.paid_nusd == 0 && b.n_refused <= 1);
  outcome_done(&b.o);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_an_adapter_costs_its_bytes),
      cmocka_unit_test(test_a_good_adapter_is_taken),
      cmocka_unit_test(test_an_adapter_opens_no_engine),
      cmocka_unit_test(test_an_idle_adapter_is_not_taken),
      cmocka_unit_test(test_a_plan_that_mends_takes_the_place_of_its_like),
      cmocka_unit_test(test_a_reference_far_behind_is_asked_few_items),
      cmocka_unit_test(test_numbers_of_items_are_fixed_beforehand),
      cmocka_unit_test(test_a_prompted_plan_too_slow_to_ask_is_named),
      cmocka_unit_test(test_tuning_is_proposed),
      cmocka_unit_test(test_tuning_is_not_proposed),
      cmocka_unit_test(test_the_cache_is_taken_where_requests_repeat),
      cmocka_unit_test(test_finds_and_replays),
      cmocka_unit_test(test_drafts_from_past_answers_are_chosen),
      cmocka_unit_test(test_a_good_classifier_is_all_that_is_needed),
      cmocka_unit_test(test_what_may_be_lost_against_the_best),
      cmocka_unit_test(test_a_sure_classifier_comes_before_a_model),
      cmocka_unit_test(test_an_encoder_is_asked_where_it_is_needed),
      cmocka_unit_test(test_a_bad_classifier_is_left_out),
      cmocka_unit_test(test_replay_without_the_measurement_fails),
      cmocka_unit_test(test_resumes_after_a_kill),
      cmocka_unit_test(test_says_so_when_none_passes),
      cmocka_unit_test(test_held_back_items_decide),
      cmocka_unit_test(test_reference_is_already_best),
      cmocka_unit_test(test_too_few_items_are_not_enough_data),
      cmocka_unit_test(test_impossible_goal_is_named),
      cmocka_unit_test(test_no_items_to_verify_on),
      cmocka_unit_test(test_money_for_providers),
      cmocka_unit_test(test_texts_and_page),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
