/* The engine's public functions for embeddings: they hand on to the encoder, or say that there is none. */
#include <string.h>

#include "engine/engine.h"

int pst_engine_embed_tokenize(const pst_engine_model *model, pst_str text, pst_engine_tokens *tokens, pst_error *err) {
  return pst_engine_tokenizer_encode(model->tokenizer, text, PST_ENGINE_ENCODE_ADD_BOS | PST_ENGINE_ENCODE_ADD_EOS,
                                     tokens, err);
}

int pst_engine_embed(pst_engine *e, const pst_engine_embed_request *request, uint64_t *ret_request_id, pst_error *err) {
  if (!e->encoder)
    return pst_error_set(err, PST_E_UNSUPPORTED, "model", "the model generates text (%s) and makes no embeddings",
                         e->model->info.architecture);
  return pst_engine_encoder_submit(e->encoder, request, ret_request_id, err);
}

/* ---- waiting ---- */

typedef struct waiting {
  pthread_mutex_t lock;
  pthread_cond_t ended;
  float *vectors;
  bool done;
  pst_engine_finish finish;
} waiting;

static void on_end(void *user, const pst_engine_embed_event *event) {
  waiting *w = user;
  pthread_mutex_lock(&w->lock);
  if (event->vectors) memcpy(w->vectors, event->vectors, event->n_texts * (size_t)event->n_dims * sizeof *w->vectors);
  w->finish = event->finish;
  w->done = true;
  pthread_cond_signal(&w->ended);
  pthread_mutex_unlock(&w->lock);
}

int pst_engine_embed_wait(pst_engine *e, pst_engine_adapter *adapter, const int32_t *tokens, const size_t *lengths,
                          size_t n_texts, float *ret_vectors, pst_error *err) {
  waiting w = {.vectors = ret_vectors};
  uint64_t id;
  pthread_mutex_init(&w.lock, NULL);
  pthread_cond_init(&w.ended, NULL);
  pst_engine_embed_request request = {
      .tokens = tokens, .lengths = lengths, .n_texts = n_texts, .adapter = adapter, .callback = on_end, .user = &w};
  int code = pst_engine_embed(e, &request, &id, err);
  if (!code) {
    pthread_mutex_lock(&w.lock);
    while (!w.done) pthread_cond_wait(&w.ended, &w.lock);
    pthread_mutex_unlock(&w.lock);
    if (w.finish != PST_ENGINE_FINISH_STOP) code = pst_error_set(err, PST_E_CANCELLED, NULL, "the engine is stopping");
  }
  pthread_mutex_destroy(&w.lock);
  pthread_cond_destroy(&w.ended);
  return code;
}
