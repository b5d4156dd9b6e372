/* A decoder with LoRA, forward and backward, in double, for checks. */
#include "tune/net.h"

#define REAL double
#define FN(name) pst_tune_##name##_f64
#define IN_FLOAT 0
#include "tune/net.inc"
