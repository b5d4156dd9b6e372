/* What LoRA adapters add to the products of a step.
 *
 * A step's tokens stand in runs of one adapter each, a run in strips of a few tokens. For every strip and product that has a part, a x is computed first, by whichever
 * thread comes; then the threads go on with the base's product, and a chunk of its rows gets b (a x) as soon as these rows are there and every a x is: there is no
 * meeting for it. An element is base + b (a x) with b (a x) one chain of the kernels over a x, so the neighbours of a token leave no trace, and a token without
 * adapter is not touched.
 *
 * Beside quantized weights a x is quantized again for b. The matrices are folded (adapter.h), and so are their inputs: the input of a as it lies in memory is
 * already `a_folds` tokens of fewer columns, of which each has the lanes of its own part; and a token's a x is put into `b_folds` tokens, at the columns of one
 * base group each and zeros elsewhere. */
#include "engine/forward_impl.h"

#include <string.h>

/* Of a strip; with eight pseudo-tokens the kernels work straight on packed records. */
enum { STRIP_TOKENS = 8, GROUP = PST_KERNELS_GROUP, BLOCK = PST_KERNELS_BLOCK };
_Static_assert(PST_ENGINE_ADAPTER_FOLDS *BLOCK <= PST_ENGINE_ADAPTER_MAX_RANK &&
                   PST_ENGINE_ADAPTED_BLOCKS * BLOCK >= PST_ENGINE_ADAPTER_MAX_RANK &&
                   (int)PST_ENGINE_ADAPTED_BLOCKS >= (int)PST_ENGINE_ADAPTER_FOLDS,
               "a token's a x, folded or not, has its blocks");

/* n tokens of one run for one product. */
typedef struct strip {
  const pst_engine_adapter_part *part;
  int product, first, n;
} strip;

static int strips_of(const pst_engine_adapter_run *run) { return (run->n + STRIP_TOKENS - 1) / STRIP_TOKENS; }

static const pst_engine_adapter_part *part_of(const pst_engine_walk *w, const pst_engine_adapter_run *run,
                                              pst_engine_adapter_slot slot) {
  return pst_engine_adapter_part_of(run->adapter, w->layer, slot);
}

static strip strip_of(const pst_engine_adapter_part *part, int product, const pst_engine_adapter_run *run, int index) {
  int offset = index * STRIP_TOKENS;
  return (strip){part, product, run->first + offset, PST_MIN(STRIP_TOKENS, run->n - offset)};
}

static int count_strips(const pst_engine_walk *w, const pst_engine_product *p, int n_products) {
  int n = 0;
  for (int r = 0; r < w->f->n_runs; r++)
    for (int i = 0; i < n_products; i++)
      if (part_of(w, &w->f->runs[r], p[i].slot)) n += strips_of(&w->f->runs[r]);
  return n;
}

