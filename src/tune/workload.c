/* From a workload's examples, or from what was said of answers, to an adapter and a plan that serves it.
 *
 * Texts are rendered by the gateway's own function for the plan that will be served, ends of answers included, so what is trained on is what is served. Its plainest form is the
 * message alone: instructions, label lists and examples are what training moves into the weights. Held-out texts are whole clusters of near-duplicates. */
#include "tune/score.h"

#include <string.h>

#include "tune/distill.h"
#include "tune/keep.h"

enum { MIN_TEXTS = 8 };

typedef struct maker {
  pst_gateway *gateway;
  pst_store *store;
  const pst_tune_workload_options *o;
  const pst_evals_workload *workload;
  const pst_evals_info *info;
  const pst_evals_prompt *prompt; /* NULL: nothing but the message */
  const char *layout;
  pst_gateway_plan *plan; /* without the adapter */
  pst_engine_model *model;
  pst_engine_lora start;      /* the adapter to start from */
  pst_engine_codes *given;    /* its codes; NULL: none */
  pst_arena *thoughts;        /* of the teacher */
  pst_engine_codes *codes;    /* in which the texts' answers are; NULL: plain */
  pst_buf codes_note;         /* the same as text */
  double plain_answer_tokens; /* mean, before they were coded */
  pst_engine_tokens scratch;
  int32_t *ids; /* of all texts, one behind the other */
  size_t n_ids, ids_capacity;
  int32_t *coded;                      /* of texts in output codes; NULL: none are */
  pst_tune_text *texts;                /* training's, then held-out ones, then those that are only asked */
  const pst_evals_item **items;        /* of each text; NULL: it is of no item */
  size_t *starts;                      /* where a text's tokens begin */
  size_t unit;                         /* texts of an example: 2 in DPO */
  size_t n_texts, n_held_out, n_asked; /* n_texts: without the last n_asked */
  size_t n_left_out, n_near;
  bool few;      /* it is asked what texts are like: some will do */
  bool *near;    /* [n_items]: near to an item that judges */
  char data[65]; /* SHA-256 over the texts */
  pst_error *err;
} maker;

static int no_memory(const maker *m) { return pst_error_set(m->err, PST_E_NOMEM, NULL, "no memory for the texts"); }

/* ---- the plan ---- */

/* How the adapter is asked, as members of a plan's node. */
static void put_way(const maker *m, pst_json_writer *w) {
  static const pst_evals_prompt bare = {.name = {"terse", 5}};
  const pst_evals_prompt *p = m->prompt ? m->prompt : &bare;
  pst_json_key(w, "prompt");
  pst_json_begin_object(w);
  pst_json_member_str(w, "name", p->name);
  pst_json_member_str(w, "system", p->system);
  pst_json_member_str(w, "instruction", p->instruction);
  pst_json_member_str(w, "input_key", p->input_key);
  pst_json_member_str(w, "answer_key", p->answer_key);
  pst_json_end_object(w);
  pst_json_member_str(w, "layout", pst_str_from(m->layout));
}

static void write_root(const maker *m, const char *adapter, pst_json_writer *w) {
  pst_json_begin_object(w);
  pst_json_member_str(w, "op", PST_STR("local"));
  pst_json_member_str(w, "engine", PST_STR("e1"));
  put_way(m, w);
  if (m->info->n_labels) pst_json_member_str(w, "constraint", PST_STR("labels"));
  if (adapter) pst_json_member_str(w, "adapter", pst_str_from(adapter));
  pst_json_key(w, "sampling");
  pst_json_begin_object(w);
  pst_json_member_int(w, "temperature", 0);
  pst_json_end_object(w);
  pst_json_member_int(w, "max_tokens", m->info->max_tokens);
  pst_json_end_object(w);
}

static int make_plan(const maker *m, const char *model, const char *adapter, pst_gateway_plan **ret_plan) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_begin_object(&w);
  pst_evals_plan_begin(m->info, &w);
  pst_json_key(&w, "engines");
  pst_json_begin_object(&w);
  pst_json_key(&w, "e1");
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "model", pst_str_from(model));
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  pst_json_key(&w, "root");
  write_root(m, adapter, &w);
  pst_json_end_object(&w);
  int code = pst_buf_status(&text) ? no_memory(m)
                                   : pst_gateway_plan_parse(pst_buf_str(&text), "the tuned plan", ret_plan, m->err);
  pst_buf_done(&text);
  return code;
}

