/* How fast this machine reads memory: the limit of a decode step.
 *
 *   bench_stream [MEGABYTES [THREADS [RUNS]]]      default: 96 2 15
 *
 * "read" adds up 64-byte lines; "matvec" is a bare product of an 8-bit matrix of as many bytes with one vector, whole rows in turn: byte products where the
 * machine has them (VNNI), else as a compiler makes it. Memory in huge pages where the system gives them. Best and median of the runs in GB/s, all threads
 * together; one line of JSON. */
#include <penstock/base.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { MAX_THREADS = 64, COLUMNS = 576 };

typedef struct part {
  const uint8_t *data;
  size_t n;
  bool matvec;
  int64_t sum, start_us, end_us;
  pthread_barrier_t *gate;
} part;

static int8_t vector[COLUMNS] __attribute__((aligned(64)));

/* Vectorized by the compiler for what the machine has. */
#if defined(__x86_64__) && !defined(__clang__)
__attribute__((target_clones("arch=x86-64-v4", "avx2", "default"), optimize("O3")))
#endif
static int64_t
matvec_plain(const uint8_t *data, size_t n) {
  int64_t sum = 0;
  for (size_t row = 0; row + COLUMNS <= n; row += COLUMNS) {
    int dot = 0;
    for (size_t i = 0; i < COLUMNS; i++) dot += data[row + i] * vector[i];
    sum += dot;
  }
  return sum;
}

#ifdef __x86_64__
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static int64_t matvec_vnni(const uint8_t *data, size_t n) {
  int64_t sum = 0;
  for (size_t row = 0; row + COLUMNS <= n; row += COLUMNS) {
    __m512i dot = _mm512_setzero_si512();
    for (size_t i = 0; i < COLUMNS; i += 64)
      dot = _mm512_dpbusd_epi32(dot, _mm512_loadu_si512(data + row + i), _mm512_load_si512(vector + i));
    sum += _mm512_reduce_add_epi32(dot);
  }
  return sum;
}
#endif

static int64_t matvec(const uint8_t *data, size_t n) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")) return matvec_vnni(data, n);
#endif
  return matvec_plain(data, n);
}

static int64_t read_lines(const uint8_t *data, size_t n) {
  int64_t sum = 0, v;
  for (size_t i = 0; i + sizeof v <= n; i += 64) {
    memcpy(&v, data + i, sizeof v);
    sum += v;
  }
  return sum;
}

static void *run_part(void *arg) {
  part *p = arg;
  pthread_barrier_wait(p->gate);
  p->start_us = pst_clock_us();
  p->sum = p->matvec ? matvec(p->data, p->n) : read_lines(p->data, p->n);
  p->end_us = pst_clock_us();
  return NULL;
}

/* By the threads' own clocks: who waits for them may be late. */
static double seconds_of(part *parts, int n_threads) {
  pthread_t threads[MAX_THREADS];
  for (int i = 0; i < n_threads; i++)
    if (pthread_create(&threads[i], NULL, run_part, &parts[i])) exit(1);
  int64_t start = INT64_MAX, end = 0;
  for (int i = 0; i < n_threads; i++) {
    pthread_join(threads[i], NULL);
    start = PST_MIN(start, parts[i].start_us);
    end = PST_MAX(end, parts[i].end_us);
  }
  return (double)PST_MAX(end - start, 1) * 1e-6;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  size_t n = (argc > 1 ? strtoul(argv[1], NULL, 10) : 96) * 1000000;
  int n_threads = argc > 2 ? atoi(argv[2]) : 2, runs = argc > 3 ? atoi(argv[3]) : 15;
  if (!n || n_threads < 1 || n_threads > MAX_THREADS || runs < 1 || runs > 1000) {
    fprintf(stderr, "usage: bench_stream [MEGABYTES [THREADS [RUNS]]]\n");
    return 2;
  }
  uint8_t *data = pst_malloc_aligned(n + 64, 2u << 20);
  double *gbs = pst_malloc((size_t)runs * sizeof *gbs);
  if (!data || !gbs) return 1;
  (void)madvise(data, n, MADV_HUGEPAGE);
  memset(data, 1, n + 64);
  memset(vector, 1, sizeof vector);
  printf("{\"megabytes\": %zu, \"threads\": %d", n / 1000000, n_threads);
  for (int matvec = 0; matvec < 2; matvec++) {
    pthread_barrier_t gate;
    part parts[MAX_THREADS];
    pthread_barrier_init(&gate, NULL, (unsigned)n_threads);
    for (int i = 0; i < n_threads; i++) {
      size_t share = n / (size_t)n_threads / 64 * 64;
      parts[i] = (part){.data = data + (size_t)i * share, .n = share, .matvec = matvec != 0, .gate = &gate};
    }
    for (int r = 0; r < runs; r++) gbs[r] = (double)n * 1e-9 / seconds_of(parts, n_threads);
    qsort(gbs, (size_t)runs, sizeof *gbs, ascending);
    const char *name = matvec ? "matvec" : "read";
    printf(", \"%s_gbs\": %.2f, \"%s_best_gbs\": %.2f", name, gbs[runs / 2], name, gbs[runs - 1]);
    pthread_barrier_destroy(&gate);
  }
  printf("}\n");
  pst_free(data);
  pst_free(gbs);
  return 0;
}
