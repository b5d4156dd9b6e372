/* Texts made from formats: Python's % operator and str.format.
 *
 * Characters of the format and of inserted strings keep their origins; numbers and padding count as data. Parts of the two
 * little languages that templates do not use (thousands separators by locale, alternate float forms) are refused. */
#include "engine/template_types.h"

#include <math.h>
#include <string.h>

enum { MAX_PRECISION = 300, MAX_WIDTH = 1 << 16 };

typedef struct spec {
  const tpl_str *fill; /* NULL: a space */
  char align;          /* '<' '>' '^' '=' or 0 */
  char sign;           /* '+', ' ' or '-' */
  bool alternate, zero;
  char group;               /* ',' or '_' or 0 */
  int64_t width, precision; /* precision -1: none */
  char type;                /* 0: none */
} spec;

static bool is_one_of(const char *set, char c) { return c && strchr(set, c); }

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

/* Puts a separator every `every` digits into the leading digits of `digits`. */
static bool put_grouped(tpl_builder *b, const char *digits, size_t n, char separator, size_t every) {
  for (size_t i = 0; i < n; i++) {
    if (separator && i && (n - i) % every == 0 && !pst_engine_tpl_put(b, &separator, 1, false)) return false;
    if (!pst_engine_tpl_put(b, digits + i, 1, false)) return false;
  }
  return true;
}

static bool put_fill(tpl_builder *b, const spec *s, char fallback, int64_t n) {
  bool ok = true;
  for (int64_t i = 0; ok && i < n; i++)
    ok = s->fill ? pst_engine_tpl_put_str(b, s->fill) : pst_engine_tpl_put(b, &fallback, 1, false);
  return ok;
}

/* A text with padding; `prefix` (sign, 0x) stays in front of padding by '='. */
static bool put_padded(tpl_builder *b, const spec *s, const char *prefix, const tpl_str *body, char default_align) {
  int64_t n = (int64_t)pst_engine_tpl_chars(body) + (int64_t)strlen(prefix), more = s->width > n ? s->width - n : 0;
  char align = s->align ? s->align : default_align;
  char pad = s->zero && !s->fill ? '0' : ' ';
  int64_t left = align == '<' ? 0 : align == '^' ? more / 2 : more;
  bool inside = align == '=';
  return (inside || put_fill(b, s, pad, left)) && pst_engine_tpl_puts(b, prefix, false) &&
         (!inside || put_fill(b, s, pad, left)) && pst_engine_tpl_put_str(b, body) && put_fill(b, s, pad, more - left);
}

static const char *sign_of(bool negative, char sign) {
  return negative ? "-" : sign == '+' ? "+" : sign == ' ' ? " " : "";
}

static bool put_number(tpl_ctx *c, tpl_builder *b, const spec *s, const char *prefix, const char *digits,
                       size_t n_whole, size_t every) {
  tpl_builder body = pst_engine_tpl_builder(c);
  tpl_val v;
  if (s->zero && s->group) return pst_engine_tpl_fail_unsupported(c, "a number format with both zeros and separators");
  return put_grouped(&body, digits, n_whole, s->group, every) && pst_engine_tpl_puts(&body, digits + n_whole, false) &&
         pst_engine_tpl_build(&body, false, &v) && put_padded(b, s, prefix, v.u.s, s->zero ? '=' : '>');
}

