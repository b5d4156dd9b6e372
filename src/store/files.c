/* Files by content hash: HOME/files/<sha256>, and those that clients sent in a folder of their own. A file is written elsewhere, synced, then renamed to its hash, so that a name
 * always stands for the whole content. Files never change; nothing here deletes them. */
#include "store/db.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int path_of(const pst_store *store, const char *folder, const char *hash, char **ret_path, pst_error *err) {
  char *dir = pst_path_join(store->home, folder);
  char *path = dir ? pst_path_join(dir, hash) : NULL;
  int code = path ? pst_dir_make(dir, err) : pst_error_set(err, PST_E_NOMEM, store->home, "out of memory");
  pst_free(dir);
  if (code) {
    pst_free(path);
    return code;
  }
  *ret_path = path;
  return 0;
}

int pst_store_file_put_in(const pst_store *store, const char *folder, const void *data, size_t n, char ret_hash[65],
                          pst_error *err) {
  char hash[65];
  char *path = NULL;
  pst_sha256_hex(data, n, hash);
  int code = path_of(store, folder, hash, &path, err);
  if (code) return code;
  if (!pst_file_exists(path)) code = pst_file_write_atomic(path, data, n, err);
  pst_free(path);
  if (!code) memcpy(ret_hash, hash, sizeof hash);
  return code;
}

int pst_store_file_put(pst_store *store, const void *data, size_t n, char ret_hash[65], pst_error *err) {
  return pst_store_file_put_in(store, "files", data, n, ret_hash, err);
}

static int hash_and_sync(const char *path, char ret_hash[65], pst_error *err) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return pst_error_set_errno(err, errno, path, "the file cannot be read");
  size_t chunk = (size_t)1 << 20;
  uint8_t *buffer = pst_malloc(chunk), digest[32];
  pst_sha256 sha;
  pst_sha256_init(&sha);
  int code = buffer ? 0 : pst_error_set(err, PST_E_NOMEM, path, "out of memory");
  while (!code) {
    ssize_t n = read(fd, buffer, chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) code = pst_error_set_errno(err, errno, path, "the file cannot be read");
    if (n <= 0) break;
    pst_sha256_update(&sha, buffer, (size_t)n);
  }
  if (!code && fsync(fd)) code = pst_error_set_errno(err, errno, path, "the file cannot be brought to the disk");
  (void)close(fd);
  pst_free(buffer);
  if (code) return code;
  pst_sha256_done(&sha, digest);
  pst_hex(digest, sizeof digest, ret_hash);
  return 0;
}

static int sync_dir(const pst_store *store, pst_error *err) {
  char *dir = pst_path_join(store->home, "files");
  if (!dir) return pst_error_set(err, PST_E_NOMEM, store->home, "out of memory");
  int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int code = 0;
  if (fd < 0 || fsync(fd)) code = pst_error_set_errno(err, errno, dir, "the directory cannot be brought to the disk");
  if (fd >= 0) (void)close(fd);
  pst_free(dir);
  return code;
}

int pst_store_file_adopt(pst_store *store, const char *path, char ret_hash[65], pst_error *err) {
  char hash[65];
  char *kept = NULL;
  int code = hash_and_sync(path, hash, err);
  if (!code) code = path_of(store, "files", hash, &kept, err);
  if (!code && rename(path, kept))
    code = pst_error_set_errno(err, errno, path, "the file cannot be moved into the store");
  if (!code) code = sync_dir(store, err);
  pst_free(kept);
  if (!code) memcpy(ret_hash, hash, sizeof hash);
  return code;
}

int pst_store_file_path_in(const pst_store *store, const char *folder, pst_str hash, char **ret_path, pst_error *err) {
  bool valid = hash.n == 64;
  for (size_t i = 0; valid && i < hash.n; i++)
    valid = (hash.data[i] >= '0' && hash.data[i] <= '9') || (hash.data[i] >= 'a' && hash.data[i] <= 'f');
  if (!valid) return pst_error_set(err, PST_E_BAD_INPUT, NULL, "a kept file is named by 64 lower-case hex digits");
  char text[65];
  char *path = NULL;
  pst_store_copy(text, sizeof text, hash);
  int code = path_of(store, folder, text, &path, err);
  if (!code && !pst_file_exists(path)) code = pst_error_set(err, PST_E_NOT_FOUND, path, "this file is not kept here");
  if (code) {
    pst_free(path);
    return code;
  }
  *ret_path = path;
  return 0;
}

int pst_store_file_path(pst_store *store, pst_str hash, char **ret_path, pst_error *err) {
  return pst_store_file_path_in(store, "files", hash, ret_path, err);
}
