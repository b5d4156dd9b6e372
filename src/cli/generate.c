/* Generating on the command line. */
#include "cli/generate.h"

#include <string.h>

typedef struct listener {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool print, ended;
  pst_buf *answer;
  pst_engine_event last;
  pst_error error;
} listener;

static void on_event(void *user, const pst_engine_event *e) {
  listener *l = user;
  pthread_mutex_lock(&l->lock);
  pst_buf_append_str(l->answer, e->text);
  if (l->print && e->text.n) {
    fwrite(e->text.data, 1, e->text.n, stdout);
    fflush(stdout);
  }
  if (e->finish != PST_ENGINE_FINISH_NONE) {
    l->last = *e;
    if (e->error) l->error = *e->error;
    l->ended = true;
    pthread_cond_signal(&l->changed);
  }
  pthread_mutex_unlock(&l->lock);
}

int pst_cli_engine_open(const pst_cli_args *a, pst_engine_model *model, pst_engine **ret_engine, pst_error *err) {
  pst_engine_options o = pst_engine_options_default();
  o.slots = 1;
  o.threads = (int)pst_cli_int(a, "threads");
  return pst_engine_create(model, &o, ret_engine, err);
}

int pst_cli_generate(const pst_cli_args *a, pst_engine *engine, const pst_engine_tokens *prompt, bool print,
                     pst_buf *answer, pst_engine_event *ret_last, pst_error *err) {
  listener l = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, print, false, answer, {0}, PST_ERROR_INIT};
  pst_engine_request q = {0};
  const char *const *texts = NULL;
  pst_str stop[16], choice[256];
  int n_stop = pst_cli_many(a, "stop", &texts);
  if (n_stop > 16) return pst_error_set(err, PST_E_LIMIT, "stop", "at most 16 stop texts");
  for (int i = 0; i < n_stop; i++) stop[i] = pst_str_from(texts[i]);
  int n_choices = pst_cli_many(a, "choice", &texts);
  if (n_choices > 256) return pst_error_set(err, PST_E_LIMIT, "choice", "at most 256 choices");
  for (int i = 0; i < n_choices; i++) choice[i] = pst_str_from(texts[i]);
  q.prompt = prompt->ids;
  q.n_prompt = prompt->n;
  q.max_tokens = (int)pst_cli_int(a, "max-tokens");
  q.sampling = pst_engine_sampling_default();
  q.sampling.temperature = (float)pst_cli_number(a, "temperature");
  q.sampling.top_k = (int)pst_cli_int(a, "top-k");
  q.sampling.top_p = (float)pst_cli_number(a, "top-p");
  q.sampling.min_p = (float)pst_cli_number(a, "min-p");
  q.sampling.repetition_penalty = (float)pst_cli_number(a, "repeat-penalty");
  q.sampling.seed = (uint64_t)pst_cli_int(a, "seed");
  q.stop = stop;
  q.n_stop = (size_t)n_stop;
  q.speculation = pst_cli_flag(a, "lookup") ? PST_ENGINE_SPEC_LOOKUP : PST_ENGINE_SPEC_NONE;
  q.n_logprobs = -1;
  q.callback = on_event;
  q.user = &l;
  pst_engine_model *model = pst_engine_get_model(engine);
  int code = n_choices ? pst_engine_choices_create(model, choice, (size_t)n_choices,
                                                   !pst_engine_model_get_info(model)->has_template, &q.choices, err)
                       : 0;
  uint64_t id;
  if (!code) code = pst_engine_submit(engine, &q, &id, err);
  pst_engine_choices_unref(q.choices);
  if (code) return code;
  pthread_mutex_lock(&l.lock);
  while (!l.ended) pthread_cond_wait(&l.changed, &l.lock);
  pthread_mutex_unlock(&l.lock);
  *ret_last = l.last;
  if (l.last.finish == PST_ENGINE_FINISH_ERROR) {
    if (err) *err = l.error;
    return l.error.code;
  }
  return pst_buf_status(answer);
}

void pst_cli_print_answer(const pst_buf *answer, const pst_engine_event *last) {
  static const char *const finishes[] = {"none", "stop", "length", "cancelled", "error"};
  pst_buf out = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&out, true);
  pst_json_begin_object(&w);
  pst_json_key(&w, "text");
  pst_json_put_str(&w, pst_buf_str(answer));
  pst_json_key(&w, "finish");
  pst_json_put_cstr(&w, finishes[last->finish]);
  const struct {
    const char *name;
    int64_t value;
  } numbers[] = {{"prompt_tokens", last->n_prompt},
                 {"cached_tokens", last->n_cached},
                 {"completion_tokens", last->n_completion},
                 {"first_token_us", last->first_token_us},
                 {"total_us", last->total_us},
                 {"drafted", last->n_drafted},
                 {"accepted", last->n_accepted}};
  for (size_t i = 0; i < PST_ARRAY_LEN(numbers); i++) {
    pst_json_key(&w, numbers[i].name);
    pst_json_put_int(&w, numbers[i].value);
  }
  pst_json_end_object(&w);
  puts(pst_buf_text(&out));
  pst_buf_done(&out);
}
