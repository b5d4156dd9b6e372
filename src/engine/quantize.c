/* A GGUF file with its matrices in another type, or with an adapter merged into them.
 *
 * Owns which tensors are converted and to what; rounding is kernels/quantize.c's, the file's appearing whole or not at all gguf_write.c's.
 * Matrices (two dimensions and more) of a type that can be read as floats are converted; norms, biases, taps of convolutions, routers of experts (small, and their
 * rounding would choose other experts) and index tensors are copied, and so is every matrix that has the wanted type already. A tensor is worked through in batches of rows: the compute pool fills a batch, the
 * caller's thread writes it, so that memory stays at a few megabytes however large the file, and an engine of the same process gets its turns. */
#include <penstock/engine.h>

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/model.h"
#include "engine/pool.h"

enum { BATCH_ELEMENTS = 1 << 20 };

/* What a file of one main type is called in general.file_type (llama.cpp's llama_ftype). */
typedef struct target_row {
  uint32_t type, file_type, fallback;
} target_row;

static const target_row targets[] = {
    {PST_TYPE_F32, 0, PST_TYPE_F32},      {PST_TYPE_F16, 1, PST_TYPE_F16},        {PST_TYPE_BF16, 32, PST_TYPE_BF16},
    {PST_TYPE_Q4_0, 2, PST_TYPE_F16},     {PST_TYPE_Q4_1, 3, PST_TYPE_F16},       {PST_TYPE_Q5_0, 8, PST_TYPE_F16},
    {PST_TYPE_Q5_1, 9, PST_TYPE_F16},     {PST_TYPE_Q8_0, 7, PST_TYPE_F16},       {PST_TYPE_Q4_K, 14, PST_TYPE_Q5_0},
    {PST_TYPE_Q5_K, 16, PST_TYPE_Q5_1},   {PST_TYPE_Q6_K, 18, PST_TYPE_Q8_0},     {PST_TYPE_IQ4_NL, 25, PST_TYPE_F16},
    {PST_TYPE_Q3_K, 11, PST_TYPE_IQ4_NL}, {PST_TYPE_IQ4_XS, 30, PST_TYPE_IQ4_NL},
};

static const target_row *find_target(uint32_t type) {
  for (size_t i = 0; i < PST_ARRAY_LEN(targets); i++)
    if (targets[i].type == type) return &targets[i];
  return NULL;
}

static int parse_target(const char *name, const target_row **ret, pst_error *err) {
  const pst_kernels_type_row *row = pst_kernels_type_find(pst_str_from(name));
  if (row && (*ret = find_target(row->type))) return 0;
  pst_buf known = PST_BUF_INIT;
  for (size_t i = 0; i < PST_ARRAY_LEN(targets); i++)
    pst_buf_printf(&known, "%s%s", i ? " " : "", pst_kernels_type_info(targets[i].type)->name);
  int code = pst_error_set(err, PST_E_UNSUPPORTED, "type", "'%.40s' is no type to quantize to; those are %s", name,
                           pst_buf_text(&known));
  pst_buf_done(&known);
  return code;
}

/* ---- one batch ---- */

/* What becomes of one tensor. */
typedef struct change {
  uint32_t type;                      /* of the new file */
  const pst_engine_lora_target *lora; /* NULL: nothing is added */
  float scale;                        /* of lora */
} change;

typedef struct job {
  const pst_engine_gguf_tensor *t;
  const change *change;
  uint64_t row_begin, n_rows; /* of this batch */
  size_t in_bytes, out_bytes; /* of a row */
  float *floats;              /* [PST_ENGINE_MAX_THREADS][row length]; a thread's own row */
  uint8_t *out;               /* [n_rows][out_bytes] */
  atomic_ullong next;         /* row to take */
  atomic_int code;            /* of the first row that failed */
} job;

