/* Which pieces of answers become codes (codes.h).
 *
 * Byte-pair merging over tokens in place of bytes finds pieces of every length, as long as they are frequent, up to twice as many as are wanted. Which of them make the table is
 * found by taking away, as unigram tokenizers do: all answers are spelled with all pieces in the cheapest way, those of little worth go, and so on until few enough are left. */
#include "tune/codes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Pieces in use at once when merging ends, for each code wanted and beside: further merges make what only few answers have. */
enum { LEARN_TOKENS = 1 << 19, MORE = 2, FEW = 16 };
enum { GAP = -1 }; /* parts spans, and stands for tokens that are no text */

typedef struct pair {
  int32_t left, right; /* count 0: an empty place */
  uint32_t count;
} pair;

/* Symbols below n_vocab are tokens, from there on pieces. */
typedef struct piece {
  int32_t left, right;
  uint32_t n;    /* tokens */
  uint32_t uses; /* in the spans, as they are spelled with the table as it is now */
  uint64_t worth;
  int n_whole; /* pieces in use of which it is the left or the right half */
} piece;

typedef struct learner {
  int32_t *text; /* [n] symbols */
  size_t n;
  int32_t n_vocab;
  piece *pieces;
  size_t n_pieces, most_pieces;
  size_t n_used; /* pieces that the text has often enough */
  pair *pairs;   /* open addressing */
  size_t n_places;
} learner;

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, "codes", "no memory to learn codes"); }

/* ---- tokens that may be codes ---- */

typedef struct candidate {
  int32_t token;
  uint64_t rarest; /* how often the seen texts have the rarest of its characters */
} candidate;

static int by_rank(const void *a, const void *b) {
  const candidate *x = a, *y = b;
  if (x->rarest != y->rarest) return x->rarest < y->rarest ? -1 : 1;
  return (x->token > y->token) - (x->token < y->token);
}

static bool is_printable(pst_str s) {
  for (size_t i = 0; i < s.n; i++)
    if (s.data[i] < (i ? 0x21 : 0x20) || s.data[i] > 0x7e) return false;
  return s.n >= 2;
}

static pst_str bytes_of(const pst_engine_model *model, int32_t token, pst_buf *room) {
  pst_buf_clear(room);
  (void)pst_engine_detokenize(model, &token, 1, false, room);
  return pst_buf_str(room);
}

/* All that may be codes, the best first; found: [n_vocab]. */
static int rank_candidates(const pst_engine_model *model, const uint32_t *seen, candidate *found, size_t *ret_n) {
  int32_t n_vocab = pst_engine_model_get_info(model)->n_vocab;
  uint64_t frequency[256] = {0};
  pst_buf room = PST_BUF_INIT;
  size_t n = 0;
  for (int32_t t = 0; t < n_vocab; t++) {
    if (!seen[t]) continue;
    pst_str s = bytes_of(model, t, &room);
    for (size_t i = 0; i < s.n; i++) frequency[(uint8_t)s.data[i]] += seen[t];
  }
  for (int32_t t = 0; t < n_vocab; t++) {
    if (seen[t] || !pst_engine_token_is_text(model, t)) continue;
    pst_str s = bytes_of(model, t, &room);
    if (!is_printable(s)) continue;
    found[n] = (candidate){t, UINT64_MAX};
    for (size_t i = 0; i < s.n; i++) found[n].rarest = PST_MIN(found[n].rarest, frequency[(uint8_t)s.data[i]]);
    n++;
  }
  int code = pst_buf_status(&room);
  pst_buf_done(&room);
  if (code) return code;
  qsort(found, n, sizeof *found, by_rank);
  *ret_n = n;
  return 0;
}

/* Row n of `rows` [n + 1][width] becomes the head's of a token, at length 1. */
static void read_direction(const pst_engine_model *model, int32_t token, float *row, size_t width) {
  double sum = 0;
  pst_engine_decoder_head(model, (size_t)token, 1, row);
  for (size_t i = 0; i < width; i++) sum += (double)row[i] * (double)row[i];
  float scale = sum > 0 ? (float)(1 / sqrt(sum)) : 0;
  for (size_t i = 0; i < width; i++) row[i] *= scale;
}

/* The greatest cosine of row n and those before it. */
static float likeness(const float *rows, size_t n, size_t width) {
  float most = -1;
  for (size_t k = 0; k < n; k++) {
    float dot = 0;
    for (size_t i = 0; i < width; i++) dot += rows[k * width + i] * rows[n * width + i];
    most = PST_MAX(most, dot);
  }
  return most;
}