static bool put_int(tpl_ctx *c, tpl_builder *b, const spec *s, int64_t value, char type) {
  uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
  char digits[72], prefix[8];
  unsigned base = type == 'b' ? 2 : type == 'o' ? 8 : type == 'x' || type == 'X' ? 16 : 10;
  size_t n = 0;
  do digits[n++] = (type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[magnitude % base];
  while (magnitude /= base);
  for (size_t i = 0; i < n / 2; i++) {
    char ch = digits[i];
    digits[i] = digits[n - 1 - i];
    digits[n - 1 - i] = ch;
  }
  digits[n] = '\0';
  bool marked = s->alternate && base != 10;
  snprintf(prefix, sizeof prefix, "%s%.*s", sign_of(value < 0, s->sign), marked ? 2 : 0,
           type == 'b'   ? "0b"
           : type == 'o' ? "0o"
           : type == 'X' ? "0X"
                         : "0x");
  return put_number(c, b, s, prefix, digits, n, base == 10 ? 3 : 4);
}

/* The digits of a float as C and Python both write them. out holds 309 + MAX_PRECISION and more. */
static void float_digits(char *out, size_t n_out, double magnitude, char type, int precision) {
  if (isnan(magnitude) || isinf(magnitude)) {
    bool upper = type == 'E' || type == 'F' || type == 'G';
    snprintf(out, n_out, "%s", isnan(magnitude) ? upper ? "NAN" : "nan" : upper ? "INF" : "inf");
    return;
  }
  switch (type) {
  case 'e': snprintf(out, n_out, "%.*e", precision, magnitude); break;
  case 'E': snprintf(out, n_out, "%.*E", precision, magnitude); break;
  case 'g': snprintf(out, n_out, "%.*g", precision, magnitude); break;
  case 'G': snprintf(out, n_out, "%.*G", precision, magnitude); break;
  default: snprintf(out, n_out, "%.*f", precision, magnitude); break;
  }
}

static bool put_float(tpl_ctx *c, tpl_builder *b, const spec *s, double f, char type) {
  char digits[1024];
  if (s->precision > MAX_PRECISION)
    return pst_engine_tpl_fail_unsupported(c, "a number format of more than 300 digits");
  if (s->alternate) return pst_engine_tpl_fail_unsupported(c, "the alternate form of floats");
  float_digits(digits, sizeof digits - 1, fabs(f), type == '%' ? 'f' : type, s->precision < 0 ? 6 : (int)s->precision);
  if (type == '%')
    float_digits(digits, sizeof digits - 1, fabs(f * 100), 'f', s->precision < 0 ? 6 : (int)s->precision);
  if (type == '%') memcpy(digits + strlen(digits), "%", 2);
  size_t n_whole = strspn(digits, "0123456789");
  return put_number(c, b, s, sign_of(signbit(f) && !isnan(f), s->sign), digits, n_whole, 3);
}

static bool is_int(const tpl_val *v) { return v->kind == TPL_INT || v->kind == TPL_BOOL; }
static int64_t int_of(const tpl_val *v) { return v->kind == TPL_BOOL ? v->u.b : v->u.i; }

/* A string cut to the precision and padded. */
static bool put_text(tpl_ctx *c, tpl_builder *b, const spec *s, const tpl_str *text, char default_align) {
  if (s->precision >= 0) {
    text = pst_engine_tpl_str_slice(c, text, 0, pst_engine_tpl_char_offset(text, (size_t)s->precision));
    if (!text) return false;
  }
  return put_padded(b, s, "", text, default_align);
}

/* ---- % ---------------------------------------------------------------------------------------------------------- */

typedef struct percent {
  tpl_ctx *c;
  const tpl_str *format;
  size_t at;
  const tpl_val *values; /* a tuple, a mapping, or one value */
  size_t n_taken;
  bool used_name;
  tpl_builder b;
} percent;

static bool take_value(percent *p, tpl_val *out) {
  bool tuple = p->values->kind == TPL_TUPLE;
  size_t n = tuple ? p->values->u.list->n : 1;
  if (p->n_taken >= n || p->used_name)
    return pst_engine_tpl_fail(p->c, PST_E_BAD_INPUT, "not enough arguments for format string");
  *out = tuple ? p->values->u.list->items[p->n_taken] : *p->values;
  p->n_taken++;
  return true;
}

/* Digits or a star. */
static bool read_amount(percent *p, int64_t *out) {
  const tpl_str *f = p->format;
  if (p->at < f->n && f->data[p->at] == '*') {
    tpl_val v;
    p->at++;
    if (!take_value(p, &v)) return false;
    if (!is_int(&v)) return pst_engine_tpl_fail(p->c, PST_E_BAD_INPUT, "* wants int");
    *out = int_of(&v);
  } else {
    *out = 0;
    while (p->at < f->n && f->data[p->at] >= '0' && f->data[p->at] <= '9' && *out <= MAX_WIDTH)
      *out = *out * 10 + (f->data[p->at++] - '0');
  }
  return (*out <= MAX_WIDTH && *out >= -MAX_WIDTH) ||
         pst_engine_tpl_fail(p->c, PST_E_LIMIT, "a width of more than %d", MAX_WIDTH);
}

static bool read_percent_spec(percent *p, spec *s, tpl_val *value, bool *ret_named) {
  const tpl_str *f = p->format;
  *s = (spec){.precision = -1};
  *ret_named = p->at < f->n && f->data[p->at] == '(';
  if (*ret_named) {
    size_t end = pst_str_find(pst_engine_tpl_view(f), PST_STR(")"), p->at);
    if (end == SIZE_MAX) return pst_engine_tpl_fail(p->c, PST_E_BAD_INPUT, "incomplete format key");
    if (p->values->kind != TPL_DICT) return pst_engine_tpl_fail(p->c, PST_E_BAD_INPUT, "format requires a mapping");
    pst_str key = {f->data + p->at + 1, end - p->at - 1};
    const tpl_val *found = pst_engine_tpl_dict_get(p->values->u.dict, key);
    if (!found) return pst_engine_tpl_fail(p->c, PST_E_BAD_INPUT, "'%.*s'", (int)PST_MIN(key.n, 200u), key.data);
    *value = *found;
    p->used_name = true;
    p->at = end + 1;
  }
  for (; p->at < f->n && is_one_of("-+ #0", f->data[p->at]); p->at++) {
    switch (f->data[p->at]) {
    case '-': s->align = '<'; break;
    case '+': s->sign = '+'; break;
    case ' ': s->sign = s->sign ? s->sign : ' '; break;
    case '#': s->alternate = true; break;
    default: s->zero = true; break;
    }
  }
  if (!read_amount(p, &s->width)) return false;
  if (s->width < 0) {
    s->align = '<';
    s->width = -s->width;
  }
  if (p->at < f->n && f->data[p->at] == '.') {
    p->at++;
    if (!read_amount(p, &s->precision)) return false;
    if (s->precision < 0) s->precision = 0;
  }
  if (p->at < f->n && is_one_of("hlL", f->data[p->at])) p->at++;
  if (p->at >= f->n) return pst_engine_tpl_fail(p->c, PST_E_BAD_INPUT, "incomplete format");
  if (s->align == '<') s->zero = false;
  s->type = f->data[p->at++];
  return true;
}

static bool percent_text(percent *p, const spec *s, const tpl_val *value) {
  tpl_val text;
  const tpl_str *str;
  if (s->type == 's') {
    if (!pst_engine_tpl_to_str(p->c, value, &str)) return false;
    text = pst_engine_tpl_string(str);
    if (p->format->markup && !pst_engine_tpl_escape_html(p->c, str, &text)) return false;
  } else {
    tpl_builder b = pst_engine_tpl_builder(p->c);
    if (!pst_engine_tpl_repr(&b, value) || !pst_engine_tpl_build(&b, false, &text)) return false;
  }
  return put_text(p->c, &p->b, s, text.u.s, '>');
}

static bool percent_number(percent *p, spec *s, const tpl_val *value) {
  tpl_ctx *c = p->c;
  bool whole = is_one_of("diuxXo", s->type);
  if (value->kind == TPL_UNDEFINED) return pst_engine_tpl_fail_undefined(c, value);
  if (!is_int(value) && (value->kind != TPL_FLOAT || (whole && is_one_of("xXo", s->type)))) {
    if (!whole)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "must be real number, not %s", pst_engine_tpl_type_name(value));
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%%%c format: %s is required, not %s", s->type,
                               is_one_of("xXo", s->type) ? "an integer" : "a real number",
                               pst_engine_tpl_type_name(value));
  }
  if (!whole) return put_float(c, &p->b, s, is_int(value) ? (double)int_of(value) : value->u.f, s->type);
  if (s->precision >= 0) return pst_engine_tpl_fail_unsupported(c, "a precision with whole numbers");
  int64_t i = is_int(value) ? int_of(value) : 0;
  if (!is_int(value)) {
    if (!(fabs(value->u.f) < 9e18))
      return pst_engine_tpl_fail_unsupported(c, "arithmetic with whole numbers beyond 64 bits");
    i = (int64_t)value->u.f;
  }
  return put_int(c, &p->b, s, i, s->type == 'i' || s->type == 'u' ? 'd' : s->type);
}

