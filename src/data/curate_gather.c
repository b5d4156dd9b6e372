/* Gathering: the records of a workload that may be trained on, what people said of them, and what stands in them. The first reasons to leave one out are decided
 * here: those that need no other record. */
#include <stdlib.h>
#include <string.h>

#include "data/curate.h"

static bool copy(pst_data_curation *c, pst_str from, pst_str *to) {
  char *text = from.data ? pst_arena_strndup(c->arena, from.data, from.n) : NULL;
  *to = (pst_str){text, text ? from.n : 0};
  return text || !from.data;
}

/* ---- records ---- */

static int add_record(void *user, const pst_store_request *r) {
  pst_data_curation *c = user;
  if (pst_array_reserve((void **)&c->list, &c->capacity, c->n + 1, sizeof *c->list)) return PST_E_NOMEM;
  pst_data_candidate *x = &c->list[c->n];
  memset(x, 0, sizeof *x);
  x->record = r->id;
  x->time_ms = r->time_ms;
  x->other = -1;
  x->cut = pst_str_is(r->finish, "length");
  if (!copy(c, r->completion_id, &x->id) || !copy(c, r->input_json, &x->input) || !copy(c, r->output_json, &x->output))
    return PST_E_NOMEM;
  c->n++;
  return 0;
}

/* ---- feedback ---- */

typedef struct by_id {
  pst_data_curation *c;
  uint32_t *order; /* of the candidates, by completion id */
} by_id;

static int compare_ids(const void *a, const void *b, void *list) {
  const pst_data_candidate *x = (pst_data_candidate *)list + *(const uint32_t *)a,
                           *y = (pst_data_candidate *)list + *(const uint32_t *)b;
  return pst_str_compare(x->id, y->id);
}

static pst_data_candidate *find_id(const by_id *ids, pst_str id) {
  size_t low = 0, high = ids->c->n;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    pst_data_candidate *x = &ids->c->list[ids->order[middle]];
    int order = pst_str_compare(x->id, id);
    if (order == 0) return x;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return NULL;
}

/* Oldest first, so that the last word counts. */
static int take_feedback(void *user, const pst_store_feedback *f) {
  const by_id *ids = user;
  pst_data_candidate *x = find_id(ids, f->completion_id);
  if (!x) return 0;
  if (f->thumbs) x->thumbs = f->thumbs;
  if (f->has_score) x->score = f->score;
  x->has_score = x->has_score || f->has_score;
  x->retried = x->retried || f->retried;
  x->abandoned = x->abandoned || f->abandoned;
  return f->correction.data && !copy(ids->c, f->correction, &x->correction) ? PST_E_NOMEM : 0;
}

static int take_all_feedback(pst_data_curation *c) {
  by_id ids = {c, pst_calloc(c->n + 1, sizeof(uint32_t))};
  if (!ids.order) return PST_E_NOMEM;
  for (size_t i = 0; i < c->n; i++) ids.order[i] = (uint32_t)i;
  qsort_r(ids.order, c->n, sizeof *ids.order, compare_ids, c->list);
  int code = pst_store_feedback_each(c->store, (pst_str){NULL, 0}, 0, take_feedback, &ids, c->err);
  pst_free(ids.order);
  return code;
}

static bool is_disliked(const pst_data_candidate *x, const pst_data_curate_options *o) {
  if (x->correction.data || x->thumbs > 0) return false;
  return x->thumbs < 0 || x->retried || x->abandoned || (x->has_score && x->score < pst_data_least_score(o));
}

/* What was said of the answer, for a set of preferences; *ret_judged false: nothing. */
static int judge(pst_data_curation *c, pst_data_candidate *x, const pst_json *output, bool *ret_judged) {
  if (x->correction.data) {
    const pst_json *choice = pst_json_at(pst_json_get(output, "choices"), 0);
    pst_str before = pst_str_trim(pst_json_str(pst_json_get(choice, "text")));
    *ret_judged = true;
    return before.n && !pst_str_equal(before, x->answer) && !copy(c, before, &x->corrected) ? PST_E_NOMEM : 0;
  }
  x->disliked = x->thumbs < 0 || (!x->thumbs && x->has_score && x->score < pst_data_least_score(c->options));
  *ret_judged = x->thumbs || x->has_score;
  return 0;
}

