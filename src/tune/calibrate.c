/* A model's weights rounded for a workload's traffic.
 *
 * Owns the order of things: the float model and its adapter, Gram matrices of the traffic, their factors, what each matrix costs in each type, the choice, the
 * file and its proof. How a matrix is rounded is feedback.c's business, how models are compared divergence.c's, who gets which type allocate.c's.
 *
 * What a type costs a matrix is what its rounding errors are said to cost by Gram matrices (gram.h), told from some rows. */
#include <penstock/tune.h>
#include <penstock/tune_calibrate.h>

#include <limits.h>
#include <math.h>
#include <string.h>

#include "tune/allocate.h"
#include "tune/divergence.h"
#include "tune/feedback.h"
#include "tune/gram.h"
#include "tune/keep.h"
#include "tune/kept.h"
#include "tune/scales.h"
#include "tune/whole.h"

const uint32_t pst_tune_calibrate_types[PST_TUNE_CALIBRATE_TYPES] = {
    PST_TYPE_Q3_K, PST_TYPE_IQ4_XS, PST_TYPE_IQ4_NL, PST_TYPE_Q4_0, PST_TYPE_Q4_K, PST_TYPE_Q4_1,
    PST_TYPE_Q5_0, PST_TYPE_Q5_K,   PST_TYPE_Q5_1,   PST_TYPE_Q6_K, PST_TYPE_Q8_0,
};

/* Errors of types are told from every so manieth row. */
enum { ROW_STEP = 8 };

/* What takes how long, in tokens of a forward pass: a matrix measured in all types, one rounded or a layer's Gram matrices factored, a token learned from, one of the traffic. Of SmolLM2-135M on two cores; for the time left. */
enum { MEASURED = 240, ROUNDED = 100, LEARNED = 2, READ = 2 };

/* Layers whose matrices are rounded side by side; what is added to the Gram matrices of outputs, in means of their diagonals. */
enum { COUPLED_LAYERS = 4 };
#define OUTPUT_DAMPING 1.0

/* What two runs must have in common for one to go on from the other: grows when the same traffic gives another file. */
#define VERSION 1
static const char rounded_kind[8] = "pstrnd_1";

typedef struct proof {
  pst_tune_judge held_out, general;
} proof;

/* A matrix of the file that is rounded. */
typedef struct matrix {
  char name[48];
  size_t n_rows, n_cols;
  const float *w, *feedback;
  const float *outputs;   /* NULL: rows are rounded each for itself */
  const float **slots[2]; /* where the trial model points to it; NULL: none */
  pst_tune_choice choice; /* losses: nats a token */
  uint8_t *out;           /* rounded to the chosen type */
} matrix;

typedef struct calibration {
  const pst_tune_calibrate_options *o;
  pst_tune_whole whole;
  pst_tune_model trial; /* the whole's with layers of its own, whose weights are exchanged */
  pst_tune_grams grams;
  matrix *matrices;
  size_t n_matrices;
  proof proof;
  char key[65];                       /* of what the run is */
  char rounded[4096], learning[4096]; /* files to go on from; empty: none */
  int64_t n_done;
} calibration;

pst_tune_calibrate_options pst_tune_calibrate_options_default(void) {
  return (pst_tune_calibrate_options){.bits = 4.6, .damping = 0.01, .feedback = true, .max_tokens = 512, .rate = 1e-4};
}

static int tell(calibration *c, const char *what, int64_t n, pst_error *err) {
  c->n_done += n;
  if (c->o->progress) {
    pst_progress_note(c->o->progress, "%s", what);
    pst_progress_update(c->o->progress, c->n_done);
  }
  if (c->o->cancelled && c->o->cancelled(c->o->user)) return pst_error_set(err, PST_E_CANCELLED, NULL, "cancelled");
  return 0;
}

static void done(calibration *c) {
  for (size_t i = 0; i < c->n_matrices; i++) pst_free(c->matrices[i].out);
  pst_free(c->matrices);
  pst_free(c->trial.layers);
  pst_tune_grams_done(&c->grams);
  pst_tune_judge_done(&c->proof.held_out);
  pst_tune_judge_done(&c->proof.general);
  pst_tune_whole_done(&c->whole);
}

/* ---- matrices ---- */

static void offer_types(matrix *x) {
  for (int t = 0; t < PST_TUNE_CALIBRATE_TYPES; t++) {
    uint32_t type = pst_tune_calibrate_types[t];
    size_t bytes = pst_kernels_row_bytes(type, x->n_cols);
    if (bytes) x->choice.offers[x->choice.n++] = (pst_tune_offer){type, (int64_t)(bytes * x->n_rows), 0};
  }
}