static bool percent_one(percent *p) {
  spec s;
  tpl_val value;
  bool named;
  if (!read_percent_spec(p, &s, &value, &named)) return false;
  if (s.type == '%') return pst_engine_tpl_put_slice(&p->b, p->format, p->at - 1, p->at);
  if (!is_one_of("sradiuxXoeEfFgGc", s.type))
    return pst_engine_tpl_fail(p->c, PST_E_BAD_INPUT, "unsupported format character '%c' (0x%x) at index %zu", s.type,
                               (unsigned)(unsigned char)s.type,
                               pst_engine_tpl_chars(p->format) == p->format->n ? p->at - 1 : 0);
  if (s.type == 'a' || s.type == 'c') return pst_engine_tpl_fail_unsupported(p->c, "the formats %a and %c");
  if (!named && !take_value(p, &value)) return false;
  return s.type == 's' || s.type == 'r' ? percent_text(p, &s, &value) : percent_number(p, &s, &value);
}

bool pst_engine_tpl_percent(tpl_ctx *c, const tpl_str *format, const tpl_val *values, tpl_val *out) {
  percent p = {.c = c, .format = format, .values = values, .b = pst_engine_tpl_builder(c)};
  if (!pst_engine_tpl_charge(c, format->n)) return false;
  while (p.at < format->n) {
    size_t sign = pst_str_find(pst_engine_tpl_view(format), PST_STR("%"), p.at);
    size_t end = sign == SIZE_MAX ? format->n : sign;
    if (!pst_engine_tpl_put_slice(&p.b, format, p.at, end)) return false;
    p.at = end;
    if (sign == SIZE_MAX) break;
    p.at++;
    if (!percent_one(&p)) return false;
  }
  size_t n = values->kind == TPL_TUPLE                              ? values->u.list->n
             : values->kind == TPL_DICT || values->kind == TPL_LIST ? 0
                                                                    : 1;
  if (p.n_taken < n && !p.used_name)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "not all arguments converted during string formatting");
  return pst_engine_tpl_build(&p.b, format->markup, out);
}

