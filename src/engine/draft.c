/* Guesses from the own text and from past answers, and the counts that say what they are worth. */
#include "engine/draft.h"

/* A cell's counts are halved at this many guesses; the weight of what is believed before any; the least chance of a whole draft. */
enum { FADE_AT = 512, PRIOR_WEIGHT = 4 };
#define LEAST_CHANCE 0.05f

int pst_engine_draft_find(const int32_t *tokens, int n_tokens, int *ret_next) {
  int longest = 0;
  int32_t last = n_tokens > 0 ? tokens[n_tokens - 1] : 0;
  for (int i = n_tokens - 2; i >= longest && longest < PST_ENGINE_OWN_LONGEST; i--) {
    if (tokens[i] != last) continue;
    int same = 1;
    while (same <= i && same < PST_ENGINE_OWN_LONGEST && tokens[i - same] == tokens[n_tokens - 1 - same]) same++;
    if (same <= longest) continue;
    longest = same;
    *ret_next = i + 1;
  }
  return longest;
}

/* ---- cells ---- */

static int length_class(uint32_t length) {
  return length <= 1 ? 0 : length <= 2 ? 1 : length <= 4 ? 2 : length <= 8 ? 3 : length <= 16 ? 4 : 5;
}

static int own_cell(int length) {
  return length <= 4 ? length - 1 : length <= 6 ? 4 : length <= 9 ? 5 : length < 16 ? 6 : 7;
}

static float share_of(const pst_engine_corpus_next *n) { return (float)n->count / ((float)n->total + 0.5f); }

static int corpus_cell(const pst_engine_corpus_next *n) {
  float share = (float)n->count / (float)n->total;
  int one_sided = share < 0.4f ? 0 : share < 0.7f ? 1 : share < 0.9f ? 2 : share < 0.99f ? 3 : 4;
  int often = n->total < 2 ? 0 : n->total < 8 ? 1 : 2;
  return PST_ENGINE_FIRST_CORPUS_CELL + (length_class(n->length) * 5 + one_sided) * 3 + often;
}

/* The mean of a beta distribution around what is believed before the first guess. */
static float chance_of(const pst_engine_acceptance *a, int cell, float before) {
  return (a->n_right[cell] + before * PRIOR_WEIGHT) / (a->n_guesses[cell] + PRIOR_WEIGHT);
}

static void count(pst_engine_acceptance *a, int cell, bool right) {
  a->n_guesses[cell] += 1;
  a->n_right[cell] += right;
  if (a->n_guesses[cell] < FADE_AT) return;
  a->n_guesses[cell] /= 2;
  a->n_right[cell] /= 2;
}

/* ---- guesses ---- */

void pst_engine_drafter_init(pst_engine_drafter *d, const pst_engine_corpus *corpus) {
  *d = (pst_engine_drafter){.corpus = corpus};
  if (corpus) d->place = pst_engine_corpus_begin(corpus);
}

/* What followed the longest end of the answer that something follows. Returns its chance. Shorter ends, where more places speak, were tried beside it: what they
 * say otherwise is wrong more often than right (docs/notes/speculation.md). */
static float ask_corpus(const pst_engine_corpus *corpus, const pst_engine_acceptance *a, pst_engine_corpus_place place,
                        pst_engine_guess *g) {
  pst_engine_corpus_next next = pst_engine_corpus_best(corpus, place);
  while (next.token < 0) {
    if (!pst_engine_corpus_shorten(corpus, &place)) return 0;
    next = pst_engine_corpus_best(corpus, place);
  }
  int cell = corpus_cell(&next);
  g->by_corpus = next.token;
  g->corpus_cell = (int16_t)cell;
  return chance_of(a, cell, share_of(&next));
}

static float ask_own(const pst_engine_acceptance *a, int32_t token, int length, pst_engine_guess *g) {
  g->by_own = token;
  g->own_cell = (int16_t)own_cell(length);
  return chance_of(a, g->own_cell, (float)length / (float)(length + 3));
}

/* Two opinions are worth more than each alone: what agreeing and differing tell is counted too, and each alone is what is believed before. */
static void choose(const pst_engine_acceptance *a, float own, float corpus, pst_engine_guess *g) {
  if (g->by_own >= 0 && g->by_corpus >= 0) {
    g->pair = (int16_t)(g->own_cell * 30 + (g->corpus_cell - PST_ENGINE_FIRST_CORPUS_CELL) / 3);
    if (g->by_own == g->by_corpus) {
      own = chance_of(a, PST_ENGINE_FIRST_AGREED_CELL + g->pair, PST_MAX(own, corpus));
      corpus = 0;
    } else {
      own = chance_of(a, PST_ENGINE_FIRST_OWN_DENIED_CELL + g->pair, own);
      corpus = chance_of(a, PST_ENGINE_FIRST_CORPUS_DENIED_CELL + g->pair, corpus);
    }
  }
  g->token = own > corpus ? g->by_own : g->by_corpus;
  g->chance = PST_MAX(own, corpus);
}

