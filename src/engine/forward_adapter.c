/* What LoRA adapters add to the products of a step.
 *
 * A step's tokens stand in runs of one adapter each, or of none, a run in strips of a few tokens. Before a product itself is computed, the threads share out its strips:
 * whoever takes one computes a x and writes b (a x) where the product's rows will be added to it, zeros where the run has no part. A thread goes on with the
 * product when its last strip is there; there is no meeting for it. b (a x) is one chain of the kernels over a x, and what it is added to is a chain of its own, so
 * the neighbours of a token leave no trace.
 *
 * Beside quantized weights a x is quantized again for b. The matrices are folded (adapter.h), and so are their inputs: the input of a as it lies in memory is
 * already `a_folds` tokens of fewer columns, of which each has the lanes of its own part; and a token's a x is put into `b_folds` tokens, at the columns of one
 * base group each and zeros elsewhere. */
#include "engine/forward_impl.h"

#include <string.h>

enum { STRIP_TOKENS = PST_ENGINE_STRIP_TOKENS, GROUP = PST_KERNELS_GROUP, BLOCK = PST_KERNELS_BLOCK };
_Static_assert(PST_ENGINE_ADAPTER_FOLDS *BLOCK <= PST_ENGINE_ADAPTER_MAX_RANK &&
                   PST_ENGINE_ADAPTED_BLOCKS * BLOCK >= PST_ENGINE_ADAPTER_MAX_RANK &&
                   (int)PST_ENGINE_ADAPTED_BLOCKS >= (int)PST_ENGINE_ADAPTER_FOLDS,
               "a token's a x, folded or not, has its blocks");

/* n tokens of one run for one product, which may have no part. */
typedef struct strip {
  const pst_engine_adapter_part *part;
  int first, n;
} strip;

static int strips_of(const pst_engine_adapter_run *run) { return (run->n + STRIP_TOKENS - 1) / STRIP_TOKENS; }

static const pst_engine_adapter_part *part_of(const pst_engine_walk *w, const pst_engine_adapter_run *run,
                                              pst_engine_adapter_slot slot) {
  return run->adapter ? pst_engine_adapter_part_of(run->adapter, w->layer, slot) : NULL;
}

/* Blocks [from, ...) of an input, as tokens of n_blocks each. */
static pst_kernels_input view(const pst_kernels_input *in, size_t from, size_t n_blocks) {
  return (pst_kernels_input){.n_cols = n_blocks * BLOCK,
                             .n_blocks = n_blocks,
                             .q = in->q + from * BLOCK,
                             .d = in->d + from,
                             .s = in->s + from,
                             .half = in->half + 2 * from};
}

/* Where fold k of a strip's token i stands among its folded tokens: those that one product takes stand together, a few tokens' folds or a fold's tokens. */
static bool by_folds(const strip *s) { return (size_t)s->n >= s->part->b_folds; }
static size_t folded_at(const strip *s, size_t i, size_t k) {
  return by_folds(s) ? k * (size_t)s->n + i : i * s->part->b_folds + k;
}

/* inner[rank] times the factor, as the folded tokens of token i: the same codes at the columns of each fold. */
static void fold_inner(const pst_engine_forward *f, const strip *s, size_t i, const float *inner,
                       pst_kernels_input codes) {
  const pst_engine_adapter_part *part = s->part;
  size_t width = BLOCK / part->b_folds, first = folded_at(s, i, 0);
  float row[PST_ENGINE_ADAPTER_MAX_RANK] = {0};
  f->k->scale(inner, part->factor, part->rank, row);
  f->k->quantize(row, 0, codes.n_blocks, &codes, first);
  for (size_t k = 1; k < part->b_folds; k++) {
    size_t to = folded_at(s, i, k), side = k * width / (BLOCK / 2);
    memset(codes.q + to * BLOCK, 0, BLOCK);
    memcpy(codes.q + to * BLOCK + k * width, codes.q + first * BLOCK, width);
    codes.d[to] = codes.d[first];
    codes.s[to] = codes.s[first];
    codes.half[2 * to + side] = codes.half[2 * first];
    codes.half[2 * to + 1 - side] = 0;
  }
}

