/* The real world behind a run: everything is asked of the gateway, which is what will serve the plan. Owns the calls and the shape of their answers in the log;
 * decides nothing. */
#include <math.h>
#include <string.h>

#include "optimizer/cache.h"
#include "optimizer/constants.h"
#include "optimizer/optimize.h"

#define C PST_OPTIMIZER_CONST

static void show(pst_optimizer_live *l) {
  pst_progress_update(&l->progress, pst_optimizer_journal_now_us(l->journal) / 1000000);
}

static bool is_cancelled(void *state) {
  pst_optimizer_live *l = state;
  show(l);
  return l->cancelled && l->cancelled(l->user);
}

static void note(void *state, const char *text) {
  pst_optimizer_live *l = state;
  pst_progress_note(&l->progress, "%s", text);
  show(l);
}

static int parse_choice(const pst_optimizer_space *space, const pst_optimizer_choice *c, pst_gateway_plan **ret,
                        pst_error *err) {
  pst_buf json = PST_BUF_INIT;
  int code = pst_optimizer_plan_write(space, c, &json);
  if (code) pst_error_set(err, code, NULL, "no memory for a plan");
  if (!code) code = pst_gateway_plan_parse(pst_buf_str(&json), "candidate", ret, err);
  pst_buf_done(&json);
  return code;
}

/* ---- models ---- */

/* Mean length of what right answers look like to this model. */
static double label_tokens(const pst_optimizer_live *l, const pst_engine_model *model) {
  const pst_evals_info *info = l->info;
  pst_engine_tokens tokens = {0};
  size_t n = info->n_labels ? info->n_labels : PST_MIN(info->n_items, (size_t)64);
  double sum = 0;
  for (size_t i = 0; i < n; i++) {
    pst_str text = info->n_labels ? info->labels[i] : info->items[i].expected;
    tokens.n = 0;
    if (pst_engine_tokenize(model, text, false, false, &tokens, NULL)) continue;
    sum += (double)tokens.n;
  }
  pst_engine_tokens_done(&tokens);
  return n ? PST_MAX(sum / (double)n, 1) : 1;
}

typedef struct label_texts {
  pst_engine_tokens *tokens;
  size_t n;
} label_texts;

/* Mean number of a label's tokens where another label, equal so far, goes on differently: the others are forced, and take no step. */
static double branching_steps(const label_texts *l) {
  size_t steps = 0;
  for (size_t i = 0; i < l->n; i++)
    for (size_t at = 0; at <= l->tokens[i].n; at++) { /* its end is a token too */
      const pst_engine_tokens *own = &l->tokens[i];
      bool branches = false;
      for (size_t k = 0; k < l->n && !branches; k++) {
        const pst_engine_tokens *other = &l->tokens[k];
        if (other->n < at || memcmp(other->ids, own->ids, at * sizeof *own->ids) != 0) continue;
        bool ends = at == own->n, other_ends = at == other->n;
        branches = ends || other_ends ? ends != other_ends : other->ids[at] != own->ids[at];
      }
      steps += branches;
    }
  return l->n ? PST_MAX((double)steps / (double)l->n, 1) : 0;
}

static double label_steps(const pst_optimizer_live *l, const pst_engine_model *model) {
  label_texts texts = {pst_calloc(PST_MAX(l->info->n_labels, 1), sizeof *texts.tokens), 0};
  int code = texts.tokens ? 0 : PST_E_NOMEM;
  for (; texts.n < l->info->n_labels && !code; texts.n += !code)
    code = pst_engine_tokenize(model, l->info->labels[texts.n], false, false, &texts.tokens[texts.n], NULL);
  double steps = code ? 0 : branching_steps(&texts);
  for (size_t i = 0; texts.tokens && i < l->info->n_labels; i++) pst_engine_tokens_done(&texts.tokens[i]);
  pst_free(texts.tokens);
  return steps;
}

