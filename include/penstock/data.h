/* Penstock data: records in and out, and data sets made of them that may be trained on.
 *
 * A record is an answered request of a user (or an imported example); the store keeps it as its consent allows. An example is what training needs of it: a
 * conversation and the answer. Curation turns a workload's examples into a data set: a file by content hash whose lineage the store knows.
 *
 * Threads: functions block their caller and may be called from any thread, on different objects. */
#ifndef PENSTOCK_DATA_H
#define PENSTOCK_DATA_H

#include <penstock/base.h>
#include <penstock/evals.h>
#include <penstock/store.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- examples (data/example.c) ---------------------------------------------------------------------------------- */

/* A conversation and its answer. Strings live as long as whatever they were read from. */
typedef struct pst_data_example {
  const pst_json *messages;   /* an array as the OpenAI API takes it, of at least one; without the answer */
  pst_str prompt;             /* of /v1/completions, instead of messages */
  const pst_json *tools;      /* NULL: none */
  pst_str answer;             /* text, may be empty where there are tool calls */
  const pst_json *tool_calls; /* NULL: none */
} pst_data_example;

/* What a record holds, with its latest correction (absent: none) in the answer's place. input and output: the record's texts parsed. PST_E_NO_DATA: no
 * conversation or no answer is in it. */
int pst_data_example_of(const pst_json *input, const pst_json *output, pst_str correction,
                        pst_data_example *ret_example);

/* The text of a message: its content, or its text parts together; appended. False: it has something else in it. */
bool pst_data_message_text(const pst_json *message, pst_buf *out);
/* What the user said last; appended. False: there is no such message, or it has something else than text in it. */
bool pst_data_last_user_text(const pst_data_example *example, pst_buf *out);

/* File formats. OPENAI: fine-tuning JSONL, {"messages": [..., the answer], "tools"}. CHAT: {"request": {...}, "response": {...}} as the chat completions API
 * speaks. SHAREGPT: {"conversations": [{"from", "value"}]}. PAIRS: {"text", "label"} and the like (read only). CSV: RFC 4180 with a head line. */
typedef enum pst_data_format {
  PST_DATA_AUTO, /* by the first line */
  PST_DATA_OPENAI,
  PST_DATA_CHAT,
  PST_DATA_SHAREGPT,
  PST_DATA_PAIRS,
  PST_DATA_CSV,
  PST_DATA_FORMAT_COUNT
} pst_data_format;
const char *pst_data_format_name(pst_data_format format);
bool pst_data_format_from(pst_str name, pst_data_format *ret_format);

/* ---- import (data/import.c) ------------------------------------------------------------------------------------- */

typedef struct pst_data_import_options {
  pst_str workload; /* not empty */
  pst_data_format format;
  pst_store_consent consent; /* of the rows; keep must be CONTENT */
  pst_str subject; /* of rows that name none themselves ("subject", "safety_identifier", "user"); absent: unknown */
  const char *text_field, *answer_field; /* PAIRS, CSV: NULL: found */
  pst_progress *progress;                /* begun by the caller; counts bytes; NULL: silent */
} pst_data_import_options;
typedef struct pst_data_imported {
  int64_t n_new, n_known; /* known: the same line was imported before */
  pst_data_format format;
} pst_data_imported;
/* Reads a file ("-": standard input) of JSON lines, one JSON array, or CSV, piece by piece, and stores its rows as records of a workload: all or none, and
 * one error that says FILE:LINE. Errors: PST_E_BAD_INPUT, PST_E_NOT_FOUND, PST_E_LIMIT (a row of over 64 MiB), PST_E_NO_DATA (no rows). */
int pst_data_import(pst_store *store, const char *path, const pst_data_import_options *options,
                    pst_data_imported *ret_imported, pst_error *err);

/* ---- export (data/export.c) ------------------------------------------------------------------------------------- */

typedef struct pst_data_export_options {
  pst_store_request_filter filter; /* which records; content is read in any case */
  pst_data_format format;          /* not AUTO, not PAIRS */
  pst_progress *progress;          /* counts records; NULL: silent */
} pst_data_export_options;
typedef struct pst_data_exported {
  int64_t n_written;
  int64_t n_left_out; /* that this format cannot say, or without an answer */
} pst_data_exported;
/* Writes answered records with their texts, oldest first. What a correction says is the answer. PST_E_IO when the file fails. */
int pst_data_export(pst_store *store, const pst_data_export_options *options, FILE *file,
                    pst_data_exported *ret_exported, pst_error *err);

/* ---- private data in texts (data/pii.c) ------------------------------------------------------------------------- */

