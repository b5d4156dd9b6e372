/* JSON: reading over yyjson, with the checks that a server needs on top.
 *
 * Owns documents and the readers; json_write.c owns writing, number text and the canonical form. On top of yyjson's strict reader:
 * nesting is bounded before anything is built, duplicate member names are refused (two parsers must never see two different
 * requests in one text), and each failure names its line and column. The text is copied and parsed in place, so that a
 * key's address tells where it stood. */
#include "base/internal.h"

#include <math.h>
#include <string.h>
#include <yyjson.h>

#define JSON_DEPTH_MAX 512

struct pst_json_doc {
  yyjson_doc *parsed;
  char *text; /* parsed in place: strings point into it */
};

/* ---- places ---- */

/* "SOURCE:LINE:COLUMN" of an offset; both count from 1, columns in code points. */
static void place_of(const char *source, const char *text, size_t offset, char *place, size_t place_bytes) {
  size_t line = 1, start = 0;
  for (size_t i = 0; i < offset; i++)
    if (text[i] == '\n') {
      line++;
      start = i + 1;
    }
  size_t column = 1 + pst_utf8_count((pst_str){text + start, offset - start});
  char tail[48];
  int n_tail = snprintf(tail, sizeof tail, ":%zu:%zu", line, column);
  /* A long source name gives way to the position. */
  (void)snprintf(place, place_bytes, "%.*s%s", (int)(place_bytes - 1) - n_tail, source ? source : "json", tail);
}

static int fail_at(pst_error *err, int code, const char *source, pst_str text, size_t offset, const char *message) {
  char place[sizeof err->place];
  place_of(source, text.data, PST_MIN(offset, text.n), place, sizeof place);
  return pst_error_set(err, code, place, "%s", message);
}

/* ---- checks around the parser ---- */

/* The offset of the bracket that nests too deeply, or SIZE_MAX. Looks at brackets and strings only. */
static size_t find_too_deep(pst_str text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.n; i++) {
    char c = text.data[i];
    if (in_string) {
      if (c == '\\')
        i++;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > JSON_DEPTH_MAX) return i;
    } else if (c == ']' || c == '}') {
      depth--;
    }
  }
  return SIZE_MAX;
}

/* A hash set of keys, reused from object to object. */
typedef struct key_set {
  yyjson_val **slots;
  size_t capacity; /* a power of two */
  uint64_t seed;   /* from the kernel: a request must not be able to choose keys that collide */
} key_set;

#define SMALL_OBJECT_KEYS 12

static bool same_key(yyjson_val *a, yyjson_val *b) {
  size_t n = yyjson_get_len(a);
  return n == yyjson_get_len(b) && memcmp(yyjson_get_str(a), yyjson_get_str(b), n) == 0;
}

static yyjson_val *find_duplicate_small(yyjson_val *object) {
  yyjson_val *keys[SMALL_OBJECT_KEYS];
  size_t n = 0;
  yyjson_obj_iter it = yyjson_obj_iter_with(object);
  for (yyjson_val *key; (key = yyjson_obj_iter_next(&it));) {
    for (size_t i = 0; i < n; i++)
      if (same_key(keys[i], key)) return key;
    keys[n++] = key;
  }
  return NULL;
}

static int find_duplicate_large(yyjson_val *object, key_set *set, yyjson_val **ret_key) {
  size_t wanted = 32;
  while (wanted < 2 * yyjson_obj_size(object)) wanted *= 2;
  if (set->seed == 0 && pst_random_secret(&set->seed, sizeof set->seed) != 0) return PST_E_IO;
  set->seed |= 1;
  if (pst_array_reserve((void **)&set->slots, &set->capacity, wanted, sizeof *set->slots) != 0) return PST_E_NOMEM;
  memset(set->slots, 0, wanted * sizeof *set->slots);
  yyjson_obj_iter it = yyjson_obj_iter_with(object);
  for (yyjson_val *key; (key = yyjson_obj_iter_next(&it));) {
    size_t at = (size_t)pst_hash64(yyjson_get_str(key), yyjson_get_len(key), set->seed) & (wanted - 1);
    for (; set->slots[at]; at = (at + 1) & (wanted - 1))
      if (same_key(set->slots[at], key)) {
        *ret_key = key;
        return 0;
      }
    set->slots[at] = key;
  }
  return 0;
}

