/* GGUF reader and writer: round trips, every kind of damage, every truncation, every bit of header, metadata and tensor table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/gguf.h"
#include "support/temp.h"
#include "support/tiny_model.h"
#include "support/vocab.h"

/* ---- files by hand ------------------------------------------------------------------------------------------------ */

static void put_u32(pst_buf *b, uint32_t v) { pst_buf_append(b, &v, sizeof v); }
static void put_u64(pst_buf *b, uint64_t v) { pst_buf_append(b, &v, sizeof v); }
static void put_str(pst_buf *b, const char *s) {
  put_u64(b, strlen(s));
  pst_buf_puts(b, s);
}

static void put_header(pst_buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_values) {
  pst_buf_puts(b, "GGUF");
  put_u32(b, version);
  put_u64(b, n_tensors);
  put_u64(b, n_values);
}

static void put_key_u32(pst_buf *b, const char *key, uint32_t value) {
  put_str(b, key);
  put_u32(b, PST_ENGINE_GGUF_U32);
  put_u32(b, value);
}

static void put_tensor(pst_buf *b, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
                       uint64_t offset) {
  put_str(b, name);
  put_u32(b, n_dims);
  for (uint32_t d = 0; d < n_dims; d++) put_u64(b, dims[d]);
  put_u32(b, type);
  put_u64(b, offset);
}

static void pad(pst_buf *b, size_t alignment) {
  while (b->n % alignment) pst_buf_putc(b, 0);
}

static void zeros(pst_buf *b, size_t n) {
  while (n--) pst_buf_putc(b, 0);
}

/* Opens what the buffer holds, from a block of exactly that size so that a sanitizer sees every step too far. */
static int open_bytes(const pst_buf *b, size_t n, pst_engine_gguf **ret_gguf, uint8_t **ret_data, pst_error *err) {
  *ret_data = pst_malloc(n);
  assert_non_null(*ret_data);
  if (n) memcpy(*ret_data, b->data, n);
  int r = pst_engine_gguf_open_memory(*ret_data, n, "made", ret_gguf, err);
  if (r < 0) {
    pst_free(*ret_data);
    *ret_data = NULL;
  }
  return r;
}

/* The file must be refused with the code and a message that holds `text`. */
static void refuse(pst_buf *b, int code, const char *text) {
  pst_engine_gguf *g = NULL;
  uint8_t *data;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_buf_status(b), 0);
  int r = open_bytes(b, b->n, &g, &data, &err);
  if (r != code || !strstr(err.message, text)) fail_msg("got %d '%s', expected %d '%s'", r, err.message, code, text);
  assert_null(g);
  assert_string_equal(err.place, "made");
  pst_buf_done(b);
}

/* Looks at everything an open file offers. */
static uint64_t visit(const pst_engine_gguf *g) {
  uint64_t sum = 0;
  for (size_t i = 0; i < pst_engine_gguf_n_values(g); i++) {
    const pst_engine_gguf_value *v = pst_engine_gguf_value_at(g, i);
    for (uint64_t k = 0; k < v->n && k < 100000; k++) {
      pst_str s = pst_engine_gguf_value_str(v, k);
      for (size_t c = 0; c < s.n; c++) sum += (unsigned char)s.data[c];
      double d = pst_engine_gguf_value_f64(v, k);
      sum += (uint64_t)pst_engine_gguf_value_i64(v, k) + pst_engine_gguf_value_bool(v, k) + (d > 0);
    }
    for (size_t c = 0; c < v->raw_bytes; c++) sum += v->raw[c];
  }
  for (size_t i = 0; i < pst_engine_gguf_n_tensors(g); i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(g, i);
    assert_int_equal(t->offset % 8, 0);
    for (size_t c = 0; c < t->bytes; c++) sum += t->data[c];
  }
  return sum;
}

/* ---- a file with one of everything -------------------------------------------------------------------------------- */

static const uint64_t matrix_dims[] = {64, 3}, vector_dims[] = {5};

