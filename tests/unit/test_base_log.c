/* The log: levels, the line's shape, escaping, whole lines from many threads. Each test runs in a child of its own, since the
 * level is read from the environment once per process, and its stderr is a file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What `work` writes to stderr in a child with $PENSTOCK_LOG set to `level` (NULL: unset). pst_free the result. */
static char *stderr_of(const char *level, void (*work)(void)) {
  FILE *file = tmpfile();
  assert_non_null(file);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    if ((level ? setenv("PENSTOCK_LOG", level, 1) : unsetenv("PENSTOCK_LOG")) != 0 ||
        dup2(fileno(file), STDERR_FILENO) < 0)
      _exit(2);
    work();
    _exit(0);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 0);
  pst_buf text = PST_BUF_INIT;
  rewind(file);
  char piece[4096];
  for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;) pst_buf_append(&text, piece, n);
  assert_int_equal(fclose(file), 0);
  char *taken = pst_buf_take(&text);
  assert_non_null(taken);
  return taken;
}

static size_t n_lines(const char *text) {
  size_t n = 0;
  for (; *text; text++) n += *text == '\n';
  return n;
}

static void one_of_each(void) {
  pst_log(PST_LOG_DEBUG, "request=1 at=debug");
  pst_log(PST_LOG_INFO, "request=1 at=info");
  pst_log(PST_LOG_WARN, "request=1 at=warn");
  pst_log(PST_LOG_ERROR, "request=1 at=error");
  pst_log(PST_LOG_OFF, "request=1 at=off");
}

static void test_levels_from_the_environment(void **state) {
  (void)state;
  static const struct {
    const char *level;
    size_t want;
  } rows[] = {{NULL, 2}, {"debug", 4}, {"info", 3}, {"warn", 2}, {"ERROR", 1}, {"off", 0}, {"nonsense", 2}, {"", 2}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    char *text = stderr_of(rows[i].level, one_of_each);
    assert_int_equal(n_lines(text), rows[i].want);
    assert_null(strstr(text, "at=off"));
    pst_free(text);
  }
}

static void set_then_write(void) {
  pst_log_set_level(PST_LOG_INFO);
  one_of_each();
  pst_log_set_level(PST_LOG_OFF);
  one_of_each();
}

static void test_a_level_set_wins(void **state) {
  (void)state;
  char *text = stderr_of("debug", set_then_write);
  assert_int_equal(n_lines(text), 3);
  pst_free(text);
}

static void one_plain(void) {
  errno = EEXIST;
  pst_log(PST_LOG_ERROR, "request=%d why=\"%s\"", 17, "caf\xC3\xA9");
  if (errno != EEXIST) _exit(3);
}

static void test_the_shape_of_a_line(void **state) {
  (void)state;
  char *text = stderr_of(NULL, one_plain);
  pst_regex *shape = NULL;
  pst_str want =
      PST_STR("^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z error request=17 why=\"caf\xC3\xA9\"\\n\\z");
  assert_int_equal(pst_regex_create(want, 0, &shape, NULL), 0);
  assert_int_equal(pst_regex_find(shape, pst_str_from(text), 0, NULL, 0), 1);
  pst_regex_free(shape);
  pst_free(text);
}

static void hostile(void) { pst_log(PST_LOG_ERROR, "value=%s", "a\nforged line\r\t\x1b[31m\x7f end"); }

static void test_control_characters_are_escaped(void **state) {
  (void)state;
  char *text = stderr_of(NULL, hostile);
  assert_int_equal(n_lines(text), 1);
  assert_non_null(strstr(text, "value=a\\nforged line\\r\\t\\x1b[31m\\x7f end\n"));
  pst_free(text);
}

static void very_long(void) {
  static char value[20000];
  memset(value, 'v', sizeof value - 1);
  pst_log(PST_LOG_ERROR, "value=%s", value);
  memset(value, '\n', sizeof value - 1);
  pst_log(PST_LOG_ERROR, "value=%s", value);
}

static void test_long_values_are_cut(void **state) {
  (void)state;
  char *text = stderr_of(NULL, very_long);
  assert_int_equal(n_lines(text), 2);
  assert_true(strlen(text) > 2000 && strlen(text) < 10000);
  pst_free(text);
}

static void *write_lines(void *name) {
  for (int i = 0; i < 500; i++)
    pst_log(PST_LOG_ERROR, "thread=%s i=%d filler=%s", (const char *)name, i, "0123456789abcdefghijklmnopqrstuvwxyz");
  return NULL;
}

static void from_many_threads(void) {
  pthread_t threads[4];
  static char names[4][2] = {"a", "b", "c", "d"};
  for (size_t i = 0; i < 4; i++)
    if (pthread_create(&threads[i], NULL, write_lines, names[i]) != 0) _exit(4);
  for (size_t i = 0; i < 4; i++) (void)pthread_join(threads[i], NULL);
}

static void test_lines_are_whole(void **state) {
  (void)state;
  char *text = stderr_of(NULL, from_many_threads);
  assert_int_equal(n_lines(text), 2000);
  int next[4] = {0};
  for (char *line = text; *line; line = strchr(line, '\n') + 1) {
    char name = 0;
    int i = -1;
    assert_int_equal(sscanf(line + 31, "thread=%c i=%d filler=0123456789abcdefghijklmnopqrstuvwxyz", &name, &i), 2);
    assert_int_equal(i, next[name - 'a']++);
    assert_int_equal(strchr(line, '\n')[-1], 'z');
  }
  pst_free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_levels_from_the_environment), cmocka_unit_test(test_a_level_set_wins),
      cmocka_unit_test(test_the_shape_of_a_line),         cmocka_unit_test(test_control_characters_are_escaped),
      cmocka_unit_test(test_long_values_are_cut),         cmocka_unit_test(test_lines_are_whole),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
