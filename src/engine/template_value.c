/* Values of the template interpreter and what Python does with any of them: truth, equality, order, str, repr, iteration.
 *
 * Owns lists and dictionaries. Error texts are Python's, so that a template that fails there fails here with the same words.
 * Punctuation that repr adds, and every number, counts as data: only characters of trusted strings stay trusted. */
#include "engine/template_types.h"

#include <math.h>
#include <string.h>

tpl_val pst_engine_tpl_none(void) { return (tpl_val){.kind = TPL_NONE}; }
tpl_val pst_engine_tpl_bool(bool b) { return (tpl_val){.kind = TPL_BOOL, .u.b = b}; }
tpl_val pst_engine_tpl_int(int64_t i) { return (tpl_val){.kind = TPL_INT, .u.i = i}; }
tpl_val pst_engine_tpl_float(double f) { return (tpl_val){.kind = TPL_FLOAT, .u.f = f}; }
tpl_val pst_engine_tpl_string(const tpl_str *s) { return (tpl_val){.kind = s ? TPL_STR : TPL_MISSING, .u.s = s}; }
tpl_val pst_engine_tpl_list(tpl_kind kind, tpl_list *l) { return (tpl_val){.kind = kind, .u.list = l}; }
tpl_val pst_engine_tpl_dict(tpl_dict *d) { return (tpl_val){.kind = TPL_DICT, .u.dict = d}; }

/* ---- undefined -------------------------------------------------------------------------------------------------- */

static bool undefined(tpl_ctx *c, tpl_undefined u, tpl_val *out) {
  tpl_undefined *copy = pst_engine_tpl_alloc(c, sizeof *copy);
  if (!copy) return false;
  *copy = u;
  *out = (tpl_val){.kind = TPL_UNDEFINED, .u.undefined = copy};
  return true;
}

static const char *terminated(tpl_ctx *c, pst_str s) {
  char *copy = pst_engine_tpl_alloc(c, s.n + 1);
  if (!copy) return NULL;
  if (s.n) memcpy(copy, s.data, s.n);
  copy[s.n] = '\0';
  return copy;
}

bool pst_engine_tpl_undefined_hint(tpl_ctx *c, const char *hint, tpl_val *out) {
  return undefined(c, (tpl_undefined){.hint = hint}, out);
}

bool pst_engine_tpl_undefined_name(tpl_ctx *c, pst_str name, tpl_val *out) {
  const char *copy = terminated(c, name);
  return copy && undefined(c, (tpl_undefined){.name = copy}, out);
}

bool pst_engine_tpl_undefined_of(tpl_ctx *c, const tpl_val *object, const tpl_val *key, tpl_val *out) {
  tpl_undefined u = {.object = pst_engine_tpl_object_repr(object), .element = key->kind != TPL_STR};
  if (key->kind == TPL_STR) {
    u.name = terminated(c, pst_engine_tpl_view(key->u.s));
  } else if (key->kind == TPL_INT) { /* the usual case, without a builder */
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)key->u.i);
    u.name = terminated(c, pst_str_from(digits));
  } else {
    tpl_builder b = pst_engine_tpl_builder(c);
    tpl_val text;
    if (!pst_engine_tpl_repr(&b, key) || !pst_engine_tpl_build(&b, false, &text)) return false;
    u.name = terminated(c, pst_engine_tpl_view(text.u.s));
  }
  return u.name && undefined(c, u, out);
}

/* ---- types ------------------------------------------------------------------------------------------------------ */

const char *pst_engine_tpl_type_name(const tpl_val *v) {
  switch (v->kind) {
  case TPL_MISSING: return "missing";
  case TPL_UNDEFINED: return "Undefined";
  case TPL_NONE: return "NoneType";
  case TPL_BOOL: return "bool";
  case TPL_INT:
  case TPL_BIGINT: return "int";
  case TPL_FLOAT: return "float";
  case TPL_STR: return v->u.s->markup ? "Markup" : "str";
  case TPL_LIST: return "list";
  case TPL_TUPLE: return v->u.list->group ? "_GroupTuple" : "tuple";
  case TPL_DICT: return "dict";
  case TPL_VIEW:
    return v->u.view->what == TPL_KEYS ? "dict_keys" : v->u.view->what == TPL_VALUES ? "dict_values" : "dict_items";
  case TPL_ITER: return "generator";
  case TPL_RANGE: return "range";
  case TPL_NAMESPACE: return "TemplateNamespace";
  case TPL_MACRO: return "Macro";
  case TPL_FUNCTION: return "function";
  case TPL_METHOD: return "builtin_function_or_method";
  case TPL_LOOP: return "LoopContext";
  case TPL_CYCLER: return "Cycler";
  case TPL_JOINER: return "Joiner";
  }
  return "object";
}

