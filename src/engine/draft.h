/* Drafts: guesses at the next tokens of a sequence, each with the chance that it is right.
 *
 * Two sources: the sequence's own text (what followed the last place where its end stands already) and a corpus of past answers (what followed the end of
 * the answer there most often). In their place a draft model may guess (draft_model.h). What is known of a guess, the length of the match and how one-sided the corpus is, names a cell; how often guesses
 * of that cell were right is counted, for every guess, verified or not, since the next token always tells. Owned by one thread. */
#ifndef PST_ENGINE_DRAFT_H
#define PST_ENGINE_DRAFT_H

#include "engine/corpus.h"
#include "engine/scheduler.h"

/* Cells: of one source alone; of both, where they agree, and for each where they do not. */
enum {
  PST_ENGINE_OWN_CELLS = 8,            /* by length of the match */
  PST_ENGINE_CORPUS_CELLS = 6 * 5 * 3, /* by length, share of the best token, number of places */
  PST_ENGINE_PAIR_CELLS = 8 * (6 * 5), /* by both lengths and the share */
  PST_ENGINE_FIRST_CORPUS_CELL = PST_ENGINE_OWN_CELLS,
  PST_ENGINE_FIRST_AGREED_CELL = PST_ENGINE_FIRST_CORPUS_CELL + PST_ENGINE_CORPUS_CELLS,
  PST_ENGINE_FIRST_OWN_DENIED_CELL = PST_ENGINE_FIRST_AGREED_CELL + PST_ENGINE_PAIR_CELLS,
  PST_ENGINE_FIRST_CORPUS_DENIED_CELL = PST_ENGINE_FIRST_OWN_DENIED_CELL + PST_ENGINE_PAIR_CELLS,
  PST_ENGINE_FIRST_MODEL_CELL = PST_ENGINE_FIRST_CORPUS_DENIED_CELL + PST_ENGINE_PAIR_CELLS,
  PST_ENGINE_MODEL_CELLS = 8, /* by the probability that a draft model gives its guess */
  PST_ENGINE_ANY_MODEL_CELL = PST_ENGINE_FIRST_MODEL_CELL + PST_ENGINE_MODEL_CELLS,
  PST_ENGINE_CELLS,
};

/* How often guesses were right, by cell: counts that fade, so that the last few hundred matter. All 0 at the beginning. */
typedef struct pst_engine_acceptance {
  float n_right[PST_ENGINE_CELLS], n_guesses[PST_ENGINE_CELLS];
} pst_engine_acceptance;

/* What the sources say of one position. */
typedef struct pst_engine_guess {
  int32_t token;                                   /* the likelier of the two */
  float chance;                                    /* that it is right, if those before it are */
  int32_t by_own, by_corpus, by_model;             /* -1: nothing */
  int16_t own_cell, corpus_cell, model_cell, pair; /* of those that say something; pair: of own and corpus together */
} pst_engine_guess;

typedef struct pst_engine_drafter {
  const pst_engine_corpus *corpus; /* NULL: the own text only */
  pst_engine_corpus_place place;   /* behind the first n_walked tokens of the answer */
  int n_walked;
  pst_engine_guess guesses[PST_ENGINE_MAX_DRAFT]; /* for the step at hand */
  int n_guesses;
} pst_engine_drafter;

void pst_engine_drafter_init(pst_engine_drafter *d, const pst_engine_corpus *corpus);
/* Guesses at up to `most` (<= PST_ENGINE_MAX_DRAFT) tokens behind tokens[n_tokens], where the answer began at n_prompt, and writes them there: tokens has room for
 * them. Stops behind the first where the whole draft is right with a chance of less than a twentieth. Fills d->guesses. */
void pst_engine_drafter_guess(pst_engine_drafter *d, const pst_engine_acceptance *a, int32_t *tokens, int n_prompt,
                              int n_tokens, int most);
/* Puts a draft model's guess, which it gives the probability p, behind the others, into tokens[n_tokens + n_guesses] too. False: a longer draft is hardly ever right
 * to its end, or full. */
bool pst_engine_drafter_add(pst_engine_drafter *d, const pst_engine_acceptance *a, int32_t *tokens, int n_tokens,
                            int32_t token, float p);
/* The chance that a draft model's guess is right, if those before it are. */
float pst_engine_drafter_model_chance(const pst_engine_acceptance *a);
/* Tokens that the guesses should bring. */
float pst_engine_drafter_promise(const pst_engine_drafter *d);
/* What came in place of the guesses: the n next tokens. Counts the guesses that were right up to the first that was not. */
void pst_engine_drafter_learn(const pst_engine_drafter *d, pst_engine_acceptance *a, const int32_t *came, int n);

/* The longest end of the text, at most PST_ENGINE_OWN_LONGEST tokens of it, that stands in it already: its length, 0 for none, and the place of the token behind
 * the last such place. A scan: at 8,192 tokens it costs a few microseconds, a thousandth of a step, so no index is kept. Method: prompt lookup
 * decoding (Saxena 2023). */
enum { PST_ENGINE_OWN_LONGEST = 16 };
int pst_engine_draft_find(const int32_t *tokens, int n_tokens, int *ret_next);

#endif
