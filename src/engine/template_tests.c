/* Jinja's tests: what may stand behind `is`. */
#include "engine/template_types.h"

#define TEST(name) static bool test_##name(tpl_ctx *c, const tpl_val *v, const tpl_args *args, bool *out)
#define KIND_TEST(name, condition) \
  TEST(name) {                     \
    (void)c, (void)args;           \
    *out = (condition);            \
    return true;                   \
  }

static bool other(tpl_ctx *c, const tpl_args *args, const char *name, const tpl_val **out) {
  if (args->n == 1 && !args->n_named) {
    *out = &args->items[0];
    return true;
  }
  pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s expected 2 arguments, got %zu", name, args->n + args->n_named + 1);
  return false;
}

KIND_TEST(defined, v->kind != TPL_UNDEFINED)
KIND_TEST(undefined, v->kind == TPL_UNDEFINED)
KIND_TEST(none, v->kind == TPL_NONE)
KIND_TEST(boolean, v->kind == TPL_BOOL)
KIND_TEST(is_true, v->kind == TPL_BOOL && v->u.b)
KIND_TEST(is_false, v->kind == TPL_BOOL && !v->u.b)
KIND_TEST(integer, v->kind == TPL_INT || v->kind == TPL_BIGINT)
KIND_TEST(float, v->kind == TPL_FLOAT)
KIND_TEST(number, v->kind == TPL_BOOL || v->kind == TPL_INT || v->kind == TPL_BIGINT || v->kind == TPL_FLOAT)
KIND_TEST(string, v->kind == TPL_STR)
KIND_TEST(mapping, v->kind == TPL_DICT)
KIND_TEST(iterable, pst_engine_tpl_is_iterable(v))
KIND_TEST(sequence, v->kind == TPL_STR || v->kind == TPL_LIST || v->kind == TPL_TUPLE || v->kind == TPL_DICT ||
                        v->kind == TPL_RANGE || v->kind == TPL_UNDEFINED)
KIND_TEST(callable, v->kind == TPL_FUNCTION || v->kind == TPL_METHOD || v->kind == TPL_MACRO || v->kind == TPL_LOOP ||
                        v->kind == TPL_JOINER || v->kind == TPL_UNDEFINED)
KIND_TEST(escaped, v->kind == TPL_STR && v->u.s->markup)

/* v % n, as an operator would do it. */
static bool remainder_is(tpl_ctx *c, const tpl_val *v, tpl_val n, int64_t wanted, bool *out) {
  tpl_val r, w = pst_engine_tpl_int(wanted);
  return pst_engine_tpl_binary(c, TPL_OP_MOD, v, &n, &r) && pst_engine_tpl_equal(c, &r, &w, out);
}
TEST(odd) {
  (void)args;
  return remainder_is(c, v, pst_engine_tpl_int(2), 1, out);
}
TEST(even) {
  (void)args;
  return remainder_is(c, v, pst_engine_tpl_int(2), 0, out);
}
TEST(divisibleby) {
  const tpl_val *n;
  return other(c, args, "test_divisibleby", &n) && remainder_is(c, v, *n, 0, out);
}

/* Python's islower and isupper: at least one cased character, and none of the other case. */
static bool all_of_case(tpl_ctx *c, const tpl_val *v, bool upper, bool *out) {
  const tpl_str *s;
  bool seen = false;
  *out = false;
  if (!pst_engine_tpl_to_str(c, v, &s) || !pst_engine_tpl_charge(c, s->n)) return false;
  for (size_t i = 0; i < s->n;) {
    uint32_t cp = pst_utf8_next(s->data, s->n, &i);
    bool is_upper = pst_engine_tpl_is_upper(cp), is_lower = pst_engine_tpl_is_lower(cp);
    if (upper ? is_lower : is_upper) return true;
    seen = seen || is_upper || is_lower;
  }
  *out = seen;
  return true;
}
TEST(lower) {
  (void)args;
  return all_of_case(c, v, false, out);
}
TEST(upper) {
  (void)args;
  return all_of_case(c, v, true, out);
}

