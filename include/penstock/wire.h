/* Penstock wire: the OpenAI formats to and from structs. No sockets, no clocks, no models: bytes in, structs out, and back.
 *
 * Readers refuse wrong types and values out of range, with the field's path in err->place ("messages[2].content[0].type"), as the API's
 * `param`; members they do not know are ignored, null counts as absent. Parsed structs hold views into memory they own: valid until
 * their _done. Writers append to a pst_buf whose sticky status the caller checks. Functions are thread-safe on different objects. */
#ifndef PENSTOCK_WIRE_H
#define PENSTOCK_WIRE_H

#include <penstock/base.h>
#include <penstock/chat.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- requests from clients (wire/request.c) --------------------------------------------------------------------- */

typedef enum pst_wire_kind { PST_WIRE_CHAT, PST_WIRE_TEXT } pst_wire_kind; /* /v1/chat/completions, /v1/completions */

enum {
  PST_WIRE_MAX_MESSAGES = 4096,
  PST_WIRE_MAX_PROMPTS = 256,
  PST_WIRE_MAX_INPUTS = 2048,
  PST_WIRE_MAX_TOOLS = 128,
  PST_WIRE_MAX_STOP = 16,
  PST_WIRE_MAX_STOP_BYTES = 1024,
  PST_WIRE_MAX_BIAS = 1024,
  PST_WIRE_MAX_N = 16,
  PST_WIRE_MAX_TOP_LOGPROBS = 20,
};

typedef enum pst_wire_format {
  PST_WIRE_FORMAT_TEXT,
  PST_WIRE_FORMAT_JSON_OBJECT,
  PST_WIRE_FORMAT_JSON_SCHEMA
} pst_wire_format;
typedef enum pst_wire_tool_choice {
  PST_WIRE_TOOLS_AUTO,
  PST_WIRE_TOOLS_NONE,
  PST_WIRE_TOOLS_REQUIRED,
  PST_WIRE_TOOLS_NAMED
} pst_wire_tool_choice;

typedef struct pst_wire_bias {
  int32_t token;
  float bias; /* -100 to 100 */
} pst_wire_bias;

/* One prompt of /v1/completions: text, or tokens when `tokens` is not NULL. */
typedef struct pst_wire_prompt {
  pst_str text;
  const int32_t *tokens;
  size_t n_tokens;
} pst_wire_prompt;

typedef struct pst_wire_request {
  pst_wire_kind kind;
  pst_str model;                  /* not empty */
  pst_chat chat;                  /* CHAT; add_generation_prompt is set */
  const pst_wire_prompt *prompts; /* TEXT: at least one */
  size_t n_prompts;

  bool has_max_tokens, has_temperature, has_top_p, has_top_k, has_min_p, has_seed, has_stop, has_presence_penalty,
      has_frequency_penalty, has_repetition_penalty;
  int32_t max_tokens;                         /* at least 1 (TEXT: 0 too) */
  double temperature;                         /* 0 to 2 */
  double top_p, min_p;                        /* 0 to 1 */
  int32_t top_k;                              /* 0: off (-1 on the wire too) */
  uint64_t seed;                              /* any int64 on the wire */
  double presence_penalty, frequency_penalty; /* -2 to 2 */
  double repetition_penalty;                  /* over 0, up to 10 */
  const pst_str *stop;
  size_t n_stop;
  const pst_wire_bias *bias;
  size_t n_bias;
  int n;          /* 1 to 16 */
  int n_logprobs; /* -1: none; 0: the chosen token's alone; up to 20 */
  bool stream, include_usage;
  pst_str user, safety_identifier; /* whose request it is, the old name and the new one; empty: none */
  bool
      newer_max_tokens; /* CHAT: was called max_completion_tokens, the only name that reasoning models of providers take */
  pst_str reasoning_effort; /* CHAT: for providers; empty: none */
  pst_wire_format format;
  pst_str schema_name;    /* with JSON_SCHEMA */
  const pst_json *schema; /* with JSON_SCHEMA: the schema itself */
  bool schema_strict;
  pst_wire_tool_choice tool_choice; /* tools themselves are chat.tools */
  pst_str tool_name;                /* with NAMED */
  bool parallel_tool_calls;         /* default true */
  const pst_json *metadata;         /* NULL, or an object of strings */

  pst_arena *arena;           /* owns the arrays */
  struct pst_wire_docs *docs; /* owns the JSON that views point into */
} pst_wire_request;

/* Errors: PST_E_BAD_INPUT, PST_E_UNSUPPORTED (a known field with a value not served: suffix, echo, best_of, functions, audio), PST_E_LIMIT, PST_E_NOMEM. */
int pst_wire_request_parse(pst_wire_kind kind, pst_str body, pst_wire_request *ret_request, pst_error *err);
void pst_wire_request_done(pst_wire_request *request); /* fine on a zeroed struct */

