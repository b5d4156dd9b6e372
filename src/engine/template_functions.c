/* What templates can call beside filters: global functions, methods of values, and how arguments find their names.
 *
 * Owns the tables of methods; a row without a function is a method that Python has and this does not, and is refused by
 * name. Methods that change a list or dictionary are named so that the sandbox's own refusal can be given. Methods of
 * strings are in template_methods.c. */
#include "engine/template_types.h"

#include <string.h>
#include <time.h>

bool pst_engine_tpl_arguments(tpl_ctx *c, const char *function, const tpl_args *args, const char *const *names,
                              size_t n, size_t n_required, tpl_val *out) {
  for (size_t i = 0; i < n; i++) out[i] = (tpl_val){.kind = TPL_MISSING};
  if (args->n > n)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s() takes at most %zu argument%s (%zu given)", function, n,
                               n == 1 ? "" : "s", args->n);
  for (size_t i = 0; i < args->n; i++) out[i] = args->items[i];
  for (size_t i = 0; i < args->n_named; i++) {
    size_t k = 0;
    while (k < n && !pst_str_is(args->names[i], names[k])) k++;
    if (k == n)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s() got an unexpected keyword argument '%.*s'", function,
                                 (int)PST_MIN(args->names[i].n, 100u), args->names[i].data);
    if (out[k].kind != TPL_MISSING)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s() got multiple values for argument '%s'", function, names[k]);
    out[k] = args->named[i];
  }
  for (size_t i = 0; i < n_required; i++) {
    if (out[i].kind == TPL_MISSING)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s() missing 1 required positional argument: '%s'", function,
                                 names[i]);
  }
  return true;
}

bool pst_engine_tpl_want_int(tpl_ctx *c, const tpl_val *v, int64_t *out) {
  if (v->kind == TPL_INT || v->kind == TPL_BOOL) {
    *out = v->kind == TPL_INT ? v->u.i : v->u.b;
    return true;
  }
  if (v->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, v);
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' object cannot be interpreted as an integer",
                             pst_engine_tpl_type_name(v));
}

bool pst_engine_tpl_want_str(tpl_ctx *c, const tpl_val *v, const char *function, const tpl_str **out) {
  if (v->kind == TPL_STR) {
    *out = v->u.s;
    return true;
  }
  pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s() argument must be str, not %s", function, pst_engine_tpl_type_name(v));
  return false;
}

const tpl_function *pst_engine_tpl_find_function(const tpl_function *table, pst_str name) {
  for (; table->name; table++) {
    if (pst_str_is(name, table->name)) return table;
  }
  return NULL;
}

/* ---- globals ---------------------------------------------------------------------------------------------------- */

static bool global_range(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  int64_t v[3] = {0, 0, 1};
  (void)self;
  if (args->n_named) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "range() takes no keyword arguments");
  if (args->n < 1 || args->n > 3)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                               args->n ? "range expected at most 3 arguments, got %zu"
                                       : "range expected at least 1 argument, got %zu",
                               args->n);
  if (args->n == 1) {
    if (!pst_engine_tpl_want_int(c, &args->items[0], &v[1])) return false;
  } else {
    for (size_t i = 0; i < args->n; i++) {
      if (!pst_engine_tpl_want_int(c, &args->items[i], &v[i])) return false;
    }
  }
  if (!v[2]) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "range() arg 3 must not be zero");
  uint64_t n = 0;
  if (v[2] > 0 && v[0] < v[1]) n = ((uint64_t)v[1] - (uint64_t)v[0] - 1) / (uint64_t)v[2] + 1;
  if (v[2] < 0 && v[0] > v[1]) n = ((uint64_t)v[0] - (uint64_t)v[1] - 1) / (0 - (uint64_t)v[2]) + 1;
  if (n > TPL_MAX_RANGE)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                               "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", TPL_MAX_RANGE);
  tpl_range *r = pst_engine_tpl_alloc(c, sizeof *r);
  if (!r) return false;
  *r = (tpl_range){v[0], v[1], v[2], (size_t)n};
  *out = (tpl_val){.kind = TPL_RANGE, .u.range = r};
  return true;
}

