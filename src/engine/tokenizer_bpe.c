/* Byte-level BPE, as GPT-2 began it: text is cut into words, a word into bytes, and neighbours are merged in the order in which the
 * training found the pairs.
 *
 * Owns the merge table and the merging. Works on the bytes themselves: the file spells each byte as a printable character, which is
 * undone once at load. Pairs are looked up by token ids, so a merge costs one probe whatever the length of the tokens. Candidates wait in a heap,
 * so a word of n bytes costs n log n: a megabyte without a space is as harmless as prose. Most words of prose are one token; a memo per token
 * says whether the merges of its bytes lead to it, so that these need no merging after the first time.
 *
 * BPE over characters (Gemma 4) has the same merges over other symbols: the whole text is one word of characters, U+2581 being the space, and a character
 * that is no token is its bytes' tokens. */
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- the byte-to-character map ----------------------------------------------------------------------------------- */

/* Printable bytes of Latin-1 stand for themselves; the 68 others, in order, for U+0100 and up. */
static bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

static int byte_of_character(uint32_t cp) {
  if (cp < 0x100) return stands_for_itself(cp) ? (int)cp : -1;
  uint32_t wanted = cp - 0x100;
  if (wanted <= 0x20) return (int)wanted;                 /* 0x00 .. 0x20 */
  if (wanted <= 0x42) return (int)(wanted - 0x21 + 0x7F); /* 0x7F .. 0xA0 */
  return wanted == 0x43 ? 0xAD : -1;
}

bool pst_engine_tokenizer_bpe_unmap(pst_str text, pst_buf *out) {
  for (size_t i = 0; i < text.n;) {
    int byte = byte_of_character(pst_utf8_next(text.data, text.n, &i));
    if (byte < 0) return false;
    pst_buf_putc(out, (char)byte);
  }
  return true;
}

/* ---- the merge table --------------------------------------------------------------------------------------------- */

static uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

static uint32_t slot_of(uint64_t pair, uint32_t mask) {
  uint64_t h = pair * 0x9E3779B97F4A7C15u;
  return (uint32_t)(h >> 32) & mask;
}

static const merge_entry *find_merge(const pst_engine_tokenizer *t, int32_t left, int32_t right) {
  uint64_t pair = pair_of(left, right);
  for (uint32_t i = slot_of(pair, t->merges_mask);; i = (i + 1) & t->merges_mask) {
    const merge_entry *m = &t->merges[i];
    if (m->pair == pair) return m;
    if (m->pair == MERGE_FREE) return NULL;
  }
}

static void add_merge(pst_engine_tokenizer *t, int32_t left, int32_t right, uint32_t rank, int32_t id) {
  uint64_t pair = pair_of(left, right);
  uint32_t i = slot_of(pair, t->merges_mask);
  while (t->merges[i].pair != MERGE_FREE && t->merges[i].pair != pair) i = (i + 1) & t->merges_mask;
  if (t->merges[i].pair == MERGE_FREE)
    t->merges[i] = (merge_entry){pair, rank, id}; /* of equal pairs the first counts */
}

static int bad_merge(const pst_engine_gguf *gguf, uint64_t i, pst_str text, const char *why, pst_error *err) {
  return pst_error_set(err, PST_E_BAD_INPUT, pst_engine_gguf_path(gguf),
                       "entry %llu of tokenizer.ggml.merges, '%.*s', %s", (unsigned long long)i,
                       (int)PST_MIN(text.n, (size_t)80), text.data, why);
}

/* Id of the token whose bytes `text` spells: 0 found, 1 it is a control token or there is none. */
static int token_of(const pst_engine_tokenizer *t, pst_str text, pst_buf *bytes, int32_t *ret_id) {
  pst_buf_clear(bytes);
  if (t->spaces_as_blocks)
    pst_engine_tokenizer_append_spaced(text, bytes);
  else if (!pst_engine_tokenizer_bpe_unmap(text, bytes))
    return 1;
  *ret_id = pst_engine_tokenizer_lookup_text(t, bytes->data, bytes->n);
  return *ret_id < 0;
}

