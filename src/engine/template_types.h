/* Inside of the template interpreter: strings with origin, values, syntax tree, and the state of one rendering.
 *
 * Everything a rendering makes lives in its arena and dies with it; the syntax tree and its constants live in the template's
 * arena and are never written after compilation. Functions that can fail return false after setting the error. */
#ifndef PST_ENGINE_TEMPLATE_TYPES_H
#define PST_ENGINE_TEMPLATE_TYPES_H

#include "engine/template.h"

/* ---- strings ---------------------------------------------------------------------------------------------------- */

/* A stretch of one origin. Runs of a string ascend and the last reaches its end; an end may pass the string's length
 * (readers clamp), which lets uniform strings share one static run and lets a string grow in place. */
typedef struct tpl_run {
  size_t end;
  bool trusted;
} tpl_run;

/* Growing room behind a string made by concatenation; the string that ends at `used` may be extended in place. */
typedef struct tpl_room {
  char *base;
  size_t used, capacity;
  tpl_run *runs;
  size_t n_runs, runs_capacity;
} tpl_room;

/* Immutable text, valid UTF-8. */
typedef struct tpl_str {
  const char *data;
  size_t n;
  size_t n_chars; /* code points; SIZE_MAX: not counted yet */
  const tpl_run *runs;
  size_t n_runs;  /* at least 1 */
  tpl_room *room; /* NULL: none */
  bool markup;    /* Python's Markup: the other side of + is escaped */
} tpl_str;

/* ---- values ----------------------------------------------------------------------------------------------------- */

typedef enum tpl_kind {
  TPL_MISSING, /* no value at all: an argument that was not given */
  TPL_UNDEFINED,
  TPL_NONE,
  TPL_BOOL,
  TPL_INT,
  TPL_BIGINT, /* beyond 64 bits: digits only, can be shown and compared */
  TPL_FLOAT,
  TPL_STR,
  TPL_LIST,
  TPL_TUPLE,
  TPL_DICT,
  TPL_VIEW, /* d.keys(), d.values(), d.items() */
  TPL_ITER, /* a generator: read once */
  TPL_RANGE,
  TPL_NAMESPACE,
  TPL_MACRO,
  TPL_FUNCTION,
  TPL_METHOD,
  TPL_LOOP,
  TPL_CYCLER,
  TPL_JOINER,
} tpl_kind;

typedef struct tpl_val tpl_val;
typedef struct tpl_ctx tpl_ctx;
typedef struct tpl_node tpl_node;
typedef struct tpl_scope tpl_scope;
typedef struct tpl_dict tpl_dict;
typedef struct tpl_loop tpl_loop;
typedef struct tpl_function tpl_function;

typedef struct tpl_list {
  tpl_val *items;
  size_t n, capacity;
  size_t position; /* of an iterator: next item to hand out */
  bool group;      /* a tuple made by groupby: .grouper and .list name its items */
} tpl_list;

typedef enum tpl_view_kind { TPL_KEYS, TPL_VALUES, TPL_ITEMS } tpl_view_kind;
typedef struct tpl_view {
  tpl_dict *dict;
  tpl_view_kind what;
} tpl_view;

typedef struct tpl_range {
  int64_t start, stop, step;
  size_t n;
} tpl_range;

/* Why something is undefined: `hint` alone, or the name that was asked of an object (or of nothing: a variable). */
typedef struct tpl_undefined {
  const char *hint;   /* NULL: the message is made of the others */
  const char *object; /* "dict object", "None"; NULL: a variable */
  const char *name;   /* the attribute or variable, or the repr of what was no string */
  bool element;       /* name is a repr: "has no element" */
} tpl_undefined;

typedef struct tpl_macro {
  const tpl_node *node;
  tpl_scope *scope; /* where it was defined */
} tpl_macro;

typedef struct tpl_method tpl_method;

typedef struct tpl_cycler {
  tpl_list *items;
  size_t position;
} tpl_cycler;

typedef struct tpl_joiner {
  const tpl_str *separator;
  bool used;
} tpl_joiner;