/* ---- str.format ------------------------------------------------------------------------------------------------- */

typedef struct formatter {
  tpl_ctx *c;
  const tpl_args *args;
  size_t n_auto;
  bool autos, manual; /* {} and {0} do not mix */
  bool markup;
} formatter;

static bool format_value(formatter *f, tpl_builder *b, const tpl_val *v, const tpl_str *spec_text);
static bool expand(formatter *f, tpl_builder *b, const tpl_str *s, int depth);

static bool all_digits(pst_str s) {
  for (size_t i = 0; i < s.n; i++) {
    if (s.data[i] < '0' || s.data[i] > '9') return false;
  }
  return s.n > 0 && s.n < 10;
}

static bool field_argument(formatter *f, pst_str name, tpl_val *out) {
  tpl_ctx *c = f->c;
  int64_t index;
  if (!name.n || all_digits(name)) {
    if (name.n)
      f->manual = true;
    else
      f->autos = true;
    if (f->manual && f->autos)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                                 name.n ? "cannot switch from automatic field numbering to manual field specification"
                                        : "cannot switch from manual field specification to automatic field numbering");
    if (!name.n)
      index = (int64_t)f->n_auto++;
    else if (pst_parse_i64(name, 0, INT32_MAX, &index))
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Too many decimal digits in format string");
    if ((size_t)index >= f->args->n)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Replacement index %lld out of range for positional args tuple",
                                 (long long)index);
    *out = f->args->items[index];
    return true;
  }
  for (size_t i = 0; i < f->args->n_named; i++) {
    if (!pst_str_equal(f->args->names[i], name)) continue;
    *out = f->args->named[i];
    return true;
  }
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%.*s'", (int)PST_MIN(name.n, 200u), name.data);
}

