/* What config.json says and how the tensors are called, for each model_type.
 *
 * To add one: a row in `families` with its keys and the names of its tensors. A setting that is not translated must be refused where it could change what
 * the model computes. tools/golden_checkpoints.py proves a decoder's row against `transformers`. */
#include <math.h>
#include <string.h>

#include "engine/checkpoint_impl.h"

/* ---- pooling, as sentence-transformers writes it beside the model ---- */

static int put_pooling(pst_engine_ckpt *d) {
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
  int code = pst_file_exists(path) ? pst_json_parse_file(path, PST_ENGINE_CKPT_MAX_CONFIG, &doc, d->err) : 0, n = 0,
      type = 1;
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
    code = pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "1_Pooling/config.json", "must be one of mean, cls and lasttoken",
                                "pooling_mode");
  else
    pst_engine_ckpt_put_int(d, "pooling_type", type);
  pst_json_free(doc);
  return code;
}

/* ---- encoders ---- */

static int encoder_keys(pst_engine_ckpt *d) {
  int code = pst_engine_ckpt_copy_int(d, "num_hidden_layers", "block_count");
  if (!code) code = pst_engine_ckpt_copy_int(d, "max_position_embeddings", "context_length");
  if (!code) code = pst_engine_ckpt_copy_int(d, "hidden_size", "embedding_length");
  if (!code) code = pst_engine_ckpt_copy_int(d, "intermediate_size", "feed_forward_length");
  if (!code) code = pst_engine_ckpt_copy_int(d, "num_attention_heads", "attention.head_count");
  if (!code) code = pst_engine_ckpt_copy_int(d, "type_vocab_size", "tokenizer.ggml.token_type_count");
  if (!code) code = pst_engine_ckpt_copy_float(d, "layer_norm_eps", "attention.layer_norm_epsilon", 1e-12);
  if (!code) code = put_pooling(d);
  return code ? code : pst_engine_ckpt_put_wordpiece(d);
}

static int bert_keys(pst_engine_ckpt *d) {
  int code = pst_engine_ckpt_want_text(d, "config.json", d->config, "hidden_act", "gelu");
  if (!code) code = pst_engine_ckpt_want_text(d, "config.json", d->config, "position_embedding_type", "absolute");
  if (!code && pst_json_bool(pst_json_get(d->config, "is_decoder"), false))
    code = pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "is true", "is_decoder");
  return code ? code : encoder_keys(d);
}

static int nomic_bert_keys(pst_engine_ckpt *d) {
  const pst_json *rope = pst_json_get(d->config, "rope_parameters");
  int code = pst_engine_ckpt_want_text(d, "config.json", d->config, "hidden_act", "silu");
  if (!code) code = pst_engine_ckpt_want_text(d, "config.json", rope, "rope_type", "default");
  if (!code) pst_engine_ckpt_put_float(d, "rope.freq_base", pst_json_double(pst_json_get(rope, "rope_theta"), 1000));
  return code ? code : encoder_keys(d);
}

static const pst_engine_ckpt_rule bert_rules[] = {
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
    {NULL, NULL},
};

static const pst_engine_ckpt_rule nomic_bert_rules[] = {
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
    {NULL, NULL},
};

/* ---- decoders ---- */

/* GGUF keeps how far the angles of "llama3" are from plain ones as a tensor: low frequencies turn `factor` times slower, a ramp between. */
static int llama3_factors(pst_engine_ckpt *d, const pst_json *rope, double base) {
  const double pi = 3.14159265358979323846;
  double factor = pst_json_double(pst_json_get(rope, "factor"), NAN);
  double low = pst_json_double(pst_json_get(rope, "low_freq_factor"), NAN);
  double high = pst_json_double(pst_json_get(rope, "high_freq_factor"), NAN);
  double n_ctx = pst_json_double(pst_json_get(rope, "original_max_position_embeddings"), NAN);
  if (!(factor > 0 && low > 0 && high > low && n_ctx > 0))
    return pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "of type llama3 lacks a number, or has a wrong one",
                                "rope_scaling");
  d->n_rope_factors = d->head_dim / 2;
  d->rope_factors = pst_arena_calloc(d->arena, (size_t)d->n_rope_factors, sizeof *d->rope_factors);
  if (!d->rope_factors) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
  for (int i = 0; i < d->head_dim / 2; i++) {
    double turns = n_ctx * pow(base, -2.0 * i / d->head_dim) / (2 * pi); /* over the original context */
    double ramp = PST_MIN(PST_MAX((turns - low) / (high - low), 0.0), 1.0);
    d->rope_factors[i] = (float)(1 / ((1 - ramp) / factor + ramp));
  }
  return 0;
}

