/* Records, names, adopting, removing, verifying, remembered hashes. */
#include <penstock/models.h>

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "models/models.h"
#include "support/temp.h"

static pst_error err;

static int set_up(void **state) { return (*state = test_temp_dir()) ? 0 : -1; }

static int tear_down(void **state) {
  test_temp_remove(*state);
  return 0;
}

static void must_adopt(const char *home, const char *name, const char *content) {
  const char *path = test_temp_path(home, "incoming");
  test_temp_write(path, content, strlen(content));
  pst_models_file file;
  if (pst_models_adopt(home, path, name, "MIT", &file, &err)) fail_msg("%s: %s", err.place, err.message);
  char sha256[65];
  pst_sha256_hex(content, strlen(content), sha256);
  assert_string_equal(file.sha256, sha256);
  assert_string_equal(file.name, name);
  assert_int_equal(file.bytes, strlen(content));
  assert_false(pst_file_exists(path));
  pst_models_file_done(&file);
}

static int expect_resolved(const char *home, const char *what, const char *name) {
  pst_models_file file;
  int code = pst_models_resolve(home, what, &file, &err);
  if (code) return code;
  assert_string_equal(file.name, name);
  assert_true(pst_file_exists(file.path));
  pst_models_file_done(&file);
  return 0;
}

static int join(void *user, const pst_models_file *file, bool intact) {
  pst_buf_printf(user, "%s%s ", file->name, intact ? "" : "!");
  return 0;
}

static void expect_list(const char *home, const char *expected) {
  pst_buf b = PST_BUF_INIT;
  assert_int_equal(pst_models_each(home, join, &b, &err), 0);
  assert_string_equal(pst_buf_text(&b), expected);
  pst_buf_done(&b);
}

static void names_prefixes_and_paths(void **state) {
  const char *home = *state;
  expect_list(home, "");
  must_adopt(home, "b-model", "bbb");
  must_adopt(home, "a.model", "aaa");
  expect_list(home, "a.model b-model ");
  assert_int_equal(expect_resolved(home, "a.model", "a.model"), 0);
  char sha256[65];
  pst_sha256_hex("bbb", 3, sha256);
  assert_int_equal(expect_resolved(home, sha256, "b-model"), 0);
  sha256[8] = '\0';
  assert_int_equal(expect_resolved(home, sha256, "b-model"), 0);
  sha256[7] = '\0';
  assert_int_equal(expect_resolved(home, sha256, "b-model"), PST_E_NOT_FOUND);
  const char *loose = test_temp_path(home, "loose.gguf");
  test_temp_write(loose, "x", 1);
  assert_int_equal(expect_resolved(home, loose, ""), 0);
  assert_int_equal(expect_resolved(home, test_temp_path(home, "absent.gguf"), ""), PST_E_NOT_FOUND);
  assert_int_equal(expect_resolved(home, "absent.gguf", ""), PST_E_NOT_FOUND);
  assert_int_equal(expect_resolved(home, "./", ""), PST_E_BAD_INPUT);
  assert_int_equal(expect_resolved(home, "nothing", ""), PST_E_NOT_FOUND);
  assert_non_null(strstr(err.message, "here: a.model, b-model"));
  assert_non_null(strstr(err.message, "smollm2-135m"));
  assert_int_equal(expect_resolved(home, "gemma3-270m", ""), PST_E_NOT_FOUND);
  assert_non_null(strstr(err.message, "penstock pull gemma3-270m"));
  assert_int_equal(expect_resolved(home, "", ""), PST_E_NOT_FOUND);
}

static void bad_names(void **state) {
  const char *home = *state;
  static const char *const names[] = {
      "",    ".",   "..", ".registry", "A",
      "a b", "a/b", "-a", "\xc3\xa9",  "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggg"};
  const char *path = test_temp_path(home, "incoming");
  test_temp_write(path, "x", 1);
  pst_models_file file;
  for (size_t i = 0; i < PST_ARRAY_LEN(names); i++) {
    assert_int_equal(pst_models_adopt(home, path, names[i], NULL, &file, &err), PST_E_BAD_INPUT);
    assert_int_equal(pst_models_remove(home, names[i], &err), PST_E_NOT_FOUND);
    assert_int_equal(pst_models_verify(home, names[i], NULL, &err), PST_E_NOT_FOUND);
  }
  assert_true(pst_file_exists(path));
}

static void name_that_is_taken(void **state) {
  const char *home = *state;
  must_adopt(home, "m", "first");
  must_adopt(home, "m", "first"); /* the same content again is fine */
  const char *path = test_temp_path(home, "incoming");
  test_temp_write(path, "second", 6);
  pst_models_file file;
  assert_int_equal(pst_models_adopt(home, path, "m", NULL, &file, &err), PST_E_EXISTS);
  assert_true(pst_file_exists(path)); /* given back */
  assert_int_equal(expect_resolved(home, "m", "m"), 0);
  assert_int_equal(pst_models_adopt(home, test_temp_path(home, "absent"), "n", NULL, &file, &err), PST_E_NOT_FOUND);
}

