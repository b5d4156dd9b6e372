/* Template text to tokens.
 *
 * Owns Jinja's lexical rules as `transformers` configures them: trim_blocks, lstrip_blocks, the - and + of tags, raw blocks,
 * comments, string escapes. The order in which alternatives are tried is Jinja's, since odd templates depend on it. Knows
 * nothing of grammar. */
#include "engine/template_types.h"

#include <string.h>

enum { MAX_BRACKETS = 256 };

typedef struct lexer {
  pst_arena *arena;
  pst_str s; /* newlines normalised, one at the end removed */
  size_t at;
  int line;
  bool line_starting; /* what was consumed last ended a line */
  tpl_tokens *tokens;
  char brackets[MAX_BRACKETS]; /* closing ones that are awaited */
  int n_brackets;
  pst_error *err;
} lexer;

static int fail(lexer *x, int code, const char *format, ...) PST_PRINTF(3, 4);
static int fail(lexer *x, int code, const char *format, ...) {
  char message[256], place[32];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  snprintf(place, sizeof place, "template:%d", x->line);
  return pst_error_set(x->err, code, place, "%s", message);
}

static int out_of_memory(lexer *x) { return fail(x, PST_E_NOMEM, "out of memory"); }

bool pst_engine_tpl_grow(pst_arena *arena, void **items, size_t *capacity, size_t need, size_t element_bytes) {
  if (need <= *capacity) return true;
  size_t grown = PST_MAX(need, *capacity ? *capacity * 2 : 4);
  void *block = pst_arena_alloc(arena, grown * element_bytes);
  if (!block) return false;
  if (*capacity) memcpy(block, *items, *capacity * element_bytes);
  *items = block;
  *capacity = grown;
  return true;
}

static int push(lexer *x, tpl_token token) {
  tpl_tokens *t = x->tokens;
  void *items = t->items;
  if (!pst_engine_tpl_grow(x->arena, &items, &t->capacity, t->n + 1, sizeof *t->items)) return out_of_memory(x);
  t->items = items;
  t->items[t->n++] = token;
  return 0;
}

static int push_kind(lexer *x, tpl_token_kind kind) { return push(x, (tpl_token){.kind = kind, .line = x->line}); }

static char peek(const lexer *x, size_t ahead) { return ahead < x->s.n - x->at ? x->s.data[x->at + ahead] : '\0'; }
static bool follows(const lexer *x, const char *text) {
  size_t n = strlen(text);
  return x->s.n - x->at >= n && memcmp(x->s.data + x->at, text, n) == 0;
}

/* Moves to `to`, counting lines. */
static void advance(lexer *x, size_t to) {
  for (size_t i = x->at; i < to; i++) x->line += x->s.data[i] == '\n';
  if (to > x->at) x->line_starting = x->s.data[to - 1] == '\n';
  x->at = to;
}

static size_t skip_space(const lexer *x, size_t i) {
  while (i < x->s.n) {
    size_t next = i;
    if (!pst_engine_tpl_is_space(pst_utf8_next(x->s.data, x->s.n, &next))) break;
    i = next;
  }
  return i;
}

static size_t trim_right(const char *data, size_t n) {
  while (n) {
    size_t at = n - 1;
    while (at && ((unsigned char)data[at] & 0xC0) == 0x80) at--;
    size_t next = at;
    if (!pst_engine_tpl_is_space(pst_utf8_next(data, n, &next))) break;
    n = at;
  }
  return n;
}

/* Text up to a tag, which has this sign behind its opening: what of it stays. */
static size_t kept_text(const lexer *x, size_t start, size_t end, char sign, bool is_variable) {
  const char *text = x->s.data + start;
  size_t n = end - start;
  if (sign == '-') return trim_right(text, n);
  if (sign == '+' || is_variable) return n;
  size_t line = n;
  while (line && text[line - 1] != '\n') line--;
  if (line == 0 && !x->line_starting) return n;
  return trim_right(text + line, n - line) == 0 ? line : n;
}

static int push_data(lexer *x, size_t start, size_t n) {
  if (!n) return 0;
  return push(x, (tpl_token){.kind = TPL_T_DATA, .line = x->line, .text = {x->s.data + start, n}});
}