TEST(filter) {
  (void)args;
  *out = v->kind == TPL_STR && pst_engine_tpl_find_filter(pst_engine_tpl_view(v->u.s)) != NULL;
  return !c->failed;
}
TEST(test) {
  (void)args;
  *out = v->kind == TPL_STR && pst_engine_tpl_find_test(pst_engine_tpl_view(v->u.s)) != NULL;
  return !c->failed;
}

/* The same object. Small values are one object each in Python; larger ones when nothing made a second. */
TEST(sameas) {
  const tpl_val *o;
  if (!other(c, args, "test_sameas", &o)) return false;
  *out = false;
  if (v->kind != o->kind) return true;
  switch (v->kind) {
  case TPL_NONE: *out = true; return true;
  case TPL_BOOL: *out = v->u.b == o->u.b; return true;
  case TPL_INT: *out = v->u.i == o->u.i; return true;
  case TPL_STR:
  case TPL_FLOAT: return pst_engine_tpl_equal(c, v, o, out);
  default: *out = v->u.function == o->u.function; return true;
  }
}
TEST(in) {
  const tpl_val *o;
  return other(c, args, "test_in", &o) && pst_engine_tpl_contains(c, v, o, out);
}
TEST(eq) {
  const tpl_val *o;
  return other(c, args, "eq", &o) && pst_engine_tpl_equal(c, v, o, out);
}
TEST(ne) {
  const tpl_val *o;
  if (!other(c, args, "ne", &o) || !pst_engine_tpl_equal(c, v, o, out)) return false;
  *out = !*out;
  return true;
}
TEST(gt) {
  const tpl_val *o;
  return other(c, args, "gt", &o) && pst_engine_tpl_order(c, v, o, TPL_OP_GT, out);
}
TEST(ge) {
  const tpl_val *o;
  return other(c, args, "ge", &o) && pst_engine_tpl_order(c, v, o, TPL_OP_GE, out);
}
TEST(lt) {
  const tpl_val *o;
  return other(c, args, "lt", &o) && pst_engine_tpl_order(c, v, o, TPL_OP_LT, out);
}
TEST(le) {
  const tpl_val *o;
  return other(c, args, "le", &o) && pst_engine_tpl_order(c, v, o, TPL_OP_LE, out);
}

const tpl_test pst_engine_tpl_tests[] = {
    {"odd", test_odd},
    {"even", test_even},
    {"divisibleby", test_divisibleby},
    {"defined", test_defined},
    {"undefined", test_undefined},
    {"filter", test_filter},
    {"test", test_test},
    {"none", test_none},
    {"boolean", test_boolean},
    {"false", test_is_false},
    {"true", test_is_true},
    {"integer", test_integer},
    {"float", test_float},
    {"lower", test_lower},
    {"upper", test_upper},
    {"string", test_string},
    {"mapping", test_mapping},
    {"number", test_number},
    {"sequence", test_sequence},
    {"iterable", test_iterable},
    {"callable", test_callable},
    {"sameas", test_sameas},
    {"escaped", test_escaped},
    {"in", test_in},
    {"==", test_eq},
    {"eq", test_eq},
    {"equalto", test_eq},
    {"!=", test_ne},
    {"ne", test_ne},
    {">", test_gt},
    {"gt", test_gt},
    {"greaterthan", test_gt},
    {"ge", test_ge},
    {">=", test_ge},
    {"<", test_lt},
    {"lt", test_lt},
    {"lessthan", test_lt},
    {"<=", test_le},
    {"le", test_le},
    {NULL, NULL},
};

const tpl_test *pst_engine_tpl_find_test(pst_str name) {
  for (const tpl_test *t = pst_engine_tpl_tests; t->name; t++) {
    if (pst_str_is(name, t->name)) return t;
  }
  return NULL;
}