/* x[n] += scale * row of b, times a. */
static void add_lora(const change *c, uint64_t row, float *x, size_t n) {
  const pst_engine_lora_target *t = c->lora;
  for (size_t k = 0; k < (size_t)t->rank; k++) {
    float factor = c->scale * t->b[row * (size_t)t->rank + k];
    const float *a = t->a + k * n;
    for (size_t i = 0; i < n; i++) x[i] += factor * a[i];
  }
}

static int convert_row(const job *j, uint64_t r, float *row) {
  size_t n = (size_t)j->t->dims[0];
  int code = pst_kernels_dequantize_row(j->t->type, j->t->data + (j->row_begin + r) * j->in_bytes, n, row);
  if (!code && j->change->lora) add_lora(j->change, j->row_begin + r, row, n);
  for (size_t i = 0; i < n && !code; i++)
    if (!isfinite(row[i])) code = PST_E_BAD_INPUT;
  return code ? code : pst_kernels_quantize_row(j->change->type, row, n, NULL, j->out + r * j->out_bytes);
}

static void convert_rows(void *arg, pst_engine_team *team, int index) {
  job *j = arg;
  (void)team;
  float *row = j->floats + (size_t)index * (size_t)j->t->dims[0];
  for (;;) {
    uint64_t r = atomic_fetch_add(&j->next, 1);
    if (r >= j->n_rows || atomic_load(&j->code)) return;
    int code = convert_row(j, r, row);
    if (code) atomic_store(&j->code, code);
  }
}

static int explain(int code, const char *path, const job *j, pst_error *err) {
  int n = (int)PST_MIN(j->t->name.n, (size_t)120);
  const char *name = j->t->name.data;
  if (code == PST_E_BAD_INPUT)
    return pst_error_set(err, code, path, "tensor '%.*s' holds a value that is not finite", n, name);
  if (code == PST_E_LIMIT)
    return pst_error_set(err, code, path, "tensor '%.*s' holds a value too large for %s; BF16 and F32 have the range",
                         n, name, pst_kernels_type_info(j->change->type)->name);
  return pst_error_set(err, code, path, "tensor '%.*s' has type %s, which cannot be read as numbers", n, name,
                       pst_kernels_type_info(j->t->type)->name);
}

/* ---- one tensor ---- */

static bool ends_with(pst_str s, const char *end) {
  size_t n = strlen(end);
  return s.n >= n && !memcmp(s.data + s.n - n, end, n);
}

static bool is_matrix(const pst_engine_gguf_tensor *t) {
  static const char *const kept[] = {".bias", ".shortconv.conv.weight", ".ssm_conv1d.weight", ".ffn_gate_inp.weight"};
  for (size_t i = 0; i < PST_ARRAY_LEN(kept); i++)
    if (ends_with(t->name, kept[i])) return false;
  return t->n_dims >= 2 && t->n_elements > t->dims[0] && t->type != PST_TYPE_I8 && t->type != PST_TYPE_I16 &&
         t->type != PST_TYPE_I32 && t->type != PST_TYPE_I64 && t->type != PST_TYPE_F64;
}

/* The type of a tensor in the new file. */
static uint32_t new_type(const pst_engine_gguf_tensor *t, const target_row *target, int *n_fallback) {
  if (!is_matrix(t)) return t->type;
  uint32_t type = target->type;
  while (t->dims[0] % pst_kernels_type_info(type)->block_elements) type = find_target(type)->fallback;
  if (type != target->type) ++*n_fallback;
  return type;
}

