/* Training: records to an artefact. Each label's records are cut into folds by group; for every fold a model that has not seen it scores it, at each strength of
 * the penalty, the weaker ones starting from where the stronger ended. The strength with the lowest log loss at its own temperature is taken, and the last
 * model is fitted on all records with it. So the temperature, the accuracy and the thresholds in the artefact are of records that the scoring model had not seen.
 * An encoder's vectors are columns of the same model, as the grams are. Where the encoder was trained together with a head, vectors of what it has seen say nothing
 * about others: grams are fitted for themselves, and added to the head's scores with a weight that is found on the records held out from both. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "classifier/artefact.h"
#include "classifier/calibrate.h"
#include "classifier/lbfgs.h"
#include "classifier/logistic.h"

enum { FOLDS = 4, MOST_LABELS = 10000, MOST_WEIGHTS = 8 << 20, MOST_SCORES = 32 << 20, MAX_ITERATIONS = 200 };
#define TOLERANCE 5e-4
/* Inverse strengths: the penalty is 1 / (C x records), so that C means the same for any number of records. */
static const double strengths[] = {2.5, 10, 40};
enum { N_STRENGTHS = sizeof strengths / sizeof strengths[0] };

typedef struct training {
  pst_classifier_record *records; /* [n], in canonical order */
  size_t n;
  pst_str *labels; /* [n_labels], ascending */
  size_t n_labels;
  uint32_t *classes; /* [n] */
  uint32_t *folds;   /* [n] */
  pst_classifier_texts texts;
  pst_classifier_vectors vectors;
  size_t *rows;               /* [n]: those of the fit under way */
  uint32_t *row_classes;      /* [n] */
  float *scores[N_STRENGTHS]; /* [n x n_labels]: of each record by the model that had not seen it */
  int n_threads;
  const pst_classifier_options *options;
  pst_error *err;
} training;

static int no_memory(const training *t) {
  return pst_error_set(t->err, PST_E_NOMEM, "classifier", "no memory to train on %zu records", t->n);
}

/* ---- records ---- */

static int by_label_and_text(const void *a, const void *b) {
  const pst_classifier_record *x = a, *y = b;
  int order = pst_str_compare(x->label, y->label);
  return order ? order : pst_str_compare(x->text, y->text);
}

static int find_labels(training *t) {
  for (size_t i = 0; i < t->n; i++) {
    if (t->records[i].label.n == 0)
      return pst_error_set(t->err, PST_E_BAD_INPUT, "classifier", "a record has an empty label");
    if (i == 0 || !pst_str_equal(t->records[i].label, t->records[i - 1].label))
      t->labels[t->n_labels++] = t->records[i].label;
    t->classes[i] = (uint32_t)t->n_labels - 1;
  }
  if (t->n_labels < 2)
    return pst_error_set(t->err, PST_E_NO_DATA, "classifier", "%zu records bear %zu label: there is nothing to choose",
                         t->n, t->n_labels);
  if (t->n_labels > MOST_LABELS)
    return pst_error_set(t->err, PST_E_LIMIT, "classifier", "%zu labels; at most %d are possible", t->n_labels,
                         MOST_LABELS);
  if (t->n > MOST_SCORES / t->n_labels)
    return pst_error_set(t->err, PST_E_LIMIT, "classifier",
                         "%zu records with %zu labels are more than memory is set "
                         "aside for; at most %zu records",
                         t->n, t->n_labels, MOST_SCORES / t->n_labels);
  return 0;
}

typedef struct member {
  uint64_t text; /* hash */
  uint32_t group;
  size_t record;
} member;

static int by_group(const void *a, const void *b) {
  const member *x = a, *y = b;
  if (x->group != y->group) return x->group < y->group ? -1 : 1;
  return (x->text > y->text) - (x->text < y->text);
}

typedef struct group {
  uint64_t draw; /* the least hash of its texts: the same whatever the groups are numbered */
  size_t first, n;
} group;

static int by_draw(const void *a, const void *b) {
  const group *x = a, *y = b;
  if (x->draw != y->draw) return x->draw < y->draw ? -1 : 1;
  return (x->first > y->first) - (x->first < y->first);
}

