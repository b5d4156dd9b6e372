#include "support/traffic.h"

#include <stdlib.h>

pst_tune_traffic test_traffic(uint64_t seed, size_t n_texts, size_t length, size_t n_given) {
  pst_tune_traffic t = {0};
  int32_t tokens[256];
  if (length > PST_ARRAY_LEN(tokens)) abort();
  for (size_t i = 0; i < n_texts; i++) {
    for (size_t k = 0; k < length; k++) tokens[k] = (int32_t)(pst_random_u64(seed, i, k) % 256);
    if (pst_tune_traffic_add(&t, tokens, length, n_given)) abort();
  }
  return t;
}
