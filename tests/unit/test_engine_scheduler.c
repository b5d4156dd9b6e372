/* The scheduler and its pages, driven at random for thousands of steps with every invariant looked at after each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "engine/scheduler.h"

enum { PAGE = PST_ENGINE_PAGE, MAX_TOKENS = 640, MAX_PAGES = MAX_TOKENS / PAGE + 1, MAX_SEQS = 24 };

typedef struct client {
  pst_engine_seq seq;
  int32_t tokens[MAX_TOKENS + PST_ENGINE_MAX_DRAFT];
  int pages[MAX_PAGES];
  bool used;
  int n_wanted; /* tokens at its end */
} client;

typedef struct world {
  pst_engine_sched s;
  client clients[MAX_SEQS];
  /* What the tensors would hold: for each page and position the hash of all tokens up to it; 0: rubbish. */
  uint64_t *memory;
  pst_random r;
  uint64_t last_id;
  int n_finished;
} world;

/* What attention at a position depends on. */
static uint64_t state_at(uint64_t salt, const int32_t *tokens, int position) {
  return pst_hash64(tokens, (size_t)(position + 1) * sizeof *tokens, salt + 1) | 1;
}

static void add_client(world *w) {
  int i = 0;
  while (i < MAX_SEQS && w->clients[i].used) i++;
  if (i == MAX_SEQS) return;
  client *c = &w->clients[i];
  memset(c, 0, sizeof *c);
  c->used = true;
  int n_prompt = 1 + (int)pst_random_below(&w->r, pst_random_below(&w->r, 4) ? 200 : 560);
  int n_common = (int)pst_random_below(&w->r, 4) * 70; /* prompts share beginnings */
  uint64_t family = pst_random_below(&w->r, 3);
  for (int k = 0; k < n_prompt; k++)
    c->tokens[k] = (int32_t)(k < n_common ? pst_random_u64(family, 9, (uint64_t)k) % 50 : pst_random_below(&w->r, 50));
  c->n_wanted = PST_MIN(n_prompt + 1 + (int)pst_random_below(&w->r, 100), MAX_TOKENS);
  c->seq = (pst_engine_seq){.id = ++w->last_id,
                            .priority = (int)pst_random_below(&w->r, 3),
                            .salt = pst_random_below(&w->r, 2),
                            .tokens = c->tokens,
                            .n_prompt = n_prompt,
                            .n_tokens = n_prompt,
                            .n_max = c->n_wanted,
                            .score_prompt = pst_random_below(&w->r, 10) == 0,
                            .pages = c->pages};
  pst_engine_sched_add(&w->s, &c->seq);
}

/* Every stored position of every running sequence holds the state of exactly its own tokens. */
static void check(const world *w) {
  int reserved = 0, held = 0;
  for (int i = 0; i < w->s.n_running; i++) {
    const pst_engine_seq *q = w->s.running[i];
    assert_true(q->running);
    reserved += q->n_reserved;
    held += q->n_pages - q->n_shared;
    assert_true(q->n_pages + q->n_reserved == (q->n_max + PAGE - 1) / PAGE);
    assert_true(q->n_stored <= q->n_pages * PAGE && q->n_stored <= q->n_tokens && q->n_tokens <= q->n_max);
    for (int p = 0; p < q->n_stored; p += 1 + p % 3)
      if (w->memory[q->pages[p / PAGE] * PAGE + p % PAGE] != state_at(q->salt, q->tokens, p))
        fail_msg("sequence %llu: position %d holds another text's state", (unsigned long long)q->id, p);
  }
  assert_int_equal(reserved, w->s.n_reserved); /* RESERVE */
  assert_true(w->s.n_reserved <= pst_engine_pages_available(w->s.pages));
  assert_true(held <= pst_engine_pages_total(w->s.pages) - pst_engine_pages_available(w->s.pages));
  assert_true(pst_engine_pages_cached(w->s.pages) <= pst_engine_pages_available(w->s.pages));
}

static void finish(world *w, client *c) {
  pst_engine_sched_remove(&w->s, &c->seq);
  c->used = false;
  w->n_finished++;
}

