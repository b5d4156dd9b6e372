/* The engine: its thread, its queue of requests, and the loop plan -> forward -> sample.
 *
 * Other threads touch only the inbox, the cancel list and the counters, under one lock; everything else belongs to the engine's thread. A request's way: submit
 * copies it into a session, the loop hands it to the scheduler, each step advances it, its last event frees it. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/engine.h"

static pst_engine_kv const kv_default = PST_ENGINE_KV_F16;

pst_engine_options pst_engine_options_default(void) {
  pst_engine_options o = {0};
  o.kv = kv_default;
  o.slots = 8;
  o.chunk = 256;
  o.max_queue = 1024;
  return o;
}

static int check_options(const pst_engine_model *m, pst_engine_options *o, pst_error *err) {
  const pst_engine_model_info *f = &m->info;
  if (o->slots < 1 || o->slots > 256)
    return pst_error_set(err, PST_E_BAD_INPUT, "slots", "slots must be between 1 and 256");
  if (o->chunk < 16 || o->chunk > 2048)
    return pst_error_set(err, PST_E_BAD_INPUT, "chunk", "chunk must be between 16 and 2048 tokens");
  if (o->threads < 0 || o->threads > PST_ENGINE_MAX_THREADS)
    return pst_error_set(err, PST_E_BAD_INPUT, "threads", "threads must be between 0 (all) and %d",
                         PST_ENGINE_MAX_THREADS);
  if (o->threads == 0) o->threads = PST_MIN(pst_cpu_count(), PST_ENGINE_MAX_THREADS);
  if (o->n_ctx < 0 || o->n_ctx > f->n_ctx_train)
    return pst_error_set(err, PST_E_BAD_INPUT, "n_ctx", "the context must be between 0 (automatic) and the model's %d",
                         f->n_ctx_train);
  if (o->n_ctx == 0) o->n_ctx = PST_MIN(f->n_ctx_train, 8192);
  if (o->kv_tokens < 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "kv_tokens", "kv_tokens must be 0 (automatic) or more");
  if (o->kv_tokens == 0) o->kv_tokens = PST_MAX(o->slots * 1024, o->n_ctx);
  int64_t pages = ((int64_t)o->kv_tokens + PST_ENGINE_PAGE - 1) / PST_ENGINE_PAGE;
  pages = PST_MAX(pages, (o->n_ctx + PST_ENGINE_PAGE - 1) / PST_ENGINE_PAGE);
  if (pages > INT32_MAX / PST_ENGINE_PAGE) return pst_error_set(err, PST_E_LIMIT, "kv_tokens", "too many positions");
  o->kv_tokens = (int)pages * PST_ENGINE_PAGE;
  if (o->max_queue <= 0) o->max_queue = 1024;
  /* A page says nothing of the state behind it: prefixes of a recurrent model are computed anew. */
  if (f->state_bytes) o->no_reuse = true;
  return 0;
}

int pst_engine_estimate_memory(const pst_engine_model *model, const pst_engine_options *options, int64_t *ret_kv_bytes,
                               int64_t *ret_work_bytes, pst_error *err) {
  pst_engine_options o = options ? *options : pst_engine_options_default();
  int code = check_options(model, &o, err);
  if (code) return code;
  int drafts = o.slots * (1 + PST_ENGINE_MAX_DRAFT), runs = o.slots * PST_ENGINE_MAX_RUN;
  size_t vocab = (size_t)model->info.n_vocab;
  if (model->info.n_dims) {
    *ret_kv_bytes = 0;
    *ret_work_bytes = (int64_t)pst_engine_encoder_work_bytes(model, &o);
    return 0;
  }
  int64_t draft_kv = 0, draft_work = 0;
  if (o.draft) pst_engine_draft_model_bytes(&o, &draft_kv, &draft_work);
  *ret_kv_bytes = (int64_t)(o.kv_tokens / PST_ENGINE_PAGE) * (int64_t)pst_engine_forward_page_bytes(model, o.kv) +
                  o.slots * model->info.state_bytes + draft_kv;
  *ret_work_bytes =
      draft_work +
      (int64_t)(pst_engine_forward_work_bytes(model, o.kv, o.chunk + drafts + runs, o.slots, o.chunk + drafts, o.n_ctx,
                                              o.threads) +
                vocab * ((PST_ENGINE_HEAD_ROWS + 1) * sizeof(float) + sizeof(pst_engine_candidate) + sizeof(int32_t)));
  return 0;
}

