/* SQL statements as graders compare them: a canonical stream of tokens.
 *
 * Owns what does not count when two statements are held against each other: letter case and Unicode form (literals included: what was asked need not
 * tell them), white space between tokens, semicolons at the end, which quotes a literal stands in and whether a number stands in any, the spelling of two
 * operators, and the order of the conditions of a WHERE clause that knows no OR. It does not know the grammar: whatever a model writes becomes tokens, and where
 * parentheses do not match, or nest too deeply, the tokens are compared in their order. Time and memory are linear in the text, but for the sorting. */
#include "evals/workload.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 64 /* of parentheses and CASE: a bound on how often a token is sorted */

typedef enum token_kind { TOKEN_SIGN, TOKEN_WORD, TOKEN_NUMBER, TOKEN_LITERAL } token_kind;

typedef struct token {
  token_kind kind;
  char quote;   /* that it stands in; 0: in none */
  pst_str text; /* between the quotes */
} token;

typedef struct tokens {
  token *list;
  size_t n, capacity;
} tokens;

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool in_word(char c) {
  return is_digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_' || c == '$' || (unsigned char)c >= 0x80;
}

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c | 32) : c; }

static bool is_word(const token *t, const char *keyword) {
  if (t->kind != TOKEN_WORD || t->text.n != strlen(keyword)) return false;
  for (size_t i = 0; i < t->text.n; i++)
    if (lower(t->text.data[i]) != keyword[i]) return false;
  return true;
}

static bool is_sign(const token *t, const char *sign) { return t->kind == TOKEN_SIGN && pst_str_is(t->text, sign); }

static bool is_one_of(const token *t, const char *const *keywords) {
  for (size_t i = 0; keywords[i]; i++)
    if (is_word(t, keywords[i])) return true;
  return false;
}

/* ---- tokens ---- */

/* Digits, with a point between digits: the bytes of it at the start of s. 0: none. */
static size_t number_at(pst_str s) {
  size_t i = 0;
  while (i < s.n && is_digit(s.data[i])) i++;
  if (i && i + 1 < s.n && s.data[i] == '.' && is_digit(s.data[i + 1]))
    for (i++; i < s.n && is_digit(s.data[i]);) i++;
  return i;
}

/* What a quoted text at the start of s takes, quotes included; one that stands twice is part of it. 0: it is never closed. */
static size_t quoted_at(pst_str s) {
  for (size_t i = 1; i < s.n; i++) {
    if (s.data[i] != s.data[0]) continue;
    if (i + 1 == s.n || s.data[i + 1] != s.data[0]) return i + 1;
    i++;
  }
  return 0;
}

static size_t sign_at(pst_str s) {
  static const char *const pairs[] = {"<=", ">=", "<>", "!=", "==", "||"};
  for (size_t i = 0; i < PST_ARRAY_LEN(pairs); i++)
    if (pst_str_starts(s, pst_str_from(pairs[i]))) return 2;
  return 1;
}

/* The token at the start of s, which is no white space; its bytes. */
static size_t read_token(pst_str s, token *ret) {
  char c = s.data[0];
  size_t n = c == '\'' || c == '"' || c == '`' ? quoted_at(s) : 0;
  if (n) {
    *ret = (token){c == '`' ? TOKEN_WORD : TOKEN_LITERAL, c, {s.data + 1, n - 2}};
    return n;
  }
  token_kind kind = TOKEN_NUMBER;
  n = number_at(s);
  for (; n < s.n && in_word(s.data[n]); n++) kind = TOKEN_WORD; /* "2nd", "1e5" */
  if (!n) {
    kind = TOKEN_SIGN;
    n = sign_at(s);
  }
  *ret = (token){kind, 0, {s.data, n}};
  return n;
}

static int add_token(tokens *all, token t) {
  if (pst_array_reserve((void **)&all->list, &all->capacity, all->n + 1, sizeof *all->list)) return PST_E_NOMEM;
  all->list[all->n++] = t;
  return 0;
}

