/* A GGUF file with some of its tensors' data given by the caller: who has chosen a tensor's bytes by other means than quantize.c brings them in here.
 *
 * Owns matching given tensors to the file's, and the count of what a file would hold. */
#include <penstock/engine.h>

#include <string.h>

#include "engine/checkpoint.h"
#include "engine/gguf.h"

/* The given tensor of this name; NULL: it stays as it is. */
static const pst_engine_tensor *find(const pst_engine_tensor *given, size_t n, pst_str name) {
  for (size_t i = 0; i < n; i++)
    if (pst_str_is(name, given[i].name)) return &given[i];
  return NULL;
}

static int check_given(const pst_engine_gguf *in, const pst_engine_tensor *given, size_t n, pst_error *err) {
  const char *path = pst_engine_gguf_path(in);
  for (size_t i = 0; i < n; i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_find_tensor(in, given[i].name);
    if (!t) return pst_error_set(err, PST_E_BAD_INPUT, path, "has no tensor '%s'", given[i].name);
    if (t->dims[0] != given[i].n_cols || t->n_elements != given[i].n_cols * given[i].n_rows)
      return pst_error_set(err, PST_E_BAD_INPUT, path, "tensor '%s' has other dimensions than what is to replace it",
                           given[i].name);
    if (!pst_kernels_row_bytes(given[i].type, given[i].n_cols))
      return pst_error_set(err, PST_E_UNSUPPORTED, path, "rows of tensor '%s' are no blocks of the wanted type",
                           given[i].name);
  }
  return 0;
}

static size_t bytes_of(const pst_engine_tensor *t) { return t->n_rows * pst_kernels_row_bytes(t->type, t->n_cols); }

int pst_engine_replace_measure(const char *in_path, const pst_engine_tensor *given, size_t n, int64_t *ret_bytes,
                               int64_t *ret_elements, pst_error *err) {
  pst_engine_gguf *in = NULL;
  int64_t bytes = 0, elements = 0;
  int code = pst_engine_checkpoint_open(in_path, &in, err);
  if (!code) code = check_given(in, given, n, err);
  for (size_t i = 0; !code && i < pst_engine_gguf_n_tensors(in); i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(in, i);
    const pst_engine_tensor *g = find(given, n, t->name);
    bytes += (int64_t)(g ? bytes_of(g) : t->bytes);
    elements += (int64_t)t->n_elements;
  }
  pst_engine_gguf_close(in);
  if (code) return code;
  *ret_bytes = bytes;
  *ret_elements = elements;
  return 0;
}

static int write_tensors(pst_engine_gguf_writer *w, const pst_engine_gguf *in, const pst_engine_tensor *given, size_t n,
                         pst_error *err) {
  int code = 0;
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(in) && !code; i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(in, i);
    const pst_engine_tensor *g = find(given, n, t->name);
    code = g ? pst_engine_gguf_writer_write(w, g->data, bytes_of(g), err)
             : pst_engine_gguf_writer_write(w, t->data, t->bytes, err);
  }
  return code;
}

int pst_engine_replace(const char *in_path, const char *out_path, const pst_engine_tensor *given, size_t n,
                       const char *note, pst_error *err) {
  pst_engine_gguf *in = NULL;
  pst_engine_gguf_writer *w = NULL;
  int code = pst_engine_gguf_check_target(in_path, out_path, err);
  if (!code) code = pst_engine_checkpoint_open(in_path, &in, err);
  if (!code) code = check_given(in, given, n, err);
  if (!code) code = pst_engine_gguf_writer_create(out_path, pst_engine_gguf_alignment(in), &w, err);
  if (code) goto done;
  pst_engine_gguf_writer_copy_values(w, in);
  pst_engine_gguf_writer_put_u32(w, "general.quantization_version", 2);
  if (note) pst_engine_gguf_writer_put_str(w, "penstock.calibrated", pst_str_from(note));
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(in); i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(in, i);
    const pst_engine_tensor *g = find(given, n, t->name);
    pst_engine_gguf_writer_add_tensor(w, t->name, g ? g->type : t->type, t->n_dims, t->dims);
  }
  code = write_tensors(w, in, given, n, err);
  if (!code) code = pst_engine_gguf_writer_finish(w, err);
done:
  pst_engine_gguf_writer_free(w);
  pst_engine_gguf_close(in);
  return code;
}
