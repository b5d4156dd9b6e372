/* Packing events into bytes and back. The gateway's thread only copies: no JSON is written and no socket is touched there, and it wakes the loop at most
 * once until the loop has taken what waits. What a slow client leaves unread stays here in its packed form, some tens of bytes a token, and is bounded.
 *
 * Both ends are this file, in one process: the layout is native and unversioned. */
#include "server/inbox.h"

#include <string.h>

/* The fixed part of a record; strings, tops and calls follow. */
typedef struct head {
  uint32_t part, choice;
  int64_t time_us;
  uint32_t n_top, n_tool_calls;
  int finish, cache;
  float logprob;
  bool has_token, last;
} head;

typedef struct tail { /* with last */
  int code, http_status, retry_after_s;
  int64_t prompt_tokens, cached_tokens, completion_tokens, ttft_us, total_us, queued_us, cost_nusd;
} tail;

static void run_task(void *arg) {
  pst_server_inbox *inbox = arg;
  pthread_mutex_lock(&inbox->lock);
  inbox->posted = false;
  pthread_mutex_unlock(&inbox->lock);
  inbox->fn(inbox->arg);
}

int pst_server_inbox_init(pst_server_inbox *inbox, pst_net_loop *loop, pst_net_fn fn, void *arg) {
  memset(inbox, 0, sizeof *inbox);
  inbox->loop = loop;
  inbox->task = (pst_net_task){.fn = run_task, .arg = inbox};
  inbox->fn = fn;
  inbox->arg = arg;
  if (pst_buf_reserve(&inbox->waiting, 1024)) return PST_E_NOMEM; /* the bare end always fits */
  if (!pthread_mutex_init(&inbox->lock, NULL)) return 0;
  pst_buf_done(&inbox->waiting);
  return PST_E_NOMEM;
}

void pst_server_inbox_done(pst_server_inbox *inbox) {
  pst_buf_done(&inbox->waiting);
  pthread_mutex_destroy(&inbox->lock);
}

/* ---- packing --------------------------------------------------------------------------------------------------------------- */

static void put_str(pst_buf *out, pst_str s) {
  uint32_t n = (uint32_t)PST_MIN(s.n, (size_t)UINT32_MAX);
  pst_buf_append(out, &n, sizeof n);
  pst_buf_append(out, s.data, n);
}

static void pack(pst_buf *out, uint32_t part, const pst_gateway_event *e) {
  const pst_engine_event *token = e->token;
  size_t n_top = token && e->top_texts ? PST_MIN(token->n_top, (size_t)PST_SERVER_MAX_TOP) : 0;
  head h;
  memset(&h, 0, sizeof h); /* padding too: it is copied as bytes */
  h.part = part;
  h.choice = e->choice;
  h.time_us = pst_clock_us();
  h.n_top = (uint32_t)n_top;
  h.n_tool_calls = (uint32_t)e->n_tool_calls;
  h.finish = (int)e->finish;
  h.cache = (int)e->cache;
  h.logprob = token ? token->logprob : 0;
  h.has_token = token != NULL; /* an upstream's have no id, but all the rest */
  h.last = e->last;
  pst_buf_append(out, &h, sizeof h);
  put_str(out, e->text);
  put_str(out, pst_str_from(e->completion_id));
  put_str(out, token ? token->token_text : (pst_str){NULL, 0});
  for (size_t i = 0; i < n_top; i++) {
    pst_buf_append(out, &token->top[i].logprob, sizeof token->top[i].logprob);
    put_str(out, e->top_texts[i]);
  }
  for (size_t i = 0; i < e->n_tool_calls; i++) {
    put_str(out, e->tool_calls[i].id);
    put_str(out, e->tool_calls[i].name);
    put_str(out, e->tool_calls[i].arguments);
  }
  if (!e->last) return;
  tail t;
  memset(&t, 0, sizeof t);
  t.code = e->error ? e->error->code : 0;
  t.http_status = e->http_status;
  t.retry_after_s = e->retry_after_s;
  t.prompt_tokens = e->prompt_tokens;
  t.cached_tokens = e->cached_tokens;
  t.completion_tokens = e->completion_tokens;
  t.ttft_us = e->ttft_us;
  t.total_us = e->total_us;
  t.queued_us = e->queued_us;
  t.cost_nusd = e->cost_nusd;
  pst_buf_append(out, &t, sizeof t);
  put_str(out, pst_str_from(e->error ? e->error->place : NULL));
  put_str(out, pst_str_from(e->error ? e->error->message : NULL));
  put_str(out, pst_str_from(e->target));
  put_str(out, pst_str_from(e->model));
}

/* When not even the end could be packed: one that fits what init reserved. */
static void pack_bare_end(pst_buf *out, uint32_t part, const pst_gateway_event *e) {
  pst_gateway_event bare = {.choice = e->choice, .last = true, .ttft_us = -1, .total_us = -1, .queued_us = -1};
  bare.cache = e->cache;
  bare.prompt_tokens = e->prompt_tokens;
  bare.completion_tokens = e->completion_tokens;
  bare.cost_nusd = e->cost_nusd;
  pack(out, part, &bare);
}

