/* Opening a model: reads the keys and tensors of its architecture into the layer table and packs the matrices for the kernels.
 *
 * Owns the mapping and one block of packed memory. Knows nothing of sequences. Every tensor's type and shape is checked against what the keys say before
 * anything is packed; an architecture this program does not know, and a tensor it would silently ignore, are refused by name. */
#include "engine/model.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/checkpoint.h"
#include "engine/packed.h"

/* Gemma's embeddings are trained so that their first 128, 256 or 512 elements are embeddings too (its model card). */
enum { MATRYOSHKA_MIN_DIMS = 128 };

typedef struct loader {
  pst_engine_model *m;
  const char *path;
  pst_error *err;
  const char *arch; /* key prefix */
  uint8_t *memory;  /* NULL in the measuring pass */
  bool filled;      /* the memory holds what it should already: it is mapped, read-only */
  size_t used;
  uint64_t table; /* hash of what lies where */
  bool *taken;    /* per tensor: some part of the table named it */
  bool *asked;    /* per key of the file: something read it */
  const char *output_norm;
  int n_ahead; /* layers behind the model's own that predict tokens further ahead: left out */
  /* Key heads layer by layer, 0 where a layer does not attend; NULL: all layers are alike. */
  const pst_engine_gguf_value *kv_heads;
  bool no_output_norm; /* the architecture's layers end with a norm of their own */
  size_t n_jobs;
  struct pack_job {
    const pst_kernels_matrix *matrix; /* of the file */
    const pst_kernels_screen *screen; /* NULL: the matrix itself is packed; else its screen is made */
    const uint8_t *src;
    uint8_t *dst;
    float *radius; /* of the screen */
  } * jobs;
  size_t jobs_capacity;
} loader;

/* ---- keys ---- */

static const char *key_of(const loader *l, const char *name, char buf[128]) {
  snprintf(buf, 128, "%s.%s", l->arch, name);
  for (size_t i = 0; i < pst_engine_gguf_n_values(l->m->gguf); i++)
    if (pst_str_is(pst_engine_gguf_value_at(l->m->gguf, i)->key, buf)) l->asked[i] = true;
  return buf;
}

static int need_int(loader *l, const char *name, int64_t min, int64_t max, int *ret) {
  char key[128];
  uint64_t v;
  if (!pst_engine_gguf_find(l->m->gguf, key_of(l, name, key)))
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "required key '%s' is missing", key);
  int code = pst_engine_gguf_get_u64(l->m->gguf, key, &v, l->err);
  if (code) return code;
  if (v < (uint64_t)min || v > (uint64_t)max)
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key '%s' is %llu, outside %lld to %lld", key,
                         (unsigned long long)v, (long long)min, (long long)max);
  *ret = (int)v;
  return 0;
}

static int want_int(loader *l, const char *name, int64_t min, int64_t max, int *value) {
  char key[128];
  return pst_engine_gguf_find(l->m->gguf, key_of(l, name, key)) ? need_int(l, name, min, max, value) : 0;
}

static int want_double(loader *l, const char *name, double min, double max, double *value) {
  char key[128];
  int code = pst_engine_gguf_opt_f64(l->m->gguf, key_of(l, name, key), value, l->err);
  if (code) return code;
  if (!(*value >= min && *value <= max))
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key '%s' is %g, outside %g to %g", key, *value, min, max);
  return 0;
}

/* ---- tensors ---- */

static const pst_engine_gguf_tensor *find_tensor(loader *l, const char *name) {
  const pst_engine_gguf_tensor *t = pst_engine_gguf_find_tensor(l->m->gguf, name);
  if (t) {
    for (size_t i = 0; i < pst_engine_gguf_n_tensors(l->m->gguf); i++)
      if (pst_engine_gguf_tensor_at(l->m->gguf, i) == t) l->taken[i] = true;
  }
  return t;
}

/* [n][rows][cols] is what the tensor must be. */
static int check_dims(loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t n, size_t rows,
                      size_t cols) {
  if (!t) return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "tensor '%s' is missing", name);
  if (t->dims[0] == cols && t->dims[1] == rows && t->dims[2] == n && t->dims[3] == 1) return 0;
  if (n == 1 && t->dims[2] == 1)
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path,
                         "tensor '%s' has shape %llu x %llu, where the keys ask for %zu x %zu", name,
                         (unsigned long long)t->dims[1], (unsigned long long)t->dims[0], rows, cols);
  return pst_error_set(l->err, PST_E_BAD_INPUT, l->path,
                       "tensor '%s' has shape %llu x %llu x %llu, where the keys ask for %zu x %zu x %zu", name,
                       (unsigned long long)t->dims[2], (unsigned long long)t->dims[1], (unsigned long long)t->dims[0],
                       n, rows, cols);
}

static int check_shape(loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t rows, size_t cols) {
  return check_dims(l, t, name, 1, rows, cols);
}

/* Room for what is made of a tensor's bytes, which begin at `src`. */
static size_t take_bytes(loader *l, const uint8_t *src, size_t bytes) {
  uint64_t what[] = {(uint64_t)(src - pst_engine_gguf_map(l->m->gguf)->data), l->used, bytes};
  size_t at = l->used;
  l->table = pst_hash64(what, sizeof what, l->table);
  l->used += (bytes + 63) & ~(size_t)63;
  return at;
}

static int add_job(loader *l, struct pack_job job) {
  if (l->filled) return 0;
  if (pst_array_reserve((void **)&l->jobs, &l->jobs_capacity, l->n_jobs + 1, sizeof *l->jobs))
    return pst_error_set(l->err, PST_E_NOMEM, l->path, "no memory to pack the weights");
  l->jobs[l->n_jobs++] = job;
  return 0;
}

/* A packed matrix for rows of a tensor, without data. */
static int init_matrix(loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t rows, size_t cols,
                       pst_kernels_matrix *ret) {
  int code = pst_kernels_matrix_init(t->type, rows, cols, ret, l->err);
  if (code) {
    pst_error_prefix(l->err, "tensor '%s'", name);
    if (l->err) snprintf(l->err->place, sizeof l->err->place, "%s", l->path);
  }
  return code;
}

/* Rows [first, first + rows) of a weight matrix of n_rows, required. In the first pass its size is counted; the second sets its memory and queues
 * the packing. */
static int load_rows(loader *l, const char *name, size_t n_rows, size_t first, size_t rows, size_t cols,
                     pst_kernels_matrix *ret) {
  const pst_engine_gguf_tensor *t = find_tensor(l, name);
  int code = check_shape(l, t, name, n_rows, cols);
  if (code) return code;
  pst_kernels_matrix matrix;
  code = init_matrix(l, t, name, rows, cols, &matrix);
  if (code) return code;
  const uint8_t *src = t->data + first * pst_kernels_row_bytes(t->type, cols);
  size_t at = take_bytes(l, src, pst_kernels_matrix_bytes(&matrix));
  *ret = matrix;
  if (!l->memory) return 0;
  ret->data = l->memory + at;
  return add_job(l, (struct pack_job){ret, NULL, src, l->memory + at, NULL});
}

static int load_matrix(loader *l, const char *name, size_t rows, size_t cols, pst_kernels_matrix *ret) {
  return load_rows(l, name, rows, 0, rows, cols, ret);
}

/* The first n elements of a tensor, as float32. */
static int load_first_row(loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t n, const float **ret) {
  size_t at = take_bytes(l, t->data, n * sizeof(float));
  if (!l->memory) return 0;
  float *row = (float *)(void *)(l->memory + at);
  *ret = row;
  if (l->filled) return 0;
  int code = pst_kernels_dequantize_row(t->type, t->data, n, row);
  for (size_t i = 0; i < n && !code; i++)
    if (!isfinite(row[i])) code = PST_E_BAD_INPUT;
  if (code) return pst_error_set(l->err, code, l->path, "tensor '%s' holds a value that is not finite", name);
  return 0;
}

