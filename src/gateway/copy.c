/* A conversation copied with all that it points to, for calls that outlive their caller's memory.
 *
 * Texts go into the arena. JSON values cannot be copied one by one: they are written into one array, parsed again, and found there by their order. */
#include "gateway/live.h"

#include <string.h>

typedef struct copier {
  pst_arena *arena;
  pst_buf json; /* [value, value, ...] of all values met, in order */
  pst_json_writer writer;
  pst_json_iter values; /* second pass: over the parsed copy */
  bool second, failed;
} copier;

static pst_str copy_str(copier *c, pst_str s) {
  if (c->second || !s.data) return s;
  char *data = pst_arena_strndup(c->arena, s.data, s.n);
  if (!data) c->failed = true;
  return (pst_str){data, s.n};
}

static const pst_json *copy_json(copier *c, const pst_json *v) {
  if (!v) return NULL;
  if (c->second) return pst_json_next(&c->values) ? c->values.value : NULL;
  pst_json_put_value(&c->writer, v);
  return v;
}

static void *copy_array(copier *c, const void *array, size_t n, size_t element_bytes) {
  if (!array || n == 0) return NULL;
  if (c->second) return (void *)(uintptr_t)array; /* ours already */
  void *copy = pst_arena_calloc(c->arena, n, element_bytes);
  if (copy)
    memcpy(copy, array, n * element_bytes);
  else
    c->failed = true;
  return copy;
}

static void copy_message(copier *c, pst_chat_message *m) {
  m->role_name = copy_str(c, m->role_name);
  m->content = copy_str(c, m->content);
  m->reasoning = copy_str(c, m->reasoning);
  m->name = copy_str(c, m->name);
  m->tool_call_id = copy_str(c, m->tool_call_id);
  m->extra = copy_json(c, m->extra);
  pst_chat_part *parts = copy_array(c, m->parts, m->n_parts, sizeof *parts);
  for (size_t i = 0; parts && i < m->n_parts; i++) {
    parts[i].text = copy_str(c, parts[i].text);
    parts[i].json = copy_json(c, parts[i].json);
  }
  if (m->parts && m->n_parts) m->parts = parts;
  pst_chat_tool_call *calls = copy_array(c, m->tool_calls, m->n_tool_calls, sizeof *calls);
  for (size_t i = 0; calls && i < m->n_tool_calls; i++) {
    calls[i].id = copy_str(c, calls[i].id);
    calls[i].name = copy_str(c, calls[i].name);
    calls[i].arguments = copy_str(c, calls[i].arguments);
    calls[i].arguments_json = copy_json(c, calls[i].arguments_json);
  }
  m->tool_calls = calls;
}

static void copy_chat(copier *c, pst_chat *chat) {
  pst_chat_message *messages = copy_array(c, chat->messages, chat->n_messages, sizeof *messages);
  for (size_t i = 0; messages && i < chat->n_messages; i++) copy_message(c, &messages[i]);
  chat->messages = messages;
  chat->tools = copy_json(c, chat->tools);
  chat->documents = copy_json(c, chat->documents);
  chat->variables = copy_json(c, chat->variables);
}

int pst_gateway_chat_copy(const pst_chat *chat, pst_arena *arena, pst_chat **ret_chat, pst_json_doc **ret_doc,
                          pst_error *err) {
  copier c = {.arena = arena, .json = PST_BUF_INIT};
  pst_json_doc *doc = NULL;
  pst_chat *copy = pst_arena_alloc(arena, sizeof *copy);
  int code = copy ? 0 : PST_E_NOMEM;
  if (code) goto done;
  *copy = *chat;
  c.writer = pst_json_writer_on(&c.json, false);
  pst_json_begin_array(&c.writer);
  copy_chat(&c, copy);
  pst_json_end_array(&c.writer);
  if (c.failed || pst_buf_status(&c.json)) {
    code = PST_E_NOMEM;
    goto done;
  }
  if ((code = pst_json_parse(c.json.data, c.json.n, "messages", &doc, err))) goto done;
  c.second = true;
  c.values = pst_json_iterate(pst_json_root(doc));
  copy_chat(&c, copy);
  *ret_chat = copy;
  *ret_doc = doc;
done:
  pst_buf_done(&c.json);
  return code == PST_E_NOMEM ? pst_error_set(err, code, NULL, "out of memory for a request") : code;
}
