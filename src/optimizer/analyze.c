/* EXPLAIN ANALYZE: measures what the evidence estimates. First the beginning of the workload's trace in real time, at the load the evidence's latencies are
 * of: open loop, a request is sent when it arrives whether or not those before it were answered, as users do. Then flat out: so many calls in flight that no
 * slot ever waits, which gives the throughput that cost stands on. */
#include <penstock/optimizer.h>

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

enum { MOST_CALLS = 4096, WARM_CALLS = 4 };

typedef struct player player;
typedef struct played {
  player *owner;
  size_t item;
  double at_s; /* since the start */
  pst_buf text;
  bool done;
  int code;
  int64_t ttft_us, total_us, prompt, cached, completion, steps, cost_nusd;
} played;

struct player {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  size_t n_open;
};

static void on_event(void *user, const pst_gateway_event *e) {
  played *p = user;
  pst_buf_append_str(&p->text, e->text);
  if (!e->last) return;
  p->code = e->error ? e->error->code : 0;
  p->ttft_us = e->ttft_us;
  p->total_us = e->total_us;
  p->prompt = e->prompt_tokens;
  p->cached = e->cached_tokens;
  p->completion = e->completion_tokens;
  p->steps = e->n_token_steps;
  p->cost_nusd = e->cost_nusd;
  pthread_mutex_lock(&p->owner->lock);
  p->done = true;
  p->owner->n_open--;
  pthread_cond_signal(&p->owner->changed);
  pthread_mutex_unlock(&p->owner->lock);
}

static int submit(pst_gateway *g, const pst_evals_info *info, pst_gateway_plan *plan, played *p, pst_error *err) {
  const pst_evals_item *item = &info->items[p->item];
  pst_gateway_call call;
  memset(&call, 0, sizeof call);
  call.kind = PST_GATEWAY_CHAT;
  call.purpose = PST_STORE_PURPOSE_SEARCH;
  call.plan = plan;
  call.chat = &item->chat;
  call.n = 1;
  call.stream = true; /* else the first text comes with the last */
  call.set.n_logprobs = -1;
  call.exclude_examples = &item->id;
  call.n_exclude = 1;
  call.callback = on_event;
  call.user = p;
  pthread_mutex_lock(&p->owner->lock);
  p->owner->n_open++;
  pthread_mutex_unlock(&p->owner->lock);
  uint64_t id;
  int code = pst_gateway_chat(g, &call, &id, err);
  if (!code) return 0;
  pthread_mutex_lock(&p->owner->lock);
  p->owner->n_open--;
  p->code = code;
  pthread_mutex_unlock(&p->owner->lock);
  return code == PST_E_BUSY ? 0 : code; /* a full queue is a finding, not a failure */
}

static void wait_all(player *o) {
  pthread_mutex_lock(&o->lock);
  while (o->n_open) pthread_cond_wait(&o->changed, &o->lock);
  pthread_mutex_unlock(&o->lock);
}

static void sleep_until(int64_t at_us) {
  for (int64_t left; (left = at_us - pst_clock_us()) > 0;) {
    struct timespec t = {left / 1000000, (left % 1000000) * 1000};
    (void)nanosleep(&t, NULL);
  }
}

/* Arrivals of the trace from its `from`th on, at `load` requests a second for at most `seconds`; without a trace, Poisson over the search items, each once before
 * any comes again: a prompt asked twice is found in the prefix cache, and users do not repeat each other. Returns how many. */
