/* Tokens to syntax tree.
 *
 * Owns Jinja's grammar: precedence, statements, and the words of its syntax errors. Statements and extensions that chat
 * templates have no use for (inheritance, inclusion, autoescape) are refused by name. A last pass looks up filters and tests,
 * where Jinja's compiler does. Nothing here runs a template. */
#include "engine/template_types.h"

#include <string.h>

enum { MAX_SYMBOLS = 4096, MAX_TREE_DEPTH = 900 };

typedef struct parser {
  pst_engine_template *t;
  const tpl_token *at; /* the current token */
  pst_error *err;
  int depth;
  const char *const
      *ends[TPL_MAX_PARSE_DEPTH + 1]; /* end tags that are awaited, innermost last; NULL-terminated lists */
  int n_ends;
  pst_str tags[TPL_MAX_PARSE_DEPTH + 1]; /* open statements */
  int n_tags;
  int n_loops;                                    /* for statements around */
  bool names_caller, names_kwargs, names_varargs; /* mentioned since the innermost macro began */
} parser;

static tpl_node *parse_expression(parser *p, bool with_condexpr);
static tpl_node *parse_unary(parser *p, bool with_filter);
static tpl_node *parse_primary(parser *p, bool with_namespace);
static tpl_node *parse_postfix(parser *p, tpl_node *node);
static bool parse_body(parser *p, const char *const *ends, bool drop, tpl_nodes *out);

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static tpl_node *fail_code(parser *p, int code, int line, const char *format, ...) PST_PRINTF(4, 5);
static tpl_node *fail_code(parser *p, int code, int line, const char *format, ...) {
  char message[512], place[32];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  snprintf(place, sizeof place, "template:%d", line);
  pst_error_set(p->err, code, place, "%s", message);
  return NULL;
}
#define fail(p, line, ...) fail_code(p, PST_E_BAD_INPUT, line, __VA_ARGS__)

static tpl_node *out_of_memory(parser *p) { return fail_code(p, PST_E_NOMEM, p->at->line, "out of memory"); }

static const char *const token_names[] = {
    [TPL_T_EOF] = "end of template",
    [TPL_T_DATA] = "template data / text",
    [TPL_T_VARIABLE_BEGIN] = "begin of print statement",
    [TPL_T_VARIABLE_END] = "end of print statement",
    [TPL_T_BLOCK_BEGIN] = "begin of statement block",
    [TPL_T_BLOCK_END] = "end of statement block",
    [TPL_T_NAME] = "name",
    [TPL_T_STRING] = "string",
    [TPL_T_INTEGER] = "integer",
    [TPL_T_FLOAT] = "float",
    [TPL_T_ADD] = "+",
    [TPL_T_SUB] = "-",
    [TPL_T_MUL] = "*",
    [TPL_T_DIV] = "/",
    [TPL_T_FLOORDIV] = "//",
    [TPL_T_MOD] = "%",
    [TPL_T_POW] = "**",
    [TPL_T_TILDE] = "~",
    [TPL_T_LBRACKET] = "[",
    [TPL_T_RBRACKET] = "]",
    [TPL_T_LPAREN] = "(",
    [TPL_T_RPAREN] = ")",
    [TPL_T_LBRACE] = "{",
    [TPL_T_RBRACE] = "}",
    [TPL_T_EQ] = "==",
    [TPL_T_NE] = "!=",
    [TPL_T_GT] = ">",
    [TPL_T_GE] = ">=",
    [TPL_T_LT] = "<",
    [TPL_T_LE] = "<=",
    [TPL_T_ASSIGN] = "=",
    [TPL_T_DOT] = ".",
    [TPL_T_COLON] = ":",
    [TPL_T_PIPE] = "|",
    [TPL_T_COMMA] = ",",
    [TPL_T_SEMICOLON] = ";",
};

static pst_str describe(const tpl_token *token) {
  return token->kind == TPL_T_NAME ? token->text : pst_str_from(token_names[token->kind]);
}
#define STR_ARGS(s) (int)PST_MIN((s).n, 100u), (s).data

static bool deeper(parser *p) {
  if (++p->depth <= TPL_MAX_PARSE_DEPTH) return true;
  fail_code(p, PST_E_LIMIT, p->at->line, "the template nests deeper than %d levels", TPL_MAX_PARSE_DEPTH);
  return false;
}

/* Jinja's message for a tag nobody knows, or (name NULL) for a template that ends too early. */
static void fail_tag(parser *p, const pst_str *name, int line) {
  pst_buf m = PST_BUF_INIT;
  bool nesting = false;
  if (name)
    pst_buf_printf(&m, "Encountered unknown tag '%.*s'.", STR_ARGS(*name));
  else
    pst_buf_puts(&m, "Unexpected end of template.");
  for (int i = 0; name && i < p->n_ends; i++) {
    for (const char *const *end = p->ends[i]; *end; end++) nesting = nesting || pst_str_is(*name, *end);
  }
  if (p->n_ends) {
    pst_buf_puts(
        &m, nesting ? " You probably made a nesting mistake. Jinja is expecting this tag, but currently looking for "
                    : " Jinja was looking for the following tags: ");
    for (const char *const *end = p->ends[p->n_ends - 1]; *end; end++)
      pst_buf_printf(&m, "%s'%s'", end == p->ends[p->n_ends - 1] ? "" : " or ", *end);
    pst_buf_putc(&m, '.');
  }
  if (p->n_tags)
    pst_buf_printf(&m, " The innermost block that needs to be closed is '%.*s'.", STR_ARGS(p->tags[p->n_tags - 1]));
  fail(p, line, "%s", pst_buf_text(&m));
  pst_buf_done(&m);
}

/* ---- the stream ------------------------------------------------------------------------------------------------- */

static const tpl_token *next(parser *p) {
  const tpl_token *token = p->at;
  if (token->kind != TPL_T_EOF) p->at++;
  return token;
}

