/* From the examples of a choice task to an encoder's adapter, and a classifier over what the encoder then makes of a text.
 *
 * The head begins at the mean vectors of the labels, so that the first step is that of a classifier by the nearest mean, and is trained together with the adapter. It goes into
 * the classifier's artefact, beside n-grams, which know words that the encoder takes for alike; how much each weighs, and what probabilities mean, is found on examples held out
 * from both, whole clusters of near-duplicates. Serving is then one pass of the encoder: nothing is generated. */
#include <stdlib.h>
#include <string.h>

#include "tune/keep.h"

/* Of a text longer than this the beginning is learned: training is for what messages have in common. */
enum { MOST_TOKENS = 256, MIN_TEXTS = 32, MIN_HELD_OUT = 16, AT_ONCE = 256 };

typedef struct maker {
  pst_gateway *gateway;
  pst_store *store;
  const pst_tune_encoder_options *o;
  const pst_evals_info *info;
  pst_gateway_engine_spec spec;
  pst_engine *engine;
  const pst_engine_model *model;
  size_t n_dims;
  pst_str *labels; /* [n_labels], ascending */
  size_t n_labels;
  const pst_evals_item **items; /* [n]: those to learn from, then those held out */
  size_t n, n_held_out, n_near;
  pst_engine_tokens tokens; /* of all texts, each with its label behind it */
  pst_tune_text *texts;     /* [n] */
  float *head;              /* [n_labels][n_dims] */
  char data[65];            /* SHA-256 over texts and labels */
  pst_error *err;
} maker;

static int no_memory(const maker *m) { return pst_error_set(m->err, PST_E_NOMEM, NULL, "no memory for the texts"); }

/* ---- the plan ---- */

/* The encoder's engine, and the classifier beside it. */
static int make_plan(const maker *m, const char *artefact, const char *adapter, pst_gateway_plan **ret_plan) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_begin_object(&w);
  pst_evals_plan_begin(m->info, &w);
  pst_json_key(&w, "engines");
  pst_json_begin_object(&w);
  pst_json_key(&w, "encoder");
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "model", m->spec.model);
  pst_json_member_cstr(&w, "sha256", m->spec.sha256);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  pst_json_key(&w, "root");
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "op", "classifier");
  pst_json_member_cstr(&w, "artefact", artefact);
  pst_json_member_cstr(&w, "engine", "encoder");
  pst_json_member_cstr(&w, "adapter", adapter);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  int code = pst_buf_status(&text) ? no_memory(m)
                                   : pst_gateway_plan_parse(pst_buf_str(&text), "the tuned plan", ret_plan, m->err);
  pst_buf_done(&text);
  return code;
}

static int open_encoder(maker *m) {
  m->spec = (pst_gateway_engine_spec){.name = "encoder", .weights = "shipped", .options = pst_engine_options_default()};
  m->spec.model = m->o->model;
  m->spec.sha256 = m->o->sha256;
  const pst_gateway_plan plan = {.engines = &m->spec, .n_engines = 1};
  int code = pst_gateway_engine_acquire(m->gateway, &plan, 0, &m->engine, m->err);
  if (code) return code;
  m->model = pst_engine_get_model(m->engine);
  m->n_dims = (size_t)pst_engine_model_get_info(m->model)->n_dims;
  return m->n_dims ? 0
                   : pst_error_set(m->err, PST_E_UNSUPPORTED, m->o->model,
                                   "generates text and makes no vectors; name an encoder");
}

/* ---- examples ---- */

static int by_bytes(const void *a, const void *b) {
  const pst_str *x = a, *y = b;
  return pst_str_compare(*x, *y);
}

static bool is_example(const maker *m, size_t i, const bool *near) {
  const pst_evals_item *item = &m->info->items[i];
  if (item->part != PST_EVALS_EXAMPLES || near[i]) return false;
  for (size_t k = 0; k < m->info->n_labels; k++)
    if (pst_str_equal(item->expected, m->info->labels[k])) return true;
  return false;
}

/* Those whose cluster's lot is below `share`, or the others. */
static void add_items(maker *m, const bool *near, double share, bool held_out) {
  for (size_t i = 0; i < m->info->n_items; i++) {
    const pst_evals_item *item = &m->info->items[i];
    bool lot = pst_tune_lot(m->o->training.seed, item) < share;
    if (lot == held_out && is_example(m, i, near)) m->items[m->n++] = item;
  }
}

