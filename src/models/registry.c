/* What lies under HOME/models: records, blobs, notices, locks.
 *
 * A record is one small JSON file per name, written last and atomically; blobs are named by content and never change. Checking a blob by
 * hash takes a second per 300 MB, so that everyday use compares inode, size and time with the record, and only verify reads it all.
 * Locks are flock()s on files below locks/: they end with their process. */
#include "models/models.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_RECORD_BYTES ((size_t)1 << 16)
#define REGISTRY_LOCK ".registry" /* no model's name: those begin with a letter or digit */

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory"); }

void pst_models_file_done(pst_models_file *file) {
  pst_free(file->path);
  *file = (pst_models_file){.path = NULL};
}

/* ---- locks ---- */

int pst_models_lock(const char *home, const char *name, const pst_models_pull_options *options, int *ret_fd,
                    pst_error *err) {
  char *dir = pst_models_place(home, "locks", NULL), *path = pst_models_place(home, "locks", name);
  int code = dir && path ? pst_dir_make(dir, err) : no_memory(err);
  int fd = -1;
  if (!code && (fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)) < 0)
    code = pst_error_set_errno(err, errno, path, "the lock file cannot be made");
  for (int n_tries = 0; !code && flock(fd, LOCK_EX | LOCK_NB); n_tries++) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      code = pst_error_set_errno(err, errno, path, "the lock cannot be taken");
      break;
    }
    if (n_tries == 3) pst_models_say(options, "%s is being worked on by another process; waiting for it", name);
    if (pst_models_is_cancelled(options))
      code = pst_error_set(err, PST_E_CANCELLED, name, "cancelled while waiting for another process");
    struct timespec t = {0, 100000000};
    (void)nanosleep(&t, NULL);
  }
  pst_free(dir);
  pst_free(path);
  if (code) {
    if (fd >= 0) (void)close(fd);
    return code;
  }
  *ret_fd = fd;
  return 0;
}

/* ---- records ---- */

static char *record_path(const char *home, const char *name) {
  char file[PST_MODELS_NAME_BYTES + 8];
  (void)snprintf(file, sizeof file, "%s.json", name);
  return pst_models_place(home, file, NULL);
}

static uint64_t mtime_ns_of(const struct stat *st) {
  return (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec;
}

static int record_write(const char *home, const char *name, const char *licence, const char *sha256, const char *blob,
                        pst_error *err) {
  struct stat st;
  if (stat(blob, &st)) return pst_error_set_errno(err, errno, blob, "the model file cannot be examined");
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "name", name);
  pst_json_member_cstr(&w, "licence", licence ? licence : "");
  pst_json_member_cstr(&w, "sha256", sha256);
  pst_json_member_int(&w, "bytes", (int64_t)st.st_size);
  pst_json_key(&w, "inode"); /* as text: 64 bits do not fit a JSON number everywhere */
  char number[24];
  (void)snprintf(number, sizeof number, "%llu", (unsigned long long)st.st_ino);
  pst_json_put_cstr(&w, number);
  pst_json_key(&w, "mtime_ns");
  (void)snprintf(number, sizeof number, "%llu", (unsigned long long)mtime_ns_of(&st));
  pst_json_put_cstr(&w, number);
  pst_json_end_object(&w);
  pst_buf_putc(&text, '\n');
  char *path = record_path(home, name);
  int code = path && !pst_buf_status(&text) ? pst_file_write_atomic(path, text.data, text.n, err) : no_memory(err);
  pst_free(path);
  pst_buf_done(&text);
  return code;
}

static bool text_is_u64(const pst_json *record, const char *key, uint64_t expected) {
  char number[24];
  (void)snprintf(number, sizeof number, "%llu", (unsigned long long)expected);
  return pst_str_is(pst_json_str(pst_json_get(record, key)), number);
}

static void copy_text(char *out, size_t n, pst_str text) {
  size_t length = PST_MIN(text.n, n - 1);
  if (length) memcpy(out, text.data, length);
  out[length] = '\0';
}

