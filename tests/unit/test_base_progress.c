/* The progress line, off and on a terminal. Time is not waited for: a test moves the beginning back, and so far that a machine
 * under load does not change what is written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static int kept_stderr = -1;

static int restore(void **state) {
  (void)state;
  if (kept_stderr >= 0) {
    (void)fflush(stderr);
    (void)dup2(kept_stderr, STDERR_FILENO);
    (void)close(kept_stderr);
    kept_stderr = -1;
  }
  return 0;
}

static void redirect(int fd) {
  (void)fflush(stderr);
  kept_stderr = dup(STDERR_FILENO);
  assert_true(kept_stderr >= 0);
  assert_true(dup2(fd, STDERR_FILENO) >= 0);
}

static void pass_seconds(pst_progress *p, int64_t seconds) {
  p->start_us -= seconds * 1000000;
  p->drawn_us -= seconds * 1000000;
}

/* Everything in the file so far; ends with a zero byte. */
static const char *content(FILE *file) {
  static char text[8192];
  (void)fflush(stderr);
  ssize_t n = pread(fileno(file), text, sizeof text - 1, 0);
  assert_true(n >= 0);
  text[n] = '\0';
  return text;
}

static void test_plain_lines(void **state) {
  (void)state;
  FILE *file = tmpfile();
  assert_non_null(file);
  redirect(fileno(file));
  pst_progress p;
  pst_progress_begin(&p, "pulling", 100000, false, false);
  assert_false(p.terminal);
  pass_seconds(&p, -3600);
  pst_progress_update(&p, 1);
  pst_progress_update(&p, 2);
  assert_string_equal(content(file), ""); /* short work says nothing */
  pass_seconds(&p, 3600 + 2000);
  pst_progress_update(&p, 50000);
  assert_non_null(strstr(content(file), "pulling  50% 50000 of 100000, 25/s, 33 min 2"));
  assert_non_null(strstr(content(file), " s left\n"));
  size_t n = strlen(content(file));
  p.drawn_us = pst_clock_us();
  pst_progress_update(&p, 60000);
  assert_int_equal(strlen(content(file)), n); /* not again within ten seconds */
  pass_seconds(&p, 11);
  pst_progress_note(&p, "joining part %d", 2);
  assert_non_null(strstr(content(file), "joining part 2  60% 60000 of 100000"));
  pst_progress_update(&p, 100000);
  pst_progress_end(&p);
  assert_non_null(strstr(content(file), "100% 100000 of 100000"));
  assert_non_null(strstr(content(file), "took 33 min 3"));
  n = strlen(content(file));
  pst_progress_end(&p);
  assert_int_equal(strlen(content(file)), n);
  assert_null(strchr(content(file), '\r'));
  assert_int_equal(restore(NULL), 0);
  assert_int_equal(fclose(file), 0);
}

static void test_quiet_and_short_work_say_nothing(void **state) {
  (void)state;
  FILE *file = tmpfile();
  assert_non_null(file);
  redirect(fileno(file));
  pst_progress p;
  pst_progress_begin(&p, "quiet", 10, false, true);
  pass_seconds(&p, 100);
  pst_progress_update(&p, 5);
  pst_progress_note(&p, "x");
  pst_progress_end(&p);
  pst_progress_begin(&p, "short", 10, false, false);
  pass_seconds(&p, -3600);
  pst_progress_update(&p, 10);
  pst_progress_end(&p);
  assert_string_equal(content(file), "");
  assert_int_equal(restore(NULL), 0);
  assert_int_equal(fclose(file), 0);
}

static void test_bytes_unknown_totals_and_odd_values(void **state) {
  (void)state;
  FILE *file = tmpfile();
  assert_non_null(file);
  redirect(fileno(file));
  pst_progress p;
  pst_progress_begin(&p, "read", 0, true, false);
  pass_seconds(&p, 1 << 20);
  pst_progress_update(&p, INT64_C(320) << 30);
  assert_non_null(strstr(content(file), "read 320.0 GiB, 320.0 KiB/s\n"));
  pst_progress_begin(&p, "line\nbreak", 10, false, false);
  pass_seconds(&p, 16);
  pst_progress_update(&p, 50); /* more than all */
  assert_non_null(strstr(content(file), "line break 100% 50 of 10"));
  char wide[300];
  memset(wide, 'w', sizeof wide);
  memcpy(wide + 93, "\xE2\x82\xAC", 3);
  wide[299] = '\0';
  pst_progress_begin(&p, wide, 1, false, false);
  assert_int_equal(strlen(p.what), 93); /* cut before the character that does not fit */
  pst_progress_begin(&p, "slow", INT64_MAX, false, false);
  pass_seconds(&p, 16);
  pst_progress_update(&p, 1);
  assert_non_null(strstr(content(file), "over 100 h left"));
  pst_progress_begin(&p, "back", 100, false, false);
  pass_seconds(&p, 16);
  pst_progress_update(&p, -5);
  assert_non_null(strstr(content(file), "back   0% -5 of 100"));
  assert_int_equal(restore(NULL), 0);
  assert_int_equal(fclose(file), 0);
}