static bool is_name(const tpl_token *token, const char *name) {
  return token->kind == TPL_T_NAME && pst_str_is(token->text, name);
}
static bool at_name(const parser *p, const char *name) { return is_name(p->at, name); }
static const tpl_token *look(const parser *p) { return p->at->kind == TPL_T_EOF ? p->at : p->at + 1; }

static bool skip_name(parser *p, const char *name) {
  if (!at_name(p, name)) return false;
  next(p);
  return true;
}

static bool skip(parser *p, tpl_token_kind kind) {
  if (p->at->kind != kind) return false;
  next(p);
  return true;
}

static const tpl_token *expected(parser *p, const char *what) {
  pst_str got = describe(p->at);
  if (p->at->kind == TPL_T_EOF)
    fail(p, p->at->line, "unexpected end of template, expected '%s'.", what);
  else
    fail(p, p->at->line, "expected token '%s', got '%.*s'", what, STR_ARGS(got));
  return NULL;
}

static const tpl_token *expect(parser *p, tpl_token_kind kind) {
  return p->at->kind == kind ? next(p) : expected(p, token_names[kind]);
}

static const tpl_token *expect_name(parser *p, const char *name) {
  return at_name(p, name) ? next(p) : expected(p, name);
}

/* ---- nodes ------------------------------------------------------------------------------------------------------ */

static tpl_node *node_new(parser *p, tpl_node_kind kind, int line) {
  tpl_node *node = pst_arena_calloc(p->t->arena, 1, sizeof *node);
  if (!node) return out_of_memory(p);
  node->kind = kind;
  node->line = line;
  node->symbol = -1;
  return node;
}

static bool nodes_push(parser *p, tpl_nodes *list, tpl_node *node) {
  if (!node) return false;
  void *items = list->items;
  if (!pst_engine_tpl_grow(p->t->arena, &items, &list->capacity, list->n + 1, sizeof *list->items)) {
    out_of_memory(p);
    return false;
  }
  list->items = items;
  list->items[list->n++] = node;
  return true;
}

static tpl_node *binary_node(parser *p, tpl_node_kind kind, tpl_op op, int line, tpl_node *a, tpl_node *b) {
  tpl_node *node = a && b ? node_new(p, kind, line) : NULL;
  if (!node) return NULL;
  node->op = op;
  node->a = a;
  node->b = b;
  return node;
}

static bool const_str(parser *p, pst_str text, tpl_val *out) {
  tpl_str *s = pst_arena_alloc(p->t->arena, sizeof *s);
  if (!s) return out_of_memory(p) != NULL;
  *s = (tpl_str){text.data, text.n, SIZE_MAX, &pst_engine_tpl_run_trusted, 1, NULL, false};
  pst_engine_tpl_chars(s); /* counted now: nothing writes to constants later */
  *out = pst_engine_tpl_string(s);
  return true;
}

int pst_engine_tpl_symbol(const pst_engine_template *t, pst_str name) {
  for (size_t i = 0; i < t->n_symbols; i++) {
    if (pst_str_equal(t->symbols[i], name)) return (int)i;
  }
  return -1;
}

static bool intern(parser *p, pst_str name, int *out) {
  pst_engine_template *t = p->t;
  *out = pst_engine_tpl_symbol(t, name);
  if (*out >= 0) return true;
  if (t->n_symbols == MAX_SYMBOLS)
    return fail_code(p, PST_E_LIMIT, p->at->line, "more than %d names in a template", MAX_SYMBOLS) != NULL;
  void *items = t->symbols;
  if (!pst_engine_tpl_grow(t->arena, &items, &t->symbols_capacity, t->n_symbols + 1, sizeof *t->symbols))
    return out_of_memory(p) != NULL;
  t->symbols = items;
  t->symbols[t->n_symbols] = name;
  *out = (int)t->n_symbols++;
  return true;
}

static tpl_node *name_node(parser *p, pst_str name, int line) {
  tpl_node *node = node_new(p, TPL_N_NAME, line);
  if (!node || !intern(p, name, &node->symbol)) return NULL;
  node->name = name;
  return node;
}

/* ---- expressions ------------------------------------------------------------------------------------------------ */

static tpl_node *parse_or(parser *p);

static tpl_node *parse_condexpr(parser *p) {
  int line = p->at->line;
  tpl_node *value = parse_or(p);
  while (value && skip_name(p, "if")) {
    tpl_node *node = node_new(p, TPL_N_COND, line);
    if (!node) return NULL;
    node->a = value;
    node->b = parse_or(p);
    if (!node->b) return NULL;
    if (skip_name(p, "else") && !(node->c = parse_expression(p, true))) return NULL;
    value = node;
    line = p->at->line;
  }
  return value;
}

static tpl_node *parse_expression(parser *p, bool with_condexpr) {
  if (!deeper(p)) return NULL;
  tpl_node *node = with_condexpr ? parse_condexpr(p) : parse_or(p);
  p->depth--;
  return node;
}

static tpl_node *parse_compare(parser *p);

static tpl_node *parse_not(parser *p) {
  if (!at_name(p, "not")) return parse_compare(p);
  if (!deeper(p)) return NULL;
  int line = next(p)->line;
  tpl_node *inner = parse_not(p), *node = inner ? node_new(p, TPL_N_NOT, line) : NULL;
  if (node) node->a = inner;
  p->depth--;
  return node;
}

static tpl_node *parse_and(parser *p) {
  int line = p->at->line;
  tpl_node *left = parse_not(p);
  while (left && skip_name(p, "and")) {
    left = binary_node(p, TPL_N_AND, TPL_OP_NONE, line, left, parse_not(p));
    line = p->at->line;
  }
  return left;
}

