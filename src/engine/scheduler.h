/* The scheduler: which tokens of which sequences go into the next forward step. A pure state machine: no clock, lock, thread or tensor,
 * so that the optimizer replays the server's own decisions in virtual time. Owned by one thread. */
#ifndef PST_ENGINE_SCHEDULER_H
#define PST_ENGINE_SCHEDULER_H

#include "engine/pages.h"

/* Most tokens of a decoding sequence in one step, drafts apart; most drafts. */
enum { PST_ENGINE_MAX_RUN = 16, PST_ENGINE_MAX_DRAFT = 8 };

typedef struct pst_engine_seq {
  uint64_t id;
  int priority;    /* lower first */
  uint64_t salt;   /* root of its page keys */
  int32_t *tokens; /* prompt, then answer, then drafts; room for max_tokens_total + drafts; owner: the caller */
  int n_prompt;
  int n_tokens;      /* known tokens: those the model has read or must read next */
  int n_draft;       /* guesses at tokens[n_tokens...], for the next step only */
  int n_stored;      /* leading tokens whose keys and values are in pages */
  int n_max;         /* most tokens it may ever hold */
  bool score_prompt; /* logits wanted for every prompt position */
  /* The scheduler's own: */
  int *pages;                        /* page of each PST_ENGINE_PAGE positions */
  int n_pages, n_shared, n_reserved; /* held; the first n_shared were found; still to be taken */
  int n_cached;                      /* prompt tokens that came from shared pages */
  pst_engine_page_key key;           /* of the last full page */
  int n_keyed;                       /* pages whose keys are known and, if computed here, announced */
  int n_published;                   /* leading pages others can find */
  bool running;
  struct pst_engine_seq *next;
} pst_engine_seq;

/* One sequence's part of a step: tokens[first .. first + n), logits for the last n_logits of them. */
typedef struct pst_engine_step_item {
  pst_engine_seq *seq;
  int first, n, n_logits;
} pst_engine_step_item;

typedef struct pst_engine_sched {
  pst_engine_pages *pages;
  int slots, chunk;
  bool reuse;
  pst_engine_seq *waiting;  /* by priority, then arrival */
  pst_engine_seq **running; /* slots entries, in order of admission */
  int n_running, n_waiting;
  int n_reserved;              /* pages promised to running sequences */
  pst_engine_step_item *items; /* slots entries */
  int n_items;
} pst_engine_sched;

int pst_engine_sched_init(pst_engine_sched *s, int slots, int chunk, int n_pages, bool reuse);
void pst_engine_sched_done(pst_engine_sched *s);

/* Queues a sequence; its pages array (ceil(n_max / PST_ENGINE_PAGE) ints) is the caller's. */
void pst_engine_sched_add(pst_engine_sched *s, pst_engine_seq *seq);
/* Takes a sequence out, waiting or running, and gives its pages back. Full pages that were published stay findable. */
void pst_engine_sched_remove(pst_engine_sched *s, pst_engine_seq *seq);
/* Admits what fits and fills s->items; returns n_items, 0 when there is nothing to do. */
int pst_engine_sched_plan(pst_engine_sched *s);
/* Pages behind tokens [0, end) of a running sequence whose prompt is stored, end <= n_max: the next step would take them. */
void pst_engine_sched_cover(pst_engine_sched *s, pst_engine_seq *seq, int end);
/* The step was computed: what the items cover is stored, full pages of prompt become findable. The caller then appends the new tokens of every item that
 * had logits: n_tokens grows by the accepted drafts and the new token, and pst_engine_sched_settle follows. */
void pst_engine_sched_commit(pst_engine_sched *s);
/* Voids what is stored behind the known tokens (drafts that were not accepted; the newest token is never stored yet) and makes full pages
 * findable. */
void pst_engine_sched_settle(pst_engine_sched *s, pst_engine_seq *seq);

#endif