/* Rows of floats (norms, biases, rope factors, taps), as float32. */
static int load_floats(loader *l, const char *name, size_t rows, size_t cols, bool required, const float **ret) {
  const pst_engine_gguf_tensor *t = find_tensor(l, name);
  *ret = NULL;
  if (!t && !required) return 0;
  int code = check_shape(l, t, name, rows, cols);
  if (code) return code;
  size_t n = rows * cols;
  if (t->type != PST_TYPE_F32 && t->type != PST_TYPE_F16 && t->type != PST_TYPE_BF16)
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "tensor '%s' has type %s; norms and biases must be F32, F16 or BF16", name,
                         pst_kernels_type_info(t->type)->name);
  return load_first_row(l, t, name, n, ret);
}

static int load_row(loader *l, const char *name, size_t n, bool required, const float **ret) {
  return load_floats(l, name, 1, n, required, ret);
}

static int layer_matrix(loader *l, int layer, const char *name, size_t rows, size_t cols, pst_kernels_matrix *ret) {
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
  return load_matrix(l, full, rows, cols, ret);
}

static int layer_row(loader *l, int layer, const char *name, size_t n, bool required, const float **ret) {
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s", layer, name);
  return load_row(l, full, n, required, ret);
}

/* Pieces that the layers of the architectures are put together from. */
static int load_attention(loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, hd = (size_t)f->head_dim;
  size_t q = (size_t)f->n_heads * hd, kv = (size_t)f->n_kv_heads * hd;
  if (l->kv_heads && pst_engine_gguf_value_i64(l->kv_heads, (uint64_t)i) == 0)
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "layer %d without key heads", i);
  int code = layer_matrix(l, i, "attn_q", q, embd, &y->q);
  if (!code) code = layer_matrix(l, i, "attn_k", kv, embd, &y->k);
  if (!code) code = layer_matrix(l, i, "attn_v", kv, embd, &y->v);
  if (!code) code = layer_matrix(l, i, "attn_output", embd, q, &y->o);
  return code;
}

static int load_biases(loader *l, int i, bool required, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t hd = (size_t)f->head_dim, q = (size_t)f->n_heads * hd, kv = (size_t)f->n_kv_heads * hd;
  int code = layer_row(l, i, "attn_q.bias", q, required, &y->q_bias);
  if (!code) code = layer_row(l, i, "attn_k.bias", kv, required, &y->k_bias);
  if (!code) code = layer_row(l, i, "attn_v.bias", kv, required, &y->v_bias);
  return code;
}

static int load_feed_forward(loader *l, int i, pst_engine_layer *y) {
  size_t embd = (size_t)l->m->info.n_embd, ff = (size_t)l->m->info.n_ff;
  int code = layer_matrix(l, i, "ffn_gate", ff, embd, &y->gate);
  if (!code) code = layer_matrix(l, i, "ffn_up", ff, embd, &y->up);
  if (!code) code = layer_matrix(l, i, "ffn_down", embd, ff, &y->down);
  return code;
}

static int load_norms(loader *l, int i, pst_engine_layer *y) {
  int code = layer_row(l, i, "attn_norm.weight", (size_t)l->m->info.n_embd, true, &y->attn_norm);
  if (!code) code = layer_row(l, i, "ffn_norm.weight", (size_t)l->m->info.n_embd, true, &y->ffn_norm);
  return code;
}

static int load_post_norms(loader *l, int i, pst_engine_layer *y) {
  int code = layer_row(l, i, "post_attention_norm.weight", (size_t)l->m->info.n_embd, true, &y->post_attn_norm);
  if (!code) code = layer_row(l, i, "post_ffw_norm.weight", (size_t)l->m->info.n_embd, true, &y->post_ffn_norm);
  return code;
}

static int load_head_norms(loader *l, int i, bool whole, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t hd = (size_t)f->head_dim;
  y->norm_whole = whole;
  int code = layer_row(l, i, "attn_q_norm.weight", whole ? hd * (size_t)f->n_heads : hd, true, &y->q_norm);
  if (!code) code = layer_row(l, i, "attn_k_norm.weight", whole ? hd * (size_t)f->n_kv_heads : hd, true, &y->k_norm);
  return code;
}

/* One matrix of every expert, each packed for itself. */
static int load_expert_matrix(loader *l, int i, const char *name, size_t rows, size_t cols,
                              pst_engine_expert_matrix *ret) {
  size_t n = (size_t)l->m->n_experts;
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s.weight", i, name);
  const pst_engine_gguf_tensor *t = find_tensor(l, full);
  int code = check_dims(l, t, full, n, rows, cols);
  if (!code) code = init_matrix(l, t, full, rows, cols, &ret->shape);
  if (code) return code;
  ret->stride = pst_kernels_matrix_bytes(&ret->shape);
  size_t bytes = rows * pst_kernels_row_bytes(t->type, cols);
  for (size_t e = 0; e < n && !code; e++) {
    const uint8_t *src = t->data + e * bytes;
    size_t at = take_bytes(l, src, ret->stride);
    if (!l->memory) continue;
    if (e == 0) ret->shape.data = l->memory + at;
    code = add_job(l, (struct pack_job){&ret->shape, NULL, src, l->memory + at, NULL});
  }
  return code;
}

static int load_experts(loader *l, int i, pst_engine_experts *y) {
  const pst_engine_model *m = l->m;
  size_t embd = (size_t)m->info.n_embd, ff = (size_t)m->n_ff_expert, n = (size_t)m->n_experts;
  int code = layer_matrix(l, i, "ffn_gate_inp", n, embd, &y->router);
  if (!code) code = load_expert_matrix(l, i, "ffn_gate_exps", ff, embd, &y->gate);
  if (!code) code = load_expert_matrix(l, i, "ffn_up_exps", ff, embd, &y->up);
  if (!code) code = load_expert_matrix(l, i, "ffn_down_exps", embd, ff, &y->down);
  return code;
}

static int load_expert_bias(loader *l, int i, const char *name, size_t n, const float **ret) {
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s.bias", i, name);
  return load_floats(l, full, (size_t)l->m->n_experts, n, true, ret);
}

static int expert_keys(loader *l) {
  pst_engine_model *m = l->m;
  int code = need_int(l, "expert_count", 1, PST_ENGINE_MAX_EXPERTS, &m->n_experts);
  if (!code)
    code = need_int(l, "expert_used_count", 1, PST_MIN(m->n_experts, PST_ENGINE_MAX_USED_EXPERTS), &m->n_experts_used);
  m->n_ff_expert = m->info.n_ff;
  if (!code) code = want_int(l, "expert_feed_forward_length", 32, 1 << 19, &m->n_ff_expert);
  return code;
}

/* Norm, attention, norm, gated feed-forward: what most decoders are. */
static int load_plain_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_norms(l, i, y);
  if (!code) code = load_attention(l, i, y);
  if (!code) code = load_feed_forward(l, i, y);
  return code;
}

/* ---- architectures ---- */

static double yarn_magnitude(double factor, double weight) { return factor <= 1 ? 1 : 0.1 * weight * log(factor) + 1; }

/* YaRN (arXiv 2309.00071, 3.2 and 3.4): pairs that turn fast keep their angle, slow ones turn `factor` times slower, a ramp between them. `whole`: the
 * ramp's ends are rounded outwards to whole pairs, as models were trained that came from the paper's code. */
