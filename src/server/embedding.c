/* /v1/embeddings: from the body to one gateway call, and from its end to the answer.
 *
 * The call goes loop -> worker -> loop as any, is ended by the gateway's one event, and then goes to a worker once more, which writes the answer: thousands of
 * vectors as text are too much for the loop. */
#include <inttypes.h>
#include <string.h>

#include "server/server.h"

struct pst_server_embedding {
  pst_server_call *call;
  pst_wire_embedding_request request;
  bool started; /* a gateway call was begun */
  uint64_t id;  /* its */
  int64_t started_us;
  pst_net_task task; /* from the gateway's thread to the loop, once */

  /* Written by the gateway's thread before the task is posted, read after it has come: */
  float *vectors; /* [n_vectors][n_dims] */
  size_t n_vectors, n_dims;
  pst_error error;
  int retry_after_s;
  char completion_id[64], target[64], model[96];
  int64_t prompt_tokens, cost_nusd, queued_us, total_us;

  bool ended; /* loop: the task has come */
};

/* ---- gateway's thread ------------------------------------------------------------------------------------------------------ */

static void on_event(void *user, const pst_gateway_event *event) {
  pst_server_embedding *e = user;
  if (!event->last) return;
  if (event->error) {
    e->error = *event->error;
  } else {
    e->vectors = pst_malloc(event->n_vectors * (size_t)event->n_dims * sizeof *e->vectors);
    if (e->vectors)
      memcpy(e->vectors, event->vectors, event->n_vectors * (size_t)event->n_dims * sizeof *e->vectors);
    else
      pst_error_set(&e->error, PST_E_NOMEM, NULL, "out of memory for the answer");
  }
  e->n_vectors = event->n_vectors;
  e->n_dims = (size_t)event->n_dims;
  e->retry_after_s = event->retry_after_s;
  snprintf(e->completion_id, sizeof e->completion_id, "%s", event->completion_id);
  snprintf(e->target, sizeof e->target, "%s", event->target);
  pst_server_model_label(e->call->server, pst_str_from(event->model), e->model, sizeof e->model);
  e->prompt_tokens = event->prompt_tokens;
  e->cost_nusd = event->cost_nusd;
  e->queued_us = event->queued_us;
  e->total_us = event->total_us;
  (void)pst_net_loop_post_task(e->call->server->loop, &e->task); /* the loop runs until the last call is freed */
}

/* ---- worker ---------------------------------------------------------------------------------------------------------------- */

static int start(pst_server_embedding *e, pst_error *err) {
  const pst_server_call *call = e->call;
  const pst_wire_embedding_request *q = &e->request;
  pst_store_consent consent;
  pst_str subject;
  int code = pst_server_consent(call, (pst_str){NULL, 0}, q->user, &consent, &subject, err);
  if (code) return code;
  pst_gateway_call g = {.kind = PST_GATEWAY_EMBED,
                        .purpose = PST_STORE_PURPOSE_USER,
                        .key_id = call->key.id,
                        .model = pst_server_resolve(call, q->model),
                        .inputs = q->inputs,
                        .n_inputs = q->n_inputs,
                        .dims = q->dimensions,
                        .n = 1,
                        .set = {.n_logprobs = -1},
                        .consent = consent,
                        .subject = subject,
                        .callback = on_event,
                        .user = e};
  e->started_us = pst_clock_us();
  code = pst_gateway_chat(call->server->gateway, &g, &e->id, err);
  if (code != PST_E_NOT_FOUND) return code;
  return pst_error_set(err, code, "model", "the model '%.*s' does not exist; GET /v1/models lists those that do",
                       (int)PST_MIN(q->model.n, (size_t)200), q->model.data);
}

static void fail(pst_server_call *call, const pst_error *err) {
  if (err->code == PST_E_LIMIT && !strcmp(err->place, "input")) {
    pst_wire_error e = {400, "invalid_request_error", "context_length_exceeded", 0};
    pst_server_fail(call, &e, err->message, "input");
    return;
  }
  pst_server_fail_code(call, err);
}

static void on_ended(void *arg);