static void *engine_thread(void *arg);

/* Memory, forward pass and thread of an engine that generates. */
static int start_generator(pst_engine *e, pst_error *err) {
  pst_engine_model *model = e->model;
  const pst_engine_options *o = &e->options;
  size_t vocab = (size_t)model->info.n_vocab;
  int n_pages = o->kv_tokens / PST_ENGINE_PAGE, drafts = o->slots * (1 + PST_ENGINE_MAX_DRAFT),
      runs = o->slots * PST_ENGINE_MAX_RUN;
  e->page_bytes = pst_engine_forward_page_bytes(model, o->kv);
  e->pages = pst_malloc_aligned((size_t)n_pages * e->page_bytes, 2u << 20);
  if (e->pages) (void)madvise(e->pages, (size_t)n_pages * e->page_bytes, MADV_HUGEPAGE);
  e->logits = pst_malloc_aligned(PST_ENGINE_HEAD_ROWS * vocab * sizeof(float), 64);
  e->raw = pst_malloc_aligned(vocab * sizeof(float), 64);
  e->work = pst_malloc(vocab * sizeof *e->work);
  e->allowed = pst_malloc(vocab * sizeof *e->allowed);
  e->groups = pst_malloc((vocab / PST_KERNELS_GROUP + 1) * sizeof *e->groups);
  e->group_marks = pst_calloc(vocab / PST_KERNELS_GROUP + 1, 1);
  e->items = pst_calloc((size_t)o->slots, sizeof *e->items);
  e->rows = pst_calloc((size_t)o->chunk + (size_t)drafts, sizeof *e->rows);
  e->offers = pst_calloc((size_t)o->slots, sizeof *e->offers);
  e->offerers = pst_calloc((size_t)o->slots, sizeof *e->offerers);
  e->offer_room = pst_calloc((size_t)o->slots, sizeof *e->offer_room);
  if (model->info.state_bytes) e->states = pst_malloc_aligned((size_t)o->slots * (size_t)model->info.state_bytes, 64);
  e->state_is_taken = pst_calloc((size_t)o->slots, sizeof *e->state_is_taken);
  bool fits = (e->states || !model->info.state_bytes) && e->state_is_taken && e->pages && e->logits && e->raw &&
              e->work && e->allowed && e->groups && e->group_marks && e->items && e->rows && e->offers && e->offerers &&
              e->offer_room;
  int code = fits ? pst_engine_sched_init(&e->sched, o->slots, o->chunk, n_pages, !o->no_reuse) : PST_E_NOMEM;
  if (code)
    pst_error_set(err, code, NULL, "no memory for %.0f MB of keys and values",
                  ((double)n_pages * (double)e->page_bytes + (double)o->slots * (double)model->info.state_bytes) / 1e6);
  if (!code)
    code = pst_engine_forward_create(model, o->kv, o->chunk + drafts + runs, o->slots, o->chunk + drafts, o->n_ctx,
                                     o->threads, &e->forward, err);
  if (!code && o->draft) code = pst_engine_draft_model_create(model, o, n_pages, &e->draft, err);
  if (!code && pthread_create(&e->thread, NULL, engine_thread, e))
    code = pst_error_set(err, PST_E_IO, NULL, "cannot start the engine's thread");
  else if (!code)
    e->started = true;
  return code;
}

