/* `penstock import`: a workload folder out of a JSONL file of texts and answers.
 *
 * Owns what a file is taken for (labels, numbers, JSON objects, SQL, free text), the sample, the parts and the prompts it begins with. Parts are
 * drawn by near-duplicate cluster, so that no held-back item has a twin that was seen; within that, each label is spread over the parts by
 * their shares. Everything random is a draw of the seed: the same file and seed give the same folder. The folder is written under another
 * name and renamed: whole or not at all. */
#include "evals/workload.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES_MAX ((size_t)2 << 30)
#define LABELS_LISTED_MAX 400 /* longer lists are no prompt */
#define TABLES_LISTED_MAX 40

/* What the answers are. */
typedef enum answer_kind { ANSWER_LABEL, ANSWER_NUMBER, ANSWER_JSON, ANSWER_SQL, ANSWER_TEXT } answer_kind;

typedef struct entry {
  pst_str id, text; /* id empty: made of the line's number */
  const pst_json *answer;
  pst_str label; /* the answer, or what stands for its kind when parts are spread: a JSON answer's first text */
  uint32_t line, label_number, cluster;
  pst_evals_part part;
} entry;

typedef struct importer {
  const char *path;
  const pst_evals_import_options *options;
  pst_str text_fields[PST_EVALS_TEXT_FIELDS_MAX], answer_field;
  size_t n_text_fields;
  pst_arena *arena; /* joined texts */
  pst_json_doc **docs;
  size_t n_docs, docs_capacity;
  entry *entries;
  size_t n, capacity;
  pst_str *labels; /* distinct, ascending */
  size_t n_labels;
  answer_kind kind;
  pst_error *err;
} importer;

static int no_memory(importer *m) { return pst_error_set(m->err, PST_E_NOMEM, NULL, "no memory to import"); }

static int fail_line(importer *m, uint32_t line, const char *format, ...) PST_PRINTF(3, 4);
static int fail_line(importer *m, uint32_t line, const char *format, ...) {
  char message[512], place[256];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  snprintf(place, sizeof place, "%.220s:%u", m->path, line);
  return pst_error_set(m->err, PST_E_BAD_INPUT, place, "%s", message);
}

/* ---- reading ---- */

static int parse_line(importer *m, pst_str text, uint32_t line, const pst_json **ret_root) {
  pst_json_doc *doc = NULL;
  pst_error inner = PST_ERROR_INIT;
  if (pst_array_reserve((void **)&m->docs, &m->docs_capacity, m->n_docs + 1, sizeof(pst_json_doc *)))
    return no_memory(m);
  int code = pst_json_parse(text.data, text.n, "", &doc, &inner);
  if (code == PST_E_NOMEM) return no_memory(m);
  if (code) {
    const char *column = strrchr(inner.place, ':');
    return fail_line(m, line, "column %s: %s%s", column ? column + 1 : "1", inner.message,
                     line == 1 ? "; each line is to be a JSON object, as {\"text\": ..., \"label\": ...}" : "");
  }
  m->docs[m->n_docs++] = doc;
  *ret_root = pst_json_root(doc);
  if (pst_json_typeof(*ret_root) != PST_JSON_OBJECT) return fail_line(m, line, "an object per line is wanted");
  return 0;
}

/* The first of the names that the object has; empty: none. */
static pst_str find_field(const pst_json *object, const char *const *names) {
  for (size_t i = 0; names[i]; i++)
    if (pst_json_get(object, names[i])) return pst_str_from(names[i]);
  return (pst_str){NULL, 0};
}

/* "id, columns, text" */
static void list_fields(const pst_json *object, char *ret_text, size_t size) {
  size_t n = 0;
  ret_text[0] = '\0';
  pst_json_iter it = pst_json_iterate(object);
  while (pst_json_next(&it) && n + 1 < size) {
    int wrote =
        snprintf(ret_text + n, size - n, "%s%.*s", n ? ", " : "", (int)PST_MIN(it.key.n, (size_t)40), it.key.data);
    n += wrote > 0 ? (size_t)wrote : 0;
  }
  if (!n) snprintf(ret_text, size, "none");
}

static int find_fields(importer *m, const pst_json *first, uint32_t line) {
  static const char *const texts[] = {"text",    "input", "question", "prompt",    "message",
                                      "content", "query", "sentence", "utterance", NULL};
  static const char *const answers[] = {"label", "target",   "answer",     "output", "expected", "intent",
                                        "class", "category", "completion", "sql",    NULL};
  const pst_evals_import_options *o = m->options;
  for (size_t i = 0; i < o->n_text_fields; i++) m->text_fields[i] = pst_str_from(o->text_fields[i]);
  if (!o->n_text_fields) m->text_fields[0] = find_field(first, texts);
  m->n_text_fields = PST_MAX(o->n_text_fields, (size_t)1);
  m->answer_field = o->answer_field ? pst_str_from(o->answer_field) : find_field(first, answers);
  const char *what = !m->text_fields[0].n ? "text" : !m->answer_field.n ? "answer" : NULL;
  if (!what) return 0;
  char fields[200];
  list_fields(first, fields, sizeof fields);
  return fail_line(m, line, "no field holds the %s (looked for %s); name it with --%s FIELD: there are %s", what,
                   !m->text_fields[0].n ? "text, input, question, ..." : "label, target, answer, ...", what, fields);
}

