/* What a model file is: read from its tables, no weight touched; and a look at every weight for whoever asks.
 *
 * Owns the JSON of `inspect`. The file itself must be sound (gguf.c decides); whether the engine could run it is asked of model.c, whose
 * refusal is part of the answer and no failure: a file of an unknown architecture can be looked at. */
#include <math.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/forward.h"
#include "engine/pool.h"

enum { SHOWN_ELEMENTS = 8, CHECK_ROWS = 64 };

/* ---- metadata ---- */

static void put_element(pst_json_writer *w, const pst_engine_gguf_value *v, uint64_t i) {
  switch (v->element) {
  case PST_ENGINE_GGUF_STR: pst_json_put_str(w, pst_engine_gguf_value_str(v, i)); break;
  case PST_ENGINE_GGUF_BOOL: pst_json_put_bool(w, pst_engine_gguf_value_bool(v, i)); break;
  case PST_ENGINE_GGUF_F32:
  case PST_ENGINE_GGUF_F64: pst_json_put_double(w, pst_engine_gguf_value_f64(v, i)); break;
  case PST_ENGINE_GGUF_ARRAY: pst_json_put_null(w); break; /* arrays of arrays: nobody uses them */
  default: pst_json_put_int(w, pst_engine_gguf_value_i64(v, i)); break;
  }
}

static void put_metadata(pst_json_writer *w, const pst_engine_gguf *g) {
  pst_json_begin_array(w);
  for (size_t i = 0; i < pst_engine_gguf_n_values(g); i++) {
    const pst_engine_gguf_value *v = pst_engine_gguf_value_at(g, i);
    pst_json_begin_object(w);
    pst_json_member_str(w, "key", v->key);
    pst_json_member_cstr(w, "kind", pst_engine_gguf_kind_name(v->element));
    if (v->kind == PST_ENGINE_GGUF_ARRAY) {
      pst_json_member_int(w, "n", (int64_t)PST_MIN(v->n, (uint64_t)INT64_MAX));
      pst_json_key(w, "first");
      pst_json_begin_array(w);
      for (uint64_t k = 0; k < v->n && k < SHOWN_ELEMENTS; k++) put_element(w, v, k);
      pst_json_end_array(w);
    } else {
      pst_json_key(w, "value");
      put_element(w, v, 0);
    }
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
}

/* ---- tensors ---- */

static void put_types(pst_json_writer *w, const pst_engine_gguf *g) {
  int64_t tensors[PST_TYPE_END] = {0}, params[PST_TYPE_END] = {0}, bytes[PST_TYPE_END] = {0};
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(g); i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(g, i);
    tensors[t->type]++;
    params[t->type] += (int64_t)t->n_elements;
    bytes[t->type] += (int64_t)t->bytes;
  }
  pst_json_begin_array(w);
  for (uint32_t t = 0; t < PST_TYPE_END; t++) {
    if (!tensors[t]) continue;
    pst_json_begin_object(w);
    pst_json_member_cstr(w, "type", pst_kernels_type_info(t)->name);
    pst_json_member_int(w, "tensors", tensors[t]);
    pst_json_member_int(w, "params", params[t]);
    pst_json_member_int(w, "bytes", bytes[t]);
    pst_json_member_double(w, "bits_per_weight", round(800.0 * (double)bytes[t] / (double)params[t]) / 100);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
}

static void put_tensors(pst_json_writer *w, const pst_engine_gguf *g) {
  pst_json_begin_array(w);
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(g); i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(g, i);
    pst_json_begin_object(w);
    pst_json_member_str(w, "name", t->name);
    pst_json_member_cstr(w, "type", pst_kernels_type_info(t->type)->name);
    pst_json_key(w, "shape"); /* rows last, as in the file */
    pst_json_begin_array(w);
    for (uint32_t d = 0; d < t->n_dims; d++) pst_json_put_int(w, (int64_t)t->dims[d]);
    pst_json_end_array(w);
    pst_json_member_int(w, "bytes", (int64_t)t->bytes);
    pst_json_member_int(w, "offset", (int64_t)t->offset);
    pst_json_end_object(w);
  }
  pst_json_end_array(w);
}

/* ---- text side ---- */

static void put_token(pst_json_writer *w, const char *key, const pst_engine_tokenizer *t, int32_t id) {
  pst_json_key(w, key);
  if (id < 0) {
    pst_json_put_null(w);
    return;
  }
  pst_json_begin_object(w);
  pst_json_member_int(w, "id", id);
  pst_json_member_str(w, "text", pst_engine_tokenizer_bytes(t, id));
  pst_json_end_object(w);
}

static void put_problem(pst_json_writer *w, const pst_error *e) {
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "problem", e->message);
  pst_json_end_object(w);
}

