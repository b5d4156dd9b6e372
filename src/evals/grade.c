/* Graders: is this answer right?
 *
 * One function per kind, chosen by the workload. Pure and total: whatever a model writes (megabytes, broken UTF-8, JSON a thousand
 * levels deep) is graded, as wrong where it cannot be read; an error is only lack of memory. Where a kind takes a list as reference,
 * any entry will do. docs/workload.md says what each kind forgives. */
#include "evals/workload.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Patterns are the workload's and answers the model's: what is longer is not searched. */
#define REGEX_TEXT_MAX ((size_t)1 << 20)
#define JSON_DEPTH_MAX 64

const char *pst_evals_grader_name(pst_evals_grader_kind kind) {
  static const char *const names[] = {"exact", "normalized", "contains", "regex", "numeric", "json", "choice", "sql"};
  return (size_t)kind < PST_ARRAY_LEN(names) ? names[kind] : "";
}

/* ---- texts ---- */

static bool words_contain(pst_str hay, pst_str needle) {
  for (size_t at = 0; needle.n && (at = pst_str_find(hay, needle, at)) != SIZE_MAX; at++) {
    size_t end = at + needle.n;
    if ((at == 0 || hay.data[at - 1] == ' ') && (end == hay.n || hay.data[end] == ' ')) return true;
  }
  return false;
}

/* Compares with one reference. NORMALIZED: in normal form. CONTAINS: the reference's words stand in the answer in one row; a reference without words
 * (a sign, an emoji) is looked for as it is. */
static int grade_text(pst_evals_grader_kind kind, pst_str answer, pst_str expected, bool *ret_right) {
  if (kind == PST_EVALS_EXACT) {
    *ret_right = pst_str_equal(pst_str_trim(answer), pst_str_trim(expected));
    return 0;
  }
  pst_buf a = PST_BUF_INIT, e = PST_BUF_INIT;
  bool contains = kind == PST_EVALS_CONTAINS;
  int code = contains ? pst_evals_words(answer, &a) : pst_evals_normalize(answer, &a);
  if (!code) code = contains ? pst_evals_words(expected, &e) : pst_evals_normalize(expected, &e);
  if (!code && !contains) *ret_right = pst_str_equal(pst_buf_str(&a), pst_buf_str(&e));
  if (!code && contains) {
    pst_str bare = pst_str_trim(expected);
    *ret_right =
        e.n ? words_contain(pst_buf_str(&a), pst_buf_str(&e)) : bare.n && pst_str_find(answer, bare, 0) != SIZE_MAX;
  }
  pst_buf_done(&a);
  pst_buf_done(&e);
  return code;
}

/* ---- numbers ---- */

/* Reads a number at the start of s: sign, digits with commas between groups of three, point, exponent. Returns its bytes, 0: none. */
static size_t number_at(pst_str s, double *ret_value) {
  char digits[400];
  size_t n = 0, i = 0, group = 0;
  bool seen = false, grouped = false;
  if (i < s.n && (s.data[i] == '-' || s.data[i] == '+')) digits[n++] = s.data[i++];
  for (; i < s.n && n < sizeof digits - 40; i++) {
    char c = s.data[i];
    bool comma = c == ',' && seen && (grouped ? group == 3 : group <= 3) && i + 3 < s.n;
    for (size_t k = 1; comma && k <= 3; k++) comma = s.data[i + k] >= '0' && s.data[i + k] <= '9';
    if (comma) {
      grouped = true;
      group = 0;
    } else if (c >= '0' && c <= '9' && !(grouped && group == 3)) {
      digits[n++] = c;
      group++;
      seen = true;
    } else {
      break;
    }
  }
  if (i + 1 < s.n && s.data[i] == '.' && s.data[i + 1] >= '0' && s.data[i + 1] <= '9') {
    seen = true;
    digits[n++] = s.data[i++];
    while (i < s.n && s.data[i] >= '0' && s.data[i] <= '9') {
      if (n < sizeof digits - 20) digits[n++] = s.data[i]; /* further decimals change nothing */
      i++;
    }
  }
  if (!seen) return 0;
  size_t k = i + 1;
  if (i < s.n && (s.data[i] | 32) == 'e') {
    if (k < s.n && (s.data[k] == '-' || s.data[k] == '+')) k++;
    size_t first = k;
    while (k < s.n && k - first < 5 && s.data[k] >= '0' && s.data[k] <= '9') k++;
    if (k > first) {
      memcpy(digits + n, s.data + i, k - i);
      n += k - i;
      i = k;
    }
  }
  digits[n] = 0;
  *ret_value = strtod(digits, NULL);
  return i;
}

static bool is_letter_or_digit(char c) {
  return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_';
}

