/* Any bytes as a GGUF file: refused with a reason, or every promise of the reader holds; then as a tokenizer. */
#include <stdlib.h>
#include <string.h>

#include "engine/gguf.h"
#include "engine/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define CHECK(condition)       \
  do {                         \
    if (!(condition)) abort(); \
  } while (0)

static volatile uint64_t sink;

static void visit_value(const pst_engine_gguf_value *v) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < v->n && i < 4096; i++) {
    pst_str s = pst_engine_gguf_value_str(v, i);
    for (size_t k = 0; k < s.n; k++) sum += (unsigned char)s.data[k];
    sum += (uint64_t)pst_engine_gguf_value_i64(v, i) + (pst_engine_gguf_value_f64(v, i) > 0) +
           pst_engine_gguf_value_bool(v, i);
  }
  for (size_t k = 0; k < v->raw_bytes; k++) sum += v->raw[k];
  sink += sum;
}

static void visit_tensor(const pst_engine_gguf *g, const pst_engine_gguf_tensor *t, const uint8_t *data, size_t n) {
  CHECK(pst_kernels_type_info(t->type));
  CHECK(t->n_dims >= 1 && t->n_dims <= 4);
  CHECK(t->offset % pst_engine_gguf_alignment(g) == 0);
  CHECK(t->offset <= n && t->bytes <= n - t->offset);
  CHECK(t->data == data + t->offset);
  CHECK(pst_kernels_row_bytes(t->type, t->dims[0]) * (t->n_elements / t->dims[0]) == t->bytes);
  for (size_t i = 0; i < t->bytes; i++) sink += t->data[i];
}

static void try_tokenizer(const pst_engine_gguf *g) {
  pst_engine_tokenizer *t = NULL;
  pst_error err = PST_ERROR_INIT;
  if (pst_engine_tokenizer_create(g, &t, &err) < 0) {
    CHECK(err.code < 0 && err.message[0]);
    return;
  }
  pst_engine_tokens tokens = {0};
  pst_buf text = PST_BUF_INIT;
  CHECK(pst_engine_tokenizer_encode(t, PST_STR("Hello <|im_end|> \xff caf\xc3\xa9  1234\n\n"), 7, &tokens, &err) == 0);
  for (size_t i = 0; i < tokens.n; i++)
    CHECK(tokens.ids[i] >= 0 && tokens.ids[i] < pst_engine_tokenizer_get_info(t)->n_vocab);
  pst_engine_tokenizer_decode(t, tokens.ids, tokens.n, true, &text);
  CHECK(pst_engine_tokenizer_trie(t));
  pst_buf_done(&text);
  pst_engine_tokens_done(&tokens);
  pst_engine_tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  pst_engine_gguf *g = NULL;
  pst_error err = PST_ERROR_INIT;
  uint8_t *copy = pst_malloc(n); /* aligned, and exactly as long */
  CHECK(copy);
  if (n) memcpy(copy, data, n);
  if (pst_engine_gguf_open_memory(copy, n, "fuzz", &g, &err) < 0) {
    CHECK(err.code < 0 && err.message[0]);
  } else {
    for (size_t i = 0; i < pst_engine_gguf_n_values(g); i++) visit_value(pst_engine_gguf_value_at(g, i));
    for (size_t i = 0; i < pst_engine_gguf_n_tensors(g); i++) visit_tensor(g, pst_engine_gguf_tensor_at(g, i), copy, n);
    try_tokenizer(g);
    pst_engine_gguf_close(g);
  }
  pst_free(copy);
  return 0;
}
