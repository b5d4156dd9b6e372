/* tokenizer.json and tokenizer_config.json as GGUF metadata.
 *
 * Owns the translation; what the entries mean is tokenizer.c's. What would be cut or merged another way than the file says is refused. */
#include <string.h>

#include "engine/checkpoint_impl.h"

enum { MAX_TOKENIZER = 256 << 20, MAX_VOCAB = 1 << 24 };

/* GGUF's numbers for kinds of tokens. */
enum { KIND_NORMAL = 1, KIND_UNKNOWN = 2, KIND_CONTROL = 3, KIND_USER_DEFINED = 4, KIND_UNUSED = 5, KIND_BYTE = 6 };

/* ---- vocabularies ---- */

typedef struct vocabulary {
  pst_str *tokens; /* [n] as tokenizer.json writes them; data NULL: no such id */
  uint8_t *kinds;
  size_t n;
} vocabulary;

static int put_token(const pst_engine_ckpt *d, vocabulary *v, int64_t id, pst_str text, uint8_t kind) {
  if (id < 0 || id >= MAX_VOCAB)
    return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: token id %lld is out of range",
                         (long long)id);
  if ((size_t)id >= v->n) return 0; /* beyond the model's rows: of other parts than text */
  v->tokens[id] = text;
  v->kinds[id] = kind;
  return 0;
}

static int64_t greatest_id(const pst_json *vocab, const pst_json *added) {
  int64_t last = -1;
  for (pst_json_iter it = pst_json_iterate(vocab); pst_json_next(&it);)
    last = PST_MAX(last, pst_json_int(it.value, INT64_MAX));
  for (pst_json_iter it = pst_json_iterate(added); pst_json_next(&it);)
    last = PST_MAX(last, pst_json_int(pst_json_get(it.value, "id"), INT64_MAX));
  return last;
}

/* Ids that no token has: of an embedding that was made larger than its vocabulary. */
static int fill_hole(const pst_engine_ckpt *d, vocabulary *v, size_t id) {
  const char *text = pst_arena_printf(d->arena, "[PAD%zu]", id);
  if (!text) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the vocabulary");
  v->tokens[id] = pst_str_from(text);
  v->kinds[id] = KIND_UNUSED;
  return 0;
}

/* n_rows: of the model's embedding, and so many tokens there will be; 0: as many as there are, without a hole. The texts are the document's. */
static int read_vocabulary(const pst_engine_ckpt *d, const pst_json *root, size_t n_rows, vocabulary *v) {
  const pst_json *model = pst_json_get(root, "model"), *added = pst_json_get(root, "added_tokens");
  const pst_json *vocab = pst_json_get(model, "vocab");
  pst_str unknown = pst_json_str(pst_json_get(model, "unk_token"));
  int64_t last = greatest_id(vocab, added);
  if (last < 0 || last >= MAX_VOCAB || n_rows > MAX_VOCAB)
    return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: no vocabulary, or an id beyond %d",
                         MAX_VOCAB);
  v->n = n_rows ? n_rows : (size_t)last + 1;
  v->tokens = pst_arena_calloc(d->arena, v->n, sizeof *v->tokens);
  v->kinds = pst_arena_calloc(d->arena, v->n, sizeof *v->kinds);
  if (!v->tokens || !v->kinds) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the vocabulary");
  int code = 0;
  for (pst_json_iter it = pst_json_iterate(vocab); !code && pst_json_next(&it);)
    code = put_token(d, v, pst_json_int(it.value, -1), it.key,
                     unknown.n && pst_str_equal(it.key, unknown) ? KIND_UNKNOWN : KIND_NORMAL);
  for (pst_json_iter it = pst_json_iterate(added); !code && pst_json_next(&it);) {
    pst_str text = pst_json_str(pst_json_get(it.value, "content"));
    bool special = pst_json_bool(pst_json_get(it.value, "special"), false);
    uint8_t kind = pst_str_equal(text, unknown) ? KIND_UNKNOWN : special ? KIND_CONTROL : KIND_USER_DEFINED;
    code = put_token(d, v, pst_json_int(pst_json_get(it.value, "id"), -1), text, kind);
  }
  for (size_t id = 0; id < v->n && !code; id++) {
    if (v->tokens[id].data) continue;
    code = n_rows ? fill_hole(d, v, id)
                  : pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: no token has the id %zu", id);
  }
  return code;
}

