/* Micro-benchmark of the kernels, one thread: products by type and number of tokens, attention, vectors.
 *
 *   bench_kernels [TABLE [TYPE]]      default: every table of this build and CPU, every type and slot
 *
 * Best of several short runs, because neighbours only ever add time. One token: GB/s of packed weights beside a bare streaming read of as many
 * bytes. Many tokens: GOP/s (two operations a multiply-add). */
#include <penstock/kernels.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUNS = 25 };

/* Time this thread ran, so that a slice given to another process does not count. */
static double thread_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double best_seconds(void (*run)(void *), void *arg, double at_least) {
  double best = 1e9;
  for (int r = 0; r < RUNS; r++) {
    int n = 0;
    double start = thread_seconds(), end;
    do {
      run(arg);
      n++;
      end = thread_seconds();
    } while (end - start < at_least);
    best = PST_MIN(best, (end - start) / n);
  }
  return best;
}

/* ---- streaming probe -------------------------------------------------------------------------------------------- */

typedef struct stream {
  const uint64_t *data;
  size_t n;
  uint64_t sum;
} stream;

static void stream_run(void *arg) {
  stream *s = arg;
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (size_t i = 0; i + 32 <= s->n; i += 32) {
    a += s->data[i];
    b += s->data[i + 8];
    c += s->data[i + 16];
    d += s->data[i + 24];
  }
  s->sum += a + b + c + d;
}

/* ---- products --------------------------------------------------------------------------------------------------- */

typedef struct product {
  const pst_kernels *k;
  pst_kernels_matrix m;
  pst_kernels_input in;
  size_t n_tokens;
  float *out;
  void *work;
} product;

static void product_run(void *arg) {
  product *p = arg;
  p->k->matmul(&p->m, &p->in, 0, p->n_tokens, 0, p->m.n_groups, false, p->out, p->m.n_rows, p->work);
}

static void *must(void *p) {
  if (!p) {
    fprintf(stderr, "bench_kernels: out of memory\n");
    exit(1);
  }
  return p;
}

/* Random source blocks; every 16-bit field is a number between 1/4 and 2 as f16 and as bf16, so that nothing is subnormal. */
static void fill_source(uint32_t type, uint8_t *src, size_t bytes) {
  pst_random r = {.seed = 1, .stream = type, .counter = 0};
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t v = (pst_random_next(&r) & 0x3fff3fff3fff3fffu) | 0x3e003e003e003e00u;
    memcpy(src + i, &v, 8);
  }
  const pst_kernels_type_row *info = pst_kernels_type_info(type);
  for (size_t i = 0; type == PST_TYPE_MXFP4 && i < bytes; i += info->block_bytes) src[i] = 120;
}

static void product_make(product *p, uint32_t type, size_t rows, size_t cols, size_t n_tokens) {
  if (pst_kernels_matrix_init(type, rows, cols, &p->m, NULL)) exit(1);
  size_t bytes = rows * pst_kernels_row_bytes(type, cols);
  uint8_t *src = must(pst_malloc(bytes)), *data = must(pst_malloc_aligned(pst_kernels_matrix_bytes(&p->m), 64));
  fill_source(type, src, bytes);
  pst_kernels_matrix_pack(&p->m, src, 0, p->m.n_groups, data);
  pst_free(src);
  p->m.data = data;
  pst_kernels_input_init(&p->in, n_tokens, cols, must(pst_malloc_aligned(pst_kernels_input_bytes(n_tokens, cols), 64)));
  float *x = must(pst_malloc(n_tokens * cols * sizeof(float)));
  pst_random r = {.seed = 2, .stream = 0, .counter = 0};
  for (size_t i = 0; i < n_tokens * cols; i++) x[i] = (float)(pst_random_next_unit(&r) - 0.5);
  for (size_t t = 0; t < n_tokens; t++) p->k->quantize(x + t * cols, 0, p->in.n_blocks, &p->in, t);
  p->in.x = x;
  p->n_tokens = n_tokens;
  p->out = must(pst_malloc(n_tokens * rows * sizeof(float)));
  p->work = must(pst_malloc_aligned(PST_KERNELS_WORK_BYTES, 64));
}

static void product_free(product *p) {
  pst_free((void *)(uintptr_t)p->m.data);
  pst_free(p->in.q);
  pst_free((void *)(uintptr_t)p->in.x);
  pst_free(p->out);
  pst_free(p->work);
}

static double product_seconds(const pst_kernels *k, uint32_t type, size_t rows, size_t cols, size_t n_tokens) {
  product p = {.k = k};
  product_make(&p, type, rows, cols, n_tokens);
  double s = best_seconds(product_run, &p, 0.001);
  product_free(&p);
  return s;
}

