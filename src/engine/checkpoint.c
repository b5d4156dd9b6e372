/* From config.json, tokenizer.json and the names of a safetensors file to the keys and names of GGUF.
 *
 * Owns the translation; formats are safetensors.c's and gguf.c's, and what the keys mean is model.c's, which checks them as it checks any file's. To add an
 * architecture: a row in `families` with its keys and the names of its tensors. A setting that is not translated must be refused where it could
 * change what the model computes. */
#include "engine/checkpoint.h"

#include <string.h>

#include "engine/safetensors.h"

enum { MAX_CONFIG = 16 << 20, MAX_TOKENIZER = 256 << 20, MAX_VOCAB = 1 << 24 };

/* GGUF's numbers for kinds of tokens. */
enum { KIND_NORMAL = 1, KIND_UNKNOWN = 2, KIND_CONTROL = 3, KIND_USER_DEFINED = 4 };

typedef struct description {
  const char *path; /* the folder */
  const pst_json *config;
  const char *architecture;
  pst_arena *arena;
  pst_buf values; /* the metadata's entries, as in a GGUF file */
  uint64_t n_values;
  pst_error *err;
} description;

/* ---- writing metadata ---- */

static void put_u32(pst_buf *out, uint32_t v) {
  const uint8_t bytes[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
  pst_buf_append(out, bytes, sizeof bytes);
}

static void put_u64(pst_buf *out, uint64_t v) {
  put_u32(out, (uint32_t)v);
  put_u32(out, (uint32_t)(v >> 32));
}

static void put_str(pst_buf *out, pst_str s) {
  put_u64(out, s.n);
  pst_buf_append(out, s.data, s.n);
}

/* A key; without a dot it belongs to the architecture. */
static void put_key(description *d, const char *name, pst_engine_gguf_kind kind) {
  char key[128];
  bool whole = !strncmp(name, "general.", 8) || !strncmp(name, "tokenizer.", 10);
  snprintf(key, sizeof key, "%s%s%s", whole ? "" : d->architecture, whole ? "" : ".", name);
  put_str(&d->values, pst_str_from(key));
  put_u32(&d->values, kind);
  d->n_values++;
}

static void put_int_key(description *d, const char *name, int64_t value) {
  put_key(d, name, PST_ENGINE_GGUF_U32);
  put_u32(&d->values, (uint32_t)value);
}

static void put_float_key(description *d, const char *name, double value) {
  float f = (float)value;
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  put_key(d, name, PST_ENGINE_GGUF_F32);
  put_u32(&d->values, bits);
}

static void put_bool_key(description *d, const char *name, bool value) {
  put_key(d, name, PST_ENGINE_GGUF_BOOL);
  pst_buf_putc(&d->values, value);
}

static void put_str_key(description *d, const char *name, const char *value) {
  put_key(d, name, PST_ENGINE_GGUF_STR);
  put_str(&d->values, pst_str_from(value));
}

static void put_array_key(description *d, const char *name, pst_engine_gguf_kind element, uint64_t n) {
  put_key(d, name, PST_ENGINE_GGUF_ARRAY);
  put_u32(&d->values, element);
  put_u64(&d->values, n);
}

/* ---- reading JSON ---- */

static int fail(const description *d, int code, const char *file, const char *what, const char *name) {
  return pst_error_set(d->err, code, d->path, "%s: '%s' %s", file, name, what);
}

/* A member of config.json as a key; the number is required. */
static int copy_int(description *d, const char *member, const char *key) {
  const pst_json *v = pst_json_get(d->config, member);
  int64_t i = pst_json_int(v, -1);
  if (!pst_json_is_int(v) || i < 0 || i > INT32_MAX)
    return fail(d, PST_E_BAD_INPUT, "config.json", "is missing, or not a number from 0 on", member);
  put_int_key(d, key, i);
  return 0;
}

static int copy_float(description *d, const char *member, const char *key, double fallback) {
  const pst_json *v = pst_json_get(d->config, member);
  if (v && pst_json_typeof(v) != PST_JSON_NUMBER)
    return fail(d, PST_E_BAD_INPUT, "config.json", "is not a number", member);
  put_float_key(d, key, pst_json_double(v, fallback));
  return 0;
}

/* A member that may be absent, null, or this text, and nothing else. */
static int want_text(const description *d, const char *file, const pst_json *object, const char *member,
                     const char *text) {
  const pst_json *v = pst_json_get(object, member);
  if (pst_json_typeof(v) == PST_JSON_NONE || pst_json_typeof(v) == PST_JSON_NULL) return 0;
  if (pst_json_typeof(v) == PST_JSON_STRING && pst_str_is(pst_json_str(v), text)) return 0;
  pst_str got = pst_json_str(v);
  return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path, "%s: '%s' is '%.*s'; only '%s' is known here", file, member,
                       (int)PST_MIN(got.n, (size_t)40), got.data ? got.data : "", text);
}

