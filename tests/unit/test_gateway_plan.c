/* Plans: what is read, what is refused and where, and that the hash names the plan and not its spelling. */
#include <penstock/gateway.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static pst_error err;

static pst_gateway_plan *parse(const char *json) {
  pst_gateway_plan *plan = NULL;
  err = (pst_error)PST_ERROR_INIT;
  if (pst_gateway_plan_parse(pst_str_from(json), "p.json", &plan, &err)) fail_msg("%s: %s", err.place, err.message);
  return plan;
}

static const char SMALL[] = "{\"schema\": 1, \"engines\": {\"e1\": {\"model\": \"m\"}}, "
                            "\"root\": {\"op\": \"local\", \"engine\": \"e1\"}}";

static void the_documented_example_is_read(void **state) {
  (void)state;
  char *text = NULL;
  size_t n = 0;
  pst_gateway_plan *plan = NULL;
  if (pst_file_read("docs/plan.json", 1 << 20, &text, &n, &err)) fail_msg("%s: %s", err.place, err.message);
  if (pst_gateway_plan_parse((pst_str){text, n}, "docs/plan.json", &plan, &err))
    fail_msg("%s: %s", err.place, err.message);
  assert_string_equal(plan->workload, "support-desk");
  assert_int_equal(plan->n_labels, 4);
  assert_true(pst_str_is(plan->labels[2], "refund_status"));
  assert_true(plan->cache.on && plan->cache.ttl_s == 86400 && plan->cache.max_entries == 50000);
  assert_int_equal(plan->n_engines, 2);
  assert_string_equal(plan->engines[0].name, "base"); /* in the order of the canonical form */
  assert_int_equal(plan->engines[0].options.n_ctx, 4096);
  assert_string_equal(plan->engines[0].weights, "Q8_0");
  assert_int_equal(plan->engines[1].options.kv, PST_ENGINE_KV_Q8_0);
  const pst_gateway_node *root = &plan->root;
  assert_int_equal(root->op, PST_GATEWAY_OP_CASCADE);
  assert_int_equal(root->n_inputs, 3);
  assert_true(root->threshold == 0.8);
  assert_int_equal(root->inputs[0].engine, 1);
  assert_int_equal(root->inputs[0].n_examples, 4);
  assert_int_equal(root->inputs[0].constraint, PST_GATEWAY_EXAMPLE_LABELS);
  assert_int_equal(root->inputs[0].speculation, PST_ENGINE_SPEC_ANSWERS);
  assert_int_equal(strlen(root->inputs[0].answers), 64);
  assert_null(root->inputs[1].answers);
  assert_null(root->inputs[0].input_key);
  assert_int_equal(root->inputs[1].layout, PST_GATEWAY_LAYOUT_PLAIN);
  assert_int_equal(root->inputs[1].speculation, PST_ENGINE_SPEC_LOOKUP);
  assert_string_equal(root->inputs[1].answer_key, "Desk");
  assert_int_equal(root->inputs[2].op, PST_GATEWAY_OP_REMOTE);
  assert_string_equal(root->inputs[2].provider, "openai");
  assert_int_equal(root->inputs[2].sampling.seed, 7);
  pst_gateway_plan_unref(plan);
  pst_free(text);
}

/* The value of a schema's "default", by the property's name, wherever it stands. */
static void check_defaults(const pst_json *schema, const pst_json *object) {
  const pst_json *properties = pst_json_get(schema, "properties");
  int n = 0;
  for (pst_json_iter it = pst_json_iterate(properties); pst_json_next(&it);) {
    const pst_json *wanted = pst_json_get(it.value, "default");
    if (!wanted) continue;
    n++;
    if (!pst_json_equal(wanted, pst_json_get_str(object, it.key))) fail_msg("%.*s", (int)it.key.n, it.key.data);
  }
  assert_true(n > 0);
}