static tpl_node *parse_or(parser *p) {
  int line = p->at->line;
  tpl_node *left = parse_and(p);
  while (left && skip_name(p, "or")) {
    left = binary_node(p, TPL_N_OR, TPL_OP_NONE, line, left, parse_and(p));
    line = p->at->line;
  }
  return left;
}

static tpl_node *parse_concat(parser *p);

static tpl_node *parse_math1(parser *p) {
  int line = p->at->line;
  tpl_node *left = parse_concat(p);
  while (left && (p->at->kind == TPL_T_ADD || p->at->kind == TPL_T_SUB)) {
    tpl_op op = next(p)->kind == TPL_T_ADD ? TPL_OP_ADD : TPL_OP_SUB;
    left = binary_node(p, TPL_N_BINARY, op, line, left, parse_concat(p));
    line = p->at->line;
  }
  return left;
}

static tpl_op compare_op(parser *p) {
  switch (p->at->kind) {
  case TPL_T_EQ: next(p); return TPL_OP_EQ;
  case TPL_T_NE: next(p); return TPL_OP_NE;
  case TPL_T_LT: next(p); return TPL_OP_LT;
  case TPL_T_LE: next(p); return TPL_OP_LE;
  case TPL_T_GT: next(p); return TPL_OP_GT;
  case TPL_T_GE: next(p); return TPL_OP_GE;
  default: break;
  }
  if (skip_name(p, "in")) return TPL_OP_IN;
  if (at_name(p, "not") && is_name(look(p), "in")) {
    next(p);
    next(p);
    return TPL_OP_NOTIN;
  }
  return TPL_OP_NONE;
}

static tpl_node *parse_compare(parser *p) {
  int line = p->at->line;
  tpl_node *first = parse_math1(p), *node = NULL;
  for (tpl_op op; first && (op = compare_op(p)) != TPL_OP_NONE;) {
    if (!node) {
      node = node_new(p, TPL_N_COMPARE, line);
      if (!node) return NULL;
      node->a = first;
    }
    tpl_node *operand = node_new(p, TPL_N_OPERAND, p->at->line);
    if (!operand) return NULL;
    operand->op = op;
    operand->a = parse_math1(p);
    if (!operand->a || !nodes_push(p, &node->list, operand)) return NULL;
  }
  return node ? node : first;
}

static tpl_node *parse_math2(parser *p);

static tpl_node *parse_concat(parser *p) {
  int line = p->at->line;
  tpl_node *first = parse_math2(p), *node = NULL;
  while (first && skip(p, TPL_T_TILDE)) {
    if (!node && (!(node = node_new(p, TPL_N_CONCAT, line)) || !nodes_push(p, &node->list, first))) return NULL;
    if (!nodes_push(p, &node->list, parse_math2(p))) return NULL;
  }
  return node ? node : first;
}

static tpl_node *parse_pow(parser *p) {
  int line = p->at->line;
  tpl_node *left = parse_unary(p, true);
  while (left && skip(p, TPL_T_POW)) {
    left = binary_node(p, TPL_N_BINARY, TPL_OP_POW, line, left, parse_unary(p, true));
    line = p->at->line;
  }
  return left;
}

static tpl_node *parse_math2(parser *p) {
  int line = p->at->line;
  tpl_node *left = parse_pow(p);
  while (left) {
    tpl_op op;
    switch (p->at->kind) {
    case TPL_T_MUL: op = TPL_OP_MUL; break;
    case TPL_T_DIV: op = TPL_OP_DIV; break;
    case TPL_T_FLOORDIV: op = TPL_OP_FLOORDIV; break;
    case TPL_T_MOD: op = TPL_OP_MOD; break;
    default: return left;
    }
    next(p);
    left = binary_node(p, TPL_N_BINARY, op, line, left, parse_pow(p));
    line = p->at->line;
  }
  return NULL;
}

static bool parse_call_args(parser *p, tpl_call_node **out) {
  int line = p->at->line;
  if (!expect(p, TPL_T_LPAREN)) return false;
  tpl_call_node *call = pst_arena_calloc(p->t->arena, 1, sizeof *call);
  if (!call) return out_of_memory(p) != NULL;
  size_t names_capacity = 0;
  for (bool comma = false; p->at->kind != TPL_T_RPAREN; comma = true) {
    if (comma && !expect(p, TPL_T_COMMA)) return false;
    if (comma && p->at->kind == TPL_T_RPAREN) break;
    bool valid = true;
    if (skip(p, TPL_T_MUL)) {
      valid = !call->star && !call->star_star;
      if (valid && !(call->star = parse_expression(p, true))) return false;
    } else if (skip(p, TPL_T_POW)) {
      valid = !call->star_star;
      if (valid && !(call->star_star = parse_expression(p, true))) return false;
    } else if (p->at->kind == TPL_T_NAME && look(p)->kind == TPL_T_ASSIGN) {
      valid = !call->star_star;
      pst_str name = next(p)->text;
      next(p);
      void *names = call->names;
      if (!pst_engine_tpl_grow(p->t->arena, &names, &names_capacity, call->named.n + 1, sizeof *call->names))
        return out_of_memory(p) != NULL;
      call->names = names;
      call->names[call->named.n] = name;
      for (size_t i = 0; i < call->named.n; i++) {
        if (pst_str_equal(call->names[i], name))
          return fail(p, p->at->line, "keyword argument repeated: %.*s", STR_ARGS(name)) != NULL;
      }
      if (valid && !nodes_push(p, &call->named, parse_expression(p, true))) return false;
    } else {
      valid = !call->star && !call->star_star && !call->named.n;
      if (valid && !nodes_push(p, &call->plain, parse_expression(p, true))) return false;
    }
    if (!valid) return fail(p, line, "invalid syntax for function call expression") != NULL;
  }
  *out = call;
  return expect(p, TPL_T_RPAREN) != NULL;
}

