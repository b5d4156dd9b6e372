/* Rounding with error feedback (feedback.h).
 *
 * The factor comes without an inverse: with H = L^T L (L lower triangular, found from the last column to the first) U is (L^-1)^T. Rows are independent, so
 * they are cut into chunks for the threads; inside a block of the type a row is worked through column by column, and what a block leaves to all columns
 * behind it is one product for the chunk. A block's scales are chosen when its turn comes, for the weights as they are then: in short blocks of few
 * levels some multiples of the scale that the search of kernels/quantize.c finds are tried with feedback inside the block, and the cheapest is kept.
 *
 * What is there then is improved in sweeps over the blocks: with the gradient of the row's error at the block, its scales are stretched to where the error is
 * least for its codes, and each code goes to where it is least for all the others'. Both only ever lower the error. */
#include "tune/feedback.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum { CHUNK = 96, MAX_DAMPINGS = 7, MAX_TRIED_BYTES = 20, SWEEPS = 3 };

/* ---- the factor ---- */

size_t pst_tune_feedback_work(size_t n) { return 2 * n * n; }

/* y -= f x, [n]. */
static void subtract(double *restrict y, const double *restrict x, double f, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] -= f * x[i];
}

/* The lower triangle of a [n][n] becomes L with L^T L = a. False: a is not positive definite. */
static bool factor(double *a, size_t n) {
  for (size_t j = n; j-- > 0;) {
    double *row = a + j * n, pivot = row[j];
    if (!(pivot > 0) || !isfinite(pivot)) return false;
    double root = sqrt(pivot);
    for (size_t i = 0; i < j; i++) row[i] /= root;
    row[j] = root;
    for (size_t i = 0; i < j; i++) subtract(a + i * n, row, row[i], i + 1);
  }
  return true;
}

/* m = l^-1, lower triangles. */
static void invert(const double *l, size_t n, double *m) {
  for (size_t i = 0; i < n; i++) {
    double *row = m + i * n, f = 1 / l[i * n + i];
    memset(row, 0, n * sizeof *row);
    for (size_t k = 0; k < i; k++) subtract(row, m + k * n, l[i * n + k], k + 1);
    for (size_t k = 0; k < i; k++) row[k] *= f;
    row[i] = f;
  }
}

/* The damped lower triangle; an input that never is anything but 0 costs as much as the damping. */
static void copy_damped(const float *gram, size_t n, double added, double *a) {
  for (size_t i = 0; i < n; i++) {
    for (size_t k = 0; k <= i; k++) a[i * n + k] = (double)gram[i * n + k];
    a[i * n + i] += added;
  }
}

int pst_tune_feedback_make(float *gram, size_t n, double damping, double *work) {
  double *a = work, *m = work + n * n, mean = 0, added = 0;
  bool sound = true;
  for (size_t i = 0; i < n * n; i++) sound = sound && isfinite(gram[i]);
  for (size_t i = 0; i < n; i++) {
    sound = sound && gram[i * n + i] >= 0;
    mean += (double)gram[i * n + i] / (double)n;
  }
  if (!sound || !(damping > 0)) return PST_E_BAD_INPUT;
  bool done = false;
  for (int i = 0; i < MAX_DAMPINGS && !done; i++, damping *= 10) {
    added = mean > 0 ? damping * mean : 1;
    copy_damped(gram, n, added, a);
    done = factor(a, n);
  }
  if (!done) return PST_E_BAD_INPUT;
  invert(a, n, m);
  for (size_t j = 0; j < n; j++) {
    double f = 1 / m[j * n + j];
    gram[n * n + j] = (float)((double)gram[j * n + j] + added);
    gram[j * n + j] = (float)(f * f);
    for (size_t k = j + 1; k < n; k++) gram[j * n + k] = (float)(m[k * n + j] * f);
  }
  return 0;
}

/* ---- rows ---- */

typedef struct work {
  pst_tune_rounding *r;
  const pst_kernels_type_row *info;
  const float *cost; /* [n_cols]: the feedback's diagonal; NULL: none */
  const float *gram; /* [n_cols][n_cols], damped, both triangles; NULL with cost */
  double *errors;    /* of each chunk */
  size_t step, n_rows;
  bool tries;      /* other scales than the search's */
  atomic_int code; /* of a chunk that failed */
} work;

/* A block of one row, rounded. */
typedef struct trial {
  float error[PST_KERNELS_MAX_BLOCK]; /* weight less its rounded value */
  uint8_t codes[PST_KERNELS_MAX_BLOCK];
  uint8_t block[PST_KERNELS_MAX_BLOCK * 2];
  double cost;
} trial;

