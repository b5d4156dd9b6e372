/* Puts texts together for one way through the model (batch.h). */
#include "tune/batch.h"

#include <stdlib.h>
#include <string.h>

void pst_tune_batch_done(pst_tune_batch *b) {
  pst_free(b->tokens);
  pst_free(b->positions);
  pst_free(b->spans);
  pst_free(b->tiles);
  pst_free(b->scores);
  memset(b, 0, sizeof *b);
}

void pst_tune_batch_clear(pst_tune_batch *b) { b->n_tokens = b->n_texts = b->n_spans = b->n_tiles = b->n_scores = 0; }

static int reserve(pst_tune_batch *b, size_t n_tokens, size_t n_scores) {
  size_t tokens = b->n_tokens + n_tokens, same = b->tokens_capacity;
  int code = pst_array_reserve((void **)&b->tokens, &b->tokens_capacity, tokens, sizeof *b->tokens);
  /* Positions grow with the tokens. */
  if (!code && b->tokens_capacity != same) {
    uint32_t *p = pst_realloc(b->positions, b->tokens_capacity * sizeof *p);
    if (p) b->positions = p;
    code = p ? 0 : PST_E_NOMEM;
    if (code) b->tokens_capacity = same;
  }
  if (!code) code = pst_array_reserve((void **)&b->spans, &b->spans_capacity, b->n_spans + 1, sizeof *b->spans);
  if (!code)
    code = pst_array_reserve((void **)&b->tiles, &b->tiles_capacity,
                             b->n_tiles + (n_tokens + PST_TUNE_TILE - 1) / PST_TUNE_TILE, sizeof *b->tiles);
  if (!code)
    code = pst_array_reserve((void **)&b->scores, &b->scores_capacity, b->n_scores + n_scores, sizeof *b->scores);
  return code;
}

/* tokens [from, to) of a text as a span. The room is there. */
static int put_span(pst_tune_batch *b, const int32_t *tokens, size_t from, size_t to, int parent) {
  int span = (int)b->n_spans;
  pst_tune_span s = {b->n_tokens, to - from, from, parent};
  b->spans[b->n_spans++] = s;
  for (size_t i = 0; i < s.n; i += PST_TUNE_TILE)
    b->tiles[b->n_tiles++] =
        (pst_tune_tile){span, s.first + i, PST_MIN(s.n - i, (size_t)PST_TUNE_TILE), s.position + i};
  for (size_t p = from; p < to; p++) {
    b->tokens[b->n_tokens] = tokens[p];
    b->positions[b->n_tokens++] = (uint32_t)p;
  }
  return span;
}

/* What should come behind position p of a text, which is row `row`. The room is there. */
static void put_score(pst_tune_batch *b, const pst_tune_text *text, size_t p, size_t row, size_t number) {
  pst_tune_score s = {
      .row = (uint32_t)row, .target = text->tokens[p + 1], .weight = text->weight, .text = (uint32_t)number};
  const pst_tune_teacher *t = text->teacher;
  if (t) {
    size_t at = (p + 1 - text->n_given) * (size_t)t->k;
    s.k = t->k;
    s.ids = t->ids + at;
    s.probabilities = t->probabilities + at;
  }
  b->scores[b->n_scores++] = s;
}

int pst_tune_batch_add(pst_tune_batch *b, const pst_tune_text *text) {
  size_t n = text->n - 1, first = b->n_tokens;
  int code = reserve(b, n, text->n - text->n_given);
  if (code) return code;
  put_span(b, text->tokens, 0, n, -1);
  for (size_t p = text->n_given - 1; p < n; p++) put_score(b, text, p, first + p, b->n_texts);
  b->n_texts++;
  return 0;
}

/* ---- trees ---- */

typedef struct planter {
  pst_tune_batch *b;
  const pst_tune_text *texts;
  const pst_tune_text **sorted;
  uint32_t *row_of; /* of the position, along the path to where we are */
  size_t min_shared;
} planter;

/* What goes into the model: all but the last token. */
static size_t shared_length(const pst_tune_text *a, const pst_tune_text *b) {
  size_t n = PST_MIN(a->n, b->n) - 1, i = 0;
  while (i < n && a->tokens[i] == b->tokens[i]) i++;
  return i;
}

