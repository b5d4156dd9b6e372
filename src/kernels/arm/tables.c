/* Which ARM tables this CPU can run, and the tables themselves. The kernel of the operating system says what the CPU has. */
#include "kernels/arm/arm.h"

#include <sys/auxv.h>

/* Bits of AT_HWCAP and AT_HWCAP2: Linux, Documentation/arm64/elf_hwcaps.rst. */
#define HAS_ASIMD (1ul << 1)
#define HAS_DOTPROD (1ul << 20)
#define HAS_I8MM (1ul << 13)

static bool has_neon(void) { return getauxval(AT_HWCAP) & HAS_ASIMD; }

static bool has_dotprod(void) { return has_neon() && (getauxval(AT_HWCAP) & HAS_DOTPROD); }

static bool has_i8mm(void) { return has_dotprod() && (getauxval(AT_HWCAP2) & HAS_I8MM); }

const pst_kernels *pst_kernels_table_neon(void) {
  static const pst_kernels table = PST_KERNELS_TABLE("neon", neon, neon);
  return has_neon() ? &table : NULL;
}

const pst_kernels *pst_kernels_table_dotprod(void) {
  static const pst_kernels table = PST_KERNELS_TABLE("dotprod", dotprod, dotprod);
  return has_dotprod() ? &table : NULL;
}

const pst_kernels *pst_kernels_table_i8mm(void) {
  static const pst_kernels table = PST_KERNELS_TABLE("i8mm", i8mm, dotprod);
  return has_i8mm() ? &table : NULL;
}
