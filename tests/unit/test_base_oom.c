/* Every allocation of base made to fail in turn: the answer is PST_E_NOMEM, nothing is handed out, nothing leaks (leaks show
 * under AddressSanitizer), and the same call succeeds once there is memory again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int stop_failing(void **state) {
  (void)state;
  pst_memory_fail_after(-1);
  return 0;
}

/* Runs `work` with 0, 1, 2 ... allocations until it succeeds. Returns how many it needed. */
static int64_t need_of(int (*work)(void)) {
  for (int64_t n = 0; n < 100000; n++) {
    pst_memory_fail_after(n);
    int rc = work();
    pst_memory_fail_after(-1);
    if (rc == 0) return n;
    assert_int_equal(rc, PST_E_NOMEM);
  }
  fail_msg("it never succeeds");
  return 0;
}

static char *document; /* objects large and small, strings, numbers: several thousand values */

static int make_document(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&b, false);
  pst_json_begin_array(&w);
  for (int i = 0; i < 40; i++) {
    pst_json_begin_object(&w);
    for (int k = 0; k < i * 2; k++) {
      char key[24];
      (void)snprintf(key, sizeof key, "key-%d", k);
      pst_json_key(&w, key);
      if (k % 3 == 0)
        pst_json_put_double(&w, k * 0.37);
      else
        pst_json_put_cstr(&w, "some text \xC3\xA9\n");
    }
    pst_json_end_object(&w);
  }
  pst_json_end_array(&w);
  document = pst_buf_take(&b);
  return document ? 0 : -1;
}

static int free_document(void **state) {
  (void)state;
  pst_free(document);
  return 0;
}

static int parse_work(void) {
  pst_json_doc *doc = NULL;
  pst_error err = PST_ERROR_INIT;
  int rc = pst_json_parse(document, strlen(document), "oom", &doc, &err);
  if (rc != 0 && (doc || err.code != rc || !err.message[0])) return PST_E_INTERNAL;
  pst_json_free(doc);
  return rc;
}

static void test_json_parse(void **state) {
  (void)state;
  assert_true(need_of(parse_work) >= 4); /* document, text, values, key set */
}

static pst_json_doc *parsed;

static int canonical_work(void) {
  pst_buf out = PST_BUF_INIT;
  int rc = pst_json_canonical(pst_json_root(parsed), &out);
  if (rc == 0 && out.n == 0) rc = PST_E_INTERNAL;
  pst_buf_done(&out);
  return rc;
}

static int write_work(void) {
  pst_buf out = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&out, true);
  pst_json_put_value(&w, pst_json_root(parsed));
  int rc = pst_buf_status(&out);
  pst_buf_done(&out);
  return rc;
}

static void test_json_write(void **state) {
  (void)state;
  assert_int_equal(pst_json_parse(document, strlen(document), NULL, &parsed, NULL), 0);
  assert_true(need_of(canonical_work) > 40); /* one per object, and the text */
  assert_true(need_of(write_work) > 5);
  pst_json_free(parsed);
}

static int buffer_work(void) {
  pst_buf b = PST_BUF_INIT;
  for (int i = 0; i < 200; i++) {
    pst_buf_puts(&b, "abc");
    pst_buf_printf(&b, "%d", i);
    pst_buf_putc(&b, ' ');
  }
  size_t n = b.n;
  char *text = pst_buf_take(&b);
  int rc = !text ? PST_E_NOMEM : strlen(text) == n && strstr(text, "abc199 ") ? 0 : PST_E_INTERNAL;
  pst_free(text);
  return rc;
}

static void test_buffer(void **state) {
  (void)state;
  assert_true(need_of(buffer_work) > 3);
}

static int arena_work(void) {
  pst_arena *arena = pst_arena_create();
  int rc = arena ? 0 : PST_E_NOMEM;
  for (int i = 0; i < 3000 && rc == 0; i++) {
    char *p = i % 100 == 99 ? pst_arena_alloc(arena, 50000) : pst_arena_printf(arena, "item %d of a request", i);
    if (!p)
      rc = PST_E_NOMEM;
    else
      p[10] = 'x';
  }
  pst_arena_free(arena);
  return rc;
}

static void test_arena(void **state) {
  (void)state;
  assert_true(need_of(arena_work) > 8);
}

static int regex_work(void) {
  pst_regex *re = NULL;
  pst_error err = PST_ERROR_INIT;
  int rc = pst_regex_create(PST_STR("(?:(a+)|b|\\p{L})+?c(?<name>\\d{2,5})"), PST_REGEX_CASELESS, &re, &err);
  if (rc == 0) rc = pst_regex_find(re, PST_STR("xxabababC1234"), 0, NULL, 0);
  pst_regex_free(re);
  return rc == 1 ? 0 : rc == 0 ? PST_E_INTERNAL : rc;
}