static void defaults_are_those_the_schema_names(void **state) {
  (void)state;
  pst_gateway_plan *plan = parse(SMALL);
  pst_json_doc *canonical = NULL, *schema = NULL;
  pst_str text;
  assert_true(pst_asset_find("gateway/plan_schema.json", &text));
  assert_int_equal(pst_json_parse(text.data, text.n, NULL, &schema, &err), 0);
  assert_int_equal(pst_json_parse(plan->json, strlen(plan->json), NULL, &canonical, &err), 0);
  const pst_json *defs = pst_json_get(pst_json_root(schema), "$defs"), *root = pst_json_root(canonical);
  const pst_json *node = pst_json_get(root, "root");
  check_defaults(pst_json_get(defs, "engine"), pst_json_get(pst_json_get(root, "engines"), "e1"));
  check_defaults(pst_json_get(defs, "sampling"), pst_json_get(node, "sampling"));
  check_defaults(pst_json_get(defs, "local"), node);
  pst_gateway_plan *cached = parse("{\"schema\":1,\"workload\":\"w\",\"cache\":{},\"root\":{\"op\":\"remote\","
                                   "\"provider\":\"p\",\"model\":\"m\"}}");
  pst_json_doc *spelled = NULL;
  assert_int_equal(pst_json_parse(cached->json, strlen(cached->json), NULL, &spelled, &err), 0);
  check_defaults(pst_json_get(pst_json_get(pst_json_root(schema), "properties"), "cache"),
                 pst_json_get(pst_json_root(spelled), "cache"));
  pst_json_free(spelled);
  pst_gateway_plan_unref(cached);
  const char *const shared[] = {"layout", "constraint", "max_tokens"};
  for (size_t i = 0; i < PST_ARRAY_LEN(shared); i++)
    assert_true(pst_json_equal(pst_json_get(pst_json_get(defs, shared[i]), "default"), pst_json_get(node, shared[i])));
  assert_true(plan->root.sampling.temperature == 0 && plan->root.sampling.top_p == 1);
  pst_json_free(schema);
  pst_json_free(canonical);
  pst_gateway_plan_unref(plan);
}

static void the_hash_is_of_the_plan_not_of_its_spelling(void **state) {
  (void)state;
  const char *const same[] = {
      SMALL, "{\"root\":{\"engine\":\"e1\",\"op\":\"local\",\"layout\":\"chat\",\"max_tokens\":256.0},\"schema\":1.0,"
             "\"engines\":{\"e1\":{\"model\":\"m\",\"kv\":\"f16\",\"reuse\":true}}}"};
  const char *const other[] = {
      "{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"m\"}},\"root\":{\"op\":\"local\",\"engine\":\"e1\",\"layout\":\"plain\"}}",
      "{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"m\",\"slots\":9}},\"root\":{\"op\":\"local\",\"engine\":\"e1\"}}",
      "{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"m\"}},\"root\":{\"op\":\"local\",\"engine\":\"e1\",\"prompt\":{\"name\":\"a\"}}}"};
  pst_gateway_plan *a = parse(same[0]), *b = parse(same[1]);
  assert_string_equal(a->hash, b->hash);
  assert_string_equal(a->json, b->json);
  char hash[65];
  pst_sha256_hex(a->json, strlen(a->json), hash);
  assert_string_equal(a->hash, hash);
  for (size_t i = 0; i < PST_ARRAY_LEN(other); i++) {
    pst_gateway_plan *c = parse(other[i]);
    assert_string_not_equal(a->hash, c->hash);
    pst_gateway_plan_unref(c);
  }
  pst_gateway_plan_unref(a);
  pst_gateway_plan_unref(b);
}

#define HASH "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"

/* A plan with a cache is another plan, whose answers are those of the one without. */
static void the_cache_changes_no_answer(void **state) {
  (void)state;
  static const char frame[] =
      "{\"schema\":1,\"workload\":\"w\",%s\"engines\":{\"e1\":{\"model\":\"m\",\"sha256\":\"" HASH
      "\"}},\"root\":{\"op\":\"local\",\"engine\":\"e1\",\"max_tokens\":%d}}";
  static const char *const caches[] = {"", "\"cache\":{},", "\"cache\":{\"ttl_seconds\":604800},",
                                       "\"cache\":{\"ttl_seconds\":60,\"max_entries\":5},"};
  pst_gateway_plan *plans[PST_ARRAY_LEN(caches)];
  char text[512];
  for (size_t i = 0; i < PST_ARRAY_LEN(caches); i++) {
    snprintf(text, sizeof text, frame, caches[i], 9);
    plans[i] = parse(text);
    assert_string_equal(plans[i]->answers_hash, plans[0]->hash);
    assert_int_equal(plans[i]->cache.on, i > 0);
  }
  assert_string_not_equal(plans[1]->hash, plans[0]->hash);
  assert_string_equal(plans[1]->hash, plans[2]->hash); /* a default spelled out */
  assert_string_not_equal(plans[1]->hash, plans[3]->hash);
  assert_non_null(strstr(plans[3]->json, "\"cache\":{\"max_entries\":5,\"ttl_seconds\":60}"));
  snprintf(text, sizeof text, frame, caches[1], 10);
  pst_gateway_plan *other = parse(text);
  assert_string_not_equal(other->answers_hash, plans[0]->answers_hash);
  pst_gateway_plan_unref(other);
  for (size_t i = 0; i < PST_ARRAY_LEN(caches); i++) pst_gateway_plan_unref(plans[i]);
}

