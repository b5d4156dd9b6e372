/* Jinja's filters of texts and numbers, and the table of all filters.
 *
 * Most are methods of str under another name: they take any value, make a string of it first, and go on there. A row without
 * a function is a filter that Jinja has and this does not: a template that names it is refused at compilation. */
#include "engine/template_types.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define FILTER(name) static bool filter_##name(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out)

static bool call_method(tpl_ctx *c, const char *name, const tpl_str *s, const tpl_args *args, tpl_val *out) {
  tpl_val self = pst_engine_tpl_string(s);
  return pst_engine_tpl_find_function(pst_engine_tpl_str_methods, pst_str_from(name))->call(c, &self, args, out);
}

static bool cased(tpl_ctx *c, const char *name, const tpl_val *self, const tpl_args *args, tpl_case how, tpl_val *out) {
  const tpl_str *s;
  if (!pst_engine_tpl_arguments(c, name, args, NULL, 0, 0, NULL) || !pst_engine_tpl_to_str(c, self, &s)) return false;
  *out = pst_engine_tpl_string(pst_engine_tpl_str_case(c, s, how));
  return out->kind == TPL_STR;
}
FILTER(upper) { return cased(c, "do_upper", self, args, TPL_UPPER, out); }
FILTER(lower) { return cased(c, "do_lower", self, args, TPL_LOWER, out); }
FILTER(capitalize) { return cased(c, "do_capitalize", self, args, TPL_CAPITALIZE, out); }

static bool starts_word(uint32_t cp) {
  return cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<' || pst_engine_tpl_is_space(cp);
}

/* Jinja's own idea of a title: a word begins behind white space and opening brackets, not behind any other sign. */
FILTER(title) {
  const tpl_str *s;
  if (!pst_engine_tpl_arguments(c, "do_title", args, NULL, 0, 0, NULL) || !pst_engine_tpl_to_str(c, self, &s))
    return false;
  tpl_builder b = pst_engine_tpl_builder(c);
  for (size_t i = 0; i < s->n;) {
    size_t start = i, next = i;
    bool separator = starts_word(pst_utf8_next(s->data, s->n, &next));
    size_t first_end = next;
    for (i = next; i < s->n; i = next) {
      if (starts_word(pst_utf8_next(s->data, s->n, &next)) != separator) break;
    }
    const tpl_str *head = pst_engine_tpl_str_slice(c, s, start, first_end),
                  *tail = pst_engine_tpl_str_slice(c, s, first_end, i);
    if (!head || !tail || !(head = pst_engine_tpl_str_case(c, head, TPL_UPPER)) ||
        !(tail = pst_engine_tpl_str_case(c, tail, TPL_LOWER)) || !pst_engine_tpl_put_str(&b, head) ||
        !pst_engine_tpl_put_str(&b, tail))
      return false;
  }
  return pst_engine_tpl_build(&b, false, out);
}

FILTER(trim) {
  static const char *const names[] = {"chars"};
  tpl_val chars;
  const tpl_str *s;
  if (!pst_engine_tpl_arguments(c, "do_trim", args, names, 1, 0, &chars) || !pst_engine_tpl_to_str(c, self, &s))
    return false;
  tpl_args one = {.items = &chars, .n = chars.kind != TPL_MISSING};
  return call_method(c, "strip", s, &one, out);
}

FILTER(replace) {
  static const char *const names[] = {"old", "new", "count"};
  tpl_val v[3];
  const tpl_str *s, *old, *by;
  int64_t count = -1;
  if (!pst_engine_tpl_arguments(c, "do_replace", args, names, 3, 2, v) || !pst_engine_tpl_to_str(c, self, &s) ||
      !pst_engine_tpl_to_str(c, &v[0], &old) || !pst_engine_tpl_to_str(c, &v[1], &by))
    return false;
  if (v[2].kind != TPL_MISSING && v[2].kind != TPL_NONE && !pst_engine_tpl_want_int(c, &v[2], &count)) return false;
  if (!pst_engine_tpl_str_replace(c, s, old, by, count, out)) return false;
  tpl_str *plain = pst_engine_tpl_alloc(c, sizeof *plain); /* str() takes the mark off */
  if (!plain) return false;
  *plain = *out->u.s;
  plain->markup = false;
  out->u.s = plain;
  return true;
}

