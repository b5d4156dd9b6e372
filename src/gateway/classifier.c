/* A stage answered by a classifier: no generator and no prompt. Also where classifiers come from and where they are kept: artefacts among the store's
 * files, by content hash; beside them, in HOME/classifiers, a note for each list of records that was trained on, which says what came of it.
 *
 * One over n-grams alone is asked on the thread that has the call, which takes tens of microseconds, and told on the loop, since a callback may not run inside
 * pst_gateway_chat. One that reads an encoder's vectors too waits for the encoder's engine as any local stage does (local.c, embed.c), and is asked where that
 * stage ends. The books say what is true: the machine's price for the time it took, and the tokens that an encoder read. */
#include "gateway/live.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES_MAX ((size_t)1 << 30)
enum { TEXTS_PER_BATCH = 256 };

/* ---- building ---- */

static int no_memory(pst_error *err) {
  return pst_error_set(err, PST_E_NOMEM, "classifier", "no memory for a classifier");
}

static void hash_text(pst_sha256 *s, pst_str text) {
  uint64_t n = text.n;
  pst_sha256_update(s, &n, sizeof n);
  pst_sha256_update(s, text.data ? text.data : "", text.n);
}

/* Names the records and the way they are trained on. encoder: hash of its file, or NULL. */
static void hash_records(const char *encoder, const pst_classifier_record *records, size_t n, char ret_key[65]) {
  pst_sha256 s;
  uint8_t digest[32];
  uint64_t version = PST_CLASSIFIER_VERSION;
  pst_sha256_init(&s);
  pst_sha256_update(&s, &version, sizeof version);
  if (encoder) hash_text(&s, pst_str_from(encoder));
  for (size_t i = 0; i < n; i++) {
    hash_text(&s, records[i].text);
    hash_text(&s, records[i].label);
    pst_sha256_update(&s, &records[i].group, sizeof records[i].group);
  }
  pst_sha256_done(&s, digest);
  pst_hex(digest, sizeof digest, ret_key);
}

typedef struct trained {
  char hash[65];
  int64_t ms; /* of training */
} trained;

/* What the note says ("HASH MS"), when the artefact it names is there. */
static bool read_note(pst_store *store, const char *path, trained *ret) {
  char *text = NULL, *kept = NULL;
  size_t n = 0;
  trained t;
  bool found = !pst_file_read(path, 128, &text, &n, NULL) && n > 65 && text[64] == ' ' &&
               !pst_parse_i64(pst_str_trim((pst_str){text + 65, n - 65}), 0, INT64_MAX, &t.ms) &&
               !pst_store_file_path(store, (pst_str){text, 64}, &kept, NULL);
  if (found) {
    memcpy(t.hash, text, 64);
    t.hash[64] = '\0';
    *ret = t;
  }
  pst_free(text);
  pst_free(kept);
  return found;
}

/* Vectors of n records' texts into ret[n][n_dims]; `tokens` and `lengths` [n] are room to work in. */
static int embed_batch(pst_engine *engine, pst_engine_adapter *adapter, const pst_classifier_record *records, size_t n,
                       pst_engine_tokens *tokens, size_t *lengths, float *ret, pst_error *err) {
  int code = 0;
  tokens->n = 0;
  for (size_t i = 0; i < n && !code; i++)
    code = pst_gateway_embed_beginning(engine, records[i].text, tokens, &lengths[i], err);
  return code ? code : pst_engine_embed_wait(engine, adapter, tokens->ids, lengths, n, ret, err);
}

static int embed_all(pst_engine *engine, pst_engine_adapter *adapter, const pst_classifier_options *options,
                     pst_classifier_record *records, size_t n, float *vectors, pst_error *err) {
  size_t lengths[TEXTS_PER_BATCH], n_dims = (size_t)options->n_dims;
  pst_engine_tokens tokens = {NULL, 0, 0};
  int code = 0;
  for (size_t i = 0; i < n && !code; i += TEXTS_PER_BATCH) {
    if (options->cancelled && options->cancelled(options->user))
      code = pst_error_set(err, PST_E_CANCELLED, "classifier", "cancelled");
    else
      code = embed_batch(engine, adapter, records + i, PST_MIN(n - i, (size_t)TEXTS_PER_BATCH), &tokens, lengths,
                         vectors + i * n_dims, err);
  }
  for (size_t i = 0; i < n; i++) records[i].vector = vectors + i * n_dims;
  pst_engine_tokens_done(&tokens);
  return code;
}

