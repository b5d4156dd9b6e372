/* Requests of clients: the top-level members of /v1/chat/completions and /v1/completions, and feedback. Messages and tools are read in
 * messages.c. Ranges are the API's; what a model or plan makes of a value is decided by whoever serves it. */
#include <float.h>
#include <string.h>

#include "wire/reader.h"

static int no_memory(const pst_wire_reader *r) {
  return pst_wire_fail(r, PST_E_NOMEM, NULL, "out of memory for the request");
}

/* ---- members both kinds share --------------------------------------------------------------------------------------------- */

static int read_sampling(const pst_wire_reader *r, pst_wire_request *q) {
  int64_t top_k = 0, n = 1, seed = 0;
  int rc = pst_wire_read_double(r, "temperature", 0, 2, &q->has_temperature, &q->temperature);
  if (!rc) rc = pst_wire_read_double(r, "top_p", 0, 1, &q->has_top_p, &q->top_p);
  if (!rc) rc = pst_wire_read_double(r, "min_p", 0, 1, &q->has_min_p, &q->min_p);
  if (!rc) rc = pst_wire_read_int(r, "top_k", -1, INT32_MAX, &q->has_top_k, &top_k);
  if (!rc) rc = pst_wire_read_int(r, "n", 1, PST_WIRE_MAX_N, NULL, &n);
  if (!rc) rc = pst_wire_read_int(r, "seed", INT64_MIN, INT64_MAX, &q->has_seed, &seed);
  if (!rc) rc = pst_wire_read_double(r, "presence_penalty", -2, 2, &q->has_presence_penalty, &q->presence_penalty);
  if (!rc) rc = pst_wire_read_double(r, "frequency_penalty", -2, 2, &q->has_frequency_penalty, &q->frequency_penalty);
  if (!rc)
    rc = pst_wire_read_double(r, "repetition_penalty", 0, 10, &q->has_repetition_penalty, &q->repetition_penalty);
  if (rc) return rc;
  if (q->has_repetition_penalty && q->repetition_penalty < 1e-3)
    return pst_wire_fail(r, PST_E_BAD_INPUT, "repetition_penalty", "must be greater than 0; 1 is off");
  q->top_k = (int32_t)PST_MAX(top_k, 0);
  q->n = (int)n;
  q->seed = (uint64_t)seed;
  return 0;
}

static int read_stop(const pst_wire_reader *r, pst_wire_request *q) {
  const pst_json *v = pst_wire_get(r, "stop");
  if (!v) return 0;
  bool single = pst_json_typeof(v) == PST_JSON_STRING;
  if (!single && pst_json_typeof(v) != PST_JSON_ARRAY)
    return pst_wire_fail_type(r, "stop", "a string or an array of strings", v);
  size_t n = single ? 1 : pst_json_size(v);
  if (n > PST_WIRE_MAX_STOP)
    return pst_wire_fail(r, PST_E_LIMIT, "stop", "%zu stop strings are more than the limit of %d", n,
                         PST_WIRE_MAX_STOP);
  pst_str *list = pst_arena_calloc(q->arena, n + 1, sizeof *list);
  if (!list) return no_memory(r);
  pst_json_iter it = pst_json_iterate(v);
  for (size_t i = 0; i < n; i++) {
    const pst_json *item = single ? v : pst_json_next(&it) ? it.value : NULL;
    if (pst_json_typeof(item) != PST_JSON_STRING)
      return pst_wire_fail_type(r, "stop", "a string or an array of strings", item);
    list[i] = pst_json_str(item);
    if (list[i].n == 0) return pst_wire_fail(r, PST_E_BAD_INPUT, "stop", "a stop string must not be empty");
    if (list[i].n > PST_WIRE_MAX_STOP_BYTES)
      return pst_wire_fail(r, PST_E_LIMIT, "stop", "a stop string of %zu bytes is longer than the limit of %d",
                           list[i].n, PST_WIRE_MAX_STOP_BYTES);
  }
  q->has_stop = n > 0;
  q->stop = list;
  q->n_stop = n;
  return 0;
}

