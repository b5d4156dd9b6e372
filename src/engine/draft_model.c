/* Rounds of a draft model: first all that a sequence holds and the draft model has not read, prompts in chunks, then guess by guess, all sequences together. */
#include "engine/draft_model.h"

#include <string.h>
#include <sys/mman.h>

/* Steps without a guess after which the draft model is asked again, to see whether it pays by now; how fast a round's time follows the last. */
enum { RETRY_STEPS = 64 };
static const double round_rate = 0.1;

/* How much of a page is computed, of the content that it had when it was taken for the generation-th time. */
typedef struct page_fill {
  uint32_t generation;
  int n;
} page_fill;

struct pst_engine_draft_model {
  pst_engine_model *model;
  pst_engine_forward *forward;
  int n_common, n_ctx, chunk; /* tokens below n_common are both models' */
  bool always;
  uint8_t *pages;
  size_t page_bytes;
  page_fill *fills; /* [n_pages] */
  uint8_t **tables; /* [slots][table_size] */
  int table_size;
  pst_engine_forward_item *items; /* [slots] */
  pst_engine_session **who;       /* [slots] of the round */
  int *left;                      /* [slots] guesses that may still be added */
  float *logits;                  /* [PST_ENGINE_HEAD_ROWS][n_vocab] */
  double round_us, bytes_ratio;   /* 0: not known; bytes of a step to those of the target's */
  int n_idle;
};

/* ---- opening ---- */

static int check_model(const pst_engine_model *target, const pst_engine_model *draft, pst_error *err) {
  if (draft->info.n_dims || target->info.state_bytes || draft->info.state_bytes)
    return pst_error_set(err, PST_E_UNSUPPORTED, "draft", "%s",
                         draft->info.n_dims ? "the draft model is an encoder: it writes no text"
                                            : "a recurrent model takes no drafts and makes none");
  int32_t id = pst_engine_vocabulary_differs(target, draft);
  return id < 0 ? 0
                : pst_error_set(err, PST_E_BAD_INPUT, "draft",
                                "the draft model has another vocabulary: token %d is another text there", (int)id);
}

static int context_of(const pst_engine_options *o) { return PST_MIN(o->n_ctx, o->draft->info.n_ctx_train); }

void pst_engine_draft_model_bytes(const pst_engine_options *o, int64_t *ret_kv_bytes, int64_t *ret_work_bytes) {
  size_t logits = (size_t)PST_ENGINE_HEAD_ROWS * (size_t)o->draft->info.n_vocab * sizeof(float);
  *ret_kv_bytes = (int64_t)(o->kv_tokens / PST_ENGINE_PAGE) * (int64_t)pst_engine_forward_page_bytes(o->draft, o->kv);
  *ret_work_bytes = (int64_t)(logits + pst_engine_forward_work_bytes(o->draft, o->kv, o->chunk + o->slots, o->slots,
                                                                     o->slots, context_of(o), o->threads));
}

static int take_memory(pst_engine_draft_model *d, const pst_engine_options *o, int n_pages, pst_error *err) {
  size_t slots = (size_t)o->slots, bytes = (size_t)n_pages * d->page_bytes;
  d->table_size = d->n_ctx / PST_ENGINE_PAGE + 1;
  d->pages = pst_malloc_aligned(bytes, 2u << 20);
  if (d->pages) (void)madvise(d->pages, bytes, MADV_HUGEPAGE);
  d->fills = pst_calloc((size_t)n_pages, sizeof *d->fills);
  d->tables = pst_calloc(slots * (size_t)d->table_size, sizeof *d->tables);
  d->items = pst_calloc(slots, sizeof *d->items);
  d->who = pst_calloc(slots, sizeof *d->who);
  d->left = pst_calloc(slots, sizeof *d->left);
  d->logits = pst_malloc_aligned((size_t)PST_ENGINE_HEAD_ROWS * (size_t)d->model->info.n_vocab * sizeof *d->logits, 64);
  if (d->pages && d->fills && d->tables && d->items && d->who && d->left && d->logits) return 0;
  return pst_error_set(err, PST_E_NOMEM, "draft", "no memory for %.0f MB of the draft model's keys and values",
                       (double)bytes / 1e6);
}