/* only: one type, or PST_TYPE_END for all */
static void bench_products(const pst_kernels *k, double stream_gbs, uint32_t only) {
  static const uint32_t types[] = {PST_TYPE_Q4_0,  PST_TYPE_Q4_1, PST_TYPE_Q5_0,   PST_TYPE_Q5_1,
                                   PST_TYPE_Q8_0,  PST_TYPE_Q2_K, PST_TYPE_Q3_K,   PST_TYPE_Q4_K,
                                   PST_TYPE_Q5_K,  PST_TYPE_Q6_K, PST_TYPE_IQ4_NL, PST_TYPE_IQ4_XS,
                                   PST_TYPE_MXFP4, PST_TYPE_F16,  PST_TYPE_BF16,   PST_TYPE_F32};
  printf("%-8s %-7s %14s %7s %10s %10s %10s %10s\n", "table", "type", "1 token GB/s", "stream", "2 GOP/s", "4 GOP/s",
         "8 GOP/s", "512 GOP/s");
  for (size_t i = 0; i < PST_ARRAY_LEN(types); i++) {
    if (only != PST_TYPE_END && only != types[i]) continue;
    const pst_kernels_type_row *info = pst_kernels_type_info(types[i]);
    size_t cols = info->block_elements == 256 ? 512 : 576;
    size_t big_rows = 64000000 / pst_kernels_row_bytes(types[i], cols) / 16 * 16, rows = 1536;
    bool is_float = info->block_elements == 1;
    double gb = (double)(big_rows * pst_kernels_row_bytes(types[i], cols)) * 1e-9 /
                product_seconds(k, types[i], big_rows, cols, 1);
    double gop[4];
    static const size_t tokens[] = {2, 4, 8, 512};
    for (size_t t = 0; t < 4; t++) {
      size_t n = is_float && tokens[t] == 512 ? 64 : tokens[t];
      gop[t] = 2e-9 * (double)(rows * cols * n) / product_seconds(k, types[i], rows, cols, n);
    }
    printf("%-8s %-7s %14.1f %6.0f%% %10.1f %10.1f %10.1f %10.1f\n", k->name, info->name, gb, 100 * gb / stream_gbs,
           gop[0], gop[1], gop[2], gop[3]);
    fflush(stdout);
  }
}

/* ---- attention and vectors -------------------------------------------------------------------------------------- */

typedef struct attend_bench {
  const pst_kernels *k;
  pst_kernels_attend a;
  void *work;
} attend_bench;

static void attend_run_once(void *arg) {
  attend_bench *b = arg;
  b->k->attention(&b->a, b->work);
}

static void bench_attention(const pst_kernels *k, uint32_t kv, size_t head_dim, size_t n_heads, size_t n_tokens,
                            size_t position) {
  size_t n_pages = (position + n_tokens + 63) / 64, page_bytes = (pst_kernels_page_bytes(kv, head_dim) + 63) / 64 * 64;
  uint8_t *memory = must(pst_malloc_aligned(n_pages * 2 * page_bytes, 64));
  const uint8_t **pages = must(pst_malloc(n_pages * sizeof *pages));
  float *x = must(pst_malloc(n_tokens * n_heads * head_dim * sizeof(float))),
        *out = must(pst_malloc(n_tokens * n_heads * head_dim * sizeof(float)));
  pst_random r = {.seed = 3, .stream = 0, .counter = 0};
  for (size_t i = 0; i < n_tokens * n_heads * head_dim; i++) x[i] = (float)(pst_random_next_unit(&r) - 0.5);
  for (size_t p = 0; p < n_pages; p++) {
    pages[p] = memory + p * 2 * page_bytes;
    for (size_t j = 0; j < 64; j++) {
      k->store_key(kv, head_dim, x, j, memory + p * 2 * page_bytes);
      k->store_value(kv, head_dim, x, j, memory + p * 2 * page_bytes + page_bytes);
    }
  }
  attend_bench b = {.k = k, .work = must(pst_malloc_aligned(PST_KERNELS_WORK_BYTES, 64))};
  b.a = (pst_kernels_attend){.kv_type = kv,
                             .head_dim = head_dim,
                             .n_heads = n_heads,
                             .n_tokens = n_tokens,
                             .position = position,
                             .scale = 0.125f,
                             .q = x,
                             .q_stride = n_heads * head_dim,
                             .out = out,
                             .out_stride = n_heads * head_dim,
                             .pages = pages,
                             .v_offset = page_bytes};
  double s = best_seconds(attend_run_once, &b, 0.001);
  double pairs = 0;
  for (size_t t = 0; t < n_tokens; t++) pairs += (double)((position + t + 1) * n_heads);
  printf("%-8s attention %s head %zu x %zu, %zu tokens at %zu: %.1f us, %.1f GFLOP/s, %.1f GB/s\n", k->name,
         pst_kernels_type_info(kv)->name, head_dim, n_heads, n_tokens, position, s * 1e6,
         4e-9 * pairs * (double)head_dim / s, 1e-9 * (double)(n_pages * 2 * page_bytes) / s);
  pst_free(memory);
  pst_free(pages);
  pst_free(x);
  pst_free(out);
  pst_free(b.work);
}

