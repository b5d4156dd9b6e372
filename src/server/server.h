/* Private to server: the listener's state and one request's.
 *
 * Threads. The loop's thread owns sockets, metrics and the list of calls. What may block (the store, a model being loaded, a long prompt's tokens) is done
 * by worker threads, before a request's answer begins: a call goes loop -> worker -> loop once, and belongs to whoever has it. From then on the
 * gateway's events come to the loop through the call's inbox. */
#ifndef PST_SERVER_SERVER_H
#define PST_SERVER_SERVER_H

#include <penstock/net.h>
#include <penstock/server.h>
#include <penstock/wire.h>
#include <stdatomic.h>

#include "server/metrics.h"

enum { PST_SERVER_WORKERS = 8 };

typedef struct pst_server_call pst_server_call;
typedef struct pst_server_completion pst_server_completion;
typedef struct pst_server_embedding pst_server_embedding;

/* What is served at a path. */
typedef struct pst_server_endpoint {
  const char *path, *method;
  bool below;                           /* what comes below the path too: /v1/models/ID */
  bool open;                            /* needs no key */
  void (*work)(pst_server_call *call);  /* worker: fills status and out, or fails; NULL: nothing to do there */
  void (*reply)(pst_server_call *call); /* loop, after work: NULL: answers with status and out */
} pst_server_endpoint;

struct pst_server_call {
  pst_server *server;
  pst_server_call *prev, *next;
  const pst_server_endpoint *endpoint;
  pst_net_exchange *x; /* loop; NULL: answered, or the client is gone */
  atomic_bool gone;    /* the client is gone, or everything is being cut: nothing new should begin */
  bool worked;         /* loop: the worker has handed it back */
  pst_net_task task;   /* the way back */

  /* Copied from the request: it outlives the exchange. */
  pst_arena *arena; /* whoever has the call */
  pst_str path, query, media_type, body, authorization;
  pst_str keep, train, retention, subject, cache_control; /* headers; empty: not sent */
  bool head_only, from_here;                              /* from_here: needs no key unless all do */
  char peer[64];
  int64_t received_us;

  /* The worker's result. */
  pst_store_key key; /* id 0: none */
  int status;        /* 0: a completion is under way */
  pst_buf out;
  const char *content_type; /* NULL: JSON */
  int retry_after_s;
  pst_gateway_stats gateway_stats; /* of /metrics */
  int64_t n_cached;                /* of /metrics: answers that may be given again */
  pst_server_completion *completion;
  pst_server_embedding *embedding;
  void (*again)(
      pst_server_call *call); /* worker: what it does when the loop has sent the call back to it; NULL: never sent */
};

struct pst_server {
  pst_store *store;
  pst_gateway *gateway;
  pst_server_options options; /* strings are in the arena */
  pst_arena *arena;
  pst_net_loop *loop;
  pst_net_server *http;
  pst_net_timer *drain_timer;
  pst_queue *jobs; /* calls for the workers */
  pthread_t workers[PST_SERVER_WORKERS];
  int n_workers;
  int64_t started_ms;

  pthread_t retention;
  bool retention_runs; /* of the thread that opens and closes the server */
  pthread_mutex_t retention_lock;
  pthread_cond_t retention_wake;
  bool retention_ends; /* under its lock */

  /* Loop: */
  pst_server_metrics metrics;
  pst_server_call *calls;
  int n_calls;
  bool draining, cutting, http_drained;
};

/* ---- call.c: one request from its arrival to its end ---- */
void pst_server_handle(void *user, pst_net_exchange *x); /* the pst_net_handler */
void pst_server_error_body(void *user, int status, const char *message, pst_buf *body, const char **ret_content_type);
/* Worker or loop: makes the call's answer an error. param: NULL or the field that is wrong. */
void pst_server_fail(pst_server_call *call, const pst_wire_error *error, const char *message, const char *param);
void pst_server_fail_code(pst_server_call *call, const pst_error *err); /* by the table of codes */
/* The same of what a provider answered with that HTTP status: its words, which may quote the prompt, are for the client only and not for the log. */
void pst_server_fail_upstream(pst_server_call *call, const pst_error *err, const char *provider, int upstream_status);
/* Loop: the status goes into the books (metrics, log) and the exchange is let go. The answer itself was written before. */
void pst_server_answered(pst_server_call *call, int status);
void pst_server_reply_plain(pst_server_call *call); /* loop: status and out, as they are */
void pst_server_call_unref(
    pst_server_call *call); /* loop: frees what neither client, worker nor gateway needs any more */

/* Worker: what may be kept of this request, by key, options and headers, and whose it is by header or else `user`. PST_E_BAD_INPUT for a header that is wrong. */
int pst_server_consent(const pst_server_call *call, pst_str safety_identifier, pst_str user,
                       pst_store_consent *ret_consent, pst_str *ret_subject, pst_error *err);

/* ---- route.c: the endpoints ---- */
const pst_server_endpoint *pst_server_route(pst_str method, pst_str path, const pst_server_endpoint **ret_other_method);

/* ---- completion.c: the two endpoints that call the gateway ---- */
void pst_server_chat_work(pst_server_call *call);
void pst_server_text_work(pst_server_call *call);
void pst_server_completion_reply(pst_server_call *call);
void pst_server_completion_gone(pst_server_call *call); /* loop: the client is gone */
/* Every started part has ended, and no task of it is on its way to the loop. */
bool pst_server_completion_over(pst_server_completion *completion);
const char *pst_server_completion_id(const pst_server_completion *completion); /* "" before the first event */
/* For the header x-penstock-cache; NULL: the answer cache has nothing to do with it, or nothing is known yet. */
const char *pst_server_completion_cache(const pst_server_completion *completion);
void pst_server_completion_free(pst_server_completion *completion);
/* What the log says of it, beginning with a space. */
void pst_server_completion_describe(const pst_server_completion *completion, pst_buf *out);
/* Any thread. What the gateway knows a name of a request by; and what clients know a model of the gateway by. */
pst_str pst_server_resolve(const pst_server_call *call, pst_str name); /* text of the call or the server */
void pst_server_model_label(const pst_server *server, pst_str model, char *ret_label, size_t n);

/* ---- embedding.c: the endpoint for embeddings; as the completion's ---- */
void pst_server_embedding_work(pst_server_call *call);
void pst_server_embedding_reply(pst_server_call *call);
void pst_server_embedding_gone(pst_server_call *call);
bool pst_server_embedding_over(const pst_server_embedding *embedding);
const char *pst_server_embedding_id(const pst_server_embedding *embedding);
void pst_server_embedding_free(pst_server_embedding *embedding);
void pst_server_embedding_describe(const pst_server_embedding *embedding, pst_buf *out);

/* ---- tuning.c: files and fine-tuning jobs; each by the method and what comes below its path ---- */
void pst_server_files_post(pst_server_call *call);
void pst_server_files_get(pst_server_call *call);
void pst_server_files_delete(pst_server_call *call);
void pst_server_jobs_post(pst_server_call *call);
void pst_server_jobs_get(pst_server_call *call);

/* ---- retention.c: what has expired is forgotten ---- */
int pst_server_retention_start(pst_server *server, pst_error *err);
void pst_server_retention_stop(pst_server *server); /* fine if it does not run */

/* ---- server.c ---- */
void pst_server_call_gone_from_list(pst_server *server); /* a call was freed: a drain may be over */

#endif
