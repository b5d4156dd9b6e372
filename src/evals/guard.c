/* Which items were ever asked in an evaluation: their words go into the store, so that what trains a model is never what judges it. Hashes and not
 * texts: enough to find an item again, even in a store that others read. */
#include "evals/workload.h"

#include <stdlib.h>
#include <string.h>

int pst_evals_word_hashes(pst_str text, uint64_t **words, size_t *n, size_t *capacity) {
  pst_buf folded = PST_BUF_INIT;
  int code = pst_evals_words(text, &folded);
  pst_str rest = pst_buf_str(&folded);
  while (!code && rest.n) {
    size_t end = PST_MIN(pst_str_find(rest, PST_STR(" "), 0), rest.n);
    code = pst_array_reserve((void **)words, capacity, *n + 1, sizeof **words);
    if (!code) (*words)[(*n)++] = pst_hash64(rest.data, end, 1);
    end = PST_MIN(end + 1, rest.n);
    rest = (pst_str){rest.data + end, rest.n - end};
  }
  pst_buf_done(&folded);
  return code;
}

int pst_evals_guard(pst_store *store, const pst_evals_workload *workload, pst_error *err) {
  const pst_evals_info *info = &workload->info;
  pst_str name = pst_str_from(info->name), fingerprint = pst_str_from(info->fingerprint);
  if (pst_store_guard_known(store, name, fingerprint)) return 0;
  pst_store_guarded *items = pst_calloc(info->n_items + 1, sizeof *items);
  uint64_t *words = NULL;
  size_t n = 0, n_words = 0, capacity = 0;
  int code = items ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < info->n_items && !code; i++) {
    const pst_evals_item *item = &info->items[i];
    if (item->part == PST_EVALS_EXAMPLES) continue;
    size_t first = n_words;
    code = pst_evals_word_hashes(item->input, &words, &n_words, &capacity);
    items[n++] = (pst_store_guarded){name, item->id, (int)item->part, NULL, n_words - first};
  }
  size_t at = 0;
  for (size_t i = 0; i < n && !code; i++) { /* now that the array stays where it is */
    items[i].words = words + at;
    at += items[i].n_words;
  }
  if (!code) code = pst_store_guard_put(store, name, fingerprint, items, n, err);
  if (code == PST_E_NOMEM) pst_error_set(err, code, NULL, "no memory to guard the items");
  pst_free(items);
  pst_free(words);
  return code;
}

/* ---- examples that are near to guarded items ---- */

/* Sets of words as ascending hashes, one behind the other. */
typedef struct word_sets {
  uint64_t *words;
  size_t n_words, words_capacity;
  size_t *ends; /* of set i; it begins where the one before it ends */
  size_t n, ends_capacity;
} word_sets;

/* A word of a guarded item. */
typedef struct posting {
  uint64_t word;
  uint32_t set;
} posting;

typedef struct screen {
  const pst_evals_info *info;
  uint64_t *own; /* ids of the workload's own judging items, hashed, ascending */
  size_t n_own;
  word_sets guards;
  posting *postings; /* ascending by word, one for each word of each guarded item */
  uint32_t *seen;    /* [guards.n]: number of the example that looked at it last, from 1 */
} screen;

static int by_hash(const void *a, const void *b) {
  const uint64_t *x = a, *y = b;
  return (*x > *y) - (*x < *y);
}

static int by_word(const void *a, const void *b) {
  const posting *x = a, *y = b;
  if (x->word != y->word) return x->word < y->word ? -1 : 1;
  return (x->set > y->set) - (x->set < y->set);
}

/* Sorts [words, words + n) and drops what is there twice; returns how many are left. */
static size_t make_set(uint64_t *words, size_t n) {
  size_t kept = 0;
  if (n) qsort(words, n, sizeof *words, by_hash);
  for (size_t i = 0; i < n; i++)
    if (!kept || words[kept - 1] != words[i]) words[kept++] = words[i];
  return kept;
}

static int list_own(screen *s) {
  s->own = pst_calloc(s->info->n_items + 1, sizeof *s->own);
  if (!s->own) return PST_E_NOMEM;
  for (size_t i = 0; i < s->info->n_items; i++) {
    const pst_evals_item *item = &s->info->items[i];
    if (item->part != PST_EVALS_EXAMPLES) s->own[s->n_own++] = pst_hash64(item->id.data, item->id.n, 1);
  }
  s->n_own = make_set(s->own, s->n_own);
  return 0;
}

static bool is_own(const screen *s, const pst_store_guarded *g) {
  uint64_t id = pst_hash64(g->item.data, g->item.n, 1);
  return pst_str_is(g->workload, s->info->name) && s->n_own && bsearch(&id, s->own, s->n_own, sizeof id, by_hash);
}

