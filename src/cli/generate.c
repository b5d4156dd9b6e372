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
  const char *draft = pst_cli_text(a, "draft");
  int code = draft ? pst_cli_model_open(a, draft, o.threads, &o.draft, err) : 0;
  if (!code) code = pst_engine_create(model, &o, ret_engine, err);
  pst_engine_model_unref(o.draft);
  return code;
}

/* What the options say of a request. Views into the options' texts. */
typedef struct asked {
  pst_str stop[16], choice[256];
  size_t n_stop, n_choices;
} asked;

static int read_texts(const pst_cli_args *a, const pst_cli_generating *how, asked *q, pst_error *err) {
  const char *const *texts = NULL;
  int n_stop = pst_cli_many(a, "stop", &texts);
  if (n_stop + (int)how->n_stops > (int)PST_ARRAY_LEN(q->stop))
    return pst_error_set(err, PST_E_LIMIT, "stop", "at most %d stop texts", (int)PST_ARRAY_LEN(q->stop));
  for (int i = 0; i < n_stop; i++) q->stop[q->n_stop++] = pst_str_from(texts[i]);
  for (size_t i = 0; i < how->n_stops; i++) q->stop[q->n_stop++] = pst_str_from(how->stops[i]);
  int n_choices = pst_cli_many(a, "choice", &texts);
  if (n_choices > (int)PST_ARRAY_LEN(q->choice))
    return pst_error_set(err, PST_E_LIMIT, "choice", "at most %d choices", (int)PST_ARRAY_LEN(q->choice));
  for (int i = 0; i < n_choices; i++) q->choice[q->n_choices++] = pst_str_from(texts[i]);
  return 0;
}

static pst_engine_sampling read_sampling(const pst_cli_args *a) {
  pst_engine_sampling s = pst_engine_sampling_default();
  s.temperature = (float)pst_cli_number(a, "temperature");
  s.top_k = (int)pst_cli_int(a, "top-k");
  s.top_p = (float)pst_cli_number(a, "top-p");
  s.min_p = (float)pst_cli_number(a, "min-p");
  s.repetition_penalty = (float)pst_cli_number(a, "repeat-penalty");
  s.seed = (uint64_t)pst_cli_int(a, "seed");
  return s;
}

static void wait_for_end(listener *l, pst_engine *engine, uint64_t id, const volatile sig_atomic_t *interrupted) {
  bool told = false;
  pthread_mutex_lock(&l->lock);
  while (!l->ended) {
    if (!interrupted || told) {
      pthread_cond_wait(&l->changed, &l->lock);
      continue;
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50 * 1000 * 1000;
    if (until.tv_nsec >= 1000 * 1000 * 1000) {
      until.tv_sec++;
      until.tv_nsec -= 1000 * 1000 * 1000;
    }
    (void)pthread_cond_timedwait(&l->changed, &l->lock, &until);
    if (!*interrupted || l->ended) continue;
    told = true;
    pthread_mutex_unlock(&l->lock); /* the engine's thread may be waiting for it */
    pst_engine_cancel(engine, id);
    pthread_mutex_lock(&l->lock);
  }
  pthread_mutex_unlock(&l->lock);
}

int pst_cli_generate(const pst_cli_args *a, pst_engine *engine, const pst_engine_tokens *prompt,
                     const pst_cli_generating *how, pst_buf *answer, pst_engine_event *ret_last, pst_error *err) {
  listener l = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, how->print, false, answer, {0}, PST_ERROR_INIT};
  asked texts = {.n_stop = 0};
  pst_engine_request q = {0};
  uint64_t id;
  int code = read_texts(a, how, &texts, err);
  if (code) return code;
  q.prompt = prompt->ids;
  q.n_prompt = prompt->n;
  q.max_tokens = (int)pst_cli_int(a, "max-tokens");
  q.sampling = read_sampling(a);
  q.stop = texts.stop;
  q.n_stop = texts.n_stop;
  q.speculation = pst_cli_text(a, "draft")    ? PST_ENGINE_SPEC_MODEL
                  : pst_cli_flag(a, "lookup") ? PST_ENGINE_SPEC_LOOKUP
                                              : PST_ENGINE_SPEC_NONE;
  q.n_logprobs = -1;
  q.adapter = how->adapter;
  q.callback = on_event;
  q.user = &l;
  pst_engine_model *model = pst_engine_get_model(engine);
  if (texts.n_choices)
    code =
        pst_engine_choices_create(model, texts.choice, texts.n_choices, !pst_engine_model_get_info(model)->has_template,
                                  q.adapter ? pst_engine_adapter_codes(q.adapter) : NULL, &q.choices, err);
  if (!code) code = pst_engine_submit(engine, &q, &id, err);
  pst_engine_choices_unref(q.choices);
  if (code) return code;
  wait_for_end(&l, engine, id, how->interrupted);
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
  pst_json_member_str(&w, "text", pst_buf_str(answer));
  pst_json_member_cstr(&w, "finish", finishes[last->finish]);
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
    pst_json_member_int(&w, numbers[i].name, numbers[i].value);
  }
  pst_json_end_object(&w);
  puts(pst_buf_text(&out));
  pst_buf_done(&out);
}