/* ---- contents ---- */

static bool is_system(const pst_json *message) {
  pst_str role = pst_json_str(pst_json_get(message, "role"));
  return pst_str_is(role, "system") || pst_str_is(role, "developer");
}

static int add_words(pst_data_curation *c, pst_str text, pst_data_range *range) {
  range->first = c->n_words;
  int code = pst_evals_word_hashes(text, &c->words, &c->n_words, &c->words_capacity);
  range->n = c->n_words - range->first;
  return code;
}

/* The conversation in a form in which spaces, capitals and punctuation do not count; text without any word stays as it is. */
static int read_conversation(pst_data_curation *c, const pst_data_example *e, pst_data_candidate *x, pst_buf *all,
                             pst_buf *text) {
  pst_buf_clear(all);
  uint64_t hash = 1;
  size_t n = 0;
  if (!e->messages) pst_buf_append_str(all, e->prompt), n = 1;
  for (pst_json_iter it = pst_json_iterate(e->messages); pst_json_next(&it);) {
    pst_str role = pst_json_str(pst_json_get(it.value, "role"));
    pst_buf_clear(text);
    if (!pst_data_message_text(it.value, text)) { /* pictures and the like: as JSON */
      pst_json_writer w = pst_json_writer_on(text, false);
      pst_json_put_value(&w, pst_json_get(it.value, "content"));
    }
    hash = pst_hash64(role.data, role.n, hash);
    if (is_system(it.value)) {
      hash = pst_hash64(text->data ? text->data : "", text->n, hash);
      continue;
    }
    if (all->n) pst_buf_putc(all, '\n');
    pst_buf_append_str(all, pst_buf_str(text));
    n++;
  }
  pst_buf_clear(text);
  (void)pst_data_last_user_text(e, text);
  if (pst_buf_status(all) || pst_buf_status(text) || !copy(c, pst_buf_str(text), &x->text)) return PST_E_NOMEM;
  int code = add_words(c, pst_buf_str(all), &x->words);
  x->user_words = x->words;
  if (!code && n > 1) code = add_words(c, x->text, &x->user_words);
  pst_str same = x->words.n ? (pst_str){(const char *)(c->words + x->words.first), x->words.n * sizeof *c->words}
                            : pst_buf_str(all);
  x->conversation_hash = pst_hash64(same.data ? same.data : "", same.n, hash);
  return code;
}

static int read_answer(pst_data_curation *c, const pst_data_example *e, pst_data_candidate *x, pst_buf *text) {
  pst_buf_clear(text);
  pst_buf_append_str(text, e->answer);
  if (e->tool_calls) {
    pst_json_writer w = pst_json_writer_on(text, false);
    pst_json_put_value(&w, e->tool_calls);
  }
  if (pst_buf_status(text) || !copy(c, pst_str_trim(pst_buf_str(text)), &x->answer)) return PST_E_NOMEM;
  x->answer_hash = pst_hash64(x->answer.data ? x->answer.data : "", x->answer.n, 2);
  return 0;
}

/* Whether the answer is what the workload's grader could accept at all; where the workload has the same input among its examples, whether it does. */
static int check_form(const pst_data_curation *c, const pst_data_candidate *x, bool *ret_ok) {
  const pst_evals_info *info = pst_evals_workload_info(c->options->form);
  bool ok = info->n_labels == 0 && info->grader != PST_EVALS_JSON;
  for (size_t i = 0; i < info->n_labels && !ok; i++) ok = pst_str_equal(info->labels[i], x->answer);
  if (info->n_labels == 0 && info->grader == PST_EVALS_JSON) {
    pst_json_doc *doc = NULL;
    ok = !pst_json_parse(x->answer.data, x->answer.n, "answer", &doc, NULL);
    pst_json_free(doc);
  }
  for (size_t i = 0; i < info->n_items && ok; i++) {
    pst_evals_grade grade;
    if (info->items[i].part != PST_EVALS_EXAMPLES || !pst_str_equal(info->items[i].input, x->text)) continue;
    int code = pst_evals_grade_answer(c->options->form, &info->items[i], x->answer, &grade, c->err);
    if (code) return code;
    ok = grade.accepted;
  }
  *ret_ok = ok;
  return 0;
}