static int find_labels(maker *m) {
  size_t n = 0;
  for (size_t i = 0; i < m->n; i++) m->labels[i] = m->items[i]->expected;
  qsort(m->labels, m->n, sizeof *m->labels, by_bytes);
  for (size_t i = 0; i < m->n; i++)
    if (!n || !pst_str_equal(m->labels[n - 1], m->labels[i])) m->labels[n++] = m->labels[i];
  m->n_labels = n;
  return n >= 2 ? 0
                : pst_error_set(m->err, PST_E_NO_DATA, m->info->folder,
                                "the examples bear %zu label: there is nothing to tell apart", n);
}

static int find_items(maker *m) {
  bool *near = pst_calloc(m->info->n_items + 1, sizeof *near);
  m->items = pst_calloc(m->info->n_items + 1, sizeof *m->items);
  m->labels = pst_calloc(m->info->n_items + 1, sizeof *m->labels);
  size_t n = 0;
  int code =
      near && m->items && m->labels ? pst_evals_guard_near(m->store, m->o->workload, near, m->err) : no_memory(m);
  for (size_t i = 0; i < m->info->n_items && !code; i++) {
    n += is_example(m, i, near);
    m->n_near += near[i];
  }
  if (!code) {
    double share = n ? PST_MIN(m->o->held_out_share, (double)m->o->max_held_out / (double)n) : 0;
    add_items(m, near, share, false);
    size_t n_learned = m->n;
    add_items(m, near, share, true);
    m->n_held_out = m->n - n_learned;
    if (n_learned < MIN_TEXTS || m->n_held_out < MIN_HELD_OUT)
      code = pst_error_set(m->err, PST_E_NO_DATA, m->info->folder,
                           "%zu examples to learn from and %zu held out are too few for an encoder: at least %d and %d "
                           "are needed",
                           n_learned, m->n_held_out, (int)MIN_TEXTS, (int)MIN_HELD_OUT);
  }
  pst_free(near);
  return code ? code : find_labels(m);
}

static size_t label_of(const maker *m, size_t i) {
  const pst_str *at = bsearch(&m->items[i]->expected, m->labels, m->n_labels, sizeof *m->labels, by_bytes);
  return (size_t)(at - m->labels);
}

/* The texts as the encoder reads them; of long ones the beginning, and the token that ends them all. */
static int make_texts(maker *m) {
  size_t *starts = pst_calloc(m->n + 1, sizeof *starts), most = MOST_TOKENS;
  int code = starts ? 0 : no_memory(m);
  m->texts = pst_calloc(m->n + 1, sizeof *m->texts);
  if (!m->texts && !code) code = no_memory(m);
  most = PST_MIN(most, (size_t)pst_engine_model_get_info(m->model)->n_ctx_train);
  for (size_t i = 0; i < m->n && !code; i++) {
    int32_t label = (int32_t)label_of(m, i);
    size_t from = starts[i] = m->tokens.n;
    code = pst_engine_embed_tokenize(m->model, m->items[i]->input, &m->tokens, m->err);
    if (!code && m->tokens.n - from > most) {
      m->tokens.ids[from + most - 1] = m->tokens.ids[m->tokens.n - 1];
      m->tokens.n = from + most;
    }
    if (!code) code = pst_engine_tokens_append(&m->tokens, &label, 1, m->err);
    starts[i + 1] = m->tokens.n;
  }
  for (size_t i = 0; i < m->n && !code; i++) {
    size_t n = starts[i + 1] - starts[i];
    m->texts[i] = (pst_tune_text){.tokens = m->tokens.ids + starts[i], .n = n, .n_given = n - 1, .weight = 1};
  }
  pst_free(starts);
  if (!code) pst_sha256_hex(m->tokens.ids, m->tokens.n * sizeof *m->tokens.ids, m->data);
  return code;
}

/* ---- the head's start ---- */