static int write_converted(pst_engine_gguf_writer *w, const pst_engine_gguf *in, const pst_engine_gguf_tensor *t,
                           const change *c, pst_progress *progress, int64_t done, pst_error *err) {
  uint64_t n_rows = t->n_elements / t->dims[0];
  uint64_t per_batch = PST_MIN(PST_MAX(BATCH_ELEMENTS / t->dims[0], 1), n_rows);
  job j = {.t = t,
           .change = c,
           .in_bytes = pst_kernels_row_bytes(t->type, t->dims[0]),
           .out_bytes = pst_kernels_row_bytes(c->type, t->dims[0])};
  int n_threads = PST_MIN(pst_cpu_count(), PST_ENGINE_MAX_THREADS), code = 0;
  j.floats = pst_malloc((size_t)n_threads * (size_t)t->dims[0] * sizeof *j.floats);
  j.out = pst_malloc((size_t)per_batch * j.out_bytes);
  if (!j.floats || !j.out) code = pst_error_set(err, PST_E_NOMEM, pst_engine_gguf_path(in), "no memory to quantize");
  while (!code && j.row_begin < n_rows) {
    j.n_rows = PST_MIN(per_batch, n_rows - j.row_begin);
    atomic_store(&j.next, 0);
    pst_engine_pool_run(n_threads, convert_rows, &j);
    if (atomic_load(&j.code))
      code = explain(atomic_load(&j.code), pst_engine_gguf_path(in), &j, err);
    else
      code = pst_engine_gguf_writer_write(w, j.out, (size_t)j.n_rows * j.out_bytes, err);
    j.row_begin += j.n_rows;
    if (progress) pst_progress_update(progress, done + (int64_t)(j.row_begin * j.in_bytes));
  }
  pst_free(j.floats);
  pst_free(j.out);
  return code;
}

/* Copies in pieces, so that progress shows. */
static int write_copied(pst_engine_gguf_writer *w, const pst_engine_gguf_tensor *t, pst_progress *progress,
                        int64_t done, pst_error *err) {
  const size_t piece = (size_t)8 << 20;
  int code = 0;
  for (size_t at = 0; at < t->bytes && !code; at += piece) {
    size_t n = PST_MIN(piece, t->bytes - at);
    code = pst_engine_gguf_writer_write(w, t->data + at, n, err);
    if (progress) pst_progress_update(progress, done + (int64_t)(at + n));
  }
  return code;
}

/* ---- the file ---- */

static int write_tensors(pst_engine_gguf_writer *w, const pst_engine_gguf *in, const change *changes,
                         pst_progress *progress, pst_error *err) {
  int64_t done = 0;
  int code = 0;
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(in) && !code; i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(in, i);
    bool same = changes[i].type == t->type && !changes[i].lora;
    code = same ? write_copied(w, t, progress, done, err) : write_converted(w, in, t, &changes[i], progress, done, err);
    done += (int64_t)t->bytes;
  }
  return code;
}

/* Target `t` of the adapter and the tensor of the file that it is for. */
static int place_target(const pst_engine_gguf *in, const pst_engine_lora *lora, const pst_engine_lora_target *t,
                        change *changes, pst_error *err) {
  const char *path = pst_engine_gguf_path(in);
  const pst_engine_gguf_tensor *first = pst_engine_gguf_tensor_at(in, 0), *x = pst_engine_gguf_find_tensor(in, t->name);
  if (!x) return pst_error_set(err, PST_E_BAD_INPUT, path, "has no tensor '%s', which the adapter is for", t->name);
  if (x->dims[0] != (uint64_t)t->n_in || x->n_elements != x->dims[0] * (uint64_t)t->n_out || !is_matrix(x))
    return pst_error_set(err, PST_E_BAD_INPUT, path,
                         "the adapter's '%s' is %d by %d, where the file's has rows of %llu: it is another model's",
                         t->name, t->n_out, t->n_in, (unsigned long long)x->dims[0]);
  change *c = &changes[x - first];
  if (!find_target(c->type))
    return pst_error_set(err, PST_E_UNSUPPORTED, path, "tensor '%s' has type %s, which is not written; choose a type",
                         t->name, pst_kernels_type_info(c->type)->name);
  c->lora = t;
  c->scale = (float)pst_engine_lora_scale(lora, t);
  return 0;
}

