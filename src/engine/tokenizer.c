/* The tokenizer as a whole: reading the vocabulary from GGUF metadata, what each token is, cutting special tokens out of text, and
 * decoding. What lies between special tokens is encoded by the file of the kind (tokenizer_bpe.c, tokenizer_spm.c, tokenizer_wpm.c).
 *
 * Who may form which token is decided here and nowhere else. Control tokens come only from trusted text; user-defined tokens from any
 * text, leftmost and longest first, as in the reference implementations. Several texts are files' mistakes that everybody works around:
 * end tokens that are not marked as control tokens are taken as such by name, since text must not end an answer. */
#include "engine/tokenizer.h"

#include <string.h>

#include "engine/tokenizer_impl.h"

enum {
  MAX_TEXT_BYTES = 1 << 30,
  MAX_VOCAB = 1 << 24,
  TYPE_NORMAL = 1, /* tokenizer.ggml.token_type */
  TYPE_UNKNOWN = 2,
  TYPE_CONTROL = 3,
  TYPE_USER_DEFINED = 4,
  TYPE_UNUSED = 5,
  TYPE_BYTE = 6,
};

static const char block[] = "\xE2\x96\x81"; /* U+2581, how SentencePiece writes a space */

/* ---- lookup by bytes --------------------------------------------------------------------------------------------- */

int32_t pst_engine_tokenizer_lookup(const pst_engine_tokenizer *t, const char *bytes, size_t n) {
  uint32_t i = (uint32_t)pst_hash64(bytes, n, 0) & t->lookup_mask;
  for (; t->lookup[i] >= 0; i = (i + 1) & t->lookup_mask) {
    pst_str s = tokenizer_bytes(t, t->lookup[i]);
    if (s.n == n && memcmp(s.data, bytes, n) == 0) return t->lookup[i];
  }
  return -1;
}

int32_t pst_engine_tokenizer_lookup_text(const pst_engine_tokenizer *t, const char *bytes, size_t n) {
  int32_t id = pst_engine_tokenizer_lookup(t, bytes, n);
  return id >= 0 && (t->attributes[id] & (PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_UNKNOWN)) ? -1 : id;
}

static void lookup_add(pst_engine_tokenizer *t, int32_t id) {
  pst_str s = tokenizer_bytes(t, id);
  if (s.n == 0) return;
  uint32_t i = (uint32_t)pst_hash64(s.data, s.n, 0) & t->lookup_mask;
  for (; t->lookup[i] >= 0; i = (i + 1) & t->lookup_mask)
    if (pst_str_equal(tokenizer_bytes(t, t->lookup[i]), s)) return; /* the first one stays */
  t->lookup[i] = id;
}

/* Normal tokens first, then user-defined, then the others; byte tokens never: they are found by their byte. */
static int build_lookup(pst_engine_tokenizer *t) {
  uint32_t n_slots = 16;
  while (n_slots < (uint32_t)t->info.n_vocab * 2) n_slots *= 2;
  t->lookup = pst_malloc((size_t)n_slots * sizeof *t->lookup);
  if (!t->lookup) return PST_E_NOMEM;
  memset(t->lookup, 0xFF, (size_t)n_slots * sizeof *t->lookup);
  t->lookup_mask = n_slots - 1;
  const unsigned late = PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_UNKNOWN;
  for (int pass = 0; pass < 3; pass++)
    for (int32_t id = 0; id < t->info.n_vocab; id++) {
      unsigned a = t->attributes[id];
      int wanted = (a & late) ? 2 : (a & PST_ENGINE_TOKEN_USER_DEFINED) ? 1 : 0;
      if (wanted == pass && !(a & PST_ENGINE_TOKEN_BYTE)) lookup_add(t, id);
    }
  return 0;
}

/* ---- reading the vocabulary -------------------------------------------------------------------------------------- */

static unsigned attributes_of_type(int64_t type) {
  switch (type) {
  case TYPE_UNKNOWN: return PST_ENGINE_TOKEN_UNKNOWN;
  case TYPE_CONTROL: return PST_ENGINE_TOKEN_CONTROL;
  case TYPE_USER_DEFINED: return PST_ENGINE_TOKEN_USER_DEFINED;
  case TYPE_UNUSED: return PST_ENGINE_TOKEN_UNUSED;
  case TYPE_BYTE: return PST_ENGINE_TOKEN_BYTE;
  default: return 0;
  }
}

