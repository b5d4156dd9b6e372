/* Expressions of the template interpreter.
 *
 * Owns evaluation, operators, attribute and item access with the sandbox's rules, slices and calls. Where Python raises, this
 * fails with Python's words. Statements, macros and loops are next door (template_exec.c). */
#include "engine/template_types.h"

#include <math.h>
#include <string.h>

/* ---- names ------------------------------------------------------------------------------------------------------ */

bool pst_engine_tpl_lookup(tpl_ctx *c, tpl_scope *scope, int symbol, tpl_val *out) {
  for (; scope->parent; scope = scope->parent) {
    for (size_t i = 0; i < scope->n; i++) {
      if (scope->bindings[i].symbol != symbol) continue;
      *out = scope->bindings[i].value;
      return true;
    }
  }
  *out = c->root[symbol];
  return out->kind != TPL_MISSING || pst_engine_tpl_undefined_name(c, c->t->symbols[symbol], out);
}

bool pst_engine_tpl_bind(tpl_ctx *c, tpl_scope *scope, int symbol, tpl_val value) {
  if (!scope->parent) {
    c->root[symbol] = value;
    return true;
  }
  for (size_t i = 0; i < scope->n; i++) {
    if (scope->bindings[i].symbol != symbol) continue;
    scope->bindings[i].value = value;
    return true;
  }
  if (scope->n == scope->capacity) {
    size_t capacity = scope->capacity ? scope->capacity * 2 : 4;
    tpl_binding *bindings = pst_engine_tpl_alloc(c, capacity * sizeof *bindings);
    if (!bindings) return false;
    if (scope->n) memcpy(bindings, scope->bindings, scope->n * sizeof *bindings);
    scope->bindings = bindings;
    scope->capacity = capacity;
  }
  scope->bindings[scope->n++] = (tpl_binding){symbol, value};
  return true;
}

/* ---- arithmetic ------------------------------------------------------------------------------------------------- */

static bool is_int(const tpl_val *v) { return v->kind == TPL_INT || v->kind == TPL_BOOL; }
static int64_t int_of(const tpl_val *v) { return v->kind == TPL_BOOL ? v->u.b : v->u.i; }
static bool is_number(const tpl_val *v) { return is_int(v) || v->kind == TPL_FLOAT; }
static double real_of(const tpl_val *v) { return v->kind == TPL_FLOAT ? v->u.f : (double)int_of(v); }

static bool too_big(tpl_ctx *c) {
  return pst_engine_tpl_fail_unsupported(c, "arithmetic with whole numbers beyond 64 bits");
}

static const char *const op_signs[] = {
    [TPL_OP_ADD] = "+",       [TPL_OP_SUB] = "-", [TPL_OP_MUL] = "*",           [TPL_OP_DIV] = "/",
    [TPL_OP_FLOORDIV] = "//", [TPL_OP_MOD] = "%", [TPL_OP_POW] = "** or pow()",
};

static bool unsupported_operands(tpl_ctx *c, tpl_op op, const tpl_val *a, const tpl_val *b) {
  if (a->kind == TPL_BIGINT || b->kind == TPL_BIGINT) return too_big(c);
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "unsupported operand type(s) for %s: '%s' and '%s'", op_signs[op],
                             pst_engine_tpl_type_name(a), pst_engine_tpl_type_name(b));
}

static bool int_power(tpl_ctx *c, int64_t base, int64_t exponent, tpl_val *out) {
  if (exponent < 0) {
    if (!base) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "0.0 cannot be raised to a negative power");
    *out = pst_engine_tpl_float(pow((double)base, (double)exponent));
    return true;
  }
  int64_t result = 1;
  if (base == 1 || exponent == 0)
    exponent = 0;
  else if (base == 0)
    result = exponent = 0;
  else if (base == -1)
    result = exponent % 2 ? -1 : 1, exponent = 0;
  for (; exponent > 0; exponent--) { /* at most 63 rounds before it overflows */
    if (__builtin_mul_overflow(result, base, &result)) return too_big(c);
  }
  *out = pst_engine_tpl_int(result);
  return true;
}

