/* Curation: a workload's records to a data set, step by step. Which step decides what is in curate_gather.c, curate_compare.c and curate_labels.c; here is their order,
 * the split, and the file.
 *
 * Everything follows from the records, the guarded items and the options: the same give the same file. Lines are in the order of their records. */
#include <stdlib.h>
#include <string.h>

#include "data/curate.h"

static const char *const REASONS[PST_DATA_REASON_COUNT] = {
    "kept",         "empty",     "not judged", "answered",       "feedback", "cut off",        "form",
    "contaminated", "duplicate", "disagrees",  "near duplicate", "suspect",  "likelihood gap", "balance"};
static const char *const KINDS[PST_DATA_KIND_COUNT] = {"training", "preference", "input"};

const char *pst_data_kind_name(pst_data_kind kind) {
  return (unsigned)kind < PST_DATA_KIND_COUNT ? KINDS[kind] : "unknown";
}

const char *pst_data_reason_name(pst_data_reason reason) {
  return (unsigned)reason < PST_DATA_REASON_COUNT ? REASONS[reason] : "unknown";
}

int pst_data_no_memory(const pst_data_curation *c) {
  return pst_error_set(c->err, PST_E_NOMEM, "curate", "no memory for %zu records", c->n);
}

/* ---- the split ---- */

typedef struct cluster {
  uint64_t text; /* the least hash of its texts: the same whatever else is in the set */
  uint64_t draw;
  size_t n;
  bool held;
} cluster;

static int by_draw(const void *a, const void *b) {
  const cluster *x = *(cluster *const *)a, *y = *(cluster *const *)b;
  if (x->draw != y->draw) return x->draw < y->draw ? -1 : 1;
  return (x->text > y->text) - (x->text < y->text);
}

/* Whole clusters in an order drawn by the seed, as long as they fit the share; at least one stays to train on. */
static int hold_back(pst_data_curation *c) {
  size_t n_clusters = (size_t)c->done.n_clusters, n_kept = 0, n_held = 0;
  cluster *list = pst_calloc(n_clusters + 1, sizeof *list), **order = pst_calloc(n_clusters + 1, sizeof *order);
  int code = list && order ? 0 : pst_data_no_memory(c);
  for (size_t i = 0; i < c->n && !code; i++) {
    const pst_data_candidate *x = &c->list[i];
    if (x->reason != PST_DATA_KEPT) continue;
    cluster *k = &list[x->cluster];
    uint64_t text = pst_hash64(x->text.data ? x->text.data : "", x->text.n, 1);
    k->text = k->n++ ? PST_MIN(k->text, text) : text;
    n_kept++;
  }
  for (size_t i = 0; i < n_clusters && !code; i++) {
    list[i].draw = pst_random_u64(c->options->seed, 2, list[i].text);
    order[i] = &list[i];
  }
  if (!code) qsort(order, n_clusters, sizeof(cluster *), by_draw);
  size_t target = (size_t)((c->options->held < 0 ? 0.1 : c->options->held) * (double)n_kept);
  for (size_t i = 0; i < n_clusters && !code; i++) {
    order[i]->held = n_held + order[i]->n <= target && n_held + order[i]->n < n_kept;
    n_held += order[i]->held ? order[i]->n : 0;
  }
  for (size_t i = 0; i < c->n && !code; i++)
    if (c->list[i].reason == PST_DATA_KEPT) c->list[i].held = list[c->list[i].cluster].held;
  c->done.n_held = (int64_t)n_held;
  pst_free(list);
  pst_free(order);
  return code;
}

/* ---- lines ---- */

typedef struct rewriter {
  pst_data_curation *c;
  pst_buf text;
  int code;
} rewriter;

static void put_text(rewriter *r, pst_json_writer *w, pst_str text) {
  pst_buf_clear(&r->text);
  if (r->c->options->keep_pii) {
    pst_json_put_str(w, text);
    return;
  }
  int code = pst_data_placeholders_apply(r->c->placeholders, text, &r->text, r->c->done.n_pii);
  if (code) r->code = code;
  pst_json_put_str(w, pst_buf_str(&r->text));
}

/* Names that the format needs as they are. */
static bool is_fixed(pst_str key) {
  static const char *const keys[] = {"role", "type", "id", "tool_call_id", "name"};
  for (size_t i = 0; i < PST_ARRAY_LEN(keys); i++)
    if (pst_str_is(key, keys[i])) return true;
  return false;
}

