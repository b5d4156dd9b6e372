/* A store in a directory of its own, as a test's setup and teardown; and calls that must not fail. */
#ifndef PST_TESTS_SUPPORT_STORE_H
#define PST_TESTS_SUPPORT_STORE_H

#include <penstock/store.h>

#include "support/temp.h"

extern pst_store *test_store; /* in test_dir */
extern pst_error test_error;  /* of the call at hand */
int test_store_open(void **state);
int test_store_close(void **state);

/* For files that include cmocka.h. */
#define TEST_OK(call)                                                                         \
  do {                                                                                        \
    int code_ = (call);                                                                       \
    if (code_) fail_msg("%s: %d %s: %s", #call, code_, test_error.place, test_error.message); \
  } while (0)

#endif
