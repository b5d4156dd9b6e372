/* The engine's public text functions: tokens of a text, text of tokens, and a conversation through the model's template. */
#include <string.h>

#include "engine/model.h"

int pst_engine_tokenize(const pst_engine_model *model, pst_str text, bool special, bool add_bos,
                        pst_engine_tokens *tokens, pst_error *err) {
  unsigned flags = (special ? PST_ENGINE_ENCODE_SPECIAL : 0) | (add_bos ? PST_ENGINE_ENCODE_ADD_BOS : 0);
  return pst_engine_tokenizer_encode(model->tokenizer, text, flags, tokens, err);
}

int32_t pst_engine_vocabulary_differs(const pst_engine_model *a, const pst_engine_model *b) {
  int n = PST_MIN(a->info.n_vocab, b->info.n_vocab);
  for (int32_t id = 0; id < n; id++)
    if (!pst_str_equal(pst_engine_tokenizer_bytes(a->tokenizer, id), pst_engine_tokenizer_bytes(b->tokenizer, id)))
      return id;
  return -1;
}

bool pst_engine_token_ends(const pst_engine_model *model, int32_t token) {
  return pst_engine_tokenizer_attributes(model->tokenizer, token) & PST_ENGINE_TOKEN_END;
}

bool pst_engine_token_is_text(const pst_engine_model *model, int32_t token) {
  const unsigned none =
      PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_UNUSED | PST_ENGINE_TOKEN_UNKNOWN | PST_ENGINE_TOKEN_END;
  return token >= 0 && token < model->info.n_vocab &&
         !(pst_engine_tokenizer_attributes(model->tokenizer, token) & none);
}

int pst_engine_detokenize(const pst_engine_model *model, const int32_t *ids, size_t n, bool special, pst_buf *out) {
  pst_engine_tokenizer_decode(model->tokenizer, ids, n, special, out);
  return pst_buf_status(out);
}

static int encode_output(const pst_engine_model *model, const pst_engine_template_output *rendered,
                         pst_engine_tokens *tokens, pst_error *err) {
  pst_engine_span *spans = pst_malloc(rendered->n_spans * sizeof *spans);
  if (!spans) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the prompt");
  for (size_t i = 0; i < rendered->n_spans; i++) {
    const pst_engine_template_span *s = &rendered->spans[i];
    spans[i] = (pst_engine_span){{rendered->text.data + s->start, s->end - s->start}, s->trusted};
  }
  tokens->n = 0;
  int code = pst_engine_tokenizer_encode_spans(model->tokenizer, spans, rendered->n_spans, 0, tokens, err);
  /* A template that does not begin with BOS leaves it to the tokenizer's own rule. */
  int32_t bos = model->info.bos;
  if (!code && bos >= 0 && pst_engine_tokenizer_get_info(model->tokenizer)->add_bos &&
      (tokens->n == 0 || tokens->ids[0] != bos)) {
    code = pst_array_reserve((void **)&tokens->ids, &tokens->capacity, tokens->n + 1, sizeof *tokens->ids);
    if (code)
      pst_error_set(err, code, NULL, "no memory for the prompt");
    else {
      memmove(tokens->ids + 1, tokens->ids, tokens->n * sizeof *tokens->ids);
      tokens->ids[0] = bos;
      tokens->n++;
    }
  }
  pst_free(spans);
  return code;
}

/* ---- conversations ---- */

static int render(const pst_engine_model *model, const pst_chat *chat, pst_engine_template_output *out,
                  pst_error *err) {
  const pst_engine_tokenizer_info *t = pst_engine_tokenizer_get_info(model->tokenizer);
  const struct {
    const char *name;
    int32_t id;
  } named[] = {{"bos_token", t->bos}, {"eos_token", t->eos}, {"unk_token", t->unk}, {"pad_token", t->pad}};
  pst_engine_template_token variables[PST_ARRAY_LEN(named)];
  size_t n = 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(named); i++)
    if (named[i].id >= 0)
      variables[n++] =
          (pst_engine_template_token){named[i].name, pst_engine_tokenizer_bytes(model->tokenizer, named[i].id)};
  pst_engine_template_input input = {0};
  input.chat = chat;
  input.tokens = variables;
  input.n_tokens = n;
  return pst_engine_template_render(model->chat_template, &input, out, err);
}