static bool int_op(tpl_ctx *c, tpl_op op, int64_t a, int64_t b, tpl_val *out) {
  int64_t r = 0;
  switch (op) {
  case TPL_OP_ADD:
    if (__builtin_add_overflow(a, b, &r)) return too_big(c);
    break;
  case TPL_OP_SUB:
    if (__builtin_sub_overflow(a, b, &r)) return too_big(c);
    break;
  case TPL_OP_MUL:
    if (__builtin_mul_overflow(a, b, &r)) return too_big(c);
    break;
  case TPL_OP_DIV:
    if (!b) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "division by zero");
    *out = pst_engine_tpl_float((double)a / (double)b);
    return true;
  case TPL_OP_FLOORDIV:
  case TPL_OP_MOD:
    if (!b)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                                 op == TPL_OP_MOD ? "integer modulo by zero" : "integer division or modulo by zero");
    if (b == -1) { /* INT64_MIN / -1 traps */
      if (op == TPL_OP_FLOORDIV && __builtin_sub_overflow((int64_t)0, a, &r)) return too_big(c);
      break;
    }
    r = op == TPL_OP_MOD ? a % b : a / b;
    if (a % b != 0 && (a % b < 0) != (b < 0)) r += op == TPL_OP_MOD ? b : -1;
    break;
  case TPL_OP_POW: return int_power(c, a, b, out);
  default: break;
  }
  *out = pst_engine_tpl_int(r);
  return true;
}

static bool float_op(tpl_ctx *c, tpl_op op, double a, double b, tpl_val *out) {
  double r = 0;
  if (b == 0.0 && (op == TPL_OP_DIV || op == TPL_OP_FLOORDIV || op == TPL_OP_MOD))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                               op == TPL_OP_DIV        ? "float division by zero"
                               : op == TPL_OP_FLOORDIV ? "float floor division by zero"
                                                       : "float modulo");
  switch (op) {
  case TPL_OP_ADD: r = a + b; break;
  case TPL_OP_SUB: r = a - b; break;
  case TPL_OP_MUL: r = a * b; break;
  case TPL_OP_DIV: r = a / b; break;
  case TPL_OP_FLOORDIV:
  case TPL_OP_MOD: { /* as CPython's float_divmod */
    double mod = fmod(a, b), div = (a - mod) / b;
    if (mod != 0.0 && (b < 0) != (mod < 0)) {
      mod += b;
      div -= 1.0;
    } else if (mod == 0.0) {
      mod = copysign(0.0, b);
    }
    double whole = floor(div);
    if (div - whole > 0.5) whole += 1.0;
    r = op == TPL_OP_MOD ? mod : div != 0.0 ? whole : copysign(0.0, a / b);
    break;
  }
  case TPL_OP_POW:
    if (a == 0.0 && b < 0) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "0.0 cannot be raised to a negative power");
    if (a < 0 && floor(b) != b) return pst_engine_tpl_fail_unsupported(c, "complex numbers");
    r = pow(a, b);
    if (isinf(r) && !isinf(a) && !isinf(b))
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "(34, 'Numerical result out of range')");
    break;
  default: break;
  }
  *out = pst_engine_tpl_float(r);
  return true;
}

/* ---- + and * of sequences --------------------------------------------------------------------------------------- */

static bool add_strings(tpl_ctx *c, const tpl_str *a, const tpl_str *b, tpl_val *out) {
  bool markup = a->markup || b->markup;
  if (markup) {
    tpl_val x, y;
    if (!pst_engine_tpl_escape_html(c, a, &x) || !pst_engine_tpl_escape_html(c, b, &y)) return false;
    a = x.u.s;
    b = y.u.s;
  }
  const tpl_str *s = pst_engine_tpl_str_concat(c, a, b);
  if (!s) return false;
  if (markup) {
    tpl_str *copy = pst_engine_tpl_alloc(c, sizeof *copy);
    if (!copy) return false;
    *copy = *s;
    copy->markup = true;
    s = copy;
  }
  *out = pst_engine_tpl_string(s);
  return true;
}

static bool add_lists(tpl_ctx *c, const tpl_val *a, const tpl_val *b, tpl_val *out) {
  size_t n = a->u.list->n + b->u.list->n;
  tpl_list *l = pst_engine_tpl_charge(c, n * sizeof(tpl_val)) ? pst_engine_tpl_list_new(c, n) : NULL;
  if (!l) return false;
  if (a->u.list->n) memcpy(l->items, a->u.list->items, a->u.list->n * sizeof *l->items);
  if (b->u.list->n) memcpy(l->items + a->u.list->n, b->u.list->items, b->u.list->n * sizeof *l->items);
  l->n = n;
  *out = pst_engine_tpl_list(a->kind, l);
  return true;
}