/* A layout in which a value ends at a line break holds no answer of several lines. */
static const char *layout_for(const pst_evals_info *info) {
  for (size_t i = 0; i < info->n_items; i++)
    if (info->items[i].part == PST_EVALS_EXAMPLES && info->items[i].expected.n &&
        memchr(info->items[i].expected.data, '\n', info->items[i].expected.n))
      return "chat";
  return "plain";
}

static int find_prompt(maker *m) {
  if (!m->o->prompt) return 0;
  for (size_t i = 0; i < m->info->n_prompts && !m->prompt; i++)
    if (pst_str_is(m->info->prompts[i].name, m->o->prompt)) m->prompt = &m->info->prompts[i];
  return m->prompt
             ? 0
             : pst_error_set(m->err, PST_E_NOT_FOUND, "prompt", "the workload has no prompt \"%s\"", m->o->prompt);
}

static int open_model(maker *m) {
  pst_engine *engine = NULL;
  m->layout = m->o->layout ? m->o->layout : layout_for(m->info);
  int code = find_prompt(m);
  if (!code) code = make_plan(m, m->o->model, NULL, &m->plan);
  if (!code) code = pst_gateway_engine_acquire(m->gateway, m->plan, 0, &engine, m->err);
  if (code) return code;
  m->model = pst_engine_model_ref(pst_engine_get_model(engine));
  pst_gateway_engine_release(m->gateway, engine);
  return 0;
}

/* ---- texts ---- */

/* An answer that says plainly what is a code of the adapter to start from cannot be told from the coded one. */
static bool has_code(const maker *m, const int32_t *ids, size_t n) {
  for (size_t i = 0; i < n && m->given; i++)
    if (pst_engine_codes_find(m->given, ids[i])) return true;
  return false;
}

/* False in *ret_added: there is nothing to learn, or it is too long, or not to be said in the codes there are. */
static int add_text(maker *m, pst_str input, pst_str answer, bool unwanted, bool *ret_added) {
  pst_engine_tokens *t = &m->scratch;
  size_t n_given = 0, most = (size_t)PST_MIN(pst_engine_model_get_info(m->model)->n_ctx_train, 4096);
  int code =
      pst_gateway_render_answered(m->gateway, m->plan, &m->plan->root, input, NULL, 0, answer, t, &n_given, m->err);
  *ret_added = !code && answer.n && n_given < t->n && t->n <= most && !has_code(m, t->ids + n_given, t->n - n_given);
  if (code || !*ret_added) return code;
  if (pst_array_reserve((void **)&m->ids, &m->ids_capacity, m->n_ids + t->n, sizeof *m->ids)) return no_memory(m);
  memcpy(m->ids + m->n_ids, t->ids, t->n * sizeof *t->ids);
  m->starts[m->n_texts] = m->n_ids;
  m->texts[m->n_texts++] = (pst_tune_text){.n = t->n, .n_given = n_given, .weight = 1, .unwanted = unwanted};
  m->n_ids += t->n;
  return 0;
}

/* Examples whose lot is below `share` when held_out, the others when not. */
static int add_examples(maker *m, bool held_out, double share, size_t most) {
  size_t n = 0;
  int code = 0;
  for (size_t i = 0; i < m->info->n_items && n < most && !code; i++) {
    const pst_evals_item *item = &m->info->items[i];
    bool added = false;
    if (item->part != PST_EVALS_EXAMPLES || m->near[i] || (pst_tune_lot(m->o->training.seed, item) < share) != held_out)
      continue;
    code = add_text(m, item->input, item->expected, false, &added);
    if (added) m->items[m->n_texts - 1] = item;
    n += added;
    m->n_left_out += !added;
  }
  return code;
}