/* Appends a text, or the texts of a list joined by ", ". false: it is neither, or holds nothing. */
static bool append_field(const pst_json *value, pst_buf *out) {
  if (pst_json_typeof(value) == PST_JSON_STRING) {
    pst_buf_append_str(out, pst_json_str(value));
    return pst_str_trim(pst_json_str(value)).n > 0;
  }
  bool good = pst_json_typeof(value) == PST_JSON_ARRAY && pst_json_size(value);
  size_t k = 0;
  for (pst_json_iter it = pst_json_iterate(good ? value : NULL); pst_json_next(&it); k++) {
    good = good && pst_json_typeof(it.value) == PST_JSON_STRING;
    if (k) pst_buf_puts(out, ", ");
    pst_buf_append_str(out, pst_json_str(it.value));
  }
  return good;
}

/* The message: the one text as it stands, or the fields' texts on a line each. */
static int read_text(importer *m, const pst_json *object, uint32_t line, pst_str *ret_text) {
  pst_buf text = PST_BUF_INIT;
  int code = 0;
  for (size_t i = 0; i < m->n_text_fields && !code; i++) {
    pst_str field = m->text_fields[i];
    if (i) pst_buf_putc(&text, '\n');
    if (!append_field(pst_json_get_str(object, field), &text))
      code = fail_line(m, line, "the field \"%.*s\" is %s", (int)PST_MIN(field.n, (size_t)60), field.data,
                       pst_json_get_str(object, field) ? "no text and no list of texts, or is empty" : "missing");
  }
  if (!code && pst_buf_status(&text)) code = no_memory(m);
  if (!code && memchr(text.data, 0, text.n)) code = fail_line(m, line, "the text holds a zero byte");
  char *copy = code ? NULL : pst_arena_strndup(m->arena, text.data, text.n);
  if (!code && !copy) code = no_memory(m);
  if (!code) *ret_text = (pst_str){copy, text.n};
  pst_buf_done(&text);
  return code;
}

static int add_entry(importer *m, const pst_json *object, uint32_t line) {
  entry e = {.line = line};
  const pst_json *id = pst_json_get(object, "id");
  e.answer = pst_json_get_str(object, m->answer_field);
  int code = read_text(m, object, line, &e.text);
  if (code) return code;
  if (!e.answer || pst_json_typeof(e.answer) == PST_JSON_NULL)
    return fail_line(m, line, "has no \"%.*s\", which holds the answer", (int)m->answer_field.n, m->answer_field.data);
  if (pst_json_typeof(e.answer) == PST_JSON_STRING) {
    pst_str answer = pst_json_str(e.answer);
    if (!answer.n || memchr(answer.data, 0, answer.n))
      return fail_line(m, line, "the answer \"%.*s\" is empty or holds a zero byte", (int)m->answer_field.n,
                       m->answer_field.data);
  }
  if (pst_json_typeof(id) == PST_JSON_STRING) e.id = pst_json_str(id);
  if (e.id.n > 256 || (e.id.n && memchr(e.id.data, 0, e.id.n))) e.id = (pst_str){NULL, 0};
  if (pst_array_reserve((void **)&m->entries, &m->capacity, m->n + 1, sizeof *m->entries)) return no_memory(m);
  m->entries[m->n++] = e;
  return 0;
}

static int read_lines(importer *m, pst_str text) {
  uint32_t line = 0;
  int code = 0;
  if (pst_str_starts(text, PST_STR("\x1f\x8b")))
    return pst_error_set(m->err, PST_E_BAD_INPUT, m->path, "is compressed: unpack it first (gunzip)");
  if (pst_str_starts(text, PST_STR("\xef\xbb\xbf"))) text = (pst_str){text.data + 3, text.n - 3};
  while (text.n && !code) {
    size_t end = PST_MIN(pst_str_find(text, PST_STR("\n"), 0), text.n), used = PST_MIN(end + 1, text.n);
    pst_str one = pst_str_trim((pst_str){text.data, end});
    text = (pst_str){text.data + used, text.n - used};
    line++;
    if (!one.n) continue;
    const pst_json *root = NULL;
    code = parse_line(m, one, line, &root);
    if (!code && !m->n) code = find_fields(m, root, line);
    if (!code) code = add_entry(m, root, line);
  }
  if (!code && m->n < 4)
    code = pst_error_set(m->err, PST_E_BAD_INPUT, m->path, "%zu lines are too few: each of the four parts needs one",
                         m->n);
  return code;
}

/* ---- what the answers are ---- */

static int compare_strs(const void *a, const void *b) {
  return pst_str_compare(*(const pst_str *)a, *(const pst_str *)b);
}

/* What parts are spread by: a label itself; of a JSON answer its first text member (SNIPS: the intent). */
static pst_str label_of(const pst_json *answer) {
  if (pst_json_typeof(answer) == PST_JSON_STRING) return pst_json_str(answer);
  pst_json_iter it = pst_json_iterate(answer);
  while (pst_json_typeof(answer) == PST_JSON_OBJECT && pst_json_next(&it))
    if (pst_json_typeof(it.value) == PST_JSON_STRING) return pst_json_str(it.value);
  return PST_STR("");
}

