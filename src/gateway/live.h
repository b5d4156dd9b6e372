/* A call in progress, and the gateway it runs in.
 *
 * Invariant HAND-OVER: at any moment one thread has a call: the caller's until pst_gateway_chat returns, then the loop's, the store's writer or the engine's, each
 * handing it on by a queue. Fields are that thread's, but for those under `lock`, which cancel and the engine's thread share.
 * Invariant ONE-LAST: pst_gateway_live_end runs exactly once per call that pst_gateway_chat accepted. */
#ifndef PST_GATEWAY_LIVE_H
#define PST_GATEWAY_LIVE_H

#include <stdatomic.h>

#include "gateway/engines.h"
#include "gateway/prompt.h"

enum { PST_GATEWAY_MAX_N = 16 };

typedef struct pst_gateway_live pst_gateway_live;
typedef struct pst_gateway_upstream pst_gateway_upstream;

/* ---- the gateway ------------------------------------------------------------------------------------------------------ */

/* A workload's plan in force, as read at `generation` of the store. */
typedef struct pst_gateway_in_force {
  struct pst_gateway_in_force *next;
  pst_gateway_plan *plan;
  char workload[];
} pst_gateway_in_force;

typedef struct pst_gateway_kept_index {
  struct pst_gateway_kept_index *next;
  pst_gateway_index *index; /* NULL: it was withdrawn */
  char hash[65];
} pst_gateway_kept_index;

/* An open classifier; it stays until the gateway is closed. */
typedef struct pst_gateway_kept_classifier {
  struct pst_gateway_kept_classifier *next;
  pst_classifier *classifier;
  char hash[65];
} pst_gateway_kept_classifier;

/* A path that users may name as a model. */
typedef struct pst_gateway_known {
  struct pst_gateway_known *next;
  char model[];
} pst_gateway_known;

struct pst_gateway {
  pst_store *store;
  char *home;
  pst_engine_options engine_options; /* of models called by name */
  int upstream_connect_ms, upstream_total_ms, upstream_idle_ms, upstream_retries;
  pst_net_loop *loop;
  pst_net_client *client; /* the loop's */
  pst_gateway_engines *engines;
  pthread_mutex_t lock; /* guards what follows */
  pthread_cond_t idle;  /* n_open is 0 */
  pst_gateway_live *calls;
  int n_open;
  uint64_t last_id;
  bool closing;
  int64_t generation;
  pst_gateway_in_force *plans;
  pst_gateway_kept_index *indexes;
  pst_gateway_kept_classifier *classifiers;
  pst_gateway_known *known;
  atomic_bool warned_of_cache;
};

/* The index with that hash, open; one reference for the caller. NULL: records of its examples were deleted, by whatever process, and plans go on without it. */
int pst_gateway_index_get(pst_gateway *gateway, const char *hash, pst_gateway_index **ret_index, pst_error *err);
/* How a model that is called by name is run. */
pst_gateway_engine_spec pst_gateway_plain_spec(const pst_gateway *gateway, const char *model);

/* ---- providers (providers.c) -------------------------------------------------------------------------------------------- */

typedef struct pst_gateway_provider {
  char *base_url; /* without a slash at its end */
  char *key_env;  /* may be empty */
} pst_gateway_provider;
int pst_gateway_provider_get(pst_store *store, pst_str name, pst_gateway_provider *ret_provider, pst_error *err);
void pst_gateway_provider_done(pst_gateway_provider *provider);

/* ---- what a model name means (resolve.c) ---------------------------------------------------------------------------------- */

typedef struct pst_gateway_target {
  pst_gateway_plan *plan; /* a reference; NULL: a model by name */
  pst_str provider;       /* data NULL: local; a view into the name */
  pst_str model;          /* without the provider and the adapter */
  char adapter[65];       /* hash of the adapter's file; empty: none */
} pst_gateway_target;
int pst_gateway_resolve(pst_gateway *gateway, pst_str model, bool any_path, pst_gateway_target *ret_target,
                        pst_error *err);

/* ---- cascades: pure decisions (cascade.c) --------------------------------------------------------------------------------- */

/* The leaf that answers first. */
const pst_gateway_node *pst_gateway_first_leaf(const pst_gateway_node *node);
/* The leaf that follows `leaf` when its answer had this margin (NAN: unknown, never enough); NULL: its answer stands. */
const pst_gateway_node *pst_gateway_next_leaf(const pst_gateway_node *root, const pst_gateway_node *leaf,
                                              double margin);
/* Calls fn for each leaf in order; stops at the first that is not 0 and returns it. */
int pst_gateway_each_leaf(const pst_gateway_node *root, int (*fn)(void *user, const pst_gateway_node *leaf),
                          void *user);