void pst_engine_drafter_guess(pst_engine_drafter *d, const pst_engine_acceptance *a, int32_t *tokens, int n_prompt,
                              int n_tokens, int most) {
  for (; d->corpus && d->n_walked < n_tokens - n_prompt; d->n_walked++)
    pst_engine_corpus_walk(d->corpus, &d->place, tokens[n_prompt + d->n_walked]);
  pst_engine_corpus_place place = d->place;
  int next = 0, length = pst_engine_draft_find(tokens, n_tokens, &next);
  float whole = 1;
  d->n_guesses = 0;
  for (int i = 0; i < most; i++) {
    pst_engine_guess g = {.token = -1, .by_own = -1, .by_corpus = -1, .by_model = -1};
    float own = length ? ask_own(a, tokens[next], length, &g) : 0;
    float corpus = d->corpus ? ask_corpus(d->corpus, a, place, &g) : 0;
    choose(a, own, corpus, &g);
    whole *= g.chance;
    if (g.token < 0 || (i > 0 && whole < LEAST_CHANCE)) break; /* the first is kept, to learn from it */
    d->guesses[d->n_guesses++] = g;
    tokens[n_tokens + i] = g.token;
    if (d->corpus) pst_engine_corpus_walk(d->corpus, &place, g.token);
    if (g.by_own == g.token) {
      next++;
      length = PST_MIN(length + 1, PST_ENGINE_OWN_LONGEST);
    } else {
      length = pst_engine_draft_find(tokens, n_tokens + i + 1, &next);
    }
  }
}

float pst_engine_drafter_promise(const pst_engine_drafter *d) {
  float whole = 1, sum = 0;
  for (int i = 0; i < d->n_guesses; i++) sum += whole *= d->guesses[i].chance;
  return sum;
}

float pst_engine_drafter_model_chance(const pst_engine_acceptance *a) {
  return chance_of(a, PST_ENGINE_ANY_MODEL_CELL, 0.7f);
}

static int model_cell(float p) {
  static const float above[PST_ENGINE_MODEL_CELLS - 1] = {0.2f, 0.35f, 0.5f, 0.65f, 0.8f, 0.92f, 0.98f};
  int cell = 0;
  while (cell < PST_ENGINE_MODEL_CELLS - 1 && p >= above[cell]) cell++;
  return PST_ENGINE_FIRST_MODEL_CELL + cell;
}

bool pst_engine_drafter_add(pst_engine_drafter *d, const pst_engine_acceptance *a, int32_t *tokens, int n_tokens,
                            int32_t token, float p) {
  int cell = model_cell(p);
  float whole = 1;
  tokens[n_tokens + d->n_guesses] = token;
  d->guesses[d->n_guesses++] = (pst_engine_guess){.token = token,
                                                  .chance = chance_of(a, cell, p),
                                                  .by_own = -1,
                                                  .by_corpus = -1,
                                                  .by_model = token,
                                                  .model_cell = (int16_t)cell};
  for (int i = 0; i < d->n_guesses; i++) whole *= d->guesses[i].chance;
  return d->n_guesses < PST_ENGINE_MAX_DRAFT && whole >= LEAST_CHANCE;
}

void pst_engine_drafter_learn(const pst_engine_drafter *d, pst_engine_acceptance *a, const int32_t *came, int n) {
  for (int i = 0; i < PST_MIN(n, d->n_guesses); i++) {
    const pst_engine_guess *g = &d->guesses[i];
    bool own = g->by_own == came[i], corpus = g->by_corpus == came[i];
    if (g->by_own >= 0) count(a, g->own_cell, own);
    if (g->by_corpus >= 0) count(a, g->corpus_cell, corpus);
    if (g->by_model >= 0) {
      count(a, g->model_cell, g->by_model == came[i]);
      count(a, PST_ENGINE_ANY_MODEL_CELL, g->by_model == came[i]);
    }
    if (g->by_own >= 0 && g->by_corpus == g->by_own) {
      count(a, PST_ENGINE_FIRST_AGREED_CELL + g->pair, own);
    } else if (g->by_own >= 0 && g->by_corpus >= 0) {
      count(a, PST_ENGINE_FIRST_OWN_DENIED_CELL + g->pair, own);
      count(a, PST_ENGINE_FIRST_CORPUS_DENIED_CELL + g->pair, corpus);
    }
    if (g->token != came[i]) return;
  }
}