/* A block whose scales are about to be stretched. */
typedef struct stretched {
  float now[PST_KERNELS_MAX_BLOCK], moved[PST_KERNELS_MAX_BLOCK], through[PST_KERNELS_MAX_BLOCK];
  uint8_t block[PST_KERNELS_MAX_BLOCK * 2];
  pst_kernels_grid grid;
} stretched;

typedef struct space {
  void *product;  /* PST_KERNELS_WORK_BYTES */
  float *w;       /* [CHUNK][n_cols]: as they are now */
  float *error;   /* [CHUNK][block], negative: what the rest is given */
  uint8_t *codes; /* [CHUNK][n_cols] */
  trial trials[2];
  stretched other;
  pst_kernels_grid grid;
} space;

size_t pst_tune_rounding_scratch(size_t n_cols) {
  return PST_KERNELS_WORK_BYTES + sizeof(space) + 64 + CHUNK * (n_cols + PST_KERNELS_MAX_BLOCK) * sizeof(float) +
         CHUNK * n_cols;
}

static space *space_of(void *scratch, size_t n_cols) {
  uint8_t *at = (uint8_t *)scratch + PST_KERNELS_WORK_BYTES;
  space *s = (space *)(void *)at;
  s->product = scratch;
  s->w = (float *)(void *)(at + ((sizeof *s + 63) & ~(size_t)63));
  s->error = s->w + CHUNK * n_cols;
  s->codes = (uint8_t *)(s->error + CHUNK * PST_KERNELS_MAX_BLOCK);
  return s;
}

/* The level nearest to v (ties to even), as a code. */
static uint8_t code_of(float v, const pst_kernels_grid *g) {
  if (g->levels) {
    int code = 0;
    for (int k = 0; k < g->high; k++) code += v > 0.5f * (float)(g->levels[k] + g->levels[k + 1]);
    return (uint8_t)code;
  }
  float low = (float)g->low, high = (float)g->high;
  v = v < low ? low : v > high ? high : v;
  return (uint8_t)((int)((v + 12582912.0f) - 12582912.0f) - g->low);
}

static float value_of(const pst_kernels_grid *g, size_t j, uint8_t code) {
  return g->scale[j] * (float)(g->levels ? g->levels[code] : g->low + code) + g->min[j];
}

/* The code of column j that is nearest to v. */
static uint8_t nearest_code(const pst_kernels_grid *g, size_t j, float v) {
  float scale = g->scale[j], inverse = fabsf(scale) > 0 ? 1 / scale : 0;
  return code_of(isfinite(inverse) ? (v - g->min[j]) * inverse : 0, g);
}

/* x [n]: a row's block, which becomes what feedback makes of it; feedback: the block's own corner of the matrix, rows n_cols apart, or NULL. */
static void round_columns(const pst_kernels_grid *g, float *x, size_t n, const float *feedback, size_t n_cols,
                          trial *t) {
  t->cost = 0;
  for (size_t j = 0; j < n; j++) {
    t->codes[j] = nearest_code(g, j, x[j]);
    float e = x[j] - value_of(g, j, t->codes[j]);
    t->error[j] = e;
    t->cost += (double)e * (double)e * (feedback ? (double)feedback[j * n_cols + j] : 1);
    if (!feedback) continue;
    const float *to = feedback + j * n_cols;
    for (size_t k = j + 1; k < n; k++) x[k] -= e * to[k];
  }
}

/* Tries the block's scales times `factor`. */
static int try_scales(const work *w, space *s, const float *x, size_t at, const uint8_t *block, float factor,
                      trial *t) {
  size_t n = w->info->block_elements, n_cols = w->r->n_cols;
  float now[PST_KERNELS_MAX_BLOCK];
  memcpy(t->block, block, w->info->block_bytes);
  int code = pst_kernels_block_stretch(w->r->type, factor, t->block);
  if (!code) code = pst_kernels_block_grid(w->r->type, t->block, &s->grid);
  if (code) return code;
  memcpy(now, x, n * sizeof *now);
  round_columns(&s->grid, now, n, w->r->feedback ? w->r->feedback + at * n_cols + at : NULL, n_cols, t);
  return 0;
}

