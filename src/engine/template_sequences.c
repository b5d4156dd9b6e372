/* Jinja's filters of sequences: selecting, mapping, sorting, joining.
 *
 * Where Jinja gives a generator this gives an iterator over items made at once: it is read once all the same, has no length
 * and no index. Attributes may be paths ("function.name", "items.0"). */
#include "engine/template_types.h"

#include <string.h>

#define FILTER(name) static bool filter_##name(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out)

/* ---- attributes by path ----------------------------------------------------------------------------------------- */

/* One step of a path: a name, or a number when it is all digits. */
static bool path_part(tpl_ctx *c, const tpl_str *path, size_t start, size_t end, tpl_val *out) {
  pst_str text = {path->data + start, end - start};
  bool digits = text.n > 0;
  int64_t i;
  for (size_t k = 0; k < text.n; k++) digits = digits && text.data[k] >= '0' && text.data[k] <= '9';
  if (digits && pst_parse_i64(text, 0, INT64_MAX, &i) == 0) {
    *out = pst_engine_tpl_int(i);
    return true;
  }
  *out = pst_engine_tpl_string(pst_engine_tpl_str_slice(c, path, start, end));
  return out->kind == TPL_STR;
}

/* item[path]; `attribute` NONE or MISSING: the item itself. `fallback` takes the place of what is undefined. */
static bool get_path(tpl_ctx *c, const tpl_val *item, const tpl_val *attribute, const tpl_val *fallback, tpl_val *out) {
  *out = *item;
  if (attribute->kind == TPL_NONE || attribute->kind == TPL_MISSING) return true;
  const tpl_str *path = attribute->kind == TPL_STR ? attribute->u.s : NULL;
  for (size_t start = 0;;) {
    tpl_val key = *attribute, object = *out;
    size_t end = path ? pst_str_find(pst_engine_tpl_view(path), PST_STR("."), start) : 0;
    if (path && end == SIZE_MAX) end = path->n;
    if (path && !path_part(c, path, start, end, &key)) return false;
    if (!pst_engine_tpl_getitem(c, &object, &key, out)) return false;
    if (fallback && fallback->kind != TPL_MISSING && fallback->kind != TPL_NONE && out->kind == TPL_UNDEFINED)
      *out = *fallback;
    if (!path || end >= path->n) return true;
    start = end + 1;
  }
}

static bool ignore_case(tpl_ctx *c, tpl_val *v) {
  if (v->kind != TPL_STR) return true;
  *v = pst_engine_tpl_string(pst_engine_tpl_str_case(c, v->u.s, TPL_LOWER));
  return v->kind == TPL_STR;
}

/* A sort key: one value, or for "a,b" a list of them. */
static bool sort_key(tpl_ctx *c, const tpl_val *item, const tpl_val *attribute, bool case_sensitive, tpl_val *out) {
  if (attribute->kind != TPL_STR || !memchr(attribute->u.s->data, ',', attribute->u.s->n))
    return get_path(c, item, attribute, NULL, out) && (case_sensitive || ignore_case(c, out));
  const tpl_str *s = attribute->u.s;
  tpl_list *l = pst_engine_tpl_list_new(c, 0);
  for (size_t start = 0; l;) {
    size_t end = pst_str_find(pst_engine_tpl_view(s), PST_STR(","), start);
    if (end == SIZE_MAX) end = s->n;
    tpl_val path = pst_engine_tpl_string(pst_engine_tpl_str_slice(c, s, start, end)), v;
    if (path.kind != TPL_STR || !get_path(c, item, &path, NULL, &v) || (!case_sensitive && !ignore_case(c, &v)) ||
        !pst_engine_tpl_list_push(c, l, v))
      return false;
    if (end >= s->n) break;
    start = end + 1;
  }
  if (l) *out = pst_engine_tpl_list(TPL_LIST, l);
  return l != NULL;
}

/* ---- ends, length, conversion ----------------------------------------------------------------------------------- */