/* target NULL: tensors keep their types; lora NULL: nothing is added. */
static int plan_changes(const pst_engine_gguf *in, const target_row *target, const pst_engine_lora *lora,
                        change *changes, int *ret_n_fallback, pst_error *err) {
  int code = 0;
  *ret_n_fallback = 0;
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(in); i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(in, i);
    changes[i].type = target ? new_type(t, target, ret_n_fallback) : t->type;
  }
  for (size_t i = 0; lora && i < lora->n_targets && !code; i++)
    code = place_target(in, lora, &lora->targets[i], changes, err);
  return code;
}

static int write_file(pst_engine_gguf_writer *w, const pst_engine_gguf *in, const target_row *target,
                      const pst_engine_lora *lora, pst_progress *progress, int *ret_n_fallback, pst_error *err) {
  size_t n = pst_engine_gguf_n_tensors(in);
  int n_fallback = 0;
  change *changes = pst_calloc(n, sizeof *changes);
  if (!changes) return pst_error_set(err, PST_E_NOMEM, pst_engine_gguf_path(in), "no memory");
  int code = plan_changes(in, target, lora, changes, &n_fallback, err);
  if (code) goto done;
  pst_engine_gguf_writer_copy_values(w, in);
  if (target) {
    pst_engine_gguf_writer_put_u32(w, "general.file_type", target->file_type);
    pst_engine_gguf_writer_put_u32(w, "general.quantization_version", 2);
  }
  if (lora && lora->notes[PST_ENGINE_LORA_NAME])
    pst_engine_gguf_writer_put_str(w, "penstock.merged", pst_str_from(lora->notes[PST_ENGINE_LORA_NAME]));
  if (progress) progress->total = 0;
  for (size_t i = 0; i < n; i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(in, i);
    pst_engine_gguf_writer_add_tensor(w, t->name, changes[i].type, t->n_dims, t->dims);
    if (progress) progress->total += (int64_t)t->bytes;
  }
  code = write_tensors(w, in, changes, progress, err);
  if (!code) code = pst_engine_gguf_writer_finish(w, err);
  if (!code && ret_n_fallback) *ret_n_fallback = n_fallback;
done:
  pst_free(changes);
  return code;
}

static int convert_file(const char *in_path, const char *out_path, const target_row *target,
                        const pst_engine_lora *lora, pst_progress *progress, int *ret_n_fallback, pst_error *err) {
  pst_engine_gguf *in = NULL;
  pst_engine_gguf_writer *w = NULL;
  int code = pst_engine_gguf_check_target(in_path, out_path, err);
  if (!code) code = pst_engine_checkpoint_open(in_path, &in, err);
  if (!code) code = pst_engine_gguf_writer_create(out_path, pst_engine_gguf_alignment(in), &w, err);
  if (!code) code = write_file(w, in, target, lora, progress, ret_n_fallback, err);
  pst_engine_gguf_writer_free(w);
  pst_engine_gguf_close(in);
  return code;
}

int pst_engine_quantize(const char *in_path, const char *out_path, const char *type, pst_progress *progress,
                        int *ret_n_fallback, pst_error *err) {
  const target_row *target = NULL;
  int code = parse_target(type, &target, err);
  return code ? code : convert_file(in_path, out_path, target, NULL, progress, ret_n_fallback, err);
}

int pst_engine_merge(const char *in_path, const char *adapter_path, const char *out_path, const char *type,
                     pst_progress *progress, int *ret_n_fallback, pst_error *err) {
  const target_row *target = NULL;
  pst_engine_model *model = NULL; /* only to ask about */
  pst_engine_lora lora = {0};
  int code = type ? parse_target(type, &target, err) : 0;
  if (!code) code = pst_engine_model_examine(in_path, &model, err);
  if (!code) code = pst_engine_lora_read(adapter_path, &model->info, &lora, err);
  if (!code) code = pst_engine_lora_check_merge(&lora, &model->info, adapter_path, err);
  if (!code) code = convert_file(in_path, out_path, target, &lora, progress, ret_n_fallback, err);
  pst_engine_lora_done(&lora);
  pst_engine_model_unref(model);
  return code;
}
