/* A teacher's answers: another model, here or at a provider, is asked what users asked, and what it says may be learned.
 *
 * It is asked through the gateway as evals ask a target, so that prices and what may leave this machine hold here too. A few threads each wait for one answer at a time. The books are
 * a run of kind "teacher" with a row for each call, without texts. What was said is kept by question until training has come to its end, so that a tune that was interrupted does
 * not pay twice, and no longer: nothing says whose question it answers, so the deletion of any record forgets all of it. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include <penstock/wire.h>

#include "flywheel/tuning.h"

enum {
  AT_ONCE = 8,
  REFUSED_MOST = 2 * AT_ONCE /* in a row, and it will not do the next either */,
  BUSY_TRIES = 60,
  BUSY_PAUSE_MS = 500
};

typedef struct asking {
  pst_gateway *gateway;
  pst_store *store;
  const pst_evals_workload *workload;
  const pst_evals_info *info;
  const pst_flywheel_tune_options *options;
  pst_gateway_plan *plan;
  const pst_evals_item **item_of; /* [n_labels]: whose right answer the label is; NULL: nobody's */
  int64_t run;                    /* the books */
  int64_t key_id;                 /* account that pays for it; 0: none */
  pst_flywheel_question *questions;
  size_t n;
  atomic_size_t next;
  atomic_int n_flying;  /* calls */
  pthread_mutex_t lock; /* of all below */
  pst_arena *arena;
  pst_flywheel_taught taught;
  int n_refused;   /* calls in a row that the provider did not answer */
  pst_error first; /* failure, or that which stops it; code 0: none */
  bool stop;       /* it would fail for every question, or somebody wants the end */
} asking;

/* ---- what will do ---- */

/* The items whose right answers the labels are. */
static int find_items(asking *a, pst_error *err) {
  a->item_of = pst_arena_calloc(a->arena, a->info->n_labels + 1, sizeof *a->item_of);
  if (!a->item_of) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the labels");
  for (size_t i = 0; i < a->info->n_labels; i++)
    for (size_t k = 0; k < a->info->n_items && !a->item_of[i]; k++)
      if (pst_str_equal(a->info->items[k].expected, a->info->labels[i])) a->item_of[i] = &a->info->items[k];
  return 0;
}

/* The one label that the grader finds in it. */
static int find_label(const asking *a, pst_str said, pst_str *ret, pst_error *err) {
  for (size_t i = 0; i < a->info->n_labels; i++) {
    pst_evals_grade grade;
    if (!a->item_of[i]) continue;
    int code = pst_evals_grade_answer(a->workload, a->item_of[i], said, &grade, err);
    if (code) return code;
    if (grade.accepted) *ret = a->info->labels[i];
  }
  return 0;
}

/* The answer as it may be learned: a label, JSON, or the text. data NULL: it will not do. */
static int read_answer(const asking *a, pst_str said, pst_str *ret, pst_error *err) {
  pst_json_doc *doc = NULL;
  *ret = (pst_str){NULL, 0};
  if (a->info->n_labels) return find_label(a, said, ret, err);
  said = pst_str_trim(said);
  bool json = a->info->grader == PST_EVALS_JSON;
  if (said.n && (!json || !pst_json_parse(said.data, said.n, "answer", &doc, NULL))) *ret = said;
  pst_json_free(doc);
  return 0;
}

/* ---- one question ---- */

static void pause_ms(long ms) {
  const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  (void)nanosleep(&t, NULL);
}

static bool is_wanted(const asking *a) {
  const pst_tune_options *t = &a->options->tune.training;
  return !t->cancelled || !t->cancelled(t->user);
}

static int call(asking *a, pst_str messages, pst_buf *out, pst_gateway_event *ret_last, pst_error *err) {
  pst_wire_request request = {0};
  pst_error why = PST_ERROR_INIT;
  char id[64];
  pst_buf body = PST_BUF_INIT;
  pst_buf_printf(&body, "{\"model\":\"teacher\",\"messages\":%.*s}", (int)messages.n, messages.data);
  int code = pst_buf_status(&body) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a question")
                                   : pst_wire_request_parse(PST_WIRE_CHAT, pst_buf_str(&body), &request, err);
  const pst_gateway_call c = {.kind = PST_GATEWAY_CHAT,
                              .purpose = PST_STORE_PURPOSE_TEACHER,
                              .key_id = a->key_id,
                              .providers_only = true,
                              .plan = a->plan,
                              .chat = &request.chat,
                              .n = 1,
                              .set = {.n_logprobs = -1}};
  for (int busy = 0; !code;) {
    pst_buf_clear(out);
    bool alone = atomic_fetch_add(&a->n_flying, 1) == 0;
    code = pst_gateway_chat_wait(a->gateway, &c, out, ret_last, id, &why);
    atomic_fetch_sub(&a->n_flying, 1);
    /* What the others reserved they will not need all of. */
    bool again = (code == PST_E_BUSY && ++busy < BUSY_TRIES) || (!alone && pst_store_run_refused(&why));
    if (!again || !is_wanted(a)) break;
    code = 0;
    why = (pst_error)PST_ERROR_INIT;
    pause_ms(BUSY_PAUSE_MS);
  }
  if (why.code && err) *err = why;
  pst_wire_request_done(&request);
  pst_buf_done(&body);
  return code;
}

