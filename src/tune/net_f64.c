/* A decoder with LoRA, forward and backward, in double, for checks. */
#include "tune/net.h"

#define REAL double
#define FN(name) pst_tune_##name##_f64
#include "tune/net.inc"
