/* Where the trained numbers of an adapter stand in one row of them. Shared by forward, backward, the optimizer and checkpoints.
 *
 * y = w x + scale * b (a x) (Hu et al. 2021, arXiv:2106.09685). Linear layers that read the same input are a group: their a's lie one behind the other,
 * a matrix [n_trained * rank][n_in], then come their b's. */
#ifndef PST_TUNE_LORA_H
#define PST_TUNE_LORA_H

#include "tune/model.h"

enum { PST_TUNE_NO_ADAPTER = -1 };

typedef struct pst_tune_lora_layer {
  size_t a[PST_TUNE_GROUP_COUNT]; /* offset of the group's a's */
  int n_trained[PST_TUNE_GROUP_COUNT];
  size_t b[PST_ENGINE_ROLE_COUNT];  /* offset of the role's b [n_out][rank] */
  int place[PST_ENGINE_ROLE_COUNT]; /* of the role's a among the group's; PST_TUNE_NO_ADAPTER: the role has none */
} pst_tune_lora_layer;

typedef struct pst_tune_lora {
  size_t rank;
  double scale;
  size_t n_layers, n; /* numbers altogether */
  size_t head;        /* encoders: offset of the trained head [n_labels][n_embd]; n where there is none */
  pst_tune_lora_layer *layers;
} pst_tune_lora;

/* roles: which linear layers are trained, [PST_ENGINE_ROLE_COUNT]. PST_E_BAD_INPUT: none; PST_E_NOMEM. */
int pst_tune_lora_init(const pst_tune_model *model, size_t rank, double alpha, const bool *roles,
                       pst_tune_lora *ret_lora, pst_error *err);
void pst_tune_lora_done(pst_tune_lora *lora);
/* Offset of a role's a [rank][n_in]. The role is trained. */
size_t pst_tune_lora_a(const pst_tune_model *model, const pst_tune_lora *lora, size_t layer, pst_engine_role role);
/* The start of training: a uniform in +-1/sqrt(n_in), as PEFT draws it, by (seed, layer and role, element); b zero, so that the
 * model is as it was. */
void pst_tune_lora_start(const pst_tune_model *model, const pst_tune_lora *lora, uint64_t seed, float *ret_params);

#endif
