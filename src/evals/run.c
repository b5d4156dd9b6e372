/* Runs: a plan is asked a workload's items, through the gateway and no other way.
 *
 * Owns the calls in flight, the grading of what comes back and the run's rows in the store. One thread (the caller's) starts calls, takes
 * finished ones from a queue, grades and stores; the gateway's threads only copy text into a slot and push it. So that a kill loses
 * nothing but what was queued for the disk, and a resume repeats nothing that was finished, each answer is a row under its item's id, and what makes
 * two runs the same (workload, plan, set of items, cache state) is in the run's parameters; the order of the items is not, since no
 * answer depends on it. Wall time is kept as a share in each row, so that it survives too. */
#include "evals/workload.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  REMOTE_CONCURRENCY = 8,
  CONCURRENCY_MAX = 256,
  FAILURES_AT_START = 16, /* all of the first so many failed: the plan does not work here */
  BUSY_TRIES = 60,
  BUSY_PAUSE_MS = 500,
  ANSWER_BYTES_MAX = 4 << 20,
};

typedef struct runner runner;

/* One call in flight. Written by the gateway's threads from start to push, by the runner's otherwise. */
typedef struct slot {
  runner *owner;
  size_t asked; /* index into the answers */
  uint64_t call_id;
  pst_buf text;
  pst_gateway_event last; /* pointers in it void */
  pst_error error;
  int tries;
  bool alone; /* nobody else was in flight when it began */
} slot;

struct runner {
  pst_gateway *gateway;
  int64_t key_id; /* whose budget holds; 0: nobody's */
  pst_store *store;
  const pst_evals_workload *workload;
  pst_gateway_plan *plan;
  const pst_evals_run_options *options;
  pst_evals_run *run;
  slot *slots, **idle;
  int n_slots, n_idle;
  int n_at_once; /* most calls in flight */
  pst_queue *finished;
  uint32_t *by_cluster;    /* items of the examples part, by cluster */
  uint32_t *cluster_start; /* per cluster: its first in by_cluster; one more at the end */
  pst_str *excluded;       /* room for the longest list */
  size_t next;             /* the next asked item to look at */
  int64_t n_done, n_answered;
  int64_t mark_us; /* wall time is counted up to here */
};

/* ---- what a run is: its parameters ---- */

static int compare_ids(const void *a, const void *b) {
  return pst_str_compare((*(const pst_evals_item *const *)a)->id, (*(const pst_evals_item *const *)b)->id);
}

/* The asked items by id; NULL for lack of memory. */
static const pst_evals_item **sort_items(const runner *r) {
  const pst_evals_run_options *o = r->options;
  const pst_evals_item **sorted = pst_calloc(o->n_items + 1, sizeof *sorted);
  if (!sorted) return NULL;
  for (size_t i = 0; i < o->n_items; i++) sorted[i] = &r->workload->info.items[o->items[i]];
  qsort(sorted, o->n_items, sizeof *sorted, compare_ids);
  return sorted;
}

/* What in a plan was made of examples by training: a classifier, or an adapter. NULL: nothing. */
static const char *learned_part(const pst_gateway_node *node) {
  if (node->op == PST_GATEWAY_OP_CLASSIFIER) return "classifier";
  if (node->op == PST_GATEWAY_OP_LOCAL && node->adapter) return "adapter";
  const char *found = NULL;
  for (int i = 0; i < node->n_inputs && !found; i++) found = learned_part(&node->inputs[i]);
  return found;
}

static int check_items(const runner *r, pst_error *err) {
  const pst_evals_run_options *o = r->options;
  const pst_evals_info *info = &r->workload->info;
  for (size_t i = 0; i < o->n_items; i++)
    if (o->items[i] >= info->n_items) return pst_error_set(err, PST_E_INTERNAL, NULL, "an item beyond the workload");
  const char *learned = learned_part(&r->plan->root);
  for (size_t i = 0; i < o->n_items && learned; i++)
    if (info->items[o->items[i]].part == PST_EVALS_EXAMPLES)
      return pst_error_set(err, PST_E_BAD_INPUT, "part",
                           "the plan's %s was trained on the part examples and knows it by heart; ask it items of "
                           "another part",
                           learned);
  const pst_evals_item **sorted = sort_items(r);
  if (!sorted) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a run");
  int code = 0;
  for (size_t i = 1; i < o->n_items && !code; i++)
    if (sorted[i] == sorted[i - 1])
      code = pst_error_set(err, PST_E_INTERNAL, NULL, "an item is asked twice in one run");
  pst_free(sorted);
  return code;
}

