/* A call that must succeed; a test program's `err` says why one did not. */
#ifndef PST_TESTS_SUPPORT_OK_H
#define PST_TESTS_SUPPORT_OK_H

#define OK(call)                                                                \
  do {                                                                          \
    int code_ = (call);                                                         \
    if (code_) fail_msg("%s: %d %s: %s", #call, code_, err.place, err.message); \
  } while (0)

#endif
