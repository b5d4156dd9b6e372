/* The operations of training in double: what finite differences are taken of. */
#include "tune/ops.h"

#define REAL double
#define FN(name) pst_tune_##name##_f64
#define IN_FLOAT 0
#include "tune/ops.inc"