static int write_params(const runner *r, pst_buf *out) {
  const pst_evals_run_options *o = r->options;
  const pst_evals_item **sorted = sort_items(r);
  if (!sorted) return PST_E_NOMEM;
  pst_sha256 sha;
  uint8_t digest[32];
  char hex[65];
  bool parts[PST_EVALS_PART_COUNT] = {false};
  pst_sha256_init(&sha);
  for (size_t i = 0; i < o->n_items; i++) {
    pst_sha256_update(&sha, sorted[i]->id.data, sorted[i]->id.n);
    pst_sha256_update(&sha, "", 1);
    parts[sorted[i]->part] = true;
  }
  pst_sha256_done(&sha, digest);
  pst_hex(digest, sizeof digest, hex);
  pst_free(sorted);
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "data", r->workload->items_hash);
  pst_json_member_bool(&w, "exclude_self", o->exclude_self);
  pst_json_member_cstr(&w, "items", hex);
  pst_json_member_int(&w, "n", (int64_t)o->n_items);
  pst_json_key(&w, "parts");
  pst_json_begin_object(&w);
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++)
    if (parts[i]) pst_json_member_cstr(&w, pst_evals_part_name((pst_evals_part)i), r->workload->part_hash[i]);
  pst_json_end_object(&w);
  pst_json_member_cstr(&w, "plan", r->plan->hash);
  pst_json_member_bool(&w, "warm", o->warm);
  pst_json_member_cstr(&w, "workload", r->workload->info.fingerprint);
  pst_json_end_object(&w);
  return pst_buf_status(out);
}

/* ---- answers as rows ---- */

static void write_answer(const runner *r, const pst_evals_answer *a, const pst_error *failure, int64_t wall_us,
                         pst_buf *out) {
  const struct {
    const char *key;
    int64_t value;
  } numbers[] = {
      {"prompt_tokens", a->prompt_tokens},
      {"cached_tokens", a->cached_tokens},
      {"completion_tokens", a->completion_tokens},
      {"ttft_us", a->ttft_us},
      {"total_us", a->total_us},
      {"cost_nusd", a->cost_nusd},
      {"n_stages", a->n_stages},
      {"n_steps", a->n_steps},
      {"n_drafted", a->n_drafted},
      {"n_accepted", a->n_accepted},
      {"wall_us", wall_us},
  };
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "item", r->workload->info.items[a->item].id);
  if (a->done) {
    pst_json_member_bool(&w, "accepted", a->grade.accepted);
    pst_json_member_double(&w, "score", a->grade.score);
    pst_json_member_str(&w, "answer", a->text);
    pst_json_member_double(&w, "margin", a->margin);
  } else {
    pst_json_member_int(&w, "error", a->error_code);
    pst_json_member_cstr(&w, "place", failure->place);
    pst_json_member_cstr(&w, "message", failure->message);
  }
  for (size_t i = 0; i < PST_ARRAY_LEN(numbers); i++) {
    pst_json_member_int(&w, numbers[i].key, numbers[i].value);
  }
  pst_json_end_object(&w);
}

static int64_t member_int(const pst_json *row, const char *key) { return pst_json_int(pst_json_get(row, key), 0); }