static int yarn_keys(pst_engine_ckpt *d, const pst_json *rope) {
  static const char *const others[] = {"attention_factor", "mscale", "mscale_all_dim"};
  static const struct {
    const char *member, *key;
  } betas[] = {{"beta_fast", "rope.scaling.yarn_beta_fast"}, {"beta_slow", "rope.scaling.yarn_beta_slow"}};
  for (size_t i = 0; i < PST_ARRAY_LEN(others); i++)
    if (!pst_engine_ckpt_absent(pst_json_get(rope, others[i])))
      return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "of YaRN is not known here", others[i]);
  const pst_json *n_ctx = pst_json_get(rope, "original_max_position_embeddings");
  if (!pst_json_bool(pst_json_get(rope, "truncate"), true))
    return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "of YaRN is false", "truncate");
  if (!pst_json_is_int(n_ctx))
    return pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "is missing in a rope of type yarn",
                                "original_max_position_embeddings");
  pst_engine_ckpt_put_int(d, "rope.scaling.original_context_length", pst_json_int(n_ctx, 0));
  for (size_t i = 0; i < PST_ARRAY_LEN(betas); i++) {
    const pst_json *v = pst_json_get(rope, betas[i].member);
    if (!pst_engine_ckpt_absent(v)) pst_engine_ckpt_put_float(d, betas[i].key, pst_json_double(v, 0));
  }
  return 0;
}

/* A rope's settings under any of the names they have had. base_key: of the rope's base; scaling: keys for it may be put. */
static int put_rope(pst_engine_ckpt *d, const pst_json *rope, const pst_json *theta, const char *base_key,
                    bool scaling) {
  double base = pst_json_double(theta, 10000);
  pst_str type = pst_json_str(pst_json_get(rope, "rope_type"));
  if (!type.n) type = pst_json_str(pst_json_get(rope, "type"));
  pst_engine_ckpt_put_float(d, base_key, base);
  int code = pst_engine_ckpt_want_number(d, "config.json", rope, "partial_rotary_factor", 1);
  if (!code) code = pst_engine_ckpt_want_number(d, "config.json", d->config, "partial_rotary_factor", 1);
  if (code || !type.n || pst_str_is(type, "default")) return code;
  bool linear = pst_str_is(type, "linear"), yarn = pst_str_is(type, "yarn");
  if (scaling && pst_str_is(type, "llama3")) return llama3_factors(d, rope, base);
  if (!scaling || (!linear && !yarn))
    return pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                         "config.json: a rope of type '%.*s'; default, linear, yarn and llama3 are known here",
                         (int)PST_MIN(type.n, (size_t)40), type.data);
  pst_engine_ckpt_put_str(d, "rope.scaling.type", type);
  pst_engine_ckpt_put_float(d, "rope.scaling.factor", pst_json_double(pst_json_get(rope, "factor"), 0));
  return yarn ? yarn_keys(d, rope) : 0;
}

/* What the rope of a kind of layer is: since 2025 all in rope_parameters, by kind where there are several. */
static const pst_json *rope_of(const pst_engine_ckpt *d, const char *kind, const char *theta_name,
                               const pst_json **ret_theta) {
  const pst_json *rope = pst_json_get(d->config, "rope_parameters");
  if (kind && pst_json_get(rope, kind)) rope = pst_json_get(rope, kind);
  *ret_theta = pst_json_get(rope, "rope_theta");
  if (!*ret_theta) *ret_theta = pst_json_get(d->config, theta_name);
  return rope ? rope : pst_json_get(d->config, "rope_scaling");
}

static int one_rope(pst_engine_ckpt *d) {
  const pst_json *theta = NULL, *rope = rope_of(d, NULL, "rope_theta", &theta);
  return put_rope(d, rope, theta, "rope.freq_base", true);
}

