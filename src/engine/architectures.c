/* What each architecture is made of: its keys, and the tensors of its layers. One row of the table and one reader each; forward.c runs whatever the layer
 * table says. */
#include "engine/loader.h"

#include <math.h>
#include <string.h>

/* Gemma's embeddings are trained so that their first 128, 256 or 512 elements are embeddings too (its model card). */
enum { MATRYOSHKA_MIN_DIMS = 128 };

/* ---- pieces ---- */

/* Pieces that the layers of the architectures are put together from. */
static int load_attention(pst_engine_loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, hd = (size_t)y->head_dim;
  size_t q = (size_t)f->n_heads * hd, kv = (size_t)y->n_kv_heads * hd;
  if (y->n_kv_heads == 0) return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "layer %d without key heads", i);
  int code = pst_engine_loader_layer_matrix(l, i, "attn_q", q, embd, &y->q);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_k", kv, embd, &y->k);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_v", kv, embd, &y->v);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_output", embd, q, &y->o);
  return code;
}

static int load_biases(pst_engine_loader *l, int i, bool required, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t hd = (size_t)y->head_dim, q = (size_t)f->n_heads * hd, kv = (size_t)y->n_kv_heads * hd;
  int code = pst_engine_loader_layer_row(l, i, "attn_q.bias", q, required, &y->q_bias);
  if (!code) code = pst_engine_loader_layer_row(l, i, "attn_k.bias", kv, required, &y->k_bias);
  if (!code) code = pst_engine_loader_layer_row(l, i, "attn_v.bias", kv, required, &y->v_bias);
  return code;
}

static int load_feed_forward(pst_engine_loader *l, int i, pst_engine_layer *y) {
  size_t embd = (size_t)l->m->info.n_embd, ff = (size_t)y->n_ff;
  int code = pst_engine_loader_layer_matrix(l, i, "ffn_gate", ff, embd, &y->gate);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_up", ff, embd, &y->up);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_down", embd, ff, &y->down);
  return code;
}

static int load_norms(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = pst_engine_loader_layer_row(l, i, "attn_norm.weight", (size_t)l->m->info.n_embd, true, &y->attn_norm);
  if (!code) code = pst_engine_loader_layer_row(l, i, "ffn_norm.weight", (size_t)l->m->info.n_embd, true, &y->ffn_norm);
  return code;
}

static int load_post_norms(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = pst_engine_loader_layer_row(l, i, "post_attention_norm.weight", (size_t)l->m->info.n_embd, true,
                                         &y->post_attn_norm);
  if (!code)
    code =
        pst_engine_loader_layer_row(l, i, "post_ffw_norm.weight", (size_t)l->m->info.n_embd, true, &y->post_ffn_norm);
  return code;
}

static int load_head_norms(pst_engine_loader *l, int i, bool whole, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t hd = (size_t)y->head_dim;
  y->norm_whole = whole;
  int code =
      pst_engine_loader_layer_row(l, i, "attn_q_norm.weight", whole ? hd * (size_t)f->n_heads : hd, true, &y->q_norm);
  if (!code)
    code = pst_engine_loader_layer_row(l, i, "attn_k_norm.weight", whole ? hd * (size_t)y->n_kv_heads : hd, true,
                                       &y->k_norm);
  return code;
}

/* Rows [first, first + rows) of the n_rows of one matrix of every expert, each packed for itself. */
static int load_expert_rows(pst_engine_loader *l, int i, const char *name, size_t n_rows, size_t first, size_t rows,
                            size_t cols, pst_engine_expert_matrix *ret) {
  size_t n = (size_t)l->m->n_experts;
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s.weight", i, name);
  const pst_engine_gguf_tensor *t = pst_engine_loader_tensor(l, full);
  int code = pst_engine_loader_check_dims(l, t, full, n, n_rows, cols);
  if (!code) code = pst_engine_loader_init_matrix(l, t, full, rows, cols, &ret->shape);
  if (code) return code;
  ret->stride = pst_kernels_matrix_bytes(&ret->shape);
  size_t row_bytes = pst_kernels_row_bytes(t->type, cols);
  for (size_t e = 0; e < n && !code; e++) {
    const uint8_t *src = t->data + (e * n_rows + first) * row_bytes;
    size_t at = pst_engine_loader_take_bytes(l, t, src, ret->stride);
    if (!l->memory) continue;
    if (e == 0) ret->shape.data = l->memory + at;
    code = pst_engine_loader_add_job(l, (struct pst_engine_pack_job){&ret->shape, NULL, src, l->memory + at, NULL});
  }
  return code;
}

static int load_expert_matrix(pst_engine_loader *l, int i, const char *name, size_t rows, size_t cols,
                              pst_engine_expert_matrix *ret) {
  return load_expert_rows(l, i, name, rows, 0, rows, cols, ret);
}

static int load_experts(pst_engine_loader *l, int i, pst_engine_experts *y) {
  const pst_engine_model *m = l->m;
  size_t embd = (size_t)m->info.n_embd, ff = (size_t)m->n_ff_expert, n = (size_t)m->n_experts;
  int code = pst_engine_loader_layer_matrix(l, i, "ffn_gate_inp", n, embd, &y->router);
  if (!code) code = load_expert_matrix(l, i, "ffn_gate_exps", ff, embd, &y->gate);
  if (!code) code = load_expert_matrix(l, i, "ffn_up_exps", ff, embd, &y->up);
  if (!code) code = load_expert_matrix(l, i, "ffn_down_exps", embd, ff, &y->down);
  return code;
}

static int load_expert_bias(pst_engine_loader *l, int i, const char *name, size_t n, const float **ret) {
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s.bias", i, name);
  return pst_engine_loader_floats(l, full, (size_t)l->m->n_experts, n, true, ret);
}

