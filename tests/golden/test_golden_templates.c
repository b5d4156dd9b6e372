/* Real chat templates against what `transformers` makes of them: every template of the shared data with every conversation of
 * tests/golden/templates/conversations.json, byte for byte or error message for error message. expected.json comes from
 * tools/golden_templates.py. Also here: text of the conversation is never trusted, whatever it looks like. */
#include "engine/template.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/tokenizer.h"
#include "support/vocab.h"

#define GOLDEN "tests/golden/templates/"
enum { TEMPLATES_NEEDED = 48 };

static const pst_engine_template_token tokens[] = {
    {"bos_token", {"<s>", 3}}, {"eos_token", {"</s>", 4}}, {"unk_token", {"<unk>", 5}}, {"pad_token", {"<pad>", 5}}};
static const int64_t clock_unix_s = 1770091506; /* 2026-02-03 04:05:06 UTC */

typedef struct fixture {
  pst_json_doc *conversations, *expected;
  char folder[400];
} fixture;

static char *read_template(const fixture *f, pst_str name, size_t *ret_n) {
  char path[1024], *text;
  pst_error err = PST_ERROR_INIT;
  snprintf(path, sizeof path, "%s/%.*s", f->folder, (int)name.n, name.data);
  if (pst_file_read(path, 1 << 20, &text, ret_n, &err)) fail_msg("%s: %s", path, err.message);
  return text;
}

static int render(const pst_engine_template *t, const pst_json *variables, const pst_chat *chat,
                  pst_engine_template_output *out, pst_error *err) {
  pst_engine_template_input input = {.chat = chat,
                                     .variables = variables,
                                     .tokens = tokens,
                                     .n_tokens = PST_ARRAY_LEN(tokens),
                                     .now_unix_s = &clock_unix_s};
  return pst_engine_template_render(t, &input, out, err);
}

/* Renders one pair; 0 or the error's code with its message in err. */
static int render_pair(pst_str template_text, const pst_json *conversation, pst_engine_template_output *out,
                       pst_error *err) {
  pst_engine_template *t = NULL;
  int rc = pst_engine_template_create(template_text, &t, err);
  if (!rc) rc = render(t, conversation, NULL, out, err);
  pst_engine_template_free(t);
  return rc;
}

/* CPython gives up on deep recursion with words of its own; so does this, with others. */
static bool same_message(pst_str expected, const pst_error *err) {
  if (pst_str_is(expected, "maximum recursion depth exceeded")) return err->code == PST_E_LIMIT;
  size_t n = PST_MIN(expected.n, sizeof err->message - 5); /* longer ones are cut */
  return strncmp(err->message, expected.data, n) == 0 && (n < expected.n || err->message[n] == '\0');
}

static bool pair_passes(pst_str text, const pst_json *conversation, const pst_json *expected, bool *ret_unsupported,
                        char *why, size_t n_why) {
  pst_engine_template_output out = PST_ENGINE_TEMPLATE_OUTPUT_INIT;
  pst_error err = PST_ERROR_INIT;
  int rc = render_pair(text, conversation, &out, &err);
  bool ok;
  *ret_unsupported = rc == PST_E_UNSUPPORTED;
  if (pst_json_typeof(expected) == PST_JSON_STRING) {
    pst_str message = pst_json_str(expected);
    ok = rc && same_message(message, &err);
    if (!ok)
      snprintf(why, n_why, "expected the error \"%.*s\", got \"%.500s\"", (int)PST_MIN(message.n, 300u), message.data,
               rc ? err.message : "a text");
  } else {
    char hex[65];
    pst_sha256_hex(pst_buf_text(&out.text), out.text.n, hex);
    hex[16] = '\0';
    ok = !rc && (int64_t)out.text.n == pst_json_int(pst_json_at(expected, 0), -1) &&
         pst_str_is(pst_json_str(pst_json_at(expected, 1)), hex);
    if (!ok && rc)
      snprintf(why, n_why, "%s: %s", err.place, err.message);
    else if (!ok)
      snprintf(why, n_why, "%zu bytes, hash %s: not the expected text", out.text.n, hex);
  }
  const char *dump = getenv("PENSTOCK_TEMPLATE_DUMP"); /* a file for the text of the last pair that differed */
  if (!ok && !rc && dump) pst_file_write_atomic(dump, pst_buf_text(&out.text), out.text.n, NULL);
  pst_engine_template_output_done(&out);
  return ok;
}