static int add_guarded(void *user, const pst_store_guarded *g) {
  screen *s = user;
  word_sets *w = &s->guards;
  if (g->n_words == 0 || is_own(s, g)) return 0;
  if (pst_array_reserve((void **)&w->words, &w->words_capacity, w->n_words + g->n_words, sizeof *w->words) ||
      pst_array_reserve((void **)&w->ends, &w->ends_capacity, w->n + 1, sizeof *w->ends))
    return PST_E_NOMEM;
  memcpy(w->words + w->n_words, g->words, g->n_words * sizeof *w->words);
  w->n_words += make_set(w->words + w->n_words, g->n_words);
  w->ends[w->n++] = w->n_words;
  return 0;
}

static int make_postings(screen *s) {
  const word_sets *w = &s->guards;
  s->postings = pst_calloc(w->n_words + 1, sizeof *s->postings);
  s->seen = pst_calloc(w->n + 1, sizeof *s->seen);
  if (!s->postings || !s->seen) return PST_E_NOMEM;
  for (size_t i = 0, at = 0; i < w->n; i++)
    for (; at < w->ends[i]; at++) s->postings[at] = (posting){w->words[at], (uint32_t)i};
  qsort(s->postings, w->n_words, sizeof *s->postings, by_word);
  return 0;
}

/* The first posting that is not below a word. */
static size_t posting_from(const screen *s, uint64_t word) {
  size_t low = 0, high = s->guards.n_words;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (s->postings[middle].word < word)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

static bool is_near(const uint64_t *a, size_t n_a, const uint64_t *b, size_t n_b) {
  size_t i = 0, k = 0, common = 0;
  while (i < n_a && k < n_b) {
    common += a[i] == b[k];
    bool both = a[i] == b[k], first = a[i] < b[k];
    i += both || first;
    k += both || !first;
  }
  return (double)common > PST_EVALS_NEAR_DUPLICATE * (double)(n_a + n_b - common);
}

static bool finds_near(screen *s, const uint64_t *set, size_t n, uint64_t word, uint32_t number) {
  const word_sets *w = &s->guards;
  for (size_t p = posting_from(s, word); p < w->n_words && s->postings[p].word == word; p++) {
    uint32_t g = s->postings[p].set;
    size_t first = g ? w->ends[g - 1] : 0;
    if (s->seen[g] == number) continue;
    s->seen[g] = number;
    if (is_near(set, n, w->words + first, w->ends[g] - first)) return true;
  }
  return false;
}

/* Two sets with an index above t share more than t of the one's words, so that they share one of any n - floor(t n) of them: those that the fewest guarded items hold
 * are looked up. */
static bool is_guarded(screen *s, uint64_t *set, size_t n, posting *rarest, uint32_t number) {
  n = make_set(set, n);
  for (size_t i = 0; i < n; i++) {
    size_t from = posting_from(s, set[i]), to = from;
    while (to < s->guards.n_words && s->postings[to].word == set[i]) to++;
    rarest[i] = (posting){to - from, (uint32_t)i}; /* how many hold it, in the word's place */
  }
  if (n) qsort(rarest, n, sizeof *rarest, by_word);
  size_t n_looked = n - (size_t)(PST_EVALS_NEAR_DUPLICATE * (double)n);
  for (size_t i = 0; i < n_looked; i++)
    if (rarest[i].word && finds_near(s, set, n, set[rarest[i].set], number)) return true;
  return false;
}

static int screen_examples(screen *s, bool *ret_near) {
  uint64_t *words = NULL;
  posting *rarest = NULL;
  size_t capacity = 0, rarest_capacity = 0;
  int code = 0;
  for (size_t i = 0; i < s->info->n_items && !code; i++) {
    size_t n = 0;
    ret_near[i] = false;
    if (s->info->items[i].part != PST_EVALS_EXAMPLES) continue;
    code = pst_evals_word_hashes(s->info->items[i].input, &words, &n, &capacity);
    if (!code) code = pst_array_reserve((void **)&rarest, &rarest_capacity, n + 1, sizeof *rarest);
    if (!code) ret_near[i] = is_guarded(s, words, n, rarest, (uint32_t)i + 1);
  }
  pst_free(words);
  pst_free(rarest);
  return code;
}

int pst_evals_guard_near(pst_store *store, const pst_evals_workload *workload, bool *ret_near, pst_error *err) {
  screen s = {.info = &workload->info};
  int code = list_own(&s);
  if (!code) code = pst_store_guard_each(store, add_guarded, &s, err);
  if (!code) code = make_postings(&s);
  if (!code) code = screen_examples(&s, ret_near);
  if (code == PST_E_NOMEM) pst_error_set(err, code, NULL, "no memory to compare with guarded items");
  pst_free(s.own);
  pst_free(s.guards.words);
  pst_free(s.guards.ends);
  pst_free(s.postings);
  pst_free(s.seen);
  return code;
}
