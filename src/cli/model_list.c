#include "cli/model_list.h"

#include <penstock/engine.h>

#include <string.h>

static int add_model(pst_cli_model_list *list, const char *home, const char *name, pst_error *err) {
  if (list->n_files == PST_CLI_MAX_MODELS)
    return pst_error_set(err, PST_E_LIMIT, "model", "more than %d models: name those to consider with --model",
                         PST_CLI_MAX_MODELS);
  size_t at = list->n_files;
  pst_models_file *file = &list->files[at];
  int code = pst_models_resolve(home, name, file, err);
  if (code) return code;
  if (!file->sha256[0]) code = pst_models_hash(home, file->path, NULL, file->sha256, err);
  list->names[at] = pst_strdup(file->name[0] ? file->name : file->path);
  if (!list->names[at] && !code) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  list->n_files++;
  pst_optimizer_model model = {list->names[at], file->sha256, NULL};
  if (pst_engine_model_encodes(file->path))
    list->encoders[list->n_encoders++] = model;
  else
    list->models[list->n++] = model;
  return code;
}

typedef struct walk {
  pst_cli_model_list *list;
  const char *home;
  bool catalogue; /* first those of the catalogue, in its order; then the others */
  const char *entry;
  size_t n_damaged;
  pst_error *err;
} walk;

static bool listed(const pst_cli_model_list *list, const char *name) {
  for (size_t i = 0; i < list->n_files; i++)
    if (!strcmp(list->names[i], name)) return true;
  return false;
}

static int on_file(void *user, const pst_models_file *file, bool intact) {
  walk *w = user;
  if (!intact && !w->catalogue) {
    w->n_damaged++;
    fprintf(stderr, "penstock: %s is missing or changed since it was pulled, and is left out (penstock models)\n",
            file->name);
  }
  if (!intact || listed(w->list, file->name) || (w->catalogue && strcmp(file->name, w->entry) != 0)) return 0;
  return add_model(w->list, w->home, file->name, w->err);
}

static int on_entry(void *user, const pst_models_entry *entry) {
  walk *w = user;
  w->entry = entry->name;
  return pst_models_each(w->home, on_file, w, w->err);
}

int pst_cli_model_list_read(const pst_cli_args *a, const char *home, pst_cli_model_list *list, pst_error *err) {
  const char *const *names;
  int n = pst_cli_many(a, "model", &names), code = 0;
  for (int i = 0; i < n && !code; i++) code = add_model(list, home, names[i], err);
  if (n || code) return code;
  walk w = {list, home, true, NULL, 0, err};
  code = pst_models_catalogue_each(on_entry, &w, err);
  w.catalogue = false;
  if (!code) code = pst_models_each(home, on_file, &w, err);
  if (!code && !list->n_files && w.n_damaged)
    code = pst_error_set(err, PST_E_NOT_FOUND, home,
                         "no model here is as it was pulled: 'penstock pull NAME' replaces it");
  return code;
}

void pst_cli_model_list_done(pst_cli_model_list *list) {
  for (size_t i = 0; i < list->n_files; i++) {
    pst_models_file_done(&list->files[i]);
    pst_free(list->names[i]);
  }
  *list = (pst_cli_model_list){0};
}