/* ---- one call ----------------------------------------------------------------------------------------------------------------- */

/* A token kept while it is not sure that its stage will be the answer. Offsets into pst_gateway_choice.kept_bytes. */
typedef struct pst_gateway_kept_token {
  int32_t token;
  float logprob;
  size_t text, text_n, token_text, token_text_n;
  int n_top;
  pst_engine_top top[20];
} pst_gateway_kept_token;

/* One of the n answers, within a stage. Of the thread that has the call; while an engine works, of the engine's thread. */
typedef struct pst_gateway_choice {
  pst_gateway_live *call;
  uint32_t index;
  pst_buf text;       /* not yet delivered; with keep_content or a held stage all of it */
  size_t n_delivered; /* bytes of text */
  bool strip_space;   /* the next byte may be the space that parts the answer from the prompt */
  pst_engine_finish finish;
  pst_gateway_kept_token *kept;
  size_t n_kept, kept_capacity;
  pst_buf kept_bytes;
  pst_buf tool_calls; /* keep_content: what it calls, a JSON array */
} pst_gateway_choice;

typedef enum pst_gateway_phase {
  PST_GATEWAY_STARTING,  /* the caller's or the loop's thread works on it */
  PST_GATEWAY_LOADING,   /* the engine is not ready; the waiter is registered or its task under way */
  PST_GATEWAY_RESERVING, /* the store's writer will call */
  PST_GATEWAY_ANSWERING, /* requests are with the engine */
  PST_GATEWAY_UPSTREAM,  /* the loop has it: starting, waiting to try again, or in flight */
  PST_GATEWAY_ENDED,
} pst_gateway_phase;

struct pst_gateway_live {
  /* as asked; immutable once accepted */
  pst_gateway *gateway;
  uint64_t id;
  char completion_id[40];
  pst_arena *arena;
  pst_json_doc *chat_doc; /* behind the copied conversation */
  pst_gateway_kind kind;
  pst_store_purpose purpose;
  int64_t key_id;
  bool providers_only; /* key_id pays for upstreams alone */
  int n;
  bool stream, keep_content;
  pst_store_consent consent;
  pst_str subject;
  pst_gateway_overrides set;
  pst_gateway_callback callback;
  void *user;
  pst_gateway_plan *plan;           /* NULL: a model by name */
  pst_gateway_engine_spec plain;    /* without a leaf: the engine, */
  const char *plain_adapter;        /* hash of the adapter's file, NULL: none, */
  const char *plain_name;           /* and both as the caller named them; */
  pst_str provider, provider_model; /* or, with data, the upstream */
  const char *workload;             /* for the books; NULL: none */
  pst_gateway_cache_use cache;
  char cache_key[65];                       /* empty: neither looked for nor kept */
  pst_json_doc *cached;                     /* a hit: what was recorded as its answer */
  int64_t cached_prompt, cached_completion; /* tokens */
  const char *shown_examples;               /* hash of the index that prompts showed examples of; NULL: none */
  pst_str input;                            /* with a plan */
  const pst_str *exclude;
  size_t n_exclude;
  const pst_chat
      *chat; /* plain CHAT: the caller's until pst_gateway_chat returns, then a copy, or NULL when no longer needed */
  pst_str text; /* plain TEXT: as `chat` */
  const int32_t *tokens;
  size_t n_tokens;
  const pst_wire_prompt *inputs; /* EMBED: as `chat` */
  size_t n_inputs;
  int dims;
  char *input_json; /* keep_content */
  uint64_t seed;
  int64_t start_us, time_ms;

  /* in gateway->calls, under its lock */
  pst_gateway_live *prev, *next;
  int n_refs;

  /* the stage; of the thread that has the call */
  const pst_gateway_node *leaf; /* NULL: plain */
  bool final;                   /* no stage can follow: what comes is the answer */
  int stage;                    /* counts from 0 */
  pst_gateway_slot *slot;
  pst_gateway_prompt prompt;
  bool has_prompt;
  pst_gateway_index *index;
  pst_engine_tokens prompt_tokens;
  size_t *lengths; /* EMBED: tokens of each input, [n_inputs], in the arena */
  float *vectors;  /* EMBED: the answer, [n_inputs][n_dims] */
  int n_dims;
  pst_engine_choices *constraint;
  pst_engine_corpus *corpus; /* of the leaf's past answers */
  pst_engine_adapter *adapter;
  pst_gateway_upstream *upstream;
  const pst_classifier *classifier;
  pst_str classifier_label; /* what it answers */
  int max_tokens;
  int64_t machine_nusd_per_hour; /* local, classifier */
  int64_t bound_nusd;            /* of the stage's cost */
  int64_t reservation;           /* 0: none */
  pst_error error;               /* why the stage failed: reserving; under lock: submitting, the engine */
  pst_gateway_waiter waiter;
  pst_net_task task, cancel_task;
  pst_gateway_choice choices[PST_GATEWAY_MAX_N];
  pst_buf scratch; /* bytes of alternatives */