struct tpl_val {
  tpl_kind kind;
  union {
    bool b;
    int64_t i;
    double f;
    const tpl_str *s; /* STR, BIGINT */
    tpl_list *list;   /* LIST, TUPLE, ITER */
    tpl_dict *dict;   /* DICT, NAMESPACE */
    tpl_view *view;
    tpl_range *range;
    const tpl_undefined *undefined;
    tpl_macro *macro;
    const tpl_function *function;
    tpl_method *method;
    tpl_loop *loop;
    tpl_cycler *cycler;
    tpl_joiner *joiner;
  } u;
};

typedef struct tpl_entry {
  tpl_val key, value;
  uint64_t hash;
} tpl_entry;

/* Insertion-ordered, open addressing above a few entries. */
struct tpl_dict {
  tpl_entry *entries;
  size_t n, capacity;
  uint32_t *index; /* entry + 1; 0: free; NULL while small */
  size_t index_size;
};

/* Arguments of a call. */
typedef struct tpl_args {
  const tpl_val *items;
  size_t n;
  const pst_str *names; /* of the keyword arguments */
  const tpl_val *named;
  size_t n_named;
} tpl_args;

typedef bool (*tpl_call)(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out);
/* Globals, filters and methods alike; `self` is NULL for a global. A NULL call is a feature that is known but not here. */
struct tpl_function {
  const char *name;
  tpl_call call;
};
struct tpl_method {
  tpl_val self;
  const tpl_function *function;
};
typedef bool (*tpl_test_call)(tpl_ctx *c, const tpl_val *value, const tpl_args *args, bool *out);
typedef struct tpl_test {
  const char *name;
  tpl_test_call call;
} tpl_test;

/* ---- syntax tree ------------------------------------------------------------------------------------------------ */

typedef enum tpl_node_kind {
  /* expressions */
  TPL_N_CONST,    /* value */
  TPL_N_NAME,     /* symbol */
  TPL_N_NSREF,    /* symbol . name: only as a target */
  TPL_N_TUPLE,    /* list */
  TPL_N_LISTEXPR, /* list */
  TPL_N_DICTEXPR, /* list: key, value, key, value ... */
  TPL_N_COND,     /* a if b else c (c may be NULL) */
  TPL_N_OR,       /* a, b */
  TPL_N_AND,
  TPL_N_NOT,     /* a */
  TPL_N_COMPARE, /* a, then list: operands with op */
  TPL_N_OPERAND, /* op, a */
  TPL_N_BINARY,  /* op, a, b */
  TPL_N_UNARY,   /* op, a */
  TPL_N_CONCAT,  /* list */
  TPL_N_GETATTR, /* a . name */
  TPL_N_GETITEM, /* a [b] */
  TPL_N_SLICE,   /* a : b : c, each may be NULL */
  TPL_N_CALL,    /* a (arguments) */
  TPL_N_FILTER,  /* a | name (arguments); a NULL in filter blocks */
  TPL_N_TEST,    /* a is name (arguments) */
  /* statements */
  TPL_N_DATA,        /* value: text of the template */
  TPL_N_PRINT,       /* a */
  TPL_N_FOR,         /* target a in b if c: body list, else list2; op: recursive */
  TPL_N_IF,          /* a: body list, else list2 (an elif is an IF alone in it) */
  TPL_N_SET,         /* a = b */
  TPL_N_SETBLOCK,    /* a, filter b (or NULL), body list */
  TPL_N_MACRO,       /* symbol, name, parameters list2 with defaults list3, body list */
  TPL_N_CALLBLOCK,   /* call a; b is the MACRO made of the body */
  TPL_N_FILTERBLOCK, /* filter a, body list */
  TPL_N_WITH,        /* targets list2, values list3, body list */
  TPL_N_GENERATION,  /* body list */
  TPL_N_BREAK,
  TPL_N_CONTINUE,
} tpl_node_kind;

typedef enum tpl_op {
  TPL_OP_NONE,
  TPL_OP_ADD,
  TPL_OP_SUB,
  TPL_OP_MUL,
  TPL_OP_DIV,
  TPL_OP_FLOORDIV,
  TPL_OP_MOD,
  TPL_OP_POW,
  TPL_OP_EQ,
  TPL_OP_NE,
  TPL_OP_LT,
  TPL_OP_LE,
  TPL_OP_GT,
  TPL_OP_GE,
  TPL_OP_IN,
  TPL_OP_NOTIN,
} tpl_op;

