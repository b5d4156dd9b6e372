/* What LoRA adapters add to the products of a step.
 *
 * A step's tokens stand in runs of one adapter each. For every run and product that has a part, a x is computed beside the base's product (both read the same
 * input), and b (a x) is added when all threads have met: one meeting more where any run has a part, none elsewhere. An element is base + b (a x) with b (a x)
 * one chain of the kernels, so the neighbours of a token leave no trace, and a token without adapter is not touched. */
#include "engine/forward_impl.h"

/* Tokens of a piece of work, and groups of rows of b. */
enum { PIECE_TOKENS = 32, PIECE_GROUPS = 32 };

/* A piece of work: n tokens of one run for one product. */
typedef struct piece {
  const pst_engine_adapter_part *part;
  int product, first, n;
  size_t group_begin, group_end; /* of b */
  float *inner;                  /* [n][rank] */
} piece;

static int blocks_of(int n) { return (n + PIECE_TOKENS - 1) / PIECE_TOKENS; }

static int groups_of(const pst_engine_adapter_part *part) {
  return ((int)part->b.n_groups + PIECE_GROUPS - 1) / PIECE_GROUPS;
}

static const pst_engine_adapter_part *part_of(const pst_engine_walk *w, int run, pst_engine_adapter_slot slot) {
  return pst_engine_adapter_part_of(w->f->runs[run].adapter, w->layer, slot);
}

bool pst_engine_walk_adapts(const pst_engine_walk *w, pst_engine_adapter_slot slot) {
  for (int r = 0; r < w->f->n_runs && w->layer >= 0; r++)
    if (part_of(w, r, slot)) return true;
  return false;
}

/* Pieces of all runs and products: by tokens, and for b by groups too. */
static int count_pieces(const pst_engine_walk *w, const pst_engine_product *p, int n_products, bool by_groups) {
  int n = 0;
  for (int r = 0; r < w->f->n_runs; r++)
    for (int i = 0; i < n_products; i++) {
      const pst_engine_adapter_part *part = part_of(w, r, p[i].slot);
      if (part) n += blocks_of(w->f->runs[r].n) * (by_groups ? groups_of(part) : 1);
    }
  return n;
}

static piece piece_at(const pst_engine_walk *w, const pst_engine_product *p, int n_products, bool by_groups,
                      int index) {
  const pst_engine_forward *f = w->f;
  for (int r = 0; r < f->n_runs; r++)
    for (int i = 0; i < n_products; i++) {
      const pst_engine_adapter_run *run = &f->runs[r];
      const pst_engine_adapter_part *part = part_of(w, r, p[i].slot);
      if (!part) continue;
      int per_block = by_groups ? groups_of(part) : 1, n = blocks_of(run->n) * per_block;
      if (index >= n) {
        index -= n;
        continue;
      }
      int offset = index / per_block * PIECE_TOKENS, first = run->first + offset;
      size_t group = (size_t)(index % per_block) * PIECE_GROUPS;
      return (piece){part,
                     i,
                     first,
                     PST_MIN(PIECE_TOKENS, run->n - offset),
                     group,
                     PST_MIN(group + PIECE_GROUPS, part->b.n_groups),
                     f->inner + ((size_t)i * (size_t)f->max_tokens + (size_t)first) * PST_ENGINE_ADAPTER_MAX_RANK};
    }
  return (piece){0}; /* not reached: index is below count_pieces */
}

bool pst_engine_walk_adapt_in(pst_engine_walk *w, const pst_engine_product *p, int n_products,
                              const pst_kernels_input *input) {
  if (w->f->n_runs == 0 || w->layer < 0) return false;
  int total = count_pieces(w, p, n_products, false), begin, end;
  if (total == 0) return false;
  while (pst_engine_walk_claim(w, total, 1, &begin, &end)) {
    piece c = piece_at(w, p, n_products, false, begin);
    w->f->k->dots(c.part->a_type, c.part->a, c.part->rank, c.part->n_in, input->x + (size_t)c.first * c.part->n_in,
                  (size_t)c.n, c.inner);
  }
  w->stage++; /* the products go on with a counter of their own; nobody waits */
  return true;
}

void pst_engine_walk_adapt_out(pst_engine_walk *w, const pst_engine_product *p, int n_products) {
  int total = count_pieces(w, p, n_products, true), begin, end;
  while (pst_engine_walk_claim(w, total, 1, &begin, &end)) {
    piece c = piece_at(w, p, n_products, true, begin);
    const pst_engine_product *to = &p[c.product];
    pst_kernels_input inner = {.n_cols = c.part->b.n_cols, .x = c.inner};
    w->f->k->matmul(&c.part->b, &inner, 0, (size_t)c.n, c.group_begin, c.group_end, true,
                    to->out + (size_t)c.first * to->stride, to->stride, w->mine->work);
  }
  pst_engine_walk_next(w);
}