static void put_kinds(pst_engine_ckpt *d, const vocabulary *v) {
  pst_engine_ckpt_put_array(d, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_I32, v->n);
  for (size_t id = 0; id < v->n; id++) pst_engine_ckpt_add_u32(&d->values, v->kinds[id]);
}

static int put_special(pst_engine_ckpt *d, const vocabulary *v, const char *key, pst_str text, bool required) {
  for (size_t id = 0; id < v->n && text.n; id++)
    if (pst_str_equal(v->tokens[id], text)) {
      pst_engine_ckpt_put_int(d, key, (int64_t)id);
      return 0;
    }
  if (!required) return 0;
  return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: there is no token '%.*s'",
                       (int)PST_MIN(text.n, (size_t)40), text.data ? text.data : "");
}

/* What kind of tokenizer it is, for what kind of model. */
static int want_model(const pst_engine_ckpt *d, const pst_json *model, const char *kind, const char *of) {
  pst_str type = pst_json_str(pst_json_get(model, "type"));
  if (pst_str_is(type, kind)) return 0;
  return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                       "tokenizer.json: the model is of type '%.*s'; of %s only %s can be read from it, others from a "
                       "GGUF file",
                       (int)PST_MIN(type.n, (size_t)40), type.data ? type.data : "", of, kind);
}

/* ---- WordPiece ---- */

/* GGUF marks the tokens that begin a word, where WordPiece marks those that do not. */
static void put_pieces(pst_engine_ckpt *d, const vocabulary *v) {
  static const char mark[] = "\xE2\x96\x81";
  pst_engine_ckpt_put_array(d, "tokenizer.ggml.tokens", PST_ENGINE_GGUF_STR, v->n);
  for (size_t id = 0; id < v->n; id++) {
    pst_str t = v->tokens[id];
    bool plain = v->kinds[id] == KIND_NORMAL, inside = plain && t.n > 2 && !memcmp(t.data, "##", 2);
    if (inside) t = (pst_str){t.data + 2, t.n - 2};
    pst_engine_ckpt_add_u64(&d->values, t.n + (plain && !inside ? sizeof mark - 1 : 0));
    if (plain && !inside) pst_buf_append(&d->values, mark, sizeof mark - 1);
    pst_buf_append(&d->values, t.data, t.n);
  }
  put_kinds(d, v);
}

/* The tokens around one text: of a template, or of BERT's own post-processor. */
static int put_frame(pst_engine_ckpt *d, const vocabulary *v, const pst_json *post) {
  pst_str first = {NULL, 0}, last = {NULL, 0};
  if (pst_str_is(pst_json_str(pst_json_get(post, "type")), "BertProcessing")) {
    first = pst_json_str(pst_json_at(pst_json_get(post, "cls"), 0));
    last = pst_json_str(pst_json_at(pst_json_get(post, "sep"), 0));
  } else if (pst_str_is(pst_json_str(pst_json_get(post, "type")), "TemplateProcessing")) {
    const pst_json *single = pst_json_get(post, "single");
    bool three = pst_json_size(single) == 3 && pst_json_get(pst_json_at(single, 1), "Sequence");
    if (three) {
      first = pst_json_str(pst_json_get(pst_json_get(pst_json_at(single, 0), "SpecialToken"), "id"));
      last = pst_json_str(pst_json_get(pst_json_get(pst_json_at(single, 2), "SpecialToken"), "id"));
    }
  }
  if (!first.n || !last.n)
    return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "puts no two tokens around a text",
                                "post_processor");
  int code = put_special(d, v, "tokenizer.ggml.bos_token_id", first, true);
  if (!code) code = put_special(d, v, "tokenizer.ggml.eos_token_id", last, true);
  return code ? code : put_special(d, v, "tokenizer.ggml.seperator_token_id", last, true); /* the key is spelled so */
}