static int expert_keys(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  int code = pst_engine_loader_need_int(l, "expert_count", 1, PST_ENGINE_MAX_EXPERTS, &m->n_experts);
  if (!code)
    code = pst_engine_loader_need_int(l, "expert_used_count", 1, PST_MIN(m->n_experts, PST_ENGINE_MAX_USED_EXPERTS),
                                      &m->n_experts_used);
  m->n_ff_expert = m->info.n_ff;
  if (!code) code = pst_engine_loader_want_int(l, "expert_feed_forward_length", 32, 1 << 19, &m->n_ff_expert);
  return code;
}

/* Norm, attention, norm, gated feed-forward: what most decoders are. */
static int load_plain_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_norms(l, i, y);
  if (!code) code = load_attention(l, i, y);
  if (!code) code = load_feed_forward(l, i, y);
  return code;
}

/* ---- architectures ---- */

static double yarn_magnitude(double factor, double weight) { return factor <= 1 ? 1 : 0.1 * weight * log(factor) + 1; }

/* YaRN (arXiv 2309.00071, 3.2 and 3.4): pairs that turn fast keep their angle, slow ones turn `factor` times slower, a ramp between them. `whole`: the
 * ramp's ends are rounded outwards to whole pairs, as models were trained that came from the paper's code. */
static int yarn_rope(pst_engine_loader *l, double factor, bool whole, pst_engine_rope *r) {
  const double pi = 3.14159265358979323846;
  double fast = 32, slow = 1, log_multiplier = 0;
  int n_ctx = 0;
  int code = pst_engine_loader_need_int(l, "rope.scaling.original_context_length", 1, 1 << 30, &n_ctx);
  if (!code) code = pst_engine_loader_want_double(l, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &fast);
  if (!code) code = pst_engine_loader_want_double(l, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &slow);
  if (!code) code = pst_engine_loader_want_double(l, "rope.scaling.yarn_log_multiplier", 0, 1e3, &log_multiplier);
  if (code) return code;
  /* Pair that turns `turns` times over the original context. */
  double low = r->n_rot * log(n_ctx / (fast * 2 * pi)) / (2 * log(r->base));
  double high = r->n_rot * log(n_ctx / (slow * 2 * pi)) / (2 * log(r->base));
  low = PST_MAX(whole ? floor(low) : low, 0.0);
  high = PST_MIN(whole ? ceil(high) : high, (double)(r->n_rot - 1));
  r->magnitude = yarn_magnitude(factor, 1) / (log_multiplier > 0 ? yarn_magnitude(factor, log_multiplier) : 1);
  for (int i = 0; i < r->n_rot / 2; i++) {
    double ramp = PST_MIN(PST_MAX((i - low) / PST_MAX(high - low, 1e-3), 0.0), 1.0);
    r->own_factors[i] = (float)(1 / (ramp / factor + (1 - ramp)));
  }
  r->factors = r->own_factors;
  return 0;
}

static int rope_scaling(pst_engine_loader *l, bool whole, pst_engine_rope *r) {
  char key[128];
  pst_str type = PST_STR("none");
  double factor = 1;
  int code = pst_engine_gguf_opt_str(l->m->gguf, pst_engine_loader_key(l, "rope.scaling.type", key), &type, l->err);
  if (code) return code;
  bool yarn = pst_str_is(type, "yarn"), linear = pst_str_is(type, "linear");
  if (!yarn && !linear && !pst_str_is(type, "none"))
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "key '%s' is '%.*s'; known are none, linear and yarn", key,
                         (int)PST_MIN(type.n, (size_t)40), type.data);
  code = pst_engine_loader_want_double(l, "rope.scaling.factor", 1e-6, 1e6, &factor);
  if (code) return code;
  if (yarn) return yarn_rope(l, factor, whole, r);
  r->scale = linear ? 1 / factor : 1;
  return 0;
}

static pst_engine_rope plain_rope(const pst_engine_loader *l, pst_kernels_rope style, double base) {
  return (pst_engine_rope){.base = base, .scale = 1, .magnitude = 1, .style = style, .n_rot = l->m->info.head_dim};
}

/* One rope for all layers. */
static int rope_keys(pst_engine_loader *l, pst_kernels_rope style, double base, bool whole) {
  pst_engine_model *m = l->m;
  pst_engine_rope *r = &m->ropes[0];
  m->n_ropes = 1;
  *r = plain_rope(l, style, base);
  int code = pst_engine_loader_want_int(l, "rope.dimension_count", 2, m->info.head_dim, &r->n_rot);
  if (!code) code = pst_engine_loader_want_double(l, "rope.freq_base", 1, 1e12, &r->base);
  if (!code) code = rope_scaling(l, whole, r);
  return code;
}

static int one_rope(pst_engine_loader *l, pst_kernels_rope style, double base) {
  return rope_keys(l, style, base, true);
}

static int llama_keys(pst_engine_loader *l) {
  int code = one_rope(l, PST_KERNELS_ROPE_PAIRS, 10000);
  pst_engine_rope *r = &l->m->ropes[0];
  if (code || !pst_engine_gguf_find_tensor(l->m->gguf, "rope_freqs.weight")) return code;
  if (r->magnitude != 1)
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "tensor 'rope_freqs.weight' and YaRN at once");
  return pst_engine_loader_row(l, "rope_freqs.weight", (size_t)r->n_rot / 2, true, &r->factors);
}

/* Llama with queries that grow with the position, as Ministral 3 (Llama 4's scheme). */
static int mistral3_keys(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  int length = m->info.n_ctx_train, code = llama_keys(l);
  m->temperature_beta = 0;
  if (!code) code = pst_engine_loader_want_double(l, "attention.temperature_scale", 0, 1e3, &m->temperature_beta);
  if (!code) code = pst_engine_loader_want_int(l, "rope.scaling.original_context_length", 1, 1 << 30, &length);
  m->temperature_length = length;
  return code;
}

