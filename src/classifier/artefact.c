/* Writing and reading artefacts (artefact.h), and answering with one. Weights in 8 bits with a scale a row change no answer that was not a tie, and make a
 * file an eighth as long; docs/notes/classifier.md has the figures. Everything a file says is checked: a damaged one is an error, never a wild read. */
#include "classifier/artefact.h"

#include <math.h>
#include <string.h>

#include "classifier/calibrate.h"

enum { FORMAT = 2, WITHOUT_VECTORS = 1, MOST_LABELS = 10000, MOST_FEATURES = 1 << 22, MOST_DIMS = 1 << 16 };

/* ---- writing ---- */

static void write_header(const pst_classifier_info *info, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "penstock_classifier", info->n_dims ? FORMAT : WITHOUT_VECTORS);
  if (info->n_dims) {
    pst_json_member_cstr(&w, "encoder", info->encoder);
    pst_json_member_int(&w, "n_dims", info->n_dims);
  }
  pst_json_member_int(&w, "n_features", (int64_t)info->n_features);
  pst_json_member_int(&w, "n_records", (int64_t)info->n_records);
  pst_json_member_double(&w, "temperature", info->temperature);
  pst_json_member_double(&w, "penalty", info->penalty);
  pst_json_member_double(&w, "accuracy", info->accuracy);
  pst_json_member_double(&w, "log_loss", info->log_loss);
  pst_json_member_double(&w, "calibration_error", info->calibration_error);
  pst_json_key(&w, "curve");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < PST_CLASSIFIER_CURVE_POINTS; i++) {
    pst_json_put_double(&w, info->curve[i].threshold);
    pst_json_put_double(&w, info->curve[i].answered);
    pst_json_put_double(&w, info->curve[i].accuracy);
  }
  pst_json_end_array(&w);
  pst_json_member_strs(&w, "labels", info->labels, info->n_labels);
  pst_json_end_object(&w);
  pst_buf_putc(out, '\n');
}

static float scale_of(const double *row, size_t n) {
  double most = 0;
  for (size_t k = 0; k < n; k++) most = fmax(most, fabs(row[k]));
  return (float)(most / 127);
}

int pst_classifier_artefact_write(const pst_classifier_info *info, const pst_classifier_dictionary *d,
                                  const double *weights, pst_buf *out) {
  size_t n = info->n_labels;
  write_header(info, out);
  pst_buf_append(out, d->hashes, d->n * sizeof *d->hashes);
  pst_buf_append(out, d->idf, d->n * sizeof *d->idf);
  for (size_t f = 0; f < d->n; f++) {
    float scale = scale_of(weights + f * n, n);
    pst_buf_append(out, &scale, sizeof scale);
  }
  for (size_t f = 0; f < d->n; f++) {
    const double *row = weights + f * n;
    double scale = (double)scale_of(row, n);
    for (size_t k = 0; k < n; k++) {
      double q = scale > 0 ? rint(row[k] / scale) : 0;
      pst_buf_putc(out, (char)(int8_t)fmin(fmax(q, -127), 127));
    }
  }
  size_t n_dense = ((size_t)info->n_dims + 1) * n; /* the bias is its last row */
  for (size_t i = 0; i < n_dense; i++) {
    float weight = (float)weights[d->n * n + i];
    pst_buf_append(out, &weight, sizeof weight);
  }
  return pst_buf_status(out);
}

/* ---- reading ---- */

typedef struct reader {
  pst_classifier *c;
  const char *source;
  pst_error *err;
} reader;

static int corrupt(const reader *r, const char *what) {
  return pst_error_set(r->err, PST_E_CORRUPT, r->source, "the classifier %s; run optimize again to make it anew", what);
}

static int no_memory(const reader *r) {
  return pst_error_set(r->err, PST_E_NOMEM, r->source, "no memory for a classifier");
}

static int read_labels(reader *r, const pst_json *v) {
  pst_classifier_info *info = &r->c->info;
  size_t n = pst_json_size(v), i = 0;
  if (pst_json_typeof(v) != PST_JSON_ARRAY || n < 2 || n > MOST_LABELS) return corrupt(r, "has no list of labels");
  pst_str *labels = pst_arena_calloc(r->c->arena, n, sizeof *labels);
  if (!labels) return no_memory(r);
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it); i++) {
    pst_str s = pst_json_str(it.value);
    if (s.n == 0 || (i && pst_str_compare(labels[i - 1], s) >= 0))
      return corrupt(r, "has labels that are empty or out of order");
    labels[i] = (pst_str){pst_arena_strndup(r->c->arena, s.data, s.n), s.n};
    if (!labels[i].data) return no_memory(r);
  }
  info->labels = labels;
  info->n_labels = n;
  return 0;
}

