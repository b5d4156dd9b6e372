/* What the kernel checks share: seeded values, guarded memory, matrices of random and extreme blocks. */
#ifndef TESTS_KERNELS_CHECK_H
#define TESTS_KERNELS_CHECK_H

#include <penstock/kernels.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CHECK_GUARD 64

/* The seed of this run: $PENSTOCK_SEED or the clock; printed once, so that a failure can be repeated. */
uint64_t check_seed(void);
uint64_t check_u64(void);
size_t check_below(size_t n);
float check_float(float low, float high);
/* n floats: smooth, with outliers, all equal, tiny, or mostly zero. */
void check_fill(float *x, size_t n);

/* Memory with guard bytes on both sides; `shift` bytes off a 64-byte boundary. check_free fails the test if a guard changed. */
void *check_alloc(size_t bytes, size_t shift);
void check_free(void *p);

typedef enum check_pattern { CHECK_RANDOM, CHECK_ALL_ONES, CHECK_ALL_ZERO, CHECK_N_PATTERNS } check_pattern;
/* A tensor as a file holds it: random codes (or all bits equal), finite scales. free() it. */
uint8_t *check_tensor(uint32_t type, size_t n_rows, size_t n_cols, check_pattern pattern);
/* The packed form; check_matrix_free. */
pst_kernels_matrix check_pack(uint32_t type, const uint8_t *tensor, size_t n_rows, size_t n_cols);
void check_matrix_free(pst_kernels_matrix *m);

/* Quantized inputs of random rows (also reachable as in->x), made by the scalar table. */
typedef struct check_input {
  pst_kernels_input in;
  void *memory;
  float *rows;
} check_input;
check_input check_input_make(size_t n_tokens, size_t n_cols, bool saturate);
void check_input_free(check_input *c);

/* Every table this build and CPU have but scalar; NULL ends the list. */
const pst_kernels **check_tables(void);
const uint32_t *check_types(size_t *ret_n); /* every type with a packed form */

/* Fails with the first differing index if the bits differ. */
void check_same(const char *what, const float *want, const float *got, size_t n);

#endif