/* "layer_types", where there is such a list: layer i must be of kind all[i mod n]. */
static int want_layers(const pst_engine_ckpt *d, const char *const *kinds, size_t n) {
  const pst_json *list = pst_json_get(d->config, "layer_types");
  size_t i = 0;
  for (pst_json_iter it = pst_json_iterate(list); pst_json_next(&it); i++)
    if (!pst_str_is(pst_json_str(it.value), kinds[i % n]))
      return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "is an order of layers that is not known here",
                                  "layer_types");
  return 0;
}

static int head_keys(pst_engine_ckpt *d) {
  const pst_json *heads = pst_json_get(d->config, "num_attention_heads"), *dim = pst_json_get(d->config, "head_dim");
  const pst_json *kv = pst_json_get(d->config, "num_key_value_heads");
  int64_t n_heads = pst_json_int(heads, 0), embd = pst_json_int(pst_json_get(d->config, "hidden_size"), 0);
  if (n_heads < 1 || n_heads > 4096 || embd < 1 || embd > INT32_MAX)
    return pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "is missing, or no sound number",
                                "num_attention_heads");
  int64_t n_kv = pst_engine_ckpt_absent(kv) ? n_heads : pst_json_int(kv, 0);
  int64_t head = pst_engine_ckpt_absent(dim) ? embd / n_heads : pst_json_int(dim, 0);
  if (n_kv < 1 || n_kv > n_heads || head < 2 || head > 4096 || head % 2)
    return pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "is no sound number",
                                n_kv < 1 || n_kv > n_heads ? "num_key_value_heads" : "head_dim");
  d->n_heads = (int)n_heads;
  d->n_kv_heads = (int)n_kv;
  d->head_dim = (int)head;
  pst_engine_ckpt_put_int(d, "attention.head_count", n_heads);
  pst_engine_ckpt_put_int(d, "attention.head_count_kv", n_kv);
  pst_engine_ckpt_put_int(d, "attention.key_length", head);
  pst_engine_ckpt_put_int(d, "attention.value_length", head);
  return 0;
}

static int decoder_keys(pst_engine_ckpt *d) {
  int code = pst_engine_ckpt_copy_int(d, "num_hidden_layers", "block_count");
  if (!code) code = pst_engine_ckpt_copy_int(d, "max_position_embeddings", "context_length");
  if (!code) code = pst_engine_ckpt_copy_int(d, "hidden_size", "embedding_length");
  if (!code) code = pst_engine_ckpt_copy_int(d, "intermediate_size", "feed_forward_length");
  if (!code) code = head_keys(d);
  if (!code) code = pst_engine_ckpt_copy_float(d, "rms_norm_eps", "attention.layer_norm_rms_epsilon", 1e-6);
  return code ? code : pst_engine_ckpt_put_bpe(d);
}

/* Attention to everything before, one rope, SiLU. */
static int llama_keys(pst_engine_ckpt *d) {
  static const char *const full[] = {"full_attention"};
  int code = pst_engine_ckpt_want_text(d, "config.json", d->config, "hidden_act", "silu");
  if (!code) code = pst_engine_ckpt_want_false(d, "config.json", d->config, "use_sliding_window");
  if (!code) code = want_layers(d, full, 1);
  if (!code) code = decoder_keys(d);
  return code ? code : one_rope(d);
}

static int mistral_keys(pst_engine_ckpt *d) {
  if (!pst_engine_ckpt_absent(pst_json_get(d->config, "sliding_window")))
    return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "is set; windows of this model_type are not known",
                                "sliding_window");
  return llama_keys(d);
}

/* Every fourth layer sees no positions. */
static int smollm3_keys(pst_engine_ckpt *d) {
  size_t i = 0;
  for (pst_json_iter it = pst_json_iterate(pst_json_get(d->config, "no_rope_layers")); pst_json_next(&it); i++)
    if (pst_json_int(it.value, -1) != ((i + 1) % 4 != 0))
      return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "are not every fourth layer", "no_rope_layers");
  int code = pst_engine_ckpt_want_number(d, "config.json", d->config, "no_rope_layer_interval", 4);
  return code ? code : llama_keys(d);
}

