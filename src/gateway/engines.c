/* The engine cache: one slot per (model, weights, options), loaded on demand, closed least recently used first when memory runs short.
 *
 * Loading takes from a tenth of a second to minutes (re-quantizing), so it never happens on a caller's or the loop's thread unless that thread asked to
 * wait: a thread of the cache loads, one slot at a time. Slots that stem from one file share its packed weights.
 *
 * Invariant IN-USE: a slot with a use is never closed. Uses are counted under the cache's lock; engine threads may end one, so that
 * ending a use closes nothing: room is made only where room is needed, by the thread that loads. */
#include "gateway/engines.h"

#include <penstock/models.h>

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "gateway/answers.h"

enum { MAX_KEPT_CHOICES = 256, MAX_KEPT_CORPORA = 4, MAX_KEPT_ADAPTERS = 128 };

typedef enum slot_phase { SLOT_LOADING, SLOT_READY, SLOT_FAILED } slot_phase;

typedef struct file_key {
  uint64_t device, inode;
  uint64_t changed; /* when, in ns; of a folder a number made of its files' keys */
  uint64_t bytes;
} file_key;

typedef struct kept_choices {
  struct kept_choices *next;
  uint8_t key[32]; /* SHA-256 over the labels, leading_space and the codes' key */
  pst_engine_choices *choices;
} kept_choices;

typedef struct kept_corpus {
  char hash[65];
  bool leading_space;
  pst_engine_corpus *corpus; /* NULL: free */
} kept_corpus;

typedef struct kept_adapter {
  char hash[65];
  pst_engine_adapter *adapter; /* NULL: free */
} kept_adapter;

typedef struct pst_gateway_slot_state {
  pst_gateway_slot slot;
  struct pst_gateway_slot_state *next; /* in the cache; under its lock, as all below down to error */
  slot_phase phase;
  int n_users;
  int64_t used_us;
  pst_gateway_waiter *waiters;
  file_key file;
  int64_t model_bytes, engine_bytes, adapter_bytes;
  pst_error error; /* FAILED */
  pst_arena *arena;
  const char *key; /* the spec as text */
  pst_gateway_engine_spec spec;
  pthread_mutex_t choices_lock;
  kept_choices *choices; /* most recently used first; under choices_lock */
  pthread_mutex_t corpora_lock;
  kept_corpus corpora[MAX_KEPT_CORPORA]; /* most recently opened first; under corpora_lock */
  pthread_mutex_t adapters_lock;
  kept_adapter adapters[MAX_KEPT_ADAPTERS]; /* most recently used first; under adapters_lock */
} slot_state;

struct pst_gateway_engines {
  const char *home;
  int64_t memory_bytes;
  int max_queue;
  pst_net_loop *loop;
  pthread_mutex_t lock;
  pthread_cond_t changed; /* a slot has left LOADING */
  slot_state *slots;
  pst_engine_stats retired;  /* counters of closed engines */
  pthread_mutex_t load_lock; /* held while one slot loads; before `lock` */
  pst_queue *wanted;         /* slot_state*: for the loading thread */
  bool closing;              /* under lock */
  pthread_t loader;
  bool loader_started;
};

/* ---- keys ------------------------------------------------------------------------------------------------------------- */

static void key_write(const pst_gateway_engine_spec *s, pst_buf *out) {
  const pst_engine_options *o = &s->options;
  pst_buf_printf(out, "%s|%s|%s|%s|kv%d slots%d chunk%d threads%d ctx%d pool%d queue%d reuse%d", s->model,
                 s->sha256 ? s->sha256 : "", s->weights, s->draft ? s->draft : "", (int)o->kv, o->slots, o->chunk,
                 o->threads, o->n_ctx, o->kv_tokens, o->max_queue, !o->no_reuse);
}

static slot_state *find_locked(pst_gateway_engines *e, const char *key) {
  slot_state *s = e->slots;
  while (s && strcmp(s->key, key) != 0) s = s->next;
  return s;
}

static const char *arena_text(pst_arena *arena, const char *text) {
  return text ? pst_arena_strndup(arena, text, strlen(text)) : NULL;
}

