/* Speed of LoRA training: tokens a second of whole steps on random texts, beside what the machine's float products reach in the same run.
 *
 *   bench_tune MODEL.gguf [--rank N] [--texts N] [--length N] [--spread N] [--answer N] [--shared N] [--threads N] [--steps N] [--int8 0|1]
 *
 * A text has --length tokens, up to --spread more or fewer, of which the last --answer are scored; all begin with the same --shared ones (0: none; then every beginning is computed for
 * itself). The peak is of products of the model's own shapes: kernels' and OpenBLAS's, the greater counts. Shares of it are of CPU time, which other programs on
 * the machine disturb less; tokens a second are given by the clock and by CPU time over threads. Products with frozen weights are in 8 bits unless --int8 0 asks for
 * float; the share of the float peak is then above what float could reach. */
#include <penstock/tune.h>

#include <cblas.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <penstock/kernels.h>

/* OpenBLAS's own; its header is not where every distribution has it. */
extern void openblas_set_num_threads(int n);
extern char *openblas_get_corename(void);

typedef struct setting {
  const char *model;
  long rank, texts, length, spread, answer, shared, threads, steps, int8;
} setting;

static int read_arguments(int argc, char **argv, setting *s) {
  const struct {
    const char *name;
    long *to;
  } options[] = {{"--rank", &s->rank},       {"--texts", &s->texts},   {"--length", &s->length},
                 {"--spread", &s->spread},   {"--answer", &s->answer}, {"--shared", &s->shared},
                 {"--threads", &s->threads}, {"--steps", &s->steps},   {"--int8", &s->int8}};
  for (int i = 1; i < argc; i++) {
    size_t k = 0;
    while (k < PST_ARRAY_LEN(options) && strcmp(options[k].name, argv[i]) != 0) k++;
    if (k < PST_ARRAY_LEN(options) && i + 1 < argc)
      *options[k].to = strtol(argv[++i], NULL, 10);
    else
      s->model = argv[i];
  }
  if (!s->model) s->model = getenv("PENSTOCK_TEST_SMOLLM2");
  if (s->threads <= 0) s->threads = pst_cpu_count();
  return s->model && s->answer >= 1 && s->length - s->spread > s->answer + s->shared && s->steps >= 2 ? 0 : 1;
}

static double seconds_of(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the peak ---- */

typedef struct product_run {
  bool blas;
  size_t m, n, k;
  double best_gflops;
} product_run;

static float *random_floats(size_t n) {
  float *x = pst_malloc_aligned(n * sizeof *x, 64);
  for (size_t i = 0; x && i < n; i++) x[i] = (float)pst_random_unit(1, 2, i) - 0.5f;
  return x;
}

static void *run_product(void *arg) {
  product_run *r = arg;
  void *work = pst_malloc_aligned(PST_KERNELS_WORK_BYTES, 64);
  float *a = random_floats(r->m * r->k), *b = random_floats(r->n * r->k), *c = random_floats(r->m * r->n);
  if (!work || !a || !b || !c) abort();
  for (int i = 0; i < 12; i++) {
    double begin = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    if (r->blas)
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)r->m, (int)r->n, (int)r->k, 1, a, (int)r->k, b,
                  (int)r->k, 0, c, (int)r->n);
    else
      pst_kernels_product(pst_kernels_get(), r->m, r->n, r->k, (pst_kernels_floats){a, r->k, 1},
                          (pst_kernels_floats){b, 1, r->k}, c, r->n, false, work);
    double gflops =
        2.0 * (double)r->m * (double)r->n * (double)r->k / (seconds_of(CLOCK_THREAD_CPUTIME_ID) - begin) / 1e9;
    r->best_gflops = PST_MAX(r->best_gflops, gflops);
  }
  pst_free(work);
  pst_free(a);
  pst_free(b);
  pst_free(c);
  return NULL;
}

/* All threads at once, each on products of its own; the sum of their best. */
static double peak_of(bool blas, long threads, size_t m, size_t n, size_t k) {
  pthread_t ids[64];
  product_run runs[64];
  double sum = 0;
  for (long t = 0; t < PST_MIN(threads, 64); t++) {
    runs[t] = (product_run){blas, m, n, k, 0};
    if (pthread_create(&ids[t], NULL, run_product, &runs[t])) abort();
  }
  for (long t = 0; t < PST_MIN(threads, 64); t++) {
    pthread_join(ids[t], NULL);
    sum += runs[t].best_gflops;
  }
  return sum;
}

/* ---- training ---- */

/* Seconds of the process's CPU time and of the clock when the first and the last step were done. */
typedef struct course {
  double first, last, first_clock, last_clock;
} course;

static void on_progress(void *user, const pst_tune_progress *p) {
  course *c = user;
  c->last = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  c->last_clock = seconds_of(CLOCK_MONOTONIC);
  if (p->step == 1) {
    c->first = c->last;
    c->first_clock = c->last_clock;
  }
}

/* Operations of a token that is read and a share of one that is scored, forward and backward: 2 for a weight and direction; of the adapters 2 forward and 4
 * backward for a number. */