typedef struct tpl_nodes {
  tpl_node **items;
  size_t n, capacity;
} tpl_nodes;

/* Arguments as written: plain, then named, then *args and **kwargs (NULL: none). */
typedef struct tpl_call_node {
  tpl_nodes plain;
  tpl_nodes named;
  pst_str *names;
  tpl_node *star, *star_star;
} tpl_call_node;

struct tpl_node {
  tpl_node_kind kind;
  tpl_op op;
  int line;
  int symbol;
  bool flag;                            /* FOR: recursive. MACRO: takes a caller */
  bool catches_kwargs, catches_varargs; /* MACRO: its body names kwargs, varargs */
  pst_str name;
  tpl_node *a, *b, *c;
  tpl_nodes list, list2, list3;
  tpl_call_node *call;
  tpl_val value;
  const tpl_function *filter; /* FILTER: NULL if there is none of that name */
  const tpl_test *test;       /* TEST */
};

/* The template: its tree, and the names in it as small numbers. */
struct pst_engine_template {
  pst_arena *arena;
  tpl_nodes body;
  pst_str *symbols;
  size_t n_symbols, symbols_capacity;
};

enum {
  TPL_MAX_TEMPLATE_BYTES = 1 << 20,
  TPL_MAX_PARSE_DEPTH = 150,
  TPL_MAX_RANGE = 100000, /* the sandbox's own limit */
};

/* Tokens of the source (template_lex.c). */
typedef enum tpl_token_kind {
  TPL_T_EOF,
  TPL_T_DATA,
  TPL_T_VARIABLE_BEGIN,
  TPL_T_VARIABLE_END,
  TPL_T_BLOCK_BEGIN,
  TPL_T_BLOCK_END,
  TPL_T_NAME,
  TPL_T_STRING,
  TPL_T_INTEGER,
  TPL_T_FLOAT,
  /* operators */
  TPL_T_ADD,
  TPL_T_SUB,
  TPL_T_MUL,
  TPL_T_DIV,
  TPL_T_FLOORDIV,
  TPL_T_MOD,
  TPL_T_POW,
  TPL_T_TILDE,
  TPL_T_LBRACKET,
  TPL_T_RBRACKET,
  TPL_T_LPAREN,
  TPL_T_RPAREN,
  TPL_T_LBRACE,
  TPL_T_RBRACE,
  TPL_T_EQ,
  TPL_T_NE,
  TPL_T_GT,
  TPL_T_GE,
  TPL_T_LT,
  TPL_T_LE,
  TPL_T_ASSIGN,
  TPL_T_DOT,
  TPL_T_COLON,
  TPL_T_PIPE,
  TPL_T_COMMA,
  TPL_T_SEMICOLON,
} tpl_token_kind;

typedef struct tpl_token {
  tpl_token_kind kind;
  int line;
  pst_str text; /* name, data or string (unescaped) */
  int64_t integer;
  double real;
} tpl_token;

typedef struct tpl_tokens {
  tpl_token *items; /* ends with EOF */
  size_t n, capacity;
} tpl_tokens;
/* Into the template's arena. */
int pst_engine_tpl_lex(pst_arena *arena, pst_str source, tpl_tokens *ret_tokens, pst_error *err);
int pst_engine_tpl_parse(pst_engine_template *t, const tpl_tokens *tokens, pst_error *err);
/* Array growth inside an arena: the old block is left behind. */
bool pst_engine_tpl_grow(pst_arena *arena, void **items, size_t *capacity, size_t need, size_t element_bytes);
/* The number of a name; -1: not in the template. */
int pst_engine_tpl_symbol(const pst_engine_template *t, pst_str name);

/* ---- one rendering ---------------------------------------------------------------------------------------------- */

/* Text under construction, with its origins. Errors stick in the context. */
typedef struct tpl_builder {
  tpl_ctx *c;
  char *data;
  size_t n, capacity;
  tpl_run *runs;
  size_t n_runs, runs_capacity;
} tpl_builder;

