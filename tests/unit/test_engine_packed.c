/* Packed weights kept as a file: mapped when they are of this very file, layout and shape; packed anew whatever else is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/packed.h"
#include "support/forced.h"
#include "support/temp.h"
#include "support/tiny_model.h"

enum { N_TOKENS = 24, HEAD_BYTES = 4096 };

static const char *model_path, *packed_dir;

static void begin(const test_tiny *options) {
  model_path = strdup(test_temp_path(test_dir, "model.gguf"));
  packed_dir = strdup(test_temp_path(test_dir, "deep/packed"));
  test_tiny_write(model_path, options);
}

static void end(void) {
  free((void *)(uintptr_t)model_path);
  free((void *)(uintptr_t)packed_dir);
}

/* Hash of the last logits of a fixed run. */
static uint64_t answer(const char *kept_in) {
  pst_engine_model *model = NULL;
  test_forced *f = NULL;
  pst_error err = PST_ERROR_INIT;
  int32_t tokens[N_TOKENS];
  for (int i = 0; i < N_TOKENS; i++) tokens[i] = 1 + i * 11 % 250;
  if (pst_engine_model_open_kept(model_path, kept_in, 1, &model, &err) ||
      test_forced_open(model, N_TOKENS, 1, &f, &err))
    fail_msg("%s: %s", err.place, err.message);
  test_forced_run(f, tokens, N_TOKENS);
  size_t n = (size_t)pst_engine_model_get_info(model)->n_vocab * sizeof(float);
  uint64_t hash = pst_hash64(test_forced_logits(f, N_TOKENS - 1), n, 0);
  test_forced_close(f);
  pst_engine_model_unref(model);
  return hash;
}

static char *kept_path(void) {
  char *path = pst_engine_packed_path(packed_dir, model_path);
  assert_non_null(path);
  return path;
}

/* Turns the bits of `mask` in the file's byte `at`. */
static void damage(const char *path, long at, int mask) {
  FILE *f = fopen(path, "r+b");
  assert_non_null(f);
  assert_int_equal(fseek(f, at, SEEK_SET), 0);
  int byte = getc(f);
  assert_int_equal(fseek(f, at, SEEK_SET), 0);
  putc(byte ^ mask, f);
  assert_int_equal(fclose(f), 0);
}

static void test_mapped_is_packed(void **state) {
  (void)state;
  static const char *const types[] = {"F32", "F16", "Q8_0", "Q4_1", "Q5_0"};
  static const char *const architectures[] = {"llama", "gemma3", "phi3"};
  for (size_t i = 0; i < PST_ARRAY_LEN(types) * PST_ARRAY_LEN(architectures); i++) {
    begin(&(test_tiny){
        .architecture = architectures[i / PST_ARRAY_LEN(types)], .type = types[i % PST_ARRAY_LEN(types)], .seed = i});
    uint64_t packed = answer(NULL);
    char *path = kept_path();
    assert_false(pst_file_exists(path));
    assert_true(answer(packed_dir) == packed);
    assert_true(pst_file_exists(path));
    assert_true(answer(packed_dir) == packed);
    pst_free(path);
    end();
    test_temp_remove(test_dir);
    test_dir = test_temp_dir();
  }
}

/* That the second open reads the file at all, and what it takes for a file of its own. */
static void test_what_is_taken(void **state) {
  (void)state;
  begin(&(test_tiny){.seed = 1});
  uint64_t right = answer(packed_dir);
  char *path = kept_path();
  damage(path, HEAD_BYTES + 64, 0x40); /* in a weight: nothing tells */
  assert_true(answer(packed_dir) != right);
  for (long at = 0; at < 64; at++) { /* in the head: packed anew */
    damage(path, at, 1 << (at & 7));
    assert_true(answer(packed_dir) == right);
  }
  assert_int_equal(truncate(path, 5000), 0);
  assert_true(answer(packed_dir) == right);
  assert_int_equal(truncate(path, 0), 0);
  assert_true(answer(packed_dir) == right);
  assert_true(answer(packed_dir) == right);
  test_tiny_write(model_path, &(test_tiny){.seed = 2}); /* another model under the same name */
  uint64_t other = answer(NULL);
  assert_true(other != right);
  assert_true(answer(packed_dir) == other);
  pst_free(path);
  end();
}

static void test_cannot_be_kept(void **state) {
  (void)state;
  begin(&(test_tiny){.seed = 3});
  uint64_t right = answer(NULL);
  test_temp_write(test_temp_path(test_dir, "deep"), "x", 1); /* a file where the directory should be */
  assert_true(answer(packed_dir) == right);
  end();
}

static void test_many_at_once(void **state) {
  (void)state;
  begin(&(test_tiny){.seed = 4, .n_layers = 6});
  uint64_t right = answer(NULL);
  pid_t children[8];
  for (size_t i = 0; i < PST_ARRAY_LEN(children); i++)
    if ((children[i] = fork()) == 0) _exit(answer(packed_dir) == right ? 0 : 1);
  for (size_t i = 0; i < PST_ARRAY_LEN(children); i++) {
    int status = -1;
    assert_int_equal(waitpid(children[i], &status, 0), children[i]);
    assert_int_equal(status, 0);
  }
  assert_true(answer(packed_dir) == right);
  end();
}

int main(void) {
  pst_log_set_level(PST_LOG_WARN);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_mapped_is_packed, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_what_is_taken, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_cannot_be_kept, test_dir_open, test_dir_close),
      cmocka_unit_test_setup_teardown(test_many_at_once, test_dir_open, test_dir_close),
  };
  return cmocka_run_group_tests_name("engine packed", tests, NULL, NULL);
}
