/* What a run may ask of the world. Each answer is a JSON value that goes into the log before anyone looks at it. The real one (live.c) asks the gateway; tests
 * bring one of their own. */
#ifndef PST_OPTIMIZER_WORLD_H
#define PST_OPTIMIZER_WORLD_H

#include "optimizer/space.h"

typedef struct pst_optimizer_world {
  void *state;
  /* {"weights", "has_template", "n_ctx", "label_tokens"} of a local model. */
  int (*describe)(void *state, const char *model, const char *sha256, pst_buf *out, pst_error *err);
  /* Rendered prompts of a sample of items, one entry per (model, prompt, layout, examples) of a local model that some class uses:
   * [{"key": [m, p, l, e], "lengths": [...], "shared": N}]. */
  int (*profiles)(void *state, const pst_optimizer_space *space, pst_buf *out, pst_error *err);
  /* {"fixed_us", "token_us", "context_us", "head_us", "relative_error", "seconds"} of a choice's engine. */
  int (*calibrate)(void *state, const pst_optimizer_space *space, const pst_optimizer_choice *choice, int budget_ms,
                   pst_buf *out, pst_error *err);
  /* Asks a plan the items, in order: {"right": "0110...", "prompt": [...], "cached": [...], "completion": [...], "total_ms": [...], "steps", "drafted",
   * "accepted", "lookup": {"tokens", "steps", "drafted"}, "answers": the same, "failed", "wall_us", "cost_nusd", "run"}. Of a plan that asks a provider, where the money for them
   * has a limit, also "left_nusd" and "refused": it did not cover all, and the answers are those of the first items. */
  int (*measure)(void *state, pst_str plan_json, bool verify, const size_t *items, size_t n, pst_buf *out,
                 pst_error *err);
  /* Prompt lengths of a choice for items: {"lengths": [...], "shared": N}. */
  int (*lengths)(void *state, const pst_optimizer_space *space, const pst_optimizer_choice *choice, const size_t *items,
                 size_t n, pst_buf *out, pst_error *err);
  /* How many plans were asked the held-back items before: {"uses": N}. */
  int (*count_use)(void *state, pst_buf *out, pst_error *err);
  /* Where a run stands, for a person: phase, best so far. NULL: nobody listens. */
  void (*note)(void *state, const char *text);
  bool (*cancelled)(void *state); /* NULL: never */
  /* Trains a classifier on the workload's examples part, and on nothing else: {"artefact", "encoder" (its name, where it has one), "records", "labels", "features",
   * "seconds", "accuracy", "log_loss", "calibration_error", "item_us", "curve": [[threshold, answered, accuracy] ...]}; {"none": why} where there is nothing to
   * learn from. encoder: the model whose vectors of the texts it reads beside n-grams; NULL: n-grams alone. One with an adapter was trained before: it is looked for. The function NULL: the world has no classifiers. */
  int (*classifier)(void *state, const pst_optimizer_model *encoder, pst_buf *out, pst_error *err);
  /* What tuning a local model would be made of: {"examples", "records", "prompt_tokens", "answer_tokens", "adapter_params", "tokens_per_second", "probed",
   * "served": {"requests", "days"}}, or {"why_not": text, "examples", "records"} where it cannot be. NULL: nobody knows. */
  int (*outlook)(void *state, const char *model, pst_buf *out, pst_error *err);
  /* How often users asked again what was asked before: as pst_optimizer_repeats_count. NULL: nobody knows. */
  int (*repeats)(void *state, pst_buf *out, pst_error *err);
} pst_optimizer_world;

/* The log's key of a classifier, by the files of what it reads: its encoder, and the encoder's adapter; NULL: none. Returns ret_key. */
enum { PST_OPTIMIZER_CLASSIFIER_KEY = 80 };
static inline const char *pst_optimizer_classifier_key(const char *encoder_sha256, const char *adapter,
                                                       char ret_key[PST_OPTIMIZER_CLASSIFIER_KEY]) {
  const char *reads = adapter ? adapter : encoder_sha256;
  (void)snprintf(ret_key, PST_OPTIMIZER_CLASSIFIER_KEY, "classifier%s%.64s", reads ? " " : "", reads ? reads : "");
  return ret_key;
}

#endif