/* Adds the vectors of texts [first, first + n) to their labels' rows. */
static int add_vectors(maker *m, size_t first, size_t n, pst_engine_tokens *t, float *vectors) {
  size_t lengths[AT_ONCE];
  int code = 0;
  t->n = 0;
  for (size_t i = 0; i < n && !code; i++) {
    const pst_tune_text *x = &m->texts[first + i];
    lengths[i] = x->n - 1;
    code = pst_engine_tokens_append(t, x->tokens, lengths[i], m->err);
  }
  if (!code) code = pst_engine_embed_wait(m->engine, NULL, t->ids, lengths, n, vectors, m->err);
  for (size_t i = 0; i < n && !code; i++) {
    float *row = m->head + (size_t)m->texts[first + i].tokens[lengths[i]] * m->n_dims;
    for (size_t d = 0; d < m->n_dims; d++) row[d] += vectors[i * m->n_dims + d];
  }
  return code;
}

static int start_head(maker *m) {
  size_t n = m->n - m->n_held_out;
  pst_engine_tokens t = {NULL, 0, 0};
  float *vectors = pst_calloc(AT_ONCE * m->n_dims, sizeof *vectors);
  m->head = pst_calloc(m->n_labels * m->n_dims, sizeof *m->head);
  int code = vectors && m->head ? 0 : no_memory(m);
  for (size_t i = 0; i < n && !code; i += AT_ONCE) {
    if (m->o->training.cancelled && m->o->training.cancelled(m->o->training.user))
      code = pst_error_set(m->err, PST_E_CANCELLED, NULL, "training was stopped before its first step");
    else
      code = add_vectors(m, i, PST_MIN(n - i, (size_t)AT_ONCE), &t, vectors);
  }
  for (size_t k = 0; k < m->n_labels && !code; k++)
    (void)pst_engine_embedding_cut(m->head + k * m->n_dims, (int)m->n_dims, (int)m->n_dims);
  pst_engine_tokens_done(&t);
  pst_free(vectors);
  return code;
}

/* ---- training and what becomes of it ---- */

static int checkpoint_path(const maker *m, const pst_tune_options *t, char *out, size_t n) {
  pst_buf text = PST_BUF_INIT;
  pst_buf_printf(&text, "encoder %s %s %s %s %d %g %g %g %g %g %d %d %lld %g %d %llu", m->data, m->spec.sha256,
                 m->info->name, pst_tune_precision_name(t->precision), t->rank, t->alpha, t->learning_rate,
                 t->smoothing, t->dropout, t->adversary, t->batch_texts, t->max_epochs, (long long)t->steps, t->seconds,
                 t->evaluations, (unsigned long long)t->seed);
  int code =
      pst_buf_status(&text) ? no_memory(m) : pst_tune_checkpoint_path(m->store, pst_buf_str(&text), out, n, m->err);
  pst_buf_done(&text);
  return code;
}

static int keep_adapter(const maker *m, pst_engine_lora *lora, pst_tune_encoder_result *r) {
  char run[64];
  (void)snprintf(run, sizeof run, "labels, %lld steps, seed %llu", (long long)r->report.n_steps,
                 (unsigned long long)m->o->training.seed);
  pst_gateway_adapter adapter = {.model = m->o->model,
                                 .workload = m->info->name,
                                 .data = m->data,
                                 .run = run,
                                 .origin = {.data_set = m->o->data_set}};
  return pst_tune_adapter_keep(m->store, adapter, m->o->name, lora, &r->adapter, m->err);
}

static int keep_classifier(maker *m, pst_tune_encoder_result *r) {
  pst_classifier_record *records = pst_calloc(m->n, sizeof *records);
  pst_classifier *c = NULL;
  if (!records) return no_memory(m);
  for (size_t i = 0; i < m->n; i++)
    records[i] = (pst_classifier_record){.text = m->items[i]->input,
                                         .label = m->items[i]->expected,
                                         .group = m->items[i]->cluster,
                                         .held_out = i >= m->n - m->n_held_out};
  for (size_t i = 0; i < m->n_labels * m->n_dims; i++) m->head[i] *= PST_TUNE_HEAD_SCALE;
  pst_classifier_options o = {.threads = m->o->training.threads,
                              .head = m->head,
                              .cancelled = m->o->training.cancelled,
                              .user = m->o->training.user};
  int code = pst_gateway_classifier_build(m->gateway, &m->spec, r->adapter.file, records, m->n, &o, r->classifier, NULL,
                                          m->err);
  if (!code) code = pst_gateway_classifier_open(m->store, pst_str_from(r->classifier), &c, m->err);
  if (!code) {
    const pst_classifier_info *info = pst_classifier_get_info(c);
    r->accuracy = info->accuracy;
    r->log_loss = info->log_loss;
    r->calibration_error = info->calibration_error;
  }
  pst_classifier_free(c);
  pst_free(records);
  return code;
}