static int read_answer(pst_evals_run *run, const pst_json *row, pst_evals_answer *a) {
  pst_str text = pst_json_str(pst_json_get(row, "answer"));
  char *copy = pst_arena_strndup(run->arena, text.data ? text.data : "", text.n);
  if (!copy) return PST_E_NOMEM;
  a->done = pst_json_get(row, "accepted") != NULL;
  a->error_code = (int)member_int(row, "error");
  a->grade.accepted = pst_json_bool(pst_json_get(row, "accepted"), false);
  a->grade.score = pst_json_double(pst_json_get(row, "score"), 0);
  a->text = (pst_str){copy, text.n};
  a->margin = pst_json_double(pst_json_get(row, "margin"), NAN);
  a->prompt_tokens = member_int(row, "prompt_tokens");
  a->cached_tokens = member_int(row, "cached_tokens");
  a->completion_tokens = member_int(row, "completion_tokens");
  a->ttft_us = member_int(row, "ttft_us");
  a->total_us = member_int(row, "total_us");
  a->cost_nusd = member_int(row, "cost_nusd");
  a->n_stages = (int)member_int(row, "n_stages");
  a->n_steps = (int)member_int(row, "n_steps");
  a->n_drafted = (int)member_int(row, "n_drafted");
  a->n_accepted = (int)member_int(row, "n_accepted");
  return 0;
}

static void keep_failure(pst_evals_run *run, int code, const char *place, pst_str message) {
  if (run->first_failure.code) return;
  pst_error_set(&run->first_failure, code ? code : PST_E_INTERNAL, place, "%.*s", (int)PST_MIN(message.n, (size_t)767),
                message.n ? message.data : "");
}

/* ---- taking up a run ---- */

typedef struct asked_id {
  pst_str id;
  size_t asked;
} asked_id;

typedef struct loader {
  runner *r;
  asked_id *ids; /* ascending */
  bool ended;    /* of a run that ended failures stay failures; else they are asked again */
} loader;

static int compare_asked(const void *a, const void *b) {
  return pst_str_compare(((const asked_id *)a)->id, ((const asked_id *)b)->id);
}

static int on_row(void *user, int64_t seq, pst_str key, pst_str json) {
  loader *l = user;
  pst_evals_run *run = l->r->run;
  pst_json_doc *doc = NULL;
  (void)seq;
  (void)key;
  int code = pst_json_parse(json.data, json.n, "a run's row", &doc, NULL);
  if (code) return code == PST_E_NOMEM ? code : PST_E_CORRUPT;
  const pst_json *row = pst_json_root(doc);
  asked_id wanted = {pst_json_str(pst_json_get(row, "item")), 0};
  asked_id *found = bsearch(&wanted, l->ids, run->n, sizeof *l->ids, compare_asked);
  run->wall_us += member_int(row, "wall_us");
  if (found) {
    pst_evals_answer *a = &run->answers[found->asked];
    bool answered = pst_json_get(row, "accepted") != NULL;
    if (!answered && l->ended)
      keep_failure(run, (int)member_int(row, "error"), "", pst_json_str(pst_json_get(row, "message")));
    if (!a->done && (answered || l->ended)) code = read_answer(run, row, a);
  }
  pst_json_free(doc);
  return code;
}

/* Reads the rows that are there. */
static int load_rows(runner *r, bool ended, pst_error *err) {
  pst_evals_run *run = r->run;
  loader l = {r, pst_calloc(run->n + 1, sizeof *l.ids), ended};
  if (!l.ids) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a run");
  for (size_t i = 0; i < run->n; i++) l.ids[i] = (asked_id){r->workload->info.items[run->answers[i].item].id, i};
  qsort(l.ids, run->n, sizeof *l.ids, compare_asked);
  int code = pst_store_run_rows(r->store, run->run_id, 0, on_row, &l, err);
  pst_free(l.ids);
  return code;
}

typedef struct stored_run {
  pst_str params;
  bool same, ended;
} stored_run;

static int on_stored_run(void *user, const pst_store_run *run) {
  stored_run *s = user;
  s->same = pst_str_equal(run->params, s->params);
  s->ended = run->state == PST_STORE_RUN_DONE;
  return 0;
}

