/* Penstock gateway: executes plans. One entry for users, evals and the optimizer alike, so that what is measured is what is served.
 *
 * A call names what answers it: a workload (its plan in force), a plan given by the caller, a local model, or a provider's model. The gateway renders the
 * prompt, retrieves examples, keeps the budget, runs local engines and upstream targets, and books every call in the store.
 *
 * Threads: any thread may call any function of an open gateway. Events of a call arrive one after the other on a gateway or engine thread; a callback must not
 * block. Money: `_nusd` are int64 nano-dollars. */
#ifndef PENSTOCK_GATEWAY_H
#define PENSTOCK_GATEWAY_H

#include <penstock/base.h>
#include <penstock/chat.h>
#include <penstock/classifier.h>
#include <penstock/engine.h>
#include <penstock/store.h>
#include <penstock/wire.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- plans (gateway/plan.c) ------------------------------------------------------------------------------------- */

/* How a prompt is laid out. CHAT: the model's template; system text, examples as earlier turns, the input as the last user turn. CHAT_INLINE: the model's template;
 * instruction, examples and input in one user turn. PLAIN: no template: "key: value" pairs, one blank line between examples, the answer's key left
 * open without a trailing space; the answer ends at a line break. */
typedef enum pst_gateway_layout {
  PST_GATEWAY_LAYOUT_CHAT,
  PST_GATEWAY_LAYOUT_CHAT_INLINE,
  PST_GATEWAY_LAYOUT_PLAIN,
  PST_GATEWAY_LAYOUT_COUNT
} pst_gateway_layout;
const char *pst_gateway_layout_name(pst_gateway_layout layout); /* "chat", "chat_inline", "plain" */

/* What the answer may be: anything; one of the plan's labels; one of the labels of the retrieved examples (all labels when fewer than two differ). */
typedef enum pst_gateway_constraint {
  PST_GATEWAY_FREE,
  PST_GATEWAY_LABELS,
  PST_GATEWAY_EXAMPLE_LABELS,
  PST_GATEWAY_CONSTRAINT_COUNT
} pst_gateway_constraint;
const char *pst_gateway_constraint_name(pst_gateway_constraint constraint); /* "none", "labels", "example_labels" */

typedef enum pst_gateway_op {
  PST_GATEWAY_OP_LOCAL,
  PST_GATEWAY_OP_REMOTE,
  PST_GATEWAY_OP_CASCADE,
  PST_GATEWAY_OP_CLASSIFIER /* answers a choice task without a generator */
} pst_gateway_op;

/* An engine of the plan. Strings live in the plan. */
typedef struct pst_gateway_engine_spec {
  const char *name;    /* "e1" */
  const char *model;   /* catalogue name or path */
  const char *sha256;  /* of the model file as shipped; may be NULL in a plan written by hand */
  const char *weights; /* "shipped" or a GGUF type name to re-quantize to, kept in the data directory */
  const char *draft;   /* catalogue name or path of a smaller model that guesses ahead; NULL: none */
  pst_engine_options options;
} pst_gateway_engine_spec;

typedef struct pst_gateway_node {
  pst_gateway_op op;
  int engine;              /* index into the plan's engines. LOCAL: the model's. CLASSIFIER: its encoder's; -1: none */
  const char *provider;    /* REMOTE: name of a provider in the settings */
  const char *model;       /* REMOTE: the provider's model name */
  const char *prompt_name; /* LOCAL, REMOTE: as in the workload */
  const char *system, *instruction, *input_key,
      *answer_key; /* the prompt's text, so that the plan's hash covers it; may be NULL */
  pst_gateway_layout layout;
  const char *classifier;     /* CLASSIFIER: SHA-256 of the artefact in the store */
  const char *examples_index; /* SHA-256 of the index file in the store; NULL: none */
  int n_examples;
  bool examples_fixed; /* the first n of the index instead of the nearest */
  pst_gateway_constraint constraint;
  pst_engine_speculation speculation;
  const char
      *adapter; /* LOCAL, CLASSIFIER with an engine: SHA-256 of the adapter's file in the store; NULL: the base */
  const char *answers; /* LOCAL, with SPEC_ANSWERS: SHA-256 of the file of past answers in the store; NULL: none */
  pst_engine_sampling sampling;
  int max_tokens;
  double threshold;                /* CASCADE: go on to the next input below this margin */
  struct pst_gateway_node *inputs; /* CASCADE: n_inputs, cheapest first */
  int n_inputs;
} pst_gateway_node;

