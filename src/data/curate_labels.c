/* Choice tasks: which labels there are, whose label others would hardly give, and how many examples each label keeps.
 *
 * A record is a suspect when a classifier that was not shown its like is sure of another label and all but excludes its own. Suspects are for a person to look at;
 * they are left out only where the options say so. */
#include <stdlib.h>
#include <string.h>

#include "data/curate.h"

enum { LABEL_BYTES = 80, LABELS_MOST = 500, EXAMPLES_EACH = 5 };
#define SURE 0.8   /* of the other label */
#define HARDLY 0.1 /* of its own */

static int by_text(const void *a, const void *b) { return pst_str_compare(*(const pst_str *)a, *(const pst_str *)b); }

/* Few answers, short, and each given often: then answers are labels. */
static int find_labels(pst_data_curation *c) {
  pst_str *answers = pst_calloc(c->n + 1, sizeof *answers);
  if (!answers) return PST_E_NOMEM;
  size_t n = 0, n_distinct = 0;
  bool choice = true;
  for (size_t i = 0; i < c->n; i++) {
    if (c->list[i].reason != PST_DATA_KEPT) continue;
    answers[n++] = c->list[i].answer;
    choice = choice && c->list[i].answer.n <= LABEL_BYTES;
  }
  qsort(answers, n, sizeof *answers, by_text);
  for (size_t i = 0; i < n; i++)
    if (i == 0 || !pst_str_equal(answers[i], answers[i - 1])) answers[n_distinct++] = answers[i];
  choice = choice && n_distinct >= 2 && n_distinct <= LABELS_MOST && n >= n_distinct * EXAMPLES_EACH;
  c->labels = answers;
  c->n_labels = choice ? n_distinct : 0;
  c->done.n_labels = (int64_t)c->n_labels;
  return 0;
}

static int find_suspects(pst_data_curation *c) {
  pst_classifier_record *records = pst_calloc(c->n + 1, sizeof *records);
  pst_classifier_opinion *opinions = pst_calloc(c->n + 1, sizeof *opinions);
  size_t n = 0;
  int code = records && opinions ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < c->n && !code; i++)
    if (c->list[i].reason == PST_DATA_KEPT)
      records[n++] =
          (pst_classifier_record){.text = c->list[i].text, .label = c->list[i].answer, .group = c->list[i].cluster};
  pst_error why = PST_ERROR_INIT;
  if (!code) code = pst_classifier_cross_check(records, n, NULL, opinions, &why);
  if (code == PST_E_NO_DATA || code == PST_E_LIMIT) { /* too few or too many to judge: nobody is suspected */
    pst_log(PST_LOG_INFO, "event=no_label_check reason=\"%s\"", why.message);
    n = 0;
    code = 0;
  } else if (code && code != PST_E_NOMEM && c->err) {
    *c->err = why;
  }
  size_t at = 0;
  for (size_t i = 0; i < c->n && !code && n; i++) {
    pst_data_candidate *x = &c->list[i];
    if (x->reason != PST_DATA_KEPT) continue;
    x->opinion = opinions[at++];
    x->suspect = !x->correction.data && x->opinion.probability >= SURE && x->opinion.own <= HARDLY &&
                 !pst_str_equal(x->opinion.label, x->answer);
    c->done.n_suspects += x->suspect;
    if (x->suspect && c->options->drop_suspects) x->reason = PST_DATA_SUSPECT;
  }
  pst_free(records);
  pst_free(opinions);
  return code;
}

typedef struct drawn {
  uint64_t draw;
  pst_data_candidate *candidate;
} drawn;

static int by_label_and_draw(const void *a, const void *b) {
  const drawn *x = a, *y = b;
  int order = pst_str_compare(x->candidate->answer, y->candidate->answer);
  return order ? order : (x->draw > y->draw) - (x->draw < y->draw);
}

/* A label keeps what comes first in an order drawn by the seed. */
static int balance(pst_data_curation *c) {
  drawn *list = pst_calloc(c->n + 1, sizeof *list);
  if (!list) return PST_E_NOMEM;
  size_t n = 0;
  for (size_t i = 0; i < c->n; i++)
    if (c->list[i].reason == PST_DATA_KEPT)
      list[n++] = (drawn){pst_random_u64(c->options->seed, 1, (uint64_t)c->list[i].record), &c->list[i]};
  qsort(list, n, sizeof *list, by_label_and_draw);
  int64_t of_label = 0;
  for (size_t i = 0; i < n; i++) {
    bool same = i && pst_str_equal(list[i].candidate->answer, list[i - 1].candidate->answer);
    of_label = same ? of_label + 1 : 1;
    if (of_label > c->options->most_per_label) list[i].candidate->reason = PST_DATA_BALANCE;
  }
  pst_free(list);
  return 0;
}

int pst_data_judge_labels(pst_data_curation *c) {
  int code = find_labels(c);
  if (!code && c->n_labels && !c->options->skip_suspects) code = find_suspects(c);
  if (!code && c->n_labels && c->options->most_per_label > 0) code = balance(c);
  return code == PST_E_NOMEM ? pst_data_no_memory(c) : code;
}
