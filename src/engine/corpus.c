/* Past answers as a suffix automaton: built by appending tokens, then frozen into two flat arrays that threads share.
 *
 * While it grows, the edges of a state form a list, since a clone copies them, and a hash table of (state, token) finds one, since the root has as many as the
 * corpus has different tokens. Frozen, a state's edges stand side by side: the one that was taken most often first, which is all that drafting reads, the
 * others by token. Of N tokens there are at most 2 N states and 3 N edges (Blumer et al. 1985); occurrences are summed up from longer
 * states to their suffix links. The suffix link of a string is the longest end of it that has more places. */
#include "engine/corpus.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { ROOT = 0, NONE = UINT32_MAX };

typedef struct state {
  uint32_t length; /* of its longest string, in tokens */
  uint32_t link;   /* NONE: the root's */
  uint32_t count;  /* places of its strings */
  uint32_t
      edges; /* building: the first of its list, NONE: empty; frozen: place of the first, the next state's says where they end */
} state;

typedef struct edge {
  int32_t token;
  uint32_t to;
} edge;

struct pst_engine_corpus {
  _Atomic int n_refs;
  uint64_t key;
  state *states; /* [n_states + 1] */
  edge *edges;   /* [n_edges] */
  size_t n_states, n_edges;
};

/* ---- building ---- */

typedef struct grown_edge {
  int32_t token;
  uint32_t from, to, next; /* next: in the list of `from` */
} grown_edge;

typedef struct builder {
  state *states;
  grown_edge *edges;
  uint32_t *slots; /* edge number + 1 by hash of (from, token); 0: free; `mask` + 1 of them */
  size_t mask, n_states, n_edges;
} builder;

static void builder_done(builder *b) {
  pst_free(b->states);
  pst_free(b->edges);
  pst_free(b->slots);
}

static int builder_init(builder *b, size_t n_tokens) {
  size_t n_slots = 16;
  while (n_slots < 4 * n_tokens) n_slots *= 2;
  *b = (builder){.states = pst_malloc((2 * n_tokens + 1) * sizeof *b->states),
                 .edges = pst_malloc((3 * n_tokens + 1) * sizeof *b->edges),
                 .slots = pst_calloc(n_slots, sizeof *b->slots),
                 .mask = n_slots - 1};
  if (!b->states || !b->edges || !b->slots) return PST_E_NOMEM;
  b->states[b->n_states++] = (state){0, NONE, 0, NONE};
  return 0;
}

/* The slot of an edge, or the free one where it belongs. */
static size_t slot_of(const builder *b, uint32_t from, int32_t token) {
  uint64_t x = ((uint64_t)from << 32 | (uint32_t)token) * 0x9e3779b97f4a7c15u; /* Fibonacci hashing */
  size_t i = (size_t)(x >> 32) & b->mask;
  for (; b->slots[i]; i = (i + 1) & b->mask) {
    const grown_edge *e = &b->edges[b->slots[i] - 1];
    if (e->from == from && e->token == token) break;
  }
  return i;
}

static grown_edge *find_edge(const builder *b, uint32_t from, int32_t token) {
  uint32_t number = b->slots[slot_of(b, from, token)];
  return number ? &b->edges[number - 1] : NULL;
}

static void add_edge(builder *b, uint32_t from, int32_t token, uint32_t to) {
  b->edges[b->n_edges] = (grown_edge){token, from, to, b->states[from].edges};
  b->states[from].edges = (uint32_t)b->n_edges++;
  b->slots[slot_of(b, from, token)] = (uint32_t)b->n_edges;
}

/* Splits off the strings of q = edge (p, token) that are not longer than p's and the token: they have got a place that the longer ones have not. */
static uint32_t split(builder *b, uint32_t p, int32_t token, uint32_t q) {
  uint32_t r = (uint32_t)b->n_states++;
  b->states[r] = (state){b->states[p].length + 1, b->states[q].link, 0, NONE};
  for (uint32_t i = b->states[q].edges; i != NONE; i = b->edges[i].next)
    add_edge(b, r, b->edges[i].token, b->edges[i].to);
  b->states[q].link = r;
  for (; p != NONE; p = b->states[p].link) {
    grown_edge *e = find_edge(b, p, token);
    if (!e || e->to != q) break;
    e->to = r;
  }
  return r;
}