const char *pst_engine_tpl_object_repr(const tpl_val *v) {
  switch (v->kind) {
  case TPL_NONE: return "None";
  case TPL_BOOL: return "bool object";
  case TPL_INT:
  case TPL_BIGINT: return "int object";
  case TPL_FLOAT: return "float object";
  case TPL_STR: return v->u.s->markup ? "markupsafe.Markup object" : "str object";
  case TPL_LIST: return "list object";
  case TPL_TUPLE: return v->u.list->group ? "jinja2.filters._GroupTuple object" : "tuple object";
  case TPL_DICT: return "dict object";
  case TPL_VIEW:
    return v->u.view->what == TPL_KEYS     ? "dict_keys object"
           : v->u.view->what == TPL_VALUES ? "dict_values object"
                                           : "dict_items object";
  case TPL_ITER: return "generator object";
  case TPL_RANGE: return "range object";
  case TPL_NAMESPACE: return "transformers.utils.chat_template_utils.TemplateNamespace object";
  case TPL_MACRO: return "jinja2.runtime.Macro object";
  case TPL_FUNCTION: return "function object";
  case TPL_METHOD: return "builtin_function_or_method object";
  case TPL_LOOP: return "jinja2.runtime.LoopContext object";
  case TPL_CYCLER: return "jinja2.utils.Cycler object";
  case TPL_JOINER: return "jinja2.utils.Joiner object";
  case TPL_MISSING:
  case TPL_UNDEFINED: break;
  }
  return "object";
}

/* ---- lists ------------------------------------------------------------------------------------------------------ */

tpl_list *pst_engine_tpl_list_new(tpl_ctx *c, size_t capacity) {
  if (capacity > SIZE_MAX / sizeof(tpl_val) / 2) {
    pst_engine_tpl_fail(c, PST_E_LIMIT, "the template makes too long a list");
    return NULL;
  }
  tpl_list *l = pst_engine_tpl_alloc(c, sizeof *l);
  if (!l) return NULL;
  *l = (tpl_list){.capacity = capacity};
  if (capacity) {
    l->items = pst_engine_tpl_alloc(c, capacity * sizeof *l->items);
    if (!l->items) return NULL;
  }
  return l;
}

bool pst_engine_tpl_list_push(tpl_ctx *c, tpl_list *l, tpl_val v) {
  if (l->n == l->capacity) {
    size_t capacity = l->capacity ? l->capacity * 2 : 4;
    tpl_val *items = pst_engine_tpl_alloc(c, capacity * sizeof *items);
    if (!items) return false;
    if (l->n) memcpy(items, l->items, l->n * sizeof *items);
    l->items = items;
    l->capacity = capacity;
  }
  l->items[l->n++] = v;
  return true;
}

/* ---- dictionaries ----------------------------------------------------------------------------------------------- */

static bool hash_of(tpl_ctx *c, const tpl_val *v, uint64_t *out) {
  switch (v->kind) {
  case TPL_STR:
  case TPL_BIGINT: *out = pst_hash64(v->u.s->data, v->u.s->n, 1); return pst_engine_tpl_charge(c, v->u.s->n);
  case TPL_BOOL:
  case TPL_INT: {
    int64_t i = v->kind == TPL_BOOL ? v->u.b : v->u.i;
    *out = pst_hash64(&i, sizeof i, 2);
    return true;
  }
  case TPL_FLOAT: {
    double f = v->u.f;
    if (f >= -9e18 && f <= 9e18 && floor(f) == f) {
      int64_t i = (int64_t)f;
      *out = pst_hash64(&i, sizeof i, 2);
    } else {
      *out = pst_hash64(&f, sizeof f, 3);
    }
    return true;
  }
  case TPL_NONE: *out = 4; return true;
  case TPL_UNDEFINED: *out = 5; return true;
  case TPL_TUPLE: {
    uint64_t h = v->u.list->n;
    if (!pst_engine_tpl_enter(c)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < v->u.list->n; i++) {
      uint64_t part = 0;
      ok = hash_of(c, &v->u.list->items[i], &part);
      h = pst_hash64(&part, sizeof part, h);
    }
    pst_engine_tpl_leave(c);
    *out = h;
    return ok;
  }
  case TPL_RANGE: *out = v->u.range->n; return true;
  case TPL_LIST:
  case TPL_DICT:
  case TPL_VIEW: return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "unhashable type: '%s'", pst_engine_tpl_type_name(v));
  default: *out = pst_hash64(&v->u.function, sizeof v->u.function, 6); return true;
  }
}