/* A value with placeholders in its texts. The depth is that of the parser. */
static void put_value(rewriter *r, pst_json_writer *w, pst_str key, const pst_json *v) {
  pst_json_type type = pst_json_typeof(v);
  if (type == PST_JSON_STRING && !is_fixed(key)) {
    put_text(r, w, pst_json_str(v));
  } else if (type == PST_JSON_OBJECT) {
    pst_json_begin_object(w);
    for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it);) {
      pst_json_key_str(w, it.key);
      put_value(r, w, it.key, it.value);
    }
    pst_json_end_object(w);
  } else if (type == PST_JSON_ARRAY) {
    pst_json_begin_array(w);
    for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it);) put_value(r, w, key, it.value);
    pst_json_end_array(w);
  } else {
    pst_json_put_value(w, v);
  }
}

static void put_message(rewriter *r, pst_json_writer *w, const char *role, pst_str content) {
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "role", role);
  pst_json_key(w, "content");
  put_text(r, w, content);
}

static void put_answer(rewriter *r, pst_json_writer *w, const pst_data_example *e) {
  put_message(r, w, "assistant", e->answer);
  if (e->tool_calls) {
    pst_json_key(w, "tool_calls");
    put_value(r, w, PST_STR("tool_calls"), e->tool_calls);
  }
  pst_json_end_object(w);
}

/* The answers as members of the line, each if there is one. */
static void put_judged(rewriter *r, const pst_data_candidate *x, pst_json_writer *w) {
  pst_str unwanted = x->disliked ? x->answer : x->corrected;
  if (!x->disliked) {
    pst_json_key(w, "wanted");
    put_text(r, w, x->answer);
  }
  if (unwanted.data) {
    pst_json_key(w, "unwanted");
    put_text(r, w, unwanted);
  }
}

static void put_line(rewriter *r, const pst_data_candidate *x, const pst_data_example *e, pst_buf *out) {
  pst_data_kind kind = r->c->options->kind;
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "messages");
  pst_json_begin_array(&w);
  if (!e->messages) {
    put_message(r, &w, "user", e->prompt);
    pst_json_end_object(&w);
  }
  for (pst_json_iter it = pst_json_iterate(e->messages); pst_json_next(&it);)
    put_value(r, &w, PST_STR("message"), it.value);
  if (kind == PST_DATA_TRAINING) put_answer(r, &w, e);
  pst_json_end_array(&w);
  if (kind == PST_DATA_PREFERENCES) put_judged(r, x, &w);
  if (e->tools) {
    pst_json_key(&w, "tools");
    pst_json_put_value(&w, e->tools);
  }
  pst_json_member_cstr(&w, "part", x->held ? "held" : "train");
  pst_json_member_int(&w, "cluster", x->cluster);
  pst_json_end_object(&w);
  pst_buf_putc(out, '\n');
}

static int write_lines(pst_data_curation *c, pst_buf *out, int64_t *ids) {
  rewriter r = {.c = c};
  size_t n = 0;
  for (size_t i = 0; i < c->n && !r.code; i++) {
    const pst_data_candidate *x = &c->list[i];
    pst_json_doc *input = NULL, *output = NULL;
    pst_data_example e;
    if (x->reason != PST_DATA_KEPT) continue;
    r.code = pst_json_parse(x->input.data, x->input.n, "input", &input, c->err);
    if (!r.code) r.code = pst_json_parse(x->output.data, x->output.n, "output", &output, c->err);
    if (!r.code) r.code = pst_data_example_of(pst_json_root(input), pst_json_root(output), x->correction, &e);
    if (!r.code) put_line(&r, x, &e, out);
    pst_json_free(input);
    pst_json_free(output);
    ids[n++] = x->record;
  }
  if (!r.code && pst_buf_status(out)) r.code = PST_E_NOMEM;
  pst_buf_done(&r.text);
  return r.code == PST_E_NOMEM ? pst_data_no_memory(c) : r.code;
}

/* ---- the set ---- */

