/* Schemas: what is said of a wrong value or a wrong schema, the tree a grammar is made from, and bounds. That answers are right is the official suite's matter
 * (tests/golden/test_schema_suite.c). */
#include <penstock/schema.h>

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/scale.h"

static pst_error err;

static pst_schema *parse(const char *text) {
  pst_schema *s = NULL;
  err = (pst_error)PST_ERROR_INIT;
  if (pst_schema_parse(pst_str_from(text), "s", PST_SCHEMA_DRAFT_2020_12, &s, &err))
    fail_msg("%s: %s", err.place, err.message);
  return s;
}

static int validate(const char *schema, const char *value) {
  pst_schema *s = parse(schema);
  pst_json_doc *doc = NULL;
  assert_int_equal(pst_json_parse(value, strlen(value), NULL, &doc, &err), 0);
  err = (pst_error)PST_ERROR_INIT;
  int code = pst_schema_validate(s, pst_json_root(doc), "v", &err);
  pst_json_free(doc);
  pst_schema_free(s);
  return code;
}

static void refused(const char *schema, const char *value, const char *place, const char *word) {
  int code = validate(schema, value);
  if (code != PST_E_BAD_INPUT || strcmp(err.place, place) != 0 || !strstr(err.message, word))
    fail_msg("%s of %s\n  gave %d %s: %s", value, schema, code, err.place, err.message);
}

static void failures_say_where_and_what_is_accepted(void **state) {
  (void)state;
  refused("{\"type\":[\"string\",\"null\"]}", "1", "v#", "a string");
  refused("{\"properties\":{\"a/b\":{\"items\":{\"minimum\":3}}}}", "{\"a/b\":[5,1]}", "v#/a~1b/1", "minimum of 3");
  refused("{\"properties\":{\"a\":{},\"b\":{}},\"additionalProperties\":false}", "{\"c\":1}", "v#/c", "known: a, b");
  refused("{\"required\":[\"x\"]}", "{}", "v#", "\"x\" is missing");
  refused("{\"enum\":[\"red\",\"green\"]}", "\"blue\"", "v#", "\"red\", \"green\"");
  refused("{\"const\":7}", "8", "v#", "accepted: 7");
  refused("{\"pattern\":\"^a+$\"}", "\"ab\"", "v#", "^a+$");
  refused("{\"uniqueItems\":true}", "[1,2,1.0]", "v#", "twice");
  refused("{\"dependentRequired\":{\"a\":[\"b\"]}}", "{\"a\":1}", "v#", "\"b\"");
  refused("{\"unevaluatedProperties\":false,\"properties\":{\"a\":true}}", "{\"b\":1}", "v#/b", "not a known field");
  refused("false", "1", "v#", "nothing is");
}

static void of_alternatives_the_nearest_is_told(void **state) {
  (void)state;
  static const char schema[] = "{\"anyOf\":[{\"type\":\"string\"},{\"properties\":{\"a\":{\"type\":\"integer\"}}}]}";
  refused(schema, "{\"a\":\"x\"}", "v#/a", "whole number");
  refused("{\"oneOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", "1", "v#", "none of the 2 forms");
  refused("{\"oneOf\":[{\"minimum\":1},{\"maximum\":9}]}", "5", "v#", "more than one");
  refused("{\"not\":{\"type\":\"null\"}}", "null", "v#", "ruled out");
  assert_int_equal(validate(schema, "{\"a\":3.0}"), 0);
  assert_int_equal(validate("{\"not\":{\"not\":{\"enum\":[1]}}}", "1"), 0);
}

static void malformed(const char *text, int code, const char *place, const char *word) {
  pst_schema *s = NULL;
  err = (pst_error)PST_ERROR_INIT;
  int got = pst_schema_parse(pst_str_from(text), "s", PST_SCHEMA_DRAFT_2020_12, &s, &err);
  assert_null(s);
  if (got != code || strcmp(err.place, place) != 0 || !strstr(err.message, word))
    fail_msg("%s\n  gave %d %s: %s", text, got, err.place, err.message);
}

static void bad_schemas_are_refused_by_place_and_name(void **state) {
  (void)state;
  const int bad = PST_E_BAD_INPUT, unknown = PST_E_UNSUPPORTED;
  malformed("{", bad, "s:1:2", "JSON");
  malformed("3", bad, "s#", "true or false");
  malformed("{\"properties\":{\"a\":3}}", bad, "s#/properties/a", "true or false");
  malformed("{\"type\":\"text\"}", bad, "s#/type", "\"string\"");
  malformed("{\"items\":[{}]}", bad, "s#/items", "prefixItems");
  malformed("{\"minLength\":-1}", bad, "s#/minLength", "0 or more");
  malformed("{\"multipleOf\":0}", bad, "s#/multipleOf", "above 0");
  malformed("{\"pattern\":\"(\"}", bad, "s#/pattern", "regular expression");
  malformed("{\"anyOf\":{\"a\":1}}", bad, "s#/anyOf", "list of schemas");
  malformed("{\"$ref\":\"#/$defs/x\"}", bad, "s#", "leads nowhere");
  malformed("{\"allOf\":[{\"$ref\":\"#x\"}]}", bad, "s#/allOf/0", "anchor");
  malformed("{\"$ref\":\"https://example.com/x.json\"}", unknown, "s#", "https://example.com/x.json");
  malformed("{\"$schema\":\"https://json-schema.org/draft/2019-09/schema\"}", unknown, "s#", "2019-09");
}