static int read_merge(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, uint64_t i, pst_str text, pst_buf *bytes,
                      pst_error *err) {
  int32_t left, right, merged;
  /* A token may begin with a space of its own only in files that nobody makes any more; the separator is never the first byte. */
  const char *space = text.n > 1 ? memchr(text.data + 1, ' ', text.n - 1) : NULL;
  if (!space) return bad_merge(gguf, i, text, "is not a pair", err);
  pst_str a = {text.data, (size_t)(space - text.data)}, b = {space + 1, text.n - a.n - 1};
  if (token_of(t, a, bytes, &left) || token_of(t, b, bytes, &right))
    return pst_buf_status(bytes) < 0 ? pst_buf_status(bytes)
                                     : bad_merge(gguf, i, text, "names a part that is no token", err);
  pst_str l = tokenizer_bytes(t, left), r = tokenizer_bytes(t, right);
  pst_buf_clear(bytes);
  pst_buf_append_str(bytes, l);
  pst_buf_append_str(bytes, r);
  if (pst_buf_status(bytes) < 0) return pst_buf_status(bytes);
  merged = pst_engine_tokenizer_lookup_text(t, bytes->data, bytes->n);
  if (merged < 0) {
    /* A control token that merges would lead to is not for text to form: the merge is left out. */
    if (pst_engine_tokenizer_lookup(t, bytes->data, bytes->n) >= 0) return 0;
    return bad_merge(gguf, i, text, "makes something that is no token", err);
  }
  add_merge(t, left, right, (uint32_t)i, merged);
  return 0;
}

static int read_merges(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  const pst_engine_gguf_value *merges;
  int r = pst_engine_gguf_get_array(gguf, "tokenizer.ggml.merges", PST_ENGINE_GGUF_STRINGS, &merges, err);
  if (r < 0)
    return r == PST_E_NOT_FOUND ? pst_error_set(err, PST_E_BAD_INPUT, pst_engine_gguf_path(gguf),
                                                "the tokenizer's merges (tokenizer.ggml.merges) are missing")
                                : r;
  if (merges->n > (1u << 28)) return pst_error_set(err, PST_E_LIMIT, pst_engine_gguf_path(gguf), "too many merges");
  uint32_t n_slots = 16;
  while (n_slots < merges->n * 2) n_slots *= 2;
  t->merges = pst_malloc((size_t)n_slots * sizeof *t->merges);
  if (!t->merges) return pst_error_set(err, PST_E_NOMEM, pst_engine_gguf_path(gguf), "no memory for the merges");
  memset(t->merges, 0xFF, (size_t)n_slots * sizeof *t->merges);
  t->merges_mask = n_slots - 1;
  pst_buf bytes = PST_BUF_INIT;
  for (uint64_t i = 0; i < merges->n && r == 0; i++) {
    r = read_merge(t, gguf, i, pst_engine_gguf_value_str(merges, i), &bytes, err);
    if (r == PST_E_NOMEM) pst_error_set(err, r, pst_engine_gguf_path(gguf), "no memory for the merges");
  }
  pst_buf_done(&bytes);
  return r;
}

/* ---- merging ----------------------------------------------------------------------------------------------------- */

/* A candidate's a and b are the ids of the pair when it was found, stale if they are others now; c is the id of the merged token. */

static void consider(const pst_engine_tokenizer *t, tokenizer_encoder *e, int32_t at) {
  if (at < 0) return;
  int32_t left = e->symbols[at].id, next = e->symbols[at].next;
  if (next < 0) return;
  const merge_entry *m = find_merge(t, left, e->symbols[next].id);
  if (!m) return;
  merge_candidate c = {(uint64_t)m->rank << 32 | (uint32_t)at, left, e->symbols[next].id, m->id};
  merge_heap_push(e->heap, &e->heap_n, c);
}

/* The next symbol of the word; there is room. */
static void add_symbol(tokenizer_encoder *e, int32_t id) {
  int32_t n = e->n_symbols++;
  e->symbols[n] = (merge_symbol){.id = id, .previous = n - 1, .next = n + 1};
}

/* Merges e->symbols[0 .. n_symbols), a word, as far as the table goes. */
static void merge_symbols(const pst_engine_tokenizer *t, tokenizer_encoder *e) {
  int32_t n = e->n_symbols;
  if (n == 0) return;
  e->symbols[n - 1].next = -1;
  e->heap_n = 0;
  for (int32_t i = 0; i + 1 < n; i++) consider(t, e, i);
  while (e->heap_n) {
    merge_candidate c = merge_heap_pop(e->heap, &e->heap_n);
    int32_t at = (int32_t)(uint32_t)c.key;
    merge_symbol *left = &e->symbols[at];
    if (left->id != c.a || left->next < 0 || e->symbols[left->next].id != c.b) continue;
    merge_symbol *right = &e->symbols[left->next];
    left->id = c.c;
    left->next = right->next;
    if (left->next >= 0) e->symbols[left->next].previous = at;
    right->id = -1;
    consider(t, e, left->previous);
    consider(t, e, at);
  }
}

static int put_symbols(tokenizer_encoder *e) {
  int r = 0;
  for (int32_t i = e->n_symbols ? 0 : -1; i >= 0 && r == 0; i = e->symbols[i].next)
    r = pst_engine_tokenizer_put(e, e->symbols[i].id);
  return r;
}

/* Turns the bytes into a list of symbols in e->symbols, merged as far as the table goes; e->n_symbols 0: there are none. A byte that no
 * token covers becomes nothing: its neighbours then touch, as in the reference. The file's unknown token has no part in that: it is what
 * the model's makers put there for want of one, often the end of text, which no text may form. */