static bool add(tpl_ctx *c, const tpl_val *a, const tpl_val *b, tpl_val *out) {
  if (a->kind == TPL_STR && b->kind == TPL_STR) return add_strings(c, a->u.s, b->u.s, out);
  if ((a->kind == TPL_LIST || a->kind == TPL_TUPLE) && a->kind == b->kind) return add_lists(c, a, b, out);
  if (a->kind == TPL_STR || a->kind == TPL_LIST || a->kind == TPL_TUPLE) {
    const char *type = a->kind == TPL_STR ? "str" : a->kind == TPL_LIST ? "list" : "tuple";
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "can only concatenate %s (not \"%s\") to %s", type,
                               pst_engine_tpl_type_name(b), type);
  }
  return unsupported_operands(c, TPL_OP_ADD, a, b);
}

static bool is_sequence(const tpl_val *v) { return v->kind == TPL_STR || v->kind == TPL_LIST || v->kind == TPL_TUPLE; }

static bool repeat(tpl_ctx *c, const tpl_val *seq, int64_t times, tpl_val *out) {
  if (times < 0) times = 0;
  if (seq->kind == TPL_STR) {
    tpl_builder b = pst_engine_tpl_builder(c);
    for (int64_t i = 0; i < times && seq->u.s->n; i++) {
      if (!pst_engine_tpl_put_str(&b, seq->u.s)) return false;
    }
    return pst_engine_tpl_build(&b, seq->u.s->markup, out);
  }
  tpl_list *l = pst_engine_tpl_list_new(c, 0);
  for (int64_t i = 0; l && i < times && seq->u.list->n; i++) {
    for (size_t k = 0; k < seq->u.list->n; k++) {
      if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_list_push(c, l, seq->u.list->items[k])) return false;
    }
  }
  if (l) *out = pst_engine_tpl_list(seq->kind, l);
  return l != NULL;
}

bool pst_engine_tpl_binary(tpl_ctx *c, tpl_op op, const tpl_val *a, const tpl_val *b, tpl_val *out) {
  if (is_int(a) && is_int(b)) return int_op(c, op, int_of(a), int_of(b), out);
  if (is_number(a) && is_number(b)) return float_op(c, op, real_of(a), real_of(b), out);
  if (a->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, a);
  if (op == TPL_OP_MOD && a->kind == TPL_STR) return pst_engine_tpl_percent(c, a->u.s, b, out);
  if (b->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, b);
  if (op == TPL_OP_ADD) return add(c, a, b, out);
  if (op == TPL_OP_MUL && is_sequence(a) && is_int(b)) return repeat(c, a, int_of(b), out);
  if (op == TPL_OP_MUL && is_sequence(b) && is_int(a)) return repeat(c, b, int_of(a), out);
  if (op == TPL_OP_MUL && (is_sequence(a) || is_sequence(b)))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "can't multiply sequence by non-int of type '%s'",
                               pst_engine_tpl_type_name(is_sequence(a) ? b : a));
  return unsupported_operands(c, op, a, b);
}

static bool unary(tpl_ctx *c, tpl_op op, const tpl_val *v, tpl_val *out) {
  if (is_int(v)) {
    int64_t i = int_of(v);
    if (op == TPL_OP_SUB && __builtin_sub_overflow((int64_t)0, i, &i)) return too_big(c);
    *out = pst_engine_tpl_int(i);
    return true;
  }
  if (v->kind == TPL_FLOAT) {
    *out = pst_engine_tpl_float(op == TPL_OP_SUB ? -v->u.f : v->u.f);
    return true;
  }
  if (v->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, v);
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "bad operand type for unary %s: '%s'", op == TPL_OP_SUB ? "-" : "+",
                             pst_engine_tpl_type_name(v));
}

/* ---- attributes and items --------------------------------------------------------------------------------------- */

static bool unsafe_attribute(tpl_ctx *c, const tpl_val *object, pst_str name, tpl_val *out) {
  char hint[200];
  int n = snprintf(hint, sizeof hint, "access to attribute '%.*s' of '%s' object is unsafe.",
                   (int)PST_MIN(name.n, 100u), name.data, pst_engine_tpl_type_name(object));
  char *copy = pst_engine_tpl_alloc(c, (size_t)n + 1);
  if (!copy) return false;
  memcpy(copy, hint, (size_t)n + 1);
  return pst_engine_tpl_undefined_hint(c, copy, out);
}

/* Attributes that every Python object has; the sandbox closes them. */
static bool is_dunder(pst_str name) {
  static const char *const names[] = {
      "__class__",        "__init__",
      "__new__",          "__doc__",
      "__eq__",           "__ne__",
      "__lt__",           "__le__",
      "__gt__",           "__ge__",
      "__hash__",         "__repr__",
      "__str__",          "__format__",
      "__dir__",          "__reduce__",
      "__sizeof__",       "__reduce_ex__",
      "__getattribute__", "__setattr__",
      "__delattr__",      "__init_subclass__",
      "__subclasshook__",
  };
  for (size_t i = 0; name.n > 4 && name.data[0] == '_' && i < PST_ARRAY_LEN(names); i++) {
    if (pst_str_is(name, names[i])) return true;
  }
  return false;
}