static int read_json(const description *d, const char *name, size_t max_bytes, pst_json_doc **ret_doc) {
  char *path = pst_path_join(d->path, name);
  if (!path) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
  int code = pst_json_parse_file(path, max_bytes, ret_doc, d->err);
  pst_free(path);
  return code;
}

/* ---- WordPiece ---- */

typedef struct vocabulary {
  pst_str *tokens; /* [n] as tokenizer.json writes them; data NULL: no such id */
  uint8_t *kinds;
  size_t n;
} vocabulary;

static int put_token(const description *d, vocabulary *v, int64_t id, pst_str text, uint8_t kind) {
  if (id < 0 || (size_t)id >= v->n)
    return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: token id %lld is out of range",
                         (long long)id);
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

static int read_vocabulary(const description *d, const pst_json *root, vocabulary *v) {
  const pst_json *model = pst_json_get(root, "model"), *added = pst_json_get(root, "added_tokens");
  const pst_json *vocab = pst_json_get(model, "vocab");
  pst_str unknown = pst_json_str(pst_json_get(model, "unk_token"));
  int64_t last = greatest_id(vocab, added);
  if (last < 0 || last >= MAX_VOCAB)
    return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: no vocabulary, or an id beyond %d",
                         MAX_VOCAB);
  v->n = (size_t)last + 1;
  v->tokens = pst_arena_calloc(d->arena, v->n, sizeof *v->tokens);
  v->kinds = pst_arena_calloc(d->arena, v->n, sizeof *v->kinds);
  if (!v->tokens || !v->kinds) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the vocabulary");
  int code = 0;
  for (pst_json_iter it = pst_json_iterate(vocab); !code && pst_json_next(&it);)
    code = put_token(d, v, pst_json_int(it.value, -1), it.key, KIND_NORMAL);
  for (pst_json_iter it = pst_json_iterate(added); !code && pst_json_next(&it);) {
    pst_str text = pst_json_str(pst_json_get(it.value, "content"));
    bool special = pst_json_bool(pst_json_get(it.value, "special"), false);
    uint8_t kind = pst_str_equal(text, unknown) ? KIND_UNKNOWN : special ? KIND_CONTROL : KIND_USER_DEFINED;
    code = put_token(d, v, pst_json_int(pst_json_get(it.value, "id"), -1), text, kind);
  }
  for (size_t id = 0; id < v->n && !code; id++)
    if (!v->tokens[id].data)
      code = pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: no token has the id %zu", id);
  return code;
}

/* GGUF marks the tokens that begin a word, where WordPiece marks those that do not. */
static void put_vocabulary(description *d, const vocabulary *v) {
  static const char mark[] = "\xE2\x96\x81";
  put_array_key(d, "tokenizer.ggml.tokens", PST_ENGINE_GGUF_STR, v->n);
  for (size_t id = 0; id < v->n; id++) {
    pst_str t = v->tokens[id];
    bool plain = v->kinds[id] == KIND_NORMAL, inside = plain && t.n > 2 && !memcmp(t.data, "##", 2);
    if (inside) t = (pst_str){t.data + 2, t.n - 2};
    put_u64(&d->values, t.n + (plain && !inside ? sizeof mark - 1 : 0));
    if (plain && !inside) pst_buf_append(&d->values, mark, sizeof mark - 1);
    pst_buf_append(&d->values, t.data, t.n);
  }
  put_array_key(d, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_I32, v->n);
  for (size_t id = 0; id < v->n; id++) put_u32(&d->values, v->kinds[id]);
}