/* The last number of a text: models say the result last. The minus sign of U+2212 counts as one. */
static bool last_number(pst_str text, double *ret_value) {
  bool found = false;
  for (size_t i = 0; i < text.n;) {
    double value = 0;
    pst_str rest = {text.data + i, text.n - i};
    bool minus = pst_str_starts(rest, PST_STR("\xe2\x88\x92"));
    if (minus) rest = (pst_str){rest.data + 3, rest.n - 3};
    bool inside = i > 0 && (is_letter_or_digit(text.data[i - 1]) || (text.data[i - 1] == '.' && i > 1));
    bool sign = rest.n && (rest.data[0] == '-' || rest.data[0] == '+');
    /* "3-4" is two numbers, not 3 and -4; "gpt4" is none. */
    size_t n = inside && sign ? 0 : number_at(rest, &value);
    if (n && !(inside && !sign && is_letter_or_digit(text.data[i - 1]))) {
      *ret_value = minus ? -value : value;
      found = true;
    }
    i += n ? n + (minus ? 3 : 0) : 1;
  }
  return found;
}

static bool grade_number(const pst_evals_grading *g, pst_str answer, pst_str expected) {
  double x = 0, e = 0;
  if (!last_number(answer, &x) || !last_number(expected, &e) || !isfinite(x)) return false;
  return fabs(x - e) <= fmax(g->tolerance, g->relative_tolerance * fabs(e));
}

/* ---- JSON ---- */

/* An answer in one Markdown code fence is what stands in it. */
static pst_str without_fence(pst_str answer) {
  pst_str s = pst_str_trim(answer);
  if (!pst_str_starts(s, PST_STR("```")) || s.n < 6) return s;
  size_t line = pst_str_find(s, PST_STR("\n"), 3);
  if (line == SIZE_MAX || memcmp(s.data + s.n - 3, "```", 3) != 0 || line + 1 > s.n - 3) return s;
  return pst_str_trim((pst_str){s.data + line + 1, s.n - 3 - (line + 1)});
}

typedef struct json_count {
  const pst_evals_grading *grading;
  size_t n, n_right; /* fields looked at, and those that match */
  int code;
} json_count;

static bool same_value(json_count *c, const pst_json *a, const pst_json *b) {
  if (!c->grading->loose_text || pst_json_typeof(a) != PST_JSON_STRING || pst_json_typeof(b) != PST_JSON_STRING)
    return pst_json_equal(a, b);
  bool same = false;
  int code = grade_text(PST_EVALS_NORMALIZED, pst_json_str(a), pst_json_str(b), &same);
  if (code) c->code = code;
  return same;
}

static void count_field(json_count *c, const pst_json *answer, const pst_json *expected) {
  c->n++;
  if (!answer || !expected)
    c->n_right += answer == expected; /* absent on both sides */
  else
    c->n_right += same_value(c, answer, expected);
}

/* All members on both sides, down to what is no object: one that is missing and one too many are both wrong. */
static void count_members(json_count *c, const pst_json *answer, const pst_json *expected, int depth) {
  bool both = pst_json_typeof(answer) == PST_JSON_OBJECT && pst_json_typeof(expected) == PST_JSON_OBJECT;
  if (!both || depth >= JSON_DEPTH_MAX) {
    count_field(c, answer, expected);
    return;
  }
  if (!pst_json_size(answer) && !pst_json_size(expected)) count_field(c, answer, expected);
  pst_json_iter it = pst_json_iterate(expected);
  while (pst_json_next(&it)) {
    const pst_json *theirs = pst_json_get_str(answer, it.key);
    if (theirs)
      count_members(c, theirs, it.value, depth + 1);
    else
      c->n++;
  }
  it = pst_json_iterate(answer);
  while (pst_json_next(&it))
    if (!pst_json_get_str(expected, it.key)) c->n++;
}

static const pst_json *at_path(const pst_json *v, pst_str path) {
  while (v) {
    size_t dot = pst_str_find(path, PST_STR("."), 0);
    v = pst_json_get_str(v, (pst_str){path.data, PST_MIN(dot, path.n)});
    if (dot == SIZE_MAX) break;
    path = (pst_str){path.data + dot + 1, path.n - dot - 1};
  }
  return v;
}

