/* What the ARM files offer to their tables (arm/tables.c) and to each other. */
#ifndef PST_KERNELS_ARM_H
#define PST_KERNELS_ARM_H

#include "kernels/slots.h"

PST_KERNELS_MATMUL_SLOT(neon)
PST_KERNELS_VECTOR_SLOTS(neon)
PST_KERNELS_MATMUL_SLOT(dotprod)
PST_KERNELS_VECTOR_SLOTS(dotprod)
PST_KERNELS_MATMUL_SLOT(i8mm) /* its vector slots are dotprod's */

/* The matmul slot for float weights, the same for every ARM table. */
void pst_kernels_float_product_neon(const pst_kernels_matrix *w, const pst_kernels_input *input, size_t t0,
                                    size_t n_tokens, size_t group_begin, size_t group_end, bool add, float *out,
                                    size_t out_stride);

#endif
