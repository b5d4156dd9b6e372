/* Import and export within one process: what a file says comes back, memory may run out anywhere, and nothing half-done stays. The formats as a person uses them
 * are tests/flow/test_data.py's. */
#include <penstock/data.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/store.h"

static int import(const char *workload, const char *name, pst_str text, pst_data_format format,
                  pst_data_imported *ret_done) {
  const char *path = test_temp_path(test_dir, name);
  pst_data_import_options o = {
      .workload = pst_str_from(workload), .format = format, .consent = {.keep = PST_STORE_KEEP_CONTENT, .train = true}};
  test_temp_write(path, text.data, text.n);
  return pst_data_import(test_store, path, &o, ret_done, &test_error);
}

/* The export of a workload. */
static char *export(const char *workload, pst_data_format format, pst_data_exported *ret_done) {
  char *text = NULL;
  size_t n = 0;
  FILE *file = open_memstream(&text, &n);
  pst_data_export_options o = {.filter = PST_STORE_REQUEST_FILTER_INIT, .format = format};
  o.filter.workload = pst_str_from(workload);
  o.filter.origin = PST_STORE_ANY_ORIGIN;
  TEST_OK(pst_data_export(test_store, &o, file, ret_done, &test_error));
  assert_int_equal(fclose(file), 0);
  return text;
}

static const char CHAT[] =
    "{\"custom_id\":\"1\",\"request\":{\"body\":{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"user\":\"ann\"}},"
    "\"response\":{\"status_code\":200,\"body\":{\"created\":1700000000,\"choices\":[{\"message\":{\"role\":\"assistant\","
    "\"content\":\"b\"}}]}}}\n"
    "{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}],\"choices\":[{\"message\":{\"role\":\"assistant\",\"content\":\"d\"}}]}\n";

static int see_first(void *user, const pst_store_request *r) {
  if (!pst_str_is(r->subject, "ann")) return 0;
  *(int64_t *)user = r->time_ms;
  return 0;
}

static void logs_of_the_api_are_read(void **state) {
  (void)state;
  pst_data_imported done;
  pst_data_exported out;
  TEST_OK(import("w", "chat.jsonl", PST_STR(CHAT), PST_DATA_AUTO, &done));
  assert_int_equal(done.format, PST_DATA_CHAT);
  assert_int_equal(done.n_new, 2);
  char *text = export("w", PST_DATA_OPENAI, &out);
  assert_string_equal(
      text, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n"
            "{\"messages\":[{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}\n");
  free(text);
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  int64_t time_ms = 0;
  f.origin = PST_STORE_IMPORTED;
  TEST_OK(pst_store_request_each(test_store, &f, see_first, &time_ms, &test_error));
  assert_true(time_ms == INT64_C(1700000000000));
}

/* Cut at every byte, a file is read or refused, and a refused one has left nothing. */
static void a_file_may_end_anywhere(void **state) {
  (void)state;
  static const struct {
    const char *name, *text;
  } files[] = {
      {"x.csv", "text,label,system\r\n\"a \"\"b\"\"\nc\",d,\"e,f\"\r\n g ,h,\r\n"},
      {"x.json", "[{\"text\":\"a]\\\"\",\"label\":{\"b\":[1,\"}\"]}}, {\"text\":\"\xc3\xa9\",\"label\":\"d\"}]"},
      {"x.jsonl",
       "\xef\xbb\xbf{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}]}\r\n"}};
  for (size_t i = 0; i < PST_ARRAY_LEN(files); i++) {
    pst_data_imported done;
    pst_data_exported out;
    size_t n = strlen(files[i].text);
    for (size_t k = 0; k < n; k++) {
      char name[32];
      snprintf(name, sizeof name, "cut%zu-%zu%s", i, k, strchr(files[i].name, '.'));
      int code = import(name, name, (pst_str){files[i].text, k}, PST_DATA_AUTO, &done);
      char *text = export(name, PST_DATA_OPENAI, &out);
      if (code) assert_true(out.n_written == 0 && text[0] == '\0' && test_error.message[0]);
      free(text);
    }
    TEST_OK(import(files[i].name, files[i].name, (pst_str){files[i].text, n}, PST_DATA_AUTO, &done));
    char *text = export(files[i].name, PST_DATA_CSV, &out);
    static const char *const wanted[] = {",\"e,f\",\"a \"\"b\"\"\nc\",d,\r\n",
                                         ",,\"a]\"\"\",\"{\"\"b\"\":[1,\"\"}\"\"]}\",\r\n", ",,a,b,\r\n"};
    if (!strstr(text, wanted[i])) fail_msg("%s: %s", files[i].name, text);
    free(text);
  }
}

