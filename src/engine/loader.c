/* Keys and tensors of a model file, checked before they are used. Every one that is read is marked, so that what nobody read can be refused by name. */
#include "engine/loader.h"

#include <math.h>
#include <string.h>

/* ---- keys ---- */

const char *pst_engine_loader_key(const pst_engine_loader *l, const char *name, char buf[128]) {
  snprintf(buf, 128, "%s.%s", l->arch, name);
  for (size_t i = 0; i < pst_engine_gguf_n_values(l->m->gguf); i++)
    if (pst_str_is(pst_engine_gguf_value_at(l->m->gguf, i)->key, buf)) l->asked[i] = true;
  return buf;
}

int pst_engine_loader_need_int(pst_engine_loader *l, const char *name, int64_t min, int64_t max, int *ret) {
  char key[128];
  uint64_t v;
  if (!pst_engine_gguf_find(l->m->gguf, pst_engine_loader_key(l, name, key)))
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "required key '%s' is missing", key);
  int code = pst_engine_gguf_get_u64(l->m->gguf, key, &v, l->err);
  if (code) return code;
  if (v < (uint64_t)min || v > (uint64_t)max)
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key '%s' is %llu, outside %lld to %lld", key,
                         (unsigned long long)v, (long long)min, (long long)max);
  *ret = (int)v;
  return 0;
}

int pst_engine_loader_want_int(pst_engine_loader *l, const char *name, int64_t min, int64_t max, int *value) {
  char key[128];
  return pst_engine_gguf_find(l->m->gguf, pst_engine_loader_key(l, name, key))
             ? pst_engine_loader_need_int(l, name, min, max, value)
             : 0;
}

int pst_engine_loader_want_double(pst_engine_loader *l, const char *name, double min, double max, double *value) {
  char key[128];
  int code = pst_engine_gguf_opt_f64(l->m->gguf, pst_engine_loader_key(l, name, key), value, l->err);
  if (code) return code;
  if (!(*value >= min && *value <= max))
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "key '%s' is %g, outside %g to %g", key, *value, min, max);
  return 0;
}

int pst_engine_loader_check_head(pst_engine_loader *l, int key_dim, int value_dim) {
  if (key_dim % 8 == 0 && key_dim >= 8 && key_dim <= PST_KERNELS_MAX_HEAD && value_dim == key_dim) return 0;
  return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                       "head size %d (values %d): known are equal sizes, multiples of 8 up to %d", key_dim, value_dim,
                       PST_KERNELS_MAX_HEAD);
}

/* ---- tensors ---- */

const pst_engine_gguf_tensor *pst_engine_loader_tensor(pst_engine_loader *l, const char *name) {
  const pst_engine_gguf_tensor *t = pst_engine_gguf_find_tensor(l->m->gguf, name);
  if (t) {
    for (size_t i = 0; i < pst_engine_gguf_n_tensors(l->m->gguf); i++)
      if (pst_engine_gguf_tensor_at(l->m->gguf, i) == t) l->taken[i] = true;
  }
  return t;
}

/* [n][rows][cols] is what the tensor must be. */
int pst_engine_loader_check_dims(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t n,
                                 size_t rows, size_t cols) {
  if (!t) return pst_error_set(l->err, PST_E_BAD_INPUT, l->path, "tensor '%s' is missing", name);
  if (t->dims[0] == cols && t->dims[1] == rows && t->dims[2] == n && t->dims[3] == 1) return 0;
  if (n == 1 && t->dims[2] == 1)
    return pst_error_set(l->err, PST_E_BAD_INPUT, l->path,
                         "tensor '%s' has shape %llu x %llu, where the keys ask for %zu x %zu", name,
                         (unsigned long long)t->dims[1], (unsigned long long)t->dims[0], rows, cols);
  return pst_error_set(l->err, PST_E_BAD_INPUT, l->path,
                       "tensor '%s' has shape %llu x %llu x %llu, where the keys ask for %zu x %zu x %zu", name,
                       (unsigned long long)t->dims[2], (unsigned long long)t->dims[1], (unsigned long long)t->dims[0],
                       n, rows, cols);
}

int pst_engine_loader_check_shape(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t rows,
                                  size_t cols) {
  return pst_engine_loader_check_dims(l, t, name, 1, rows, cols);
}

/* Room for what is made of a tensor's bytes, from `src` on. */
size_t pst_engine_loader_take_bytes(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const uint8_t *src,
                                    size_t bytes) {
  uint64_t what[] = {t->offset, (uint64_t)(src - t->data), l->used, bytes};
  size_t at = l->used;
  l->table = pst_hash64(what, sizeof what, l->table);
  l->used += (bytes + 63) & ~(size_t)63;
  return at;
}