/* Candidates in order, each unlike all before it. First those with a character that no text has; where they are too few, less unlike ones, then others. */
static size_t take_unlike(const pst_engine_model *model, candidate *from, size_t n, size_t most, float *rows,
                          int32_t *tokens) {
  static const struct {
    uint64_t rarest;
    float limit;
  } passes[] = {{0, 0.5f}, {0, 0.7f}, {UINT64_MAX, 0.5f}, {UINT64_MAX, 0.7f}, {UINT64_MAX, 2}};
  size_t width = (size_t)pst_engine_model_get_info(model)->n_embd, taken = 0;
  for (size_t pass = 0; pass < PST_ARRAY_LEN(passes); pass++)
    for (size_t i = 0; i < n && taken < most; i++) {
      if (from[i].token < 0 || from[i].rarest > passes[pass].rarest) continue;
      read_direction(model, from[i].token, rows + taken * width, width);
      if (likeness(rows, taken, width) > passes[pass].limit) continue;
      tokens[taken++] = from[i].token;
      from[i].token = -1;
    }
  return taken;
}

int pst_tune_codes_free_tokens(const pst_engine_model *model, const uint32_t *seen, size_t most, int32_t **ret_tokens,
                               size_t *ret_n, pst_error *err) {
  const pst_engine_model_info *info = pst_engine_model_get_info(model);
  candidate *found = pst_calloc((size_t)info->n_vocab, sizeof *found);
  int32_t *tokens = pst_calloc(most + 1, sizeof *tokens);
  float *rows = pst_calloc((most + 1) * (size_t)info->n_embd, sizeof *rows);
  size_t n = 0;
  int code = found && tokens && rows ? rank_candidates(model, seen, found, &n) : PST_E_NOMEM;
  if (code) {
    code = no_memory(err);
  } else {
    *ret_n = take_unlike(model, found, n, most, rows, tokens);
    *ret_tokens = tokens;
    tokens = NULL;
  }
  pst_free(rows);
  pst_free(found);
  pst_free(tokens);
  return code;
}

/* ---- merging ---- */

/* Every k-th span, so many that they have at most LEARN_TOKENS tokens: spans that lie together are of one kind more often than not. */
static size_t stride_of(const pst_tune_span *spans, size_t n) {
  size_t total = 0;
  for (size_t i = 0; i < n; i++) total += spans[i].n + 1;
  return total / LEARN_TOKENS + 1;
}

static int begin(learner *l, const pst_engine_model *model, const pst_tune_span *spans, size_t n) {
  size_t stride = stride_of(spans, n), total = 1, places = 1024;
  for (size_t i = 0; i < n; i += stride) total += spans[i].n + 1;
  while (places < 2 * total) places *= 2;
  l->n_vocab = pst_engine_model_get_info(model)->n_vocab;
  l->most_pieces = PST_ENGINE_MAX_CODES;
  l->text = pst_calloc(total, sizeof *l->text);
  l->pieces = pst_calloc(l->most_pieces + 1, sizeof *l->pieces);
  l->pairs = pst_calloc(places, sizeof *l->pairs);
  l->n_places = places;
  if (!l->text || !l->pieces || !l->pairs) return PST_E_NOMEM;
  for (size_t i = 0; i < n; i += stride) {
    for (size_t k = 0; k < spans[i].n; k++)
      l->text[l->n++] = pst_engine_token_is_text(model, spans[i].tokens[k]) ? spans[i].tokens[k] : GAP;
    l->text[l->n++] = GAP;
  }
  return 0;
}

static void done(learner *l) {
  pst_free(l->text);
  pst_free(l->pieces);
  pst_free(l->pairs);
}

static uint32_t length_of(const learner *l, int32_t symbol) {
  return symbol < l->n_vocab ? 1 : l->pieces[symbol - l->n_vocab].n;
}

static pair *place_of(const learner *l, int32_t left, int32_t right) {
  uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * UINT64_C(0x9e3779b97f4a7c15);
  size_t at = (size_t)(h >> 20) & (l->n_places - 1);
  while (l->pairs[at].count && (l->pairs[at].left != left || l->pairs[at].right != right))
    at = (at + 1) & (l->n_places - 1);
  return &l->pairs[at];
}

static bool is_better(const pair *a, const pair *b) {
  if (a->count != b->count) return a->count > b->count;
  return a->left != b->left ? a->left < b->left : a->right < b->right;
}

/* The most frequent pair of neighbours; count 0: there is none. */
static pair find_best(learner *l) {
  pair best = {0};
  while (l->n_places > 1024 && l->n_places / 4 > l->n) l->n_places /= 2;
  memset(l->pairs, 0, l->n_places * sizeof *l->pairs);
  for (size_t i = 0; i + 1 < l->n; i++) {
    int32_t left = l->text[i], right = l->text[i + 1];
    if (left == GAP || right == GAP || length_of(l, left) + length_of(l, right) > PST_ENGINE_MAX_CODE_TOKENS) continue;
    pair *p = place_of(l, left, right);
    *p = (pair){left, right, p->count + 1};
    if (is_better(p, &best)) best = *p;
    if (left == right && i + 2 < l->n && l->text[i + 2] == left) i++; /* of three in a row one pair */
  }
  return best;
}