/* Inputs beside the examples are left out where they are near to a held-out one, which is to be new to the model: ret_near[i] for preference i. */
static int find_near_inputs(const maker *m, double share, bool *ret_near) {
  size_t n_items = m->info->n_items, n = n_items + m->o->n_preferences;
  pst_str *texts = pst_calloc(n + 1, sizeof *texts);
  uint32_t *cluster = pst_calloc(n + 1, sizeof *cluster);
  bool *held = pst_calloc(n + 1, sizeof *held); /* by cluster */
  for (size_t i = 0; texts && i < n; i++)
    texts[i] = i < n_items ? m->info->items[i].input : m->o->preferences[i - n_items].input;
  int code = texts && cluster && held ? pst_evals_cluster(texts, NULL, n, PST_EVALS_NEAR_DUPLICATE, cluster, m->err)
                                      : no_memory(m);
  for (size_t i = 0; i < n && !code; i++) {
    const pst_evals_item *item = i < n_items ? &m->info->items[i] : NULL;
    if (!item)
      ret_near[i - n_items] = held[cluster[i]];
    else if (item->part == PST_EVALS_EXAMPLES && !m->near[i] && pst_tune_lot(m->o->training.seed, item) < share)
      held[cluster[i]] = true;
  }
  pst_free(texts);
  pst_free(cluster);
  pst_free(held);
  return code;
}

/* Both answers or none. */
static int add_pair(maker *m, const pst_tune_preference *p, bool *ret_added) {
  size_t n_texts = m->n_texts, n_ids = m->n_ids;
  int code = add_text(m, p->input, p->wanted, false, ret_added);
  if (!code && *ret_added) code = add_text(m, p->input, p->unwanted, true, ret_added);
  if (*ret_added) return code;
  m->n_texts = n_texts;
  m->n_ids = n_ids;
  return code;
}

/* near (NULL: none is): those near to a held-out example, which are not learned: left out, where they are examples themselves, else held out. */
static int add_preferences(maker *m, bool held_out, size_t most, const bool *near) {
  bool examples = m->o->training.objective == PST_TUNE_SFT;
  size_t n = 0;
  int code = 0;
  for (size_t i = 0; i < m->o->n_preferences && n < most && !code; i++) {
    const pst_tune_preference *p = &m->o->preferences[i];
    bool added = false, is_near = near && near[i];
    if ((p->held_out || (is_near && !examples)) != held_out) continue;
    if (is_near && examples) {
      m->n_near += p->wanted.data != NULL;
      continue;
    }
    if (m->unit == 2) {
      if (!p->wanted.data || !p->unwanted.data) continue;
      code = add_pair(m, p, &added);
      n += added;
      m->n_left_out += !added;
      continue;
    }
    int kinds = m->o->training.objective == PST_TUNE_KTO ? 2 : 1;
    for (int unwanted = 0; unwanted < kinds && !code; unwanted++) {
      pst_str answer = unwanted ? p->unwanted : p->wanted;
      if (!answer.data) continue;
      code = add_text(m, p->input, answer, unwanted, &added);
      n += added;
      m->n_left_out += !added;
    }
  }
  return code;
}

/* In all both kinds weigh the same: what the more frequent one has in number the other has in weight, the lower end of what the paper advises. */
static int weigh_kinds(maker *m) {
  size_t n[2] = {0, 0};
  if (m->o->training.objective != PST_TUNE_KTO) return 0;
  for (size_t i = 0; i < m->n_texts - m->n_held_out; i++) n[m->texts[i].unwanted]++;
  if (!n[0] || !n[1])
    return pst_error_set(m->err, PST_E_NO_DATA, m->info->folder,
                         "%zu answers that were wanted and %zu that were not: some of each kind are needed", n[0],
                         n[1]);
  for (size_t i = 0; i < m->n_texts; i++) {
    bool kind = m->texts[i].unwanted;
    m->texts[i].weight = (float)((double)PST_MAX(n[0], n[1]) / (double)n[kind]);
  }
  return 0;
}

static int too_few(const maker *m, size_t n) {
  if (m->o->training.objective == PST_TUNE_SFT)
    return pst_error_set(m->err, PST_E_NO_DATA, m->info->folder,
                         "%zu examples are too few to learn from: at least %d items must have the part \"examples\"%s",
                         n, (int)MIN_TEXTS, m->n_near ? " and be no near-duplicates of items that judge models" : "");
  return pst_error_set(
      m->err, PST_E_NO_DATA, m->info->folder, "%zu %s are too few to learn from: at least %d are needed", n,
      m->unit == 2 ? "pairs of a wanted and an unwanted answer" : "answers that were judged", (int)MIN_TEXTS);
}