FILTER(first) {
  tpl_walk w;
  if (!pst_engine_tpl_arguments(c, "do_first", args, NULL, 0, 0, NULL) || !pst_engine_tpl_walk(c, self, &w) ||
      !pst_engine_tpl_next(c, &w, out))
    return false;
  return out->kind != TPL_MISSING || pst_engine_tpl_undefined_hint(c, "No first item, sequence was empty.", out);
}

FILTER(last) {
  tpl_list *items;
  if (!pst_engine_tpl_arguments(c, "do_last", args, NULL, 0, 0, NULL)) return false;
  if (self->kind == TPL_ITER || !pst_engine_tpl_is_iterable(self))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' object is not reversible", pst_engine_tpl_type_name(self));
  if (!pst_engine_tpl_collect(c, self, &items)) return false;
  if (!items->n) return pst_engine_tpl_undefined_hint(c, "No last item, sequence was empty.", out);
  *out = items->items[items->n - 1];
  return true;
}

FILTER(length) {
  int64_t n;
  if (!pst_engine_tpl_arguments(c, "len", args, NULL, 0, 0, NULL) || !pst_engine_tpl_length(c, self, &n)) return false;
  *out = pst_engine_tpl_int(n);
  return true;
}

FILTER(list) {
  tpl_list *l;
  if (!pst_engine_tpl_arguments(c, "do_list", args, NULL, 0, 0, NULL) || !pst_engine_tpl_collect(c, self, &l))
    return false;
  *out = pst_engine_tpl_list(TPL_LIST, l);
  return true;
}

FILTER(items) {
  tpl_list *l = pst_engine_tpl_list_new(c, 0);
  if (!l || !pst_engine_tpl_arguments(c, "do_items", args, NULL, 0, 0, NULL)) return false;
  if (self->kind == TPL_DICT) {
    tpl_view view = {self->u.dict, TPL_ITEMS};
    tpl_val v = {.kind = TPL_VIEW, .u.view = &view};
    if (!pst_engine_tpl_collect(c, &v, &l)) return false;
  } else if (self->kind != TPL_UNDEFINED) {
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Can only get item pairs from a mapping.");
  }
  *out = pst_engine_tpl_list(TPL_ITER, l);
  return true;
}

FILTER(reverse) {
  tpl_list *l;
  if (!pst_engine_tpl_arguments(c, "do_reverse", args, NULL, 0, 0, NULL)) return false;
  if (self->kind == TPL_STR) {
    tpl_val none = pst_engine_tpl_none(), back = pst_engine_tpl_int(-1);
    return pst_engine_tpl_slice(c, self, &none, &none, &back, out);
  }
  if (!pst_engine_tpl_is_iterable(self)) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "argument must be iterable");
  if (!pst_engine_tpl_collect(c, self, &l)) return false;
  for (size_t i = 0; i < l->n / 2; i++) {
    tpl_val v = l->items[i];
    l->items[i] = l->items[l->n - 1 - i];
    l->items[l->n - 1 - i] = v;
  }
  *out = pst_engine_tpl_list(self->kind == TPL_ITER ? TPL_LIST : TPL_ITER, l);
  return true;
}

FILTER(join) {
  static const char *const names[] = {"d", "attribute"};
  tpl_val v[2];
  tpl_walk w;
  const tpl_str *d = NULL, *s;
  if (!pst_engine_tpl_arguments(c, "do_join", args, names, 2, 0, v) || !pst_engine_tpl_walk(c, self, &w)) return false;
  if (v[0].kind != TPL_MISSING && !pst_engine_tpl_to_str(c, &v[0], &d)) return false;
  tpl_builder b = pst_engine_tpl_builder(c);
  tpl_val item, part;
  for (bool first = true;; first = false) {
    if (!pst_engine_tpl_next(c, &w, &item)) return false;
    if (item.kind == TPL_MISSING) break;
    if (!get_path(c, &item, &v[1], NULL, &part) || !pst_engine_tpl_to_str(c, &part, &s)) return false;
    if ((d && !first && !pst_engine_tpl_put_str(&b, d)) || !pst_engine_tpl_put_str(&b, s)) return false;
  }
  return pst_engine_tpl_build(&b, false, out);
}

