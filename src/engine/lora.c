/* LoRA adapters in memory, and as GGUF files.
 *
 * Owns the struct and llama.cpp's file format: general.type "adapter", adapter.type "lora", adapter.lora.alpha, and for a tensor X of the base the tensors X.lora_a
 * [rank][n_in] and X.lora_b [n_out][rank]. PEFT's format is lora_peft.c's; whether an adapter fits a model is adapter.c's. */
#include "engine/lora.h"

#include <math.h>
#include <string.h>

#include "engine/gguf.h"
#include "engine/pool.h"

enum { MAX_TARGETS = 1 << 13, ALIGNMENT = 32 };

const char *const pst_engine_lora_keys[PST_ENGINE_LORA_NOTES] = {
    [PST_ENGINE_LORA_NAME] = "general.name",      [PST_ENGINE_LORA_BASE] = "penstock.base",
    [PST_ENGINE_LORA_DATA] = "penstock.data",     [PST_ENGINE_LORA_RUN] = "penstock.run",
    [PST_ENGINE_LORA_PROMPT] = "penstock.prompt", [PST_ENGINE_LORA_CODES] = "penstock.codes",
};

/* ---- the struct ---- */

void pst_engine_lora_done(pst_engine_lora *lora) {
  for (size_t i = 0; i < lora->n_targets; i++) {
    pst_free(lora->targets[i].name);
    pst_free(lora->targets[i].a);
    pst_free(lora->targets[i].b);
  }
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES; k++) pst_free(lora->notes[k]);
  pst_free(lora->targets);
  pst_free(lora->architecture);
  *lora = (pst_engine_lora){0};
}

int pst_engine_lora_check_merge(const pst_engine_lora *lora, const pst_engine_model_info *base, const char *path,
                                pst_error *err) {
  if (lora->notes[PST_ENGINE_LORA_CODES])
    return pst_error_set(err, PST_E_UNSUPPORTED, path,
                         "it answers in codes, which weights with it merged in would too and nobody would expand; tune "
                         "without --codes");
  return strcmp(lora->architecture, base->architecture)
             ? pst_error_set(err, PST_E_BAD_INPUT, path, "is for models of architecture '%s', not '%s'",
                             lora->architecture, base->architecture)
             : 0;
}

double pst_engine_lora_scale(const pst_engine_lora *lora, const pst_engine_lora_target *target) {
  return lora->alpha == 0 ? 1 : (double)lora->alpha / target->rank;
}

static bool in_range(int n, int most) { return n >= 1 && n <= most; }

int pst_engine_lora_add(pst_engine_lora *lora, pst_str name, int rank, int n_in, int n_out,
                        pst_engine_lora_target **ret_target, pst_error *err) {
  int shown = (int)PST_MIN(name.n, (size_t)120);
  if (!in_range(rank, PST_ENGINE_LORA_MAX_RANK) || !in_range(n_in, PST_ENGINE_LORA_MAX_SIZE) ||
      !in_range(n_out, PST_ENGINE_LORA_MAX_SIZE))
    return pst_error_set(err, PST_E_BAD_INPUT, NULL, "an adapter of rank %d for '%.*s' of %d by %d", rank, shown,
                         name.data, n_out, n_in);
  if (lora->n_targets == MAX_TARGETS)
    return pst_error_set(err, PST_E_LIMIT, NULL, "an adapter for more than %d tensors", MAX_TARGETS);
  for (size_t i = 0; i < lora->n_targets; i++)
    if (pst_str_is(name, lora->targets[i].name))
      return pst_error_set(err, PST_E_BAD_INPUT, NULL, "the adapter has '%.*s' twice", shown, name.data);
  int code = pst_array_reserve((void **)&lora->targets, &lora->capacity, lora->n_targets + 1, sizeof *lora->targets);
  pst_engine_lora_target t = {.rank = rank, .n_in = n_in, .n_out = n_out};
  if (!code) {
    t.name = pst_strndup(name.data, name.n);
    t.a = pst_calloc((size_t)rank * (size_t)n_in, sizeof *t.a);
    t.b = pst_calloc((size_t)rank * (size_t)n_out, sizeof *t.b);
  }
  if (code || !t.name || !t.a || !t.b) {
    pst_free(t.name);
    pst_free(t.a);
    pst_free(t.b);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an adapter");
  }
  lora->targets[lora->n_targets++] = t;
  if (ret_target) *ret_target = &lora->targets[lora->n_targets - 1];
  return 0;
}

int pst_engine_lora_set_note(pst_engine_lora *lora, pst_engine_lora_note note, const char *text, pst_error *err) {
  char *copy = text ? pst_strdup(text) : NULL;
  if (text && !copy) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an adapter");
  pst_free(lora->notes[note]);
  lora->notes[note] = copy;
  return 0;
}

