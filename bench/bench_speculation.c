/* Decoding with speculation against decoding without, over requests of one workload, interleaved; bench/compare_speculation.py makes the requests and reads
 * the result.
 *
 *     bench_speculation MODEL.gguf PAIRS THREADS MAX_TOKENS [DRAFT.gguf] <requests
 *
 * stdin: JSON lines {"prompt": TEXT, "past": BOOL, "temperature": NUMBER}. The answers to the past ones, decoded without drafts first, become the corpus. The others are asked one at a time,
 * each in every mode one after the other (with a draft model in one more), the order turning, so that a noisy machine hits all alike. An answer ends with its line. stdout: one JSON object;
 * times are those from an answer's first token to its last. It fails when a mode gives other tokens. Without arguments (make bench) it says so and ends. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <penstock/engine.h>

enum { MODES = 4, MOST_TOKENS = 512 };
static const char *const mode_names[MODES] = {"none", "lookup", "answers", "model"};

typedef struct request {
  pst_engine_tokens prompt;
  bool past;
  float temperature;
} request;

typedef struct answer {
  pthread_mutex_t lock;
  pthread_cond_t ended;
  int32_t tokens[MOST_TOKENS];
  int n, n_steps, n_drafted, n_accepted;
  int64_t decode_us;
  bool done;
} answer;

typedef struct sums {
  int64_t us, tokens, steps, drafted, accepted;
} sums;

static void die(const pst_error *err) {
  fprintf(stderr, "bench_speculation: %s: %s\n", err->place, err->message);
  exit(1);
}

static void on_event(void *user, const pst_engine_event *e) {
  answer *a = user;
  pthread_mutex_lock(&a->lock);
  if (e->token >= 0 && a->n < MOST_TOKENS) a->tokens[a->n++] = e->token;
  if (e->finish != PST_ENGINE_FINISH_NONE) {
    a->decode_us = e->total_us - e->first_token_us;
    a->n_steps = e->n_token_steps;
    a->n_drafted = e->n_drafted;
    a->n_accepted = e->n_accepted;
    a->done = true;
    pthread_cond_signal(&a->ended);
  }
  pthread_mutex_unlock(&a->lock);
}

static void ask(pst_engine *engine, const request *r, int max_tokens, int mode, pst_engine_corpus *corpus, answer *a) {
  pst_error err = PST_ERROR_INIT;
  const pst_str stop = PST_STR("\n");
  uint64_t id;
  *a = (answer){.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};
  pst_engine_request q = {.prompt = r->prompt.ids,
                          .n_prompt = r->prompt.n,
                          .max_tokens = max_tokens,
                          .sampling = pst_engine_sampling_default(),
                          .stop = &stop,
                          .n_stop = 1,
                          .speculation = (pst_engine_speculation)mode,
                          .corpus = corpus,
                          .n_logprobs = -1,
                          .callback = on_event,
                          .user = a};
  q.sampling.temperature = r->temperature;
  q.sampling.seed = 1;
  if (pst_engine_submit(engine, &q, &id, &err)) die(&err);
  pthread_mutex_lock(&a->lock);
  while (!a->done) pthread_cond_wait(&a->ended, &a->lock);
  pthread_mutex_unlock(&a->lock);
}

static request *read_requests(const pst_engine_model *model, size_t *ret_n) {
  pst_error err = PST_ERROR_INIT;
  request *requests = NULL;
  size_t n = 0, capacity = 0, size = 0;
  char *line = NULL;
  for (ssize_t length; (length = getline(&line, &size, stdin)) > 0; n++) {
    pst_json_doc *doc = NULL;
    if (pst_array_reserve((void **)&requests, &capacity, n + 1, sizeof *requests)) exit(1);
    requests[n] = (request){.past = false};
    if (pst_json_parse(line, (size_t)length, "stdin", &doc, &err)) die(&err);
    const pst_json *root = pst_json_root(doc);
    requests[n].past = pst_json_bool(pst_json_get(root, "past"), false);
    requests[n].temperature = (float)pst_json_double(pst_json_get(root, "temperature"), 0);
    if (pst_engine_tokenize(model, pst_json_str(pst_json_get(root, "prompt")), false, true, &requests[n].prompt, &err))
      die(&err);
    pst_json_free(doc);
  }
  free(line);
  *ret_n = n;
  return requests;
}

static pst_engine_corpus *past_answers(pst_engine *engine, const request *requests, size_t n, int max_tokens) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_corpus *corpus = NULL;
  pst_engine_tokens all = {0};
  size_t *lengths = pst_calloc(n + 1, sizeof *lengths), n_answers = 0;
  answer a;
  if (!lengths) exit(1);
  for (size_t i = 0; i < n; i++) {
    if (!requests[i].past) continue;
    ask(engine, &requests[i], max_tokens, PST_ENGINE_SPEC_NONE, NULL, &a);
    if (pst_array_reserve((void **)&all.ids, &all.capacity, all.n + (size_t)a.n + 1, sizeof *all.ids)) exit(1);
    memcpy(all.ids + all.n, a.tokens, (size_t)a.n * sizeof *a.tokens);
    all.n += (size_t)a.n;
    lengths[n_answers++] = (size_t)a.n;
  }
  int64_t start = pst_clock_us();
  if (pst_engine_corpus_create(all.ids, lengths, n_answers, &corpus, &err)) die(&err);
  printf("{\"corpus_answers\": %zu, \"corpus_tokens\": %zu, \"corpus_bytes\": %zu, \"corpus_us\": %lld, ", n_answers,
         all.n, pst_engine_corpus_bytes(corpus), (long long)(pst_clock_us() - start));
  pst_engine_tokens_done(&all);
  pst_free(lengths);
  return corpus;
}

/* Every request once in every mode. */
static void one_pair(pst_engine *engine, const request *requests, size_t n, int max_tokens, pst_engine_corpus *corpus,
                     int n_modes, int turn, sums ret[MODES]) {
  answer answers[MODES];
  for (size_t i = 0; i < n; i++) {
    if (requests[i].past) continue;
    for (int k = 0; k < n_modes; k++) {
      int mode = (turn + (int)(i % (size_t)n_modes) + k) % n_modes;
      ask(engine, &requests[i], max_tokens, mode, corpus, &answers[mode]);
      ret[mode].us += answers[mode].decode_us;
      ret[mode].tokens += PST_MAX(answers[mode].n - 1, 0);
      ret[mode].steps += PST_MAX(answers[mode].n_steps - 1, 0);
      ret[mode].drafted += answers[mode].n_drafted;
      ret[mode].accepted += answers[mode].n_accepted;
    }
    for (int mode = 1; mode < n_modes; mode++)
      if (answers[mode].n != answers[0].n ||
          memcmp(answers[mode].tokens, answers[0].tokens, (size_t)answers[0].n * sizeof(int32_t)) != 0) {
        fprintf(stderr, "bench_speculation: request %zu: mode %s gives other tokens\n", i, mode_names[mode]);
        exit(1);
      }
  }
}

