/* Which x86 tables this CPU can run, and the tables themselves.
 *
 * Compiled without any instruction-set flag, so that asking is safe everywhere. The operating system must save the registers too (XGETBV). */
#include "kernels/x86/x86.h"

#include <cpuid.h>
#include <pthread.h>

typedef struct cpu_features {
  bool avx2, avx512;
} cpu_features;

static uint64_t saved_registers(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static cpu_features features;

static void ask(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return;
  bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29), avx = c & (1u << 28);
  if (!osxsave || !fma || !f16c || !avx) return;
  uint64_t saved = saved_registers();
  if ((saved & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
  bool bmi2 = b & (1u << 8);
  features.avx2 = (b & (1u << 5)) && bmi2;
  bool f = b & (1u << 16), dq = b & (1u << 17), bw = b & (1u << 30), vl = b & (1u << 31);
  bool vbmi = c & (1u << 1), vnni = c & (1u << 11);
  features.avx512 = features.avx2 && (saved & 0xe6) == 0xe6 && f && dq && bw && vl && vbmi && vnni;
}

static const cpu_features *cpu(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, ask);
  return &features;
}

const pst_kernels *pst_kernels_table_avx2(void) {
  static const pst_kernels table = PST_KERNELS_TABLE("avx2", avx2, avx2);
  return cpu()->avx2 ? &table : NULL;
}

const pst_kernels *pst_kernels_table_avx512(void) {
  static const pst_kernels table = PST_KERNELS_TABLE("avx512", avx512, avx512);
  return cpu()->avx512 ? &table : NULL;
}
