/* From a plan's node and one input to what a target is asked: messages or text, labels, stop strings.
 *
 * Owns the three layouts and nothing of queues, sockets or budgets. Two rules:
 * - A prompt never ends inside a token. Every layout ends at a control token, a template's own text, or a colon; the space that parts a colon from the answer
 *   belongs to the answer (`leading_space`). A space at the end of the prompt would be a token of its own that training text hardly ever shows there.
 * - In PLAIN a value ends at a line break, so a value never holds one. */
#include "gateway/prompt.h"

#include <string.h>

#define DEFAULT_INPUT_KEY "Input"
#define DEFAULT_ANSWER_KEY "Output"

static const char *const layout_names[] = {"chat", "chat_inline", "plain"};
static const char *const constraint_names[] = {"none", "labels", "example_labels"};
_Static_assert(PST_ARRAY_LEN(layout_names) == PST_GATEWAY_LAYOUT_COUNT, "one name for each layout");
_Static_assert(PST_ARRAY_LEN(constraint_names) == PST_GATEWAY_CONSTRAINT_COUNT, "one name for each constraint");

const char *pst_gateway_layout_name(pst_gateway_layout layout) { return layout_names[layout]; }
const char *pst_gateway_constraint_name(pst_gateway_constraint constraint) { return constraint_names[constraint]; }

/* ---- the input ---- */

static int message_text(const pst_chat_message *m, pst_arena *arena, pst_str *ret_text, pst_error *err) {
  size_t n = 0, at = 0;
  if (!m->parts) {
    *ret_text = m->content;
    return 0;
  }
  for (size_t i = 0; i < m->n_parts; i++) {
    if (m->parts[i].kind != PST_CHAT_PART_TEXT)
      return pst_error_set(err, PST_E_UNSUPPORTED, "messages", "the last user message holds more than text");
    n += m->parts[i].text.n;
  }
  if (m->n_parts == 1) {
    *ret_text = m->parts[0].text;
    return 0;
  }
  char *joined = pst_arena_alloc(arena, n + 1);
  if (!joined) return pst_error_set(err, PST_E_NOMEM, "messages", "no memory for the input");
  for (size_t i = 0; i < m->n_parts; i++) {
    if (m->parts[i].text.n) memcpy(joined + at, m->parts[i].text.data, m->parts[i].text.n);
    at += m->parts[i].text.n;
  }
  *ret_text = (pst_str){joined, n};
  return 0;
}

static int match_input(const pst_regex *regex, pst_str text, pst_str *ret_input, pst_error *err) {
  pst_span groups[2];
  int found = pst_regex_find(regex, text, 0, groups, 2);
  if (found < 0) return pst_error_set(err, found, "messages", "the plan's input pattern failed on the last message");
  if (!found || groups[1].start == SIZE_MAX)
    return pst_error_set(err, PST_E_BAD_INPUT, "messages", "the last user message does not match the input pattern");
  *ret_input = (pst_str){text.data + groups[1].start, groups[1].end - groups[1].start};
  return 0;
}

int pst_gateway_prompt_input(const pst_gateway_plan *plan, const pst_chat *chat, pst_arena *arena, pst_str *ret_input,
                             pst_error *err) {
  const pst_chat_message *last = NULL;
  pst_str text = {"", 0};
  for (size_t i = 0; i < chat->n_messages; i++)
    if (chat->messages[i].role == PST_CHAT_USER) last = &chat->messages[i];
  if (!last) return pst_error_set(err, PST_E_BAD_INPUT, "messages", "there is no user message to take the input from");
  int code = message_text(last, arena, &text, err);
  if (code) return code;
  if (!plan->input_pattern) {
    *ret_input = text;
    return 0;
  }
  if (plan->input_regex) return match_input(plan->input_regex, text, ret_input, err);
  pst_regex *regex = NULL;
  code = pst_regex_create(pst_str_from(plan->input_pattern), 0, &regex, err);
  if (!code) code = match_input(regex, text, ret_input, err);
  pst_regex_free(regex);
  return code;
}

/* ---- text of layouts ---- */

static bool is_line_break(uint32_t c) { return (c >= '\n' && c <= '\r') || c == 0x85 || c == 0x2028 || c == 0x2029; }

