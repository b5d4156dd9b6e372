/* Logits of tiny models to the bit, the same on every machine and under every table of kernels: the values were made by the scalar table on
 * x86-64, and ARM is held to them as well (make test-arm).
 *
 * A failure prints the hash that came out. They change when the definition of a result changes (kernels/reference.c, the order of the
 * forward pass), never otherwise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>
#include <penstock/kernels.h>

#include "support/forced.h"
#include "support/temp.h"
#include "support/tiny_model.h"

enum { N_TOKENS = 96 }; /* two pages of keys, several windows */

static const struct golden {
  const char *architecture, *type;
  uint64_t hash;
} golden[] = {
    {"llama", "F32", 0xc98f72b0c4d7ce22},   {"llama", "F16", 0xbeb61283b2531533},
    {"llama", "BF16", 0x9d2b2a31e78bbde8},  {"llama", "Q4_0", 0x006754b2509161a3},
    {"llama", "Q4_1", 0x5b56450e170dbef5},  {"llama", "Q5_0", 0x0a7d72e2235c1b6d},
    {"llama", "Q5_1", 0xbd02562f2843ac29},  {"llama", "Q8_0", 0xd6d59629b677acb0},
    {"qwen3", "Q8_0", 0xe0df873e0f898ba2},  {"gemma2", "Q8_0", 0xfb1d5b603521a39a},
    {"gemma3", "Q4_0", 0x63750da10183105e}, {"phi3", "Q5_1", 0xb3fa699eb6f84f66},
};

static uint64_t logits_hash(const char *path) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_model *model = NULL;
  test_forced *f = NULL;
  int32_t tokens[N_TOKENS];
  for (int i = 0; i < N_TOKENS; i++) tokens[i] = (i * 37 + 11) % 256;
  if (pst_engine_model_open(path, 1, &model, &err) || test_forced_open(model, N_TOKENS, 1, &f, &err))
    fail_msg("%s: %s", err.place, err.message);
  size_t n_vocab = (size_t)pst_engine_model_get_info(model)->n_vocab;
  uint64_t hash = 0;
  test_forced_run(f, tokens, N_TOKENS);
  for (int i = 0; i < N_TOKENS; i++) hash = pst_hash64(test_forced_logits(f, i), n_vocab * sizeof(float), hash);
  test_forced_close(f);
  pst_engine_model_unref(model);
  return hash;
}

static void logits_are_the_same_bits_everywhere(void **state) {
  (void)state;
  static const char *const tables[] = {"scalar", "avx2", "avx512", "neon", "dotprod", "i8mm"};
  char *dir = test_temp_dir();
  const char *path = test_temp_path(dir, "model.gguf");
  int n_wrong = 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(golden); i++) {
    const struct golden *g = &golden[i];
    test_tiny_write(path, &(test_tiny){.architecture = g->architecture, .type = g->type, .seed = 7});
    for (size_t k = 0; k < PST_ARRAY_LEN(tables); k++) {
      if (!pst_kernels_find(tables[k])) continue;
      pst_kernels_set(pst_kernels_find(tables[k]));
      uint64_t hash = logits_hash(path);
      if (hash == g->hash) continue;
      print_error("%s %s %s: 0x%016" PRIx64 "\n", g->architecture, g->type, tables[k], hash);
      n_wrong++;
    }
  }
  pst_kernels_set(NULL);
  test_temp_remove(dir);
  assert_int_equal(n_wrong, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(logits_are_the_same_bits_everywhere)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
