/* An inverted index with BM25 weights, all computed when it is built, so that a query only adds.
 *
 * Own code rather than SQLite's FTS5: the ranking is part of what a plan means, so it must not change with the version of a library, and scoring must not
 * take a database connection on the way of a request. Scores are integers, so that the order of additions cannot matter and ties are real ties. */
#include "gateway/bm25.h"

#include <math.h>
#include <string.h>

#define K1 1.2
#define B 0.75
#define UNIT 0x1p20
#define WORD_BYTES_MAX 256 /* longer ones are cut: no word is, and a query must not be able to make one */

/* ---- words ---- */

typedef enum kind { OTHER, WORD, JOINER, ALONE } kind;

/* What UAX #29 keeps apart: ideographs and Hiragana stand alone, the other letters run together. */
static bool stands_alone(uint32_t c) {
  return (c >= 0x3041 && c <= 0x309F) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x4E00 && c <= 0x9FFF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x20000 && c <= 0x3FFFF);
}

static bool is_mark(uint32_t c) {
  int category = pst_unicode_category(c); /* utf8proc: MN, MC, ME */
  return category >= 6 && category <= 8;
}

static kind kind_of(uint32_t c) {
  if (c < 0x80) {
    bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    return word ? WORD : c == '\'' || c == '.' ? JOINER : OTHER;
  }
  if (stands_alone(c)) return ALONE;
  if (c == 0x2019 || c == 0xB7) return JOINER;
  return pst_unicode_is_letter(c) || pst_unicode_is_number(c) || is_mark(c) ? WORD : OTHER;
}

typedef struct word_buffer {
  char bytes[WORD_BYTES_MAX];
  size_t n;
} word_buffer;

static void put(word_buffer *w, uint32_t c) {
  char bytes[4];
  size_t n = pst_utf8_put(c == 0x2019 ? '\'' : pst_unicode_lower(c), bytes);
  if (w->n + n > sizeof w->bytes) return;
  memcpy(w->bytes + w->n, bytes, n);
  w->n += n;
}

static int flush(word_buffer *w, int (*fn)(void *user, pst_str word), void *user) {
  if (w->n == 0) return 0;
  int code = fn(user, (pst_str){w->bytes, w->n});
  w->n = 0;
  return code;
}

static bool is_ascii(pst_str s) {
  for (size_t i = 0; i < s.n; i++)
    if ((unsigned char)s.data[i] >= 0x80) return false;
  return true;
}

static int words_of_normal(pst_str text, int (*fn)(void *user, pst_str word), void *user) {
  word_buffer w = {.n = 0};
  uint32_t joiner = 0; /* seen behind a word, not yet known to be inside it */
  int code = 0;
  for (size_t i = 0; i < text.n && !code;) {
    uint32_t c = pst_utf8_next(text.data, text.n, &i);
    kind k = kind_of(c);
    if (k == WORD) {
      if (joiner) put(&w, joiner);
      put(&w, c);
    } else if (k == ALONE) {
      code = flush(&w, fn, user);
      put(&w, c);
      if (!code) code = flush(&w, fn, user);
    } else if (k == JOINER && w.n && !joiner) {
      joiner = c;
      continue;
    } else {
      code = flush(&w, fn, user);
    }
    joiner = 0;
  }
  return code ? code : flush(&w, fn, user);
}

int pst_gateway_words_each(pst_str text, int (*fn)(void *user, pst_str word), void *user) {
  if (is_ascii(text)) return words_of_normal(text, fn, user);
  pst_buf normal = PST_BUF_INIT;
  int code = pst_unicode_normalize(text, "NFKC", &normal);
  if (!code) code = pst_buf_status(&normal);
  if (!code) code = words_of_normal(pst_buf_str(&normal), fn, user);
  pst_buf_done(&normal);
  return code;
}

/* ---- the dictionary ---- */

typedef struct posting {
  uint32_t text;
  int32_t weight; /* of the word in that text, UNITs */
} posting;

typedef struct term {
  pst_str word; /* in the arena */
  size_t first; /* into postings; while counting: how many texts hold it */
  size_t n;
  size_t last; /* while building: its latest entry in `seen`, plus one */
} term;

struct pst_gateway_bm25 {
  pst_arena *arena;
  uint32_t *slots; /* term index + 1; open addressing */
  size_t n_slots;  /* a power of two */
  term *terms;
  size_t n_terms, terms_capacity;
  posting *postings;
  size_t n_texts;
};

static uint32_t *slot_of(const pst_gateway_bm25 *b, pst_str word) {
  size_t at = (size_t)pst_hash64(word.data, word.n, 0) & (b->n_slots - 1);
  while (b->slots[at] && !pst_str_equal(b->terms[b->slots[at] - 1].word, word)) at = (at + 1) & (b->n_slots - 1);
  return &b->slots[at];
}

static int grow_slots(pst_gateway_bm25 *b) {
  size_t n = b->n_slots ? b->n_slots * 2 : 1024;
  uint32_t *slots = pst_calloc(n, sizeof *slots);
  if (!slots) return PST_E_NOMEM;
  pst_free(b->slots);
  b->slots = slots;
  b->n_slots = n;
  for (size_t i = 0; i < b->n_terms; i++) *slot_of(b, b->terms[i].word) = (uint32_t)i + 1;
  return 0;
}

static int term_for(pst_gateway_bm25 *b, pst_str word, term **ret_term) {
  if (b->n_terms * 2 >= b->n_slots && grow_slots(b)) return PST_E_NOMEM;
  uint32_t *slot = slot_of(b, word);
  if (!*slot) {
    char *kept = pst_arena_strndup(b->arena, word.data, word.n);
    if (!kept || pst_array_reserve((void **)&b->terms, &b->terms_capacity, b->n_terms + 1, sizeof *b->terms))
      return PST_E_NOMEM;
    b->terms[b->n_terms++] = (term){.word = {kept, word.n}};
    *slot = (uint32_t)b->n_terms;
  }
  *ret_term = &b->terms[*slot - 1];
  return 0;
}

