/* Statistics of accepted and not accepted answers: intervals of shares and of paired differences, a test, and what a sample can show.
 *
 * Pure functions of counts; owns no data and knows nothing of runs. Score intervals (Wilson, Tango) throughout, because they hold their
 * level at the small counts and extreme shares that evals have, where the textbook (Wald) ones collapse to a point. Tango's limits
 * have a closed form of no use to a reader; they are found here as the definition says, where the score statistic crosses +-z.
 * tests/golden/make_statistics.py has the other implementation that these are checked against. */
#include <penstock/evals.h>

#include <math.h>
#include <stdlib.h>

/* The z that leaves (1 - confidence)/2 above it. Bisection on erfc: as exact as libm, and nothing to look up. */
static double z_of_tail(double upper_tail) {
  double low = -40, high = 40;
  for (int i = 0; i < 120; i++) {
    double mid = (low + high) / 2;
    if (0.5 * erfc(mid * M_SQRT1_2) > upper_tail)
      low = mid;
    else
      high = mid;
  }
  return (low + high) / 2;
}

static double z_of_confidence(double confidence) { return z_of_tail((1 - confidence) / 2); }

pst_evals_interval pst_evals_wilson(int64_t k, int64_t n, double confidence) {
  if (n <= 0) return (pst_evals_interval){NAN, 0, 1};
  double z = z_of_confidence(confidence), m = (double)n, p = (double)k / m;
  double centre = (p + z * z / (2 * m)) / (1 + z * z / m);
  double half = z / (1 + z * z / m) * sqrt(p * (1 - p) / m + z * z / (4 * m * m));
  /* The limits at the ends are 0 and 1 exactly; rounding must not say otherwise. */
  return (pst_evals_interval){p, k <= 0 ? 0 : fmax(centre - half, 0), k >= n ? 1 : fmin(centre + half, 1)};
}

/* Tango's score statistic for the hypothesis p10 - p01 = delta: (observed - expected) / its standard error, with p01 at its maximum
 * likelihood under the hypothesis (Tango 1998, equations 5 and 6). Falls as delta rises. */
static double tango_score(double n10, double n01, double n, double delta) {
  double a = 2 * n;
  double b = -n10 - n01 + (2 * n - n10 + n01) * delta;
  double c = -n01 * delta * (1 - delta);
  double p01 = (sqrt(fmax(b * b - 4 * a * c, 0)) - b) / (2 * a);
  double numerator = n10 - n01 - n * delta;
  double variance = n * (2 * p01 + delta * (1 - delta));
  if (variance <= 0) return numerator == 0 ? 0 : numerator > 0 ? INFINITY : -INFINITY;
  return numerator / sqrt(variance);
}

/* Where the score statistic passes z, between low and high. */
static double tango_limit(double n10, double n01, double n, double z, double low, double high) {
  for (int i = 0; i < 100; i++) {
    double mid = (low + high) / 2;
    if (tango_score(n10, n01, n, mid) > z)
      low = mid;
    else
      high = mid;
  }
  return (low + high) / 2;
}

pst_evals_interval pst_evals_tango(int64_t n11, int64_t n10, int64_t n01, int64_t n00, double confidence) {
  double n = (double)n11 + (double)n10 + (double)n01 + (double)n00;
  if (n <= 0) return (pst_evals_interval){NAN, -1, 1};
  double z = z_of_confidence(confidence), b = (double)n10, c = (double)n01;
  double estimate = (b - c) / n;
  double low = estimate <= -1 ? -1 : tango_limit(b, c, n, z, -1, estimate);
  double high = estimate >= 1 ? 1 : tango_limit(b, c, n, -z, estimate, 1);
  return (pst_evals_interval){estimate, low, high};
}

/* Newcombe (1998), Statistics in Medicine 17, 2635: method 10, the square-and-add of two Wilson intervals with the continuity-corrected
 * correlation phi. */