static int llama_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_plain_layer(l, i, y);
  return code ? code : load_biases(l, i, false, y);
}

static int neox_keys(pst_engine_loader *l) { return one_rope(l, PST_KERNELS_ROPE_HALVES, 10000); }

static int qwen2_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_plain_layer(l, i, y);
  return code ? code : load_biases(l, i, true, y);
}

static int qwen3_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_plain_layer(l, i, y);
  return code ? code : load_head_norms(l, i, false, y);
}

static int qwen3moe_keys(pst_engine_loader *l) {
  int code = neox_keys(l);
  return code ? code : expert_keys(l);
}

static int qwen3moe_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_norms(l, i, y);
  if (!code) code = load_attention(l, i, y);
  if (!code) code = load_head_norms(l, i, false, y);
  if (!code) code = load_experts(l, i, &y->experts);
  return code;
}

/* OpenAI's code leaves the ends of YaRN's ramp where they fall. */
static int gpt_oss_keys(pst_engine_loader *l) {
  l->m->gate = PST_KERNELS_SWIGLU_CLAMPED;
  int code = rope_keys(l, PST_KERNELS_ROPE_HALVES, 150000, false);
  return code ? code : expert_keys(l);
}

static int gpt_oss_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model *m = l->m;
  size_t embd = (size_t)m->info.n_embd, ff = (size_t)m->n_ff_expert;
  int window = 0, code = pst_engine_loader_layer_row(l, i, "attn_norm.weight", embd, true, &y->attn_norm);
  if (!code) code = load_attention(l, i, y);
  if (!code) code = load_biases(l, i, true, y);
  if (!code) code = pst_engine_loader_layer_row(l, i, "attn_output.bias", embd, true, &y->o_bias);
  if (!code) code = pst_engine_loader_layer_row(l, i, "attn_sinks.weight", (size_t)m->info.n_heads, true, &y->sinks);
  if (!code) code = pst_engine_loader_layer_row(l, i, "post_attention_norm.weight", embd, true, &y->ffn_norm);
  if (!code) code = load_experts(l, i, &y->experts);
  if (!code)
    code = pst_engine_loader_layer_row(l, i, "ffn_gate_inp.bias", (size_t)m->n_experts, true, &y->experts.router_bias);
  if (!code) code = load_expert_bias(l, i, "ffn_gate_exps", ff, &y->experts.gate.bias);
  if (!code) code = load_expert_bias(l, i, "ffn_up_exps", ff, &y->experts.up.bias);
  if (!code) code = load_expert_bias(l, i, "ffn_down_exps", embd, &y->experts.down.bias);
  if (!code) code = pst_engine_loader_need_int(l, "attention.sliding_window", 1, 1 << 24, &window);
  y->window = i % 2 == 0 ? window : 0;
  return code;
}

static int lfm2_keys(pst_engine_loader *l) {
  l->output_norm = "token_embd_norm.weight";
  int code = neox_keys(l);
  return code ? code : pst_engine_loader_need_int(l, "shortconv.l_cache", 2, PST_ENGINE_MAX_CONV, &l->m->n_conv);
}

static int load_conv(pst_engine_loader *l, int i, pst_engine_conv *y) {
  size_t embd = (size_t)l->m->info.n_embd, n = (size_t)l->m->n_conv;
  char name[64];
  int code = pst_engine_loader_layer_matrix(l, i, "shortconv.in_proj", 3 * embd, embd, &y->in);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "shortconv.out_proj", embd, embd, &y->out);
  snprintf(name, sizeof name, "blk.%d.shortconv.conv.weight", i);
  return code ? code : pst_engine_loader_floats(l, name, embd, n, true, &y->taps);
}

static int lfm2_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_norms(l, i, y);
  bool attends = y->n_kv_heads > 0;
  if (!code) code = attends ? load_attention(l, i, y) : load_conv(l, i, &y->conv);
  if (!code && attends) code = load_head_norms(l, i, false, y);
  if (!code) code = load_feed_forward(l, i, y);
  return code;
}

static int qwen35_keys(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  char key[128];
  int inner = 0, code = neox_keys(l);
  (void)pst_engine_loader_key(l, "rope.dimension_sections", key); /* of text all sections have one position */
  if (!code) code = pst_engine_loader_need_int(l, "ssm.conv_kernel", 2, PST_ENGINE_MAX_CONV, &m->n_conv);
  if (!code) code = pst_engine_loader_need_int(l, "ssm.state_size", 8, 256, &m->delta_head);
  if (!code) code = pst_engine_loader_need_int(l, "ssm.group_count", 1, 1024, &m->n_delta_k);
  if (!code) code = pst_engine_loader_need_int(l, "ssm.time_step_rank", 1, 1024, &m->n_delta_v);
  if (!code) code = pst_engine_loader_need_int(l, "ssm.inner_size", 1, 1 << 20, &inner);
  if (code) return code;
  m->gated_queries = true;
  if (inner != m->n_delta_v * m->delta_head || m->n_delta_v % m->n_delta_k || inner % PST_KERNELS_BLOCK)
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "a delta net of %d value heads over %d key heads of %d, %d wide", m->n_delta_v, m->n_delta_k,
                         m->delta_head, inner);
  return 0;
}

/* What a list of one truth for each layer says of layer i. */
static int listed_layer(pst_engine_loader *l, const char *name, int i, bool *ret) {
  char key[128];
  const pst_engine_gguf_value *list = NULL;
  if (!pst_engine_gguf_find(l->m->gguf, pst_engine_loader_key(l, name, key)))
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "required key '%s' is missing", key);
  int code = pst_engine_gguf_get_array(l->m->gguf, key, PST_ENGINE_GGUF_BOOLS, &list, l->err);
  if (code) return code;
  int n_all = l->m->info.n_layers + l->n_ahead;
  if (list->n != (uint64_t)n_all)
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key '%s' has %llu entries for %d layers", key,
                         (unsigned long long)list->n, n_all);
  *ret = pst_engine_gguf_value_bool(list, (uint64_t)i);
  return 0;
}

