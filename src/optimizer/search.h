/* One run's knowledge and decisions: what was measured, what is believed, what to measure next, which plans are finalists. */
#ifndef PST_OPTIMIZER_SEARCH_H
#define PST_OPTIMIZER_SEARCH_H

#include "optimizer/journal.h"
#include "optimizer/speed.h"
#include "optimizer/surrogate.h"
#include "optimizer/world.h"

/* Answers of one class on one part's items, in the part's order: every class is asked the same items first, so any two are paired. */
typedef struct pst_optimizer_answers {
  uint8_t *right; /* one per item of the part; valid up to n */
  int n, k;
  double prompt, cached, completion; /* sums */
  double steps;                      /* sum of the steps that gave tokens; 0: not known */
  /* What drafts would have made of them, by pst_engine_speculation; 0: not looked at. */
  double looked_tokens[3], looked_steps[3], looked_drafted[3];
  double wall_us, busy_ms; /* busy_ms: sum of the answers' own times */
  int64_t cost_nusd, n_failed;
} pst_optimizer_answers;

typedef struct pst_optimizer_step {
  int class_index; /* n_classes: a reference outside the space */
  int from, to, k;
  double voi;     /* expected worth of the measurement: nano-dollars a month, or the objective's unit */
  double seconds; /* it was expected to take */
  int64_t elapsed_us;
} pst_optimizer_step;

typedef struct pst_optimizer_state {
  pst_optimizer_space *space;
  pst_optimizer_speed *speed;
  pst_optimizer_journal *journal;
  pst_optimizer_world *world;
  pst_evals_goal goal;
  double budget_s, monthly;
  double money_nusd, spent_nusd; /* what providers may be paid, INFINITY without a limit; what they were */
  bool broke;                    /* a call to a provider was refused for want of money: none is asked any more */
  bool reference_pays;           /* the reference outside the space asks a provider */
  uint64_t seed;
  size_t *search_items, *verify_items; /* in the order they are asked, by seed */
  size_t n_search, n_verify;
  int reference;      /* class; n_classes: outside the space */
  int reference_work; /* class that does the same work, by which its cost is known: its own, or one that differs in what is mended alone; -1: none */
  pst_optimizer_choice reference_choice;     /* the plan it is compared with as it stands; inside the space */
  pst_optimizer_estimate reference_estimate; /* of that choice, by replay, once there are finalists */
  const char *reference_plan;                /* its document */
  char reference_hash[65];
  pst_optimizer_answers *search, *verify; /* n_classes + 1 */
  pst_optimizer_belief *beliefs;          /* n_classes */
  pst_optimizer_estimate *estimates;      /* n_classes: of the exact choice below */
  pst_optimizer_choice *best_exact;       /* n_classes: whole choices */
  uint8_t *pruned;                        /* n_classes: dominated, interval against interval */
  double *open_s; /* by base model, weights, kv: seconds until their engine answers; 0 once it was used */
  pst_optimizer_step *steps;
  size_t n_steps, steps_capacity;
  size_t n_pruned;
  /* The class believed to answer best, of those that were asked and keep the goal's limits of time and cost: what goal.max_quality_loss is counted from. -1: none,
   * or the goal has no such limit. */
  int finest;
  double
      loss_floor; /* its quality less what may be lost, which holds by what is believed of a class in the mean; 0: no limit */
  double floor; /* in force beside it: the goal's, or the reference less the margin, whichever is higher */
  double scale; /* of the objective, for penalties */
  const char *why_stopped;
} pst_optimizer_state;

/* Of the run, as the log has it: what decisions go by. */
static inline double pst_optimizer_elapsed_s(const pst_optimizer_state *s) {
  return (double)s->journal->elapsed_us / 1e6;
}
static inline bool pst_optimizer_is_prompted_class(const pst_optimizer_state *s, size_t class_index) {
  return pst_optimizer_is_prompted(s->space, &s->space->classes[class_index]);
}

int pst_optimizer_state_init(pst_optimizer_state *s, size_t max_items, pst_error *err);
void pst_optimizer_state_done(pst_optimizer_state *s);

