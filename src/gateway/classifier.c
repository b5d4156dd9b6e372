/* A stage answered by a classifier: no engine, no prompt, no tokens. Also where classifiers come from and where they are kept: artefacts among the store's
 * files, by content hash; beside them, in HOME/classifiers, a note for each list of records that was trained on, which says what came of it.
 *
 * It is classified on the thread that has the call, which takes tens of microseconds, and told on the loop, since a callback may not run inside
 * pst_gateway_chat. The books say what is true: no tokens, and the machine's price for the time it took. */
#include "gateway/live.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES_MAX ((size_t)1 << 30)

/* ---- building ---- */

static int no_memory(pst_error *err) {
  return pst_error_set(err, PST_E_NOMEM, "classifier", "no memory for a classifier");
}

static void hash_text(pst_sha256 *s, pst_str text) {
  uint64_t n = text.n;
  pst_sha256_update(s, &n, sizeof n);
  pst_sha256_update(s, text.data ? text.data : "", text.n);
}

/* Names the records and the way they are trained on. */
static void hash_records(const pst_classifier_record *records, size_t n, char ret_key[65]) {
  pst_sha256 s;
  uint8_t digest[32];
  uint64_t version = PST_CLASSIFIER_VERSION;
  pst_sha256_init(&s);
  pst_sha256_update(&s, &version, sizeof version);
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

static int train(pst_store *store, const pst_classifier_record *records, size_t n,
                 const pst_classifier_options *options, const char *note, trained *ret, pst_error *err) {
  pst_buf artefact = PST_BUF_INIT;
  trained t;
  char text[96];
  int64_t start = pst_clock_us();
  int code = pst_classifier_train(records, n, options, &artefact, err);
  t.ms = (pst_clock_us() - start) / 1000;
  if (!code) code = pst_store_file_put(store, artefact.data, artefact.n, t.hash, err);
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

int pst_gateway_classifier_build(pst_store *store, const pst_classifier_record *records, size_t n,
                                 const pst_classifier_options *options, char ret_hash[65], int64_t *ret_ms,
                                 pst_error *err) {
  char key[65];
  trained t;
  pst_buf dir = PST_BUF_INIT, note = PST_BUF_INIT, lock = PST_BUF_INIT;
  int fd = -1, code = 0;
  hash_records(records, n, key);
  pst_buf_printf(&dir, "%s/classifiers", pst_store_home(store));
  pst_buf_printf(&note, "%s/classifiers/%s", pst_store_home(store), key);
  pst_buf_printf(&lock, "%s/classifiers/%s.lock", pst_store_home(store), key);
  if (pst_buf_status(&dir) || pst_buf_status(&note) || pst_buf_status(&lock)) code = no_memory(err);
  if (!code && !read_note(store, note.data, &t)) {
    code = pst_dir_make(dir.data, err);
    if (!code) code = pst_file_lock(lock.data, &fd, err);
    if (!code && !read_note(store, note.data, &t)) code = train(store, records, n, options, note.data, &t, err);
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

static bool has_label(const pst_gateway_plan *plan, pst_str label) {
  for (int i = 0; i < plan->n_labels; i++)
    if (pst_str_equal(plan->labels[i], label)) return true;
  return false;
}

static int foreign_label(pst_str label, pst_error *err) {
  return pst_error_set(err, PST_E_BAD_INPUT, "artefact",
                       "the classifier answers \"%.*s\", which is none of the plan's labels; it is another workload's",
                       (int)PST_MIN(label.n, (size_t)100), label.data);
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
    const pst_classifier_info *info = pst_classifier_get_info(found);
    for (size_t i = 0; i < info->n_labels; i++)
      if (!has_label(plan, info->labels[i])) return foreign_label(info->labels[i], err);
  }
  *ret_classifier = found;
  return 0;
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
  live->target = "classifier";
  live->model = live->leaf->classifier; /* the plan's, which lives as long as the call */
  int code = pst_gateway_classifier_get(live->gateway, live->plan, live->leaf, &live->classifier, err);
  if (!code) code = pst_gateway_stage_machine_price(live, err);
  if (code) return code;
  size_t n_labels = pst_classifier_get_info(live->classifier)->n_labels;
  code = pst_gateway_cost_classifier_bound(live->machine_nusd_per_hour, live->input.n, n_labels, &live->bound_nusd);
  if (code) return pst_error_set(err, code, NULL, "the cost of the call cannot be bounded in 64 bits");
  return pst_gateway_stage_reserve(live, err);
}

static void over_on_loop(void *arg) {
  pst_gateway_live *live = arg;
  int64_t cost = pst_gateway_cost_local(live->machine_nusd_per_hour, live->stage_busy_us);
  pst_error error = PST_ERROR_INIT;
  if (pst_gateway_live_is_cancelled(live)) pst_error_set(&error, PST_E_CANCELLED, NULL, "cancelled");
  for (int i = 0; i < live->n && !error.code; i++) { /* n answers of one text are one answer */
    pst_gateway_live_text(live, (uint32_t)i, live->classifier_label, NULL);
    pst_gateway_live_finish(live, (uint32_t)i, PST_ENGINE_FINISH_STOP, NULL, 0);
  }
  pst_gateway_stage_over(live, PST_MIN(cost, live->bound_nusd), error.code ? &error : NULL);
}

int pst_gateway_classifier_submit(pst_gateway_live *live, pst_error *err) {
  pst_classifier_answer answer;
  int64_t start = pst_clock_us();
  int code = pst_classifier_classify(live->classifier, live->input, &answer, NULL, err);
  if (code) return code;
  pst_str label = pst_classifier_get_info(live->classifier)->labels[answer.label];
  if (!has_label(live->plan, label)) return foreign_label(label, err);
  live->classifier_label = label;
  live->stage_margin = answer.margin;
  live->stage_first_us = pst_clock_us() - live->stage_start_us;
  live->stage_busy_us = pst_clock_us() - start;
  pst_gateway_live_set_phase(live, PST_GATEWAY_STARTING); /* a cancel from here on is seen on the loop */
  pst_gateway_live_post(live, over_on_loop);
  return 0;
}