/* Whether layer i has a delta net: as a list of layers says, else all but every n-th. */
static int is_recurrent(pst_engine_loader *l, int i, bool *ret) {
  char key[128];
  int interval = 4, code = pst_engine_loader_want_int(l, "full_attention_interval", 1, 1024, &interval);
  if (code) return code;
  *ret = (i + 1) % interval != 0;
  if (!pst_engine_gguf_find(l->m->gguf, pst_engine_loader_key(l, "attention.recurrent_layers", key))) return 0;
  return listed_layer(l, "attention.recurrent_layers", i, ret);
}

static int load_delta(pst_engine_loader *l, int i, pst_engine_delta *y) {
  const pst_engine_model *m = l->m;
  size_t embd = (size_t)m->info.n_embd, head = (size_t)m->delta_head, n_v = (size_t)m->n_delta_v;
  size_t values = n_v * head, channels = 2 * (size_t)m->n_delta_k * head + values;
  char name[64];
  int code = pst_engine_loader_layer_matrix(l, i, "attn_qkv", channels, embd, &y->qkv);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_gate", values, embd, &y->z);
  if (!code && m->delta_grouped) code = pst_engine_loader_layer_matrix(l, i, "ssm_ba", 2 * n_v, embd, &y->beta);
  if (!code && !m->delta_grouped) code = pst_engine_loader_layer_matrix(l, i, "ssm_beta", n_v, embd, &y->beta);
  if (!code && !m->delta_grouped) code = pst_engine_loader_layer_matrix(l, i, "ssm_alpha", n_v, embd, &y->alpha);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ssm_out", embd, values, &y->out);
  snprintf(name, sizeof name, "blk.%d.ssm_conv1d.weight", i);
  if (!code) code = pst_engine_loader_floats(l, name, channels, (size_t)m->n_conv, true, &y->taps);
  if (!code) code = pst_engine_loader_layer_row(l, i, "ssm_a", n_v, true, &y->rate);
  if (!code) code = pst_engine_loader_layer_row(l, i, "ssm_dt.bias", n_v, true, &y->alpha_bias);
  if (!code) code = pst_engine_loader_layer_row(l, i, "ssm_norm.weight", head, true, &y->norm);
  return code;
}

static int qwen35_attention(pst_engine_loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, hd = (size_t)y->head_dim;
  size_t q = (size_t)f->n_heads * hd, kv = (size_t)y->n_kv_heads * hd;
  int code = pst_engine_loader_layer_matrix(l, i, "attn_q", 2 * q, embd, &y->q);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_k", kv, embd, &y->k);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_v", kv, embd, &y->v);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_output", embd, q, &y->o);
  return code ? code : load_head_norms(l, i, false, y);
}

/* All of a layer of a hybrid but its feed-forward branch. */
static int load_hybrid(pst_engine_loader *l, int i, pst_engine_layer *y) {
  size_t embd = (size_t)l->m->info.n_embd;
  bool recurrent = false;
  int code = is_recurrent(l, i, &recurrent);
  if (!code) code = pst_engine_loader_layer_row(l, i, "attn_norm.weight", embd, true, &y->attn_norm);
  if (!code) code = recurrent ? load_delta(l, i, &y->delta) : qwen35_attention(l, i, y);
  if (!code) code = pst_engine_loader_layer_row(l, i, "post_attention_norm.weight", embd, true, &y->ffn_norm);
  return code;
}

static int qwen35_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_hybrid(l, i, y);
  return code ? code : load_feed_forward(l, i, y);
}

static int qwen35moe_keys(pst_engine_loader *l) {
  int code = qwen35_keys(l);
  if (!code) code = expert_keys(l);
  return code ? code
              : pst_engine_loader_need_int(l, "expert_shared_feed_forward_length", 32, 1 << 19, &l->m->n_ff_dense);
}

static int qwen35moe_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  size_t embd = (size_t)l->m->info.n_embd, ff = (size_t)l->m->n_ff_dense;
  int code = load_hybrid(l, i, y);
  if (!code) code = load_experts(l, i, &y->experts);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_gate_inp_shexp", 1, embd, &y->experts.shared_gate);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_gate_shexp", ff, embd, &y->gate);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_up_shexp", ff, embd, &y->up);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_down_shexp", embd, ff, &y->down);
  return code;
}

static int qwen3next_keys(pst_engine_loader *l) {
  l->m->delta_grouped = true;
  return qwen35moe_keys(l);
}

/* Norms stand behind the branches only, and over the whole of queries and keys. */
static int olmo2_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_attention(l, i, y);
  if (!code) code = load_head_norms(l, i, true, y);
  if (!code) code = load_feed_forward(l, i, y);
  if (!code) code = load_post_norms(l, i, y);
  return code;
}

/* Every fourth layer sees no positions. */
static int smollm3_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  y->rope = (i + 1) % 4 ? 0 : -1;
  return llama_layer(l, i, y);
}

static int granite_keys(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  double embedding = 1, residual = 1, logit = 1, attention = m->attention_scale;
  int code = llama_keys(l);
  if (!code) code = pst_engine_loader_want_double(l, "embedding_scale", 1e-6, 1e6, &embedding);
  if (!code) code = pst_engine_loader_want_double(l, "residual_scale", 1e-6, 1e6, &residual);
  if (!code) code = pst_engine_loader_want_double(l, "attention.scale", 1e-6, 1e6, &attention);
  if (!code) code = pst_engine_loader_want_double(l, "logit_scale", 1e-6, 1e6, &logit);
  m->embedding_scale = (float)embedding;
  m->residual_scale = (float)residual;
  m->attention_scale = (float)attention;
  m->logit_scale = (float)(1 / logit);
  return code;
}