static tpl_node *parse_call(parser *p, tpl_node *callee) {
  tpl_node *node = node_new(p, TPL_N_CALL, p->at->line);
  if (!node || !parse_call_args(p, &node->call)) return NULL;
  node->a = callee;
  return node;
}

/* "a.b.c" behind | or is. */
static bool dotted_name(parser *p, pst_str *out) {
  const tpl_token *token = expect(p, TPL_T_NAME);
  if (!token) return false;
  *out = token->text;
  while (skip(p, TPL_T_DOT)) {
    if (!(token = expect(p, TPL_T_NAME))) return false;
    const char *joined =
        pst_arena_printf(p->t->arena, "%.*s.%.*s", (int)out->n, out->data, (int)token->text.n, token->text.data);
    if (!joined) return out_of_memory(p) != NULL;
    *out = pst_str_from(joined);
  }
  return true;
}

/* Filters behind a value (NULL: what a filter block encloses). `inline_start`: the first one has no bar. */
static tpl_node *parse_filters(parser *p, tpl_node *value, bool inline_start) {
  while (p->at->kind == TPL_T_PIPE || inline_start) {
    if (!inline_start) next(p);
    inline_start = false;
    tpl_node *node = node_new(p, TPL_N_FILTER, p->at->line);
    if (!node || !dotted_name(p, &node->name)) return NULL;
    if (p->at->kind == TPL_T_LPAREN && !parse_call_args(p, &node->call)) return NULL;
    node->a = value;
    value = node;
  }
  return value;
}

static bool starts_test_argument(const parser *p) {
  switch (p->at->kind) {
  case TPL_T_NAME: return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and");
  case TPL_T_STRING:
  case TPL_T_INTEGER:
  case TPL_T_FLOAT:
  case TPL_T_LBRACKET:
  case TPL_T_LBRACE: return true;
  default: return false;
  }
}

static tpl_node *parse_test(parser *p, tpl_node *value) {
  int line = next(p)->line;
  bool negated = skip_name(p, "not");
  tpl_node *node = node_new(p, TPL_N_TEST, line);
  if (!node || !dotted_name(p, &node->name)) return NULL;
  node->a = value;
  if (p->at->kind == TPL_T_LPAREN) {
    if (!parse_call_args(p, &node->call)) return NULL;
  } else if (starts_test_argument(p)) {
    if (at_name(p, "is")) return fail(p, p->at->line, "You cannot chain multiple tests with is");
    tpl_node *argument = parse_primary(p, false);
    if (argument) argument = parse_postfix(p, argument);
    if (!argument) return NULL;
    node->call = pst_arena_calloc(p->t->arena, 1, sizeof *node->call);
    if (!node->call) return out_of_memory(p);
    if (!nodes_push(p, &node->call->plain, argument)) return NULL;
  }
  if (!negated) return node;
  tpl_node *not_node = node_new(p, TPL_N_NOT, line);
  if (not_node) not_node->a = node;
  return not_node;
}

static tpl_node *parse_filter_expr(parser *p, tpl_node *node) {
  while (node) {
    if (p->at->kind == TPL_T_PIPE)
      node = parse_filters(p, node, false);
    else if (at_name(p, "is"))
      node = parse_test(p, node);
    else if (p->at->kind == TPL_T_LPAREN)
      node = parse_call(p, node);
    else
      break;
  }
  return node;
}

/* What stands between brackets: an expression or a slice. */
static tpl_node *parse_subscribed(parser *p) {
  tpl_node *first = NULL;
  int line = p->at->line;
  if (p->at->kind != TPL_T_COLON) {
    first = parse_expression(p, true);
    if (!first || p->at->kind != TPL_T_COLON) return first;
  }
  next(p);
  tpl_node *node = node_new(p, TPL_N_SLICE, line);
  if (!node) return NULL;
  node->a = first;
  if (p->at->kind != TPL_T_COLON && p->at->kind != TPL_T_RBRACKET && p->at->kind != TPL_T_COMMA &&
      !(node->b = parse_expression(p, true)))
    return NULL;
  if (skip(p, TPL_T_COLON) && p->at->kind != TPL_T_RBRACKET && p->at->kind != TPL_T_COMMA &&
      !(node->c = parse_expression(p, true)))
    return NULL;
  return node;
}

static tpl_node *parse_subscript(parser *p, tpl_node *value) {
  const tpl_token *token = next(p);
  if (token->kind == TPL_T_DOT) {
    const tpl_token *attr = next(p);
    tpl_node *node = node_new(p, attr->kind == TPL_T_NAME ? TPL_N_GETATTR : TPL_N_GETITEM, token->line);
    if (!node) return NULL;
    node->a = value;
    if (attr->kind == TPL_T_NAME) {
      node->name = attr->text;
      return const_str(p, attr->text, &node->value) ? node : NULL;
    }
    if (attr->kind != TPL_T_INTEGER) return fail(p, attr->line, "expected name or number");
    node->b = node_new(p, TPL_N_CONST, attr->line);
    if (!node->b) return NULL;
    node->b->value = pst_engine_tpl_int(attr->integer);
    return node;
  }
  tpl_node *node = node_new(p, TPL_N_GETITEM, token->line), *first = NULL, *tuple = NULL;
  if (!node) return NULL;
  node->a = value;
  for (size_t n = 0; p->at->kind != TPL_T_RBRACKET; n++) {
    if (n && !expect(p, TPL_T_COMMA)) return NULL;
    tpl_node *item = parse_subscribed(p);
    if (!item) return NULL;
    if (!n) {
      first = item;
      continue;
    }
    if (!tuple && (!(tuple = node_new(p, TPL_N_TUPLE, token->line)) || !nodes_push(p, &tuple->list, first)))
      return NULL;
    if (!nodes_push(p, &tuple->list, item)) return NULL;
  }
  if (!first && !(tuple = node_new(p, TPL_N_TUPLE, token->line))) return NULL;
  node->b = tuple ? tuple : first;
  return expect(p, TPL_T_RBRACKET) ? node : NULL;
}

