/* Comparing: examples with the items that judge models, and with each other.
 *
 * Words are numbered by rising frequency over everything compared, which is the order that the prefix filter wants. Words that stand in nine of ten
 * conversations, where there are many of them, are an application's frame around each message; they say nothing of which message it is and are left out. */
#include <stdlib.h>
#include <string.h>

#include "data/curate.h"

enum { FRAME_WORDS = 8, FRAME_RECORDS = 20, WINDOW = 8 };
#define FRAME_SHARE 0.9
#define DROPPED UINT64_MAX

/* ---- words as numbers ---- */

typedef struct ranked {
  uint64_t hash, rank;
  uint32_t count; /* conversations and guards that hold it */
  bool frame;
} ranked;

typedef struct vocabulary {
  ranked *list; /* by hash */
  size_t n;
} vocabulary;

static int by_value(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static int by_count(const void *a, const void *b) {
  const ranked *x = *(ranked *const *)a, *y = *(ranked *const *)b;
  if (x->count != y->count) return x->count < y->count ? -1 : 1;
  return (x->hash > y->hash) - (x->hash < y->hash);
}

static ranked *find_word(const vocabulary *v, uint64_t hash) {
  size_t low = 0, high = v->n;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (v->list[middle].hash < hash)
      low = middle + 1;
    else
      high = middle;
  }
  return low < v->n && v->list[low].hash == hash ? &v->list[low] : NULL;
}

/* Each distinct word of a range once. */
static int count_range(const pst_data_curation *c, const vocabulary *v, pst_data_range range, uint64_t **scratch,
                       size_t *capacity) {
  int code = pst_array_reserve((void **)scratch, capacity, range.n + 1, sizeof **scratch);
  if (code) return code;
  if (range.n) memcpy(*scratch, c->words + range.first, range.n * sizeof **scratch);
  size_t n = pst_data_tokens_sort(*scratch, range.n);
  for (size_t i = 0; i < n; i++) find_word(v, (*scratch)[i])->count++;
  return 0;
}

static void mark_frame(vocabulary *v, size_t n_records) {
  size_t n = 0, least = (size_t)(FRAME_SHARE * (double)n_records);
  for (size_t i = 0; i < v->n; i++) n += v->list[i].count > least;
  for (size_t i = 0; i < v->n; i++)
    v->list[i].frame = n_records >= FRAME_RECORDS && n >= FRAME_WORDS && v->list[i].count > least;
}

static int make_vocabulary(const pst_data_curation *c, vocabulary *v) {
  uint64_t *sorted = pst_malloc((c->n_words + 1) * sizeof *sorted), *scratch = NULL;
  ranked **order = NULL;
  size_t capacity = 0;
  int code = sorted ? 0 : PST_E_NOMEM;
  if (!code && c->n_words) memcpy(sorted, c->words, c->n_words * sizeof *sorted);
  if (!code) qsort(sorted, c->n_words, sizeof *sorted, by_value);
  size_t n = 0;
  for (size_t i = 0; i < c->n_words && !code; i++)
    if (i == 0 || sorted[i] != sorted[i - 1]) sorted[n++] = sorted[i];
  if (!code) v->list = pst_calloc(n + 1, sizeof *v->list);
  if (!code) order = pst_calloc(n + 1, sizeof *order);
  if (!v->list || !order) code = PST_E_NOMEM;
  for (size_t i = 0; i < n && !code; i++) v->list[i].hash = sorted[i];
  v->n = code ? 0 : n;
  size_t n_kept = 0;
  for (size_t i = 0; i < c->n && !code; i++) {
    if (c->list[i].reason != PST_DATA_KEPT) continue;
    code = count_range(c, v, c->list[i].words, &scratch, &capacity);
    n_kept++;
  }
  if (!code) mark_frame(v, n_kept);
  for (size_t i = 0; i < c->n_guards && !code; i++) code = count_range(c, v, c->guards[i].words, &scratch, &capacity);
  for (size_t i = 0; i < v->n && !code; i++) order[i] = &v->list[i];
  if (!code) qsort(order, v->n, sizeof(ranked *), by_count);
  for (size_t i = 0; i < v->n && !code; i++) order[i]->rank = order[i]->frame ? DROPPED : i;
  pst_free(sorted);
  pst_free(scratch);
  pst_free(order);
  return code;
}

