/* Private to evals: what an open workload holds beside its public info, and the text forms that graders and clusters compare. */
#ifndef PST_EVALS_WORKLOAD_H
#define PST_EVALS_WORKLOAD_H

#include <penstock/evals.h>

/* Two inputs whose sets of words have a Jaccard index above this are near-duplicates. */
#define PST_EVALS_NEAR_DUPLICATE 0.6

typedef struct pst_evals_grading {
  double tolerance, relative_tolerance; /* NUMERIC: |x - expected| <= max(tolerance, relative_tolerance |expected|) */
  const pst_str *fields;                /* JSON: dotted paths; none: all members, on both sides */
  size_t n_fields;
  bool loose_text;           /* JSON: strings are compared in their normal form */
  bool caseless;             /* REGEX */
  const pst_str *label_keys; /* CHOICE: per label its words; NULL: labels are compared letter by letter */
  const size_t *label_order; /* CHOICE: labels by falling length of their key */
} pst_evals_grading;

struct pst_evals_workload {
  pst_evals_info info;
  pst_evals_grading grading;
  pst_arena *arena;
  pst_json_doc **docs; /* workload.json and one per line of items.jsonl */
  size_t n_docs, docs_capacity;
  const uint32_t *lines;   /* per item: its line in items.jsonl, from 1 */
  pst_regex **patterns;    /* REGEX: per item */
  const pst_json **values; /* per item: the graded value, inside its reference */
  char items_hash[65];     /* SHA-256 of items.jsonl */
};

/* ---- text.c ---- */

/* The form in which case, white space, outer punctuation and Unicode form do not count: NFKC, lower case, single spaces, no punctuation
 * at the ends (but a sign or point before a digit, and a per cent sign behind one). Broken UTF-8 becomes U+FFFD. Idempotent. Text of punctuation
 * alone is kept. Appends. */
int pst_evals_normalize(pst_str text, pst_buf *out);
/* The words of a text (runs of letters, digits and marks; each CJK letter for itself), lower-cased NFKC, joined by single spaces. Appends. */
int pst_evals_words(pst_str text, pst_buf *out);

/* ---- cluster.c ---- */

/* Numbers texts by near-duplicate cluster: single linkage over pairs with a word Jaccard above the threshold. own[i] (own NULL: none)
 * not empty: text i is linked to those with the same name, and to no others. ret_cluster: n numbers, ascending by first
 * member from 0. Exact, and near-linear for ordinary text: all-pairs join with prefix filter (Bayardo, Ma, Srikant 2007). */
int pst_evals_cluster(const pst_str *texts, const pst_str *own, size_t n, double threshold, uint32_t *ret_cluster,
                      pst_error *err);

/* ---- grade.c ---- */

/* Prepares what grading needs of a workload whose items are read: labels' keys, patterns. */
int pst_evals_grading_prepare(pst_evals_workload *workload, pst_error *err);
const char *pst_evals_grader_name(pst_evals_grader_kind kind);

#endif
