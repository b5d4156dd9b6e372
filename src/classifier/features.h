/* A text as a bag of hashed n-grams. */
#ifndef PST_CLASSIFIER_FEATURES_H
#define PST_CLASSIFIER_FEATURES_H

#include <penstock/classifier.h>

/* The grams of character level have this bit set, those of words not: each of the two blocks is brought to a fixed length on its own. */
#define PST_CLASSIFIER_CHARACTERS (UINT64_C(1) << 63)

typedef struct pst_classifier_gram {
  uint64_t hash;
  double weight; /* 1 + ln(how often it stands in the text); after weighting times idf, block-wise normalised */
} pst_classifier_gram;

/* A growing list; its owner frees `grams` (pst_free). */
typedef struct pst_classifier_grams {
  pst_classifier_gram *grams;
  size_t n, capacity;
} pst_classifier_grams;

/* Appends the grams of a text, ascending by hash, each once. Words: runs of letters, marks and digits, alone and in pairs; characters: 2 to 4 code points of
 * each stretch without white space, with one space on both ends. Text is NFKC and lower case. Only error: PST_E_NOMEM (no message). */
int pst_classifier_grams_of(pst_str text, pst_classifier_grams *grams);

/* Brings the word grams of [grams, grams + n) to Euclidean length 1, and the character grams to 1.5. */
void pst_classifier_normalize(pst_classifier_gram *grams, size_t n);

#endif