static int make_tokens(pst_data_curation *c, const vocabulary *v, pst_data_range words, pst_data_range *tokens) {
  int code = pst_array_reserve((void **)&c->tokens, &c->tokens_capacity, c->n_tokens + words.n + 1, sizeof *c->tokens);
  if (code) return code;
  uint64_t *to = c->tokens + c->n_tokens;
  size_t n = 0;
  for (size_t i = 0; i < words.n; i++) {
    uint64_t rank = find_word(v, c->words[words.first + i])->rank;
    if (rank != DROPPED) to[n++] = rank;
  }
  n = pst_data_tokens_sort(to, n);
  *tokens = (pst_data_range){c->n_tokens, n};
  c->n_tokens += n;
  return 0;
}

static int tokenize(pst_data_curation *c) {
  vocabulary v = {NULL, 0};
  int code = make_vocabulary(c, &v);
  for (size_t i = 0; i < c->n && !code; i++) {
    pst_data_candidate *x = &c->list[i];
    if (x->reason != PST_DATA_KEPT) continue;
    bool same = x->words.first == x->user_words.first;
    code = make_tokens(c, &v, x->words, &x->tokens);
    if (!code && !same) code = make_tokens(c, &v, x->user_words, &x->user_tokens);
    if (same) x->user_tokens = x->tokens;
  }
  for (size_t i = 0; i < c->n_guards && !code; i++) code = make_tokens(c, &v, c->guards[i].words, &c->guards[i].tokens);
  pst_free(v.list);
  return code;
}

/* ---- guarded items ---- */

static int add_guard(void *user, const pst_store_guarded *g) {
  pst_data_curation *c = user;
  if (g->part == PST_EVALS_EXAMPLES || g->n_words == 0) return 0;
  if (pst_array_reserve((void **)&c->guards, &c->guards_capacity, c->n_guards + 1, sizeof *c->guards) ||
      pst_array_reserve((void **)&c->words, &c->words_capacity, c->n_words + g->n_words, sizeof *c->words))
    return PST_E_NOMEM;
  pst_data_guard *own = &c->guards[c->n_guards];
  own->workload = (pst_str){pst_arena_strndup(c->arena, g->workload.data, g->workload.n), g->workload.n};
  own->item = (pst_str){pst_arena_strndup(c->arena, g->item.data, g->item.n), g->item.n};
  own->words = (pst_data_range){c->n_words, g->n_words};
  memcpy(c->words + c->n_words, g->words, g->n_words * sizeof *c->words);
  if (!own->workload.data || !own->item.data) return PST_E_NOMEM;
  c->n_words += g->n_words;
  c->n_guards++;
  return 0;
}

/* Items that stand whole inside a longer text are found by their first WINDOW words. */
typedef struct windows {
  uint64_t *keys;   /* open addressing, [n_slots] */
  uint32_t *guards; /* index + 1; 0: free */
  size_t n_slots;
} windows;

static uint64_t window_of(const uint64_t *words) { return pst_hash64(words, WINDOW * sizeof *words, 3); }

static int make_windows(const pst_data_curation *c, windows *w) {
  for (w->n_slots = 64; w->n_slots < c->n_guards * 2; w->n_slots *= 2) {}
  w->keys = pst_calloc(w->n_slots, sizeof *w->keys);
  w->guards = pst_calloc(w->n_slots, sizeof *w->guards);
  if (!w->keys || !w->guards) return PST_E_NOMEM;
  for (size_t i = 0; i < c->n_guards; i++) {
    if (c->guards[i].words.n < WINDOW) continue;
    uint64_t key = window_of(c->words + c->guards[i].words.first);
    size_t at = key & (w->n_slots - 1);
    while (w->guards[at]) at = (at + 1) & (w->n_slots - 1);
    w->keys[at] = key;
    w->guards[at] = (uint32_t)i + 1;
  }
  return 0;
}