FILTER(sum) {
  static const char *const names[] = {"attribute", "start"};
  tpl_val v[2], item, part, total;
  tpl_walk w;
  if (!pst_engine_tpl_arguments(c, "do_sum", args, names, 2, 0, v) || !pst_engine_tpl_walk(c, self, &w)) return false;
  total = v[1].kind == TPL_MISSING ? pst_engine_tpl_int(0) : v[1];
  if (total.kind == TPL_STR)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "sum() can't sum strings [use ''.join(seq) instead]");
  for (;;) {
    if (!pst_engine_tpl_next(c, &w, &item)) return false;
    if (item.kind == TPL_MISSING) break;
    tpl_val before = total;
    if (!get_path(c, &item, &v[0], NULL, &part) || !pst_engine_tpl_binary(c, TPL_OP_ADD, &before, &part, &total))
      return false;
  }
  *out = total;
  return true;
}

/* ---- map, select, reject ---------------------------------------------------------------------------------------- */

static tpl_args tail_args(const tpl_args *args, size_t from) {
  tpl_args tail = *args;
  tail.items = args->n > from ? args->items + from : NULL;
  tail.n = args->n > from ? args->n - from : 0;
  return tail;
}

typedef struct mapping {
  const tpl_function *filter; /* NULL: by attribute */
  tpl_args args;
  tpl_val attribute, fallback;
} mapping;

static bool prepare_map(tpl_ctx *c, const tpl_args *args, mapping *m) {
  *m = (mapping){.attribute = {.kind = TPL_MISSING}, .fallback = {.kind = TPL_MISSING}};
  for (size_t i = 0; !args->n && i < args->n_named; i++) {
    if (pst_str_is(args->names[i], "attribute")) m->attribute = args->named[i];
  }
  if (m->attribute.kind != TPL_MISSING) {
    for (size_t i = 0; i < args->n_named; i++) {
      if (pst_str_is(args->names[i], "default"))
        m->fallback = args->named[i];
      else if (!pst_str_is(args->names[i], "attribute"))
        return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Unexpected keyword argument '%.*s'",
                                   (int)PST_MIN(args->names[i].n, 100u), args->names[i].data);
    }
    return true;
  }
  if (!args->n) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "map requires a filter argument");
  m->args = tail_args(args, 1);
  if (args->items[0].kind != TPL_STR)
    return pst_engine_tpl_fail_unsupported(c, "a filter named by something that is no string");
  pst_str name = pst_engine_tpl_view(args->items[0].u.s);
  m->filter = pst_engine_tpl_find_filter(name);
  if (!m->filter)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "No filter named '%.*s'.", (int)PST_MIN(name.n, 200u), name.data);
  char what[80];
  snprintf(what, sizeof what, "the filter '%s'", m->filter->name);
  return m->filter->call || pst_engine_tpl_fail_unsupported(c, what);
}

FILTER(map) {
  bool any;
  mapping m;
  tpl_walk w;
  tpl_list *l = pst_engine_tpl_list_new(c, 0);
  if (!l || !pst_engine_tpl_truth(c, self, &any)) return false;
  *out = pst_engine_tpl_list(TPL_ITER, l);
  if (!any) return true;
  if (!prepare_map(c, args, &m) || !pst_engine_tpl_walk(c, self, &w) || !pst_engine_tpl_enter(c)) return false;
  bool ok = true;
  for (tpl_val item, made; ok;) {
    ok = pst_engine_tpl_next(c, &w, &item);
    if (!ok || item.kind == TPL_MISSING) break;
    ok = (m.filter ? m.filter->call(c, &item, &m.args, &made) : get_path(c, &item, &m.attribute, &m.fallback, &made)) &&
         pst_engine_tpl_list_push(c, l, made);
  }
  pst_engine_tpl_leave(c);
  return ok;
}