static slot_state *state_create(const pst_gateway_engine_spec *spec, const char *key) {
  slot_state *s = pst_calloc(1, sizeof *s);
  if (!s) return NULL;
  s->arena = pst_arena_create();
  if (!s->arena) {
    pst_free(s);
    return NULL;
  }
  s->slot.state = s;
  s->key = arena_text(s->arena, key);
  s->spec = *spec;
  s->spec.name = NULL;
  s->spec.model = arena_text(s->arena, spec->model);
  s->spec.sha256 = arena_text(s->arena, spec->sha256);
  s->spec.weights = arena_text(s->arena, spec->weights);
  s->spec.draft = arena_text(s->arena, spec->draft);
  if (!s->key || !s->spec.model || !s->spec.weights || (spec->sha256 && !s->spec.sha256) ||
      (spec->draft && !s->spec.draft)) {
    pst_arena_free(s->arena);
    pst_free(s);
    return NULL;
  }
  pthread_mutex_init(&s->choices_lock, NULL);
  pthread_mutex_init(&s->corpora_lock, NULL);
  pthread_mutex_init(&s->adapters_lock, NULL);
  return s;
}

static void state_free(slot_state *s) {
  pst_engine_free(s->slot.engine);
  while (s->choices) {
    kept_choices *next = s->choices->next;
    pst_engine_choices_unref(s->choices->choices);
    pst_free(s->choices);
    s->choices = next;
  }
  for (int i = 0; i < MAX_KEPT_CORPORA; i++) pst_engine_corpus_unref(s->corpora[i].corpus);
  for (int i = 0; i < MAX_KEPT_ADAPTERS; i++) pst_engine_adapter_unref(s->adapters[i].adapter);
  pst_engine_model_unref(s->slot.model);
  pthread_mutex_destroy(&s->choices_lock);
  pthread_mutex_destroy(&s->corpora_lock);
  pthread_mutex_destroy(&s->adapters_lock);
  pst_arena_free(s->arena);
  pst_free(s);
}

/* ---- room ------------------------------------------------------------------------------------------------------------- */

static void unlink_locked(pst_gateway_engines *e, slot_state *s) {
  slot_state **at = &e->slots;
  while (*at && *at != s) at = &(*at)->next;
  if (*at) *at = s->next;
}

static void retire(pst_gateway_engines *e, slot_state *s) {
  pst_engine_stats last;
  pst_engine_get_stats(s->slot.engine, &last);
  pst_engine_stats *sum = &e->retired;
  sum->n_requests += last.n_requests;
  sum->n_prompt_tokens += last.n_prompt_tokens;
  sum->n_cached_tokens += last.n_cached_tokens;
  sum->n_completion_tokens += last.n_completion_tokens;
  sum->n_steps += last.n_steps;
  sum->n_drafted += last.n_drafted;
  sum->n_accepted += last.n_accepted;
  sum->busy_us += last.busy_us;
}

/* Bytes of all that is loaded (weights shared by several slots count once), and the one to close first. */
static int64_t survey_locked(pst_gateway_engines *e, slot_state **ret_oldest) {
  int64_t bytes = 0;
  *ret_oldest = NULL;
  for (slot_state *s = e->slots; s; s = s->next) {
    if (s->phase != SLOT_READY) continue;
    slot_state *first = e->slots;
    while (first->phase != SLOT_READY || first->slot.model != s->slot.model) first = first->next;
    bytes += s->engine_bytes + s->adapter_bytes + (first == s ? s->model_bytes : 0);
    if (s->n_users == 0 && (!*ret_oldest || s->used_us < (*ret_oldest)->used_us)) *ret_oldest = s;
  }
  return bytes;
}

