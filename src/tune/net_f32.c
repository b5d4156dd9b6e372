/* A decoder with LoRA, forward and backward, in float. */
#include "tune/net.h"

#define REAL float
#define FN(name) pst_tune_##name##_f32
#define IN_FLOAT 1
#include "tune/net.inc"
