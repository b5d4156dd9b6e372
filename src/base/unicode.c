/* Unicode: UTF-8 both ways, character properties and normalisation.
 *
 * Decoding is our own because its answer to broken input is a contract: one U+FFFD for each maximal subpart (the Unicode
 * standard's table 3-7), as Python's errors='replace' gives, since tokenizers are compared with references that go that
 * way. Properties and decompositions are utf8proc's. Canonical ordering is our own as well: utf8proc's takes quadratic time on a
 * long run of combining marks, which a request could send. */
#include <penstock/base.h>

#include <string.h>
#include <utf8proc.h>

#define REPLACEMENT 0xFFFDu

/* ---- UTF-8 ---- */

/* Of a lead byte: the bytes in its sequence and the range of the second one. Length 0: not a lead byte. */
typedef struct utf8_lead {
  uint8_t length, low, high;
} utf8_lead;

static utf8_lead lead_of(uint8_t c) {
  if (c < 0x80) return (utf8_lead){1, 0, 0};
  if (c < 0xC2) return (utf8_lead){0, 0, 0};
  if (c < 0xE0) return (utf8_lead){2, 0x80, 0xBF};
  if (c < 0xF0) return (utf8_lead){3, c == 0xE0 ? 0xA0 : 0x80, c == 0xED ? 0x9F : 0xBF};
  if (c < 0xF5) return (utf8_lead){4, c == 0xF0 ? 0x90 : 0x80, c == 0xF4 ? 0x8F : 0xBF};
  return (utf8_lead){0, 0, 0};
}

/* Length of the well-formed or truncated sequence at data[0], n > 0; *ret_code_point is REPLACEMENT and *ret_good false unless
 * it is whole. */
static size_t decode(const uint8_t *data, size_t n, uint32_t *ret_code_point, bool *ret_good) {
  *ret_code_point = REPLACEMENT;
  *ret_good = false;
  utf8_lead lead = lead_of(data[0]);
  if (lead.length == 0) return 1;
  if (lead.length == 1) {
    *ret_code_point = data[0];
    *ret_good = true;
    return 1;
  }
  if (n < 2 || data[1] < lead.low || data[1] > lead.high) return 1;
  uint32_t code_point = (data[0] & (0x7Fu >> lead.length)) << 6 | (data[1] & 0x3Fu);
  for (size_t i = 2; i < lead.length; i++) {
    if (i >= n || (data[i] & 0xC0) != 0x80) return i;
    code_point = code_point << 6 | (data[i] & 0x3Fu);
  }
  *ret_code_point = code_point;
  *ret_good = true;
  return lead.length;
}

uint32_t pst_utf8_next(const char *data, size_t n, size_t *i) {
  uint32_t code_point;
  bool good;
  *i += decode((const uint8_t *)data + *i, n - *i, &code_point, &good);
  return code_point;
}

size_t pst_utf8_put(uint32_t code_point, char out[4]) {
  if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF)) code_point = REPLACEMENT;
  if (code_point < 0x80) {
    out[0] = (char)code_point;
    return 1;
  }
  if (code_point < 0x800) {
    out[0] = (char)(0xC0 | code_point >> 6);
    out[1] = (char)(0x80 | (code_point & 0x3F));
    return 2;
  }
  if (code_point < 0x10000) {
    out[0] = (char)(0xE0 | code_point >> 12);
    out[1] = (char)(0x80 | (code_point >> 6 & 0x3F));
    out[2] = (char)(0x80 | (code_point & 0x3F));
    return 3;
  }
  out[0] = (char)(0xF0 | code_point >> 18);
  out[1] = (char)(0x80 | (code_point >> 12 & 0x3F));
  out[2] = (char)(0x80 | (code_point >> 6 & 0x3F));
  out[3] = (char)(0x80 | (code_point & 0x3F));
  return 4;
}

/* Bytes at the beginning of data[0..n) that are well-formed UTF-8. */
static size_t valid_prefix(const char *data, size_t n) {
  size_t i = 0;
  while (i < n) {
    uint64_t word;
    if (n - i >= 8 && (memcpy(&word, data + i, 8), (word & 0x8080808080808080u) == 0)) {
      i += 8;
      continue;
    }
    uint32_t code_point;
    bool good;
    size_t length = decode((const uint8_t *)data + i, n - i, &code_point, &good);
    if (!good) break;
    i += length;
  }
  return i;
}

bool pst_utf8_valid(pst_str s) { return valid_prefix(s.data, s.n) == s.n; }

void pst_utf8_sanitize(pst_str s, pst_buf *out) {
  for (size_t i = 0; i < s.n;) {
    size_t good = valid_prefix(s.data + i, s.n - i);
    pst_buf_append(out, s.data + i, good);
    i += good;
    if (i < s.n) {
      (void)pst_utf8_next(s.data, s.n, &i);
      pst_buf_append(out, "\xEF\xBF\xBD", 3);
    }
  }
}

size_t pst_utf8_count(pst_str s) {
  size_t count = 0;
  for (size_t i = 0; i < s.n; count++) (void)pst_utf8_next(s.data, s.n, &i);
  return count;
}

size_t pst_utf8_incomplete_tail(pst_str s) {
  for (size_t back = 1; back <= 3 && back <= s.n; back++) {
    const uint8_t *at = (const uint8_t *)s.data + (s.n - back);
    if ((*at & 0xC0) == 0x80) continue; /* a continuation byte: its lead is farther back */
    uint32_t code_point;
    bool good;
    bool truncated = lead_of(*at).length > back && decode(at, back, &code_point, &good) == back;
    return truncated ? back : 0;
  }
  return 0;
}

/* ---- properties ---- */

