/* Choice lists as a trie over tokens. Immutable, counted. */
#ifndef PST_ENGINE_CHOICES_H
#define PST_ENGINE_CHOICES_H

#include <penstock/engine.h>

typedef struct pst_engine_choice_node {
  int32_t token;   /* that leads here */
  int first, next; /* first child, next sibling by token; -1: none */
  int choice;      /* index of the text that ends here; -1: none */
} pst_engine_choice_node;

struct pst_engine_choices {
  _Atomic int n_refs;
  pst_engine_choice_node *nodes; /* [0] is the root */
  int n_nodes;
  uint64_t codes_key; /* of the codes in which the texts are spelled (pst_engine_codes_key) */
  int32_t *ends;      /* tokens that may close a text which is also the beginning of another, ascending */
  int n_ends;
};

/* The child of `node` by token; -1: none. */
int pst_engine_choices_step(const pst_engine_choices *c, int node, int32_t token);
/* The only way on from `node`, when no decision is left to the model; -1 otherwise. */
int32_t pst_engine_choices_forced(const pst_engine_choices *c, int node);
/* Tokens allowed at `node`, ascending, into `ret` (room for n_children + n_ends); returns how many. */
int pst_engine_choices_allowed(const pst_engine_choices *c, int node, int32_t *ret);
bool pst_engine_choices_is_leaf(const pst_engine_choices *c, int node);

#endif