static matrix *add_matrix(calibration *c, const char *name, size_t n_rows, size_t n_cols, const float **slot) {
  matrix *x = &c->matrices[c->n_matrices++];
  (void)snprintf(x->name, sizeof x->name, "%s", name);
  x->n_rows = n_rows;
  x->n_cols = n_cols;
  x->w = *slot;
  x->slots[0] = slot;
  offer_types(x);
  return x;
}

/* A layer's roles one behind the other, the embedding and the head last. */
static int list_matrices(calibration *c, pst_error *err) {
  const pst_tune_model *m = &c->whole.model;
  c->matrices = pst_calloc(m->n_layers * PST_ENGINE_ROLE_COUNT + 2, sizeof *c->matrices);
  c->trial = *m;
  c->trial.layers = pst_malloc(m->n_layers * sizeof *m->layers);
  if (!c->matrices || !c->trial.layers)
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a table of matrices");
  memcpy(c->trial.layers, m->layers, m->n_layers * sizeof *m->layers);
  for (size_t i = 0; i < m->n_layers; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
      char name[48];
      pst_tune_linear *l = &c->trial.layers[i].linear[r];
      (void)snprintf(name, sizeof name, "blk.%zu.%s.weight", i, pst_engine_role_name((pst_engine_role)r));
      add_matrix(c, name, l->n_out, l->n_in, &l->w);
    }
  matrix *x = add_matrix(c, "token_embd.weight", m->n_vocab, m->n_embd, &c->trial.embedding);
  if (m->head == m->embedding)
    x->slots[1] = &c->trial.head;
  else
    add_matrix(c, "output.weight", m->n_vocab, m->n_embd, &c->trial.head);
  for (size_t i = 0; i < c->n_matrices; i++)
    if (!c->matrices[i].choice.n)
      return pst_error_set(err, PST_E_UNSUPPORTED, c->matrices[i].name, "rows of %zu are no multiple of 32",
                           c->matrices[i].n_cols);
  return 0;
}

/* ---- memory ---- */

static int refuse_memory(double bytes, const char *what, pst_error *err) {
  double available = (double)pst_memory_available();
  if (bytes <= available) return 0;
  return pst_error_set(err, PST_E_NOMEM, NULL,
                       "calibration takes about %.1f GB of memory for %s, and %.1f GB are free; end what else runs, "
                       "calibrate a smaller model, or lower --at-once",
                       bytes / 1e9, what, available / 1e9);
}

/* What every run takes: the float model with its work space, and another of its weights in float beside it. */
static int check_memory(const char *in_path, const pst_tune_calibrate_options *o, pst_error *err) {
  pst_engine_model *model = NULL;
  pst_tune_options net = pst_tune_options_for(PST_TUNE_SFT);
  int64_t bytes = 0;
  net.precision = PST_TUNE_FLOAT;
  net.roles = 0;
  net.rank = 0;
  net.max_tokens = (int)PST_MIN(o->max_tokens, (size_t)INT_MAX);
  int code = pst_engine_model_open(in_path, o->threads, &model, err);
  if (code) return code;
  double weights = 4 * (double)pst_engine_model_get_info(model)->n_params;
  code = pst_tune_memory(model, &net, &bytes, err);
  pst_engine_model_unref(model); /* before the question: its memory is free again */
  return code ? code : refuse_memory((double)bytes + weights, "the float model and the rounded one", err);
}

/* What those take beside that who have not rounded yet. */
static double grams_bytes(const pst_tune_model *m) {
  double floats = (m->head == m->embedding ? 1 : 2) * (double)pst_tune_gram_floats(m->n_embd);
  for (size_t i = 0; i < m->n_layers; i++) {
    for (int g = 0; g < PST_TUNE_GROUP_COUNT; g++)
      floats += (double)pst_tune_gram_floats(pst_tune_group_inputs(&m->layers[i], (pst_tune_group)g));
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++)
      floats += (double)pst_tune_gram_floats(m->layers[i].linear[r].n_out);
  }
  return floats * sizeof(float);
}

/* Gram matrices, and matrices that know theirs. */
static int make_grams(calibration *c, pst_error *err) {
  const pst_tune_model *m = &c->whole.model;
  size_t n = m->n_layers * PST_ENGINE_ROLE_COUNT;
  double rounded = (1 + c->o->bits / 32) * (double)m->bytes; /* in float, and as the file has it */
  int code = refuse_memory(grams_bytes(m) + rounded, "the traffic's Gram matrices and the rounded model", err);
  if (!code) code = pst_tune_grams_create(c->whole.net, &c->grams, err);
  if (code) return code;
  for (size_t i = 0; i < n; i++) {
    pst_engine_role role = (pst_engine_role)(i % PST_ENGINE_ROLE_COUNT);
    c->matrices[i].feedback = c->grams.inputs[i / PST_ENGINE_ROLE_COUNT][pst_tune_group_of(role)];
    c->matrices[i].outputs = c->grams.outputs[i / PST_ENGINE_ROLE_COUNT][role];
  }
  c->matrices[n].feedback = c->grams.embedding;
  if (n + 1 < c->n_matrices) c->matrices[n + 1].feedback = c->grams.head;
  return 0;
}

