/* Chat templates: compilation, one rendering, and what a conversation looks like to a template.
 *
 * Owns the bounds of a rendering (steps, depth, memory, output) and the seam where data enters: everything of the
 * conversation comes in as data, except the names of the fixed roles and the token variables. The rest of the interpreter
 * never has to ask where a string came from. */
#include "engine/template_types.h"

#include <string.h>

/* ---- compilation ------------------------------------------------------------------------------------------------ */

int pst_engine_template_create(pst_str text, pst_engine_template **ret_template, pst_error *err) {
  if (text.n > TPL_MAX_TEMPLATE_BYTES)
    return pst_error_set(err, PST_E_LIMIT, "template", "the template has %zu bytes, more than %d", text.n,
                         TPL_MAX_TEMPLATE_BYTES);
  if (!pst_utf8_valid(text)) return pst_error_set(err, PST_E_BAD_INPUT, "template", "the template is not UTF-8");
  pst_engine_template *t = pst_calloc(1, sizeof *t);
  int rc = PST_E_NOMEM;
  tpl_tokens tokens = {0};
  if (!t || !(t->arena = pst_arena_create())) {
    pst_error_set(err, rc, "template", "out of memory");
    goto done;
  }
  if ((rc = pst_engine_tpl_lex(t->arena, text, &tokens, err)) != 0) goto done;
  if ((rc = pst_engine_tpl_parse(t, &tokens, err)) != 0) goto done;
  *ret_template = t;
  t = NULL;
done:
  pst_engine_template_free(t);
  return rc;
}

void pst_engine_template_free(pst_engine_template *t) {
  if (!t) return;
  pst_arena_free(t->arena);
  pst_free(t);
}

bool pst_engine_template_mentions(const pst_engine_template *t, const char *variable) {
  return pst_engine_tpl_symbol(t, pst_str_from(variable)) >= 0;
}

/* ---- bounds and failure ----------------------------------------------------------------------------------------- */

bool pst_engine_tpl_fail(tpl_ctx *c, int code, const char *format, ...) {
  if (c->failed) return false;
  c->failed = true;
  char message[sizeof c->err->message], place[32];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  size_t n = strlen(message); /* a message that had to be cut ends with a whole character */
  if (n == sizeof message - 1) message[n - pst_utf8_incomplete_tail((pst_str){message, n})] = '\0';
  snprintf(place, sizeof place, "template:%d", c->line);
  pst_error_set(c->err, code, place, "%s", message);
  return false;
}

bool pst_engine_tpl_fail_unsupported(tpl_ctx *c, const char *what) {
  return pst_engine_tpl_fail(c, PST_E_UNSUPPORTED, "the template uses %s, which chat templates here cannot", what);
}

bool pst_engine_tpl_fail_undefined(tpl_ctx *c, const tpl_val *v) {
  const tpl_undefined *u = v->u.undefined;
  if (u->hint) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s", u->hint);
  if (!u->object) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' is undefined", u->name);
  if (u->element) return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "%s has no element %s", u->object, u->name);
  return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "'%s' has no attribute '%s'", u->object, u->name);
}

void *pst_engine_tpl_alloc(tpl_ctx *c, size_t bytes) {
  enum { OVERHEAD = 16 };
  if (c->failed) return NULL;
  if (bytes > c->max_memory || c->memory > c->max_memory - bytes) {
    pst_engine_tpl_fail(c, PST_E_LIMIT, "the template needs more than %zu bytes of memory", c->max_memory);
    return NULL;
  }
  void *p = pst_arena_alloc(c->arena, bytes ? bytes : 1);
  if (!p) pst_engine_tpl_fail(c, PST_E_NOMEM, "out of memory");
  c->memory += bytes + OVERHEAD;
  return p;
}

bool pst_engine_tpl_charge(tpl_ctx *c, size_t bytes) {
  if (c->failed) return false;
  int64_t cost = 1 + (int64_t)(bytes / 64);
  if (cost > c->max_steps - c->steps)
    return pst_engine_tpl_fail(c, PST_E_LIMIT, "the template takes more than %lld steps", (long long)c->max_steps);
  c->steps += cost;
  return true;
}

bool pst_engine_tpl_enter(tpl_ctx *c) {
  if (c->failed) return false;
  if (c->depth >= c->max_depth)
    return pst_engine_tpl_fail(c, PST_E_LIMIT, "the template nests deeper than %d levels", c->max_depth);
  c->depth++;
  return true;
}

void pst_engine_tpl_leave(tpl_ctx *c) { c->depth--; }

/* ---- the conversation as values --------------------------------------------------------------------------------- */