/* Codes of what is asked on a thread whose stack is small, as those of other systems are. */
typedef struct bounded {
  int endless, twice, chain, tail;
} bounded;

static void *ask_for_much(void *user) {
  bounded *b = user;
  b->endless = validate("{\"$ref\":\"#\"}", "1");
  b->twice = validate("{\"allOf\":[{\"$ref\":\"#\"},{\"$ref\":\"#\"}]}", "1");
  b->tail = validate("{\"not\":{\"anyOf\":[{\"if\":{\"$ref\":\"#\"}},{\"oneOf\":[{\"$ref\":\"#\"}]}]}}", "1");
  pst_buf schema = PST_BUF_INIT; /* each level asks the next one twice */
  pst_buf_puts(&schema, "{\"$ref\":\"#/$defs/d0\",\"$defs\":{");
  for (int i = 0; i < 40; i++)
    pst_buf_printf(&schema, "\"d%d\":{\"allOf\":[{\"$ref\":\"#/$defs/d%d\"},{\"$ref\":\"#/$defs/d%d\"}]},", i, i + 1,
                   i + 1);
  pst_buf_puts(&schema, "\"d40\":{}}}");
  b->chain = validate(pst_buf_text(&schema), "1");
  pst_buf_done(&schema);
  return NULL;
}

static void the_work_is_bounded(void **state) {
  (void)state;
  bounded b = {0, 0, 0, 0};
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  /* A sanitizer puts a guard around every variable. */
  assert_int_equal(pthread_attr_setstacksize(&attributes, test_is_sanitized() ? 16 << 20 : 1 << 20), 0);
  assert_int_equal(pthread_create(&thread, &attributes, ask_for_much, &b), 0);
  assert_int_equal(pthread_join(thread, NULL), 0);
  pthread_attr_destroy(&attributes);
  assert_int_equal(b.endless, PST_E_LIMIT);
  assert_int_equal(b.twice, PST_E_LIMIT);
  assert_int_equal(b.tail, PST_E_LIMIT);
  assert_int_equal(b.chain, PST_E_LIMIT);
  pst_buf many = PST_BUF_INIT; /* pairs would be 10^10 */
  pst_buf_putc(&many, '[');
  for (int i = 0; i < 100000; i++) pst_buf_printf(&many, "%s%d", i ? "," : "", i);
  pst_buf_putc(&many, ']');
  assert_int_equal(validate("{\"uniqueItems\":true}", pst_buf_text(&many)), 0);
  pst_buf_done(&many);
}

static void the_tree_is_what_was_written(void **state) {
  (void)state;
  pst_schema *s =
      parse("{\"type\":\"object\",\"properties\":{\"z\":{\"type\":\"integer\"},\"a\":{\"$ref\":\"#/$defs/t\"}},"
            "\"required\":[\"z\"],\"additionalProperties\":false,\"$defs\":{\"t\":{\"enum\":[1,2]}}}");
  const pst_schema_node *root = pst_schema_root(s);
  assert_int_equal(root->types, PST_SCHEMA_OBJECT);
  assert_int_equal(root->n_properties, 2);
  assert_true(pst_str_is(root->properties[0].name, "a") && pst_str_is(root->properties_in_order[0].name, "z"));
  assert_string_equal(root->properties[0].node->ref->path, "#/$defs/t");
  assert_int_equal(pst_json_size(root->properties[0].node->ref->enumerated), 2);
  assert_true(root->additional->never && root->max_items == -1);
  pst_schema_free(s);
}

static void memory_may_run_out_anywhere(void **state) {
  (void)state;
  static const char text[] =
      "{\"$id\":\"http://x/y\",\"properties\":{\"a\":{\"$ref\":\"z#q\"},\"b\":{\"pattern\":\"x\"}},\"anyOf\":[{\"required\":[\"a\"]},true],"
      "\"unevaluatedProperties\":false,\"$defs\":{\"k\":{\"$id\":\"z\",\"$anchor\":\"q\",\"uniqueItems\":true}}}";
  static const char value[] = "{\"a\":[1,2,{\"c\":3}],\"b\":\"x\"}";
  pst_json_doc *doc = NULL;
  int code = PST_E_NOMEM;
  assert_int_equal(pst_json_parse(value, strlen(value), NULL, &doc, &err), 0);
  for (int64_t i = 0; code == PST_E_NOMEM && i < 2000; i++) {
    pst_schema *s = NULL;
    pst_memory_fail_after(i);
    code = pst_schema_parse(pst_str_from(text), NULL, PST_SCHEMA_DRAFT_2020_12, &s, &err);
    if (!code) code = pst_schema_validate(s, pst_json_root(doc), NULL, &err);
    pst_memory_fail_after(-1);
    pst_schema_free(s);
  }
  if (code) fail_msg("%s: %s", err.place, err.message);
  pst_json_free(doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(failures_say_where_and_what_is_accepted),
      cmocka_unit_test(of_alternatives_the_nearest_is_told),
      cmocka_unit_test(bad_schemas_are_refused_by_place_and_name),
      cmocka_unit_test(the_work_is_bounded),
      cmocka_unit_test(the_tree_is_what_was_written),
      cmocka_unit_test(memory_may_run_out_anywhere),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