/* A quote that stands twice in a literal is one; a number in quotes is the same number without them. `text`: the literal's, to be written to. */
static int add_literal(tokens *all, char quote, char *text, size_t n) {
  size_t kept = 0;
  for (size_t i = 0; i < n; i++) {
    text[kept++] = text[i];
    i += text[i] == quote;
  }
  bool minus = kept && text[0] == '-';
  pst_str digits = {text + minus, kept - minus};
  if (!digits.n || number_at(digits) != digits.n) return add_token(all, (token){TOKEN_LITERAL, quote, {text, kept}});
  int code = minus ? add_token(all, (token){TOKEN_SIGN, 0, {text, 1}}) : 0;
  return code ? code : add_token(all, (token){TOKEN_NUMBER, 0, digits});
}

/* The tokens are views into the text, which is changed where literals hold quotes. */
static int tokenize(char *text, size_t n, tokens *all) {
  int code = 0;
  for (size_t i = 0, used = 1; i < n && !code; i += used, used = 1) {
    if (pst_is_space(text[i])) continue;
    token t;
    used = read_token((pst_str){text + i, n - i}, &t);
    if (is_sign(&t, "<>")) t.text = PST_STR("!=");
    if (is_sign(&t, "==")) t.text = PST_STR("=");
    code = t.kind == TOKEN_LITERAL ? add_literal(all, t.quote, text + i + 1, t.text.n) : add_token(all, t);
  }
  while (all->n && is_sign(&all->list[all->n - 1], ";")) all->n--;
  return code;
}

/* ---- the order of conditions ---- */

static bool opens(const token *t) { return is_sign(t, "(") || is_word(t, "case"); }
static bool closes(const token *t) { return is_sign(t, ")") || is_word(t, "end"); }

/* Whether each parenthesis and CASE is closed by its own kind, at most DEPTH_MAX deep. */
static bool is_balanced(const tokens *all) {
  bool parentheses[DEPTH_MAX];
  size_t depth = 0;
  for (size_t i = 0; i < all->n; i++) {
    const token *t = &all->list[i];
    if (opens(t)) {
      if (depth == DEPTH_MAX) return false;
      parentheses[depth++] = t->kind == TOKEN_SIGN;
    } else if (closes(t)) {
      if (!depth || parentheses[--depth] != (t->kind == TOKEN_SIGN)) return false;
    }
  }
  return !depth;
}

typedef struct span { /* a condition */
  const token *first;
  size_t n;
} span;

static int compare_tokens(const token *a, const token *b) {
  if (a->kind != b->kind) return a->kind > b->kind ? 1 : -1;
  return pst_str_compare(a->text, b->text);
}

static int compare_spans(const void *a, const void *b) {
  const span *x = a, *y = b;
  for (size_t i = 0; i < x->n && i < y->n; i++) {
    int order = compare_tokens(&x->first[i], &y->first[i]);
    if (order) return order;
  }
  return (x->n > y->n) - (x->n < y->n);
}

/* Where the clause that begins at `from` ends, and how many ANDs join its conditions: 0 also where an OR does. `ret_ands`: their places. */
static size_t scan_clause(const tokens *all, size_t from, size_t *ret_ands, size_t *ret_n) {
  static const char *const ends[] = {"where",  "group",     "order",  "having", "limit", "offset",    "fetch",
                                     "window", "returning", "except", "union",  "for",   "intersect", NULL};
  static const char *const others[] = {"or", "xor", NULL};
  size_t depth = 0, n = 0, i = from;
  bool joined = true, between = false; /* between: its AND is to come */
  for (; i < all->n; i++) {
    const token *t = &all->list[i];
    if (!depth && (closes(t) || is_sign(t, ";") || is_one_of(t, ends))) break;
    depth += opens(t);
    depth -= closes(t);
    if (depth) continue;
    joined = joined && !is_one_of(t, others);
    if (is_word(t, "between")) {
      between = true;
    } else if (is_word(t, "and")) {
      if (!between) ret_ands[n++] = i;
      between = false;
    }
  }
  *ret_n = joined ? n : 0;
  return i;
}