/* Closes idle engines until `need` more bytes fit. `held`: bytes of a model that is open for the slot being loaded and not yet listed. */
static int make_room(pst_gateway_engines *e, const char *model, int64_t held, int64_t need, pst_error *err) {
  for (;;) {
    slot_state *oldest;
    pthread_mutex_lock(&e->lock);
    int64_t used = survey_locked(e, &oldest);
    bool fits = used + held + need <= e->memory_bytes;
    if (!fits && oldest) {
      unlink_locked(e, oldest);
      retire(e, oldest);
    }
    pthread_mutex_unlock(&e->lock);
    if (fits) return 0;
    if (oldest) {
      pst_log(PST_LOG_INFO, "event=engine_closed model=\"%s\" reason=memory", oldest->spec.model);
      state_free(oldest);
      continue;
    }
    double mib = 1.0 / (1 << 20);
    if (held + need > e->memory_bytes)
      return pst_error_set(
          err, PST_E_LIMIT, model,
          "the model needs %.0f MiB with its KV cache, the limit is %.0f MiB; choose fewer slots, a smaller weight "
          "type, or a higher memory limit",
          (double)(held + need) * mib, (double)e->memory_bytes * mib);
    return pst_error_set(err, PST_E_BUSY, model,
                         "%.0f of %.0f MiB are held by models in use, this one needs %.0f; try again later",
                         (double)used * mib, (double)e->memory_bytes * mib, (double)(held + need) * mib);
  }
}

/* What an engine takes beside the weights: the KV pool and rows of logits (engine.c's check_options fills zeros in the same way). */
static int64_t engine_bytes(const pst_engine_model *model, const pst_engine_options *o) {
  const pst_engine_model_info *info = pst_engine_model_get_info(model);
  int64_t none, work;
  if (info->n_dims && !pst_engine_estimate_memory(model, o, &none, &work, NULL)) return work;
  int64_t n_ctx = o->n_ctx ? o->n_ctx : PST_MIN(info->n_ctx_train, 8192);
  int64_t positions = o->kv_tokens ? o->kv_tokens : PST_MAX((int64_t)o->slots * 1024, n_ctx);
  int64_t kv = PST_MAX(positions, n_ctx) * info->kv_bytes_per_token_f16;
  if (o->kv == PST_ENGINE_KV_Q8_0) kv = kv / 64 * 34; /* blocks of 32 bytes and a scale of 2, instead of 64 */
  int64_t bytes = kv + (int64_t)info->n_vocab * (int64_t)sizeof(float) * 40;
  if (!o->draft) return bytes;
  pst_engine_options draft = *o;
  draft.draft = NULL;
  return bytes + engine_bytes(o->draft, &draft);
}

/* ---- loading ------------------------------------------------------------------------------------------------------------ */