/* Distinct labels, ascending; numbers each entry's. */
static int number_labels(importer *m) {
  m->labels = pst_calloc(m->n + 1, sizeof *m->labels);
  if (!m->labels) return no_memory(m);
  for (size_t i = 0; i < m->n; i++) m->labels[i] = m->entries[i].label = label_of(m->entries[i].answer);
  qsort(m->labels, m->n, sizeof *m->labels, compare_strs);
  m->n_labels = 0;
  for (size_t i = 0; i < m->n; i++)
    if (!m->n_labels || !pst_str_equal(m->labels[i], m->labels[m->n_labels - 1]))
      m->labels[m->n_labels++] = m->labels[i];
  for (size_t i = 0; i < m->n; i++) {
    pst_str *found = bsearch(&m->entries[i].label, m->labels, m->n_labels, sizeof *m->labels, compare_strs);
    m->entries[i].label_number = (uint32_t)(found - m->labels);
  }
  return 0;
}

static int find_kind(importer *m) {
  size_t n_of[7] = {0}, n_sql = 0, longest = 0;
  for (size_t i = 0; i < m->n; i++) {
    pst_str text = pst_json_str(m->entries[i].answer);
    n_of[pst_json_typeof(m->entries[i].answer)]++;
    n_sql += pst_evals_sql_is_statement(text);
    longest = PST_MAX(longest, text.n);
  }
  int code = number_labels(m);
  if (code) return code;
  if (n_of[PST_JSON_NUMBER] == m->n)
    m->kind = ANSWER_NUMBER;
  else if (n_of[PST_JSON_STRING] < m->n)
    m->kind = ANSWER_JSON;
  else if (n_sql == m->n)
    m->kind = ANSWER_SQL;
  else
    m->kind = m->n_labels >= 2 && m->n_labels <= 4096 && m->n_labels * 2 <= m->n && longest <= 128 ? ANSWER_LABEL
                                                                                                   : ANSWER_TEXT;
  if (m->kind != ANSWER_LABEL && m->kind != ANSWER_JSON) { /* nothing to spread by */
    for (size_t i = 0; i < m->n; i++) m->entries[i].label_number = 0;
    m->n_labels = 1;
  }
  return 0;
}

/* ---- the sample and the parts ---- */

/* Streams of the seed. */
enum { STREAM_SAMPLE = 1, STREAM_PARTS = 2, STREAM_DRAWS = 3 };

static void shuffle(uint32_t *order, size_t n, uint64_t seed, uint64_t stream) {
  pst_random r = {seed, stream, 0};
  for (size_t i = n; i > 1; i--) {
    size_t k = (size_t)pst_random_below(&r, i);
    uint32_t kept = order[i - 1];
    order[i - 1] = order[k];
    order[k] = kept;
  }
}

/* Keeps `limit` entries, of each label its share (largest remainders; ties by label), in the file's order. */
static int take_sample(importer *m) {
  size_t limit = m->options->limit;
  if (!limit || limit >= m->n) return 0;
  uint32_t *order = pst_calloc(m->n, sizeof *order), *quota = pst_calloc(m->n_labels + 1, sizeof *quota);
  uint64_t *counts = pst_calloc(m->n_labels + 1, sizeof *counts);
  bool *kept = pst_calloc(m->n, sizeof *kept);
  int code = order && quota && counts && kept ? 0 : no_memory(m);
  size_t given = 0;
  for (size_t i = 0; i < m->n && !code; i++) {
    order[i] = (uint32_t)i;
    counts[m->entries[i].label_number]++;
  }
  for (size_t k = 0; k < m->n_labels && !code; k++) given += quota[k] = (uint32_t)(counts[k] * limit / m->n);
  while (!code && given < limit) {
    size_t best = 0;
    double most = -2;
    for (size_t k = 0; k < m->n_labels; k++) {
      double missing = (double)counts[k] * (double)limit / (double)m->n - quota[k];
      if (quota[k] < counts[k] && missing > most) most = missing, best = k;
    }
    quota[best]++;
    given++;
  }
  if (!code) {
    shuffle(order, m->n, m->options->seed, STREAM_SAMPLE);
    for (size_t i = 0; i < m->n; i++) {
      uint32_t *left = &quota[m->entries[order[i]].label_number];
      if (!*left) continue;
      --*left;
      kept[order[i]] = true;
    }
    size_t n = 0;
    for (size_t i = 0; i < m->n; i++)
      if (kept[i]) m->entries[n++] = m->entries[i];
    m->n = n;
  }
  pst_free(order);
  pst_free(quota);
  pst_free(counts);
  pst_free(kept);
  return code;
}

static int find_clusters(importer *m) {
  pst_str *texts = pst_calloc(m->n + 1, sizeof *texts);
  uint32_t *clusters = pst_calloc(m->n + 1, sizeof *clusters);
  int code = texts && clusters ? 0 : no_memory(m);
  for (size_t i = 0; i < m->n && !code; i++) texts[i] = m->entries[i].text;
  if (!code) code = pst_evals_cluster(texts, NULL, m->n, PST_EVALS_NEAR_DUPLICATE, clusters, m->err);
  for (size_t i = 0; i < m->n && !code; i++) m->entries[i].cluster = clusters[i];
  pst_free(texts);
  pst_free(clusters);
  return code;
}

