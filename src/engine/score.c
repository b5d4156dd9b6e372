/* Texts that are only scored, for callers that want to wait: a few are open at a time, so that they share the engine's steps. */
#include <pthread.h>

#include "engine/model.h"

enum { IN_FLIGHT = 32 };

typedef struct scoring {
  const pst_engine_score_job *job;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  size_t n_open;     /* under lock, as is `failure` */
  pst_error failure; /* the first; code 0: none */
} scoring;

typedef struct scored {
  scoring *all;
  size_t text, position; /* of the token told of last; the first is none */
} scored;

/* On the engine's thread. */
static void on_event(void *user, const pst_engine_event *e) {
  scored *s = user;
  scoring *all = s->all;
  if (e->finish == PST_ENGINE_FINISH_NONE) {
    if (e->token >= 0) all->job->told(all->job->user, s->text, ++s->position, e);
    return;
  }
  pthread_mutex_lock(&all->lock);
  bool failed = e->finish == PST_ENGINE_FINISH_ERROR || e->finish == PST_ENGINE_FINISH_CANCELLED;
  if (failed && !all->failure.code) {
    if (e->error)
      all->failure = *e->error;
    else
      pst_error_set(&all->failure, PST_E_CANCELLED, NULL, "the engine was closed");
  }
  all->n_open--;
  pthread_cond_signal(&all->changed);
  pthread_mutex_unlock(&all->lock);
}

/* Until at most `most` texts are open. */
static void wait_for(scoring *s, size_t most) {
  pthread_mutex_lock(&s->lock);
  while (s->n_open > most) pthread_cond_wait(&s->changed, &s->lock);
  pthread_mutex_unlock(&s->lock);
}

static void count(scoring *s, int more) {
  pthread_mutex_lock(&s->lock);
  s->n_open = more > 0 ? s->n_open + 1 : s->n_open - 1;
  pthread_mutex_unlock(&s->lock);
}

static size_t count_open(scoring *s) {
  pthread_mutex_lock(&s->lock);
  size_t n = s->n_open;
  pthread_mutex_unlock(&s->lock);
  return n;
}

/* Where the queue is full of ours there is room when one of them is through. */
static int submit(pst_engine *engine, scored *s, pst_error *err) {
  const pst_engine_score_job *job = s->all->job;
  const pst_engine_score_text *t = &job->texts[s->text];
  const pst_engine_request q = {.prompt = t->tokens,
                                .n_prompt = t->n,
                                .sampling = pst_engine_sampling_default(),
                                .n_logprobs = job->n_top,
                                .score_prompt = true,
                                .priority = 1,
                                .callback = on_event,
                                .user = s};
  uint64_t id;
  count(s->all, 1);
  int code = pst_engine_submit(engine, &q, &id, err);
  for (size_t n; code == PST_E_BUSY && (n = count_open(s->all)) > 1;) { /* this one counts as open */
    wait_for(s->all, n - 1);
    code = pst_engine_submit(engine, &q, &id, err);
  }
  if (code) count(s->all, -1);
  return code;
}

int pst_engine_score_wait(pst_engine *engine, const pst_engine_score_job *job, pst_error *err) {
  scoring all = {.job = job, .failure = PST_ERROR_INIT};
  scored *list = pst_calloc(job->n_texts + 1, sizeof *list);
  int code = list ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %zu texts", job->n_texts);
  pthread_mutex_init(&all.lock, NULL);
  pthread_cond_init(&all.changed, NULL);
  for (size_t i = 0; i < job->n_texts && !code; i++) {
    list[i] = (scored){&all, i, 0};
    wait_for(&all, IN_FLIGHT - 1);
    code = job->cancelled && job->cancelled(job->cancelled_user)
               ? pst_error_set(err, PST_E_CANCELLED, NULL, "stopped after %zu of %zu texts", i, job->n_texts)
               : submit(engine, &list[i], err);
  }
  wait_for(&all, 0);
  if (!code && all.failure.code) {
    code = all.failure.code;
    if (err) *err = all.failure;
  }
  pthread_mutex_destroy(&all.lock);
  pthread_cond_destroy(&all.changed);
  pst_free(list);
  return code;
}