static int describe(void *state, const char *name, const char *sha256, pst_buf *out, pst_error *err) {
  pst_optimizer_live *l = state;
  /* The smallest plan that names the model, on the engine that everything is measured with. */
  pst_optimizer_target target = {.name = name, .sha256 = sha256};
  pst_optimizer_space space;
  pst_gateway_plan *plan = NULL;
  pst_engine *engine = NULL;
  int code = pst_optimizer_space_init(&space, l->info, &target, 1, l->threads, NULL, NULL, NULL, err);
  pst_optimizer_state s = {.space = &space};
  pst_optimizer_choice zero = {{0}}, c = pst_optimizer_measuring(&s, &zero);
  c.v[PST_OPTIMIZER_LAYOUT] = PST_GATEWAY_LAYOUT_PLAIN;
  if (!code) code = parse_choice(&space, &c, &plan, err);
  if (!code) code = pst_gateway_prepare(l->gateway, plan, NULL, err);
  if (!code) code = pst_gateway_engine_acquire(l->gateway, plan, 0, &engine, err);
  if (!code) {
    const pst_engine_model *model = pst_engine_get_model(engine);
    const pst_engine_model_info *info = pst_engine_model_get_info(model);
    pst_json_writer w = pst_json_writer_on(out, false);
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "weights", info->weights);
    pst_json_member_bool(&w, "has_template", info->has_template);
    pst_json_member_int(&w, "n_ctx", info->n_ctx_train);
    pst_json_member_int(&w, "n_params", info->n_params);
    pst_json_member_int(&w, "step_bytes", info->step_bytes);
    pst_json_member_double(&w, "label_tokens", label_tokens(l, model));
    pst_json_member_double(&w, "label_steps", label_steps(l, model));
    pst_json_end_object(&w);
    pst_gateway_engine_release(l->gateway, engine);
  }
  pst_gateway_plan_unref(plan);
  pst_optimizer_space_done(&space);
  return code;
}

/* ---- prompts ---- */

/* The node whose prompts are counted: that of the model, whatever stands before it. */
static const pst_gateway_node *model_node(const pst_gateway_plan *plan) {
  const pst_gateway_node *root = &plan->root;
  return root->op == PST_GATEWAY_OP_CASCADE ? &root->inputs[root->n_inputs - 1] : root;
}

/* Lengths of a plan's prompts for items, and how many leading tokens all of them share. */
static int render_all(pst_optimizer_live *l, const pst_gateway_plan *plan, const size_t *items, size_t n,
                      pst_json_writer *w, pst_error *err) {
  pst_engine_tokens tokens = {0}, first = {0};
  size_t shared = SIZE_MAX;
  int code = 0;
  pst_json_key(w, "lengths");
  pst_json_begin_array(w);
  for (size_t i = 0; i < n && !code; i++) {
    const pst_evals_item *item = &l->info->items[items[i]];
    tokens.n = 0;
    code = pst_gateway_render(l->gateway, plan, model_node(plan), item->input, &item->id, 1, &tokens, NULL, err);
    if (code) break;
    pst_json_put_int(w, (int64_t)tokens.n);
    if (i == 0) {
      pst_engine_tokens t = first;
      first = tokens;
      tokens = t;
      continue;
    }
    size_t k = 0, most = PST_MIN(PST_MIN(tokens.n, first.n), shared);
    while (k < most && tokens.ids[k] == first.ids[k]) k++;
    shared = k;
  }
  pst_json_end_array(w);
  pst_json_member_int(w, "shared", shared == SIZE_MAX ? 0 : (int64_t)shared);
  pst_engine_tokens_done(&tokens);
  pst_engine_tokens_done(&first);
  return code;
}

