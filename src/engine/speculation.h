/* The cost rule: how many of the guessed tokens a step verifies, zero included.
 *
 * A step's time depends on its number of rows (tokens); a curve of it is kept from the steps as they run. Drafts are added, the likeliest first, as far as the
 * expected tokens per second grow. No clock in here: the optimizer's replay and the tests bring times of their own. Owned by one thread. */
#ifndef PST_ENGINE_SPECULATION_H
#define PST_ENGINE_SPECULATION_H

#include "engine/draft.h"

/* Steps of more rows than this compute more than they read: drafts do not pay there. */
enum { PST_ENGINE_CURVE_ROWS = 64 };

/* Relative times of steps by rows. All 0 at the beginning. */
typedef struct pst_engine_step_curve {
  double level;                           /* logarithm of the microseconds of a step of relative time 1, lately */
  float shape[PST_ENGINE_CURVE_ROWS + 1]; /* [rows] logarithm of the relative time; meaningful where n_seen > 0 */
  uint16_t n_seen[PST_ENGINE_CURVE_ROWS + 1];
  uint32_t seen_at[PST_ENGINE_CURVE_ROWS + 1]; /* n_steps of the last one */
  uint32_t n_steps;
} pst_engine_step_curve;

/* A step of `rows` rows took `us` microseconds. What the attended positions add must be taken out of `us` by the caller. */
void pst_engine_curve_note(pst_engine_step_curve *c, int rows, double us);
/* Microseconds of a step of `rows` rows, lately. */
double pst_engine_curve_us(const pst_engine_step_curve *c, int rows);
/* The relative time of a step, rows >= 1. Between rows that were seen: on the line between them; beyond: hardly more than the last, so that it is tried. */
double pst_engine_curve_time(const pst_engine_step_curve *c, int rows);

/* One sequence in the choice: the chance that a draft is right up to each of its guesses. */
typedef struct pst_engine_offer {
  const pst_engine_guess *guesses;
  int n_guesses;
  int n_chosen; /* the answer: how many to verify */
} pst_engine_offer;
/* How many guesses a draft model is asked for, for each of n sequences in a step of `rows` rows without them: a round of it takes round_us, and a guess is right with
 * this chance if those before it are. 0: it does not pay, or nothing is known of steps yet. */
int pst_engine_speculation_depth(const pst_engine_step_curve *c, int rows, int n, double chance, double round_us,
                                 int most);
/* Fills in n_chosen. rows: of the step without drafts. */
void pst_engine_speculation_choose(const pst_engine_step_curve *c, int rows, pst_engine_offer *offers, int n);

#endif