/* POST /v1/embeddings (wire/embedding.c). */
typedef struct pst_wire_embedding_request {
  pst_str model;                 /* not empty */
  pst_str user;                  /* empty: none */
  const pst_wire_prompt *inputs; /* at least one, none of them empty */
  size_t n_inputs;
  int dimensions; /* 0: as many as the model makes */
  bool base64;    /* how vectors are written; else numbers */
  pst_arena *arena;
  pst_json_doc *doc;
} pst_wire_embedding_request;
/* Errors as pst_wire_request_parse. */
int pst_wire_embedding_parse(pst_str body, pst_wire_embedding_request *ret_request, pst_error *err);
void pst_wire_embedding_done(pst_wire_embedding_request *request); /* fine on a zeroed struct */

typedef struct pst_wire_embedding_answer {
  pst_str model;
  const float *vectors; /* [n_vectors][n_dims], finite */
  size_t n_vectors, n_dims;
  bool base64;
  int64_t prompt_tokens;
} pst_wire_embedding_answer;
void pst_wire_embedding_write(const pst_wire_embedding_answer *answer, pst_buf *out);

/* POST /v1/feedback. At least one of the judgements is there. */
typedef struct pst_wire_feedback {
  pst_str completion_id;
  bool has_thumbs, thumbs_up;
  bool has_score;
  double score;            /* finite */
  pst_str correction;      /* data NULL: none */
  pst_str outcome;         /* data NULL: none */
  bool retried, abandoned; /* the user asked again; went away */
  pst_json_doc *doc;
} pst_wire_feedback;
int pst_wire_feedback_parse(pst_str body, pst_wire_feedback *ret_feedback, pst_error *err);
void pst_wire_feedback_done(pst_wire_feedback *feedback);

/* ---- answers to clients (wire/answer.c) ------------------------------------------------------------------------- */

typedef enum pst_wire_finish {
  PST_WIRE_FINISH_NONE, /* null */
  PST_WIRE_FINISH_STOP,
  PST_WIRE_FINISH_LENGTH,
  PST_WIRE_FINISH_TOOL_CALLS,
  PST_WIRE_FINISH_CONTENT_FILTER,
} pst_wire_finish;
const char *pst_wire_finish_name(pst_wire_finish finish); /* "stop"; NULL for NONE */
pst_wire_finish pst_wire_finish_from(pst_str name);       /* what is not known counts as STOP; empty is NONE */

typedef struct pst_wire_usage {
  int64_t prompt_tokens, completion_tokens, cached_tokens;
} pst_wire_usage;

typedef struct pst_wire_top {
  pst_str bytes; /* of the token, any bytes */
  double logprob;
} pst_wire_top;
typedef struct pst_wire_token {
  pst_str bytes;
  double logprob;
  const pst_wire_top *top; /* n_top best, best first */
  size_t n_top;
} pst_wire_token;

/* One choice: of a whole answer (all its text), or of a chunk (what is new). */
typedef struct pst_wire_choice {
  uint32_t index;
  pst_str text;
  const pst_chat_tool_call *tool_calls;
  size_t n_tool_calls;
  pst_wire_finish finish;
  bool has_logprobs;
  const pst_wire_token *tokens; /* with has_logprobs */
  size_t n_tokens;
  size_t text_offset; /* TEXT with logprobs: characters of this choice before this chunk */
} pst_wire_choice;

typedef struct pst_wire_answer {
  pst_wire_kind kind;
  pst_str id;      /* "chatcmpl-..." or "cmpl-..." */
  int64_t created; /* unix seconds */
  pst_str model;
  const pst_wire_choice *choices;
  size_t n_choices;
  const pst_wire_usage *usage; /* NULL: none (chunks with include_usage: null) */
  bool include_usage;          /* chunks: the usage member is there, null or not */
  bool first;                  /* chunks: carry the role */
} pst_wire_answer;
void pst_wire_answer_write(const pst_wire_answer *answer, pst_buf *out); /* the JSON of a whole answer */
void pst_wire_chunk_write(const pst_wire_answer *chunk, pst_buf *out);   /* one server-sent event: "data: {...}\n\n" */
void pst_wire_stream_end(pst_buf *out);                                  /* "data: [DONE]\n\n" */
/* Characters (code points, counted by their first bytes) that this text adds to pst_wire_choice.text_offset. */
size_t pst_wire_characters(pst_str text);