typedef struct tpl_binding {
  int symbol;
  tpl_val value;
} tpl_binding;

struct tpl_scope {
  tpl_scope *parent; /* NULL: the root, whose bindings are tpl_ctx.root */
  tpl_binding *bindings;
  size_t n, capacity;
  bool captured; /* a macro holds it: do not reuse for the next iteration */
};

struct tpl_ctx {
  const pst_engine_template *t;
  pst_arena *arena;
  pst_error *err;
  bool failed;
  int line;
  int depth, max_depth;
  int64_t steps, max_steps;
  size_t memory, max_memory, max_output;
  tpl_val *root;    /* one for each symbol; MISSING: unset */
  tpl_builder *out; /* where text goes now */
  tpl_builder *final_out;
  bool clock_fixed;
  int64_t now_unix_s;
  pst_engine_template_span *generations;
  size_t n_generations, generations_capacity;
};

/* A walk over any iterable. */
typedef struct tpl_walk {
  tpl_val of;
  size_t position, n;
} tpl_walk;

struct tpl_loop {
  const tpl_node *node;
  tpl_scope *scope; /* around the loop */
  tpl_walk walk;
  bool sized; /* the iterable knows its length */
  bool ended;
  bool passed;                     /* what is left has passed the condition already */
  tpl_val peeked, current, before; /* MISSING: none */
  tpl_val changed;
  int64_t index0, depth0, length; /* length -1: not known yet */
};

/* Failure. code PST_E_BAD_INPUT for what Python or the template raises. All return false. */
bool pst_engine_tpl_fail(tpl_ctx *c, int code, const char *format, ...) PST_PRINTF(3, 4);
bool pst_engine_tpl_fail_unsupported(tpl_ctx *c, const char *what); /* "the template uses WHAT ..." */
bool pst_engine_tpl_fail_undefined(tpl_ctx *c, const tpl_val *v);
void *pst_engine_tpl_alloc(tpl_ctx *c, size_t bytes); /* NULL after failing */
bool pst_engine_tpl_charge(tpl_ctx *c, size_t bytes); /* a step, and one more for every 64 bytes */
bool pst_engine_tpl_enter(tpl_ctx *c);                /* one level deeper; every true needs a leave */
void pst_engine_tpl_leave(tpl_ctx *c);

/* ---- text (template_text.c) ------------------------------------------------------------------------------------- */

extern const tpl_run pst_engine_tpl_run_trusted, pst_engine_tpl_run_data;
tpl_builder pst_engine_tpl_builder(tpl_ctx *c);
bool pst_engine_tpl_put(tpl_builder *b, const char *data, size_t n, bool trusted);
bool pst_engine_tpl_puts(tpl_builder *b, const char *text, bool trusted);
bool pst_engine_tpl_put_char(tpl_builder *b, uint32_t code_point, bool trusted);
bool pst_engine_tpl_put_str(tpl_builder *b, const tpl_str *s);
bool pst_engine_tpl_put_slice(tpl_builder *b, const tpl_str *s, size_t start, size_t end); /* byte offsets */
bool pst_engine_tpl_build(tpl_builder *b, bool markup, tpl_val *out);

const tpl_str *pst_engine_tpl_str_new(tpl_ctx *c, pst_str text, bool trusted);  /* copies */
const tpl_str *pst_engine_tpl_str_view(tpl_ctx *c, pst_str text, bool trusted); /* text must outlive the rendering */
const tpl_str *pst_engine_tpl_str_slice(tpl_ctx *c, const tpl_str *s, size_t start, size_t end); /* shares the text */
const tpl_str *pst_engine_tpl_str_concat(tpl_ctx *c, const tpl_str *a, const tpl_str *b);
bool pst_engine_tpl_trusted_at(const tpl_str *s, size_t offset);
pst_str pst_engine_tpl_view(const tpl_str *s);
size_t pst_engine_tpl_chars(const tpl_str *s);
size_t pst_engine_tpl_char_offset(const tpl_str *s, size_t n_chars); /* byte offset of a code point */
bool pst_engine_tpl_is_space(uint32_t cp);                           /* Python's str.isspace */
typedef enum tpl_case { TPL_UPPER, TPL_LOWER, TPL_CAPITALIZE, TPL_TITLE, TPL_SWAPCASE } tpl_case;
const tpl_str *pst_engine_tpl_str_case(tpl_ctx *c, const tpl_str *s, tpl_case how);
bool pst_engine_tpl_escape_html(tpl_ctx *c, const tpl_str *s, tpl_val *out); /* Markup as it is */
bool pst_engine_tpl_put_repr(tpl_builder *b, const tpl_str *s);
/* chars NULL: white space. sides: 1 left, 2 right, 3 both. */
const tpl_str *pst_engine_tpl_str_strip(tpl_ctx *c, const tpl_str *s, const tpl_str *chars, int sides);
bool pst_engine_tpl_str_replace(tpl_ctx *c, const tpl_str *s, const tpl_str *old, const tpl_str *by, int64_t count,
                                tpl_val *out);
