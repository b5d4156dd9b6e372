/* Messages and tools of a chat request into a pst_chat. Owns the rules of who may say what; what a model can do with it (pictures, tools)
 * is for the layer that serves it. */
#include <string.h>

#include "wire/reader.h"

static const char *const known_members[] = {"role",         "content",           "name",       "tool_calls",
                                            "tool_call_id", "reasoning_content", "reasoning",  "refusal",
                                            "audio",        "function_call",     "annotations"};

static int no_memory(const pst_wire_reader *r) {
  return pst_wire_fail(r, PST_E_NOMEM, NULL, "out of memory for the request");
}

static bool may_show_media(pst_chat_role role) { return role == PST_CHAT_USER; }

static int read_part(const pst_wire_reader *r, pst_chat_role role, pst_chat_part *part) {
  if (pst_json_typeof(r->object) != PST_JSON_OBJECT) return pst_wire_fail_type(r, NULL, "an object", r->object);
  pst_str type = {NULL, 0};
  int rc = pst_wire_read_str(r, "type", 64, &type);
  if (rc) return rc;
  if (!type.data) return pst_wire_fail_type(r, "type", "a string", NULL);
  const char *text_key = pst_str_is(type, "text") ? "text" : pst_str_is(type, "refusal") ? "refusal" : NULL;
  if (text_key) {
    pst_str text = {NULL, 0};
    rc = pst_wire_read_str(r, text_key, SIZE_MAX, &text);
    if (rc) return rc;
    if (!text.data) return pst_wire_fail_type(r, text_key, "a string", NULL);
    *part = (pst_chat_part){.kind = PST_CHAT_PART_TEXT, .text = text};
    return 0;
  }
  static const char *const kinds[] = {"image_url", "input_audio", "file", "video_url", "audio_url"};
  for (size_t i = 0; i < PST_ARRAY_LEN(kinds); i++) {
    if (!pst_str_is(type, kinds[i])) continue;
    if (!may_show_media(role))
      return pst_wire_fail(r, PST_E_BAD_INPUT, "type", "only user messages may carry parts of type %s", kinds[i]);
    *part = (pst_chat_part){.kind = PST_CHAT_PART_JSON, .json = r->object};
    return 0;
  }
  return pst_wire_fail(r, PST_E_BAD_INPUT, "type",
                       "'%.*s' is not a type of content part: text, image_url, input_audio, file",
                       (int)PST_MIN(type.n, 40u), type.data);
}

static int read_content(const pst_wire_reader *r, pst_wire_request *request, pst_chat_message *m) {
  const pst_json *content = pst_wire_get(r, "content");
  if (!content) {
    bool allowed = m->role == PST_CHAT_ASSISTANT &&
                   (m->n_tool_calls > 0 || pst_json_get(r->object, "refusal") || m->has_reasoning);
    return allowed ? 0 : pst_wire_fail_type(r, "content", "a string or an array of parts", NULL);
  }
  m->has_content = true;
  if (pst_json_typeof(content) == PST_JSON_STRING) {
    m->content = pst_json_str(content);
    return 0;
  }
  if (pst_json_typeof(content) != PST_JSON_ARRAY)
    return pst_wire_fail_type(r, "content", "a string or an array of parts", content);
  size_t n = pst_json_size(content);
  if (n == 0) return pst_wire_fail(r, PST_E_BAD_INPUT, "content", "an array of parts needs at least one");
  pst_chat_part *parts = pst_arena_calloc(request->arena, n, sizeof *parts);
  if (!parts) return no_memory(r);
  pst_json_iter it = pst_json_iterate(content);
  for (size_t i = 0; pst_json_next(&it); i++) {
    pst_wire_reader inner = pst_wire_reader_into(r, "content", (int64_t)i, it.value);
    int rc = read_part(&inner, m->role, &parts[i]);
    if (rc) return rc;
  }
  m->parts = parts;
  m->n_parts = n;
  return 0;
}