/* The run named, the unfinished one, or a new one. */
static int find_run(runner *r, bool *ret_ended, pst_error *err) {
  const pst_evals_run_options *o = r->options;
  pst_str kind = pst_str_from(pst_store_purpose_name(o->purpose)), name = pst_str_from(r->workload->info.name);
  pst_buf params = PST_BUF_INIT;
  int64_t id = o->run_id;
  int code = write_params(r, &params);
  if (code) code = pst_error_set(err, code, NULL, "no memory for a run");
  if (!code && id) {
    stored_run s = {pst_buf_str(&params), false, false};
    code = pst_store_run_get(r->store, id, on_stored_run, &s, err);
    if (!code && !s.same)
      code = pst_error_set(err, PST_E_BAD_INPUT, NULL, "run %lld is of another plan, workload or set of items",
                           (long long)id);
    *ret_ended = s.ended;
  } else if (!code) {
    code = o->resume ? pst_store_run_find(r->store, kind, name, pst_buf_str(&params), PST_STORE_RUN_ACTIVE, &id, NULL)
                     : PST_E_NOT_FOUND;
    if (code == PST_E_NOT_FOUND)
      code = pst_store_run_create(r->store, kind, name, pst_buf_str(&params), pst_clock_unix_ms(), &id, err);
    else if (code)
      code = pst_error_set(err, code, NULL, "cannot look for an unfinished run: %s", pst_error_text(code));
  }
  pst_buf_done(&params);
  r->run->run_id = id;
  return code;
}

/* ---- examples that would give an item's answer away ---- */

/* Sorts the items of the examples part by cluster, so that an item's near-duplicates are one range. */
static int prepare_clusters(runner *r) {
  const pst_evals_info *info = &r->workload->info;
  size_t n_clusters = 0, most = 1;
  for (size_t i = 0; i < info->n_items; i++) n_clusters = PST_MAX(n_clusters, (size_t)info->items[i].cluster + 1);
  r->cluster_start = pst_calloc(n_clusters + 2, sizeof *r->cluster_start);
  r->by_cluster = pst_calloc(info->n_items + 1, sizeof *r->by_cluster);
  if (!r->cluster_start || !r->by_cluster) return PST_E_NOMEM;
  for (size_t i = 0; i < info->n_items; i++)
    if (info->items[i].part == PST_EVALS_EXAMPLES) r->cluster_start[info->items[i].cluster + 2]++;
  for (size_t c = 0; c < n_clusters + 2; c++) most = PST_MAX(most, r->cluster_start[c]);
  for (size_t c = 2; c < n_clusters + 2; c++) r->cluster_start[c] += r->cluster_start[c - 1];
  for (size_t i = 0; i < info->n_items; i++)
    if (info->items[i].part == PST_EVALS_EXAMPLES)
      r->by_cluster[r->cluster_start[info->items[i].cluster + 1]++] = (uint32_t)i;
  r->excluded = pst_calloc(most + 1, sizeof *r->excluded);
  return r->excluded ? 0 : PST_E_NOMEM;
}

/* The ids never shown to this item: its own, and its near-duplicates'. Good until the next call. */
static size_t excluded_for(runner *r, const pst_evals_item *item) {
  size_t n = 0;
  if (!r->options->exclude_self && item->part != PST_EVALS_EXAMPLES) return 0;
  uint32_t from = r->cluster_start[item->cluster], to = r->cluster_start[item->cluster + 1];
  for (uint32_t i = from; i < to; i++) r->excluded[n++] = r->workload->info.items[r->by_cluster[i]].id;
  if (item->part != PST_EVALS_EXAMPLES) r->excluded[n++] = item->id;
  return n;
}

/* ---- calls ---- */

/* On a gateway thread, for each event of a call. */
static void on_event(void *user, const pst_gateway_event *event) {
  slot *s = user;
  if (s->text.n < ANSWER_BYTES_MAX) pst_buf_append_str(&s->text, event->text);
  if (!event->last) return;
  s->last = *event;
  if (event->error)
    s->error = *event->error;
  else if (pst_buf_status(&s->text))
    pst_error_set(&s->error, PST_E_NOMEM, NULL, "no memory for an answer");
  if (pst_queue_push(s->owner->finished, s)) pst_log(PST_LOG_ERROR, "event=eval_answer_lost reason=memory");
}