static int phi3_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, ff = (size_t)y->n_ff, hd = (size_t)y->head_dim;
  size_t q = (size_t)f->n_heads * hd, kv = (size_t)y->n_kv_heads * hd, all = q + 2 * kv;
  char qkv[64], up[64];
  int code = load_norms(l, i, y);
  snprintf(qkv, sizeof qkv, "blk.%d.attn_qkv.weight", i);
  snprintf(up, sizeof up, "blk.%d.ffn_up.weight", i);
  if (!code) code = pst_engine_loader_rows(l, qkv, all, 0, q, embd, &y->q);
  if (!code) code = pst_engine_loader_rows(l, qkv, all, q, kv, embd, &y->k);
  if (!code) code = pst_engine_loader_rows(l, qkv, all, q + kv, kv, embd, &y->v);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_output", embd, q, &y->o);
  if (!code) code = pst_engine_loader_rows(l, up, 2 * ff, 0, ff, embd, &y->gate);
  if (!code) code = pst_engine_loader_rows(l, up, 2 * ff, ff, ff, embd, &y->up);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_down", embd, ff, &y->down);
  if (!code) code = pst_engine_loader_want_int(l, "attention.sliding_window", 0, 1 << 24, &y->window);
  return code;
}

/* What all Gemmas share. */
static int gemma_keys(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  m->embedding_scale = sqrtf((float)m->info.n_embd);
  m->gate = PST_KERNELS_GELU_TANH;
  return 0;
}

static int gemma_layer(pst_engine_loader *l, int i, bool local, pst_engine_layer *y) {
  int window = 0, code = load_plain_layer(l, i, y);
  if (!code) code = load_post_norms(l, i, y);
  if (!code) code = pst_engine_loader_need_int(l, "attention.sliding_window", 1, 1 << 24, &window);
  y->window = local ? window : 0;
  return code;
}

static int gemma2_keys(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  double attention = 50, logit = 30;
  int code = one_rope(l, PST_KERNELS_ROPE_HALVES, 10000);
  if (!code) code = pst_engine_loader_want_double(l, "attn_logit_softcapping", 0, 1e6, &attention);
  if (!code) code = pst_engine_loader_want_double(l, "final_logit_softcapping", 0, 1e6, &logit);
  if (!code) code = gemma_keys(l);
  m->attention_softcap = (float)attention;
  m->logit_softcap = (float)logit;
  /* The 27B alone scales queries by its width per head instead of the head's own; so does Gemma 3's below. */
  if (m->info.n_layers == 46) m->attention_scale = 1.0f / sqrtf((float)m->info.n_embd / (float)m->info.n_heads);
  return code;
}

static int gemma2_layer(pst_engine_loader *l, int i, pst_engine_layer *y) { return gemma_layer(l, i, i % 2 == 0, y); }

static int gemma3_keys(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  m->n_ropes = 2;
  m->ropes[0] = plain_rope(l, PST_KERNELS_ROPE_HALVES, 1e6);
  m->ropes[1] = plain_rope(l, PST_KERNELS_ROPE_HALVES, 1e4);
  int code = pst_engine_loader_want_double(l, "rope.freq_base", 1, 1e12, &m->ropes[0].base);
  if (!code)
    code = pst_engine_loader_want_double(l, "rope.local.freq_base", 1, 1e12,
                                         &m->ropes[1].base); /* as older converters named it */
  if (!code) code = pst_engine_loader_want_double(l, "rope.freq_base_swa", 1, 1e12, &m->ropes[1].base);
  if (!code) code = rope_scaling(l, true, &m->ropes[0]);
  if (!code) code = gemma_keys(l);
  if (m->info.n_layers == 62) m->attention_scale = 1.0f / sqrtf((float)m->info.n_embd / (float)m->info.n_heads);
  return code;
}

static int gemma3_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  bool local = (i + 1) % 6 != 0;
  y->rope = local ? 1 : 0;
  int code = gemma_layer(l, i, local, y);
  return code ? code : load_head_norms(l, i, false, y);
}

/* Gemma 4. Layers differ: full ones have larger heads than sliding ones, and can have another number of them; the last ones can read what earlier ones keep. */

static int load_per_layer_table(pst_engine_loader *l) {
  static const char table[] = "per_layer_token_embd.weight";
  pst_engine_model *m = l->m;
  pst_engine_per_layer *p = &m->per_layer;
  size_t embd = (size_t)m->info.n_embd, vocab = (size_t)m->info.n_vocab;
  *p = (pst_engine_per_layer){.tokens = NULL};
  int code = pst_engine_loader_want_int(l, "embedding_length_per_layer_input", 0, 1 << 16, &p->width);
  if (code || !p->width) return code;
  size_t all = (size_t)m->info.n_layers * (size_t)p->width;
  pst_kernels_matrix shape; /* says whether rows of the type are known */
  p->tokens = pst_engine_loader_tensor(l, table);
  code = pst_engine_loader_check_shape(l, p->tokens, table, vocab, all);
  if (!code) code = pst_engine_loader_init_matrix(l, p->tokens, table, vocab, all, &shape);
  if (!code) code = pst_engine_loader_matrix(l, "per_layer_model_proj.weight", all, embd, &p->project);
  return code ? code : pst_engine_loader_row(l, "per_layer_proj_norm.weight", (size_t)p->width, true, &p->norm);
}

