/* Embeddings: a queue of texts, steps of as many whole texts as fit, and from the states of a step to vectors.
 *
 * Owns the thread of an encoder's engine. A text goes through the layers in one step, since each of its tokens sees all others; nothing of it is kept behind
 * the step, so there is neither a cache nor a scheduler. Texts are not padded, and no element of a text's vector depends on what stands beside it, nor on the
 * number of threads (engine/forward.c): alone and in a batch the bits are the same. Requests of one priority share the steps evenly, by tokens: whoever has had the fewest
 * comes next, and who arrives begins level with the one who had the fewest, so that a question does not wait for a library to be indexed. Pooling and projections run on the encoder's own thread: they are
 * a thousandth of the work. */
#include "engine/encoder.h"

#include <math.h>
#include <string.h>

#include "engine/forward.h"

enum { MAX_ITEMS = 64 }; /* texts in a step */

/* One request. Linked and counted under the encoder's lock; the rest is the encoder's thread's. */
typedef struct job {
  struct job *next;
  uint64_t id;
  int priority;
  bool cancelled; /* under the lock */
  int32_t *tokens;
  size_t *starts;                    /* [n_texts + 1] */
  float *vectors;                    /* [n_texts][n_dims] */
  pst_engine_adapter *adapter;       /* NULL: the base */
  size_t n_texts, n_done, n_planned; /* n_planned: with those of the step at hand */
  int64_t served;                    /* tokens that it has had, and those of others before it came */
  pst_engine_embed_callback callback;
  void *user;
  int64_t submit_us, admit_us;
  double busy_us;
  int n_steps;
} job;

typedef struct place {
  job *job;
  size_t text;
} place;

struct pst_engine_encoder {
  pst_engine_model *model;
  int n_ctx, max_tokens, max_queue;
  pthread_t thread;
  bool started;
  /* any thread, under the lock */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  job *jobs; /* by priority, then arrival */
  int n_jobs;
  uint64_t last_id;
  bool stopping;
  pst_engine_stats stats;
  /* the encoder's thread */
  pst_engine_forward *forward;
  uint8_t *pages;
  size_t page_bytes;
  uint8_t **page_table;
  int max_pages;
  pst_engine_forward_item items[MAX_ITEMS];
  place places[MAX_ITEMS];
  int n_items;
  float *row, *pooled; /* [n_widest] each: a normed state; a pooled vector on its way through the projections */
  pst_kernels_input input;
  void *input_memory, *work; /* of the projections; NULL: there are none */
};

/* ---- opening, closing ---- */

static int step_tokens(const pst_engine_options *o) { return PST_MAX(o->n_ctx, o->chunk); }
/* Every text may leave a page part empty. */
static int step_pages(const pst_engine_options *o) { return step_tokens(o) / PST_KERNELS_PAGE + MAX_ITEMS; }

static size_t widest(const pst_engine_model *m) {
  size_t n = (size_t)m->info.n_embd;
  for (int i = 0; i < m->encoding.n_dense; i++) n = PST_MAX(n, m->encoding.dense[i].n_rows);
  return n;
}

size_t pst_engine_encoder_work_bytes(const pst_engine_model *model, const pst_engine_options *o) {
  return pst_engine_forward_work_bytes(model, PST_ENGINE_KV_F16, step_tokens(o), MAX_ITEMS, 1, o->n_ctx, o->threads) +
         (size_t)step_pages(o) * pst_engine_forward_page_bytes(model, PST_ENGINE_KV_F16) +
         (model->encoding.n_dense ? PST_KERNELS_WORK_BYTES : 0);
}

static int make_room(pst_engine_encoder *e, const pst_engine_options *o) {
  size_t n = widest(e->model);
  e->max_pages = step_pages(o);
  e->page_bytes = pst_engine_forward_page_bytes(e->model, PST_ENGINE_KV_F16);
  e->pages = pst_malloc_aligned((size_t)e->max_pages * e->page_bytes, 4096);
  e->page_table = pst_calloc((size_t)e->max_pages, sizeof *e->page_table);
  e->row = pst_malloc_aligned(n * sizeof(float), 64);
  e->pooled = pst_malloc_aligned(n * sizeof(float), 64);
  if (!e->pages || !e->page_table || !e->row || !e->pooled) return PST_E_NOMEM;
  for (int i = 0; i < e->max_pages; i++) e->page_table[i] = e->pages + (size_t)i * e->page_bytes;
  if (!e->model->encoding.n_dense) return 0;
  e->work = pst_malloc_aligned(PST_KERNELS_WORK_BYTES, 64);
  e->input_memory = pst_malloc_aligned(pst_kernels_input_bytes(1, n), 64);
  return e->work && e->input_memory ? 0 : PST_E_NOMEM;
}

