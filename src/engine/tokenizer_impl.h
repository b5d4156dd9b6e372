/* What the files of the tokenizer share among themselves. */
#ifndef PENSTOCK_ENGINE_TOKENIZER_IMPL_H
#define PENSTOCK_ENGINE_TOKENIZER_IMPL_H

#include <stdatomic.h>

#include "engine/merge_heap.h"
#include "engine/tokenizer.h"

typedef struct tokenizer_encoder tokenizer_encoder;

struct pretokenizer_rule; /* tokenizer_pre.c */

/* One step of a pre-tokenizer: the end of the piece that begins at `at`, within s[0 .. end). at < result <= end. */
typedef struct pretokenizer_stage {
  size_t (*next)(const char *s, size_t end, size_t at, const struct pretokenizer_rule *rule);
  const struct pretokenizer_rule *rule; /* NULL for stages without parameters */
} pretokenizer_stage;

enum { PRETOKENIZER_MAX_STAGES = 6 };
typedef struct pretokenizer {
  const char *name;
  pretokenizer_stage
      stages[PRETOKENIZER_MAX_STAGES]; /* each splits the pieces of the one before; up to the first without `next` */
  bool nfc;                            /* text is normalised to NFC before splitting */
  bool ignore_merges;                  /* a word that is a token is that token, whatever the merges say */
  bool add_bos;                        /* unless the file says otherwise */
} pretokenizer;

const pretokenizer *pst_engine_pretokenizer_find(pst_str name); /* NULL: unknown */
/* Splits valid UTF-8 into words, in order. A negative result of `word` stops and is returned. */
int pst_engine_pretokenizer_split(const pretokenizer *p, pst_str text, int (*word)(void *user, pst_str word),
                                  void *user);

typedef struct merge_entry {
  uint64_t pair; /* left id << 32 | right id; MERGE_FREE: free slot */
  uint32_t rank;
  int32_t id; /* of the merged token */
} merge_entry;
#define MERGE_FREE UINT64_MAX

struct pst_engine_tokenizer {
  pst_engine_tokenizer_info info;
  /* Encodes a piece of text that holds no special token; it begins the text or follows a special token. */
  int (*encode)(const pst_engine_tokenizer *t, tokenizer_encoder *e, pst_str text);
  char *model;
  const pretokenizer *pre;

  char *bytes;        /* all tokens' bytes, one behind the other */
  uint32_t *bytes_at; /* n_vocab + 1 */
  uint8_t *attributes;
  uint32_t *score_keys; /* SentencePiece: smaller for a higher score; else NULL */

  int32_t *lookup; /* open addressing over bytes: ids, -1: free */
  uint32_t lookup_mask;
  int32_t byte_ids[256]; /* token for a single byte; -1: none */

  merge_entry *merges; /* open addressing over pairs */
  uint32_t merges_mask;
  _Atomic uint8_t *word_memo; /* by id: 0 not known, 1 the merges of its bytes lead to it, 2 they do not */

  bool spaces_as_blocks;         /* the file writes spaces as U+2581 */
  bool remove_extra_whitespaces; /* SentencePiece */
  bool lowercase, strip_accents; /* WordPiece */

  pst_engine_token_trie special; /* control and user-defined tokens */
  uint32_t special_roots[256];   /* node of the first byte; 0: none */

  pthread_mutex_t trie_lock;
  _Atomic(pst_engine_token_trie *) trie;
};

/* State of one encode call. */
struct tokenizer_encoder {
  pst_engine_tokens *out;
  merge_symbol *symbols;
  size_t symbols_capacity;
  int32_t n_symbols; /* byte-level BPE: before merging */
  merge_candidate *heap;
  size_t heap_capacity, heap_n;
  pst_buf text;      /* what is being normalised */
  pst_buf second;    /* the same, one step later */
  bool last_unknown; /* SentencePiece: the last token put out was the unknown token */
  int32_t *
      unused_parts; /* SentencePiece, by id: bytes of the left part of an unused token when it was last a candidate; NULL: none was */
};

int pst_engine_tokenizer_put(tokenizer_encoder *e, int32_t id);
/* Room for n symbols and all candidates they can have: n - 1 at first and two more for each of the n - 1 merges. */
int pst_engine_tokenizer_reserve(tokenizer_encoder *e, size_t n);
static inline pst_str tokenizer_bytes(const pst_engine_tokenizer *t, int32_t id) {
  return (pst_str){t->bytes + t->bytes_at[id], t->bytes_at[id + 1] - t->bytes_at[id]};
}
/* Any token with these bytes; -1: none. Where several have them: normal before user-defined before control. */
int32_t pst_engine_tokenizer_lookup(const pst_engine_tokenizer *t, const char *bytes, size_t n);
/* The same, but never a control, unknown or byte token: what text may become. */
int32_t pst_engine_tokenizer_lookup_text(const pst_engine_tokenizer *t, const char *bytes, size_t n);

/* The tokens that are marked as standing for one byte, into byte_ids; others there: -1. */
void pst_engine_tokenizer_find_bytes(pst_engine_tokenizer *t);
/* Appends text with a plain space for each U+2581. */
void pst_engine_tokenizer_append_spaced(pst_str text, pst_buf *out);

/* tokenizer_bpe.c */
int pst_engine_tokenizer_bpe_init(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err);
int pst_engine_tokenizer_characters_init(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err);
/* Undoes the byte-to-character map of byte-level BPE; appends to out. False if a character is outside the map. */
bool pst_engine_tokenizer_bpe_unmap(pst_str text, pst_buf *out);
/* tokenizer_spm.c */
int pst_engine_tokenizer_spm_init(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err);
/* tokenizer_wpm.c */
int pst_engine_tokenizer_wpm_init(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err);
/* tokenizer_trie.c */
int pst_engine_token_trie_build(const pst_engine_tokenizer *t, int32_t *ids, uint32_t n_ids,
                                pst_engine_token_trie *ret_trie);
void pst_engine_token_trie_done(pst_engine_token_trie *trie);

#endif