static tpl_node *parse_postfix(parser *p, tpl_node *node) {
  while (node) {
    if (p->at->kind == TPL_T_DOT || p->at->kind == TPL_T_LBRACKET)
      node = parse_subscript(p, node);
    else if (p->at->kind == TPL_T_LPAREN)
      node = parse_call(p, node);
    else
      break;
  }
  return node;
}

static tpl_node *parse_unary(parser *p, bool with_filter) {
  int line = p->at->line;
  tpl_node *node;
  if (p->at->kind == TPL_T_SUB || p->at->kind == TPL_T_ADD) {
    tpl_op op = next(p)->kind == TPL_T_SUB ? TPL_OP_SUB : TPL_OP_ADD;
    if (!deeper(p)) return NULL;
    tpl_node *operand = parse_unary(p, false);
    p->depth--;
    node = operand ? node_new(p, TPL_N_UNARY, line) : NULL;
    if (!node) return NULL;
    node->op = op;
    node->a = operand;
  } else {
    node = parse_primary(p, false);
  }
  node = parse_postfix(p, node);
  return with_filter ? parse_filter_expr(p, node) : node;
}

static bool is_tuple_end(const parser *p, const char *extra) {
  return p->at->kind == TPL_T_VARIABLE_END || p->at->kind == TPL_T_BLOCK_END || p->at->kind == TPL_T_RPAREN ||
         (extra && at_name(p, extra));
}

typedef enum tuple_mode { TUPLE_FULL, TUPLE_NO_COND, TUPLE_TARGET, TUPLE_TARGET_NS } tuple_mode;

/* One expression, or several with commas between. `extra`: a name that ends it too. */
static tpl_node *parse_tuple(parser *p, tuple_mode mode, const char *extra, bool parentheses) {
  int line = p->at->line;
  tpl_nodes items = {0};
  bool is_tuple = false;
  for (;;) {
    if (items.n && !expect(p, TPL_T_COMMA)) return NULL;
    if (is_tuple_end(p, extra)) break;
    tpl_node *item =
        mode >= TUPLE_TARGET ? parse_primary(p, mode == TUPLE_TARGET_NS) : parse_expression(p, mode == TUPLE_FULL);
    if (!nodes_push(p, &items, item)) return NULL;
    if (p->at->kind != TPL_T_COMMA) break;
    is_tuple = true;
  }
  if (!is_tuple && items.n) return items.items[0];
  if (!is_tuple && !parentheses) {
    pst_str got = describe(p->at);
    return fail(p, p->at->line, "Expected an expression, got '%.*s'", STR_ARGS(got));
  }
  tpl_node *node = node_new(p, TPL_N_TUPLE, line);
  if (node) node->list = items;
  return node;
}

static tpl_node *parse_list(parser *p) {
  tpl_node *node = node_new(p, TPL_N_LISTEXPR, next(p)->line);
  while (node && p->at->kind != TPL_T_RBRACKET) {
    if (node->list.n && !expect(p, TPL_T_COMMA)) return NULL;
    if (p->at->kind == TPL_T_RBRACKET) break;
    if (!nodes_push(p, &node->list, parse_expression(p, true))) return NULL;
  }
  return node && expect(p, TPL_T_RBRACKET) ? node : NULL;
}

static tpl_node *parse_dict(parser *p) {
  tpl_node *node = node_new(p, TPL_N_DICTEXPR, next(p)->line);
  while (node && p->at->kind != TPL_T_RBRACE) {
    if (node->list.n && !expect(p, TPL_T_COMMA)) return NULL;
    if (p->at->kind == TPL_T_RBRACE) break;
    if (!nodes_push(p, &node->list, parse_expression(p, true)) || !expect(p, TPL_T_COLON) ||
        !nodes_push(p, &node->list, parse_expression(p, true)))
      return NULL;
  }
  return node && expect(p, TPL_T_RBRACE) ? node : NULL;
}

static tpl_node *const_node(parser *p, int line, tpl_val value) {
  tpl_node *node = node_new(p, TPL_N_CONST, line);
  if (node) node->value = value;
  return node;
}

static tpl_node *parse_name(parser *p, bool with_namespace) {
  const tpl_token *token = next(p);
  pst_str name = token->text;
  if (pst_str_is(name, "true") || pst_str_is(name, "True"))
    return const_node(p, token->line, pst_engine_tpl_bool(true));
  if (pst_str_is(name, "false") || pst_str_is(name, "False"))
    return const_node(p, token->line, pst_engine_tpl_bool(false));
  if (pst_str_is(name, "none") || pst_str_is(name, "None")) return const_node(p, token->line, pst_engine_tpl_none());
  if (pst_str_is(name, "caller")) p->names_caller = true;
  if (pst_str_is(name, "kwargs")) p->names_kwargs = true;
  if (pst_str_is(name, "varargs")) p->names_varargs = true;
  tpl_node *node = name_node(p, name, token->line);
  if (!node || !with_namespace || !skip(p, TPL_T_DOT)) return node;
  const tpl_token *attr = expect(p, TPL_T_NAME);
  if (!attr) return NULL;
  node->kind = TPL_N_NSREF;
  node->name = attr->text;
  return const_str(p, attr->text, &node->value) ? node : NULL;
}

static tpl_node *parse_string(parser *p) {
  int line = p->at->line;
  pst_str text = next(p)->text;
  while (p->at->kind == TPL_T_STRING) {
    pst_str more = next(p)->text;
    char *joined = pst_arena_alloc(p->t->arena, text.n + more.n + 1);
    if (!joined) return out_of_memory(p);
    if (text.n) memcpy(joined, text.data, text.n);
    if (more.n) memcpy(joined + text.n, more.data, more.n);
    text = (pst_str){joined, text.n + more.n};
  }
  tpl_val value;
  return const_str(p, text, &value) ? const_node(p, line, value) : NULL;
}