/* The first class of each (model, prompt, layout, examples): what else it chooses does not change its prompts. */
static int profiles(void *state, const pst_optimizer_space *space, pst_buf *out, pst_error *err) {
  pst_optimizer_live *l = state;
  size_t items[PST_OPTIMIZER_MAX_VALUES * 4], n = 0, seen = 0, n_search = 0;
  size_t want = PST_MIN((size_t)C(profile_items), PST_ARRAY_LEN(items));
  for (size_t i = 0; i < l->info->n_items; i++) n_search += l->info->items[i].part == PST_EVALS_SEARCH;
  size_t stride = PST_MAX(n_search / want, 1);
  for (size_t i = 0; i < l->info->n_items && n < want; i++)
    if (l->info->items[i].part == PST_EVALS_SEARCH && seen++ % stride == 0) items[n++] = i;
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_array(&w);
  int code = 0;
  for (size_t i = 0; i < space->n_classes && !code; i++) {
    const pst_optimizer_choice *c = &space->classes[i];
    if (c->v[PST_OPTIMIZER_WEIGHTS] || c->v[PST_OPTIMIZER_KV] || c->v[PST_OPTIMIZER_CONSTRAINT] ||
        c->v[PST_OPTIMIZER_CLASSIFIER] || pst_optimizer_is_remote(space, c))
      continue;
    pst_optimizer_state s = {.space = (pst_optimizer_space *)(uintptr_t)space};
    pst_optimizer_choice measuring = pst_optimizer_measuring(&s, c);
    pst_gateway_plan *plan = NULL;
    code = parse_choice(space, &measuring, &plan, err);
    pst_json_begin_object(&w);
    pst_json_key(&w, "key");
    pst_json_begin_array(&w);
    const int axes[] = {PST_OPTIMIZER_MODEL, PST_OPTIMIZER_PROMPT, PST_OPTIMIZER_LAYOUT, PST_OPTIMIZER_EXAMPLES};
    for (size_t a = 0; a < PST_ARRAY_LEN(axes); a++) pst_json_put_int(&w, c->v[axes[a]]);
    pst_json_end_array(&w);
    if (!code) code = render_all(l, plan, items, n, &w, err);
    pst_json_end_object(&w);
    pst_gateway_plan_unref(plan);
    show(l);
  }
  pst_json_end_array(&w);
  return code;
}

static int lengths(void *state, const pst_optimizer_space *space, const pst_optimizer_choice *c, const size_t *items,
                   size_t n, pst_buf *out, pst_error *err) {
  pst_optimizer_live *l = state;
  pst_optimizer_state s = {.space = (pst_optimizer_space *)(uintptr_t)space};
  pst_optimizer_choice measuring = pst_optimizer_measuring(&s, c);
  pst_gateway_plan *plan = NULL;
  int code = parse_choice(space, &measuring, &plan, err);
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  if (!code) code = render_all(l, plan, items, n, &w, err);
  pst_json_end_object(&w);
  pst_gateway_plan_unref(plan);
  return code;
}

/* ---- speed ---- */

static int calibrate(void *state, const pst_optimizer_space *space, const pst_optimizer_choice *c, int budget_ms,
                     pst_buf *out, pst_error *err) {
  pst_optimizer_live *l = state;
  pst_gateway_plan *plan = NULL;
  pst_engine *engine = NULL;
  pst_engine_step_model m = {0};
  int code = parse_choice(space, c, &plan, err);
  if (!code) code = pst_gateway_prepare(l->gateway, plan, NULL, err); /* re-quantizes where asked */
  int64_t start = pst_clock_us();
  if (!code) code = pst_gateway_engine_acquire(l->gateway, plan, 0, &engine, err);
  int64_t ready = pst_clock_us();
  if (!code) {
    code = pst_engine_calibrate(engine, budget_ms, &m, err);
    if (!code) l->steps = m;
    pst_gateway_engine_release(l->gateway, engine);
  }
  pst_gateway_plan_unref(plan);
  if (code) return code;
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_double(&w, "fixed_us", m.fixed_us);
  pst_json_member_double(&w, "token_us", m.token_us);
  pst_json_member_double(&w, "context_us", m.context_us);
  pst_json_member_double(&w, "head_us", m.head_us);
  pst_json_member_double(&w, "relative_error", m.relative_error);
  pst_json_member_double(&w, "open_s", (double)(ready - start) / 1e6);
  pst_json_member_double(&w, "seconds", (double)(pst_clock_us() - ready) / 1e6);
  pst_json_end_object(&w);
  return 0;
}

