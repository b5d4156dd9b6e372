/* penstock bench: prompt and decode speed of a model, with llama-bench's options. Goes through the engine as requests do; only loading is left out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/model_path.h"

/* Sequence i takes adapter i mod n; n 0: the base. */
typedef struct bench_adapters {
  pst_engine_adapter **list;
  int n;
  int64_t bytes; /* of one, the largest */
} bench_adapters;

typedef struct bench_case {
  int n_prompt, n_gen, n_depth, n_seq, n_threads;
  const bench_adapters *adapters;
} bench_case;

/* One repetition as the callbacks see it. Guarded by lock. */
typedef struct watch {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int n_seq, n_started, n_ended, n_failed;
  int64_t started_us; /* when the last sequence had its first token */
  int64_t ended_us;
  int64_t n_after;    /* tokens after that moment */
  int64_t n_computed; /* prompt tokens, less those of shared pages */
} watch;

typedef struct seat {
  watch *w;
  bool started;
} seat;

static void on_event(void *user, const pst_engine_event *e) {
  seat *s = user;
  watch *w = s->w;
  pthread_mutex_lock(&w->lock);
  int64_t now = pst_clock_us();
  if (e->token >= 0) {
    if (w->n_started == w->n_seq) w->n_after++;
    if (!s->started) {
      s->started = true;
      if (++w->n_started == w->n_seq) w->started_us = now;
    }
  }
  if (e->finish != PST_ENGINE_FINISH_NONE) {
    w->n_failed += e->finish == PST_ENGINE_FINISH_ERROR;
    w->ended_us = now;
    w->n_computed += e->n_prompt - e->n_cached;
    w->n_ended++;
    pthread_cond_signal(&w->changed);
  }
  pthread_mutex_unlock(&w->lock);
}

/* Sends n_seq random prompts of n_prompt tokens, the same ones for a seed, and waits for n_gen + 1 tokens of each. *w: what was seen. */
static int run_prompts(pst_engine *engine, const bench_case *c, int n_prompt, int n_gen, uint64_t seed, watch *w,
                       pst_error *err) {
  int n_seq = c->n_seq;
  const pst_engine_model_info *info = pst_engine_model_get_info(pst_engine_get_model(engine));
  *w = (watch){PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, n_seq, 0, 0, 0, 0, 0, 0, 0};
  seat *seats = pst_calloc((size_t)n_seq, sizeof *seats);
  int32_t *prompt = pst_malloc((size_t)n_prompt * sizeof *prompt);
  int code = seats && prompt ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  int n_sent = 0;
  for (; n_sent < n_seq && !code; n_sent++) {
    pst_random r = {seed, (uint64_t)n_sent, 0};
    for (int i = 0; i < n_prompt; i++) prompt[i] = (int32_t)pst_random_below(&r, (uint64_t)info->n_vocab);
    if (info->bos >= 0) prompt[0] = info->bos;
    seats[n_sent].w = w;
    pst_engine_request q = {0};
    q.prompt = prompt;
    q.n_prompt = (size_t)n_prompt;
    q.max_tokens = n_gen + 1;
    q.sampling = pst_engine_sampling_default();
    q.sampling.temperature = 0;
    q.ignore_end = true;
    q.n_logprobs = -1;
    if (c->adapters->n) q.adapter = c->adapters->list[n_sent % c->adapters->n];
    q.callback = on_event;
    q.user = &seats[n_sent];
    uint64_t id;
    code = pst_engine_submit(engine, &q, &id, err);
    if (code) break;
  }
  pthread_mutex_lock(&w->lock);
  while (w->n_ended < n_sent) pthread_cond_wait(&w->changed, &w->lock);
  pthread_mutex_unlock(&w->lock);
  if (!code && w->n_failed) code = pst_error_set(err, PST_E_INTERNAL, NULL, "a sequence failed");
  pst_free(seats);
  pst_free(prompt);
  return code;
}

/* Tokens per second of one repetition. A prompt behind a depth finds the depth's whole pages there already (run_case turned reuse on). */
static int run_once(pst_engine *engine, const bench_case *c, uint64_t seed, double *ret_rate, pst_error *err) {
  watch w;
  int code = 0;
  if (c->n_gen) {
    code = run_prompts(engine, c, PST_MAX(c->n_depth, 1), c->n_gen, seed, &w, err);
    *ret_rate = (double)w.n_after * 1e6 / (double)PST_MAX(w.ended_us - w.started_us, 1);
    return code;
  }
  if (c->n_depth) code = run_prompts(engine, c, c->n_depth, 0, seed, &w, err);
  int64_t start = pst_clock_us();
  if (!code) code = run_prompts(engine, c, c->n_depth + c->n_prompt, 0, seed, &w, err);
  *ret_rate = (double)w.n_computed * 1e6 / (double)PST_MAX(w.started_us - start, 1);
  return code;
}

