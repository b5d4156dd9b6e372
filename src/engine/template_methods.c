/* Methods of strings, as Python's str has them.
 *
 * Every result is made of slices of its inputs, so origins follow by themselves. Positions are code points, as in Python.
 * A row without a function is a method that is refused by name. */
#include "engine/template_types.h"

#include <string.h>

#define METHOD(name) static bool str_##name(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out)

static bool take(tpl_ctx *c, const char *name, const tpl_args *args, size_t n_min, size_t n_max) {
  if (args->n_named) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "str.%s() takes no keyword arguments", name);
  if (args->n >= n_min && args->n <= n_max) return true;
  if (!n_max) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "str.%s() takes no arguments (%zu given)", name, args->n);
  if (n_min == 1 && n_max == 1)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "str.%s() takes exactly one argument (%zu given)", name, args->n);
  bool few = args->n < n_min;
  size_t bound = few ? n_min : n_max;
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s expected at %s %zu argument%s, got %zu", name,
                             few ? "least" : "most", bound, bound == 1 ? "" : "s", args->n);
}

static bool want_str(tpl_ctx *c, const tpl_val *v, const tpl_str **out) {
  if (v->kind == TPL_STR) {
    *out = v->u.s;
    return true;
  }
  pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "must be str, not %s", pst_engine_tpl_type_name(v));
  return false;
}

static bool give(const tpl_str *s, tpl_val *out) {
  *out = pst_engine_tpl_string(s);
  return s != NULL;
}

static bool give_slice(tpl_ctx *c, const tpl_str *s, size_t start, size_t end, tpl_val *out) {
  return give(pst_engine_tpl_str_slice(c, s, start, end), out);
}

static bool push_slice(tpl_ctx *c, tpl_list *l, const tpl_str *s, size_t start, size_t end) {
  tpl_val v;
  return give_slice(c, s, start, end, &v) && pst_engine_tpl_list_push(c, l, v);
}

static size_t chars_before(const tpl_str *s, size_t offset) {
  if (pst_engine_tpl_chars(s) == s->n) return offset;
  size_t n = 0;
  for (size_t i = 0; i < offset; i++) n += ((unsigned char)s->data[i] & 0xC0) != 0x80;
  return n;
}

/* ---- case and strip --------------------------------------------------------------------------------------------- */