FILTER(string) {
  const tpl_str *s;
  if (!pst_engine_tpl_arguments(c, "soft_str", args, NULL, 0, 0, NULL) || !pst_engine_tpl_to_str(c, self, &s))
    return false;
  *out = pst_engine_tpl_string(s);
  return true;
}

FILTER(safe) {
  const tpl_str *s;
  if (!pst_engine_tpl_arguments(c, "do_mark_safe", args, NULL, 0, 0, NULL) || !pst_engine_tpl_to_str(c, self, &s))
    return false;
  tpl_str *copy = pst_engine_tpl_alloc(c, sizeof *copy);
  if (!copy) return false;
  *copy = *s;
  copy->markup = true;
  *out = pst_engine_tpl_string(copy);
  return true;
}

FILTER(escape) {
  const tpl_str *s;
  return pst_engine_tpl_arguments(c, "escape", args, NULL, 0, 0, NULL) && pst_engine_tpl_to_str(c, self, &s) &&
         pst_engine_tpl_escape_html(c, s, out);
}

FILTER(forceescape) {
  const tpl_str *s;
  if (!pst_engine_tpl_arguments(c, "do_forceescape", args, NULL, 0, 0, NULL) || !pst_engine_tpl_to_str(c, self, &s))
    return false;
  tpl_str *plain = pst_engine_tpl_alloc(c, sizeof *plain);
  if (!plain) return false;
  *plain = *s;
  plain->markup = false;
  return pst_engine_tpl_escape_html(c, plain, out);
}

FILTER(center) {
  static const char *const names[] = {"width"};
  tpl_val width;
  const tpl_str *s;
  if (!pst_engine_tpl_arguments(c, "do_center", args, names, 1, 0, &width) || !pst_engine_tpl_to_str(c, self, &s))
    return false;
  if (width.kind == TPL_MISSING) width = pst_engine_tpl_int(80);
  tpl_args one = {.items = &width, .n = 1};
  return call_method(c, "center", s, &one, out);
}

FILTER(format) {
  const tpl_str *s;
  if (!pst_engine_tpl_to_str(c, self, &s)) return false;
  if (args->n && args->n_named)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "can't handle positional and keyword arguments at the same time");
  tpl_val values;
  if (args->n_named) {
    tpl_dict *d = pst_engine_tpl_dict_new(c);
    for (size_t i = 0; d && i < args->n_named; i++) {
      tpl_val key = pst_engine_tpl_string(pst_engine_tpl_str_view(c, args->names[i], false));
      if (key.kind != TPL_STR || !pst_engine_tpl_dict_set(c, d, key, args->named[i])) return false;
    }
    if (!d) return false;
    values = pst_engine_tpl_dict(d);
  } else {
    tpl_list *l = pst_engine_tpl_list_new(c, args->n);
    if (!l) return false;
    for (size_t i = 0; i < args->n; i++) l->items[l->n++] = args->items[i];
    values = pst_engine_tpl_list(TPL_TUPLE, l);
  }
  return pst_engine_tpl_percent(c, s, &values, out);
}

