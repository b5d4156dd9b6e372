/* Files: whole reads, atomic writes under every failure that can be made, directories, the data directory, mappings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char *root; /* a folder of this run's own */

static int make_root(void **state) {
  (void)state;
  const char *tmp = getenv("TMPDIR");
  char name[512];
  (void)snprintf(name, sizeof name, "%s/penstock-file-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
  if (!mkdtemp(name)) return -1;
  root = pst_strdup(name);
  return root ? 0 : -1;
}

static int remove_root(void **state) {
  (void)state;
  char command[600];
  (void)snprintf(command, sizeof command, "chmod -R u+rwx '%s' && rm -rf '%s'", root, root);
  int rc = system(command);
  pst_free(root);
  return rc;
}

static size_t n_entries(const char *dir) {
  DIR *d = opendir(dir);
  assert_non_null(d);
  size_t n = 0;
  for (struct dirent *e; (e = readdir(d));) n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
  closedir(d);
  return n;
}

static char *fresh_dir(const char *name) {
  char *dir = pst_path_join(root, name);
  assert_non_null(dir);
  assert_int_equal(pst_dir_make(dir, NULL), 0);
  return dir;
}

static void test_what_is_written_is_read(void **state) {
  (void)state;
  char *dir = fresh_dir("written"), *path = pst_path_join(dir, "file");
  static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, 100001};
  for (size_t i = 0; i < PST_ARRAY_LEN(sizes); i++) {
    char *data = pst_calloc(1, sizes[i] + 1), *back = NULL;
    size_t n = 0;
    for (size_t k = 0; k < sizes[i]; k++) data[k] = (char)pst_random_u64(1, i, k);
    pst_error err = PST_ERROR_INIT;
    assert_int_equal(pst_file_write_atomic(path, data, sizes[i], &err), 0);
    assert_int_equal(pst_file_read(path, sizes[i], &back, &n, &err), 0);
    assert_int_equal(n, sizes[i]);
    assert_memory_equal(back, data, n);
    assert_int_equal(back[n], 0);
    pst_free(back);
    pst_map map;
    assert_int_equal(pst_map_open(path, &map, &err), 0);
    assert_int_equal(map.n, n);
    assert_non_null(map.data);
    assert_memory_equal(map.data, data, n);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(map.inode, st.st_ino);
    assert_true(map.mtime_ns / 1000000000 == (uint64_t)st.st_mtim.tv_sec);
    pst_map_close(&map);
    assert_null(map.data);
    if (sizes[i] > 0) {
      back = NULL;
      assert_int_equal(pst_file_read(path, sizes[i] - 1, &back, &n, &err), PST_E_LIMIT);
      assert_null(back);
      assert_string_equal(err.place, path);
    }
    pst_free(data);
  }
  assert_int_equal(n_entries(dir), 1);
  pst_free(path);
  pst_free(dir);
}

static void test_sizeless_files_are_read(void **state) {
  (void)state;
  char *data = NULL;
  size_t n = 0;
  assert_int_equal(pst_file_read("/proc/self/status", 1 << 20, &data, &n, NULL), 0);
  assert_non_null(strstr(data, "Pid:"));
  pst_free(data);
  data = NULL;
  assert_int_equal(pst_file_read("/dev/zero", 100000, &data, &n, NULL), PST_E_LIMIT); /* has no end */
  assert_null(data);
}

/* What a killed writer left goes; what a living one holds stays, and so does everything that only looks alike. */
static void test_leavings_are_swept(void **state) {
  (void)state;
  char *dir = fresh_dir("sweep"), *path = pst_path_join(dir, "f"), *name = NULL;
  char dead[400], other[400];
  int fd = -1;
  (void)snprintf(dead, sizeof dead, "%s/f.0123456789abcdef.tmp", dir);
  (void)snprintf(other, sizeof other, "%s/f.0123456789abcdeg.tmp", dir);
  assert_int_equal(pst_file_write_atomic(dead, "x", 1, NULL), 0);
  assert_int_equal(pst_file_write_atomic(other, "x", 1, NULL), 0);
  assert_int_equal(pst_file_open_temporary(path, &name, &fd, NULL), 0);
  pst_dir_sweep(dir);
  assert_false(pst_file_exists(dead));
  assert_true(pst_file_exists(other));
  assert_true(pst_file_exists(name));
  assert_int_equal(rename(name, path), 0);
  (void)close(fd);
  pst_dir_sweep(dir);
  assert_int_equal(n_entries(dir), 2);
  pst_dir_sweep("/no/such/folder");
  pst_free(name);
  pst_free(path);
  pst_free(dir);
}