  /* sums over stages, for the last event and the books */
  int64_t prompt_tokens_sum, cached_sum, completion_sum, cost_nusd, queued_us, ttft_us;
  int n_drafted, n_accepted, n_token_steps, http_status, retry_after_s;
  double margin;
  const char *target, *model;

  /* shared */
  pthread_mutex_t lock;
  pst_gateway_phase phase;
  bool cancelled;
  uint64_t request_ids[PST_GATEWAY_MAX_N];
  int n_requests; /* with an id */
  int n_working;  /* requests without their last event, and one for the thread that submits */
  int64_t stage_busy_us;
  int stage_prompt_tokens, stage_cached;
  int64_t stage_completion, stage_queued_us, stage_first_us; /* first_us: since stage_start_us; -1: none */
  int64_t stage_start_us;
  double stage_margin;
};

/* ---- live.c: birth, events, end ---- */

/* 0, or why nothing of it has begun. */
int pst_gateway_live_create(pst_gateway *gateway, const pst_gateway_call *call, pst_gateway_live **ret_live,
                            pst_error *err);
void pst_gateway_live_unref(pst_gateway_live *live);
/* Copies the conversation or text that the caller lent, for a call that goes on after pst_gateway_chat has returned. */
int pst_gateway_live_keep_input(pst_gateway_live *live, pst_error *err);
bool pst_gateway_live_is_cancelled(pst_gateway_live *live);
void pst_gateway_live_set_phase(pst_gateway_live *live, pst_gateway_phase phase);
/* Hands the call to the loop: fn(live) there. */
void pst_gateway_live_post(pst_gateway_live *live, pst_net_fn fn);
/* Books and delivers the last event. error NULL: it went well. The call may be gone when this returns. */
void pst_gateway_live_end(pst_gateway_live *live, const pst_error *error);

/* New text of a choice. token NULL: none. Delivers it, or keeps it as the call wants. */
void pst_gateway_live_text(pst_gateway_live *live, uint32_t choice, pst_str text, const pst_engine_event *token);
/* The same for a token whose alternatives have texts but no ids; not while a stage is held. */
void pst_gateway_live_upstream_token(pst_gateway_live *live, uint32_t choice, pst_str text,
                                     const pst_engine_event *token, const pst_str *top_texts);
/* A choice has ended. tool_calls: of an upstream. */
void pst_gateway_live_finish(pst_gateway_live *live, uint32_t choice, pst_engine_finish finish,
                             const pst_chat_tool_call *tool_calls, size_t n_tool_calls);
/* Everything kept of a stage that has turned out to be the answer. */
void pst_gateway_live_release(pst_gateway_live *live);
/* Forgets what a stage has said. */
void pst_gateway_live_forget(pst_gateway_live *live);

/* ---- stage.c: from stage to stage ---- */

/* Begins the stage live->leaf. On failure nothing is under way: the caller refuses the call, or ends it. */
int pst_gateway_stage_begin(pst_gateway_live *live, const pst_gateway_call *call, pst_error *err);
/* Reserves live->bound_nusd, then starts the target: on this thread when there is nothing to reserve, else on the loop. */
int pst_gateway_stage_reserve(pst_gateway_live *live, pst_error *err);
/* Builds the leaf's prompt: live->prompt, live->index. */
int pst_gateway_stage_prompt(pst_gateway_live *live, pst_error *err);
/* The stage is over: settles its cost, gives back what it holds, goes on to the next one or ends the call. error NULL: it has answered. */
void pst_gateway_stage_over(pst_gateway_live *live, int64_t cost_nusd, const pst_error *error);
void pst_gateway_stage_clean(pst_gateway_live *live); /* frees what the stage holds */
/* Reads the machine's price per hour into the call; without one it costs nothing. */
int pst_gateway_stage_machine_price(pst_gateway_live *live, pst_error *err);
/* A value that the request set, else the leaf's, else the default. */
pst_engine_sampling pst_gateway_stage_sampling(const pst_gateway_live *live);

/* ---- local.c ---- */
int pst_gateway_local_begin(pst_gateway_live *live, pst_error *err);
/* Takes an engine for the stage, and goes on when it is there. */
int pst_gateway_local_load(pst_gateway_live *live, const pst_gateway_engine_spec *spec, pst_error *err);
int pst_gateway_local_priority(const pst_gateway_live *live);         /* of its requests in an engine's queue */
int pst_gateway_local_submit(pst_gateway_live *live, pst_error *err); /* after the reservation */
void pst_gateway_local_cancel(pst_gateway_live *live);                /* under live->lock, phase ANSWERING */