static int record_fill(const char *home, const char *name, const pst_json *record, pst_models_file *file,
                       bool *ret_intact, pst_error *err) {
  pst_str sha256 = pst_json_str(pst_json_get(record, "sha256"));
  int64_t bytes = pst_json_int(pst_json_get(record, "bytes"), -1);
  if (sha256.n != 64 || !pst_models_hash_valid(sha256.data, 64) || bytes < 0)
    return pst_error_set(err, PST_E_CORRUPT, name, "the record of this model is damaged; pull it again");
  *file = (pst_models_file){.bytes = bytes};
  copy_text(file->name, sizeof file->name, pst_str_from(name));
  copy_text(file->licence, sizeof file->licence, pst_json_str(pst_json_get(record, "licence")));
  copy_text(file->sha256, sizeof file->sha256, sha256);
  file->path = pst_models_place(home, "blobs", file->sha256);
  if (!file->path) return no_memory(err);
  struct stat st;
  *ret_intact = stat(file->path, &st) == 0 && S_ISREG(st.st_mode) && (int64_t)st.st_size == bytes &&
                text_is_u64(record, "inode", (uint64_t)st.st_ino) && text_is_u64(record, "mtime_ns", mtime_ns_of(&st));
  return 0;
}

int pst_models_record_read(const char *home, const char *name, pst_models_file *ret_file, bool *ret_intact,
                           pst_error *err) {
  char *path = record_path(home, name);
  if (!path) return no_memory(err);
  pst_json_doc *doc = NULL;
  pst_error why = PST_ERROR_INIT;
  int code = pst_json_parse_file(path, MAX_RECORD_BYTES, &doc, &why);
  if (code == PST_E_BAD_INPUT || code == PST_E_LIMIT)
    code = pst_error_set(&why, PST_E_CORRUPT, path, "the record of this model is damaged; pull it again");
  pst_models_file file = {.path = NULL};
  bool intact = false;
  if (!code) code = record_fill(home, name, pst_json_root(doc), &file, &intact, &why);
  pst_json_free(doc);
  pst_free(path);
  if (code) {
    if (err) *err = why;
    return code;
  }
  *ret_file = file;
  *ret_intact = intact;
  return 0;
}

/* ---- walking ---- */

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The names that have records, sorted; each pst_free, and the array. A missing folder is an empty one. */
static int record_names(const char *home, char ***ret_names, size_t *ret_n, pst_error *err) {
  char *path = pst_path_join(home, "models");
  if (!path) return no_memory(err);
  DIR *dir = opendir(path);
  int code = dir || errno == ENOENT ? 0 : pst_error_set_errno(err, errno, path, "the models cannot be listed");
  char **names = NULL;
  size_t n = 0, capacity = 0;
  for (struct dirent *entry; !code && dir && (entry = readdir(dir));) {
    size_t length = strlen(entry->d_name);
    if (length <= 5 || strcmp(entry->d_name + length - 5, ".json") != 0) continue;
    char *name = pst_strndup(entry->d_name, length - 5);
    if (!name || pst_array_reserve((void **)&names, &capacity, n + 1, sizeof *names))
      code = no_memory(err);
    else if (pst_models_name_valid(name)) {
      names[n++] = name;
      name = NULL;
    }
    pst_free(name);
  }
  if (dir) (void)closedir(dir);
  pst_free(path);
  if (code) {
    while (n) pst_free(names[--n]);
    pst_free(names);
    return code;
  }
  if (n) qsort(names, n, sizeof *names, by_name);
  *ret_names = names;
  *ret_n = n;
  return 0;
}

int pst_models_each(const char *home, int (*fn)(void *user, const pst_models_file *file, bool intact), void *user,
                    pst_error *err) {
  char **names = NULL;
  size_t n = 0;
  int code = record_names(home, &names, &n, err);
  if (code) return code;
  for (size_t i = 0; i < n; i++) {
    pst_models_file file;
    bool intact = false;
    pst_error why = PST_ERROR_INIT;
    if (!code) {
      int read_code = pst_models_record_read(home, names[i], &file, &intact, &why);
      if (read_code == PST_E_CORRUPT) { /* shown as damaged, so that it can be removed */
        file = (pst_models_file){.path = NULL};
        copy_text(file.name, sizeof file.name, pst_str_from(names[i]));
        code = fn(user, &file, false);
      } else if (read_code && read_code != PST_E_NOT_FOUND) { /* NOT_FOUND: removed meanwhile */
        code = read_code;
        if (err) *err = why;
      } else if (!read_code) {
        code = fn(user, &file, intact);
        pst_models_file_done(&file);
      }
    }
    pst_free(names[i]);
  }
  pst_free(names);
  return code;
}

/* ---- resolving ---- */