static bool select_items(tpl_ctx *c, const tpl_val *self, const tpl_args *args, bool by_attribute, bool wanted,
                         tpl_val *out) {
  bool any, holds;
  tpl_walk w;
  tpl_val attribute = {.kind = TPL_MISSING};
  const tpl_test *test = NULL;
  tpl_list *l = pst_engine_tpl_list_new(c, 0);
  if (!l || !pst_engine_tpl_truth(c, self, &any)) return false;
  *out = pst_engine_tpl_list(TPL_ITER, l);
  if (!any) return true;
  if (by_attribute && !args->n) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Missing parameter for attribute name");
  if (by_attribute) attribute = args->items[0];
  size_t at = by_attribute;
  if (args->n > at) {
    if (args->items[at].kind != TPL_STR)
      return pst_engine_tpl_fail_unsupported(c, "a test named by something that is no string");
    pst_str name = pst_engine_tpl_view(args->items[at].u.s);
    test = pst_engine_tpl_find_test(name);
    if (!test)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "No test named '%.*s'.", (int)PST_MIN(name.n, 200u), name.data);
  }
  tpl_args rest = tail_args(args, at + 1);
  if (!pst_engine_tpl_walk(c, self, &w)) return false;
  for (tpl_val item, v;;) {
    if (!pst_engine_tpl_next(c, &w, &item)) return false;
    if (item.kind == TPL_MISSING) return true;
    if (!get_path(c, &item, &attribute, NULL, &v) ||
        !(test ? test->call(c, &v, &rest, &holds) : pst_engine_tpl_truth(c, &v, &holds)) ||
        (holds == wanted && !pst_engine_tpl_list_push(c, l, item)))
      return false;
  }
}
FILTER(select) { return select_items(c, self, args, false, true, out); }
FILTER(reject) { return select_items(c, self, args, false, false, out); }
FILTER(selectattr) { return select_items(c, self, args, true, true, out); }
FILTER(rejectattr) { return select_items(c, self, args, true, false, out); }

/* ---- order ------------------------------------------------------------------------------------------------------ */

static bool keys_of(tpl_ctx *c, const tpl_list *l, const tpl_val *attribute, bool case_sensitive, tpl_val **out) {
  *out = pst_engine_tpl_alloc(c, l->n * sizeof **out);
  for (size_t i = 0; *out && i < l->n; i++) {
    if (!sort_key(c, &l->items[i], attribute, case_sensitive, &(*out)[i])) return false;
  }
  return *out != NULL;
}

FILTER(sort) {
  static const char *const names[] = {"reverse", "case_sensitive", "attribute"};
  tpl_val v[3], *keys;
  bool reverse, case_sensitive;
  tpl_list *l;
  if (!pst_engine_tpl_arguments(c, "do_sort", args, names, 3, 0, v) || !pst_engine_tpl_truth(c, &v[0], &reverse) ||
      !pst_engine_tpl_truth(c, &v[1], &case_sensitive) || !pst_engine_tpl_collect(c, self, &l) ||
      !keys_of(c, l, &v[2], case_sensitive, &keys) || !pst_engine_tpl_sort(c, l->items, keys, l->n, reverse))
    return false;
  *out = pst_engine_tpl_list(TPL_LIST, l);
  return true;
}

FILTER(dictsort) {
  static const char *const names[] = {"case_sensitive", "by", "reverse"};
  tpl_val v[3], *keys;
  bool case_sensitive, reverse;
  if (!pst_engine_tpl_arguments(c, "do_dictsort", args, names, 3, 0, v) ||
      !pst_engine_tpl_truth(c, &v[0], &case_sensitive) || !pst_engine_tpl_truth(c, &v[2], &reverse))
    return false;
  pst_str by = v[1].kind == TPL_STR       ? pst_engine_tpl_view(v[1].u.s)
               : v[1].kind == TPL_MISSING ? PST_STR("key")
                                          : PST_STR("");
  bool by_value = pst_str_is(by, "value");
  if (!by_value && !pst_str_is(by, "key"))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "You can only sort by either \"key\" or \"value\"");
  if (self->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, self);
  if (self->kind != TPL_DICT)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' object has no attribute 'items'",
                               pst_engine_tpl_type_name(self));
  tpl_view view = {self->u.dict, TPL_ITEMS};
  tpl_val items = {.kind = TPL_VIEW, .u.view = &view}, position = pst_engine_tpl_int(by_value);
  tpl_list *l;
  if (!pst_engine_tpl_collect(c, &items, &l) || !keys_of(c, l, &position, case_sensitive, &keys) ||
      !pst_engine_tpl_sort(c, l->items, keys, l->n, reverse))
    return false;
  *out = pst_engine_tpl_list(TPL_LIST, l);
  return true;
}