/* dict(mapping or pairs, **names): also how a namespace starts. */
static bool fill_dict(tpl_ctx *c, const tpl_args *args, tpl_dict *d) {
  if (args->n > 1) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "dict expected at most 1 argument, got %zu", args->n);
  if (args->n && args->items[0].kind == TPL_DICT) {
    const tpl_dict *from = args->items[0].u.dict;
    for (size_t i = 0; i < from->n; i++) {
      if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_dict_set(c, d, from->entries[i].key, from->entries[i].value))
        return false;
    }
  } else if (args->n) {
    tpl_list *pairs, *pair;
    if (!pst_engine_tpl_collect(c, &args->items[0], &pairs)) return false;
    for (size_t i = 0; i < pairs->n; i++) {
      if (!pst_engine_tpl_is_iterable(&pairs->items[i]))
        return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                                   "cannot convert dictionary update sequence element #%zu to a sequence", i);
      if (!pst_engine_tpl_collect(c, &pairs->items[i], &pair)) return false;
      if (pair->n != 2)
        return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                                   "dictionary update sequence element #%zu has length %zu; 2 is required", i, pair->n);
      if (!pst_engine_tpl_dict_set(c, d, pair->items[0], pair->items[1])) return false;
    }
  }
  for (size_t i = 0; i < args->n_named; i++) {
    tpl_val key = pst_engine_tpl_string(pst_engine_tpl_str_view(c, args->names[i], false));
    if (key.kind != TPL_STR || !pst_engine_tpl_dict_set(c, d, key, args->named[i])) return false;
  }
  return true;
}

static bool global_dict(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  tpl_dict *d = pst_engine_tpl_dict_new(c);
  (void)self;
  if (!d || !fill_dict(c, args, d)) return false;
  *out = pst_engine_tpl_dict(d);
  return true;
}

static bool global_namespace(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  if (!global_dict(c, self, args, out)) return false;
  out->kind = TPL_NAMESPACE;
  for (size_t i = 0; i < out->u.dict->n; i++) {
    const tpl_val *key = &out->u.dict->entries[i].key;
    if (key->kind == TPL_STR && key->u.s->n && key->u.s->data[0] == '_')
      return pst_engine_tpl_fail(
          c, PST_E_BAD_INPUT,
          "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '%.*s'. "
          "Please rename the attribute.",
          (int)PST_MIN(key->u.s->n, 200u), key->u.s->data);
  }
  return true;
}

static bool global_raise(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  static const char *const names[] = {"message"};
  tpl_val message;
  const tpl_str *text;
  (void)self, (void)out;
  if (!pst_engine_tpl_arguments(c, "raise_exception", args, names, 1, 1, &message) ||
      !pst_engine_tpl_to_str(c, &message, &text))
    return false;
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%.*s", (int)PST_MIN(text->n, 1000u), text->data);
}

/* %f, %z and %Z are Python's own: no microseconds and no zone here, as for a naive time on the full second. */
static bool expand_time_format(tpl_ctx *c, const tpl_str *format, tpl_val *out) {
  tpl_builder b = pst_engine_tpl_builder(c);
  bool ok = true;
  for (size_t i = 0; ok && i < format->n; i++) {
    char next = i + 1 < format->n ? format->data[i + 1] : '\0';
    if (format->data[i] == '\0') return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "embedded null character");
    if (format->data[i] != '%' || !next)
      ok = pst_engine_tpl_put(&b, format->data + i, 1, false);
    else if (next == 'f')
      ok = pst_engine_tpl_puts(&b, "000000", false), i++;
    else if (next == 'z' || next == 'Z')
      i++;
    else
      ok = pst_engine_tpl_put(&b, format->data + i++, 2, false);
  }
  return ok && pst_engine_tpl_put(&b, "|", 2, false) && pst_engine_tpl_build(&b, false, out); /* "|" and a terminator */
}

static bool global_strftime_now(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  static const char *const names[] = {"format"};
  tpl_val v, format;
  (void)self;
  if (!pst_engine_tpl_arguments(c, "strftime_now", args, names, 1, 1, &v)) return false;
  if (v.kind != TPL_STR)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "strftime() argument 1 must be str, not %s",
                               pst_engine_tpl_type_name(&v));
  if (!expand_time_format(c, v.u.s, &format)) return false;
  time_t now = (time_t)c->now_unix_s;
  struct tm tm;
  if (!(c->clock_fixed ? gmtime_r(&now, &tm) : localtime_r(&now, &tm)))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "year out of range");
  char text[1024];
  size_t n = strftime(text, sizeof text, format.u.s->data, &tm);
  if (!n) return pst_engine_tpl_fail(c, PST_E_LIMIT, "strftime_now makes a text of more than %zu bytes", sizeof text);
  const tpl_str *s =
      pst_engine_tpl_str_new(c, (pst_str){text, n - 1}, false); /* without the bar that made it not empty */
  *out = pst_engine_tpl_string(s);
  return s != NULL;
}