static void *encoder_thread(void *arg);

int pst_engine_encoder_create(pst_engine_model *model, const pst_engine_options *o, pst_engine_encoder **ret_encoder,
                              pst_error *err) {
  pst_engine_encoder *e = pst_calloc(1, sizeof *e);
  if (!e) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  e->model = pst_engine_model_ref(model);
  e->n_ctx = o->n_ctx;
  e->max_tokens = step_tokens(o);
  e->max_queue = o->max_queue;
  pthread_mutex_init(&e->lock, NULL);
  pthread_cond_init(&e->changed, NULL);
  int code = make_room(e, o);
  if (code)
    pst_error_set(err, code, NULL, "no memory for %.0f MB of work space",
                  (double)pst_engine_encoder_work_bytes(model, o) / 1e6);
  else
    code = pst_engine_forward_create(model, PST_ENGINE_KV_F16, e->max_tokens, MAX_ITEMS, 1, o->n_ctx, o->threads,
                                     &e->forward, err);
  if (!code && pthread_create(&e->thread, NULL, encoder_thread, e))
    code = pst_error_set(err, PST_E_IO, NULL, "cannot start the engine's thread");
  if (code) {
    pst_engine_encoder_free(e);
    return code;
  }
  e->started = true;
  *ret_encoder = e;
  return 0;
}

void pst_engine_encoder_free(pst_engine_encoder *e) {
  if (!e) return;
  if (e->started) {
    pthread_mutex_lock(&e->lock);
    e->stopping = true;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
  }
  pst_engine_forward_free(e->forward);
  pst_engine_model_unref(e->model);
  pthread_mutex_destroy(&e->lock);
  pthread_cond_destroy(&e->changed);
  pst_free(e->pages);
  pst_free(e->page_table);
  pst_free(e->row);
  pst_free(e->pooled);
  pst_free(e->work);
  pst_free(e->input_memory);
  pst_free(e);
}

/* ---- requests ---- */

static void job_free(job *j) {
  if (!j) return;
  pst_free(j->tokens);
  pst_free(j->starts);
  pst_free(j->vectors);
  pst_engine_adapter_unref(j->adapter);
  pst_free(j);
}

static int check(const pst_engine_encoder *e, const pst_engine_embed_request *r, size_t *ret_n_tokens, pst_error *err) {
  size_t n = 0;
  if (!r->callback) return pst_error_set(err, PST_E_BAD_INPUT, NULL, "a request needs a callback");
  if (r->adapter && r->adapter->model_key != e->model->content_key)
    return pst_error_set(err, PST_E_BAD_INPUT, "adapter", "the adapter was opened for another model");
  if (r->n_texts == 0) return pst_error_set(err, PST_E_BAD_INPUT, "input", "there is no text");
  for (size_t i = 0; i < r->n_texts; i++) {
    if (r->lengths[i] == 0) return pst_error_set(err, PST_E_BAD_INPUT, "input", "text %zu has no tokens", i);
    if (r->lengths[i] > (size_t)e->n_ctx)
      return pst_error_set(err, PST_E_LIMIT, "input", "text %zu has %zu tokens, the context is %d; shorten it", i,
                           r->lengths[i], e->n_ctx);
    for (size_t k = n; k < n + r->lengths[i]; k++)
      if (r->tokens[k] < 0 || r->tokens[k] >= e->model->info.n_vocab)
        return pst_error_set(err, PST_E_BAD_INPUT, "input", "token %d of text %zu is not in the vocabulary of %d",
                             r->tokens[k], i, e->model->info.n_vocab);
    n += r->lengths[i];
  }
  *ret_n_tokens = n;
  return 0;
}

static job *job_create(const pst_engine_embed_request *r, size_t n_tokens, size_t n_dims) {
  job *j = pst_calloc(1, sizeof *j);
  if (!j) return NULL;
  j->tokens = pst_malloc(n_tokens * sizeof *j->tokens);
  j->starts = pst_calloc(r->n_texts + 1, sizeof *j->starts);
  j->vectors = pst_calloc(r->n_texts * n_dims, sizeof *j->vectors);
  if (!j->tokens || !j->starts || !j->vectors) {
    job_free(j);
    return NULL;
  }
  memcpy(j->tokens, r->tokens, n_tokens * sizeof *j->tokens);
  for (size_t i = 0; i < r->n_texts; i++) j->starts[i + 1] = j->starts[i] + r->lengths[i];
  j->n_texts = r->n_texts;
  j->priority = r->priority;
  if (r->adapter) j->adapter = pst_engine_adapter_ref(r->adapter);
  j->callback = r->callback;
  j->user = r->user;
  j->submit_us = pst_clock_us();
  return j;
}