/* ---- classifiers ---- */

static bool may_be_learned(const pst_evals_info *info, const pst_evals_item *item) {
  if (item->part != PST_EVALS_EXAMPLES) return false;
  for (size_t k = 0; k < info->n_labels; k++)
    if (pst_str_equal(item->expected, info->labels[k])) return true;
  return false;
}

/* The examples part, and nothing else: what a plan is chosen and verified on is not seen. Of very many a sample, by a hash of their ids. */
static size_t collect_records(const pst_evals_info *info, bool with_vectors, pst_classifier_record *ret) {
  size_t n = 0;
  double bytes = 0;
  for (size_t i = 0; i < info->n_items; i++)
    if (may_be_learned(info, &info->items[i])) bytes += (double)info->items[i].input.n;
  double most = C(classifier_work) / fmax((double)info->n_labels, 1);
  if (with_vectors) most = fmin(most, C(encoded_bytes));
  double share = fmin(most / fmax(bytes, 1), 1);
  for (size_t i = 0; i < info->n_items; i++) {
    const pst_evals_item *item = &info->items[i];
    bool drawn = (double)(pst_hash64(item->id.data, item->id.n, 0) >> 11) * 0x1p-53 < share;
    if (drawn && may_be_learned(info, item))
      ret[n++] = (pst_classifier_record){.text = item->input, .label = item->expected, .group = item->cluster};
  }
  return n;
}

/* encoder: the classifier's, or NULL. */
static int classifier_plan(const pst_optimizer_live *l, const pst_optimizer_model *encoder, const char *artefact,
                           pst_gateway_plan **ret, pst_error *err) {
  pst_optimizer_target unused = {.name = "none"};
  pst_optimizer_classifiers own = {.n = 1};
  pst_optimizer_choice alone = {{0}};
  pst_optimizer_space space;
  (void)snprintf(own.list[0].artefact, sizeof own.list[0].artefact, "%s", artefact);
  own.list[0].encoder = encoder ? encoder->name : NULL;
  own.list[0].encoder_sha256 = encoder ? encoder->sha256 : NULL;
  own.list[0].adapter = encoder ? encoder->adapter : NULL;
  alone.v[PST_OPTIMIZER_CLASSIFIER] = 1;
  int code = pst_optimizer_space_init(&space, l->info, &unused, 1, l->threads, NULL, NULL, &own, err);
  if (!code) code = parse_choice(&space, &alone, ret, err);
  pst_optimizer_space_done(&space);
  return code;
}

/* Mean time of an answer through the gateway, one after the other, as a server gives them: most of it is not the arithmetic. Examples are asked, which no quality
 * is measured on. */
static int time_classifier(const pst_optimizer_live *l, const pst_optimizer_model *encoder, const char *artefact,
                           double *ret_us, pst_error *err) {
  pst_gateway_plan *plan = NULL;
  size_t n = 0;
  int64_t start = 0;
  int code = classifier_plan(l, encoder, artefact, &plan, err);
  if (!code) code = pst_gateway_prepare(l->gateway, plan, NULL, err);
  for (size_t i = 0; i < l->info->n_items && n < (size_t)C(classifier_items) && !code; i++) {
    if (l->info->items[i].part != PST_EVALS_EXAMPLES) continue;
    pst_gateway_call call = {.kind = PST_GATEWAY_CHAT,
                             .purpose = PST_STORE_PURPOSE_SEARCH,
                             .plan = plan,
                             .chat = &l->info->items[i].chat,
                             .n = 1,
                             .set = {.n_logprobs = -1}};
    if (n++ == 0) start = pst_clock_us(); /* the artefact is open by now */
    code = pst_gateway_chat_wait(l->gateway, &call, NULL, NULL, NULL, err);
  }
  pst_gateway_plan_unref(plan);
  if (!code) *ret_us = (double)(pst_clock_us() - start) / (double)PST_MAX(n, 1);
  return code;
}