tpl_dict *pst_engine_tpl_dict_new(tpl_ctx *c) {
  tpl_dict *d = pst_engine_tpl_alloc(c, sizeof *d);
  if (d) *d = (tpl_dict){0};
  return d;
}

enum { SMALL_DICT = 8 };

static void index_entry(tpl_dict *d, size_t entry) {
  size_t slot = (size_t)d->entries[entry].hash & (d->index_size - 1);
  while (d->index[slot]) slot = (slot + 1) & (d->index_size - 1);
  d->index[slot] = (uint32_t)(entry + 1);
}

static bool grow_dict(tpl_ctx *c, tpl_dict *d) {
  size_t capacity = d->capacity ? d->capacity * 2 : 4;
  if (capacity > UINT32_MAX / 4)
    return pst_engine_tpl_fail(c, PST_E_LIMIT, "the template makes too large a dictionary");
  tpl_entry *entries = pst_engine_tpl_alloc(c, capacity * sizeof *entries);
  if (!entries) return false;
  if (d->n) memcpy(entries, d->entries, d->n * sizeof *entries);
  d->entries = entries;
  d->capacity = capacity;
  if (capacity <= SMALL_DICT) return true;
  d->index_size = capacity * 2;
  d->index = pst_engine_tpl_alloc(c, d->index_size * sizeof *d->index);
  if (!d->index) return false;
  memset(d->index, 0, d->index_size * sizeof *d->index);
  for (size_t i = 0; i < d->n; i++) index_entry(d, i);
  return true;
}

static bool find_entry(tpl_ctx *c, const tpl_dict *d, const tpl_val *key, uint64_t hash, tpl_entry **out) {
  *out = NULL;
  if (!d->index) {
    for (size_t i = 0; i < d->n; i++) {
      if (d->entries[i].hash != hash) continue;
      bool same;
      if (!pst_engine_tpl_equal(c, &d->entries[i].key, key, &same)) return false;
      if (same) {
        *out = &d->entries[i];
        return true;
      }
    }
    return true;
  }
  for (size_t slot = (size_t)hash & (d->index_size - 1); d->index[slot]; slot = (slot + 1) & (d->index_size - 1)) {
    tpl_entry *e = &d->entries[d->index[slot] - 1];
    if (e->hash != hash) continue;
    bool same;
    if (!pst_engine_tpl_equal(c, &e->key, key, &same)) return false;
    if (same) {
      *out = e;
      return true;
    }
  }
  return true;
}

bool pst_engine_tpl_dict_set(tpl_ctx *c, tpl_dict *d, tpl_val key, tpl_val value) {
  uint64_t hash;
  tpl_entry *e;
  if (!hash_of(c, &key, &hash) || !find_entry(c, d, &key, hash, &e)) return false;
  if (e) {
    e->value = value;
    return true;
  }
  if (d->n == d->capacity && !grow_dict(c, d)) return false;
  d->entries[d->n++] = (tpl_entry){key, value, hash};
  if (d->index) index_entry(d, d->n - 1);
  return true;
}

bool pst_engine_tpl_dict_find(tpl_ctx *c, const tpl_dict *d, const tpl_val *key, tpl_val **ret_value) {
  uint64_t hash;
  tpl_entry *e;
  if (!hash_of(c, key, &hash) || !find_entry(c, d, key, hash, &e)) return false;
  *ret_value = e ? &e->value : NULL;
  return true;
}

tpl_val *pst_engine_tpl_dict_get(const tpl_dict *d, pst_str key) {
  uint64_t hash = pst_hash64(key.data, key.n, 1);
  if (!d->index) {
    for (size_t i = 0; i < d->n; i++) {
      const tpl_entry *e = &d->entries[i];
      if (e->hash == hash && e->key.kind == TPL_STR && pst_str_equal(pst_engine_tpl_view(e->key.u.s), key))
        return &d->entries[i].value;
    }
    return NULL;
  }
  for (size_t slot = (size_t)hash & (d->index_size - 1); d->index[slot]; slot = (slot + 1) & (d->index_size - 1)) {
    tpl_entry *e = &d->entries[d->index[slot] - 1];
    if (e->hash == hash && e->key.kind == TPL_STR && pst_str_equal(pst_engine_tpl_view(e->key.u.s), key))
      return &e->value;
  }
  return NULL;
}