/* White space of any script on both ends. */
static pst_str trim(pst_str s) {
  size_t start = s.n, end = 0;
  for (size_t i = 0; i < s.n;) {
    size_t at = i;
    if (pst_unicode_is_space(pst_utf8_next(s.data, s.n, &i))) continue;
    start = PST_MIN(start, at);
    end = i;
  }
  return start < end ? (pst_str){s.data + start, end - start} : (pst_str){"", 0};
}

/* One line: a run of white space with a line break in it becomes a space. */
static void put_line(pst_buf *out, pst_str s) {
  for (size_t i = 0; i < s.n;) {
    size_t start = i, end = i;
    bool breaks = false;
    while (i < s.n) {
      uint32_t c = pst_utf8_next(s.data, s.n, &i);
      if (!pst_unicode_is_space(c)) break;
      breaks |= is_line_break(c);
      end = i;
    }
    if (breaks) pst_buf_putc(out, ' ');
    start = breaks ? end : start;
    pst_buf_append(out, s.data + start, i - start);
  }
}

typedef struct layout_text {
  pst_buf out;
  bool one_line; /* values are put on one line */
  pst_str input_key, answer_key;
} layout_text;

/* "Intent", "Intent:" and "Intent: " are the same key. */
static pst_str key_of(const char *given, const char *fallback) {
  pst_str key = trim(pst_str_from(given));
  if (key.n && key.data[key.n - 1] == ':') key = trim((pst_str){key.data, key.n - 1});
  return key.n ? key : pst_str_from(fallback);
}

static void put_value(layout_text *t, pst_str key, pst_str value) {
  value = trim(value);
  put_line(&t->out, key);
  pst_buf_putc(&t->out, ':');
  if (value.n) pst_buf_putc(&t->out, ' ');
  if (t->one_line)
    put_line(&t->out, value);
  else
    pst_buf_append_str(&t->out, value);
}

static void put_paragraph(layout_text *t, pst_str text) {
  text = trim(text);
  if (!text.n) return;
  pst_buf_append_str(&t->out, text);
  pst_buf_puts(&t->out, "\n\n");
}

/* Instruction, examples and input in one text that ends with the answer's key and a colon. */
static void put_pairs(layout_text *t, const pst_gateway_prompt *p, pst_str input) {
  for (size_t i = 0; i < p->n_examples; i++) {
    put_value(t, t->input_key, p->examples[i].input);
    pst_buf_putc(&t->out, '\n');
    put_value(t, t->answer_key, p->examples[i].answer);
    pst_buf_puts(&t->out, "\n\n");
  }
  put_value(t, t->input_key, input);
  pst_buf_putc(&t->out, '\n');
  put_value(t, t->answer_key, (pst_str){"", 0});
}

static int keep_text(pst_gateway_prompt *p, pst_buf *b, pst_str *ret_text) {
  char *copy = pst_buf_status(b) ? NULL : pst_arena_strndup(p->arena, pst_buf_text(b), b->n);
  if (!copy) return PST_E_NOMEM;
  *ret_text = (pst_str){copy, b->n};
  return 0;
}

static int build_text(const pst_gateway_node *node, pst_str input, pst_gateway_prompt *p, pst_str *ret_text) {
  layout_text t = {PST_BUF_INIT, node->layout == PST_GATEWAY_LAYOUT_PLAIN, key_of(node->input_key, DEFAULT_INPUT_KEY),
                   key_of(node->answer_key, DEFAULT_ANSWER_KEY)};
  bool has_keys = (node->input_key && *node->input_key) || (node->answer_key && *node->answer_key);
  put_paragraph(&t, pst_str_from(node->system));
  put_paragraph(&t, pst_str_from(node->instruction));
  if (node->layout == PST_GATEWAY_LAYOUT_PLAIN || p->n_examples || has_keys)
    put_pairs(&t, p, input);
  else
    pst_buf_append_str(&t.out, trim(input));
  int code = keep_text(p, &t.out, ret_text);
  pst_buf_done(&t.out);
  return code;
}

/* ---- messages ---- */

