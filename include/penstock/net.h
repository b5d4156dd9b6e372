/* Penstock net: an event loop, an HTTP/1.1 server and an HTTP client. Knows sockets and HTTP, nothing of models or money.
 *
 * One pst_net_loop is one I/O thread. Everything that hangs on it (timers, servers, exchanges, clients, calls) is owned by that thread:
 * functions on them are called on the loop's thread, or while the loop does not run (before start, after stop). The exceptions
 * say "any thread". All callbacks come on the loop's thread and must not block. Other threads reach these objects by posting a
 * function to the loop. */
#ifndef PENSTOCK_NET_H
#define PENSTOCK_NET_H

#include <penstock/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the loop (net/loop.c) -------------------------------------------------------------------------------------- */

typedef struct pst_net_loop pst_net_loop;
typedef void (*pst_net_fn)(void *arg);

int pst_net_loop_create(pst_net_loop **ret_loop, pst_error *err);
/* Stops and joins if it runs in its own thread. Servers, clients and timers on it must have been freed. NULL is fine. Not on the loop's thread. */
void pst_net_loop_free(pst_net_loop *loop);
int pst_net_loop_start(pst_net_loop *loop, pst_error *err); /* runs it in a thread of its own */
int pst_net_loop_run(pst_net_loop *loop, pst_error *err);   /* runs it in the calling thread until stopped */
/* Any thread. The loop ends after its present round; what was posted before still runs. Once stopped it cannot be run again. */
void pst_net_loop_stop(pst_net_loop *loop);
/* Stops a loop that was started, and waits for its thread to end. Not on the loop's thread. Afterwards the objects on it can be freed from here. */
void pst_net_loop_join(pst_net_loop *loop);
bool pst_net_loop_is_current(const pst_net_loop *loop); /* any thread: is this the thread that runs the loop? */

/* Any thread: calls fn(arg) on the loop's thread, in order of posting. Returns 0: fn will be called exactly once, even when the loop is
 * stopped meanwhile; PST_E_NOMEM, or PST_E_CANCELLED once the loop has ended: fn is never called. */
int pst_net_loop_post(pst_net_loop *loop, pst_net_fn fn, void *arg);
/* The same with the caller's storage, so that it cannot run out of memory. The task may be posted again from its fn on, not while it waits. */
typedef struct pst_net_task {
  pst_net_fn fn;
  void *arg;
  struct pst_net_task *next; /* the loop's */
} pst_net_task;
int pst_net_loop_post_task(pst_net_loop *loop, pst_net_task *task); /* 0 or PST_E_CANCELLED */
/* Any thread: calls fn(arg) on the loop's thread and waits for it; directly when this is the loop's thread. PST_E_CANCELLED: not called. */
int pst_net_loop_call(pst_net_loop *loop, pst_net_fn fn, void *arg);

typedef struct pst_net_timer pst_net_timer;
int pst_net_timer_create(pst_net_loop *loop, pst_net_fn fn, void *arg, pst_net_timer **ret_timer);
void pst_net_timer_set(pst_net_timer *timer, int64_t delay_ms); /* fires once; replaces what was set; negative: off */
void pst_net_timer_free(pst_net_timer *timer);                  /* NULL is fine; allowed in its own callback */

/* Calls fn(arg) on the loop's thread when the process gets the signal (one loop per process may do so). Ends with the loop. */
int pst_net_loop_on_signal(pst_net_loop *loop, int signal_number, pst_net_fn fn, void *arg, pst_error *err);

/* ---- headers, targets (net/http.c) ------------------------------------------------------------------------------- */

typedef struct pst_net_header {
  pst_str name, value;
} pst_net_header;

/* Value of the first header of that name (ASCII case ignored); an empty view with data NULL when there is none. */
pst_str pst_net_header_find(const pst_net_header *headers, size_t n, const char *name);
/* A token in a comma-separated header value, case ignored: "close" in "Keep-Alive, close". */
bool pst_net_header_has_token(pst_str value, const char *token);
/* Appends text with %XX decoded ('+' to space when `plus`). PST_E_BAD_INPUT for a broken escape. */
int pst_net_percent_decode(pst_str text, bool plus, pst_buf *out);
/* Appends the decoded value of a query parameter. 1 found, 0 not, negative error. */
int pst_net_query_get(pst_str query, const char *name, pst_buf *out);
const char *pst_net_status_text(int status); /* "OK"; "Unknown" for what is not listed */
/* The IMF-fixdate of RFC 9110, e.g. "Sun, 06 Nov 1994 08:49:37 GMT". */
void pst_net_http_date(int64_t unix_seconds, char ret_text[30]);

/* ---- server (net/server.c, net/connection.c) ---------------------------------------------------------------------- */

typedef struct pst_net_server pst_net_server;

/* One request and its answer. Valid from the handler's call until the answer is ended (pst_net_respond, _respond_end, _respond_abort) or its
 * on_gone callback has returned, whichever is first: exactly one of the two happens. */
