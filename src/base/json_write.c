/* JSON: writing, number text and the canonical form (RFC 8785).
 *
 * Text goes straight into a buffer; nothing is built in between. Numbers are written as ECMAScript writes them, from the
 * shortest digits that read back as the same double, so that the plain writer and the canonical form agree (but for what a
 * reader of whole numbers would misread). yyjson's writer finds the digits (closest among the shortest). */
#include "base/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

#define WRITER_DEPTH_MAX 512

/* ---- numbers ---- */

int pst_double_digits(double value, char ret_digits[24], int *ret_point) {
  char space[512]; /* for yyjson's pool: its header and one number */
  yyjson_alc pool;
  yyjson_val boxed;
  size_t n_text = 0;
  const char *text = NULL;
  memset(&boxed, 0, sizeof boxed);
  unsafe_yyjson_set_tag(&boxed, YYJSON_TYPE_NUM, YYJSON_SUBTYPE_REAL, 0);
  boxed.uni.f64 = fabs(value);
  if (yyjson_alc_pool_init(&pool, space, sizeof space))
    text = yyjson_val_write_opts(&boxed, YYJSON_WRITE_NOFLAG, &pool, &n_text, NULL);
  int n = 0, point = 0;
  bool after_point = false, exponent_negative = false;
  size_t i = 0;
  for (; i < n_text && text[i] != 'e' && text[i] != 'E'; i++) {
    if (text[i] == '.') {
      after_point = true;
    } else if (n > 0 || text[i] != '0') {
      if (n < 23) ret_digits[n++] = text[i];
      point += !after_point;
    } else {
      point -= after_point; /* zeros between the point and the first digit */
    }
  }
  int exponent = 0;
  for (i++; i < n_text; i++) {
    if (text[i] == '-')
      exponent_negative = true;
    else if (text[i] >= '0' && text[i] <= '9' && exponent < 10000)
      exponent = exponent * 10 + (text[i] - '0');
  }
  point += exponent_negative ? -exponent : exponent;
  while (n > 0 && ret_digits[n - 1] == '0') n--;
  if (n == 0) {
    ret_digits[n++] = '0';
    point = 1;
  }
  ret_digits[n] = '\0';
  *ret_point = point;
  return n;
}

/* ECMA-262, Number::toString: k digits, value = 0.digits * 10^point. */
size_t pst_double_text(double value, char ret_text[40]) {
  char digits[24];
  int point;
  int k = pst_double_digits(value, digits, &point);
  char *out = ret_text;
  if (value < 0) *out++ = '-';
  if (k <= point && point <= 21) {
    memcpy(out, digits, (size_t)k);
    memset(out + k, '0', (size_t)(point - k));
    out += point;
  } else if (0 < point && point <= 21) {
    memcpy(out, digits, (size_t)point);
    out[point] = '.';
    memcpy(out + point + 1, digits + point, (size_t)(k - point));
    out += k + 1;
  } else if (-6 < point && point <= 0) {
    *out++ = '0';
    *out++ = '.';
    memset(out, '0', (size_t)-point);
    memcpy(out - point, digits, (size_t)k);
    out += k - point;
  } else {
    *out++ = digits[0];
    if (k > 1) {
      *out++ = '.';
      memcpy(out, digits + 1, (size_t)(k - 1));
      out += k - 1;
    }
    out += snprintf(out, 8, "e%c%d", point > 0 ? '+' : '-', abs(point - 1));
  }
  return (size_t)(out - ret_text);
}

/* ---- strings ---- */

static bool is_plain(unsigned char c) { return c >= 0x20 && c < 0x80 && c != '"' && c != '\\'; }