bool pst_engine_tpl_dict_put(tpl_ctx *c, tpl_dict *d, const char *key, tpl_val value) {
  const tpl_str *s = pst_engine_tpl_str_view(c, pst_str_from(key), false);
  return s && pst_engine_tpl_dict_set(c, d, pst_engine_tpl_string(s), value);
}

/* ---- truth, equality, order ------------------------------------------------------------------------------------- */

bool pst_engine_tpl_truth(tpl_ctx *c, const tpl_val *v, bool *out) {
  switch (v->kind) {
  case TPL_MISSING:
  case TPL_UNDEFINED:
  case TPL_NONE: *out = false; return true;
  case TPL_BOOL: *out = v->u.b; return true;
  case TPL_INT: *out = v->u.i != 0; return true;
  case TPL_FLOAT: *out = v->u.f != 0.0; return true;
  case TPL_STR: *out = v->u.s->n != 0; return true;
  case TPL_LIST:
  case TPL_TUPLE: *out = v->u.list->n != 0; return true;
  case TPL_DICT: *out = v->u.dict->n != 0; return true;
  case TPL_VIEW: *out = v->u.view->dict->n != 0; return true;
  case TPL_RANGE: *out = v->u.range->n != 0; return true;
  case TPL_LOOP: {
    int64_t n;
    if (!pst_engine_tpl_length(c, v, &n)) return false;
    *out = n != 0;
    return true;
  }
  default: *out = true; return true;
  }
}

static bool is_number(const tpl_val *v) { return v->kind == TPL_BOOL || v->kind == TPL_INT || v->kind == TPL_FLOAT; }
static int64_t int_of(const tpl_val *v) { return v->kind == TPL_BOOL ? v->u.b : v->u.i; }

/* -1, 0, 1, or 2 when a NaN takes part. */
static int compare_numbers(const tpl_val *a, const tpl_val *b) {
  if (a->kind != TPL_FLOAT && b->kind != TPL_FLOAT) return (int_of(a) > int_of(b)) - (int_of(a) < int_of(b));
  if (a->kind == TPL_FLOAT && b->kind == TPL_FLOAT) {
    if (isnan(a->u.f) || isnan(b->u.f)) return 2;
    return (a->u.f > b->u.f) - (a->u.f < b->u.f);
  }
  /* exact, as Python compares an int with a float */
  double f = a->kind == TPL_FLOAT ? a->u.f : b->u.f;
  int64_t i = a->kind == TPL_FLOAT ? int_of(b) : int_of(a);
  if (isnan(f)) return 2;
  int order; /* of i against f */
  if (f >= 9223372036854775808.0)
    order = -1;
  else if (f < -9223372036854775808.0)
    order = 1;
  else {
    double whole = trunc(f);
    int64_t fi = (int64_t)whole;
    order = i != fi ? (i > fi) - (i < fi) : (f < whole) - (f > whole);
  }
  return a->kind == TPL_FLOAT ? -order : order;
}

static bool equal_items(tpl_ctx *c, const tpl_list *a, const tpl_list *b, bool *out) {
  *out = a->n == b->n;
  for (size_t i = 0; *out && i < a->n; i++) {
    if (!pst_engine_tpl_equal(c, &a->items[i], &b->items[i], out)) return false;
  }
  return true;
}

static bool equal_dicts(tpl_ctx *c, const tpl_dict *a, const tpl_dict *b, bool *out) {
  *out = a->n == b->n;
  for (size_t i = 0; *out && i < a->n; i++) {
    tpl_val *other;
    if (!pst_engine_tpl_dict_find(c, b, &a->entries[i].key, &other)) return false;
    *out = other != NULL;
    if (other && !pst_engine_tpl_equal(c, &a->entries[i].value, other, out)) return false;
  }
  return true;
}