static int gemma4_ropes(pst_engine_loader *l, int local_head) {
  pst_engine_model *m = l->m;
  pst_engine_rope *full = &m->ropes[0], *local = &m->ropes[1];
  m->n_ropes = 2;
  *full = plain_rope(l, PST_KERNELS_ROPE_HALVES, 1e6);
  *local = plain_rope(l, PST_KERNELS_ROPE_HALVES, 1e4);
  local->n_rot = local_head;
  int code = pst_engine_loader_want_int(l, "rope.dimension_count", 2, m->info.head_dim, &full->n_rot);
  if (!code) code = pst_engine_loader_want_int(l, "rope.dimension_count_swa", 2, local_head, &local->n_rot);
  if (!code) code = pst_engine_loader_want_double(l, "rope.freq_base", 1, 1e12, &full->base);
  if (!code) code = pst_engine_loader_want_double(l, "rope.freq_base_swa", 1, 1e12, &local->base);
  /* Pairs that do not turn have factors beyond every angle. */
  return code ? code : pst_engine_loader_row(l, "rope_freqs.weight", (size_t)full->n_rot / 2, true, &full->factors);
}

static int local_head_dim(pst_engine_loader *l, int *ret) {
  int values = 0, code = pst_engine_loader_need_int(l, "attention.key_length_swa", 8, PST_KERNELS_MAX_HEAD, ret);
  if (!code) code = pst_engine_loader_need_int(l, "attention.value_length_swa", 8, PST_KERNELS_MAX_HEAD, &values);
  return code ? code : pst_engine_loader_check_head(l, *ret, values);
}

static int gemma4_keys(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  double cap = 0;
  int local_head = 0, n_experts = 0, code = gemma_keys(l);
  m->attention_scale = 1;
  if (!code) code = local_head_dim(l, &local_head);
  if (!code) code = gemma4_ropes(l, local_head);
  if (!code) code = pst_engine_loader_want_double(l, "final_logit_softcapping", 0, 1e6, &cap);
  m->logit_softcap = (float)cap;
  if (!code) code = load_per_layer_table(l);
  if (!code) code = pst_engine_loader_want_int(l, "expert_count", 0, PST_ENGINE_MAX_EXPERTS, &n_experts);
  return code || !n_experts ? code : expert_keys(l);
}

/* Queries; then keys and values of its own, or whose layer's it reads. */
static int gemma4_attention(pst_engine_loader *l, int i, pst_engine_layer *y) {
  static const char *const unread[] = {"attn_k", "attn_v", "attn_k_norm"};
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, hd = (size_t)y->head_dim, q = (size_t)f->n_heads * hd;
  size_t kv = (size_t)y->n_kv_heads * hd;
  char name[64];
  int n_shared = 0, code = pst_engine_loader_want_int(l, "attention.shared_kv_layers", 0, f->n_layers - 1, &n_shared);
  if (!code && y->n_kv_heads == 0)
    code = pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "layer %d without key heads", i);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_q", q, embd, &y->q);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "attn_output", embd, q, &y->o);
  if (!code) code = pst_engine_loader_layer_row(l, i, "attn_q_norm.weight", hd, true, &y->q_norm);
  if (code) return code;
  int n_keep = f->n_layers - n_shared;
  if (i >= n_keep) {
    y->keeper = n_keep - 1;
    while (y->keeper >= 0 && l->m->layers[y->keeper].rope != y->rope) y->keeper--;
    if (y->keeper < 0 || l->m->layers[y->keeper].n_kv_heads != y->n_kv_heads)
      return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "layer %d has no layer of its kind to read keys from", i);
    for (size_t k = 0; k < PST_ARRAY_LEN(unread); k++) { /* checkpoints hold them all the same */
      snprintf(name, sizeof name, "blk.%d.%s.weight", i, unread[k]);
      (void)pst_engine_loader_tensor(l, name);
    }
    return 0;
  }
  y->norm_values = true;
  snprintf(name, sizeof name, "blk.%d.attn_v.weight", i);
  code = pst_engine_loader_layer_matrix(l, i, "attn_k", kv, embd, &y->k);
  if (!code && pst_engine_gguf_find_tensor(l->m->gguf, name)) code = pst_engine_loader_matrix(l, name, kv, embd, &y->v);
  return code ? code : pst_engine_loader_layer_row(l, i, "attn_k_norm.weight", hd, true, &y->k_norm);
}

/* Experts beside the dense branch. Their gate and up can be one matrix. */
static int gemma4_experts(pst_engine_loader *l, int i, pst_engine_experts *e) {
  size_t embd = (size_t)l->m->info.n_embd, ff = (size_t)l->m->n_ff_expert, n = (size_t)l->m->n_experts;
  char name[64];
  int code;
  snprintf(name, sizeof name, "blk.%d.ffn_gate_up_exps.weight", i);
  if (pst_engine_gguf_find_tensor(l->m->gguf, name)) {
    code = load_expert_rows(l, i, "ffn_gate_up_exps", 2 * ff, 0, ff, embd, &e->gate);
    if (!code) code = load_expert_rows(l, i, "ffn_gate_up_exps", 2 * ff, ff, ff, embd, &e->up);
    if (!code) code = load_expert_matrix(l, i, "ffn_down_exps", embd, ff, &e->down);
    if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_gate_inp", n, embd, &e->router);
  } else {
    code = load_experts(l, i, e);
  }
  if (!code) code = pst_engine_loader_layer_row(l, i, "ffn_gate_inp.scale", embd, true, &e->router_norm);
  if (!code) code = pst_engine_loader_layer_row(l, i, "ffn_down_exps.scale", n, false, &e->output_scale);
  if (!code) code = pst_engine_loader_layer_row(l, i, "pre_ffw_norm_2.weight", embd, true, &e->in_norm);
  if (!code) code = pst_engine_loader_layer_row(l, i, "post_ffw_norm_1.weight", embd, true, &e->dense_norm);
  if (!code) code = pst_engine_loader_layer_row(l, i, "post_ffw_norm_2.weight", embd, true, &e->out_norm);
  return code;
}