static int read_types(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  const pst_engine_gguf_value *types;
  t->attributes = pst_calloc((size_t)t->info.n_vocab, 1);
  if (!t->attributes)
    return pst_error_set(err, PST_E_NOMEM, pst_engine_gguf_path(gguf), "no memory for the vocabulary");
  if (!pst_engine_gguf_find(gguf, "tokenizer.ggml.token_type")) return 0;
  int r = pst_engine_gguf_get_array(gguf, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_INTEGERS, &types, err);
  if (r < 0) return r;
  if (types->n != (uint64_t)t->info.n_vocab)
    return pst_error_set(err, PST_E_BAD_INPUT, pst_engine_gguf_path(gguf),
                         "tokenizer.ggml.token_type has %llu entries for %d tokens", (unsigned long long)types->n,
                         (int)t->info.n_vocab);
  for (uint64_t i = 0; i < types->n; i++)
    t->attributes[i] = (uint8_t)attributes_of_type(pst_engine_gguf_value_i64(types, i));
  return 0;
}

void pst_engine_tokenizer_append_spaced(pst_str text, pst_buf *out) {
  size_t plain = 0;
  for (size_t at; (at = pst_str_find(text, (pst_str){block, 3}, plain)) != SIZE_MAX; plain = at + 3) {
    pst_buf_append(out, text.data + plain, at - plain);
    pst_buf_putc(out, ' ');
  }
  pst_buf_append(out, text.data + plain, text.n - plain);
}

void pst_engine_tokenizer_find_bytes(pst_engine_tokenizer *t) {
  for (int byte = 0; byte < 256; byte++) t->byte_ids[byte] = -1;
  for (int32_t id = t->info.n_vocab - 1; id >= 0; id--)
    if (t->attributes[id] & PST_ENGINE_TOKEN_BYTE) t->byte_ids[(unsigned char)tokenizer_bytes(t, id).data[0]] = id;
}

static int hex_digit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                : -1;
}

