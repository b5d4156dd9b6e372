/* Penstock tune: a model with fewer layers, for one workload.
 *
 * Which layers a workload misses least is found by what the model says of its traffic without them; what they did is then learned again by the others, as any adapter is.
 *
 * Threads: pruning blocks its caller and uses threads of its own. */
#ifndef PENSTOCK_TUNE_PRUNE_H
#define PENSTOCK_TUNE_PRUNE_H

#include <penstock/tune_calibrate.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PST_TUNE_PRUNE_MOST = 128 }; /* layers that may be left out */

typedef struct pst_tune_prune_options {
  int n_layers;                  /* to leave out, at least 1 and fewer than the model has */
  size_t max_tokens;             /* that go through the model at once, and of the longest text */
  size_t search_tokens;          /* of `search` that each look at a layer reads */
  const char *note;              /* kept in the file as penstock.pruned; NULL: none */
  int threads;                   /* 0: pst_cpu_count() */
  pst_progress *progress;        /* begun and ended by the caller; NULL: silent */
  bool (*cancelled)(void *user); /* asked between looks; NULL: never */
  void *user;
} pst_tune_prune_options;
pst_tune_prune_options pst_tune_prune_options_default(void);

typedef struct pst_tune_prune_report {
  int n_layers;                     /* that the model had */
  int dropped[PST_TUNE_PRUNE_MOST]; /* [options.n_layers], ascending */
  int64_t bytes, source_bytes;      /* of all tensors */
  pst_tune_divergence held_out;     /* of the file from the whole model, before anything is learned again */
  double seconds;
} pst_tune_prune_report;

/* Writes the model at in_path (a GGUF file or checkpoint's folder) to out_path without the layers that `search` misses least: one after the other, always the one without which
 * the answers' distributions stay nearest to the whole model's (compare Men et al. 2024, arXiv:2403.03853, who rank layers once by how little they change their input). The same texts
 * and options give the same file. A file at out_path is replaced, whole or not at all. Errors: PST_E_UNSUPPORTED (architecture, or layers that are not all of one kind), PST_E_BAD_INPUT
 * (an option), PST_E_LIMIT (a text longer than max_tokens), PST_E_NO_DATA (no text), PST_E_CANCELLED, PST_E_NOMEM, those of files. */
int pst_tune_prune(const char *in_path, const char *out_path, const pst_tune_traffic *search,
                   const pst_tune_traffic *held_out, const pst_tune_prune_options *options,
                   pst_tune_prune_report *ret_report, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