/* Groups in an order drawn by their texts; each goes to the fold that has the fewest records so far. */
static int draw_folds(training *t) {
  member *m = pst_calloc(t->n, sizeof *m);
  group *g = pst_calloc(t->n, sizeof *g);
  size_t n_groups = 0, sizes[FOLDS] = {0};
  int code = m && g ? 0 : no_memory(t);
  for (size_t i = 0; i < t->n && !code; i++) {
    pst_str text = t->records[i].text;
    m[i] = (member){pst_hash64(text.data, text.n, 0), t->records[i].group, i};
  }
  if (!code) qsort(m, t->n, sizeof *m, by_group);
  for (size_t i = 0; i < t->n && !code; i++) {
    if (i == 0 || m[i].group != m[i - 1].group) g[n_groups++] = (group){m[i].text, i, 0};
    g[n_groups - 1].n++;
  }
  if (!code && n_groups < 2)
    code = pst_error_set(t->err, PST_E_NO_DATA, "classifier",
                         "all %zu records are near-duplicates of each other: none can be held out", t->n);
  if (!code) qsort(g, n_groups, sizeof *g, by_draw);
  for (size_t i = 0; i < n_groups && !code; i++) {
    size_t fold = 0;
    for (size_t f = 1; f < FOLDS; f++)
      if (sizes[f] < sizes[fold]) fold = f;
    sizes[fold] += g[i].n;
    for (size_t k = 0; k < g[i].n; k++) t->folds[m[g[i].first + k].record] = (uint32_t)fold;
  }
  pst_free(m);
  pst_free(g);
  return code;
}

/* ---- fits ---- */

/* A model under way: rows, their dictionary and matrix, the weights. */
typedef struct fit {
  pst_classifier_dictionary dictionary;
  pst_classifier_matrix matrix;
  pst_classifier_logistic logistic;
  double *weights;
} fit;

static void fit_done(fit *f) {
  pst_free(f->weights);
  pst_classifier_logistic_done(&f->logistic);
  pst_classifier_matrix_done(&f->matrix);
  pst_classifier_dictionary_done(&f->dictionary);
}

/* Over the records outside `fold`; FOLDS: over all. */
static int fit_init(training *t, uint32_t fold, fit *f) {
  size_t n = 0;
  memset(f, 0, sizeof *f);
  for (size_t i = 0; i < t->n; i++)
    if (t->folds[i] != fold) {
      t->row_classes[n] = t->classes[i];
      t->rows[n++] = i;
    }
  int code = pst_classifier_dictionary_init(&f->dictionary, &t->texts, t->rows, n, MOST_WEIGHTS / t->n_labels);
  if (!code) code = pst_classifier_matrix_init(&f->matrix, &f->dictionary, &t->texts, &t->vectors, t->rows, n);
  f->logistic = (pst_classifier_logistic){
      .x = &f->matrix, .labels = t->row_classes, .n_labels = t->n_labels, .n_threads = t->n_threads};
  if (!code) code = pst_classifier_logistic_init(&f->logistic);
  if (!code && !(f->weights = pst_calloc(pst_classifier_logistic_size(&f->logistic), sizeof(double))))
    code = PST_E_NOMEM;
  return code ? no_memory(t) : 0;
}

static int fit_at(training *t, fit *f, double strength) {
  pst_classifier_minimum found;
  if (t->options->cancelled && t->options->cancelled(t->options->user))
    return pst_error_set(t->err, PST_E_CANCELLED, "classifier", "cancelled");
  f->logistic.penalty = 1 / (strength * (double)PST_MAX(f->matrix.n_rows, 1));
  int code =
      pst_classifier_minimize(pst_classifier_logistic_value, &f->logistic, pst_classifier_logistic_size(&f->logistic),
                              f->weights, TOLERANCE, MAX_ITERATIONS, t->n_threads, &found);
  if (code) return no_memory(t);
  pst_log(PST_LOG_DEBUG, "event=classifier_fitted rows=%zu features=%zu strength=%g iterations=%d gradient=%g",
          f->matrix.n_rows, f->matrix.n_columns, strength, found.n_iterations, found.gradient_norm);
  return 0;
}

/* The records of a fold, scored by a model of the others. */
static int score_fold(training *t, const fit *f, uint32_t fold, float *scores) {
  pst_classifier_matrix m;
  double *row = pst_calloc(t->n_labels, sizeof *row);
  size_t n = 0;
  for (size_t i = 0; i < t->n; i++)
    if (t->folds[i] == fold) t->rows[n++] = i; /* the fit is over: its rows are in its matrix */
  int code = row ? pst_classifier_matrix_init(&m, &f->dictionary, &t->texts, &t->vectors, t->rows, n) : PST_E_NOMEM;
  for (size_t i = 0; i < n && !code; i++) {
    size_t at = m.row_starts[i];
    pst_classifier_scores(f->weights, m.n_columns, t->n_labels, m.columns + at, m.by_row + at, m.row_starts[i + 1] - at,
                          row);
    for (size_t k = 0; k < t->n_labels; k++) scores[t->rows[i] * t->n_labels + k] = (float)row[k];
  }
  if (!code) pst_classifier_matrix_done(&m);
  pst_free(row);
  return code ? no_memory(t) : 0;
}

