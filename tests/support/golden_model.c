#include "support/golden_model.h"

#include <dirent.h>
#include <penstock/kernels.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/gguf.h"
#include "support/tiny_model.h"

static const char folder[] = "tests/golden/architectures";
static const test_golden_change no_change = {0};

typedef struct maker {
  pst_engine_gguf_writer *w;
  const pst_json *golden;
  const test_golden_change *change;
  uint64_t seed;
} maker;

static void string_of(const pst_json *v, char *out, size_t size) {
  pst_str s = pst_json_str(v);
  if (s.n == 0 || s.n >= size) abort();
  snprintf(out, size, "%.*s", (int)s.n, s.data);
}

/* A number that is another one: far enough to be noticed, near enough to be valid. */
static double other_number(const char *key, double x) {
  if (strstr(key, "epsilon")) return 1.0;
  return strstr(key, "count") || strstr(key, "window") ? x - 1 : x / 16;
}

static void put_number(maker *m, const char *key, const char *kind, double x) {
  if (!strcmp(kind, "u32"))
    pst_engine_gguf_writer_put_u32(m->w, key, (uint32_t)x);
  else if (!strcmp(kind, "i32"))
    pst_engine_gguf_writer_put_i32(m->w, key, (int32_t)x);
  else if (!strcmp(kind, "f32"))
    pst_engine_gguf_writer_put_f32(m->w, key, (float)x);
  else
    abort();
}

static void put_numbers(maker *m, const char *key, const char *kind, const pst_json *values) {
  int32_t ints[64];
  uint8_t bools[64];
  size_t n = pst_json_size(values);
  if (n > PST_ARRAY_LEN(ints)) abort();
  for (size_t i = 0; i < n; i++) {
    ints[i] = (int32_t)pst_json_int(pst_json_at(values, i), 0);
    bools[i] = pst_json_bool(pst_json_at(values, i), false);
  }
  if (!strcmp(kind, "i32[]"))
    pst_engine_gguf_writer_put_array(m->w, key, PST_ENGINE_GGUF_I32, ints, n);
  else if (!strcmp(kind, "u32[]"))
    pst_engine_gguf_writer_put_array(m->w, key, PST_ENGINE_GGUF_U32, ints, n);
  else if (!strcmp(kind, "bool[]"))
    pst_engine_gguf_writer_put_array(m->w, key, PST_ENGINE_GGUF_BOOL, bools, n);
  else
    abort();
}

static void put_keys(maker *m) {
  const pst_json *keys = pst_json_get(m->golden, "keys");
  for (size_t i = 0; i < pst_json_size(keys); i++) {
    const pst_json *row = pst_json_at(keys, i), *value = pst_json_at(row, 2);
    char key[128], kind[16];
    string_of(pst_json_at(row, 0), key, sizeof key);
    string_of(pst_json_at(row, 1), kind, sizeof kind);
    if (m->change->drop && !strcmp(m->change->drop, key)) continue;
    bool other = m->change->other_key && !strcmp(m->change->other_key, key);
    if (!strcmp(kind, "string"))
      pst_engine_gguf_writer_put_str(m->w, key, pst_json_str(value));
    else if (!strcmp(kind, "bool"))
      pst_engine_gguf_writer_put_bool(m->w, key, pst_json_bool(value, false) != other);
    else if (strstr(kind, "[]"))
      put_numbers(m, key, kind, value);
    else
      put_number(m, key, kind, other ? other_number(key, pst_json_double(value, 0)) : pst_json_double(value, 0));
  }
  if (m->change->extra_key) pst_engine_gguf_writer_put_u32(m->w, m->change->extra_key, 7);
}

typedef struct tensor {
  char name[96];
  uint32_t type;
  uint64_t dims[4];
  uint32_t n_dims;
  const pst_json *values; /* NULL: the hash of the name */
} tensor;

/* False: the tensor is left out. */
static bool tensor_of(const maker *m, const pst_json *row, tensor *ret) {
  char type[16];
  const pst_json *dims = pst_json_at(row, 2);
  *ret = (tensor){.n_dims = (uint32_t)pst_json_size(dims), .values = pst_json_at(row, 3)};
  string_of(pst_json_at(row, 0), ret->name, sizeof ret->name);
  string_of(pst_json_at(row, 1), type, sizeof type);
  for (size_t i = 0; i < 4; i++) ret->dims[i] = i < ret->n_dims ? (uint64_t)pst_json_int(pst_json_at(dims, i), 0) : 1;
  bool is_taps = strstr(ret->name, "conv.conv") || strstr(ret->name, "conv1d"),
       is_bias = strstr(ret->name, ".bias") != NULL;
  bool is_matrix = ret->n_dims > 1 && !is_taps && !is_bias;
  const char *named = m->change->type && is_matrix && !strcmp(type, "F32") ? m->change->type : type;
  const pst_kernels_type_row *info = pst_kernels_type_find(pst_str_from(named));
  if (!info) abort();
  ret->type = info->type;
  return !(m->change->drop && !strcmp(m->change->drop, ret->name));
}