static int grade_json(const pst_evals_grading *g, pst_str answer, const pst_json *expected, pst_evals_grade *grade) {
  pst_json_doc *doc = NULL;
  pst_str text = without_fence(answer);
  int code = pst_json_parse(text.data ? text.data : "", text.n, NULL, &doc, NULL);
  if (code == PST_E_NOMEM) return code;
  if (code) return 0; /* not JSON: not accepted */
  const pst_json *root = pst_json_root(doc);
  json_count c = {g, 0, 0, 0};
  for (size_t i = 0; i < g->n_fields; i++)
    count_field(&c, at_path(root, g->fields[i]), at_path(expected, g->fields[i]));
  if (!g->n_fields) count_members(&c, root, expected, 0);
  grade->accepted = c.n_right == c.n && (!g->n_fields || pst_json_typeof(root) == PST_JSON_OBJECT);
  grade->score = c.n ? (double)c.n_right / (double)c.n : 0;
  if (g->n_fields && pst_json_typeof(root) != PST_JSON_OBJECT) grade->score = 0;
  pst_json_free(doc);
  return c.code;
}

/* ---- choices ---- */

/* The longest label that stands at the start of `words`; SIZE_MAX: none. */
static size_t label_at(const pst_evals_workload *w, pst_str words) {
  const pst_evals_grading *g = &w->grading;
  for (size_t i = 0; i < w->info.n_labels; i++) {
    pst_str key = g->label_keys[g->label_order[i]];
    if (pst_str_starts(words, key) && (words.n == key.n || words.data[key.n] == ' ')) return g->label_order[i];
  }
  return SIZE_MAX;
}

/* The label an answer names: the only one whose words stand in it, where a longer label hides shorter ones inside it. Two different ones: none. */
static size_t label_named(const pst_evals_workload *w, pst_str words) {
  const pst_evals_grading *g = &w->grading;
  size_t named = SIZE_MAX;
  while (words.n) {
    size_t skip, label = label_at(w, words);
    if (label != SIZE_MAX) {
      if (named != SIZE_MAX && named != label) return SIZE_MAX;
      named = label;
      skip = g->label_keys[label].n;
    } else {
      skip = PST_MIN(pst_str_find(words, PST_STR(" "), 0), words.n);
    }
    if (skip < words.n) skip++;
    words = (pst_str){words.data + skip, words.n - skip};
  }
  return named;
}

static int grade_choice(const pst_evals_workload *w, pst_str answer, pst_str expected, bool *ret_right) {
  pst_str bare = pst_str_trim(answer);
  for (size_t i = 0; i < w->info.n_labels; i++) {
    if (!pst_str_equal(bare, w->info.labels[i])) continue;
    *ret_right = pst_str_equal(bare, expected);
    return 0;
  }
  if (!w->grading.label_keys) return 0;
  pst_buf words = PST_BUF_INIT;
  int code = pst_evals_words(answer, &words);
  if (!code) {
    size_t label = label_named(w, pst_buf_str(&words));
    *ret_right = label != SIZE_MAX && pst_str_equal(w->info.labels[label], expected);
  }
  pst_buf_done(&words);
  return code;
}

/* ---- the entry ---- */

static int grade_one(const pst_evals_workload *w, size_t item, pst_str answer, pst_str expected, bool *ret_right) {
  switch (w->info.grader) {
  case PST_EVALS_NUMERIC: *ret_right = grade_number(&w->grading, answer, expected); return 0;
  case PST_EVALS_CHOICE: return grade_choice(w, answer, expected, ret_right);
  case PST_EVALS_SQL: return pst_evals_sql_equal(without_fence(answer), expected, ret_right);
  case PST_EVALS_REGEX: {
    pst_buf clean = PST_BUF_INIT;
    pst_utf8_sanitize((pst_str){answer.data, PST_MIN(answer.n, REGEX_TEXT_MAX)}, &clean);
    int code = pst_buf_status(&clean);
    if (!code) *ret_right = pst_regex_find(w->patterns[item], pst_buf_str(&clean), 0, NULL, 0) == 1;
    pst_buf_done(&clean);
    return code;
  }
  default: return grade_text(w->info.grader, answer, expected, ret_right);
  }
}

/* A list of references: any will do. */
static int grade_any(const pst_evals_workload *w, size_t item, pst_str answer, bool *ret_right) {
  const pst_json *value = w->values[item];
  bool list = pst_json_typeof(value) == PST_JSON_ARRAY && w->info.grader != PST_EVALS_CHOICE &&
              w->info.grader != PST_EVALS_REGEX;
  if (!list) return grade_one(w, item, answer, w->info.items[item].expected, ret_right);
  pst_json_iter it = pst_json_iterate(value);
  int code = 0;
  while (!code && !*ret_right && pst_json_next(&it)) {
    if (pst_json_typeof(it.value) == PST_JSON_STRING) {
      code = grade_one(w, item, answer, pst_json_str(it.value), ret_right);
      continue;
    }
    pst_buf text = PST_BUF_INIT;
    pst_json_writer writer = pst_json_writer_on(&text, false);
    pst_json_put_value(&writer, it.value);
    code = pst_buf_status(&text);
    if (!code) code = grade_one(w, item, answer, pst_buf_str(&text), ret_right);
    pst_buf_done(&text);
  }
  return code;
}