static int check_wordpiece(const pst_engine_ckpt *d, const pst_json *root) {
  const pst_json *model = pst_json_get(root, "model"), *normalizer = pst_json_get(root, "normalizer");
  int code = want_model(d, model, "WordPiece", "an encoder");
  if (!code) code = pst_engine_ckpt_want_text(d, "tokenizer.json", model, "continuing_subword_prefix", "##");
  if (!code) code = pst_engine_ckpt_want_text(d, "tokenizer.json", normalizer, "type", "BertNormalizer");
  if (!code)
    code =
        pst_engine_ckpt_want_text(d, "tokenizer.json", pst_json_get(root, "pre_tokenizer"), "type", "BertPreTokenizer");
  if (!code && pst_json_int(pst_json_get(model, "max_input_chars_per_word"), 100) != 100)
    code = pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "is not 100", "max_input_chars_per_word");
  if (!code && !pst_json_bool(pst_json_get(normalizer, "clean_text"), true))
    code = pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "is false", "clean_text");
  if (!code && !pst_json_bool(pst_json_get(normalizer, "handle_chinese_chars"), true))
    code = pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "is false", "handle_chinese_chars");
  return code;
}

int pst_engine_ckpt_put_wordpiece(pst_engine_ckpt *d) {
  pst_json_doc *doc = NULL;
  vocabulary v = {0};
  int code = pst_engine_ckpt_read_json(d, "tokenizer.json", MAX_TOKENIZER, &doc);
  if (code) return code;
  const pst_json *root = pst_json_root(doc), *normalizer = pst_json_get(root, "normalizer");
  if (!(code = check_wordpiece(d, root)) && !(code = read_vocabulary(d, root, 0, &v))) {
    bool lowercase = pst_json_bool(pst_json_get(normalizer, "lowercase"), true);
    pst_engine_ckpt_put_str(d, "tokenizer.ggml.model", PST_STR("bert"));
    put_pieces(d, &v);
    pst_engine_ckpt_put_bool(d, "tokenizer.ggml.normalizer.lowercase", lowercase);
    pst_engine_ckpt_put_bool(d, "tokenizer.ggml.normalizer.strip_accents",
                             pst_json_bool(pst_json_get(normalizer, "strip_accents"), lowercase));
    code = put_special(d, &v, "tokenizer.ggml.unknown_token_id",
                       pst_json_str(pst_json_get(pst_json_get(root, "model"), "unk_token")), true);
    if (!code) code = put_special(d, &v, "tokenizer.ggml.padding_token_id", PST_STR("[PAD]"), false);
    if (!code) code = put_special(d, &v, "tokenizer.ggml.mask_token_id", PST_STR("[MASK]"), false);
    if (!code) code = put_frame(d, &v, pst_json_get(root, "post_processor"));
  }
  pst_json_free(doc);
  return code;
}

/* ---- BPE ---- */

/* Merges: two tokens as one text with a space between, or as a list. */
static bool merge_of(const pst_json *v, pst_str *ret_left, pst_str *ret_right) {
  if (pst_json_typeof(v) == PST_JSON_ARRAY && pst_json_size(v) == 2) {
    *ret_left = pst_json_str(pst_json_at(v, 0));
    *ret_right = pst_json_str(pst_json_at(v, 1));
    return ret_left->n && ret_right->n;
  }
  pst_str s = pst_json_str(v);
  size_t space = s.n ? pst_str_find(s, PST_STR(" "), 1) : SIZE_MAX;
  if (space == SIZE_MAX || space + 1 >= s.n) return false;
  *ret_left = (pst_str){s.data, space};
  *ret_right = (pst_str){s.data + space + 1, s.n - space - 1};
  return true;
}

static int bad_merge(const pst_engine_ckpt *d, size_t i) {
  return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: merge %zu is not two tokens", i);
}

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPERS "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWERS "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LEAD "[^\\r\\n\\p{L}\\p{N}]?"
#define OTHERS "| ?[^\\s\\p{L}\\p{N}]+"

/* How a text is cut into words, by the expression in the file; the engine has each as code (tokenizer_pre.c). */
static const struct {
  const char *regex, *name;
  bool ignore_merges, nfc;
} splits[] = {
    {CONTRACTIONS "|" LEAD "\\p{L}+|\\p{N}{1,3}" OTHERS "[\\r\\n]*" SPACES, "llama-bpe", true, false},
    {CONTRACTIONS "|" LEAD "\\p{L}+|\\p{N}{1,3}" OTHERS "[\\r\\n]*" SPACES, "dbrx", false, false},
    {CONTRACTIONS "|" LEAD "\\p{L}+|\\p{N}" OTHERS "[\\r\\n]*" SPACES, "qwen2", false, true},
    {CONTRACTIONS "|" LEAD "[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" SPACES, "qwen35", false, true},
    {LEAD UPPERS "*" LOWERS "+" CONTRACTIONS "?|" LEAD UPPERS "+" LOWERS "*" CONTRACTIONS "?|\\p{N}{1,3}" OTHERS
                 "[\\r\\n/]*" SPACES,
     "gpt-4o", false, false},
    {LEAD UPPERS "*" LOWERS "+|" LEAD UPPERS "+" LOWERS "*|\\p{N}" OTHERS "[\\r\\n/]*" SPACES, "tekken", true, false},
};