static pst_chat_message message(pst_chat_role role, pst_str content) {
  pst_chat_message m = {0};
  m.role = role;
  m.has_content = true;
  m.content = content;
  return m;
}

static int set_chat(pst_gateway_prompt *p, const pst_chat_message *messages, size_t n) {
  pst_chat *chat = pst_arena_calloc(p->arena, 1, sizeof *chat);
  if (!chat) return PST_E_NOMEM;
  chat->messages = messages;
  chat->n_messages = n;
  chat->add_generation_prompt = true;
  p->chat = chat;
  return 0;
}

static int build_one_message(pst_gateway_prompt *p, pst_str text) {
  pst_chat_message *m = pst_arena_calloc(p->arena, 1, sizeof *m);
  if (!m) return PST_E_NOMEM;
  *m = message(PST_CHAT_USER, text);
  return set_chat(p, m, 1);
}

/* System text with the instruction behind it, examples as turns that were answered well, the input. */
static int build_turns(const pst_gateway_node *node, pst_str input, pst_gateway_prompt *p) {
  pst_chat_message *m = pst_arena_calloc(p->arena, 2 + 2 * p->n_examples, sizeof *m);
  if (!m) return PST_E_NOMEM;
  size_t n = 0;
  layout_text t = {.out = PST_BUF_INIT};
  pst_str system;
  put_paragraph(&t, pst_str_from(node->system));
  put_paragraph(&t, pst_str_from(node->instruction));
  int code = keep_text(p, &t.out, &system);
  pst_buf_done(&t.out);
  if (code) return code;
  if (system.n) m[n++] = message(PST_CHAT_SYSTEM, trim(system));
  for (size_t i = 0; i < p->n_examples; i++) {
    m[n++] = message(PST_CHAT_USER, trim(p->examples[i].input));
    m[n++] = message(PST_CHAT_ASSISTANT, trim(p->examples[i].answer));
  }
  m[n++] = message(PST_CHAT_USER, trim(input));
  return set_chat(p, m, n);
}

/* ---- examples and labels ---- */

static int find_examples(const pst_gateway_node *node, const pst_gateway_index *index, pst_str input,
                         const pst_str *exclude, size_t n_exclude, pst_gateway_prompt *p, pst_error *err) {
  size_t k = (size_t)PST_MAX(node->n_examples, 0), n = 0;
  pst_gateway_example *found = pst_arena_calloc(p->arena, PST_MAX(k, 1), sizeof *found);
  if (!found) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the prompt");
  int code = pst_gateway_index_nearest(index, input, k, node->examples_fixed, exclude, n_exclude, found, &n, err);
  if (code) return code;
  if (!node->examples_fixed)
    for (size_t i = 0; i < n / 2; i++) {
      pst_gateway_example swap = found[i];
      found[i] = found[n - 1 - i];
      found[n - 1 - i] = swap;
    }
  p->examples = found;
  p->n_examples = n;
  return 0;
}

/* The plan's labels that the shown examples bear, in the plan's order; all when fewer than two differ. */
static int choose_labels(const pst_gateway_plan *plan, const pst_gateway_node *node, pst_gateway_prompt *p) {
  if (node->constraint == PST_GATEWAY_FREE) return 0;
  p->labels = plan->labels;
  p->n_labels = (size_t)plan->n_labels;
  if (node->constraint != PST_GATEWAY_EXAMPLE_LABELS || p->n_labels == 0) return 0;
  pst_str *shown = pst_arena_calloc(p->arena, p->n_labels, sizeof *shown);
  size_t n = 0;
  if (!shown) return PST_E_NOMEM;
  for (size_t i = 0; i < p->n_labels; i++)
    for (size_t k = 0; k < p->n_examples; k++)
      if (pst_str_equal(plan->labels[i], p->examples[k].answer)) {
        shown[n++] = plan->labels[i];
        break;
      }
  if (n < 2) return 0;
  p->labels = shown;
  p->n_labels = n;
  return 0;
}

