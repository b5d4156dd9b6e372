/* Files and directories: whole reads, atomic writes, mappings, the data directory.
 *
 * Every failure names the path. A write that fails half-way (full disk, quota, file size limit) leaves neither a torn file nor
 * its temporary behind; for the size limit the program must ignore SIGXFSZ, so that write() returns EFBIG instead. */
#include <penstock/base.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- reading ---- */

static int open_retry(const char *path, int flags, mode_t mode) {
  int fd;
  do fd = open(path, flags | O_CLOEXEC, mode);
  while (fd < 0 && errno == EINTR);
  return fd;
}

/* Reads to the end of fd into *buf; the announced size is only a hint (pipes and /proc say 0). */
static int read_all(int fd, size_t hint, size_t max_bytes, pst_buf *buf, const char *path, pst_error *err) {
  if (pst_buf_reserve(buf, PST_MIN(hint, max_bytes) + 1) != 0)
    return pst_error_set(err, PST_E_NOMEM, path, "no memory to read the file");
  for (;;) {
    if (pst_buf_reserve(buf, 1) != 0) return pst_error_set(err, PST_E_NOMEM, path, "no memory to read the file");
    size_t room = PST_MIN(buf->capacity - buf->n - 1, (size_t)1 << 30);
    ssize_t got = read(fd, buf->data + buf->n, room);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return pst_error_set_errno(err, errno, path, "cannot read");
    if (got == 0) break;
    buf->n += (size_t)got;
    if (buf->n > max_bytes)
      return pst_error_set(err, PST_E_LIMIT, path, "the file is larger than the %zu bytes allowed here", max_bytes);
  }
  buf->data[buf->n] = '\0';
  return 0;
}

int pst_file_read(const char *path, size_t max_bytes, char **ret_data, size_t *ret_n, pst_error *err) {
  pst_buf buf = PST_BUF_INIT;
  int rc = 0;
  int fd = open_retry(path, O_RDONLY, 0);
  if (fd < 0) return pst_error_set_errno(err, errno, path, "cannot open");
  struct stat st;
  if (fstat(fd, &st) != 0) {
    rc = pst_error_set_errno(err, errno, path, "cannot examine");
    goto done;
  }
  if (S_ISDIR(st.st_mode)) {
    rc = pst_error_set(err, PST_E_BAD_INPUT, path, "is a directory, not a file");
    goto done;
  }
  if (S_ISREG(st.st_mode) && (uintmax_t)st.st_size > max_bytes) {
    rc = pst_error_set(err, PST_E_LIMIT, path, "the file has %jd bytes, more than the %zu allowed here",
                       (intmax_t)st.st_size, max_bytes);
    goto done;
  }
  rc = read_all(fd, S_ISREG(st.st_mode) ? (size_t)st.st_size : 4096, max_bytes, &buf, path, err);
  if (rc != 0) goto done;
  size_t n = buf.n;
  *ret_data = pst_buf_take(&buf);
  *ret_n = n;
done:
  (void)close(fd);
  pst_buf_done(&buf);
  return rc;
}