static void put_classifier(const pst_classifier *c, const pst_optimizer_model *encoder, const char *artefact,
                           double seconds, double item_us, pst_buf *out) {
  const pst_classifier_info *info = pst_classifier_get_info(c);
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "artefact", artefact);
  if (encoder) pst_json_member_cstr(&w, "encoder", encoder->name);
  if (encoder && encoder->adapter) pst_json_member_cstr(&w, "adapter", encoder->adapter);
  pst_json_member_int(&w, "records", (int64_t)info->n_records);
  pst_json_member_int(&w, "labels", (int64_t)info->n_labels);
  pst_json_member_int(&w, "features", (int64_t)info->n_features);
  pst_json_member_double(&w, "seconds", seconds);
  pst_json_member_double(&w, "accuracy", info->accuracy);
  pst_json_member_double(&w, "log_loss", info->log_loss);
  pst_json_member_double(&w, "calibration_error", info->calibration_error);
  pst_json_member_double(&w, "item_us", item_us);
  pst_json_key(&w, "curve");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < PST_CLASSIFIER_CURVE_POINTS; i++) {
    pst_json_begin_array(&w);
    pst_json_put_double(&w, info->curve[i].threshold);
    pst_json_put_double(&w, info->curve[i].answered);
    pst_json_put_double(&w, info->curve[i].accuracy);
    pst_json_end_array(&w);
  }
  pst_json_end_array(&w);
  pst_json_end_object(&w);
}

static int classifier(void *state, const pst_optimizer_model *encoder, pst_buf *out, pst_error *err) {
  pst_optimizer_live *l = state;
  char artefact[65];
  pst_classifier *c = NULL;
  pst_error why = PST_ERROR_INIT;
  pst_classifier_options o = {.threads = l->threads, .cancelled = is_cancelled, .user = l};
  pst_classifier_record *records = pst_calloc(PST_MAX(l->info->n_items, 1), sizeof *records);
  if (!records) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a classifier");
  size_t n = collect_records(l->info, encoder != NULL, records);
  int64_t train_ms = 0;
  pst_gateway_engine_spec spec = {.name = "encoder", .weights = "shipped", .options = pst_engine_options_default()};
  if (encoder) {
    spec.model = encoder->name;
    spec.sha256 = encoder->sha256;
  }
  int code = pst_gateway_classifier_build(l->gateway, encoder ? &spec : NULL, encoder ? encoder->adapter : NULL,
                                          records, n, &o, artefact, &train_ms, &why);
  if (code == PST_E_NO_DATA || code == PST_E_LIMIT || (code == PST_E_NOT_FOUND && encoder && encoder->adapter)) {
    pst_json_writer w = pst_json_writer_on(out, false);
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "none", why.message);
    pst_json_end_object(&w);
    pst_free(records);
    return 0;
  }
  if (!code) code = pst_gateway_classifier_open(l->store, pst_str_from(artefact), &c, &why);
  double item_us = 0;
  if (!code) code = time_classifier(l, encoder, artefact, &item_us, &why);
  if (!code) put_classifier(c, encoder, artefact, (double)train_ms / 1000, item_us, out);
  if (code && err) *err = why;
  pst_classifier_free(c);
  pst_free(records);
  return code;
}

/* ---- quality ---- */

/* What drafts would have made of a run's answers. */
typedef struct looked {
  int64_t tokens, steps, drafted;
} looked;