static int put_tokenizer(pst_json_writer *w, const pst_engine_gguf *g) {
  pst_engine_tokenizer *t = NULL;
  pst_error why = PST_ERROR_INIT;
  int code = pst_engine_tokenizer_create(g, &t, &why);
  if (code) {
    put_problem(w, &why);
    return code == PST_E_NOMEM ? code : 0;
  }
  const pst_engine_tokenizer_info *f = pst_engine_tokenizer_get_info(t);
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "model", f->model);
  pst_json_member_cstr(w, "pre", f->pre);
  pst_json_member_int(w, "n_vocab", f->n_vocab);
  put_token(w, "bos", t, f->bos);
  put_token(w, "eos", t, f->eos);
  put_token(w, "eot", t, f->eot);
  put_token(w, "unk", t, f->unk);
  pst_json_member_bool(w, "add_bos", f->add_bos);
  pst_json_member_bool(w, "add_eos", f->add_eos);
  pst_json_end_object(w);
  pst_engine_tokenizer_free(t);
  return 0;
}

static int put_template(pst_json_writer *w, const pst_engine_gguf *g) {
  pst_engine_template *t = NULL;
  pst_str text = {NULL, 0};
  pst_error why = PST_ERROR_INIT;
  int code = pst_engine_gguf_opt_str(g, "tokenizer.chat_template", &text, &why);
  if (!code && !text.n) {
    pst_json_put_null(w);
    return 0;
  }
  if (!code) code = pst_engine_template_create(text, &t, &why);
  if (code) {
    put_problem(w, &why);
    return code == PST_E_NOMEM ? code : 0;
  }
  pst_json_begin_object(w);
  pst_json_member_int(w, "bytes", (int64_t)text.n);
  pst_json_member_bool(w, "tools", pst_engine_template_mentions(t, "tools"));
  pst_json_member_bool(w, "thinking", pst_engine_template_mentions(t, "enable_thinking"));
  pst_json_end_object(w);
  pst_engine_template_free(t);
  return 0;
}

/* ---- what running it would take ---- */

static void put_shape(pst_json_writer *w, const pst_engine_model_info *f) {
  const struct {
    const char *name;
    int64_t value;
  } rows[] = {{"n_layers", f->n_layers}, {"n_embd", f->n_embd},          {"n_ff", f->n_ff},
              {"n_heads", f->n_heads},   {"n_kv_heads", f->n_kv_heads},  {"head_dim", f->head_dim},
              {"n_vocab", f->n_vocab},   {"n_ctx_train", f->n_ctx_train}};
  pst_json_begin_object(w);
  if (f->n_dims) pst_json_member_int(w, "n_dims", f->n_dims);
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) pst_json_member_int(w, rows[i].name, rows[i].value);
  pst_json_end_object(w);
}

static int put_memory(pst_json_writer *w, const pst_engine_model *m, int n_ctx, pst_error *err) {
  const pst_engine_model_info *f = pst_engine_model_get_info(m);
  pst_engine_options o = pst_engine_options_default();
  int64_t kv[2] = {0, 0}, work[2] = {0, 0};
  o.slots = 1;
  o.n_ctx = n_ctx ? n_ctx : PST_MIN(f->n_ctx_train, 8192);
  o.kv_tokens = o.n_ctx;
  for (int i = 0; i < 2; i++) {
    o.kv = i ? PST_ENGINE_KV_Q8_0 : PST_ENGINE_KV_F16;
    int code = pst_engine_estimate_memory(m, &o, &kv[i], &work[i], err);
    if (code) return code;
  }
  pst_json_begin_object(w);
  pst_json_member_int(w, "n_ctx", o.n_ctx);
  pst_json_member_int(w, "weights_bytes", f->packed_bytes);
  pst_json_member_int(w, "kv_f16_bytes", kv[0]);
  pst_json_member_int(w, "kv_q8_0_bytes", kv[1]);
  pst_json_member_int(w, "work_bytes", PST_MAX(work[0], work[1]));
  pst_json_member_int(w, "total_f16_bytes", f->packed_bytes + kv[0] + work[0]);
  pst_json_member_int(w, "total_q8_0_bytes", f->packed_bytes + kv[1] + work[1]);
  pst_json_end_object(w);
  return 0;
}

static int put_run(pst_json_writer *w, const char *path, int n_ctx, pst_error *err) {
  pst_engine_model *m = NULL;
  pst_error why = PST_ERROR_INIT;
  int code = pst_engine_model_examine(path, &m, &why);
  pst_json_member_bool(w, "runs", !code);
  if (code) {
    pst_json_member_cstr(w, "problem", why.message);
    if (code != PST_E_NOMEM) return 0;
    if (err) *err = why;
    return code;
  }
  pst_json_key(w, "shape");
  put_shape(w, pst_engine_model_get_info(m));
  pst_json_key(w, "memory");
  code = put_memory(w, m, n_ctx, err);
  pst_engine_model_unref(m);
  return code;
}

static void put_optional_str(pst_json_writer *w, const char *key, const pst_engine_gguf *g, const char *from) {
  pst_str text;
  pst_json_key(w, key);
  if (pst_engine_gguf_get_str(g, from, &text, NULL))
    pst_json_put_null(w);
  else
    pst_json_put_str(w, text);
}