static size_t arrivals(const pst_evals_info *info, double load, double seconds, size_t from, size_t most, uint64_t seed,
                       played *ret) {
  size_t n = 0, n_search = 0;
  for (size_t i = 0; i < info->n_items; i++) n_search += info->items[i].part == PST_EVALS_SEARCH;
  bool trace = info->n_trace >= 16;
  int64_t span = trace ? PST_MAX(info->trace[info->n_trace - 1].arrival_us - info->trace[0].arrival_us, 1) : 1;
  double stretch = trace ? (double)info->n_trace / ((double)span / 1e6) / load : 1, now = 0;
  for (size_t i = 0; n < most && (!trace || i < info->n_trace) && (trace || n_search); i++) {
    played p = {.item = trace ? info->trace[(from + i) % info->n_trace].item : 0};
    p.at_s = trace ? (double)(info->trace[i].arrival_us - info->trace[0].arrival_us) / 1e6 * stretch : now;
    now += -log(1 - pst_random_unit(seed, 0x616e, i)) / load;
    if (p.at_s > seconds) break;
    size_t pick = trace ? 0 : (from + i) % n_search;
    for (size_t k = 0; !trace && k < info->n_items; k++)
      if (info->items[k].part == PST_EVALS_SEARCH && pick-- == 0) {
        p.item = k;
        break;
      }
    ret[n++] = p;
  }
  return n;
}

/* What the evidence says of the plan, as far as it is needed here. */
typedef struct expected {
  double load, capacity, saturated, nusd_per_hour;
} expected;

typedef struct measured {
  size_t n, n_saturated;
  double load, seconds, saturated;
  bool remote;
} measured;

typedef struct sums {
  double ttft[MOST_CALLS], total[MOST_CALLS];
  double prompt, cached, completion, decode_us, decoded, cost;
  int64_t n, n_graded, n_timed, n_failed, n_accepted;
} sums;

/* timed: latencies count too, not only the answers. learned: the plan's classifier was trained on the examples, so its answers to them say nothing. */
static int add_up(const pst_evals_workload *workload, const played *calls, size_t n, bool timed, bool learned, sums *s,
                  pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(workload);
  int code = 0;
  for (size_t i = 0; i < n && !code; i++) {
    const played *p = &calls[i];
    pst_evals_grade grade = {false, 0};
    if (p->code || !p->done) {
      s->n_failed++;
      continue;
    }
    code = pst_evals_grade_answer(workload, &info->items[p->item], pst_buf_str(&p->text), &grade, err);
    s->n++;
    if (!learned || info->items[p->item].part != PST_EVALS_EXAMPLES) {
      s->n_graded++;
      s->n_accepted += grade.accepted;
    }
    s->prompt += (double)p->prompt;
    s->cached += (double)p->cached;
    s->completion += (double)p->completion;
    s->cost += (double)p->cost_nusd;
    if (!timed) continue;
    s->ttft[s->n_timed] = (double)p->ttft_us / 1e3;
    s->total[s->n_timed++] = (double)p->total_us / 1e3;
    if (p->steps > 1) { /* a remote does not say, and an answer that took one step has no pace */
      s->decode_us += (double)(p->total_us - p->ttft_us);
      s->decoded += (double)p->completion * (double)(p->steps - 1) / (double)p->steps;
    }
  }
  return code;
}

