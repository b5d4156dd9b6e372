#include "support/vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/temp.h"

static void data_path(char *out, size_t n, const char *name, const char *suffix) {
  const char *data = getenv("PENSTOCK_TEST_DATA");
  snprintf(out, n, "%s/vocab/%s%s", data && *data ? data : "../shared/data", name, suffix);
}

bool test_vocab_unpack(const char *name, uint8_t **ret_data, size_t *ret_n) {
  char path[1024], command[1100];
  pst_buf all = PST_BUF_INIT;
  char part[65536];
  data_path(path, sizeof path, name, ".gguf.gz");
  if (!pst_file_exists(path) || strchr(path, '\'')) {
    printf("%s is not there; set PENSTOCK_TEST_DATA\n", path);
    return false;
  }
  snprintf(command, sizeof command, "gzip -dc '%s'", path);
  FILE *pipe = popen(command, "r");
  if (!pipe) abort();
  for (size_t n; (n = fread(part, 1, sizeof part, pipe)) > 0;) pst_buf_append(&all, part, n);
  if (pclose(pipe) != 0 || pst_buf_status(&all) < 0) abort();
  *ret_n = all.n;
  *ret_data = (uint8_t *)pst_buf_take(&all);
  return true;
}

char *test_vocab_file(const char *name, size_t *ret_n) {
  char path[1024], *data = NULL;
  data_path(path, sizeof path, name, "");
  return pst_file_read(path, 1 << 24, &data, ret_n, NULL) < 0 ? NULL : data;
}

test_gguf test_gguf_make(void (*fill)(pst_engine_gguf_writer *w)) {
  test_gguf file = {.dir = test_temp_dir()};
  pst_error err = PST_ERROR_INIT;
  pst_engine_gguf_writer *w = NULL;
  snprintf(file.path, sizeof file.path, "%s/made.gguf", file.dir);
  if (pst_engine_gguf_writer_create(file.path, 32, &w, &err) < 0) abort();
  fill(w);
  if (pst_engine_gguf_writer_finish(w, &err) < 0) {
    fprintf(stderr, "%s: %s\n", err.place, err.message);
    abort();
  }
  pst_engine_gguf_writer_free(w);
  return file;
}

void test_gguf_remove(test_gguf *file) {
  test_temp_remove(file->dir);
  file->dir = NULL;
}

pst_engine_tokenizer *test_tokenizer_make(void (*fill)(pst_engine_gguf_writer *w)) {
  test_gguf file = test_gguf_make(fill);
  pst_error err = PST_ERROR_INIT;
  pst_engine_gguf *g = NULL;
  pst_engine_tokenizer *t = NULL;
  if (pst_engine_gguf_open(file.path, &g, &err) < 0 || pst_engine_tokenizer_create(g, &t, &err) < 0) {
    fprintf(stderr, "%s: %s\n", err.place, err.message);
    abort();
  }
  pst_engine_gguf_close(g);
  test_gguf_remove(&file);
  return t;
}
