/* From an engine's spec to a file: which model is meant, whether it is the one the plan was made for, and its re-quantized copies.
 *
 * A re-quantized copy is named by what it is made of, so that any plan, process or restart finds it again: HOME/quantized/SHA256-TYPE.gguf. It is
 * made whole or not at all; a flock()ed file keeps two processes from making the same copy twice. */
#include "gateway/engines.h"

#include <penstock/models.h>

#include <string.h>
#include <unistd.h>

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory"); }

/* The shipped file. A plan names its model by name and hash: the name is for people, the hash decides. */
static int find_shipped(const char *home, const pst_gateway_engine_spec *spec, pst_models_file *ret_file,
                        pst_error *err) {
  pst_error first = PST_ERROR_INIT;
  int code = pst_models_resolve(home, spec->model, ret_file, &first);
  if (code == PST_E_NOT_FOUND && spec->sha256 && pst_models_resolve(home, spec->sha256, ret_file, NULL) == 0) code = 0;
  if (code) {
    if (err) *err = first;
    return code;
  }
  bool wants_hash = spec->sha256 || strcmp(spec->weights, "shipped") != 0;
  if (wants_hash && !ret_file->sha256[0]) code = pst_models_hash(home, ret_file->path, NULL, ret_file->sha256, err);
  if (!code && spec->sha256 && strcmp(spec->sha256, ret_file->sha256) != 0)
    code = pst_error_set(
        err, PST_E_CORRUPT, spec->model,
        "the plan was made for the file %.12s..., this one is %.12s...; pull that file, or optimize again",
        spec->sha256, ret_file->sha256);
  if (code) pst_models_file_done(ret_file);
  return code;
}

static int make_copy(const char *shipped, const char *path, const char *type, pst_progress *progress, pst_error *err) {
  int n_fallback = 0;
  int64_t start = pst_clock_us();
  int code = pst_engine_quantize(shipped, path, type, progress, &n_fallback, err); /* whole or not at all */
  if (!code)
    pst_log(PST_LOG_INFO, "event=quantized type=%s file=\"%s\" fallbacks=%d seconds=%.1f", type, path, n_fallback,
            (double)(pst_clock_us() - start) / 1e6);
  return code;
}

static bool type_valid(const char *type) {
  return *type && strlen(type) < 16 && type[strspn(type, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")] == '\0';
}

static int requantized(const char *home, const pst_models_file *file, const char *type, pst_progress *progress,
                       char **ret_path, pst_error *err) {
  pst_buf dir = PST_BUF_INIT, path = PST_BUF_INIT, lock = PST_BUF_INIT;
  int code = 0, fd = -1;
  if (!type_valid(type))
    return pst_error_set(err, PST_E_BAD_INPUT, "weights",
                         "\"%.20s\" is no weight type: \"shipped\", \"Q8_0\", \"Q4_K\" ...", type);
  pst_buf_printf(&dir, "%s/quantized", home);
  pst_buf_printf(&path, "%s/quantized/%s-%s.gguf", home, file->sha256, type);
  pst_buf_printf(&lock, "%s/quantized/%s-%s.lock", home, file->sha256, type);
  if (pst_buf_status(&dir) || pst_buf_status(&path) || pst_buf_status(&lock)) {
    code = no_memory(err);
    goto done;
  }
  if (!pst_file_exists(path.data)) {
    if ((code = pst_dir_make(dir.data, err))) goto done;
    if ((code = pst_file_lock(lock.data, &fd, err))) goto done;
    pst_dir_sweep(dir.data); /* what a killed copy left */
    if (!pst_file_exists(path.data)) code = make_copy(file->path, path.data, type, progress, err);
  }
  if (!code && !(*ret_path = pst_buf_take(&path))) code = no_memory(err);
done:
  if (fd >= 0) (void)close(fd);
  pst_buf_done(&dir);
  pst_buf_done(&path);
  pst_buf_done(&lock);
  return code;
}

int pst_gateway_weights_find(const char *home, const pst_gateway_engine_spec *spec, pst_progress *progress,
                             char **ret_path, pst_error *err) {
  pst_models_file file = {.path = NULL};
  int code = find_shipped(home, spec, &file, err);
  if (code) return code;
  if (strcmp(spec->weights, "shipped") == 0) {
    *ret_path = file.path;
    file.path = NULL;
  } else {
    code = requantized(home, &file, spec->weights, progress, ret_path, err);
  }
  pst_models_file_done(&file);
  return code;
}
