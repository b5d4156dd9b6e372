/* Texts as a sparse matrix over a dictionary of grams. */
#ifndef PST_CLASSIFIER_DATASET_H
#define PST_CLASSIFIER_DATASET_H

#include "classifier/features.h"

/* Grams of n texts, one after the other; those of text i are [starts[i], starts[i + 1]). */
typedef struct pst_classifier_texts {
  pst_classifier_grams all;
  size_t *starts; /* [n + 1] */
  size_t n;
} pst_classifier_texts;
/* Zeroed storage. PST_E_NOMEM. */
int pst_classifier_texts_init(pst_classifier_texts *texts, const pst_classifier_record *records, size_t n);
void pst_classifier_texts_done(pst_classifier_texts *texts);

/* The grams that a model knows. */
typedef struct pst_classifier_dictionary {
  uint64_t *hashes; /* [n], ascending */
  float *idf;       /* [n] */
  size_t n;
  uint32_t *slots; /* index + 1 by the low bits of the hash, linear probing; [n_slots], a power of two */
  size_t n_slots;
} pst_classifier_dictionary;
/* Of the texts rows[0 .. n_rows): grams that stand in at least two of them (in one, where there are fewer than 100), rarest left out until there are at
 * most `most`. PST_E_NOMEM. */
int pst_classifier_dictionary_init(pst_classifier_dictionary *d, const pst_classifier_texts *texts, const size_t *rows,
                                   size_t n_rows, size_t most);
/* Builds the slots over hashes that are filled in. PST_E_NOMEM. */
int pst_classifier_dictionary_index(pst_classifier_dictionary *d);
void pst_classifier_dictionary_done(pst_classifier_dictionary *d);
/* SIZE_MAX: not known. */
size_t pst_classifier_dictionary_find(const pst_classifier_dictionary *d, uint64_t hash);
/* What the model sees of a text: of its n grams those known, in `grams` itself, weight times idf, normalised; `hash` becomes the index in the dictionary.
 * Returns how many. */
size_t pst_classifier_dictionary_weigh(const pst_classifier_dictionary *d, pst_classifier_gram *grams, size_t n);

/* An encoder's vectors beside the grams: a column for each of their elements, behind those of the dictionary. */
typedef struct pst_classifier_vectors {
  float *values; /* [n x n_dims], of text i from values + i * n_dims; NULL without an encoder */
  size_t n_dims; /* 0 without */
  double *mean;  /* [n_dims]: what was taken off before they were brought to length */
} pst_classifier_vectors;
/* The records' vectors, their mean taken off, times a fixed length. Zeroed storage. PST_E_NOMEM. */
int pst_classifier_vectors_init(pst_classifier_vectors *v, const pst_classifier_record *records, size_t n,
                                size_t n_dims);
void pst_classifier_vectors_done(pst_classifier_vectors *v);
/* From weights over a matrix to weights over vectors as an encoder makes them, in place: [(n_grams + n_dims + 1) x n_labels], the bias last. */
void pst_classifier_vectors_unscale(const pst_classifier_vectors *v, size_t n_grams, size_t n_labels, double *weights);

/* n_rows x n_columns, by rows and by columns: sums over either go in ascending order. */
typedef struct pst_classifier_matrix {
  size_t n_rows, n_columns, n_values;
  size_t *row_starts, *column_starts; /* [n_rows + 1], [n_columns + 1] */
  uint32_t *columns, *rows;           /* [n_values] each */
  double *by_row, *by_column;         /* [n_values] each */
} pst_classifier_matrix;
/* The texts rows[0 .. n_rows) over a dictionary, and their vectors. Zeroed storage. PST_E_NOMEM. */
int pst_classifier_matrix_init(pst_classifier_matrix *m, const pst_classifier_dictionary *d,
                               const pst_classifier_texts *texts, const pst_classifier_vectors *vectors,
                               const size_t *rows, size_t n_rows);
void pst_classifier_matrix_done(pst_classifier_matrix *m);

#endif
