/* Greedy exchange along the best ratios (allocate.h): what Lagrange multipliers give, up to the last few bytes. */
#include "tune/allocate.h"

int pst_tune_cheapest(const pst_tune_choice *choice) {
  int best = 0;
  for (int i = 1; i < choice->n; i++) {
    const pst_tune_offer *a = &choice->offers[i], *b = &choice->offers[best];
    if (a->bytes < b->bytes || (a->bytes == b->bytes && a->loss < b->loss)) best = i;
  }
  return best;
}

/* The exchange of one choice that saves most per byte and fits into `left`; -1: none. */
static int best_exchange(const pst_tune_choice *c, int64_t left, double *ret_ratio) {
  const pst_tune_offer *now = &c->offers[c->chosen];
  int best = -1;
  for (int i = 0; i < c->n; i++) {
    int64_t more = c->offers[i].bytes - now->bytes;
    double saved = now->loss - c->offers[i].loss;
    if (more <= 0 || more > left || !(saved > 0)) continue;
    if (best >= 0 && saved / (double)more <= *ret_ratio) continue;
    best = i;
    *ret_ratio = saved / (double)more;
  }
  return best;
}

int pst_tune_allocate(pst_tune_choice *choices, size_t n, int64_t budget_bytes) {
  int64_t left = budget_bytes;
  for (size_t i = 0; i < n; i++) {
    choices[i].chosen = pst_tune_cheapest(&choices[i]);
    left -= choices[i].offers[choices[i].chosen].bytes;
  }
  if (left < 0) return PST_E_LIMIT;
  for (;;) {
    size_t at = n;
    int offer = -1;
    double ratio = 0, best = 0;
    for (size_t i = 0; i < n; i++) {
      int k = best_exchange(&choices[i], left, &ratio);
      if (k < 0 || ratio <= best) continue;
      best = ratio;
      at = i;
      offer = k;
    }
    if (at == n) return 0;
    left -= choices[at].offers[offer].bytes - choices[at].offers[choices[at].chosen].bytes;
    choices[at].chosen = offer;
  }
}