static bool macro_attr(tpl_ctx *c, const tpl_node *m, pst_str name, tpl_val *out) {
  if (pst_str_is(name, "name")) {
    const tpl_str *s = pst_engine_tpl_str_view(c, m->name, true);
    *out = pst_engine_tpl_string(s);
    return s != NULL;
  }
  if (pst_str_is(name, "caller"))
    *out = pst_engine_tpl_bool(m->flag);
  else if (pst_str_is(name, "catch_kwargs"))
    *out = pst_engine_tpl_bool(m->catches_kwargs);
  else if (pst_str_is(name, "catch_varargs"))
    *out = pst_engine_tpl_bool(m->catches_varargs);
  else if (pst_str_is(name, "arguments"))
    return pst_engine_tpl_fail_unsupported(c, "the attribute 'arguments' of a macro");
  return true;
}

static bool number_attr(tpl_ctx *c, pst_str name) {
  static const char *const names[] = {"real",     "imag",       "numerator",        "denominator", "conjugate",
                                      "to_bytes", "bit_length", "as_integer_ratio", "bit_count",   "is_integer",
                                      "hex",      "from_bytes", "fromhex"};
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++) {
    if (pst_str_is(name, names[i])) return pst_engine_tpl_fail_unsupported(c, "attributes of numbers");
  }
  return true;
}

/* Python's getattr: MISSING when there is no such attribute. */
static bool attribute(tpl_ctx *c, const tpl_val *object, pst_str name, tpl_val *out) {
  *out = (tpl_val){.kind = TPL_MISSING};
  switch (object->kind) {
  case TPL_UNDEFINED: return pst_engine_tpl_fail_undefined(c, object);
  case TPL_NAMESPACE: {
    const tpl_val *v = pst_engine_tpl_dict_get(object->u.dict, name);
    if (v) *out = *v;
    return true;
  }
  case TPL_LOOP:
    if (!pst_engine_tpl_loop_attr(c, object->u.loop, name, out)) return false;
    break;
  case TPL_MACRO:
    if (!macro_attr(c, object->u.macro->node, name, out)) return false;
    break;
  case TPL_CYCLER:
    if (pst_str_is(name, "current")) *out = object->u.cycler->items->items[object->u.cycler->position];
    break;
  case TPL_RANGE:
    if (pst_str_is(name, "start")) *out = pst_engine_tpl_int(object->u.range->start);
    if (pst_str_is(name, "stop")) *out = pst_engine_tpl_int(object->u.range->stop);
    if (pst_str_is(name, "step")) *out = pst_engine_tpl_int(object->u.range->step);
    break;
  case TPL_TUPLE:
    if (object->u.list->group && pst_str_is(name, "grouper")) *out = object->u.list->items[0];
    if (object->u.list->group && pst_str_is(name, "list")) *out = object->u.list->items[1];
    break;
  case TPL_BOOL:
  case TPL_INT:
  case TPL_FLOAT:
    if (!number_attr(c, name)) return false;
    break;
  default: break;
  }
  if (out->kind != TPL_MISSING) return true;
  bool mutates = false;
  const tpl_function *f = pst_engine_tpl_find_method(object, name, &mutates);
  if (mutates || is_dunder(name)) return unsafe_attribute(c, object, name, out);
  if (!f) return true;
  if (!f->call) {
    char what[80];
    snprintf(what, sizeof what, "the method '%s'", f->name);
    return pst_engine_tpl_fail_unsupported(c, what);
  }
  tpl_method *m = pst_engine_tpl_alloc(c, sizeof *m);
  if (!m) return false;
  *m = (tpl_method){*object, f};
  *out = (tpl_val){.kind = TPL_METHOD, .u.method = m};
  return true;
}

