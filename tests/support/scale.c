/* How much a test does: less under a sanitizer, more in make test-full. */
#include "support/scale.h"

#include <stdlib.h>

#if defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED 1
#endif

bool test_is_sanitized(void) {
#ifdef SANITIZED
  return true;
#else
  return false;
#endif
}

int test_scale(int usual, int sanitized, int full) {
  const char *wants_full = getenv("PENSTOCK_TEST_FULL");
  if (test_is_sanitized()) return sanitized;
  return wants_full && wants_full[0] ? full : usual;
}