static int write_measured(sums *s, const measured *m, const expected *x, pst_buf *out, pst_error *err) {
  double n = (double)PST_MAX(s->n, 1);
  pst_evals_interval q = pst_evals_wilson(s->n_accepted, s->n_graded + s->n_failed, 0.95);
  double capacity = x->saturated > 0 ? x->capacity * m->saturated / x->saturated : NAN;
  double request = m->remote ? s->cost / n : capacity > 0 ? x->nusd_per_hour / 3600 / capacity : NAN;
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_double(&w, "n", (double)m->n);
  pst_json_member_double(&w, "n_saturated", (double)m->n_saturated);
  pst_json_member_double(&w, "failed", (double)s->n_failed);
  pst_json_member_double(&w, "seconds", m->seconds);
  pst_json_member_double(&w, "load_rps", m->load);
  pst_json_member_double(&w, "saturated_rps", m->saturated);
  pst_json_member_double(&w, "capacity_rps", capacity);
  pst_json_key(&w, "quality");
  pst_json_begin_array(&w);
  pst_json_put_double(&w, q.estimate);
  pst_json_put_double(&w, q.low);
  pst_json_put_double(&w, q.high);
  pst_json_end_array(&w);
  pst_json_member_double(&w, "nusd_per_1000_accepted", s->n_accepted ? 1000 * request / q.estimate : NAN);
  pst_json_member_double(&w, "ttft_p50_ms", pst_evals_quantile(s->ttft, (size_t)s->n_timed, 0.5));
  pst_json_member_double(&w, "ttft_p95_ms", pst_evals_quantile(s->ttft, (size_t)s->n_timed, 0.95));
  pst_json_member_double(&w, "total_p50_ms", pst_evals_quantile(s->total, (size_t)s->n_timed, 0.5));
  pst_json_member_double(&w, "total_p95_ms", pst_evals_quantile(s->total, (size_t)s->n_timed, 0.95));
  pst_json_member_double(&w, "tokens_per_second", s->decode_us > 0 ? s->decoded / s->decode_us * 1e6 : NAN);
  pst_json_member_double(&w, "prompt_tokens", s->prompt / n);
  pst_json_member_double(&w, "cached_tokens", s->cached / n);
  pst_json_member_double(&w, "completion_tokens", s->completion / n);
  pst_json_end_object(&w);
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for what was measured") : 0;
}

/* Calls in flight kept at `depth` for `seconds`; *ret_rate: answers per second of that time. */
static int saturate(pst_gateway *g, const pst_evals_info *info, pst_gateway_plan *plan, played *calls, size_t n,
                    int depth, double seconds, pst_progress *progress, double *ret_rate, size_t *ret_sent,
                    pst_error *err) {
  player *owner = calls[0].owner;
  int64_t start = pst_clock_us(), end = start + (int64_t)(seconds * 1e6);
  int64_t before = progress->done_count;
  size_t sent = 0;
  int code = 0;
  while (sent < n && pst_clock_us() < end && !code) {
    pthread_mutex_lock(&owner->lock);
    while (owner->n_open >= (size_t)depth) pthread_cond_wait(&owner->changed, &owner->lock);
    pthread_mutex_unlock(&owner->lock);
    calls[sent].owner = owner;
    code = submit(g, info, plan, &calls[sent++], err);
    pst_progress_update(progress, before + (pst_clock_us() - start) / 1000000);
  }
  pthread_mutex_lock(&owner->lock); /* half-done work at the end stands for the slow filling at the beginning */
  size_t finished = sent - owner->n_open;
  int64_t now = pst_clock_us();
  pthread_mutex_unlock(&owner->lock);
  wait_all(owner);
  *ret_rate = (double)finished / PST_MAX((double)(now - start) / 1e6, 1e-3);
  *ret_sent = sent;
  return code;
}

static int warm_up(pst_gateway *g, const pst_evals_info *info, pst_gateway_plan *plan, const played *calls, size_t n,
                   player *owner, pst_error *err) {
  played warm[WARM_CALLS] = {{0}};
  int code = pst_gateway_prepare(g, plan, NULL, err);
  for (size_t i = 0; i < WARM_CALLS && i < n && !code;
       i++) { /* the declared state: shared prefix cached, pages touched */
    warm[i].owner = owner;
    warm[i].item = calls[n - 1 - i].item;
    code = submit(g, info, plan, &warm[i], err);
  }
  wait_all(owner);
  for (size_t i = 0; i < WARM_CALLS; i++) pst_buf_done(&warm[i].text);
  return code;
}

static int play(pst_gateway *g, const pst_evals_info *info, pst_gateway_plan *plan, played *calls, size_t n,
                pst_progress *progress, player *owner, pst_error *err) {
  int code = 0;
  int64_t start = pst_clock_us();
  for (size_t i = 0; i < n && !code; i++) {
    sleep_until(start + (int64_t)(calls[i].at_s * 1e6));
    calls[i].owner = owner;
    code = submit(g, info, plan, &calls[i], err);
    pst_progress_update(progress, (pst_clock_us() - start) / 1000000);
  }
  wait_all(owner);
  return code;
}

