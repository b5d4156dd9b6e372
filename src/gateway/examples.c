/* Labelled examples as a file kept by content hash, and the retrieval of the nearest.
 *
 * The file is canonical JSON lines: a header, then one example a line. Its order does not depend on the order given: examples take turns by answer, so that the
 * first n of any index show as many different answers as n can (what a plan with fixed examples takes). Owns neither prompts nor what a node asks for. */
#include "gateway/bm25.h"
#include "gateway/prompt.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX ((size_t)1 << 30)
#define FORMAT 1

/* ---- building ---- */

typedef struct entry {
  const pst_gateway_example *example;
  uint64_t draw;  /* stands for chance: of the id */
  uint32_t round; /* how many of the same answer come before it */
} entry;

static int by_answer(const void *a, const void *b) {
  const entry *x = a, *y = b;
  int order = pst_str_compare(x->example->answer, y->example->answer);
  if (order == 0) order = (x->draw > y->draw) - (x->draw < y->draw);
  return order ? order : pst_str_compare(x->example->id, y->example->id);
}

static int by_round(const void *a, const void *b) {
  const entry *x = a, *y = b;
  int order = (x->round > y->round) - (x->round < y->round);
  if (order == 0) order = (x->draw > y->draw) - (x->draw < y->draw);
  return order ? order : pst_str_compare(x->example->id, y->example->id);
}

static int by_id(const void *a, const void *b) {
  return pst_str_compare(((const entry *)a)->example->id, ((const entry *)b)->example->id);
}

static int put_in_order(entry *entries, size_t n, pst_error *err) {
  qsort(entries, n, sizeof *entries, by_id);
  for (size_t i = 0; i < n; i++) {
    pst_str id = entries[i].example->id;
    if (id.n == 0) return pst_error_set(err, PST_E_BAD_INPUT, "examples", "an example has no id");
    if (i && pst_str_equal(id, entries[i - 1].example->id))
      return pst_error_set(err, PST_E_BAD_INPUT, "examples", "two examples have the id \"%.*s\"",
                           (int)PST_MIN(id.n, (size_t)80), id.data);
  }
  qsort(entries, n, sizeof *entries, by_answer);
  for (size_t i = 1; i < n; i++)
    if (pst_str_equal(entries[i].example->answer, entries[i - 1].example->answer))
      entries[i].round = entries[i - 1].round + 1;
  qsort(entries, n, sizeof *entries, by_round);
  return 0;
}

/* Members in canonical order: answer, id, input. */
static void write_example(pst_json_writer *w, const pst_gateway_example *e) {
  pst_json_begin_object(w);
  pst_json_member_str(w, "answer", e->answer);
  pst_json_member_str(w, "id", e->id);
  pst_json_member_str(w, "input", e->input);
  pst_json_end_object(w);
}

int pst_gateway_examples_build(pst_store *store, const pst_gateway_example *examples, size_t n, const char *data_set,
                               char ret_hash[65], pst_error *err) {
  if (n == 0) return pst_error_set(err, PST_E_BAD_INPUT, "examples", "an index needs at least one example");
  pst_buf text = PST_BUF_INIT;
  entry *entries = pst_calloc(n, sizeof *entries);
  int code = entries ? 0 : pst_error_set(err, PST_E_NOMEM, "examples", "no memory for %zu examples", n);
  for (size_t i = 0; i < n && !code; i++)
    entries[i] = (entry){&examples[i], pst_hash64(examples[i].id.data, examples[i].id.n, 0), 0};
  if (!code) code = put_in_order(entries, n, err);
  if (code) goto done;
  pst_buf_printf(&text, "{\"n\":%zu,\"penstock_examples\":%d}\n", n, FORMAT);
  for (size_t i = 0; i < n; i++) {
    pst_json_writer w = pst_json_writer_on(&text, false);
    write_example(&w, entries[i].example);
    pst_buf_putc(&text, '\n');
  }
  if (pst_buf_status(&text))
    code = pst_error_set(err, PST_E_NOMEM, "examples", "no memory for %zu examples", n);
  else if (data_set && data_set[0])
    code = pst_store_data_set_product(store, pst_str_from(data_set), PST_STR(PST_STORE_PRODUCT_EXAMPLES), text.data,
                                      text.n, ret_hash, err);
  else
    code = pst_store_file_put(store, text.data, text.n, ret_hash, err);
done:
  pst_buf_done(&text);
  pst_free(entries);
  return code;
}

/* ---- opening ---- */

struct pst_gateway_index {
  _Atomic int n_refs;
  pst_arena *arena;
  pst_gateway_example *examples; /* in the file's order */
  size_t n;
  uint32_t *by_id; /* places in `examples`, ascending by id */
  uint32_t *rank;  /* the other way: of each example among the ids */
  pst_gateway_bm25 *bm25;
};

