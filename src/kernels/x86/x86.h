/* What the x86 files offer to their tables (x86/tables.c). */
#ifndef PST_KERNELS_X86_H
#define PST_KERNELS_X86_H

#include "kernels/slots.h"

#include <string.h>

PST_KERNELS_MATMUL_SLOT(avx2)
PST_KERNELS_VECTOR_SLOTS(avx2)
PST_KERNELS_MATMUL_SLOT(avx512)
PST_KERNELS_VECTOR_SLOTS(avx512)

#endif
