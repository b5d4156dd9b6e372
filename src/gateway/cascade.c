/* Which leaf of a plan's tree answers next: pure functions of the tree and the margins, so that a replay decides as the server does. */
#include "gateway/live.h"

const pst_gateway_node *pst_gateway_first_leaf(const pst_gateway_node *node) {
  while (node->op == PST_GATEWAY_OP_CASCADE) node = &node->inputs[0];
  return node;
}

/* True: `leaf` is below `at`; *ret_next is then the leaf that follows it there, or NULL. The innermost cascade that has a next input and finds
 * the margin too small decides. */
static bool next_below(const pst_gateway_node *at, const pst_gateway_node *leaf, double margin,
                       const pst_gateway_node **ret_next) {
  *ret_next = NULL;
  if (at == leaf) return true;
  if (at->op != PST_GATEWAY_OP_CASCADE) return false;
  for (int i = 0; i < at->n_inputs; i++) {
    if (!next_below(&at->inputs[i], leaf, margin, ret_next)) continue;
    bool enough = margin >= at->threshold; /* false for NAN */
    if (!*ret_next && !enough && i + 1 < at->n_inputs) *ret_next = pst_gateway_first_leaf(&at->inputs[i + 1]);
    return true;
  }
  return false;
}

const pst_gateway_node *pst_gateway_next_leaf(const pst_gateway_node *root, const pst_gateway_node *leaf,
                                              double margin) {
  const pst_gateway_node *next;
  return next_below(root, leaf, margin, &next) ? next : NULL;
}

int pst_gateway_each_leaf(const pst_gateway_node *root, int (*fn)(void *user, const pst_gateway_node *leaf),
                          void *user) {
  if (root->op != PST_GATEWAY_OP_CASCADE) return fn(user, root);
  int code = 0;
  for (int i = 0; i < root->n_inputs && !code; i++) code = pst_gateway_each_leaf(&root->inputs[i], fn, user);
  return code;
}