static file_key key_of_stat(const struct stat *st) {
  return (file_key){(uint64_t)st->st_dev, (uint64_t)st->st_ino,
                    (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec, (uint64_t)st->st_size};
}

static bool is_weights(const char *name) {
  static const char ending[] = ".safetensors";
  size_t n = strlen(name), k = sizeof ending - 1;
  return n > k && !strcmp(name + n - k, ending);
}

/* A checkpoint's weights, in however many files, stand for its folder: sums, which are the same in any order. */
static int folder_key_of(const char *path, const struct stat *st, file_key *ret_key, pst_error *err) {
  file_key sum = {.device = (uint64_t)st->st_dev, .inode = (uint64_t)st->st_ino};
  DIR *dir = opendir(path);
  if (!dir) return pst_error_set_errno(err, errno, path, "the model's folder cannot be examined");
  for (struct dirent *e; (e = readdir(dir));) {
    struct stat file;
    if (!is_weights(e->d_name) || fstatat(dirfd(dir), e->d_name, &file, 0)) continue;
    const file_key one = key_of_stat(&file);
    sum.changed += pst_hash64(&one, sizeof one, 0);
    sum.bytes += one.bytes;
  }
  (void)closedir(dir);
  *ret_key = sum;
  return 0;
}

static int file_key_of(const char *path, file_key *ret_key, pst_error *err) {
  struct stat st;
  if (stat(path, &st)) return pst_error_set_errno(err, errno, path, "the model file cannot be examined");
  if (S_ISDIR(st.st_mode)) return folder_key_of(path, &st, ret_key, err);
  *ret_key = key_of_stat(&st);
  return 0;
}

/* The weights of this very file if a slot has them open. */
static pst_engine_model *share_model(pst_gateway_engines *e, const file_key *file) {
  pst_engine_model *model = NULL;
  pthread_mutex_lock(&e->lock);
  for (slot_state *s = e->slots; s && !model; s = s->next)
    if (s->phase == SLOT_READY && !memcmp(&s->file, file, sizeof *file)) model = pst_engine_model_ref(s->slot.model);
  pthread_mutex_unlock(&e->lock);
  return model;
}

static int64_t model_bytes(const pst_engine_model *model) {
  const pst_engine_model_info *info = pst_engine_model_get_info(model);
  return PST_MAX(info->packed_bytes, info->file_bytes);
}

/* The weights of a spec, a slot's if one has them open: *ret_held is what they take beside all that is listed. held: what is open for the slot already. */
static int open_weights(pst_gateway_engines *e, const pst_gateway_engine_spec *spec, int64_t held,
                        pst_progress *progress, file_key *ret_file, pst_engine_model **ret_model, int64_t *ret_held,
                        pst_error *err) {
  char *path = NULL, *packed = NULL;
  int code = pst_gateway_weights_find(e->home, spec, progress, &path, err);
  if (!code) code = file_key_of(path, ret_file, err);
  pst_engine_model *model = code ? NULL : share_model(e, ret_file);
  *ret_held = 0;
  if (!code && !model) {
    code = make_room(e, spec->model, held, (int64_t)ret_file->bytes, err);
    packed = pst_models_packed_dir(e->home);
    if (!code) code = pst_engine_model_open_kept(path, packed, 0, &model, err);
    if (!code) *ret_held = model_bytes(model);
  }
  *ret_model = model;
  pst_free(packed);
  pst_free(path);
  return code;
}

static int open_slot(pst_gateway_engines *e, slot_state *s, pst_progress *progress, pst_error *err) {
  pst_engine_model *model = NULL;
  pst_engine_options options = s->spec.options;
  int64_t start = pst_clock_us(), held = 0, draft_held = 0;
  int code = open_weights(e, &s->spec, 0, progress, &s->file, &model, &held, err);
  if (!code && s->spec.draft) {
    const pst_gateway_engine_spec draft = {.model = s->spec.draft, .weights = "shipped"};
    file_key file;
    code = open_weights(e, &draft, held, progress, &file, &options.draft, &draft_held, err);
  }
  if (code) goto done;
  s->model_bytes = model_bytes(model);
  options.n_ctx = PST_MIN(options.n_ctx, pst_engine_model_get_info(model)->n_ctx_train);
  s->engine_bytes = engine_bytes(model, &options) + draft_held; /* a draft model's weights are its engine's */
  if ((code = make_room(e, s->spec.model, held, s->engine_bytes, err))) goto done;
  options.max_queue = PST_MIN(options.max_queue > 0 ? options.max_queue : e->max_queue, e->max_queue);
  if ((code = pst_engine_create(model, &options, &s->slot.engine, err))) goto done;
  s->slot.model = model;
  model = NULL;
  pst_log(PST_LOG_INFO, "event=engine_ready model=\"%s\" weights=%s slots=%d seconds=%.2f", s->spec.model,
          s->spec.weights, options.slots, (double)(pst_clock_us() - start) / 1e6);
done:
  pst_engine_model_unref(model);
  pst_engine_model_unref(options.draft);
  return code;
}

/* The slot leaves LOADING; all who wait are told. It may be gone when this returns, unless the caller has a use of it. */
static void conclude(pst_gateway_engines *e, slot_state *s, int code, const pst_error *error) {
  pthread_mutex_lock(&e->lock);
  pst_gateway_waiter *waiters = s->waiters;
  s->waiters = NULL;
  s->phase = code ? SLOT_FAILED : SLOT_READY;
  s->used_us = pst_clock_us();
  s->error = *error;
  if (code) unlink_locked(e, s);
  bool unwanted = code && s->n_users == 0;
  pthread_cond_broadcast(&e->changed);
  pthread_mutex_unlock(&e->lock);
  while (waiters) {
    pst_gateway_waiter *next = waiters->next;
    (void)pst_net_loop_post_task(e->loop, &waiters->task); /* the loop outlives all calls */
    waiters = next;
  }
  if (unwanted) state_free(s);
}

static void load(pst_gateway_engines *e, slot_state *s, pst_progress *progress) {
  pst_error error = PST_ERROR_INIT;
  pthread_mutex_lock(&e->load_lock);
  int code = open_slot(e, s, progress, &error);
  pthread_mutex_unlock(&e->load_lock);
  conclude(e, s, code, &error);
}

static void *loader_thread(void *arg) {
  pst_gateway_engines *e = arg;
  slot_state *s;
  while ((s = pst_queue_pop(e->wanted, -1))) {
    pthread_mutex_lock(&e->lock);
    bool closing = e->closing;
    pthread_mutex_unlock(&e->lock);
    if (!closing) load(e, s, NULL);
  }
  return NULL;
}

/* ---- uses ----------------------------------------------------------------------------------------------------------------- */

static slot_state *use_locked(slot_state *s) {
  s->n_users++;
  s->used_us = pst_clock_us();
  return s;
}

/* One use of the slot of a spec. *ret_new: it was made now, is LOADING, and the caller has to see to its loading. */
static int use(pst_gateway_engines *e, const pst_gateway_engine_spec *spec, slot_state **ret_state, bool *ret_new,
               pst_error *err) {
  pst_buf key = PST_BUF_INIT;
  slot_state *s = NULL, *fresh = NULL;
  key_write(spec, &key);
  if (!pst_buf_status(&key)) {
    pthread_mutex_lock(&e->lock);
    if ((s = find_locked(e, key.data))) use_locked(s);
    pthread_mutex_unlock(&e->lock);
    if (!s) fresh = state_create(spec, key.data);
  }
  if (fresh) {
    pthread_mutex_lock(&e->lock);
    s = find_locked(e, key.data); /* another thread may have come first */
    if (!s) {
      s = fresh;
      s->next = e->slots;
      e->slots = s;
    }
    use_locked(s);
    pthread_mutex_unlock(&e->lock);
    if (s != fresh) state_free(fresh);
  }
  pst_buf_done(&key);
  if (!s) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for an engine");
  *ret_state = s;
  *ret_new = s == fresh;
  return 0;
}

void pst_gateway_engines_give(pst_gateway_engines *e, pst_gateway_slot *slot) {
  if (!slot) return;
  slot_state *s = slot->state;
  pthread_mutex_lock(&e->lock);
  s->used_us = pst_clock_us();
  bool gone = --s->n_users == 0 && s->phase == SLOT_FAILED;
  pthread_mutex_unlock(&e->lock);
  if (gone) state_free(s);
}

int pst_gateway_engines_take(pst_gateway_engines *e, const pst_gateway_engine_spec *spec, pst_gateway_slot **ret_slot,
                             pst_error *err) {
  slot_state *s;
  bool fresh;
  int code = use(e, spec, &s, &fresh, err);
  if (code) return code;
  if (fresh && pst_queue_push(e->wanted, s)) {
    pst_error error = PST_ERROR_INIT;
    pst_error_set(&error, PST_E_NOMEM, NULL, "out of memory for an engine");
    conclude(e, s, PST_E_NOMEM, &error);
  }
  *ret_slot = &s->slot;
  return 0;
}

int pst_gateway_engines_take_now(pst_gateway_engines *e, const pst_gateway_engine_spec *spec, pst_progress *progress,
                                 pst_gateway_slot **ret_slot, pst_error *err) {
  slot_state *s;
  bool fresh;
  int code = use(e, spec, &s, &fresh, err);
  if (code) return code;
  if (fresh) load(e, s, progress);
  pthread_mutex_lock(&e->lock);
  while (s->phase == SLOT_LOADING) pthread_cond_wait(&e->changed, &e->lock);
  pthread_mutex_unlock(&e->lock);
  if ((code = pst_gateway_slot_check(e, &s->slot, err)))
    pst_gateway_engines_give(e, &s->slot);
  else
    *ret_slot = &s->slot;
  return code;
}

bool pst_gateway_slot_wait(pst_gateway_engines *e, pst_gateway_slot *slot, pst_gateway_waiter *waiter) {
  slot_state *s = slot->state;
  pthread_mutex_lock(&e->lock);
  bool loading = s->phase == SLOT_LOADING;
  if (loading) {
    waiter->next = s->waiters;
    s->waiters = waiter;
  }
  pthread_mutex_unlock(&e->lock);
  return !loading;
}

bool pst_gateway_slot_loads(pst_gateway_engines *e, const pst_gateway_slot *slot) {
  pthread_mutex_lock(&e->lock);
  bool loading = slot->state->phase == SLOT_LOADING;
  pthread_mutex_unlock(&e->lock);
  return loading;
}

bool pst_gateway_slot_unwait(pst_gateway_engines *e, pst_gateway_slot *slot, pst_gateway_waiter *waiter) {
  pthread_mutex_lock(&e->lock);
  pst_gateway_waiter **at = &slot->state->waiters;
  while (*at && *at != waiter) at = &(*at)->next;
  bool found = *at != NULL;
  if (found) *at = waiter->next;
  pthread_mutex_unlock(&e->lock);
  return found;
}

int pst_gateway_slot_check(pst_gateway_engines *e, const pst_gateway_slot *slot, pst_error *err) {
  const slot_state *s = slot->state;
  pthread_mutex_lock(&e->lock);
  bool failed = s->phase == SLOT_FAILED;
  pthread_mutex_unlock(&e->lock);
  if (!failed) return 0;
  if (err) *err = s->error; /* does not change any more */
  return s->error.code;
}

pst_gateway_slot *pst_gateway_engines_find(pst_gateway_engines *e, const pst_engine *engine) {
  pthread_mutex_lock(&e->lock);
  slot_state *s = e->slots;
  while (s && (s->phase != SLOT_READY || s->slot.engine != engine)) s = s->next;
  pthread_mutex_unlock(&e->lock);
  return s ? &s->slot : NULL;
}

bool pst_gateway_engines_has(pst_gateway_engines *e, const pst_gateway_engine_spec *spec) {
  pst_buf key = PST_BUF_INIT;
  key_write(spec, &key);
  pthread_mutex_lock(&e->lock);
  bool found = !pst_buf_status(&key) && find_locked(e, key.data);
  pthread_mutex_unlock(&e->lock);
  pst_buf_done(&key);
  return found;
}

void pst_gateway_engines_stats(pst_gateway_engines *e, int *ret_n_engines, pst_engine_stats *ret_stats) {
  int n = 0;
  pthread_mutex_lock(&e->lock);
  pst_engine_stats sum = e->retired;
  for (slot_state *s = e->slots; s; s = s->next) {
    if (s->phase != SLOT_READY) continue;
    pst_engine_stats one;
    pst_engine_get_stats(s->slot.engine, &one);
    n++;
    sum.n_running += one.n_running;
    sum.n_queued += one.n_queued;
    sum.kv_pages += one.kv_pages;
    sum.kv_pages_used += one.kv_pages_used;
    sum.kv_pages_cached += one.kv_pages_cached;
    sum.n_requests += one.n_requests;
    sum.n_prompt_tokens += one.n_prompt_tokens;
    sum.n_cached_tokens += one.n_cached_tokens;
    sum.n_completion_tokens += one.n_completion_tokens;
    sum.n_steps += one.n_steps;
    sum.n_drafted += one.n_drafted;
    sum.n_accepted += one.n_accepted;
    sum.busy_us += one.busy_us;
  }
  pthread_mutex_unlock(&e->lock);
  *ret_n_engines = n;
  *ret_stats = sum;
}

/* ---- choice lists ------------------------------------------------------------------------------------------------------------ */

static void choices_key(const pst_str *labels, size_t n, bool leading_space, uint64_t codes, uint8_t ret_key[32]) {
  pst_sha256 hash;
  pst_sha256_init(&hash);
  pst_sha256_update(&hash, &codes, sizeof codes);
  pst_sha256_update(&hash, leading_space ? " " : "", leading_space ? 1 : 0);
  for (size_t i = 0; i < n; i++) {
    uint64_t length = labels[i].n;
    pst_sha256_update(&hash, &length, sizeof length);
    pst_sha256_update(&hash, labels[i].data, labels[i].n);
  }
  pst_sha256_done(&hash, ret_key);
}

/* Moves what was found to the front. */
static pst_engine_choices *choices_find(slot_state *s, const uint8_t key[32]) {
  kept_choices **at = &s->choices;
  while (*at && memcmp((*at)->key, key, 32) != 0) at = &(*at)->next;
  kept_choices *found = *at;
  if (!found) return NULL;
  *at = found->next;
  found->next = s->choices;
  s->choices = found;
  return pst_engine_choices_ref(found->choices);
}

static void choices_keep(slot_state *s, const uint8_t key[32], pst_engine_choices *choices) {
  kept_choices *kept = pst_calloc(1, sizeof *kept);
  if (!kept) return; /* compiled again the next time */
  memcpy(kept->key, key, 32);
  kept->choices = pst_engine_choices_ref(choices);
  kept->next = s->choices;
  s->choices = kept;
  kept_choices **at = &s->choices;
  for (int i = 0; *at && i < MAX_KEPT_CHOICES; i++) at = &(*at)->next;
  kept_choices *last = *at;
  if (!last) return;
  *at = NULL;
  pst_engine_choices_unref(last->choices);
  pst_free(last);
}

int pst_gateway_slot_choices(pst_gateway_slot *slot, const pst_str *labels, size_t n, bool leading_space,
                             const pst_engine_codes *codes, pst_engine_choices **ret_choices, pst_error *err) {
  slot_state *s = slot->state;
  uint8_t key[32];
  choices_key(labels, n, leading_space, pst_engine_codes_key(codes), key);
  pthread_mutex_lock(&s->choices_lock);
  pst_engine_choices *choices = choices_find(s, key);
  int code = choices ? 0 : pst_engine_choices_create(slot->model, labels, n, leading_space, codes, &choices, err);
  if (!code) {
    if (!s->choices || memcmp(s->choices->key, key, 32) != 0) choices_keep(s, key, choices);
    *ret_choices = choices;
  }
  pthread_mutex_unlock(&s->choices_lock);
  return code;
}

/* ---- past answers ------------------------------------------------------------------------------------------------------------- */

int pst_gateway_slot_corpus(pst_gateway_slot *slot, pst_store *store, const char *hash, bool leading_space,
                            pst_engine_corpus **ret_corpus, pst_error *err) {
  slot_state *s = slot->state;
  int code = 0;
  pthread_mutex_lock(&s->corpora_lock);
  kept_corpus *k = s->corpora, *last = &s->corpora[MAX_KEPT_CORPORA - 1];
  while (k <= last && !(k->corpus && k->leading_space == leading_space && !strcmp(k->hash, hash))) k++;
  if (k > last) {
    pst_engine_corpus *opened = NULL;
    code = pst_gateway_answers_open(store, pst_str_from(hash), slot->model, leading_space, &opened, err);
    if (!code && !opened) { /* withdrawn */
      pthread_mutex_unlock(&s->corpora_lock);
      *ret_corpus = NULL;
      return 0;
    }
    if (!code) {
      k = s->corpora;
      pst_engine_corpus_unref(last->corpus);
      memmove(k + 1, k, (MAX_KEPT_CORPORA - 1) * sizeof *k);
      *k = (kept_corpus){.leading_space = leading_space, .corpus = opened};
      (void)snprintf(k->hash, sizeof k->hash, "%s", hash);
    }
  }
  if (!code) *ret_corpus = pst_engine_corpus_ref(k->corpus);
  pthread_mutex_unlock(&s->corpora_lock);
  return code;
}

/* ---- adapters ----------------------------------------------------------------------------------------------------------------- */

/* Opens the file of a hash. The base is named in the file: a plan that names its model by hash must mean the same. */
static int open_adapter(slot_state *s, pst_store *store, const char *hash, pst_engine_adapter **ret_adapter,
                        pst_error *err) {
  char *path = NULL;
  pst_engine_adapter *adapter = NULL;
  int64_t start = pst_clock_us();
  int code = pst_store_file_path(store, pst_str_from(hash), &path, err);
  if (!code) code = pst_engine_adapter_open(s->slot.model, path, &adapter, err);
  pst_free(path);
  if (code) {
    if (code == PST_E_NOT_FOUND)
      pst_error_prefix(err, "the adapter %.12s...; `penstock adapters add` brings it back", hash);
    return code;
  }
  const char *base = pst_engine_adapter_get_info(adapter)->notes[PST_ENGINE_LORA_BASE];
  if (base && s->spec.sha256 && strcmp(base, s->spec.sha256) != 0) {
    pst_engine_adapter_unref(adapter);
    return pst_error_set(err, PST_E_BAD_INPUT, "adapter",
                         "the adapter %.12s... was made for the model file %.12s..., the plan's is %.12s...", hash,
                         base, s->spec.sha256);
  }
  pst_log(PST_LOG_INFO, "event=adapter_ready model=\"%s\" adapter=%.12s ms=%.1f", s->spec.model, hash,
          (double)(pst_clock_us() - start) / 1e3);
  *ret_adapter = adapter;
  return 0;
}

/* Makes a kept one the first; what falls out at the end is let go. */
static void keep_first(slot_state *s, int at, kept_adapter k) {
  memmove(s->adapters + 1, s->adapters, (size_t)at * sizeof *s->adapters);
  s->adapters[0] = k;
}

int pst_gateway_slot_adapter(pst_gateway_engines *e, pst_gateway_slot *slot, pst_store *store, const char *hash,
                             pst_engine_adapter **ret_adapter, pst_error *err) {
  slot_state *s = slot->state;
  kept_adapter k = {.adapter = NULL};
  int code = 0, at = 0;
  pthread_mutex_lock(&s->adapters_lock);
  while (at < MAX_KEPT_ADAPTERS && s->adapters[at].adapter && strcmp(s->adapters[at].hash, hash) != 0) at++;
  if (at < MAX_KEPT_ADAPTERS && s->adapters[at].adapter) {
    keep_first(s, at, s->adapters[at]);
  } else if (!(code = open_adapter(s, store, hash, &k.adapter, err))) {
    int64_t bytes = pst_engine_adapter_get_info(k.adapter)->bytes;
    (void)snprintf(k.hash, sizeof k.hash, "%s", hash);
    if (at == MAX_KEPT_ADAPTERS) {
      bytes -= pst_engine_adapter_get_info(s->adapters[--at].adapter)->bytes;
      pst_engine_adapter_unref(s->adapters[at].adapter);
    }
    keep_first(s, at, k);
    pthread_mutex_lock(&e->lock);
    s->adapter_bytes += bytes;
    pthread_mutex_unlock(&e->lock);
  }
  if (!code) *ret_adapter = pst_engine_adapter_ref(s->adapters[0].adapter);
  pthread_mutex_unlock(&s->adapters_lock);
  return code;
}

/* ---- opening, closing ----------------------------------------------------------------------------------------------------------- */

int pst_gateway_engines_create(const char *home, int64_t memory_bytes, int max_queue, pst_net_loop *loop,
                               pst_gateway_engines **ret_engines, pst_error *err) {
  pst_gateway_engines *e = pst_calloc(1, sizeof *e);
  if (!e) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the gateway");
  e->home = home;
  e->memory_bytes = memory_bytes;
  e->max_queue = max_queue;
  e->loop = loop;
  pthread_mutex_init(&e->lock, NULL);
  pthread_mutex_init(&e->load_lock, NULL);
  pthread_cond_init(&e->changed, NULL);
  e->wanted = pst_queue_create();
  e->loader_started = e->wanted && pthread_create(&e->loader, NULL, loader_thread, e) == 0;
  if (!e->loader_started) {
    pst_gateway_engines_free(e);
    return pst_error_set(err, PST_E_NOMEM, NULL, "the gateway's loading thread cannot be started");
  }
  *ret_engines = e;
  return 0;
}

void pst_gateway_engines_free(pst_gateway_engines *e) {
  if (!e) return;
  pthread_mutex_lock(&e->lock);
  e->closing = true;
  pthread_mutex_unlock(&e->lock);
  if (e->wanted) pst_queue_close(e->wanted);
  if (e->loader_started) pthread_join(e->loader, NULL);
  while (e->slots) {
    slot_state *next = e->slots->next;
    state_free(e->slots);
    e->slots = next;
  }
  if (e->wanted) pst_queue_free(e->wanted);
  pthread_mutex_destroy(&e->lock);
  pthread_mutex_destroy(&e->load_lock);
  pthread_cond_destroy(&e->changed);
  pst_free(e);
}