/* Arguments that are JSON are parsed for templates; what is not stays text. */
static int parse_arguments(const pst_wire_reader *r, pst_wire_request *request, pst_chat_tool_call *call) {
  pst_json_doc *doc = NULL;
  int rc = pst_json_parse(call->arguments.data, call->arguments.n, NULL, &doc, NULL);
  if (rc == PST_E_NOMEM) return no_memory(r);
  if (rc) return 0;
  pst_wire_docs *node = pst_arena_alloc(request->arena, sizeof *node);
  if (!node) {
    pst_json_free(doc);
    return no_memory(r);
  }
  *node = (pst_wire_docs){.doc = doc, .next = request->docs};
  request->docs = node;
  call->arguments_json = pst_json_root(doc);
  return 0;
}

static int read_tool_call(const pst_wire_reader *r, pst_wire_request *request, pst_chat_tool_call *call) {
  if (pst_json_typeof(r->object) != PST_JSON_OBJECT) return pst_wire_fail_type(r, NULL, "an object", r->object);
  pst_str type = PST_STR("function");
  int rc = pst_wire_read_str(r, "type", 64, &type);
  if (!rc) rc = pst_wire_read_str(r, "id", 256, &call->id);
  if (rc) return rc;
  if (!pst_str_is(type, "function"))
    return pst_wire_fail(r, PST_E_UNSUPPORTED, "type", "only tool calls of type 'function' are known");
  const pst_json *function = pst_wire_get(r, "function");
  if (pst_json_typeof(function) != PST_JSON_OBJECT) return pst_wire_fail_type(r, "function", "an object", function);
  pst_wire_reader inner = pst_wire_reader_into(r, "function", -1, function);
  rc = pst_wire_read_str(&inner, "name", 256, &call->name);
  if (!rc) rc = pst_wire_read_str(&inner, "arguments", SIZE_MAX, &call->arguments);
  if (rc) return rc;
  if (!call->name.n) return pst_wire_fail_type(&inner, "name", "a string", NULL);
  if (!call->arguments.data) return pst_wire_fail_type(&inner, "arguments", "a string", NULL);
  return parse_arguments(&inner, request, call);
}

static int read_tool_calls(const pst_wire_reader *r, pst_wire_request *request, pst_chat_message *m) {
  const pst_json *calls = pst_wire_get(r, "tool_calls");
  if (!calls) return 0;
  if (pst_json_typeof(calls) != PST_JSON_ARRAY) return pst_wire_fail_type(r, "tool_calls", "an array", calls);
  if (m->role != PST_CHAT_ASSISTANT)
    return pst_wire_fail(r, PST_E_BAD_INPUT, "tool_calls", "only assistant messages may call tools");
  size_t n = pst_json_size(calls);
  if (n > PST_WIRE_MAX_TOOLS)
    return pst_wire_fail(r, PST_E_LIMIT, "tool_calls", "%zu calls are more than the limit of %d", n,
                         PST_WIRE_MAX_TOOLS);
  pst_chat_tool_call *list = pst_arena_calloc(request->arena, n + 1, sizeof *list);
  if (!list) return no_memory(r);
  pst_json_iter it = pst_json_iterate(calls);
  for (size_t i = 0; pst_json_next(&it); i++) {
    pst_wire_reader inner = pst_wire_reader_into(r, "tool_calls", (int64_t)i, it.value);
    int rc = read_tool_call(&inner, request, &list[i]);
    if (rc) return rc;
  }
  m->tool_calls = list;
  m->n_tool_calls = n;
  return 0;
}

static const pst_json *extra_members(const pst_json *message) {
  pst_json_iter it = pst_json_iterate(message);
  while (pst_json_next(&it)) {
    bool known = false;
    for (size_t i = 0; i < PST_ARRAY_LEN(known_members) && !known; i++) known = pst_str_is(it.key, known_members[i]);
    if (!known) return message;
  }
  return NULL;
}

