/* Terse output codes: frequent pieces of answers, each written as one token.
 *
 * Owns the table, its form as text (the note penstock.codes of an adapter), and both ways between plain and coded tokens. Pieces are made of plain tokens only, so that expanding
 * is one look for each token, in the engine's session as well as here. Which pieces are worth a code is tune/codes.c's question; what a code's text is, adapter.c's. */
#include <penstock/engine.h>

#include <stdlib.h>
#include <string.h>

typedef struct node {
  int32_t token;   /* that leads here */
  int first, next; /* first child, next sibling by token; -1: none */
  int code;        /* whose piece ends here; -1: none */
} node;

struct pst_engine_codes {
  pst_engine_code *codes; /* ascending by token */
  size_t n;
  int32_t *pieces; /* of all codes, one behind the other */
  node *nodes;     /* the pieces as a trie; [0] is the root */
  int n_nodes;
  uint64_t key;
};

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, "codes", "no memory for codes"); }

static int bad(pst_error *err, int32_t token, const char *what) {
  return pst_error_set(err, PST_E_BAD_INPUT, "codes", "the code %d %s", token, what);
}

/* ---- the table ---- */

static int by_token(const void *a, const void *b) {
  int32_t x = ((const pst_engine_code *)a)->token, y = ((const pst_engine_code *)b)->token;
  return (x > y) - (x < y);
}

const pst_engine_code *pst_engine_codes_find(const pst_engine_codes *c, int32_t token) {
  pst_engine_code wanted = {.token = token};
  return c->n ? bsearch(&wanted, c->codes, c->n, sizeof *c->codes, by_token) : NULL;
}

/* The child of a node by token, or where it would be: a link to the first sibling that is not before it. */
static int *link_of(pst_engine_codes *c, int at, int32_t token) {
  int *link = &c->nodes[at].first;
  while (*link >= 0 && c->nodes[*link].token < token) link = &c->nodes[*link].next;
  return link;
}

static int child_of(const pst_engine_codes *c, int at, int32_t token) {
  int i = c->nodes[at].first;
  while (i >= 0 && c->nodes[i].token < token) i = c->nodes[i].next;
  return i >= 0 && c->nodes[i].token == token ? i : -1;
}

/* False: another code has this piece. */
static bool add_piece(pst_engine_codes *c, int index) {
  const pst_engine_code *code = &c->codes[index];
  int at = 0;
  for (size_t i = 0; i < code->n; i++) {
    int *link = link_of(c, at, code->piece[i]);
    if (*link < 0 || c->nodes[*link].token != code->piece[i]) {
      c->nodes[c->n_nodes] = (node){code->piece[i], -1, *link, -1};
      *link = c->n_nodes++;
    }
    at = *link;
  }
  if (c->nodes[at].code >= 0) return false;
  c->nodes[at].code = index;
  return true;
}

static int check(const pst_engine_codes *c, pst_error *err) {
  for (size_t i = 0; i < c->n; i++) {
    const pst_engine_code *code = &c->codes[i];
    if (code->token < 0) return bad(err, code->token, "is no token");
    if (i && code->token == c->codes[i - 1].token) return bad(err, code->token, "is there twice");
    if (code->n < 2) return bad(err, code->token, "stands for fewer than two tokens");
    for (size_t k = 0; k < code->n; k++)
      if (code->piece[k] < 0 || pst_engine_codes_find(c, code->piece[k]))
        return bad(err, code->token, "stands for what is no plain token");
  }
  return 0;
}

static int build(pst_engine_codes *c, const pst_engine_code *codes, size_t n, size_t total, pst_error *err) {
  c->codes = pst_calloc(n + 1, sizeof *c->codes);
  c->pieces = pst_calloc(total + 1, sizeof *c->pieces);
  c->nodes = pst_calloc(total + 1, sizeof *c->nodes);
  if (!c->codes || !c->pieces || !c->nodes) return no_memory(err);
  c->n = n;
  if (n) memcpy(c->codes, codes, n * sizeof *codes);
  qsort(c->codes, n, sizeof *c->codes, by_token);
  int32_t *at = c->pieces;
  for (size_t i = 0; i < n; i++) {
    pst_engine_code *code = &c->codes[i];
    if (code->n) memcpy(at, code->piece, code->n * sizeof *at);
    code->piece = at;
    at += code->n;
  }
  int code = check(c, err);
  if (code) return code;
  c->nodes[0] = (node){-1, -1, -1, -1};
  c->n_nodes = 1;
  c->key = 1;
  for (size_t i = 0; i < n; i++) {
    if (!add_piece(c, (int)i)) return bad(err, c->codes[i].token, "stands for what another one stands for");
    c->key = pst_hash64(c->codes[i].piece, c->codes[i].n * sizeof(int32_t), c->key + (uint64_t)c->codes[i].token) | 1;
  }
  return 0;
}

int pst_engine_codes_create(const pst_engine_code *codes, size_t n, pst_engine_codes **ret_codes, pst_error *err) {
  size_t total = 0;
  if (n > PST_ENGINE_MAX_CODES)
    return pst_error_set(err, PST_E_LIMIT, "codes", "%zu codes; at most %d are known here", n, PST_ENGINE_MAX_CODES);
  for (size_t i = 0; i < n; i++) {
    if (codes[i].n > PST_ENGINE_MAX_CODE_TOKENS)
      return pst_error_set(err, PST_E_LIMIT, "codes", "the code %d stands for %zu tokens, more than %d", codes[i].token,
                           codes[i].n, PST_ENGINE_MAX_CODE_TOKENS);
    total += codes[i].n;
  }
  pst_engine_codes *c = pst_calloc(1, sizeof *c);
  if (!c) return no_memory(err);
  int code = build(c, codes, n, total, err);
  if (code)
    pst_engine_codes_free(c);
  else
    *ret_codes = c;
  return code;
}

