/* Opening a model: its shape, the layer table as its architecture reads it, and the matrices packed for the kernels.
 *
 * Owns the mapping and one block of packed memory. Knows nothing of sequences. Every tensor's type and shape is checked against what the keys say before
 * anything is packed; an architecture this program does not know, and a tensor it would silently ignore, are refused by name. */
#include "engine/loader.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/checkpoint.h"
#include "engine/packed.h"

/* ---- the shape ---- */

/* An integer key that is one number, or a list of one for each layer, then *ret_list too: all within [min, max]. *ret_most: the greatest. */
static int read_by_layer(pst_engine_loader *l, const char *name, int64_t min, int64_t max,
                         const pst_engine_gguf_value **ret_list, int *ret_most) {
  char key[128];
  const pst_engine_gguf_value *v = pst_engine_gguf_find(l->m->gguf, pst_engine_loader_key(l, name, key));
  if (!v || v->kind != PST_ENGINE_GGUF_ARRAY)
    return pst_engine_loader_need_int(l, name, PST_MAX(min, 1), max, ret_most);
  int code = pst_engine_gguf_get_array(l->m->gguf, key, PST_ENGINE_GGUF_INTEGERS, &v, l->err);
  if (code) return code;
  int64_t most = 0;
  for (uint64_t i = 0; i < v->n; i++) {
    int64_t n = pst_engine_gguf_value_i64(v, i);
    if (n < min || n > max)
      return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key '%s' is %lld in layer %llu, outside %lld to %lld",
                           key, (long long)n, (unsigned long long)i, (long long)min, (long long)max);
    most = PST_MAX(most, n);
  }
  int n_all = l->m->info.n_layers + l->n_ahead;
  if (v->n != (uint64_t)n_all)
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key '%s' has %llu entries for %d layers", key,
                         (unsigned long long)v->n, n_all);
  *ret_list = v;
  *ret_most = (int)most;
  return 0;
}

/* A list has 0 where a layer does not attend (LFM2); the layers that do may differ (Gemma 4). */
static int read_kv_heads(pst_engine_loader *l) {
  pst_engine_model_info *f = &l->m->info;
  char key[128];
  f->n_kv_heads = f->n_heads;
  if (!pst_engine_gguf_find(l->m->gguf, pst_engine_loader_key(l, "attention.head_count_kv", key))) return 0;
  int code = read_by_layer(l, "attention.head_count_kv", 0, 1024, &l->kv_heads, &f->n_kv_heads);
  if (code) return code;
  if (f->n_kv_heads == 0) return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path, "key '%s': no layer attends", key);
  for (int i = 0; i < f->n_layers; i++) {
    int n = l->kv_heads ? (int)pst_engine_gguf_value_i64(l->kv_heads, (uint64_t)i) : f->n_kv_heads;
    if (n && f->n_heads % n)
      return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "%d query heads are not a multiple of %d key heads",
                           f->n_heads, n);
  }
  return 0;
}

/* A model of nothing but experts may leave the width of the others out. */
static int read_ff(pst_engine_loader *l) {
  static const char dense[] = "feed_forward_length", experts[] = "expert_feed_forward_length";
  char key[128];
  bool has_dense = pst_engine_gguf_find(l->m->gguf, pst_engine_loader_key(l, dense, key)) != NULL;
  bool has_experts = pst_engine_gguf_find(l->m->gguf, pst_engine_loader_key(l, experts, key)) != NULL;
  int code = read_by_layer(l, has_dense || !has_experts ? dense : experts, 32, 1 << 19, &l->ff, &l->m->info.n_ff);
  l->m->n_ff_dense = l->m->info.n_ff;
  return code;
}

