/* ECMA-262 patterns as PCRE2 reads them. The two agree on nearly all that schemas use; here is where they do not:
 * `$` is the very end, \p takes long names, \uXXXX is a code point (pairs of surrogates one), [^] is any character and [] none. \d and \w are ASCII in both by PST_REGEX_ASCII. */
#include "schema/schema.h"

static int hex4(pst_str s, size_t at, uint32_t *ret_value) {
  uint32_t value = 0;
  if (at + 4 > s.n) return PST_E_BAD_INPUT;
  for (size_t i = at; i < at + 4; i++) {
    char c = s.data[i];
    int digit = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
    if (digit < 0) return PST_E_BAD_INPUT;
    value = value * 16 + (uint32_t)digit;
  }
  *ret_value = value;
  return 0;
}

/* \p{Letter}, \p{General_Category=Letter}, \p{Script=Greek}: PCRE2 knows the short names of categories and the bare names of scripts. Returns the bytes read;
 * 0: it is none of these. */
static size_t put_property(pst_str s, size_t at, pst_buf *out) {
  static const struct {
    const char *name, *code;
  } categories[] = {{"Letter", "L"},
                    {"Cased_Letter", "L&"},
                    {"Uppercase_Letter", "Lu"},
                    {"Lowercase_Letter", "Ll"},
                    {"Titlecase_Letter", "Lt"},
                    {"Modifier_Letter", "Lm"},
                    {"Other_Letter", "Lo"},
                    {"Mark", "M"},
                    {"Nonspacing_Mark", "Mn"},
                    {"Spacing_Mark", "Mc"},
                    {"Enclosing_Mark", "Me"},
                    {"Number", "N"},
                    {"Decimal_Number", "Nd"},
                    {"digit", "Nd"},
                    {"Letter_Number", "Nl"},
                    {"Other_Number", "No"},
                    {"Punctuation", "P"},
                    {"punct", "P"},
                    {"Symbol", "S"},
                    {"Math_Symbol", "Sm"},
                    {"Currency_Symbol", "Sc"},
                    {"Separator", "Z"},
                    {"Space_Separator", "Zs"},
                    {"Other", "C"},
                    {"Control", "Cc"},
                    {"cntrl", "Cc"}};
  size_t end = pst_str_find(s, PST_STR("}"), at);
  if (at + 2 >= s.n || s.data[at + 2] != '{' || end == SIZE_MAX) return 0;
  pst_str name = {s.data + at + 3, end - at - 3};
  size_t equals = pst_str_find(name, PST_STR("="), 0);
  if (equals != SIZE_MAX) name = (pst_str){name.data + equals + 1, name.n - equals - 1};
  for (size_t i = 0; i < PST_ARRAY_LEN(categories); i++)
    if (pst_str_is(name, categories[i].name)) name = pst_str_from(categories[i].code);
  pst_buf_printf(out, "\\%c{%.*s}", s.data[at + 1], (int)name.n, name.data);
  return end + 1 - at;
}

/* The escape at `at` (a backslash that is not the last byte); returns how many bytes it has. */
static size_t put_escape(pst_str s, size_t at, pst_buf *out) {
  uint32_t code, low;
  size_t n = s.data[at + 1] == 'p' || s.data[at + 1] == 'P' ? put_property(s, at, out) : 0;
  if (n) return n;
  if (s.data[at + 1] != 'u' || hex4(s, at + 2, &code)) {
    pst_buf_append(out, s.data + at, 2);
    return 2;
  }
  n = 6;
  if (code >= 0xD800 && code < 0xDC00 && at + 7 < s.n && s.data[at + 6] == '\\' && s.data[at + 7] == 'u' &&
      !hex4(s, at + 8, &low) && low >= 0xDC00 && low < 0xE000) {
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    n = 12;
  }
  pst_buf_printf(out, "\\x{%X}", (unsigned)code);
  return n;
}

int pst_schema_pattern_translate(pst_str s, pst_buf *out) {
  bool in_class = false;
  for (size_t i = 0; i < s.n;) {
    char c = s.data[i], next = i + 1 < s.n ? s.data[i + 1] : 0;
    if (c == '\\' && next) {
      i += put_escape(s, i, out);
      continue;
    }
    if (!in_class && c == '[' && next == ']') {
      pst_buf_puts(out, "(?!)");
      i += 2;
      continue;
    }
    if (!in_class && c == '[' && next == '^' && i + 2 < s.n && s.data[i + 2] == ']') {
      pst_buf_puts(out, "[\\s\\S]");
      i += 3;
      continue;
    }
    if (!in_class && c == '$') {
      pst_buf_puts(out, "\\z");
    } else {
      if (in_class && c == '[') pst_buf_putc(out, '\\'); /* [[:alpha:]] means nothing special in ECMA-262 */
      pst_buf_putc(out, c);
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    i++;
  }
  return pst_buf_status(out);
}