int pst_gateway_prompt_build(const pst_gateway_plan *plan, const pst_gateway_node *node, const pst_gateway_index *index,
                             pst_str input, const pst_str *exclude, size_t n_exclude, pst_gateway_prompt *ret_prompt,
                             pst_error *err) {
  static const pst_str line_end[] = {{"\n", 1}};
  pst_gateway_prompt p = {.arena = pst_arena_create()};
  pst_str text = {"", 0};
  int code = p.arena ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the prompt");
  if (!code && index && node->n_examples > 0) code = find_examples(node, index, input, exclude, n_exclude, &p, err);
  if (code) goto done;
  code = choose_labels(plan, node, &p);
  if (!code && node->layout == PST_GATEWAY_LAYOUT_CHAT) code = build_turns(node, input, &p);
  if (!code && node->layout != PST_GATEWAY_LAYOUT_CHAT) code = build_text(node, input, &p, &text);
  if (!code && node->layout != PST_GATEWAY_LAYOUT_CHAT) code = build_one_message(&p, text);
  if (code) {
    pst_error_set(err, code, NULL, "no memory for the prompt");
    goto done;
  }
  if (node->layout == PST_GATEWAY_LAYOUT_PLAIN) {
    p.text = text;
    p.leading_space = true;
    p.stop = line_end;
    p.n_stop = PST_ARRAY_LEN(line_end);
  }
  *ret_prompt = p;
  p.arena = NULL;
done:
  pst_arena_free(p.arena);
  return code;
}

int pst_gateway_prompt_tokenize(const pst_gateway_prompt *p, const pst_engine_model *model, pst_engine_tokens *tokens,
                                pst_buf *ret_text, pst_error *err) {
  if (!p->text.n) return pst_engine_render_chat(model, p->chat, tokens, ret_text, err);
  tokens->n = 0;
  int code = pst_engine_tokenize(model, p->text, false, true, tokens, err);
  if (!code && ret_text) pst_buf_append_str(ret_text, p->text);
  return code;
}

/* In PLAIN prompt and answer are one text, as the model sees it; where a token reaches over the border, the answer by itself with the space before it. */
static int append_line(const pst_gateway_prompt *p, const pst_engine_model *model, pst_str answer,
                       pst_engine_tokens *tokens, pst_error *err) {
  pst_engine_tokens whole = {0};
  pst_buf text = PST_BUF_INIT;
  pst_buf_append_str(&text, p->text);
  pst_buf_putc(&text, ' ');
  put_line(&text, trim(answer));
  pst_buf_append_str(&text, p->stop[0]);
  int code = pst_buf_status(&text) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the answer")
                                   : pst_engine_tokenize(model, pst_buf_str(&text), false, true, &whole, err);
  if (!code && whole.n > tokens->n && !memcmp(whole.ids, tokens->ids, tokens->n * sizeof *whole.ids)) {
    pst_engine_tokens swap = *tokens;
    *tokens = whole;
    whole = swap;
  } else if (!code) {
    pst_str line = {text.data + p->text.n, text.n - p->text.n};
    code = pst_engine_tokenize(model, line, false, false, tokens, err);
  }
  pst_engine_tokens_done(&whole);
  pst_buf_done(&text);
  return code;
}

int pst_gateway_prompt_answered(const pst_gateway_prompt *p, const pst_engine_model *model, pst_str answer,
                                pst_engine_tokens *tokens, size_t *ret_n_given, pst_error *err) {
  if (p->text.n) {
    int code = pst_gateway_prompt_tokenize(p, model, tokens, NULL, err);
    size_t n = tokens->n;
    if (!code) code = append_line(p, model, answer, tokens, err);
    if (!code) *ret_n_given = n;
    return code;
  }
  pst_chat chat = *p->chat;
  pst_chat_message *m = pst_arena_calloc(p->arena, chat.n_messages + 1, sizeof *m);
  if (!m) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the answer");
  memcpy(m, chat.messages, chat.n_messages * sizeof *m);
  m[chat.n_messages++] = message(PST_CHAT_ASSISTANT, trim(answer));
  chat.messages = m;
  return pst_engine_render_answered(model, &chat, tokens, ret_n_given, err);
}

void pst_gateway_prompt_done(pst_gateway_prompt *p) {
  if (!p->arena) return;
  pst_arena_free(p->arena);
  memset(p, 0, sizeof *p);
}