static void put_escaped(pst_buf *out, unsigned char c) {
  static const char hex[] = "0123456789abcdef";
  char short_form = c == '"'    ? '"'
                    : c == '\\' ? '\\'
                    : c == '\b' ? 'b'
                    : c == '\t' ? 't'
                    : c == '\n' ? 'n'
                    : c == '\f' ? 'f'
                    : c == '\r' ? 'r'
                                : '\0';
  if (short_form) {
    char escape[2] = {'\\', short_form};
    pst_buf_append(out, escape, sizeof escape);
  } else {
    char escape[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
    pst_buf_append(out, escape, sizeof escape);
  }
}

/* RFC 8785's escapes: the short ones, \u00xx for other controls, everything else as it is. */
static void put_string(pst_buf *out, pst_str s) {
  pst_buf_putc(out, '"');
  for (size_t i = 0; i < s.n;) {
    size_t run = i;
    while (run < s.n && is_plain((unsigned char)s.data[run])) run++;
    pst_buf_append(out, s.data + i, run - i);
    i = run;
    if (i == s.n) break;
    if ((unsigned char)s.data[i] < 0x80) {
      put_escaped(out, (unsigned char)s.data[i++]);
    } else {
      char bytes[4];
      uint32_t code_point = pst_utf8_next(s.data, s.n, &i);
      pst_buf_append(out, bytes, pst_utf8_put(code_point, bytes));
    }
  }
  pst_buf_putc(out, '"');
}

/* ---- writer ---- */

pst_json_writer pst_json_writer_on(pst_buf *out, bool pretty) {
  pst_json_writer w;
  memset(&w, 0, sizeof w);
  w.out = out;
  w.pretty = pretty;
  return w;
}

/* The bit "this container has items" of the container at the current depth; depth 1 is bit 0. */
static bool has_items(const pst_json_writer *w) {
  int bit = w->depth - 1;
  return w->depth > 0 && (w->has_items[bit / 8] >> (bit % 8) & 1) != 0;
}

static void set_has_items(pst_json_writer *w, bool value) {
  int bit = w->depth - 1;
  if (w->depth <= 0) return;
  uint8_t mask = (uint8_t)(1u << (bit % 8));
  w->has_items[bit / 8] = (uint8_t)(value ? w->has_items[bit / 8] | mask : w->has_items[bit / 8] & ~mask);
}

static void new_line(pst_json_writer *w) {
  pst_buf_putc(w->out, '\n');
  for (int i = 0; i < w->depth; i++) pst_buf_append(w->out, "  ", 2);
}

/* What stands between this entry and the one before it. */
static void before_item(pst_json_writer *w) {
  if (w->after_key) {
    w->after_key = false;
    return;
  }
  if (w->depth <= 0) return;
  if (has_items(w)) pst_buf_putc(w->out, ',');
  if (w->pretty) new_line(w);
  set_has_items(w, true);
}

static void begin(pst_json_writer *w, char bracket) {
  before_item(w);
  if (w->depth >= WRITER_DEPTH_MAX) {
    w->out->failed = true; /* sticky, and no half text is taken for a whole one */
    return;
  }
  pst_buf_putc(w->out, bracket);
  w->depth++;
  set_has_items(w, false);
}

static void end(pst_json_writer *w, char bracket) {
  if (w->depth <= 0) {
    w->out->failed = true;
    return;
  }
  bool any = has_items(w);
  w->depth--;
  if (any && w->pretty) new_line(w);
  pst_buf_putc(w->out, bracket);
}

void pst_json_begin_object(pst_json_writer *w) { begin(w, '{'); }

void pst_json_end_object(pst_json_writer *w) { end(w, '}'); }

void pst_json_begin_array(pst_json_writer *w) { begin(w, '['); }

void pst_json_end_array(pst_json_writer *w) { end(w, ']'); }

void pst_json_key_str(pst_json_writer *w, pst_str key) {
  before_item(w);
  put_string(w->out, key);
  pst_buf_putc(w->out, ':');
  if (w->pretty) pst_buf_putc(w->out, ' ');
  w->after_key = true;
}

void pst_json_key(pst_json_writer *w, const char *key) { pst_json_key_str(w, pst_str_from(key)); }

void pst_json_put_raw(pst_json_writer *w, pst_str json_text) {
  before_item(w);
  pst_buf_append_str(w->out, json_text);
}

void pst_json_member_str(pst_json_writer *w, const char *key, pst_str value) {
  pst_json_key(w, key);
  pst_json_put_str(w, value);
}

void pst_json_member_strs(pst_json_writer *w, const char *key, const pst_str *values, size_t n) {
  pst_json_key(w, key);
  pst_json_begin_array(w);
  for (size_t i = 0; i < n; i++) pst_json_put_str(w, values[i]);
  pst_json_end_array(w);
}

void pst_json_member_cstr(pst_json_writer *w, const char *key, const char *value) {
  pst_json_key(w, key);
  pst_json_put_cstr(w, value);
}
void pst_json_member_opt(pst_json_writer *w, const char *key, pst_str value) {
  pst_json_key(w, key);
  if (value.data)
    pst_json_put_str(w, value);
  else
    pst_json_put_null(w);
}
void pst_json_member_int(pst_json_writer *w, const char *key, int64_t value) {
  pst_json_key(w, key);
  pst_json_put_int(w, value);
}
void pst_json_member_double(pst_json_writer *w, const char *key, double value) {
  pst_json_key(w, key);
  pst_json_put_double(w, value);
}
void pst_json_member_bool(pst_json_writer *w, const char *key, bool value) {
  pst_json_key(w, key);
  pst_json_put_bool(w, value);
}

void pst_json_put_str(pst_json_writer *w, pst_str s) {
  before_item(w);
  put_string(w->out, s);
}

void pst_json_put_cstr(pst_json_writer *w, const char *s) {
  if (s)
    pst_json_put_str(w, pst_str_from(s));
  else
    pst_json_put_null(w);
}

void pst_json_put_int(pst_json_writer *w, int64_t i) {
  before_item(w);
  pst_buf_printf(w->out, "%lld", (long long)i);
}

/* Beyond 2^53 the shortest digits of a double may be those of another whole number, and would be read as that: 234567890123456768 is
 * written 234567890123456770. From 2^64 on nothing is read as a whole number. */
static bool reads_as_another(double d, const char *text) {
  double size = fabs(d);
  if (!(size > 9007199254740992.0 && size < 18446744073709551616.0)) return false;
  return strtoull(text + (d < 0), NULL, 10) != (uint64_t)size;
}

void pst_json_put_double(pst_json_writer *w, double d) {
  char text[40];
  if (!isfinite(d)) {
    pst_json_put_null(w);
  } else if (d == 0 && signbit(d)) {
    pst_json_put_raw(w, PST_STR("-0.0")); /* ECMAScript's "0" would not read back */
  } else {
    size_t n = pst_double_text(d, text);
    text[n] = '\0';
    if (reads_as_another(d, text)) n += (size_t)snprintf(text + n, sizeof text - n, ".0");
    pst_json_put_raw(w, (pst_str){text, n});
  }
}

void pst_json_put_bool(pst_json_writer *w, bool b) { pst_json_put_raw(w, b ? PST_STR("true") : PST_STR("false")); }

void pst_json_put_null(pst_json_writer *w) { pst_json_put_raw(w, PST_STR("null")); }

static yyjson_val *plain(const pst_json *v) { return (yyjson_val *)(uintptr_t)v; }

static void put_number(pst_json_writer *w, yyjson_val *number) {
  char text[32];
  if (yyjson_is_real(number)) {
    pst_json_put_double(w, yyjson_get_real(number));
    return;
  }
  int n = yyjson_is_sint(number) ? snprintf(text, sizeof text, "%lld", (long long)yyjson_get_sint(number))
                                 : snprintf(text, sizeof text, "%llu", (unsigned long long)yyjson_get_uint(number));
  pst_json_put_raw(w, (pst_str){text, n > 0 ? (size_t)n : 0});
}

void pst_json_put_value(pst_json_writer *w, const pst_json *v) {
  if (w->out->failed) return; /* also ends the recursion where the writer's depth did not suffice */
  pst_json_iter it;
  switch (pst_json_typeof(v)) {
  case PST_JSON_BOOL: pst_json_put_bool(w, pst_json_bool(v, false)); break;
  case PST_JSON_NUMBER: put_number(w, plain(v)); break;
  case PST_JSON_STRING: pst_json_put_str(w, pst_json_str(v)); break;
  case PST_JSON_ARRAY:
    pst_json_begin_array(w);
    for (it = pst_json_iterate(v); pst_json_next(&it);) pst_json_put_value(w, it.value);
    pst_json_end_array(w);
    break;
  case PST_JSON_OBJECT:
    pst_json_begin_object(w);
    for (it = pst_json_iterate(v); pst_json_next(&it);) {
      pst_json_key_str(w, it.key);
      pst_json_put_value(w, it.value);
    }
    pst_json_end_object(w);
    break;
  default: pst_json_put_null(w); break;
  }
}

/* ---- canonical form ---- */

typedef struct member {
  pst_str key;
  const pst_json *value;
} member;

/* Order by UTF-16 code units, on UTF-8: as bytes, except that four-byte sequences (surrogate pairs, D800 to DFFF) come before
 * U+E000 to U+FFFF, whose lead bytes are EE and EF. Such a byte is always a lead byte. */
static int compare_utf16(pst_str a, pst_str b) {
  size_t n = PST_MIN(a.n, b.n);
  for (size_t i = 0; i < n; i++) {
    unsigned char x = (unsigned char)a.data[i], y = (unsigned char)b.data[i];
    if (x == y) continue;
    if (x >= 0xEE && y >= 0xEE && (x >= 0xF0) != (y >= 0xF0)) return x >= 0xF0 ? -1 : 1;
    return x < y ? -1 : 1;
  }
  return (a.n > b.n) - (a.n < b.n);
}

static int compare_members(const void *a, const void *b) {
  return compare_utf16(((const member *)a)->key, ((const member *)b)->key);
}

static int canonical_value(const pst_json *v, pst_buf *out);

static int canonical_object(const pst_json *v, pst_buf *out) {
  size_t n = pst_json_size(v);
  member *members = pst_calloc(n, sizeof *members);
  if (!members) return PST_E_NOMEM;
  pst_json_iter it = pst_json_iterate(v);
  for (size_t i = 0; i < n && pst_json_next(&it); i++) members[i] = (member){it.key, it.value};
  qsort(members, n, sizeof *members, compare_members);
  int rc = 0;
  pst_buf_putc(out, '{');
  for (size_t i = 0; i < n && rc == 0; i++) {
    if (i > 0) pst_buf_putc(out, ',');
    put_string(out, members[i].key);
    pst_buf_putc(out, ':');
    rc = canonical_value(members[i].value, out);
  }
  pst_buf_putc(out, '}');
  pst_free(members);
  return rc;
}

static int canonical_array(const pst_json *v, pst_buf *out) {
  int rc = 0;
  pst_json_iter it = pst_json_iterate(v);
  pst_buf_putc(out, '[');
  while (rc == 0 && pst_json_next(&it)) {
    if (it.index > 1) pst_buf_putc(out, ',');
    rc = canonical_value(it.value, out);
  }
  pst_buf_putc(out, ']');
  return rc;
}

/* Recursion is bounded by the reader's depth limit. */
static int canonical_value(const pst_json *v, pst_buf *out) {
  char text[40];
  switch (pst_json_typeof(v)) {
  case PST_JSON_BOOL: pst_buf_puts(out, pst_json_bool(v, false) ? "true" : "false"); break;
  case PST_JSON_NUMBER: pst_buf_append(out, text, pst_double_text(pst_json_double(v, 0), text)); break;
  case PST_JSON_STRING: put_string(out, pst_json_str(v)); break;
  case PST_JSON_ARRAY: return canonical_array(v, out);
  case PST_JSON_OBJECT: return canonical_object(v, out);
  default: pst_buf_puts(out, "null"); break;
  }
  return pst_buf_status(out);
}

int pst_json_canonical(const pst_json *v, pst_buf *out) {
  int rc = canonical_value(v, out);
  return rc ? rc : pst_buf_status(out);
}