/* Looks through all values; *ret_key is the second of two equal keys, or untouched. Recursion is bounded by JSON_DEPTH_MAX. */
static int find_duplicate(yyjson_val *value, key_set *set, yyjson_val **ret_key) {
  if (yyjson_is_arr(value)) {
    yyjson_arr_iter it = yyjson_arr_iter_with(value);
    for (yyjson_val *item; !*ret_key && (item = yyjson_arr_iter_next(&it));)
      if (yyjson_is_ctn(item)) {
        int rc = find_duplicate(item, set, ret_key);
        if (rc != 0) return rc;
      }
    return 0;
  }
  if (yyjson_obj_size(value) <= SMALL_OBJECT_KEYS) {
    *ret_key = find_duplicate_small(value);
  } else {
    int rc = find_duplicate_large(value, set, ret_key);
    if (rc != 0) return rc;
  }
  yyjson_obj_iter it = yyjson_obj_iter_with(value);
  for (yyjson_val *key; !*ret_key && (key = yyjson_obj_iter_next(&it));)
    if (yyjson_is_ctn(yyjson_obj_iter_get_val(key))) {
      int rc = find_duplicate(yyjson_obj_iter_get_val(key), set, ret_key);
      if (rc != 0) return rc;
    }
  return 0;
}

/* ---- documents ---- */

static void *reader_malloc(void *unused, size_t bytes) {
  (void)unused;
  return pst_malloc(bytes);
}

static void *reader_realloc(void *unused, void *p, size_t old_bytes, size_t bytes) {
  (void)unused;
  (void)old_bytes;
  return pst_realloc(p, bytes);
}

static void reader_free(void *unused, void *p) {
  (void)unused;
  pst_free(p);
}

static int fail_of_parser(pst_error *err, const yyjson_read_err *why, const char *source, pst_str text) {
  if (why->code == YYJSON_READ_ERROR_MEMORY_ALLOCATION)
    return pst_error_set(err, PST_E_NOMEM, source, "no memory to parse %zu bytes of JSON", text.n);
  char message[200];
  (void)snprintf(message, sizeof message, "not valid JSON: %s", why->msg ? why->msg : "unknown reason");
  return fail_at(err, PST_E_BAD_INPUT, source, text, why->pos, message);
}

static int check_keys(const pst_json_doc *doc, pst_str text, const char *source, pst_error *err) {
  yyjson_val *root = yyjson_doc_get_root(doc->parsed);
  if (!yyjson_is_ctn(root)) return 0;
  key_set set = {NULL, 0, 0};
  yyjson_val *key = NULL;
  int rc = find_duplicate(root, &set, &key);
  if (rc != 0) {
    rc = pst_error_set(err, rc, source, "JSON member names could not be checked: %s", pst_error_text(rc));
  } else if (key) {
    char message[160];
    pst_str name = {yyjson_get_str(key), PST_MIN(yyjson_get_len(key), (size_t)64)};
    name.n -= pst_utf8_incomplete_tail(name);
    (void)snprintf(message, sizeof message, "the member name \"%.*s\" occurs twice in one object", (int)name.n,
                   name.data);
    rc = fail_at(err, PST_E_BAD_INPUT, source, text, (size_t)(name.data - doc->text) - 1, message);
  }
  pst_free(set.slots);
  return rc;
}

int pst_json_parse(const char *text, size_t n, const char *source, pst_json_doc **ret_doc, pst_error *err) {
  static const yyjson_alc memory = {reader_malloc, reader_realloc, reader_free, NULL};
  pst_str whole = {text ? text : "", text ? n : 0};
  if (whole.n == 0) return fail_at(err, PST_E_BAD_INPUT, source, whole, 0, "not valid JSON: the text is empty");
  size_t deep = find_too_deep(whole);
  if (deep != SIZE_MAX) return fail_at(err, PST_E_LIMIT, source, whole, deep, "JSON nested more than 512 levels deep");
  int rc = 0;
  pst_json_doc *doc = pst_calloc(1, sizeof *doc);
  if (!doc || n > (size_t)PTRDIFF_MAX / 16 || !(doc->text = pst_malloc(n + YYJSON_PADDING_SIZE))) {
    rc = pst_error_set(err, PST_E_NOMEM, source, "no memory to parse %zu bytes of JSON", n);
    goto done;
  }
  memcpy(doc->text, text, n);
  memset(doc->text + n, 0, YYJSON_PADDING_SIZE);
  yyjson_read_err why = {0, NULL, 0};
  doc->parsed = yyjson_read_opts(doc->text, n, YYJSON_READ_INSITU, &memory, &why);
  rc = doc->parsed ? check_keys(doc, whole, source, err) : fail_of_parser(err, &why, source, whole);
  if (rc != 0) goto done;
  *ret_doc = doc;
  doc = NULL;
done:
  pst_json_free(doc);
  return rc;
}