static tpl_node *parse_primary(parser *p, bool with_namespace) {
  const tpl_token *token = p->at;
  tpl_node *node = NULL;
  if (!deeper(p)) return NULL;
  switch (token->kind) {
  case TPL_T_NAME: node = parse_name(p, with_namespace); break;
  case TPL_T_STRING: node = parse_string(p); break;
  case TPL_T_INTEGER: node = const_node(p, next(p)->line, pst_engine_tpl_int(token->integer)); break;
  case TPL_T_FLOAT: node = const_node(p, next(p)->line, pst_engine_tpl_float(token->real)); break;
  case TPL_T_LPAREN:
    next(p);
    node = parse_tuple(p, TUPLE_FULL, NULL, true);
    if (node && !expect(p, TPL_T_RPAREN)) node = NULL;
    break;
  case TPL_T_LBRACKET: node = parse_list(p); break;
  case TPL_T_LBRACE: node = parse_dict(p); break;
  default: {
    pst_str got = describe(token);
    fail(p, token->line, "unexpected '%.*s'", STR_ARGS(got));
  }
  }
  p->depth--;
  return node;
}

/* ---- statements ------------------------------------------------------------------------------------------------- */

static bool can_assign(parser *p, const tpl_node *target) {
  const char *what = NULL;
  switch (target->kind) {
  case TPL_N_NAME:
  case TPL_N_NSREF: return true;
  case TPL_N_TUPLE:
    for (size_t i = 0; i < target->list.n; i++) {
      if (!can_assign(p, target->list.items[i])) return false;
    }
    return true;
  case TPL_N_CONST: what = "const"; break;
  case TPL_N_LISTEXPR: what = "list"; break;
  case TPL_N_DICTEXPR: what = "dict"; break;
  default: what = "expression"; break;
  }
  fail(p, target->line, "can't assign to '%s'", what);
  return false;
}

static tpl_node *parse_target(parser *p, tuple_mode mode, const char *extra) {
  tpl_node *target = parse_tuple(p, mode, extra, false);
  return target && can_assign(p, target) ? target : NULL;
}

static tpl_node *parse_name_target(parser *p) {
  const tpl_token *token = expect(p, TPL_T_NAME);
  return token ? name_node(p, token->text, token->line) : NULL;
}

static bool assigns_loop(const tpl_node *target) {
  if (target->kind == TPL_N_NAME) return pst_str_is(target->name, "loop");
  for (size_t i = 0; target->kind == TPL_N_TUPLE && i < target->list.n; i++) {
    if (assigns_loop(target->list.items[i])) return true;
  }
  return false;
}

static const char loop_assigned[] = "Can't assign to special loop variable in for-loop target";

static tpl_node *parse_for(parser *p) {
  static const char *const first_ends[] = {"endfor", "else", NULL}, *const last_ends[] = {"endfor", NULL};
  tpl_node *node = node_new(p, TPL_N_FOR, next(p)->line);
  if (!node || !(node->a = parse_target(p, TUPLE_TARGET, "in")) || !expect_name(p, "in") ||
      !(node->b = parse_tuple(p, TUPLE_NO_COND, "recursive", false)))
    return NULL;
  if (assigns_loop(node->a)) return fail(p, node->line, "%s", loop_assigned);
  if (skip_name(p, "if") && !(node->c = parse_expression(p, true))) return NULL;
  node->flag = skip_name(p, "recursive");
  p->n_loops++;
  if (!parse_body(p, first_ends, false, &node->list)) return NULL;
  if (is_name(next(p), "else") && !parse_body(p, last_ends, true, &node->list2)) return NULL;
  p->n_loops--;
  return intern(p, PST_STR("loop"), &node->symbol) ? node : NULL;
}

static tpl_node *parse_if(parser *p) {
  static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last_ends[] = {"endif", NULL};
  tpl_node *top = node_new(p, TPL_N_IF, next(p)->line);
  for (tpl_node *node = top; node;) {
    node->a = parse_tuple(p, TUPLE_NO_COND, NULL, false);
    if (!node->a || !parse_body(p, ends, false, &node->list)) return NULL;
    const tpl_token *token = next(p);
    if (is_name(token, "elif")) {
      tpl_node *elif = node_new(p, TPL_N_IF, p->at->line);
      if (!nodes_push(p, &node->list2, elif)) return NULL;
      node = elif;
      continue;
    }
    if (is_name(token, "else") && !parse_body(p, last_ends, true, &node->list2)) return NULL;
    return top;
  }
  return NULL;
}

static tpl_node *parse_set(parser *p) {
  static const char *const ends[] = {"endset", NULL};
  tpl_node *node = node_new(p, TPL_N_SET, next(p)->line);
  if (!node || !(node->a = parse_target(p, TUPLE_TARGET_NS, NULL))) return NULL;
  if (p->n_loops && assigns_loop(node->a)) return fail(p, node->line, "%s", loop_assigned);
  if (skip(p, TPL_T_ASSIGN)) {
    node->b = parse_tuple(p, TUPLE_FULL, NULL, false);
    return node->b ? node : NULL;
  }
  node->kind = TPL_N_SETBLOCK;
  if (p->at->kind == TPL_T_PIPE && !(node->b = parse_filters(p, NULL, false))) return NULL;
  return parse_body(p, ends, true, &node->list) ? node : NULL;
}

static bool parse_signature(parser *p, tpl_node *node) {
  if (!expect(p, TPL_T_LPAREN)) return false;
  while (p->at->kind != TPL_T_RPAREN) {
    if (node->list2.n && !expect(p, TPL_T_COMMA)) return false;
    if (!nodes_push(p, &node->list2, parse_name_target(p))) return false;
    if (skip(p, TPL_T_ASSIGN)) {
      if (!nodes_push(p, &node->list3, parse_expression(p, true))) return false;
    } else if (node->list3.n) {
      return fail(p, p->at->line, "non-default argument follows default argument") != NULL;
    }
  }
  next(p);
  return true;
}