int pst_engine_create(pst_engine_model *model, const pst_engine_options *options, pst_engine **ret_engine,
                      pst_error *err) {
  pst_engine *e = pst_calloc(1, sizeof *e);
  if (!e) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  e->options = options ? *options : pst_engine_options_default();
  int code = check_options(model, &e->options, err);
  if (!code && model->info.n_dims && e->options.draft)
    code = pst_error_set(err, PST_E_UNSUPPORTED, "draft", "the model is an encoder: it writes no text to guess at");
  if (code) {
    pst_free(e);
    return code;
  }
  e->model = pst_engine_model_ref(model);
  pthread_mutex_init(&e->lock, NULL);
  pthread_cond_init(&e->changed, NULL);
  code = model->info.n_dims ? pst_engine_encoder_create(model, &e->options, &e->encoder, err) : start_generator(e, err);
  if (code) {
    pst_engine_free(e);
    return code;
  }
  *ret_engine = e;
  return 0;
}

void pst_engine_free(pst_engine *e) {
  if (!e) return;
  if (e->started) {
    pthread_mutex_lock(&e->lock);
    e->stopping = true;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
  }
  pst_engine_encoder_free(e->encoder);
  pst_engine_forward_free(e->forward);
  pst_engine_draft_model_free(e->draft);
  pst_engine_sched_done(&e->sched);
  pst_engine_model_unref(e->model);
  pthread_mutex_destroy(&e->lock);
  pthread_cond_destroy(&e->changed);
  pst_free(e->pages);
  pst_free(e->states);
  pst_free(e->state_is_taken);
  pst_free(e->logits);
  pst_free(e->raw);
  pst_free(e->work);
  pst_free(e->allowed);
  pst_free(e->groups);
  pst_free(e->group_marks);
  pst_free(e->items);
  pst_free(e->rows);
  pst_free(e->offers);
  pst_free(e->offerers);
  pst_free(e->offer_room);
  pst_free(e->cancels);
  pst_free(e);
}

const pst_engine_options *pst_engine_get_options(const pst_engine *e) { return &e->options; }
pst_engine_model *pst_engine_get_model(const pst_engine *e) { return e->model; }

int pst_engine_submit(pst_engine *e, const pst_engine_request *request, uint64_t *ret_request_id, pst_error *err) {
  pst_engine_session *s;
  if (e->encoder)
    return pst_error_set(err, PST_E_UNSUPPORTED, "model",
                         "the model is an encoder (%s): it makes embeddings and writes no text",
                         e->model->info.architecture);
  if (request->speculation == PST_ENGINE_SPEC_MODEL && !e->draft)
    return pst_error_set(err, PST_E_UNSUPPORTED, "speculation", "the engine has no draft model");
  int code = pst_engine_session_create(e->model, request, e->options.n_ctx, &s, err);
  if (code) return code;
  pthread_mutex_lock(&e->lock);
  if (e->stopping)
    code = pst_error_set(err, PST_E_CANCELLED, NULL, "the engine is stopping");
  else if (e->n_inbox + e->stats.n_queued >= e->options.max_queue)
    code = pst_error_set(err, PST_E_BUSY, NULL, "%d requests wait already; try again later", e->options.max_queue);
  else {
    s->id = s->seq.id = ++e->last_id;
    *ret_request_id = s->id;
    s->next = NULL;
    if (e->inbox_last)
      e->inbox_last->next = s;
    else
      e->inbox = s;
    e->inbox_last = s;
    e->n_inbox++;
    pthread_cond_signal(&e->changed);
  }
  pthread_mutex_unlock(&e->lock);
  if (code) pst_engine_session_free(s);
  return code;
}

void pst_engine_cancel(pst_engine *e, uint64_t request_id) {
  if (e->encoder) {
    pst_engine_encoder_cancel(e->encoder, request_id);
    return;
  }
  pthread_mutex_lock(&e->lock);
  if (!pst_array_reserve((void **)&e->cancels, &e->cancels_capacity, e->n_cancels + 1, sizeof *e->cancels)) {
    e->cancels[e->n_cancels++] = request_id;
    pthread_cond_signal(&e->changed);
  }
  pthread_mutex_unlock(&e->lock);
}

void pst_engine_get_stats(pst_engine *e, pst_engine_stats *ret_stats) {
  if (e->encoder) {
    pst_engine_encoder_get_stats(e->encoder, ret_stats);
    return;
  }
  pthread_mutex_lock(&e->lock);
  *ret_stats = e->stats;
  ret_stats->n_queued += e->n_inbox;
  pthread_mutex_unlock(&e->lock);
}