static int read_message(const pst_wire_reader *r, pst_wire_request *request, pst_chat_message *m) {
  if (pst_json_typeof(r->object) != PST_JSON_OBJECT) return pst_wire_fail_type(r, NULL, "an object", r->object);
  pst_str role = {NULL, 0}, reasoning = {NULL, 0};
  int rc = pst_wire_read_str(r, "role", SIZE_MAX, &role);
  if (rc) return rc;
  if (!role.data) return pst_wire_fail_type(r, "role", "a string", NULL);
  m->role = pst_chat_role_from(role);
  if (m->role == PST_CHAT_OTHER)
    return pst_wire_fail(r, PST_E_BAD_INPUT, "role",
                         "'%.*s' is not a role: system, developer, user, assistant, tool, function",
                         (int)PST_MIN(role.n, 40u), role.data);
  rc = pst_wire_read_str(r, "name", 256, &m->name);
  if (!rc) rc = pst_wire_read_str(r, "tool_call_id", 256, &m->tool_call_id);
  if (!rc && m->role == PST_CHAT_ASSISTANT) {
    rc = pst_wire_read_str(r, "reasoning_content", SIZE_MAX, &reasoning);
    if (!rc && !reasoning.data) rc = pst_wire_read_str(r, "reasoning", SIZE_MAX, &reasoning);
    m->has_reasoning = reasoning.data != NULL;
    m->reasoning = reasoning;
  }
  if (!rc) rc = read_tool_calls(r, request, m);
  if (!rc) rc = read_content(r, request, m);
  if (rc) return rc;
  if (m->role == PST_CHAT_TOOL && !m->tool_call_id.n) return pst_wire_fail_type(r, "tool_call_id", "a string", NULL);
  m->extra = extra_members(r->object);
  return 0;
}

int pst_wire_read_messages(const pst_wire_reader *r, pst_wire_request *request) {
  const pst_json *messages = pst_wire_get(r, "messages");
  if (pst_json_typeof(messages) != PST_JSON_ARRAY) return pst_wire_fail_type(r, "messages", "an array", messages);
  size_t n = pst_json_size(messages);
  if (n == 0) return pst_wire_fail(r, PST_E_BAD_INPUT, "messages", "needs at least one message");
  if (n > PST_WIRE_MAX_MESSAGES)
    return pst_wire_fail(r, PST_E_LIMIT, "messages", "%zu messages are more than the limit of %d", n,
                         PST_WIRE_MAX_MESSAGES);
  pst_chat_message *list = pst_arena_calloc(request->arena, n, sizeof *list);
  if (!list) return no_memory(r);
  pst_json_iter it = pst_json_iterate(messages);
  for (size_t i = 0; pst_json_next(&it); i++) {
    pst_wire_reader inner = pst_wire_reader_into(r, "messages", (int64_t)i, it.value);
    int rc = read_message(&inner, request, &list[i]);
    if (rc) return rc;
  }
  request->chat.messages = list;
  request->chat.n_messages = n;
  request->chat.add_generation_prompt = true;
  return 0;
}

/* ---- tools ------------------------------------------------------------------------------------------------------------- */

static bool function_name_ok(pst_str name) {
  if (name.n == 0 || name.n > 64) return false;
  for (size_t i = 0; i < name.n; i++) {
    char c = name.data[i];
    if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
          c == '.'))
      return false;
  }
  return true;
}

static int check_tool(const pst_wire_reader *r) {
  if (pst_json_typeof(r->object) != PST_JSON_OBJECT) return pst_wire_fail_type(r, NULL, "an object", r->object);
  pst_str type = {NULL, 0}, name = {NULL, 0}, text = {NULL, 0};
  int rc = pst_wire_read_str(r, "type", 64, &type);
  if (rc) return rc;
  if (!type.data) return pst_wire_fail_type(r, "type", "a string", NULL);
  if (!pst_str_is(type, "function"))
    return pst_wire_fail(r, PST_E_UNSUPPORTED, "type", "only tools of type 'function' are known");
  const pst_json *function = pst_wire_get(r, "function");
  if (pst_json_typeof(function) != PST_JSON_OBJECT) return pst_wire_fail_type(r, "function", "an object", function);
  pst_wire_reader inner = pst_wire_reader_into(r, "function", -1, function);
  rc = pst_wire_read_str(&inner, "name", SIZE_MAX, &name);
  if (!rc) rc = pst_wire_read_str(&inner, "description", SIZE_MAX, &text);
  if (rc) return rc;
  if (!function_name_ok(name))
    return pst_wire_fail(&inner, PST_E_BAD_INPUT, "name", "a function's name has 1 to 64 of a-z, A-Z, 0-9, _, - and .");
  const pst_json *parameters = pst_wire_get(&inner, "parameters");
  if (parameters && pst_json_typeof(parameters) != PST_JSON_OBJECT)
    return pst_wire_fail_type(&inner, "parameters", "an object", parameters);
  return 0;
}

