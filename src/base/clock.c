/* Clocks. Durations come from the monotonic clock, time stamps from the wall clock; nothing else in the program asks the
 * kernel for the time, so that what must be replayed can be handed its times. */
#include <penstock/base.h>

#include <time.h>

int64_t pst_clock_ns(void) {
  struct timespec t = {0, 0};
  (void)clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail for this clock */
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t pst_clock_us(void) { return pst_clock_ns() / 1000; }

int64_t pst_clock_unix_ms(void) {
  struct timespec t = {0, 0};
  (void)clock_gettime(CLOCK_REALTIME, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
