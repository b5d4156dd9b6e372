/* Files to learn from: JSON lines in the shapes of the OpenAI API, each read as the request that it would be.
 *
 * Who takes a job and who does it read by the same function, so that what the one lets through the other can learn from. */
#include "wire/reader.h"

#include <inttypes.h>

/* An answer: a message of the assistant with a text. */
static bool is_answer(const pst_json *message) {
  return pst_str_is(pst_json_str(pst_json_get(message, "role")), "assistant") &&
         pst_json_typeof(pst_json_get(message, "content")) == PST_JSON_STRING;
}

/* The conversation's first n messages and the answer, as the body of a request. */
static int read_conversation(const pst_json *conversation, size_t n, const pst_json *answer,
                             pst_wire_request *ret_request, pst_error *err) {
  const pst_json *messages = pst_json_get(conversation, "messages"), *tools = pst_json_get(conversation, "tools");
  pst_buf body = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&body, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "model", "base");
  pst_json_key(&w, "messages");
  pst_json_begin_array(&w);
  for (pst_json_iter it = pst_json_iterate(messages); n-- && pst_json_next(&it);) pst_json_put_value(&w, it.value);
  pst_json_put_value(&w, answer);
  pst_json_end_array(&w);
  if (tools) {
    pst_json_key(&w, "tools");
    pst_json_put_value(&w, tools);
  }
  pst_json_end_object(&w);
  int code = pst_buf_status(&body) ? pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a line")
                                   : pst_wire_request_parse(PST_WIRE_CHAT, pst_buf_str(&body), ret_request, err);
  pst_buf_done(&body);
  return code;
}

static int read_supervised(const pst_json *root, pst_wire_tuning_line *ret_line, pst_error *err) {
  const pst_json *messages = pst_json_get(root, "messages");
  size_t n = pst_json_size(messages);
  if (n < 2 || !is_answer(pst_json_at(messages, n - 1)))
    return pst_error_set(err, PST_E_BAD_INPUT, NULL,
                         "needs \"messages\" that end with an answer of the assistant (a line for the method dpo has "
                         "\"input\" in their place)");
  return read_conversation(root, n - 1, pst_json_at(messages, n - 1), &ret_line->wanted, err);
}

/* The one answer of preferred_output or non_preferred_output; NULL: it has another shape. */
static const pst_json *output_of(const pst_json *root, const char *key, pst_error *err) {
  const pst_json *output = pst_json_get(root, key), *message = pst_json_at(output, 0);
  if (pst_json_size(output) == 1 && is_answer(message)) return message;
  (void)pst_error_set(err, PST_E_BAD_INPUT, NULL,
                      "needs \"%s\": an array of one message of the assistant, whose content is a text", key);
  return NULL;
}

static int read_preference(const pst_json *root, pst_wire_tuning_line *ret_line, pst_error *err) {
  const pst_json *input = pst_json_get(root, "input"), *messages = pst_json_get(input, "messages");
  size_t n = pst_json_size(messages);
  if (n == 0)
    return pst_error_set(err, PST_E_BAD_INPUT, NULL,
                         "needs \"input\" with \"messages\", which the two answers are answers to (a line for the "
                         "method supervised has \"messages\" alone)");
  const pst_json *wanted = output_of(root, "preferred_output", err);
  const pst_json *unwanted = wanted ? output_of(root, "non_preferred_output", err) : NULL;
  if (!unwanted) return PST_E_BAD_INPUT;
  if (pst_str_equal(pst_json_str(pst_json_get(wanted, "content")), pst_json_str(pst_json_get(unwanted, "content"))))
    return pst_error_set(err, PST_E_BAD_INPUT, NULL, "both answers are the same: neither can be preferred");
  int code = read_conversation(input, n, wanted, &ret_line->wanted, err);
  return code ? code : read_conversation(input, n, unwanted, &ret_line->unwanted, err);
}

static int read_line(pst_str text, pst_wire_tuning_method method,
                     int (*fn)(void *user, const pst_wire_tuning_line *line, pst_error *err), void *user,
                     pst_error *err) {
  pst_json_doc *doc = NULL;
  pst_wire_tuning_line line = {.wanted = {0}};
  if (pst_json_parse(text.data, text.n, "line", &doc, NULL))
    return pst_error_set(err, PST_E_BAD_INPUT, NULL, "not valid JSON");
  int code = method == PST_WIRE_TUNING_DPO ? read_preference(pst_json_root(doc), &line, err)
                                           : read_supervised(pst_json_root(doc), &line, err);
  if (!code) code = fn(user, &line, err);
  pst_wire_request_done(&line.wanted);
  pst_wire_request_done(&line.unwanted);
  pst_json_free(doc);
  return code;
}

int pst_wire_tuning_lines_each(pst_str file, pst_wire_tuning_method method,
                               int (*fn)(void *user, const pst_wire_tuning_line *line, pst_error *err), void *user,
                               int64_t *ret_n, pst_error *err) {
  int64_t n = 0, number = 0;
  int code = 0;
  for (size_t at = 0; at < file.n && !code;) {
    size_t end = PST_MIN(pst_str_find(file, PST_STR("\n"), at), file.n);
    pst_str one = pst_str_trim((pst_str){file.data + at, end - at});
    pst_error why = PST_ERROR_INIT;
    at = end + 1;
    number++;
    if (!one.n) continue;
    n++;
    code = read_line(one, method, fn, user, &why);
    if (code)
      pst_error_set(err, code, NULL, "line %" PRId64 ": %s%s%s", number, why.place, why.place[0] ? ": " : "",
                    why.message);
  }
  if (!code) *ret_n = n;
  return code;
}