typedef struct pst_gateway_cache {
  bool on; /* answers are given again to requests that are exactly the same */
  int64_t ttl_s, max_entries;
} pst_gateway_cache;
pst_gateway_cache pst_gateway_cache_default(void); /* on, as an empty "cache" in a plan means */

typedef struct pst_gateway_plan {
  char hash[65];         /* SHA-256 of the canonical JSON */
  char answers_hash[65]; /* the same without what no answer depends on (the cache) */
  const char *json;      /* canonical */
  const char *workload;  /* name; NULL: none */
  const char *
      input_pattern; /* NULL: the input is the last user message; else a regular expression whose group 1 in it is the input */
  const pst_regex *input_regex; /* the same compiled; NULL: none, or a plan made by hand */
  const pst_str *labels;
  int n_labels;
  const pst_str *copied; /* fields of a JSON answer whose texts stand in the input: "slots.artist", "items[].name" */
  int n_copied;
  pst_gateway_cache cache;
  const pst_gateway_engine_spec *engines;
  int n_engines;
  pst_gateway_node root;
} pst_gateway_plan;

/* Calls fn with each text of an object or array, by its field ("slots.artist", "items[].name"), and appends the value as JSON to *out, each text as *ret_other, which is the
 * text unless fn changes it. Texts with no field's name (the value itself) or one beyond 256 bytes are passed over. Returns fn's first code that is not 0; PST_E_NOMEM. Pure. */
int pst_gateway_copied_each(const pst_json *value,
                            int (*fn)(void *user, pst_str field, pst_str text, pst_str *ret_other), void *user,
                            pst_buf *out);
/* Texts of the plan's copied fields that the input does not hold become the part of it, of whole words, that is nearest by edit distance, if half of the text or more is kept (of very long inputs and answers: as many as some milliseconds allow). An answer that is no
 * JSON, and one in which nothing changes, stays byte for byte as it is; another is written anew, without white space. PST_E_NOMEM. Pure. */
int pst_gateway_copied_mend(const pst_gateway_plan *plan, pst_str input, pst_buf *answer);

/* Parses a plan and validates it against the schema that ships with the program (asset gateway/plan_schema.json; docs/plan.json is an example). Defaults are filled in,
 * so that plan->json and plan->hash do not depend on how it was spelled. Errors: PST_E_BAD_INPUT (not JSON, an unknown field, a value not accepted, with the
 * place as "SOURCE#/root/layout"), PST_E_LIMIT, PST_E_NOMEM. Immutable, counted: one reference for the caller. */
int pst_gateway_plan_parse(pst_str json, const char *source, pst_gateway_plan **ret_plan, pst_error *err);
pst_gateway_plan *pst_gateway_plan_ref(pst_gateway_plan *plan);
void pst_gateway_plan_unref(pst_gateway_plan *plan); /* NULL is fine */
/* Whether a node of this kind is anywhere in it. */
bool pst_gateway_plan_has(const pst_gateway_plan *plan, pst_gateway_op op);
/* A plan's structs as canonical JSON, appended: what pst_gateway_plan_parse makes of it again is the same plan. For plans put together by hand; hash and
 * json are not looked at. PST_E_BAD_INPUT: the schema does not accept what they say. */
int pst_gateway_plan_write(const pst_gateway_plan *plan, pst_buf *out, pst_error *err);

/* ---- example index (gateway/examples.c) ------------------------------------------------------------------------- */