/* Tokens of the answer are a function of what is before them, so that equal prefixes grow equal answers. */
static int32_t next_token(const pst_engine_seq *q) {
  return (int32_t)(state_at(q->salt, q->tokens, q->n_tokens - 1) % 7);
}

static void take_step(world *w, int chunk) {
  for (int i = 0; i < w->s.n_running; i++) { /* drafts, as the engine makes them */
    pst_engine_seq *q = w->s.running[i];
    q->n_draft = 0;
    if (q->n_stored < q->n_prompt || pst_random_below(&w->r, 2)) continue;
    int most = PST_MIN(PST_ENGINE_MAX_DRAFT, q->n_max - q->n_tokens);
    q->n_draft = most > 0 ? (int)pst_random_below(&w->r, (uint64_t)most) : 0;
    for (int k = 0; k < q->n_draft; k++) q->tokens[q->n_tokens + k] = (int32_t)pst_random_below(&w->r, 7);
  }
  int n_items = pst_engine_sched_plan(&w->s), n_prefill = 0;
  for (int i = 0; i < n_items; i++) {
    const pst_engine_step_item *it = &w->s.items[i];
    const pst_engine_seq *q = it->seq;
    assert_true(it->n > 0 && it->n_logits >= 0 && it->n_logits <= it->n && it->first == q->n_stored);
    if (it->first < q->n_prompt) n_prefill += it->n;
    for (int p = it->first; p < it->first + it->n; p++)
      w->memory[q->pages[p / PAGE] * PAGE + p % PAGE] = state_at(q->salt, q->tokens, p);
  }
  assert_true(n_prefill <= chunk);
  if (n_items == 0) assert_true(w->s.n_running == 0 && w->s.n_waiting == 0);
  pst_engine_seq *with_logits[64];
  int n_with = 0;
  for (int i = 0; i < n_items; i++)
    if (w->s.items[i].n_logits && w->s.items[i].first + w->s.items[i].n >= w->s.items[i].seq->n_tokens)
      with_logits[n_with++] = w->s.items[i].seq;
  pst_engine_sched_commit(&w->s);
  for (int i = 0; i < n_with; i++) {
    pst_engine_seq *q = with_logits[i];
    int n_draft = q->n_draft;
    for (int k = 0; k <= n_draft && q->n_tokens < q->n_max; k++) {
      int32_t t = next_token(q);
      bool as_drafted = k < n_draft && q->tokens[q->n_tokens] == t;
      q->tokens[q->n_tokens++] = t;
      if (!as_drafted) break;
    }
    client *c = (client *)(void *)q;
    if (q->n_tokens >= c->n_wanted) {
      finish(w, c);
    } else {
      pst_engine_sched_settle(&w->s, q);
    }
  }
}

static void random_load(void **state) {
  (void)state;
  static const struct {
    int slots, chunk, n_pages;
    bool reuse;
  } rows[] = {{1, 16, 11, true}, {4, 64, 24, true}, {8, 256, 80, true}, {8, 48, 30, false}, {16, 512, 60, true}};
  for (size_t row = 0; row < PST_ARRAY_LEN(rows); row++) {
    world *w = pst_calloc(1, sizeof *w);
    int64_t n_cached = 0;
    w->r = (pst_random){row + 1, 5, 0};
    w->memory = pst_calloc((size_t)rows[row].n_pages * PAGE, sizeof *w->memory);
    assert_int_equal(pst_engine_sched_init(&w->s, rows[row].slots, rows[row].chunk, rows[row].n_pages, rows[row].reuse),
                     0);
    for (int step = 0; step < 3000; step++) {
      if (pst_random_below(&w->r, 6) == 0) add_client(w);
      if (pst_random_below(&w->r, 150) == 0) { /* a client goes away, wherever it stands */
        client *c = &w->clients[pst_random_below(&w->r, MAX_SEQS)];
        if (c->used) finish(w, c);
      }
      if (pst_random_below(&w->r, 400) == 0) pst_engine_pages_forget_unused(w->s.pages);
      take_step(w, rows[row].chunk);
      check(w);
      for (int i = 0; i < w->s.n_running; i++) n_cached += w->s.running[i]->n_cached;
    }
    for (int step = 0; step < 20000 && (w->s.n_running || w->s.n_waiting); step++) take_step(w, rows[row].chunk);
    assert_int_equal(w->s.n_running + w->s.n_waiting, 0); /* nobody starves */
    assert_int_equal(w->s.n_reserved, 0);
    assert_int_equal(pst_engine_pages_available(w->s.pages), rows[row].n_pages);
    assert_int_equal(w->n_finished, (int)w->last_id);
    assert_true(rows[row].reuse ? n_cached > 0 : n_cached == 0);
    pst_engine_pages_forget_unused(w->s.pages);
    assert_int_equal(pst_engine_pages_cached(w->s.pages), 0);
    pst_engine_sched_done(&w->s);
    pst_free(w->memory);
    pst_free(w);
  }
}