/* A symbol has lost n of its uses to a new piece. */
static void lose(learner *l, int32_t symbol, uint32_t n) {
  if (symbol < l->n_vocab) return;
  piece *p = &l->pieces[symbol - l->n_vocab];
  l->n_used -= p->uses >= PST_TUNE_CODE_MIN_USES && p->uses - n < PST_TUNE_CODE_MIN_USES;
  p->uses -= n;
}

static void merge(learner *l, const pair *best) {
  int32_t symbol = l->n_vocab + (int32_t)l->n_pieces;
  piece *fresh = &l->pieces[l->n_pieces++];
  size_t kept = 0;
  *fresh = (piece){best->left, best->right, length_of(l, best->left) + length_of(l, best->right), 0, 0, 0};
  for (size_t i = 0; i < l->n; i++) {
    bool same = i + 1 < l->n && l->text[i] == best->left && l->text[i + 1] == best->right;
    l->text[kept++] = same ? symbol : l->text[i];
    fresh->uses += same;
    i += same;
  }
  l->n = kept;
  lose(l, best->left, fresh->uses);
  lose(l, best->right, fresh->uses);
  l->n_used++;
}

static void merge_all(learner *l, size_t most) {
  while (l->n_pieces < l->most_pieces && l->n_used < most) {
    pair best = find_best(l);
    if (best.count < PST_TUNE_CODE_MIN_USES) break;
    merge(l, &best);
  }
}

/* ---- the table ---- */

static int spell(const learner *l, int32_t symbol, pst_engine_tokens *out, pst_error *err) {
  if (symbol < l->n_vocab) return pst_engine_tokens_append(out, &symbol, 1, err);
  const piece *p = &l->pieces[symbol - l->n_vocab];
  int code = spell(l, p->left, out, err);
  return code ? code : spell(l, p->right, out, err);
}

/* A table of all pieces, their symbols as codes. */
static int first_table(const learner *l, pst_engine_codes **ret_codes, pst_error *err) {
  pst_engine_code *codes = pst_calloc(l->n_pieces + 1, sizeof *codes);
  pst_engine_tokens ids = {0};
  int code = codes ? 0 : no_memory(err);
  for (size_t i = 0; i < l->n_pieces && !code; i++) code = spell(l, l->n_vocab + (int32_t)i, &ids, err);
  for (size_t i = 0, at = 0; i < l->n_pieces && !code; at += l->pieces[i++].n)
    codes[i] = (pst_engine_code){l->n_vocab + (int32_t)i, ids.ids + at, l->pieces[i].n};
  if (!code) code = pst_engine_codes_create(codes, l->n_pieces, ret_codes, err);
  pst_engine_tokens_done(&ids);
  pst_free(codes);
  return code;
}

/* How often the cheapest spelling of the spans uses each piece. */
static int count_uses(learner *l, const pst_engine_codes *codes, const pst_tune_span *spans, size_t n, pst_error *err) {
  size_t stride = stride_of(spans, n);
  pst_engine_tokens coded = {0};
  int code = 0;
  for (size_t i = 0; i < l->n_pieces; i++) l->pieces[i].uses = 0;
  for (size_t i = 0; i < n && !code; i += stride) {
    coded.n = 0;
    code = pst_engine_codes_encode(codes, spans[i].tokens, spans[i].n, &coded, err);
    for (size_t k = 0; k < coded.n && !code; k++)
      if (coded.ids[k] >= l->n_vocab) l->pieces[coded.ids[k] - l->n_vocab].uses++;
  }
  pst_engine_tokens_done(&coded);
  return code;
}

/* What each piece is worth: tokens more without it, where the rest of the table spells it, but for its first or its last token. */
static int weigh(learner *l, const pst_engine_codes *codes, pst_error *err) {
  const pst_engine_code *list;
  size_t n = pst_engine_codes_list(codes, &list);
  pst_engine_tokens coded = {0};
  int code = 0;
  for (size_t i = 0; i < n && !code; i++) {
    piece *p = &l->pieces[list[i].token - l->n_vocab];
    size_t fewest = SIZE_MAX;
    for (size_t end = 0; end < 2 && !code; end++) {
      coded.n = 0;
      code = pst_engine_codes_encode(codes, list[i].piece + end, list[i].n - 1, &coded, err);
      fewest = PST_MIN(fewest, coded.n);
    }
    p->worth = (uint64_t)p->uses * fewest;
  }
  pst_engine_tokens_done(&coded);
  return code;
}

typedef struct ranked {
  pst_engine_code code;
  uint64_t worth;
} ranked;