static void fill_values(pst_engine_gguf_writer *w) {
  const pst_str strings[] = {PST_STR("alpha"), PST_STR(""), PST_STR("\xff\x00\xfe"), PST_STR("delta")};
  const int16_t shorts[] = {-3, 0, 300};
  const double doubles[] = {0.5, -1e300};
  const uint8_t bools[] = {1, 0, 1};
  pst_engine_gguf_writer_put_str(w, "general.architecture", PST_STR("none"));
  pst_engine_gguf_writer_put_u32(w, "test.u32", 7);
  pst_engine_gguf_writer_put_u64(w, "test.u64", UINT64_MAX);
  pst_engine_gguf_writer_put_i32(w, "test.i32", -5);
  pst_engine_gguf_writer_put_f32(w, "test.f32", 1.5f);
  pst_engine_gguf_writer_put_bool(w, "test.bool", true);
  pst_engine_gguf_writer_put_strs(w, "test.strings", strings, PST_ARRAY_LEN(strings));
  pst_engine_gguf_writer_put_array(w, "test.shorts", PST_ENGINE_GGUF_I16, shorts, PST_ARRAY_LEN(shorts));
  pst_engine_gguf_writer_put_array(w, "test.doubles", PST_ENGINE_GGUF_F64, doubles, PST_ARRAY_LEN(doubles));
  pst_engine_gguf_writer_put_array(w, "test.bools", PST_ENGINE_GGUF_BOOL, bools, PST_ARRAY_LEN(bools));
  pst_engine_gguf_writer_put_array(w, "test.nothing", PST_ENGINE_GGUF_U8, NULL, 0);
}

static void fill_all(pst_engine_gguf_writer *w) {
  uint8_t matrix[2 * 3 * 34];
  float vector[5] = {1, 2, 3, 4, 5};
  fill_values(w);
  for (size_t i = 0; i < sizeof matrix; i++) matrix[i] = (uint8_t)i;
  pst_engine_gguf_writer_add_tensor(w, PST_STR("matrix"), PST_TYPE_Q8_0, 2, matrix_dims);
  pst_engine_gguf_writer_add_tensor(w, PST_STR("vector"), PST_TYPE_F32, 1, vector_dims);
  assert_int_equal(pst_engine_gguf_writer_write(w, matrix, 100, NULL), 0);
  assert_int_equal(pst_engine_gguf_writer_write(w, matrix + 100, sizeof matrix - 100, NULL), 0);
  assert_int_equal(pst_engine_gguf_writer_write(w, vector, sizeof vector, NULL), 0);
}