static int merge_bytes(const pst_engine_tokenizer *t, tokenizer_encoder *e, pst_str bytes) {
  if (pst_engine_tokenizer_reserve(e, bytes.n) < 0) return PST_E_NOMEM;
  e->n_symbols = 0;
  for (size_t i = 0; i < bytes.n; i++) {
    int32_t id = t->byte_ids[(unsigned char)bytes.data[i]];
    if (id >= 0) add_symbol(e, id);
  }
  merge_symbols(t, e);
  return 0;
}

enum { MEMO_UNKNOWN, MEMO_WHOLE, MEMO_PARTS };

typedef struct word_sink {
  const pst_engine_tokenizer *t;
  tokenizer_encoder *e;
} word_sink;

static int encode_word(void *user, pst_str word) {
  const word_sink *sink = user;
  const pst_engine_tokenizer *t = sink->t;
  tokenizer_encoder *e = sink->e;
  int32_t id = word.n <= t->info.max_token_bytes ? pst_engine_tokenizer_lookup_text(t, word.data, word.n) : -1;
  uint8_t memo = id < 0 ? MEMO_PARTS : atomic_load_explicit(&t->word_memo[id], memory_order_relaxed);
  if (id >= 0 && (t->pre->ignore_merges || memo == MEMO_WHOLE)) return pst_engine_tokenizer_put(e, id);
  int r = merge_bytes(t, e, word);
  if (r < 0 || e->n_symbols == 0) return r;
  if (memo == MEMO_UNKNOWN)
    atomic_store_explicit(&t->word_memo[id], e->symbols[0].next < 0 && e->symbols[0].id == id ? MEMO_WHOLE : MEMO_PARTS,
                          memory_order_relaxed);
  return put_symbols(e);
}

/* A character's symbols: its token, else its bytes' tokens, else the unknown token, once for a run of such characters. */
static void add_character(const pst_engine_tokenizer *t, tokenizer_encoder *e, const char *bytes, size_t n,
                          bool *is_unknown) {
  int32_t id = pst_engine_tokenizer_lookup_text(t, bytes, n);
  bool all = true;
  for (size_t i = 0; i < n; i++) all = all && t->byte_ids[(unsigned char)bytes[i]] >= 0;
  bool was_unknown = *is_unknown;
  *is_unknown = id < 0 && !all;
  if (id >= 0)
    add_symbol(e, id);
  else if (all)
    for (size_t i = 0; i < n; i++) add_symbol(e, t->byte_ids[(unsigned char)bytes[i]]);
  else if (!was_unknown && t->info.unk >= 0)
    add_symbol(e, t->info.unk);
}

static int encode_characters(const pst_engine_tokenizer *t, tokenizer_encoder *e, pst_str raw) {
  pst_buf_clear(&e->second);
  pst_engine_tokenizer_append_spaced(raw, &e->second);
  pst_str text = pst_buf_str(&e->second);
  bool is_unknown = false;
  if (pst_buf_status(&e->second) < 0 || pst_engine_tokenizer_reserve(e, text.n) < 0) return PST_E_NOMEM;
  e->n_symbols = 0;
  for (size_t i = 0; i < text.n;) {
    size_t start = i;
    pst_utf8_next(text.data, text.n, &i);
    add_character(t, e, text.data + start, i - start, &is_unknown);
  }
  merge_symbols(t, e);
  return put_symbols(e);
}

static int encode(const pst_engine_tokenizer *t, tokenizer_encoder *e, pst_str text) {
  word_sink sink = {t, e};
  if (t->pre->nfc) {
    pst_buf_clear(&e->second);
    int r = pst_unicode_normalize(text, "NFC", &e->second);
    if (r < 0) return r;
    text = pst_buf_str(&e->second);
    if (text.n > INT32_MAX / 4) return PST_E_LIMIT;
  }
  return pst_engine_pretokenizer_split(t->pre, text, encode_word, &sink);
}

int pst_engine_tokenizer_bpe_init(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  for (int byte = 0; byte < 256; byte++) {
    char c = (char)byte;
    t->byte_ids[byte] = pst_engine_tokenizer_lookup_text(t, &c, 1);
  }
  t->word_memo = pst_calloc((size_t)t->info.n_vocab, sizeof *t->word_memo);
  if (!t->word_memo) return pst_error_set(err, PST_E_NOMEM, pst_engine_gguf_path(gguf), "no memory for the vocabulary");
  t->encode = encode;
  return read_merges(t, gguf, err);
}

int pst_engine_tokenizer_characters_init(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  pst_engine_tokenizer_find_bytes(t);
  t->encode = encode_characters;
  return read_merges(t, gguf, err);
}
