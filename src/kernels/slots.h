/* The slots of pst_kernels as an instruction set's files define them, and the table made of them: adding a slot is one line in each. */
#ifndef PST_KERNELS_SLOTS_H
#define PST_KERNELS_SLOTS_H

#include "kernels/layout.h"

/* What the files of an instruction set offer. */
#define PST_KERNELS_MATMUL_SLOT(isa)                                                                         \
  void pst_kernels_matmul_##isa(const pst_kernels_matrix *w, const pst_kernels_input *input, size_t t0,      \
                                size_t n_tokens, size_t group_begin, size_t group_end, bool add, float *out, \
                                size_t out_stride, void *work);
#define PST_KERNELS_VECTOR_SLOTS(isa)                                                                                  \
  void pst_kernels_quantize_##isa(const float *x, size_t block_begin, size_t block_end, pst_kernels_input *input,      \
                                  size_t token);                                                                       \
  void pst_kernels_rmsnorm_##isa(const float *x, const float *weight, size_t n, float eps, float *out);                \
  void pst_kernels_rmsnorm_quantize_##isa(const float *x, const float *weight, float eps, float *out,                  \
                                          pst_kernels_input *input, size_t token);                                     \
  void pst_kernels_layernorm_##isa(const float *x, const float *weight, const float *bias, size_t n, float eps,        \
                                   float *out);                                                                        \
  void pst_kernels_gated_##isa(pst_kernels_gate kind, const float *gate, const float *up, size_t n, float *out);       \
  void pst_kernels_gated_quantize_##isa(pst_kernels_gate kind, const float *gate, const float *up, size_t block_begin, \
                                        size_t block_end, pst_kernels_input *input, size_t token);                     \
  void pst_kernels_add_##isa(const float *x, const float *y, size_t n, float *out);                                    \
  void pst_kernels_scale_##isa(const float *x, float factor, size_t n, float *out);                                    \
  void pst_kernels_softcap_##isa(const float *x, float cap, size_t n, float *out);                                     \
  void pst_kernels_rope_##isa(float *x, size_t n_heads, size_t head_dim, size_t n_rot, pst_kernels_rope style,         \
                              const float *cos_sin);                                                                   \
  size_t pst_kernels_argmax_##isa(const float *x, size_t n);                                                           \
  size_t pst_kernels_screen_pass_##isa(const float *x, const float *radius, float reach, float floor, size_t n,        \
                                       int32_t first, int32_t *ret_groups);                                            \
  void pst_kernels_delta_rule_##isa(float *state, size_t n_k, size_t n_v, const float *q, const float *k,              \
                                    const float *v, float decay, float beta, float *out);                              \
  void pst_kernels_dots_##isa(const float *rows, size_t n_rows, size_t n_cols, const float *x, size_t n_tokens,        \
                              float *out);                                                                             \
  float pst_kernels_sum_exp_##isa(const float *x, size_t n, float max);                                                \
  void pst_kernels_exp_less_##isa(const float *x, float shift, size_t n, float *out);                                  \
  void pst_kernels_panel_pack_##isa(const float *from, size_t stride, size_t n_deep, size_t n_cols, float *panel);     \
  void pst_kernels_panel_product_##isa(size_t n_rows, size_t n_deep, const float *a, size_t a_row, size_t a_col,       \
                                       const float *panel, float *c, size_t c_row, size_t n_cols, bool add);           \
  void pst_kernels_store_key_##isa(uint32_t kv_type, size_t head_dim, const float *x, size_t slot, uint8_t *page);     \
  void pst_kernels_store_value_##isa(uint32_t kv_type, size_t head_dim, const float *x, size_t slot, uint8_t *page);   \
  void pst_kernels_attention_##isa(const pst_kernels_attend *a, void *work);                                           \
  void pst_kernels_attention_part_##isa(const pst_kernels_attend *a, size_t block_begin, size_t block_end,             \
                                        float *parts, void *work);                                                     \
  void pst_kernels_attention_merge_##isa(const pst_kernels_attend *a, size_t block_begin, size_t block_end,            \
                                         const float *parts);

/* Its table: `vectors` names the instruction set whose vector slots are taken, often the same. */
#define PST_KERNELS_TABLE(isa_name, isa, vectors)                                                                     \
  {                                                                                                                   \
    .name = isa_name, .quantize = pst_kernels_quantize_##vectors, .rmsnorm = pst_kernels_rmsnorm_##vectors,           \
    .rmsnorm_quantize = pst_kernels_rmsnorm_quantize_##vectors, .layernorm = pst_kernels_layernorm_##vectors,         \
    .gated = pst_kernels_gated_##vectors, .gated_quantize = pst_kernels_gated_quantize_##vectors,                     \
    .add = pst_kernels_add_##vectors, .scale = pst_kernels_scale_##vectors, .softcap = pst_kernels_softcap_##vectors, \
    .rope = pst_kernels_rope_##vectors, .argmax = pst_kernels_argmax_##vectors,                                       \
    .screen_pass = pst_kernels_screen_pass_##vectors, .sum_exp = pst_kernels_sum_exp_##vectors,                       \
    .panel_pack = pst_kernels_panel_pack_##vectors, .exp_less = pst_kernels_exp_less_##vectors,                       \
    .panel_product = pst_kernels_panel_product_##vectors, .delta_rule = pst_kernels_delta_rule_##vectors,             \
    .dots = pst_kernels_dots_##vectors, .matmul = pst_kernels_matmul_##isa,                                           \
    .store_key = pst_kernels_store_key_##vectors, .store_value = pst_kernels_store_value_##vectors,                   \
    .attention = pst_kernels_attention_##vectors, .attention_part = pst_kernels_attention_part_##vectors,             \
    .attention_merge = pst_kernels_attention_merge_##vectors,                                                         \
  }

#endif