/* The steps of a pre-tokenizer, whether it is one or a sequence. */
static const pst_json *step_of(const pst_json *pre, const char *list, size_t i) {
  const pst_json *steps = pst_json_get(pre, list);
  if (!steps) return i == 0 ? pre : NULL;
  return pst_json_at(steps, i);
}

static bool is_type(const pst_json *v, const char *type) {
  return pst_str_is(pst_json_str(pst_json_get(v, "type")), type);
}

/* NULL: none that the engine knows. */
static const char *pretokenizer_name(const pst_json *root) {
  const pst_json *pre = pst_json_get(root, "pre_tokenizer"), *first = step_of(pre, "pretokenizers", 0);
  const pst_json *second = step_of(pre, "pretokenizers", 1), *normalizer = pst_json_get(root, "normalizer");
  const pst_json *bytes = is_type(first, "ByteLevel") ? first : second;
  bool nfc = is_type(normalizer, "NFC"),
       ignore = pst_json_bool(pst_json_get(pst_json_get(root, "model"), "ignore_merges"), false);
  if (!is_type(bytes, "ByteLevel") || pst_json_bool(pst_json_get(bytes, "add_prefix_space"), false)) return NULL;
  if (step_of(pre, "pretokenizers", bytes == first ? 1 : 2) || (!nfc && !pst_engine_ckpt_absent(normalizer)))
    return NULL;
  if (pst_json_bool(pst_json_get(bytes, "use_regex"), true)) {
    if (nfc || ignore) return NULL;
    if (bytes == first) return "gpt-2";
    bool digits = is_type(first, "Digits") && pst_json_bool(pst_json_get(first, "individual_digits"), false);
    return digits ? "smollm" : NULL;
  }
  if (bytes == first || !is_type(first, "Split") || pst_json_bool(pst_json_get(first, "invert"), false) ||
      !pst_str_is(pst_json_str(pst_json_get(first, "behavior")), "Isolated"))
    return NULL;
  pst_str regex = pst_json_str(pst_json_get(pst_json_get(first, "pattern"), "Regex"));
  for (size_t i = 0; i < PST_ARRAY_LEN(splits); i++)
    if (pst_str_is(regex, splits[i].regex) && ignore == splits[i].ignore_merges && nfc == splits[i].nfc)
      return splits[i].name;
  return NULL;
}

static int put_merges(pst_engine_ckpt *d, const pst_json *root) {
  const pst_json *merges = pst_json_get(pst_json_get(root, "model"), "merges");
  pst_engine_ckpt_put_array(d, "tokenizer.ggml.merges", PST_ENGINE_GGUF_STR, pst_json_size(merges));
  size_t i = 0;
  for (pst_json_iter it = pst_json_iterate(merges); pst_json_next(&it); i++) {
    pst_str left, right;
    if (!merge_of(it.value, &left, &right)) return bad_merge(d, i);
    pst_engine_ckpt_add_u64(&d->values, left.n + 1 + right.n);
    pst_buf_append_str(&d->values, left);
    pst_buf_putc(&d->values, ' ');
    pst_buf_append_str(&d->values, right);
  }
  return 0;
}

/* Byte-level BPE, as GPT-2's. */
static int put_byte_level(pst_engine_ckpt *d, const pst_json *root) {
  const char *pre = pretokenizer_name(root);
  if (!pre)
    return pst_error_set(
        d->err, PST_E_UNSUPPORTED, d->path,
        "tokenizer.json: this pre_tokenizer, with this normalizer and ignore_merges, is not known here");
  pst_engine_ckpt_put_str(d, "tokenizer.ggml.model", PST_STR("gpt2"));
  pst_engine_ckpt_put_str(d, "tokenizer.ggml.pre", pst_str_from(pre));
  return put_merges(d, root);
}