static int read_shape(pst_engine_loader *l) {
  pst_engine_model_info *f = &l->m->info;
  double eps = 1e-6;
  int code = pst_engine_loader_need_int(l, "block_count", 1, 1024, &f->n_layers);
  bool may_predict_ahead = !strncmp(l->arch, "qwen35", 6) || !strcmp(l->arch, "qwen3next");
  if (!code && may_predict_ahead)
    code = pst_engine_loader_want_int(l, "nextn_predict_layers", 0, f->n_layers - 1, &l->n_ahead);
  f->n_layers -= l->n_ahead;
  if (!code) code = pst_engine_loader_need_int(l, "context_length", 1, 1 << 30, &f->n_ctx_train);
  if (!code) code = pst_engine_loader_need_int(l, "embedding_length", 32, 1 << 17, &f->n_embd);
  if (!code) code = read_ff(l);
  if (!code) code = pst_engine_loader_need_int(l, "attention.head_count", 1, 1024, &f->n_heads);
  if (!code) code = read_kv_heads(l);
  if (code) return code;
  f->head_dim = f->n_embd / f->n_heads;
  code = pst_engine_loader_want_int(l, "attention.key_length", 8, 1024, &f->head_dim);
  int value_dim = f->head_dim;
  if (!code) code = pst_engine_loader_want_int(l, "attention.value_length", 8, 1024, &value_dim);
  if (!code) code = pst_engine_loader_want_double(l, "attention.layer_norm_rms_epsilon", 0, 1, &eps);
  if (code) return code;
  if ((code = pst_engine_loader_check_head(l, f->head_dim, value_dim))) return code;
  l->m->norm_eps = (float)eps;
  l->m->embedding_scale = l->m->residual_scale = l->m->logit_scale = 1;
  l->m->gate = PST_KERNELS_SILU;
  l->m->attention_scale = 1.0f / sqrtf((float)f->head_dim);
  return 0;
}

/* A screen for the head, where it is large and its products are compared as they are. */
static int load_screen(pst_engine_loader *l, const char *head_name) {
  pst_engine_model *m = l->m;
  enum { ROWS_WORTH_IT = 4096 };
  m->screen.radius = NULL;
  bool plain = m->logit_softcap == 0 && m->logit_scale == 1; /* else unequal products could be equal logits */
  if (m->head.n_rows < ROWS_WORTH_IT || !plain || !pst_kernels_screen_pays(&m->head)) return 0;
  int code = pst_kernels_screen_init(&m->head, &m->screen);
  if (code) return code;
  const pst_engine_gguf_tensor *t = pst_engine_loader_tensor(l, head_name);
  const uint8_t *src = t->data;
  size_t codes_at = pst_engine_loader_take_bytes(l, t, src, pst_kernels_matrix_bytes(&m->screen.codes));
  size_t radius_at = pst_engine_loader_take_bytes(l, t, src, pst_kernels_screen_radius_bytes(&m->screen));
  if (!l->memory) return 0;
  float *radius = (float *)(void *)(l->memory + radius_at);
  m->screen.codes.data = l->memory + codes_at;
  m->screen.radius = radius;
  return pst_engine_loader_add_job(
      l, (struct pst_engine_pack_job){&m->head, &m->screen, src, l->memory + codes_at, radius});
}

/* The last norm and the head; an encoder has no head, and not always a norm. */
static int load_end(pst_engine_loader *l) {
  pst_engine_model *m = l->m;
  size_t vocab = (size_t)m->info.n_vocab, embd = (size_t)m->info.n_embd;
  int code = pst_engine_loader_row(l, l->output_norm, embd, !l->no_output_norm, &m->output_norm);
  if (m->encoding.pooling != PST_ENGINE_POOL_NONE) return code;
  const char *head_name = pst_engine_gguf_find_tensor(m->gguf, "output.weight") ? "output.weight" : "token_embd.weight";
  if (!code && strcmp(head_name, "output.weight") == 0)
    code = pst_engine_loader_matrix(l, head_name, vocab, embd, &m->head);
  else
    m->head = m->embedding;
  return code ? code : load_screen(l, head_name);
}

