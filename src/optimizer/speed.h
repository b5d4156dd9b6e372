/* Speed and cost of a plan, without asking it anything: step-time constants of this machine, prompt lengths as rendered, and a replay of the workload's
 * arrivals through the server's own scheduler in virtual time. */
#ifndef PST_OPTIMIZER_SPEED_H
#define PST_OPTIMIZER_SPEED_H

#include "optimizer/space.h"

enum { PST_OPTIMIZER_MAX_PROFILE = 64 };

/* Prompt lengths of a sample of items, of one (model, prompt, layout, examples). */
typedef struct pst_optimizer_profile {
  int lengths[PST_OPTIMIZER_MAX_PROFILE];
  int n, shared; /* shared: leading tokens equal in all */
  double mean;
} pst_optimizer_profile;

typedef struct pst_optimizer_speed {
  const pst_optimizer_space *space;
  pst_engine_step_model *models;   /* [model][weights][kv][threads]; fixed_us 0: not calibrated */
  pst_optimizer_profile *profiles; /* [model][prompt][layout][examples]; n 0: not rendered */
  int64_t *arrivals_us;            /* the workload's trace, or a Poisson process of its monthly requests */
  size_t *arrival_items;
  size_t n_arrivals;
  bool has_trace;
  int64_t price_nusd_per_hour;
} pst_optimizer_speed;

typedef struct pst_optimizer_estimate {
  double capacity;  /* requests per second at the highest load at which the latency objective holds; 0: it never does */
  double saturated; /* requests per second when all are there at once; 0 from the formula */
  double error;     /* relative, of the capacity */
  double load;      /* requests per second of the next line: a share of the capacity, as an operator leaves */
  double ttft_p50_ms, ttft_p95_ms, total_p50_ms, total_p95_ms; /* 0 from the formula */
  double idle_ttft_ms, idle_total_ms;                          /* a request alone */
  double tokens_per_second;                                    /* of one stream, at that load */
  double prompt_tokens, cached_tokens, completion_tokens;      /* means */
  double request_nusd;                                         /* machine or provider, per request */
  bool replayed;
} pst_optimizer_estimate;

/* What is known of a class's answers. */
typedef struct pst_optimizer_lengths {
  const int *prompt; /* one per arrival, or NULL: from the profile */
  int shared;        /* with prompt */
  double completion; /* mean tokens of an answer; 0: not known */
  double steps;      /* mean steps that give them: fewer where a constraint leaves no choice; 0: not known */
  double accept[3];  /* by pst_engine_speculation: tokens gained per step beyond the first; 0: not known */
  double drafted[3]; /* and tokens drafted per such step */
} pst_optimizer_lengths;

int pst_optimizer_speed_init(pst_optimizer_speed *speed, const pst_optimizer_space *space, uint64_t seed,
                             int64_t price_nusd_per_hour, pst_error *err);
void pst_optimizer_speed_done(pst_optimizer_speed *speed);
int pst_optimizer_speed_read_profiles(pst_optimizer_speed *speed, const pst_json *profiles, pst_error *err);
/* The slot of a choice's step model. */
pst_engine_step_model *pst_optimizer_speed_slot(pst_optimizer_speed *speed, const pst_optimizer_choice *choice);
void pst_optimizer_step_model_read(const pst_json *value, pst_engine_step_model *ret_model);
/* Fills what was not calibrated from what was, taking the effects of weights, KV type and threads as independent factors. */
void pst_optimizer_speed_complete(pst_optimizer_speed *speed);
/* Then those of models with adapters, from their bases': more bytes a step, more products a token. */
void pst_optimizer_speed_adapters(pst_optimizer_speed *speed);

/* A closed formula: microseconds of work, for every plan. */
pst_optimizer_estimate pst_optimizer_speed_formula(pst_optimizer_speed *speed, const pst_optimizer_choice *choice,
                                                   const pst_optimizer_lengths *lengths);
/* The replay: milliseconds of work, for those that matter. */
int pst_optimizer_speed_replay(pst_optimizer_speed *speed, const pst_optimizer_choice *choice,
                               const pst_optimizer_lengths *lengths, pst_optimizer_estimate *ret_estimate,
                               pst_error *err);
/* The same with an adapter of so many numbers on top of the choice's model. */
int pst_optimizer_speed_tuned(pst_optimizer_speed *speed, const pst_optimizer_choice *choice, int64_t adapter_params,
                              const pst_optimizer_lengths *lengths, pst_optimizer_estimate *ret_estimate,
                              pst_error *err);
#endif
