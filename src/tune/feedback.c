/* Rounding with error feedback (feedback.h).
 *
 * The factor comes without an inverse: with H = L^T L (L lower triangular, found from the last column to the first) U is (L^-1)^T. Rows are independent, so
 * they are cut into chunks for the threads; inside a block of the type a row is worked through column by column, and what a block leaves to all columns
 * behind it is one product for the chunk. A block's scales are chosen when its turn comes, for the weights as they are then: in short blocks of few
 * levels some multiples of the scale that the search of kernels/quantize.c finds are tried with feedback inside the block, and the cheapest is kept.
 *
 * What is there then is improved in sweeps over the blocks: with the gradient of the row's error at the block, its scales are stretched to where the error is
 * least for its codes, and each code goes to where it is least for all the others'. Both only ever lower the error.
 *
 * Where it is known how outputs count together, rows are rounded in order too, each making up for those before it, and further sweeps go over a block of columns row by row: for one row the errors of
 * all others are a further gradient. (That both sides of a matrix are to be looked at: Tseng, Sun and De Sa 2025, arXiv:2505.22988.) */
#include "tune/feedback.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum { CHUNK = 96, MAX_DAMPINGS = 7, MAX_TRIED_BYTES = 20, SWEEPS = 3, BAND = 16, COUPLED_SWEEPS = 2 };

/* ---- the factor ---- */

size_t pst_tune_feedback_work(size_t n) { return 2 * n * n; }

/* y -= f x, [n]. */
static void subtract(double *restrict y, const double *restrict x, double f, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] -= f * x[i];
}

/* The lower triangle of a [n][n] becomes L with L^T L = a. Rows go in bands: what the rows behind a band take from it is taken while the band lies in the cache. False: a is not positive definite. */
static bool factor(double *a, size_t n) {
  for (size_t end = n; end > 0;) {
    size_t first = end > BAND ? end - BAND : 0;
    for (size_t j = n; j-- > end;)
      for (size_t i = first; i < end; i++) subtract(a + i * n, a + j * n, a[j * n + i], i + 1);
    for (size_t j = end; j-- > first;) {
      double *row = a + j * n, pivot = row[j];
      if (!(pivot > 0) || !isfinite(pivot)) return false;
      double root = sqrt(pivot);
      for (size_t i = 0; i < j; i++) row[i] /= root;
      row[j] = root;
      for (size_t i = first; i < j; i++) subtract(a + i * n, row, row[i], i + 1);
    }
    end = first;
  }
  return true;
}

