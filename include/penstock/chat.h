/* Penstock chat: the value types of a conversation.
 *
 * Plain structs over pst_str and pst_json; whoever builds a pst_chat owns the memory (an arena, as a rule) and keeps it
 * alive and unchanged while others read it. No functions beyond the role names: this header is open to every layer above
 * base and links to nothing. */
#ifndef PENSTOCK_CHAT_H
#define PENSTOCK_CHAT_H

#include <penstock/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Who speaks. The fixed names are ours, so a template may build control text of them; OTHER's name is the caller's data. */
#define PST_CHAT_ROLE_TABLE(X)       \
  X(PST_CHAT_SYSTEM, "system")       \
  X(PST_CHAT_DEVELOPER, "developer") \
  X(PST_CHAT_USER, "user")           \
  X(PST_CHAT_ASSISTANT, "assistant") \
  X(PST_CHAT_TOOL, "tool")           \
  X(PST_CHAT_FUNCTION, "function")

typedef enum pst_chat_role {
#define PST_CHAT_ROLE_ENUM(name, text) name,
  PST_CHAT_ROLE_TABLE(PST_CHAT_ROLE_ENUM)
#undef PST_CHAT_ROLE_ENUM
      PST_CHAT_OTHER, /* pst_chat_message.role_name says which */
} pst_chat_role;

/* The name of a role; "" for PST_CHAT_OTHER. */
static inline const char *pst_chat_role_name(pst_chat_role role) {
  static const char *const names[] = {
#define PST_CHAT_ROLE_TEXT(name, text) text,
      PST_CHAT_ROLE_TABLE(PST_CHAT_ROLE_TEXT)
#undef PST_CHAT_ROLE_TEXT
  };
  return (size_t)role < PST_ARRAY_LEN(names) ? names[role] : "";
}

/* The role with that name; PST_CHAT_OTHER if it is none of the fixed ones. */
static inline pst_chat_role pst_chat_role_from(pst_str name) {
  for (int i = 0; i < (int)PST_CHAT_OTHER; i++) {
    if (pst_str_is(name, pst_chat_role_name((pst_chat_role)i))) return (pst_chat_role)i;
  }
  return PST_CHAT_OTHER;
}

/* One part of a message's content. Kinds other than text are kept as the JSON object they came as; what cannot be served
 * is refused by the layer that would have to serve it. */
typedef enum pst_chat_part_kind { PST_CHAT_PART_TEXT, PST_CHAT_PART_JSON } pst_chat_part_kind;
typedef struct pst_chat_part {
  pst_chat_part_kind kind;
  pst_str text;         /* of a text part, UTF-8 */
  const pst_json *json; /* of any other: the whole part, an object */
} pst_chat_part;

/* A call the assistant made. `arguments` is the text as the model or client wrote it; `arguments_json` the same parsed,
 * NULL where it is not JSON. Templates see the parsed value if there is one, else the text. */
typedef struct pst_chat_tool_call {
  pst_str id; /* empty: none */
  pst_str name;
  pst_str arguments;
  const pst_json *arguments_json;
} pst_chat_tool_call;

/* Content is absent (has_content false: a template sees none), a text (parts NULL), or a list of parts. */
typedef struct pst_chat_message {
  pst_chat_role role;
  pst_str role_name; /* with PST_CHAT_OTHER */
  bool has_content;
  pst_str content;
  const pst_chat_part *parts;
  size_t n_parts;
  bool has_reasoning;
  pst_str reasoning;    /* the assistant's thinking, apart from its answer */
  pst_str name;         /* of the speaker, or of the tool that answered; empty: none */
  pst_str tool_call_id; /* of a tool result: which call it answers; empty: none */
  const pst_chat_tool_call *tool_calls;
  size_t n_tool_calls;
  const pst_json *extra; /* NULL or an object: further members a template may look at; the fields above win */
} pst_chat_message;

typedef struct pst_chat {
  const pst_chat_message *messages;
  size_t n_messages;
  const pst_json *tools; /* NULL, or an array of tool definitions in the OpenAI shape {type, function: {name, ...}} */
  const pst_json *documents;  /* NULL, or an array of objects */
  const pst_json *variables;  /* NULL, or an object: extra template variables (chat_template_kwargs) */
  bool add_generation_prompt; /* close with the opening of the assistant's turn */
} pst_chat;

#ifdef __cplusplus
}
#endif
#endif