static int run_fold(training *t, uint32_t fold) {
  fit f;
  bool empty = true;
  for (size_t i = 0; i < t->n && empty; i++) empty = t->folds[i] != fold;
  if (empty) return 0;
  int code = fit_init(t, fold, &f);
  for (size_t s = 0; s < N_STRENGTHS && !code; s++) {
    code = fit_at(t, &f, strengths[s]);
    if (!code) code = score_fold(t, &f, fold, t->scores[s]);
  }
  fit_done(&f);
  return code;
}

/* Strength and temperature from the held-out scores. */
static int choose(training *t, pst_classifier_info *info, size_t *ret_best) {
  double best_loss = INFINITY;
  size_t best = 0;
  for (size_t s = 0; s < N_STRENGTHS; s++) {
    pst_classifier_held_out h = {t->scores[s], t->classes, t->n, t->n_labels};
    double temperature = pst_classifier_temperature(&h), loss = pst_classifier_log_loss(&h, temperature);
    pst_log(PST_LOG_DEBUG, "event=classifier_strength strength=%g temperature=%.4f log_loss=%.4f", strengths[s],
            temperature, loss);
    if (!(loss < best_loss)) continue;
    best_loss = loss;
    best = s;
    info->temperature = temperature;
  }
  pst_classifier_held_out h = {t->scores[best], t->classes, t->n, t->n_labels};
  *ret_best = best;
  return pst_classifier_assess(&h, info) ? no_memory(t) : 0;
}

static void describe(const training *t, const fit *f, pst_classifier_info *info) {
  info->labels = t->labels;
  info->n_labels = t->n_labels;
  info->n_features = f->dictionary.n;
  info->n_records = t->n;
  info->penalty = f->logistic.penalty;
  info->encoder = t->options->encoder;
  info->n_dims = t->options->n_dims;
}

/* ---- beside a head ---- */

enum { SEEN, HELD_OUT, N_SHARES = 8 };
/* Of the grams in the sum of both scores; the head has the rest. */
static double share_at(size_t i) { return 0.1 * (double)i; }

static int part_by_head(training *t) {
  size_t n = 0;
  for (size_t i = 0; i < t->n; i++) n += t->folds[i] = t->records[i].held_out ? HELD_OUT : SEEN;
  return n && n < t->n ? 0
                       : pst_error_set(t->err, PST_E_NO_DATA, "classifier",
                                       "%zu of %zu records are held out from the encoder's training", n, t->n);
}

/* The head's scores of the held-out records [n_held_out][n_labels], and their labels. */
static void score_by_head(const training *t, float *scores, uint32_t *classes) {
  size_t n_dims = (size_t)t->options->n_dims, at = 0;
  for (size_t i = 0; i < t->n; i++) {
    if (t->folds[i] != HELD_OUT) continue;
    for (size_t k = 0; k < t->n_labels; k++) {
      double sum = 0;
      for (size_t d = 0; d < n_dims; d++)
        sum += (double)t->options->head[k * n_dims + d] * (double)t->records[i].vector[d];
      scores[at * t->n_labels + k] = (float)sum;
    }
    classes[at++] = t->classes[i];
  }
}

/* sums = share * the grams' scores at a strength + the rest * the head's, of the held-out records. */
static void add_scores(const training *t, size_t strength, double share, const float *head, float *sums) {
  for (size_t i = 0, at = 0; i < t->n; i++)
    for (size_t k = 0; k < t->n_labels && t->folds[i] == HELD_OUT; k++, at++)
      sums[at] = (float)(share * (double)t->scores[strength][i * t->n_labels + k] + (1 - share) * (double)head[at]);
}

