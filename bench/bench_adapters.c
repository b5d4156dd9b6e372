/* Steps with LoRA adapters against the base's, interleaved: eight requests of one token each, with one adapter for all or with eight different ones; a prompt; and
 * how long an adapter takes to load.
 *
 *     bench_adapters MODEL.gguf [PAIRS [THREADS]]
 *
 * stdout: one JSON object. Of each case a pair is STEPS steps of the base and as many of the case, one after the other, the order turning; times are of one step, by
 * the clock and by processor time of all threads. share: the base's time over the case's, the median over the pairs with its lowest and highest. The answers to
 * "how much slower, and is it bytes": bytes are those that the step's adapters have beside the base's. Adapters are random, on all linear layers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <penstock/engine.h>

#include "engine/forward.h"
#include "support/random_adapter.h"

enum { SEQUENCES = 8, DEPTH = 64, PROMPT = 256, PAGES = (DEPTH + PROMPT) / PST_KERNELS_PAGE + 1 };
enum { STEPS = 20, MOST_PAIRS = 100, LOADS = 9 };

typedef struct test_case {
  const char *name;
  int rank, n_adapters, n_items, n_tokens; /* adapters go round; 0: the base. Tokens of each item */
} test_case;

static const test_case cases[] = {
    {"one of rank 16", 16, 1, SEQUENCES, 1},   {"eight of rank 8", 8, 8, SEQUENCES, 1},
    {"eight of rank 16", 16, 8, SEQUENCES, 1}, {"eight of rank 32", 32, 8, SEQUENCES, 1},
    {"alone, rank 16", 16, 1, 1, 1},           {"a prompt, rank 16", 16, 1, 1, PROMPT},
};

typedef struct bench {
  pst_engine_model *model;
  pst_engine_forward *forward;
  uint8_t *memory;
  uint8_t *pages[SEQUENCES][PAGES];
  float *logits;
  int32_t tokens[PROMPT];
} bench;

typedef struct spent {
  double wall_ms, cpu_ms;
} spent;

static void die(const pst_error *err) {
  fprintf(stderr, "bench_adapters: %s: %s\n", err->place, err->message);
  exit(1);
}

static spent now(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (spent){(double)pst_clock_us() / 1e3, (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e3 +
                                                   (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e3};
}

static void open_bench(const char *path, int threads, bench *b) {
  pst_error err = PST_ERROR_INIT;
  size_t n_vocab, page_bytes;
  if (pst_engine_model_open(path, 0, &b->model, &err)) die(&err);
  n_vocab = (size_t)pst_engine_model_get_info(b->model)->n_vocab;
  page_bytes = pst_engine_forward_page_bytes(b->model, PST_ENGINE_KV_F16);
  b->memory = pst_malloc_aligned(SEQUENCES * PAGES * page_bytes, 64);
  b->logits = pst_calloc(SEQUENCES * n_vocab, sizeof *b->logits);
  if (!b->memory || !b->logits) exit(1);
  memset(b->memory, 0, SEQUENCES * PAGES * page_bytes);
  if (pst_engine_forward_create(b->model, PST_ENGINE_KV_F16, PST_MAX(PROMPT, SEQUENCES), SEQUENCES, SEQUENCES,
                                DEPTH + PROMPT, threads ? threads : pst_cpu_count(), &b->forward, &err))
    die(&err);
  for (size_t i = 0; i < SEQUENCES * PAGES; i++) b->pages[i / PAGES][i % PAGES] = b->memory + i * page_bytes;
  for (int i = 0; i < PROMPT; i++) b->tokens[i] = (int32_t)((size_t)(100 + 7 * i) % n_vocab);
}

/* A step as the engine makes it, greedy. */
static void step(bench *b, const test_case *c, pst_engine_adapter *const *adapters) {
  pst_engine_forward_item items[SEQUENCES];
  int32_t best[SEQUENCES];
  for (int i = 0; i < c->n_items; i++)
    items[i] = (pst_engine_forward_item){.tokens = b->tokens + i,
                                         .first = DEPTH,
                                         .n = c->n_tokens,
                                         .n_logits = 1,
                                         .pages = b->pages[i],
                                         .adapter = adapters ? adapters[i % c->n_adapters] : NULL};
  pst_engine_forward_run(b->forward, items, c->n_items);
  pst_engine_forward_greedy(b->forward, 0, c->n_items, b->logits, best);
}

static spent steps(bench *b, const test_case *c, pst_engine_adapter *const *adapters) {
  spent start = now(), end;
  int n = c->n_tokens > 1 ? 2 : STEPS;
  for (int i = 0; i < n; i++) step(b, c, adapters);
  end = now();
  return (spent){(end.wall_ms - start.wall_ms) / n, (end.cpu_ms - start.cpu_ms) / n};
}

static int ascending(const void *x, const void *y) {
  double a = *(const double *)x, b = *(const double *)y;
  return (a > b) - (a < b);
}

static void put_number(pst_json_writer *w, const char *key, double value) { pst_json_member_double(w, key, value); }

/* The median of x[n], which is sorted; with its ends. */
static void put_spread(pst_json_writer *w, const char *key, double *x, int n) {
  qsort(x, (size_t)n, sizeof *x, ascending);
  pst_json_key(w, key);
  pst_json_begin_array(w);
  pst_json_put_double(w, (x[(n - 1) / 2] + x[n / 2]) / 2);
  pst_json_put_double(w, x[0]);
  pst_json_put_double(w, x[n - 1]);
  pst_json_end_array(w);
}

static void run_case(bench *b, const test_case *c, int n_pairs, pst_json_writer *w) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_adapter *adapters[SEQUENCES];
  double base_ms[MOST_PAIRS], ms[MOST_PAIRS], share[MOST_PAIRS], cpu_share[MOST_PAIRS];
  for (int i = 0; i < c->n_adapters; i++) {
    pst_engine_lora lora = {0};
    if (test_random_adapter(b->model, c->rank, i + 1, 1, 0.01f, &lora, &err) ||
        pst_engine_adapter_create(b->model, &lora, &adapters[i], &err))
      die(&err);
    pst_engine_lora_done(&lora);
  }
  steps(b, c, NULL);
  steps(b, c, adapters);
  for (int p = 0; p < n_pairs; p++) {
    spent with = {0}, base = {0};
    if (p % 2) with = steps(b, c, adapters);
    base = steps(b, c, NULL);
    if (p % 2 == 0) with = steps(b, c, adapters);
    base_ms[p] = base.wall_ms;
    ms[p] = with.wall_ms;
    share[p] = base.wall_ms / with.wall_ms;
    cpu_share[p] = base.cpu_ms / with.cpu_ms;
  }
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "case", c->name);
  put_number(w, "adapter_bytes", (double)(pst_engine_adapter_get_info(adapters[0])->bytes * c->n_adapters));
  put_spread(w, "base_ms", base_ms, n_pairs);
  put_spread(w, "ms", ms, n_pairs);
  put_spread(w, "share", share, n_pairs);
  put_spread(w, "cpu_share", cpu_share, n_pairs);
  pst_json_end_object(w);
  for (int i = 0; i < c->n_adapters; i++) pst_engine_adapter_unref(adapters[i]);
}