/* name(.attribute | [item])* */
static bool field_value(formatter *f, const tpl_str *s, size_t start, size_t end, tpl_val *out) {
  size_t i = start;
  while (i < end && s->data[i] != '.' && s->data[i] != '[') i++;
  if (!field_argument(f, (pst_str){s->data + start, i - start}, out)) return false;
  while (i < end) {
    bool item = s->data[i] == '[';
    size_t from = ++i;
    while (i < end && (item ? s->data[i] != ']' : s->data[i] != '.' && s->data[i] != '[')) i++;
    if (item && i >= end) return pst_engine_tpl_fail(f->c, PST_E_BAD_INPUT, "Missing ']' in format string");
    if (i == from) return pst_engine_tpl_fail(f->c, PST_E_BAD_INPUT, "Empty attribute in format string");
    pst_str name = {s->data + from, i - from};
    tpl_val object = *out;
    if (!item) {
      if (!pst_engine_tpl_getattr(f->c, &object, name, out)) return false;
    } else {
      int64_t index = 0;
      if (all_digits(name) && pst_parse_i64(name, 0, INT32_MAX, &index))
        return pst_engine_tpl_fail(f->c, PST_E_BAD_INPUT, "Too many decimal digits in format string");
      tpl_val key = all_digits(name) ? pst_engine_tpl_int(index)
                                     : pst_engine_tpl_string(pst_engine_tpl_str_new(f->c, name, false));
      if (key.kind == TPL_MISSING || !pst_engine_tpl_getitem(f->c, &object, &key, out)) return false;
      i++;
      if (i < end && s->data[i] != '.' && s->data[i] != '[')
        return pst_engine_tpl_fail(f->c, PST_E_BAD_INPUT, "Only '.' or '[' may follow ']' in format field specifier");
    }
  }
  return true;
}

/* What follows ! and :, then the value itself. */
static bool field(formatter *f, tpl_builder *b, const tpl_str *s, size_t start, size_t end, int depth) {
  tpl_ctx *c = f->c;
  size_t i = start;
  for (bool bracket = false; i < end && (bracket || (s->data[i] != '!' && s->data[i] != ':')); i++)
    bracket = s->data[i] == '[' || (bracket && s->data[i] != ']');
  tpl_val v, spec_value;
  if (!field_value(f, s, start, i, &v)) return false;
  if (i < end && s->data[i] == '!') {
    char how = i + 1 < end ? s->data[i + 1] : '\0';
    i += 2;
    if (how == '\0' || (i < end && s->data[i] != ':'))
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "expected ':' after conversion specifier");
    const tpl_str *text;
    if (how == 'r') {
      tpl_builder repr = pst_engine_tpl_builder(c);
      tpl_val r;
      if (!pst_engine_tpl_repr(&repr, &v) || !pst_engine_tpl_build(&repr, false, &r)) return false;
      v = r;
    } else if (how == 's') {
      if (!pst_engine_tpl_to_str(c, &v, &text)) return false;
      v = pst_engine_tpl_string(text);
    } else {
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Unknown conversion specifier %c", how);
    }
  }
  const tpl_str *raw = pst_engine_tpl_str_slice(c, s, PST_MIN(i + 1, end), end);
  tpl_builder spec_text = pst_engine_tpl_builder(c);
  if (!raw) return false;
  if (depth >= 1 && memchr(raw->data, '{', raw->n))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Max string recursion exceeded");
  return expand(f, &spec_text, raw, depth + 1) && pst_engine_tpl_build(&spec_text, false, &spec_value) &&
         format_value(f, b, &v, spec_value.u.s);
}

static bool expand(formatter *f, tpl_builder *b, const tpl_str *s, int depth) {
  if (!pst_engine_tpl_charge(f->c, s->n)) return false;
  for (size_t i = 0; i < s->n;) {
    size_t start = i;
    while (i < s->n && s->data[i] != '{' && s->data[i] != '}') i++;
    if (!pst_engine_tpl_put_slice(b, s, start, i)) return false;
    if (i >= s->n) break;
    if (i + 1 < s->n && s->data[i + 1] == s->data[i]) {
      if (!pst_engine_tpl_put_slice(b, s, i, i + 1)) return false;
      i += 2;
      continue;
    }
    if (s->data[i] == '}') return pst_engine_tpl_fail(f->c, PST_E_BAD_INPUT, "Single '}' encountered in format string");
    size_t open = ++i;
    int nested = 1;
    for (; i < s->n; i++) {
      if (s->data[i] == '{') nested++;
      if (s->data[i] == '}' && --nested == 0) break;
    }
    if (nested)
      return pst_engine_tpl_fail(f->c, PST_E_BAD_INPUT,
                                 open == s->n ? "Single '{' encountered in format string"
                                              : "expected '}' before end of string");
    if (!field(f, b, s, open, i, depth)) return false;
    i++;
  }
  return true;
}

