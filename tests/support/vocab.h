/* Vocabularies and models for tests: the shared data's, the pulled models', and small ones made up here. */
#ifndef PST_TESTS_SUPPORT_VOCAB_H
#define PST_TESTS_SUPPORT_VOCAB_H

#include <penstock/base.h>

#include "engine/gguf.h"
#include "engine/tokenizer.h"

/* DATA/vocab/NAME.gguf.gz unpacked, DATA being $PENSTOCK_TEST_DATA or ../shared/data. False with a line on stdout saying why: not there.
 * *ret_data: pst_free. */
bool test_vocab_unpack(const char *name, uint8_t **ret_data, size_t *ret_n);
/* The whole of DATA/vocab/NAME. NULL: not there. pst_free. */
char *test_vocab_file(const char *name, size_t *ret_n);

/* A file in a temporary directory with the metadata that `fill` puts; aborts on failure. */
typedef struct test_gguf {
  char *dir;
  char path[512];
} test_gguf;
test_gguf test_gguf_make(void (*fill)(pst_engine_gguf_writer *w));
void test_gguf_remove(test_gguf *file);
/* The tokenizer of such a file; aborts on failure. */
pst_engine_tokenizer *test_tokenizer_make(void (*fill)(pst_engine_gguf_writer *w));

#endif