static bool global_cycler(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  (void)self;
  if (!args->n) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "at least one item has to be provided");
  tpl_cycler *cycler = pst_engine_tpl_alloc(c, sizeof *cycler);
  tpl_list *items = pst_engine_tpl_list_new(c, args->n);
  if (!cycler || !items) return false;
  memcpy(items->items, args->items, args->n * sizeof *items->items);
  items->n = args->n;
  *cycler = (tpl_cycler){items, 0};
  *out = (tpl_val){.kind = TPL_CYCLER, .u.cycler = cycler};
  return true;
}

static bool global_joiner(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  static const char *const names[] = {"sep"};
  tpl_val v;
  (void)self;
  if (!pst_engine_tpl_arguments(c, "joiner", args, names, 1, 0, &v)) return false;
  tpl_joiner *joiner = pst_engine_tpl_alloc(c, sizeof *joiner);
  const tpl_str *separator = v.kind == TPL_MISSING ? pst_engine_tpl_str_view(c, PST_STR(", "), true) : NULL;
  if (!joiner || (v.kind == TPL_MISSING && !separator) ||
      (v.kind != TPL_MISSING && !pst_engine_tpl_to_str(c, &v, &separator)))
    return false;
  *joiner = (tpl_joiner){separator, false};
  *out = (tpl_val){.kind = TPL_JOINER, .u.joiner = joiner};
  return true;
}

const tpl_function pst_engine_tpl_globals[] = {
    {"range", global_range},
    {"dict", global_dict},
    {"namespace", global_namespace},
    {"raise_exception", global_raise},
    {"cycler", global_cycler},
    {"joiner", global_joiner},
    {"strftime_now", global_strftime_now},
    {"lipsum", NULL},
    {NULL, NULL},
};

/* ---- methods of dictionaries, lists and helpers ------------------------------------------------------------------ */

static bool no_arguments(tpl_ctx *c, const char *name, const tpl_args *args) {
  if (!args->n && !args->n_named) return true;
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s() takes no arguments (%zu given)", name, args->n + args->n_named);
}

static bool view_of(tpl_ctx *c, const tpl_val *self, const tpl_args *args, const char *name, tpl_view_kind what,
                    tpl_val *out) {
  if (!no_arguments(c, name, args)) return false;
  tpl_view *view = pst_engine_tpl_alloc(c, sizeof *view);
  if (!view) return false;
  *view = (tpl_view){self->u.dict, what};
  *out = (tpl_val){.kind = TPL_VIEW, .u.view = view};
  return true;
}
static bool dict_items(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  return view_of(c, self, args, "dict.items", TPL_ITEMS, out);
}
static bool dict_keys(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  return view_of(c, self, args, "dict.keys", TPL_KEYS, out);
}
static bool dict_values(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  return view_of(c, self, args, "dict.values", TPL_VALUES, out);
}

static bool dict_get(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  if (args->n_named) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "dict.get() takes no keyword arguments");
  if (args->n < 1 || args->n > 2)
    return pst_engine_tpl_fail(
        c, PST_E_BAD_INPUT,
        args->n ? "get expected at most 2 arguments, got %zu" : "get expected at least 1 argument, got %zu", args->n);
  tpl_val *found;
  if (!pst_engine_tpl_dict_find(c, self->u.dict, &args->items[0], &found)) return false;
  *out = found ? *found : args->n == 2 ? args->items[1] : pst_engine_tpl_none();
  return true;
}

static bool dict_copy(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  tpl_args one = {.items = self, .n = 1};
  return no_arguments(c, "dict.copy", args) && global_dict(c, NULL, &one, out);
}

static const tpl_function dict_methods[] = {
    {"items", dict_items}, {"keys", dict_keys}, {"values", dict_values}, {"get", dict_get}, {"copy", dict_copy},
    {"fromkeys", NULL},    {NULL, NULL},
};