/* The end of a block-like tag at i: "%}" with its sign and what it swallows; 0 if there is none. plus: "+%}" is allowed. */
static size_t block_end(const lexer *x, size_t i, const char *mark, bool plus, bool trim) {
  const char *s = x->s.data;
  size_t n = x->s.n;
  char sign = '\0';
  if (i < n && (s[i] == '-' || (plus && s[i] == '+'))) sign = s[i++];
  if (n - i < 2 || memcmp(s + i, mark, 2) != 0) return 0;
  i += 2;
  if (sign == '-') return skip_space(x, i);
  if (!sign && trim && i < n && s[i] == '\n') i++;
  return i;
}

/* ---- comments and raw ------------------------------------------------------------------------------------------- */

static int lex_comment(lexer *x) {
  for (size_t i = x->at; i < x->s.n; i++) {
    size_t end = block_end(x, i, "#}", true, true);
    if (!end) continue;
    advance(x, end);
    return 0;
  }
  return fail(x, PST_E_BAD_INPUT, "Missing end of comment tag");
}

/* "{%- raw -%}" at the position, the brace included; its end or 0. */
static size_t raw_begin(const lexer *x) {
  size_t i = x->at + 2;
  if (i < x->s.n && (x->s.data[i] == '-' || x->s.data[i] == '+')) i++;
  i = skip_space(x, i);
  if (x->s.n - i < 3 || memcmp(x->s.data + i, "raw", 3) != 0) return 0;
  return block_end(x, skip_space(x, i + 3), "%}", false, false);
}

static int lex_raw(lexer *x) {
  size_t start = x->at;
  for (size_t i = start; i + 2 <= x->s.n; i++) {
    if (memcmp(x->s.data + i, "{%", 2) != 0) continue;
    size_t j = i + 2;
    char sign = '\0';
    if (j < x->s.n && (x->s.data[j] == '-' || x->s.data[j] == '+')) sign = x->s.data[j++];
    j = skip_space(x, j);
    if (x->s.n - j < 6 || memcmp(x->s.data + j, "endraw", 6) != 0) continue;
    size_t end = block_end(x, skip_space(x, j + 6), "%}", true, true);
    if (!end) continue;
    int rc = push_data(x, start, kept_text(x, start, i, sign, false));
    advance(x, end);
    return rc;
  }
  return fail(x, PST_E_BAD_INPUT, "Missing end of raw directive");
}

/* ---- inside of tags --------------------------------------------------------------------------------------------- */

static bool is_digit(char ch) { return ch >= '0' && ch <= '9'; }

/* digits with single underscores between them; returns the end, or `i` if there is none. */
static size_t digits(const lexer *x, size_t i) {
  size_t end = i;
  while (i < x->s.n && is_digit(x->s.data[i])) {
    end = ++i;
    if (i + 1 < x->s.n && x->s.data[i] == '_' && is_digit(x->s.data[i + 1])) i++;
  }
  return end;
}

static size_t exponent(const lexer *x, size_t i) {
  if (i >= x->s.n || (x->s.data[i] != 'e' && x->s.data[i] != 'E')) return i;
  size_t j = i + 1;
  if (j < x->s.n && (x->s.data[j] == '+' || x->s.data[j] == '-')) j++;
  size_t end = digits(x, j);
  return end > j ? end : i;
}

/* The end of a float at the position, or 0. */
static size_t float_end(const lexer *x) {
  if (x->at && x->s.data[x->at - 1] == '.') return 0;
  size_t whole = digits(x, x->at);
  if (whole == x->at) return 0;
  size_t end = whole;
  if (whole < x->s.n && x->s.data[whole] == '.') {
    size_t fraction = digits(x, whole + 1);
    if (fraction > whole + 1) end = fraction;
  }
  size_t with_exponent = exponent(x, end);
  return with_exponent > whole ? with_exponent : 0;
}