static void what_is_written_is_read_as_the_same(void **state) {
  (void)state;
  char *text = NULL;
  size_t n = 0;
  pst_gateway_plan *plan = NULL, *again = NULL;
  assert_int_equal(pst_file_read("docs/plan.json", 1 << 20, &text, &n, &err), 0);
  assert_int_equal(pst_gateway_plan_parse((pst_str){text, n}, NULL, &plan, &err), 0);
  ((pst_gateway_node *)(uintptr_t)&plan->root.inputs[0])->sampling.top_p = 0.95f;
  pst_buf out = PST_BUF_INIT;
  if (pst_gateway_plan_write(plan, &out, &err)) fail_msg("%s: %s", err.place, err.message);
  assert_non_null(strstr(pst_buf_text(&out), "\"top_p\":0.95}")); /* not the float's digits */
  assert_int_equal(pst_gateway_plan_parse(pst_buf_str(&out), NULL, &again, &err), 0);
  assert_string_equal(again->json, pst_buf_text(&out));
  assert_true(again->root.inputs[0].sampling.top_p == 0.95f);
  pst_buf_done(&out);
  pst_gateway_plan_unref(plan);
  pst_gateway_plan_unref(again);
  pst_free(text);
}

static void refused(const char *json, int code, const char *place, const char *word) {
  pst_gateway_plan *plan = NULL;
  err = (pst_error)PST_ERROR_INIT;
  int got = pst_gateway_plan_parse(pst_str_from(json), "p.json", &plan, &err);
  assert_null(plan);
  if (got != code || strcmp(err.place, place) != 0 || !strstr(err.message, word))
    fail_msg("%s\n  gave %d %s: %s", json, got, err.place, err.message);
}

#define ENGINES "\"schema\":1,\"engines\":{\"e1\":{\"model\":\"m\"}},"
#define LEAF "\"op\":\"local\",\"engine\":\"e1\""