static int by_worth(const void *a, const void *b) {
  const ranked *x = a, *y = b;
  if (x->worth != y->worth) return x->worth > y->worth ? -1 : 1;
  return (x->code.token > y->code.token) - (x->code.token < y->code.token);
}

static bool in_use(const piece *p) { return p->uses >= PST_TUNE_CODE_MIN_USES; }

/* Not in use, but what two or more in use would leave their uses to. */
static bool is_spare(const piece *p) { return !in_use(p) && p->n_whole >= 2; }

static piece *piece_of(learner *l, const pst_engine_code *code) { return &l->pieces[code->token - l->n_vocab]; }

typedef struct tally {
  size_t n_used, n_spare;
} tally;

static tally count_kinds(learner *l, const pst_engine_codes *codes) {
  const pst_engine_code *list;
  size_t n = pst_engine_codes_list(codes, &list);
  tally t = {0, 0};
  for (size_t i = 0; i < l->n_pieces; i++) l->pieces[i].n_whole = 0;
  for (size_t i = 0; i < n; i++) {
    const piece *p = piece_of(l, &list[i]);
    if (!in_use(p)) continue;
    t.n_used++;
    if (p->left >= l->n_vocab) l->pieces[p->left - l->n_vocab].n_whole++;
    if (p->right >= l->n_vocab) l->pieces[p->right - l->n_vocab].n_whole++;
  }
  for (size_t i = 0; i < n; i++) t.n_spare += is_spare(piece_of(l, &list[i]));
  return t;
}

/* Of the pieces in use the `most` worthiest; tokens NULL: beside them the spare ones, all by their symbols; else by these tokens, the worthiest first. *ret_codes NULL: there are
 * none. */
static int take_best(learner *l, const pst_engine_codes *codes, size_t most, const int32_t *tokens,
                     pst_engine_codes **ret_codes, pst_error *err) {
  const pst_engine_code *list;
  size_t n = pst_engine_codes_list(codes, &list), n_used = 0;
  ranked *used = pst_calloc(n + 1, sizeof *used);
  pst_engine_code *best = pst_calloc(n + 1, sizeof *best);
  int code = used && best ? 0 : no_memory(err);
  for (size_t i = 0; i < n && !code; i++)
    if (in_use(piece_of(l, &list[i]))) used[n_used++] = (ranked){list[i], piece_of(l, &list[i])->worth};
  if (!code && n_used) qsort(used, n_used, sizeof *used, by_worth);
  n_used = PST_MIN(n_used, most);
  for (size_t i = 0; i < n_used && !code; i++) {
    best[i] = used[i].code;
    if (tokens) best[i].token = tokens[i];
  }
  for (size_t i = 0; i < n && !tokens && !code; i++)
    if (is_spare(piece_of(l, &list[i]))) best[n_used++] = list[i];
  *ret_codes = NULL;
  if (!code && n_used) code = pst_engine_codes_create(best, n_used, ret_codes, err);
  pst_free(used);
  pst_free(best);
  return code;
}

/* Pieces go until at most `most` are in use. What is neither in use nor spare goes first and by itself: beside it nothing that is used seems worth much. Then a quarter of those too
 * many at a time, since who takes over from one that goes is worth more then. Each round leaves fewer. */
static int prune(learner *l, const pst_tune_span *spans, size_t n, size_t most, const int32_t *tokens,
                 pst_engine_codes **codes, pst_error *err) {
  const pst_engine_code *list;
  for (;;) {
    pst_engine_codes *fewer = NULL;
    int code = count_uses(l, *codes, spans, n, err);
    if (!code) code = weigh(l, *codes, err);
    if (code) return code;
    tally t = count_kinds(l, *codes);
    bool settled = t.n_used + t.n_spare == pst_engine_codes_list(*codes, &list), last = settled && t.n_used <= most;
    size_t left = settled && !last ? most + (t.n_used - most) * 3 / 4 : t.n_used;
    code = take_best(l, *codes, left, last ? tokens : NULL, &fewer, err);
    if (code) return code;
    pst_engine_codes_free(*codes);
    *codes = fewer;
    if (last || !fewer) return 0;
  }
}

int pst_tune_codes_learn(const pst_engine_model *model, const pst_tune_span *spans, size_t n,
                         const int32_t *free_tokens, size_t n_free, size_t most, pst_engine_codes **ret_codes,
                         pst_error *err) {
  learner l = {.n = 0};
  pst_engine_codes *codes = NULL;
  int code = begin(&l, model, spans, n);
  if (code) {
    no_memory(err);
  } else {
    merge_all(&l, MORE * most + FEW);
    code = first_table(&l, &codes, err);
  }
  if (!code) code = prune(&l, spans, n, PST_MIN(most, n_free), free_tokens, &codes, err);
  done(&l);
  if (code)
    pst_engine_codes_free(codes);
  else
    *ret_codes = codes;
  return code;
}