void pst_engine_tpl_float_repr(double f, char out[40]);
bool pst_engine_tpl_is_upper(uint32_t cp);
bool pst_engine_tpl_is_lower(uint32_t cp);
bool pst_engine_tpl_is_printable(uint32_t cp);

/* ---- values (template_value.c) ---------------------------------------------------------------------------------- */

tpl_val pst_engine_tpl_none(void);
tpl_val pst_engine_tpl_bool(bool b);
tpl_val pst_engine_tpl_int(int64_t i);
tpl_val pst_engine_tpl_float(double f);
tpl_val pst_engine_tpl_string(const tpl_str *s); /* s NULL: MISSING */
bool pst_engine_tpl_undefined_hint(tpl_ctx *c, const char *hint, tpl_val *out);
bool pst_engine_tpl_undefined_name(tpl_ctx *c, pst_str name, tpl_val *out);
bool pst_engine_tpl_undefined_of(tpl_ctx *c, const tpl_val *object, const tpl_val *key, tpl_val *out);
const char *pst_engine_tpl_type_name(const tpl_val *v);   /* Python's: "str", "NoneType" */
const char *pst_engine_tpl_object_repr(const tpl_val *v); /* "str object", "None" */

tpl_list *pst_engine_tpl_list_new(tpl_ctx *c, size_t capacity);
bool pst_engine_tpl_list_push(tpl_ctx *c, tpl_list *l, tpl_val v);
tpl_val pst_engine_tpl_list(tpl_kind kind, tpl_list *l);
tpl_dict *pst_engine_tpl_dict_new(tpl_ctx *c);
bool pst_engine_tpl_dict_set(tpl_ctx *c, tpl_dict *d, tpl_val key, tpl_val value); /* fails on an unhashable key */
bool pst_engine_tpl_dict_find(tpl_ctx *c, const tpl_dict *d, const tpl_val *key, tpl_val **ret_value); /* NULL: none */
tpl_val *pst_engine_tpl_dict_get(const tpl_dict *d, pst_str key);                                      /* NULL: none */
bool pst_engine_tpl_dict_put(tpl_ctx *c, tpl_dict *d, const char *key,
                             tpl_val value); /* literal key; data, as in JSON */
tpl_val pst_engine_tpl_dict(tpl_dict *d);

bool pst_engine_tpl_truth(tpl_ctx *c, const tpl_val *v, bool *out);
bool pst_engine_tpl_equal(tpl_ctx *c, const tpl_val *a, const tpl_val *b, bool *out);
bool pst_engine_tpl_order(tpl_ctx *c, const tpl_val *a, const tpl_val *b, tpl_op op, bool *out);
bool pst_engine_tpl_contains(tpl_ctx *c, const tpl_val *item, const tpl_val *of, bool *out);
bool pst_engine_tpl_length(tpl_ctx *c, const tpl_val *v, int64_t *out);
bool pst_engine_tpl_to_str(tpl_ctx *c, const tpl_val *v, const tpl_str **out); /* Python's str() */
bool pst_engine_tpl_print(tpl_builder *b, const tpl_val *v);
bool pst_engine_tpl_repr(tpl_builder *b, const tpl_val *v);
bool pst_engine_tpl_walk(tpl_ctx *c, const tpl_val *v, tpl_walk *out); /* fails: not iterable */
bool pst_engine_tpl_is_iterable(const tpl_val *v);
bool pst_engine_tpl_next(tpl_ctx *c, tpl_walk *w, tpl_val *out);           /* MISSING at the end */
bool pst_engine_tpl_collect(tpl_ctx *c, const tpl_val *v, tpl_list **out); /* list(v) */
bool pst_engine_tpl_from_json(tpl_ctx *c, const pst_json *v, tpl_val *out);
bool pst_engine_tpl_sort(tpl_ctx *c, tpl_val *items, tpl_val *keys, size_t n, bool reverse);

