/* The way of a gateway's events from its thread to the loop's: packed into one buffer, one wake-up for all that came meanwhile. */
#ifndef PST_SERVER_INBOX_H
#define PST_SERVER_INBOX_H

#include <penstock/gateway.h>
#include <penstock/net.h>
#include <penstock/wire.h>

enum {
  PST_SERVER_MAX_WAITING = 4 << 20, /* bytes of events not yet taken: beyond, the client counts as too slow */
  PST_SERVER_MAX_TOP = 20,
};

/* Invariant "posted once": the task is in the loop's list exactly while `posted` is true, whoever takes the events meanwhile. Until then the inbox must
 * neither post it again nor be freed. */
typedef struct pst_server_inbox {
  pst_net_loop *loop;
  pst_net_task task; /* clears `posted`, then calls fn */
  pst_net_fn fn;     /* takes the events, on the loop's thread; may free the inbox */
  void *arg;
  pthread_mutex_t lock;
  /* under the lock: */
  pst_buf waiting;
  bool posted;   /* the task is on its way */
  bool paused;   /* the loop does not want to be woken: the client reads slowly */
  bool overflow; /* text was dropped: over PST_SERVER_MAX_WAITING, or out of memory */
} pst_server_inbox;

int pst_server_inbox_init(pst_server_inbox *inbox, pst_net_loop *loop, pst_net_fn fn, void *arg);
void pst_server_inbox_done(pst_server_inbox *inbox);

/* Gateway's thread: packs an event of part `part` (which prompt of the request) and wakes the loop. Last events are never dropped for size. */
void pst_server_inbox_put(pst_server_inbox *inbox, uint32_t part, const pst_gateway_event *event);
/* Loop: swaps what waits into *ret_taken (emptied before). Returns whether something was dropped. */
bool pst_server_inbox_take(pst_server_inbox *inbox, pst_buf *ret_taken);
/* Loop: the task has still to come: what it points to must stay. */
bool pst_server_inbox_is_posted(pst_server_inbox *inbox);
bool pst_server_inbox_has_overflowed(pst_server_inbox *inbox);
/* Loop: wanted again, or not. Un-pausing wakes it if something waits. */
void pst_server_inbox_pause(pst_server_inbox *inbox, bool paused);

/* One event as the loop reads it; views point into the taken buffer, valid until it changes. */
typedef struct pst_server_record {
  uint32_t part, choice;
  int64_t time_us; /* pst_clock_us when the gateway gave it */
  pst_str text;
  bool has_token; /* a token with its log-probabilities */
  pst_str token_text;
  double logprob;
  pst_wire_top top[PST_SERVER_MAX_TOP];
  size_t n_top;
  pst_engine_finish finish;
  pst_chat_tool_call *tool_calls; /* from the arena given */
  size_t n_tool_calls;
  pst_str completion_id;
  pst_gateway_cache_use cache;
  bool last;
  /* with last: */
  int code; /* 0, or why it failed */
  pst_str error_place, error_message, target, model;
  int http_status, retry_after_s;
  int64_t prompt_tokens, cached_tokens, completion_tokens, ttft_us, total_us, queued_us, cost_nusd;
} pst_server_record;
/* Reads the next record at *at. False at the end, and when the arena is out of memory. */
bool pst_server_inbox_next(pst_str taken, size_t *at, pst_arena *arena, pst_server_record *ret_record);

#endif