static int read_bias(const pst_wire_reader *r, pst_wire_request *q) {
  const pst_json *v = pst_wire_get(r, "logit_bias");
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_OBJECT)
    return pst_wire_fail_type(r, "logit_bias", "an object of token ids and numbers", v);
  size_t n = pst_json_size(v), i = 0;
  if (n > PST_WIRE_MAX_BIAS)
    return pst_wire_fail(r, PST_E_LIMIT, "logit_bias", "%zu entries are more than the limit of %d", n,
                         PST_WIRE_MAX_BIAS);
  pst_wire_bias *list = pst_arena_calloc(q->arena, n + 1, sizeof *list);
  if (!list) return no_memory(r);
  pst_json_iter it = pst_json_iterate(v);
  while (pst_json_next(&it)) {
    int64_t token;
    if (pst_parse_i64(it.key, 0, INT32_MAX, &token))
      return pst_wire_fail(r, PST_E_BAD_INPUT, "logit_bias", "'%.*s' is not a token id", (int)PST_MIN(it.key.n, 40u),
                           it.key.data);
    if (pst_json_typeof(it.value) != PST_JSON_NUMBER)
      return pst_wire_fail_type(r, "logit_bias", "an object of token ids and numbers", it.value);
    double bias = pst_json_double(it.value, 0);
    if (!(bias >= -100 && bias <= 100))
      return pst_wire_fail(r, PST_E_BAD_INPUT, "logit_bias", "%g is out of range: -100 to 100", bias);
    list[i++] = (pst_wire_bias){(int32_t)token, (float)bias};
  }
  q->bias = list;
  q->n_bias = n;
  return 0;
}

static int read_stream(const pst_wire_reader *r, pst_wire_request *q) {
  int rc = pst_wire_read_bool(r, "stream", &q->stream);
  if (rc) return rc;
  const pst_json *options = pst_wire_get(r, "stream_options");
  if (!options) return 0;
  if (pst_json_typeof(options) != PST_JSON_OBJECT) return pst_wire_fail_type(r, "stream_options", "an object", options);
  if (!q->stream) return pst_wire_fail(r, PST_E_BAD_INPUT, "stream_options", "is only allowed when stream is true");
  pst_wire_reader inner = pst_wire_reader_into(r, "stream_options", -1, options);
  return pst_wire_read_bool(&inner, "include_usage", &q->include_usage);
}

static int read_metadata(const pst_wire_reader *r, pst_wire_request *q) {
  const pst_json *v = pst_wire_get(r, "metadata");
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_OBJECT) return pst_wire_fail_type(r, "metadata", "an object of strings", v);
  pst_json_iter it = pst_json_iterate(v);
  while (pst_json_next(&it)) {
    if (pst_json_typeof(it.value) != PST_JSON_STRING)
      return pst_wire_fail_type(r, "metadata", "an object of strings", it.value);
  }
  q->metadata = v;
  return 0;
}

static int read_max_tokens(const pst_wire_reader *r, pst_wire_request *q) {
  int64_t value = 0;
  bool newer = false;
  int64_t min = q->kind == PST_WIRE_TEXT ? 0 : 1;
  int rc = pst_wire_read_int(r, "max_tokens", min, INT32_MAX, &q->has_max_tokens, &value);
  if (!rc && q->kind == PST_WIRE_CHAT)
    rc = pst_wire_read_int(r, "max_completion_tokens", min, INT32_MAX, &newer, &value);
  if (rc) return rc;
  q->newer_max_tokens = newer;
  q->has_max_tokens = q->has_max_tokens || newer; /* where both are given the newer name wins */
  q->max_tokens = (int32_t)value;
  return 0;
}

static int read_shared(const pst_wire_reader *r, pst_wire_request *q) {
  int rc = pst_wire_read_str(r, "model", 256, &q->model);
  if (rc) return rc;
  if (!q->model.n) return pst_wire_fail_type(r, "model", "the name of a model", NULL);
  rc = read_max_tokens(r, q);
  if (!rc) rc = read_sampling(r, q);
  if (!rc) rc = read_stop(r, q);
  if (!rc) rc = read_bias(r, q);
  if (!rc) rc = read_stream(r, q);
  if (!rc) rc = pst_wire_read_str(r, "user", 512, &q->user);
  if (!rc) rc = pst_wire_read_str(r, "safety_identifier", 512, &q->safety_identifier);
  return rc ? rc : read_metadata(r, q);
}