/* The body of a macro, with what it takes from its surroundings. */
static bool parse_macro_body(parser *p, tpl_node *node, const char *const *ends) {
  bool caller = p->names_caller, kwargs = p->names_kwargs, varargs = p->names_varargs;
  p->names_caller = p->names_kwargs = p->names_varargs = false;
  if (!parse_body(p, ends, true, &node->list)) return false;
  node->flag = p->names_caller;
  node->catches_kwargs = p->names_kwargs;
  node->catches_varargs = p->names_varargs;
  for (size_t i = 0; i < node->list2.n; i++) {
    pst_str name = node->list2.items[i]->name;
    if (pst_str_is(name, "kwargs")) node->catches_kwargs = false;
    if (pst_str_is(name, "varargs")) node->catches_varargs = false;
    if (!pst_str_is(name, "caller") || !node->flag) continue;
    if (i + node->list3.n < node->list2.n)
      return fail(
                 p, node->line,
                 "When defining macros or call blocks the special \"caller\" argument must be omitted or be given a default.") !=
             NULL;
    node->flag = false; /* an ordinary parameter then */
  }
  p->names_caller |= caller;
  p->names_kwargs |= kwargs;
  p->names_varargs |= varargs;
  int symbol;
  return intern(p, PST_STR("caller"), &symbol) && intern(p, PST_STR("kwargs"), &symbol) &&
         intern(p, PST_STR("varargs"), &symbol);
}

static tpl_node *parse_macro(parser *p) {
  static const char *const ends[] = {"endmacro", NULL};
  tpl_node *node = node_new(p, TPL_N_MACRO, next(p)->line), *name = node ? parse_name_target(p) : NULL;
  if (!name || !parse_signature(p, node)) return NULL;
  node->symbol = name->symbol;
  node->name = name->name;
  return parse_macro_body(p, node, ends) ? node : NULL;
}

static tpl_node *parse_call_block(parser *p) {
  static const char *const ends[] = {"endcall", NULL};
  tpl_node *node = node_new(p, TPL_N_CALLBLOCK, next(p)->line);
  tpl_node *macro = node ? node_new(p, TPL_N_MACRO, node->line) : NULL;
  if (!macro) return NULL;
  macro->name = PST_STR("caller");
  if (p->at->kind == TPL_T_LPAREN && !parse_signature(p, macro)) return NULL;
  node->b = macro;
  node->a = parse_expression(p, true);
  if (!node->a) return NULL;
  if (node->a->kind != TPL_N_CALL) return fail(p, node->line, "expected call");
  return parse_macro_body(p, macro, ends) ? node : NULL;
}

static tpl_node *parse_filter_block(parser *p) {
  static const char *const ends[] = {"endfilter", NULL};
  tpl_node *node = node_new(p, TPL_N_FILTERBLOCK, next(p)->line);
  if (!node || !(node->a = parse_filters(p, NULL, true))) return NULL;
  return parse_body(p, ends, true, &node->list) ? node : NULL;
}

static tpl_node *parse_with(parser *p) {
  static const char *const ends[] = {"endwith", NULL};
  tpl_node *node = node_new(p, TPL_N_WITH, next(p)->line);
  while (node && p->at->kind != TPL_T_BLOCK_END) {
    if (node->list2.n && !expect(p, TPL_T_COMMA)) return NULL;
    if (!nodes_push(p, &node->list2, parse_target(p, TUPLE_TARGET, NULL)) || !expect(p, TPL_T_ASSIGN) ||
        !nodes_push(p, &node->list3, parse_expression(p, true)))
      return NULL;
  }
  return node && parse_body(p, ends, true, &node->list) ? node : NULL;
}

static tpl_node *parse_generation(parser *p) {
  static const char *const ends[] = {"endgeneration", NULL};
  tpl_node *node = node_new(p, TPL_N_GENERATION, next(p)->line);
  return node && parse_body(p, ends, true, &node->list) ? node : NULL;
}

static bool parse_print(parser *p, tpl_nodes *body) {
  next(p);
  for (bool first = true; p->at->kind != TPL_T_BLOCK_END; first = false) {
    if (!first && !expect(p, TPL_T_COMMA)) return false;
    tpl_node *node = node_new(p, TPL_N_PRINT, p->at->line);
    if (!node || !(node->a = parse_expression(p, true)) || !nodes_push(p, body, node)) return false;
  }
  return true;
}

static const struct {
  const char *tag;
  tpl_node *(*parse)(parser *p);
} statements[] = {
    {"for", parse_for},
    {"if", parse_if},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call_block},
    {"with", parse_with},
    {"filter", parse_filter_block},
    {"generation", parse_generation},
};
static const char *const refused[] = {"block", "extends", "include", "import", "from", "autoescape"};

static bool parse_statement(parser *p, tpl_nodes *body) {
  const tpl_token *token = p->at;
  if (token->kind != TPL_T_NAME) return fail(p, token->line, "tag name expected") != NULL;
  if (pst_str_is(token->text, "print")) return parse_print(p, body);
  bool is_break = pst_str_is(token->text, "break");
  if (is_break || pst_str_is(token->text, "continue"))
    return nodes_push(p, body, node_new(p, is_break ? TPL_N_BREAK : TPL_N_CONTINUE, next(p)->line));
  for (size_t i = 0; i < PST_ARRAY_LEN(statements); i++) {
    if (!pst_str_is(token->text, statements[i].tag)) continue;
    if (!deeper(p)) return false;
    p->tags[p->n_tags++] = token->text;
    tpl_node *node = statements[i].parse(p);
    p->n_tags--;
    p->depth--;
    return nodes_push(p, body, node);
  }
  for (size_t i = 0; i < PST_ARRAY_LEN(refused); i++) {
    if (pst_str_is(token->text, refused[i]))
      return fail_code(p, PST_E_UNSUPPORTED, token->line,
                       "the template uses {%% %s %%}, which chat templates here cannot", refused[i]) != NULL;
  }
  fail_tag(p, &token->text, token->line);
  return false;
}

