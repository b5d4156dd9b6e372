/* Gaussian-process regression of quality on the plan's lossy fields (Rasmussen and Williams 2006, algorithm 2.1).
 *
 * A measured share k of n becomes one observation: its logit with the usual half added, and that logit's variance as noise. The kernel is a sum of one term a
 * field (a prompt's effect, a layout's effect ...) and one term for all fields together (interactions). Every similarity matrix of a field is positive semidefinite,
 * so sums and products of them are. The kernel's constants are fixed (constants.h): with a few dozen observations fitted ones would be noise, and the search
 * would not be the same from the same log on another machine's rounding. */
#include "optimizer/surrogate.h"

#include <math.h>
#include <string.h>

#include "optimizer/constants.h"

#define C PST_OPTIMIZER_CONST

double pst_optimizer_logistic(double logit) { return 1 / (1 + exp(-logit)); }

static double logit_of(double p) { return log(p / (1 - p)); }

/* Of the model that a choice asks, whatever stands before it. */
static double model_prior(const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  const pst_optimizer_axis *e = &s->axes[PST_OPTIMIZER_EXAMPLES];
  int k = e->number[c->v[PST_OPTIMIZER_EXAMPLES]];
  double mean = logit_of(C(prior_quality_none));
  if (s->targets[c->v[PST_OPTIMIZER_MODEL]].adapter)
    mean = logit_of(C(prior_quality_adapter));
  else if (k > 0 && e->fixed[c->v[PST_OPTIMIZER_EXAMPLES]])
    mean = logit_of(C(prior_quality_fixed));
  else if (k > 0)
    mean = logit_of(C(prior_quality_nearest)) + C(prior_doubling) * (log2(k) - 2);
  if (s->axes[PST_OPTIMIZER_CONSTRAINT].number[c->v[PST_OPTIMIZER_CONSTRAINT]] == PST_GATEWAY_FREE)
    mean += C(prior_constraint_none);
  return mean;
}

static double clipped(double q) { return fmin(fmax(q, 0.005), 0.995); }

/* Share right: of what the classifier answers, as its held-out folds say; of the rest, as the model is believed to be. */
static double cascade_quality(const pst_classifier_point *p, double model) {
  return clipped(p->answered * p->accuracy + (1 - p->answered) * model);
}

double pst_optimizer_surrogate_prior(const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  if (pst_optimizer_is_alone(s, c)) return logit_of(clipped(pst_optimizer_classifier_of(s, c)->accuracy));
  const pst_classifier_point *point = pst_optimizer_point_of(s, c);
  double model = model_prior(s, c);
  return point ? logit_of(cascade_quality(point, pst_optimizer_logistic(model))) : model;
}

/* How far a change of the model's logit moves that of the choice: all the way, or by what a classifier leaves to it (first order). */
static double amplitude(const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  const pst_classifier_point *p = pst_optimizer_point_of(s, c);
  if (!p) return 1;
  double model = pst_optimizer_logistic(model_prior(s, c)), q = cascade_quality(p, model);
  return fmin((1 - p->answered) * model * (1 - model) / (q * (1 - q)), 1);
}

/* Similarity of two values of a field, 0 to 1; 1 for equal ones. */
static double similar(const pst_optimizer_space *s, int axis, int a, int b) {
  if (a == b) return 1;
  const pst_optimizer_axis *x = &s->axes[axis];
  switch (axis) {
  case PST_OPTIMIZER_WEIGHTS: return 0.9;
  case PST_OPTIMIZER_KV: return 0.95;
  case PST_OPTIMIZER_MODEL:
  case PST_OPTIMIZER_LAYOUT: return 0.3;
  case PST_OPTIMIZER_PROMPT: return 0.5;
  case PST_OPTIMIZER_CONSTRAINT:
    return x->number[a] != PST_GATEWAY_FREE && x->number[b] != PST_GATEWAY_FREE ? 0.6 : 0.2;
  case PST_OPTIMIZER_EXAMPLES:
    if (!x->number[a] || !x->number[b]) return 0;
    if (x->fixed[a] || x->fixed[b]) return 0.3;
    return exp(-0.5 * fabs(log2((double)x->number[a] / x->number[b])));
  default: return 0;
  }
}