int pst_engine_lora_take_note(pst_engine_lora *lora, pst_engine_lora_note note, pst_str text, const char *path,
                              pst_error *err) {
  if (text.n == 0) return 0;
  if (text.n > PST_ENGINE_LORA_MAX_NOTE || memchr(text.data, 0, text.n) || !pst_utf8_valid(text))
    return pst_error_set(err, PST_E_BAD_INPUT, path, "key '%s' is not a text, or longer than %d bytes",
                         pst_engine_lora_keys[note], PST_ENGINE_LORA_MAX_NOTE);
  char *copy = pst_strndup(text.data, text.n);
  if (!copy) return pst_error_set(err, PST_E_NOMEM, path, "no memory for an adapter");
  pst_free(lora->notes[note]);
  lora->notes[note] = copy;
  return 0;
}

int pst_engine_lora_check_finite(const float *x, size_t n, pst_str name, const char *path, pst_error *err) {
  typedef uint32_t words4 __attribute__((vector_size(16)));
  const uint32_t high = 0x7f800000u; /* the exponent of what is not finite */
  words4 found = {0}, w;
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    memcpy(&w, x + i, sizeof w);
    found |= (words4)((w & high) == high);
  }
  bool finite = !(found[0] | found[1] | found[2] | found[3]);
  for (; i < n; i++) finite &= isfinite(x[i]) != 0;
  return finite ? 0
                : pst_error_set(err, PST_E_BAD_INPUT, path, "tensor '%.*s' holds a value that is not finite",
                                (int)PST_MIN(name.n, (size_t)120), name.data);
}

/* ---- reading ---- */

static bool is_key_value(const pst_engine_gguf *g, const char *key, const char *wanted, pst_str *ret_value) {
  pst_error ignored = PST_ERROR_INIT;
  *ret_value = PST_STR("");
  return !pst_engine_gguf_get_str(g, key, ret_value, &ignored) && pst_str_is(*ret_value, wanted);
}

static int read_keys(const pst_engine_gguf *g, pst_engine_lora *lora, pst_error *err) {
  const char *path = pst_engine_gguf_path(g);
  pst_str value;
  double alpha = 0;
  if (!is_key_value(g, "general.type", "adapter", &value))
    return pst_error_set(err, PST_E_BAD_INPUT, path, "is no adapter: 'general.type' is '%.*s'",
                         (int)PST_MIN(value.n, (size_t)40), value.data);
  if (!is_key_value(g, "adapter.type", "lora", &value))
    return pst_error_set(err, PST_E_UNSUPPORTED, path, "adapter of type '%.*s'; only lora is known here",
                         (int)PST_MIN(value.n, (size_t)40), value.data);
  if (pst_engine_gguf_find(g, "adapter.alora.invocation_tokens"))
    return pst_error_set(err, PST_E_UNSUPPORTED, path,
                         "'adapter.alora.invocation_tokens': an adapter that begins to act inside the prompt");
  int code = pst_engine_gguf_get_str(g, "general.architecture", &value, err);
  if (!code) code = pst_engine_gguf_opt_f64(g, "adapter.lora.alpha", &alpha, err);
  if (code) return code;
  if (!isfinite((float)alpha))
    return pst_error_set(err, PST_E_BAD_INPUT, path, "'adapter.lora.alpha' is not a finite number");
  lora->alpha = (float)alpha;
  lora->architecture = pst_strndup(value.data, value.n);
  if (!lora->architecture) return pst_error_set(err, PST_E_NOMEM, path, "no memory for an adapter");
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES && !code; k++) {
    pst_str note = PST_STR("");
    code = pst_engine_gguf_opt_str(g, pst_engine_lora_keys[k], &note, err);
    if (!code) code = pst_engine_lora_take_note(lora, (pst_engine_lora_note)k, note, path, err);
  }
  return code;
}

static int read_floats(const pst_engine_gguf_tensor *t, const char *path, float *out, pst_error *err) {
  /* Rows have whole blocks, so that a matrix is one long row. */
  if (pst_kernels_dequantize_row(t->type, t->data, (size_t)t->n_elements, out))
    return pst_error_set(err, PST_E_UNSUPPORTED, path, "tensor '%.*s' has type %s, which cannot be read as numbers",
                         (int)PST_MIN(t->name.n, (size_t)120), t->name.data, pst_kernels_type_info(t->type)->name);
  return pst_engine_lora_check_finite(out, (size_t)t->n_elements, t->name, path, err);
}