/* "<0x0A>" */
static int parse_byte_token(pst_str text) {
  if (text.n != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>') return -1;
  int high = hex_digit(text.data[3]), low = hex_digit(text.data[4]);
  return high < 0 || low < 0 ? -1 : high << 4 | low;
}

typedef enum tokenizer_kind { KIND_BPE, KIND_CHARACTERS, KIND_SPM, KIND_WPM } tokenizer_kind;

/* Appends what the token adds to a text. False: the entry is malformed. */
static bool append_token_bytes(tokenizer_kind kind, unsigned attributes, pst_str text, pst_buf *out) {
  size_t start = out->n;
  if (attributes & PST_ENGINE_TOKEN_BYTE) {
    int byte = parse_byte_token(text);
    if (byte >= 0) pst_buf_putc(out, (char)byte);
    return byte >= 0;
  }
  if (kind == KIND_SPM || kind == KIND_CHARACTERS) {
    pst_engine_tokenizer_append_spaced(text, out);
  } else if (kind == KIND_WPM && attributes == 0 && text.n >= 3 && memcmp(text.data, block, 3) == 0) {
    pst_buf_putc(out, ' ');
    pst_buf_append(out, text.data + 3, text.n - 3);
  } else if (kind == KIND_BPE && !(attributes & ~(unsigned)PST_ENGINE_TOKEN_UNUSED)) {
    if (!pst_engine_tokenizer_bpe_unmap(text, out)) {
      /* No spelling of bytes: a token that text cannot become, shown as it stands. */
      out->n = start;
      pst_buf_append_str(out, text);
    }
  } else {
    pst_buf_append_str(out, text);
  }
  return true;
}

static int read_tokens(pst_engine_tokenizer *t, tokenizer_kind kind, const pst_engine_gguf *gguf,
                       const pst_engine_gguf_value *tokens, pst_error *err) {
  const char *path = pst_engine_gguf_path(gguf);
  int r = 0;
  pst_buf bytes = PST_BUF_INIT;
  t->bytes_at = pst_calloc((size_t)t->info.n_vocab + 1, sizeof *t->bytes_at);
  if (!t->bytes_at) return pst_error_set(err, PST_E_NOMEM, path, "no memory for the vocabulary");
  for (int32_t id = 0; id < t->info.n_vocab && r == 0; id++) {
    size_t start = bytes.n;
    if (!append_token_bytes(kind, t->attributes[id], pst_engine_gguf_value_str(tokens, (uint64_t)id), &bytes))
      r = pst_error_set(err, PST_E_BAD_INPUT, path, "token %d is marked as a byte but is not written like <0x0A>",
                        (int)id);
    else if (bytes.n > MAX_TEXT_BYTES)
      r = pst_error_set(err, PST_E_LIMIT, path, "the tokens' texts are larger than 1 GiB");
    t->bytes_at[id + 1] = (uint32_t)bytes.n;
    t->info.max_token_bytes = PST_MAX(t->info.max_token_bytes, bytes.n - start);
  }
  if (r == 0 && (pst_buf_reserve(&bytes, 1) < 0 || pst_buf_status(&bytes) < 0))
    r = pst_error_set(err, PST_E_NOMEM, path, "no memory for the vocabulary");
  if (r == 0) t->bytes = pst_buf_take(&bytes);
  pst_buf_done(&bytes);
  return r;
}

/* ---- special tokens ---------------------------------------------------------------------------------------------- */

static int read_id(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, const char *key, int32_t *id, pst_error *err) {
  int64_t value = *id;
  int r = pst_engine_gguf_opt_i64(gguf, key, &value, err);
  if (r < 0) return r;
  /* Some converters write -1 or its 32-bit image for "none". */
  if (value == UINT32_MAX || value == -1) {
    *id = -1;
    return 0;
  }
  if (value < 0 || value >= t->info.n_vocab) {
    if (!pst_engine_gguf_find(gguf, key)) { /* a default that this vocabulary does not have */
      *id = -1;
      return 0;
    }
    return pst_error_set(err, PST_E_BAD_INPUT, pst_engine_gguf_path(gguf),
                         "%s is %lld, but the vocabulary has %d tokens", key, (long long)value, (int)t->info.n_vocab);
  }
  *id = (int32_t)value;
  return 0;
}

/* Names of tokens that end an answer or a turn, in whatever model they occur, and whether they are also taken as control tokens where
 * the file calls them normal. */
static const char *const end_names[] = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<\xEF\xBD\x9C\x65nd\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>", "</s>",
    /* Fill-in-the-middle: padding and the beginning of another file end the middle. */
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>",
    "<|file_sep|>"};

static const char *const turn_end_names[] = {"<|eot_id|>", "<|im_end|>",    "<|end|>",           "<end_of_turn>",
                                             "<turn|>",    "<|endoftext|>", "<|end_of_text|>",   "<EOT>",
                                             "_<EOT>",     "[EOT]",         "<end_of_utterance>"};

int32_t pst_engine_tokenizer_find(const pst_engine_tokenizer *t, pst_str bytes) {
  if (!t->spaces_as_blocks || pst_str_find(bytes, (pst_str){block, 3}, 0) == SIZE_MAX)
    return pst_engine_tokenizer_lookup(t, bytes.data, bytes.n);
  pst_buf plain = PST_BUF_INIT;
  pst_engine_tokenizer_append_spaced(bytes, &plain);
  int32_t id = pst_buf_status(&plain) < 0 ? -1 : pst_engine_tokenizer_lookup(t, plain.data, plain.n);
  pst_buf_done(&plain);
  return id;
}

static int32_t find_name(const pst_engine_tokenizer *t, const char *name) {
  return pst_engine_tokenizer_find(t, pst_str_from(name));
}

static void set_end(pst_engine_tokenizer *t, int32_t id) {
  if (id < 0) return;
  unsigned a = t->attributes[id] & ~(unsigned)PST_ENGINE_TOKEN_USER_DEFINED;
  t->attributes[id] = (uint8_t)(a | PST_ENGINE_TOKEN_END | PST_ENGINE_TOKEN_CONTROL);
}