static int yarn_rope(loader *l, double factor, bool whole, pst_engine_rope *r) {
  const double pi = 3.14159265358979323846;
  double fast = 32, slow = 1, log_multiplier = 0;
  int n_ctx = 0;
  int code = need_int(l, "rope.scaling.original_context_length", 1, 1 << 30, &n_ctx);
  if (!code) code = want_double(l, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &fast);
  if (!code) code = want_double(l, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &slow);
  if (!code) code = want_double(l, "rope.scaling.yarn_log_multiplier", 0, 1e3, &log_multiplier);
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

static int rope_scaling(loader *l, bool whole, pst_engine_rope *r) {
  char key[128];
  pst_str type = PST_STR("none");
  double factor = 1;
  int code = pst_engine_gguf_opt_str(l->m->gguf, key_of(l, "rope.scaling.type", key), &type, l->err);
  if (code) return code;
  bool yarn = pst_str_is(type, "yarn"), linear = pst_str_is(type, "linear");
  if (!yarn && !linear && !pst_str_is(type, "none"))
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "key '%s' is '%.*s'; known are none, linear and yarn", key,
                         (int)PST_MIN(type.n, (size_t)40), type.data);
  code = want_double(l, "rope.scaling.factor", 1e-6, 1e6, &factor);
  if (code) return code;
  if (yarn) return yarn_rope(l, factor, whole, r);
  r->scale = linear ? 1 / factor : 1;
  return 0;
}

static pst_engine_rope plain_rope(const loader *l, pst_kernels_rope style, double base) {
  return (pst_engine_rope){.base = base, .scale = 1, .magnitude = 1, .style = style, .n_rot = l->m->info.head_dim};
}

/* One rope for all layers. */
static int rope_keys(loader *l, pst_kernels_rope style, double base, bool whole) {
  pst_engine_model *m = l->m;
  pst_engine_rope *r = &m->ropes[0];
  m->n_ropes = 1;
  *r = plain_rope(l, style, base);
  int code = want_int(l, "rope.dimension_count", 2, m->info.head_dim, &r->n_rot);
  if (!code) code = want_double(l, "rope.freq_base", 1, 1e12, &r->base);
  if (!code) code = rope_scaling(l, whole, r);
  return code;
}

static int one_rope(loader *l, pst_kernels_rope style, double base) { return rope_keys(l, style, base, true); }

static int llama_keys(loader *l) {
  int code = one_rope(l, PST_KERNELS_ROPE_PAIRS, 10000);
  pst_engine_rope *r = &l->m->ropes[0];
  if (code || !pst_engine_gguf_find_tensor(l->m->gguf, "rope_freqs.weight")) return code;
  if (r->magnitude != 1)
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "tensor 'rope_freqs.weight' and YaRN at once");
  return load_row(l, "rope_freqs.weight", (size_t)r->n_rot / 2, true, &r->factors);
}

/* Llama with queries that grow with the position, as Ministral 3 (Llama 4's scheme). */
static int mistral3_keys(loader *l) {
  pst_engine_model *m = l->m;
  int length = m->info.n_ctx_train, code = llama_keys(l);
  m->temperature_beta = 0;
  if (!code) code = want_double(l, "attention.temperature_scale", 0, 1e3, &m->temperature_beta);
  if (!code) code = want_int(l, "rope.scaling.original_context_length", 1, 1 << 30, &length);
  m->temperature_length = length;
  return code;
}

static int llama_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_plain_layer(l, i, y);
  return code ? code : load_biases(l, i, false, y);
}

static int neox_keys(loader *l) { return one_rope(l, PST_KERNELS_ROPE_HALVES, 10000); }

static int qwen2_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_plain_layer(l, i, y);
  return code ? code : load_biases(l, i, true, y);
}

static int qwen3_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_plain_layer(l, i, y);
  return code ? code : load_head_norms(l, i, false, y);
}

static int qwen3moe_keys(loader *l) {
  int code = neox_keys(l);
  return code ? code : expert_keys(l);
}

static int qwen3moe_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_norms(l, i, y);
  if (!code) code = load_attention(l, i, y);
  if (!code) code = load_head_norms(l, i, false, y);
  if (!code) code = load_experts(l, i, &y->experts);
  return code;
}

/* OpenAI's code leaves the ends of YaRN's ramp where they fall. */
static int gpt_oss_keys(loader *l) {
  l->m->gate = PST_KERNELS_SWIGLU_CLAMPED;
  int code = rope_keys(l, PST_KERNELS_ROPE_HALVES, 150000, false);
  return code ? code : expert_keys(l);
}

static int gpt_oss_layer(loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model *m = l->m;
  size_t embd = (size_t)m->info.n_embd, ff = (size_t)m->n_ff_expert;
  int window = 0, code = layer_row(l, i, "attn_norm.weight", embd, true, &y->attn_norm);
  if (!code) code = load_attention(l, i, y);
  if (!code) code = load_biases(l, i, true, y);
  if (!code) code = layer_row(l, i, "attn_output.bias", embd, true, &y->o_bias);
  if (!code) code = layer_row(l, i, "attn_sinks.weight", (size_t)m->info.n_heads, true, &y->sinks);
  if (!code) code = layer_row(l, i, "post_attention_norm.weight", embd, true, &y->ffn_norm);
  if (!code) code = load_experts(l, i, &y->experts);
  if (!code) code = layer_row(l, i, "ffn_gate_inp.bias", (size_t)m->n_experts, true, &y->experts.router_bias);
  if (!code) code = load_expert_bias(l, i, "ffn_gate_exps", ff, &y->experts.gate.bias);
  if (!code) code = load_expert_bias(l, i, "ffn_up_exps", ff, &y->experts.up.bias);
  if (!code) code = load_expert_bias(l, i, "ffn_down_exps", embd, &y->experts.down.bias);
  if (!code) code = need_int(l, "attention.sliding_window", 1, 1 << 24, &window);
  y->window = i % 2 == 0 ? window : 0;
  return code;
}

static int lfm2_keys(loader *l) {
  l->output_norm = "token_embd_norm.weight";
  int code = neox_keys(l);
  return code ? code : need_int(l, "shortconv.l_cache", 2, PST_ENGINE_MAX_CONV, &l->m->n_conv);
}

static int load_conv(loader *l, int i, pst_engine_conv *y) {
  size_t embd = (size_t)l->m->info.n_embd, n = (size_t)l->m->n_conv;
  char name[64];
  int code = layer_matrix(l, i, "shortconv.in_proj", 3 * embd, embd, &y->in);
  if (!code) code = layer_matrix(l, i, "shortconv.out_proj", embd, embd, &y->out);
  snprintf(name, sizeof name, "blk.%d.shortconv.conv.weight", i);
  return code ? code : load_floats(l, name, embd, n, true, &y->taps);
}

static int lfm2_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_norms(l, i, y);
  bool attends = !l->kv_heads || pst_engine_gguf_value_i64(l->kv_heads, (uint64_t)i) > 0;
  if (!code) code = attends ? load_attention(l, i, y) : load_conv(l, i, &y->conv);
  if (!code && attends) code = load_head_norms(l, i, false, y);
  if (!code) code = load_feed_forward(l, i, y);
  return code;
}

static int qwen35_keys(loader *l) {
  pst_engine_model *m = l->m;
  char key[128];
  int inner = 0, code = neox_keys(l);
  (void)key_of(l, "rope.dimension_sections", key); /* of text all sections have one position */
  if (!code) code = need_int(l, "ssm.conv_kernel", 2, PST_ENGINE_MAX_CONV, &m->n_conv);
  if (!code) code = need_int(l, "ssm.state_size", 8, 256, &m->delta_head);
  if (!code) code = need_int(l, "ssm.group_count", 1, 1024, &m->n_delta_k);
  if (!code) code = need_int(l, "ssm.time_step_rank", 1, 1024, &m->n_delta_v);
  if (!code) code = need_int(l, "ssm.inner_size", 1, 1 << 20, &inner);
  if (code) return code;
  m->gated_queries = true;
  if (inner != m->n_delta_v * m->delta_head || m->n_delta_v % m->n_delta_k || inner % PST_KERNELS_BLOCK)
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "a delta net of %d value heads over %d key heads of %d, %d wide", m->n_delta_v, m->n_delta_k,
                         m->delta_head, inner);
  return 0;
}

