/* Chat templates: a Jinja interpreter for the templates that ship with models, as `transformers` runs them.
 *
 * A template is compiled once, never changes after that, and may be rendered by any number of threads at a time. Every byte
 * of a rendering knows where it came from: text of the template and of its token variables is trusted, everything else (user
 * text, tool definitions, numbers, extra variables) is not, through every filter, slice and concatenation. Only trusted
 * spans may later be read as control tokens. */
#ifndef PST_ENGINE_TEMPLATE_H
#define PST_ENGINE_TEMPLATE_H

#include <penstock/base.h>
#include <penstock/chat.h>

typedef struct pst_engine_template pst_engine_template;

/* Compiles `text` (UTF-8, copied). Errors: PST_E_BAD_INPUT (with Jinja's own message; place "template:LINE"),
 * PST_E_UNSUPPORTED (a feature of Jinja that is not here, by name), PST_E_LIMIT, PST_E_NOMEM. */
int pst_engine_template_create(pst_str text, pst_engine_template **ret_template, pst_error *err);
void pst_engine_template_free(pst_engine_template *t); /* NULL is fine */
/* Whether the template mentions a variable anywhere ("tools", "enable_thinking"): a hint about what it can show. */
bool pst_engine_template_mentions(const pst_engine_template *t, const char *variable);

/* A token variable: "bos_token", "eos_token", ... Its text is trusted. */
typedef struct pst_engine_template_token {
  const char *name;
  pst_str text;
} pst_engine_template_token;

/* Bounds of one rendering; 0 takes the default. Passing one is PST_E_LIMIT. */
typedef struct pst_engine_template_limits {
  int64_t max_steps;       /* nodes evaluated, plus one for every 64 bytes handled: 20 million */
  int max_depth;           /* nested expressions, calls and loops together: 1000 */
  size_t max_output_bytes; /* 16 MiB */
  size_t max_memory_bytes; /* 256 MiB */
} pst_engine_template_limits;

typedef struct pst_engine_template_input {
  const pst_chat *chat;      /* NULL: only `variables` */
  const pst_json *variables; /* NULL, or an object of variables as a caller of `transformers` would pass them: messages,
                                tools, documents, add_generation_prompt and others. The chat's own win. */
  const pst_engine_template_token *tokens;
  size_t n_tokens;
  const int64_t *now_unix_s; /* strftime_now's clock, read as UTC; NULL: now, local time */
  pst_engine_template_limits limits;
} pst_engine_template_input;

typedef struct pst_engine_template_span {
  size_t start, end; /* byte offsets, end exclusive */
  bool trusted;
} pst_engine_template_span;

typedef struct pst_engine_template_output {
  pst_buf text;
  pst_engine_template_span *spans; /* cover the text without gap; neighbours differ in `trusted` */
  size_t n_spans;
  pst_engine_template_span *generations; /* what {% generation %} blocks enclosed, in order; `trusted` is false */
  size_t n_generations;
} pst_engine_template_output;
#define PST_ENGINE_TEMPLATE_OUTPUT_INIT \
  { PST_BUF_INIT, NULL, 0, NULL, 0 }
void pst_engine_template_output_done(pst_engine_template_output *out);

/* Renders into *ret_out (INIT or done before). What the template raises comes as PST_E_BAD_INPUT with its message, so do the
 * errors Python would raise in its place; place is "template:LINE". Any thread. */
int pst_engine_template_render(const pst_engine_template *t, const pst_engine_template_input *input,
                               pst_engine_template_output *ret_out, pst_error *err);

#endif