void pst_engine_clear_prefix_cache(pst_engine *e) {
  pthread_mutex_lock(&e->lock);
  e->clear_wanted = true;
  pthread_cond_signal(&e->changed);
  pthread_mutex_unlock(&e->lock);
}

/* ---- the engine's thread ---- */

static void finish_session(pst_engine *e, pst_engine_session *s, pst_engine_finish finish, const pst_error *error) {
  pst_engine_session **link = &e->live;
  while (*link != s) link = &(*link)->next;
  *link = s->next;
  e->counts.n_cached_tokens += s->seq.n_cached;
  e->counts.n_completion_tokens += s->n_completion;
  e->counts.n_prompt_tokens += s->n_prompt_given;
  e->counts.n_drafted += s->n_drafted;
  e->counts.n_accepted += s->n_accepted;
  if (s->state >= 0) e->state_is_taken[s->state] = false;
  pst_engine_session_end(s, finish, error);
  pst_engine_sched_remove(&e->sched, &s->seq);
  pst_engine_session_free(s);
}

/* A choice list may leave only one way to begin: those tokens are no decision. Returns STOP when that is the whole answer. */
static pst_engine_finish force(pst_engine *e, pst_engine_session *s) {
  pst_engine_finish finish = PST_ENGINE_FINISH_NONE;
  while (s->choices && finish == PST_ENGINE_FINISH_NONE) {
    int32_t token = pst_engine_choices_forced(s->choices, s->choice_node);
    if (token < 0) break;
    finish = pst_engine_session_accept(s, e->model, token, NULL);
  }
  return finish;
}

/* Shared by all requests that draft from the same corpus: one of them alone is too short to learn from. */
static pst_engine_acceptance *experience_of(pst_engine *e, const pst_engine_session *s) {
  uint64_t key = s->corpus ? pst_engine_corpus_key(s->corpus) : 0;
  pst_engine_experience *oldest = &e->experiences[1];
  for (int i = key != 0; i < PST_ENGINE_EXPERIENCES; i++) { /* the first is that of no corpus */
    pst_engine_experience *x = &e->experiences[i];
    if (x->corpus_key == key) {
      x->used_at = e->counts.n_requests;
      return &x->acceptance;
    }
    if (x->used_at < oldest->used_at) oldest = x;
  }
  *oldest = (pst_engine_experience){.corpus_key = key, .used_at = e->counts.n_requests};
  return &oldest->acceptance;
}

static void admit(pst_engine *e, pst_engine_session *s) {
  s->next = e->live;
  e->live = s;
  e->counts.n_requests++;
  s->acceptance = experience_of(e, s);
  if (s->max_tokens == 0 && !s->seq.score_prompt) {
    finish_session(e, s, PST_ENGINE_FINISH_LENGTH, NULL);
    return;
  }
  pst_engine_finish finish = s->max_tokens ? force(e, s) : PST_ENGINE_FINISH_NONE;
  if (finish != PST_ENGINE_FINISH_NONE)
    finish_session(e, s, finish, NULL);
  else
    pst_engine_sched_add(&e->sched, &s->seq);
}

static pst_engine_session *find_live(pst_engine *e, uint64_t id) {
  pst_engine_session *s = e->live;
  while (s && s->id != id) s = s->next;
  return s;
}

/* What other threads see of the engine. A request is counted from the moment it is submitted: in the inbox, then here. */
static void publish(pst_engine *e) {
  pthread_mutex_lock(&e->lock);
  e->counts.n_running = e->sched.n_running;
  e->counts.n_queued = e->sched.n_waiting;
  e->counts.kv_pages = pst_engine_pages_total(e->sched.pages);
  e->counts.kv_pages_cached = pst_engine_pages_cached(e->sched.pages);
  e->counts.kv_pages_used = e->counts.kv_pages - pst_engine_pages_available(e->sched.pages);
  e->stats = e->counts;
  pthread_mutex_unlock(&e->lock);
}