/* ---- rounding one ---- */

static int explain(int code, const matrix *x, pst_error *err) {
  if (code == PST_E_BAD_INPUT) return pst_error_set(err, code, x->name, "holds a weight that is not finite");
  if (code == PST_E_LIMIT) return pst_error_set(err, code, x->name, "holds a weight that is too large for its type");
  return pst_error_set(err, code, x->name, "no memory to round it");
}

static pst_tune_rounding rounding_of(const matrix *x, uint32_t type, bool with_feedback, uint8_t *out) {
  return (pst_tune_rounding){.type = type,
                             .n_rows = x->n_rows,
                             .n_cols = x->n_cols,
                             .w = x->w,
                             .feedback = with_feedback ? x->feedback : NULL,
                             .outputs = with_feedback ? x->outputs : NULL,
                             .out = out};
}

static int round_matrix(calibration *c, const matrix *x, uint32_t type, bool with_feedback, size_t row_step,
                        uint8_t *out, double *ret_error, pst_error *err) {
  pst_tune_rounding r = rounding_of(x, type, with_feedback, out);
  r.row_step = row_step;
  int code = pst_tune_round(c->whole.team, &r);
  if (code) return explain(code, x, err);
  if (ret_error) *ret_error = r.error;
  return 0;
}

static void read_rounded(const matrix *x, uint32_t type, const uint8_t *rows, float *ret_floats) {
  size_t bytes = pst_kernels_row_bytes(type, x->n_cols);
  for (size_t r = 0; r < x->n_rows; r++)
    (void)pst_kernels_dequantize_row(type, rows + r * bytes, x->n_cols, ret_floats + r * x->n_cols);
}

static void point(matrix *x, const float *w) {
  for (int s = 0; s < 2; s++)
    if (x->slots[s]) *x->slots[s] = w;
}

/* ---- steps ---- */

static int capture(calibration *c, const pst_tune_traffic *traffic, pst_error *err) {
  pst_tune_batch *batches = NULL;
  size_t n = 0;
  int code = pst_tune_traffic_batches(traffic, 0, c->whole.net->max_tokens, c->whole.net->max_position, true, &batches,
                                      &n, err);
  for (size_t i = 0; i < n && !code; i++) {
    pst_tune_grams_add(&c->grams, c->whole.net, &batches[i]);
    code = tell(c, "reading traffic", READ * (int64_t)batches[i].n_tokens, err);
  }
  pst_tune_batches_free(batches, n);
  return code;
}

/* Gram matrices of a layer: of inputs, then of outputs. Behind the last layer stand the head's and, where it is another, the embedding's. */
enum { FACTORED = PST_TUNE_GROUP_COUNT + PST_ENGINE_ROLE_COUNT };

typedef struct factoring {
  calibration *c;
  size_t layer;
  int codes[FACTORED];
} factoring;

static void factor_piece(void *arg, size_t piece, void *scratch) {
  factoring *f = arg;
  const pst_tune_grams *g = &f->c->grams;
  bool is_head = f->layer == g->n_layers, is_input = piece < PST_TUNE_GROUP_COUNT;
  double damping = f->c->o->damping;
  float *gram = piece ? g->embedding : g->head;
  size_t n = g->n_embd;
  if (!is_head && is_input) {
    gram = g->inputs[f->layer][piece];
    n = g->width[piece];
  } else if (!is_head) {
    size_t role = piece - PST_TUNE_GROUP_COUNT;
    gram = g->outputs[f->layer][role];
    n = f->c->whole.model.layers[f->layer].linear[role].n_out;
    damping = OUTPUT_DAMPING;
  }
  double *work = pst_malloc(pst_tune_feedback_work(n) * sizeof *work);
  (void)scratch;
  f->codes[piece] = work ? pst_tune_feedback_make(gram, n, damping, work) : PST_E_NOMEM;
  pst_free(work);
}