/* The strength and the share at which the sums' log loss is least, each at its own temperature; *info has that. h: over `sums`. */
static void mix(const training *t, const float *head, float *sums, const pst_classifier_held_out *h,
                pst_classifier_info *info, size_t *ret_strength, double *ret_share) {
  double best = INFINITY;
  for (size_t s = 0; s < N_STRENGTHS; s++)
    for (size_t k = 0; k < N_SHARES; k++) {
      add_scores(t, s, share_at(k), head, sums);
      double temperature = pst_classifier_temperature(h), loss = pst_classifier_log_loss(h, temperature);
      if (!(loss < best)) continue;
      best = loss;
      info->temperature = temperature;
      *ret_strength = s;
      *ret_share = share_at(k);
    }
}

/* Weights of the grams times their share, of the vector's elements by the head, and the bias. */
static int join(const training *t, const fit *f, double share, pst_classifier_info *info, pst_buf *out) {
  size_t n = t->n_labels, n_grams = f->dictionary.n, n_dims = (size_t)t->options->n_dims;
  double *w = pst_calloc((n_grams + n_dims + 1) * n, sizeof *w);
  if (!w) return no_memory(t);
  for (size_t i = 0; i < n_grams * n; i++) w[i] = share * f->weights[i];
  for (size_t d = 0; d < n_dims; d++)
    for (size_t k = 0; k < n; k++) w[(n_grams + d) * n + k] = (1 - share) * (double)t->options->head[k * n_dims + d];
  for (size_t k = 0; k < n; k++) w[(n_grams + n_dims) * n + k] = share * f->weights[n_grams * n + k];
  describe(t, f, info);
  int code = pst_classifier_artefact_write(info, &f->dictionary, w, out) ? no_memory(t) : 0;
  pst_free(w);
  return code;
}

static int train_beside_head(training *t, pst_classifier_info *info, pst_buf *out) {
  size_t n_held_out = 0, best = 0;
  double share = 0;
  int code = part_by_head(t);
  for (size_t i = 0; i < t->n; i++) n_held_out += t->folds[i] == HELD_OUT;
  float *scores = pst_calloc(n_held_out * t->n_labels + 1, 2 * sizeof *scores);
  uint32_t *classes = pst_calloc(n_held_out + 1, sizeof *classes);
  if (!code && (!scores || !classes)) code = no_memory(t);
  float *sums = scores ? scores + n_held_out * t->n_labels : NULL;
  pst_classifier_held_out h = {sums, classes, n_held_out, t->n_labels};
  if (!code) {
    score_by_head(t, scores, classes);
    code = run_fold(t, HELD_OUT);
  }
  if (!code) {
    mix(t, scores, sums, &h, info, &best, &share);
    add_scores(t, best, share, scores, sums);
    code = pst_classifier_assess(&h, info) ? no_memory(t) : 0;
  }
  fit f = {.weights = NULL};
  if (!code) code = fit_init(t, FOLDS, &f);
  for (size_t s = 0; s <= best && !code; s++) code = fit_at(t, &f, strengths[s]);
  if (!code) code = join(t, &f, share, info, out);
  pst_log(PST_LOG_DEBUG, "event=classifier_beside_head held_out=%zu strength=%g share=%.1f accuracy=%.4f", n_held_out,
          strengths[best], share, info->accuracy);
  fit_done(&f);
  pst_free(scores);
  pst_free(classes);
  return code;
}

/* ---- the whole ---- */

static int prepare(training *t, const pst_classifier_record *records) {
  t->records = pst_calloc(PST_MAX(t->n, 1), sizeof *t->records);
  t->labels = pst_calloc(PST_MAX(t->n, 1), sizeof *t->labels);
  t->classes = pst_calloc(PST_MAX(t->n, 1), sizeof *t->classes);
  t->folds = pst_calloc(PST_MAX(t->n, 1), sizeof *t->folds);
  t->rows = pst_calloc(PST_MAX(t->n, 1), sizeof *t->rows);
  t->row_classes = pst_calloc(PST_MAX(t->n, 1), sizeof *t->row_classes);
  if (!t->records || !t->labels || !t->classes || !t->folds || !t->rows || !t->row_classes) return no_memory(t);
  if (t->n) memcpy(t->records, records, t->n * sizeof *records);
  qsort(t->records, t->n, sizeof *t->records, by_label_and_text);
  int code = find_labels(t);
  if (!code) code = draw_folds(t);
  if (!code && pst_classifier_texts_init(&t->texts, t->records, t->n)) code = no_memory(t);
  size_t n_dims = t->options->head ? 0 : (size_t)t->options->n_dims;
  if (!code && pst_classifier_vectors_init(&t->vectors, t->records, t->n, n_dims)) code = no_memory(t);
  for (size_t s = 0; s < N_STRENGTHS && !code; s++)
    if (!(t->scores[s] = pst_calloc(t->n * t->n_labels, sizeof(float)))) code = no_memory(t);
  return code;
}