static int corrupt(const char *path, size_t line, const char *what, pst_error *err) {
  char place[256];
  (void)snprintf(place, sizeof place, "%.230s:%zu", path, line);
  return pst_error_set(err, PST_E_CORRUPT, place, "the index of examples %s; run optimize again to make it anew", what);
}

static int keep(pst_gateway_index *x, pst_str s, pst_str *ret_copy) {
  char *copy = pst_arena_strndup(x->arena, s.data, s.n);
  if (!copy) return PST_E_NOMEM;
  *ret_copy = (pst_str){copy, s.n};
  return 0;
}

static int read_example(pst_gateway_index *x, const pst_json *v, pst_gateway_example *ret_example) {
  if (pst_json_typeof(pst_json_get(v, "id")) != PST_JSON_STRING ||
      pst_json_typeof(pst_json_get(v, "input")) != PST_JSON_STRING ||
      pst_json_typeof(pst_json_get(v, "answer")) != PST_JSON_STRING)
    return PST_E_CORRUPT;
  int code = keep(x, pst_json_str(pst_json_get(v, "id")), &ret_example->id);
  if (!code) code = keep(x, pst_json_str(pst_json_get(v, "input")), &ret_example->input);
  if (!code) code = keep(x, pst_json_str(pst_json_get(v, "answer")), &ret_example->answer);
  return code;
}

static int read_header(pst_gateway_index *x, const pst_json *v, size_t n_bytes, const char *path, pst_error *err) {
  int64_t format = pst_json_int(pst_json_get(v, "penstock_examples"), -1), n = pst_json_int(pst_json_get(v, "n"), -1);
  if (format > FORMAT)
    return pst_error_set(err, PST_E_UNSUPPORTED, path, "the index of examples has format %lld; this program reads %d",
                         (long long)format, FORMAT);
  if (format != FORMAT || n < 1 || (size_t)n > n_bytes) return corrupt(path, 1, "has no valid header", err);
  x->examples = pst_calloc((size_t)n, sizeof *x->examples);
  x->n = (size_t)n;
  return x->examples ? 0 : pst_error_set(err, PST_E_NOMEM, path, "no memory for the index of examples");
}

static int read_lines(pst_gateway_index *x, pst_str text, const char *path, pst_error *err) {
  int code = 0;
  size_t line = 0;
  for (size_t at = 0; at < text.n && !code; line++) {
    size_t end = PST_MIN(pst_str_find(text, PST_STR("\n"), at), text.n);
    pst_json_doc *doc = NULL;
    if (line > x->n && line) return corrupt(path, line + 1, "is longer than its header says", err);
    if ((code = pst_json_parse(text.data + at, end - at, path, &doc, err)))
      return code == PST_E_NOMEM ? code : corrupt(path, line + 1, "is not JSON", err);
    if (line == 0)
      code = read_header(x, pst_json_root(doc), text.n, path, err);
    else if ((code = read_example(x, pst_json_root(doc), &x->examples[line - 1])) == PST_E_CORRUPT)
      corrupt(path, line + 1, "has a line without id, input and answer", err);
    else if (code)
      pst_error_set(err, code, path, "no memory for the index of examples");
    pst_json_free(doc);
    at = end + 1;
  }
  if (!code && line != x->n + 1) code = corrupt(path, line, "is shorter than its header says", err);
  return code;
}

typedef struct placed_id {
  pst_str id;
  uint32_t place;
} placed_id;

static int by_placed_id(const void *a, const void *b) {
  return pst_str_compare(((const placed_id *)a)->id, ((const placed_id *)b)->id);
}

static int index_ids(pst_gateway_index *x) {
  placed_id *ids = pst_calloc(x->n, sizeof *ids);
  x->by_id = pst_calloc(x->n, sizeof *x->by_id);
  x->rank = pst_calloc(x->n, sizeof *x->rank);
  int code = ids && x->by_id && x->rank ? 0 : PST_E_NOMEM;
  if (!code) {
    for (size_t i = 0; i < x->n; i++) ids[i] = (placed_id){x->examples[i].id, (uint32_t)i};
    qsort(ids, x->n, sizeof *ids, by_placed_id);
    for (size_t i = 0; i < x->n; i++) {
      x->by_id[i] = ids[i].place;
      x->rank[ids[i].place] = (uint32_t)i;
    }
  }
  pst_free(ids);
  return code;
}