static int granite_keys(pst_engine_ckpt *d) {
  int code = pst_engine_ckpt_copy_float(d, "embedding_multiplier", "embedding_scale", 1);
  if (!code) code = pst_engine_ckpt_copy_float(d, "residual_multiplier", "residual_scale", 1);
  if (!code) code = pst_engine_ckpt_copy_float(d, "attention_multiplier", "attention.scale", 1);
  if (!code) code = pst_engine_ckpt_copy_float(d, "logits_scaling", "logit_scale", 1);
  return code ? code : llama_keys(d);
}

static int phi3_keys(pst_engine_ckpt *d) {
  int code = 0;
  if (!pst_engine_ckpt_absent(pst_json_get(d->config, "sliding_window")))
    code = pst_engine_ckpt_copy_int(d, "sliding_window", "attention.sliding_window");
  if (!code) code = pst_engine_ckpt_want_text(d, "config.json", d->config, "hidden_act", "silu");
  if (!code) code = decoder_keys(d);
  return code ? code : one_rope(d);
}

/* What all Gemmas share. `wide`: the number of layers of the one size whose queries are scaled by the width per head. */
static int gemma_keys(pst_engine_ckpt *d, int64_t wide) {
  double embd = pst_json_double(pst_json_get(d->config, "hidden_size"), 0);
  bool is_wide = pst_json_int(pst_json_get(d->config, "num_hidden_layers"), 0) == wide;
  int code = pst_engine_ckpt_want_text(d, "config.json", d->config, "hidden_activation", "gelu_pytorch_tanh");
  if (!code) code = pst_engine_ckpt_copy_int(d, "sliding_window", "attention.sliding_window");
  if (!code) code = decoder_keys(d);
  if (!code)
    code = pst_engine_ckpt_want_number(d, "config.json", d->config, "query_pre_attn_scalar",
                                       is_wide ? embd / d->n_heads : d->head_dim);
  return code;
}

static int gemma2_keys(pst_engine_ckpt *d) {
  static const char *const kinds[] = {"sliding_attention", "full_attention"};
  int code = want_layers(d, kinds, PST_ARRAY_LEN(kinds));
  if (!code) code = pst_engine_ckpt_copy_float(d, "attn_logit_softcapping", "attn_logit_softcapping", 0);
  if (!code) code = pst_engine_ckpt_copy_float(d, "final_logit_softcapping", "final_logit_softcapping", 0);
  if (!code) code = gemma_keys(d, 46);
  return code ? code : one_rope(d);
}

static int gemma3_keys(pst_engine_ckpt *d) {
  static const char *const kinds[] = {"sliding_attention", "sliding_attention", "sliding_attention",
                                      "sliding_attention", "sliding_attention", "full_attention"};
  static const char *const caps[] = {"attn_logit_softcapping", "final_logit_softcapping"};
  const pst_json *theta = NULL, *local_theta = NULL;
  int code = want_layers(d, kinds, PST_ARRAY_LEN(kinds));
  if (!code) code = pst_engine_ckpt_want_number(d, "config.json", d->config, "sliding_window_pattern", 6);
  if (!code) code = pst_engine_ckpt_want_false(d, "config.json", d->config, "use_bidirectional_attention");
  for (size_t i = 0; i < PST_ARRAY_LEN(caps) && !code; i++)
    if (!pst_engine_ckpt_absent(pst_json_get(d->config, caps[i])))
      code = pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "is set", caps[i]);
  if (!code) code = gemma_keys(d, 62);
  if (code) return code;
  const pst_json *rope = rope_of(d, "full_attention", "rope_theta", &theta);
  const pst_json *local = pst_json_get(pst_json_get(d->config, "rope_parameters"), "sliding_attention");
  local_theta = pst_json_get(local, "rope_theta");
  if (!local_theta) local_theta = pst_json_get(d->config, "rope_local_base_freq");
  code = put_rope(d, rope, theta, "rope.freq_base", true);
  return code ? code : put_rope(d, local, local_theta, "rope.freq_base_swa", false);
}

/* ---- Gemma 4: layers of two kinds ---- */

typedef struct gemma4_layer {
  bool local;
  int64_t head, n_kv, ff;
} gemma4_layer;