/* ---- chat ------------------------------------------------------------------------------------------------------------------ */

static int read_chat_logprobs(const pst_wire_reader *r, pst_wire_request *q) {
  bool wanted = false, has_top = false;
  int64_t top = 0;
  int rc = pst_wire_read_bool(r, "logprobs", &wanted);
  if (!rc) rc = pst_wire_read_int(r, "top_logprobs", 0, PST_WIRE_MAX_TOP_LOGPROBS, &has_top, &top);
  if (rc) return rc;
  if (has_top && !wanted)
    return pst_wire_fail(r, PST_E_BAD_INPUT, "top_logprobs", "is only allowed when logprobs is true");
  q->n_logprobs = wanted ? (int)top : -1;
  return 0;
}

static int read_format(const pst_wire_reader *r, pst_wire_request *q) {
  const pst_json *v = pst_wire_get(r, "response_format");
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_OBJECT) return pst_wire_fail_type(r, "response_format", "an object", v);
  pst_wire_reader inner = pst_wire_reader_into(r, "response_format", -1, v);
  pst_str type = {NULL, 0};
  int rc = pst_wire_read_str(&inner, "type", 64, &type);
  if (rc) return rc;
  if (pst_str_is(type, "text")) return 0;
  if (pst_str_is(type, "json_object")) {
    q->format = PST_WIRE_FORMAT_JSON_OBJECT;
    return 0;
  }
  if (!pst_str_is(type, "json_schema"))
    return pst_wire_fail(&inner, PST_E_BAD_INPUT, "type", "expected text, json_object or json_schema");
  const pst_json *holder = pst_wire_get(&inner, "json_schema");
  if (pst_json_typeof(holder) != PST_JSON_OBJECT) return pst_wire_fail_type(&inner, "json_schema", "an object", holder);
  pst_wire_reader deep = pst_wire_reader_into(&inner, "json_schema", -1, holder);
  q->format = PST_WIRE_FORMAT_JSON_SCHEMA;
  rc = pst_wire_read_str(&deep, "name", 64, &q->schema_name);
  if (!rc) rc = pst_wire_read_bool(&deep, "strict", &q->schema_strict);
  if (rc) return rc;
  if (!q->schema_name.n) return pst_wire_fail_type(&deep, "name", "a string", NULL);
  q->schema = pst_wire_get(&deep, "schema");
  if (pst_json_typeof(q->schema) != PST_JSON_OBJECT) return pst_wire_fail_type(&deep, "schema", "an object", q->schema);
  return 0;
}

static int refuse_chat_extras(const pst_wire_reader *r) {
  static const char *const refused[] = {"functions", "function_call", "audio", "web_search_options"};
  for (size_t i = 0; i < PST_ARRAY_LEN(refused); i++) {
    if (pst_wire_get(r, refused[i])) return pst_wire_fail(r, PST_E_UNSUPPORTED, refused[i], "is not supported here");
  }
  pst_json_iter it = pst_json_iterate(pst_wire_get(r, "modalities"));
  while (pst_json_next(&it)) {
    if (!pst_str_is(pst_json_str(it.value), "text"))
      return pst_wire_fail(r, PST_E_UNSUPPORTED, "modalities", "only 'text' is supported here");
  }
  return 0;
}

static int read_chat(const pst_wire_reader *r, pst_wire_request *q) {
  int rc = pst_wire_read_messages(r, q);
  if (!rc) rc = pst_wire_read_tools(r, q);
  if (!rc) rc = read_chat_logprobs(r, q);
  if (!rc) rc = read_format(r, q);
  if (!rc) rc = pst_wire_read_str(r, "reasoning_effort", 32, &q->reasoning_effort);
  if (!rc) rc = refuse_chat_extras(r);
  if (rc) return rc;
  const pst_json *variables = pst_wire_get(r, "chat_template_kwargs");
  if (variables && pst_json_typeof(variables) != PST_JSON_OBJECT)
    return pst_wire_fail_type(r, "chat_template_kwargs", "an object", variables);
  q->chat.variables = variables;
  const pst_json *documents = pst_wire_get(r, "documents");
  if (documents && pst_json_typeof(documents) != PST_JSON_ARRAY)
    return pst_wire_fail_type(r, "documents", "an array", documents);
  q->chat.documents = documents;
  return 0;
}