bool pst_engine_tpl_equal(tpl_ctx *c, const tpl_val *a, const tpl_val *b, bool *out) {
  *out = false;
  if (is_number(a) && is_number(b)) {
    *out = compare_numbers(a, b) == 0;
    return true;
  }
  if (a->kind != b->kind) return true;
  switch (a->kind) {
  case TPL_NONE:
  case TPL_UNDEFINED: *out = true; return true;
  case TPL_STR:
  case TPL_BIGINT:
    *out = a->u.s == b->u.s || pst_str_equal(pst_engine_tpl_view(a->u.s), pst_engine_tpl_view(b->u.s));
    return pst_engine_tpl_charge(c, PST_MIN(a->u.s->n, b->u.s->n));
  case TPL_LIST:
  case TPL_TUPLE:
  case TPL_DICT: {
    if (!pst_engine_tpl_enter(c)) return false;
    bool ok =
        a->kind == TPL_DICT ? equal_dicts(c, a->u.dict, b->u.dict, out) : equal_items(c, a->u.list, b->u.list, out);
    pst_engine_tpl_leave(c);
    return ok;
  }
  case TPL_RANGE: {
    const tpl_range *x = a->u.range, *y = b->u.range;
    *out = x->n == y->n && (!x->n || (x->start == y->start && (x->n == 1 || x->step == y->step)));
    return true;
  }
  case TPL_VIEW:
    if (a->u.view->what != TPL_VALUES && a->u.view->what == b->u.view->what)
      return equal_dicts(c, a->u.view->dict, b->u.view->dict, out);
    return true;
  default: *out = a->u.function == b->u.function; return true;
  }
}

static bool decide(int order, tpl_op op) {
  if (order == 2) return false;
  return op == TPL_OP_LT ? order < 0 : op == TPL_OP_LE ? order <= 0 : op == TPL_OP_GT ? order > 0 : order >= 0;
}

bool pst_engine_tpl_order(tpl_ctx *c, const tpl_val *a, const tpl_val *b, tpl_op op, bool *out) {
  if (is_number(a) && is_number(b)) {
    *out = decide(compare_numbers(a, b), op);
    return true;
  }
  if (a->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, a);
  if (b->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, b);
  if (a->kind == TPL_STR && b->kind == TPL_STR) {
    size_t n = PST_MIN(a->u.s->n, b->u.s->n);
    int order = n ? memcmp(a->u.s->data, b->u.s->data, n) : 0; /* UTF-8 sorts as code points do */
    if (!order) order = (a->u.s->n > b->u.s->n) - (a->u.s->n < b->u.s->n);
    *out = decide(order < 0 ? -1 : order > 0, op);
    return pst_engine_tpl_charge(c, n);
  }
  if (a->kind == b->kind && (a->kind == TPL_LIST || a->kind == TPL_TUPLE)) {
    const tpl_list *x = a->u.list, *y = b->u.list;
    for (size_t i = 0; i < x->n && i < y->n; i++) {
      bool same;
      if (!pst_engine_tpl_equal(c, &x->items[i], &y->items[i], &same)) return false;
      if (same) continue;
      if (!pst_engine_tpl_enter(c)) return false;
      bool ok = pst_engine_tpl_order(c, &x->items[i], &y->items[i], op, out);
      pst_engine_tpl_leave(c);
      return ok;
    }
    *out = decide((x->n > y->n) - (x->n < y->n), op);
    return true;
  }
  if (a->kind == TPL_BIGINT || b->kind == TPL_BIGINT)
    return pst_engine_tpl_fail_unsupported(c, "arithmetic with whole numbers beyond 64 bits");
  static const char *const signs[] = {[TPL_OP_LT] = "<", [TPL_OP_LE] = "<=", [TPL_OP_GT] = ">", [TPL_OP_GE] = ">="};
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' not supported between instances of '%s' and '%s'", signs[op],
                             pst_engine_tpl_type_name(a), pst_engine_tpl_type_name(b));
}