typedef struct cluster {
  uint32_t size, drawn;   /* drawn: its place in the shuffled order */
  uint32_t number, label; /* the most frequent one: near-duplicates need not bear the same */
  size_t start;           /* of its entries among those in order of clusters */
} cluster;

static int compare_clusters(const void *a, const void *b) {
  const cluster *x = a, *y = b;
  if (x->size != y->size) return x->size > y->size ? -1 : 1;
  return (x->drawn > y->drawn) - (x->drawn < y->drawn);
}

/* The part furthest below its share: of the cluster's label first, then of all. */
static pst_evals_part neediest(const double shares[PST_EVALS_PART_COUNT], const uint32_t *of_label,
                               const uint32_t *of_all, uint32_t size) {
  uint32_t n_label = size, n_all = size;
  for (int p = 0; p < PST_EVALS_PART_COUNT; p++) {
    n_label += of_label[p];
    n_all += of_all[p];
  }
  int best = 0;
  double most = -INFINITY;
  for (int p = 0; p < PST_EVALS_PART_COUNT; p++) {
    if (shares[p] <= 0) continue;
    double needs = shares[p] * n_label - of_label[p] + (shares[p] * n_all - of_all[p]) / (1 + (double)n_label);
    if (needs > most) most = needs, best = p;
  }
  return (pst_evals_part)best;
}

/* A part for a cluster, drawn by what the parts lack of its label, so that all of them are samples of one distribution; PST_EVALS_PART_COUNT: none has room for it. */
static pst_evals_part draw_part(const double shares[PST_EVALS_PART_COUNT], const uint32_t *of_label, uint32_t n_label,
                                uint32_t size, pst_random *random) {
  double lacks[PST_EVALS_PART_COUNT], sum = 0, at;
  int part = PST_EVALS_PART_COUNT;
  for (int p = 0; p < PST_EVALS_PART_COUNT; p++) {
    double lack = shares[p] * n_label - of_label[p];
    lacks[p] = 2 * lack >= size ? lack : 0;
    sum += lacks[p];
  }
  at = pst_random_next_unit(random) * sum;
  for (int p = 0; p < PST_EVALS_PART_COUNT && at >= 0; p++) {
    if (lacks[p] > 0) part = p;
    at -= lacks[p];
  }
  return (pst_evals_part)part;
}

/* Clusters by number, and the entries [n] in order of clusters. counts [n_labels]: zeros, as they are left. Returns how many clusters there are. */
static size_t list_clusters(const importer *m, cluster *list, uint32_t *members, uint32_t *counts) {
  size_t n = 0, start = 0;
  for (size_t i = 0; i < m->n; i++) {
    list[m->entries[i].cluster].size++;
    n = PST_MAX(n, (size_t)m->entries[i].cluster + 1);
  }
  for (size_t c = 0; c < n; c++) {
    list[c].number = (uint32_t)c;
    list[c].start = start;
    start += list[c].size;
    list[c].size = 0;
  }
  for (size_t i = 0; i < m->n; i++) {
    cluster *c = &list[m->entries[i].cluster];
    members[c->start + c->size++] = (uint32_t)i;
  }
  for (size_t c = 0; c < n; c++) {
    const uint32_t *own = members + list[c].start;
    list[c].label = m->entries[own[0]].label_number;
    for (size_t i = 0; i < list[c].size; i++) {
      uint32_t label = m->entries[own[i]].label_number;
      if (++counts[label] > counts[list[c].label]) list[c].label = label;
    }
    for (size_t i = 0; i < list[c].size; i++) counts[m->entries[own[i]].label_number] = 0;
  }
  return n;
}