typedef struct output {
  bool json;
  pst_buf text;
  pst_json_writer w;
} output;

static void put_row(output *o, const pst_engine_model_info *info, const bench_case *c, const double *rates, int n) {
  double sum = 0, squares = 0;
  for (int i = 0; i < n; i++) sum += rates[i];
  double mean = sum / n;
  for (int i = 0; i < n; i++) squares += (rates[i] - mean) * (rates[i] - mean);
  double deviation = n > 1 ? sqrt(squares / (n - 1)) : 0;
  if (!o->json) {
    char test[48];
    snprintf(test, sizeof test, c->n_gen ? "tg%d" : "pp%d", c->n_gen ? c->n_gen : c->n_prompt);
    if (c->n_depth) snprintf(test + strlen(test), sizeof test - strlen(test), " @ d%d", c->n_depth);
    printf("%-12s %-8s %7d %5d  %-14s %10.2f +- %.2f\n", info->architecture, info->weights, c->n_threads, c->n_seq,
           test, mean, deviation);
    fflush(stdout);
    return;
  }
  pst_json_writer *w = &o->w;
  pst_json_begin_object(w);
  pst_json_member_int(w, "n_prompt", c->n_prompt);
  pst_json_member_int(w, "n_gen", c->n_gen);
  pst_json_member_int(w, "n_depth", c->n_depth);
  pst_json_member_int(w, "n_seq", c->n_seq);
  pst_json_member_int(w, "n_threads", c->n_threads);
  pst_json_member_int(w, "n_adapters", PST_MIN(c->adapters->n, c->n_seq));
  pst_json_member_cstr(w, "isa", info->isa);
  pst_json_key(w, "bytes_per_step"); /* of one decoded token of every sequence: weights, adapters, keys and values */
  pst_json_put_int(w, info->step_bytes + PST_MIN(c->adapters->n, c->n_seq) * c->adapters->bytes +
                          (int64_t)c->n_seq * (c->n_depth + c->n_gen / 2) * info->kv_bytes_per_token_f16);
  pst_json_key(w, "tokens_per_second");
  pst_json_begin_array(w);
  for (int i = 0; i < n; i++) pst_json_put_double(w, rates[i]);
  pst_json_end_array(w);
  pst_json_end_object(w);
}

static int run_case(pst_engine_model *model, const bench_case *c, const pst_cli_args *a, output *o, pst_error *err) {
  pst_engine_options options = pst_engine_options_default();
  options.slots = PST_MAX(c->n_seq, 1);
  options.threads = c->n_threads;
  options.chunk = (int)pst_cli_int(a, "ubatch");
  options.kv = !strcmp(pst_cli_text(a, "kv"), "q8_0") ? PST_ENGINE_KV_Q8_0 : PST_ENGINE_KV_F16;
  options.no_reuse = c->n_gen || !c->n_depth;
  int length = c->n_depth + c->n_prompt + c->n_gen + 2;
  options.n_ctx = PST_MIN(PST_MAX(length + 64, 512), pst_engine_model_get_info(model)->n_ctx_train);
  options.kv_tokens = c->n_seq * (length + 64);
  pst_engine *engine = NULL;
  int repetitions = (int)pst_cli_int(a, "repetitions");
  double *rates = pst_calloc((size_t)repetitions, sizeof *rates), warm;
  int code =
      rates ? pst_engine_create(model, &options, &engine, err) : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  if (!code && !pst_cli_flag(a, "no-warmup")) {
    bench_case brief = *c;
    brief.n_gen = PST_MIN(c->n_gen, 4);
    brief.n_prompt = PST_MIN(c->n_prompt, 64);
    brief.n_depth = 0;
    code = run_once(engine, &brief, 1, &warm, err);
  }
  for (int i = 0; i < repetitions && !code; i++) code = run_once(engine, c, (uint64_t)i + 2, &rates[i], err);
  if (!code) {
    bench_case shown = *c;
    shown.n_threads = pst_engine_get_options(engine)->threads;
    put_row(o, pst_engine_model_get_info(model), &shown, rates, repetitions);
  }
  pst_engine_free(engine);
  pst_free(rates);
  return code;
}

/* "16,512" -> numbers; at most 16. */
static int parse_list(const char *option, const char *text, int min, int max, int *ret, int *ret_n, pst_error *err) {
  *ret_n = 0;
  while (*text) {
    size_t n = strcspn(text, ",");
    int64_t v;
    if (*ret_n == 16 || pst_parse_i64((pst_str){text, n}, min, max, &v))
      return pst_error_set(err, PST_E_BAD_INPUT, option,
                           "--%s takes up to 16 whole numbers from %d to %d, parted by commas", option, min, max);
    ret[(*ret_n)++] = (int)v;
    text += n + (text[n] == ',');
  }
  return *ret_n ? 0 : pst_error_set(err, PST_E_BAD_INPUT, option, "--%s is empty", option);
}

