/* The vector slots for AVX-512: vector.inc over 512-bit registers. */
#include "kernels/x86/x86.h"

#include "kernels/x86/lanes_avx512.h"

#define PST_ISA(name) pst_kernels_##name##_avx512
#include "kernels/vector.inc"
#include "kernels/product.inc"
#include "kernels/attention.inc"