static int lex_float(lexer *x, size_t end) {
  char text[64];
  size_t n = 0;
  for (size_t i = x->at; i < end; i++) {
    if (x->s.data[i] == '_') continue;
    if (n == sizeof text) return fail(x, PST_E_UNSUPPORTED, "a number of more than %zu digits", sizeof text);
    text[n++] = x->s.data[i];
  }
  tpl_token token = {.kind = TPL_T_FLOAT, .line = x->line};
  if (pst_parse_double((pst_str){text, n}, &token.real)) return fail(x, PST_E_UNSUPPORTED, "a number out of range");
  advance(x, end);
  return push(x, token);
}

static int digit_value(char ch) {
  if (is_digit(ch)) return ch - '0';
  if (ch >= 'a' && ch <= 'f') return ch - 'a' + 10;
  if (ch >= 'A' && ch <= 'F') return ch - 'A' + 10;
  return 99;
}

static int lex_integer(lexer *x) {
  size_t i = x->at;
  int base = 10;
  char mark = (char)(peek(x, 1) | 0x20);
  if (x->s.data[i] == '0' && (mark == 'b' || mark == 'o' || mark == 'x')) {
    int wanted = mark == 'b' ? 2 : mark == 'o' ? 8 : 16;
    size_t first = i + 2 + (peek(x, 2) == '_');
    if (first < x->s.n && digit_value(x->s.data[first]) < wanted) {
      base = wanted;
      i = first;
    }
  }
  bool zeros = base == 10 && x->s.data[i] == '0'; /* "012" is 0 and then 12, which the parser refuses */
  int64_t value = 0;
  while (i < x->s.n) {
    int d = digit_value(x->s.data[i]);
    if (d >= base || (zeros && d)) break;
    if (__builtin_mul_overflow(value, (int64_t)base, &value) || __builtin_add_overflow(value, (int64_t)d, &value))
      return fail(x, PST_E_UNSUPPORTED, "a whole number beyond 64 bits");
    i++;
    if (i + 1 < x->s.n && x->s.data[i] == '_' && digit_value(x->s.data[i + 1]) < base) i++;
  }
  tpl_token token = {.kind = TPL_T_INTEGER, .line = x->line, .integer = value};
  advance(x, i);
  return push(x, token);
}

static size_t name_end(const lexer *x) {
  size_t i = x->at;
  while (i < x->s.n) {
    size_t next = i;
    uint32_t cp = pst_utf8_next(x->s.data, x->s.n, &next);
    bool word = cp < 128 ? cp == '_' || is_digit((char)cp) || ((cp | 0x20) >= 'a' && (cp | 0x20) <= 'z')
                         : pst_unicode_is_letter(cp) || pst_unicode_is_number(cp) || pst_unicode_category(cp) == 6;
    if (!word) break;
    i = next;
  }
  return i;
}

/* Hexadecimal digits of an escape. */
static int hex_escape(lexer *x, const char *data, size_t n, size_t count, const char *what, uint32_t *out) {
  *out = 0;
  for (size_t i = 0; i < count; i++) {
    if (i >= n || digit_value(data[i]) > 15) return fail(x, PST_E_BAD_INPUT, "truncated %s escape", what);
    *out = *out << 4 | (uint32_t)digit_value(data[i]);
  }
  if (*out > 0x10FFFF) return fail(x, PST_E_BAD_INPUT, "illegal Unicode character");
  if (*out >= 0xD800 && *out < 0xE000) return fail(x, PST_E_UNSUPPORTED, "a lone surrogate in a string");
  return 0;
}