typedef struct pst_gateway_example {
  pst_str id, input, answer;
} pst_gateway_example;
/* Writes an index of labelled examples into the store, by content hash: the same examples give the same file and the same ranking everywhere. data_set: that they come of, full hash,
 * so that the index goes when records of the set are erased (plans that name it then answer without examples); NULL or empty: none. Errors: PST_E_BAD_INPUT (none, an id twice),
 * PST_E_NOT_FOUND (the set is unknown or withdrawn), those of the store. */
int pst_gateway_examples_build(pst_store *store, const pst_gateway_example *examples, size_t n, const char *data_set,
                               char ret_hash[65], pst_error *err);

/* ---- classifiers (gateway/classifier.c) ------------------------------------------------------------------------- */

typedef struct pst_gateway pst_gateway;

/* Trains a classifier on labelled records and keeps its artefact in the store, by content hash. encoder: NULL for one over n-grams alone; else an engine whose vectors
 * of the texts it reads too, as shipped and with the hash of its file (the gateway makes them: vectors in the records, and an encoder in the options, are not
 * looked at). The same records are trained on once, by one process: what came of them is noted in HOME/classifiers. ret_ms: how long training took, vectors included,
 * now or then; NULL: not wanted. Errors: those of pst_classifier_train, of the store, and of opening the encoder; PST_E_UNSUPPORTED: it is none. Blocks.
 *
 * adapter: NULL, or SHA-256 of the file of one for the encoder that was trained together with options->head: the classifier is made beside that head, which is in it from then on. It is
 * noted by the adapter: with a head it is made anew, without one it is looked for (PST_E_NOT_FOUND). */
int pst_gateway_classifier_build(pst_gateway *gateway, const pst_gateway_engine_spec *encoder, const char *adapter,
                                 const pst_classifier_record *records, size_t n, const pst_classifier_options *options,
                                 char ret_hash[65], int64_t *ret_ms, pst_error *err);
/* Opens a kept artefact; pst_classifier_free. PST_E_NOT_FOUND, PST_E_CORRUPT. */
int pst_gateway_classifier_open(pst_store *store, pst_str hash, pst_classifier **ret_classifier, pst_error *err);

/* ---- adapters (gateway/adapters.c) ------------------------------------------------------------------------------ */

/* An adapter that is to be known by name. Texts may be NULL but for the first three. */
typedef struct pst_gateway_adapter {
  const char *name, *path,
      *model; /* a GGUF adapter or a folder of PEFT, which stays; the model as it is called here, or a path */
  const char *workload, *data, *run;
  pst_engine_lora *
      lora; /* in place of `path`: one that was made for this model; notes that it lacks are added. NULL: there is the file */
  pst_store_adapter_origin origin;
} pst_gateway_adapter;
/* Checks that it is one for the model, keeps a copy among the store's files as a GGUF adapter that says its base, and adds its name: "model:name" in calls, the file's hash in
 * plans. ret_row (NULL: not wanted). What the file's notes say (data, run) fills what is NULL. Where it fails nothing is left of it. Errors: those of pst_models_resolve, pst_engine_adapter_open and
 * pst_store_adapter_put; PST_E_BAD_INPUT: it says that it was made for another file. */
int pst_gateway_adapter_add(pst_store *store, const pst_gateway_adapter *adapter, pst_store_adapter *ret_row,
                            pst_error *err);
/* Reads a kept adapter that a model is to go on with; pst_engine_lora_done. PST_E_NOT_FOUND; PST_E_BAD_INPUT: it was made for another file than the model's,
 * whatever that is called, or data that it was made of were erased since. */
int pst_gateway_adapter_read(pst_store *store, const char *name, const char *model, pst_engine_lora *ret_lora,
                             pst_error *err);

/* ---- past answers (gateway/answers.c) --------------------------------------------------------------------------- */

/* Writes answers into the store as a file that a plan's speculation may draft from, by content hash: the same answers in any order give the same file.
 * PST_E_LIMIT: more than 2,000,000 bytes, three more counted for each. */
