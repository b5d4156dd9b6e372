/* Directories for tests. Plain libc, so that tests of base may use it too. */
#include "support/temp.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what) {
  perror(what);
  abort();
}

char *test_temp_dir(void) {
  const char *root = getenv("TMPDIR");
  char pattern[512];
  if (snprintf(pattern, sizeof pattern, "%s/penstock-test-XXXXXX", root && *root ? root : "/tmp") >=
      (int)sizeof pattern)
    abort();
  char *dir = mkdtemp(pattern);
  char *copy = dir ? strdup(dir) : NULL;
  if (!copy) die(pattern);
  return copy;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
  (void)st;
  (void)type;
  (void)ftw;
  return remove(path);
}

void test_temp_remove(char *dir) {
  if (!dir) return;
  (void)nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  free(dir);
}

const char *test_temp_path(const char *dir, const char *name) {
  static _Thread_local char paths[8][1024];
  static _Thread_local unsigned next;
  char *path = paths[next++ % 8];
  if (snprintf(path, sizeof paths[0], "%s/%s", dir, name) >= (int)sizeof paths[0]) abort();
  return path;
}

void test_temp_write(const char *path, const void *data, size_t n) {
  FILE *f = fopen(path, "wb");
  if (!f || (n && fwrite(data, 1, n, f) != n) || fclose(f)) die(path);
}

char *test_dir;

int test_dir_open(void **state) {
  (void)state;
  test_dir = test_temp_dir();
  return 0;
}

int test_dir_close(void **state) {
  (void)state;
  test_temp_remove(test_dir);
  return 0;
}