/* Takes in what other threads want; sleeps when there is nothing to do. False: stop. */
static bool take_in(pst_engine *e) {
  publish(e);
  pthread_mutex_lock(&e->lock);
  while (!e->inbox && !e->live && !e->stopping && !e->clear_wanted) {
    e->n_cancels = 0;
    pthread_cond_wait(&e->changed, &e->lock);
  }
  pst_engine_session *arrived = e->inbox;
  e->inbox = e->inbox_last = NULL;
  e->stats.n_queued += e->n_inbox;
  e->n_inbox = 0;
  uint64_t *cancels = e->cancels;
  size_t n_cancels = e->n_cancels;
  e->cancels = NULL;
  e->n_cancels = e->cancels_capacity = 0;
  bool stopping = e->stopping, clear = e->clear_wanted;
  e->clear_wanted = false;
  pthread_mutex_unlock(&e->lock);

  if (clear) pst_engine_pages_forget_unused(e->sched.pages);
  while (arrived) {
    pst_engine_session *next = arrived->next;
    admit(e, arrived);
    arrived = next;
  }
  for (size_t i = 0; i < n_cancels; i++) {
    pst_engine_session *s = find_live(e, cancels[i]);
    if (s) finish_session(e, s, PST_ENGINE_FINISH_CANCELLED, NULL);
  }
  pst_free(cancels);
  while (stopping && e->live) finish_session(e, e->live, PST_ENGINE_FINISH_CANCELLED, NULL);
  return !stopping;
}

/* Rows of the next step without drafts, at most: prompts to compute, and the next token of every answer. */
static int rows_ahead(const pst_engine *e) {
  const pst_engine_sched *sched = &e->sched;
  int n_answer = 0, n_prompt = sched->waiting && sched->n_running < sched->slots ? sched->chunk : 0;
  for (int i = 0; i < sched->n_running; i++) {
    const pst_engine_seq *q = sched->running[i];
    int n = q->n_tokens - q->n_stored;
    if (q->n_stored < q->n_prompt)
      n_prompt = PST_MIN(n_prompt + n, sched->chunk);
    else
      n_answer += PST_MIN(n, PST_ENGINE_MAX_RUN);
  }
  return n_answer + n_prompt;
}

/* Guesses at the next tokens of the answers that want them, and the choice of how many the step verifies. */
static void make_drafts(pst_engine *e) {
  int n = 0, n_offers = 0, rows = rows_ahead(e);
  e->draft_us = 0;
  if (e->states) return; /* a state does not go back */
  for (int i = 0; i < e->sched.n_running; i++) {
    pst_engine_session *s = (pst_engine_session *)e->sched.running[i];
    pst_engine_seq *q = &s->seq;
    q->n_draft = s->drafter.n_guesses = 0;
    if (s->speculation == PST_ENGINE_SPEC_NONE || s->choices || s->n_heal || q->n_stored < q->n_prompt) continue;
    int room = PST_MIN(q->n_max - q->n_tokens - 1, s->max_tokens - s->n_completion - 1);
    e->offer_room[n] = PST_MAX(PST_MIN(room, PST_ENGINE_MAX_DRAFT), 0);
    pst_engine_drafter_guess(&s->drafter, s->acceptance, q->tokens, q->n_prompt, q->n_tokens, e->offer_room[n]);
    e->offerers[n++] = s;
  }
  if (e->draft)
    e->draft_us = pst_engine_draft_model_guess(e->draft, &e->sched, &e->curve, rows, e->offerers, e->offer_room, n);
  for (int i = 0; i < n; i++) {
    pst_engine_session *s = e->offerers[i];
    if (s->drafter.n_guesses == 0) continue;
    s->seq.n_draft = s->drafter.n_guesses;
    e->offers[n_offers] = (pst_engine_offer){s->drafter.guesses, s->drafter.n_guesses, 0};
    e->offerers[n_offers++] = s;
  }
  if (n_offers == 0 || e->options.draft_always) return;
  pst_engine_speculation_choose(&e->curve, rows, e->offers, n_offers);
  for (int i = 0; i < n_offers; i++) e->offerers[i]->seq.n_draft = e->offers[i].n_chosen;
}