static int resolve_path(const char *what, pst_models_file *ret_file, pst_error *err) {
  struct stat st;
  if (stat(what, &st)) return pst_error_set_errno(err, errno, what, "the model file cannot be opened");
  if (S_ISDIR(st.st_mode)) { /* a checkpoint as its authors publish it */
    char *weights = pst_path_join(what, "model.safetensors");
    bool there = weights && stat(weights, &st) == 0;
    pst_free(weights);
    if (!there) return pst_error_set(err, PST_E_BAD_INPUT, what, "is a folder without a model.safetensors in it");
  }
  if (!S_ISREG(st.st_mode)) return pst_error_set(err, PST_E_BAD_INPUT, what, "is not a file");
  char *path = pst_strdup(what);
  if (!path) return no_memory(err);
  *ret_file = (pst_models_file){.bytes = (int64_t)st.st_size, .path = path};
  return 0;
}

typedef struct prefix_search {
  const char *prefix;
  size_t n_prefix;
  char name[PST_MODELS_NAME_BYTES], sha256[65];
  bool ambiguous;
} prefix_search;

static int match_prefix(void *user, const pst_models_file *file, bool intact) {
  (void)intact;
  prefix_search *s = user;
  if (strncmp(file->sha256, s->prefix, s->n_prefix) != 0) return 0;
  if (s->sha256[0] && strcmp(s->sha256, file->sha256) != 0) s->ambiguous = true;
  copy_text(s->name, sizeof s->name, pst_str_from(file->name));
  copy_text(s->sha256, sizeof s->sha256, pst_str_from(file->sha256));
  return 0;
}

static int append_name(void *user, const pst_models_file *file, bool intact) {
  (void)intact;
  pst_buf *out = user;
  pst_buf_printf(out, "%s%s", out->n ? ", " : "", file->name);
  return 0;
}

static int not_found(const char *home, const char *what, pst_error *err) {
  const pst_json *models = NULL;
  pst_error ignored = PST_ERROR_INIT;
  if (pst_models_catalogue(&models, &ignored) == 0 && pst_models_catalogue_find(models, what))
    return pst_error_set(err, PST_E_NOT_FOUND, what, "this model is not here yet; fetch it with: penstock pull %s",
                         what);
  pst_buf here = PST_BUF_INIT, known = PST_BUF_INIT;
  (void)pst_models_each(home, append_name, &here, &ignored);
  pst_models_catalogue_names(&known);
  int code =
      pst_error_set(err, PST_E_NOT_FOUND, what,
                    "there is no model of this name; here: %s; can be pulled: %s; or give the path of a .gguf file",
                    here.n ? pst_buf_text(&here) : "none", pst_buf_text(&known));
  pst_buf_done(&here);
  pst_buf_done(&known);
  return code;
}

static int resolve_record(const char *home, const char *name, pst_models_file *ret_file, pst_error *err) {
  bool intact = false;
  pst_models_file file;
  int code = pst_models_record_read(home, name, &file, &intact, err);
  if (code) return code;
  if (!intact) {
    code =
        pst_file_exists(file.path)
            ? pst_error_set(
                  err, PST_E_CORRUPT, file.path,
                  "this file of %s was changed or copied since it was pulled; check it with: penstock models --verify %s",
                  name, name)
            : pst_error_set(err, PST_E_CORRUPT, file.path, "the file of %s is gone; pull it again", name);
    pst_models_file_done(&file);
    return code;
  }
  *ret_file = file;
  return 0;
}

int pst_models_resolve(const char *home, const char *what, pst_models_file *ret_file, pst_error *err) {
  size_t n = strlen(what);
  if (strchr(what, '/') || (n > 5 && strcmp(what + n - 5, ".gguf") == 0)) return resolve_path(what, ret_file, err);
  if (pst_models_name_valid(what)) {
    pst_error why = PST_ERROR_INIT;
    int code = resolve_record(home, what, ret_file, &why);
    if (code != PST_E_NOT_FOUND) {
      if (code && err) *err = why;
      return code;
    }
  }
  if (n >= 8 && pst_models_hash_valid(what, n)) {
    prefix_search search = {.prefix = what, .n_prefix = n};
    int code = pst_models_each(home, match_prefix, &search, err);
    if (code) return code;
    if (search.ambiguous)
      return pst_error_set(err, PST_E_BAD_INPUT, what, "several models begin with these digits; give more of them");
    if (search.sha256[0]) return resolve_record(home, search.name, ret_file, err);
  }
  return not_found(home, what, err);
}

/* ---- changing ---- */