bool pst_engine_tpl_contains(tpl_ctx *c, const tpl_val *item, const tpl_val *of, bool *out) {
  *out = false;
  switch (of->kind) {
  case TPL_STR:
    if (item->kind != TPL_STR)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'in <string>' requires string as left operand, not %s",
                                 pst_engine_tpl_type_name(item));
    *out = pst_str_find(pst_engine_tpl_view(of->u.s), pst_engine_tpl_view(item->u.s), 0) != SIZE_MAX;
    return pst_engine_tpl_charge(c, of->u.s->n);
  case TPL_VIEW:
  case TPL_DICT: {
    if (of->kind == TPL_VIEW && of->u.view->what != TPL_KEYS) break;
    tpl_val *found;
    if (!pst_engine_tpl_dict_find(c, of->kind == TPL_DICT ? of->u.dict : of->u.view->dict, item, &found)) return false;
    *out = found != NULL;
    return true;
  }
  case TPL_LIST:
  case TPL_TUPLE:
  case TPL_ITER:
  case TPL_RANGE:
  case TPL_UNDEFINED: break;
  default:
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "argument of type '%s' is not iterable",
                               pst_engine_tpl_type_name(of));
  }
  tpl_walk w;
  if (!pst_engine_tpl_walk(c, of, &w)) return false;
  for (tpl_val v; !*out;) {
    if (!pst_engine_tpl_next(c, &w, &v)) return false;
    if (v.kind == TPL_MISSING) break;
    if (!pst_engine_tpl_equal(c, &v, item, out)) return false;
  }
  return true;
}

bool pst_engine_tpl_length(tpl_ctx *c, const tpl_val *v, int64_t *out) {
  switch (v->kind) {
  case TPL_STR: *out = (int64_t)pst_engine_tpl_chars(v->u.s); return pst_engine_tpl_charge(c, v->u.s->n);
  case TPL_LIST:
  case TPL_TUPLE: *out = (int64_t)v->u.list->n; return true;
  case TPL_DICT: *out = (int64_t)v->u.dict->n; return true;
  case TPL_VIEW: *out = (int64_t)v->u.view->dict->n; return true;
  case TPL_RANGE: *out = (int64_t)v->u.range->n; return true;
  case TPL_UNDEFINED: *out = 0; return true;
  case TPL_LOOP: {
    tpl_val n;
    if (!pst_engine_tpl_loop_attr(c, v->u.loop, PST_STR("length"), &n)) return false;
    *out = n.u.i;
    return true;
  }
  default:
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "object of type '%s' has no len()", pst_engine_tpl_type_name(v));
  }
}

/* ---- str and repr ----------------------------------------------------------------------------------------------- */

static bool put_items(tpl_builder *b, const tpl_val *items, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if ((i && !pst_engine_tpl_puts(b, ", ", false)) || !pst_engine_tpl_repr(b, &items[i])) return false;
  }
  return true;
}

static bool put_dict(tpl_builder *b, const tpl_dict *d) {
  bool ok = pst_engine_tpl_puts(b, "{", false);
  for (size_t i = 0; ok && i < d->n; i++) {
    ok = (!i || pst_engine_tpl_puts(b, ", ", false)) && pst_engine_tpl_repr(b, &d->entries[i].key) &&
         pst_engine_tpl_puts(b, ": ", false) && pst_engine_tpl_repr(b, &d->entries[i].value);
  }
  return ok && pst_engine_tpl_puts(b, "}", false);
}

static bool put_view(tpl_builder *b, const tpl_val *v) {
  bool ok = pst_engine_tpl_puts(b, pst_engine_tpl_type_name(v), false) && pst_engine_tpl_puts(b, "([", false);
  const tpl_view *view = v->u.view;
  for (size_t i = 0; ok && i < view->dict->n; i++) {
    const tpl_entry *e = &view->dict->entries[i];
    ok = !i || pst_engine_tpl_puts(b, ", ", false);
    if (view->what == TPL_ITEMS) {
      ok = ok && pst_engine_tpl_puts(b, "(", false) && pst_engine_tpl_repr(b, &e->key) &&
           pst_engine_tpl_puts(b, ", ", false) && pst_engine_tpl_repr(b, &e->value) &&
           pst_engine_tpl_puts(b, ")", false);
    } else {
      ok = ok && pst_engine_tpl_repr(b, view->what == TPL_KEYS ? &e->key : &e->value);
    }
  }
  return ok && pst_engine_tpl_puts(b, "])", false);
}