/* Room for all texts there may be, and which items are near to those that judge. */
static int make_room(maker *m, size_t *ret_n_examples) {
  size_t n = 0;
  m->near = pst_calloc(m->info->n_items + 1, sizeof *m->near);
  int code = m->near ? pst_evals_guard_near(m->store, m->workload, m->near, m->err) : no_memory(m);
  if (code) return code;
  for (size_t i = 0; i < m->info->n_items; i++) {
    n += m->info->items[i].part == PST_EVALS_EXAMPLES && !m->near[i];
    m->n_near += m->near[i];
  }
  *ret_n_examples = n;
  n += 2 * m->o->n_preferences;
  m->texts = pst_calloc(n + 1, sizeof *m->texts);
  m->starts = pst_calloc(n + 1, sizeof *m->starts);
  m->items = pst_calloc(n + 1, sizeof *m->items);
  return m->texts && m->starts && m->items ? 0 : no_memory(m);
}

/* Texts to learn, then held-out ones; *ret_n_learned of them. */
static int add_texts(maker *m, double share, size_t *ret_n_learned) {
  bool examples = m->o->training.objective == PST_TUNE_SFT, *near = NULL;
  size_t most = m->o->max_texts ? m->o->max_texts : SIZE_MAX;
  int code = examples ? add_examples(m, false, share, most) : 0;
  if (!code && share > 0 && m->o->n_preferences) {
    near = pst_calloc(m->o->n_preferences, sizeof *near);
    code = near ? find_near_inputs(m, share, near) : no_memory(m);
  }
  if (!code) code = add_preferences(m, false, most - PST_MIN(most, m->n_texts), near);
  *ret_n_learned = m->n_texts;
  if (!code && examples) code = add_examples(m, true, share, SIZE_MAX);
  if (!code) code = add_preferences(m, true, m->o->max_held_out, near);
  pst_free(near);
  return code;
}

static int make_texts(maker *m) {
  size_t n_examples, n_learned, n_answer = 0;
  m->unit = m->o->training.objective == PST_TUNE_DPO ? 2 : 1;
  int code = make_room(m, &n_examples);
  if (code) return code;
  double share = n_examples ? PST_MIN(m->o->held_out_share, (double)m->o->max_held_out / (double)n_examples) : 0;
  code = add_texts(m, share, &n_learned);
  if (code) return code;
  m->n_held_out = m->n_texts - n_learned;
  if (n_learned < MIN_TEXTS * m->unit && !(m->few && n_learned)) return too_few(m, n_learned / m->unit);
  pst_sha256_hex(m->ids, m->n_ids * sizeof *m->ids, m->data);
  size_t n = m->n_texts;
  if (m->o->training.objective != PST_TUNE_SFT) code = add_examples(m, true, share, SIZE_MAX);
  if (code) return code;
  m->n_asked = m->n_texts - n;
  m->n_texts = n;
  for (size_t i = 0; i < n + m->n_asked; i++) {
    m->texts[i].tokens = m->ids + m->starts[i];
    n_answer += i < n ? m->texts[i].n - m->texts[i].n_given : 0;
  }
  m->plain_answer_tokens = (double)n_answer / (double)n;
  return weigh_kinds(m);
}

/* ---- codes ---- */

/* The texts become coded ones, by the table of the adapter to start from or by one of their own where that is wanted and worth it. */
static int use_codes(maker *m) {
  const pst_tune_coding coding = {.given = m->start.notes[PST_ENGINE_LORA_CODES],
                                  .most = m->o->codes,
                                  .from = m->o->codes_from,
                                  .labels = m->info->labels,
                                  .n_labels = m->info->n_labels};
  if (m->o->teacher && (coding.given || coding.most))
    return pst_error_set(m->err, PST_E_BAD_INPUT, "codes",
                         "a teacher's thoughts are of plain tokens and cannot be learned together with output codes");
  int code = pst_tune_texts_code(m->model, &coding, m->texts, m->n_texts, m->n_texts - m->n_held_out, &m->coded,
                                 &m->codes, m->err);
  if (code || !m->codes) return code;
  pst_engine_codes_write(m->codes, &m->codes_note);
  return pst_buf_status(&m->codes_note) ? no_memory(m) : 0;
}