typedef struct sharer_search {
  const char *name, *sha256;
  bool found, intact; /* some other name has this content; the file of one such is as it was recorded */
} sharer_search;

static int match_sharer(void *user, const pst_models_file *file, bool intact) {
  sharer_search *s = user;
  if (strcmp(file->name, s->name) == 0 || strcmp(file->sha256, s->sha256) != 0) return 0;
  s->found = true;
  s->intact |= intact;
  return 0;
}

/* A file that another name has already stays as it is: its record tells it by its inode. */
static int put_blob(const char *home, const char *name, const char *path, const char *sha256, const char *blob,
                    pst_error *err) {
  sharer_search sharer = {name, sha256, false, false};
  if (strcmp(path, blob) == 0) return 0;
  int code = pst_models_each(home, match_sharer, &sharer, err);
  if (!code && sharer.intact)
    (void)unlink(path);
  else if (!code && rename(path, blob))
    code = pst_error_set_errno(err, errno, path, "the file cannot be moved to its place");
  return code;
}

int pst_models_commit(const char *home, const char *name, const char *licence, const char *path, const char *sha256,
                      int64_t bytes, char **ret_path, pst_error *err) {
  char *dir = pst_models_place(home, "blobs", NULL), *blob = pst_models_place(home, "blobs", sha256);
  int lock = -1;
  int code = dir && blob ? pst_dir_make(dir, err) : no_memory(err);
  if (!code && chmod(path, 0444)) code = pst_error_set_errno(err, errno, path, "the file cannot be made read-only");
  if (!code) code = pst_models_sync(path, false, err);
  if (!code) code = pst_models_lock(home, REGISTRY_LOCK, NULL, &lock, err);
  if (!code) code = put_blob(home, name, path, sha256, blob, err);
  if (!code) code = pst_models_sync(dir, true, err);
  struct stat st;
  if (!code && (stat(blob, &st) || (int64_t)st.st_size != bytes))
    code = pst_error_set(err, PST_E_CORRUPT, blob, "the file changed while it was put in place; try again");
  if (!code) code = record_write(home, name, licence, sha256, blob, err);
  if (lock >= 0) (void)close(lock);
  pst_free(dir);
  if (code || !ret_path) {
    pst_free(blob);
    return code;
  }
  *ret_path = blob;
  return 0;
}

/* What was made from a blob; its files' names begin with the hash. */
static void remove_packed(const char *home, const char *sha256) {
  char *packed = pst_models_packed_dir(home);
  if (packed && sha256[0]) pst_models_remove_prefixed(packed, sha256);
  pst_free(packed);
}

static void remove_derived(const char *home, const char *sha256) {
  char *copies = pst_path_join(home, "quantized");
  if (copies && sha256[0]) pst_models_remove_prefixed(copies, sha256);
  pst_free(copies);
  remove_packed(home, sha256);
}

static int64_t count_copies(const char *dir, const char *ending, bool clear) {
  int64_t bytes = 0;
  struct stat st;
  DIR *d = opendir(dir);
  for (struct dirent *e; d && (e = readdir(d));) {
    const char *dot = strrchr(e->d_name, '.');
    if (!dot || strcmp(dot, ending) != 0 || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW)) continue;
    if (S_ISREG(st.st_mode) && (!clear || !unlinkat(dirfd(d), e->d_name, 0))) bytes += (int64_t)st.st_size;
  }
  if (d) (void)closedir(d);
  return bytes;
}

int64_t pst_models_copies(const char *home, bool clear) {
  char *quantized = pst_path_join(home, "quantized"), *packed = pst_path_join(home, "packed");
  int64_t bytes = quantized ? count_copies(quantized, ".gguf", clear) : 0;
  if (packed) bytes += count_copies(packed, ".packed", clear);
  pst_free(quantized);
  pst_free(packed);
  return bytes;
}

int pst_models_verify(const char *home, const char *name, pst_progress *progress, pst_error *err) {
  pst_models_file file;
  bool intact = false;
  char sha256[65];
  int lock = -1;
  if (!pst_models_name_valid(name)) return not_found(home, name, err);
  int code = pst_models_record_read(home, name, &file, &intact, err);
  if (code == PST_E_NOT_FOUND) return not_found(home, name, err);
  if (code) return code;
  code = pst_models_lock(home, name, NULL, &lock, err);
  if (!code) remove_packed(home, file.sha256);
  if (!code) code = pst_models_hash_file(file.path, progress, sha256, NULL, err);
  if (!code && strcmp(sha256, file.sha256) != 0)
    code = pst_error_set(
        err, PST_E_CORRUPT, file.path,
        "the content of %s is not what was pulled (SHA-256 %.12s..., should be %.12s...); remove it and pull it again",
        name, sha256, file.sha256);
  if (!code && !intact) code = record_write(home, name, file.licence, file.sha256, file.path, err);
  if (lock >= 0) (void)close(lock);
  pst_models_file_done(&file);
  return code;
}