static bool extreme(tpl_ctx *c, const tpl_val *self, const tpl_args *args, bool greatest, tpl_val *out) {
  static const char *const names[] = {"case_sensitive", "attribute"};
  tpl_val v[2], *keys;
  bool case_sensitive, better;
  tpl_list *l;
  size_t best = 0;
  if (!pst_engine_tpl_arguments(c, greatest ? "do_max" : "do_min", args, names, 2, 0, v) ||
      !pst_engine_tpl_truth(c, &v[0], &case_sensitive) || !pst_engine_tpl_collect(c, self, &l))
    return false;
  if (!l->n) return pst_engine_tpl_undefined_hint(c, "No aggregated item, sequence was empty.", out);
  if (!keys_of(c, l, &v[1], case_sensitive, &keys)) return false;
  for (size_t i = 1; i < l->n; i++) {
    if (!pst_engine_tpl_order(c, &keys[i], &keys[best], greatest ? TPL_OP_GT : TPL_OP_LT, &better)) return false;
    if (better) best = i;
  }
  *out = l->items[best];
  return true;
}
FILTER(min) { return extreme(c, self, args, false, out); }
FILTER(max) { return extreme(c, self, args, true, out); }

FILTER(unique) {
  static const char *const names[] = {"case_sensitive", "attribute"};
  tpl_val v[2], *keys, *found;
  bool case_sensitive;
  tpl_list *l, *kept = pst_engine_tpl_list_new(c, 0);
  tpl_dict *seen = pst_engine_tpl_dict_new(c);
  if (!kept || !seen || !pst_engine_tpl_arguments(c, "do_unique", args, names, 2, 0, v) ||
      !pst_engine_tpl_truth(c, &v[0], &case_sensitive) || !pst_engine_tpl_collect(c, self, &l) ||
      !keys_of(c, l, &v[1], case_sensitive, &keys))
    return false;
  for (size_t i = 0; i < l->n; i++) {
    if (!pst_engine_tpl_dict_find(c, seen, &keys[i], &found)) return false;
    if (found) continue;
    if (!pst_engine_tpl_dict_set(c, seen, keys[i], pst_engine_tpl_none()) ||
        !pst_engine_tpl_list_push(c, kept, l->items[i]))
      return false;
  }
  *out = pst_engine_tpl_list(TPL_ITER, kept);
  return true;
}

static tpl_list *group_new(tpl_ctx *c, tpl_val key, tpl_list **ret_members) {
  tpl_list *group = pst_engine_tpl_list_new(c, 2);
  *ret_members = pst_engine_tpl_list_new(c, 0);
  if (!group || !*ret_members) return NULL;
  group->group = true;
  group->items[0] = key;
  group->items[1] = pst_engine_tpl_list(TPL_LIST, *ret_members);
  group->n = 2;
  return group;
}