static bool read_curve(const pst_json *v, pst_classifier_point *curve) {
  double numbers[3 * PST_CLASSIFIER_CURVE_POINTS];
  size_t i = 0;
  if (pst_json_size(v) != PST_ARRAY_LEN(numbers)) return false;
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it);) {
    numbers[i] = pst_json_double(it.value, NAN);
    if (!isfinite(numbers[i++])) return false;
  }
  for (size_t p = 0; p < PST_CLASSIFIER_CURVE_POINTS; p++)
    curve[p] = (pst_classifier_point){numbers[3 * p], numbers[3 * p + 1], numbers[3 * p + 2]};
  return true;
}

/* The encoder, where the format has one. */
static int read_encoder(reader *r, const pst_json *v, int64_t format) {
  pst_classifier_info *info = &r->c->info;
  pst_str hash = pst_json_str(pst_json_get(v, "encoder"));
  int64_t n_dims = pst_json_int(pst_json_get(v, "n_dims"), -1);
  if (format == WITHOUT_VECTORS) return 0;
  if (hash.n != 64 || n_dims < 1 || n_dims > MOST_DIMS) return corrupt(r, "names no valid encoder");
  info->n_dims = (int)n_dims;
  info->encoder = pst_arena_strndup(r->c->arena, hash.data, hash.n);
  return info->encoder ? 0 : no_memory(r);
}

static int read_header(reader *r, const pst_json *v) {
  pst_classifier_info *info = &r->c->info;
  int64_t format = pst_json_int(pst_json_get(v, "penstock_classifier"), -1);
  if (format > FORMAT)
    return pst_error_set(r->err, PST_E_UNSUPPORTED, r->source, "the classifier has format %lld; this program reads %d",
                         (long long)format, FORMAT);
  int64_t n = pst_json_int(pst_json_get(v, "n_features"), -1), records = pst_json_int(pst_json_get(v, "n_records"), -1);
  info->temperature = pst_json_double(pst_json_get(v, "temperature"), NAN);
  info->penalty = pst_json_double(pst_json_get(v, "penalty"), NAN);
  info->accuracy = pst_json_double(pst_json_get(v, "accuracy"), NAN);
  info->log_loss = pst_json_double(pst_json_get(v, "log_loss"), NAN);
  info->calibration_error = pst_json_double(pst_json_get(v, "calibration_error"), NAN);
  bool valid = format >= WITHOUT_VECTORS && n >= 0 && n <= MOST_FEATURES && records > 0 &&
               isfinite(info->temperature) && info->temperature > 0 && isfinite(info->penalty) &&
               isfinite(info->accuracy) && isfinite(info->log_loss) && isfinite(info->calibration_error) &&
               read_curve(pst_json_get(v, "curve"), info->curve);
  if (!valid) return corrupt(r, "has no valid header");
  info->n_features = (size_t)n;
  info->n_records = (size_t)records;
  int code = read_encoder(r, v, format);
  return code ? code : read_labels(r, pst_json_get(v, "labels"));
}

static void *take(const char **at, size_t bytes) {
  void *copy = pst_malloc(PST_MAX(bytes, 1));
  if (copy && bytes) memcpy(copy, *at, bytes);
  *at += bytes;
  return copy;
}

static bool all_finite(const float *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!isfinite(x[i])) return false;
  return true;
}