typedef enum pst_data_pii {
  PST_DATA_CARD, /* 12 to 19 digits with the check digit of Luhn */
  PST_DATA_IBAN, /* length by country, mod 97 */
  PST_DATA_PHONE,
  PST_DATA_EMAIL,
  PST_DATA_IP,  /* v4, v6 and hardware addresses */
  PST_DATA_ID,  /* of persons, by a check digit or by the words before */
  PST_DATA_KEY, /* API keys, tokens, passwords, private keys */
  PST_DATA_PII_COUNT
} pst_data_pii;
const char *pst_data_pii_name(pst_data_pii kind); /* "CARD" */

typedef struct pst_data_finding {
  size_t start, end; /* bytes */
  pst_data_pii kind;
} pst_data_finding;
/* Finds private data in a text, left to right and not overlapping; appends to *findings ([*n], pst_array_reserve). One pass, linear in the text.
 * Checks: Luhn (ISO/IEC 7812-1), mod 97-10 (ISO 7064; IBAN: ISO 13616). Only error: PST_E_NOMEM. */
int pst_data_pii_find(pst_str text, pst_data_finding **findings, size_t *n, size_t *capacity);

/* Placeholders that stand for values: the same value of a kind gives the same "[EMAIL_1]" wherever it occurs. */
typedef struct pst_data_placeholders pst_data_placeholders;
pst_data_placeholders *pst_data_placeholders_create(void); /* NULL: out of memory */
void pst_data_placeholders_free(pst_data_placeholders *placeholders);
/* Appends the text with its private data replaced. counts: [PST_DATA_PII_COUNT], added to; NULL: not wanted. Only error: PST_E_NOMEM. */
int pst_data_placeholders_apply(pst_data_placeholders *placeholders, pst_str text, pst_buf *out, int64_t *counts);

/* ---- near-duplicates (data/similar.c) --------------------------------------------------------------------------- */

/* An index of token sets that answers: which of those entered before has a Jaccard index of at least `threshold` with this one? Sets of up to
 * PST_DATA_SHORT tokens are found exactly, by prefix filter (Bayardo, Ma and Srikant 2007); larger ones by MinHash with locality-sensitive hashing
 * (Broder 1997; Indyk and Motwani 1998). Every pair is verified by its true Jaccard index. */
enum { PST_DATA_SHORT = 24 };
typedef struct pst_data_similar pst_data_similar;
/* 0.5 <= threshold <= 1. NULL: out of memory. */
pst_data_similar *pst_data_similar_create(double threshold);
void pst_data_similar_free(pst_data_similar *index);
/* Of the sets entered before in the same group (a hash), one that is near enough (the first by number), or -1. tokens: hashes, [n], sorted ascending, distinct. accept NULL, or asked for each
 * candidate that is near: false goes on. PST_E_NOMEM. */
int pst_data_similar_find(pst_data_similar *index, uint64_t group, const uint64_t *tokens, size_t n,
                          bool (*accept)(void *user, int64_t number), void *user, int64_t *ret_number);
/* Enters a set (copied) under the next number, from 0. */
int pst_data_similar_add(pst_data_similar *index, uint64_t group, const uint64_t *tokens, size_t n);
int64_t pst_data_similar_verified(const pst_data_similar *index); /* pairs whose Jaccard index was computed */
/* Sorts and drops repetitions; returns how many are left. */
size_t pst_data_tokens_sort(uint64_t *tokens, size_t n);
/* Of two sorted distinct sets; of two empty ones 1. */
double pst_data_jaccard(const uint64_t *a, size_t n_a, const uint64_t *b, size_t n_b);

/* ---- curation (data/curate.c) ----------------------------------------------------------------------------------- */

/* Why an example was left out, in the order in which it is asked. */
typedef enum pst_data_reason {
  PST_DATA_KEPT,
  PST_DATA_EMPTY,        /* no conversation or no answer in the record */
  PST_DATA_UNJUDGED,     /* of PREFERENCES: nobody said anything of the answer */
  PST_DATA_ANSWERED,     /* of INPUTS: the answer will do */
  PST_DATA_FEEDBACK,     /* thumbs down, a low score, a retry or an abandonment, and no correction */
  PST_DATA_CUT,          /* the answer ended at its length limit */
  PST_DATA_FORM,         /* not one of the workload's labels, or not the JSON that it wants */
  PST_DATA_CONTAMINATED, /* like an item that judges models */
  PST_DATA_DUPLICATE,    /* the same conversation and answer */
  PST_DATA_DISAGREES, /* others gave another answer to the same conversation, and more often; of PREFERENCES: as many or more judged the same answer otherwise */
  PST_DATA_NEAR_DUPLICATE,
  PST_DATA_SUSPECT, /* label noise: only with drop_suspects */
  PST_DATA_GAP,     /* no likelier behind its question than without: only with gap_model */
  PST_DATA_BALANCE, /* its label has enough examples */
  PST_DATA_REASON_COUNT
} pst_data_reason;
const char *pst_data_reason_name(pst_data_reason reason); /* "near duplicate" */