static void real_templates_render_as_transformers_does(void **state) {
  const fixture *f = *state;
  if (!f) skip();
  int n_whole = 0, n_templates = 0;
  for (pst_json_iter it = pst_json_iterate(pst_json_root(f->expected)); pst_json_next(&it); n_templates++) {
    size_t n, n_ok = 0, n_pairs = 0, n_refused = 0;
    char *text = read_template(f, it.key, &n);
    for (pst_json_iter pair = pst_json_iterate(it.value); pst_json_next(&pair); n_pairs++) {
      char why[1088] = "";
      bool refused = false;
      const pst_json *conversation = pst_json_get_str(pst_json_root(f->conversations), pair.key);
      assert_non_null(conversation);
      bool ok = pair_passes((pst_str){text, n}, conversation, pair.value, &refused, why, sizeof why);
      n_ok += ok;
      n_refused += refused && !ok;
      if (!ok) print_message("    %.*s, %.*s: %s\n", (int)it.key.n, it.key.data, (int)pair.key.n, pair.key.data, why);
    }
    print_message("  %-60.*s %3zu of %zu%s\n", (int)it.key.n, it.key.data, n_ok, n_pairs,
                  n_refused ? ", the rest refused by name" : "");
    n_whole += n_ok == n_pairs;
    pst_free(text);
  }
  print_message("  %d of %d templates render as transformers does\n", n_whole, n_templates);
  assert_true(n_whole >= TEMPLATES_NEEDED);
}

/* ---- hostile text ----------------------------------------------------------------------------------------------- */

/* What looks like control text in any of the models these templates belong to. */
static const char *const controls[] = {
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|call|>",
    "<|return|>",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[THINK]",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<|tool_calls_section_begin|>",
    "<|turn>",
    "<turn|>",
    "[gMASK]",
    "<sop>",
    "<|observation|>",
    "<seed:bos>",
    "<seed:eos>",
    "<unk>",
    "<pad>",
    "<|im_user|>",
    "<|tool|>",
    "<|python_tag|>",
    "<bos>",
    "<eos>",
};

static char *hostile_text(const char *salt) {
  pst_buf b = PST_BUF_INIT;
  for (size_t i = 0; i < PST_ARRAY_LEN(controls); i++) pst_buf_printf(&b, "%s~%s~%s ", salt, controls[i], salt);
  return pst_buf_take(&b);
}

static bool is_trusted(const pst_engine_template_output *out, size_t start, size_t end) {
  for (size_t i = 0; i < out->n_spans; i++) {
    if (out->spans[i].trusted && out->spans[i].start < end && out->spans[i].end > start) return true;
  }
  return false;
}

/* Templates look for these in a message to part thinking from answer, drop them, and may write their own in the same place. */
static bool is_rewritten(pst_str control) { return pst_str_is(control, "<think>") || pst_str_is(control, "</think>"); }

/* Every salt in the text stands in data, and so does the control text between two salts. Case and quotes may have changed. */
static size_t check_untrusted(const pst_engine_template_output *out, const char *what) {
  static const char *const salts[] = {"zqx", "ZQX", "Zqx"};
  size_t found = 0;
  for (size_t s = 0; s < PST_ARRAY_LEN(salts); s++) {
    pst_str text = pst_buf_str(&out->text), salt = pst_str_from(salts[s]);
    for (size_t at = 0; (at = pst_str_find(text, salt, at)) != SIZE_MAX; at += salt.n) {
      size_t end = at + salt.n;
      if (end < text.n && text.data[end] == '~') { /* up to the closing salt */
        size_t close = pst_str_find(text, PST_STR("~"), end + 1);
        pst_str control = {text.data + end + 1, close == SIZE_MAX ? 0 : close - end - 1};
        if (control.n && control.n < 64 && !is_rewritten(pst_str_trim(control))) end = close;
      }
      if (is_trusted(out, at, end)) fail_msg("%s: data came out trusted: %.*s", what, (int)(end - at), text.data + at);
      found++;
    }
  }
  return found;
}

static void check_spans(const pst_engine_template_output *out) {
  size_t at = 0;
  for (size_t i = 0; i < out->n_spans; i++) {
    assert_int_equal(out->spans[i].start, at);
    assert_true(out->spans[i].end > at);
    if (i) assert_true(out->spans[i].trusted != out->spans[i - 1].trusted);
    at = out->spans[i].end;
  }
  assert_int_equal(at, out->text.n);
}