static void blob_of_two_names_stays(void **state) {
  const char *home = *state;
  must_adopt(home, "one", "same");
  must_adopt(home, "two", "same");
  pst_models_file file;
  assert_int_equal(pst_models_resolve(home, "two", &file, &err), 0);
  assert_int_equal(pst_models_remove(home, "one", &err), 0);
  assert_int_equal(pst_models_remove(home, "one", &err), PST_E_NOT_FOUND);
  assert_true(pst_file_exists(file.path));
  assert_int_equal(pst_models_remove(home, "two", &err), 0);
  assert_false(pst_file_exists(file.path));
  expect_list(home, "");
  pst_models_file_done(&file);
}

/* A file of HOME/dir whose name is the model's hash and an ending. */
static char *write_derived(const char *home, const pst_models_file *file, const char *sub, const char *ending) {
  char name[128];
  snprintf(name, sizeof name, "%s/%s", home, sub);
  assert_int_equal(pst_dir_make(name, &err), 0);
  snprintf(name, sizeof name, "%s/%s-%s", sub, file->sha256, ending);
  char *path = pst_path_join(home, name);
  assert_non_null(path);
  test_temp_write(path, "x", 1);
  return path;
}

static void what_was_made_from_a_blob_goes_with_it(void **state) {
  const char *home = *state;
  assert_int_equal(unsetenv("PENSTOCK_PACKED"), 0);
  must_adopt(home, "one", "same");
  must_adopt(home, "two", "same");
  must_adopt(home, "other", "another");
  pst_models_file file, other;
  assert_int_equal(pst_models_resolve(home, "one", &file, &err), 0);
  assert_int_equal(pst_models_resolve(home, "other", &other, &err), 0);
  char *copy = write_derived(home, &file, "quantized", "Q4_0.gguf");
  char *packed = write_derived(home, &file, "packed", "1.packed");
  char *of_other = write_derived(home, &other, "packed", "1.packed");
  assert_int_equal(pst_models_remove(home, "one", &err), 0);
  assert_true(pst_file_exists(copy) && pst_file_exists(packed)); /* "two" has the blob too */
  if (pst_models_verify(home, "two", NULL, &err)) fail_msg("%s: %s", err.place, err.message);
  assert_true(pst_file_exists(copy));
  assert_false(pst_file_exists(packed));
  test_temp_write(packed, "x", 1);
  assert_int_equal(pst_models_remove(home, "two", &err), 0);
  assert_false(pst_file_exists(copy) || pst_file_exists(packed));
  assert_true(pst_file_exists(of_other));
  pst_models_file_done(&file);
  pst_models_file_done(&other);
  pst_free(copy);
  pst_free(packed);
  pst_free(of_other);
}

static void copies_are_counted_and_cleared(void **state) {
  const char *home = *state;
  assert_int_equal(unsetenv("PENSTOCK_PACKED"), 0);
  must_adopt(home, "one", "same");
  pst_models_file file;
  assert_int_equal(pst_models_resolve(home, "one", &file, &err), 0);
  assert_int_equal(pst_models_copies(home, true), 0);
  char *files[] = {write_derived(home, &file, "quantized", "Q4_0.gguf"),
                   write_derived(home, &file, "packed", "1.packed"), write_derived(home, &file, "packed", "notes.txt")};
  assert_int_equal(pst_models_copies(home, false), 2);
  assert_true(pst_file_exists(files[0]) && pst_file_exists(files[1]));
  assert_int_equal(pst_models_copies(home, true), 2);
  assert_false(pst_file_exists(files[0]) || pst_file_exists(files[1]));
  assert_true(pst_file_exists(files[2]) && pst_file_exists(file.path)); /* somebody else's, and the model */
  assert_int_equal(pst_models_copies(home, true), 0);
  for (size_t i = 0; i < PST_ARRAY_LEN(files); i++) pst_free(files[i]);
  pst_models_file_done(&file);
}