/* What will fail for every question. */
static bool is_fatal(int code) {
  return code == PST_E_NOMEM || code == PST_E_NOT_FOUND || code == PST_E_UNSUPPORTED || code == PST_E_CORRUPT ||
         code == PST_E_DENIED || code == PST_E_BUDGET || code == PST_E_NO_SPACE || code == PST_E_INTERNAL;
}

/* Where answers wait until training is over. */
static pst_str scope_of(const asking *a, char out[96]) {
  return (pst_str){out, (size_t)snprintf(out, 96, PST_STORE_SCOPE_TEACHER "%.80s", a->info->name)};
}

static int book(const asking *a, const char *key, const pst_gateway_event *e, pst_error *err) {
  pst_buf row = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&row, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "prompt_tokens", e->prompt_tokens);
  pst_json_member_int(&w, "completion_tokens", e->completion_tokens);
  pst_json_member_int(&w, "total_us", e->total_us);
  pst_json_member_int(&w, "cost_nusd", e->cost_nusd);
  pst_json_end_object(&w);
  int code = pst_buf_status(&row)
                 ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the books")
                 : pst_store_run_append(a->store, a->run, pst_str_from(key), pst_buf_str(&row), false, err);
  pst_buf_done(&row);
  return code;
}

static int ask(asking *a, pst_flywheel_question *q, pst_error *err) {
  char key[65], scope[96], *known = NULL;
  pst_gateway_event last = {0};
  pst_buf text = PST_BUF_INIT;
  size_t n = 0;
  pst_str answer = {NULL, 0};
  pst_buf_printf(&text, "%s\n%.*s", a->plan->hash, (int)q->messages.n, q->messages.data);
  pst_sha256_hex(pst_buf_text(&text), text.n, key);
  bool kept = !pst_store_answer_get(a->store, scope_of(a, scope), pst_str_from(key), &known, &n, NULL, NULL);
  pst_buf_clear(&text);
  if (kept) pst_buf_append(&text, known, n);
  pst_free(known);
  pthread_mutex_lock(&a->lock);
  bool leave = !kept && a->taught.n_unasked; /* what is kept is free */
  a->taught.n_unasked += leave;
  pthread_mutex_unlock(&a->lock);
  if (leave) {
    pst_buf_done(&text);
    return 0;
  }
  int code = kept ? 0 : call(a, q->messages, &text, &last, err);
  if (!code && pst_buf_status(&text)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an answer");
  if (!code && !kept) code = book(a, key, &last, err);
  if (!code && !kept)
    code = pst_store_answer_put(a->store, scope_of(a, scope), pst_str_from(key), pst_buf_str(&text), (pst_str){NULL, 0},
                                pst_clock_unix_ms(), err);
  if (!code) code = read_answer(a, pst_buf_str(&text), &answer, err);
  bool good = !code && answer.data;
  pthread_mutex_lock(&a->lock);
  a->taught.n_kept += kept;
  bool refused = code == PST_E_UPSTREAM || code == PST_E_TIMEOUT || code == PST_E_BUSY;
  if (!kept) a->n_refused = refused ? a->n_refused + 1 : 0;
  a->taught.n_usable += good;
  a->taught.nusd += last.cost_nusd;
  const char *copy = good ? pst_arena_strndup(a->arena, answer.data, answer.n) : NULL;
  pthread_mutex_unlock(&a->lock);
  if (good && !copy) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an answer");
  if (copy) q->answer = (pst_str){copy, answer.n};
  pst_buf_done(&text);
  return code;
}

static void *ask_some(void *arg) {
  asking *a = arg;
  bool stop = false;
  for (size_t i; !stop && (i = atomic_fetch_add(&a->next, 1)) < a->n;) {
    pst_error why = PST_ERROR_INIT;
    int code = is_wanted(a) ? ask(a, &a->questions[i], &why)
                            : pst_error_set(&why, PST_E_CANCELLED, NULL, "cancelled; the teacher's answers are kept");
    pthread_mutex_lock(&a->lock);
    bool broke = pst_store_run_refused(&why);
    a->taught.n_unasked += broke;
    bool last = (is_fatal(code) && !broke) || code == PST_E_CANCELLED || (code && a->n_refused >= REFUSED_MOST);
    if (code && (!a->first.code || (last && !a->stop))) a->first = why;
    a->taught.n_failed += code && !broke;
    stop = a->stop = a->stop || last;
    pthread_mutex_unlock(&a->lock);
  }
  return NULL;
}

static int open_books(asking *a, pst_error *err) {
  pst_buf params = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&params, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "plan", a->plan->hash);
  pst_json_member_int(&w, "inputs", (int64_t)a->n);
  pst_json_end_object(&w);
  int code = pst_buf_status(&params) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the books")
                                     : pst_store_run_create(a->store, PST_STR("teacher"), pst_str_from(a->info->name),
                                                            pst_buf_str(&params), pst_clock_unix_ms(), &a->run, err);
  pst_buf_done(&params);
  return code;
}