static void test_failures_name_the_path(void **state) {
  (void)state;
  char *dir = fresh_dir("failures"), *missing = pst_path_join(dir, "no/such"), *data = NULL;
  size_t n = 0;
  pst_map map;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_file_read(missing, 10, &data, &n, &err), PST_E_NOT_FOUND);
  assert_string_equal(err.place, missing);
  assert_int_equal(pst_file_read(dir, 10, &data, &n, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_map_open(missing, &map, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_map_open(dir, &map, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_map_open("/dev/null", &map, &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_file_write_atomic(missing, "x", 1, &err), PST_E_NOT_FOUND);
  assert_string_equal(err.place, missing);
  assert_int_not_equal(pst_file_write_atomic(dir, "x", 1, &err), 0); /* a directory is not replaced */
  char *beside = pst_path_join(root, "");
  for (DIR *d = opendir(beside); d; d = NULL) {
    for (struct dirent *e; (e = readdir(d));) assert_null(strstr(e->d_name, ".tmp"));
    closedir(d);
  }
  assert_int_equal(n_entries(dir), 0);
  assert_false(pst_file_exists(missing));
  assert_false(pst_file_exists(dir));
  assert_true(pst_dir_exists(dir));
  assert_false(pst_dir_exists("/dev/null"));
  pst_free(beside);
  pst_free(missing);
  pst_free(dir);
}

/* The size limit of the process stands in for a full disk. In a child, so that the limit goes away with it. */
static void test_a_write_cut_short_leaves_the_old_file(void **state) {
  (void)state;
  char *dir = fresh_dir("full"), *path = pst_path_join(dir, "file"), *back = NULL;
  static const char old[] = "the old content";
  assert_int_equal(pst_file_write_atomic(path, old, sizeof old, NULL), 0);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    struct rlimit limit = {10000, 10000};
    char *large = pst_calloc(1, 1 << 20);
    if (!large || signal(SIGXFSZ, SIG_IGN) == SIG_ERR || setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(2);
    pst_error err = PST_ERROR_INIT;
    int rc = pst_file_write_atomic(path, large, 1 << 20, &err);
    pst_free(large);
    _exit(rc == PST_E_NO_SPACE && strcmp(err.place, path) == 0 ? 0 : 1);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 0);
  size_t n = 0;
  assert_int_equal(pst_file_read(path, 1000, &back, &n, NULL), 0);
  assert_memory_equal(back, old, sizeof old);
  assert_int_equal(n_entries(dir), 1);
  pst_free(back);
  pst_free(path);
  pst_free(dir);
}

/* Root may write everywhere, so as root a child does it as another user. */
static void test_a_read_only_directory_is_denied(void **state) {
  (void)state;
  char *dir = fresh_dir("denied"), *path = pst_path_join(dir, "file");
  const uid_t nobody = 65534;
  const bool is_root = geteuid() == 0;
  if (is_root) assert_int_equal(chmod(root, 0711) | chown(dir, nobody, nobody), 0);
  assert_int_equal(chmod(dir, 0500), 0);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    if (is_root && (setgid(nobody) != 0 || setuid(nobody) != 0)) _exit(2);
    if (access(dir, R_OK | X_OK) != 0) _exit(3); /* it is the directory itself that denies */
    pst_error err = PST_ERROR_INIT;
    int rc = pst_file_write_atomic(path, "x", 1, &err);
    _exit(rc == PST_E_DENIED && strstr(err.place, dir) ? 0 : 1);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 0);
  assert_int_equal(chmod(dir, 0700), 0);
  assert_int_equal(n_entries(dir), 0);
  pst_free(path);
  pst_free(dir);
}

static void test_permissions(void **state) {
  (void)state;
  char *dir = fresh_dir("modes"), *path = pst_path_join(dir, "file");
  mode_t mask = umask(027);
  assert_int_equal(pst_file_write_atomic(path, "x", 1, NULL), 0);
  (void)umask(mask);
  struct stat st;
  assert_int_equal(stat(path, &st), 0);
  assert_int_equal(st.st_mode & 0777, 0640);
  assert_int_equal(chmod(path, 0600), 0);
  assert_int_equal(pst_file_write_atomic(path, "y", 1, NULL), 0);
  assert_int_equal(stat(path, &st), 0);
  assert_int_equal(st.st_mode & 0777, 0600); /* a secret stays one */
  assert_int_equal(stat(dir, &st), 0);
  assert_int_equal(st.st_mode & 0777, 0700);
  pst_free(path);
  pst_free(dir);
}

static void test_directories_with_parents(void **state) {
  (void)state;
  char *deep = pst_path_join(root, "a//b/c/"), *file = pst_path_join(root, "plain"),
       *below = pst_path_join(root, "plain/x");
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_dir_make(deep, &err), 0);
  assert_true(pst_dir_exists(deep));
  assert_int_equal(pst_dir_make(deep, &err), 0);
  assert_int_equal(pst_dir_make("/", &err), 0);
  assert_int_equal(pst_dir_make("", &err), PST_E_BAD_INPUT);
  assert_int_equal(pst_file_write_atomic(file, "x", 1, NULL), 0);
  assert_int_equal(pst_dir_make(file, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, file);
  assert_int_equal(pst_dir_make(below, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, file); /* the part that is in the way */
  pst_free(deep);
  pst_free(file);
  pst_free(below);
}

static void test_paths_are_joined(void **state) {
  (void)state;
  static const char *const rows[][3] = {
      {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"a", "/b", "a/b"}, {"/", "b", "/b"}, {"a//", "//b//c", "a/b/c"},
      {"", "b", "b"},    {"a", "", "a"},     {"a/", "", "a"},    {"/", "", "/"},   {"//", "/", "/"},
      {"", "", ""},      {"a", "b/", "a/b"}};
  for (size_t i = 0; i < PST_ARRAY_LEN(rows); i++) {
    char *path = pst_path_join(rows[i][0], rows[i][1]);
    assert_string_equal(path, rows[i][2]);
    pst_free(path);
  }
}

static void expect_home(const char *option, const char *want) {
  char *path = NULL;
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_home_open(option, &path, &err), 0);
  assert_string_equal(path, want);
  assert_true(pst_dir_exists(path));
  pst_free(path);
}

static void test_home_in_its_order(void **state) {
  (void)state;
  char *option = pst_path_join(root, "h-option"), *own = pst_path_join(root, "h-own"),
       *xdg = pst_path_join(root, "h-xdg");
  char *xdg_want = pst_path_join(xdg, "penstock"), *home = pst_path_join(root, "h-home");
  char *home_want = pst_path_join(home, ".local/share/penstock"), *path = NULL;
  assert_int_equal(setenv("PENSTOCK_HOME", own, 1) | setenv("XDG_DATA_HOME", xdg, 1) | setenv("HOME", home, 1), 0);
  expect_home(option, option);
  expect_home(NULL, own);
  assert_int_equal(setenv("PENSTOCK_HOME", "", 1), 0);
  expect_home(NULL, xdg_want);
  assert_int_equal(setenv("XDG_DATA_HOME", "not/absolute", 1), 0);
  expect_home(NULL, home_want);
  assert_int_equal(unsetenv("XDG_DATA_HOME") | unsetenv("HOME") | unsetenv("PENSTOCK_HOME"), 0);
  pst_error err = PST_ERROR_INIT;
  assert_int_equal(pst_home_open(NULL, &path, &err), PST_E_NOT_FOUND);
  assert_int_equal(pst_home_open("", &path, &err), PST_E_BAD_INPUT);
  char *file = pst_path_join(root, "h-file");
  assert_int_equal(pst_file_write_atomic(file, "x", 1, NULL), 0);
  assert_int_equal(pst_home_open(file, &path, &err), PST_E_BAD_INPUT);
  assert_string_equal(err.place, file);
  assert_non_null(strstr(err.message, "--home")); /* the remedy */
  assert_null(path);
  pst_free(file);
  pst_free(option);
  pst_free(own);
  pst_free(xdg);
  pst_free(xdg_want);
  pst_free(home);
  pst_free(home_want);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_what_is_written_is_read),
      cmocka_unit_test(test_sizeless_files_are_read),
      cmocka_unit_test(test_leavings_are_swept),
      cmocka_unit_test(test_failures_name_the_path),
      cmocka_unit_test(test_a_write_cut_short_leaves_the_old_file),
      cmocka_unit_test(test_a_read_only_directory_is_denied),
      cmocka_unit_test(test_permissions),
      cmocka_unit_test(test_directories_with_parents),
      cmocka_unit_test(test_paths_are_joined),
      cmocka_unit_test(test_home_in_its_order),
  };
  return cmocka_run_group_tests(tests, make_root, remove_root);
}