/* A session's recurrent state, zeroed when it gets it. There are as many as sequences run at once. */
static float *state_of(pst_engine *e, pst_engine_session *s) {
  size_t bytes = (size_t)e->model->info.state_bytes;
  if (!e->states) return NULL;
  if (s->state < 0) {
    for (s->state = 0; e->state_is_taken[s->state];) s->state++;
    e->state_is_taken[s->state] = true;
    memset(e->states + (size_t)s->state * bytes, 0, bytes);
  }
  return (float *)(void *)(e->states + (size_t)s->state * bytes);
}

/* Whose adapter comes first; the base's are last. Any order that keeps an adapter's items together will do. */
static bool comes_before(const pst_engine_step_item *a, const pst_engine_step_item *b) {
  uintptr_t x = (uintptr_t)((const pst_engine_session *)a->seq)->adapter,
            y = (uintptr_t)((const pst_engine_session *)b->seq)->adapter;
  return x > y;
}

/* Items of one adapter stand together, so that a step reads its weights once. */
static void gather_adapters(pst_engine_sched *s) {
  for (int i = 1; i < s->n_items; i++) {
    pst_engine_step_item item = s->items[i];
    int k = i;
    for (; k > 0 && comes_before(&item, &s->items[k - 1]); k--) s->items[k] = s->items[k - 1];
    s->items[k] = item;
  }
}

static void run_forward(pst_engine *e) {
  gather_adapters(&e->sched);
  for (int i = 0; i < e->sched.n_items; i++) {
    const pst_engine_step_item *it = &e->sched.items[i];
    pst_engine_session *s = (pst_engine_session *)it->seq;
    for (int p = 0; p < it->seq->n_pages; p++) s->page_memory[p] = e->pages + (size_t)it->seq->pages[p] * e->page_bytes;
    e->items[i] = (pst_engine_forward_item){.tokens = it->seq->tokens + it->first,
                                            .first = it->first,
                                            .n = it->n,
                                            .n_logits = it->n_logits,
                                            .pages = s->page_memory,
                                            .adapter = s->adapter,
                                            .state = state_of(e, s)};
    if (!s->admit_us) s->admit_us = pst_clock_us();
    s->n_steps++;
  }
  pst_engine_forward_run(e->forward, e->items, e->sched.n_items);
}

/* ---- logits ---- */

/* Which step item each kept row belongs to, and which of its rows it is. */
static int list_rows(pst_engine *e) {
  int n = 0;
  for (int i = 0; i < e->sched.n_items; i++)
    for (int k = 0; k < e->sched.items[i].n_logits; k++) e->rows[n++] = (pst_engine_row){i, k};
  return n;
}

/* The head's rows that a batch of constrained requests can use, as groups in ascending order; -1 when some row wants all. */
static int needed_groups(pst_engine *e, int first, int n) {
  int n_marks = (e->model->info.n_vocab + PST_KERNELS_GROUP - 1) / PST_KERNELS_GROUP;
  bool all = false;
  for (int r = first; r < first + n && !all; r++) {
    const pst_engine_session *s = (const pst_engine_session *)e->sched.items[e->rows[r].item].seq;
    int n_allowed =
        s->n_logprobs >= 0 || s->seq.score_prompt ? -1 : pst_engine_session_allowed(s, e->model, e->allowed);
    all = n_allowed < 0;
    for (int i = 0; i < n_allowed; i++) e->group_marks[e->allowed[i] / PST_KERNELS_GROUP] = 1;
  }
  int n_groups = 0;
  for (int g = 0; g < n_marks; g++) {
    if (e->group_marks[g] && !all) e->groups[n_groups++] = g;
    e->group_marks[g] = 0;
  }
  return all ? -1 : n_groups;
}

static void note_margin(pst_engine_session *s, const float *logits, const int32_t *allowed, int n) {
  if (n < 2) return;
  float best = -INFINITY, second = -INFINITY;
  for (int i = 0; i < n; i++) {
    float x = logits[allowed[i]];
    if (x > best)
      second = best, best = x;
    else if (x > second)
      second = x;
  }
  double gap = (double)best - (double)second;
  if (isnan(s->margin) || gap < s->margin) s->margin = gap;
}

