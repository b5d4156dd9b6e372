/* A decoder with a LoRA adapter, or an encoder with one and a head that tells texts apart: loss of a batch, and what it derives by their numbers. In float for training, in double for checks. */
#ifndef PST_TUNE_NET_H
#define PST_TUNE_NET_H

#include "tune/lora.h"
#include "tune/ops.h"

enum { PST_TUNE_LOGIT_BYTES = 48 << 20 }; /* most that logits of scored tokens take at a time, up to 16 of them */

#define REAL float
#define FN(name) pst_tune_##name##_f32
#include "tune/net_types.inc"
#undef REAL
#undef FN
#define REAL double
#define FN(name) pst_tune_##name##_f64
#include "tune/net_types.inc"
#undef REAL
#undef FN

#endif
