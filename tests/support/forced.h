/* Teacher forcing: the logits of every position of a window of tokens, straight from the engine's forward pass. */
#ifndef PST_TESTS_SUPPORT_FORCED_H
#define PST_TESTS_SUPPORT_FORCED_H

#include <penstock/engine.h>

typedef struct test_forced test_forced;

/* For windows of up to `window` tokens, keys and values as F16; threads 0: all processors. References the model. One thread at a time. */
int test_forced_open(pst_engine_model *model, int window, int threads, test_forced **ret_forced, pst_error *err);
void test_forced_close(test_forced *f); /* NULL is fine */
/* Runs tokens[n] from position 0, as one chunk. */
void test_forced_run(test_forced *f, const int32_t *tokens, int n);
/* Logits that predict what follows position `at` of the last run: valid until the next call, [n_vocab]. */
const float *test_forced_logits(test_forced *f, int at);

#endif