#define CASE_METHOD(name, how) \
  METHOD(name) { return take(c, #name, args, 0, 0) && give(pst_engine_tpl_str_case(c, self->u.s, how), out); }
CASE_METHOD(upper, TPL_UPPER)
CASE_METHOD(lower, TPL_LOWER)
CASE_METHOD(capitalize, TPL_CAPITALIZE)
CASE_METHOD(title, TPL_TITLE)
CASE_METHOD(swapcase, TPL_SWAPCASE)

static bool strip(tpl_ctx *c, const char *name, const tpl_val *self, const tpl_args *args, int sides, tpl_val *out) {
  if (!take(c, name, args, 0, 1)) return false;
  const tpl_str *chars = NULL;
  if (args->n && args->items[0].kind != TPL_NONE) {
    if (args->items[0].kind != TPL_STR)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s arg must be None or str", name);
    chars = args->items[0].u.s;
  }
  return give(pst_engine_tpl_str_strip(c, self->u.s, chars, sides), out);
}
METHOD(strip) { return strip(c, "strip", self, args, 3, out); }
METHOD(lstrip) { return strip(c, "lstrip", self, args, 1, out); }
METHOD(rstrip) { return strip(c, "rstrip", self, args, 2, out); }

METHOD(removeprefix) {
  const tpl_str *p, *s = self->u.s;
  if (!take(c, "removeprefix", args, 1, 1) || !want_str(c, &args->items[0], &p)) return false;
  bool has = pst_str_starts(pst_engine_tpl_view(s), pst_engine_tpl_view(p));
  return give_slice(c, s, has ? p->n : 0, s->n, out);
}

static bool ends_with(const tpl_str *s, const tpl_str *end) {
  return end->n <= s->n && (!end->n || memcmp(s->data + s->n - end->n, end->data, end->n) == 0);
}
METHOD(removesuffix) {
  const tpl_str *e, *s = self->u.s;
  if (!take(c, "removesuffix", args, 1, 1) || !want_str(c, &args->items[0], &e)) return false;
  return give_slice(c, s, 0, ends_with(s, e) ? s->n - e->n : s->n, out);
}

/* ---- searching -------------------------------------------------------------------------------------------------- */

/* self cut to the optional start and end arguments; *ret_empty: start lies beyond the text, where nothing is found. */
static bool bounded(tpl_ctx *c, const tpl_val *self, const tpl_args *args, const tpl_str **ret_text, size_t *ret_start,
                    bool *ret_beyond) {
  tpl_val start = pst_engine_tpl_none(), stop = start, part;
  if (args->n > 1) start = args->items[1];
  if (args->n > 2) stop = args->items[2];
  tpl_val step = pst_engine_tpl_none();
  if (!pst_engine_tpl_slice(c, self, &start, &stop, &step, &part)) return false;
  *ret_text = part.u.s;
  int64_t n = (int64_t)pst_engine_tpl_chars(self->u.s), first = 0;
  if (start.kind != TPL_NONE && !pst_engine_tpl_want_int(c, &start, &first)) return false;
  *ret_beyond = first > n;
  if (first < 0) first = first < -n ? 0 : first + n;
  *ret_start = (size_t)first;
  return true;
}

/* What a search from the right may cost: every place is compared. */
static size_t search_cost(const tpl_str *s, const tpl_str *what) {
  size_t cost;
  return __builtin_mul_overflow(s->n + 1, what->n + 1, &cost) ? SIZE_MAX : cost;
}

static size_t find_last(const tpl_str *s, const tpl_str *what) {
  if (what->n > s->n) return SIZE_MAX;
  for (size_t i = s->n - what->n + 1; i-- > 0;) {
    if (!what->n || memcmp(s->data + i, what->data, what->n) == 0) return i;
  }
  return SIZE_MAX;
}

static bool find(tpl_ctx *c, const char *name, const tpl_val *self, const tpl_args *args, bool last, bool must,
                 tpl_val *out) {
  const tpl_str *what, *s;
  size_t start;
  bool beyond;
  if (!take(c, name, args, 1, 3) || !want_str(c, &args->items[0], &what) ||
      !bounded(c, self, args, &s, &start, &beyond) || !pst_engine_tpl_charge(c, last ? search_cost(s, what) : s->n))
    return false;
  size_t at = beyond ? SIZE_MAX
              : last ? find_last(s, what)
                     : pst_str_find(pst_engine_tpl_view(s), pst_engine_tpl_view(what), 0);
  if (at == SIZE_MAX && must) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "substring not found");
  *out = pst_engine_tpl_int(at == SIZE_MAX ? -1 : (int64_t)(start + chars_before(s, at)));
  return true;
}
METHOD(find) { return find(c, "find", self, args, false, false, out); }
METHOD(rfind) { return find(c, "rfind", self, args, true, false, out); }
METHOD(index) { return find(c, "index", self, args, false, true, out); }
METHOD(rindex) { return find(c, "rindex", self, args, true, true, out); }

METHOD(count) {
  const tpl_str *what, *s;
  size_t start, n = 0;
  bool beyond;
  if (!take(c, "count", args, 1, 3) || !want_str(c, &args->items[0], &what) ||
      !bounded(c, self, args, &s, &start, &beyond) || !pst_engine_tpl_charge(c, s->n))
    return false;
  if (!what->n) {
    n = beyond ? 0 : pst_engine_tpl_chars(s) + 1;
  } else {
    for (size_t at = 0; (at = pst_str_find(pst_engine_tpl_view(s), pst_engine_tpl_view(what), at)) != SIZE_MAX;
         at += what->n)
      n++;
  }
  *out = pst_engine_tpl_int((int64_t)n);
  return true;
}

static bool affix(tpl_ctx *c, const char *name, const tpl_val *self, const tpl_args *args, bool end, tpl_val *out) {
  const tpl_str *s;
  size_t start;
  bool beyond, found = false;
  if (!take(c, name, args, 1, 3) || !bounded(c, self, args, &s, &start, &beyond)) return false;
  const tpl_val *what = &args->items[0];
  size_t n = what->kind == TPL_TUPLE ? what->u.list->n : 1;
  const tpl_val *options = what->kind == TPL_TUPLE ? what->u.list->items : what;
  for (size_t i = 0; i < n && !found; i++) {
    if (options[i].kind != TPL_STR)
      return what->kind == TPL_TUPLE
                 ? pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "tuple for %s must only contain str, not %s", name,
                                       pst_engine_tpl_type_name(&options[i]))
                 : pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s first arg must be str or a tuple of str, not %s", name,
                                       pst_engine_tpl_type_name(what));
    const tpl_str *o = options[i].u.s;
    found = !beyond && (end ? ends_with(s, o) : pst_str_starts(pst_engine_tpl_view(s), pst_engine_tpl_view(o)));
    if (!pst_engine_tpl_charge(c, o->n)) return false;
  }
  *out = pst_engine_tpl_bool(found);
  return true;
}
METHOD(startswith) { return affix(c, "startswith", self, args, false, out); }
METHOD(endswith) { return affix(c, "endswith", self, args, true, out); }

