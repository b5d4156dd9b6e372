/* Temperature, calibration error and the curve of accuracy over threshold (calibrate.h). One number is fitted, not a curve per label: with tens of records a
 * label anything richer fits noise, and dividing by a temperature leaves every answer as it is. */
#include "classifier/calibrate.h"

#include <math.h>
#include <stdlib.h>

enum { BINS = 10, MAX_STEPS = 60 };
#define COLDEST 0.01
#define HOTTEST 100.0

/* First and second derivative of the summed log loss by a = 1 / T; convex in a. */
static void slopes(const pst_classifier_held_out *h, double a, double *ret_first, double *ret_second) {
  double first = 0, second = 0;
  for (size_t i = 0; i < h->n; i++) {
    const float *z = h->scores + i * h->n_labels;
    double most = -INFINITY, sum = 0, mean = 0, square = 0;
    /* By comparison: gcc 12 for ARM does not survive a loop of fmax at -O3. */
    for (size_t k = 0; k < h->n_labels; k++) most = (double)z[k] > most ? (double)z[k] : most;
    for (size_t k = 0; k < h->n_labels; k++) {
      double d = (double)z[k] - most, e = exp(a * d);
      sum += e;
      mean += e * d;
      square += e * d * d;
    }
    mean /= sum;
    first += mean - ((double)z[h->labels[i]] - most);
    second += square / sum - mean * mean;
  }
  *ret_first = first;
  *ret_second = second;
}

/* Newton's steps, kept inside a bracket of the root of the first derivative. */
double pst_classifier_temperature(const pst_classifier_held_out *h) {
  double low = 1 / HOTTEST, high = 1 / COLDEST, a = 1;
  for (int i = 0; i < MAX_STEPS && high - low > 1e-9 * high; i++) {
    double first, second;
    slopes(h, a, &first, &second);
    if (first > 0)
      high = a;
    else
      low = a;
    double next = a - first / second;
    if (!(next > low && next < high)) next = sqrt(low * high);
    if (fabs(next - a) < 1e-10 * a) break;
    a = next;
  }
  return 1 / a;
}

double pst_classifier_log_loss(const pst_classifier_held_out *h, double temperature) {
  double loss = 0;
  for (size_t i = 0; i < h->n; i++) {
    const float *z = h->scores + i * h->n_labels;
    double most = -INFINITY, sum = 0;
    for (size_t k = 0; k < h->n_labels; k++) most = (double)z[k] > most ? (double)z[k] : most;
    for (size_t k = 0; k < h->n_labels; k++) sum += exp(((double)z[k] - most) / temperature);
    loss += log(fmax(sum, 1)) - ((double)z[h->labels[i]] - most) / temperature;
  }
  return h->n ? loss / (double)h->n : 0;
}

pst_classifier_answer pst_classifier_best(const double *scores, size_t n, double temperature) {
  size_t best = 0;
  double second = -INFINITY, sum = 0;
  for (size_t k = 1; k < n; k++)
    if (scores[k] > scores[best]) best = k;
  for (size_t k = 0; k < n; k++) {
    if (k != best) second = fmax(second, scores[k]);
    sum += exp((scores[k] - scores[best]) / temperature);
  }
  return (pst_classifier_answer){best, 1 / sum, (scores[best] - second) / temperature};
}

typedef struct graded {
  double probability, margin;
  bool right;
} graded;

static int by_margin(const void *a, const void *b) {
  const graded *x = a, *y = b;
  return (x->margin < y->margin) - (x->margin > y->margin);
}

/* Expected calibration error over bins of equal width (Naeini, Cooper and Hauskrecht 2015). */
static double calibration_error(const graded *g, size_t n) {
  double confidence[BINS] = {0}, right[BINS] = {0}, error = 0;
  for (size_t i = 0; i < n; i++) {
    size_t bin = PST_MIN((size_t)(g[i].probability * BINS), (size_t)BINS - 1);
    confidence[bin] += g[i].probability;
    right[bin] += g[i].right;
  }
  for (size_t b = 0; b < BINS; b++) error += fabs(confidence[b] - right[b]);
  return n ? error / (double)n : 0;
}

/* g: by descending margin. Records of equal margin reach a threshold together. */
static void fill_curve(const graded *g, size_t n, pst_classifier_info *info) {
  size_t end = 0, n_right = 0;
  for (size_t p = 0; p < PST_CLASSIFIER_CURVE_POINTS; p++) {
    size_t want = PST_MAX(n * (p + 1) / PST_CLASSIFIER_CURVE_POINTS, (size_t)1);
    for (; end < want || (end < n && end && g[end].margin == g[end - 1].margin); end++) n_right += g[end].right;
    double threshold = end == n ? 0 : g[end - 1].margin;
    info->curve[p] = (pst_classifier_point){threshold, (double)end / (double)n, (double)n_right / (double)end};
  }
}

int pst_classifier_assess(const pst_classifier_held_out *h, pst_classifier_info *info) {
  graded *g = pst_calloc(PST_MAX(h->n, 1), sizeof *g);
  double *scores = pst_calloc(h->n_labels, sizeof *scores);
  size_t n_right = 0;
  int code = g && scores ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < h->n && !code; i++) {
    for (size_t k = 0; k < h->n_labels; k++) scores[k] = (double)h->scores[i * h->n_labels + k];
    pst_classifier_answer a = pst_classifier_best(scores, h->n_labels, info->temperature);
    g[i] = (graded){a.probability, a.margin, a.label == h->labels[i]};
    n_right += g[i].right;
  }
  if (!code && h->n) {
    qsort(g, h->n, sizeof *g, by_margin);
    info->accuracy = (double)n_right / (double)h->n;
    info->log_loss = pst_classifier_log_loss(h, info->temperature);
    info->calibration_error = calibration_error(g, h->n);
    fill_curve(g, h->n, info);
  }
  pst_free(g);
  pst_free(scores);
  return code;
}