static bool at_end_tag(const parser *p, const char *const *ends) {
  for (; ends && *ends; ends++) {
    if (at_name(p, *ends)) return true;
  }
  return false;
}

/* Statements and text up to one of the end tags, which stays current; ends NULL: to the end of the template. */
static bool subparse(parser *p, const char *const *ends, tpl_nodes *body) {
  while (p->at->kind != TPL_T_EOF) {
    const tpl_token *token = next(p);
    if (token->kind == TPL_T_DATA) {
      tpl_node *node = node_new(p, TPL_N_DATA, token->line);
      if (!node || !const_str(p, token->text, &node->value) || !nodes_push(p, body, node)) return false;
    } else if (token->kind == TPL_T_VARIABLE_BEGIN) {
      tpl_node *node = node_new(p, TPL_N_PRINT, token->line);
      if (!node || !(node->a = parse_tuple(p, TUPLE_FULL, NULL, false)) || !nodes_push(p, body, node) ||
          !expect(p, TPL_T_VARIABLE_END))
        return false;
    } else {
      if (at_end_tag(p, ends)) return true;
      if (!parse_statement(p, body) || !expect(p, TPL_T_BLOCK_END)) return false;
    }
  }
  return true;
}

static bool parse_body(parser *p, const char *const *ends, bool drop, tpl_nodes *out) {
  skip(p, TPL_T_COLON);
  if (!expect(p, TPL_T_BLOCK_END) || !deeper(p)) return false;
  p->ends[p->n_ends++] = ends;
  bool ok = subparse(p, ends, out);
  if (ok && p->at->kind == TPL_T_EOF) {
    fail_tag(p, NULL, p->at->line);
    ok = false;
  }
  p->n_ends--;
  p->depth--;
  if (ok && drop) next(p);
  return ok;
}

/* ---- names of filters and tests --------------------------------------------------------------------------------- */

typedef struct checker {
  parser *p;
  bool soft; /* inside an if: an unknown name fails only when it is reached, as in Jinja */
  bool in_loop;
} checker;

static bool check(checker x, tpl_node *node, int depth);

static bool check_all(checker x, const tpl_nodes *list, int depth) {
  for (size_t i = 0; i < list->n; i++) {
    if (!check(x, list->items[i], depth)) return false;
  }
  return true;
}

static bool check_names(const checker *x, tpl_node *node) {
  if (node->kind == TPL_N_FILTER) {
    node->filter = pst_engine_tpl_find_filter(node->name);
    if (!node->filter && !x->soft)
      return fail(x->p, node->line, "No filter named '%.*s'.", STR_ARGS(node->name)) != NULL;
    if (node->filter && !node->filter->call)
      return fail_code(x->p, PST_E_UNSUPPORTED, node->line,
                       "the template uses the filter '%s', which chat templates here cannot",
                       node->filter->name) != NULL;
  } else if (node->kind == TPL_N_TEST) {
    node->test = pst_engine_tpl_find_test(node->name);
    if (!node->test && !x->soft) return fail(x->p, node->line, "No test named '%.*s'.", STR_ARGS(node->name)) != NULL;
  } else if ((node->kind == TPL_N_BREAK || node->kind == TPL_N_CONTINUE) && !x->in_loop) {
    return fail(x->p, node->line,
                node->kind == TPL_N_BREAK ? "'break' outside loop" : "'continue' not properly in loop") != NULL;
  }
  return true;
}

static bool check(checker x, tpl_node *node, int depth) {
  if (!node) return true;
  if (depth > MAX_TREE_DEPTH)
    return fail_code(x.p, PST_E_LIMIT, node->line, "an expression of more than %d steps", MAX_TREE_DEPTH) != NULL;
  if (!check_names(&x, node)) return false;
  checker outer = x, body = x;
  switch (node->kind) {
  case TPL_N_IF:
  case TPL_N_COND: outer.soft = body.soft = true; break;
  case TPL_N_FOR:
    body.soft = false;
    body.in_loop = true;
    break;
  case TPL_N_MACRO:
    outer.soft = body.soft = false;
    outer.in_loop = body.in_loop = false;
    break;
  case TPL_N_GENERATION: body.in_loop = false; /* a macro underneath, in Jinja */ /* fall through */
  case TPL_N_SETBLOCK:
  case TPL_N_FILTERBLOCK:
  case TPL_N_WITH: outer.soft = body.soft = false; break;
  default: break;
  }
  depth++;
  const tpl_call_node *call = node->call;
  checker test = outer;
  if (node->kind == TPL_N_FOR) test.soft = false;
  checker otherwise = node->kind == TPL_N_FOR ? test : body;
  return check(outer, node->a, depth) && check(outer, node->b, depth) && check(test, node->c, depth) &&
         check_all(body, &node->list, depth) && check_all(otherwise, &node->list2, depth) &&
         check_all(outer, &node->list3, depth) &&
         (!call || (check_all(outer, &call->plain, depth) && check_all(outer, &call->named, depth) &&
                    check(outer, call->star, depth) && check(outer, call->star_star, depth)));
}

int pst_engine_tpl_parse(pst_engine_template *t, const tpl_tokens *tokens, pst_error *err) {
  pst_error own = PST_ERROR_INIT;
  parser p = {.t = t, .at = tokens->items, .err = err ? err : &own};
  if (!subparse(&p, NULL, &t->body)) return p.err->code;
  checker x = {.p = &p};
  return check_all(x, &t->body, 0) ? 0 : p.err->code;
}