static void training_done(training *t) {
  pst_classifier_texts_done(&t->texts);
  pst_classifier_vectors_done(&t->vectors);
  for (size_t s = 0; s < N_STRENGTHS; s++) pst_free(t->scores[s]);
  pst_free(t->records);
  pst_free(t->labels);
  pst_free(t->classes);
  pst_free(t->folds);
  pst_free(t->rows);
  pst_free(t->row_classes);
}

/* The same way to the chosen strength as in the folds, so that the temperature fits this model too. */
static int fit_all(training *t, pst_classifier_info *info, double strength, pst_buf *out) {
  fit f;
  pst_buf bytes = PST_BUF_INIT;
  int code = fit_init(t, FOLDS, &f);
  for (size_t s = 0; s < N_STRENGTHS && strengths[s] <= strength && !code; s++) code = fit_at(t, &f, strengths[s]);
  describe(t, &f, info);
  if (!code) pst_classifier_vectors_unscale(&t->vectors, f.dictionary.n, t->n_labels, f.weights);
  if (!code) code = pst_classifier_artefact_write(info, &f.dictionary, f.weights, &bytes) ? no_memory(t) : 0;
  if (!code) pst_buf_append_str(out, pst_buf_str(&bytes));
  if (!code && pst_buf_status(out)) code = no_memory(t);
  pst_buf_done(&bytes);
  fit_done(&f);
  return code;
}

int pst_classifier_train(const pst_classifier_record *records, size_t n, const pst_classifier_options *options,
                         pst_buf *out, pst_error *err) {
  static const pst_classifier_options none;
  training t = {.n = n, .options = options ? options : &none, .err = err};
  pst_classifier_info info = {0};
  size_t best = 0;
  t.n_threads = t.options->threads > 0 ? t.options->threads : pst_cpu_count();
  int code = prepare(&t, records);
  if (!code && t.options->head) {
    code = train_beside_head(&t, &info, out);
    training_done(&t);
    return code;
  }
  for (uint32_t fold = 0; fold < FOLDS && !code; fold++) code = run_fold(&t, fold);
  if (!code) code = choose(&t, &info, &best);
  if (!code) code = fit_all(&t, &info, strengths[best], out);
  training_done(&t);
  return code;
}

/* Of the scores in place `at` of the canonical order. */
static void opine(const training *t, size_t best, double temperature, size_t at, double *row,
                  pst_classifier_opinion *ret) {
  const float *scores = t->scores[best] + at * t->n_labels;
  double sum = 0;
  for (size_t k = 0; k < t->n_labels; k++) row[k] = (double)scores[k];
  pst_classifier_answer answer = pst_classifier_best(row, t->n_labels, temperature);
  for (size_t k = 0; k < t->n_labels; k++) sum += exp((row[k] - row[answer.label]) / temperature);
  *ret = (pst_classifier_opinion){.label = t->labels[answer.label],
                                  .probability = answer.probability,
                                  .own = exp((row[t->classes[at]] - row[answer.label]) / temperature) / sum};
}

int pst_classifier_cross_check(const pst_classifier_record *records, size_t n, const pst_classifier_options *options,
                               pst_classifier_opinion *ret_opinions, pst_error *err) {
  static const pst_classifier_options none;
  training t = {.n = n, .options = options ? options : &none, .err = err};
  pst_classifier_info info = {0};
  size_t best = 0;
  double *row = NULL;
  t.n_threads = t.options->threads > 0 ? t.options->threads : pst_cpu_count();
  int code = prepare(&t, records);
  for (uint32_t fold = 0; fold < FOLDS && !code; fold++) code = run_fold(&t, fold);
  if (!code) code = choose(&t, &info, &best);
  if (!code && !(row = pst_calloc(t.n_labels, sizeof *row))) code = no_memory(&t);
  for (size_t i = 0; i < n && !code; i++) { /* records that are the same have the same place */
    const pst_classifier_record *at = bsearch(&records[i], t.records, n, sizeof *t.records, by_label_and_text);
    opine(&t, best, info.temperature, (size_t)(at - t.records), row, &ret_opinions[i]);
  }
  pst_free(row);
  training_done(&t);
  return code;
}
