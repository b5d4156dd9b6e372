/* Near-duplicate clusters: which inputs are so alike that they must lie in one part.
 *
 * Each text is a set of words, as numbers by rising frequency (rare words first). Two sets with a Jaccard index above t share a word
 * among the first n - ceil(t n) + 1 of each (prefix filter: Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", 2007), so an
 * inverted index over those prefixes finds all candidates, and few others, since rare words stand in few texts. Exact: no
 * sketch, no seed. Links are kept in a union-find forest. */
#include "evals/workload.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct word_set {
  uint32_t *words; /* ascending: rarest first */
  uint32_t n;
} word_set;

typedef struct posting {
  uint32_t *sets;
  uint32_t n, capacity;
} posting;

typedef struct join {
  size_t n;
  word_set *sets;
  uint32_t *words; /* of all sets, one after the other */
  size_t n_words, words_capacity;
  uint32_t n_distinct;
  uint32_t *parent; /* union-find */
  uint32_t *seen;   /* candidate marks: the set that looked last, plus 1 */
  posting *index;   /* per word: the sets that hold it in their prefix */
} join;

static uint32_t root_of(uint32_t *parent, uint32_t i) {
  while (parent[i] != i) {
    parent[i] = parent[parent[i]];
    i = parent[i];
  }
  return i;
}

static void link_sets(uint32_t *parent, uint32_t a, uint32_t b) {
  a = root_of(parent, a);
  b = root_of(parent, b);
  if (a < b)
    parent[b] = a;
  else
    parent[a] = b;
}

/* ---- words as numbers ---- */

/* An open-addressing table: word hash -> index of first sight, and how many texts hold it. */
typedef struct vocabulary {
  uint64_t *hashes;
  uint32_t *slots; /* index + 1; 0: free */
  uint32_t *counts;
  uint32_t *last; /* the text that counted it last, plus 1 */
  size_t n, n_slots, capacity;
} vocabulary;

static void vocabulary_done(vocabulary *v) {
  pst_free(v->hashes);
  pst_free(v->slots);
  pst_free(v->counts);
  pst_free(v->last);
}

static int vocabulary_grow(vocabulary *v) {
  size_t n_slots = v->n_slots ? v->n_slots * 2 : 4096;
  uint32_t *slots = pst_calloc(n_slots, sizeof *slots);
  uint64_t *hashes = pst_realloc(v->hashes, n_slots / 2 * sizeof *hashes);
  if (hashes) v->hashes = hashes;
  uint32_t *counts = pst_realloc(v->counts, n_slots / 2 * sizeof *counts);
  if (counts) v->counts = counts;
  uint32_t *last = pst_realloc(v->last, n_slots / 2 * sizeof *last);
  if (last) v->last = last;
  if (!slots || !hashes || !counts || !last) {
    pst_free(slots);
    return PST_E_NOMEM;
  }
  for (size_t i = 0; i < v->n; i++) {
    size_t at = v->hashes[i] & (n_slots - 1);
    while (slots[at]) at = (at + 1) & (n_slots - 1);
    slots[at] = (uint32_t)i + 1;
  }
  pst_free(v->slots);
  v->slots = slots;
  v->n_slots = n_slots;
  v->capacity = n_slots / 2;
  return 0;
}

/* The number of a word, new or known. */
static int vocabulary_add(vocabulary *v, uint64_t hash, uint32_t *ret_word) {
  if (v->n >= v->capacity) {
    int code = vocabulary_grow(v);
    if (code) return code;
  }
  size_t at = hash & (v->n_slots - 1);
  while (v->slots[at] && v->hashes[v->slots[at] - 1] != hash) at = (at + 1) & (v->n_slots - 1);
  if (!v->slots[at]) {
    v->hashes[v->n] = hash;
    v->counts[v->n] = v->last[v->n] = 0;
    v->slots[at] = (uint32_t)++v->n;
  }
  *ret_word = v->slots[at] - 1;
  return 0;
}