/* Starts the call of s->asked. An error concerns this item alone or the whole run: see is_fatal. */
static int start_call(runner *r, slot *s, pst_error *err) {
  const pst_evals_item *item = &r->workload->info.items[r->run->answers[s->asked].item];
  pst_buf_clear(&s->text);
  s->error = (pst_error)PST_ERROR_INIT;
  s->call_id = 0;
  pst_gateway_call call = {.kind = PST_GATEWAY_CHAT,
                           .purpose = r->options->purpose,
                           .key_id = r->key_id,
                           .providers_only = true,
                           .plan = r->plan,
                           .chat = &item->chat,
                           .n = 1,
                           .set = {.n_logprobs = -1},
                           .exclude_examples = r->excluded,
                           .n_exclude = excluded_for(r, item),
                           .callback = on_event,
                           .user = s};
  return pst_gateway_chat(r->gateway, &call, &s->call_id, err);
}

/* What will fail for every item. */
static bool is_fatal(int code) {
  switch (code) {
  case PST_E_NOMEM:
  case PST_E_NOT_FOUND:
  case PST_E_UNSUPPORTED:
  case PST_E_CORRUPT:
  case PST_E_DENIED:
  case PST_E_BUDGET:
  case PST_E_NO_SPACE:
  case PST_E_INTERNAL: return true;
  default: return false;
  }
}

static void pause_ms(int ms) {
  struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
  nanosleep(&t, NULL);
}

/* ---- one finished call ---- */

static int keep_answer(runner *r, slot *s, pst_error *err) {
  pst_evals_run *run = r->run;
  pst_evals_answer *a = &run->answers[s->asked];
  const pst_evals_item *item = &r->workload->info.items[a->item];
  const pst_gateway_event *e = &s->last;
  int code = 0;
  a->error_code = s->error.code;
  a->prompt_tokens = e->prompt_tokens;
  a->cached_tokens = e->cached_tokens;
  a->completion_tokens = e->completion_tokens;
  a->ttft_us = e->ttft_us;
  a->total_us = e->total_us;
  a->cost_nusd = e->cost_nusd;
  a->margin = e->margin;
  a->n_stages = e->n_stages;
  a->n_steps = e->n_token_steps;
  a->n_drafted = e->n_drafted;
  a->n_accepted = e->n_accepted;
  if (s->error.code) {
    keep_failure(run, s->error.code, s->error.place, pst_str_from(s->error.message));
  } else {
    a->text = (pst_str){pst_arena_strndup(run->arena, pst_buf_text(&s->text), s->text.n), s->text.n};
    if (!a->text.data) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an answer");
    code = pst_evals_grade_answer(r->workload, item, a->text, &a->grade, err);
    if (code) return code;
    a->done = true;
    r->n_answered++;
  }
  int64_t now = pst_clock_us(), wall_us = now - r->mark_us;
  r->mark_us = now;
  run->wall_us += wall_us;
  pst_buf row = PST_BUF_INIT;
  write_answer(r, a, &s->error, wall_us, &row);
  code = pst_buf_status(&row);
  if (code)
    code = pst_error_set(err, code, NULL, "no memory for an answer");
  else /* a failure is stored without a key, so that a resume can store the answer */
    code = pst_store_run_append(r->store, run->run_id, a->done ? item->id : (pst_str){NULL, 0}, pst_buf_str(&row),
                                false, err);
  pst_buf_done(&row);
  return code;
}

/* Grades and stores, or puts a call aside (*ret_again) that met a full queue, or found the money reserved by others in flight, who will not need all of it: then fewer go at once,
 * until calls succeed again. */