int pst_engine_inspect(const char *path, int n_ctx, pst_buf *out, pst_error *err) {
  pst_engine_gguf *g = NULL;
  size_t before = out->n;
  int64_t n_params = 0;
  int code = pst_engine_checkpoint_open(path, &g, err);
  if (code) return code;
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(g); i++)
    if (__builtin_add_overflow(n_params, (int64_t)pst_engine_gguf_tensor_at(g, i)->n_elements, &n_params))
      n_params = INT64_MAX;
  pst_json_writer w = pst_json_writer_on(out, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "path", path);
  pst_json_member_int(&w, "file_bytes", (int64_t)pst_engine_gguf_bytes(g));
  pst_json_member_int(&w, "gguf_version", pst_engine_gguf_version(g));
  pst_json_member_int(&w, "alignment", pst_engine_gguf_alignment(g));
  put_optional_str(&w, "architecture", g, "general.architecture");
  put_optional_str(&w, "name", g, "general.name");
  pst_json_member_int(&w, "n_params", n_params);
  pst_json_member_int(&w, "n_tensors", (int64_t)pst_engine_gguf_n_tensors(g));
  code = put_run(&w, path, n_ctx, err);
  pst_json_key(&w, "types");
  put_types(&w, g);
  pst_json_key(&w, "tokenizer");
  if (!code && (code = put_tokenizer(&w, g))) pst_error_set(err, code, path, "no memory for the tokenizer");
  pst_json_key(&w, "template");
  if (!code && (code = put_template(&w, g))) pst_error_set(err, code, path, "no memory for the template");
  pst_json_key(&w, "metadata");
  put_metadata(&w, g);
  pst_json_key(&w, "tensors");
  put_tensors(&w, g);
  pst_json_end_object(&w);
  pst_engine_gguf_close(g);
  if (!code && pst_buf_status(out)) code = pst_error_set(err, PST_E_NOMEM, path, "no memory");
  if (code && !out->failed && out->data) out->data[out->n = before] = 0;
  return code;
}

/* ---- every weight ---- */

typedef struct scan {
  const pst_engine_gguf_tensor *t;
  uint64_t n_rows;
  size_t row_bytes;
  float *floats; /* [threads][row] */
  atomic_ullong next;
  atomic_ullong first_bad; /* row; UINT64_MAX: none */
} scan;

static bool row_is_finite(const scan *s, uint64_t r, float *row) {
  size_t n = (size_t)s->t->dims[0];
  if (pst_kernels_dequantize_row(s->t->type, s->t->data + r * s->row_bytes, n, row)) return true;
  for (size_t i = 0; i < n; i++)
    if (!isfinite(row[i])) return false;
  return true;
}

static void scan_rows(void *arg, pst_engine_team *team, int index) {
  scan *s = arg;
  (void)team;
  float *row = s->floats + (size_t)index * (size_t)s->t->dims[0];
  for (;;) {
    uint64_t begin = atomic_fetch_add(&s->next, CHECK_ROWS);
    if (begin >= s->n_rows) return;
    for (uint64_t r = begin; r < PST_MIN(begin + CHECK_ROWS, s->n_rows); r++) {
      if (row_is_finite(s, r, row)) continue;
      unsigned long long first = atomic_load(&s->first_bad);
      while (r < first && !atomic_compare_exchange_weak(&s->first_bad, &first, r)) {}
    }
  }
}

static int check_tensor(const char *path, const pst_engine_gguf_tensor *t, int n_threads, pst_error *err) {
  scan s = {.t = t, .n_rows = t->n_elements / t->dims[0], .row_bytes = pst_kernels_row_bytes(t->type, t->dims[0])};
  float one[1];
  if (pst_kernels_dequantize_row(t->type, t->data, 0, one)) return 0; /* no weights: indices and the like */
  atomic_init(&s.first_bad, UINT64_MAX);
  s.floats = pst_malloc((size_t)n_threads * (size_t)t->dims[0] * sizeof *s.floats);
  if (!s.floats) return pst_error_set(err, PST_E_NOMEM, path, "no memory to read the weights");
  pst_engine_pool_run(n_threads, scan_rows, &s);
  pst_free(s.floats);
  unsigned long long bad = atomic_load(&s.first_bad);
  if (bad == UINT64_MAX) return 0;
  return pst_error_set(
      err, PST_E_CORRUPT, path,
      "tensor '%.*s' holds a value that is not finite, in row %llu: the file is damaged; take it again",
      (int)PST_MIN(t->name.n, (size_t)120), t->name.data, bad);
}

int pst_engine_check_weights(const char *path, pst_progress *progress, pst_error *err) {
  pst_engine_gguf *g = NULL;
  int code = pst_engine_checkpoint_open(path, &g, err), n_threads = PST_MIN(pst_cpu_count(), PST_ENGINE_MAX_THREADS);
  if (code) return code;
  int64_t done = 0;
  if (progress) progress->total = (int64_t)pst_engine_gguf_bytes(g);
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(g) && !code; i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(g, i);
    code = check_tensor(path, t, n_threads, err);
    done += (int64_t)t->bytes;
    if (progress) pst_progress_update(progress, done);
  }
  pst_engine_gguf_close(g);
  return code;
}