/* Whether layer i has a delta net: as a list of layers says, else all but every n-th. */
static int is_recurrent(loader *l, int i, bool *ret) {
  char key[128];
  int interval = 4, code = want_int(l, "full_attention_interval", 1, 1024, &interval);
  if (code) return code;
  *ret = (i + 1) % interval != 0;
  const pst_engine_gguf_value *list = NULL;
  if (!pst_engine_gguf_find(l->m->gguf, key_of(l, "attention.recurrent_layers", key))) return 0;
  code = pst_engine_gguf_get_array(l->m->gguf, key, PST_ENGINE_GGUF_BOOLS, &list, l->err);
  if (code) return code;
  int n_all = l->m->info.n_layers + l->n_ahead;
  if (list->n != (uint64_t)n_all)
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key '%s' has %llu entries for %d layers", key,
                         (unsigned long long)list->n, n_all);
  *ret = pst_engine_gguf_value_bool(list, (uint64_t)i);
  return 0;
}

static int load_delta(loader *l, int i, pst_engine_delta *y) {
  const pst_engine_model *m = l->m;
  size_t embd = (size_t)m->info.n_embd, head = (size_t)m->delta_head, n_v = (size_t)m->n_delta_v;
  size_t values = n_v * head, channels = 2 * (size_t)m->n_delta_k * head + values;
  char name[64];
  int code = layer_matrix(l, i, "attn_qkv", channels, embd, &y->qkv);
  if (!code) code = layer_matrix(l, i, "attn_gate", values, embd, &y->z);
  if (!code && m->delta_grouped) code = layer_matrix(l, i, "ssm_ba", 2 * n_v, embd, &y->beta);
  if (!code && !m->delta_grouped) code = layer_matrix(l, i, "ssm_beta", n_v, embd, &y->beta);
  if (!code && !m->delta_grouped) code = layer_matrix(l, i, "ssm_alpha", n_v, embd, &y->alpha);
  if (!code) code = layer_matrix(l, i, "ssm_out", embd, values, &y->out);
  snprintf(name, sizeof name, "blk.%d.ssm_conv1d.weight", i);
  if (!code) code = load_floats(l, name, channels, (size_t)m->n_conv, true, &y->taps);
  if (!code) code = layer_row(l, i, "ssm_a", n_v, true, &y->rate);
  if (!code) code = layer_row(l, i, "ssm_dt.bias", n_v, true, &y->alpha_bias);
  if (!code) code = layer_row(l, i, "ssm_norm.weight", head, true, &y->norm);
  return code;
}

static int qwen35_attention(loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, hd = (size_t)f->head_dim;
  size_t q = (size_t)f->n_heads * hd, kv = (size_t)f->n_kv_heads * hd;
  int code = layer_matrix(l, i, "attn_q", 2 * q, embd, &y->q);
  if (!code) code = layer_matrix(l, i, "attn_k", kv, embd, &y->k);
  if (!code) code = layer_matrix(l, i, "attn_v", kv, embd, &y->v);
  if (!code) code = layer_matrix(l, i, "attn_output", embd, q, &y->o);
  return code ? code : load_head_norms(l, i, false, y);
}

/* All of a layer of a hybrid but its feed-forward branch. */
static int load_hybrid(loader *l, int i, pst_engine_layer *y) {
  size_t embd = (size_t)l->m->info.n_embd;
  bool recurrent = false;
  int code = is_recurrent(l, i, &recurrent);
  if (!code) code = layer_row(l, i, "attn_norm.weight", embd, true, &y->attn_norm);
  if (!code) code = recurrent ? load_delta(l, i, &y->delta) : qwen35_attention(l, i, y);
  if (!code) code = layer_row(l, i, "post_attention_norm.weight", embd, true, &y->ffn_norm);
  return code;
}

static int qwen35_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_hybrid(l, i, y);
  return code ? code : load_feed_forward(l, i, y);
}

static int qwen35moe_keys(loader *l) {
  int code = qwen35_keys(l);
  if (!code) code = expert_keys(l);
  return code ? code : need_int(l, "expert_shared_feed_forward_length", 32, 1 << 19, &l->m->n_ff_dense);
}

static int qwen35moe_layer(loader *l, int i, pst_engine_layer *y) {
  size_t embd = (size_t)l->m->info.n_embd, ff = (size_t)l->m->n_ff_dense;
  int code = load_hybrid(l, i, y);
  if (!code) code = load_experts(l, i, &y->experts);
  if (!code) code = layer_matrix(l, i, "ffn_gate_inp_shexp", 1, embd, &y->experts.shared_gate);
  if (!code) code = layer_matrix(l, i, "ffn_gate_shexp", ff, embd, &y->gate);
  if (!code) code = layer_matrix(l, i, "ffn_up_shexp", ff, embd, &y->up);
  if (!code) code = layer_matrix(l, i, "ffn_down_shexp", embd, ff, &y->down);
  return code;
}

static int qwen3next_keys(loader *l) {
  l->m->delta_grouped = true;
  return qwen35moe_keys(l);
}

/* Norms stand behind the branches only, and over the whole of queries and keys. */
static int olmo2_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_attention(l, i, y);
  if (!code) code = load_head_norms(l, i, true, y);
  if (!code) code = load_feed_forward(l, i, y);
  if (!code) code = load_post_norms(l, i, y);
  return code;
}

/* Every fourth layer sees no positions. */
static int smollm3_layer(loader *l, int i, pst_engine_layer *y) {
  y->rope = (i + 1) % 4 ? 0 : -1;
  return llama_layer(l, i, y);
}

static int granite_keys(loader *l) {
  pst_engine_model *m = l->m;
  double embedding = 1, residual = 1, logit = 1, attention = m->attention_scale;
  int code = llama_keys(l);
  if (!code) code = want_double(l, "embedding_scale", 1e-6, 1e6, &embedding);
  if (!code) code = want_double(l, "residual_scale", 1e-6, 1e6, &residual);
  if (!code) code = want_double(l, "attention.scale", 1e-6, 1e6, &attention);
  if (!code) code = want_double(l, "logit_scale", 1e-6, 1e6, &logit);
  m->embedding_scale = (float)embedding;
  m->residual_scale = (float)residual;
  m->attention_scale = (float)attention;
  m->logit_scale = (float)(1 / logit);
  return code;
}

static int phi3_layer(loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, ff = (size_t)f->n_ff, hd = (size_t)f->head_dim;
  size_t q = (size_t)f->n_heads * hd, kv = (size_t)f->n_kv_heads * hd, all = q + 2 * kv;
  char qkv[64], up[64];
  int code = load_norms(l, i, y);
  snprintf(qkv, sizeof qkv, "blk.%d.attn_qkv.weight", i);
  snprintf(up, sizeof up, "blk.%d.ffn_up.weight", i);
  if (!code) code = load_rows(l, qkv, all, 0, q, embd, &y->q);
  if (!code) code = load_rows(l, qkv, all, q, kv, embd, &y->k);
  if (!code) code = load_rows(l, qkv, all, q + kv, kv, embd, &y->v);
  if (!code) code = layer_matrix(l, i, "attn_output", embd, q, &y->o);
  if (!code) code = load_rows(l, up, 2 * ff, 0, ff, embd, &y->gate);
  if (!code) code = load_rows(l, up, 2 * ff, ff, ff, embd, &y->up);
  if (!code) code = layer_matrix(l, i, "ffn_down", embd, ff, &y->down);
  if (!code) code = want_int(l, "attention.sliding_window", 0, 1 << 24, &y->window);
  return code;
}

/* What all Gemmas share. */
static int gemma_keys(loader *l) {
  pst_engine_model *m = l->m;
  m->embedding_scale = sqrtf((float)m->info.n_embd);
  m->gate = PST_KERNELS_GELU_TANH;
  return 0;
}

static int gemma_layer(loader *l, int i, bool local, pst_engine_layer *y) {
  int window = 0, code = load_plain_layer(l, i, y);
  if (!code) code = load_post_norms(l, i, y);
  if (!code) code = need_int(l, "attention.sliding_window", 1, 1 << 24, &window);
  y->window = local ? window : 0;
  return code;
}