FILTER(indent) {
  static const char *const names[] = {"width", "first", "blank"};
  tpl_val v[3], text, lines;
  bool first, blank;
  tpl_val newline = pst_engine_tpl_string(pst_engine_tpl_str_view(c, PST_STR("\n"), true));
  const tpl_str *indention;
  tpl_builder spaces = pst_engine_tpl_builder(c), b = pst_engine_tpl_builder(c);
  if (newline.kind != TPL_STR || !pst_engine_tpl_arguments(c, "do_indent", args, names, 3, 0, v) ||
      !pst_engine_tpl_truth(c, &v[1], &first) || !pst_engine_tpl_truth(c, &v[2], &blank))
    return false;
  if (v[0].kind == TPL_STR) {
    indention = v[0].u.s;
  } else {
    int64_t width = 4;
    tpl_val made;
    if (v[0].kind != TPL_MISSING && !pst_engine_tpl_want_int(c, &v[0], &width)) return false;
    for (int64_t i = 0; i < width; i++) {
      if (!pst_engine_tpl_puts(&spaces, " ", false)) return false;
    }
    if (!pst_engine_tpl_build(&spaces, false, &made)) return false;
    indention = made.u.s;
  }
  tpl_args none = {0};
  if (!pst_engine_tpl_binary(c, TPL_OP_ADD, self, &newline, &text) ||
      !call_method(c, "splitlines", text.u.s, &none, &lines))
    return false;
  for (size_t i = 0; i < lines.u.list->n; i++) {
    const tpl_str *line = lines.u.list->items[i].u.s;
    bool indented = i ? blank || line->n : first;
    if ((i && !pst_engine_tpl_put_str(&b, newline.u.s)) || (indented && !pst_engine_tpl_put_str(&b, indention)) ||
        !pst_engine_tpl_put_str(&b, line))
      return false;
  }
  return pst_engine_tpl_build(&b, text.u.s->markup, out);
}

FILTER(truncate) {
  static const char *const names[] = {"length", "killwords", "end", "leeway"};
  tpl_val v[4];
  int64_t length = 255, leeway = 5;
  bool kill;
  const tpl_str *s, *end = pst_engine_tpl_str_view(c, PST_STR("..."), true);
  if (!end || !pst_engine_tpl_arguments(c, "do_truncate", args, names, 4, 0, v) ||
      !pst_engine_tpl_want_str(c, self, "truncate", &s) || !pst_engine_tpl_truth(c, &v[1], &kill))
    return false;
  if (v[0].kind != TPL_MISSING && !pst_engine_tpl_want_int(c, &v[0], &length)) return false;
  if (v[2].kind != TPL_MISSING && !pst_engine_tpl_want_str(c, &v[2], "truncate", &end)) return false;
  if (v[3].kind != TPL_MISSING && v[3].kind != TPL_NONE && !pst_engine_tpl_want_int(c, &v[3], &leeway)) return false;
  int64_t n_end = (int64_t)pst_engine_tpl_chars(end);
  if (length < n_end)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "expected length >= %lld, got %lld", (long long)n_end,
                               (long long)length);
  if (leeway < 0) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "expected leeway >= 0, got %lld", (long long)leeway);
  *out = pst_engine_tpl_string(s);
  int64_t n = (int64_t)pst_engine_tpl_chars(s);
  if (n <= length || n - length <= leeway) return true;
  size_t cut = pst_engine_tpl_char_offset(s, (size_t)(length - n_end));
  for (size_t i = cut; !kill && i > 0; i--) {
    if (s->data[i - 1] != ' ') continue;
    cut = i - 1;
    break;
  }
  tpl_builder b = pst_engine_tpl_builder(c);
  return pst_engine_tpl_put_slice(&b, s, 0, cut) && pst_engine_tpl_put_str(&b, end) &&
         pst_engine_tpl_build(&b, s->markup, out);
}

