/* Conversations with their answers, as tokens: what a text to learn looks like so that it is the text served.
 *
 * Owns where an answer begins and the token that ends it. The beginning is the prompt as it is served, so a model learns to go on from there whatever its template
 * does with answers that are past. What a template adds to an answer of plain text beside white space (an empty thought) is not learned, for it would be served. */
#include <string.h>

#include "engine/model.h"

static size_t find_end(const pst_engine_model *model, const pst_engine_tokens *tokens, size_t from) {
  while (from < tokens->n && !pst_engine_token_ends(model, tokens->ids[from])) from++;
  return from;
}

int32_t pst_engine_answer_end(const pst_engine_model *model) {
  static const pst_chat_message turns[] = {{.role = PST_CHAT_USER, .has_content = true, .content = {"Is it?", 6}},
                                           {.role = PST_CHAT_ASSISTANT, .has_content = true, .content = {"It is.", 6}}};
  pst_chat asked = {.messages = turns, .n_messages = 1, .add_generation_prompt = true},
           answered = {.messages = turns, .n_messages = 2};
  pst_engine_tokens given = {0}, all = {0};
  pst_error ignored = PST_ERROR_INIT;
  int32_t end = pst_engine_model_get_info(model)->eos;
  if (model->chat_template && !pst_engine_render_chat(model, &asked, &given, NULL, &ignored) &&
      !pst_engine_render_chat(model, &answered, &all, NULL, &ignored)) {
    size_t same = 0;
    while (same < given.n && same < all.n && given.ids[same] == all.ids[same]) same++;
    size_t at = find_end(model, &all, same);
    if (at < all.n) end = all.ids[at];
  }
  pst_engine_tokens_done(&given);
  pst_engine_tokens_done(&all);
  return end;
}

/* Whether tokens are the text of a message, white space at its ends aside; what is more than a text counts as the template writes it. */
static bool is_text_of(const pst_engine_model *model, const pst_chat_message *m, const int32_t *ids, size_t n) {
  if (m->parts || m->n_tool_calls || m->has_reasoning) return true;
  pst_buf text = PST_BUF_INIT;
  bool same = !pst_engine_detokenize(model, ids, n, true, &text) &&
              pst_str_equal(pst_str_trim(pst_buf_str(&text)), pst_str_trim(m->content));
  pst_buf_done(&text);
  return same;
}

/* The answer's own text and the token that ends it, behind a prompt that the template does not write again as it was. */
static int append_text(const pst_engine_model *model, const pst_chat_message *answer, pst_engine_tokens *tokens,
                       pst_error *err) {
  int32_t end = pst_engine_answer_end(model);
  if (answer->parts || answer->n_tool_calls || answer->has_reasoning)
    return pst_error_set(err, PST_E_UNSUPPORTED, "messages",
                         "this model's template writes a past answer in another way than one to come, so that only "
                         "answers of plain text can be learned");
  int code = pst_engine_tokenize(model, answer->content, false, false, tokens, err);
  return !code && end >= 0 ? pst_engine_tokens_append(tokens, &end, 1, err) : code;
}

int pst_engine_render_answered(const pst_engine_model *model, const pst_chat *chat, pst_engine_tokens *tokens,
                               size_t *ret_n_given, pst_error *err) {
  pst_engine_tokens all = {0};
  pst_chat asked = *chat, answered = *chat;
  if (chat->n_messages < 2 || chat->messages[chat->n_messages - 1].role != PST_CHAT_ASSISTANT)
    return pst_error_set(err, PST_E_BAD_INPUT, "messages", "a conversation with its answer ends with the assistant's");
  asked.n_messages--;
  asked.add_generation_prompt = true;
  answered.add_generation_prompt = false;
  int code = pst_engine_render_chat(model, &asked, tokens, NULL, err);
  if (!code) code = pst_engine_render_chat(model, &answered, &all, NULL, err);
  if (!code) {
    size_t n = tokens->n, end = find_end(model, &all, n);
    const pst_chat_message *answer = &chat->messages[asked.n_messages];
    bool goes_on = end < all.n && !memcmp(all.ids, tokens->ids, n * sizeof *all.ids) &&
                   is_text_of(model, answer, all.ids + n, end - n);
    code = goes_on ? pst_engine_tokens_append(tokens, all.ids + n, end + 1 - n, err)
                   : append_text(model, answer, tokens, err);
    if (!code) *ret_n_given = n;
  }
  pst_engine_tokens_done(&all);
  return code;
}
