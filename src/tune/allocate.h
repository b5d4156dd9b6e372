/* Which of several offers each matrix takes, so that all together lose least within a budget of bytes. */
#ifndef PST_TUNE_ALLOCATE_H
#define PST_TUNE_ALLOCATE_H

#include <penstock/tune_calibrate.h>

typedef struct pst_tune_offer {
  uint32_t type;
  int64_t bytes;
  double loss;
} pst_tune_offer;

typedef struct pst_tune_choice {
  pst_tune_offer offers[PST_TUNE_CALIBRATE_TYPES];
  int n;      /* of offers, at least 1 */
  int chosen; /* result */
} pst_tune_choice;

/* The offer of fewest bytes, of those the one that loses least. */
int pst_tune_cheapest(const pst_tune_choice *choice);
/* Greedy: all start at their cheapest offer; then, as long as one fits, the exchange that saves most loss per byte is made (the first among equals). What offers of other
 * choices lose is taken as independent. PST_E_LIMIT: the cheapest offers alone are over budget_bytes; chosen are the cheapest all the same. Pure. */
int pst_tune_allocate(pst_tune_choice *choices, size_t n, int64_t budget_bytes);

#endif