int pst_gateway_answers_build(pst_store *store, const pst_str *answers, size_t n, char ret_hash[65], pst_error *err);
/* The same of the answers that were recorded with their text (consent) when users called a workload: the newest that fit. *ret_n (NULL: not wanted): how
 * many. The file is a data set of the records (kind "answers"): deleting one of them withdraws it. PST_E_NO_DATA when there are none. */
int pst_gateway_answers_collect(pst_store *store, pst_str workload, char ret_hash[65], size_t *ret_n, pst_error *err);

/* A file of past answers in the tokens of an engine that is acquired, as a node of that layout drafts from them. Errors: PST_E_NOT_FOUND, PST_E_CORRUPT, PST_E_NOMEM ...
 * One reference for the caller; *ret_corpus NULL where the file was withdrawn. */
int pst_gateway_answers_corpus(pst_gateway *gateway, const pst_engine *engine, const char *hash,
                               pst_gateway_layout layout, pst_engine_corpus **ret_corpus, pst_error *err);
/* The adapter of a file in the store, by its hash, for an engine that is acquired; kept with the engine. Errors: PST_E_NOT_FOUND, those of pst_engine_adapter_open. One
 * reference for the caller. */
int pst_gateway_adapter_acquire(pst_gateway *gateway, const pst_engine *engine, const char *hash,
                                pst_engine_adapter **ret_adapter, pst_error *err);

/* ---- the gateway (gateway/gateway.c) ---------------------------------------------------------------------------- */

typedef struct pst_gateway_options {
  const char *home; /* data directory */
  int64_t
      memory_bytes; /* loaded models and KV together; the least recently used engines are closed; 0: half of the machine's */
  int max_queue; /* calls waiting per engine before PST_E_BUSY; 0: 512 */
  const pst_engine_options
      *engine; /* for models called by name, outside any plan; NULL: the engine's defaults; copied */
  int upstream_connect_ms, upstream_total_ms, upstream_retries; /* 0: 5,000, 600,000, 2 */
  int upstream_idle_ms;                                         /* a stream may be silent for so long; 0: 120,000 */
} pst_gateway_options;
int pst_gateway_open(pst_store *store, const pst_gateway_options *options, pst_gateway **ret_gateway, pst_error *err);
void pst_gateway_close(pst_gateway *gateway); /* cancels what is open and waits for the last events */

/* Upstream providers are settings: base URL (…/v1), the environment variable that holds the key (may be empty), prices in the store. */
int pst_gateway_provider_set(pst_store *store, pst_str name, pst_str base_url, pst_str key_env, pst_error *err);
int pst_gateway_provider_each(pst_store *store, int (*fn)(void *user, pst_str name, pst_str base_url, pst_str key_env),
                              void *user, pst_error *err);

/* Loads (and re-quantizes where asked) what a plan needs, so that the first call does not wait. Blocks. progress NULL: silent. */
int pst_gateway_prepare(pst_gateway *gateway, const pst_gateway_plan *plan, pst_progress *progress, pst_error *err);
/* The same for a model called by name, outside any plan. A user's call may name models of the registry, and, among paths, only those prepared here. */
int pst_gateway_prepare_model(pst_gateway *gateway, const char *model, pst_progress *progress, pst_error *err);
/* Whether a model prepared by that name makes embeddings in place of text. */
bool pst_gateway_model_embeds(pst_gateway *gateway, const char *model);
/* The engine that serves spec i of the plan, one reference kept until pst_gateway_engine_release: for calibration and for clearing its cache. */
int pst_gateway_engine_acquire(pst_gateway *gateway, const pst_gateway_plan *plan, int engine_index,
                               pst_engine **ret_engine, pst_error *err);
void pst_gateway_engine_release(pst_gateway *gateway, pst_engine *engine);

typedef enum pst_gateway_kind { PST_GATEWAY_CHAT, PST_GATEWAY_TEXT, PST_GATEWAY_EMBED } pst_gateway_kind;

