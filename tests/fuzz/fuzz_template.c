/* Any text as a chat template, any text as what the users of a conversation say. The input is the template, then a line `~~~`, then the users'
 * text. Holds: a template is refused with a place and a sentence, or renders twice to the same; the spans cover valid UTF-8 without a gap; no
 * character that only users can have written is trusted; and no such text becomes a control token.
 *
 * What tells users' text apart: each of its bytes beyond ASCII stands as a character of the private use area, U+E000 and more, in which the
 * tokenizer's control token is written too. Templates that could write these themselves are not tried. */
#include "engine/template.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define CHECK(condition)       \
  do {                         \
    if (!(condition)) abort(); \
  } while (0)

#define SEPARATOR "\n~~~\n"
#define USERS_CONTROL "\xEE\x80\x81\xEE\x80\x82" /* U+E001 U+E002: what a template cannot write */
#define TEMPLATES_CONTROL "<|end|>"

enum { N_PLAIN = 256, USERS_TOKEN = N_PLAIN, TEMPLATES_TOKEN, N_TOKENS };

static pst_engine_tokenizer *tokenizer;
static const pst_engine_template_token token_variables[] = {{"bos_token", {"<s>", 3}},
                                                            {"eos_token", {TEMPLATES_CONTROL, 7}}};
static const pst_engine_template_limits limits = {
    .max_steps = 200000, .max_depth = 200, .max_output_bytes = 1 << 20, .max_memory_bytes = 16 << 20};

/* ---- a tokenizer: every byte, and two control tokens ---------------------------------------------------------------- */

static void write_vocabulary(const char *path) {
  char texts[N_PLAIN][5];
  pst_str tokens[N_TOKENS];
  int32_t types[N_TOKENS];
  pst_engine_gguf_writer *w = NULL;
  for (unsigned b = 0, odd = 0; b < N_PLAIN; b++) { /* as byte-level BPE spells them */
    bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    tokens[b] = (pst_str){texts[b], pst_utf8_put(itself ? b : 0x100 + odd, texts[b])};
    odd += !itself;
    types[b] = 1;
  }
  tokens[USERS_TOKEN] = PST_STR(USERS_CONTROL);
  tokens[TEMPLATES_TOKEN] = PST_STR(TEMPLATES_CONTROL);
  types[USERS_TOKEN] = types[TEMPLATES_TOKEN] = 3;
  CHECK(pst_engine_gguf_writer_create(path, 32, &w, NULL) == 0);
  pst_engine_gguf_writer_put_str(w, "tokenizer.ggml.model", PST_STR("gpt2"));
  pst_engine_gguf_writer_put_str(w, "tokenizer.ggml.pre", PST_STR("gpt-2"));
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.tokens", tokens, N_TOKENS);
  pst_engine_gguf_writer_put_array(w, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_I32, types, N_TOKENS);
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.merges", NULL, 0);
  CHECK(pst_engine_gguf_writer_finish(w, NULL) == 0);
  pst_engine_gguf_writer_free(w);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  char path[] = "/tmp/fuzz_template_XXXXXX";
  pst_engine_gguf *g = NULL;
  int fd = mkstemp(path);
  (void)argc;
  (void)argv;
  CHECK(fd >= 0);
  close(fd);
  write_vocabulary(path);
  CHECK(pst_engine_gguf_open(path, &g, NULL) == 0);
  unlink(path);
  CHECK(pst_engine_tokenizer_create(g, &tokenizer, NULL) == 0);
  pst_engine_gguf_close(g);
  return 0;
}

/* ---- the two texts -------------------------------------------------------------------------------------------------- */

/* The template itself has characters of the users, or escapes that may make some. */
static bool could_write_users_text(pst_str t) {
  for (size_t i = 0; i < t.n; i++) {
    if (t.data[i] == '\xEE') return true;
    if (t.data[i] == '\\' && (++i == t.n || !strchr("nrt\\'\"", t.data[i]))) return true;
  }
  return false;
}

static void put_users_text(pst_str bytes, pst_buf *out) {
  for (size_t i = 0; i < bytes.n; i++) {
    unsigned char b = (unsigned char)bytes.data[i];
    char utf8[4];
    if (b < 0x80)
      pst_buf_putc(out, (char)b);
    else
      pst_buf_append(out, utf8, pst_utf8_put(0xE000u + b, utf8));
  }
  pst_buf_puts(out, USERS_CONTROL TEMPLATES_CONTROL);
}

/* Tools, documents and variables with the text wherever a caller can put one. */
static pst_json_doc *users_json(pst_str text) {
  pst_buf out = PST_BUF_INIT, quoted = PST_BUF_INIT;
  pst_json_doc *doc = NULL;
  pst_json_writer w = pst_json_writer_on(&quoted, false);
  pst_json_put_str(&w, text);
  const char *q = pst_buf_text(&quoted);
  pst_buf_printf(
      &out,
      "{\"tools\": [{\"type\": \"function\", \"function\": {\"name\": %s, \"description\": %s, \"parameters\": {\"type\":"
      " \"object\", \"properties\": {\"city\": {\"type\": \"string\", \"enum\": [%s, \"b\", 7]}, %s: {\"type\": \"integer\"}}}}}],"
      " \"documents\": [{\"title\": %s, \"text\": %s}],"
      " \"variables\": {\"x\": %s, \"list\": [%s, 1, 2.5, null, true, [%s]], \"enable_thinking\": true},"
      " \"arguments\": {\"city\": %s, \"days\": [3, %s]}}",
      q, q, q, q, q, q, q, q, q, q, q);
  CHECK(pst_json_parse(pst_buf_text(&out), out.n, NULL, &doc, NULL) == 0);
  pst_buf_done(&quoted);
  pst_buf_done(&out);
  return doc;
}

