/* POST /v1/embeddings: the request read, the answer written. Vectors go out as numbers or as base64 of little-endian float32, which is what the official
 * clients ask for. */
#include "wire/reader.h"

#include <string.h>

/* ---- the request ----------------------------------------------------------------------------------------------------------- */

static int read_format(const pst_wire_reader *r, pst_wire_embedding_request *q) {
  pst_str format = {NULL, 0};
  int rc = pst_wire_read_str(r, "encoding_format", 64, &format);
  if (rc || !format.data) return rc;
  q->base64 = pst_str_is(format, "base64");
  if (!q->base64 && !pst_str_is(format, "float"))
    return pst_wire_fail(r, PST_E_BAD_INPUT, "encoding_format", "'%.*s' is not 'float' or 'base64'", (int)format.n,
                         format.data);
  return 0;
}

static int read_inputs(const pst_wire_reader *r, pst_wire_embedding_request *q) {
  int rc = pst_wire_read_prompts(r, "input", PST_WIRE_MAX_INPUTS, q->arena, &q->inputs, &q->n_inputs);
  for (size_t i = 0; i < q->n_inputs && !rc; i++)
    if (!q->inputs[i].tokens && q->inputs[i].text.n == 0)
      rc = pst_wire_fail(r, PST_E_BAD_INPUT, "input", "text %zu is empty", i);
  return rc;
}

int pst_wire_embedding_parse(pst_str body, pst_wire_embedding_request *ret_request, pst_error *err) {
  pst_wire_embedding_request q = {.arena = pst_arena_create()};
  pst_wire_reader r = {.err = err};
  int64_t dimensions = 0;
  int rc = q.arena ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the request");
  if (!rc) rc = pst_wire_parse_body(&r, body, &q.doc);
  if (!rc) rc = pst_wire_read_str(&r, "model", 1024, &q.model);
  if (!rc && q.model.n == 0) rc = pst_wire_fail(&r, PST_E_BAD_INPUT, "model", "is missing");
  if (!rc) rc = pst_wire_read_str(&r, "user", 1024, &q.user);
  if (!rc) rc = read_format(&r, &q);
  if (!rc) rc = pst_wire_read_int(&r, "dimensions", 1, 1 << 20, NULL, &dimensions);
  if (!rc) rc = read_inputs(&r, &q);
  if (rc) {
    pst_wire_embedding_done(&q);
    return rc;
  }
  q.dimensions = (int)dimensions;
  *ret_request = q;
  return 0;
}

void pst_wire_embedding_done(pst_wire_embedding_request *request) {
  pst_json_free(request->doc);
  pst_arena_free(request->arena);
  *request = (pst_wire_embedding_request){0};
}

/* ---- the answer ------------------------------------------------------------------------------------------------------------ */

static uint8_t byte_of(const float *vector, size_t i) {
  uint32_t bits;
  memcpy(&bits, &vector[i / 4], sizeof bits);
  return (uint8_t)(bits >> (8 * (i % 4)));
}

/* RFC 4648, with padding. */
static void put_base64(const float *vector, size_t n, pst_buf *out) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  size_t n_bytes = 4 * n;
  pst_buf_putc(out, '"');
  for (size_t i = 0; i < n_bytes; i += 3) {
    uint32_t three = (uint32_t)byte_of(vector, i) << 16;
    if (i + 1 < n_bytes) three |= (uint32_t)byte_of(vector, i + 1) << 8;
    if (i + 2 < n_bytes) three |= byte_of(vector, i + 2);
    const char four[4] = {digits[three >> 18], digits[three >> 12 & 63],
                          i + 1 < n_bytes ? digits[three >> 6 & 63] : '=', i + 2 < n_bytes ? digits[three & 63] : '='};
    pst_buf_append(out, four, sizeof four);
  }
  pst_buf_putc(out, '"');
}

/* Nine digits are enough for every float32 to come back as it was. */
static void put_numbers(const float *vector, size_t n, pst_buf *out) {
  for (size_t i = 0; i < n; i++) pst_buf_printf(out, "%c%.9g", i ? ',' : '[', (double)vector[i]);
  pst_buf_putc(out, ']');
}

void pst_wire_embedding_write(const pst_wire_embedding_answer *a, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_buf vector = PST_BUF_INIT;
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "object", "list");
  pst_json_key(&w, "data");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < a->n_vectors; i++) {
    pst_buf_clear(&vector);
    (a->base64 ? put_base64 : put_numbers)(a->vectors + i * a->n_dims, a->n_dims, &vector);
    if (pst_buf_status(&vector)) out->failed = true;
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "object", "embedding");
    pst_json_member_int(&w, "index", (int64_t)i);
    pst_json_key(&w, "embedding");
    pst_json_put_raw(&w, pst_buf_str(&vector));
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
  pst_json_member_str(&w, "model", a->model);
  pst_json_key(&w, "usage");
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "prompt_tokens", a->prompt_tokens);
  pst_json_member_int(&w, "total_tokens", a->prompt_tokens);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  pst_buf_done(&vector);
}