typedef struct bench_lists {
  int prompt[16], gen[16], depth[16], seq[16], threads[16];
  int n_prompt, n_gen, n_depth, n_seq, n_threads;
} bench_lists;

/* ---- adapters ---- */

static void free_adapters(bench_adapters *x) {
  for (int i = 0; i < x->n; i++) pst_engine_adapter_unref(x->list[i]);
  pst_free(x->list);
  *x = (bench_adapters){0};
}

static void add_adapter(bench_adapters *x, pst_engine_adapter *adapter) {
  x->list[x->n++] = adapter;
  x->bytes = PST_MAX(x->bytes, pst_engine_adapter_get_info(adapter)->bytes);
}

/* All linear layers of a model of plain decoder layers, small random numbers. */
static int make_adapter(const pst_engine_model *model, int rank, uint64_t seed, pst_engine_adapter **ret_adapter,
                        pst_error *err) {
  const pst_engine_model_info *m = pst_engine_model_get_info(model);
  int q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
  const struct {
    const char *name;
    int n_in, n_out;
  } layers[] = {{"attn_q", m->n_embd, q},        {"attn_k", m->n_embd, kv},        {"attn_v", m->n_embd, kv},
                {"attn_output", q, m->n_embd},   {"ffn_gate", m->n_embd, m->n_ff}, {"ffn_up", m->n_embd, m->n_ff},
                {"ffn_down", m->n_ff, m->n_embd}};
  pst_engine_lora lora = {.architecture = pst_strdup(m->architecture), .alpha = 1};
  pst_random r = {seed, 0, 0};
  int code = lora.architecture ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  for (int i = 0; i < m->n_layers * (int)PST_ARRAY_LEN(layers) && !code; i++) {
    char name[64];
    pst_engine_lora_target *t = NULL;
    int k = i % (int)PST_ARRAY_LEN(layers);
    snprintf(name, sizeof name, "blk.%d.%s.weight", i / (int)PST_ARRAY_LEN(layers), layers[k].name);
    code = pst_engine_lora_add(&lora, pst_str_from(name), rank, layers[k].n_in, layers[k].n_out, &t, err);
    for (int e = 0; !code && e < rank * t->n_in; e++) t->a[e] = (float)(pst_random_next_unit(&r) - 0.5) * 0.1f;
    for (int e = 0; !code && e < rank * t->n_out; e++) t->b[e] = (float)(pst_random_next_unit(&r) - 0.5) * 0.1f;
  }
  if (!code) code = pst_engine_adapter_create(model, &lora, ret_adapter, err);
  pst_engine_lora_done(&lora);
  return code;
}

/* Random adapters, one for each sequence, or those of --adapter in turn. */
static int open_adapters(const pst_engine_model *model, const pst_cli_args *a, int n_seq, bench_adapters *x,
                         pst_error *err) {
  const char *paths = pst_cli_text(a, "adapter");
  int rank = (int)pst_cli_int(a, "lora-rank"), code = 0;
  size_t n_paths = 0;
  for (const char *p = paths; p && *p; p += strcspn(p, ",") + (p[strcspn(p, ",")] == ',')) n_paths++;
  if (n_paths && rank)
    return pst_error_set(err, PST_E_BAD_INPUT, "bench", "--adapter and --lora-rank exclude each other");
  x->list = pst_calloc(PST_MAX(n_paths, (size_t)n_seq), sizeof *x->list);
  if (!x->list) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  for (int i = 0; i < n_seq && rank && !code; i++) {
    pst_engine_adapter *adapter = NULL;
    code = make_adapter(model, rank, (uint64_t)i, &adapter, err);
    if (!code) add_adapter(x, adapter);
  }
  for (size_t i = 0; i < n_paths && !code; i++) {
    pst_engine_adapter *adapter = NULL;
    size_t n = strcspn(paths, ",");
    char *path = pst_strndup(paths, n);
    code =
        path ? pst_engine_adapter_open(model, path, &adapter, err) : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
    if (!code) add_adapter(x, adapter);
    pst_free(path);
    paths += n + (paths[n] == ',');
  }
  return code;
}

static int run_all(pst_engine_model *model, const bench_lists *l, const bench_adapters *adapters, const pst_cli_args *a,
                   output *o, pst_error *err) {
  int code = 0;
  for (int t = 0; t < l->n_threads; t++)
    for (int d = 0; d < l->n_depth; d++)
      for (int s = 0; s < l->n_seq; s++) {
        for (int i = 0; i < l->n_prompt && !code; i++)
          if (l->prompt[i])
            code = run_case(model, &(bench_case){l->prompt[i], 0, l->depth[d], l->seq[s], l->threads[t], adapters}, a,
                            o, err);
        for (int i = 0; i < l->n_gen && !code; i++)
          if (l->gen[i])
            code = run_case(model, &(bench_case){0, l->gen[i], l->depth[d], l->seq[s], l->threads[t], adapters}, a, o,
                            err);
      }
  return code;
}