FILTER(groupby) {
  static const char *const names[] = {"attribute", "default", "case_sensitive"};
  tpl_val v[3];
  bool case_sensitive;
  tpl_list *l, *groups = pst_engine_tpl_list_new(c, 0), *members = NULL;
  if (!groups || !pst_engine_tpl_arguments(c, "do_groupby", args, names, 3, 1, v) ||
      !pst_engine_tpl_truth(c, &v[2], &case_sensitive) || !pst_engine_tpl_collect(c, self, &l))
    return false;
  tpl_val *keys = pst_engine_tpl_alloc(c, l->n * sizeof *keys);
  if (!keys) return false;
  for (size_t i = 0; i < l->n; i++) {
    if (!get_path(c, &l->items[i], &v[0], &v[1], &keys[i]) || (!case_sensitive && !ignore_case(c, &keys[i])))
      return false;
  }
  if (!pst_engine_tpl_sort(c, l->items, keys, l->n, false)) return false;
  for (size_t i = 0; i < l->n; i++) {
    bool same = false;
    if (i && !pst_engine_tpl_equal(c, &keys[i], &keys[i - 1], &same)) return false;
    if (!same) {
      tpl_val real;
      if (!get_path(c, &l->items[i], &v[0], &v[1], &real)) return false;
      tpl_list *group = group_new(c, real, &members);
      if (!group || !pst_engine_tpl_list_push(c, groups, pst_engine_tpl_list(TPL_TUPLE, group))) return false;
    }
    if (!pst_engine_tpl_list_push(c, members, l->items[i])) return false;
  }
  *out = pst_engine_tpl_list(TPL_LIST, groups);
  return true;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

static bool push_row(tpl_ctx *c, tpl_list *rows, const tpl_list *from, size_t start, size_t end, size_t n_fill,
                     const tpl_val *fill) {
  tpl_list *row = pst_engine_tpl_list_new(c, end - start);
  for (size_t i = start; row && i < end; i++) row->items[row->n++] = from->items[i];
  for (size_t i = 0; row && i < n_fill; i++) {
    if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_list_push(c, row, *fill)) return false;
  }
  return row && pst_engine_tpl_list_push(c, rows, pst_engine_tpl_list(TPL_LIST, row));
}

FILTER(batch) {
  static const char *const names[] = {"linecount", "fill_with"};
  tpl_val v[2];
  int64_t count;
  tpl_list *l, *rows = pst_engine_tpl_list_new(c, 0);
  if (!rows || !pst_engine_tpl_arguments(c, "do_batch", args, names, 2, 1, v) ||
      !pst_engine_tpl_want_int(c, &v[0], &count) || !pst_engine_tpl_collect(c, self, &l))
    return false;
  if (count < 1) return pst_engine_tpl_fail_unsupported(c, "a batch of less than one");
  bool fill = v[1].kind != TPL_MISSING && v[1].kind != TPL_NONE;
  for (size_t i = 0; i < l->n;) {
    size_t n = PST_MIN((size_t)count, l->n - i);
    if (!push_row(c, rows, l, i, i + n, fill ? (size_t)count - n : 0, &v[1])) return false;
    i += n;
  }
  *out = pst_engine_tpl_list(TPL_ITER, rows);
  return true;
}

FILTER(slice) {
  static const char *const names[] = {"slices", "fill_with"};
  tpl_val v[2];
  int64_t slices;
  tpl_list *l, *rows = pst_engine_tpl_list_new(c, 0);
  if (!rows || !pst_engine_tpl_arguments(c, "do_slice", args, names, 2, 1, v) ||
      !pst_engine_tpl_want_int(c, &v[0], &slices) || !pst_engine_tpl_collect(c, self, &l))
    return false;
  if (!slices) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "integer division or modulo by zero");
  bool fill = v[1].kind != TPL_MISSING && v[1].kind != TPL_NONE;
  size_t at = 0, each = slices > 0 ? l->n / (size_t)slices : 0, extra = slices > 0 ? l->n % (size_t)slices : 0;
  for (int64_t i = 0; i < slices; i++) {
    bool longer = (size_t)i < extra;
    size_t end = at + each + longer;
    if (!pst_engine_tpl_charge(c, 0) || !push_row(c, rows, l, at, end, fill && !longer, &v[1])) return false;
    at = end;
  }
  *out = pst_engine_tpl_list(TPL_ITER, rows);
  return true;
}

const tpl_function pst_engine_tpl_sequence_filters[] = {
    {"batch", filter_batch},
    {"count", filter_length},
    {"dictsort", filter_dictsort},
    {"first", filter_first},
    {"groupby", filter_groupby},
    {"items", filter_items},
    {"join", filter_join},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"map", filter_map},
    {"max", filter_max},
    {"min", filter_min},
    {"reject", filter_reject},
    {"rejectattr", filter_rejectattr},
    {"reverse", filter_reverse},
    {"select", filter_select},
    {"selectattr", filter_selectattr},
    {"slice", filter_slice},
    {"sort", filter_sort},
    {"sum", filter_sum},
    {"unique", filter_unique},
    {NULL, NULL},
};