/* The distinct words of text i behind those of the texts before. Text without a word counts as one word, itself. */
static int add_text(join *j, vocabulary *v, uint32_t i, pst_str text, pst_buf *words) {
  pst_buf_clear(words);
  int code = pst_evals_words(text, words);
  if (code) return code;
  pst_str rest = words->n ? pst_buf_str(words) : pst_str_trim(text);
  size_t first = j->n_words;
  for (bool more = true; more;) {
    size_t end = words->n ? pst_str_find(rest, PST_STR(" "), 0) : SIZE_MAX;
    more = end != SIZE_MAX;
    pst_str word = {rest.data, more ? end : rest.n};
    if (more) rest = (pst_str){rest.data + end + 1, rest.n - end - 1};
    uint32_t number;
    code = vocabulary_add(v, pst_hash64(word.data, word.n, words->n ? 1 : 2), &number);
    if (code) return code;
    if (v->last[number] == i + 1) continue;
    v->last[number] = i + 1;
    v->counts[number]++;
    code = pst_array_reserve((void **)&j->words, &j->words_capacity, j->n_words + 1, sizeof *j->words);
    if (code) return code;
    j->words[j->n_words++] = number;
  }
  j->sets[i].n = (uint32_t)(j->n_words - first);
  return 0;
}

typedef struct ranked {
  uint32_t count, word;
} ranked;

static int compare_ranked(const void *a, const void *b) {
  const ranked *x = a, *y = b;
  if (x->count != y->count) return x->count < y->count ? -1 : 1;
  return (x->word > y->word) - (x->word < y->word);
}

static int compare_u32(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

/* Renumbers words by rising frequency and sorts each set. */
static int rank_words(join *j, const vocabulary *v) {
  ranked *order = pst_calloc(v->n + 1, sizeof *order);
  uint32_t *rank = pst_calloc(v->n + 1, sizeof *rank);
  int code = order && rank ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < v->n && !code; i++) order[i] = (ranked){v->counts[i], (uint32_t)i};
  if (!code) {
    qsort(order, v->n, sizeof *order, compare_ranked);
    for (size_t i = 0; i < v->n; i++) rank[order[i].word] = (uint32_t)i;
    for (size_t i = 0; i < j->n_words; i++) j->words[i] = rank[j->words[i]];
    uint32_t *at = j->words;
    for (size_t i = 0; i < j->n; i++) {
      j->sets[i].words = at;
      if (j->sets[i].n) qsort(at, j->sets[i].n, sizeof *at, compare_u32);
      at += j->sets[i].n;
    }
    j->n_distinct = (uint32_t)v->n;
  }
  pst_free(order);
  pst_free(rank);
  return code;
}

/* ---- the join ---- */

static bool above(const word_set *a, const word_set *b, double threshold) {
  uint32_t i = 0, k = 0, shared = 0;
  while (i < a->n && k < b->n) {
    if (a->words[i] == b->words[k]) {
      shared++;
      i++;
      k++;
    } else if (a->words[i] < b->words[k]) {
      i++;
    } else {
      k++;
    }
  }
  return (double)shared > threshold * (double)(a->n + b->n - shared);
}

static int index_set(join *j, uint32_t i, uint32_t n_prefix) {
  for (uint32_t k = 0; k < n_prefix; k++) {
    posting *p = &j->index[j->sets[i].words[k]];
    if (p->n == p->capacity) {
      uint32_t capacity = p->capacity ? p->capacity * 2 : 4;
      uint32_t *sets = pst_realloc(p->sets, capacity * sizeof *sets);
      if (!sets) return PST_E_NOMEM;
      p->sets = sets;
      p->capacity = capacity;
    }
    p->sets[p->n++] = i;
  }
  return 0;
}

