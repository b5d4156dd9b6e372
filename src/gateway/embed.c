/* The local stage of a call for embeddings: all its texts are one request of the encoder's engine, so that they share its steps, and one record in the
 * books. Loading, reserving and settling are those of any local stage (local.c). A classifier's stage asks its encoder in the same way (classifier.c). */
#include "gateway/live.h"

#include <string.h>

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the texts"); }

/* ---- the texts ------------------------------------------------------------------------------------------------------------- */

int pst_gateway_embed_check_model(const pst_gateway_live *live, const pst_engine_model_info *info, pst_error *err) {
  bool wanted = live->kind == PST_GATEWAY_EMBED;
  if (!wanted && info->n_dims)
    return pst_error_set(err, PST_E_UNSUPPORTED, "model",
                         "this model is an encoder (%s) and writes no text; ask it for embeddings, at /v1/embeddings",
                         info->architecture);
  if (wanted && !info->n_dims)
    return pst_error_set(err, PST_E_UNSUPPORTED, "model",
                         "this model generates text (%s) and makes no embeddings; name an encoder", info->architecture);
  if (!wanted || !live->dims || (live->dims >= info->min_dims && live->dims <= info->n_dims)) return 0;
  return pst_error_set(err, PST_E_BAD_INPUT, "dimensions",
                       info->min_dims == info->n_dims
                           ? "this model's embeddings have %d dimensions and cannot be cut"
                           : "this model's embeddings have %d dimensions and can be cut to no fewer than %d",
                       info->n_dims, info->min_dims);
}

static int add_input(const pst_engine_model *model, const pst_wire_prompt *input, pst_engine_tokens *tokens,
                     pst_error *err) {
  if (!input->tokens) return pst_engine_embed_tokenize(model, input->text, tokens, err);
  return pst_engine_tokens_append(tokens, input->tokens, input->n_tokens, err);
}

int pst_gateway_embed_prompt(pst_gateway_live *live, pst_error *err) {
  pst_engine_tokens *tokens = &live->prompt_tokens;
  int n_ctx = pst_engine_get_options(live->slot->engine)->n_ctx, code = 0;
  live->lengths = pst_arena_calloc(live->arena, live->n_inputs, sizeof *live->lengths);
  if (!live->lengths) return no_memory(err);
  for (size_t i = 0; i < live->n_inputs && !code; i++) {
    size_t before = tokens->n;
    code = add_input(live->slot->model, &live->inputs[i], tokens, err);
    live->lengths[i] = tokens->n - before;
    if (!code && live->lengths[i] > (size_t)n_ctx)
      code = pst_error_set(err, PST_E_LIMIT, "input", "text %zu has %zu tokens, more than the model's %d; shorten it",
                           i, live->lengths[i], n_ctx);
  }
  live->inputs = NULL; /* the caller's, as a rule */
  return code;
}

int pst_gateway_embed_beginning(const pst_engine *engine, pst_str text, pst_engine_tokens *tokens, size_t *ret_n,
                                pst_error *err) {
  size_t before = tokens->n, n_ctx = (size_t)pst_engine_get_options(engine)->n_ctx;
  int code = pst_engine_embed_tokenize(pst_engine_get_model(engine), pst_classifier_beginning(text), tokens, err);
  size_t n = tokens->n - before;
  if (!code && n > n_ctx) {
    tokens->ids[before + n_ctx - 1] = tokens->ids[tokens->n - 1];
    n = n_ctx;
    tokens->n = before + n;
  }
  if (!code) *ret_n = n;
  return code;
}

int pst_gateway_embed_keep_input(pst_gateway_live *live, pst_error *err) {
  pst_wire_prompt *copy = pst_arena_calloc(live->arena, live->n_inputs, sizeof *copy);
  if (!copy) return no_memory(err);
  for (size_t i = 0; i < live->n_inputs; i++) {
    const pst_wire_prompt *from = &live->inputs[i];
    size_t bytes = from->tokens ? from->n_tokens * sizeof *from->tokens : from->text.n;
    char *data = pst_arena_alloc(live->arena, bytes + 1);
    if (!data) return no_memory(err);
    memcpy(data, from->tokens ? (const char *)from->tokens : from->text.data, bytes);
    if (from->tokens)
      copy[i] = (pst_wire_prompt){{NULL, 0}, (const int32_t *)(const void *)data, from->n_tokens};
    else
      copy[i].text = (pst_str){data, from->text.n};
  }
  live->inputs = copy;
  return 0;
}

/* ---- the request ----------------------------------------------------------------------------------------------------------- */

static void keep_vectors(pst_gateway_live *live, const pst_engine_embed_event *e, pst_error *error) {
  size_t dims = live->dims ? (size_t)live->dims : (size_t)e->n_dims, from = (size_t)e->n_dims;
  live->vectors = pst_malloc(e->n_texts * from * sizeof *live->vectors);
  if (!live->vectors) {
    no_memory(error);
    return;
  }
  memcpy(live->vectors, e->vectors, e->n_texts * from * sizeof *live->vectors);
  for (size_t i = 0; i < e->n_texts && dims < from; i++) {
    float *vector = live->vectors + i * from;
    (void)pst_engine_embedding_cut(vector, (int)from, (int)dims);
    memmove(live->vectors + i * dims, vector, dims * sizeof *vector);
  }
  live->n_dims = (int)dims;
}

/* On the engine's thread. */
static void on_event(void *user, const pst_engine_embed_event *e) {
  pst_gateway_live *live = user;
  pst_error error = PST_ERROR_INIT;
  if (e->vectors)
    keep_vectors(live, e, &error);
  else
    pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
  pthread_mutex_lock(&live->lock);
  live->stage_busy_us = e->busy_us;
  live->stage_queued_us = e->queued_us;
  live->stage_prompt_tokens = (int)e->n_tokens;
  live->choices[0].finish = e->finish;
  if (error.code && !live->error.code) live->error = error;
  bool last = --live->n_working == 0;
  pthread_mutex_unlock(&live->lock);
  if (last) pst_gateway_local_over(live);
}

int pst_gateway_embed_submit(pst_gateway_live *live, size_t n_texts, pst_error *err) {
  pst_engine *engine = live->slot->engine;
  uint64_t id;
  pst_engine_embed_request request = {.tokens = live->prompt_tokens.ids,
                                      .lengths = live->lengths,
                                      .n_texts = n_texts,
                                      .adapter = live->adapter,
                                      .priority = pst_gateway_local_priority(live),
                                      .callback = on_event,
                                      .user = live};
  pthread_mutex_lock(&live->lock);
  live->phase = PST_GATEWAY_ANSWERING;
  live->n_requests = 0;
  live->n_working = 2; /* this thread, and the request */
  pthread_mutex_unlock(&live->lock);
  int code = pst_engine_embed(engine, &request, &id, err);
  if (code) {
    if (code == PST_E_BUSY) live->retry_after_s = 1;
    pst_gateway_live_set_phase(live, PST_GATEWAY_STARTING);
    return code;
  }
  pthread_mutex_lock(&live->lock);
  live->request_ids[live->n_requests++] = id;
  bool cancelled = live->cancelled;
  pthread_mutex_unlock(&live->lock);
  if (cancelled) pst_engine_cancel(engine, id); /* while this thread holds the engine */
  pthread_mutex_lock(&live->lock);
  bool last = --live->n_working == 0;
  pthread_mutex_unlock(&live->lock);
  if (last)
    pst_gateway_live_post(live, pst_gateway_local_over); /* the caller's callback may not run inside pst_gateway_chat */
  return 0;
}