/* Record first: from then on the name is gone, and what a crash leaves behind is only unused. */
static int remove_locked(const char *home, const char *name, const pst_models_file *file, pst_error *err) {
  sharer_search sharer = {name, file->sha256, false, false};
  char *record = record_path(home, name), *notices = pst_models_place(home, "notices", name),
       *partial = pst_models_place(home, "partial", name);
  int code = record && notices && partial ? 0 : no_memory(err);
  if (!code && unlink(record) && errno != ENOENT)
    code = pst_error_set_errno(err, errno, record, "the record cannot be removed");
  if (!code) {
    (void)pst_dir_remove(notices);
    (void)pst_dir_remove(partial);
    code = pst_models_each(home, match_sharer, &sharer, err);
  }
  if (!code && file->path && !sharer.found && unlink(file->path) && errno != ENOENT)
    code = pst_error_set_errno(err, errno, file->path, "the model file cannot be removed");
  if (!code && file->path && !sharer.found) remove_derived(home, file->sha256);
  pst_free(record);
  pst_free(notices);
  pst_free(partial);
  return code;
}

int pst_models_remove(const char *home, const char *name, pst_error *err) {
  pst_models_file file = {.path = NULL};
  bool intact = false;
  int lock = -1, registry = -1;
  if (!pst_models_name_valid(name)) return not_found(home, name, err);
  int code = pst_models_lock(home, name, NULL, &lock, err);
  if (!code) code = pst_models_lock(home, REGISTRY_LOCK, NULL, &registry, err);
  if (!code) {
    pst_error why = PST_ERROR_INIT;
    code = pst_models_record_read(home, name, &file, &intact, &why);
    if (code == PST_E_CORRUPT) code = 0; /* a damaged record can go */
    if (code == PST_E_NOT_FOUND)
      code = not_found(home, name, err);
    else if (code && err)
      *err = why;
  }
  if (!code) code = remove_locked(home, name, &file, err);
  if (registry >= 0) (void)close(registry);
  if (lock >= 0) (void)close(lock);
  pst_models_file_done(&file);
  return code;
}

/* ---- adopting ---- */

static int copy_file(const char *from, const char *to, pst_error *err) {
  int in = open(from, O_RDONLY | O_CLOEXEC), out = -1, code = 0;
  if (in < 0) return pst_error_set_errno(err, errno, from, "the file cannot be opened");
  out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (out < 0) code = pst_error_set_errno(err, errno, to, "the copy cannot be made");
  const size_t chunk = (size_t)1 << 20;
  char *buffer = pst_malloc(chunk);
  if (!code && !buffer) code = no_memory(err);
  while (!code) {
    ssize_t n = read(in, buffer, chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) code = pst_error_set_errno(err, errno, from, "the file cannot be read");
    if (n <= 0) break;
    for (ssize_t done = 0; !code && done < n;) {
      ssize_t written = write(out, buffer + done, (size_t)(n - done));
      if (written < 0 && errno != EINTR) code = pst_error_set_errno(err, errno, to, "the copy cannot be written");
      if (written > 0) done += written;
    }
  }
  pst_free(buffer);
  (void)close(in);
  if (out >= 0 && close(out) && !code) code = pst_error_set_errno(err, errno, to, "the copy cannot be written");
  return code;
}