/* One escape of Python's, behind the backslash at data[*i]. */
static int unescape(lexer *x, const char *data, size_t n, size_t *i, pst_buf *out) {
  static const char plain[] = "\\'\"abfnrtv", meant[] = "\\'\"\a\b\f\n\r\t\v";
  char ch = data[*i];
  ++*i;
  if (ch == '\n') return 0;
  const char *known = ch ? strchr(plain, ch) : NULL;
  uint32_t cp = 0;
  if (known) {
    pst_buf_putc(out, meant[known - plain]);
    return 0;
  }
  if (ch >= '0' && ch <= '7') {
    cp = (uint32_t)(ch - '0');
    for (int k = 0; k < 2 && *i < n && data[*i] >= '0' && data[*i] <= '7'; k++)
      cp = cp * 8 + (uint32_t)(data[(*i)++] - '0');
  } else if (ch == 'x' || ch == 'u' || ch == 'U') {
    size_t count = ch == 'x' ? 2 : ch == 'u' ? 4 : 8;
    int rc = hex_escape(x, data + *i, n - *i, count, ch == 'x' ? "\\xXX" : ch == 'u' ? "\\uXXXX" : "\\UXXXXXXXX", &cp);
    if (rc) return rc;
    *i += count;
  } else if (ch == 'N') {
    return fail(x, PST_E_UNSUPPORTED, "the escape \\N{...} in a string");
  } else {
    pst_buf_putc(out, '\\');
    --*i; /* the character itself, all bytes of it, follows as it is */
    return 0;
  }
  char utf8[4];
  pst_buf_append(out, utf8, pst_utf8_put(cp, utf8));
  return 0;
}

static int lex_string(lexer *x, bool *ret_matched) {
  char quote = x->s.data[x->at];
  size_t end = x->at + 1;
  while (end < x->s.n && x->s.data[end] != quote) end += x->s.data[end] == '\\' ? 2 : 1;
  *ret_matched = end < x->s.n;
  if (!*ret_matched) return 0;
  const char *data = x->s.data + x->at + 1;
  size_t n = end - x->at - 1;
  pst_buf out = PST_BUF_INIT;
  int rc = 0;
  for (size_t i = 0; i < n && !rc;) {
    if (data[i] != '\\')
      pst_buf_putc(&out, data[i++]);
    else
      i++, rc = unescape(x, data, n, &i, &out);
  }
  char *copy = NULL;
  if (!rc && (pst_buf_status(&out) || !(copy = pst_arena_strndup(x->arena, pst_buf_text(&out), out.n))))
    rc = out_of_memory(x);
  if (!rc) rc = push(x, (tpl_token){.kind = TPL_T_STRING, .line = x->line, .text = {copy, out.n}});
  pst_buf_done(&out);
  if (!rc) advance(x, end + 1);
  return rc;
}

static const struct {
  const char *text;
  tpl_token_kind kind;
} operators[] = {
    /* longer first */
    {"//", TPL_T_FLOORDIV}, {"**", TPL_T_POW},   {"==", TPL_T_EQ},      {"!=", TPL_T_NE},      {">=", TPL_T_GE},
    {"<=", TPL_T_LE},       {"+", TPL_T_ADD},    {"-", TPL_T_SUB},      {"/", TPL_T_DIV},      {"*", TPL_T_MUL},
    {"%", TPL_T_MOD},       {"~", TPL_T_TILDE},  {"[", TPL_T_LBRACKET}, {"]", TPL_T_RBRACKET}, {"(", TPL_T_LPAREN},
    {")", TPL_T_RPAREN},    {"{", TPL_T_LBRACE}, {"}", TPL_T_RBRACE},   {">", TPL_T_GT},       {"<", TPL_T_LT},
    {"=", TPL_T_ASSIGN},    {".", TPL_T_DOT},    {":", TPL_T_COLON},    {"|", TPL_T_PIPE},     {",", TPL_T_COMMA},
    {";", TPL_T_SEMICOLON},
};

static int lex_operator(lexer *x) {
  for (size_t i = 0; i < PST_ARRAY_LEN(operators); i++) {
    if (!follows(x, operators[i].text)) continue;
    char ch = operators[i].text[0];
    if (ch == '{' || ch == '(' || ch == '[') {
      if (x->n_brackets == MAX_BRACKETS) return fail(x, PST_E_LIMIT, "brackets nest deeper than %d", MAX_BRACKETS);
      x->brackets[x->n_brackets++] = ch == '{' ? '}' : ch == '(' ? ')' : ']';
    } else if (ch == '}' || ch == ')' || ch == ']') {
      if (!x->n_brackets) return fail(x, PST_E_BAD_INPUT, "unexpected '%c'", ch);
      char expected = x->brackets[--x->n_brackets];
      if (expected != ch) return fail(x, PST_E_BAD_INPUT, "unexpected '%c', expected '%c'", ch, expected);
    }
    int rc = push_kind(x, operators[i].kind);
    advance(x, x->at + strlen(operators[i].text));
    return rc;
  }
  size_t next = x->at;
  pst_utf8_next(x->s.data, x->s.n, &next);
  return fail(x, PST_E_BAD_INPUT, "unexpected char '%.*s' at %zu", (int)(next - x->at), x->s.data + x->at, x->at);
}