static void check_all(const pst_engine_gguf *g) {
  uint64_t u = 0;
  int64_t i = 0;
  double f = 0;
  bool b = false;
  pst_str s = PST_STR("");
  const pst_engine_gguf_value *v;
  assert_int_equal(pst_engine_gguf_get_u64(g, "test.u64", &u, NULL), 0);
  assert_true(u == UINT64_MAX);
  assert_int_equal(pst_engine_gguf_get_i64(g, "test.i32", &i, NULL), 0);
  assert_int_equal(i, -5);
  assert_int_equal(pst_engine_gguf_get_f64(g, "test.f32", &f, NULL), 0);
  assert_true(f == 1.5);
  assert_int_equal(pst_engine_gguf_get_f64(g, "test.u32", &f, NULL), 0);
  assert_true(f == 7);
  assert_int_equal(pst_engine_gguf_get_bool(g, "test.bool", &b, NULL), 0);
  assert_true(b);
  assert_int_equal(pst_engine_gguf_get_str(g, "general.architecture", &s, NULL), 0);
  assert_true(pst_str_is(s, "none"));
  assert_int_equal(pst_engine_gguf_get_array(g, "test.strings", PST_ENGINE_GGUF_STRINGS, &v, NULL), 0);
  assert_int_equal(v->n, 4);
  assert_true(pst_str_equal(pst_engine_gguf_value_str(v, 2), PST_STR("\xff\x00\xfe")));
  assert_true(pst_str_is(pst_engine_gguf_value_str(v, 3), "delta"));
  assert_int_equal(pst_engine_gguf_value_str(v, 4).n, 0);
  assert_int_equal(pst_engine_gguf_get_array(g, "test.shorts", PST_ENGINE_GGUF_INTEGERS, &v, NULL), 0);
  assert_int_equal(pst_engine_gguf_value_i64(v, 0), -3);
  assert_int_equal(pst_engine_gguf_value_i64(v, 2), 300);
  assert_int_equal(pst_engine_gguf_get_array(g, "test.doubles", PST_ENGINE_GGUF_NUMBERS, &v, NULL), 0);
  assert_true(pst_engine_gguf_value_f64(v, 1) == -1e300);
  assert_int_equal(pst_engine_gguf_get_array(g, "test.bools", PST_ENGINE_GGUF_BOOLS, &v, NULL), 0);
  assert_true(pst_engine_gguf_value_bool(v, 2) && !pst_engine_gguf_value_bool(v, 1));
  const pst_engine_gguf_tensor *t = pst_engine_gguf_find_tensor(g, "matrix");
  assert_non_null(t);
  assert_int_equal(t->type, PST_TYPE_Q8_0);
  assert_int_equal(t->n_dims, 2);
  assert_int_equal(t->dims[1], 3);
  assert_int_equal(t->dims[2], 1);
  assert_int_equal(t->bytes, 204);
  assert_int_equal(t->data[203], 203);
  t = pst_engine_gguf_find_tensor(g, "vector");
  assert_non_null(t);
  assert_int_equal((uintptr_t)t->offset % pst_engine_gguf_alignment(g), 0);
  float last;
  memcpy(&last, t->data + 16, sizeof last);
  assert_true(last == 5);
  assert_null(pst_engine_gguf_find_tensor(g, "tensor"));
}

static void test_what_is_written_is_read(void **state) {
  (void)state;
  test_gguf file = test_gguf_make(fill_all);
  pst_engine_gguf *g = NULL;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_engine_gguf_open(file.path, &g, &err), 0);
  assert_int_equal(pst_engine_gguf_version(g), 3);
  assert_string_equal(pst_engine_gguf_path(g), file.path);
  check_all(g);
  visit(g);
  pst_engine_gguf_close(g);
  test_gguf_remove(&file);
}

static void test_copy_with_overrides(void **state) {
  (void)state;
  test_gguf file = test_gguf_make(fill_all);
  const char *copy = test_temp_path(file.dir, "copy.gguf");
  pst_engine_gguf *g = NULL, *c = NULL;
  pst_engine_gguf_writer *w = NULL;
  pst_error err = PST_ERROR_INIT;
  uint64_t u = 0;
  assert_int_equal(pst_engine_gguf_open(file.path, &g, &err), 0);
  assert_int_equal(pst_engine_gguf_writer_create(copy, 64, &w, &err), 0);
  pst_engine_gguf_writer_copy_values(w, g);
  pst_engine_gguf_writer_put_u32(w, "test.u32", 8);
  pst_engine_gguf_writer_put_u32(w, "test.new", 9);
  test_gguf_copy_tensors(w, g);
  assert_false(pst_file_exists(copy)); /* nothing under its name before finish */
  assert_int_equal(pst_engine_gguf_writer_finish(w, &err), 0);
  pst_engine_gguf_writer_free(w);
  assert_int_equal(pst_engine_gguf_open(copy, &c, &err), 0);
  assert_int_equal(pst_engine_gguf_get_u64(c, "test.u32", &u, &err), 0);
  assert_int_equal(u, 8);
  assert_int_equal(pst_engine_gguf_get_u64(c, "test.new", &u, &err), 0);
  assert_int_equal(u, 9);
  assert_int_equal(pst_engine_gguf_alignment(c), 64);
  const pst_engine_gguf_value *before = pst_engine_gguf_find(g, "test.strings"),
                              *after = pst_engine_gguf_find(c, "test.strings");
  assert_int_equal(before->raw_bytes, after->raw_bytes);
  assert_memory_equal(before->raw, after->raw, before->raw_bytes);
  assert_true(pst_str_is(pst_engine_gguf_value_at(c, 1)->key, "test.u32")); /* an override keeps its place */
  pst_engine_gguf_close(g);
  pst_engine_gguf_close(c);
  test_gguf_remove(&file);
}