typedef struct vector_bench {
  const pst_kernels *k;
  pst_kernels_input in;
  float *x, *y, *out;
  size_t n;
} vector_bench;

static void norm_run(void *arg) {
  vector_bench *v = arg;
  v->k->rmsnorm_quantize(v->x, v->y, 1e-5f, NULL, &v->in, 0);
}
static void layernorm_run(void *arg) {
  vector_bench *v = arg;
  v->k->layernorm(v->x, v->y, v->y, 576, 1e-5f, v->out);
}
static void gelu_run(void *arg) {
  vector_bench *v = arg;
  v->k->gated(PST_KERNELS_GELU_ERF, v->x, NULL, 1536, v->out);
}
static void gated_run(void *arg) {
  vector_bench *v = arg;
  v->k->gated_quantize(PST_KERNELS_SILU, v->x, v->y, 0, v->in.n_blocks, &v->in, 0);
}
static void argmax_run(void *arg) {
  vector_bench *v = arg;
  v->in.half[0] = (int16_t)v->k->argmax(v->x, v->n);
}
static void sum_exp_run(void *arg) {
  vector_bench *v = arg;
  v->in.d[0] = v->k->sum_exp(v->x, v->n, 1.0f);
}

static void bench_vectors(const pst_kernels *k) {
  vector_bench v = {.k = k, .n = 49152};
  v.x = must(pst_malloc(v.n * sizeof(float)));
  v.y = must(pst_malloc(v.n * sizeof(float)));
  v.out = must(pst_malloc(1536 * sizeof(float)));
  pst_random r = {.seed = 4, .stream = 0, .counter = 0};
  for (size_t i = 0; i < v.n; i++) v.x[i] = v.y[i] = (float)(pst_random_next_unit(&r) - 0.5);
  void *memory = must(pst_malloc_aligned(pst_kernels_input_bytes(1, 1536), 64));
  pst_kernels_input_init(&v.in, 1, 576, memory);
  printf("%-8s rmsnorm_quantize 576: %.2f us\n", k->name, 1e6 * best_seconds(norm_run, &v, 0.0005));
  pst_kernels_input_init(&v.in, 1, 1536, memory);
  printf("%-8s layernorm 576: %.2f us\n", k->name, 1e6 * best_seconds(layernorm_run, &v, 0.0005));
  printf("%-8s gated gelu_erf 1536: %.2f us\n", k->name, 1e6 * best_seconds(gelu_run, &v, 0.0005));
  printf("%-8s gated_quantize silu 1536: %.2f us\n", k->name, 1e6 * best_seconds(gated_run, &v, 0.0005));
  printf("%-8s argmax 49152: %.2f us\n", k->name, 1e6 * best_seconds(argmax_run, &v, 0.0005));
  printf("%-8s sum_exp 49152: %.2f us\n", k->name, 1e6 * best_seconds(sum_exp_run, &v, 0.0005));
  pst_free(v.x);
  pst_free(v.y);
  pst_free(v.out);
  pst_free(memory);
}

int main(int argc, char **argv) {
  static const char *const all[] = {"avx2", "avx512", "neon", "dotprod", "i8mm"};
  stream s = {.n = 64000000 / 8};
  uint64_t *data = must(pst_calloc(s.n, 8));
  memset(data, 1, s.n * 8);
  s.data = data;
  double gbs = 0.064 / best_seconds(stream_run, &s, 0.001);
  printf("streaming read, one thread: %.1f GB/s (%u)\n", gbs, (unsigned)s.sum & 1u);
  pst_free(data);
  const pst_kernels_type_row *only = argc > 2 ? pst_kernels_type_find(pst_str_from(argv[2])) : NULL;
  for (size_t i = 0; i < PST_ARRAY_LEN(all); i++) {
    const pst_kernels *k = pst_kernels_find(all[i]);
    if (!k || (argc > 1 && strcmp(argv[1], all[i]) != 0)) continue;
    bench_products(k, gbs, only ? only->type : PST_TYPE_END);
    if (only) continue;
    bench_attention(k, PST_TYPE_F16, 64, 3, 1, 4095);
    bench_attention(k, PST_TYPE_F16, 256, 4, 1, 4095);
    bench_attention(k, PST_TYPE_F16, 64, 3, 512, 0);
    bench_attention(k, PST_TYPE_F16, 256, 4, 512, 0);
    bench_attention(k, PST_TYPE_Q8_0, 64, 3, 1, 4095);
    bench_attention(k, PST_TYPE_Q8_0, 64, 3, 512, 0);
    bench_vectors(k);
  }
  return 0;
}