static bool list_index(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  if (args->n != 1 || args->n_named) return pst_engine_tpl_fail_unsupported(c, "index() with other than one argument");
  for (size_t i = 0; i < self->u.list->n; i++) {
    bool same;
    if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_equal(c, &self->u.list->items[i], &args->items[0], &same))
      return false;
    if (!same) continue;
    *out = pst_engine_tpl_int((int64_t)i);
    return true;
  }
  if (self->kind == TPL_TUPLE) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "tuple.index(x): x not in tuple");
  tpl_builder b = pst_engine_tpl_builder(c);
  tpl_val text;
  if (!pst_engine_tpl_repr(&b, &args->items[0]) || !pst_engine_tpl_build(&b, false, &text)) return false;
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%.*s is not in list", (int)PST_MIN(text.u.s->n, 300u),
                             text.u.s->data);
}

static bool list_count(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  if (args->n != 1 || args->n_named)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "list.count() takes exactly one argument (%zu given)", args->n);
  int64_t n = 0;
  for (size_t i = 0; i < self->u.list->n; i++) {
    bool same;
    if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_equal(c, &self->u.list->items[i], &args->items[0], &same))
      return false;
    n += same;
  }
  *out = pst_engine_tpl_int(n);
  return true;
}

static bool list_copy(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  tpl_list *copy;
  if (!no_arguments(c, "list.copy", args) || !pst_engine_tpl_collect(c, self, &copy)) return false;
  *out = pst_engine_tpl_list(TPL_LIST, copy);
  return true;
}

static const tpl_function list_methods[] = {
    {"index", list_index}, {"count", list_count}, {"copy", list_copy}, {NULL, NULL}};
static const tpl_function range_methods[] = {{"index", NULL}, {"count", NULL}, {NULL, NULL}};

static bool loop_cycle(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  if (!args->n) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "no items for cycling given");
  *out = args->items[(size_t)self->u.loop->index0 % args->n];
  return true;
}

static bool loop_changed(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  tpl_list *values = pst_engine_tpl_list_new(c, args->n);
  if (!values) return false;
  if (args->n) memcpy(values->items, args->items, args->n * sizeof *values->items);
  values->n = args->n;
  tpl_val now = pst_engine_tpl_list(TPL_TUPLE, values);
  bool same;
  if (!pst_engine_tpl_equal(c, &self->u.loop->changed, &now, &same)) return false;
  self->u.loop->changed = now;
  *out = pst_engine_tpl_bool(!same);
  return true;
}

static const tpl_function loop_methods[] = {{"cycle", loop_cycle}, {"changed", loop_changed}, {NULL, NULL}};

static bool cycler_next(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  tpl_cycler *cycler = self->u.cycler;
  if (!no_arguments(c, "Cycler.next", args)) return false;
  *out = cycler->items->items[cycler->position];
  cycler->position = (cycler->position + 1) % cycler->items->n;
  return true;
}

static bool cycler_reset(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  if (!no_arguments(c, "Cycler.reset", args)) return false;
  self->u.cycler->position = 0;
  *out = pst_engine_tpl_none();
  return true;
}

static const tpl_function cycler_methods[] = {{"next", cycler_next}, {"reset", cycler_reset}, {NULL, NULL}};

/* What the immutable sandbox forbids. */
static const char *const dict_mutators[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
static const char *const list_mutators[] = {"append", "clear",  "pop",    "reverse", "insert",
                                            "sort",   "extend", "remove", NULL};

static bool is_one_of(const char *const *names, pst_str name) {
  for (; names && *names; names++) {
    if (pst_str_is(name, *names)) return true;
  }
  return false;
}

const tpl_function *pst_engine_tpl_find_method(const tpl_val *self, pst_str name, bool *ret_mutates) {
  const tpl_function *table;
  const char *const *mutators = NULL;
  switch (self->kind) {
  case TPL_STR: table = pst_engine_tpl_str_methods; break;
  case TPL_DICT:
    table = dict_methods;
    mutators = dict_mutators;
    break;
  case TPL_LIST:
    table = list_methods;
    mutators = list_mutators;
    break;
  case TPL_TUPLE:
    table = list_methods;
    if (pst_str_is(name, "copy")) return NULL;
    break;
  case TPL_RANGE: table = range_methods; break;
  case TPL_LOOP: table = loop_methods; break;
  case TPL_CYCLER: table = cycler_methods; break;
  default: return NULL;
  }
  *ret_mutates = is_one_of(mutators, name);
  return *ret_mutates ? NULL : pst_engine_tpl_find_function(table, name);
}
