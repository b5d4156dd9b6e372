/* The forms of text that graders and near-duplicate clusters compare.
 *
 * Owns no knowledge of tasks. Both forms go through Unicode NFKC, so that full-width letters, ligatures and composed accents do not
 * decide whether an answer is right. */
#include "evals/workload.h"

#include <string.h>

/* utf8proc_category_t, as pst_unicode_category gives it. */
enum { CATEGORY_MN = 6, CATEGORY_ME = 8, CATEGORY_PC = 12, CATEGORY_PO = 18, CATEGORY_SK = 21 };

static bool is_mark(uint32_t cp) {
  int c = pst_unicode_category(cp);
  return c >= CATEGORY_MN && c <= CATEGORY_ME;
}

static bool is_punctuation(uint32_t cp) {
  int c = pst_unicode_category(cp);
  return (c >= CATEGORY_PC && c <= CATEGORY_PO) || c == CATEGORY_SK;
}

static bool is_word(uint32_t cp) {
  if (cp < 128) return (cp >= '0' && cp <= '9') || ((cp | 32) >= 'a' && (cp | 32) <= 'z');
  return pst_unicode_is_letter(cp) || pst_unicode_is_number(cp) || is_mark(cp);
}

/* Letters of scripts that write no spaces between words. */
static bool stands_alone(uint32_t cp) {
  return (cp >= 0x3040 && cp <= 0x30ff) || (cp >= 0x3400 && cp <= 0x9fff) || (cp >= 0xf900 && cp <= 0xfaff) ||
         (cp >= 0x20000 && cp <= 0x3ffff);
}

int pst_evals_fold(pst_str text, pst_buf *out) {
  pst_buf clean = PST_BUF_INIT, composed = PST_BUF_INIT, lower = PST_BUF_INIT;
  pst_utf8_sanitize(text, &clean);
  int code = pst_buf_status(&clean);
  if (!code) code = pst_unicode_normalize(pst_buf_str(&clean), "NFKC", &composed);
  for (size_t i = 0; !code && i < composed.n;) {
    char bytes[4];
    pst_buf_append(&lower, bytes, pst_utf8_put(pst_unicode_lower(pst_utf8_next(composed.data, composed.n, &i)), bytes));
  }
  if (!code) code = pst_buf_status(&lower);
  if (!code) code = pst_unicode_normalize(pst_buf_str(&lower), "NFKC", out);
  pst_buf_done(&clean);
  pst_buf_done(&composed);
  pst_buf_done(&lower);
  return code ? code : pst_buf_status(out);
}

/* The code point before offset `end`, and where it begins. s is valid UTF-8. */
static uint32_t code_point_before(pst_str s, size_t end, size_t *ret_start) {
  size_t start = end - 1;
  while (start > 0 && ((unsigned char)s.data[start] & 0xc0) == 0x80) start--;
  *ret_start = start;
  size_t i = start;
  return pst_utf8_next(s.data, end, &i);
}

static bool digit_at(pst_str s, size_t i) { return i < s.n && s.data[i] >= '0' && s.data[i] <= '9'; }

/* Punctuation and spaces off both ends; all of it where nothing else is there. */
static pst_str strip(pst_str s) {
  pst_str inner = s;
  while (inner.n) {
    size_t next = 0;
    uint32_t cp = pst_utf8_next(inner.data, inner.n, &next);
    bool belongs = (cp == '-' || cp == '.') && digit_at(inner, next);
    if (belongs || !(cp == ' ' || is_punctuation(cp))) break;
    inner.data += next;
    inner.n -= next;
  }
  while (inner.n) {
    size_t start;
    uint32_t cp = code_point_before(inner, inner.n, &start);
    bool belongs = cp == '%' && start > 0 && digit_at(inner, start - 1);
    if (belongs || !(cp == ' ' || is_punctuation(cp))) break;
    inner.n = start;
  }
  return inner.n ? inner : s;
}

int pst_evals_normalize(pst_str text, pst_buf *out) {
  pst_buf folded = PST_BUF_INIT, spaced = PST_BUF_INIT;
  int code = pst_evals_fold(text, &folded);
  bool gap = false;
  for (size_t i = 0; !code && i < folded.n;) {
    size_t start = i;
    if (pst_unicode_is_space(pst_utf8_next(folded.data, folded.n, &i))) {
      gap = true;
      continue;
    }
    if (gap && spaced.n) pst_buf_putc(&spaced, ' ');
    gap = false;
    pst_buf_append(&spaced, folded.data + start, i - start);
  }
  if (!code) code = pst_buf_status(&spaced);
  if (!code) pst_buf_append_str(out, strip(pst_buf_str(&spaced)));
  pst_buf_done(&folded);
  pst_buf_done(&spaced);
  return code ? code : pst_buf_status(out);
}

int pst_evals_words(pst_str text, pst_buf *out) {
  pst_buf folded = PST_BUF_INIT;
  int code = pst_evals_fold(text, &folded);
  size_t begin = out->n;
  bool gap = false;
  for (size_t i = 0; !code && i < folded.n;) {
    size_t start = i;
    uint32_t cp = pst_utf8_next(folded.data, folded.n, &i);
    if (!is_word(cp)) {
      gap = true;
      continue;
    }
    bool alone = stands_alone(cp);
    if ((gap || alone) && out->n > begin) pst_buf_putc(out, ' ');
    pst_buf_append(out, folded.data + start, i - start);
    gap = alone;
  }
  pst_buf_done(&folded);
  return code ? code : pst_buf_status(out);
}