/* Trains on the records with an encoder's vectors beside their texts. */
static int train_with_encoder(pst_gateway *g, const pst_gateway_engine_spec *encoder, const char *adapter_hash,
                              const pst_classifier_record *records, size_t n, pst_classifier_options options,
                              pst_buf *out, pst_error *err) {
  pst_gateway_slot *slot = NULL;
  pst_engine_adapter *adapter = NULL;
  pst_classifier_record *own = NULL;
  float *vectors = NULL;
  int code = pst_gateway_engines_take_now(g->engines, encoder, NULL, &slot, err);
  if (code) return code;
  options.encoder = adapter_hash ? adapter_hash : encoder->sha256;
  options.n_dims = pst_engine_model_get_info(slot->model)->n_dims;
  if (!options.n_dims)
    code =
        pst_error_set(err, PST_E_UNSUPPORTED, encoder->model, "generates text and makes no vectors for a classifier");
  if (!code && adapter_hash) code = pst_gateway_slot_adapter(g->engines, slot, g->store, adapter_hash, &adapter, err);
  if (!code) {
    own = pst_calloc(PST_MAX(n, 1), sizeof *own);
    vectors = pst_calloc(PST_MAX(n, 1) * (size_t)options.n_dims, sizeof *vectors);
    if (!own || !vectors) code = no_memory(err);
  }
  if (!code && n) memcpy(own, records, n * sizeof *own);
  if (!code) code = embed_all(slot->engine, adapter, &options, own, n, vectors, err);
  if (!code) code = pst_classifier_train(own, n, &options, out, err);
  pst_engine_adapter_unref(adapter);
  pst_gateway_engines_give(g->engines, slot);
  pst_free(vectors);
  pst_free(own);
  return code;
}

static int train(pst_gateway *g, const pst_gateway_engine_spec *encoder, const char *adapter,
                 const pst_classifier_record *records, size_t n, const pst_classifier_options *options,
                 const char *note, trained *ret, pst_error *err) {
  pst_buf artefact = PST_BUF_INIT;
  pst_classifier_options o = options ? *options : (pst_classifier_options){0};
  trained t;
  char text[96];
  int64_t start = pst_clock_us();
  o.encoder = NULL;
  o.n_dims = 0;
  int code = encoder ? train_with_encoder(g, encoder, adapter, records, n, o, &artefact, err)
                     : pst_classifier_train(records, n, &o, &artefact, err);
  t.ms = (pst_clock_us() - start) / 1000;
  if (!code) code = pst_store_file_put(g->store, artefact.data, artefact.n, t.hash, err);
  if (!code) {
    (void)snprintf(text, sizeof text, "%s %lld\n", t.hash, (long long)t.ms);
    code = pst_file_write_atomic(note, text, strlen(text), err);
  }
  if (!code) {
    pst_log(PST_LOG_INFO, "event=classifier_trained records=%zu bytes=%zu ms=%lld", n, artefact.n, (long long)t.ms);
    *ret = t;
  }
  pst_buf_done(&artefact);
  return code;
}

int pst_gateway_classifier_build(pst_gateway *g, const pst_gateway_engine_spec *encoder, const char *adapter,
                                 const pst_classifier_record *records, size_t n, const pst_classifier_options *options,
                                 char ret_hash[65], int64_t *ret_ms, pst_error *err) {
  pst_store *store = g->store;
  bool anew = adapter && options && options->head;
  char key[65];
  trained t;
  pst_buf dir = PST_BUF_INIT, note = PST_BUF_INIT, lock = PST_BUF_INIT;
  int fd = -1, code = 0;
  if (encoder && (!encoder->sha256 || strcmp(encoder->weights, "shipped") != 0))
    return pst_error_set(err, PST_E_BAD_INPUT, encoder->model,
                         "a classifier's encoder is one file as it ships; name its hash, and no other weights");
  if (adapter)
    (void)snprintf(key, sizeof key, "%s", adapter);
  else
    hash_records(encoder ? encoder->sha256 : NULL, records, n, key);
  pst_buf_printf(&dir, "%s/classifiers", pst_store_home(store));
  pst_buf_printf(&note, "%s/classifiers/%s", pst_store_home(store), key);
  pst_buf_printf(&lock, "%s/classifiers/%s.lock", pst_store_home(store), key);
  if (pst_buf_status(&dir) || pst_buf_status(&note) || pst_buf_status(&lock)) code = no_memory(err);
  if (!code && (anew || !read_note(store, note.data, &t))) {
    if (adapter && !anew)
      code = pst_error_set(err, PST_E_NOT_FOUND, adapter, "no classifier was made beside this adapter; tune it again");
    if (!code) code = pst_dir_make(dir.data, err);
    if (!code) code = pst_file_lock(lock.data, &fd, err);
    if (!code && (anew || !read_note(store, note.data, &t)))
      code = train(g, encoder, adapter, records, n, options, note.data, &t, err);
  }
  if (fd >= 0) (void)close(fd);
  if (!code) {
    memcpy(ret_hash, t.hash, sizeof t.hash);
    if (ret_ms) *ret_ms = t.ms;
  }
  pst_buf_done(&dir);
  pst_buf_done(&note);
  pst_buf_done(&lock);
  return code;
}