static bool read_spec(tpl_ctx *c, const tpl_str *text, spec *s) {
  size_t i = 0, next = 0;
  *s = (spec){.precision = -1};
  if (text->n) pst_utf8_next(text->data, text->n, &next);
  if (text->n && next < text->n && is_one_of("<>=^", text->data[next])) {
    s->fill = pst_engine_tpl_str_slice(c, text, 0, next);
    if (!s->fill) return false;
    s->align = text->data[next];
    i = next + 1;
  } else if (text->n && is_one_of("<>=^", text->data[0])) {
    s->align = text->data[i++];
  }
  if (i < text->n && (text->data[i] == '+' || text->data[i] == '-' || text->data[i] == ' ')) s->sign = text->data[i++];
  if (i < text->n && text->data[i] == '#') s->alternate = true, i++;
  if (i < text->n && text->data[i] == '0') s->zero = true, i++;
  for (; i < text->n && text->data[i] >= '0' && text->data[i] <= '9' && s->width <= MAX_WIDTH; i++)
    s->width = s->width * 10 + (text->data[i] - '0');
  if (i < text->n && (text->data[i] == ',' || text->data[i] == '_')) s->group = text->data[i++];
  if (i < text->n && text->data[i] == '.') {
    size_t first = ++i;
    s->precision = 0;
    for (; i < text->n && text->data[i] >= '0' && text->data[i] <= '9' && s->precision <= MAX_WIDTH; i++)
      s->precision = s->precision * 10 + (text->data[i] - '0');
    if (i == first) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Format specifier missing precision");
  }
  if (s->width > MAX_WIDTH || s->precision > MAX_WIDTH)
    return pst_engine_tpl_fail(c, PST_E_LIMIT, "a width of more than %d", MAX_WIDTH);
  if (i < text->n) s->type = text->data[i++];
  if (i < text->n) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Invalid format specifier");
  return true;
}

static bool unknown_code(tpl_ctx *c, char type, const tpl_val *v) {
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Unknown format code '%c' for object of type '%s'", type,
                             pst_engine_tpl_type_name(v));
}

static bool format_value(formatter *f, tpl_builder *b, const tpl_val *v, const tpl_str *spec_text) {
  tpl_ctx *c = f->c;
  spec s;
  if (!spec_text->n || v->kind == TPL_UNDEFINED) {
    const tpl_str *text;
    if (!pst_engine_tpl_to_str(c, v, &text)) return false;
    tpl_val escaped = pst_engine_tpl_string(text);
    if (f->markup && !pst_engine_tpl_escape_html(c, text, &escaped)) return false;
    return pst_engine_tpl_put_str(b, escaped.u.s);
  }
  if (f->markup) return pst_engine_tpl_fail_unsupported(c, "format specifiers with Markup");
  if (!read_spec(c, spec_text, &s)) return false;
  if (v->kind == TPL_STR) {
    if (s.type && s.type != 's') return unknown_code(c, s.type, v);
    if (s.align == '=' || s.sign || s.alternate || s.group)
      return pst_engine_tpl_fail_unsupported(c, "number formats of strings");
    return put_text(c, b, &s, v->u.s, '<');
  }
  if (is_int(v) && (!s.type || is_one_of("dboxX", s.type))) {
    if (s.precision >= 0)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Precision not allowed in integer format specifier");
    return put_int(c, b, &s, int_of(v), s.type ? s.type : 'd');
  }
  if (is_int(v) || v->kind == TPL_FLOAT) {
    double value = is_int(v) ? (double)int_of(v) : v->u.f;
    if (is_one_of("eEfFgG%", s.type)) return put_float(c, b, &s, value, s.type);
    if (s.type)
      return strchr("cn", s.type) ? pst_engine_tpl_fail_unsupported(c, "the format codes c and n")
                                  : unknown_code(c, s.type, v);
    if (s.precision >= 0) return pst_engine_tpl_fail_unsupported(c, "a precision without a format code");
    char text[40];
    pst_engine_tpl_float_repr(fabs(value), text);
    return put_number(c, b, &s, sign_of(signbit(value) && !isnan(value), s.sign), text, strspn(text, "0123456789"), 3);
  }
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "unsupported format string passed to %s.__format__",
                             pst_engine_tpl_type_name(v));
}

bool pst_engine_tpl_format(tpl_ctx *c, const tpl_str *format, const tpl_args *args, tpl_val *out) {
  formatter f = {.c = c, .args = args, .markup = format->markup};
  tpl_builder b = pst_engine_tpl_builder(c);
  return expand(&f, &b, format, 0) && pst_engine_tpl_build(&b, format->markup, out);
}