static int draw_parts(importer *m, const double shares[PST_EVALS_PART_COUNT]) {
  uint32_t *order = pst_calloc(m->n + 1, sizeof *order), *members = pst_calloc(m->n + 1, sizeof *members);
  cluster *list = pst_calloc(m->n + 1, sizeof *list);
  uint32_t(*of_label)[PST_EVALS_PART_COUNT] = pst_calloc(m->n_labels + 1, sizeof *of_label);
  uint32_t *n_label = pst_calloc(m->n_labels + 1, sizeof *n_label);
  pst_evals_part *parts = pst_calloc(m->n + 1, sizeof *parts);
  uint32_t of_all[PST_EVALS_PART_COUNT] = {0};
  pst_random random = {m->options->seed, STREAM_DRAWS, 0};
  size_t n = 0;
  int code = order && members && list && of_label && n_label && parts ? 0 : no_memory(m);
  if (code) goto done;
  n = list_clusters(m, list, members, n_label);
  for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
  shuffle(order, n, m->options->seed, STREAM_PARTS);
  for (size_t i = 0; i < n; i++) list[order[i]].drawn = (uint32_t)i;
  qsort(list, n, sizeof *list, compare_clusters); /* great ones first, while there is room for them */
  for (size_t i = 0; i < m->n; i++) n_label[m->entries[i].label_number]++;
  for (size_t i = 0; i < n; i++) {
    pst_evals_part part = draw_part(shares, of_label[list[i].label], n_label[list[i].label], list[i].size, &random);
    if (part == PST_EVALS_PART_COUNT) part = neediest(shares, of_label[list[i].label], of_all, list[i].size);
    parts[list[i].number] = part;
    of_all[part] += list[i].size;
    for (size_t k = 0; k < list[i].size; k++) of_label[m->entries[members[list[i].start + k]].label_number][part]++;
  }
  for (size_t i = 0; i < m->n; i++) m->entries[i].part = parts[m->entries[i].cluster];
  for (int p = 0; p < PST_EVALS_PART_COUNT && !code; p++)
    if (shares[p] > 0 && !of_all[p])
      code = pst_error_set(
          m->err, PST_E_BAD_INPUT, m->path,
          "nothing was left for the part %s: the texts are too few or too alike (%zu lines in %zu clusters "
          "of near-duplicates)",
          pst_evals_part_name((pst_evals_part)p), m->n, n);
done:
  pst_free(order);
  pst_free(members);
  pst_free(list);
  pst_free(of_label);
  pst_free(n_label);
  pst_free(parts);
  return code;
}

/* ---- ids ---- */

static int compare_entry_ids(const void *a, const void *b) {
  const entry *x = *(const entry *const *)a, *y = *(const entry *const *)b;
  int order = pst_str_compare(x->id, y->id);
  return order ? order : (x->line > y->line) - (x->line < y->line);
}

/* The file's ids are kept when each line has one of its own; else all are made of line numbers. */
static int check_ids(importer *m) {
  entry **sorted = pst_calloc(m->n + 1, sizeof *sorted);
  if (!sorted) return no_memory(m);
  bool good = true;
  for (size_t i = 0; i < m->n; i++) {
    sorted[i] = &m->entries[i];
    good = good && m->entries[i].id.n;
  }
  qsort(sorted, m->n, sizeof *sorted, compare_entry_ids);
  for (size_t i = 1; i < m->n; i++) good = good && !pst_str_equal(sorted[i]->id, sorted[i - 1]->id);
  for (size_t i = 0; i < m->n && !good; i++) m->entries[i].id = (pst_str){NULL, 0};
  pst_free(sorted);
  return 0;
}

/* ---- writing ---- */

static void write_items(const importer *m, pst_buf *out) {
  for (size_t i = 0; i < m->n; i++) {
    const entry *e = &m->entries[i];
    pst_json_writer w = pst_json_writer_on(out, false);
    char made[32];
    snprintf(made, sizeof made, "line-%06u", e->line);
    pst_json_begin_object(&w);
    pst_json_member_str(&w, "id", e->id.n ? e->id : pst_str_from(made));
    pst_json_key(&w, "messages");
    pst_json_begin_array(&w);
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "role", "user");
    pst_json_member_str(&w, "content", e->text);
    pst_json_end_object(&w);
    pst_json_end_array(&w);
    pst_json_key(&w, "reference");
    pst_json_put_value(&w, e->answer);
    pst_json_member_cstr(&w, "part", pst_evals_part_name(e->part));
    pst_json_end_object(&w);
    pst_buf_putc(out, '\n');
  }
}

static void write_prompt(pst_json_writer *w, const char *name, const char *system, const char *instruction,
                         const char *input_key, const char *answer_key) {
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "name", name);
  pst_json_member_cstr(w, "system", system);
  pst_json_member_cstr(w, "instruction", instruction);
  if (input_key) pst_json_member_cstr(w, "input_key", input_key);
  if (answer_key) pst_json_member_cstr(w, "answer_key", answer_key);
  pst_json_end_object(w);
}

static void write_label_prompts(const importer *m, pst_json_writer *w) {
  write_prompt(w, "bare", "", "Give the label of the message.", "Message", "Label");
  write_prompt(w, "terse", "You label messages.", "Answer with the label that fits the message, and nothing else.",
               "Message", "Label");
  if (m->n_labels > LABELS_LISTED_MAX) return;
  pst_buf list = PST_BUF_INIT, text = PST_BUF_INIT;
  for (size_t i = 0; i < m->n_labels; i++)
    pst_buf_printf(&list, "%s%.*s", i ? ", " : "", (int)m->labels[i].n, m->labels[i].data);
  pst_buf_printf(&text, "Answer with one label: %s.", pst_buf_text(&list));
  write_prompt(w, "listed", "You label messages.", pst_buf_text(&text), "Message", "Label");
  pst_buf_clear(&text);
  pst_buf_printf(
      &text,
      "A message has come in. Read it and decide what it is about. These are the labels we use: %s. Write the one that "
      "fits best, without any comment.",
      pst_buf_text(&list));
  write_prompt(w, "conversational", "You are an experienced colleague who sorts incoming messages with great care.",
               pst_buf_text(&text), "Message", "Label");
  if (pst_buf_status(&list) || pst_buf_status(&text)) w->out->failed = true;
  pst_buf_done(&list);
  pst_buf_done(&text);
}

