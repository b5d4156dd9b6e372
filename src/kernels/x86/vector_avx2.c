/* The vector slots for AVX2: vector.inc over two 256-bit registers. */
#include "kernels/x86/x86.h"

#include "kernels/x86/lanes_avx2.h"

#define PST_ISA(name) pst_kernels_##name##_avx2
#include "kernels/vector.inc"
#include "kernels/product.inc"
#include "kernels/attention.inc"