/* Ids by text. */
typedef struct lookup {
  int32_t *ids; /* [mask + 1], -1: free */
  uint64_t mask;
  const vocabulary *v;
} lookup;

static uint64_t slot_of(const lookup *l, pst_str text) {
  uint64_t i = pst_hash64(text.data, text.n, 0) & l->mask;
  while (l->ids[i] >= 0 && !pst_str_equal(l->v->tokens[l->ids[i]], text)) i = (i + 1) & l->mask;
  return i;
}

static int build_lookup(const pst_engine_ckpt *d, const vocabulary *v, lookup *l) {
  uint64_t n = 16;
  while (n < 2 * (uint64_t)v->n) n *= 2;
  *l = (lookup){pst_arena_alloc(d->arena, n * sizeof *l->ids), n - 1, v};
  if (!l->ids) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the vocabulary");
  memset(l->ids, 0xFF, n * sizeof *l->ids);
  for (size_t id = 0; id < v->n; id++) l->ids[slot_of(l, v->tokens[id])] = (int32_t)id;
  return 0;
}

/* SentencePiece merges what scores highest; here the tokens that earlier merges make. */
static int put_scores(pst_engine_ckpt *d, const pst_json *merges, const vocabulary *v) {
  lookup l;
  int code = build_lookup(d, v, &l);
  float *scores = code ? NULL : pst_arena_calloc(d->arena, v->n, sizeof *scores);
  if (!code && !scores) code = pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the vocabulary");
  for (size_t id = 0; id < v->n && !code; id++) scores[id] = -1e9f;
  pst_buf whole = PST_BUF_INIT;
  size_t i = 0;
  for (pst_json_iter it = pst_json_iterate(merges); !code && pst_json_next(&it); i++) {
    pst_str left, right;
    if (!merge_of(it.value, &left, &right)) {
      code = bad_merge(d, i);
      break;
    }
    pst_buf_clear(&whole);
    pst_buf_append_str(&whole, left);
    pst_buf_append_str(&whole, right);
    if (pst_buf_status(&whole)) code = pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the vocabulary");
    int32_t id = code ? -1 : l.ids[slot_of(&l, pst_buf_str(&whole))];
    if (id >= 0 && scores[id] < -(float)i) scores[id] = -(float)i;
  }
  pst_buf_done(&whole);
  if (code) return code;
  pst_engine_ckpt_put_array(d, "tokenizer.ggml.scores", PST_ENGINE_GGUF_F32, v->n);
  for (size_t id = 0; id < v->n; id++) {
    uint32_t bits;
    memcpy(&bits, &scores[id], sizeof bits);
    pst_engine_ckpt_add_u32(&d->values, bits);
  }
  return 0;
}

static const char block[] = "\xE2\x96\x81"; /* U+2581, how SentencePiece writes a space */

static bool is_space_to_block(const pst_json *v) {
  return is_type(v, "Replace") && pst_str_is(pst_json_str(pst_json_get(v, "content")), block) &&
         pst_str_is(pst_json_str(pst_json_get(pst_json_get(v, "pattern"), "String")), " ");
}

/* Whether spaces become blocks, and one more stands before a text. */
static bool knows_spaces(const pst_json *root, bool *ret_prefix) {
  const pst_json *normalizer = pst_json_get(root, "normalizer"), *pre = pst_json_get(root, "pre_tokenizer");
  const pst_json *first = step_of(normalizer, "normalizers", 0), *second = step_of(normalizer, "normalizers", 1);
  *ret_prefix = false;
  if (pst_engine_ckpt_absent(normalizer)) {
    pst_str scheme = pst_json_str(pst_json_get(pre, "prepend_scheme"));
    *ret_prefix = pst_str_is(scheme, "always");
    return is_type(pre, "Metaspace") && pst_str_is(pst_json_str(pst_json_get(pre, "replacement")), block) &&
           !pst_json_bool(pst_json_get(pre, "split"), false) && (*ret_prefix || pst_str_is(scheme, "never"));
  }
  bool is_split =
      is_type(pre, "Split") && pst_str_is(pst_json_str(pst_json_get(pst_json_get(pre, "pattern"), "String")), " ");
  if (!pst_engine_ckpt_absent(pre) && !is_split) return false; /* no space is left to split at */
  if (is_space_to_block(first) && !second) return true;
  *ret_prefix = is_type(first, "Prepend") && pst_str_is(pst_json_str(pst_json_get(first, "prepend")), block);
  return *ret_prefix && is_space_to_block(second) && !step_of(normalizer, "normalizers", 2);
}