static void find_ends(pst_engine_tokenizer *t) {
  for (size_t i = 0; i < PST_ARRAY_LEN(end_names); i++) {
    int32_t id = find_name(t, end_names[i]);
    if (id < 0) continue;
    /* "</s>" is also what ends struck-out text in HTML, and some models have it as that. */
    if (strcmp(end_names[i], "</s>") == 0 && !(t->attributes[id] & PST_ENGINE_TOKEN_CONTROL)) continue;
    set_end(t, id);
  }
  /* Harmony writes several messages: <|end|> parts them there. */
  int32_t end = find_name(t, "<|end|>");
  bool harmony = find_name(t, "<|call|>") >= 0 && find_name(t, "<|return|>") >= 0;
  bool solar = find_name(t, "<|calls|>") >= 0 && find_name(t, "<|flush|>") >= 0;
  if (end >= 0 && (harmony || solar)) t->attributes[end] &= (uint8_t)~PST_ENGINE_TOKEN_END;
  for (size_t i = 0; i < PST_ARRAY_LEN(turn_end_names) && t->info.eot < 0; i++) {
    int32_t id = find_name(t, turn_end_names[i]);
    if (id >= 0 && (t->attributes[id] & PST_ENGINE_TOKEN_END)) t->info.eot = id;
  }
  set_end(t, t->info.eos);
  set_end(t, t->info.eot);
  set_end(t, t->info.eom);
}

static int read_special(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  const struct {
    const char *key;
    int32_t *id;
  } ids[] = {
      {"tokenizer.ggml.bos_token_id", &t->info.bos},     {"tokenizer.ggml.eos_token_id", &t->info.eos},
      {"tokenizer.ggml.eot_token_id", &t->info.eot},     {"tokenizer.ggml.eom_token_id", &t->info.eom},
      {"tokenizer.ggml.unknown_token_id", &t->info.unk}, {"tokenizer.ggml.seperator_token_id", &t->info.sep},
      {"tokenizer.ggml.padding_token_id", &t->info.pad}, {"tokenizer.ggml.mask_token_id", &t->info.mask},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(ids); i++) {
    int r = read_id(t, gguf, ids[i].key, ids[i].id, err);
    if (r < 0) return r;
  }
  int r = pst_engine_gguf_opt_bool(gguf, "tokenizer.ggml.add_bos_token", &t->info.add_bos, err);
  if (r == 0) r = pst_engine_gguf_opt_bool(gguf, "tokenizer.ggml.add_eos_token", &t->info.add_eos, err);
  if (r == 0) r = pst_engine_gguf_opt_bool(gguf, "tokenizer.ggml.add_space_prefix", &t->info.add_space_prefix, err);
  return r;
}

/* Phi-3's own tokenizer strips the white space behind its special tokens; GGUF has no place to say so. */
static void mark_stripping(pst_engine_tokenizer *t, const pst_engine_gguf *gguf) {
  static const char *const exempt[] = {"<unk>", "<s>", "<|endoftext|>"};
  pst_str name = PST_STR("");
  char lower[64];
  if (pst_engine_gguf_opt_str(gguf, "general.name", &name, NULL) < 0) return;
  size_t n = PST_MIN(name.n, sizeof lower);
  for (size_t i = 0; i < n; i++)
    lower[i] = name.data[i] >= 'A' && name.data[i] <= 'Z' ? (char)(name.data[i] + 32) : name.data[i];
  pst_str shown = {lower, n};
  if (pst_str_find(shown, PST_STR("phi-3"), 0) == SIZE_MAX && pst_str_find(shown, PST_STR("phi3"), 0) == SIZE_MAX)
    return;
  for (int32_t id = 0; id < t->info.n_vocab; id++)
    if (t->attributes[id] & (PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_USER_DEFINED))
      t->attributes[id] |= PST_ENGINE_TOKEN_RSTRIP;
  for (size_t i = 0; i < PST_ARRAY_LEN(exempt); i++) {
    int32_t id = find_name(t, exempt[i]);
    if (id >= 0) t->attributes[id] &= (uint8_t)~PST_ENGINE_TOKEN_RSTRIP;
  }
}