static void write_params(const pst_data_curate_options *o, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_double(&w, "near_duplicate", o->near_duplicate > 0 ? o->near_duplicate : 0.8);
  pst_json_member_double(&w, "min_score", pst_data_least_score(o));
  pst_json_member_int(&w, "most_per_label", o->most_per_label);
  pst_json_member_double(&w, "held", o->held < 0 ? 0.1 : o->held);
  pst_json_member_bool(&w, "keep_pii", o->keep_pii);
  pst_json_member_bool(&w, "drop_suspects", o->drop_suspects);
  pst_json_member_cstr(&w, "kind", pst_data_kind_name(o->kind));
  if (o->gap_model) {
    pst_json_member_cstr(&w, "gap_model", o->gap_model);
    pst_json_member_double(&w, "least_gap", o->least_gap);
    pst_json_member_bool(&w, "flag_gaps", o->flag_gaps);
  }
  pst_json_member_int(&w, "seed", (int64_t)o->seed);
  pst_json_end_object(&w);
}

static int keep_set(pst_data_curation *c, int64_t start_us) {
  pst_buf lines = PST_BUF_INIT, params = PST_BUF_INIT, report = PST_BUF_INIT;
  int64_t n = c->done.n_by_reason[PST_DATA_KEPT];
  int64_t *ids = pst_calloc((size_t)n + 1, sizeof *ids);
  int code = ids ? write_lines(c, &lines, ids) : pst_data_no_memory(c);
  if (!code && n) pst_sha256_hex(lines.data, lines.n, c->done.hash); /* the report says it */
  c->done.wall_ms = (pst_clock_us() - start_us) / 1000;
  if (!code && n) {
    write_params(c->options, &params);
    pst_data_report_write(c, false, &report);
    pst_store_data_set set = {.kind = pst_str_from(pst_data_kind_name(c->options->kind)),
                              .workload = c->options->workload,
                              .n_lines = n,
                              .params = pst_buf_str(&params),
                              .report = pst_buf_str(&report),
                              .created_ms = pst_clock_unix_ms()};
    code =
        pst_buf_status(&params) || pst_buf_status(&report)
            ? pst_data_no_memory(c)
            : pst_store_data_set_put(c->store, &set, pst_buf_str(&lines), true, ids, (size_t)n, c->done.hash, c->err);
  }
  pst_free(ids);
  pst_buf_done(&lines);
  pst_buf_done(&params);
  pst_buf_done(&report);
  return code;
}

static void curation_done(pst_data_curation *c) {
  pst_free(c->list);
  pst_free(c->guards);
  pst_free(c->words);
  pst_free(c->tokens);
  pst_free(c->labels);
  pst_data_placeholders_free(c->placeholders);
  pst_arena_free(c->arena);
}

int pst_data_curate(pst_store *store, const pst_data_curate_options *options, pst_data_curated *ret_curated,
                    pst_buf *ret_report, pst_error *err) {
  pst_data_curation c = {.store = store, .options = options, .err = err, .arena = pst_arena_create()};
  int64_t start_us = pst_clock_us();
  if (options->near_duplicate != 0 && !(options->near_duplicate >= 0.5 && options->near_duplicate <= 1)) {
    pst_arena_free(c.arena);
    return pst_error_set(err, PST_E_BAD_INPUT, "near duplicate", "a Jaccard index from 0.5 to 1 makes near-duplicates");
  }
  c.placeholders = pst_data_placeholders_create();
  int code = c.arena && c.placeholders ? pst_data_gather(&c) : pst_data_no_memory(&c);
  if (!code) code = pst_data_compare(&c);
  if (!code && options->kind == PST_DATA_TRAINING && options->gap_model) code = pst_data_judge_likelihood(&c);
  if (!code && options->kind == PST_DATA_TRAINING) code = pst_data_judge_labels(&c);
  if (!code) code = hold_back(&c);
  c.done.n_records = (int64_t)c.n;
  for (size_t i = 0; i < c.n && !code; i++) {
    const pst_data_candidate *x = &c.list[i];
    c.done.n_by_reason[x->reason]++;
    if (x->reason != PST_DATA_KEPT) continue;
    c.done.n_corrected += x->correction.data != NULL;
    c.done.n_pairs += x->corrected.data != NULL;
    c.done.n_disliked += x->disliked;
    c.done.n_liked += options->kind == PST_DATA_PREFERENCES && !x->disliked && !x->corrected.data;
  }
  if (!code) code = keep_set(&c, start_us);
  if (!code) {
    pst_data_report_write(&c, true, ret_report);
    if (pst_buf_status(ret_report)) code = pst_data_no_memory(&c);
  }
  if (!code) *ret_curated = c.done;
  curation_done(&c);
  return code;
}