/* Why an answer will not do, whatever other records say; KEPT: it will. */
static int judge_answer(const pst_data_curation *c, const pst_data_candidate *x, pst_data_reason *ret_reason) {
  bool ok = true;
  int code = 0;
  *ret_reason = PST_DATA_KEPT;
  if (c->options->kind != PST_DATA_PREFERENCES && is_disliked(x, c->options))
    *ret_reason = PST_DATA_FEEDBACK;
  else if (x->cut && !x->correction.data)
    *ret_reason = PST_DATA_CUT;
  else if (c->options->form && !x->disliked)
    code = check_form(c, x, &ok);
  if (!ok) *ret_reason = PST_DATA_FORM;
  return code;
}

static int decide(pst_data_curation *c, pst_data_candidate *x, const pst_data_example *e, const pst_json *output) {
  bool preferences = c->options->kind == PST_DATA_PREFERENCES, judged = true;
  int code = preferences ? judge(c, x, output, &judged) : 0;
  if (code) return code;
  if (!judged || (preferences && e->tool_calls)) {
    x->reason = judged ? PST_DATA_EMPTY : PST_DATA_UNJUDGED;
    return 0;
  }
  code = judge_answer(c, x, &x->reason);
  if (c->options->kind != PST_DATA_INPUTS) return code;
  x->reason = x->reason == PST_DATA_KEPT ? PST_DATA_ANSWERED : PST_DATA_KEPT;
  x->answer = (pst_str){"", 0};
  x->answer_hash = 0;
  return code;
}

static int read_candidate(pst_data_curation *c, pst_data_candidate *x, pst_buf *all, pst_buf *text) {
  pst_json_doc *input = NULL, *output = NULL;
  pst_data_example e;
  bool ok = x->input.n && x->output.n && !pst_json_parse(x->input.data, x->input.n, "input", &input, NULL) &&
            !pst_json_parse(x->output.data, x->output.n, "output", &output, NULL) &&
            !pst_data_example_of(pst_json_root(input), pst_json_root(output), x->correction, &e);
  int code = ok ? read_conversation(c, &e, x, all, text) : 0;
  if (ok && !code) code = read_answer(c, &e, x, text);
  if (ok && !code) code = decide(c, x, &e, pst_json_root(output));
  if (!ok) x->reason = PST_DATA_EMPTY;
  pst_json_free(input);
  pst_json_free(output);
  return code;
}

int pst_data_gather(pst_data_curation *c) {
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  pst_buf all = PST_BUF_INIT, text = PST_BUF_INIT;
  f.workload = c->options->workload;
  f.purpose = PST_STORE_PURPOSE_USER;
  f.origin = PST_STORE_ANY_ORIGIN;
  f.answered = f.train = f.with_content = f.lasting = true;
  int code = pst_store_request_each(c->store, &f, add_record, c, c->err);
  if (!code && c->n == 0)
    return pst_error_set(c->err, PST_E_NO_DATA, "curate",
                         "\"%.*s\" has no record that may be trained on; import some, or let a key's requests be kept "
                         "and trained on ('penstock key consent NAME --keep content --train yes')",
                         (int)PST_MIN(f.workload.n, (size_t)63), f.workload.data);
  if (!code) code = take_all_feedback(c);
  for (size_t i = 0; i < c->n && !code; i++) {
    code = read_candidate(c, &c->list[i], &all, &text);
    if (c->options->progress) pst_progress_update(c->options->progress, (int64_t)i + 1);
  }
  pst_buf_done(&all);
  pst_buf_done(&text);
  return code == PST_E_NOMEM ? pst_data_no_memory(c) : code;
}