void pst_server_embedding_work(pst_server_call *call) {
  pst_error err = PST_ERROR_INIT;
  pst_server_embedding *e = pst_calloc(1, sizeof *e);
  if (!e) {
    pst_error_set(&err, PST_E_NOMEM, NULL, "out of memory for the request");
    pst_server_fail_code(call, &err);
    return;
  }
  call->embedding = e;
  e->call = call;
  e->task = (pst_net_task){.fn = on_ended, .arg = e};
  int code = pst_wire_embedding_parse(call->body, &e->request, &err);
  if (!code && !(code = start(e, &err))) e->started = true;
  err.code = code;
  if (code) fail(call, &err);
}

/* The second time: everything is known. */
static void write_answer(pst_server_call *call) {
  const pst_server_embedding *e = call->embedding;
  if (e->error.code) {
    fail(call, &e->error);
    if (e->retry_after_s && call->retry_after_s) call->retry_after_s = e->retry_after_s;
    return;
  }
  pst_wire_embedding_answer answer = {.model = e->request.model,
                                      .vectors = e->vectors,
                                      .n_vectors = e->n_vectors,
                                      .n_dims = e->n_dims,
                                      .base64 = e->request.base64,
                                      .prompt_tokens = e->prompt_tokens};
  pst_wire_embedding_write(&answer, &call->out);
  call->status = 200;
}

/* ---- loop ------------------------------------------------------------------------------------------------------------------ */

static void count(const pst_server_embedding *e) {
  int64_t before = e->started_us - e->call->received_us;
  pst_server_call_figures figures = {.target = e->target,
                                     .model = e->model,
                                     .prompt_tokens = e->prompt_tokens,
                                     .cost_nusd = e->cost_nusd,
                                     .ttft_us = -1,
                                     .queued_us = e->queued_us,
                                     .total_us = before + e->total_us};
  pst_server_metrics_call(&e->call->server->metrics, &figures);
}

/* Back to a worker, to have the answer written; nobody waits for it if the client is gone. */
static void send_back(pst_server_call *call) {
  if (!call->x) return;
  call->again = write_answer;
  call->worked = false;
  if (!pst_queue_push(call->server->jobs, call)) return;
  pst_wire_error error = pst_wire_error_from(PST_E_NOMEM);
  call->worked = true;
  pst_server_fail(call, &error, "out of memory for the answer", NULL);
  pst_server_reply_plain(call);
}

/* The gateway's call has ended; that may come before the worker has handed the call back. */
static void on_ended(void *arg) {
  pst_server_embedding *e = arg;
  pst_server_call *call = e->call;
  e->ended = true;
  count(e);
  if (!call->worked) return;
  send_back(call);
  pst_server_call_unref(call);
}

void pst_server_embedding_reply(pst_server_call *call) {
  pst_server_embedding *e = call->embedding;
  if (!e || !e->started || call->again)
    pst_server_reply_plain(call);
  else if (e->ended)
    send_back(call);
  else if (!call->x)
    pst_gateway_cancel(call->server->gateway, e->id);
}

void pst_server_embedding_gone(pst_server_call *call) {
  const pst_server_embedding *e = call->embedding;
  if (e->started && !e->ended) pst_gateway_cancel(call->server->gateway, e->id);
}

bool pst_server_embedding_over(const pst_server_embedding *e) { return !e->started || e->ended; }

const char *pst_server_embedding_id(const pst_server_embedding *e) { return e->ended ? e->completion_id : ""; }

void pst_server_embedding_free(pst_server_embedding *e) {
  if (!e) return;
  pst_wire_embedding_done(&e->request);
  pst_free(e->vectors);
  pst_free(e);
}

void pst_server_embedding_describe(const pst_server_embedding *e, pst_buf *out) {
  char cost[32];
  if (!e->ended) return;
  pst_store_nusd_format(e->cost_nusd, cost);
  pst_buf_printf(out, "id=%s inputs=%zu prompt_tokens=%" PRId64 " cost_usd=%s target=%s", e->completion_id,
                 e->request.n_inputs, e->prompt_tokens, cost, e->target);
}
