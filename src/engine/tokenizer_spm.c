/* SentencePiece BPE: the whole text is one sequence of characters, and the neighbours that make the token of the highest score are
 * merged first.
 *
 * Owns the normalisation (a space before the text, white space collapsed where the model wants it) and the merging; characters that are
 * in no token become byte tokens. Text and tokens are kept with plain spaces: the U+2581 of the file is the same thing and was replaced
 * on both sides. Any two symbols may merge if their bytes together are a token, so pairs are looked up by bytes; candidates wait in a
 * heap, and a text of n characters costs n log n. A user-defined token is cut out beforehand, which is what SentencePiece's frozen
 * symbols come to. Only normal, user-defined and unused tokens are formed: a text that spells a control token stays text. */
#include <math.h>
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- merging ----------------------------------------------------------------------------------------------------- */

/* Remembers what an unused token would be made of: it may take part in merges, but is taken apart again if it is left over. */
static int note_unused(const pst_engine_tokenizer *t, tokenizer_encoder *e, int32_t id, int32_t left_bytes) {
  if (!(t->attributes[id] & PST_ENGINE_TOKEN_UNUSED)) return 0;
  if (!e->unused_parts) e->unused_parts = pst_calloc((size_t)t->info.n_vocab, sizeof *e->unused_parts);
  if (!e->unused_parts) return PST_E_NOMEM;
  e->unused_parts[id] = left_bytes;
  return 0;
}

/* A candidate's a is the index of the right symbol, b the bytes of both (stale if they have others now), c the token's id. */
static int consider(const pst_engine_tokenizer *t, tokenizer_encoder *e, const char *text, int32_t left,
                    int32_t right) {
  if (left < 0 || right < 0) return 0;
  int32_t n = e->symbols[left].n + e->symbols[right].n;
  if ((size_t)n > t->info.max_token_bytes) return 0;
  int32_t id = pst_engine_tokenizer_lookup_text(t, text + e->symbols[left].at, (size_t)n);
  if (id < 0) return 0;
  merge_heap_push(e->heap, &e->heap_n,
                  (merge_candidate){(uint64_t)t->score_keys[id] << 32 | (uint32_t)left, right, n, id});
  return note_unused(t, e, id, e->symbols[left].n);
}

static int merge_characters(const pst_engine_tokenizer *t, tokenizer_encoder *e, const char *text, int32_t n_symbols) {
  int r = 0;
  for (int32_t i = 0; i + 1 < n_symbols && r == 0; i++) r = consider(t, e, text, i, i + 1);
  while (e->heap_n && r == 0) {
    merge_candidate c = merge_heap_pop(e->heap, &e->heap_n);
    int32_t at = (int32_t)(uint32_t)c.key;
    merge_symbol *left = &e->symbols[at], *right = &e->symbols[c.a];
    if (!left->n || !right->n || left->n + right->n != c.b) continue;
    left->n = c.b;
    left->id = c.c;
    left->next = right->next;
    right->n = 0;
    if (left->next >= 0) e->symbols[left->next].previous = at;
    r = consider(t, e, text, left->previous, at);
    if (r == 0) r = consider(t, e, text, at, left->next);
  }
  return r;
}

/* ---- putting out ------------------------------------------------------------------------------------------------- */

static int put(tokenizer_encoder *e, int32_t id) {
  e->last_unknown = false;
  return pst_engine_tokenizer_put(e, id);
}

/* Text that is no token: its bytes' tokens, or, in a vocabulary without them, one unknown token for all such text in a row. */
static int put_unknown(const pst_engine_tokenizer *t, tokenizer_encoder *e, const char *bytes, int32_t n) {
  int r = 0;
  bool all = true;
  for (int32_t i = 0; i < n; i++) all = all && t->byte_ids[(unsigned char)bytes[i]] >= 0;
  if (all) {
    for (int32_t i = 0; i < n && r == 0; i++) r = put(e, t->byte_ids[(unsigned char)bytes[i]]);
    return r;
  }
  if (e->last_unknown || t->info.unk < 0) return 0;
  r = put(e, t->info.unk);
  e->last_unknown = true;
  return r;
}