/* Python's object[key]: MISSING where it would raise TypeError or LookupError. */
static bool item(tpl_ctx *c, const tpl_val *object, const tpl_val *key, tpl_val *out) {
  *out = (tpl_val){.kind = TPL_MISSING};
  if (object->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, object);
  if (object->kind == TPL_DICT) {
    if (key->kind == TPL_LIST || key->kind == TPL_DICT || key->kind == TPL_VIEW) return true;
    tpl_val *found;
    if (!pst_engine_tpl_dict_find(c, object->u.dict, key, &found)) return false;
    if (found) *out = *found;
    return true;
  }
  if (!is_int(key)) return true;
  int64_t i = int_of(key), n;
  switch (object->kind) {
  case TPL_STR: n = (int64_t)pst_engine_tpl_chars(object->u.s); break;
  case TPL_LIST:
  case TPL_TUPLE: n = (int64_t)object->u.list->n; break;
  case TPL_RANGE: n = (int64_t)object->u.range->n; break;
  default: return true;
  }
  if (i < 0) i += n;
  if (i < 0 || i >= n) return true;
  if (object->kind == TPL_RANGE) {
    *out = pst_engine_tpl_int(object->u.range->start + i * object->u.range->step);
  } else if (object->kind == TPL_STR) {
    const tpl_str *s = object->u.s;
    size_t start = pst_engine_tpl_char_offset(s, (size_t)i), end = start;
    if (!pst_engine_tpl_charge(c, pst_engine_tpl_chars(s) == s->n ? 0 : s->n)) return false;
    pst_utf8_next(s->data, s->n, &end);
    s = pst_engine_tpl_str_slice(c, s, start, end);
    *out = pst_engine_tpl_string(s);
    return s != NULL;
  } else {
    *out = object->u.list->items[i];
  }
  return true;
}

static bool getattr_value(tpl_ctx *c, const tpl_val *object, const tpl_val *name, tpl_val *out) {
  if (!attribute(c, object, pst_engine_tpl_view(name->u.s), out)) return false;
  if (out->kind != TPL_MISSING) return true;
  if (object->kind == TPL_DICT && !item(c, object, name, out)) return false;
  return out->kind != TPL_MISSING || pst_engine_tpl_undefined_of(c, object, name, out);
}

bool pst_engine_tpl_getattr(tpl_ctx *c, const tpl_val *object, pst_str name, tpl_val *out) {
  const tpl_str *s = pst_engine_tpl_str_view(c, name, true);
  tpl_val key = pst_engine_tpl_string(s);
  return s && getattr_value(c, object, &key, out);
}

bool pst_engine_tpl_getitem(tpl_ctx *c, const tpl_val *object, const tpl_val *key, tpl_val *out) {
  if (!item(c, object, key, out)) return false;
  if (out->kind == TPL_MISSING && key->kind == TPL_STR && !attribute(c, object, pst_engine_tpl_view(key->u.s), out))
    return false;
  return out->kind != TPL_MISSING || pst_engine_tpl_undefined_of(c, object, key, out);
}

/* ---- slices ----------------------------------------------------------------------------------------------------- */

static bool slice_index(tpl_ctx *c, const tpl_val *v, int64_t fallback, int64_t *out) {
  *out = fallback;
  if (v->kind == TPL_NONE) return true;
  if (!is_int(v))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                               "slice indices must be integers or None or have an __index__ method");
  *out = int_of(v);
  return true;
}

static int64_t clamp_index(int64_t i, int64_t n, int64_t low, int64_t high) {
  if (i < 0) i = i < -n ? -1 : i + n;
  return i < low ? low : i > high ? high : i;
}

static bool slice_str(tpl_ctx *c, const tpl_str *s, int64_t start, int64_t stop, int64_t step, tpl_val *out) {
  if (step == 1) {
    if (stop < start) stop = start;
    size_t from = pst_engine_tpl_char_offset(s, (size_t)start), to = pst_engine_tpl_char_offset(s, (size_t)stop);
    if (!pst_engine_tpl_charge(c, pst_engine_tpl_chars(s) == s->n ? 0 : s->n)) return false;
    const tpl_str *slice = pst_engine_tpl_str_slice(c, s, from, to);
    *out = pst_engine_tpl_string(slice);
    return slice != NULL;
  }
  size_t n = pst_engine_tpl_chars(s);
  size_t *offsets = n < SIZE_MAX / sizeof(size_t) - 1 ? pst_engine_tpl_alloc(c, (n + 1) * sizeof *offsets) : NULL;
  if (!offsets || !pst_engine_tpl_charge(c, s->n)) return false;
  size_t at = 0;
  for (size_t i = 0; i < n; i++) {
    offsets[i] = at;
    pst_utf8_next(s->data, s->n, &at);
  }
  offsets[n] = s->n;
  tpl_builder b = pst_engine_tpl_builder(c);
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
    if (!pst_engine_tpl_put_slice(&b, s, offsets[i], offsets[i + 1])) return false;
  }
  return pst_engine_tpl_build(&b, s->markup, out);
}