/* Gram matrices become feedback: a layer's side by side. */
static int factor_all(calibration *c, pst_error *err) {
  factoring f = {.c = c};
  for (; f.layer <= c->grams.n_layers; f.layer++) {
    size_t n = f.layer < c->grams.n_layers ? FACTORED : c->grams.embedding == c->grams.head ? 1 : 2;
    pst_tune_team_run(c->whole.team, n, factor_piece, &f);
    for (size_t i = 0; i < n; i++) {
      if (f.codes[i] == PST_E_NOMEM) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to factor Gram matrices");
      if (f.codes[i])
        return pst_error_set(err, f.codes[i], NULL,
                             "the traffic drives layer %zu of %zu (the head is the last) to values that are not finite",
                             f.layer + 1, c->grams.n_layers + 1);
    }
    int code = tell(c, "factoring", ROUNDED, err);
    if (code) return code;
  }
  return 0;
}

/* The squared error of a matrix in one token's predictions is its rounding error over this. */
static double tokens_of(const calibration *c, const matrix *x) {
  double n_scores = (double)PST_MAX(c->grams.n_scores, 1);
  return n_scores * (x->outputs ? (1 + OUTPUT_DAMPING) * (double)c->grams.n_tokens : (double)x->n_rows);
}

/* What offers cost, told from some rows. */
static int probe(calibration *c, matrix *x, pst_error *err) {
  int code = 0;
  uint8_t *out = pst_malloc((x->n_rows + ROW_STEP - 1) / ROW_STEP * x->n_cols * sizeof(float)); /* no type takes more */
  if (!out) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to round a matrix");
  for (int t = 0; t < x->choice.n && !code; t++) {
    pst_tune_offer *o = &x->choice.offers[t];
    code = round_matrix(c, x, o->type, true, ROW_STEP, out, &o->loss, err);
    o->loss /= 2 * tokens_of(c, x);
  }
  pst_free(out);
  return code;
}

static int probe_all(calibration *c, pst_error *err) {
  int code = 0;
  for (size_t i = 0; i < c->n_matrices && !code; i++) {
    code = probe(c, &c->matrices[i], err);
    if (!code) code = tell(c, "measuring matrices", MEASURED, err);
  }
  return code;
}

/* What the file takes with all matrices in their smallest types; fewer bits are refused. */
static int measure_smallest(calibration *c, const char *in_path, pst_tune_calibrate_report *report, pst_error *err) {
  pst_engine_tensor *given = pst_calloc(c->n_matrices, sizeof *given);
  int code = given ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory to choose types");
  for (size_t i = 0; i < c->n_matrices && !code; i++) {
    const matrix *x = &c->matrices[i];
    given[i] =
        (pst_engine_tensor){x->name, x->choice.offers[pst_tune_cheapest(&x->choice)].type, x->n_rows, x->n_cols, NULL};
  }
  if (!code) code = pst_engine_replace_measure(in_path, NULL, 0, &report->source_bytes, &report->elements, err);
  if (!code) code = pst_engine_replace_measure(in_path, given, c->n_matrices, &report->bytes, &report->elements, err);
  pst_free(given);
  if (code || c->o->bits * (double)report->elements / 8 >= (double)report->bytes) return code;
  return pst_error_set(err, PST_E_LIMIT, "bits", "%g bits a weight are too few: the smallest types take %.4f",
                       c->o->bits, (double)report->bytes * 8 / (double)report->elements);
}

static int choose(calibration *c, pst_tune_calibrate_report *report, pst_error *err) {
  int64_t smallest = 0, budget = (int64_t)floor(c->o->bits * (double)report->elements / 8) - report->bytes;
  pst_tune_choice *choices = pst_calloc(c->n_matrices, sizeof *choices);
  if (!choices) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to choose types");
  for (size_t i = 0; i < c->n_matrices; i++) {
    choices[i] = c->matrices[i].choice;
    smallest += choices[i].offers[pst_tune_cheapest(&choices[i])].bytes;
  }
  (void)pst_tune_allocate(choices, c->n_matrices, smallest + budget); /* measure_smallest saw that these fit */
  report->bytes -= smallest;
  report->predicted = 0;
  for (size_t i = 0; i < c->n_matrices; i++) {
    const pst_tune_offer *o = &choices[i].offers[choices[i].chosen];
    c->matrices[i].choice = choices[i];
    report->predicted += o->loss;
    report->bytes += o->bytes;
    for (int t = 0; t < PST_TUNE_CALIBRATE_TYPES; t++) report->n_matrices[t] += pst_tune_calibrate_types[t] == o->type;
  }
  report->bits = (double)report->bytes * 8 / (double)report->elements;
  pst_free(choices);
  return 0;
}

static const pst_tune_offer *chosen(const matrix *x) { return &x->choice.offers[x->choice.chosen]; }