static int lex_item(lexer *x) {
  char ch = x->s.data[x->at];
  size_t end = skip_space(x, x->at);
  if (end > x->at) {
    advance(x, end);
    return 0;
  }
  if (is_digit(ch)) return (end = float_end(x)) ? lex_float(x, end) : lex_integer(x);
  end = name_end(x);
  if (end > x->at) {
    int rc = push(x, (tpl_token){.kind = TPL_T_NAME, .line = x->line, .text = {x->s.data + x->at, end - x->at}});
    advance(x, end);
    return rc;
  }
  if (ch == '\'' || ch == '"') {
    bool matched;
    int rc = lex_string(x, &matched);
    if (rc || matched) return rc;
  }
  return lex_operator(x);
}

/* From behind the opening to behind the closing of a {{ }} or {% %}. An end that is not there is the parser's to report. */
static int lex_tag(lexer *x, bool variable) {
  x->n_brackets = 0;
  while (x->at < x->s.n) {
    size_t end = x->n_brackets ? 0 : block_end(x, x->at, variable ? "}}" : "%}", !variable, !variable);
    if (end) {
      int rc = push_kind(x, variable ? TPL_T_VARIABLE_END : TPL_T_BLOCK_END);
      advance(x, end);
      return rc;
    }
    int rc = lex_item(x);
    if (rc) return rc;
  }
  return 0;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static int lex_root(lexer *x) {
  while (x->at < x->s.n) {
    size_t open = x->at;
    while (open + 1 < x->s.n && !(x->s.data[open] == '{' && strchr("{%#", x->s.data[open + 1]) && x->s.data[open + 1]))
      open++;
    if (open + 1 >= x->s.n) {
      int rc = push_data(x, x->at, x->s.n - x->at);
      advance(x, x->s.n);
      return rc;
    }
    char type = x->s.data[open + 1];
    char sign = open + 2 < x->s.n ? x->s.data[open + 2] : '\0';
    if (sign != '-' && sign != '+') sign = '\0';
    int rc = push_data(x, x->at, kept_text(x, x->at, open, sign, type == '{'));
    if (rc) return rc;
    advance(x, open);
    size_t raw = type == '%' ? raw_begin(x) : 0;
    if (raw) {
      advance(x, raw);
      rc = lex_raw(x);
    } else {
      if (type != '#') rc = push_kind(x, type == '{' ? TPL_T_VARIABLE_BEGIN : TPL_T_BLOCK_BEGIN);
      if (rc) return rc;
      advance(x, open + 2 + (sign != '\0'));
      rc = type == '#' ? lex_comment(x) : lex_tag(x, type == '{');
    }
    if (rc) return rc;
  }
  return 0;
}

int pst_engine_tpl_lex(pst_arena *arena, pst_str source, tpl_tokens *ret_tokens, pst_error *err) {
  lexer x = {.arena = arena, .line = 1, .line_starting = true, .tokens = ret_tokens, .err = err};
  *ret_tokens = (tpl_tokens){0};
  char *copy = pst_arena_alloc(arena, source.n + 1);
  if (!copy) return out_of_memory(&x);
  size_t n = 0;
  for (size_t i = 0; i < source.n; i++) {
    if (source.data[i] == '\r') {
      copy[n++] = '\n';
      i += i + 1 < source.n && source.data[i + 1] == '\n';
    } else {
      copy[n++] = source.data[i];
    }
  }
  if (n && copy[n - 1] == '\n') n--;
  x.s = (pst_str){copy, n};
  int rc = lex_root(&x);
  return rc ? rc : push_kind(&x, TPL_T_EOF);
}
