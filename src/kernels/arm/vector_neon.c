/* The vector slots for NEON: vector.inc over four 128-bit registers. */
#include "kernels/arm/arm.h"

#include "kernels/arm/lanes_neon.h"

#define PST_ISA(name) pst_kernels_##name##_neon
#include "kernels/vector.inc"
#include "kernels/product.inc"
#include "kernels/attention.inc"
