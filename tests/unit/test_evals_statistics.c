/* Intervals, the test and quantiles: against another implementation (golden/make_statistics.py), and by what must always hold. */
#include <penstock/evals.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden/statistics_golden.h"

/* The golden roots are found by searches that stop near the square root of a double's precision at large counts. */
#define TOLERANCE 2e-7

static void close_to(const char *what, size_t i, double got, double want) {
  if (!(fabs(got - want) <= TOLERANCE * fmax(1, fabs(want))))
    fail_msg("%s row %zu: %.12g, not %.12g", what, i, got, want);
}

static void wilson(void **state) {
  (void)state;
  for (size_t i = 0; i < PST_ARRAY_LEN(wilson_golden); i++) {
    pst_evals_interval w = pst_evals_wilson(wilson_golden[i].k, wilson_golden[i].n, wilson_golden[i].confidence);
    close_to("wilson low", i, w.low, wilson_golden[i].low);
    close_to("wilson high", i, w.high, wilson_golden[i].high);
  }
  pst_evals_interval none = pst_evals_wilson(0, 0, 0.95);
  assert_true(isnan(none.estimate) && none.low == 0 && none.high == 1);
  assert_true(pst_evals_wilson(0, 7, 0.95).low == 0 && pst_evals_wilson(7, 7, 0.95).high == 1);
}

static void paired(void **state) {
  (void)state;
  for (size_t i = 0; i < PST_ARRAY_LEN(tango_golden); i++) {
    pst_evals_interval t = pst_evals_tango(tango_golden[i].n11, tango_golden[i].n10, tango_golden[i].n01,
                                           tango_golden[i].n00, tango_golden[i].confidence);
    close_to("tango estimate", i, t.estimate, tango_golden[i].estimate);
    close_to("tango low", i, t.low, tango_golden[i].low);
    close_to("tango high", i, t.high, tango_golden[i].high);
  }
  for (size_t i = 0; i < PST_ARRAY_LEN(newcombe_golden); i++) {
    pst_evals_interval t = pst_evals_newcombe(newcombe_golden[i].n11, newcombe_golden[i].n10, newcombe_golden[i].n01,
                                              newcombe_golden[i].n00, newcombe_golden[i].confidence);
    close_to("newcombe estimate", i, t.estimate, newcombe_golden[i].estimate);
    close_to("newcombe low", i, t.low, newcombe_golden[i].low);
    close_to("newcombe high", i, t.high, newcombe_golden[i].high);
  }
}

/* Order within the limits, the mirror image of swapped runs, and more data for a narrower interval. */
static void paired_properties(void **state) {
  (void)state;
  pst_random r = {7, 1, 0};
  for (int i = 0; i < 3000; i++) {
    int64_t c[4];
    for (int k = 0; k < 4; k++) c[k] = (int64_t)pst_random_below(&r, k & 1 ? 12 : 200);
    pst_evals_interval t = pst_evals_tango(c[0], c[1], c[2], c[3], 0.95);
    pst_evals_interval swapped = pst_evals_tango(c[0], c[2], c[1], c[3], 0.95);
    assert_true(t.low >= -1 && t.high <= 1);
    if (c[0] + c[1] + c[2] + c[3] == 0) continue;
    assert_true(t.low <= t.estimate && t.estimate <= t.high && t.low < t.high);
    close_to("mirror", (size_t)i, t.low, -swapped.high);
    pst_evals_interval more = pst_evals_tango(c[0] * 9, c[1] * 9, c[2] * 9, c[3] * 9, 0.95);
    assert_true(more.high - more.low < t.high - t.low);
    pst_evals_interval surer = pst_evals_tango(c[0], c[1], c[2], c[3], 0.99);
    assert_true(surer.low <= t.low && surer.high >= t.high);
  }
  for (int confidence = 0; confidence < 2; confidence++) {
    pst_evals_interval none = (confidence ? pst_evals_tango : pst_evals_newcombe)(0, 0, 0, 0, 0.95);
    assert_true(isnan(none.estimate) && none.low == -1 && none.high == 1);
  }
}