/* m = l^-1, lower triangles, in bands as well. */
static void invert(const double *l, size_t n, double *m) {
  for (size_t first = 0; first < n; first += BAND) {
    size_t end = PST_MIN(first + BAND, n);
    memset(m + first * n, 0, (end - first) * n * sizeof *m);
    for (size_t k = 0; k < first; k++)
      for (size_t i = first; i < end; i++) subtract(m + i * n, m + k * n, l[i * n + k], k + 1);
    for (size_t i = first; i < end; i++) {
      double *row = m + i * n, f = 1 / l[i * n + i];
      for (size_t k = first; k < i; k++) subtract(row, m + k * n, l[i * n + k], k + 1);
      for (size_t k = 0; k < i; k++) row[k] *= f;
      row[i] = f;
    }
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
  const pst_tune_rounding *r;
  const pst_kernels_type_row *info;
  float *cost;    /* [n_cols]: the feedback's diagonal; NULL: none */
  float *gram;    /* [n_cols][n_cols], damped, both triangles; NULL with cost */
  double *errors; /* of each chunk */
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

/* Rows of a matrix: `first` and every `step` one behind it, n <= CHUNK. */
typedef struct rows {
  size_t first, step, n;
} rows;

/* How much the error of the i-th row counts. */
static double count_of(const work *w, const rows *which, size_t i) {
  return w->r->outputs ? (double)w->r->outputs[(which->first + i * which->step) * (w->r->n_rows + 1)] : 1;
}

/* A sweep over the rows' blocks; what it saves. s->w: what rows lack. */
static double sweep(const work *w, space *s, const rows *which, uint8_t *out, size_t row_bytes) {
  size_t cols = w->r->n_cols, block = w->info->block_elements;
  double saved = 0;
  for (size_t at = 0; at < cols; at += block) {
    const float *corner = w->gram + at * cols + at;
    pst_kernels_product(pst_kernels_get(), which->n, block, cols, (pst_kernels_floats){s->w, cols, 1},
                        (pst_kernels_floats){w->gram + at, cols, 1}, s->error, block, false, s->product);
    for (size_t i = 0; i < which->n; i++) {
      uint8_t *bytes = out + i * row_bytes + at / block * w->info->block_bytes, *codes = s->codes + i * cols + at;
      float *r = s->w + i * cols + at, *g = s->error + i * block;
      (void)pst_kernels_block_grid(w->r->type, bytes, &s->grid);
      double gain = stretch_block(w, s, corner, codes, bytes, r, g);
      gain += move_codes(w, &s->grid, corner, codes, r, g);
      saved += gain * count_of(w, which, i);
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

/* Rounds rows, whose weights are `step` floats apart in `from`; s->w becomes what they lack then. *ret_cost: their error. */
static int round_rows(const work *w, space *s, const float *from, size_t step, const rows *which, uint8_t *out,
                      double *ret_cost) {
  const pst_tune_rounding *r = w->r;
  size_t cols = r->n_cols, block = w->info->block_elements, row_bytes = cols / block * w->info->block_bytes;
  size_t n = which->n;
  double cost = 0;
  int code = 0;
  for (size_t i = 0; i < n; i++) memcpy(s->w + i * cols, from + i * step, cols * sizeof *s->w);
  for (size_t at = 0; at < cols && !code; at += block) {
    for (size_t i = 0; i < n && !code; i++) {
      double own = 0;
      code = round_block(w, s, i, at, out + i * row_bytes + at / block * w->info->block_bytes, &own);
      cost += own * count_of(w, which, i);
    }
    size_t rest = at + block;
    if (r->feedback && rest < cols && !code)
      pst_kernels_product(pst_kernels_get(), n, cols - rest, block, (pst_kernels_floats){s->error, block, 1},
                          (pst_kernels_floats){r->feedback + at * cols + rest, cols, 1}, s->w + rest, cols, true,
                          s->product);
  }
  if (r->feedback && !code) {
    for (size_t i = 0; i < n; i++) memcpy(s->w + i * cols, from + i * step, cols * sizeof *s->w);
    take_away(w, s, n, out, row_bytes);
    for (int i = 0; i < SWEEPS; i++) cost -= sweep(w, s, which, out, row_bytes);
  }
  *ret_cost = cost;
  return code;
}

static void round_chunk(void *arg, size_t piece, void *scratch) {
  work *w = arg;
  const pst_tune_rounding *r = w->r;
  size_t first = piece * CHUNK, step = w->step * r->n_cols;
  rows which = {first * w->step, w->step, PST_MIN((size_t)CHUNK, w->n_rows - first)};
  int code =
      round_rows(w, space_of(scratch, r->n_cols), r->w + first * step, step, &which,
                 r->out + first * (r->n_cols / w->info->block_elements * w->info->block_bytes), &w->errors[piece]);
  if (code) atomic_store(&w->code, code);
}

/* The Gram matrix from under the feedback (pst_tune_feedback_make). */
static void restore_gram(const float *feedback, size_t n, float *gram) {
  for (size_t i = 0; i < n; i++) {
    gram[i * n + i] = feedback[n * n + i];
    for (size_t k = 0; k < i; k++) gram[i * n + k] = gram[k * n + i] = feedback[i * n + k];
  }
}

/* What all rows of a matrix need. close_work, whatever comes. PST_E_UNSUPPORTED, PST_E_NOMEM. */
static int open_work(const pst_tune_rounding *r, work *w) {
  size_t cols = r->n_cols;
  w->r = r;
  w->info = pst_kernels_type_info(r->type);
  if (!w->info || w->info->block_elements == 1 || cols % w->info->block_elements) return PST_E_UNSUPPORTED;
  if (!r->feedback) return 0;
  w->cost = pst_malloc(cols * sizeof *w->cost);
  w->gram = pst_malloc(cols * cols * sizeof *w->gram);
  if (!w->cost || !w->gram) return PST_E_NOMEM;
  for (size_t i = 0; i < cols; i++) w->cost[i] = r->feedback[i * cols + i];
  restore_gram(r->feedback, cols, w->gram);
  w->tries = w->info->block_bytes <= MAX_TRIED_BYTES;
  return 0;
}

static void close_work(work *w) {
  pst_free(w->cost);
  pst_free(w->gram);
  pst_free(w->errors);
}

int pst_tune_round(pst_tune_team *team, pst_tune_rounding *rounding) {
  size_t step = PST_MAX(rounding->row_step, 1), n_rows = (rounding->n_rows + step - 1) / step;
  size_t n = (n_rows + CHUNK - 1) / CHUNK;
  work w = {.step = step, .n_rows = n_rows, .errors = pst_malloc(PST_MAX(n, 1) * sizeof *w.errors)};
  int code = w.errors ? open_work(rounding, &w) : PST_E_NOMEM;
  if (!code) {
    pst_tune_team_run(team, n, round_chunk, &w);
    code = atomic_load(&w.code);
  }
  if (!code) {
    rounding->error = 0;
    for (size_t i = 0; i < n; i++) rounding->error += w.errors[i];
    rounding->error *= n_rows ? (double)rounding->n_rows / (double)n_rows : 1;
  }
  close_work(&w);
  return code;
}

/* ---- rows that make up for each other ---- */

typedef struct coupling {
  pst_tune_rounding *list;
  int *codes; /* of each */
} coupling;

/* A matrix at work. */
typedef struct coupled {
  work w;
  space *s;
  size_t n_rows, cols, block, row_bytes;
  float *counts; /* [n_rows][n_rows]: outputs, damped, both triangles */
  /* [n_rows][cols]: weights less their rounded values. In the first pass: what rows to come are to be rounded to, and what those behind lack of that, negative. */
  float *lack;
  float *through; /* [n_rows][block]: lack gram, at the block */
  uint8_t *codes; /* [n_rows][cols] */
} coupled;

/* Rows in order, each making up for those before it as columns do (feedback.h). */
static int round_in_order(coupled *c, double *ret_error) {
  const pst_tune_rounding *r = c->w.r;
  size_t cols = c->cols;
  *ret_error = 0;
  memcpy(c->lack, r->w, c->n_rows * cols * sizeof *c->lack);
  for (size_t band = 0; band < c->n_rows; band += BAND) {
    size_t end = PST_MIN(band + BAND, c->n_rows);
    for (size_t i = band; i < end; i++) {
      const float *to = r->outputs + i * c->n_rows;
      float *x = c->lack + i * cols;
      double cost;
      int code = round_rows(&c->w, c->s, x, cols, &(rows){i, 1, 1}, r->out + i * c->row_bytes, &cost);
      if (code) return code;
      *ret_error += cost;
      memcpy(c->codes + i * cols, c->s->codes, cols);
      for (size_t j = 0; j < cols; j++) x[j] = -c->s->w[j];
      for (size_t k = i + 1; k < end; k++)
        for (size_t j = 0; j < cols; j++) c->lack[k * cols + j] += x[j] * to[k];
    }
    if (end < c->n_rows)
      pst_kernels_product(pst_kernels_get(), c->n_rows - end, cols, end - band,
                          (pst_kernels_floats){r->outputs + band * c->n_rows + end, 1, c->n_rows},
                          (pst_kernels_floats){c->lack + band * cols, cols, 1}, c->lack + end * cols, cols, true,
                          c->s->product);
  }
  return 0;
}

/* Row i of the block at `at`, the other rows as they are; what that saves. */
static double couple_block(coupled *c, size_t i, size_t at) {
  const float *counts = c->counts + i * c->n_rows, *corner = c->w.gram + at * c->cols + at;
  float g[PST_KERNELS_MAX_BLOCK] = {0}, before[PST_KERNELS_MAX_BLOCK], *own = c->through + i * c->block;
  float *lack = c->lack + i * c->cols + at;
  uint8_t *bytes = c->w.r->out + i * c->row_bytes + at / c->block * c->w.info->block_bytes;
  uint8_t *codes = c->codes + i * c->cols + at;
  for (size_t k = 0; k < c->n_rows; k++)
    for (size_t j = 0; j < c->block; j++) g[j] += counts[k] * c->through[k * c->block + j];
  for (size_t j = 0; j < c->block; j++) g[j] /= counts[i];
  memcpy(before, g, sizeof before);
  (void)pst_kernels_block_grid(c->w.r->type, bytes, &c->s->grid);
  double saved = stretch_block(&c->w, c->s, corner, codes, bytes, lack, g);
  saved += move_codes(&c->w, &c->s->grid, corner, codes, lack, g);
  pst_kernels_block_put(c->w.r->type, codes, bytes);
  for (size_t j = 0; j < c->block; j++) own[j] += g[j] - before[j];
  return saved * (double)counts[i];
}

/* All rows together. *error falls by what that saves. */
static void sweep_together(coupled *c, double *error) {
  const pst_tune_rounding *r = c->w.r;
  float *row = c->s->w;
  for (size_t i = 0; i < c->n_rows; i++) {
    (void)pst_kernels_dequantize_row(r->type, r->out + i * c->row_bytes, c->cols, row);
    for (size_t j = 0; j < c->cols; j++) c->lack[i * c->cols + j] = r->w[i * c->cols + j] - row[j];
  }
  for (int k = 0; k < COUPLED_SWEEPS; k++)
    for (size_t at = 0; at < c->cols; at += c->block) {
      pst_kernels_product(pst_kernels_get(), c->n_rows, c->block, c->cols, (pst_kernels_floats){c->lack, c->cols, 1},
                          (pst_kernels_floats){c->w.gram + at, c->cols, 1}, c->through, c->block, false, c->s->product);
      for (size_t i = 0; i < c->n_rows; i++) *error -= couple_block(c, i, at);
    }
}

static void couple_matrix(void *arg, size_t piece, void *scratch) {
  coupling *all = arg;
  pst_tune_rounding *r = &all->list[piece];
  coupled c = {.n_rows = r->n_rows, .cols = r->n_cols};
  int code = open_work(r, &c.w);
  if (!code) {
    c.s = space_of(scratch, c.cols);
    c.block = c.w.info->block_elements;
    c.row_bytes = c.cols / c.block * c.w.info->block_bytes;
    c.counts = pst_malloc(c.n_rows * c.n_rows * sizeof *c.counts);
    c.lack = pst_malloc(c.n_rows * c.cols * sizeof *c.lack);
    c.through = pst_malloc(c.n_rows * c.block * sizeof *c.through);
    c.codes = pst_malloc(c.n_rows * c.cols);
    if (!c.counts || !c.lack || !c.through || !c.codes) code = PST_E_NOMEM;
  }
  if (!code) {
    restore_gram(r->outputs, c.n_rows, c.counts);
    code = round_in_order(&c, &r->error);
  }
  if (!code) sweep_together(&c, &r->error);
  all->codes[piece] = code;
  close_work(&c.w);
  pst_free(c.counts);
  pst_free(c.lack);
  pst_free(c.through);
  pst_free(c.codes);
}

int pst_tune_round_coupled(pst_tune_team *team, pst_tune_rounding *list, size_t n, size_t *ret_failed) {
  coupling c = {list, pst_calloc(n + 1, sizeof *c.codes)};
  if (!c.codes) return PST_E_NOMEM;
  pst_tune_team_run(team, n, couple_matrix, &c);
  int code = 0;
  for (size_t i = 0; i < n && !code; i++)
    if ((code = c.codes[i])) *ret_failed = i;
  pst_free(c.codes);
  return code;
}