static void test_getters_name_the_key(void **state) {
  (void)state;
  test_gguf file = test_gguf_make(fill_all);
  pst_engine_gguf *g = NULL;
  pst_error err = PST_ERROR_INIT;
  uint64_t u = 99;
  int64_t i = 99;
  pst_str s = PST_STR("same");
  const pst_engine_gguf_value *v = NULL;
  assert_int_equal(pst_engine_gguf_open(file.path, &g, &err), 0);
  assert_int_equal(pst_engine_gguf_get_u64(g, "test.none", &u, &err), PST_E_NOT_FOUND);
  assert_non_null(strstr(err.message, "'test.none' is missing"));
  assert_int_equal(pst_engine_gguf_opt_u64(g, "test.none", &u, &err), 0);
  assert_int_equal(pst_engine_gguf_get_u64(g, "test.i32", &u, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "'test.i32' is -5"));
  assert_int_equal(pst_engine_gguf_opt_u64(g, "test.bool", &u, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "'test.bool' is of kind bool, expected an integer"));
  assert_int_equal(u, 99);
  assert_int_equal(pst_engine_gguf_get_i64(g, "test.u64", &i, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "too large"));
  assert_int_equal(i, 99);
  assert_int_equal(pst_engine_gguf_get_str(g, "test.strings", &s, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "'test.strings' is an array of string, expected a string"));
  assert_true(pst_str_is(s, "same"));
  assert_int_equal(pst_engine_gguf_get_array(g, "test.shorts", PST_ENGINE_GGUF_STRINGS, &v, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_gguf_get_array(g, "test.u32", PST_ENGINE_GGUF_INTEGERS, &v, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_gguf_get_array(g, "test.none", PST_ENGINE_GGUF_INTEGERS, &v, &err), PST_E_NOT_FOUND);
  assert_null(v);
  assert_string_equal(err.place, file.path);
  pst_engine_gguf_close(g);
  test_gguf_remove(&file);
}

/* ---- damage ------------------------------------------------------------------------------------------------------- */

static void test_bad_headers(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  refuse(&b, PST_E_BAD_INPUT, "not a GGUF file");
  pst_buf_puts(&b, "GGML....");
  refuse(&b, PST_E_BAD_INPUT, "not a GGUF file");
  pst_buf_puts(&b, "GGUF");
  refuse(&b, PST_E_BAD_INPUT, "the file ends at byte 4, inside the header");
  put_header(&b, 1, 0, 0);
  refuse(&b, PST_E_UNSUPPORTED, "GGUF version 1");
  put_header(&b, 4, 0, 0);
  refuse(&b, PST_E_UNSUPPORTED, "GGUF version 4");
  put_header(&b, 0x03000000, 0, 0);
  refuse(&b, PST_E_UNSUPPORTED, "big-endian");
  put_header(&b, 3, 0, UINT64_MAX);
  refuse(&b, PST_E_LIMIT, "metadata entries");
  put_header(&b, 3, UINT64_MAX, 0);
  refuse(&b, PST_E_LIMIT, "tensors");
  put_header(&b, 3, 1000, 0);
  refuse(&b, PST_E_BAD_INPUT, "truncated");
}

static void test_bad_metadata(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  put_header(&b, 3, 0, 1);
  put_u64(&b, UINT64_MAX);
  refuse(&b, PST_E_BAD_INPUT, "past the end of the file");
  put_header(&b, 3, 0, 1);
  put_str(&b, "");
  refuse(&b, PST_E_BAD_INPUT, "0 bytes long");
  put_header(&b, 3, 0, 1);
  put_str(&b, "a\nb");
  refuse(&b, PST_E_BAD_INPUT, "not plain UTF-8");
  put_header(&b, 3, 0, 1);
  put_str(&b, "key");
  put_u32(&b, 13);
  refuse(&b, PST_E_BAD_INPUT, "'key' has the value kind 13");
  put_header(&b, 3, 0, 1);
  put_str(&b, "flag");
  put_u32(&b, PST_ENGINE_GGUF_BOOL);
  pst_buf_putc(&b, 2);
  refuse(&b, PST_E_BAD_INPUT, "'flag' is a bool with the value 2");
  put_header(&b, 3, 0, 2);
  put_key_u32(&b, "twice", 1);
  put_key_u32(&b, "twice", 1);
  refuse(&b, PST_E_BAD_INPUT, "'twice' occurs twice");
  put_header(&b, 3, 0, 1);
  put_str(&b, "many");
  put_u32(&b, PST_ENGINE_GGUF_ARRAY);
  put_u32(&b, PST_ENGINE_GGUF_U64);
  put_u64(&b, UINT64_MAX / 8 + 2); /* times 8 this is a small number again */
  zeros(&b, 64);
  refuse(&b, PST_E_BAD_INPUT, "past the end of the file");
  put_header(&b, 3, 0, 1);
  put_str(&b, "words");
  put_u32(&b, PST_ENGINE_GGUF_ARRAY);
  put_u32(&b, PST_ENGINE_GGUF_STR);
  put_u64(&b, UINT64_MAX);
  zeros(&b, 64);
  refuse(&b, PST_E_BAD_INPUT, "truncated");
  put_header(&b, 3, 0, 1);
  put_str(&b, "deep");
  put_u32(&b, PST_ENGINE_GGUF_ARRAY);
  for (int i = 0; i < 40; i++) {
    put_u32(&b, PST_ENGINE_GGUF_ARRAY);
    put_u64(&b, 1);
  }
  refuse(&b, PST_E_LIMIT, "'deep' nests arrays");
}

static void test_nested_arrays_are_carried_along(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  pst_engine_gguf *g = NULL;
  uint8_t *data;
  pst_error err = PST_ERROR_INIT;
  const pst_engine_gguf_value *v = NULL;
  put_header(&b, 3, 0, 2);
  put_str(&b, "nested");
  put_u32(&b, PST_ENGINE_GGUF_ARRAY);
  put_u32(&b, PST_ENGINE_GGUF_ARRAY);
  put_u64(&b, 2);
  for (uint32_t i = 0; i < 2; i++) {
    put_u32(&b, PST_ENGINE_GGUF_STR);
    put_u64(&b, 1);
    put_str(&b, "x");
  }
  put_key_u32(&b, "after", 5);
  assert_int_equal(open_bytes(&b, b.n, &g, &data, &err), 0);
  assert_int_equal(pst_engine_gguf_get_array(g, "nested", PST_ENGINE_GGUF_STRINGS, &v, &err), PST_E_BAD_INPUT);
  v = pst_engine_gguf_find(g, "nested");
  assert_int_equal(v->raw_bytes, 12 + 2 * (12 + 9));
  assert_int_equal(pst_engine_gguf_value_str(v, 0).n, 0);
  assert_non_null(pst_engine_gguf_find(g, "after"));
  pst_engine_gguf_close(g);
  pst_free(data);
  pst_buf_done(&b);
}

static void test_bad_alignment(void **state) {
  (void)state;
  static const uint32_t bad[] = {0, 1, 4, 12, 48, 1u << 17, UINT32_MAX};
  for (size_t i = 0; i < PST_ARRAY_LEN(bad); i++) {
    pst_buf b = PST_BUF_INIT;
    put_header(&b, 3, 0, 1);
    put_key_u32(&b, "general.alignment", bad[i]);
    refuse(&b, PST_E_BAD_INPUT, "general.alignment");
  }
}

/* One tensor with the given fields and n_data bytes behind. */
static void refuse_tensor(uint32_t n_dims, const uint64_t *dims, uint32_t type, uint64_t offset, size_t n_data,
                          int code, const char *text) {
  pst_buf b = PST_BUF_INIT;
  put_header(&b, 3, 1, 0);
  put_tensor(&b, "blk.0.w", n_dims, dims, type, offset);
  pad(&b, 32);
  zeros(&b, n_data);
  refuse(&b, code, text);
}

static void test_bad_tensors(void **state) {
  (void)state;
  const uint64_t row[] = {64}, odd[] = {33}, zero[] = {0, 4}, big[] = {1ull << 32, 1ull << 31}, large[] = {1ull << 40},
                 five[] = {1, 1, 1, 1, 1};
  refuse_tensor(0, row, PST_TYPE_F32, 0, 256, PST_E_BAD_INPUT, "'blk.0.w' has 0 dimensions");
  refuse_tensor(5, five, PST_TYPE_F32, 0, 256, PST_E_BAD_INPUT, "'blk.0.w' has 5 dimensions");
  refuse_tensor(2, zero, PST_TYPE_F32, 0, 256, PST_E_BAD_INPUT, "dimension of 0");
  refuse_tensor(2, big, PST_TYPE_F32, 0, 256, PST_E_BAD_INPUT, "overflow");
  refuse_tensor(1, large, PST_TYPE_F32, 0, 256, PST_E_BAD_INPUT, "larger than the whole file");
  refuse_tensor(1, row, 4, 0, 256, PST_E_UNSUPPORTED, "'blk.0.w' has the element type 4");
  refuse_tensor(1, row, 1000, 0, 256, PST_E_UNSUPPORTED, "element type 1000");
  refuse_tensor(1, odd, PST_TYPE_Q8_0, 0, 256, PST_E_BAD_INPUT, "not a multiple of Q8_0's block of 32");
  refuse_tensor(1, row, PST_TYPE_F32, 8, 512, PST_E_BAD_INPUT, "not a multiple of the alignment 32");
  refuse_tensor(1, row, PST_TYPE_F32, 0, 255, PST_E_BAD_INPUT, "past the end of the file");
  refuse_tensor(1, row, PST_TYPE_F32, 1ull << 63, 256, PST_E_BAD_INPUT, "past the end of the file");
  refuse_tensor(1, row, PST_TYPE_F32, UINT64_MAX - 31, 256, PST_E_BAD_INPUT, "past the end of the file");
  refuse_tensor(1, row, PST_TYPE_F32, 0, 256 + 32, PST_E_BAD_INPUT, "32 bytes stand behind the last tensor");
}

static void two_tensors(pst_buf *b, const char *second, uint64_t offset) {
  const uint64_t row[] = {64};
  put_header(b, 2, 2, 0);
  put_tensor(b, "first", 1, row, PST_TYPE_F32, 0);
  put_tensor(b, second, 1, row, PST_TYPE_F32, offset);
  pad(b, 32);
  zeros(b, (size_t)offset + 256);
}

static void test_tensors_overlap_or_repeat(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  pst_engine_gguf *g = NULL;
  uint8_t *data;
  two_tensors(&b, "second", 224);
  refuse(&b, PST_E_BAD_INPUT, "tensors 'first' and 'second' overlap");
  two_tensors(&b, "second", 0);
  refuse(&b, PST_E_BAD_INPUT, "overlap");
  two_tensors(&b, "first", 256);
  refuse(&b, PST_E_BAD_INPUT, "'first' occurs twice");
  two_tensors(&b, "second", 256);
  assert_int_equal(open_bytes(&b, b.n, &g, &data, NULL), 0);
  assert_int_equal(pst_engine_gguf_version(g), 2);
  pst_engine_gguf_close(g);
  pst_free(data);
  pst_buf_done(&b);
}

/* The whole file of fill_all, and where its tensor data begins. */
static void load_whole(pst_buf *b, size_t *ret_data_start) {
  test_gguf file = test_gguf_make(fill_all);
  pst_engine_gguf *g = NULL;
  assert_int_equal(pst_engine_gguf_open(file.path, &g, NULL), 0);
  pst_map map;
  assert_int_equal(pst_map_open(file.path, &map, NULL), 0);
  assert_int_equal(pst_engine_gguf_bytes(g), map.n);
  pst_buf_append(b, map.data, map.n);
  pst_map_close(&map);
  *ret_data_start = (size_t)pst_engine_gguf_find_tensor(g, "matrix")->offset;
  pst_engine_gguf_close(g);
  test_gguf_remove(&file);
}

static void test_every_truncation(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  size_t data_start;
  load_whole(&b, &data_start);
  size_t padding = 12; /* vector ends 12 bytes before the file's end, which is padding */
  for (size_t n = 0; n + padding < b.n; n++) {
    pst_engine_gguf *g = NULL;
    uint8_t *data;
    pst_error err = PST_ERROR_INIT;
    assert_int_not_equal(open_bytes(&b, n, &g, &data, &err), 0);
    assert_true(err.message[0] != 0);
  }
  pst_buf_done(&b);
}

static void test_every_flipped_bit(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  size_t data_start, n_valid = 0, n_refused = 0;
  load_whole(&b, &data_start);
  for (size_t bit = 0; bit < data_start * 8; bit++) {
    pst_engine_gguf *g = NULL;
    uint8_t *data;
    pst_error err = PST_ERROR_INIT;
    b.data[bit / 8] = (char)(b.data[bit / 8] ^ (1 << bit % 8));
    if (open_bytes(&b, b.n, &g, &data, &err) == 0) {
      n_valid++;
      visit(g);
      pst_engine_gguf_close(g);
      pst_free(data);
    } else {
      n_refused++;
      assert_true(err.code < 0 && err.message[0] != 0);
    }
    b.data[bit / 8] = (char)(b.data[bit / 8] ^ (1 << bit % 8));
  }
  assert_true(n_valid > 0 && n_refused > 0);
  pst_buf_done(&b);
}

/* ---- failures of the machine --------------------------------------------------------------------------------------- */

static void test_reader_without_memory(void **state) {
  (void)state;
  pst_buf b = PST_BUF_INIT;
  size_t data_start;
  int r = -1, n_failed = 0;
  load_whole(&b, &data_start);
  for (int64_t n = 0; r < 0; n++) {
    pst_engine_gguf *g = NULL;
    pst_error err = PST_ERROR_INIT;
    pst_memory_fail_after(n);
    r = pst_engine_gguf_open_memory((const uint8_t *)b.data, b.n, "made", &g, &err);
    pst_memory_fail_after(-1);
    if (r < 0) {
      assert_int_equal(r, PST_E_NOMEM);
      n_failed++;
    }
    pst_engine_gguf_close(g);
  }
  assert_true(n_failed > 5);
  pst_buf_done(&b);
}

static int count_files(const char *dir) {
  int n = 0;
  DIR *d = opendir(dir);
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

/* Writes the whole of fill_all; the first error. */
static int write_once(const char *path, pst_error *err) {
  pst_engine_gguf_writer *w = NULL;
  float vector[5] = {1, 2, 3, 4, 5};
  int r = pst_engine_gguf_writer_create(path, 32, &w, err);
  if (r < 0) return r;
  fill_values(w);
  pst_engine_gguf_writer_add_tensor(w, PST_STR("vector"), PST_TYPE_F32, 1, vector_dims);
  r = pst_engine_gguf_writer_write(w, vector, sizeof vector, err);
  if (r == 0) r = pst_engine_gguf_writer_finish(w, err);
  pst_engine_gguf_writer_free(w);
  return r;
}

static void test_writer_without_memory(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  const char *path = test_temp_path(dir, "out.gguf");
  int r = -1, n_failed = 0;
  for (int64_t n = 0; r < 0; n++) {
    pst_error err = PST_ERROR_INIT;
    pst_memory_fail_after(n);
    r = write_once(path, &err);
    pst_memory_fail_after(-1);
    if (r == 0) break;
    n_failed++;
    assert_int_equal(r, PST_E_NOMEM);
    assert_int_equal(count_files(dir), 0);
  }
  assert_true(n_failed > 5);
  assert_int_equal(count_files(dir), 1);
  test_temp_remove(dir);
}

static void test_writer_on_a_full_disk(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  const char *path = test_temp_path(dir, "out.gguf");
  pst_error err = PST_ERROR_INIT;
  struct rlimit old, small = {100, 100};
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
  small.rlim_max = old.rlim_max;
  void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
  int r = write_once(path, &err);
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, handler);
  assert_true(r < 0);
  assert_string_equal(err.place, path);
  assert_int_equal(count_files(dir), 0);
  test_temp_remove(dir);
}

static void test_writer_refuses_wrong_amounts(void **state) {
  (void)state;
  char *dir = test_temp_dir();
  const char *path = test_temp_path(dir, "out.gguf");
  pst_engine_gguf_writer *w = NULL;
  pst_error err = PST_ERROR_INIT;
  float vector[6] = {0};
  const uint64_t odd[] = {33};
  assert_int_equal(pst_engine_gguf_writer_create(path, 12, &w, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_engine_gguf_writer_create(path, 32, &w, &err), 0);
  pst_engine_gguf_writer_add_tensor(w, PST_STR("vector"), PST_TYPE_F32, 1, vector_dims);
  assert_int_equal(pst_engine_gguf_writer_write(w, vector, sizeof vector, &err), PST_E_INTERNAL);
  pst_engine_gguf_writer_free(w);
  assert_int_equal(pst_engine_gguf_writer_create(path, 32, &w, &err), 0);
  pst_engine_gguf_writer_add_tensor(w, PST_STR("vector"), PST_TYPE_F32, 1, vector_dims);
  assert_int_equal(pst_engine_gguf_writer_write(w, vector, 4, &err), 0);
  assert_int_equal(pst_engine_gguf_writer_finish(w, &err), PST_E_INTERNAL);
  assert_non_null(strstr(err.message, "'vector' is incomplete"));
  pst_engine_gguf_writer_free(w);
  assert_int_equal(pst_engine_gguf_writer_create(path, 32, &w, &err), 0);
  pst_engine_gguf_writer_add_tensor(w, PST_STR("odd"), PST_TYPE_Q4_0, 1, odd);
  assert_int_equal(pst_engine_gguf_writer_finish(w, &err), PST_E_BAD_INPUT);
  assert_non_null(strstr(err.message, "'odd'"));
  pst_engine_gguf_writer_free(w);
  assert_int_equal(count_files(dir), 0);
  test_temp_remove(dir);
}

static void test_real_models(void **state) {
  (void)state;
  static const char *const variables[] = {"PENSTOCK_TEST_SMOLLM2", "PENSTOCK_TEST_GEMMA3"};
  int n_seen = 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(variables); i++) {
    const char *path = getenv(variables[i]);
    pst_engine_gguf *g = NULL;
    pst_error err = PST_ERROR_INIT;
    if (!path || !pst_file_exists(path)) continue;
    if (pst_engine_gguf_open(path, &g, &err) < 0) fail_msg("%s", err.message);
    assert_non_null(pst_engine_gguf_find_tensor(g, "token_embd.weight"));
    pst_engine_gguf_close(g);
    n_seen++;
  }
  if (!n_seen) {
    printf("PENSTOCK_TEST_SMOLLM2 and PENSTOCK_TEST_GEMMA3 name no model files\n");
    skip();
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_what_is_written_is_read),
      cmocka_unit_test(test_copy_with_overrides),
      cmocka_unit_test(test_getters_name_the_key),
      cmocka_unit_test(test_bad_headers),
      cmocka_unit_test(test_bad_metadata),
      cmocka_unit_test(test_nested_arrays_are_carried_along),
      cmocka_unit_test(test_bad_alignment),
      cmocka_unit_test(test_bad_tensors),
      cmocka_unit_test(test_tensors_overlap_or_repeat),
      cmocka_unit_test(test_every_truncation),
      cmocka_unit_test(test_every_flipped_bit),
      cmocka_unit_test(test_reader_without_memory),
      cmocka_unit_test(test_writer_without_memory),
      cmocka_unit_test(test_writer_on_a_full_disk),
      cmocka_unit_test(test_writer_refuses_wrong_amounts),
      cmocka_unit_test(test_real_models),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
