/* From a workload's name or folder to its name. Only `name` is read: whether the folder is a good workload is for those who open it (evals/workload.c). */
#include "cli/workload_name.h"

#include <string.h>

enum { MAX_BYTES = 64 << 20 };

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory"); }

static int read_name(const char *path, char **ret_name, pst_error *err) {
  char *text = NULL, *name = NULL;
  size_t n = 0;
  pst_json_doc *doc = NULL;
  int code = pst_file_read(path, MAX_BYTES, &text, &n, err);
  if (!code) code = pst_json_parse(text, n, path, &doc, err);
  pst_str found = code ? (pst_str){NULL, 0} : pst_json_str(pst_json_get(pst_json_root(doc), "name"));
  if (!code && (!found.n || memchr(found.data, 0, found.n)))
    code = pst_error_set(err, PST_E_BAD_INPUT, path, "\"name\" is to say what the workload is called");
  if (!code && !(name = pst_strndup(found.data, found.n))) code = no_memory(err);
  pst_json_free(doc);
  pst_free(text);
  if (!code) *ret_name = name;
  return code;
}

int pst_cli_workload_name(const char *what, char **ret_name, pst_error *err) {
  int code = 0;
  if (!*what)
    return pst_error_set(err, PST_E_BAD_INPUT, "workload", "is empty; say its name, or the folder that it lies in");
  char *path = pst_path_join(what, "workload.json"), *name = NULL;
  if (!path) return no_memory(err);
  if (pst_file_exists(path))
    code = read_name(path, &name, err);
  else if (strchr(what, '/'))
    code = pst_error_set(err, PST_E_NOT_FOUND, what, "is no folder with a workload.json, and a name has no '/'");
  else if (!(name = pst_strdup(what)))
    code = no_memory(err);
  pst_free(path);
  if (!code) *ret_name = name;
  return code;
}

int pst_cli_workload_option(const pst_cli_args *a, char **ret_name, pst_error *err) {
  const char *what = pst_cli_text(a, "workload");
  *ret_name = NULL;
  return what && *what ? pst_cli_workload_name(what, ret_name, err) : 0;
}