/* The error shape: {"error": {"message", "type", "param", "code"}}. */
typedef struct pst_wire_error {
  int status;        /* HTTP */
  const char *type;  /* "invalid_request_error", ... */
  const char *code;  /* NULL: null */
  int retry_after_s; /* 0: none */
} pst_wire_error;
/* From the one table of codes: BAD_INPUT, UNSUPPORTED, LIMIT, EXISTS 400; DENIED 401; NOT_FOUND 404 model_not_found; BUSY 429 rate_limit_exceeded; BUDGET 429
 * insufficient_quota; UPSTREAM 502; NOMEM 503; TIMEOUT 504; the rest 500. */
pst_wire_error pst_wire_error_from(int code);
/* Writes the body. param NULL or empty: null. */
void pst_wire_error_write(const pst_wire_error *error, const char *message, const char *param, pst_buf *out);
/* The body for an HTTP status alone (answers a server gives by itself). */
pst_wire_error pst_wire_error_of_status(int status);

typedef struct pst_wire_model {
  pst_str id, owner;
  int64_t created;
} pst_wire_model;
void pst_wire_models_write(const pst_wire_model *models, size_t n,
                           pst_buf *out); /* {"object": "list", "data": [...]} */
void pst_wire_model_write(const pst_wire_model *model, pst_buf *out);

/* ---- files and fine-tuning (wire/finetune.c, wire/tuning_file.c, wire/multipart.c) -------------------------------------------------- */

/* A part of a form (RFC 7578); views into the body. */
typedef struct pst_wire_part {
  pst_str name, filename, data; /* filename empty: it is a field */
} pst_wire_part;
/* Splits a multipart/form-data body. *ret_n: how many of at most max parts. PST_E_BAD_INPUT: no boundary in the media type, or a body that is not of this form;
 * PST_E_LIMIT: more parts. */
int pst_wire_multipart_parse(pst_str media_type, pst_str body, pst_wire_part *ret_parts, size_t max, size_t *ret_n,
                             pst_error *err);

typedef struct pst_wire_file {
  int64_t id, bytes, created; /* unix seconds */
  pst_str name, purpose;
} pst_wire_file;
/* "file-17" and the like, both ways; 0: it is no such id. */
void pst_wire_id_write(const char *prefix, int64_t id, char ret_text[40]);
int64_t pst_wire_id_parse(const char *prefix, pst_str text);
void pst_wire_file_write(const pst_wire_file *file, pst_json_writer *w);
void pst_wire_deleted_write(pst_str object, pst_str id, pst_json_writer *w);

typedef enum pst_wire_tuning_method {
  PST_WIRE_TUNING_SUPERVISED,
  PST_WIRE_TUNING_DPO,
  PST_WIRE_TUNING_METHOD_COUNT
} pst_wire_tuning_method;
const char *pst_wire_tuning_method_name(pst_wire_tuning_method method); /* "dpo" */
bool pst_wire_tuning_method_from(pst_str name, pst_wire_tuning_method *ret_method);

/* Those that were left out or "auto" are 0. */
typedef struct pst_wire_hyperparameters {
  int64_t n_epochs, batch_size;
  double learning_rate_multiplier;
  double beta;   /* DPO */
  int64_t codes; /* supervised, and not OpenAI's: most output codes */
} pst_wire_hyperparameters;

/* POST /v1/fine_tuning/jobs. */
typedef struct pst_wire_tuning_request {
  pst_str model, training_file, validation_file, suffix;
  pst_wire_tuning_method method;
  pst_wire_hyperparameters hyper;
  int64_t seed;
  bool has_seed;
  pst_json_doc *doc;
} pst_wire_tuning_request;
/* PST_E_BAD_INPUT with the field; PST_E_UNSUPPORTED: a method other than those, a hyperparameter that the method does not have, integrations. */
int pst_wire_tuning_parse(pst_str body, pst_wire_tuning_request *ret_request, pst_error *err);
void pst_wire_tuning_done(pst_wire_tuning_request *request); /* fine on a zeroed struct */

typedef struct pst_wire_tuning_job {
  int64_t id, created, finished;          /* unix seconds; finished 0: not yet */
  pst_str model, tuned_model, status;     /* tuned_model empty: null */
  pst_str training_file, validation_file; /* validation_file empty: null */
  pst_str suffix, error;                  /* empty: null */
  pst_wire_tuning_method method;
  pst_wire_hyperparameters hyper; /* 0: "auto" */
  int64_t seed, trained_tokens;   /* trained_tokens 0: null */
} pst_wire_tuning_job;
void pst_wire_tuning_job_write(const pst_wire_tuning_job *job, pst_json_writer *w);

typedef struct pst_wire_tuning_event {
  int64_t id, created;
  pst_str level, message; /* "info", "warn", "error" */
  const pst_json *data;   /* NULL: none; figures of a step */
} pst_wire_tuning_event;
void pst_wire_tuning_event_write(const pst_wire_tuning_event *event, pst_json_writer *w);

