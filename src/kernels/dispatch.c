/* Which table runs: the widest this CPU has, unless the environment or a test asks for less.
 *
 * Owns the choice and the helpers that need no table of their own. The question what the CPU can do belongs to each ISA file
 * (pst_kernels_table_...), so that a build without an instruction set simply answers NULL. */
#include "kernels/layout.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const pst_kernels *_Atomic forced;
static const pst_kernels *chosen;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Widest last. */
static const struct {
  const char *name;
  const pst_kernels *(*table)(void);
} tables[] = {
    {"scalar", pst_kernels_table_scalar},
#if defined(__x86_64__)
    {"avx2", pst_kernels_table_avx2},
    {"avx512", pst_kernels_table_avx512},
#define ACCEPTED "scalar,avx2,avx512"
#elif defined(__aarch64__)
    {"neon", pst_kernels_table_neon},
    {"dotprod", pst_kernels_table_dotprod},
    {"i8mm", pst_kernels_table_i8mm},
#define ACCEPTED "scalar,neon,dotprod,i8mm"
#else
#define ACCEPTED "scalar"
#endif
};

static void choose(void) {
  const char *wish = getenv("PENSTOCK_CPU");
  size_t last = PST_ARRAY_LEN(tables) - 1;
  if (wish && *wish) {
    size_t i = 0;
    while (i < PST_ARRAY_LEN(tables) && strcmp(tables[i].name, wish) != 0) i++;
    if (i < PST_ARRAY_LEN(tables))
      last = i;
    else
      pst_log(PST_LOG_WARN, "what=cpu_mask_ignored PENSTOCK_CPU=%s accepted=" ACCEPTED, wish);
  }
  for (size_t i = 0; i <= last; i++) {
    const pst_kernels *k = tables[i].table();
    if (k) chosen = k;
  }
}

const pst_kernels *pst_kernels_get(void) {
  const pst_kernels *k = atomic_load_explicit(&forced, memory_order_acquire);
  if (k) return k;
  pthread_once(&once, choose);
  return chosen;
}

const pst_kernels *pst_kernels_find(const char *name) {
  for (size_t i = 0; i < PST_ARRAY_LEN(tables); i++)
    if (strcmp(tables[i].name, name) == 0) return tables[i].table();
  return NULL;
}

void pst_kernels_set(const pst_kernels *k) { atomic_store_explicit(&forced, k, memory_order_release); }

void pst_kernels_rope_table(double position, size_t n_rot, double base, double scale, const float *factors,
                            double magnitude, float *ret_out) {
  size_t half = n_rot / 2;
  for (size_t i = 0; i < half; i++) {
    double angle = position * scale * pow(base, -2.0 * (double)i / (double)n_rot);
    if (factors) angle /= (double)factors[i];
    ret_out[i] = (float)(cos(angle) * magnitude);
    ret_out[half + i] = (float)(sin(angle) * magnitude);
  }
}

float pst_kernels_log_sum_exp(const float *x, size_t n) {
  const pst_kernels *k = pst_kernels_get();
  float max = x[k->argmax(x, n)];
  return (float)((double)max + log((double)k->sum_exp(x, n, max)));
}