static int compare_tokens(const pst_tune_text *x, const pst_tune_text *y) {
  size_t n = shared_length(x, y);
  if (n + 1 < x->n && n + 1 < y->n) return x->tokens[n] < y->tokens[n] ? -1 : 1;
  return x->n < y->n ? -1 : x->n > y->n;
}

static int by_tokens(const void *a, const void *b) {
  const pst_tune_text *x = *(const pst_tune_text *const *)a, *y = *(const pst_tune_text *const *)b;
  int order = compare_tokens(x, y);
  return order ? order : x < y ? -1 : x > y; /* the caller's order */
}

static int texts_by_tokens(const void *a, const void *b) { return compare_tokens(a, b); }

void pst_tune_texts_sort(pst_tune_text *texts, size_t n) { qsort(texts, n, sizeof *texts, texts_by_tokens); }

static int put_path(planter *p, const pst_tune_text *text, size_t from, size_t to, int parent, int *ret_span) {
  *ret_span = parent;
  if (from == to) return 0;
  int code = reserve(p->b, to - from, 0);
  if (code) return code;
  for (size_t i = from; i < to; i++) p->row_of[i] = (uint32_t)(p->b->n_tokens + i - from);
  *ret_span = put_span(p->b, text->tokens, from, to, parent);
  return 0;
}

static int put_leaf(planter *p, const pst_tune_text *text, size_t depth, int parent) {
  int span, code = put_path(p, text, depth, text->n - 1, parent, &span);
  if (!code) code = reserve(p->b, 0, text->n - text->n_given);
  for (size_t i = text->n_given - 1; i + 1 < text->n && !code; i++)
    put_score(p->b, text, i, p->row_of[i], p->b->n_texts + (size_t)(text - p->texts));
  return code;
}

/* Texts [begin, end) in order, whose positions below `depth` stand in the spans down to `parent`, `level` of them. Depth of recursion: at most their number. */
static int put_group(planter *p, size_t begin, size_t end, size_t depth, int parent, int level) {
  int code = 0;
  if (end - begin == 1) return put_leaf(p, p->sorted[begin], depth, parent);
  size_t shared = shared_length(p->sorted[begin], p->sorted[end - 1]);
  if (shared > depth && shared - depth >= p->min_shared && level + 1 < PST_TUNE_MAX_DEPTH) {
    code = put_path(p, p->sorted[begin], depth, shared, parent, &parent);
    depth = shared;
    level++;
  }
  for (size_t i = begin, next; i < end && !code; i = next) {
    const pst_tune_text *t = p->sorted[i];
    next = i + 1;
    if (t->n - 1 > shared)
      while (next < end && p->sorted[next]->tokens[shared] == t->tokens[shared]) next++;
    code = next - i == 1 ? put_leaf(p, t, depth, parent) : put_group(p, i, next, depth, parent, level);
  }
  return code;
}

static int by_row(const void *a, const void *b) {
  const pst_tune_score *x = a, *y = b;
  if (x->row != y->row) return x->row < y->row ? -1 : 1;
  if (x->target != y->target) return x->target < y->target ? -1 : 1;
  return x->text < y->text ? -1 : x->text > y->text;
}

int pst_tune_batch_add_tree(pst_tune_batch *b, const pst_tune_text *texts, size_t n, size_t min_shared) {
  size_t longest = 0;
  for (size_t i = 0; i < n; i++) longest = PST_MAX(longest, texts[i].n);
  planter p = {.b = b, .texts = texts, .min_shared = PST_MAX(min_shared, 1)};
  p.sorted = pst_malloc((n + 1) * sizeof *p.sorted);
  p.row_of = pst_malloc((longest + 1) * sizeof *p.row_of);
  int code = p.sorted && p.row_of ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < n && !code; i++) p.sorted[i] = &texts[i];
  if (!code && n) {
    qsort(p.sorted, n, sizeof *p.sorted, by_tokens);
    code = put_group(&p, 0, n, 0, -1, 0);
    qsort(b->scores, b->n_scores, sizeof *b->scores, by_row);
    b->n_texts += n;
  }
  pst_free(p.sorted);
  pst_free(p.row_of);
  return code;
}