/* What a data set holds. TRAINING: conversations with answers to learn. PREFERENCES: what was said of answers: corrections beside what they correct, and answers that were
 * liked or not (thumbs; a score of at least min_score, or below). INPUTS: conversations whose answers will not do (bad feedback, cut off, of
 * another form), without them. Labels are balanced and doubted in TRAINING alone. */
typedef enum pst_data_kind {
  PST_DATA_TRAINING,
  PST_DATA_PREFERENCES,
  PST_DATA_INPUTS,
  PST_DATA_KIND_COUNT
} pst_data_kind;
const char *pst_data_kind_name(pst_data_kind kind); /* as data sets have it: "training", "preference", "input" */

#define PST_DATA_LEAST_SCORE 0.5
typedef struct pst_data_curate_options {
  pst_str workload;
  pst_data_kind kind;
  double near_duplicate;             /* 0: 0.8 */
  double min_score;                  /* scores below are bad feedback */
  bool has_min_score;                /* else PST_DATA_LEAST_SCORE */
  int64_t most_per_label;            /* 0: any number */
  double held;                       /* share of examples held back, by cluster; below 0: 0.1 */
  bool keep_pii;                     /* leave private data in the texts */
  bool drop_suspects, skip_suspects; /* skip: no classifier is trained to find them */
  /* TRAINING: a local model that says how much likelier each answer is behind its question, per token; an answer that gains no more than least_gap nats is left out, or with
   * flag_gaps only listed. NULL: nobody is asked. */
  const char *gap_model;
  pst_gateway *gateway; /* with gap_model */
  double least_gap;
  bool flag_gaps;
  int n_examples; /* of each reason in the report; 0: 3 */
  uint64_t seed;
  const pst_evals_workload
      *form; /* whose labels or JSON the answers must have, and whose items are guarded first; NULL: none */
  pst_progress *progress; /* counts records; NULL: silent */
} pst_data_curate_options;

typedef struct pst_data_curated {
  char hash[65]; /* of the data set; empty: nothing was left */
  int64_t n_records, n_held, n_clusters, n_labels /* 0: no choice task */, n_suspects, n_guarded, n_corrected;
  int64_t n_by_reason[PST_DATA_REASON_COUNT], n_pii[PST_DATA_PII_COUNT];
  int64_t n_pairs, n_liked, n_disliked; /* PREFERENCES: corrections with what they correct; answers that were judged */
  int64_t n_gaps, n_low_gaps;           /* answers whose gap was found, and that gain too little */
  double gap_sum;                       /* of those found, nats per token */
  int64_t n_verified;                   /* pairs compared for near-duplicates */
  int64_t wall_ms;
} pst_data_curated;
/* Makes a data set of a workload's records that may be trained on. Nothing of the records is changed. ret_report: the report, JSON with
 * examples of each reason (texts with placeholders) and all suspects; appended. Errors: PST_E_NO_DATA when the workload has no record that may be
 * trained on. */
int pst_data_curate(pst_store *store, const pst_data_curate_options *options, pst_data_curated *ret_curated,
                    pst_buf *ret_report, pst_error *err);
/* The report as text for a person; appended. */
int pst_data_report_text(pst_str report_json, pst_buf *out, pst_error *err);

/* ---- data sets (data/set.c) ------------------------------------------------------------------------------------- */

typedef struct pst_data_line {
  const pst_json *messages; /* the last is the assistant's answer; of kind "input" there is none */
  const pst_json *tools;    /* NULL: none */
  bool held;                /* held back from training */
  int64_t cluster;
} pst_data_line;
/* Calls fn for each line of a data set of kind "training", in order; a result other than 0 stops and is returned. PST_E_CORRUPT for a file that is not what its
 * name says, PST_E_NOT_FOUND for an unknown or withdrawn set (the error names its successor). */
int pst_data_set_each_line(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_data_line *line), void *user,
                           pst_error *err);

/* A line of kind "preference": one answer or both. */
typedef struct pst_data_preference {
  const pst_json *messages; /* without the answer */
  pst_str wanted, unwanted; /* data NULL: none */
  bool held;
  int64_t cluster;
} pst_data_preference;
/* The same for data sets of kind "input", and of kind "preference". */
int pst_data_set_each_input(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_data_line *line),
                            void *user, pst_error *err);
int pst_data_set_each_preference(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_data_preference *line),
                                 void *user, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