/* Links set i to the sets before it that are alike, then enters it. */
static int join_set(join *j, uint32_t i, double threshold) {
  const word_set *own = &j->sets[i];
  uint32_t n_prefix = own->n - (uint32_t)ceil(threshold * own->n) + 1;
  if (n_prefix > own->n) n_prefix = own->n;
  for (uint32_t k = 0; k < n_prefix; k++) {
    const posting *p = &j->index[own->words[k]];
    for (uint32_t m = 0; m < p->n; m++) {
      uint32_t other = p->sets[m];
      if (j->seen[other] == i + 1) continue;
      j->seen[other] = i + 1;
      const word_set *theirs = &j->sets[other];
      if ((double)PST_MIN(own->n, theirs->n) < threshold * (double)PST_MAX(own->n, theirs->n)) continue;
      if (root_of(j->parent, i) == root_of(j->parent, other)) continue;
      if (above(own, theirs, threshold)) link_sets(j->parent, i, other);
    }
  }
  return index_set(j, i, n_prefix);
}

/* ---- clusters named in the file ---- */

typedef struct named {
  pst_str name;
  uint32_t item;
} named;

static int compare_named(const void *a, const void *b) {
  const named *x = a, *y = b;
  int order = pst_str_compare(x->name, y->name);
  return order ? order : (x->item > y->item) - (x->item < y->item);
}

static int link_named(join *j, const pst_str *own) {
  named *list = pst_calloc(j->n + 1, sizeof *list);
  if (!list) return PST_E_NOMEM;
  size_t n = 0;
  for (size_t i = 0; i < j->n; i++)
    if (own[i].n) list[n++] = (named){own[i], (uint32_t)i};
  qsort(list, n, sizeof *list, compare_named);
  for (size_t i = 1; i < n; i++)
    if (pst_str_equal(list[i].name, list[i - 1].name)) link_sets(j->parent, list[i].item, list[i - 1].item);
  pst_free(list);
  return 0;
}

static void number_clusters(join *j, uint32_t *ret_cluster) {
  uint32_t next = 0;
  for (size_t i = 0; i < j->n; i++) { /* a root is the least member of its cluster */
    uint32_t root = root_of(j->parent, (uint32_t)i);
    ret_cluster[i] = root == i ? next++ : ret_cluster[root];
  }
}

static void join_done(join *j) {
  for (uint32_t i = 0; j->index && i < j->n_distinct; i++) pst_free(j->index[i].sets);
  pst_free(j->index);
  pst_free(j->sets);
  pst_free(j->words);
  pst_free(j->parent);
  pst_free(j->seen);
}

int pst_evals_cluster(const pst_str *texts, const pst_str *own, size_t n, double threshold, uint32_t *ret_cluster,
                      pst_error *err) {
  if (n >= UINT32_MAX) return pst_error_set(err, PST_E_LIMIT, NULL, "%zu items are too many", n);
  join j = {.n = n};
  vocabulary v = {0};
  pst_buf words = PST_BUF_INIT;
  int code = PST_E_NOMEM;
  j.sets = pst_calloc(n + 1, sizeof *j.sets);
  j.parent = pst_calloc(n + 1, sizeof *j.parent);
  j.seen = pst_calloc(n + 1, sizeof *j.seen);
  if (!j.sets || !j.parent || !j.seen) goto done;
  for (uint32_t i = 0; i < n; i++) j.parent[i] = i;
  for (uint32_t i = 0; i < n; i++)
    if ((code = add_text(&j, &v, i, texts[i], &words))) goto done;
  if ((code = rank_words(&j, &v))) goto done;
  j.index = pst_calloc((size_t)j.n_distinct + 1, sizeof *j.index);
  code = j.index ? 0 : PST_E_NOMEM;
  for (uint32_t i = 0; i < n && !code; i++)
    if (!own || !own[i].n) code = join_set(&j, i, threshold);
  if (!code && own) code = link_named(&j, own);
  if (!code) number_clusters(&j, ret_cluster);
done:
  join_done(&j);
  vocabulary_done(&v);
  pst_buf_done(&words);
  return code ? pst_error_set(err, code, NULL, "no memory to compare the items") : 0;
}
