/* Paired comparison of two runs: which items only one of them got right, and what that shows.
 *
 * Owns the verdict's rule and nothing else. Pairs are by item, whatever order each run asked in; an item that failed to be answered was
 * not answered rightly. */
#include <penstock/evals.h>

#include <stdlib.h>

static int compare_answers(const void *a, const void *b) {
  size_t x = (*(const pst_evals_answer *const *)a)->item, y = (*(const pst_evals_answer *const *)b)->item;
  return (x > y) - (x < y);
}

static const pst_evals_answer **by_item(const pst_evals_run *run) {
  const pst_evals_answer **sorted = pst_calloc(run->n + 1, sizeof *sorted);
  if (!sorted) return NULL;
  for (size_t i = 0; i < run->n; i++) sorted[i] = &run->answers[i];
  qsort(sorted, run->n, sizeof *sorted, compare_answers);
  return sorted;
}

static bool right(const pst_evals_answer *a) { return a->done && a->grade.accepted; }

static void count_pairs(const pst_evals_answer **a, size_t n_a, const pst_evals_answer **b, size_t n_b,
                        pst_evals_comparison *c) {
  for (size_t i = 0, k = 0; i < n_a && k < n_b;) {
    if (a[i]->item != b[k]->item) {
      if (a[i]->item < b[k]->item)
        i++;
      else
        k++;
      continue;
    }
    bool first = right(a[i++]), second = right(b[k++]);
    c->n++;
    c->n11 += first && second;
    c->n10 += first && !second;
    c->n01 += !first && second;
    c->n00 += !first && !second;
  }
}

int pst_evals_compare(const pst_evals_run *a, const pst_evals_run *b, double margin, double confidence,
                      pst_evals_comparison *ret_comparison, pst_error *err) {
  pst_evals_comparison c = {.margin = margin};
  const pst_evals_answer **sorted_a = by_item(a), **sorted_b = by_item(b);
  int code = 0;
  if (!sorted_a || !sorted_b) {
    code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory to compare two runs");
    goto done;
  }
  count_pairs(sorted_a, a->n, sorted_b, b->n, &c);
  c.a = pst_evals_wilson(c.n11 + c.n10, c.n, confidence);
  c.b = pst_evals_wilson(c.n11 + c.n01, c.n, confidence);
  c.difference = pst_evals_tango(c.n11, c.n10, c.n01, c.n00, confidence);
  c.mid_p = pst_evals_mcnemar_mid_p(c.n10, c.n01);
  /* The share of discordant pairs by the rule of succession: none seen does not mean that there are none. */
  double discordant = (double)(c.n10 + c.n01 + 1) / (double)(c.n + 2);
  c.detectable = pst_evals_detectable(c.n, discordant, 1 - confidence, 0.8);
  c.non_inferior = c.difference.low > -margin    ? PST_EVALS_YES
                   : c.difference.high < -margin ? PST_EVALS_NO
                                                 : PST_EVALS_NOT_ENOUGH_DATA;
  *ret_comparison = c;
done:
  pst_free(sorted_a);
  pst_free(sorted_b);
  return code;
}