static int finish_call(runner *r, slot *s, int n_others, bool *ret_again, pst_error *err) {
  *ret_again = false;
  if (!s->alone && pst_store_run_refused(&s->error)) {
    r->n_at_once = PST_MAX(PST_MIN(r->n_at_once, n_others), 1);
    *ret_again = true;
    return 0;
  }
  if (!s->error.code) r->n_at_once = PST_MIN(r->n_at_once + 1, r->n_slots);
  if (s->error.code == PST_E_BUSY && s->tries < BUSY_TRIES) {
    s->tries++;
    *ret_again = true;
    return 0;
  }
  s->tries = 0;
  int code = keep_answer(r, s, err);
  if (code) return code;
  r->n_done++;
  if (r->options->progress) pst_progress_update(r->options->progress, r->run->n_reused + r->n_done);
  if (s->error.code && is_fatal(s->error.code)) {
    if (err) *err = s->error;
    return s->error.code;
  }
  if (r->n_answered == 0 && r->run->n_reused == 0 && r->n_done >= FAILURES_AT_START) {
    pst_error_set(err, s->error.code, r->run->first_failure.place, "the first %d calls all failed: %.600s",
                  FAILURES_AT_START, r->run->first_failure.message);
    return s->error.code;
  }
  return 0;
}

/* ---- the loop ---- */

/* The next item without an answer; false when there is none. */
static bool next_item(runner *r, size_t *ret_asked) {
  while (r->next < r->run->n && r->run->answers[r->next].done) r->next++;
  if (r->next >= r->run->n) return false;
  *ret_asked = r->next++;
  return true;
}

/* Starts a call in a slot. *ret_started false: it ended at once, in failure or because everything is busy (then *ret_busy). */
static int start_slot(runner *r, slot *s, bool alone, bool *ret_started, bool *ret_busy, pst_error *err) {
  pst_error own = PST_ERROR_INIT;
  s->alone = alone;
  int code = start_call(r, s, &own);
  *ret_started = code == 0;
  *ret_busy = false;
  if (!code) return 0;
  s->error = own;
  if (!s->error.code) pst_error_set(&s->error, code, NULL, "%s", pst_error_text(code));
  memset(&s->last, 0, sizeof s->last);
  s->last.margin = NAN;
  if (is_fatal(code)) {
    if (err) *err = s->error;
    return code;
  }
  return finish_call(r, s, 0, ret_busy, err);
}

typedef struct loop {
  int n_flying;
  slot *waiting[CONCURRENCY_MAX]; /* met a full queue; tried again after a pause */
  int n_waiting;
  bool stopping;
  int code;
} loop;

static void stop(runner *r, loop *l, int code) {
  if (!l->code) l->code = code;
  l->stopping = true;
  for (int i = 0; i < r->n_slots; i++)
    if (r->slots[i].call_id) pst_gateway_cancel(r->gateway, r->slots[i].call_id);
}

static void start_calls(runner *r, loop *l, pst_error *err) {
  bool busy = false;
  while (!l->stopping && !busy && r->n_idle + l->n_waiting > 0 && l->n_flying < r->n_at_once) {
    slot *s;
    if (l->n_waiting > 0) {
      s = l->waiting[--l->n_waiting];
    } else {
      size_t asked;
      if (!next_item(r, &asked)) return;
      s = r->idle[--r->n_idle];
      s->asked = asked;
    }
    bool started;
    int code = start_slot(r, s, l->n_flying == 0, &started, &busy, err);
    if (started) {
      l->n_flying++;
    } else {
      s->call_id = 0;
      if (busy)
        l->waiting[l->n_waiting++] = s;
      else
        r->idle[r->n_idle++] = s;
    }
    if (code) stop(r, l, code);
  }
}

static int run_loop(runner *r, pst_error *err) {
  loop l = {0};
  for (;;) {
    start_calls(r, &l, err);
    if (!l.n_flying && (l.stopping || !l.n_waiting)) break;
    if (!l.n_flying) pause_ms(BUSY_PAUSE_MS); /* somebody else keeps the queue full */
    slot *s = l.n_flying ? pst_queue_pop(r->finished, 100) : NULL;
    if (s) {
      bool again = false;
      s->call_id = 0;
      l.n_flying--;
      int code = l.stopping ? 0 : finish_call(r, s, l.n_flying, &again, err);
      if (again && !l.stopping)
        l.waiting[l.n_waiting++] = s;
      else
        r->idle[r->n_idle++] = s;
      if (code) stop(r, &l, code);
    }
    if (!l.stopping && r->options->cancelled && r->options->cancelled(r->options->user))
      stop(r, &l, pst_error_set(err, PST_E_CANCELLED, NULL, "stopped; the same command takes it up again"));
  }
  return l.code;
}