/* What the request itself set; unset fields are the plan's or the defaults. */
typedef struct pst_gateway_overrides {
  bool has_temperature, has_top_k, has_top_p, has_min_p, has_seed, has_max_tokens, has_stop, has_penalties;
  float temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
  int top_k, max_tokens;
  uint64_t seed;
  const pst_str *stop;
  size_t n_stop;
  const pst_engine_bias *bias;
  size_t n_bias;
  int n_logprobs; /* -1: none */
} pst_gateway_overrides;

/* What the answer cache had to do with a call: nothing (no plan, or one without a cache; no user's call); it gave the answer; it had none; the call was not to be answered by it. */
typedef enum pst_gateway_cache_use {
  PST_GATEWAY_CACHE_OFF,
  PST_GATEWAY_CACHE_HIT,
  PST_GATEWAY_CACHE_MISS,
  PST_GATEWAY_CACHE_BYPASS,
  PST_GATEWAY_CACHE_COUNT
} pst_gateway_cache_use;
const char *pst_gateway_cache_name(pst_gateway_cache_use use); /* "off", "hit", "miss", "bypass" */

/* With log-probabilities an event comes for each token, streamed or not. Then one event per choice has its finish, then one has `last` and nothing else. */
typedef struct pst_gateway_event {
  uint32_t choice;               /* 0 .. n-1 */
  pst_str text;                  /* new text, may be empty */
  const pst_engine_event *token; /* NULL, or a token with its log-probabilities; those of an upstream have the id -1 */
  const pst_str *top_texts;      /* with token: the bytes of token->top[i], n_top of them */
  const pst_chat_tool_call *tool_calls; /* with finish: what this choice calls, whole; finish is then STOP */
  size_t n_tool_calls;
  const char *completion_id;   /* with every event: what the caller is given, and what is booked */
  pst_gateway_cache_use cache; /* with every event */
  pst_engine_finish finish;    /* not NONE: this choice has ended */
  bool last;                   /* every choice has ended; the fields below hold, then nothing more comes */
  const pst_error *error;      /* with last: NULL, or why the call failed */
  int http_status;             /* with an upstream's error: its status, else 0 */
  int retry_after_s;           /* with PST_E_BUSY: when to try again */
  const char *target, *model;  /* with last: as booked */
  int64_t prompt_tokens, cached_tokens, completion_tokens; /* of all stages; the prompt counts once for n answers */
  int64_t ttft_us, total_us, queued_us;
  int64_t cost_nusd;
  double margin;                            /* NAN: unknown */
  int n_stages;                             /* how many stages of a cascade answered */
  int n_drafted, n_accepted, n_token_steps; /* the last: forward steps that gave tokens */
  const float *vectors;                     /* EMBED, with last and no error: [n_vectors][n_dims], one for each input */
  size_t n_vectors;
  int n_dims;
} pst_gateway_event;
typedef void (*pst_gateway_callback)(void *user, const pst_gateway_event *event);

typedef struct pst_gateway_call {
  pst_gateway_kind kind;
  pst_store_purpose purpose;
  int64_t key_id;         /* whose budget; 0: none */
  bool providers_only;    /* what this machine does for it is not charged there */
  pst_str model;          /* a workload, a local model, or "provider/model"; empty with `plan` */
  pst_gateway_plan *plan; /* NULL: found by `model` */
  const pst_chat *chat;   /* CHAT: read before the function returns */
  pst_str text;           /* TEXT: the caller's prompt, left alone */
  const int32_t *tokens;  /* TEXT: instead of text, the caller's tokens */
  size_t n_tokens;
  const pst_wire_prompt *inputs; /* EMBED: the texts, or texts as tokens; read before the function returns */
  size_t n_inputs;
  int dims;                  /* EMBED: elements of a vector; 0: as many as the model makes */
  int n;                     /* answers, 1 to 16; EMBED: 1 */
  pst_gateway_overrides set; /* n_logprobs counts always */
  const pst_wire_request *
      request; /* NULL, or the client's request, for what only it says (response_format, tool_choice, user): an upstream is sent it,
                                      a target that cannot serve it answers PST_E_UNSUPPORTED. Read before the function returns. */
  const pst_str *exclude_examples; /* ids never to be retrieved */
  size_t n_exclude;
  bool stream;               /* text as it comes; else one event per choice at its end */
  bool fresh;                /* not to be answered by the cache; its answer may be given again */
  bool no_store;             /* neither answered by the cache nor given again */
  pst_store_consent consent; /* what may be kept of a user's call; zero: metadata */
  pst_str subject;           /* whose call it is; empty: unknown */
  pst_gateway_callback callback;
  void *user;
} pst_gateway_call;