/* A member of config.json, or what it says of layer i alone. */
static int64_t layer_number(const pst_engine_ckpt *d, size_t i, const char *name, int64_t value) {
  char key[24];
  snprintf(key, sizeof key, "%zu", i);
  const pst_json *own = pst_json_get(pst_json_get(pst_json_get(d->config, "per_layer_config"), key), name);
  return pst_engine_ckpt_absent(own) ? value : pst_json_int(own, -1);
}

static int64_t number_of(const pst_engine_ckpt *d, const char *name, int64_t fallback) {
  const pst_json *v = pst_json_get(d->config, name);
  return pst_engine_ckpt_absent(v) ? fallback : pst_json_int(v, -1);
}

/* Full layers have the global sizes; those that read an earlier layer's keys can be twice as wide. */
static int gemma4_read_layer(const pst_engine_ckpt *d, size_t i, size_t n, gemma4_layer *ret) {
  const pst_json *type = pst_json_at(pst_json_get(d->config, "layer_types"), i);
  bool local = pst_str_is(pst_json_str(type), "sliding_attention");
  if (!local && !pst_str_is(pst_json_str(type), "full_attention"))
    return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json",
                                "must say sliding_attention or full_attention for each layer", "layer_types");
  bool one = !local && pst_json_bool(pst_json_get(d->config, "attention_k_eq_v"), false);
  bool wide = pst_json_bool(pst_json_get(d->config, "use_double_wide_mlp"), false) &&
              (int64_t)i >= (int64_t)n - number_of(d, "num_kv_shared_layers", 0);
  int64_t kv = number_of(d, "num_key_value_heads", -1), ff = number_of(d, "intermediate_size", -1);
  ret->local = local;
  ret->head =
      layer_number(d, i, "head_dim", local ? number_of(d, "head_dim", 256) : number_of(d, "global_head_dim", 512));
  ret->n_kv = layer_number(d, i, "num_key_value_heads", one ? number_of(d, "num_global_key_value_heads", kv) : kv);
  ret->ff = wide ? 2 * ff : ff;
  const char *wrong = ret->head < 8 || ret->head > PST_KERNELS_MAX_HEAD ? "head_dim"
                      : ret->n_kv < 1 || ret->n_kv > 1024               ? "num_key_value_heads"
                      : ff < 1 || ff > 1 << 19                          ? "intermediate_size"
                                                                        : NULL;
  return wrong ? pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "is missing, or no sound number", wrong) : 0;
}

static int gemma4_layers(pst_engine_ckpt *d, int64_t *ret_full_head) {
  const pst_json *types = pst_json_get(d->config, "layer_types");
  size_t n = pst_json_size(types);
  int64_t head[2] = {0, 0}; /* of full layers, of sliding ones */
  if (n < 1 || n > 1024 || (int64_t)n != number_of(d, "num_hidden_layers", -1))
    return pst_engine_ckpt_fail(d, PST_E_BAD_INPUT, "config.json", "has not one entry for each layer", "layer_types");
  gemma4_layer *layers = pst_arena_calloc(d->arena, n, sizeof *layers);
  if (!layers) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
  for (size_t i = 0; i < n; i++) {
    int code = gemma4_read_layer(d, i, n, &layers[i]);
    if (code) return code;
    int64_t *same = &head[layers[i].local];
    if (*same && *same != layers[i].head)
      return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "differs among layers of one kind", "head_dim");
    *same = layers[i].head;
  }
  if (!head[0] || !head[1])
    return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "has layers of one kind only", "layer_types");
  pst_engine_ckpt_put_array(d, "attention.head_count_kv", PST_ENGINE_GGUF_I32, n);
  for (size_t i = 0; i < n; i++) pst_engine_ckpt_add_u32(&d->values, (uint32_t)layers[i].n_kv);
  pst_engine_ckpt_put_array(d, "feed_forward_length", PST_ENGINE_GGUF_I32, n);
  for (size_t i = 0; i < n; i++) pst_engine_ckpt_add_u32(&d->values, (uint32_t)layers[i].ff);
  pst_engine_ckpt_put_array(d, "attention.sliding_window_pattern", PST_ENGINE_GGUF_BOOL, n);
  for (size_t i = 0; i < n; i++) pst_buf_putc(&d->values, (char)layers[i].local);
  static const char *const keys[2][3] = {
      {"attention.key_length", "attention.value_length", "rope.dimension_count"},
      {"attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"}};
  for (size_t kind = 0; kind < 2; kind++)
    for (size_t k = 0; k < 3; k++) pst_engine_ckpt_put_int(d, keys[kind][k], head[kind]);
  *ret_full_head = head[0];
  return 0;
}