/* ---- building: count, place, weigh ---- */

typedef struct occurrence {
  uint32_t term, count;
} occurrence;

typedef struct building {
  pst_gateway_bm25 *bm25;
  uint32_t text;
  occurrence *seen; /* of all texts, one after the other */
  size_t n_seen, seen_capacity, text_start;
  size_t *starts;    /* n_texts + 1, into seen */
  uint32_t *n_words; /* of each text */
} building;

static int note_word(void *user, pst_str word) {
  building *g = user;
  pst_gateway_bm25 *b = g->bm25;
  term *t;
  if (term_for(b, word, &t)) return PST_E_NOMEM;
  uint32_t index = (uint32_t)(t - b->terms);
  g->n_words[g->text]++;
  if (t->last > g->text_start) {
    g->seen[t->last - 1].count++;
    return 0;
  }
  if (pst_array_reserve((void **)&g->seen, &g->seen_capacity, g->n_seen + 1, sizeof *g->seen)) return PST_E_NOMEM;
  t->n++;
  g->seen[g->n_seen++] = (occurrence){index, 1};
  t->last = g->n_seen;
  return 0;
}

static int count_words(building *g, const pst_str *texts, size_t n) {
  int code = 0;
  for (size_t i = 0; i < n && !code; i++) {
    g->text = (uint32_t)i;
    g->starts[i] = g->text_start = g->n_seen;
    code = pst_gateway_words_each(texts[i], note_word, g);
  }
  g->starts[n] = g->n_seen;
  return code;
}

static void place_postings(building *g, size_t n) {
  pst_gateway_bm25 *b = g->bm25;
  size_t first = 0, total = 0;
  for (size_t t = 0; t < b->n_terms; t++) {
    b->terms[t].first = first;
    first += b->terms[t].n;
    b->terms[t].n = 0;
  }
  for (size_t i = 0; i < n; i++) total += g->n_words[i];
  double mean = total ? (double)total / (double)n : 1.0;
  for (size_t i = 0; i < n; i++)
    for (size_t k = g->starts[i]; k < g->starts[i + 1]; k++) {
      term *t = &b->terms[g->seen[k].term];
      double tf = g->seen[k].count;
      double saturated = tf * (K1 + 1) / (tf + K1 * (1 - B + B * g->n_words[i] / mean));
      b->postings[t->first + t->n++] = (posting){(uint32_t)i, (int32_t)lrint(saturated * UNIT)};
    }
  for (size_t t = 0; t < b->n_terms; t++) {
    double df = (double)b->terms[t].n;
    double idf = rint(log(1 + ((double)n - df + 0.5) / (df + 0.5)) * UNIT) / UNIT;
    for (size_t k = 0; k < b->terms[t].n; k++) {
      posting *p = &b->postings[b->terms[t].first + k];
      p->weight = (int32_t)lrint(p->weight * idf);
    }
  }
}

int pst_gateway_bm25_create(const pst_str *texts, size_t n, pst_gateway_bm25 **ret_bm25, pst_error *err) {
  if (n >= UINT32_MAX) return pst_error_set(err, PST_E_LIMIT, NULL, "too many texts to index");
  building g = {0};
  pst_gateway_bm25 *b = pst_calloc(1, sizeof *b);
  int code = PST_E_NOMEM;
  if (!b) goto done;
  b->n_texts = n;
  g.bm25 = b;
  b->arena = pst_arena_create();
  g.starts = pst_calloc(n + 1, sizeof *g.starts);
  g.n_words = pst_calloc(n, sizeof *g.n_words);
  if (!b->arena || !g.starts || !g.n_words || grow_slots(b)) goto done;
  if ((code = count_words(&g, texts, n))) goto done;
  b->postings = pst_calloc(g.n_seen, sizeof *b->postings);
  code = b->postings ? 0 : PST_E_NOMEM;
  if (code) goto done;
  place_postings(&g, n);
  *ret_bm25 = b;
  b = NULL;
done:
  if (code) pst_error_set(err, code, NULL, "no memory to index %zu texts", n);
  pst_free(g.seen);
  pst_free(g.starts);
  pst_free(g.n_words);
  pst_gateway_bm25_free(b);
  return code;
}

void pst_gateway_bm25_free(pst_gateway_bm25 *b) {
  if (!b) return;
  pst_arena_free(b->arena);
  pst_free(b->slots);
  pst_free(b->terms);
  pst_free(b->postings);
  pst_free(b);
}

/* ---- asking ---- */

typedef struct asking {
  const pst_gateway_bm25 *bm25;
  int64_t *scores;
} asking;

/* A word that the query repeats counts each time. */
static int add_word(void *user, pst_str word) {
  asking *a = user;
  uint32_t found = *slot_of(a->bm25, word);
  if (!found) return 0;
  const term *t = &a->bm25->terms[found - 1];
  const posting *p = a->bm25->postings + t->first;
  for (size_t i = 0; i < t->n; i++) a->scores[p[i].text] += p[i].weight;
  return 0;
}

int pst_gateway_bm25_score(const pst_gateway_bm25 *b, pst_str query, int64_t *ret_scores, pst_error *err) {
  asking a = {b, ret_scores};
  memset(ret_scores, 0, b->n_texts * sizeof *ret_scores);
  int code = pst_gateway_words_each(query, add_word, &a);
  return code ? pst_error_set(err, code, NULL, "the input could not be read for examples") : 0;
}