/* ---- opening ---- */

int pst_gateway_classifier_open(pst_store *store, pst_str hash, pst_classifier **ret_classifier, pst_error *err) {
  char *path = NULL, *data = NULL, found[65];
  size_t n = 0;
  int code = pst_store_file_path(store, hash, &path, err);
  if (!code) code = pst_file_read(path, FILE_BYTES_MAX, &data, &n, err);
  if (!code) {
    pst_sha256_hex(data, n, found);
    code = pst_str_is(hash, found)
               ? pst_classifier_open((pst_str){data, n}, path, ret_classifier, err)
               : pst_error_set(err, PST_E_CORRUPT, path,
                               "the classifier does not have the content that its name says; run optimize again to "
                               "make it anew");
  }
  pst_free(data);
  pst_free(path);
  return code;
}

/* Labels stand in one order as a rule: each is looked for behind the one before it. */
static int check_labels(const pst_gateway_plan *plan, const pst_classifier_info *info, pst_error *err) {
  int n = plan->n_labels, next = 0;
  for (size_t i = 0; i < info->n_labels; i++) {
    pst_str label = info->labels[i];
    int k = 0;
    while (k < n && !pst_str_equal(plan->labels[(next + k) % n], label)) k++;
    if (k == n)
      return pst_error_set(
          err, PST_E_BAD_INPUT, "artefact",
          "the classifier answers \"%.*s\", which is none of the plan's labels; it is another workload's",
          (int)PST_MIN(label.n, (size_t)100), label.data);
    next = (next + k + 1) % n;
  }
  return 0;
}

/* The engine of the leaf, with its adapter where it has one, makes the vectors that the classifier was trained on, or there are none on either side. */
static int check_encoder(const pst_gateway_plan *plan, const pst_gateway_node *leaf, const pst_classifier_info *info,
                         pst_error *err) {
  bool named = leaf->engine >= 0 && leaf->engine < plan->n_engines;
  const char *own = leaf->adapter ? leaf->adapter : named ? plan->engines[leaf->engine].sha256 : NULL;
  if (!info->encoder && !named) return 0;
  if (!info->encoder)
    return pst_error_set(err, PST_E_BAD_INPUT, "engine", "the classifier reads n-grams alone; leave the engine out");
  if (!named)
    return pst_error_set(err, PST_E_BAD_INPUT, "engine",
                         "the classifier reads vectors of the encoder %.12s...; name the engine that makes them",
                         info->encoder);
  if (own && !strcmp(own, info->encoder)) return 0;
  return pst_error_set(err, PST_E_BAD_INPUT, "engine",
                       "the classifier reads vectors of the encoder %.12s..., this engine's %s is %.12s...",
                       info->encoder, leaf->adapter ? "adapter" : "file", own ? own : "unknown");
}

static const pst_classifier *find_kept(pst_gateway *g, const char *hash) {
  const pst_classifier *found = NULL;
  pthread_mutex_lock(&g->lock);
  for (pst_gateway_kept_classifier *k = g->classifiers; k && !found; k = k->next)
    if (!strcmp(k->hash, hash)) found = k->classifier;
  pthread_mutex_unlock(&g->lock);
  return found;
}

int pst_gateway_classifier_get(pst_gateway *g, const pst_gateway_plan *plan, const pst_gateway_node *leaf,
                               const pst_classifier **ret_classifier, pst_error *err) {
  const pst_classifier *found = find_kept(g, leaf->classifier);
  if (!found) { /* two threads may keep it twice: no harm */
    pst_classifier *opened = NULL;
    pst_gateway_kept_classifier *k = pst_calloc(1, sizeof *k);
    int code = k ? pst_gateway_classifier_open(g->store, pst_str_from(leaf->classifier), &opened, err) : no_memory(err);
    if (code) {
      pst_free(k);
      return code;
    }
    k->classifier = opened;
    (void)snprintf(k->hash, sizeof k->hash, "%s", leaf->classifier);
    pthread_mutex_lock(&g->lock);
    k->next = g->classifiers;
    g->classifiers = k;
    pthread_mutex_unlock(&g->lock);
    found = opened;
  }
  const pst_classifier_info *info = pst_classifier_get_info(found);
  int code = check_labels(plan, info, err);
  if (!code) code = check_encoder(plan, leaf, info, err);
  if (!code) *ret_classifier = found;
  return code;
}

void pst_gateway_classifiers_free(pst_gateway *g) {
  while (g->classifiers) {
    pst_gateway_kept_classifier *next = g->classifiers->next;
    pst_classifier_free(g->classifiers->classifier);
    pst_free(g->classifiers);
    g->classifiers = next;
  }
}

