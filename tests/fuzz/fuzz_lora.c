/* Any bytes as an adapter, in both formats: refused with a reason, or read into a sound adapter. The input's first byte says which: a GGUF file,
 * or adapter_config.json, a zero byte, and adapter_model.safetensors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/lora.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define CHECK(condition)       \
  do {                         \
    if (!(condition)) abort(); \
  } while (0)

/* A file in memory with these bytes; its name is good while it is open. */
static int put_file(const void *data, size_t n, char ret_path[32]) {
  int fd = memfd_create("fuzz", MFD_CLOEXEC);
  CHECK(fd >= 0 && write(fd, data, n) == (ssize_t)n);
  snprintf(ret_path, 32, "/proc/self/fd/%d", fd);
  return fd;
}

static void visit(const pst_engine_lora *lora) {
  CHECK(lora->architecture && lora->n_targets > 0);
  CHECK(isfinite(lora->alpha));
  for (size_t i = 0; i < lora->n_targets; i++) {
    const pst_engine_lora_target *t = &lora->targets[i];
    CHECK(t->name && t->rank >= 1 && t->n_in >= 1 && t->n_out >= 1);
    for (size_t k = 0; k < (size_t)t->rank * (size_t)t->n_in; k++) CHECK(isfinite(t->a[k]));
    for (size_t k = 0; k < (size_t)t->rank * (size_t)t->n_out; k++) CHECK(isfinite(t->b[k]));
  }
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES; k++)
    CHECK(!lora->notes[k] || pst_utf8_valid(pst_str_from(lora->notes[k])));
}

static void read_peft(const uint8_t *data, size_t n, pst_engine_lora *lora, pst_error *err) {
  const pst_engine_model_info base = {.architecture = "llama", .n_layers = 2, .head_dim = 4};
  const uint8_t *zero = n ? memchr(data, 0, n) : NULL;
  size_t n_config = zero ? (size_t)(zero - data) : n;
  char config[32], weights[32];
  int first = put_file(data, n_config, config),
      second = put_file(zero ? zero + 1 : data, zero ? n - n_config - 1 : 0, weights);
  if (pst_engine_lora_read_peft(weights, config, &base, lora, err)) CHECK(err->code < 0 && err->message[0]);
  close(first);
  close(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_lora lora = {0};
  char path[32];
  if (n == 0) return 0;
  if (data[0] == 'P') {
    read_peft(data + 1, n - 1, &lora, &err);
  } else {
    int fd = put_file(data, n, path);
    if (pst_engine_lora_read(path, NULL, &lora, &err)) CHECK(err.code < 0 && err.message[0]);
    close(fd);
  }
  if (lora.architecture)
    visit(&lora);
  else
    CHECK(lora.n_targets == 0 && err.code < 0);
  pst_engine_lora_done(&lora);
  return 0;
}