/* "proportional": only the first pairs of a head turn, at the angles that they have among all. GGUF gives the others a factor beyond every angle. */
static int gemma4_ropes(pst_engine_ckpt *d, int64_t full_head) {
  const pst_json *theta = NULL, *local_theta = NULL;
  const pst_json *rope = rope_of(d, "full_attention", "rope_theta", &theta);
  const pst_json *local = rope_of(d, "sliding_attention", "rope_theta", &local_theta);
  double part = pst_json_double(pst_json_get(rope, "partial_rotary_factor"), 1);
  if (!pst_str_is(pst_json_str(pst_json_get(rope, "rope_type")), "proportional") || !(part > 0 && part <= 1))
    return pst_engine_ckpt_fail(d, PST_E_UNSUPPORTED, "config.json", "of full attention are not of type proportional",
                                "rope_parameters");
  int code = pst_engine_ckpt_want_number(d, "config.json", rope, "factor", 1);
  if (code) return code;
  d->n_rope_factors = (int)full_head / 2;
  d->rope_factors = pst_arena_calloc(d->arena, (size_t)d->n_rope_factors, sizeof *d->rope_factors);
  if (!d->rope_factors) return pst_error_set(d->err, PST_E_NOMEM, d->path, "no memory");
  for (int i = 0; i < d->n_rope_factors; i++)
    d->rope_factors[i] = i < (int)(part * (double)full_head / 2) ? 1.0f : 1e30f;
  pst_engine_ckpt_put_float(d, "rope.freq_base", pst_json_double(theta, 1e6));
  return put_rope(d, local, local_theta, "rope.freq_base_swa", false);
}

static int gemma4_experts(pst_engine_ckpt *d) {
  if (!pst_json_bool(pst_json_get(d->config, "enable_moe_block"), false)) return 0;
  int code = pst_engine_ckpt_copy_int(d, "num_experts", "expert_count");
  if (!code) code = pst_engine_ckpt_copy_int(d, "top_k_experts", "expert_used_count");
  return code ? code : pst_engine_ckpt_copy_int(d, "moe_intermediate_size", "expert_feed_forward_length");
}

/* Text alone: what attends both ways in images does not in text. */
static int gemma4_keys(pst_engine_ckpt *d) {
  const pst_json *both_ways = pst_json_get(d->config, "use_bidirectional_attention");
  int64_t full_head = 0;
  int code = pst_engine_ckpt_want_text(d, "config.json", d->config, "hidden_activation", "gelu_pytorch_tanh");
  if (!code && !pst_str_is(pst_json_str(both_ways), "vision"))
    code = pst_engine_ckpt_want_false(d, "config.json", d->config, "use_bidirectional_attention");
  if (!code) code = pst_engine_ckpt_want_false(d, "config.json", d->config, "attention_bias");
  if (!code) code = pst_engine_ckpt_copy_int(d, "num_hidden_layers", "block_count");
  if (!code) code = pst_engine_ckpt_copy_int(d, "max_position_embeddings", "context_length");
  if (!code) code = pst_engine_ckpt_copy_int(d, "hidden_size", "embedding_length");
  if (!code) code = pst_engine_ckpt_copy_int(d, "num_attention_heads", "attention.head_count");
  if (!code) code = pst_engine_ckpt_copy_int(d, "sliding_window", "attention.sliding_window");
  if (!code) code = pst_engine_ckpt_copy_float(d, "rms_norm_eps", "attention.layer_norm_rms_epsilon", 1e-6);
  if (!code && !pst_engine_ckpt_absent(pst_json_get(d->config, "final_logit_softcapping")))
    code = pst_engine_ckpt_copy_float(d, "final_logit_softcapping", "final_logit_softcapping", 0);
  if (!code) code = gemma4_layers(d, &full_head);
  if (!code) code = gemma4_ropes(d, full_head);
  if (!code) code = gemma4_experts(d);
  if (code) return code;
  pst_engine_ckpt_put_int(d, "attention.shared_kv_layers", number_of(d, "num_kv_shared_layers", 0));
  pst_engine_ckpt_put_int(d, "embedding_length_per_layer_input", number_of(d, "hidden_size_per_layer_input", 0));
  return pst_engine_ckpt_put_bpe(d);
}

