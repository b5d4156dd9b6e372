/* Which tokens go into the next forward step.
 *
 * Policy: every decoding sequence takes part in every step (its next token and its drafts); prefill fills up to `chunk` tokens behind
 * them, in order of admission, so that a long prompt delays the others by one chunk at most. A sequence is admitted when a slot is free and
 * the pages of its longest possible end are: nothing that runs can be starved of memory, so nothing has to be preempted.
 *
 * Prefix sharing in flight: before a sequence starts a page it looks the page up. Ready: it takes it. Pending: another sequence computes it in
 * this very step, so it waits one step instead of computing it again. Absent: it announces the page and computes it.
 *
 * Invariants.  RESERVE: sum of n_reserved over running sequences = s->n_reserved <= pages available.
 *              SETTLED: pages below n_published hold tokens that never change again. */
#include "engine/scheduler.h"

#include <assert.h>
#include <string.h>

#define PAGE PST_ENGINE_PAGE

int pst_engine_sched_init(pst_engine_sched *s, int slots, int chunk, int n_pages, bool reuse) {
  memset(s, 0, sizeof *s);
  s->slots = slots;
  s->chunk = chunk;
  s->reuse = reuse;
  s->pages = pst_engine_pages_create(n_pages);
  s->running = pst_calloc((size_t)slots, sizeof(pst_engine_seq *));
  s->items = pst_calloc((size_t)slots, sizeof *s->items);
  if (s->pages && s->running && s->items) return 0;
  pst_engine_sched_done(s);
  return PST_E_NOMEM;
}

void pst_engine_sched_done(pst_engine_sched *s) {
  pst_engine_pages_free(s->pages);
  pst_free(s->running);
  pst_free(s->items);
  memset(s, 0, sizeof *s);
}

void pst_engine_sched_add(pst_engine_sched *s, pst_engine_seq *seq) {
  pst_engine_seq **link = &s->waiting;
  while (*link && (*link)->priority <= seq->priority) link = &(*link)->next;
  seq->next = *link;
  *link = seq;
  seq->running = false;
  s->n_waiting++;
}

static void give_pages_back(pst_engine_sched *s, pst_engine_seq *seq) {
  /* Last page first, so that the head of a prompt, which others are likelier to share, is evicted last. */
  while (seq->n_pages > 0) pst_engine_pages_release(s->pages, seq->pages[--seq->n_pages]);
  s->n_reserved -= seq->n_reserved;
  seq->n_reserved = seq->n_shared = seq->n_keyed = seq->n_published = seq->n_stored = seq->n_cached = 0;
}

void pst_engine_sched_remove(pst_engine_sched *s, pst_engine_seq *seq) {
  if (!seq->running) {
    for (pst_engine_seq **link = &s->waiting; *link; link = &(*link)->next)
      if (*link == seq) {
        *link = seq->next;
        s->n_waiting--;
        break;
      }
    return;
  }
  int i = 0;
  while (s->running[i] != seq) i++;
  memmove(&s->running[i], &s->running[i + 1], (size_t)(--s->n_running - i) * sizeof(pst_engine_seq *));
  give_pages_back(s, seq);
  seq->running = false;
}

/* Takes the pages others have computed, as far as they reach from where the sequence stands. At least one prompt token is always left to
 * compute, since logits are wanted. Returns false when the next page is being computed by another sequence. */
static bool share_pages(pst_engine_sched *s, pst_engine_seq *seq) {
  if (!s->reuse || seq->score_prompt) return true;
  while (seq->n_stored == seq->n_pages * PAGE && seq->n_keyed == seq->n_pages && seq->n_stored + PAGE < seq->n_prompt) {
    const int32_t *tokens = seq->tokens + seq->n_stored;
    pst_engine_page_key key = pst_engine_page_key_next(seq->key, tokens);
    int page;
    pst_engine_page_state state = pst_engine_pages_find(s->pages, key, tokens, &page);
    if (state == PST_ENGINE_PAGE_PENDING) return false;
    if (state == PST_ENGINE_PAGE_ABSENT) return true;
    seq->pages[seq->n_pages++] = page;
    seq->n_shared++;
    seq->n_keyed = seq->n_published = seq->n_pages;
    seq->key = key;
    seq->n_stored += PAGE;
    seq->n_cached += PAGE;
    if (seq->running) { /* it was reserved as a page to compute */
      seq->n_reserved--;
      s->n_reserved--;
    }
  }
  return true;
}

