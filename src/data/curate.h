/* Private to data: a curation under way. */
#ifndef PST_DATA_CURATE_H
#define PST_DATA_CURATE_H

#include <penstock/classifier.h>

#include "data/data.h"

/* Part of an array of word hashes or token numbers. */
typedef struct pst_data_range {
  size_t first, n;
} pst_data_range;

/* A record that may become an example. Strings are in the curation's arena. */
typedef struct pst_data_candidate {
  int64_t record, time_ms;
  pst_str id, input, output; /* completion id; JSON as recorded */
  bool cut;                  /* the answer ended at its length limit */

  pst_str correction; /* data NULL: none */
  int thumbs;
  bool has_score, retried, abandoned;
  double score;

  pst_str text, answer; /* what the user said last; the answer, corrected */
  pst_str corrected;    /* PREFERENCES: the answer in whose place `answer` came; data NULL: none */
  bool disliked;        /* PREFERENCES: `answer` is one that was not wanted */
  uint64_t conversation_hash, answer_hash;
  pst_data_range words, user_words;   /* in curation.words: of the conversation without system messages; of `text` */
  pst_data_range tokens, user_tokens; /* in curation.tokens: the same as sorted sets */

  pst_data_reason reason;
  int64_t
      other; /* with a duplicate or a disagreement: the record that stayed; with contamination: index into guards; -1: none */
  uint32_t cluster;
  bool held, suspect;
  pst_classifier_opinion opinion; /* of a choice task */
  bool low_gap;                   /* by a model, its question does too little for the answer */
  double gap;                     /* with low_gap: nats per token */
} pst_data_candidate;

typedef struct pst_data_guard {
  pst_str workload, item;
  pst_data_range words, tokens;
} pst_data_guard;

typedef struct pst_data_curation {
  pst_store *store;
  const pst_data_curate_options *options;
  pst_arena *arena;
  pst_data_candidate *list;
  size_t n, capacity;
  pst_data_guard *guards;
  size_t n_guards, guards_capacity;
  uint64_t *words;
  size_t n_words, words_capacity;
  uint64_t *tokens;
  size_t n_tokens, tokens_capacity;
  pst_str *labels; /* of a choice task, ascending */
  size_t n_labels;
  pst_data_placeholders *placeholders;
  pst_data_curated done;
  pst_error *err;
} pst_data_curation;

int pst_data_no_memory(const pst_data_curation *c);

/* ---- curate_gather.c: records, feedback, what they say ---- */
int pst_data_gather(pst_data_curation *c);

static inline double pst_data_least_score(const pst_data_curate_options *o) {
  return o->has_min_score ? o->min_score : PST_DATA_LEAST_SCORE;
}

/* ---- curate_compare.c: what is like what ---- */
int pst_data_compare(pst_data_curation *c);

/* ---- curate_labels.c: choice tasks, noise, balance ---- */
int pst_data_judge_labels(pst_data_curation *c);

/* ---- curate_likelihood.c: what answers gain by their questions ---- */
int pst_data_judge_likelihood(pst_data_curation *c);

/* ---- curate_report.c ---- */
/* texts false: records by number only, for the store. */
void pst_data_report_write(pst_data_curation *c, bool texts, pst_buf *out);

#endif