/* Starts a call. Errors at once: PST_E_NOT_FOUND (model), PST_E_BAD_INPUT, PST_E_LIMIT (prompt too long), PST_E_UNSUPPORTED (chat with a model that has no template and no
 * plan, embeddings from a model that generates or from a provider, text from an encoder), PST_E_BUSY; everything later comes by events, and exactly one has `last`. ret_call_id (NULL: not wanted) names it for cancel; it is written before
 * the first event can come, so also when the call is refused last of all. What must be loaded first is refused by an event. */
int pst_gateway_chat(pst_gateway *gateway, const pst_gateway_call *call, uint64_t *ret_call_id, pst_error *err);
void pst_gateway_cancel(pst_gateway *gateway, uint64_t call_id); /* the last event comes still */

/* Waits for the whole answer of a call with n = 1: text appended to *out, the last event copied (pointers in it void but completion_id, which is kept in ret_id). */
int pst_gateway_chat_wait(pst_gateway *gateway, const pst_gateway_call *call, pst_buf *out, pst_gateway_event *ret_last,
                          char ret_id[64], pst_error *err);

/* Exactly the tokens that would be served for an input under a node of a plan (LOCAL), and the text beside them. */
int pst_gateway_render(pst_gateway *gateway, const pst_gateway_plan *plan, const pst_gateway_node *node, pst_str input,
                       const pst_str *exclude, size_t n_exclude, pst_engine_tokens *tokens, pst_buf *ret_text,
                       pst_error *err);
/* The same with an answer behind the first *ret_n_given tokens, up to and with the token at which serving stops: what is learned, measured and drafted from is what
 * is served. In PLAIN a token may hold the answer's end and the line break both. */
int pst_gateway_render_answered(pst_gateway *gateway, const pst_gateway_plan *plan, const pst_gateway_node *node,
                                pst_str input, const pst_str *exclude, size_t n_exclude, pst_str answer,
                                pst_engine_tokens *tokens, size_t *ret_n_given, pst_error *err);

/* An answer's mean log-probability per token, in nats, by a local model as it is: behind its conversation as served, and by itself (gateway/likelihood.c). */
typedef struct pst_gateway_likelihood {
  const pst_chat *chat; /* its last message is the answer, a text */
  double asked, alone;  /* results; NAN: longer than the context, or of one token only */
} pst_gateway_likelihood;
/* Finds them for n answers that go through the engine together. Without a template the last user message and the answer are laid out in pairs (PLAIN). Errors: PST_E_NOT_FOUND (model),
 * PST_E_UNSUPPORTED (an encoder), those of rendering and of the engine. Blocks; not on an engine's thread. */
int pst_gateway_likelihoods(pst_gateway *gateway, const char *model, pst_gateway_likelihood *items, size_t n,
                            pst_error *err);

/* What a client may name as `model`: workloads with a plan, local models, provider models with a price. */
int pst_gateway_models_each(pst_gateway *gateway, int (*fn)(void *user, const char *id, const char *owner), void *user,
                            pst_error *err);

typedef struct pst_gateway_stats {
  int n_open_calls, n_engines;
  pst_engine_stats engines; /* summed */
} pst_gateway_stats;
void pst_gateway_get_stats(pst_gateway *gateway, pst_gateway_stats *ret_stats);

#ifdef __cplusplus
}
#endif
#endif