static int load_table(pst_engine_loader *l, const pst_engine_architecture *a) {
  pst_engine_model *m = l->m;
  l->used = 0;
  l->table = 0;
  l->n_jobs = 0;
  l->output_norm = "output_norm.weight";
  m->n_conv_layers = m->n_delta_layers = 0;
  int code = a->keys(l);
  if (!code)
    code = pst_engine_loader_matrix(l, "token_embd.weight", (size_t)m->info.n_vocab, (size_t)m->info.n_embd,
                                    &m->embedding);
  if (!code) code = load_end(l);
  for (int i = 0; i < m->info.n_layers && !code; i++) {
    pst_engine_layer *y = &m->layers[i];
    *y = (pst_engine_layer){.keeper = i,
                            .head_dim = m->info.head_dim,
                            .n_kv_heads = l->kv_heads ? (int)pst_engine_gguf_value_i64(l->kv_heads, (uint64_t)i)
                                                      : m->info.n_kv_heads,
                            .n_ff = l->ff ? (int)pst_engine_gguf_value_i64(l->ff, (uint64_t)i) : m->info.n_ff};
    code = a->layer(l, i, y);
    if (y->conv.in.n_rows)
      y->store = m->n_conv_layers++;
    else if (y->delta.out.n_rows)
      y->store = m->n_delta_layers++;
  }
  return code;
}

/* Keys that say nothing about the arithmetic, or what tensors and other keys say as well. */
static const char *const silent_keys[] = {
    "vocab_size",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
};

/* Whether a tensor belongs to a layer that is left out. */
static bool is_ahead(const pst_engine_loader *l, pst_str name) {
  char prefix[32];
  for (int i = 0; i < l->n_ahead; i++) {
    snprintf(prefix, sizeof prefix, "blk.%d.", l->m->info.n_layers + i);
    if (pst_str_starts(name, pst_str_from(prefix))) return true;
  }
  return false;
}

/* What the file says and nobody read would be ignored in silence: refused by name. */
static int refuse_leftovers(pst_engine_loader *l) {
  char key[128];
  for (size_t i = 0; i < PST_ARRAY_LEN(silent_keys); i++) (void)pst_engine_loader_key(l, silent_keys[i], key);
  snprintf(key, sizeof key, "%s.", l->arch);
  for (size_t i = 0; i < pst_engine_gguf_n_values(l->m->gguf); i++) {
    pst_str name = pst_engine_gguf_value_at(l->m->gguf, i)->key;
    if (l->asked[i] || !pst_str_starts(name, pst_str_from(key))) continue;
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "key '%.*s' has no meaning in architecture %s as this program knows it",
                         (int)PST_MIN(name.n, (size_t)100), name.data, l->arch);
  }
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(l->m->gguf); i++) {
    pst_str name = pst_engine_gguf_tensor_at(l->m->gguf, i)->name;
    if (l->taken[i] || is_ahead(l, name)) continue;
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "tensor '%.*s' has no place in architecture %s as this program knows it", (int)name.n,
                         name.data, l->arch);
  }
  return 0;
}

/* ---- packing ---- */

typedef struct pack_work {
  const pst_engine_loader *l;
  atomic_size_t next;
  atomic_bool failed; /* no memory for a row */
} pack_work;

/* Threads take whole matrices, largest pieces first by nature (the embedding leads), split into runs of groups. */
enum { PACK_RUN = 64 };

static void *pack_thread(void *arg) {
  pack_work *w = arg;
  size_t index = 0, first = 0; /* job that run number `first` begins */
  for (;;) {
    size_t run = atomic_fetch_add(&w->next, 1);
    for (; index < w->l->n_jobs; index++) {
      size_t n_runs = (w->l->jobs[index].matrix->n_groups + PACK_RUN - 1) / PACK_RUN;
      if (run < first + n_runs) break;
      first += n_runs;
    }
    if (index == w->l->n_jobs) return NULL;
    const struct pst_engine_pack_job *j = &w->l->jobs[index];
    size_t begin = (run - first) * PACK_RUN, end = PST_MIN(begin + PACK_RUN, j->matrix->n_groups);
    const uint8_t *src = j->src + begin * PST_KERNELS_GROUP * pst_kernels_row_bytes(j->matrix->type, j->matrix->n_cols);
    if (!j->screen)
      pst_kernels_matrix_pack(j->matrix, src, begin, end, j->dst);
    else if (pst_kernels_screen_pack(j->screen, j->matrix->type, src, begin, end, j->dst, j->radius))
      atomic_store(&w->failed, true);
  }
}