static int gemma2_keys(loader *l) {
  pst_engine_model *m = l->m;
  double attention = 50, logit = 30;
  int code = one_rope(l, PST_KERNELS_ROPE_HALVES, 10000);
  if (!code) code = want_double(l, "attn_logit_softcapping", 0, 1e6, &attention);
  if (!code) code = want_double(l, "final_logit_softcapping", 0, 1e6, &logit);
  if (!code) code = gemma_keys(l);
  m->attention_softcap = (float)attention;
  m->logit_softcap = (float)logit;
  /* The 27B alone scales queries by its width per head instead of the head's own; so does Gemma 3's below. */
  if (m->info.n_layers == 46) m->attention_scale = 1.0f / sqrtf((float)m->info.n_embd / (float)m->info.n_heads);
  return code;
}

static int gemma2_layer(loader *l, int i, pst_engine_layer *y) { return gemma_layer(l, i, i % 2 == 0, y); }

static int gemma3_keys(loader *l) {
  pst_engine_model *m = l->m;
  m->n_ropes = 2;
  m->ropes[0] = plain_rope(l, PST_KERNELS_ROPE_HALVES, 1e6);
  m->ropes[1] = plain_rope(l, PST_KERNELS_ROPE_HALVES, 1e4);
  int code = want_double(l, "rope.freq_base", 1, 1e12, &m->ropes[0].base);
  if (!code)
    code = want_double(l, "rope.local.freq_base", 1, 1e12, &m->ropes[1].base); /* as older converters named it */
  if (!code) code = want_double(l, "rope.freq_base_swa", 1, 1e12, &m->ropes[1].base);
  if (!code) code = rope_scaling(l, true, &m->ropes[0]);
  if (!code) code = gemma_keys(l);
  if (m->info.n_layers == 62) m->attention_scale = 1.0f / sqrtf((float)m->info.n_embd / (float)m->info.n_heads);
  return code;
}

static int gemma3_layer(loader *l, int i, pst_engine_layer *y) {
  bool local = (i + 1) % 6 != 0;
  y->rope = local ? 1 : 0;
  int code = gemma_layer(l, i, local, y);
  return code ? code : load_head_norms(l, i, false, y);
}

/* ---- encoders ---- */

static int refuse_causal(loader *l) {
  char key[128];
  bool causal = false;
  int code = pst_engine_gguf_opt_bool(l->m->gguf, key_of(l, "attention.causal", key), &causal, l->err);
  if (code || !causal) return code;
  return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "key '%s' is true; encoders attend both ways", key);
}

/* What all encoders' keys have in common; a file that does not say how to pool means the mean. */
static int encoder_keys(loader *l) {
  int pooling = PST_ENGINE_POOL_MEAN, code = refuse_causal(l);
  char key[128];
  if (!code) code = want_int(l, "pooling_type", 0, 4, &pooling);
  if (!code && (pooling < PST_ENGINE_POOL_MEAN || pooling > PST_ENGINE_POOL_LAST))
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "key '%s' is %d; known are 1 (mean), 2 (first token) and 3 (last token)",
                         key_of(l, "pooling_type", key), pooling);
  l->m->encoding.pooling = (pst_engine_pooling)pooling;
  l->m->info.n_dims = l->m->info.min_dims = l->m->info.n_embd;
  return code;
}

static int load_layernorm(loader *l, const char *name, pst_engine_layernorm *ret) {
  char full[96];
  size_t embd = (size_t)l->m->info.n_embd;
  snprintf(full, sizeof full, "%s.weight", name);
  int code = load_row(l, full, embd, true, &ret->weight);
  snprintf(full, sizeof full, "%s.bias", name);
  return code ? code : load_row(l, full, embd, true, &ret->bias);
}

static int layer_layernorm(loader *l, int i, const char *name, pst_engine_layernorm *ret) {
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s", i, name);
  return load_layernorm(l, full, ret);
}

/* What stands around BERT's layers. Every text is of token type 0. */
static int bert_ends(loader *l) {
  pst_engine_model *m = l->m;
  double eps = 1e-12;
  uint64_t n_types = 2;
  int code = encoder_keys(l);
  if (!code) code = want_double(l, "attention.layer_norm_epsilon", 0, 1, &eps);
  if (!code) code = pst_engine_gguf_opt_u64(m->gguf, "tokenizer.ggml.token_type_count", &n_types, l->err);
  if (!code && (n_types < 1 || n_types > 1024))
    code = pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key 'tokenizer.ggml.token_type_count' is out of range");
  m->norm_eps = (float)eps;
  l->no_output_norm = true;
  const pst_engine_gguf_tensor *types = find_tensor(l, "token_types.weight");
  if (!code && types) {
    code = check_shape(l, types, "token_types.weight", (size_t)n_types, (size_t)m->info.n_embd);
    if (!code) code = load_first_row(l, types, "token_types.weight", (size_t)m->info.n_embd, &m->encoding.segment);
  }
  return code ? code : load_layernorm(l, "token_embd_norm", &m->encoding.embedding_norm);
}

static int bert_keys(loader *l) {
  const pst_engine_model_info *f = &l->m->info;
  l->m->gate = PST_KERNELS_GELU_ERF;
  int code = bert_ends(l);
  if (code) return code;
  return load_matrix(l, "position_embd.weight", (size_t)f->n_ctx_train, (size_t)f->n_embd, &l->m->encoding.positions);
}

static int nomic_bert_keys(loader *l) {
  int code = bert_ends(l);
  return code ? code : one_rope(l, PST_KERNELS_ROPE_HALVES, 10000);
}

/* Queries, keys and values apart, or as one tensor. */
static int load_any_attention(loader *l, int i, pst_engine_layer *y) {
  const pst_engine_model_info *f = &l->m->info;
  size_t embd = (size_t)f->n_embd, hd = (size_t)f->head_dim;
  size_t q = (size_t)f->n_heads * hd, kv = (size_t)f->n_kv_heads * hd, all = q + 2 * kv;
  char qkv[64];
  snprintf(qkv, sizeof qkv, "blk.%d.attn_qkv.weight", i);
  if (!pst_engine_gguf_find_tensor(l->m->gguf, qkv)) return load_attention(l, i, y);
  int code = load_rows(l, qkv, all, 0, q, embd, &y->q);
  if (!code) code = load_rows(l, qkv, all, q, kv, embd, &y->k);
  if (!code) code = load_rows(l, qkv, all, q + kv, kv, embd, &y->v);
  return code ? code : layer_matrix(l, i, "attn_output", embd, q, &y->o);
}

static int load_sum_norms(loader *l, int i, pst_engine_layer *y) {
  int code = layer_layernorm(l, i, "attn_output_norm", &y->attn_sum_norm);
  return code ? code : layer_layernorm(l, i, "layer_output_norm", &y->ffn_sum_norm);
}

/* Attention, norm, plain feed-forward, norm; everything has a bias. Devlin et al. 2018, arXiv:1810.04805. */
static int bert_layer(loader *l, int i, pst_engine_layer *y) {
  size_t embd = (size_t)l->m->info.n_embd, ff = (size_t)l->m->info.n_ff;
  y->rope = -1;
  int code = load_any_attention(l, i, y);
  if (!code) code = load_biases(l, i, true, y);
  if (!code) code = layer_row(l, i, "attn_output.bias", embd, true, &y->o_bias);
  if (!code) code = layer_matrix(l, i, "ffn_up", ff, embd, &y->up);
  if (!code) code = layer_row(l, i, "ffn_up.bias", ff, true, &y->up_bias);
  if (!code) code = layer_matrix(l, i, "ffn_down", embd, ff, &y->down);
  if (!code) code = layer_row(l, i, "ffn_down.bias", embd, true, &y->down_bias);
  return code ? code : load_sum_norms(l, i, y);
}