/* Matrices [first, first + n) of the layers, together. */
static int round_coupled(calibration *c, size_t first, size_t n, pst_error *err) {
  pst_tune_rounding list[PST_ENGINE_ROLE_COUNT * COUPLED_LAYERS];
  size_t failed = 0;
  for (size_t i = 0; i < n; i++) {
    const matrix *x = &c->matrices[first + i];
    list[i] = rounding_of(x, chosen(x)->type, true, x->out);
  }
  int code = pst_tune_round_coupled(c->whole.team, list, n, &failed);
  return code ? explain(code, &c->matrices[first + failed], err) : tell(c, "rounding", ROUNDED * (int64_t)n, err);
}

/* All matrices in their types, into x->out. */
static int round_all(calibration *c, bool with_feedback, pst_error *err) {
  int code = 0;
  for (size_t i = 0; i < c->n_matrices; i++) {
    matrix *x = &c->matrices[i];
    if (!x->out) x->out = pst_malloc((size_t)chosen(x)->bytes);
    if (!x->out) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the rounded model");
  }
  for (size_t i = 0, n = 1; i < c->n_matrices && !code; i += n) {
    matrix *x = &c->matrices[i];
    n = 1;
    if (with_feedback && x->outputs) {
      n = PST_MIN((size_t)PST_ENGINE_ROLE_COUNT * COUPLED_LAYERS, c->whole.model.n_layers * PST_ENGINE_ROLE_COUNT - i);
      code = round_coupled(c, i, n, err);
      continue;
    }
    code = round_matrix(c, x, chosen(x)->type, with_feedback, 1, x->out, NULL, err);
    if (!code) code = tell(c, "rounding", ROUNDED, err);
  }
  return code;
}

static int write_file(calibration *c, const char *in_path, const char *out_path, pst_error *err) {
  pst_engine_tensor *given = pst_calloc(c->n_matrices, sizeof *given);
  if (!given) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a table of matrices");
  for (size_t i = 0; i < c->n_matrices; i++) {
    const matrix *x = &c->matrices[i];
    given[i] = (pst_engine_tensor){x->name, chosen(x)->type, x->n_rows, x->n_cols, x->out};
  }
  int code = pst_engine_replace(in_path, out_path, given, c->n_matrices, c->o->adapter, err);
  pst_free(given);
  return code;
}

/* ---- proof ---- */

static int proof_create(calibration *c, const pst_tune_texts *texts, pst_error *err) {
  proof *p = &c->proof;
  int code = pst_tune_judge_create(c->whole.net, &c->whole.model, texts->held_out, 0, false, &p->held_out, err);
  if (!code && texts->general)
    code = pst_tune_judge_create(c->whole.net, &c->whole.model, texts->general, 0, false, &p->general, err);
  return code;
}

static void measure(proof *p, const pst_tune_model *model, pst_tune_divergence *ret_held_out,
                    pst_tune_divergence *ret_general) {
  *ret_held_out = pst_tune_judge_run(&p->held_out, model);
  if (p->general.n_rows) *ret_general = pst_tune_judge_run(&p->general, model);
}

/* The trial model becomes the rounded one, all in float; put_back ends that. PST_E_NOMEM. */
static int become_rounded(calibration *c, float **ret_floats, pst_error *err) {
  size_t n = 0, at = 0;
  for (size_t i = 0; i < c->n_matrices; i++) n += c->matrices[i].n_rows * c->matrices[i].n_cols;
  float *floats = *ret_floats = pst_malloc(n * sizeof *floats);
  if (!floats) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the rounded model");
  for (size_t i = 0; i < c->n_matrices; i++) {
    matrix *x = &c->matrices[i];
    read_rounded(x, chosen(x)->type, x->out, floats + at);
    point(x, floats + at);
    at += x->n_rows * x->n_cols;
  }
  return 0;
}

static void put_back(calibration *c, float *floats) {
  for (size_t i = 0; i < c->n_matrices; i++) point(&c->matrices[i], c->matrices[i].w);
  pst_free(floats);
}

/* The same types without calibration. */
static int measure_plain(calibration *c, pst_tune_calibrate_report *report, pst_error *err) {
  float *floats = NULL;
  int code = round_all(c, false, err);
  if (!code) code = become_rounded(c, &floats, err);
  if (code) return code;
  measure(&c->proof, &c->trial, &report->plain, &report->plain_general);
  put_back(c, floats);
  return 0;
}

static bool told_step(void *user, int64_t n_tokens, double divergence) {
  calibration *c = user;
  char what[64];
  (void)snprintf(what, sizeof what, "scales learn, divergence %.5f", divergence);
  return tell(c, what, LEARNED * n_tokens, NULL) != 0;
}

static void skipped_steps(void *user, int64_t n_tokens) {
  calibration *c = user;
  if (c->o->progress) c->o->progress->total -= LEARNED * n_tokens;
}

