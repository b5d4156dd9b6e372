/* Is a value valid under a schema?
 *
 * A first pass only answers. When the answer is no, a second one looks for what to tell: the failure that lies deepest in the value, which for alternatives is the
 * one that came nearest. Which members and elements were evaluated is tracked only where some schema asks (unevaluatedProperties, unevaluatedItems). */
#include "schema/schema.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_MAX 20000000
/* Schemas inside schemas; about 800 bytes of stack each, and a thread may have no more than 1 MiB in all. */
#define DEPTH_MAX 1000

/* Resources that evaluation has entered, innermost first. */
typedef struct scope {
  const struct scope *up;
  int resource;
} scope;

/* Which members or elements of one value have been evaluated: n bytes. */
typedef struct marks {
  uint8_t *seen;
  size_t n;
} marks;

/* A value for a message: short, one line. */
typedef struct shown {
  char text[120];
} shown;

typedef struct listed {
  char text[400];
} listed;

typedef struct run {
  const pst_schema *s;
  int64_t n_steps;
  int depth;
  int code;       /* what ended the run early: PST_E_LIMIT, PST_E_NOMEM */
  pst_error *err; /* NULL: only the answer is wanted */
  int err_depth;  /* of the failure in err; -1: none yet */
  int quiet;      /* above 0: failures here are no failures of the whole */
  const char *source;
  shown values[2]; /* texts for a message: here and not on the stack, which is deep enough */
  int n_shown;
  listed list;
} run;

typedef struct spot { /* where the run stands */
  const pst_json *value;
  const pst_schema_path *path;
  const scope *scope;
} spot;

static bool eval(run *r, const pst_schema_node *node, spot at, marks *marks);

/* ---- failures ---- */

static int depth_of(const pst_schema_path *path) { return path ? path->depth : 0; }

static bool is_told(const run *r) { return r->err && !r->quiet; }

static bool fail(run *r, const pst_schema_path *path, const char *format, ...) PST_PRINTF(3, 4);
static bool fail(run *r, const pst_schema_path *path, const char *format, ...) {
  if (!is_told(r) || depth_of(path) <= r->err_depth) return false;
  char place[256], message[700];
  pst_buf pointer = PST_BUF_INIT;
  va_list args;
  va_start(args, format);
  (void)vsnprintf(message, sizeof message, format, args);
  va_end(args);
  pst_schema_path_write(path, &pointer);
  (void)snprintf(place, sizeof place, "%.120s#%.130s", r->source, pst_buf_text(&pointer));
  pst_buf_done(&pointer);
  pst_error_set(r->err, PST_E_BAD_INPUT, place, "%s", message);
  r->err_depth = depth_of(path);
  return false;
}

static bool stop(run *r, int code) {
  if (!r->code) r->code = code;
  return false;
}

/* Good until the next but one is shown. */
static const char *show(run *r, const pst_json *v) {
  if (!is_told(r)) return "";
  shown *out = &r->values[r->n_shown++ % 2];
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_put_value(&w, v);
  pst_str s = pst_buf_str(&text);
  bool long_text = s.n > 80;
  if (long_text) s.n = 80;
  if (long_text) s.n -= pst_utf8_incomplete_tail(s);
  (void)snprintf(out->text, sizeof out->text, "%.*s%s", (int)s.n, s.data ? s.data : "", long_text ? "..." : "");
  pst_buf_done(&text);
  return out->text;
}

static void list_add(listed *l, const char *text, int n) {
  size_t used = strlen(l->text);
  if (used + (size_t)n + 8 < sizeof l->text)
    (void)snprintf(l->text + used, sizeof l->text - used, "%s%.*s", used ? ", " : "", n, text);
  else if (used + 6 < sizeof l->text && (used < 3 || strcmp(l->text + used - 3, "...") != 0))
    (void)snprintf(l->text + used, sizeof l->text - used, ", ...");
}

/* ---- numbers ---- */

static bool is_integer(const pst_json *v) {
  double d = pst_json_double(v, NAN);
  return pst_json_is_int(v) || (isfinite(d) && d == trunc(d));
}