typedef struct pst_net_exchange pst_net_exchange;

typedef struct pst_net_request {
  pst_str method;                /* "GET" */
  pst_str path, query;           /* as sent, still %-encoded; query without the '?', may be empty */
  const pst_net_header *headers; /* white space around values is gone */
  size_t n_headers;
  pst_str body;        /* chunks joined */
  const char *peer;    /* numeric address of the other side, without port */
  bool loopback;       /* the peer is this machine, over the loopback interface */
  int64_t received_us; /* pst_clock_us when its first byte was seen */
} pst_net_request;

/* Must answer now or later; never answering is allowed only until on_gone. */
typedef void (*pst_net_handler)(void *user, pst_net_exchange *exchange);
/* Writes the body (and names the content type) of an answer the server gives by itself: 400, 408, 413, 414, 417, 431, 501, 503, 505. */
typedef void (*pst_net_error_writer)(void *user, int status, const char *message, pst_buf *body,
                                     const char **ret_content_type);

typedef struct pst_net_server_options {
  const char *address; /* numeric or a name of this machine; "127.0.0.1" */
  int port;            /* 0: the system chooses */
  pst_net_handler handler;
  pst_net_error_writer error_writer; /* NULL: plain text */
  void *user;
  int max_connections;         /* 1024. Beyond, the longest idle one is closed; without one the new one gets 503 */
  size_t max_header_bytes;     /* 64 KiB, request line included: 431 */
  int max_headers;             /* 128: 431 */
  size_t max_body_bytes;       /* 32 MiB: 413 */
  size_t max_total_body_bytes; /* 1 GiB: bodies of all connections together: 503 */
  size_t write_high_bytes;     /* 256 KiB: above, pst_net_respond_write answers 1 */
  size_t write_low_bytes;      /* 64 KiB: on_drain when the queue is back to this */
  size_t write_max_bytes;      /* 16 MiB: above, a streaming answer's client counts as gone */
  int64_t idle_timeout_ms;     /* 75 s: kept alive between requests */
  int64_t header_timeout_ms;   /* 15 s: first byte to end of headers */
  int64_t body_timeout_ms;     /* 60 s: end of headers to end of body */
  int64_t write_timeout_ms;    /* 60 s without any progress of a waiting write */
} pst_net_server_options;
pst_net_server_options pst_net_server_options_default(void);

/* Listens. A port that is taken is PST_E_BUSY, a forbidden one PST_E_DENIED, an unknown address PST_E_BAD_INPUT. Strings are copied. */
int pst_net_server_create(pst_net_loop *loop, const pst_net_server_options *options, pst_net_server **ret_server,
                          pst_error *err);
int pst_net_server_port(const pst_net_server *server);
/* No new connections; idle ones are closed, answers in progress are finished (with "Connection: close"); after deadline_ms the rest is cut.
 * done(arg) comes once, when no connection is left. */
void pst_net_server_drain(pst_net_server *server, int64_t deadline_ms, pst_net_fn done, void *arg);
/* Cuts what is open: on_gone of each unanswered exchange is called before it returns. NULL is fine. Not inside a callback of this server
 * other than drain's done. */
void pst_net_server_free(pst_net_server *server);

typedef struct pst_net_server_stats {
  int n_connections, n_exchanges; /* now */
  int64_t n_accepted, n_requests; /* ever */
  int64_t n_refused, n_bad, n_timeouts,
      n_gone; /* over the limit; malformed; timed out; left before their answer's end */
} pst_net_server_stats;
void pst_net_server_get_stats(const pst_net_server *server, pst_net_server_stats *ret_stats);

const pst_net_request *pst_net_exchange_request(const pst_net_exchange *x);
/* fn(arg) when the client is gone (closed, half-closed, reset, stalled, over the write limit, server freed) before the answer was ended.
 * Also while nothing is written. */
void pst_net_exchange_on_gone(pst_net_exchange *x, pst_net_fn fn, void *arg);

/* The whole answer; ends it. Content-Length, Date and Connection are added. Headers and body are copied. Errors (bad header: PST_E_BAD_INPUT,
 * PST_E_NOMEM) send a plain 500 or cut the connection; the exchange is ended in any case. */
int pst_net_respond(pst_net_exchange *x, int status, const pst_net_header *headers, size_t n_headers, pst_str body);
/* A streamed answer: chunked for HTTP/1.1, ended by the connection's end for 1.0. */
int pst_net_respond_begin(pst_net_exchange *x, int status, const pst_net_header *headers, size_t n_headers);
/* Queues bytes; never waits. 0; 1: taken, but wait for on_drain before writing more; negative: not taken, on_gone will come. */
int pst_net_respond_write(pst_net_exchange *x, pst_str data);
size_t pst_net_respond_pending(const pst_net_exchange *x); /* bytes queued and not yet with the kernel */
void pst_net_respond_on_drain(pst_net_exchange *x, pst_net_fn fn, void *arg);
void pst_net_respond_end(pst_net_exchange *x);
/* Ends it by cutting the connection, so that the client sees an unfinished answer. */
void pst_net_respond_abort(pst_net_exchange *x);