/* The prompt's tokens and an answer's, as the plan's adapter (NULL: none) gives it; the prompt's alone where its codes have no way to write the answer. */
static int spell_asked(pst_optimizer_live *l, const pst_gateway_plan *plan, const pst_engine *engine,
                       const pst_engine_adapter *adapter, const pst_evals_answer *a, pst_engine_tokens *tokens,
                       size_t *ret_n_prompt, pst_error *err) {
  const pst_evals_item *item = &l->info->items[a->item];
  const pst_engine_model *model = pst_engine_get_model(engine);
  const pst_engine_codes *codes = adapter ? pst_engine_adapter_codes(adapter) : NULL;
  pst_engine_tokens plain = {0};
  tokens->n = 0;
  int code = pst_gateway_render(l->gateway, plan, &plan->root, item->input, &item->id, 1, tokens, NULL, err);
  *ret_n_prompt = tokens->n;
  if (!code) code = pst_engine_tokenize(model, a->text, false, false, codes ? &plain : tokens, err);
  if (!code && codes) code = pst_engine_codes_encode(codes, plain.ids, plain.n, tokens, err);
  if (code == PST_E_BAD_INPUT && codes) code = 0;
  pst_engine_tokens_done(&plain);
  return code;
}

/* Replayed over the recorded answers, no model asked: drafts from the text itself, or with those from past answers. Not where a constraint stands: its choices leave
 * nothing to draft; past answers are plain, and no drafts for an adapter that answers in codes. */
static int look_up(pst_optimizer_live *l, const pst_gateway_plan *plan, const pst_evals_run *r, bool with_answers,
                   looked *ret, pst_error *err) {
  const pst_gateway_node *node = &plan->root;
  pst_engine_tokens tokens = {0};
  pst_engine *engine = NULL;
  pst_engine_draft_replay *replay = NULL;
  pst_engine_corpus *corpus = NULL;
  pst_engine_adapter *adapter = NULL;
  looked sum = {0, 0, 0};
  if (node->op != PST_GATEWAY_OP_LOCAL || node->constraint != PST_GATEWAY_FREE) return 0;
  if (with_answers && !l->answers[0]) return 0;
  int code = pst_gateway_engine_acquire(l->gateway, plan, 0, &engine, err);
  if (code) return code;
  if (node->adapter) code = pst_gateway_adapter_acquire(l->gateway, engine, node->adapter, &adapter, err);
  bool drafts = !code && !(with_answers && adapter && pst_engine_adapter_codes(adapter));
  if (drafts && with_answers)
    code = pst_gateway_answers_corpus(l->gateway, engine, l->answers, node->layout, &corpus, err);
  if (drafts && !code)
    code = pst_engine_draft_replay_create(corpus, l->steps.fixed_us > 0 ? &l->steps : NULL, &replay, err);
  for (size_t i = 0; i < PST_MIN(r->n, (size_t)C(lookup_items)) && drafts && !code; i++) {
    const pst_evals_answer *a = &r->answers[i];
    int64_t steps = 0, drafted = 0;
    size_t n_prompt = 0;
    if (!a->done) continue;
    code = spell_asked(l, plan, engine, adapter, a, &tokens, &n_prompt, err);
    if (!code && tokens.n == n_prompt) continue;
    if (!code) code = pst_engine_draft_replay_answer(replay, tokens.ids, n_prompt, tokens.n, &steps, &drafted, err);
    if (code) break;
    sum.tokens += (int64_t)(tokens.n - n_prompt);
    sum.steps += steps;
    sum.drafted += drafted;
  }
  pst_engine_draft_replay_free(replay);
  pst_engine_corpus_unref(corpus);
  pst_engine_adapter_unref(adapter);
  pst_gateway_engine_release(l->gateway, engine);
  pst_engine_tokens_done(&tokens);
  if (!code) *ret = sum;
  return code;
}

static void put_looked(pst_json_writer *w, const char *key, const looked *look) {
  if (!look->steps) return;
  pst_json_key(w, key);
  pst_json_begin_object(w);
  pst_json_member_int(w, "tokens", look->tokens);
  pst_json_member_int(w, "steps", look->steps);
  pst_json_member_int(w, "drafted", look->drafted);
  pst_json_end_object(w);
}