/* Two equal prompts at once: the second waits for the first one's pages instead of computing them again. */
static void equal_prompts_in_flight(void **state) {
  (void)state;
  static int32_t a[300], b[300];
  int pages_a[5], pages_b[5], computed = 0;
  pst_engine_sched s;
  assert_int_equal(pst_engine_sched_init(&s, 4, 64, 20, true), 0);
  for (int i = 0; i < 300; i++) a[i] = b[i] = i;
  pst_engine_seq x = {.id = 1, .tokens = a, .n_prompt = 256, .n_tokens = 256, .n_max = 300, .pages = pages_a};
  pst_engine_seq y = {.id = 2, .tokens = b, .n_prompt = 256, .n_tokens = 256, .n_max = 300, .pages = pages_b};
  pst_engine_sched_add(&s, &x);
  pst_engine_sched_add(&s, &y);
  for (int step = 0; step < 20 && (x.n_stored < 256 || y.n_stored < 256); step++) {
    int n = pst_engine_sched_plan(&s);
    for (int i = 0; i < n; i++)
      if (s.items[i].first < 256) computed += s.items[i].n;
    pst_engine_sched_commit(&s);
    for (int i = 0; i < n; i++) { /* whoever is through leaves the other the floor */
      pst_engine_seq *q = s.items[i].seq;
      if (q->n_stored == 256 && q->n_tokens == 256) {
        q->tokens[q->n_tokens++] = 7;
        pst_engine_sched_settle(&s, q);
      }
    }
  }
  assert_int_equal(y.n_cached, 192);
  assert_int_equal(computed, 256 + 64);
  pst_engine_sched_remove(&s, &x);
  pst_engine_sched_remove(&s, &y);
  pst_engine_sched_done(&s);
}

static void priorities(void **state) {
  (void)state;
  int32_t tokens[6] = {0};
  int pages[6][1];
  pst_engine_seq q[6];
  static const int priority[] = {2, 0, 1, 0, 2, 1}, order[] = {1, 3, 2, 5, 0, 4};
  pst_engine_sched s;
  assert_int_equal(pst_engine_sched_init(&s, 1, 16, 4, true), 0);
  for (int i = 0; i < 6; i++) {
    q[i] = (pst_engine_seq){.id = (uint64_t)i,
                            .priority = priority[i],
                            .tokens = &tokens[i],
                            .n_prompt = 1,
                            .n_tokens = 1,
                            .n_max = 1,
                            .pages = pages[i]};
    pst_engine_sched_add(&s, &q[i]);
  }
  for (int i = 0; i < 6; i++) {
    assert_int_equal(pst_engine_sched_plan(&s), 1);
    assert_ptr_equal(s.items[0].seq, &q[order[i]]);
    pst_engine_sched_commit(&s);
    pst_engine_sched_remove(&s, s.items[0].seq);
  }
  assert_int_equal(pst_engine_sched_plan(&s), 0);
  pst_engine_sched_done(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(random_load), cmocka_unit_test(equal_prompts_in_flight),
                                     cmocka_unit_test(priorities)};
  return cmocka_run_group_tests_name("engine scheduler", tests, NULL, NULL);
}
