/* Bytes and text: views, the growable buffer, strict number parsing.
 *
 * Views never own; a buffer owns its bytes and keeps them terminated. Encodings are unicode.c's business: everything here is
 * bytewise. Buffer errors are sticky so that code that writes text needs one check, at the end. Number parsing does not depend
 * on the process's locale. */
#include <penstock/base.h>

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- views ---- */

pst_str pst_str_from(const char *terminated) {
  return terminated ? (pst_str){terminated, strlen(terminated)} : (pst_str){NULL, 0};
}

bool pst_str_equal(pst_str a, pst_str b) { return a.n == b.n && (a.n == 0 || memcmp(a.data, b.data, a.n) == 0); }

bool pst_str_is(pst_str a, const char *terminated) { return pst_str_equal(a, pst_str_from(terminated)); }

bool pst_str_starts(pst_str a, pst_str prefix) {
  return a.n >= prefix.n && pst_str_equal((pst_str){a.data, prefix.n}, prefix);
}

int pst_str_compare(pst_str a, pst_str b) {
  size_t n = PST_MIN(a.n, b.n);
  int order = n ? memcmp(a.data, b.data, n) : 0;
  return order ? order : (a.n > b.n) - (a.n < b.n);
}

bool pst_is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

pst_str pst_str_trim(pst_str a) {
  while (a.n && pst_is_space(a.data[0])) {
    a.data++;
    a.n--;
  }
  while (a.n && pst_is_space(a.data[a.n - 1])) a.n--;
  return a;
}

size_t pst_str_find(pst_str hay, pst_str needle, size_t from) {
  if (from > hay.n) return SIZE_MAX;
  if (needle.n == 0) return from;
  if (needle.n > hay.n - from) return SIZE_MAX;
  const char *at = memmem(hay.data + from, hay.n - from, needle.data, needle.n);
  return at ? (size_t)(at - hay.data) : SIZE_MAX;
}

/* ---- buffer ---- */

void pst_buf_done(pst_buf *b) {
  pst_free(b->data);
  *b = (pst_buf)PST_BUF_INIT;
}

void pst_buf_clear(pst_buf *b) {
  b->n = 0;
  b->failed = false;
  if (b->data) b->data[0] = '\0';
}

int pst_buf_reserve(pst_buf *b, size_t extra) {
  if (b->failed) return PST_E_NOMEM;
  if (extra < b->capacity - b->n) return 0; /* strictly less: the terminator needs its byte */
  if (extra > (size_t)PTRDIFF_MAX - b->n - 1) {
    b->failed = true;
    return PST_E_NOMEM;
  }
  size_t need = b->n + extra + 1;
  size_t wanted = PST_MAX(need, (size_t)64);
  if (b->capacity <= (size_t)PTRDIFF_MAX / 2) wanted = PST_MAX(wanted, b->capacity * 2);
  char *grown = pst_realloc(b->data, wanted);
  if (!grown) {
    b->failed = true;
    return PST_E_NOMEM;
  }
  b->data = grown;
  b->capacity = wanted;
  b->data[b->n] = '\0';
  return 0;
}

void pst_buf_append(pst_buf *b, const void *data, size_t n) {
  if (n == 0) return;
  /* The source may lie inside the buffer, which growing moves. */
  uintptr_t begin = (uintptr_t)b->data, source = (uintptr_t)data;
  bool inside = b->data && source >= begin && source - begin <= b->n;
  if (pst_buf_reserve(b, n) != 0) return;
  memmove(b->data + b->n, inside ? b->data + (source - begin) : (const char *)data, n);
  b->n += n;
  b->data[b->n] = '\0';
}

void pst_buf_append_str(pst_buf *b, pst_str s) { pst_buf_append(b, s.data, s.n); }

void pst_buf_puts(pst_buf *b, const char *terminated) { pst_buf_append(b, terminated, strlen(terminated)); }

void pst_buf_putc(pst_buf *b, char c) {
  if (pst_buf_reserve(b, 1) != 0) return;
  b->data[b->n++] = c;
  b->data[b->n] = '\0';
}