/* ---- completions -------------------------------------------------------------------------------------------------------------- */

static int read_token_prompt(const pst_wire_reader *r, const char *key, pst_arena *arena, const pst_json *array,
                             pst_wire_prompt *prompt) {
  size_t n = pst_json_size(array), i = 0;
  if (n == 0) return pst_wire_fail(r, PST_E_BAD_INPUT, key, "an array of tokens needs at least one");
  int32_t *tokens = pst_arena_calloc(arena, n, sizeof *tokens);
  if (!tokens) return no_memory(r);
  pst_json_iter it = pst_json_iterate(array);
  while (pst_json_next(&it)) {
    int64_t id = pst_json_int(it.value, -1);
    if (pst_json_typeof(it.value) != PST_JSON_NUMBER || !pst_json_is_int(it.value))
      return pst_wire_fail_type(r, key, "a token id", it.value);
    if (id < 0 || id > INT32_MAX)
      return pst_wire_fail(r, PST_E_BAD_INPUT, key, "%lld is not a token id", (long long)id);
    tokens[i++] = (int32_t)id;
  }
  *prompt = (pst_wire_prompt){.tokens = tokens, .n_tokens = n};
  return 0;
}

int pst_wire_read_prompts(const pst_wire_reader *r, const char *key, size_t max, pst_arena *arena,
                          const pst_wire_prompt **ret_prompts, size_t *ret_n) {
  static const char expected[] = "a string, an array of strings, an array of tokens or an array of such arrays";
  const pst_json *v = pst_wire_get(r, key);
  bool array = pst_json_typeof(v) == PST_JSON_ARRAY;
  if (!array && pst_json_typeof(v) != PST_JSON_STRING) return pst_wire_fail_type(r, key, expected, v);
  if (array && pst_json_size(v) == 0) return pst_wire_fail(r, PST_E_BAD_INPUT, key, "needs at least one element");
  bool tokens = array && pst_json_typeof(pst_json_at(v, 0)) == PST_JSON_NUMBER;
  size_t n = array && !tokens ? pst_json_size(v) : 1, i = 0;
  if (n > max) return pst_wire_fail(r, PST_E_LIMIT, key, "%zu are more than the limit of %zu", n, max);
  pst_wire_prompt *list = pst_arena_calloc(arena, n, sizeof *list);
  if (!list) return no_memory(r);
  *ret_prompts = list;
  *ret_n = n;
  if (!array) {
    list[0].text = pst_json_str(v);
    return 0;
  }
  if (tokens) return read_token_prompt(r, key, arena, v, &list[0]);
  pst_json_type type = pst_json_typeof(pst_json_at(v, 0));
  pst_json_iter it = pst_json_iterate(v);
  while (pst_json_next(&it)) {
    if (pst_json_typeof(it.value) != type || (type != PST_JSON_STRING && type != PST_JSON_ARRAY))
      return pst_wire_fail_type(r, key, expected, it.value);
    if (type == PST_JSON_STRING) {
      list[i++].text = pst_json_str(it.value);
      continue;
    }
    int rc = read_token_prompt(r, key, arena, it.value, &list[i++]);
    if (rc) return rc;
  }
  return 0;
}

static int refuse_text_extras(const pst_wire_reader *r, const pst_wire_request *q) {
  bool echo = false;
  int64_t best_of = q->n;
  pst_str suffix = {NULL, 0};
  int rc = pst_wire_read_bool(r, "echo", &echo);
  if (!rc) rc = pst_wire_read_int(r, "best_of", 1, INT32_MAX, NULL, &best_of);
  if (!rc) rc = pst_wire_read_str(r, "suffix", SIZE_MAX, &suffix);
  if (rc) return rc;
  if (echo) return pst_wire_fail(r, PST_E_UNSUPPORTED, "echo", "is not supported here");
  if (best_of != q->n)
    return pst_wire_fail(r, PST_E_UNSUPPORTED, "best_of", "is not supported here unless it equals n");
  if (suffix.n) return pst_wire_fail(r, PST_E_UNSUPPORTED, "suffix", "is not supported here");
  return 0;
}