static int adopt_locked(const char *home, const char *path, const char *name, const char *licence,
                        pst_models_file *ret_file, pst_error *err) {
  pst_models_file present;
  bool intact = false;
  char sha256[65];
  int64_t bytes = 0;
  pst_error ignored = PST_ERROR_INIT;
  char *dir = pst_models_place(home, "partial", name), *moved = dir ? pst_path_join(dir, "adopted") : NULL,
       *blob = NULL;
  int code = moved ? pst_dir_make(dir, err) : no_memory(err);
  if (!code && rename(path, moved))
    code = errno == EXDEV ? copy_file(path, moved, err)
                          : pst_error_set_errno(err, errno, path, "the file cannot be taken in");
  if (!code) code = pst_models_hash_file(moved, NULL, sha256, &bytes, err);
  if (!code && pst_models_record_read(home, name, &present, &intact, &ignored) == 0) {
    if (strcmp(present.sha256, sha256) != 0)
      code = pst_error_set(err, PST_E_EXISTS, name,
                           "another model has this name already; choose another, or remove it first");
    pst_models_file_done(&present);
  }
  if (!code) code = pst_models_commit(home, name, licence, moved, sha256, bytes, &blob, err);
  if (code && moved && !pst_file_exists(path)) (void)rename(moved, path); /* as it was */
  if (dir) (void)pst_dir_remove(dir);
  pst_free(moved);
  pst_free(dir);
  pst_free(blob);
  if (code) return code;
  return resolve_record(home, name, ret_file, err);
}

int pst_models_adopt(const char *home, const char *path, const char *name, const char *licence,
                     pst_models_file *ret_file, pst_error *err) {
  if (!pst_models_name_valid(name))
    return pst_error_set(err, PST_E_BAD_INPUT, name,
                         "a model's name has 1 to %d of a-z 0-9 . _ - and begins with a letter or digit",
                         PST_MODELS_NAME_BYTES - 1);
  struct stat st;
  if (stat(path, &st)) return pst_error_set_errno(err, errno, path, "the file cannot be taken in");
  if (!S_ISREG(st.st_mode)) return pst_error_set(err, PST_E_BAD_INPUT, path, "is not a file");
  int lock = -1;
  int code = pst_models_lock(home, name, NULL, &lock, err);
  if (!code) code = adopt_locked(home, path, name, licence, ret_file, err);
  if (lock >= 0) (void)close(lock);
  return code;
}

/* ---- hashes of files elsewhere ---- */

static char *seen_path(const char *home, const char *path) {
  char name[32];
  (void)snprintf(name, sizeof name, "%016llx", (unsigned long long)pst_hash64(path, strlen(path), 0));
  return pst_models_place(home, "hashes", name);
}

/* One line: "SHA256 inode size mtime path". */
static void seen_line(pst_buf *line, const char *sha256, const struct stat *st, const char *path) {
  pst_buf_printf(line, "%s %llu %lld %llu %s\n", sha256, (unsigned long long)st->st_ino, (long long)st->st_size,
                 (unsigned long long)mtime_ns_of(st), path);
}

static bool seen_get(const char *seen, const struct stat *st, const char *path, char ret_sha256[65]) {
  char *text = NULL;
  size_t n = 0;
  pst_error ignored = PST_ERROR_INIT;
  if (pst_file_read(seen, MAX_RECORD_BYTES, &text, &n, &ignored)) return false;
  bool same = false;
  if (n > 64 && pst_models_hash_valid(text, 64)) {
    char sha256[65];
    copy_text(sha256, sizeof sha256, (pst_str){text, 64});
    pst_buf expected = PST_BUF_INIT;
    seen_line(&expected, sha256, st, path);
    same = pst_str_equal(pst_buf_str(&expected), (pst_str){text, n});
    if (same) memcpy(ret_sha256, sha256, sizeof sha256);
    pst_buf_done(&expected);
  }
  pst_free(text);
  return same;
}

int pst_models_hash(const char *home, const char *path, pst_progress *progress, char ret_sha256[65], pst_error *err) {
  struct stat st;
  char *full = realpath(path, NULL);
  if (!full || stat(full, &st)) {
    int errnum = errno;
    free(full);
    return pst_error_set_errno(err, errnum, path, "the file cannot be opened");
  }
  char *dir = pst_models_place(home, "hashes", NULL), *seen = seen_path(home, full);
  int code = dir && seen ? 0 : no_memory(err);
  if (!code && !seen_get(seen, &st, full, ret_sha256)) {
    char sha256[65];
    code = pst_models_hash_file(full, progress, sha256, NULL, err);
    if (!code) {
      pst_buf line = PST_BUF_INIT;
      pst_error ignored = PST_ERROR_INIT;
      seen_line(&line, sha256, &st, full);
      /* remembering is a convenience: a read-only data directory is no reason to fail */
      if (!pst_buf_status(&line) && pst_dir_make(dir, &ignored) == 0)
        (void)pst_file_write_atomic(seen, line.data, line.n, &ignored);
      pst_buf_done(&line);
      memcpy(ret_sha256, sha256, sizeof sha256);
    }
  }
  free(full);
  pst_free(dir);
  pst_free(seen);
  return code;
}