/* MXFP4 has no quantizer: the blocks themselves are the hash, an exponent of 2^-6 to 2^-3 and 32 codes. */
static void write_mxfp4(maker *m, const tensor *t, const char *source) {
  pst_error err = PST_ERROR_INIT;
  uint64_t n = t->dims[0] * t->dims[1] * t->dims[2] / 32 * 17;
  for (uint64_t i = 0; i < n; i++) {
    uint8_t byte = (uint8_t)(test_tiny_bits(source, m->seed, i) >> 56);
    if (i % 17 == 0) byte = (uint8_t)(121 + byte % 4);
    if (pst_engine_gguf_writer_write(m->w, &byte, 1, &err)) abort();
  }
}

float test_golden_mean(const char *name) {
  size_t n = strlen(name);
  bool is_weight = n > 7 && !strcmp(name + n - 7, ".weight");
  if (strstr(name, "scale") || (strstr(name, "norm") && is_weight)) return 1;
  return n > 5 && !strcmp(name + n - 5, "ssm_a") ? -0.5f : 0;
}

static void write_tensor(maker *m, const tensor *t) {
  pst_error err = PST_ERROR_INIT;
  char source[128];
  float x[512];
  uint8_t out[sizeof x];
  bool other = m->change->other_tensor && !strcmp(m->change->other_tensor, t->name);
  snprintf(source, sizeof source, "%s%s", other ? "other." : "", t->name);
  if (t->type == PST_TYPE_MXFP4) {
    write_mxfp4(m, t, source);
    return;
  }
  size_t cols = t->dims[0], rows = t->dims[1] * t->dims[2];
  float mean = test_golden_mean(t->name);
  if (cols > PST_ARRAY_LEN(x)) abort();
  for (size_t k = 0; k < rows; k++) {
    for (size_t i = 0; i < cols; i++)
      x[i] = t->values ? (float)pst_json_double(pst_json_at(t->values, i), 0) * (other ? 0.5f : 1.0f)
                       : mean + 0.25f * test_tiny_element(source, m->seed, k * cols + i);
    if (pst_kernels_quantize_row(t->type, x, cols, NULL, out)) abort();
    if (pst_engine_gguf_writer_write(m->w, out, pst_kernels_row_bytes(t->type, cols), &err)) abort();
  }
}

void test_golden_write(const char *path, const pst_json *golden, const test_golden_change *change) {
  maker m = {.golden = golden, .change = change ? change : &no_change};
  pst_error err = PST_ERROR_INIT;
  const pst_json *tensors = pst_json_get(golden, "tensors");
  size_t n = pst_json_size(tensors);
  tensor t, twin = {0};
  m.seed = (uint64_t)pst_json_int(pst_json_get(golden, "seed"), 0);
  if (n == 0 || pst_engine_gguf_writer_create(path, 32, &m.w, &err)) abort();
  put_keys(&m);
  test_tiny_put_tokenizer(m.w);
  for (size_t i = 0; i < n; i++) {
    if (!tensor_of(&m, pst_json_at(tensors, i), &t)) continue;
    if (m.change->twin && !strcmp(t.name, m.change->twin_of)) {
      twin = t;
      snprintf(twin.name, sizeof twin.name, "%s", m.change->twin);
    }
    pst_engine_gguf_writer_add_tensor(m.w, pst_str_from(t.name), t.type, t.n_dims, t.dims);
  }
  if (m.change->twin)
    pst_engine_gguf_writer_add_tensor(m.w, pst_str_from(twin.name), twin.type, twin.n_dims, twin.dims);
  for (size_t i = 0; i < n; i++)
    if (tensor_of(&m, pst_json_at(tensors, i), &t)) write_tensor(&m, &t);
  if (m.change->twin) write_tensor(&m, &twin);
  if (pst_engine_gguf_writer_finish(m.w, &err)) abort();
  pst_engine_gguf_writer_free(m.w);
}

pst_json_doc *test_golden_read(const char *name) {
  char path[128];
  pst_error err = PST_ERROR_INIT;
  pst_json_doc *doc = NULL;
  snprintf(path, sizeof path, "%s/%s.json", folder, name);
  if (!pst_json_parse_file(path, 1 << 20, &doc, &err)) return doc;
  fprintf(stderr, "%s: %s\n", err.place, err.message);
  abort();
}

void test_golden_model(const char *name, const char *path) {
  pst_json_doc *doc = test_golden_read(name);
  test_golden_write(path, pst_json_root(doc), NULL);
  pst_json_free(doc);
}

static int compare_names(const void *a, const void *b) { return strcmp(a, b); }

int test_golden_names(char ret_names[TEST_GOLDEN_MAX][32]) {
  DIR *dir = opendir(folder);
  int n = 0;
  if (!dir) abort();
  for (const struct dirent *e; (e = readdir(dir));) {
    size_t length = strlen(e->d_name);
    if (length < 6 || length - 5 >= 32 || strcmp(e->d_name + length - 5, ".json") != 0) continue;
    if (n == TEST_GOLDEN_MAX) abort();
    snprintf(ret_names[n++], 32, "%.*s", (int)(length - 5), e->d_name);
  }
  closedir(dir);
  qsort(ret_names, (size_t)n, 32, compare_names);
  return n;
}
