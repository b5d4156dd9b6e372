/* The vector slots for NEON with the dot product instruction, which attention over int8 keys uses. */
#include "kernels/arm/arm.h"

#include "kernels/arm/lanes_neon.h"

#define PST_ISA(name) pst_kernels_##name##_dotprod
#include "kernels/vector.inc"
#include "kernels/product.inc"
#include "kernels/attention.inc"