/* ---- the whole ---- */

static int concurrency_of(const runner *r) {
  int n = r->options->concurrency;
  for (int i = 0; n <= 0 && i < r->plan->n_engines; i++) n = PST_MAX(n, r->plan->engines[i].options.slots);
  if (r->options->concurrency <= 0 && pst_gateway_plan_has(r->plan, PST_GATEWAY_OP_REMOTE))
    n = PST_MAX(n, REMOTE_CONCURRENCY);
  return PST_MIN(PST_MAX(n, 1), CONCURRENCY_MAX);
}

static int prepare_slots(runner *r) {
  r->n_slots = r->n_at_once = concurrency_of(r);
  r->slots = pst_calloc((size_t)r->n_slots, sizeof *r->slots);
  r->idle = pst_calloc((size_t)r->n_slots, sizeof *r->idle);
  r->finished = pst_queue_create();
  if (!r->slots || !r->idle || !r->finished) return PST_E_NOMEM;
  for (int i = r->n_slots; i-- > 0;) {
    r->slots[i].owner = r;
    r->idle[r->n_idle++] = &r->slots[i];
  }
  return 0;
}

static int prepare_answers(runner *r) {
  pst_evals_run *run = r->run;
  run->n = r->options->n_items;
  run->arena = pst_arena_create();
  if (!run->arena) return PST_E_NOMEM;
  run->answers = pst_arena_calloc(run->arena, run->n + 1, sizeof *run->answers);
  if (!run->answers) return PST_E_NOMEM;
  for (size_t i = 0; i < run->n; i++) run->answers[i] = (pst_evals_answer){.item = r->options->items[i], .margin = NAN};
  return 0;
}

/* The declared cold state. */
static int clear_caches(runner *r, pst_error *err) {
  int code = 0;
  for (int i = 0; i < r->plan->n_engines && !code; i++) {
    pst_engine *engine = NULL;
    code = pst_gateway_engine_acquire(r->gateway, r->plan, i, &engine, err);
    if (code) break;
    pst_engine_clear_prefix_cache(engine);
    pst_gateway_engine_release(r->gateway, engine);
  }
  return code;
}

static void sum_up(pst_evals_run *run) {
  run->n_accepted = run->n_failed = run->cost_nusd = 0;
  for (size_t i = 0; i < run->n; i++) {
    run->n_accepted += run->answers[i].done && run->answers[i].grade.accepted;
    run->n_failed += !run->answers[i].done;
    if (pst_store_nusd_add(run->cost_nusd, run->answers[i].cost_nusd, &run->cost_nusd)) run->cost_nusd = INT64_MAX;
  }
}

/* What was answered up to the first item that was not. */
static void keep_beginning(pst_evals_run *run) {
  size_t n = 0;
  for (const pst_evals_answer *a = run->answers; n < run->n; n++, a++)
    if (!a->done && (!a->error_code || a->error_code == PST_E_BUDGET)) break;
  run->n = n;
  sum_up(run);
}

static int end_run(runner *r, pst_error *err) {
  pst_evals_run *run = r->run;
  pst_buf result = PST_BUF_INIT;
  pst_buf_printf(&result, "{\"n\":%zu,\"accepted\":%lld,\"failed\":%lld,\"wall_us\":%lld,\"cost_nusd\":%lld}", run->n,
                 (long long)run->n_accepted, (long long)run->n_failed, (long long)run->wall_us,
                 (long long)run->cost_nusd);
  int code = pst_buf_status(&result);
  if (!code)
    code = pst_store_run_end(r->store, run->run_id, PST_STORE_RUN_DONE, pst_buf_str(&result), pst_clock_unix_ms(), err);
  pst_buf_done(&result);
  return code;
}