METHOD(replace) {
  const tpl_str *old, *by;
  int64_t count = -1;
  if (!take(c, "replace", args, 2, 3)) return false;
  for (size_t i = 0; i < 2; i++) {
    if (args->items[i].kind != TPL_STR)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "replace() argument %zu must be str, not %s", i + 1,
                                 pst_engine_tpl_type_name(&args->items[i]));
  }
  if (args->n > 2 && !pst_engine_tpl_want_int(c, &args->items[2], &count)) return false;
  old = args->items[0].u.s;
  by = args->items[1].u.s;
  if (self->u.s->markup) {
    tpl_val a, b;
    if (!pst_engine_tpl_escape_html(c, old, &a) || !pst_engine_tpl_escape_html(c, by, &b)) return false;
    old = a.u.s;
    by = b.u.s;
  }
  return pst_engine_tpl_str_replace(c, self->u.s, old, by, count, out);
}

/* ---- splitting and joining -------------------------------------------------------------------------------------- */

static size_t space_at(const tpl_str *s, size_t i) {
  size_t next = i;
  return pst_engine_tpl_is_space(pst_utf8_next(s->data, s->n, &next)) ? next : 0;
}

static bool split_spaces(tpl_ctx *c, const tpl_str *s, int64_t max, tpl_list *l) {
  for (size_t i = 0; i < s->n;) {
    size_t next = space_at(s, i);
    if (next) {
      i = next;
      continue;
    }
    size_t start = i;
    if (max >= 0 && (int64_t)l->n >= max) { /* the rest, without white space at its end */
      tpl_val rest;
      return give_slice(c, s, start, s->n, &rest) && give(pst_engine_tpl_str_strip(c, rest.u.s, NULL, 2), &rest) &&
             pst_engine_tpl_list_push(c, l, rest);
    }
    while (i < s->n && !space_at(s, i)) pst_utf8_next(s->data, s->n, &i);
    if (!push_slice(c, l, s, start, i)) return false;
  }
  return true;
}

static size_t char_before(const tpl_str *s, size_t i) {
  do i--;
  while (i && ((unsigned char)s->data[i] & 0xC0) == 0x80);
  return i;
}

/* From the right; pieces come in reverse. */
static bool rsplit_spaces(tpl_ctx *c, const tpl_str *s, int64_t max, tpl_list *l) {
  for (size_t end = s->n; end;) {
    if (space_at(s, char_before(s, end))) {
      end = char_before(s, end);
      continue;
    }
    if (max >= 0 && (int64_t)l->n >= max) {
      tpl_val rest;
      return give_slice(c, s, 0, end, &rest) && give(pst_engine_tpl_str_strip(c, rest.u.s, NULL, 1), &rest) &&
             pst_engine_tpl_list_push(c, l, rest);
    }
    size_t start = end;
    while (start && !space_at(s, char_before(s, start))) start = char_before(s, start);
    if (!push_slice(c, l, s, start, end)) return false;
    end = start;
  }
  return true;
}

static bool split_by(tpl_ctx *c, const tpl_str *s, const tpl_str *by, int64_t max, tpl_list *l) {
  size_t at = 0;
  for (size_t found; max < 0 || (int64_t)l->n < max; at = found + by->n) {
    found = pst_str_find(pst_engine_tpl_view(s), pst_engine_tpl_view(by), at);
    if (found == SIZE_MAX) break;
    if (!push_slice(c, l, s, at, found)) return false;
  }
  return push_slice(c, l, s, at, s->n);
}