static double operations_of(const pst_engine_model_info *info, const setting *s) {
  double embd = info->n_embd, q = (double)info->n_heads * info->head_dim,
         kv = (double)info->n_kv_heads * info->head_dim, ff = info->n_ff,
         layer = embd * (q + 2 * kv) + q * embd + 3 * embd * ff,
         adapter = (double)s->rank * (3 * embd + q + 2 * kv + q + embd + 3 * embd + 3 * ff);
  double read = info->n_layers * (4 * layer + 6 * adapter), head = 4 * embd * info->n_vocab;
  return read + head * (double)s->answer / (double)(s->length - 1);
}

int main(int argc, char **argv) {
  setting s = {NULL, 16, 16, 64, 0, 38, 0, 0, 8, 1};
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine_lora lora = {0};
  pst_tune_report report;
  bool wrong = read_arguments(argc, argv, &s) != 0;
  if (!s.model) {
    puts("no model: name one, or set PENSTOCK_TEST_SMOLLM2");
    return 0;
  }
  if (wrong) {
    fputs(
        "usage: bench_tune MODEL.gguf [--rank N] [--texts N] [--length N] [--spread N] [--answer N] [--shared N] [--threads N] [--steps N] "
        "[--int8 0|1]\n",
        stderr);
    return 2;
  }
  if (pst_engine_model_open(s.model, (int)s.threads, &model, &err)) {
    fprintf(stderr, "%s: %s\n", err.place, err.message);
    return 1;
  }
  const pst_engine_model_info *info = pst_engine_model_get_info(model);
  size_t n = (size_t)(s.texts * s.steps), length = (size_t)(s.length + s.spread);
  double text_tokens = 0;
  int32_t *tokens = pst_malloc(n * length * sizeof *tokens);
  pst_tune_text *texts = pst_malloc(n * sizeof *texts);
  if (!tokens || !texts) return 1;
  for (size_t t = 0; t < n; t++) {
    for (size_t i = 0; i < length; i++)
      tokens[t * length + i] =
          (int32_t)(pst_random_u64(1, i < (size_t)s.shared ? 0 : t + 1, i) % (uint64_t)info->n_vocab);
    size_t own = (size_t)(s.length - s.spread) + pst_random_u64(2, 0, t) % (uint64_t)(2 * s.spread + 1);
    texts[t] = (pst_tune_text){.tokens = tokens + t * length, .n = own, .n_given = own - (size_t)s.answer, .weight = 1};
    text_tokens += (double)(own - 1);
  }
  pst_tune_options o = pst_tune_options_default();
  o.rank = (int)s.rank;
  o.batch_texts = (int)s.texts;
  o.steps = s.steps;
  o.threads = (int)s.threads;
  o.precision = s.int8 ? PST_TUNE_INT8 : PST_TUNE_FLOAT;
  o.share_prefixes = s.shared > 0;
  course c = {0, 0, 0, 0};
  o.on_progress = on_progress;
  o.user = &c;
  openblas_set_num_threads(1);
  size_t m = 768, embd = (size_t)info->n_embd, ff = (size_t)info->n_ff;
  double before = peak_of(false, s.threads, m, ff, embd), blas = peak_of(true, s.threads, m, ff, embd);
  if (pst_tune_train(model, texts, n, NULL, 0, &o, &lora, &report, &err)) {
    fprintf(stderr, "%s: %s\n", err.place, err.message);
    return 1;
  }
  double after = peak_of(false, s.threads, m, ff, embd), peak = PST_MAX(PST_MAX(before, after), blas);
  /* The first step meets cold memory. */
  double all = (double)s.steps / (double)(s.steps - 1), seconds = (c.last_clock - c.first_clock) * all,
         cpu = (c.last - c.first) * all;
  double gflops = operations_of(info, &s) * (double)report.n_tokens / (cpu / (double)s.threads) / 1e9;
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  printf("threads %ld, kernels %s, frozen weights in %s, OpenBLAS %s\n", s.threads, pst_kernels_get()->name,
         pst_tune_precision_name(o.precision), openblas_get_corename());
  printf("peak of products: ours %.0f before and %.0f after, OpenBLAS %.0f GFLOP/s\n", before, after, blas);
  printf("training: %.0f tokens/s by the clock, %.0f by CPU time; of the texts %.0f and %.0f\n",
         (double)report.n_tokens / seconds, (double)report.n_tokens / (cpu / (double)s.threads), text_tokens / seconds,
         text_tokens / (cpu / (double)s.threads));
  printf("%.0f GFLOP/s by CPU time, %.0f%% of the peak\n", gflops, 100 * gflops / peak);
  printf("memory: %.2f GB of its own, %.2f GB resident at most\n", (double)report.memory_bytes / 1e9,
         (double)usage.ru_maxrss / 1e6);
  pst_engine_lora_done(&lora);
  pst_free(tokens);
  pst_free(texts);
  pst_engine_model_unref(model);
  return 0;
}
