/* Requests of clients, as a fuzzer sends them: parsed as chat and as completion, and written again for a provider. */
#include <stdlib.h>

#include <penstock/wire.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(pst_wire_kind kind, pst_str body) {
  pst_wire_request q = {0}, again = {0};
  pst_error err = PST_ERROR_INIT;
  pst_buf out = PST_BUF_INIT;
  int rc = pst_wire_request_parse(kind, body, &q, &err);
  if (rc) {
    if (!err.message[0] || err.code != rc) abort();
    return;
  }
  /* What was accepted can be expressed, and means the same to the next reader. */
  if (pst_wire_upstream_write(&q, q.model, q.stream, &out, &err) == 0) {
    if (pst_wire_request_parse(kind, pst_buf_str(&out), &again, &err)) abort();
    if (again.n_prompts != q.n_prompts || again.chat.n_messages != q.chat.n_messages || again.n_stop != q.n_stop ||
        again.n_bias != q.n_bias)
      abort();
  }
  pst_buf_done(&out);
  pst_wire_request_done(&again);
  pst_wire_request_done(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  pst_str body = {(const char *)data, n};
  check(PST_WIRE_CHAT, body);
  check(PST_WIRE_TEXT, body);
  pst_wire_feedback feedback;
  if (pst_wire_feedback_parse(body, &feedback, NULL) == 0) pst_wire_feedback_done(&feedback);
  return 0;
}