FILTER(wordcount) {
  const tpl_str *s;
  int64_t n = 0;
  bool in_word = false;
  if (!pst_engine_tpl_arguments(c, "do_wordcount", args, NULL, 0, 0, NULL) || !pst_engine_tpl_to_str(c, self, &s) ||
      !pst_engine_tpl_charge(c, s->n))
    return false;
  for (size_t i = 0; i < s->n;) {
    uint32_t cp = pst_utf8_next(s->data, s->n, &i);
    bool word = cp == '_' || pst_unicode_is_letter(cp) || pst_unicode_is_number(cp);
    n += word && !in_word;
    in_word = word;
  }
  *out = pst_engine_tpl_int(n);
  return true;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

/* Digits with single underscores between them, without white space and with the underscores taken out; false: no number. */
static bool clean_number(pst_str s, char *out, size_t n_out) {
  size_t n = 0;
  for (size_t i = 0; i < s.n; i++) {
    if (s.data[i] == '_') {
      bool between = i && i + 1 < s.n && s.data[i - 1] != '_' && strchr("0123456789abcdefABCDEF", s.data[i - 1]) &&
                     s.data[i - 1] && strchr("0123456789abcdefABCDEF", s.data[i + 1]) && s.data[i + 1];
      if (!between) return false;
      continue;
    }
    if (n + 1 >= n_out || !s.data[i]) return false;
    out[n++] = s.data[i];
  }
  out[n] = '\0';
  return n > 0;
}

static int digit_of(char ch) {
  if (ch >= '0' && ch <= '9') return ch - '0';
  if (ch >= 'a' && ch <= 'z') return ch - 'a' + 10;
  if (ch >= 'A' && ch <= 'Z') return ch - 'A' + 10;
  return 99;
}

/* Python's int(text, base). 1 read, 0 not a number, -1 too large. */
static int read_int(const char *s, int64_t base, int64_t *out) {
  bool negative = *s == '-';
  if (*s == '-' || *s == '+') s++;
  char mark = s[0] == '0' ? (char)(s[1] | 0x20) : '\0';
  int64_t marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
  if (marked && (base == marked || base == 0)) {
    s += 2;
    base = marked;
  }
  if (base == 0) base = 10;
  if (!*s) return 0;
  int64_t value = 0;
  bool large = false;
  for (; *s; s++) {
    int d = digit_of(*s);
    if (d >= base) return 0;
    large = large || __builtin_mul_overflow(value, base, &value) || __builtin_sub_overflow(value, (int64_t)d, &value);
  }
  if (large || (!negative && __builtin_sub_overflow((int64_t)0, value, &value))) return -1;
  *out = value;
  return 1;
}

/* Python's float(text). */
static bool read_float(const char *s, double *out) {
  const char *body = *s == '-' || *s == '+' ? s + 1 : s;
  bool inf = !strcmp(body, "inf") || !strcmp(body, "Infinity") || !strcmp(body, "infinity") || !strcmp(body, "INF") ||
             !strcmp(body, "Inf");
  bool nan = !strcmp(body, "nan") || !strcmp(body, "NaN") || !strcmp(body, "NAN");
  if (inf || nan) {
    *out = nan ? (double)NAN : *s == '-' ? -(double)INFINITY : (double)INFINITY;
    return true;
  }
  if (!((*body >= '0' && *body <= '9') || *body == '.') || strspn(body, "0123456789.eE+-") != strlen(body))
    return false;
  char text[400]; /* ".5" and "5." are numbers to Python; a strict reader wants digits on both sides */
  size_t n = 0;
  for (const char *p = s; *p && n + 3 < sizeof text; p++) {
    if (p == s && *p == '+') continue;
    if (*p == '.' && (p == body || p[-1] < '0' || p[-1] > '9')) text[n++] = '0';
    text[n++] = *p;
    if (*p == '.' && (p[1] < '0' || p[1] > '9')) text[n++] = '0';
  }
  int rc = pst_parse_double((pst_str){text, n}, out);
  if (rc == PST_E_LIMIT) *out = *s == '-' ? -(double)INFINITY : (double)INFINITY;
  return (rc == 0 || rc == PST_E_LIMIT) && strcmp(body, ".") != 0;
}

static bool too_big(tpl_ctx *c) {
  return pst_engine_tpl_fail_unsupported(c, "arithmetic with whole numbers beyond 64 bits");
}

static bool int_of_float(tpl_ctx *c, double f, tpl_val *out) {
  if (!(fabs(f) < 9.2e18)) return too_big(c);
  *out = pst_engine_tpl_int((int64_t)f);
  return true;
}

static bool int_of_text(tpl_ctx *c, const tpl_str *s, int64_t base, const tpl_val *fallback, tpl_val *out) {
  char text[400];
  const tpl_str *stripped = pst_engine_tpl_str_strip(c, s, NULL, 3);
  int64_t i;
  double f;
  if (!stripped) return false;
  *out = *fallback;
  if (!clean_number(pst_engine_tpl_view(stripped), text, sizeof text)) return true;
  int got = read_int(text, base, &i);
  if (got < 0) return too_big(c);
  if (got)
    *out = pst_engine_tpl_int(i);
  else if (read_float(text, &f) && !isnan(f) && !isinf(f))
    return int_of_float(c, f, out);
  return true;
}

FILTER(int) {
  static const char *const names[] = {"default", "base"};
  tpl_val v[2];
  int64_t base = 10;
  if (!pst_engine_tpl_arguments(c, "do_int", args, names, 2, 0, v)) return false;
  if (v[0].kind == TPL_MISSING) v[0] = pst_engine_tpl_int(0);
  if (v[1].kind != TPL_MISSING && !pst_engine_tpl_want_int(c, &v[1], &base)) return false;
  if (base != 0 && (base < 2 || base > 36)) return pst_engine_tpl_fail_unsupported(c, "a number base outside 2 to 36");
  switch (self->kind) {
  case TPL_INT:
  case TPL_BIGINT: *out = *self; return true;
  case TPL_BOOL: *out = pst_engine_tpl_int(self->u.b); return true;
  case TPL_FLOAT:
    if (isnan(self->u.f))
      *out = v[0];
    else if (isinf(self->u.f))
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "cannot convert float infinity to integer");
    else
      return int_of_float(c, self->u.f, out);
    return true;
  case TPL_STR: return int_of_text(c, self->u.s, base, &v[0], out);
  case TPL_UNDEFINED: return pst_engine_tpl_fail_undefined(c, self);
  default: *out = v[0]; return true;
  }
}