void pst_engine_codes_free(pst_engine_codes *c) {
  if (!c) return;
  pst_free(c->codes);
  pst_free(c->pieces);
  pst_free(c->nodes);
  pst_free(c);
}

size_t pst_engine_codes_list(const pst_engine_codes *c, const pst_engine_code **ret_codes) {
  *ret_codes = c->codes;
  return c->n;
}

uint64_t pst_engine_codes_key(const pst_engine_codes *c) { return c ? c->key : 0; }

/* ---- as text ---- */

void pst_engine_codes_write(const pst_engine_codes *c, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_array(&w);
  for (size_t i = 0; i < c->n; i++) {
    pst_json_begin_array(&w);
    pst_json_put_int(&w, c->codes[i].token);
    for (size_t k = 0; k < c->codes[i].n; k++) pst_json_put_int(&w, c->codes[i].piece[k]);
    pst_json_end_array(&w);
  }
  pst_json_end_array(&w);
}

/* Tokens of all rows, one behind the other, and where each code's row begins; ids that are none become -1, which no table takes. */
static int read_rows(const pst_json *root, pst_engine_tokens *ids, pst_engine_code *codes, pst_error *err) {
  pst_json_iter rows = pst_json_iterate(root);
  int code = 0;
  for (size_t i = 0; pst_json_next(&rows) && !code; i++) {
    pst_json_iter row = pst_json_iterate(rows.value);
    size_t n = pst_json_typeof(rows.value) == PST_JSON_ARRAY ? pst_json_size(rows.value) : 0;
    codes[i].n = n ? n - 1 : 0;
    if (!n) return pst_error_set(err, PST_E_BAD_INPUT, "codes", "row %zu is no list of tokens", i + 1);
    while (pst_json_next(&row) && !code) {
      int64_t value = pst_json_is_int(row.value) ? pst_json_int(row.value, -1) : -1;
      int32_t id = value >= 0 && value <= INT32_MAX ? (int32_t)value : -1;
      code = pst_engine_tokens_append(ids, &id, 1, err);
    }
  }
  return code;
}

int pst_engine_codes_parse(pst_str text, pst_engine_codes **ret_codes, pst_error *err) {
  pst_json_doc *doc = NULL;
  pst_engine_tokens ids = {0};
  int code = pst_json_parse(text.data, text.n, "codes", &doc, err);
  if (code) return code;
  const pst_json *root = pst_json_root(doc);
  size_t n = pst_json_size(root);
  pst_engine_code *codes = pst_calloc(n + 1, sizeof *codes);
  if (!codes)
    code = no_memory(err);
  else if (pst_json_typeof(root) != PST_JSON_ARRAY)
    code = pst_error_set(err, PST_E_BAD_INPUT, "codes", "is no list of codes");
  else
    code = read_rows(root, &ids, codes, err);
  for (size_t i = 0, at = 0; i < n && !code; at += codes[i++].n + 1) {
    codes[i].token = ids.ids[at];
    codes[i].piece = ids.ids + at + 1;
  }
  if (!code) code = pst_engine_codes_create(codes, n, ret_codes, err);
  pst_free(codes);
  pst_engine_tokens_done(&ids);
  pst_json_free(doc);
  return code;
}

/* ---- plain and coded ---- */

/* ways[i]: the code that the cheapest way through the tokens from i on begins with, -1: the token itself. Of ways as cheap the one that begins with the longest piece. */
static void find_ways(const pst_engine_codes *c, const int32_t *ids, size_t n, uint32_t *costs, int32_t *ways) {
  costs[n] = 0;
  for (size_t i = n; i-- > 0;) {
    costs[i] = costs[i + 1] + 1;
    ways[i] = -1;
    int at = 0;
    for (size_t k = i; k < n && (at = child_of(c, at, ids[k])) >= 0; k++)
      if (c->nodes[at].code >= 0 && costs[k + 1] + 1 <= costs[i]) {
        costs[i] = costs[k + 1] + 1;
        ways[i] = c->nodes[at].code;
      }
  }
}

int pst_engine_codes_encode(const pst_engine_codes *c, const int32_t *ids, size_t n, pst_engine_tokens *out,
                            pst_error *err) {
  for (size_t i = 0; i < n; i++)
    if (pst_engine_codes_find(c, ids[i]))
      return pst_error_set(err, PST_E_BAD_INPUT, "codes",
                           "token %d at position %zu is a code and cannot stand for itself", ids[i], i);
  uint32_t *costs = pst_malloc((n + 1) * sizeof *costs);
  int32_t *ways = pst_malloc((n + 1) * sizeof *ways);
  int code = costs && ways ? 0 : no_memory(err);
  if (!code) find_ways(c, ids, n, costs, ways);
  for (size_t i = 0; i < n && !code;) {
    const pst_engine_code *way = ways[i] >= 0 ? &c->codes[ways[i]] : NULL;
    code = pst_engine_tokens_append(out, way ? &way->token : &ids[i], 1, err);
    i += way ? way->n : 1;
  }
  pst_free(costs);
  pst_free(ways);
  return code;
}

int pst_engine_codes_expand(const pst_engine_codes *c, const int32_t *ids, size_t n, pst_engine_tokens *out,
                            pst_error *err) {
  int code = 0;
  for (size_t i = 0; i < n && !code; i++) {
    const pst_engine_code *found = pst_engine_codes_find(c, ids[i]);
    code = pst_engine_tokens_append(out, found ? found->piece : &ids[i], found ? found->n : 1, err);
  }
  return code;
}
