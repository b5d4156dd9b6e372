/* Tokens as a trie over their bytes.
 *
 * Two uses: matching control and user-defined tokens in text, and, over the whole vocabulary, constraints and token healing, which
 * walk it beside an automaton. Kept in preorder in one array, so that a walk over all tokens is a walk over memory. Built from the sorted list
 * of tokens: a node is a distinct prefix. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_impl.h"

enum { MAX_DEPTH = 65535 };

typedef struct sort_entry {
  uint64_t head; /* the first eight bytes, big-endian: most comparisons end here */
  const char *bytes;
  size_t n;
  int32_t id;
} sort_entry;

static int order_entries(const void *a, const void *b) {
  const sort_entry *x = a, *y = b;
  if (x->head != y->head) return x->head < y->head ? -1 : 1;
  int order = memcmp(x->bytes, y->bytes, PST_MIN(x->n, y->n));
  if (order) return order;
  if (x->n != y->n) return x->n < y->n ? -1 : 1;
  return x->id < y->id ? -1 : x->id > y->id;
}

static sort_entry make_entry(const pst_engine_tokenizer *t, int32_t id) {
  pst_str s = tokenizer_bytes(t, id);
  sort_entry e = {0, s.data, PST_MIN(s.n, (size_t)MAX_DEPTH), id};
  for (size_t i = 0; i < 8; i++) e.head = e.head << 8 | (i < e.n ? (unsigned char)s.data[i] : 0);
  return e;
}

static size_t common_prefix(const sort_entry *a, const sort_entry *b) {
  size_t n = PST_MIN(a->n, b->n), i = 0;
  while (i < n && a->bytes[i] == b->bytes[i]) i++;
  return i;
}

/* The number of distinct prefixes, the empty one included. */
static uint64_t count_nodes(const sort_entry *entries, uint32_t n) {
  uint64_t count = 1;
  for (uint32_t i = 0; i < n; i++) count += entries[i].n - (i ? common_prefix(&entries[i - 1], &entries[i]) : 0);
  return count;
}

/* `open` holds the node of each depth on the way to the current token. */
static void fill_nodes(const sort_entry *entries, uint32_t n, pst_engine_token_trie *trie, uint32_t *open) {
  uint32_t at = 1;
  size_t depth = 0;
  trie->nodes[0] = (pst_engine_token_node){0};
  open[0] = 0;
  for (uint32_t i = 0; i < n; i++) {
    size_t keep = i ? common_prefix(&entries[i - 1], &entries[i]) : 0;
    for (; depth > keep; depth--) trie->nodes[open[depth]].end = at;
    for (; depth < entries[i].n; depth++) {
      open[depth + 1] = at;
      trie->nodes[at++] =
          (pst_engine_token_node){.first = i, .depth = (uint16_t)(depth + 1), .byte = (uint8_t)entries[i].bytes[depth]};
    }
    trie->ids[i] = entries[i].id;
  }
  for (;; depth--) {
    trie->nodes[open[depth]].end = at;
    if (depth == 0) break;
  }
  trie->nodes[at] = (pst_engine_token_node){.end = at, .first = n};
}

int pst_engine_token_trie_build(const pst_engine_tokenizer *t, int32_t *ids, uint32_t n_ids,
                                pst_engine_token_trie *ret_trie) {
  int r = PST_E_NOMEM;
  pst_engine_token_trie trie = {0};
  uint32_t *open = NULL;
  uint64_t n_nodes;
  sort_entry *entries = pst_calloc(n_ids, sizeof *entries);
  if (!entries) goto done;
  size_t longest = 0;
  for (uint32_t i = 0; i < n_ids; i++) {
    entries[i] = make_entry(t, ids[i]);
    longest = PST_MAX(longest, entries[i].n);
  }
  if (n_ids) qsort(entries, n_ids, sizeof *entries, order_entries);
  n_nodes = count_nodes(entries, n_ids);
  if (n_nodes >= UINT32_MAX) {
    r = PST_E_LIMIT;
    goto done;
  }
  trie.n_nodes = (uint32_t)n_nodes;
  trie.n_ids = n_ids;
  trie.nodes = pst_calloc((size_t)n_nodes + 1, sizeof *trie.nodes);
  trie.ids = pst_calloc(n_ids, sizeof *trie.ids);
  open = pst_calloc(longest + 1, sizeof *open);
  if (!trie.nodes || !trie.ids || !open) goto done;
  fill_nodes(entries, n_ids, &trie, open);
  *ret_trie = trie;
  trie = (pst_engine_token_trie){0};
  r = 0;
done:
  pst_free(open);
  pst_free(entries);
  pst_engine_token_trie_done(&trie);
  return r;
}

void pst_engine_token_trie_done(pst_engine_token_trie *trie) {
  pst_free(trie->nodes);
  pst_free(trie->ids);
  *trie = (pst_engine_token_trie){0};
}

uint32_t pst_engine_token_trie_child(const pst_engine_token_trie *trie, uint32_t at, uint8_t byte) {
  uint32_t end = trie->nodes[at].end;
  for (uint32_t child = at + 1; child < end; child = trie->nodes[child].end) {
    if (trie->nodes[child].byte == byte) return child;
    if (trie->nodes[child].byte > byte) return 0;
  }
  return 0;
}

static pst_engine_token_trie *build_vocabulary(const pst_engine_tokenizer *t) {
  const unsigned not_text = PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_UNKNOWN | PST_ENGINE_TOKEN_UNUSED;
  pst_engine_token_trie *trie = pst_calloc(1, sizeof *trie);
  int32_t *ids = pst_calloc((size_t)t->info.n_vocab, sizeof *ids);
  uint32_t n = 0;
  if (trie && ids)
    for (int32_t id = 0; id < t->info.n_vocab; id++)
      if (!(t->attributes[id] & not_text) && tokenizer_bytes(t, id).n) ids[n++] = id;
  if (!trie || !ids || pst_engine_token_trie_build(t, ids, n, trie) < 0) {
    pst_free(trie);
    trie = NULL;
  }
  pst_free(ids);
  return trie;
}

const pst_engine_token_trie *pst_engine_tokenizer_trie(const pst_engine_tokenizer *shared) {
  /* The one place that changes a tokenizer after create; the lock is what makes that invisible. */
  pst_engine_tokenizer *t = (pst_engine_tokenizer *)(uintptr_t)shared;
  pst_engine_token_trie *trie = atomic_load_explicit(&t->trie, memory_order_acquire);
  if (trie) return trie;
  pthread_mutex_lock(&t->trie_lock);
  trie = atomic_load_explicit(&t->trie, memory_order_relaxed);
  if (!trie) {
    trie = build_vocabulary(t);
    atomic_store_explicit(&t->trie, trie, memory_order_release);
  }
  pthread_mutex_unlock(&t->trie_lock);
  return trie;
}
