/* What the operations of training need beside their arguments. */
#include "tune/ops.h"

size_t pst_tune_scratch_bytes(size_t max_position, size_t max_row) {
  size_t tile = (size_t)PST_TUNE_TILE * PST_MAX(max_position, (size_t)PST_TUNE_TILE);
  return PST_KERNELS_WORK_BYTES + sizeof(double) * (PST_MAX(2 * max_row, (size_t)PST_TUNE_TILE) + 2 * tile);
}