static bool admit(pst_engine_sched *s, pst_engine_seq *seq) {
  seq->key = pst_engine_page_key_root(seq->salt);
  seq->n_pages = seq->n_shared = seq->n_keyed = seq->n_published = seq->n_stored = seq->n_cached = seq->n_reserved = 0;
  (void)share_pages(s, seq);
  int need = (seq->n_max + PAGE - 1) / PAGE - seq->n_pages;
  if (need > pst_engine_pages_available(s->pages) - s->n_reserved) {
    give_pages_back(s, seq);
    return false;
  }
  seq->n_reserved = need;
  s->n_reserved += need;
  seq->running = true;
  s->running[s->n_running++] = seq;
  return true;
}

/* Makes sure that pages stand behind tokens [0, end), and announces the prompt pages that this step will begin. */
void pst_engine_sched_cover(pst_engine_sched *s, pst_engine_seq *seq, int end) {
  while (seq->n_pages * PAGE < end) {
    int page = pst_engine_pages_take(s->pages);
    assert(page >= 0 && seq->n_reserved > 0); /* RESERVE */
    seq->n_reserved--;
    s->n_reserved--;
    seq->pages[seq->n_pages++] = page;
    if (s->reuse && seq->n_keyed == seq->n_pages - 1 && seq->n_pages * PAGE <= seq->n_prompt) {
      const int32_t *tokens = seq->tokens + seq->n_keyed * PAGE;
      seq->key = pst_engine_page_key_next(seq->key, tokens);
      seq->n_keyed++;
      (void)pst_engine_pages_announce(s->pages, page, seq->key, tokens);
    }
  }
}

int pst_engine_sched_plan(pst_engine_sched *s) {
  while (s->waiting && s->n_running < s->slots) {
    pst_engine_seq *seq = s->waiting;
    if (!admit(s, seq)) break;
    s->waiting = seq->next;
    s->n_waiting--;
  }
  s->n_items = 0;
  int budget = s->chunk;
  for (int i = 0; i < s->n_running; i++) {
    pst_engine_seq *seq = s->running[i];
    int n = seq->n_tokens - seq->n_stored, n_logits = 1;
    if (seq->n_stored < seq->n_prompt) {
      if (budget == 0 || !share_pages(s, seq)) continue;
      n = PST_MIN(seq->n_tokens - seq->n_stored, budget);
      budget -= n;
      if (seq->score_prompt)
        n_logits = n;
      else
        n_logits = seq->n_stored + n == seq->n_tokens;
    } else if (n > PST_ENGINE_MAX_RUN) { /* a long run of forced tokens: in pieces */
      n = PST_ENGINE_MAX_RUN;
      n_logits = 0;
    } else {
      n += seq->n_draft;
      n_logits += seq->n_draft;
    }
    pst_engine_sched_cover(s, seq, seq->n_stored + n);
    s->items[s->n_items++] = (pst_engine_step_item){seq, seq->n_stored, n, n_logits};
  }
  return s->n_items;
}

static void publish(pst_engine_sched *s, pst_engine_seq *seq, int n_settled) {
  if (!s->reuse) return;
  while ((seq->n_published + 1) * PAGE <= n_settled) {
    int i = seq->n_published++;
    if (seq->n_keyed == i) {
      seq->key = pst_engine_page_key_next(seq->key, seq->tokens + i * PAGE);
      seq->n_keyed++;
      (void)pst_engine_pages_announce(s->pages, seq->pages[i], seq->key, seq->tokens + i * PAGE);
    }
    pst_engine_pages_publish(s->pages, seq->pages[i]);
  }
}

void pst_engine_sched_commit(pst_engine_sched *s) {
  for (int i = 0; i < s->n_items; i++) {
    pst_engine_seq *seq = s->items[i].seq;
    seq->n_stored += s->items[i].n;
    publish(s, seq, PST_MIN(seq->n_stored, seq->n_prompt));
  }
}

void pst_engine_sched_settle(pst_engine_sched *s, pst_engine_seq *seq) {
  seq->n_draft = 0;
  seq->n_stored = PST_MIN(seq->n_stored, seq->n_tokens - 1);
  publish(s, seq, seq->n_stored);
}
