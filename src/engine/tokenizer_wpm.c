/* WordPiece, as BERT has it: text is cleaned, cut at white space and punctuation, and each word is covered from the left by the longest
 * tokens; a word that cannot be covered is one unknown token.
 *
 * Owns BERT's cleaning and cutting. The file marks a token that begins a word by U+2581 (kept here as a space) and leaves the others bare,
 * in place of BERT's own ## on the others. */
#include <string.h>

#include "engine/tokenizer_impl.h"

enum { MAX_WORD_CHARACTERS = 100, CATEGORY_MN = 6, CATEGORY_PC = 12, CATEGORY_PO = 18, CATEGORY_CC = 26 };

/* The blocks that BERT sets apart character by character; the gap before 0x2B920 is the published implementation's. */
static bool is_ideograph(uint32_t cp) {
  return (cp >= 0x4E00 && cp <= 0x9FFF) || (cp >= 0x3400 && cp <= 0x4DBF) || (cp >= 0x20000 && cp <= 0x2A6DF) ||
         (cp >= 0x2A700 && cp <= 0x2B73F) || (cp >= 0x2B740 && cp <= 0x2B81F) || (cp >= 0x2B920 && cp <= 0x2CEAF) ||
         (cp >= 0xF900 && cp <= 0xFAFF) || (cp >= 0x2F800 && cp <= 0x2FA1F);
}

static bool is_punctuation(uint32_t cp, int category) {
  if (cp < 0x80) return cp > 0x20 && cp < 0x7F && !pst_unicode_is_letter(cp) && !(cp >= '0' && cp <= '9');
  return category >= CATEGORY_PC && category <= CATEGORY_PO;
}

/* Covers the word in e->second, which has a space before it. */
static int put_word(const pst_engine_tokenizer *t, tokenizer_encoder *e) {
  pst_str word = pst_buf_str(&e->second);
  size_t n_before = e->out->n;
  if (word.n <= 1) return 0;
  bool covered = pst_utf8_count(word) - 1 <= MAX_WORD_CHARACTERS;
  for (size_t at = 0; at < word.n && covered;) {
    int32_t id = -1;
    size_t n = PST_MIN(word.n - at, t->info.max_token_bytes);
    for (; n > 0 && id < 0; n--) {
      if (at + n < word.n && ((unsigned char)word.data[at + n] & 0xC0) == 0x80) continue;
      if ((id = pst_engine_tokenizer_lookup_text(t, word.data + at, n)) >= 0) break;
    }
    /* The mark alone is no piece: a word begins with a token that has it. */
    covered = id >= 0 && !(at == 0 && n == 1);
    if (covered) {
      int r = pst_engine_tokenizer_put(e, id);
      if (r < 0) return r;
      at += n;
    }
  }
  if (covered) return 0;
  e->out->n = n_before;
  return t->info.unk >= 0 ? pst_engine_tokenizer_put(e, t->info.unk) : 0;
}

static void begin_word(tokenizer_encoder *e) {
  pst_buf_clear(&e->second);
  pst_buf_putc(&e->second, ' ');
}

static void append(tokenizer_encoder *e, uint32_t cp) {
  char bytes[4];
  pst_buf_append(&e->second, bytes, pst_utf8_put(cp, bytes));
}

/* One character of cleaned text: ends words, begins them, or joins the open one. */
static int take(const pst_engine_tokenizer *t, tokenizer_encoder *e, uint32_t cp) {
  int r = 0, category = pst_unicode_category(cp);
  bool control = category >= CATEGORY_CC && cp != '\t' && cp != '\n' && cp != '\r';
  if (control || cp == 0xFFFD || (t->strip_accents && category == CATEGORY_MN)) return 0;
  if (pst_unicode_is_space(cp)) {
    r = put_word(t, e);
    begin_word(e);
  } else if (is_punctuation(cp, category) || is_ideograph(cp)) {
    r = put_word(t, e);
    begin_word(e);
    append(e, t->lowercase ? pst_unicode_lower(cp) : cp);
    if (r == 0) r = put_word(t, e);
    begin_word(e);
  } else {
    append(e, t->lowercase ? pst_unicode_lower(cp) : cp);
  }
  return r < 0 ? r : pst_buf_status(&e->second);
}

static int encode(const pst_engine_tokenizer *t, tokenizer_encoder *e, pst_str text) {
  int r = 0;
  pst_buf decomposed = PST_BUF_INIT;
  if (t->strip_accents) {
    r = pst_unicode_normalize(text, "NFD", &decomposed);
    text = pst_buf_str(&decomposed);
  }
  begin_word(e);
  for (size_t i = 0; i < text.n && r == 0;) r = take(t, e, pst_utf8_next(text.data, text.n, &i));
  if (r == 0) r = put_word(t, e);
  pst_buf_done(&decomposed);
  return r;
}

int pst_engine_tokenizer_wpm_init(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  t->encode = encode;
  t->lowercase = true;
  int r = pst_engine_gguf_opt_bool(gguf, "tokenizer.ggml.normalizer.lowercase", &t->lowercase, err);
  if (r < 0) return r;
  t->strip_accents = t->lowercase;
  return pst_engine_gguf_opt_bool(gguf, "tokenizer.ggml.normalizer.strip_accents", &t->strip_accents, err);
}
