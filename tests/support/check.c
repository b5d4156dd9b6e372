/* Seeded values, guarded memory and matrices for the kernel checks. */
#include "kernels/check.h"

#include <inttypes.h>
#include <math.h>

static pst_random generator;
static bool seeded;

uint64_t check_seed(void) {
  if (!seeded) {
    const char *s = getenv("PENSTOCK_SEED");
    generator = (pst_random){.seed = s ? strtoull(s, NULL, 0) : (uint64_t)pst_clock_ns(), .stream = 0, .counter = 0};
    seeded = true;
    fprintf(stderr, "PENSTOCK_SEED=%" PRIu64 "\n", generator.seed);
  }
  return generator.seed;
}

uint64_t check_u64(void) {
  check_seed();
  return pst_random_next(&generator);
}

size_t check_below(size_t n) { return (size_t)(check_u64() % n); }

float check_float(float low, float high) { return low + (high - low) * (float)((double)(check_u64() >> 11) * 0x1p-53); }

void check_fill(float *x, size_t n) {
  size_t kind = check_below(6);
  for (size_t i = 0; i < n; i++) {
    switch (kind) {
    case 0: x[i] = 1.0f; break;
    case 1: x[i] = check_float(-1e-33f, 1e-33f); break;
    case 2: x[i] = check_below(8) ? 0.0f : check_float(-4, 4); break;
    case 3: x[i] = check_below(50) ? check_float(-1, 1) : check_float(-300, 300); break;
    default: x[i] = check_float(-3, 3); break;
    }
  }
}

typedef struct guard_head {
  void *block;
  size_t bytes;
} guard_head;

void *check_alloc(size_t bytes, size_t shift) {
  uint8_t *block = pst_malloc_aligned(bytes + 4 * CHECK_GUARD + shift, 64);
  assert_non_null(block);
  uint8_t *p = block + 2 * CHECK_GUARD + shift;
  guard_head head = {block, bytes};
  memset(block, 0xa5, bytes + 4 * CHECK_GUARD + shift);
  memcpy(block, &head, sizeof head);
  memcpy(p - CHECK_GUARD - sizeof(void *), &block, sizeof block);
  return p;
}

void check_free(void *pointer) {
  uint8_t *p = pointer, *block;
  guard_head head;
  memcpy(&block, p - CHECK_GUARD - sizeof(void *), sizeof block);
  memcpy(&head, block, sizeof head);
  for (size_t i = 0; i < CHECK_GUARD; i++) {
    assert_int_equal(p[i - CHECK_GUARD], 0xa5);
    assert_int_equal(p[head.bytes + i], 0xa5);
  }
  pst_free(block);
}

/* Byte offsets of the f16 fields of a source block; -1 ends. */
static const int *half_fields(uint32_t type) {
  static const int at0[] = {0, -1}, at02[] = {0, 2, -1}, at80[] = {80, 82, -1}, at108[] = {108, -1},
                   at208[] = {208, -1}, none[] = {-1};
  switch (type) {
  case PST_TYPE_Q4_1:
  case PST_TYPE_Q5_1:
  case PST_TYPE_Q4_K:
  case PST_TYPE_Q5_K: return at02;
  case PST_TYPE_Q2_K: return at80;
  case PST_TYPE_Q3_K: return at108;
  case PST_TYPE_Q6_K: return at208;
  case PST_TYPE_MXFP4: return none;
  default: return at0;
  }
}

static void put_half(uint8_t *p, float f) {
  uint16_t h = pst_kernels_half_from_float(f);
  memcpy(p, &h, 2);
}

