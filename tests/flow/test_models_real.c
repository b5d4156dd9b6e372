/* The real catalogue through the real package client, into the data directory of the tests ($PENSTOCK_HOME), where the other tests find the
 * models. Skips where no registry can be reached. */
#include <penstock/engine.h>
#include <penstock/models.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/temp.h"

static void say(void *user, const char *line) {
  (void)user;
  print_message("# %s\n", line);
}

/* As `penstock pull` has it. */
static int convert(void *user, const char *folder, const char *out_path, pst_error *err) {
  (void)user;
  return pst_engine_quantize(folder, out_path, "F32", NULL, NULL, err);
}

static void pull_and_check(const char *name, const char *sha256, int64_t bytes) {
  const char *home = getenv("PENSTOCK_HOME");
  if (!home || !*home) {
    print_message("PENSTOCK_HOME is not set\n");
    skip();
  }
  pst_error err = PST_ERROR_INIT;
  if (pst_dir_make(home, &err)) fail_msg("%s: %s", err.place, err.message);
  pst_models_pull_options options = {.quiet = true, .say = say, .convert = convert};
  char *path = NULL;
  int code = pst_models_pull(home, name, &options, &path, &err);
  if (code == PST_E_UPSTREAM || code == PST_E_UNSUPPORTED) {
    print_message("no source of %s can be reached: %s\n", name, err.message);
    skip();
  }
  if (code) fail_msg("%s: %s", err.place, err.message);
  pst_free(path);
  if (pst_models_verify(home, name, NULL, &err)) fail_msg("%s: %s", err.place, err.message);
  pst_models_file file;
  assert_int_equal(pst_models_resolve(home, name, &file, &err), 0);
  assert_string_equal(file.sha256, sha256);
  assert_int_equal(file.bytes, bytes);
  pst_models_file_done(&file);
}

static void smollm2(void **state) {
  (void)state;
  pull_and_check("smollm2-135m", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98362432);
}

static void gemma3_with_its_notice(void **state) {
  (void)state;
  pull_and_check("gemma3-270m", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", 253113024);
  assert_true(
      pst_file_exists(test_temp_path(getenv("PENSTOCK_HOME"), "models/notices/gemma3-270m/LICENCE_NOTICE.txt")));
}

static void minilm_from_its_checkpoint(void **state) {
  (void)state;
  pull_and_check("all-minilm-l6-v2", "5f3bd194e93982d435c4b327705ee69313ebfb989429d4f809813f960676318a", 90897888);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(smollm2), cmocka_unit_test(gemma3_with_its_notice),
                                     cmocka_unit_test(minilm_from_its_checkpoint)};
  return cmocka_run_group_tests_name("models real", tests, NULL, NULL);
}