static int pack_all(const pst_engine_loader *l, int n_threads) {
  pack_work w = {l, 0, false};
  pthread_t threads[64] = {0};
  int n = 0;
  while (n < PST_MIN(n_threads, 64) - 1 && pthread_create(&threads[n], NULL, pack_thread, &w) == 0) n++;
  pack_thread(&w);
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
  if (!atomic_load(&w.failed)) return 0;
  return pst_error_set(l->err, PST_E_NOMEM, l->path, "no memory to pack the weights");
}

/* ---- opening ---- */

static const char *main_type(const pst_engine_gguf *g) {
  size_t bytes[PST_TYPE_END] = {0};
  uint32_t best = PST_TYPE_F32;
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(g); i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(g, i);
    if (t->type < PST_TYPE_END) bytes[t->type] += t->bytes;
  }
  for (uint32_t t = 0; t < PST_TYPE_END; t++)
    if (bytes[t] > bytes[best]) best = t;
  return pst_kernels_type_info(best)->name;
}

static int open_text_side(pst_engine_model *m, const char *path, pst_error *err) {
  int code = pst_engine_tokenizer_create(m->gguf, &m->tokenizer, err);
  if (code) return code;
  const pst_engine_tokenizer_info *words = pst_engine_tokenizer_get_info(m->tokenizer);
  m->info.n_vocab = words->n_vocab;
  m->info.bos = words->bos;
  m->info.eos = words->eos;
  pst_str text = {NULL, 0};
  code = pst_engine_gguf_opt_str(m->gguf, "tokenizer.chat_template", &text, err);
  if (code || !text.n) return code;
  code = pst_engine_template_create(text, &m->chat_template, err);
  if (code) {
    pst_error_prefix(err, "the chat template of the file");
    if (err) snprintf(err->place, sizeof err->place, "%s", path);
  }
  m->info.has_template = !code;
  return code;
}

static int pack(pst_engine_loader *l, const pst_engine_architecture *a, int n_threads) {
  pst_engine_model *m = l->m;
  l->memory = m->packed = pst_malloc_aligned(m->packed_bytes, 2u << 20);
  if (!m->packed)
    return pst_error_set(l->err, PST_E_NOMEM, l->path, "no memory for %.0f MB of packed weights",
                         (double)m->packed_bytes / 1e6);
  (void)madvise(m->packed, m->packed_bytes, MADV_HUGEPAGE);
  int code = load_table(l, a); /* places */
  return code ? code : pack_all(l, n_threads > 0 ? n_threads : pst_cpu_count());
}

/* The packed block: mapped when it was kept in `packed_dir`, else made and kept there. That it cannot be kept is no error. */
static int fill(pst_engine_loader *l, const pst_engine_architecture *a, int n_threads, const char *packed_dir) {
  pst_engine_model *m = l->m;
  pst_engine_packed_id id = {pst_engine_gguf_key(m->gguf), pst_engine_gguf_bytes(m->gguf), 0, l->table,
                             m->packed_bytes};
  char *kept = NULL;
  int code;
  if (packed_dir && (id.layout = pst_kernels_layout_id())) kept = pst_engine_packed_path(packed_dir, l->path);
  l->filled = kept && pst_engine_packed_map(kept, &id, &m->packed_map, &l->memory);
  if (l->filled) {
    code = load_table(l, a);
  } else if (!(code = pack(l, a, n_threads)) && kept) {
    pst_error error = PST_ERROR_INIT;
    if (pst_engine_packed_write(kept, &id, m->packed, &error))
      pst_log(PST_LOG_INFO, "event=packed_weights_not_kept file=\"%s\" reason=\"%s\"", kept, error.message);
  }
  pst_free(kept);
  pst_engine_gguf_drop_pages(m->gguf); /* not read again */
  return code;
}