void pst_buf_printf(pst_buf *b, const char *format, ...) {
  va_list args;
  va_start(args, format);
  pst_buf_vprintf(b, format, args);
  va_end(args);
}

void pst_buf_vprintf(pst_buf *b, const char *format, va_list args) {
  va_list again;
  va_copy(again, args);
  int n = vsnprintf(NULL, 0, format, args);
  if (n < 0)
    b->failed = true; /* over INT_MAX bytes, or a wide character libc cannot encode */
  else if (pst_buf_reserve(b, (size_t)n) == 0) {
    (void)vsnprintf(b->data + b->n, (size_t)n + 1, format, again);
    b->n += (size_t)n;
  }
  va_end(again);
}

int pst_buf_status(const pst_buf *b) { return b->failed ? PST_E_NOMEM : 0; }

const char *pst_buf_text(const pst_buf *b) { return b->data ? b->data : ""; }

pst_str pst_buf_str(const pst_buf *b) { return (pst_str){pst_buf_text(b), b->n}; }

char *pst_buf_take(pst_buf *b) {
  char *text = NULL;
  if (!b->failed && pst_buf_reserve(b, 0) == 0) {
    text = b->data;
    b->data = NULL;
  }
  pst_buf_done(b);
  return text;
}

/* ---- numbers ---- */

int pst_parse_i64(pst_str text, int64_t min, int64_t max, int64_t *ret_value) {
  size_t i = 0;
  bool negative = false;
  if (i < text.n && (text.data[i] == '-' || text.data[i] == '+')) negative = text.data[i++] == '-';
  if (i == text.n) return PST_E_BAD_INPUT;
  uint64_t magnitude = 0;
  uint64_t bound = negative ? (uint64_t)1 << 63 : (uint64_t)INT64_MAX;
  bool over = false;
  for (; i < text.n; i++) {
    if (text.data[i] < '0' || text.data[i] > '9') return PST_E_BAD_INPUT;
    uint64_t digit = (uint64_t)(text.data[i] - '0');
    if (magnitude > (bound - digit) / 10)
      over = true;
    else
      magnitude = magnitude * 10 + digit;
  }
  if (over) return PST_E_LIMIT;
  int64_t value = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
  if (value < min || value > max) return PST_E_LIMIT;
  *ret_value = value;
  return 0;
}

/* sign? (digits ('.' digits?)? | '.' digits) ([eE] sign? digits)?: no names, no hexadecimal, no blanks. */
static bool is_decimal(pst_str text) {
  size_t i = 0, mantissa_digits = 0, exponent_digits = 0;
  if (i < text.n && (text.data[i] == '-' || text.data[i] == '+')) i++;
  for (; i < text.n && text.data[i] >= '0' && text.data[i] <= '9'; i++) mantissa_digits++;
  if (i < text.n && text.data[i] == '.')
    for (i++; i < text.n && text.data[i] >= '0' && text.data[i] <= '9'; i++) mantissa_digits++;
  if (mantissa_digits == 0) return false;
  if (i < text.n && (text.data[i] == 'e' || text.data[i] == 'E')) {
    i++;
    if (i < text.n && (text.data[i] == '-' || text.data[i] == '+')) i++;
    for (; i < text.n && text.data[i] >= '0' && text.data[i] <= '9'; i++) exponent_digits++;
    if (exponent_digits == 0) return false;
  }
  return i == text.n;
}

static pthread_once_t c_locale_once = PTHREAD_ONCE_INIT;
static locale_t c_locale;

static void c_locale_open(void) { c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); }

#define NUMBER_TEXT_BYTES_MAX 1024u

int pst_parse_double(pst_str text, double *ret_value) {
  if (!is_decimal(text)) return PST_E_BAD_INPUT;
  char copy[NUMBER_TEXT_BYTES_MAX];
  if (text.n >= sizeof copy) return PST_E_LIMIT;
  memcpy(copy, text.data, text.n);
  copy[text.n] = '\0';
  (void)pthread_once(&c_locale_once, c_locale_open);
  double value = c_locale != (locale_t)0 ? strtod_l(copy, NULL, c_locale) : strtod(copy, NULL);
  if (!isfinite(value)) return PST_E_LIMIT;
  *ret_value = value;
  return 0;
}