static int compare_numbers(const pst_json *a, const pst_json *b) {
  if (pst_json_is_int(a) && pst_json_is_int(b)) {
    int64_t x = pst_json_int(a, 0), y = pst_json_int(b, 0);
    return (x > y) - (x < y);
  }
  double x = pst_json_double(a, 0), y = pst_json_double(b, 0);
  return (x > y) - (x < y);
}

/* A number as JSON spells it: digits x 10^exponent, at most 17 digits. */
typedef struct decimal {
  uint64_t digits;
  int exponent;
} decimal;

static decimal decimal_of(double d) {
  char text[40];
  decimal out = {0, 0};
  int precision = 14;
  do (void)snprintf(text, sizeof text, "%.*e", precision, fabs(d));
  while (precision++ < 16 && strtod(text, NULL) != fabs(d));
  const char *at = text;
  for (bool fraction = false; *at && *at != 'e'; at++) {
    if (*at == '.')
      fraction = true;
    else
      out.digits = out.digits * 10 + (uint64_t)(*at - '0');
    if (fraction && *at != '.') out.exponent--;
  }
  out.exponent += *at == 'e' ? (int)strtol(at + 1, NULL, 10) : 0;
  while (out.digits && out.digits % 10 == 0) out.digits /= 10, out.exponent++;
  return out;
}

/* In decimal, as it is written: 0.0075 is a multiple of 0.0001 though neither is exact in binary. */
static bool is_multiple(const pst_json *v, const pst_json *of) {
  if (pst_json_is_int(v) && pst_json_is_int(of)) return pst_json_int(v, 0) % pst_json_int(of, 1) == 0;
  decimal x = decimal_of(pst_json_double(v, 0)), m = decimal_of(pst_json_double(of, 1));
  if (pst_json_is_int(v)) {
    int64_t i = pst_json_int(v, 0);
    x = (decimal){i < 0 ? 0 - (uint64_t)i : (uint64_t)i, 0};
  }
  if (x.digits == 0 || m.digits == 0) return true;
  for (; x.exponent < m.exponent; m.exponent--) { /* the divisor gets longer */
    if (m.digits > x.digits / 10) return false;
    m.digits *= 10;
  }
  uint64_t rest = x.digits % m.digits; /* below 10^17 where the loop below runs: no product overflows */
  for (; x.exponent > m.exponent && rest; x.exponent--) rest = rest * 10 % m.digits;
  return rest == 0;
}

static bool check_number(run *r, const pst_schema_node *n, spot at) {
  const pst_json *v = at.value;
  if (n->minimum && compare_numbers(v, n->minimum) < 0)
    return fail(r, at.path, "%s is below the minimum of %s", show(r, v), show(r, n->minimum));
  if (n->maximum && compare_numbers(v, n->maximum) > 0)
    return fail(r, at.path, "%s is above the maximum of %s", show(r, v), show(r, n->maximum));
  if (n->exclusive_minimum && compare_numbers(v, n->exclusive_minimum) <= 0)
    return fail(r, at.path, "%s must be above %s", show(r, v), show(r, n->exclusive_minimum));
  if (n->exclusive_maximum && compare_numbers(v, n->exclusive_maximum) >= 0)
    return fail(r, at.path, "%s must be below %s", show(r, v), show(r, n->exclusive_maximum));
  if (n->multiple_of && !is_multiple(v, n->multiple_of))
    return fail(r, at.path, "%s is no multiple of %s", show(r, v), show(r, n->multiple_of));
  return true;
}

/* ---- strings ---- */

static bool matches(run *r, const pst_regex *regex, pst_str text) {
  int found = pst_regex_find(regex, text, 0, NULL, 0);
  if (found < 0) return stop(r, found);
  return found > 0;
}