/* The names of an object's members, one level into objects: "intent, slots (artist, playlist)". */
typedef struct member {
  pst_str outer, inner;
} member;

static int compare_members(const void *a, const void *b) {
  const member *x = a, *y = b;
  int order = pst_str_compare(x->outer, y->outer);
  return order ? order : pst_str_compare(x->inner, y->inner);
}

static int list_members(const importer *m, pst_buf *out) {
  member *list = NULL;
  size_t n = 0, capacity = 0;
  int code = 0;
  for (size_t i = 0; i < m->n && !code; i++) {
    pst_json_iter it = pst_json_iterate(m->entries[i].answer);
    while (pst_json_typeof(m->entries[i].answer) == PST_JSON_OBJECT && !code && pst_json_next(&it)) {
      code = pst_array_reserve((void **)&list, &capacity, n + 1 + pst_json_size(it.value), sizeof *list);
      if (code) break;
      list[n++] = (member){it.key, {NULL, 0}};
      pst_json_iter inner = pst_json_iterate(it.value);
      while (pst_json_typeof(it.value) == PST_JSON_OBJECT && pst_json_next(&inner))
        list[n++] = (member){it.key, inner.key};
    }
  }
  if (n) qsort(list, n, sizeof *list, compare_members);
  bool open = false;
  for (size_t i = 0; i < n && !code; i++) {
    if (i && !compare_members(&list[i], &list[i - 1])) continue;
    if (!list[i].inner.n) {
      pst_buf_printf(out, "%s%s%.*s", open ? ")" : "", out->n ? ", " : "", (int)list[i].outer.n, list[i].outer.data);
      open = false;
    } else {
      pst_buf_printf(out, "%s%.*s", open ? ", " : " (", (int)list[i].inner.n, list[i].inner.data);
      open = true;
    }
  }
  if (open) pst_buf_putc(out, ')');
  pst_free(list);
  return code ? code : pst_buf_status(out);
}

static void write_json_prompts(const importer *m, pst_json_writer *w) {
  pst_buf members = PST_BUF_INIT, text = PST_BUF_INIT;
  if (list_members(m, &members)) w->out->failed = true;
  write_prompt(w, "bare", "", "Give the JSON of the message.", "Message", "JSON");
  write_prompt(w, "terse", "You turn messages into JSON.", "Answer with one line of JSON and nothing else.", "Message",
               "JSON");
  pst_buf_printf(
      &text,
      "Extract what the message says as one line of JSON with these fields, leaving out what it does not say: %s.",
      members.n > 4000 ? "as in the examples" : pst_buf_text(&members));
  write_prompt(w, "described",
               "You extract structured data from messages. Values are copied from the message letter by letter.",
               pst_buf_text(&text), "Message", "JSON");
  if (pst_buf_status(&text)) w->out->failed = true;
  pst_buf_done(&members);
  pst_buf_done(&text);
}

/* The tables that statements begin with: "t", "orders, customers"; "" where they are many. */
static int list_tables(const importer *m, pst_buf *out) {
  pst_str seen[TABLES_LISTED_MAX];
  size_t n = 0;
  for (size_t i = 0; i < m->n; i++) {
    pst_str table = pst_evals_sql_table(pst_json_str(m->entries[i].answer));
    bool known = !table.n;
    for (size_t k = 0; k < n && !known; k++) known = pst_str_equal(seen[k], table);
    if (known) continue;
    if (n == TABLES_LISTED_MAX) return 0;
    seen[n++] = table;
  }
  if (n) qsort(seen, n, sizeof *seen, compare_strs);
  for (size_t k = 0; k < n; k++) pst_buf_printf(out, "%s%.*s", k ? ", " : "", (int)seen[k].n, seen[k].data);
  return pst_buf_status(out);
}

static void write_sql_prompts(const importer *m, pst_json_writer *w) {
  pst_buf tables = PST_BUF_INIT, text = PST_BUF_INIT;
  if (list_tables(m, &tables)) w->out->failed = true;
  write_prompt(w, "bare", "", "Give the SQL of the question.", "Question", "SQL");
  write_prompt(w, "terse", "You turn questions into SQL.", "Answer with one SQL statement and nothing else.",
               "Question", "SQL");
  pst_buf_puts(&text, "Write the one SQL statement that answers the question, and nothing else.");
  if (tables.n) pst_buf_printf(&text, " Tables: %s.", pst_buf_text(&tables));
  write_prompt(w, "described",
               "You write SQL for questions about data. Names of columns are taken as they are given, values as the "
               "question says them.",
               pst_buf_text(&text), "Question", "SQL");
  if (pst_buf_status(&text)) w->out->failed = true;
  pst_buf_done(&tables);
  pst_buf_done(&text);
}