/* The teacher reads what is learned; held-out texts stay as they are, so that their loss says what it says without one. */
static int ask_teacher(maker *m) {
  const pst_tune_options *t = &m->o->training;
  pst_gateway_plan *plan = NULL;
  pst_engine *engine = NULL;
  if (!m->o->teacher) return 0;
  if (t->objective != PST_TUNE_SFT)
    return pst_error_set(m->err, PST_E_BAD_INPUT, "teacher", "a teacher goes with sft alone");
  m->thoughts = pst_arena_create();
  int code = m->thoughts ? make_plan(m, m->o->teacher, NULL, &plan) : no_memory(m);
  if (!code) code = pst_gateway_engine_acquire(m->gateway, plan, 0, &engine, m->err);
  if (!code)
    code = pst_tune_distill(engine, m->model, m->texts, m->n_texts - m->n_held_out, m->thoughts, t->cancelled, t->user,
                            m->err);
  pst_gateway_engine_release(m->gateway, engine);
  pst_gateway_plan_unref(plan);
  return code;
}

/* ---- the adapter to start from ---- */

static int read_start(maker *m, pst_tune_options *training) {
  if (!m->o->from) return 0;
  int code = pst_gateway_adapter_read(m->store, m->o->from, m->o->model, &m->start, m->err);
  if (code) return code;
  pst_tune_options_start(training, &m->start);
  const char *codes = m->start.notes[PST_ENGINE_LORA_CODES];
  return codes ? pst_engine_codes_parse(pst_str_from(codes), &m->given, m->err) : 0;
}

/* ---- a sample of the held-out ones, to be answered while training ---- */

/* Held-out items in an order drawn by seed, so that any number of the first is a sample. */
static size_t draw_sample(const maker *m, pst_tune_sampled *ret) {
  enum { MOST = 4096 };
  size_t n = 0, order[MOST];
  pst_random r = {m->o->training.seed, 0x73616d70u, 0};
  for (size_t i = m->n_texts - m->n_held_out; i < m->n_texts + m->n_asked && n < MOST; i++)
    if (m->items[i]) order[n++] = i;
  for (size_t i = n; i > 1; i--) {
    size_t k = (size_t)pst_random_below(&r, i), swap = order[i - 1];
    order[i - 1] = order[k];
    order[k] = swap;
  }
  n = PST_MIN(n, (size_t)PST_TUNE_MAX_SCORED);
  for (size_t i = 0; i < n; i++)
    ret[i] = (pst_tune_sampled){m->texts[order[i]].tokens, m->texts[order[i]].n_given, m->items[order[i]]};
  return n;
}

/* Trains with the sample's answers beside the loss. The engine is the one that will serve the adapter. */
static int train(maker *m, const pst_tune_options *options, pst_engine_lora *lora, pst_tune_report *report) {
  pst_tune_options o = *options;
  pst_tune_sampled sampled[PST_TUNE_MAX_SCORED];
  pst_tune_sample s = {.workload = m->workload, .plain = !strcmp(m->layout, "plain"), .items = sampled};
  size_t n = m->n_texts - m->n_held_out;
  s.n = draw_sample(m, sampled);
  s.codes = m->codes ? m->codes_note.data : NULL;
  o.scorer = (pst_tune_scorer){pst_tune_sample_score, &s, s.n};
  int code = pst_gateway_engine_acquire(m->gateway, m->plan, 0, &s.engine, m->err);
  if (code) return code;
  if (m->info->n_labels)
    code =
        pst_engine_choices_create(m->model, m->info->labels, m->info->n_labels, s.plain, m->codes, &s.choices, m->err);
  if (!code) code = pst_tune_train(m->model, m->texts, n, m->texts + n, m->n_held_out, &o, lora, report, m->err);
  pst_engine_choices_unref(s.choices);
  pst_gateway_engine_release(m->gateway, s.engine);
  return code;
}

