/* Private to net: what server.c (listening, limits, draining) and connection.c (one socket: parse, answer, write) share. */
#ifndef PST_NET_SERVER_H
#define PST_NET_SERVER_H

#include <llhttp.h>

#include "net/loop.h"

typedef struct pst_net_connection pst_net_connection;

struct pst_net_exchange {
  pst_net_connection *connection;
  pst_net_request request;
  pst_net_fn on_gone, on_drain;
  void *gone_arg, *drain_arg;
  bool begun;     /* a head was queued */
  bool streaming; /* begun by respond_begin, not ended */
  bool chunked;
  bool head_only; /* HEAD, 204, 304: no body goes out */
  bool ended;     /* by the handler; the exchange is freed in the next pump */
  bool was_full;  /* the queue went over write_high_bytes: on_drain is owed */
};

typedef enum pst_net_connection_state {
  PST_NET_IDLE, /* kept alive, no byte of a next request seen */
  PST_NET_HEAD, /* in a request line or headers */
  PST_NET_BODY,
  PST_NET_HANDLING, /* an exchange is open */
  PST_NET_CLOSING,  /* write what is queued, then close */
  PST_NET_LINGER, /* our side is shut; read and drop until the client has closed, so that no reset destroys the answer */
  PST_NET_DEAD,   /* to be freed in the next pump */
} pst_net_connection_state;

/* Where a header's name and value lie in `head`, as offsets because `head` moves while it grows. */
typedef struct pst_net_header_place {
  size_t name, name_n, value, value_n;
} pst_net_header_place;

/* Owned by the loop's thread. Invariant "one at a time": the parser stands still from the end of a request until its answer is ended, so
 * pipelined requests are answered in order and wait in `pending` or in the kernel. */
struct pst_net_connection {
  pst_net_server *server;
  pst_net_connection *prev, *next;           /* all of the server */
  pst_net_connection *idle_prev, *idle_next; /* PST_NET_IDLE only, oldest first */
  int fd;
  struct event *io;    /* edge-triggered for the whole life: read, write, early close */
  struct event *timer; /* the nearest of the deadlines below */
  pst_net_later pump;
  pst_net_connection_state state;
  bool readable;    /* the kernel may have more for us */
  bool peer_closed; /* it will send no more */
  bool reset;       /* the socket is broken */
  bool close_after; /* no further request after this answer */
  bool linger;      /* with CLOSING: the client may still be sending */
  bool loopback;
  char peer[64];

  llhttp_t parser;
  pst_buf pending; /* read, not yet parsed */
  size_t pending_at;
  pst_buf head; /* target, header names and values of the current request */
  size_t target_n;
  pst_net_header_place *places;
  size_t n_headers, places_capacity;
  pst_net_header *headers; /* n_headers, pointing into head */
  size_t headers_capacity;
  bool in_value, head_complete, message_complete;
  size_t raw_head_bytes; /* fed to the parser before the end of the headers */
  pst_buf body;
  size_t body_counted; /* bytes counted in server->total_body_bytes */
  int refuse_status;   /* set inside a parser callback: how to refuse */
  const char *refuse_why;
  int64_t received_us;

  pst_net_exchange *exchange;
  pst_buf out;
  size_t out_at;
  int64_t read_deadline_us;  /* 0: none; of IDLE, HEAD, BODY and LINGER */
  int64_t write_deadline_us; /* 0: none */
  int64_t armed_us;          /* what the timer stands at; 0: off */
  size_t linger_bytes;
};

struct pst_net_server {
  pst_net_loop *loop;
  pst_net_server_options options;
  char *address;
  int fd, port;
  struct event *listen_event, *resume_timer, *drain_timer;
  pst_net_connection *connections;
  pst_net_connection *idle_first, *idle_last;
  pst_net_later drained;
  bool draining, freeing;
  pst_net_fn drain_done;
  void *drain_arg;
  size_t total_body_bytes;
  pst_net_server_stats stats;
  int64_t date_second;
  char date[30];
  llhttp_settings_t parser_settings;
  char *scratch; /* PST_NET_SCRATCH_BYTES, what a read lands in */
};
#define PST_NET_SCRATCH_BYTES 65536u

/* connection.c */
int pst_net_connection_open(pst_net_server *server, int fd, const char *peer, bool loopback); /* owns fd on success */
void pst_net_connection_parser_settings(llhttp_settings_t *settings);
void pst_net_connection_close_idle(pst_net_connection *c); /* only in IDLE */
void pst_net_connection_cut(pst_net_connection *c);        /* now; on_gone is called */
void pst_net_connection_free(pst_net_connection *c);
/* respond.c */
void pst_net_exchange_gone(pst_net_exchange *x); /* tells the handler if the answer was not ended, then frees */
void pst_net_connection_pump_soon(pst_net_connection *c);
void pst_net_connection_error_body(pst_net_server *server, int status, const char *message, pst_buf *body,
                                   const char **ret_type);
void pst_net_write_head(pst_net_connection *c, int status, const pst_net_header *headers, size_t n_headers,
                        int64_t content_length, bool chunked, bool http10);
/* server.c */
void pst_net_server_forget(pst_net_server *server,
                           pst_net_connection *c); /* unlinks; starts waiting accepts and drain's end */
void pst_net_server_idle(pst_net_server *server, pst_net_connection *c, bool idle);

#endif