/* n: items that were to be asked. look: by the text itself, with past answers. left_nusd: of the money for providers; PST_STORE_NO_LIMIT: it is not asked for. */
static void put_run(const pst_evals_run *r, size_t n, const looked look[2], int64_t left_nusd, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_buf right = PST_BUF_INIT;
  int64_t steps = 0, drafted = 0, accepted = 0;
  pst_json_begin_object(&w);
  for (size_t i = 0; i < r->n; i++) {
    pst_buf_putc(&right, r->answers[i].done && r->answers[i].grade.accepted ? '1' : '0');
    steps += r->answers[i].n_steps;
    drafted += r->answers[i].n_drafted;
    accepted += r->answers[i].n_accepted;
  }
  pst_json_member_str(&w, "right", pst_buf_str(&right));
  static const char *const lists[] = {"prompt", "cached", "completion", "total_ms"};
  for (size_t k = 0; k < PST_ARRAY_LEN(lists); k++) {
    pst_json_key(&w, lists[k]);
    pst_json_begin_array(&w);
    for (size_t i = 0; i < r->n; i++) {
      const pst_evals_answer *a = &r->answers[i];
      const int64_t values[] = {a->prompt_tokens, a->cached_tokens, a->completion_tokens, a->total_us / 1000};
      pst_json_put_int(&w, values[k]);
    }
    pst_json_end_array(&w);
  }
  pst_json_member_int(&w, "steps", steps);
  pst_json_member_int(&w, "drafted", drafted);
  pst_json_member_int(&w, "accepted", accepted);
  put_looked(&w, "lookup", &look[0]);
  put_looked(&w, "answers", &look[1]);
  pst_json_member_int(&w, "failed", r->n_failed);
  pst_json_member_int(&w, "wall_us", r->wall_us);
  pst_json_member_int(&w, "cost_nusd", r->cost_nusd);
  pst_json_member_int(&w, "run", r->run_id);
  if (left_nusd != PST_STORE_NO_LIMIT) {
    pst_json_member_int(&w, "left_nusd", left_nusd);
    pst_json_member_bool(&w, "refused", r->n < n);
  }
  pst_json_end_object(&w);
  if (right.failed) out->failed = true;
  pst_buf_done(&right);
}

/* What of the account is left. What calls cost in the end is booked later than they end. */
static int money_left(const pst_optimizer_live *l, int64_t *ret_nusd, pst_error *err) {
  pst_store_budget b = {.total_nusd = 0};
  int code = pst_store_flush(l->store, err);
  if (!code) code = pst_store_budget_get(l->store, l->key_id, pst_clock_unix_ms(), &b, err);
  if (!code) *ret_nusd = PST_MAX(b.limits.total_nusd - b.total_nusd, INT64_C(0));
  return code;
}

static int measure(void *state, pst_str plan_json, bool verify, const size_t *items, size_t n, pst_buf *out,
                   pst_error *err) {
  pst_optimizer_live *l = state;
  pst_gateway_plan *plan = NULL;
  pst_evals_run run;
  memset(&run, 0, sizeof run);
  pst_evals_run_options o = {.purpose = verify ? PST_STORE_PURPOSE_EVAL : PST_STORE_PURPOSE_SEARCH,
                             .key_id = l->key_id,
                             .or_less = true,
                             .items = items,
                             .n_items = n,
                             .exclude_self = true,
                             .resume = true,
                             .warm = true, /* the log's own order decides what is cached; answers do not depend on it */
                             .cancelled = is_cancelled,
                             .user = l};
  int64_t left = PST_STORE_NO_LIMIT;
  int code = pst_gateway_plan_parse(plan_json, "candidate", &plan, err);
  if (!code) code = pst_evals_run_plan(l->gateway, l->store, l->workload, plan, &o, &run, err);
  if (!code && l->key_id && pst_gateway_plan_has(plan, PST_GATEWAY_OP_REMOTE)) code = money_left(l, &left, err);
  if (!code && run.n && run.n_failed == (int64_t)run.n) {
    int first = run.answers[0].error_code;
    code = pst_error_set(err, first ? first : PST_E_INTERNAL, NULL,
                         "every one of %zu answers of a candidate failed: %s", run.n, pst_error_text(first));
  }
  if (code == PST_E_UPSTREAM || code == PST_E_TIMEOUT)
    pst_error_prefix(err,
                     "a candidate could not be asked (the same command goes on from here; \"remote\": false in the "
                     "workload's privacy leaves providers out)");
  looked look[2] = {{0, 0, 0}, {0, 0, 0}};
  for (int k = 0; k < 2 && !code && !verify; k++) code = look_up(l, plan, &run, k == 1, &look[k], err);
  if (!code) put_run(&run, n, look, left, out);
  pst_evals_run_done(&run);
  pst_gateway_plan_unref(plan);
  show(l);
  return code;
}