/* ---- training and what becomes of it ---- */

/* HOME/tune/<hash>: a run with other texts or options has another file. */
static int checkpoint_path(const maker *m, const pst_tune_options *t, char *out, size_t n) {
  pst_buf text = PST_BUF_INIT;
  pst_buf_printf(&text, "%s %s %g %g %s %g %s %s %s %s %s %d %g %u %g %g %g %g %d %d %lld %g %d %d %d %g %llu",
                 pst_tune_objective_name(t->objective), pst_tune_precision_name(t->precision), t->beta, t->smoothing,
                 m->o->teacher ? m->o->teacher : "", t->teacher_share, m->o->from ? m->o->from : "", m->data,
                 m->o->model, m->layout, m->info->name, t->rank, t->alpha, t->roles, t->learning_rate, t->warmup_share,
                 t->final_share, t->clip, t->batch_texts, t->max_epochs, (long long)t->steps, t->seconds, t->patience,
                 t->evaluations, (int)t->share_prefixes, t->score_share, (unsigned long long)t->seed);
  if (m->codes) pst_buf_printf(&text, " codes %s", m->codes_note.data);
  int code =
      pst_buf_status(&text) ? no_memory(m) : pst_tune_checkpoint_path(m->store, pst_buf_str(&text), out, n, m->err);
  pst_buf_done(&text);
  return code;
}

/* A checkpoint holds numbers made of the texts. Where records of theirs were erased while it was written it must not wait for another run. */
static void forget_withdrawn(const maker *m, const char *checkpoint) {
  const char *const sets[] = {m->o->data_set, m->o->taught_set};
  for (size_t i = 0; i < PST_ARRAY_LEN(sets); i++)
    if (sets[i] && pst_store_data_withdrawn(m->store, pst_str_from(sets[i]))) (void)remove(checkpoint);
}

static pst_store_adapter_origin origin_of(const pst_tune_workload_options *o) {
  return (pst_store_adapter_origin){o->data_set, o->from, o->taught_set};
}

static int keep_adapter(maker *m, pst_engine_lora *lora, pst_tune_workload_result *r) {
  char run[64], codes[32] = "";
  const pst_engine_code *list;
  if (m->codes) snprintf(codes, sizeof codes, ", %zu codes", pst_engine_codes_list(m->codes, &list));
  snprintf(run, sizeof run, "%s, %lld steps, seed %llu%s", pst_tune_objective_name(m->o->training.objective),
           (long long)r->report.n_steps, (unsigned long long)m->o->training.seed, codes);
  pst_gateway_adapter adapter = {
      .model = m->o->model, .workload = m->info->name, .data = m->data, .run = run, .origin = origin_of(m->o)};
  pst_buf way = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&way, false);
  pst_json_begin_object(&w);
  put_way(m, &w);
  pst_json_end_object(&w);
  int code =
      pst_buf_status(&way) ? no_memory(m) : pst_engine_lora_set_note(lora, PST_ENGINE_LORA_PROMPT, way.data, m->err);
  pst_buf_done(&way);
  if (!code && m->codes) code = pst_engine_lora_set_note(lora, PST_ENGINE_LORA_CODES, m->codes_note.data, m->err);
  return code ? code : pst_tune_adapter_keep(m->store, adapter, m->o->name, lora, &r->adapter, m->err);
}

/* A name that is taken is refused before the work. Only a run that was killed when it had kept its adapter, and left its checkpoint, gives the same one again. */
static int check_name(const maker *m, const char *checkpoint) {
  pst_store_adapter row;
  if (!m->o->name || pst_store_adapter_get(m->store, pst_str_from(m->o->name), &row, NULL)) return 0;
  if (!strcmp(row.data, m->data) && pst_file_exists(checkpoint)) return 0;
  return pst_error_set(m->err, PST_E_EXISTS, "name",
                       "the adapter \"%s\" is there already and is another; choose a name", m->o->name);
}

static int keep_plan(maker *m, pst_tune_workload_result *r) {
  pst_gateway_plan *plan = NULL;
  int code = make_plan(m, m->o->model, r->adapter.file, &plan);
  if (code) return code;
  code = pst_store_plan_put(m->store, pst_str_from(plan->json), pst_clock_unix_ms(), r->plan_hash, m->err);
  if (!code && !(r->plan_json = pst_strdup(plan->json))) code = no_memory(m);
  pst_gateway_plan_unref(plan);
  return code;
}