static int read_text(const pst_wire_reader *r, pst_wire_request *q) {
  int64_t logprobs = -1;
  int rc = pst_wire_read_prompts(r, "prompt", PST_WIRE_MAX_PROMPTS, q->arena, &q->prompts, &q->n_prompts);
  if (!rc) rc = pst_wire_read_int(r, "logprobs", 0, PST_WIRE_MAX_TOP_LOGPROBS, NULL, &logprobs);
  if (!rc) rc = refuse_text_extras(r, q);
  q->n_logprobs = (int)logprobs;
  return rc;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------------ */

void pst_wire_request_done(pst_wire_request *request) {
  for (pst_wire_docs *d = request->docs; d; d = d->next) pst_json_free(d->doc);
  pst_arena_free(request->arena);
  *request = (pst_wire_request){0};
}

int pst_wire_request_parse(pst_wire_kind kind, pst_str body, pst_wire_request *ret_request, pst_error *err) {
  pst_error own = PST_ERROR_INIT;
  pst_wire_reader r = {.err = err ? err : &own};
  pst_wire_request q = {.kind = kind, .n = 1, .n_logprobs = -1, .arena = pst_arena_create()};
  pst_json_doc *doc = NULL;
  int rc = q.arena ? pst_wire_parse_body(&r, body, &doc) : no_memory(&r);
  if (rc) goto done;
  q.docs = pst_arena_alloc(q.arena, sizeof *q.docs);
  if (!q.docs) {
    pst_json_free(doc);
    rc = no_memory(&r);
    goto done;
  }
  *q.docs = (pst_wire_docs){.doc = doc};
  rc = read_shared(&r, &q);
  if (!rc) rc = kind == PST_WIRE_CHAT ? read_chat(&r, &q) : read_text(&r, &q);
done:
  if (rc) {
    pst_wire_request_done(&q);
  } else {
    *ret_request = q;
  }
  return rc;
}

/* ---- feedback --------------------------------------------------------------------------------------------------------------------- */

static int read_feedback(const pst_wire_reader *r, pst_wire_feedback *f) {
  pst_str thumbs = {NULL, 0};
  int rc = pst_wire_read_str(r, "completion_id", 128, &f->completion_id);
  if (!rc && !f->completion_id.n) rc = pst_wire_fail_type(r, "completion_id", "a string", NULL);
  if (!rc) rc = pst_wire_read_str(r, "thumbs", 64, &thumbs);
  if (!rc) rc = pst_wire_read_double(r, "score", -DBL_MAX, DBL_MAX, &f->has_score, &f->score);
  if (!rc) rc = pst_wire_read_str(r, "correction", 1 << 20, &f->correction);
  if (!rc) rc = pst_wire_read_str(r, "outcome", 1024, &f->outcome);
  if (!rc) rc = pst_wire_read_bool(r, "retry", &f->retried);
  if (!rc) rc = pst_wire_read_bool(r, "abandon", &f->abandoned);
  if (rc) return rc;
  f->has_thumbs = thumbs.data != NULL;
  f->thumbs_up = pst_str_is(thumbs, "up");
  if (f->has_thumbs && !f->thumbs_up && !pst_str_is(thumbs, "down"))
    return pst_wire_fail(r, PST_E_BAD_INPUT, "thumbs", "expected 'up' or 'down'");
  if (!f->has_thumbs && !f->has_score && !f->correction.data && !f->outcome.data && !f->retried && !f->abandoned)
    return pst_wire_fail(r, PST_E_BAD_INPUT, NULL,
                         "needs at least one of thumbs, score, correction, outcome, retry, abandon");
  return 0;
}

int pst_wire_feedback_parse(pst_str body, pst_wire_feedback *ret_feedback, pst_error *err) {
  pst_error own = PST_ERROR_INIT;
  pst_wire_reader r = {.err = err ? err : &own};
  pst_wire_feedback f = {0};
  int rc = pst_wire_parse_body(&r, body, &f.doc);
  if (rc) return rc;
  rc = read_feedback(&r, &f);
  if (rc) {
    pst_json_free(f.doc);
    return rc;
  }
  *ret_feedback = f;
  return 0;
}

void pst_wire_feedback_done(pst_wire_feedback *feedback) {
  pst_json_free(feedback->doc);
  *feedback = (pst_wire_feedback){0};
}
