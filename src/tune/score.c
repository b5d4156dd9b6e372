/* Answers to a held-out sample (score.h). All are submitted at once and decoded together; the caller waits for the last. */
#include "tune/score.h"

#include <pthread.h>
#include <string.h>

typedef struct waiting {
  pthread_mutex_t lock; /* guards what follows */
  pthread_cond_t ended;
  size_t n_open;
  pst_error error; /* the first; code 0: none */
} waiting;

typedef struct answer {
  waiting *all;
  pst_buf text;
} answer;

/* On the engine's thread. */
static void on_event(void *user, const pst_engine_event *e) {
  answer *a = user;
  pst_buf_append_str(&a->text, e->text);
  if (e->finish == PST_ENGINE_FINISH_NONE) return;
  pthread_mutex_lock(&a->all->lock);
  if (e->finish == PST_ENGINE_FINISH_ERROR && !a->all->error.code) {
    if (e->error)
      a->all->error = *e->error;
    else
      pst_error_set(&a->all->error, PST_E_INTERNAL, NULL, "the engine failed");
  }
  a->all->n_open--;
  pthread_cond_signal(&a->all->ended);
  pthread_mutex_unlock(&a->all->lock);
}

static int submit(const pst_tune_sample *s, size_t i, pst_engine_adapter *adapter, answer *a, pst_error *err) {
  static const pst_str line_end[] = {{"\n", 1}};
  uint64_t id;
  pst_engine_request r = {.prompt = s->items[i].prompt,
                          .n_prompt = s->items[i].n_prompt,
                          .max_tokens = pst_evals_workload_info(s->workload)->max_tokens,
                          .sampling = pst_engine_sampling_default(),
                          .stop = line_end,
                          .n_stop = s->plain ? PST_ARRAY_LEN(line_end) : 0,
                          .choices = s->choices,
                          .n_logprobs = -1,
                          .adapter = adapter,
                          .callback = on_event,
                          .user = a};
  r.sampling.temperature = 0;
  pthread_mutex_lock(&a->all->lock);
  a->all->n_open++;
  pthread_mutex_unlock(&a->all->lock);
  int code = pst_engine_submit(s->engine, &r, &id, err);
  pthread_mutex_lock(&a->all->lock);
  if (code) a->all->n_open--;
  pthread_mutex_unlock(&a->all->lock);
  return code;
}

static int grade(const pst_tune_sample *s, const answer *answers, size_t n, uint64_t *ret_right, pst_error *err) {
  uint64_t right = 0;
  int code = 0;
  for (size_t i = 0; i < n && !code; i++) {
    pst_evals_grade g = {.accepted = false};
    pst_str text = pst_buf_str(&answers[i].text);
    if (pst_buf_status(&answers[i].text)) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an answer");
    if (s->plain && !s->choices && text.n && text.data[0] == ' ') text = (pst_str){text.data + 1, text.n - 1};
    code = pst_evals_grade_answer(s->workload, s->items[i].item, text, &g, err);
    if (g.accepted) right |= UINT64_C(1) << i;
  }
  if (!code) *ret_right = right;
  return code;
}

int pst_tune_sample_score(void *user, const pst_engine_lora *lora, size_t n, uint64_t *ret_right, pst_error *err) {
  const pst_tune_sample *s = user;
  waiting all = {.n_open = 0, .error = PST_ERROR_INIT};
  answer answers[PST_TUNE_MAX_SCORED];
  pst_engine_adapter *adapter = NULL;
  pst_engine_lora coded = *lora; /* all but the note is the trainer's */
  coded.notes[PST_ENGINE_LORA_CODES] = (char *)(uintptr_t)s->codes;
  n = PST_MIN(n, PST_MIN(s->n, PST_ARRAY_LEN(answers)));
  int code = pst_engine_adapter_create(pst_engine_get_model(s->engine), &coded, &adapter, err);
  if (code) return code;
  pthread_mutex_init(&all.lock, NULL);
  pthread_cond_init(&all.ended, NULL);
  for (size_t i = 0; i < n; i++) answers[i] = (answer){.all = &all, .text = PST_BUF_INIT};
  for (size_t i = 0; i < n && !code; i++) code = submit(s, i, adapter, &answers[i], err);
  pthread_mutex_lock(&all.lock);
  while (all.n_open) pthread_cond_wait(&all.ended, &all.lock);
  pthread_mutex_unlock(&all.lock);
  if (!code && all.error.code) {
    code = all.error.code;
    if (err) *err = all.error;
  }
  if (!code) code = grade(s, answers, n, ret_right, err);
  for (size_t i = 0; i < n; i++) pst_buf_done(&answers[i].text);
  pthread_cond_destroy(&all.ended);
  pthread_mutex_destroy(&all.lock);
  pst_engine_adapter_unref(adapter);
  return code;
}

static void put_answered(pst_json_writer *w, const pst_tune_evaluation *e) {
  pst_json_member_int(w, "asked", e->n_asked);
  pst_json_member_int(w, "right", e->n_right);
}

void pst_tune_report_put_evaluations(const pst_tune_report *r, pst_json_writer *w) {
  pst_json_key(w, "evaluations");
  pst_json_begin_array(w);
  for (size_t i = 0; i < r->n_evaluations; i++) {
    const pst_tune_evaluation *e = &r->evaluations[i];
    pst_json_begin_object(w);
    pst_json_member_int(w, "step", e->step);
    pst_json_member_double(w, "held_out_loss", e->loss);
    if (e->n_asked) put_answered(w, e);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
  pst_json_member_double(w, "score_seconds", r->score_seconds);
  if (!r->best.n_asked) return;
  pst_json_key(w, "score");
  pst_json_begin_object(w);
  put_answered(w, &r->best);
  pst_json_end_object(w);
}