static void write_prompts(const importer *m, pst_json_writer *w) {
  pst_json_key(w, "prompts");
  pst_json_begin_array(w);
  switch (m->kind) {
  case ANSWER_LABEL: write_label_prompts(m, w); break;
  case ANSWER_JSON: write_json_prompts(m, w); break;
  case ANSWER_SQL: write_sql_prompts(m, w); break;
  case ANSWER_NUMBER:
    write_prompt(w, "bare", "", "Give the number.", "Question", "Number");
    write_prompt(w, "terse", "You answer with numbers.", "Answer with one number and nothing else.", "Question",
                 "Number");
    write_prompt(w, "reasoned", "You are careful with figures.", "Work it out, and write the number last.", "Question",
                 "Answer");
    break;
  case ANSWER_TEXT:
    write_prompt(w, "bare", "", "Answer:", "Input", "Answer");
    write_prompt(w, "terse", "You give short, exact answers.", "Answer in as few words as possible.", "Input",
                 "Answer");
    write_prompt(w, "careful", "You are a careful assistant.",
                 "Read the text and give the answer that is asked for, and nothing else.", "Input", "Answer");
    break;
  }
  pst_json_end_array(w);
}

/* "the SQL of each text (columns, text); not used: table." The second half says what a file has that nobody asked for, since a model cannot know it. */
static void describe(const importer *m, const char *what, pst_buf *out) {
  const char *base = strrchr(m->path, '/');
  pst_buf_printf(out, "Imported from %.200s (%zu lines, seed %llu): the %s (%.*s) of each text (",
                 base ? base + 1 : m->path, m->n, (unsigned long long)m->options->seed, what,
                 (int)PST_MIN(m->answer_field.n, (size_t)60), m->answer_field.data);
  for (size_t i = 0; i < m->n_text_fields; i++)
    pst_buf_printf(out, "%s%.*s", i ? ", " : "", (int)PST_MIN(m->text_fields[i].n, (size_t)60), m->text_fields[i].data);
  pst_buf_puts(out, ")");
  const char *lead = "; not used: ";
  for (pst_json_iter it = pst_json_iterate(pst_json_root(m->docs[0])); pst_json_next(&it);) {
    bool used = pst_str_equal(it.key, m->answer_field) || pst_str_equal(it.key, PST_STR("id"));
    for (size_t i = 0; i < m->n_text_fields && !used; i++) used = pst_str_equal(it.key, m->text_fields[i]);
    if (used) continue;
    pst_buf_printf(out, "%s%.*s", lead, (int)PST_MIN(it.key.n, (size_t)60), it.key.data);
    lead = ", ";
  }
  pst_buf_puts(out, ".");
}

static void write_workload(const importer *m, const char *name, pst_buf *out) {
  static const char *const kinds[] = {"choice", "text", "extract", "text", "text"};
  static const char *const graders[] = {"choice", "numeric", "json", "sql", "normalized"};
  static const char *const whats[] = {"label", "number", "JSON", "SQL", "answer"};
  pst_buf about = PST_BUF_INIT;
  describe(m, whats[m->kind], &about);
  pst_json_writer w = pst_json_writer_on(out, true);
  pst_json_begin_object(&w);
  pst_json_member_int(&w, "schema", 1);
  pst_json_member_cstr(&w, "name", name);
  pst_json_member_str(&w, "description", pst_buf_str(&about));
  pst_json_key(&w, "task");
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "kind", kinds[m->kind]);
  if (m->kind == ANSWER_LABEL) pst_json_member_strs(&w, "labels", m->labels, m->n_labels);
  pst_json_member_cstr(&w, "input", "last_user_message");
  pst_json_end_object(&w);
  write_prompts(m, &w);
  pst_json_key(&w, "grader");
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "type", graders[m->kind]);
  pst_json_end_object(&w);
  pst_json_key(&w, "goal");
  pst_json_begin_object(&w);
  pst_json_member_double(&w, "quality_floor", 0.5);
  pst_json_member_double(&w, "max_quality_loss", 0.01);
  pst_json_member_double(&w, "margin", 0.05);
  pst_json_member_cstr(&w, "objective", "cost");
  pst_json_member_int(&w, "latency_p95_ms", 2000);
  pst_json_end_object(&w);
  pst_json_key(&w, "settings");
  pst_json_begin_object(&w);
  pst_json_member_double(&w, "machine_usd_per_hour", 0.1);
  pst_json_member_int(&w, "monthly_requests", 100000);
  pst_json_end_object(&w);
  pst_json_key(&w, "privacy");
  pst_json_begin_object(&w);
  pst_json_member_bool(&w, "remote", false);
  pst_json_end_object(&w);
  pst_json_end_object(&w);
  if (pst_buf_status(&about)) out->failed = true;
  pst_buf_done(&about);
  pst_buf_putc(out, '\n');
}

/* ---- the folder: whole or not at all ---- */

static int write_file(const char *folder, const char *name, const pst_buf *text, pst_error *err) {
  char *path = pst_path_join(folder, name);
  int code = path ? pst_file_write_atomic(path, text->data, text->n, err)
                  : pst_error_set(err, PST_E_NOMEM, NULL, "no memory to import");
  pst_free(path);
  return code;
}