/* n_threads < 0: everything is checked, nothing packed. */
static int load_weights(pst_engine_model *m, const char *path, int n_threads, const char *packed_dir, pst_error *err) {
  pst_engine_loader l = {0};
  l.m = m;
  l.path = path;
  l.err = err;
  int code = 0;
  const pst_engine_architecture *a = pst_engine_architecture_find(&l);
  if (!a) return err && err->code ? err->code : PST_E_UNSUPPORTED;
  l.arch = m->info.architecture = a->name;
  l.taken = pst_calloc(pst_engine_gguf_n_tensors(m->gguf) + 1, sizeof *l.taken);
  l.asked = pst_calloc(pst_engine_gguf_n_values(m->gguf) + 1, sizeof *l.asked);
  if (!l.taken || !l.asked) code = pst_error_set(err, PST_E_NOMEM, path, "no memory for the file's table");
  if (!code) code = read_shape(&l);
  if (code) goto done;
  m->layers = pst_calloc((size_t)m->info.n_layers, sizeof *m->layers);
  if (!m->layers) code = pst_error_set(err, PST_E_NOMEM, path, "no memory for the layer table");
  if (!code) code = load_table(&l, a); /* measures */
  if (!code) code = refuse_leftovers(&l);
  if (code) goto done;
  m->packed_bytes = l.used + 64;
  if (n_threads >= 0) code = fill(&l, a, n_threads, packed_dir);
done:
  pst_free(l.taken);
  pst_free(l.asked);
  pst_free(l.jobs);
  return code;
}

size_t pst_engine_model_state_floats(const pst_engine_model *m) {
  size_t head = (size_t)m->delta_head, values = (size_t)m->n_delta_v * head;
  size_t channels = 2 * (size_t)m->n_delta_k * head + values;
  return m->n_delta_layers ? values * head + (size_t)(m->n_conv - 1) * channels : 0;
}

size_t pst_engine_model_keys_bytes(const pst_engine_model *m, uint32_t kv_type, int layer) {
  size_t n = 0;
  for (int i = 0; i < layer && m->encoding.pooling == PST_ENGINE_POOL_NONE; i++)
    if (m->layers[i].k.n_rows)
      n += 2 * (size_t)m->layers[i].n_kv_heads * pst_kernels_page_bytes(kv_type, (size_t)m->layers[i].head_dim);
  return n;
}

size_t pst_engine_model_all_keys_bytes(const pst_engine_model *m, uint32_t kv_type) {
  if (m->encoding.pooling == PST_ENGINE_POOL_NONE) return pst_engine_model_keys_bytes(m, kv_type, m->info.n_layers);
  return 2 * (size_t)m->info.n_kv_heads * pst_kernels_page_bytes(kv_type, (size_t)m->info.head_dim);
}

static int64_t matrix_bytes(const pst_kernels_matrix *m) { return (int64_t)(m->n_groups * m->group_bytes); }

static int64_t step_bytes(const pst_engine_model *m) {
  int64_t bytes =
      matrix_bytes(m->screen.codes.n_rows ? &m->screen.codes : &m->head) + matrix_bytes(&m->per_layer.project);
  for (int i = 0; i < m->info.n_layers; i++) {
    const pst_engine_layer *y = &m->layers[i];
    const pst_engine_experts *e = &y->experts;
    const pst_engine_delta *d = &y->delta;
    const pst_kernels_matrix *all[] = {&y->q,
                                       &y->k,
                                       &y->v,
                                       &y->o,
                                       &y->gate,
                                       &y->up,
                                       &y->down,
                                       &y->conv.in,
                                       &y->conv.out,
                                       &e->router,
                                       &d->qkv,
                                       &d->z,
                                       &d->beta,
                                       &d->alpha,
                                       &d->out,
                                       &e->shared_gate,
                                       &y->per_layer_gate,
                                       &y->per_layer_project};
    for (size_t k = 0; k < PST_ARRAY_LEN(all); k++) bytes += matrix_bytes(all[k]);
    bytes +=
        m->n_experts_used * (matrix_bytes(&e->gate.shape) + matrix_bytes(&e->up.shape) + matrix_bytes(&e->down.shape));
  }
  return bytes;
}