/* The state of the strings that go on to q by (p, token) and are no longer than p's allow. */
static uint32_t fitting(builder *b, uint32_t p, int32_t token, uint32_t q) {
  return b->states[q].length == b->states[p].length + 1 ? q : split(b, p, token, q);
}

/* Appends a token behind the string that ends in state `last`. */
static uint32_t append(builder *b, uint32_t last, int32_t token) {
  const grown_edge *known = find_edge(b, last, token);
  if (known) return fitting(b, last, token, known->to);
  uint32_t fresh = (uint32_t)b->n_states++, p = last;
  b->states[fresh] = (state){b->states[last].length + 1, ROOT, 0, NONE};
  for (; p != NONE; p = b->states[p].link) {
    if ((known = find_edge(b, p, token))) break;
    add_edge(b, p, token, fresh);
  }
  if (p != NONE) {
    uint32_t link = fitting(b, p, token, known->to);
    b->states[fresh].link = link;
  }
  return fresh;
}

static void append_all(builder *b, const int32_t *tokens, const size_t *lengths, size_t n) {
  for (size_t i = 0; i < n; tokens += lengths[i++]) {
    uint32_t last = append(b, ROOT, PST_ENGINE_CORPUS_START);
    b->states[last].count++;
    for (size_t k = 0; k < lengths[i]; k++) {
      last = append(b, last, tokens[k]);
      b->states[last].count++;
    }
  }
}

/* Adds each state's places to its suffix link's, longest first. */
static int sum_places(builder *b) {
  uint32_t longest = 0;
  for (size_t i = 0; i < b->n_states; i++) longest = PST_MAX(longest, b->states[i].length);
  uint32_t *starts = pst_calloc((size_t)longest + 2, sizeof *starts), *order = pst_malloc(b->n_states * sizeof *order);
  if (starts && order) {
    for (size_t i = 0; i < b->n_states; i++) starts[b->states[i].length + 1]++;
    for (size_t l = 1; l <= longest; l++) starts[l] += starts[l - 1];
    for (size_t i = 0; i < b->n_states; i++) order[starts[b->states[i].length]++] = (uint32_t)i;
    for (size_t i = b->n_states; i-- > 1;) { /* order[0] is the root */
      const state *s = &b->states[order[i]];
      b->states[s->link].count += s->count;
    }
  }
  int code = starts && order ? 0 : PST_E_NOMEM;
  pst_free(starts);
  pst_free(order);
  return code;
}

static int by_token(const void *a, const void *b) {
  return (((const edge *)a)->token > ((const edge *)b)->token) - (((const edge *)a)->token < ((const edge *)b)->token);
}

static int freeze(const builder *b, pst_engine_corpus *c) {
  c->states = pst_malloc((b->n_states + 1) * sizeof *c->states);
  c->edges = pst_malloc((b->n_edges + 1) * sizeof *c->edges);
  if (!c->states || !c->edges) return PST_E_NOMEM;
  for (size_t i = 0; i < b->n_states; i++) {
    c->states[i] = b->states[i];
    c->states[i].edges = (uint32_t)c->n_edges;
    edge *first = &c->edges[c->n_edges];
    size_t n = 0, best = 0;
    for (uint32_t e = b->states[i].edges; e != NONE; e = b->edges[e].next)
      first[n++] = (edge){b->edges[e].token, b->edges[e].to};
    c->n_edges += n;
    if (n == 0) continue;
    qsort(first, n, sizeof *first, by_token);
    for (size_t k = 1; k < n; k++) /* the start of an answer is no guess */
      if (first[best].token < 0 || b->states[first[k].to].count > b->states[first[best].to].count) best = k;
    edge most = first[best];
    memmove(first + 1, first, best * sizeof *first);
    first[0] = most;
  }
  c->n_states = b->n_states;
  c->states[c->n_states] = (state){.edges = (uint32_t)c->n_edges};
  return 0;
}