FILTER(float) {
  static const char *const names[] = {"default"};
  tpl_val fallback;
  char text[400];
  double f;
  if (!pst_engine_tpl_arguments(c, "do_float", args, names, 1, 0, &fallback)) return false;
  *out = fallback.kind == TPL_MISSING ? pst_engine_tpl_float(0.0) : fallback;
  switch (self->kind) {
  case TPL_INT: *out = pst_engine_tpl_float((double)self->u.i); return true;
  case TPL_BOOL: *out = pst_engine_tpl_float(self->u.b); return true;
  case TPL_FLOAT: *out = *self; return true;
  case TPL_BIGINT:
  case TPL_STR: {
    const tpl_str *stripped = pst_engine_tpl_str_strip(c, self->u.s, NULL, 3);
    if (!stripped) return false;
    if (clean_number(pst_engine_tpl_view(stripped), text, sizeof text) && read_float(text, &f))
      *out = pst_engine_tpl_float(f);
    return true;
  }
  case TPL_UNDEFINED: return pst_engine_tpl_fail_undefined(c, self);
  default: return true;
  }
}

FILTER(abs) {
  int64_t i = self->kind == TPL_INT ? self->u.i : self->kind == TPL_BOOL ? self->u.b : 0;
  if (!pst_engine_tpl_arguments(c, "abs", args, NULL, 0, 0, NULL)) return false;
  if (self->kind == TPL_FLOAT)
    *out = pst_engine_tpl_float(fabs(self->u.f));
  else if (self->kind != TPL_INT && self->kind != TPL_BOOL)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "bad operand type for abs(): '%s'", pst_engine_tpl_type_name(self));
  else if (i < 0 && __builtin_sub_overflow((int64_t)0, i, &i))
    return too_big(c);
  else
    *out = pst_engine_tpl_int(i);
  return true;
}