/* A line of a file to learn from: a conversation that ends with its answer; DPO: the same conversation with a preferred answer and with another. */
typedef struct pst_wire_tuning_line {
  pst_wire_request wanted;
  pst_wire_request unwanted; /* DPO; else zeroed */
} pst_wire_tuning_line;
/* Calls fn for each line of a JSONL file that is not blank, in order; a result other than 0 stops and is returned. Lines have the shapes of the OpenAI API: {"messages": [..., answer]}; DPO:
 * {"input": {"messages": [...]}, "preferred_output": [answer], "non_preferred_output": [answer]}. A line is fn's until it returns. *ret_n: lines so far. Every error, fn's too, begins with
 * "line N: " and has no place. PST_E_BAD_INPUT: a line that has not its method's shape, or with two answers that are the same. */
int pst_wire_tuning_lines_each(pst_str file, pst_wire_tuning_method method,
                               int (*fn)(void *user, const pst_wire_tuning_line *line, pst_error *err), void *user,
                               int64_t *ret_n, pst_error *err);

/* ---- requests to providers (wire/upstream.c) --------------------------------------------------------------------- */

/* Writes the body of a request for an OpenAI-compatible provider from a parsed or self-made pst_wire_request (arena and docs are not looked at). The extensions
 * top_k, min_p and repetition_penalty are sent only when set. `model` replaces request->model. PST_E_UNSUPPORTED for what cannot be expressed (token
 * prompts mixed with texts). */
int pst_wire_upstream_write(const pst_wire_request *request, pst_str model, bool stream, pst_buf *out, pst_error *err);

/* A choice in what a provider answered; views live as long as the reply. */
typedef struct pst_wire_reply_choice {
  uint32_t index;
  pst_str text, reasoning;
  const pst_chat_tool_call *tool_calls; /* of a chunk: pieces, joined by index in tool_call_index */
  const int *tool_call_index;
  size_t n_tool_calls;
  pst_wire_finish finish;
  const pst_wire_token *tokens; /* log-probabilities where the provider sent them */
  size_t n_tokens;
} pst_wire_reply_choice;

typedef struct pst_wire_reply {
  pst_str id, model;
  const pst_wire_reply_choice *choices;
  size_t n_choices;
  bool has_usage; /* both counts are there, and the prompt's is not 0 */
  pst_wire_usage usage;
  pst_arena *arena;
  pst_json_doc *doc;
} pst_wire_reply;
/* A whole answer or, with `chunk`, the data of one event of a stream. An {"error": ...} object gives PST_E_UPSTREAM with its message; anything that is not the
 * format PST_E_UPSTREAM with what is wrong. */
int pst_wire_reply_parse(pst_wire_kind kind, bool chunk, pst_str body, pst_wire_reply *ret_reply, pst_error *err);
void pst_wire_reply_done(pst_wire_reply *reply); /* fine on a zeroed struct */
/* What a provider's answer with an HTTP error means: 400, 404, 413, 422 BAD_INPUT or NOT_FOUND, 401, 403 DENIED (our key at the provider, so UPSTREAM), 429 BUSY or BUDGET
 * (insufficient_quota), 5xx UPSTREAM. The message in the body, if there is one, is passed on, cut at 500 bytes;
 * not with 401 and 403, where it may show our key. Returns the code. */
int pst_wire_upstream_error(int status, pst_str body, pst_error *err);

/* ---- server-sent events (wire/sse.c) ------------------------------------------------------------------------------ */

/* Splits a byte stream into events as the WHATWG HTML standard says (9.2.6): lines end by CR, LF or CRLF, pieces may be cut anywhere, data lines are joined by
 * LF, comments and unknown fields are skipped, a byte order mark at the start is dropped, an unfinished event at the end is discarded. */
typedef struct pst_wire_sse {
  pst_buf line, data, event;
  size_t max_bytes; /* of one event */
  bool has_data, after_cr;
  int bom_seen; /* bytes of a byte order mark matched so far; -1: past the start */
} pst_wire_sse;
typedef struct pst_wire_sse_event {
  pst_str event; /* empty: "message" */
  pst_str data;
} pst_wire_sse_event;
/* A non-zero answer stops the feeding and becomes its result. */
typedef int (*pst_wire_sse_callback)(void *user, const pst_wire_sse_event *event);
void pst_wire_sse_init(pst_wire_sse *sse, size_t max_bytes);
void pst_wire_sse_done(pst_wire_sse *sse);
/* 0, what the callback answered, PST_E_LIMIT for an event over max_bytes, PST_E_NOMEM. After a failure only _done is allowed. */
int pst_wire_sse_feed(pst_wire_sse *sse, pst_str bytes, pst_wire_sse_callback callback, void *user);

#ifdef __cplusplus
}
#endif
#endif