int pst_engine_corpus_create(const int32_t *tokens, const size_t *lengths, size_t n, pst_engine_corpus **ret_corpus,
                             pst_error *err) {
  static _Atomic uint64_t last_key;
  size_t n_tokens = n;
  for (size_t i = 0; i < n && n_tokens <= PST_ENGINE_CORPUS_TOKENS; i++) n_tokens += lengths[i];
  if (n_tokens > PST_ENGINE_CORPUS_TOKENS)
    return pst_error_set(err, PST_E_LIMIT, "corpus", "past answers may have %d tokens, one added for each answer",
                         PST_ENGINE_CORPUS_TOKENS);
  for (size_t i = 0; i < n_tokens - n; i++)
    if (tokens[i] < 0)
      return pst_error_set(err, PST_E_BAD_INPUT, "corpus", "%d at place %zu is no token", tokens[i], i);
  builder b = {0};
  pst_engine_corpus *c = pst_calloc(1, sizeof *c);
  int code = c ? builder_init(&b, n_tokens) : PST_E_NOMEM;
  if (!code) {
    append_all(&b, tokens, lengths, n);
    code = sum_places(&b);
  }
  if (!code) code = freeze(&b, c);
  builder_done(&b);
  if (code) {
    if (c) {
      pst_free(c->states);
      pst_free(c->edges);
    }
    pst_free(c);
    return pst_error_set(err, code, "corpus", "no memory for %zu tokens of past answers", n_tokens);
  }
  atomic_init(&c->n_refs, 1);
  c->key = atomic_fetch_add(&last_key, 1) + 1;
  *ret_corpus = c;
  return 0;
}

pst_engine_corpus *pst_engine_corpus_ref(pst_engine_corpus *c) {
  atomic_fetch_add(&c->n_refs, 1);
  return c;
}

void pst_engine_corpus_unref(pst_engine_corpus *c) {
  if (!c || atomic_fetch_sub(&c->n_refs, 1) > 1) return;
  pst_free(c->states);
  pst_free(c->edges);
  pst_free(c);
}

size_t pst_engine_corpus_bytes(const pst_engine_corpus *c) {
  return sizeof *c + (c->n_states + 1) * sizeof *c->states + (c->n_edges + 1) * sizeof *c->edges;
}

uint64_t pst_engine_corpus_key(const pst_engine_corpus *c) { return c->key; }

/* ---- walking ---- */

static uint32_t follow(const pst_engine_corpus *c, uint32_t from, int32_t token) {
  size_t low = c->states[from].edges, end = c->states[from + 1].edges;
  if (low == end) return NONE;
  if (c->edges[low].token == token) return c->edges[low].to;
  for (low++; low < end;) {
    size_t middle = low + (end - low) / 2;
    if (c->edges[middle].token == token) return c->edges[middle].to;
    if (c->edges[middle].token < token)
      low = middle + 1;
    else
      end = middle;
  }
  return NONE;
}

pst_engine_corpus_place pst_engine_corpus_begin(const pst_engine_corpus *c) {
  pst_engine_corpus_place place = {ROOT, 0};
  pst_engine_corpus_walk(c, &place, PST_ENGINE_CORPUS_START);
  return place;
}

void pst_engine_corpus_walk(const pst_engine_corpus *c, pst_engine_corpus_place *place, int32_t token) {
  uint32_t to;
  while ((to = follow(c, place->state, token)) == NONE)
    if (!pst_engine_corpus_shorten(c, place)) return;
  place->state = to;
  place->length++;
}

bool pst_engine_corpus_shorten(const pst_engine_corpus *c, pst_engine_corpus_place *place) {
  if (place->state == ROOT) return false;
  place->state = c->states[place->state].link;
  place->length = c->states[place->state].length;
  return true;
}

pst_engine_corpus_next pst_engine_corpus_best(const pst_engine_corpus *c, pst_engine_corpus_place place) {
  const state *s = &c->states[place.state];
  pst_engine_corpus_next next = {-1, 0, s->count, place.length};
  if (s[0].edges == s[1].edges) return next;
  next.token = c->edges[s->edges].token;
  next.count = c->states[c->edges[s->edges].to].count;
  return next;
}
