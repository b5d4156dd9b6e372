/* A GGUF file without some of its model's layers: their tensors are left out, those behind them move up. */
#include <penstock/engine.h>

#include <stdio.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/gguf.h"

/* Of a tensor's name "blk.N.rest": N and where ".rest" begins; false for others. */
static bool split(pst_str name, int64_t *ret_layer, size_t *ret_rest) {
  pst_str start = PST_STR("blk.");
  if (!pst_str_starts(name, start)) return false;
  size_t dot = pst_str_find(name, PST_STR("."), start.n);
  if (dot == SIZE_MAX || pst_parse_i64((pst_str){name.data + start.n, dot - start.n}, 0, INT32_MAX, ret_layer))
    return false;
  *ret_rest = dot;
  return true;
}

/* Where a layer goes; -1: it is left out. */
static int64_t moved(int64_t layer, const int *dropped, size_t n) {
  int64_t before = 0;
  for (size_t i = 0; i < n; i++) {
    if (dropped[i] == layer) return -1;
    before += dropped[i] < layer;
  }
  return layer - before;
}

/* What says something of each layer would say it of others. */
static int check_values(const pst_engine_gguf *in, pst_str architecture, uint64_t n_layers, pst_error *err) {
  for (size_t i = 0; i < pst_engine_gguf_n_values(in); i++) {
    const pst_engine_gguf_value *v = pst_engine_gguf_value_at(in, i);
    if (v->kind == PST_ENGINE_GGUF_ARRAY && v->n == n_layers && pst_str_starts(v->key, architecture))
      return pst_error_set(err, PST_E_UNSUPPORTED, pst_engine_gguf_path(in),
                           "'%.*s' says something of each layer; layers of such a model are not left out",
                           (int)v->key.n, v->key.data);
  }
  return 0;
}

static int write_tensors(pst_engine_gguf_writer *w, const pst_engine_gguf *in, const int *dropped, size_t n,
                         pst_error *err) {
  int64_t layer;
  size_t rest;
  int code = 0;
  for (int writing = 0; writing < 2; writing++) /* all are named before the first byte of one */
    for (size_t i = 0; i < pst_engine_gguf_n_tensors(in) && !code; i++) {
      const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(in, i);
      pst_str name = t->name;
      char own[300];
      if (split(t->name, &layer, &rest)) {
        if ((layer = moved(layer, dropped, n)) < 0) continue;
        (void)snprintf(own, sizeof own, "blk.%lld%.*s", (long long)layer, (int)(t->name.n - rest), t->name.data + rest);
        name = pst_str_from(own);
      }
      if (writing)
        code = pst_engine_gguf_writer_write(w, t->data, t->bytes, err);
      else
        pst_engine_gguf_writer_add_tensor(w, name, t->type, t->n_dims, t->dims);
    }
  return code;
}

int pst_engine_drop_layers(const char *in_path, const char *out_path, const int *dropped, size_t n, const char *note,
                           pst_error *err) {
  pst_engine_gguf *in = NULL;
  pst_engine_gguf_writer *w = NULL;
  pst_str architecture = {0};
  char key[128];
  uint64_t n_layers = 0;
  int code = pst_engine_gguf_check_target(in_path, out_path, err);
  if (!code) code = pst_engine_checkpoint_open(in_path, &in, err);
  if (!code) code = pst_engine_gguf_get_str(in, "general.architecture", &architecture, err);
  (void)snprintf(key, sizeof key, "%.*s.block_count", (int)PST_MIN(architecture.n, (size_t)64), architecture.data);
  if (!code) code = pst_engine_gguf_get_u64(in, key, &n_layers, err);
  if (!code) code = check_values(in, architecture, n_layers, err);
  for (size_t i = 0; i < n && !code; i++) {
    bool twice = false;
    for (size_t k = 0; k < i; k++) twice |= dropped[k] == dropped[i];
    if (dropped[i] < 0 || (uint64_t)dropped[i] >= n_layers || twice || n >= n_layers)
      code = pst_error_set(err, PST_E_BAD_INPUT, in_path, "%zu layers, %d among them, cannot be left out of %llu", n,
                           dropped[i], (unsigned long long)n_layers);
  }
  if (!code) code = pst_engine_gguf_writer_create(out_path, pst_engine_gguf_alignment(in), &w, err);
  if (!code) {
    pst_engine_gguf_writer_copy_values(w, in);
    pst_engine_gguf_writer_put_u32(w, key, (uint32_t)(n_layers - n));
    if (note) pst_engine_gguf_writer_put_str(w, "penstock.pruned", pst_str_from(note));
    code = write_tensors(w, in, dropped, n, err);
  }
  if (!code) code = pst_engine_gguf_writer_finish(w, err);
  pst_engine_gguf_writer_free(w);
  pst_engine_gguf_close(in);
  return code;
}