/* Under the lock. 0: nobody of this priority is there. */
static int64_t least_served(const pst_engine_encoder *e, int priority) {
  int64_t least = INT64_MAX;
  for (const job *j = e->jobs; j; j = j->next)
    if (j->priority == priority) least = PST_MIN(least, j->served);
  return least == INT64_MAX ? 0 : least;
}

int pst_engine_encoder_submit(pst_engine_encoder *e, const pst_engine_embed_request *request, uint64_t *ret_request_id,
                              pst_error *err) {
  size_t n_tokens = 0;
  int code = check(e, request, &n_tokens, err);
  if (code) return code;
  job *j = job_create(request, n_tokens, (size_t)e->model->info.n_dims);
  if (!j) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the request");
  pthread_mutex_lock(&e->lock);
  if (e->stopping)
    code = pst_error_set(err, PST_E_CANCELLED, NULL, "the engine is stopping");
  else if (e->n_jobs >= e->max_queue)
    code = pst_error_set(err, PST_E_BUSY, NULL, "%d requests wait already; try again later", e->max_queue);
  else {
    job **at = &e->jobs;
    j->served = least_served(e, j->priority);
    while (*at && (*at)->priority <= j->priority) at = &(*at)->next;
    j->next = *at;
    *at = j;
    e->n_jobs++;
    j->id = *ret_request_id = ++e->last_id;
    pthread_cond_signal(&e->changed);
  }
  pthread_mutex_unlock(&e->lock);
  if (code) job_free(j);
  return code;
}

void pst_engine_encoder_cancel(pst_engine_encoder *e, uint64_t request_id) {
  pthread_mutex_lock(&e->lock);
  for (job *j = e->jobs; j; j = j->next)
    if (j->id == request_id) j->cancelled = true;
  pthread_cond_signal(&e->changed);
  pthread_mutex_unlock(&e->lock);
}

void pst_engine_encoder_get_stats(pst_engine_encoder *e, pst_engine_stats *ret_stats) {
  pthread_mutex_lock(&e->lock);
  *ret_stats = e->stats;
  ret_stats->n_queued = e->n_jobs - e->stats.n_running;
  pthread_mutex_unlock(&e->lock);
}

/* ---- from states to a vector ---- */

/* States [n][n_embd] of one text into e->pooled. */
static void pool(pst_engine_encoder *e, const float *states, size_t n) {
  const pst_engine_model *m = e->model;
  const pst_kernels *k = m->kernels;
  size_t embd = (size_t)m->info.n_embd, first = 0, last = n;
  if (m->encoding.pooling == PST_ENGINE_POOL_FIRST) last = 1;
  if (m->encoding.pooling == PST_ENGINE_POOL_LAST) first = n - 1;
  memset(e->pooled, 0, embd * sizeof *e->pooled);
  for (size_t t = first; t < last; t++) {
    const float *row = states + t * embd;
    if (m->output_norm) {
      k->rmsnorm(row, m->output_norm, embd, m->norm_eps, e->row);
      row = e->row;
    }
    k->add(e->pooled, row, embd, e->pooled);
  }
  if (last - first > 1) k->scale(e->pooled, 1.0f / (float)(last - first), embd, e->pooled);
}

static void project(pst_engine_encoder *e, const pst_kernels_matrix *dense) {
  const pst_kernels *k = e->model->kernels;
  pst_kernels_input_init(&e->input, 1, dense->n_cols, e->input_memory);
  if (!dense->is_float) k->quantize(e->pooled, 0, e->input.n_blocks, &e->input, 0);
  e->input.x = e->pooled;
  k->matmul(dense, &e->input, 0, 1, 0, dense->n_groups, false, e->row, dense->n_rows, e->work);
  memcpy(e->pooled, e->row, dense->n_rows * sizeof *e->pooled);
}

int pst_engine_embedding_cut(float *vector, int n_dims, int dims) {
  double sum = 0;
  if (dims < 1 || dims > n_dims) return PST_E_BAD_INPUT;
  for (int i = 0; i < dims; i++) sum += (double)vector[i] * (double)vector[i];
  double factor = sum > 0 ? 1 / sqrt(sum) : 0;
  for (int i = 0; i < dims; i++) vector[i] = (float)((double)vector[i] * factor);
  return 0;
}

static void take_vectors(pst_engine_encoder *e) {
  const pst_engine_encoding *c = &e->model->encoding;
  const float *states = pst_engine_forward_states(e->forward);
  int n_dims = e->model->info.n_dims;
  for (int i = 0; i < e->n_items; i++) {
    pool(e, states, (size_t)e->items[i].n);
    for (int d = 0; d < c->n_dense; d++) project(e, &c->dense[d]);
    float *vector = e->places[i].job->vectors + e->places[i].text * (size_t)n_dims;
    memcpy(vector, e->pooled, (size_t)n_dims * sizeof *vector);
    (void)pst_engine_embedding_cut(vector, n_dims, n_dims);
    states += (size_t)e->items[i].n * (size_t)e->model->info.n_embd;
  }
}