static int64_t find_inside(const pst_data_curation *c, const windows *w, pst_data_range words) {
  const uint64_t *own = c->words + words.first;
  for (size_t i = 0; i + WINDOW <= words.n; i++) {
    uint64_t key = window_of(own + i);
    for (size_t at = key & (w->n_slots - 1); w->guards[at]; at = (at + 1) & (w->n_slots - 1)) {
      const pst_data_guard *g = &c->guards[w->guards[at] - 1];
      if (w->keys[at] == key && g->words.n <= words.n - i &&
          !memcmp(own + i, c->words + g->words.first, g->words.n * sizeof *own))
        return (int64_t)w->guards[at] - 1;
    }
  }
  return -1;
}

static int decontaminate(pst_data_curation *c) {
  pst_data_similar *index = pst_data_similar_create(PST_EVALS_NEAR_DUPLICATE);
  windows w = {NULL, NULL, 0};
  int64_t *numbers = pst_calloc(c->n_guards + 1, sizeof *numbers); /* of the index: which guard */
  size_t n = 0;
  int code = index && numbers ? make_windows(c, &w) : PST_E_NOMEM;
  for (size_t i = 0; i < c->n_guards && !code; i++) {
    if (c->guards[i].tokens.n == 0) continue;
    code = pst_data_similar_add(index, 0, c->tokens + c->guards[i].tokens.first, c->guards[i].tokens.n);
    numbers[n++] = (int64_t)i;
  }
  for (size_t i = 0; i < c->n && !code; i++) {
    pst_data_candidate *x = &c->list[i];
    int64_t found = -1;
    if (x->reason != PST_DATA_KEPT) continue;
    if (x->user_tokens.n)
      code = pst_data_similar_find(index, 0, c->tokens + x->user_tokens.first, x->user_tokens.n, NULL, NULL, &found);
    found = found >= 0 ? numbers[found] : find_inside(c, &w, x->words);
    if (found < 0) continue;
    x->reason = PST_DATA_CONTAMINATED;
    x->other = found;
  }
  pst_data_similar_free(index);
  pst_free(numbers);
  pst_free(w.keys);
  pst_free(w.guards);
  return code;
}

/* ---- the same conversation ---- */

/* How much an example is worth keeping: what people wrote themselves, then what they liked. */
static int worth(const pst_data_candidate *x) {
  return x->correction.data ? 4 : x->thumbs > 0 ? 3 : x->has_score ? 2 : 1;
}

static int by_conversation(const void *a, const void *b) {
  const pst_data_candidate *x = *(pst_data_candidate *const *)a, *y = *(pst_data_candidate *const *)b;
  if (x->conversation_hash != y->conversation_hash) return x->conversation_hash < y->conversation_hash ? -1 : 1;
  if (x->answer_hash != y->answer_hash) return x->answer_hash < y->answer_hash ? -1 : 1;
  if (worth(x) != worth(y)) return worth(x) > worth(y) ? -1 : 1;
  return (x->record > y->record) - (x->record < y->record);
}

/* What an answer's votes weigh: one each, four for a liked one, sixteen for one that somebody wrote. */
static int64_t votes_of(pst_data_candidate *const *list, size_t n) {
  int64_t votes = 0;
  for (size_t i = 0; i < n; i++) votes += list[i]->correction.data ? 16 : list[i]->thumbs > 0 ? 4 : 1;
  return votes;
}

