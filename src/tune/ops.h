/* The operations of training, forward and backward, in float (names end in _f32) and, for checks by finite differences, in double (_f64). One source:
 * ops.inc.
 *
 * All work is cut into pieces for a team's threads, and no result depends on how: an element is computed by one thread, a sum is one chain. */
#ifndef PST_TUNE_OPS_H
#define PST_TUNE_OPS_H

#include "tune/batch.h"
#include "tune/model.h"
#include "tune/team.h"

#include <penstock/kernels.h>

/* Bytes of a thread's scratch for operations over texts of up to max_position tokens and rows of up to max_row numbers. */
size_t pst_tune_scratch_bytes(size_t max_position, size_t max_row);

#define REAL float
#define FN(name) pst_tune_##name##_f32
#include "tune/ops_types.inc"
#undef REAL
#undef FN
#define REAL double
#define FN(name) pst_tune_##name##_f64
#include "tune/ops_types.inc"
#undef REAL
#undef FN

#endif