/* ---- client (net/client.c) ---------------------------------------------------------------------------------------- */

typedef struct pst_net_client pst_net_client; /* a pool of connections on one loop */
typedef struct pst_net_call pst_net_call; /* one request in flight: valid until on_done is called or cancel returns */

typedef struct pst_net_client_options {
  int max_connections;          /* 256 */
  int max_connections_per_host; /* 64 */
  const char *ca_file;          /* NULL: the system's certificates; copied */
} pst_net_client_options;
pst_net_client_options pst_net_client_options_default(void);
int pst_net_client_create(pst_net_loop *loop, const pst_net_client_options *options, pst_net_client **ret_client,
                          pst_error *err);
void pst_net_client_free(
    pst_net_client *client); /* open calls end without a callback; NULL is fine; not inside a callback of a call */

typedef struct pst_net_response_head {
  int status;
  const pst_net_header *headers;
  size_t n_headers;
  int64_t content_length; /* -1: not told */
} pst_net_response_head;

typedef struct pst_net_call_result {
  int code; /* 0: the answer came whole, whatever its status. Else PST_E_IO (could not resolve, connect, TLS, cut), PST_E_TIMEOUT,
                           PST_E_LIMIT (answer too long), PST_E_NOMEM, PST_E_CANCELLED (a callback refused) */
  int status;     /* 0: no head came */
  bool connected; /* false: no byte of the request can have reached the other side, so trying again is safe */
  int64_t n_body_bytes;
  int64_t first_byte_us, total_us; /* since start; first_byte_us -1: none came */
  const pst_error *error;          /* with code != 0 */
} pst_net_call_result;

typedef struct pst_net_call_options {
  const char *method; /* NULL: GET, or POST with a body */
  const char *url;    /* http or https */
  const pst_net_header *headers;
  size_t n_headers;
  pst_str body;                  /* copied */
  int64_t range_from;            /* > 0: asks for bytes from here on (206 when the server can) */
  int64_t connect_timeout_ms;    /* 10 s */
  int64_t first_byte_timeout_ms; /* 0: no limit; from start to the head of the answer */
  int64_t idle_timeout_ms;       /* 0: no limit; between two pieces of the body */
  int64_t total_timeout_ms;      /* 0: no limit */
  size_t max_body_bytes;         /* 64 MiB; 0: no limit */
  int max_redirects;             /* 0: a redirect is an answer like any other. https never goes to http */
  /* All may be NULL but on_done. on_head comes once, with the final head. A non-zero answer of on_head or on_body ends the call with that code. */
  int (*on_head)(void *user, const pst_net_response_head *head);
  int (*on_body)(void *user, pst_str data);
  void (*on_done)(void *user,
                  const pst_net_call_result *result); /* exactly once unless cancelled; never from inside start */
  void *user;
} pst_net_call_options;
pst_net_call_options pst_net_call_options_default(void);

/* Bad URL, method or header: PST_E_BAD_INPUT at once. Certificates and host names are always verified. Proxy settings of the environment are
 * honoured, except towards loopback addresses. */
int pst_net_client_start(pst_net_client *client, const pst_net_call_options *options, pst_net_call **ret_call,
                         pst_error *err);
/* The connection is closed; no callback comes after this. Allowed inside the call's own on_head and on_body, not in on_done. */
void pst_net_call_cancel(pst_net_call *call);
/* False: no byte of the request has reached the other side, and after a cancel none will. */
bool pst_net_call_is_begun(const pst_net_call *call);
/* While paused no on_body comes and the sender is held back; time-outs of silence do not run. */
void pst_net_call_pause(pst_net_call *call, bool paused);

/* ---- downloads (net/download.c) ------------------------------------------------------------------------------------ */

typedef struct pst_net_download {
  const char *url;
  const char *path;       /* the partial file; what is there already is kept and continued when the server can */
  int64_t expected_bytes; /* whole size; -1: unknown. Another size is PST_E_CORRUPT */
  int64_t max_bytes;      /* refused above, PST_E_LIMIT; <= 0: no limit */
  const pst_net_header *headers;
  size_t n_headers;
  int n_attempts; /* 5: tries after cut connections, time-outs and 5xx/429, each going on where the last one stopped */
  int64_t connect_timeout_ms; /* 15 s */
  int64_t idle_timeout_ms;    /* 60 s */
  pst_progress *progress;     /* NULL: silent; begun by the caller, counts bytes of this file plus progress_base */
  int64_t progress_base;
} pst_net_download;
pst_net_download pst_net_download_default(void);
/* Blocks until the file is whole. Runs a loop of its own in the calling thread. The partial file stays on failure, for the next try. 404 and the
 * like: PST_E_NOT_FOUND; 401, 403: PST_E_DENIED; disk full: PST_E_NO_SPACE. The caller checks the hash and renames. */
int pst_net_download_run(const pst_net_download *download, int64_t *ret_bytes, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