bool pst_file_exists(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

bool pst_dir_exists(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* ---- atomic writing ---- */

static int write_all(int fd, const char *data, size_t n) {
  while (n > 0) {
    ssize_t put = write(fd, data, PST_MIN(n, (size_t)1 << 30));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return put < 0 ? errno : EIO;
    data += put;
    n -= (size_t)put;
  }
  return 0;
}

enum { TAG_DIGITS = 16 };
static const char temporary_ending[] = ".tmp";

/* A writer holds its temporary until it has its name: who finds one without a holder may remove it (pst_dir_sweep), but only while holding it himself. False: that
 * happens or has happened before it was held. A file system without locks: true. */
static bool hold(int fd) {
  struct stat now;
  if (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) return false;
  return fstat(fd, &now) || now.st_nlink > 0;
}

/* Opened by its own mode rather than mkstemp's 0600, so that the result has the permissions of any other new file. */
int pst_file_open_temporary(const char *path, char **ret_name, int *ret_fd, pst_error *err) {
  for (int attempt = 0; attempt < 16; attempt++) {
    uint64_t tag;
    if (pst_random_secret(&tag, sizeof tag) != 0)
      return pst_error_set(err, PST_E_IO, path, "the kernel gives no random bytes");
    pst_buf name = PST_BUF_INIT;
    pst_buf_printf(&name, "%s.%0*llx%s", path, (int)TAG_DIGITS, (unsigned long long)tag, temporary_ending);
    char *text = pst_buf_take(&name);
    if (!text) return pst_error_set(err, PST_E_NOMEM, path, "no memory to write the file");
    int fd = open_retry(text, O_WRONLY | O_CREAT | O_EXCL, 0666);
    int reason = fd < 0 ? errno : EEXIST;
    if (fd >= 0 && hold(fd)) {
      *ret_name = text;
      *ret_fd = fd;
      return 0;
    }
    if (fd >= 0) (void)close(fd);
    pst_free(text);
    if (reason != EEXIST) return pst_error_set_errno(err, reason, path, "cannot create a file beside it");
  }
  return pst_error_set(err, PST_E_EXISTS, path, "no free name for a temporary file beside it");
}

/* NAME.<16 hexadecimal digits>.tmp */
static bool is_temporary(const char *name) {
  size_t n = strlen(name), ending = sizeof temporary_ending - 1;
  if (n < ending + TAG_DIGITS + 2 || strcmp(name + n - ending, temporary_ending) != 0) return false;
  const char *tag = name + n - ending - TAG_DIGITS;
  return tag[-1] == '.' && strspn(tag, "0123456789abcdef") == TAG_DIGITS;
}

static void sweep(int dir_fd, const char *name) {
  int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return;
  if (!flock(fd, LOCK_EX | LOCK_NB)) (void)unlinkat(dir_fd, name, 0);
  (void)close(fd);
}

void pst_dir_sweep(const char *path) {
  DIR *dir = opendir(path);
  if (!dir) return;
  for (struct dirent *e; (e = readdir(dir));)
    if (is_temporary(e->d_name)) sweep(dirfd(dir), e->d_name);
  (void)closedir(dir);
}

void pst_file_sync_parent(const char *path) {
  const char *slash = strrchr(path, '/');
  char *parent = slash ? pst_strndup(path, slash == path ? 1 : (size_t)(slash - path)) : pst_strdup(".");
  if (!parent) return;
  int fd = open_retry(parent, O_RDONLY | O_DIRECTORY, 0);
  if (fd >= 0) {
    (void)fsync(fd);
    (void)close(fd);
  }
  pst_free(parent);
}

int pst_file_write_atomic(const char *path, const void *data, size_t n, pst_error *err) {
  return pst_file_write_parts_atomic(path, &(pst_str){data, n}, 1, err);
}

int pst_file_write_parts_atomic(const char *path, const pst_str *parts, size_t n_parts, pst_error *err) {
  char *temporary = NULL;
  size_t n = 0;
  int fd = -1;
  int rc = pst_file_open_temporary(path, &temporary, &fd, err);
  if (rc != 0) return rc;
  struct stat old;
  if (stat(path, &old) == 0 && S_ISREG(old.st_mode))
    (void)fchmod(fd, old.st_mode & 07777); /* best effort: a replaced file keeps its permissions */
  int reason = 0;
  for (size_t i = 0; i < n_parts && reason == 0; i++) {
    reason = write_all(fd, parts[i].data, parts[i].n);
    n += parts[i].n;
  }
  if (reason == 0 && fsync(fd) != 0) reason = errno;
  if (reason == 0 && rename(temporary, path) != 0) reason = errno;
  (void)close(fd); /* not before it has its name: see hold() */
  if (reason != 0) {
    (void)unlink(temporary);
    rc = pst_error_set_errno(err, reason, path, "cannot write %zu bytes", n);
  } else {
    pst_file_sync_parent(path);
  }
  pst_free(temporary);
  return rc;
}

/* ---- locks ---- */

int pst_file_lock(const char *path, int *ret_fd, pst_error *err) {
  int fd = open_retry(path, O_RDWR | O_CREAT, 0600);
  if (fd < 0) return pst_error_set_errno(err, errno, path, "the lock file cannot be made");
  while (flock(fd, LOCK_EX)) {
    if (errno == EINTR) continue;
    int code = pst_error_set_errno(err, errno, path, "the lock cannot be taken");
    (void)close(fd);
    return code;
  }
  *ret_fd = fd;
  return 0;
}

/* Who holds the file may remove it: a lock on one that has no name any more is no lock. */
int pst_file_try_lock(const char *path, int *ret_fd, pst_error *err) {
  for (;;) {
    struct stat now;
    int fd = open_retry(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0) return pst_error_set_errno(err, errno, path, "the lock file cannot be made");
    int reason = flock(fd, LOCK_EX | LOCK_NB) ? errno : 0;
    if (!reason && !fstat(fd, &now) && now.st_nlink > 0) {
      *ret_fd = fd;
      return 0;
    }
    (void)close(fd);
    if (reason == EWOULDBLOCK) return pst_error_set(err, PST_E_BUSY, path, "another process has this lock");
    if (reason && reason != EINTR) return pst_error_set_errno(err, reason, path, "the lock cannot be taken");
  }
}

/* ---- directories and paths ---- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
  (void)st;
  (void)type;
  (void)ftw;
  (void)remove(path);
  return 0;
}

bool pst_dir_remove(const char *path) {
  struct stat st;
  (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  return lstat(path, &st) && errno == ENOENT;
}

int pst_dir_make(const char *path, pst_error *err) {
  if (!path[0]) return pst_error_set(err, PST_E_BAD_INPUT, NULL, "the name of a directory is empty");
  char *partial = pst_strdup(path);
  if (!partial) return pst_error_set(err, PST_E_NOMEM, path, "no memory for a path");
  int rc = 0;
  for (char *at = partial + 1;; at++) {
    if (*at != '/' && *at != '\0') continue;
    char kept = *at;
    *at = '\0';
    if (mkdir(partial, 0700) != 0 && !pst_dir_exists(partial)) {
      int reason = errno;
      if (reason == EEXIST || pst_file_exists(partial))
        rc = pst_error_set(err, PST_E_BAD_INPUT, partial, "a file is where a directory is needed");
      else
        rc = pst_error_set_errno(err, reason, partial, "cannot make the directory");
      break;
    }
    *at = kept;
    if (kept == '\0') break;
  }
  pst_free(partial);
  return rc;
}

char *pst_path_join(const char *dir, const char *name) {
  size_t n_dir = strlen(dir), n_name = strlen(name);
  if (n_dir > SIZE_MAX - n_name - 2) return NULL;
  char *path = pst_malloc(n_dir + n_name + 2);
  if (!path) return NULL;
  size_t n = 0;
  const char *parts[2] = {dir, name};
  for (int i = 0; i < 2; i++) {
    if (i == 1 && n > 0 && path[n - 1] != '/') path[n++] = '/';
    for (const char *c = parts[i]; *c; c++)
      if (*c != '/' || n == 0 || path[n - 1] != '/') path[n++] = *c;
  }
  while (n > 1 && path[n - 1] == '/') n--;
  path[n] = '\0';
  return path;
}

static const char *env_of(const char *name) {
  const char *value = getenv(name);
  return value && value[0] ? value : NULL;
}

/* The data directory's name without making it; NULL: no memory, or none can be told. */
static char *home_name(const char *option, bool *ret_known) {
  *ret_known = true;
  if (option) return pst_path_join(option, "");
  const char *home = env_of("PENSTOCK_HOME");
  if (home) return pst_path_join(home, "");
  const char *data = env_of("XDG_DATA_HOME");
  if (data && data[0] == '/') /* the XDG specification: a relative one is ignored */
    return pst_path_join(data, "penstock");
  home = env_of("HOME");
  *ret_known = home != NULL;
  return home ? pst_path_join(home, ".local/share/penstock") : NULL;
}

int pst_home_open(const char *option, char **ret_path, pst_error *err) {
  if (option && !option[0])
    return pst_error_set(err, PST_E_BAD_INPUT, "--home", "the data directory's name is empty; name a directory");
  bool known = false;
  char *path = home_name(option, &known);
  if (!known)
    return pst_error_set(err, PST_E_NOT_FOUND, "PENSTOCK_HOME",
                         "no data directory: give --home, or set PENSTOCK_HOME or HOME");
  if (!path) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a path");
  int rc = pst_dir_make(path, err);
  if (rc != 0) {
    pst_error_prefix(err, "the data directory cannot be used; choose another with --home");
    pst_free(path);
    return rc;
  }
  *ret_path = path;
  return 0;
}

/* ---- mappings ---- */

int pst_map_open(const char *path, pst_map *ret_map, pst_error *err) {
  static const uint8_t empty[1] = {0};
  int rc = 0;
  int fd = open_retry(path, O_RDONLY | O_NONBLOCK, 0); /* a FIFO must not hang the open */
  if (fd < 0) return pst_error_set_errno(err, errno, path, "cannot open");
  struct stat st;
  if (fstat(fd, &st) != 0) {
    rc = pst_error_set_errno(err, errno, path, "cannot examine");
    goto done;
  }
  if (!S_ISREG(st.st_mode)) {
    rc = pst_error_set(err, PST_E_BAD_INPUT, path, "is not a regular file");
    goto done;
  }
  if ((uintmax_t)st.st_size > (uintmax_t)PTRDIFF_MAX) {
    rc = pst_error_set(err, PST_E_LIMIT, path, "the file is too large to be mapped");
    goto done;
  }
  size_t n = (size_t)st.st_size;
  const uint8_t *data = empty;
  if (n > 0) {
    void *mapped = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
      rc = pst_error_set_errno(err, errno, path, "cannot map %zu bytes", n);
      goto done;
    }
    data = mapped;
  }
  *ret_map =
      (pst_map){data, n, (uint64_t)st.st_ino, (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec};
done:
  (void)close(fd);
  return rc;
}

void pst_map_close(pst_map *map) {
  if (map->n > 0) (void)munmap((void *)(uintptr_t)map->data, map->n);
  *map = (pst_map){NULL, 0, 0, 0};
}
