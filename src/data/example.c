/* Examples: what a record says, and how each format writes it. Reading files is import.c's. */
#include "data/data.h"

#include <string.h>

static const char *const FORMATS[PST_DATA_FORMAT_COUNT] = {"auto", "openai", "chat", "sharegpt", "pairs", "csv"};

const char *pst_data_format_name(pst_data_format format) {
  return (unsigned)format < PST_DATA_FORMAT_COUNT ? FORMATS[format] : "unknown";
}

bool pst_data_format_from(pst_str name, pst_data_format *ret_format) {
  for (int i = 0; i < (int)PST_DATA_FORMAT_COUNT; i++) {
    if (!pst_str_is(name, FORMATS[i])) continue;
    *ret_format = (pst_data_format)i;
    return true;
  }
  return false;
}

/* ---- reading a record ---- */

int pst_data_example_of(const pst_json *input, const pst_json *output, pst_str correction,
                        pst_data_example *ret_example) {
  pst_data_example e = {.messages = pst_json_get(input, "messages"), .tools = pst_json_get(input, "tools")};
  if (pst_json_size(e.messages) == 0) {
    e.messages = NULL;
    e.prompt = pst_json_str(pst_json_get(input, "prompt"));
  }
  const pst_json *choice = pst_json_at(pst_json_get(output, "choices"), 0);
  e.answer = correction.data ? correction : pst_json_str(pst_json_get(choice, "text"));
  if (!correction.data) e.tool_calls = pst_json_get(choice, "tool_calls");
  if (pst_json_size(e.tool_calls) == 0) e.tool_calls = NULL;
  if (pst_json_size(e.tools) == 0) e.tools = NULL;
  if ((!e.messages && e.prompt.n == 0) || (e.answer.n == 0 && !e.tool_calls)) return PST_E_NO_DATA;
  *ret_example = e;
  return 0;
}

bool pst_data_message_text(const pst_json *message, pst_buf *out) {
  const pst_json *content = pst_json_get(message, "content");
  size_t before = out->n;
  switch (pst_json_typeof(content)) {
  case PST_JSON_NONE:
  case PST_JSON_NULL: return true;
  case PST_JSON_STRING: pst_buf_append_str(out, pst_json_str(content)); return true;
  case PST_JSON_ARRAY: break;
  default: return false;
  }
  for (pst_json_iter it = pst_json_iterate(content); pst_json_next(&it);) {
    if (!pst_str_is(pst_json_str(pst_json_get(it.value, "type")), "text")) {
      out->n = before;
      return false;
    }
    pst_buf_append_str(out, pst_json_str(pst_json_get(it.value, "text")));
  }
  return true;
}

bool pst_data_last_user_text(const pst_data_example *example, pst_buf *out) {
  if (!example->messages) {
    pst_buf_append_str(out, example->prompt);
    return example->prompt.n > 0;
  }
  const pst_json *last = NULL;
  for (pst_json_iter it = pst_json_iterate(example->messages); pst_json_next(&it);)
    if (pst_str_is(pst_json_str(pst_json_get(it.value, "role")), "user")) last = it.value;
  return last && pst_data_message_text(last, out);
}

/* ---- writing ---- */

static void put_messages(pst_json_writer *w, const pst_data_example *e) {
  if (e->messages) {
    for (pst_json_iter it = pst_json_iterate(e->messages); pst_json_next(&it);) pst_json_put_value(w, it.value);
    return;
  }
  pst_json_begin_object(w);
  pst_json_member_str(w, "role", PST_STR("user"));
  pst_json_member_str(w, "content", e->prompt);
  pst_json_end_object(w);
}

static void put_answer(pst_json_writer *w, const pst_data_example *e) {
  pst_json_begin_object(w);
  pst_json_member_str(w, "role", PST_STR("assistant"));
  pst_json_key(w, "content");
  if (e->answer.n || !e->tool_calls)
    pst_json_put_str(w, e->answer);
  else
    pst_json_put_null(w);
  if (e->tool_calls) {
    pst_json_key(w, "tool_calls");
    pst_json_put_value(w, e->tool_calls);
  }
  pst_json_end_object(w);
}

static void put_tools(pst_json_writer *w, const pst_data_example *e) {
  if (!e->tools) return;
  pst_json_key(w, "tools");
  pst_json_put_value(w, e->tools);
}

static void write_openai(const pst_data_example *e, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "messages");
  pst_json_begin_array(&w);
  put_messages(&w, e);
  put_answer(&w, e);
  pst_json_end_array(&w);
  put_tools(&w, e);
  pst_json_end_object(&w);
}

