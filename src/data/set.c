/* Reading a data set line by line: examples to train on, what was said of answers, or inputs alone. */
#include <string.h>

#include "data/data.h"

#define SET_BYTES_MAX ((size_t)1 << 34)

typedef struct found {
  char hash[65], kind[16];
  bool withdrawn;
  char replaced_by[65];
} found;

/* Who is told of the lines: one of both. */
typedef struct reader {
  pst_data_kind kind;
  int (*line)(void *user, const pst_data_line *line);
  int (*preference)(void *user, const pst_data_preference *line);
  void *user;
} reader;

static int take_set(void *user, const pst_store_data_set *s) {
  found *f = user;
  snprintf(f->hash, sizeof f->hash, "%.*s", (int)s->hash.n, s->hash.data);
  snprintf(f->replaced_by, sizeof f->replaced_by, "%.*s", (int)s->replaced_by.n,
           s->replaced_by.data ? s->replaced_by.data : "");
  f->withdrawn = s->state == PST_STORE_DATA_WITHDRAWN;
  snprintf(f->kind, sizeof f->kind, "%.*s", (int)PST_MIN(s->kind.n, sizeof f->kind - 1), s->kind.data);
  return 0;
}

static int corrupt(const char *path, size_t line, const char *what, pst_error *err) {
  char place[256];
  (void)snprintf(place, sizeof place, "%.230s:%zu", path, line);
  return pst_error_set(err, PST_E_CORRUPT, place, "the data set %s; curate anew", what);
}

static pst_str text_or_none(const pst_json *v) {
  pst_str s = pst_json_str(v);
  return pst_json_typeof(v) == PST_JSON_STRING ? s : (pst_str){NULL, 0};
}

static int read_line(const char *path, size_t number, pst_str text, const reader *r, pst_error *err) {
  static const char none[] = "has a line without a conversation";
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(text.data, text.n, path, &doc, err);
  if (code) return code == PST_E_NOMEM ? code : corrupt(path, number, "has a line that is not JSON", err);
  const pst_json *root = pst_json_root(doc), *messages = pst_json_get(root, "messages");
  bool held = pst_str_is(pst_json_str(pst_json_get(root, "part")), "held");
  int64_t cluster = pst_json_int(pst_json_get(root, "cluster"), -1);
  if (r->line) {
    pst_data_line line = {messages, pst_json_get(root, "tools"), held, cluster};
    code = pst_json_size(messages) < (r->kind == PST_DATA_INPUTS ? 1u : 2u) ? corrupt(path, number, none, err)
                                                                            : r->line(r->user, &line);
  } else {
    pst_data_preference p = {messages, text_or_none(pst_json_get(root, "wanted")),
                             text_or_none(pst_json_get(root, "unwanted")), held, cluster};
    bool whole = pst_json_size(messages) > 0 && (p.wanted.data || p.unwanted.data);
    code = whole ? r->preference(r->user, &p) : corrupt(path, number, none, err);
  }
  pst_json_free(doc);
  return code;
}

static int read_set(pst_store *store, pst_str hash, const reader *r, pst_error *err) {
  const char *kind = pst_data_kind_name(r->kind);
  found f = {{0}, {0}, false, {0}};
  char *path = NULL, digest[65];
  pst_map map = {NULL, 0, 0, 0};
  int code = pst_store_data_set_get(store, hash, take_set, &f, err);
  if (code) return code;
  if (f.withdrawn)
    return pst_error_set(err, PST_E_NOT_FOUND, "data set",
                         "%.12s was withdrawn, since records of it were deleted%s%.12s", f.hash,
                         f.replaced_by[0] ? "; use " : "", f.replaced_by);
  if (strcmp(f.kind, kind) != 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "data set", "%.12s is a data set of kind \"%s\", not \"%s\"", f.hash,
                         f.kind, kind);
  code = pst_store_file_path(store, pst_str_from(f.hash), &path, err);
  if (!code) code = pst_map_open(path, &map, err);
  if (!code && map.n > SET_BYTES_MAX) code = pst_error_set(err, PST_E_LIMIT, path, "the data set is too large");
  if (!code) {
    pst_sha256_hex(map.data, map.n, digest);
    if (strcmp(digest, f.hash) != 0) code = corrupt(path, 1, "does not have the content that its name says", err);
  }
  pst_str text = {(const char *)map.data, map.n};
  size_t number = 0;
  for (size_t at = 0; at < text.n && !code;) {
    size_t end = PST_MIN(pst_str_find(text, PST_STR("\n"), at), text.n);
    code = read_line(path, ++number, (pst_str){text.data + at, end - at}, r, err);
    at = end + 1;
  }
  pst_map_close(&map);
  pst_free(path);
  return code;
}

int pst_data_set_each_line(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_data_line *line), void *user,
                           pst_error *err) {
  return read_set(store, hash, &(reader){PST_DATA_TRAINING, fn, NULL, user}, err);
}

int pst_data_set_each_input(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_data_line *line),
                            void *user, pst_error *err) {
  return read_set(store, hash, &(reader){PST_DATA_INPUTS, fn, NULL, user}, err);
}

int pst_data_set_each_preference(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_data_preference *line),
                                 void *user, pst_error *err) {
  return read_set(store, hash, &(reader){PST_DATA_PREFERENCES, NULL, fn, user}, err);
}
