/* Streams of providers: the same events however the bytes are cut, and every event's data through the chunk and answer parsers. The first byte
 * chooses the size of the pieces. */
#include <stdlib.h>
#include <string.h>

#include <penstock/wire.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int on_event(void *user, const pst_wire_sse_event *event) {
  pst_buf *log = user;
  pst_buf_printf(log, "%zu:%zu;", event->event.n, event->data.n);
  pst_buf_append_str(log, event->data);
  for (int chunk = 0; chunk < 2; chunk++) {
    for (int kind = 0; kind < 2; kind++) {
      pst_wire_reply reply;
      if (pst_wire_reply_parse((pst_wire_kind)kind, chunk != 0, event->data, &reply, NULL) == 0)
        pst_wire_reply_done(&reply);
    }
  }
  pst_error err = PST_ERROR_INIT;
  if (pst_wire_upstream_error(400 + (int)(event->data.n % 200), event->data, &err) >= 0) abort();
  return 0;
}

static int feed(pst_str bytes, size_t piece, pst_buf *log) {
  pst_wire_sse sse;
  int rc = 0;
  pst_wire_sse_init(&sse, 4096);
  for (size_t i = 0; i < bytes.n && !rc; i += piece)
    rc = pst_wire_sse_feed(&sse, (pst_str){bytes.data + i, PST_MIN(piece, bytes.n - i)}, on_event, log);
  pst_wire_sse_done(&sse);
  return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  if (n < 1) return 0;
  pst_str bytes = {(const char *)data + 1, n - 1};
  pst_buf whole = PST_BUF_INIT, cut = PST_BUF_INIT;
  int a = feed(bytes, bytes.n + 1, &whole), b = feed(bytes, 1u + data[0] % 16, &cut);
  if (a != b || !pst_str_equal(pst_buf_str(&whole), pst_buf_str(&cut))) abort();
  pst_buf_done(&whole);
  pst_buf_done(&cut);
  return 0;
}