uint32_t pst_unicode_lower(uint32_t cp) {
  return cp > 0x10FFFF ? cp : (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
}

uint32_t pst_unicode_upper(uint32_t cp) {
  return cp > 0x10FFFF ? cp : (uint32_t)utf8proc_toupper((utf8proc_int32_t)cp);
}

int pst_unicode_category(uint32_t cp) {
  return cp > 0x10FFFF ? UTF8PROC_CATEGORY_CN : (int)utf8proc_category((utf8proc_int32_t)cp);
}

bool pst_unicode_is_letter(uint32_t cp) {
  int category = pst_unicode_category(cp);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool pst_unicode_is_number(uint32_t cp) {
  int category = pst_unicode_category(cp);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool pst_unicode_is_space(uint32_t cp) {
  return (cp >= 0x09 && cp <= 0x0D) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
         (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

/* ---- normalisation ---- */

typedef struct code_points {
  utf8proc_int32_t *data;
  size_t n, capacity;
} code_points;

static int decompose(pst_str s, utf8proc_option_t options, code_points *out) {
  for (size_t i = 0; i < s.n;) {
    uint32_t cp = pst_utf8_next(s.data, s.n, &i);
    for (;;) {
      if (pst_array_reserve((void **)&out->data, &out->capacity, out->n + 1, sizeof *out->data) != 0)
        return PST_E_NOMEM;
      size_t room = PST_MIN(out->capacity - out->n, (size_t)1 << 20);
      utf8proc_ssize_t need =
          utf8proc_decompose_char((utf8proc_int32_t)cp, out->data + out->n, (utf8proc_ssize_t)room, options, NULL);
      if (need < 0) return PST_E_INTERNAL; /* only for code points that pst_utf8_next cannot give */
      if ((size_t)need <= room) {
        out->n += (size_t)need;
        break;
      }
      if (pst_array_reserve((void **)&out->data, &out->capacity, out->n + (size_t)need, sizeof *out->data) != 0)
        return PST_E_NOMEM;
    }
  }
  return 0;
}

static unsigned combining_class(utf8proc_int32_t cp) {
  return (unsigned)utf8proc_get_property(cp)->combining_class & 0xFF;
}

/* Stable sort of one run of marks by combining class: insertion while short, else counting, so that time stays linear. */
static int order_run(utf8proc_int32_t *run, size_t n) {
  if (n <= 32) {
    for (size_t i = 1; i < n; i++) {
      utf8proc_int32_t mark = run[i];
      unsigned class = combining_class(mark);
      size_t at = i;
      for (; at > 0 && combining_class(run[at - 1]) > class; at--) run[at] = run[at - 1];
      run[at] = mark;
    }
    return 0;
  }
  utf8proc_int32_t *copy = pst_calloc(n, sizeof *copy);
  if (!copy) return PST_E_NOMEM;
  size_t start[257] = {0};
  memcpy(copy, run, n * sizeof *copy);
  for (size_t i = 0; i < n; i++) start[combining_class(copy[i]) + 1]++;
  for (size_t class = 1; class < 257; class ++) start[class] += start[class - 1];
  for (size_t i = 0; i < n; i++) run[start[combining_class(copy[i])]++] = copy[i];
  pst_free(copy);
  return 0;
}

static int order_marks(code_points *text) {
  for (size_t i = 0; i < text->n;) {
    size_t end = i;
    while (end < text->n && combining_class(text->data[end]) != 0) end++;
    if (end - i > 1 && order_run(text->data + i, end - i) != 0) return PST_E_NOMEM;
    i = PST_MAX(end, i + 1);
  }
  return 0;
}

/* U+11A7 stands before the first trailing consonant of Hangul. utf8proc 2.8 takes it for one and swallows it behind a syllable;
 * it composes with nothing, so the pieces between such code points are composed one by one. */
#define HANGUL_NO_TRAIL 0x11A7

static int compose(code_points *text, utf8proc_option_t options) {
  size_t n_out = 0;
  for (size_t i = 0; i < text->n;) {
    size_t end = i;
    while (end < text->n && text->data[end] != HANGUL_NO_TRAIL) end++;
    if (end > i) {
      utf8proc_ssize_t n = utf8proc_normalize_utf32(text->data + i, (utf8proc_ssize_t)(end - i), options);
      if (n < 0) return PST_E_INTERNAL;
      memmove(text->data + n_out, text->data + i, (size_t)n * sizeof *text->data);
      n_out += (size_t)n;
    }
    if (end < text->n) text->data[n_out++] = HANGUL_NO_TRAIL;
    i = end + 1;
  }
  text->n = n_out;
  return 0;
}

int pst_unicode_normalize(pst_str s, const char *form, pst_buf *out) {
  bool compatible = strcmp(form, "NFKC") == 0 || strcmp(form, "NFKD") == 0;
  bool composed = strcmp(form, "NFC") == 0 || strcmp(form, "NFKC") == 0;
  if (!compatible && !composed && strcmp(form, "NFD") != 0) return PST_E_BAD_INPUT;
  unsigned options =
      UTF8PROC_STABLE | (composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compatible ? UTF8PROC_COMPAT : 0);
  code_points text = {NULL, 0, 0};
  int rc = decompose(s, (utf8proc_option_t)options, &text);
  if (rc == 0) rc = order_marks(&text);
  if (rc == 0 && composed) rc = compose(&text, (utf8proc_option_t)options);
  if (rc != 0) goto done;
  for (size_t i = 0; i < text.n; i++) {
    char bytes[4];
    pst_buf_append(out, bytes, pst_utf8_put((uint32_t)text.data[i], bytes));
  }
  rc = pst_buf_status(out);
done:
  pst_free(text.data);
  return rc;
}