static void changed_file_is_noticed_and_verified(void **state) {
  const char *home = *state;
  must_adopt(home, "m", "content");
  pst_models_file file;
  assert_int_equal(pst_models_resolve(home, "m", &file, &err), 0);
  struct stat st;
  assert_int_equal(stat(file.path, &st), 0);
  assert_int_equal(st.st_mode & 0777, 0444);
  /* touched: refused, until a look at the content shows that it is right */
  struct timespec times[2] = {{1000, 0}, {1000, 0}};
  assert_int_equal(utimensat(AT_FDCWD, file.path, times, 0), 0);
  assert_int_equal(expect_resolved(home, "m", "m"), PST_E_CORRUPT);
  expect_list(home, "m! ");
  assert_int_equal(pst_models_verify(home, "m", NULL, &err), 0);
  assert_int_equal(expect_resolved(home, "m", "m"), 0);
  expect_list(home, "m ");
  /* changed: verifying says so and does not bless it */
  assert_int_equal(unlink(file.path), 0);
  test_temp_write(file.path, "CONTENT", 7);
  assert_int_equal(expect_resolved(home, "m", "m"), PST_E_CORRUPT);
  assert_int_equal(pst_models_verify(home, "m", NULL, &err), PST_E_CORRUPT);
  assert_int_equal(expect_resolved(home, "m", "m"), PST_E_CORRUPT);
  assert_int_equal(unlink(file.path), 0);
  assert_int_equal(pst_models_verify(home, "m", NULL, &err), PST_E_NOT_FOUND);
  pst_models_file_done(&file);
}

static void damaged_records(void **state) {
  const char *home = *state;
  static const char *const texts[] = {"", "{", "[]", "{\"sha256\":\"../../etc/passwd\",\"bytes\":1}", "{\"sha256\":5}"};
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) {
    must_adopt(home, "m", "content");
    test_temp_write(test_temp_path(home, "models/m.json"), texts[i], strlen(texts[i]));
    assert_int_equal(expect_resolved(home, "m", "m"), PST_E_CORRUPT);
    assert_non_null(strstr(err.message, "pull it again"));
    expect_list(home, "m! ");
    assert_int_equal(pst_models_remove(home, "m", &err), 0);
    expect_list(home, "");
  }
}

static void hashes_are_remembered(void **state) {
  const char *home = *state;
  const char *path = test_temp_path(home, "x.gguf");
  test_temp_write(path, "one", 3);
  char sha256[65], expected[65];
  pst_sha256_hex("one", 3, expected);
  for (int i = 0; i < 2; i++) {
    assert_int_equal(pst_models_hash(home, path, NULL, sha256, &err), 0);
    assert_string_equal(sha256, expected);
  }
  test_temp_write(path, "longer", 6);
  pst_sha256_hex("longer", 6, expected);
  assert_int_equal(pst_models_hash(home, path, NULL, sha256, &err), 0);
  assert_string_equal(sha256, expected);
  assert_int_equal(pst_models_hash(home, test_temp_path(home, "absent"), NULL, sha256, &err), PST_E_NOT_FOUND);
}

static int check_entry(void *user, const pst_models_entry *entry) {
  ++*(int *)user;
  assert_true(pst_models_name_valid(entry->name));
  assert_int_equal(strlen(entry->sha256), 64);
  assert_true(entry->bytes > 0);
  return 0;
}

/* The shipped table: every row whole, the pieces of each add up. */
static void catalogue_is_sound(void **state) {
  (void)state;
  int n = 0;
  assert_int_equal(pst_models_catalogue_each(check_entry, &n, &err), 0);
  assert_true(n >= 2);
  const pst_json *models = NULL;
  assert_int_equal(pst_models_catalogue(&models, &err), 0);
  for (pst_json_iter m = pst_json_iterate(models); pst_json_next(&m);)
    for (pst_json_iter s = pst_json_iterate(pst_json_get(m.value, "sources")); pst_json_next(&s);) {
      const pst_json *packages = pst_json_get(s.value, "packages"), *checkpoint = pst_json_get(s.value, "checkpoint");
      if (checkpoint) {
        pst_models_package package;
        assert_int_equal(pst_models_package_read(pst_json_get(checkpoint, "package"), &package, &err), 0);
        assert_true(pst_json_str(pst_json_get(checkpoint, "folder")).n > 0);
        assert_true(pst_json_size(pst_json_get(checkpoint, "files")) >= 3);
        continue;
      }
      if (!packages) {
        assert_true(pst_str_starts(pst_json_str(pst_json_get(s.value, "hub")), PST_STR("https://")));
        continue;
      }
      int64_t bytes = 0;
      for (pst_json_iter p = pst_json_iterate(packages); pst_json_next(&p);) {
        pst_models_package package;
        assert_int_equal(pst_models_package_read(p.value, &package, &err), 0);
        if (package.member) bytes += package.member_bytes;
      }
      assert_int_equal(bytes, pst_json_int(pst_json_get(m.value, "bytes"), -1));
    }
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      T(names_prefixes_and_paths),
      T(bad_names),
      T(name_that_is_taken),
      T(blob_of_two_names_stays),
      T(what_was_made_from_a_blob_goes_with_it),
      T(copies_are_counted_and_cleared),
      T(changed_file_is_noticed_and_verified),
      T(damaged_records),
      T(hashes_are_remembered),
      T(catalogue_is_sound),
  };
  return cmocka_run_group_tests_name("models registry", tests, NULL, NULL);
}