/* The tokens that are cut out of text, as a trie. */
static int build_special(pst_engine_tokenizer *t) {
  int r = PST_E_NOMEM;
  uint32_t n = 0;
  int32_t *ids = pst_calloc((size_t)t->info.n_vocab, sizeof *ids);
  if (!ids) return r;
  for (int32_t id = 0; id < t->info.n_vocab; id++)
    if ((t->attributes[id] & (PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_USER_DEFINED | PST_ENGINE_TOKEN_UNKNOWN)) &&
        tokenizer_bytes(t, id).n)
      ids[n++] = id;
  r = pst_engine_token_trie_build(t, ids, n, &t->special);
  pst_free(ids);
  if (r < 0) return r;
  for (unsigned byte = 0; byte < 256; byte++)
    t->special_roots[byte] = pst_engine_token_trie_child(&t->special, 0, (uint8_t)byte);
  return 0;
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

static int find_pretokenizer(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  pst_str name = PST_STR("");
  int r = pst_engine_gguf_opt_str(gguf, "tokenizer.ggml.pre", &name, err);
  if (r < 0) return r;
  if (name.n == 0) {
    pst_log(PST_LOG_WARN, "event=no_pretokenizer file=%s used=default", pst_engine_gguf_path(gguf));
    name = PST_STR("default");
  }
  t->pre = pst_engine_pretokenizer_find(name);
  if (!t->pre)
    return pst_error_set(err, PST_E_UNSUPPORTED, pst_engine_gguf_path(gguf),
                         "the pre-tokenizer '%.*s' (tokenizer.ggml.pre) is not supported",
                         (int)PST_MIN(name.n, (size_t)64), name.data);
  t->info.pre = t->pre->name;
  return 0;
}

/* Sets the kind and its defaults, which hold where the file says nothing. */
static int choose_kind(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, tokenizer_kind *ret_kind, pst_error *err) {
  pst_str model;
  const char *path = pst_engine_gguf_path(gguf);
  int r = pst_engine_gguf_get_str(gguf, "tokenizer.ggml.model", &model, err);
  if (r == PST_E_NOT_FOUND)
    return pst_error_set(err, PST_E_BAD_INPUT, path,
                         "the file has no tokenizer: the metadata key 'tokenizer.ggml.model' is missing");
  if (r < 0) return r;
  t->model = pst_strndup(model.data, model.n);
  if (!t->model) return pst_error_set(err, PST_E_NOMEM, path, "no memory for the tokenizer");
  pst_engine_tokenizer_info *info = &t->info;
  info->model = t->model;
  info->pre = "";
  info->bos = info->eos = info->eot = info->eom = info->unk = info->sep = info->pad = info->mask = -1;
  if (pst_str_is(model, "gpt2")) {
    *ret_kind = KIND_BPE;
    r = find_pretokenizer(t, gguf, err);
    if (r == 0) info->add_bos = t->pre->add_bos;
    return r;
  }
  if (pst_str_is(model, "gemma4")) {
    *ret_kind = KIND_CHARACTERS;
    info->add_bos = true;
    t->spaces_as_blocks = true;
    return 0;
  }
  if (pst_str_is(model, "llama")) {
    *ret_kind = KIND_SPM;
    info->bos = 1;
    info->eos = 2;
    info->unk = 0;
    info->add_bos = info->add_space_prefix = true;
    t->spaces_as_blocks = true;
    return 0;
  }
  if (pst_str_is(model, "bert")) {
    *ret_kind = KIND_WPM;
    info->bos = 101;
    info->unk = 100;
    info->sep = 102;
    info->pad = 0;
    info->mask = 103;
    info->add_bos = info->add_eos = true;
    return 0;
  }
  return pst_error_set(err, PST_E_UNSUPPORTED, path,
                       "the tokenizer '%.*s' (tokenizer.ggml.model) is not supported; gpt2, gemma4, llama and bert are",
                       (int)PST_MIN(model.n, (size_t)64), model.data);
}

static int load(pst_engine_tokenizer *t, const pst_engine_gguf *gguf, pst_error *err) {
  static int (*const init[])(pst_engine_tokenizer *, const pst_engine_gguf *,
                             pst_error *) = {[KIND_BPE] = pst_engine_tokenizer_bpe_init,
                                             [KIND_CHARACTERS] = pst_engine_tokenizer_characters_init,
                                             [KIND_SPM] = pst_engine_tokenizer_spm_init,
                                             [KIND_WPM] = pst_engine_tokenizer_wpm_init};
  const char *path = pst_engine_gguf_path(gguf);
  const pst_engine_gguf_value *tokens;
  tokenizer_kind kind;
  int r = choose_kind(t, gguf, &kind, err);
  if (r < 0) return r;
  r = pst_engine_gguf_get_array(gguf, "tokenizer.ggml.tokens", PST_ENGINE_GGUF_STRINGS, &tokens, err);
  if (r == PST_E_NOT_FOUND)
    return pst_error_set(err, PST_E_BAD_INPUT, path,
                         "the tokenizer has no vocabulary: the metadata key 'tokenizer.ggml.tokens' is missing");
  if (r < 0) return r;
  if (tokens->n == 0 || tokens->n > MAX_VOCAB)
    return pst_error_set(err, PST_E_BAD_INPUT, path, "the vocabulary has %llu tokens, expected 1 to %d",
                         (unsigned long long)tokens->n, MAX_VOCAB);
  t->info.n_vocab = (int32_t)tokens->n;
  if ((r = read_types(t, gguf, err)) < 0 || (r = read_tokens(t, kind, gguf, tokens, err)) < 0) return r;
  if ((r = build_lookup(t)) < 0) return pst_error_set(err, r, path, "no memory for the vocabulary");
  if ((r = read_special(t, gguf, err)) < 0) return r;
  find_ends(t);
  mark_stripping(t, gguf);
  if ((r = build_special(t)) < 0) return pst_error_set(err, r, path, "no memory for the vocabulary");
  return init[kind](t, gguf, err);
}

int pst_engine_tokenizer_create(const pst_engine_gguf *gguf, pst_engine_tokenizer **ret_tokenizer, pst_error *err) {
  pst_engine_tokenizer *t = pst_calloc(1, sizeof *t);
  if (!t) return pst_error_set(err, PST_E_NOMEM, pst_engine_gguf_path(gguf), "no memory for the tokenizer");
  pthread_mutex_init(&t->trie_lock, NULL);
  int r = load(t, gguf, err);
  if (r < 0) {
    pst_engine_tokenizer_free(t);
    return r;
  }
  *ret_tokenizer = t;
  return 0;
}

void pst_engine_tokenizer_free(pst_engine_tokenizer *t) {
  if (!t) return;
  pst_engine_token_trie *trie = atomic_load_explicit(&t->trie, memory_order_acquire);
  if (trie) pst_engine_token_trie_done(trie);
  pst_free(trie);
  pst_engine_token_trie_done(&t->special);
  pthread_mutex_destroy(&t->trie_lock);
  pst_free(t->model);
  pst_free(t->bytes);
  pst_free(t->bytes_at);
  pst_free(t->attributes);
  pst_free(t->score_keys);
  pst_free(t->lookup);
  pst_free(t->merges);
  pst_free((void *)t->word_memo);
  pst_free(t);
}

const pst_engine_tokenizer_info *pst_engine_tokenizer_get_info(const pst_engine_tokenizer *t) { return &t->info; }

unsigned pst_engine_tokenizer_attributes(const pst_engine_tokenizer *t, int32_t id) {
  return id >= 0 && id < t->info.n_vocab ? t->attributes[id] : 0;
}

pst_str pst_engine_tokenizer_bytes(const pst_engine_tokenizer *t, int32_t id) {
  return id >= 0 && id < t->info.n_vocab ? tokenizer_bytes(t, id) : PST_STR("");
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

void pst_engine_tokens_done(pst_engine_tokens *tokens) {
  pst_free(tokens->ids);
  *tokens = (pst_engine_tokens){0};
}

int pst_engine_tokens_append(pst_engine_tokens *tokens, const int32_t *ids, size_t n, pst_error *err) {
  if (pst_array_reserve((void **)&tokens->ids, &tokens->capacity, tokens->n + n, sizeof *ids))
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %zu tokens", tokens->n + n);
  if (n) memcpy(tokens->ids + tokens->n, ids, n * sizeof *ids);
  tokens->n += n;
  return 0;
}

int pst_engine_tokenizer_put(tokenizer_encoder *e, int32_t id) {
  if (e->out->n == e->out->capacity &&
      pst_array_reserve((void **)&e->out->ids, &e->out->capacity, e->out->n + 1, sizeof *e->out->ids) < 0)
    return PST_E_NOMEM;
  e->out->ids[e->out->n++] = id;
  return 0;
}

int pst_engine_tokenizer_reserve(tokenizer_encoder *e, size_t n) {
  int r = pst_array_reserve((void **)&e->symbols, &e->symbols_capacity, n, sizeof *e->symbols);
  return r < 0 ? r : pst_array_reserve((void **)&e->heap, &e->heap_capacity, 3 * n, sizeof *e->heap);
}

/* The parts of the text that are trusted, in order, touching ones joined. */
typedef struct trusted_range {
  size_t start, end;
} trusted_range;

/* Appends a span as valid UTF-8. */
static int append_span(pst_str text, pst_buf *out, pst_buf *scratch) {
  if (!pst_utf8_valid(text)) {
    pst_buf_clear(scratch);
    pst_utf8_sanitize(text, scratch);
    if (pst_buf_status(scratch) < 0) return PST_E_NOMEM;
    text = pst_buf_str(scratch);
  }
  pst_buf_append_str(out, text);
  if (out->n > MAX_TEXT_BYTES) return PST_E_LIMIT;
  return pst_buf_status(out);
}

/* The byte at *i as the vocabulary spells text (a plain space for U+2581 where the file writes spaces so); moves *i behind it. */
static unsigned char next_byte(const pst_engine_tokenizer *t, pst_str text, size_t *i) {
  unsigned char byte = (unsigned char)text.data[*i];
  if (byte == 0xE2 && t->spaces_as_blocks && text.n - *i >= 3 && memcmp(text.data + *i, block, 3) == 0) {
    *i += 3;
    return ' ';
  }
  *i += 1;
  return byte;
}

/* End of the longest special token that begins at `at` and may; `at`: none does. Control tokens must end by trusted_end. */
static size_t match_special(const pst_engine_tokenizer *t, pst_str text, size_t at, size_t trusted_end,
                            int32_t *ret_id) {
  const unsigned guarded = PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_UNKNOWN;
  size_t i = at, match_end = at;
  uint32_t node = t->special_roots[next_byte(t, text, &i)];
  while (node) {
    uint32_t first = t->special.nodes[node].first, end = t->special.nodes[node + 1].first;
    for (uint32_t k = first; k < end; k++) {
      int32_t id = t->special.ids[k];
      if ((t->attributes[id] & guarded) && i > trusted_end) continue;
      match_end = i;
      *ret_id = id;
      break;
    }
    if (i >= text.n) break;
    node = pst_engine_token_trie_child(&t->special, node, next_byte(t, text, &i));
  }
  return match_end;
}

static size_t skip_space(pst_str text, size_t at) {
  while (at < text.n) {
    size_t next = at;
    if (!pst_unicode_is_space(pst_utf8_next(text.data, text.n, &next))) break;
    at = next;
  }
  return at;
}

/* Cuts special tokens out and encodes what lies between. */
static int encode_text(const pst_engine_tokenizer *t, tokenizer_encoder *e, pst_str text, const trusted_range *trusted,
                       size_t n_trusted) {
  int r = 0;
  size_t plain = 0, k = 0; /* start of the text not yet encoded; current trusted range */
  for (size_t at = 0; at < text.n && r == 0;) {
    while (k < n_trusted && trusted[k].end <= at) k++;
    size_t trusted_end = k < n_trusted && trusted[k].start <= at ? trusted[k].end : 0;
    int32_t id = -1;
    size_t end = match_special(t, text, at, trusted_end, &id);
    if (end == at) {
      at++;
      continue;
    }
    if (at > plain) r = t->encode(t, e, (pst_str){text.data + plain, at - plain});
    if (r == 0) r = pst_engine_tokenizer_put(e, id);
    e->last_unknown = false;
    plain = at = (t->attributes[id] & PST_ENGINE_TOKEN_RSTRIP) ? skip_space(text, end) : end;
  }
  if (r == 0 && text.n > plain) r = t->encode(t, e, (pst_str){text.data + plain, text.n - plain});
  return r;
}

static int encode_all(const pst_engine_tokenizer *t, tokenizer_encoder *e, const pst_engine_span *spans, size_t n_spans,
                      unsigned flags) {
  trusted_range *trusted = NULL;
  size_t n_trusted = 0, capacity = 0;
  int r = 0;
  for (size_t i = 0; i < n_spans && r == 0; i++) {
    size_t start = e->text.n;
    r = append_span(spans[i].text, &e->text, &e->second);
    if (r < 0 || !spans[i].trusted || e->text.n == start) continue;
    if (n_trusted && trusted[n_trusted - 1].end == start) {
      trusted[n_trusted - 1].end = e->text.n;
    } else if ((r = pst_array_reserve((void **)&trusted, &capacity, n_trusted + 1, sizeof *trusted)) == 0) {
      trusted[n_trusted++] = (trusted_range){start, e->text.n};
    }
  }
  const pst_engine_tokenizer_info *info = &t->info;
  if (r == 0 && (flags & PST_ENGINE_ENCODE_ADD_BOS) && info->add_bos && info->bos >= 0)
    r = pst_engine_tokenizer_put(e, info->bos);
  if (r == 0) r = encode_text(t, e, pst_buf_str(&e->text), trusted, n_trusted);
  int32_t eos = info->sep >= 0 ? info->sep : info->eos;
  if (r == 0 && (flags & PST_ENGINE_ENCODE_ADD_EOS) && info->add_eos && eos >= 0) r = pst_engine_tokenizer_put(e, eos);
  pst_free(trusted);
  return r;
}

int pst_engine_tokenizer_encode_spans(const pst_engine_tokenizer *t, const pst_engine_span *spans, size_t n_spans,
                                      unsigned flags, pst_engine_tokens *tokens, pst_error *err) {
  size_t n_before = tokens->n;
  tokenizer_encoder e = {.out = tokens};
  int r = encode_all(t, &e, spans, n_spans, flags);
  pst_free(e.symbols);
  pst_free(e.heap);
  pst_free(e.unused_parts);
  pst_buf_done(&e.text);
  pst_buf_done(&e.second);
  if (r == 0) return 0;
  tokens->n = n_before;
  return pst_error_set(err, r, NULL,
                       r == PST_E_LIMIT ? "the text is larger than 1 GiB" : "no memory to tokenize the text");
}

int pst_engine_tokenizer_encode(const pst_engine_tokenizer *t, pst_str text, unsigned flags, pst_engine_tokens *tokens,
                                pst_error *err) {
  pst_engine_span span = {text, (flags & PST_ENGINE_ENCODE_SPECIAL) != 0};
  return pst_engine_tokenizer_encode_spans(t, &span, 1, flags, tokens, err);
}

/* ---- decoding ---------------------------------------------------------------------------------------------------- */

void pst_engine_tokenizer_decode(const pst_engine_tokenizer *t, const int32_t *ids, size_t n, bool special,
                                 pst_buf *out) {
  const unsigned hidden = PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_UNKNOWN;
  for (size_t i = 0; i < n; i++)
    if (special || !(pst_engine_tokenizer_attributes(t, ids[i]) & hidden))
      pst_buf_append_str(out, pst_engine_tokenizer_bytes(t, ids[i]));
}

void pst_engine_text_stream_push(pst_engine_text_stream *s, pst_str bytes, pst_buf *out) {
  char joined[8];
  /* First the held bytes with just so many new ones as can complete them. */
  while (s->n_held && bytes.n) {
    memcpy(joined, s->held, s->n_held);
    joined[s->n_held] = bytes.data[0];
    pst_str whole = {joined, s->n_held + 1};
    size_t tail = pst_utf8_incomplete_tail(whole);
    bool starts_anew = tail > 0 && tail < whole.n; /* the held bytes are broken, and the new one begins something */
    if (!starts_anew) bytes = (pst_str){bytes.data + 1, bytes.n - 1};
    if (tail == whole.n) {
      memcpy(s->held, joined, whole.n);
      s->n_held = whole.n;
    } else {
      pst_utf8_sanitize((pst_str){joined, starts_anew ? s->n_held : whole.n}, out);
      s->n_held = 0;
    }
  }
  size_t tail = s->n_held ? 0 : pst_utf8_incomplete_tail(bytes);
  if (bytes.n > tail) pst_utf8_sanitize((pst_str){bytes.data, bytes.n - tail}, out);
  if (tail) {
    memcpy(s->held, bytes.data + bytes.n - tail, tail);
    s->n_held = tail;
  }
}

void pst_engine_text_stream_finish(pst_engine_text_stream *s, pst_buf *out) {
  if (s->n_held) pst_utf8_sanitize((pst_str){s->held, s->n_held}, out);
  s->n_held = 0;
}