int pst_json_parse_file(const char *path, size_t max_bytes, pst_json_doc **ret_doc, pst_error *err) {
  char *text = NULL;
  size_t n = 0;
  int rc = pst_file_read(path, max_bytes, &text, &n, err);
  if (rc == 0) rc = pst_json_parse(text, n, path, ret_doc, err);
  pst_free(text);
  return rc;
}

void pst_json_free(pst_json_doc *doc) {
  if (!doc) return;
  yyjson_doc_free(doc->parsed);
  pst_free(doc->text);
  pst_free(doc);
}

const pst_json *pst_json_root(const pst_json_doc *doc) { return doc ? yyjson_doc_get_root(doc->parsed) : NULL; }

/* ---- readers ---- */

/* yyjson's readers take no const though they change nothing. */
static yyjson_val *plain(const pst_json *v) { return (yyjson_val *)(uintptr_t)v; }

pst_json_type pst_json_typeof(const pst_json *v) {
  switch (yyjson_get_type(plain(v))) {
  case YYJSON_TYPE_NULL: return PST_JSON_NULL;
  case YYJSON_TYPE_BOOL: return PST_JSON_BOOL;
  case YYJSON_TYPE_NUM: return PST_JSON_NUMBER;
  case YYJSON_TYPE_STR: return PST_JSON_STRING;
  case YYJSON_TYPE_ARR: return PST_JSON_ARRAY;
  case YYJSON_TYPE_OBJ: return PST_JSON_OBJECT;
  default: return PST_JSON_NONE;
  }
}

const pst_json *pst_json_get_str(const pst_json *object, pst_str key) {
  return yyjson_obj_getn(plain(object), key.data ? key.data : "", key.n);
}

const pst_json *pst_json_get(const pst_json *object, const char *key) {
  return pst_json_get_str(object, pst_str_from(key));
}

const pst_json *pst_json_path(const pst_json *object, const char *path) {
  while (object && *path) {
    size_t n = strcspn(path, ".");
    object = pst_json_get_str(object, (pst_str){path, n});
    path += n + (path[n] == '.');
  }
  return object;
}
size_t pst_json_size(const pst_json *v) {
  return yyjson_is_obj(plain(v)) ? yyjson_obj_size(plain(v)) : yyjson_arr_size(plain(v));
}

const pst_json *pst_json_at(const pst_json *array, size_t i) { return yyjson_arr_get(plain(array), i); }

pst_str pst_json_str(const pst_json *v) {
  return yyjson_is_str(plain(v)) ? (pst_str){yyjson_get_str(plain(v)), yyjson_get_len(plain(v))} : (pst_str){"", 0};
}

bool pst_json_bool(const pst_json *v, bool fallback) {
  return yyjson_is_bool(plain(v)) ? yyjson_get_bool(plain(v)) : fallback;
}

double pst_json_double(const pst_json *v, double fallback) {
  return yyjson_is_num(plain(v)) ? yyjson_get_num(plain(v)) : fallback;
}

static bool read_int(const pst_json *v, int64_t *ret_value) {
  yyjson_val *value = plain(v);
  if (yyjson_is_sint(value)) {
    *ret_value = yyjson_get_sint(value);
    return true;
  }
  if (yyjson_is_uint(value)) {
    if (yyjson_get_uint(value) > (uint64_t)INT64_MAX) return false;
    *ret_value = (int64_t)yyjson_get_uint(value);
    return true;
  }
  if (!yyjson_is_real(value)) return false;
  double real = yyjson_get_real(value);
  if (!(real >= -0x1p53 && real <= 0x1p53) || real != trunc(real)) return false;
  *ret_value = (int64_t)real;
  return true;
}

