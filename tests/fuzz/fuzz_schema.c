/* A schema, a line break, a value: parsing and validating neither crash nor hang, and the answer is the same with and without an error to fill. The schema's text is
 * also tried as a plan. */
#include <penstock/gateway.h>
#include <penstock/schema.h>

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void try_plan(pst_str text) {
  pst_gateway_plan *plan = NULL, *again = NULL;
  if (pst_gateway_plan_parse(text, NULL, &plan, NULL)) return;
  if (pst_gateway_plan_parse(pst_str_from(plan->json), NULL, &again, NULL) || strcmp(plan->hash, again->hash) != 0)
    abort();
  pst_gateway_plan_unref(plan);
  pst_gateway_plan_unref(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  const char *text = (const char *)data, *end = n ? memchr(data, '\n', n) : NULL;
  pst_str schema_text = {text, end ? (size_t)(end - text) : n};
  pst_str value_text = end ? (pst_str){end + 1, n - schema_text.n - 1} : (pst_str){"1", 1};
  pst_schema *schema = NULL;
  pst_json_doc *doc = NULL;
  pst_error err = PST_ERROR_INIT;
  try_plan(schema_text);
  pst_schema_draft draft = n % 2 ? PST_SCHEMA_DRAFT_2020_12 : PST_SCHEMA_DRAFT_7;
  if (pst_schema_parse(schema_text, NULL, draft, &schema, &err)) return 0;
  if (!pst_json_parse(value_text.data, value_text.n, NULL, &doc, NULL)) {
    int told = pst_schema_validate(schema, pst_json_root(doc), NULL, &err);
    if (told != pst_schema_validate(schema, pst_json_root(doc), NULL, NULL)) abort();
  }
  pst_json_free(doc);
  pst_schema_free(schema);
  return 0;
}