/* Data of the caller: never trusted; broken UTF-8 becomes U+FFFD. */
static bool put_data(tpl_ctx *c, tpl_dict *d, const char *key, pst_str text) {
  const tpl_str *s;
  if (pst_utf8_valid(text)) {
    s = pst_engine_tpl_str_view(c, text, false);
  } else {
    pst_buf clean = PST_BUF_INIT;
    pst_utf8_sanitize(text, &clean);
    s = pst_buf_status(&clean) ? NULL : pst_engine_tpl_str_new(c, pst_buf_str(&clean), false);
    pst_buf_done(&clean);
    if (!s) pst_engine_tpl_fail(c, PST_E_NOMEM, "out of memory");
  }
  return s && pst_engine_tpl_dict_put(c, d, key, pst_engine_tpl_string(s));
}

static bool put_trusted(tpl_ctx *c, tpl_dict *d, const char *key, const char *text) {
  const tpl_str *s = pst_engine_tpl_str_view(c, pst_str_from(text), true);
  return s && pst_engine_tpl_dict_put(c, d, key, pst_engine_tpl_string(s));
}

static bool put_json(tpl_ctx *c, tpl_dict *d, const char *key, const pst_json *v) {
  tpl_val value;
  return pst_engine_tpl_from_json(c, v, &value) && pst_engine_tpl_dict_put(c, d, key, value);
}

static bool put_role(tpl_ctx *c, tpl_dict *d, pst_chat_role role, pst_str other) {
  return role == PST_CHAT_OTHER ? put_data(c, d, "role", other) : put_trusted(c, d, "role", pst_chat_role_name(role));
}

static bool put_content(tpl_ctx *c, tpl_dict *d, const pst_chat_message *m) {
  if (!m->has_content) return pst_engine_tpl_dict_put(c, d, "content", pst_engine_tpl_none());
  if (!m->parts) return put_data(c, d, "content", m->content);
  tpl_list *parts = pst_engine_tpl_list_new(c, m->n_parts);
  for (size_t i = 0; parts && i < m->n_parts; i++) {
    tpl_val part;
    if (m->parts[i].kind == PST_CHAT_PART_TEXT) {
      tpl_dict *text = pst_engine_tpl_dict_new(c);
      if (!text || !put_data(c, text, "type", PST_STR("text")) || !put_data(c, text, "text", m->parts[i].text))
        return false;
      part = pst_engine_tpl_dict(text);
    } else if (!pst_engine_tpl_from_json(c, m->parts[i].json, &part)) {
      return false;
    }
    if (!pst_engine_tpl_list_push(c, parts, part)) return false;
  }
  return parts && pst_engine_tpl_dict_put(c, d, "content", pst_engine_tpl_list(TPL_LIST, parts));
}

static bool put_tool_calls(tpl_ctx *c, tpl_dict *d, const pst_chat_message *m) {
  if (!m->n_tool_calls) return true;
  tpl_list *calls = pst_engine_tpl_list_new(c, m->n_tool_calls);
  for (size_t i = 0; calls && i < m->n_tool_calls; i++) {
    const pst_chat_tool_call *from = &m->tool_calls[i];
    tpl_dict *call = pst_engine_tpl_dict_new(c), *function = pst_engine_tpl_dict_new(c);
    if (!call || !function || (from->id.n && !put_data(c, call, "id", from->id)) ||
        !put_data(c, call, "type", PST_STR("function")) || !put_data(c, function, "name", from->name) ||
        !(from->arguments_json ? put_json(c, function, "arguments", from->arguments_json)
                               : put_data(c, function, "arguments", from->arguments)) ||
        !pst_engine_tpl_dict_put(c, call, "function", pst_engine_tpl_dict(function)) ||
        !pst_engine_tpl_list_push(c, calls, pst_engine_tpl_dict(call)))
      return false;
  }
  return calls && pst_engine_tpl_dict_put(c, d, "tool_calls", pst_engine_tpl_list(TPL_LIST, calls));
}

/* Older names for the assistant's thinking, filled in as transformers does before rendering: "thinking" first, then the
 * message, "reasoning_content" over all. */
static bool alias_reasoning(tpl_ctx *c, tpl_dict **message) {
  static const char *const fields[] = {"reasoning_content", "thinking", "reasoning"};
  const tpl_val *reasoning = NULL;
  for (size_t i = 0; !reasoning && i < PST_ARRAY_LEN(fields); i++) {
    reasoning = pst_engine_tpl_dict_get(*message, pst_str_from(fields[i]));
    if (reasoning && reasoning->kind == TPL_NONE) reasoning = NULL;
  }
  if (!reasoning) return true;
  tpl_val value = *reasoning;
  tpl_dict *d = pst_engine_tpl_dict_new(c);
  if (!d || !pst_engine_tpl_dict_put(c, d, "thinking", value)) return false;
  for (size_t i = 0; i < (*message)->n; i++) {
    if (!pst_engine_tpl_dict_set(c, d, (*message)->entries[i].key, (*message)->entries[i].value)) return false;
  }
  *message = d;
  return pst_engine_tpl_dict_put(c, d, "reasoning_content", value);
}