static int put_special(description *d, const vocabulary *v, const char *key, pst_str text, bool required) {
  for (size_t id = 0; id < v->n; id++)
    if (pst_str_equal(v->tokens[id], text)) {
      put_int_key(d, key, (int64_t)id);
      return 0;
    }
  if (!required) return 0;
  return pst_error_set(d->err, PST_E_BAD_INPUT, d->path, "tokenizer.json: there is no token '%.*s'",
                       (int)PST_MIN(text.n, (size_t)40), text.data);
}

/* The tokens around one text: of a template, or of BERT's own post-processor. */
static int put_frame(description *d, const vocabulary *v, const pst_json *post) {
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
  if (!first.data || !last.data)
    return fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "puts no two tokens around a text", "post_processor");
  int code = put_special(d, v, "tokenizer.ggml.bos_token_id", first, true);
  if (!code) code = put_special(d, v, "tokenizer.ggml.eos_token_id", last, true);
  return code ? code : put_special(d, v, "tokenizer.ggml.seperator_token_id", last, true); /* the key is spelled so */
}

static int check_wordpiece(const description *d, const pst_json *root) {
  const pst_json *model = pst_json_get(root, "model"), *normalizer = pst_json_get(root, "normalizer");
  pst_str kind = pst_json_str(pst_json_get(model, "type"));
  if (!pst_str_is(kind, "WordPiece"))
    return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                         "tokenizer.json: the model is of type '%.*s'; WordPiece can be read from it, others from a "
                         "GGUF file",
                         (int)PST_MIN(kind.n, (size_t)40), kind.data ? kind.data : "");
  int code = want_text(d, "tokenizer.json", model, "continuing_subword_prefix", "##");
  if (!code) code = want_text(d, "tokenizer.json", normalizer, "type", "BertNormalizer");
  if (!code) code = want_text(d, "tokenizer.json", pst_json_get(root, "pre_tokenizer"), "type", "BertPreTokenizer");
  if (!code && pst_json_int(pst_json_get(model, "max_input_chars_per_word"), 100) != 100)
    code = fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "is not 100", "max_input_chars_per_word");
  if (!code && !pst_json_bool(pst_json_get(normalizer, "clean_text"), true))
    code = fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "is false", "clean_text");
  if (!code && !pst_json_bool(pst_json_get(normalizer, "handle_chinese_chars"), true))
    code = fail(d, PST_E_UNSUPPORTED, "tokenizer.json", "is false", "handle_chinese_chars");
  return code;
}

