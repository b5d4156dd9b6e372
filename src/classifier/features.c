/* From text to hashed n-grams. Owns what a gram is and how often it counts; which grams a model knows, and their idf, are dataset.c's.
 *
 * Grams are named by 64-bit hashes: a dictionary of texts would be most of an artefact, and two of a million grams collide with a chance of 3e-8.
 * Character grams inside words catch inflections and misspellings that words miss; word pairs catch order. Sizes and weighting were chosen by measurement
 * (docs/notes/classifier.md). */
#include "classifier/features.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SHORTEST = 2, LONGEST = 4 };
#define CHARACTER_LENGTH 1.5 /* of the block of character grams, where that of words is 1 */
enum { SEED_WORD = 1, SEED_PAIR = 2, SEED_CHARACTERS = 3 };

/* ---- folding ---- */

pst_str pst_classifier_beginning(pst_str text) {
  if (text.n <= PST_CLASSIFIER_TEXT_BYTES) return text;
  text.n = PST_CLASSIFIER_TEXT_BYTES;
  text.n -= pst_utf8_incomplete_tail(text);
  return text;
}

static bool is_ascii(pst_str s) {
  for (size_t i = 0; i < s.n; i++)
    if ((unsigned char)s.data[i] >= 0x80) return false;
  return true;
}

/* NFKC of the text, broken bytes replaced. */
static int normal_form(pst_str text, pst_buf *out) {
  pst_buf valid = PST_BUF_INIT;
  pst_utf8_sanitize(text, &valid);
  int code = pst_buf_status(&valid);
  if (!code) code = pst_unicode_normalize(pst_buf_str(&valid), "NFKC", out);
  pst_buf_done(&valid);
  return code ? code : pst_buf_status(out);
}

/* Lower case, white space of any kind and length as one space, one space on both ends. */
static int fold(pst_str text, pst_buf *out) {
  pst_buf normal = PST_BUF_INIT;
  int code = 0;
  text = pst_classifier_beginning(text);
  if (!is_ascii(text)) {
    code = normal_form(text, &normal);
    text = pst_buf_str(&normal);
  }
  pst_buf_putc(out, ' ');
  for (size_t i = 0; i < text.n && !code;) {
    uint32_t c = pst_utf8_next(text.data, text.n, &i);
    char bytes[4];
    if (!pst_unicode_is_space(c))
      pst_buf_append(out, bytes, pst_utf8_put(pst_unicode_lower(c), bytes));
    else if (out->n && out->data[out->n - 1] != ' ')
      pst_buf_putc(out, ' ');
  }
  if (out->n && out->data[out->n - 1] != ' ') pst_buf_putc(out, ' ');
  pst_buf_done(&normal);
  return code ? code : pst_buf_status(out);
}

/* ---- grams ---- */

static int put(pst_classifier_grams *g, uint64_t hash) {
  if (pst_array_reserve((void **)&g->grams, &g->capacity, g->n + 1, sizeof *g->grams)) return PST_E_NOMEM;
  g->grams[g->n++] = (pst_classifier_gram){hash, 1};
  return 0;
}

static bool in_word(uint32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  int category = pst_unicode_category(c); /* utf8proc: MN, MC, ME */
  return pst_unicode_is_letter(c) || pst_unicode_is_number(c) || (category >= 6 && category <= 8);
}

static int put_word(pst_classifier_grams *g, pst_str word, uint64_t *before) {
  uint64_t pair[2] = {*before, pst_hash64(word.data, word.n, SEED_WORD) & ~PST_CLASSIFIER_CHARACTERS};
  int code = put(g, pair[1]);
  if (!code && pair[0]) code = put(g, pst_hash64(pair, sizeof pair, SEED_PAIR) & ~PST_CLASSIFIER_CHARACTERS);
  *before = pair[1];
  return code;
}

/* An apostrophe between letters belongs to the word. */
static int put_words(pst_classifier_grams *g, pst_str text) {
  uint64_t before = 0;
  size_t start = 0, end = 0; /* of the word, end exclusive */
  int code = 0;
  for (size_t i = 0; i < text.n && !code;) {
    size_t at = i;
    uint32_t c = pst_utf8_next(text.data, text.n, &i);
    if (in_word(c)) {
      if (end != at && !(end > start && end + 1 == at && text.data[end] == '\'')) {
        if (end > start) code = put_word(g, (pst_str){text.data + start, end - start}, &before);
        start = at;
      }
      end = i;
    }
  }
  if (!code && end > start) code = put_word(g, (pst_str){text.data + start, end - start}, &before);
  return code;
}

/* text: " token " */
static int put_characters(pst_classifier_grams *g, pst_str text) {
  size_t ring[LONGEST + 1] = {0}, n = 0; /* where the last code points begin */
  int code = 0;
  for (size_t i = 0; i < text.n && !code;) {
    ring[n++ % (LONGEST + 1)] = i;
    (void)pst_utf8_next(text.data, text.n, &i);
    for (size_t k = SHORTEST; k <= LONGEST && k <= n && !code; k++) {
      size_t start = ring[(n - k) % (LONGEST + 1)];
      code = put(g, pst_hash64(text.data + start, i - start, SEED_CHARACTERS) | PST_CLASSIFIER_CHARACTERS);
    }
  }
  return code;
}

static int by_hash(const void *a, const void *b) {
  uint64_t x = ((const pst_classifier_gram *)a)->hash, y = ((const pst_classifier_gram *)b)->hash;
  return (x > y) - (x < y);
}

/* Equal ones of [first, n) become one, with their damped count. */
static void count(pst_classifier_grams *g, size_t first) {
  qsort(g->grams + first, g->n - first, sizeof *g->grams, by_hash);
  size_t n = first;
  for (size_t i = first; i < g->n;) {
    size_t end = i;
    while (end < g->n && g->grams[end].hash == g->grams[i].hash) end++;
    g->grams[n++] = (pst_classifier_gram){g->grams[i].hash, 1 + log((double)(end - i))};
    i = end;
  }
  g->n = n;
}

int pst_classifier_grams_of(pst_str text, pst_classifier_grams *g) {
  pst_buf folded = PST_BUF_INIT;
  size_t first = g->n;
  int code = fold(text, &folded);
  if (!code) code = put_words(g, pst_buf_str(&folded));
  for (size_t i = 0; i + 1 < folded.n && !code;) { /* from space to space */
    size_t end = i + 1;
    while (folded.data[end] != ' ') end++;
    code = put_characters(g, (pst_str){folded.data + i, end + 1 - i});
    i = end;
  }
  pst_buf_done(&folded);
  if (code)
    g->n = first;
  else if (g->n > first)
    count(g, first);
  return code;
}

void pst_classifier_normalize(pst_classifier_gram *grams, size_t n) {
  double squares[2] = {0, 0};
  for (size_t i = 0; i < n; i++) squares[grams[i].hash >> 63] += grams[i].weight * grams[i].weight;
  const double scales[2] = {1 / sqrt(fmax(squares[0], DBL_MIN)), CHARACTER_LENGTH / sqrt(fmax(squares[1], DBL_MIN))};
  for (size_t i = 0; i < n; i++) grams[i].weight *= scales[grams[i].hash >> 63];
}
