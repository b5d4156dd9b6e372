/* Text to tokens and back, as the file that ships with the model defines it.
 *
 * A tokenizer is immutable after create: any number of threads may use one. (Two things are made on first use behind that promise:
 * a memo of words that are tokens, and the token trie.) Everything is copied out of the GGUF file, which may be closed afterwards.
 *
 * Kinds: byte-level BPE (`gpt2`, with the pre-tokenizer named by tokenizer.ggml.pre), BPE over characters (`gemma4`), SentencePiece BPE (`llama`),
 * WordPiece (`bert`).
 * Text that is not UTF-8 becomes U+FFFD first, as Python's errors='replace' does. */
#ifndef PENSTOCK_ENGINE_TOKENIZER_H
#define PENSTOCK_ENGINE_TOKENIZER_H

#include <penstock/base.h>
#include <penstock/engine.h>

#include "engine/gguf.h"

typedef struct pst_engine_tokenizer pst_engine_tokenizer;

/* Errors: PST_E_BAD_INPUT (no tokenizer in the file, arrays that do not fit together, ids out of range), PST_E_UNSUPPORTED (kind or
 * pre-tokenizer, by name), PST_E_NOMEM. */
int pst_engine_tokenizer_create(const pst_engine_gguf *gguf, pst_engine_tokenizer **ret_tokenizer,
                                pst_error *err) PST_MUST_CHECK;
void pst_engine_tokenizer_free(pst_engine_tokenizer *t); /* NULL is fine */

/* ---- what a token is -------------------------------------------------------------------------------------------- */

enum {
  PST_ENGINE_TOKEN_CONTROL = 1,      /* formed only by trusted text; shown only on request */
  PST_ENGINE_TOKEN_USER_DEFINED = 2, /* matched in all text before anything else */
  PST_ENGINE_TOKEN_BYTE = 4,         /* stands for one byte that no other token covers */
  PST_ENGINE_TOKEN_UNUSED = 8,
  PST_ENGINE_TOKEN_UNKNOWN = 16,
  PST_ENGINE_TOKEN_END = 32,    /* the model ends its answer with it */
  PST_ENGINE_TOKEN_RSTRIP = 64, /* swallows the white space behind it */
};

typedef struct pst_engine_tokenizer_info {
  const char *model, *pre; /* "gpt2", "smollm"; pre is "" for kinds that have none */
  int32_t n_vocab;
  int32_t bos, eos, eot, eom, unk, sep, pad, mask; /* -1: none */
  bool add_bos, add_eos;                           /* the model's own rule for a fresh text; bert: [CLS] and [SEP] */
  bool add_space_prefix;                           /* SentencePiece: a text begins with a space of its own */
  size_t max_token_bytes;
} pst_engine_tokenizer_info;
const pst_engine_tokenizer_info *pst_engine_tokenizer_get_info(const pst_engine_tokenizer *t);

/* For ids outside the vocabulary: no attributes, empty bytes. */
unsigned pst_engine_tokenizer_attributes(const pst_engine_tokenizer *t, int32_t id);
/* The bytes a token adds to the text: any bytes, not always whole UTF-8. Control tokens: their name. Lives as long as the tokenizer. */
pst_str pst_engine_tokenizer_bytes(const pst_engine_tokenizer *t, int32_t id);
/* The token, of any kind, with exactly these bytes; -1: none. */
int32_t pst_engine_tokenizer_find(const pst_engine_tokenizer *t, pst_str bytes);

/* ---- encoding --------------------------------------------------------------------------------------------------- */

enum {
  PST_ENGINE_ENCODE_SPECIAL = 1, /* the text is trusted: control tokens in it are recognised */
  PST_ENGINE_ENCODE_ADD_BOS = 2, /* the model's own rule decides whether one comes */
  PST_ENGINE_ENCODE_ADD_EOS = 4, /* likewise */
};

/* Appends the tokens of `text`. Errors: PST_E_LIMIT (1 GiB and more), PST_E_NOMEM; *tokens is then as before. */
int pst_engine_tokenizer_encode(const pst_engine_tokenizer *t, pst_str text, unsigned flags, pst_engine_tokens *tokens,
                                pst_error *err) PST_MUST_CHECK;

/* A text in pieces of different origin is tokenized as one text; a control token must lie wholly in trusted pieces.
 * PST_ENGINE_ENCODE_SPECIAL is not looked at. */
typedef struct pst_engine_span {
  pst_str text;
  bool trusted;
} pst_engine_span;
int pst_engine_tokenizer_encode_spans(const pst_engine_tokenizer *t, const pst_engine_span *spans, size_t n_spans,
                                      unsigned flags, pst_engine_tokens *tokens, pst_error *err) PST_MUST_CHECK;

/* ---- decoding --------------------------------------------------------------------------------------------------- */

/* Appends the bytes of n tokens; control tokens are left out unless `special`; ids outside the vocabulary are left out. */
void pst_engine_tokenizer_decode(const pst_engine_tokenizer *t, const int32_t *ids, size_t n, bool special,
                                 pst_buf *out);

/* Bytes come in token by token, whole UTF-8 goes out: an incomplete sequence is held back, a broken one becomes U+FFFD. */
typedef struct pst_engine_text_stream {
  char held[4];
  size_t n_held; /* at most 3 */
} pst_engine_text_stream;
#define PST_ENGINE_TEXT_STREAM_INIT \
  { {0}, 0 }
void pst_engine_text_stream_push(pst_engine_text_stream *s, pst_str bytes, pst_buf *out);
void pst_engine_text_stream_finish(pst_engine_text_stream *s, pst_buf *out); /* what is held can only be broken now */

/* ---- tokens by prefix ------------------------------------------------------------------------------------------- */

/* All tokens that are text (neither control nor unknown nor unused nor empty) as a trie over their bytes, in preorder: the children of node i
 * begin at i + 1, each next sibling is at the `end` of the one before, up to nodes[i].end. So a walk that steps an automaton by
 * nodes[i].byte goes to i + 1 when it lives and to nodes[i].end when it dies. Node 0 is the root (no byte).
 * Tokens whose bytes are exactly node i: ids[nodes[i].first .. nodes[i + 1].first). Tokens that begin with it:
 * ids[nodes[i].first .. nodes[nodes[i].end].first). nodes[n_nodes] is a sentinel. */
typedef struct pst_engine_token_node {
  uint32_t end;
  uint32_t first;
  uint16_t depth; /* bytes from the root; the trie is cut at 65,535 */
  uint8_t byte;
} pst_engine_token_node;
typedef struct pst_engine_token_trie {
  pst_engine_token_node *nodes; /* n_nodes + 1 */
  uint32_t n_nodes;
  int32_t *ids; /* n_ids, in order of bytes, then id */
  uint32_t n_ids;
} pst_engine_token_trie;
/* Made on first use, then shared; NULL when out of memory. */
const pst_engine_token_trie *pst_engine_tokenizer_trie(const pst_engine_tokenizer *t);
/* The child of node `at` by byte; 0: none. */
uint32_t pst_engine_token_trie_child(const pst_engine_token_trie *trie, uint32_t at, uint8_t byte);

#endif