static bool tool_named(const pst_json *tools, pst_str name) {
  pst_json_iter it = pst_json_iterate(tools);
  while (pst_json_next(&it)) {
    if (pst_str_equal(pst_json_str(pst_json_get(pst_json_get(it.value, "function"), "name")), name)) return true;
  }
  return false;
}

static int read_tool_choice(const pst_wire_reader *r, pst_wire_request *request) {
  const pst_json *v = pst_wire_get(r, "tool_choice");
  request->tool_choice = request->chat.tools ? PST_WIRE_TOOLS_AUTO : PST_WIRE_TOOLS_NONE;
  if (!v) return 0;
  if (!request->chat.tools)
    return pst_wire_fail(r, PST_E_BAD_INPUT, "tool_choice", "is only allowed together with tools");
  if (pst_json_typeof(v) == PST_JSON_STRING) {
    pst_str s = pst_json_str(v);
    if (pst_str_is(s, "auto"))
      request->tool_choice = PST_WIRE_TOOLS_AUTO;
    else if (pst_str_is(s, "none"))
      request->tool_choice = PST_WIRE_TOOLS_NONE;
    else if (pst_str_is(s, "required"))
      request->tool_choice = PST_WIRE_TOOLS_REQUIRED;
    else
      return pst_wire_fail(r, PST_E_BAD_INPUT, "tool_choice", "expected none, auto, required or a function by name");
    return 0;
  }
  if (pst_json_typeof(v) != PST_JSON_OBJECT) return pst_wire_fail_type(r, "tool_choice", "a string or an object", v);
  pst_str name = pst_json_str(pst_json_get(pst_json_get(v, "function"), "name"));
  if (!name.n) return pst_wire_fail(r, PST_E_BAD_INPUT, "tool_choice.function.name", "missing: expected a string");
  if (!tool_named(request->chat.tools, name))
    return pst_wire_fail(r, PST_E_BAD_INPUT, "tool_choice.function.name", "there is no tool '%.*s'",
                         (int)PST_MIN(name.n, 64u), name.data);
  request->tool_choice = PST_WIRE_TOOLS_NAMED;
  request->tool_name = name;
  return 0;
}

int pst_wire_read_tools(const pst_wire_reader *r, pst_wire_request *request) {
  const pst_json *tools = pst_wire_get(r, "tools");
  if (tools) {
    if (pst_json_typeof(tools) != PST_JSON_ARRAY) return pst_wire_fail_type(r, "tools", "an array", tools);
    size_t n = pst_json_size(tools);
    if (n > PST_WIRE_MAX_TOOLS)
      return pst_wire_fail(r, PST_E_LIMIT, "tools", "%zu tools are more than the limit of %d", n, PST_WIRE_MAX_TOOLS);
    pst_json_iter it = pst_json_iterate(tools);
    for (size_t i = 0; pst_json_next(&it); i++) {
      pst_wire_reader inner = pst_wire_reader_into(r, "tools", (int64_t)i, it.value);
      int rc = check_tool(&inner);
      if (rc) return rc;
    }
    request->chat.tools = n ? tools : NULL;
  }
  request->parallel_tool_calls = true;
  int rc = pst_wire_read_bool(r, "parallel_tool_calls", &request->parallel_tool_calls);
  return rc ? rc : read_tool_choice(r, request);
}
