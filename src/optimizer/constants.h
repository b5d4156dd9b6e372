/* Every number the planner takes for granted: value, unit, where it was measured or why it was chosen. Shown in the report. */
#ifndef PST_OPTIMIZER_CONSTANTS_H
#define PST_OPTIMIZER_CONSTANTS_H

#include <stddef.h>

#define PST_OPTIMIZER_CONSTANT_TABLE(X)                                                                               \
  X(budget_s, 360, "s", "chosen: with building and pulling, the demo stays within ten minutes on 2 cores")            \
  X(calibration_s, 50, "s", "chosen: all calibrations together; the design allows a minute")                          \
  X(calibration_share, 0.12, "of the budget", "chosen: short budgets calibrate less")                                 \
  X(verify_share, 0.33, "of the budget", "chosen: two plans over the held-back items")                                \
  X(verify_money, 0.5, "of the money for providers",                                                                  \
    "chosen: kept for the held-back items; a plan and its reference may both be a provider's")                        \
  X(paid_share, 0.9, "of the money for providers", "chosen: what is planned with; calls reserve more than they cost") \
  X(unasked_payment, 1.5, "times", "chosen: a provider's answer may be longer than expected before one was seen")     \
  X(verify_overrun, 1.2, "of the budget",                                                                             \
    "chosen: a further finalist is asked only where the run then ends below this")                                    \
  X(verify_power, 0.999, "", "chosen: how surely held-back items show a difference that is there")                    \
  X(verify_safety, 3, "times", "chosen: what a plan is asked beyond that, since a search flatters what it favours")   \
  X(baseline_items, 200, "items", "chosen: a share is known to 7 points, an accepted answer's cost to about a sixth") \
  X(baseline_share, 0.10, "of the budget",                                                                            \
    "chosen: for finding the best plan of prompted models where what was learned is ahead of them")                   \
  X(baseline_time, 0.35, "of the time left", "chosen: what asking that plan held-back items may take of it")          \
  X(baseline_gain, 0.01, "of its worth", "chosen: what the search for that plan goes on for")                         \
  X(search_share, 0.30, "of the budget",                                                                              \
    "chosen: the search gets this much even where calibration took longer than planned")                              \
  X(finals_share, 0.06, "of the budget", "chosen: kept for asking the finalists more items")                          \
  X(least_steps, 4, "measurements", "chosen: asked even when the time for the search is over")                        \
  X(first_block, 16, "items", "chosen: halves the error of the prior on a 50% plan")                                  \
  X(block_growth, 2, "times", "chosen: successive halving's factor (Jamieson and Talwalkar 2016)")                    \
  X(final_items, 64, "items", "chosen: a finalist's standard error is at most 6 points")                              \
  X(finalists, 4, "plans", "chosen: each is verified only if those before it failed")                                 \
  X(profile_items, 24, "items", "chosen: prompts of one task hardly vary in length")                                  \
  X(classifier_items, 256, "items", "chosen: examples that a classifier is timed on")                                 \
  X(classifier_work, 120e6, "bytes times labels",                                                                     \
    "measured: BANKING77's 4,435 examples are 20e6 and take 16 s of one processor; of more a sample is learned from") \
  X(encoded_bytes, 1e6, "bytes",                                                                                      \
    "measured: an encoder of 22 million parameters reads BANKING77's 260,000 in 19 s of one processor")               \
  X(lookup_items, 32, "items", "chosen: of a block of answers, what prompt lookup is replayed over")                  \
  X(prior_quality_none, 0.10, "of items", "SmolLM2-135M, bare list of BANKING77's labels, another engine: 4%")        \
  X(prior_quality_fixed, 0.25, "of items", "the same with 16 fixed examples: 21%")                                    \
  X(prior_quality_nearest, 0.50, "of items", "the same with 4 retrieved examples: 78%; Gemma-3-270M on SNIPS: 41%")   \
  X(prior_quality_adapter, 0.60, "of items",                                                                          \
    "SmolLM2-135M tuned for 25 minutes, bare message, another engine: 59% on SNIPS")                                  \
  X(prior_doubling, 0.15, "logits", "assumed: gain of twice the examples, before anything is measured")               \
  X(prior_constraint_none, -0.3, "logits", "assumed: free answers miss the label's spelling")                         \
  X(variance_common, 1.0, "logits^2", "assumed: how far a whole workload may lie from the prior")                     \
  X(variance_model, 0.3, "logits^2", "assumed")                                                                       \
  X(variance_weights, 0.03, "logits^2", "assumed: 4 bits and more differ little")                                     \
  X(variance_kv, 0.01, "logits^2", "assumed: Q8_0 keys and values differ little")                                     \
  X(variance_prompt, 0.2, "logits^2", "assumed")                                                                      \
  X(variance_layout, 0.4, "logits^2", "assumed")                                                                      \
  X(variance_examples, 0.8, "logits^2", "assumed: examples matter most")                                              \
  X(variance_constraint, 0.6, "logits^2", "assumed")                                                                  \
  X(variance_classifier, 0.05, "logits^2", "assumed: held-out folds say nearly as much as search items")              \
  X(variance_together, 0.5, "logits^2", "assumed: interactions of all fields")                                        \
  X(analytic_error, 0.35, "relative", "assumed: the formula knows no bursts")                                         \
  X(replay_error, 0.15, "relative", "assumed beside the fit's own residual: what the step model leaves out")          \
  X(load_headroom, 0.75, "of capacity", "assumed: what a latency objective leaves of the formula's capacity")         \
  X(open_engine_s, 3, "s", "assumed where calibration does not say: load and pack a small model")                     \
  X(item_overhead_us, 1500, "us", "assumed: retrieval, rendering, grading and book-keeping of one item")              \
  X(operating_load, 0.75, "of the highest load",                                                                      \
    "chosen: where latencies are shown and measured; at the highest they are the objective")                          \
  X(horizon_months, 1, "months", "chosen: how long a plan is expected to serve before it is planned anew")            \
  X(default_monthly, 100000, "requests", "assumed where the workload does not say")                                   \
  X(default_price_nusd, 100000000, "nano-dollars per hour", "assumed where neither workload nor settings say: $0.10") \
  X(infeasible_penalty, 3, "times", "chosen: a plan that breaks the goal is worth less than any that keeps it")       \
  X(free_answer_share, 0.5, "of max_tokens", "assumed length of a free answer until one was recorded")                \
  X(tuning_examples, 200, "examples",                                                                                 \
    "chosen: below, advice to tune is withheld; SmolLM2-135M came to 32% on SNIPS after 976")                         \
  X(tuning_epochs, 8, "times", "as penstock turn trains: most times that an example is seen")                         \
  X(tuning_s, 1200, "s", "as penstock turn trains: most time for it")                                                 \
  X(traffic_requests, 50, "requests", "chosen: served in 30 days, from which on they say what a month brings")        \
  X(cache_us, 100, "us", "measured: SmolLM2-135M's gateway answers a hit in 45 to 130; keeping an answer takes 40")   \
  X(cache_gain, 0.01, "of the cost", "chosen: a cache that saves less is not proposed")                               \
  X(confidence, 0.95, "", "custom: two-sided intervals")                                                              \
  X(ablation_items, 64, "items", "chosen: what explain's fields are measured on where time is left")

typedef struct pst_optimizer_constant {
  const char *name;
  double value;
  const char *unit, *source;
} pst_optimizer_constant;

enum {
#define PST_OPTIMIZER_CONSTANT_ENUM(name, value, unit, source) PST_OPTIMIZER_C_##name,
  PST_OPTIMIZER_CONSTANT_TABLE(PST_OPTIMIZER_CONSTANT_ENUM)
#undef PST_OPTIMIZER_CONSTANT_ENUM
      PST_OPTIMIZER_N_CONSTANTS
};
extern const pst_optimizer_constant pst_optimizer_constants[PST_OPTIMIZER_N_CONSTANTS];
#define PST_OPTIMIZER_CONST(name) (pst_optimizer_constants[PST_OPTIMIZER_C_##name].value)

#endif