/* Of one conversation, [n] by answer: the first of each answer stays if no other has more votes. */
static void settle_conversation(pst_data_candidate *const *list, size_t n) {
  int64_t most = 0, best = list[0]->record;
  for (size_t i = 0, end; i < n; i = end) {
    for (end = i + 1; end < n && list[end]->answer_hash == list[i]->answer_hash;) end++;
    int64_t votes = votes_of(list + i, end - i);
    if (votes > most) most = votes, best = list[i]->record;
  }
  for (size_t i = 0, end; i < n; i = end) {
    for (end = i + 1; end < n && list[end]->answer_hash == list[i]->answer_hash;) end++;
    bool loses = votes_of(list + i, end - i) < most;
    for (size_t k = loses ? i : i + 1; k < end; k++) {
      list[k]->reason = loses ? PST_DATA_DISAGREES : PST_DATA_DUPLICATE;
      list[k]->other = loses ? best : list[i]->record;
    }
  }
}

/* Of one conversation and answer that people judged, [n] by worth: what most of them said stays, once; where as many wanted it as did not, nothing does. */
static void settle_answer(pst_data_candidate *const *list, size_t n) {
  const pst_data_candidate *first[2] = {NULL, NULL}; /* who wanted it; who did not */
  size_t votes[2] = {0, 0};
  for (size_t i = 0; i < n; i++) {
    bool unwanted = list[i]->disliked;
    if (!votes[unwanted]++) first[unwanted] = list[i];
  }
  bool tie = votes[0] == votes[1], most = votes[1] > votes[0];
  for (size_t i = 0; i < n; i++) {
    bool other = list[i]->disliked != most;
    if (!tie && list[i] == first[most]) continue;
    list[i]->reason = tie || other ? PST_DATA_DISAGREES : PST_DATA_DUPLICATE;
    list[i]->other = tie ? first[!list[i]->disliked]->record : first[most]->record;
  }
}

static void settle_judged(pst_data_candidate *const *list, size_t n) {
  for (size_t i = 0, end; i < n; i = end) {
    for (end = i + 1; end < n && list[end]->answer_hash == list[i]->answer_hash;) end++;
    settle_answer(list + i, end - i);
  }
}

static int drop_duplicates(pst_data_curation *c) {
  pst_data_candidate **order = pst_calloc(c->n + 1, sizeof *order);
  if (!order) return PST_E_NOMEM;
  size_t n = 0;
  for (size_t i = 0; i < c->n; i++)
    if (c->list[i].reason == PST_DATA_KEPT) order[n++] = &c->list[i];
  qsort(order, n, sizeof(pst_data_candidate *), by_conversation);
  for (size_t i = 0, end; i < n; i = end) {
    for (end = i + 1; end < n && order[end]->conversation_hash == order[i]->conversation_hash;) end++;
    if (c->options->kind == PST_DATA_PREFERENCES)
      settle_judged(order + i, end - i);
    else
      settle_conversation(order + i, end - i);
  }
  pst_free(order);
  return 0;
}

/* ---- nearly the same ---- */

typedef struct near_search {
  const pst_data_candidate *const *kept; /* by number in the index */
  const pst_data_candidate *own;
  double threshold;
  int code;
} near_search;

static double answer_jaccard(near_search *s, const pst_data_candidate *other) {
  uint64_t *a = NULL, *b = NULL;
  size_t n_a = 0, n_b = 0, capacity_a = 0, capacity_b = 0;
  s->code = pst_evals_word_hashes(s->own->answer, &a, &n_a, &capacity_a);
  if (!s->code) s->code = pst_evals_word_hashes(other->answer, &b, &n_b, &capacity_b);
  double jaccard =
      s->code || !n_a || !n_b ? 0 : pst_data_jaccard(a, pst_data_tokens_sort(a, n_a), b, pst_data_tokens_sort(b, n_b));
  pst_free(a);
  pst_free(b);
  return jaccard;
}

enum { SHORT_ANSWER = 200 }; /* bytes; below they are labels, names or JSON, where one word is the point */

/* Those that can agree with no other's answer are never compared: many questions of one form with an answer each would take the square of their number. */
static uint64_t answer_group(const pst_data_candidate *x) {
  return (x->answer.n < SHORT_ANSWER ? x->answer_hash : 0) ^ (uint64_t)x->disliked;
}

/* Near in what was asked is not enough: "play A" and "play B" may differ in one word, and in all that matters. Long answers need not be the same letter by
 * letter; short ones need. */