static void describe(const maker *m, pst_tune_workload_result *r) {
  const pst_engine_code *list;
  double given = 0, all = 0;
  for (size_t i = 0; i < m->n_texts; i++) {
    given += (double)m->texts[i].n_given;
    all += (double)m->texts[i].n;
  }
  r->n_texts = (m->n_texts - m->n_held_out) / m->unit;
  r->n_held_out = m->n_held_out / m->unit;
  r->n_left_out = m->n_left_out;
  r->n_near = m->n_near;
  r->prompt_tokens = given / (double)m->n_texts;
  r->answer_tokens = (all - given) / (double)m->n_texts;
  r->n_codes = m->codes ? pst_engine_codes_list(m->codes, &list) : 0;
  r->plain_answer_tokens = m->plain_answer_tokens;
}

/* ---- how fast training is here ---- */

static int speed_name(const maker *m, pst_buf *out) {
  int threads = m->o->training.threads;
  pst_buf_printf(out, "tuning speed of %s, %s, %d threads", m->o->model,
                 pst_tune_precision_name(m->o->training.precision), threads > 0 ? threads : pst_cpu_count());
  return pst_buf_status(out) ? no_memory(m) : 0;
}

/* Tokens a second of the last run; kept for those who want to know what a run would take, and lost where it cannot be: what was trained does not hang on it. Pairs and
 * contrasts go at a pace of their own, which nobody asks for. */
static void keep_speed(const maker *m, double tokens_per_second) {
  pst_buf name = PST_BUF_INIT;
  char value[32];
  if (m->o->training.objective != PST_TUNE_SFT) return;
  int code = speed_name(m, &name);
  int n = snprintf(value, sizeof value, "%.6g", tokens_per_second);
  if (!code) code = pst_store_setting_set(m->store, pst_buf_str(&name), (pst_str){value, (size_t)n}, NULL);
  if (code) pst_log(PST_LOG_WARN, "event=tuning_speed_not_kept reason=\"%s\"", pst_error_text(code));
  pst_buf_done(&name);
}

static int find_speed(const maker *m, double *ret_tokens_per_second) {
  pst_buf name = PST_BUF_INIT;
  char *value = NULL;
  double found = 0;
  int code = speed_name(m, &name);
  if (!code) {
    code = pst_store_setting_get(m->store, pst_buf_str(&name), &value, m->err);
    if (!code && pst_parse_double(pst_str_from(value), &found)) found = 0;
    if (code == PST_E_NOT_FOUND) code = 0;
  }
  pst_free(value);
  pst_buf_done(&name);
  if (!code) *ret_tokens_per_second = found;
  return code;
}

/* One step on a few texts. */
static int probe_speed(maker *m, double *ret_tokens_per_second) {
  enum { PROBE_TEXTS = 4 };
  pst_tune_options o = m->o->training;
  pst_tune_report report;
  pst_engine_lora lora = {0};
  o.checkpoint = NULL;
  o.steps = 1;
  o.batch_texts = PROBE_TEXTS;
  int code =
      pst_tune_train(m->model, m->texts, PST_MIN(m->n_texts, (size_t)PROBE_TEXTS), NULL, 0, &o, &lora, &report, m->err);
  pst_engine_lora_done(&lora);
  if (code) return code;
  *ret_tokens_per_second = report.tokens_per_second;
  keep_speed(m, report.tokens_per_second);
  return 0;
}

/* Numbers of an adapter on all linear layers. */
static int count_params(const maker *m, int64_t *ret_n) {
  pst_engine_decoder d;
  int64_t n = 0;
  int code = pst_engine_decoder_get(m->model, &d, m->err);
  if (code) return code;
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
    size_t rows, cols;
    pst_engine_decoder_shape(m->model, (pst_engine_role)r, &rows, &cols);
    n += (int64_t)(rows + cols) * m->o->training.rank;
  }
  *ret_n = n * d.info->n_layers;
  return 0;
}