static bool message_value(tpl_ctx *c, const pst_chat_message *m, tpl_val *out) {
  tpl_dict *d = pst_engine_tpl_dict_new(c);
  if (!d || !put_role(c, d, m->role, m->role_name) || !put_content(c, d, m)) return false;
  if (m->has_reasoning && !put_data(c, d, "reasoning_content", m->reasoning)) return false;
  if ((m->name.n && !put_data(c, d, "name", m->name)) || !put_tool_calls(c, d, m) ||
      (m->tool_call_id.n && !put_data(c, d, "tool_call_id", m->tool_call_id)))
    return false;
  for (pst_json_iter it = pst_json_iterate(m->extra); pst_json_next(&it);) {
    if (pst_engine_tpl_dict_get(d, it.key)) continue;
    tpl_val key = pst_engine_tpl_string(pst_engine_tpl_str_view(c, it.key, false)), value;
    if (key.kind != TPL_STR || !pst_engine_tpl_from_json(c, it.value, &value) ||
        !pst_engine_tpl_dict_set(c, d, key, value))
      return false;
  }
  if (!alias_reasoning(c, &d)) return false;
  *out = pst_engine_tpl_dict(d);
  return true;
}

static bool chat_messages(tpl_ctx *c, const pst_chat *chat, tpl_val *out) {
  tpl_list *l = pst_engine_tpl_list_new(c, chat->n_messages);
  for (size_t i = 0; l && i < chat->n_messages; i++) {
    tpl_val m;
    if (!message_value(c, &chat->messages[i], &m) || !pst_engine_tpl_list_push(c, l, m)) return false;
  }
  if (l) *out = pst_engine_tpl_list(TPL_LIST, l);
  return l != NULL;
}

/* Messages that came as JSON: the names of fixed roles are ours, the rest is data. */
static bool json_messages(tpl_ctx *c, const pst_json *json, tpl_val *out) {
  if (!pst_engine_tpl_from_json(c, json, out)) return false;
  for (size_t i = 0; out->kind == TPL_LIST && i < out->u.list->n; i++) {
    tpl_val *m = &out->u.list->items[i];
    if (m->kind != TPL_DICT) continue;
    tpl_val *role = pst_engine_tpl_dict_get(m->u.dict, PST_STR("role"));
    if (role && role->kind == TPL_STR) {
      pst_chat_role known = pst_chat_role_from(pst_engine_tpl_view(role->u.s));
      if (known != PST_CHAT_OTHER) {
        *role = pst_engine_tpl_string(pst_engine_tpl_str_view(c, pst_str_from(pst_chat_role_name(known)), true));
        if (role->kind != TPL_STR) return false;
      }
    }
    if (!alias_reasoning(c, &m->u.dict)) return false;
  }
  return true;
}

/* ---- variables -------------------------------------------------------------------------------------------------- */

static tpl_val *slot(tpl_ctx *c, pst_str name) {
  int symbol = pst_engine_tpl_symbol(c->t, name);
  return symbol < 0 ? NULL : &c->root[symbol];
}

static void set_variable(tpl_ctx *c, const char *name, tpl_val value) {
  tpl_val *at = slot(c, pst_str_from(name));
  if (at) *at = value;
}

static bool set_json_variables(tpl_ctx *c, const pst_json *object) {
  for (pst_json_iter it = pst_json_iterate(object); pst_json_next(&it);) {
    tpl_val *at = slot(c, it.key), value;
    if (!at) continue;
    bool messages = pst_str_is(it.key, "messages");
    if (!(messages ? json_messages(c, it.value, &value) : pst_engine_tpl_from_json(c, it.value, &value))) return false;
    *at = value;
  }
  return true;
}

static bool set_chat(tpl_ctx *c, const pst_chat *chat) {
  tpl_val messages, tools, documents;
  if (!set_json_variables(c, chat->variables) || !chat_messages(c, chat, &messages) ||
      !pst_engine_tpl_from_json(c, chat->tools, &tools) || !pst_engine_tpl_from_json(c, chat->documents, &documents))
    return false;
  set_variable(c, "messages", messages);
  set_variable(c, "tools", tools);
  set_variable(c, "documents", documents);
  set_variable(c, "add_generation_prompt", pst_engine_tpl_bool(chat->add_generation_prompt));
  return true;
}