/* Whether the template writes the texts of a list of parts itself. Most know strings only: they fail on a list, or print it as Python shows it. */
static bool takes_parts(const pst_engine_model *model) {
  static const pst_chat_part parts[] = {{PST_CHAT_PART_TEXT, {"part one", 8}, NULL},
                                        {PST_CHAT_PART_TEXT, {"part two", 8}, NULL}};
  const pst_chat_message message = {
      .role = PST_CHAT_USER, .has_content = true, .parts = parts, .n_parts = PST_ARRAY_LEN(parts)};
  const pst_chat chat = {.messages = &message, .n_messages = 1, .add_generation_prompt = true};
  pst_engine_template_output out = PST_ENGINE_TEMPLATE_OUTPUT_INIT;
  pst_error ignored = PST_ERROR_INIT;
  if (render(model, &chat, &out, &ignored)) return false;
  pst_str text = pst_buf_str(&out.text);
  bool takes = pst_str_find(text, PST_STR("part one"), 0) != SIZE_MAX &&
               pst_str_find(text, PST_STR("part two"), 0) != SIZE_MAX &&
               pst_str_find(text, PST_STR("'type'"), 0) == SIZE_MAX;
  pst_engine_template_output_done(&out);
  return takes;
}

static bool join_parts(pst_chat_message *m, pst_arena *arena) {
  size_t n = 0, at = 0;
  for (size_t i = 0; i < m->n_parts; i++) n += m->parts[i].text.n;
  char *joined = pst_arena_alloc(arena, n + 1);
  if (!joined) return false;
  for (size_t i = 0; i < m->n_parts; i++) {
    if (m->parts[i].text.n) memcpy(joined + at, m->parts[i].text.data, m->parts[i].text.n);
    at += m->parts[i].text.n;
  }
  m->content = (pst_str){joined, n};
  m->parts = NULL;
  m->n_parts = 0;
  return true;
}

/* A template may show an image by its name; the model would never see it, and answer as if it had. */
static int refuse_part(const pst_chat_part *part, size_t message, size_t index, pst_error *err) {
  char place[80];
  pst_str type = pst_json_str(pst_json_get(part->json, "type"));
  (void)snprintf(place, sizeof place, "messages[%zu].content[%zu].type", message, index);
  return pst_error_set(err, PST_E_UNSUPPORTED, place,
                       "a model on this machine reads text only; leave the '%.*s' out, or ask a provider's model",
                       (int)PST_MIN(type.n, 40u), type.data ? type.data : "");
}

/* The conversation as this model's template can write it: *ret_chat is `chat`, or a copy in the arena with texts in the place of lists of parts. */
static int fit_parts(const pst_engine_model *model, const pst_chat *chat, pst_arena *arena, pst_chat *ret_chat,
                     pst_error *err) {
  bool any = false;
  *ret_chat = *chat;
  for (size_t i = 0; i < chat->n_messages; i++)
    for (size_t k = 0; k < chat->messages[i].n_parts; k++) {
      any = true;
      if (chat->messages[i].parts[k].kind != PST_CHAT_PART_TEXT)
        return refuse_part(&chat->messages[i].parts[k], i, k, err);
    }
  if (!any || takes_parts(model)) return 0;
  pst_chat_message *messages = pst_arena_calloc(arena, chat->n_messages, sizeof *messages);
  if (!messages) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the prompt");
  memcpy(messages, chat->messages, chat->n_messages * sizeof *messages);
  for (size_t i = 0; i < chat->n_messages; i++)
    if (messages[i].n_parts && !join_parts(&messages[i], arena))
      return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the prompt");
  ret_chat->messages = messages;
  return 0;
}

int pst_engine_render_chat(const pst_engine_model *model, const pst_chat *chat, pst_engine_tokens *tokens,
                           pst_buf *ret_text, pst_error *err) {
  if (!model->chat_template)
    return pst_error_set(err, PST_E_UNSUPPORTED, "messages",
                         "this model has no chat template; use /v1/completions, or a plan with the plain layout");
  pst_arena *arena = pst_arena_create();
  if (!arena) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the prompt");
  pst_chat fitting;
  pst_engine_template_output out = PST_ENGINE_TEMPLATE_OUTPUT_INIT;
  int code = fit_parts(model, chat, arena, &fitting, err);
  if (!code) {
    pst_error why = PST_ERROR_INIT;
    code = render(model, &fitting, &out, &why);
    if (code)
      pst_error_set(err, code, "messages", "the model's chat template cannot write this conversation: %s (%s)",
                    why.message, why.place);
  }
  if (!code) code = encode_output(model, &out, tokens, err);
  if (!code && ret_text) pst_buf_append_str(ret_text, pst_buf_str(&out.text));
  pst_engine_template_output_done(&out);
  pst_arena_free(arena);
  return code;
}