static bool rsplit_by(tpl_ctx *c, const tpl_str *s, const tpl_str *by, int64_t max, tpl_list *l) {
  size_t end = s->n;
  for (size_t i = s->n; i >= by->n && (max < 0 || (int64_t)l->n < max);) {
    if (memcmp(s->data + i - by->n, by->data, by->n) != 0) {
      i--;
      continue;
    }
    if (!push_slice(c, l, s, i, end)) return false;
    end = i -= by->n;
  }
  return push_slice(c, l, s, 0, end);
}

static void reverse_list(tpl_list *l) {
  for (size_t i = 0; i < l->n / 2; i++) {
    tpl_val v = l->items[i];
    l->items[i] = l->items[l->n - 1 - i];
    l->items[l->n - 1 - i] = v;
  }
}

static bool split(tpl_ctx *c, const char *name, const tpl_val *self, const tpl_args *args, bool right, tpl_val *out) {
  static const char *const names[] = {"sep", "maxsplit"};
  tpl_val v[2];
  int64_t max = -1;
  if (!pst_engine_tpl_arguments(c, name, args, names, 2, 0, v)) return false;
  if (v[1].kind != TPL_MISSING && !pst_engine_tpl_want_int(c, &v[1], &max)) return false;
  tpl_list *l = pst_engine_tpl_list_new(c, 0);
  if (!l || !pst_engine_tpl_charge(c, self->u.s->n)) return false;
  bool ok;
  if (v[0].kind == TPL_MISSING || v[0].kind == TPL_NONE) {
    ok = right ? rsplit_spaces(c, self->u.s, max, l) : split_spaces(c, self->u.s, max, l);
  } else {
    const tpl_str *by;
    if (!want_str(c, &v[0], &by)) return false;
    if (!by->n) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "empty separator");
    if (right && !pst_engine_tpl_charge(c, search_cost(self->u.s, by))) return false;
    ok = right ? rsplit_by(c, self->u.s, by, max, l) : split_by(c, self->u.s, by, max, l);
  }
  if (right) reverse_list(l);
  *out = pst_engine_tpl_list(TPL_LIST, l);
  return ok;
}
METHOD(split) { return split(c, "split", self, args, false, out); }
METHOD(rsplit) { return split(c, "rsplit", self, args, true, out); }

static bool partition(tpl_ctx *c, const char *name, const tpl_val *self, const tpl_args *args, bool last,
                      tpl_val *out) {
  const tpl_str *by, *s = self->u.s;
  if (!take(c, name, args, 1, 1) || !want_str(c, &args->items[0], &by)) return false;
  if (!by->n) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "empty separator");
  tpl_list *l = pst_engine_tpl_charge(c, last ? search_cost(s, by) : s->n) ? pst_engine_tpl_list_new(c, 3) : NULL;
  if (!l) return false;
  size_t at = last ? find_last(s, by) : pst_str_find(pst_engine_tpl_view(s), pst_engine_tpl_view(by), 0);
  size_t cut = at != SIZE_MAX ? at : last ? 0 : s->n, after = at != SIZE_MAX ? at + by->n : cut;
  *out = pst_engine_tpl_list(TPL_TUPLE, l);
  return push_slice(c, l, s, 0, cut) && push_slice(c, l, s, cut, after) && push_slice(c, l, s, after, s->n);
}
METHOD(partition) { return partition(c, "partition", self, args, false, out); }
METHOD(rpartition) { return partition(c, "rpartition", self, args, true, out); }

METHOD(splitlines) {
  static const char *const names[] = {"keepends"};
  tpl_val v;
  bool keep;
  const tpl_str *s = self->u.s;
  if (!pst_engine_tpl_arguments(c, "splitlines", args, names, 1, 0, &v) || !pst_engine_tpl_truth(c, &v, &keep))
    return false;
  tpl_list *l = pst_engine_tpl_charge(c, s->n) ? pst_engine_tpl_list_new(c, 0) : NULL;
  if (!l) return false;
  size_t start = 0;
  for (size_t i = 0; i < s->n;) {
    size_t at = i;
    uint32_t cp = pst_utf8_next(s->data, s->n, &i);
    bool ends = (cp >= 10 && cp <= 13) || (cp >= 28 && cp <= 30) || cp == 0x85 || cp == 0x2028 || cp == 0x2029;
    if (!ends) continue;
    if (cp == '\r' && i < s->n && s->data[i] == '\n') i++;
    if (!push_slice(c, l, s, start, keep ? i : at)) return false;
    start = i;
  }
  *out = pst_engine_tpl_list(TPL_LIST, l);
  return start >= s->n || push_slice(c, l, s, start, s->n);
}

