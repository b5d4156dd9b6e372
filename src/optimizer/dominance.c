/* Dominance with intervals: a plan is out of the race only when another is surely cheaper and surely no worse (as PostgreSQL's add_path drops a path that is
 * fuzzily worse in every respect, with the fuzz measured here). */
#include <math.h>
#include <stdlib.h>

#include "optimizer/search.h"

typedef struct ranked {
  double cost;
  double quality;
  size_t index;
} ranked;

static int by_cost(const void *a, const void *b) {
  const ranked *x = a, *y = b;
  if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
  return (x->index > y->index) - (x->index < y->index);
}

size_t pst_optimizer_dominated(const pst_optimizer_point *points, size_t n, uint8_t *ret_marks) {
  ranked *by_high = pst_calloc(PST_MAX(n, 1), sizeof *by_high), *by_low = pst_calloc(PST_MAX(n, 1), sizeof *by_low);
  size_t n_marked = 0;
  for (size_t i = 0; i < n; i++) ret_marks[i] = 0;
  if (by_high && by_low) {
    for (size_t i = 0; i < n; i++) {
      by_high[i] = (ranked){points[i].cost_high, points[i].quality_low, i};
      by_low[i] = (ranked){points[i].cost_low, points[i].quality_high, i};
    }
    qsort(by_high, n, sizeof *by_high, by_cost);
    qsort(by_low, n, sizeof *by_low, by_cost);
    double best = -INFINITY; /* highest lower bound of quality among those surely cheaper */
    for (size_t i = 0, j = 0; i < n; i++) {
      while (j < n && by_high[j].cost < by_low[i].cost) best = fmax(best, by_high[j++].quality);
      ret_marks[by_low[i].index] = best > by_low[i].quality;
      n_marked += best > by_low[i].quality;
    }
  }
  pst_free(by_high);
  pst_free(by_low);
  return n_marked; /* without memory: nothing is pruned */
}