void pst_server_inbox_put(pst_server_inbox *inbox, uint32_t part, const pst_gateway_event *event) {
  pthread_mutex_lock(&inbox->lock);
  pst_buf *out = &inbox->waiting;
  size_t before = out->n;
  if (inbox->overflow && !event->last) goto done; /* the answer is lost already; only its end counts */
  if (out->n > PST_SERVER_MAX_WAITING && !event->last) {
    inbox->overflow = true;
  } else {
    pack(out, part, event);
    if (out->failed) {
      inbox->overflow = true;
      out->failed = false;
      out->n = before; /* a whole number of records, always */
      if (event->last) {
        pst_buf_clear(out); /* room for the end: the answer is cut anyway */
        pack_bare_end(out, part, event);
      }
    }
  }
  if (!inbox->posted && (!inbox->paused || inbox->overflow)) {
    inbox->posted = true;
    (void)pst_net_loop_post_task(inbox->loop,
                                 &inbox->task); /* refused only once the loop has ended: nobody is left to tell */
  }
done:
  pthread_mutex_unlock(&inbox->lock);
}

bool pst_server_inbox_take(pst_server_inbox *inbox, pst_buf *ret_taken) {
  pst_buf_clear(ret_taken);
  pthread_mutex_lock(&inbox->lock);
  pst_buf other = *ret_taken;
  *ret_taken = inbox->waiting;
  inbox->waiting = other;
  bool overflow = inbox->overflow;
  pthread_mutex_unlock(&inbox->lock);
  return overflow;
}

bool pst_server_inbox_is_posted(pst_server_inbox *inbox) {
  pthread_mutex_lock(&inbox->lock);
  bool posted = inbox->posted;
  pthread_mutex_unlock(&inbox->lock);
  return posted;
}

bool pst_server_inbox_has_overflowed(pst_server_inbox *inbox) {
  pthread_mutex_lock(&inbox->lock);
  bool overflow = inbox->overflow;
  pthread_mutex_unlock(&inbox->lock);
  return overflow;
}

void pst_server_inbox_pause(pst_server_inbox *inbox, bool paused) {
  pthread_mutex_lock(&inbox->lock);
  inbox->paused = paused;
  if (!paused && !inbox->posted && inbox->waiting.n) {
    inbox->posted = true;
    (void)pst_net_loop_post_task(inbox->loop, &inbox->task);
  }
  pthread_mutex_unlock(&inbox->lock);
}

/* ---- unpacking ------------------------------------------------------------------------------------------------------------- */

static void get(pst_str taken, size_t *at, void *ret_value, size_t n) {
  memcpy(ret_value, taken.data + *at, n);
  *at += n;
}

static pst_str get_str(pst_str taken, size_t *at) {
  uint32_t n;
  get(taken, at, &n, sizeof n);
  pst_str s = {taken.data + *at, n};
  *at += n;
  return s;
}

static void get_tail(pst_str taken, size_t *at, pst_server_record *r) {
  tail t;
  get(taken, at, &t, sizeof t);
  r->code = t.code;
  r->http_status = t.http_status;
  r->retry_after_s = t.retry_after_s;
  r->prompt_tokens = t.prompt_tokens;
  r->cached_tokens = t.cached_tokens;
  r->completion_tokens = t.completion_tokens;
  r->ttft_us = t.ttft_us;
  r->total_us = t.total_us;
  r->queued_us = t.queued_us;
  r->cost_nusd = t.cost_nusd;
  r->error_place = get_str(taken, at);
  r->error_message = get_str(taken, at);
  r->target = get_str(taken, at);
  r->model = get_str(taken, at);
}

bool pst_server_inbox_next(pst_str taken, size_t *at, pst_arena *arena, pst_server_record *r) {
  if (*at >= taken.n) return false;
  head h;
  memset(r, 0, sizeof *r);
  get(taken, at, &h, sizeof h);
  r->part = h.part;
  r->choice = h.choice;
  r->time_us = h.time_us;
  r->finish = (pst_engine_finish)h.finish;
  r->cache = (pst_gateway_cache_use)h.cache;
  r->logprob = (double)h.logprob;
  r->has_token = h.has_token;
  r->last = h.last;
  r->text = get_str(taken, at);
  r->completion_id = get_str(taken, at);
  r->token_text = get_str(taken, at);
  r->n_top = h.n_top;
  for (uint32_t i = 0; i < h.n_top; i++) {
    float logprob;
    get(taken, at, &logprob, sizeof logprob);
    r->top[i] = (pst_wire_top){get_str(taken, at), (double)logprob};
  }
  if (h.n_tool_calls) {
    r->tool_calls = pst_arena_calloc(arena, h.n_tool_calls, sizeof *r->tool_calls);
    r->n_tool_calls = r->tool_calls ? h.n_tool_calls : 0;
  }
  for (uint32_t i = 0; i < h.n_tool_calls; i++) {
    pst_chat_tool_call call = {.id = get_str(taken, at), .arguments_json = NULL};
    call.name = get_str(taken, at);
    call.arguments = get_str(taken, at);
    if (r->tool_calls) r->tool_calls[i] = call;
  }
  if (h.last) get_tail(taken, at, r);
  return true;
}
