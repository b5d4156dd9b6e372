/* L-BFGS (lbfgs.h). The history is kept in single precision: it only shapes the direction, so rounding costs an iteration now and then, and it is most of
 * the memory. Steps are found by backtracking until the value has fallen enough; our functions are strictly convex, where every such pair of points gives
 * a usable update. Sums go by fixed blocks, so that the number of threads does not matter. */
#include "classifier/lbfgs.h"

#include <math.h>
#include <string.h>

#include "classifier/parallel.h"

enum { HISTORY = 5, BLOCK = 16384, MAX_HALVINGS = 40 };
#define SUFFICIENT 1e-4 /* c1 of the Armijo condition */

typedef struct lbfgs {
  size_t n, n_blocks;
  int n_threads;
  double *gradient, *next, *next_gradient, *direction; /* [n] */
  double *partial;                                     /* [2 x n_blocks] */
  float *steps[HISTORY], *changes[HISTORY];            /* [n]: differences of points and of gradients */
  double curvature[HISTORY], squares[HISTORY];         /* step . change, change . change */
  int n_kept, newest;
} lbfgs;

/* One pass over blocks of vectors. The history's are single precision, the others double. */
typedef struct pass {
  lbfgs *l;
  const double *a, *b;
  const float *c, *d;
  double *out;
  double factor;
} pass;

static double sum_partial(const lbfgs *l) {
  double sum = 0;
  for (size_t i = 0; i < l->n_blocks; i++) sum += l->partial[i];
  return sum;
}