int pst_engine_draft_model_create(const pst_engine_model *target, const pst_engine_options *o, int n_pages,
                                  pst_engine_draft_model **ret_draft, pst_error *err) {
  int n_common = PST_MIN(target->info.n_vocab, o->draft->info.n_vocab);
  int code = check_model(target, o->draft, err);
  if (code) return code;
  pst_engine_draft_model *d = pst_calloc(1, sizeof *d);
  if (!d) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  d->model = pst_engine_model_ref(o->draft);
  d->n_common = n_common;
  d->n_ctx = context_of(o);
  d->chunk = o->chunk;
  d->always = o->draft_always;
  d->page_bytes = pst_engine_forward_page_bytes(d->model, o->kv);
  d->bytes_ratio = (double)d->model->info.step_bytes / (double)PST_MAX(target->info.step_bytes, 1);
  code = take_memory(d, o, n_pages, err);
  if (!code)
    code = pst_engine_forward_create(d->model, o->kv, o->chunk + o->slots, o->slots, o->slots, d->n_ctx, o->threads,
                                     &d->forward, err);
  if (code)
    pst_engine_draft_model_free(d);
  else
    *ret_draft = d;
  return code;
}

void pst_engine_draft_model_free(pst_engine_draft_model *d) {
  if (!d) return;
  pst_engine_forward_free(d->forward);
  pst_engine_model_unref(d->model);
  pst_free(d->pages);
  pst_free(d->fills);
  pst_free(d->tables);
  pst_free(d->items);
  pst_free(d->who);
  pst_free(d->left);
  pst_free(d->logits);
  pst_free(d);
}

/* ---- what is computed ---- */

/* The first n tokens are computed, no more: said of their pages too. */
static void set_stored(pst_engine_draft_model *d, const pst_engine_sched *sched, pst_engine_session *s, int n) {
  int from = PST_MIN(s->n_draft_stored, n) / PST_ENGINE_PAGE, to = PST_MAX(s->n_draft_stored, n) / PST_ENGINE_PAGE;
  for (int p = from; p <= to && p < s->seq.n_pages; p++)
    d->fills[s->seq.pages[p]] = (page_fill){pst_engine_pages_generation(sched->pages, s->seq.pages[p]),
                                            PST_MAX(PST_MIN(n - p * PST_ENGINE_PAGE, PST_ENGINE_PAGE), 0)};
  s->n_draft_stored = n;
}

/* Whole pages that another sequence has had computed. */
static void find_stored(const pst_engine_draft_model *d, const pst_engine_sched *sched, pst_engine_session *s) {
  while (s->n_draft_stored % PST_ENGINE_PAGE == 0 && s->n_draft_stored + PST_ENGINE_PAGE < s->seq.n_tokens) {
    int page = s->seq.pages[s->n_draft_stored / PST_ENGINE_PAGE];
    const page_fill *f = &d->fills[page];
    if (f->generation != pst_engine_pages_generation(sched->pages, page) || f->n < PST_ENGINE_PAGE) return;
    s->n_draft_stored += PST_ENGINE_PAGE;
  }
}

void pst_engine_draft_model_settle(pst_engine_draft_model *d, const pst_engine_sched *sched, pst_engine_session *s) {
  if (s->n_draft_stored >= s->seq.n_tokens) set_stored(d, sched, s, s->seq.n_tokens - 1);
}

/* ---- rounds ---- */

static bool can_read(const pst_engine_draft_model *d, const pst_engine_session *s) {
  for (int i = s->n_draft_stored; i < s->seq.n_tokens; i++)
    if (s->seq.tokens[i] >= d->n_common) return false;
  return s->seq.n_tokens + PST_ENGINE_MAX_DRAFT <= d->n_ctx;
}

/* One item: tokens [first, first + n) of session i of the round. */
static void put_item(pst_engine_draft_model *d, int at, int i, int n, bool wants_logits) {
  const pst_engine_session *s = d->who[i];
  uint8_t **table = d->tables + (size_t)i * (size_t)d->table_size;
  for (int p = 0; p < s->seq.n_pages && p < d->table_size; p++)
    table[p] = d->pages + (size_t)s->seq.pages[p] * d->page_bytes;
  d->items[at] = (pst_engine_forward_item){.tokens = s->seq.tokens + s->n_draft_stored,
                                           .first = s->n_draft_stored,
                                           .n = n,
                                           .n_logits = wants_logits,
                                           .pages = table};
}

/* The guesses of the sessions of a round that are to have one, first to last; those that go on stay in the round. Returns how many do. */
static int read_guesses(pst_engine_draft_model *d, int n) {
  size_t vocab = (size_t)d->model->info.n_vocab;
  int kept = 0;
  for (int at = 0; at < n; at += PST_ENGINE_HEAD_ROWS) {
    int rows = PST_MIN(PST_ENGINE_HEAD_ROWS, n - at);
    pst_engine_forward_logits(d->forward, at, rows, NULL, 0, d->logits);
    for (int r = 0; r < rows; r++) {
      const float *x = d->logits + (size_t)r * vocab;
      pst_engine_session *s = d->who[at + r];
      size_t best = d->model->kernels->argmax(x, vocab);
      int left = d->left[at + r] - 1;
      if (best >= (size_t)d->n_common) continue;
      float p = 1 / d->model->kernels->sum_exp(x, vocab, x[best]);
      bool more = pst_engine_drafter_add(&s->drafter, s->acceptance, s->seq.tokens, s->seq.n_tokens, (int32_t)best, p);
      if (!more || left == 0 || pst_engine_token_ends(d->model, (int32_t)best)) continue;
      d->who[kept] = s;
      d->left[kept++] = left;
    }
  }
  return kept;
}