/* Reading and packing a file that is in the page cache. */
static void run_load(const bench *b, pst_json_writer *w) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_lora lora = {0};
  double wall[LOADS], cpu[LOADS];
  char path[] = "/tmp/bench_adapters.XXXXXX";
  int fd = mkstemp(path);
  if (fd < 0 || test_random_adapter(b->model, 16, 1, 1, 0.01f, &lora, &err) ||
      pst_engine_lora_write_gguf(&lora, path, &err))
    die(&err);
  pst_engine_lora_done(&lora);
  for (int i = -1; i < LOADS; i++) {
    pst_engine_adapter *adapter = NULL;
    spent start = now();
    if (pst_engine_adapter_open(b->model, path, &adapter, &err)) die(&err);
    spent end = now();
    pst_engine_adapter_unref(adapter);
    if (i < 0) continue;
    wall[i] = end.wall_ms - start.wall_ms;
    cpu[i] = end.cpu_ms - start.cpu_ms;
  }
  unlink(path);
  put_spread(w, "load_ms", wall, LOADS);
  put_spread(w, "load_cpu_ms", cpu, LOADS);
}

int main(int argc, char **argv) {
  if (argc == 1) {
    puts("nothing to do: needs a model");
    return 0;
  }
  int n_pairs = argc > 2 ? atoi(argv[2]) : 10, threads = argc > 3 ? atoi(argv[3]) : 0;
  if (argc > 4 || n_pairs < 1 || n_pairs > MOST_PAIRS || threads < 0) {
    fputs("usage: bench_adapters MODEL.gguf [PAIRS [THREADS]]\n", stderr);
    return 2;
  }
  bench b = {0};
  pst_buf text = PST_BUF_INIT;
  open_bench(argv[1], threads, &b);
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "isa", pst_engine_model_get_info(b.model)->isa);
  put_number(&w, "base_step_bytes", (double)pst_engine_model_get_info(b.model)->step_bytes);
  run_load(&b, &w);
  pst_json_key(&w, "cases");
  pst_json_begin_array(&w);
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) run_case(&b, &cases[i], n_pairs, &w);
  pst_json_end_array(&w);
  pst_json_end_object(&w);
  puts(text.data);
  pst_buf_done(&text);
  pst_engine_forward_free(b.forward);
  pst_engine_model_unref(b.model);
  pst_free(b.memory);
  pst_free(b.logits);
  return 0;
}
