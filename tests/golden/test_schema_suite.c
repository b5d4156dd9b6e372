/* The official JSON Schema test suite, required part, drafts 7 and 2020-12: every answer is right, and what is not answered is refused because it lies in a document
 * that would have to be fetched. And 7,033 schemas from the field with their values (MaskBench): `format` apart, which is an annotation here. */
#include <penstock/schema.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SUITE "schemas/json-schema-test-suite.jsonl.gz"
#define REMOTE "http://localhost:1234/" /* what the suite expects a server for */

typedef struct tally {
  int right, wrong, refused;
} tally;

/* DATA/name, if it is there. */
static bool find_data(const char *name, char *path, size_t n_path) {
  const char *data = getenv("PENSTOCK_TEST_DATA");
  (void)snprintf(path, n_path, "%s/%s", data && *data ? data : "../shared/data", name);
  if (pst_file_exists(path) && !strchr(path, '\'')) return true;
  printf("%s is not there; set PENSTOCK_TEST_DATA\n", path);
  return false;
}

static char *read_gzip(const char *path) {
  char command[1200], part[65536];
  pst_buf all = PST_BUF_INIT;
  snprintf(command, sizeof command, "gzip -dc '%s'", path);
  FILE *pipe = popen(command, "r");
  if (!pipe) abort();
  for (size_t n; (n = fread(part, 1, sizeof part, pipe)) > 0;) pst_buf_append(&all, part, n);
  if (pclose(pipe) != 0) abort();
  return pst_buf_take(&all);
}

static bool mentions(const pst_json *v, const char *what) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_put_value(&w, v);
  bool found = strstr(pst_buf_text(&text), what) != NULL;
  pst_buf_done(&text);
  return found;
}

static void run_case(const pst_json *c, pst_str file, pst_schema_draft draft, tally *t) {
  pst_schema *schema = NULL;
  pst_error err = PST_ERROR_INIT;
  pst_str about = pst_json_str(pst_json_get(c, "description"));
  const pst_json *tests = pst_json_get(c, "tests");
  int code = pst_schema_create(pst_json_get(c, "schema"), NULL, draft, &schema, &err);
  if (code == PST_E_UNSUPPORTED && mentions(pst_json_get(c, "schema"), REMOTE)) {
    t->refused += (int)pst_json_size(tests);
    return;
  }
  if (code) {
    printf("%.*s: %.*s: %s: %s\n", (int)file.n, file.data, (int)about.n, about.data, err.place, err.message);
    t->wrong += (int)pst_json_size(tests);
    return;
  }
  for (pst_json_iter it = pst_json_iterate(tests); pst_json_next(&it);) {
    bool wanted = pst_json_bool(pst_json_get(it.value, "valid"), false);
    err = (pst_error)PST_ERROR_INIT;
    code = pst_schema_validate(schema, pst_json_get(it.value, "data"), NULL, &err);
    int quiet = pst_schema_validate(schema, pst_json_get(it.value, "data"), NULL, NULL);
    bool right = code == quiet && (wanted ? code == 0 : code == PST_E_BAD_INPUT && err.message[0] && err.place[0]);
    t->right += right;
    t->wrong += !right;
    pst_str what = pst_json_str(pst_json_get(it.value, "description"));
    if (!right)
      printf("%.*s: %.*s: %.*s: wanted %d, got %d %s: %s\n", (int)file.n, file.data, (int)about.n, about.data,
             (int)what.n, what.data, wanted, code, err.place, err.message);
  }
  pst_schema_free(schema);
}

static void required_part(void **state) {
  (void)state;
  char path[1024];
  tally drafts[2] = {{0, 0, 0}, {0, 0, 0}};
  if (!find_data(SUITE, path, sizeof path)) skip();
  char *text = read_gzip(path);
  for (char *line = text; line && *line;) {
    char *end = strchr(line, '\n');
    pst_json_doc *doc = NULL;
    assert_int_equal(pst_json_parse(line, end ? (size_t)(end - line) : strlen(line), path, &doc, NULL), 0);
    const pst_json *root = pst_json_root(doc);
    bool seven = pst_str_is(pst_json_str(pst_json_get(root, "draft")), "draft7");
    for (pst_json_iter it = pst_json_iterate(pst_json_get(root, "cases")); pst_json_next(&it);)
      run_case(it.value, pst_json_str(pst_json_get(root, "file")),
               seven ? PST_SCHEMA_DRAFT_7 : PST_SCHEMA_DRAFT_2020_12, &drafts[seven]);
    pst_json_free(doc);
    line = end ? end + 1 : NULL;
  }
  pst_free(text);
  for (int i = 0; i < 2; i++)
    printf("draft %s: %d right, %d wrong, %d refused as remote\n", i ? "7" : "2020-12", drafts[i].right,
           drafts[i].wrong, drafts[i].refused);
  assert_int_equal(drafts[0].wrong + drafts[1].wrong, 0);
  assert_true(drafts[0].right > 1000 && drafts[1].right > 800);
}

/* Values that a schema with a "format" should refuse are not counted. */
static void run_field_schema(const pst_json *line, tally *t) {
  const pst_json *v = pst_json_get(line, "schema");
  pst_str id = pst_json_str(pst_json_get(line, "id"));
  pst_schema *schema = NULL;
  pst_error err = PST_ERROR_INIT;
  bool has_format = mentions(v, "\"format\"");
  if (pst_schema_create(v, NULL, PST_SCHEMA_DRAFT_2020_12, &schema, &err)) {
    if (!strstr(err.message, "leads nowhere")) fail_msg("%.*s: %s: %s", (int)id.n, id.data, err.place, err.message);
    t->refused++;
    return;
  }
  for (pst_json_iter it = pst_json_iterate(pst_json_get(line, "tests")); pst_json_next(&it);) {
    bool wanted = pst_json_bool(pst_json_get(it.value, "valid"), false);
    bool valid = !pst_schema_validate(schema, pst_json_get(it.value, "data"), NULL, &err);
    if (wanted != valid && (wanted || !has_format))
      fail_msg("%.*s: wanted %d, got %d %s: %s", (int)id.n, id.data, wanted, valid, err.place, err.message);
    t->right += wanted == valid;
  }
  pst_schema_free(schema);
}

static void schemas_of_the_field(void **state) {
  (void)state;
  char path[1024];
  tally t = {0, 0, 0};
  if (!find_data("schemas/maskbench.jsonl.gz", path, sizeof path)) skip();
  char *text = read_gzip(path);
  for (char *line = text; line && *line;) {
    char *end = strchr(line, '\n');
    pst_json_doc *doc = NULL;
    assert_int_equal(pst_json_parse(line, end ? (size_t)(end - line) : strlen(line), path, &doc, NULL), 0);
    run_field_schema(pst_json_root(doc), &t);
    pst_json_free(doc);
    line = end ? end + 1 : NULL;
  }
  pst_free(text);
  printf("%d values right; %d schemas with references that lead nowhere\n", t.right, t.refused);
  assert_true(t.right > 22000 && t.refused <= 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(required_part), cmocka_unit_test(schemas_of_the_field)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
