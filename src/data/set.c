/* Reading a data set of kind "training" line by line. */
#include <string.h>

#include "data/data.h"

#define SET_BYTES_MAX ((size_t)1 << 34)

typedef struct found {
  char hash[65];
  bool withdrawn, training;
  char replaced_by[65];
} found;

static int take_set(void *user, const pst_store_data_set *s) {
  found *f = user;
  snprintf(f->hash, sizeof f->hash, "%.*s", (int)s->hash.n, s->hash.data);
  snprintf(f->replaced_by, sizeof f->replaced_by, "%.*s", (int)s->replaced_by.n,
           s->replaced_by.data ? s->replaced_by.data : "");
  f->withdrawn = s->state == PST_STORE_DATA_WITHDRAWN;
  f->training = pst_str_is(s->kind, "training");
  return 0;
}

static int corrupt(const char *path, size_t line, const char *what, pst_error *err) {
  char place[256];
  (void)snprintf(place, sizeof place, "%.230s:%zu", path, line);
  return pst_error_set(err, PST_E_CORRUPT, place, "the data set %s; curate anew", what);
}

static int read_line(const char *path, size_t number, pst_str text, int (*fn)(void *user, const pst_data_line *line),
                     void *user, pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(text.data, text.n, path, &doc, err);
  if (code) return code == PST_E_NOMEM ? code : corrupt(path, number, "has a line that is not JSON", err);
  const pst_json *root = pst_json_root(doc);
  pst_data_line line = {.messages = pst_json_get(root, "messages"),
                        .tools = pst_json_get(root, "tools"),
                        .held = pst_str_is(pst_json_str(pst_json_get(root, "part")), "held"),
                        .cluster = pst_json_int(pst_json_get(root, "cluster"), -1)};
  code = pst_json_size(line.messages) < 2 ? corrupt(path, number, "has a line without a conversation", err)
                                          : fn(user, &line);
  pst_json_free(doc);
  return code;
}

int pst_data_set_each_line(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_data_line *line), void *user,
                           pst_error *err) {
  found f = {{0}, false, false, {0}};
  char *path = NULL, digest[65];
  pst_map map = {NULL, 0, 0, 0};
  int code = pst_store_data_set_get(store, hash, take_set, &f, err);
  if (code) return code;
  if (f.withdrawn)
    return pst_error_set(err, PST_E_NOT_FOUND, "data set",
                         "%.12s was withdrawn, since records of it were deleted%s%.12s", f.hash,
                         f.replaced_by[0] ? "; use " : "", f.replaced_by);
  if (!f.training) return pst_error_set(err, PST_E_BAD_INPUT, "data set", "%.12s is no data set for training", f.hash);
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
    code = read_line(path, ++number, (pst_str){text.data + at, end - at}, fn, user, err);
    at = end + 1;
  }
  pst_map_close(&map);
  pst_free(path);
  return code;
}