static bool answers_agree(void *user, int64_t number) {
  near_search *s = user;
  const pst_data_candidate *other = s->kept[number];
  if (other->disliked != s->own->disliked) return false;
  if (other->answer_hash == s->own->answer_hash) return true;
  if (PST_MIN(other->answer.n, s->own->answer.n) < SHORT_ANSWER) return false;
  return answer_jaccard(s, other) >= s->threshold;
}

static int by_worth(const void *a, const void *b) {
  const pst_data_candidate *x = *(pst_data_candidate *const *)a, *y = *(pst_data_candidate *const *)b;
  if (worth(x) != worth(y)) return worth(x) > worth(y) ? -1 : 1;
  return (x->record > y->record) - (x->record < y->record);
}

static int drop_near_duplicates(pst_data_curation *c) {
  double threshold = c->options->near_duplicate > 0 ? c->options->near_duplicate : 0.8;
  pst_data_similar *index = pst_data_similar_create(threshold);
  pst_data_candidate **order = pst_calloc(c->n + 1, sizeof *order);
  const pst_data_candidate **kept = pst_calloc(c->n + 1, sizeof *kept);
  size_t n = 0, n_kept = 0;
  int code = index && order && kept ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < c->n && !code; i++)
    if (c->list[i].reason == PST_DATA_KEPT && c->list[i].tokens.n) order[n++] = &c->list[i];
  if (!code) qsort(order, n, sizeof(pst_data_candidate *), by_worth);
  near_search s = {.kept = kept, .threshold = threshold};
  for (size_t i = 0; i < n && !code; i++) {
    const uint64_t *tokens = c->tokens + order[i]->tokens.first;
    int64_t found = -1;
    s.own = order[i];
    uint64_t group = answer_group(order[i]);
    code = pst_data_similar_find(index, group, tokens, order[i]->tokens.n, answers_agree, &s, &found);
    if (!code) code = s.code;
    if (!code && found >= 0) {
      order[i]->reason = PST_DATA_NEAR_DUPLICATE;
      order[i]->other = kept[found]->record;
    } else if (!code) {
      kept[n_kept++] = order[i];
      code = pst_data_similar_add(index, group, tokens, order[i]->tokens.n);
    }
  }
  if (index) c->done.n_verified = pst_data_similar_verified(index);
  pst_data_similar_free(index);
  pst_free(order);
  pst_free(kept);
  return code;
}

/* ---- clusters ---- */

static int find_clusters(pst_data_curation *c) {
  pst_str *texts = pst_calloc(c->n + 1, sizeof *texts);
  uint32_t *clusters = pst_calloc(c->n + 1, sizeof *clusters);
  size_t n = 0;
  int code = texts && clusters ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < c->n && !code; i++)
    if (c->list[i].reason == PST_DATA_KEPT) texts[n++] = c->list[i].text;
  if (!code) code = pst_evals_cluster(texts, NULL, n, PST_EVALS_NEAR_DUPLICATE, clusters, c->err);
  size_t at = 0;
  for (size_t i = 0; i < c->n && !code; i++) {
    if (c->list[i].reason != PST_DATA_KEPT) continue;
    c->list[i].cluster = clusters[at++];
    c->done.n_clusters = PST_MAX(c->done.n_clusters, (int64_t)c->list[i].cluster + 1);
  }
  pst_free(texts);
  pst_free(clusters);
  return code;
}

int pst_data_compare(pst_data_curation *c) {
  int code = c->options->form ? pst_evals_guard(c->store, c->options->form, c->err) : 0;
  if (!code) code = pst_store_guard_each(c->store, add_guard, c, c->err);
  if (!code) code = tokenize(c);
  if (!code) code = decontaminate(c);
  if (!code) code = drop_duplicates(c);
  if (!code) code = drop_near_duplicates(c);
  if (!code) code = find_clusters(c);
  c->done.n_guarded = (int64_t)c->n_guards;
  return code == PST_E_NOMEM ? pst_data_no_memory(c) : code;
}
