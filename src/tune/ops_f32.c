/* The operations of training in float, over the kernels. */
#include "tune/ops.h"

#define REAL float
#define FN(name) pst_tune_##name##_f32
#define IN_FLOAT 1
#include "tune/ops.inc"
