/* Texts of a JSON answer that are copied from the input. Small models misspell rare names when they copy them; where a field's texts always stand in the input, an answer's text that does not is wrong, and
 * what it was meant to be is the part of the input that is most like it.
 *
 * The part is found by edit distance against all parts at once (Sellers 1980): the usual table of prefixes, but a match may begin at any word of the input at no cost, and end with any. */
#include <penstock/gateway.h>

#include <string.h>

enum { FIELD_BYTES_MAX = 256, FAR = 1 << 30 };
/* Of the tables of an answer together: some ten milliseconds on whatever thread the answer ends on. */
#define STEPS_MAX ((size_t)1 << 22)

/* ---- the part most like a text ---- */

typedef struct place {
  int cost;
  size_t start; /* of the match in the input */
} place;

/* Letters, digits and all that is not ASCII. */
static bool is_inner(char c) {
  unsigned char u = (unsigned char)c;
  return u >= 128 || (u >= '0' && u <= '9') || ((u | 32) >= 'a' && (u | 32) <= 'z');
}

static bool is_one_of(char c, const char *marks) { return c && strchr(marks, c); }

/* Words begin behind a space or behind a mark that opens; they end before a space or a mark that closes. Marks inside of words ("cynthia's") do neither. */
static bool begins(pst_str s, size_t at) {
  if (at == 0 || pst_is_space(s.data[at - 1])) return !pst_is_space(s.data[at]);
  return is_one_of(s.data[at - 1], "\"'([{<") && (at == 1 || !is_inner(s.data[at - 2]));
}

static bool ends(pst_str s, size_t at) {
  if (pst_is_space(s.data[at - 1])) return false;
  if (at == s.n || pst_is_space(s.data[at])) return true;
  return is_one_of(s.data[at], ".,;:!?\"')]}>") && (at + 1 == s.n || !is_inner(s.data[at + 1]));
}

static place nearer(place a, place b) { return b.cost < a.cost ? b : a; }

static place further(place p, int by) { return (place){p.cost + by, p.start}; }

/* column [text.n + 1]: for each beginning of the text the match that ends here. */
static void next_column(pst_str text, pst_str input, size_t at, place *column) {
  place before = column[0];
  column[0] = further(before, 1);
  if (at + 1 < input.n && begins(input, at + 1)) column[0] = (place){0, at + 1};
  for (size_t i = 0; i < text.n; i++) {
    place both = further(before, text.data[i] != input.data[at]);
    before = column[i + 1];
    column[i + 1] = nearer(both, nearer(further(before, 1), further(column[i], 1)));
  }
}

/* The input's part, of whole words, that is nearest to the text; the first of such. Data NULL: none is as near as half its length, or more steps would be needed than are left. PST_E_NOMEM. */
static int find_part(pst_str text, pst_str input, size_t *steps_left, pst_str *ret_part) {
  *ret_part = (pst_str){NULL, 0};
  if (!text.n || !input.n || text.n >= *steps_left / input.n) return 0;
  *steps_left -= (text.n + 1) * input.n;
  place *column = pst_calloc(text.n + 1, sizeof *column), best = {(int)(text.n / 2) + 1, 0};
  size_t end = 0;
  if (!column) return PST_E_NOMEM;
  for (size_t i = 0; i <= text.n; i++) column[i] = (place){begins(input, 0) ? (int)i : FAR, 0};
  for (size_t at = 0; at < input.n; at++) {
    next_column(text, input, at, column);
    if (column[text.n].cost >= best.cost || column[text.n].start > at || !ends(input, at + 1)) continue;
    best = column[text.n];
    end = at + 1;
  }
  pst_free(column);
  if (end) *ret_part = (pst_str){input.data + best.start, end - best.start};
  return 0;
}

/* ---- values ---- */

typedef struct walk {
  char field[FIELD_BYTES_MAX];
  size_t n; /* bytes of it; more than fit: no field */
  int (*fn)(void *user, pst_str field, pst_str text, pst_str *ret_other);
  void *user;
  pst_json_writer *w;
  int code;
} walk;

static void go_down(walk *k, pst_str name, bool dot) {
  size_t dots = dot && k->n ? 1 : 0;
  if (k->n + dots + name.n <= sizeof k->field) {
    if (dots) k->field[k->n] = '.';
    memcpy(k->field + k->n + dots, name.data, name.n);
  }
  k->n += dots + name.n;
}

static void walk_value(walk *k, const pst_json *v) {
  pst_json_type type = pst_json_typeof(v);
  pst_str text = pst_json_str(v);
  size_t n = k->n;
  if (type == PST_JSON_OBJECT || type == PST_JSON_ARRAY) {
    bool object = type == PST_JSON_OBJECT;
    object ? pst_json_begin_object(k->w) : pst_json_begin_array(k->w);
    for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it); k->n = n) {
      if (object) pst_json_key_str(k->w, it.key);
      go_down(k, object ? it.key : PST_STR("[]"), object);
      walk_value(k, it.value);
    }
    object ? pst_json_end_object(k->w) : pst_json_end_array(k->w);
  } else if (type == PST_JSON_STRING && k->n && k->n <= sizeof k->field && !k->code) {
    k->code = k->fn(k->user, (pst_str){k->field, k->n}, text, &text);
    pst_json_put_str(k->w, text);
  } else {
    pst_json_put_value(k->w, v);
  }
}

int pst_gateway_copied_each(const pst_json *value,
                            int (*fn)(void *user, pst_str field, pst_str text, pst_str *ret_other), void *user,
                            pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  walk k = {.fn = fn, .user = user, .w = &w};
  walk_value(&k, value);
  return k.code ? k.code : pst_buf_status(out);
}

/* ---- answers ---- */

typedef struct mending {
  const pst_gateway_plan *plan;
  pst_str input;
  size_t steps_left;
  bool any;
} mending;

static int mend_text(void *user, pst_str field, pst_str text, pst_str *ret_other) {
  mending *m = user;
  pst_str part;
  int i = 0;
  while (i < m->plan->n_copied && !pst_str_equal(m->plan->copied[i], field)) i++;
  if (i == m->plan->n_copied || pst_str_find(m->input, text, 0) != SIZE_MAX) return 0;
  int code = find_part(text, m->input, &m->steps_left, &part);
  if (code || !part.data) return code;
  *ret_other = part;
  m->any = true;
  return 0;
}

int pst_gateway_copied_mend(const pst_gateway_plan *plan, pst_str input, pst_buf *answer) {
  mending m = {.plan = plan, .input = input, .steps_left = STEPS_MAX};
  pst_json_doc *doc = NULL;
  pst_buf out = PST_BUF_INIT;
  int code = pst_json_parse(answer->data, answer->n, "answer", &doc, NULL);
  if (code) return code == PST_E_NOMEM ? code : 0;
  code = pst_gateway_copied_each(pst_json_root(doc), mend_text, &m, &out);
  pst_json_free(doc);
  if (!code && m.any) {
    pst_buf_clear(answer);
    pst_buf_append_str(answer, pst_buf_str(&out));
    code = pst_buf_status(answer);
  }
  pst_buf_done(&out);
  return code;
}