static int gemma4_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model *m = l->m;
  size_t embd = (size_t)m->info.n_embd, width = (size_t)m->per_layer.width;
  int window = 0, local_head = 0, code = local_head_dim(l, &local_head);
  bool local = false;
  if (!code) code = listed_layer(l, "attention.sliding_window_pattern", i, &local);
  if (!code) code = pst_engine_loader_need_int(l, "attention.sliding_window", 1, 1 << 24, &window);
  y->head_dim = local ? local_head : m->info.head_dim;
  y->rope = local;
  y->window = local ? window : 0;
  if (!code) code = load_norms(l, i, y);
  if (!code) code = load_post_norms(l, i, y);
  if (!code) code = gemma4_attention(l, i, y);
  if (!code) code = load_feed_forward(l, i, y);
  if (!code && m->n_experts) code = gemma4_experts(l, i, &y->experts);
  if (!code) code = pst_engine_loader_layer_row(l, i, "layer_output_scale.weight", 1, false, &y->output_scale);
  if (code || !width) return code;
  code = pst_engine_loader_layer_matrix(l, i, "inp_gate", width, embd, &y->per_layer_gate);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "proj", embd, width, &y->per_layer_project);
  return code ? code : pst_engine_loader_layer_row(l, i, "post_norm.weight", embd, true, &y->per_layer_norm);
}

/* ---- encoders ---- */

static int refuse_causal(pst_engine_loader *l) {
  char key[128];
  bool causal = false;
  int code = pst_engine_gguf_opt_bool(l->m->gguf, pst_engine_loader_key(l, "attention.causal", key), &causal, l->err);
  if (code || !causal) return code;
  return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "key '%s' is true; encoders attend both ways", key);
}

/* What all encoders' keys have in common; a file that does not say how to pool means the mean. */
static int encoder_keys(pst_engine_loader *l) {
  int pooling = PST_ENGINE_POOL_MEAN, code = refuse_causal(l);
  char key[128];
  if (!code) code = pst_engine_loader_want_int(l, "pooling_type", 0, 4, &pooling);
  if (!code && (pooling < PST_ENGINE_POOL_MEAN || pooling > PST_ENGINE_POOL_LAST))
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "key '%s' is %d; known are 1 (mean), 2 (first token) and 3 (last token)",
                         pst_engine_loader_key(l, "pooling_type", key), pooling);
  l->m->encoding.pooling = (pst_engine_pooling)pooling;
  l->m->info.n_dims = l->m->info.min_dims = l->m->info.n_embd;
  return code;
}

static int load_layernorm(pst_engine_loader *l, const char *name, pst_engine_layernorm *ret) {
  char full[96];
  size_t embd = (size_t)l->m->info.n_embd;
  snprintf(full, sizeof full, "%s.weight", name);
  int code = pst_engine_loader_row(l, full, embd, true, &ret->weight);
  snprintf(full, sizeof full, "%s.bias", name);
  return code ? code : pst_engine_loader_row(l, full, embd, true, &ret->bias);
}

static int layer_layernorm(pst_engine_loader *l, int i, const char *name, pst_engine_layernorm *ret) {
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s", i, name);
  return load_layernorm(l, full, ret);
}

/* What stands around BERT's layers. Every text is of token type 0. */
static int bert_ends(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  double eps = 1e-12;
  uint64_t n_types = 2;
  int code = encoder_keys(l);
  if (!code) code = pst_engine_loader_want_double(l, "attention.layer_norm_epsilon", 0, 1, &eps);
  if (!code) code = pst_engine_gguf_opt_u64(m->gguf, "tokenizer.ggml.token_type_count", &n_types, l->err);
  if (!code && (n_types < 1 || n_types > 1024))
    code = pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key 'tokenizer.ggml.token_type_count' is out of range");
  m->norm_eps = (float)eps;
  l->no_output_norm = true;
  const pst_engine_gguf_tensor *types = pst_engine_loader_tensor(l, "token_types.weight");
  if (!code && types) {
    code = pst_engine_loader_check_shape(l, types, "token_types.weight", (size_t)n_types, (size_t)m->info.n_embd);
    if (!code)
      code = pst_engine_loader_first_row(l, types, "token_types.weight", (size_t)m->info.n_embd, &m->encoding.segment);
  }
  return code ? code : load_layernorm(l, "token_embd_norm", &m->encoding.embedding_norm);
}

static int bert_keys(pst_engine_loader *l) {
  const pst_engine_model_info *f = &l->m->info;
  l->m->gate = PST_KERNELS_GELU_ERF;
  int code = bert_ends(l);
  if (code) return code;
  return pst_engine_loader_matrix(l, "position_embd.weight", (size_t)f->n_ctx_train, (size_t)f->n_embd,
                                  &l->m->encoding.positions);
}

static int nomic_bert_keys(pst_engine_loader *l) {
  int code = bert_ends(l);
  return code ? code : one_rope(l, PST_KERNELS_ROPE_HALVES, 10000);
}

/* Queries, keys and values apart, or as one tensor. */
static int load_any_attention(pst_engine_loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, hd = (size_t)y->head_dim;
  size_t q = (size_t)f->n_heads * hd, kv = (size_t)y->n_kv_heads * hd, all = q + 2 * kv;
  char qkv[64];
  snprintf(qkv, sizeof qkv, "blk.%d.attn_qkv.weight", i);
  if (!pst_engine_gguf_find_tensor(l->m->gguf, qkv)) return load_attention(l, i, y);
  int code = pst_engine_loader_rows(l, qkv, all, 0, q, embd, &y->q);
  if (!code) code = pst_engine_loader_rows(l, qkv, all, q, kv, embd, &y->k);
  if (!code) code = pst_engine_loader_rows(l, qkv, all, q + kv, kv, embd, &y->v);
  return code ? code : pst_engine_loader_layer_matrix(l, i, "attn_output", embd, q, &y->o);
}

