/* Places and files: names under HOME/models, hashing, syncing, removing. Knows nothing of catalogues or records. */
#include "models/models.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define CHUNK_BYTES ((size_t)1 << 20)

static bool is_lower_alnum(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

bool pst_models_name_valid(const char *name) {
  size_t n = strlen(name);
  if (n == 0 || n >= PST_MODELS_NAME_BYTES || !is_lower_alnum(name[0])) return false;
  for (size_t i = 1; i < n; i++)
    if (!is_lower_alnum(name[i]) && name[i] != '.' && name[i] != '_' && name[i] != '-') return false;
  return true;
}

bool pst_models_hash_valid(const char *text, size_t n) {
  if (n > 64) return false;
  for (size_t i = 0; i < n; i++)
    if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f'))) return false;
  return true;
}

char *pst_models_place(const char *home, const char *a, const char *b) {
  pst_buf path = PST_BUF_INIT;
  pst_buf_printf(&path, "%s/models/%s%s%s", home, a, b ? "/" : "", b ? b : "");
  char *joined = pst_buf_take(&path);
  pst_buf_done(&path);
  return joined;
}

int pst_models_hash_file(const char *path, pst_progress *progress, char ret_sha256[65], int64_t *ret_bytes,
                         pst_error *err) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return pst_error_set_errno(err, errno, path, "the file cannot be opened");
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  uint8_t *buffer = pst_malloc(CHUNK_BYTES), digest[32];
  pst_sha256 sha;
  pst_sha256_init(&sha);
  int64_t total = 0;
  int code = buffer ? 0 : pst_error_set(err, PST_E_NOMEM, path, "out of memory");
  while (!code) {
    ssize_t n = read(fd, buffer, CHUNK_BYTES);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) code = pst_error_set_errno(err, errno, path, "the file cannot be read");
    if (n <= 0) break;
    pst_sha256_update(&sha, buffer, (size_t)n);
    total += n;
    if (progress) pst_progress_update(progress, total);
  }
  (void)close(fd);
  pst_free(buffer);
  if (code) return code;
  pst_sha256_done(&sha, digest);
  pst_hex(digest, sizeof digest, ret_sha256);
  if (ret_bytes) *ret_bytes = total;
  return 0;
}

int pst_models_sync(const char *path, bool directory, pst_error *err) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | (directory ? O_DIRECTORY : 0));
  int code = 0;
  if (fd < 0 || fsync(fd)) code = pst_error_set_errno(err, errno, path, "cannot be brought to the disk");
  if (fd >= 0) (void)close(fd);
  return code;
}

char *pst_models_packed_dir(const char *home) {
  const char *chosen = getenv("PENSTOCK_PACKED");
  if (!chosen || !*chosen) return pst_path_join(home, "packed");
  return strcmp(chosen, "off") == 0 ? NULL : pst_strdup(chosen);
}

void pst_models_remove_prefixed(const char *dir, const char *prefix) {
  DIR *d = opendir(dir);
  if (!d) return;
  for (struct dirent *e; (e = readdir(d));)
    if (strncmp(e->d_name, prefix, strlen(prefix)) == 0) (void)unlinkat(dirfd(d), e->d_name, 0);
  (void)closedir(d);
}

/* nftw has no argument for its function, and globals would not do for two pulls in one process: a walk of our own. */
static int64_t tree_bytes(const char *path, int depth) {
  DIR *dir = opendir(path);
  if (!dir) return 0;
  int64_t total = 0;
  for (struct dirent *entry; (entry = readdir(dir));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    struct stat st;
    if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW)) continue;
    if (S_ISREG(st.st_mode)) total += (int64_t)st.st_size;
    if (S_ISDIR(st.st_mode) && depth < 8) {
      char *below = pst_path_join(path, entry->d_name);
      if (below) total += tree_bytes(below, depth + 1);
      pst_free(below);
    }
  }
  (void)closedir(dir);
  return total;
}

int64_t pst_models_tree_bytes(const char *path) { return tree_bytes(path, 0); }

int pst_models_check_room(const char *dir, int64_t bytes, pst_error *err) {
  struct statvfs fs;
  if (statvfs(dir, &fs)) return 0; /* the write itself will tell */
  uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
  if (bytes <= 0 || room >= (uint64_t)bytes) return 0;
  return pst_error_set(
      err, PST_E_NO_SPACE, dir,
      "%lld MB are needed and only %lld MB are free; make room or choose another data directory with --home",
      (long long)bytes / 1000000 + 1, (long long)(room / 1000000));
}