static void mistakes_are_named_with_their_place(void **state) {
  (void)state;
  const int bad = PST_E_BAD_INPUT;
  refused("{", bad, "p.json:1:2", "JSON");
  refused("[]", bad, "p.json#", "an object");
  refused("{\"schema\":2,\"root\":{\"op\":\"local\"}}", bad, "p.json#/schema", "accepted: 1");
  refused("{" ENGINES "\"root\":{" LEAF ",\"layuot\":\"chat\"}}", bad, "p.json#/root/layuot", "layout");
  refused("{" ENGINES "\"root\":{" LEAF ",\"layout\":\"xml\"}}", bad, "p.json#/root/layout", "chat_inline");
  refused("{" ENGINES "\"root\":{" LEAF "},\"rout\":1}", bad, "p.json#/rout", "known: schema");
  refused("{" ENGINES "\"root\":{\"op\":\"oracle\"}}", bad, "p.json#/root/op", "\"cascade\"");
  refused("{" ENGINES "\"root\":{\"op\":\"local\",\"engine\":\"e2\"}}", bad, "p.json#/root/engine", "e2");
  refused("{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"m\"},\"e2\":{\"model\":\"m\"}},\"root\":{" LEAF "}}", bad,
          "p.json#/engines/e2", "no node");
  refused("{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"m\",\"slots\":0}},\"root\":{" LEAF "}}", bad,
          "p.json#/engines/e1/slots", "minimum");
  refused("{\"schema\":1,\"engines\":{\"e1\":{\"model\":\"m\",\"weights\":\"Q3\"}},\"root\":{" LEAF "}}", bad,
          "p.json#/engines/e1/weights", "Q4_K");
  refused("{" ENGINES "\"root\":{" LEAF ",\"constraint\":\"labels\"}}", bad, "p.json#/root/constraint", "no labels");
  refused("{" ENGINES "\"labels\":[\"a\",\"b\"],\"root\":{" LEAF ",\"constraint\":\"example_labels\"}}", bad,
          "p.json#/root/constraint", "examples");
  refused("{" ENGINES "\"root\":{" LEAF ",\"speculation\":\"answers\"}}", bad, "p.json#/root/speculation", "no file");
  refused("{" ENGINES "\"root\":{" LEAF ",\"speculation\":\"lookup\",\"answers\":\"" HASH "\"}}", bad,
          "p.json#/root/answers", "nothing drafts");
  refused("{" ENGINES "\"root\":{" LEAF ",\"speculation\":\"model\"}}", bad, "p.json#/root/speculation", "no draft");
  refused("{" ENGINES "\"root\":{" LEAF ",\"speculation\":\"answers\",\"answers\":\"x\"}}", bad, "p.json#/root/answers",
          "pattern");
  refused("{" ENGINES "\"labels\":[\"a\",\"b \"],\"root\":{" LEAF "}}", bad, "p.json#/labels/1", "pattern");
  refused("{" ENGINES "\"labels\":[\"a\",\"a\"],\"root\":{" LEAF "}}", bad, "p.json#/labels", "twice");
  refused("{" ENGINES "\"input_pattern\":\"(\",\"root\":{" LEAF "}}", bad, "p.json#/input_pattern",
          "regular expression");
  refused("{" ENGINES "\"workload\":\"a\\u0000b\",\"root\":{" LEAF "}}", bad, "p.json#/workload", "pattern");
  refused("{\"cache\":{}," ENGINES "\"root\":{" LEAF "}}", bad, "p.json#/cache", "names none");
  refused("{\"workload\":\"w\",\"cache\":{}," ENGINES "\"root\":{" LEAF "}}", bad, "p.json#/engines/e1", "sha256");
  refused("{\"workload\":\"w\",\"cache\":{\"ttl_seconds\":0}," ENGINES "\"root\":{" LEAF "}}", bad,
          "p.json#/cache/ttl_seconds", "minimum");
  refused("{\"workload\":\"w\",\"cache\":true," ENGINES "\"root\":{" LEAF "}}", bad, "p.json#/cache", "object");
  refused("{" ENGINES "\"root\":{\"op\":\"cascade\",\"signal\":\"margin\",\"threshold\":1,\"inputs\":[{" LEAF "}]}}",
          bad, "p.json#/root/inputs", "shorter than 2");
  refused("{" ENGINES "\"root\":{\"op\":\"cascade\",\"signal\":\"margin\",\"threshold\":1,\"inputs\":["
          "{\"op\":\"remote\",\"provider\":\"p\",\"model\":\"m\"},{" LEAF "}]}}",
          bad, "p.json#/root/inputs/0", "margin");
  refused("{" ENGINES "\"root\":{\"op\":\"cascade\",\"signal\":\"margin\",\"threshold\":1,\"inputs\":["
          "{\"op\":\"cascade\",\"signal\":\"margin\",\"threshold\":1,\"inputs\":[]},{" LEAF "}]}}",
          bad, "p.json#/root/inputs/0/op", "\"remote\"");
}

static void memory_may_run_out_anywhere(void **state) {
  (void)state;
  char *text = NULL;
  size_t n = 0;
  assert_int_equal(pst_file_read("docs/plan.json", 1 << 20, &text, &n, &err), 0);
  int code = PST_E_NOMEM;
  for (int64_t i = 0; code == PST_E_NOMEM && i < 100000; i += i < 200 ? 1 : 37) {
    pst_gateway_plan *plan = NULL;
    pst_memory_fail_after(i);
    code = pst_gateway_plan_parse((pst_str){text, n}, NULL, &plan, &err);
    pst_memory_fail_after(-1);
    if (code && code != PST_E_NOMEM) fail_msg("%lld: %d %s: %s", (long long)i, code, err.place, err.message);
    pst_gateway_plan_unref(plan);
  }
  assert_int_equal(code, 0);
  pst_free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_documented_example_is_read),
      cmocka_unit_test(defaults_are_those_the_schema_names),
      cmocka_unit_test(the_hash_is_of_the_plan_not_of_its_spelling),
      cmocka_unit_test(the_cache_changes_no_answer),
      cmocka_unit_test(what_is_written_is_read_as_the_same),
      cmocka_unit_test(mistakes_are_named_with_their_place),
      cmocka_unit_test(memory_may_run_out_anywhere),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