bool pst_engine_tpl_slice(tpl_ctx *c, const tpl_val *object, const tpl_val *start_v, const tpl_val *stop_v,
                          const tpl_val *step_v, tpl_val *out) {
  int64_t n, step, start, stop;
  switch (object->kind) {
  case TPL_STR: n = (int64_t)pst_engine_tpl_chars(object->u.s); break;
  case TPL_LIST:
  case TPL_TUPLE: n = (int64_t)object->u.list->n; break;
  case TPL_RANGE: return pst_engine_tpl_fail_unsupported(c, "a slice of a range");
  case TPL_UNDEFINED: return pst_engine_tpl_fail_undefined(c, object);
  case TPL_DICT: return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "unhashable type: 'slice'");
  default:
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' object is not subscriptable",
                               pst_engine_tpl_type_name(object));
  }
  if (!slice_index(c, step_v, 1, &step)) return false;
  if (!step) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "slice step cannot be zero");
  int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
  if (!slice_index(c, start_v, step < 0 ? INT64_MAX : 0, &start) ||
      !slice_index(c, stop_v, step < 0 ? INT64_MIN : INT64_MAX, &stop))
    return false;
  start = clamp_index(start, n, low, high);
  stop = clamp_index(stop, n, low, high);
  if (step > n) step = n + 1; /* the same items, and no overflow below */
  if (step < -n) step = -n - 1;
  if (object->kind == TPL_STR) return slice_str(c, object->u.s, start, stop, step, out);
  tpl_list *l = pst_engine_tpl_list_new(c, 0);
  for (int64_t i = start; l && (step > 0 ? i < stop : i > stop); i += step) {
    if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_list_push(c, l, object->u.list->items[i])) return false;
  }
  if (l) *out = pst_engine_tpl_list(object->kind, l);
  return l != NULL;
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static bool spread(tpl_ctx *c, tpl_scope *scope, const tpl_call_node *call, tpl_list *items, tpl_list *named,
                   tpl_list *names) {
  tpl_val v;
  if (call->star) {
    tpl_list *more;
    if (!pst_engine_tpl_eval(c, scope, call->star, &v) || !pst_engine_tpl_collect(c, &v, &more)) return false;
    for (size_t i = 0; i < more->n; i++) {
      if (!pst_engine_tpl_list_push(c, items, more->items[i])) return false;
    }
  }
  if (!call->star_star) return true;
  if (!pst_engine_tpl_eval(c, scope, call->star_star, &v)) return false;
  if (v.kind != TPL_DICT)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "argument after ** must be a mapping, not %s",
                               pst_engine_tpl_type_name(&v));
  for (size_t i = 0; i < v.u.dict->n; i++) {
    const tpl_entry *e = &v.u.dict->entries[i];
    if (e->key.kind != TPL_STR) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "keywords must be strings");
    if (!pst_engine_tpl_list_push(c, names, e->key) || !pst_engine_tpl_list_push(c, named, e->value)) return false;
  }
  return true;
}

bool pst_engine_tpl_eval_args(tpl_ctx *c, tpl_scope *scope, const tpl_call_node *call, tpl_args *out) {
  *out = (tpl_args){0};
  if (!call) return true;
  tpl_list *items = pst_engine_tpl_list_new(c, call->plain.n), *named = pst_engine_tpl_list_new(c, call->named.n);
  tpl_list *more_names = pst_engine_tpl_list_new(c, 0);
  if (!items || !named || !more_names) return false;
  for (size_t i = 0; i < call->plain.n; i++) {
    tpl_val v;
    if (!pst_engine_tpl_eval(c, scope, call->plain.items[i], &v) || !pst_engine_tpl_list_push(c, items, v))
      return false;
  }
  for (size_t i = 0; i < call->named.n; i++) {
    tpl_val v;
    if (!pst_engine_tpl_eval(c, scope, call->named.items[i], &v) || !pst_engine_tpl_list_push(c, named, v))
      return false;
  }
  if (!spread(c, scope, call, items, named, more_names)) return false;
  const pst_str *names = call->names;
  if (more_names->n) {
    pst_str *all = pst_engine_tpl_alloc(c, named->n * sizeof *all);
    if (!all) return false;
    if (call->named.n) memcpy(all, call->names, call->named.n * sizeof *all);
    for (size_t i = 0; i < more_names->n; i++) all[call->named.n + i] = pst_engine_tpl_view(more_names->items[i].u.s);
    names = all;
  }
  *out = (tpl_args){items->items, items->n, names, named->items, named->n};
  return true;
}

static bool call_joiner(tpl_ctx *c, tpl_joiner *j, tpl_val *out) {
  const tpl_str *s = j->used ? j->separator : pst_engine_tpl_str_view(c, PST_STR(""), true);
  j->used = true;
  *out = pst_engine_tpl_string(s);
  return s != NULL;
}