static int open_model(const char *path, int n_threads, const char *packed_dir, pst_engine_model **ret_model,
                      pst_error *err) {
  pst_error own = PST_ERROR_INIT;
  if (!err) err = &own;
  pst_engine_model *m = pst_calloc(1, sizeof *m);
  if (!m) return pst_error_set(err, PST_E_NOMEM, path, "no memory");
  atomic_init(&m->n_refs, 1);
  m->kernels = pst_kernels_get();
  int code = pst_engine_checkpoint_open(path, &m->gguf, err);
  if (!code) code = open_text_side(m, path, err);
  if (!code) code = load_weights(m, path, n_threads, packed_dir, err);
  if (code) {
    pst_engine_model_unref(m);
    return code;
  }
  pst_engine_model_info *f = &m->info;
  f->path = pst_engine_gguf_path(m->gguf);
  f->name = f->path;
  f->weights = main_type(m->gguf);
  f->isa = m->kernels->name;
  f->file_bytes = (int64_t)pst_engine_gguf_bytes(m->gguf);
  f->packed_bytes = (int64_t)m->packed_bytes;
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(m->gguf); i++)
    f->n_params += (int64_t)pst_engine_gguf_tensor_at(m->gguf, i)->n_elements;
  if (m->encoding.pooling == PST_ENGINE_POOL_NONE) /* an encoder keeps none */
    f->kv_bytes_per_token_f16 = (int64_t)(pst_engine_model_all_keys_bytes(m, PST_TYPE_F16) / PST_KERNELS_PAGE) +
                                (int64_t)m->n_conv_layers * PST_ENGINE_CONV_KEPT * f->n_embd * 4 / PST_KERNELS_PAGE;
  f->state_bytes = (int64_t)pst_engine_model_state_floats(m) * m->n_delta_layers * (int64_t)sizeof(float);
  f->step_bytes = step_bytes(m);
  m->content_key = pst_engine_gguf_key(m->gguf);
  *ret_model = m;
  return 0;
}

int pst_engine_model_open(const char *path, int n_threads, pst_engine_model **ret_model, pst_error *err) {
  return open_model(path, PST_MAX(n_threads, 0), NULL, ret_model, err);
}

int pst_engine_model_open_kept(const char *path, const char *packed_dir, int n_threads, pst_engine_model **ret_model,
                               pst_error *err) {
  return open_model(path, PST_MAX(n_threads, 0), packed_dir, ret_model, err);
}

int pst_engine_model_examine(const char *path, pst_engine_model **ret_model, pst_error *err) {
  return open_model(path, -1, NULL, ret_model, err);
}

bool pst_engine_model_encodes(const char *path) {
  pst_engine_model m = {.gguf = NULL};
  pst_engine_loader l = {.m = &m, .path = path};
  if (pst_engine_checkpoint_open(path, &m.gguf, NULL)) return false;
  const pst_engine_architecture *a = pst_engine_architecture_find(&l);
  pst_engine_gguf_close(m.gguf);
  return a && a->encodes;
}

pst_engine_model *pst_engine_model_ref(pst_engine_model *m) {
  atomic_fetch_add(&m->n_refs, 1);
  return m;
}

void pst_engine_model_unref(pst_engine_model *m) {
  if (!m || atomic_fetch_sub(&m->n_refs, 1) > 1) return;
  pst_engine_template_free(m->chat_template);
  pst_engine_tokenizer_free(m->tokenizer);
  pst_engine_gguf_close(m->gguf);
  pst_free(m->layers);
  pst_free(m->packed);
  if (m->packed_map.data) pst_map_close(&m->packed_map);
  pst_free(m);
}

const pst_engine_model_info *pst_engine_model_get_info(const pst_engine_model *m) { return &m->info; }