/* BERT's order with rope, a gated feed-forward and no biases. Nussbaum et al. 2024, arXiv:2402.01613. */
static int nomic_bert_layer(loader *l, int i, pst_engine_layer *y) {
  int code = load_any_attention(l, i, y);
  if (!code) code = load_feed_forward(l, i, y);
  return code ? code : load_sum_norms(l, i, y);
}

/* Gemma 3 with attention both ways, and projections behind the pooling where the file has them. */
static int gemma_embedding_keys(loader *l) {
  static const char *const names[] = {"dense_2", "dense_3"};
  pst_engine_model *m = l->m;
  int code = gemma3_keys(l), n_in = m->info.n_embd;
  if (!code) code = want_double(l, "rope.freq_base_swa", 1, 1e12, &m->ropes[1].base);
  if (!code) code = encoder_keys(l);
  m->encoding.n_dense = 0;
  for (size_t k = 0; k < PST_ARRAY_LEN(names) && !code; k++) {
    char tensor[32], in[32], out[32];
    int from = n_in, to = n_in;
    snprintf(tensor, sizeof tensor, "%s.weight", names[k]);
    snprintf(in, sizeof in, "%s_feat_in", names[k]);
    snprintf(out, sizeof out, "%s_feat_out", names[k]);
    code = want_int(l, in, 1, 1 << 17, &from);
    if (!code) code = want_int(l, out, 1, 1 << 17, &to);
    if (code || !pst_engine_gguf_find_tensor(m->gguf, tensor)) continue;
    if (from != n_in)
      return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "tensor '%s' reads %d elements, where %d come", tensor,
                           from, n_in);
    code = load_matrix(l, tensor, (size_t)to, (size_t)from, &m->encoding.dense[m->encoding.n_dense++]);
    n_in = to;
  }
  m->info.n_dims = n_in;
  m->info.min_dims = PST_MIN(n_in, MATRYOSHKA_MIN_DIMS);
  return code;
}

static int gemma_embedding_layer(loader *l, int i, pst_engine_layer *y) {
  int code = gemma3_layer(l, i, y);
  if (y->window) y->window = y->window / 2 + 1; /* the file counts both sides */
  return code;
}

/* ---- the table ---- */

static const struct architecture {
  const char *name;
  int (*keys)(loader *l);
  int (*layer)(loader *l, int i, pst_engine_layer *y);
} architectures[] = {
    {"llama", llama_keys, llama_layer},
    {"qwen2", neox_keys, qwen2_layer},
    {"qwen3", neox_keys, qwen3_layer},
    {"gemma2", gemma2_keys, gemma2_layer},
    {"gemma3", gemma3_keys, gemma3_layer},
    {"phi3", neox_keys, phi3_layer},
    {"smollm3", llama_keys, smollm3_layer},
    {"granite", granite_keys, llama_layer},
    {"olmo2", neox_keys, olmo2_layer},
    {"mistral3", mistral3_keys, llama_layer},
    {"qwen3moe", qwen3moe_keys, qwen3moe_layer},
    {"gpt-oss", gpt_oss_keys, gpt_oss_layer},
    {"lfm2", lfm2_keys, lfm2_layer},
    {"qwen35", qwen35_keys, qwen35_layer},
    {"qwen35moe", qwen35moe_keys, qwen35moe_layer},
    {"qwen3next", qwen3next_keys, qwen35moe_layer},
    {"bert", bert_keys, bert_layer},
    {"nomic-bert", nomic_bert_keys, nomic_bert_layer},
    {"gemma-embedding", gemma_embedding_keys, gemma_embedding_layer},
};

static const struct architecture *find_architecture(loader *l) {
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

/* One number, or one for each layer where some layers do not attend (LFM2): those that do must agree. */
static int read_kv_heads(loader *l) {
  pst_engine_model_info *f = &l->m->info;
  char key[128];
  const pst_engine_gguf_value *v = pst_engine_gguf_find(l->m->gguf, key_of(l, "attention.head_count_kv", key));
  if (!v || v->kind != PST_ENGINE_GGUF_ARRAY) return want_int(l, "attention.head_count_kv", 1, 1024, &f->n_kv_heads);
  int code = pst_engine_gguf_get_array(l->m->gguf, key, PST_ENGINE_GGUF_INTEGERS, &l->kv_heads, l->err);
  if (code) return code;
  int64_t most = 0;
  for (uint64_t i = 0; i < v->n; i++) most = PST_MAX(most, pst_engine_gguf_value_i64(v, i));
  for (uint64_t i = 0; i < v->n; i++) {
    int64_t n = pst_engine_gguf_value_i64(v, i);
    if (v->n != (uint64_t)f->n_layers || most > 1024 || (n != 0 && n != most))
      return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                           "key '%s' must say 0 or one and the same number, up to 1024, for each of %d layers", key,
                           f->n_layers);
  }
  if (most == 0) return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "key '%s': no layer attends", key);
  f->n_kv_heads = (int)most;
  return 0;
}

static int read_shape(loader *l) {
  pst_engine_model_info *f = &l->m->info;
  double eps = 1e-6;
  int code = need_int(l, "block_count", 1, 1024, &f->n_layers);
  bool may_predict_ahead = !strncmp(l->arch, "qwen35", 6) || !strcmp(l->arch, "qwen3next");
  if (!code && may_predict_ahead) code = want_int(l, "nextn_predict_layers", 0, f->n_layers - 1, &l->n_ahead);
  f->n_layers -= l->n_ahead;
  if (!code) code = need_int(l, "context_length", 1, 1 << 30, &f->n_ctx_train);
  if (!code) code = need_int(l, "embedding_length", 32, 1 << 17, &f->n_embd);
  /* A model of nothing but experts may leave the width of the others out. */
  char key[128];
  bool has_ff = pst_engine_gguf_find(l->m->gguf, key_of(l, "feed_forward_length", key)) != NULL;
  const char *experts_ff = "expert_feed_forward_length";
  bool has_experts = pst_engine_gguf_find(l->m->gguf, key_of(l, experts_ff, key)) != NULL;
  if (!code) code = need_int(l, has_ff || !has_experts ? "feed_forward_length" : experts_ff, 32, 1 << 19, &f->n_ff);
  l->m->n_ff_dense = f->n_ff;
  if (!code) code = need_int(l, "attention.head_count", 1, 1024, &f->n_heads);
  f->n_kv_heads = f->n_heads;
  if (!code) code = read_kv_heads(l);
  if (code) return code;
  f->head_dim = f->n_embd / f->n_heads;
  code = want_int(l, "attention.key_length", 8, 1024, &f->head_dim);
  int value_dim = f->head_dim;
  if (!code) code = want_int(l, "attention.value_length", 8, 1024, &value_dim);
  if (!code) code = want_double(l, "attention.layer_norm_rms_epsilon", 0, 1, &eps);
  if (code) return code;
  if (f->n_heads % f->n_kv_heads)
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "%d query heads are not a multiple of %d key heads",
                         f->n_heads, f->n_kv_heads);
  if (f->head_dim % 8 || f->head_dim > 256 || value_dim != f->head_dim)
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "head size %d (values %d): known are equal sizes, multiples of 8 up to 256", f->head_dim,
                         value_dim);
  l->m->norm_eps = (float)eps;
  l->m->embedding_scale = l->m->residual_scale = l->m->logit_scale = 1;
  l->m->gate = PST_KERNELS_SILU;
  l->m->attention_scale = 1.0f / sqrtf((float)f->head_dim);
  return 0;
}

