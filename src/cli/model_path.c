/* A model as a person names it: a file, or a name of the catalogue that was pulled. */
#include "cli/model_path.h"

#include <stdio.h>
#include <string.h>

int pst_cli_model_path(const char *home_option, const char *name, char **ret_path, pst_error *err) {
  char *home = NULL;
  pst_models_file file = {0};
  int code = 0;
  if (pst_file_exists(name)) {
    *ret_path = pst_strdup(name);
    return *ret_path ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  }
  code = pst_home_open(home_option, &home, err);
  if (!code) code = pst_models_resolve(home, name, &file, err);
  if (!code) {
    *ret_path = file.path;
    file.path = NULL;
    pst_models_file_done(&file);
  }
  pst_free(home);
  return code;
}

int pst_cli_model_open(const pst_cli_args *a, const char *name, int n_threads, pst_engine_model **ret_model,
                       pst_error *err) {
  char *path = NULL, *home = NULL, *packed = NULL;
  int code = pst_cli_model_path(pst_cli_text(a, "home"), name, &path, err);
  if (!code && !pst_home_open(pst_cli_text(a, "home"), &home, NULL)) packed = pst_models_packed_dir(home);
  if (!code) code = pst_engine_model_open_kept(path, packed, n_threads, ret_model, err);
  pst_free(packed);
  pst_free(home);
  pst_free(path);
  return code;
}

int pst_cli_model_may_write(const pst_cli_args *a, const char *out, pst_error *err) {
  if (!pst_file_exists(out) || pst_cli_flag(a, "force")) return pst_cli_check_writable(out, err);
  return pst_error_set(err, PST_E_EXISTS, out, "is there already; --force replaces it");
}

void pst_cli_model_say_fallback(int n, const char *type) {
  if (n)
    printf("%d matrices have rows that %s blocks do not divide; they have the next larger type that fits\n", n, type);
}