static int load_sum_norms(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = layer_layernorm(l, i, "attn_output_norm", &y->attn_sum_norm);
  return code ? code : layer_layernorm(l, i, "layer_output_norm", &y->ffn_sum_norm);
}

/* Attention, norm, plain feed-forward, norm; everything has a bias. Devlin et al. 2018, arXiv:1810.04805. */
static int bert_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  size_t embd = (size_t)l->m->info.n_embd, ff = (size_t)y->n_ff;
  y->rope = -1;
  int code = load_any_attention(l, i, y);
  if (!code) code = load_biases(l, i, true, y);
  if (!code) code = pst_engine_loader_layer_row(l, i, "attn_output.bias", embd, true, &y->o_bias);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_up", ff, embd, &y->up);
  if (!code) code = pst_engine_loader_layer_row(l, i, "ffn_up.bias", ff, true, &y->up_bias);
  if (!code) code = pst_engine_loader_layer_matrix(l, i, "ffn_down", embd, ff, &y->down);
  if (!code) code = pst_engine_loader_layer_row(l, i, "ffn_down.bias", embd, true, &y->down_bias);
  return code ? code : load_sum_norms(l, i, y);
}

/* BERT's order with rope, a gated feed-forward and no biases. Nussbaum et al. 2024, arXiv:2402.01613. */
static int nomic_bert_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = load_any_attention(l, i, y);
  if (!code) code = load_feed_forward(l, i, y);
  return code ? code : load_sum_norms(l, i, y);
}

/* Gemma 3 with attention both ways, and projections behind the pooling where the file has them. */
static int gemma_embedding_keys(pst_engine_loader *l) {
  static const char *const names[] = {"dense_2", "dense_3"};
  pst_engine_model *m = l->m;
  int code = gemma3_keys(l), n_in = m->info.n_embd;
  if (!code) code = pst_engine_loader_want_double(l, "rope.freq_base_swa", 1, 1e12, &m->ropes[1].base);
  if (!code) code = encoder_keys(l);
  m->encoding.n_dense = 0;
  for (size_t k = 0; k < PST_ARRAY_LEN(names) && !code; k++) {
    char tensor[32], in[32], out[32];
    int from = n_in, to = n_in;
    snprintf(tensor, sizeof tensor, "%s.weight", names[k]);
    snprintf(in, sizeof in, "%s_feat_in", names[k]);
    snprintf(out, sizeof out, "%s_feat_out", names[k]);
    code = pst_engine_loader_want_int(l, in, 1, 1 << 17, &from);
    if (!code) code = pst_engine_loader_want_int(l, out, 1, 1 << 17, &to);
    if (code || !pst_engine_gguf_find_tensor(m->gguf, tensor)) continue;
    if (from != n_in)
      return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "tensor '%s' reads %d elements, where %d come", tensor,
                           from, n_in);
    code = pst_engine_loader_matrix(l, tensor, (size_t)to, (size_t)from, &m->encoding.dense[m->encoding.n_dense++]);
    n_in = to;
  }
  m->info.n_dims = n_in;
  m->info.min_dims = PST_MIN(n_in, MATRYOSHKA_MIN_DIMS);
  return code;
}

static int gemma_embedding_layer(pst_engine_loader *l, int i, pst_engine_layer *y) {
  int code = gemma3_layer(l, i, y);
  if (y->window) y->window = y->window / 2 + 1; /* the file counts both sides */
  return code;
}

/* ---- the table ---- */

static const pst_engine_architecture architectures[] = {
    {"llama", llama_keys, llama_layer, false},
    {"qwen2", neox_keys, qwen2_layer, false},
    {"qwen3", neox_keys, qwen3_layer, false},
    {"gemma2", gemma2_keys, gemma2_layer, false},
    {"gemma3", gemma3_keys, gemma3_layer, false},
    {"gemma4", gemma4_keys, gemma4_layer, false},
    {"phi3", neox_keys, phi3_layer, false},
    {"smollm3", llama_keys, smollm3_layer, false},
    {"granite", granite_keys, llama_layer, false},
    {"olmo2", neox_keys, olmo2_layer, false},
    {"mistral3", mistral3_keys, llama_layer, false},
    {"qwen3moe", qwen3moe_keys, qwen3moe_layer, false},
    {"gpt-oss", gpt_oss_keys, gpt_oss_layer, false},
    {"lfm2", lfm2_keys, lfm2_layer, false},
    {"qwen35", qwen35_keys, qwen35_layer, false},
    {"qwen35moe", qwen35moe_keys, qwen35moe_layer, false},
    {"qwen3next", qwen3next_keys, qwen35moe_layer, false},
    {"bert", bert_keys, bert_layer, true},
    {"nomic-bert", nomic_bert_keys, nomic_bert_layer, true},
    {"gemma-embedding", gemma_embedding_keys, gemma_embedding_layer, true},
};

const pst_engine_architecture *pst_engine_architecture_find(pst_engine_loader *l) {
  pst_str name;
  if (pst_engine_gguf_get_str(l->m->gguf, "general.architecture", &name, l->err)) return NULL;
  pst_buf known = PST_BUF_INIT;
  for (size_t i = 0; i < PST_ARRAY_LEN(architectures); i++) {
    if (pst_str_is(name, architectures[i].name)) {
      pst_buf_done(&known);
      return &architectures[i];
    }
    pst_buf_printf(&known, "%s%s", i ? ", " : "", architectures[i].name);
  }
  pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "architecture '%.*s' is not known; known are %s",
                (int)PST_MIN(name.n, (size_t)60), name.data, pst_buf_text(&known));
  pst_buf_done(&known);
  return NULL;
}
