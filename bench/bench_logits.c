/* The engine's logits under teacher forcing, for tools/golden_llama.py, which compares them with a float64 pass.
 *
 *     bench_logits MODEL.gguf WINDOW THREADS <windows >logits
 *
 * stdin: windows of WINDOW token ids (int32); stdout: for each its [WINDOW][n_vocab] logits (float32), both in the machine's byte order. A window is
 * answered before the next is read. Keys and values are F16. Measures nothing by itself: without arguments (make bench) it says so and ends. */
#include <stdio.h>
#include <stdlib.h>

#include "support/forced.h"

static int answer(test_forced *f, size_t n_vocab, int window, int32_t *tokens) {
  for (size_t n; (n = fread(tokens, sizeof *tokens, (size_t)window, stdin)) > 0;) {
    if (n != (size_t)window) {
      fprintf(stderr, "bench_logits: the last window has only %zu tokens\n", n);
      return 1;
    }
    for (size_t i = 0; i < n; i++)
      if (tokens[i] < 0 || (size_t)tokens[i] >= n_vocab) {
        fprintf(stderr, "bench_logits: %d is no token\n", (int)tokens[i]);
        return 1;
      }
    test_forced_run(f, tokens, window);
    for (int at = 0; at < window; at++)
      if (fwrite(test_forced_logits(f, at), sizeof(float), n_vocab, stdout) != n_vocab) {
        perror("bench_logits");
        return 1;
      }
    if (fflush(stdout)) {
      perror("bench_logits");
      return 1;
    }
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 1) {
    puts("nothing to do: tools/golden_llama.py runs it with a model");
    return 0;
  }
  int window = argc == 4 ? atoi(argv[2]) : 0, threads = argc == 4 ? atoi(argv[3]) : 0;
  if (window < 1 || window > 8192 || threads < 0) {
    fputs("usage: bench_logits MODEL.gguf WINDOW THREADS <windows >logits\n", stderr);
    return 2;
  }
  pst_engine_model *model = NULL;
  test_forced *f = NULL;
  pst_error err = PST_ERROR_INIT;
  int32_t *tokens = pst_calloc((size_t)window, sizeof *tokens);
  int code = tokens ? pst_engine_model_open(argv[1], threads, &model, &err)
                    : pst_error_set(&err, PST_E_NOMEM, NULL, "no memory");
  if (!code) code = test_forced_open(model, window, threads, &f, &err);
  if (code)
    fprintf(stderr, "bench_logits: %s: %s\n", argv[1], err.message);
  else
    code = answer(f, (size_t)pst_engine_model_get_info(model)->n_vocab, window, tokens);
  test_forced_close(f);
  pst_engine_model_unref(model);
  pst_free(tokens);
  return code ? 1 : 0;
}