static bool check_string(run *r, const pst_schema_node *n, spot at) {
  pst_str text = pst_json_str(at.value);
  if (n->min_length > 0 || n->max_length >= 0) {
    int64_t length = (int64_t)pst_utf8_count(text);
    if (length < n->min_length)
      return fail(r, at.path, "the text is shorter than %lld characters", (long long)n->min_length);
    if (n->max_length >= 0 && length > n->max_length)
      return fail(r, at.path, "the text is longer than %lld characters", (long long)n->max_length);
  }
  if (n->pattern_regex && !matches(r, n->pattern_regex, text))
    return fail(r, at.path, "%s does not match the pattern %.*s", show(r, at.value),
                (int)PST_MIN(n->pattern.n, (size_t)200), n->pattern.data);
  return true;
}

/* ---- any value ---- */

static unsigned type_of(const pst_json *v) {
  switch (pst_json_typeof(v)) {
  case PST_JSON_NULL: return PST_SCHEMA_NULL;
  case PST_JSON_BOOL: return PST_SCHEMA_BOOLEAN;
  case PST_JSON_NUMBER: return PST_SCHEMA_NUMBER | (is_integer(v) ? PST_SCHEMA_INTEGER : 0u);
  case PST_JSON_STRING: return PST_SCHEMA_STRING;
  case PST_JSON_ARRAY: return PST_SCHEMA_ARRAY;
  default: return PST_SCHEMA_OBJECT;
  }
}

static bool fail_type(run *r, const pst_schema_node *n, spot at) {
  static const char *const names[] = {"null",     "true or false", "a whole number", "a number",
                                      "a string", "a list",        "an object"};
  r->list.text[0] = '\0';
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++)
    if (n->types >> i & 1) list_add(&r->list, names[i], (int)strlen(names[i]));
  return fail(r, at.path, "%s is not accepted here; accepted: %s", show(r, at.value), r->list.text);
}

static bool fail_enum(run *r, const pst_schema_node *n, spot at) {
  r->list.text[0] = '\0';
  for (pst_json_iter it = pst_json_iterate(n->enumerated); pst_json_next(&it);) {
    const char *text = show(r, it.value);
    list_add(&r->list, text, (int)strlen(text));
  }
  return fail(r, at.path, "%s is not accepted here; accepted: %s", show(r, at.value), r->list.text);
}

static bool check_enum(run *r, const pst_schema_node *n, spot at) {
  for (pst_json_iter it = pst_json_iterate(n->enumerated); pst_json_next(&it); r->n_steps++)
    if (pst_json_equal(it.value, at.value)) return true;
  return r->err ? fail_enum(r, n, at) : false;
}

/* ---- marks ---- */

static bool marks_take(run *r, const pst_json *v, marks *ret_marks) {
  size_t n = pst_json_size(v);
  ret_marks->seen = pst_calloc(PST_MAX(n, 1), 1);
  ret_marks->n = n;
  return ret_marks->seen ? true : stop(r, PST_E_NOMEM);
}

/* A schema that applies to the same value. What it evaluated counts only if it holds. */
static bool eval_in_place(run *r, const pst_schema_node *node, spot at, marks *to) {
  marks own;
  if (!to) return eval(r, node, at, NULL);
  if (!marks_take(r, at.value, &own)) return false;
  bool valid = eval(r, node, at, &own);
  if (valid)
    for (size_t i = 0; i < own.n; i++) to->seen[i] |= own.seen[i];
  pst_free(own.seen);
  return valid;
}

static bool eval_quietly(run *r, const pst_schema_node *node, spot at, marks *to) {
  r->quiet++;
  bool valid = eval_in_place(r, node, at, to);
  r->quiet--;
  return valid;
}

/* ---- arrays ---- */

static spot element(spot at, const pst_json *value, size_t index, pst_schema_path *path) {
  *path = (pst_schema_path){at.path, {NULL, 0}, index, depth_of(at.path) + 1, false};
  return (spot){value, path, at.scope};
}

static spot member(spot at, const pst_json *value, pst_str key, pst_schema_path *path) {
  *path = (pst_schema_path){at.path, {key.data ? key.data : "", key.n}, 0, depth_of(at.path) + 1, false};
  return (spot){value, path, at.scope};
}

