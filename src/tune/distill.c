/* Asking a teacher (distill.h): its engine reads the texts as prompts, and what it tells is written where the text's rows are. */
#include "tune/distill.h"

#include <math.h>
#include <string.h>

enum { TOP = 20 };

typedef struct lesson {
  pst_tune_teacher teacher;
  int32_t *ids;
  float *probabilities;
} lesson;

typedef struct class {
  const pst_tune_text *texts;
  lesson *lessons; /* one for each text */
} class;

static void told(void *user, size_t text, size_t position, const pst_engine_event *e) {
  const class *c = user;
  const lesson *l = &c->lessons[text];
  if (position < c->texts[text].n_given) return;
  size_t row = (position - c->texts[text].n_given) * TOP;
  for (size_t i = 0; i < PST_MIN(e->n_top, (size_t)TOP); i++) {
    l->ids[row + i] = e->top[i].token;
    l->probabilities[row + i] = expf(e->top[i].logprob);
  }
}

static int check_vocabulary(const pst_engine_model *teacher, const pst_engine_model *model, pst_error *err) {
  int n = pst_engine_model_get_info(model)->n_vocab, other = pst_engine_model_get_info(teacher)->n_vocab;
  if (n != other)
    return pst_error_set(err, PST_E_BAD_INPUT, "teacher",
                         "the teacher has %d tokens and the model %d: what it thinks of tokens says nothing of others; "
                         "take its answers instead",
                         other, n);
  int32_t id = pst_engine_vocabulary_differs(model, teacher);
  return id < 0 ? 0
                : pst_error_set(err, PST_E_BAD_INPUT, "teacher",
                                "token %d is another one for the teacher than for the model: take its answers instead",
                                (int)id);
}

int pst_tune_distill(pst_engine *teacher, const pst_engine_model *model, pst_tune_text *texts, size_t n,
                     pst_arena *arena, bool (*cancelled)(void *user), void *user, pst_error *err) {
  int code = check_vocabulary(pst_engine_get_model(teacher), model, err);
  if (code) return code;
  class c = {texts, pst_arena_calloc(arena, n + 1, sizeof(lesson))};
  pst_engine_score_text *read = pst_arena_calloc(arena, n + 1, sizeof *read);
  bool room = c.lessons && read;
  for (size_t i = 0; i < n && room; i++) {
    lesson *l = &c.lessons[i];
    size_t n_thoughts = (texts[i].n - texts[i].n_given) * TOP;
    read[i] = (pst_engine_score_text){texts[i].tokens, texts[i].n};
    l->ids = pst_arena_calloc(arena, n_thoughts, sizeof *l->ids);
    l->probabilities = pst_arena_calloc(arena, n_thoughts, sizeof *l->probabilities);
    l->teacher = (pst_tune_teacher){TOP, l->ids, l->probabilities};
    room = l->ids && l->probabilities;
  }
  if (!room) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for what the teacher thinks");
  const pst_engine_score_job job = {.texts = read,
                                    .n_texts = n,
                                    .n_top = TOP,
                                    .told = told,
                                    .user = &c,
                                    .cancelled = cancelled,
                                    .cancelled_user = user};
  code = pst_engine_score_wait(teacher, &job, err);
  for (size_t i = 0; i < n && !code; i++) texts[i].teacher = &c.lessons[i].teacher;
  return code;
}