static int close_books(asking *a, pst_store_run_state state, pst_error *err) {
  pst_buf result = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&result, false);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "known", a->taught.n_kept);
  pst_json_member_int(&w, "usable", a->taught.n_usable);
  pst_json_member_int(&w, "failed", a->taught.n_failed);
  pst_json_member_int(&w, "cost_nusd", a->taught.nusd);
  pst_json_end_object(&w);
  int code = pst_buf_status(&result)
                 ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the books")
                 : pst_store_run_end(a->store, a->run, state, pst_buf_str(&result), pst_clock_unix_ms(), err);
  pst_buf_done(&result);
  return code;
}

static void ask_all(asking *a) {
  pthread_t threads[AT_ONCE];
  size_t n = 0;
  pthread_mutex_init(&a->lock, NULL);
  while (n < PST_MIN(a->n, (size_t)AT_ONCE) && !pthread_create(&threads[n], NULL, ask_some, a)) n++;
  if (!n) (void)ask_some(a);
  for (size_t i = 0; i < n; i++) pthread_join(threads[i], NULL);
  pthread_mutex_destroy(&a->lock);
}

/* Too little came of it for a tune: nothing, or less than half of what is not known from before. That money covers no more is no failure, unless it covered nothing. */
static bool has_failed(const asking *a) {
  const pst_flywheel_taught *t = &a->taught;
  bool nothing = t->n_unasked && !t->n_usable;
  return a->first.code && (a->stop || nothing || 2 * t->n_failed > t->n_asked - t->n_kept - t->n_unasked);
}

static int fail(asking *a, pst_error *err) {
  const pst_flywheel_taught *t = &a->taught;
  if (!a->stop && t->n_failed)
    pst_error_prefix(&a->first,
                     "%lld of %lld calls to the teacher failed (what it answered is kept, and the same command asks "
                     "the others again): ",
                     (long long)t->n_failed, (long long)(t->n_asked - t->n_kept));
  if (err) *err = a->first;
  return a->first.code;
}

int pst_flywheel_teach(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                       const pst_flywheel_tune_options *options, pst_flywheel_question *questions, size_t n,
                       pst_arena *arena, pst_flywheel_taught *ret_taught, pst_error *err) {
  asking a = {.gateway = gateway,
              .store = store,
              .workload = workload,
              .info = pst_evals_workload_info(workload),
              .options = options,
              .questions = questions,
              .n = n,
              .arena = arena,
              .taught = {.n_asked = (int64_t)n},
              .first = PST_ERROR_INIT};
  int code = pst_evals_target_open(gateway, store, workload, options->teacher, &a.plan, err);
  if (code) return code;
  atomic_init(&a.next, 0);
  atomic_init(&a.n_flying, 0);
  if (n) code = find_items(&a, err);
  if (n && !code) code = open_books(&a, err);
  bool pays = n && !code && pst_gateway_plan_has(a.plan, PST_GATEWAY_OP_REMOTE);
  if (pays) a.key_id = options->key_id;
  if (pays && !a.key_id)
    code = pst_store_run_account(store, a.run, options->budget_nusd, pst_clock_unix_ms(), &a.key_id, err);
  if (n && !code) {
    ask_all(&a);
    bool failed = has_failed(&a);
    code = close_books(&a,
                       !failed                           ? PST_STORE_RUN_DONE
                       : a.first.code == PST_E_CANCELLED ? PST_STORE_RUN_CANCELLED
                                                         : PST_STORE_RUN_FAILED,
                       err);
    if (failed) code = fail(&a, err);
  }
  pst_gateway_plan_unref(a.plan);
  if (!code) *ret_taught = a.taught;
  return code;
}

int pst_flywheel_taught_forget(pst_store *store, const pst_evals_workload *workload, pst_error *err) {
  char scope[96];
  const asking a = {.info = pst_evals_workload_info(workload)};
  return pst_store_answer_forget(store, scope_of(&a, scope), INT64_MAX, NULL, err);
}