/* The layers' scales learn from the float model; list_matrices has a layer's roles one behind the other. */
static int learn_scales(calibration *c, const pst_tune_traffic *traffic, const pst_tune_traffic *search,
                        pst_tune_calibrate_report *report, pst_error *err) {
  const pst_tune_lessons lessons = {.traffic = traffic,
                                    .search = search,
                                    .rate = c->o->rate,
                                    .told = told_step,
                                    .skipped = skipped_steps,
                                    .user = c,
                                    .checkpoint = c->learning[0] ? c->learning : NULL,
                                    .key = c->key};
  pst_tune_learned learned = {0};
  size_t n = c->whole.model.n_layers * PST_ENGINE_ROLE_COUNT;
  float *floats = NULL;
  pst_tune_scaled *list = pst_calloc(n, sizeof *list);
  int code = list ? become_rounded(c, &floats, err) : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a table");
  for (size_t i = 0; i < n && !code; i++) {
    const matrix *x = &c->matrices[i];
    list[i] = (pst_tune_scaled){i / PST_ENGINE_ROLE_COUNT, (int)(i % PST_ENGINE_ROLE_COUNT), chosen(x)->type,
                                floats + (*x->slots[0] - floats), x->out};
  }
  if (!code) code = pst_tune_scales_learn(&c->whole, &c->trial, list, n, &lessons, &learned, err);
  if (!code) {
    report->search_before = learned.before;
    report->search_after = learned.after;
    report->seconds += learned.seconds;
  }
  if (floats) put_back(c, floats);
  pst_free(list);
  return code;
}

/* ---- from an earlier run, for a later one ---- */

static void hash_traffic(pst_sha256 *s, const pst_tune_traffic *t) {
  const pst_tune_traffic none = {0};
  if (!t) t = &none;
  pst_sha256_update(s, &t->n_texts, sizeof t->n_texts);
  if (t->n_tokens) pst_sha256_update(s, t->tokens, t->n_tokens * sizeof *t->tokens);
  if (t->n_texts) pst_sha256_update(s, t->texts, t->n_texts * sizeof *t->texts);
}

/* Files of a run are found by what it is: options that count, texts, and the model by a row of each matrix. */
static int name_files(calibration *c, const pst_tune_texts *texts, pst_error *err) {
  const pst_tune_calibrate_options *o = c->o;
  const double numbers[] = {VERSION, o->bits, o->damping, o->feedback, (double)o->max_tokens, o->rate};
  const pst_tune_traffic *const all[] = {texts->traffic, texts->lessons, texts->search, texts->held_out,
                                         texts->general};
  char question[80];
  uint8_t sum[32];
  pst_sha256 s;
  if (!o->store) return 0;
  pst_sha256_init(&s);
  pst_sha256_update(&s, numbers, sizeof numbers);
  for (size_t i = 0; i < PST_ARRAY_LEN(all); i++) hash_traffic(&s, all[i]);
  for (size_t i = 0; i < c->n_matrices; i++)
    pst_sha256_update(&s, c->matrices[i].w, c->matrices[i].n_cols * sizeof(float));
  pst_sha256_done(&s, sum);
  pst_hex(sum, sizeof sum, c->key);
  (void)snprintf(question, sizeof question, "rounded %s", c->key);
  int code = pst_tune_checkpoint_path(o->store, pst_str_from(question), c->rounded, sizeof c->rounded, err);
  (void)snprintf(question, sizeof question, "learning %s", c->key);
  return code ? code : pst_tune_checkpoint_path(o->store, pst_str_from(question), c->learning, sizeof c->learning, err);
}

/* What was found on the way, what was chosen for each matrix, and all their rows. */
static int keep_rounded(const calibration *c, const pst_tune_calibrate_report *report, pst_error *err) {
  if (!c->rounded[0]) return 0;
  size_t n = c->n_matrices;
  int *choices = pst_calloc(n, sizeof *choices);
  pst_str *parts = pst_calloc(n + 2, sizeof *parts);
  int code = choices && parts ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory to keep the rounded model");
  if (!code) {
    parts[0] = (pst_str){(const char *)report, sizeof *report};
    parts[1] = (pst_str){(const char *)choices, n * sizeof *choices};
    for (size_t i = 0; i < n; i++) {
      choices[i] = c->matrices[i].choice.chosen;
      parts[i + 2] = (pst_str){(const char *)c->matrices[i].out, (size_t)chosen(&c->matrices[i])->bytes};
    }
    code = pst_tune_kept_write(c->rounded, rounded_kind, c->key, parts, n + 2, err);
  }
  pst_free(choices);
  pst_free(parts);
  return code;
}

