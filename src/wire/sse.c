/* Server-sent events: cuts a byte stream into events. Pure state machine over one line buffer; knows nothing of what the data means. */
#include <penstock/wire.h>

#include <string.h>

void pst_wire_sse_init(pst_wire_sse *sse, size_t max_bytes) {
  *sse = (pst_wire_sse){.line = PST_BUF_INIT, .data = PST_BUF_INIT, .event = PST_BUF_INIT, .max_bytes = max_bytes};
}

void pst_wire_sse_done(pst_wire_sse *sse) {
  pst_buf_done(&sse->line);
  pst_buf_done(&sse->data);
  pst_buf_done(&sse->event);
}

static int end_event(pst_wire_sse *sse, pst_wire_sse_callback callback, void *user) {
  int rc = 0;
  if (sse->has_data) {
    pst_wire_sse_event event = {.event = pst_buf_str(&sse->event), .data = pst_buf_str(&sse->data)};
    if (!event.data.data) event.data = (pst_str){"", 0};
    rc = callback(user, &event);
  }
  pst_buf_clear(&sse->data);
  pst_buf_clear(&sse->event);
  sse->has_data = false;
  return rc;
}

static int end_line(pst_wire_sse *sse, pst_wire_sse_callback callback, void *user) {
  pst_str line = pst_buf_str(&sse->line);
  if (line.n == 0) return end_event(sse, callback, user);
  size_t colon = pst_str_find(line, PST_STR(":"), 0);
  pst_str field = colon == SIZE_MAX ? line : (pst_str){line.data, colon};
  pst_str value = colon == SIZE_MAX ? (pst_str){"", 0} : (pst_str){line.data + colon + 1, line.n - colon - 1};
  if (value.n && value.data[0] == ' ') value = (pst_str){value.data + 1, value.n - 1};
  if (pst_str_is(field, "data")) {
    if (sse->has_data) pst_buf_putc(&sse->data, '\n');
    sse->has_data = true;
    if (sse->data.n + value.n > sse->max_bytes) return PST_E_LIMIT;
    pst_buf_append_str(&sse->data, value);
  } else if (pst_str_is(field, "event")) {
    pst_buf_clear(&sse->event);
    pst_buf_append_str(&sse->event, value);
  }
  pst_buf_clear(&sse->line);
  return sse->data.failed || sse->event.failed ? PST_E_NOMEM : 0;
}

/* Eats a byte order mark at the very start, split or not. Returns how many bytes were used; what turned out to be none goes to the line. */
static size_t skip_mark(pst_wire_sse *sse, pst_str bytes) {
  static const char mark[3] = {(char)0xEF, (char)0xBB, (char)0xBF};
  size_t i = 0;
  while (sse->bom_seen >= 0 && i < bytes.n) {
    if (bytes.data[i] != mark[sse->bom_seen]) {
      pst_buf_append(&sse->line, mark, (size_t)sse->bom_seen);
      sse->bom_seen = -1;
    } else {
      i++;
      if (++sse->bom_seen == 3) sse->bom_seen = -1;
    }
  }
  return i;
}

int pst_wire_sse_feed(pst_wire_sse *sse, pst_str bytes, pst_wire_sse_callback callback, void *user) {
  size_t i = skip_mark(sse, bytes);
  while (i < bytes.n) {
    if (sse->after_cr) {
      sse->after_cr = false;
      if (bytes.data[i] == '\n') {
        i++;
        continue;
      }
    }
    size_t start = i;
    while (i < bytes.n && bytes.data[i] != '\n' && bytes.data[i] != '\r') i++;
    if (sse->line.n + (i - start) > sse->max_bytes + 16) return PST_E_LIMIT; /* "data: " counts apart */
    pst_buf_append(&sse->line, bytes.data + start, i - start);
    if (sse->line.failed) return PST_E_NOMEM;
    if (i == bytes.n) break;
    sse->after_cr = bytes.data[i] == '\r';
    i++;
    int rc = end_line(sse, callback, user);
    if (rc) return rc;
  }
  return 0;
}
