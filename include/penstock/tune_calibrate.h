/* Penstock tune: weights calibrated on a workload's traffic.
 *
 * A model's matrices are rounded to GGUF block types with error feedback from the traffic's own activations; which type each matrix gets is chosen by what
 * it costs in divergence from the float model for the bytes it saves. The same traffic and options give the same file, on any number of threads.
 *
 * Threads: calibration blocks its caller and uses threads of its own. */
#ifndef PENSTOCK_TUNE_CALIBRATE_H
#define PENSTOCK_TUNE_CALIBRATE_H

#include <penstock/base.h>
#include <penstock/evals.h>
#include <penstock/gateway.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Texts as tokens: prompts as they are served, and their answers. Plain data, the caller's; starts as {0}. */
typedef struct pst_tune_traffic_text {
  size_t first, n,
      n_given; /* tokens [first, first + n); the first n_given of them are the prompt, at least 1 and less than n */
} pst_tune_traffic_text;
typedef struct pst_tune_traffic {
  int32_t *tokens;
  size_t n_tokens, tokens_capacity;
  pst_tune_traffic_text *texts;
  size_t n_texts, texts_capacity;
} pst_tune_traffic;
void pst_tune_traffic_done(pst_tune_traffic *traffic); /* frees everything inside; {0} again */
/* A text, copied. PST_E_BAD_INPUT: n_given out of range; PST_E_NOMEM. */
int pst_tune_traffic_add(pst_tune_traffic *traffic, const int32_t *tokens, size_t n, size_t n_given);
/* The items of a part under a plan whose root asks a local model: each prompt exactly as it is served, then the expected answer and its end
 * (pst_gateway_render_answered). Items are taken in the order that a hash of their ids draws, at most `limit` (0: all). An item's own example is never shown to it.
 * Appends. PST_E_NO_DATA: the part has no items; PST_E_BAD_INPUT: the plan's root is no local node; errors of rendering. */
int pst_tune_traffic_render(pst_gateway *gateway, const pst_gateway_plan *plan, const pst_evals_workload *workload,
                            pst_evals_part part, size_t limit, pst_tune_traffic *traffic, pst_error *err);
/* A running text, cut into pieces of n_tokens each (the last may be shorter), at most limit_tokens in all (0: no limit). Appends. */
int pst_tune_traffic_cut(const pst_engine_model *model, pst_str text, size_t n_tokens, size_t limit_tokens,
                         pst_tune_traffic *traffic, pst_error *err);

typedef struct pst_tune_calibrate_options {
  double bits;         /* a weight, all tensors of the file counted: bytes x 8 / elements at most this */
  const char *adapter; /* merged first, in float; NULL: none */
  double damping;      /* of the inputs' Gram matrices (src/tune/feedback.h) */
  bool feedback;       /* false: types are chosen as with it, but each weight is rounded for itself */
  size_t max_tokens;   /* that go through the model at once, and of the longest text */
  double rate;         /* at which scales learn: about what a step changes of one, above 0, at most 1 */
  int threads;         /* 0: pst_cpu_count() */
  const pst_store *
      store; /* in whose data directory a run that was stopped or killed leaves what the next one goes on from; NULL: nowhere */
  pst_progress *progress;        /* begun and ended by the caller; NULL: silent */
  bool (*cancelled)(void *user); /* asked between steps; NULL: never */
  void *user;
} pst_tune_calibrate_options;
pst_tune_calibrate_options pst_tune_calibrate_options_default(void);

/* Mean divergence KL(float model || rounded model) of next-token distributions, in nats. NAN: no such tokens. */
typedef struct pst_tune_divergence {
  double all, answers; /* over all tokens, over those that predict answers */
  double top1;         /* share of all tokens where both find the same token likeliest */
  size_t n_all, n_answers;
} pst_tune_divergence;

/* The types that a matrix may get. */
enum { PST_TUNE_CALIBRATE_TYPES = 11 };
extern const uint32_t pst_tune_calibrate_types[PST_TUNE_CALIBRATE_TYPES]; /* numbers in GGUF (pst_kernels_type) */

typedef struct pst_tune_calibrate_report {
  int64_t bytes, elements,
      source_bytes; /* of all tensors: the new file's bytes, their elements, the source file's bytes */
  double bits;      /* bytes x 8 / elements */
  pst_tune_divergence plain, plain_general; /* of the same types without calibration: every weight rounded for itself */
  pst_tune_divergence held_out,
      general; /* of the file as it was written, read again; general: n_all 0 without such texts */
  size_t n_calibration_tokens;
  int n_matrices[PST_TUNE_CALIBRATE_TYPES]; /* that got each type */
  double search_before,
      search_after; /* divergence of answers on `search`, before and after scales learned; NAN: they did not */
  double predicted; /* divergence of answers that the choice of types counted on */
  double seconds;   /* of all runs that it took */
} pst_tune_calibrate_report;

/* What a model is rounded for and measured on. None of them should share texts, but for the first two. */
typedef struct pst_tune_texts {
  const pst_tune_traffic *traffic; /* rounded for */
  const pst_tune_traffic *
      lessons; /* whose answers the scales learn to predict as the float model does; NULL: they stay as they were found */
  const pst_tune_traffic *search;             /* whether the scales learned anything is told by; NULL without lessons */
  const pst_tune_traffic *held_out, *general; /* the result is measured on; general NULL: not */
} pst_tune_texts;

/* Writes the model at in_path (a GGUF file or checkpoint's folder) to out_path with all matrices of its layers, its embedding and head rounded for the
 * texts. A file at out_path is replaced, whole or not at all. Errors: PST_E_UNSUPPORTED (architecture), PST_E_BAD_INPUT (an option; an adapter or weight that does
 * not fit), PST_E_LIMIT (fewer bits than the smallest types take, with their number; a text longer than max_tokens, before any work), PST_E_NO_DATA (no text), PST_E_CANCELLED,
 * PST_E_CORRUPT (what was left to go on from), PST_E_NOMEM (also before the work, where it takes more than is free), those of files. With a store the same call goes on behind the rounding, and from step to step of the learning, and
 * gives the same file. */
int pst_tune_calibrate(const char *in_path, const char *out_path, const pst_tune_texts *texts,
                       const pst_tune_calibrate_options *options, pst_tune_calibrate_report *ret_report,
                       pst_error *err);
/* Whether pst_tune_diverge can compare the two, told before the work: both open, and are of one shape, but that the other may have fewer layers. PST_E_BAD_INPUT (another shape),
 * PST_E_UNSUPPORTED (architecture), those of opening. */
int pst_tune_diverge_check(const char *in_path, const char *path, pst_error *err);
/* Divergence of the file at `path` from the one at in_path with its adapter (NULL: none), over texts. options: max_tokens and threads count. */
int pst_tune_diverge(const char *in_path, const char *adapter, const char *path, const pst_tune_traffic *traffic,
                     const pst_tune_calibrate_options *options, pst_tune_divergence *ret_divergence, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