static int put_wordpiece(description *d) {
  pst_json_doc *doc = NULL;
  vocabulary v = {0};
  int code = read_json(d, "tokenizer.json", MAX_TOKENIZER, &doc);
  if (code) return code;
  const pst_json *root = pst_json_root(doc), *normalizer = pst_json_get(root, "normalizer");
  if (!(code = check_wordpiece(d, root)) && !(code = read_vocabulary(d, root, &v))) {
    bool lowercase = pst_json_bool(pst_json_get(normalizer, "lowercase"), true);
    put_str_key(d, "tokenizer.ggml.model", "bert");
    put_vocabulary(d, &v);
    put_bool_key(d, "tokenizer.ggml.normalizer.lowercase", lowercase);
    put_bool_key(d, "tokenizer.ggml.normalizer.strip_accents",
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

/* ---- pooling, as sentence-transformers writes it beside the model ---- */

static int put_pooling(description *d) {
  static const struct {
    const char *member, *name;
    int type; /* 0: not known to the engine */
  } modes[] = {{"pooling_mode_mean_tokens", "mean", 1},
               {"pooling_mode_cls_token", "cls", 2},
               {"pooling_mode_lasttoken", "lasttoken", 3},
               {"pooling_mode_max_tokens", "max", 0},
               {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", 0},
               {"pooling_mode_weightedmean_tokens", "weightedmean", 0}};
  char *path = pst_path_join(d->path, "1_Pooling/config.json");
  pst_json_doc *doc = NULL;
  if (!path) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
  int code = pst_file_exists(path) ? pst_json_parse_file(path, MAX_CONFIG, &doc, d->err) : 0, n = 0, type = 1;
  pst_free(path);
  if (code || !doc) return code; /* without a word on it: the mean, as model.c has it */
  const pst_json *root = pst_json_root(doc);
  pst_str mode = pst_json_str(pst_json_get(root, "pooling_mode"));
  for (size_t i = 0; i < PST_ARRAY_LEN(modes); i++) {
    if (!pst_json_bool(pst_json_get(root, modes[i].member), false) && !pst_str_is(mode, modes[i].name)) continue;
    type = modes[i].type;
    n++;
  }
  if (n != 1 || type == 0)
    code =
        fail(d, PST_E_UNSUPPORTED, "1_Pooling/config.json", "must be one of mean, cls and lasttoken", "pooling_mode");
  else
    put_int_key(d, "pooling_type", type);
  pst_json_free(doc);
  return code;
}

/* ---- families ---- */

/* Names of tensors, * standing for the layer. ours NULL: of no use here. */
typedef struct rule {
  const char *theirs, *ours;
} rule;

typedef struct family {
  const char *model_type, *architecture;
  int (*keys)(description *d);
  const rule *rules;
  size_t n_rules;
} family;

static int common_keys(description *d) {
  int code = copy_int(d, "num_hidden_layers", "block_count");
  if (!code) code = copy_int(d, "max_position_embeddings", "context_length");
  if (!code) code = copy_int(d, "hidden_size", "embedding_length");
  if (!code) code = copy_int(d, "intermediate_size", "feed_forward_length");
  if (!code) code = copy_int(d, "num_attention_heads", "attention.head_count");
  if (!code) code = copy_int(d, "type_vocab_size", "tokenizer.ggml.token_type_count");
  if (!code) code = copy_float(d, "layer_norm_eps", "attention.layer_norm_epsilon", 1e-12);
  if (!code) code = put_pooling(d);
  return code ? code : put_wordpiece(d);
}

static int bert_keys(description *d) {
  int code = want_text(d, "config.json", d->config, "hidden_act", "gelu");
  if (!code) code = want_text(d, "config.json", d->config, "position_embedding_type", "absolute");
  if (!code && pst_json_bool(pst_json_get(d->config, "is_decoder"), false))
    code = fail(d, PST_E_UNSUPPORTED, "config.json", "is true", "is_decoder");
  return code ? code : common_keys(d);
}

static int nomic_bert_keys(description *d) {
  const pst_json *rope = pst_json_get(d->config, "rope_parameters");
  int code = want_text(d, "config.json", d->config, "hidden_act", "silu");
  if (!code) code = want_text(d, "config.json", rope, "rope_type", "default");
  if (!code) put_float_key(d, "rope.freq_base", pst_json_double(pst_json_get(rope, "rope_theta"), 1000));
  return code ? code : common_keys(d);
}

static const rule bert_rules[] = {
    {"embeddings.word_embeddings.weight", "token_embd.weight"},
    {"embeddings.position_embeddings.weight", "position_embd.weight"},
    {"embeddings.token_type_embeddings.weight", "token_types.weight"},
    {"embeddings.LayerNorm.weight", "token_embd_norm.weight"},
    {"embeddings.LayerNorm.bias", "token_embd_norm.bias"},
    {"encoder.layer.*.attention.self.query.weight", "blk.*.attn_q.weight"},
    {"encoder.layer.*.attention.self.query.bias", "blk.*.attn_q.bias"},
    {"encoder.layer.*.attention.self.key.weight", "blk.*.attn_k.weight"},
    {"encoder.layer.*.attention.self.key.bias", "blk.*.attn_k.bias"},
    {"encoder.layer.*.attention.self.value.weight", "blk.*.attn_v.weight"},
    {"encoder.layer.*.attention.self.value.bias", "blk.*.attn_v.bias"},
    {"encoder.layer.*.attention.output.dense.weight", "blk.*.attn_output.weight"},
    {"encoder.layer.*.attention.output.dense.bias", "blk.*.attn_output.bias"},
    {"encoder.layer.*.attention.output.LayerNorm.weight", "blk.*.attn_output_norm.weight"},
    {"encoder.layer.*.attention.output.LayerNorm.bias", "blk.*.attn_output_norm.bias"},
    {"encoder.layer.*.intermediate.dense.weight", "blk.*.ffn_up.weight"},
    {"encoder.layer.*.intermediate.dense.bias", "blk.*.ffn_up.bias"},
    {"encoder.layer.*.output.dense.weight", "blk.*.ffn_down.weight"},
    {"encoder.layer.*.output.dense.bias", "blk.*.ffn_down.bias"},
    {"encoder.layer.*.output.LayerNorm.weight", "blk.*.layer_output_norm.weight"},
    {"encoder.layer.*.output.LayerNorm.bias", "blk.*.layer_output_norm.bias"},
    {"embeddings.position_ids", NULL}, /* 0, 1, 2, ... */
    {"pooler.dense.weight", NULL},     /* of the pre-training's second task */
    {"pooler.dense.bias", NULL},
};

static const rule nomic_bert_rules[] = {
    {"embeddings.word_embeddings.weight", "token_embd.weight"},
    {"embeddings.token_type_embeddings.weight", "token_types.weight"},
    {"embeddings.LayerNorm.weight", "token_embd_norm.weight"},
    {"embeddings.LayerNorm.bias", "token_embd_norm.bias"},
    {"layers.*.self_attn.q_proj.weight", "blk.*.attn_q.weight"},
    {"layers.*.self_attn.k_proj.weight", "blk.*.attn_k.weight"},
    {"layers.*.self_attn.v_proj.weight", "blk.*.attn_v.weight"},
    {"layers.*.self_attn.o_proj.weight", "blk.*.attn_output.weight"},
    {"layers.*.post_attention_layernorm.weight", "blk.*.attn_output_norm.weight"},
    {"layers.*.post_attention_layernorm.bias", "blk.*.attn_output_norm.bias"},
    {"layers.*.mlp.gate_proj.weight", "blk.*.ffn_gate.weight"},
    {"layers.*.mlp.up_proj.weight", "blk.*.ffn_up.weight"},
    {"layers.*.mlp.down_proj.weight", "blk.*.ffn_down.weight"},
    {"layers.*.post_mlp_layernorm.weight", "blk.*.layer_output_norm.weight"},
    {"layers.*.post_mlp_layernorm.bias", "blk.*.layer_output_norm.bias"},
};

static const family families[] = {
    {"bert", "bert", bert_keys, bert_rules, PST_ARRAY_LEN(bert_rules)},
    {"nomic_bert", "nomic-bert", nomic_bert_keys, nomic_bert_rules, PST_ARRAY_LEN(nomic_bert_rules)},
};

static const family *find_family(const description *d) {
  pst_str type = pst_json_str(pst_json_get(d->config, "model_type"));
  pst_buf known = PST_BUF_INIT;
  for (size_t i = 0; i < PST_ARRAY_LEN(families); i++) {
    if (pst_str_is(type, families[i].model_type)) {
      pst_buf_done(&known);
      return &families[i];
    }
    pst_buf_printf(&known, "%s%s", i ? ", " : "", families[i].model_type);
  }
  pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                "config.json: model_type '%.*s' is not known as safetensors; known are %s; others load as GGUF files",
                (int)PST_MIN(type.n, (size_t)60), type.data ? type.data : "", pst_buf_text(&known));
  pst_buf_done(&known);
  return NULL;
}

/* ---- tensors ---- */

/* Whether `name` is what the pattern says; *ret_layer: the number where the pattern has its *. */
static bool matches(const char *pattern, pst_str name, int *ret_layer) {
  size_t at = 0;
  for (; *pattern; pattern++) {
    if (*pattern != '*') {
      if (at == name.n || name.data[at++] != *pattern) return false;
      continue;
    }
    size_t start = at;
    for (*ret_layer = 0; at < name.n && at - start < 5 && name.data[at] >= '0' && name.data[at] <= '9'; at++)
      *ret_layer = *ret_layer * 10 + (name.data[at] - '0');
    if (at == start) return false;
  }
  return at == name.n;
}

static pst_str our_name(const description *d, const char *ours, int layer) {
  const char *star = strchr(ours, '*');
  const char *text = star ? pst_arena_printf(d->arena, "%.*s%d%s", (int)(star - ours), ours, layer, star + 1) : ours;
  return pst_str_from(text);
}

/* Renames tensors in place and drops those of no use; *n: before and after. */
static int rename_tensors(const description *d, const family *f, pst_engine_gguf_tensor *tensors, size_t *n) {
  size_t kept = 0;
  for (size_t i = 0; i < *n; i++) {
    pst_engine_gguf_tensor t = tensors[i];
    pst_str name = t.name, prefix = PST_STR("bert.");
    int layer = 0;
    size_t k = 0;
    if (pst_str_starts(name, prefix)) name = (pst_str){name.data + prefix.n, name.n - prefix.n};
    if (pst_str_starts(name, PST_STR("cls."))) continue; /* heads of the pre-training */
    while (k < f->n_rules && !matches(f->rules[k].theirs, name, &layer)) k++;
    if (k == f->n_rules)
      return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                           "tensor '%.*s' has no place in model_type %s as this program knows it",
                           (int)PST_MIN(name.n, (size_t)100), name.data, f->model_type);
    if (!f->rules[k].ours) continue;
    if (t.type == PST_ENGINE_SAFETENSORS_OTHER)
      return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path, "tensor '%.*s' is not F32, F16 or BF16",
                           (int)PST_MIN(name.n, (size_t)100), name.data);
    t.name = our_name(d, f->rules[k].ours, layer);
    if (!t.name.data) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the tensor table");
    tensors[kept++] = t;
  }
  *n = kept;
  return 0;
}

/* ---- opening ---- */

static int describe(description *d) {
  const family *f = find_family(d);
  if (!f) return PST_E_UNSUPPORTED;
  d->architecture = f->architecture;
  put_str_key(d, "general.architecture", f->architecture);
  return f->keys(d);
}

static int open_weights(const description *d, pst_map *ret_map, char **ret_path) {
  char *path = pst_path_join(d->path, "model.safetensors"),
       *index = pst_path_join(d->path, "model.safetensors.index.json");
  int code = 0;
  if (!path || !index)
    code = pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
  else if (!pst_file_exists(path) && pst_file_exists(index))
    code = pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                         "the weights are in several files; only one model.safetensors can be read");
  else
    code = pst_map_open(path, ret_map, d->err);
  pst_free(index);
  if (code)
    pst_free(path);
  else
    *ret_path = path;
  return code;
}