static bool put_object(tpl_builder *b, const tpl_val *v) {
  char text[120];
  switch (v->kind) {
  case TPL_LIST:
    return pst_engine_tpl_puts(b, "[", false) && put_items(b, v->u.list->items, v->u.list->n) &&
           pst_engine_tpl_puts(b, "]", false);
  case TPL_TUPLE:
    return pst_engine_tpl_puts(b, "(", false) && put_items(b, v->u.list->items, v->u.list->n) &&
           pst_engine_tpl_puts(b, v->u.list->n == 1 ? ",)" : ")", false);
  case TPL_DICT: return put_dict(b, v->u.dict);
  case TPL_VIEW: return put_view(b, v);
  case TPL_NAMESPACE:
    return pst_engine_tpl_puts(b, "<Namespace ", false) && put_dict(b, v->u.dict) && pst_engine_tpl_puts(b, ">", false);
  case TPL_RANGE:
    if (v->u.range->step == 1)
      snprintf(text, sizeof text, "range(%lld, %lld)", (long long)v->u.range->start, (long long)v->u.range->stop);
    else
      snprintf(text, sizeof text, "range(%lld, %lld, %lld)", (long long)v->u.range->start, (long long)v->u.range->stop,
               (long long)v->u.range->step);
    return pst_engine_tpl_puts(b, text, false);
  case TPL_MACRO:
    return pst_engine_tpl_puts(b, "<Macro '", false) &&
           pst_engine_tpl_put(b, v->u.macro->node->name.data, v->u.macro->node->name.n, false) &&
           pst_engine_tpl_puts(b, "'>", false);
  case TPL_LOOP: {
    int64_t n;
    if (!pst_engine_tpl_length(b->c, v, &n)) return false;
    snprintf(text, sizeof text, "<LoopContext %lld/%lld>", (long long)v->u.loop->index0 + 1, (long long)n);
    return pst_engine_tpl_puts(b, text, false);
  }
  default: return pst_engine_tpl_fail_unsupported(b->c, "the text of a function or generator");
  }
}

bool pst_engine_tpl_repr(tpl_builder *b, const tpl_val *v) {
  char text[40];
  switch (v->kind) {
  case TPL_MISSING:
  case TPL_UNDEFINED: return pst_engine_tpl_puts(b, "Undefined", false);
  case TPL_NONE: return pst_engine_tpl_puts(b, "None", false);
  case TPL_BOOL: return pst_engine_tpl_puts(b, v->u.b ? "True" : "False", false);
  case TPL_INT: snprintf(text, sizeof text, "%lld", (long long)v->u.i); return pst_engine_tpl_puts(b, text, false);
  case TPL_BIGINT: return pst_engine_tpl_put_str(b, v->u.s);
  case TPL_FLOAT: pst_engine_tpl_float_repr(v->u.f, text); return pst_engine_tpl_puts(b, text, false);
  case TPL_STR:
    if (!v->u.s->markup) return pst_engine_tpl_put_repr(b, v->u.s);
    return pst_engine_tpl_puts(b, "Markup(", false) && pst_engine_tpl_put_repr(b, v->u.s) &&
           pst_engine_tpl_puts(b, ")", false);
  default: break;
  }
  if (!pst_engine_tpl_enter(b->c)) return false;
  bool ok = pst_engine_tpl_charge(b->c, 0) && put_object(b, v);
  pst_engine_tpl_leave(b->c);
  return ok;
}

bool pst_engine_tpl_print(tpl_builder *b, const tpl_val *v) {
  if (v->kind == TPL_STR) return pst_engine_tpl_put_str(b, v->u.s);
  if (v->kind == TPL_UNDEFINED || v->kind == TPL_MISSING) return !b->c->failed;
  return pst_engine_tpl_repr(b, v);
}

bool pst_engine_tpl_to_str(tpl_ctx *c, const tpl_val *v, const tpl_str **out) {
  if (v->kind == TPL_STR) {
    *out = v->u.s;
    return true;
  }
  tpl_builder b = pst_engine_tpl_builder(c);
  tpl_val text;
  if (!pst_engine_tpl_print(&b, v) || !pst_engine_tpl_build(&b, false, &text)) return false;
  *out = text.u.s;
  return true;
}

/* ---- iteration -------------------------------------------------------------------------------------------------- */

bool pst_engine_tpl_is_iterable(const tpl_val *v) {
  switch (v->kind) {
  case TPL_UNDEFINED:
  case TPL_STR:
  case TPL_LIST:
  case TPL_TUPLE:
  case TPL_DICT:
  case TPL_VIEW:
  case TPL_ITER:
  case TPL_RANGE:
  case TPL_LOOP: return true;
  default: return false;
  }
}

bool pst_engine_tpl_walk(tpl_ctx *c, const tpl_val *v, tpl_walk *out) {
  if (v->kind == TPL_LOOP) return pst_engine_tpl_fail_unsupported(c, "iteration over 'loop' itself");
  if (!pst_engine_tpl_is_iterable(v))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' object is not iterable", pst_engine_tpl_type_name(v));
  *out = (tpl_walk){*v, 0, 0};
  return true;
}