METHOD(join) {
  tpl_list *items;
  if (!take(c, "join", args, 1, 1)) return false;
  if (!pst_engine_tpl_is_iterable(&args->items[0]))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "can only join an iterable");
  if (!pst_engine_tpl_collect(c, &args->items[0], &items)) return false;
  tpl_builder b = pst_engine_tpl_builder(c);
  for (size_t i = 0; i < items->n; i++) {
    tpl_val v = items->items[i];
    if (v.kind != TPL_STR)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "sequence item %zu: expected str instance, %s found", i,
                                 pst_engine_tpl_type_name(&v));
    if (self->u.s->markup && !pst_engine_tpl_escape_html(c, v.u.s, &v)) return false;
    if ((i && !pst_engine_tpl_put_str(&b, self->u.s)) || !pst_engine_tpl_put_str(&b, v.u.s)) return false;
  }
  return pst_engine_tpl_build(&b, self->u.s->markup, out);
}

/* ---- padding ---------------------------------------------------------------------------------------------------- */

static bool pad(tpl_ctx *c, const char *name, const tpl_val *self, const tpl_args *args, int sides, tpl_val *out) {
  int64_t width, n = (int64_t)pst_engine_tpl_chars(self->u.s);
  const tpl_str *fill = NULL;
  if (!take(c, name, args, 1, 2) || !pst_engine_tpl_want_int(c, &args->items[0], &width)) return false;
  if (args->n > 1) {
    if (!want_str(c, &args->items[1], &fill)) return false;
    if (pst_engine_tpl_chars(fill) != 1)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "The fill character must be exactly one character long");
  }
  int64_t more = width > n ? width - n : 0;
  int64_t left = sides == 1 ? more : sides == 2 ? 0 : more / 2 + (more & width & 1);
  tpl_builder b = pst_engine_tpl_builder(c);
  bool ok = true;
  for (int64_t i = 0; ok && i <= more; i++) {
    if (i == left) ok = pst_engine_tpl_put_str(&b, self->u.s);
    if (ok && i < more) ok = fill ? pst_engine_tpl_put_str(&b, fill) : pst_engine_tpl_put(&b, " ", 1, false);
  }
  return ok && pst_engine_tpl_build(&b, self->u.s->markup, out);
}
METHOD(center) { return pad(c, "center", self, args, 3, out); }
METHOD(ljust) { return pad(c, "ljust", self, args, 2, out); }
METHOD(rjust) { return pad(c, "rjust", self, args, 1, out); }

METHOD(zfill) {
  int64_t width, n = (int64_t)pst_engine_tpl_chars(self->u.s);
  const tpl_str *s = self->u.s;
  if (!take(c, "zfill", args, 1, 1) || !pst_engine_tpl_want_int(c, &args->items[0], &width)) return false;
  tpl_builder b = pst_engine_tpl_builder(c);
  size_t sign = s->n && (s->data[0] == '-' || s->data[0] == '+');
  bool ok = pst_engine_tpl_put_slice(&b, s, 0, sign);
  for (int64_t i = n; ok && i < width; i++) ok = pst_engine_tpl_put(&b, "0", 1, false);
  return ok && pst_engine_tpl_put_slice(&b, s, sign, s->n) && pst_engine_tpl_build(&b, s->markup, out);
}

/* ---- properties ------------------------------------------------------------------------------------------------- */