static int count_use(void *state, pst_buf *out, pst_error *err) {
  pst_optimizer_live *l = state;
  int64_t uses = 0; /* by evals too, and whatever the goal was: they wear out by being looked at */
  int code = pst_evals_uses(l->store, l->workload, PST_EVALS_VERIFY, &uses, err);
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "uses", uses);
  pst_json_end_object(&w);
  return code;
}

int pst_optimizer_live_examples(pst_optimizer_live *l, char ret_hash[65], pst_error *err) {
  char data_set[65] = ""; /* whose records are among the examples */
  ret_hash[0] = '\0';
  size_t *order = pst_calloc(PST_MAX(l->info->n_items, 1), sizeof *order);
  pst_gateway_example *examples = pst_calloc(PST_MAX(l->info->n_items, 1), sizeof *examples);
  int code = order && examples ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the examples");
  size_t n = code ? 0 : pst_optimizer_examples_order(l->info, order);
  for (size_t i = 0; i < n; i++) {
    const pst_evals_item *item = &l->info->items[order[i]];
    examples[i] = (pst_gateway_example){item->id, item->input, item->expected};
  }
  if (!code && n) code = pst_store_data_set_of_folder(l->store, l->info->folder, data_set, err);
  if (!code && n) code = pst_gateway_examples_build(l->store, examples, n, data_set, ret_hash, err);
  pst_free(order);
  pst_free(examples);
  return code;
}

int pst_optimizer_live_answers(pst_optimizer_live *l, char ret_hash[65], pst_error *err) {
  static const char key[] = "past answers";
  const pst_json *value = pst_optimizer_journal_find(l->journal, key);
  pst_buf text = PST_BUF_INIT;
  ret_hash[0] = '\0';
  if (!value && l->journal->replay) return 0; /* a log from before there were any */
  int code = 0;
  if (!value) {
    code = pst_gateway_answers_collect(l->store, pst_str_from(l->info->name), ret_hash, NULL, err);
    if (code == PST_E_NO_DATA) code = 0;
    pst_json_writer w = pst_json_writer_on(&text, false);
    pst_json_put_cstr(&w, ret_hash);
    if (!code) code = pst_optimizer_journal_put(l->journal, key, &text, &value, err);
  }
  if (!code)
    (void)snprintf(ret_hash, 65, "%.*s", (int)PST_MIN(pst_json_str(value).n, (size_t)64), pst_json_str(value).data);
  pst_buf_done(&text);
  return code;
}

static int outlook(void *state, const char *model, pst_buf *out, pst_error *err) {
  pst_optimizer_live *l = state;
  return l->outlook(l->outlook_user, model, out, err);
}

static int repeats(void *state, pst_buf *out, pst_error *err) {
  const pst_optimizer_live *l = state;
  return pst_optimizer_repeats_count(l->store, pst_str_from(l->info->name), pst_clock_unix_ms(), out, err);
}

pst_optimizer_world pst_optimizer_live_world(pst_optimizer_live *l) {
  return (pst_optimizer_world){l,
                               describe,
                               profiles,
                               calibrate,
                               measure,
                               lengths,
                               count_use,
                               note,
                               is_cancelled,
                               classifier,
                               l->outlook ? outlook : NULL,
                               repeats};
}
