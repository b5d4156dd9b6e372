/* Raw TCP peers for tests of HTTP: a client that sends any bytes, and a scripted server for faults that no real server makes. */
#ifndef PST_TEST_RAW_PEER_H
#define PST_TEST_RAW_PEER_H

#include <penstock/base.h>

/* Connects to 127.0.0.1; fails the test when it cannot. */
int raw_connect(int port);
int raw_connect_small(int port, int receive_bytes); /* with a small receive buffer */
void raw_send(int fd, const char *text);
void raw_send_n(int fd, const void *data, size_t n);
/* Sends what the other side lets through; false when it has closed. */
bool raw_try_send(int fd, const void *data, size_t n);
/* Appends until `needle` is in *in, the other side closes, or 10 s are over. True when found. */
bool raw_read_until(int fd, pst_buf *in, const char *needle);
/* Appends until the other side closes. False after timeout_ms without it. */
bool raw_read_eof(int fd, pst_buf *in, int timeout_ms);
void raw_reset(int fd); /* closes with RST */

/* One HTTP answer from the front of *in (reading more as needed); what follows it stays in *in. */
typedef struct raw_answer {
  int status;
  char head[8192];
  pst_buf body; /* chunks joined; pst_buf_done */
  bool whole;   /* false: the connection ended before the answer did */
} raw_answer;
raw_answer raw_read_answer(int fd, pst_buf *in, bool head_only);
bool raw_has_header(const raw_answer *answer, const char *line); /* "connection: close", case as sent */

/* A server thread that runs script(fd, user) for each connection, one after the other, and closes it. */
typedef struct raw_server raw_server;
typedef void (*raw_script)(int fd, void *user);
raw_server *raw_server_start(raw_script script, void *user, int *ret_port);
void raw_server_stop(raw_server *server);
/* Reads one whole request (headers and Content-Length body) into *in. */
bool raw_read_request(int fd, pst_buf *in);

#endif
