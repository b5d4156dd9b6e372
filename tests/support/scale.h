/* How much a test does. */
#ifndef PST_TESTS_SUPPORT_SCALE_H
#define PST_TESTS_SUPPORT_SCALE_H

#include <stdbool.h>

/* `usual` in make test; `full` in make test-full (PENSTOCK_TEST_FULL is set); `sanitized` in a build with a sanitizer, which runs
 * several times slower and is there to find mistakes of memory and threads, not of values. */
int test_scale(int usual, int sanitized, int full);
/* Whether this is a build with ASan or TSan. */
bool test_is_sanitized(void);

#endif