/* A token for each byte, and every control text above as a control token. */
static void fill_vocabulary(pst_engine_gguf_writer *w) {
  enum { N = 256 + PST_ARRAY_LEN(controls) };
  static char texts[256][5];
  static pst_str all[N];
  static int32_t types[N];
  for (unsigned b = 0, odd = 0; b < 256; b++) { /* as byte-level BPE spells them */
    bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    all[b] = (pst_str){texts[b], pst_utf8_put(itself ? b : 0x100 + odd, texts[b])};
    odd += !itself;
    types[b] = 1;
  }
  for (size_t i = 0; i < PST_ARRAY_LEN(controls); i++) {
    all[256 + i] = pst_str_from(controls[i]);
    types[256 + i] = 3;
  }
  pst_engine_gguf_writer_put_str(w, "tokenizer.ggml.model", PST_STR("gpt2"));
  pst_engine_gguf_writer_put_str(w, "tokenizer.ggml.pre", PST_STR("gpt-2"));
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.tokens", all, N);
  pst_engine_gguf_writer_put_array(w, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_I32, types, N);
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.merges", NULL, 0);
}

/* A template's own control text never stands between two ~, the hostile ones always do. Returns how many control tokens there are. */
static size_t check_tokens(const pst_engine_tokenizer *t, const pst_engine_template_output *out, const char *what) {
  pst_engine_span *spans = pst_calloc(out->n_spans + 1, sizeof *spans);
  pst_engine_tokens encoded = {0};
  size_t n_control = 0;
  assert_non_null(spans);
  for (size_t i = 0; i < out->n_spans; i++)
    spans[i] =
        (pst_engine_span){{pst_buf_text(&out->text) + out->spans[i].start, out->spans[i].end - out->spans[i].start},
                          out->spans[i].trusted};
  assert_int_equal(pst_engine_tokenizer_encode_spans(t, spans, out->n_spans, 0, &encoded, NULL), 0);
  for (size_t i = 0; i < encoded.n; i++) {
    if (encoded.ids[i] < 256) continue;
    const char *control = controls[encoded.ids[i] - 256];
    n_control++;
    if (i && i + 1 < encoded.n && encoded.ids[i - 1] == '~' && encoded.ids[i + 1] == '~' &&
        !is_rewritten(pst_str_from(control)))
      fail_msg("%s: data formed the control token %s", what, control);
  }
  pst_engine_tokens_done(&encoded);
  pst_free(spans);
  return n_control;
}

