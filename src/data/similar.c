/* Near-duplicates among sets of tokens, entered one by one: candidates by shared keys, each verified by its true Jaccard index.
 *
 * A small set's keys are the tokens of its prefix: two sets with a Jaccard index of at least t share one among the first n - ceil(t n) + 1 of each, in any order
 * that all sets share (Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", 2007); with the rarest tokens first, few others share
 * it. Exact. A large set's keys are bands of MinHash values (Broder, "On the resemblance and containment of documents", 1997): r values in each of b
 * bands agree somewhere with chance 1 - (1 - J^r)^b, which at the threshold is at least 0.999. A set near the border of small and large has both kinds. */
#include "data/data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_HASHES = 128, NONE = 0 };
#define LEAST_RECALL 0.999

typedef struct entry { /* of a key's chain */
  uint32_t set, next;  /* next: index + 1; 0: the end */
} entry;

typedef struct token_set {
  size_t first; /* in tokens */
  uint32_t n;
  uint32_t seen; /* the search that looked at it last */
} token_set;

struct pst_data_similar {
  double threshold;
  int rows, bands;
  uint64_t a[N_HASHES], b[N_HASHES]; /* multiply-shift: (a x + b) >> 32 (Dietzfelbinger et al. 1997) */
  uint64_t *tokens;
  size_t n_tokens, tokens_capacity;
  token_set *sets;
  size_t n_sets, sets_capacity;
  uint64_t *keys;  /* open addressing, [n_slots] */
  uint32_t *heads; /* of the key's chain, index + 1; 0: free */
  size_t n_slots, n_keys;
  entry *entries;
  size_t n_entries, entries_capacity;
  uint32_t search;
  int64_t n_verified;
};

pst_data_similar *pst_data_similar_create(double threshold) {
  pst_data_similar *x = pst_calloc(1, sizeof *x);
  if (!x) return NULL;
  x->threshold = threshold;
  x->rows = 1;
  for (int r = 2; r <= 32; r++) {
    int bands = N_HASHES / r;
    if (1 - pow(1 - pow(threshold, r), bands) >= LEAST_RECALL) x->rows = r;
  }
  x->bands = N_HASHES / x->rows;
  for (int i = 0; i < N_HASHES; i++) {
    x->a[i] = pst_random_u64(1, 0, (uint64_t)i) | 1;
    x->b[i] = pst_random_u64(1, 1, (uint64_t)i);
  }
  return x;
}

void pst_data_similar_free(pst_data_similar *x) {
  if (!x) return;
  pst_free(x->tokens);
  pst_free(x->sets);
  pst_free(x->keys);
  pst_free(x->heads);
  pst_free(x->entries);
  pst_free(x);
}

/* ---- sets ---- */

