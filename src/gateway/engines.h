/* Loaded engines: which models are open, which engine answers which spec, what is closed when memory runs short. */
#ifndef PST_GATEWAY_ENGINES_H
#define PST_GATEWAY_ENGINES_H

#include <penstock/gateway.h>
#include <penstock/net.h>

typedef struct pst_gateway_engines pst_gateway_engines;

/* One engine of the cache. Whoever holds a use of it may read model and engine once it is ready; they stay until the use is given back. */
typedef struct pst_gateway_slot {
  pst_engine_model *model;
  pst_engine *engine;
  struct pst_gateway_slot_state *state; /* engines.c's */
} pst_gateway_slot;

/* Posted to the loop when a slot that was waited for is ready or has failed. */
typedef struct pst_gateway_waiter {
  pst_net_task task; /* fn and arg are the waiter's owner's */
  struct pst_gateway_waiter *next;
} pst_gateway_waiter;

/* home and loop outlive it. memory_bytes, max_queue: filled in, not 0. */
int pst_gateway_engines_create(const char *home, int64_t memory_bytes, int max_queue, pst_net_loop *loop,
                               pst_gateway_engines **ret_engines, pst_error *err);
/* Closes all; no use may be open. A load in progress is waited for. NULL is fine. */
void pst_gateway_engines_free(pst_gateway_engines *engines);

/* One use of the engine for a spec: the slot may still be loading (by the cache's own thread). Never blocks for long. PST_E_NOMEM. */
int pst_gateway_engines_take(pst_gateway_engines *engines, const pst_gateway_engine_spec *spec,
                             pst_gateway_slot **ret_slot, pst_error *err);
/* The same, waiting until it is ready; what must be loaded is loaded by the calling thread, with its progress. */
int pst_gateway_engines_take_now(pst_gateway_engines *engines, const pst_gateway_engine_spec *spec,
                                 pst_progress *progress, pst_gateway_slot **ret_slot, pst_error *err);
bool pst_gateway_slot_loads(pst_gateway_engines *engines, const pst_gateway_slot *slot);
/* True: the slot is no longer loading. False: the waiter's task will be posted once. */
bool pst_gateway_slot_wait(pst_gateway_engines *engines, pst_gateway_slot *slot, pst_gateway_waiter *waiter);
/* Takes a waiter back; false: its task is posted already. */
bool pst_gateway_slot_unwait(pst_gateway_engines *engines, pst_gateway_slot *slot, pst_gateway_waiter *waiter);
/* Of a slot that no longer loads: 0, or why loading failed. */
int pst_gateway_slot_check(pst_gateway_engines *engines, const pst_gateway_slot *slot, pst_error *err);
/* Ends a use. Any thread, engine threads included: closes nothing by itself. NULL is fine. */
void pst_gateway_engines_give(pst_gateway_engines *engines, pst_gateway_slot *slot);
/* The slot of an engine that is in use. */
pst_gateway_slot *pst_gateway_engines_find(pst_gateway_engines *engines, const pst_engine *engine);
/* Is an engine for this spec there, or on its way? */
bool pst_gateway_engines_has(pst_gateway_engines *engines, const pst_gateway_engine_spec *spec);
/* Sums over all engines, closed ones' counters included. */
void pst_gateway_engines_stats(pst_gateway_engines *engines, int *ret_n_engines, pst_engine_stats *ret_stats);

/* The compiled choice list of a label set in an adapter's codes (NULL: none), kept with the slot. One reference for the caller. */
int pst_gateway_slot_choices(pst_gateway_slot *slot, const pst_str *labels, size_t n, bool leading_space,
                             const pst_engine_codes *codes, pst_engine_choices **ret_choices, pst_error *err);

/* The past answers of a file in this engine's tokens (answers.h), kept with the slot. One reference for the caller. */
int pst_gateway_slot_corpus(pst_gateway_slot *slot, pst_store *store, const char *hash, bool leading_space,
                            pst_engine_corpus **ret_corpus, pst_error *err);

/* The adapter of a file in the store (its hash) for this engine's model, kept with the slot. One reference for the caller. Errors: PST_E_NOT_FOUND, those of
 * pst_engine_adapter_open, PST_E_BAD_INPUT (it was made for another file than the plan's). */
int pst_gateway_slot_adapter(pst_gateway_engines *engines, pst_gateway_slot *slot, pst_store *store, const char *hash,
                             pst_engine_adapter **ret_adapter, pst_error *err);

/* The file behind a spec: its path, after re-quantizing where the spec asks for it (kept as HOME/quantized/SHA256-TYPE.gguf, made by one process
 * at a time, whole or not at all). *ret_path: pst_free. progress NULL: silent. */
int pst_gateway_weights_find(const char *home, const pst_gateway_engine_spec *spec, pst_progress *progress,
                             char **ret_path, pst_error *err);

#endif