static int open_folder(description *d, pst_engine_gguf **ret_gguf) {
  pst_engine_gguf_parts parts = {.arena = d->arena};
  char *weights = NULL;
  pst_json_doc *config = NULL;
  int code = read_json(d, "config.json", MAX_CONFIG, &config);
  if (code) return code;
  d->config = pst_json_root(config);
  code = describe(d);
  if (!code && pst_buf_status(&d->values)) code = pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory for the keys");
  if (!code) code = open_weights(d, &parts.map, &weights);
  if (code) goto done;
  pst_engine_gguf_tensor *tensors = NULL;
  code = pst_engine_safetensors_read(&parts.map, weights, d->arena, &tensors, &parts.n_tensors, d->err);
  if (!code) code = rename_tensors(d, find_family(d), tensors, &parts.n_tensors);
  parts.tensors = tensors;
  parts.values = pst_buf_str(&d->values);
  parts.n_values = d->n_values;
  if (!code) code = pst_engine_gguf_assemble(&parts, d->path, ret_gguf, d->err);
  if (code)
    pst_map_close(&parts.map);
  else
    d->arena = NULL; /* the file's now */
done:
  pst_free(weights);
  pst_json_free(config);
  return code;
}

int pst_engine_checkpoint_open(const char *path, pst_engine_gguf **ret_gguf, pst_error *err) {
  if (!pst_dir_exists(path)) return pst_engine_gguf_open(path, ret_gguf, err);
  description d = {.path = path, .arena = pst_arena_create(), .values = PST_BUF_INIT, .err = err};
  int code = d.arena ? open_folder(&d, ret_gguf) : pst_error_set(err, PST_E_NOMEM, path, "no memory");
  pst_buf_done(&d.values);
  pst_arena_free(d.arena);
  return code;
}