static void test_regex(void **state) {
  (void)state;
  assert_true(need_of(regex_work) >= 5);
}

static int normalize_work(void) {
  pst_buf text = PST_BUF_INIT, out = PST_BUF_INIT;
  pst_buf_putc(&text, 'a');
  for (int i = 0; i < 100; i++) pst_buf_puts(&text, i % 2 ? "\xCC\x81" : "\xCC\xA0");
  int rc = pst_buf_status(&text);
  if (rc == 0) rc = pst_unicode_normalize(pst_buf_str(&text), "NFC", &out);
  pst_buf_done(&text);
  pst_buf_done(&out);
  return rc;
}

static void test_normalize(void **state) {
  (void)state;
  assert_true(need_of(normalize_work) >= 6);
}

static int queue_work(void) {
  static int item;
  pst_queue *q = pst_queue_create();
  int rc = q ? 0 : PST_E_NOMEM;
  for (int i = 0; i < 100 && rc == 0; i++) rc = pst_queue_push(q, &item);
  pst_queue_free(q);
  return rc;
}

static void test_queue(void **state) {
  (void)state;
  assert_int_equal(need_of(queue_work), 5); /* itself; rings of 16, 32, 64, 128 */
}

static char file_path[64];

static int file_work(void) {
  char *data = NULL;
  size_t n = 0;
  int rc = pst_file_write_atomic(file_path, "content", 7, NULL);
  if (rc == 0) rc = pst_file_read(file_path, 100, &data, &n, NULL);
  if (rc == 0 && (n != 7 || strcmp(data, "content") != 0)) rc = PST_E_INTERNAL;
  if (rc != 0 && data) rc = PST_E_INTERNAL;
  pst_free(data);
  return rc;
}

static int home_work(void) {
  char *path = NULL;
  int rc = pst_home_open("/tmp//", &path, NULL);
  if ((rc == 0) != (path != NULL)) rc = PST_E_INTERNAL;
  pst_free(path);
  return rc;
}

static void test_files(void **state) {
  (void)state;
  (void)snprintf(file_path, sizeof file_path, "/tmp/penstock-oom-XXXXXX");
  int fd = mkstemp(file_path);
  assert_true(fd >= 0);
  assert_int_equal(close(fd), 0);
  assert_true(need_of(file_work) >= 2);
  assert_int_equal(unlink(file_path), 0);
  assert_true(need_of(home_work) >= 2);
}

static void test_cpu_count_needs_no_memory_to_answer(void **state) {
  (void)state;
  for (int64_t n = 0; n < 20; n++) {
    pst_memory_fail_after(n);
    int count = pst_cpu_count();
    pst_memory_fail_after(-1);
    assert_true(count >= 1);
  }
}

static void test_progress_and_log_go_on_without_memory(void **state) {
  (void)state;
  int kept = dup(STDERR_FILENO);
  FILE *sink = fopen("/dev/null", "w");
  assert_true(kept >= 0 && sink && dup2(fileno(sink), STDERR_FILENO) >= 0);
  pst_memory_fail_after(0);
  pst_progress p;
  pst_progress_begin(&p, "x", 10, false, false);
  p.start_us -= 20000000;
  pst_progress_update(&p, 5);
  bool drawn = p.drawn;
  pst_log(PST_LOG_ERROR, "a=%d", 1);
  pst_memory_fail_after(-1);
  pst_progress_update(&p, 6);
  assert_true(dup2(kept, STDERR_FILENO) >= 0);
  assert_int_equal(close(kept), 0);
  assert_int_equal(fclose(sink), 0);
  assert_false(drawn);
  assert_true(p.drawn);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(test_json_parse, stop_failing),
      cmocka_unit_test_teardown(test_json_write, stop_failing),
      cmocka_unit_test_teardown(test_buffer, stop_failing),
      cmocka_unit_test_teardown(test_arena, stop_failing),
      cmocka_unit_test_teardown(test_regex, stop_failing),
      cmocka_unit_test_teardown(test_normalize, stop_failing),
      cmocka_unit_test_teardown(test_queue, stop_failing),
      cmocka_unit_test_teardown(test_files, stop_failing),
      cmocka_unit_test_teardown(test_cpu_count_needs_no_memory_to_answer, stop_failing),
      cmocka_unit_test_teardown(test_progress_and_log_go_on_without_memory, stop_failing),
  };
  return cmocka_run_group_tests(tests, make_document, free_document);
}