/* Work that ends by the clock: time left is what the budget has left, not what a rate says. */
static void test_timed(void **state) {
  (void)state;
  FILE *file = tmpfile();
  assert_non_null(file);
  redirect(fileno(file));
  pst_progress p;
  pst_progress_begin_timed(&p, "optimize", 420, false);
  pass_seconds(&p, 30);
  pst_progress_update(&p, 3); /* a run taken up again has spent other seconds than this process */
  assert_string_equal(content(file), "  0% 6 min 57 s left  optimize\n");
  pass_seconds(&p, 11);
  pst_progress_note(&p, "search");
  assert_non_null(strstr(content(file), "  0% 6 min 57 s left  search\n"));
  pass_seconds(&p, 11);
  pst_progress_update(&p, 500); /* past its time */
  assert_non_null(strstr(content(file), "100% 1 min 20 s over  search\n"));
  pst_progress_end(&p);
  assert_non_null(strstr(content(file), "100% took 8 min 20 s  search\n"));
  assert_int_equal(restore(NULL), 0);
  assert_int_equal(fclose(file), 0);
}

static void test_on_a_terminal(void **state) {
  (void)state;
  int master = posix_openpt(O_RDWR | O_NOCTTY);
  const char *name = master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0 ? ptsname(master) : NULL;
  int slave = name ? open(name, O_RDWR | O_NOCTTY) : -1;
  if (slave < 0) {
    print_message("no pseudo terminals here\n");
    if (master >= 0) (void)close(master);
    skip();
  }
  struct termios modes;
  struct winsize size = {.ws_row = 24, .ws_col = 60};
  assert_int_equal(tcgetattr(slave, &modes), 0);
  cfmakeraw(&modes);
  assert_int_equal(tcsetattr(slave, TCSANOW, &modes), 0);
  assert_int_equal(ioctl(slave, TIOCSWINSZ, &size), 0);
  redirect(slave);
  pst_progress p;
  pst_progress_begin(&p, "searching the plans of this workload", 200, false, false);
  bool terminal = p.terminal;
  pass_seconds(&p, 3);
  pst_progress_update(&p, 50);
  p.drawn_us = pst_clock_us() + 1000000;
  pst_progress_update(&p, 51); /* less than a tenth of a second after the last one */
  pass_seconds(&p, 2);
  pst_progress_update(&p, 100);
  pst_progress_end(&p);
  assert_int_equal(restore(NULL), 0);
  char text[4096];
  size_t n = 0;
  while (n == 0 || text[n - 1] != '\n') { /* it comes in pieces; the line's end is the last of it */
    struct pollfd ready = {master, POLLIN, 0};
    ssize_t got = poll(&ready, 1, 10000) == 1 ? read(master, text + n, sizeof text - 1 - n) : 0;
    assert_true(got > 0);
    n += (size_t)got;
  }
  text[n] = '\0';
  (void)close(slave);
  (void)close(master);
  assert_true(terminal);
  assert_int_equal(text[0], '\r');
  assert_non_null(strstr(text, "[######......"));
  assert_null(strstr(text, " 51 of"));
  size_t width = 0;
  for (const char *c = text; *c; c++) { /* no redrawn line is wider than the terminal */
    width = *c == '\r' || *c == '\n' || *c == '\x1b' ? 0 : width + 1;
    assert_true(width < 60);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(test_plain_lines, restore),
      cmocka_unit_test_teardown(test_quiet_and_short_work_say_nothing, restore),
      cmocka_unit_test_teardown(test_bytes_unknown_totals_and_odd_values, restore),
      cmocka_unit_test_teardown(test_timed, restore),
      cmocka_unit_test_teardown(test_on_a_terminal, restore),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