/* ---- the thread ---- */

/* Whose turn it is: the best priority, then the fewest tokens, then the earliest. NULL: every text is planned. */
static job *next_job(const pst_engine_encoder *e) {
  job *best = NULL;
  for (job *j = e->jobs; j; j = j->next) {
    if (j->n_planned == j->n_texts) continue;
    if (best && j->priority > best->priority) break;
    if (!best || j->served < best->served) best = j;
  }
  return best;
}

/* Under the lock: the next texts, as many as fit. */
static void plan(pst_engine_encoder *e) {
  int n_tokens = 0, n_pages = 0;
  e->n_items = 0;
  e->stats.n_running = 0;
  for (job *j = e->jobs; j; j = j->next) j->n_planned = j->n_done;
  for (job *j; e->n_items < MAX_ITEMS && (j = next_job(e));) {
    size_t i = j->n_planned;
    int n = (int)(j->starts[i + 1] - j->starts[i]);
    if (n_tokens + n > e->max_tokens) return;
    e->stats.n_running += j->n_planned++ == j->n_done;
    j->served += n;
    e->places[e->n_items] = (place){j, i};
    e->items[e->n_items++] = (pst_engine_forward_item){
        .tokens = j->tokens + j->starts[i], .n = n, .pages = e->page_table + n_pages, .adapter = j->adapter};
    n_tokens += n;
    n_pages += (n + PST_KERNELS_PAGE - 1) / PST_KERNELS_PAGE;
  }
}

static void run_step(pst_engine_encoder *e) {
  int64_t start = pst_clock_us();
  int n_tokens = 0;
  for (int i = 0; i < e->n_items; i++) {
    job *j = e->places[i].job;
    n_tokens += e->items[i].n;
    if (!j->admit_us) j->admit_us = start;
    j->n_steps += e->places[i].text == j->n_done;
  }
  pst_engine_forward_run(e->forward, e->items, e->n_items);
  take_vectors(e);
  int64_t us = pst_clock_us() - start;
  for (int i = 0; i < e->n_items; i++) {
    job *j = e->places[i].job;
    j->n_done = e->places[i].text + 1;
    j->busy_us += (double)us * e->items[i].n / n_tokens;
  }
  pthread_mutex_lock(&e->lock);
  e->stats.n_running = 0; /* between steps all wait */
  e->stats.n_steps++;
  e->stats.n_prompt_tokens += n_tokens;
  e->stats.busy_us += us;
  pthread_mutex_unlock(&e->lock);
}

/* Under the lock: takes out the first job that has ended, or all of them when the engine stops. */
static job *take_ended(pst_engine_encoder *e) {
  job **at = &e->jobs;
  while (*at && !e->stopping && !(*at)->cancelled && (*at)->n_done < (*at)->n_texts) at = &(*at)->next;
  job *j = *at;
  if (!j) return NULL;
  *at = j->next;
  e->n_jobs--;
  e->stats.n_requests++;
  return j;
}

static void tell_end(const pst_engine_encoder *e, const job *j) {
  int64_t now = pst_clock_us();
  bool whole = j->n_done == j->n_texts;
  j->callback(j->user, &(pst_engine_embed_event){
                           .request_id = j->id,
                           .finish = whole ? PST_ENGINE_FINISH_STOP : PST_ENGINE_FINISH_CANCELLED,
                           .vectors = whole ? j->vectors : NULL,
                           .n_texts = j->n_texts,
                           .n_dims = e->model->info.n_dims,
                           .n_tokens = (int64_t)j->starts[j->n_texts],
                           .n_steps = j->n_steps,
                           .queued_us = (j->admit_us ? j->admit_us : now) - j->submit_us,
                           .total_us = now - j->submit_us,
                           .busy_us = (int64_t)llround(j->busy_us),
                       });
}

static void *encoder_thread(void *arg) {
  pst_engine_encoder *e = arg;
  pthread_mutex_lock(&e->lock);
  for (;;) {
    job *ended;
    while ((ended = take_ended(e))) {
      pthread_mutex_unlock(&e->lock);
      tell_end(e, ended);
      job_free(ended);
      pthread_mutex_lock(&e->lock);
    }
    if (e->stopping) break;
    plan(e);
    if (e->n_items == 0) {
      pthread_cond_wait(&e->changed, &e->lock);
      continue;
    }
    pthread_mutex_unlock(&e->lock);
    run_step(e);
    pthread_mutex_lock(&e->lock);
  }
  pthread_mutex_unlock(&e->lock);
  return NULL;
}