static bool set_variables(tpl_ctx *c, const pst_engine_template_input *input) {
  c->root = pst_engine_tpl_alloc(c, c->t->n_symbols * sizeof *c->root);
  if (!c->root) return false;
  for (size_t i = 0; i < c->t->n_symbols; i++) {
    const tpl_function *f = pst_engine_tpl_find_function(pst_engine_tpl_globals, c->t->symbols[i]);
    c->root[i] = f ? (tpl_val){.kind = TPL_FUNCTION, .u.function = f} : (tpl_val){.kind = TPL_MISSING};
  }
  set_variable(c, "tools", pst_engine_tpl_none());
  set_variable(c, "documents", pst_engine_tpl_none());
  set_variable(c, "add_generation_prompt", pst_engine_tpl_bool(false));
  for (size_t i = 0; i < input->n_tokens; i++) {
    if (!pst_utf8_valid(input->tokens[i].text))
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "the text of %s is not UTF-8", input->tokens[i].name);
    const tpl_str *s = pst_engine_tpl_str_view(c, input->tokens[i].text, true);
    if (!s) return false;
    set_variable(c, input->tokens[i].name, pst_engine_tpl_string(s));
  }
  return set_json_variables(c, input->variables) && (!input->chat || set_chat(c, input->chat));
}

/* ---- rendering -------------------------------------------------------------------------------------------------- */

void pst_engine_template_output_done(pst_engine_template_output *out) {
  pst_buf_done(&out->text);
  pst_free(out->spans);
  pst_free(out->generations);
  *out = (pst_engine_template_output)PST_ENGINE_TEMPLATE_OUTPUT_INIT;
}

static int copy_output(const tpl_ctx *c, const tpl_builder *b, pst_engine_template_output *out) {
  pst_buf_append(&out->text, b->data, b->n);
  out->spans = pst_calloc(b->n_runs, sizeof *out->spans);
  out->generations = pst_calloc(c->n_generations, sizeof *out->generations);
  if (pst_buf_status(&out->text) || !out->spans || !out->generations) return PST_E_NOMEM;
  for (size_t i = 0; i < b->n_runs; i++) {
    out->spans[i] = (pst_engine_template_span){i ? b->runs[i - 1].end : 0, b->runs[i].end, b->runs[i].trusted};
  }
  out->n_spans = b->n_runs;
  if (c->n_generations) memcpy(out->generations, c->generations, c->n_generations * sizeof *out->generations);
  out->n_generations = c->n_generations;
  return 0;
}

int pst_engine_template_render(const pst_engine_template *t, const pst_engine_template_input *input,
                               pst_engine_template_output *ret_out, pst_error *err) {
  static const pst_engine_template_limits defaults = {20000000, 1000, (size_t)16 << 20, (size_t)256 << 20};
  const pst_engine_template_limits *l = &input->limits;
  pst_error own = PST_ERROR_INIT;
  pst_engine_template_output out = PST_ENGINE_TEMPLATE_OUTPUT_INIT;
  tpl_ctx c = {
      .t = t,
      .arena = pst_arena_create(),
      .err = err ? err : &own,
      .line = 1,
      .max_depth = l->max_depth > 0 ? PST_MIN(l->max_depth, defaults.max_depth) : defaults.max_depth,
      .max_steps = l->max_steps > 0 ? l->max_steps : defaults.max_steps,
      .max_memory = l->max_memory_bytes ? l->max_memory_bytes : defaults.max_memory_bytes,
      .max_output = l->max_output_bytes ? l->max_output_bytes : defaults.max_output_bytes,
      .clock_fixed = input->now_unix_s != NULL,
      .now_unix_s = input->now_unix_s ? *input->now_unix_s : pst_clock_unix_ms() / 1000,
  };
  tpl_builder b = pst_engine_tpl_builder(&c);
  tpl_scope root = {0};
  int rc = 0;
  c.out = c.final_out = &b;
  if (!c.arena)
    rc = pst_error_set(c.err, PST_E_NOMEM, "template", "out of memory");
  else if (!set_variables(&c, input) || !pst_engine_tpl_run(&c, &root))
    rc = c.err->code;
  else if (copy_output(&c, &b, &out))
    rc = pst_error_set(c.err, PST_E_NOMEM, "template", "out of memory");
  pst_arena_free(c.arena);
  if (rc)
    pst_engine_template_output_done(&out);
  else
    *ret_out = out;
  return rc;
}