static int read_arrays(reader *r, pst_str body) {
  pst_classifier *c = r->c;
  size_t n = c->info.n_features, n_labels = c->info.n_labels, n_dense = (size_t)c->info.n_dims * n_labels;
  size_t want = n * (sizeof(uint64_t) + 2 * sizeof(float) + n_labels) + (n_dense + n_labels) * sizeof(float);
  const char *at = body.data;
  if (body.n != want) return corrupt(r, "is not as long as its header says");
  c->dictionary.n = n;
  c->dictionary.hashes = take(&at, n * sizeof(uint64_t));
  c->dictionary.idf = take(&at, n * sizeof(float));
  c->scales = take(&at, n * sizeof(float));
  c->weights = take(&at, n * n_labels);
  c->dense = take(&at, n_dense * sizeof(float));
  c->bias = take(&at, n_labels * sizeof(float));
  bool all = c->dictionary.hashes && c->dictionary.idf && c->scales && c->weights && c->dense && c->bias;
  if (!all) return no_memory(r);
  for (size_t i = 1; i < n; i++)
    if (c->dictionary.hashes[i] <= c->dictionary.hashes[i - 1]) return corrupt(r, "has grams out of order");
  for (size_t i = 0; i < n; i++)
    if (!(c->dictionary.idf[i] > 0)) return corrupt(r, "holds numbers that are none");
  if (!all_finite(c->dictionary.idf, n) || !all_finite(c->scales, n) || !all_finite(c->dense, n_dense) ||
      !all_finite(c->bias, n_labels))
    return corrupt(r, "holds numbers that are none");
  return pst_classifier_dictionary_index(&c->dictionary) ? no_memory(r) : 0;
}

int pst_classifier_open(pst_str artefact, const char *source, pst_classifier **ret, pst_error *err) {
  pst_json_doc *doc = NULL;
  pst_classifier *c = pst_calloc(1, sizeof *c);
  reader r = {c, source ? source : "classifier", err};
  if (c) c->arena = pst_arena_create();
  int code = c && c->arena ? 0 : no_memory(&r);
  const char *end = artefact.n ? memchr(artefact.data, '\n', artefact.n) : NULL;
  size_t n_header = end ? (size_t)(end - artefact.data) : 0;
  if (!code && !end) code = corrupt(&r, "has no header");
  if (!code && (code = pst_json_parse(artefact.data, n_header, NULL, &doc, NULL)))
    code = code == PST_E_NOMEM ? no_memory(&r) : corrupt(&r, "has no valid header");
  if (!code) code = read_header(&r, pst_json_root(doc));
  if (!code) code = read_arrays(&r, (pst_str){artefact.data + n_header + 1, artefact.n - n_header - 1});
  pst_json_free(doc);
  if (code)
    pst_classifier_free(c);
  else
    *ret = c;
  return code;
}

void pst_classifier_free(pst_classifier *c) {
  if (!c) return;
  pst_classifier_dictionary_done(&c->dictionary);
  pst_free(c->scales);
  pst_free(c->weights);
  pst_free(c->dense);
  pst_free(c->bias);
  pst_arena_free(c->arena);
  pst_free(c);
}

const pst_classifier_info *pst_classifier_get_info(const pst_classifier *c) { return &c->info; }

/* ---- answering ---- */

/* Adds what the grams of a text say to its scores. PST_E_NOMEM. */
static int add_grams(const pst_classifier *c, pst_str text, double *scores) {
  size_t n_labels = c->info.n_labels;
  pst_classifier_grams g = {NULL, 0, 0};
  int code = pst_classifier_grams_of(text, &g);
  size_t n = code ? 0 : pst_classifier_dictionary_weigh(&c->dictionary, g.grams, g.n);
  for (size_t i = 0; i < n; i++) {
    const int8_t *row = c->weights + g.grams[i].hash * n_labels;
    double value = g.grams[i].weight * (double)c->scales[g.grams[i].hash];
    for (size_t k = 0; k < n_labels; k++) scores[k] += value * row[k];
  }
  pst_free(g.grams);
  return code;
}

int pst_classifier_classify(const pst_classifier *c, pst_str text, const float *vector, pst_classifier_answer *ret,
                            double *ret_probabilities, pst_error *err) {
  size_t n_labels = c->info.n_labels, n_dims = (size_t)c->info.n_dims;
  double *scores = pst_calloc(n_labels, sizeof *scores);
  int code = scores ? 0 : PST_E_NOMEM;
  for (size_t k = 0; k < n_labels && !code; k++) scores[k] = (double)c->bias[k];
  if (!code) code = add_grams(c, text, scores);
  if (code) {
    pst_error_set(err, code, NULL, "no memory to classify a text");
    goto done;
  }
  for (size_t d = 0; d < n_dims; d++) {
    const float *row = c->dense + d * n_labels;
    for (size_t k = 0; k < n_labels; k++) scores[k] += (double)vector[d] * (double)row[k];
  }
  *ret = pst_classifier_best(scores, n_labels, c->info.temperature);
  for (size_t k = 0; k < n_labels && ret_probabilities; k++)
    ret_probabilities[k] = ret->probability * exp((scores[k] - scores[ret->label]) / c->info.temperature);
done:
  pst_free(scores);
  return code;
}