int main(int argc, char **argv) {
  if (argc == 1) {
    puts("nothing to do: bench/compare_speculation.py runs it with a model and requests");
    return 0;
  }
  if (argc != 5 && argc != 6) {
    fputs("usage: bench_speculation MODEL.gguf PAIRS THREADS MAX_TOKENS [DRAFT.gguf] <requests\n", stderr);
    return 2;
  }
  int n_modes = argc == 6 ? MODES : MODES - 1, n_pairs = atoi(argv[2]),
      max_tokens = PST_MIN(atoi(argv[4]), MOST_TOKENS);
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  pst_engine_options options = pst_engine_options_default();
  options.threads = atoi(argv[3]);
  if (argc == 6 && pst_engine_model_open(argv[5], 0, &options.draft, &err)) die(&err);
  if (pst_engine_model_open(argv[1], 0, &model, &err) || pst_engine_create(model, &options, &engine, &err)) die(&err);
  size_t n = 0;
  request *requests = read_requests(model, &n);
  pst_engine_corpus *corpus = past_answers(engine, requests, n, max_tokens);
  printf("\"isa\": \"%s\", \"pairs\": [", pst_engine_model_get_info(model)->isa);
  for (int pair = 0; pair < n_pairs; pair++) {
    sums s[MODES] = {{0}};
    one_pair(engine, requests, n, max_tokens, corpus, n_modes, pair, s);
    printf("%s{", pair ? ", " : "");
    for (int m = 0; m < n_modes; m++)
      printf("%s\"%s\": {\"us\": %lld, \"tokens\": %lld, \"steps\": %lld, \"drafted\": %lld, \"accepted\": %lld}",
             m ? ", " : "", mode_names[m], (long long)s[m].us, (long long)s[m].tokens, (long long)s[m].steps,
             (long long)s[m].drafted, (long long)s[m].accepted);
    printf("}");
  }
  puts("]}");
  for (size_t i = 0; i < n; i++) pst_engine_tokens_done(&requests[i].prompt);
  pst_free(requests);
  pst_engine_free(engine);
  pst_engine_corpus_unref(corpus);
  pst_engine_model_unref(model);
  pst_engine_model_unref(options.draft);
  return 0;
}
