/* The catalogue: which models can be pulled, from where, and what they must hash to. The table is catalogue.json, part of the program; this
 * file parses and checks it. A row with a mistake is our own error and is reported with its place, never skipped. */
#include "models/models.h"

#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pst_json_doc *document; /* set once, kept for the program's life: entries point into it */
static pst_error load_error;

static void load(void) {
  pst_str text;
  if (!pst_asset_find("models/catalogue.json", &text)) {
    (void)pst_error_set(&load_error, PST_E_INTERNAL, "models/catalogue.json",
                        "the catalogue is not part of this program");
    return;
  }
  (void)pst_json_parse(text.data, text.n, "models/catalogue.json", &document, &load_error);
}

int pst_models_catalogue(const pst_json **ret_models, pst_error *err) {
  (void)pthread_once(&once, load);
  if (!document) {
    if (err) *err = load_error;
    return load_error.code ? load_error.code : PST_E_INTERNAL;
  }
  *ret_models = pst_json_get(pst_json_root(document), "models");
  return 0;
}

/* A string without NUL bytes, or NULL. JSON strings of base are terminated. */
static const char *text_of(const pst_json *row, const char *key) {
  const pst_json *v = pst_json_get(row, key);
  if (pst_json_typeof(v) != PST_JSON_STRING) return NULL;
  pst_str s = pst_json_str(v);
  return strlen(s.data) == s.n ? s.data : NULL;
}

int pst_models_entry_read(const pst_json *row, pst_models_entry *ret_entry, pst_error *err) {
  pst_models_entry e = {text_of(row, "name"), text_of(row, "title"), text_of(row, "licence"), text_of(row, "sha256"),
                        pst_json_int(pst_json_get(row, "bytes"), -1)};
  if (!e.name || !pst_models_name_valid(e.name))
    return pst_error_set(err, PST_E_BAD_INPUT, "catalogue", "a model has no valid name");
  if (!e.title || !e.licence || !e.sha256 || strlen(e.sha256) != 64 || !pst_models_hash_valid(e.sha256, 64) ||
      e.bytes <= 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "catalogue", "the model %s lacks a title, licence, sha256 or bytes",
                         e.name);
  *ret_entry = e;
  return 0;
}

int pst_models_package_read(const pst_json *row, pst_models_package *ret_package, pst_error *err) {
  pst_models_package p = {.name = text_of(row, "name"),
                          .version = text_of(row, "version"),
                          .sha256 = text_of(row, "sha256"),
                          .bytes = pst_json_int(pst_json_get(row, "bytes"), -1),
                          .member = text_of(row, "member"),
                          .member_bytes = pst_json_int(pst_json_get(row, "member_bytes"), -1),
                          .documents = pst_json_get(row, "documents")};
  if (!p.name || !pst_models_name_valid(p.name) || !p.version || !p.sha256 || !pst_models_hash_valid(p.sha256, 64) ||
      strlen(p.sha256) != 64 || p.bytes <= 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "catalogue", "a package lacks a valid name, version, sha256 or bytes");
  if (p.member && p.member_bytes <= 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "catalogue", "the package %s lacks the size of its member", p.name);
  *ret_package = p;
  return 0;
}

const pst_json *pst_models_catalogue_find(const pst_json *models, const char *name) {
  for (pst_json_iter it = pst_json_iterate(models); pst_json_next(&it);)
    if (pst_str_is(pst_json_str(pst_json_get(it.value, "name")), name)) return it.value;
  return NULL;
}

void pst_models_catalogue_names(pst_buf *out) {
  const pst_json *models = NULL;
  pst_error ignored = PST_ERROR_INIT;
  if (pst_models_catalogue(&models, &ignored)) return;
  for (pst_json_iter it = pst_json_iterate(models); pst_json_next(&it);) {
    if (out->n) pst_buf_puts(out, ", ");
    pst_buf_append_str(out, pst_json_str(pst_json_get(it.value, "name")));
  }
}

int pst_models_catalogue_each(int (*fn)(void *user, const pst_models_entry *entry), void *user, pst_error *err) {
  const pst_json *models = NULL;
  int code = pst_models_catalogue(&models, err);
  for (pst_json_iter it = pst_json_iterate(models); !code && pst_json_next(&it);) {
    pst_models_entry entry;
    code = pst_models_entry_read(it.value, &entry, err);
    if (!code) code = fn(user, &entry);
  }
  return code;
}
