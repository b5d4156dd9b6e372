/* Choice lists: each text in the tokenizer's own spelling, merged into a trie.
 *
 * Only that spelling is allowed: it is the one the model was trained on, and where a single token follows there is nothing to compute, so an answer costs as
 * many decisions as the labels have branches. Where one text is the beginning of another, an end token or a line break closes it. */
#include "engine/choices.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

typedef struct builder {
  const pst_engine_model *model;
  const pst_engine_codes *codes; /* NULL: none */
  bool leading_space;
  pst_engine_choices *c;
  size_t capacity;
} builder;

static int add_node(builder *b, int32_t token) {
  if (pst_array_reserve((void **)&b->c->nodes, &b->capacity, (size_t)b->c->n_nodes + 1, sizeof *b->c->nodes)) return -1;
  b->c->nodes[b->c->n_nodes] = (pst_engine_choice_node){token, -1, -1, -1};
  return b->c->n_nodes++;
}

int pst_engine_choices_step(const pst_engine_choices *c, int node, int32_t token) {
  int i = c->nodes[node].first;
  while (i >= 0 && c->nodes[i].token < token) i = c->nodes[i].next;
  return i >= 0 && c->nodes[i].token == token ? i : -1;
}

static int child_for(builder *b, int node, int32_t token) {
  int found = pst_engine_choices_step(b->c, node, token);
  if (found >= 0) return found;
  int fresh = add_node(b, token);
  if (fresh < 0) return -1;
  int *link = &b->c->nodes[node].first;
  while (*link >= 0 && b->c->nodes[*link].token < token) link = &b->c->nodes[*link].next;
  b->c->nodes[fresh].next = *link;
  *link = fresh;
  return fresh;
}

/* The tokens of a text, in the adapter's codes where there are some. */
static int spell(const builder *b, pst_str text, pst_engine_tokens *tokens, pst_error *err) {
  const pst_engine_tokenizer *tokenizer = b->model->tokenizer;
  pst_engine_tokens plain = {0};
  pst_buf spelled = PST_BUF_INIT;
  /* Some SentencePiece vocabularies begin every text with that space already; a second one would be a token of its own. */
  if (b->leading_space && !pst_engine_tokenizer_get_info(tokenizer)->add_space_prefix) pst_buf_putc(&spelled, ' ');
  pst_buf_append_str(&spelled, text);
  int code = pst_buf_status(&spelled);
  if (!code) code = pst_engine_tokenizer_encode(tokenizer, pst_buf_str(&spelled), 0, b->codes ? &plain : tokens, err);
  if (!code && b->codes) code = pst_engine_codes_encode(b->codes, plain.ids, plain.n, tokens, err);
  pst_engine_tokens_done(&plain);
  pst_buf_done(&spelled);
  return code;
}

static int add_text(builder *b, pst_str text, int index, pst_error *err) {
  pst_engine_tokens tokens = {0};
  int code = spell(b, text, &tokens, err), node = 0;
  for (size_t i = 0; i < tokens.n && !code; i++)
    if ((node = child_for(b, node, tokens.ids[i])) < 0) code = PST_E_NOMEM;
  if (code == PST_E_NOMEM)
    pst_error_set(err, code, NULL, "no memory for the choices");
  else if (!code && (text.n == 0 || node == 0))
    code = pst_error_set(err, PST_E_BAD_INPUT, NULL, "choice %d is empty", index + 1);
  else if (!code && b->c->nodes[node].choice >= 0)
    code = pst_error_set(err, PST_E_BAD_INPUT, NULL, "choices %d and %d are the same", b->c->nodes[node].choice + 1,
                         index + 1);
  else if (!code)
    b->c->nodes[node].choice = index;
  pst_engine_tokens_done(&tokens);
  return code;
}

static int add_ends(pst_engine_choices *c, const pst_engine_model *model) {
  int n = model->info.n_vocab;
  size_t capacity = 0;
  for (int32_t t = 0; t < n; t++) {
    bool end = pst_engine_tokenizer_attributes(model->tokenizer, t) & PST_ENGINE_TOKEN_END;
    if (!end && !pst_str_is(pst_engine_tokenizer_bytes(model->tokenizer, t), "\n")) continue;
    if (pst_array_reserve((void **)&c->ends, &capacity, (size_t)c->n_ends + 1, sizeof *c->ends)) return PST_E_NOMEM;
    c->ends[c->n_ends++] = t;
  }
  return 0;
}

int pst_engine_choices_create(const pst_engine_model *model, const pst_str *texts, size_t n, bool leading_space,
                              const pst_engine_codes *codes, pst_engine_choices **ret_choices, pst_error *err) {
  if (n == 0) return pst_error_set(err, PST_E_BAD_INPUT, NULL, "the list of choices is empty");
  pst_engine_choices *c = pst_calloc(1, sizeof *c);
  if (!c) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the choices");
  atomic_init(&c->n_refs, 1);
  c->codes_key = pst_engine_codes_key(codes);
  builder b = {.model = model, .codes = codes, .leading_space = leading_space, .c = c};
  int code = add_node(&b, -1) < 0 ? PST_E_NOMEM : add_ends(c, model);
  if (code) pst_error_set(err, code, NULL, "no memory for the choices");
  for (size_t i = 0; i < n && !code; i++) code = add_text(&b, texts[i], (int)i, err);
  if (code) {
    pst_engine_choices_unref(c);
    return code;
  }
  *ret_choices = c;
  return 0;
}

pst_engine_choices *pst_engine_choices_ref(pst_engine_choices *c) {
  atomic_fetch_add(&c->n_refs, 1);
  return c;
}

void pst_engine_choices_unref(pst_engine_choices *c) {
  if (!c || atomic_fetch_sub(&c->n_refs, 1) > 1) return;
  pst_free(c->nodes);
  pst_free(c->ends);
  pst_free(c);
}

bool pst_engine_choices_is_leaf(const pst_engine_choices *c, int node) { return c->nodes[node].first < 0; }

int32_t pst_engine_choices_forced(const pst_engine_choices *c, int node) {
  const pst_engine_choice_node *p = &c->nodes[node];
  if (p->choice >= 0 || p->first < 0 || c->nodes[p->first].next >= 0) return -1;
  return c->nodes[p->first].token;
}

static int by_id(const void *a, const void *b) {
  return (*(const int32_t *)a > *(const int32_t *)b) - (*(const int32_t *)a < *(const int32_t *)b);
}

int pst_engine_choices_allowed(const pst_engine_choices *c, int node, int32_t *ret) {
  int n = 0;
  for (int i = c->nodes[node].first; i >= 0; i = c->nodes[i].next) ret[n++] = c->nodes[i].token;
  if (c->nodes[node].choice < 0) return n;
  for (int i = 0; i < c->n_ends; i++)
    if (pst_engine_choices_step(c, node, c->ends[i]) < 0) ret[n++] = c->ends[i];
  qsort(ret, (size_t)n, sizeof *ret, by_id);
  return n;
}