/* The first round: what the sessions hold, at most a chunk of it. Returns how many have read all and are at the head of the list. */
static int catch_up(pst_engine_draft_model *d, pst_engine_sched *sched, int n) {
  int budget = d->chunk + n, n_items = 0, n_ready = 0;
  for (int i = 0; i < n && budget > 0; i++) {
    pst_engine_session *s = d->who[i];
    int todo = s->seq.n_tokens - s->n_draft_stored, take = PST_MIN(todo, budget);
    put_item(d, n_items++, i, take, take == todo);
    budget -= take;
  }
  pst_engine_forward_run(d->forward, d->items, n_items);
  for (int i = 0; i < n_items; i++) {
    pst_engine_session *s = d->who[i];
    set_stored(d, sched, s, s->n_draft_stored + d->items[i].n);
    if (!d->items[i].n_logits) continue;
    d->who[n_ready] = s;
    d->left[n_ready++] = d->left[i];
  }
  return n_ready;
}

static void note_round(pst_engine_draft_model *d, int64_t us) {
  d->round_us = d->round_us > 0 ? d->round_us + round_rate * ((double)us - d->round_us) : (double)us;
}

static void run_rounds(pst_engine_draft_model *d, pst_engine_sched *sched, int n) {
  int n_read = 0;
  int64_t start = pst_clock_us();
  for (int i = 0; i < n; i++) n_read += d->who[i]->seq.n_tokens - d->who[i]->n_draft_stored;
  bool alike = n_read <= 2 * n; /* to the rounds behind it */
  n = read_guesses(d, catch_up(d, sched, n));
  for (;; alike = true) {
    int64_t now = pst_clock_us();
    if (alike) note_round(d, now - start);
    if (n == 0) return;
    start = now;
    for (int i = 0; i < n; i++) put_item(d, i, i, 1, true);
    pst_engine_forward_run(d->forward, d->items, n);
    for (int i = 0; i < n; i++) set_stored(d, sched, d->who[i], d->who[i]->n_draft_stored + 1);
    n = read_guesses(d, n);
  }
}

/* How deep to ask for n sessions; now and then although it does not seem to pay. */
static int choose_depth(pst_engine_draft_model *d, const pst_engine_step_curve *curve, int rows, int n, float chance) {
  if (d->always) return PST_ENGINE_MAX_DRAFT;
  double round = d->round_us > 0 ? d->round_us : d->bytes_ratio * pst_engine_curve_us(curve, 1);
  int depth = pst_engine_speculation_depth(curve, rows, n, (double)chance, round, PST_ENGINE_MAX_DRAFT);
  if (depth == 0 && ++d->n_idle < RETRY_STEPS) return 0;
  d->n_idle = 0;
  return PST_MAX(depth, 1);
}

int64_t pst_engine_draft_model_guess(pst_engine_draft_model *d, pst_engine_sched *sched,
                                     const pst_engine_step_curve *curve, int rows, pst_engine_session *const *sessions,
                                     const int *room, int n) {
  int64_t start = pst_clock_us();
  int n_who = 0, wanted = 0;
  const pst_engine_acceptance *acceptance = NULL; /* one for all of them */
  for (int i = 0; i < n; i++) {
    if (sessions[i]->speculation != PST_ENGINE_SPEC_MODEL || room[i] == 0) continue;
    acceptance = sessions[i]->acceptance;
    wanted++;
  }
  if (wanted == 0) return 0;
  float chance = pst_engine_drafter_model_chance(acceptance), promise = 0, reached = 1;
  int depth = choose_depth(d, curve, rows, wanted, chance);
  for (int i = 0; i < depth; i++) promise += reached *= chance;
  for (int i = 0; i < n && depth > 0; i++) {
    pst_engine_session *s = sessions[i];
    if (s->speculation != PST_ENGINE_SPEC_MODEL || room[i] == 0) continue;
    if (!d->always && pst_engine_drafter_promise(&s->drafter) >= promise) continue;
    find_stored(d, sched, s);
    if (!can_read(d, s)) continue;
    s->drafter.n_guesses = 0;
    d->left[n_who] = PST_MIN(depth, room[i]);
    pst_engine_sched_cover(sched, &s->seq, s->seq.n_tokens + d->left[n_who] - 1);
    d->who[n_who++] = s;
  }
  if (n_who > 0) run_rounds(d, sched, n_who);
  return pst_clock_us() - start;
}