/* A conversation with hostile text wherever a caller can put text. %s: the text as a JSON string. */
static const char hostile_shape[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": %1$s},"
    " {\"role\": \"user\", \"name\": %1$s, \"content\": %1$s},"
    " {\"role\": \"assistant\", \"content\": %1$s, \"reasoning_content\": %1$s, \"tool_calls\": [{\"id\": \"call00001\", \"type\": \"function\","
    "  \"function\": {\"name\": %1$s, \"arguments\": {\"city\": %1$s, \"list\": [%1$s]}}}]},"
    " {\"role\": \"tool\", \"tool_call_id\": \"call00001\", \"name\": %1$s, \"content\": %1$s},"
    " {\"role\": \"assistant\", \"content\": %1$s, \"reasoning_content\": %1$s},"
    " {\"role\": \"user\", \"content\": %1$s}],"
    " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": %1$s, \"description\": %1$s, \"parameters\": {\"type\": \"object\","
    "  \"properties\": {\"city\": {\"type\": \"string\", \"description\": %1$s, \"enum\": [%1$s, \"b\"]}}, \"required\": [\"city\"]}}}],"
    " \"documents\": [{\"title\": %1$s, \"text\": %1$s}], \"functions\": %1$s, \"datetime\": %1$s,"
    " \"add_generation_prompt\": true%2$s}";
static const char hostile_plain[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": %1$s}, {\"role\": \"assistant\", \"content\": %1$s},"
    " {\"role\": \"user\", \"content\": %1$s}], \"add_generation_prompt\": true%2$s}";

static pst_json_doc *hostile_conversation(bool plain) {
  char *text = hostile_text("zqx");
  pst_buf quoted = PST_BUF_INIT, all = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&quoted, false);
  pst_json_put_cstr(&w, text);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  pst_buf_printf(&all, plain ? hostile_plain : hostile_shape, pst_buf_text(&quoted), "");
#pragma GCC diagnostic pop
  pst_json_doc *doc = NULL;
  pst_error err = PST_ERROR_INIT;
  if (pst_json_parse(pst_buf_text(&all), all.n, "hostile", &doc, &err)) fail_msg("%s: %s", err.place, err.message);
  pst_buf_done(&quoted);
  pst_buf_done(&all);
  pst_free(text);
  return doc;
}

static void hostile_text_is_never_trusted(void **state) {
  const fixture *f = *state;
  if (!f) skip();
  size_t n_templates = 0, n_rendered = 0, n_control = 0;
  pst_json_doc *docs[] = {hostile_conversation(false), hostile_conversation(true)};
  pst_engine_tokenizer *tokenizer = test_tokenizer_make(fill_vocabulary);
  for (pst_json_iter it = pst_json_iterate(pst_json_root(f->expected)); pst_json_next(&it); n_templates++) {
    size_t n;
    bool rendered = false;
    char *text = read_template(f, it.key, &n), name[200];
    snprintf(name, sizeof name, "%.*s", (int)it.key.n, it.key.data);
    for (size_t i = 0; i < PST_ARRAY_LEN(docs); i++) {
      pst_engine_template_output out = PST_ENGINE_TEMPLATE_OUTPUT_INIT;
      pst_error err = PST_ERROR_INIT;
      if (!render_pair((pst_str){text, n}, pst_json_root(docs[i]), &out, &err)) {
        check_spans(&out);
        rendered |= check_untrusted(&out, name) > 0;
        n_control += check_tokens(tokenizer, &out, name);
      }
      pst_engine_template_output_done(&out);
    }
    if (!rendered) print_message("  %s rendered none of the hostile conversations\n", name);
    n_rendered += rendered;
    pst_free(text);
  }
  print_message(
      "  hostile text came through %zu of %zu templates, untrusted in all; %zu control tokens, all the templates'\n",
      n_rendered, n_templates, n_control);
  assert_true(n_control > n_templates); /* the templates' own are there */
  pst_engine_tokenizer_free(tokenizer);
  assert_true(n_rendered + 1 >= n_templates);
  for (size_t i = 0; i < PST_ARRAY_LEN(docs); i++) pst_json_free(docs[i]);
}

/* The same conversation as structs of chat.h must render to the same text. */
static void structs_and_json_agree(void **state);

static int set_up(void **state) {
  const char *data = getenv("PENSTOCK_TEST_DATA");
  fixture *f = pst_calloc(1, sizeof *f);
  pst_error err = PST_ERROR_INIT;
  snprintf(f->folder, sizeof f->folder, "%s/templates", data ? data : "../shared/data");
  *state = NULL;
  if (!pst_dir_exists(f->folder)) {
    print_message("skipped: no shared data at %s (PENSTOCK_TEST_DATA)\n", f->folder);
    pst_free(f);
    return 0;
  }
  if (pst_json_parse_file(GOLDEN "conversations.json", 1 << 24, &f->conversations, &err) ||
      pst_json_parse_file(GOLDEN "expected.json", 1 << 24, &f->expected, &err)) {
    print_message("%s: %s\n", err.place, err.message);
    return -1;
  }
  *state = f;
  return 0;
}

static int tear_down(void **state) {
  fixture *f = *state;
  if (f) {
    pst_json_free(f->conversations);
    pst_json_free(f->expected);
  }
  pst_free(f);
  return 0;
}

/* ---- the same through pst_chat ---------------------------------------------------------------------------------- */

static void fill_calls(pst_arena *arena, const pst_json *json, pst_chat_message *m) {
  pst_chat_tool_call *calls = pst_arena_calloc(arena, pst_json_size(json) + 1, sizeof *calls);
  for (pst_json_iter it = pst_json_iterate(json); pst_json_next(&it);) {
    const pst_json *function = pst_json_get(it.value, "function"), *arguments = pst_json_get(function, "arguments");
    bool text = pst_json_typeof(arguments) == PST_JSON_STRING;
    calls[m->n_tool_calls++] = (pst_chat_tool_call){.id = pst_json_str(pst_json_get(it.value, "id")),
                                                    .name = pst_json_str(pst_json_get(function, "name")),
                                                    .arguments = pst_json_str(arguments),
                                                    .arguments_json = text ? NULL : arguments};
  }
  m->tool_calls = calls;
}

static void fill_message(pst_arena *arena, const pst_json *json, pst_chat_message *m) {
  pst_str role = pst_json_str(pst_json_get(json, "role"));
  const pst_json *content = pst_json_get(json, "content"), *reasoning = pst_json_get(json, "reasoning_content");
  m->role = pst_chat_role_from(role);
  m->role_name = role;
  m->has_content = pst_json_typeof(content) > PST_JSON_NULL;
  m->content = pst_json_str(content);
  if (pst_json_typeof(content) == PST_JSON_ARRAY) {
    pst_chat_part *parts = pst_arena_calloc(arena, pst_json_size(content) + 1, sizeof *parts);
    for (pst_json_iter it = pst_json_iterate(content); pst_json_next(&it);) {
      bool text = pst_str_is(pst_json_str(pst_json_get(it.value, "type")), "text");
      parts[m->n_parts++] =
          text ? (pst_chat_part){.kind = PST_CHAT_PART_TEXT, .text = pst_json_str(pst_json_get(it.value, "text"))}
               : (pst_chat_part){.kind = PST_CHAT_PART_JSON, .json = it.value};
    }
    m->parts = parts;
  }
  m->has_reasoning = reasoning != NULL;
  m->reasoning = pst_json_str(reasoning);
  m->name = pst_json_str(pst_json_get(json, "name"));
  m->tool_call_id = pst_json_str(pst_json_get(json, "tool_call_id"));
  if (pst_json_get(json, "tool_calls")) fill_calls(arena, pst_json_get(json, "tool_calls"), m);
  m->extra = json;
}

static pst_chat make_chat(pst_arena *arena, const pst_json *conversation) {
  const pst_json *messages = pst_json_get(conversation, "messages");
  pst_chat_message *list = pst_arena_calloc(arena, pst_json_size(messages) + 1, sizeof *list);
  pst_chat chat = {.messages = list,
                   .tools = pst_json_get(conversation, "tools"),
                   .documents = pst_json_get(conversation, "documents"),
                   .variables = conversation,
                   .add_generation_prompt = pst_json_bool(pst_json_get(conversation, "add_generation_prompt"), false)};
  for (pst_json_iter it = pst_json_iterate(messages); pst_json_next(&it);)
    fill_message(arena, it.value, &list[chat.n_messages++]);
  return chat;
}

static bool same_spans(const pst_engine_template_output *a, const pst_engine_template_output *b) {
  if (a->n_spans != b->n_spans) return false;
  for (size_t i = 0; i < a->n_spans; i++) {
    if (a->spans[i].end != b->spans[i].end || a->spans[i].trusted != b->spans[i].trusted) return false;
  }
  return true;
}

static void structs_and_json_agree(void **state) {
  const fixture *f = *state;
  if (!f) skip();
  size_t n_compared = 0, n_same = 0;
  pst_arena *arena = pst_arena_create();
  for (pst_json_iter it = pst_json_iterate(pst_json_root(f->expected)); pst_json_next(&it);) {
    size_t n;
    char *text = read_template(f, it.key, &n);
    pst_engine_template *t = NULL;
    pst_error err = PST_ERROR_INIT;
    if (pst_engine_template_create((pst_str){text, n}, &t, &err)) {
      pst_free(text);
      continue;
    }
    for (pst_json_iter k = pst_json_iterate(pst_json_root(f->conversations)); pst_json_next(&k);) {
      pst_engine_template_output a = PST_ENGINE_TEMPLATE_OUTPUT_INIT, b = PST_ENGINE_TEMPLATE_OUTPUT_INIT;
      pst_chat chat = make_chat(arena, k.value);
      pst_error err_a = PST_ERROR_INIT, err_b = PST_ERROR_INIT;
      int rc_a = render(t, k.value, NULL, &a, &err_a), rc_b = render(t, NULL, &chat, &b, &err_b);
      bool same =
          rc_a == rc_b && (rc_a ? !strcmp(err_a.message, err_b.message)
                                : pst_str_equal(pst_buf_str(&a.text), pst_buf_str(&b.text)) && same_spans(&a, &b));
      if (!same)
        print_message("    %.*s, %.*s: JSON \"%s\", structs \"%s\"\n", (int)it.key.n, it.key.data, (int)k.key.n,
                      k.key.data, err_a.message, err_b.message);
      n_compared++;
      n_same += same;
      pst_engine_template_output_done(&a);
      pst_engine_template_output_done(&b);
      pst_arena_reset(arena);
    }
    pst_engine_template_free(t);
    pst_free(text);
  }
  pst_arena_free(arena);
  print_message("  %zu of %zu conversations render alike from structs\n", n_same, n_compared);
  assert_int_equal(n_same, n_compared);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(real_templates_render_as_transformers_does),
      cmocka_unit_test(hostile_text_is_never_trusted),
      cmocka_unit_test(structs_and_json_agree),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