static int compare_tokens(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

size_t pst_data_tokens_sort(uint64_t *tokens, size_t n) {
  size_t kept = 0;
  if (n > 1) qsort(tokens, n, sizeof *tokens, compare_tokens);
  for (size_t i = 0; i < n; i++)
    if (i == 0 || tokens[i] != tokens[i - 1]) tokens[kept++] = tokens[i];
  return kept;
}

double pst_data_jaccard(const uint64_t *a, size_t n_a, const uint64_t *b, size_t n_b) {
  size_t i = 0, k = 0, shared = 0;
  while (i < n_a && k < n_b) {
    bool less = a[i]<b[k], more = a[i]> b[k];
    shared += !less && !more;
    i += !more;
    k += !less;
  }
  size_t all = n_a + n_b - shared;
  return all ? (double)shared / (double)all : 1;
}

/* ---- keys ---- */

typedef int (*key_fn)(pst_data_similar *x, uint64_t key, void *context);

static uint64_t mix(uint64_t x) { /* the finalizer of SplitMix64 (Steele, Lea and Flood 2014) */
  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

static void min_hashes(const pst_data_similar *x, const uint64_t *tokens, size_t n, uint32_t ret[N_HASHES]) {
  for (int i = 0; i < N_HASHES; i++) ret[i] = UINT32_MAX;
  for (size_t t = 0; t < n; t++) {
    uint64_t token = mix(tokens[t] + UINT64_C(0x9e3779b97f4a7c15));
    for (int i = 0; i < N_HASHES; i++) {
      uint32_t h = (uint32_t)((x->a[i] * token + x->b[i]) >> 32);
      ret[i] = PST_MIN(ret[i], h);
    }
  }
}

/* Keys of one group are met by that group's alone. */
static int each_key(pst_data_similar *x, uint64_t group, const uint64_t *tokens, size_t n, key_fn fn, void *context) {
  int code = 0;
  if (n <= PST_DATA_SHORT) {
    size_t n_prefix = n - (size_t)ceil(x->threshold * (double)n - 1e-9) + 1;
    n_prefix = PST_MIN(n_prefix, n);
    if (n == 0) code = fn(x, group ^ mix(1), context);
    for (size_t i = 0; i < n_prefix && !code; i++) code = fn(x, group ^ mix(tokens[i] * 2 + 3), context);
  }
  if ((double)n + 1e-9 >= x->threshold * (PST_DATA_SHORT + 1)) {
    uint32_t hashes[N_HASHES];
    min_hashes(x, tokens, n, hashes);
    for (int band = 0; band < x->bands && !code; band++)
      code = fn(x, group ^ pst_hash64(hashes + band * x->rows, (size_t)x->rows * sizeof *hashes, (uint64_t)band + 10),
                context);
  }
  return code;
}

static size_t slot_of(const pst_data_similar *x, uint64_t key) {
  size_t at = key & (x->n_slots - 1);
  while (x->heads[at] && x->keys[at] != key) at = (at + 1) & (x->n_slots - 1);
  return at;
}

static int grow(pst_data_similar *x) {
  size_t n = x->n_slots ? x->n_slots * 2 : 1024, old = x->n_slots;
  uint64_t *keys = x->keys, *new_keys = pst_calloc(n, sizeof *new_keys);
  uint32_t *heads = x->heads, *new_heads = pst_calloc(n, sizeof *new_heads);
  if (!new_keys || !new_heads) {
    pst_free(new_keys);
    pst_free(new_heads);
    return PST_E_NOMEM;
  }
  x->keys = new_keys;
  x->heads = new_heads;
  x->n_slots = n;
  for (size_t i = 0; i < old; i++) {
    if (!heads[i]) continue;
    size_t at = slot_of(x, keys[i]);
    x->keys[at] = keys[i];
    x->heads[at] = heads[i];
  }
  pst_free(keys);
  pst_free(heads);
  return 0;
}

static int enter_key(pst_data_similar *x, uint64_t key, void *context) {
  (void)context;
  if (x->n_keys * 2 >= x->n_slots) {
    int code = grow(x);
    if (code) return code;
  }
  int code = pst_array_reserve((void **)&x->entries, &x->entries_capacity, x->n_entries + 1, sizeof *x->entries);
  if (code) return code;
  size_t at = slot_of(x, key);
  if (!x->heads[at]) x->n_keys++;
  x->keys[at] = key;
  x->entries[x->n_entries] = (entry){(uint32_t)x->n_sets, x->heads[at]};
  x->heads[at] = (uint32_t)++x->n_entries;
  return 0;
}

int pst_data_similar_add(pst_data_similar *x, uint64_t group, const uint64_t *tokens, size_t n) {
  if (x->n_sets >= UINT32_MAX / 2 || n >= UINT32_MAX) return PST_E_NOMEM;
  int code = pst_array_reserve((void **)&x->tokens, &x->tokens_capacity, x->n_tokens + n + 1, sizeof *x->tokens);
  if (!code) code = pst_array_reserve((void **)&x->sets, &x->sets_capacity, x->n_sets + 1, sizeof *x->sets);
  if (!code) code = each_key(x, group, tokens, n, enter_key, NULL);
  if (code) return code;
  if (n) memcpy(x->tokens + x->n_tokens, tokens, n * sizeof *tokens);
  x->sets[x->n_sets++] = (token_set){x->n_tokens, (uint32_t)n, NONE};
  x->n_tokens += n;
  return 0;
}

/* ---- search ---- */

typedef struct search {
  const uint64_t *tokens;
  size_t n;
  bool (*accept)(void *user, int64_t number);
  void *user;
  int64_t found;
} search;

static int look_at_key(pst_data_similar *x, uint64_t key, void *context) {
  search *s = context;
  if (!x->n_slots) return 0;
  for (uint32_t e = x->heads[slot_of(x, key)]; e; e = x->entries[e - 1].next) {
    uint32_t number = x->entries[e - 1].set;
    token_set *set = &x->sets[number];
    if (set->seen == x->search) continue;
    set->seen = x->search;
    if ((double)PST_MIN(s->n, (size_t)set->n) + 1e-9 < x->threshold * (double)PST_MAX(s->n, (size_t)set->n)) continue;
    if (s->found >= 0 && number > s->found) continue;
    x->n_verified++;
    if (pst_data_jaccard(s->tokens, s->n, x->tokens + set->first, set->n) + 1e-12 < x->threshold) continue;
    if (!s->accept || s->accept(s->user, number)) s->found = number;
  }
  return 0;
}

int pst_data_similar_find(pst_data_similar *x, uint64_t group, const uint64_t *tokens, size_t n,
                          bool (*accept)(void *user, int64_t number), void *user, int64_t *ret_number) {
  search s = {tokens, n, accept, user, -1};
  if (++x->search == NONE) { /* 2^32 searches: the marks begin anew */
    for (size_t i = 0; i < x->n_sets; i++) x->sets[i].seen = NONE;
    x->search = NONE + 1;
  }
  int code = each_key(x, group, tokens, n, look_at_key, &s);
  if (!code) *ret_number = s.found;
  return code;
}

int64_t pst_data_similar_verified(const pst_data_similar *x) { return x->n_verified; }