enum { CAT_ND = 9 };
static bool is_alpha(uint32_t cp) { return pst_unicode_is_letter(cp); }
static bool is_alnum(uint32_t cp) { return pst_unicode_is_letter(cp) || pst_unicode_is_number(cp); }
static bool is_decimal(uint32_t cp) { return pst_unicode_category(cp) == CAT_ND; }
static bool is_digit(uint32_t cp) {
  return is_decimal(cp) || cp == 0xB2 || cp == 0xB3 || cp == 0xB9 || cp == 0x2070 || (cp >= 0x2074 && cp <= 0x2079) ||
         (cp >= 0x2080 && cp <= 0x2089) || (cp >= 0x2460 && cp <= 0x2468);
}
static bool is_numeric(uint32_t cp) { return pst_unicode_is_number(cp); }
static bool is_ascii(uint32_t cp) { return cp < 128; }

static bool all_are(tpl_ctx *c, const char *name, const tpl_val *self, const tpl_args *args, bool (*is)(uint32_t),
                    bool of_empty, tpl_val *out) {
  const tpl_str *s = self->u.s;
  if (!take(c, name, args, 0, 0) || !pst_engine_tpl_charge(c, s->n)) return false;
  bool all = s->n || of_empty;
  for (size_t i = 0; all && i < s->n;) all = is(pst_utf8_next(s->data, s->n, &i));
  *out = pst_engine_tpl_bool(all);
  return true;
}
METHOD(isalpha) { return all_are(c, "isalpha", self, args, is_alpha, false, out); }
METHOD(isalnum) { return all_are(c, "isalnum", self, args, is_alnum, false, out); }
METHOD(isdecimal) { return all_are(c, "isdecimal", self, args, is_decimal, false, out); }
METHOD(isdigit) { return all_are(c, "isdigit", self, args, is_digit, false, out); }
METHOD(isnumeric) { return all_are(c, "isnumeric", self, args, is_numeric, false, out); }
METHOD(isspace) { return all_are(c, "isspace", self, args, pst_engine_tpl_is_space, false, out); }
METHOD(isascii) { return all_are(c, "isascii", self, args, is_ascii, true, out); }
METHOD(isprintable) { return all_are(c, "isprintable", self, args, pst_engine_tpl_is_printable, true, out); }

static bool by_test(tpl_ctx *c, const char *method, const char *test, const tpl_val *self, const tpl_args *args,
                    tpl_val *out) {
  bool holds;
  if (!take(c, method, args, 0, 0) || !pst_engine_tpl_find_test(pst_str_from(test))->call(c, self, args, &holds))
    return false;
  *out = pst_engine_tpl_bool(holds);
  return true;
}
METHOD(islower) { return by_test(c, "islower", "lower", self, args, out); }
METHOD(isupper) { return by_test(c, "isupper", "upper", self, args, out); }

METHOD(format) { return pst_engine_tpl_format(c, self->u.s, args, out); }

const tpl_function pst_engine_tpl_str_methods[] = {
    {"capitalize", str_capitalize},
    {"casefold", NULL},
    {"center", str_center},
    {"count", str_count},
    {"encode", NULL},
    {"endswith", str_endswith},
    {"expandtabs", NULL},
    {"find", str_find},
    {"format", str_format},
    {"format_map", NULL},
    {"index", str_index},
    {"isalnum", str_isalnum},
    {"isalpha", str_isalpha},
    {"isascii", str_isascii},
    {"isdecimal", str_isdecimal},
    {"isdigit", str_isdigit},
    {"isidentifier", NULL},
    {"islower", str_islower},
    {"isnumeric", str_isnumeric},
    {"isprintable", str_isprintable},
    {"isspace", str_isspace},
    {"istitle", NULL},
    {"isupper", str_isupper},
    {"join", str_join},
    {"ljust", str_ljust},
    {"lower", str_lower},
    {"lstrip", str_lstrip},
    {"maketrans", NULL},
    {"partition", str_partition},
    {"removeprefix", str_removeprefix},
    {"removesuffix", str_removesuffix},
    {"replace", str_replace},
    {"rfind", str_rfind},
    {"rindex", str_rindex},
    {"rjust", str_rjust},
    {"rpartition", str_rpartition},
    {"rsplit", str_rsplit},
    {"rstrip", str_rstrip},
    {"split", str_split},
    {"splitlines", str_splitlines},
    {"startswith", str_startswith},
    {"strip", str_strip},
    {"swapcase", str_swapcase},
    {"title", str_title},
    {"translate", NULL},
    {"upper", str_upper},
    {"zfill", str_zfill},
    {NULL, NULL},
};