/* Equal values have equal hashes: numbers go by their double, members are summed. */
static uint64_t hash_value(const pst_json *v) {
  pst_json_type type = pst_json_typeof(v);
  uint64_t h = (uint64_t)type * 0x9E3779B97F4A7C15u;
  if (type == PST_JSON_BOOL) return h + pst_json_bool(v, false);
  if (type == PST_JSON_STRING) return pst_hash64(pst_json_str(v).data, pst_json_str(v).n, h);
  if (type == PST_JSON_NUMBER) {
    double d = pst_json_double(v, 0) + 0.0; /* -0 becomes 0 */
    return pst_hash64(&d, sizeof d, h);
  }
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it);) {
    uint64_t x = hash_value(it.value);
    if (type == PST_JSON_OBJECT)
      h += pst_hash64(it.key.data, it.key.n, x);
    else
      h = pst_hash64(&x, sizeof x, h);
  }
  return h;
}

typedef struct hashed {
  uint64_t hash;
  const pst_json *value;
} hashed;

static int by_hash(const void *a, const void *b) {
  uint64_t x = ((const hashed *)a)->hash, y = ((const hashed *)b)->hash;
  return (x > y) - (x < y);
}

static bool check_unique(run *r, spot at) {
  size_t n = pst_json_size(at.value), i = 0;
  if (n < 2) return true;
  hashed *all = pst_calloc(n, sizeof *all);
  if (!all) return stop(r, PST_E_NOMEM);
  for (pst_json_iter it = pst_json_iterate(at.value); pst_json_next(&it); i++)
    all[i] = (hashed){hash_value(it.value), it.value};
  qsort(all, n, sizeof *all, by_hash);
  const pst_json *twin = NULL;
  for (i = 0; i < n && !twin && r->n_steps < STEPS_MAX; i++)
    for (size_t k = i + 1; k < n && all[k].hash == all[i].hash && !twin; k++, r->n_steps++)
      if (pst_json_equal(all[i].value, all[k].value)) twin = all[i].value;
  pst_free(all);
  return twin ? fail(r, at.path, "%s stands in the list twice", show(r, twin)) : true;
}

static bool check_contains(run *r, const pst_schema_node *n, spot at, marks *m) {
  int64_t found = 0;
  pst_schema_path path;
  r->quiet++;
  size_t i = 0;
  for (pst_json_iter it = pst_json_iterate(at.value); pst_json_next(&it) && !r->code; i++)
    if (eval(r, n->contains, element(at, it.value, i, &path), NULL)) {
      found++;
      if (m) m->seen[i] = 1;
    }
  r->quiet--;
  if (r->code) return false;
  if (found < n->min_contains)
    return fail(r, at.path, "the list holds %lld of the elements asked for; at least %lld are", (long long)found,
                (long long)n->min_contains);
  if (n->max_contains >= 0 && found > n->max_contains)
    return fail(r, at.path, "the list holds %lld of the elements asked for; at most %lld are", (long long)found,
                (long long)n->max_contains);
  return true;
}

static bool check_array(run *r, const pst_schema_node *n, spot at, marks *m) {
  int64_t size = (int64_t)pst_json_size(at.value);
  size_t i = 0;
  pst_schema_path path;
  if (size < n->min_items) return fail(r, at.path, "the list is shorter than %lld", (long long)n->min_items);
  if (n->max_items >= 0 && size > n->max_items)
    return fail(r, at.path, "the list is longer than %lld", (long long)n->max_items);
  if (n->prefix_items.n || n->items)
    for (pst_json_iter it = pst_json_iterate(at.value); pst_json_next(&it); i++) {
      const pst_schema_node *rule = i < n->prefix_items.n ? n->prefix_items.at[i] : n->items;
      if (rule && !eval(r, rule, element(at, it.value, i, &path), NULL)) return false;
      if (rule && m) m->seen[i] = 1;
    }
  if (n->contains && !check_contains(r, n, at, m)) return false;
  return !n->unique_items || check_unique(r, at);
}