/* The depth is bounded: each level is a shorter token. */
static int put_piece(const pst_engine_tokenizer *t, tokenizer_encoder *e, const char *bytes, int32_t n) {
  int32_t id = pst_engine_tokenizer_lookup_text(t, bytes, (size_t)n);
  if (id < 0) return put_unknown(t, e, bytes, n);
  int32_t left = (t->attributes[id] & PST_ENGINE_TOKEN_UNUSED) && e->unused_parts ? e->unused_parts[id] : 0;
  if (left <= 0 || left >= n) return put(e, id);
  int r = put_piece(t, e, bytes, left);
  return r < 0 ? r : put_piece(t, e, bytes + left, n - left);
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

/* Drops spaces at both ends, and all but one between words. */
static void squeeze_spaces(pst_buf *b) {
  size_t n = 0;
  for (size_t i = 0; i < b->n; i++)
    if (b->data[i] != ' ' || (n > 0 && b->data[n - 1] != ' ')) b->data[n++] = b->data[i];
  while (n > 0 && b->data[n - 1] == ' ') n--;
  b->n = n;
}

/* Copies the text to e->second as the vocabulary spells it. */
static int normalize(const pst_engine_tokenizer *t, tokenizer_encoder *e, pst_str text) {
  pst_buf *out = &e->second;
  pst_buf_clear(out);
  if (t->info.add_space_prefix && !t->remove_extra_whitespaces) pst_buf_putc(out, ' ');
  pst_engine_tokenizer_append_spaced(text, out);
  if (pst_buf_status(out) == 0 && t->remove_extra_whitespaces) {
    squeeze_spaces(out);
    if (t->info.add_space_prefix && out->n && pst_buf_reserve(out, 1) == 0) {
      memmove(out->data + 1, out->data, out->n);
      out->data[0] = ' ';
      out->n++;
    }
  }
  return pst_buf_status(out);
}

static int encode(const pst_engine_tokenizer *t, tokenizer_encoder *e, pst_str raw) {
  int r = normalize(t, e, raw);
  if (r < 0) return r;
  pst_str text = pst_buf_str(&e->second);
  if (!text.n) return 0;
  if (pst_engine_tokenizer_reserve(e, text.n) < 0) return PST_E_NOMEM;
  int32_t n = 0;
  for (size_t i = 0; i < text.n; n++) {
    size_t start = i;
    pst_utf8_next(text.data, text.n, &i);
    e->symbols[n] =
        (merge_symbol){.id = -1, .previous = n - 1, .next = n + 1, .at = (int32_t)start, .n = (int32_t)(i - start)};
  }
  e->symbols[n - 1].next = -1;
  r = merge_characters(t, e, text.data, n);
  for (int32_t i = 0; i >= 0 && r == 0; i = e->symbols[i].next) {
    const merge_symbol *s = &e->symbols[i];
    if (s->id >= 0 && !(t->attributes[s->id] & PST_ENGINE_TOKEN_UNUSED))
      r = put(e, s->id);
    else
      r = put_piece(t, e, text.data + s->at, s->n);
  }
  return r;
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

/* Floats in descending order are these in ascending order. */
static uint32_t score_key(float score) {
  uint32_t bits;
  score += 0.0f; /* no negative zero */
  memcpy(&bits, &score, sizeof bits);
  uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

static int read_scores(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  const pst_engine_gguf_value *scores;
  const char *path = pst_engine_gguf_path(gguf);
  int r = pst_engine_gguf_get_array(gguf, "tokenizer.ggml.scores", PST_ENGINE_GGUF_NUMBERS, &scores, err);
  if (r < 0)
    return r == PST_E_NOT_FOUND
               ? pst_error_set(err, PST_E_BAD_INPUT, path, "the tokenizer's scores (tokenizer.ggml.scores) are missing")
               : r;
  if (scores->n != (uint64_t)t->info.n_vocab)
    return pst_error_set(err, PST_E_BAD_INPUT, path, "tokenizer.ggml.scores has %llu entries for %d tokens",
                         (unsigned long long)scores->n, (int)t->info.n_vocab);
  t->score_keys = pst_calloc((size_t)scores->n, sizeof *t->score_keys);
  if (!t->score_keys) return pst_error_set(err, PST_E_NOMEM, path, "no memory for the scores");
  for (uint64_t i = 0; i < scores->n; i++) {
    float score = (float)pst_engine_gguf_value_f64(scores, i);
    if (isnan(score))
      return pst_error_set(err, PST_E_BAD_INPUT, path, "entry %llu of tokenizer.ggml.scores is not a number",
                           (unsigned long long)i);
    t->score_keys[i] = score_key(score);
  }
  return 0;
}

int pst_engine_tokenizer_spm_init(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  if (pst_engine_gguf_find(gguf, "tokenizer.ggml.precompiled_charsmap"))
    return pst_error_set(
        err, PST_E_UNSUPPORTED, pst_engine_gguf_path(gguf),
        "a SentencePiece tokenizer with its own normalisation table (tokenizer.ggml.precompiled_charsmap)");
  pst_engine_tokenizer_find_bytes(t);
  t->encode = encode;
  int r = pst_engine_gguf_opt_bool(gguf, "tokenizer.ggml.remove_extra_whitespaces", &t->remove_extra_whitespaces, err);
  return r < 0 ? r : read_scores(t, gguf, err);
}