/* Asks what has no answer yet. */
static int ask(runner *r, pst_error *err) {
  pst_error why = PST_ERROR_INIT;
  int code = prepare_slots(r);
  if (!code) code = prepare_clusters(r);
  if (code) return pst_error_set(err, code, NULL, "no memory for a run");
  code = pst_gateway_prepare(r->gateway, r->plan, NULL, err);
  if (!code && !r->options->warm) code = clear_caches(r, err);
  r->mark_us = pst_clock_us();
  if (!code) code = run_loop(r, &why);
  if (code && r->options->or_less && pst_store_run_refused(&why)) {
    keep_beginning(r->run);
    return 0;
  }
  if (code && why.code && err) *err = why;
  if (!code) sum_up(r->run);
  if (!code) code = end_run(r, err);
  return code;
}

static void runner_done(runner *r) {
  for (int i = 0; i < r->n_slots && r->slots; i++) pst_buf_done(&r->slots[i].text);
  pst_free(r->slots);
  pst_free(r->idle);
  pst_free(r->by_cluster);
  pst_free(r->cluster_start);
  pst_free(r->excluded);
  pst_queue_free(r->finished);
}

int pst_evals_run_plan(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                       pst_gateway_plan *plan, const pst_evals_run_options *options, pst_evals_run *ret_run,
                       pst_error *err) {
  pst_evals_run run = {0};
  runner r = {.gateway = gateway, .store = store, .workload = workload, .plan = plan, .options = options, .run = &run};
  r.key_id = pst_gateway_plan_has(plan, PST_GATEWAY_OP_REMOTE) ? options->key_id : 0;
  bool ended = false;
  int code = check_items(&r, err);
  if (!code) code = pst_evals_guard(store, workload, err);
  if (!code && prepare_answers(&r)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a run");
  if (!code) code = find_run(&r, &ended, err);
  if (!code) code = load_rows(&r, ended, err);
  for (size_t i = 0; i < run.n && !code; i++) run.n_reused += run.answers[i].done || ended;
  if (!code && options->progress) pst_progress_update(options->progress, run.n_reused);
  if (!code && !ended) code = ask(&r, err);
  if (!code && ended) sum_up(&run);
  runner_done(&r);
  if (code)
    pst_evals_run_done(&run);
  else
    *ret_run = run;
  return code;
}

void pst_evals_run_done(pst_evals_run *run) {
  if (!run) return;
  pst_arena_free(run->arena);
  *run = (pst_evals_run){0};
}

/* ---- uses of a part ---- */

typedef struct use_count {
  const char *data, *part, *hash; /* of all items; the part's name and hash */
  int64_t n;
} use_count;

static int on_use(void *user, const pst_store_run *run) {
  use_count *c = user;
  pst_json_doc *doc = NULL;
  if (!run->n_rows || pst_json_parse(run->params.data, run->params.n, NULL, &doc, NULL)) return 0;
  const pst_json *params = pst_json_root(doc);
  const pst_json *parts = pst_json_get(params, "parts");
  bool used = pst_str_is(pst_json_str(pst_json_get(parts, c->part)), c->hash);
  if (pst_json_typeof(parts) == PST_JSON_ARRAY && pst_str_is(pst_json_str(pst_json_get(params, "data")), c->data)) {
    pst_json_iter it = pst_json_iterate(parts); /* older runs: of this very file of items */
    while (pst_json_next(&it)) used = used || pst_str_is(pst_json_str(it.value), c->part);
  }
  c->n += used;
  pst_json_free(doc);
  return 0;
}

int pst_evals_uses(pst_store *store, const pst_evals_workload *workload, pst_evals_part part, int64_t *ret_n,
                   pst_error *err) {
  use_count c = {workload->items_hash, pst_evals_part_name(part), workload->part_hash[part], 0};
  static const pst_store_purpose purposes[] = {PST_STORE_PURPOSE_EVAL, PST_STORE_PURPOSE_SEARCH};
  for (size_t i = 0; i < PST_ARRAY_LEN(purposes); i++) {
    int code = pst_store_run_each(store, pst_str_from(pst_store_purpose_name(purposes[i])), (pst_str){NULL, 0}, 0,
                                  on_use, &c, err);
    if (code) return code;
  }
  *ret_n = c.n;
  return 0;
}