/* BPE that falls back to bytes, as Llama 2's and Gemma's. Where a space comes before every text only SentencePiece's kind knows that. */
static int put_sentencepiece(pst_engine_ckpt *d, const pst_json *root, vocabulary *v) {
  bool prefix = false;
  const pst_json *model = pst_json_get(root, "model");
  if (!knows_spaces(root, &prefix))
    return pst_error_set(
        d->err, PST_E_UNSUPPORTED, d->path,
        "tokenizer.json: this normalizer and pre_tokenizer treat spaces in a way that is not known here");
  for (size_t id = 0; id < v->n; id++) {
    pst_str t = v->tokens[id];
    if (v->kinds[id] == KIND_NORMAL && t.n == 6 && !memcmp(t.data, "<0x", 3) && t.data[5] == '>')
      v->kinds[id] = KIND_BYTE;
  }
  pst_engine_ckpt_put_str(d, "tokenizer.ggml.model", prefix ? PST_STR("llama") : PST_STR("gemma4"));
  pst_engine_ckpt_put_bool(d, "tokenizer.ggml.add_space_prefix", prefix);
  int code = prefix ? put_scores(d, pst_json_get(model, "merges"), v) : put_merges(d, root);
  return code ? code
              : put_special(d, v, "tokenizer.ggml.unknown_token_id", pst_json_str(pst_json_get(model, "unk_token")),
                            false);
}

/* ---- what stands around a text ---- */

static const pst_json *find_template(const pst_json *root) {
  const pst_json *post = pst_json_get(root, "post_processor");
  for (size_t i = 0;; i++) {
    const pst_json *step = step_of(post, "processors", i);
    if (!step || is_type(step, "TemplateProcessing")) return step;
  }
}

static pst_str special_of(const pst_json *piece) {
  return pst_json_str(pst_json_get(pst_json_get(piece, "SpecialToken"), "id"));
}

/* A token of tokenizer_config.json: its text, or an object about it. */
static pst_str named_token(const pst_json *settings, const char *name) {
  const pst_json *v = pst_json_get(settings, name);
  return pst_json_str(pst_json_typeof(v) == PST_JSON_OBJECT ? pst_json_get(v, "content") : v);
}

/* The id by name, else the first that config.json gives. */
static int put_end(pst_engine_ckpt *d, const vocabulary *v, const pst_json *settings, const char *name,
                   const char *id_name, const char *key) {
  pst_str text = named_token(settings, name);
  const pst_json *id = pst_json_get(d->config, id_name);
  if (text.n) return put_special(d, v, key, text, true);
  if (pst_json_typeof(id) == PST_JSON_ARRAY) id = pst_json_at(id, 0);
  if (pst_json_is_int(id) && pst_json_int(id, -1) >= 0) pst_engine_ckpt_put_int(d, key, pst_json_int(id, 0));
  return 0;
}

/* At most one token before a text and one behind it. */
static int put_ends(pst_engine_ckpt *d, const vocabulary *v, const pst_json *root, const pst_json *settings) {
  const pst_json *single = pst_json_get(find_template(root), "single");
  size_t n = pst_json_size(single), at = 0;
  while (at < n && !pst_json_get(pst_json_at(single, at), "Sequence")) at++;
  if (n && (at > 1 || n - at > 2))
    return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "puts several tokens before or behind a text",
                                "post_processor");
  bool before = n ? at == 1 : pst_json_bool(pst_json_get(settings, "add_bos_token"), false);
  bool behind = n ? n - at == 2 : pst_json_bool(pst_json_get(settings, "add_eos_token"), false);
  pst_engine_ckpt_put_bool(d, "tokenizer.ggml.add_bos_token", before);
  pst_engine_ckpt_put_bool(d, "tokenizer.ggml.add_eos_token", behind);
  int code = at == 1 ? put_special(d, v, "tokenizer.ggml.bos_token_id", special_of(pst_json_at(single, 0)), true)
                     : put_end(d, v, settings, "bos_token", "bos_token_id", "tokenizer.ggml.bos_token_id");
  if (code) return code;
  return n && behind ? put_special(d, v, "tokenizer.ggml.eos_token_id", special_of(pst_json_at(single, at + 1)), true)
                     : put_end(d, v, settings, "eos_token", "eos_token_id", "tokenizer.ggml.eos_token_id");
}

