/* An adapter as a person names it: a file, a folder, or a name that was added to the store. */
#include "cli/adapter_path.h"

#include "cli/open.h"

int pst_cli_adapter_path(const pst_cli_args *a, const char *what, char **ret_path, pst_error *err) {
  pst_store *store = NULL;
  pst_store_adapter row;
  if (pst_file_exists(what) || pst_dir_exists(what)) {
    *ret_path = pst_strdup(what);
    return *ret_path ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  }
  if (!pst_store_adapter_name_valid(pst_str_from(what)))
    return pst_error_set(err, PST_E_NOT_FOUND, what, "no such adapter file or folder");
  int code = pst_cli_store_open(a, &store, err);
  if (!code) code = pst_store_adapter_get(store, pst_str_from(what), &row, err);
  if (!code) code = pst_store_file_path(store, pst_str_from(row.file), ret_path, err);
  pst_store_close(store);
  return code;
}

int pst_cli_adapter_open(const pst_cli_args *a, const pst_engine_model *model, pst_engine_adapter **ret_adapter,
                         pst_error *err) {
  char *path = NULL;
  if (!pst_cli_text(a, "adapter")) return 0;
  int code = pst_cli_adapter_path(a, pst_cli_text(a, "adapter"), &path, err);
  if (!code) code = pst_engine_adapter_open(model, path, ret_adapter, err);
  pst_free(path);
  return code;
}