/* Columns [at, at + block) of one row: bytes into `out`, the errors into `error`. */
static int round_block(const work *w, space *s, size_t row, size_t at, uint8_t *out, double *cost) {
  static const float factors[] = {0.9f, 0.95f, 1.05f};
  size_t n = w->info->block_elements, n_cols = w->r->n_cols;
  const float *x = s->w + row * n_cols + at;
  for (size_t i = 0; i < n; i++)
    if (!isfinite(x[i])) return PST_E_BAD_INPUT;
  int best = 0, code = pst_kernels_quantize_row(w->r->type, x, n, w->cost ? w->cost + at : NULL, out);
  if (!code) code = try_scales(w, s, x, at, out, 1, &s->trials[0]);
  for (size_t i = 0; w->tries && i < PST_ARRAY_LEN(factors) && !code; i++) {
    int other = !best;
    if (try_scales(w, s, x, at, out, factors[i], &s->trials[other])) continue; /* beyond the scales' range */
    if (s->trials[other].cost < s->trials[best].cost) best = other;
  }
  if (code) return code;
  trial *t = &s->trials[best];
  pst_kernels_block_put(w->r->type, t->codes, t->block);
  memcpy(out, t->block, w->info->block_bytes);
  memcpy(s->codes + row * n_cols + at, t->codes, n);
  for (size_t i = 0; i < n; i++) s->error[row * n + i] = -t->error[i];
  *cost += t->cost;
  return 0;
}

/* ---- sweeps: r is what a row lacks, g = r gram, both at the block; gram its corner, rows n_cols apart ---- */

/* y = x gram, [n]. */
static void through_gram(const float *gram, size_t n_cols, const float *x, size_t n, float *restrict y) {
  memset(y, 0, n * sizeof *y);
  for (size_t k = 0; k < n; k++)
    for (size_t i = 0; i < n; i++) y[i] += x[k] * gram[k * n_cols + i];
}

/* Stretches the block's scales to where the error is least for its codes; what that saves. */
static double stretch_block(const work *w, space *s, const float *gram, const uint8_t *codes, uint8_t *block, float *r,
                            float *g) {
  size_t n = w->info->block_elements, n_cols = w->r->n_cols;
  stretched *x = &s->other;
  double slope = 0, bend = 0, saved = 0;
  for (size_t i = 0; i < n; i++) x->now[i] = value_of(&s->grid, i, codes[i]);
  through_gram(gram, n_cols, x->now, n, x->through);
  for (size_t i = 0; i < n; i++) {
    slope += (double)g[i] * (double)x->now[i];
    bend += (double)x->through[i] * (double)x->now[i];
  }
  memcpy(x->block, block, w->info->block_bytes);
  if (!(bend > 0) || pst_kernels_block_stretch(w->r->type, (float)(1 + slope / bend), x->block) ||
      !memcmp(x->block, block, w->info->block_bytes) || pst_kernels_block_grid(w->r->type, x->block, &x->grid))
    return 0;
  for (size_t i = 0; i < n; i++) x->moved[i] = value_of(&x->grid, i, codes[i]) - x->now[i];
  through_gram(gram, n_cols, x->moved, n, x->through);
  for (size_t i = 0; i < n; i++) saved += (double)x->moved[i] * (2 * (double)g[i] - (double)x->through[i]);
  if (!(saved > 0)) return 0;
  memcpy(block, x->block, w->info->block_bytes);
  s->grid = x->grid;
  for (size_t i = 0; i < n; i++) {
    r[i] -= x->moved[i];
    g[i] -= x->through[i];
  }
  return saved;
}

/* Moves the block's codes one after the other; what that saves. */
static double move_codes(const work *w, const pst_kernels_grid *grid, const float *gram, uint8_t *codes, float *r,
                         float *g) {
  double saved = 0;
  for (size_t j = 0; j < w->info->block_elements; j++) {
    const float *row = gram + j * w->r->n_cols;
    float now = value_of(grid, j, codes[j]);
    uint8_t code = nearest_code(grid, j, now + g[j] / row[j]);
    if (code == codes[j]) continue;
    float by = value_of(grid, j, code) - now;
    double gain = (double)by * (2 * (double)g[j] - (double)by * (double)row[j]);
    if (!(gain > 0)) continue;
    saved += gain;
    codes[j] = code;
    r[j] -= by;
    for (size_t i = 0; i < w->info->block_elements; i++) g[i] -= by * row[i];
  }
  return saved;
}

/* A sweep over the chunk's blocks; what it saves. s->w: what rows lack. */
static double sweep(const work *w, space *s, size_t n_rows, uint8_t *out, size_t row_bytes) {
  size_t cols = w->r->n_cols, block = w->info->block_elements;
  double saved = 0;
  for (size_t at = 0; at < cols; at += block) {
    const float *corner = w->gram + at * cols + at;
    pst_kernels_product(pst_kernels_get(), n_rows, block, cols, (pst_kernels_floats){s->w, cols, 1},
                        (pst_kernels_floats){w->gram + at, cols, 1}, s->error, block, false, s->product);
    for (size_t i = 0; i < n_rows; i++) {
      uint8_t *bytes = out + i * row_bytes + at / block * w->info->block_bytes, *codes = s->codes + i * cols + at;
      float *r = s->w + i * cols + at, *g = s->error + i * block;
      (void)pst_kernels_block_grid(w->r->type, bytes, &s->grid);
      saved += stretch_block(w, s, corner, codes, bytes, r, g);
      saved += move_codes(w, &s->grid, corner, codes, r, g);
      pst_kernels_block_put(w->r->type, codes, bytes);
    }
  }
  return saved;
}