/* A classifier alone has nothing in common with a model but that what is believed of it was measured on held-out folds; two of them, trained on the same records, share half
 * of their error. Choices that ask a model vary as the model does, damped by a classifier before it; two that share a classifier share its error too. */
static double kernel(const pst_optimizer_space *s, const pst_optimizer_choice *a, const pst_optimizer_choice *b) {
  const double variance[PST_OPTIMIZER_CLASSIFIER] = {C(variance_model),     C(variance_weights), C(variance_kv),
                                                     C(variance_prompt),    C(variance_layout),  C(variance_examples),
                                                     C(variance_constraint)};
  int first = a->v[PST_OPTIMIZER_CLASSIFIER], second = b->v[PST_OPTIMIZER_CLASSIFIER];
  bool alone = pst_optimizer_is_alone(s, a), other_alone = pst_optimizer_is_alone(s, b);
  double error = C(variance_classifier) * (first == second ? 1 : 0.5);
  if (alone || other_alone) return alone && other_alone ? error : 0;
  double sum = C(variance_common), product = C(variance_together);
  for (int i = 0; i < PST_OPTIMIZER_CLASSIFIER; i++) {
    double near = similar(s, i, a->v[i], b->v[i]);
    sum += variance[i] * near;
    product *= near;
  }
  double own = first && second ? error : 0;
  return amplitude(s, a) * amplitude(s, b) * (sum + product) + own;
}

/* Lower Cholesky factor in place (row major, n x n); the caller's matrix has noise on its diagonal and so is positive definite. */
static void factor(double *a, size_t n) {
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j <= i; j++) {
      double sum = a[i * n + j];
      for (size_t k = 0; k < j; k++) sum -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = i == j ? sqrt(fmax(sum, 1e-9)) : sum / a[j * n + j];
    }
}

static void solve_lower(const double *l, size_t n, double *x) {
  for (size_t i = 0; i < n; i++) {
    for (size_t k = 0; k < i; k++) x[i] -= l[i * n + k] * x[k];
    x[i] /= l[i * n + i];
  }
}

int pst_optimizer_surrogate_update(const pst_optimizer_space *s, const pst_optimizer_seen *seen, size_t n,
                                   pst_optimizer_belief *ret, pst_error *err) {
  double *l = pst_calloc(PST_MAX(n * n, 1), sizeof *l), *y = pst_calloc(PST_MAX(n, 1), sizeof *y);
  double *row = pst_calloc(PST_MAX(n, 1), sizeof *row);
  int code = l && y && row ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %zu measurements", n);
  for (size_t i = 0; i < n && !code; i++) {
    const pst_optimizer_choice *c = &s->classes[seen[i].class_index];
    double right = seen[i].k + 0.5, wrong = seen[i].n - seen[i].k + 0.5;
    y[i] = log(right / wrong) - pst_optimizer_surrogate_prior(s, c);
    for (size_t j = 0; j <= i; j++) l[i * n + j] = kernel(s, c, &s->classes[seen[j].class_index]);
    l[i * n + i] += 1 / right + 1 / wrong; /* variance of an empirical logit (Gart and Zweifel 1967) */
  }
  if (!code) {
    factor(l, n);
    solve_lower(l, n, y);
  }
  for (size_t c = 0; c < s->n_classes && !code; c++) {
    for (size_t i = 0; i < n; i++) row[i] = kernel(s, &s->classes[c], &s->classes[seen[i].class_index]);
    solve_lower(l, n, row);
    double mean = pst_optimizer_surrogate_prior(s, &s->classes[c]),
           variance = kernel(s, &s->classes[c], &s->classes[c]);
    for (size_t i = 0; i < n; i++) {
      mean += row[i] * y[i];
      variance -= row[i] * row[i];
    }
    ret[c] = (pst_optimizer_belief){mean, sqrt(fmax(variance, 1e-6))};
  }
  pst_free(l);
  pst_free(y);
  pst_free(row);
  return code;
}

pst_evals_interval pst_optimizer_belief_interval(pst_optimizer_belief b, double confidence) {
  double z = confidence >= 0.95 ? 1.959964 : 1.281552;
  return (pst_evals_interval){pst_optimizer_logistic(b.mean), pst_optimizer_logistic(b.mean - z * b.sd),
                              pst_optimizer_logistic(b.mean + z * b.sd)};
}
