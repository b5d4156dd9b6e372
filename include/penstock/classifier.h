/* Penstock classifier: answers a choice task without a generator.
 *
 * A linear model over hashed word and character n-grams (sublinear tf-idf), fitted by multinomial logistic regression with L-BFGS, and, where the caller has an
 * encoder's vectors of the texts, over those too. Its probabilities are calibrated on held-out folds of the records it is made of, so that a caller may trust an
 * answer by its margin and ask something dearer below a threshold. The artefact is one block of bytes; the same records give the same bytes, on any number of
 * threads. Vectors are the caller's business: this folder knows no models.
 *
 * Threads: an open classifier is immutable; training uses threads of its own and blocks its caller. */
#ifndef PENSTOCK_CLASSIFIER_H
#define PENSTOCK_CLASSIFIER_H

#include <penstock/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of training: grows when the same records no longer give the same artefact. */
#define PST_CLASSIFIER_VERSION 1

/* ---- training (classifier/train.c) ------------------------------------------------------------------------------ */

typedef struct pst_classifier_record {
  pst_str text, label;
  uint32_t group;      /* records of one group (near-duplicates) are never parted between folds */
  const float *vector; /* [options.n_dims]: the encoder's, of length 1; NULL where the options name none */
  bool held_out;       /* with options.head: its training has not seen the record */
} pst_classifier_record;

typedef struct pst_classifier_options {
  int threads; /* 0: pst_cpu_count(); changes nothing but the time */
  const char
      *encoder; /* SHA-256 of what made the records' vectors, a model's file or its adapter's; NULL: n-grams alone */
  int n_dims;   /* of the vectors; 0 without an encoder */
  /* [n_labels][n_dims], labels ascending bytewise: scores of labels by a vector's product with their row, trained together with the encoder. Beside it n-grams are fitted; how much
   * these weigh, the penalty and the temperature are chosen on records held out, instead of folds. NULL: one model is fitted over both. */
  const float *head;
  bool (*cancelled)(void *user); /* asked between fits; NULL: never */
  void *user;
} pst_classifier_options;

/* Fits a classifier and appends its artefact to *out. The strength of the penalty and the temperature are chosen on held-out folds of the records, never on
 * others. The order of the records does not matter. options NULL: the defaults. Errors: PST_E_NO_DATA (one label only, or fewer than two groups),
 * PST_E_NO_DATA too where none is held out from a head, PST_E_BAD_INPUT (an empty label), PST_E_LIMIT (more than 10,000 labels, or records times labels above 32 Mi), PST_E_CANCELLED, PST_E_NOMEM. */
int pst_classifier_train(const pst_classifier_record *records, size_t n, const pst_classifier_options *options,
                         pst_buf *out, pst_error *err);

/* What a model that was not shown a record's group says of it. */
typedef struct pst_classifier_opinion {
  pst_str label;      /* the likeliest: one of the records' own labels */
  double probability; /* of it, calibrated */
  double own;         /* of the label that the record bears */
} pst_classifier_opinion;
/* The folds of pst_classifier_train without its last model: an opinion of each record, in the order given. Records whose label others would hardly give them are
 * suspects of label noise (Northcutt, Jiang and Chuang 2021). Errors as pst_classifier_train. */
int pst_classifier_cross_check(const pst_classifier_record *records, size_t n, const pst_classifier_options *options,
                               pst_classifier_opinion *ret_opinions, pst_error *err);

/* Of a text longer than this the beginning counts. */
enum { PST_CLASSIFIER_TEXT_BYTES = 32768 };
/* The part of a text that is read, not ended within a character. */
pst_str pst_classifier_beginning(pst_str text);

/* ---- an open classifier (classifier/artefact.c) ----------------------------------------------------------------- */

enum { PST_CLASSIFIER_CURVE_POINTS = 20 };

/* What held-out records say of answers whose margin is at least `threshold`. */
typedef struct pst_classifier_point {
  double threshold; /* a margin */
  double answered;  /* share of all held-out records that reach it */
  double accuracy;  /* share of those that are right */
} pst_classifier_point;

typedef struct pst_classifier_info {
  const pst_str *labels; /* [n_labels], ascending bytewise */
  const char *encoder;   /* SHA-256 of the file of the encoder whose vectors it wants; NULL: none */
  int n_dims;            /* of them; 0 without */
  size_t n_labels, n_features, n_records;
  double temperature; /* logits are divided by it */
  double penalty;     /* lambda of lambda / 2 |W|^2, beside the mean loss */
  /* on records held out, each scored by a model that was not shown its group */
  double accuracy, log_loss /* nats */, calibration_error /* expected, ten bins of equal width */;
  pst_classifier_point curve[PST_CLASSIFIER_CURVE_POINTS]; /* thresholds descending, answered shares ascending to 1 */
} pst_classifier_info;

typedef struct pst_classifier pst_classifier;

/* Reads an artefact; the bytes are copied. Errors: PST_E_CORRUPT (not an artefact, or damaged; place is `source`), PST_E_UNSUPPORTED (a newer format),
 * PST_E_NOMEM. */
int pst_classifier_open(pst_str artefact, const char *source, pst_classifier **ret_classifier, pst_error *err);
void pst_classifier_free(pst_classifier *classifier); /* NULL is fine */
/* Lives as long as the classifier. */
const pst_classifier_info *pst_classifier_get_info(const pst_classifier *classifier);

typedef struct pst_classifier_answer {
  size_t label;       /* index into labels; of equal ones the first */
  double probability; /* calibrated */
  double margin;      /* log-probability of the label less that of the second best, nats, at least 0 */
} pst_classifier_answer;

/* Any thread. A text without any known n-gram (an empty one) is answered by the bias and the vector alone.
 * vector: [info.n_dims], the text's; not read where that is 0. ret_probabilities: [n_labels], or NULL. Only error: PST_E_NOMEM. */
int pst_classifier_classify(const pst_classifier *classifier, pst_str text, const float *vector,
                            pst_classifier_answer *ret_answer, double *ret_probabilities, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