/* s->w becomes what the chunk's rows lack. */
static void take_away(const work *w, space *s, size_t n_rows, const uint8_t *out, size_t row_bytes) {
  size_t cols = w->r->n_cols, block = w->info->block_elements;
  for (size_t i = 0; i < n_rows; i++)
    for (size_t at = 0; at < cols; at += block) {
      float *r = s->w + i * cols + at;
      (void)pst_kernels_block_grid(w->r->type, out + i * row_bytes + at / block * w->info->block_bytes, &s->grid);
      for (size_t j = 0; j < block; j++) r[j] -= value_of(&s->grid, j, s->codes[i * cols + at + j]);
    }
}

static void load_rows(const work *w, space *s, size_t first, size_t n_rows) {
  size_t cols = w->r->n_cols;
  for (size_t i = 0; i < n_rows; i++)
    memcpy(s->w + i * cols, w->r->w + (first + i) * w->step * cols, cols * sizeof *s->w);
}

static void round_chunk(void *arg, size_t piece, void *scratch) {
  work *w = arg;
  const pst_tune_rounding *r = w->r;
  size_t first = piece * CHUNK, n = PST_MIN((size_t)CHUNK, w->n_rows - first), cols = r->n_cols;
  size_t block = w->info->block_elements, row_bytes = cols / block * w->info->block_bytes;
  space *s = space_of(scratch, cols);
  int code = 0;
  double cost = 0;
  uint8_t *out = r->out + first * row_bytes;
  load_rows(w, s, first, n);
  for (size_t at = 0; at < cols && !code; at += block) {
    for (size_t i = 0; i < n && !code; i++)
      code = round_block(w, s, i, at, out + i * row_bytes + at / block * w->info->block_bytes, &cost);
    size_t rest = at + block;
    if (r->feedback && rest < cols && !code)
      pst_kernels_product(pst_kernels_get(), n, cols - rest, block, (pst_kernels_floats){s->error, block, 1},
                          (pst_kernels_floats){r->feedback + at * cols + rest, cols, 1}, s->w + rest, cols, true,
                          s->product);
  }
  if (r->feedback && !code) {
    load_rows(w, s, first, n);
    take_away(w, s, n, out, row_bytes);
    for (int i = 0; i < SWEEPS; i++) cost -= sweep(w, s, n, out, row_bytes);
  }
  w->errors[piece] = cost;
  if (code) atomic_store(&w->code, code);
}

/* The Gram matrix from under the feedback (pst_tune_feedback_make). */
static void restore_gram(const float *feedback, size_t n, float *gram) {
  for (size_t i = 0; i < n; i++) {
    gram[i * n + i] = feedback[n * n + i];
    for (size_t k = 0; k < i; k++) gram[i * n + k] = gram[k * n + i] = feedback[i * n + k];
  }
}

int pst_tune_round(pst_tune_team *team, pst_tune_rounding *rounding) {
  size_t cols = rounding->n_cols, step = PST_MAX(rounding->row_step, 1), n_rows = (rounding->n_rows + step - 1) / step;
  size_t n = (n_rows + CHUNK - 1) / CHUNK;
  work w = {.r = rounding, .info = pst_kernels_type_info(rounding->type), .step = step, .n_rows = n_rows};
  if (!w.info || w.info->block_elements == 1 || cols % w.info->block_elements) return PST_E_UNSUPPORTED;
  float *cost = pst_malloc(cols * sizeof *cost);
  float *gram = rounding->feedback ? pst_malloc(cols * cols * sizeof *gram) : NULL;
  w.errors = pst_malloc(PST_MAX(n, 1) * sizeof *w.errors);
  int code = cost && w.errors && (gram || !rounding->feedback) ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < cols && rounding->feedback && !code; i++) cost[i] = rounding->feedback[i * cols + i];
  if (rounding->feedback) w.cost = cost;
  if (gram) restore_gram(rounding->feedback, cols, gram);
  w.gram = gram;
  w.tries = w.cost && w.info->block_bytes <= MAX_TRIED_BYTES;
  if (!code) {
    pst_tune_team_run(team, n, round_chunk, &w);
    code = atomic_load(&w.code);
  }
  if (!code) {
    rounding->error = 0;
    for (size_t i = 0; i < n; i++) rounding->error += w.errors[i];
    rounding->error *= n_rows ? (double)rounding->n_rows / (double)n_rows : 1;
  }
  pst_free(cost);
  pst_free(gram);
  pst_free(w.errors);
  return code;
}