bool pst_json_is_real(const pst_json *v) { return yyjson_is_real((yyjson_val *)(uintptr_t)v); }

bool pst_json_is_int(const pst_json *v) {
  int64_t unused;
  return read_int(v, &unused);
}

int64_t pst_json_int(const pst_json *v, int64_t fallback) {
  int64_t value;
  return read_int(v, &value) ? value : fallback;
}

pst_json_iter pst_json_iterate(const pst_json *v) {
  pst_json_iter it = {NULL, NULL, {"", 0}, 0, 0, yyjson_is_obj(plain(v))};
  it.count = pst_json_size(v);
  if (it.count > 0) it.next = unsafe_yyjson_get_first(plain(v));
  return it;
}

/* `next` is the coming key of an object, the coming element of an array; `index` counts entries already given. */
bool pst_json_next(pst_json_iter *it) {
  if (it->index >= it->count) return false;
  yyjson_val *value = plain(it->next);
  if (it->object) {
    it->key = (pst_str){unsafe_yyjson_get_str(value), unsafe_yyjson_get_len(value)};
    value++; /* a member's value lies behind its key */
  }
  it->value = value;
  it->index++;
  it->next = it->index < it->count ? unsafe_yyjson_get_next(value) : NULL;
  return true;
}

/* ---- equality ---- */

/* By exact value: an integer beyond 2^53 equals a double only if the double is that integer. */
static bool equal_numbers(yyjson_val *a, yyjson_val *b) {
  if (yyjson_is_real(a) && yyjson_is_real(b)) return yyjson_get_real(a) == yyjson_get_real(b);
  if (yyjson_is_real(a) || yyjson_is_real(b)) {
    double real = yyjson_get_real(yyjson_is_real(a) ? a : b);
    yyjson_val *whole = yyjson_is_real(a) ? b : a;
    if (yyjson_is_uint(whole))
      return real >= 0 && real < 0x1p64 && (uint64_t)real == yyjson_get_uint(whole) && real == trunc(real);
    return real >= -0x1p63 && real < 0x1p63 && (int64_t)real == yyjson_get_sint(whole) && real == trunc(real);
  }
  bool a_negative = yyjson_is_sint(a) && yyjson_get_sint(a) < 0,
       b_negative = yyjson_is_sint(b) && yyjson_get_sint(b) < 0;
  return a_negative == b_negative && yyjson_get_uint(a) == yyjson_get_uint(b); /* the same 64 bits of a union */
}

/* Members are looked for from where the last one was found: linear time for equal order, quadratic only for shuffled ones. */
static bool equal_objects(const pst_json *a, const pst_json *b) {
  yyjson_obj_iter other = yyjson_obj_iter_with(plain(b));
  pst_json_iter it = pst_json_iterate(a);
  while (pst_json_next(&it)) {
    yyjson_val *twin = yyjson_obj_iter_getn(&other, it.key.data, it.key.n);
    if (!twin || !pst_json_equal(it.value, twin)) return false;
  }
  return true;
}

bool pst_json_equal(const pst_json *a, const pst_json *b) {
  pst_json_type type = pst_json_typeof(a);
  if (type != pst_json_typeof(b)) return false;
  switch (type) {
  case PST_JSON_BOOL: return pst_json_bool(a, false) == pst_json_bool(b, false);
  case PST_JSON_NUMBER: return equal_numbers(plain(a), plain(b));
  case PST_JSON_STRING: return pst_str_equal(pst_json_str(a), pst_json_str(b));
  case PST_JSON_ARRAY: {
    if (pst_json_size(a) != pst_json_size(b)) return false;
    pst_json_iter left = pst_json_iterate(a), right = pst_json_iterate(b);
    while (pst_json_next(&left) && pst_json_next(&right))
      if (!pst_json_equal(left.value, right.value)) return false;
    return true;
  }
  case PST_JSON_OBJECT: return pst_json_size(a) == pst_json_size(b) && equal_objects(a, b);
  default: return true; /* both null, or both missing */
  }
}