/* Sum of a times b over each block. Four sums side by side: that many additions are under way at once. */
static void dot_blocks(void *arg, size_t first, size_t end) {
  const pass *p = arg;
  for (size_t block = first; block < end; block++) {
    size_t i = block * BLOCK, to = PST_MIN((block + 1) * BLOCK, p->l->n);
    double sum[4] = {0, 0, 0, 0};
    for (; i + 4 <= to; i += 4)
      for (size_t k = 0; k < 4; k++) sum[k] += p->a[i + k] * p->b[i + k];
    for (; i < to; i++) sum[0] += p->a[i] * p->b[i];
    p->l->partial[block] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

static double dot(lbfgs *l, const double *a, const double *b) {
  pass p = {.l = l, .a = a, .b = b};
  pst_classifier_parallel(l->n_threads, l->n_blocks, dot_blocks, &p);
  return sum_partial(l);
}

/* out += factor * c, then the sum of out times d over each block (d NULL: no sum). */
static void add_blocks(void *arg, size_t first, size_t end) {
  const pass *p = arg;
  for (size_t block = first; block < end; block++) {
    size_t from = block * BLOCK, i = from, to = PST_MIN((block + 1) * BLOCK, p->l->n);
    double sum[4] = {0, 0, 0, 0};
    for (size_t k = from; k < to && p->c; k++) p->out[k] += p->factor * (double)p->c[k];
    for (; i + 4 <= to && p->d; i += 4)
      for (size_t k = 0; k < 4; k++) sum[k] += p->out[i + k] * (double)p->d[i + k];
    for (; i < to && p->d; i++) sum[0] += p->out[i] * (double)p->d[i];
    p->l->partial[block] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

/* direction += factor * c (c NULL: nothing); returns direction . d (d NULL: 0). */
static double add(lbfgs *l, double factor, const float *c, const float *d) {
  pass p = {.l = l, .c = c, .d = d, .out = l->direction, .factor = factor};
  pst_classifier_parallel(l->n_threads, l->n_blocks, add_blocks, &p);
  return sum_partial(l);
}

/* out = b + factor * a (b NULL: factor * a). */
static void scale_blocks(void *arg, size_t first, size_t end) {
  const pass *p = arg;
  size_t to = PST_MIN(end * BLOCK, p->l->n);
  for (size_t i = first * BLOCK; i < to && p->b; i++) p->out[i] = p->b[i] + p->factor * p->a[i];
  for (size_t i = first * BLOCK; i < to && !p->b; i++) p->out[i] = p->factor * p->a[i];
}

static void scale(lbfgs *l, const double *a, double factor, const double *b, double *out) {
  pass p = {.l = l, .a = a, .b = b, .out = out, .factor = factor};
  pst_classifier_parallel(l->n_threads, l->n_blocks, scale_blocks, &p);
}

static int make(lbfgs *l) {
  l->gradient = pst_calloc(l->n, sizeof(double));
  l->next = pst_calloc(l->n, sizeof(double));
  l->next_gradient = pst_calloc(l->n, sizeof(double));
  l->direction = pst_calloc(l->n, sizeof(double));
  l->partial = pst_calloc(2 * l->n_blocks, sizeof(double));
  bool made = l->gradient && l->next && l->next_gradient && l->direction && l->partial;
  for (int i = 0; i < HISTORY; i++) {
    l->steps[i] = pst_calloc(l->n, sizeof(float));
    l->changes[i] = pst_calloc(l->n, sizeof(float));
    made = made && l->steps[i] && l->changes[i];
  }
  return made ? 0 : PST_E_NOMEM;
}

static void done(lbfgs *l) {
  pst_free(l->gradient);
  pst_free(l->next);
  pst_free(l->next_gradient);
  pst_free(l->direction);
  pst_free(l->partial);
  for (int i = 0; i < HISTORY; i++) {
    pst_free(l->steps[i]);
    pst_free(l->changes[i]);
  }
}

/* The k-th newest pair. */
static int nth(const lbfgs *l, int k) { return (l->newest - k + HISTORY) % HISTORY; }

/* direction = -H gradient, H the inverse Hessian as the history has it (two-loop recursion). Each pass adds for one pair and multiplies for the next. */
static void find_direction(lbfgs *l) {
  double alpha[HISTORY] = {0};
  int n = l->n_kept, i = nth(l, 0);
  scale(l, l->gradient, -1, NULL, l->direction);
  if (!n) return;
  double product = add(l, 0, NULL, l->steps[i]);
  for (int k = 0; k < n; k++) {
    i = nth(l, k);
    alpha[i] = product / l->curvature[i];
    product = add(l, -alpha[i], l->changes[i], k + 1 < n ? l->steps[nth(l, k + 1)] : NULL);
  }
  i = nth(l, 0);
  scale(l, l->direction, l->curvature[i] / l->squares[i], NULL, l->direction);
  product = add(l, 0, NULL, l->changes[nth(l, n - 1)]);
  for (int k = n - 1; k >= 0; k--) {
    i = nth(l, k);
    product = add(l, alpha[i] - product / l->curvature[i], l->steps[i], k ? l->changes[nth(l, k - 1)] : NULL);
  }
}

typedef struct pairing {
  lbfgs *l;
  const double *x;
  float *step, *change;
} pairing;

static void pair_blocks(void *arg, size_t first, size_t end) {
  const pairing *p = arg;
  lbfgs *l = p->l;
  for (size_t block = first; block < end; block++) {
    size_t to = PST_MIN((block + 1) * BLOCK, l->n);
    double curvature = 0, squares = 0;
    for (size_t i = block * BLOCK; i < to; i++) {
      p->step[i] = (float)(l->next[i] - p->x[i]);
      p->change[i] = (float)(l->next_gradient[i] - l->gradient[i]);
      curvature += (double)p->step[i] * (double)p->change[i];
      squares += (double)p->change[i] * (double)p->change[i];
    }
    l->partial[block] = curvature;
    l->partial[l->n_blocks + block] = squares;
  }
}

/* Keeps the pair of the step from x to next, when it says something of the curvature. */
static void keep_pair(lbfgs *l, const double *x) {
  int i = (l->newest + 1) % HISTORY;
  pairing p = {l, x, l->steps[i], l->changes[i]};
  pst_classifier_parallel(l->n_threads, l->n_blocks, pair_blocks, &p);
  double curvature = 0, squares = 0;
  for (size_t b = 0; b < l->n_blocks; b++) {
    curvature += l->partial[b];
    squares += l->partial[l->n_blocks + b];
  }
  if (!(curvature > 1e-10 * squares)) return;
  l->curvature[i] = curvature;
  l->squares[i] = squares;
  l->newest = i;
  l->n_kept = PST_MIN(l->n_kept + 1, (int)HISTORY);
}

/* Backtracks from `step` until next = x + step * direction is low enough; false: it never is. */
static bool find_step(lbfgs *l, pst_classifier_function fn, void *user, const double *x, double step, double *value) {
  double slope = dot(l, l->gradient, l->direction);
  if (!(slope < 0)) return false;
  for (int i = 0; i < MAX_HALVINGS; i++) {
    scale(l, l->direction, step, x, l->next);
    double found = fn(user, l->next, l->next_gradient);
    if (found <= *value + SUFFICIENT * step * slope) {
      *value = found;
      return true;
    }
    double guess = -slope * step * step / (2 * (found - *value - slope * step)); /* lowest point of the parabola */
    step = isfinite(guess) ? fmin(fmax(guess, 0.1 * step), 0.5 * step) : 0.1 * step;
  }
  return false;
}

int pst_classifier_minimize(pst_classifier_function fn, void *user, size_t n, double *x, double tolerance,
                            int max_iterations, int n_threads, pst_classifier_minimum *ret) {
  lbfgs l = {.n = n, .n_blocks = (n + BLOCK - 1) / BLOCK, .n_threads = n_threads};
  pst_classifier_minimum m = {0, 0, 0, false};
  int code = make(&l);
  if (!code) m.value = fn(user, x, l.gradient);
  while (!code) {
    m.gradient_norm = sqrt(dot(&l, l.gradient, l.gradient));
    m.converged = m.gradient_norm <= tolerance;
    if (m.converged || m.n_iterations == max_iterations) break;
    find_direction(&l);
    if (!find_step(&l, fn, user, x, l.n_kept ? 1 : 1 / m.gradient_norm, &m.value)) {
      if (!l.n_kept) break;
      l.n_kept = 0; /* once more, along the gradient */
      continue;
    }
    keep_pair(&l, x);
    memcpy(x, l.next, n * sizeof *x);
    memcpy(l.gradient, l.next_gradient, n * sizeof *x);
    m.n_iterations++;
  }
  done(&l);
  if (!code) *ret = m;
  return code;
}