/* Written beside the folder and read back as a workload before it gets its name. */
static int write_folder(importer *m, const char *folder, const pst_buf *workload, const pst_buf *items) {
  pst_buf beside = PST_BUF_INIT;
  pst_buf_printf(&beside, "%s.part-%ld", folder, (long)getpid());
  if (pst_buf_status(&beside)) return no_memory(m);
  const char *path = pst_buf_text(&beside);
  pst_evals_workload *check = NULL;
  int code = pst_dir_make(path, m->err);
  if (code) goto done;
  code = write_file(path, "workload.json", workload, m->err);
  if (!code) code = write_file(path, "items.jsonl", items, m->err);
  if (!code) code = pst_evals_workload_open(path, &check, m->err);
  pst_evals_workload_free(check);
  if (!code && rename(path, folder)) {
    int errnum = errno;
    code = errnum == ENOTEMPTY || errnum == EEXIST || errnum == ENOTDIR
               ? pst_error_set(m->err, PST_E_EXISTS, folder, "is there already; name a new folder")
               : pst_error_set_errno(m->err, errnum, folder, "cannot make the folder");
  }
  if (code) (void)pst_dir_remove(path);
done:
  pst_buf_done(&beside);
  return code;
}

/* The last component of a path, without slashes behind it. */
static char *name_of(const char *folder) {
  size_t end = strlen(folder);
  while (end > 1 && folder[end - 1] == '/') end--;
  size_t start = end;
  while (start > 0 && folder[start - 1] != '/') start--;
  return pst_strndup(folder + start, end - start);
}

static int check_options(const char *folder, const pst_evals_import_options *o, pst_error *err) {
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++)
    if (!(o->shares[i] >= 0)) return pst_error_set(err, PST_E_BAD_INPUT, "shares", "a share is negative");
  if (o->n_text_fields > PST_EVALS_TEXT_FIELDS_MAX)
    return pst_error_set(err, PST_E_BAD_INPUT, "text", "%zu fields are more than the limit of %d", o->n_text_fields,
                         PST_EVALS_TEXT_FIELDS_MAX);
  for (size_t i = 0; i < o->n_text_fields; i++)
    for (size_t k = 0; k < i; k++)
      if (!strcmp(o->text_fields[i], o->text_fields[k]))
        return pst_error_set(err, PST_E_BAD_INPUT, "text", "the field \"%.60s\" is named twice", o->text_fields[i]);
  if (pst_dir_exists(folder) || pst_file_exists(folder))
    return pst_error_set(err, PST_E_EXISTS, folder, "is there already; name a new folder");
  if (o->name && (!*o->name || strchr(o->name, '/')))
    return pst_error_set(err, PST_E_BAD_INPUT, "name", "a name is not empty and holds no '/'");
  return 0;
}

/* The shares asked for, or the usual ones of n items: a part that judges says no more for being larger than this, and what it would take is worth more as examples. */
static void find_shares(const pst_evals_import_options *o, size_t n, double shares[PST_EVALS_PART_COUNT]) {
  static const double most[PST_EVALS_PART_COUNT] = {
      [PST_EVALS_SEARCH] = 600, [PST_EVALS_VERIFY] = 1000, [PST_EVALS_SEALED] = 900};
  double sum = 0;
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++) sum += o->shares[i];
  for (int i = 0; i < PST_EVALS_PART_COUNT && sum > 0; i++) shares[i] = o->shares[i] / sum;
  if (sum > 0) return;
  shares[PST_EVALS_EXAMPLES] = 1;
  for (int i = PST_EVALS_SEARCH; i < PST_EVALS_PART_COUNT; i++) {
    shares[i] = fmin(0.2, most[i] / (double)n);
    shares[PST_EVALS_EXAMPLES] -= shares[i];
  }
}

int pst_evals_import(const char *jsonl_path, const char *folder, const pst_evals_import_options *options,
                     pst_progress *progress, pst_error *err) {
  importer m = {.path = jsonl_path, .options = options, .err = err};
  double shares[PST_EVALS_PART_COUNT];
  char *text = NULL, *name = NULL;
  size_t n = 0;
  pst_buf workload = PST_BUF_INIT, items = PST_BUF_INIT;
  int code = check_options(folder, options, err);
  if (!code && !(m.arena = pst_arena_create())) code = no_memory(&m);
  if (!code) code = pst_file_read(jsonl_path, FILE_BYTES_MAX, &text, &n, err);
  if (!code) code = read_lines(&m, (pst_str){text, n});
  if (!code && progress) pst_progress_update(progress, (int64_t)m.n);
  if (!code) code = find_kind(&m);
  if (!code) code = take_sample(&m);
  if (!code) code = find_clusters(&m);
  if (!code) find_shares(options, m.n, shares);
  if (!code) code = draw_parts(&m, shares);
  if (!code) code = check_ids(&m);
  if (!code && !(name = options->name ? pst_strdup(options->name) : name_of(folder))) code = no_memory(&m);
  if (!code) {
    write_workload(&m, name, &workload);
    write_items(&m, &items);
    if (pst_buf_status(&workload) || pst_buf_status(&items)) code = no_memory(&m);
  }
  if (!code) code = write_folder(&m, folder, &workload, &items);
  for (size_t i = 0; i < m.n_docs; i++) pst_json_free(m.docs[i]);
  pst_free(m.docs);
  pst_arena_free(m.arena);
  pst_free(m.entries);
  pst_free(m.labels);
  pst_free(text);
  pst_free(name);
  pst_buf_done(&workload);
  pst_buf_done(&items);
  return code;
}