static const pst_engine_ckpt_rule decoder_rules[] = {
    {"embed_tokens.weight", "token_embd.weight"},
    {"norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
    {"layers.*.self_attn.o_proj.weight", "blk.*.attn_output.weight"},
    {"layers.*.mlp.down_proj.weight", "blk.*.ffn_down.weight"},
    {"layers.*.self_attn.rotary_emb.inv_freq", NULL},
    {NULL, NULL},
};
static const pst_engine_ckpt_rule plain_rules[] = {
    {"layers.*.self_attn.q_proj.weight", "blk.*.attn_q.weight"},
    {"layers.*.self_attn.k_proj.weight", "blk.*.attn_k.weight"},
    {"layers.*.self_attn.v_proj.weight", "blk.*.attn_v.weight"},
    {"layers.*.mlp.gate_proj.weight", "blk.*.ffn_gate.weight"},
    {"layers.*.mlp.up_proj.weight", "blk.*.ffn_up.weight"},
    {NULL, NULL},
};
static const pst_engine_ckpt_rule fused_rules[] = {
    {"layers.*.self_attn.qkv_proj.weight", "blk.*.attn_qkv.weight"},
    {"layers.*.mlp.gate_up_proj.weight", "blk.*.ffn_up.weight"},
    {"layers.*.input_layernorm.weight", "blk.*.attn_norm.weight"},
    {"layers.*.post_attention_layernorm.weight", "blk.*.ffn_norm.weight"},
    {NULL, NULL},
};
static const pst_engine_ckpt_rule norm_rules[] = {
    {"layers.*.input_layernorm.weight", "blk.*.attn_norm.weight"},
    {"layers.*.post_attention_layernorm.weight", "blk.*.ffn_norm.weight"},
    {NULL, NULL},
};
/* Norms before and behind each branch; of OLMo 2 only those behind it. */
static const pst_engine_ckpt_rule post_norm_rules[] = {
    {"layers.*.input_layernorm.weight", "blk.*.attn_norm.weight"},
    {"layers.*.post_attention_layernorm.weight", "blk.*.post_attention_norm.weight"},
    {"layers.*.pre_feedforward_layernorm.weight", "blk.*.ffn_norm.weight"},
    {"layers.*.post_feedforward_layernorm.weight", "blk.*.post_ffw_norm.weight"},
    {NULL, NULL},
};
static const pst_engine_ckpt_rule bias_rules[] = {
    {"layers.*.self_attn.q_proj.bias", "blk.*.attn_q.bias"},
    {"layers.*.self_attn.k_proj.bias", "blk.*.attn_k.bias"},
    {"layers.*.self_attn.v_proj.bias", "blk.*.attn_v.bias"},
    {NULL, NULL},
};
static const pst_engine_ckpt_rule head_norm_rules[] = {
    {"layers.*.self_attn.q_norm.weight", "blk.*.attn_q_norm.weight"},
    {"layers.*.self_attn.k_norm.weight", "blk.*.attn_k_norm.weight"},
    {NULL, NULL},
};

static const pst_engine_ckpt_rule gemma4_rules[] = {
    {"embed_tokens_per_layer.weight", "per_layer_token_embd.weight"},
    {"per_layer_model_projection.weight", "per_layer_model_proj.weight"},
    {"per_layer_projection_norm.weight", "per_layer_proj_norm.weight"},
    {"layers.*.layer_scalar", "blk.*.layer_output_scale.weight"},
    {"layers.*.per_layer_input_gate.weight", "blk.*.inp_gate.weight"},
    {"layers.*.per_layer_projection.weight", "blk.*.proj.weight"},
    {"layers.*.post_per_layer_input_norm.weight", "blk.*.post_norm.weight"},
    {"layers.*.router.proj.weight", "blk.*.ffn_gate_inp.weight"},
    {"layers.*.router.scale", "blk.*.ffn_gate_inp.scale"},
    {"layers.*.router.per_expert_scale", "blk.*.ffn_down_exps.scale"},
    {"layers.*.experts.gate_up_proj", "blk.*.ffn_gate_up_exps.weight"},
    {"layers.*.experts.down_proj", "blk.*.ffn_down_exps.weight"},
    {"layers.*.pre_feedforward_layernorm_2.weight", "blk.*.pre_ffw_norm_2.weight"},
    {"layers.*.post_feedforward_layernorm_1.weight", "blk.*.post_ffw_norm_1.weight"},
    {"layers.*.post_feedforward_layernorm_2.weight", "blk.*.post_ffw_norm_2.weight"},
    {NULL, NULL},
};

/* ---- the table ---- */

static const char *const bert_prefixes[] = {"bert.", NULL}, *const bert_others[] = {"cls.", NULL};
/* Models of text and images have the text model further inside, and the rest is not ours. */
static const char *const model_prefixes[] = {"model.language_model.", "language_model.model.", "language_model.",
                                             "model.", NULL};
static const char *const model_others[] = {
    "vision_tower.",      "model.vision_tower.", "multi_modal_projector.", "model.multi_modal_projector.",
    "model.audio_tower.", "model.embed_vision.", "model.embed_audio.",     NULL};

#define ENCODER(type, architecture, name) \
  { type, architecture, name##_keys, {name##_rules}, bert_prefixes, bert_others, false, false }
#define DECODER(type, architecture, keys, pairs, norms_off, ...) \
  { type, architecture, keys, {decoder_rules, __VA_ARGS__}, model_prefixes, model_others, pairs, norms_off }

static const pst_engine_ckpt_family families[] = {
    ENCODER("bert", "bert", bert),
    ENCODER("nomic_bert", "nomic-bert", nomic_bert),
    DECODER("llama", "llama", llama_keys, true, false, plain_rules, norm_rules, bias_rules),
    DECODER("mistral", "llama", mistral_keys, true, false, plain_rules, norm_rules),
    DECODER("qwen2", "qwen2", llama_keys, false, false, plain_rules, norm_rules, bias_rules),
    DECODER("qwen3", "qwen3", llama_keys, false, false, plain_rules, norm_rules, head_norm_rules),
    DECODER("gemma2", "gemma2", gemma2_keys, false, true, plain_rules, post_norm_rules),
    DECODER("gemma3_text", "gemma3", gemma3_keys, false, true, plain_rules, post_norm_rules, head_norm_rules),
    DECODER("gemma4_text", "gemma4", gemma4_keys, false, false, plain_rules, post_norm_rules, head_norm_rules,
            gemma4_rules),
    DECODER("phi3", "phi3", phi3_keys, false, false, fused_rules),
    DECODER("smollm3", "smollm3", smollm3_keys, true, false, plain_rules, norm_rules),
    DECODER("granite", "granite", granite_keys, true, false, plain_rules, norm_rules),
    DECODER("olmo2", "olmo2", llama_keys, false, false, plain_rules, post_norm_rules, head_norm_rules),
};

int pst_engine_ckpt_family_find(const pst_engine_ckpt *d, const pst_engine_ckpt_family **ret_family) {
  pst_str type = pst_json_str(pst_json_get(d->config, "model_type"));
  pst_buf known = PST_BUF_INIT;
  for (size_t i = 0; i < PST_ARRAY_LEN(families); i++) {
    if (pst_str_is(type, families[i].model_type)) {
      pst_buf_done(&known);
      *ret_family = &families[i];
      return 0;
    }
    pst_buf_printf(&known, "%s%s", i ? ", " : "", families[i].model_type);
  }
  pst_error_set(d->err, PST_E_UNSUPPORTED, d->path,
                "config.json: model_type '%.*s' is not known as safetensors; known are %s; others load as GGUF files",
                (int)PST_MIN(type.n, (size_t)60), type.data ? type.data : "", pst_buf_text(&known));
  pst_buf_done(&known);
  return PST_E_UNSUPPORTED;
}
