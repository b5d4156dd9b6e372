/* The head of the forward pass: logits of kept states, and the greatest of them by a screen. */
#include "engine/forward_impl.h"

#include <math.h>
#include <string.h>

/* Screens of the head: rows at once for which they pay, groups looked through at a time, tokens without a screen after one that let more
 * than half of the groups pass. */
enum { SCREEN_ROWS = 4, SCREEN_GROUPS = 256, SCREEN_REST = 32 };

/* ---- the head ---- */

static void finish_logits(const pst_engine_forward *f, int first_row, int n_rows, size_t from, size_t to) {
  float factor = f->model->logit_scale, cap = f->model->logit_softcap;
  if (factor == 1.0f && cap == 0.0f) return;
  for (int r = first_row; r < first_row + n_rows; r++) {
    float *row = f->head_out + (size_t)r * (size_t)f->model->info.n_vocab;
    if (factor != 1.0f) f->k->scale(row + from, factor, to - from, row + from);
    if (cap != 0.0f) f->k->softcap(row + from, cap, to - from, row + from);
  }
}

/* Logits of states [head_first + row, + n_rows) for groups [from, to), into their rows of head_out. */
static void head_groups(pst_engine_walk *w, int row, int n_rows, size_t from, size_t to) {
  pst_engine_forward *f = w->f;
  size_t vocab = (size_t)f->model->info.n_vocab;
  f->k->matmul(&f->model->head, &f->in_kept, (size_t)f->head_first + (size_t)row, (size_t)n_rows, from, to, false,
               f->head_out + (size_t)row * vocab, vocab, w->mine->work);
  finish_logits(f, row, n_rows, from * PST_KERNELS_GROUP, PST_MIN(to * PST_KERNELS_GROUP, vocab));
}

static void head_thread(void *arg, pst_engine_team *team, int index) {
  pst_engine_forward *f = arg;
  pst_engine_walk w = {f, team, &f->lanes[index], 0, -1};
  int total = f->head_groups ? f->head_n_groups : (int)f->model->head.n_groups;
  int chunk = f->head_groups ? 1 : PST_MAX(total / (team->n_threads * 16), 1), begin, end;
  while (pst_engine_walk_claim(&w, total, chunk, &begin, &end)) {
    size_t from = f->head_groups ? (size_t)f->head_groups[begin] : (size_t)begin,
           to = f->head_groups ? from + 1 : (size_t)end;
    head_groups(&w, 0, f->head_n, from, to);
  }
}

void pst_engine_forward_logits(pst_engine_forward *f, int first, int n, const int32_t *groups, int n_groups,
                               float *logits) {
  f->head_first = first;
  f->head_n = n;
  f->head_groups = groups;
  f->head_n_groups = n_groups;
  f->head_out = logits;
  atomic_store_explicit(&f->claims[0], 0, memory_order_relaxed);
  pst_engine_pool_run(f->n_threads, head_thread, f);
}

/* ---- the greatest logit only ---- */

static bool beats(pst_engine_pick a, pst_engine_pick b) {
  return a.value > b.value || (a.value == b.value && a.token < b.token);
}

/* Rows [from, to) of the head whose logits stand in row r of head_out. */
static void pick_among(pst_engine_walk *w, int r, size_t from, size_t to) {
  const float *x = w->f->head_out + (size_t)r * (size_t)w->f->model->info.n_vocab;
  size_t best = from + w->f->k->argmax(x + from, to - from);
  pst_engine_pick found = {x[best], (int32_t)best};
  if (w->mine->picks[r].token < 0 || beats(found, w->mine->picks[r])) w->mine->picks[r] = found;
}

/* The true logits of one group, in place of the coarse ones. */
static void rescore(pst_engine_walk *w, int r, size_t group) {
  head_groups(w, r, 1, group, group + 1);
  pick_among(w, r, group * PST_KERNELS_GROUP,
             PST_MIN((group + 1) * PST_KERNELS_GROUP, (size_t)w->f->model->info.n_vocab));
}

/* The coarse product everywhere; the true logits of each thread's best; then those of every group that could hold a greater one than these
 * (kernels/screen.c says why that is exact). */