/* Sorts the conditions of the clause that begins at `from`. Scratch: places and spans for as many as there are tokens, and a copy of them. */
static void sort_clause(tokens *all, size_t from, size_t *ands, span *spans, token *copy) {
  size_t n = 0, end = scan_clause(all, from, ands, &n), at = from;
  if (!n) return;
  memcpy(copy + from, all->list + from, (end - from) * sizeof *copy);
  for (size_t k = 0; k <= n; k++) {
    size_t start = k ? ands[k - 1] + 1 : from, stop = k < n ? ands[k] : end;
    spans[k] = (span){copy + start, stop - start};
  }
  token joint = copy[ands[0]];
  qsort(spans, n + 1, sizeof *spans, compare_spans);
  for (size_t k = 0; k <= n; k++) {
    if (k) all->list[at++] = joint;
    memcpy(all->list + at, spans[k].first, spans[k].n * sizeof *copy);
    at += spans[k].n;
  }
}

/* Inner clauses stand behind the outer ones' WHERE: from the last to the first, each is in order before what holds it is. */
static int sort_conditions(tokens *all) {
  bool any = false;
  for (size_t i = 0; i < all->n && !any; i++) any = is_word(&all->list[i], "where");
  if (!any || !is_balanced(all)) return 0;
  size_t *ands = pst_calloc(all->n, sizeof *ands);
  span *spans = pst_calloc(all->n + 1, sizeof *spans);
  token *copy = pst_calloc(all->n, sizeof *copy);
  int code = ands && spans && copy ? 0 : PST_E_NOMEM;
  for (size_t i = all->n; i > 0 && !code; i--)
    if (is_word(&all->list[i - 1], "where")) sort_clause(all, i, ands, spans, copy);
  pst_free(ands);
  pst_free(spans);
  pst_free(copy);
  return code;
}

/* ---- what others ask ---- */

/* A text in the form that is compared; `folded` is what the tokens are views into. */
typedef struct canonical {
  pst_buf folded;
  tokens tokens;
} canonical;

static int make_canonical(pst_str text, canonical *c) {
  int code = pst_evals_fold(text, &c->folded);
  if (!code) code = tokenize(c->folded.data, c->folded.n, &c->tokens);
  return code ? code : sort_conditions(&c->tokens);
}

static void canonical_done(canonical *c) {
  pst_free(c->tokens.list);
  pst_buf_done(&c->folded);
}

int pst_evals_sql_equal(pst_str a, pst_str b, bool *ret_equal) {
  canonical x = {PST_BUF_INIT, {NULL, 0, 0}}, y = {PST_BUF_INIT, {NULL, 0, 0}};
  int code = make_canonical(a, &x);
  if (!code) code = make_canonical(b, &y);
  bool equal = !code && x.tokens.n == y.tokens.n;
  for (size_t i = 0; equal && i < x.tokens.n; i++) equal = !compare_tokens(&x.tokens.list[i], &y.tokens.list[i]);
  canonical_done(&x);
  canonical_done(&y);
  if (!code) *ret_equal = equal;
  return code;
}

bool pst_evals_sql_is_statement(pst_str text) {
  static const char *const verbs[] = {"select", "with", "insert", "update", "delete", NULL};
  text = pst_str_trim(text);
  token first;
  return text.n && read_token(text, &first) < text.n && !first.quote && is_one_of(&first, verbs);
}

pst_str pst_evals_sql_table(pst_str statement) {
  static const char *const before[] = {"from", "into", "update", NULL};
  bool next = false;
  while (statement.n) {
    token t = {TOKEN_SIGN, 0, {NULL, 0}};
    size_t n = pst_is_space(statement.data[0]) ? 1 : read_token(statement, &t);
    if (next && t.text.n) return t.kind == TOKEN_SIGN ? (pst_str){NULL, 0} : t.text;
    next = next || is_one_of(&t, before);
    statement = (pst_str){statement.data + n, statement.n - n};
  }
  return (pst_str){NULL, 0};
}