FILTER(round) {
  static const char *const names[] = {"precision", "method"};
  tpl_val v[2];
  int64_t precision = 0;
  if (!pst_engine_tpl_arguments(c, "do_round", args, names, 2, 0, v)) return false;
  if (v[0].kind != TPL_MISSING && !pst_engine_tpl_want_int(c, &v[0], &precision)) return false;
  pst_str method = v[1].kind == TPL_STR       ? pst_engine_tpl_view(v[1].u.s)
                   : v[1].kind == TPL_MISSING ? PST_STR("common")
                                              : PST_STR("");
  bool up = pst_str_is(method, "ceil"), down = pst_str_is(method, "floor");
  if (!up && !down && !pst_str_is(method, "common"))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "method must be common, ceil or floor");
  if (self->kind == TPL_UNDEFINED || (self->kind != TPL_INT && self->kind != TPL_BOOL && self->kind != TPL_FLOAT))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "type %s doesn't define __round__ method",
                               pst_engine_tpl_type_name(self));
  if (precision < 0 || precision > 300)
    return pst_engine_tpl_fail_unsupported(c, "rounding to other than 0 to 300 places");
  if (self->kind != TPL_FLOAT && !up && !down) {
    *out = pst_engine_tpl_int(self->kind == TPL_INT ? self->u.i : self->u.b);
    return true;
  }
  double f = self->kind == TPL_FLOAT ? self->u.f : self->kind == TPL_INT ? (double)self->u.i : self->u.b;
  if (up || down) {
    double scale = pow(10, (double)precision), r = up ? ceil(f * scale) : floor(f * scale);
    *out = pst_engine_tpl_float(r / scale);
    return true;
  }
  char text[700];
  snprintf(text, sizeof text, "%.*f", (int)precision, f); /* exact, ties to even, as Python rounds */
  if (isnan(f) || isinf(f))
    *out = pst_engine_tpl_float(f);
  else if (pst_parse_double(pst_str_from(text), &f))
    return too_big(c);
  else
    *out = pst_engine_tpl_float(f);
  return true;
}

FILTER(default) {
  static const char *const names[] = {"default_value", "boolean"};
  tpl_val v[2];
  bool boolean, holds = true;
  if (!pst_engine_tpl_arguments(c, "do_default", args, names, 2, 0, v) || !pst_engine_tpl_truth(c, &v[1], &boolean))
    return false;
  if (v[0].kind == TPL_MISSING) {
    v[0] = pst_engine_tpl_string(pst_engine_tpl_str_view(c, PST_STR(""), true));
    if (v[0].kind != TPL_STR) return false;
  }
  if (boolean && self->kind != TPL_UNDEFINED && !pst_engine_tpl_truth(c, self, &holds)) return false;
  *out = self->kind == TPL_UNDEFINED || !holds ? v[0] : *self;
  return true;
}

const tpl_function pst_engine_tpl_scalar_filters[] = {
    {"abs", filter_abs},
    {"attr", NULL},
    {"capitalize", filter_capitalize},
    {"center", filter_center},
    {"d", filter_default},
    {"default", filter_default},
    {"e", filter_escape},
    {"escape", filter_escape},
    {"filesizeformat", NULL},
    {"float", filter_float},
    {"forceescape", filter_forceescape},
    {"format", filter_format},
    {"indent", filter_indent},
    {"int", filter_int},
    {"lower", filter_lower},
    {"pprint", NULL},
    {"random", NULL},
    {"replace", filter_replace},
    {"round", filter_round},
    {"safe", filter_safe},
    {"string", filter_string},
    {"striptags", NULL},
    {"title", filter_title},
    {"tojson", pst_engine_tpl_tojson},
    {"trim", filter_trim},
    {"truncate", filter_truncate},
    {"upper", filter_upper},
    {"urlencode", NULL},
    {"urlize", NULL},
    {"wordcount", filter_wordcount},
    {"wordwrap", NULL},
    {"xmlattr", NULL},
    {NULL, NULL},
};

const tpl_function *pst_engine_tpl_find_filter(pst_str name) {
  const tpl_function *f = pst_engine_tpl_find_function(pst_engine_tpl_scalar_filters, name);
  return f ? f : pst_engine_tpl_find_function(pst_engine_tpl_sequence_filters, name);
}
