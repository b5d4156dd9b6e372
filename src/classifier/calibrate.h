/* From scores to probabilities that mean what they say. */
#ifndef PST_CLASSIFIER_CALIBRATE_H
#define PST_CLASSIFIER_CALIBRATE_H

#include <penstock/classifier.h>

/* Scores of n held-out records: scores[n x n_labels], what is right in labels[n]. */
typedef struct pst_classifier_held_out {
  const float *scores;
  const uint32_t *labels;
  size_t n, n_labels;
} pst_classifier_held_out;

/* The temperature T that minimises the log loss of softmax(scores / T), within [0.01, 100] (Guo, Pleiss, Sun and Weinberger 2017). */
double pst_classifier_temperature(const pst_classifier_held_out *held_out);
/* Mean log loss in nats at a temperature. */
double pst_classifier_log_loss(const pst_classifier_held_out *held_out, double temperature);
/* The best label of n scores at a temperature: of equal ones the first. */
pst_classifier_answer pst_classifier_best(const double *scores, size_t n, double temperature);
/* Fills accuracy, log_loss, calibration_error and curve of *info at its temperature. PST_E_NOMEM. */
int pst_classifier_assess(const pst_classifier_held_out *held_out, pst_classifier_info *info);

#endif