uint8_t *check_tensor(uint32_t type, size_t n_rows, size_t n_cols, check_pattern pattern) {
  const pst_kernels_type_row *info = pst_kernels_type_info(type);
  size_t bytes = n_rows * pst_kernels_row_bytes(type, n_cols);
  uint8_t *t = pst_malloc(bytes + 8);
  assert_non_null(t);
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t v = pattern == CHECK_RANDOM ? check_u64() : pattern == CHECK_ALL_ONES ? UINT64_MAX : 0;
    memcpy(t + i, &v, 8);
  }
  if (type == PST_TYPE_Q8_0 && pattern != CHECK_RANDOM) memset(t, pattern == CHECK_ALL_ONES ? 0x7f : 0x80, bytes);
  if (info->block_elements == 1) {
    for (size_t i = 0; i < bytes / info->block_bytes; i++) {
      float f = check_below(9) ? check_float(-2, 2) : 0.0f;
      uint32_t u;
      memcpy(&u, &f, 4);
      if (type == PST_TYPE_F32)
        memcpy(t + 4 * i, &f, 4);
      else if (type == PST_TYPE_F16)
        put_half(t + 2 * i, f);
      else
        memcpy(t + 2 * i, (uint8_t *)&u + 2, 2);
    }
    return t;
  }
  for (size_t b = 0; b < bytes / info->block_bytes; b++) {
    uint8_t *block = t + b * info->block_bytes;
    if (type == PST_TYPE_MXFP4) block[0] = (uint8_t)(110 + check_below(20));
    for (const int *at = half_fields(type); *at >= 0; at++)
      put_half(block + *at, check_below(20) ? check_float(-0.1f, 0.1f) : 1e-7f);
  }
  return t;
}

pst_kernels_matrix check_pack(uint32_t type, const uint8_t *tensor, size_t n_rows, size_t n_cols) {
  pst_kernels_matrix m;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_kernels_matrix_init(type, n_rows, n_cols, &m, &err), 0);
  uint8_t *data = check_alloc(pst_kernels_matrix_bytes(&m), 0);
  size_t cut = check_below(m.n_groups + 1);
  pst_kernels_matrix_pack(&m, tensor + cut * PST_KERNELS_GROUP * pst_kernels_row_bytes(type, n_cols), cut, m.n_groups,
                          data);
  pst_kernels_matrix_pack(&m, tensor, 0, cut, data);
  m.data = data;
  return m;
}

void check_matrix_free(pst_kernels_matrix *m) { check_free((void *)(uintptr_t)m->data); }

check_input check_input_make(size_t n_tokens, size_t n_cols, bool saturate) {
  check_input c;
  const pst_kernels *k = pst_kernels_find("scalar");
  c.memory = check_alloc(pst_kernels_input_bytes(n_tokens, n_cols), 0);
  c.rows = check_alloc(n_tokens * n_cols * sizeof(float), 4 * check_below(16));
  pst_kernels_input_init(&c.in, n_tokens, n_cols, c.memory);
  c.in.x = c.rows;
  for (size_t t = 0; t < n_tokens; t++) {
    float *row = c.rows + t * n_cols;
    check_fill(row, n_cols);
    float sign = check_below(2) ? 1.0f : -1.0f;
    for (size_t i = 0; saturate && i < n_cols; i++) row[i] = sign * 2.0f;
    if (n_cols % PST_KERNELS_BLOCK == 0) k->quantize(row, 0, c.in.n_blocks, &c.in, t);
  }
  return c;
}

void check_input_free(check_input *c) {
  check_free(c->memory);
  check_free(c->rows);
}

const pst_kernels **check_tables(void) {
  static const pst_kernels *tables[8];
  static const char *const names[] = {"avx2", "avx512", "neon", "dotprod", "i8mm"};
  size_t n = 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++)
    if (pst_kernels_find(names[i])) tables[n++] = pst_kernels_find(names[i]);
  tables[n] = NULL;
  return tables;
}

const uint32_t *check_types(size_t *ret_n) {
  static uint32_t types[PST_TYPE_END];
  pst_kernels_matrix m;
  *ret_n = 0;
  for (uint32_t t = 0; t < PST_TYPE_END; t++)
    if (pst_kernels_matrix_init(t, 1, 256, &m, NULL) == 0) types[(*ret_n)++] = t;
  return types;
}

void check_same(const char *what, const float *want, const float *got, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (memcmp(&want[i], &got[i], sizeof(float)) == 0) continue;
    fprintf(stderr, "%s: element %zu of %zu: want %a, got %a; PENSTOCK_SEED=%" PRIu64 "\n", what, i, n, (double)want[i],
            (double)got[i], check_seed());
    fail();
  }
}