static void write_chat(const pst_data_example *e, const pst_store_request *r, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "request");
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "model", r->workload.n ? r->workload : r->model);
  pst_json_key(&w, "messages");
  pst_json_begin_array(&w);
  put_messages(&w, e);
  pst_json_end_array(&w);
  put_tools(&w, e);
  if (r->subject.n) pst_json_member_str(&w, "safety_identifier", r->subject);
  pst_json_end_object(&w);
  pst_json_key(&w, "response");
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "id", r->completion_id);
  pst_json_member_str(&w, "object", PST_STR("chat.completion"));
  pst_json_member_int(&w, "created", r->time_ms / 1000);
  pst_json_member_str(&w, "model", r->model);
  pst_json_key(&w, "choices");
  pst_json_begin_array(&w);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "index", 0);
  pst_json_key(&w, "message");
  put_answer(&w, e);
  pst_json_member_str(&w, "finish_reason", e->tool_calls ? PST_STR("tool_calls") : r->finish);
  pst_json_end_object(&w);
  pst_json_end_array(&w);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
}

static void put_turn(pst_json_writer *w, const char *from, pst_str value) {
  pst_json_begin_object(w);
  pst_json_member_str(w, "from", pst_str_from(from));
  pst_json_member_str(w, "value", value);
  pst_json_end_object(w);
}

static const char *sharegpt_role(pst_str role) {
  if (pst_str_is(role, "system") || pst_str_is(role, "developer")) return "system";
  if (pst_str_is(role, "user")) return "human";
  return pst_str_is(role, "assistant") ? "gpt" : NULL;
}

/* Tool calls, tools and parts that are no text have no place in it. */
static bool write_sharegpt(const pst_data_example *e, const pst_store_request *r, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_buf text = PST_BUF_INIT;
  bool ok = !e->tool_calls && !e->tools;
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "id", r->completion_id);
  pst_json_key(&w, "conversations");
  pst_json_begin_array(&w);
  if (!e->messages) put_turn(&w, "human", e->prompt);
  for (pst_json_iter it = pst_json_iterate(e->messages); ok && pst_json_next(&it);) {
    const char *from = sharegpt_role(pst_json_str(pst_json_get(it.value, "role")));
    pst_buf_clear(&text);
    ok = from && !pst_json_get(it.value, "tool_calls") && pst_data_message_text(it.value, &text);
    if (ok) put_turn(&w, from, pst_buf_str(&text));
  }
  put_turn(&w, "gpt", e->answer);
  pst_json_end_array(&w);
  pst_json_end_object(&w);
  if (pst_buf_status(&text)) out->failed = true;
  pst_buf_done(&text);
  return ok;
}

const char pst_data_csv_head[] = "id,system,input,answer,subject\r\n";

void pst_data_csv_put(pst_str text, pst_buf *out) {
  bool quoted = false;
  for (size_t i = 0; i < text.n && !quoted; i++) {
    char c = text.data[i];
    quoted = c == ',' || c == '"' || c == '\r' || c == '\n';
  }
  if (text.n && (text.data[0] == ' ' || text.data[text.n - 1] == ' ')) quoted = true;
  if (!quoted) {
    pst_buf_append_str(out, text);
    return;
  }
  pst_buf_putc(out, '"');
  for (size_t i = 0; i < text.n; i++) {
    if (text.data[i] == '"') pst_buf_putc(out, '"');
    pst_buf_putc(out, text.data[i]);
  }
  pst_buf_putc(out, '"');
}

/* A system message or none, then one of the user. */
static bool write_csv(const pst_data_example *e, const pst_store_request *r, pst_buf *out) {
  pst_buf system = PST_BUF_INIT, input = PST_BUF_INIT;
  bool ok = !e->tool_calls && !e->tools;
  size_t n = pst_json_size(e->messages);
  const pst_json *first = pst_json_at(e->messages, 0);
  const char *role = n ? sharegpt_role(pst_json_str(pst_json_get(first, "role"))) : NULL;
  if (n == 2) ok = ok && role && !strcmp(role, "system") && pst_data_message_text(first, &system);
  const pst_json *last = n == 2 ? pst_json_at(e->messages, 1) : first;
  if (n) ok = ok && n <= 2 && pst_str_is(pst_json_str(pst_json_get(last, "role")), "user");
  if (ok && n) ok = pst_data_message_text(last, &input);
  if (!n) pst_buf_append_str(&input, e->prompt);
  const pst_str cells[] = {r->completion_id, pst_buf_str(&system), pst_buf_str(&input), e->answer, r->subject};
  for (size_t i = 0; i < PST_ARRAY_LEN(cells) && ok; i++) {
    if (i) pst_buf_putc(out, ',');
    pst_data_csv_put(cells[i], out);
  }
  if (ok) pst_buf_putc(out, '\r');
  if (pst_buf_status(&system) || pst_buf_status(&input)) out->failed = true;
  pst_buf_done(&system);
  pst_buf_done(&input);
  return ok;
}

bool pst_data_example_write(const pst_data_example *example, const pst_store_request *record, pst_data_format format,
                            pst_buf *out) {
  size_t before = out->n;
  bool ok = true;
  switch (format) {
  case PST_DATA_OPENAI: write_openai(example, out); break;
  case PST_DATA_CHAT: write_chat(example, record, out); break;
  case PST_DATA_SHAREGPT: ok = write_sharegpt(example, record, out); break;
  case PST_DATA_CSV: ok = write_csv(example, record, out); break;
  default: ok = false;
  }
  if (!ok) out->n = before;
  return ok;
}