/* Whether it holds what keep_rounded writes of these matrices: the same question asked of a program with another idea of a report or of types does not. */
static bool is_whole(const calibration *c, const pst_tune_kept *kept) {
  size_t n = sizeof(pst_tune_calibrate_report) + c->n_matrices * sizeof(int);
  if (kept->n < n) return false;
  const int *choices = (const int *)(const void *)(kept->data + sizeof(pst_tune_calibrate_report));
  for (size_t i = 0; i < c->n_matrices; i++) {
    const pst_tune_choice *of = &c->matrices[i].choice;
    if (choices[i] < 0 || choices[i] >= of->n) return false;
    n += (size_t)of->offers[choices[i]].bytes;
  }
  return kept->n == n;
}

/* What an earlier run had rounded. */
static int take_rounded(calibration *c, bool *ret_found, pst_tune_calibrate_report *report, pst_error *err) {
  pst_tune_kept kept;
  *ret_found = false;
  if (!c->rounded[0]) return 0;
  int code = pst_tune_kept_open(c->rounded, rounded_kind, c->key, ret_found, &kept, err);
  if (*ret_found && !is_whole(c, &kept)) {
    pst_log(PST_LOG_INFO, "event=checkpoint_passed_over path=%s reason=\"it is of another size\"", c->rounded);
    pst_tune_kept_close(&kept);
    *ret_found = false;
  }
  if (!*ret_found) return code;
  const int *choices = (const int *)(const void *)(kept.data + sizeof *report);
  size_t at = sizeof *report + c->n_matrices * sizeof *choices;
  memcpy(report, kept.data, sizeof *report);
  for (size_t i = 0; i < c->n_matrices && !code; i++) {
    matrix *x = &c->matrices[i];
    x->choice.chosen = choices[i];
    size_t bytes = (size_t)chosen(x)->bytes;
    x->out = pst_malloc(bytes);
    if (!x->out) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the rounded model");
    if (!code) memcpy(x->out, kept.data + at, bytes);
    at += bytes;
  }
  pst_tune_kept_close(&kept);
  return code;
}

/* ---- all of it ---- */

static int64_t rounding_work(const calibration *c, const pst_tune_traffic *traffic) {
  return READ * (int64_t)(traffic->n_tokens - traffic->n_texts) + ROUNDED * (int64_t)(c->whole.model.n_layers + 1) +
         (MEASURED + 2 * ROUNDED) * (int64_t)c->n_matrices;
}

/* Matrices rounded for the traffic; how they compare with plain ones. */
static int round_for(calibration *c, const pst_tune_traffic *traffic, pst_tune_calibrate_report *report,
                     pst_error *err) {
  int64_t start = pst_clock_us();
  int code = make_grams(c, err);
  if (!code) code = capture(c, traffic, err);
  report->n_calibration_tokens = c->grams.n_tokens;
  if (!code) code = factor_all(c, err);
  if (!code) code = probe_all(c, err);
  if (!code) code = choose(c, report, err);
  if (!code) code = measure_plain(c, report, err);
  if (!code) code = round_all(c, c->o->feedback, err);
  report->seconds = (double)(pst_clock_us() - start) / 1e6;
  return code ? code : keep_rounded(c, report, err);
}

static int write_and_measure(calibration *c, const char *in_path, const char *out_path,
                             pst_tune_calibrate_report *report, pst_error *err) {
  pst_tune_model written = {0};
  int code = write_file(c, in_path, out_path, err);
  if (!code) code = pst_tune_load_float(out_path, NULL, c->o->threads, &written, err);
  if (code) return code;
  measure(&c->proof, &written, &report->held_out, &report->general);
  pst_tune_model_done(&written);
  return 0;
}

static int check_options(const pst_tune_calibrate_options *o, pst_error *err) {
  if (!(o->bits > 0 && o->bits <= 32)) return pst_error_set(err, PST_E_BAD_INPUT, "bits", "bits a weight are above 0");
  if (!(o->damping > 0 && o->damping <= 1))
    return pst_error_set(err, PST_E_BAD_INPUT, "damping", "damping is above 0 and at most 1");
  if (!(o->rate > 0 && o->rate <= 1))
    return pst_error_set(err, PST_E_BAD_INPUT, "rate", "the rate at which scales learn is above 0 and at most 1");
  if (o->max_tokens < 2)
    return pst_error_set(err, PST_E_BAD_INPUT, "max_tokens", "the model reads at least 2 tokens at once");
  return 0;
}

