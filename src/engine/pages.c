/* KV page book-keeping: reference counts, a hash from content key to page, and the order of eviction.
 *
 * Owns no tensor memory. A radix tree over tokens would find the same pages; at page granularity a chain of keys, each hashed over its
 * parent's key and its own tokens, is the same tree without nodes to balance: evicting a parent makes its children unreachable
 * and recomputing the parent makes them reachable again. The tokens of the page itself are compared as well, so that a
 * collision would need two equal 128-bit chains. */
#include "engine/pages.h"

#include <string.h>

typedef struct page {
  pst_engine_page_key key;
  int32_t tokens[PST_ENGINE_PAGE];
  int n_refs;
  uint32_t generation; /* times it was taken */
  int state;           /* pst_engine_page_state of its key; ABSENT: private or free */
  int hash_next;       /* chain in the bucket, -1 end */
  int prev, next;      /* list of unused pages, by time of release; -1 end */
} page;

struct pst_engine_pages {
  page *pages;
  int *buckets; /* n_buckets, a power of two */
  int n_pages, n_buckets, n_unused, n_cached;
  int oldest, newest; /* unused pages: private ones are put at the old end */
};

pst_engine_pages *pst_engine_pages_create(int n_pages) {
  pst_engine_pages *p = pst_calloc(1, sizeof *p);
  if (!p) return NULL;
  p->n_pages = n_pages;
  p->n_buckets = 16;
  while (p->n_buckets < 2 * n_pages) p->n_buckets *= 2;
  p->pages = pst_calloc((size_t)n_pages, sizeof *p->pages);
  p->buckets = pst_calloc((size_t)p->n_buckets, sizeof *p->buckets);
  if (!p->pages || !p->buckets) {
    pst_engine_pages_free(p);
    return NULL;
  }
  for (int i = 0; i < p->n_buckets; i++) p->buckets[i] = -1;
  for (int i = 0; i < n_pages; i++) {
    p->pages[i].prev = i - 1;
    p->pages[i].next = i + 1 < n_pages ? i + 1 : -1;
    p->pages[i].hash_next = -1;
  }
  p->oldest = n_pages ? 0 : -1;
  p->newest = n_pages - 1;
  p->n_unused = n_pages;
  return p;
}

void pst_engine_pages_free(pst_engine_pages *p) {
  if (!p) return;
  pst_free(p->pages);
  pst_free(p->buckets);
  pst_free(p);
}

pst_engine_page_key pst_engine_page_key_root(uint64_t salt) {
  return (pst_engine_page_key){pst_hash64(&salt, sizeof salt, 0x70656e73746f636bu),
                               pst_hash64(&salt, sizeof salt, 0x2d6b762d70616765u)};
}

pst_engine_page_key pst_engine_page_key_next(pst_engine_page_key parent, const int32_t *tokens) {
  const size_t n = PST_ENGINE_PAGE * sizeof *tokens;
  return (pst_engine_page_key){pst_hash64(tokens, n, parent.a), pst_hash64(tokens, n, parent.b)};
}

static int *bucket_of(const pst_engine_pages *p, pst_engine_page_key key) {
  return &p->buckets[key.a & (uint64_t)(p->n_buckets - 1)];
}

static int lookup(const pst_engine_pages *p, pst_engine_page_key key, const int32_t *tokens) {
  for (int i = *bucket_of(p, key); i >= 0; i = p->pages[i].hash_next) {
    const page *g = &p->pages[i];
    if (g->key.a == key.a && g->key.b == key.b && !memcmp(g->tokens, tokens, sizeof g->tokens)) return i;
  }
  return -1;
}

static void list_remove(pst_engine_pages *p, int i) {
  page *g = &p->pages[i];
  if (g->prev >= 0)
    p->pages[g->prev].next = g->next;
  else
    p->oldest = g->next;
  if (g->next >= 0)
    p->pages[g->next].prev = g->prev;
  else
    p->newest = g->prev;
  g->prev = g->next = -1;
  p->n_unused--;
  if (g->state == PST_ENGINE_PAGE_READY) p->n_cached--;
}