/* A screen for the head, where it is large and its products are compared as they are. */
static int load_screen(loader *l, const char *head_name) {
  pst_engine_model *m = l->m;
  enum { ROWS_WORTH_IT = 4096 };
  m->screen.radius = NULL;
  bool plain = m->logit_softcap == 0 && m->logit_scale == 1; /* else unequal products could be equal logits */
  if (m->head.n_rows < ROWS_WORTH_IT || !plain || !pst_kernels_screen_pays(&m->head)) return 0;
  int code = pst_kernels_screen_init(&m->head, &m->screen);
  if (code) return code;
  const uint8_t *src = find_tensor(l, head_name)->data;
  size_t codes_at = take_bytes(l, src, pst_kernels_matrix_bytes(&m->screen.codes));
  size_t radius_at = take_bytes(l, src, pst_kernels_screen_radius_bytes(&m->screen));
  if (!l->memory) return 0;
  float *radius = (float *)(void *)(l->memory + radius_at);
  m->screen.codes.data = l->memory + codes_at;
  m->screen.radius = radius;
  return add_job(l, (struct pack_job){&m->head, &m->screen, src, l->memory + codes_at, radius});
}

/* The last norm and the head; an encoder has no head, and not always a norm. */
static int load_end(loader *l) {
  pst_engine_model *m = l->m;
  size_t vocab = (size_t)m->info.n_vocab, embd = (size_t)m->info.n_embd;
  int code = load_row(l, l->output_norm, embd, !l->no_output_norm, &m->output_norm);
  if (m->encoding.pooling != PST_ENGINE_POOL_NONE) return code;
  const char *head_name = pst_engine_gguf_find_tensor(m->gguf, "output.weight") ? "output.weight" : "token_embd.weight";
  if (!code && strcmp(head_name, "output.weight") == 0)
    code = load_matrix(l, head_name, vocab, embd, &m->head);
  else
    m->head = m->embedding;
  return code ? code : load_screen(l, head_name);
}

static int load_table(loader *l, const struct architecture *a) {
  pst_engine_model *m = l->m;
  l->used = 0;
  l->table = 0;
  l->n_jobs = 0;
  l->output_norm = "output_norm.weight";
  m->n_conv_layers = m->n_delta_layers = m->n_attention_layers = 0;
  int code = a->keys(l);
  if (!code) code = load_matrix(l, "token_embd.weight", (size_t)m->info.n_vocab, (size_t)m->info.n_embd, &m->embedding);
  if (!code) code = load_end(l);
  for (int i = 0; i < m->info.n_layers && !code; i++) {
    memset(&m->layers[i], 0, sizeof m->layers[i]);
    code = a->layer(l, i, &m->layers[i]);
    int *n_alike = m->layers[i].conv.in.n_rows     ? &m->n_conv_layers
                   : m->layers[i].delta.out.n_rows ? &m->n_delta_layers
                                                   : &m->n_attention_layers;
    m->layers[i].store = (*n_alike)++;
  }
  return code;
}

/* Keys that say nothing about the arithmetic, or what tensors and other keys say as well. */
static const char *const silent_keys[] = {
    "vocab_size",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
};

/* Whether a tensor belongs to a layer that is left out. */
static bool is_ahead(const loader *l, pst_str name) {
  char prefix[32];
  for (int i = 0; i < l->n_ahead; i++) {
    snprintf(prefix, sizeof prefix, "blk.%d.", l->m->info.n_layers + i);
    if (pst_str_starts(name, pst_str_from(prefix))) return true;
  }
  return false;
}

/* What the file says and nobody read would be ignored in silence: refused by name. */
static int refuse_leftovers(loader *l) {
  char key[128];
  for (size_t i = 0; i < PST_ARRAY_LEN(silent_keys); i++) (void)key_of(l, silent_keys[i], key);
  snprintf(key, sizeof key, "%s.", l->arch);
  for (size_t i = 0; i < pst_engine_gguf_n_values(l->m->gguf); i++) {
    pst_str name = pst_engine_gguf_value_at(l->m->gguf, i)->key;
    if (l->asked[i] || !pst_str_starts(name, pst_str_from(key))) continue;
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "key '%.*s' has no meaning in architecture %s as this program knows it",
                         (int)PST_MIN(name.n, (size_t)100), name.data, l->arch);
  }
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(l->m->gguf); i++) {
    pst_str name = pst_engine_gguf_tensor_at(l->m->gguf, i)->name;
    if (l->taken[i] || is_ahead(l, name)) continue;
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "tensor '%.*s' has no place in architecture %s as this program knows it", (int)name.n,
                         name.data, l->arch);
  }
  return 0;
}

/* ---- packing ---- */

typedef struct pack_work {
  const loader *l;
  atomic_size_t next;
  atomic_bool failed; /* no memory for a row */
} pack_work;

/* Threads take whole matrices, largest pieces first by nature (the embedding leads), split into runs of groups. */
enum { PACK_RUN = 64 };

static void *pack_thread(void *arg) {
  pack_work *w = arg;
  size_t index = 0, first = 0; /* job that run number `first` begins */
  for (;;) {
    size_t run = atomic_fetch_add(&w->next, 1);
    for (; index < w->l->n_jobs; index++) {
      size_t n_runs = (w->l->jobs[index].matrix->n_groups + PACK_RUN - 1) / PACK_RUN;
      if (run < first + n_runs) break;
      first += n_runs;
    }
    if (index == w->l->n_jobs) return NULL;
    const struct pack_job *j = &w->l->jobs[index];
    size_t begin = (run - first) * PACK_RUN, end = PST_MIN(begin + PACK_RUN, j->matrix->n_groups);
    const uint8_t *src = j->src + begin * PST_KERNELS_GROUP * pst_kernels_row_bytes(j->matrix->type, j->matrix->n_cols);
    if (!j->screen)
      pst_kernels_matrix_pack(j->matrix, src, begin, end, j->dst);
    else if (pst_kernels_screen_pack(j->screen, j->matrix->type, src, begin, end, j->dst, j->radius))
      atomic_store(&w->failed, true);
  }
}

static int pack_all(const loader *l, int n_threads) {
  pack_work w = {l, 0, false};
  pthread_t threads[64] = {0};
  int n = 0;
  while (n < PST_MIN(n_threads, 64) - 1 && pthread_create(&threads[n], NULL, pack_thread, &w) == 0) n++;
  pack_thread(&w);
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
  if (!atomic_load(&w.failed)) return 0;
  return pst_error_set(l->err, PST_E_NOMEM, l->path, "no memory to pack the weights");
}

/* ---- opening ---- */

static const char *main_type(const pst_engine_gguf *g) {
  size_t bytes[PST_TYPE_END] = {0};
  uint32_t best = PST_TYPE_F32;
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(g); i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(g, i);
    if (t->type < PST_TYPE_END) bytes[t->type] += t->bytes;
  }
  for (uint32_t t = 0; t < PST_TYPE_END; t++)
    if (bytes[t] > bytes[best]) best = t;
  return pst_kernels_type_info(best)->name;
}

static int open_text_side(pst_engine_model *m, const char *path, pst_error *err) {
  int code = pst_engine_tokenizer_create(m->gguf, &m->tokenizer, err);
  if (code) return code;
  const pst_engine_tokenizer_info *words = pst_engine_tokenizer_get_info(m->tokenizer);
  m->info.n_vocab = words->n_vocab;
  m->info.bos = words->bos;
  m->info.eos = words->eos;
  pst_str text = {NULL, 0};
  code = pst_engine_gguf_opt_str(m->gguf, "tokenizer.chat_template", &text, err);
  if (code || !text.n) return code;
  code = pst_engine_template_create(text, &m->chat_template, err);
  if (code) {
    pst_error_prefix(err, "the chat template of the file");
    if (err) snprintf(err->place, sizeof err->place, "%s", path);
  }
  m->info.has_template = !code;
  return code;
}

static int pack(loader *l, const struct architecture *a, int n_threads) {
  pst_engine_model *m = l->m;
  l->memory = m->packed = pst_malloc_aligned(m->packed_bytes, 2u << 20);
  if (!m->packed)
    return pst_error_set(l->err, PST_E_NOMEM, l->path, "no memory for %.0f MB of packed weights",
                         (double)m->packed_bytes / 1e6);
  (void)madvise(m->packed, m->packed_bytes, MADV_HUGEPAGE);
  int code = load_table(l, a); /* places */
  return code ? code : pack_all(l, n_threads > 0 ? n_threads : pst_cpu_count());
}