static int run_bench(const pst_cli_args *a, pst_error *err) {
  bench_lists l = {0};
  output o = {pst_cli_flag(a, "json"), PST_BUF_INIT, {0}};
  pst_engine_model *model = NULL;
  bench_adapters adapters = {0};
  int code = parse_list("n-prompt", pst_cli_text(a, "n-prompt"), 0, 1 << 20, l.prompt, &l.n_prompt, err);
  if (!code) code = parse_list("n-gen", pst_cli_text(a, "n-gen"), 0, 1 << 20, l.gen, &l.n_gen, err);
  if (!code) code = parse_list("n-depth", pst_cli_text(a, "n-depth"), 0, 1 << 20, l.depth, &l.n_depth, err);
  if (!code) code = parse_list("n-seq", pst_cli_text(a, "n-seq"), 1, 256, l.seq, &l.n_seq, err);
  if (!code) code = parse_list("threads", pst_cli_text(a, "threads"), 0, 64, l.threads, &l.n_threads, err);
  if (!code && strcmp(pst_cli_text(a, "kv"), "f16") != 0 && strcmp(pst_cli_text(a, "kv"), "q8_0") != 0)
    code = pst_error_set(err, PST_E_BAD_INPUT, "kv", "--kv takes f16 or q8_0");
  bool any = false;
  for (int i = 0; !code && i < l.n_prompt; i++) any |= l.prompt[i] > 0;
  for (int i = 0; !code && i < l.n_gen; i++) any |= l.gen[i] > 0;
  if (!code && !any)
    code = pst_error_set(err, PST_E_BAD_INPUT, "bench", "nothing to measure: --n-prompt and --n-gen are 0");
  if (!code) code = pst_cli_model_open(a, a->words[0], 0, &model, err);
  int n_seq = 1;
  for (int i = 0; i < l.n_seq && !code; i++) n_seq = PST_MAX(n_seq, l.seq[i]);
  if (!code) code = open_adapters(model, a, n_seq, &adapters, err);
  if (!code) {
    if (o.json) {
      o.w = pst_json_writer_on(&o.text, true);
      pst_json_begin_array(&o.w);
    } else {
      printf("%-12s %-8s %7s %5s  %-14s %10s   (kernels: %s)\n", "model", "weights", "threads", "n_seq", "test",
             "tokens/s", pst_engine_model_get_info(model)->isa);
    }
    code = run_all(model, &l, &adapters, a, &o, err);
  }
  if (!code && o.json) {
    pst_json_end_array(&o.w);
    if (!(code = pst_buf_status(&o.text))) puts(o.text.data);
  }
  free_adapters(&adapters);
  pst_engine_model_unref(model);
  pst_buf_done(&o.text);
  return code;
}

static const pst_cli_option options[] = {
    {"n-prompt", 'p', PST_CLI_TEXT, "N,..", "512", 0, 0, false, "prompt tokens to read"},
    {"n-gen", 'n', PST_CLI_TEXT, "N,..", "128", 0, 0, false, "tokens to generate"},
    {"n-depth", 'd', PST_CLI_TEXT, "N,..", "0", 0, 0, false, "tokens in the context beforehand"},
    {"n-seq", 'b', PST_CLI_TEXT, "N,..", "1", 0, 0, false, "sequences at once"},
    {"threads", 't', PST_CLI_TEXT, "N,..", "0", 0, 0, false, "threads (0: all)"},
    {"repetitions", 'r', PST_CLI_INT, "N", "5", 1, 1000, false, "repetitions of each test"},
    {"ubatch", 'u', PST_CLI_INT, "N", "512", 16, 2048, false, "prompt tokens in one step"},
    {"kv", 0, PST_CLI_TEXT, "TYPE", "f16", 0, 0, false, "type of keys and values: f16 or q8_0"},
    {"adapter", 0, PST_CLI_TEXT, "PATH,..", NULL, 0, 0, false, "LoRA adapters, which the sequences take in turn"},
    {"lora-rank", 0, PST_CLI_INT, "R", "0", 0, 256, false, "a random adapter of this rank for each sequence"},
    {"no-warmup", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "skip the unmeasured first run"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_bench = {
    "bench",
    "MODEL",
    "measure prompt and decode speed",
    "MODEL is a pulled model's name or a GGUF file. Rows: ppN reads N prompt tokens, tgN generates N.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_bench};