static void pick_screened(pst_engine_walk *w) {
  pst_engine_forward *f = w->f;
  const pst_kernels_screen *s = &f->model->screen;
  size_t vocab = (size_t)f->model->info.n_vocab;
  pst_engine_pick *picks = w->mine->picks;
  int total = (int)s->codes.n_groups, chunk = PST_MAX(total / (w->team->n_threads * 16), 1), begin, end;
  while (pst_engine_walk_claim(w, total, chunk, &begin, &end)) {
    f->k->matmul(&s->codes, &f->in_kept, (size_t)f->head_first, (size_t)f->head_n, (size_t)begin, (size_t)end, false,
                 f->head_out, vocab, w->mine->work);
    for (int r = 0; r < f->head_n; r++)
      pick_among(w, r, (size_t)begin * PST_KERNELS_GROUP, PST_MIN((size_t)end * PST_KERNELS_GROUP, vocab));
  }
  pst_engine_walk_next(w);
  for (int r = 0; r < f->head_n; r++) {
    if (picks[r].token < 0) continue; /* this thread came too late for any chunk */
    size_t group = (size_t)picks[r].token / PST_KERNELS_GROUP;
    picks[r].token = -1;
    rescore(w, r, group);
    w->mine->floors[r] = picks[r].value;
  }
  pst_engine_walk_next(w);
  int32_t passed[SCREEN_GROUPS];
  while (pst_engine_walk_claim(w, total, SCREEN_GROUPS, &begin, &end)) {
    size_t from = (size_t)begin * PST_KERNELS_GROUP, to = PST_MIN((size_t)end * PST_KERNELS_GROUP, vocab);
    for (int r = 0; r < f->head_n; r++) {
      float floor = -INFINITY;
      for (int t = 0; t < w->team->n_threads; t++) floor = PST_MAX(floor, f->lanes[t].floors[r]);
      size_t n = f->k->screen_pass(f->head_out + (size_t)r * vocab + from, s->radius + from, f->reaches[r], floor,
                                   to - from, begin, passed);
      for (size_t i = 0; i < n; i++) rescore(w, r, (size_t)passed[i]);
      w->mine->n_passed += (int)n;
    }
  }
}

static void greedy_thread(void *arg, pst_engine_team *team, int index) {
  pst_engine_forward *f = arg;
  pst_engine_walk w = {f, team, &f->lanes[index], 0, -1};
  if (f->screened) {
    pick_screened(&w);
    return;
  }
  size_t vocab = (size_t)f->model->info.n_vocab;
  int total = (int)f->model->head.n_groups, chunk = PST_MAX(total / (team->n_threads * 16), 1), begin, end;
  while (pst_engine_walk_claim(&w, total, chunk, &begin, &end)) {
    head_groups(&w, 0, f->head_n, (size_t)begin, (size_t)end);
    for (int r = 0; r < f->head_n; r++)
      pick_among(&w, r, (size_t)begin * PST_KERNELS_GROUP, PST_MIN((size_t)end * PST_KERNELS_GROUP, vocab));
  }
}

void pst_engine_forward_greedy(pst_engine_forward *f, int first, int n, float *scratch, int32_t *ret_tokens) {
  f->head_first = first;
  f->head_n = n;
  f->head_out = scratch;
  f->screened = f->model->screen.radius && n <= SCREEN_ROWS && f->screen_rest == 0;
  if (f->screen_rest > 0) f->screen_rest--;
  for (int r = 0; r < n && f->screened; r++)
    f->reaches[r] = pst_kernels_screen_reach(&f->in_kept, (size_t)first + (size_t)r);
  for (int stage = 0; stage < 3; stage++) atomic_store_explicit(&f->claims[stage], 0, memory_order_relaxed);
  for (int t = 0; t < f->n_threads; t++) {
    f->lanes[t].n_passed = 0;
    for (int r = 0; r < n; r++) {
      f->lanes[t].picks[r].token = -1;
      f->lanes[t].floors[r] = -INFINITY;
    }
  }
  pst_engine_pool_run(f->n_threads, greedy_thread, f);
  int n_passed = 0;
  for (int t = 0; t < f->n_threads; t++) n_passed += f->lanes[t].n_passed;
  if (f->screened && n_passed > n * (int)f->model->head.n_groups / 2) f->screen_rest = SCREEN_REST;
  for (int r = 0; r < n; r++) {
    pst_engine_pick best = f->lanes[0].picks[r];
    for (int t = 1; t < f->n_threads; t++) {
      pst_engine_pick other = f->lanes[t].picks[r];
      if (other.token >= 0 && (best.token < 0 || beats(other, best))) best = other;
    }
    ret_tokens[r] = best.token;
  }
}