static int read_expected(const char *evidence, expected *ret, pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(evidence, strlen(evidence), "evidence", &doc, err);
  if (code) return code;
  const pst_json *root = pst_json_root(doc), *e = pst_json_get(pst_json_get(root, "plan"), "estimate");
  ret->load = pst_json_double(pst_json_get(e, "load_rps"), 0);
  ret->capacity = pst_json_double(pst_json_get(e, "capacity_rps"), 0);
  ret->saturated = pst_json_double(pst_json_get(e, "saturated_rps"), 0);
  ret->nusd_per_hour = pst_json_double(pst_json_get(pst_json_get(root, "machine"), "nusd_per_hour"), 0);
  pst_json_free(doc);
  return 0;
}

static int measure_all(pst_gateway *gateway, const pst_evals_workload *workload, pst_gateway_plan *plan,
                       const expected *x, const pst_optimizer_analyze_options *o, played *calls, sums *s, pst_buf *out,
                       pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(workload);
  bool remote = pst_gateway_plan_has(plan, PST_GATEWAY_OP_REMOTE);
  bool learned = pst_gateway_plan_has(plan, PST_GATEWAY_OP_CLASSIFIER);
  double seconds = o->seconds > 0 ? o->seconds : 30;
  measured m = {.load = x->load > 0 && !remote ? x->load : 1, .remote = remote};
  size_t most = o->max_items ? PST_MIN(o->max_items, (size_t)MOST_CALLS / 2) : MOST_CALLS / 2;
  m.n = arrivals(info, m.load, seconds * 2 / 3, 0, most, o->seed, calls);
  if (m.n < 8)
    return pst_error_set(err, PST_E_NO_DATA, "seconds",
                         "only %zu requests arrive in %.0f s at %.2f a second: give it longer", m.n, seconds * 2 / 3,
                         m.load);
  player owner = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
  pst_progress progress;
  int64_t start = pst_clock_us();
  int code = warm_up(gateway, info, plan, calls, m.n, &owner, err);
  pst_progress_begin_timed(&progress, "play the trace", (int64_t)seconds, o->quiet);
  if (!code) code = play(gateway, info, plan, calls, m.n, &progress, &owner, err);
  if (!code) code = add_up(workload, calls, m.n, true, learned, s, err);
  if (!code && !remote) {
    played *more = calls + m.n;
    size_t n_more = arrivals(info, 1, 1e9, m.n, MOST_CALLS - m.n, o->seed + 1, more);
    int slots = plan->n_engines ? plan->engines[0].options.slots : 8;
    more[0].owner = &owner;
    pst_progress_note(&progress, "flat out");
    code = saturate(gateway, info, plan, more, n_more, 2 * slots, seconds / 3, &progress, &m.saturated, &m.n_saturated,
                    err);
    if (!code) code = add_up(workload, more, m.n_saturated, false, learned, s, err);
  }
  pst_progress_end(&progress);
  m.seconds = (double)(pst_clock_us() - start) / 1e6;
  if (!code) code = write_measured(s, &m, x, out, err);
  for (size_t i = 0; i < m.n + m.n_saturated; i++) pst_buf_done(&calls[i].text);
  return code;
}

int pst_optimizer_analyze(pst_gateway *gateway, const pst_evals_workload *workload, pst_gateway_plan *plan,
                          const char *evidence, const pst_optimizer_analyze_options *o, pst_buf *out, pst_error *err) {
  expected x = {0, 0, 0, 0};
  played *calls = pst_calloc(MOST_CALLS, sizeof *calls);
  sums *s = pst_calloc(1, sizeof *s);
  int code = calls && s ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory to play a trace");
  if (!code) code = read_expected(evidence, &x, err);
  if (!code) code = measure_all(gateway, workload, plan, &x, o, calls, s, out, err);
  pst_free(calls);
  pst_free(s);
  return code;
}