/* The packed block: mapped when it was kept in `packed_dir`, else made and kept there. That it cannot be kept is no error. */
static int fill(loader *l, const struct architecture *a, int n_threads, const char *packed_dir) {
  pst_engine_model *m = l->m;
  const pst_map *map = pst_engine_gguf_map(m->gguf);
  pst_engine_packed_id id = {map->inode, map->mtime_ns, map->n, 0, l->table, m->packed_bytes};
  char *kept = NULL;
  int code;
  if (packed_dir && (id.layout = pst_kernels_layout_id())) kept = pst_engine_packed_path(packed_dir, l->path);
  l->filled = kept && pst_engine_packed_map(kept, &id, &m->packed_map, &l->memory);
  if (l->filled) {
    code = load_table(l, a);
  } else if (!(code = pack(l, a, n_threads)) && kept) {
    pst_error error = PST_ERROR_INIT;
    if (pst_engine_packed_write(kept, &id, m->packed, &error))
      pst_log(PST_LOG_INFO, "event=packed_weights_not_kept file=\"%s\" reason=\"%s\"", kept, error.message);
  }
  pst_free(kept);
  /* The source pages are not read again: give them back to the system's cache. */
  (void)madvise((void *)(uintptr_t)map->data, map->n, MADV_DONTNEED);
  return code;
}

/* n_threads < 0: everything is checked, nothing packed. */
static int load_weights(pst_engine_model *m, const char *path, int n_threads, const char *packed_dir, pst_error *err) {
  loader l = {0};
  l.m = m;
  l.path = path;
  l.err = err;
  int code = 0;
  const struct architecture *a = find_architecture(&l);
  if (!a) return err && err->code ? err->code : PST_E_UNSUPPORTED;
  l.arch = m->info.architecture = a->name;
  l.taken = pst_calloc(pst_engine_gguf_n_tensors(m->gguf) + 1, sizeof *l.taken);
  l.asked = pst_calloc(pst_engine_gguf_n_values(m->gguf) + 1, sizeof *l.asked);
  if (!l.taken || !l.asked) code = pst_error_set(err, PST_E_NOMEM, path, "no memory for the file's table");
  if (!code) code = read_shape(&l);
  if (code) goto done;
  m->layers = pst_calloc((size_t)m->info.n_layers, sizeof *m->layers);
  if (!m->layers) code = pst_error_set(err, PST_E_NOMEM, path, "no memory for the layer table");
  if (!code) code = load_table(&l, a); /* measures */
  if (!code) code = refuse_leftovers(&l);
  if (code) goto done;
  m->packed_bytes = l.used + 64;
  if (n_threads >= 0) code = fill(&l, a, n_threads, packed_dir);
done:
  pst_free(l.taken);
  pst_free(l.asked);
  pst_free(l.jobs);
  return code;
}

size_t pst_engine_model_state_floats(const pst_engine_model *m) {
  size_t head = (size_t)m->delta_head, values = (size_t)m->n_delta_v * head;
  size_t channels = 2 * (size_t)m->n_delta_k * head + values;
  return m->n_delta_layers ? values * head + (size_t)(m->n_conv - 1) * channels : 0;
}

static int64_t matrix_bytes(const pst_kernels_matrix *m) { return (int64_t)(m->n_groups * m->group_bytes); }

static int64_t step_bytes(const pst_engine_model *m) {
  int64_t bytes = matrix_bytes(m->screen.codes.n_rows ? &m->screen.codes : &m->head);
  for (int i = 0; i < m->info.n_layers; i++) {
    const pst_engine_layer *y = &m->layers[i];
    const pst_engine_experts *e = &y->experts;
    const pst_engine_delta *d = &y->delta;
    const pst_kernels_matrix *all[] = {&y->q,    &y->k,       &y->v,        &y->o,          &y->gate, &y->up,
                                       &y->down, &y->conv.in, &y->conv.out, &e->router,     &d->qkv,  &d->z,
                                       &d->beta, &d->alpha,   &d->out,      &e->shared_gate};
    for (size_t k = 0; k < PST_ARRAY_LEN(all); k++) bytes += matrix_bytes(all[k]);
    bytes +=
        m->n_experts_used * (matrix_bytes(&e->gate.shape) + matrix_bytes(&e->up.shape) + matrix_bytes(&e->down.shape));
  }
  return bytes;
}

static int open_model(const char *path, int n_threads, const char *packed_dir, pst_engine_model **ret_model,
                      pst_error *err) {
  pst_error own = PST_ERROR_INIT;
  if (!err) err = &own;
  pst_engine_model *m = pst_calloc(1, sizeof *m);
  if (!m) return pst_error_set(err, PST_E_NOMEM, path, "no memory");
  atomic_init(&m->n_refs, 1);
  m->kernels = pst_kernels_get();
  int code = pst_engine_checkpoint_open(path, &m->gguf, err);
  if (!code) code = open_text_side(m, path, err);
  if (!code) code = load_weights(m, path, n_threads, packed_dir, err);
  if (code) {
    pst_engine_model_unref(m);
    return code;
  }
  pst_engine_model_info *f = &m->info;
  const pst_map *map = pst_engine_gguf_map(m->gguf);
  f->path = pst_engine_gguf_path(m->gguf);
  f->name = f->path;
  f->weights = main_type(m->gguf);
  f->isa = m->kernels->name;
  f->file_bytes = (int64_t)map->n;
  f->packed_bytes = (int64_t)m->packed_bytes;
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(m->gguf); i++)
    f->n_params += (int64_t)pst_engine_gguf_tensor_at(m->gguf, i)->n_elements;
  if (m->encoding.pooling == PST_ENGINE_POOL_NONE) /* an encoder keeps none */
    f->kv_bytes_per_token_f16 =
        (int64_t)m->n_attention_layers * f->n_kv_heads * 2 *
            (int64_t)(pst_kernels_page_bytes(PST_TYPE_F16, (size_t)f->head_dim) / PST_KERNELS_PAGE) +
        (int64_t)m->n_conv_layers * PST_ENGINE_CONV_KEPT * f->n_embd * 4 / PST_KERNELS_PAGE;
  f->state_bytes = (int64_t)pst_engine_model_state_floats(m) * m->n_delta_layers * (int64_t)sizeof(float);
  f->step_bytes = step_bytes(m);
  uint64_t identity[3] = {map->inode, map->mtime_ns, map->n};
  m->content_key = pst_hash64(identity, sizeof identity, 1);
  *ret_model = m;
  return 0;
}

int pst_engine_model_open(const char *path, int n_threads, pst_engine_model **ret_model, pst_error *err) {
  return open_model(path, PST_MAX(n_threads, 0), NULL, ret_model, err);
}

int pst_engine_model_open_kept(const char *path, const char *packed_dir, int n_threads, pst_engine_model **ret_model,
                               pst_error *err) {
  return open_model(path, PST_MAX(n_threads, 0), packed_dir, ret_model, err);
}

int pst_engine_model_examine(const char *path, pst_engine_model **ret_model, pst_error *err) {
  return open_model(path, -1, NULL, ret_model, err);
}

pst_engine_model *pst_engine_model_ref(pst_engine_model *m) {
  atomic_fetch_add(&m->n_refs, 1);
  return m;
}

void pst_engine_model_unref(pst_engine_model *m) {
  if (!m || atomic_fetch_sub(&m->n_refs, 1) > 1) return;
  pst_engine_template_free(m->chat_template);
  pst_engine_tokenizer_free(m->tokenizer);
  pst_engine_gguf_close(m->gguf);
  pst_free(m->layers);
  pst_free(m->packed);
  if (m->packed_map.data) pst_map_close(&m->packed_map);
  pst_free(m);
}

const pst_engine_model_info *pst_engine_model_get_info(const pst_engine_model *m) { return &m->info; }