/* Asks a class items [its n, to) of a part, through the log. Where the money for providers does not cover all, it is asked the first of them, and the state is broke: from then on no
 * provider is asked. */
int pst_optimizer_measure(pst_optimizer_state *s, int class_index, bool verify, int to, pst_error *err);
/* Formula estimates of every class at its best exact choice. */
void pst_optimizer_estimate_all(pst_optimizer_state *s);
/* Beliefs, the floor in force, dominance. */
int pst_optimizer_update(pst_optimizer_state *s, pst_error *err);
/* Once finalists are replayed: the finest class by its replay as well, and the floor that it sets. */
int pst_optimizer_settle_floor(pst_optimizer_state *s, pst_error *err);
/* Whether 1,000 accepted answers at quality q cost no more than the goal allows. */
bool pst_optimizer_is_cheap_enough(const pst_optimizer_state *s, double request_nusd, double q);
/* What a class is worth at quality q: the objective where the goal holds, a penalty where not. Higher is better. */
double pst_optimizer_utility(const pst_optimizer_state *s, const pst_optimizer_estimate *e, double q);
double pst_optimizer_expected_utility(const pst_optimizer_state *s, const pst_optimizer_estimate *e,
                                      pst_optimizer_belief b);
/* Measures what pays most per second until nothing pays or `deadline_s` of the run is reached. Where something learned is ahead then, a share of the budget goes into
 * finding the best prompted plan, which it is to be compared with. */
int pst_optimizer_search(pst_optimizer_state *s, double deadline_s, pst_error *err);
/* The prompted class that the search makes the most of, of those that keep the goal's limit of time, and were asked where `asked`; -1: there is none. */
int pst_optimizer_best_prompted(const pst_optimizer_state *s, bool asked);
/* Why a class is not worth more items, by the whole interval that is believed of it; NULL: it is. */
const char *pst_optimizer_why_hopeless(const pst_optimizer_state *s, int class_index);
/* The best measured classes, best first, each on at least final_items (time allowing, and where it is not hopeless); returns how many in *ret_n. */
int pst_optimizer_finalists(pst_optimizer_state *s, double deadline_s, int *ret_classes, size_t *ret_n, pst_error *err);
/* Chooses a class's exact fields by replay of the trace, and keeps choice and estimate in the state. */
int pst_optimizer_choose_exact(pst_optimizer_state *s, int class_index, pst_error *err);
/* The exact choice's replay over the trace, with prompts as they are rendered. What the class has answered says how long answers are. */
int pst_optimizer_replay_class(pst_optimizer_state *s, int class_index, const pst_optimizer_choice *choice,
                               pst_optimizer_estimate *ret_estimate, pst_error *err);
/* Seconds that asking a class n items is expected to take. */
double pst_optimizer_seconds(const pst_optimizer_state *s, int class_index, int n);
/* What asking a class n items is expected to pay providers. */
double pst_optimizer_payment(const pst_optimizer_state *s, int class_index, int n);
/* Whether that is there; share: of all the money, for what is asked by then. */
bool pst_optimizer_affords(const pst_optimizer_state *s, int class_index, int n, double share);
/* Calibration took so long to open the engine of a choice. With the first type of keys and values it says so for all types: not every combination is opened, and
 * they hardly differ in this. */
void pst_optimizer_opens_in(pst_optimizer_state *s, const pst_optimizer_choice *c, double seconds);
/* A choice with the exact fields everything is measured with. */
pst_optimizer_choice pst_optimizer_measuring(const pst_optimizer_state *s, const pst_optimizer_choice *c);

/* Marks [0, n) what another dominates: its highest cost is below their lowest and its lowest quality above their highest. Costs may be INFINITY.
 * Returns how many are marked. (optimizer/dominance.c) */
typedef struct pst_optimizer_point {
  double cost_low, cost_high, quality_low, quality_high;
} pst_optimizer_point;
size_t pst_optimizer_dominated(const pst_optimizer_point *points, size_t n, uint8_t *ret_marks);

#endif
