/* Private to evals: what an open workload holds beside its public info, and the text forms that graders and clusters compare. */
#ifndef PST_EVALS_WORKLOAD_H
#define PST_EVALS_WORKLOAD_H

#include <penstock/evals.h>

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
  char part_hash[PST_EVALS_PART_COUNT]
                [65]; /* of what is asked and wanted in each part: SHA-256 over ids, inputs and references */
};

/* ---- text.c ---- */

/* NFKC, lower case, NFKC again (lower-casing can leave marks out of order). Broken UTF-8 becomes U+FFFD. Appends. */
int pst_evals_fold(pst_str text, pst_buf *out);
/* The form in which case, white space, outer punctuation and Unicode form do not count: NFKC, lower case, single spaces, no punctuation
 * at the ends (but a sign or point before a digit, and a per cent sign behind one). Broken UTF-8 becomes U+FFFD. Idempotent. Text of punctuation
 * alone is kept. Appends. */
int pst_evals_normalize(pst_str text, pst_buf *out);

/* ---- copied.c ---- */

/* Into info.copied: which fields stand in their inputs. PST_E_NOMEM. */
int pst_evals_find_copied(pst_evals_workload *workload, pst_error *err);

/* ---- sql.c ---- */

/* Whether nothing but letter case, Unicode form, white space, semicolons at the end, quotes ('x' "x"; a number in quotes is the number), `<>` for `!=`, `==` for `=`, or
 * the order of a WHERE clause's conditions, where AND alone joins them, tells two SQL statements apart. Any texts may be compared. PST_E_NOMEM. */
int pst_evals_sql_equal(pst_str a, pst_str b, bool *ret_equal);
/* Whether a text begins as SELECT, WITH, INSERT, UPDATE or DELETE do. */
bool pst_evals_sql_is_statement(pst_str text);
/* The first table that a statement names, a view into it; empty: none. */
pst_str pst_evals_sql_table(pst_str statement);

/* ---- grade.c ---- */

/* Prepares what grading needs of a workload whose items are read: labels' keys, patterns. */
int pst_evals_grading_prepare(pst_evals_workload *workload, pst_error *err);
const char *pst_evals_grader_name(pst_evals_grader_kind kind);

#endif
