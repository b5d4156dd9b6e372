/* Minimising a smooth function of many variables: L-BFGS (Nocedal and Wright, Numerical Optimization, 2nd edition, algorithm 7.5). */
#ifndef PST_CLASSIFIER_LBFGS_H
#define PST_CLASSIFIER_LBFGS_H

#include <penstock/base.h>

/* The value at x[n], its gradient into ret_gradient[n]. */
typedef double (*pst_classifier_function)(void *user, const double *x, double *ret_gradient);

typedef struct pst_classifier_minimum {
  int n_iterations;
  double value, gradient_norm;
  bool converged; /* the gradient is as small as was asked */
} pst_classifier_minimum;

/* From the point in x[n], which becomes the one found. Ends when |gradient| <= tolerance, after max_iterations, or when no step makes the value
 * smaller. The result does not depend on n_threads. PST_E_NOMEM. */
int pst_classifier_minimize(pst_classifier_function fn, void *user, size_t n, double *x, double tolerance,
                            int max_iterations, int n_threads, pst_classifier_minimum *ret_minimum);

#endif