int pst_engine_loader_add_job(pst_engine_loader *l, struct pst_engine_pack_job job) {
  if (l->filled) return 0;
  if (pst_array_reserve((void **)&l->jobs, &l->jobs_capacity, l->n_jobs + 1, sizeof *l->jobs))
    return pst_error_set(l->err, PST_E_NOMEM, l->path, "no memory to pack the weights");
  l->jobs[l->n_jobs++] = job;
  return 0;
}

/* A packed matrix for rows of a tensor, without data. */
int pst_engine_loader_init_matrix(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t rows,
                                  size_t cols, pst_kernels_matrix *ret) {
  int code = pst_kernels_matrix_init(t->type, rows, cols, ret, l->err);
  if (code) {
    pst_error_prefix(l->err, "tensor '%s'", name);
    if (l->err) snprintf(l->err->place, sizeof l->err->place, "%s", l->path);
  }
  return code;
}

/* Rows [first, first + rows) of a weight matrix of n_rows, required. In the first pass its size is counted; the second sets its memory and queues
 * the packing. */
int pst_engine_loader_rows(pst_engine_loader *l, const char *name, size_t n_rows, size_t first, size_t rows,
                           size_t cols, pst_kernels_matrix *ret) {
  const pst_engine_gguf_tensor *t = pst_engine_loader_tensor(l, name);
  int code = pst_engine_loader_check_shape(l, t, name, n_rows, cols);
  if (code) return code;
  pst_kernels_matrix matrix;
  code = pst_engine_loader_init_matrix(l, t, name, rows, cols, &matrix);
  if (code) return code;
  const uint8_t *src = t->data + first * pst_kernels_row_bytes(t->type, cols);
  size_t at = pst_engine_loader_take_bytes(l, t, src, pst_kernels_matrix_bytes(&matrix));
  *ret = matrix;
  if (!l->memory) return 0;
  ret->data = l->memory + at;
  return pst_engine_loader_add_job(l, (struct pst_engine_pack_job){ret, NULL, src, l->memory + at, NULL});
}

int pst_engine_loader_matrix(pst_engine_loader *l, const char *name, size_t rows, size_t cols,
                             pst_kernels_matrix *ret) {
  return pst_engine_loader_rows(l, name, rows, 0, rows, cols, ret);
}

/* The first n elements of a tensor, as float32. */
int pst_engine_loader_first_row(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t n,
                                const float **ret) {
  size_t at = pst_engine_loader_take_bytes(l, t, t->data, n * sizeof(float));
  if (!l->memory) return 0;
  float *row = (float *)(void *)(l->memory + at);
  *ret = row;
  if (l->filled) return 0;
  int code = pst_kernels_dequantize_row(t->type, t->data, n, row);
  for (size_t i = 0; i < n && !code; i++)
    if (!isfinite(row[i])) code = PST_E_BAD_INPUT;
  if (code) return pst_error_set(l->err, code, l->path, "tensor '%s' holds a value that is not finite", name);
  return 0;
}

/* Rows of floats (norms, biases, rope factors, taps), as float32. */
int pst_engine_loader_floats(pst_engine_loader *l, const char *name, size_t rows, size_t cols, bool required,
                             const float **ret) {
  const pst_engine_gguf_tensor *t = pst_engine_loader_tensor(l, name);
  *ret = NULL;
  if (!t && !required) return 0;
  int code = pst_engine_loader_check_shape(l, t, name, rows, cols);
  if (code) return code;
  size_t n = rows * cols;
  if (t->type != PST_TYPE_F32 && t->type != PST_TYPE_F16 && t->type != PST_TYPE_BF16)
    return pst_error_set(l->err, PST_E_UNSUPPORTED, l->path,
                         "tensor '%s' has type %s; norms and biases must be F32, F16 or BF16", name,
                         pst_kernels_type_info(t->type)->name);
  return pst_engine_loader_first_row(l, t, name, n, ret);
}

int pst_engine_loader_row(pst_engine_loader *l, const char *name, size_t n, bool required, const float **ret) {
  return pst_engine_loader_floats(l, name, 1, n, required, ret);
}

int pst_engine_loader_layer_matrix(pst_engine_loader *l, int layer, const char *name, size_t rows, size_t cols,
                                   pst_kernels_matrix *ret) {
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
  return pst_engine_loader_matrix(l, full, rows, cols, ret);
}

int pst_engine_loader_layer_row(pst_engine_loader *l, int layer, const char *name, size_t n, bool required,
                                const float **ret) {
  char full[96];
  snprintf(full, sizeof full, "blk.%d.%s", layer, name);
  return pst_engine_loader_row(l, full, n, required, ret);
}