static bool next_entry(tpl_ctx *c, const tpl_entry *e, tpl_view_kind what, tpl_val *out) {
  if (what != TPL_ITEMS) {
    *out = what == TPL_KEYS ? e->key : e->value;
    return true;
  }
  tpl_list *pair = pst_engine_tpl_list_new(c, 2);
  if (!pair || !pst_engine_tpl_list_push(c, pair, e->key) || !pst_engine_tpl_list_push(c, pair, e->value)) return false;
  *out = pst_engine_tpl_list(TPL_TUPLE, pair);
  return true;
}

bool pst_engine_tpl_next(tpl_ctx *c, tpl_walk *w, tpl_val *out) {
  *out = (tpl_val){.kind = TPL_MISSING};
  if (!pst_engine_tpl_charge(c, 0)) return false;
  switch (w->of.kind) {
  case TPL_LIST:
  case TPL_TUPLE:
    if (w->position < w->of.u.list->n) *out = w->of.u.list->items[w->position++];
    return true;
  case TPL_ITER:
    if (w->of.u.list->position < w->of.u.list->n) *out = w->of.u.list->items[w->of.u.list->position++];
    return true;
  case TPL_DICT:
    if (w->position < w->of.u.dict->n) *out = w->of.u.dict->entries[w->position++].key;
    return true;
  case TPL_VIEW:
    return w->position >= w->of.u.view->dict->n ||
           next_entry(c, &w->of.u.view->dict->entries[w->position++], w->of.u.view->what, out);
  case TPL_RANGE:
    if (w->position < w->of.u.range->n)
      *out = pst_engine_tpl_int(w->of.u.range->start + (int64_t)w->position++ * w->of.u.range->step);
    return true;
  case TPL_STR: {
    if (w->position >= w->of.u.s->n) return true;
    size_t start = w->position;
    pst_utf8_next(w->of.u.s->data, w->of.u.s->n, &w->position);
    const tpl_str *s = pst_engine_tpl_str_slice(c, w->of.u.s, start, w->position);
    *out = pst_engine_tpl_string(s);
    return s != NULL;
  }
  default: return true;
  }
}

bool pst_engine_tpl_collect(tpl_ctx *c, const tpl_val *v, tpl_list **out) {
  tpl_walk w;
  tpl_list *l = pst_engine_tpl_list_new(c, 0);
  if (!l || !pst_engine_tpl_walk(c, v, &w)) return false;
  for (tpl_val item;;) {
    if (!pst_engine_tpl_next(c, &w, &item)) return false;
    if (item.kind == TPL_MISSING) break;
    if (!pst_engine_tpl_list_push(c, l, item)) return false;
  }
  *out = l;
  return true;
}

/* Stable merge sort by `keys`, items moving along; only < is asked, as Python does. */
bool pst_engine_tpl_sort(tpl_ctx *c, tpl_val *items, tpl_val *keys, size_t n, bool reverse) {
  if (n < 2) return true;
  tpl_val *from = items, *from_keys = keys;
  tpl_val *to = pst_engine_tpl_alloc(c, n * sizeof *to), *to_keys = pst_engine_tpl_alloc(c, n * sizeof *to_keys);
  if (!to || !to_keys) return false;
  for (size_t width = 1; width < n; width *= 2) {
    for (size_t start = 0; start < n; start += 2 * width) {
      size_t middle = PST_MIN(start + width, n), end = PST_MIN(start + 2 * width, n);
      size_t left = start, right = middle;
      for (size_t i = start; i < end; i++) {
        bool take_right = left >= middle;
        if (!take_right && right < end) {
          const tpl_val *a = reverse ? &from_keys[left] : &from_keys[right];
          const tpl_val *b = reverse ? &from_keys[right] : &from_keys[left];
          if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_order(c, a, b, TPL_OP_LT, &take_right)) return false;
        }
        size_t at = take_right ? right++ : left++;
        to[i] = from[at];
        to_keys[i] = from_keys[at];
      }
    }
    tpl_val *swap = from;
    from = to;
    to = swap;
    swap = from_keys;
    from_keys = to_keys;
    to_keys = swap;
  }
  if (from != items) {
    memcpy(items, from, n * sizeof *items);
    memcpy(keys, from_keys, n * sizeof *keys);
  }
  return true;
}