/* Whether nothing but the greatest logit's token is asked of this session's rows. */
static bool wants_greatest(pst_engine *e, const pst_engine_session *s) {
  return s->n_logprobs < 0 && !s->seq.score_prompt && s->max_tokens > 0 &&
         pst_engine_sampling_is_plain_greedy(&s->sampling) && pst_engine_session_allowed(s, e->model, e->allowed) < 0;
}

/* Chooses the token behind what the session holds: `greatest` where that is known (else -1), from logits otherwise. */
static pst_engine_finish choose(pst_engine *e, pst_engine_session *s, float *logits, int32_t greatest,
                                int32_t *ret_token) {
  if (greatest >= 0) {
    *ret_token = greatest;
    return pst_engine_session_accept(s, e->model, greatest, NULL);
  }
  size_t vocab = (size_t)e->model->info.n_vocab;
  int n_allowed = pst_engine_session_allowed(s, e->model, e->allowed);
  const float *raw = NULL;
  if (s->n_logprobs >= 0) {
    memcpy(e->raw, logits, vocab * sizeof(float));
    raw = e->raw;
  }
  pst_engine_draw draw = {
      &s->sampling, s->seq.tokens, s->seq.n_prompt, s->seq.n_tokens, n_allowed > 0 ? e->allowed : NULL, n_allowed};
  if (s->choices) note_margin(s, logits, e->allowed, n_allowed);
  if (n_allowed < 0 && pst_engine_sampling_is_plain_greedy(&s->sampling))
    *ret_token = (int32_t)e->model->kernels->argmax(logits, vocab);
  else
    *ret_token = pst_engine_sample(&draw, logits, (int)vocab, e->work);
  return pst_engine_session_accept(s, e->model, *ret_token, raw);
}

/* One row of an item: its logits, or just their greatest's token (else -1). Returns the finish. */
static pst_engine_finish use_row(pst_engine *e, const pst_engine_step_item *it, int row, float *logits,
                                 int32_t greatest, bool *ret_more) {
  pst_engine_session *s = (pst_engine_session *)it->seq;
  int position = it->first + it->n - it->n_logits + row; /* of the token this row has read */
  *ret_more = true;
  if (s->seq.score_prompt && position + 1 < s->seq.n_prompt) {
    pst_engine_session_score(s, e->model, s->seq.tokens[position + 1], logits);
    return PST_ENGINE_FINISH_NONE;
  }
  if (s->max_tokens == 0) return PST_ENGINE_FINISH_LENGTH;
  int32_t token, draft = -1;
  bool drafted = row < it->n_logits - 1 && position >= s->seq.n_prompt - 1;
  if (drafted) draft = s->seq.tokens[s->seq.n_tokens]; /* accept writes the chosen token over it */
  pst_engine_finish finish = choose(e, s, logits, greatest, &token);
  if (drafted && token == draft) s->n_accepted++;
  *ret_more = drafted && token == draft;
  return finish;
}

static bool greatest_suffices(pst_engine *e, int first, int n) {
  for (int r = first; r < first + n; r++)
    if (!wants_greatest(e, (const pst_engine_session *)e->sched.items[e->rows[r].item].seq)) return false;
  return true;
}

