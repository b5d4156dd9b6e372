/* Records by name, number or workload (records.h). */
#include "cli/records.h"

#include <stdio.h>

/* ---- which record ---- */

typedef struct finding {
  int64_t number; /* 0: any */
  char *id;       /* NULL: not found */
} finding;

static int take_id(void *user, const pst_store_request *r) {
  finding *f = user;
  if (f->number && f->number != r->id) return 0;
  f->id = pst_strndup(r->completion_id.data, r->completion_id.n);
  return f->id ? 0 : PST_E_NOMEM;
}

static pst_store_request_filter any_record(void) {
  pst_store_request_filter filter = PST_STORE_REQUEST_FILTER_INIT;
  filter.origin = PST_STORE_ANY_ORIGIN;
  filter.limit = 1;
  return filter;
}

int pst_cli_record_find(pst_store *store, pst_str what, char **ret_id, pst_error *err) {
  finding f = {0, NULL};
  pst_store_request_filter filter = any_record();
  filter.completion_id = what;
  int code = pst_store_request_each(store, &filter, take_id, &f, err);
  if (!code && !f.id && !pst_parse_i64(what, 1, INT64_MAX, &f.number)) {
    filter.completion_id.data = NULL;
    filter.after_id = f.number - 1;
    code = pst_store_request_each(store, &filter, take_id, &f, err);
  }
  if (code == PST_E_NOMEM) pst_error_set(err, code, NULL, "no memory");
  if (!code) *ret_id = f.id;
  return code;
}

static int note_record(void *user, const pst_store_request *r) {
  (void)r;
  *(bool *)user = true;
  return 0;
}

int pst_cli_workload_recorded(pst_store *store, pst_str workload, bool *ret_recorded, pst_error *err) {
  bool recorded = false;
  pst_store_request_filter filter = any_record();
  filter.workload = workload;
  int code = pst_store_request_each(store, &filter, note_record, &recorded, err);
  if (!code) *ret_recorded = recorded;
  return code;
}

/* ---- on a terminal ---- */

/* Bytes of the control character at text[i]; 0: it is none. Those of C1 (U+0080 to U+009F) are two in UTF-8. */
static size_t control_bytes(pst_str text, size_t i) {
  unsigned char c = (unsigned char)text.data[i], next = i + 1 < text.n ? (unsigned char)text.data[i + 1] : 0;
  if (c < 0x20 || c == 0x7f) return 1;
  return c == 0xc2 && next >= 0x80 && next < 0xa0 ? 2 : 0;
}

void pst_cli_put_line(pst_str text, size_t most, pst_buf *out) {
  pst_buf_clear(out);
  for (size_t i = 0; i < text.n && out->n < most; i++) {
    size_t control = control_bytes(text, i);
    pst_buf_putc(out, control ? ' ' : text.data[i]);
    if (control) i += control - 1;
  }
  out->n -= PST_MIN(out->n, pst_utf8_incomplete_tail(pst_buf_str(out)));
}

void pst_cli_print_line(pst_str text, size_t width, size_t most, pst_buf *scratch) {
  pst_cli_put_line(text, most, scratch);
  printf("%-*.*s", (int)width, (int)scratch->n, pst_buf_text(scratch));
}