static maker maker_of(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_tune_workload_options *options, pst_error *err) {
  return (maker){.gateway = gateway,
                 .store = store,
                 .o = options,
                 .workload = workload,
                 .info = pst_evals_workload_info(workload),
                 .codes_note = PST_BUF_INIT,
                 .err = err};
}

static void maker_done(maker *m) {
  pst_engine_lora_done(&m->start);
  pst_engine_tokens_done(&m->scratch);
  pst_arena_free(m->thoughts);
  pst_engine_model_unref(m->model);
  pst_gateway_plan_unref(m->plan);
  pst_engine_codes_free(m->codes);
  pst_engine_codes_free(m->given);
  pst_buf_done(&m->codes_note);
  pst_free(m->ids);
  pst_free(m->coded);
  pst_free(m->texts);
  pst_free(m->starts);
  pst_free(m->items);
  pst_free(m->near);
}

int pst_tune_workload_look(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                           const pst_tune_workload_options *options, pst_tune_outlook *ret, pst_error *err) {
  maker m = maker_of(gateway, store, workload, options, err);
  pst_tune_workload_result r = {.plan_json = NULL};
  pst_tune_outlook look = {.n_texts = 0};
  int code = open_model(&m);
  m.few = true;
  if (!code) code = count_params(&m, &look.adapter_params);
  if (!code) code = make_texts(&m);
  if (!code) code = use_codes(&m);
  if (!code) code = find_speed(&m, &look.tokens_per_second);
  look.probed = !code && !(look.tokens_per_second > 0);
  if (look.probed) code = probe_speed(&m, &look.tokens_per_second);
  if (!code) {
    describe(&m, &r);
    look.n_texts = m.n_texts;
    look.prompt_tokens = r.prompt_tokens;
    look.answer_tokens = r.answer_tokens;
    look.n_codes = r.n_codes;
    look.plain_answer_tokens = r.plain_answer_tokens;
    *ret = look;
  }
  maker_done(&m);
  return code;
}

int pst_tune_workload(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_tune_workload_options *options, pst_tune_workload_result *ret_result, pst_error *err) {
  maker m = maker_of(gateway, store, workload, options, err);
  pst_tune_workload_result r = {.plan_json = NULL};
  pst_tune_options training = options->training;
  pst_engine_lora lora = {0};
  char checkpoint[4096];
  int code =
      options->name && !pst_store_adapter_name_valid(pst_str_from(options->name))
          ? pst_error_set(err, PST_E_BAD_INPUT, "name", "letters, digits, dots, dashes and underscores are wanted")
          : open_model(&m);
  if (!code) code = read_start(&m, &training);
  if (!code) code = make_texts(&m);
  if (!code) code = use_codes(&m);
  if (!code) code = checkpoint_path(&m, &training, checkpoint, sizeof checkpoint);
  if (!code) code = check_name(&m, checkpoint);
  if (!code) code = ask_teacher(&m);
  training.checkpoint = checkpoint;
  training.needs_answers = options->only_better;
  const pst_store_adapter_origin origin = origin_of(options);
  if (!code) code = pst_store_checkpoint_note(store, checkpoint, &origin, err);
  if (!code && (code = train(&m, &training, &lora, &r.report))) forget_withdrawn(&m, checkpoint);
  if (!code) describe(&m, &r);
  bool keep = !options->only_better || (r.report.best_step > 0 && r.report.best.n_asked);
  if (!code && keep) code = keep_adapter(&m, &lora, &r);
  if (!code && keep) code = keep_plan(&m, &r);
  if (!code) keep_speed(&m, r.report.tokens_per_second);
  if (!code && !options->leave_checkpoint)
    (void)remove(checkpoint);
  else if (!code && !(r.checkpoint = pst_strdup(checkpoint)))
    code = no_memory(&m);
  if (code)
    pst_tune_workload_result_done(&r);
  else
    *ret_result = r;
  pst_engine_lora_done(&lora);
  maker_done(&m);
  return code;
}

void pst_tune_workload_result_done(pst_tune_workload_result *result) {
  pst_free(result->plan_json);
  pst_free(result->checkpoint);
  *result = (pst_tune_workload_result){.plan_json = NULL};
}