bool pst_engine_tpl_call_value(tpl_ctx *c, const tpl_val *f, const tpl_args *args, tpl_val *out) {
  switch (f->kind) {
  case TPL_FUNCTION: {
    if (f->u.function->call) return f->u.function->call(c, NULL, args, out);
    char what[80];
    snprintf(what, sizeof what, "the function '%s'", f->u.function->name);
    return pst_engine_tpl_fail_unsupported(c, what);
  }
  case TPL_METHOD: return f->u.method->function->call(c, &f->u.method->self, args, out);
  case TPL_MACRO: return pst_engine_tpl_call_macro(c, f->u.macro, args, out);
  case TPL_LOOP: return pst_engine_tpl_call_loop(c, f->u.loop, args, out);
  case TPL_JOINER: return call_joiner(c, f->u.joiner, out);
  case TPL_UNDEFINED: return pst_engine_tpl_fail_undefined(c, f);
  default: return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' object is not callable", pst_engine_tpl_type_name(f));
  }
}

/* ---- evaluation ------------------------------------------------------------------------------------------------- */

static bool eval_items(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_list *l = pst_engine_tpl_list_new(c, node->list.n);
  for (size_t i = 0; l && i < node->list.n; i++) {
    tpl_val v;
    if (!pst_engine_tpl_eval(c, scope, node->list.items[i], &v) || !pst_engine_tpl_list_push(c, l, v)) return false;
  }
  if (l) *out = pst_engine_tpl_list(node->kind == TPL_N_TUPLE ? TPL_TUPLE : TPL_LIST, l);
  return l != NULL;
}

static bool eval_dict(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_dict *d = pst_engine_tpl_dict_new(c);
  for (size_t i = 0; d && i + 1 < node->list.n; i += 2) {
    tpl_val key, value;
    if (!pst_engine_tpl_eval(c, scope, node->list.items[i], &key) ||
        !pst_engine_tpl_eval(c, scope, node->list.items[i + 1], &value) || !pst_engine_tpl_dict_set(c, d, key, value))
      return false;
  }
  if (d) *out = pst_engine_tpl_dict(d);
  return d != NULL;
}

static bool compare_one(tpl_ctx *c, tpl_op op, const tpl_val *a, const tpl_val *b, bool *out) {
  switch (op) {
  case TPL_OP_EQ: return pst_engine_tpl_equal(c, a, b, out);
  case TPL_OP_NE:
    if (!pst_engine_tpl_equal(c, a, b, out)) return false;
    *out = !*out;
    return true;
  case TPL_OP_IN: return pst_engine_tpl_contains(c, a, b, out);
  case TPL_OP_NOTIN:
    if (!pst_engine_tpl_contains(c, a, b, out)) return false;
    *out = !*out;
    return true;
  default: return pst_engine_tpl_order(c, a, b, op, out);
  }
}

static bool eval_compare(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_val left, right;
  bool holds = true;
  if (!pst_engine_tpl_eval(c, scope, node->a, &left)) return false;
  for (size_t i = 0; holds && i < node->list.n; i++) {
    const tpl_node *operand = node->list.items[i];
    if (!pst_engine_tpl_eval(c, scope, operand->a, &right) || !compare_one(c, operand->op, &left, &right, &holds))
      return false;
    left = right;
  }
  *out = pst_engine_tpl_bool(holds);
  return true;
}

static bool eval_concat(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  const tpl_str *joined = NULL;
  for (size_t i = 0; i < node->list.n; i++) {
    tpl_val v;
    const tpl_str *s;
    if (!pst_engine_tpl_eval(c, scope, node->list.items[i], &v) || !pst_engine_tpl_to_str(c, &v, &s)) return false;
    joined = joined ? pst_engine_tpl_str_concat(c, joined, s) : s;
    if (!joined) return false;
  }
  *out = pst_engine_tpl_string(joined);
  return true;
}

static bool eval_part(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  *out = pst_engine_tpl_none();
  return !node || pst_engine_tpl_eval(c, scope, node, out);
}

static bool eval_getitem(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_val object, key;
  if (!pst_engine_tpl_eval(c, scope, node->a, &object)) return false;
  if (node->b->kind == TPL_N_SLICE) {
    tpl_val start, stop, step;
    return eval_part(c, scope, node->b->a, &start) && eval_part(c, scope, node->b->b, &stop) &&
           eval_part(c, scope, node->b->c, &step) && pst_engine_tpl_slice(c, &object, &start, &stop, &step, out);
  }
  return pst_engine_tpl_eval(c, scope, node->b, &key) && pst_engine_tpl_getitem(c, &object, &key, out);
}