/* A text that does not fit is told before the work that it would end: the longest of all, so that what takes it takes the others too. */
static int check_texts(const pst_tune_texts *t, size_t max_tokens, pst_error *err) {
  const struct {
    const pst_tune_traffic *traffic;
    const char *what;
    bool needed;
  } sets[] = {{t->traffic, "texts to calibrate on", true},
              {t->lessons, "examples to learn from", t->lessons != NULL},
              {t->search, "items of the part search", t->lessons != NULL},
              {t->held_out, "items held out", true},
              {t->general, "pieces of the general text", t->general != NULL}};
  size_t longest = 0, most = 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(sets); i++) {
    size_t n = sets[i].needed && sets[i].traffic ? pst_tune_traffic_longest(sets[i].traffic) : 0;
    if (sets[i].needed && !n) return pst_error_set(err, PST_E_NO_DATA, NULL, "there are no %s", sets[i].what);
    if (n > most) longest = i;
    most = PST_MAX(most, n);
  }
  return pst_tune_traffic_check(sets[longest].traffic, sets[longest].what, max_tokens, err);
}

int pst_tune_calibrate(const char *in_path, const char *out_path, const pst_tune_texts *texts,
                       const pst_tune_calibrate_options *options, pst_tune_calibrate_report *ret_report,
                       pst_error *err) {
  const pst_tune_traffic *lessons = texts->lessons;
  calibration c = {.o = options};
  pst_tune_calibrate_report report = {.held_out = {NAN, NAN, NAN, 0, 0}, .general = {NAN, NAN, NAN, 0, 0}};
  report.plain = report.plain_general = report.general;
  report.search_before = report.search_after = NAN;
  bool found = false;
  int code = check_options(options, err);
  if (!code) code = check_texts(texts, options->max_tokens, err);
  if (!code) code = check_memory(in_path, options, err);
  if (!code)
    code = pst_tune_whole_open(in_path, options->adapter, options->threads, options->max_tokens, &c.whole, err);
  if (!code) code = list_matrices(&c, err);
  if (!code) code = measure_smallest(&c, in_path, &report, err);
  if (!code) code = name_files(&c, texts, err);
  if (!code) code = take_rounded(&c, &found, &report, err);
  if (!code && options->progress) {
    options->progress->total = found ? 0 : rounding_work(&c, texts->traffic);
    if (lessons) options->progress->total += LEARNED * (int64_t)(lessons->n_tokens - lessons->n_texts);
  }
  if (!code) code = proof_create(&c, texts, err);
  if (!code && !found) code = round_for(&c, texts->traffic, &report, err);
  pst_tune_grams_done(&c.grams);
  int64_t start = pst_clock_us();
  if (!code && lessons) code = learn_scales(&c, lessons, texts->search, &report, err);
  if (!code) code = write_and_measure(&c, in_path, out_path, &report, err);
  if (!code && options->store) {
    (void)remove(c.rounded);
    (void)remove(c.learning);
  }
  done(&c);
  if (code) return code;
  report.seconds += (double)(pst_clock_us() - start) / 1e6;
  *ret_report = report;
  return 0;
}

/* ---- other files ---- */

static int check_shapes(const pst_engine_model_info *of, const pst_engine_model_info *other, pst_error *err) {
  if (other->n_layers <= of->n_layers && other->n_embd == of->n_embd && other->n_ff == of->n_ff &&
      other->n_vocab == of->n_vocab && other->n_heads == of->n_heads && other->n_kv_heads == of->n_kv_heads &&
      other->head_dim == of->head_dim)
    return 0;
  return pst_error_set(err, PST_E_BAD_INPUT, other->path, "is a model of other shapes than %s", of->path);
}

int pst_tune_diverge_check(const char *in_path, const char *path, pst_error *err) {
  pst_engine_model *in = NULL, *other = NULL;
  pst_engine_decoder d;
  int code = pst_engine_model_open(path, 0, &other, err);
  if (!code) code = pst_engine_decoder_get(other, &d, err);
  if (!code) code = pst_engine_model_open(in_path, 0, &in, err);
  if (!code) code = check_shapes(pst_engine_model_get_info(in), pst_engine_model_get_info(other), err);
  pst_engine_model_unref(in);
  pst_engine_model_unref(other);
  return code;
}

int pst_tune_diverge(const char *in_path, const char *adapter, const char *path, const pst_tune_traffic *traffic,
                     const pst_tune_calibrate_options *options, pst_tune_divergence *ret_divergence, pst_error *err) {
  calibration c = {.o = options};
  pst_tune_model other = {0};
  pst_tune_judge judge = {0};
  int code = pst_tune_diverge_check(in_path, path, err);
  if (!code) code = pst_tune_whole_open(in_path, adapter, options->threads, options->max_tokens, &c.whole, err);
  if (!code) code = pst_tune_judge_create(c.whole.net, &c.whole.model, traffic, 0, false, &judge, err);
  if (!code) code = pst_tune_load_float(path, NULL, options->threads, &other, err);
  if (!code) *ret_divergence = pst_tune_judge_run(&judge, &other);
  if (other.memory) pst_tune_model_done(&other);
  pst_tune_judge_done(&judge);
  done(&c);
  return code;
}