/* Rows longer than the blocks that a file is read in. */
static void rows_may_be_long(void **state) {
  (void)state;
  pst_buf text = PST_BUF_INIT;
  pst_data_imported done;
  pst_data_exported out;
  pst_buf_puts(&text, "[");
  for (int i = 0; i < 5; i++) {
    pst_buf_printf(&text, "%s{\"text\":\"row %d ", i ? ",\n" : "", i);
    for (int k = 0; k < 60000; k++) pst_buf_printf(&text, "word%d ", k);
    pst_buf_printf(&text, "\",\"label\":\"%d\"}", i);
  }
  pst_buf_puts(&text, "]\n");
  TEST_OK(import("long", "long.json", pst_buf_str(&text), PST_DATA_AUTO, &done));
  assert_int_equal(done.n_new, 5);
  char *back = export("long", PST_DATA_SHAREGPT, &out);
  assert_int_equal(out.n_written, 5);
  assert_non_null(strstr(back, "word59999 \"},{\"from\":\"gpt\",\"value\":\"4\"}"));
  free(back);
  pst_buf_done(&text);
}

static void memory_may_run_out_anywhere(void **state) {
  (void)state;
  pst_data_imported done;
  pst_data_exported out;
  int code = PST_E_NOMEM;
  for (int64_t i = 0; code == PST_E_NOMEM && i < 5000; i++) {
    char name[32];
    snprintf(name, sizeof name, "oom%d", (int)i);
    test_temp_write(test_temp_path(test_dir, "oom.jsonl"), CHAT, sizeof CHAT - 1);
    pst_data_import_options o = {.workload = pst_str_from(name), .consent = {.keep = PST_STORE_KEEP_CONTENT}};
    pst_memory_fail_after(i);
    code = pst_data_import(test_store, test_temp_path(test_dir, "oom.jsonl"), &o, &done, &test_error);
    pst_memory_fail_after(-1);
    if (code && code != PST_E_NOMEM) fail_msg("%d: %d %s: %s", (int)i, code, test_error.place, test_error.message);
    char *text = export(name, PST_DATA_OPENAI, &out);
    assert_int_equal(out.n_written, code ? 0 : 2);
    free(text);
  }
  assert_int_equal(code, 0);
}

static void curation_may_run_out_of_memory(void **state) {
  (void)state;
  pst_data_imported imported;
  pst_data_curated done;
  static const char rows[] =
      "text,label\nwrite to a@example.com,x\nwrite to a@example.com,x\nwhat is the time in rome now,y\n"
      "what is the time in oslo now,y\nwhat is the time in rome now please,y\n";
  TEST_OK(import("w", "rows.csv", PST_STR(rows), PST_DATA_AUTO, &imported));
  int code = PST_E_NOMEM;
  for (int64_t i = 0; code == PST_E_NOMEM && i < 20000; i += 3) {
    pst_buf report = PST_BUF_INIT;
    pst_data_curate_options o = {.workload = PST_STR("w"), .held = 0.1};
    pst_memory_fail_after(i);
    code = pst_data_curate(test_store, &o, &done, &report, &test_error);
    pst_memory_fail_after(-1);
    if (code && code != PST_E_NOMEM) fail_msg("%d: %d %s: %s", (int)i, code, test_error.place, test_error.message);
    pst_buf_done(&report);
  }
  assert_int_equal(code, 0);
  assert_int_equal(done.n_by_reason[PST_DATA_DUPLICATE], 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, test_store_open, test_store_close)

int main(void) {
  const struct CMUnitTest tests[] = {TEST(logs_of_the_api_are_read), TEST(a_file_may_end_anywhere),
                                     TEST(rows_may_be_long), TEST(memory_may_run_out_anywhere),
                                     TEST(curation_may_run_out_of_memory)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
