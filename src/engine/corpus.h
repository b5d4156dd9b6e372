/* A suffix automaton over past answers: where the end of a text stands in them, and what followed there, how often.
 *
 * A state stands for all strings with one set of places in the corpus; a walk over a text keeps the longest end of it that occurs. Each answer begins
 * with the token PST_ENGINE_CORPUS_START, so that the beginning of an answer is a context like any other. */
#ifndef PST_ENGINE_CORPUS_H
#define PST_ENGINE_CORPUS_H

#include <penstock/engine.h>

enum { PST_ENGINE_CORPUS_START = -1 };

/* Where a walk stands: the last `length` tokens are the longest end of what was walked that the corpus holds. */
typedef struct pst_engine_corpus_place {
  uint32_t state, length;
} pst_engine_corpus_place;

/* What followed a string of the corpus most often; the lowest token among equals. */
typedef struct pst_engine_corpus_next {
  int32_t token;   /* -1: the string only ends answers */
  uint32_t count;  /* how often it followed */
  uint32_t total;  /* how often the string occurs */
  uint32_t length; /* of the string in tokens */
} pst_engine_corpus_next;

/* Before the first token of an answer. */
pst_engine_corpus_place pst_engine_corpus_begin(const pst_engine_corpus *corpus);
/* One token further. Constant time over a whole walk, but for the search among the tokens that follow a string (logarithmic). */
void pst_engine_corpus_walk(const pst_engine_corpus *corpus, pst_engine_corpus_place *place, int32_t token);
/* What follows the last place.length tokens. */
pst_engine_corpus_next pst_engine_corpus_best(const pst_engine_corpus *corpus, pst_engine_corpus_place place);
/* The longest end of the place's string that occurs more often than it does. False: that is the empty string. */
bool pst_engine_corpus_shorten(const pst_engine_corpus *corpus, pst_engine_corpus_place *place);
/* A number that tells one corpus of this process from another; never 0. */
uint64_t pst_engine_corpus_key(const pst_engine_corpus *corpus);

#endif