static void pick_tokens(pst_engine *e) {
  int n_rows = list_rows(e), at = 0;
  int skip_item = -1; /* its remaining rows stand behind a rejected draft */
  pst_engine_finish *finishes = e->finishes;
  memset(finishes, 0, (size_t)e->sched.n_items * sizeof *finishes);
  while (at < n_rows) {
    int n = PST_MIN(PST_ENGINE_HEAD_ROWS, n_rows - at);
    int32_t greatest[PST_ENGINE_HEAD_ROWS];
    bool greedy = greatest_suffices(e, at, n);
    if (greedy) {
      pst_engine_forward_greedy(e->forward, at, n, e->logits, greatest);
    } else {
      int n_groups = needed_groups(e, at, n);
      pst_engine_forward_logits(e->forward, at, n, n_groups < 0 ? NULL : e->groups, n_groups, e->logits);
    }
    for (int r = 0; r < n; r++) {
      pst_engine_row row = e->rows[at + r];
      if (row.item == skip_item) continue;
      const pst_engine_step_item *it = &e->sched.items[row.item];
      bool more;
      finishes[row.item] = use_row(e, it, row.row, e->logits + (size_t)r * (size_t)e->model->info.n_vocab,
                                   greedy ? greatest[r] : -1, &more);
      if (!more || finishes[row.item] != PST_ENGINE_FINISH_NONE) skip_item = row.item;
    }
    at += n;
  }
  for (int i = 0; i < e->sched.n_items; i++) {
    pst_engine_session *s = (pst_engine_session *)e->sched.items[i].seq;
    if (e->sched.items[i].n_logits == 0) continue;
    s->n_drafted += s->seq.n_draft;
    int known = e->sched.items[i].first + e->sched.items[i].n - s->seq.n_draft; /* before the step */
    pst_engine_drafter_learn(&s->drafter, s->acceptance, s->seq.tokens + known, s->seq.n_tokens - known);
    s->n_token_steps += !s->seq.score_prompt;
    if (finishes[i] == PST_ENGINE_FINISH_NONE && !s->seq.score_prompt) finishes[i] = force(e, s);
    if (s->seq.n_stored >= s->seq.n_prompt) pst_engine_sched_settle(&e->sched, &s->seq);
    if (e->draft) pst_engine_draft_model_settle(e->draft, &e->sched, s);
  }
}

/* Ends what the step finished; last, since the items point to the sessions. */
static void end_finished(pst_engine *e) {
  for (int i = e->sched.n_items - 1; i >= 0; i--)
    if (e->finishes[i] != PST_ENGINE_FINISH_NONE)
      finish_session(e, (pst_engine_session *)e->sched.items[i].seq, e->finishes[i], NULL);
}

/* Only steps of whole answers, whose every row has logits, are alike but for their rows. What attending adds is taken out by the bytes it reads: keys and
 * values beside weights. */
static void note_curve(pst_engine *e, int64_t us) {
  const pst_engine_model_info *m = &e->model->info;
  double attended = 0;
  int rows = 0;
  for (int i = 0; i < e->sched.n_items; i++) {
    const pst_engine_step_item *it = &e->sched.items[i];
    if (it->n_logits < it->n) return;
    attended += it->first;
    rows += it->n;
  }
  attended *= (double)m->kv_bytes_per_token_f16 / (double)PST_MAX(m->step_bytes, 1);
  pst_engine_curve_note(&e->curve, rows, (double)us / (1 + attended));
}

static void note_step(pst_engine *e, int64_t us) {
  note_curve(e, us - e->draft_us);
  pst_engine_step_sample sample = {0};
  sample.us = (double)PST_MAX(us - e->draft_us, 1);
  for (int i = 0; i < e->sched.n_items; i++) {
    const pst_engine_step_item *it = &e->sched.items[i];
    sample.n_tokens += it->n;
    sample.n_logits += it->n_logits;
    sample.n_context += (double)it->n * (it->first + it->n / 2.0);
  }
  for (int i = 0; i < e->sched.n_items; i++) {
    pst_engine_session *s = (pst_engine_session *)e->sched.items[i].seq;
    s->busy_us += (double)us * e->sched.items[i].n / sample.n_tokens;
  }
  e->counts.n_steps++;
  e->counts.busy_us += us;
  pthread_mutex_lock(&e->lock);
  e->samples[e->n_samples++ % PST_ENGINE_STEP_SAMPLES] = sample;
  pthread_mutex_unlock(&e->lock);
}

static void *engine_thread(void *arg) {
  pst_engine *e = arg;
  while (take_in(e)) {
    if (!e->live) continue;
    int64_t start = pst_clock_us();
    make_drafts(e);
    if (pst_engine_sched_plan(&e->sched) == 0) continue;
    publish(e);
    run_forward(e);
    pst_engine_sched_commit(&e->sched);
    pick_tokens(e);
    note_step(e, pst_clock_us() - start);
    end_finished(e);
  }
  return NULL;
}