/* ---- what must hold ------------------------------------------------------------------------------------------------- */

static bool has_users_text(pst_str s) { return memchr(s.data, '\xEE', s.n) != NULL; }

static void check_output(const pst_engine_template_output *out) {
  pst_str text = pst_buf_str(&out->text);
  pst_engine_span *spans = pst_calloc(out->n_spans + 1, sizeof *spans);
  pst_engine_tokens tokens = {0};
  size_t at = 0;
  CHECK(spans);
  CHECK(pst_utf8_valid(text));
  for (size_t i = 0; i < out->n_spans; i++) {
    const pst_engine_template_span *s = &out->spans[i];
    CHECK(s->start == at && s->end > at && s->end <= text.n);
    CHECK(i == 0 || s->trusted != s[-1].trusted);
    spans[i] = (pst_engine_span){{text.data + s->start, s->end - s->start}, s->trusted};
    CHECK(!s->trusted || !has_users_text(spans[i].text));
    at = s->end;
  }
  CHECK(at == text.n);
  CHECK(pst_engine_tokenizer_encode_spans(tokenizer, spans, out->n_spans, 0, &tokens, NULL) == 0);
  for (size_t i = 0; i < tokens.n; i++) CHECK(tokens.ids[i] != USERS_TOKEN);
  for (size_t i = 0; i < out->n_generations; i++) {
    CHECK(out->generations[i].start <= out->generations[i].end && out->generations[i].end <= text.n);
  }
  pst_engine_tokens_done(&tokens);
  pst_free(spans);
}

static void check_error(int rc, const pst_error *err) {
  CHECK(rc == PST_E_BAD_INPUT || rc == PST_E_UNSUPPORTED || rc == PST_E_LIMIT || rc == PST_E_NOMEM);
  CHECK(err->code == rc && strncmp(err->place, "template", 8) == 0);
  CHECK(pst_utf8_valid(pst_str_from(err->message)));
}

static void check_rendering(const pst_engine_template *t, const pst_chat *chat) {
  static const int64_t now = 1770091506;
  pst_engine_template_input input = {.chat = chat,
                                     .tokens = token_variables,
                                     .n_tokens = PST_ARRAY_LEN(token_variables),
                                     .now_unix_s = &now,
                                     .limits = limits};
  pst_engine_template_output out = PST_ENGINE_TEMPLATE_OUTPUT_INIT, again = PST_ENGINE_TEMPLATE_OUTPUT_INIT;
  pst_error err = PST_ERROR_INIT;
  int rc = pst_engine_template_render(t, &input, &out, &err);
  CHECK(pst_engine_template_render(t, &input, &again, NULL) == rc);
  if (rc) {
    check_error(rc, &err);
  } else {
    check_output(&out);
    CHECK(pst_str_equal(pst_buf_str(&out.text), pst_buf_str(&again.text)) && out.n_spans == again.n_spans);
  }
  pst_engine_template_output_done(&out);
  pst_engine_template_output_done(&again);
}

static void render(const pst_engine_template *t, pst_str text) {
  pst_json_doc *doc = users_json(text);
  const pst_json *root = pst_json_root(doc);
  const pst_chat_tool_call call = {PST_STR("call00001"), text, text, pst_json_get(root, "arguments")};
  const pst_chat_part parts[] = {{PST_CHAT_PART_TEXT, text, NULL}, {PST_CHAT_PART_TEXT, PST_STR("and"), NULL}};
  const pst_chat_message messages[] = {
      {.role = PST_CHAT_SYSTEM, .has_content = true, .content = text},
      {.role = PST_CHAT_USER, .has_content = true, .content = text, .name = text},
      {.role = PST_CHAT_ASSISTANT,
       .has_content = true,
       .content = text,
       .has_reasoning = true,
       .reasoning = text,
       .tool_calls = &call,
       .n_tool_calls = 1},
      {.role = PST_CHAT_TOOL, .has_content = true, .content = text, .name = text, .tool_call_id = PST_STR("call00001")},
      {.role = PST_CHAT_OTHER, .role_name = text, .has_content = true, .content = text},
      {.role = PST_CHAT_USER, .has_content = true, .parts = parts, .n_parts = PST_ARRAY_LEN(parts)},
  };
  pst_chat chat = {.messages = messages,
                   .n_messages = PST_ARRAY_LEN(messages),
                   .tools = pst_json_get(root, "tools"),
                   .documents = pst_json_get(root, "documents"),
                   .variables = pst_json_get(root, "variables"),
                   .add_generation_prompt = true};
  check_rendering(t, &chat);
  chat = (pst_chat){.messages = messages + 1, .n_messages = 1}; /* what nearly every template can show */
  check_rendering(t, &chat);
  pst_json_free(doc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  pst_str all = {(const char *)data, n};
  size_t cut = pst_str_find(all, PST_STR(SEPARATOR), 0);
  pst_str text = cut == SIZE_MAX ? all : (pst_str){all.data, cut};
  pst_str said = cut == SIZE_MAX ? PST_STR("") : (pst_str){all.data + cut + 5, n - cut - 5};
  pst_engine_template *t = NULL;
  pst_error err = PST_ERROR_INIT;
  int rc = pst_engine_template_create(text, &t, &err);
  if (rc) {
    check_error(rc, &err);
    return 0;
  }
  if (!could_write_users_text(text)) {
    pst_buf users = PST_BUF_INIT;
    put_users_text(said, &users);
    render(t, pst_buf_str(&users));
    pst_buf_done(&users);
  }
  pst_engine_template_free(t);
  return 0;
}