static int keep_plan(const maker *m, pst_tune_encoder_result *r) {
  pst_gateway_plan *plan = NULL;
  int code = make_plan(m, r->classifier, r->adapter.file, &plan);
  if (code) return code;
  code = pst_store_plan_put(m->store, pst_str_from(plan->json), pst_clock_unix_ms(), r->plan_hash, m->err);
  if (!code && !(r->plan_json = pst_strdup(plan->json))) code = no_memory(m);
  pst_gateway_plan_unref(plan);
  return code;
}

pst_tune_encoder_options pst_tune_encoder_options_default(void) {
  pst_tune_encoder_options o = {.held_out_share = 0.05, .max_held_out = 512, .training = pst_tune_options_default()};
  o.training.rank = 32;
  o.training.alpha = 64;
  o.training.batch_texts = 32;
  o.training.max_epochs = 4;
  o.training.evaluations = 8;
  o.training.smoothing = 0.1;
  o.training.dropout = 0.1;
  o.training.adversary = 0.1;
  o.training.patience = 0; /* the best comes with the end of the schedule */
  return o;
}

static int make(maker *m, pst_tune_encoder_result *r) {
  pst_tune_options training = m->o->training;
  pst_engine_lora lora = {0};
  char checkpoint[4096] = "";
  int code =
      m->o->name && !pst_store_adapter_name_valid(pst_str_from(m->o->name))
          ? pst_error_set(m->err, PST_E_BAD_INPUT, "name", "letters, digits, dots, dashes and underscores are wanted")
          : open_encoder(m);
  if (!code) code = find_items(m);
  if (!code) code = make_texts(m);
  if (!code) code = start_head(m);
  if (!code) code = checkpoint_path(m, &training, checkpoint, sizeof checkpoint);
  training.checkpoint = checkpoint;
  if (!code)
    code = pst_store_checkpoint_note(m->store, checkpoint, &(pst_store_adapter_origin){.data_set = m->o->data_set},
                                     m->err);
  size_t n = m->n - m->n_held_out;
  if (!code)
    code = pst_tune_train_encoder(m->model, m->texts, n, m->texts + n, m->n_held_out, m->n_labels, &training, m->head,
                                  &lora, &r->report, m->err);
  if (!code) code = keep_adapter(m, &lora, r);
  if (!code) code = keep_classifier(m, r);
  if (!code) code = keep_plan(m, r);
  bool withdrawn = m->o->data_set && pst_store_data_withdrawn(m->store, pst_str_from(m->o->data_set));
  if (!code && m->o->leave_checkpoint && !(r->checkpoint = pst_strdup(checkpoint))) code = no_memory(m);
  if (checkpoint[0] && (withdrawn || (!code && !m->o->leave_checkpoint))) (void)remove(checkpoint);
  r->n_texts = n;
  r->n_held_out = m->n_held_out;
  r->n_near = m->n_near;
  r->n_labels = m->n_labels;
  pst_engine_lora_done(&lora);
  return code;
}

int pst_tune_encoder(pst_gateway *gateway, pst_store *store, const pst_tune_encoder_options *options,
                     pst_tune_encoder_result *ret_result, pst_error *err) {
  maker m = {
      .gateway = gateway, .store = store, .o = options, .info = pst_evals_workload_info(options->workload), .err = err};
  pst_tune_encoder_result r = {.plan_json = NULL};
  int code = make(&m, &r);
  if (code)
    pst_tune_encoder_result_done(&r);
  else
    *ret_result = r;
  pst_gateway_engine_release(gateway, m.engine);
  pst_engine_tokens_done(&m.tokens);
  pst_free(m.labels);
  pst_free(m.items);
  pst_free(m.texts);
  pst_free(m.head);
  return code;
}

void pst_tune_encoder_result_done(pst_tune_encoder_result *result) {
  pst_free(result->plan_json);
  pst_free(result->checkpoint);
  *result = (pst_tune_encoder_result){.plan_json = NULL};
}