/* ---- the stage ---- */

int pst_gateway_classifier_begin(pst_gateway_live *live, pst_error *err) {
  const pst_gateway_node *leaf = live->leaf;
  live->target = "classifier";
  live->model = leaf->classifier; /* the plan's, which lives as long as the call */
  int code = pst_gateway_classifier_get(live->gateway, live->plan, leaf, &live->classifier, err);
  if (code) return code;
  if (leaf->engine >= 0) return pst_gateway_local_load(live, &live->plan->engines[leaf->engine], err);
  return pst_gateway_classifier_ready(live, err);
}

/* What the encoder will read, and what that can cost at most. */
static int prepare_encoder(pst_gateway_live *live, int64_t *ret_bound, pst_error *err) {
  const pst_engine_model_info *info = pst_engine_model_get_info(live->slot->model);
  int n_dims = pst_classifier_get_info(live->classifier)->n_dims;
  if (info->n_dims != n_dims)
    return pst_error_set(err, PST_E_BAD_INPUT, "engine",
                         "its vectors have %d elements, the classifier reads such of %d", info->n_dims, n_dims);
  live->lengths = pst_arena_calloc(live->arena, 1, sizeof *live->lengths);
  if (!live->lengths) return no_memory(err);
  int code = 0;
  if (live->leaf->adapter)
    code = pst_gateway_slot_adapter(live->gateway->engines, live->slot, live->gateway->store, live->leaf->adapter,
                                    &live->adapter, err);
  if (!code)
    code = pst_gateway_embed_beginning(live->slot->engine, live->input, &live->prompt_tokens, &live->lengths[0], err);
  if (!code && pst_gateway_cost_local_bound(live->machine_nusd_per_hour, info, (int64_t)live->lengths[0], ret_bound))
    code = pst_error_set(err, PST_E_LIMIT, NULL, "the cost of the call cannot be bounded in 64 bits");
  return code;
}

int pst_gateway_classifier_ready(pst_gateway_live *live, pst_error *err) {
  size_t n_labels = pst_classifier_get_info(live->classifier)->n_labels;
  int64_t of_encoder = 0;
  int code = pst_gateway_stage_machine_price(live, err);
  if (!code && live->slot) code = prepare_encoder(live, &of_encoder, err);
  if (code) return code;
  code = pst_gateway_cost_classifier_bound(live->machine_nusd_per_hour, live->input.n, n_labels, &live->bound_nusd);
  if (!code) code = pst_store_nusd_add(live->bound_nusd, of_encoder, &live->bound_nusd);
  if (code) return pst_error_set(err, code, NULL, "the cost of the call cannot be bounded in 64 bits");
  return pst_gateway_stage_reserve(live, err);
}

/* vector: the encoder's; NULL without one. */
static int classify(pst_gateway_live *live, const float *vector, pst_error *err) {
  pst_classifier_answer answer;
  int64_t start = pst_clock_us();
  int code = pst_classifier_classify(live->classifier, live->input, vector, &answer, NULL, err);
  if (code) return code;
  pst_str label = pst_classifier_get_info(live->classifier)->labels[answer.label];
  live->classifier_label = label;
  live->stage_margin = answer.margin;
  live->stage_first_us = pst_clock_us() - live->stage_start_us;
  live->stage_busy_us += pst_clock_us() - start;
  return 0;
}

void pst_gateway_classifier_over(void *arg) {
  pst_gateway_live *live = arg;
  pthread_mutex_lock(&live->lock);
  pst_error error = live->error;
  pthread_mutex_unlock(&live->lock);
  if (!error.code && live->vectors) (void)classify(live, live->vectors, &error);
  pst_free(live->vectors); /* none of the call's answer */
  live->vectors = NULL;
  int64_t cost = pst_gateway_cost_local(live->machine_nusd_per_hour, live->stage_busy_us);
  if (pst_gateway_live_is_cancelled(live)) pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
  for (int i = 0; i < live->n && !error.code; i++) { /* n answers of one text are one answer */
    pst_gateway_live_text(live, (uint32_t)i, live->classifier_label, NULL);
    pst_gateway_live_finish(live, (uint32_t)i, PST_ENGINE_FINISH_STOP, NULL, 0);
  }
  pst_gateway_stage_over(live, PST_MIN(cost, live->bound_nusd), error.code ? &error : NULL);
}

int pst_gateway_classifier_submit(pst_gateway_live *live, pst_error *err) {
  if (live->slot) return pst_gateway_embed_submit(live, 1, err);
  int code = classify(live, NULL, err);
  if (code) return code;
  pst_gateway_live_set_phase(live, PST_GATEWAY_STARTING); /* a cancel from here on is seen on the loop */
  pst_gateway_live_post(live, pst_gateway_classifier_over);
  return 0;
}