void pst_gateway_local_over(void *live); /* all requests of the stage have ended */

/* ---- embed.c: the same for embeddings ---- */
/* Whether the model is of the kind that the call needs, and makes vectors of that size. */
int pst_gateway_embed_check_model(const pst_gateway_live *live, const pst_engine_model_info *info, pst_error *err);
int pst_gateway_embed_prompt(pst_gateway_live *live, pst_error *err); /* fills prompt_tokens and lengths */
int pst_gateway_embed_keep_input(pst_gateway_live *live, pst_error *err);
/* The texts whose tokens are in prompt_tokens, one behind the other; lengths: [n_texts]. Their vectors are in the call when its stage is over. */
int pst_gateway_embed_submit(pst_gateway_live *live, size_t n_texts, pst_error *err);
/* What a classifier's encoder reads of a text, appended: as many tokens as fit its context, and of those cut off the last, which may be one that the model wants at
 * the end. *ret_n: how many. */
int pst_gateway_embed_beginning(const pst_engine *engine, pst_str text, pst_engine_tokens *tokens, size_t *ret_n,
                                pst_error *err);

/* ---- classifier.c ---- */
int pst_gateway_classifier_begin(pst_gateway_live *live, pst_error *err);
int pst_gateway_classifier_ready(pst_gateway_live *live, pst_error *err);  /* its encoder is there */
int pst_gateway_classifier_submit(pst_gateway_live *live, pst_error *err); /* after the reservation */
void pst_gateway_classifier_over(void *live);                              /* it has answered, or its encoder has */
/* The classifier of a leaf, open; it stays while the gateway does. PST_E_BAD_INPUT: it answers what is none of the plan's labels, or wants another encoder. */
int pst_gateway_classifier_get(pst_gateway *gateway, const pst_gateway_plan *plan, const pst_gateway_node *leaf,
                               const pst_classifier **ret_classifier, pst_error *err);
void pst_gateway_classifiers_free(pst_gateway *gateway);

/* ---- cache.c ---- */
/* Looks whether exactly this was answered before: sets what the call has of the cache. A call whose target is found, before its first stage. */
int pst_gateway_cache_look(pst_gateway_live *live, const pst_gateway_call *call, pst_error *err);
/* The stage of a hit, in place of all others. */
int pst_gateway_cache_begin(pst_gateway_live *live, pst_error *err);
int pst_gateway_cache_submit(pst_gateway_live *live, pst_error *err); /* after the reservation */
/* How the record of a call that ended well is to be found again, if at all. */
pst_store_reuse pst_gateway_cache_reuse(const pst_gateway_live *live);

/* ---- remote.c ---- */
/* call: NULL past the first stage. */
int pst_gateway_remote_begin(pst_gateway_live *live, const pst_gateway_call *call, pst_str provider, pst_str model,
                             pst_error *err);
void pst_gateway_remote_start(void *live);              /* after the reservation; on the loop */
void pst_gateway_remote_cancel(pst_gateway_live *live); /* on the loop, phase UPSTREAM: ends the call */
void pst_gateway_upstream_free(pst_gateway_upstream *upstream);

/* ---- copy.c ---- */
/* A conversation with all it points to; JSON values live in *ret_doc. */
int pst_gateway_chat_copy(const pst_chat *chat, pst_arena *arena, pst_chat **ret_chat, pst_json_doc **ret_doc,
                          pst_error *err);

/* ---- cost.c: pure ---- */

/* What a local call costs: price of the machine per hour times the call's share of the time of the steps it took part in. */
int64_t pst_gateway_cost_local(int64_t nusd_per_hour, int64_t busy_us);
/* An upper bound on it before the call: see cost.c. PST_E_LIMIT when it does not fit. */
int pst_gateway_cost_local_bound(int64_t nusd_per_hour, const pst_engine_model_info *info, int64_t n_tokens,
                                 int64_t *ret_nusd);
/* The same for a text of n_bytes classified among n_labels. */
int pst_gateway_cost_classifier_bound(int64_t nusd_per_hour, size_t n_bytes, size_t n_labels, int64_t *ret_nusd);
/* Upper bound for one attempt of a remote call: every byte of the body a token, an allowance for each message and tool, all of max_tokens. */
int pst_gateway_cost_remote_bound(pst_store_price price, size_t body_bytes, size_t n_parts, int64_t max_tokens,
                                  int64_t *ret_nusd);

#endif