/* ---- evaluation (template_eval.c, template_exec.c) -------------------------------------------------------------- */

bool pst_engine_tpl_eval(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out);
bool pst_engine_tpl_eval_args(tpl_ctx *c, tpl_scope *scope, const tpl_call_node *call, tpl_args *out);
bool pst_engine_tpl_binary(tpl_ctx *c, tpl_op op, const tpl_val *a, const tpl_val *b, tpl_val *out);
bool pst_engine_tpl_call_value(tpl_ctx *c, const tpl_val *f, const tpl_args *args, tpl_val *out);
bool pst_engine_tpl_getattr(tpl_ctx *c, const tpl_val *object, pst_str name, tpl_val *out);
bool pst_engine_tpl_getitem(tpl_ctx *c, const tpl_val *object, const tpl_val *key, tpl_val *out);
bool pst_engine_tpl_slice(tpl_ctx *c, const tpl_val *object, const tpl_val *start, const tpl_val *stop,
                          const tpl_val *step, tpl_val *out);
bool pst_engine_tpl_call_macro(tpl_ctx *c, const tpl_macro *m, const tpl_args *args, tpl_val *out);
bool pst_engine_tpl_call_loop(tpl_ctx *c, tpl_loop *loop, const tpl_args *args, tpl_val *out);
bool pst_engine_tpl_loop_attr(tpl_ctx *c, tpl_loop *loop, pst_str name, tpl_val *out); /* MISSING: no such attribute */
bool pst_engine_tpl_run(tpl_ctx *c, tpl_scope *root);
bool pst_engine_tpl_lookup(tpl_ctx *c, tpl_scope *scope, int symbol, tpl_val *out);
bool pst_engine_tpl_bind(tpl_ctx *c, tpl_scope *scope, int symbol, tpl_val value);

/* ---- what templates can call ------------------------------------------------------------------------------------ */

/* Sorts arguments into named slots as Python does; what is not given becomes MISSING. */
bool pst_engine_tpl_arguments(tpl_ctx *c, const char *function, const tpl_args *args, const char *const *names,
                              size_t n, size_t n_required, tpl_val *out);
bool pst_engine_tpl_want_int(tpl_ctx *c, const tpl_val *v, int64_t *out);
bool pst_engine_tpl_want_str(tpl_ctx *c, const tpl_val *v, const char *function, const tpl_str **out);

extern const tpl_function pst_engine_tpl_globals[]; /* ends with a NULL name */
const tpl_function *pst_engine_tpl_find_function(const tpl_function *table, pst_str name);
const tpl_function *pst_engine_tpl_find_filter(pst_str name);
const tpl_test *pst_engine_tpl_find_test(pst_str name);
extern const tpl_function pst_engine_tpl_scalar_filters[], pst_engine_tpl_sequence_filters[];
extern const tpl_test pst_engine_tpl_tests[];
extern const tpl_function pst_engine_tpl_str_methods[];
/* The method of that name of a value's type; NULL: none. *ret_mutates: the sandbox forbids it. */
const tpl_function *pst_engine_tpl_find_method(const tpl_val *self, pst_str name, bool *ret_mutates);

/* printf-style and format()-style texts (template_format.c). */
bool pst_engine_tpl_percent(tpl_ctx *c, const tpl_str *format, const tpl_val *values, tpl_val *out);
bool pst_engine_tpl_format(tpl_ctx *c, const tpl_str *format, const tpl_args *args, tpl_val *out);

/* tojson and from JSON (template_json.c). */
bool pst_engine_tpl_tojson(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out);

#endif
