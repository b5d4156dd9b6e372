/* A small random model of any architecture that the engine knows, as a GGUF file: a real file of a few 100 KB that runs in microseconds. */
#ifndef PST_TESTS_SUPPORT_TINY_MODEL_H
#define PST_TESTS_SUPPORT_TINY_MODEL_H

#include <penstock/base.h>

#include "engine/gguf.h"

typedef struct test_tiny {
  const char *architecture;  /* NULL: "llama" */
  const char *type;          /* of the matrices, blocks of at most 32: "F32" (NULL), "F16", "Q8_0", ... */
  const char *template_text; /* NULL: a plain ChatML template; "": none */
  const char *drop;          /* NULL, or the key (with its architecture prefix) or tensor that is left out */
  const char *extra_key;     /* NULL, or a further key of value 7 */
  const char *extra_tensor;  /* NULL, or a further tensor */
  bool dense;                /* gemma-embedding: with two projections behind the pooling */
  int pooling;               /* encoders: the key pooling_type; 0: none */
  uint64_t seed;
  int n_layers; /* 0: 2 */
} test_tiny;

/* n_embd 64, 4 heads of 16 over 2 key heads (4 in the BERTs), n_ff 96, context 2048, windows of 16, 288 tokens (bytes, a few merges, ChatML's control tokens); the embedding is the
 * head. Aborts on failure. */
void test_tiny_write(const char *path, const test_tiny *options);

/* Element i of a tensor by its name: 64 random bits, and a number in [-1, 1) from their upper 24. tools/golden_architectures.py makes the same. */
uint64_t test_tiny_bits(const char *name, uint64_t seed, uint64_t i);
float test_tiny_element(const char *name, uint64_t seed, uint64_t i);
/* All tensors of a file, declared and written; what is left is to finish. Aborts on failure. */
void test_gguf_copy_tensors(pst_engine_gguf_writer *writer, const pst_engine_gguf *gguf);
/* The keys of these models' tokenizer and its ChatML template. */
void test_tiny_put_tokenizer(pst_engine_gguf_writer *writer);

#endif