/* X of "X.lora_a"; no bytes: the name is another. */
static pst_str base_name(pst_str name, const char *end) {
  size_t n = strlen(end);
  if (name.n <= n || memcmp(name.data + name.n - n, end, n) != 0) return (pst_str){name.data, 0};
  return (pst_str){name.data, name.n - n};
}

static int read_pair(const pst_engine_gguf *g, const pst_engine_gguf_tensor *a, pst_str name, pst_engine_lora *lora,
                     pst_error *err) {
  const char *path = pst_engine_gguf_path(g);
  char other[300];
  snprintf(other, sizeof other, "%.*s.lora_b", (int)name.n, name.data);
  const pst_engine_gguf_tensor *b = pst_engine_gguf_find_tensor(g, other);
  if (!b)
    return pst_error_set(err, PST_E_BAD_INPUT, path, "tensor '%.*s' has no '.lora_b'", (int)a->name.n, a->name.data);
  if (pst_str_starts(name, PST_STR("token_embd.")))
    return pst_error_set(err, PST_E_UNSUPPORTED, path, "tensor '%.*s': adapters of embeddings are not known here",
                         (int)a->name.n, a->name.data);
  if (a->n_elements != a->dims[0] * a->dims[1] || b->n_elements != b->dims[0] * b->dims[1])
    return pst_error_set(err, PST_E_UNSUPPORTED, path, "tensor '%.*s' has more than 2 dimensions", (int)a->name.n,
                         a->name.data);
  const uint64_t most = PST_ENGINE_LORA_MAX_SIZE;
  if (b->dims[0] != a->dims[1] || a->dims[1] > PST_ENGINE_LORA_MAX_RANK || a->dims[0] > most || b->dims[1] > most)
    return pst_error_set(err, PST_E_BAD_INPUT, path,
                         "'%.*s': .lora_a of %llu by %llu and .lora_b of %llu by %llu make no adapter", (int)name.n,
                         name.data, (unsigned long long)a->dims[1], (unsigned long long)a->dims[0],
                         (unsigned long long)b->dims[1], (unsigned long long)b->dims[0]);
  return pst_engine_lora_add(lora, name, (int)a->dims[1], (int)a->dims[0], (int)b->dims[1], NULL, err);
}

/* The numbers of a target whose tensors are there. */
static int fill_target(const pst_engine_gguf *g, const pst_engine_lora_target *t, pst_error *err) {
  for (int is_b = 0; is_b < 2; is_b++) {
    char name[300];
    snprintf(name, sizeof name, "%s.lora_%c", t->name, is_b ? 'b' : 'a');
    int code = read_floats(pst_engine_gguf_find_tensor(g, name), pst_engine_gguf_path(g), is_b ? t->b : t->a, err);
    if (code) return code;
  }
  return 0;
}

typedef struct filling {
  const pst_engine_gguf *g;
  const pst_engine_lora *lora;
  atomic_size_t next;
  atomic_bool failed;
} filling;

static void fill_some(void *arg, pst_engine_team *team, int index) {
  filling *f = arg;
  (void)team;
  (void)index;
  for (size_t i; (i = atomic_fetch_add(&f->next, 1)) < f->lora->n_targets;)
    if (fill_target(f->g, &f->lora->targets[i], NULL)) atomic_store(&f->failed, true);
}

/* By all threads: most of the time goes into pages that are touched for the first time. */
static int fill_all(const pst_engine_gguf *g, const pst_engine_lora *lora, pst_error *err) {
  filling f = {.g = g, .lora = lora};
  pst_engine_pool_run(PST_MIN(pst_cpu_count(), PST_ENGINE_MAX_THREADS), fill_some, &f);
  int code = 0;
  for (size_t i = 0; i < lora->n_targets && atomic_load(&f.failed) && !code; i++) /* the first that failed says why */
    code = fill_target(g, &lora->targets[i], err);
  return code;
}

static int read_tensors(const pst_engine_gguf *g, pst_engine_lora *lora, pst_error *err) {
  size_t n = pst_engine_gguf_n_tensors(g), n_b = 0;
  int code = 0;
  for (size_t i = 0; i < n && !code; i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(g, i);
    pst_str name = base_name(t->name, ".lora_a");
    if (base_name(t->name, ".lora_b").n)
      n_b++;
    else if (name.n)
      code = read_pair(g, t, name, lora, err);
    else
      return pst_error_set(err, PST_E_UNSUPPORTED, pst_engine_gguf_path(g),
                           "tensor '%.*s' is neither a .lora_a nor a .lora_b", (int)t->name.n, t->name.data);
  }
  if (!code && (n_b != lora->n_targets || n == 0))
    code = pst_error_set(err, PST_E_BAD_INPUT, pst_engine_gguf_path(g),
                         "has %zu tensors .lora_a and %zu .lora_b, where each needs its other", lora->n_targets, n_b);
  return code ? code : fill_all(g, lora, err);
}