static void list_insert(pst_engine_pages *p, int i, bool as_newest) {
  page *g = &p->pages[i];
  g->prev = as_newest ? p->newest : -1;
  g->next = as_newest ? -1 : p->oldest;
  if (g->prev >= 0)
    p->pages[g->prev].next = i;
  else
    p->oldest = i;
  if (g->next >= 0)
    p->pages[g->next].prev = i;
  else
    p->newest = i;
  p->n_unused++;
  if (g->state == PST_ENGINE_PAGE_READY) p->n_cached++;
}

static void unhash(pst_engine_pages *p, int i) {
  page *g = &p->pages[i];
  int *link = bucket_of(p, g->key);
  while (*link != i) link = &p->pages[*link].hash_next;
  *link = g->hash_next;
  g->hash_next = -1;
  g->state = PST_ENGINE_PAGE_ABSENT;
}

pst_engine_page_state pst_engine_pages_find(pst_engine_pages *p, pst_engine_page_key key, const int32_t *tokens,
                                            int *ret_page) {
  int i = lookup(p, key, tokens);
  if (i < 0) return PST_ENGINE_PAGE_ABSENT;
  page *g = &p->pages[i];
  if (g->state != PST_ENGINE_PAGE_READY) return PST_ENGINE_PAGE_PENDING;
  if (g->n_refs++ == 0) list_remove(p, i);
  *ret_page = i;
  return PST_ENGINE_PAGE_READY;
}

bool pst_engine_pages_has(const pst_engine_pages *p, pst_engine_page_key key, const int32_t *tokens) {
  int i = lookup(p, key, tokens);
  return i >= 0 && p->pages[i].state == PST_ENGINE_PAGE_READY;
}

int pst_engine_pages_take(pst_engine_pages *p) {
  int i = p->oldest;
  if (i < 0) return -1;
  list_remove(p, i);
  if (p->pages[i].state != PST_ENGINE_PAGE_ABSENT) unhash(p, i);
  p->pages[i].n_refs = 1;
  p->pages[i].generation++;
  return i;
}

uint32_t pst_engine_pages_generation(const pst_engine_pages *p, int i) { return p->pages[i].generation; }

bool pst_engine_pages_announce(pst_engine_pages *p, int i, pst_engine_page_key key, const int32_t *tokens) {
  if (lookup(p, key, tokens) >= 0) return false;
  page *g = &p->pages[i];
  int *bucket = bucket_of(p, key);
  g->key = key;
  memcpy(g->tokens, tokens, sizeof g->tokens);
  g->state = PST_ENGINE_PAGE_PENDING;
  g->hash_next = *bucket;
  *bucket = i;
  return true;
}

void pst_engine_pages_publish(pst_engine_pages *p, int i) {
  if (p->pages[i].state == PST_ENGINE_PAGE_PENDING) p->pages[i].state = PST_ENGINE_PAGE_READY;
}

void pst_engine_pages_release(pst_engine_pages *p, int i) {
  page *g = &p->pages[i];
  if (--g->n_refs > 0) return;
  if (g->state == PST_ENGINE_PAGE_PENDING) unhash(p, i);
  list_insert(p, i, g->state == PST_ENGINE_PAGE_READY);
}

void pst_engine_pages_forget_unused(pst_engine_pages *p) {
  for (int i = p->oldest; i >= 0; i = p->pages[i].next)
    if (p->pages[i].state != PST_ENGINE_PAGE_ABSENT) unhash(p, i);
  p->n_cached = 0;
}

int pst_engine_pages_total(const pst_engine_pages *p) { return p->n_pages; }
int pst_engine_pages_available(const pst_engine_pages *p) { return p->n_unused; }
int pst_engine_pages_cached(const pst_engine_pages *p) { return p->n_cached; }