static bool check_unevaluated_items(run *r, const pst_schema_node *n, spot at, marks *m) {
  pst_schema_path path;
  size_t i = 0;
  for (pst_json_iter it = pst_json_iterate(at.value); pst_json_next(&it); i++) {
    if (m->seen[i]) continue;
    if (!eval(r, n->unevaluated_items, element(at, it.value, i, &path), NULL)) return false;
    m->seen[i] = 1;
  }
  return true;
}

/* ---- objects ---- */

static const pst_schema_node *find_property(const pst_schema_node *n, pst_str name) {
  size_t low = 0, high = n->n_properties;
  while (low < high) {
    size_t middle = (low + high) / 2;
    int order = pst_str_compare(n->properties[middle].name, name);
    if (order == 0) return n->properties[middle].node;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return NULL;
}

static bool fail_unknown(run *r, const pst_schema_node *n, spot at, pst_str key) {
  r->list.text[0] = '\0';
  for (size_t i = 0; i < n->n_properties; i++)
    if (!n->properties_in_order[i].node->never)
      list_add(&r->list, n->properties_in_order[i].name.data,
               (int)PST_MIN(n->properties_in_order[i].name.n, (size_t)60));
  return fail(r, at.path, "\"%.*s\" is not a known field here%s%s", (int)PST_MIN(key.n, (size_t)100), key.data,
              *r->list.text ? "; known: " : "", r->list.text);
}

/* One member: under its name's rule, those of matching patterns, and the rest's when there is none of them. */
static bool check_member(run *r, const pst_schema_node *n, spot at, pst_str key, bool *ret_evaluated) {
  const pst_schema_node *named = find_property(n, key);
  bool covered = named != NULL;
  if (named && !eval(r, named, at, NULL)) return false;
  for (size_t i = 0; i < n->n_patterns; i++) {
    if (!matches(r, n->patterns[i].regex, key)) {
      if (r->code) return false;
      continue;
    }
    covered = true;
    if (!eval(r, n->patterns[i].node, at, NULL)) return false;
  }
  *ret_evaluated = covered || n->additional;
  if (covered || !n->additional) return true;
  if (n->additional->never) return fail_unknown(r, n, at, key);
  return eval(r, n->additional, at, NULL);
}

/* A property's name as a value of its own. */
static bool check_name(run *r, const pst_schema_node *n, spot at, pst_str key) {
  pst_buf text = PST_BUF_INIT;
  pst_json_doc *doc = NULL;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_put_str(&w, key);
  int code = pst_buf_status(&text);
  if (!code) code = pst_json_parse(text.data, text.n, NULL, &doc, NULL);
  bool valid =
      code ? stop(r, PST_E_NOMEM) : eval(r, n->property_names, (spot){pst_json_root(doc), at.path, at.scope}, NULL);
  pst_json_free(doc);
  pst_buf_done(&text);
  return valid;
}

static bool check_required(run *r, const pst_str *names, size_t n, spot at, pst_str because) {
  for (size_t i = 0; i < n; i++) {
    r->n_steps++;
    if (pst_json_get_str(at.value, names[i])) continue;
    if (because.n)
      return fail(r, at.path, "\"%.*s\" asks for the field \"%.*s\" beside it", (int)PST_MIN(because.n, (size_t)80),
                  because.data, (int)PST_MIN(names[i].n, (size_t)80), names[i].data);
    return fail(r, at.path, "the field \"%.*s\" is missing", (int)PST_MIN(names[i].n, (size_t)80), names[i].data);
  }
  return true;
}

static bool check_dependencies(run *r, const pst_schema_node *n, spot at, marks *m) {
  for (size_t i = 0; i < n->n_dependencies; i++) {
    const pst_schema_dependency *d = &n->dependencies[i];
    if (!pst_json_get_str(at.value, d->name)) continue;
    if (!check_required(r, d->required, d->n_required, at, d->name)) return false;
    if (d->node && !eval_in_place(r, d->node, at, m)) return false;
  }
  return true;
}

static bool check_object(run *r, const pst_schema_node *n, spot at, marks *m) {
  int64_t size = (int64_t)pst_json_size(at.value);
  size_t i = 0;
  pst_schema_path path;
  if (n->n_properties || n->n_patterns || n->additional || n->property_names)
    for (pst_json_iter it = pst_json_iterate(at.value); pst_json_next(&it); i++) {
      bool evaluated = false;
      spot here = member(at, it.value, it.key, &path);
      if (n->property_names && !check_name(r, n, here, it.key)) return false;
      if (!check_member(r, n, here, it.key, &evaluated)) return false;
      if (m && evaluated) m->seen[i] = 1;
    }
  if (!check_required(r, n->required, n->n_required, at, (pst_str){NULL, 0})) return false;
  if (size < n->min_properties)
    return fail(r, at.path, "the object has fewer than %lld fields", (long long)n->min_properties);
  if (n->max_properties >= 0 && size > n->max_properties)
    return fail(r, at.path, "the object has more than %lld fields", (long long)n->max_properties);
  return check_dependencies(r, n, at, m);
}

static bool check_unevaluated_properties(run *r, const pst_schema_node *n, spot at, marks *m) {
  pst_schema_path path;
  size_t i = 0;
  for (pst_json_iter it = pst_json_iterate(at.value); pst_json_next(&it); i++) {
    if (m->seen[i]) continue;
    spot here = member(at, it.value, it.key, &path);
    if (n->unevaluated_properties->never) return fail_unknown(r, n, here, it.key);
    if (!eval(r, n->unevaluated_properties, here, NULL)) return false;
    m->seen[i] = 1;
  }
  return true;
}

/* ---- schemas for the same value ---- */

static const pst_schema_node *dynamic_target(const pst_schema_node *n, const scope *innermost, const pst_schema *s) {
  const pst_schema_node *target = n->dynamic_ref;
  if (!n->dynamic_name.data) return target;
  for (const scope *at = innermost; at; at = at->up) {
    const pst_schema_anchor *anchor = pst_schema_anchor_find(s, at->resource, n->dynamic_name);
    if (anchor && anchor->dynamic) target = anchor->node; /* the outermost wins */
  }
  return target;
}

/* None of some alternatives holds. What is told is the failure inside one of them, if one lies deeper than the value itself. */
static bool fail_alternatives(run *r, const pst_schema_nodes *nodes, spot at) {
  int before = r->err_depth, floor = PST_MAX(before, depth_of(at.path));
  if (!is_told(r)) return false;
  r->err_depth = floor;
  for (size_t i = 0; i < nodes->n && !r->code; i++) (void)eval(r, nodes->at[i], at, NULL);
  if (r->err_depth == floor) r->err_depth = before;
  return fail(r, at.path, "%s has none of the %zu forms accepted here", show(r, at.value), nodes->n);
}

static bool check_any_of(run *r, const pst_schema_node *n, spot at, marks *m) {
  bool valid = false;
  for (size_t i = 0; i < n->any_of.n && !r->code && (!valid || m); i++) /* with marks all count */
    valid |= eval_quietly(r, n->any_of.at[i], at, m);
  if (r->code) return false;
  return valid || fail_alternatives(r, &n->any_of, at);
}

static bool check_one_of(run *r, const pst_schema_node *n, spot at, marks *m) {
  size_t found = 0;
  for (size_t i = 0; i < n->one_of.n && found < 2 && !r->code; i++) found += eval_quietly(r, n->one_of.at[i], at, m);
  if (r->code) return false;
  if (found > 1) return fail(r, at.path, "%s has more than one of the forms of which one is asked", show(r, at.value));
  return found == 1 || fail_alternatives(r, &n->one_of, at);
}

static bool check_in_place(run *r, const pst_schema_node *n, spot at, marks *m) {
  if (n->ref && !eval_in_place(r, n->ref, at, m)) return false;
  if (n->dynamic_ref && !eval_in_place(r, dynamic_target(n, at.scope, r->s), at, m)) return false;
  for (size_t i = 0; i < n->all_of.n; i++)
    if (!eval_in_place(r, n->all_of.at[i], at, m)) return false;
  if (n->any_of.n && !check_any_of(r, n, at, m)) return false;
  if (n->one_of.n && !check_one_of(r, n, at, m)) return false;
  if (n->not_node) {
    bool valid = eval_quietly(r, n->not_node, at, NULL);
    if (r->code) return false;
    if (valid) return fail(r, at.path, "%s has the form that is ruled out here", show(r, at.value));
  }
  if (n->if_node) {
    bool holds = eval_quietly(r, n->if_node, at, m);
    if (r->code) return false;
    const pst_schema_node *then = holds ? n->then_node : n->else_node;
    if (then && !eval_in_place(r, then, at, m)) return false;
  }
  return true;
}

/* ---- one schema ---- */

static bool check_value(run *r, const pst_schema_node *n, spot at, marks *m) {
  unsigned type = type_of(at.value);
  /* In draft 4 a number with a fraction is no integer, 1.0 included. */
  if (r->s->resources[n->resource].draft == PST_SCHEMA_DRAFT_4 && pst_json_is_real(at.value))
    type &= ~(unsigned)PST_SCHEMA_INTEGER;
  if (n->never) return fail(r, at.path, "%s is not accepted here; nothing is", show(r, at.value));
  if (n->types && !(n->types & type)) return r->err ? fail_type(r, n, at) : false;
  if (n->constant && !pst_json_equal(n->constant, at.value))
    return fail(r, at.path, "%s is not accepted here; accepted: %s", show(r, at.value), show(r, n->constant));
  if (n->enumerated && !check_enum(r, n, at)) return false;
  if (type & PST_SCHEMA_NUMBER && !check_number(r, n, at)) return false;
  if (type & PST_SCHEMA_STRING && !check_string(r, n, at)) return false;
  if (type & PST_SCHEMA_ARRAY && !check_array(r, n, at, m)) return false;
  if (type & PST_SCHEMA_OBJECT && !check_object(r, n, at, m)) return false;
  if (!check_in_place(r, n, at, m)) return false;
  if (type & PST_SCHEMA_ARRAY && n->unevaluated_items && !check_unevaluated_items(r, n, at, m)) return false;
  if (type & PST_SCHEMA_OBJECT && n->unevaluated_properties && !check_unevaluated_properties(r, n, at, m)) return false;
  return true;
}

/* m: where to note what was evaluated, all clear at first; NULL: nobody asks. */
static bool eval(run *r, const pst_schema_node *node, spot at, marks *m) {
  scope entered = {at.scope, node->resource};
  marks own = {NULL, 0};
  if (r->code) return false;
  if (++r->n_steps > STEPS_MAX || r->depth >= DEPTH_MAX) return stop(r, PST_E_LIMIT);
  if (!at.scope || at.scope->resource != node->resource) at.scope = &entered;
  if (!m && (node->unevaluated_items || node->unevaluated_properties)) {
    if (!marks_take(r, at.value, &own)) return false;
    m = &own;
  }
  r->depth++;
  bool valid = check_value(r, node, at, m) && !r->code;
  r->depth--;
  pst_free(own.seen);
  return valid;
}

int pst_schema_validate(const pst_schema *schema, const pst_json *value, const char *source, pst_error *err) {
  run r = {.s = schema, .err_depth = -1, .source = source ? source : "value"};
  spot at = {value, NULL, NULL};
  bool valid = eval(&r, schema->root, at, NULL);
  if (!valid && !r.code && err) {
    pst_error_set(err, PST_E_BAD_INPUT, r.source, "the value is not valid");
    r.err = err;
    r.n_steps = 0;
    (void)eval(&r, schema->root, at, NULL); /* should it end early, the sentence above stands */
    return PST_E_BAD_INPUT;
  }
  if (r.code == PST_E_LIMIT)
    return pst_error_set(err, r.code, r.source, "the schema asks for more work than is done for one value");
  if (r.code) return pst_error_set(err, r.code, r.source, "the value could not be checked: %s", pst_error_text(r.code));
  return valid ? 0 : PST_E_BAD_INPUT;
}