/* Nothing differs: the limits are z^2 / (n + z^2), which is what lets "no difference seen" be too little to decide on. */
static void all_concordant(void **state) {
  (void)state;
  double z2 = 1.959963984540054 * 1.959963984540054;
  for (int64_t n = 1; n < 2000; n = n * 3 + 1) {
    pst_evals_interval t = pst_evals_tango(n / 2, 0, 0, n - n / 2, 0.95);
    close_to("concordant", (size_t)n, t.high, z2 / ((double)n + z2));
    assert_true(t.estimate == 0);
    close_to("concordant, below", (size_t)n, t.low, -t.high);
  }
}

static void mcnemar(void **state) {
  (void)state;
  for (size_t i = 0; i < PST_ARRAY_LEN(mid_p_golden); i++) {
    double p = pst_evals_mcnemar_mid_p(mid_p_golden[i].n10, mid_p_golden[i].n01);
    if (!(fabs(p - mid_p_golden[i].p) <= 1e-9 * mid_p_golden[i].p))
      fail_msg("mid-p row %zu: %.15g, not %.15g", i, p, mid_p_golden[i].p);
  }
  assert_true(pst_evals_mcnemar_mid_p(0, 0) == 1);
  double far = pst_evals_mcnemar_mid_p(100000, 0);
  assert_true(far >= 0 && far < 1e-300);
}

static void detectable(void **state) {
  (void)state;
  for (size_t i = 0; i < PST_ARRAY_LEN(detectable_golden); i++)
    close_to("detectable", i,
             pst_evals_detectable(detectable_golden[i].n, detectable_golden[i].discordant, detectable_golden[i].alpha,
                                  detectable_golden[i].power),
             detectable_golden[i].d);
  assert_true(pst_evals_detectable(0, 0.1, 0.05, 0.8) == 1);
}

/* So many items show what they are meant to, about as often as they are meant to: by Tango's interval over drawn pairs. */
static void items_needed(void **state) {
  (void)state;
  enum { N_DRAWN = 2000 };
  static const struct {
    double a, b, least, power;
  } cases[] = {{0.8, 0.02, 0, 0.9}, {0.6, 0.5, 0, 0.8}, {0.6, 0.6, -0.05, 0.9}, {0.9, 0.6, 0.2, 0.9}};
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    double a = cases[i].a, b = cases[i].b, discordant = a * (1 - b) + b * (1 - a);
    double n = pst_evals_items_needed(a - b, cases[i].least, discordant, 0.05, cases[i].power);
    pst_random r = {11, i, 0};
    int shown = 0;
    for (int drawn = 0; drawn < N_DRAWN; drawn++) {
      int64_t counts[4] = {0};
      for (int k = 0; k < (int)n; k++) {
        bool first = pst_random_next_unit(&r) < a, second = pst_random_next_unit(&r) < b;
        counts[2 * !first + !second]++;
      }
      shown += pst_evals_tango(counts[0], counts[1], counts[2], counts[3], 0.95).low > cases[i].least;
    }
    double share = (double)shown / N_DRAWN;
    if (share < cases[i].power - 0.03 || (n > 30 && share > cases[i].power + 0.03))
      fail_msg("row %zu: %.0f items show it in %.3f of draws", i, n, share);
  }
  for (int64_t n = 20; n < 3000; n = 2 * n + 1) { /* the inverse of what so many detect */
    double d = pst_evals_detectable(n, 0.3, 0.05, 0.8);
    assert_true(fabs(pst_evals_items_needed(d, 0, 0.3, 0.05, 0.8) - (double)n) <= 1);
  }
  assert_true(isinf(pst_evals_items_needed(0.1, 0.1, 0.3, 0.05, 0.8)));
  assert_true(pst_evals_items_needed(1, 0, 1, 0.05, 0.8) >= 1);
}

static void quantiles(void **state) {
  (void)state;
  double values[] = {5, 1, 4, 2, 3};
  assert_true(pst_evals_quantile(values, 5, 0.5) == 3);
  assert_true(pst_evals_quantile(values, 5, 0) == 1 && pst_evals_quantile(values, 5, 1) == 5);
  assert_true(pst_evals_quantile(values, 5, 0.95) == 5 && pst_evals_quantile(values, 5, 0.2) == 1);
  assert_true(isnan(pst_evals_quantile(values, 0, 0.5)));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(wilson),         cmocka_unit_test(paired),    cmocka_unit_test(paired_properties),
      cmocka_unit_test(all_concordant), cmocka_unit_test(mcnemar),   cmocka_unit_test(detectable),
      cmocka_unit_test(items_needed),   cmocka_unit_test(quantiles),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