/* a x of a strip, as the input of b: `inner` has room for its codes, and its floats. */
static pst_kernels_input multiply_in(const pst_engine_walk *w, const strip *s, const pst_kernels_input *input,
                                     float inner[STRIP_TOKENS * PST_ENGINE_ADAPTER_MAX_RANK]) {
  const pst_engine_forward *f = w->f;
  const pst_engine_adapter_part *part = s->part;
  size_t rank = part->rank, folds = part->a_folds, n = (size_t)s->n, n_rows = folds * rank;
  if (!folds) {
    f->k->dots(part->rows, rank, part->n_in, input->x + (size_t)s->first * part->n_in, n, inner);
    return (pst_kernels_input){.n_cols = rank, .x = inner};
  }
  /* folds * folds * rank <= 8 * 16 where there are any folds */
  float out[STRIP_TOKENS * PST_ENGINE_ADAPTER_MAX_RANK];
  pst_kernels_input folded = view(input, (size_t)s->first * input->n_blocks, input->n_blocks / folds);
  pst_kernels_input codes = view(&w->mine->adapted, 0, part->b.n_cols / BLOCK);
  f->k->matmul(&part->a, &folded, 0, n * folds, 0, part->a.n_groups, false, out, n_rows, w->mine->work);
  for (size_t i = 0; i < n; i++) {
    const float *parts = out + i * folds * n_rows;
    memcpy(inner, parts, rank * sizeof *inner);
    for (size_t k = 1; k < folds; k++) f->k->add(inner, parts + k * (n_rows + rank), rank, inner);
    fold_inner(f, s, i, inner, codes);
  }
  return codes;
}

/* out = b (a x), or += where the product adds, for a strip. */
static void multiply_out(const pst_engine_walk *w, const strip *s, const pst_engine_product *p,
                         const pst_kernels_input *inner) {
  const pst_engine_forward *f = w->f;
  const pst_engine_adapter_part *part = s->part;
  size_t folds = part->b_folds, n = (size_t)s->n, n_groups = p->w->n_groups;
  float *out = p->out + (size_t)s->first * p->stride;
  if (folds < 2) {
    f->k->matmul(&part->b, inner, 0, n, 0, n_groups, p->add, out, p->stride, w->mine->work);
    return;
  }
  for (size_t j = 0, end; j < part->b.n_groups; j = end) { /* rows with all folds at once, and one that has fewer */
    size_t n_folds = PST_MIN(folds, n_groups - j * folds);
    end = n_folds == folds ? n_groups / folds : j + 1;
    if (by_folds(s))
      for (size_t k = 0; k < n_folds; k++)
        f->k->matmul(&part->b, inner, folded_at(s, 0, k), n, j, end, p->add, out + k * GROUP, p->stride, w->mine->work);
    else
      for (size_t i = 0; i < n; i++)
        f->k->matmul(&part->b, inner, folded_at(s, i, 0), n_folds, j, end, p->add, out + i * p->stride, GROUP,
                     w->mine->work);
  }
}

static void adapt(const pst_engine_walk *w, const strip *s, const pst_engine_product *p,
                  const pst_kernels_input *input) {
  float inner[STRIP_TOKENS * PST_ENGINE_ADAPTER_MAX_RANK];
  if (s->part) {
    pst_kernels_input in = multiply_in(w, s, input, inner);
    multiply_out(w, s, p, &in);
  } else if (!p->add) {
    for (int t = 0; t < s->n; t++)
      memset(p->out + (size_t)(s->first + t) * p->stride, 0, p->w->n_rows * sizeof *p->out);
  }
}

pst_engine_adapting pst_engine_walk_adapt(pst_engine_walk *w, const pst_engine_product *p, int n_products,
                                          const pst_kernels_input *input) {
  const pst_engine_adapter_run *runs = w->f->runs;
  pst_engine_adapting a = {0};
  bool any = false;
  if (w->layer < 0) return a;
  for (int r = 0; r < w->f->n_runs; r++) {
    for (int i = 0; i < n_products; i++) any |= part_of(w, &runs[r], p[i].slot) != NULL;
    a.n_strips += strips_of(&runs[r]);
  }
  if (!any) return (pst_engine_adapting){0};
  a.done = &w->f->claims[w->stage + 1];
  int begin, end, product = 0, r = 0, first = 0; /* strip `first` begins run r of the product */
  while (pst_engine_walk_claim(w, a.n_strips * n_products, 1, &begin, &end)) {
    while (begin >= first + strips_of(&runs[r])) {
      first += strips_of(&runs[r]);
      r = (r + 1) % w->f->n_runs;
      product += r == 0;
    }
    int offset = (begin - first) * STRIP_TOKENS;
    strip s = {part_of(w, &runs[r], p[product].slot), runs[r].first + offset,
               PST_MIN(STRIP_TOKENS, runs[r].n - offset)};
    adapt(w, &s, &p[product], input);
    atomic_fetch_add_explicit(&a.done[product], 1, memory_order_release);
  }
  w->stage += 1 + n_products; /* the products have a counter of their own */
  return a;
}