static int read_gguf(const char *path, pst_engine_lora *ret_lora, pst_error *err) {
  pst_engine_gguf *g = NULL;
  pst_engine_lora lora = {0};
  int code = pst_engine_gguf_open(path, &g, err);
  if (!code) code = read_keys(g, &lora, err);
  if (!code) code = read_tensors(g, &lora, err);
  pst_engine_gguf_close(g);
  if (code)
    pst_engine_lora_done(&lora);
  else
    *ret_lora = lora;
  return code;
}

/* The folder of PEFT that `path` names, or lies in as a safetensors file; NULL: neither. pst_free. */
static char *peft_folder(const char *path) {
  if (pst_dir_exists(path)) return pst_strdup(path);
  if (!base_name(pst_str_from(path), ".safetensors").n) return NULL;
  const char *slash = strrchr(path, '/');
  return slash ? pst_strndup(path, (size_t)(slash - path) + 1) : pst_strdup(".");
}

int pst_engine_lora_read(const char *path, const pst_engine_model_info *base, pst_engine_lora *ret_lora,
                         pst_error *err) {
  if (base_name(pst_str_from(path), ".bin").n)
    return pst_error_set(err, PST_E_UNSUPPORTED, path,
                         "pickled weights are programs and are not read; save the "
                         "adapter as safetensors");
  char *folder = peft_folder(path);
  if (!folder) return read_gguf(path, ret_lora, err);
  bool is_folder = pst_dir_exists(path);
  char *weights = is_folder ? pst_path_join(path, "adapter_model.safetensors") : pst_strdup(path);
  char *config = pst_path_join(folder, "adapter_config.json");
  int code = weights && config ? pst_engine_lora_read_peft(weights, config, base, ret_lora, err)
                               : pst_error_set(err, PST_E_NOMEM, path, "no memory");
  pst_free(config);
  pst_free(weights);
  pst_free(folder);
  return code;
}

/* ---- writing ---- */

static void put_tensor(pst_engine_gguf_writer *w, const pst_engine_lora_target *t, bool is_b) {
  char name[300];
  uint64_t a_dims[4] = {(uint64_t)t->n_in, (uint64_t)t->rank, 1, 1},
           b_dims[4] = {(uint64_t)t->rank, (uint64_t)t->n_out, 1, 1};
  snprintf(name, sizeof name, "%s.lora_%c", t->name, is_b ? 'b' : 'a');
  pst_engine_gguf_writer_add_tensor(w, pst_str_from(name), PST_TYPE_F32, 2, is_b ? b_dims : a_dims);
}

static int write_all(pst_engine_gguf_writer *w, const pst_engine_lora *lora, pst_error *err) {
  int code = 0;
  pst_engine_gguf_writer_put_str(w, "general.type", PST_STR("adapter"));
  pst_engine_gguf_writer_put_str(w, "general.architecture", pst_str_from(lora->architecture));
  pst_engine_gguf_writer_put_str(w, "adapter.type", PST_STR("lora"));
  pst_engine_gguf_writer_put_f32(w, "adapter.lora.alpha", lora->alpha);
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES; k++)
    if (lora->notes[k]) pst_engine_gguf_writer_put_str(w, pst_engine_lora_keys[k], pst_str_from(lora->notes[k]));
  for (size_t i = 0; i < lora->n_targets; i++) {
    put_tensor(w, &lora->targets[i], false);
    put_tensor(w, &lora->targets[i], true);
  }
  for (size_t i = 0; i < lora->n_targets && !code; i++) {
    const pst_engine_lora_target *t = &lora->targets[i];
    code = pst_engine_gguf_writer_write(w, t->a, (size_t)t->rank * (size_t)t->n_in * sizeof *t->a, err);
    if (!code) code = pst_engine_gguf_writer_write(w, t->b, (size_t)t->rank * (size_t)t->n_out * sizeof *t->b, err);
  }
  return code ? code : pst_engine_gguf_writer_finish(w, err);
}

int pst_engine_lora_write_gguf(const pst_engine_lora *lora, const char *path, pst_error *err) {
  pst_engine_gguf_writer *w = NULL;
  if (!lora->architecture || lora->n_targets == 0)
    return pst_error_set(err, PST_E_BAD_INPUT, path, "an adapter without %s",
                         lora->architecture ? "a tensor" : "an architecture");
  int code = pst_engine_gguf_writer_create(path, ALIGNMENT, &w, err);
  if (!code) code = write_all(w, lora, err);
  pst_engine_gguf_writer_free(w);
  return code;
}