pst_evals_interval pst_evals_newcombe(int64_t n11, int64_t n10, int64_t n01, int64_t n00, double confidence) {
  double a = (double)n11, b = (double)n10, c = (double)n01, d = (double)n00, n = a + b + c + d;
  if (n <= 0) return (pst_evals_interval){NAN, -1, 1};
  pst_evals_interval first = pst_evals_wilson(n11 + n10, n11 + n10 + n01 + n00, confidence);
  pst_evals_interval second = pst_evals_wilson(n11 + n01, n11 + n10 + n01 + n00, confidence);
  double margins = sqrt(a + b) * sqrt(c + d) * sqrt(a + c) * sqrt(b + d);
  double covariance = a * d - b * c, phi = 0;
  if (covariance > 0) covariance = fmax(covariance - n / 2, 0);
  if (margins > 0) phi = covariance / margins;
  double down1 = first.estimate - first.low, up1 = first.high - first.estimate;
  double down2 = second.estimate - second.low, up2 = second.high - second.estimate;
  double estimate = (b - c) / n;
  double below = sqrt(fmax(down1 * down1 - 2 * phi * down1 * up2 + up2 * up2, 0));
  double above = sqrt(fmax(up1 * up1 - 2 * phi * up1 * down2 + down2 * down2, 0));
  return (pst_evals_interval){estimate, fmax(estimate - below, -1), fmin(estimate + above, 1)};
}

/* P(X = k) for n fair coins. */
static double fair_binomial(double k, double n) {
  int sign;
  return exp(lgamma_r(n + 1, &sign) - lgamma_r(k + 1, &sign) - lgamma_r(n - k + 1, &sign) - n * M_LN2);
}

/* Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91: the exact conditional two-sided p less the probability of
 * what was seen; 1 less half of it where the two counts are equal. */
double pst_evals_mcnemar_mid_p(int64_t n10, int64_t n01) {
  double n = (double)n10 + (double)n01;
  if (n <= 0) return 1;
  double least = (double)PST_MIN(n10, n01), point = fair_binomial(least, n);
  if (n10 == n01) return 1 - point / 2;
  double tail = 0, term = point;
  for (double k = least; k >= 0 && term > 0; k--) {
    tail += term;
    term *= k / (n - k + 1);
    if (term < tail * 1e-18) break;
  }
  return fmin(2 * tail - point, 1);
}

/* Connor (1987), Biometrics 43, 207: n = (z_alpha sqrt(psi) + z_beta sqrt(psi - d^2))^2 / d^2, solved for d, with psi the share of
 * discordant pairs. No difference can exceed psi: where d would, all discordant pairs lie on one side and psi is d itself. */
double pst_evals_detectable(int64_t n, double discordant, double alpha, double power) {
  if (n <= 0) return 1;
  double z_alpha = z_of_tail(alpha / 2), z_beta = z_of_tail(1 - power), low = 0, high = 1;
  for (int i = 0; i < 100; i++) {
    double d = (low + high) / 2, psi = fmin(fmax(discordant, d), 1);
    if (sqrt((double)n) * d < z_alpha * sqrt(psi) + z_beta * sqrt(psi - d * d))
      low = d;
    else
      high = d;
  }
  return high;
}

/* The same formula read the other way, with the difference's variance under the hypothesis that it is `least`. */
double pst_evals_items_needed(double difference, double least, double discordant, double alpha, double power) {
  if (!(difference > least)) return INFINITY;
  double psi = fmin(fmax(discordant, fmax(fabs(difference), fabs(least))), 1);
  double root =
      z_of_tail(alpha / 2) * sqrt(psi - least * least) + z_of_tail(1 - power) * sqrt(psi - difference * difference);
  return fmax(ceil(root * root / ((difference - least) * (difference - least))), 1);
}

static int compare_doubles(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double pst_evals_quantile(double *values, size_t n, double q) {
  if (!n) return NAN;
  qsort(values, n, sizeof *values, compare_doubles);
  double rank = ceil(fmin(fmax(q, 0), 1) * (double)n);
  return values[rank < 1 ? 0 : PST_MIN((size_t)rank, n) - 1];
}
