/* What a plan's node asks of a target for one conversation: messages or text, the labels allowed, where to stop.
 *
 * Owned by prompt.c, which knows layouts and examples and nothing of engines' queues, sockets or budgets. A prompt never ends inside a token: layouts put the
 * space before the answer into the answer (leading_space), never at the end of the prompt. */
#ifndef PST_GATEWAY_PROMPT_H
#define PST_GATEWAY_PROMPT_H

#include <penstock/gateway.h>

/* An index of labelled examples, open for retrieval: immutable, counted, any thread. */
typedef struct pst_gateway_index pst_gateway_index;
int pst_gateway_index_open(pst_store *store, pst_str hash, pst_gateway_index **ret_index, pst_error *err);
pst_gateway_index *pst_gateway_index_ref(pst_gateway_index *index);
void pst_gateway_index_unref(pst_gateway_index *index);
/* The k nearest of the index by BM25 (k1 = 1.2, b = 0.75), best first, ties by id, none of `exclude`; `fixed`: the first k in the index's order. Fewer when there
 * are fewer. ret_found: room for k; strings live in the index. Only error: PST_E_NOMEM. */
int pst_gateway_index_nearest(const pst_gateway_index *index, pst_str input, size_t k, bool fixed,
                              const pst_str *exclude, size_t n_exclude, pst_gateway_example *ret_found, size_t *ret_n,
                              pst_error *err);

typedef struct pst_gateway_prompt {
  pst_arena *arena; /* of all below; pst_gateway_prompt_done */
  const pst_chat
      *chat;    /* CHAT, CHAT_INLINE: for the model's template; for a remote target always (PLAIN: one user message) */
  pst_str text; /* PLAIN */
  const pst_str *labels; /* what the answer may be; n_labels 0: anything */
  size_t n_labels;
  bool leading_space;  /* PLAIN: the answer, of a list or free, starts with one space that is not part of it */
  const pst_str *stop; /* stop strings of the layout */
  size_t n_stop;
  const pst_gateway_example *examples; /* those shown, in the order shown */
  size_t n_examples;
} pst_gateway_prompt;

/* The input of a conversation under the plan: the text of the last user message, or group 1 of the plan's pattern in it. A message of several text parts is
 * joined in the arena. PST_E_BAD_INPUT when there is no such message or the pattern does not match; PST_E_UNSUPPORTED for parts that are no text. */
int pst_gateway_prompt_input(const pst_gateway_plan *plan, const pst_chat *chat, pst_arena *arena, pst_str *ret_input,
                             pst_error *err);
/* What a LOCAL or REMOTE node asks for one input. index: that of the node, NULL when it has none or it was withdrawn: then no examples are shown. Examples are shown best last, next to the input; fixed ones in
 * the index's order. White space around the input does not count; in PLAIN a line break inside it becomes a space, since a line ends a value there. */
int pst_gateway_prompt_build(const pst_gateway_plan *plan, const pst_gateway_node *node, const pst_gateway_index *index,
                             pst_str input, const pst_str *exclude, size_t n_exclude, pst_gateway_prompt *ret_prompt,
                             pst_error *err);
/* The prompt as tokens of a model (replaces *tokens), BOS by the model's own rule. Text of the plan, of examples and of the user never forms control tokens; only
 * a template's own does. PST_E_UNSUPPORTED: no chat template; PST_E_BAD_INPUT: the template refuses these messages. ret_text (NULL: not wanted) gets the text beside them. */
int pst_gateway_prompt_tokenize(const pst_gateway_prompt *prompt, const pst_engine_model *model,
                                pst_engine_tokens *tokens, pst_buf *ret_text, pst_error *err);
/* The prompt with an answer behind it, as it would be served: the first *ret_n_given tokens are those of pst_gateway_prompt_tokenize, then come the answer as an example would
 * show it, and what ends it: the template's end token, or in PLAIN the line break. Errors as there; PST_E_BAD_INPUT: there is no message to answer. */
int pst_gateway_prompt_answered(const pst_gateway_prompt *prompt, const pst_engine_model *model, pst_str answer,
                                pst_engine_tokens *tokens, size_t *ret_n_given, pst_error *err);
void pst_gateway_prompt_done(pst_gateway_prompt *prompt);

#endif