static bool eval_call(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_val f;
  tpl_args args;
  if (!pst_engine_tpl_eval(c, scope, node->a, &f) || !pst_engine_tpl_eval_args(c, scope, node->call, &args))
    return false;
  c->line = node->line;
  return pst_engine_tpl_call_value(c, &f, &args, out);
}

static bool eval_filter(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_val value;
  tpl_args args;
  if (!pst_engine_tpl_eval(c, scope, node->a, &value) || !pst_engine_tpl_eval_args(c, scope, node->call, &args))
    return false;
  c->line = node->line;
  if (!node->filter)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "No filter named '%.*s' found.", (int)PST_MIN(node->name.n, 200u),
                               node->name.data);
  return node->filter->call(c, &value, &args, out);
}

static bool eval_test(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_val value;
  tpl_args args;
  bool holds = false;
  if (!pst_engine_tpl_eval(c, scope, node->a, &value) || !pst_engine_tpl_eval_args(c, scope, node->call, &args))
    return false;
  c->line = node->line;
  if (!node->test)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "No test named '%.*s' found.", (int)PST_MIN(node->name.n, 200u),
                               node->name.data);
  if (!node->test->call(c, &value, &args, &holds)) return false;
  *out = pst_engine_tpl_bool(holds);
  return true;
}

static bool eval_cond(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_val v;
  bool holds;
  if (!pst_engine_tpl_eval(c, scope, node->b, &v) || !pst_engine_tpl_truth(c, &v, &holds)) return false;
  if (holds) return pst_engine_tpl_eval(c, scope, node->a, out);
  if (node->c) return pst_engine_tpl_eval(c, scope, node->c, out);
  char hint[140];
  int n =
      snprintf(hint, sizeof hint,
               "the inline if-expression on line %d evaluated to false and no else section was defined.", node->line);
  char *copy = pst_engine_tpl_alloc(c, (size_t)n + 1);
  if (!copy) return false;
  memcpy(copy, hint, (size_t)n + 1);
  return pst_engine_tpl_undefined_hint(c, copy, out);
}

static bool eval_logic(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  bool holds;
  if (!pst_engine_tpl_eval(c, scope, node->a, out) || !pst_engine_tpl_truth(c, out, &holds)) return false;
  if (node->kind == TPL_N_NOT) {
    *out = pst_engine_tpl_bool(!holds);
    return true;
  }
  return holds == (node->kind == TPL_N_OR) || pst_engine_tpl_eval(c, scope, node->b, out);
}

static bool eval_node(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_val a, b;
  switch (node->kind) {
  case TPL_N_CONST: *out = node->value; return true;
  case TPL_N_NAME: return pst_engine_tpl_lookup(c, scope, node->symbol, out);
  case TPL_N_TUPLE:
  case TPL_N_LISTEXPR: return eval_items(c, scope, node, out);
  case TPL_N_DICTEXPR: return eval_dict(c, scope, node, out);
  case TPL_N_COND: return eval_cond(c, scope, node, out);
  case TPL_N_OR:
  case TPL_N_AND:
  case TPL_N_NOT: return eval_logic(c, scope, node, out);
  case TPL_N_COMPARE: return eval_compare(c, scope, node, out);
  case TPL_N_BINARY:
    if (!pst_engine_tpl_eval(c, scope, node->a, &a) || !pst_engine_tpl_eval(c, scope, node->b, &b)) return false;
    c->line = node->line;
    return pst_engine_tpl_binary(c, node->op, &a, &b, out);
  case TPL_N_UNARY: return pst_engine_tpl_eval(c, scope, node->a, &a) && unary(c, node->op, &a, out);
  case TPL_N_CONCAT: return eval_concat(c, scope, node, out);
  case TPL_N_GETATTR: return pst_engine_tpl_eval(c, scope, node->a, &a) && getattr_value(c, &a, &node->value, out);
  case TPL_N_GETITEM: return eval_getitem(c, scope, node, out);
  case TPL_N_CALL: return eval_call(c, scope, node, out);
  case TPL_N_FILTER: return eval_filter(c, scope, node, out);
  case TPL_N_TEST: return eval_test(c, scope, node, out);
  case TPL_N_SLICE: return pst_engine_tpl_fail_unsupported(c, "a slice beside other subscripts");
  default: return pst_engine_tpl_fail(c, PST_E_INTERNAL, "a statement where an expression belongs");
  }
}

bool pst_engine_tpl_eval(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  c->line = node->line;
  if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_enter(c)) return false;
  bool ok = eval_node(c, scope, node, out);
  pst_engine_tpl_leave(c);
  return ok;
}