static strip strip_at(const pst_engine_walk *w, const pst_engine_product *p, int n_products, int index) {
  for (int r = 0; r < w->f->n_runs; r++)
    for (int i = 0; i < n_products; i++) {
      const pst_engine_adapter_run *run = &w->f->runs[r];
      const pst_engine_adapter_part *part = part_of(w, run, p[i].slot);
      if (!part) continue;
      if (index < strips_of(run)) return strip_of(part, i, run, index);
      index -= strips_of(run);
    }
  return (strip){0}; /* not reached: index is below count_strips */
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

/* Where a strip's a x is: floats, or quantized for b. */
static float *floats_of(const pst_engine_forward *f, const strip *s) {
  return f->inner + ((size_t)s->product * (size_t)f->max_tokens + (size_t)s->first) * PST_ENGINE_ADAPTER_MAX_RANK;
}

static pst_kernels_input codes_of(const pst_engine_forward *f, const strip *s) {
  size_t token = (size_t)s->product * (size_t)f->max_tokens + (size_t)s->first;
  return view(&f->in_inner, token * PST_ENGINE_ADAPTED_BLOCKS, s->part->b.n_cols / BLOCK);
}

/* Where fold k of a strip's token i stands among its folded tokens: those that one product takes stand together, a few tokens' folds or a fold's tokens. */
static bool by_folds(const strip *s) { return (size_t)s->n >= s->part->b_folds; }
static size_t folded_at(const strip *s, size_t i, size_t k) {
  return by_folds(s) ? k * (size_t)s->n + i : i * s->part->b_folds + k;
}

/* inner[rank] times the factor, as the folded tokens of token i: the same codes at the columns of each fold. */
static void fold_inner(const pst_engine_forward *f, const strip *s, size_t i, const float *inner) {
  const pst_engine_adapter_part *part = s->part;
  pst_kernels_input codes = codes_of(f, s);
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

/* a x of a strip. */
static void multiply_in(const pst_engine_walk *w, const strip *s, const pst_kernels_input *input) {
  const pst_engine_forward *f = w->f;
  const pst_engine_adapter_part *part = s->part;
  size_t rank = part->rank, folds = part->a_folds, n = (size_t)s->n, n_rows = folds * rank;
  if (!folds) {
    f->k->dots(part->rows, rank, part->n_in, input->x + (size_t)s->first * part->n_in, n, floats_of(f, s));
    return;
  }
  /* folds * folds * rank <= 8 * 16 where there are any folds */
  float out[STRIP_TOKENS * PST_ENGINE_ADAPTER_MAX_RANK], inner[PST_ENGINE_ADAPTER_MAX_RANK];
  pst_kernels_input folded = view(input, (size_t)s->first * input->n_blocks, input->n_blocks / folds);
  f->k->matmul(&part->a, &folded, 0, n * folds, 0, part->a.n_groups, false, out, n_rows, w->mine->work);
  for (size_t i = 0; i < n; i++) {
    const float *parts = out + i * folds * n_rows;
    memcpy(inner, parts, rank * sizeof *inner);
    for (size_t k = 1; k < folds; k++) f->k->add(inner, parts + k * (n_rows + rank), rank, inner);
    fold_inner(f, s, i, inner);
  }
}

/* Rows of groups [from, to) of out += b (a x), for a strip. */
static void multiply_out(const pst_engine_walk *w, const strip *s, const pst_engine_product *p, size_t from,
                         size_t to) {
  const pst_engine_forward *f = w->f;
  const pst_engine_adapter_part *part = s->part;
  size_t folds = part->b_folds, n = (size_t)s->n;
  float *out = p->out + (size_t)s->first * p->stride;
  if (folds < 2) {
    pst_kernels_input inner = folds ? codes_of(f, s) : (pst_kernels_input){.n_cols = part->rank, .x = floats_of(f, s)};
    f->k->matmul(&part->b, &inner, 0, n, from, to, true, out, p->stride, w->mine->work);
    return;
  }
  pst_kernels_input codes = codes_of(f, s);
  while (from < to) { /* whole rows of folds at once, and what a chunk cuts off of them */
    size_t j = from / folds, first = from % folds, whole = first ? 0 : (to - from) / folds;
    size_t n_groups = PST_MAX(whole, 1), end = whole ? folds : PST_MIN(first + to - from, folds);
    if (by_folds(s))
      for (size_t k = first; k < end; k++)
        f->k->matmul(&part->b, &codes, folded_at(s, 0, k), n, j, j + n_groups, true, out + k * GROUP, p->stride,
                     w->mine->work);
    else
      for (size_t i = 0; i < n; i++)
        f->k->matmul(&part->b, &codes, folded_at(s, i, first), end - first, j, j + n_groups, true,
                     out + i * p->stride + first * GROUP, GROUP, w->mine->work);
    from += whole ? whole * folds : end - first;
  }
}

pst_engine_adapting pst_engine_walk_adapt_in(pst_engine_walk *w, const pst_engine_product *p, int n_products,
                                             const pst_kernels_input *input) {
  pst_engine_adapting a = {0};
  if (w->f->n_runs == 0 || w->layer < 0) return a;
  a.n_strips = count_strips(w, p, n_products);
  if (a.n_strips == 0) return a;
  int begin, end;
  a.done = &w->f->claims[w->stage + 1];
  while (pst_engine_walk_claim(w, a.n_strips, 1, &begin, &end)) {
    strip s = strip_at(w, p, n_products, begin);
    multiply_in(w, &s, input);
    atomic_fetch_add_explicit(a.done, 1, memory_order_release);
  }
  w->stage += 2; /* the products have a counter of their own */
  return a;
}

void pst_engine_walk_adapt_out(const pst_engine_walk *w, const pst_engine_adapting *a, const pst_engine_product *p,
                               int product, int from, int to) {
  if (a->n_strips == 0) return;
  pst_engine_team_await(w->team, a->done, a->n_strips);
  for (int r = 0; r < w->f->n_runs; r++) {
    const pst_engine_adapter_run *run = &w->f->runs[r];
    const pst_engine_adapter_part *part = part_of(w, run, p[product].slot);
    for (int i = 0; part && i < strips_of(run); i++) {
      strip s = strip_of(part, product, run, i);
      multiply_out(w, &s, &p[product], (size_t)from, (size_t)to);
    }
  }
}