/* Special tokens that take white space along. GGUF cannot say so, but the engine knows Phi-3 by name (tokenizer.c). */
static int check_stripping(pst_engine_ckpt *d, const pst_json *root) {
  bool strips = false;
  for (pst_json_iter it = pst_json_iterate(pst_json_get(root, "added_tokens")); pst_json_next(&it);)
    strips |= pst_json_bool(pst_json_get(it.value, "rstrip"), false) ||
              pst_json_bool(pst_json_get(it.value, "lstrip"), false);
  if (strips && !strcmp(d->architecture, "phi3"))
    pst_engine_ckpt_put_str(d, "general.name", PST_STR("Phi-3"));
  else if (strips)
    return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "take white space along (lstrip, rstrip)",
                                "added_tokens");
  return 0;
}

/* ---- chat template ---- */

static int put_template(pst_engine_ckpt *d, const pst_json *settings) {
  static const char file[] = "chat_template.jinja";
  const pst_json *v = pst_json_get(settings, "chat_template");
  if (pst_engine_ckpt_has_file(d, file)) {
    char *path = pst_path_join(d->path, file), *text = NULL;
    size_t n = 0;
    int code = path ? pst_file_read(path, PST_ENGINE_CKPT_MAX_CONFIG, &text, &n, d->err)
                    : pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
    if (!code) pst_engine_ckpt_put_str(d, "tokenizer.chat_template", (pst_str){text, n});
    pst_free(path);
    pst_free(text);
    return code;
  }
  for (pst_json_iter it = pst_json_iterate(v); pst_json_typeof(v) == PST_JSON_ARRAY && pst_json_next(&it);)
    if (pst_str_is(pst_json_str(pst_json_get(it.value, "name")), "default")) {
      v = pst_json_get(it.value, "template");
      break;
    }
  if (pst_json_typeof(v) == PST_JSON_STRING) pst_engine_ckpt_put_str(d, "tokenizer.chat_template", pst_json_str(v));
  return 0;
}

static int put_bpe_from(pst_engine_ckpt *d, const pst_json *root, const pst_json *settings) {
  const pst_json *model = pst_json_get(root, "model"), *rows = pst_json_get(d->config, "vocab_size");
  vocabulary v = {0};
  int64_t n_rows = pst_json_int(rows, 0);
  if (n_rows < 1 || n_rows > MAX_VOCAB)
    return pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "is missing, or no sound number", "vocab_size");
  int code = want_model(d, model, "BPE", "a decoder");
  if (!code) code = pst_engine_ckpt_want_text(d, "tokenizer.json", model, "continuing_subword_prefix", "");
  if (!code) code = pst_engine_ckpt_want_text(d, "tokenizer.json", model, "end_of_word_suffix", "");
  if (!code) code = check_stripping(d, root);
  if (!code) code = read_vocabulary(d, root, (size_t)n_rows, &v);
  if (!code)
    code = pst_json_bool(pst_json_get(model, "byte_fallback"), false) ? put_sentencepiece(d, root, &v)
                                                                      : put_byte_level(d, root);
  if (code) return code;
  pst_engine_ckpt_put_array(d, "tokenizer.ggml.tokens", PST_ENGINE_GGUF_STR, v.n);
  for (size_t id = 0; id < v.n; id++) pst_engine_ckpt_add_str(&d->values, v.tokens[id]);
  put_kinds(d, &v);
  code = put_ends(d, &v, root, settings);
  return code ? code : put_template(d, settings);
}

int pst_engine_ckpt_put_bpe(pst_engine_ckpt *d) {
  pst_json_doc *doc = NULL, *settings = NULL;
  int code = pst_engine_ckpt_read_json(d, "tokenizer.json", MAX_TOKENIZER, &doc);
  if (!code && pst_engine_ckpt_has_file(d, "tokenizer_config.json"))
    code = pst_engine_ckpt_read_json(d, "tokenizer_config.json", PST_ENGINE_CKPT_MAX_CONFIG, &settings);
  if (!code) code = put_bpe_from(d, pst_json_root(doc), settings ? pst_json_root(settings) : NULL);
  pst_json_free(doc);
  pst_json_free(settings);
  return code;
}