static int index_words(pst_gateway_index *x, pst_error *err) {
  pst_str *inputs = pst_calloc(x->n, sizeof *inputs);
  if (!inputs || index_ids(x)) {
    pst_free(inputs);
    return pst_error_set(err, PST_E_NOMEM, "examples", "no memory for the index of examples");
  }
  for (size_t i = 0; i < x->n; i++) inputs[i] = x->examples[i].input;
  int code = pst_gateway_bm25_create(inputs, x->n, &x->bm25, err);
  pst_free(inputs);
  return code;
}

int pst_gateway_index_open(pst_store *store, pst_str hash, pst_gateway_index **ret_index, pst_error *err) {
  char *path = NULL, *data = NULL, found[65];
  size_t n = 0;
  pst_gateway_index *x = NULL;
  int code = pst_store_file_path(store, hash, &path, err);
  if (!code) code = pst_file_read(path, FILE_BYTES_MAX, &data, &n, err);
  if (code) goto done;
  pst_sha256_hex(data, n, found);
  if (!pst_str_is(hash, found)) {
    code = corrupt(path, 1, "does not have the content that its name says", err);
    goto done;
  }
  x = pst_calloc(1, sizeof *x);
  if (x) x->arena = pst_arena_create();
  if (!x || !x->arena) {
    code = pst_error_set(err, PST_E_NOMEM, path, "no memory for the index of examples");
    goto done;
  }
  atomic_init(&x->n_refs, 1);
  code = read_lines(x, (pst_str){data, n}, path, err);
  if (!code) code = index_words(x, err);
  if (code) goto done;
  *ret_index = x;
  x = NULL;
done:
  pst_gateway_index_unref(x);
  pst_free(data);
  pst_free(path);
  return code;
}

pst_gateway_index *pst_gateway_index_ref(pst_gateway_index *x) {
  atomic_fetch_add(&x->n_refs, 1);
  return x;
}

void pst_gateway_index_unref(pst_gateway_index *x) {
  if (!x) return;
  if (x->arena && atomic_fetch_sub(&x->n_refs, 1) > 1) return;
  pst_gateway_bm25_free(x->bm25);
  pst_arena_free(x->arena);
  pst_free(x->examples);
  pst_free(x->by_id);
  pst_free(x->rank);
  pst_free(x);
}

/* ---- retrieval ---- */

/* The place of an id; n when it is not there. */
static size_t find_id(const pst_gateway_index *x, pst_str id) {
  size_t low = 0, high = x->n;
  while (low < high) {
    size_t middle = (low + high) / 2;
    int order = pst_str_compare(x->examples[x->by_id[middle]].id, id);
    if (order == 0) return x->by_id[middle];
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return x->n;
}

/* Whether a stands before b in the ranking. */
static bool precedes(const pst_gateway_index *x, const int64_t *scores, size_t a, size_t b) {
  return scores[a] != scores[b] ? scores[a] > scores[b] : x->rank[a] < x->rank[b];
}

/* The k best places in order, by insertion: k is small, and most texts lose against the last of the k at once. */
static size_t pick(const pst_gateway_index *x, const int64_t *scores, size_t k, size_t *best) {
  size_t n = 0;
  for (size_t i = 0; i < x->n; i++) {
    if (scores[i] < 0 || (n == k && !precedes(x, scores, i, best[n - 1]))) continue;
    size_t at = n < k ? n++ : n - 1;
    for (; at > 0 && precedes(x, scores, i, best[at - 1]); at--) best[at] = best[at - 1];
    best[at] = i;
  }
  return n;
}

int pst_gateway_index_nearest(const pst_gateway_index *x, pst_str input, size_t k, bool fixed, const pst_str *exclude,
                              size_t n_exclude, pst_gateway_example *ret_found, size_t *ret_n, pst_error *err) {
  int64_t *scores = pst_calloc(x->n, sizeof *scores);
  size_t *best = pst_calloc(PST_MAX(k, 1), sizeof *best);
  size_t n = 0;
  int code = scores && best ? 0 : pst_error_set(err, PST_E_NOMEM, "examples", "no memory to look for examples");
  if (!code && !fixed) code = pst_gateway_bm25_score(x->bm25, input, scores, err);
  if (code) goto done;
  for (size_t i = 0; i < n_exclude; i++) {
    size_t place = find_id(x, exclude[i]);
    if (place < x->n) scores[place] = -1;
  }
  if (fixed) {
    for (size_t i = 0; i < x->n && n < k; i++)
      if (scores[i] >= 0) best[n++] = i;
  } else if (k) {
    n = pick(x, scores, k, best);
  }
  for (size_t i = 0; i < n; i++) ret_found[i] = x->examples[best[i]];
  *ret_n = n;
done:
  pst_free(scores);
  pst_free(best);
  return code;
}