int pst_evals_grade_answer(const pst_evals_workload *w, const pst_evals_item *item, pst_str answer,
                           pst_evals_grade *ret_grade, pst_error *err) {
  pst_evals_grade grade = {false, 0};
  size_t i = (size_t)(item - w->info.items);
  int code;
  if (!answer.data) answer = PST_STR("");
  if (w->info.grader == PST_EVALS_JSON) {
    code = grade_json(&w->grading, answer, w->values[i], &grade);
  } else {
    bool right = false;
    code = grade_any(w, i, answer, &right);
    grade = (pst_evals_grade){right, right};
  }
  if (code) return pst_error_set(err, code, NULL, "no memory to grade an answer");
  *ret_grade = grade;
  return 0;
}

/* ---- what is prepared when a workload is opened ---- */

typedef struct label_key {
  pst_str key;
  size_t label;
} label_key;

static int compare_keys(const void *a, const void *b) {
  const label_key *x = a, *y = b;
  if (x->key.n != y->key.n) return x->key.n > y->key.n ? -1 : 1;
  return pst_str_compare(x->key, y->key);
}

/* Labels by their words, unless two have the same ("C", "C++") or one has none: then they are compared letter by letter. */
static int prepare_labels(pst_evals_workload *w) {
  size_t n = w->info.n_labels;
  pst_str *keys = pst_arena_calloc(w->arena, n, sizeof *keys);
  size_t *order = pst_arena_calloc(w->arena, n, sizeof *order);
  label_key *sorted = pst_calloc(n, sizeof *sorted);
  pst_buf words = PST_BUF_INIT;
  int code = keys && order && sorted ? 0 : PST_E_NOMEM;
  bool clear = true;
  for (size_t i = 0; i < n && !code; i++) {
    pst_buf_clear(&words);
    code = pst_evals_words(w->info.labels[i], &words);
    char *copy = code ? NULL : pst_arena_strndup(w->arena, pst_buf_text(&words), words.n);
    if (!copy) code = PST_E_NOMEM;
    keys[i] = (pst_str){copy, words.n};
    sorted[i] = (label_key){keys[i], i};
    clear = clear && words.n;
  }
  if (!code) {
    qsort(sorted, n, sizeof *sorted, compare_keys);
    for (size_t i = 0; i < n; i++) order[i] = sorted[i].label;
    for (size_t i = 1; i < n; i++) clear = clear && !pst_str_equal(sorted[i].key, sorted[i - 1].key);
    if (clear) {
      w->grading.label_keys = keys;
      w->grading.label_order = order;
    }
  }
  pst_free(sorted);
  pst_buf_done(&words);
  return code;
}

static int fail_item(const pst_evals_workload *w, size_t item, pst_error *err, const char *message) {
  char place[256];
  snprintf(place, sizeof place, "%.200s/items.jsonl:%u: reference", w->info.folder, w->lines[item]);
  return pst_error_set(err, PST_E_BAD_INPUT, place, "%s", message);
}

static int prepare_patterns(pst_evals_workload *w, pst_error *err) {
  const pst_evals_info *info = &w->info;
  w->patterns = pst_arena_calloc(w->arena, info->n_items, sizeof *w->patterns);
  if (!w->patterns) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the workload");
  unsigned flags = w->grading.caseless ? PST_REGEX_CASELESS : 0;
  for (size_t i = 0; i < info->n_items; i++) {
    pst_error inner = PST_ERROR_INIT;
    if (pst_json_typeof(w->values[i]) != PST_JSON_STRING)
      return fail_item(w, i, err, "a text with a regular expression is wanted");
    int code = pst_regex_create(info->items[i].expected, flags, &w->patterns[i], &inner);
    if (code == PST_E_NOMEM) return pst_error_set(err, code, NULL, "no memory for the workload");
    if (code) return fail_item(w, i, err, inner.message);
  }
  return 0;
}

int pst_evals_grading_prepare(pst_evals_workload *w, pst_error *err) {
  const pst_evals_info *info = &w->info;
  if (info->grader == PST_EVALS_REGEX) return prepare_patterns(w, err);
  if (info->grader == PST_EVALS_CHOICE && prepare_labels(w))
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the workload");
  for (size_t i = 0; info->grader == PST_EVALS_NUMERIC && i < info->n_items; i++) {
    double value;
    if (!last_number(info->items[i].expected, &value)) return fail_item(w, i, err, "a number is wanted");
  }
  for (size_t i = 0; info->grader == PST_EVALS_JSON && w->grading.n_fields && i < info->n_items; i++)
    if (pst_json_typeof(w->values[i]) != PST_JSON_OBJECT) return fail_item(w, i, err, "an object is wanted");
  return 0;
}
